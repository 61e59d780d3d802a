"""Losses of distances: `pos` [...] and `neg` [..., n] are distances d ≥ 0, smaller is better.

Masks and reductions are those of `jaxrec.losses.pairwise`. `on_scores` turns any of these losses
into a loss of scores, for models whose score is minus a squared distance.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxrec._numerics import accumulated
from jaxrec.losses._reduce import Negatives, by_positive, masked, over_negatives, setting
from jaxrec.typing import Array, Loss, Scalar


def contrastive(
    pos: Array, neg: Array, *, where: Array | None = None, margin: Scalar = 1.0, negatives: Negatives = "mean"
) -> jax.Array:
    """Contrastive loss (Hadsell et al. 2006, 10.1109/CVPR.2006.100).

    ½ pos² + ½ meanⱼ max(0, margin − negⱼ)².

    Args:
        pos: distances user to positive item, [...].
        neg: distances user to negative items, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        margin: the distance that negatives should have at least.
        negatives: "mean" or "sum" over the negatives of a positive.

    Returns:
        Losses [...].

    >>> float(contrastive(jnp.array(2.0), jnp.array([0.0, 3.0])))
    2.25
    """
    margin = setting("margin", margin, pos)
    pos, neg, where, any_valid = masked(pos, neg, where)
    values = 0.5 * pos**2 + 0.5 * over_negatives(jax.nn.relu(margin - neg) ** 2, where, negatives)
    return jnp.where(any_valid, values, 0)


def triplet(
    pos: Array, neg: Array, *, where: Array | None = None, margin: Scalar = 1.0, negatives: Negatives = "mean"
) -> jax.Array:
    """Triplet loss (Schroff et al. 2015, arXiv 1503.03832): meanⱼ max(0, pos² − negⱼ² + margin).

    It equals `hinge` on the scores −d².

    Args:
        pos: distances user to positive item, [...].
        neg: distances user to negative items, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        margin: how much smaller the squared distance of the positive should be.
        negatives: "mean" or "sum" over the negatives of a positive.

    Returns:
        Losses [...].

    >>> float(triplet(jnp.array(1.0), jnp.array([1.0, 2.0])))
    0.5
    """
    margin = setting("margin", margin, pos)

    def compare(pos: Array, neg: Array, where: Array | None) -> jax.Array:
        pos, neg, where, any_valid = masked(pos, neg, where)
        return jnp.where(any_valid, _lead(pos, neg, margin, where, negatives), 0)

    return by_positive(compare, (pos,), (neg, where))


def metricf(
    pos: Array,
    neg: Array,
    *,
    where: Array | None = None,
    margin: Scalar = 1.5,
    positive_weight: Scalar = 1.1,
    negatives: Negatives = "mean",
) -> jax.Array:
    """Metric factorisation (Zhang et al. 2018, arXiv 1802.04606): squares of squared distances.

    positive_weight · pos⁴ + meanⱼ max(0, margin − negⱼ²)²: the squared distances of
    positives are fitted to 0, those of negatives to the margin or more.

    Args:
        pos: distances user to positive item, [...].
        neg: distances user to negative items, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        margin: β of the released code, a squared distance; the code uses 0.6, 1.5 and 2.5.
        positive_weight: 1 + α; the released code uses α = 0.1.
        negatives: "mean" or "sum" over the negatives of a positive.

    Returns:
        Losses [...].

    Differs: follows the ranking loss of the released code, which sums over the negatives
    (`negatives="sum"` here). The released code draws no negatives, so their number must be tuned.

    >>> float(metricf(jnp.array(1.0), jnp.array([1.0, 2.0]), positive_weight=1.0))
    1.125
    """
    margin = setting("margin", margin, pos)
    positive_weight = setting("positive_weight", positive_weight, pos, least=0)
    pos, neg, where, any_valid = masked(pos, neg, where)
    values = positive_weight * pos**4 + over_negatives(jax.nn.relu(margin - neg**2) ** 2, where, negatives)
    return jnp.where(any_valid, values, 0)


def sml(
    pos: Array,
    neg: Array,
    *,
    where: Array | None = None,
    between: Array,
    user_margin: Array | Scalar = 1.0,
    item_margin: Array | Scalar = 1.0,
    weight: Scalar = 0.01,
    margin_weight: Scalar = 10.0,
    negatives: Negatives = "mean",
) -> jax.Array:
    """Symmetric metric learning with adaptive margins (Li et al. 2020, 10.1609/aaai.v34i04.5894).

    meanⱼ max(0, pos² − negⱼ² + mᵤ) + weight · meanⱼ max(0, pos² − betweenⱼ² + nᵢ) − margin_weight ·
    (mᵤ + nᵢ). The last term rewards large margins. After each step, clip the margins to [0, 1] and
    project the vectors onto the unit ball.

    Args:
        pos: distances user to positive item, [...].
        neg: distances user to negative items, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        between: distances positive item to negative items, [..., n].
        user_margin: mᵤ, learnt, [...] or a scalar.
        item_margin: nᵢ, learnt, [...] or a scalar.
        weight: λ of the paper.
        margin_weight: γ of the paper.
        negatives: "mean" or "sum" over the negatives of a positive.

    Returns:
        Losses [...].

    Differs: the released code takes one negative, sums the hinges over the batch, but averages the
    margins over the batch. To get its objective divided by B from `losses.mean` over a batch of B,
    divide its γ (10) by B.

    >>> float(sml(jnp.array(1.0), jnp.array([1.0]), between=jnp.array([2.0]), margin_weight=0.25))
    0.5
    """
    weight = setting("weight", weight, pos, least=0)
    margin_weight = setting("margin_weight", margin_weight, pos, least=0)
    user_margin, item_margin = setting("user_margin", user_margin, pos), setting("item_margin", item_margin, pos)

    def compare(
        pos: Array,
        user_margin: Array | Scalar,
        item_margin: Array | Scalar,
        neg: Array,
        where: Array | None,
        between: Array,
    ) -> jax.Array:
        pos, neg, where, any_valid = masked(pos, neg, where)
        chex.assert_rank(between, jnp.ndim(neg))
        between = jnp.where(where, jnp.asarray(between, neg.dtype), 0)
        user_margin, item_margin = (jnp.where(any_valid, margin, 0) for margin in (user_margin, item_margin))
        to_user = _lead(pos, neg, user_margin[..., None], where, negatives)
        to_item = _lead(pos, between, item_margin[..., None], where, negatives)
        return jnp.where(any_valid, to_user + weight * to_item - margin_weight * (user_margin + item_margin), 0)

    return by_positive(compare, (pos, user_margin, item_margin), (neg, where, between))


def on_scores(
    pos: Array,
    neg: Array,
    *,
    loss: Loss,
    where: Array | None = None,
    squared_distance: Callable[[jax.Array], Any] = operator.neg,
) -> jax.Array:
    """Applies a loss of distances to scores: loss(d(pos), d(neg)).

    The distance is d = √max(0, squared_distance(score)). Its gradient at distance 0 is 0.

    Args:
        pos: scores of the positives, [...].
        neg: scores of the negatives, [..., n].
        loss: a loss of distances, such as `functools.partial(losses.contrastive, margin=0.5)`.
        where: bool [..., n], True for the negatives to use; None uses all.
        squared_distance: the squared distance as a function of the score. The default is for scores
            −d²; `lambda s: 2 - 2 * s` is for cosines of unit vectors.

    Returns:
        Losses [...].

    >>> float(on_scores(jnp.array(-1.0), jnp.array([-1.0, -4.0]), loss=triplet))
    0.5
    """
    chex.assert_type([pos, neg], float)

    def distance(scores: Array) -> jax.Array:
        squared = squared_distance(accumulated(scores))
        # Double where: the gradient of the square root is infinite at 0.
        return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)

    return loss(distance(pos), distance(neg), where=where)


def _lead(pos: Array, others: Array, margin: Array | Scalar, where: Array, negatives: Negatives) -> jax.Array:
    """Returns the mean or sum over j of max(0, pos² − othersⱼ² + margin)."""
    return over_negatives(jax.nn.relu(pos[..., None] ** 2 - others**2 + margin), where, negatives)
