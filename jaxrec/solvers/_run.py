"""What the alternating solvers share: the checks at their door, the first factors, and the loop over sweeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxrec._keys import check_key
from jaxrec._log import EarlyStopping, History, Interrupted, extended
from jaxrec._numerics import as_integer, integer, number
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


def run(
    sweep: Callable[[State], tuple[State, Mapping[str, Array]]],
    state: State,
    *,
    factors: Callable[[State], Factors] = lambda state: state,
    sweeps: int,
    tolerance: float | None,
    validate: Callable[[Variables], Mapping[str, float]] | None,
    every: int,
    stopping: EarlyStopping | None,
    progress: bool,
    unit: str = "sweeps",
) -> tuple[Variables, History]:
    """Sweeps until `sweeps` are done, the objective no longer falls, or `stopping` has waited enough.

    Args:
        sweep: takes a state and gives the next and figures, among them "objective".
        state: to begin with.
        factors: reads {"user": [M, K], "item": [N, K]} off a state; by default the state is just that.
        sweeps: at most.
        tolerance: the run ends when a sweep lowers the objective by no more than this share of it; None never ends it.
        validate: host function of the variables that gives named figures.
        every: validate after every so many sweeps, and after the last.
        stopping: ends the run when its metric no longer gets better; the best state counts then.
        progress: show a bar.
        unit: what the bar counts.

    Returns:
        `MF`'s variables, {"params": {"user": [M, K], "item": [N, K]}}, and the `History`.

    Raises:
        TypeError: for a `stopping` of another type.
        ValueError: for `sweeps` or `every` that is not an integer of 1 or more, a `tolerance` that is negative or not
            finite, `stopping` without `validate`, an objective that is not finite, and a metric of `stopping` that no
            validation gave as a number.
        Interrupted: at Ctrl-C, once a sweep is finished; it carries the variables after the last one, and the history.
    """
    sweeps, every = integer("sweeps", sweeps), integer("every", every)
    if tolerance is not None:
        number("tolerance", tolerance, least=0)
    if stopping is not None and not isinstance(stopping, EarlyStopping):
        raise TypeError(f"stopping={stopping!r}; give jaxrec.train.EarlyStopping(metric)")
    if stopping is not None and validate is None:
        raise ValueError(f"stopping watches {stopping.metric!r}, but there is no validate to give it; pass validate=")
    history, previous, best, last = History(), None, state, state
    watch = None if stopping is None else stopping.init()
    bar = tqdm(range(1, sweeps + 1), disable=not progress, desc=unit)
    try:
        for count in bar:
            began = time.perf_counter()
            state, figures = sweep(last)
            record = {"epoch": count, **{name: float(value) for name, value in figures.items()}}
            record["seconds"] = time.perf_counter() - began
            objective = record["objective"]
            if not np.isfinite(objective):
                raise ValueError(
                    f"the objective is {objective} at sweep {count}: a system of normal equations is singular or "
                    "nearly; raise regularization (with 0, no system may have fewer equations than dim)"
                )
            settled = None not in (tolerance, previous) and previous - objective <= tolerance * abs(previous)
            done, previous = settled or count == sweeps, objective
            improved = stopping is None
            if validate is not None and (count % every == 0 or done):
                record = extended(record, validate({"params": factors(state)}))
                if stopping is not None:
                    watch, improved = stopping.update(watch, record)
                    done = done or stopping.done(watch)
            best = state if improved else best
            history, last = history.append(record), state
            bar.set_postfix({name: f"{x:.6g}" for name, x in record.items() if name not in ("epoch", "seconds")})
            if done:
                break
    except KeyboardInterrupt:
        if not history.records:
            raise
        raise Interrupted({"params": factors(last)}, history) from None
    if stopping is not None and (wrong := stopping.never_a_number(watch)):
        raise ValueError(wrong)
    return {"params": factors(best)}, history
