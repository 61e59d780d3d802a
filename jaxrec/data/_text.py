"""Reads text files of one interaction a line; errors name the line.

pyarrow parses blocks of lines. A block that it cannot parse as expected is parsed again line by
line in Python. That pass decides whether there is an error and names its line.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import importlib
import math
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from jaxrec._ids import labels_of

BLOCK = 1 << 24  # bytes parsed at a time
_SPACES = " \t"
_UNIT = b"\x1f"  # replaces a separator of several bytes, which pyarrow does not support
_LONGEST = 2**31 - 1  # longest field; the csv module's default of 128 kB is too short for some labels

Values = tuple[Any, ...]  # labels of users and items [n], weights float64 [n] or None, timestamps int64 [n] or None


class Layout(NamedTuple):
    """How a delimited file is written.

    Attributes:
        separator: the characters between two fields.
        header: whether the first line names the columns.
        width: number of fields in a row.
        places: positions of user, item, weight and timestamp in a row; None for an absent column.
        expected: the expected form of a line in words, for errors.
        quoted: whether the caller allows quoted fields.
    """

    separator: str
    header: bool
    width: int
    places: tuple[int | None, ...]
    expected: str
    quoted: bool = True

    @property
    def quotes(self) -> bool:
        """Whether a field may be quoted. With a separator of several characters, quotes are text."""
        return self.quoted and len(self.separator) == 1


class Unexpected(ValueError):
    """A block is not of the form that the fast pyarrow path expects."""


def optional(module: str, *, extra: str = "data") -> Any:
    """Imports a module of an optional extra; `ImportError` says how to install the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{module} cannot be imported ({error}); pip install "jaxrec[{extra}]"') from error


# ---------------------------------------------------------------------- bytes and lines


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file and unpacks gzip; turns decoding errors into a `ValueError` that names the file."""
    try:
        with open(path, "rb") as raw:
            magic = raw.peek(2)[:2]
            if magic == b"\x1f\x8b":
                with gzip.open(raw) as file:
                    yield cast(BinaryIO, file)
            elif magic and str(path).endswith(".gz"):
                raise ValueError(f"{path} is not a gzip file, though its name ends in .gz; rename it or fetch it again")
            else:
                yield raw
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is cut off or not UTF-8 text ({error}); fetch it again or convert it") from None


def blocks(path: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
    """Yields blocks of whole lines of a UTF-8 file with the number of their first line.

    Each line ends with a newline. gzip is unpacked.
    """
    with _opened(path) as file:
        number, rest, first = 1, b"", True
        while chunk := file.read(BLOCK):
            rest += chunk
            block, newline, rest = rest.rpartition(b"\n")
            if newline:
                block = _normal(block + newline, first)
                yield number, block
                number, first = number + block.count(b"\n"), False
        if rest:
            yield number, _normal(rest + b"\n", first)


def _normal(block: bytes, first: bool) -> bytes:
    """Removes a byte order mark and turns all line ends into newlines."""
    block = block.removeprefix(b"\xef\xbb\xbf") if first else block
    block.decode()  # raises an error unless it is UTF-8
    return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in block else block


def first_line(path: str | os.PathLike) -> tuple[int, str]:
    """Returns the number and the text of the first line that is not blank."""
    for number, block in blocks(path):
        for at, line in enumerate(block.decode().split("\n"), number):
            if line.strip(" "):
                return at, line
    raise ValueError(f"{path} is empty; there must be one interaction or more")


def malformed(path: str | os.PathLike, number: int, found: str, expected: str) -> ValueError:
    """Returns the error of a malformed line."""
    found = found if len(found) <= 80 else found[:77] + "..."
    return ValueError(f"{path}, line {number}: found {found!r}, expected {expected}")


def filled_lines(number: int, block: bytes) -> Iterator[tuple[int, str]]:
    """Yields the lines of a block that are not blank, with their numbers."""
    return ((at, line) for at, line in enumerate(block.decode().split("\n"), number) if line.strip(" "))


def without_blanks(block: bytes) -> bytes:
    """Removes blank lines from a block."""
    if block.startswith((b"\n", b" ")) or b"\n\n" in block or b"\n " in block:
        return re.sub(rb"(?m)^ *\n", b"", block)
    return block


def _without_header(number: int, block: bytes) -> tuple[int, bytes, bool]:
    """Removes the first line that is not blank.

    Returns the number of the next line, the rest of the block, and whether there was such a line.
    """
    blanks = re.match(rb"(?: *\n)*", block)
    blank = blanks.end() if blanks else 0
    end = block.find(b"\n", blank) + 1 if blank < len(block) else len(block)
    return number + block.count(b"\n", 0, end), block[end:], blank < len(block)


# ---------------------------------------------------------------------- delimited


def fields_of(line: str, separator: str, quoted: bool = True) -> list[str]:
    """Returns the fields of a line without spaces and tabs at their ends.

    A line with malformed quotes is one field.
    """
    if quoted and len(separator) == 1 and '"' in line:
        try:
            (fields,) = _rows_of([line], separator)
        except (csv.Error, ValueError):
            return [line]
    else:
        fields = line.split(separator)
    return [field.strip(_SPACES) for field in fields]


def _rows_of(lines: list[str], separator: str) -> list[list[str]]:
    """Splits lines with the csv module."""
    before = csv.field_size_limit(_LONGEST)
    try:
        return list(csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=separator != " "))
    finally:
        csv.field_size_limit(before)


def delimited(path: str | os.PathLike, layout: Layout) -> Values:
    """Returns the wanted columns of a delimited file."""
    optional("pyarrow.csv")
    parts, header = [], layout.header
    for number, block in blocks(path):
        if header:
            number, block, found = _without_header(number, block)
            header = not found  # a block of blank lines has no header
        filled = without_blanks(block)
        if filled:
            try:
                parts.append(_converted(_parsed(filled, layout)))
            except Unexpected:
                parts.append(_by_line(path, number, block, layout))
    return joined(path, parts)


def _parsed(block: bytes, layout: Layout) -> list[Any]:
    """Returns the wanted columns as Arrow strings.

    It raises `Unexpected` where pyarrow might read the block differently from Python.
    """
    pyarrow = optional("pyarrow")
    separator, quotes = layout.separator.encode(), layout.quotes and b'"' in block
    if quotes and (len(separator) > 1 or not _well_quoted(separator).fullmatch(block)):
        return _parsed_quotes(block, layout)
    if len(separator) > 1:
        if _UNIT in block:
            raise Unexpected
        block, separator = block.replace(separator, _UNIT), _UNIT
    arrow_csv, names = optional("pyarrow.csv"), [str(place) for place in range(layout.width)]
    wanted = [str(place) for place in dict.fromkeys(layout.places) if place is not None]
    try:
        table = arrow_csv.read_csv(
            pyarrow.BufferReader(block),
            read_options=arrow_csv.ReadOptions(column_names=names, block_size=len(block) + 1),
            parse_options=arrow_csv.ParseOptions(delimiter=separator.decode(), quote_char='"' if quotes else False),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pyarrow.string()), check_utf8=False
            ),
        )
    except pyarrow.ArrowInvalid as error:
        raise Unexpected from error
    if table.num_rows != block.count(b"\n"):  # a row over several lines
        raise Unexpected
    return [None if place is None else table[str(place)].combine_chunks() for place in layout.places]


@functools.lru_cache
def _well_quoted(separator: bytes) -> re.Pattern:
    """Returns a pattern of lines that pyarrow and the csv module parse alike.

    There is no space before an opening quote, no text after a closing one, and no line break
    between.
    """
    one = re.escape(separator)  # possessive quantifiers (*+) prevent backtracking
    field = rb"""(?:"[^"\n]*+(?:""[^"\n]*+)*+"| *+[^" %b\n][^%b\n]*+| *+)""" % (one, one)
    return re.compile(rb"(?:%b(?:%b|\n))*+" % (field, one))


def _parsed_quotes(block: bytes, layout: Layout) -> list[Any]:
    """Parses a block with unusual quotes by the csv module."""
    pyarrow, lines = optional("pyarrow"), block.decode().split("\n")[:-1]
    try:
        rows = _rows_of(lines, layout.separator)
    except csv.Error as error:
        raise Unexpected from error
    if len(rows) != len(lines) or set(map(len, rows)) != {layout.width}:
        raise Unexpected
    columns = list(zip(*rows))
    return [None if place is None else pyarrow.array(columns[place], pyarrow.string()) for place in layout.places]


def _by_line(path: str | os.PathLike, number: int, block: bytes, layout: Layout) -> Values:
    """Parses a block line by line; raises the error of the first malformed line."""
    pyarrow = optional("pyarrow")
    columns: list[list[str]] = [[] for _ in layout.places]
    for at, line in filled_lines(number, block):
        row = fields_of(line, layout.separator, layout.quoted)
        if len(row) != layout.width:
            quotes = layout.quotes and '"' in line
            more = " (no line breaks inside quotes; if quotes are text, use readers.delimited with quoted=False)"
            raise malformed(path, at, line, layout.expected + more * quotes)
        for kind, place, column in zip(KINDS, layout.places, columns):
            if place is not None:
                if not fits(kind, row[place]):
                    raise malformed(path, at, line, expected_of(kind, row[place]))
                column.append(row[place])
    texts = [None if place is None else column for place, column in zip(layout.places, columns)]
    try:
        return _converted([None if text is None else pyarrow.array(text, pyarrow.string()) for text in texts])
    except Unexpected:
        raise ValueError(f"{path} cannot be read from line {number} on; expected {layout.expected}") from None


KINDS = ("user", "item", "weight", "timestamp")


def fits(kind: str, text: str) -> bool:
    """Returns whether a field holds a valid value for its column."""
    if kind in ("user", "item"):
        return text != ""
    try:
        return "_" not in text and abs(float(text)) < (2.0**63 if kind == "timestamp" else math.inf)
    except ValueError:
        return False


def expected_of(kind: str, found: object) -> str:
    """Says in words what a field should have held."""
    if kind in ("user", "item"):
        return f"a label of the {kind}"
    return f"a finite number, not {str(found)[:80]!r} (for dates, pass a pandas DataFrame to readers.dataframe)"


def _converted(texts: list[Any]) -> Values:
    """Converts Arrow strings to labels and numbers; raises `Unexpected` if one does not fit."""
    from pyarrow import compute

    trimmed = [None if text is None else compute.utf8_trim(text, _SPACES) for text in texts]
    for labels in trimmed[:2]:
        if compute.any(compute.equal(labels, "")).as_py():
            raise Unexpected
    users, items, weights, timestamps = trimmed
    return (
        as_labels(users),
        as_labels(items),
        None if weights is None else as_floats("weight", weights),
        None if timestamps is None else as_whole(timestamps),
    )


def as_labels(texts: Any) -> np.ndarray:
    """Returns int64 if all labels are integers in Python's notation, else an object array.

    Equal strings share one object.
    """
    import pyarrow
    from pyarrow import compute

    with contextlib.suppress(pyarrow.ArrowInvalid):
        numbers = compute.cast(texts, pyarrow.int64())
        if compute.all(compute.equal(compute.cast(numbers, pyarrow.string()), texts)).as_py():
            return numbers.to_numpy()
    encoded = texts.dictionary_encode()
    return encoded.dictionary.to_numpy(zero_copy_only=False)[encoded.indices.to_numpy()]


def as_floats(kind: str, texts: Any) -> np.ndarray:
    """Converts Arrow strings or numbers to float64; raises `Unexpected` if one does not fit."""
    import pyarrow
    from pyarrow import compute

    try:
        values = compute.cast(texts, pyarrow.float64()).to_numpy()
    except pyarrow.ArrowInvalid:  # Python accepts more notations, such as "+1"
        entries = texts.to_pylist()
        if not all(fits(kind, text) for text in entries):
            raise Unexpected from None
        values = np.array([float(text) for text in entries], np.float64)
    if not (np.abs(values) < (2.0**63 if kind == "timestamp" else np.inf)).all():
        raise Unexpected
    return values


def as_whole(texts: Any) -> np.ndarray:
    """Converts timestamps to int64: exactly if they are integers, else rounded down."""
    import pyarrow
    from pyarrow import compute

    try:
        return compute.cast(texts, pyarrow.int64()).to_numpy()
    except pyarrow.ArrowInvalid:
        return np.floor(as_floats("timestamp", texts)).astype(np.int64)


def joined(path: str | os.PathLike, parts: Sequence[Values]) -> Values:
    """Joins the columns of all blocks."""
    if not parts:
        raise ValueError(f"{path} holds no rows; there must be one interaction or more")
    users, items, *numbers = zip(*parts)
    return (
        joined_labels(users),
        joined_labels(items),
        *(None if column[0] is None else np.concatenate(column) for column in numbers),
    )


def joined_labels(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Joins the labels of all blocks: integers if all are integers that fit, else str objects."""
    if all(part.dtype == np.int64 for part in parts):
        return np.concatenate(parts)
    # Blocks were converted separately: a block of integers may meet another of strings.
    labels = np.concatenate([part if _holds_texts(part) else _written(part) for part in parts])
    with contextlib.suppress(ValueError):
        if str(int(labels[0])) == labels[0]:
            distinct = {label: int(label) for label in set(labels.tolist())}
            if all(str(number) == label for label, number in distinct.items()):
                numbers = labels_of("labels", [distinct[label] for label in labels.tolist()])
                return labels if numbers.dtype == object else numbers
    return labels


def _holds_texts(part: np.ndarray) -> bool:
    return part.dtype == object and isinstance(part[0], str)


def _written(part: np.ndarray) -> np.ndarray:
    """Returns integer labels as the strings that the file held."""
    return np.array([str(label) for label in part.tolist()], object)


# ---------------------------------------------------------------------- adjacency


def adjacency(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of lines `user item item ...` as int64."""
    users, items = [], []
    for number, block in blocks(path):
        rows = [line.split() for line in block.split(b"\n")]
        try:
            if b"_" in block:
                raise ValueError("int reads 1_0 as 10")
            numbers = np.array([int(field) for row in rows for field in row], np.int64)
        except (ValueError, OverflowError):
            raise _not_integers(path, number, block) from None
        lengths = np.array([len(row) for row in rows if row], np.int64)
        starts = np.cumsum(lengths) - lengths
        users.append(np.repeat(numbers[starts], lengths - 1))
        items.append(np.delete(numbers, starts))
    if not sum(map(len, users)):
        raise ValueError(f"{path} holds no pairs; expected lines of: user item item ...")
    return np.concatenate(users), np.concatenate(items)


def _not_integers(path: str | os.PathLike, number: int, block: bytes) -> ValueError:
    """Returns the error of the first line that is not integers."""
    for at, line in filled_lines(number, block):
        try:
            if "_" in line:
                raise ValueError
            np.array([int(field) for field in line.encode().split()], np.int64)
        except (ValueError, OverflowError):
            return malformed(path, at, line.rstrip(), "integers: user item item ...")
    raise AssertionError("a block is malformed, but none of its lines")
