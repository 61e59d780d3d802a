"""Methods with the settings of their papers, next to the values that the papers publish.

Nothing is tuned here: each method has one setting, that of its paper's released code for the data
set, and is evaluated once on the test pairs. So a row shows whether the implementation reproduces
the paper, and not whether the method is better than others: most papers chose their settings on these
test pairs. The leaderboard has the rows whose settings validation chose. The data sets are those of
LightGCN. The metrics are those of the full ranking with train pairs masked.

Only methods in closed form run here. On Gowalla, Turbo-CF also raises each entry of the item-item
matrix to the power .7, which `solvers.filters.turbo_cf` leaves out, so that its row should be lower.

Sources: GF-CF, BSPM (its variant EM) and Turbo-CF from their papers, ChebyCF from the README of its
code. Published values of methods that are trained, Recall@20 / NDCG@20 on Gowalla and Yelp2018: MF-BPR
.1627/.1378 and .0576/.0468, LightGCN .1830/.1554 and .0649/.0530, SimpleX .1872/.1557 and .0701/.0575,
UltraGCN .1862/.1580 and .0683/.0561, MF-CCL .1837/.1493 and .0698/.0572, MF-BSL .1882/.1584 and
.0725/.0599; on Yelp2018 SimGCL .0721/.0601 and XSimGCL .0723/.0604. Their papers' settings take hours
to days on two CPU cores, and were not run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jaxrec as jr
from benchmarks.studies._study import Study, main
from jaxrec import study
from jaxrec.data import datasets, splits
from jaxrec.solvers.filters import bspm, cheby_cf, gf_cf, turbo_cf

DATA = ("gowalla", "yelp2018")
SHOWN = ("recall@20", "ndcg@20")
YELP = {"dim": 384, "weight": 0.3, "time": 1.2, "order": 1, "average": True}
# For each data set and method: the function of its settings, those that differ from its defaults, and
# the published Recall@20 and NDCG@20.
METHODS: dict[str, dict[str, tuple[Callable, Mapping[str, Any], tuple[float, ...]]]] = {
    "gowalla": {
        "GF-CF": (gf_cf, {}, (0.1849, 0.1518)),
        "Turbo-CF": (turbo_cf, {"order": 1}, (0.1835,)),
        "ChebyCF": (cheby_cf, {}, (0.1941, 0.1616)),
        "BSPM": (bspm, {}, (0.1920, 0.1597)),
    },
    "yelp2018": {
        "GF-CF": (gf_cf, {}, (0.0697, 0.0571)),
        "Turbo-CF": (turbo_cf, {"order": 2}, (0.0693, 0.0574)),
        "BSPM": (bspm, YELP, (0.0720, 0.0593)),
    },
}


def split(data: str) -> splits.Split:
    """Returns train and test."""
    found = datasets.load(data)
    return splits.Split(found.train, None, found.test)


def fit(options: Callable, train: Any, valid: Any, key: Any, **setting: Any) -> Any:
    """Builds a spectral filter."""
    return jr.solvers.filters.fit(train, **options(**setting), key=key)


def methods(data: str) -> list[study.Method]:
    """Returns the methods of a data set, each with one setting."""
    return [
        study.Method(name, partial(fit, options), {key: (value,) for key, value in setting.items()})
        for name, (options, setting, _) in METHODS[data].items()
    ]


def evaluate(model: Any, variables: jr.typing.Variables, part: splits.Split, on: str) -> jr.evaluate.Report:
    """Returns Recall@20 and NDCG@20."""
    return study.full_ranking(model, variables, part, on, ks=(20,))


def columns(data: str, rows: Mapping[str, study.Row]) -> dict[str, list[str]]:
    """Returns the published values, and ours divided by them."""
    found: dict[str, list[str]] = {"published": [], "ours / published": []}
    for name, row in rows.items():
        _, _, published = METHODS[data].get(name, (None, {}, ()))
        found["published"].append(" / ".join(f"{value:.4f}" for value in published))
        pairs = zip(SHOWN, published)
        found["ours / published"].append(" / ".join(f"{row.values[m].mean() / value:.3f}" for m, value in pairs))
    return found


def quick() -> tuple[list[study.Method], dict[str, Any]]:
    """Returns the shortened run: GF-CF and Turbo-CF on 2,000 users of Gowalla."""
    found = split("gowalla")
    train, test = (part.select(part.pairs()[0] < 2000) for part in (found.train, found.test))
    few = [each for each in methods("gowalla") if each.name in ("GF-CF", "Turbo-CF")]
    return few, {"gowalla": splits.Split(train, None, test)}


STUDY = Study(
    name="published",
    title="Published values",
    about=__doc__,
    methods={data: partial(methods, data) for data in DATA},
    split=split,
    evaluate=evaluate,
    metric=lambda data: "recall@20",
    shown=lambda data: SHOWN,
    quick=quick,
    seeds=(0,),
    columns=columns,
)

if __name__ == "__main__":
    main(STUDY)
