"""Top-k lists and ranking metrics: product, mask and top-k in one jitted loop over blocks of users.

A model takes part with `apply(variables, users, method="rows")` -> [B, N]; one that also has `vectors` is ranked by the
product of its two tables. `scorer` makes a model of any function.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import metrics
from jaxrec.interactions import DataWarning, Interactions
from jaxrec.report import Report
from jaxrec.typing import Array, ArrayLike, Key, Model, Variables

_METRICS = (
    metrics.recall,
    metrics.ndcg,
    metrics.precision,
    metrics.hit_rate,
    metrics.mrr,
    metrics.average_precision,
)
_GROUP = 32  # items a group in the first stage of top-k


@dataclasses.dataclass(frozen=True)
class _Scorer:
    """A model whose rows come from a function."""

    fn: Callable[[Variables, Array], Array]

    def apply(self, variables: Variables, users: Array, items: Array | None = None, *, method: Any = None) -> Array:
        """Rows [B, N], or the scores of pairs (users [B] or [B, 1] with items [B, n])."""
        if method == "rows":
            return self.fn(variables, users)
        rows = self.fn(variables, users.reshape(-1))
        return jnp.take_along_axis(rows, items.reshape(rows.shape[0], -1), axis=1).reshape(items.shape)


def scorer(fn: Callable[[Variables, Array], Array]) -> Model:
    """Makes a model of any `fn(variables, users [B]) -> scores [B, N]`, for the functions of this module.

    Define `fn` once and pass what it needs as `variables`: a new function compiles anew.

    >>> model = scorer(lambda table, users: table[users])
    >>> top_k(model, jnp.array([[0.1, 0.9, 0.5]]), [0], k=2)[1].tolist()
    [[1, 2]]
    """
    return _Scorer(fn)


def top_k(
    model: Model,
    variables: Variables,
    users: ArrayLike,
    *,
    k: int,
    seen: Interactions | None = None,
    key: Key | None = None,
    block: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of each user.

    Equal scores come in an order drawn from `key` (None = a fixed key), one for all users; never by item id.

    Args:
        model: see the module.
        variables: of the model.
        users: ids [U].
        k: length of the lists.
        seen: pairs to leave out.
        key: typed key for ties.
        block: users scored at a time; by default such that a block of scores stays in the processor's cache, or
            takes about 0.5 GB on an accelerator. Results do not depend on it.

    Returns:
        scores float32 [U, k] and items int32 [U, k], best first; -inf and -1 where a user has fewer items left.

    Raises:
        ValueError: for k outside 1 .. N, user ids out of range, a model whose N is not that of `seen`, scores of NaN.
    """
    users = _checked_users(users, None if seen is None else seen.n_users)
    return _ranked(model, variables, users, k=k, seen=seen, demoted=None, key=key, block=block)[:2]


def full_ranking(
    model: Model,
    variables: Variables,
    train: Interactions,
    test: Interactions,
    *,
    ks: Sequence[int] = (10, 20),
    users: ArrayLike | None = None,
    key: Key | None = None,
    auc: bool = False,
    block: int | None = None,
) -> Report:
    """Ranks all items for each user, training items left out, and judges the lists by the test pairs.

    Users without a test pair are left out. Equal scores: without a key each test item is ranked as if its
    score were one float lower, so that ties go against it; with a key, at random.

    Args:
        model: see the module.
        variables: of the model.
        train: pairs [M, N] that are masked. To mask validation pairs too, give train and validation in one.
        test: pairs [M, N] to find.
        ks: lengths of the lists.
        users: ids [U] to evaluate; by default all that have a test pair.
        key: typed key to break ties at random.
        auc: also the area under the ROC curve; it sorts whole rows, which is slow for large N.
        block: users scored at a time; results do not depend on it.

    Returns:
        A `Report` with "recall@k", "ndcg@k", "precision@k", "hit_rate@k", "mrr@k", "average_precision@k" and
        "popularity@k" (mean training users of the list's items) for each user, "coverage@k" and "gini@k" of all lists.

    Raises:
        ValueError: as `top_k`; also for train and test of different shapes, or no user to evaluate.
    """
    users = _evaluated_users(train, test, users)
    ks = sorted(set(ks))
    _, items, areas = _ranked(
        model, variables, users, k=ks[-1] if ks else 0, seen=train, demoted=test, key=key, block=block, auc=auc
    )
    per_user, catalogue = _list_metrics(items, users, test, train.item_degrees, ks=tuple(ks))
    per_user = {name: np.asarray(values, np.float64) for name, values in per_user.items()}
    catalogue = {name: float(value) for name, value in catalogue.items()}
    if auc:
        per_user["auc"] = np.asarray(areas, np.float64)
    ties = "against the test item" if key is None else "at random"
    protocol = f"full ranking of {train.n_items} items, {train.n_pairs} training pairs masked, ties {ties}"
    return Report(users, per_user, catalogue, items, protocol)


def sampled_ranking(
    model: Model,
    variables: Variables,
    test_pairs: tuple[ArrayLike, ArrayLike],
    negatives: ArrayLike,
    *,
    ks: Sequence[int] = (10,),
    block: int = 1024,
) -> Report:
    """Ranks each test item among its own sampled negatives, as many papers do; ties go against the test item.

    Such figures depend on how the negatives were drawn and do not order models as a full ranking does (Krichene and
    Rendle 2020, 10.1145/3394486.3403226): use them to compare with a paper that did the same.

    Args:
        model: scores pairs by `apply(variables, users, items)`.
        variables: of the model.
        test_pairs: users [T] and items [T].
        negatives: item ids [T, n]. A negative that comes twice in a row counts once, one that equals the test item
            not at all; a `DataWarning` says how many.
        ks: lengths of the lists.
        block: pairs scored at a time.

    Returns:
        A `Report` with "hit_rate@k", "ndcg@k" and "mrr@k" for each test pair (in `users` stands the pair's user).

    Raises:
        ValueError: for shapes that do not fit, or scores of NaN.
    """
    users, items, negatives = *(np.asarray(x) for x in test_pairs), np.asarray(negatives)
    if users.shape != items.shape or users.ndim != 1 or negatives.shape[:1] != users.shape or negatives.ndim != 2:
        shapes = f"users {list(users.shape)}, items {list(items.shape)}, negatives {list(negatives.shape)}"
        raise ValueError(f"{shapes}; give [T], [T] and [T, n]")
    valid = _distinct(negatives) & (negatives != items[:, None])
    if not valid.all():
        warnings.warn(
            f"{(~valid).sum()} of {valid.size} negatives do not count: repeated in their row, or the test item itself",
            DataWarning,
            stacklevel=2,
        )
    candidates = np.concatenate([items[:, None], negatives], axis=1).astype(np.int32)
    ranks = []
    for start in range(0, len(users), block):
        stop = min(start + block, len(users))
        take = np.minimum(np.arange(start, start + block), len(users) - 1)
        part = _sampled_ranks(model, variables, users[take].astype(np.int32), candidates[take], valid[take])
        ranks.append(np.asarray(part)[: stop - start])
    rank = np.concatenate(ranks)
    if np.isnan(rank).any():
        raise ValueError(f"the score of user {users[np.isnan(rank)][0]} is NaN; did training diverge?")
    per_user = {}
    for k in sorted(set(ks)):
        hit = rank < k
        per_user[f"hit_rate@{k}"] = hit.astype(np.float64)
        per_user[f"ndcg@{k}"] = hit / np.log2(rank + 2)
        per_user[f"mrr@{k}"] = hit / (rank + 1)
    protocol = (
        f"SAMPLED ranking of each test item among {negatives.shape[1]} given negatives, ties against the test item"
    )
    return Report(users, per_user, {}, None, protocol)


# ---------------------------------------------------------------------- checks


def _checked_users(users: ArrayLike, n_users: int | None) -> np.ndarray:
    users = np.asarray(users)
    if users.ndim != 1 or len(users) == 0 or users.dtype.kind not in "iu":
        raise ValueError(f"users is {users.dtype}{list(users.shape)}; give a column of integer ids, at least one")
    if users.min() < 0 or (n_users is not None and users.max() >= n_users):
        raise ValueError(
            f"users run from {users.min()} to {users.max()}; ids are 0 .. {'' if n_users is None else n_users - 1}"
        )
    return users.astype(np.int32)


def _evaluated_users(train: Interactions, test: Interactions, users: ArrayLike | None) -> np.ndarray:
    shapes = [(part.n_users, part.n_items) for part in (train, test)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"train is {shapes[0]}, test {shapes[1]} users by items; split one set of Interactions")
    chosen = np.arange(test.n_users) if users is None else _checked_users(users, test.n_users)
    chosen = chosen[np.asarray(test.user_degrees)[chosen] > 0].astype(np.int32)
    if len(chosen) == 0:
        raise ValueError("none of the users has a test pair; there is nothing to evaluate")
    both = int(np.asarray(train.contains(*test.pairs())).sum())
    if both:
        warnings.warn(
            f"{both} of {test.n_pairs} test pairs are also training pairs: they are masked and count as missed",
            DataWarning,
            stacklevel=3,
        )
    cold = int((np.asarray(train.user_degrees)[chosen] == 0).sum())
    if cold:
        warnings.warn(
            f"{cold} of {len(chosen)} evaluated users have no training pair; splits.drop_cold leaves them out",
            DataWarning,
            stacklevel=3,
        )
    return chosen


def _distinct(rows: np.ndarray) -> np.ndarray:
    """True at the first occurrence of each value in its row."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, axis=1)
    first = np.concatenate([np.ones((len(rows), 1), bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    distinct = np.empty_like(first)
    np.put_along_axis(distinct, order, first, axis=1)
    return distinct


# ---------------------------------------------------------------------- ranking in blocks


def _ranked(model, variables, users, *, k, seen, demoted, key, block, auc=False):
    """Scores, items and (if asked) AUC of users [U], on the host."""
    n_items = jax.eval_shape(functools.partial(_rows, model), variables, users[:1]).shape[1]
    for interactions in (seen, demoted):
        if interactions is not None and interactions.n_items != n_items:
            raise ValueError(f"the model scores {n_items} items, the interactions hold {interactions.n_items}")
    if not 1 <= k <= n_items:
        raise ValueError(f"k={k}, but the catalogue has {n_items} items; ask for 1 .. {n_items}")
    if block is None:
        cells = 2**22 if jax.default_backend() == "cpu" else 2**27
        block = max(cells // n_items, 1)
    block = min(-(-max(block, 8) // 8) * 8, -(-len(users) // 8) * 8)
    n_blocks = -(-len(users) // block)
    padded = np.resize(users, n_blocks * block).reshape(n_blocks, block)
    order = np.asarray(jax.random.permutation(jax.random.key(0) if key is None else key, n_items))
    places = np.argsort(order).astype(np.int32)
    inputs = padded, _edges(seen, padded, places), _edges(demoted, padded, places)
    lower = key is None and demoted is not None
    scores, items, areas = _blocks(model, variables, order.astype(np.int32), inputs, k=k, lower=lower, auc=auc)
    scores = np.asarray(scores).reshape(-1, k)[: len(users)]
    items = np.asarray(items).reshape(-1, k)[: len(users)]
    if np.isnan(scores).any():
        bad = np.isnan(scores).any(axis=1)
        raise ValueError(f"{bad.sum()} users have scores of NaN, user {users[bad][0]} the first; did training diverge?")
    return scores, items, None if areas is None else np.asarray(areas).reshape(-1)[: len(users)]


def _edges(interactions: Interactions | None, users: np.ndarray, places: np.ndarray) -> tuple | None:
    """The pairs of each block of users [n_blocks, B]: row in the block and place of the item, both [n_blocks, L].

    Rows are padded with B, which a scatter drops. Flat lists of pairs take the longest block, not the longest user.
    """
    if interactions is None:
        return None
    n_blocks, block = users.shape
    indptr = np.asarray(interactions.indptr).astype(np.int64)
    begin, degrees = indptr[users.reshape(-1)], np.diff(indptr)[users.reshape(-1)]
    ends = np.cumsum(degrees)
    row = np.repeat(np.arange(users.size), degrees)
    pair = np.arange(len(row)) - np.repeat(ends - degrees, degrees) + np.repeat(begin, degrees)
    starts = np.r_[0, ends][:-1:block]
    sizes = np.diff(np.r_[starts, len(row)])
    longest = -(-max(int(sizes.max()), 1) // 1024) * 1024
    rows = np.full((n_blocks, longest), block, np.int32)
    columns = np.zeros((n_blocks, longest), np.int32)
    at = row // block, np.arange(len(row)) - np.repeat(starts, sizes)
    rows[at], columns[at] = row % block, places[np.asarray(interactions.indices)[pair]]
    return rows, columns


def _rows(model: Model, variables: Variables, users: Array) -> Array:
    return model.apply(variables, users, method="rows")


@functools.partial(jax.jit, static_argnames=("model", "k", "lower", "auc"))
def _blocks(model, variables, order, inputs, *, k, lower, auc):
    """Scores and items [n_blocks, B, k]; the columns stand in the random `order` [N], which breaks ties."""
    n_items = order.shape[0]
    width = -(-n_items // _GROUP) * _GROUP
    tables = None
    if hasattr(model, "vectors"):
        user_table, item_table = model.apply(variables, method="vectors")
        tables = user_table, jnp.pad(item_table[order], ((0, width - n_items), (0, 0)))
        user_is_bad = ~jnp.isfinite(user_table).all(axis=1) | ~jnp.isfinite(item_table).all()

    def scored(users):
        if tables is None:
            rows = _rows(model, variables, users)
            return jnp.pad(rows[:, order], ((0, 0), (0, width - n_items))), jnp.isnan(rows).any(axis=1)
        return jnp.matmul(tables[0][users], tables[1].T, precision="highest"), user_is_bad[users]

    def ranked(inputs):
        users, seen, positives = inputs
        scores, bad = scored(users)
        scores = jnp.where(jnp.arange(width)[None, :] < n_items, scores, -jnp.inf)
        if seen is not None:
            scores = scores.at[seen].set(-jnp.inf, mode="drop")
        area = None
        if auc:
            relevant = jnp.zeros(scores.shape, bool).at[positives].set(True, mode="drop")
            area = metrics.auc(scores, relevant, where=scores > -jnp.inf)
        if lower:
            scores = scores.at[positives].set(_one_lower(scores.at[positives].get(mode="clip")), mode="drop")
        values, at = _grouped_top_k(scores, k)
        items = jnp.where(values > -jnp.inf, order[jnp.minimum(at, n_items - 1)], -1)
        return jnp.where(bad[:, None], jnp.nan, values), items, area

    return jax.lax.map(ranked, inputs)


def _one_lower(x: Array) -> Array:
    """The next float below, or the one after it; not `nextafter`, whose step from 0 is a denormal that CPUs flush."""
    info = jnp.finfo(x.dtype)
    return jnp.where(jnp.isfinite(x), x - jnp.maximum(jnp.abs(x) * info.eps, info.tiny), x)


def _grouped_top_k(scores: Array, k: int) -> tuple[Array, Array]:
    """`lax.top_k` of [B, G·C] in two stages: the k best groups by their maximum, then the k best of their items.

    Exact, since each of the k best items lies in one of the k best groups. A group is a *strided* set of columns, so
    that the maxima are an elementwise maximum of G slices and nothing is copied. On CPU `lax.top_k` of long rows costs
    more than the product that made them; this way costs less.
    """
    n_rows, width = scores.shape
    n_groups = width // _GROUP
    if k >= n_groups or jax.default_backend() != "cpu":
        return jax.lax.top_k(scores, k)
    best = scores.reshape(n_rows, _GROUP, n_groups).max(axis=1)
    _, group = jax.lax.top_k(best, k)
    columns = group[:, None, :] + n_groups * jnp.arange(_GROUP, dtype=group.dtype)[None, :, None]
    columns = columns.reshape(n_rows, -1)
    values, at = jax.lax.top_k(jnp.take_along_axis(scores, columns, axis=1, mode="promise_in_bounds"), k)
    return values, jnp.take_along_axis(columns, at, axis=1, mode="promise_in_bounds")


@functools.partial(jax.jit, static_argnames="ks")
def _list_metrics(items, users, test, degrees, *, ks):
    """Metrics of lists [U, k] at every cut-off: for each user [U], and of all lists together."""
    hits = test.contains(users[:, None], items)
    n_relevant = jnp.asarray(test.user_degrees)[users]
    per_user = {f"{metric.__name__}@{k}": metric(hits, n_relevant, k=k) for metric in _METRICS for k in ks}
    per_user |= {f"popularity@{k}": metrics.popularity(items[:, :k], degrees) for k in ks}
    whole = (metrics.coverage, metrics.gini)
    return per_user, {f"{m.__name__}@{k}": m(items[:, :k], n_items=test.n_items) for m in whole for k in ks}


@functools.partial(jax.jit, static_argnames="model")
def _sampled_ranks(model, variables, users, candidates, valid):
    """How many valid negatives score at least as high as the first candidate, float32 [B]; NaN if a score is."""
    scores = model.apply(variables, users[:, None], candidates)
    rank = (valid & (scores[:, 1:] >= scores[:, :1])).sum(-1).astype(jnp.float32)
    return jnp.where(jnp.isnan(scores).any(-1), jnp.nan, rank)
