"""Turns columns of pairs into the rows of a matrix: sizes, known labels, duplicates, row offsets."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxrec._ids import INT32_MAX, IdMap

MOST = INT32_MAX  # number of pairs that int32 row offsets can count


class DataWarning(UserWarning):
    """Warns of a flaw in data that can still be used, such as duplicate pairs."""


DataWarning.__module__ = "jaxrec.interactions"  # where it is public


BLOCK = 1 << 22  # entries of a column that are in memory at a time


def slices(n: int) -> Iterator[slice]:
    """Yields slices of at most `BLOCK` places each, which cover 0 .. n-1.

    >>> list(slices(3))
    [slice(0, 3, None)]
    """
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


def offsets(ends: np.ndarray) -> np.ndarray:
    """Returns row offsets as int32; as int64 if there are too many pairs for int32."""
    return np.asarray(ends).astype(np.int64 if len(ends) and ends[-1] > MOST else np.int32)


def check_countable(n_pairs: int) -> None:
    """Raises `ValueError` for more pairs than int32 can count, which JAX uses on a device."""
    if n_pairs > MOST:
        raise ValueError(
            f"{n_pairs} pairs are more than the {MOST} that int32 can count, so that the set stays on the host; train "
            "with examples=train.streamed, or take the rows of some users"
        )


def counted(keep: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns for ascending places [M + 1], 0 .. n, how many of `keep` [n] are True before each."""
    before, total = np.zeros(len(places), np.int64), 0
    for part in slices(len(keep)):
        counts = np.cumsum(keep[part], dtype=np.int64) + total
        # Place p counts the entries up to p - 1.
        first, last = np.searchsorted(places, np.array([part.start, part.stop], places.dtype), side="right")
        before[first:last] = counts[places[first:last] - (part.start + 1)]
        total = counts[-1]
    return before


def merged(
    users: np.ndarray,
    items: np.ndarray,
    weights: np.ndarray | None,
    timestamps: np.ndarray | None,
    n_users: int,
    n_items: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Sorts checked columns by user and item, and merges the rows of the same pair.

    Returns:
        indptr, indices, weights and timestamps of `Interactions`.
    """
    keys = users.astype(np.int64) * n_items + items  # int64: the product exceeds int32
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    repeats = len(keys) - len(first)
    if repeats:
        repeated = keys[1:][keys[1:] == keys[:-1]][0]
        what = ["repetition ignored" if weights is None else "weights added"]
        what += [] if timestamps is None else ["latest timestamp kept"]
        warnings.warn(
            f"merged {repeats} duplicate pairs ({', '.join(what)}); the first is user {repeated // n_items}, "
            f"item {repeated % n_items}",
            DataWarning,
            stacklevel=3,
        )
    rows, columns = users[order][first], items[order][first]
    if weights is not None:
        weights = np.add.reduceat(weights[order], first)
        large = np.abs(weights) > np.finfo(np.float32).max
        if large.any():
            at = int(np.argmax(large))
            raise ValueError(
                f"the weights of user {rows[at]}, item {columns[at]} add up to {weights[at]:g}, more than float32 "
                f"holds; divide all weights ({large.sum()} such pairs)"
            )
    return (
        offsets(np.searchsorted(rows, np.arange(n_users + 1, dtype=np.int64))),
        columns,
        None if weights is None else weights.astype(np.float32),
        None if timestamps is None else np.maximum.reduceat(timestamps[order], first),
    )


def number_of(name: str, ids: np.ndarray) -> int:
    """Returns the largest id plus one; warns if most smaller ids, or only id 0, never occur."""
    n = int(ids.max()) + 1
    used = np.count_nonzero(np.bincount(ids)) if n <= 10 * len(ids) else len(np.unique(ids))
    if n > 10 * used:
        warnings.warn(
            f"{name} run to {n - 1}, but only {used} of these ids occur, and every id gets a row in models and "
            f"rankings; use Interactions.from_labels to avoid gaps, or give n_{name}={n} if the gaps are intended",
            DataWarning,
            stacklevel=3,
        )
    elif used > 1 and ids.min() == 1:
        warnings.warn(
            f"{name} seem to start at 1, but ids start at 0: id 0 would get a row in models and rankings and have no "
            f"pairs; subtract 1, use Interactions.from_labels, or give n_{name}={n} if id 0 is intended",
            DataWarning,
            stacklevel=3,
        )
    return n


_AS_TEXT = {"nan", "NaN", "NaT", "None", "null", "<NA>"}


def say_missing_as_text(name: str, labels: np.ndarray, places: np.ndarray) -> None:
    """Warns of labels such as "nan", which look like missing values that were turned into text."""
    if labels.dtype.kind != "O":
        return
    for place in (place for place, label in enumerate(labels) if label in _AS_TEXT):
        warnings.warn(
            f"{name} has the label {labels[place]!r} in {np.count_nonzero(places == place)} rows, which looks like a "
            "missing value turned into text; if so, drop these rows",
            DataWarning,
            stacklevel=3,
        )


def known_pairs(id_map: IdMap, labels: tuple[np.ndarray, np.ndarray], columns: dict[str, Any]) -> dict[str, Any]:
    """Replaces labels by the ids of `id_map` and drops the rows with a label that it lacks.

    Args:
        id_map: the map to use.
        labels: distinct labels of users and of items.
        columns: "users" and "items" as positions in `labels`; "weights" and "timestamps", each a
            column or None.
    """
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns have different lengths, {lengths}; give one entry for each pair")
    users = id_map.user_ids(labels[0], unknown=-1)[columns["users"]]
    items = id_map.item_ids(labels[1], unknown=-1)[columns["items"]]
    keep = (users >= 0) & (items >= 0)
    if not keep.any():
        given = [such.tolist()[0] for such in (*labels, id_map.users, id_map.items) if len(such)]
        raise ValueError(
            f"id_map lacks a label of each of the {len(keep)} pairs; does it belong to other data? The first labels "
            f"given and in id_map are {given}"
        )
    if not keep.all():
        warnings.warn(
            f"dropped {(~keep).sum()} of {len(keep)} pairs: id_map lacks {len(np.unique(columns['users'][users < 0]))} "
            f"of their users and {len(np.unique(columns['items'][items < 0]))} of their items",
            DataWarning,
            stacklevel=3,
        )
    columns = columns | {"users": users, "items": items}
    return {name: None if column is None else np.asarray(column)[keep] for name, column in columns.items()}
