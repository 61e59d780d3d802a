"""Groups rows of interactions into buckets of equal padded length.

Few shapes have to be compiled then, and little of the arrays is padding.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from jaxrec.interactions import Interactions
from jaxrec.typing import Array

_PADDING = 1.4  # the padded number of pairs is at most this multiple of the actual one
_SHORT = 16  # a chunk has no more rows than it would have with rows of this length


class Bucket(NamedTuple):
    """Rows of up to L pairs, in C chunks of B rows; the vectors of a chunk are gathered at a time.

    Attributes:
        rows: int32 [C, B], the ids of the rows; the number of all rows for padding.
        lengths: int32 [C, B], the number of pairs of each row.
        totals: float64 [C, B], Σ r of each row.
        ids: int32 [C, B, L], the places of the pairs' vectors in the other side's table; 0 for
            padding.
        ratings: float32 [C, B, L], r; 0 for padding.
    """

    rows: Array
    lengths: Array
    totals: Array
    ids: Array
    ratings: Array


class Side(NamedTuple):
    """All rows of one side (users or items).

    Attributes:
        buckets: the rows that have pairs. Each of P parts has C / P consecutive chunks of every
            bucket.
        place: int32 [R], the place of each row if the rows of all parts are concatenated, and
            within a part those of all buckets. For rows without pairs it is the place after the
            last.
    """

    buckets: tuple[Bucket, ...]
    place: Array


def sides(train: Interactions, *, chunk: int, parts: int = 1, spare: int = 0) -> tuple[Side, Side]:
    """Groups the rows of users and of items; the arguments are those of `side`.

    `ids` are places in the other side's table, whose rows are in the order of its buckets.
    """
    users, items = (side(pairs, chunk=chunk, parts=parts, spare=spare) for pairs in (train, train.transpose()))

    def pointing(own: Side, other: Side) -> Side:
        def placed(bucket: Bucket) -> Bucket:
            real = np.arange(bucket.ids.shape[-1]) < bucket.lengths[..., None]
            return bucket._replace(ids=np.where(real, other.place[bucket.ids], 0))

        return own._replace(buckets=tuple(map(placed, own.buckets)))

    return pointing(users, items), pointing(items, users)


def side(train: Interactions, *, chunk: int, parts: int = 1, spare: int = 0) -> Side:
    """Groups the rows of the users; `ids` are the ids of the items.

    Args:
        train: the pairs.
        chunk: approximate number of vectors gathered at a time. B is chunk / L, at most chunk / 16.
        parts: C is a multiple of this number in every bucket, so that devices get equal shares.
        spare: see `bucket_lengths`.
    """
    indptr = np.asarray(train.indptr).astype(np.int64)
    degrees = np.diff(indptr)
    ratings = np.ones(train.n_pairs, np.float32) if train.weights is None else np.asarray(train.weights)
    totals = np.bincount(np.repeat(np.arange(train.n_users), degrees), ratings, train.n_users)
    lengths = bucket_lengths(degrees, spare)
    of_row = np.searchsorted(lengths, degrees)
    buckets, solved = [], []
    for number, length in enumerate(lengths):
        rows = np.flatnonzero((of_row == number) & (degrees > 0))
        n_chunks = parts * -(-len(rows) // (parts * max(chunk // max(length, _SHORT), 1)))
        size = -(-len(rows) // n_chunks)
        rows = np.pad(rows, (0, n_chunks * size - len(rows)), constant_values=train.n_users)
        count = np.where(rows < train.n_users, degrees[rows % train.n_users], 0)
        real = np.arange(length) < count[:, None]
        places = np.where(real, indptr[rows % train.n_users][:, None] + np.arange(length), 0)
        buckets.append(
            Bucket(
                rows.astype(np.int32).reshape(n_chunks, size),
                count.astype(np.int32).reshape(n_chunks, size),
                np.append(totals, 0)[rows].reshape(n_chunks, size),
                np.where(real, np.asarray(train.indices)[places], 0).reshape(n_chunks, size, length),
                np.where(real, ratings[places], np.float32(0)).reshape(n_chunks, size, length),
            )
        )
        solved.append(rows.reshape(parts, -1))
    solved = np.concatenate(solved, axis=1).ravel()
    place = np.full(train.n_users + 1, len(solved), np.int32)
    place[solved] = np.arange(len(solved))
    return Side(tuple(buckets), place[:-1])


def spare_pairs(dim: int) -> int:
    """Returns how much padding, in vectors [K], is cheaper than compiling another bucket.

    It costs a sweep hundredths of a second; compiling a bucket takes half a second.
    """
    return min(2**30 // dim**2, 2**20)


def bucket_lengths(degrees: np.ndarray, spare: int = 0) -> list[int]:
    """Returns the lengths [·] to which rows are padded, ascending.

    They are few, because each is compiled separately. The candidates are 1, 2, 3, 4, 6, 8 and
    multiples of 4 that grow by a factor of at most 1.5, which keeps the padding of a row below half
    its length. Candidates are merged into the next longer one, the cheapest first, as long as
    padding adds at most two fifths, or `spare` pairs if that is more. A length that remains is cut
    to the longest row that it serves.

    Args:
        degrees: the number of pairs of each row [R].
        spare: number of padded pairs that is always allowed.
    """
    grid, largest = [1], degrees.max(initial=1)
    while grid[-1] < largest:
        grown = max(grid[-1] + 1, int(grid[-1] * 1.5))
        grid.append(grown // 4 * 4 if grown > 8 else grown)
    counts = np.bincount(np.searchsorted(grid, degrees[degrees > 0]), minlength=len(grid))
    kept = [[length, int(count)] for length, count in zip(grid, counts) if count]
    room = max(_PADDING * degrees.sum(), degrees.sum() + spare) - sum(length * count for length, count in kept)
    while len(kept) > 1:
        added = [(longer - length) * count for (length, count), (longer, _) in itertools.pairwise(kept)]
        least = int(np.argmin(added))
        room -= added[least]
        if room < 0:
            break
        kept[least + 1][1] += kept.pop(least)[1]
    ordered = np.sort(degrees)
    return [int(ordered[np.searchsorted(ordered, length, side="right") - 1]) for length, _ in kept]
