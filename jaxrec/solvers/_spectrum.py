"""The global optimum of RG2, from a truncated singular value decomposition; `rg2` has the loss."""

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
from jaxrec.solvers._subspace import leading, width_of
from jaxrec.sparse import spmm
from jaxrec.typing import Array, Key, Scalar, Variables


class Problem(NamedTuple):
    """The data in the form that a sweep needs.

    Attributes:
        matrix: R [M, N].
        transposed: Rᵀ [N, M].
        share: aᵤ / |D| [M].
        inverse: 1 / aᵤ [M], 0 for users without items.
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
    """Computes the `Problem` of interactions, on the host.

    Args:
        train: the interactions.
        dtype: dtype of the factors, and so of the numbers; None is the default float.

    Raises:
        ValueError: if the weights are all 0, because the loss is a mean weighted by them.
    """
    users, items = train.pairs()
    weights = np.ones(train.n_pairs) if train.weights is None else np.asarray(train.weights, np.float64)
    a = totals_of(train)
    inverse, total = inverse_of(a), a.sum()
    if total == 0:
        raise ValueError("train.weights are all 0, and the loss is a mean weighted by them; omit the weights")
    squares = np.bincount(users, weights**2, train.n_users) @ inverse
    dtype = jnp.zeros(()).dtype if dtype is None else dtype
    popularity = np.bincount(items, weights, train.n_items) / total
    numbers = (a / total, inverse, popularity, total, squares * train.n_items / (2 * total) - 0.5)
    return Problem(train, train.transpose(), *(np.asarray(number, dtype) for number in numbers))


def totals_of(matrix: Interactions) -> np.ndarray:
    """Returns the sums of the users' weights aᵤ, float64 [M]."""
    users, _ = matrix.pairs()
    weights = None if matrix.weights is None else np.asarray(matrix.weights, np.float64)[: len(users)]
    return np.bincount(users, weights, matrix.n_users)


def inverse_of(totals: np.ndarray) -> np.ndarray:
    """Returns 1 / aᵤ, and 0 where aᵤ is 0."""
    return np.divide(1.0, totals, out=np.zeros(len(totals)), where=totals > 0)


class Decomposition(NamedTuple):
    """The leading singular triplets of S̃ = diag(√W) S, from which `shrink` computes optima of RG2.

    Attributes:
        user: left singular vectors [M, K].
        values: singular values [K], descending.
        item: right singular vectors [N, K].
        scale: √Wᵤ [M]; 0 for a user without items.
        residual: ‖S̃ᵀS̃v − σ²v‖ / σ₁² [K], the error of each singular vector.
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
    """Computes the leading singular triplets of S̃.

    The method is subspace iteration with a Chebyshev filter, from random vectors. A pass consists
    of two sparse products with K + oversample columns. S̃ = √(N/2|D|) A^(−1/2) R (I − 11ᵀ/N) is
    never formed.

    Args:
        train: the positives.
        dim: K, the largest dimension that `shrink` will use.
        key: typed key that draws the initial vectors.
        tolerance: the iteration ends when no `residual` exceeds this. The relative error of the
            objective is about its square.
        oversample: number of additional vectors, which speed up convergence; by default K/4, at
            least 10.
        passes: maximum number of passes.

    Raises:
        ValueError: if `oversample` is not an integer of 0 or more, `passes` is not an integer of 1
            or more, or `tolerance` is negative or not finite; also for `train`, `dim` and `key` as in
            `fit`.
    """
    dim = check_input(train, dim, tolerance=tolerance)
    check_key(key)
    passes = integer("passes", passes)
    oversample = None if oversample is None else integer("oversample", oversample, least=0)
    width = width_of(dim, oversample, train.n_users, train.n_items)
    start = jax.random.normal(key, (train.n_items, width))
    problem = jax.device_put(problem_of(train))
    return _decompose(problem, start, tolerance, dim=dim, passes=passes)


def shrink(decomposition: Decomposition, *, regularization: Scalar, dim: int | None = None) -> Variables:
    """Computes the global optimum of L for one λ.

    The singular values are lowered by λ/√2, to 0 at the least.

    Args:
        decomposition: from `decompose`.
        regularization: λ. It may be traced: `jax.vmap` computes a whole regularisation path.
        dim: K, at most that of the decomposition, which is the default.

    Returns:
        The variables of `models.MF`, balanced between users and items as `fit` converges to them.

    Raises:
        ValueError: if `regularization` is negative or not finite, or `dim` is not an integer from 1
            to the dimension of the decomposition.
    """
    reached = decomposition.values.shape[0]
    dim = reached if dim is None else as_integer(dim)
    number("regularization", regularization, least=0)
    if dim is None or not 1 <= dim <= reached:
        raise ValueError(
            f"dim={dim}, and the decomposition has {reached}; give 1 to {reached}, or call decompose with a larger dim"
        )
    n_items = decomposition.item.shape[0]
    kept = jnp.maximum(decomposition.values[:dim] - regularization / math.sqrt(2), 0)
    balance = math.sqrt(math.sqrt(2) * n_items)
    warm = decomposition.scale > 0  # users with items
    scale = jnp.where(warm, 1 / jnp.where(warm, decomposition.scale, 1), 0)
    return {
        "params": {
            "user": scale[:, None] * decomposition.user[:, :dim] * (jnp.sqrt(kept) / balance)[None],
            "item": decomposition.item[:, :dim] * (jnp.sqrt(kept) * balance)[None],
        }
    }


@functools.partial(jax.jit, static_argnames=("dim", "passes"))
def _decompose(problem: Problem, start: Array, tolerance: Scalar, *, dim: int, passes: int) -> Decomposition:
    n_items = start.shape[0]
    rows = jnp.sqrt(problem.inverse * (n_items / 2 / problem.total))[:, None]

    def forward(x):  # S̃ x
        return rows * spmm(problem.matrix, problem.transposed, x - x.mean(0, keepdims=True))

    def backward(y):  # S̃ᵀ y
        y = spmm(problem.transposed, problem.matrix, rows * y)
        return y - y.mean(0, keepdims=True)

    start = start - start.mean(0, keepdims=True)
    found = leading(forward, backward, start, tolerance, dim=dim, passes=passes)
    values = jnp.sqrt(found.squares[:dim])
    positive = values > 0
    user = jnp.where(positive[None], found.left[:, :dim] / jnp.where(positive, values, 1)[None], 0)
    scale = jnp.sqrt(problem.share / (2 * n_items))
    return Decomposition(user, values, found.right[:, :dim], scale, found.residual[:dim])
