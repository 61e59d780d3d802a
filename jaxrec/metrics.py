"""Ranking metrics of hits in rank order, and properties of the recommended lists as a whole.

    metric(hits[..., K], n_relevant[...], *, k) -> [...]

`hits` is bool: whether the item at each rank is relevant, best rank first. `n_relevant` is the
number of all relevant items of the user. A user without relevant items gets 0; leave such users out
when you average. The definitions are those of trec_eval; arguments select variants that other
papers use. Every metric is float32, also with `jax_enable_x64`. Metrics of hits and of lists are
computed by NumPy for NumPy arrays, which compiles nothing, and by JAX for JAX arrays.
"""

from __future__ import annotations

from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._lookup import search
from jaxrec._numerics import accumulated, as_integer, integer, listed, namespace
from jaxrec.typing import Array, ArrayLike

Denominator = Literal["n_relevant", "min_k"]


def _checked(hits: Array, n_relevant: Array, k: int) -> tuple[Array, Array, int]:
    """Returns the first k hits and n_relevant as float32, and k as int."""
    xp = namespace(hits, n_relevant)
    hits, n_relevant = xp.asarray(hits), xp.asarray(n_relevant)
    chex.assert_type(hits, bool)
    chex.assert_shape(n_relevant, hits.shape[:-1])
    found = as_integer(k)
    if found is None or not 1 <= found <= hits.shape[-1]:
        raise ValueError(f"k={k}, but the lists hold {hits.shape[-1]} items; give 1 .. {hits.shape[-1]}")
    return hits[..., :found].astype(np.float32), n_relevant.astype(np.float32), found


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Divides; a denominator of 0 gives 0."""
    xp = namespace(numerator, denominator)
    zero, one = np.float32(0), np.float32(1)
    # Double where: the untaken branch must not divide by 0.
    return xp.where(denominator > 0, numerator / xp.where(denominator > 0, denominator, one), zero)


def _size(n_relevant: Array, k: int, denominator: Denominator) -> Array:
    """Returns what recall and average precision divide by."""
    if denominator not in ("n_relevant", "min_k"):
        raise ValueError(f'denominator={denominator!r}; give "n_relevant" or "min_k"')
    return n_relevant if denominator == "n_relevant" else namespace(n_relevant).minimum(n_relevant, np.float32(k))


def _ranks(n: int) -> np.ndarray:
    """Returns 1 .. n as float32."""
    return np.arange(1, n + 1, dtype=np.float32)


def _per_rank(values: Array, like: Array) -> Array:
    """Reshapes values [k] to broadcast with `like` [..., k]."""
    return values.reshape((1,) * (like.ndim - 1) + (-1,)).astype(like.dtype)


def recall(hits: Array, n_relevant: Array, *, k: int, denominator: Denominator = "n_relevant") -> Array:
    """Share of the relevant items that are among the first k.

    Args:
        hits: bool [..., K], whether the item at each rank is relevant.
        n_relevant: number of relevant items of each user, [...].
        k: static length of the lists, 1 .. K.
        denominator: "n_relevant", or "min_k" to divide by min(k, n_relevant), as papers on VAEs and
            iALS do.

    >>> recall(jnp.array([False, True]), jnp.array(4), k=2).item()
    0.25
    """
    hits, n_relevant, k = _checked(hits, n_relevant, k)
    return _ratio(hits.sum(-1), _size(n_relevant, k, denominator))


def precision(hits: Array, n_relevant: Array, *, k: int) -> Array:
    """Share of the first k that is relevant: hits / k, even if fewer than k items are relevant.

    Args:
        hits: bool [..., K], whether the item at each rank is relevant.
        n_relevant: number of relevant items of each user, [...].
        k: static length of the lists, 1 .. K.
    """
    hits, n_relevant, _ = _checked(hits, n_relevant, k)
    return namespace(hits).where(n_relevant > 0, hits.mean(-1), np.float32(0))


def hit_rate(hits: Array, n_relevant: Array, *, k: int) -> Array:
    """1 if at least one of the first k items is relevant, else 0.

    Args:
        hits: bool [..., K], whether the item at each rank is relevant.
        n_relevant: number of relevant items of each user, [...].
        k: static length of the lists, 1 .. K.
    """
    hits, _, _ = _checked(hits, n_relevant, k)
    return hits.max(-1)


def mrr(hits: Array, n_relevant: Array, *, k: int) -> Array:
    """Reciprocal rank of the first relevant item; 0 if it is not among the first k.

    Args:
        hits: bool [..., K], whether the item at each rank is relevant.
        n_relevant: number of relevant items of each user, [...].
        k: static length of the lists, 1 .. K.
    """
    hits, _, k = _checked(hits, n_relevant, k)
    return (hits * _per_rank(1 / _ranks(k), hits)).max(-1)


def ndcg(hits: Array, n_relevant: Array, *, k: int) -> Array:
    """Normalised discounted cumulative gain with binary relevance (Järvelin and Kekäläinen 2002).

    Σᵣ hitᵣ / log₂(r + 1), divided by the same sum for an ideal list with min(k, n_relevant) hits
    (10.1145/582415.582418).

    Args:
        hits: bool [..., K], whether the item at each rank is relevant.
        n_relevant: number of relevant items of each user, [...].
        k: static length of the lists, 1 .. K.

    >>> round(ndcg(jnp.array([False, True]), jnp.array(3), k=2).item(), 5)
    0.38685
    """
    hits, n_relevant, k = _checked(hits, n_relevant, k)
    xp = namespace(hits)
    discount = 1 / np.log2(_ranks(k) + 1)
    ideal = xp.asarray(np.concatenate([np.zeros(1, np.float32), np.cumsum(discount)]))
    best = ideal[xp.minimum(n_relevant, np.float32(k)).astype(np.int32)]
    return _ratio((hits * _per_rank(discount, hits)).sum(-1), best)


def average_precision(hits: Array, n_relevant: Array, *, k: int, denominator: Denominator = "n_relevant") -> Array:
    """Mean over the relevant items of the precision at their ranks; its mean over users is MAP@k.

    An item after rank k counts 0.

    Args:
        hits: bool [..., K], whether the item at each rank is relevant.
        n_relevant: number of relevant items of each user, [...].
        k: static length of the lists, 1 .. K.
        denominator: "n_relevant", or "min_k" to divide by min(k, n_relevant).
    """
    hits, n_relevant, k = _checked(hits, n_relevant, k)
    precisions = namespace(hits).cumsum(hits, axis=-1) * _per_rank(1 / _ranks(k), hits)
    return _ratio((hits * precisions).sum(-1), _size(n_relevant, k, denominator))


def auc(scores: Array, relevant: Array, *, where: Array | None = None) -> Array:
    """Area under the ROC curve of whole rows.

    It is the probability that a relevant item scores higher than an irrelevant one; ties count ½.
    Each row is sorted.

    Args:
        scores: [..., N].
        relevant: bool [..., N], True for the relevant items.
        where: bool [..., N], True for the items to use, such as those not seen in training; None
            uses all.

    Returns:
        [...]; 0 for rows without a relevant or without an irrelevant item, NaN for rows in which a
        score to use is NaN.
    """
    scores, relevant = jnp.asarray(scores), jnp.asarray(relevant)
    chex.assert_type(relevant, bool)
    chex.assert_equal_shape([scores, relevant])
    where = jnp.ones(scores.shape, bool) if where is None else where

    def row(scores, relevant, other):
        """AUC of one row; `other` marks the irrelevant items to use."""
        ordered = jnp.sort(jnp.where(other, scores, jnp.inf))
        n_other = other.sum(dtype=jnp.int32)
        below, up_to = (
            jnp.minimum(search(ordered, scores, side=side), n_other).astype(jnp.float32) for side in ("left", "right")
        )
        shares = _ratio(below + up_to, 2 * n_other.astype(jnp.float32))  # float32 could not hold a sum of wins
        area = _ratio(jnp.where(relevant, shares, 0).sum(), relevant.sum(dtype=jnp.int32).astype(jnp.float32))
        return jnp.where((jnp.isnan(scores) & (relevant | other)).any(), jnp.nan, area)

    flat = (-1, scores.shape[-1])
    rows = [scores.reshape(flat), (relevant & where).reshape(flat), (~relevant & where).reshape(flat)]
    return jax.vmap(row)(*rows).reshape(scores.shape[:-1])


# ---------------------------------------------------------------------- relevant items separately


def rank_alone(pos: Array, others: Array, *, where: Array | None = None) -> Array:
    """Ranks each relevant item among the irrelevant items only: 1 + the number that score higher.

    Ties rank the relevant item first, as in the code of λOpt (arXiv 1905.11596). The more relevant
    items a user has, the better these ranks are compared with those of one common list. A rank is
    NaN if a score that it depends on is NaN.

    Args:
        pos: scores [...] of relevant items.
        others: scores [..., n] of irrelevant items.
        where: bool [..., n], True for the irrelevant items to use; None uses all.

    Returns:
        Ranks from 1, float32 [...].

    >>> rank_alone(jnp.array([3.0, 1.0]), jnp.array([[2.0, 0.0, 4.0]])).tolist()
    [2.0, 3.0]
    """
    pos, others = accumulated(pos)[..., None], accumulated(others)
    where = jnp.ones(others.shape, bool) if where is None else where
    lost = jnp.isnan(pos[..., 0]) | (jnp.isnan(others) & where).any(-1)
    rank = 1 + ((others > pos) & where).sum(-1, dtype=jnp.int32).astype(jnp.float32)
    return jnp.where(lost, jnp.nan, rank)


def auc_alone(pos: Array, others: Array, *, where: Array | None = None) -> Array:
    """Share of the irrelevant items that score lower than a relevant item; see `rank_alone`.

    Ties count as 0, unlike in `rank_alone`.

    Args:
        pos: scores [...] of relevant items.
        others: scores [..., n] of irrelevant items.
        where: bool [..., n], True for the irrelevant items to use; None uses all.

    Returns:
        float32 [...]; 0 if there is no irrelevant item.
    """
    below = accumulated(others) < accumulated(pos)[..., None]
    where = jnp.ones(below.shape, bool) if where is None else jnp.broadcast_to(where, below.shape)
    wins, count = (x.sum(-1, dtype=jnp.int32).astype(jnp.float32) for x in (below & where, where))
    return _ratio(wins, count)


def recall_alone(ranks: Array, *, k: int) -> Array:
    """1 if the rank of `rank_alone` is at most k, else 0.

    Its mean over a user's relevant items is λOpt's HR@K.
    """
    return (jnp.asarray(ranks, jnp.float32) <= integer("k", k)).astype(jnp.float32)


def ndcg_alone(ranks: Array, *, k: int) -> Array:
    """1 / log₂(1 + r) if the rank r of `rank_alone` is at most k, else 0.

    Its mean over a user's relevant items is λOpt's NDCG@K.
    """
    ranks = jnp.asarray(ranks, jnp.float32)
    return jnp.where(ranks <= integer("k", k), 1 / jnp.log2(1 + ranks), 0)


# ---------------------------------------------------------------------- whole lists; -1 is padding


def _counts(items: ArrayLike, n_items: int) -> Array:
    """Returns how often each item is recommended, float32 [N]."""
    items = listed(items, n_items).reshape(-1)
    if isinstance(items, np.ndarray):
        return np.bincount(items[items >= 0], minlength=n_items).astype(np.float32)
    places = jnp.where(items < 0, n_items, items)  # out of bounds, so that padding is dropped
    return jnp.zeros(n_items, jnp.int32).at[places].add(1, mode="drop").astype(jnp.float32)


def coverage(items: ArrayLike, *, n_items: int) -> Array:
    """Share of the catalogue that is in at least one list.

    Args:
        items: ids of the recommended items, [..., k]; -1 is padding.
        n_items: number of items N of the catalogue.

    Raises:
        ValueError: for an id below -1, or of N or more; under `jit` such ids are ignored.
    """
    return (_counts(items, integer("n_items", n_items)) > 0).mean(dtype=np.float32)


def gini(items: ArrayLike, *, n_items: int) -> Array:
    """Gini coefficient of how often each item of the catalogue is recommended.

    0 means equally often; near 1 means that only few items are recommended.

    Args:
        items: ids of the recommended items, [..., k]; -1 is padding.
        n_items: number of items N of the catalogue.

    Raises:
        ValueError: for an id below -1, or of N or more; under `jit` such ids are ignored.
    """
    n_items = integer("n_items", n_items)
    counts = _counts(items, n_items)
    counts = namespace(counts).sort(counts)
    return _ratio(((2 * _ranks(n_items) - n_items - 1) * counts).sum(), n_items * counts.sum())


def popularity(items: ArrayLike, degrees: Array) -> Array:
    """Mean number of training users of the items in each list.

    Args:
        items: ids of the recommended items, [..., k]; -1 is padding.
        degrees: number of training users of each item, [N].

    Returns:
        float32 [...].

    Raises:
        ValueError: for an id below -1, or of N or more; under `jit` such ids make the mean NaN.
    """
    xp = namespace(items, degrees)
    degrees = xp.asarray(degrees, np.float32)
    items = xp.asarray(listed(items, len(degrees)))
    valid, places = items >= 0, xp.maximum(items, 0)
    chosen = degrees[places] if xp is np else jnp.asarray(degrees).at[places].get(mode="fill", fill_value=jnp.nan)
    return _ratio(xp.where(valid, chosen, np.float32(0)).sum(-1), valid.sum(-1, dtype=np.int32).astype(np.float32))


def novelty(items: ArrayLike, degrees: Array, *, n_users: int) -> Array:
    """Mean self-information of the items in each list, log₂(M / users of the item), in bits.

    It is the mean over the list of −log₂ of the share of users who know an item (Zhou et al. 2010,
    10.1073/pnas.1000488107). An item without training users counts as if it had one.

    Args:
        items: ids of the recommended items, [..., k]; -1 is padding.
        degrees: number of training users of each item, [N].
        n_users: number of users M.

    Returns:
        float32 [...]; 0 for an empty list.

    Raises:
        ValueError: for an id below -1, or of N or more; under `jit` such ids make the mean NaN.

    >>> novelty(np.array([[0, 1]]), np.array([4, 1]), n_users=8).tolist()
    [2.0]
    """
    xp = namespace(degrees)
    known = xp.maximum(xp.asarray(degrees, np.float32), np.float32(1))
    return popularity(items, xp.log2(np.float32(integer("n_users", n_users)) / known))


def diversity(items: ArrayLike, vectors: Array) -> Array:
    """Mean of 1 − cosine over the pairs of different items in each list: intra-list diversity.

    The paper is Ziegler et al. (2005, 10.1145/1060745.1060754). It is computed from the sum of the
    list's unit vectors, and no pairs are formed.

    Args:
        items: ids of the recommended items, [..., k]; -1 is padding.
        vectors: what items are compared by, [N, D], such as genres of 0 and 1, or vectors of a
            model. A vector of zeros has a cosine of 0 with all.

    Returns:
        float32 [...]; 0 for a list of fewer than two items.

    Raises:
        ValueError: for an id below -1, or of N or more; under `jit` such ids make the mean NaN. Also if `vectors`
            has another number of axes.

    >>> diversity(np.array([[0, 1], [0, 2]]), np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    xp = namespace(items, vectors)
    vectors = xp.asarray(vectors, np.float32)
    if vectors.ndim != 2:
        raise ValueError(f"vectors has shape {list(vectors.shape)}; give one vector for each item, [N, D]")
    items = xp.asarray(listed(items, len(vectors)))
    # The largest entry is divided out first, because squares under- and overflow.
    largest = xp.abs(vectors).max(-1, keepdims=True)
    vectors = vectors / xp.where(largest > 0, largest, np.float32(1))
    lengths = xp.sqrt((vectors**2).sum(-1, keepdims=True))
    unit = vectors / xp.where(lengths > 0, lengths, np.float32(1))
    valid, places = items >= 0, xp.maximum(items, 0)
    chosen = unit[places] if xp is np else unit.at[places].get(mode="fill", fill_value=jnp.nan)
    chosen = xp.where(valid[..., None], chosen, np.float32(0))
    n = valid.sum(-1, dtype=np.int32).astype(np.float32)
    cosines = (chosen.sum(-2) ** 2).sum(-1) - (chosen**2).sum((-2, -1))
    pairs = n * (n - np.float32(1))
    return _ratio(pairs - cosines, pairs)
