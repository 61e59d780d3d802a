"""The rows of two studies that have the same test pairs, in one table for each data set.

The rows come from the studies "Losses on Gowalla and Yelp2018" and "Solvers against SGD", which say
how each method was trained and tuned. On Gowalla and Yelp2018 (the splits of LightGCN), a tenth of
the train part chooses the settings, then the method is trained on the whole train part. On ml-1m
and citeulike-a, each user's pairs are split at random (.8/.1/.1), with another split for each seed.
All methods of a table are evaluated on the same test pairs for the same seed, among all items, with
the pairs that they were trained or selected on masked. Methods have different numbers of trials,
see "trials"; a method with more of them has an advantage. These are all that are recorded, also
those of earlier ranges of values; the last range chooses. Rows with the mark ° are older runs.

"CPU seconds" are those of one training run after the trials, summed over all cores. Compilation has
mostly happened before; "of all trials" includes it. Solvers and filters on Gowalla and Yelp2018 are
then trained again, on train and validation, which is not included; losses are trained on both at
once. Times depend on the machine, of which there were several, and on its load. They are empty if a
time was not recorded, or if a run was on an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import _record
from benchmarks.studies import _results, _study
from jaxrec import study

PUBLISHED = (
    'The values that papers publish for Gowalla and Yelp2018 are in "Published values". Most of them were chosen on '
    "the test set."
)

SOURCES = ("rg2", "mml")
DATA = {
    "gowalla": ("recall@20", "ndcg@20"),
    "yelp2018": ("recall@20", "ndcg@20"),
    "ml-1m": ("ndcg@10", "recall@20"),
    "citeulike-a": ("ndcg@10", "recall@20"),
}
Studies = Mapping[str, tuple[_study.Study, _study.Records]]


def rows(studies: Studies, data: str) -> list[tuple[study.Row, _study.Records]]:
    """Returns the rows of a data set with their trials, the best row first.

    Raises:
        ValueError: if studies have other test pairs under the same name and seed.
    """
    found: dict[str, tuple[study.Row, _study.Records]] = {}
    tests: dict[int, str] = {}
    for name in SOURCES:
        this, records = studies.get(name, (None, ()))
        if this is None or data not in this.methods:
            continue
        for record in (each for each in records if (each["data"], each["on"]) == (data, "test")):
            test = record["fingerprint"].rpartition("-")[2]
            if tests.setdefault(record["seed"], test) != test:
                raise ValueError(
                    f"with seed {record['seed']}, {name} has other test pairs of {data} than another study"
                )
        for method, row in _results.tables(this, records).get(data, {}).items():
            tuned = (*this.tuned_by(data, method), "valid")
            trials = [each for each in records if (each["data"], each["method"], each["on"]) == tuned]
            trials = [each for each in trials if each["setting"].keys() == row.setting.keys()]
            if method not in found or len(row.seeds) > len(found[method][0].seeds):  # of trivial rankers
                found[method] = row, trials
    return sorted(found.values(), key=lambda pair: -pair[0].values[DATA[data][0]].mean())


def section(studies: Studies) -> str:
    """Returns the section of RESULTS.md."""
    parts, used = ["## Leaderboard", __doc__.strip(), *([PUBLISHED] if "published" in studies else [])], set()
    for data, metrics in DATA.items():
        if found := rows(studies, data):
            listed, trials = zip(*found)
            columns = {"method": [row.method for row in listed]}
            columns |= {_results.head(m): [_results.mean_of(row.values[m]) for row in listed] for m in metrics}
            columns["CPU seconds"] = [_seconds(row.cpu_seconds, np.median) for row in listed]
            columns["of all trials"] = [_seconds([each.get("cpu_seconds") for each in runs], sum) for runs in trials]
            columns["trials"] = [str(len(runs)) if runs else "" for runs in trials]
            columns["seeds"] = [str(len(row.seeds)) for row in listed]
            columns["marks"] = [row.marks for row in listed]
            used |= set("".join(columns["marks"]))
            parts.append(f"### {data}: all methods\n\n{_record.table(list(columns), list(zip(*columns.values())))}")
    legend = [f"{mark}: {what}." for mark, what in _results.MARKS.items() if mark in used]
    parts.append(" ".join(["Means ± standard error over seeds.", *legend]))
    return "\n\n".join(parts)


def _seconds(values: Sequence[float | None], reduce: Callable[..., Any]) -> str:
    """Returns a sum or median of CPU times; empty if one is not recorded, or there are none."""
    return f"{reduce(values):,.3g}" if values and None not in values else ""
