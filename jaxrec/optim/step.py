"""One step of an optax transformation on a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxrec.typing import Array


def gradient_step(
    tx: optax.GradientTransformation, value_fn: Callable[[Any], Array], params: Any, state: Any, **further: Any
) -> tuple[Array, Any, Any]:
    """One step down on `value_fn`; `tx` gets `value`, `grad` and `value_fn` where it takes them.

    Args:
        tx: any optax transformation, `optax.lbfgs` and `optax.contrib.reduce_on_plateau` among them.
        value_fn: scalar of the parameters.
        params: a tree of floats.
        state: of `tx`.
        further: more keyword arguments that `tx` may take.

    Returns:
        The value before the step, the new parameters and the new state.

    >>> loss, params, _ = gradient_step(optax.sgd(0.1), lambda x: x**2, 3.0, optax.sgd(0.1).init(3.0))
    >>> float(loss), round(float(params), 4)
    (9.0, 2.4)
    """
    value, gradients = jax.value_and_grad(value_fn)(params)
    known = {"value": value, "grad": gradients, "value_fn": value_fn}
    updates, state = optax.with_extra_args_support(tx).update(gradients, state, params, **known, **further)
    return value, optax.apply_updates(params, updates), state
