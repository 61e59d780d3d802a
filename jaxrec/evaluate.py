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
from jaxrec._identity import reads
from jaxrec._mesh import as_auto
from jaxrec._numerics import as_integer, integer
from jaxrec.interactions import DataWarning, Interactions, check_interactions
from jaxrec.partials import check_static
from jaxrec.ranking import apart, area, given_ids, ranked
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

    Define `fn` once and pass what it needs as `variables`: a new function compiles anew, and so does one that reads a
    global or a closure whose value has changed.

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
    items: ArrayLike | None = None,
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
        items: ids [n] to choose among, such as those in stock; None is all.
        key: typed key for ties.
        block: users scored at a time; by default such that a block of scores stays in the processor's cache, or
            takes about 0.5 GB on an accelerator. Results do not depend on it.

    Returns:
        scores float32 [U, k] and items int32 [U, k], best first; -inf and -1 where a user has fewer items left.

    Warns:
        DataWarning: for users without items in the history of a model that knows them by it alone.

    Raises:
        TypeError: for a `State` instead of its variables.
        ValueError: for k outside 1 .. N, user ids outside the model (where it has `n_users` or `vectors`) or `seen`, a
            model whose N is not that of `seen`, `items` that are none of 0 .. N-1, scores of NaN.

    Similar items are those of a scorer whose users are items; the item itself comes first:

    >>> unit = jnp.array([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])  # such as vectors over their norms
    >>> top_k(scorer(lambda table, ids: table[ids] @ table.T), unit, [0], k=2)[1].tolist()
    [[0, 1]]
    """
    if seen is not None:
        check_interactions(seen=seen)
    users = given_ids("users", users, None if seen is None else seen.n_users)
    options = {"seen": seen, "demoted": None, "key": key, "block": block, "candidates": items}
    return ranked(model, variables, users, k=k, **options)[:2]


def full_ranking(
    model: Model,
    variables: Variables,
    train: Interactions,
    test: Interactions,
    *,
    ks: Sequence[int] | int = (10, 20),
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
        ks: lengths of the lists, or one length.
        users: ids [U] to evaluate; by default all that have a test pair.
        key: typed key to break ties at random.
        auc: also the area under the ROC curve; it sorts whole rows, which is slow for large N.
        block: users scored at a time; results do not depend on it.

    Returns:
        A `Report` with "recall@k", "ndcg@k", "precision@k", "hit_rate@k", "mrr@k", "average_precision@k" and
        "popularity@k" (mean training users of the list's items) for each user, "coverage@k" and "gini@k" of all lists.

    Raises:
        TypeError, ValueError: as `top_k`; also for train and test of different shapes, or no user to evaluate.
    """
    users = _evaluated_users(train, test, users)
    ks = _lengths(ks)
    options = {"seen": train, "demoted": test, "key": key, "block": block, "judge": area if auc else None}
    _, items, areas = ranked(model, variables, users, k=ks[-1] if ks else 0, **options)
    per_user, catalogue = _list_metrics(items, users, test, train.item_degrees, ks=tuple(ks))
    names = [f"{metric.__name__}@{k}" for metric in (*_METRICS, metrics.popularity) for k in ks]  # jit sorts its dicts
    per_user = {name: np.asarray(per_user[name], np.float64) for name in names}
    catalogue = {name: float(value) for name, value in catalogue.items()}
    if auc:
        per_user["auc"] = np.asarray(areas, np.float64)
    ties = "against the test item" if key is None else "at random"
    protocol = f"full ranking of {train.n_items} items, {train.n_pairs} training pairs masked, ties {ties}"
    return Report(users, per_user, catalogue, items, protocol)


def separate_ranking(
    model: Model,
    variables: Variables,
    train: Interactions,
    test: Interactions,
    *,
    ks: Sequence[int] | int = (50, 100),
    users: ArrayLike | None = None,
    block: int | None = None,
) -> Report:
    """Ranks each test item apart, among the items that its user has in neither part, as λOpt's code does.

    Each user's figures are means over its test items, and all users weigh alike. Ties favour the test item in its rank,
    not in the area under the curve. Use it to compare with a paper that did the same: such figures are larger than
    those of `full_ranking`, the more test items a user has.

    Args:
        model: see the module.
        variables: of the model.
        train: pairs [M, N] that are masked; give train and validation in one to mask both.
        test: pairs [M, N] to find.
        ks: numbers of ranks that count, or one.
        users: ids [U] to evaluate; by default all that have a test pair.
        block: users scored at a time; results do not depend on it.

    Returns:
        A `Report` with "auc", "recall@k" (called HR@K there) and "ndcg@k" for each user.

    Raises:
        ValueError: as `full_ranking`, and for k outside 1 .. N.
    """
    users = _evaluated_users(train, test, users)
    ks = _lengths(ks)
    if not ks or not 1 <= ks[0] <= ks[-1] <= train.n_items:
        raise ValueError(f"ks={ks}, but the catalogue has {train.n_items} items; give some of 1 .. {train.n_items}")
    options = {"seen": train, "demoted": test, "key": None, "block": block, "judge": apart(ks)}
    found = ranked(model, variables, users, k=1, **options)[2]
    per_user = {name: np.asarray(values, np.float64) for name, values in found.items()}
    protocol = f"each test item among the user's unknown of {train.n_items}, {train.n_pairs} training pairs masked"
    return Report(users, per_user, {}, None, protocol)


def sampled_ranking(
    model: Model,
    variables: Variables,
    test_pairs: tuple[ArrayLike, ArrayLike],
    negatives: ArrayLike,
    *,
    ks: Sequence[int] | int = (10,),
    train: Interactions | None = None,
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
        ks: lengths of the lists, or one length.
        train: if given, items without a training pair take no part: negatives among them do not count, and test pairs
            with such an item are left out, as the released code of TransCF and MARS has it.
        block: pairs scored at a time.

    Returns:
        A `Report` with "hit_rate@k", "ndcg@k" and "mrr@k" for each test pair (in `users` stands the pair's user).

    Raises:
        ValueError: for shapes that do not fit, ids that are negative, no integers, or outside the model where it has
            `n_users` and `n_items`, and for scores of NaN.
    """
    users, items, negatives = *(np.asarray(x) for x in test_pairs), np.asarray(negatives)
    fits = users.shape == items.shape == negatives.shape[:1] and users.ndim == 1 and negatives.ndim == 2
    if not fits or negatives.size == 0:
        shapes = f"users {list(users.shape)}, items {list(items.shape)}, negatives {list(negatives.shape)}"
        raise ValueError(f"{shapes}; give [T], [T] and [T, n], T and n at least 1")
    n_users, n_items = getattr(model, "n_users", None), getattr(model, "n_items", None)
    for name, ids, n in (("users", users, n_users), ("items", items, n_items), ("negatives", negatives, n_items)):
        given_ids(name, ids.reshape(-1), n)
    check_static(model)
    variables, block = as_auto(variables), integer("block", block)
    among = f"{negatives.shape[1]} given negatives"
    if train is not None:
        check_interactions(train=train)
        users, items, negatives, known = _trained(train, users, items, negatives)
        among += f", items without training pairs left out with their {len(test_pairs[0]) - len(users)} test pairs"
    valid = _distinct(negatives) & (negatives != items[:, None])
    if not valid.all():
        warnings.warn(
            f"{(~valid).sum()} of {valid.size} negatives do not count: repeated in their row, or the test item itself",
            DataWarning,
            stacklevel=2,
        )
    valid = valid if train is None else valid & known
    candidates = np.concatenate([items[:, None], negatives], axis=1).astype(np.int32)
    ranks = []
    for start in range(0, len(users), block):
        stop = min(start + block, len(users))
        take = np.minimum(np.arange(start, start + block), len(users) - 1)
        inputs = users[take].astype(np.int32), candidates[take], valid[take]
        part = _sampled_ranks(variables, *inputs, model=model, reads=reads(model))
        ranks.append(np.asarray(part)[: stop - start])
    rank = np.concatenate(ranks)
    if np.isnan(rank).any():
        first = users[np.isnan(rank)][0]
        raise ValueError(f"a score of user {first} is NaN; did training diverge, or is an id outside the model?")
    per_user = {}
    for k in _lengths(ks):
        hit = rank < k
        per_user[f"hit_rate@{k}"] = hit.astype(np.float64)
        per_user[f"ndcg@{k}"] = hit / np.log2(rank + 2)
        per_user[f"mrr@{k}"] = hit / (rank + 1)
    protocol = f"SAMPLED ranking of each test item among {among}, ties against the test item"
    return Report(users, per_user, {}, None, protocol)


# ---------------------------------------------------------------------- checks


def _lengths(ks: Sequence[int] | int) -> tuple[int, ...]:
    """The lengths of lists, ascending, each once."""
    given = [ks] if as_integer(ks) is not None or isinstance(ks, str) else np.asarray(ks).reshape(-1).tolist()
    return tuple(sorted({integer("ks", k) for k in given}))


def _evaluated_users(train: Interactions, test: Interactions, users: ArrayLike | None) -> np.ndarray:
    check_interactions(train=train, test=test)
    shapes = [(part.n_users, part.n_items) for part in (train, test)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"train is {shapes[0]}, test {shapes[1]} users by items; split one set of Interactions")
    chosen = np.arange(test.n_users) if users is None else given_ids("users", users, test.n_users)
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


def _trained(train: Interactions, users: np.ndarray, items: np.ndarray, negatives: np.ndarray):
    """Test pairs whose item has a training pair, their negatives, and which of these have one."""
    largest = max(items.max(), negatives.max())
    if largest >= train.n_items:
        raise ValueError(f"item {largest} is not in train, which has {train.n_items}; use one id map")
    known = np.asarray(train.item_degrees) > 0
    kept = known[items]
    if not kept.any():
        raise ValueError("no test item has a training pair; there is nothing to rank. Leave train out to rank them all")
    return users[kept], items[kept], negatives[kept], known[negatives[kept]]


def _distinct(rows: np.ndarray) -> np.ndarray:
    """True at the first occurrence of each value in its row."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, axis=1)
    first = np.concatenate([np.ones((len(rows), 1), bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    distinct = np.empty_like(first)
    np.put_along_axis(distinct, order, first, axis=1)
    return distinct


# ---------------------------------------------------------------------- jitted parts


@functools.partial(jax.jit, static_argnames="ks")
def _list_metrics(items, users, test, degrees, *, ks):
    """Metrics of lists [U, k] at every cut-off: for each user [U], and of all lists together."""
    hits = test.contains(users[:, None], items)
    n_relevant = jnp.asarray(test.user_degrees)[users]
    per_user = {f"{metric.__name__}@{k}": metric(hits, n_relevant, k=k) for metric in _METRICS for k in ks}
    per_user |= {f"popularity@{k}": metrics.popularity(items[:, :k], degrees) for k in ks}
    whole = (metrics.coverage, metrics.gini)
    return per_user, {f"{m.__name__}@{k}": m(items[:, :k], n_items=test.n_items) for m in whole for k in ks}


@functools.partial(jax.jit, static_argnames=("model", "reads"))
def _sampled_ranks(variables, users, candidates, valid, *, model, reads):
    """How many valid negatives score at least as high as the first candidate, float32 [B]; NaN if a score is."""
    del reads
    scores = model.apply(variables, users[:, None], candidates)
    rank = (valid & (scores[:, 1:] >= scores[:, :1])).sum(-1).astype(jnp.float32)
    return jnp.where(jnp.isnan(scores).any(-1), jnp.nan, rank)
