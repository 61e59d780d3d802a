"""Optimisers of embedding tables, where a step touches few rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec.typing import Array


class DenseAdamState(NamedTuple):
    """State of `dense_adam`.

    Attributes:
        count: int32 [], steps done.
        last: for each parameter int32 [rows], the step at which the row of the moments was written.
        mu: first moments, each row as of its step `last`.
        nu: second moments, likewise.
    """

    count: Array
    last: Any
    mu: Any
    nu: Any


def dense_adam(
    learning_rate: float | Array, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) on every row at every step; moments are written when touched.

    It is the algorithm of `optax.adam`, and equal to it up to rounding. A row whose gradient is 0 for s steps has the
    moments b1ˢ m and b2ˢ v, so they need not be written: a step writes the moments of the touched rows alone, and
    passes over the whole table once, to move it, where `optax.adam` passes three times.

    `update` takes `touched`: parameter name -> ids int32 [R] of all rows whose gradient is not 0, with or without
    repetition. A parameter that it does not name, or with R at least the number of rows, is treated whole. Gradients
    of other rows than those named would be lost. `train.fit(..., touched=...)` hands it on.

    Args:
        learning_rate: step size.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
    """

    def init(params: Any) -> DenseAdamState:
        def zeros() -> Any:
            return jax.tree.map(jnp.zeros_like, params)

        last = jax.tree.map(lambda table: jnp.zeros(table.shape[:1], jnp.int32), params)
        return DenseAdamState(jnp.zeros((), jnp.int32), last, zeros(), zeros())

    def update(
        gradients: Any,
        state: DenseAdamState,
        params: Any = None,
        *,
        touched: Mapping[str, Array] | None = None,
        **_: Any,
    ) -> tuple[Any, DenseAdamState]:
        del params
        step = state.count + 1
        time = step.astype(jnp.float32)

        def table(path, gradient, last, mu, nu):
            ids = (touched or {}).get(getattr(path[-1], "key", None))
            if ids is None or ids.size >= gradient.shape[0]:
                ids = slice(None)
            age = step - last[ids]
            mu = mu.at[ids].set(_by_row(_power(b1, age), mu[ids]) + (1 - b1) * gradient[ids])
            nu = nu.at[ids].set(_by_row(_power(b2, age), nu[ids]) + (1 - b2) * gradient[ids] ** 2)
            last = last.at[ids].set(step)
            m = _by_row(_power(b1, step - last) * (-learning_rate / (1 - b1**time)), mu)
            v = _by_row(_power(b2, step - last) / (1 - b2**time), nu)
            return m / (jnp.sqrt(v) + eps), last, mu, nu

        together = jax.tree_util.tree_map_with_path(table, gradients, state.last, state.mu, state.nu)
        updates, last, mu, nu = jax.tree.transpose(
            jax.tree.structure(gradients), jax.tree.structure((0,) * 4), together
        )
        return updates, DenseAdamState(step, last, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _power(rate: float, age: Array) -> Array:
    """rateᵃᵍᵉ by the exponential, which vectorises on CPU; the power does not."""
    return jnp.exp(age.astype(jnp.float32) * jnp.log(rate))


def _by_row(factor: Array, rows: Array) -> Array:
    """Each row of [R, ...] times its factor [R]."""
    return factor.reshape(factor.shape + (1,) * (rows.ndim - 1)) * rows
