"""Matrix factorisation: one vector per user and item, and a function that scores the two."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._lookup import lookup
from jaxrec._numerics import as_ids, integer, number
from jaxrec._partials import check_function, check_static
from jaxrec._platform import sized
from jaxrec.typing import Array, Key


class Score(Protocol):
    """How two vectors give a score: `dot`, `cosine`, `negative_squared_distance`, or your own."""

    def __call__(self, users: Array, items: Array) -> tuple[jax.Array, jax.Array]:
        """Maps tables [..., D] to tables [..., D'] whose dot product is the score."""


def dot(users: Array, items: Array) -> tuple[jax.Array, jax.Array]:
    """Returns vectors for u·v."""
    return users, items


def cosine(users: Array, items: Array) -> tuple[jax.Array, jax.Array]:
    """Returns vectors for u·v / (‖u‖ ‖v‖); a zero vector scores 0 and gets no gradient."""
    return _unit(users), _unit(items)


def negative_squared_distance(users: Array, items: Array) -> tuple[jax.Array, jax.Array]:
    """Returns vectors for −‖u − v‖² = (2u, −‖u‖², 1)·(v, 1, −‖v‖²)."""
    u_square, v_square = (users**2).sum(-1, keepdims=True), (items**2).sum(-1, keepdims=True)
    return (
        jnp.concatenate([2 * users, -u_square, jnp.ones_like(u_square)], axis=-1),
        jnp.concatenate([items, jnp.ones_like(v_square), -v_square], axis=-1),
    )


def _unit(x: Array) -> jax.Array:
    """Returns x / ‖x‖, with value and gradient 0 at 0."""
    square = (x**2).sum(-1, keepdims=True)
    # Both branches of `where` are differentiated: the inner one keeps rsqrt from 0.
    positive = square > 0
    return jnp.where(positive, x * jax.lax.rsqrt(jnp.where(positive, square, 1)), 0)


def dropped(vectors: Array, rate: float, key: Key) -> jax.Array:
    """Sets a share `rate` of the coordinates [..., D] to 0, and divides the others by 1 − rate.

    One key drops the same coordinates of [B, D] and of [B, 1, D].
    """
    kept = jax.random.bernoulli(key, 1 - rate, (vectors.size,)).reshape(vectors.shape)
    return jnp.where(kept, vectors / (1 - rate), 0)


def check_sizes(model: nn.Module, *names: str, least: int = 1) -> None:
    """Converts the model's sizes to Python ints.

    Raises:
        ValueError: for anything but integers of `least` or more.
    """
    for name in names:
        setattr(model, name, integer(name, getattr(model, name), least=least))


def check_numbers(model: nn.Module, *names: str, **bounds: float) -> None:
    """Converts NumPy and JAX numbers to Python floats; traced numbers are not changed.

    Raises:
        ValueError: if a value is not a finite number within `bounds`, which are those of
            `_numerics.number`.
    """
    for name in names:
        value = number(name, getattr(model, name), **bounds)
        if np.ndim(value):
            raise ValueError(f"{name}={value}; give one number, since an array cannot be a model's attribute")
        if not isinstance(value, jax.core.Tracer) and type(value) not in (int, float):
            setattr(model, name, float(value))


def check_rate(model: nn.Module, name: str) -> None:
    """Applies `check_numbers` to a dropout rate, which must be 0 or more and below 1."""
    check_numbers(model, name, least=0)
    rate = getattr(model, name)
    if not isinstance(rate, jax.core.Tracer) and rate >= 1:
        raise ValueError(f"{name}={rate}; give a rate of 0 or more and below 1")


def check_attributes(model: nn.Module) -> None:
    """Raises `TypeError` if jit cannot hash an attribute, such as an array.

    Traced numbers are not checked. A constructor calls it last, when sizes and numbers have become
    Python's.
    """
    for field in dataclasses.fields(model):
        value = getattr(model, field.name, None)
        if field.name not in ("parent", "name") and not isinstance(value, jax.core.Tracer):
            check_static(value, f"{type(model).__name__}.{field.name}")


def checked_ids(*ids: Array) -> list[jax.Array]:
    """Casts integers of any dtype to int32; raises `AssertionError` for other dtypes."""
    chex.assert_type(ids, int)
    return [as_ids(x) for x in ids]


def products(u: Array, v: Array) -> jax.Array:
    """Returns u·v over the last axis, for arrays that broadcast.

    If one row meets many, their full elementwise product is not formed.
    """
    if u.ndim == 3 and v.ndim == 3 and u.shape[1] == 1:
        if v.shape[0] == 1:
            return jnp.einsum("bd,nd->bn", u[:, 0], v[0])
        if v.shape[0] == u.shape[0]:
            return jnp.einsum("bd,bnd->bn", u[:, 0], v)
    return (u * v).sum(-1)


def against_all(score: Callable[[Any, Any], Array], users: Any, items: Any, *, width: int) -> jax.Array:
    """Scores all items, [B, N], a few users at a time, for a model that has no tables to multiply.

    Args:
        score: function of rows of users [b, 1, ...] and of items [1, N, ...] that returns scores
            [b, N].
        users: arrays [B, ...], a tree.
        items: arrays [N, ...], a tree.
        width: number of intermediate values per pair; see `_platform.SIZES`.
    """
    n_items = jax.tree.leaves(items)[0].shape[0]
    items = jax.tree.map(lambda x: x[None], items)

    def of_user(user: Any) -> jax.Array:
        return score(jax.tree.map(lambda x: x[None, None], user), items)[0]

    # `jax.export` may trace with a symbolic number of users, which cannot be divided into blocks.
    symbolic = not isinstance(jax.tree.leaves(users)[0].shape[0], int)

    def by_block(size: int, users: Any) -> jax.Array:
        block = max(size // (n_items * width), 1)
        return jax.lax.map(of_user, users, batch_size=None if symbolic else block)

    return sized("intermediates", by_block, users)


class MF(nn.Module):
    """Matrix factorisation (Koren et al. 2009, 10.1109/MC.2009.263), for any loss.

    The parameters are `user` [M, D] and `item` [N, D], drawn from a normal distribution.

    Attributes:
        n_users: M.
        n_items: N.
        dim: D.
        score: `dot`, `cosine`, `negative_squared_distance`, or any function with the same
            signature.
        scale: standard deviation of the initial vectors. With `cosine`, only the ratio of step size
            to vector length matters: the experiments of SimpleX and the multi-margin loss use 1e-4.
        dropout: rate at which coordinates of the users' vectors are dropped after `score` has
            mapped them; the others are scaled up. It applies if `apply` gets `rngs={"dropout":
            key}`, as in training. `rows` and `vectors` have no dropout. SimpleX uses .1; cosines
            are then not bounded by 1.

    Raises:
        TypeError: if `score` is not a function.
        ValueError: if a size is not an integer of 1 or more, `scale` is negative or not finite, or
            `dropout` lies outside [0, 1).

    >>> model = MF(3, 5, dim=2)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> model.apply(variables, jnp.array([[0], [2]]), jnp.array([[1, 4]])).shape
    (2, 2)
    >>> model.apply(variables, jnp.array([0, 2]), method="rows").shape
    (2, 5)
    """

    n_users: int
    n_items: int
    dim: int = 64
    score: Callable[[Array, Array], tuple[Array, Array]] = dot
    scale: float = 0.01
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, "n_users", "n_items", "dim")
        check_numbers(self, "scale", least=0)
        check_rate(self, "dropout")
        check_function("score", self.score, "jaxrec.models.dot or cosine")
        check_attributes(self)
        super().__post_init__()

    def setup(self) -> None:  # noqa: D102
        init = nn.initializers.normal(self.scale)
        self.user = self.param("user", init, (self.n_users, self.dim))
        self.item = self.param("item", init, (self.n_items, self.dim))

    def __call__(self, users: Array, items: Array) -> jax.Array:
        """Scores pairs of ids that broadcast, such as users [B, 1] and items [B, n] -> [B, n]."""
        chex.assert_type([users, items], int)
        if jnp.size(items) > self.n_items:  # mapping the table costs less than mapping the rows
            u, v = self.score(lookup(self.user, users), self.item)
            v = v[items]
        else:
            u, v = self.score(lookup(self.user, users), lookup(self.item, items))
        if (isinstance(self.dropout, jax.core.Tracer) or self.dropout > 0) and self.has_rng("dropout"):
            u = dropped(u, self.dropout, self.make_rng("dropout"))
        return products(u, v)

    def rows(self, users: Array) -> jax.Array:
        """Scores all items for users [B] -> [B, N]."""
        u, v = self.score(lookup(self.user, users), self.item)
        return jnp.einsum("bd,nd->bn", u, v)

    def vectors(self) -> tuple[jax.Array, jax.Array]:
        """Returns tables [M, D'], [N, D'] whose dot product is the score."""
        return self.score(self.user, self.item)

    def item_vectors(self) -> jax.Array:
        """Returns the items' own vectors [N, D], which `evaluate.similar` compares for any `score`."""
        return jnp.asarray(self.item)
