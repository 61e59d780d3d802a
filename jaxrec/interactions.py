"""Implicit feedback as a compressed sparse row (CSR) matrix of users by items."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import warnings
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from jaxrec._ids import INT32_MAX, checked_ids, checked_timestamps, checked_weights, column_of, factorised
from jaxrec._ids import IdMap as IdMap
from jaxrec._numerics import as_ids, integer
from jaxrec.typing import Array, ArrayLike


class DataWarning(UserWarning):
    """The data can be used, but a person should know this about them."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["indptr", "indices", "weights", "timestamps"],
    meta_fields=["n_users", "n_items"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """Which users met which items: a CSR matrix as a frozen pytree.

    Row u holds the items of user u, ascending and without repetition. The constructors check their
    input and build NumPy arrays on the host; `jax.device_put` moves the whole to a device, and any jitted function
    takes it as an argument. Training, solvers, models, samplers, splits and evaluation raise `TypeError` for anything
    else in its place, and say what to make of it.

    Attributes:
        indptr: int32 [M + 1]; the items of user u are `indices[indptr[u]:indptr[u + 1]]`.
        indices: int32 [nnz], item ids.
        weights: float32 [nnz] or None, such as counts; None means that every pair weighs 1.
        timestamps: int32 [nnz] or None, seconds since 1970 or any other order.
        n_users: M, static.
        n_items: N, static.

    >>> train = Interactions.from_pairs([0, 0, 2], [1, 3, 0])
    >>> train
    Interactions(3 users x 4 items, 3 pairs, density 25.0000%)
    >>> train.contains(np.array([0, 1]), np.array([3, 3])).tolist()
    [True, False]
    """

    indptr: Array
    indices: Array
    weights: Array | None
    timestamps: Array | None
    n_users: int
    n_items: int

    def __repr__(self) -> str:
        columns = "".join(f", {name}" for name in ("weights", "timestamps") if getattr(self, name) is not None)
        density = self.n_pairs / max(self.n_users * self.n_items, 1)
        return (
            f"Interactions({self.n_users} users x {self.n_items} items, {self.n_pairs} pairs, "
            f"density {density:.4%}{columns})"
        )

    # ------------------------------------------------------------------ constructors

    @classmethod
    def from_pairs(
        cls,
        users: ArrayLike,
        items: ArrayLike,
        *,
        weights: ArrayLike | None = None,
        timestamps: ArrayLike | None = None,
        n_users: int | None = None,
        n_items: int | None = None,
    ) -> Interactions:
        """Builds the matrix from ids 0 .. n-1, one pair a row, in any order.

        A pair that occurs more than once is merged: its weights are added, its latest timestamp is
        kept, and a `DataWarning` says how many rows were merged. Weights of any dtype are added in float64.

        Args:
            users: integers [n].
            items: integers [n].
            weights: numbers [n], finite.
            timestamps: datetimes, or numbers that fit int32 (seconds, not milliseconds) [n]; fractions are cut off.
            n_users: number of users; by default the largest id plus one. Then a `DataWarning` says if fewer than a
                tenth of these ids occur, and if they seem to start at 1, so that user 0 would be nobody.
            n_items: likewise for items. With both numbers there may be no pairs.

        Raises:
            ValueError: for no pairs without both numbers, columns of different lengths, ids that are negative,
                fractional, NaN, not numbers, or not below `n_users`/`n_items`, sizes that are not integers, weights
                (also sums of them) and timestamps that do not fit, and 2³¹ distinct pairs or more.
        """
        n_users = None if n_users is None else integer("n_users", n_users, most=INT32_MAX)
        n_items = None if n_items is None else integer("n_items", n_items, most=INT32_MAX)
        users = checked_ids("users", users, n_users)
        items = checked_ids("items", items, n_items)
        weights = None if weights is None else checked_weights(weights)
        timestamps = None if timestamps is None else checked_timestamps(timestamps)
        for name, column in (("items", items), ("weights", weights), ("timestamps", timestamps)):
            if column is not None and len(column) != len(users):
                raise ValueError(
                    f"{name} has {len(column)} entries and users has {len(users)}; give one entry for each pair"
                )
        if len(users) == 0 and (n_users is None or n_items is None):
            raise ValueError("users and items are empty; give at least one pair, or both n_users and n_items")
        n_users = _number("users", users) if n_users is None else n_users
        n_items = _number("items", items) if n_items is None else n_items
        if len(users) == 0:
            weights = None if weights is None else weights.astype(np.float32)
            return cls(np.zeros(n_users + 1, np.int32), items, weights, timestamps, n_users, n_items)
        return cls._merged(users, items, weights, timestamps, n_users, n_items)

    @classmethod
    def _merged(cls, users, items, weights, timestamps, n_users, n_items) -> Interactions:
        keys = users.astype(np.int64) * n_items + items
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        merged = len(keys) - len(first)
        if merged:
            repeated = keys[1:][keys[1:] == keys[:-1]][0]
            what = ["repetition ignored" if weights is None else "weights added"]
            what += [] if timestamps is None else ["latest timestamp kept"]
            warnings.warn(
                f"merged {merged} duplicate pairs ({', '.join(what)}); the first is user {repeated // n_items}, "
                f"item {repeated % n_items}",
                DataWarning,
                stacklevel=3,
            )
        rows, columns = users[order][first], items[order][first]
        if weights is not None:
            weights = np.add.reduceat(weights[order], first)
            large = np.abs(weights) > np.finfo(np.float32).max
            if large.any():
                at = int(np.argmax(large))
                raise ValueError(
                    f"the weights of user {rows[at]}, item {columns[at]} add up to {weights[at]:g}, more than float32 "
                    f"holds; divide all weights ({large.sum()} such pairs)"
                )
        return cls(
            indptr=_offsets(np.searchsorted(rows, np.arange(n_users + 1, dtype=np.int64))),
            indices=columns,
            weights=None if weights is None else weights.astype(np.float32),
            timestamps=None if timestamps is None else np.maximum.reduceat(timestamps[order], first),
            n_users=n_users,
            n_items=n_items,
        )

    @classmethod
    def from_labels(
        cls,
        users: ArrayLike,
        items: ArrayLike,
        weights: ArrayLike | None = None,
        timestamps: ArrayLike | None = None,
        *,
        id_map: IdMap | None = None,
        unknown: Literal["raise", "drop"] = "raise",
    ) -> tuple[Interactions, IdMap]:
        """Builds the matrix from your own labels (strings or numbers) and returns the map back to them.

        The ids follow the sorted order of the labels. The readers of `jaxrec.data.readers` return just these four
        columns, so that `Interactions.from_labels(*readers.movielens(path))` works.

        The labels of a column are of one kind. A column that holds 7 and "7", 1 and 1.0, or 1 and True is refused:
        whether these are one label or two is not for the library to guess. Integers may be of any size.

        A string such as "nan" or "None" is a label, and a `DataWarning` says that it looks like a missing value that
        was turned into text.

        Args:
            users: labels [n].
            items: labels [n].
            weights: as `from_pairs` takes them.
            timestamps: likewise.
            id_map: the map to use, such as the one of the train part for a test part in its own file; by default a new
                one is built from the labels given.
            unknown: what to do about a pair with a label that `id_map` lacks: "raise", or "drop", which leaves it out
                and says how many in a `DataWarning`.

        Raises:
            ValueError: as `from_pairs`; also for missing labels (None, NaN, pandas.NA, the empty string), labels of
                several kinds or of another kind than those of `id_map`, floats too large to tell whole numbers apart,
                labels that `id_map` lacks, and where no pair is left.

        >>> train, id_map = Interactions.from_labels(["ann", "bob"], [10, 7])
        >>> test, _ = Interactions.from_labels(["bob"], [10], id_map=id_map)
        >>> test, test.pairs()[1].tolist()
        (Interactions(2 users x 2 items, 1 pairs, density 25.0000%), [1])
        """
        if unknown not in ("raise", "drop") or (unknown == "drop" and id_map is None):
            raise ValueError(f"unknown={unknown!r}; give 'raise', or 'drop' with the id_map to go by")
        user_labels, users = factorised("users", users)
        item_labels, items = factorised("items", items)
        for name, labels, places in (("users", user_labels, users), ("items", item_labels, items)):
            _say_missing_as_text(name, labels, places)
        columns = {"users": users, "items": items, "weights": weights, "timestamps": timestamps}
        if id_map is None:
            id_map = IdMap(user_labels, item_labels)
        elif unknown == "raise":
            columns |= {"users": id_map.user_ids(user_labels)[users], "items": id_map.item_ids(item_labels)[items]}
        else:
            columns = _known(id_map, (user_labels, item_labels), columns)
        return cls.from_pairs(**columns, n_users=len(id_map.users), n_items=len(id_map.items)), id_map

    @classmethod
    def from_dataframe(
        cls,
        frame: Any,
        *,
        user: str,
        item: str,
        weight: str | None = None,
        timestamp: str | None = None,
        id_map: IdMap | None = None,
        unknown: Literal["raise", "drop"] = "raise",
    ) -> tuple[Interactions, IdMap]:
        """Builds the matrix from named columns of a pandas or polars DataFrame; see `from_labels`.

        A datetime column may serve as `timestamp`; without a time zone it is UTC.

        Raises:
            ValueError: for a column that the frame lacks or has twice, and as `from_labels`.
        """
        columns = []
        for argument, name in (("user", user), ("item", item), ("weight", weight), ("timestamp", timestamp)):
            columns.append(None if name is None else column_of(frame, argument, name))
        return cls.from_labels(*columns, id_map=id_map, unknown=unknown)

    @classmethod
    def from_scipy(cls, matrix: Any) -> Interactions:
        """Builds the matrix from any SciPy sparse matrix or array, of any dtype.

        Entries stored twice are added, in float64. Zeros, stored or as a sum, are no interactions. If any value is
        not 1, the values become weights.

        Raises:
            ValueError: for values that are not finite real numbers, and a matrix that is not two-dimensional or has no
                rows or columns.
        """
        coo = scipy.sparse.coo_array(matrix)
        if coo.ndim != 2 or coo.dtype.kind not in "biuf":
            raise ValueError(f"matrix is {coo.dtype}{list(coo.shape)}; give real numbers, users by items")
        # converting to CSR adds what is stored twice, and would do so in the dtype of the matrix
        csr = scipy.sparse.csr_array((coo.data.astype(np.float64), coo.coords), shape=coo.shape)
        csr.sum_duplicates()
        csr.eliminate_zeros()
        users = np.repeat(np.arange(csr.shape[0], dtype=np.int64), np.diff(csr.indptr))
        weights = None if (csr.data == 1).all() else csr.data
        return cls.from_pairs(users, csr.indices, weights=weights, n_users=csr.shape[0], n_items=csr.shape[1])

    # ------------------------------------------------------------------ on the host

    @property
    def n_pairs(self) -> int:
        """Number of stored pairs, nnz."""
        return self.indices.shape[0]

    @property
    def user_degrees(self) -> Array:
        """Number of items of each user, int [M]."""
        return self.indptr[1:] - self.indptr[:-1]

    @property
    def item_degrees(self) -> np.ndarray:
        """Number of users of each item, int [N], on the host."""
        return np.bincount(np.asarray(self.indices), minlength=self.n_items)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """All pairs as (users, items), int32 [nnz] each, sorted by user and item, on the host."""
        degrees = np.diff(np.asarray(self.indptr))
        return np.repeat(np.arange(self.n_users, dtype=np.int32), degrees), np.asarray(self.indices)

    def select(self, keep: ArrayLike) -> Interactions:
        """The pairs where `keep` (bool [nnz], in the order of `pairs`) is True, over the same ids; may be empty."""
        keep = np.asarray(keep)
        if keep.shape != (self.n_pairs,) or keep.dtype != bool:
            raise ValueError(f"keep is {keep.dtype}{list(keep.shape)}; give one bool for each of {self.n_pairs} pairs")
        kept = np.r_[0, np.cumsum(keep, dtype=np.int64)].astype(np.int32)
        return dataclasses.replace(
            self,
            indptr=kept[np.asarray(self.indptr)],
            indices=np.asarray(self.indices)[keep],
            weights=None if self.weights is None else np.asarray(self.weights)[keep],
            timestamps=None if self.timestamps is None else np.asarray(self.timestamps)[keep],
        )

    def union(self, *others: Interactions) -> Interactions:
        """The pairs of this set and of others over the same ids, such as train and validation.

        A pair that several sets hold is merged, as by `from_pairs`. If any set has weights, the result has: a pair of a
        set without weights counts 1. The result has timestamps only if all sets have them.

        Raises:
            ValueError: for sets with different numbers of users or items.

        >>> train, valid = Interactions.from_pairs([0, 1], [1, 0]), Interactions.from_pairs([0, 1], [0, 1])
        >>> train.union(valid)
        Interactions(2 users x 2 items, 4 pairs, density 100.0000%)
        """
        parts, sizes = (self, *others), (self.n_users, self.n_items)
        for part in others:
            if (part.n_users, part.n_items) != sizes:
                raise ValueError(
                    f"{part.n_users} users x {part.n_items} items and {sizes[0]} x {sizes[1]}; give parts over the "
                    "same ids: the constructors take `n_users` and `n_items`"
                )
        users, items = (np.concatenate(ids) for ids in zip(*(part.pairs() for part in parts)))
        more = {"n_users": self.n_users, "n_items": self.n_items}
        if any(part.weights is not None for part in parts):
            columns = (np.ones(part.n_pairs, np.float32) if part.weights is None else part.weights for part in parts)
            more["weights"] = np.concatenate([np.asarray(column) for column in columns])
        if all(part.timestamps is not None for part in parts):
            more["timestamps"] = np.concatenate([np.asarray(part.timestamps) for part in parts])
        return Interactions.from_pairs(users, items, **more)

    def transpose(self) -> Interactions:
        """The same pairs as a matrix of items by users, on the host."""
        users, items = self.pairs()
        order = np.argsort(items, kind="stable")
        return Interactions(
            indptr=_offsets(np.searchsorted(items[order], np.arange(self.n_items + 1, dtype=np.int64))),
            indices=users[order],
            weights=None if self.weights is None else np.asarray(self.weights)[order],
            timestamps=None if self.timestamps is None else np.asarray(self.timestamps)[order],
            n_users=self.n_items,
            n_items=self.n_users,
        )

    def to_scipy(self) -> scipy.sparse.csr_array:
        """A SciPy CSR array [M, N] of the weights (float32, 1 where there are none)."""
        values = np.ones(self.n_pairs, np.float32) if self.weights is None else np.asarray(self.weights)
        shape = (self.n_users, self.n_items)
        return scipy.sparse.csr_array((values, np.asarray(self.indices), np.asarray(self.indptr)), shape=shape)

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of a SHA-256 over shape, pairs and weights, to name the data in a report."""
        digest = hashlib.sha256(f"{self.n_users},{self.n_items}".encode())
        for column, dtype in ((self.indptr, np.int32), (self.indices, np.int32), (self.weights, np.float32)):
            if column is not None:
                digest.update(np.ascontiguousarray(column, dtype).tobytes())
        return digest.hexdigest()[:12]

    # ------------------------------------------------------------------ under jit

    def contains(self, users: Array, items: Array) -> Array:
        """Whether each pair is stored; `users` and `items` (integers) broadcast, the answer has their shape.

        It searches the user's row by halves, in log₂ N steps, and forms no [M, N] array. A pair with a user outside
        0 .. M-1 or an item outside 0 .. N-1 is not stored.
        """
        chex.assert_type([users, items], int)
        return _contains(self, as_ids(users), as_ids(items))

    def rows(self, users: Array, *, length: int) -> tuple[Array, Array]:
        """The items of a block of users, padded.

        Args:
            users: integers [...]; one outside 0 .. M-1 has no items.
            length: static; the first `length` items of each user are given.

        Returns:
            items int32 [..., length], 0 where padded, and where bool [..., length], True for real entries.
        """
        chex.assert_type(users, int)
        length = integer("length", length, least=0)
        first, degrees = _row_bounds(self, as_ids(users)[..., None])
        number = jnp.arange(length, dtype=jnp.int32).reshape((1,) * (first.ndim - 1) + (-1,))
        where = number < degrees
        if self.n_pairs == 0:
            return jnp.zeros(where.shape, jnp.int32), where
        return jnp.where(where, jnp.asarray(self.indices).at[first + number].get(mode="clip"), 0), where

    def flat_rows(self, users: Array, *, capacity: int) -> tuple[Array, Array, Array]:
        """The items of a block of users as one list of pairs, one user's after another's: padded once, not by user.

        Args:
            users: integers [B]; one outside 0 .. M-1 has no items.
            capacity: static C, at least the number of pairs of these users; any beyond C are left out.

        Returns:
            rows int32 [C], places in `users`, B where padded; items int32 [C], 0 there; degrees int32 [B].
        """
        chex.assert_type(users, int)
        chex.assert_rank(users, 1)
        capacity = integer("capacity", capacity, least=0)
        first, degrees = _row_bounds(self, as_ids(users))
        ends = jnp.cumsum(degrees, dtype=jnp.int32)
        number = jnp.arange(capacity, dtype=jnp.int32)
        rows = owners(ends, capacity)
        if self.n_pairs == 0 or not len(first):
            return rows, jnp.zeros(capacity, jnp.int32), degrees
        row = jnp.minimum(rows, len(first) - 1)
        places = (first - ends + degrees)[row] + number
        return rows, jnp.where(rows < len(first), jnp.asarray(self.indices).at[places].get(mode="clip"), 0), degrees

    def take(self, users: ArrayLike, *, capacity: int | None = None) -> Interactions:
        """The rows of a block of users, in the order given, as `Interactions` [B, N]: what models call `histories`.

        Weights and timestamps are left out.

        Args:
            users: integers [B]; one outside 0 .. M-1 has no items, and one given twice has two rows.
            capacity: static, the room for their pairs: `indices` is padded with 0 to it, which models and evaluation
                allow for. None makes room for these pairs alone. Under `jit` it must be given, and pairs beyond it
                are left out.

        Raises:
            ValueError: for a capacity that is less than the number of pairs, except under `jit`.

        >>> Interactions.from_pairs([0, 0, 2], [1, 3, 0]).take([2, 1, 0]).pairs()[1].tolist()
        [0, 1, 3]
        """
        if not any(isinstance(x, jax.core.Tracer) for x in (users, self.indptr, self.indices)):
            return self._taken(np.asarray(users), capacity)
        if capacity is None:
            raise ValueError("the users are traced; give capacity, the room for their pairs")
        _, items, degrees = self.flat_rows(users, capacity=capacity)
        ends = jnp.minimum(jnp.cumsum(degrees, dtype=jnp.int32), capacity)
        indptr = jnp.concatenate([jnp.zeros(1, jnp.int32), ends])
        return Interactions(indptr, items, None, None, len(users), self.n_items)

    def _taken(self, users: np.ndarray, capacity: int | None) -> Interactions:
        """`take` on the host."""
        chex.assert_type(users, int)
        chex.assert_rank(users, 1)
        known = (users >= 0) & (users < self.n_users)
        users = np.where(known, users, 0).astype(np.int64)
        indptr = np.asarray(self.indptr) if self.n_users else np.zeros(2, np.int32)
        first = indptr[users].astype(np.int64)
        degrees = np.where(known, indptr[users + 1] - first, 0)
        ends = np.cumsum(degrees)
        n = int(ends[-1]) if len(ends) else 0
        if capacity is not None and integer("capacity", capacity, least=0) < n:
            raise ValueError(f"capacity={capacity}, but these users have {n} pairs; give at least as much")
        items = np.zeros(n if capacity is None else int(capacity), np.int32)
        items[:n] = np.asarray(self.indices)[np.arange(n) + np.repeat(first - ends + degrees, degrees)]
        return Interactions(_offsets(np.r_[0, ends]), items, None, None, len(users), self.n_items)


def owners(ends: Array, n_pairs: int) -> Array:
    """The row int32 [n_pairs] of each pair in a list of pairs, where rows end at `ends` [B]; B after the last row's."""
    ended = jnp.zeros(n_pairs, jnp.int32).at[ends].add(1, mode="drop")
    return ended.cumsum(dtype=jnp.int32)  # rows that end before; on CPU a search would take twice the time


def _row_bounds(matrix: Interactions, users: Array) -> tuple[Array, Array]:
    """Where the rows of `users` (int32) start in `indices`, and their lengths; 0 for a user outside 0 .. M-1."""
    if matrix.n_users == 0:
        return jnp.zeros_like(users), jnp.zeros_like(users)
    indptr = jnp.asarray(matrix.indptr)
    known = (users >= 0) & (users < matrix.n_users)
    users = jnp.where(known, users, 0)
    first = indptr[users]
    return first, jnp.where(known, indptr[users + 1] - first, 0)


@jax.jit
def _contains(matrix: Interactions, users: Array, items: Array) -> Array:
    users, items = jnp.broadcast_arrays(users, items)
    if matrix.n_pairs == 0:
        return jnp.zeros(users.shape, bool)
    first, degrees = _row_bounds(matrix, users)
    indices, end = jnp.asarray(matrix.indices), first + degrees

    def halve(_, bounds):
        low, high = bounds
        middle = low + ((high - low) >> 1)  # low + high may pass 2³¹
        right = (low < high) & (indices.at[middle].get(mode="clip") < items)
        return jnp.where(right, middle + 1, low), jnp.where(right | (low >= high), high, middle)

    steps = max(matrix.n_items, 1).bit_length() + 1
    low, _ = jax.lax.fori_loop(0, steps, halve, (first, end))
    return (low < end) & (indices.at[low].get(mode="clip") == items)


_AS_TEXT = {"nan", "NaN", "NaT", "None", "null", "<NA>"}


def _say_missing_as_text(name: str, labels: np.ndarray, places: np.ndarray) -> None:
    if labels.dtype.kind != "O":
        return
    for place in (place for place, label in enumerate(labels) if label in _AS_TEXT):
        warnings.warn(
            f"{name} has the label {labels[place]!r} in {np.count_nonzero(places == place)} rows, which looks like a "
            "missing value turned into text; if so, drop these rows",
            DataWarning,
            stacklevel=3,
        )


def _offsets(ends: np.ndarray) -> np.ndarray:
    """The places in the list of pairs where rows start, as int32; `ValueError` where they do not fit."""
    if len(ends) and ends[-1] > INT32_MAX:
        raise ValueError(f"{ends[-1]} pairs are more than the {INT32_MAX} that int32 can count; leave some users out")
    return ends.astype(np.int32)


def _number(name: str, ids: np.ndarray) -> int:
    """The largest id plus one; says if most ids below are nobody's, or only the first one is."""
    n = int(ids.max()) + 1
    used = np.count_nonzero(np.bincount(ids)) if n <= 10 * len(ids) else len(np.unique(ids))
    if n > 10 * used:
        warnings.warn(
            f"{name} run to {n - 1}, but only {used} of these ids occur, and all get rows in models and rankings; "
            f"Interactions.from_labels numbers them without gaps, n_{name}={n} says that the gaps are meant",
            DataWarning,
            stacklevel=3,
        )
    elif used > 1 and ids.min() == 1:
        warnings.warn(
            f"{name} seem to start at 1: ids start at 0, so that 0 would get a row in models and rankings and be "
            f"nobody; subtract 1, use Interactions.from_labels, or give n_{name}={n} if 0 is one of them",
            DataWarning,
            stacklevel=3,
        )
    return n


def _known(id_map: IdMap, labels: tuple[np.ndarray, np.ndarray], columns: dict[str, Any]) -> dict[str, Any]:
    """The columns with the ids of `id_map`, without the rows that have a label which it lacks.

    Args:
        id_map: the map to use.
        labels: distinct labels of users and of items.
        columns: "users" and "items" as places in `labels`; "weights" and "timestamps", or None.
    """
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns have different lengths, {lengths}; give one entry for each pair")
    users = id_map.user_ids(labels[0], unknown=-1)[columns["users"]]
    items = id_map.item_ids(labels[1], unknown=-1)[columns["items"]]
    keep = (users >= 0) & (items >= 0)
    if not keep.any():
        given = [such.tolist()[0] for such in (*labels, id_map.users, id_map.items) if len(such)]
        raise ValueError(f"id_map has none of {len(keep)} pairs' labels; is it of other data? Given, had: {given}")
    if not keep.all():
        warnings.warn(
            f"dropped {(~keep).sum()} of {len(keep)} pairs: id_map lacks {len(np.unique(columns['users'][users < 0]))} "
            f"of their users and {len(np.unique(columns['items'][items < 0]))} of their items",
            DataWarning,
            stacklevel=3,
        )
    columns = columns | {"users": users, "items": items}
    return {name: None if column is None else np.asarray(column)[keep] for name, column in columns.items()}


def check_interactions(**given: Any) -> None:
    """`TypeError` for an argument that is no `Interactions`: names it, and says what to make of it.

    >>> check_interactions(train=scipy.sparse.eye_array(3))
    Traceback (most recent call last):
    TypeError: train is a dia_array; give Interactions: Interactions.from_scipy(train)
    """
    for name, value in given.items():
        if isinstance(value, Interactions):
            continue
        parts = [part for part in ("interactions", "train") if isinstance(getattr(value, part, None), Interactions)]
        if parts:
            instead = f"one of its parts, such as {name}.{parts[0]}"
        elif isinstance(value, tuple) and value and isinstance(value[0], Interactions):
            instead = f"{name}[0], for an IdMap came with them"
        elif scipy.sparse.issparse(value):
            instead = f"Interactions.from_scipy({name})"
        elif hasattr(value, "columns"):
            instead = f"Interactions.from_dataframe({name}, ...)"
        else:
            instead = "Interactions.from_pairs(users, items), from_labels or from_scipy"
        raise TypeError(f"{name} is a {type(value).__name__}; give Interactions: {instead}")


def check_weights(**given: Interactions) -> None:
    """`ValueError` for interactions with a weight that is negative or not finite; names it. Traced weights pass."""
    for name, interactions in given.items():
        if interactions.weights is None or isinstance(interactions.weights, jax.core.Tracer):
            continue
        weights = np.asarray(interactions.weights)
        bad = ~((weights >= 0) & (weights < np.inf))
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"{name}.weights[{at}] is {weights[at]} ({bad.sum()} such); weights of implicit feedback are finite "
                "and 0 or more: drop these pairs, or leave weights out"
            )


def check_positives(**given: Any) -> None:
    """Refuses what nothing can be learned from: no `Interactions`, no pairs, wrong weights, or only weights of 0."""
    check_interactions(**given)
    check_weights(**given)
    for name, interactions in given.items():
        if interactions.n_pairs == 0:
            raise ValueError(f"{name} has no pairs, so that there is nothing to learn from")
        weights = interactions.weights
        if weights is not None and not isinstance(weights, jax.core.Tracer) and not np.any(weights):
            raise ValueError(f"{name}.weights are all 0, so that there is nothing to learn from; leave weights out")
