"""Ranking metrics on hits in rank order, and properties of the recommended lists as a whole.

    metric(hits[..., K], n_relevant[...], *, k) -> [...]

`hits` is bool: whether the item at each rank is relevant, best rank first. `n_relevant` is how many relevant items the
user has in all. A user without relevant items gets 0; whoever averages leaves such users out. The definitions are
those of trec_eval; variants that other papers use are arguments. Every metric is float32, with `jax_enable_x64` too.
"""

from __future__ import annotations

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxrec._numerics import accumulated, as_ids, as_integer, integer
from jaxrec.typing import Array, ArrayLike

Denominator = Literal["n_relevant", "min_k"]


def _checked(hits: Array, n_relevant: Array, k: int) -> tuple[Array, Array, int]:
    """The first k hits and n_relevant as float32, and k as int."""
    hits, n_relevant = jnp.asarray(hits), jnp.asarray(n_relevant)
    chex.assert_type(hits, bool)
    chex.assert_shape(n_relevant, hits.shape[:-1])
    found = as_integer(k)
    if found is None or not 1 <= found <= hits.shape[-1]:
        raise ValueError(f"k={k}, but the lists hold {hits.shape[-1]} items; ask for 1 .. {hits.shape[-1]}")
    return hits[..., :found].astype(jnp.float32), n_relevant.astype(jnp.float32), found


def _ratio(numerator: Array, denominator: Array) -> Array:
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), 0)


def _size(n_relevant: Array, k: int, denominator: Denominator) -> Array:
    if denominator not in ("n_relevant", "min_k"):
        raise ValueError(f'denominator={denominator!r}; give "n_relevant" or "min_k"')
    return n_relevant if denominator == "n_relevant" else jnp.minimum(n_relevant, k)


def _ranks(n: int) -> Array:
    """1 .. n, float32."""
    return jnp.arange(1, n + 1, dtype=jnp.float32)


def _per_rank(values: Array, like: Array) -> Array:
    """Values [k] with leading axes of 1, to multiply `like` [..., k]."""
    return values.reshape((1,) * (like.ndim - 1) + (-1,)).astype(like.dtype)


def recall(hits: Array, n_relevant: Array, *, k: int, denominator: Denominator = "n_relevant") -> Array:
    """Share of the relevant items among the first k.

    `denominator="min_k"` divides by min(k, n_relevant) instead, as the papers on VAEs and iALS do.

    >>> recall(jnp.array([False, True]), jnp.array(4), k=2).item()
    0.25
    """
    hits, n_relevant, k = _checked(hits, n_relevant, k)
    return _ratio(hits.sum(-1), _size(n_relevant, k, denominator))


def precision(hits: Array, n_relevant: Array, *, k: int) -> Array:
    """Share of relevant items among the first k: hits / k, also for users with fewer than k relevant items."""
    hits, n_relevant, _ = _checked(hits, n_relevant, k)
    return jnp.where(n_relevant > 0, hits.mean(-1), 0)


def hit_rate(hits: Array, n_relevant: Array, *, k: int) -> Array:
    """1 where at least one of the first k is relevant, else 0."""
    hits, _, _ = _checked(hits, n_relevant, k)
    return hits.max(-1)


def mrr(hits: Array, n_relevant: Array, *, k: int) -> Array:
    """Reciprocal rank of the first relevant item, 0 if it is not among the first k."""
    hits, _, k = _checked(hits, n_relevant, k)
    return (hits * _per_rank(1 / _ranks(k), hits)).max(-1)


def ndcg(hits: Array, n_relevant: Array, *, k: int) -> Array:
    """Normalised discounted cumulative gain, binary: Σᵣ hitᵣ / log₂(r + 1), over the same sum of an ideal list.

    The ideal list has min(k, n_relevant) hits (Järvelin and Kekäläinen 2002, 10.1145/582415.582418).

    >>> round(ndcg(jnp.array([False, True]), jnp.array(3), k=2).item(), 5)
    0.38685
    """
    hits, n_relevant, k = _checked(hits, n_relevant, k)
    discount = 1 / jnp.log2(_ranks(k) + 1)
    ideal = jnp.concatenate([jnp.zeros(1, jnp.float32), jnp.cumsum(discount)])
    best = ideal[jnp.minimum(n_relevant, k).astype(jnp.int32)]
    return _ratio((hits * _per_rank(discount, hits)).sum(-1), best)


def average_precision(hits: Array, n_relevant: Array, *, k: int, denominator: Denominator = "n_relevant") -> Array:
    """Mean over the relevant items of the precision at their ranks, 0 for those after rank k; its mean is MAP@k.

    `denominator="min_k"` divides by min(k, n_relevant) instead of n_relevant.
    """
    hits, n_relevant, k = _checked(hits, n_relevant, k)
    precisions = jnp.cumsum(hits, axis=-1) * _per_rank(1 / _ranks(k), hits)
    return _ratio((hits * precisions).sum(-1), _size(n_relevant, k, denominator))


def auc(scores: Array, relevant: Array, *, where: Array | None = None) -> Array:
    """Area under the ROC curve of full rows: the chance that a relevant item outscores another, ties counting half.

    Args:
        scores: [..., N].
        relevant: bool [..., N].
        where: bool [..., N], True = use (such as items not seen in training).

    Returns:
        [...]; 0 for rows without a relevant or without another item, NaN for rows where a score in use is NaN. It costs
        a sort of each row.
    """
    scores, relevant = jnp.asarray(scores), jnp.asarray(relevant)
    chex.assert_type(relevant, bool)
    chex.assert_equal_shape([scores, relevant])
    where = jnp.ones(scores.shape, bool) if where is None else where

    def row(scores, relevant, other):
        ordered = jnp.sort(jnp.where(other, scores, jnp.inf))
        n_other = other.sum(dtype=jnp.int32)
        below, up_to = (
            jnp.minimum(jnp.searchsorted(ordered, scores, side=side), n_other).astype(jnp.float32)
            for side in ("left", "right")
        )
        shares = _ratio(below + up_to, 2 * n_other.astype(jnp.float32))  # a sum of wins would pass what floats hold
        area = _ratio(jnp.where(relevant, shares, 0).sum(), relevant.sum(dtype=jnp.int32).astype(jnp.float32))
        return jnp.where((jnp.isnan(scores) & (relevant | other)).any(), jnp.nan, area)

    flat = (-1, scores.shape[-1])
    rows = [scores.reshape(flat), (relevant & where).reshape(flat), (~relevant & where).reshape(flat)]
    return jax.vmap(row)(*rows).reshape(scores.shape[:-1])


# ---------------------------------------------------------------------- each relevant item alone


def rank_alone(pos: Array, others: Array, *, where: Array | None = None) -> Array:
    """Rank of a relevant item were it the only one: 1 + the number of others that score higher.

    The others are the items that are not relevant, and ties are in its favour, as the code of λOpt has it (arXiv
    1905.11596). So ranks are better than those of one list for all, the more relevant items a user has. The rank is NaN
    where a score that it depends on is NaN.

    Args:
        pos: scores [...] of relevant items.
        others: scores [..., n] of those that are not.
        where: bool [..., n], True = use.

    >>> rank_alone(jnp.array([3.0, 1.0]), jnp.array([[2.0, 0.0, 4.0]])).tolist()
    [2.0, 3.0]
    """
    pos, others = accumulated(pos)[..., None], accumulated(others)
    where = jnp.ones(others.shape, bool) if where is None else where
    lost = jnp.isnan(pos[..., 0]) | (jnp.isnan(others) & where).any(-1)
    rank = 1 + ((others > pos) & where).sum(-1, dtype=jnp.int32).astype(jnp.float32)
    return jnp.where(lost, jnp.nan, rank)


def auc_alone(pos: Array, others: Array, *, where: Array | None = None) -> Array:
    """Share of the others that a relevant item outscores, ties counting as lost; see `rank_alone`. 0 without others."""
    below = accumulated(others) < accumulated(pos)[..., None]
    where = jnp.ones(below.shape, bool) if where is None else jnp.broadcast_to(where, below.shape)
    wins, count = (x.sum(-1, dtype=jnp.int32).astype(jnp.float32) for x in (below & where, where))
    return _ratio(wins, count)


def recall_alone(ranks: Array, *, k: int) -> Array:
    """1 where `rank_alone` is among the first k, else 0; its mean over a user's relevant items is λOpt's HR@K."""
    return (jnp.asarray(ranks, jnp.float32) <= integer("k", k)).astype(jnp.float32)


def ndcg_alone(ranks: Array, *, k: int) -> Array:
    """1 / log₂(1 + r) for `rank_alone` r among the first k, else 0; its mean over a user's items is λOpt's NDCG@K."""
    ranks = jnp.asarray(ranks, jnp.float32)
    return jnp.where(ranks <= integer("k", k), 1 / jnp.log2(1 + ranks), 0)


# ---------------------------------------------------------------------- lists as a whole; -1 is padding


def _listed(items: ArrayLike, n_items: int) -> Array:
    """Ids as int32; `ValueError` for an id that no item has, where ids are known."""
    items = as_ids(items)
    if not isinstance(items, jax.core.Tracer) and items.size and int(items.max()) >= n_items:
        raise ValueError(f"items has id {int(items.max())} of {n_items} items; give ids below it, and -1 as padding")
    return items


def _counts(items: ArrayLike, n_items: int) -> Array:
    """How often each item is recommended, float32 [N]."""
    items = _listed(items, n_items).reshape(-1)
    places = jnp.where(items < 0, n_items, items)
    return jnp.zeros(n_items, jnp.int32).at[places].add(1, mode="drop").astype(jnp.float32)


def coverage(items: ArrayLike, *, n_items: int) -> Array:
    """Share of the catalogue that is in at least one of the lists `items` (ids [..., k]).

    `ValueError` for an id of `n_items` or more; under `jit` such ids are left out.
    """
    return (_counts(items, integer("n_items", n_items)) > 0).mean(dtype=jnp.float32)


def gini(items: ArrayLike, *, n_items: int) -> Array:
    """Gini coefficient of how often each item of the catalogue is recommended: 0 = equally, near 1 = few items only.

    `ValueError` for an id of `n_items` or more; under `jit` such ids are left out.
    """
    n_items = integer("n_items", n_items)
    counts = jnp.sort(_counts(items, n_items))
    return _ratio(((2 * _ranks(n_items) - n_items - 1) * counts).sum(), n_items * counts.sum())


def popularity(items: ArrayLike, degrees: Array) -> Array:
    """Mean number of training users of the items in each list: `items` ids [..., k], `degrees` [N] -> [...].

    `ValueError` for an id of N or more; under `jit` such ids make the mean NaN.
    """
    degrees = jnp.asarray(degrees, jnp.float32)
    items = _listed(items, len(degrees))
    valid = items >= 0
    chosen = degrees.at[jnp.maximum(items, 0)].get(mode="fill", fill_value=jnp.nan)
    return _ratio(jnp.where(valid, chosen, 0).sum(-1), valid.sum(-1, dtype=jnp.int32).astype(jnp.float32))
