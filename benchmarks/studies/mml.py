"""Multi-margin loss (MML) and other losses for matrix factorisation, on Gowalla and Yelp2018.

Every loss is tuned alike: it has two hyperparameters, and all their settings are compared on
validation, a random tenth of the train part. With shared negatives each has three values, which are
nine settings; with 10 or 100 negatives a group one of them has four, which are twelve. The ranges come
from published settings and from earlier trials, some of which were evaluated on test; within them, only
validation chooses. Losses with two hyperparameters of their own have the learning rate .03; MML has
equal shares of its margins. The chosen setting is then trained on the whole train part and evaluated on
test.

Data sets have the splits of LightGCN. Models have 64 dimensions. They score with cosines, except with
BPR and BCE, where they score with dot products. Metrics are those of the full ranking with train
pairs masked. SimpleX has its authors' settings for Gowalla (gate .8, user attention, a separate table
for histories, the positive left out), but with only the first 50 items of a history.

Examples are groups of up to 16 positives of a user. Negatives are drawn for each group ("a group") or
once for the whole batch of 2,048 groups ("shared"). The papers draw 100 or 800 for each positive
instead. An epoch of that takes many times as long as one of these, so this study does not do it;
"Published values" has MF under CCL with 800, and its authors' settings. Examples of SimpleX are
single positives, so that a batch has fewer of them, and an epoch more steps.

The learning rate falls to 0 over a fixed number of epochs by half a cosine, and the last epoch is
evaluated. The order of losses may depend on the number of epochs. The rows "five times as long"
show the same settings with five times the epochs. CPU minutes depend on the load of the machine;
they are for orders of magnitude. Rows without them ran on an accelerator, at least in part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import optax

import jaxrec as jr
from benchmarks.studies._command import main
from benchmarks.studies._results import records_of
from benchmarks.studies._study import Study, fitted
from jaxrec import study
from jaxrec.data import datasets, splits

DIM, DROPOUT, SCALE, GROUP, BATCH, METRIC, TRIALS = 64, 0.1, 0.1, 16, 2048, "recall@20", 12
DATA = ("gowalla", "yelp2018")
SELECT = {data: f"{data}, select" for data in DATA}  # a tenth of the train part is validation
LONG = "five times as long"


class Loss(NamedTuple):
    """A loss and the settings to choose from.

    Attributes:
        loss: the loss.
        grid: for each hyperparameter, the values to try: those of the loss, and the learning rate
            and weight decay of Adam.
        score: the score function of the model.
    """

    loss: jr.typing.Loss
    grid: Mapping[str, Any]
    score: Callable = jr.models.cosine


class Kind(NamedTuple):
    """A way to draw negatives.

    Attributes:
        n: number of negatives for each group, or for the whole batch if `shared`.
        shared: whether negatives are drawn once for the batch.
        epochs: number of epochs on Gowalla.
        long: whether to train longer, too.
        simplex: whether to train SimpleX instead of MF.
    """

    n: int
    shared: bool
    epochs: int
    long: bool = False
    simplex: bool = False


def weighted_mse(pos: Any, neg: Any, *, weight: float, **options: Any) -> Any:
    """½ (pos − 1)² + weight · ½ mean neg²."""
    return jr.losses.mse(pos, weight**0.5 * neg, **options)


RATES = {"learning_rate": (0.01, 0.03, 0.1)}
RATE = {"learning_rate": (0.03,)}
WEIGHTS = (70.0, 150.0, 300.0)
DOT = {"learning_rate": (0.003, 0.01, 0.03), "l2": (1e-8, 1e-7, 1e-6)}
MARGINS = ((0.5, 0.6, 0.7), (0.6, 0.7, 0.8), (0.7, 0.8, 0.9))
SHARES = ((1 / 3, 1 / 3, 1 / 3),)
LOSSES = {
    "BPR": Loss(jr.losses.bpr, DOT, jr.models.dot),
    "BCE": Loss(jr.losses.bce, DOT, jr.models.dot),
    "MSE": Loss(weighted_mse, {"weight": (16.0, 64.0, 256.0)} | RATES),
    "softmax": Loss(jr.losses.mine, {"temperature": (0.07, 0.1, 0.14)} | RATES),
    "BSL": Loss(jr.losses.bsl, {"temperature": (0.07, 0.1, 0.14), "exponent": (1.0, 1.15, 1.3)} | RATE),
    "CCL": Loss(jr.losses.ccl, {"margin": (0.6, 0.7, 0.8), "weight": WEIGHTS} | RATE),
    "MML": Loss(jr.losses.mml, {"margins": MARGINS, "weights": SHARES, "negative_weight": WEIGHTS} | RATE),
}
# With few negatives, losses prefer smaller margins, weights and temperatures, and more weight decay.
FEW_DOT = {"learning_rate": (0.01, 0.03, 0.1), "l2": (1e-8, 1e-7, 1e-6, 1e-5)}
BOTH = {
    "BPR": FEW_DOT,
    "BCE": FEW_DOT,
    "MSE": {"weight": (4.0, 16.0, 64.0, 256.0)},
    "softmax": {"temperature": (0.05, 0.07, 0.1, 0.14)},
    "CCL": {"margin": (0.4, 0.5, 0.6, 0.7)},
}
FEW = {
    "10 a group": BOTH
    | {
        "BSL": {"temperature": (0.035, 0.05, 0.07, 0.1), "exponent": (1.15, 1.3, 1.5)},
        "CCL": BOTH["CCL"] | {"weight": (17.5, 35.0, 70.0)},
        "MML": {"margins": ((0.3, 0.4, 0.5), (0.4, 0.5, 0.6), *MARGINS[:2]), "negative_weight": (17.5, 35.0, 70.0)},
    },
    "100 a group": BOTH
    | {
        "BSL": {"temperature": (0.05, 0.07, 0.1, 0.14)},
        "CCL": BOTH["CCL"] | {"weight": (35.0, 70.0, 150.0)},
        "MML": {"margins": ((0.4, 0.5, 0.6), *MARGINS), "negative_weight": (70.0, 150.0, 300.0)},
    },
}
KINDS = {
    "2048 shared": Kind(2048, True, 50, long=True),
    "10 a group": Kind(10, False, 50),
    "100 a group": Kind(100, False, 50),
    "2048 shared, SimpleX": Kind(2048, True, 10, simplex=True),
}
CASES = {
    f"{loss}, {kind}": (LOSSES[loss]._replace(grid=LOSSES[loss].grid | FEW.get(kind, {}).get(loss, {})), KINDS[kind])
    for kind in KINDS
    for loss in (("CCL", "MML") if KINDS[kind].simplex else LOSSES)
}


@lru_cache(maxsize=3)
def split(data: str) -> splits.Split:
    """Returns train and test; for selection, a random tenth of the train pairs is validation."""
    found = datasets.load(data.partition(",")[0])
    if data in DATA:
        return splits.Split(found.train, None, found.test)
    kept = np.random.default_rng(0).random(found.train.n_pairs) >= 0.1
    return splits.Split(found.train.select(kept), found.train.select(~kept), found.test)


def trained(case: tuple[Loss, Kind], train: Any, valid: Any, key: Any, **setting: Any) -> Any:
    """Trains for a fixed number of epochs. If there is validation, the log has its metric."""
    (loss, kind), sizes = case, (train.n_users, train.n_items)
    epochs, rate, l2 = (setting.pop(name, 0.0) for name in ("epochs", "learning_rate", "l2"))
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in setting.items()}
    model = jr.models.MF(*sizes, dim=DIM, score=loss.score, scale=SCALE, dropout=DROPOUT)
    examples, known = partial(jr.train.groups, n=GROUP), {}
    if kind.simplex:
        pool = {"pool": jr.models.UserAttention(), "shared_history": False, "length": 50}
        model = jr.models.SimpleX(*sizes, dim=DIM, gate=0.8, scale=SCALE, dropout=DROPOUT, **pool)
        place = np.arange(train.n_pairs) - np.repeat(train.indptr[:-1], train.user_degrees)
        seen = train.select(place < 50)  # batches carry no more than it looks at
        examples = partial(jr.train.singles, histories=seen)  # groups cannot leave out one positive
        known = {"histories": train}
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=kind.n)
    sample = partial(jr.sampling.shared, sample=sample) if kind.shared else sample
    loss_fn = partial(loss.loss, **options) if options else loss.loss
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss_fn, sample=sample, leave_out=kind.simplex)
    steps = -(-examples(train).n // BATCH) * epochs
    tx = optax.chain(optax.add_decayed_weights(l2), optax.adam(optax.cosine_decay_schedule(rate, steps)))

    def judge(variables: Mapping) -> dict[str, float]:
        return jr.evaluate.full_ranking(model, variables, train, valid, ks=(20,), **known).means

    run = {"epochs": epochs, "batch_size": BATCH, "examples": examples}
    run |= {} if valid is None else {"validate": judge, "every": max(epochs // 5, 1)}
    return fitted(key, model, objective, tx, train, **run)


def evaluate(model: Any, variables: jr.typing.Variables, part: splits.Split, on: str) -> jr.evaluate.Report:
    """Returns Recall@20 and NDCG@20."""
    report = study.full_ranking(model, variables, part, on, ks=(20,))
    per_user = {name: report.per_user[name] for name in ("recall@20", "ndcg@20")}
    return jr.evaluate.Report(report.users, per_user, {}, None, report.protocol)


def tuned(name: str, data: str, **more: Any) -> study.Method:
    """Returns a case with the settings to choose from."""
    loss, kind = CASES[name]
    # Yelp2018 has 1.5 times the pairs, so that both get about the same number of steps.
    epochs = kind.epochs if data == "gowalla" else round(kind.epochs / 1.5)
    grid = loss.grid | {"epochs": (epochs,)} | more
    return study.Method(name, partial(trained, (loss, kind)), grid)


def methods(data: str) -> list[study.Method]:
    """Returns all cases to choose settings for; on test, those whose settings are chosen."""
    if data not in DATA:
        return [tuned(name, data.partition(",")[0]) for name in CASES]
    found = []
    for name, (_, kind) in CASES.items():
        each = tuned(name, data)
        best = study.chosen(records_of("mml"), SELECT[data], name, study.settings(each.grid, TRIALS), METRIC)
        if best is not None:
            grid = {option: (value,) for option, value in best.items()}
            found.append(each._replace(grid=grid))
            if kind.long:
                found.append(each._replace(name=f"{name}, {LONG}", grid=grid | {"epochs": (5 * best["epochs"],)}))
    return found


# ---------------------------------------------------------------------- tables


def columns(data: str, rows: Mapping[str, study.Row]) -> dict[str, list[str]]:
    """Returns the columns for the CPU minutes."""
    run = lambda row: "epochs" in row.setting and None not in row.cpu_seconds  # noqa: E731
    minutes = [f"{np.median(row.cpu_seconds) / 60:.1f}" if run(row) else "" for row in rows.values()]
    return {"CPU minutes per run": minutes}


def margins(tables: Any, records: Any) -> str:
    """Says what several margins are worth against one, for each data set and kind of negatives."""
    said = []
    for data, rows in tables.items():
        for kind in [*KINDS, *(f"{name}, {LONG}" for name, each in KINDS.items() if each.long)]:
            pair = [rows.get(f"{loss}, {kind}") for loss in ("MML", "CCL")]
            seeds = sorted(set.intersection(*(set(row.seeds) if row else set() for row in pair)))
            if len(seeds) > 1:
                values = []
                for metric in ("recall@20", "ndcg@20"):
                    one, other = (row.values[metric][[row.seeds.index(s) for s in seeds]] for row in pair)
                    error = (one / other).std(ddof=1) / np.sqrt(len(seeds))
                    values.append(f"{(one / other).mean():.3f} ± {error:.3f}")
                said.append(f"{data}, {kind}: {values[0]} in Recall@20, {values[1]} in NDCG@20")
    if not said:
        return ""
    return f"Ratio of MML to CCL, both tuned alike, mean of the ratios of the seeds: {'; '.join(said)}."


def panes(tables: Any, records: Any) -> list[list[dict[str, Any]]]:
    """Returns a pane for each data set with longer runs: recall on test against epochs.

    A line joins the tuned number of epochs and five times as many.
    """
    found = []
    for data in (data for data in tables if data in DATA):
        lines = {}
        for loss in LOSSES:
            name = f"{loss}, 2048 shared"
            pair = [row for row in (tables[data].get(name), tables[data].get(f"{name}, {LONG}")) if row]
            if len(pair) == 2:
                epochs = [row.setting["epochs"] for row in pair]
                recalls = [row.values[METRIC] for row in pair]
                errors = [x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else 0.0 for x in recalls]
                lines[loss] = (epochs, [x.mean() for x in recalls], errors)
        if not lines:
            continue
        found.append({"title": data, "xlabel": "epochs", "ylabel": "Recall@20 on test", "lines": lines})
        found[-1]["xscale"] = "log"
    return [found] if found else []


def quick() -> tuple[list[study.Method], dict[str, Any]]:
    """Returns the methods and splits of the shortened run: 2,000 users, 2 epochs, one setting."""
    found = split("gowalla")
    train, test = (part.select(part.pairs()[0] < 2000) for part in (found.train, found.test))
    few = []
    for name in ("CCL, 10 a group", "MML, 2048 shared", "CCL, 2048 shared, SimpleX"):
        first = study.settings(CASES[name][0].grid, TRIALS)[0]
        few.append(
            tuned(name, "gowalla")._replace(grid={key: (value,) for key, value in first.items()} | {"epochs": (2,)})
        )
    return few, {"gowalla": splits.Split(train, None, test)}


STUDY = Study(
    name="mml",
    title="Losses on Gowalla and Yelp2018",
    about=__doc__,
    methods={data: partial(methods, data) for data in (*SELECT.values(), *DATA)},
    split=split,
    evaluate=evaluate,
    metric=lambda data: METRIC,
    shown=lambda data: ("recall@20", "ndcg@20"),
    quick=quick,
    trials=TRIALS,
    tuned=tuple(SELECT.values()),
    tuned_by=lambda data, method: (SELECT.get(data, data), method.removesuffix(f", {LONG}")),
    claims=[
        *((f"MML, {kind}", f"CCL, {kind}") for kind in KINDS),
        ("BSL, 2048 shared", "softmax, 2048 shared"),
        *(
            (f"{one}, 2048 shared, {LONG}", f"{other}, 2048 shared, {LONG}")
            for one, other in (("MML", "CCL"), ("BSL", "softmax"), ("BSL", "MML"))
        ),
    ],
    columns=columns,
    after=margins,
    panes=panes,
)

if __name__ == "__main__":
    main(STUDY)
