"""Differentiable Adam, and PyTorch's AMSGrad: the two optimisers of λOpt's released code.

Both take the states of the optimisers of the same name in `optax`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec._numerics import number
from jaxrec.typing import Array


def smooth_adam(
    learning_rate: optax.ScalarOrSchedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam that takes the state of `optax.adam`, and has a derivative where moments are 0.

    Updates are m / (1 − β₁ᵗ) · √(1 − β₂ᵗ) / √(v + ε), with ε under the root, as the released code
    simulates Adam. If the gradients of a coordinate are below √ε, as is common for mean losses, the
    simulated step is shorter than the real one, and much shorter for rare rows.

    Args:
        learning_rate: learning rate of the simulated Adam.
        b1: β₁ of the simulated Adam.
        b2: β₂ of the simulated Adam.
        eps: ε. `optax.adam` with `eps_root` adds it to v̂ = v / (1 − β₂ᵗ), which damps less while t
            is small.

    Raises:
        ValueError: if a hyperparameter is not a finite number.
    """
    _check(learning_rate, b1, b2, eps)

    def direction(mu: Array, nu: Array, time: Array) -> jax.Array:
        return mu / (1 - b1**time) / jnp.sqrt((nu + eps) / (1 - b2**time))

    def update(gradients: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, Any]:
        del params
        count, mu, nu = _moments(gradients, state, b1, b2)
        return _directions(direction, count, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    scale = optax.GradientTransformation(optax.scale_by_adam().init, update)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))


def amsgrad(
    learning_rate: optax.ScalarOrSchedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """AMSGrad (Reddi et al. 2018, arXiv 1904.09237) as in PyTorch; the released code uses it for Λ.

    The maximum is taken over v, and its bias is corrected afterwards: m / (1 − β₁ᵗ) / (√(max v / (1
    − β₂ᵗ)) + ε). `optax.amsgrad` takes it over the corrected v̂, whose largest value is often the
    first, so that its steps stay smaller.

    Args:
        learning_rate: learning rate.
        b1: β₁, decay of the first moment.
        b2: β₂, decay of the second moment.
        eps: ε, added to the root of the second moment.

    Raises:
        ValueError: if a hyperparameter is not a finite number.
    """
    _check(learning_rate, b1, b2, eps)

    def direction(mu: Array, nu_max: Array, time: Array) -> jax.Array:
        return mu / (1 - b1**time) / (jnp.sqrt(nu_max / (1 - b2**time)) + eps)

    def update(gradients: Any, state: optax.ScaleByAmsgradState, params: Any = None) -> tuple[Any, Any]:
        del params
        count, mu, nu = _moments(gradients, state, b1, b2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
        return _directions(direction, count, mu, nu_max), optax.ScaleByAmsgradState(count, mu, nu, nu_max)

    scale = optax.GradientTransformation(optax.scale_by_amsgrad().init, update)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))


def _check(learning_rate: optax.ScalarOrSchedule, b1: float, b2: float, eps: float) -> None:
    """Raises `ValueError` if a hyperparameter is not a finite number."""
    if not callable(learning_rate):
        number("learning_rate", learning_rate)
    for name, value in (("b1", b1), ("b2", b2), ("eps", eps)):
        number(name, value, least=0)


def _moments(gradients: Any, state: Any, b1: float, b2: float) -> tuple[jax.Array, Any, Any]:
    """Returns the next count and the moments of all parameters."""
    mu = jax.tree.map(lambda old, g: b1 * old + (1 - b1) * g, state.mu, gradients)
    nu = jax.tree.map(lambda old, g: b2 * old + (1 - b2) * g**2, state.nu, gradients)
    return state.count + 1, mu, nu


def _directions(direction: Callable[..., Array], count: Array, mu: Any, nu: Any) -> Any:
    """Returns the update directions of all parameters."""
    return jax.tree.map(lambda m, v: direction(m, v, count.astype(m.dtype)), mu, nu)
