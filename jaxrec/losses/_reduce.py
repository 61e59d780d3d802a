"""What all losses share: the reductions over negatives and over comparisons, masks, blocks, and sums of losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxrec._numerics import accumulated, number
from jaxrec.typing import Array, Loss, Scalar

Negatives = Literal["mean", "sum"]


def mean(values: Array, *, where: Array | None = None, weights: Array | None = None) -> Array:
    """Mean over all entries: the only reduction from losses [...] to a scalar.

    Σ w v / Σ w over the entries where `where` is True; 0 where nothing is valid. Half precision is summed in float32.

    Args:
        values: losses [...].
        where: bool [...], True = use.
        weights: [...], such as counts. They must be finite and at least 0; their values are not checked here, as they
            are unknown under `jit`. With weights that sum to 0 or less the mean is 0.

    Raises:
        ValueError: for shapes that differ, as those of a loss that took the mean itself.

    >>> float(mean(jnp.array([1.0, 5.0]), where=jnp.array([True, False])))
    1.0
    """
    for name, beside in (("where", where), ("weights", weights)):
        if beside is not None and jnp.shape(beside) != jnp.shape(values):
            raise ValueError(
                f"the loss has shape {list(jnp.shape(values))}, {name} {list(jnp.shape(beside))}; "
                "a loss gives one value a comparison, not their mean"
            )
    values = accumulated(values)
    weights = jnp.ones_like(values) if weights is None else jnp.asarray(weights, values.dtype)
    if where is not None:
        chex.assert_type(where, bool)
        values, weights = jnp.where(where, values, 0), jnp.where(where, weights, 0)
    total = weights.sum()
    return jnp.where(total > 0, (weights * values).sum() / jnp.where(total > 0, total, 1), 0)


def combine(pos: Array, neg: Array, *, where: Array | None = None, parts: Sequence[tuple[Scalar, Loss]]) -> Array:
    """Weighted sum of losses of the same scores: Σ weight · loss(pos, neg), itself a loss.

    Args:
        pos: scores [...].
        neg: scores [..., n].
        where: bool [..., n], True = use.
        parts: pairs (weight, loss); weights may be traced, hyperparameters are set by `functools.partial`.

    Raises:
        ValueError: for no parts, and for a weight that is not finite.

    >>> square = lambda pos, neg, *, where: pos**2
    >>> float(combine(jnp.array(3.0), jnp.array([0.0]), parts=((1.0, square), (0.5, square))))
    13.5
    """
    if not parts:
        raise ValueError("parts is empty; give at least one pair (weight, loss)")
    pos, neg = accumulated(pos), accumulated(neg)  # once, so that the gradients of the parts are added in float32

    def weighted(weight: Scalar, loss: Loss) -> Array:
        values = accumulated(loss(pos, neg, where=where))
        return jnp.asarray(number("weight", weight), values.dtype) * values

    return sum(weighted(weight, loss) for weight, loss in parts)


def masked(pos: Array, neg: Array, where: Array | None) -> tuple[Array, Array, Array, Array]:
    """Checks the shapes of a comparison; returns `pos` and `neg` with 0 where masked, `where` as bool, and its `any`.

    Masked entries leave through a constant, so that not even a NaN in them reaches value or gradient. Scores of half
    precision become float32: a float16 holds no square of 300, and a bfloat16 no sum of 300 ones.
    """
    pos, neg = accumulated(pos), accumulated(neg)
    chex.assert_rank(neg, pos.ndim + 1)
    chex.assert_type([pos, neg], float)
    if where is None:
        where = jnp.ones(neg.shape, bool)
    chex.assert_type(where, bool)
    chex.assert_rank(where, jnp.ndim(neg))
    shapes = jnp.shape(pos), jnp.shape(neg), jnp.shape(where)
    try:
        jnp.broadcast_shapes((*shapes[0], 1), *shapes[1:])
    except ValueError:
        raise ValueError(
            "pos {}, neg {}, where {}; give [...], [..., n], [..., n]".format(*map(list, shapes))
        ) from None
    any_valid = where.any(-1)
    return jnp.where(any_valid, pos, 0), jnp.where(where, neg, 0), where, any_valid


def over_negatives(values: Array, where: Array, negatives: Negatives) -> Array:
    """Mean or sum over the valid entries of the last axis; 0 where there are none."""
    values = jnp.where(where, values, 0)
    total = values.sum(-1)
    if negatives == "sum":
        return total
    if negatives != "mean":
        raise ValueError(f'negatives={negatives!r}; give "mean" or "sum"')
    count = jnp.broadcast_to(where, values.shape).sum(-1, dtype=jnp.int32)
    return total / jnp.maximum(count, 1).astype(values.dtype)


def setting(name: str, value: Array | Scalar, scores: Array, **bounds: float) -> Array:
    """A hyperparameter in the precision of the loss, which a float64 would widen; a scalar is checked by `number`.

    The entries of an array are not checked, for they may be masked.
    """
    dtype = jnp.result_type(scores)
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32
    return jnp.asarray(value if jnp.ndim(value) else number(name, value, **bounds), dtype if wide else jnp.float32)


def logsumexp(values: Array, where: Array, any_valid: Array) -> Array:
    """Over the valid entries of the last axis; 0 (and no gradient) where nothing is valid."""
    kept = jnp.where(where | ~any_valid[..., None], values, -jnp.inf)
    return jnp.where(any_valid, jax.nn.logsumexp(kept, axis=-1), 0)


def by_positive(
    compare: Callable[..., Array], vectors: Sequence[Array | Scalar], rows: Sequence[Array | None]
) -> Array:
    """`compare(*vectors, *rows)`, one positive at a time where one row of negatives serves many.

    A comparison of each pair of `pos` [..., P] and `neg` [..., 1, N] would form [..., P, N]. A loop over P, whose body
    is computed again on the way back, holds [..., 1, N] in both directions. Where each positive has negatives of its
    own, it is the plain call.

    Args:
        compare: gives [...] from vectors [...] and rows [..., n].
        vectors: each [...], or a scalar.
        rows: each [..., n] or None, the negatives first.
    """
    arrays = (*vectors, *rows)
    axes = (-1,) * len(vectors) + (-2,) * len(rows)
    lengths = [jnp.shape(x)[axis] if x is not None and jnp.ndim(x) >= -axis else 1 for x, axis in zip(arrays, axes)]
    if jnp.ndim(rows[0]) < 2 or lengths[len(vectors)] != 1 or max(lengths[: len(vectors)]) < 2:
        return compare(*arrays)

    @partial(jax.checkpoint, prevent_cse=False)
    def one(slices: list[Array]) -> Array:
        following = iter(slices)
        whole = (x if n == 1 else jnp.expand_dims(next(following), a) for x, a, n in zip(arrays, axes, lengths))
        return compare(*whole)[..., 0]

    moved = [jnp.moveaxis(x, axis, 0) for x, axis, length in zip(arrays, axes, lengths) if length != 1]
    return jnp.moveaxis(jax.lax.map(one, moved), 0, -1)
