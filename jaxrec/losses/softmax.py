"""Losses through a normalised distribution: over one positive and its negatives, or over a whole row of items.

`softmax`, `sampled_softmax` and `bsl` have the signature of `jaxrec.losses.pairwise`, but form only one log-sum-exp a
row, so that `pos` [B, P] against all items `neg` [B, 1, N] costs [B, N]. `multinomial` and `sparsemax` take
`scores` and `targets` [..., N].
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxrec.losses._reduce import Negatives, masked
from jaxrec.typing import Array, Scalar


def _logsumexp(values: Array, where: Array, any_valid: Array) -> Array:
    """Over the last axis; 0 (and no gradient) where nothing is valid."""
    kept = jnp.where(where | ~any_valid[..., None], values, -jnp.inf)
    return jnp.where(any_valid, jax.nn.logsumexp(kept, axis=-1), 0)


def softmax(pos: Array, neg: Array, *, where: Array | None = None, temperature: Scalar = 1.0) -> Array:
    """Softmax cross-entropy of the positive against its negatives: InfoNCE, or SSM on cosines.

    log(eᵖ + Σⱼ eⁿʲ) − p with p = pos/temperature, nʲ = negⱼ/temperature (van den Oord et al. 2018, arXiv 1807.03748;
    Wu et al. 2022, arXiv 2201.02327). One negative and temperature 1 give `bpr`. With all other items as negatives it
    is the full softmax.

    >>> round(float(softmax(jnp.array(0.0), jnp.array([0.0]))), 4)
    0.6931
    """
    pos, neg, where, any_valid = masked(pos, neg, where)
    gap = _logsumexp(neg / temperature, where, any_valid) - pos / temperature
    return jnp.where(any_valid, jax.nn.softplus(gap), 0)


def sampled_softmax(
    pos: Array,
    neg: Array,
    *,
    where: Array | None = None,
    log_q_pos: Array | Scalar = 0.0,
    log_q_neg: Array | Scalar = 0.0,
    temperature: Scalar = 1.0,
) -> Array:
    """Softmax with the log-q correction of the sampler (Yi et al. 2019, 10.1145/3298689.3346996).

    `softmax` of (pos/temperature − log_q_pos) against (neg/temperature − log_q_neg).

    Args:
        pos: scores [...].
        neg: scores [..., n], drawn with probability q.
        where: bool [..., n], True = use.
        log_q_pos: log q of the positives, [...] or a scalar.
        log_q_neg: log q of the negatives, [..., n] or a scalar; a constant cancels against `log_q_pos`.
        temperature: divides the scores, not log q.
    """
    return softmax(pos / temperature - log_q_pos, neg / temperature - log_q_neg, where=where)


def bsl(
    pos: Array,
    neg: Array,
    *,
    where: Array | None = None,
    temperature: Scalar = 0.11,
    exponent: Scalar = 1.1,
    negatives: Negatives = "mean",
) -> Array:
    """Bilateral softmax loss (Wu et al. 2023, arXiv 2312.12882): −pos/t + exponent · log meanⱼ e^(negⱼ/t).

    The defaults are the released code's for Yelp2018; for Gowalla it takes temperature .08, exponent 1.22. The positive
    is not in the denominator. `negatives="sum"` replaces the mean in the logarithm, the released mode "reweight".

    Differs: the paper's two temperatures are, in the released code and here, one temperature and an exponent. Its
    pooling of positives of one user within a batch is a transform of `pos`, made before the loss.

    >>> float(bsl(jnp.array(0.5), jnp.array([0.5]), temperature=0.5, exponent=1.0))
    0.0
    """
    pos, neg, where, any_valid = masked(pos, neg, where)
    partition = _logsumexp(neg / temperature, where, any_valid)
    if negatives == "mean":
        count = jnp.broadcast_to(where, neg.shape).sum(-1)
        partition = partition - jnp.log(jnp.maximum(count, 1).astype(partition.dtype))
    elif negatives != "sum":
        raise ValueError(f'negatives={negatives!r}; give "mean" or "sum"')
    return jnp.where(any_valid, exponent * partition - pos / temperature, 0)


def _checked_rows(scores: Array, targets: Array, where: Array | None) -> tuple[Array, Array, Array]:
    chex.assert_equal_shape([scores, targets])
    chex.assert_type(scores, float)
    if where is None:
        where = jnp.ones(scores.shape, bool)
    chex.assert_type(where, bool)
    return jnp.where(where, scores, 0), jnp.where(where, targets.astype(scores.dtype), 0), where


def multinomial(scores: Array, targets: Array, *, where: Array | None = None) -> Array:
    """Negative multinomial log-likelihood of a row (Liang et al. 2018, arXiv 1802.05814).

    −Σⱼ targetsⱼ log softmax(scores)ⱼ.

    Args:
        scores: logits [..., N].
        targets: counts or 0/1 [..., N], any numeric or bool dtype.
        where: bool [..., N], True = use; masked items leave the normalisation too.

    >>> round(float(multinomial(jnp.zeros(4), jnp.array([1, 0, 1, 0]))), 4)
    2.7726
    """
    scores, targets, where = _checked_rows(scores, targets, where)
    normaliser = _logsumexp(scores, where, where.any(-1))
    return (targets * (normaliser[..., None] - scores)).sum(-1)


def sparsemax(scores: Array, targets: Array, *, where: Array | None = None) -> Array:
    """Sparsemax loss of a row (Martins and Astudillo 2016, arXiv 1602.02068), a quadratic kin of the softmax.

    maxₚ (p·s − ½‖p‖²) + ½‖y‖² − s·y over the simplex, y = targets scaled to sum 1. Its gradient is
    sparsemax(s) − y, exact in the first order; second derivatives of the projection are not propagated.

    Args:
        scores: [..., N].
        targets: non-negative [..., N], any numeric or bool dtype; a row of zeros has loss 0.
        where: bool [..., N], True = use.

    >>> float(sparsemax(jnp.array([3.0, 0.0]), jnp.array([1, 0])))
    0.0
    """
    scores, targets, where = _checked_rows(scores, targets, where)
    total = targets.sum(-1, keepdims=True)
    targets = targets / jnp.where(total > 0, total, 1)
    p = jax.lax.stop_gradient(_simplex_projection(scores, where))
    values = (p * scores).sum(-1) - 0.5 * (p**2).sum(-1) + 0.5 * (targets**2).sum(-1) - (scores * targets).sum(-1)
    return jnp.where(total[..., 0] > 0, values, 0)


def _simplex_projection(scores: Array, where: Array) -> Array:
    """Euclidean projection of each row's valid entries onto the simplex; shifting by the maximum keeps it exact."""
    top = jnp.where(where, scores, -jnp.inf).max(-1, keepdims=True)
    shifted = jnp.where(where, scores - jnp.where(jnp.isfinite(top), top, 0), -jnp.inf)
    ordered = -jnp.sort(-shifted, axis=-1)
    finite = jnp.where(jnp.isfinite(ordered), ordered, 0)
    rank = jnp.arange(1, scores.shape[-1] + 1).astype(scores.dtype).reshape((1,) * (scores.ndim - 1) + (-1,))
    support = jnp.isfinite(ordered) & (1 + rank * finite > jnp.cumsum(finite, axis=-1))
    size = jnp.maximum(support.sum(-1, keepdims=True), 1).astype(scores.dtype)
    threshold = (jnp.where(support, finite, 0).sum(-1, keepdims=True) - 1) / size
    return jnp.where(where, jax.nn.relu(shifted - threshold), 0)
