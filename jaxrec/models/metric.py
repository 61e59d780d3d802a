"""Models whose scores are distances: users and items in one space, with or without a translation between them.

Where the distance alone is the score there is no model to write. It is `MF(score=negative_squared_distance)`, and the
papers differ in what they minimise:

    CML      `losses.warp`, and `train.covariance_objective` beside it
    MetricF  `losses.metricf` by `losses.on_scores`
    SML      `train.sml_objective`

All of them keep their vectors in the unit ball. That is the optimiser's affair: end its `optax.chain` with
`optim.riemannian.project_to_ball`.
"""

from __future__ import annotations

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec._lookup import lookup
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.models.mf import (
    against_all,
    check_attributes,
    check_numbers,
    check_sizes,
    negative_squared_distance,
    products,
)
from jaxrec.sparse import spmm
from jaxrec.typing import Array


class TransCF(nn.Module):
    """Collaborative translational metric learning (Park et al. 2018, arXiv 1906.01637).

    score = −‖u + ū ⊙ v̄ − v‖²

    ū is the mean of the vectors of the user's items, v̄ that of the vectors of the item's users, 0 where there are none.
    A batch's positives stay in the neighbourhoods, as in the released code.

    Trained by `losses.hinge` in `train.translation_objective`, which adds the paper's two regularisers.

    Parameters are `user` [M, D] and `item` [N, D], drawn from a normal distribution. The graph travels as the
    untrained collection "graph". Each call averages all neighbourhoods, whatever the batch.

    Attributes:
        graph: the training interactions; weights are not used. Read at `init`, later only for its sizes.
        dim: D.
        scale: standard deviation of the initial vectors.

    Raises:
        ValueError: for a dim that is not an integer of 1 or more, and a scale that is negative or not finite.

    Differs: the released code projects onto the unit ball once an epoch, not after each step.

    >>> train = Interactions.from_pairs([0, 0, 2], [1, 3, 0])
    >>> model = TransCF(train, dim=2)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> model.apply(variables, jnp.array([[0], [2]]), jnp.array([[1, 2, 3]])).shape
    (2, 3)
    """

    graph: Interactions
    dim: int = 64
    scale: float = 0.01

    def __post_init__(self) -> None:
        check_interactions(graph=self.graph)
        check_sizes(self, "dim")
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
        bare = dataclasses.replace(self.graph, weights=None, timestamps=None)
        self.by_user = self.variable("graph", "by_user", jax.tree.map, jnp.asarray, bare)
        self.by_item = self.variable("graph", "by_item", lambda: jax.tree.map(jnp.asarray, bare.transpose()))

    def __call__(self, users: Array, items: Array) -> Array:
        """Scores of the pairs: ids that broadcast, such as [B, 1] and [B, n] -> [B, n]."""
        return products(*_translated(*self._rows(users, items)))

    def rows(self, users: Array) -> Array:
        """Scores of all items for users [B] -> [B, N]."""
        u, v = self.vectors()
        return jnp.einsum("bd,nd->bn", u[users], v)

    def vectors(self) -> tuple[Array, Array]:
        """Tables [M, 4D + 2], [N, 4D + 2] whose dot product is the score."""
        near_user, near_item = self._neighbours()
        return _translated(self.user, near_user, self.item, near_item)

    def regularised(self, users: Array, items: Array) -> tuple[Array, Array]:
        """Scores of pairs, ids that broadcast to [...], and their regulariser ‖u − ū‖² + ‖v − v̄‖²: [...] both."""
        u, near_u, v, near_v = self._rows(users, items)
        apart = ((u - near_u) ** 2).sum(-1) + ((v - near_v) ** 2).sum(-1)
        return products(*_translated(u, near_u, v, near_v)), apart

    def _rows(self, users: Array, items: Array) -> tuple[Array, Array, Array, Array]:
        chex.assert_type([users, items], int)
        near_user, near_item = self._neighbours()
        return lookup(self.user, users), lookup(near_user, users), lookup(self.item, items), lookup(near_item, items)

    def _neighbours(self) -> tuple[Array, Array]:
        """Means over neighbourhoods, [M, D] and [N, D]."""
        by_user, by_item = self.by_user.value, self.by_item.value

        def mean(matrix: Interactions, transposed: Interactions, table: Array) -> Array:
            degrees = jnp.maximum(matrix.user_degrees, 1).astype(table.dtype)
            return spmm(matrix, transposed, table) / degrees[:, None]

        return mean(by_user, by_item, self.item), mean(by_item, by_user, self.user)


def _translated(u: Array, near_u: Array, v: Array, near_v: Array) -> tuple[Array, Array]:
    """Vectors [..., 4D + 2] whose dot product is −‖u + ū ⊙ v̄ − v‖², its square multiplied out."""
    left, right = negative_squared_distance(u, v)
    return (
        jnp.concatenate([left, 2 * near_u, -2 * u * near_u, -(near_u**2)], axis=-1),
        jnp.concatenate([right, v * near_v, near_v, near_v**2], axis=-1),
    )


class LRML(nn.Module):
    """Latent relational metric learning (Tay et al. 2018, 10.1145/3178876.3186154).

    score = −√(‖u + r − v‖² + 10⁻³),   r = Σ_s a_s m_s,   a = softmax(K(u ⊙ v))

    S slots of a memory m [S, D], and keys K [S, D] that say what each of them counts for a user and an item.

    Parameters are `user` [M, D], `item` [N, D], `keys` and `memory` [S, D], all drawn from a normal distribution.
    Trained by `losses.hinge`, in `train.relation_objective` as the paper does, or in `train.pairwise_objective`, where
    each negative has a relation of its own. No dot product ranks the same, so there is no `vectors`.

    Attributes:
        n_users: M.
        n_items: N.
        dim: D.
        slots: S.
        scale: standard deviation of the initial parameters.

    Raises:
        ValueError: for sizes that are not integers of 1 or more, and a scale that is negative or not finite.

    Differs: the released excerpt clips the rows that it looks up to the unit ball in the forward pass; here that is
    left to the optimiser, as for the others. Its initial values and settings are not released: `scale` is ours.

    >>> model = LRML(3, 5, dim=2, slots=4)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> model.apply(variables, jnp.array([0, 2]), method="rows").shape
    (2, 5)
    """

    n_users: int
    n_items: int
    dim: int = 64
    slots: int = 20
    scale: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(self, "n_users", "n_items", "dim", "slots")
        check_numbers(self, "scale", least=0)
        check_attributes(self)
        super().__post_init__()

    def setup(self) -> None:  # noqa: D102
        sizes = {"user": self.n_users, "item": self.n_items, "keys": self.slots, "memory": self.slots}
        init = nn.initializers.normal(self.scale)
        for name, size in sizes.items():
            setattr(self, name, self.param(name, init, (size, self.dim)))

    def __call__(self, users: Array, items: Array, related: Array | None = None) -> Array:
        """Scores of the pairs: ids that broadcast, such as [B, 1] and [B, n] -> [B, n].

        Args:
            users: integers [...].
            items: integers [...].
            related: integers [...], items whose relation to the user is used; by default `items`.
        """
        chex.assert_type([users, items], int)
        u, v = lookup(self.user, users), lookup(self.item, items)
        return self._score(u, v, v if related is None else lookup(self.item, related))

    def rows(self, users: Array) -> Array:
        """Scores of all items for users [B] -> [B, N], each by its own relation."""
        u, v = lookup(self.user, users), jnp.asarray(self.item)
        return against_all(lambda u, v: self._score(u, v, v), u, v, width=self.dim)

    def _score(self, u: Array, v: Array, related: Array) -> Array:
        relation = jax.nn.softmax((u * related) @ self.keys.T) @ self.memory
        return -jnp.sqrt(((u + relation - v) ** 2).sum(-1) + 1e-3)
