"""Shared parts of the losses: reductions, masks, loops over positives, and sums of losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from jaxrec._numerics import accumulated, number
from jaxrec._partials import check_parts
from jaxrec.typing import Array, Loss, Scalar

Negatives = Literal["mean", "sum"]


def mean(values: Array, *, where: Array | None = None, weights: Array | None = None) -> jax.Array:
    """Averages losses to a scalar; this is the only such reduction.

    Computes Σ w v / Σ w over the entries where `where` is True, or 0 if there are none. Half
    precision is summed in float32.

    Args:
        values: losses [...].
        where: bool [...], True for the entries to use; None uses all.
        weights: finite numbers of 0 or more [...], such as counts; None weighs all entries the
            same. The values are not checked, because they are unknown under `jit`. If the weights
            sum to 0 or less, the mean is 0; if one is NaN, so is the mean.

    Raises:
        ValueError: if the shapes differ, for example because a loss already averaged its values.

    >>> float(mean(jnp.array([1.0, 5.0]), where=jnp.array([True, False])))
    1.0
    """
    for name, given in (("where", where), ("weights", weights)):
        if given is not None and jnp.shape(given) != jnp.shape(values):
            raise ValueError(
                f"the loss has shape {list(jnp.shape(values))}, {name} {list(jnp.shape(given))}; "
                "a loss must return one value for each comparison, not their mean"
            )
    values = accumulated(values)
    weights = jnp.ones_like(values) if weights is None else jnp.asarray(weights, values.dtype)
    if where is not None:
        chex.assert_type(where, bool)
        # Mask values and weights: a weight of 0 times NaN would still be NaN.
        values, weights = jnp.where(where, values, 0), jnp.where(where, weights, 0)
    total = weights.sum()
    # A total of NaN is neither, so that NaN in a weight is not lost.
    return jnp.where(total <= 0, 0, (weights * values).sum() / jnp.where(total <= 0, 1, total))


def combine(pos: Array, neg: Array, *, where: Array | None = None, parts: Sequence[tuple[Scalar, Loss]]) -> jax.Array:
    """Sums losses of the same scores: Σ weight · loss(pos, neg). The sum is itself a loss.

    Args:
        pos: scores of the positives, [...].
        neg: scores of the negatives, [..., n].
        where: bool [..., n], True for the negatives to use; None uses all.
        parts: pairs (weight, loss). Weights may be traced; bind the losses' hyperparameters with
            `functools.partial`.

    Raises:
        TypeError: if a part is not a pair of a weight and a loss.
        ValueError: if there are no parts, or if a weight is not finite.

    >>> square = lambda pos, neg, *, where: pos**2
    >>> float(combine(jnp.array(3.0), jnp.array([0.0]), parts=((1.0, square), (0.5, square))))
    13.5
    """
    check_parts(parts, "loss")
    # Convert before the parts, so that the gradients of the parts are added in float32.
    pos, neg = accumulated(pos), accumulated(neg)

    def weighted(weight: Scalar, loss: Loss) -> jax.Array:
        values = accumulated(loss(pos, neg, where=where))
        return jnp.asarray(number("weight", weight), values.dtype) * values

    return sum(weighted(weight, loss) for weight, loss in parts)


def masked(pos: Array, neg: Array, where: Array | None) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Checks the shapes of a comparison and replaces masked scores by 0.

    Returns `pos`, `neg`, `where` as bool, and whether a row has a valid negative. Masked entries
    are replaced by a constant, so that not even a NaN in them reaches the value or the gradient.
    Scores of half precision become float32: float16 cannot hold the square of 300, and bfloat16
    cannot hold the sum of 300 ones.
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
            "pos {}, neg {}, where {}; give shapes [...], [..., n], [..., n]".format(*map(list, shapes))
        ) from None
    any_valid = where.any(-1)
    return jnp.where(any_valid, pos, 0), jnp.where(where, neg, 0), where, any_valid


def over_negatives(values: Array, where: Array, negatives: Negatives) -> jax.Array:
    """Reduces the valid entries of the last axis to their mean or sum, or to 0 if there are none."""
    values = jnp.where(where, values, 0)
    total = values.sum(-1)
    if negatives == "sum":
        return total
    if negatives != "mean":
        raise ValueError(f'negatives={negatives!r}; give "mean" or "sum"')
    count = jnp.broadcast_to(where, values.shape).sum(-1, dtype=jnp.int32)
    return total / jnp.maximum(count, 1).astype(values.dtype)


def setting(name: str, value: Array | Scalar, scores: Array, **bounds: float) -> jax.Array:
    """Returns a hyperparameter in the dtype of the scores, at least float32.

    A float64 hyperparameter would otherwise widen the loss. A scalar is checked by `number`; the
    entries of an array are not checked, because some may be masked.
    """
    dtype = jnp.result_type(scores)
    wide = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32
    return jnp.asarray(value if jnp.ndim(value) else number(name, value, **bounds), dtype if wide else jnp.float32)


def logsumexp(values: Array, where: Array, any_valid: Array) -> jax.Array:
    """Computes log Σ exp over the valid entries of the last axis.

    A row without valid entries is 0 and has no gradient.
    """
    # A row of only -inf would have a NaN gradient, so a row without valid entries keeps its values.
    kept = jnp.where(where | ~any_valid[..., None], values, -jnp.inf)
    return jnp.where(any_valid, jax.nn.logsumexp(kept, axis=-1), 0)


def by_positive(compare: Callable[..., Array], vectors: Sequence[Array | Scalar], rows: Sequence[Any]) -> jax.Array:
    """Computes `compare(*vectors, *rows)`, looping over positives that share one row of negatives.

    Comparing each pair of `pos` [..., P] and `neg` [..., 1, N] at once would form [..., P, N]. The
    loop over P holds only [..., 1, N]; its body is computed again in the backward pass, so this is
    true of the gradient too. If each positive has its own negatives, `compare` is called directly.

    Args:
        compare: a function of vectors [...] and rows [..., n] that returns [...].
        vectors: arrays [...] or scalars, the positives first.
        rows: arrays [..., n] or None, the negatives first.
    """
    arrays: tuple[Any, ...] = (*vectors, *rows)
    axes = (-1,) * len(vectors) + (-2,) * len(rows)
    lengths = [jnp.shape(x)[axis] if x is not None and jnp.ndim(x) >= -axis else 1 for x, axis in zip(arrays, axes)]
    if jnp.ndim(rows[0]) < 2 or lengths[len(vectors)] != 1 or max(lengths[: len(vectors)]) < 2:
        return compare(*arrays)

    @partial(jax.checkpoint, prevent_cse=False)  # inside a loop, CSE cannot undo the recomputation
    def one(slices: list[Array]) -> jax.Array:
        following = iter(slices)
        whole = (x if n == 1 else jnp.expand_dims(next(following), a) for x, a, n in zip(arrays, axes, lengths))
        return compare(*whole)[..., 0]

    moved = [jnp.moveaxis(x, axis, 0) for x, axis, length in zip(arrays, axes, lengths) if length != 1]
    return jnp.moveaxis(jax.lax.map(one, moved), 0, -1)
