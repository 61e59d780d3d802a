"""Models that know users by their items.

The items of a batch are one list of pairs, which needs no padding to the longest history.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec import sampling
from jaxrec._csr import owners
from jaxrec._keys import drawn
from jaxrec._numerics import as_ids
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.models.mf import check_attributes, check_sizes, checked_ids
from jaxrec.typing import Array, Key


class Pairs(NamedTuple):
    """The items of B users as one list of C pairs.

    Attributes:
        rows: int32 [C], the user's row in the batch, ascending; B for padding.
        items: int32 [C].
        users: int32 [B], the ids from which noise is drawn.
        degrees: int32 [B], numbers of items.
        key: typed key of the noise; None for no noise.
    """

    rows: Array
    items: Array
    users: Array
    degrees: Array
    key: Key | None = None

    @classmethod
    def of(cls, histories: Interactions, users: Array | None = None, key: Key | None = None) -> Pairs:
        """Returns the pairs of `histories` [B, N], whose `indices` may be padded at the end.

        Args:
            histories: the items of the users.
            users: int32 [B]; None is 0 .. B - 1.
            key: typed key of the noise; None for no noise.
        """
        indptr, items = as_ids(histories.indptr), as_ids(histories.indices)
        rows = owners(indptr[1:], len(items))
        users = jnp.arange(histories.n_users, dtype=jnp.int32) if users is None else users
        return cls(rows, items, users, indptr[1:] - indptr[:-1], key)

    @property
    def real(self) -> jax.Array:
        """Returns bool [C, 1], False for padding."""
        return (self.rows < len(self.users))[:, None]

    def sums(self, values: Array) -> jax.Array:
        """Returns the sums [B, ...] of values [C, ...] over each user's pairs."""
        return jax.ops.segment_sum(values, self.rows, len(self.users), indices_are_sorted=True)

    def weighted(self, weights: Array, vectors: Array) -> jax.Array:
        """Returns Σ w_k v [B, K, D] over each user's pairs, without an array [C, K, D].

        Args:
            weights: w, [C, K].
            vectors: v, [C, D].
        """
        return jnp.stack([self.sums(w[:, None] * vectors) for w in weights.T], axis=1)

    def normalised(self, values: Array) -> jax.Array:
        """Divides values [C, K] by their norm over the user's pairs; padding gets 0."""
        values = jnp.where(self.real, values, 0)
        squares = self.sums(values**2)
        # Both branches of `where` are differentiated: the inner one keeps rsqrt from 0.
        positive = squares > 0
        return values * spread(jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, squares, 1)), 0), self.rows)

    def dropped(self, values: Array, rate: float, *, draw: int) -> jax.Array:
        """Sets a share `rate` of the values [C, K] to 0 and divides the others by 1 − rate.

        Each `draw` gives other noise. Noise depends on key, user and item, and not on the place in
        the batch.
        """
        if self.key is None or rate == 0:
            return values
        k = values.shape[-1]
        halves = -(-k // 2)
        users = spread(self.users, self.rows).astype(jnp.int32)
        # `uniform_at` gives two numbers per counter, so that K values need half as many counters.
        counters = users[:, None] * halves + jnp.arange(halves, dtype=jnp.int32)[None]
        drawn = sampling.uniform_at(jax.random.fold_in(self.key, draw), counters, self.items[:, None])
        kept = jnp.concatenate(drawn, axis=-1)[:, :k] >= rate
        return jnp.where(kept, values / (1 - rate), 0)

    def normal(self, shape: tuple[int, ...], *, draw: int) -> jax.Array:
        """Returns standard normal numbers [B, *shape], which depend on key, draw and user."""
        assert self.key is not None
        key = jax.random.fold_in(self.key, draw)
        return jax.vmap(lambda user: drawn(jax.random.normal, jax.random.fold_in(key, user), shape))(self.users)


def spread(x: Array, rows: Array) -> jax.Array:
    """Returns the rows [C, ...] of x [B, ...]; x [1, ...] gives the same row to all."""
    return jnp.asarray(x).at[jnp.zeros_like(rows) if len(x) == 1 else rows].get(mode="clip")


def first_items(histories: Interactions, length: int) -> Interactions:
    """Returns the first `length` items by id of each user.

    The result has room for at most `length` items per user.
    """
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
    """Returns the users of a call as int32 [B], or None for unseen users, and their histories.

    Raises:
        TypeError: if `histories` is not an `Interactions`.
        ValueError: if `histories` is missing although the model or `users=None` needs it, or has
            another number of users or items; or if users are not [B] or [B, 1].
    """
    name = type(model).__name__
    if histories is None and (model.needs_histories or users is None):
        raise ValueError(
            f"{name} knows users by their items; pass histories=, the Interactions of these users in this order, such "
            "as train.take(users)"
        )
    if histories is not None:
        check_interactions(histories=histories)
        if histories.n_items != model.n_items:
            raise ValueError(
                f"histories have {histories.n_items} items, but {name} has {model.n_items}; give Interactions of its "
                "items"
            )
    if users is None:
        return None, histories
    (users,) = checked_ids(users)
    if histories is None:
        if users.ndim not in (1, 2) or users.shape[1:] not in ((), (1,)):
            raise ValueError(f"users are {list(users.shape)}; give [B] or [B, 1]")
    elif users.shape not in ((histories.n_users,), (histories.n_users, 1)):
        raise ValueError(
            f"users are {list(users.shape)}, but histories are of {histories.n_users} users; give the histories of "
            "these users in this order, such as train.take(users)"
        )
    return users.reshape(-1), histories


def checked_block(items: Array, n: int, name: str = "items") -> jax.Array:
    """Returns the items of a call for n users as int32 [n, ...] or [1, ...].

    One item per user, [n], becomes [n, 1].

    Raises:
        ValueError: if items have another shape.
    """
    (items,) = checked_ids(items)
    if not (items.shape == (n,) or (items.ndim == 2 and items.shape[0] in (1, n))):
        raise ValueError(f"{name} are {list(items.shape)}, for {n} users; give [{n}, n], [1, n] or [{n}]")
    return items.reshape(n, 1) if items.ndim == 1 else items


# ---------------------------------------------------------------------- models


class HistoryModel(nn.Module):
    """A model that knows users only by their items, and therefore scores unseen users too.

    Every method takes `histories`, the items of its B users as `Interactions` [B, N]. They come
    from `Interactions.take` or from a batch of `train.by_user`. For all users of the training
    interactions, they are these interactions themselves. `indices` may be padded at the end.

    A subclass creates its parameters in `setup`. It scores pairs in `_of_pairs`, and all items in
    `rows`; both get their `Pairs` from `_pairs`.
    """

    n_items: int

    needs_histories = True

    def __post_init__(self) -> None:
        check_sizes(self, "n_items")
        check_attributes(self)
        super().__post_init__()

    def __call__(self, users: Array | None, items: Array, *, histories: Interactions | None = None) -> jax.Array:
        """Scores pairs, without noise.

        Args:
            users: integers [B] or [B, 1]; None for unseen users.
            items: integers [B, n], or [1, n] for the same items for all users. [B] is one item per
                user.
            histories: the users' items, `Interactions` [B, N].

        Returns:
            [B, n], or [B] for items [B].

        Raises:
            ValueError: if `histories` is missing or has another number of users or items, or
                `items` has another shape.
        """
        if self.is_initializing():  # `setup` creates all parameters; compiling a pass is slow
            return jnp.zeros(jnp.broadcast_shapes(() if users is None else jnp.shape(users), jnp.shape(items)))
        pairs = self._pairs(users, histories)
        scores = self._of_pairs(pairs, checked_block(items, len(pairs.users)))
        return scores.reshape(-1) if jnp.ndim(items) == 1 else scores

    def _pairs(self, users: Array | None, histories: Interactions | None, key: Key | None = None) -> Pairs:
        """Returns the pairs of users [B] or [B, 1], or of unseen users if `users` is None."""
        users, histories = checked_users(self, users, histories)
        assert histories is not None  # `needs_histories` is True
        return Pairs.of(histories, users, key)

    def _key(self) -> Key | None:
        """Returns the key of the noise, or None for no noise."""
        return self.make_rng("noise") if self.has_rng("noise") else None
