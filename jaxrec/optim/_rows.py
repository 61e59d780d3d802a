"""Gradients of tables as rows, found while tracing.

If a loss only looks up rows of a table, the table's gradient is 0 in all other rows. JAX builds it
by scatter-adding the rows' gradients into zeros. `value_and_rows` traces the gradient once and
evaluates it without forming those tables: each becomes `Rows`. If the traced operations have
another structure, the gradient is the dense table.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal
from jax.lax import GatherScatterMode

from jaxrec.typing import Array

_SAME = ("reshape", "convert_element_type", "copy", "copy_p")  # row by row if the first axis stays
_JIT = ("jit", "pjit")


@dataclasses.dataclass(frozen=True)
class Rows:
    """A table [n, ...] that is 0 outside some rows.

    Attributes:
        ids: int32 [R]; if an id occurs more than once, its values add up.
        values: [R, ...].
        shape: shape of the table.
        dense: function that builds the table by the traced operations.
    """

    ids: Array
    values: Array
    shape: tuple[int, ...]
    dense: Callable[[], Array]

    @property
    def few(self) -> bool:
        """Whether there are fewer rows than the table has."""
        return len(self.ids) < self.shape[0]


def value_and_rows(value: Callable[[Any], Array], params: Any) -> tuple[jax.Array, Any]:
    """Computes `jax.value_and_grad`, where the gradients of some tables are `Rows`.

    These are the tables of which `value` looks up few rows.

    Args:
        value: scalar function of the parameters.
        params: a tree of floats.

    Returns:
        The value, and a tree like `params` of arrays and `Rows`.
    """
    leaves, tree = jax.tree.flatten(params)
    both = jax.value_and_grad(lambda leaves: value(jax.tree.unflatten(tree, leaves)))
    traced = jax.make_jaxpr(both)(leaves)
    loss, *slopes = _evaluated(traced.jaxpr, traced.consts, leaves)
    kept = [slope if isinstance(slope, Rows) and slope.few else _dense(slope) for slope in slopes]
    return _dense(loss), jax.tree.unflatten(tree, kept)


def _dense(value: Any) -> jax.Array:
    """Returns an array for an array or for `Rows`."""
    return value.dense() if isinstance(value, Rows) else value


def _evaluated(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluates a traced function. Results that are sums of scattered rows become `Rows`."""
    known: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
    for eqn in jaxpr.eqns:
        inputs = [x.val if isinstance(x, Literal) else known[x] for x in eqn.invars]
        if eqn.primitive.name in _JIT:
            closed = eqn.params["jaxpr"]
            found = _evaluated(closed.jaxpr, closed.consts, inputs)
        else:
            rows = _rows(eqn, inputs)
            found = _bound(eqn, inputs) if rows is None else [rows]
        known.update(zip(eqn.outvars, found))
    return [x.val if isinstance(x, Literal) else known[x] for x in jaxpr.outvars]


def _bound(eqn: Any, inputs: Sequence[Any]) -> list[Any]:
    """Evaluates the operation itself, on whole tables."""
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # newer versions of JAX give a dict
    with getattr(eqn.ctx, "manager", contextlib.nullcontext()):
        found = eqn.primitive.bind(*functions, *map(_dense, inputs), **params)
    return list(found) if eqn.primitive.multiple_results else [found]


def _rows(eqn: Any, inputs: Sequence[Any]) -> Rows | None:
    """Returns the operation's result as `Rows`, or None if it is not one."""
    if len(eqn.outvars) != 1 or not eqn.outvars[0].aval.shape:
        return None
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    dense = lambda: _bound(eqn, inputs)[0]  # noqa: E731
    # The zeros into which JAX scatters: a table with no rows yet.
    if name == "broadcast_in_dim" and isinstance(eqn.invars[0], Literal) and eqn.invars[0].val == 0:
        nothing = jnp.zeros((0, *out.shape[1:]), out.dtype)
        return Rows(jnp.zeros(0, jnp.int32), nothing, out.shape, dense)
    if not inputs or not isinstance(inputs[0], Rows):
        return None
    table = inputs[0]
    if name == "scatter-add" and len(table.ids) == 0 and _puts_rows(eqn):
        ids, values = _scattered(eqn.params["mode"], inputs[1][..., 0], inputs[2], out.shape)
        return Rows(ids, values, out.shape, dense)
    if name in _SAME and out.shape[:1] == table.shape[:1]:
        values = jnp.asarray(table.values.astype(out.dtype).reshape(-1, *out.shape[1:]))
        return Rows(table.ids, values, out.shape, dense)
    if name in ("add_any", "add") and all(isinstance(x, Rows) and x.shape == out.shape for x in inputs):
        ids, values = (jnp.concatenate(parts) for parts in zip(*((x.ids, x.values) for x in inputs)))
        return Rows(ids, values, out.shape, dense)
    return None


def _puts_rows(eqn: Any) -> bool:
    """Returns whether a scatter adds whole rows at ids of the first axis."""
    operand, indices, updates = (x.aval for x in eqn.invars)
    how, leading = eqn.params["dimension_numbers"], indices.ndim - 1
    return (
        how.scatter_dims_to_operand_dims == how.inserted_window_dims == (0,)
        and not how.operand_batching_dims
        and how.update_window_dims == tuple(range(leading, updates.ndim))
        and updates.shape[leading:] == operand.shape[1:]
    )


def _scattered(mode: Any, ids: Array, values: Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns ids [R] and their values; treats ids outside the table as the scatter's mode says."""
    ids, values = ids.reshape(-1), values.reshape(-1, *shape[1:])
    if mode == GatherScatterMode.CLIP:
        ids = jnp.clip(ids, 0, shape[0] - 1)
    elif mode != GatherScatterMode.PROMISE_IN_BOUNDS:
        inside = (ids >= 0) & (ids < shape[0])
        ids, values = jnp.where(inside, ids, 0), jnp.where(inside.reshape(-1, *[1] * (values.ndim - 1)), values, 0)
    return ids.astype(jnp.int32), values
