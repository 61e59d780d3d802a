"""EASE: a linear autoencoder with a table of items by items, fitted in closed form."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.interactions import Interactions
from jaxrec.models._histories import HistoryModel, Pairs, spread
from jaxrec.typing import Array


class EASE(HistoryModel):
    """Scores users' rows X of 0 and 1 as X B, with a table B [N, N] of zero diagonal.

    `solvers.ease.fit` computes B. The parameter is `weights` [N, N] (B). All methods take
    `histories`, the `Interactions` [B, N] of their B users; `users` may be None.

    Attributes:
        n_items: N.

    Raises:
        ValueError: if `n_items` is not an integer of 1 or more; in a call, if `histories` is
            missing or has another number of users or items.
    """

    def setup(self) -> None:  # noqa: D102
        self.weights = self.param("weights", nn.initializers.zeros, (self.n_items, self.n_items))

    def rows(self, users: Array | None, *, histories: Interactions | None = None) -> jax.Array:
        """Scores all items for users [B] -> [B, N]."""
        pairs = self._pairs(users, histories)
        x = jnp.zeros((len(pairs.users), self.n_items), self.weights.dtype)
        return x.at[pairs.rows, pairs.items].set(1, mode="drop") @ self.weights

    def _of_pairs(self, pairs: Pairs, items: Array) -> jax.Array:
        return pairs.sums(jnp.asarray(self.weights)[pairs.items[:, None], spread(items, pairs.rows)])
