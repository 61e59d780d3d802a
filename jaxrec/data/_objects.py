"""Reads fields from files of one object a line, JSON or Python dictionaries.

pyarrow parses whole blocks of JSON. A block that it cannot parse as expected is parsed line by line
in Python, so that an error can name the line.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrec._ids import labels_of
from jaxrec.data import _text


def objects(path: str | os.PathLike, names: Sequence[str | None], expected: str) -> _text.Values:
    """Returns the named fields of a file with one object a line: JSON, or a Python dictionary."""
    number, line = _text.first_line(path)
    first = _object_of(line, _pattern(names), names)
    if first is None:
        raise _text.malformed(path, number, line, expected)
    kinds = [type(None if name is None else first.get(name)) for name in names]  # of the first line
    parts = []
    for number, block in _text.blocks(path):
        try:
            parts.append(_parsed_json(_text.without_blanks(block), names, kinds))
        except _text.Unexpected:
            rows = _objects_by_line(path, number, block, names, kinds, expected)
            if rows[0]:
                parts.append(_columns_of(rows))
    return _text.joined(path, parts)


def _parsed_json(block: bytes, names: Sequence[str | None], kinds: list[type]) -> _text.Values:
    """Parses a block of JSON lines with pyarrow; raises `Unexpected` if Python might differ."""
    pyarrow, arrow_json = _text.optional("pyarrow"), _text.optional("pyarrow.json")
    if not block.startswith(b"{"):
        raise _text.Unexpected
    known = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = {name: known.get(kind) for name, kind in zip(names, kinds) if name is not None}
    if names[2] is not None and kinds[2] is int:
        schema[names[2]] = known[float]  # later lines may have fractional weights
    twice = len(schema) < sum(name is not None for name in names)
    if None in schema.values() or float in kinds[:2] or twice:
        raise _text.Unexpected
    try:
        table = arrow_json.read_json(
            pyarrow.BufferReader(block),
            read_options=arrow_json.ReadOptions(block_size=len(block) + 1),
            parse_options=arrow_json.ParseOptions(
                explicit_schema=pyarrow.schema(schema.items()), unexpected_field_behavior="ignore"
            ),
        )
    except pyarrow.ArrowInvalid as error:
        raise _text.Unexpected from error
    columns: list[Any] = [None if name is None else table[name].combine_chunks() for name in names]
    if table.num_rows != block.count(b"\n") or any(column is not None and column.null_count for column in columns):
        raise _text.Unexpected
    labels = [_texts_of(column) if kind is str else column.to_numpy() for column, kind in zip(columns[:2], kinds)]
    weights, timestamps = columns[2:]
    if weights is not None:
        weights = _text.as_floats("weight", weights)
    if timestamps is not None:
        timestamps = _text.as_whole(timestamps)
    return (*labels, weights, timestamps)


def _texts_of(column: Any) -> np.ndarray:
    """Returns a string column as labels; raises `Unexpected` if one is empty."""
    from pyarrow import compute

    if compute.any(compute.equal(column, "")).as_py():
        raise _text.Unexpected
    return _text.as_labels(column)


def _objects_by_line(path, number, block, names, kinds, expected) -> list[list]:
    """Parses a block line by line; returns its columns as lists, or raises the error of a line."""
    pattern = _pattern(names)
    columns: list[list[Any]] = [[] for _ in names]
    for at, line in _text.filled_lines(number, block):
        found = _object_of(line, pattern, names)
        if found is None:
            raise _text.malformed(path, at, line, expected)
        for kind, name, first, column in zip(_text.KINDS, names, kinds, columns):
            if name is None:
                continue
            value = _plain(kind, found[name], first is str)
            if value is None:
                raise _text.malformed(path, at, line, _wanted_value(kind, found[name]))
            column.append(value)
    return columns


def _wanted_value(kind: str, found: object) -> str:
    """Says in words what a field should have held."""
    if found is None or found == "":
        return f"a {kind}, which is missing"
    if kind in ("user", "item"):
        return f"a label of the {kind}: a string or a whole number, and the same kind in all lines"
    return _text.expected_of(kind, found)


def _plain(kind: str, value: Any, text: bool) -> object:
    """Returns a field's value in the form that its column keeps, or None if it does not fit."""
    if kind in ("user", "item"):
        if text:
            return value if isinstance(value, str) and value else None
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:  # JSON has one number type
            return int(value)
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(value, str):
        fits = _text.fits(kind, value)
    else:
        most = 2**63 - 1 if kind == "timestamp" else sys.float_info.max  # JSON integers may have any size
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= most
    if not fits:
        return None
    if kind == "weight":
        return float(value)
    try:
        return int(value) if isinstance(value, int | str) else math.floor(value)
    except ValueError:
        return math.floor(float(value))


def _columns_of(columns: list[list]) -> _text.Values:
    """Turns lists of values into the arrays of `_text.Values`."""
    users, items, weights, timestamps = columns
    labels = (_text.joined_labels([labels_of(name, column)]) for name, column in (("users", users), ("items", items)))
    return (
        *labels,
        np.array(weights, np.float64) if weights else None,
        np.array(timestamps, np.int64) if timestamps else None,
    )


def _object_of(line: str, pattern: re.Pattern, names: Sequence[str | None]) -> dict[str, object] | None:
    """Returns the object of a line, or None if the line is not an object or lacks a name."""
    line = line.strip()
    try:
        found = pattern.fullmatch(line) if line.startswith(("{'", "{u'")) else None
        if found and None not in found.groups():
            wanted = dict.fromkeys(name for name in names if name is not None)
            values = {name: _literal(text) for name, text in zip(wanted, found.groups())}
        else:
            values = _json_or_python(line)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    there = isinstance(values, dict) and all(name is None or name in values for name in names)
    return values if there else None


def _json_or_python(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return ast.literal_eval(line)


@functools.lru_cache(1 << 16)
def _literal(text: str) -> object:
    """Returns the value of a Python literal; fast for plain integers and strings."""
    if text.isdecimal() and text.isascii() and text[0] != "0":
        return int(text)
    if text[0] in "'\"" and "\\" not in text:
        return text[1:-1]
    return ast.literal_eval(text)


@functools.lru_cache
def _pattern_of(names: tuple[str, ...]) -> re.Pattern:
    """Returns a regular expression for the named values of a flat Python dictionary.

    It matches dictionaries of strings, numbers and flat lists, about ten times as fast as
    `ast.literal_eval` parses them.
    """
    # Possessive quantifiers and atomic groups prevent backtracking.
    string = r"""[uU]?+(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")"""
    value = rf"""(?:{string}|True|False|None|[-+]?+[.\d][-+.\w]*+|\[(?:{string}|[^\[\]'"])*+\])"""
    wanted = (rf"[uU]?+(?:'{re.escape(name)}'|\"{re.escape(name)}\"): *+({value})" for name in names)
    return re.compile(rf"\{{(?:(?>{'|'.join((*wanted, f'{string}: *+{value}'))})(?:, *+|(?=\}}$)))++\}}")


def _pattern(names: Sequence[str | None]) -> re.Pattern:
    """Returns the pattern of the distinct names that are not None."""
    return _pattern_of(tuple(dict.fromkeys(name for name in names if name is not None)))
