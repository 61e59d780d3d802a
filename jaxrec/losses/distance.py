"""Losses of distances: `pos` [...] and `neg` [..., n] are distances d ≥ 0, smaller = better.

The contract is that of `jaxrec.losses.pairwise`. `on_scores` makes a loss of scores of any of them, so that it trains
the models whose score is minus a squared distance.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxrec._numerics import accumulated
from jaxrec.losses._reduce import Negatives, by_positive, masked, over_negatives, setting
from jaxrec.typing import Array, Loss, Scalar


def contrastive(
    pos: Array, neg: Array, *, where: Array | None = None, margin: Scalar = 1.0, negatives: Negatives = "mean"
) -> Array:
    """Contrastive loss (Hadsell et al. 2006, 10.1109/CVPR.2006.100): ½ pos² + ½ meanⱼ max(0, margin − negⱼ)².

    Distances pos [...] and neg [..., n], where bool [..., n] (True = use) -> [...]; negatives "mean" or "sum".

    >>> float(contrastive(jnp.array(2.0), jnp.array([0.0, 3.0])))
    2.25
    """
    margin = setting("margin", margin, pos)
    pos, neg, where, any_valid = masked(pos, neg, where)
    values = 0.5 * pos**2 + 0.5 * over_negatives(jax.nn.relu(margin - neg) ** 2, where, negatives)
    return jnp.where(any_valid, values, 0)


def triplet(
    pos: Array, neg: Array, *, where: Array | None = None, margin: Scalar = 1.0, negatives: Negatives = "mean"
) -> Array:
    """Triplet loss (Schroff et al. 2015, arXiv 1503.03832): meanⱼ max(0, pos² − negⱼ² + margin).

    `hinge` on the scores −d².

    Distances pos [...] and neg [..., n], where bool [..., n] (True = use) -> [...]; negatives "mean" or "sum".

    >>> float(triplet(jnp.array(1.0), jnp.array([1.0, 2.0])))
    0.5
    """
    margin = setting("margin", margin, pos)

    def compare(pos: Array, neg: Array, where: Array | None) -> Array:
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
) -> Array:
    """Metric factorisation (Zhang et al. 2018, arXiv 1802.04606), a squared loss of squared distances.

    positive_weight · pos⁴ + meanⱼ max(0, margin − negⱼ²)²: squared distances are fitted to 0 for positives, to the
    margin or more for negatives.

    Args:
        pos: distances [...].
        neg: distances [..., n].
        where: bool [..., n], True = use.
        margin: β of the released code, a squared distance; 0.6, 1.5 and 2.5 stand in it.
        positive_weight: 1 + α, with .1 for the released code's α.
        negatives: average or sum over the negatives.

    Differs: this is the released code's ranking loss, with its sum over the negatives by `negatives="sum"`. As released
    that code draws no negatives, so that their number is to be tuned.

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
) -> Array:
    """Symmetric metric learning with adaptive margins (Li et al. 2020, 10.1609/aaai.v34i04.5894).

    meanⱼ max(0, pos² − negⱼ² + mᵤ) + weight · meanⱼ max(0, pos² − betweenⱼ² + nᵢ) − margin_weight · (mᵤ + nᵢ), where
    the last term rewards wide margins. After each step clip the margins to [0, 1] and project the vectors onto the unit
    ball.

    Args:
        pos: distances user to positive item [...].
        neg: distances user to negative items [..., n].
        where: bool [..., n], True = use.
        between: distances positive item to negative items [..., n].
        user_margin: mᵤ, learnt, [...] or a scalar.
        item_margin: nᵢ, learnt, [...] or a scalar.
        weight: λ of the paper.
        margin_weight: γ of the paper.
        negatives: average or sum over the negatives.

    Differs: the released code sums the hinges over the batch but averages the margins over it, and takes one negative.
    To get its objective, up to a factor B, from `losses.mean` over a batch of B, divide its γ (10) by B.

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
    ) -> Array:
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
    squared_distance: Callable[[Array], Array] = operator.neg,
) -> Array:
    """A loss of distances as a loss of scores: loss(d(pos), d(neg)) with d = √max(0, squared_distance(score)).

    Args:
        pos: scores [...].
        neg: scores [..., n].
        loss: of distances, such as `functools.partial(losses.contrastive, margin=0.5)`.
        where: bool [..., n], True = use.
        squared_distance: of a score; the default is for scores −d², `lambda s: 2 - 2 * s` for cosines of unit vectors.

    The gradient at distance 0 is 0.

    >>> float(on_scores(jnp.array(-1.0), jnp.array([-1.0, -4.0]), loss=triplet))
    0.5
    """
    chex.assert_type([pos, neg], float)

    def distance(scores: Array) -> Array:
        squared = squared_distance(accumulated(scores))
        return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)

    return loss(distance(pos), distance(neg), where=where)


def _lead(pos: Array, others: Array, margin: Array | Scalar, where: Array, negatives: Negatives) -> Array:
    return over_negatives(jax.nn.relu(pos[..., None] ** 2 - others**2 + margin), where, negatives)
