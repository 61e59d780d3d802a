"""Groups rows of interactions into buckets of equal padded length.

This way few shapes are compiled, and little of the arrays is padding. Users and items are rows of
one table, and buckets of both have the same shapes, so that one compiled program solves for both.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrec._numerics import power_of_two
from jaxrec.interactions import Interactions
from jaxrec.typing import Array

_PADDING = 1.4  # the padded number of pairs is at most this multiple of the actual one
_SHORT = 16  # the number of rows of a chunk is that for rows of at least this length


class Bucket(NamedTuple):
    """Rows of up to L pairs, in C chunks of B rows; the vectors of a chunk are gathered at once.

    Attributes:
        rows: int32 [C, B], the rows of the table to solve for; R, the number of all, for padding.
        lengths: int32 [C, B], the number of pairs of each row.
        totals: float64 [C, B], Σ r of each row.
        ids: int32 [C, B, L], the rows of the table that the pairs point to; 0 for padding.
        ratings: float [C, B, L], r; 0 for padding. None if r is 1 for all pairs.
        n_chunks: int32 [1], the number of chunks that have rows; they come first. None solves all
            chunks, so that the solution has a gradient.
    """

    rows: Array
    lengths: Array
    totals: Array
    ids: Array
    ratings: Array | None
    n_chunks: Array | None


class Source(NamedTuple):
    """A matrix of pairs whose rows and columns are both rows of one table.

    Attributes:
        matrix: the pairs.
        first: the row of the table that is the matrix's row 0.
        column: the row of the table that is the matrix's column 0.
    """

    matrix: Interactions
    first: int
    column: int

    def degrees(self) -> np.ndarray:
        """Returns the number of pairs of each row of the matrix, int64 [·]."""
        return np.diff(np.asarray(self.matrix.indptr).astype(np.int64))


def grouped(
    sources: Sequence[Source], lengths: Sequence[int], *, n_rows: int, chunk: int, parts: int = 1, rounded: bool = False
) -> list[list[tuple[Bucket, ...]]]:
    """Groups the rows of each source into buckets, and divides these into parts.

    All parts of all sources get buckets of the same shapes.

    Args:
        sources: the pairs.
        lengths: the lengths of the buckets, ascending; no row is longer than the last one.
        n_rows: R, the number of rows of the table.
        chunk: approximate number of vectors gathered at a time. B is chunk / L, at most chunk / 16.
        parts: number of parts. Each gets about as many pairs.
        rounded: whether C and B are powers of two, so that few shapes exist, and all chunks are
            solved.

    Returns:
        The buckets of each part of each source. Rows without pairs are in none.
    """
    degrees = [source.degrees() for source in sources]
    found: list[list[list[Bucket]]] = [[[] for _ in range(parts)] for _ in sources]
    for shorter, length in itertools.pairwise([0, *lengths]):
        rows = [np.flatnonzero((shorter < own) & (own <= length)) for own in degrees]
        most = -(-max(map(len, rows)) // parts)
        if not most:
            continue
        n_chunks = -(-most // max(chunk // max(length, _SHORT), 1))
        n_chunks = power_of_two(n_chunks) if rounded else n_chunks
        size = -(-most // n_chunks)
        size = power_of_two(size) if rounded else size
        for own, source, mine in zip(found, sources, rows):
            for buckets, of_part in zip(own, np.array_split(mine, parts)):
                bucket = _bucket(source, of_part, (n_chunks, size, length), n_rows)
                buckets.append(bucket._replace(n_chunks=None) if rounded else bucket)
    return [[tuple(buckets) for buckets in own] for own in found]


def _bucket(source: Source, rows: np.ndarray, shape: tuple[int, int, int], n_rows: int) -> Bucket:
    """Returns the bucket of some rows of a source's matrix; `shape` is (C, B, L)."""
    matrix, (n_chunks, size, length) = source.matrix, shape
    used, nothing = -(-len(rows) // size), matrix.n_users
    rows = np.pad(rows, (0, n_chunks * size - len(rows)), constant_values=nothing).reshape(n_chunks, size)
    count = np.append(source.degrees(), 0)[rows]
    real = np.arange(length) < count[..., None]
    pairs = np.where(real, np.asarray(matrix.indptr)[rows][..., None] + np.arange(length), 0)
    ids = np.where(real, np.asarray(matrix.indices)[pairs] + np.int32(source.column), 0)
    ratings, totals = None, count.astype(np.float64)
    if matrix.weights is not None:
        ratings = np.where(real, np.asarray(matrix.weights)[pairs], np.float32(0))
        totals = ratings.sum(-1, dtype=np.float64)
    rows = np.where(rows == nothing, n_rows, rows + source.first).astype(np.int32)
    return Bucket(rows, count.astype(np.int32), totals, ids, ratings, np.full(1, used, np.int32))


def places(parts: Sequence[Sequence[Bucket]], n_rows: int) -> np.ndarray:
    """Returns the place of each row of the table among the rows of all buckets of all parts.

    int32 [R]. For rows without pairs it is the place after the last.
    """
    solved = np.concatenate([bucket.rows.ravel() for buckets in parts for bucket in buckets])
    place = np.full(n_rows + 1, len(solved), np.int32)
    place[solved] = np.arange(len(solved))
    place[n_rows] = len(solved)
    return place[:-1]


def bucket_lengths(degrees: np.ndarray, spare: int = 0) -> list[int]:
    """Returns the lengths [·] to which rows are padded, ascending.

    They are few, because each is compiled separately. The candidates are 1, 2, 3, 4, 6, 8 and
    multiples of 4 that grow by a factor of at most 1.5, which keeps the padding of a row below half
    its length. Candidates are merged into the next longer one, the cheapest first, while all
    padding stays within two fifths of the pairs, or a merger adds at most `spare` padded pairs. A
    length that remains is cut to the longest row that it serves.

    Args:
        degrees: the number of pairs of each row [R].
        spare: number of padded pairs that a merger may always add, because a run solves for them in
            the time of compiling one more bucket.
    """
    grid, largest = [1], degrees.max(initial=1)
    while grid[-1] < largest:
        grown = max(grid[-1] + 1, int(grid[-1] * 1.5))
        grid.append(grown // 4 * 4 if grown > 8 else grown)
    counts = np.bincount(np.searchsorted(grid, degrees[degrees > 0]), minlength=len(grid))
    kept = [[length, int(count)] for length, count in zip(grid, counts) if count]
    room = _PADDING * degrees.sum() - sum(length * count for length, count in kept)
    while len(kept) > 1:
        added = [(longer - length) * count for (length, count), (longer, _) in itertools.pairwise(kept)]
        least = int(np.argmin(added))
        room -= added[least]
        if room < 0 and added[least] > spare:
            break
        kept[least + 1][1] += kept.pop(least)[1]
    ordered = np.sort(degrees)
    return [int(ordered[np.searchsorted(ordered, length, side="right") - 1]) for length, _ in kept]
