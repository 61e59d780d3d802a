"""Models whose scores are distances between users and items, with or without a translation.

If the score is the distance itself, use `MF(score=negative_squared_distance)`. The papers differ in
what they minimise:

    CML      `losses.warp`, plus `train.covariance_objective`
    MetricF  `losses.metricf` by `losses.on_scores`
    SML      `train.sml_objective`
    DPCML    `losses.hinge`, plus `train.diversity_objective`, with several vectors for each user

All of them keep their vectors in the unit ball. The optimiser does this: end its `optax.chain` with
`optim.riemannian.project_to_ball`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

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

    ū is the mean of the vectors of the user's items, and v̄ the mean of the vectors of the item's
    users; both are 0 if there are none. The positives of a batch stay in the neighbourhoods, as in
    the released code.

    Train it with `losses.hinge` in `train.translation_objective`, which adds the paper's two
    regularisers.

    The parameters are `user` [M, D] and `item` [N, D], drawn from a normal distribution. The graph
    is the untrained collection "graph". Each call averages all neighbourhoods, for any batch size.

    Attributes:
        graph: the training interactions; weights are not used. They are read at `init`; afterwards
            only their sizes are used.
        dim: D.
        scale: standard deviation of the initial vectors.

    Raises:
        ValueError: if `dim` is not an integer of 1 or more, or `scale` is negative or not finite.

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

    def __call__(self, users: Array, items: Array) -> jax.Array:
        """Scores pairs of ids that broadcast, such as users [B, 1] and items [B, n] -> [B, n]."""
        return products(*_translated(*self._rows(users, items)))

    def rows(self, users: Array) -> jax.Array:
        """Scores all items for users [B] -> [B, N]."""
        u, v = self.vectors()
        return jnp.einsum("bd,nd->bn", u[users], v)

    def vectors(self) -> tuple[jax.Array, jax.Array]:
        """Returns tables [M, 4D + 2], [N, 4D + 2] whose dot product is the score."""
        near_user, near_item = self._neighbours()
        return _translated(self.user, near_user, self.item, near_item)

    def item_vectors(self) -> jax.Array:
        """Returns the items' own vectors [N, D], which `evaluate.similar` compares."""
        return self.item

    def regularised(self, users: Array, items: Array) -> tuple[jax.Array, jax.Array]:
        """Returns the scores of pairs and their regulariser ‖u − ū‖² + ‖v − v̄‖².

        Both have the shape to which the ids broadcast.
        """
        u, near_u, v, near_v = self._rows(users, items)
        regulariser = ((u - near_u) ** 2).sum(-1) + ((v - near_v) ** 2).sum(-1)
        return products(*_translated(u, near_u, v, near_v)), regulariser

    def _rows(self, users: Array, items: Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Looks up u, ū, v and v̄ of users and items."""
        chex.assert_type([users, items], int)
        near_user, near_item = self._neighbours()
        return lookup(self.user, users), lookup(near_user, users), lookup(self.item, items), lookup(near_item, items)

    def _neighbours(self) -> tuple[jax.Array, jax.Array]:
        """Returns the means over neighbourhoods, [M, D] and [N, D]."""
        by_user, by_item = self.by_user.value, self.by_item.value

        def mean(matrix: Interactions, transposed: Interactions, table: Array) -> jax.Array:
            degrees = jnp.maximum(matrix.user_degrees, 1).astype(table.dtype)
            return spmm(matrix, transposed, table) / degrees[:, None]

        return mean(by_user, by_item, self.item), mean(by_item, by_user, self.user)


def _translated(u: Array, near_u: Array, v: Array, near_v: Array) -> tuple[jax.Array, jax.Array]:
    """Returns vectors [..., 4D + 2] whose dot product is −‖u + ū ⊙ v̄ − v‖², multiplied out."""
    left, right = negative_squared_distance(u, v)
    return (
        jnp.concatenate([left, 2 * near_u, -2 * u * near_u, -(near_u**2)], axis=-1),
        jnp.concatenate([right, v * near_v, near_v, near_v**2], axis=-1),
    )


class LRML(nn.Module):
    """Latent relational metric learning (Tay et al. 2018, 10.1145/3178876.3186154).

    score = −√(‖u + r − v‖² + 10⁻³),   r = Σ_s a_s m_s,   a = softmax(K(u ⊙ v))

    The memory m [S, D] has S slots. The keys K [S, D] decide how much each slot counts for a user
    and an item.

    The parameters are `user` [M, D], `item` [N, D], `keys` and `memory` [S, D], all drawn from a
    normal distribution. Train it with `losses.hinge`: in `train.relation_objective`, as in the
    paper, or in `train.pairwise_objective`, where each negative has its own relation. There is no
    `vectors`, because no dot product of tables gives the same ranking.

    Attributes:
        n_users: M.
        n_items: N.
        dim: D.
        slots: S.
        scale: standard deviation of the initial parameters.

    Raises:
        ValueError: if a size is not an integer of 1 or more, or `scale` is negative or not finite.

    Differs: the released excerpt clips the rows that it looks up to the unit ball in the forward
    pass; here this is left to the optimiser, as for the other models. Initial values and settings
    are not released: `scale` is our choice.

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

    def __call__(self, users: Array, items: Array, related: Array | None = None) -> jax.Array:
        """Scores pairs of ids that broadcast, such as users [B, 1] and items [B, n] -> [B, n].

        Args:
            users: integers [...].
            items: integers [...].
            related: integers [...], the items whose relation to the user is used; None uses
                `items`.
        """
        chex.assert_type([users, items], int)
        u, v = lookup(self.user, users), lookup(self.item, items)
        return self._score(u, v, v if related is None else lookup(self.item, related))

    def rows(self, users: Array) -> jax.Array:
        """Scores all items for users [B] -> [B, N], each with its own relation."""
        u, v = lookup(self.user, users), jnp.asarray(self.item)
        return against_all(lambda u, v: self._score(u, v, v), u, v, width=self.dim)

    def _score(self, u: Array, v: Array, related: Array) -> jax.Array:
        """Scores vectors of users and items, with the relation of users and `related`."""
        relation = jax.nn.softmax((u * related) @ self.keys.T) @ self.memory
        return -jnp.sqrt(((u + relation - v) ** 2).sum(-1) + 1e-3)


class DPCML(nn.Module):
    """Metric learning with several vectors for each user (Bao et al. 2022, arXiv 2209.15292).

    score = −min_c ‖u_c − v‖²

    A user has C vectors, and the one nearest to an item decides. The vectors of a user with several
    interests need not lie between these. Train it with `losses.hinge` in
    `train.pairwise_objective`, plus `train.diversity_objective`, by `train.combined_objective`. The
    paper's DPCML1 has one uniform negative, and DPCML2 the nearest of several (`sampling.hardest`).

    The parameters are `user` [M, C, D] and `item` [N, D], drawn from a normal distribution. There
    is no `vectors`, because no dot product of tables gives the same ranking.

    Attributes:
        n_users: M.
        n_items: N.
        dim: D.
        n_vectors: C; with 1 it is CML. The default is that of the released code.
        scale: standard deviation of the initial vectors.

    Raises:
        ValueError: if a size is not an integer of 1 or more, or `scale` is negative or not finite.

    Differs: the number of vectors is the same for all users (the paper's basic assignment). The
    released code gives all vectors length 1 after each step; the paper's constraint is the unit
    ball (`optim.riemannian.project_to_ball`).

    >>> model = DPCML(3, 5, dim=2, n_vectors=4)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> model.apply(variables, jnp.array([0, 2]), method="rows").shape
    (2, 5)
    """

    n_users: int
    n_items: int
    dim: int = 64
    n_vectors: int = 5
    scale: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(self, "n_users", "n_items", "dim", "n_vectors")
        check_numbers(self, "scale", least=0)
        check_attributes(self)
        super().__post_init__()

    def setup(self) -> None:  # noqa: D102
        init = nn.initializers.normal(self.scale)
        self.user = self.param("user", init, (self.n_users, self.n_vectors, self.dim))
        self.item = self.param("item", init, (self.n_items, self.dim))

    def __call__(self, users: Array, items: Array) -> jax.Array:
        """Scores pairs of ids that broadcast, such as users [B, 1] and items [B, n] -> [B, n]."""
        chex.assert_type([users, items], int)
        u, v = negative_squared_distance(lookup(self.user, users), lookup(self.item, items))
        return self._nearest(products, u, v)

    def rows(self, users: Array) -> jax.Array:
        """Scores all items for users [B] -> [B, N]."""
        u, v = negative_squared_distance(lookup(self.user, users), jnp.asarray(self.item))
        return self._nearest(functools.partial(jnp.einsum, "bd,nd->bn"), u, v)

    def _nearest(self, dots: Callable[[Array, Array], Array], u: Array, v: Array) -> jax.Array:
        """Returns the largest over c of dot products of users [..., C, D'] and items [..., D']."""
        # One vector after another: no array with an axis C for each pair of a user and an item.
        return functools.reduce(jnp.maximum, (dots(u[..., c, :], v) for c in range(self.n_vectors)))
