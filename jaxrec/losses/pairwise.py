"""Losses that compare the score of a positive with those of its negatives, by difference or margin.

`pos` [...] and `neg` [..., n] are scores, larger is better. Each loss returns [...]. By default the
losses of a positive's valid negatives are averaged, so that their number does not change the size
of the gradient; `negatives="sum"` adds them up, as some papers do. A row without a valid negative
is 0 and has no gradient. To use all items as negatives, pass `pos` [B, P] with `neg` [B, 1, N]: no
loss then forms an array [B, P, N], unless `where` has that shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from jaxrec.losses._reduce import Negatives, by_positive, masked, over_negatives, setting
from jaxrec.typing import Array, Scalar


def bpr(pos: Array, neg: Array, *, where: Array | None = None, negatives: Negatives = "mean") -> jax.Array:
    """Bayesian personalised ranking (Rendle et al. 2009, arXiv 1205.2618).

    meanⱼ −log σ(pos − negⱼ).

    Args:
        pos: scores of the positives, [...].
        neg: scores of the negatives, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        negatives: "mean" or "sum" over the negatives of a positive.

    Returns:
        Losses [...].

    >>> round(float(bpr(jnp.array(0.0), jnp.array([0.0]))), 4)
    0.6931
    """
    return _over_differences(jax.nn.softplus, pos, neg, where, negatives)


def hinge(
    pos: Array, neg: Array, *, where: Array | None = None, margin: Scalar = 1.0, negatives: Negatives = "mean"
) -> jax.Array:
    """Margin loss on score differences: meanⱼ max(0, margin − pos + negⱼ).

    It is the triplet loss in terms of scores.

    Args:
        pos: scores of the positives, [...].
        neg: scores of the negatives, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        margin: how much higher the positive should score.
        negatives: "mean" or "sum" over the negatives of a positive.

    Returns:
        Losses [...].

    >>> float(hinge(jnp.array(2.0), jnp.array([0.0, 1.5])))
    0.25
    """
    margin = setting("margin", margin, pos)
    return _over_differences(lambda gap: jax.nn.relu(margin + gap), pos, neg, where, negatives)


def warp(
    pos: Array, neg: Array, *, where: Array | None = None, margin: Scalar = 1.0, n_items: Scalar | int
) -> jax.Array:
    """Weighted approximate-rank loss (Hsieh et al. 2017, 10.1145/3038912.3052639).

    log(1 + n_items · v) · max(0, margin − pos + maxⱼ negⱼ), where v is the fraction of the
    negatives that violate the margin (margin − pos + negⱼ > 0). The logarithm depends on the
    estimated rank n_items · v and gets no gradient.

    Args:
        pos: scores of the positives, [...]; in collaborative metric learning, minus squared
            distances.
        neg: scores of the negatives, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        margin: how much higher the positive should score.
        n_items: number of items in the catalogue, an int or traced.

    Returns:
        Losses [...].

    Differs: Weston et al. (2011) count draws until one violates the margin; here the number of
    negatives is fixed, because JAX needs static shapes.

    >>> round(float(warp(jnp.array(2.0), jnp.array([0.0, 1.5]), n_items=10)), 4)
    0.8959
    """
    margin, n_items = setting("margin", margin, pos), setting("n_items", n_items, pos, least=1)

    def compare(pos: Array, neg: Array, where: Array | None) -> jax.Array:
        pos, neg, where, any_valid = masked(pos, neg, where)
        gap = margin - pos[..., None] + neg
        fraction = over_negatives((gap > 0).astype(gap.dtype), where, "mean")
        rank = jax.lax.stop_gradient(n_items * fraction)
        worst = jnp.where(where, gap, -jnp.inf).max(-1)
        return jnp.where(any_valid, jnp.log1p(rank) * jax.nn.relu(worst), 0)

    return by_positive(compare, (pos,), (neg, where))


def ccl(
    pos: Array,
    neg: Array,
    *,
    where: Array | None = None,
    margin: Scalar = 0.9,
    weight: Scalar = 150.0,
    negatives: Negatives = "mean",
) -> jax.Array:
    """Cosine contrastive loss (SimpleX, Mao et al. 2021, arXiv 2109.12613).

    max(0, 1 − pos) + weight · meanⱼ max(0, negⱼ − margin), on cosines. Dropout after normalisation
    can make pos larger than 1, hence the max in the first term.

    Args:
        pos: cosines of the positives, [...].
        neg: cosines of the negatives, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        margin: the largest cosine of a negative without a penalty.
        weight: weight of the negatives.
        negatives: "mean" or "sum" over the negatives of a positive.

    Returns:
        Losses [...].

    Differs: the released code sums over the negatives if its weight is 0 or None; here
    `negatives="sum"` does so.

    >>> round(float(ccl(jnp.array(0.8), jnp.array([0.95, 0.1]))), 4)
    3.95
    """
    weight = setting("weight", weight, pos, least=0)
    return mml(pos, neg, where=where, margins=(margin,), weights=(1.0,), negative_weight=weight, negatives=negatives)


def mml(
    pos: Array,
    neg: Array,
    *,
    where: Array | None = None,
    margins: Sequence[Scalar] | Array = (0.6, 0.7, 0.8, 0.9),
    weights: Sequence[Scalar] | Array = (0.05, 0.15, 0.2, 0.6),
    positive_weight: Scalar = 1.0,
    negative_weight: Scalar = 400.0,
    negatives: Negatives = "mean",
) -> jax.Array:
    """Multi-margin loss (Ozsoy 2024, arXiv 2405.04614), later named multi-margin cosine loss.

    positive_weight · max(0, 1 − pos) + negative_weight · meanⱼ Σₖ weightsₖ max(0, negⱼ − marginsₖ),
    on cosines. The penalty of a negative is piecewise linear, and its slope grows at each margin.
    The defaults are the paper's for Yelp2018; for Gowalla it uses margins (.7, .8, .9), weights
    (.1, .15, .75) and negative_weight 700.

    Args:
        pos: cosines of the positives, [...].
        neg: cosines of the negatives, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        margins: K numbers.
        weights: K numbers, one for each margin.
        positive_weight: factor of the positive term.
        negative_weight: factor of the negative term.
        negatives: "mean" (as in the released code) or "sum" over the negatives of a positive.

    Returns:
        Losses [...].

    Raises:
        ValueError: if there are no margins, if margins and weights have different lengths, if a
            margin is not a finite number, or if a weight is not finite or below 0.

    Differs: follows the released code instead of the paper: equation 7 of the paper has no negative
    weight; here it stands where the code has it.

    >>> round(float(mml(jnp.array(0.8), jnp.array([0.95, 0.72, 0.5, -0.2]))), 4)
    12.6
    """
    if len(margins) != len(weights) or not len(margins):
        raise ValueError(f"{len(margins)} margins and {len(weights)} weights; give one weight for each margin")
    chex.assert_rank([*margins, *weights], 0)
    margins = [setting("margin", margin, pos) for margin in margins]
    weights = [setting("weight", weight, pos, least=0) for weight in weights]
    positive_weight = setting("positive_weight", positive_weight, pos, least=0)
    negative_weight = setting("negative_weight", negative_weight, pos, least=0)
    pos, neg, where, any_valid = masked(pos, neg, where)
    penalty = jnp.asarray(sum(weight * jax.nn.relu(neg - margin) for margin, weight in zip(margins, weights)))
    values = positive_weight * jax.nn.relu(1 - pos) + negative_weight * over_negatives(penalty, where, negatives)
    return jnp.where(any_valid, values, 0)


def _over_differences(
    penalty: Callable[[Array], Array], pos: Array, neg: Array, where: Array | None, negatives: Negatives
) -> jax.Array:
    """Returns the mean or sum over j of penalty(negⱼ − pos)."""

    def compare(pos: Array, neg: Array, where: Array | None) -> jax.Array:
        pos, neg, where, any_valid = masked(pos, neg, where)
        return jnp.where(any_valid, over_negatives(penalty(neg - pos[..., None]), where, negatives), 0)

    return by_positive(compare, (pos,), (neg, where))
