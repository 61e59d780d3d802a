"""Penalties Ω(Λ, Θ) = Σ Λ ⊙ Θ² with fine-grained coefficients Λ, fixed, or learned by `optim.lambda_opt`.

Λ are a mapping by names of parameters, of arrays that broadcast against them; a nested mapping for nested parameters;
or one array, for the parameters in `shared` together. A parameter that they do not name is not penalised.
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
# Which axes of the two tables have coefficients of their own: rows, dimensions, both, or None for none at all.
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
    """Λ for the tables of users [M, ...] and items [N, ...], all of one value.

    For tables [M, D] and [N, D]: "global" is one number for both, [], and "D" one for each dimension of both, [1, D].
    The others give each table its own: "DD" [1, D] and [1, D]; "U" [M, 1] for users alone, "I" [N, 1] for items alone,
    "UI" both; "DU" [M, D] and [1, D]; "DI" [1, D] and [N, D]; "DUI" [M, D] and [N, D], as many as parameters. In a
    table [M, K, D] all axes but the first count as dimensions.

    Args:
        params: with the two tables; other parameters are not penalised.
        granularity: one of the above.
        value: 0 in the paper.
        tables: names of the tables of users and items; `shared` of `penalty`, where it is not the default.

    Raises:
        ValueError: for another granularity, a value that is negative or not finite, tables that are not there, and "D"
            for tables whose dimensions differ.

    Differs: the released code holds the side that "U" or "I" leaves out at the starting value; here it has no penalty,
    which is the same from 0.

    >>> params = {"user": jnp.ones((3, 2)), "item": jnp.ones((4, 2))}
    >>> [(name, x.shape) for name, x in coefficients(params, "DU").items()]
    [('user', (3, 2)), ('item', (1, 2))]
    """
    if granularity not in get_args(Granularity):
        raise ValueError(f"granularity={granularity!r}; give one of {', '.join(get_args(Granularity))}")
    number("value", value, least=0)
    users, items = (_named(params, name) for name in tables)

    def filled(table: Array, axes: str) -> Array:
        rows, *dims = table.shape
        shape = (rows if "R" in axes else 1, *(dims if "D" in axes else [1] * len(dims)))
        return jnp.full(shape, value, table.dtype)

    if granularity == "global":
        return jnp.full((), value, users.dtype)
    if granularity == "D":
        if users.shape[1:] != items.shape[1:]:
            raise ValueError(f"the tables are {users.shape} and {items.shape}; they can't share 'D', give 'DD'")
        return filled(users, "D")
    sides = zip(tables, (users, items), _AXES[granularity])
    return {name: filled(table, axes) for name, table, axes in sides if axes is not None}


def penalty(
    lambdas: Any, params: Mapping[str, Any], rows: Rows | None = None, *, shared: Sequence[str] = TABLES
) -> Array:
    """Ω(Λ, Θ) = Σ Λ ⊙ Θ², over whole tables or over the rows that a batch meets; its gradient in Θ is 2 Λ ⊙ Θ.

    With `rows` = {name: (ids [R], weights [R])} it is Σ_r weights_r Σ Λ[ids_r] ⊙ Θ[ids_r]²: under weights 1/B, the mean
    over the B examples of what their rows are penalised. A parameter that `rows` does not name is penalised whole.

    Args:
        lambdas: Λ, as above.
        params: Θ.
        rows: as above, or None for whole tables.
        shared: names of the parameters that Λ without names are for.

    Raises:
        ValueError: for a name that the parameters do not have, and Λ that do not broadcast against them.

    >>> params = {"user": jnp.array([[1.0], [2.0]]), "item": jnp.array([[3.0]])}
    >>> float(penalty(jnp.array([[0.5]]), params)), float(penalty({"user": jnp.array([[0.5], [1.0]])}, params))
    (7.0, 4.5)
    >>> float(penalty(0.5, params, {"user": (jnp.array([1, 1]), jnp.array([0.5, 0.25]))}, shared=["user"]))
    1.5
    """
    named = lambdas if isinstance(lambdas, Mapping) else dict.fromkeys(shared, lambdas)
    total = 0.0
    for name, own in named.items():
        part, met = _named(params, name), (rows or {}).get(name)
        if isinstance(part, Mapping):
            total += penalty(own, part, met, shared=list(part))
        elif met is None:
            total += (_broadcasting(name, own, part) * part**2).sum()
        else:
            total += _of_rows(_broadcasting(name, own, part), part, *met)
    return jnp.asarray(total)


def _of_rows(own: Array, table: Array, ids: Array, weights: Array) -> Array:
    own = lookup(own, ids) if own.ndim and own.shape[0] > 1 else own
    found = lookup(table, ids)
    weights = jnp.asarray(weights, found.dtype).reshape(-1, *[1] * (found.ndim - 1))
    return (weights * own * found**2).sum()


def _named(params: Mapping[str, Any], name: str) -> Any:
    if name not in params:
        raise ValueError(f"no parameter is named {name!r}, there are {list(params)}; rename, or say which are shared")
    return params[name]


def _broadcasting(name: str, own: Array, table: Any) -> Array:
    # Asked for its own shape, a table whose look-ups are watched would count as used whole.
    ((shape, dtype),) = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(table)]
    own = jnp.asarray(own, dtype)
    fits = own.ndim in (0, len(shape)) and all(a in (1, b) for a, b in zip(own.shape, shape))
    if not fits:
        raise ValueError(f"lambdas for {name!r} are {own.shape}, it is {shape}; give (), or a size or 1 for each axis")
    return own
