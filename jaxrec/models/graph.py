"""LightGCN: vectors averaged over the neighbourhoods of the graph of users and items."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.interactions import Interactions, check_interactions
from jaxrec.models.mf import check_attributes, check_numbers, check_sizes, products
from jaxrec.sparse import spmm
from jaxrec.typing import Array

Tables = tuple[Array, Array]


class LightGCN(nn.Module):
    """LightGCN (He et al. 2020, arXiv 2002.02126): matrix factorisation smoothed over the graph.

    E⁽ᵏ⁺¹⁾ = D^{-1/2} [[0, R], [Rᵀ, 0]] D^{-1/2} E⁽ᵏ⁾,   score = u·v of the mean of E⁽⁰⁾ .. E⁽ᴸ⁾

    R is the matrix with ones at the interactions, and D is the diagonal matrix of its degrees. A
    user's row of E⁽ᵏ⁺¹⁾ is therefore Σᵢ eᵢ⁽ᵏ⁾ / √(dᵤ dᵢ) over their items. A user or item without
    interactions has E⁽⁰⁾ / (L + 1). The positives of a batch stay in the graph, as in the paper.

    The parameters are `user` [M, D] and `item` [N, D], which form E⁽⁰⁾ and are drawn from a normal
    distribution. The graph is the untrained collection "graph". Each call propagates both tables,
    for any batch size. This takes 2L sparse products, and as many for the gradient;
    `train.pairwise_objective` makes twice as many if it scores positives and negatives separately.
    Large batches and `train.gram_objective` therefore pay off.

    Attributes:
        graph: the training interactions; weights are not used. They are read at `init`; afterwards
            only their sizes are used.
        dim: D.
        layers: L; 0 gives `MF`.
        scale: standard deviation of the initial vectors.

    Raises:
        ValueError: if `dim` is not an integer of 1 or more, `layers` is not an integer of 0 or
            more, or `scale` is negative or not finite.

    The paper's L2 penalty is on a batch's rows of E⁽⁰⁾: `train.penalised_objective` with l2 = 1e-4.
    `optax.add_decayed_weights(l2)` decays the whole tables instead. A batch of B contains a user B
    / M times and an item about 2B / N times on average. A decay of 1e-4 / M or 2e-4 / N is
    therefore about as strong as the paper's penalty, and one of 1e-5 is far stronger.

    >>> train = Interactions.from_pairs([0, 0, 2], [1, 3, 0])
    >>> model = LightGCN(train, dim=2)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> model.apply(variables, jnp.array([[0], [2]]), jnp.array([[1, 2, 3]])).shape
    (2, 3)
    """

    graph: Interactions
    dim: int = 64
    layers: int = 3
    scale: float = 0.1

    def __post_init__(self) -> None:
        check_interactions(graph=self.graph)
        check_sizes(self, "dim")
        check_sizes(self, "layers", least=0)
        check_numbers(self, "scale", least=0)
        check_attributes(self)
        super().__post_init__()

    @property
    def n_users(self) -> int:
        """M."""
        return self.graph.n_users

    @property
    def n_items(self) -> int:
        """N."""
        return self.graph.n_items

    def setup(self) -> None:  # noqa: D102
        init = nn.initializers.normal(self.scale)
        self.user = jnp.asarray(self.param("user", init, (self.n_users, self.dim)))
        self.item = jnp.asarray(self.param("item", init, (self.n_items, self.dim)))
        self.by_user = self.variable("graph", "by_user", lambda: _on_device(_normalised(self.graph)))
        self.by_item = self.variable("graph", "by_item", lambda: _on_device(_normalised(self.graph).transpose()))

    def __call__(self, users: Array, items: Array) -> jax.Array:
        """Scores pairs of ids that broadcast, such as users [B, 1] and items [B, n] -> [B, n]."""
        chex.assert_type([users, items], int)
        u, v = self.vectors()
        return products(u[users], v[items])

    def rows(self, users: Array) -> jax.Array:
        """Scores all items for users [B] -> [B, N]."""
        u, v = self.vectors()
        return jnp.einsum("bd,nd->bn", u[users], v)

    def vectors(self) -> Tables:
        """Returns the means over the layers, [M, D] and [N, D], whose dot product is the score."""
        return mean_of(self._layers())

    def _layers(self, disturb: Callable[[Array], Array] | None = None) -> list[Tables]:
        """Returns the tables of E⁽⁰⁾ .. E⁽ᴸ⁾.

        `disturb` changes each layer after the first, before the layer is propagated.
        """
        by_user, by_item = self.by_user.value, self.by_item.value
        layers: list[Tables] = [(self.user, self.item)]
        for _ in range(self.layers):
            user, item = layers[-1]
            users, items = spmm(by_user, by_item, item), spmm(by_item, by_user, user)
            layers.append((users, items) if disturb is None else (disturb(users), disturb(items)))
        return layers


def mean_of(layers: Sequence[Tables]) -> Tables:
    """Returns the means of the users' and of the items' tables."""
    users, items = (sum(tables) / len(layers) for tables in zip(*layers, strict=True))
    return users, items


def _normalised(graph: Interactions) -> Interactions:
    """Returns the graph with weights 1 / √(dᵤ dᵢ), on the host."""
    users, items = graph.pairs()
    degrees = np.diff(np.asarray(graph.indptr))[users] * graph.item_degrees[items].astype(np.int64)
    return dataclasses.replace(graph, weights=1 / np.sqrt(degrees), timestamps=None)


def _on_device(graph: Interactions) -> Interactions:
    return jax.tree.map(jnp.asarray, graph)
