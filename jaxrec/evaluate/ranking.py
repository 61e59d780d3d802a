"""Top-k lists, and ranking metrics over all items.

A model needs `apply(variables, users, method="rows")` -> [B, N]. A model that also has `vectors` is
ranked by the product of its two tables. A model whose attribute `needs_histories` is True also gets
`histories=`: `Interactions` [B, N] of these users' items, whose `indices` are padded at the end.
`scorer` makes a model from any function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrec import metrics
from jaxrec._partials import check_function
from jaxrec.evaluate._kernel import area, evaluated_users, given_ids, lengths, ranked
from jaxrec.evaluate.report import Report, catalogue_metrics
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

    fn: Callable[[Any, Any], Array]

    def apply(self, variables: Variables, users: Array, items: Array | None = None, *, method: Any = None) -> Array:
        """Returns rows [B, N], or the scores of pairs (users [B] or [B, 1] with items [B, n])."""
        if method == "rows":
            return self.fn(variables, users)
        rows, ids = self.fn(variables, users.reshape(-1)), jnp.asarray(items)
        return jnp.take_along_axis(rows, ids.reshape(rows.shape[0], -1), axis=1).reshape(ids.shape)


def scorer(fn: Callable[[Any, Any], Array]) -> Model:
    """Returns a model that scores with a function, `fn(variables, users [B]) -> scores [B, N]`.

    Define `fn` once and pass what it needs as `variables`. Each new function is compiled, and a
    function that reads a global or a closure is compiled again when the value has changed.

    Raises:
        TypeError: if `fn` is not a function.

    >>> model = scorer(lambda table, users: table[users])
    >>> top_k(model, jnp.array([[0.1, 0.9, 0.5]]), [0], k=2)[1].tolist()
    [[1, 2]]
    """
    check_function("fn", fn, "lambda table, users: table[users]")
    return _Scorer(fn)


def top_k(
    model: Model,
    variables: Variables | Array,
    users: ArrayLike,
    *,
    k: int,
    seen: Interactions | None = None,
    items: ArrayLike | None = None,
    histories: Interactions | None = None,
    key: Key | None = None,
    block: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k best items of each user.

    Equal scores are ordered at random, and never by item id.

    Args:
        model: a model with the method `rows`, and perhaps `vectors`; see the module.
        variables: the model's variables, as returned by `model.init`.
        users: ids [U].
        k: length of the lists.
        seen: pairs [M, N] to leave out.
        items: ids [n] to choose among, such as items in stock; None is all.
        histories: pairs [M, N] that the model may see, for a model that knows users by their items,
            such as `models.VALID`. Other models take none.
        key: typed key from which the order of equal scores is drawn; None is a fixed key.
        block: number of users scored at a time. By default a block of scores fits into the
            processor's cache, or takes 1 GB on an accelerator. Results do not depend on it.

    Returns:
        scores [U, k] and items int32 [U, k], best first; -inf and -1 if a user has fewer items
        left. Scores are float32, or float64 if those of the model are.

    Warns:
        DataWarning: if users have no items in `histories`.

    Raises:
        TypeError: if `variables` is a `State` or another result of training instead of its
            variables, `model` is not a model, or scores are not floats.
        ValueError: if a model that needs `histories` gets none, or another model gets some; k lies
            outside 1 .. N; user ids lie outside the model (if it has `n_users` or `vectors`),
            `histories` or `seen`; N of the model is not that of `seen`; `items` are not ids in 0 ..
            N-1; or scores are NaN.

    For similar items, make a scorer whose users are items. The item itself comes first:

    >>> unit = jnp.array([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])  # such as vectors over their norms
    >>> top_k(scorer(lambda table, ids: table[ids] @ table.T), unit, [0], k=2)[1].tolist()
    [[0, 1]]
    """
    if seen is not None:
        check_interactions(seen=seen)
    users = given_ids("users", users, None if seen is None else seen.n_users)
    options: dict[str, Any] = {
        "seen": seen,
        "demoted": None,
        "key": key,
        "block": block,
        "candidates": items,
        "histories": histories,
    }
    return ranked(model, variables, users, k=k, **options)[:2]


def full_ranking(
    model: Model,
    variables: Variables | Array,
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
    """Ranks all items but the training items for each user, and evaluates the lists on test pairs.

    Users without a test pair are left out. Without a key, tied scores rank the test item last: each
    test item is ranked as if its score were one float lower. With a key, ties are broken at random.

    Args:
        model: a model with the method `rows`, and perhaps `vectors`; see the module.
        variables: the model's variables, as returned by `model.init`.
        train: pairs [M, N] that are masked. To mask validation pairs too, give training and
            validation pairs as one.
        test: pairs [M, N] to find.
        ks: lengths of the lists, or one length.
        users: ids [U] of the users to evaluate; None is all users.
        histories: pairs [M, N] that the model may see, for a model that knows users by their items,
            such as `models.VALID`. Usually these are the pairs that it was trained on,
            `histories=train`. They are not taken from the masked pairs: if validation pairs are
            masked, the model would see them by accident. Other models take none.
        key: typed key to break ties at random.
        auc: whether to compute the area under the ROC curve too; it sorts whole rows, which is slow
            for large N.
        block: number of users scored at a time; results do not depend on it.

    Returns:
        A `Report`. It has "recall@k", "ndcg@k", "precision@k", "hit_rate@k", "mrr@k",
        "average_precision@k", "popularity@k" (mean number of training users of the list's items)
        and "novelty@k" for each user, "auc" if `auc` is True, and "coverage@k" and "gini@k" of
        all lists.

    Warns:
        DataWarning: if test pairs are also training pairs, or users have no training pairs or no
            items in `histories`.

    Raises:
        TypeError, ValueError: as `top_k`; also if train and test have different shapes, or there is
            no user to evaluate.
    """
    users = evaluated_users(train, test, users)
    ks = lengths(ks)
    options: dict[str, Any] = {
        "seen": train,
        "demoted": test,
        "key": key,
        "block": block,
        "judge": area if auc else None,
    }
    options["histories"] = histories
    _, items, areas = ranked(model, variables, users, k=ks[-1] if ks else 0, **options)
    # On the host, where NumPy computes metrics without compiling anything.
    hits = np.asarray(test.contains(users[:, None], items))
    n_relevant, degrees = np.asarray(test.user_degrees)[users], np.asarray(train.item_degrees)
    per_user: dict[str, Any]
    per_user = {f"{metric.__name__}@{k}": metric(hits, n_relevant, k=k) for metric in _METRICS for k in ks}
    per_user |= {f"popularity@{k}": metrics.popularity(items[:, :k], degrees) for k in ks}
    per_user |= {f"novelty@{k}": metrics.novelty(items[:, :k], degrees, n_users=train.n_users) for k in ks}
    per_user = {name: np.asarray(values, np.float64) for name, values in per_user.items()}
    catalogue = catalogue_metrics(items, ks, test.n_items)
    if auc:
        per_user["auc"] = np.asarray(areas, np.float64)
    ties = "rank the test item last" if key is None else "rank at random"
    protocol = f"full ranking of {train.n_items} items, {train.n_pairs} training pairs masked, tied scores {ties}"
    return Report(users, per_user, catalogue, items, protocol, train.n_items)
