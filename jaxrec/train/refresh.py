"""Training with untrained variables that are computed again between epochs, such as clusters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec._identity import described
from jaxrec._log import DivergenceError, Log
from jaxrec._numerics import integer
from jaxrec._partials import check_function
from jaxrec._run import Loop, check_loop, run
from jaxrec.interactions import Interactions
from jaxrec.optim.step import Step, as_step
from jaxrec.train.examples import Examples, singles
from jaxrec.train.loop import State, _description, fit
from jaxrec.train.stream import Stream
from jaxrec.typing import Key, Objective, Variables

Refresh = Callable[[Key, Variables], Mapping[str, Any]]
_OF_REFRESH = np.uint32(2**32 - 1)  # no epoch has this number, so no key is used twice


def refreshed(
    state: State,
    objective: Objective,
    tx: optax.GradientTransformation | Step,
    train: Interactions,
    *,
    refresh: Refresh,
    epochs: int,
    period: int = 1,
    batch_size: int = 1024,
    examples: Callable[[Interactions], Examples | Stream] = singles,
    **loop: Unpack[Loop],
) -> tuple[State, Log]:
    """Trains as `fit` does, and replaces collections of variables before every `period`-th epoch.

    Args:
        state: the state from `init`, or from an earlier call to continue.
        objective: as in `fit`.
        tx: as in `fit`.
        train: the positives.
        refresh: function of (key, variables) that returns new values of collections other than
            "params", such as `partial(train.ncl.prototypes, model=model)`. It is called on the host
            with a key of its own, and may be jitted.
        epochs: total number of epochs, counted from the start of the run.
        period: number of epochs from one refresh to the next. The first refresh is before epoch 1.
        batch_size: as in `fit`.
        examples: as in `fit`.
        loop: `validate`, `every`, `stopping`, `checkpoint`, `callbacks` and `progress`, as in
            `fit`.

    Returns:
        The state and the `Log`, as `fit` does.

    Raises:
        ValueError: if `refresh` returns "params", a collection that the state does not have, or one
            of another form; and as `fit`.
        TypeError: if `refresh` is not a function; and as `fit`.
        DivergenceError: as `fit`.
        Interrupted: as `fit`.
    """
    began, period = time.perf_counter(), integer("period", period)
    check_loop(loop)
    check_function("refresh", refresh, "functools.partial(jaxrec.train.ncl.prototypes, model=model)")
    how: dict[str, Any] = {"batch_size": integer("batch_size", batch_size), "examples": examples, "progress": False}

    def advance(state: State, number: int) -> tuple[State, Mapping[str, float]]:
        if (number - 1) % period == 0:
            state = state._replace(variables=_replaced(state, refresh))
        try:
            state, passed = fit(state, objective, tx, train, epochs=int(state.epoch) + 1, **how)
        except DivergenceError as error:
            # The error carries the state of one pass; `run` adds this run's state to the cause.
            raise error.__context__ or error from None
        return state, {"loss": passed.column("loss")[1][-1]}

    description = None
    if loop.get("checkpoint") is not None:
        parts = batch_size, examples, loop.get("every", 1), loop.get("stopping")
        description = _description(state, objective, as_step(tx), train, *parts)
        description |= {"refresh": described(refresh), "period": period}
    options: dict[str, Any] = {"epochs": epochs, "began": began, "epoch": int(state.epoch), "description": description}
    return run(advance, state, variables=lambda state: state.variables, **options, **loop)


def _replaced(state: State, refresh: Refresh) -> Variables:
    """Returns the variables with the collections that `refresh` returns, in their old containers."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, _OF_REFRESH), state.epoch)
    variables, known = dict(state.variables), [name for name in state.variables if name != "params"]
    found = refresh(key, state.variables)
    if not isinstance(found, Mapping):
        raise ValueError(f"refresh returns {type(found).__name__}; return a mapping from collections to values")
    for name, new in found.items():
        if name not in known:
            raise ValueError(f"refresh returns {name!r}; it may replace only {known}")
        given, expected = _form(new), _form(variables[name])
        if given != expected:
            raise ValueError(f"refresh returns {name} of the form {given}; its form is {expected}")
        # Another tree structure would compile the next epoch again.
        variables[name] = jax.tree.unflatten(jax.tree.structure(variables[name]), jax.tree.leaves(new))
    return variables


def _form(collection: Any) -> Any:
    """Returns the shapes and dtypes of a collection's arrays by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(collection)
    return {jax.tree_util.keystr(path): (np.shape(leaf), np.dtype(jnp.result_type(leaf)).name) for path, leaf in leaves}
