"""What the alternating solvers share: checks of their input, the first factors, and the loop over sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._identity import described
from jaxrec._keys import check_key
from jaxrec._log import Log
from jaxrec._numerics import as_integer, number
from jaxrec._run import Loop, NotFinite
from jaxrec._run import run as in_epochs
from jaxrec.interactions import Interactions, check_positives
from jaxrec.typing import Array, Key, Variables

Factors = Mapping[str, Array]
State = TypeVar("State")


def check_input(train: Interactions, dim: int, **not_negative: float) -> int:
    """Refuses what no solver can work on, and returns `dim` as a Python int.

    Raises:
        TypeError: for anything but `Interactions`.
        ValueError: for a set without pairs, weights that are negative, not finite or all 0, a dim that is no integer in
            1 .. min(M, N), and hyperparameters that are negative or not finite.
    """
    check_positives(train=train)
    for name, value in not_negative.items():
        number(name, value, least=0)
    found, smaller = as_integer(dim), min(train.n_users, train.n_items)
    if found is None or not 1 <= found <= smaller:
        raise ValueError(
            f"dim={dim} with {train.n_users} users and {train.n_items} items; give 1 to {smaller}, an integer"
        )
    return found


def check_factors(variables: Variables, given: str, **sizes: int) -> list[jax.Array]:
    """The tables [M, K] and [N, K] in the variables that a solver returns.

    Args:
        variables: {"params": {"user": [M, K], "item": [N, K]}}; "user" may be missing where it is not asked for.
        given: what the tables are for, such as "train has".
        sizes: which tables are needed, and of how many rows: "user" of M, "item" of N.

    Raises:
        ValueError: for variables of another form, such as those of a model with biases, facets or a graph, which the
            solver's formula would not fit.
    """
    form = 'variables of a solver are {"params": {"user": [M, K], "item": [N, K]}}'
    if not isinstance(variables, Mapping):
        raise ValueError(f"variables is a {type(variables).__name__}; {form}: give what fit returned")
    params = variables.get("params")
    names = set(params) if isinstance(params, Mapping) else set()
    if set(variables) != {"params"} or not {*sizes, "item"} <= names <= {"user", "item"}:
        found = {name: sorted(part) if isinstance(part, Mapping) else "..." for name, part in variables.items()}
        raise ValueError(f"variables has {found}; {form}, and those of another model do not fit")
    tables = {name: jnp.asarray(params[name]) for name in sorted(names)}
    shapes = {name: list(table.shape) for name, table in tables.items()}
    if any(len(shape) != 2 for shape in shapes.values()) or len({width for _, width in shapes.values()}) > 1:
        raise ValueError(f"variables has tables of shapes {shapes}; {form}, and those of another model do not fit")
    for name, size in sizes.items():
        if shapes[name][0] != size:
            raise ValueError(f"{given} {size} {name}s and variables {shapes[name][0]}; use one id map")
    return [tables[name] for name in sizes]


def check_solved(vectors: Array) -> Array:
    """The vectors; `ValueError` where one is not finite, unless they are traced."""
    if not isinstance(vectors, jax.core.Tracer) and not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        raise ValueError(
            f"the vector of row {row} is not finite: its normal equations are singular, or variables has NaN; raise "
            "regularization (with 0, no row may have fewer pairs than dim)"
        )
    return vectors


def first_factors(key: Key, train: Interactions, dim: int, scale: float) -> Factors:
    """Items from N(0, scale² / K), users zero: the first half step is theirs."""
    check_key(key)
    number("scale", scale, least=0)
    item = scale / np.sqrt(dim) * jax.random.normal(key, (train.n_items, dim))
    return {"user": jnp.zeros((train.n_users, dim), item.dtype), "item": item}


def description_of(train: Interactions, key: Key, **settings: Any) -> dict[str, Any]:
    """What a checkpoint of a solver must match to be this run's."""
    own = {name: described(value) for name, value in settings.items()}
    return {"train": train.fingerprint(), "key": np.asarray(jax.random.key_data(key)).tolist(), **own}


def run(
    sweep: Callable[[State], tuple[State, Mapping[str, Array]]],
    state: State,
    *,
    model: Any,
    sweeps: int,
    tolerance: float | None,
    params: Callable[[State], Any] = lambda state: state,
    unit: str = "sweeps",
    description: Callable[[], Mapping[str, Any]] = dict,
    **loop: Unpack[Loop],
) -> tuple[Any, Variables, Log]:
    """Sweeps until `sweeps` are done, the objective no longer falls, or `stopping` has waited long enough.

    Args:
        sweep: takes a state and gives the next, and named numbers, among them "objective".
        state: the start.
        model: that the variables are for.
        sweeps: largest number of sweeps.
        tolerance: the run ends when a sweep lowers the objective by no more than this share of it; None never ends it.
        params: of a state; by default the state itself.
        unit: what the bar counts.
        description: gives what a checkpoint must match; called if there is one.
        loop: see `jaxrec._run.Loop`.

    Returns:
        The model, its variables and the `Log`.

    Raises:
        DivergenceError: a `ValueError`, for an objective that is not finite.
        ValueError: for a `tolerance` that is negative or not finite; see also `jaxrec._run.run`.
    """
    if tolerance is not None:
        number("tolerance", tolerance, least=0)

    def variables(state: State) -> Variables:
        return {"params": params(state)}

    def advance(state: State, count: int) -> tuple[State, Mapping[str, Array]]:
        state, values = sweep(state)
        if not np.isfinite(value := float(values["objective"])):
            raise NotFinite(
                f"the objective is {value} at sweep {count}: a system of normal equations is singular or nearly; raise "
                "regularization (with 0, no system may have fewer equations than dim)"
            )
        return state, values

    def settled(before: Mapping[str, float], now: Mapping[str, float]) -> bool:
        return before["objective"] - now["objective"] <= tolerance * abs(before["objective"])

    best, log = in_epochs(
        advance,
        state,
        epochs=sweeps,
        variables=variables,
        settled=None if tolerance is None else settled,
        returned=variables,
        unit=unit,
        description=description() if loop.get("checkpoint") is not None else None,
        **loop,
    )
    return model, variables(best), log
