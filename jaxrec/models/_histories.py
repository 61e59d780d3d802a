"""Models that know users by their items. A batch's items are one list of pairs, without padding to
the longest history.
"""

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
        ended = jnp.zeros(len(items), jnp.int32).at[indptr[1:]].add(1, mode="drop")
        # A pair's row is the number of users whose items end before it. `searchsorted` takes twice
        # the time.
        rows = ended.cumsum(dtype=jnp.int32)
        users = jnp.arange(histories.n_users, dtype=jnp.int32) if users is None else users
        return cls(rows, items, users, indptr[1:] - indptr[:-1], key)

    @property
    def real(self) -> Array:
        """Returns bool [C, 1], False for padding."""
        return (self.rows < len(self.users))[:, None]

    def sums(self, values: Array) -> Array:
        """Returns the sums [B, ...] of values [C, ...] over each user's pairs."""
        return jax.ops.segment_sum(values, self.rows, len(self.users), indices_are_sorted=True)

    def weighted(self, weights: Array, vectors: Array) -> Array:
        """Returns Σ w_k v [B, K, D] over each user's pairs, for weights [C, K] and vectors [C, D];
        never forms [C, K, D].
        """
        return jnp.stack([self.sums(w[:, None] * vectors) for w in weights.T], axis=1)

    def normalised(self, values: Array) -> Array:
        """Divides values [C, K] by the root of the sum of their squares over the user's pairs; 0
        for padding.
        """
        values = jnp.where(self.real, values, 0)
        squares = self.sums(values**2)
        # Both branches of `where` are differentiated: the inner one keeps rsqrt from 0.
        positive = squares > 0
        return values * spread(jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, squares, 1)), 0), self.rows)

    def dropped(self, values: Array, rate: float, *, draw: int) -> Array:
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

    def normal(self, shape: tuple[int, ...], *, draw: int) -> Array:
        """Returns standard normal numbers [B, *shape], which depend on key, draw and user."""
        key = jax.random.fold_in(self.key, draw)
        return jax.vmap(lambda user: jax.random.normal(jax.random.fold_in(key, user), shape))(self.users)


def spread(x: Array, rows: Array) -> Array:
    """Returns the rows [C, ...] of x [B, ...]; x [1, ...] gives the same row to all."""
    return x.at[jnp.zeros_like(rows) if len(x) == 1 else rows].get(mode="clip")


def checked_items(items: ArrayLike, where: ArrayLike | None, n_items: int) -> tuple[jax.Array, jax.Array]:
    """Returns padded histories [B, L] of unseen users as int32 and bool, with L of 1 or more.

    Raises:
        ValueError: if ids are not integers [B, L], rows have different lengths, `where` is not bool
            [B, L], or, unless traced, real ids lie outside 0 .. N - 1.
    """
    items = _block("items", items)
    where = jnp.ones(items.shape, bool) if where is None else _block("where", where)
    if items.size == 0:  # [[]] has NumPy's default dtype, float
        items, where = items.astype(np.int32), where.astype(bool)
    if not jnp.issubdtype(items.dtype, jnp.integer):
        raise ValueError(f"items are {items.dtype}; give integer ids [B, L]")
    if where.dtype != bool or where.shape != items.shape:
        raise ValueError(
            f"where is {where.dtype}{list(where.shape)} and items are {list(items.shape)}; "
            "give a bool for each item, True for real ids"
        )
    if not any(isinstance(x, jax.core.Tracer) for x in (items, where)):
        ids = np.asarray(items)[np.asarray(where)]
        if ids.size and not 0 <= ids.min() <= ids.max() < n_items:
            raise ValueError(f"items run from {ids.min()} to {ids.max()}; ids are 0 .. {n_items - 1}")
    if items.shape[1] == 0:
        items, where = np.zeros((len(items), 1), np.int32), np.zeros((len(items), 1), bool)
    return jnp.asarray(items).astype(jnp.int32), jnp.asarray(where)


def _block(name: str, x: ArrayLike) -> Array:
    """Returns x [B, L] as an array, on the host unless it is JAX's, so that large ids are checked
    before the cast to int32.
    """
    try:
        x = x if isinstance(x, jax.Array) else np.asarray(x)
    except jax.errors.TracerArrayConversionError:  # a list of traced numbers
        x = jnp.asarray(x)
    except ValueError as error:
        raise ValueError(
            f"{name} has rows of different lengths; pad them to one length [B, L] with any id, and "
            "pass where, False "
            "for padding; Interactions.rows returns both"
        ) from error
    if x.ndim != 2:
        raise ValueError(f"{name} has shape {list(x.shape)}; give [B, L], one row per user")
    return x


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

    def __call__(self, users: Array | None, items: Array, *, histories: Interactions | None = None) -> Array:
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
            return jnp.zeros(jnp.broadcast_shapes(jnp.shape(users), jnp.shape(items)))
        pairs = self._pairs(users, histories)
        (items,) = checked_ids(items)
        n = len(pairs.users)
        if not (items.shape == (n,) or (items.ndim == 2 and items.shape[0] in (1, n))):
            raise ValueError(f"items are {list(items.shape)}, for {n} users; give [{n}, n], [1, n] or [{n}]")
        scores = self._of_pairs(pairs, items.reshape(n, 1) if items.ndim == 1 else items)
        return scores.reshape(n) if items.ndim == 1 else scores

    def _pairs(self, users: Array | None, histories: Interactions | None, key: Key | None = None) -> Pairs:
        """Returns the pairs of users [B] or [B, 1], or of unseen users if `users` is None."""
        name = type(self).__name__
        if histories is None:
            raise ValueError(
                f"{name} knows users by their items; pass histories=, the Interactions of these "
                "users in this order, "
                "such as train.take(users)"
            )
        check_interactions(histories=histories)
        if histories.n_items != self.n_items:
            raise ValueError(
                f"histories have {histories.n_items} items, but {name} has {self.n_items}; give "
                "Interactions of its items"
            )
        if users is None:
            return Pairs.of(histories, key=key)
        (users,) = checked_ids(users)
        if users.shape not in ((histories.n_users,), (histories.n_users, 1)):
            raise ValueError(
                f"users are {list(users.shape)}, but histories are of {histories.n_users} users; "
                "give the histories of "
                "these users in this order, such as train.take(users)"
            )
        return Pairs.of(histories, users.reshape(-1), key)

    def _key(self) -> Key | None:
        """Returns the key of the noise, or None for no noise."""
        return self.make_rng("noise") if self.has_rng("noise") else None
