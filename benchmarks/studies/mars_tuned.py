"""MAR, MARS and metric learning with the same number of settings for every method.

The data sets, the protocols and most methods are those of `benchmarks.studies.mars`, without the
splits by id. Every method has eight settings to choose from: two powers of popularity for the
negatives, and four values of what matters most, which is a learning rate for most methods. NMF has
eight numbers of dimensions, and "composed" four temperatures with two learning rates. Training may
take twice as many epochs as there, and ends after six validations without a gain. Facets have 64
dimensions.

"MARS, paper" and "MAR, paper" are the presets `PAPER` and `PAPER_MAR`: facets are projections of
one vector, all parameters move by SGD, and the step of MARS is calibrated. Of their learning rates,
.01 and .1 are the paper's; its smaller ones need too many epochs. "MARS, free facets" has the
calibrated step on facets that are parameters, and "MARS, released" the gradient of the released
code. If the learning rate of facets changes, that of θ changes by the same factor.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.studies._command import main
from benchmarks.studies._mars import BY_ID, DATA, FULL, METRIC, SAMPLED, evaluate, method, protocols_of, split, times
from benchmarks.studies._study import Study
from jaxrec import study

POWER, FACET = {"power": (0.0, 0.75)}, {"dim": (64,)}
SMALL, LARGE = (3e-4, 1e-3, 3e-3, 1e-2), (0.03, 0.12, 0.5, 2.0)  # learning rates of Adam and Adagrad
OF_PAPER, OF_FACETS = (0.01, 0.03, 0.1, 0.3), (0.01, 0.04, 0.16, 0.64)  # of losses that are sums
WARM = {"temperature": (0.05, 0.1, 0.2, 0.4), "learning_rate": (0.01, 0.03)}
TRIALS = 8
# The name of the recipe in `_mars.RECIPES`, and the grid.
METHODS = {
    "BPR": ("BPR", POWER | {"l2": (1e-6, 1e-5, 1e-4, 1e-3)}),
    "NMF": ("NMF", {"dim": (2, 4, 8, 16, 32, 64, 96, 128)}),
    "NeuMF": ("NeuMF", POWER | {"learning_rate": SMALL}),
    "CML": ("CML", POWER | {"learning_rate": LARGE}),
    "MetricF": ("MetricF", POWER | {"margin": (0.3, 0.6, 1.5, 3.0)}),
    "TransCF": ("TransCF", POWER | {"learning_rate": (1e-3, 3e-3, 1e-2, 3e-2)}),
    "LRML": ("LRML", POWER | {"learning_rate": SMALL}),
    "SML": ("SML", POWER | {"learning_rate": LARGE}),
    "MAR, free facets": ("MAR", POWER | FACET | {"learning_rate": OF_FACETS}),
    "MAR, paper": ("MAR, paper", POWER | FACET | {"learning_rate": OF_PAPER}),
    "MARS, released": ("MARS, released", POWER | FACET | {"learning_rate": (0.0025, 0.01, 0.04, 0.16)}),
    "MARS, default": ("MARS, default", POWER | FACET | {"learning_rate": OF_FACETS}),
    "MARS, free facets": ("MARS, paper's rule, free facets", POWER | FACET | {"learning_rate": OF_FACETS}),
    "MARS, paper": ("MARS, paper", POWER | FACET | {"learning_rate": OF_PAPER}),
    "composed, 4 facets": ("composed, 4 facets", WARM),
    "composed, 1 facet": ("composed, 1 facet", WARM),
}


def methods(label: str) -> list[study.Method]:
    """Returns the methods of a data set and protocol."""
    return [method(label, name, grid, of=of, longer=2) for name, (of, grid) in METHODS.items()]


def after(tables: Any, records: Any) -> str:
    """Returns the table of times."""
    return (
        "### Time of equal budgets\n\nSeconds of training, until validation stops a run or its epochs end, median "
        "over seeds. Compilation is included, validation is not.\n\n" + times(records, list(METHODS))
    )


def quick() -> tuple[list[study.Method], dict[str, Any]]:
    """Returns the shortened run: BPR and the paper's MAR and MARS, two validations each."""
    label = "delicious-random, sampled"
    few = {name: METHODS[name] for name in ("BPR", "MAR, paper", "MARS, paper")}
    last = {name: {key: values[-1:] for key, values in grid.items()} for name, (_, grid) in few.items()}
    return [method(label, name, last[name], of=of, looks=2) for name, (of, _) in few.items()], {label: split(label)}


LABELS = [[f"{data}, {protocol}" for protocol in protocols_of(data)] for data in DATA if data not in BY_ID]
STUDY = Study(
    name="mars_tuned",
    title="MAR, MARS and metric learning with equal budgets",
    about=__doc__,
    methods={label: partial(methods, label) for group in LABELS for label in group},
    split=split,
    evaluate=evaluate,
    metric=lambda label: METRIC[label.partition(", ")[2]],
    shown=lambda label: SAMPLED if label.endswith("sampled") else FULL,
    quick=quick,
    groups=LABELS,
    claims=[
        *((ours, other) for ours in ("MARS, paper", "MARS, default") for other in ("BPR", "CML", "MetricF")),
        ("MARS, paper", "MAR, paper"),
        ("MARS, paper", "MARS, free facets"),
        ("MARS, default", "MAR, free facets"),
        *(("composed, 4 facets", other) for other in ("BPR", "MARS, default", "composed, 1 facet")),
    ],
    after=after,
)

if __name__ == "__main__":
    main(STUDY)
