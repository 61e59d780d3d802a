"""Users and items as K vectors each, one a facet: MAR in unit balls, MARS on unit spheres."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._keys import check_key
from jaxrec._lookup import lookup
from jaxrec._numerics import integer, number
from jaxrec.models.mf import (
    _unit,
    check_attributes,
    check_function,
    check_numbers,
    check_sizes,
    dot,
    negative_squared_distance,
    products,
)
from jaxrec.typing import Array, Key, Scalar

Lookup = Callable[..., Array]


class Facets(Protocol):
    """Where the facets of a side come from; `free`, `projected` and `hybrid` are three."""

    def __call__(self, model: MARS, name: str, n: int) -> Lookup:
        """Makes the parameters of n users or items, and a function of ids [...] (or none: all) to [..., K, D]."""


def unit(x: Array) -> Array:
    """x / ‖x‖ over the last axis; a zero vector stays and gets no gradient."""
    return _unit(x)


@jax.custom_vjp
def calibrated_unit(x: Array) -> Array:
    """`unit`, whose gradient g at the sphere is first multiplied by 1 + x·g/‖g‖: eq. 21 for `projected` facets.

    `MARS(..., facets=projected, place=calibrated_unit)`; free facets have it from `optim.riemannian`. Each place of a
    batch has a factor of its own, not each row.

    >>> towards = jnp.array([0.6, 0.8])
    >>> jax.grad(lambda x: -calibrated_unit(x) @ towards)(jnp.array([2.0, 0.0])).round(4).tolist()  # -0.4 * 0.8 / 2
    [0.0, -0.1599999964237213]
    """
    return unit(x)


def _calibrated_backward(x: Array, gradient: Array) -> tuple[Array]:
    placed, back = jax.vjp(unit, x)
    return back((1 + (placed * unit(gradient)).sum(-1, keepdims=True)) * gradient)


calibrated_unit.defvjp(lambda x: (unit(x), x), _calibrated_backward)


def into_ball(x: Array) -> Array:
    """x / max(1, ‖x‖) over the last axis."""
    square = (x**2).sum(-1, keepdims=True)
    outside = square > 1
    return jnp.where(outside, x * jax.lax.rsqrt(jnp.where(outside, square, 1)), x)


def free(model: MARS, name: str, n: int, *, init: Callable[..., Array] | None = None) -> Lookup:
    """A table [n, K, D] of the facets themselves, as the released code has it: `name`.

    They start on the sphere or in the ball; an optimiser must keep them there (`optim.riemannian`), as the score takes
    them as they are.

    Args:
        model: whose parameters they are.
        name: "user" or "item".
        n: number of users or items.
        init: an initialiser of [n, K, D]; the default is normal.
    """
    shape = (n, model.n_facets, model.dim)
    draw = init or nn.initializers.normal(model.scale * model.dim**-0.5)
    table = model.param(name, lambda key: model.place(draw(key, shape)))
    return lambda ids=None: table if ids is None else lookup(table, ids)


def projected(model: MARS, name: str, n: int) -> Lookup:
    """One vector in K projections, eq. 1 and 2: x^k = place(xᵀ φ^k), of `name` [n, D] and `name_projection` [K, D, D].

    Any optimiser serves, as facets are placed on the sphere or in the ball whenever they are used. The projections
    start orthogonal, each another: were they alike, all facets would be one for ever.
    """
    table = model.param(name, nn.initializers.normal(model.scale * model.dim**-0.5), (n, model.dim))
    projections = model.param(f"{name}_projection", _rotations, (model.n_facets, model.dim, model.dim))

    def facets(ids: Array | None = None) -> Array:
        few = ids is not None and jnp.size(ids) <= n
        placed = model.place(_project(jnp.asarray(lookup(table, ids) if few else table), projections))
        return placed if few or ids is None else placed[ids]

    return facets


def hybrid(model: MARS, name: str, n: int) -> Lookup:
    """`free` facets that start as `projected` ones."""

    def init(key: Key, shape: tuple[int, ...]) -> Array:
        table_key, projection_key = jax.random.split(key)
        vectors = nn.initializers.normal(model.scale * model.dim**-0.5)(table_key, (n, model.dim))
        return _project(vectors, _rotations(projection_key, (*shape[1:], model.dim)))

    return free(model, name, n, init=init)


def _project(vectors: Array, projections: Array) -> Array:
    return jnp.einsum("...d,kde->...ke", vectors, projections)


def _rotations(key: Key, shape: tuple[int, ...]) -> Array:
    """Random orthogonal matrices [K, D, D]."""
    draw = nn.initializers.orthogonal()
    return jax.vmap(lambda key: draw(key, shape[1:]))(jax.random.split(key, shape[0]))


class MARS(nn.Module):
    """Multi-facet recommender on spheres (MARS, Tan et al. 2021, arXiv 2103.14866).

    g(u, v) = Σ_k θ_uk cos(u^k, v^k),   θ_u = softmax(P_u)

    Parameters are those of `facets` (of `free`: `user` [M, K, D] and `item` [N, K, D]) and P, `theta` [M, K]. The
    cosine of free facets is their plain dot product: with norms in the graph eq. 21 would have nothing to calibrate.

    Attributes:
        n_users: M.
        n_items: N.
        dim: D, of a facet.
        n_facets: K.
        facets: `free` as the released code, `projected` as the paper's eq. 1 and 2, `hybrid`, or any `Facets`.
        theta_scale: standard deviation of the initial `theta`. Released is 1 (the largest of four shares is .517 on
            average, and training hardly moves it); 0 starts with equal shares.
        scale: the initial vectors are normal with squared length scale² on average, before they are placed on the
            sphere, where it does not matter, or in the ball.
        score: how two facets score; see `models.MF`.
        place: of facets, on the sphere or into the ball: `unit`, `calibrated_unit`, `into_ball`.

    Raises:
        TypeError: for facets, a score or a place that is no function.
        ValueError: for sizes that are not integers of 1 or more, and scales that are negative or not finite.

    Differs: the released code has free facets, which the paper's equations have not.

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
        check_function(self, "facets", "jaxrec.models.mars.free, projected or hybrid")
        check_function(self, "score", "jaxrec.models.dot, negative_squared_distance, or one of that form")
        check_function(self, "place", "jaxrec.models.mars.unit, calibrated_unit or into_ball")
        check_attributes(self)
        super().__post_init__()

    def setup(self) -> None:  # noqa: D102
        self.user = self.facets(self, "user", self.n_users)
        self.item = self.facets(self, "item", self.n_items)
        self.theta = self.param("theta", nn.initializers.normal(self.theta_scale), (self.n_users, self.n_facets))

    def __call__(self, users: Array, items: Array) -> Array:
        """Scores of the pairs: ids that broadcast, such as [B, 1] and [B, n] -> [B, n]."""
        return products(*self._vectors(*self.parts(users, items)))

    def rows(self, users: Array) -> Array:
        """Scores of all items for users [B] -> [B, N]."""
        return jnp.einsum("bd,nd->bn", *self._vectors(*self.parts(users, None)))

    def vectors(self) -> tuple[Array, Array]:
        """Tables [M, K D'], [N, K D'] whose dot product is the score: the users' hold θ, D' is D, or D + 2 of MAR."""
        return self._vectors(*self.parts(None, None))

    def parts(self, users: Array | None, items: Array | None) -> tuple[Array, Array, Array]:
        """What a score is made of: θ [..., K] and facets [..., K, D] of users, and facets of items likewise.

        The two sides need not broadcast; None is all. `train.mars.objective` builds on it.
        """
        chex.assert_type([ids for ids in (users, items) if ids is not None], int)
        logits = jnp.asarray(self.theta) if users is None else lookup(self.theta, users)
        return jax.nn.softmax(logits), self.user(users), self.item(items)

    def _vectors(self, theta: Array, u: Array, v: Array) -> tuple[Array, Array]:
        """[..., K D'] of both sides."""
        u, v = self.score(jnp.asarray(u), jnp.asarray(v))
        u = theta[..., None] * u
        return u.reshape(*u.shape[:-2], -1), v.reshape(*v.shape[:-2], -1)


class MAR(MARS):
    """Multi-facet recommender in unit balls (MAR, the same paper).

    g(u, v) = −Σ_k θ_uk ‖u^k − v^k‖²,   θ_u = softmax(P_u)

    Parameters and attributes are those of `MARS`. `vectors` are augmented by the squared lengths, so that evaluation
    and nearest-neighbour indices need a dot product alone.

    >>> model = MAR(3, 5, dim=2, n_facets=4)
    >>> tables = jax.eval_shape(lambda key: model.init_with_output(key, method="vectors")[0], jax.random.key(0))
    >>> [table.shape for table in tables]
    [(3, 16), (5, 16)]
    """

    score: Callable[[Array, Array], tuple[Array, Array]] = negative_squared_distance
    place: Callable[[Array], Array] = into_ball


def from_shares(
    key: Key, users: Array, items: Array, *, dim: int, noise: Scalar = 0.1, place: Callable[[Array], Array] = unit
) -> dict[str, Array]:
    """Parameters of `free` facets that start from a non-negative factorisation; experimental.

    The paper starts so but gives no formula. Here P_u = log(w_u / Σw_u + 10⁻³), and the facet k of a user or an item is
    placed at its share of k times an anchor a_k, plus noise; a_k are random, orthogonal where K ≤ D. To start from it:
    `train.init(key, model, tx, parameters=from_shares(...))` with the tables of `models.mf.nmf(train, dim=K, key=key)`.

    Args:
        key: of anchors and noise.
        users: W, non-negative [M, K].
        items: H, non-negative [N, K].
        dim: D.
        noise: mean length of the noise.
        place: `unit` for `MARS`, `into_ball` for `MAR`.

    Raises:
        ValueError: for a seed in place of a key, a dim that is not an integer of 1 or more, noise that is negative or
            not finite, and factors that are.

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
            raise ValueError(f"{name}s has negative entries or NaN; give factors of a non-negative factorisation")
        total = factors.sum(1, keepdims=True)
        share = jnp.asarray(factors / np.where(total > 0, total, 1), float)
        shift = noise * dim**-0.5 * jax.random.normal(noise_key, (*share.shape, dim))
        tables[name] = place(share[..., None] * anchors[None] + shift)
        tables.setdefault("theta", jnp.log(share + 1e-3))
    return tables
