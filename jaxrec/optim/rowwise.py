"""Optimisers of embedding tables, for losses that look up few rows per step.

`adam` is the algorithm of `optax.adam`, in less time. `lazy(tx)`, `lazy_adam` and `lazy_sgd` are a
different algorithm, TensorFlow's LazyAdam: they only move the rows that a step looks up, and take
no time for the others. All are `optim.Step`s, which find the rows from the structure of the
gradient. `found` reports which tables they treat by rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec._lookup import lookup_again
from jaxrec._mesh import undivided
from jaxrec._numerics import accumulated, number
from jaxrec.optim._rows import Rows, value_and_rows
from jaxrec.optim.step import Step, ValueFn
from jaxrec.typing import Array, Key, Scalar


def found(value_fn: ValueFn, params: Any, key: Key | None = None, batch: Any = None) -> dict[str, int | None]:
    """Returns how many rows a step looks up in each table; None for a table treated as a whole.

    A table is treated by rows if the loss only looks up its rows, and fewer of them than it has.
    Look-ups inside a loop (`lax.scan`, `lax.map`), a branch or `jax.checkpoint` are not recognised.
    Such tables are treated as a whole, which is exact.

    Args:
        value_fn: scalar function of (params, key, batch).
        params: a tree of floats.
        key: the key that `value_fn` takes.
        batch: the batch that `value_fn` takes.

    >>> params = {"item": jnp.ones((9, 2)), "bias": jnp.ones(())}
    >>> found(lambda params, key, ids: (params["item"][ids].sum() * params["bias"]), params, None, jnp.array([1, 3, 1]))
    {'bias': None, 'item': 3}
    """
    seen: dict[str, int | None] = {}

    def traced(params: Any) -> None:
        _, slopes = value_and_rows(lambda params: value_fn(params, key, batch), params)
        for path, slope in jax.tree_util.tree_leaves_with_path(slopes, is_leaf=lambda x: isinstance(x, Rows)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            seen[name] = len(slope.ids) if isinstance(slope, Rows) else None

    jax.eval_shape(traced, params)
    return seen


class AdamState(NamedTuple):
    """State of `adam`.

    Attributes:
        count: int32 [], number of steps done.
        last: for each parameter int32 [rows], the step at which the row's moments were last
            written.
        mu: first moments, each row as of its step `last`.
        nu: second moments, each row as of its step `last`.
    """

    count: Array  # type: ignore[assignment]  # hides the method `count` of tuples, as in optax's states
    last: Any
    mu: Any
    nu: Any


def adam(learning_rate: Scalar, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Step:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), which writes moments only where they change.

    It moves every row in every step: it is the algorithm of `optax.adam`, and equals it up to
    rounding. A row whose gradient is 0 for s steps has the moments b1ˢ m and b2ˢ v, which need not
    be written. A step writes the moments of the rows that it looks up, and passes over the whole
    table once, to move it; `optax.adam` passes over it three times.

    Args:
        learning_rate: learning rate.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.

    Raises:
        ValueError: if a hyperparameter is not a finite number.
    """
    _check_adam(learning_rate, b1, b2, eps)
    return Step(_adam_init, partial(_adam, learning_rate=learning_rate, b1=b1, b2=b2, eps=eps))


def _check_adam(learning_rate: Scalar, b1: float, b2: float, eps: float) -> None:
    """Raises `ValueError` if a hyperparameter is not a finite number."""
    number("learning_rate", learning_rate)
    for name, value in (("b1", b1), ("b2", b2), ("eps", eps)):
        number(name, value, least=0)


def _adam_init(params: Any) -> AdamState:
    """Creates the state of `adam`."""
    mu, nu = (jax.tree.map(_zeros, params) for _ in range(2))
    last = jax.tree.map(lambda table: jnp.zeros(jnp.shape(table)[:1], jnp.int32), params)
    return AdamState(jnp.zeros((), jnp.int32), last, mu, nu)


def _zeros(table: Array) -> jax.Array:
    """Returns moments of a table. Those of half precision are float32, where b2 = .999 is not 1."""
    return accumulated(jnp.zeros_like(table))


def _adam(value_fn, params, state, key, batch, *, learning_rate, b1, b2, eps):
    """Makes one step of `adam`."""
    loss, slopes = value_and_rows(lambda params: value_fn(params, key, batch), params)
    step = state.count + 1

    def moved(table, slope, last, mu, nu):
        at, gradient = _place_of(slope)
        gradient = gradient.astype(mu.dtype)
        time, rate = step.astype(mu.dtype), jnp.asarray(learning_rate, mu.dtype)
        power = partial(_power, dtype=mu.dtype)
        # Moments are as of the step `last`: apply the decay of all steps since then.
        age = step - at.take(last)
        mu = at.put(mu, _by_row(power(b1, age), at.take(mu)) + (1 - b1) * gradient)
        nu = at.put(nu, _by_row(power(b2, age), at.take(nu)) + (1 - b2) * gradient**2)
        last = at.put(last, jnp.broadcast_to(step, age.shape))
        m = _by_row(power(b1, step - last) * (-rate / (1 - b1**time)), mu)
        v = _by_row(power(b2, step - last) / (1 - b2**time), nu)
        return table + (m / (jnp.sqrt(v) + eps)).astype(table.dtype), last, mu, nu

    quadruples = jax.tree.map(moved, params, slopes, state.last, state.mu, state.nu)
    params, last, mu, nu = jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0,) * 4), quadruples)
    return loss, params, AdamState(step, last, mu, nu)


def _power(rate: float, age: Array, dtype: Any) -> jax.Array:
    """Computes rateᵃᵍᵉ by an exponential, which vectorises on CPU, unlike a power."""
    age = age.astype(dtype)
    # A rate of 0 has the logarithm −inf, and 0 · −inf is NaN.
    return jnp.where(age == 0, 1, jnp.exp(age * jnp.log(jnp.asarray(rate, dtype))))


def _by_row(factor: Array, rows: Array) -> jax.Array:
    """Multiplies each row of [R, ...] by its factor [R]."""
    return factor.reshape(factor.shape + (1,) * (rows.ndim - factor.ndim)) * rows


# ---------------------------------------------------------------------- only the rows that a step looks up


def lazy(tx: optax.GradientTransformation) -> Step:
    """Applies the transformation `tx` only to the rows that a step looks up.

    A table that is used in any other way than by look-ups, or looked up as often as it has rows, is
    treated as a whole; see `found`. If an id occurs more than once, its gradients are added up
    first. `tx` must treat each row separately.

    This is another algorithm than `tx`: a row that a step does not look up keeps its value and its
    moments. Its moments neither decay nor move it, but the counts of steps increase for all rows.
    Weight decay inside `tx` acts only on the rows that are looked up, and clipping by the global
    norm sees only these rows.

    >>> tx = lazy(optax.sgd(0.5))
    >>> params = {"item": jnp.ones((4, 2))}
    >>> value = lambda params, key, ids: params["item"][ids].sum()
    >>> _, params, _ = tx.step(value, params, tx.init(params), None, jnp.array([1, 3, 1]))
    >>> params["item"][:, 0].tolist()
    [1.0, 0.0, 1.0, 0.5]
    """
    return Step(tx.init, partial(_lazy, tx=tx))


def _lazy(value_fn, params, state, key, batch, *, tx):
    """Makes one step of `tx` on the rows, of parameters and of the state's tables."""
    loss, slopes = value_and_rows(lambda params: value_fn(params, key, batch), params)
    places = jax.tree.map(_place_of, slopes)
    of_params, gradients = jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0)), places)
    of_state = optax.tree_utils.tree_map_params(
        tx,
        lambda value, at: value if _masked(value) else at,
        state,
        of_params,
        transform_non_params=lambda _: _Whole(),
        is_leaf=_masked,
    )
    rows = jax.tree.map(lambda table, at: at.take(table), params, of_params)
    old = jax.tree.map(lambda table, at: at.take(table), state, of_state)
    updates, new = optax.with_extra_args_support(tx).update(gradients, old, rows, value=loss)
    params = jax.tree.map(lambda table, at, update: at.moved(table, update), params, of_params, updates)
    return loss, params, jax.tree.map(lambda table, at, row: at.put(table, row), state, of_state, new)


def _masked(value: Any) -> bool:
    """Returns whether `optax.partition` or `optax.masked` keeps no state for this parameter."""
    return isinstance(value, optax.MaskedNode)


def lazy_adam(learning_rate: Scalar, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Step:
    """Adam on the rows that a step looks up: `lazy(optax.adam(...))` in less time. `adam` differs.

    A row's moments are averages over the steps that looked it up, so that rare rows keep their
    momentum.

    Args:
        learning_rate: learning rate.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.

    Raises:
        ValueError: if a hyperparameter is not a finite number.
    """
    _check_adam(learning_rate, b1, b2, eps)
    return lazy(optax.chain(_scale_by_adam(b1, b2, eps), optax.scale_by_learning_rate(learning_rate)))


def lazy_sgd(learning_rate: Scalar) -> Step:
    """Stochastic gradient descent on the rows that a step looks up.

    It equals `optax.sgd` without momentum.

    Raises:
        ValueError: if the learning rate is not a finite number.
    """
    number("learning_rate", learning_rate)
    return lazy(optax.sgd(learning_rate))


class _Moments(NamedTuple):
    """State of `_scale_by_adam`: the number of steps, and both moments, [rows, 2, ...]."""

    count: Array  # type: ignore[assignment]  # as in `AdamState`
    moments: Any


def _scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Returns `optax.scale_by_adam` with a row's two moments next to each other.

    One look-up then finds both.
    """

    def axis(x: Array) -> int:  # the axis of the two moments, after the rows
        return min(1, jnp.ndim(x))

    def init(params: Any) -> _Moments:
        zeros = jax.tree.map(lambda x: jnp.stack([_zeros(x)] * 2, axis(x)), params)
        return _Moments(jnp.zeros((), jnp.int32), zeros)

    def update(gradients: Any, state: _Moments, params: Any = None) -> tuple[Any, _Moments]:
        del params
        count = state.count + 1

        def new(gradient: Array, old: Array) -> jax.Array:
            place, gradient = axis(gradient), jnp.expand_dims(gradient, axis(gradient)).astype(old.dtype)
            shape = [2 if at == place else 1 for at in range(old.ndim)]
            decay, second = jnp.array([b1, b2], old.dtype).reshape(shape), (jnp.arange(2) == 1).reshape(shape)
            # Select the second moment's factor by `where`: a concatenation is a slow loop on CPU.
            return decay * old + (1 - decay) * gradient * jnp.where(second, gradient, 1)

        def direction(gradient: Array, moments: Array) -> jax.Array:
            mu, nu = jnp.moveaxis(moments, axis(gradient), 0)
            time = count.astype(mu.dtype)
            step = mu / (1 - b1**time) / (jnp.sqrt(nu / (1 - b2**time)) + eps)
            return step.astype(gradient.dtype)

        moments = jax.tree.map(new, gradients, state.moments)
        return jax.tree.map(direction, gradients, moments), _Moments(count, moments)

    return optax.GradientTransformation(init, update)


# ---------------------------------------------------------------------- places of rows


class _Whole:
    """A parameter that is treated as a whole."""

    def take(self, table: Array) -> jax.Array:
        return table

    def put(self, table: Array, rows: Array) -> jax.Array:
        del table
        return rows

    def moved(self, table: Array, update: Array) -> jax.Array:
        return table + update


class _Places:
    """The rows of ids [R] in a table. The last occurrence of an id represents all of them."""

    def __init__(self, ids: Array, size: int):
        self.ids = ids
        order = jnp.arange(ids.size, dtype=jnp.int32)
        self.slot = jnp.zeros(size, jnp.int32).at[ids].max(order)[ids]
        # Other occurrences get targets past the end, which a scatter drops: all targets are unique.
        self.target = jnp.where(self.slot == order, ids, size + order)

    def take(self, table: Array) -> jax.Array:
        return lookup_again(table, self.ids)

    def put(self, table: Array, rows: Array) -> jax.Array:
        return jnp.asarray(table).at[self.target].set(rows, mode="drop", unique_indices=True)

    def moved(self, table: Array, updates: Array) -> jax.Array:
        return jnp.asarray(table).at[self.target].add(updates, mode="drop", unique_indices=True)

    def summed(self, values: Array) -> jax.Array:
        """Adds up the gradients of each id at its last occurrence."""
        return jnp.zeros_like(values).at[self.slot].add(values)


def _place_of(slope: Array | Rows) -> tuple[_Whole | _Places, jax.Array]:
    """Returns the rows of a gradient, and its values there."""
    if not isinstance(slope, Rows):
        return _Whole(), slope
    # On a mesh each device gets the gradients of all rows of the batch, and puts its own rows in
    # place. XLA would otherwise add up arrays as long as the table.
    ids, values = undivided((slope.ids, slope.values))
    at = _Places(ids, slope.shape[0])
    # Many values may be added up.
    return at, at.summed(accumulated(values)).astype(values.dtype)
