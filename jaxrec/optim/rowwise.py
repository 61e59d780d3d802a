"""Optimisers of embedding tables, where a step touches few rows.

`dense_adam` is Adam on every row, as everyone knows it, in less time. `adam` and `sgd` (`touched_only` of any optax
transformation) are another algorithm: they move only the rows that a step touches, and cost nothing for the rest.
Both are told the rows by `train.fit(..., touched=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec.typing import Array, Scalar


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
    learning_rate: Scalar, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
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


# ---------------------------------------------------------------------- only the rows that a step touches


class TouchedOnly(NamedTuple):
    """An optimiser that differentiates in, and moves, only the rows that a step touches.

    It is no `optax.GradientTransformation`, as those get the gradient of the whole table; `train.fit` takes it as one.

    Attributes:
        init: parameters -> state, whole tables.
        step: (value, parameters, state, touched) -> (value, parameters, state): `value` is the scalar function of the
            parameters to step down on, `touched` maps parameter names to ids int32 [R], with or without repetition.
            Inside `value` a named table of more than R rows may only be indexed, as in `table[ids]`, by ids among them.
    """

    init: Callable[[Any], Any]
    step: Callable[[Callable[[Any], Array], Any, Any, Mapping[str, Array]], tuple[Array, Any, Any]]


def touched_only(tx: optax.GradientTransformation) -> TouchedOnly:
    """The transformation `tx`, applied to the rows that a step touches and to no other.

    Differs from `tx` itself: a row that a step does not touch keeps its value and its moments, which neither decay nor
    push it on, while counts of steps go on for all (TensorFlow's LazyAdam does the same). Gradients of an id that comes
    more than once are added up first. Weight decay inside `tx` acts on the touched rows alone, and clipping by the
    global norm sees them alone. Whatever `tx` does must be done to each row by itself.

    Parameters that `touched` does not name are treated whole, as are tables with no more rows than ids.

    >>> tx = touched_only(optax.sgd(0.5))
    >>> params = {"item": jnp.ones((4, 2))}
    >>> ids = jnp.array([1, 3, 1])
    >>> _, params, _ = tx.step(lambda p: p["item"][ids].sum(), params, tx.init(params), {"item": ids})
    >>> params["item"][:, 0].tolist()
    [1.0, 0.0, 1.0, 0.5]
    """

    def step(value, params, state, touched):
        def place(path, table):
            ids = touched.get(getattr(path[-1], "key", None))
            return _Whole() if ids is None or ids.size >= table.shape[0] else _Places(table.shape[0], ids)

        places = jax.tree_util.tree_map_with_path(place, params)
        rows = jax.tree.map(lambda table, at: at.take(table), params, places)

        def of_rows(rows):
            return value(jax.tree.map(lambda table, at, row: at.virtual(table, row), params, places, rows))

        loss, gradients = jax.value_and_grad(of_rows)(rows)
        of_state = optax.tree_utils.tree_map_params(
            tx, lambda _, at: at, state, places, transform_non_params=lambda _: _Whole()
        )
        old = jax.tree.map(lambda table, at: at.take(table), state, of_state)
        updates, new = tx.update(gradients, old, rows)
        rows = optax.apply_updates(rows, updates)
        params = jax.tree.map(lambda table, at, row: at.put(table, row), params, places, rows)
        return loss, params, jax.tree.map(lambda table, at, row: at.put(table, row), state, of_state, new)

    return TouchedOnly(tx.init, step)


def adam(learning_rate: Scalar, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> TouchedOnly:
    """Adam on the rows that a step touches: `touched_only(optax.adam(...))`, a different algorithm from dense Adam.

    A row's moments are averages over the steps that touched it, so that rare rows keep their momentum until they come
    again; see `touched_only`.
    """
    return touched_only(optax.adam(learning_rate, b1=b1, b2=b2, eps=eps))


def sgd(learning_rate: Scalar) -> TouchedOnly:
    """Stochastic gradient descent on the rows that a step touches; without momentum it equals `optax.sgd`."""
    return touched_only(optax.sgd(learning_rate))


class _Whole:
    """A parameter that is treated whole."""

    def take(self, table: Array) -> Array:
        return table

    def put(self, table: Array, rows: Array) -> Array:
        del table
        return rows

    def virtual(self, table: Array, rows: Array) -> Array:
        del table
        return rows


class _Places:
    """Where R ids, some perhaps the same, stand for rows of a table: the last of the same stands for all of them."""

    def __init__(self, size: int, ids: Array):
        order = jnp.arange(ids.size, dtype=jnp.int32)
        self.ids = ids
        self.place = jnp.zeros(size, jnp.int32).at[ids].max(order)
        self.target = jnp.where(self.place[ids] == order, ids, size + order)  # past the end: dropped

    def take(self, table: Array) -> Array:
        return table[self.ids]

    def put(self, table: Array, rows: Array) -> Array:
        return table.at[self.target].set(rows, mode="drop", unique_indices=True)

    def virtual(self, table: Array, rows: Array) -> _Table:
        return _Table(table, self.place, rows)


@jax.tree_util.register_pytree_node_class
class _Table:
    """Looks like a table of which only some rows are there to be differentiated in.

    The table itself is its first leaf, by which flax checks the shape of the parameter.
    """

    def __init__(self, table: Array, place: Array, rows: Array):
        self.table, self.place, self.rows = table, place, rows
        self.shape, self.dtype, self.ndim = jnp.shape(table), jnp.result_type(table), jnp.ndim(table)

    def __getitem__(self, ids: Array) -> Array:
        return self.rows[self.place[ids]]

    def tree_flatten(self) -> tuple[tuple, None]:
        return (self.table, self.place, self.rows), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple) -> _Table:
        table = object.__new__(cls)
        table.table, table.place, table.rows = leaves
        return table
