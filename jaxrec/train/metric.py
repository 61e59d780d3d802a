"""Objectives of metric learning that compare more than users with items.

Each splits its key as `pairwise_objective` does.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrec import losses
from jaxrec._lookup import lookup
from jaxrec.train.examples import Batch
from jaxrec.train.objectives import _check_has, compared, histories_of
from jaxrec.typing import Array, Key, Loss, Model, Sampler, Scalar, Variables


def covariance_objective(variables: Variables, key: Key, batch: Batch) -> Array:
    """`losses.covariance` of the batch's users and positives together: the regulariser of CML.

    Add it to the loss by `combined_objective`. It takes rows of the parameters "user" [M, D] and "item" [N, D] as they
    are, not as the model's score maps them; weights of the interactions are not used.

    Args:
        variables: of `models.MF`, or of any model with these parameters.
        key: unused; nothing is drawn.
        batch: positives [B, P].

    Differs: the released code takes the whole tables in each step.
    """
    del key
    where = batch.where
    users = lookup(variables["params"]["user"], batch.users[:, 0])
    items = lookup(variables["params"]["item"], batch.items.reshape(-1))
    rows = jnp.concatenate([users, items])
    return losses.covariance(rows, where=jnp.concatenate([where.any(1), where.reshape(-1)]))


def sml_objective(
    variables: Variables, key: Key, batch: Batch, *, sample: Sampler, loss: Callable[..., Array] = losses.sml
) -> Array:
    """Symmetric metric learning (Li et al. 2020, 10.1609/aaai.v34i04.5894): mean `losses.sml` of the batch's positives.

    The model is `MF(score=negative_squared_distance)`, and `train.init` gets the margins that it learns beside it,
    `parameters={"user_margin": jnp.ones(M), "item_margin": jnp.ones(N)}`. The optimiser is to keep the vectors in the
    unit ball, and the margins in [0, 1].

    Args:
        variables: "user" [M, D], "item" [N, D], "user_margin" [M] and "item_margin" [N] among "params".
        key: for the negatives.
        batch: positives [B, P].
        sample: any of `jaxrec.sampling`; [B, n] negatives, or [1, n] that the batch shares.
        loss: `losses.sml`, with its weights bound; of its γ = 10 the released code leaves 10 / B, see there.
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
) -> Array:
    """`pairwise_objective` where the relation of user and positive serves the negatives too, as LRML is trained.

    Args:
        variables: the model's variables, as `model.init` returns them.
        key: for the negatives.
        batch: positives [B, P].
        model: `models.LRML`, or any that scores pairs by `apply(variables, users, items, related)`.
        loss: `losses.hinge` in the paper; any of `jaxrec.losses` that compares positives with negatives.
        sample: any of `jaxrec.sampling`; [B, n] negatives, or [1, n] that the batch shares.
    """
    users, items = batch.users, batch.items
    negatives = sample(jax.random.split(key)[0], users[:, 0])
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
) -> Array:
    """What TransCF minimises (Park et al. 2018, arXiv 1906.01637): a loss, and two regularisers of the positives.

    The mean of loss − distance_weight · score + neighbourhood_weight · (‖u − ū‖² + ‖v − v̄‖²), by one call of the model,
    so that a step averages the neighbourhoods once.

    Args:
        variables: the model's variables, as `model.init` returns them.
        key: for the negatives.
        batch: positives [B, P].
        model: `models.TransCF`, or any that gives scores and a regulariser by `method="regularised"`.
        loss: `losses.hinge` in the paper; any of `jaxrec.losses` that compares positives with negatives.
        sample: any of `jaxrec.sampling`; [B, n] negatives, or [1, n] that the batch shares.
        distance_weight: how strongly positives are pulled.
        neighbourhood_weight: how strongly both are drawn to their neighbourhoods.

    Raises:
        TypeError: for a model without `regularised`.

    Differs: the released code averages the loss and sums the regularisers, so that its .01 is .01 · B here.
    """
    _check_has(model, "regularised", "TransCF")
    users, items = batch.users, batch.items
    negatives = sample(jax.random.split(key)[0], users[:, 0])
    negatives = jnp.broadcast_to(negatives, (len(items), negatives.shape[1]))
    both = jnp.concatenate([items.astype(negatives.dtype), negatives], axis=1)
    scores, near = model.apply(variables, users, both, method="regularised", **histories_of(model, batch))
    pos, neg = jnp.split(scores, [items.shape[1]], axis=1)
    values = (
        compared(loss, pos, neg[:, None]) - distance_weight * pos + neighbourhood_weight * near[:, : items.shape[1]]
    )
    return losses.mean(values, where=batch.where, weights=batch.weights)


def _distance(x: Array, y: Array) -> Array:
    """‖x − y‖ over the last axis, with gradient 0 at 0."""
    squared = ((x - y) ** 2).sum(-1)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
