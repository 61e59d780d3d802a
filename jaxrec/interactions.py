"""Stores implicit feedback as a compressed sparse row (CSR) matrix of users by items."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxrec import _csr, _store
from jaxrec._ids import INT32_MAX, checked_ids, checked_timestamps, checked_weights, column_of, factorised
from jaxrec._ids import IdMap as IdMap
from jaxrec._numerics import as_ids, integer, namespace
from jaxrec._pairs import DataWarning as DataWarning
from jaxrec._pairs import (
    counted,
    known_pairs,
    merged,
    number_of,
    offsets,
    say_missing_as_text,
    slices,
)
from jaxrec.typing import Array, ArrayLike


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["indptr", "indices", "weights", "timestamps"],
    meta_fields=["n_users", "n_items"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """The pairs of users and items that interacted: a CSR matrix as a frozen pytree.

    Row u holds the items of user u in ascending order, each once. The constructors check their
    input and build NumPy arrays on the host. `jax.device_put` moves all arrays to a device, and any
    jitted function takes an `Interactions` as an argument. Functions of this library that need
    interactions raise `TypeError` for any other type; the message says how to convert it.

    `save` writes a set to a folder. `open` maps it into memory, so that only what is used is read.

    Attributes:
        indptr: int32 [M + 1]; the items of user u are `indices[indptr[u]:indptr[u + 1]]`. A set of
            2³¹ pairs or more has int64, and stays on the host.
        indices: int32 [nnz], item ids.
        weights: float32 [nnz] or None, such as counts; None means that every pair has weight 1.
        timestamps: int32 [nnz] or None, seconds since 1970 or any other numbers that order the
            pairs.
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
        """Builds the matrix from ids 0 .. n-1, given as one pair per row, in any order.

        If a pair occurs more than once, its rows are merged: the weights are added (in float64),
        the latest timestamp is kept, and a `DataWarning` says how many rows were merged.

        Args:
            users: user ids, integers [n].
            items: item ids, integers [n].
            weights: finite numbers [n] of any dtype, or None.
            timestamps: datetimes, or numbers that fit int32 (seconds, not milliseconds) [n], or
                None. Fractions are rounded down.
            n_users: number of users M. By default it is the largest id plus one. A `DataWarning`
                then says if fewer than a tenth of the ids below it occur, or if the ids seem to
                start at 1, so that user 0 would have no pairs.
            n_items: number of items N; the default is as for `n_users`. If both numbers are given,
                there may be no pairs.

        Raises:
            ValueError: if there is no pair and not both numbers; if the columns have different
                lengths; if an id is negative, fractional, NaN, not a number, or not below `n_users`
                or `n_items`; if a size is not an integer; if a weight, a sum of weights or a
                timestamp does not fit its dtype.
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
        n_users = number_of("users", users) if n_users is None else n_users
        n_items = number_of("items", items) if n_items is None else n_items
        if len(users) == 0:
            weights = None if weights is None else weights.astype(np.float32)
            return cls(np.zeros(n_users + 1, np.int32), items, weights, timestamps, n_users, n_items)
        return cls(*merged(users, items, weights, timestamps, n_users, n_items), n_users, n_items)

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
        unknown_users: Literal["new"] | None = None,
    ) -> tuple[Interactions, IdMap]:
        """Builds the matrix from your own labels (strings or numbers), and the map of labels.

        Ids follow the sorted order of the labels. The readers of `jaxrec.data.readers` return these
        four columns, so `Interactions.from_labels(*readers.movielens(path))` works.

        All labels of a column must be of one kind. A column that mixes 7 and "7", 1 and 1.0, or 1
        and True raises an error, because it is not clear whether these are one label or two.
        Integers may have any size. A string such as "nan" or "None" is a label, but a `DataWarning`
        says that it looks like a missing value that was turned into text.

        Args:
            users: labels [n].
            items: labels [n].
            weights: see `from_pairs`.
            timestamps: see `from_pairs`.
            id_map: an existing map to use, such as that of the training file for a test file. By
                default a new map is built from the labels. For data with new items, give
                `id_map.extend(items=items)`.
            unknown: what to do with a pair that has a label missing from `id_map`: "raise", or
                "drop", which drops the pair and says how many were dropped in a `DataWarning`.
            unknown_users: "new" gives users that `id_map` lacks ids after its own, as
                `IdMap.extend` does; the returned map has them too. `train.fold_in` computes their
                vectors. None treats them as `unknown` says.

        Returns:
            The matrix, and the `IdMap` between labels and ids.

        Raises:
            ValueError: for the errors of `from_pairs`; for missing labels (None, NaN, pandas.NA,
                the empty string); for labels of several kinds, or of another kind than those of
                `id_map`; for floats too large to represent every whole number; for labels that
                `id_map` lacks; and if no pair is left.

        >>> train, id_map = Interactions.from_labels(["ann", "bob"], [10, 7])
        >>> test, _ = Interactions.from_labels(["bob"], [10], id_map=id_map)
        >>> test, test.pairs()[1].tolist()
        (Interactions(2 users x 2 items, 1 pairs, density 25.0000%), [1])
        """
        if unknown not in ("raise", "drop") or (unknown == "drop" and id_map is None):
            raise ValueError(f"unknown={unknown!r}; give 'raise', or 'drop' together with id_map")
        if unknown_users not in (None, "new") or (unknown_users == "new" and id_map is None):
            raise ValueError(f"unknown_users={unknown_users!r}; give None, or 'new' together with id_map")
        user_labels, users = factorised("users", users)
        item_labels, items = factorised("items", items)
        for name, labels, places in (("users", user_labels, users), ("items", item_labels, items)):
            say_missing_as_text(name, labels, places)
        columns = {"users": users, "items": items, "weights": weights, "timestamps": timestamps}
        if id_map is not None and unknown_users == "new":
            kept = users if unknown == "raise" else users[(id_map.item_ids(item_labels, unknown=-1) >= 0)[items]]
            id_map = id_map.extend(users=user_labels[np.unique(kept)])
        if id_map is None:
            id_map = IdMap(user_labels, item_labels)
        elif unknown == "raise":
            columns |= {"users": id_map.user_ids(user_labels)[users], "items": id_map.item_ids(item_labels)[items]}
        else:
            columns = known_pairs(id_map, (user_labels, item_labels), columns)
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
        unknown_users: Literal["new"] | None = None,
    ) -> tuple[Interactions, IdMap]:
        """Builds the matrix from named columns of a pandas or polars DataFrame.

        `from_labels` describes the labels and the last three arguments.

        Args:
            frame: the DataFrame.
            user: name of the column of user labels.
            item: name of the column of item labels.
            weight: name of the column of weights, or None.
            timestamp: name of the column of timestamps, or None. Datetimes without a time zone are
                UTC.
            id_map: see `from_labels`.
            unknown: see `from_labels`.
            unknown_users: see `from_labels`.

        Returns:
            The matrix, and the `IdMap` between labels and ids.

        Raises:
            ValueError: if a column is missing or occurs twice, and for the errors of `from_labels`.
        """
        columns = []
        for argument, name in (("user", user), ("item", item), ("weight", weight), ("timestamp", timestamp)):
            columns.append(None if name is None else column_of(frame, argument, name))
        return cls.from_labels(*columns, id_map=id_map, unknown=unknown, unknown_users=unknown_users)

    @classmethod
    def from_scipy(cls, matrix: Any) -> Interactions:
        """Builds the matrix from any SciPy sparse matrix or array, of any dtype.

        Entries stored twice are added in float64. Entries that are 0, or whose sum is 0, are
        dropped. If any value differs from 1, the values become weights.

        Raises:
            ValueError: if a value is not a finite real number, or if the matrix is not
                two-dimensional or has no rows or columns.
        """
        import scipy.sparse

        coo = scipy.sparse.coo_array(matrix)
        if coo.ndim != 2 or coo.dtype.kind not in "biuf":
            raise ValueError(f"matrix is {coo.dtype}{list(coo.shape)}; give a matrix of real numbers, users by items")
        # Converting to CSR adds duplicate entries in the matrix's own dtype, which may overflow.
        csr = scipy.sparse.csr_array((coo.data.astype(np.float64), coo.coords), shape=coo.shape)
        csr.sum_duplicates()
        csr.eliminate_zeros()
        users = np.repeat(np.arange(csr.shape[0], dtype=np.int64), np.diff(csr.indptr))
        weights = None if (csr.data == 1).all() else csr.data
        return cls.from_pairs(users, csr.indices, weights=weights, n_users=csr.shape[0], n_items=csr.shape[1])

    @classmethod
    def from_parts(cls, parts: Iterable[Interactions], folder: str | os.PathLike) -> Interactions:
        """Builds the union of parts in a folder, for data that are larger than memory.

        The pairs are those of `union`. Each part is saved, and then the pairs of some users at a
        time are read from all parts and merged. The parts need the same disk space again while the
        set is built.

        Args:
            parts: the parts, over the same ids, such as a generator that calls `from_pairs` with
                `n_users` and `n_items` for each piece of a file. Only one is in memory at a time.
            folder: path of a new folder.

        Returns:
            The set, opened from the folder.

        Raises:
            TypeError: if a part has another type.
            ValueError: if there are no parts, if their numbers of users or items differ, or if the
                folder exists and is not empty.
        """
        folders: list[Any] = []
        first: tuple[Interactions, ...] = ()
        n_given = 0
        with _store.new_folder(folder) as temporary:
            for number, part in enumerate(parts):
                check_interactions(**{f"parts[{number}]": part})
                _check_same_ids((*first, part))
                folders.append(temporary / f"part{number}")
                part.save(folders[-1])
                n_given += int(part.indptr[-1])
                first = first or (cls.open(folders[0]),)
            if not folders:
                raise ValueError("parts is empty; give at least one Interactions")
            n_pairs = _store.write_union(folders, cls.open, temporary)
            for each in folders:
                shutil.rmtree(each)
        if repeats := n_given - n_pairs:
            warnings.warn(f"merged {repeats} duplicate pairs of the parts", DataWarning, stacklevel=2)
        return cls.open(folder)

    # ------------------------------------------------------------------ in a folder

    def save(self, folder: str | os.PathLike) -> None:
        """Saves the set to a folder of npy files, which `open` reads.

        The folder is complete or absent: the files are written to a temporary folder, which is then
        renamed. An error or Ctrl-C removes it. A process that is killed may leave a
        hidden folder whose name ends with ".partial"; remove it.

        Args:
            folder: path of a new or empty folder.

        Raises:
            TypeError: if `folder` is not a path.
            ValueError: if the folder exists and is not empty, or is the current folder.
            OSError: if it cannot be written.
        """
        columns = {name: getattr(self, name) for name in ("indptr", "weights", "timestamps")}
        columns["indices"] = self._real_indices()
        with _store.new_folder(folder) as temporary:
            _store.write(temporary, columns | {"shape": np.array([self.n_users, self.n_items], np.int64)})

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Interactions:
        """Opens a saved set without reading the pairs: NumPy maps the files into memory, read-only.

        The operating system reads the parts of the files that are used, and drops them from memory
        if it needs the space. `take`, `contains` and rankings of some users read only the rows of
        these users. `select`, `item_degrees` and `fingerprint` read the pairs in blocks. `pairs`,
        `union`, `transpose` and the splits need arrays [nnz] in memory, and a function on the
        device needs the whole set there. `train.streamed` trains without either.

        Args:
            folder: a folder that `save` or `from_parts` has written.

        Raises:
            TypeError: if `folder` is not a path.
            ValueError: if the folder or a file is missing, or the files do not fit each other. The
                ids are not read, and thus not checked; compare `fingerprint` to do so.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Interactions.from_pairs([0, 2], [1, 0]).save(f"{folder}/train")
        ...     Interactions.open(f"{folder}/train")
        Interactions(3 users x 2 items, 2 pairs, density 33.3333%)
        """
        found = _store.read(folder)
        n_users, n_items = found.pop("shape").tolist()
        return cls(**found, n_users=n_users, n_items=n_items)

    # ------------------------------------------------------------------ on the host

    @property
    def n_pairs(self) -> int:
        """Number of stored pairs, nnz."""
        return self.indices.shape[0]

    @property
    def user_degrees(self) -> Array:
        """Number of items of each user, [M], of the dtype of `indptr`."""
        return self.indptr[1:] - self.indptr[:-1]

    @property
    def item_degrees(self) -> np.ndarray:
        """Number of users of each item, int64 [N], on the host."""
        indices, degrees = self._real_indices(), np.zeros(self.n_items, np.int64)
        for part in slices(len(indices)):
            degrees += np.bincount(indices[part], minlength=self.n_items)
        return degrees

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns all pairs as (users, items), int32 [nnz] each, sorted by user and item.

        The arrays are on the host.
        """
        degrees = np.diff(np.asarray(self.indptr))
        return np.repeat(np.arange(self.n_users, dtype=np.int32), degrees), self._real_indices()

    def _real_indices(self) -> np.ndarray:
        """Returns the items without the padding of `take`, on the host."""
        return np.asarray(self.indices)[: int(self.indptr[-1])]

    def select(self, keep: ArrayLike) -> Interactions:
        """Returns the pairs where `keep` is True, over the same ids; the result may be empty.

        Args:
            keep: bool [nnz], in the order of `pairs`.

        Raises:
            ValueError: if `keep` has another shape or dtype.
        """
        keep = np.asarray(keep)
        if keep.shape != (self.n_pairs,) or keep.dtype != bool:
            raise ValueError(f"keep is {keep.dtype}{list(keep.shape)}; give one bool for each of {self.n_pairs} pairs")
        return dataclasses.replace(
            self,
            indptr=offsets(counted(keep, np.asarray(self.indptr))),
            indices=np.asarray(self.indices)[keep],
            weights=None if self.weights is None else np.asarray(self.weights)[keep],
            timestamps=None if self.timestamps is None else np.asarray(self.timestamps)[keep],
        )

    def union(self, *others: Interactions) -> Interactions:
        """Returns the pairs of this set and of others over the same ids, such as train and valid.

        A pair that occurs in several sets is merged as in `from_pairs`. If any set has weights, so
        does the result, and pairs of sets without weights count 1. The result has timestamps only
        if all sets have them.

        Raises:
            ValueError: if the numbers of users or items differ.

        >>> train, valid = Interactions.from_pairs([0, 1], [1, 0]), Interactions.from_pairs([0, 1], [0, 1])
        >>> train.union(valid)
        Interactions(2 users x 2 items, 4 pairs, density 100.0000%)
        """
        parts = (self, *others)
        _check_same_ids(parts)
        users, items = (np.concatenate(ids) for ids in zip(*(part.pairs() for part in parts)))
        more: dict[str, Any] = {"n_users": self.n_users, "n_items": self.n_items}
        if any(part.weights is not None for part in parts):
            columns = (np.ones(part.n_pairs, np.float32) if part.weights is None else part.weights for part in parts)
            more["weights"] = np.concatenate([np.asarray(column) for column in columns])
        if all(part.timestamps is not None for part in parts):
            more["timestamps"] = np.concatenate([np.asarray(part.timestamps) for part in parts])
        return Interactions.from_pairs(users, items, **more)

    def extend(self, *, n_users: int | None = None, n_items: int | None = None) -> Interactions:
        """Returns the same pairs over more users or items, whose ids follow the known ones.

        Args:
            n_users: the new M, at least the present one; None keeps it.
            n_items: the new N, likewise.

        Raises:
            ValueError: if a size is not an integer, or smaller than the present one.

        >>> Interactions.from_pairs([0, 1], [1, 0]).extend(n_users=5)
        Interactions(5 users x 2 items, 2 pairs, density 20.0000%)
        """
        n_users = self.n_users if n_users is None else integer("n_users", n_users, least=self.n_users, most=INT32_MAX)
        n_items = self.n_items if n_items is None else integer("n_items", n_items, least=self.n_items, most=INT32_MAX)
        indptr = np.pad(np.asarray(self.indptr), (0, n_users - self.n_users), mode="edge")
        return dataclasses.replace(self, indptr=indptr, n_users=n_users, n_items=n_items)

    def transpose(self) -> Interactions:
        """Returns the same pairs as a matrix of items by users, on the host."""
        users, items = self.pairs()
        order = np.argsort(items, kind="stable")
        return Interactions(
            indptr=offsets(np.searchsorted(items[order], np.arange(self.n_items + 1, dtype=np.int64))),
            indices=users[order],
            weights=None if self.weights is None else np.asarray(self.weights)[order],
            timestamps=None if self.timestamps is None else np.asarray(self.timestamps)[order],
            n_users=self.n_items,
            n_items=self.n_users,
        )

    def to_scipy(self) -> Any:
        """Returns a SciPy CSR array [M, N] of the weights (float32; 1 if there are no weights)."""
        import scipy.sparse

        values = np.ones(self.n_pairs, np.float32) if self.weights is None else np.asarray(self.weights)
        shape = (self.n_users, self.n_items)
        return scipy.sparse.csr_array((values, np.asarray(self.indices), np.asarray(self.indptr)), shape=shape)

    def fingerprint(self) -> str:
        """Returns 12 hexadecimal digits of a SHA-256 of shape, pairs and weights."""
        digest = hashlib.sha256(f"{self.n_users},{self.n_items}".encode())
        rows = offsets(np.asarray(self.indptr))
        for column, dtype in ((rows, rows.dtype), (self.indices, np.int32), (self.weights, np.float32)):
            column = np.zeros(0, dtype) if column is None else np.asarray(column)
            for part in slices(len(column)):
                digest.update(np.ascontiguousarray(column[part], dtype).data)
        return digest.hexdigest()[:12]

    # ------------------------------------------------------------------ under jit

    def contains(self, users: Array, items: Array) -> Array:
        """Tells for each pair whether it is stored.

        A binary search in the user's row takes log₂ N steps; no array [M, N] is formed. A pair
        whose user is outside 0 .. M-1 or whose item is outside 0 .. N-1 is not stored.

        Args:
            users: integers [...].
            items: integers [...] that broadcast with `users`.

        Returns:
            bool, of the broadcast shape; a NumPy array if users, items and the matrix are NumPy's.
        """
        users, items = (x if isinstance(x, jax.Array) else np.asarray(x) for x in (users, items))
        chex.assert_type([users, items], int)
        if namespace(users, items, self.indptr, self.indices) is np:
            return _csr.contains_on_host(self, *np.broadcast_arrays(users, items))
        return _csr.contains(self, as_ids(users), as_ids(items))

    def rows(self, users: Array, *, length: int) -> tuple[Array, Array]:
        """Returns the items of a block of users as padded rows.

        Args:
            users: integers [...]; a user outside 0 .. M-1 has no items.
            length: static; only the first `length` items of each user are returned.

        Returns:
            items int32 [..., length], 0 where padded; and where bool [..., length], True for real
            entries.
        """
        chex.assert_type(users, int)
        length = integer("length", length, least=0)
        first, degrees = _csr.row_bounds(self, as_ids(users)[..., None])
        number = jnp.arange(length, dtype=jnp.int32).reshape((1,) * (first.ndim - 1) + (-1,))
        where = number < degrees
        if self.n_pairs == 0:
            return jnp.zeros(where.shape, jnp.int32), where
        # Padded places may lie past the end of `indices`.
        return jnp.where(where, jnp.asarray(self.indices).at[first + number].get(mode="clip"), 0), where

    def flat_rows(self, users: Array, *, capacity: int) -> tuple[Array, Array, Array]:
        """Returns the items of a block of users as one flat, padded list, user after user.

        Args:
            users: integers [B]; a user outside 0 .. M-1 has no items.
            capacity: static length C of the list. It must be at least the number of pairs of these
                users: pairs beyond it are silently left out.

        Returns:
            rows int32 [C], the position of each pair's user in `users`, B where padded; items int32
            [C], 0 where padded; and degrees int32 [B], the number of items of each user.
        """
        chex.assert_type(users, int)
        chex.assert_rank(users, 1)
        capacity = integer("capacity", capacity, least=0)
        first, degrees = _csr.row_bounds(self, as_ids(users))
        ends = jnp.cumsum(degrees, dtype=jnp.int32)
        number = jnp.arange(capacity, dtype=jnp.int32)
        rows = _csr.owners(ends, capacity)
        if self.n_pairs == 0 or not len(first):
            return rows, jnp.zeros(capacity, jnp.int32), degrees
        row = jnp.minimum(rows, len(first) - 1)
        # ends - degrees is where a user's items start in the flat list.
        places = (first - ends + degrees)[row] + number
        return rows, jnp.where(rows < len(first), jnp.asarray(self.indices).at[places].get(mode="clip"), 0), degrees

    def take(self, users: ArrayLike, *, capacity: int | None = None) -> Interactions:
        """Returns the rows of a block of users as `Interactions` [B, N]: the `histories` of models.

        The rows are in the order of `users`. Weights and timestamps are left out.

        Args:
            users: integers [B]. A user outside 0 .. M-1 has no items; a user given twice has two
                rows.
            capacity: static length of `indices`, which is padded with 0; models and evaluation
                ignore the padding. None uses the number of pairs of these users. Under `jit` it is
                required, and pairs beyond it are silently left out.

        Raises:
            ValueError: if the capacity is smaller than the number of pairs (not under `jit`), or if
                it is None under `jit`.

        >>> Interactions.from_pairs([0, 0, 2], [1, 3, 0]).take([2, 1, 0]).pairs()[1].tolist()
        [0, 1, 3]
        """
        if not any(isinstance(x, jax.core.Tracer) for x in (users, self.indptr, self.indices)):
            return self._taken(np.asarray(users), capacity)
        if capacity is None:
            raise ValueError("the users are traced; give capacity, the largest number of their pairs")
        _, items, degrees = self.flat_rows(users, capacity=capacity)
        ends = jnp.minimum(jnp.cumsum(degrees, dtype=jnp.int32), capacity)
        indptr = jnp.concatenate([jnp.zeros(1, jnp.int32), ends])
        return Interactions(indptr, items, None, None, len(users), self.n_items)

    def _taken(self, users: np.ndarray, capacity: int | None) -> Interactions:
        """Does the work of `take` on the host."""
        chex.assert_type(users, int)
        chex.assert_rank(users, 1)
        known = (users >= 0) & (users < self.n_users)
        users = np.where(known, users, 0).astype(np.int64)
        # Without users, unknown users still look up row 0.
        indptr = np.asarray(self.indptr) if self.n_users else np.zeros(2, np.int32)
        first = indptr[users].astype(np.int64)
        degrees = np.where(known, indptr[users + 1] - first, 0)
        ends = np.cumsum(degrees)
        n = int(ends[-1]) if len(ends) else 0
        if capacity is not None and integer("capacity", capacity, least=0) < n:
            raise ValueError(f"capacity={capacity}, but these users have {n} pairs; give {n} or more")
        items, indices = np.zeros(n if capacity is None else int(capacity), np.int32), np.asarray(self.indices)
        if n and known.all() and (np.diff(users) == 1).all():
            items[:n] = indices[first[0] : first[0] + n]  # consecutive users
        else:
            items[:n] = indices[np.arange(n) + np.repeat(first - ends + degrees, degrees)]
        return Interactions(offsets(np.r_[0, ends]), items, None, None, len(users), self.n_items)


# `jax.export` stores functions of interactions, for which it must know how to write the sizes.
export.register_pytree_node_serialization(
    Interactions,
    serialized_name="jaxrec.Interactions",
    serialize_auxdata=lambda sizes: json.dumps(sizes).encode(),
    deserialize_auxdata=lambda stored: tuple(json.loads(stored)),
)


def _check_same_ids(parts: Sequence[Interactions]) -> None:
    """Raises `ValueError` if parts have different numbers of users or items."""
    sizes = parts[0].n_users, parts[0].n_items
    for part in parts[1:]:
        if (part.n_users, part.n_items) != sizes:
            raise ValueError(
                f"the parts have {part.n_users} users x {part.n_items} items and {sizes[0]} x {sizes[1]}; give "
                "parts over the same ids, by passing n_users and n_items to the constructors"
            )


def check_interactions(**given: Any) -> None:
    """Raises `TypeError` for an argument that is not an `Interactions`; says how to convert it.

    >>> import scipy.sparse
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
            instead = f"{name}[0], the first entry of this tuple"
        elif type(value).__module__.startswith("scipy.sparse"):
            instead = f"Interactions.from_scipy({name})"
        elif hasattr(value, "columns"):
            instead = f"Interactions.from_dataframe({name}, ...)"
        else:
            instead = "Interactions.from_pairs(users, items), from_labels or from_scipy"
        raise TypeError(f"{name} is a {type(value).__name__}; give Interactions: {instead}")


def check_weights(**given: Interactions) -> None:
    """Raises `ValueError` for interactions with a negative or non-finite weight.

    Traced weights are not checked.
    """
    for name, interactions in given.items():
        if interactions.weights is None or isinstance(interactions.weights, jax.core.Tracer):
            continue
        weights, first, n_bad = np.asarray(interactions.weights), None, 0
        for part in slices(len(weights)):
            bad = np.flatnonzero(~((weights[part] >= 0) & (weights[part] < np.inf)))
            if len(bad) and first is None:
                first = part.start + int(bad[0])
            n_bad += len(bad)
        if first is not None:
            raise ValueError(
                f"{name}.weights[{first}] is {weights[first]} ({n_bad} such); weights of implicit feedback are finite "
                "and 0 or more: drop these pairs, or leave weights out"
            )


def check_positives(**given: Any) -> None:
    """Raises an error for interactions that nothing can be learned from.

    These are: another type than `Interactions`, no pairs, a negative or non-finite weight, and only
    weights of 0.
    """
    check_interactions(**given)
    check_weights(**given)
    for name, interactions in given.items():
        if interactions.n_pairs == 0:
            raise ValueError(f"{name} has no pairs, so there is nothing to learn from; give at least one")
        weights = interactions.weights
        if weights is not None and not isinstance(weights, jax.core.Tracer) and not np.any(weights):
            raise ValueError(f"{name}.weights are all 0, so there is nothing to learn from; leave weights out")
