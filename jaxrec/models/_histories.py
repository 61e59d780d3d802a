"""Models that know users by their items; those of a batch are one list of pairs, none padded to the longest."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import sampling
from jaxrec._numerics import as_ids
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.models.mf import check_attributes, check_sizes, checked_ids
from jaxrec.typing import Array, ArrayLike, Key


class Pairs(NamedTuple):
    """The items of B users as one list of C pairs.

    Attributes:
        rows: int32 [C], places in the batch, ascending; B for padding.
        items: int32 [C].
        users: int32 [B], on which noise depends.
        degrees: int32 [B], numbers of items.
        key: of the noise; None for none.
    """

    rows: Array
    items: Array
    users: Array
    degrees: Array
    key: Key | None = None

    @classmethod
    def of(cls, histories: Interactions, users: Array | None = None, key: Key | None = None) -> Pairs:
        """The pairs of `histories` [B, N], whose `indices` may be padded at the end.

        Args:
            histories: the items of the users.
            users: int32 [B]; None is 0 .. B - 1.
            key: of the noise.
        """
        indptr, items = as_ids(histories.indptr), as_ids(histories.indices)
        number = jnp.arange(len(items), dtype=jnp.int32)
        rows = jnp.searchsorted(indptr[1:], number, side="right").astype(jnp.int32)
        users = jnp.arange(histories.n_users, dtype=jnp.int32) if users is None else users
        return cls(rows, items, users, indptr[1:] - indptr[:-1], key)

    @property
    def real(self) -> Array:
        """bool [C, 1], False for padding."""
        return (self.rows < len(self.users))[:, None]

    def sums(self, values: Array) -> Array:
        """Sums [B, ...] over users of values [C, ...]."""
        return jax.ops.segment_sum(values, self.rows, len(self.users), indices_are_sorted=True)

    def weighted(self, weights: Array, vectors: Array) -> Array:
        """Σ w_k v [B, K, D] over users of weights [C, K] and vectors [C, D]; never [C, K, D]."""
        return jnp.stack([self.sums(w[:, None] * vectors) for w in weights.T], axis=1)

    def normalised(self, values: Array) -> Array:
        """Values [C, K] over the root of the sum of their squares over the user's pairs; 0 for padding."""
        values = jnp.where(self.real, values, 0)
        squares = self.sums(values**2)
        there = squares > 0
        return values * spread(jnp.where(there, jax.lax.rsqrt(jnp.where(there, squares, 1)), 0), self.rows)

    def dropped(self, values: Array, rate: float, *, draw: int) -> Array:
        """Values [C, K] with a share set to 0 and the others divided by 1 − rate; `draw` tells draws apart."""
        if self.key is None or rate == 0:
            return values
        k = values.shape[-1]
        halves = -(-k // 2)
        users = spread(self.users, self.rows).astype(jnp.int32)
        lanes = users[:, None] * halves + jnp.arange(halves, dtype=jnp.int32)[None]
        drawn = sampling.uniform_at(jax.random.fold_in(self.key, draw), lanes, self.items[:, None])
        kept = jnp.concatenate(drawn, axis=-1)[:, :k] >= rate
        return jnp.where(kept, values / (1 - rate), 0)

    def normal(self, shape: tuple[int, ...], *, draw: int) -> Array:
        """Standard normal numbers [B, *shape], each user's its own."""
        key = jax.random.fold_in(self.key, draw)
        return jax.vmap(lambda user: jax.random.normal(jax.random.fold_in(key, user), shape))(self.users)


def spread(x: Array, rows: Array) -> Array:
    """The rows [C, ...] of x [B, ...]; of x [1, ...] the same for all."""
    return x.at[jnp.zeros_like(rows) if len(x) == 1 else rows].get(mode="clip")


def checked_items(items: ArrayLike, where: ArrayLike | None, n_items: int) -> tuple[jax.Array, jax.Array]:
    """Padded histories [B, L] of users never seen, as int32 and bool, with L of at least 1.

    Raises:
        ValueError: for ids that are not integers [B, L], rows of different lengths, a `where` that is not bool [B, L],
            and, where they are known, real ids outside 0 .. N - 1.
    """
    items = _block("items", items)
    where = jnp.ones(items.shape, bool) if where is None else _block("where", where)
    if items.size == 0:  # such as [[]], a list without a type
        items, where = items.astype(np.int32), where.astype(bool)
    if not jnp.issubdtype(items.dtype, jnp.integer):
        raise ValueError(f"items are {items.dtype}; give ids, integers [B, L]")
    if where.dtype != bool or where.shape != items.shape:
        raise ValueError(
            f"where is {where.dtype}{list(where.shape)} and items are {list(items.shape)}; give a bool for each of "
            "them, True for real ids"
        )
    if not any(isinstance(x, jax.core.Tracer) for x in (items, where)):
        ids = np.asarray(items)[np.asarray(where)]
        if ids.size and not 0 <= ids.min() <= ids.max() < n_items:
            raise ValueError(f"items run from {ids.min()} to {ids.max()}; ids are 0 .. {n_items - 1}")
    if items.shape[1] == 0:
        items, where = np.zeros((len(items), 1), np.int32), np.zeros((len(items), 1), bool)
    return jnp.asarray(items).astype(jnp.int32), jnp.asarray(where)


def _block(name: str, x: ArrayLike) -> Array:
    """An array [B, L], on the host if it is not JAX's: so that large ids are seen before they are made int32."""
    try:
        x = x if isinstance(x, jax.Array) else np.asarray(x)
    except jax.errors.TracerArrayConversionError:  # a list of traced numbers
        x = jnp.asarray(x)
    except ValueError as error:
        raise ValueError(
            f"{name} has rows of different lengths; pad them to one length [B, L] with any id, and give where, False "
            "for padding, such as Interactions.rows gives both"
        ) from error
    if x.ndim != 2:
        raise ValueError(f"{name} has shape {list(x.shape)}; give [B, L], a row for each user")
    return x


# ---------------------------------------------------------------------- models


class HistoryModel(nn.Module):
    """A model that knows users by their items alone, and so scores anybody.

    Every method takes `histories`, the items of its B users as `Interactions` [B, N]. The histories may come from
    `Interactions.take`, from a batch of `train.by_user`, or be the training interactions themselves where the users
    are all of theirs. `indices` may be padded at the end.

    A subclass makes its parameters in `setup`. It scores pairs in `_of_pairs`, and all items in `rows`; both find
    their `Pairs` by `_pairs`.
    """

    n_items: int

    needs_histories = True

    def __post_init__(self) -> None:
        check_sizes(self, "n_items")
        check_attributes(self)
        super().__post_init__()

    def __call__(self, users: Array | None, items: Array, *, histories: Interactions | None = None) -> Array:
        """Scores of pairs, without noise.

        Args:
            users: integers [B] or [B, 1]; None for anybody.
            items: integers [B, n], or [1, n] for the same items for all users. [B] is one item a user.
            histories: the users' items, `Interactions` [B, N].

        Returns:
            [B, n], or [B] for items [B].

        Raises:
            ValueError: without histories, for histories of another number of users or items, and for items of another
                shape.
        """
        if self.is_initializing():  # `setup` has made all parameters, and a pass would take seconds to compile
            return jnp.zeros(jnp.broadcast_shapes(jnp.shape(users), jnp.shape(items)))
        pairs = self._pairs(users, histories)
        (items,) = checked_ids(items)
        n = len(pairs.users)
        if not (items.shape == (n,) or (items.ndim == 2 and items.shape[0] in (1, n))):
            raise ValueError(f"items are {list(items.shape)}, for {n} users; give [{n}, n], [1, n] or [{n}]")
        scores = self._of_pairs(pairs, items.reshape(n, 1) if items.ndim == 1 else items)
        return scores.reshape(n) if items.ndim == 1 else scores

    def _pairs(self, users: Array | None, histories: Interactions | None, key: Key | None = None) -> Pairs:
        """The pairs of users [B] or [B, 1], or of anybody where `users` is None."""
        name = type(self).__name__
        if histories is None:
            raise ValueError(
                f"{name} knows users by their items; give histories=, Interactions of these users in this order, such "
                "as train.take(users)"
            )
        check_interactions(histories=histories)
        if histories.n_items != self.n_items:
            raise ValueError(
                f"histories have {histories.n_items} items, {name} has {self.n_items}; give Interactions over its ids"
            )
        if users is None:
            return Pairs.of(histories, key=key)
        (users,) = checked_ids(users)
        if users.shape not in ((histories.n_users,), (histories.n_users, 1)):
            raise ValueError(
                f"users are {list(users.shape)}, and histories are of {histories.n_users} users; give those of these "
                "users in this order, such as train.take(users)"
            )
        return Pairs.of(histories, users.reshape(-1), key)

    def _key(self) -> Key | None:
        """That of the noise, if there is one."""
        return self.make_rng("noise") if self.has_rng("noise") else None
