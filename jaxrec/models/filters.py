"""Spectral filters: histories smoothed over the graph of users and items."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.interactions import Interactions
from jaxrec.models._histories import HistoryModel, Pairs
from jaxrec.models.mf import check_attributes, check_sizes
from jaxrec.sparse import spmm
from jaxrec.typing import Array


class SpectralFilter(HistoryModel):
    """Scores users' rows X of 0 and 1 by a filter of the item-item graph.

    `solvers.filters.fit` computes the filter:

        scores = X S⁻¹ p(P) S + X E Fᵀ,   p(P) = Σₖ cₖ Tₖ(2P − I),   P = R̃ᵀR̃

    Tₖ are Chebyshev polynomials. R̃ [M, N] is the training matrix, divided by powers of the degrees.
    P [N, N] is never formed: a degree of p costs two sparse products of R̃ with the rows of a block.

    The parameters are `coefficients` [degree + 1] (c), `scale` [N] (the diagonal of S), `encoder`
    [N, K] (E) and `decoder` [N, K] (F). The untrained collection "graph" has R̃ as `by_user` and
    R̃ᵀ as `by_item`. All methods take `histories`, the `Interactions` [B, N] of their B users;
    `users` may be None. A call that scores some items takes as long as one that scores all.

    Attributes:
        n_items: N.
        degree: degree of p.
        dim: K; 0 for no second term.

    Raises:
        ValueError: if `n_items` is not an integer of 1 or more, or `degree` or `dim` is not an
            integer of 0 or more; in a call, if `histories` is missing or has another number of
            users or items.
    """

    degree: int = 1
    dim: int = 0

    def __post_init__(self) -> None:
        check_sizes(self, "n_items")
        check_sizes(self, "degree", "dim", least=0)
        check_attributes(self)
        super().__post_init__()

    def setup(self) -> None:  # noqa: D102
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        self.coefficients = jnp.asarray(self.param("coefficients", zeros, (self.degree + 1,)))
        self.scale = jnp.asarray(self.param("scale", ones, (self.n_items,)))
        self.encoder = jnp.asarray(self.param("encoder", zeros, (self.n_items, self.dim)))
        self.decoder = jnp.asarray(self.param("decoder", zeros, (self.n_items, self.dim)))
        self.by_user = self.variable("graph", "by_user", empty, 1, self.n_items)
        self.by_item = self.variable("graph", "by_item", empty, self.n_items, 1)

    def rows(self, users: Array | None, *, histories: Interactions | None = None) -> jax.Array:
        """Scores all items for users [B] -> [B, N]."""
        return self._scores(self._pairs(users, histories))

    def _scores(self, pairs: Pairs) -> jax.Array:
        inverse = (1 / self.scale)[pairs.items]
        x = jnp.zeros((self.n_items, len(pairs.users)), self.scale.dtype)
        x = x.at[pairs.items, pairs.rows].set(inverse, mode="drop")
        found = (self.scale[:, None] * polynomial_of(self.by_user.value, self.by_item.value, self.coefficients, x)).T
        if self.dim == 0:
            return found
        return found + pairs.sums(self.encoder[pairs.items]) @ self.decoder.T

    def _of_pairs(self, pairs: Pairs, items: Array) -> jax.Array:
        scores = self._scores(pairs)
        return jnp.take_along_axis(scores, jnp.broadcast_to(items, (len(scores), items.shape[1])), axis=1)


def polynomial_of(by_user: Interactions, by_item: Interactions, coefficients: Array, x: Array) -> jax.Array:
    """Computes Σₖ cₖ Tₖ(2P − I) x for P = R̃ᵀR̃ and a table x [N, B], by the recurrence of Chebyshev.

    Args:
        by_user: R̃ [M, N].
        by_item: R̃ᵀ [N, M].
        coefficients: c [degree + 1].
        x: the table.
    """

    def step(x):  # (2P − I) x
        return 2 * spmm(by_item, by_user, spmm(by_user, by_item, x)) - x

    total, previous, present = coefficients[0] * x, x, x
    for k in range(1, len(coefficients)):
        previous, present = present, step(x) if k == 1 else 2 * step(present) - previous
        total = total + coefficients[k] * present
    return total


def empty(n_users: int, n_items: int) -> Interactions:
    """Returns weighted interactions without pairs, on the device."""
    none = np.zeros(n_users + 1, np.int32), np.zeros(0, np.int32), np.zeros(0)
    return jax.tree.map(jnp.asarray, Interactions(*none, None, n_users, n_items))
