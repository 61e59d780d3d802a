"""RG2, WRMF and iALS against losses trained by SGD, with the protocol of the RG2 paper.

Models with vectors have 64 dimensions; except for LightGCN they are matrix factorisations. Filters,
neighbours and EASE compare items directly. Ratings of 3 and more are positives; on lastfm-2k all pairs
are, and plays count once. Users and items keep at least 5 pairs. Each user's pairs are split at random
into train, validation and test (.8/.1/.1), with another split for each seed. On test, train and
validation pairs are masked. Validation chooses the hyperparameters with seed 0, and the sweep or epoch
of each run. Gowalla and Yelp2018 have the splits of LightGCN, and only solvers run on them: a tenth of
the train part chooses the hyperparameters and the number of sweeps, then the model is trained on all of
the train part. On citeulike-a, too, only solvers run.

Losses trained by SGD have 16 settings to choose from: four values of l2, and four numbers of epochs,
each twice the one before. l2 penalises the rows of a batch, as `train.penalised_objective` does; SML
keeps its vectors in the unit ball, and has four values of γ instead. The learning rate starts at .01
and falls to 0 by half a cosine, so that its start matters less than the number of epochs, and the last
epoch is evaluated. So rows with this schedule never have the mark `^`: a star at the number of epochs
says that more may be better. A row with the mark ° is older: its learning rate was constant, its l2
decayed whole tables, and it had up to nine settings, on ml-1m up to four. Filters, neighbours, EASE and
Gauss-Newton have 16 settings (Turbo-CF 15), and other solvers five to 20. Where validation chose an end
of their ranges, most ranges were moved beyond it; a star marks the others. The numbers are those of the
last ranges; the leaderboard counts all trials.

Gauss-Newton solves RG2 with the penalty of its ALS, from tables drawn from N(0, .1²). GF-CF, Turbo-CF,
ChebyCF and BSPM are spectral filters of `solvers.filters`. The trials of one filter share a
decomposition. ChebyCF and BSPM have 256 singular vectors; on Gowalla and Yelp2018 they have their
papers' numbers, their polynomials are approximated with 512, and 5,000 users validate filters and
neighbours. For the closed form, λ is a share of √2 σ₁. The paper's own values come from its released
code, which is RG2 with α. The paper's other data sets, MovieLens-10M, Electronics and Steam, run if
they are asked for by `--data` and `jaxrec.data.datasets` finds them. The paper says that it drops
ratings below 3 from Electronics, but its counts are those of all ratings.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

import jaxrec as jr
from benchmarks.studies import _sgd, _solvers
from benchmarks.studies._command import main
from benchmarks.studies._plots import timed
from benchmarks.studies._sgd import SMALL
from benchmarks.studies._solvers import Grid, wide
from benchmarks.studies._study import Study
from jaxrec import study
from jaxrec.data import datasets, splits

# The lowest rating that counts; the second line has the paper's other data sets.
MINIMUM = {"ml-100k": 3.0, "ml-1m": 3.0, "lastfm-2k": None, "citeulike-a": None, "gowalla": None, "yelp2018": None}
OTHERS = {"ml-10m": 3.0, "amazon-electronics-5core": None, "steam": None}
MINIMUM |= OTHERS
SPLIT = ("gowalla", "yelp2018")  # the data sets with a split of their own
SOLVERS = ("citeulike-a", *SPLIT)  # on which only solvers run
METRICS = ("mrr@10", "ndcg@10", "recall@20", "ndcg@20")


def metric_of(data: str) -> str:
    """Returns the metric by which validation chooses."""
    return "recall@20" if data in SPLIT else "ndcg@10"


@lru_cache(maxsize=8)
def split(data: str, seed: int) -> splits.Split:
    """Returns the split of a seed."""
    if data in SPLIT:
        found = datasets.load(data)
        kept = np.random.default_rng(seed).random(found.train.n_pairs) >= 0.1
        return splits.Split(found.train.select(kept), found.train.select(~kept), found.test)
    found = datasets.load(data, minimum=MINIMUM[data])
    whole, _ = splits.compact(splits.k_core(found.interactions), found.id_map)
    whole = jr.Interactions.from_pairs(*whole.pairs())  # without weights: plays count once
    return splits.ratio(whole, order=partial(splits.random_order, key=jax.random.key(seed)))


def evaluate(model: Any, variables: jr.typing.Variables, part: splits.Split, on: str) -> jr.evaluate.Report:
    """Returns the metrics to record. Of a large data set, 5,000 users validate slow rankings."""
    if on == "valid" and getattr(model, "needs_histories", False) and wide(part.train):
        few = np.random.default_rng(0).choice(part.train.n_users, 5000, replace=False)
        part = part._replace(valid=part.valid.select(np.isin(part.valid.pairs()[0], few)))
    report = study.full_ranking(model, variables, part, on)
    return jr.evaluate.Report(
        report.users, {name: report.per_user[name] for name in METRICS}, {}, None, report.protocol
    )


# ---------------------------------------------------------------------- the study


def methods(data: str) -> list[study.Method]:
    """Returns the methods of a data set; EASE runs where it is small, and SGD where not only solvers run."""
    popular = lambda train, *_: (*jr.models.popularity(train), None)  # noqa: E731
    found = [study.Method("popularity", popular, refit=popular)]
    solvers = _solvers.methods(data, metric=metric_of(data), again=data in SPLIT)
    found += [each for each in solvers if each.name != "EASE" or data not in SPLIT]
    for name, kind in _sgd.KINDS.items() if data not in SOLVERS else ():
        fit_all = partial(_sgd.trained, kind, metric=metric_of(data), large=data not in SMALL)
        found.append(study.Method(name, grid=_sgd.grid_of(kind, data), fit_all=fit_all))
    return found


DRAWN = ("RG2", "RG2, Gauss-Newton", "RG2, alpha tuned", "iALS", "softmax", "sampled softmax", "BPR")


def panes(tables: Any, records: Any) -> list[list[dict[str, Any]]]:
    """Returns panes of NDCG@10 on validation against seconds of training, as figure 2 of the paper.

    Solvers have a point for each sweep. Losses trained by SGD have one for each number of epochs,
    because each has a schedule of its own.
    """
    found = []
    for data in (data for data in tables if data not in SOLVERS):
        lines = {name: line for name in DRAWN if (line := line_of(tables[data].get(name), records))}
        found.append({"title": data, "xlabel": "seconds of training", "ylabel": "NDCG@10 on validation"})
        found[-1] |= {"xscale": "log", "lines": lines}
    return [found]


def line_of(row: study.Row | None, records: Any) -> tuple | None:
    """Returns the line of a row: seconds, values and errors, or None if there are not two points."""
    if row is None:
        return None
    own = [r for r in records if (r["data"], r["method"]) == (row.data, row.method)]
    if "epochs" not in row.setting:
        return timed([r for r in own if r["on"] == "test" and r["setting"] == row.setting])
    trials = [r for r in own if r["on"] == "valid" and "epochs" in r["setting"]]
    if not all(r.get("cpu_seconds") for r in trials):
        return None
    best: dict[int, list[float]] = {}
    for run in trials:
        for epochs, seconds, value in run["curve"][-1:]:
            if value is not None and value > best.get(epochs, [0, 0])[1]:
                best[epochs] = [seconds * run["cpu_seconds"] / run["seconds"], value]
    return tuple(np.array([best[epochs] for epochs in sorted(best)]).T) if len(best) > 1 else None


# The grids of the older rows of losses trained by SGD, with constant rates and l2 on whole tables.
RATES, FEW = {"learning_rate": (3e-3, 1e-2, 3e-2), "l2": (0.0, 1e-5, 1e-4)}, {"learning_rate": (3e-3, 1e-2)}
OLDER: dict[str, dict[str, Grid]] = {
    data: dict.fromkeys(_sgd.KINDS, rates) | {"SML": rates | {"l2": (0.0,)}}
    for data, rates in {"ml-100k": RATES, "lastfm-2k": RATES, "ml-1m": FEW | {"l2": (1e-5, 1e-4)}}.items()
}
GRAPH = {"learning_rate": (1e-2, 3e-2, 1e-1), "l2": (1e-5,)}
OLDER["ml-1m"] |= {"LightGCN, softmax": {"learning_rate": (1e-2,), "l2": (1e-7,)}, "LightGCN, RG2": GRAPH}

# That of the paper; it multiplies ½ ‖e‖² of the batch's rows, divided by the batch size.
LIGHTGCN_DECAY = 1e-4
SIZES = {"ml-1m": (6038, 3307)}


def overdecayed(tables: Any, records: Any) -> str:
    """Returns a note if LightGCN's older row decayed whole tables far more than the paper.

    The paper decays the rows of a batch. A user's row is among them with probability B / M and an
    item's row with 2 B / N. In the mean over the B triples, the decay is therefore 1e-4 / M for
    users and 2e-4 / N for items on average.
    """
    notes = []
    for data, (n_users, n_items) in SIZES.items():
        for name, row in tables.get(data, {}).items():
            times = [row.setting.get("l2", 0) * n / LIGHTGCN_DECAY for n in (n_items / 2, n_users)]
            if name.startswith("LightGCN") and "learning_rate" in row.setting and max(times) >= 10:
                notes.append(
                    f"{name} on {data}: its weight decay, {row.setting['l2']:g} on whole tables, is {min(times):.0f} "
                    f"(items) to {max(times):.0f} (users) times that of the paper, so the row underestimates LightGCN."
                )
    return "\n\n".join(notes)


def headlines(tables: Any, records: Any) -> list[str]:
    """Returns the lines for the highlights."""
    rows = tables["ml-100k"]
    names = ("RG2, alpha tuned", "iALS", "softmax", "BPR", "popularity")
    said = ", ".join(f"{name} {rows[name].values['ndcg@10'].mean():.4f}{rows[name].marks}" for name in names)
    return [f"ml-100k, NDCG@10 over {len(rows['iALS'].seeds)} seeds: {said}."]


def quick() -> tuple[list[study.Method], dict[str, Any]]:
    """Returns the shortened run: ml-100k, six methods with one setting."""
    one = {each.name: each for each in methods("ml-100k")}
    few = {"RG2": (0.1,), "RG2, Gauss-Newton": (0.1,), "RG2, alpha tuned": (0.1, 0.1), "iALS": (0.1, 0.03)}
    few |= {"softmax": (20, 0.06), "LightGCN, softmax": (2, 1e-3)}
    grids = {name: {key: (value,) for key, value in zip(one[name].grid, values)} for name, values in few.items()}
    return [one[name]._replace(grid=grid) for name, grid in grids.items()], {"ml-100k": partial(split, "ml-100k")}


STUDY = Study(
    name="rg2",
    title="Solvers against SGD",
    about=__doc__,
    methods={data: partial(methods, data) for data in MINIMUM},
    split=lambda data: partial(split, data),
    evaluate=evaluate,
    metric=metric_of,
    shown=lambda data: ("recall@20", "ndcg@20") if data in SPLIT else ("mrr@10", "ndcg@10"),
    quick=quick,
    seeds=(0, 1, 2, 3, 4),
    older=lambda data: OLDER.get(data, {}),
    optional=tuple(OTHERS),
    claims=[
        ("RG2, closed form", "RG2"),
        ("RG2, Gauss-Newton", "RG2"),
        ("RG2, alpha tuned", "RG2, closed form"),
        ("RG2, alpha tuned", "iALS"),
        ("iALS", "softmax"),
        ("softmax", "BPR"),
    ],
    after=overdecayed,
    headlines=headlines,
    panes=panes,
)

if __name__ == "__main__":
    main(STUDY)
