"""`Step`, the optimiser that `train.fit` takes, and a conversion of optax transformations to it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import optax

from jaxrec.typing import Array, Key


class ValueFn(Protocol):
    """The training loss of a step, as `train.fit` passes it to a `Step`."""

    def __call__(self, params: Any, key: Any, batch: Any, objective: Callable[..., Array] | None = None) -> jax.Array:
        """Returns the loss of these parameters; `objective` replaces the training objective."""


class Step(NamedTuple):
    """An optimiser that evaluates the loss itself, where and as often as it needs.

    Attributes:
        init: function of the parameters that returns the state of the optimiser.
        step: (value_fn, parameters, state, key, batch) -> (loss, parameters, state).
            `value_fn(parameters, key, batch)` is the loss. Make `step` a `functools.partial` of a
            module-level function. Its arrays are then arguments of the compiled program, and equal
            settings share one program.
    """

    init: Callable[[Any], Any]
    step: Callable[[Callable[..., Array], Any, Any, Any, Any], tuple[jax.Array, Any, Any]]


def as_step(tx: optax.GradientTransformation | Step) -> Step:
    """Returns an optax transformation as a `Step`; a `Step` is returned unchanged.

    The transformation gets `value`, `grad` and `value_fn` (a function of the parameters only) if it
    accepts them, as `optax.lbfgs`, `optax.polyak_sgd` and `optax.contrib.reduce_on_plateau` do.

    >>> init, step = as_step(optax.sgd(0.1))
    >>> loss, params, _ = step(lambda x, key, batch: x**2, 3.0, init(3.0), None, None)
    >>> float(loss), round(float(params), 4)
    (9.0, 2.4)
    """
    return tx if isinstance(tx, Step) else Step(tx.init, partial(_updated, tx=tx))


def _updated(
    value_fn: ValueFn, params: Any, state: Any, key: Key, batch: Any, *, tx: Any
) -> tuple[jax.Array, Any, Any]:
    """Makes one step with an optax transformation."""

    def of_params(params: Any) -> jax.Array:
        return value_fn(params, key, batch)

    value, gradients = jax.value_and_grad(of_params)(params)
    known: dict[str, Any] = {"value": value, "grad": gradients, "value_fn": of_params}
    updates, state = optax.with_extra_args_support(tx).update(gradients, state, params, **known)
    return value, optax.apply_updates(params, updates), state
