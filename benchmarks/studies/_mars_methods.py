"""The methods that `benchmarks.studies.mars` compares: how each is trained, and the grid of its hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxrec as jr
from jaxrec.optim import riemannian, rowwise
from jaxrec.train import mars

DIM, BATCH = 128, 1000
PASSES = 100  # epochs of the released code, each of 100 triples a user


class Recipe(NamedTuple):
    """What `train.init` and `train.fit` need; `every` so many epochs validation looks, at most `epochs` are trained.

    The epochs are those of Ciao, other sets having as many steps, unless they are fixed.
    """

    model: Any
    objective: jr.typing.Objective | None  # None: `parameters` are the variables
    tx: Any
    parameters: Mapping[str, Any] = {}
    batch_size: int = BATCH
    group: int | None = None
    epochs: int = 150
    every: int = 5
    fixed: bool = False


class Method(NamedTuple):
    """How a recipe is made of train and a setting, and the settings to compare on validation.

    `resplit` is what else holds where the split is not the published one of Ciao or Delicious.
    """

    make: Callable[..., Recipe]
    grid: Mapping[str, tuple[Any, ...]]
    resplit: Mapping[str, Any] = {}


def negatives(train: jr.Interactions, power: float, n: int = 1) -> jr.typing.Sampler:
    """Items that the user has not, in proportion to their popularity to a power."""
    draw = partial(jr.sampling.popularity, table=jr.sampling.popularity_table(train, power=power), n=n)
    return partial(jr.sampling.reject_seen, sample=draw, seen=train)


def distances(train: jr.Interactions) -> jr.models.MF:
    """One vector each; the score is minus the squared distance."""
    scale, score = DIM**-0.5, jr.models.negative_squared_distance
    return jr.models.MF(train.n_users, train.n_items, dim=DIM, scale=scale, score=score)


def adagrad(rate: float) -> optax.GradientTransformation:
    """Adagrad as for sums over a batch, where its accumulator starts at .1; objectives here are means."""
    return optax.adagrad(rate, initial_accumulator_value=0.1 / BATCH**2, eps=1e-10)


def in_ball(rate: float) -> rowwise.TouchedOnly:
    """Adagrad on touched rows, kept in the unit ball."""
    return rowwise.touched_only(optax.chain(adagrad(rate), riemannian.project_to_ball()))


# ---------------------------------------------------------------------- baselines


def bpr(train: jr.Interactions, *, power: float, l2: float) -> Recipe:
    """Matrix factorisation."""
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM, scale=0.1)
    sample = negatives(train, power)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    return Recipe(model, objective, rowwise.touched_only(optax.chain(optax.add_decayed_weights(l2), optax.adam(1e-3))))


def nmf(train: jr.Interactions, *, dim: int) -> Recipe:
    """Solved, not trained."""
    model = jr.models.MF(train.n_users, train.n_items, dim=dim)
    return Recipe(model, None, None, jr.models.mf.nmf(train, dim=dim, key=jax.random.key(0)))


def neumf(train: jr.Interactions, *, power: float, learning_rate: float = 1e-3) -> Recipe:
    """Four negatives a positive, as its paper."""
    model = jr.models.NeuMF(train.n_users, train.n_items)
    loss, sample = partial(jr.losses.bce, negatives="sum"), negatives(train, power, n=4)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    return Recipe(model, objective, rowwise.touched_only(optax.adam(learning_rate)))


def cml(
    train: jr.Interactions, *, power: float, margin: float, learning_rate: float, covariance: float = 0.0
) -> Recipe:
    """The weight by estimated rank, over five negatives; covariance on request."""
    model = distances(train)
    loss = partial(jr.losses.warp, margin=margin, n_items=train.n_items)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=negatives(train, power, n=5))
    if covariance:
        parts = ((1.0, objective), (covariance, jr.train.covariance_objective))
        objective = partial(jr.train.combined_objective, parts=parts)
    return Recipe(model, objective, in_ball(learning_rate))


def metricf(train: jr.Interactions, *, power: float, margin: float) -> Recipe:
    """Four negatives a positive, summed."""
    model = distances(train)
    loss = partial(jr.losses.on_scores, loss=partial(jr.losses.metricf, margin=margin, negatives="sum"))
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=negatives(train, power, n=4))
    return Recipe(model, objective, in_ball(0.1))


def transcf(train: jr.Interactions, *, power: float, learning_rate: float = 3e-3) -> Recipe:
    """Hinge, the positives' distance, and the neighbourhood; large batches, as a step averages the whole graph."""
    model = jr.models.TransCF(train, dim=DIM, scale=0.1)
    objective = partial(
        jr.train.translation_objective,
        model=model,
        loss=jr.losses.hinge,
        sample=negatives(train, power),
        distance_weight=0.1,
        neighbourhood_weight=0.1,
    )
    tx = optax.chain(optax.adam(learning_rate), riemannian.project_to_ball())
    return Recipe(model, objective, tx, batch_size=5 * BATCH)


def lrml(train: jr.Interactions, *, power: float, margin: float = 1.0) -> Recipe:
    """Twenty slots of memory; the positive's relation serves its negative."""
    model = jr.models.LRML(train.n_users, train.n_items, dim=DIM)
    loss = partial(jr.losses.hinge, margin=margin)
    objective = partial(jr.train.relation_objective, model=model, loss=loss, sample=negatives(train, power))
    vectors, memory = in_ball_adam(1e-3), optax.adam(1e-3)
    labels = {"user": "vectors", "item": "vectors", "keys": "memory", "memory": "memory"}
    return Recipe(
        model, objective, rowwise.touched_only(optax.partition({"vectors": vectors, "memory": memory}, labels))
    )


def in_ball_adam(rate: float) -> optax.GradientTransformation:
    """Adam, kept in the unit ball."""
    return optax.chain(optax.adam(rate), riemannian.project_to_ball())


def sml(train: jr.Interactions, *, power: float, learning_rate: float) -> Recipe:
    """Margins learnt in [0, 1]; γ is the released code's 10, divided by the batch as it has it."""
    loss = partial(jr.losses.sml, margin_weight=10 / BATCH)
    objective = partial(jr.train.sml_objective, sample=negatives(train, power), loss=loss)
    clip = optax.stateless_with_tree_map(lambda update, x: jnp.clip(x + update, 0, 1) - x)
    rules = {
        "vectors": optax.chain(adagrad(learning_rate), riemannian.project_to_ball()),
        "margins": optax.chain(adagrad(learning_rate), clip),
    }
    margins = {"user_margin": jnp.ones(train.n_users), "item_margin": jnp.ones(train.n_items)}
    labels = {"user": "vectors", "item": "vectors"} | dict.fromkeys(margins, "margins")
    return Recipe(distances(train), objective, rowwise.touched_only(optax.partition(rules, labels)), margins)


# ---------------------------------------------------------------------- facets


def facets(
    train: jr.Interactions,
    *,
    kind: type[jr.models.MARS] = jr.models.MARS,
    preset: Mapping[str, Mapping[str, Any]] = jr.papers.mars.RELEASED,
    power: float | None = None,
    dim: int = DIM,
    n_facets: int | None = None,
    rate: float = 1.0,
    pull_weight: float | None = None,
    facet_weight: float | None = None,
) -> Recipe:
    """MARS or MAR by a preset, whose values stand where nothing else is given; `rate` multiplies its rates."""
    model_options, objective_options = dict(preset["model"]), dict(preset["objective"])
    for options, name, value in (
        (model_options, "n_facets", n_facets),
        (objective_options, "pull_weight", pull_weight),
        (objective_options, "facet_weight", facet_weight),
    ):
        options |= {} if value is None else {name: value}
    model = kind(train.n_users, train.n_items, dim=dim, **model_options)
    powers = {**preset["power"], **({} if power is None else {"items": power})}
    objective = partial(
        mars.objective,
        model=model,
        margin=mars.adaptive_margin(train, **preset["margin"]),
        **jr.papers.mars.samplers(train, **powers),
        **objective_options,
    )
    optimizer = dict(preset["optimizer"])
    if kind is jr.models.MAR:
        optimizer["step"] = mars.ball_sgd
    for name in ("learning_rate", "theta_learning_rate"):
        optimizer[name] *= rate
    epochs = -(-100 * PASSES * train.n_users // train.n_pairs)
    tx = rowwise.touched_only(mars.optimizer(**optimizer))
    return Recipe(model, objective, tx, epochs=epochs, every=max(epochs // 20, 1), fixed=True)


def composed(
    train: jr.Interactions,
    *,
    n_facets: int,
    dim: int,
    temperature: float,
    learning_rate: float = 0.03,
    theta_learning_rate: float = 0.0,
    shared: int = 1024,
) -> Recipe:
    """Facets on spheres trained by a softmax over shared negatives, with row-wise Riemannian Adam."""
    model = jr.models.MARS(train.n_users, train.n_items, dim=dim, n_facets=n_facets, theta_scale=0.0)
    draw = partial(jr.sampling.uniform, n_items=train.n_items, n=shared)
    loss = partial(jr.losses.bsl, temperature=temperature)
    sample = partial(jr.sampling.shared, sample=draw)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    step = partial(riemannian.riemannian_adam, calibrated=False)
    tx = mars.optimizer(learning_rate, theta_learning_rate=theta_learning_rate, step=step)
    return Recipe(model, objective, rowwise.touched_only(tx), batch_size=256, group=16, every=10)


# The paper's objective, margins, negatives and step, on free facets. The paper's own facets are projections of one
# vector (its equations 1 and 2), so that this is not the paper's model. It is spelt out here because the records of its
# rows were made by it, whatever `paper.PAPER` says.
FREE = {
    "model": {"n_facets": 4, "theta_scale": 0.0, "facets": jr.models.mars.free},
    "objective": {
        "ranking": mars.push_and_pull,
        "separate": partial(mars.separation, reduction="sum"),
        "pull_weight": 0.1,
        "facet_weight": 0.01,
    },
    "margin": {"count": "union"},
    "power": {"users": 0.8, "items": 0.0},
    "optimizer": {"learning_rate": 0.01, "theta_learning_rate": 0.01, "step": riemannian.riemannian_sgd},
}
ANY, HALF, WARM = {"power": (0.0, 0.75)}, {"dim": DIM // 2}, {"temperature": (0.1, 0.2)}
UNIFORM = {"power": 0.0}  # on random splits, where uniform negatives were BPR's better ones on validation
METHODS = {
    "BPR": Method(bpr, ANY | {"l2": (1e-5, 1e-4, 1e-3)}),
    "NMF": Method(nmf, {"dim": (4, 16, 64)}),
    "NeuMF": Method(neumf, ANY, UNIFORM),
    "CML": Method(cml, ANY | {"margin": (0.5,), "learning_rate": (0.1, 0.3, 1.0)}, UNIFORM),
    "MetricF": Method(metricf, ANY | {"margin": (0.6, 1.5)}, UNIFORM),
    "TransCF": Method(transcf, ANY, UNIFORM),
    "LRML": Method(lrml, ANY, UNIFORM),
    "SML": Method(sml, ANY | {"learning_rate": (0.1, 0.3, 1.0)}, UNIFORM),
    "MAR": Method(partial(facets, kind=jr.models.MAR, preset=jr.papers.mars.DEFAULT), ANY, HALF | UNIFORM),
    "MARS, released": Method(facets, {}, HALF),
    "MARS, released, 2 facets": Method(partial(facets, n_facets=2), {}, HALF),
    "MARS, released, uniform negatives": Method(partial(facets, power=0.0), {}, HALF),
    "MARS, default": Method(partial(facets, preset=jr.papers.mars.DEFAULT), ANY, HALF | UNIFORM),
    "MARS, paper's rule, free facets": Method(partial(facets, preset=FREE), ANY, HALF | UNIFORM),
    "composed, 4 facets": Method(partial(composed, n_facets=4, dim=64), WARM),
    "composed, 1 facet": Method(partial(composed, n_facets=1, dim=256), WARM),
}
