"""Matrix factorisation: a vector for each user and item, and a function that scores the two."""

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
from jaxrec._partials import check_static
from jaxrec.typing import Array, Key


class Score(Protocol):
    """How two vectors make a score; `dot`, `cosine` and `negative_squared_distance` are three."""

    def __call__(self, users: Array, items: Array) -> tuple[Array, Array]:
        """Maps tables [..., D] to tables [..., D'] whose dot product is the score."""


def dot(users: Array, items: Array) -> tuple[Array, Array]:
    """u·v."""
    return users, items


def cosine(users: Array, items: Array) -> tuple[Array, Array]:
    """u·v / (‖u‖ ‖v‖); a zero vector scores 0 and gets no gradient."""
    return _unit(users), _unit(items)


def negative_squared_distance(users: Array, items: Array) -> tuple[Array, Array]:
    """−‖u − v‖² = (2u, −‖u‖², 1)·(v, 1, −‖v‖²)."""
    u_square, v_square = (users**2).sum(-1, keepdims=True), (items**2).sum(-1, keepdims=True)
    return (
        jnp.concatenate([2 * users, -u_square, jnp.ones_like(u_square)], axis=-1),
        jnp.concatenate([items, jnp.ones_like(v_square), -v_square], axis=-1),
    )


def _unit(x: Array) -> Array:
    square = (x**2).sum(-1, keepdims=True)
    positive = square > 0
    return jnp.where(positive, x * jax.lax.rsqrt(jnp.where(positive, square, 1)), 0)


def dropped(vectors: Array, rate: float, key: Key) -> Array:
    """Vectors [..., D] with a share of their coordinates set to 0 and the others scaled up by 1 / (1 - rate).

    One key drops the same coordinates of [B, D] and [B, 1, D].
    """
    kept = jax.random.bernoulli(key, 1 - rate, (vectors.size // vectors.shape[-1], vectors.shape[-1]))
    return jnp.where(kept.reshape(vectors.shape), vectors / (1 - rate), 0)


def check_sizes(model: nn.Module, *names: str, least: int = 1) -> None:
    """Makes Python ints of the model's sizes; `ValueError` for anything but integers of `least` or more."""
    for name in names:
        setattr(model, name, integer(name, getattr(model, name), least=least))


def check_numbers(model: nn.Module, *names: str, **bounds: float) -> None:
    """Makes Python floats of NumPy and JAX numbers, and lets traced ones pass.

    Raises:
        ValueError: for anything but finite numbers within `bounds`, which are those of `_numerics.number`.
    """
    for name in names:
        value = number(name, getattr(model, name), **bounds)
        if np.ndim(value):
            raise ValueError(f"{name}={value}; give one number, an array cannot be a model's attribute")
        if not isinstance(value, jax.core.Tracer) and type(value) not in (int, float):
            setattr(model, name, float(value))


def check_rate(model: nn.Module, name: str) -> None:
    """`check_numbers` of a share of entries to drop, which is 0 or more and below 1."""
    check_numbers(model, name, least=0)
    rate = getattr(model, name)
    if not isinstance(rate, jax.core.Tracer) and rate >= 1:
        raise ValueError(f"{name}={rate}; give a rate of 0 or more and below 1")


def check_function(model: nn.Module, name: str, instead: str) -> None:
    """`TypeError` for an attribute that cannot be called, such as the name of a function."""
    if not callable(getattr(model, name)):
        raise TypeError(f"{name}={getattr(model, name)!r}; give a function: {instead}")


def check_attributes(model: nn.Module) -> None:
    """`TypeError` for an attribute that jit cannot key on, such as an array; traced numbers pass.

    A constructor calls it last, when sizes and numbers are Python's.
    """
    for field in dataclasses.fields(model):
        value = getattr(model, field.name, None)
        if field.name not in ("parent", "name") and not isinstance(value, jax.core.Tracer):
            check_static(value, f"{type(model).__name__}.{field.name}")


def checked_ids(*ids: Array) -> list[jax.Array]:
    """Integers of any type as int32, in which places and draws are computed; `AssertionError` for others."""
    chex.assert_type(ids, int)
    return [as_ids(x) for x in ids]


def products(u: Array, v: Array) -> Array:
    """u·v over the last axis, of arrays that broadcast: without their product in full where one row meets many."""
    if u.ndim == 3 and v.ndim == 3 and u.shape[1] == 1:
        if v.shape[0] == 1:
            return jnp.einsum("bd,nd->bn", u[:, 0], v[0])
        if v.shape[0] == u.shape[0]:
            return jnp.einsum("bd,bnd->bn", u[:, 0], v)
    return (u * v).sum(-1)


def against_all(score: Callable[[Any, Any], Array], users: Any, items: Any, *, width: int) -> Array:
    """Scores [B, N] of a model without tables to multiply, for a few users at a time.

    Args:
        score: gives [b, N] from rows of users [b, 1, ...] and of items [1, N, ...].
        users: arrays [B, ...], a tree.
        items: arrays [N, ...], a tree.
        width: numbers that a pair's score passes through; about 2²² of them are held at once.
    """
    n_items = jax.tree.leaves(items)[0].shape[0]
    items = jax.tree.map(lambda x: x[None], items)

    def of_user(user: Any) -> Array:
        return score(jax.tree.map(lambda x: x[None, None], user), items)[0]

    return jax.lax.map(of_user, users, batch_size=max(2**22 // (n_items * width), 1))


class MF(nn.Module):
    """Matrix factorisation (Koren et al. 2009, 10.1109/MC.2009.263), with any loss.

    Parameters are `user` [M, D] and `item` [N, D], drawn from a normal distribution.

    Attributes:
        n_users: M.
        n_items: N.
        dim: D.
        score: `dot`, `cosine`, `negative_squared_distance`, or any function of that form.
        scale: standard deviation of the initial vectors. Under `cosine` only the ratio of step to length counts: the
            experiments of SimpleX and the multi-margin loss use 1e-4.
        dropout: share of the coordinates of a user's vector that are dropped after `score` has mapped it, the others
            scaled up, where `apply` gets `rngs={"dropout": key}`, as training does. `rows` and `vectors` drop nothing.
            SimpleX takes .1; cosines are then not bounded by 1.

    Raises:
        TypeError: for a score that is no function.
        ValueError: for sizes that are not integers of 1 or more, a negative scale, and a dropout outside [0, 1).

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
        check_function(self, "score", "jaxrec.models.dot, cosine, or one of that form")
        check_attributes(self)
        super().__post_init__()

    def setup(self) -> None:  # noqa: D102
        init = nn.initializers.normal(self.scale)
        self.user = self.param("user", init, (self.n_users, self.dim))
        self.item = self.param("item", init, (self.n_items, self.dim))

    def __call__(self, users: Array, items: Array) -> Array:
        """Scores of the pairs: ids that broadcast, such as [B, 1] and [B, n] -> [B, n]."""
        chex.assert_type([users, items], int)
        if jnp.size(items) > self.n_items:  # a mapped table costs less than as many mapped rows
            u, v = self.score(lookup(self.user, users), self.item)
            v = v[items]
        else:
            u, v = self.score(lookup(self.user, users), lookup(self.item, items))
        if (isinstance(self.dropout, jax.core.Tracer) or self.dropout > 0) and self.has_rng("dropout"):
            u = dropped(u, self.dropout, self.make_rng("dropout"))
        return products(u, v)

    def rows(self, users: Array) -> Array:
        """Scores of all items for users [B] -> [B, N]."""
        u, v = self.score(lookup(self.user, users), self.item)
        return jnp.einsum("bd,nd->bn", u, v)

    def vectors(self) -> tuple[Array, Array]:
        """Tables [M, D'], [N, D'] whose dot product is the score."""
        return self.score(self.user, self.item)
