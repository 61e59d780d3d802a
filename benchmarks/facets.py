"""Does MARS find facets that were planted, and is it better for it than a model of one space of as many dimensions?

Two kinds of planted sets, drawn anew for each seed (`jaxrec.data.synthetic`): `facet_spaces`, where every item has a
place on K spheres and users mix spheres, and `facets`, where every item belongs to one of K clusters. Each user's pairs
are dealt at random to train, validation and test as .8/.1/.1. A model's setting is the one of its grid with the best
NDCG@10 on seed 0's validation part, every run takes its best epoch there, and test is judged once, with train and
validation masked and ties broken at random. All models go through the same number of epochs under the same decay of
their rates, but for MARS's own loss, which takes single positives, and fewer epochs of more steps.

Agreement is the share of users (items) whose facet is the planted one under the best one-to-one matching of facets;
chance is the same for labels that are shuffled. A user's planted facet is the largest of its mixture, the model's the
largest of θ. An item's is the facet that gives its own users most above what it gives all users.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from scipy.optimize import linear_sum_assignment

import jaxrec as jr
from benchmarks import _record
from jaxrec.data import splits, synthetic
from jaxrec.models import MARS, MF
from jaxrec.optim import riemannian
from jaxrec.train import mars
from jaxrec.typing import Array, Scalar

K, D = 3, 6  # facets planted and learnt, dimensions of a facet learnt; a space has K D
SETS = {
    "spaces": partial(synthetic.facet_spaces, n_facets=K, dim=3, pairs_per_user=38),
    "clusters": partial(synthetic.facets, n_facets=K, pairs_per_user=20),
}
SIZE, QUICK = {"n_users": 500, "n_items": 100}, {"n_users": 200, "n_items": 60}
EPOCHS = {"spaces": 150, "clusters": 100}


class Planted(NamedTuple):
    """One seed's parts, what was planted, and the ranker that knows it."""

    train: jr.Interactions
    valid: jr.Interactions
    test: jr.Interactions
    truth: Any
    oracle: tuple[Any, Any]


def planted(data: str, seed: int, size: Mapping[str, int]) -> Planted:
    """Draws and splits a set."""
    whole, truth = SETS[data](jax.random.key(seed), **size)
    parts = splits.ratio(whole, order=partial(splits.random_order, key=jax.random.key(1000 + seed)))
    if data == "clusters":
        oracle = jr.evaluate.scorer(lambda odds, users: odds[users]), truth.user_mixtures[:, truth.item_facets]
    else:
        tables = {"theta": np.log(truth.user_mixtures + 1e-9), "user": truth.users, "item": truth.items}
        oracle = MARS(**size, dim=truth.users.shape[2], n_facets=K), {"params": tables}
    return Planted(*parts, truth, oracle)


# ---------------------------------------------------------------------- models

Setup = Callable[..., jr.train.Recipe]


def fading(rate: Scalar, steps: int) -> Callable[[Array], Array]:
    """Every rate falls to half in a quarter of the run."""
    return optax.exponential_decay(rate, steps / 4, 0.5)


def single(
    rate: Scalar, decay: Scalar, *, part: Planted, steps: int, dim: int, loss: Any, score: Any = jr.models.dot
) -> jr.train.Recipe:
    """A vector a user and item in one space; every loss is over all items."""
    model = MF(part.train.n_users, part.train.n_items, dim=dim, score=score, scale=0.1)
    objective = partial(jr.train.rows_objective, model=model, loss=loss)
    return jr.train.Recipe(model, objective, optax.adamw(fading(rate, steps), weight_decay=decay))


def spherical(
    rate: Scalar,
    temperature: Scalar,
    *,
    part: Planted,
    steps: int,
    n_facets: int,
    theta_rate: float = 0.03,
    facet_weight: float = 0.0,
    start: Mapping[str, Array] | None = None,
) -> jr.train.Recipe:
    """MARS under the full softmax and Riemannian Adam."""
    model = MARS(part.train.n_users, part.train.n_items, dim=K * D // n_facets, n_facets=n_facets, theta_scale=0.0)
    loss = partial(jr.losses.mine, temperature=temperature)
    objective = partial(jr.train.rows_objective, model=model, loss=loss)
    if facet_weight:
        apart = partial(apart_objective, model=model)
        objective = partial(jr.train.combined_objective, parts=((1.0, objective), (facet_weight, apart)))
    facets = riemannian.riemannian_adam(fading(rate, steps), calibrated=False)
    rules = {"theta": optax.adam(fading(theta_rate, steps)), "facets": facets}
    tx = optax.partition(rules, lambda params: {name: "theta" if name == "theta" else "facets" for name in params})
    return jr.train.Recipe(model, objective, tx, parameters=start)


def apart_objective(variables: Any, key: Array, batch: jr.train.Batch, *, model: Any) -> Array:
    """`separation` of the batch's users and the first of their positives."""
    _, u, v = model.apply(variables, batch.users, batch.items[:, 0], method="parts")
    return mars.separation(u, v, score=model.score, where=batch.where[:, 0])


def own_loss(rate: Scalar, *, part: Planted, steps: int, margin: Array) -> jr.train.Recipe:
    """The preset DEFAULT; `steps` has no meaning, as its rates are fixed."""
    model = MARS(part.train.n_users, part.train.n_items, dim=D, **mars.DEFAULT["model"] | {"n_facets": K})
    sample = partial(jr.sampling.uniform, n_items=part.train.n_items, n=4)
    objective = partial(mars.objective, model=model, sample=sample, margin=margin, **mars.DEFAULT["objective"])
    tx = mars.optimizer(rate, theta_learning_rate=rate / 50, step=mars.DEFAULT["optimizer"]["step"])
    return jr.train.Recipe(model, objective, tx)


class Method(NamedTuple):
    """How a model is made, its grid, how `fit` deals the pairs, and its share of the epochs."""

    setup: Setup
    grid: Mapping[str, tuple[float, ...]]
    feed: Mapping[str, Any] = {"batch_size": 100, "group": 32}
    share: float = 1.0
    needs: Callable[[Planted, int], Mapping[str, Any]] = lambda part, seed: {}


def from_nmf(part: Planted, seed: int) -> dict[str, Any]:
    """Start at the shares of a non-negative factorisation."""
    tables = factors(part, seed)
    return {"start": mars_start(jax.random.key(seed), tables["user"], tables["item"], dim=D)}


def factors(part: Planted, seed: int) -> dict[str, Array]:
    """Tables of a non-negative factorisation of train into K."""
    return jr.models.mf.nmf(part.train, dim=K, key=jax.random.key(seed))["params"]


mars_start = jr.models.mars.from_shares
FLAT = {"rate": (0.01, 0.03), "decay": (0.1, 0.3, 1.0)}
ROUND = {"rate": (0.1, 0.3), "temperature": (0.3, 0.6)}
_single, _facets = partial(single, dim=K * D), partial(spherical, n_facets=K)
METHODS = {
    "MF softmax": Method(partial(_single, loss=jr.losses.mine), FLAT),
    "MF BPR": Method(partial(_single, loss=jr.losses.bpr), FLAT),
    "MF squared distance": Method(
        partial(_single, loss=jr.losses.mine, score=jr.models.negative_squared_distance), FLAT
    ),
    "MF softmax, 9 dimensions": Method(partial(single, dim=9, loss=jr.losses.mine), FLAT),
    "MARS, K = 1": Method(partial(spherical, n_facets=1), ROUND),
    "MARS": Method(_facets, ROUND),
    "MARS, θ fixed": Method(partial(_facets, theta_rate=0.0), ROUND),
    "MARS, facets apart": Method(partial(_facets, facet_weight=0.1), ROUND),
    "MARS from NMF": Method(_facets, ROUND, needs=from_nmf),
    "MARS, its own loss": Method(
        own_loss,
        {"rate": (0.04, 0.2)},
        {"batch_size": 1000},
        0.5,
        lambda part, seed: {"margin": mars.adaptive_margin(part.train)},
    ),
}
SINGLE = [name for name in METHODS if name.startswith("MF") or name.endswith("K = 1")]
FEW = {"spaces": ["MF softmax", "MARS"], "clusters": ["MF softmax", "MARS from NMF"]}  # of the quick run
WANTED = {
    "spaces": [name for name in METHODS if name != "MARS from NMF"],
    "clusters": ["MF softmax", "MARS, K = 1", "MARS", "MARS from NMF"],
}


# ---------------------------------------------------------------------- agreement


def matched(truth: np.ndarray, found: np.ndarray) -> float:
    """Share of equal labels under the best one-to-one matching of labels."""
    table = np.zeros((K, K))
    np.add.at(table, (truth, found), 1)
    return float(table[linear_sum_assignment(-table)].sum() / len(truth))


def agreement(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """`matched`, and the mean of the same for shuffled labels."""
    rng = np.random.default_rng(0)
    shuffled = [matched(truth, rng.permutation(found)) for _ in range(100)]
    return {"matched": matched(truth, found), "chance": float(np.mean(shuffled))}


def facets_of_items(theta: np.ndarray, u: np.ndarray, v: np.ndarray, train: jr.Interactions) -> np.ndarray:
    """For each item the facet k where the mean of θ_uk u^k·v^k over its users is most above that over all users."""
    weighted, met = theta[..., None] * u, train.to_scipy().T
    count = np.maximum(train.item_degrees, 1)[:, None]
    above = np.stack([met @ weighted[:, k] / count - weighted[:, k].mean(0) for k in range(theta.shape[1])], 1)
    return (above * v).sum(-1).argmax(1)


def facets_found(part: Planted, model: Any, variables: Any) -> dict[str, dict[str, float]]:
    """Agreement of users, and of items where they have a facet."""
    theta, u, v = (np.asarray(x) for x in model.apply(variables, None, None, method="parts"))
    found = {"users": agreement(part.truth.user_mixtures.argmax(1), theta.argmax(1))}
    if hasattr(part.truth, "item_facets"):
        found["items"] = agreement(part.truth.item_facets, facets_of_items(theta, u, v, part.train))
    return found


# ---------------------------------------------------------------------- runs


def judged(part: Planted, model: Any, variables: Any, on: str = "test") -> float:
    """NDCG@10 on test, or on validation."""
    seen, tie = part.train, jax.random.key(0)
    if on == "test":
        seen = jr.Interactions.from_scipy(part.train.to_scipy() + part.valid.to_scipy())
    return jr.evaluate.full_ranking(model, variables, seen, getattr(part, on), ks=(10,), key=tie).means["ndcg@10"]


def runs_of(data: str, name: str, parts: list[Planted], epochs: int, short: bool) -> list[dict[str, Any]]:
    """The grid on seed 0, the chosen setting on the others."""
    method = METHODS[name]
    epochs = max(int(epochs * method.share), 1)
    feed = {"epochs": epochs, "every": max(epochs // 20, 1), "progress": False, **method.feed}
    setups = [
        partial(method.setup, part=part, steps=n_steps(part, feed), **method.needs(part, seed))
        for seed, part in enumerate(parts)
    ]
    values = {key: column[-1:] if short else column for key, column in method.grid.items()}
    first, setting = chosen(parts[0], setups[0], jr.train.grid(**values), feed)
    model, _, tx, *_ = setups[0](**setting)  # one for all seeds, so that one compilation serves them
    runs = [first, *(again(part, setups[seed](**setting), tx, seed, feed) for seed, part in enumerate(parts[1:], 1))]
    for seed, (run, part) in enumerate(zip(runs, parts)):
        variables = run.pop("variables")
        run |= {"seed": seed, "setting": setting, "test": judged(part, model, variables)}
        run |= facets_found(part, model, variables) if getattr(model, "n_facets", 1) > 1 else {}
        print(f"{data}, {name}: {run}", flush=True)
    return runs


def chosen(part: Planted, setup: Setup, settings: Mapping[str, Any], feed: Mapping[str, Any]) -> tuple[dict, dict]:
    """The run that is best on validation, and its setting."""
    model = setup(**{key: column[0] for key, column in settings.items()}).model
    rest = {"validate": partial(validation, part, model), "select": "ndcg@10", "at_once": 1, **feed}
    found = jr.train.sweep(jax.random.split(jax.random.key(0), 1), setup, part.train, settings=settings, **rest)
    place = found.best("ndcg@10")
    lane = found.lanes[place]
    run = {"epoch": lane.epoch, "valid": lane.figures["ndcg@10"], "variables": found.state(place).variables}
    return run, {key: float(value) for key, value in lane.setting.items()}


def again(part: Planted, recipe: jr.train.Recipe, tx: Any, seed: int, feed: Mapping[str, Any]) -> dict[str, Any]:
    """A run of one setting, up to its best epoch."""
    state = jr.train.init(jax.random.key(seed), recipe.model, tx, parameters=recipe.parameters)
    rest = {"validate": partial(validation, part, recipe.model), **feed}
    rest["stopping"] = jr.train.EarlyStopping("ndcg@10", patience=feed["epochs"])
    state, history = jr.train.fit(state, recipe.objective, tx, part.train, **rest)
    best = max(zip(*reversed(history.column("ndcg@10"))))
    return {"epoch": best[1], "valid": best[0], "variables": state.variables}


def n_steps(part: Planted, feed: Mapping[str, Any]) -> int:
    """Of a run."""
    group = feed.get("group")
    examples = part.train.n_pairs if group is None else int(np.ceil(part.train.user_degrees / group).sum())
    return feed["epochs"] * -(-examples // feed["batch_size"])


def validation(part: Planted, model: Any, variables: Any) -> dict[str, float]:
    """What validation sees."""
    return {"ndcg@10": judged(part, model, variables, "valid")}


def untrained(parts: list[Planted], data: str) -> dict[str, list[dict[str, Any]]]:
    """The rankers that learn nothing, the one that knows the truth, and for clusters the factorisation alone."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed, part in enumerate(parts):
        n_items = part.train.n_items
        rankers = {
            "random": jr.models.random(jax.random.key(seed), n_items),
            "item id": jr.models.item_id(n_items),
            "popularity": jr.models.popularity(part.train),
            "the planted truth": part.oracle,
        }
        for name, ranker in rankers.items():
            rows.setdefault(name, []).append({"test": judged(part, *ranker)})
        if data == "clusters":
            tables = factors(part, seed)
            model, variables = MF(part.train.n_users, n_items, dim=K), {"params": tables}
            labels = [np.asarray(tables[name]).argmax(1) for name in ("user", "item")]
            truth = part.truth.user_mixtures.argmax(1), part.truth.item_facets
            found = {"users": agreement(truth[0], labels[0]), "items": agreement(truth[1], labels[1])}
            found["test"] = judged(part, model, variables)
            rows.setdefault("NMF, K dimensions", []).append(found)
    return rows


def spread(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard error over seeds."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def case_of(runs: list[dict[str, Any]], best: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and the difference from the best single space, paired by seed."""
    case: dict[str, Any] = dict(zip(("metric", "stderr"), spread([run["test"] for run in runs])))
    differences = spread([run["test"] - other["test"] for run, other in zip(runs, best)])
    case |= dict(zip(("difference", "difference_stderr"), differences))
    for side in ("users", "items"):
        if side in runs[0]:
            for name in ("matched", "chance"):
                case[f"{side}_{name}"], case[f"{side}_{name}_stderr"] = spread([run[side][name] for run in runs])
    if "setting" in runs[0]:
        case |= {"setting": runs[0]["setting"], "epochs": [run["epoch"] for run in runs]}
        case["valid"] = spread([run["valid"] for run in runs])[0]
    return case | {"seeds": len(runs)}


def main() -> None:
    """Trains all, and writes the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.facets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=list(SETS), default=list(SETS), help="kinds of planted sets")
    parser.add_argument("--seeds", type=int, default=5, help="sets of each kind")
    parser.add_argument("--quick", action="store_true", help="the same code: one small set, few epochs, no grids")
    options = parser.parse_args()
    cases, fingerprints, single_best = {}, {}, {}
    for data in options.data:
        size, seeds = (QUICK, 1) if options.quick else (SIZE, options.seeds)
        parts = [planted(data, seed, size) for seed in range(seeds)]
        epochs = 5 if options.quick else EPOCHS[data]
        rows = {
            name: runs_of(data, name, parts, epochs, options.quick) for name in (FEW if options.quick else WANTED)[data]
        }
        best = max((name for name in rows if name in SINGLE), key=lambda name: np.mean([r["test"] for r in rows[name]]))
        single_best[data] = best
        rows = untrained(parts, data) | rows
        cases |= {f"{data}: {name}": case_of(runs, rows[best]) for name, runs in rows.items()}
        fingerprints |= {f"{data} {seed}": part.train.fingerprint() for seed, part in enumerate(parts)}
    facts = {"epochs": EPOCHS, "size": SIZE, "facets": K, "dim": D, "single_best": single_best}
    _record.write("facets", cases, quick=options.quick, data=fingerprints, **facts)


if __name__ == "__main__":
    main()
