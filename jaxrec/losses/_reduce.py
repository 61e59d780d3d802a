"""The two reductions: over the negatives of one comparison (inside a loss), and over comparisons (`mean`)."""

from __future__ import annotations

from typing import Literal

import chex
import jax.numpy as jnp

from jaxrec.typing import Array

Negatives = Literal["mean", "sum"]


def mean(values: Array, *, where: Array | None = None, weights: Array | None = None) -> Array:
    """Mean over all entries: the only reduction from losses [...] to a scalar.

    Σ w v / Σ w over the entries where `where` is True; 0 where nothing is valid.

    Args:
        values: losses [...].
        where: bool [...], True = use.
        weights: non-negative [...], such as counts.

    >>> float(mean(jnp.array([1.0, 5.0]), where=jnp.array([True, False])))
    1.0
    """
    weights = jnp.ones_like(values) if weights is None else jnp.asarray(weights, values.dtype)
    chex.assert_equal_shape([values, weights])
    if where is not None:
        chex.assert_type(where, bool)
        chex.assert_equal_shape([values, where])
        values, weights = jnp.where(where, values, 0), jnp.where(where, weights, 0)
    total = weights.sum()
    return jnp.where(total > 0, (weights * values).sum() / jnp.where(total > 0, total, 1), 0)


def masked(pos: Array, neg: Array, where: Array | None) -> tuple[Array, Array, Array, Array]:
    """Checks the shapes of a comparison; returns `pos` and `neg` with 0 where masked, `where` as bool, and its `any`.

    Masked entries leave through a constant, so that not even a NaN in them reaches value or gradient.
    """
    chex.assert_rank(neg, jnp.ndim(pos) + 1)
    chex.assert_type([pos, neg], float)
    if where is None:
        where = jnp.ones(neg.shape, bool)
    chex.assert_type(where, bool)
    chex.assert_rank(where, jnp.ndim(neg))
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
    count = jnp.broadcast_to(where, values.shape).sum(-1)
    return total / jnp.maximum(count, 1).astype(values.dtype)
