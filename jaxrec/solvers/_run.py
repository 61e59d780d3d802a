"""Shared parts of the solvers: input checks, initial factors, and the loop over sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrec._identity import described
from jaxrec._keys import check_key
from jaxrec._log import Log
from jaxrec._mesh import automatic, mesh_of, on_mesh, using
from jaxrec._numerics import as_integer, number
from jaxrec._run import Loop, NotFinite, check_loop
from jaxrec._run import run as in_epochs
from jaxrec.interactions import Interactions, check_positives
from jaxrec.typing import Array, Key, Scalar, Variables

Factors = Mapping[str, Any]
State = TypeVar("State")


def check_input(train: Interactions, dim: int, **not_negative: Scalar) -> int:
    """Checks the input of a solver and returns `dim` as a Python int.

    Args:
        train: the positives.
        dim: number of dimensions of a factor.
        not_negative: hyperparameters by name.

    Raises:
        TypeError: if `train` is not an `Interactions`.
        ValueError: if `train` has no pairs; weights are negative, not finite or all 0; `dim` is not
            an integer from 1 to min(M, N); or a hyperparameter is negative or not finite.
    """
    check_positives(train=train)
    for name, value in not_negative.items():
        number(name, value, least=0)
    found, smaller = as_integer(dim), min(train.n_users, train.n_items)
    if found is None or not 1 <= found <= smaller:
        raise ValueError(
            f"dim={dim} with {train.n_users} users and {train.n_items} items; give 1 to {smaller} as an integer"
        )
    return found


def check_factors(variables: Variables, given: str, **sizes: int) -> list[jax.Array]:
    """Returns the tables [M, K] and [N, K] of the variables that a solver returned.

    Args:
        variables: {"params": {"user": [M, K], "item": [N, K]}}. "user" may be missing if `sizes`
            does not name it.
        given: the data for which the tables are needed, as the beginning of a message, such as
            "train has".
        sizes: number of rows of each table needed: "user" (M) and "item" (N).

    Raises:
        ValueError: if `variables` has another form, such as that of a model with biases, facets or
            a graph, for which the solver's formula is wrong.
    """
    form = 'variables of a solver are {"params": {"user": [M, K], "item": [N, K]}}'
    if not isinstance(variables, Mapping):
        raise ValueError(f"variables is a {type(variables).__name__}; {form}; give the variables that fit returned")
    params: Any = variables.get("params")
    names = set(params) if isinstance(params, Mapping) else set()
    if set(variables) != {"params"} or not {*sizes, "item"} <= names <= {"user", "item"}:
        found = {name: sorted(part) if isinstance(part, Mapping) else "..." for name, part in variables.items()}
        raise ValueError(f"variables has {found}; {form}; give the variables that fit returned")
    tables = {name: jnp.asarray(params[name]) for name in sorted(names)}
    if not any(isinstance(table, jax.core.Tracer) for table in tables.values()):
        tables = on_mesh(tables, mesh_of(tables))
    shapes = {name: list(table.shape) for name, table in tables.items()}
    if any(len(shape) != 2 for shape in shapes.values()) or len({width for _, width in shapes.values()}) > 1:
        raise ValueError(f"variables has tables of shapes {shapes}; {form}; give the variables that fit returned")
    for name, table in tables.items():
        if table.dtype not in (jnp.float32, jnp.float64):
            raise ValueError(
                f"variables has a table of {table.dtype} for {name}; give float32, such as x.astype('float32')"
            )
    for name, size in sizes.items():
        if shapes[name][0] != size:
            raise ValueError(f"{given} {size} {name}s and variables {shapes[name][0]}; use one id map")
    return [tables[name] for name in sizes]


def check_solved(vectors: Array) -> jax.Array:
    """Returns the vectors; raises `ValueError` if one is not finite, unless they are traced."""
    if not isinstance(vectors, jax.core.Tracer) and not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        raise ValueError(
            f"the vector of row {row} is not finite: its normal equations are singular, or variables contains NaN; "
            "raise regularization (0 may be too small for rows with fewer pairs than dim)"
        )
    return vectors


def first_factors(key: Key, train: Interactions, dim: int, scale: float) -> Factors:
    """Draws item factors from N(0, scale² / K); users are zero, because they are solved first."""
    check_key(key)
    number("scale", scale, least=0)
    # On the host, without a compiled product.
    item = np.asarray(jax.random.normal(key, (train.n_items, dim)))
    item = item * item.dtype.type(scale / np.sqrt(dim))
    return {"user": jax.device_put(np.zeros((train.n_users, dim), item.dtype)), "item": jax.device_put(item)}


def description_of(train: Interactions, key: Key, **settings: Any) -> dict[str, Any]:
    """Returns what a checkpoint must match to belong to this run."""
    own = {name: described(value) for name, value in settings.items()}
    return {"train": train.fingerprint(), "key": np.asarray(jax.random.key_data(key)).tolist(), **own}


def run(
    sweep: Callable[[State], tuple[State, Mapping[str, Any]]],
    state: State,
    *,
    model: Any,
    sweeps: int,
    tolerance: float | None,
    began: float,
    params: Callable[[State], Any] = lambda state: state,
    mesh: Mesh | None = None,
    unit: str = "sweeps",
    description: Callable[[], Mapping[str, Any]] = dict,
    **loop: Unpack[Loop],
) -> tuple[Any, Variables, Log]:
    """Runs sweeps until `sweeps` are done, the objective has settled, or `stopping` ends the run.

    Args:
        sweep: takes a state and returns the next one and named numbers, among them "objective".
        state: the initial state.
        model: the model to return.
        sweeps: maximum number of sweeps.
        tolerance: ends the run if a sweep lowers the objective by at most this fraction of it. None
            never ends it.
        began: the time at which the caller started; see `jaxrec._run.run`.
        params: returns the parameters of a state; by default the state itself.
        mesh: the mesh on which the state lies, or None.
        unit: what the progress bar counts.
        description: returns what a checkpoint must match; only called if there is a checkpoint.
        loop: see `jaxrec._run.Loop`.

    Returns:
        The model, its variables and the `Log`.

    Raises:
        DivergenceError: a `ValueError`, if the objective is not finite.
        TypeError: if `loop` has an argument that is not one of `Loop`.
        ValueError: if `tolerance` is negative or not finite; see also `jaxrec._run.run`.
    """
    check_loop(loop, unit)
    if tolerance is not None:
        number("tolerance", tolerance, least=0)

    def variables(state: State) -> Variables:
        return {"params": params(state)}

    def advance(state: State, count: int) -> tuple[State, Mapping[str, Any]]:
        state, values = sweep(state)
        if not np.isfinite(value := float(values["objective"])):
            raise NotFinite(
                f"the objective is {value} at sweep {count}: normal equations are singular or nearly singular; raise "
                "regularization (with 0, a system with fewer equations than dim is singular)"
            )
        return state, values

    def settled(before: Mapping[str, float], now: Mapping[str, float]) -> bool:
        return before["objective"] - now["objective"] <= (tolerance or 0.0) * abs(before["objective"])

    with using(None if mesh is None else automatic(mesh)):
        best, log = in_epochs(
            advance,
            state,
            epochs=sweeps,
            variables=variables,
            began=began,
            settled=None if tolerance is None else settled,
            returned=variables,
            unit=unit,
            description=description() if loop.get("checkpoint") is not None else None,
            **loop,
        )
        return model, variables(best), log
