"""Does MARS find planted facets, and is it better than a model with one space of the same size?

There are two kinds of planted sets (`jaxrec.data.synthetic`), with 500 users and 100 items, drawn
separately for each seed. In "spaces", every item has a place on each of 3 spheres, and users mix
spheres. In "clusters", every item belongs to one of 3 facets. A model has 18 dimensions, in 3
facets or in one space, unless the row says 9, which is as many as were planted. Each user's pairs
are split at random into train, validation and test (.8/.1/.1). Validation chooses the setting with
seed 0 and the epoch of each run, by NDCG@10 of the full ranking. On test, train and validation
pairs are masked, and ties are broken at random. All models are trained for the same number of
epochs, with the same decay of their learning rates, except for MARS with its own loss, which takes
single positives and is trained for fewer epochs of more steps. The other rows of MARS have the full
softmax and Riemannian Adam, with one facet (K = 1) too; "facets apart" adds `separation`.

Differences are paired by seed. The single space in the comparison is the best on test of those with
18 dimensions. Agreement is the share of users (items) whose facet is the planted one, with the best
one-to-one matching of facets; the value in brackets is that of shuffled labels. The planted facet
of a user is the largest of its mixture; the facet of the model is the largest of θ. The facet of an
item is the one in which its users score it most above the average of all users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from scipy.optimize import linear_sum_assignment

import jaxrec as jr
from benchmarks.studies._command import main
from benchmarks.studies._plots import stderr
from benchmarks.studies._results import less, mean_of
from benchmarks.studies._study import Study, swept
from jaxrec import study
from jaxrec.data import splits, synthetic
from jaxrec.models import MARS, MF
from jaxrec.optim import riemannian
from jaxrec.train import mars
from jaxrec.typing import Array, Scalar

K, D = 3, 6  # number of facets, and dimensions of a learned facet; a single space has K D
SIZE, SMALL = {"n_users": 500, "n_items": 100}, {"n_users": 200, "n_items": 60}
METRIC, EPOCHS = "ndcg@10", {"spaces": 150, "clusters": 100}
SETS = {
    "spaces": partial(synthetic.facet_spaces, n_facets=K, dim=3, pairs_per_user=38),
    "clusters": partial(synthetic.facets, n_facets=K, pairs_per_user=20),
}


class Planted(NamedTuple):
    """The split of a seed, the planted truth, and the ranker that knows it."""

    train: jr.Interactions
    valid: jr.Interactions
    test: jr.Interactions
    truth: Any
    oracle: tuple[Any, Any]


@lru_cache(maxsize=8)
def planted(data: str, seed: int, small: bool = False) -> Planted:
    """Draws a data set and splits it."""
    size = SMALL if small else SIZE
    whole, truth = SETS[data](jax.random.key(seed), **size)
    parts = splits.ratio(whole, order=partial(splits.random_order, key=jax.random.key(1000 + seed)))
    if data == "clusters":
        oracle = jr.evaluate.scorer(lambda odds, users: odds[users]), truth.user_mixtures[:, truth.item_facets]
    else:
        tables = {"theta": np.log(truth.user_mixtures + 1e-9), "user": truth.users, "item": truth.items}
        oracle = MARS(**size, dim=truth.users.shape[2], n_facets=K), {"params": tables}
    return Planted(*parts, truth, oracle)


# ---------------------------------------------------------------------- agreement


def matched(truth: np.ndarray, found: np.ndarray) -> float:
    """Returns the share of equal labels with the best one-to-one matching of labels."""
    table = np.zeros((K, K))
    np.add.at(table, (truth, found), 1)
    return float(table[linear_sum_assignment(-table)].sum() / len(truth))


def agreement(side: str, truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Returns `matched` for "users" or "items", and its mean for shuffled labels."""
    rng = np.random.default_rng(0)
    shuffled = [matched(truth, rng.permutation(found)) for _ in range(100)]
    return {f"{side} matched": matched(truth, found), f"{side} chance": float(np.mean(shuffled))}


def facets_of_items(theta: np.ndarray, u: np.ndarray, v: np.ndarray, train: jr.Interactions) -> np.ndarray:
    """Returns the facet k of each item.

    It is the one for which the mean of θ_uk u^k·v^k over the item's users exceeds that over all
    users most.
    """
    weighted, met = theta[..., None] * u, train.to_scipy().T
    count = np.maximum(train.item_degrees, 1)[:, None]
    above = np.stack([met @ weighted[:, k] / count - weighted[:, k].mean(0) for k in range(theta.shape[1])], 1)
    return (above * v).sum(-1).argmax(1)


class Shares(NamedTuple):
    """A non-negative factorisation whose dimensions are facets."""

    model: MF


def judged(model: Any, variables: Any, train: Any, held_out: Any) -> dict[str, float]:
    """Returns NDCG@10 of the full ranking, with `train` masked."""
    means = jr.evaluate.full_ranking(model, variables, train, held_out, ks=(10,), key=jax.random.key(0)).means
    return {METRIC: means[METRIC]}


def evaluate(model: Any, variables: Any, part: Planted, on: str) -> dict[str, float]:
    """Returns NDCG@10, and for facets on test their agreement with the planted ones."""
    inner = model.model if isinstance(model, Shares) else model
    if on == "valid":
        return judged(inner, variables, part.train, part.valid)
    found = judged(inner, variables, part.train.union(part.valid), part.test)
    if isinstance(model, Shares):
        users, items = (np.asarray(variables["params"][side]).argmax(1) for side in ("user", "item"))
    elif getattr(model, "n_facets", 1) > 1 and variables is not part.oracle[1]:
        theta, u, v = (np.asarray(x) for x in model.apply(variables, None, None, method="parts"))
        users, items = theta.argmax(1), facets_of_items(theta, u, v, part.train)
    else:
        return found
    found |= agreement("users", part.truth.user_mixtures.argmax(1), users)
    has_facets = hasattr(part.truth, "item_facets")
    return found | (agreement("items", part.truth.item_facets, items) if has_facets else {})


# ---------------------------------------------------------------------- models

Setup = Callable[..., jr.train.Recipe]


def fading(rate: Scalar, steps: int) -> Callable[[Array], Array]:
    """Returns a schedule that halves a learning rate in each quarter of the run."""
    return optax.exponential_decay(rate, steps / 4, 0.5)


def single(
    rate: Scalar, decay: Scalar, *, train: jr.Interactions, steps: int, dim: int, loss: Any, score: Any = jr.models.dot
) -> jr.train.Recipe:
    """Trains one vector for each user and item, with a loss over all items."""
    model = MF(train.n_users, train.n_items, dim=dim, score=score, scale=0.1)
    objective = partial(jr.train.rows_objective, model=model, loss=loss)
    return jr.train.Recipe(model, objective, optax.adamw(fading(rate, steps), weight_decay=decay))


def spherical(
    rate: Scalar,
    temperature: Scalar,
    *,
    train: jr.Interactions,
    steps: int,
    n_facets: int,
    theta_rate: float = 0.03,
    facet_weight: float = 0.0,
    start: Mapping[str, Array] | None = None,
) -> jr.train.Recipe:
    """Trains MARS with the full softmax and Riemannian Adam."""
    model = MARS(train.n_users, train.n_items, dim=K * D // n_facets, n_facets=n_facets, theta_scale=0.0)
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
    """Computes `separation` of the batch's users and the first of their positives."""
    _, u, v = model.apply(variables, batch.users[:, 0], batch.items[:, 0], method="parts")
    return mars.separation(u, v, score=model.score, where=batch.where[:, 0])


def own_loss(rate: Scalar, *, train: jr.Interactions, steps: int, margin: Array) -> jr.train.Recipe:
    """Trains MARS with the preset DEFAULT; learning rates are constant, and `steps` is unused."""
    model = MARS(train.n_users, train.n_items, dim=D, **jr.papers.mars.DEFAULT["model"] | {"n_facets": K})
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=4)
    objective = partial(
        mars.objective, model=model, sample=sample, margin=margin, **jr.papers.mars.DEFAULT["objective"]
    )
    tx = mars.optimizer(rate, theta_learning_rate=rate / 50, step=jr.papers.mars.DEFAULT["optimizer"]["step"])
    return jr.train.Recipe(model, objective, tx)


class Kind(NamedTuple):
    """A method.

    Attributes:
        setup: function of a setting that returns a `Recipe`.
        grid: the settings to choose from.
        feed: batch size and examples for `train.sweep`.
        share: its number of epochs, as a fraction of the usual number.
        needs: function of the positives and a key that returns further arguments of `setup`.
    """

    setup: Setup
    grid: Mapping[str, tuple[float, ...]]
    feed: Mapping[str, Any] = {"batch_size": 100, "examples": partial(jr.train.groups, n=32)}
    share: float = 1.0
    needs: Callable[[jr.Interactions, Array], Mapping[str, Any]] = lambda train, key: {}


def factors(train: jr.Interactions, key: Array) -> dict[str, Array]:
    """Returns the tables of a non-negative factorisation with K dimensions."""
    return jr.solvers.nmf.fit(train, dim=K, key=key)[1]["params"]


def from_nmf(train: jr.Interactions, key: Array) -> dict[str, Any]:
    """Returns initial parameters from a non-negative factorisation."""
    tables = factors(train, key)
    return {"start": jr.models.mars.from_shares(key, tables["user"], tables["item"], dim=D)}


FLAT = {"rate": (0.01, 0.03), "decay": (0.1, 0.3, 1.0)}
ROUND = {"rate": (0.1, 0.3), "temperature": (0.3, 0.6)}
_single, _facets = partial(single, dim=K * D), partial(spherical, n_facets=K)
KINDS = {
    "MF softmax": Kind(partial(_single, loss=jr.losses.mine), FLAT),
    "MF BPR": Kind(partial(_single, loss=jr.losses.bpr), FLAT),
    "MF squared distance": Kind(partial(_single, loss=jr.losses.mine, score=jr.models.negative_squared_distance), FLAT),
    "MF softmax, 9 dimensions": Kind(partial(single, dim=9, loss=jr.losses.mine), FLAT),
    "MARS, K = 1": Kind(partial(spherical, n_facets=1), ROUND),
    "MARS": Kind(_facets, ROUND),
    "MARS, θ fixed": Kind(partial(_facets, theta_rate=0.0), ROUND),
    "MARS, facets apart": Kind(partial(_facets, facet_weight=0.1), ROUND),
    "MARS from NMF": Kind(_facets, ROUND, needs=from_nmf),
    "MARS, its own loss": Kind(
        own_loss,
        {"rate": (0.04, 0.2)},
        {"batch_size": 1000},
        0.5,
        lambda train, key: {"margin": mars.adaptive_margin(train)},
    ),
}


WANTED = {
    "spaces": [name for name in KINDS if name != "MARS from NMF"],
    "clusters": ["MF softmax", "MARS, K = 1", "MARS", "MARS from NMF"],
}
NARROW = "MF softmax, 9 dimensions"  # as many dimensions as were planted
SINGLE = [name for name in KINDS if (name.startswith("MF") or name.endswith("K = 1")) and name != NARROW]


def trained(
    kind: Kind, epochs: int, train: Any, valid: Any, key: Array, settings: Sequence[Mapping[str, float]]
) -> list[Any]:
    """Trains all settings in one sweep."""
    epochs = max(int(epochs * kind.share), 1)
    steps = epochs * -(-kind.feed.get("examples", jr.train.singles)(train).n // kind.feed["batch_size"])
    setup = partial(kind.setup, train=train, steps=steps, **kind.needs(train, key))
    model = setup(**settings[0]).model
    options = {"epochs": epochs, "every": max(epochs // 20, 1), "select": METRIC, "at_once": 1, **kind.feed}
    validate = lambda variables: judged(model, variables, train, valid)  # noqa: E731
    return swept(model, setup, train, key, settings, validate=validate, **options)


def methods(data: str, epochs: int | None = None) -> list[study.Method]:
    """Returns the ranker that knows the truth, for clusters also NMF, and the trained methods."""
    truth = lambda train, valid, key: (*planted(data, int(jax.random.key_data(key)[-1])).oracle, None)  # noqa: E731
    found = [study.Method("the planted truth", truth)]
    if data == "clusters":
        shares = lambda train: Shares(MF(train.n_users, train.n_items, dim=K))  # noqa: E731
        alone = lambda train, valid, key: (shares(train), {"params": factors(train, key)}, None)  # noqa: E731
        found.append(study.Method("NMF, K dimensions", alone))
    for name in WANTED[data]:
        fit_all = partial(trained, KINDS[name], epochs or EPOCHS[data])
        found.append(study.Method(name, grid=KINDS[name].grid, fit_all=fit_all))
    return found


# ---------------------------------------------------------------------- tables


def agreed(row: study.Row, side: str) -> str:
    """Returns the agreement of users or items, with its standard error and its chance level."""
    if f"{side} matched" not in row.values:
        return ""
    values, chance = (row.values[f"{side} {name}"] for name in ("matched", "chance"))
    return f"{values.mean():.2f} ± {stderr(values):.2f} ({chance.mean():.2f})"


def columns(data: str, rows: Mapping[str, study.Row]) -> dict[str, list[str]]:
    """Returns the columns for differences from single spaces and for agreement."""
    best = max((name for name in rows if name in SINGLE), key=lambda name: rows[name].values[METRIC].mean())
    cells = {}
    for title, other in ((f"minus {best}", best), ("minus 9 dimensions", NARROW)):
        if other in rows:
            differences = {name: less(row, rows[other], METRIC) for name, row in rows.items()}
            cells[title] = ["" if name == other else mean_of(d, sign="+") for name, d in differences.items()]
    for side in ("users", "items"):
        cells[f"agreement of {side}"] = [agreed(row, side) for row in rows.values()]
    return cells


def quick() -> tuple[list[study.Method], dict[str, Any]]:
    """Returns the shortened run: a small data set, two models, few epochs, no grids."""
    few = [each for each in methods("spaces", epochs=5) if each.name in ("MF softmax", "MARS")]
    last = [each._replace(grid={name: values[-1:] for name, values in each.grid.items()}) for each in few]
    return last, {"spaces": partial(planted, "spaces", small=True)}


STUDY = Study(
    name="facets",
    title="Planted facets",
    about=__doc__,
    methods={data: partial(methods, data) for data in SETS},
    split=lambda data: partial(planted, data),
    evaluate=evaluate,
    metric=lambda data: METRIC,
    shown=lambda data: [METRIC],
    quick=quick,
    seeds=(0, 1, 2, 3, 4),
    claims=[
        *(("MARS", other) for other in ("MF BPR", "MF softmax", NARROW, "MARS, θ fixed", "MARS, its own loss")),
        ("MARS, facets apart", "MARS"),
        *(("MARS from NMF", other) for other in ("MARS", "MF softmax", "NMF, K dimensions")),
    ],
    columns=columns,
)

if __name__ == "__main__":
    main(STUDY)
