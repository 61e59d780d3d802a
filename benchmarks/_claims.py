"""What the five papers claim, and what the records say.

Most rows are claims of the papers; the others say that they are questions of ours. Each claim is a
set of pairs of methods: the first is said to be better than the second. A pair is tested on each
data set where both have runs, by the paired t-test of its study. The verdict follows from the tests
by a rule: *reproduced* if the first method is significantly above in all of them, *in part* if in
some, *refuted* if it is above in none and significantly below in at least half, and *not reproduced*
otherwise. For a claim of "as good or better", a test without a significant difference speaks for the
claim, but leaves it at most *in part*. "In part" may hide clear losses on some data or to some
methods; the evidence shows them. A verdict from one data set says little about others.

Significant is a p-value below 0.05, corrected by Holm's method for the number of tests of the
claim. If the values of users are recorded, a test is over users, with the mean over seeds for each;
else it is over seeds. Tests over users do not measure how much the difference depends on the split
or the seed. The metric is the one that chooses; λOpt is tested in NDCG@50 as its code computes it,
and validation chooses by the full ranking. MAR and MARS are tested with the full ranking, except on
the published splits, whose protocol has sampled items. The lines of a study test each pair for
itself, so that their p-values may be smaller.

The evidence of one pair is the difference on each data set. With more pairs, it is for each pair the
number of data sets on which the first method is significantly above, not significantly different
("equal"), or significantly below.

Marks are those of the rows that are compared. A verdict with marks may change with a wider grid
(`*`), more epochs (`^`), more seeds (`1`, fewer than three) or another grid (`°`). A row with the
mark ° has an earlier grid. An older row that is not significantly above a present one might be with
the present grid, so such a test does not count; two older rows are compared with each other. If
tests that do not count could change the verdict, the claim is *open*, and so it is without any
test. We do not have all data sets of the papers, and protocols differ; the studies say how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks import _record
from benchmarks.studies import _results, _study, mml
from benchmarks.studies.lambda_opt import BEST_FIXED


class Claim(NamedTuple):
    """A claim of a paper.

    Attributes:
        paper: the paper.
        says: the claim.
        study: name of the study that has the methods.
        pairs: pairs of methods; the first is said to be better.
        data: the data sets to test on; empty means all.
        or_equal: whether the claim also holds without a significant difference.
        ours: whether it is a question of ours, which the paper does not claim.
    """

    paper: str
    says: str
    study: str
    pairs: Sequence[tuple[str, str]]
    data: Sequence[str] = ()
    or_equal: bool = False
    ours: bool = False


SINGLE = ("BPR", "NMF", "NeuMF", "CML", "MetricF", "TransCF", "LRML", "SML")
METRIC_LEARNING = ("CML", "MetricF", "TransCF", "LRML", "SML")
FULL = ("ciao-random, full", "delicious-random, full", "lastfm-2k, full", "ml-1m-loo, full")
PUBLISHED = ("ciao, sampled", "delicious, sampled")
SAMPLED_LOSSES = ("BPR", "BCE", "sampled softmax", "UIB", "SML")
SHORT = ", 25 epochs"
CLAIMS = (
    Claim(
        "MARS",
        "MARS is better than every baseline (table II)",
        "mars_tuned",
        [("MARS, paper", x) for x in SINGLE],
        FULL,
    ),
    Claim(
        "MARS",
        "MARS with our preset of free facets is better than every baseline",
        "mars_tuned",
        [("MARS, default", x) for x in SINGLE],
        FULL,
        ours=True,
    ),
    Claim(
        "MARS",
        "The same, on the published splits",
        "mars",
        [("MARS, default", x) for x in SINGLE],
        PUBLISHED,
        ours=True,
    ),
    Claim(
        "MARS",
        "MARS learns more than a constant: it is better than ranking by item id on the published splits",
        "mars",
        [("MARS, released", "item id"), ("MARS, default", "item id")],
        PUBLISHED,
        ours=True,
    ),
    Claim(
        "MARS",
        "MAR is better than metric learning in a single space",
        "mars_tuned",
        [("MAR, paper", x) for x in METRIC_LEARNING],
        FULL,
    ),
    Claim(
        "MARS", "The sphere is better than the ball: MARS over MAR", "mars_tuned", [("MARS, paper", "MAR, paper")], FULL
    ),
    Claim(
        "MARS",
        "Four facets are better than one, on the published splits",
        "mars",
        [("MARS, released, 32 dimensions", "MARS, released, 32 dimensions, n_facets 1")],
        PUBLISHED,
    ),
    Claim(
        "MARS",
        "Four facets are better than one, for unit vectors that are trained with BSL",
        "mars",
        [("composed, 4 facets", "composed, 1 facet")],
        FULL,
        ours=True,
    ),
    Claim("λOpt", "λ for each user, item and dimension is better than one λ", "lambda_opt", [("λOpt DUI", BEST_FIXED)]),
    Claim(
        "λOpt",
        "The same, if the fixed λ may train on the pairs that λOpt sees",
        "lambda_opt",
        [("λOpt DUI", "MF, one λ, on learn too")],
        ours=True,
    ),
    Claim(
        "λOpt",
        "Coarser λ is better than one λ, too",
        "lambda_opt",
        [(f"λOpt {which}", BEST_FIXED) for which in ("D", "DU", "DI")],
    ),
    Claim(
        "MML",
        "Several margins are better than one, with 100 negatives a group or fewer",
        "mml",
        [(f"MML, {kind}", f"CCL, {kind}") for kind in ("10 a group", "100 a group")],
        mml.DATA,
    ),
    Claim(
        "MML",
        "Several margins are better than one, with many negatives",
        "mml",
        [(f"MML, 2048 shared{long}", f"CCL, 2048 shared{long}") for long in ("", f", {mml.LONG}")],
        mml.DATA,
    ),
    Claim(
        "MML",
        "BSL is better than MML with many negatives",
        "mml",
        [(f"BSL, 2048 shared{long}", f"MML, 2048 shared{long}") for long in ("", f", {mml.LONG}")],
        mml.DATA,
        ours=True,
    ),
    Claim(
        "RG2",
        "RG2 with α (the released code) is better than losses with sampled negatives",
        "rg2",
        [("RG2, alpha tuned", x) for x in SAMPLED_LOSSES],
    ),
    Claim(
        "RG2",
        "RG2 with α is as good as the softmax loss or better",
        "rg2",
        [("RG2, alpha tuned", "softmax")],
        or_equal=True,
    ),
    Claim(
        "RG2",
        "RG2 without α, by ALS, is better than losses with sampled negatives",
        "rg2",
        [("RG2", x) for x in SAMPLED_LOSSES],
        ours=True,
    ),
    Claim(
        "RG2",
        "RG2 without α, by ALS, is as good as the softmax loss or better",
        "rg2",
        [("RG2", "softmax")],
        or_equal=True,
        ours=True,
    ),
    Claim("RG2", "RG2 with α (the released code) is better than WRMF", "rg2", [("RG2, alpha tuned", "WRMF")]),
    Claim(
        "RG2",
        "RG2 with α is better than iALS",
        "rg2",
        [("RG2, alpha tuned", "iALS")],
        ours=True,
    ),
    Claim(
        "VALID",
        "VALID is better than MacridVAE",
        "valid",
        [(f"VALID{x}", f"MacridVAE{x}") for x in ("", ", 12 epochs")],
    ),
    Claim(
        "VALID",
        "VALID is better than the other baselines",
        "valid",
        [("VALID", x) for x in ("MultVAE", "RecVAE", "SimpleX", "LightGCN")],
    ),
    Claim("VALID", "VALID is better than EASE", "valid", [("VALID", "EASE")], ours=True),
    Claim(
        "VALID",
        "Implicit differentiation is better than unrolling",
        "valid",
        [(f"VALID{SHORT}", f"VALID, unrolled{SHORT}")],
    ),
    Claim(
        "VALID",
        "Several interests are better than one",
        "valid",
        [(f"{x}{SHORT}", f"{x}, n_interests 1{SHORT}") for x in ("VALID", "MacridVAE")],
    ),
)


def verdict(signs: Sequence[int | None], or_equal: bool = False) -> str:
    """Returns the verdict of tests: 1 for significantly above, −1 for below, 0 for neither, None if it does not count.

    With `or_equal` the claim is "as good or better".
    """
    found = {_settled([sign if each is None else each for each in signs], or_equal) for sign in (1, 0, -1)}
    return found.pop() if signs and len(found) == 1 else "open"


def _settled(signs: Sequence[int], or_equal: bool) -> str:
    """Returns the verdict of tests that all count."""
    if signs and min(signs) == 1:
        return "reproduced"
    if 1 in signs or (or_equal and 0 in signs):
        return "in part"
    return "refuted" if 2 * signs.count(-1) >= len(signs) else "not reproduced"


def judged(claim: Claim, this: _study.Study, records: _study.Records) -> tuple[str, str, str, str]:
    """Returns a claim's verdict, the number of data sets, the evidence, and the marks of the rows."""
    tests = _results.tested(this, records, claim.pairs, claim.data)
    marks = {mark for test in tests.values() for mark in test.marks}
    found = verdict([test.sign for test in tests.values()], claim.or_equal)
    return found, str(len({data for data, *_ in tests})), evidence(claim, tests), "".join(sorted(marks))


WORDS = {1: "above", 0: "equal", -1: "below", None: "not counted"}


def evidence(claim: Claim, tests: Mapping[tuple[str, str, str], _results.Test]) -> str:
    """Returns the differences on each data set; of several pairs, how many were above and below."""
    if len(claim.pairs) == 1:
        return "; ".join(f"{data} {test.difference:+.4f} ({WORDS[test.sign]})" for (data, *_), test in tests.items())
    parts = []
    for one, other in claim.pairs:
        own = [test.sign for (_, *pair), test in tests.items() if pair == [one, other]]
        if own:
            name = f"over {other}" if len({other for _, other in claim.pairs}) == len(claim.pairs) else one
            counts = [f"{own.count(sign)} {word}" for sign, word in WORDS.items() if sign is not None or None in own]
            parts.append(f"{name}: {', '.join(counts)}")
    return "; ".join(parts)


def wrong(studies: Mapping[str, tuple[_study.Study, _study.Records]]) -> str:
    """Returns what we said and was wrong, with today's values from the records."""
    this, records = studies["rg2"]
    tables = _results.tables(this, records)
    of_mml = lambda loss: _results.mean_of(  # noqa: E731
        _results.tables(*studies["mml"])["gowalla"][f"{loss}, 10 a group"].values["recall@20"]
    )
    value = lambda data, name: _results.mean_of(tables[data][name].values["ndcg@10"])  # noqa: E731

    def decayed(l2: float) -> str:
        runs = [r for r in records if (r["data"], r["method"], r["on"]) == ("ml-1m", "LightGCN, softmax", "test")]
        found = [r["test"]["ndcg@10"] for r in runs if r["setting"].get("l2") == l2 and "learning_rate" in r["setting"]]
        return _results.mean_of(np.array(found))

    said = [
        "README had multi-margin loss 10.4 % above CCL. Both had the settings of their papers, which suit neither "
        "with few negatives. `benchmarks.studies.mml` tunes both alike.",
        f"README had iALS at an NDCG@10 of .2896 on ml-100k, from a grid that was too narrow. It is "
        f"{value('ml-100k', 'iALS')}.",
        f"LightGCN on ml-1m decayed whole tables, far more strongly than its paper: softmax with a decay of 1e-5 has "
        f"{decayed(1e-5)}, and {decayed(1e-7)} with a decay of 1e-7, which was not tuned.",
        "MARS had one or two settings where its rivals had up to six, and a preset with free facets was called the "
        "paper's. `benchmarks.studies.mars_tuned` gives all the same number of settings.",
        "RG2 was said to be better than losses with sampled negatives, and as good as softmax, on data where those had "
        "at most nine settings, a constant learning rate and an l2 on whole tables.",
        "MML was far above CCL with 10 negatives a group, because CCL had chosen the end of its grid of weights. With "
        f"wider grids for both they have {of_mml('MML')} and {of_mml('CCL')}.",
    ]
    return "\n".join(["### Claims of ours that were wrong", "", *(f"- {each}" for each in said)])


def judgements(studies: Mapping[str, tuple[_study.Study, _study.Records]]) -> list[tuple[str, ...]]:
    """Returns for each claim its paper, what it says, and what `judged` returns."""
    rows = []
    for claim in CLAIMS:
        this, records = studies.get(claim.study, (None, ()))
        found = ("open", "0", "", "") if this is None else judged(claim, this, records)
        rows.append((claim.paper, claim.says + " (a question of ours)" * claim.ours, *found))
    return rows


def section(studies: Mapping[str, tuple[_study.Study, _study.Records]], judgements: Sequence[Sequence[str]]) -> str:
    """Returns the section of RESULTS.md, with the table of `judgements`."""
    table = _record.table(["paper", "claim", "verdict", "data sets", "evidence", "marks"], judgements)
    return "\n\n".join(["## Claims of the papers", __doc__.strip(), table, wrong(studies)])
