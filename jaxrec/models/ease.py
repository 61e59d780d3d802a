"""EASE: a linear autoencoder of items by items, in closed form."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxrec.models._histories import HistoryModel
from jaxrec.typing import Array


class EASE(HistoryModel):
    """Scores X B of users' rows X of 0 and 1 by a table B [N, N] of zero diagonal; made by `ease`.

    The parameter is `weights` [N, N] (B). The histories travel as the untrained collection "history".

    Attributes:
        history: the training interactions; weights are not used.
    """

    def setup(self) -> None:  # noqa: D102
        super().setup()
        n_items = self.history.n_items
        self.weights = self.param("weights", nn.initializers.zeros, (n_items, n_items))
        self.longest = max(int(np.asarray(self.history.user_degrees).max(initial=0)), 1)

    def _of_pairs(self, users: Array, items: Array) -> Array:
        users, items = jnp.broadcast_arrays(users, items)
        own, where = self.known.rows(users, length=self.longest)
        return jnp.where(where, jnp.asarray(self.weights)[own, items[..., None]], 0).sum(-1)

    def rows(self, users: Array) -> Array:
        """Scores of all items for users [B] -> [B, N]."""
        return self._of_histories(*self.known.rows(users, length=self.longest))

    def _of_histories(self, items: Array, where: Array) -> Array:
        places = jnp.where(where, items, self.history.n_items)
        x = jnp.zeros((len(places), self.history.n_items), self.weights.dtype)
        users = jnp.arange(len(places), dtype=places.dtype)[:, None]
        return x.at[users, places].set(1, mode="drop") @ self.weights
