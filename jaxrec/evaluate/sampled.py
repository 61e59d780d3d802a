"""Ranking of test items among sampled negatives, for comparison with papers that did the same."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._identity import reads
from jaxrec._mesh import divided, mesh_of, on_mesh, replicated, using
from jaxrec._numerics import integer
from jaxrec._partials import check_static
from jaxrec.evaluate._kernel import by_name, check_histories, given_ids, lengths, room, say_empty
from jaxrec.evaluate.report import Report
from jaxrec.interactions import DataWarning, Interactions, check_interactions
from jaxrec.typing import ArrayLike, Model, Variables


def sampled_ranking(
    model: Model,
    variables: Variables,
    test_pairs: tuple[ArrayLike, ArrayLike],
    negatives: ArrayLike,
    *,
    ks: Sequence[int] | int = (10,),
    train: Interactions | None = None,
    histories: Interactions | None = None,
    block: int = 1024,
) -> Report:
    """Ranks each test item among its own sampled negatives; tied scores rank the test item last.

    The results depend on how the negatives were drawn, and do not order models as a full ranking
    does (Krichene and Rendle 2020, 10.1145/3394486.3403226). Use them only to compare with a paper
    that did the same.

    Args:
        model: a model that scores pairs by `apply(variables, users, items)`.
        variables: the model's variables, as returned by `model.init`.
        test_pairs: users [T] and items [T].
        negatives: item ids [T, n]. A negative that is repeated in its row counts once, and one that
            equals the test item does not count. A `DataWarning` says how many do not count.
        ks: lengths of the lists, or one length.
        train: if given, items without a training pair are left out, as in the released code of
            TransCF and MARS: such negatives do not count, and test pairs with such an item are
            dropped.
        histories: pairs [M, N] that the model may see, for a model that knows users by their items,
            such as `models.VALID`; see `full_ranking`. Other models take none.
        block: number of pairs scored at a time.

    Returns:
        A `Report` with "hit_rate@k", "ndcg@k" and "mrr@k" for each test pair; its `users` are the
        users of the pairs.

    Warns:
        DataWarning: if negatives do not count, or users have no items in `histories`.

    Raises:
        ValueError: if shapes do not fit; ids are negative, not integers, outside the model (if it
            has `n_users` and `n_items`) or outside `histories`; an item is outside `train`, or no
            test item has a training pair; a model that needs `histories` gets none, or another
            model gets some; or scores are NaN.
    """
    users, items, negatives = *(np.asarray(x) for x in test_pairs), np.asarray(negatives)
    fits = users.shape == items.shape == negatives.shape[:1] and users.ndim == 1 and negatives.ndim == 2
    if not fits or negatives.size == 0:
        shapes = f"users {list(users.shape)}, items {list(items.shape)}, negatives {list(negatives.shape)}"
        raise ValueError(f"{shapes}; give [T], [T] and [T, n], with T and n of 1 or more")
    check_histories(model, histories)
    n_users = getattr(model, "n_users", None) if histories is None else histories.n_users
    n_items = getattr(model, "n_items", None)
    for name, ids, n in (("users", users, n_users), ("items", items, n_items), ("negatives", negatives, n_items)):
        given_ids(name, ids.reshape(-1), n)
    check_static(model)
    mesh, block = mesh_of(variables), integer("block", block)
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
    say_empty(histories, np.unique(users), stacklevel=3)
    blocks = np.minimum(np.arange(-(-len(users) // block) * block), len(users) - 1).reshape(-1, block)
    known = _histories(histories, users[blocks])
    ranks = []
    with using(mesh):
        on_devices = on_mesh(variables, mesh)
        for chosen, own in zip(blocks, known):
            inputs = users[chosen].astype(np.int32), candidates[chosen], valid[chosen], own
            ranks.append(np.asarray(_sampled_ranks(on_devices, *inputs, model=model, reads=reads(model))))
    rank = np.concatenate(ranks)[: len(users)]
    if np.isnan(rank).any():
        first = users[np.isnan(rank)][0]
        raise ValueError(
            f"a score of user {first} is NaN; check that training did not diverge, and that no id is outside the model"
        )
    per_user = {}
    for k in lengths(ks):
        hit = rank < k
        per_user[f"hit_rate@{k}"] = hit.astype(np.float64)
        per_user[f"ndcg@{k}"] = hit / np.log2(rank + 2)
        per_user[f"mrr@{k}"] = hit / (rank + 1)
    protocol = f"SAMPLED ranking of each test item among {among}, tied scores rank the test item last"
    return Report(users, per_user, {}, None, protocol)


def _trained(train: Interactions, users: np.ndarray, items: np.ndarray, negatives: np.ndarray):
    """Returns the test pairs whose item has a training pair, their negatives, and whether each
    negative has a training pair.
    """
    largest = max(items.max(), negatives.max())
    if largest >= train.n_items:
        raise ValueError(f"item {largest} is not in train, which has {train.n_items}; use one id map")
    known = np.asarray(train.item_degrees) > 0
    kept = known[items]
    if not kept.any():
        raise ValueError("no test item has a training pair, so nothing is ranked; leave train out to rank them all")
    return users[kept], items[kept], negatives[kept], known[negatives[kept]]


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Returns True at the first occurrence of each value in its row."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, axis=1)
    first = np.concatenate([np.ones((len(rows), 1), bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    distinct = np.empty_like(first)
    np.put_along_axis(distinct, order, first, axis=1)
    return distinct


def _histories(known: Interactions | None, users: np.ndarray) -> Iterator[Interactions | None]:
    """Yields the histories of each block of users [n_blocks, B], one block at a time: a user is
    repeated for each test pair.
    """
    if known is None:
        yield from [None] * len(users)
        return
    known = jax.tree.map(np.asarray, known)
    capacity = room(int(np.diff(known.indptr.astype(np.int64))[users].sum(1).max()))
    yield from (known.take(block, capacity=capacity) for block in users)


@functools.partial(jax.jit, static_argnames=("model", "reads"))
def _sampled_ranks(variables, users, candidates, valid, histories, *, model, reads):
    """Returns how many valid negatives score at least as high as the first candidate, float32 [B];
    NaN if a score is NaN.
    """
    del reads
    users, candidates, valid = divided((users, candidates, valid))
    scores = model.apply(variables, users[:, None], candidates, **by_name(histories))
    rank = (valid & (scores[:, 1:] >= scores[:, :1])).sum(-1).astype(jnp.float32)
    return replicated(jnp.where(jnp.isnan(scores).any(-1), jnp.nan, rank))
