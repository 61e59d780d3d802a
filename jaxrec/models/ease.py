"""EASE: a linear autoencoder of items by items, in closed form."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from jaxrec.interactions import Interactions
from jaxrec.models._histories import HistoryModel, Pairs, spread
from jaxrec.typing import Array


class EASE(HistoryModel):
    """Scores X B of users' rows X of 0 and 1 by a table B [N, N] of zero diagonal; `solvers.ease.fit` makes it.

    The parameter is `weights` [N, N] (B). All methods take `histories`, `Interactions` [B, N] of their B users; `users`
    may be None.

    Attributes:
        n_items: N.

    Raises:
        ValueError: for an `n_items` that is not an integer of 1 or more. A call without histories, or with those of
            another number of users or items, is one too.
    """

    def setup(self) -> None:  # noqa: D102
        self.weights = self.param("weights", nn.initializers.zeros, (self.n_items, self.n_items))

    def rows(self, users: Array | None, *, histories: Interactions | None = None) -> Array:
        """Scores [B, N] of all items for users [B]."""
        pairs = self._pairs(users, histories)
        x = jnp.zeros((len(pairs.users), self.n_items), self.weights.dtype)
        return x.at[pairs.rows, pairs.items].set(1, mode="drop") @ self.weights

    def _of_pairs(self, pairs: Pairs, items: Array) -> Array:
        return pairs.sums(jnp.asarray(self.weights)[pairs.items[:, None], spread(items, pairs.rows)])
