"""The planted sets and the models that the study of facets compares, with the grids of their hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxrec as jr
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
    model = MARS(part.train.n_users, part.train.n_items, dim=D, **jr.papers.mars.DEFAULT["model"] | {"n_facets": K})
    sample = partial(jr.sampling.uniform, n_items=part.train.n_items, n=4)
    objective = partial(
        mars.objective, model=model, sample=sample, margin=margin, **jr.papers.mars.DEFAULT["objective"]
    )
    tx = mars.optimizer(rate, theta_learning_rate=rate / 50, step=jr.papers.mars.DEFAULT["optimizer"]["step"])
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


def n_steps(part: Planted, feed: Mapping[str, Any]) -> int:
    """Of a run."""
    group = feed.get("group")
    examples = part.train.n_pairs if group is None else int(np.ceil(part.train.user_degrees / group).sum())
    return feed["epochs"] * -(-examples // feed["batch_size"])
