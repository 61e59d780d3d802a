"""The methods that the study of λOpt compares: how each is trained, and the grid of its hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxrec as jr
from jaxrec.optim import lambda_opt
from jaxrec.optim.moments import amsgrad, smooth_adam
from jaxrec.optim.regularization import coefficients, penalty
from jaxrec.train import Recipe
from jaxrec.train.lambda_opt import draws, pairwise_rows

DIM, RATE, SCALE = 64, 1e-2, 0.1


class Part(NamedTuple):
    """One seed's data: `learn` and `select` are the halves of validation."""

    train: jr.Interactions
    learn: jr.Interactions
    select: jr.Interactions
    test: jr.Interactions
    epochs: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Steps of parameters in a run."""
        return self.epochs * -(-self.train.n_pairs // self.batch_size)


class Method(NamedTuple):
    """How a `Recipe` is made of data, model and a setting, and the settings that `select` chooses from."""

    make: Callable[..., Recipe]
    grid: Mapping[str, tuple[float, ...]]
    few: Mapping[str, tuple[float, ...]] | None = None  # on sets other than ml-100k
    whole: bool = False  # trains on `learn` too
    model: Callable[..., Any] | None = None  # of the data; None is `factors`


def factors(part: Part, *, scale: float = SCALE) -> jr.models.MF:
    """Matrix factorisation; the released code's tables start at a scale of 1."""
    return jr.models.MF(part.train.n_users, part.train.n_items, dim=DIM, scale=scale)


def tower(part: Part) -> jr.models.NeuMF:
    """As its paper has it."""
    return jr.models.NeuMF(part.train.n_users, part.train.n_items)


def graph(part: Part) -> jr.models.LightGCN:
    """Tables smoothed over the graph of train."""
    return jr.models.LightGCN(part.train, dim=DIM, layers=2, scale=SCALE)


def identity(x: jax.Array) -> jax.Array:
    """Facets of any length."""
    return x


def facets(part: Part) -> jr.models.MARS:
    """MARS of projected facets that are on no sphere: on one, a penalty would be radial and do nothing."""
    size = {"dim": DIM, "n_facets": 2, "scale": SCALE * DIM**0.5, "theta_scale": 0.0}
    return jr.models.MARS(
        part.train.n_users, part.train.n_items, facets=jr.models.mars.projected, place=identity, **size
    )


def negatives(train: jr.Interactions, n: int = 1) -> jr.typing.Sampler:
    """Items that the user has not in train, uniformly; a second draw rejects all but 1 in 400 of a user's own."""
    draw = partial(jr.sampling.uniform, n_items=train.n_items, n=n)
    return partial(jr.sampling.reject_seen, sample=draw, seen=train, rounds=2)


def bpr(part: Part, model: Any) -> jr.typing.Objective:
    """One negative a positive."""
    return partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=negatives(part.train))


def penalised(
    variables: jr.typing.Variables, key: jax.Array, batch: jr.train.Batch, *, objective: Any, rows: Any, lambdas: Any
) -> jax.Array:
    """The objective with Ω of fixed coefficients on the batch's rows, as λOpt's steps of Θ have it."""
    return objective(variables, key, batch) + penalty(lambdas, variables["params"], rows(key, batch))


# ---------------------------------------------------------------------- coefficients that are fixed


def fixed(part: Part, *, model: Any, regularization: Any) -> Recipe:
    """One λ, or coefficients of any granularity."""
    rows = partial(pairwise_rows, sample=negatives(part.train))
    objective = partial(penalised, objective=bpr(part, model), rows=rows, lambdas=regularization)
    return Recipe(model, objective, optax.adam(RATE))


def random(part: Part, *, model: Any, draw: Any, granularity: str) -> Recipe:
    """Each coefficient between 1e-4 and 1e-1, uniform in its logarithm."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes["params"])
    leaves, tree = jax.tree.flatten(coefficients(zeros, granularity))
    keys = jax.random.split(jax.random.key(draw), len(leaves))
    drawn = [10 ** jax.random.uniform(key, x.shape, minval=-4.0, maxval=-1.0) for key, x in zip(keys, leaves)]
    return fixed(part, model=model, regularization=jax.tree.unflatten(tree, drawn))


# ---------------------------------------------------------------------- coefficients that are learned


def learned(part: Part, *, model: Any, lambda_rate: Any, granularity: str = "DUI", scope: str = "full") -> Recipe:
    """λOpt on `learn`, by Adam and AMSGrad as the released scripts have it, one look-ahead a step."""
    start = partial(coefficients, granularity=granularity)
    options = {"start": start, "simulated": smooth_adam(RATE), "scope": scope}
    tx = lambda_opt.alternate(optax.adam(RATE), amsgrad(lambda_rate), **options)
    rows = partial(pairwise_rows, sample=negatives(part.train))
    return Recipe(model, bpr(part, model), tx, partial(draws, train=part.train, valid=part.learn, rows=rows))


def sgda(part: Part, *, model: Any, learning_rate: Any, lambda_rate: Any) -> Recipe:
    """One λ a dimension, both moved by plain gradient descent, the look-ahead on the batch's rows."""
    start = partial(coefficients, granularity="D")
    tx = lambda_opt.alternate(optax.sgd(learning_rate), optax.sgd(lambda_rate), start=start, scope="exact")
    rows = partial(pairwise_rows, sample=negatives(part.train))
    return Recipe(model, bpr(part, model), tx, partial(draws, train=part.train, valid=part.learn, rows=rows))


# ---------------------------------------------------------------------- baselines without learned coefficients


def adversarial(tx: optax.GradientTransformation, *, epsilon: Any, weight: float, begin: int) -> lambda_opt.Alternating:
    """Steps down on the loss at Θ and, from step `begin` on, `weight` times that at Θ + Δ, Δ of length ε a row."""

    def init(params: Any) -> lambda_opt.AlternatingState:
        return lambda_opt.AlternatingState(tx.init(params), (), (), jnp.zeros((), jnp.int32))

    def longer(gradient: jax.Array) -> jax.Array:
        square = (gradient**2).sum(-1, keepdims=True)
        return jnp.where(square > 0, epsilon * gradient * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)

    def step(value: Any, params: Any, state: Any, draw: Any) -> tuple[jax.Array, Any, Any]:
        loss, slopes = jax.value_and_grad(value)(params, draw.batch)
        worse = jax.tree.map(lambda x, g: x + longer(g), params, slopes)
        against = jax.grad(value)(worse, draw.batch)
        share = jnp.where(state.count >= begin, weight, 0.0)
        slopes = jax.tree.map(lambda g, a: g + share * a, slopes, against)
        updates, opt_state = tx.update(slopes, state.opt_state, params)
        return loss, optax.apply_updates(params, updates), state._replace(opt_state=opt_state, count=state.count + 1)

    return lambda_opt.Alternating(init, step)


def as_drawn(key: jax.Array, batch: jr.train.Batch) -> lambda_opt.Draw:
    """The batch alone."""
    return lambda_opt.Draw((key, batch), None, None, None, None)


def amf(part: Part, *, model: Any, epsilon: Any, regularization: Any) -> Recipe:
    """AMF: half the steps plain, half with the adversary, as its paper goes on from converged BPR; one λ besides."""
    recipe = fixed(part, model=model, regularization=regularization)
    tx = adversarial(optax.adam(RATE), epsilon=epsilon, weight=1.0, begin=part.steps // 2)
    return recipe._replace(tx=tx, touched=as_drawn)


def neumf(part: Part, *, model: Any, learning_rate: Any) -> Recipe:
    """NeuMF by cross-entropy with four negatives a positive."""
    loss, sample = partial(jr.losses.bce, negatives="sum"), negatives(part.train, n=4)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    return Recipe(model, objective, optax.adam(learning_rate))


ONE = {"regularization": (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2, 1e-1)}
SOME, FEW = {"regularization": (1e-3, 3e-3, 1e-2, 3e-2)}, {"regularization": (0.0, 1e-3, 1e-2)}
RATES, TWO = {"lambda_rate": (1e-4, 1e-3, 1e-2, 3e-2)}, {"lambda_rate": (1e-3, 1e-2)}
DESCENT = {"learning_rate": (10.0, 50.0, 200.0), "lambda_rate": (1e-3, 1e-2, 1e-1)}
DRAWS, FOUR = {"draw": tuple(range(8))}, {"draw": tuple(range(4))}
NORMAL = partial(factors, scale=1.0)
METHODS = {
    "MF, one λ": Method(fixed, ONE, SOME),
    "MF, one λ, on learn too": Method(fixed, ONE, SOME, whole=True),
    "SGDA": Method(sgda, DESCENT, {"learning_rate": (50.0, 200.0), "lambda_rate": (1e-2, 1e-1)}),
    "AMF": Method(amf, {"epsilon": (0.1, 0.5), "regularization": (0.0, 1e-2)}),
    "NeuMF": Method(neumf, {"learning_rate": (1e-3, 3e-3)}, model=tower),
    "random D": Method(partial(random, granularity="D"), DRAWS, FOUR),
    "random DUI": Method(partial(random, granularity="DUI"), DRAWS, FOUR),
    **{f"λOpt {name}": Method(partial(learned, granularity=name), RATES, TWO) for name in ("D", "DU", "DI", "DUI")},
}
STUDIES = {  # what may be responsible, one at a time, and other models
    "λOpt DUI, exact": Method(partial(learned, scope="exact"), RATES, TWO),
    "λOpt DI, exact": Method(partial(learned, granularity="DI", scope="exact"), RATES, TWO),
    "MF, one λ, N(0, 1)": Method(fixed, SOME, model=NORMAL),
    "λOpt DUI, N(0, 1)": Method(learned, RATES, TWO, model=NORMAL),
    "λOpt DI, N(0, 1)": Method(partial(learned, granularity="DI"), RATES, TWO, model=NORMAL),
    "LightGCN, one λ": Method(fixed, FEW, model=graph),
    "LightGCN, λOpt DUI": Method(learned, {"lambda_rate": (1e-3,)}, model=graph),
    "facets, one λ": Method(fixed, FEW, model=facets),
    "facets, λOpt DUI": Method(learned, {"lambda_rate": (1e-3,)}, model=facets),
}
