"""Multi-margin loss (MML) and other losses for matrix factorisation, on Gowalla and Yelp2018.

Both data sets have the splits of LightGCN. Models have 64 dimensions. They score with cosines,
except with BPR and BCE, where they score with dot products. Metrics are those of the full ranking
with train pairs masked. Negatives are drawn for each positive, as in the papers ("a positive"); for
each group of up to 16 positives of a user ("a group"); or once for the whole batch ("shared"). The
examples of a batch with shared negatives are groups, unless the row says "singly". CCL and MML have
the settings of their papers. These were not tuned for the cases here, so the ratio of the two does
not compare the losses. The row "CCL, 10 a group, margin 0.7, weight 70" shows how much another
setting changes CCL with few negatives.

The papers choose the epoch on the test set. Here, a tenth of Gowalla's train part chooses the
learning rate of some cases. Other cases use the rate of CCL with the same kind of negatives, or
else a fixed rate. The rate decays exponentially over a fixed number of epochs, and the last epoch
is evaluated. "best-on-test" is the papers' choice: the best epoch on test. The long runs are an
exception. CCL was trained longer after the shorter runs, all of which are shown, had missed their
targets on test. The rate of the long runs is half that of the others. The budget of the papers is
100 epochs, each of 3,165 steps on Gowalla and of 2,417 steps on Yelp2018.

Published Recall@20 / NDCG@20, each chosen on the test set: on Gowalla MF-CCL .1837/.1493 (800
negatives), MF-BSL .1882/.1584, MF-BPR .1627/.1378, LightGCN .1830/.1554; on Yelp2018 MF-CCL
.0698/.0572, MF-BSL .0725/.0599, MF-BPR .0576/.0468, LightGCN .0649/.0530.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import optax

import jaxrec as jr
from benchmarks.studies._study import Study, afresh, fitted, main, records_of
from jaxrec import study
from jaxrec.data import datasets, splits

DIM, DROPOUT, SCALE, FINAL, EVERY, METRIC = 64, 0.1, 0.1, 0.01, 10, "recall@20"
SELECT = "gowalla, select"  # a tenth of Gowalla's train part, which chooses learning rates
L2 = {"gowalla": 1e-8, "yelp2018": 1e-9}
# Yelp2018 has 1.5 times the pairs, so that both get about the same number of steps.
EPOCHS = {"gowalla": 1.0, "yelp2018": 2 / 3}
RATES = (0.5, 1.0, 2.0)  # multiples of a case's learning rate to compare
CCL = {data: {"margin": 0.9, "weight": 150.0} for data in L2}  # SimpleX's setting for both
OTHER_CCL = {data: {"margin": 0.7, "weight": 70.0} for data in L2}
# The hyperparameters of MML in the records; the positive weight is 1.
NAMES = ("margins", "weights", "negative_weight")
MML = {
    "gowalla": {name: jr.papers.mml.GOWALLA[name] for name in NAMES},
    "yelp2018": {name: jr.papers.mml.YELP2018[name] for name in NAMES},
}
BSL = {"gowalla": {"temperature": 0.08, "exponent": 1.22}, "yelp2018": {"temperature": 0.11, "exponent": 1.1}}


class Case(NamedTuple):
    """A loss with the way it is trained.

    Attributes:
        loss: the loss.
        options: for each data set, the hyperparameters of the loss.
        score: the score function of the model.
        n: number of negatives for each example, or for the whole batch if `shared`.
        shared: whether negatives are drawn once for the batch.
        examples: users with up to 16 positives, or single positives, as in the papers.
        batch: number of examples per step.
        epochs: number of epochs on Gowalla.
        rate: initial learning rate of Adam; the last one is a hundredth of it.
        simplex: whether to train SimpleX instead of MF, with its authors' settings for Gowalla
            (gate .8, user attention, a separate table for histories, the positive left out), but
            with only the first 50 items of a history.
    """

    loss: jr.typing.Loss
    options: Mapping[str, Mapping[str, Any]] = {"gowalla": {}, "yelp2018": {}}
    score: Callable = jr.models.cosine
    n: int = 2048
    shared: bool = True
    examples: Callable[..., jr.train.Examples] = partial(jr.train.groups, n=16)
    batch: int = 2048
    epochs: int = 60
    rate: float = 0.04
    simplex: bool = False


ccl, mml = partial(Case, jr.losses.ccl), partial(Case, jr.losses.mml, MML)
single = {"shared": False, "examples": jr.train.singles, "batch": 4096, "epochs": 8, "rate": 0.02, "n": 10}
singly = {"examples": jr.train.singles, "batch": 4096, "epochs": 6, "rate": 0.02}
CASES = {
    "BPR, 10 a positive": Case(jr.losses.bpr, score=jr.models.dot, **single | {"rate": 0.005}),
    "CCL, 10 a positive": ccl(CCL, **single),
    "MML, 10 a positive": mml(**single),
    "CCL, 10 a group": ccl(CCL, n=10, shared=False),
    "CCL, 10 a group, margin 0.7, weight 70": ccl(OTHER_CCL, n=10, shared=False, rate=0.08),
    "MML, 10 a group": mml(n=10, shared=False),
    "CCL, 100 a group": ccl(CCL, n=100, shared=False),
    "MML, 100 a group": mml(n=100, shared=False),
    "BCE, 2048 shared": Case(jr.losses.bce, score=jr.models.dot, epochs=20, rate=0.01),
    "MSE, 2048 shared": Case(jr.losses.mse, epochs=20),
    "softmax, 2048 shared": Case(jr.losses.mine, {data: {"temperature": 0.1} for data in L2}, epochs=20),
    "BSL, 2048 shared": Case(jr.losses.bsl, BSL, epochs=20),
    "CCL, 2048 shared": ccl(CCL),
    "MML, 2048 shared": mml(),
    "CCL, 2048 shared, singly": ccl(CCL, **singly),
    "MML, 2048 shared, singly": mml(**singly),
    "SimpleX-CCL, 2048 shared, singly": ccl(CCL, **singly, simplex=True),
    "SimpleX-MML, 2048 shared, singly": mml(**singly, simplex=True),
    "CCL, 2048 shared, five times as long": ccl(CCL, epochs=300, rate=0.02),
    "CCL, 2048 shared, ten times as long": ccl(CCL, epochs=600, rate=0.02),
    "CCL, 2048 shared, long": ccl(CCL, epochs=450, rate=0.02),
    "CCL, 2048 shared, longest": ccl(CCL, epochs=900, rate=0.02),
}
ALONE = [f"{loss}, 2048 shared" for loss in ("BCE", "MSE", "softmax", "BSL", "CCL")]
SELECTED = ["BPR, 10 a positive", "CCL, 10 a positive", "CCL, 10 a group", "MML, 10 a group", *ALONE]
SELECTED += ["CCL, 2048 shared, singly"]


class Trained(NamedTuple):
    """A model, with further values of its training."""

    model: Any
    more: Mapping[str, float]


@lru_cache(maxsize=3)
def split(data: str) -> splits.Split:
    """Returns train and test; for selection, a random tenth of the train pairs is validation."""
    found = datasets.load(data.removesuffix(", select"))
    if data != SELECT:
        return splits.Split(found.train, None, found.test)
    kept = np.random.default_rng(0).random(found.train.n_pairs) >= 0.1
    return splits.Split(found.train.select(kept), found.train.select(~kept), found.test)


def trained(case: Case, data: str, test: Any, train: Any, valid: Any, key: Any, **options: Any) -> Any:
    """Trains for a fixed number of epochs.

    The log has the metrics on validation, or on test if there is no validation; they do not choose
    the epoch.
    """
    learning_rate, epochs = options.pop("learning_rate"), options.pop("epochs")
    sizes, examples, known = (train.n_users, train.n_items), case.examples, {}
    model = jr.models.MF(*sizes, dim=DIM, score=case.score, scale=SCALE, dropout=DROPOUT)
    if case.simplex:
        pool = {"pool": jr.models.UserAttention(), "shared_history": False, "length": 50}
        model = jr.models.SimpleX(*sizes, dim=DIM, gate=0.8, scale=SCALE, dropout=DROPOUT, **pool)
        place = np.arange(train.n_pairs) - np.repeat(train.indptr[:-1], train.user_degrees)
        examples = partial(case.examples, histories=train.select(place < 50))  # batches carry no more than it looks at
        known = {"histories": train}
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=case.n)
    sample = partial(jr.sampling.shared, sample=sample) if case.shared else sample
    loss = partial(case.loss, **options) if options else case.loss
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample, leave_out=case.simplex)
    steps = -(-case.examples(train).n // case.batch) * epochs
    schedule = optax.exponential_decay(learning_rate, steps, FINAL)
    tx = optax.chain(optax.add_decayed_weights(L2[data]), optax.adam(schedule))
    looked = test() if valid is None else valid

    def judge(variables: Mapping) -> dict[str, float]:
        report = jr.evaluate.full_ranking(model, variables, train, looked, ks=(20,), **known)
        return {name: report.means[name] for name in ("recall@20", "ndcg@20")}

    run = {"epochs": epochs, "batch_size": case.batch, "examples": examples, "every": EVERY}
    _, variables, log = fitted(key, model, objective, tx, train, validate=judge, **run)
    best = max((record for record in log.records if METRIC in record), key=lambda record: record[METRIC])
    more = {f"best-on-test {name}": best[name] for name in ("recall@20", "ndcg@20")} if valid is None else {}
    return Trained(model, more | {"steps": steps}), variables, log


def evaluate(trained: Any, variables: jr.typing.Variables, part: splits.Split, on: str) -> jr.evaluate.Report:
    """Returns Recall@20 and NDCG@20, and on test the further values of the training."""
    model, more = trained if isinstance(trained, Trained) else (trained, {})
    report = study.full_ranking(model, variables, part._replace(valid=None) if on == "test" else part, on, ks=(20,))
    per_user = {name: report.per_user[name] for name in ("recall@20", "ndcg@20")}
    return jr.evaluate.Report(report.users, per_user, more if on == "test" else {}, None, report.protocol)


def method(name: str, data: str, rates: list[float], **more: Any) -> study.Method:
    """Returns a case with some learning rates."""
    case, part = CASES[name], data.removesuffix(", select")
    grid = {"learning_rate": rates, "epochs": [round(case.epochs * EPOCHS[part])]}
    grid |= {option: [value] for option, value in case.options[part].items()}
    test = more.pop("test", lambda: split(data).test)
    return study.Method(name, partial(afresh, partial(trained, case, part, test)), grid | more)


def methods(data: str) -> list[study.Method]:
    """Returns the cases, each with the learning rate that was chosen for it."""
    if data == SELECT:
        return [method(name, data, [CASES[name].rate * factor for factor in RATES]) for name in SELECTED]
    return [method(name, data, [chosen_rate(name)]) for name in CASES]


def chosen_rate(name: str) -> float:
    """Returns the learning rate with the best recall in the selection.

    A case that took no part uses the rate of CCL with the same kind of negatives, so MML has a rate
    that was tuned for its rival. Without a record, the default of the case is used.
    """
    for compared in (name, f"CCL, {name.partition(', ')[2]}"):
        if compared in SELECTED and CASES[name].score is CASES[compared].score:
            (tried,) = (study.settings(each.grid) for each in methods(SELECT) if each.name == compared)
            if found := study.chosen(records_of("mml"), SELECT, compared, tried, METRIC):
                return found["learning_rate"]
    return CASES[name].rate


# ---------------------------------------------------------------------- tables


def chosen(row: study.Row, grid: Any) -> str:
    """Returns the learning rate, with a star if it is the smallest or largest that was compared."""
    rate = row.setting.get("learning_rate")
    compared = [CASES[row.method].rate * factor for factor in RATES] if row.method in SELECTED else []
    star = "*" * (row.data == "gowalla" and rate in (min(compared, default=0), max(compared, default=0)))
    return "" if rate is None else f"learning rate {rate:g}{star}"


def columns(data: str, rows: Mapping[str, study.Row]) -> dict[str, list[str]]:
    """Returns the columns for best-on-test, budget and CPU minutes."""
    best = ["best-on-test recall@20", "best-on-test ndcg@20"]
    cells: dict[str, list[str]] = {"best-on-test": [], "budget": [], "CPU minutes per run": []}
    for row in rows.values():
        run = "epochs" in row.setting
        cells["best-on-test"].append(" / ".join(f"{row.values[m].mean():.4f}" for m in best) if run else "")
        budget = f"{row.setting['epochs']} epochs, {row.values['steps'][0]:,.0f} steps" if run else ""
        cells["budget"].append(budget)
        cells["CPU minutes per run"].append(f"{np.median(row.cpu_seconds) / 60:.1f}" if run else "")
    return cells


def ratios(tables: Any, records: Any) -> str:
    """Returns the ratio of MML to CCL for each data set and kind of negatives, by seed."""
    said = []
    for data, rows in tables.items():
        for kind in ("10 a positive", "10 a group", "100 a group", "2048 shared", "2048 shared, singly"):
            pair = [rows.get(f"{loss}, {kind}") for loss in ("MML", "CCL")]
            seeds = sorted(set.intersection(*(set(row.seeds) if row else set() for row in pair)))
            if len(seeds) > 1:
                values = []
                for metric in ("recall@20", "ndcg@20"):
                    one, other = (row.values[metric][[row.seeds.index(s) for s in seeds]] for row in pair)
                    error = (one / other).std(ddof=1) / np.sqrt(len(seeds))
                    values.append(f"{(one / other).mean():.3f} ± {error:.3f}")
                said.append(f"{data}, {kind}: {values[0]} in Recall@20, {values[1]} in NDCG@20")
    return (
        f"Ratio of MML to CCL with these settings, mean of the ratios of the seeds: {'; '.join(said)}." if said else ""
    )


def panes(tables: Any, records: Any) -> list[list[dict[str, Any]]]:
    """Returns panes of the recall on the test set against the epoch, for seed 0."""
    found = []
    for data in tables:
        first = {r["method"]: r["curve"] for r in records if (r["data"], r["on"], r["seed"]) == (data, "test", 0)}
        lines = {n: ([e for e, *_ in first[n]], [v for *_, v in first[n]]) for n in CASES if n in first}
        found.append({"title": data, "xlabel": "epoch", "ylabel": "Recall@20 on test", "lines": lines})
    return [found]


def quick() -> tuple[list[study.Method], dict[str, Any]]:
    """Returns the methods and splits of the shortened run: 2,000 users, 2 epochs."""
    found = split("gowalla")
    train, test = (part.select(part.pairs()[0] < 2000) for part in (found.train, found.test))
    names = ("CCL, 10 a group", "MML, 2048 shared")
    few = [method(name, "gowalla", [CASES[name].rate], epochs=[2], test=lambda: test) for name in names]
    return few, {"gowalla": splits.Split(train, None, test)}


STUDY = Study(
    name="mml",
    title="Losses on Gowalla and Yelp2018",
    about=__doc__,
    methods={data: partial(methods, data) for data in (SELECT, *L2)},
    split=split,
    evaluate=evaluate,
    metric=lambda data: METRIC,
    shown=lambda data: ("recall@20", "ndcg@20"),
    quick=quick,
    tuned=[SELECT],
    claims=[
        *((f"MML, {kind}", f"CCL, {kind}") for kind in ("10 a group", "100 a group", "2048 shared, singly")),
        ("CCL, 10 a group, margin 0.7, weight 70", "CCL, 10 a group"),
        ("CCL, 10 a group, margin 0.7, weight 70", "MML, 10 a group"),
        ("BSL, 2048 shared", "softmax, 2048 shared"),
    ],
    chosen=chosen,
    columns=columns,
    after=ratios,
    panes=panes,
)

if __name__ == "__main__":
    main(STUDY)
