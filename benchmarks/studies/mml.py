"""Multi-margin loss and its rivals on Gowalla and Yelp2018 (the LightGCN splits), matrix factorisation, 64 dimensions.

The papers choose the epoch on the test set. Here nothing is chosen there: `--select` trains on 90 % of a set's train
part and judges learning rates on the other 10 %; the runs then train on the whole train part with the chosen rate,
which decays exponentially over a fixed number of epochs, and report the last epoch. The best epoch on the test set,
which is the papers' habit, stands beside it under that name. The length of the long runs is the exception: it was
raised after the shorter ones, which stand beside them, had missed their targets on the test set. Each run leaves its
curve and settings in results/mml.jsonl; the table is made of all that stand there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record
from benchmarks._stale import Cell, same
from jaxrec.data import datasets

DIM, DROPOUT, SCALE, FINAL = 64, 0.1, 0.1, 0.01
L2 = {"gowalla": 1e-8, "yelp2018": 1e-9}
EPOCHS = {"gowalla": 1.0, "yelp2018": 2 / 3}  # Yelp2018 has 1.5 times the pairs: about as many steps
MML = {
    "gowalla": {"margins": (0.7, 0.8, 0.9), "weights": (0.1, 0.15, 0.75), "negative_weight": 700.0},
    "yelp2018": {"margins": (0.6, 0.7, 0.8, 0.9), "weights": (0.05, 0.15, 0.2, 0.6), "negative_weight": 400.0},
}
BSL = {"gowalla": {"temperature": 0.08, "exponent": 1.22}, "yelp2018": {"temperature": 0.11, "exponent": 1.1}}
RATES = (0.5, 1.0, 2.0)  # factors of a case's learning rate that --select compares


class Case(NamedTuple):
    """What is trained.

    Attributes:
        loss: function of the data set's name that gives the loss.
        score: of the model.
        n: negatives of each example, or of the whole batch if `shared`.
        shared: one draw of negatives for the batch.
        group: an example is a user with up to so many of its positives; None is one positive, as in the papers.
        batch: examples a step.
        epochs: in all on Gowalla; Yelp2018 gets two thirds, which is about as many steps.
        rate: first learning rate of Adam; the last is a hundredth of it.
        simplex: SimpleX in place of MF, as its authors set it for Gowalla (gate .8, user attention, a table of its own
            for the history, the positive left out), but with the first 50 items of a history.
    """

    loss: Callable[[str], jr.typing.Loss]
    score: Callable = jr.models.cosine
    n: int = 2048
    shared: bool = True
    group: int | None = 16
    batch: int = 2048
    epochs: int = 60
    rate: float = 0.04
    simplex: bool = False


def ccl(_: str, *, margin: float = 0.9, weight: float = 150.0) -> jr.typing.Loss:
    """CCL, by default at SimpleX's setting for both sets."""
    return partial(jr.losses.ccl, margin=margin, weight=weight)


def mml(data: str) -> jr.typing.Loss:
    """The paper's setting of each set."""
    return partial(jr.losses.mml, **MML[data])


# No search chose this setting. It shows how much a setting moves CCL where negatives are few.
OTHER_CCL = "CCL, 10 a group, margin 0.7, weight 70"
single = partial(Case, shared=False, group=None, batch=4096, epochs=8, rate=0.02)
CASES = {
    "BPR, 10 a positive": single(lambda _: jr.losses.bpr, n=10, score=jr.models.dot, rate=0.005),
    "CCL, 10 a positive": single(ccl, n=10),
    "MML, 10 a positive": single(mml, n=10),
    "CCL, 10 a group": Case(ccl, n=10, shared=False),
    OTHER_CCL: Case(partial(ccl, margin=0.7, weight=70.0), n=10, shared=False, rate=0.08),
    "MML, 10 a group": Case(mml, n=10, shared=False),
    "CCL, 100 a group": Case(ccl, n=100, shared=False),
    "MML, 100 a group": Case(mml, n=100, shared=False),
    "BCE, 2048 shared": Case(lambda _: jr.losses.bce, score=jr.models.dot, epochs=20, rate=0.01),
    "MSE, 2048 shared": Case(lambda _: jr.losses.mse, epochs=20),
    "softmax, 2048 shared": Case(lambda _: partial(jr.losses.mine, temperature=0.1), epochs=20),
    "BSL, 2048 shared": Case(lambda data: partial(jr.losses.bsl, **BSL[data]), epochs=20),
    "CCL, 2048 shared": Case(ccl),
    "MML, 2048 shared": Case(mml),
    "CCL, 2048 shared, singly": Case(ccl, group=None, batch=4096, epochs=6, rate=0.02),
    "MML, 2048 shared, singly": Case(mml, group=None, batch=4096, epochs=6, rate=0.02),
    "SimpleX-CCL, 2048 shared, singly": Case(ccl, group=None, batch=4096, epochs=6, rate=0.02, simplex=True),
    "SimpleX-MML, 2048 shared, singly": Case(mml, group=None, batch=4096, epochs=6, rate=0.02, simplex=True),
    "CCL, 2048 shared, five times as long": Case(ccl, epochs=300, rate=0.02),
    "CCL, 2048 shared, ten times as long": Case(ccl, epochs=600, rate=0.02),
    "CCL, 2048 shared, long": Case(ccl, epochs=450, rate=0.02),
    "CCL, 2048 shared, longest": Case(ccl, epochs=900, rate=0.02),
}


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = _record.parser("studies.mml", __doc__, defaults=True)
    parser.add_argument("--data", nargs="+", choices=sorted(L2), default=sorted(L2), help="data sets")
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES), help="what to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs")
    parser.add_argument("--every", type=int, default=10, help="judge after every so many epochs, and the last")
    parser.add_argument("--select", action="store_true", help="compare learning rates on validation parts, seed 0")
    parser.add_argument("--again", action="store_true", help="repeat runs that have a record in results/mml.jsonl")
    parser.add_argument("--table", action="store_true", help="train nothing; table the records there are")
    parser.add_argument(
        "--quick", action="store_true", help="the same code: 2,000 users, 2 epochs, 1 seed, MML and CCL"
    )
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.case, options.data = [0], ["CCL, 10 a group", "MML, 2048 shared"], ["gowalla"]
    return options


def held_out(train: jr.Interactions) -> tuple[jr.Interactions, jr.Interactions]:
    """A tenth of the pairs, at random, as validation part."""
    kept = np.random.default_rng(0).random(train.n_pairs) >= 0.1
    return train.select(kept), train.select(~kept)


def run(data: str, case: Case, seed: int, rate: float, train, test, every: int) -> dict[str, Any]:
    """Trains one model; gives the curve on `test` and what was run."""
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM, score=case.score, scale=SCALE, dropout=DROPOUT)
    if case.simplex:
        pool = {"pool": jr.models.UserAttention(), "shared_history": False, "length": 50}
        model = jr.models.SimpleX(train, dim=DIM, gate=0.8, scale=SCALE, dropout=DROPOUT, **pool)
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=case.n)
    sample = partial(jr.sampling.shared, sample=sample) if case.shared else sample
    loss = case.loss(data)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample, leave_out=case.simplex)
    steps = -(-len(jr.train.examples(train, case.group).users) // case.batch)
    schedule = optax.exponential_decay(rate, steps * case.epochs, FINAL)
    tx = optax.chain(optax.add_decayed_weights(L2[data]), optax.adam(schedule))

    def judge(variables: Mapping) -> dict[str, float]:
        report = jr.evaluate.full_ranking(model, variables, train, test, ks=(20,))
        return {name: report.means[name] for name in ("recall@20", "ndcg@20")}

    began = time.process_time()
    _, history = jr.train.fit(
        jr.train.init(jax.random.key(seed), model, tx),
        objective,
        tx,
        train,
        epochs=case.epochs,
        batch_size=case.batch,
        group=case.group,
        validate=judge,
        every=every,
        progress=False,
    )
    curve = [record for record in history.records if "recall@20" in record]
    return {
        "data": data,
        "fingerprint": train.fingerprint(),
        "seed": seed,
        "model": type(model).__name__,
        **described(data, case, rate),
        "steps": steps * case.epochs,
        "train_s": sum(record["seconds"] for record in history.records),
        "cpu_s": time.process_time() - began,
        "commit": _record.commit(),
        "curve": curve,
    }


def described(data: str, case: Case, rate: float) -> dict[str, Any]:
    """What a case is, as its records state it."""
    return {
        "loss": _described(case.loss(data)),
        "negatives": case.n,
        "shared": case.shared,
        "group": case.group,
        "batch_size": case.batch,
        "epochs": case.epochs,
        "learning_rate": [rate, rate * FINAL],
        "l2": L2[data],
        "dropout": DROPOUT,
        "initial_scale": SCALE,
    }


def case_on(data: str, name: str) -> Case:
    """A case, with as many epochs as a data set gets."""
    return CASES[name]._replace(epochs=round(CASES[name].epochs * EPOCHS[data]))


def rates_of(case: Case) -> list[float]:
    """The learning rates to compare."""
    return [case.rate * factor for factor in RATES]


def _described(loss: partial) -> dict[str, Any]:
    """Name and arguments of a loss."""
    if not isinstance(loss, partial):
        return {"name": loss.__name__}
    return {"name": loss.func.__name__, **loss.keywords}


def chosen_rate(name: str, selections: Iterable[Mapping[str, Any]]) -> float:
    """The learning rate with the best recall on Gowalla's validation part, by the records of selection.

    Compared for the case itself, else for CCL with negatives of its kind (so that MML stands on a rate tuned for its
    rival), else the case's own.
    """
    selections = list(selections)
    kind = name.partition(", ")[2]  # such as "2048 shared"
    for compared in (name, f"CCL, {kind}"):
        records = [record for record in selections if record["case"] == compared]
        if compared in CASES and records and CASES[name].score is CASES[compared].score:
            return max((r["curve"][-1]["recall@20"], r["learning_rate"][0]) for r in records)[1]
    return CASES[name].rate


def runs_of(data: str, name: str) -> list[dict[str, Any]]:
    """The runs of a case that chose nothing, by seed."""
    return sorted(_record.runs("mml", data=data, case=name, select=False), key=lambda record: record["seed"])


def cells(records: Sequence[Mapping[str, Any]]) -> Iterator[Cell]:
    """What the records compared, and what is compared today; a setting is all that a case states."""
    chose = [record for record in records if record["select"]]
    for data, name in dict.fromkeys((record["data"], record["case"]) for record in records):
        of_case = [record for record in records if (record["data"], record["case"]) == (data, name)]
        compared, runs = ([_stated(r) for r in of_case if r["select"] is select] for select in (True, False))
        if name not in CASES:
            yield Cell(data, name, compared or runs, ())
            continue
        case = case_on(data, name)
        grid = [_stated(described(data, case, rate)) for rate in rates_of(case)] if compared else []
        chosen = _stated(described(data, case, chosen_rate(name, chose)))
        yield Cell(data, name, compared, grid, chosen, runs)


def recorded(data: str, name: str, case: Case, rate: float, *, seed: int, select: bool) -> bool:
    """Whether there is a record, of the case as it is today."""
    today = [_stated(described(data, case, rate))]
    found = _record.runs("mml", data=data, case=name, select=select, seed=seed)
    return any(same([_stated(record)], today) for record in found)


def _stated(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of its case, to compare with what the case is today."""
    names = ("loss", "negatives", "shared", "group", "batch_size", "epochs", "l2", "dropout", "initial_scale")
    return {name: record[name] for name in names} | {"learning_rate": record["learning_rate"][0]}


def trivial(split: datasets.Dataset) -> dict[str, dict[str, float]]:
    """The rankers that learn nothing."""
    judge = partial(jr.evaluate.full_ranking, train=split.train, test=split.test, ks=(20,))
    reports = {name: judge(*ranker) for name, ranker in _record.rankers(split.train).items()}
    return {
        name: {
            "metric": report.means["recall@20"],
            "stderr": report.stderr["recall@20"],
            "ndcg@20": report.means["ndcg@20"],
        }
        for name, report in reports.items()
    }


def case_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one case over its seeds: last epoch, and best epoch on the test set."""
    last = {name: np.array([record["curve"][-1][name] for record in records]) for name in ("recall@20", "ndcg@20")}
    best = [max(record["curve"], key=lambda point: point["recall@20"]) for record in records]
    return {
        "metric": float(last["recall@20"].mean()),
        "stderr": _record.stderr(last["recall@20"]),
        "ndcg@20": float(last["ndcg@20"].mean()),
        "ndcg_stderr": _record.stderr(last["ndcg@20"]),
        "best_on_test_recall@20": float(np.mean([point["recall@20"] for point in best])),
        "best_on_test_ndcg@20": float(np.mean([point["ndcg@20"] for point in best])),
        "best_on_test_epochs": [point["epoch"] for point in best],
        "seeds": [record["seed"] for record in records],
        "epochs": records[0]["epochs"],
        "steps": records[0]["steps"],
        "learning_rate": records[0]["learning_rate"][0],
        "cpu_s": float(np.median([record["cpu_s"] for record in records])),
    }


def table(data: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Cases of all records in results/mml.jsonl, with the trivial rankers, and the fingerprints of the data."""
    cases, fingerprints = {}, {}
    for name in data:
        split = datasets.load(name)
        fingerprints[name] = split.train.fingerprint()
        cases |= {f"{name}: {ranker}": figures for ranker, figures in trivial(split).items()}
        for case in CASES:
            if records := runs_of(name, case):
                cases[f"{name}: {case}"] = case_of(records)
    return cases, fingerprints


def ratios() -> dict[str, dict[str, dict[str, float]]]:
    """MML over CCL for each set and kind of negatives, seed by seed: mean and standard error."""
    found = {}
    for data in sorted(L2):
        for n in ("10 a positive", "10 a group", "100 a group", "2048 shared", "2048 shared, singly"):
            pairs = []
            ends = [
                {record["seed"]: record["curve"][-1] for record in runs_of(data, f"{loss}, {n}")}
                for loss in ("CCL", "MML")
            ]
            for seed in sorted(ends[0].keys() & ends[1].keys()):
                pairs.append([ends[1][seed][name] / ends[0][seed][name] for name in ("recall@20", "ndcg@20")])
            if len(pairs) > 1:
                mean, stderr = np.mean(pairs, 0), np.std(pairs, 0, ddof=1) / np.sqrt(len(pairs))
                found.setdefault(data, {})[n] = {
                    "recall@20": mean[0],
                    "recall_stderr": stderr[0],
                    "ndcg@20": mean[1],
                    "ndcg_stderr": stderr[1],
                    "seeds": len(pairs),
                }
    return found


def picture() -> None:
    """Recall on the test set against epochs, seed 0, for each set: results/mml.png."""
    import matplotlib.pyplot as plt

    figure, panes = plt.subplots(1, len(L2), figsize=(11, 4), layout="constrained")
    for pane, data in zip(panes, sorted(L2)):
        for place, name in enumerate(CASES):
            for record in _record.runs("mml", data=data, case=name, select=False, seed=0):
                curve = record["curve"]
                look = {"marker": ".", "color": plt.cm.tab20(place % 20), "label": name}
                pane.plot([p["epoch"] for p in curve], [p["recall@20"] for p in curve], **look)
        pane.set(title=data, xlabel="epoch", ylabel="Recall@20 on test", ylim=(0, None))
        if pane.lines:
            pane.legend(fontsize=7)
    figure.savefig(_record.RESULTS / "mml.png", dpi=110)


def train_all(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Trains what is asked for and not yet recorded; gives the quick run's cases."""
    quick = {}
    for data in options.data:
        split = datasets.load(data)
        train, test = held_out(split.train) if options.select else (split.train, split.test)
        if options.quick:
            users = np.repeat(np.arange(train.n_users), np.diff(train.indptr)) < 2000
            train = train.select(users)
            test = test.select(np.repeat(np.arange(test.n_users), np.diff(test.indptr)) < 2000)
        for name in options.case:
            case = case_on(data, name)
            if options.quick:
                quick[f"{data}: {name}"] = case_of([run(data, case._replace(epochs=2), 0, case.rate, train, test, 2)])
                continue
            rates = rates_of(case) if options.select else [chosen_rate(name, _record.runs("mml", select=True))]
            for seed in [0] if options.select else options.seeds:
                for rate in rates:
                    if not options.again and recorded(data, name, case, rate, seed=seed, select=options.select):
                        continue
                    record = {"case": name, "select": options.select}
                    record |= run(data, case, seed, rate, train, test, options.every)
                    rate_too = ["learning_rate"] if options.select else []
                    _record.keep("mml", record, "data", "case", "select", "seed", *rate_too)
                    last = record["curve"][-1]
                    print(
                        f"{data}, {name}, seed {seed}: recall@20 {last['recall@20']:.4f}, "
                        f"ndcg@20 {last['ndcg@20']:.4f}, rate {rate:g}, {record['train_s']:.0f} s of training",
                        flush=True,
                    )
    return quick


def main() -> None:
    """Trains, and writes the table."""
    options = arguments()
    quick = {} if options.table else train_all(options)
    cases, fingerprints = (quick, {"gowalla": "2,000 users"}) if options.quick else table(sorted(L2))
    if not options.quick:
        picture()
    facts = {"mml_over_ccl": {} if options.quick else ratios()}
    facts |= {"data": fingerprints, "dim": DIM, "dropout": DROPOUT, "initial_scale": SCALE, "k": 20}
    _record.write("studies.mml", cases, quick=options.quick, **facts)


if __name__ == "__main__":
    main()
