"""Rankers that learn nothing about a user: what every results table must beat.

Each function returns `(model, variables)`, to be evaluated as any trained model.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.interactions import Interactions, check_interactions
from jaxrec.typing import Array, Key, Variables


class ItemRanker(nn.Module):
    """One score for each item, the same for all users."""

    n_items: int

    def setup(self) -> None:  # noqa: D102
        self.item = self.param("item", nn.initializers.zeros, (self.n_items,))

    def __call__(self, users: Array, items: Array) -> Array:
        """Scores of the pairs."""
        return jnp.broadcast_to(self.item[items], jnp.broadcast_shapes(jnp.shape(users), jnp.shape(items)))

    def rows(self, users: Array) -> Array:
        """Scores of all items for users [B] -> [B, N]."""
        return jnp.broadcast_to(self.item, (*jnp.shape(users), self.n_items))


class RandomRanker(nn.Module):
    """Scores that are a pure function of seed, user and item: an integer hash of the three."""

    n_items: int

    def setup(self) -> None:  # noqa: D102
        self.seed = self.param("seed", jax.random.bits)

    def __call__(self, users: Array, items: Array) -> Array:
        """Scores of the pairs, uniform on [0, 1)."""
        hashed = _mixed(_mixed(self.seed ^ users.astype(jnp.uint32)) ^ items.astype(jnp.uint32))
        return (hashed >> 8).astype(jnp.float32) / 2**24

    def rows(self, users: Array) -> Array:
        """Scores of all items for users [B] -> [B, N]."""
        return self(users[:, None], jnp.arange(self.n_items)[None, :])


def _mixed(x: Array) -> Array:
    """MurmurHash3's 32-bit finaliser (A. Appleby): each bit of the input moves each bit of the output."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def popularity(train: Interactions) -> tuple[ItemRanker, Variables]:
    """Ranks items by their number of training users."""
    check_interactions(train=train)
    return ItemRanker(train.n_items), {"params": {"item": jnp.asarray(train.item_degrees.astype(np.float32))}}


def item_id(n_items: int, *, descending: bool = False) -> tuple[ItemRanker, Variables]:
    """Ranks items by their id: what it scores shows how far ids leak the split."""
    ids = jnp.arange(n_items, dtype=jnp.float32)
    return ItemRanker(n_items), {"params": {"item": ids if descending else -ids}}


def random(key: Key, n_items: int) -> tuple[RandomRanker, Variables]:
    """Ranks items at random, anew for each user."""
    return RandomRanker(n_items), {"params": {"seed": jax.random.bits(key)}}
