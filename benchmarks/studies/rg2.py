"""RG2, WRMF and iALS against losses trained by SGD, by the RG2 paper's protocol: matrix factorisation, 64 dimensions.

Ratings of 3 and more (lastfm-2k: all), every user and item with 5 pairs at least; each user's pairs are dealt at random
to train, validation and test as .8/.1/.1, anew for each seed. A method's hyperparameters are those of its grid with the
best NDCG@10 on seed 0's validation part; every run takes the sweep or epoch that is best there, and is judged once on
test, with train and validation masked. Gowalla has the LightGCN split, Recall@20, and only the solvers: a tenth of its
train part is validation, and the chosen setting is trained again on all of it for as many sweeps.

MovieLens-10M, Electronics and Steam, the paper's sets, are asked for by name (`--data`), where `jaxrec.data.datasets`
finds them. The paper says that ratings below 3 are dropped from Electronics, but its counts are those of all ratings.

`jaxrec.study` keeps each run, with its validation curve in seconds, in results/rg2.jsonl. To repeat a run, remove its
line.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record, _stale
from jaxrec import study
from jaxrec.data import datasets, splits

DIM, SCALE, GROUP = 64, 0.1, 16
EPOCHS, PATIENCE, SWEEPS = 60, 6, 40
MINIMUM = {"ml-100k": 3.0, "ml-1m": 3.0, "lastfm-2k": None, "gowalla": None}  # ratings that count
MINIMUM |= {"ml-10m": 3.0, "amazon-electronics-5core": None, "steam": None}  # the paper's, where they can be had
DEFAULT = ("ml-100k", "ml-1m", "lastfm-2k", "gowalla")
SMALL = ("ml-100k", "lastfm-2k")
FIGURES = ("mrr@10", "ndcg@10", "recall@20", "ndcg@20")

Fitted = tuple[Any, jr.typing.Variables, jr.train.History]


def metric_of(data: str) -> str:
    """What validation goes by."""
    return "recall@20" if data == "gowalla" else "ndcg@10"


def split(data: str, seed: int) -> splits.Split:
    """The split of one seed."""
    if data == "gowalla":
        found = datasets.load(data)
        kept = np.random.default_rng(seed).random(found.train.n_pairs) >= 0.1
        return splits.Split(found.train.select(kept), found.train.select(~kept), found.test)
    found = datasets.load(data, minimum=MINIMUM[data])
    whole, _ = splits.compact(splits.k_core(found.interactions), found.id_map)
    whole = jr.Interactions.from_pairs(*whole.pairs())  # without weights: plays count once
    return splits.ratio(whole, order=partial(splits.random_order, key=jax.random.key(seed)))


def evaluate(model: Any, variables: jr.typing.Variables, part: splits.Split, on: str) -> jr.evaluate.Report:
    """The figures that are recorded."""
    report = study.full_ranking(model, variables, part, on)
    return jr.evaluate.Report(
        report.users, {name: report.per_user[name] for name in FIGURES}, {}, None, report.protocol
    )


class Method(NamedTuple):
    """How a model is trained on "train", "valid", a key and a setting, given `metric` and `large`; see `methods`.

    Attributes:
        fit: as in `jaxrec.study.Method`.
        grid: to choose from on validation.
        few: the grid for large sets.
        refit: as in `jaxrec.study.Method`; a method without takes no part on Gowalla.
    """

    fit: Callable[..., Fitted]
    grid: Mapping[str, tuple[float, ...]]
    few: Mapping[str, tuple[float, ...]] | None = None
    refit: Callable[..., Fitted] | None = None


# ---------------------------------------------------------------------- solvers


def validation(model: Any, train: jr.Interactions, valid: jr.Interactions, metric: str) -> dict[str, Any]:
    """Options that end training by validation."""
    k = int(metric.partition("@")[2])
    judge = lambda v: jr.evaluate.full_ranking(model, v, train, valid, ks=(k,)).means  # noqa: E731
    return {"validate": judge, "stopping": jr.train.EarlyStopping(metric, patience=PATIENCE), "progress": False}


def factors(train: jr.Interactions, **options: Any) -> jr.models.MF:
    """Matrix factorisation."""
    return jr.models.MF(train.n_users, train.n_items, dim=DIM, **options)


def solved(fit: Callable, train: Any, valid: Any, key: Any, *, metric: str, large: bool, **setting: float) -> Fitted:
    """ALS, ended by validation."""
    model, options = factors(train), {"dim": DIM, "key": key, "tolerance": None, **setting}
    return model, *fit(train, sweeps=SWEEPS, **validation(model, train, valid, metric), **options)


def solved_again(
    fit: Callable, train: Any, key: Any, log: Any, *, metric: str, large: bool, **setting: float
) -> Fitted:
    """ALS for the sweeps that were best on validation."""
    epochs, values = log.column(metric)
    options = {"dim": DIM, "key": key, "tolerance": None, "progress": False, **setting}
    return factors(train), *fit(train, sweeps=epochs[int(np.argmax(values))], **options)


def closed_form(train: Any, valid: Any, key: Any, *, metric: str, large: bool, regularization: float) -> Fitted:
    """The optimum; λ is a share of √2 σ₁, at which nothing is left. There are no sweeps to choose."""
    found = jr.solvers.rg2.decompose(train, dim=DIM, key=key, tolerance=1e-3)
    variables = jr.solvers.rg2.shrink(found, regularization=float(np.sqrt(2) * found.values[0]) * regularization)
    seen = {} if valid is None else validation(factors(train), train, valid, metric)["validate"](variables)
    return factors(train), variables, jr.train.History().append({"epoch": 1, "seconds": float("nan"), **seen})


def closed_form_again(train: Any, key: Any, log: Any, **setting: Any) -> Fitted:
    """The optimum on other data."""
    return closed_form(train, None, key, **setting)


def solver(fit: Callable, grid: Mapping[str, tuple[float, ...]]) -> Method:
    """A method by ALS."""
    return Method(partial(solved, fit), grid, refit=partial(solved_again, fit))


# ---------------------------------------------------------------------- SGD


def sgd(
    make: Callable,
    train: Any,
    valid: Any,
    key: Any,
    *,
    metric: str,
    large: bool,
    learning_rate: float,
    l2: float,
    batches: int = 1,
) -> Fitted:
    """Adam with L2 on whole tables, ended by validation; a step takes so many `batches`, of groups of 16 positives."""
    model, objective, parameters, after = make(train)
    tx = optax.chain(optax.add_decayed_weights(l2), optax.adam(learning_rate), *after)
    state = jr.train.init(key, model, tx, parameters=parameters)
    options = {"epochs": EPOCHS, "batch_size": (1024 if large else 256) * batches, "group": GROUP, "every": 2}
    state, log = jr.train.fit(state, objective, tx, train, **options, **validation(model, train, valid, metric))
    return model, state.variables, log


def pairwise(loss: jr.typing.Loss, n: int, train: jr.Interactions, **more: Any):
    """Negatives drawn for each group."""
    model, sample = factors(train, scale=SCALE), partial(jr.sampling.uniform, n_items=train.n_items, n=n)
    return model, partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample, **more), {}, ()


def full(loss: jr.typing.Loss, train: jr.Interactions, model: Any = None):
    """All items are negatives."""
    model = model or factors(train, scale=SCALE)
    return model, partial(jr.train.rows_objective, model=model, loss=loss), {}, ()


def gram(train: jr.Interactions, model: Any = None):
    """RG2 by SGD, against all items by their Gram matrix."""
    model = model or factors(train, scale=SCALE)
    return model, partial(jr.train.gram_objective, model=model), {}, ()


def uib(train: jr.Interactions):
    """A boundary for each user."""
    boundary = {"boundary": jnp.zeros(train.n_users)}

    def arguments(variables, batch, negatives):
        return {"boundary": variables["params"]["boundary"][batch.users][:, None]}

    model, objective, *_ = pairwise(jr.losses.uib, 100, train, arguments=arguments)
    return model, objective, boundary, ()


def sparsemax(train: jr.Interactions):
    """Rows of scores against the group's positives."""
    model = factors(train, scale=SCALE)

    def objective(variables, key, batch):
        scores = model.apply(variables, batch.users, method="rows")
        rows = jnp.arange(len(batch.users))[:, None]
        targets = jnp.zeros(scores.shape).at[rows, batch.items].add(batch.where.astype(scores.dtype))
        return jr.losses.mean(jr.losses.sparsemax(scores, targets), weights=batch.where.sum(1).astype(scores.dtype))

    return model, objective, {}, ()


def sml(train: jr.Interactions):
    """Distances in the unit ball, margins that are learnt in [0, 1]; the mean over a batch, so γ is scaled likewise."""
    model = factors(train, scale=SCALE, score=jr.models.negative_squared_distance)
    margins = {"user_margin": jnp.ones(train.n_users), "item_margin": jnp.ones(train.n_items)}
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=50)
    objective = partial(jr.train.sml_objective, sample=sample, loss=partial(jr.losses.sml, margin_weight=0.01))
    rules = {
        "ball": jr.optim.riemannian.project_to_ball(),
        "margin": optax.stateless_with_tree_map(lambda update, x: jnp.clip(x + update, 0, 1) - x),
    }
    inside = optax.partition(rules, {"user": "ball", "item": "ball"} | dict.fromkeys(margins, "margin"))
    return model, objective, margins, (inside,)


def lightgcn(make: Callable, grid: Mapping[str, tuple[float, ...]]) -> Method:
    """The same losses on propagated vectors. A step goes through the whole graph, so that it had better be worth it."""
    graph = lambda train: make(train, model=jr.models.LightGCN(train, dim=DIM, layers=3, scale=SCALE))  # noqa: E731
    return Method(partial(sgd, graph, batches=4), grid)


RATES = {"learning_rate": (3e-3, 1e-2, 3e-2), "l2": (0.0, 1e-5, 1e-4)}
FEW = {"learning_rate": (3e-3, 1e-2), "l2": (1e-5, 1e-4)}
GRAPH = {"learning_rate": (1e-2, 3e-2, 1e-1), "l2": (1e-5,)}
LIGHT = {"learning_rate": (1e-2,), "l2": (1e-7,)}  # near what its paper's decay comes to; one setting, not tuned
SHARES = {"regularization": (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)}
MARGINS = {"l2": (0.0,)}
softmax = partial(full, jr.losses.mine)  # against all items, the positive among them
METHODS = {
    "RG2": solver(jr.solvers.rg2.fit, {"regularization": (0.03, 0.1, 0.3, 0.6, 1.0)}),
    "RG2, closed form": Method(closed_form, SHARES, refit=closed_form_again),
    "RG2, alpha tuned": solver(
        jr.solvers.rg2.fit, {"alpha": (0.02, 0.05, 0.1, 0.2), "regularization": (0.03, 0.1, 0.3)}
    ),
    "WRMF": solver(jr.solvers.wrmf.fit, {"alpha": (1.0, 4.0, 10.0), "regularization": (3.0, 10.0, 50.0, 200.0)}),
    "iALS": solver(
        jr.solvers.ials.fit,
        {"unobserved_weight": (0.01, 0.03, 0.1, 0.3, 1.0), "regularization": (0.003, 0.01, 0.03, 0.1)},
    ),
    "softmax": Method(partial(sgd, softmax), RATES, FEW),
    "sampled softmax": Method(partial(sgd, partial(pairwise, jr.losses.sampled_softmax, 100)), RATES, FEW),
    "RG2 by SGD": Method(partial(sgd, gram), RATES, FEW),
    "BPR": Method(partial(sgd, partial(pairwise, jr.losses.bpr, 100)), RATES, FEW),
    "BCE": Method(partial(sgd, partial(pairwise, jr.losses.bce, 100)), RATES, FEW),
    "UIB": Method(partial(sgd, uib), RATES, FEW),
    "SML": Method(partial(sgd, sml), RATES | MARGINS, FEW | MARGINS),
    "Sparsemax": Method(partial(sgd, sparsemax), RATES, FEW),
    "LightGCN, softmax": lightgcn(softmax, GRAPH),
    "LightGCN, softmax, l2 1e-7": lightgcn(softmax, LIGHT),
    "LightGCN, RG2": lightgcn(gram, GRAPH),
}


# ---------------------------------------------------------------------- the study


def methods(data: str) -> list[study.Method]:
    """What is compared on a data set: on Gowalla solvers alone, LightGCN on ml-1m alone."""
    popular = lambda train, *_: (*jr.models.popularity(train), None)  # noqa: E731
    found, fixed = [study.Method("popularity", popular, refit=popular)], {"metric": metric_of(data)}
    fixed["large"] = data not in SMALL
    for name, method in METHODS.items():
        if method.refit if data == "gowalla" else data == "ml-1m" or not name.startswith("LightGCN"):
            grid = (None if data in SMALL else method.few) or method.grid
            refit = partial(method.refit, **fixed) if data == "gowalla" else None
            found.append(study.Method(name, partial(afresh, method.fit, **fixed), grid, refit))
    return found


def afresh(fit: Callable, *data: Any, **setting: Any) -> Fitted:
    """A run whose seconds include compilation, whatever ran before it."""
    jax.clear_caches()
    return fit(*data, **setting)


def tables(records: Sequence[Mapping[str, Any]]) -> dict[str, study.Table]:
    """The table of each data set that has records."""
    sets = [data for data in MINIMUM if any(record["data"] == data for record in records)]
    return {data: study.table(methods(data), records, data=[data], metric=metric_of(data)) for data in sets}


def cells(records: Sequence[Mapping[str, Any]]) -> list[_stale.Cell]:
    """What the records compared, and what is compared today."""
    grids = {data: {method.name: method.grid for method in methods(data)} for data in MINIMUM}
    return _stale.of_study(records, tables(records), grids)


def derived(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the tables of RESULTS.md need: the figures of every row, means and standard errors over seeds."""
    rows = [(data, row) for data, found in tables(records).items() for row in found.rows]
    return {"cases": {f"{data}: {row.method}": _record.case(row) for data, row in rows}}


def picture(records: Sequence[Mapping[str, Any]]) -> None:
    """NDCG@10 on validation against seconds of training, seed 0: results/rg2.png."""
    import matplotlib.pyplot as plt

    sets = [data for data in tables(records) if data != "gowalla"]
    figure, panes = plt.subplots(1, len(sets), figsize=(5.5 * len(sets), 4), layout="constrained", squeeze=False)
    for pane, data in zip(panes[0], sets):
        first = {r["method"]: r for r in records if (r["data"], r["on"], r["seed"]) == (data, "test", 0)}
        for place, name in enumerate(METHODS):
            if name in first:
                _, seconds, values = np.array(first[name]["curve"], np.float64).T
                look = {"color": plt.cm.tab20(place), "label": name}
                if np.isfinite(seconds).all():
                    pane.semilogx(seconds, values, marker=".", **look)
                else:
                    pane.axhline(values[0], linestyle=":", **look)
        pane.set(title=data, xlabel="seconds of training, compilation included", ylabel="NDCG@10 on validation")
        pane.legend(fontsize=7)
    figure.savefig(_record.RESULTS / "rg2.png", dpi=110)


QUICK = {
    "RG2": {"regularization": (0.1,)},
    "RG2, alpha tuned": {"alpha": (0.1,), "regularization": (0.1,)},
    "iALS": {"unobserved_weight": (0.1,), "regularization": (0.03,)},
    "softmax": {"learning_rate": (0.01,), "l2": (1e-5,)},
}


def main() -> None:
    """Trains what has no record, draws the picture and prints the figures."""
    parser = _record.parser("studies.rg2", __doc__)
    parser.add_argument("--data", nargs="+", choices=list(MINIMUM), default=list(DEFAULT), help="data sets")
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS), help="what to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of split and start")
    parser.add_argument("--table", action="store_true", help="train nothing; table the records there are")
    parser.add_argument("--quick", action="store_true", help="the same code: ml-100k, 4 methods of one setting, 1 seed")
    options = parser.parse_args()
    run = partial(study.run, name="rg2", evaluate=evaluate)
    if options.quick:
        few = [each._replace(grid=QUICK[each.name]) for each in methods("ml-100k") if each.name in QUICK]
        with tempfile.TemporaryDirectory() as folder:
            found = run(few, {"ml-100k": partial(split, "ml-100k")}, seeds=[0], folder=folder)
        figures = {f"ml-100k: {row.method}": _record.case(row) for row in found.rows}
        _record.write("studies.rg2", figures, quick=True, data="ml-100k")
        return
    for data in () if options.table else options.data:
        wanted = [each for each in methods(data) if each.name in ("popularity", *options.method)]
        run(wanted, {data: partial(split, data)}, seeds=options.seeds, folder=_record.RESULTS, metric=metric_of(data))
    records = _record.runs("rg2")
    picture(records)
    parts = {data: split(data, 0) for data in tables(records)}
    sizes = {data: (part.train.n_users, part.train.n_items) for data, part in parts.items()}
    prints = {data: part.train.union(part.valid).fingerprint() for data, part in parts.items()}
    facts = {"data": prints, "sizes": sizes, "dim": DIM, "patience": PATIENCE}
    _record.write("studies.rg2", derived(records)["cases"], quick=False, derived=True, **facts)


if __name__ == "__main__":
    main()
