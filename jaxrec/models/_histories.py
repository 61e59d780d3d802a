"""Models that know users by their items; those of a batch are one list of pairs, none padded to the longest."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec import sampling
from jaxrec._numerics import as_ids
from jaxrec.interactions import Interactions, check_interactions, owners
from jaxrec.models.mf import check_attributes, check_sizes, checked_ids
from jaxrec.typing import Array, Key


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
        rows = owners(indptr[1:], len(items))
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


def first_items(histories: Interactions, length: int) -> Interactions:
    """The first `length` items by id of each user; the result has room for at most that many items a user."""
    indptr, indices = as_ids(histories.indptr), as_ids(histories.indices)
    degrees = jnp.minimum(indptr[1:] - indptr[:-1], length)
    ends = jnp.cumsum(degrees, dtype=jnp.int32)
    bounds = jnp.concatenate([jnp.zeros(1, jnp.int32), ends])
    room = min(len(indices), histories.n_users * length)
    number = jnp.arange(room, dtype=jnp.int32)
    rows = owners(ends, room)
    places = number + spread(indptr[:-1] - bounds[:-1], rows)
    items = jnp.where(number < ends[-1], indices.at[places].get(mode="clip"), 0) if room else indices
    return Interactions(bounds, items, None, None, histories.n_users, histories.n_items)


def checked_users(
    model: nn.Module, users: Array | None, histories: Interactions | None
) -> tuple[jax.Array | None, Interactions | None]:
    """The users of a call as int32 [B], None for anybody, and their histories.

    Raises:
        TypeError: for histories that are no `Interactions`.
        ValueError: without histories where the model or `users=None` needs them, for histories of another number of
            users or items, and for users that are not [B] or [B, 1].
    """
    name = type(model).__name__
    if histories is None and (model.needs_histories or users is None):
        raise ValueError(
            f"{name} knows users by their items; give histories=, Interactions of these users in this order, such "
            "as train.take(users)"
        )
    if histories is not None:
        check_interactions(histories=histories)
        if histories.n_items != model.n_items:
            raise ValueError(
                f"histories have {histories.n_items} items, {name} has {model.n_items}; give Interactions over its ids"
            )
    if users is None:
        return None, histories
    (users,) = checked_ids(users)
    if histories is None:
        if users.ndim not in (1, 2) or users.shape[1:] not in ((), (1,)):
            raise ValueError(f"users are {list(users.shape)}; give [B] or [B, 1]")
    elif users.shape not in ((histories.n_users,), (histories.n_users, 1)):
        raise ValueError(
            f"users are {list(users.shape)}, and histories are of {histories.n_users} users; give those of these "
            "users in this order, such as train.take(users)"
        )
    return users.reshape(-1), histories


def checked_block(items: Array, n: int, name: str = "items") -> jax.Array:
    """Items of a call for n users as int32 [n, ...] or [1, ...]; one item a user, [n], becomes [n, 1].

    Raises:
        ValueError: for items of another shape.
    """
    (items,) = checked_ids(items)
    if not (items.shape == (n,) or (items.ndim == 2 and items.shape[0] in (1, n))):
        raise ValueError(f"{name} are {list(items.shape)}, for {n} users; give [{n}, n], [1, n] or [{n}]")
    return items.reshape(n, 1) if items.ndim == 1 else items


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
        scores = self._of_pairs(pairs, checked_block(items, len(pairs.users)))
        return scores.reshape(-1) if jnp.ndim(items) == 1 else scores

    def _pairs(self, users: Array | None, histories: Interactions | None, key: Key | None = None) -> Pairs:
        """The pairs of users [B] or [B, 1], or of anybody where `users` is None."""
        users, histories = checked_users(self, users, histories)
        return Pairs.of(histories, users, key)

    def _key(self) -> Key | None:
        """That of the noise, if there is one."""
        return self.make_rng("noise") if self.has_rng("noise") else None
