"""Users and items with K vectors each, one per facet: MAR in unit balls, MARS on unit spheres."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._keys import check_key, drawn
from jaxrec._lookup import lookup
from jaxrec._numerics import integer, number
from jaxrec._partials import check_function
from jaxrec.models.mf import (
    _unit,
    check_attributes,
    check_numbers,
    check_sizes,
    dot,
    negative_squared_distance,
    products,
)
from jaxrec.typing import Array, Key, Scalar

Lookup = Callable[..., Array]


class Facets(Protocol):
    """Where the facets of users or items come from: `free`, `projected`, `hybrid`, or your own."""

    def __call__(self, model: MARS, name: str, n: int) -> Lookup:
        """Creates the parameters of n users or items, and returns their look-up.

        The look-up maps ids [...] to facets [..., K, D]. Without ids it returns all facets.
        """


def unit(x: Array) -> jax.Array:
    """Returns x / ‖x‖ over the last axis; a zero vector stays zero and gets no gradient."""
    return _unit(x)


@jax.custom_vjp
def calibrated_unit(x: Array) -> jax.Array:
    """Computes `unit`, and multiplies the gradient g at the sphere by 1 + x·g/‖g‖ (eq. 21).

    It is for `projected` facets. Use it as `MARS(..., facets=projected, place=calibrated_unit)`;
    free facets get eq. 21 from `optim.riemannian`. The factor is computed for each occurrence of a
    row in a batch, not once per row.

    >>> towards = jnp.array([0.6, 0.8])
    >>> jax.grad(lambda x: -calibrated_unit(x) @ towards)(jnp.array([2.0, 0.0])).round(4).tolist()  # -0.4 * 0.8 / 2
    [0.0, -0.1599999964237213]
    """
    return unit(x)


def _calibrated_backward(x: Array, gradient: Array) -> tuple[jax.Array]:
    """Scales the gradient at the sphere, then passes it through `unit`."""
    placed, back = jax.vjp(unit, x)
    return back((1 + (placed * unit(gradient)).sum(-1, keepdims=True)) * gradient)


calibrated_unit.defvjp(lambda x: (unit(x), x), _calibrated_backward)


def into_ball(x: Array) -> jax.Array:
    """Returns x / max(1, ‖x‖) over the last axis."""
    square = (x**2).sum(-1, keepdims=True)
    # Both branches of `where` are differentiated: the inner one keeps rsqrt from 0.
    outside = square > 1
    return jnp.where(outside, x * jax.lax.rsqrt(jnp.where(outside, square, 1)), x)


def free(model: MARS, name: str, n: int, *, init: Callable[..., Array] | None = None) -> Lookup:
    """Creates the facets as one parameter `name` [n, K, D], as in the released code.

    The facets start on the sphere or in the ball. The optimiser must keep them there
    (`optim.riemannian`), because the score does not normalise them.

    Args:
        model: the model that owns the parameters.
        name: "user" or "item".
        n: number of users or items.
        init: an initialiser of [n, K, D]; the default is normal.
    """
    shape = (n, model.n_facets, model.dim)
    draw = init or nn.initializers.normal(model.scale * model.dim**-0.5)
    table = model.param(name, lambda key: model.place(draw(key, shape)))
    return lambda ids=None: table if ids is None else lookup(table, ids)


def projected(model: MARS, name: str, n: int) -> Lookup:
    """Creates facets as K projections of one vector, eq. 1 and 2: x^k = place(xᵀ φ^k).

    The parameters are `name` [n, D] and `name_projection` [K, D, D]. Any optimiser can be used,
    because the model places facets on the sphere or in the ball whenever it uses them. The
    projections start as different orthogonal matrices: with equal ones all facets would stay equal.

    Args:
        model: the model that owns the parameters.
        name: "user" or "item".
        n: number of users or items.
    """
    table = model.param(name, nn.initializers.normal(model.scale * model.dim**-0.5), (n, model.dim))
    projections = model.param(f"{name}_projection", _rotations, (model.n_facets, model.dim, model.dim))

    def facets(ids: Array | None = None) -> jax.Array:
        if ids is not None and jnp.size(ids) <= n:  # then projecting the rows takes less time
            return model.place(_project(jnp.asarray(lookup(table, ids)), projections))
        placed = model.place(_project(jnp.asarray(table), projections))
        return placed if ids is None else placed[ids]

    return facets


def hybrid(model: MARS, name: str, n: int) -> Lookup:
    """Creates `free` facets that start as `projected` ones.

    Args:
        model: the model that owns the parameters.
        name: "user" or "item".
        n: number of users or items.
    """

    def init(key: Key, shape: tuple[int, ...]) -> jax.Array:
        table_key, projection_key = jax.random.split(key)
        vectors = nn.initializers.normal(model.scale * model.dim**-0.5)(table_key, (n, model.dim))
        return _project(vectors, _rotations(projection_key, (*shape[1:], model.dim)))

    return free(model, name, n, init=init)


def _project(vectors: Array, projections: Array) -> jax.Array:
    """Projects vectors [..., D] to facets [..., K, D]."""
    return jnp.einsum("...d,kde->...ke", vectors, projections)


def _rotations(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Draws random orthogonal matrices [K, D, D]."""
    draw = nn.initializers.orthogonal()
    return jax.vmap(lambda key: draw(key, shape[1:]))(jax.random.split(key, shape[0]))


class MARS(nn.Module):
    """Multi-facet recommender on spheres (MARS, Tan et al. 2021, arXiv 2103.14866).

    g(u, v) = Σ_k θ_uk cos(u^k, v^k),   θ_u = softmax(P_u)

    The parameters are those of `facets` (for `free`: `user` [M, K, D] and `item` [N, K, D]) and
    `theta` [M, K] (P). The cosine of free facets is computed as their dot product. If the score
    normalised them, their gradient would be tangent, and the factor of eq. 21 would be 1.

    Attributes:
        n_users: M.
        n_items: N.
        dim: D, size of a facet.
        n_facets: K.
        facets: `free` as in the released code, `projected` as in the paper's eq. 1 and 2, `hybrid`,
            or any `Facets`.
        theta_scale: standard deviation of the initial `theta`. The released code uses 1 (the
            largest of four shares is then .517 on average, and training hardly moves it); 0 starts
            with equal shares.
        scale: root mean squared length of the initial vectors, which are normal, before they are
            placed. It matters in the ball, not on the sphere.
        score: how two facets score; see `models.MF`.
        place: function that puts facets on the sphere or into the ball: `unit`, `calibrated_unit`
            or `into_ball`.

    Raises:
        TypeError: if `facets`, `score` or `place` is not a function.
        ValueError: if a size is not an integer of 1 or more, or a scale is negative or not finite.

    Differs: the default follows the released code instead of the paper: facets are free, not
    projected.

    >>> model = MARS(3, 5, dim=2, n_facets=4)
    >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> model.apply(variables, jnp.array([[0], [2]]), jnp.array([[1, 4]])).shape
    (2, 2)
    """

    n_users: int
    n_items: int
    dim: int = 64
    n_facets: int = 4
    facets: Facets = free
    theta_scale: float = 1.0
    scale: float = 1.0
    score: Callable[[Array, Array], tuple[Array, Array]] = dot
    place: Callable[[Array], Array] = unit

    def __post_init__(self) -> None:
        check_sizes(self, "n_users", "n_items", "dim", "n_facets")
        check_numbers(self, "theta_scale", "scale", least=0)
        check_function("facets", self.facets, "jaxrec.models.mars.free, projected or hybrid")
        check_function("score", self.score, "jaxrec.models.dot or negative_squared_distance")
        check_function("place", self.place, "jaxrec.models.mars.unit, calibrated_unit or into_ball")
        check_attributes(self)
        super().__post_init__()

    def setup(self) -> None:  # noqa: D102
        self.user = self.facets(self, "user", self.n_users)
        self.item = self.facets(self, "item", self.n_items)
        self.theta = self.param("theta", nn.initializers.normal(self.theta_scale), (self.n_users, self.n_facets))

    def __call__(self, users: Array, items: Array) -> jax.Array:
        """Scores pairs of ids that broadcast, such as users [B, 1] and items [B, n] -> [B, n]."""
        return products(*self._vectors(*self.parts(users, items)))

    def rows(self, users: Array) -> jax.Array:
        """Scores all items for users [B] -> [B, N]."""
        return jnp.einsum("bd,nd->bn", *self._vectors(*self.parts(users, None)))

    def vectors(self) -> tuple[jax.Array, jax.Array]:
        """Returns tables [M, K D'], [N, K D'] whose dot product is the score.

        The users' table includes θ. D' is D for MARS, and D + 2 for MAR.
        """
        return self._vectors(*self.parts(None, None))

    def item_vectors(self) -> jax.Array:
        """Returns the facets of the items [N, K, D], which `evaluate.similar` compares."""
        return jnp.asarray(self.item(None))

    def parts(self, users: Array | None, items: Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns θ [..., K] and the facets [..., K, D] of users, and the facets of items.

        Scores are computed from these. The ids of the two sides need not broadcast; None means all.
        `train.mars.objective` uses this method.
        """
        chex.assert_type([ids for ids in (users, items) if ids is not None], int)
        logits = jnp.asarray(self.theta) if users is None else lookup(self.theta, users)
        return jax.nn.softmax(logits), self.user(users), self.item(items)

    def _vectors(self, theta: Array, u: Array, v: Array) -> tuple[jax.Array, jax.Array]:
        """Returns vectors [..., K D'] of both sides."""
        u, v = self.score(jnp.asarray(u), jnp.asarray(v))
        u = theta[..., None] * u
        return u.reshape(*u.shape[:-2], -1), v.reshape(*v.shape[:-2], -1)


class MAR(MARS):
    """Multi-facet recommender in unit balls (MAR, the same paper).

    g(u, v) = −Σ_k θ_uk ‖u^k − v^k‖²,   θ_u = softmax(P_u)

    Parameters and attributes are those of `MARS`. `vectors` are extended by the squared lengths, so
    that evaluation and nearest-neighbour indices only need a dot product.

    >>> model = MAR(3, 5, dim=2, n_facets=4)
    >>> tables = jax.eval_shape(lambda key: model.init_with_output(key, method="vectors")[0], jax.random.key(0))
    >>> [table.shape for table in tables]
    [(3, 16), (5, 16)]
    """

    score: Callable[[Array, Array], tuple[Array, Array]] = negative_squared_distance
    place: Callable[[Array], Array] = into_ball


def from_shares(
    key: Key, users: Array, items: Array, *, dim: int, noise: Scalar = 0.1, place: Callable[[Array], Array] = unit
) -> dict[str, jax.Array]:
    """Returns parameters of `free` facets from a non-negative factorisation (experimental).

    The paper starts in this way but gives no formula. Here P_u = log(w_u / Σw_u + 10⁻³). Facet k of
    a user or an item is its share of k times an anchor a_k, plus noise, and is then placed. The
    anchors are random, and orthogonal if K ≤ D. To start from the parameters, call `train.init(key,
    model, tx, parameters=from_shares(...))` with the tables of `solvers.nmf.fit(train, dim=K,
    key=key)`.

    Args:
        key: typed key from which anchors and noise are drawn.
        users: W, non-negative [M, K].
        items: H, non-negative [N, K].
        dim: D.
        noise: root mean squared length of the noise.
        place: `unit` for `MARS`, `into_ball` for `MAR`.

    Raises:
        ValueError: if `key` is not a typed key, `dim` is not an integer of 1 or more, or `noise` or
            the factors are negative or not finite.

    >>> w, h = np.ones((3, 2)), np.ones((5, 2))
    >>> tables = jax.eval_shape(lambda key: from_shares(key, w, h, dim=4), jax.random.key(0))
    >>> {name: table.shape for name, table in sorted(tables.items())}
    {'item': (5, 2, 4), 'theta': (3, 2), 'user': (3, 2, 4)}
    """
    check_key(key)
    dim = integer("dim", dim)
    number("noise", noise, least=0)
    anchor_key, *noise_keys = jax.random.split(key, 3)
    anchors = nn.initializers.orthogonal()(anchor_key, (users.shape[1], dim))
    tables = {}
    for name, factors, noise_key in zip(("user", "item"), (users, items), noise_keys):
        factors = np.asarray(factors)
        if not ((factors >= 0) & (factors < np.inf)).all():
            raise ValueError(f"{name}s has entries that are negative or not finite; give non-negative factors")
        total = factors.sum(1, keepdims=True)
        share = jnp.asarray(factors / np.where(total > 0, total, 1), float)
        shift = noise * dim**-0.5 * drawn(jax.random.normal, noise_key, (*share.shape, dim))
        tables[name] = place(share[..., None] * anchors[None] + shift)
        tables.setdefault("theta", jnp.log(share + 1e-3))
    return tables
