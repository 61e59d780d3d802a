"""What comes in at the door: columns of ids, weights and timestamps are checked, labels become ids and come back."""

from __future__ import annotations

import dataclasses
import datetime

import numpy as np

from jaxrec.typing import ArrayLike

_INT32_MAX = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class IdMap:
    """The caller's own labels of the ids 0 .. n-1, both ways; lives on the host.

    Attributes:
        users: distinct labels [M]; id u has label `users[u]`.
        items: distinct labels [N].

    >>> id_map = IdMap(users=np.array(["ann", "bob"]), items=np.array([7, 10]))
    >>> id_map.item_ids([7, 10]).tolist(), id_map.item_labels([1, -1]).tolist()
    ([0, 1], [10, None])
    """

    users: np.ndarray
    items: np.ndarray

    def __repr__(self) -> str:
        return f"IdMap({len(self.users)} users, {len(self.items)} items)"

    def user_ids(self, labels: ArrayLike) -> np.ndarray:
        """Ids int32 of user labels; a label never seen raises `ValueError`."""
        return _lookup("users", self.users, labels)

    def item_ids(self, labels: ArrayLike) -> np.ndarray:
        """Ids int32 of item labels; a label never seen raises `ValueError`."""
        return _lookup("items", self.items, labels)

    def user_labels(self, ids: ArrayLike) -> np.ndarray:
        """Labels of user ids of any shape; None for -1, the padding of short lists."""
        return _labels("users", self.users, ids)

    def item_labels(self, ids: ArrayLike) -> np.ndarray:
        """Labels of item ids of any shape; None for -1, the padding of short lists."""
        return _labels("items", self.items, ids)


def _column(name: str, values: ArrayLike) -> np.ndarray:
    column = np.asarray(values)
    if column.ndim != 1:
        raise ValueError(f"{name} has shape {list(column.shape)}; give a column of one entry for each pair")
    return column


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    column = _column(name, values)
    try:
        return column.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} holds {column.dtype} that are not numbers ({error}); convert them first") from None


def _is_missing(label: object) -> bool:
    try:
        return label is None or bool(label != label)
    except TypeError:  # pandas.NA refuses to be a bool
        return True


def _first(bad: np.ndarray) -> int:
    return int(np.flatnonzero(bad)[0])


def checked_ids(name: str, values: ArrayLike, size: int | None) -> np.ndarray:
    """A column of ids as int32; `ValueError` unless all are whole numbers from 0 to below `size` and int32."""
    ids = _column(name, values)
    if len(ids) == 0:
        return ids.astype(np.int32)
    if ids.dtype.kind not in "iuf":
        raise ValueError(f"{name} holds {ids.dtype}, not integers; labels become ids with Interactions.from_labels")
    if ids.dtype.kind == "f":
        bad = ~np.isfinite(ids) | (ids != np.floor(ids))
        if bad.any():
            at = _first(bad)
            raise ValueError(f"{name}[{at}] is {ids[at]}; ids are whole numbers: drop or mend {bad.sum()} such rows")
    for bad, remedy in (
        (ids < 0, "ids start at 0; map labels with Interactions.from_labels"),
        (ids >= _INT32_MAX, "ids must fit int32; map labels with Interactions.from_labels"),
        (ids >= (_INT32_MAX if size is None else size), f"it must be below n_{name}={size}; is n_{name} right?"),
    ):
        if bad.any():
            at = _first(bad)
            raise ValueError(f"{name}[{at}] is {ids[at]}; {remedy} ({bad.sum()} such rows)")
    return ids.astype(np.int32)


def checked_weights(values: ArrayLike) -> np.ndarray:
    """A column of weights as float64; `ValueError` unless all are finite."""
    weights = _numbers("weights", values)
    bad = ~(np.abs(weights) <= np.finfo(np.float32).max)
    if bad.any():
        at = _first(bad)
        raise ValueError(
            f"weights[{at}] is {weights[at]}; weights are finite float32: drop or mend {bad.sum()} such rows"
        )
    return weights


def checked_timestamps(values: ArrayLike) -> np.ndarray:
    """A column of seconds or datetimes as int32, fractions cut off; `ValueError` for what is missing or too large."""
    given = np.asarray(values)
    seconds = given.astype("datetime64[s]").astype(np.int64) if given.dtype.kind == "M" else given
    if given.dtype.kind == "O" and all(isinstance(time, datetime.datetime) or _is_missing(time) for time in given):
        seconds = [np.nan if _is_missing(time) else _utc(time).timestamp() for time in given]
    seconds = _numbers("timestamps", seconds)
    bad = ~(np.abs(seconds) <= _INT32_MAX)
    if bad.any():
        at = _first(bad)
        raise ValueError(
            f"timestamps[{at}] is {given[at]}; timestamps are seconds since 1970 that fit int32: "
            "divide milliseconds by 1000, drop rows without a time"
        )
    return np.floor(seconds).astype(np.int32)


def _utc(time: datetime.datetime) -> datetime.datetime:
    """With its time zone; UTC where it has none, as in NumPy."""
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def factorised(name: str, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct labels of a column, and the id of each entry; `ValueError` for missing or mixed labels."""
    labels = _column(name, values)
    missing = np.array([_is_missing(label) for label in labels]) if labels.dtype.kind in "fOM" else np.zeros(1, bool)
    if missing.any():
        raise ValueError(f"{name}[{_first(missing)}] is missing ({missing.sum()} such rows); drop them first")
    try:
        return np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise ValueError(f"{name} mixes types that cannot be sorted ({error}); turn all labels into strings") from None


def found_ids(known: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Ids int32 of labels of any shape, -1 where `known` has none such."""
    if "O" in (known.dtype.kind, labels.dtype.kind):
        places = {label: place for place, label in enumerate(known.tolist())}
        ids = [places.get(label, -1) for label in labels.reshape(-1).tolist()]
        return np.array(ids, np.int32).reshape(labels.shape)
    order = np.argsort(known)
    ids = order[np.minimum(np.searchsorted(known, labels, sorter=order), len(known) - 1)]
    return np.where(known[ids] == labels, ids, -1).astype(np.int32)


def _lookup(name: str, known: np.ndarray, labels: ArrayLike) -> np.ndarray:
    labels = np.asarray(labels)
    ids = found_ids(known, labels)
    if (ids < 0).any():
        bad, good = labels[ids < 0].tolist()[0], known.tolist()[0]
        raise ValueError(f"{name} has no label {bad!r} ({np.sum(ids < 0)} such); it has such as {good!r}")
    return ids


def _labels(name: str, known: np.ndarray, ids: ArrayLike) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.size and (ids.min() < -1 or ids.max() >= len(known)):
        raise ValueError(f"{name} ids run from 0 to {len(known) - 1}, got {ids.min()} .. {ids.max()}")
    if not (ids == -1).any():
        return known[ids]
    labels = known.astype(object)[ids]
    labels[ids == -1] = None
    return labels
