"""Checks columns of ids, weights, timestamps and labels, and maps labels to ids and back."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from typing import Any

import numpy as np

from jaxrec.typing import ArrayLike

INT32_MAX = np.iinfo(np.int32).max
_PLAIN = 1 << 14  # up to this many labels, a dictionary is faster than importing pyarrow
_MILLISECONDS = 1e11  # larger values are not plausible as seconds: this one is in the year 5138


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class IdMap:
    """Maps ids 0 .. n-1 to your own labels and back; it is kept on the host.

    The labels of users, and those of items, are of one kind: all strings, all integers or all
    floats. Looking up another kind of label raises an error, so that 7 and "7", or 1 and 1.0, are
    never confused. The first look-up builds an index, which later ones use.

    Attributes:
        users: distinct labels [M]; id u has label `users[u]`. Strings are kept as objects.
        items: distinct labels [N]; id i has label `items[i]`.

    Raises:
        ValueError: if labels are missing, of several kinds or not one-dimensional; on the first
            look-up, if a label occurs twice.

    >>> id_map = IdMap(users=np.array(["ann", "bob"]), items=np.array([7, 10]))
    >>> id_map.item_ids([7, 10]).tolist(), id_map.item_labels([1, -1]).tolist()
    ([0, 1], [10, None])
    """

    users: np.ndarray
    items: np.ndarray

    def __post_init__(self):
        for name in ("users", "items"):
            object.__setattr__(self, name, _flat(name, labels_of(name, getattr(self, name))))

    def __repr__(self) -> str:
        return f"IdMap({len(self.users)} users, {len(self.items)} items)"

    def user_ids(self, labels: ArrayLike, *, unknown: int | None = None) -> np.ndarray:
        """Returns the ids, int32, of user labels of any shape.

        Args:
            labels: labels of the kind that the map holds.
            unknown: the id to return for a label that the map lacks, such as -1. By default such a
                label raises `ValueError`.

        Raises:
            ValueError: for missing labels and labels of another kind, for any value of `unknown`.
        """
        return _lookup("users", self.users, self._user_places, labels, unknown)

    def item_ids(self, labels: ArrayLike, *, unknown: int | None = None) -> np.ndarray:
        """Returns the ids, int32, of item labels of any shape; see `user_ids`."""
        return _lookup("items", self.items, self._item_places, labels, unknown)

    def user_labels(self, ids: ArrayLike) -> np.ndarray:
        """Returns the labels of user ids of any shape; None for -1, the padding of short lists."""
        return _labels("users", self.users, ids)

    def item_labels(self, ids: ArrayLike) -> np.ndarray:
        """Returns the labels of item ids of any shape; None for -1, the padding of short lists."""
        return _labels("items", self.items, ids)

    def extend(self, *, users: ArrayLike = (), items: ArrayLike = ()) -> IdMap:
        """Returns a map that also has new users and items: their ids follow the known ones.

        Args:
            users: labels [n], of the kind that the map holds; or one label. Labels that the map has
                are skipped, and new ones are added in the given order.
            items: labels [n], likewise.

        Raises:
            ValueError: for missing labels and labels of another kind.

        >>> IdMap(["ann", "bob"], [7, 10]).extend(users=["cem", "ann"], items=[3]).users.tolist()
        ['ann', 'bob', 'cem']
        """
        given = [labels_of(name, labels).reshape(-1) for name, labels in (("users", users), ("items", items))]
        ids = self.user_ids(given[0], unknown=-1), self.item_ids(given[1], unknown=-1)
        return IdMap(*map(_longer, (self.users, self.items), given, ids))

    @functools.cached_property
    def _user_places(self) -> dict:
        return _places("users", self.users)

    @functools.cached_property
    def _item_places(self) -> dict:
        return _places("items", self.items)


def _longer(known: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Returns the known labels, and those of the labels [n] whose id is -1, each once."""
    first: dict = {}  # where each new label occurs first
    for place in np.flatnonzero(ids < 0).tolist():
        first.setdefault(labels[place], place)
    if not first:
        return known
    new = labels[list(first.values())]
    if len(known) == 0:
        return new
    if known.dtype != new.dtype:  # NumPy would turn int64 and uint64 into floats
        known, new = known.astype(object), new.astype(object)
    return np.concatenate([known, new])


# ---------------------------------------------------------------------- columns of numbers


def column_of(frame: Any, argument: str, name: str) -> Any:
    """Returns a named column of a DataFrame; raises `ValueError` if it is absent or occurs twice."""
    found = list(frame.columns).count(name)
    if found != 1:
        what = "is not a column of the frame" if found == 0 else f"is the name of {found} columns of the frame"
        raise ValueError(f"{argument}={name!r} {what}; it has {list(frame.columns)}")
    return frame[name]


def unmasked(name: str, values: ArrayLike) -> np.ndarray:
    """Returns values as a NumPy array; raises `ValueError` if some are masked."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
        bad = np.ma.getmaskarray(values).ravel()
        raise ValueError(f"{name}[{_first(bad)}] is masked ({bad.sum()} such rows); drop them first")
    return np.asarray(values)


def _flat(name: str, column: np.ndarray) -> np.ndarray:
    """Raises `ValueError` unless a column is one-dimensional."""
    if column.ndim != 1:
        raise ValueError(f"{name} has shape {list(column.shape)}; give a column of one entry for each pair")
    return column


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    """Returns a column of numbers as float64."""
    column = _flat(name, unmasked(name, values))
    try:
        if column.dtype.kind in "cmM":
            raise TypeError("they are of another kind")
        return column.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} holds {column.dtype} that are not numbers ({error}); convert them first, dates by "
            "pandas.to_datetime"
        ) from None


def _first(bad: np.ndarray) -> int:
    """Returns the first position where `bad` is True."""
    return int(np.flatnonzero(bad)[0])


def _exact(dtype: np.dtype) -> int:
    """Returns the size from which floats of a dtype no longer represent every whole number."""
    return 2 ** (np.finfo(dtype).nmant + 1)


def checked_ids(name: str, values: ArrayLike, size: int | None) -> np.ndarray:
    """Returns a column of ids as int32.

    Raises:
        ValueError: unless all are whole numbers of 0 or more, below `size`, that fit int32.
    """
    ids = _flat(name, unmasked(name, values))
    if len(ids) == 0:
        return ids.astype(np.int32)
    if ids.dtype.kind not in "iuf":
        raise ValueError(f"{name} holds {ids.dtype}, not integers; labels become ids with Interactions.from_labels")
    if ids.dtype.kind == "f":
        bad = ~np.isfinite(ids) | (ids != np.floor(ids))
        if bad.any():
            at = _first(bad)
            raise ValueError(f"{name}[{at}] is {ids[at]}; ids are whole numbers: drop or correct {bad.sum()} such rows")
        # Large float32 ids may have been rounded to a neighbour; float64 ids that large fail below.
        bad = np.abs(ids.astype(np.float64)) >= _exact(ids.dtype)
        if bad.any() and ids.dtype.itemsize < 8:
            at = _first(bad)
            raise ValueError(
                f"{name}[{at}] is {ids[at]}; {ids.dtype} cannot represent all ids of {_exact(ids.dtype)} and more: "
                f"give integers ({bad.sum()} such rows)"
            )
    for bad, remedy in (
        (ids < 0, "ids start at 0; map labels with Interactions.from_labels"),
        (ids >= INT32_MAX, "ids must fit int32; map labels with Interactions.from_labels"),
        (ids >= (INT32_MAX if size is None else size), f"it must be below n_{name}={size}; is n_{name} right?"),
    ):
        if bad.any():
            at = _first(bad)
            raise ValueError(f"{name}[{at}] is {ids[at]}; {remedy} ({bad.sum()} such rows)")
    return ids.astype(np.int32)


def checked_weights(values: ArrayLike) -> np.ndarray:
    """Returns a column of weights as float64; raises `ValueError` unless all are finite in float32."""
    weights = _numbers("weights", values)
    bad = ~(np.abs(weights) <= np.finfo(np.float32).max)
    if bad.any():
        at = _first(bad)
        raise ValueError(
            f"weights[{at}] is {weights[at]}; weights are finite float32: drop or correct {bad.sum()} such rows"
        )
    return weights


def checked_timestamps(values: ArrayLike) -> np.ndarray:
    """Returns a column of seconds or datetimes as int32, rounded down.

    Datetimes without a time zone are UTC.

    Raises:
        ValueError: for a missing time, and for a time that does not fit int32.
    """
    given = _flat("timestamps", unmasked("timestamps", values))
    dates = as_seconds(given)
    seconds = given if dates is None else dates
    seconds = _numbers("timestamps", seconds)
    bad = ~(np.abs(seconds) <= INT32_MAX)
    if bad.any():
        at = _first(bad)
        if not np.isfinite(seconds[at]):
            remedy = "drop rows without a time"
        elif dates is None and abs(seconds[at]) >= _MILLISECONDS:
            remedy = "these look like milliseconds or a finer unit: divide milliseconds by 1000"
        else:
            remedy = "count in minutes or days instead, or from a later start: only order and differences matter"
        raise ValueError(
            f"timestamps[{at}] is {given[at]}; timestamps are numbers that fit int32, such as seconds from 1970 to "
            f"2038-01-19: {remedy} ({bad.sum()} such rows)"
        )
    return np.floor(seconds).astype(np.int32)


def as_seconds(column: np.ndarray) -> np.ndarray | None:
    """Returns datetimes as float64 seconds since 1970, NaN if missing; None for other columns.

    Datetimes without a time zone are UTC, as in NumPy.
    """
    if column.dtype.kind == "M":
        seconds = column.astype("datetime64[s]").astype(np.int64).astype(np.float64)
        return np.where(np.isnat(column), np.nan, seconds)
    if column.dtype.kind != "O" or not len(column):
        return None
    missing = np.array([is_missing(time) for time in column], bool)
    if not all(isinstance(time, datetime.datetime) for time in column[~missing]):
        return None
    utc = ((time if time.tzinfo else time.replace(tzinfo=datetime.UTC)) for time in column[~missing])
    seconds = np.full(len(column), np.nan)
    seconds[~missing] = [time.timestamp() for time in utc]
    return seconds


# ---------------------------------------------------------------------- labels


def labels_of(name: str, values: ArrayLike) -> np.ndarray:
    """Returns labels of any shape in the form in which they are compared and stored.

    Integers become int64 or uint64 if they fit, else objects. Floats become float64: one of fewer
    bits becomes the number that it prints as, so that 0.1 is one label in all of them. Strings become objects: NumPy's
    strings of fixed width would drop NUL characters at the end, and each would take the memory of
    the longest.

    Args:
        name: name of the column, for errors.
        values: an array, a pandas, polars or Arrow column, a sequence, or one label.

    Raises:
        ValueError: for missing labels (None, NaN, NaT, pandas.NA, the empty string); for labels of
            several kinds, such as 7 and "7", 1 and 1.0, or 1 and True; and for floats too large to
            represent every whole number.
    """
    # np.asarray would turn a list of strings into an array of fixed width.
    array = unmasked(name, values) if hasattr(values, "__array__") else np.array(values, dtype=object)
    if array.dtype.kind in "UST":
        array = array.astype(object)
    if array.dtype.kind == "O":
        array = _of_one_kind(name, array.reshape(-1)).reshape(array.shape)
    if array.dtype.kind in "fmM":
        _refuse_missing(name, (np.isnan if array.dtype.kind == "f" else np.isnat)(array.reshape(-1)))
    elif array.dtype.kind not in "iubO":
        raise ValueError(f"{name} holds {array.dtype}; labels are strings or numbers")
    if array.dtype.kind == "f":
        bad = np.abs(array.reshape(-1)) >= _exact(array.dtype)
        if bad.any():
            raise ValueError(
                f"{name}[{_first(bad)}] is {array.reshape(-1)[_first(bad)]}; {array.dtype} cannot represent all whole "
                f"numbers of this size: give integers or strings ({bad.sum()} such rows)"
            )
        array = _as_printed(array)
    return array


def _as_printed(floats: np.ndarray) -> np.ndarray:
    """Returns floats as float64: one of fewer bits, such as 0.1, becomes the number that it prints as."""
    found = floats.astype(np.float64)
    if floats.dtype.itemsize < found.dtype.itemsize:
        parts = found != np.floor(found)
        distinct, places = np.unique(floats[parts], return_inverse=True)
        found[parts] = distinct.astype(str).astype(np.float64)[places]
    return found


def _of_one_kind(name: str, labels: np.ndarray) -> np.ndarray:
    """Returns objects [n] as an array of their own dtype, if there is one.

    Raises `ValueError` for missing labels and for labels of several kinds.
    """
    entries = labels.tolist()
    kinds = {of: _kind_of(of) for of in set(map(type, entries))}
    several = {"list", "tuple", "dict", "set", "ndarray"} & set(kinds.values())
    if several:
        raise ValueError(f"{name} holds {several.pop()}s; labels are strings or numbers, one for each row")
    # Only types that may hold a missing value are checked entry by entry, which is slow.
    unsure = {of for of, kind in kinds.items() if kind not in ("integers", "booleans", "strings", "bytes")}
    if unsure:
        _refuse_missing(name, np.array([type(label) in unsure and is_missing(label) for label in entries], bool))
    if len(set(kinds.values())) > 1:
        first = {kinds[type(label)]: label for label in reversed(entries)}
        such = ", ".join(f"{kind} such as {_short(label)}" for kind, label in sorted(first.items()))
        raise ValueError(f"{name} mixes types: {such}; turn all labels into strings, or all into integers")
    kind = next(iter(kinds.values()), None)
    if kind == "integers":
        return _integers(entries if set(kinds) == {int} else [int(label) for label in entries])
    if kind in ("floats", "booleans"):
        printed = [float(str(label)) if type(label) in (np.float16, np.float32) else label for label in entries]
        return np.array(printed, np.float64 if kind == "floats" else bool)
    if kind == "strings" and "" in entries:
        _refuse_missing(name, np.array([label == "" for label in entries], bool))
    if kind == "strings" and set(kinds) != {str}:
        labels = np.empty(len(entries), object)
        labels[:] = [str.__str__(label) for label in entries]
    return labels


def _integers(entries: list[int]) -> np.ndarray:
    """Returns Python ints as int64 or uint64 if they fit, else as objects."""
    for dtype in (np.int64, np.uint64):
        try:
            return np.array(entries, dtype)
        except OverflowError:
            pass
    return np.array(entries, object)


def _kind_of(kind: type) -> str:
    """Returns the kind of label that a type holds."""
    for name, types in (
        ("booleans", (bool, np.bool_)),
        ("integers", (int, np.integer)),
        ("floats", (float, np.float16, np.float32)),
        ("strings", str),
        ("bytes", bytes),
    ):
        if issubclass(kind, types):
            return name
    return kind.__name__


def _kind(labels: np.ndarray) -> str:
    """Returns the kind of labels that `labels_of` returned."""
    named = {"b": "booleans", "i": "integers", "u": "integers", "f": "floats"}
    if labels.dtype.kind == "O":
        return _kind_of(type(labels.flat[0]))
    return named.get(labels.dtype.kind, str(labels.dtype))


def is_missing(label: object) -> bool:
    """Returns whether an object is a missing value: None, NaN, NaT or pandas.NA."""
    try:
        return label is None or bool(label != label)  # NaN differs from itself
    except TypeError:  # pandas.NA has no truth value
        return True
    except ValueError:  # an array has no truth value
        return False


def _refuse_missing(name: str, missing: np.ndarray) -> None:
    """Raises `ValueError` if a label is missing."""
    if missing.any():
        raise ValueError(f"{name}[{_first(missing)}] is missing ({missing.sum()} such rows); drop them first")


def _short(label: object) -> str:
    """Returns the repr of a label, cut to 80 characters."""
    text = repr(label)
    return text if len(text) <= 80 else text[:77] + "..."


def factorised(name: str, values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted distinct labels of a column, and the position of each entry among them.

    Raises:
        ValueError: for the errors of `labels_of`, and for labels that cannot be sorted.
    """
    labels = _flat(name, labels_of(name, values))
    if labels.dtype.kind != "O" or len(labels) == 0:
        return np.unique(labels, return_inverse=True)
    if len(labels) > _PLAIN and isinstance(labels[0], str):
        try:
            return _factorised_by_arrow(labels)
        except (ImportError, ValueError):  # not installed, or lone surrogates, which UTF-8 cannot encode
            pass
    try:
        return _factorised_by_dict(labels.tolist())
    except TypeError as error:
        raise ValueError(f"{name} holds labels that cannot be sorted ({error}); turn them into strings") from None


def _factorised_by_arrow(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Does the work of `factorised` for many strings, with pyarrow."""
    import pyarrow
    from pyarrow import compute

    encoded = pyarrow.array(labels, pyarrow.large_string()).dictionary_encode()
    order = compute.sort_indices(encoded.dictionary)  # by UTF-8 bytes, the same order as Python's
    rank = np.empty(len(order), np.int64)
    rank[order.to_numpy()] = np.arange(len(order))
    return encoded.dictionary.take(order).to_numpy(zero_copy_only=False), rank[encoded.indices.to_numpy()]


def _factorised_by_dict(labels: list) -> tuple[np.ndarray, np.ndarray]:
    """Does the work of `factorised` for objects, with a dictionary."""
    distinct = sorted(set(labels))
    places = {label: place for place, label in enumerate(distinct)}
    known = np.empty(len(distinct), object)
    known[:] = distinct
    return known, np.fromiter(map(places.__getitem__, labels), np.int64, len(labels))


def _places(name: str, known: np.ndarray) -> dict:
    """Returns the id of each label; raises `ValueError` if a label occurs twice."""
    places = {label: place for place, label in enumerate(known.tolist())}
    if len(places) < len(known):
        again = next(label for place, label in enumerate(known.tolist()) if places[label] != place)
        raise ValueError(f"{name} of this id_map has the label {_short(again)} twice; give distinct labels")
    return places


def _lookup(name: str, known: np.ndarray, places: dict, labels: ArrayLike, unknown: int | None) -> np.ndarray:
    """Returns the ids of labels; see `IdMap.user_ids`."""
    labels = labels_of(name, labels)
    if labels.size and len(known) and _kind(labels) != _kind(known):
        given, had = labels.reshape(-1).tolist()[0], known[:1].tolist()[0]
        raise ValueError(
            f"the labels of {name} are {_kind(known)}, such as {_short(had)}, but {_kind(labels)} such as "
            f"{_short(given)} are given; convert them first"
        )
    entries = labels.reshape(-1).tolist()
    ids = np.fromiter((places.get(label, -1) for label in entries), np.int32, len(entries))
    lacking = ids < 0
    if lacking.any() and unknown is None:
        had = f"; its first label is {_short(known[:1].tolist()[0])}" if len(known) else ""
        raise ValueError(f"{name} has no label {_short(entries[_first(lacking)])} ({lacking.sum()} such){had}")
    if unknown is not None:
        ids[lacking] = unknown
    return ids.reshape(labels.shape)


def _labels(name: str, known: np.ndarray, ids: ArrayLike) -> np.ndarray:
    """Returns the labels of ids; see `IdMap.user_labels`."""
    ids = np.asarray(ids)
    if ids.size == 0:
        ids = ids.astype(np.int32)
    if ids.dtype.kind not in "iu":
        raise ValueError(f"{name} ids are {ids.dtype}; give integers")
    if ids.size and (ids.min() < -1 or ids.max() >= len(known)):
        raise ValueError(f"{name} ids run from 0 to {len(known) - 1}; {ids.min()} to {ids.max()} are given")
    if not (ids == -1).any():
        return known[ids]
    labels = as_objects(known)[ids]
    labels[ids == -1] = None
    return labels


def as_objects(labels: np.ndarray) -> np.ndarray:
    """Returns labels [n] as Python objects; times that Python's types cannot hold stay NumPy's.

    NumPy would make integers of those: times in ns, and years beyond 9999.
    """
    found = labels.astype(object)
    if labels.dtype.kind in "mM" and any(type(label) is int for label in found):
        found[:] = list(labels)
    return found
