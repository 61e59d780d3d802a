"""Readers of the usual file formats; each gives four columns with the caller's own labels.

`Interactions.from_labels(*readers.movielens(path))` makes the matrix. Text files are UTF-8 and may end in `.gz`; blank
lines and spaces around a field are skipped. A malformed line raises a `ValueError` that names file, line, what was
found and what was expected.
"""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxrec.data import _text


class Columns(NamedTuple):
    """What every reader returns; one entry a row of the file, in its order.

    Attributes:
        users: labels [n], int64 where all are integers, else str.
        items: labels [n], likewise.
        weights: float64 [n], such as ratings or counts, or None.
        timestamps: int64 [n], fractions cut off, or None.
    """

    users: np.ndarray
    items: np.ndarray
    weights: np.ndarray | None = None
    timestamps: np.ndarray | None = None


def movielens(path: str | os.PathLike, *, minimum: float | None = None) -> Columns:
    """Reads the ratings of any MovieLens release (Harper and Konstan 2015).

    The first line tells which: `u::i::r::t` (1M, 10M), `u<tab>i<tab>r<tab>t` (100K), or a CSV with the header
    `userId,movieId,rating,timestamp` (20M and later, latest).

    Args:
        path: the file `ratings.dat`, `u.data` or `ratings.csv`.
        minimum: keep the rows rated `minimum` or more, and drop the ratings.

    Raises:
        ValueError: for another first line, a malformed line, and a `minimum` that keeps nothing.
    """
    first = _text.first_line(path)
    names = ["userId", "movieId", "rating", "timestamp"]
    separator = next((separator for separator in ("::", "\t", ",") if separator in first), ",")
    header = separator == ","
    if header and _text.fields_of(first, ",") != names:
        expected = "user::item::rating::timestamp, the same with tabs, or " + ",".join(names)
        raise _text.malformed(path, 1, first, expected)
    expected = separator.join(("user", "item", "rating", "timestamp"))
    layout = _text.Layout(separator, header, 4, (0, 1, 2, 3), expected)
    return at_least(_read(path, layout), minimum, source=path)


def recbole(path: str | os.PathLike, *, minimum: float | None = None) -> Columns:
    """Reads an atomic file `.inter` of RecBole (Zhao et al. 2021): tabs, and a header of `name:type`.

    The columns `user_id` and `item_id` must be there; `rating` and `timestamp` may be; others are left out.

    Args:
        path: the file.
        minimum: keep the rows rated `minimum` or more, and drop the ratings.

    Raises:
        ValueError: for a header without types or without ids, a malformed line, and a `minimum` that keeps nothing.
    """
    header = _text.first_line(path).split("\t")
    names = [field.partition(":")[0] for field in header]
    if not all(":" in field for field in header) or not {"user_id", "item_id"} <= set(names):
        expected = "a typed header such as user_id:token<tab>item_id:token<tab>rating:float (other names: delimited)"
        raise _text.malformed(path, 1, "\t".join(header), expected)
    wanted = ("user_id", "item_id", "rating", "timestamp")
    places = tuple(names.index(name) if name in names else None for name in wanted)
    layout = _text.Layout("\t", True, len(names), places, f"{len(names)} fields between tabs: {', '.join(names)}")
    return at_least(_read(path, layout), minimum, source=path)


def adjacency(path: str | os.PathLike) -> Columns:
    """Reads the text form of NGCF and LightGCN (He et al. 2020): one user a line, `user item item ...`, integers.

    A user alone on a line has no items there and is skipped.

    Raises:
        ValueError: for anything but integers.
    """
    rows = []
    for number, line in enumerate(_text.lines_of(path), 1):
        try:
            rows.append(np.array(line.split(), np.int64))
        except (ValueError, OverflowError):
            raise _text.malformed(path, number, line.rstrip(), "integers: user item item ...") from None
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise ValueError(f"{path} holds no pairs; expected lines of: user item item ...")
    users = np.repeat([row[0] for row in rows], [len(row) - 1 for row in rows])
    return Columns(users, np.concatenate([row[1:] for row in rows]))


def delimited(
    path: str | os.PathLike,
    *,
    user: str | int,
    item: str | int,
    weight: str | int | None = None,
    timestamp: str | int | None = None,
    separator: str | None = None,
    header: bool = True,
    minimum: float | None = None,
) -> Columns:
    """Reads chosen columns of any delimited text; between commas, fields may be quoted (no line breaks inside).

    Args:
        path: the file.
        user: column of user labels, by name, or by position (from 0) where `header` is False.
        item: column of item labels, likewise.
        weight: column of numbers, likewise, or None.
        timestamp: column of numbers, likewise, or None.
        separator: of any length; by default a comma in `.csv` and a tab in `.tsv`.
        header: whether the first line names the columns.
        minimum: keep the rows of this weight or more, and drop the weights.

    Raises:
        ValueError: for a column that is not there, a malformed line, and a `minimum` that keeps nothing.
    """
    if separator is None:
        suffix = pathlib.Path(str(path).removesuffix(".gz")).suffix
        separator = {".csv": ",", ".tsv": "\t"}.get(suffix)
        if separator is None:
            raise ValueError(f"separator cannot be told from the suffix {suffix!r} of {path}; give separator=")
    first = [field.strip() for field in _text.fields_of(_text.first_line(path), separator)]
    places = []
    for argument, column in (("user", user), ("item", item), ("weight", weight), ("timestamp", timestamp)):
        known = first if header else range(len(first))
        if column is not None and column not in known:
            remedy = "" if header else "; without a header, columns go by position"
            raise ValueError(f"{argument}={column!r} is not a column of {path}; it has {list(known)}{remedy}")
        places.append(None if column is None else list(known).index(column))
    expected = f"{len(first)} fields between {separator!r}"
    layout = _text.Layout(separator, header, len(first), tuple(places), expected)
    return at_least(_read(path, layout), minimum, source=path)


def json_lines(
    path: str | os.PathLike,
    *,
    user: str,
    item: str,
    weight: str | None = None,
    timestamp: str | None = None,
    minimum: float | None = None,
) -> Columns:
    """Reads chosen fields of one object a line: JSON, or a Python dictionary as in the older files of McAuley et al.

    Args:
        path: the file.
        user: name of the field of user labels.
        item: name of the field of item labels.
        weight: name of a field of numbers, or None.
        timestamp: name of a field of numbers, or None.
        minimum: keep the rows of this weight or more, and drop the weights.

    Raises:
        ValueError: for a line that is no such object or lacks a field, and a `minimum` that keeps nothing.
    """
    wanted = (user, item, weight, timestamp)
    names = [name for name in wanted if name is not None]
    places = tuple(None if name is None else names.index(name) for name in wanted)
    layout = _text.Layout(", ", False, len(names), places, f"an object with the fields {', '.join(names)}")
    return at_least(_read(path, layout, partial(_text.values_of, names=names)), minimum, source=path)


def parquet(
    path: str | os.PathLike,
    *,
    user: str,
    item: str,
    weight: str | None = None,
    timestamp: str | None = None,
    minimum: float | None = None,
) -> Columns:
    """Reads named columns of a Parquet file; see `dataframe`.

    Raises:
        ImportError: where pandas or pyarrow is missing.
        ValueError: as `dataframe`.
    """
    pandas, schema = optional("pandas"), optional("pyarrow.parquet").read_schema(path)
    wanted = [name for name in (user, item, weight, timestamp) if name is not None and name in schema.names]
    frame = pandas.read_parquet(path, columns=list(dict.fromkeys(wanted)))
    return dataframe(frame, user=user, item=item, weight=weight, timestamp=timestamp, minimum=minimum)


def dataframe(
    frame: Any,
    *,
    user: str,
    item: str,
    weight: str | None = None,
    timestamp: str | None = None,
    minimum: float | None = None,
) -> Columns:
    """Takes named columns of a pandas or polars DataFrame.

    Args:
        frame: the table.
        user: name of the column of user labels; labels other than integers become str.
        item: name of the column of item labels, likewise.
        weight: name of a column of numbers, or None.
        timestamp: name of a column of numbers or datetimes (which become seconds since 1970), or None.
        minimum: keep the rows of this weight or more, and drop the weights.

    Raises:
        ImportError: where pandas is missing.
        ValueError: for a column that the frame lacks, a missing value, weights that are no numbers, and a `minimum`
            that keeps nothing.
    """
    columns = []
    for argument, name in (("user", user), ("item", item), ("weight", weight), ("timestamp", timestamp)):
        if name is not None and name not in frame.columns:
            raise ValueError(f"{argument}={name!r} is not a column of the frame; it has {list(frame.columns)}")
        columns.append(None if name is None else _complete(name, frame[name].to_numpy()))
    weights = None if weight is None else _floats(weight, columns[2])
    timestamps = None if timestamp is None else np.floor(_floats(timestamp, columns[3])).astype(np.int64)
    users, items = _labels(columns[0]), _labels(columns[1])
    return at_least(Columns(users, items, weights, timestamps), minimum, source="the frame")


def at_least(columns: Columns, minimum: float | None, *, source: object = "these columns") -> Columns:
    """Makes implicit feedback of ratings: the rows whose weight is `minimum` or more, without the weights.

    With `minimum=None` the columns come back as they are. `source` names them in errors.

    Raises:
        ValueError: where there are no weights, or none is that large.

    >>> at_least(Columns(np.array([1, 2]), np.array([7, 8]), np.array([3.0, 5.0])), 4)
    Columns(users=array([2]), items=array([8]), weights=None, timestamps=None)
    """
    if minimum is None:
        return columns
    if columns.weights is None:
        raise ValueError(f"minimum={minimum} needs weights, and {source} has none; leave minimum out")
    keep = columns.weights >= minimum
    if not keep.any():
        low, high = columns.weights.min(), columns.weights.max()
        raise ValueError(f"minimum={minimum} keeps none of {len(keep)} rows; {source} has weights {low:g} to {high:g}")
    timestamps = None if columns.timestamps is None else columns.timestamps[keep]
    return Columns(columns.users[keep], columns.items[keep], None, timestamps)


def optional(module: str, *, extra: str = "data") -> Any:
    """Imports a module of an optional extra, or says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{module} cannot be imported ({error}); pip install "jaxrec[{extra}]"') from error


# ---------------------------------------------------------------------- inside


def _read(path: str | os.PathLike, layout: _text.Layout, fields: Callable[[str], list[str]] | None = None) -> Columns:
    users, items, weights, timestamps = _text.read(path, layout, fields)
    timestamps = None if timestamps is None else np.floor(timestamps).astype(np.int64)
    return Columns(_labels(users), _labels(items), weights, timestamps)


def _labels(values: np.ndarray) -> np.ndarray:
    """int64 where every label is an integer as Python writes it, else str: "007" and "7" stay apart."""
    if values.dtype.kind in "iuf" and (values == np.floor(values)).all():
        return values.astype(np.int64)
    texts = values.astype(np.str_)
    try:
        numbers = texts.astype(np.int64)
    except (ValueError, OverflowError):
        return texts
    return numbers if (numbers.astype(texts.dtype) == texts).all() else texts


def _complete(name: str, values: np.ndarray) -> np.ndarray:
    missing = optional("pandas").isna(values)
    if missing.any():
        raise ValueError(f"{name}[{int(np.argmax(missing))}] is missing ({missing.sum()} such rows); drop them first")
    return values


def _floats(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "M":
        return values.astype("datetime64[s]").astype(np.float64)
    if values.dtype.kind == "O":
        values = [value.timestamp() if hasattr(value, "timestamp") else value for value in values]
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} does not hold numbers ({error}); convert it first") from None
