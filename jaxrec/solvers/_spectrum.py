"""The global optimum of RG2 by a truncated singular value decomposition; see `rg2` for the loss."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._keys import check_key
from jaxrec._numerics import as_integer, integer, number
from jaxrec.interactions import Interactions
from jaxrec.solvers._run import check_input
from jaxrec.sparse import spmm
from jaxrec.typing import Array, Key, Scalar, Variables

dot = functools.partial(jnp.matmul, precision="highest")


class Problem(NamedTuple):
    """What a sweep needs of the data.

    Attributes:
        matrix: R, users by items.
        transposed: Rᵀ.
        share: aᵤ / |D| [M].
        inverse: 1 / aᵤ [M], 0 where a user has no items.
        popularity: Σᵤ rᵤᵢ / |D| [N].
        total: |D| [].
        constant: Σᵤ Wᵤ ‖Sᵤ‖² [], the loss of zero factors.
    """

    matrix: Interactions
    transposed: Interactions
    share: Array
    inverse: Array
    popularity: Array
    total: Array
    constant: Array


def problem_of(train: Interactions, dtype: Any = None) -> Problem:
    """Computed once, on the host.

    Args:
        train: the interactions.
        dtype: of the numbers, that of the factors; None is the default float.

    Raises:
        ValueError: for weights that are all 0, since the loss is a mean over what they count.
    """
    users, items = train.pairs()
    weights = np.ones(train.n_pairs) if train.weights is None else np.asarray(train.weights, np.float64)
    a = np.bincount(users, weights, train.n_users)
    inverse = np.divide(1, a, out=np.zeros_like(a), where=a > 0)
    total = a.sum()
    if total == 0:
        raise ValueError("train.weights are all 0, so that the loss, a mean over them, has no value; leave weights out")
    squares = np.bincount(users, weights**2, train.n_users) @ inverse
    dtype = jnp.zeros(()).dtype if dtype is None else dtype
    popularity = np.bincount(items, weights, train.n_items) / total
    numbers = (a / total, inverse, popularity, total, squares * train.n_items / (2 * total) - 0.5)
    return Problem(train, train.transpose(), *(np.asarray(number, dtype) for number in numbers))


class Decomposition(NamedTuple):
    """The leading part of S̃ = diag(√W) S, from which every optimum of RG2 is read off by `shrink`.

    Attributes:
        user: left singular vectors [M, K].
        values: singular values [K], descending.
        item: right singular vectors [N, K].
        scale: √Wᵤ [M]; 0 for a user without items.
        residual: ‖S̃ᵀS̃v − σ²v‖ / σ₁² [K], how far each vector is from a true one.
    """

    user: Array
    values: Array
    item: Array
    scale: Array
    residual: Array


def decompose(
    train: Interactions,
    *,
    dim: int,
    key: Key,
    tolerance: float = 1e-4,
    oversample: int | None = None,
    passes: int = 200,
) -> Decomposition:
    """Leading singular triplets of S̃, by subspace iteration with a Chebyshev filter on random vectors.

    A pass is two sparse products of K + oversample columns. S̃ is never formed: it is
    √(N/2|D|) A^(−1/2) R (I − 11ᵀ/N).

    Args:
        train: the positives.
        dim: K, the largest dimension that `shrink` will be asked for.
        key: typed key of the first vectors.
        tolerance: of the largest `residual`; the objective's relative error is about its square.
        oversample: further vectors that speed convergence; by default K/4, at least 10.
        passes: at most.

    Raises:
        ValueError: as `fit`; also for `oversample` below 0 and `passes` below 1, and where they are no integers.
    """
    dim = check_input(train, dim, tolerance=tolerance)
    check_key(key)
    passes = integer("passes", passes)
    oversample = None if oversample is None else integer("oversample", oversample, least=0)
    width = min(dim + (max(10, dim // 4) if oversample is None else oversample), train.n_users, train.n_items)
    start = jax.random.normal(key, (train.n_items, width))
    problem = jax.device_put(problem_of(train))
    return _decompose(problem, start, tolerance, dim=dim, passes=passes)


def shrink(decomposition: Decomposition, *, regularization: Scalar, dim: int | None = None) -> Variables:
    """The global optimum of L at one λ: singular values less λ/√2, or 0.

    Args:
        decomposition: from `decompose`.
        regularization: λ. May be traced: `jax.vmap` gives a whole path.
        dim: K, at most the decomposition's; by default the same.

    Returns:
        `models.MF`'s variables, balanced as `fit`'s fixed point is.

    Raises:
        ValueError: for a regularization that is negative or not finite, and a dim that is not an integer from 1 to
            the decomposition's.
    """
    reached = decomposition.values.shape[0]
    dim = reached if dim is None else as_integer(dim)
    number("regularization", regularization, least=0)
    if dim is None or not 1 <= dim <= reached:
        raise ValueError(f"dim={dim}, and the decomposition has {reached}; give 1 to {reached}, or decompose anew")
    n_items = decomposition.item.shape[0]
    kept = jnp.maximum(decomposition.values[:dim] - regularization / math.sqrt(2), 0)
    balance = math.sqrt(math.sqrt(2) * n_items)
    warm = decomposition.scale > 0
    scale = jnp.where(warm, 1 / jnp.where(warm, decomposition.scale, 1), 0)
    return {
        "params": {
            "user": scale[:, None] * decomposition.user[:, :dim] * (jnp.sqrt(kept) / balance)[None],
            "item": decomposition.item[:, :dim] * (jnp.sqrt(kept) * balance)[None],
        }
    }


@functools.partial(jax.jit, static_argnames=("dim", "passes", "degree"))
def _decompose(problem: Problem, start: Array, tolerance: Scalar, *, dim: int, passes: int, degree: int = 4):
    n_items = start.shape[0]
    rows = jnp.sqrt(problem.inverse * (n_items / 2 / problem.total))[:, None]

    def forward(x):  # S̃ x
        return rows * spmm(problem.matrix, problem.transposed, x - x.mean(0, keepdims=True))

    def backward(y):  # S̃ᵀ y
        y = spmm(problem.transposed, problem.matrix, rows * y)
        return y - y.mean(0, keepdims=True)

    def ritz(basis):
        """Best approximations in the span of orthonormal columns, and S̃ᵀS̃ times them."""
        left = forward(basis)
        squares, rotation = jnp.linalg.eigh(dot(left.T, left))
        squares, rotation = jnp.maximum(squares[::-1], 0), rotation[:, ::-1]
        basis, left = dot(basis, rotation), dot(left, rotation)
        image = backward(left)
        distance = jnp.linalg.norm(image - squares[None] * basis, axis=0)
        return basis, left, squares, image, distance / jnp.maximum(squares[0], jnp.finfo(squares.dtype).tiny)

    def filtered(basis, image, cut):
        """T_degree(2 S̃ᵀS̃ / cut − 1): grows outside [0, cut], stays in [−1, 1] inside."""
        previous, present = basis, 2 / cut * image - basis
        for _ in range(degree - 1):
            previous, present = present, 2 * (2 / cut * backward(forward(present)) - present) - previous
            scale = jnp.linalg.norm(present, axis=0, keepdims=True)
            previous, present = previous / scale, present / scale
        return jnp.linalg.qr(present)[0]

    def step(state):
        number, (basis, _, squares, image, _) = state
        cut = jnp.maximum(squares[-1], 1e-3 * squares[0])
        return number + degree, ritz(filtered(basis, image, cut))

    def unfinished(state):
        number, (*_, residual) = state
        return (number < passes) & (residual[:dim].max() > tolerance)

    basis = jnp.linalg.qr(start - start.mean(0, keepdims=True))[0]
    basis = jnp.linalg.qr(backward(forward(basis)))[0]
    _, (basis, left, squares, _, residual) = jax.lax.while_loop(unfinished, step, (2, ritz(basis)))
    values = jnp.sqrt(squares[:dim])
    positive = values > 0
    user = jnp.where(positive[None], left[:, :dim] / jnp.where(positive, values, 1)[None], 0)
    scale = jnp.sqrt(problem.share / (2 * n_items))
    return Decomposition(user, values, basis[:, :dim], scale, residual[:dim])
