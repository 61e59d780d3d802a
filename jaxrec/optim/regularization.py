"""Penalties Ω(Λ, Θ) = Σ Λ ⊙ Θ² with fine-grained coefficients Λ, fixed or learned by λOpt.

Λ is a mapping from names of parameters to arrays that broadcast against them; nested parameters
have a nested mapping. Λ can also be one array, which the parameters named in `shared` then share.
Parameters without coefficients are not penalised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxrec._lookup import lookup
from jaxrec._numerics import number
from jaxrec.typing import Array, Scalar

Granularity = Literal["global", "D", "DD", "U", "I", "UI", "DU", "DI", "DUI"]
Rows = Mapping[str, Any]
TABLES = ("user", "item")
# The axes of the two tables that have separate coefficients: rows R, dimensions D, both, or None
# for no penalty.
_AXES = {
    "DD": ("D", "D"),
    "U": ("R", None),
    "I": (None, "R"),
    "UI": ("R", "R"),
    "DU": ("RD", "D"),
    "DI": ("D", "RD"),
    "DUI": ("RD", "RD"),
}


def coefficients(
    params: Mapping[str, Array],
    granularity: Granularity = "DUI",
    *,
    value: Scalar = 0.0,
    tables: tuple[str, str] = TABLES,
) -> Any:
    """Returns Λ for the tables of users [M, ...] and items [N, ...], filled with one value.

    For tables [M, D] and [N, D] the granularities are:

        "global"  one number for both, []
        "D"       one number per dimension for both, [1, D]
        "DD"      [1, D] and [1, D]
        "U"       [M, 1] for users only
        "I"       [N, 1] for items only
        "UI"      [M, 1] and [N, 1]
        "DU"      [M, D] and [1, D]
        "DI"      [1, D] and [N, D]
        "DUI"     [M, D] and [N, D], as many as parameters

    In a table [M, K, D] all axes but the first count as dimensions.

    Args:
        params: parameters with the two tables; other parameters are not penalised.
        granularity: one of the above.
        value: the value of all coefficients; 0 in the paper.
        tables: names of the tables of users and items. If they are not the default, pass them as
            `shared` to `penalty` too.

    Raises:
        ValueError: if `granularity` has another value, `value` is negative or not finite, a table
            is missing, or tables with different dimensions are to share "D".

    Differs: the released code keeps the side that "U" or "I" leaves out at the starting value; here
    it has no penalty, which is the same if Λ starts at 0.

    >>> params = {"user": jnp.ones((3, 2)), "item": jnp.ones((4, 2))}
    >>> [(name, x.shape) for name, x in coefficients(params, "DU").items()]
    [('user', (3, 2)), ('item', (1, 2))]
    """
    if granularity not in get_args(Granularity):
        raise ValueError(f"granularity={granularity!r}; give one of {', '.join(get_args(Granularity))}")
    number("value", value, least=0)
    users, items = (_named(params, name) for name in tables)

    def filled(table: Array, axes: str) -> jax.Array:
        rows, *dims = table.shape
        shape = (rows if "R" in axes else 1, *(dims if "D" in axes else [1] * len(dims)))
        return jnp.full(shape, value, table.dtype)

    if granularity == "global":
        return jnp.full((), value, users.dtype)
    if granularity == "D":
        if users.shape[1:] != items.shape[1:]:
            raise ValueError(f"the tables are {users.shape} and {items.shape}, which cannot share 'D'; give 'DD'")
        return filled(users, "D")
    sides = zip(tables, (users, items), _AXES[granularity])
    return {name: filled(table, axes) for name, table, axes in sides if axes is not None}


def penalty(
    lambdas: Any, params: Mapping[str, Any], rows: Rows | None = None, *, shared: Sequence[str] = TABLES
) -> jax.Array:
    """Computes Ω(Λ, Θ) = Σ Λ ⊙ Θ² over whole tables or some rows; its gradient in Θ is 2 Λ ⊙ Θ.

    With `rows` = {name: (ids [R], weights [R])} it is Σ_r weights_r Σ Λ[ids_r] ⊙ Θ[ids_r]². With
    weights of 1/B, this is the mean over B examples of the penalty of their rows. A parameter that
    `rows` does not name is penalised as a whole.

    Args:
        lambdas: Λ, as described in the module.
        params: Θ.
        rows: the rows to penalise, as above, or None for whole tables.
        shared: names of the parameters that share Λ if it is one array.

    Raises:
        ValueError: if Λ names a parameter that does not exist, or does not broadcast against the
            parameters.

    >>> params = {"user": jnp.array([[1.0], [2.0]]), "item": jnp.array([[3.0]])}
    >>> float(penalty(jnp.array([[0.5]]), params)), float(penalty({"user": jnp.array([[0.5], [1.0]])}, params))
    (7.0, 4.5)
    >>> float(penalty(0.5, params, {"user": (jnp.array([1, 1]), jnp.array([0.5, 0.25]))}, shared=["user"]))
    1.5
    """
    named = lambdas if isinstance(lambdas, Mapping) else dict.fromkeys(shared, lambdas)
    total: Scalar = 0.0
    for name, own in named.items():
        part, met = _named(params, name), (rows or {}).get(name)
        if isinstance(part, Mapping):
            total += penalty(own, part, met, shared=list(part))
        elif met is None:
            total += (_broadcasting(name, own, part) * part**2).sum()
        else:
            total += _of_rows(_broadcasting(name, own, part), part, *met)
    return jnp.asarray(total)


def _of_rows(own: Array, table: Array, ids: Array, weights: Array) -> jax.Array:
    """Sums the weighted penalties of the rows at `ids` [R]."""
    own = lookup(own, ids) if own.ndim and own.shape[0] > 1 else own
    found = lookup(table, ids)
    weights = jnp.asarray(weights, found.dtype).reshape(-1, *[1] * (found.ndim - 1))
    return (weights * own * found**2).sum()


def _named(params: Mapping[str, Any], name: str) -> Any:
    """Returns the parameter of this name."""
    if name not in params:
        raise ValueError(f"no parameter is named {name!r}; use a name of {list(params)}, or pass shared=")
    return params[name]


def _broadcasting(name: str, own: Array, table: Any) -> jax.Array:
    """Returns the coefficients of a parameter in its dtype; they must broadcast against it."""
    ((shape, dtype),) = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(table)]
    own = jnp.asarray(own, dtype)
    fits = own.ndim in (0, len(shape)) and all(a in (1, b) for a, b in zip(own.shape, shape))
    if not fits:
        raise ValueError(
            f"lambdas for {name!r} have shape {own.shape}, but the parameter has {shape}; "
            "give shape (), or the parameter's size or 1 on each axis"
        )
    return own
