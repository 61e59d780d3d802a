"""Text files of one interaction a line: their lines, fields and columns, and errors that name the line."""

from __future__ import annotations

import ast
import csv
import gzip
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

CHUNK = 1 << 12  # rows that are text at one time

Values = tuple[np.ndarray | None, ...]  # labels of users and items as text [n], weights and timestamps float64 [n]


class Layout(NamedTuple):
    """How a text file is written; `places` are the positions of user, item, weight and timestamp in a row."""

    separator: str
    header: bool
    width: int
    places: tuple[int | None, ...]
    expected: str


def lines_of(path: str | os.PathLike) -> Iterator[str]:
    """The lines of a UTF-8 file, which may end in `.gz`."""
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            yield from file
    except (UnicodeDecodeError, EOFError) as error:
        raise ValueError(f"{path} is cut off or not UTF-8 text ({error}); fetch it again or convert it") from None


def first_line(path: str | os.PathLike) -> str:
    """The first line that is not blank."""
    first = next((line.rstrip("\n") for line in lines_of(path) if line.strip()), None)
    if first is None:
        raise ValueError(f"{path} is empty; there must be one interaction at least")
    return first


def malformed(path: str | os.PathLike, number: int, found: str, expected: str) -> ValueError:
    """The error of a line."""
    found = found if len(found) <= 80 else found[:77] + "..."
    return ValueError(f"{path}, line {number}: found {found!r}, expected {expected}")


def fields_of(line: str, separator: str) -> list[str]:
    """The fields of a line; between commas they may be quoted."""
    if separator == "," and '"' in line:
        try:
            return next(csv.reader([line], strict=True, skipinitialspace=True))
        except csv.Error:
            return [line]
    return line.rstrip("\n").split(separator)


def values_of(line: str, names: list[str]) -> list[str]:
    """The named values of an object, or the line itself where it is none; text stands for whatever a field holds."""
    try:
        values = json.loads(line)
    except ValueError:
        try:
            values = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [line.rstrip("\n")]
    if not isinstance(values, dict) or not set(names) <= set(values):
        return [line.rstrip("\n")]
    return [str(values[name]) for name in names]


def read(path: str | os.PathLike, layout: Layout, fields: Callable[[str], list[str]] | None = None) -> Values:
    """The wanted columns of a file, whose lines `fields` takes apart."""
    fields = fields or partial(fields_of, separator=layout.separator)
    filled = ((number, line) for number, line in enumerate(lines_of(path), 1) if line.strip(" \n"))
    rows, chunks = itertools.islice(filled, int(layout.header), None), []
    while chunk := list(itertools.islice(rows, CHUNK)):
        numbers, lines = zip(*chunk)
        chunks.append(_values(path, layout, numbers, [fields(line) for line in lines]))
    if not chunks:
        raise ValueError(f"{path} holds no rows; there must be one interaction at least")
    return tuple(None if parts[0] is None else np.concatenate(parts) for parts in zip(*chunks))


def _values(path: str | os.PathLike, layout: Layout, numbers: Sequence[int], rows: list[list[str]]) -> Values:
    """The wanted columns of some rows; `numbers` are their lines."""

    def bad(at: int, expected: str) -> ValueError:
        return malformed(path, numbers[at], layout.separator.join(rows[at]), expected)

    if set(map(len, rows)) != {layout.width}:
        at = next(at for at, row in enumerate(rows) if len(row) != layout.width)
        raise bad(at, layout.expected)
    columns = (None if place is None else [row[place] for row in rows] for place in layout.places)
    texts = [None if column is None else np.strings.strip(np.array(column)) for column in columns]
    for name, labels in zip(("user", "item"), texts):
        if (labels == "").any():
            raise bad(int(np.argmax(labels == "")), f"a label of the {name}")
    return (*texts[:2], *(None if column is None else _finite(column, bad) for column in texts[2:]))


def _finite(texts: np.ndarray, bad: Callable[[int, str], ValueError]) -> np.ndarray:
    try:
        values = texts.astype(np.float64)
        wrong = ~np.isfinite(values)
    except ValueError:
        wrong = np.array([not _is_finite(text) for text in texts])
    if wrong.any():
        at = int(np.argmax(wrong))
        raise bad(at, f"a finite number, not {str(texts[at])!r} (dates: give readers.dataframe a pandas frame)")
    return values


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
