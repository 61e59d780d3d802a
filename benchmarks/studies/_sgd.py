"""Losses trained by SGD, for the study of solvers: each has 16 trials, and a schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxrec as jr
from benchmarks.studies._study import by_epochs, swept

DIM, SCALE, RATE, GROUPS, LAYERS = 64, 0.1, 1e-2, partial(jr.train.groups, n=16), 3
# Numbers of epochs to choose from. The other data sets have more steps in an epoch.
SMALL = ("ml-100k", "lastfm-2k")
SHORT, EPOCHS = (5, 10, 20, 40), dict.fromkeys(SMALL, (20, 40, 80, 160)) | {"ml-1m": (15, 30, 60, 120)}

Setting = Mapping[str, float]


class Parts(NamedTuple):
    """What is trained.

    Attributes:
        model: the model.
        objective: its objective, without a penalty. It binds its sampler as `sample=`.
        parameters: further parameters that the loss learns.
        after: transformations of Adam's updates.
    """

    model: Any
    objective: jr.typing.Objective
    parameters: Mapping[str, jax.Array] = {}
    after: Sequence[optax.GradientTransformation] = ()


class Kind(NamedTuple):
    """A loss, and the settings to choose from.

    Attributes:
        make: function of the data that returns the `Parts`. If the grid has other values than
            "l2", they are passed to the loss.
        grid: four values of one hyperparameter; the other one is the number of epochs.
    """

    make: Callable[[jr.Interactions], Parts]
    grid: Mapping[str, Sequence[float]]


def trained(
    kind: Kind, train: Any, valid: Any, key: Any, settings: Sequence[Setting], *, metric: str, large: bool
) -> list[Any]:
    """Trains settings by Adam; those with the same number of epochs in one sweep.

    The learning rate falls to 0 by half a cosine over the epochs, and the last epoch is evaluated.
    """
    parts = kind.make(train)
    batch_size, k = 1024 if large else 256, int(metric.partition("@")[2])
    judge = lambda v: jr.evaluate.full_ranking(parts.model, v, train, valid, ks=(k,)).means  # noqa: E731

    def together(epochs: int, settings: Sequence[Setting]) -> list[Any]:
        setup = partial(recipe, parts, steps=-(-GROUPS(train).n // batch_size) * epochs)
        options = {"epochs": epochs, "every": epochs, "batch_size": batch_size, "examples": GROUPS, "validate": judge}
        return swept(parts.model, setup, train, key, settings, **options)

    return by_epochs(settings, together)


def recipe(parts: Parts, *, steps: int, l2: Any = None, **of_loss: Any) -> jr.train.Recipe:
    """Returns the recipe of a setting. l2 penalises the rows of a batch, as `penalised_objective` does."""
    objective = partial(parts.objective, **of_loss) if of_loss else parts.objective
    if l2 is not None:
        objective = partial(jr.train.penalised_objective, objective=objective, l2=l2)
    tx = optax.chain(optax.adam(optax.cosine_decay_schedule(RATE, steps)), *parts.after)
    return jr.train.Recipe(parts.model, objective, tx, parts.parameters)


# ---------------------------------------------------------------------- losses


def factors(train: jr.Interactions, **options: Any) -> jr.models.MF:
    """Returns a matrix factorisation."""
    return jr.models.MF(train.n_users, train.n_items, dim=DIM, **options)


def graph(train: jr.Interactions) -> jr.models.LightGCN:
    """Returns LightGCN with three layers."""
    return jr.models.LightGCN(train, dim=DIM, layers=LAYERS, scale=SCALE)


def everything(key: Any, users: jax.Array, *, n_items: int) -> jax.Array:
    """Returns all items as the negatives that a batch shares, so that the penalty takes their mean."""
    return jnp.arange(n_items, dtype=jnp.int32)[None]


def whole(variables: Any, key: Any, batch: Any, *, objective: Any, sample: Any) -> jax.Array:
    """Returns an objective over all items; the penalty takes them from `sample`."""
    return objective(variables, key, batch)


def against_all(objective: Any, train: jr.Interactions) -> Any:
    """Binds all items as the negatives of an objective."""
    return partial(whole, objective=objective, sample=partial(everything, n_items=train.n_items))


def pairwise(loss: jr.typing.Loss, train: jr.Interactions, *, n: int = 100, **more: Any) -> Parts:
    """Draws negatives for each group."""
    model, sample = factors(train, scale=SCALE), partial(jr.sampling.uniform, n_items=train.n_items, n=n)
    return Parts(model, partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample, **more))


def full(loss: jr.typing.Loss, train: jr.Interactions, *, model: Any = None) -> Parts:
    """Uses all items as negatives."""
    model = model or factors(train, scale=SCALE)
    return Parts(model, against_all(partial(jr.train.rows_objective, model=model, loss=loss), train))


def gram(train: jr.Interactions, *, model: Any = None) -> Parts:
    """Trains RG2 by SGD, over all items by their Gram matrix."""
    model = model or factors(train, scale=SCALE)
    return Parts(model, against_all(partial(jr.train.gram_objective, model=model), train))


def lightgcn(make: Callable[..., Parts], train: jr.Interactions) -> Parts:
    """Trains LightGCN instead of matrix factorisation."""
    return make(train, model=graph(train))


def boundary_of(variables: Any, batch: Any, negatives: Any) -> dict[str, jax.Array]:
    """Returns the boundaries of the batch's users."""
    return {"boundary": variables["params"]["boundary"][batch.users]}


def uib(train: jr.Interactions) -> Parts:
    """Trains UIB, with a boundary for each user."""
    parts = pairwise(jr.losses.uib, train, arguments=boundary_of)
    return parts._replace(parameters={"boundary": jnp.zeros(train.n_users)})


def sparsemax(train: jr.Interactions) -> Parts:
    """Trains Sparsemax: rows of scores against the positives of a group."""
    model = factors(train, scale=SCALE)
    return Parts(model, against_all(partial(of_groups, model=model), train))


def of_groups(variables: Any, key: Any, batch: Any, *, model: Any) -> jax.Array:
    """Computes the mean Sparsemax loss of groups, weighted by their numbers of positives."""
    scores = model.apply(variables, batch.users[:, 0], method="rows")
    rows = jnp.arange(len(batch.users))[:, None]
    targets = jnp.zeros(scores.shape).at[rows, batch.items].add(batch.where.astype(scores.dtype))
    return jr.losses.mean(jr.losses.sparsemax(scores, targets), weights=batch.where.sum(1).astype(scores.dtype))


def sml(train: jr.Interactions) -> Parts:
    """Trains SML: distances in the unit ball, and margins that are learned in [0, 1].

    The ball takes the place of l2, and γ is chosen; it is divided by the batch size, because the
    loss is a mean over the batch.
    """
    model = factors(train, scale=SCALE, score=jr.models.negative_squared_distance)
    margins = {"user_margin": jnp.ones(train.n_users), "item_margin": jnp.ones(train.n_items)}
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=10)
    rules = {
        "ball": jr.optim.riemannian.project_to_ball(),
        "margin": optax.stateless_with_tree_map(lambda update, x: jnp.clip(x + update, 0, 1) - x),
    }
    inside = optax.partition(rules, {"user": "ball", "item": "ball"} | dict.fromkeys(margins, "margin"))
    return Parts(model, partial(of_margins, sample=sample), margins, (inside,))


def of_margins(variables: Any, key: Any, batch: Any, *, sample: Any, margin_weight: Any) -> jax.Array:
    """Computes the mean SML loss with a weight of the margins."""
    loss = partial(jr.losses.sml, margin_weight=margin_weight)
    return jr.train.sml_objective(variables, key, batch, sample=sample, loss=loss)


def strengths(*values: float) -> Mapping[str, Sequence[float]]:
    """Returns a grid of l2."""
    return {"l2": values}


STRONG, MIDDLE = strengths(0.03, 0.06, 0.12, 0.24), strengths(0.02, 0.04, 0.08, 0.16)
WEAK, OF_GRAPH = strengths(0.01, 0.02, 0.04, 0.08), strengths(0.001, 0.004, 0.016, 0.064)
softmax = partial(full, jr.losses.mine)  # over all items, including the positive
KINDS = {
    "softmax": Kind(softmax, STRONG),
    "sampled softmax": Kind(partial(pairwise, jr.losses.sampled_softmax), STRONG),
    "RG2 by SGD": Kind(gram, MIDDLE),
    "BPR": Kind(partial(pairwise, jr.losses.bpr), WEAK),
    "BCE": Kind(partial(pairwise, jr.losses.bce), WEAK),
    "UIB": Kind(uib, WEAK),
    "LightGCN, softmax": Kind(partial(lightgcn, softmax), OF_GRAPH),
    "LightGCN, RG2": Kind(partial(lightgcn, gram), OF_GRAPH),
    "SML": Kind(sml, {"margin_weight": (0.1, 0.3, 1.0, 3.0)}),
    "Sparsemax": Kind(sparsemax, STRONG),
}


def grid_of(kind: Kind, data: str) -> dict[str, Sequence[float]]:
    """Returns the 16 settings of a loss on a data set."""
    return {"epochs": EPOCHS.get(data, SHORT), **kind.grid}
