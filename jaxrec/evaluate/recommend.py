"""Recommendations and similar items as DataFrames, with your own labels."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import models
from jaxrec._numerics import accumulated, as_integer, integer
from jaxrec.data import readers
from jaxrec.evaluate._kernel import checked_sizes, given_ids
from jaxrec.evaluate.ranking import scorer, top_k
from jaxrec.interactions import DataWarning, IdMap, Interactions
from jaxrec.typing import Array, ArrayLike, Key, Model, Variables

Titles = Mapping[Any, Any] | Sequence[Any] | np.ndarray


def recommend(
    model: Model,
    variables: Variables,
    users: ArrayLike,
    *,
    k: int = 10,
    id_map: IdMap | None = None,
    seen: Interactions | None = None,
    histories: Interactions | None = None,
    items: ArrayLike | None = None,
    titles: Titles | None = None,
    unknown_users: Literal["raise", "drop"] = "raise",
    key: Key | None = None,
    block: int | None = None,
) -> Any:
    """Returns the k best items of each user as a pandas DataFrame.

    Args:
        model: a model with the method `rows`, and perhaps `vectors`; see `top_k`.
        variables: the model's variables, as returned by `model.init`.
        users: ids [U], or labels if `id_map` is given; or one of them.
        k: length of the lists.
        id_map: the labels of the data. With it, users and items are labels, in arguments and in the
            result.
        seen: pairs [M, N] to leave out, such as those of the training data.
        histories: pairs [M, N] that the model may see, for a model that knows users by their items.
        items: ids or labels [n] of the items to choose among, such as items in stock; None is all.
        titles: a mapping from the item as it is shown in the result to its title, such as a dict or
            a pandas Series; or a sequence of N titles by item id.
        unknown_users: what to do with labels that `id_map` lacks: "raise", or "drop", which leaves
            them out and says how many there were in a `DataWarning`.
        key: typed key from which the order of equal scores is drawn; None is a fixed key.
        block: number of users scored at a time; see `top_k`.

    Returns:
        A DataFrame with the columns "user", "rank" (from 1), "item", "score", and "title" if
        `titles` is given (None for an item without a title). Users are in the given order, and
        items in the order of their rank. A user with fewer than k items left has fewer rows.

    Warns:
        DataWarning: if users are dropped, or users have no items in `histories`.

    Raises:
        TypeError, ValueError: as `top_k`; also for labels that `id_map` lacks (with "drop", only if
            it lacks all), for an `id_map` of another number of items or users than the model,
            `seen` or `histories`, and if `titles` has other items or another number of titles.

    >>> id_map = IdMap(users=["ann", "bob"], items=["a", "b", "c"])
    >>> model = scorer(lambda table, users: table[users])
    >>> frame = recommend(model, jnp.array([[0.1, 0.9, 0.5], [3.0, 2.0, 1.0]]), ["bob"], k=2, id_map=id_map)
    >>> frame.to_dict("records")[0]
    {'user': 'bob', 'rank': 1, 'item': 'a', 'score': 3.0}
    """
    if unknown_users not in ("raise", "drop"):
        raise ValueError(f"unknown_users={unknown_users!r}; give 'raise' or 'drop'")
    ids = _ids("users", users) if id_map is None else _known_users(users, id_map, unknown_users)
    candidates = items if items is None else _item_ids(items, id_map)
    n_items = checked_sizes(model, variables, ids, 1, (seen,), histories)
    of_users: set[Any] = {getattr(part, "n_users", None) for part in (model, seen, histories)}
    _check_map(id_map, n_items, of_users - {None})
    how: dict[str, Any] = {
        "k": k,
        "seen": seen,
        "items": candidates,
        "histories": histories,
        "key": key,
        "block": block,
    }
    scores, found = top_k(model, variables, ids, **how)
    return _lists("user", _shown(ids, id_map, "users"), "item", found, scores, id_map, titles, n_items)


def similar(
    model: Model,
    variables: Variables,
    items: ArrayLike,
    *,
    k: int = 10,
    id_map: IdMap | None = None,
    titles: Titles | None = None,
    key: Key | None = None,
) -> Any:
    """Returns the k items that are most similar to each item as a pandas DataFrame.

    The similarity is the cosine of the items' vectors. These are what the model's method
    `item_vectors` returns; without it, the second table of `vectors`; without both, the parameter
    "item". Those of a graph model are propagated; those of `models.MARS` hold all facets, so that
    the cosine is the mean over facets of equal length.

    A model whose `vectors` encode more than a product of two vectors, such as a distance, needs
    `item_vectors`, because the cosine of the encoded vectors is not that of the items.

    EASE, neighbours and filters have weights between items instead. The items that are most similar
    to i are then those with the highest scores for a user whose only item is i, and items without a
    weight are left out. For EASE these scores are row i of the weights. For `ItemKNN` they are
    column i of `neighbours`: the weights of random walks that start at i, or the cosines of the
    items that have i among their nearest neighbours.

    Args:
        model: a model with `item_vectors` or `vectors`, with a parameter "item" [N, ...], or one that
            knows users only by their items.
        variables: the model's variables, as returned by `model.init`.
        items: ids [n], or labels if `id_map` is given; or one of them.
        k: number of similar items, below N. The item itself is left out.
        id_map: the labels of the data. With it, items are labels, in arguments and in the result.
        titles: titles of the similar items; see `recommend`.
        key: typed key from which the order of equal cosines is drawn; None is a fixed key.

    Returns:
        A DataFrame with the columns "item", "rank" (from 1), "similar", "score", and "title" if
        `titles` is given. An item with weights to fewer than k others has fewer rows.

    Raises:
        TypeError: if `variables` is a `State`, or the model has neither item vectors nor weights
            between items.
        ValueError: if k is not an integer from 1 to N − 1, items are unknown, a vector is not
            finite, `titles` does not fit, the vectors are not those of the model's N items, or the
            model has no `item_vectors` and a coordinate of `vectors` has the same value, other than
            0, for all users or for all items: it is a squared length or a bias.

    >>> table = {"params": {"user": jnp.ones((1, 2)), "item": jnp.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])}}
    >>> similar(models.MF(1, 3, dim=2), table, 0, k=1)["similar"].tolist()
    [2]
    """
    vectors = _item_vectors(model, variables)
    of_items: Any
    known: Any
    if vectors is None:
        of_items, known, n = _OneItem(model), variables, getattr(model, "n_items", 0)
    else:
        of_items, known, n = scorer(_products), vectors, len(vectors)
    k = integer("k", k, most=max(n - 1, 1))
    _check_map(id_map, n, set())
    ids = given_ids("items", _item_ids(items, id_map), n)
    each = np.unique(ids)
    itself = Interactions.from_pairs(each, each, n_users=n, n_items=n)
    scores, found = top_k(of_items, known, ids, k=k, seen=itself, key=key)
    return _lists("item", _shown(ids, id_map, "items"), "similar", found, scores, id_map, titles, n)


def _products(vectors: Array, ids: Array) -> Array:
    """Returns the dot products [B, N] of some rows with all."""
    return vectors[ids] @ vectors.T


@dataclasses.dataclass(frozen=True)
class _OneItem:
    """Scores the users who have one item each, given by their items, with a model of histories."""

    model: Any

    def apply(self, variables: Variables, items: Array, *, method: str) -> jax.Array:
        """Returns scores [B, N] for items [B]; -inf where the model has no weight."""
        n = len(items)
        histories = Interactions(jnp.arange(n + 1, dtype=jnp.int32), items, None, None, n, self.model.n_items)
        scores = self.model.apply(variables, None, histories=histories, method=method)
        return jnp.where(scores == 0, -jnp.inf, scores)


def _item_vectors(model: Model, variables: Variables) -> Array | None:
    """Returns unit vectors of the items, [N, D]; None for a model that knows users only by their items."""
    if hasattr(variables, "variables"):
        raise TypeError(f"variables is a {type(variables).__name__}; pass its .variables")
    params = variables.get("params") if isinstance(variables, Mapping) else None
    item: Any = params.get("item") if isinstance(params, Mapping) else None
    if hasattr(model, "item_vectors"):
        found = model.apply(variables, method="item_vectors")
    elif hasattr(model, "vectors"):
        found = _of_products(*model.apply(variables, method="vectors"), name=type(model).__name__)
    elif np.ndim(item) > 1:
        found = item
    elif getattr(model, "needs_histories", False) and getattr(model, "n_users", None) is None:
        if getattr(model, "n_items", None) is None:
            raise TypeError(f"{type(model).__name__} has no n_items; give it one, such as from_functions(n_items=...)")
        return None
    else:
        raise TypeError(
            f"{type(model).__name__} has no vectors of items: neither the method `item_vectors` or `vectors` nor a "
            "parameter 'item' [N, D]; give a model that has, such as models.MF"
        )
    found, n = accumulated(found), as_integer(getattr(model, "n_items", None))
    if n not in (None, len(found)):
        raise ValueError(
            f"{type(model).__name__} has {len(found)} vectors for {n} items; give it the method `item_vectors`, which "
            "returns [N, ...]"
        )
    if not bool(jnp.isfinite(found).all()):
        raise ValueError("a vector of an item is NaN or infinite; check that training did not diverge")
    flat = found.reshape(len(found), -1)
    most = jnp.abs(flat).max(1, keepdims=True)  # squares of very long or short vectors do not fit float32
    flat = flat / jnp.where(most > 0, most, 1)
    return models.cosine(flat, flat)[1]


def _of_products(users: Array, items: Array, *, name: str) -> Array:
    """Returns the items' table; raises `ValueError` if the score is more than a product of vectors.

    A distance −‖u‖² + 2u·v − ‖v‖² and a bias add to the score what depends on the user or the item
    alone. Written as one product, the other table has the same value in that coordinate for all ids.
    """
    for of, other, table in (("item", "user", users), ("user", "item", items)):
        alone = (table == table[:1]).all(0) & (table[0] != 0)
        if len(table) > 1 and bool(alone.any()):
            raise ValueError(
                f"coordinate {int(jnp.argmax(alone))} of the vectors of {name} is the same for all {other}s, so that "
                f"it adds a squared length or a bias of the {of} to the score, by which items are not similar; give "
                "the model the method `item_vectors`, which returns the vectors [N, ...] to compare"
            )
    return items


# ---------------------------------------------------------------------- labels and titles


def _known_users(users: ArrayLike, id_map: IdMap, unknown: str) -> np.ndarray:
    """Returns the ids [U] of labels; raises an error for unknown ones, or drops them."""
    ids = id_map.user_ids(users, unknown=-1).reshape(-1)
    lacking = ids < 0
    if not lacking.any():
        return ids
    named = [label for label, lacks in zip(np.asarray(users, object).reshape(-1).tolist(), lacking) if lacks]
    shown = ", ".join(map(repr, named[:5])) + ", ..." * (len(named) > 5)
    if unknown == "raise" or lacking.all():
        drop = "" if lacking.all() else "pass unknown_users='drop', "
        raise ValueError(
            f"id_map lacks {lacking.sum()} of {len(ids)} users: {shown}; give users of the training data, {drop}or "
            "compute vectors of new users with train.fold_in or solvers.ials.fold_in"
        )
    warnings.warn(f"dropped {lacking.sum()} of {len(ids)} users that id_map lacks: {shown}", DataWarning, stacklevel=3)
    return ids[~lacking]


def _item_ids(items: ArrayLike, id_map: IdMap | None) -> np.ndarray:
    """Returns ids [n] of item ids or labels."""
    return _ids("items", items) if id_map is None else id_map.item_ids(items).reshape(-1)


def _ids(name: str, ids: ArrayLike) -> np.ndarray:
    """Returns ids [n] of a column or of one id; raises `ValueError` for labels that are strings."""
    ids = np.asarray(ids).reshape(-1)
    if ids.dtype.kind in "UTSO":
        raise ValueError(f"{name} holds {ids[:1].tolist()}; give ids 0 .. n-1, or labels together with id_map")
    return ids


def _check_map(id_map: IdMap | None, n_items: int, n_users: set[int]) -> None:
    """Raises `ValueError` if the map has labels of another number of items, or of users."""
    if id_map is None:
        return
    if len(id_map.items) != n_items:
        raise ValueError(
            f"id_map has {len(id_map.items)} items, but the model {n_items}; give the id_map of the training data"
        )
    for n in n_users - {len(id_map.users)}:
        raise ValueError(
            f"id_map has {len(id_map.users)} users, but the model, seen or histories {n}, so that labels would name "
            "other users; give the id_map of these users, such as IdMap(labels of new users, id_map.items)"
        )


def _shown(ids: np.ndarray, id_map: IdMap | None, side: str) -> np.ndarray:
    """Returns ids, or their labels if there is a map."""
    return ids if id_map is None else getattr(id_map, side)[ids]


def _lists(
    first: str,
    shown: np.ndarray,
    second: str,
    found: np.ndarray,
    scores: np.ndarray,
    id_map: IdMap | None,
    titles: Titles | None,
    n_items: int,
) -> Any:
    """Returns a DataFrame with a row for each entry of the lists `found` [U, k] that is not padding."""
    pd = readers.optional("pandas", extra="data")
    real = found >= 0
    ranks = np.broadcast_to(np.arange(1, found.shape[1] + 1), found.shape)
    ids = found[real]
    items = _shown(ids, id_map, "items")
    columns: dict[str, Any] = {
        first: np.repeat(shown, real.sum(1)),
        "rank": ranks[real],
        second: items,
        "score": scores[real],
    }
    if titles is not None:
        columns["title"] = _titles(titles, items, ids, n_items)
    return pd.DataFrame(columns)


def _titles(titles: Titles, items: np.ndarray, ids: np.ndarray, n_items: int) -> list:
    """Returns the title of each item; None for an item that a mapping lacks."""
    if hasattr(titles, "to_dict"):  # a pandas Series, whose index has the items
        series, titles = titles, titles.to_dict()
        if len(titles) < len(series):
            raise ValueError("titles has an item twice in its index; drop the duplicates")
    shown = items.tolist()
    if isinstance(titles, Mapping):
        if shown and not any(item in titles for item in shown):
            first = next(iter(titles), None)
            raise ValueError(
                f"titles has none of the items, such as {shown[0]!r}; its first key is {first!r}: give a mapping from "
                "items, as the result shows them, to titles"
            )
        return [titles.get(item) for item in shown]
    if isinstance(titles, str) or not (hasattr(titles, "__len__") and hasattr(titles, "__getitem__")):
        raise TypeError(f"titles is a {type(titles).__name__}; give a mapping from items to titles, or a sequence")
    if len(titles) != n_items:
        raise ValueError(f"titles has {len(titles)} entries for {n_items} items; give one for each item id")
    return [titles[item] for item in ids.tolist()]
