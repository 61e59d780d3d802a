"""Losses that compare a positive score with each of its negatives' scores, by difference or by margin.

`pos` [...] and `neg` [..., n] are scores, larger = better. Each loss gives [...]: the negatives are averaged over the
valid ones (so that their number is no learning-rate knob) or summed where a paper does. A row without a valid negative
is 0 and gets no gradient. For all items as negatives pass `pos` [B, P] with `neg` [B, 1, N]: no loss forms [B, P, N]
then, unless `where` has that shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from jaxrec.losses._reduce import Negatives, by_positive, masked, over_negatives, setting
from jaxrec.typing import Array, Scalar


def bpr(pos: Array, neg: Array, *, where: Array | None = None, negatives: Negatives = "mean") -> Array:
    """Bayesian personalised ranking (Rendle et al. 2009, arXiv 1205.2618): meanⱼ −log σ(pos − negⱼ).

    Scores pos [...] and neg [..., n], where bool [..., n] (True = use) -> [...]; negatives "mean" or "sum".

    >>> round(float(bpr(jnp.array(0.0), jnp.array([0.0]))), 4)
    0.6931
    """
    return _over_differences(jax.nn.softplus, pos, neg, where, negatives)


def hinge(
    pos: Array, neg: Array, *, where: Array | None = None, margin: Scalar = 1.0, negatives: Negatives = "mean"
) -> Array:
    """Margin loss on score differences, the triplet loss in score form: meanⱼ max(0, margin − pos + negⱼ).

    Scores pos [...] and neg [..., n], where bool [..., n] (True = use) -> [...]; negatives "mean" or "sum".

    >>> float(hinge(jnp.array(2.0), jnp.array([0.0, 1.5])))
    0.25
    """
    margin = setting("margin", margin, pos)
    return _over_differences(lambda gap: jax.nn.relu(margin + gap), pos, neg, where, negatives)


def warp(pos: Array, neg: Array, *, where: Array | None = None, margin: Scalar = 1.0, n_items: Scalar | int) -> Array:
    """Weighted approximate-rank margin loss (Hsieh et al. 2017, 10.1145/3038912.3052639, for metric learning).

    log(1 + n_items · v) · max(0, margin − pos + maxⱼ negⱼ), v the fraction of the negatives that violate the margin,
    margin − pos + negⱼ > 0. The logarithm, of the estimated rank, gets no gradient.

    Args:
        pos: scores [...]; for collaborative metric learning, minus squared distances.
        neg: scores [..., n].
        where: bool [..., n], True = use.
        margin: by which the positive should lead.
        n_items: number of items in the catalogue, an int or traced.

    Differs: Weston et al. (2011) count the draws until one violates; a fixed number of negatives keeps shapes static.

    >>> round(float(warp(jnp.array(2.0), jnp.array([0.0, 1.5]), n_items=10)), 4)
    0.8959
    """
    margin, n_items = setting("margin", margin, pos), setting("n_items", n_items, pos, least=1)

    def compare(pos: Array, neg: Array, where: Array | None) -> Array:
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
) -> Array:
    """Cosine contrastive loss (SimpleX, Mao et al. 2021, arXiv 2109.12613).

    max(0, 1 − pos) + weight · meanⱼ max(0, negⱼ − margin), on cosines. The positive term is clipped at 0, which is
    reached when dropout follows normalisation.

    Differs: the released code sums over negatives when its weight is 0 or None; here `negatives="sum"` says so.

    Scores pos [...] and neg [..., n], where bool [..., n] (True = use) -> [...]; negatives "mean" or "sum".

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
) -> Array:
    """Multi-margin loss (Ozsoy 2024, arXiv 2405.04614), later named multi-margin cosine loss.

    positive_weight · max(0, 1 − pos) + negative_weight · meanⱼ Σₖ weightsₖ max(0, negⱼ − marginsₖ), on cosines: a
    piecewise linear penalty whose slope grows at each margin. The defaults are the paper's for Yelp2018; for Gowalla it
    takes margins (.7, .8, .9), weights (.1, .15, .75), negative_weight 700.

    Args:
        pos: cosines [...].
        neg: cosines [..., n].
        where: bool [..., n], True = use.
        margins: K numbers.
        weights: K numbers, one for each margin.
        positive_weight: factor of the positive term.
        negative_weight: factor of the averaged negative term.
        negatives: average (as the released code) or sum over the negatives.

    Raises:
        ValueError: for no margins, margins and weights of different lengths, margins that are not finite numbers, and
            weights that are not finite or below 0.

    Differs: equation 7 of the paper lacks the negative weight; this is the released code's place for it.

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
    penalty = sum(weight * jax.nn.relu(neg - margin) for margin, weight in zip(margins, weights))
    values = positive_weight * jax.nn.relu(1 - pos) + negative_weight * over_negatives(penalty, where, negatives)
    return jnp.where(any_valid, values, 0)


def _over_differences(
    penalty: Callable[[Array], Array], pos: Array, neg: Array, where: Array | None, negatives: Negatives
) -> Array:
    """Mean or sum over j of penalty(negⱼ − pos)."""

    def compare(pos: Array, neg: Array, where: Array | None) -> Array:
        pos, neg, where, any_valid = masked(pos, neg, where)
        return jnp.where(any_valid, over_negatives(penalty(neg - pos[..., None]), where, negatives), 0)

    return by_positive(compare, (pos,), (neg, where))
