"""The squared losses of RG2, against sampled items or against all items."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxrec._numerics import accumulated
from jaxrec.losses._reduce import Negatives, masked, over_negatives, setting
from jaxrec.typing import Array


def rg2_sampled(pos: Array, neg: Array, *, where: Array | None = None, negatives: Negatives = "mean") -> jax.Array:
    """The ranking-generalisable squared loss (RG2) on sampled items: −pos + ½ meanⱼ (negⱼ + 1)².

    It estimates the loss of `rg2`, which comes from the second-order expansion of the full softmax
    at scores of 0. The estimate is unbiased if the negatives are drawn uniformly from *all* items,
    including the user's own.

    Args:
        pos: scores of the positives, [...].
        neg: scores of the negatives, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        negatives: "mean" or "sum" over the negatives of a positive.

    Returns:
        Losses [...].

    >>> float(rg2_sampled(jnp.array(1.0), jnp.array([0.0])))
    -0.5
    """
    pos, neg, where, any_valid = masked(pos, neg, where)
    return jnp.where(any_valid, -pos + 0.5 * over_negatives((neg + 1) ** 2, where, negatives), 0)


def rg2(pos: Array, users: Array, gram: Array, total: Array, *, n_items: int, where: Array | None = None) -> jax.Array:
    """RG2 against all N items, exact and without their scores: −o + (1/2N) Σⱼ (oⱼ + 1)².

    With G = QᵀQ and s = Qᵀ1 of the item table Q, the sum is pᵀGp + 2 p·s + N.
    `train.gram_objective` computes G and s. The loss is the second-order expansion of the full
    softmax at scores of 0, without its constant log N − ½ and its term −(Σⱼ oⱼ / N)² / 2. It does
    not bound the softmax loss: the paper's proof needs I/N − diag(π) + ππᵀ to be positive
    semi-definite, which is true only near o = 0.

    Args:
        pos: scores o of the positives, [...].
        users: vectors p of the users, [..., D]. To share one vector among the positives of a user,
            pass [B, 1, D].
        gram: G [D, D], in the same precision as `users`. On accelerators compute it with
            `precision="highest"`.
        total: s [D].
        n_items: number of items N.
        where: bool [...], True for the positives to use. The others have loss 0 and no gradient.

    Returns:
        Losses [...].

    >>> items = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> float(rg2(jnp.array(1.0), jnp.array([1.0, -1.0]), items.T @ items, items.sum(0), n_items=2))
    0.25
    """
    chex.assert_rank(users, jnp.ndim(pos) + 1)
    chex.assert_type([pos, users, gram, total], float)
    number_of_items = setting("n_items", n_items, pos, least=1)
    pos, users, gram, total = (accumulated(x) for x in (pos, users, gram, total))
    dim = users.shape[-1]
    chex.assert_shape([gram, total], [(dim, dim), (dim,)])
    if where is not None:
        chex.assert_type(where, bool)
        chex.assert_equal_shape([pos, where])
        # A vector shared by several positives is masked only if none of them is valid.
        any_valid = jnp.asarray(where if jnp.shape(users)[:-1] == jnp.shape(pos) else where.any(-1, keepdims=True))
        pos, users = jnp.where(where, pos, 0), jnp.where(any_valid[..., None], users, 0)
    quadratic = (jnp.matmul(users, gram, precision="highest") * users).sum(-1)
    linear = jnp.matmul(users, total, precision="highest")
    values = -pos + (quadratic + 2 * linear + number_of_items) / (2 * number_of_items)
    return values if where is None else jnp.where(where, values, 0)
