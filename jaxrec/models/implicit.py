"""How gradients pass through repeated updates x ← f(x): `gradient(f, start, n) -> x`.

f is called as f(x, number=1 .. n). Values that f holds, such as parameters, can be differentiated
too. All functions but `unrolled` and `straight_through` give `start` a gradient of 0. `neumann` and
`gmres` differentiate x as a fixed point, so all updates get the noise of the first one. They warn
if n is below nine: far from a fixed point their gradient is wrong, and Neumann's series may
diverge.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxrec.typing import Array

Update = Callable[..., Array]
_FEW = 9  # VALID is near its fixed point after nine updates, with ten blocks


class Gradient(Protocol):
    """Any function of this module."""

    def __call__(self, update: Update, start: Array, n: int) -> jax.Array:
        """Returns x after n updates."""


def unrolled(update: Update, start: Array, n: int) -> jax.Array:
    """Makes n updates, and differentiates all of them."""
    x = start
    for number in range(1, n + 1):
        x = update(x, number=number)
    return x


def detach(update: Update, start: Array, n: int) -> jax.Array:
    """Makes n updates, and differentiates none of them, as VALID's released code does."""
    return jax.lax.stop_gradient(unrolled(update, start, n))


def one_step(update: Update, start: Array, n: int) -> jax.Array:
    """Makes n updates, and differentiates the last (Chang et al. 2022, arXiv 2207.00787).

    This is the first term of Neumann's series.
    """
    return update(detach(update, start, n - 1), number=n)


def straight_through(update: Update, start: Array, n: int) -> jax.Array:
    """Makes n updates as `detach` does, and gives `start` the gradient of x.

    Jia et al. (2023, arXiv 2210.08990) do so for their queries.
    """
    return detach(update, start, n) + start - jax.lax.stop_gradient(start)


def neumann(update: Update, start: Array, n: int, *, terms: int = 20) -> jax.Array:
    """Makes n updates, and differentiates x as a fixed point, by Neumann's series.

    w = Σ_{i ≤ terms} (Jᵀ)ⁱ v solves (I − Jᵀ) w = v.
    """

    def solve(transposed: Callable[[Array], Array], v: Array) -> jax.Array:
        return jax.lax.fori_loop(0, terms, lambda _, w: v + transposed(w), v)

    return _fixed_point(update, start, n, solve)


def gmres(update: Update, start: Array, n: int, *, tolerance: float = 1e-6, restart: int = 20) -> jax.Array:
    """Makes n updates, and differentiates x as a fixed point, solving (I − Jᵀ) w = v by GMRES."""

    def solve(transposed: Callable[[Array], Array], v: Array) -> jax.Array:
        options: dict[str, Any] = {"tol": tolerance, "restart": restart, "maxiter": 20}
        return jax.scipy.sparse.linalg.gmres(lambda w: w - transposed(w), v, **options)[0]

    return _fixed_point(update, start, n, solve)


def _fixed_point(update: Update, start: Array, n: int, solve: Callable) -> jax.Array:
    """Makes n updates, and solves for the gradient of the fixed point by `solve`."""
    start = jax.lax.stop_gradient(start)
    if n < _FEW:
        warnings.warn(
            f"an implicit gradient needs a fixed point, which {n} updates rarely reach; make {_FEW} "
            f"or more (VALID: n_blocks={_FEW + 1}), or use unrolled or one_step",
            stacklevel=3,
        )
    # `jax.closure_convert` would leave keys and integers in the closure; here all become arguments.
    closed = jax.make_jaxpr(lambda x: update(x, number=1))(start)
    return _iterated(lambda x, *held: jax.core.eval_jaxpr(closed.jaxpr, held, x)[0], solve, n, start, closed.consts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _iterated(fn: Callable[..., Array], solve: Callable, n: int, start: Array, held: Any) -> jax.Array:
    """Returns x after n times x ← fn(x, *held); its backward pass treats x as a fixed point."""
    return jax.lax.fori_loop(0, n, lambda _, x: fn(x, *held), start)


def _iterated_forward(fn, solve, n, start, held):
    x = _iterated(fn, solve, n, start, held)
    return x, (x, held)


def _iterated_backward(fn, solve, n, residuals, v):
    """Solves (I − Jᵀ) w = v at x, and passes w on to what the update holds."""
    x, held = residuals
    _, in_x = jax.vjp(lambda x: fn(x, *held), x)
    w = solve(lambda w: in_x(w)[0], v)
    _, in_held = jax.vjp(lambda held: fn(x, *held), held)
    return jnp.zeros_like(x), in_held(w)[0]


_iterated.defvjp(_iterated_forward, _iterated_backward)
