"""Neighbourhood models: scores are sums over the most similar items of a history."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrec.interactions import Interactions
from jaxrec.models._histories import HistoryModel, Pairs
from jaxrec.models.filters import empty
from jaxrec.sparse import spmm
from jaxrec.typing import Array


class ItemKNN(HistoryModel):
    """Scores users' rows X of 0 and 1 as X Wᵀ, with a sparse matrix W [N, N] of similarities.

    `solvers.knn` computes W. The untrained collection "graph" has it as `neighbours`: row i holds
    the neighbours of item i. The score of item i is the sum of the weights of its neighbours that
    are in the history. All methods take `histories`, the `Interactions` [B, N] of their B users;
    `users` may be None.

    Attributes:
        n_items: N.

    Raises:
        ValueError: if `n_items` is not an integer of 1 or more; in a call, if `histories` is
            missing or has another number of users or items.
    """

    def setup(self) -> None:  # noqa: D102
        self.neighbours = self.variable("graph", "neighbours", empty, self.n_items, self.n_items)

    def rows(self, users: Array | None, *, histories: Interactions | None = None) -> jax.Array:
        """Scores all items for users [B] -> [B, N]."""
        return self._scores(self._pairs(users, histories))

    def _scores(self, pairs: Pairs) -> jax.Array:
        neighbours = self.neighbours.value
        x = jnp.zeros((self.n_items, len(pairs.users)), jnp.asarray(neighbours.weights).dtype)
        return spmm(neighbours, None, x.at[pairs.items, pairs.rows].set(1, mode="drop")).T

    def _of_pairs(self, pairs: Pairs, items: Array) -> jax.Array:
        scores = self._scores(pairs)
        return jnp.take_along_axis(scores, jnp.broadcast_to(items, (len(scores), items.shape[1])), axis=1)
