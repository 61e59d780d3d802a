"""Conjugate gradients for RG2's rows where each has a system of its own: the same matrix plus its own pairs' terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.interactions import Interactions
from jaxrec.solvers._spectrum import dot
from jaxrec.sparse import spmm
from jaxrec.typing import Array

_PAIRS = 1 << 13  # pairs scored at a time: what is gathered stays in the cache


class Rows(NamedTuple):
    """The rows x of one side: x (gram + ridge I) + gain Σᵢ rᵢ (x·yᵢ) yᵢ = its right-hand side, y the other side's."""

    matrix: Interactions
    ridge: Array
    gain: Array


def conjugate(own: Rows, table: Array, gram: Array, sides: Array, start: Array, steps: int, together: Callable):
    """The rows, and their right-hand sides plus residuals, by `steps` of conjugate gradients for all rows at once.

    They are in the basis of gram's eigenvectors, where what rows share is diagonal and preconditions the rest.
    """
    spectrum, basis = jnp.linalg.eigh(gram)
    table, sides, x = (dot(y, basis) for y in (table, sides, start))
    diagonal = jnp.maximum(spectrum, 0)[None] + own.ridge[:, None]

    def product(x):
        seen = dataclasses.replace(own.matrix, weights=scores(own.matrix, x, table))
        return diagonal * x + own.gain[:, None] * together(spmm(seen, None, table))

    def inner(x, y):
        return (x * y).sum(1, keepdims=True)

    def ratio(x, y):  # 0 where a row is solved already
        return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))

    def step(_, carry):
        x, residual, direction, square = carry
        image = product(direction)
        rate = ratio(square, inner(direction, image))
        x, residual = x + rate * direction, residual - rate * image
        previous, square = square, inner(residual, residual / diagonal)
        return x, residual, residual / diagonal + ratio(square, previous) * direction, square

    residual = sides - product(x)
    direction = residual / diagonal
    carry = x, residual, direction, inner(residual, direction)
    x, residual, *_ = jax.lax.fori_loop(0, steps, step, carry)
    return dot(x, basis.T), dot(sides + residual, basis.T)


def scores(matrix: Interactions, rows: Array, columns: Array) -> Array:
    """r times the score of each pair [nnz]."""
    degrees = jnp.asarray(matrix.indptr[1:] - matrix.indptr[:-1])
    owners = jnp.repeat(jnp.arange(matrix.n_users, dtype=jnp.int32), degrees, total_repeat_length=matrix.n_pairs)
    pairs = owners, jnp.asarray(matrix.indices)
    scores = jax.lax.map(lambda pair: rows[pair[0]] @ columns[pair[1]], pairs, batch_size=_PAIRS)
    return scores if matrix.weights is None else jnp.asarray(matrix.weights, scores.dtype) * scores
