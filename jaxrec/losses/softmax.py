"""Losses through a normalised distribution: over one positive and its negatives, or over a whole row of items.

`softmax`, `sampled_softmax`, `infonce_plus`, `mine` and `bsl` have the signature of `jaxrec.losses.pairwise` and form
one log-sum-exp a row, so that `pos` [B, P] against all items `neg` [B, 1, N] costs [B, N]. `pooled` prepares the
positives of `bsl`. `multinomial` and `sparsemax` take `scores` and `targets` [..., N].
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
) -> tuple[Array, Array, Array]:
    """log((Σⱼ eⁿʲ + positive_share · eᵖ) / eᵖ), the one log-sum-exp of this family; also p and the valid rows."""
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
    log_share = jnp.log(jnp.where(share > 0, share, 1))
    return jnp.where(share > 0, log_share + jax.nn.softplus(gap - log_share), gap), p, any_valid


def softmax(pos: Array, neg: Array, *, where: Array | None = None, temperature: Scalar = 1.0) -> Array:
    """Softmax cross-entropy of the positive against its negatives: InfoNCE, or SSM on cosines.

    log(eᵖ + Σⱼ eⁿʲ) − p with p = pos/temperature, nʲ = negⱼ/temperature (van den Oord et al. 2018, arXiv 1807.03748;
    Wu et al. 2022, arXiv 2201.02327). One negative and temperature 1 give `bpr`. With all other items as negatives it
    is the full softmax.

    Scores pos [...] and neg [..., n], where bool [..., n] (True = use) -> [...].

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
) -> Array:
    """InfoNCE with balance coefficients (Li et al. 2023, arXiv 2312.08520), the general form of `softmax` and `bsl`.

    −p + exponent · log(Σⱼ eⁿʲ + positive_share · eᵖ) with p = pos/temperature, nʲ = negⱼ/temperature. Exponent 1 and
    share 1 give `softmax`; share 0 gives `mine`.

    Args:
        pos: scores [...].
        neg: scores [..., n].
        where: bool [..., n], True = use.
        temperature: divides the scores.
        exponent: λ of the paper, the weight of the logarithm.
        positive_share: ε of the paper, the weight ≥ 0 of the positive among the negatives; at 0 it gets no gradient.
        negatives: "mean" replaces the sum over the negatives by their mean.

    >>> round(float(infonce_plus(jnp.array(0.0), jnp.array([0.0]), exponent=1.0)), 4)
    0.6931
    """
    exponent = setting("exponent", exponent, pos, least=0)
    how = {"temperature": temperature, "positive_share": positive_share, "negatives": negatives}
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
) -> Array:
    """Decoupled contrastive loss MINE (Li et al. 2023, arXiv 2312.08520): −p + exponent · log meanⱼ eⁿʲ.

    p = pos/temperature, nʲ = negⱼ/temperature; the positive is not in the logarithm. The paper's MINE+ is
    `mine(exponent=1.1, negatives="sum")` with a temperature, which is `bsl` with a sum.

    Scores pos [...] and neg [..., n], where bool [..., n] (True = use) -> [...]; negatives "mean" or "sum".

    >>> float(mine(jnp.array(0.5), jnp.array([0.5])))
    0.0
    """
    how = {"temperature": temperature, "exponent": exponent, "negatives": negatives}
    return infonce_plus(pos, neg, where=where, positive_share=0.0, **how)


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
    pooling of positives of one user within a batch, the released mode "multi", is `pooled`, made before the loss.

    Scores pos [...] and neg [..., n], where bool [..., n] (True = use) -> [...]; negatives "mean" or "sum".

    >>> float(bsl(jnp.array(0.5), jnp.array([0.5]), temperature=0.5, exponent=1.0))
    0.0
    """
    return mine(pos, neg, where=where, temperature=temperature, exponent=exponent, negatives=negatives)


def pooled(pos: Array, users: Array, *, where: Array | None = None, temperature: Scalar) -> Array:
    """Pools the positives of each user in a batch, for `bsl` (Wu et al. 2023, arXiv 2312.12882).

    temperature · log meanᵣ e^(posᵣ/temperature) over the rows r of the batch with the same user, in every such row.
    `bsl(pooled(pos, users, temperature=t), neg, temperature=t)` is the released mode "multi". With distinct users it
    changes nothing.

    Args:
        pos: scores [B].
        users: integer ids [B], in any order.
        where: bool [B], True = use; other rows are in no mean and get 0.
        temperature: that of the loss.

    >>> pos, users = jnp.array([1.0, 3.0, 5.0]), jnp.array([7, 2, 7])
    >>> [round(float(p), 4) for p in pooled(pos, users, temperature=1.0)]
    [4.325, 3.0, 4.325]
    """
    temperature = setting("temperature", temperature, pos, above=0)
    where = jnp.ones(jnp.shape(pos), bool) if where is None else where
    chex.assert_rank(pos, 1)
    chex.assert_equal_shape([pos, users, where])
    chex.assert_type([pos, users, where], [float, int, bool])
    if not isinstance(users, jax.Array):  # whose 64 bits JAX would cut, so that users become one
        users = np.unique(users, return_inverse=True)[1].astype(np.int32)
    pos, n_rows = accumulated(pos), len(pos)
    order = jnp.argsort(users)
    ordered = jnp.asarray(users)[order]
    is_next_user = jnp.concatenate([jnp.zeros(min(1, n_rows), bool), ordered[1:] != ordered[:-1]])
    segment = jnp.zeros(n_rows, jnp.int32).at[order].set(jnp.cumsum(is_next_user, dtype=jnp.int32))

    p = jnp.where(where, pos, 0) / temperature
    kept = jax.lax.stop_gradient(jnp.where(where, p, -jnp.inf))
    top = jax.ops.segment_max(kept, segment, num_segments=n_rows)[segment]
    shifted = jnp.where(where, p - jnp.where(where, top, 0), -jnp.inf)
    total, count = (
        jnp.where(where, jax.ops.segment_sum(x, segment, num_segments=n_rows)[segment], 1)
        for x in (jnp.exp(shifted), where.astype(p.dtype))
    )
    return jnp.where(where, temperature * (jnp.where(where, top, 0) + jnp.log(total / count)), 0)


def _checked_rows(scores: Array, targets: Array, where: Array | None) -> tuple[Array, Array, Array]:
    chex.assert_equal_shape([scores, targets])
    chex.assert_type(scores, float)
    if where is None:
        where = jnp.ones(scores.shape, bool)
    chex.assert_type(where, bool)
    scores = accumulated(scores)
    return jnp.where(where, scores, 0), jnp.where(where, jnp.asarray(targets, scores.dtype), 0), where


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
    normaliser = logsumexp(scores, where, where.any(-1))
    return (targets * (normaliser[..., None] - scores)).sum(-1)


def sparsemax(scores: Array, targets: Array, *, where: Array | None = None) -> Array:
    """Sparsemax loss of a row (Martins and Astudillo 2016, arXiv 1602.02068), a quadratic kin of the softmax.

    maxₚ (p·s − ½‖p‖²) + ½‖y‖² − s·y over the simplex, y = targets scaled to sum 1. Its gradient in the scores is
    sparsemax(s) − y and in y it is y − s; both are written out, and both modes of differentiation work.

    Args:
        scores: [..., N].
        targets: non-negative [..., N], any numeric or bool dtype; a row of zeros has loss 0.
        where: bool [..., N], True = use.

    >>> float(sparsemax(jnp.array([3.0, 0.0]), jnp.array([1, 0])))
    0.0
    """
    scores, targets, where = _checked_rows(scores, targets, where)
    total = targets.sum(-1, keepdims=True)
    values = _fenchel_young(scores, targets / jnp.where(total > 0, total, 1), where)
    return jnp.where(total[..., 0] > 0, values, 0)


@jax.custom_jvp
def _fenchel_young(scores: Array, targets: Array, where: Array) -> Array:
    p = _simplex_projection(scores, where)
    return (p * scores).sum(-1) - 0.5 * (p**2).sum(-1) + 0.5 * (targets**2).sum(-1) - (scores * targets).sum(-1)


@partial(_fenchel_young.defjvp, symbolic_zeros=True)
def _fenchel_young_tangent(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    scores, targets, where = primals
    slopes = _simplex_projection(scores, where) - targets, targets - scores
    moved = [s * t for s, t in zip(slopes, tangents) if not isinstance(t, jax.custom_derivatives.SymbolicZero)]
    return _fenchel_young(*primals), sum(moved).sum(-1)


def _simplex_projection(scores: Array, where: Array) -> Array:
    """Euclidean projection of each row's valid entries onto the simplex; shifting by the maximum keeps it exact.

    Σ relu(s − τ) = 1 is solved by Newton's method from τ = max s − 1: as the sum is convex in τ, the steps only rise,
    and end at the root once the support no longer shrinks (Michelot 1986, 10.1007/BF00938486). Nothing is sorted.
    """
    top = jnp.where(where, scores, -jnp.inf).max(-1, keepdims=True)
    shifted = jnp.where(where, scores - jnp.where(jnp.isfinite(top), top, 0), -jnp.inf)

    def threshold(support: Array) -> Array:
        size = jnp.maximum(support.sum(-1, keepdims=True, dtype=jnp.int32), 1).astype(scores.dtype)
        return (jnp.where(support, shifted, 0).sum(-1, keepdims=True) - 1) / size

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        _, tau = state
        return tau, jnp.maximum(threshold(fixed > tau), tau)

    fixed = jax.lax.stop_gradient(shifted)
    lowest = jnp.full_like(fixed[..., :1], -1)
    _, tau = jax.lax.while_loop(lambda state: (state[1] > state[0]).any(), step, (lowest - 1, lowest))
    return jnp.where(where, jax.nn.relu(shifted - threshold(fixed > tau)), 0)
