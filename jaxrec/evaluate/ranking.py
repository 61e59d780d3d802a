"""Top-k lists and ranking metrics of all items.

A model takes part with `apply(variables, users, method="rows")` -> [B, N]. A model that also has `vectors` is ranked by
the product of its two tables. A model with an attribute `needs_histories` of True gets `histories=` too, `Interactions`
[B, N] of these users' items, whose `indices` are padded at the end. `scorer` makes a model from any function.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import metrics
from jaxrec.evaluate._kernel import area, evaluated_users, given_ids, lengths, ranked
from jaxrec.evaluate.report import Report
from jaxrec.interactions import Interactions, check_interactions
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
    histories: Interactions | None = None,
    key: Key | None = None,
    block: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of each user.

    Equal scores come in an order drawn from `key` (None = a fixed key), one for all users; never by item id.

    Args:
        model: see the module.
        variables: the model's variables, as returned by `model.init`.
        users: ids [U].
        k: length of the lists.
        seen: pairs to leave out.
        items: ids [n] to choose among, such as those in stock; None is all.
        histories: pairs [M, N] that the model may see, for a model that knows users by their items, such as
            `models.VALID`. Other models take none.
        key: typed key for ties.
        block: users scored at a time; by default such that a block of scores stays in the processor's cache, or
            takes about 0.5 GB on an accelerator. Results do not depend on it.

    Returns:
        scores float32 [U, k] and items int32 [U, k], best first; -inf and -1 where a user has fewer items left.

    Warns:
        DataWarning: for users without items in `histories`.

    Raises:
        TypeError: for a `State` instead of its variables.
        ValueError: for a model that needs `histories` and gets none, or gets some and takes none; k outside 1 .. N,
            user ids outside the model (where it has `n_users` or `vectors`), `histories` or `seen`, a model whose N is
            not that of `seen`, `items` that are none of 0 .. N-1, scores of NaN.

    Similar items are those of a scorer whose users are items; the item itself comes first:

    >>> unit = jnp.array([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])  # such as vectors over their norms
    >>> top_k(scorer(lambda table, ids: table[ids] @ table.T), unit, [0], k=2)[1].tolist()
    [[0, 1]]
    """
    if seen is not None:
        check_interactions(seen=seen)
    users = given_ids("users", users, None if seen is None else seen.n_users)
    options = {"seen": seen, "demoted": None, "key": key, "block": block, "candidates": items, "histories": histories}
    return ranked(model, variables, users, k=k, **options)[:2]


def full_ranking(
    model: Model,
    variables: Variables,
    train: Interactions,
    test: Interactions,
    *,
    ks: Sequence[int] | int = (10, 20),
    users: ArrayLike | None = None,
    histories: Interactions | None = None,
    key: Key | None = None,
    auc: bool = False,
    block: int | None = None,
) -> Report:
    """Ranks all items for each user, training items left out, and judges the lists by the test pairs.

    Users without a test pair are left out. Equal scores: without a key each test item is ranked as if its
    score were one float lower, so that tied scores rank it last; with a key, at random.

    Args:
        model: see the module.
        variables: the model's variables, as returned by `model.init`.
        train: pairs [M, N] that are masked. To mask validation pairs too, give train and validation in one.
        test: pairs [M, N] to find.
        ks: lengths of the lists, or one length.
        users: ids [U] to evaluate; by default all that have a test pair.
        histories: pairs [M, N] that the model may see, for a model that knows users by their items, such as
            `models.VALID`. Usually the pairs that it was trained on, `histories=train`. They are not taken from what is
            masked: with validation pairs masked, the model would see them by accident. Other models take none.
        key: typed key to break ties at random.
        auc: also the area under the ROC curve; it sorts whole rows, which is slow for large N.
        block: users scored at a time; results do not depend on it.

    Returns:
        A `Report` with "recall@k", "ndcg@k", "precision@k", "hit_rate@k", "mrr@k", "average_precision@k" and
        "popularity@k" (mean training users of the list's items) for each user, "coverage@k" and "gini@k" of all lists.

    Warns:
        DataWarning: for test pairs that are also training pairs, and for users without training pairs or without items
            in `histories`.

    Raises:
        TypeError, ValueError: as `top_k`; also for train and test of different shapes, or no user to evaluate.
    """
    users = evaluated_users(train, test, users)
    ks = lengths(ks)
    options = {"seen": train, "demoted": test, "key": key, "block": block, "judge": area if auc else None}
    options["histories"] = histories
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


@functools.partial(jax.jit, static_argnames="ks")
def _list_metrics(items, users, test, degrees, *, ks):
    """Metrics of lists [U, k] at every cut-off: for each user [U], and of all lists together."""
    hits = test.contains(users[:, None], items)
    n_relevant = jnp.asarray(test.user_degrees)[users]
    per_user = {f"{metric.__name__}@{k}": metric(hits, n_relevant, k=k) for metric in _METRICS for k in ks}
    per_user |= {f"popularity@{k}": metrics.popularity(items[:, :k], degrees) for k in ks}
    whole = (metrics.coverage, metrics.gini)
    return per_user, {f"{m.__name__}@{k}": m(items[:, :k], n_items=test.n_items) for m in whole for k in ks}
