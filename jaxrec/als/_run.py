"""What the alternating solvers share: the checks at their door, the first factors, and the loop over sweeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxrec.history import EarlyStopping, History, figures_of
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.keys import check_key
from jaxrec.typing import Array, Key, Variables

Factors = Mapping[str, Array]
State = TypeVar("State")


def check_input(train: Interactions, dim: int, **not_negative: float) -> None:
    """Refuses what no solver can work on.

    Raises:
        TypeError: for anything but `Interactions`.
        ValueError: for a set without pairs, weights that are negative or not finite, dim outside 1 .. min(M, N), and
            hyperparameters that are negative or not finite.
    """
    check_interactions(train=train)
    if train.n_pairs == 0:
        raise ValueError("train has no pairs; there is nothing to factorise")
    if train.weights is not None:
        weights = np.asarray(train.weights)
        if not (weights >= 0).all():
            place = int(np.flatnonzero(~(weights >= 0))[0])
            raise ValueError(f"train.weights[{place}] is {weights[place]}; weights of implicit feedback are 0 or more")
    smaller = min(train.n_users, train.n_items)
    if not 1 <= dim <= smaller:
        raise ValueError(f"dim={dim} with {train.n_users} users and {train.n_items} items; give 1 to {smaller}")
    for name, value in not_negative.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value}; give a finite number of 0 or more")


def first_factors(key: Key, train: Interactions, dim: int, scale: float) -> Factors:
    """Items from N(0, scale² / K), users zero: the first half step is theirs."""
    check_key(key)
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
        ValueError: for `sweeps` or `every` below 1, `stopping` without `validate`, and factors that are not finite.
    """
    for name, value in (("sweeps", sweeps), ("every", every)):
        if value < 1:
            raise ValueError(f"{name}={value}; give 1 or more")
    if stopping is not None and validate is None:
        raise ValueError(f"stopping watches {stopping.metric!r}, but there is no validate to give it; pass validate=")
    history, previous, best = History(), None, state
    watch = None if stopping is None else stopping.init()
    bar = tqdm(range(1, sweeps + 1), disable=not progress, desc=unit)
    for number in bar:
        began = time.perf_counter()
        state, figures = sweep(state)
        record = {"epoch": number, **{name: float(value) for name, value in figures.items()}}
        record["seconds"] = time.perf_counter() - began
        objective = record["objective"]
        if not np.isfinite(objective):
            raise ValueError(
                f"the objective is {objective} at sweep {number}: a system of normal equations is singular or nearly; "
                "raise regularization (with 0, no system may have fewer equations than dim)"
            )
        settled = None not in (tolerance, previous) and previous - objective <= tolerance * abs(previous)
        done, previous = settled or number == sweeps, objective
        improved = True
        if validate is not None and (number % every == 0 or done):
            record |= figures_of(validate({"params": factors(state)}))
            if stopping is not None:
                watch, improved = stopping.update(watch, record)
                done = done or stopping.done(watch)
        elif stopping is not None:
            improved = False
        best = state if improved else best
        history = history.append(record)
        bar.set_postfix({name: f"{value:.6g}" for name, value in record.items() if name not in ("epoch", "seconds")})
        if done:
            break
    return {"params": factors(best)}, history
