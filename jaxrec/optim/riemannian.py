"""Steps on the unit sphere and in the ball, row by row, to compose with `optax.chain`.

A chain maps the gradient g of the loss at the points x to a change of x. For example, eq. 21 of
MARS (Tan et al. 2021, arXiv 2103.14866), x ← R_x(−η (1 + x·g/|g|) (I − x xᵀ) g), is

    optax.chain(calibrate(), tangent(), optax.scale_by_learning_rate(η), retract_to_sphere())

which is `riemannian_sgd(η)`. A row is a vector along `axis`, by default the last one, so that a
table may be [M, D] or [M, K, D]. Each row is treated separately. `optax.partition` and
`optax.masked` choose the parameters, `optim.rowwise.lazy` makes the same step only on the rows that
are looked up, and tables may be sharded by rows.

A row whose gradient is 0 keeps exactly its value. JAX can differentiate all transformations, also
at such rows.

`init` of `tangent`, of `retract_to_sphere` and of what is built from them raises an error for rows
that are not unit vectors, because the first step would silently normalise them. It checks only
known values: under `jit` and `vmap` it checks nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrec._numerics import number
from jaxrec.typing import Array, Scalar

_ROUNDING = 1e-2  # largest error of a unit vector's length, enough for half precision

Retraction = Callable[..., Array]


def calibrate(*, axis: int = -1) -> optax.GradientTransformation:
    """Multiplies a gradient by 1 + x·g/|g|, the factor of MARS (Tan et al. 2021, eq. 21).

    The factor is 1 − cos(x, −g), between 0 and 2. It is small if x already lies in the direction of
    −g, and large if it lies on the other side. Put this transformation first in a chain, so that g
    is the gradient of the loss: after the learning rate the factor would be 2 minus the correct
    value, and after `tangent` it is 1. It is also 1 if the loss normalises x, because the gradient
    is then tangent; let the loss take the dot product of unit rows directly.

    Differs: the paper calls x·g/|g| the cosine similarity of x to its target; it is minus that.

    Args:
        axis: the axis of a row's D numbers.

    >>> x, tx = jnp.array([1.0, 0.0]), calibrate()
    >>> print(tx.update(jnp.array([-0.6, -0.8]), tx.init(x), x)[0])  # times 1 − 0.6
    [-0.24 -0.32]
    """

    def scaled(gradient: Array, point: Array) -> jax.Array:
        norm = _norm(gradient, axis)
        return (1 + _dot(point, gradient, axis) / jnp.where(norm > 0, norm, 1)) * gradient

    return _at_points(scaled)


def tangent(*, axis: int = -1) -> optax.GradientTransformation:
    """Projects a gradient on the tangent space of the sphere: (I − x xᵀ) g (MARS, eq. 20).

    It is grad f(x) of Tan et al. (2021).

    Args:
        axis: the axis of a row's D numbers.

    Raises:
        ValueError: by `init`, if rows are not unit vectors.

    >>> x, tx = jnp.array([1.0, 0.0]), tangent()
    >>> print(tx.update(jnp.array([3.0, 2.0]), tx.init(x), x)[0])
    [0. 2.]
    """
    return _at_points(lambda gradient, point: _along_sphere(gradient, point, axis), partial(_check_unit, axis=axis))


def normalisation(point: Array, step: Array, *, axis: int = -1) -> jax.Array:
    """Computes the retraction R_x(z) = (x + z) / |x + z| of MARS (Tan et al. 2021, eq. 21).

    Args:
        point: x, [..., D].
        step: z, [..., D].
        axis: the axis of a row's D numbers.

    >>> [round(v, 4) for v in normalisation(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.75])).tolist()]
    [0.8, 0.6]
    """
    return _unit(point + step, axis)


def exponential(point: Array, step: Array, *, axis: int = -1) -> jax.Array:
    """Computes the exponential map exp_x(z) = cos|z| x + sin|z| z/|z| (Tan et al. 2021, eq. 20).

    It moves a distance of |z| along the great circle, where `normalisation` moves arctan |z|. The
    result is divided by its norm, which is 1 up to rounding, so that rounding errors do not add up
    over steps.

    Args:
        point: x, [..., D].
        step: z, [..., D], which must be tangent.
        axis: the axis of a row's D numbers.

    >>> [round(v, 4) for v in exponential(jnp.array([1.0, 0.0]), jnp.array([0.0, jnp.pi / 6])).tolist()]
    [0.866, 0.5]
    """
    angle = _norm(step, axis)
    return _unit(jnp.cos(angle) * point + jnp.sinc(angle / jnp.pi) * step, axis)


def retract_to_sphere(method: Retraction = normalisation, *, axis: int = -1) -> optax.GradientTransformation:
    """Turns an update z into R_x(z) − x, which leads to the unit sphere; put it last in a chain.

    A row whose update is 0 stays as it is, even if it is not on the sphere.

    Args:
        method: `normalisation`, `exponential`, or any (x, z, *, axis) -> R_x(z).
        axis: the axis of a row's D numbers.

    Raises:
        ValueError: by `init`, if rows are not unit vectors.

    >>> x, tx = jnp.array([[1.0, 0.0], [0.0, 1.0]]), retract_to_sphere()
    >>> z = jnp.array([[0.0, 0.75], [0.0, 0.0]])
    >>> moved = optax.apply_updates(x, tx.update(z, tx.init(x), x)[0])
    >>> [[round(v, 4) for v in row] for row in moved.tolist()]
    [[0.8, 0.6], [0.0, 1.0]]
    """

    def change(step: Array, point: Array) -> jax.Array:
        return jnp.where((step != 0).any(axis, keepdims=True), method(point, step, axis=axis) - point, 0)

    return _at_points(change, partial(_check_unit, axis=axis))


def project_to_ball(radius: Scalar = 1.0, *, axis: int = -1) -> optax.GradientTransformation:
    """Turns an update z into one that leads into the ball, as near to x + z as possible.

    Put it last in a chain.

    Each row has its own ball, unlike in `optax.projections.projection_l2_ball`, which takes the
    norm of the whole tree. Rows that stay inside keep their update. Rows outside are moved to the
    ball, even if their update is 0.

    Args:
        radius: radius of the ball.
        axis: the axis of a row's D numbers.

    Raises:
        ValueError: if `radius` is not a finite number above 0.

    >>> x, tx = jnp.ones((2, 2)), project_to_ball()
    >>> moved = optax.apply_updates(x, tx.update(0 * x, tx.init(x), x)[0])
    >>> [[round(v, 4) for v in row] for row in moved.tolist()]
    [[0.7071, 0.7071], [0.7071, 0.7071]]
    """
    number("radius", radius, above=0)

    def change(step: Array, point: Array) -> jax.Array:
        moved, limit = point + step, jnp.asarray(radius, point.dtype)
        norm = _norm(moved, axis)
        # Rounding may put a row of the boundary slightly outside: an update of 0 must not move it.
        outside = norm > limit * (1 + 8 * float(jnp.finfo(norm.dtype).eps))
        return jnp.where(outside, moved * limit / jnp.where(outside, norm, 1) - point, step)

    return _at_points(change)


def riemannian_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    calibrated: bool = True,
    method: Retraction = normalisation,
    axis: int = -1,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent on the unit sphere: eq. 21 of MARS (Tan et al. 2021).

    x ← R_x(−η (1 + x·g/|g|) (I − x xᵀ) g). Without the factor, and with the `exponential` map, it
    is eq. 20, the descent of Bonnabel (2013, arXiv 1111.5280).

    Args:
        learning_rate: η, or a schedule of it.
        calibrated: whether to apply the factor; see `calibrate`, also for what the loss must be.
        method: `normalisation` or `exponential`.
        axis: the axis of a row's D numbers.

    Raises:
        ValueError: if the learning rate is not a finite number; by `init`, if rows are not unit
            vectors.

    >>> x, tx = jnp.array([1.0, 0.0]), riemannian_sgd(0.1)
    >>> updates, _ = tx.update(jnp.array([-0.6, -0.8]), tx.init(x), x)
    >>> [round(v, 6) for v in optax.apply_updates(x, updates).tolist()]
    [0.999488, 0.031984]
    """
    return _descent(optax.identity(), learning_rate, calibrated, method, axis)


class RiemannianAdamState(NamedTuple):
    """State of the moments in `riemannian_adam`: three arrays for each parameter [..., D].

    Attributes:
        count: int32 [..., 1], number of steps in which the row had a gradient.
        mu: [..., D], first moments, tangent at the point where they were last used.
        nu: [..., 1], second moments.
    """

    count: Any
    mu: Any
    nu: Any


def riemannian_adam(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    calibrated: bool = True,
    method: Retraction = normalisation,
    axis: int = -1,
) -> optax.GradientTransformationExtraArgs:
    """Riemannian Adam (Bécigneul and Ganea 2019, arXiv 1810.00760), with one unit sphere per row.

    For a row's tangent gradient g: m ← β₁ P m + (1 − β₁) g, v ← β₂ v + (1 − β₂) |g|², z = −η m̂ /
    (√v̂ + ε), x ← R_x(z). v is one number per row, as in the paper: a sphere has no coordinates
    with separate second moments. A rotation of all vectors therefore rotates their steps too. A
    row's first step turns it by about η radians, for any number of dimensions.

    Differs: the paper moves m to the row's new point by parallel transport; here P, the projection
    on the tangent space there, does so, which agrees to first order. Bias is corrected as in Adam,
    but by the row's own count of steps. A row whose gradient is 0 keeps its value and its moments.
    Rows therefore do not depend on each other, and `rowwise.lazy` of this optimiser is the same
    algorithm.

    Args:
        learning_rate: η, or a schedule of it.
        b1: β₁, decay of the first moment.
        b2: β₂, decay of the second moment.
        eps: ε, added to the root of the second moment.
        calibrated: whether to apply the factor of MARS (see `calibrate`); False is the algorithm of
            Bécigneul and Ganea.
        method: `normalisation` or `exponential`.
        axis: the axis of a row's D numbers.

    Raises:
        ValueError: if a hyperparameter is not a finite number; by `init`, if rows are not unit
            vectors.

    >>> x, tx = jnp.array([1.0, 0.0]), riemannian_adam(0.1, method=exponential)
    >>> updates, _ = tx.update(jnp.array([0.0, -7.0]), tx.init(x), x)
    >>> round(float(jnp.arctan2(*optax.apply_updates(x, updates)[::-1])), 4)
    0.1
    """
    return _descent(_scale_by_moments(b1, b2, eps, axis), learning_rate, calibrated, method, axis)


def _descent(scale: Any, learning_rate: Any, calibrated: bool, method: Retraction, axis: int) -> Any:
    """Chains factor, tangent projection, scaling, learning rate and retraction."""
    if not callable(learning_rate):
        number("learning_rate", learning_rate)
    factor = calibrate(axis=axis) if calibrated else optax.identity()
    rate = optax.scale_by_learning_rate(learning_rate)
    return optax.chain(factor, tangent(axis=axis), scale, rate, retract_to_sphere(method, axis=axis))


def _scale_by_moments(b1: float, b2: float, eps: float, axis: int) -> optax.GradientTransformation:
    """Turns tangent gradients into the directions of `riemannian_adam`, which are tangent too."""
    for name, value in (("b1", b1), ("b2", b2), ("eps", eps)):
        number(name, value, least=0)

    def init(params: Any) -> RiemannianAdamState:
        def one(dtype: Any = None) -> Any:
            return jax.tree.map(lambda x: jnp.zeros_like(_dot(x, x, axis), dtype=dtype), params)

        return RiemannianAdamState(one(jnp.int32), jax.tree.map(jnp.zeros_like, params), one())

    def update(gradients: Any, state: RiemannianAdamState, params: Any = None) -> tuple[Any, RiemannianAdamState]:
        moving = jax.tree.map(lambda g: (g != 0).any(axis, keepdims=True), gradients)

        def first(g: Array, x: Array, old: Array, move: Array) -> jax.Array:
            return jnp.where(move, b1 * _along_sphere(old, x, axis) + (1 - b1) * g, old)

        def second(g: Array, old: Array, move: Array) -> jax.Array:
            return jnp.where(move, b2 * old + (1 - b2) * _dot(g, g, axis), old)

        def direction(mu: Array, nu: Array, count: Array, move: Array) -> jax.Array:
            time = jnp.maximum(count, 1).astype(nu.dtype)
            return jnp.where(move, mu / (1 - b1**time) / (_root(nu / (1 - b2**time)) + eps), 0)

        count = jax.tree.map(lambda old, move: old + move.astype(old.dtype), state.count, moving)
        mu = jax.tree.map(first, gradients, _given(params), state.mu, moving)
        nu = jax.tree.map(second, gradients, state.nu, moving)
        return jax.tree.map(direction, mu, nu, count, moving), RiemannianAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _at_points(
    rule: Callable[[Array, Array], Array], check: Callable[[Any], None] = lambda params: None
) -> optax.GradientTransformation:
    """Returns a stateless transformation that maps each update and its parameter to a new update.

    Args:
        rule: (update, parameter) -> update.
        check: function that `init` calls with the parameters, to raise an error for wrong ones.
    """

    def checked(update: Array, point: Array) -> jax.Array:
        chex.assert_equal_shape([update, point])
        return rule(update, point)

    def init(params: Any) -> optax.EmptyState:
        check(params)
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        return jax.tree.map(checked, updates, _given(params)), state

    return optax.GradientTransformation(init, update)


def _check_unit(params: Any, axis: int) -> None:
    """Raises `ValueError` for rows whose length is known and not 1."""
    for path, table in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(table, jax.core.Tracer) or not jnp.size(table):
            continue
        lengths = _norm(jnp.asarray(table), axis)
        off = float(jnp.abs(lengths - 1).max())
        if not off <= _ROUNDING:
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} has rows of lengths {float(lengths.min()):.3g} to "
                f"{float(lengths.max()):.3g}, which a step on the sphere would normalise; give unit "
                "vectors, or choose the parameters with optax.partition or optax.masked"
            )


def _given(params: Any) -> Any:
    """Raises `ValueError` if there are no parameters."""
    if params is None:
        raise ValueError("params=None, but a step starts from a point; call update(updates, state, params)")
    return params


def _dot(x: Array, y: Array, axis: int) -> jax.Array:
    return (x * y).sum(axis, keepdims=True)


def _root(x: Array) -> jax.Array:
    """Computes √x, with gradient 0 at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def _norm(x: Array, axis: int) -> jax.Array:
    return _root(_dot(x, x, axis))


def _unit(x: Array, axis: int) -> jax.Array:
    norm = _norm(x, axis)
    return x / jnp.where(norm > 0, norm, 1)


def _along_sphere(vector: Array, point: Array, axis: int) -> jax.Array:
    """Projects a vector on the tangent space at a point of the sphere."""
    return vector - _dot(point, vector, axis) * point
