"""Conjugate gradients for RG2 with α > 0, where every row has its own linear system.

A row's matrix is one that all rows share, plus terms of the row's own pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.interactions import Interactions
from jaxrec.solvers._subspace import dot
from jaxrec.sparse import along_pairs, spmm
from jaxrec.typing import Array


class Rows(NamedTuple):
    """The systems of one side: x (gram + ridge I) + gain Σᵢ rᵢ (x·yᵢ) yᵢ = right-hand side.

    Attributes:
        matrix: r, the pairs of the rows x and the other side's vectors y.
        ridge: the multiple of I, per row or [1] for all.
        gain: the factor of the sum over a row's pairs, per row.
    """

    matrix: Interactions
    ridge: Array
    gain: Array


def conjugate(
    own: Rows, table: Array, shared: tuple[Array, Array], sides: Array, start: Array, steps: int, sum_devices: Callable
) -> tuple[jax.Array, jax.Array]:
    """Solves for all rows at once by conjugate gradients.

    It works in the basis of the eigenvectors of the matrix that all rows share, which is diagonal
    there and serves as the preconditioner.

    Args:
        own: the systems.
        table: the other side's vectors.
        shared: the eigenvalues [K] and eigenvectors [K, K] of the matrix that all rows share.
        sides: the right-hand sides [R, K].
        start: the current rows [R, K].
        steps: number of steps.
        sum_devices: adds up an array over the devices.

    Returns:
        The rows, and their right-hand sides plus residuals, both [R, K].
    """
    spectrum, basis = shared
    table, sides, x = (dot(y, basis) for y in (table, sides, start))
    diagonal = jnp.maximum(spectrum, 0)[None] + own.ridge[:, None]

    def product(x):
        seen = dataclasses.replace(own.matrix, weights=scores(own.matrix, x, table))
        return diagonal * x + own.gain[:, None] * sum_devices(spmm(seen, None, table))

    def inner(x, y):
        return (x * y).sum(1, keepdims=True)

    def ratio(x, y):
        # A row that is solved already has y = 0; a ratio of 0 leaves it unchanged.
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


def scores(matrix: Interactions, rows: Array, columns: Array) -> jax.Array:
    """Returns r times the score, for each pair [nnz]."""
    found = along_pairs(matrix, rows, columns)
    return found if matrix.weights is None else jnp.asarray(matrix.weights, found.dtype) * found
