"""Implicit feedback as a compressed sparse row (CSR) matrix of users by items, and its product with dense tables."""

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
from jax.experimental import sparse

from jaxrec.ids import IdMap as IdMap
from jaxrec.ids import checked_ids, checked_timestamps, checked_weights, factorised, found_ids
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

        A pair that comes more than once is merged: its weights are added, its latest timestamp is
        kept, and a `DataWarning` says how many rows were merged.

        Args:
            users: integers [n].
            items: integers [n].
            weights: numbers [n], finite.
            timestamps: numbers [n] that fit int32 (seconds, not milliseconds); fractions are cut off.
            n_users: number of users; by default the largest id plus one, with a `DataWarning` where fewer than a tenth
                of those ids come.
            n_items: likewise for items.

        Raises:
            ValueError: for an empty set, columns of different lengths, ids that are negative, fractional, NaN, not
                numbers, or not below `n_users`/`n_items`, sizes that are not whole, and weights or timestamps that do
                not fit.
        """
        users = checked_ids("users", users, n_users)
        items = checked_ids("items", items, n_items)
        weights = None if weights is None else checked_weights(weights)
        timestamps = None if timestamps is None else checked_timestamps(timestamps)
        for name, column in (("items", items), ("weights", weights), ("timestamps", timestamps)):
            if column is not None and len(column) != len(users):
                raise ValueError(
                    f"{name} has {len(column)} entries and users has {len(users)}; give one entry for each pair"
                )
        if len(users) == 0:
            raise ValueError("users and items are empty; an interaction matrix needs at least one pair")
        for name, size in (("n_users", n_users), ("n_items", n_items)):
            if size is not None and (size != int(size) or size < 1):
                raise ValueError(f"{name}={size}; give a whole number of 1 or more")
        n_users = _number("users", users) if n_users is None else int(n_users)
        n_items = _number("items", items) if n_items is None else int(n_items)
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
        rows = users[order][first]
        return cls(
            indptr=np.searchsorted(rows, np.arange(n_users + 1)).astype(np.int32),
            indices=items[order][first].astype(np.int32),
            weights=None if weights is None else np.add.reduceat(weights[order], first).astype(np.float32),
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
        """Builds the matrix from the caller's own labels (strings or numbers) and returns the map back to them.

        The readers of `jaxrec.data.readers` return just these four columns, so that
        `Interactions.from_labels(*readers.movielens(path))` works.

        Args:
            users: labels [n].
            items: labels [n].
            weights: as `from_pairs` takes them.
            timestamps: likewise.
            id_map: the map to go by, such as that of the train part for a test part of its own; None makes one of the
                labels that come.
            unknown: what to do about a pair with a label that `id_map` lacks: "drop" leaves it out with a
                `DataWarning` of how many went.

        Raises:
            ValueError: as `from_pairs`; also for missing labels (None, NaN), columns that mix types, labels that
                `id_map` lacks, and where none is left.

        >>> train, id_map = Interactions.from_labels(["ann", "bob"], [10, 7])
        >>> test, _ = Interactions.from_labels(["bob"], [10], id_map=id_map)
        >>> test, test.pairs()[1].tolist()
        (Interactions(2 users x 2 items, 1 pairs, density 25.0000%), [1])
        """
        if unknown not in ("raise", "drop") or (unknown == "drop" and id_map is None):
            raise ValueError(f"unknown={unknown!r}; give 'raise', or 'drop' with the id_map to go by")
        user_labels, users = factorised("users", users)
        item_labels, items = factorised("items", items)
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
            ValueError: for a column that the frame lacks, and as `from_labels`.
        """
        columns = []
        for argument, name in (("user", user), ("item", item), ("weight", weight), ("timestamp", timestamp)):
            if name is not None and name not in frame.columns:
                raise ValueError(f"{argument}={name!r} is not a column of the frame; it has {list(frame.columns)}")
            columns.append(None if name is None else frame[name].to_numpy())
        return cls.from_labels(*columns, id_map=id_map, unknown=unknown)

    @classmethod
    def from_scipy(cls, matrix: Any) -> Interactions:
        """Builds the matrix from any SciPy sparse matrix or array; its stored zeros are no interactions.

        Values other than 1 become weights.
        """
        csr = scipy.sparse.csr_array(matrix, copy=True)
        csr.sum_duplicates()
        csr.eliminate_zeros()
        users = np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))
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
        kept = np.r_[0, np.cumsum(keep)].astype(np.int32)
        return dataclasses.replace(
            self,
            indptr=kept[np.asarray(self.indptr)],
            indices=np.asarray(self.indices)[keep],
            weights=None if self.weights is None else np.asarray(self.weights)[keep],
            timestamps=None if self.timestamps is None else np.asarray(self.timestamps)[keep],
        )

    def union(self, *others: Interactions) -> Interactions:
        """The pairs of this and of others over the same ids, such as train and validation in one.

        A pair that several have is merged, as `from_pairs` does it. Weights are kept if one part has any, those of
        others being 1; timestamps if all have them.

        Raises:
            ValueError: for other numbers of users or items, and where no part has a pair.

        >>> train, valid = Interactions.from_pairs([0, 1], [1, 0]), Interactions.from_pairs([0, 1], [0, 1])
        >>> train.union(valid)
        Interactions(2 users x 2 items, 4 pairs, density 100.0000%)
        """
        parts, sizes = (self, *others), (self.n_users, self.n_items)
        for part in others:
            if (part.n_users, part.n_items) != sizes:
                raise ValueError(
                    f"{part.n_users} users x {part.n_items} items beside {sizes[0]} x {sizes[1]}; give parts over the "
                    "same ids, as `n_users` and `n_items` of the constructors make them"
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
            indptr=np.searchsorted(items[order], np.arange(self.n_items + 1)).astype(np.int32),
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
        for column in (self.indptr, self.indices, self.weights):
            if column is not None:
                digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()[:12]

    # ------------------------------------------------------------------ under jit

    @jax.jit
    def contains(self, users: Array, items: Array) -> Array:
        """Whether each pair is stored; `users` and `items` (integers) broadcast, the answer has their shape.

        A binary search in the user's row: log₂ N steps and no [M, N] array. Items outside 0 .. N-1 are not stored.
        """
        chex.assert_type([users, items], int)
        users, items = jnp.broadcast_arrays(jnp.asarray(users), jnp.asarray(items))
        indptr, indices = jnp.asarray(self.indptr), jnp.asarray(self.indices)
        end = indptr[users + 1]

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) // 2
            right = (low < high) & (indices.at[middle].get(mode="clip") < items)
            return jnp.where(right, middle + 1, low), jnp.where(right | (low >= high), high, middle)

        steps = max(self.n_items, 1).bit_length() + 1
        if self.n_pairs == 0:
            return jnp.zeros(users.shape, bool)
        low, _ = jax.lax.fori_loop(0, steps, halve, (indptr[users], end))
        return (low < end) & (indices.at[low].get(mode="clip") == items)

    def rows(self, users: Array, *, length: int) -> tuple[Array, Array]:
        """The items of a block of users, padded.

        Args:
            users: integers [...].
            length: static; the first `length` items of each user are given.

        Returns:
            items int32 [..., length], 0 where padded, and where bool [..., length], True for real entries.
        """
        chex.assert_type(users, int)
        indptr, indices = jnp.asarray(self.indptr), jnp.asarray(self.indices)
        users = jnp.asarray(users)[..., None]
        places = indptr[users] + jnp.arange(length, dtype=jnp.int32).reshape((1,) * (users.ndim - 1) + (-1,))
        where = places < indptr[users + 1]
        if self.n_pairs == 0:
            return jnp.zeros(places.shape, jnp.int32), where
        return jnp.where(where, indices.at[places].get(mode="clip"), 0), where

    def flat_rows(self, users: Array, *, capacity: int) -> tuple[Array, Array, Array]:
        """The items of a block of users as one list of pairs, one user's after another's: padded once, not by user.

        Args:
            users: integers [B].
            capacity: static C; pairs beyond it are left out, so that it must be their number at least.

        Returns:
            rows int32 [C], places in `users`, B where padded; items int32 [C], 0 there; degrees int32 [B].
        """
        chex.assert_type(users, int)
        chex.assert_rank(users, 1)
        indptr, indices = jnp.asarray(self.indptr), jnp.asarray(self.indices)
        users = jnp.asarray(users)
        degrees = indptr[users + 1] - indptr[users]
        ends = jnp.cumsum(degrees)
        number = jnp.arange(capacity, dtype=jnp.int32)
        rows = jnp.searchsorted(ends, number, side="right").astype(jnp.int32)
        if self.n_pairs == 0:
            return rows, jnp.zeros(capacity, jnp.int32), degrees
        row = jnp.minimum(rows, len(users) - 1)
        places = indptr[users[row]] + number - (ends - degrees)[row]
        return rows, jnp.where(rows < len(users), indices.at[places].get(mode="clip"), 0), degrees


def _number(name: str, ids: np.ndarray) -> int:
    """The largest id plus one; says where most ids below are nobody's, as with labels taken for ids."""
    n = int(ids.max()) + 1
    used = np.count_nonzero(np.bincount(ids)) if n <= 10 * len(ids) else len(np.unique(ids))
    if n > 10 * used:
        warnings.warn(
            f"{name} run to {n - 1}, but only {used} of these ids come, and all get rows in models and rankings; "
            f"Interactions.from_labels numbers them without gaps, n_{name}={n} says that the gaps are meant",
            DataWarning,
            stacklevel=3,
        )
    return n


def _known(id_map: IdMap, labels: tuple[np.ndarray, np.ndarray], columns: dict[str, Any]) -> dict[str, Any]:
    """The columns as the ids of `id_map`, rows of which it lacks a label left out.

    Args:
        id_map: labels to go by.
        labels: distinct labels of users and of items.
        columns: "users" and "items" as places in `labels`; "weights" and "timestamps", or None.
    """
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns have different lengths, {lengths}; give one entry for each pair")
    users = found_ids(id_map.users, labels[0])[columns["users"]]
    items = found_ids(id_map.items, labels[1])[columns["items"]]
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


@jax.custom_vjp
def spmm(matrix: Interactions, transposed: Interactions, x: Array) -> Array:
    """Product of the sparse matrix with a dense table: [M, N] @ [N, D] -> [M, D].

    Differentiable in `x` only. The gradient is the product with `transposed`, which the caller makes once by
    `matrix.transpose()`: autodiff through the sparse product would scatter instead.

    On CPU the product is `jax.experimental.sparse.BCSR`'s, elsewhere a gather and a `segment_sum`.

    >>> a = Interactions.from_pairs([0, 0, 1], [0, 2, 1])
    >>> spmm(a, a.transpose(), jnp.eye(3)).tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    del transposed
    chex.assert_shape(x, (matrix.n_items, None))
    weights = jnp.ones(matrix.n_pairs, x.dtype) if matrix.weights is None else jnp.asarray(matrix.weights, x.dtype)
    args = weights, jnp.asarray(matrix.indices), jnp.asarray(matrix.indptr), x
    product = functools.partial(_spmm_bcsr, n_users=matrix.n_users)
    gathered = functools.partial(_spmm_segments, n_users=matrix.n_users)
    return jax.lax.platform_dependent(*args, cpu=product, default=gathered)


def _spmm_bcsr(weights, indices, indptr, x, *, n_users):
    return sparse.BCSR((weights, indices, indptr), shape=(n_users, x.shape[0])) @ x


def _spmm_segments(weights, indices, indptr, x, *, n_users):
    rows = jnp.repeat(jnp.arange(n_users), indptr[1:] - indptr[:-1], total_repeat_length=indices.shape[0])
    return jax.ops.segment_sum(weights[:, None] * x[indices], rows, num_segments=n_users, indices_are_sorted=True)


def _spmm_forward(matrix, transposed, x):
    return spmm(matrix, transposed, x), (matrix, transposed)


def _spmm_backward(residuals, cotangent):
    matrix, transposed = residuals
    return None, None, spmm(transposed, matrix, cotangent)


spmm.defvjp(_spmm_forward, _spmm_backward)
