"""Objectives of metric learning that need more than the scores of users and items.

Each splits its key as `pairwise_objective` does. The same key therefore gives the same negatives.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrec import losses
from jaxrec._lookup import lookup
from jaxrec.train._checks import negatives_of
from jaxrec.train.examples import Batch
from jaxrec.train.objectives import _check_has, compared, histories_of
from jaxrec.typing import Array, Key, Loss, Model, Sampler, Scalar, Variables


def covariance_objective(variables: Variables, key: Key, batch: Batch) -> jax.Array:
    """Computes `losses.covariance` of the batch's users and positives jointly: CML's regulariser.

    Add it to the loss with `combined_objective`. It uses the rows of the parameters "user" [M, D]
    and "item" [N, D] directly, before the model's score maps them. The weights of the interactions
    are not used.

    Args:
        variables: the variables of `models.MF`, or of any model with these parameters.
        key: unused; nothing is drawn.
        batch: positives [B, P].

    Differs: the released code uses the whole tables in each step.
    """
    del key
    where = batch.where
    users = lookup(variables["params"]["user"], batch.users[:, 0])
    items = lookup(variables["params"]["item"], batch.items.reshape(-1))
    rows = jnp.concatenate([users, items])
    return losses.covariance(rows, where=jnp.concatenate([where.any(1), where.reshape(-1)]))


def diversity_objective(
    variables: Variables, key: Key, batch: Batch, *, least: Scalar = 0.05, most: Scalar = 0.25
) -> jax.Array:
    """Computes the mean `losses.diversity` of the batch's users: the regulariser of DPCML.

    Add it to the loss with `combined_objective`; the released code has a weight of 10. It uses the
    rows of the parameter "user" [M, C, D] directly.

    Args:
        variables: the variables of `models.DPCML`, or of any model with this parameter.
        key: unused; nothing is drawn.
        batch: positives [B, P]; users without a valid positive do not count.
        least: spread below which the loss pushes a user's vectors away from each other.
        most: spread above which it pulls them towards each other.

    Raises:
        ValueError: if the parameter "user" is not [M, C, D], or `least` is above `most`.

    Differs: the paper averages over all users, instead of those of a batch.
    """
    del key
    table = variables["params"]["user"]
    if jnp.ndim(table) != 3:
        raise ValueError(f"the parameter user has shape {list(table.shape)}; use models.DPCML, which has [M, C, D]")
    values = losses.diversity(lookup(table, batch.users[:, 0]), least=least, most=most)
    return losses.mean(values, where=jnp.asarray(batch.where.any(1)))


def sml_objective(
    variables: Variables, key: Key, batch: Batch, *, sample: Sampler, loss: Callable[..., Array] = losses.sml
) -> jax.Array:
    """Computes the mean `losses.sml` of the positives (Li et al. 2020, 10.1609/aaai.v34i04.5894).

    The model is `MF(score=negative_squared_distance)`. The learned margins are passed to
    `train.init` as `parameters={"user_margin": jnp.ones(M), "item_margin": jnp.ones(N)}`. The
    optimiser must keep the vectors in the unit ball, and the margins in [0, 1].

    Args:
        variables: variables with "user" [M, D], "item" [N, D], "user_margin" [M] and "item_margin"
            [N] among "params".
        key: typed key from which negatives are drawn.
        batch: positives [B, P].
        sample: a sampler of `jaxrec.sampling` that draws negatives [B, n], or [1, n] that the batch
            shares.
        loss: `losses.sml`, with its weights bound by `functools.partial`. The released code has the
            paper's γ = 10, but its effect is that of 10 / B; see `losses.sml`.
    """
    params = variables["params"]
    items = batch.items
    negatives = sample(jax.random.split(key)[0], batch.users[:, 0])
    u = lookup(params["user"], batch.users)
    v, w = lookup(params["item"], items), lookup(params["item"], negatives)
    values = compared(
        loss,
        _distance(u, v),
        _distance(u, w)[:, None],
        between=_distance(v[:, :, None], w[:, None]),
        user_margin=params["user_margin"][batch.users],
        item_margin=params["item_margin"][items],
    )
    return losses.mean(values, where=batch.where, weights=batch.weights)


def relation_objective(
    variables: Variables, key: Key, batch: Batch, *, model: Model, loss: Loss, sample: Sampler
) -> jax.Array:
    """Computes `pairwise_objective` with the positive's relation used for the negatives too (LRML).

    Args:
        variables: the model's variables, as returned by `model.init`.
        key: typed key from which negatives are drawn.
        batch: positives [B, P].
        model: `models.LRML`, or any model that scores pairs by `apply(variables, users, items,
            related)`.
        loss: a loss of `jaxrec.losses` that compares positives with negatives; the paper uses
            `losses.hinge`.
        sample: a sampler of `jaxrec.sampling` that draws negatives [B, n], or [1, n] that the batch
            shares.
    """
    users, items = batch.users, batch.items
    negatives = negatives_of(sample, jax.random.split(key)[0], users[:, 0], model)
    options = histories_of(model, batch)
    pos = model.apply(variables, users, items, **options)
    neg = model.apply(variables, users[..., None], negatives[:, None], items[..., None], **options)
    values = compared(loss, pos, neg)
    return losses.mean(values, where=batch.where, weights=batch.weights)


def translation_objective(
    variables: Variables,
    key: Key,
    batch: Batch,
    *,
    model: Model,
    loss: Loss,
    sample: Sampler,
    distance_weight: Scalar,
    neighbourhood_weight: Scalar,
) -> jax.Array:
    """Computes the objective of TransCF (Park et al. 2018, arXiv 1906.01637).

    It is the mean of loss − distance_weight · score + neighbourhood_weight · (‖u − ū‖² + ‖v − v̄‖²).
    One call of the model scores positives and negatives, so that a step averages the neighbourhoods
    once.

    Args:
        variables: the model's variables, as returned by `model.init`.
        key: typed key from which negatives are drawn.
        batch: positives [B, P].
        model: `models.TransCF`, or any model that returns scores and a regulariser by
            `method="regularised"`.
        loss: a loss of `jaxrec.losses` that compares positives with negatives; the paper uses
            `losses.hinge`.
        sample: a sampler of `jaxrec.sampling` that draws negatives [B, n], or [1, n] that the batch
            shares.
        distance_weight: weight of the positives' squared distances.
        neighbourhood_weight: weight of the squared distances of users and items to the means of
            their neighbourhoods.

    Raises:
        TypeError: if the model has no `regularised`.

    Differs: the released code averages the loss but sums the regularisers, so that its weight of
    .01 is .01 · B here.
    """
    _check_has(model, "regularised", "TransCF")
    users, items = batch.users, batch.items
    negatives = negatives_of(sample, jax.random.split(key)[0], users[:, 0], model)
    negatives = jnp.broadcast_to(negatives, (len(items), negatives.shape[1]))
    both = jnp.concatenate([items.astype(negatives.dtype), negatives], axis=1)
    scores, near = model.apply(variables, users, both, method="regularised", **histories_of(model, batch))
    pos, neg = jnp.split(scores, [items.shape[1]], axis=1)
    values = (
        compared(loss, pos, neg[:, None]) - distance_weight * pos + neighbourhood_weight * near[:, : items.shape[1]]
    )
    return losses.mean(values, where=batch.where, weights=batch.weights)


def _distance(x: Array, y: Array) -> jax.Array:
    """Computes ‖x − y‖ over the last axis, with gradient 0 at 0."""
    # Both branches of `where` are differentiated: the inner one keeps sqrt from 0, where its slope
    # is infinite.
    squared = ((x - y) ** 2).sum(-1)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
