"""The leading singular vectors of a linear map, by subspace iteration with a Chebyshev filter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.typing import Array, Scalar

dot = functools.partial(jnp.matmul, precision="highest")
Map = Callable[[Array], Array]


class Leading(NamedTuple):
    """Approximations of the leading singular triplets of a map S, from N to M dimensions.

    Attributes:
        left: S times the right vectors [M, W]; their lengths are the singular values.
        squares: squares of the singular values [W], descending.
        right: right singular vectors [N, W].
        residual: ‖SᵀS v − σ² v‖ / σ₁² [W], the error of each right vector.
    """

    left: Array
    squares: Array
    right: Array
    residual: Array


def width_of(dim: int, oversample: int | None, n_rows: int, n_columns: int) -> int:
    """Returns the number of vectors to iterate, of which `dim` are wanted."""
    return min(dim + (max(10, dim // 4) if oversample is None else oversample), n_rows, n_columns)


def householder(x: Array) -> jax.Array:
    """Returns orthonormal columns of the same span, by a QR factorisation."""
    return jnp.linalg.qr(x)[0]


def by_gram(x: Array) -> jax.Array:
    """Returns orthonormal columns of the same span, from the eigenvectors of the Gram matrix.

    The method is SVQB (Stathopoulos and Wu 2002, 10.1137/S1064827500370883), done three times because
    the Gram matrix squares rounding errors. For long tables it is faster than `householder` on a CPU.
    A column that depends on the others may become 0.
    """
    for _ in range(3):
        lengths = jnp.linalg.norm(x, axis=0, keepdims=True)
        x = x / jnp.maximum(lengths, jnp.finfo(x.dtype).tiny)
        squares, rotation = jnp.linalg.eigh(dot(x.T, x))
        squares = jnp.maximum(squares, jnp.finfo(x.dtype).eps * squares[-1])
        x = dot(x, rotation / jnp.sqrt(squares)[None])
    return x


def leading(
    forward: Map,
    backward: Map,
    start: Array,
    tolerance: Scalar,
    *,
    dim: int,
    passes: int,
    degree: int = 4,
    orthonormal: Map = householder,
) -> Leading:
    """Computes the leading singular triplets of a map.

    Args:
        forward: the map, [N, W] -> [M, W].
        backward: its transpose, [M, W] -> [N, W].
        start: the initial vectors [N, W].
        tolerance: the iteration ends when none of the first `dim` residuals exceeds this.
        dim: number of triplets that are wanted, at most W.
        passes: maximum number of times that both maps are applied.
        degree: number of passes between two orthonormalisations.
        orthonormal: `householder` or `by_gram`.
    """

    def ritz(basis):
        """Returns Rayleigh-Ritz approximations from orthonormal columns, and SᵀS times them."""
        left = forward(basis)
        squares, rotation = jnp.linalg.eigh(dot(left.T, left))
        squares, rotation = jnp.maximum(squares[::-1], 0), rotation[:, ::-1]  # descending
        basis, left = dot(basis, rotation), dot(left, rotation)
        image = backward(left)
        distance = jnp.linalg.norm(image - squares[None] * basis, axis=0)
        return basis, left, squares, image, distance / jnp.maximum(squares[0], jnp.finfo(squares.dtype).tiny)

    def filtered(basis, image, cut):
        """Applies T_degree(2 SᵀS / cut − 1) and orthonormalises.

        The polynomial is within [−1, 1] for eigenvalues in [0, cut], and grows fast above.
        """
        previous, present = basis, 2 / cut * image - basis
        for _ in range(degree - 1):
            previous, present = present, 2 * (2 / cut * backward(forward(present)) - present) - previous
            # The recurrence is linear, so each column can be rescaled, which avoids overflow.
            scale = jnp.linalg.norm(present, axis=0, keepdims=True)
            previous, present = previous / scale, present / scale
        return orthonormal(present)

    def step(state):
        number, (basis, _, squares, image, _) = state
        cut = jnp.maximum(squares[-1], 1e-3 * squares[0])  # keeps cut above 0
        return number + degree, ritz(filtered(basis, image, cut))

    def unfinished(state):
        number, (*_, residual) = state
        return (number < passes) & (residual[:dim].max() > tolerance)

    basis = orthonormal(start)
    basis = orthonormal(backward(forward(basis)))
    _, (right, left, squares, _, residual) = jax.lax.while_loop(unfinished, step, (2, ritz(basis)))
    return Leading(left, squares, right, residual)
