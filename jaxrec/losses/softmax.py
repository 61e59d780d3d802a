"""Losses of a normalised distribution, over a positive and its negatives or over all items.

`softmax`, `sampled_softmax`, `infonce_plus`, `mine` and `bsl` have the signature of
`jaxrec.losses.pairwise`. They compute one log-sum-exp for each row of negatives, so `pos` [B, P]
against all items, `neg` [B, 1, N], takes memory [B, N]. `pooled` prepares the positives of `bsl`.
`multinomial` and `sparsemax` take `scores` and `targets` [..., N].
"""

from __future__ import annotations

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._numerics import accumulated
from jaxrec.losses._reduce import Negatives, logsumexp, masked, setting
from jaxrec.typing import Array, Scalar


def _log_ratio(
    pos: Array,
    neg: Array,
    where: Array | None,
    *,
    temperature: Scalar = 1.0,
    positive_share: Scalar = 1.0,
    negatives: Negatives = "sum",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes log((Σⱼ eⁿʲ + positive_share · eᵖ) / eᵖ), the log-sum-exp that this family shares.

    Also returns p = pos/temperature, and which rows have a valid negative.
    """
    temperature = setting("temperature", temperature, pos, above=0)
    share = setting("positive_share", positive_share, pos, least=0)
    pos, neg, where, any_valid = masked(pos, neg, where)
    p = pos / temperature
    partition = logsumexp(neg / temperature, where, any_valid)
    if negatives == "mean":
        count = jnp.broadcast_to(where, neg.shape).sum(-1, dtype=jnp.int32)
        partition = partition - jnp.log(jnp.maximum(count, 1).astype(partition.dtype))
    elif negatives != "sum":
        raise ValueError(f'negatives={negatives!r}; give "mean" or "sum"')
    gap = partition - p
    # Double where: a share of 0 has no logarithm.
    log_share = jnp.log(jnp.where(share > 0, share, 1))
    return jnp.where(share > 0, log_share + jax.nn.softplus(gap - log_share), gap), p, any_valid


def softmax(pos: Array, neg: Array, *, where: Array | None = None, temperature: Scalar = 1.0) -> jax.Array:
    """Softmax cross-entropy of the positive against its negatives: InfoNCE, or SSM on cosines.

    log(eᵖ + Σⱼ eⁿʲ) − p with p = pos/temperature, nʲ = negⱼ/temperature (van den Oord et al. 2018,
    arXiv 1807.03748; Wu et al. 2022, arXiv 2201.02327). With one negative and temperature 1 it is
    `bpr`. With all other items as negatives it is the full softmax.

    Args:
        pos: scores of the positives, [...].
        neg: scores of the negatives, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        temperature: divides the scores; above 0.

    Returns:
        Losses [...].

    >>> round(float(softmax(jnp.array(0.0), jnp.array([0.0]))), 4)
    0.6931
    """
    ratio, _, any_valid = _log_ratio(pos, neg, where, temperature=temperature)
    return jnp.where(any_valid, ratio, 0)


def sampled_softmax(
    pos: Array,
    neg: Array,
    *,
    where: Array | None = None,
    log_q_pos: Array | Scalar = 0.0,
    log_q_neg: Array | Scalar = 0.0,
    temperature: Scalar = 1.0,
) -> jax.Array:
    """Softmax with the log-q correction of the sampler (Yi et al. 2019, 10.1145/3298689.3346996).

    `softmax` of (pos/temperature − log_q_pos) against (neg/temperature − log_q_neg).

    Args:
        pos: scores of the positives, [...].
        neg: scores of the negatives, [..., n], which are drawn with probability q.
        where: bool [..., n], True for the negatives to use; None uses all.
        log_q_pos: log q of the positives, [...] or a scalar.
        log_q_neg: log q of the negatives, [..., n] or a scalar. The same constant added to both
            cancels.
        temperature: divides the scores, but not log q; above 0.

    Returns:
        Losses [...].
    """
    temperature = setting("temperature", temperature, pos, above=0)
    chex.assert_type([pos, neg], float)
    pos, neg = (accumulated(x) / temperature for x in (pos, neg))
    return softmax(pos - jnp.asarray(log_q_pos, pos.dtype), neg - jnp.asarray(log_q_neg, neg.dtype), where=where)


def infonce_plus(
    pos: Array,
    neg: Array,
    *,
    where: Array | None = None,
    temperature: Scalar = 1.0,
    exponent: Scalar = 1.1,
    positive_share: Scalar = 1.0,
    negatives: Negatives = "sum",
) -> jax.Array:
    """InfoNCE with balance coefficients (Li et al. 2023, arXiv 2312.08520).

    −p + exponent · log(Σⱼ eⁿʲ + positive_share · eᵖ) with p = pos/temperature, nʲ =
    negⱼ/temperature. It generalises `softmax` (exponent 1, share 1) and `mine` and `bsl` (share 0).

    Args:
        pos: scores of the positives, [...].
        neg: scores of the negatives, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        temperature: divides the scores; above 0.
        exponent: λ of the paper, the weight of the logarithm.
        positive_share: ε of the paper, the weight of the positive in the logarithm, 0 or more. At
            0, `positive_share` itself gets no gradient.
        negatives: "sum" or "mean" of the negatives inside the logarithm.

    Returns:
        Losses [...].

    >>> round(float(infonce_plus(jnp.array(0.0), jnp.array([0.0]), exponent=1.0)), 4)
    0.6931
    """
    exponent = setting("exponent", exponent, pos, least=0)
    how: dict[str, Any] = {"temperature": temperature, "positive_share": positive_share, "negatives": negatives}
    ratio, p, any_valid = _log_ratio(pos, neg, where, **how)
    return jnp.where(any_valid, exponent * ratio + (exponent - 1) * p, 0)


def mine(
    pos: Array,
    neg: Array,
    *,
    where: Array | None = None,
    temperature: Scalar = 1.0,
    exponent: Scalar = 1.0,
    negatives: Negatives = "mean",
) -> jax.Array:
    """Decoupled contrastive loss MINE (Li et al. 2023, arXiv 2312.08520).

    −p + exponent · log meanⱼ eⁿʲ.

    p = pos/temperature, nʲ = negⱼ/temperature; the positive is not in the logarithm. The paper's
    MINE+ is `mine(exponent=1.1, negatives="sum")` with a temperature, which is also `bsl` with a
    sum.

    Args:
        pos: scores of the positives, [...].
        neg: scores of the negatives, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        temperature: divides the scores; above 0.
        exponent: weight of the logarithm.
        negatives: "mean" or "sum" of the negatives inside the logarithm.

    Returns:
        Losses [...].

    >>> float(mine(jnp.array(0.5), jnp.array([0.5])))
    0.0
    """
    how: dict[str, Any] = {"temperature": temperature, "exponent": exponent, "negatives": negatives}
    return infonce_plus(pos, neg, where=where, positive_share=0.0, **how)


def bsl(
    pos: Array,
    neg: Array,
    *,
    where: Array | None = None,
    temperature: Scalar = 0.11,
    exponent: Scalar = 1.1,
    negatives: Negatives = "mean",
) -> jax.Array:
    """Bilateral softmax loss (Wu et al. 2023, arXiv 2312.12882).

    −pos/t + exponent · log meanⱼ e^(negⱼ/t).

    The positive is not in the denominator. The defaults are those of the released code for
    Yelp2018; for Gowalla it uses temperature .08 and exponent 1.22.

    Args:
        pos: scores of the positives, [...].
        neg: scores of the negatives, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        temperature: t, which divides the scores; above 0.
        exponent: weight of the logarithm.
        negatives: "mean" or "sum" of the negatives inside the logarithm; "sum" is the released mode
            "reweight".

    Returns:
        Losses [...].

    Differs: follows the released code instead of the paper: one temperature and an exponent replace
    the paper's two temperatures. The paper also pools the positives of a user within a batch (the
    released mode "multi"): apply `pooled` before this loss.

    >>> float(bsl(jnp.array(0.5), jnp.array([0.5]), temperature=0.5, exponent=1.0))
    0.0
    """
    return mine(pos, neg, where=where, temperature=temperature, exponent=exponent, negatives=negatives)


def pooled(pos: Array, users: Array, *, where: Array | None = None, temperature: Scalar) -> jax.Array:
    """Pools the positives of each user in a batch, for `bsl` (Wu et al. 2023, arXiv 2312.12882).

    Each row gets temperature · log meanᵣ e^(posᵣ/temperature) over the rows r of the batch with the
    same user. `bsl(pooled(pos, users, temperature=t), neg, temperature=t)` is the released mode
    "multi". If all users differ, `pos` does not change.

    Args:
        pos: scores of the positives, [B].
        users: integer ids [B], in any order.
        where: bool [B], True for the rows to use; the others enter no mean and get 0.
        temperature: the temperature of the loss.

    Returns:
        Pooled scores [B].

    >>> pos, users = jnp.array([1.0, 3.0, 5.0]), jnp.array([7, 2, 7])
    >>> [round(float(p), 4) for p in pooled(pos, users, temperature=1.0)]
    [4.325, 3.0, 4.325]
    """
    temperature = setting("temperature", temperature, pos, above=0)
    where = jnp.ones(jnp.shape(pos), bool) if where is None else where
    chex.assert_rank(pos, 1)
    chex.assert_equal_shape([pos, users, where])
    chex.assert_type([pos, users, where], [float, int, bool])
    if not isinstance(users, jax.Array):  # without x64, JAX would truncate 64-bit ids and merge users
        users = np.unique(users, return_inverse=True)[1].astype(np.int32)
    pos, n_rows = accumulated(pos), len(pos)
    order = jnp.argsort(users)
    ordered = jnp.asarray(users)[order]
    is_next_user = jnp.concatenate([jnp.zeros(min(1, n_rows), bool), ordered[1:] != ordered[:-1]])
    segment = jnp.zeros(n_rows, jnp.int32).at[order].set(jnp.cumsum(is_next_user, dtype=jnp.int32))

    # A log-mean-exp for each segment, shifted by its maximum; the shift needs no gradient.
    p = jnp.where(where, pos, 0) / temperature
    kept = jax.lax.stop_gradient(jnp.where(where, p, -jnp.inf))
    top = jax.ops.segment_max(kept, segment, num_segments=n_rows)[segment]
    shifted = jnp.where(where, p - jnp.where(where, top, 0), -jnp.inf)
    total, count = (
        jnp.where(where, jax.ops.segment_sum(x, segment, num_segments=n_rows)[segment], 1)
        for x in (jnp.exp(shifted), where.astype(p.dtype))
    )
    return jnp.where(where, temperature * (jnp.where(where, top, 0) + jnp.log(total / count)), 0)


def _checked_rows(scores: Array, targets: Array, where: Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Checks the shapes of whole rows, replaces masked entries by 0, and returns `where` as bool."""
    chex.assert_equal_shape([scores, targets])
    chex.assert_type(scores, float)
    if where is None:
        where = jnp.ones(scores.shape, bool)
    chex.assert_type(where, bool)
    scores = accumulated(scores)
    return jnp.where(where, scores, 0), jnp.where(where, jnp.asarray(targets, scores.dtype), 0), where


def multinomial(scores: Array, targets: Array, *, where: Array | None = None) -> jax.Array:
    """Negative multinomial log-likelihood of a row (Liang et al. 2018, arXiv 1802.05814).

    −Σⱼ targetsⱼ log softmax(scores)ⱼ.

    Args:
        scores: logits [..., N].
        targets: counts or 0/1 [..., N], any numeric or bool dtype.
        where: bool [..., N], True for the items to use; the others are left out of the softmax too.

    Returns:
        Losses [...].

    >>> round(float(multinomial(jnp.zeros(4), jnp.array([1, 0, 1, 0]))), 4)
    2.7726
    """
    scores, targets, where = _checked_rows(scores, targets, where)
    normaliser = logsumexp(scores, where, where.any(-1))
    return (targets * (normaliser[..., None] - scores)).sum(-1)


def sparsemax(scores: Array, targets: Array, *, where: Array | None = None) -> jax.Array:
    """Sparsemax loss of a row (Martins and Astudillo 2016, arXiv 1602.02068), a quadratic softmax.

    maxₚ (p·s − ½‖p‖²) + ½‖y‖² − s·y over p in the simplex, where s are the scores and y the targets
    scaled to sum to 1. The gradients, sparsemax(s) − y in s and y − s in y, are given in closed
    form, and forward and reverse mode work.

    Args:
        scores: [..., N].
        targets: non-negative [..., N], any numeric or bool dtype; a row of zeros has loss 0.
        where: bool [..., N], True for the items to use; None uses all.

    Returns:
        Losses [...].

    >>> float(sparsemax(jnp.array([3.0, 0.0]), jnp.array([1, 0])))
    0.0
    """
    scores, targets, where = _checked_rows(scores, targets, where)
    total = targets.sum(-1, keepdims=True)
    values = _fenchel_young(scores, targets / jnp.where(total > 0, total, 1), where)
    return jnp.where(total[..., 0] > 0, values, 0)


@jax.custom_jvp
def _fenchel_young(scores: Array, targets: Array, where: Array) -> jax.Array:
    """The sparsemax loss for targets that sum to 1, with its own derivatives."""
    p = _simplex_projection(scores, where)
    return (p * scores).sum(-1) - 0.5 * (p**2).sum(-1) + 0.5 * (targets**2).sum(-1) - (scores * targets).sum(-1)


@partial(_fenchel_young.defjvp, symbolic_zeros=True)
def _fenchel_young_tangent(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    """The directional derivative of `_fenchel_young`; skips arguments without a tangent."""
    scores, targets, where = primals
    slopes = _simplex_projection(scores, where) - targets, targets - scores
    moved = [s * t for s, t in zip(slopes, tangents) if not isinstance(t, jax.custom_derivatives.SymbolicZero)]
    return _fenchel_young(*primals), sum(moved).sum(-1)


def _simplex_projection(scores: Array, where: Array) -> jax.Array:
    """Projects each row's valid entries onto the simplex (Euclidean projection).

    Newton's method solves Σ relu(s − τ) = 1 from τ = max s − 1. The sum is convex in τ, so τ only
    grows, and the method is exact once the support no longer shrinks (Michelot 1986,
    10.1007/BF00938486). This needs no sort. Subtracting the maximum first does not change the
    projection and limits rounding errors.
    """
    top = jnp.where(where, scores, -jnp.inf).max(-1, keepdims=True)
    shifted = jnp.where(where, scores - jnp.where(jnp.isfinite(top), top, 0), -jnp.inf)

    def threshold(support: Array) -> jax.Array:
        size = jnp.maximum(support.sum(-1, keepdims=True, dtype=jnp.int32), 1).astype(scores.dtype)
        return (jnp.where(support, shifted, 0).sum(-1, keepdims=True) - 1) / size

    def step(state: tuple[Array, Array]) -> tuple[jax.Array, jax.Array]:
        _, tau = state
        return tau, jnp.maximum(threshold(fixed > tau), tau)

    # The loop only finds the support, which needs no gradient; the last threshold has one.
    fixed = jax.lax.stop_gradient(shifted)
    lowest = jnp.full_like(fixed[..., :1], -1)
    _, tau = jax.lax.while_loop(lambda state: (state[1] > state[0]).any(), step, (lowest - 1, lowest))
    return jnp.where(where, jax.nn.relu(shifted - threshold(fixed > tau)), 0)
