"""Rankers that learn nothing about a user, which every table of results should include.

Each function returns `(model, variables)`, which are evaluated like a trained model.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec._keys import check_key
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.models.mf import check_sizes, checked_ids
from jaxrec.typing import Array, Key, Variables


class ItemRanker(nn.Module):
    """One score per item, the same for all users."""

    n_items: int

    def __post_init__(self) -> None:
        check_sizes(self, "n_items")
        super().__post_init__()

    def setup(self) -> None:  # noqa: D102
        self.item = self.param("item", nn.initializers.zeros, (self.n_items,))

    def __call__(self, users: Array, items: Array) -> jax.Array:
        """Scores pairs of ids that broadcast."""
        return jnp.broadcast_to(self.item[items], jnp.broadcast_shapes(jnp.shape(users), jnp.shape(items)))

    def rows(self, users: Array) -> jax.Array:
        """Scores all items for users [B] -> [B, N]."""
        return jnp.broadcast_to(self.item, (*jnp.shape(users), self.n_items))


class RandomRanker(nn.Module):
    """Scores that are a pure function of seed, user and item: an integer hash of the three."""

    n_items: int

    def __post_init__(self) -> None:
        check_sizes(self, "n_items")
        super().__post_init__()

    def setup(self) -> None:  # noqa: D102
        self.seed = self.param("seed", _seed)

    def __call__(self, users: Array, items: Array) -> jax.Array:
        """Scores pairs of ids that broadcast, uniform on [0, 1)."""
        users, items = checked_ids(users, items)
        hashed = _mixed(_mixed(self.seed ^ users.astype(jnp.uint32)) ^ items.astype(jnp.uint32))
        # 24 bits, which float32 holds exactly.
        return (hashed >> 8).astype(jnp.result_type(float)) / 2**24

    def rows(self, users: Array) -> jax.Array:
        """Scores all items for users [B] -> [B, N]."""
        return self(jnp.asarray(users)[:, None], jnp.arange(self.n_items, dtype=jnp.int32)[None, :])


def _seed(key: Key) -> jax.Array:
    return jax.random.bits(key, dtype=jnp.uint32)


def _mixed(x: Array) -> jax.Array:
    """Applies MurmurHash3's 32-bit finaliser (A. Appleby), in which each bit affects all bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def popularity(train: Interactions) -> tuple[ItemRanker, Variables]:
    """Returns a ranker of items by their number of training users."""
    check_interactions(train=train)
    return ItemRanker(train.n_items), {"params": {"item": jnp.asarray(train.item_degrees, float)}}


def item_id(n_items: int, *, descending: bool = False) -> tuple[ItemRanker, Variables]:
    """Returns a ranker of items by their id. Its metrics show how far ids leak the split."""
    model = ItemRanker(n_items)
    ids = jnp.arange(model.n_items, dtype=float)
    return model, {"params": {"item": ids if descending else -ids}}


def random(key: Key, n_items: int) -> tuple[RandomRanker, Variables]:
    """Returns a ranker of items in random order, a different one for each user."""
    check_key(key)
    return RandomRanker(n_items), {"params": {"seed": _seed(key)}}
