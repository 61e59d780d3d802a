"""Losses of single scores: against the targets 1 and 0, or against a boundary between them.

The signature is that of `jaxrec.losses.pairwise`: `pos` [...], `neg` [..., n] -> [...].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrec.losses._reduce import Negatives, by_positive, masked, over_negatives, setting
from jaxrec.typing import Array, Scalar


def bce(pos: Array, neg: Array, *, where: Array | None = None, negatives: Negatives = "mean") -> jax.Array:
    """Binary cross-entropy on logits: −log σ(pos) − meanⱼ log(1 − σ(negⱼ)).

    Args:
        pos: scores of the positives, [...].
        neg: scores of the negatives, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        negatives: "mean" or "sum" over the negatives of a positive.

    Returns:
        Losses [...].

    >>> round(float(bce(jnp.array(0.0), jnp.array([0.0]))), 4)
    1.3863
    """
    pos, neg, where, any_valid = masked(pos, neg, where)
    values = jax.nn.softplus(-pos) + over_negatives(jax.nn.softplus(neg), where, negatives)
    return jnp.where(any_valid, values, 0)


def mse(pos: Array, neg: Array, *, where: Array | None = None, negatives: Negatives = "mean") -> jax.Array:
    """Squared error: ½ (pos − 1)² + ½ meanⱼ negⱼ².

    With `negatives="sum"` and cosines as scores it is the "MSE" of the SimpleX and multi-margin
    papers.

    Args:
        pos: scores of the positives, [...].
        neg: scores of the negatives, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        negatives: "mean" or "sum" over the negatives of a positive.

    Returns:
        Losses [...].

    >>> float(mse(jnp.array(0.0), jnp.array([1.0])))
    1.0
    """
    pos, neg, where, any_valid = masked(pos, neg, where)
    values = 0.5 * (pos - 1) ** 2 + 0.5 * over_negatives(neg**2, where, negatives)
    return jnp.where(any_valid, values, 0)


def uib(
    pos: Array,
    neg: Array,
    *,
    where: Array | None = None,
    boundary: Array | Scalar = 0.0,
    alpha: Scalar = 0.5,
    negatives: Negatives = "mean",
) -> jax.Array:
    """User interest boundary (Zhuo et al. 2021, arXiv 2111.11026).

    Positives should score above the boundary, negatives below.

    (1 − alpha) · softplus(boundary − pos) + alpha · meanⱼ softplus(negⱼ − boundary). With boundary
    0 and alpha ½ it is half of `bce`.

    Args:
        pos: scores of the positives, [...].
        neg: scores of the negatives, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        boundary: a learnt score of the user, [...] or a scalar.
        alpha: weight of the negatives, from 0 to 1.
        negatives: "mean" or "sum" over the negatives of a positive.

    Returns:
        Losses [...].

    Raises:
        ValueError: if alpha is outside 0 .. 1, or if a scalar boundary is not finite.

    >>> round(float(uib(jnp.array(0.0), jnp.array([0.0]))), 4)
    0.6931
    """
    alpha, boundary = setting("alpha", alpha, pos, least=0, most=1), setting("boundary", boundary, pos)
    pos, neg, where, any_valid = masked(pos, neg, where)
    boundary = jnp.where(any_valid, boundary, 0)

    def above(boundary: Array, neg: Array, where: Array) -> jax.Array:
        return over_negatives(jax.nn.softplus(neg - boundary[..., None]), where, negatives)

    values = (1 - alpha) * jax.nn.softplus(boundary - pos) + alpha * by_positive(above, (boundary,), (neg, where))
    return jnp.where(any_valid, values, 0)
