"""Optimisers of embedding tables, where a step touches few rows.

`dense_adam` is Adam on every row, as everyone knows it, in less time. `adam` and `sgd` (`touched_only` of any optax
transformation) are another algorithm: they move only the rows that a step touches, and cost nothing for the rest.
`dense_adam` is told the rows by `train.fit(..., touched=...)`, the others find them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec._lookup import lookup
from jaxrec._numerics import number
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

    Raises:
        ValueError: for hyperparameters that are not finite numbers.
    """
    _check_adam(learning_rate, b1, b2, eps)

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

        def table(path, gradient, last, mu, nu):
            ids = (touched or {}).get(getattr(path[-1], "key", None))
            if ids is None or ids.size >= gradient.shape[0]:
                ids = slice(None)
            time, rate = step.astype(mu.dtype), jnp.asarray(learning_rate, mu.dtype)
            power = functools.partial(_power, dtype=mu.dtype)
            age = step - last[ids]
            mu = mu.at[ids].set(_by_row(power(b1, age), mu[ids]) + (1 - b1) * gradient[ids])
            nu = nu.at[ids].set(_by_row(power(b2, age), nu[ids]) + (1 - b2) * gradient[ids] ** 2)
            last = last.at[ids].set(step)
            m = _by_row(power(b1, step - last) * (-rate / (1 - b1**time)), mu)
            v = _by_row(power(b2, step - last) / (1 - b2**time), nu)
            return m / (jnp.sqrt(v) + eps), last, mu, nu

        together = jax.tree_util.tree_map_with_path(table, gradients, state.last, state.mu, state.nu)
        updates, last, mu, nu = jax.tree.transpose(
            jax.tree.structure(gradients), jax.tree.structure((0,) * 4), together
        )
        return updates, DenseAdamState(step, last, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_adam(learning_rate: Scalar, b1: float, b2: float, eps: float) -> None:
    number("learning_rate", learning_rate)
    for name, value in (("b1", b1), ("b2", b2), ("eps", eps)):
        number(name, value, least=0)


def _power(rate: float, age: Array, dtype: Any) -> Array:
    """rateᵃᵍᵉ by the exponential, which vectorises on CPU; the power does not."""
    return jnp.exp(age.astype(dtype) * jnp.log(jnp.asarray(rate, dtype)))


def _by_row(factor: Array, rows: Array) -> Array:
    """Each row of [R, ...] times its factor [R]."""
    return factor.reshape(factor.shape + (1,) * (rows.ndim - 1)) * rows


# ---------------------------------------------------------------------- only the rows that a step touches


class TouchedOnly(NamedTuple):
    """An optimiser that differentiates in, and moves, only the rows that a step touches.

    It is no `optax.GradientTransformation`, as those get the gradient of the whole table; `train.fit` takes it as one.

    Attributes:
        init: parameters -> state, whole tables.
        step: (value, parameters, state) -> (value, parameters, state): `value` is the scalar function of the
            parameters to step down on.
    """

    init: Callable[[Any], Any]
    step: Callable[[Callable[[Any], Array], Any, Any], tuple[Array, Any, Any]]


def touched_only(tx: optax.GradientTransformation) -> TouchedOnly:
    """The transformation `tx`, applied to the rows that a step touches and to no other.

    A row is touched where the loss indexes its table with integers, `table[ids]`; this is found while tracing. Tables
    that are used in any other way, or indexed as often as they have rows, are treated whole. Gradients of an id that
    comes more than once are added up first. Whatever `tx` does must be done to each row by itself.

    Differs from `tx` itself: a row that a step does not touch keeps its value and its moments, which neither decay nor
    push it on, while counts of steps go on for all (TensorFlow's LazyAdam does the same). Weight decay inside `tx` acts
    on the touched rows alone, and clipping by the global norm sees them alone.

    A table may not be indexed inside a loop (`lax.scan`, `lax.map`) of the loss.

    >>> tx = touched_only(optax.sgd(0.5))
    >>> params = {"item": jnp.ones((4, 2))}
    >>> ids = jnp.array([1, 3, 1])
    >>> _, params, _ = tx.step(lambda p: p["item"][ids].sum(), params, tx.init(params))
    >>> params["item"][:, 0].tolist()
    [1.0, 0.0, 1.0, 0.5]
    """

    def step(value, params, state):
        tables, tree = jax.tree.flatten(params)
        shapes = _looked_up(value, tables, tree)
        zeros = [
            jnp.zeros_like(table)
            if found is None
            else [jnp.zeros((*shape, *table.shape[1:]), table.dtype) for shape in found]
            for table, found in zip(tables, shapes)
        ]

        def shifted(shifts):
            """The value with each looked-up row, or whole table, shifted: its gradient at 0 is that of the rows."""
            seen = [
                table + shift if found is None else _Table(table, _Log(shift))
                for table, shift, found in zip(tables, shifts, shapes)
            ]
            loss = value(jax.tree.unflatten(tree, seen))
            return loss, [None if found is None else table.log.ids for table, found in zip(seen, shapes)]

        (loss, ids), slopes = jax.value_and_grad(shifted, has_aux=True)(zeros)
        places = [_Whole() if i is None else _Places(i, table) for table, i in zip(tables, ids)]
        of_params = jax.tree.unflatten(tree, places)
        of_state = optax.tree_utils.tree_map_params(
            tx,
            lambda value, at: value if _masked(value) else at,
            state,
            of_params,
            transform_non_params=lambda _: _Whole(),
            is_leaf=_masked,
        )
        gradients = jax.tree.unflatten(tree, [at.summed(slope) for at, slope in zip(places, slopes)])
        rows = jax.tree.map(lambda table, at: at.take(table), params, of_params)
        old = jax.tree.map(lambda table, at: at.take(table), state, of_state)
        updates, new = optax.with_extra_args_support(tx).update(gradients, old, rows, value=loss)
        params = jax.tree.map(lambda table, at, update: at.moved(table, update), params, of_params, updates)
        return loss, params, jax.tree.map(lambda table, at, row: at.put(table, row), state, of_state, new)

    return TouchedOnly(tx.init, step)


def _masked(value: Any) -> bool:
    """Whether a part of `optax.partition` or `optax.masked` keeps no state for this parameter."""
    return isinstance(value, optax.MaskedNode)


def adam(learning_rate: Scalar, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> TouchedOnly:
    """Adam on the rows that a step touches: `touched_only(optax.adam(...))`, a different algorithm from dense Adam.

    A row's moments are averages over the steps that touched it, so that rare rows keep their momentum until they come
    again; see `touched_only`.

    Raises:
        ValueError: for hyperparameters that are not finite numbers.
    """
    _check_adam(learning_rate, b1, b2, eps)
    return touched_only(optax.chain(_scale_by_adam(b1, b2, eps), optax.scale_by_learning_rate(learning_rate)))


class _Moments(NamedTuple):
    """State of `_scale_by_adam`: steps done, and for each parameter [rows, ...] both moments [rows, 2, ...]."""

    count: Array
    moments: Any


def _scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with a row's two moments side by side, so that one look-up finds both."""

    def axis(x: Array) -> int:  # of the two: behind the rows
        return min(1, jnp.ndim(x))

    def init(params: Any) -> _Moments:
        zeros = jax.tree.map(lambda x: jnp.stack([jnp.zeros_like(x)] * 2, axis(x)), params)
        return _Moments(jnp.zeros((), jnp.int32), zeros)

    def update(gradients: Any, state: _Moments, params: Any = None) -> tuple[Any, _Moments]:
        del params
        count = state.count + 1

        def new(gradient: Array, old: Array) -> Array:
            place, gradient = axis(gradient), jnp.expand_dims(gradient, axis(gradient))
            shape = [2 if at == place else 1 for at in range(old.ndim)]
            decay, second = jnp.array([b1, b2], old.dtype).reshape(shape), (jnp.arange(2) == 1).reshape(shape)
            # Products and a choice, not a concatenation, which on CPU is a slow loop.
            return decay * old + (1 - decay) * gradient * jnp.where(second, gradient, 1)

        def direction(gradient: Array, moments: Array) -> Array:
            mu, nu = jnp.moveaxis(moments, axis(gradient), 0)
            time = count.astype(mu.dtype)
            return mu / (1 - b1**time) / (jnp.sqrt(nu / (1 - b2**time)) + eps)

        moments = jax.tree.map(new, gradients, state.moments)
        return jax.tree.map(direction, gradients, moments), _Moments(count, moments)

    return optax.GradientTransformation(init, update)


def sgd(learning_rate: Scalar) -> TouchedOnly:
    """Stochastic gradient descent on the rows that a step touches; without momentum it equals `optax.sgd`."""
    number("learning_rate", learning_rate)
    return touched_only(optax.sgd(learning_rate))


def _looked_up(value: Callable, tables: list[Array], tree: Any) -> list[list[tuple] | None]:
    """For each table the shapes of the ids that `value` indexes it with, or None where it is to be treated whole."""
    logs = [_Log() for _ in tables]

    def traced(tables):
        return value(jax.tree.unflatten(tree, [_Table(table, log) for table, log in zip(tables, logs)]))

    jax.eval_shape(traced, tables)
    shapes = [[jnp.shape(ids) for ids in log.ids] for log in logs]
    return [
        None if log.whole or sum(map(math.prod, found)) >= len(table) else found
        for table, log, found in zip(tables, logs, shapes)
    ]


class _Log:
    """What was done to a table, and the shifts of the rows looked up, in order."""

    def __init__(self, shifts: list[Array] | None = None):
        self.shifts, self.ids, self.whole = shifts, [], False


@jax.tree_util.register_pytree_node_class
class _Table:
    """Looks like a table, and writes down how it is indexed. Its one leaf lets flax check the shape of a parameter."""

    def __init__(self, table: Array, log: _Log):
        self.table, self.log = table, log

    def __getitem__(self, ids: Any) -> Array:
        if not (isinstance(ids, jax.Array | np.ndarray) and jnp.issubdtype(ids.dtype, jnp.integer)):
            return self.__jax_array__()[ids]
        place = next((place for place, known in enumerate(self.log.ids) if known is ids), len(self.log.ids))
        if place == len(self.log.ids):
            self.log.ids.append(ids)
        # By flat ids, as `_Places.take` looks the same rows up again: XLA then does it once.
        rows = lookup(self.table, ids.reshape(-1)).reshape(*ids.shape, *self.table.shape[1:])
        return rows if self.log.shifts is None else rows + self.log.shifts[place]

    def __jax_array__(self) -> Array:
        self.log.whole = True
        return self.table

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__jax_array__(), name)

    def tree_flatten(self) -> tuple[tuple[Array], _Log]:
        return (self.table,), self.log

    @classmethod
    def tree_unflatten(cls, log: _Log, leaves: tuple[Array]) -> _Table:
        return cls(*leaves, log)


def _as_array(name: str) -> Callable:
    return lambda self, *others: getattr(self.__jax_array__(), name)(*others)


_OPERATORS = ("add", "sub", "mul", "truediv", "pow", "matmul")
for _name in (*_OPERATORS, *(f"r{name}" for name in _OPERATORS), "neg", "abs", "len"):
    setattr(_Table, f"__{_name}__", _as_array(f"__{_name}__"))


class _Whole:
    """A parameter that is treated whole."""

    def take(self, table: Array) -> Array:
        return table

    def put(self, table: Array, rows: Array) -> Array:
        del table
        return rows

    def moved(self, table: Array, update: Array) -> Array:
        return table + update

    def summed(self, slope: Array) -> Array:
        return slope


class _Places:
    """Where R ids, some perhaps the same, stand for rows of a table: the last of the same stands for all of them."""

    def __init__(self, ids: list[Array], table: Array):
        (size, *self.row), self.dtype = table.shape, table.dtype
        flat = [part.reshape(-1).astype(jnp.int32) for part in ids]
        self.ids = jnp.concatenate([jnp.zeros(0, jnp.int32), *flat])
        order = jnp.arange(self.ids.size, dtype=jnp.int32)
        self.slot = jnp.zeros(size, jnp.int32).at[self.ids].max(order)[self.ids]
        self.target = jnp.where(self.slot == order, self.ids, size + order)  # past the end: dropped

    def take(self, table: Array) -> Array:
        return lookup(table, self.ids)

    def put(self, table: Array, rows: Array) -> Array:
        return table.at[self.target].set(rows, mode="drop", unique_indices=True)

    def moved(self, table: Array, updates: Array) -> Array:
        return table.at[self.target].add(updates, mode="drop", unique_indices=True)

    def summed(self, slopes: list[Array]) -> Array:
        """The gradients of the ids, each id's added up where its last occurrence stands."""
        flat = jnp.concatenate([jnp.zeros((0, *self.row), self.dtype), *(x.reshape(-1, *self.row) for x in slopes)])
        return jnp.zeros_like(flat).at[self.slot].add(flat)
