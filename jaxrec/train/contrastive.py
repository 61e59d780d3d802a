"""The objective of models that have several views of their vectors, such as `models.XSimGCL`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrec import losses
from jaxrec._lookup import lookup
from jaxrec._numerics import as_ids, number
from jaxrec.models.mf import products
from jaxrec.train._checks import negatives_of
from jaxrec.train.examples import Batch
from jaxrec.train.objectives import _check_has, compared
from jaxrec.typing import Array, Key, Loss, Model, Sampler, Scalar, Variables


def contrastive_objective(
    variables: Variables,
    key: Key,
    batch: Batch,
    *,
    model: Model,
    sample: Sampler,
    loss: Loss = losses.bpr,
    noise: Scalar = 0.2,
    weight: Scalar = 0.2,
    temperature: Scalar = 0.15,
) -> jax.Array:
    """Computes the mean loss of the positives plus a contrast of two views of the batch's rows.

    mean loss + weight · (mean `losses.infonce` of the users + mean `losses.infonce` of the items)

    Each user and item of the batch counts once in the second part, for any number of positives; the
    weights of the interactions are not used there. Add the papers' penalty with
    `penalised_objective`.

    Args:
        variables: the model's variables, as returned by `model.init`.
        key: typed key from which negatives and the noise of the views are drawn.
        batch: positives [B, P].
        model: `models.SimGCL`, `models.XSimGCL`, or any model that returns the tables of the score
            and two views of them by `apply(variables, noise, method="views", rngs={"noise": key})`.
        sample: a sampler of `jaxrec.sampling` that draws negatives [B, n], or [1, n] that the batch
            shares.
        loss: a loss of `jaxrec.losses` that compares positives with negatives.
        noise: ε, the length of the noise of the views, 0 or more.
        weight: λ, the weight of the contrast, 0 or more.
        temperature: τ of the contrast, above 0.

    Raises:
        TypeError: if the model has no `views`.
        ValueError: if `noise`, `weight` or `temperature` is out of bounds, or the loss does not
            return one value per positive.

    Differs: follows the released code (SELFRec) instead of the papers: the contrast is the mean
    over the users and over the items, not their sum. The defaults are those of XSimGCL on
    Yelp2018; SimGCL has noise .1, weight .5 and temperature .2 there.
    """
    _check_has(model, "views", "XSimGCL")
    for name, value in (("noise", noise), ("weight", weight)):
        number(name, value, least=0)
    sample_key, noise_key = jax.random.split(key)
    negatives = negatives_of(sample, sample_key, batch.users[:, 0], model)
    tables, first, second = model.apply(variables, noise, method="views", rngs={"noise": noise_key})
    users, items = tables
    own = lookup(users, batch.users)
    pos, neg = (products(own, lookup(items, ids)) for ids in (batch.items, negatives))
    values = losses.mean(compared(loss, pos, neg[:, None]), where=batch.where, weights=batch.weights)
    contrast = contrasted(first, second, batch, temperature=temperature)
    return values + jnp.asarray(weight, contrast.dtype) * contrast


def contrasted(
    first: tuple[Array, Array], second: tuple[Array, Array], batch: Batch, *, temperature: Scalar = 0.2
) -> jax.Array:
    """Computes the mean `losses.infonce` of two views over users, plus that over items.

    Each different user and item of the batch counts once.

    Args:
        first: tables [M, D] and [N, D].
        second: tables of the same shapes.
        batch: positives [B, P], whose users and items are compared with one another.
        temperature: as in `losses.infonce`.
    """
    sides = (batch.users[:, 0], batch.where.any(1)), (batch.items.reshape(-1), batch.where.reshape(-1))
    total = []
    for one, other, (ids, where) in zip(first, second, sides, strict=True):
        where = first_of_each(ids, where=jnp.asarray(where))
        values = losses.infonce(lookup(one, ids), lookup(other, ids), where=where, temperature=temperature)
        total.append(losses.mean(values, where=where))
    return sum(total)


def first_of_each(ids: Array, *, where: Array) -> jax.Array:
    """Marks the first valid occurrence of each id.

    Args:
        ids: integers [R], in any order.
        where: bool [R], True for the entries to use.

    Returns:
        bool [R].

    >>> first_of_each(jnp.array([7, 2, 7, 2, 5]), where=jnp.array([False, True, True, True, True])).tolist()
    [False, True, True, False, True]
    """
    ids, last = as_ids(ids), jnp.iinfo(jnp.int32).max
    kept = jnp.where(where, ids, last)
    order = jnp.argsort(kept, stable=True)
    ordered = kept[order]
    new = jnp.concatenate([jnp.ones(min(1, len(ids)), bool), ordered[1:] != ordered[:-1]])
    return jnp.zeros(len(ids), bool).at[order].set(new) & where
