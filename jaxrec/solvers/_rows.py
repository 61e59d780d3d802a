"""Rows of interactions in buckets of one length each, so that few shapes serve all and little is padding."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from jaxrec.interactions import Interactions
from jaxrec.typing import Array

_PADDING = 1.4
_SHORT = 16


class Bucket(NamedTuple):
    """Rows of up to L pairs, in C chunks of B; a chunk is what is gathered at a time.

    Attributes:
        rows: int32 [C, B], the rows' ids; padding has the number of all rows.
        lengths: int32 [C, B], their pairs.
        totals: float64 [C, B], their Σ r.
        ids: int32 [C, B, L], where the table of the other side has the pairs' vectors; 0 where padded.
        ratings: float32 [C, B, L], r, 0 where padded.
    """

    rows: Array
    lengths: Array
    totals: Array
    ids: Array
    ratings: Array


class Side(NamedTuple):
    """All rows of one side.

    Attributes:
        buckets: of the rows that have pairs. Each of P parts has C / P chunks of every bucket, one after another.
        place: int32 [R], where each row is among those of all parts, a part's buckets side by side; at their end for
            rows without pairs.
    """

    buckets: tuple[Bucket, ...]
    place: Array


def sides(train: Interactions, *, chunk: int, parts: int = 1, spare: int = 0) -> tuple[Side, Side]:
    """Users and items, whose tables are in the order of the buckets: `ids` are places. Arguments as `side` has them."""
    users, items = (side(pairs, chunk=chunk, parts=parts, spare=spare) for pairs in (train, train.transpose()))

    def pointing(own: Side, other: Side) -> Side:
        def placed(bucket: Bucket) -> Bucket:
            real = np.arange(bucket.ids.shape[-1]) < bucket.lengths[..., None]
            return bucket._replace(ids=np.where(real, other.place[bucket.ids], 0))

        return own._replace(buckets=tuple(map(placed, own.buckets)))

    return pointing(users, items), pointing(items, users)


def side(train: Interactions, *, chunk: int, parts: int = 1, spare: int = 0) -> Side:
    """The users, with the items' ids as `ids`.

    Args:
        train: the pairs.
        chunk: vectors that are gathered at a time, about: B is chunk / L, and no more than for rows of 16 pairs.
        parts: C is a multiple of it in every bucket, so that devices get equal shares.
        spare: as `bucket_lengths` has it.
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
    """Padding of vectors [K] that costs a sweep hundredths of a second, where compiling a bucket takes half of one."""
    return min(2**30 // dim**2, 2**20)


def bucket_lengths(degrees: np.ndarray, spare: int = 0) -> list[int]:
    """The lengths [·] to which rows are padded, ascending: few, for each is compiled apart.

    Padding adds two fifths at most, or `spare` pairs if that is more. Out of 1, 2, 3, 4, 6, 8 and multiples of 4
    that grow by 1.5 at most, which keep a row's padding below a half of its length, those go that cost the least;
    what stays is cut to the longest row it serves.
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
