"""The data, the evaluation and the methods of the study of λOpt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrec as jr
from benchmarks.studies._study import pairs_alone, quietly
from jaxrec.data import datasets, splits
from jaxrec.optim import lambda_opt
from jaxrec.optim.moments import amsgrad, smooth_adam
from jaxrec.optim.regularization import coefficients, penalty
from jaxrec.train import Recipe
from jaxrec.train.lambda_opt import draws, penalised_rows

DIM, RATE, SCALE = 64, 1e-2, 0.1
# The metric that chooses, the cut-offs, and numbers of groups of users: of test, and of validation.
METRIC, KS, GROUPS, THIRDS = "ndcg@50", (50, 100), 5, 3
PAPER = ("auc", *(f"{name}@{k}" for name in ("recall", "ndcg") for k in KS))
PARTS = ("few", "some", "many")  # thirds of users, and of items, by their number of pairs


# ---------------------------------------------------------------------- data


class Halves(NamedTuple):
    """The two halves of the validation pairs."""

    learn: jr.Interactions
    select: jr.Interactions

    def fingerprint(self) -> str:
        """Returns the fingerprints of both halves."""
        return f"{self.learn.fingerprint()}-{self.select.fingerprint()}"


class Part(NamedTuple):
    """The data on which a method is trained, and the length of the training."""

    train: jr.Interactions
    learn: jr.Interactions
    epochs: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Number of steps of the parameters in a run."""
        return self.epochs * -(-self.train.n_pairs // self.batch_size)

    def falling(self, rate: Any) -> optax.Schedule:
        """Returns a learning rate that falls to 0 over the run, by half a cosine."""
        return optax.cosine_decay_schedule(rate, self.steps)


@lru_cache(maxsize=4)
def prepare(data: str, seed: int) -> splits.Split:
    """Returns the split of a seed.

    The seed breaks ties in time, halves validation, and orders the pairs of lastfm-2k.
    """
    whole, key = datasets.load(data).interactions, jax.random.key(seed)
    order = splits.random_order if whole.timestamps is None else splits.temporal_order
    train, valid, test = map(pairs_alone, splits.in_turn(whole, order=partial(order, key=key)))
    by_chance = partial(splits.random_order, key=jax.random.fold_in(key, 1))
    halves = splits.in_turn(valid, test=0.5, valid=0.0, order=by_chance)
    return splits.Split(train, Halves(halves.train, halves.test), test)


@quietly()  # users without training pairs raise a warning
def evaluate(
    model: Any, variables: jr.typing.Variables, part: splits.Split, on: str
) -> jr.evaluate.Report | dict[str, float]:
    """Returns the metric that chooses, also for thirds of users and items, or on test all metrics.

    Those of test are by user; there is also λOpt's NDCG@50 for each fifth of the users, by their
    number of training pairs.
    """
    known = part.train.union(part.valid.learn)
    if on == "valid":
        return chooses(model, variables, known, part)
    known = known.union(part.valid.select)
    separate = jr.papers.lambda_opt.separate_ranking(model, variables, known, part.test, ks=KS)
    full = jr.evaluate.full_ranking(model, variables, known, part.test, ks=KS)
    degrees, fifths = part.train.user_degrees[separate.users], {}
    for fifth, users in enumerate(np.array_split(np.argsort(degrees, kind="stable"), GROUPS), 1):
        fifths[f"pairs of fifth {fifth}"] = float(degrees[users].mean())
        fifths[f"ndcg@50 of fifth {fifth}"] = float(separate.per_user["ndcg@50"][users].mean())
    by_user = {name: separate.per_user[name] for name in PAPER}
    by_user |= {f"full {name}": full.per_user[name] for name in PAPER[1:]}
    return jr.evaluate.Report(separate.users, by_user, fifths, None, separate.protocol)


def chooses(model: Any, variables: jr.typing.Variables, known: jr.Interactions, part: splits.Split) -> dict[str, float]:
    """Returns NDCG@50 on select: of all pairs, of thirds of its users, and of thirds of the items.

    A third of the items has a third of the training pairs, and other pairs of select are masked.
    """
    select = part.valid.select
    report = jr.evaluate.full_ranking(model, variables, known, select, ks=(50,))
    found, degrees = {METRIC: report.means[METRIC]}, part.train.user_degrees[report.users]
    for name, users in zip(PARTS, np.array_split(np.argsort(degrees, kind="stable"), THIRDS)):
        found[f"{METRIC} of users with {name} pairs"] = float(report.per_user[METRIC][users].mean())
    order = np.argsort(part.train.item_degrees, kind="stable")
    share = np.cumsum(part.train.item_degrees[order]) / part.train.n_pairs
    group = np.empty(part.train.n_items, np.int32)
    group[order] = np.minimum(share * THIRDS, THIRDS - 1).astype(np.int32)
    of_pairs = group[select.pairs()[1]]
    for number, name in enumerate(PARTS):
        own, others = select.select(of_pairs == number), select.select(of_pairs != number)
        if own.n_pairs:
            means = jr.evaluate.full_ranking(model, variables, known.union(others), own, ks=(50,)).means
            found[f"{METRIC} of items with {name} pairs"] = means[METRIC]
    return found


# ---------------------------------------------------------------------- methods


class Kind(NamedTuple):
    """A method.

    Attributes:
        make: function of the data, the model and a setting that returns a `Recipe`.
        grid: four values to choose from, of one hyperparameter or two; the numbers of epochs, of
            which there are three, are not among them.
        whole: whether to train on `learn` too.
        model: function of the data that returns the model; None is `factors`.
    """

    make: Callable[..., Recipe]
    grid: Mapping[str, tuple[float, ...]]
    whole: bool = False
    model: Callable[..., Any] | None = None


def factors(part: Part, *, scale: float = SCALE) -> jr.models.MF:
    """Returns a matrix factorisation; the released code draws its tables with scale 1."""
    return jr.models.MF(part.train.n_users, part.train.n_items, dim=DIM, scale=scale)


def tower(part: Part) -> jr.models.NeuMF:
    """Returns NeuMF with the sizes of its paper."""
    return jr.models.NeuMF(part.train.n_users, part.train.n_items)


def graph(part: Part) -> jr.models.LightGCN:
    """Returns LightGCN with two layers."""
    return jr.models.LightGCN(part.train, dim=DIM, layers=2, scale=SCALE)


def identity(x: jax.Array) -> jax.Array:
    """Leaves facets as they are, of any length."""
    return x


def facets(part: Part) -> jr.models.MARS:
    """Returns MARS with projected facets that are not on a sphere.

    On a sphere the penalty would be radial and have no effect.
    """
    size = {"dim": DIM, "n_facets": 2, "scale": SCALE * DIM**0.5, "theta_scale": 0.0}
    return jr.models.MARS(
        part.train.n_users, part.train.n_items, facets=jr.models.mars.projected, place=identity, **size
    )


def negatives(train: jr.Interactions, n: int = 1) -> jr.typing.Sampler:
    """Draws uniformly items that the user does not have in train.

    Items that the user has are redrawn up to twice, after which few remain.
    """
    draw = partial(jr.sampling.uniform, n_items=train.n_items, n=n)
    return partial(jr.sampling.reject_seen, sample=draw, seen=train, rounds=2)


def bpr(part: Part, model: Any) -> jr.typing.Objective:
    """Returns the BPR objective with one negative for each positive."""
    return partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=negatives(part.train))


def penalised(variables: Any, key: jax.Array, batch: jr.train.Batch, *, objective: Any, lambdas: Any) -> jax.Array:
    """Adds the penalty Ω of the batch's rows with fixed coefficients, as in λOpt's steps of Θ."""
    rows = penalised_rows(key, batch, objective=objective)
    return objective(variables, key, batch) + penalty(lambdas, variables["params"], rows)


# ---------------------------------------------------------------------- fixed coefficients


def fixed(part: Part, *, model: Any, regularization: Any) -> Recipe:
    """Trains with one fixed λ, or with fixed coefficients of any granularity."""
    objective = partial(penalised, objective=bpr(part, model), lambdas=regularization)
    return Recipe(model, objective, adam(part))


def adam(part: Part, *, simulated: bool = False) -> optax.GradientTransformation:
    """Returns the optimiser of Θ, with gradients clipped to length 100 as in the released scripts.

    The simulated one takes the same state and does not clip, as there.
    """
    first = optax.identity() if simulated else optax.clip_by_global_norm(100.0)
    return optax.chain(first, (smooth_adam if simulated else optax.adam)(part.falling(RATE)))


def random(part: Part, *, model: Any, draw: Any, granularity: str) -> Recipe:
    """Trains with coefficients drawn between 1e-4 and 1e-1, uniformly in the logarithm."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes["params"])
    leaves, tree = jax.tree.flatten(coefficients(zeros, granularity))
    keys = jax.random.split(jax.random.key(draw), len(leaves))
    drawn = [10 ** jax.random.uniform(key, x.shape, minval=-4.0, maxval=-1.0) for key, x in zip(keys, leaves)]
    return fixed(part, model=model, regularization=jax.tree.unflatten(tree, drawn))


# ---------------------------------------------------------------------- learned coefficients


def learned(
    part: Part,
    *,
    model: Any,
    lambda_rate: Any,
    granularity: str = "DUI",
    clip: float = 100.0,
    start: Any = 0.0,
    still: str | None = None,
    **options: Any,
) -> Recipe:
    """Trains λOpt on `learn` with Adam and AMSGrad, as in the released scripts.

    Each step of the parameters is followed by one of the coefficients, whose gradients are clipped.

    Args:
        part: the data.
        model: the model.
        lambda_rate: learning rate of AMSGrad.
        granularity: granularity of the coefficients.
        clip: the length to which their gradients are clipped.
        start: their values at the start.
        still: "user" or "item" keeps the coefficients of that side at `start`, and starts the other
            side at 0. None learns both.
        options: options of `alternating`.
    """
    lambda_tx = optax.chain(optax.clip_by_global_norm(clip), amsgrad(lambda_rate))
    first = partial(coefficients, granularity=granularity, value=start)
    if still is not None:
        sides = {side: "still" if side == still else "learned" for side in ("user", "item")}
        lambda_tx = optax.partition({"learned": lambda_tx, "still": optax.set_to_zero()}, sides)
        first = partial(one_side, granularity=granularity, value=start, side=still)
    options = {"start": first, "simulated": adam(part, simulated=True)} | options
    return alternating(part, model, adam(part), lambda_tx, **options)


def one_side(params: Any, *, granularity: str, value: Any, side: str) -> dict[str, jax.Array]:
    """Returns coefficients that are `value` on one side, and 0 on the other."""
    found = coefficients(params, granularity)
    return found | {side: found[side] + value}


def alternating(part: Part, model: Any, tx: Any, lambda_tx: Any, **options: Any) -> Recipe:
    """Alternates steps of the parameters and of the coefficients."""
    objective = bpr(part, model)
    options["draws"] = partial(draws, objective=objective, train=part.train, valid=part.learn)
    return Recipe(model, objective, lambda_opt.alternate(tx, lambda_tx, **options))


def sgda(part: Part, *, model: Any, learning_rate: Any, lambda_rate: Any) -> Recipe:
    """Trains SGDA: one λ for each dimension, and plain gradient descent for parameters and λ."""
    rates = optax.sgd(part.falling(learning_rate)), optax.sgd(lambda_rate)
    return alternating(part, model, *rates, start=partial(coefficients, granularity="D"), scope="exact")


# ---------------------------------------------------------------------- other baselines


def adversarial(tx: optax.GradientTransformation, *, epsilon: Any, weight: float, begin: int) -> jr.optim.Step:
    """Returns a step that descends on the loss at Θ and on the loss at an adversarial Θ + Δ.

    Args:
        tx: the optimiser of the sum.
        epsilon: ε, the length of each row of Δ.
        weight: weight of the adversarial loss.
        begin: the step from which on the adversarial loss is added.
    """
    init = lambda params: (tx.init(params), jnp.zeros((), jnp.int32))  # noqa: E731
    return jr.optim.Step(init, partial(_adversarial, tx=tx, epsilon=epsilon, weight=weight, begin=begin))


def _adversarial(value_fn, params, state, key, batch, *, tx, epsilon, weight, begin):
    opt_state, count = state

    def longer(gradient: jax.Array) -> jax.Array:
        square = (gradient**2).sum(-1, keepdims=True)
        return jnp.where(square > 0, epsilon * gradient * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)

    loss, slopes = jax.value_and_grad(value_fn)(params, key, batch)
    worse = jax.tree.map(lambda x, g: x + longer(g), params, slopes)
    share = jnp.where(count >= begin, weight, 0.0)
    slopes = jax.tree.map(lambda g, a: g + share * a, slopes, jax.grad(value_fn)(worse, key, batch))
    updates, opt_state = tx.update(slopes, opt_state, params)
    return loss, optax.apply_updates(params, updates), (opt_state, count + 1)


def amf(part: Part, *, model: Any, epsilon: Any, regularization: Any) -> Recipe:
    """Trains AMF with one fixed λ: BPR for half of the steps, then BPR with the adversary.

    The paper starts the adversary from a converged BPR.
    """
    tx = adversarial(adam(part), epsilon=epsilon, weight=1.0, begin=part.steps // 2)
    return fixed(part, model=model, regularization=regularization)._replace(tx=tx)


def neumf(part: Part, *, model: Any, learning_rate: Any) -> Recipe:
    """Trains NeuMF by cross-entropy, with four negatives for each positive."""
    loss, sample = partial(jr.losses.bce, negatives="sum"), negatives(part.train, n=4)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    return Recipe(model, objective, optax.adam(part.falling(learning_rate)))
