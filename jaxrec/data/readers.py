"""Reads the usual file formats; each reader returns four columns with your own labels.

`Interactions.from_labels(*readers.movielens(path))` builds the matrix. Readers of files need the
extra `data` (pyarrow).

Text files are UTF-8. They may be compressed with gzip, start with a byte order mark, and use any
line ends. Blank lines are skipped. Spaces and tabs at both ends of a delimited field are dropped. A
malformed line raises a `ValueError` that names the file, the line, what was found and what was
expected. So does a missing label: an empty field, JSON null, NaN or None.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec._ids import as_seconds, column_of, is_missing, labels_of
from jaxrec._numerics import number
from jaxrec.data import _objects, _text
from jaxrec.data._text import optional as optional


class Columns(NamedTuple):
    """The columns that every reader returns, one entry for each row of the file, in its order.

    Attributes:
        users: labels [n]. They are int64 (or uint64) if all are integers in Python's notation, so
            "7" becomes 7 but "007" stays a string; otherwise they are str objects.
        items: labels [n], of the same types.
        weights: float64 [n], such as ratings or counts, or None.
        timestamps: int64 [n], fractions rounded down, or None.
    """

    users: np.ndarray
    items: np.ndarray
    weights: np.ndarray | None = None
    timestamps: np.ndarray | None = None


def movielens(path: str | os.PathLike, *, minimum: float | None = None) -> Columns:
    """Reads the ratings of any MovieLens release (Harper and Konstan 2015).

    The first line determines the format: `u::i::r::t` (1M, 10M), `u<tab>i<tab>r<tab>t` (100K), or a
    CSV file with the header `userId,movieId,rating,timestamp` (20M and later, latest).

    Args:
        path: the file `ratings.dat`, `u.data` or `ratings.csv`.
        minimum: keep only the rows with a rating of `minimum` or more, and drop the ratings.

    Raises:
        ValueError: for any other first line, for a malformed line, and for a `minimum` that keeps
            no row.
    """
    number, first = _text.first_line(path)
    names = ["userId", "movieId", "rating", "timestamp"]
    separator = next((separator for separator in ("::", "\t", ",") if separator in first), ",")
    header = separator == ","
    if header and _text.fields_of(first, ",") != names:
        expected = "user::item::rating::timestamp, the same with tabs, or " + ",".join(names)
        raise _text.malformed(path, number, first, expected)
    expected = separator.join(("user", "item", "rating", "timestamp"))
    layout = _text.Layout(separator, header, 4, (0, 1, 2, 3), expected)
    return at_least(Columns(*_text.delimited(path, layout)), minimum, source=path)


def recbole(path: str | os.PathLike, *, minimum: float | None = None) -> Columns:
    """Reads an `.inter` file of RecBole (Zhao et al. 2021): tabs, and a header of `name:type`.

    The columns `user_id` and `item_id` are required; `rating` and `timestamp` are read if present.
    Other columns are ignored.

    Args:
        path: the file.
        minimum: keep only the rows with a rating of `minimum` or more, and drop the ratings.

    Raises:
        ValueError: for a header without types or ids, for a malformed line, and for a `minimum`
            that keeps no row.
    """
    number, first = _text.first_line(path)
    header = _text.fields_of(first, "\t")
    names = [field.partition(":")[0] for field in header]
    if not all(":" in field for field in header) or not {"user_id", "item_id"} <= set(names):
        expected = (
            "a typed header such as user_id:token<tab>item_id:token<tab>rating:float (for other names, use "
            "readers.delimited)"
        )
        raise _text.malformed(path, number, first, expected)
    wanted = ("user_id", "item_id", "rating", "timestamp")
    places = tuple(_place(path, name, name, names) if name in names else None for name in wanted)
    layout = _text.Layout("\t", True, len(names), places, f"{len(names)} fields between tabs: {', '.join(names)}")
    return at_least(Columns(*_text.delimited(path, layout)), minimum, source=path)


def adjacency(path: str | os.PathLike) -> Columns:
    """Reads the format of NGCF and LightGCN (He et al. 2020): integers, one user a line.

    A line is `user item item ...`. A line with only a user has no items and is skipped.

    Raises:
        ValueError: for a field that is not an integer, and for a file without pairs.
    """
    return Columns(*_text.adjacency(path))


def delimited(
    path: str | os.PathLike,
    *,
    user: str | int,
    item: str | int,
    weight: str | int | None = None,
    timestamp: str | int | None = None,
    separator: str | None = None,
    header: bool = True,
    quoted: bool = True,
    minimum: float | None = None,
) -> Columns:
    """Reads chosen columns of any delimited text file.

    If the separator is one character, fields may be in double quotes, and a doubled quote inside
    them is one quote character. A quoted field must not contain a line break.

    Args:
        path: the file.
        user: column of user labels: its name, or its position (from 0) if `header` is False.
        item: column of item labels, likewise.
        weight: column of numbers, likewise, or None.
        timestamp: column of numbers, likewise, or None.
        separator: one or more characters; by default a comma for `.csv` and a tab for `.tsv`.
        header: whether the first line names the columns.
        quoted: whether a quote at the start of a field opens a quoted field. If False, quotes are
            text.
        minimum: keep only the rows with a weight of `minimum` or more, and drop the weights.

    Raises:
        ImportError: if pyarrow is missing.
        ValueError: for a column that is absent or occurs twice, for a malformed line, for a missing
            label, and for a `minimum` that keeps no row.
    """
    if separator is None:
        suffix = pathlib.Path(str(path).removesuffix(".gz")).suffix
        separator = {".csv": ",", ".tsv": "\t"}.get(suffix)
        if separator is None:
            raise ValueError(f"the suffix {suffix!r} of {path} implies no separator; give separator=")
    if separator == "" or set(separator) & set('"\r\n'):
        raise ValueError(f"separator={separator!r}; give one or more characters, no quotes and no line breaks")
    fields = _text.fields_of(_text.first_line(path)[1], separator, quoted)
    known = fields if header else list(range(len(fields)))
    wanted = (("user", user), ("item", item), ("weight", weight), ("timestamp", timestamp))
    places = tuple(None if name is None else _place(path, argument, name, known) for argument, name in wanted)
    expected = f"{len(fields)} fields between {separator!r}"
    layout = _text.Layout(separator, header, len(fields), places, expected, quoted)
    return at_least(Columns(*_text.delimited(path, layout)), minimum, source=path)


def json_lines(
    path: str | os.PathLike,
    *,
    user: str,
    item: str,
    weight: str | None = None,
    timestamp: str | None = None,
    minimum: float | None = None,
) -> Columns:
    """Reads chosen fields of a file with one object a line.

    A line is JSON, or a Python dictionary as in the older files of McAuley et al. Labels must be
    strings in all lines or whole numbers in all lines, so that 7 and "7" are not mixed. Strings
    keep spaces at their ends. They become integers only if all are integers in Python's notation.

    Args:
        path: the file.
        user: name of the field of user labels.
        item: name of the field of item labels.
        weight: name of a field of numbers, or of strings that are numbers, or None.
        timestamp: name of a field of numbers, or of strings that are numbers, or None.
        minimum: keep only the rows with a weight of `minimum` or more, and drop the weights.

    Raises:
        ImportError: if pyarrow is missing.
        ValueError: for a line that is not such an object or lacks a field, for a missing label
            (null, an empty string), and for a `minimum` that keeps no row.
    """
    wanted = (user, item, weight, timestamp)
    names = ", ".join(name for name in wanted if name is not None)
    found = _objects.objects(path, wanted, f"an object with the fields {names}")
    return at_least(Columns(*found), minimum, source=path)


def parquet(
    path: str | os.PathLike,
    *,
    user: str,
    item: str,
    weight: str | None = None,
    timestamp: str | None = None,
    minimum: float | None = None,
) -> Columns:
    """Reads named columns of a Parquet file.

    `dataframe` describes the arguments.

    Raises:
        ImportError: if pyarrow is missing.
        ValueError: for a file that is damaged or not Parquet, and for the errors of `dataframe`.
    """
    arrow = optional("pyarrow.parquet")
    wanted = (("user", user), ("item", item), ("weight", weight), ("timestamp", timestamp))
    try:
        names = arrow.read_schema(path).names
        for argument, name in wanted:
            if name is not None:
                _place(path, argument, name, names)
        table = arrow.read_table(path, columns=list(dict.fromkeys(name for _, name in wanted if name is not None)))
    except optional("pyarrow").ArrowInvalid as error:
        raise ValueError(f"{path} is damaged or no Parquet file ({error}); fetch it again") from None
    return at_least(_columns_of({name: table[name] for name in table.column_names}, wanted), minimum, source=path)


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
        frame: the DataFrame.
        user: name of the column of user labels. Integers of any dtype and whole floats become int64
            (uint64 if they do not fit). Strings become integers if all are integers in Python's
            notation; other labels become str.
        item: name of the column of item labels, which are treated likewise.
        weight: name of a column of numbers, or None.
        timestamp: name of a column of numbers or datetimes, or None. Datetimes become seconds since
            1970.
        minimum: keep only the rows with a weight of `minimum` or more, and drop the weights.

    Raises:
        ValueError: for a column that is absent or occurs twice, for a missing value, for labels of
            several kinds, for floats too large to represent every whole number, for weights that
            are not finite numbers, and for a `minimum` that keeps no row.
    """
    wanted = (("user", user), ("item", item), ("weight", weight), ("timestamp", timestamp))
    frame = {name: column_of(frame, argument, name) for argument, name in wanted if name is not None}
    return at_least(_columns_of(frame, wanted), minimum, source="the frame")


def at_least(columns: Columns, minimum: float | None, *, source: object = "these columns") -> Columns:
    """Turns ratings into implicit feedback: keeps rows with a large weight and drops the weights.

    Args:
        columns: the columns of a reader.
        minimum: the smallest weight to keep; None returns the columns unchanged.
        source: the name of the data in errors.

    Raises:
        ValueError: if `minimum` is not a finite number, if there are no weights, if a weight is
            NaN, or if all weights are below `minimum`.

    >>> at_least(Columns(np.array([1, 2]), np.array([7, 8]), np.array([3.0, 5.0])), 4)
    Columns(users=array([2]), items=array([8]), weights=None, timestamps=None)
    """
    if minimum is None:
        return columns
    if columns.weights is None:
        raise ValueError(f"minimum={minimum} needs weights, and {source} has none; leave minimum out")
    number("minimum", minimum)
    if np.isnan(columns.weights).any():
        at = int(np.argmax(np.isnan(columns.weights)))
        raise ValueError(f"weights[{at}] of {source} is missing; drop rows without a weight, or leave minimum out")
    keep = columns.weights >= minimum
    if not keep.any():
        low, high = columns.weights.min(), columns.weights.max()
        raise ValueError(f"minimum={minimum} keeps none of {len(keep)} rows; {source} has weights {low:g} to {high:g}")
    timestamps = None if columns.timestamps is None else columns.timestamps[keep]
    return Columns(columns.users[keep], columns.items[keep], None, timestamps)


# ---------------------------------------------------------------------- private helpers


def _place(path: str | os.PathLike, argument: str, name: str | int, known: list) -> int:
    """Returns the position of a column in a row; raises `ValueError` unless it occurs exactly once."""
    if known.count(name) != 1:
        what = "is the name of several columns" if name in known else "is not a column"
        remedy = "; without a header, give columns by position" if known[:1] == [0] else ""
        raise ValueError(f"{argument}={name!r} {what} of {path}; it has {known}{remedy}")
    return known.index(name)


def _columns_of(frame: Mapping[str, Any], wanted: Sequence[tuple[str, Any]]) -> Columns:
    """Converts named columns of a table to `Columns`."""
    user, item, weight, timestamp = (name for _, name in wanted)
    return Columns(
        _labels(user, frame[user]),
        _labels(item, frame[item]),
        None if weight is None else _floats(weight, np.asarray(frame[weight])),
        None if timestamp is None else _whole(timestamp, np.asarray(frame[timestamp])),
    )


def _labels(name: str, column: Any) -> np.ndarray:
    """Converts a column of labels: integers to int64 or uint64, other labels to str objects."""
    labels = labels_of(name, column)
    kind = labels.dtype.kind
    if kind in "iu":
        fits = kind == "i" or labels.max(initial=0) <= np.iinfo(np.int64).max
        return labels.astype(np.int64 if fits else np.uint64)
    if kind == "f" and (labels == np.floor(labels)).all():
        return labels.astype(np.int64)
    if kind == "O" and len(labels) and isinstance(labels[0], bytes):
        try:
            labels = labels_of(name, [label.decode() for label in labels])
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} holds bytes that are not UTF-8 text ({error}); decode them first") from None
    return _text.joined_labels([labels]) if len(labels) else labels


def _floats(name: str, values: np.ndarray) -> np.ndarray:
    """Converts numbers, or datetimes as seconds, to float64.

    Raises `ValueError` for missing or infinite ones.
    """
    seconds = as_seconds(values)
    try:
        if seconds is None and values.dtype.kind in "cm":
            raise TypeError(values.dtype.name)
        numbers = np.asarray(values if seconds is None else seconds, np.float64)
    except (TypeError, ValueError) as error:
        _complete(name, np.array([is_missing(value) for value in values], bool))
        raise ValueError(f"{name} does not hold numbers ({error}); convert it first") from None
    _complete(name, np.isnan(numbers))
    if np.isinf(numbers).any():
        at = int(np.argmax(np.isinf(numbers)))
        raise ValueError(f"{name}[{at}] is {numbers[at]}; give finite numbers")
    return numbers


def _whole(name: str, values: np.ndarray) -> np.ndarray:
    """Converts timestamps to int64: exactly if they are integers, else rounded down."""
    if values.dtype.kind == "i":
        return values.astype(np.int64)
    numbers = np.floor(_floats(name, values))
    if (np.abs(numbers) >= 2.0**63).any():
        at = int(np.argmax(np.abs(numbers) >= 2.0**63))
        raise ValueError(f"{name}[{at}] is {values[at]}; timestamps must fit int64")
    return numbers.astype(np.int64)


def _complete(name: str, missing: np.ndarray) -> None:
    """Raises `ValueError` if a value is missing."""
    if missing.any():
        raise ValueError(f"{name}[{int(np.argmax(missing))}] is missing ({missing.sum()} such rows); drop them first")
