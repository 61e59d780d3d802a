"""EASE: an item-to-item linear autoencoder, fitted in closed form."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._log import Log
from jaxrec._numerics import integer, number
from jaxrec._platform import platform
from jaxrec.interactions import Interactions, check_interactions, check_positives
from jaxrec.models.ease import EASE
from jaxrec.solvers._explain import checked_items
from jaxrec.typing import Array, ArrayLike, Variables


def fit(
    train: Interactions, *, regularization: float, max_items: int = 20_000, dtype: Any = np.float64
) -> tuple[EASE, Variables, Log]:
    """Fits EASE (Steck 2019, 10.1145/3308558.3313710).

    It computes B = I − P diag(1 / diag P) with P = (XᵀX + λI)⁻¹, which minimises ‖X − XB‖² + λ‖B‖²
    subject to diag B = 0.

    The computation is a Cholesky factorisation, and its time grows with N³. It runs on the host,
    where it needs two [N, N] arrays, or on an accelerator, which needs five.

    Args:
        train: X, the positives; their weights are ignored.
        regularization: λ, the strength of the L2 regularisation; common data sets need hundreds.
        max_items: the largest N that is accepted. With 20 000 items the two arrays take 6.4 GB.
        dtype: float64, or float32, which takes half of the memory. In float32 the relative
            error of a large weight is about 1e-7 σ²/λ, for the largest singular value σ of X.

    Returns:
        The model `EASE`, its variables, with `weights` in float32, and an empty `Log`. The model
        scores users by their `histories`, such as `train`.

    Raises:
        ValueError: if `regularization` is not above 0, so small that rounding errors would change
            the second digit of the weights, or above 1e37 (1e18 in float32); `dtype` is neither
            float64 nor float32; `train` has more than `max_items` items or no pairs; or weights are
            negative, not finite or all 0.

    >>> model, variables, log = fit(Interactions.from_pairs([0, 0, 1, 1, 2, 3], [0, 1] * 3), regularization=1.0)
    >>> variables["params"]["weights"].tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    """
    check_positives(train=train)
    max_items, dtype = integer("max_items", max_items), _float_of(dtype)
    regularization = float(number("regularization", regularization, above=0))
    # The weights are about 1/λ and float32; the inverse has entries of about 1/λ², in the dtype.
    if regularization > (most := 1e37 if dtype == np.float64 else 1e18):
        raise ValueError(f"regularization={regularization} is too large for {dtype}; give {most:g} or less")
    if train.n_items > max_items:
        memory = 2e-9 * dtype.itemsize * train.n_items**2
        raise ValueError(
            f"train has {train.n_items} items, and two arrays of {train.n_items} x {train.n_items} are needed; "
            f"remove items, or raise max_items={max_items} if {memory:.1f} GB of memory are free"
        )
    x = train.to_scipy()
    x.data = np.ones(len(x.data), dtype)
    gram = (x.T @ x).toarray()
    gram[np.diag_indices_from(gram)] += regularization
    if platform() == "cpu":
        largest = _largest(gram)
        _invert(gram, regularization)
        if not _error(largest, gram.diagonal().max(), dtype) < _MOST_ERROR:
            raise _too_small(regularization, dtype)
        gram /= -np.diag(gram)  # before the cast: float32 does not hold the inverse for a large λ
        weights = gram.astype(np.float32, copy=False)
        del gram
        np.fill_diagonal(weights, 0)
    else:
        with jax.enable_x64(True):
            weights = on_accelerator(jnp.asarray(gram))
        if not bool(jnp.isfinite(weights[0]).all()):
            raise _too_small(regularization, dtype)
    return EASE(train.n_items), {"params": {"weights": jnp.asarray(weights)}}, Log()


def explain(variables: Variables, histories: Interactions, items: ArrayLike) -> jax.Array:
    """Returns how much each of a user's items contributes to a score: its weight B_ji.

    Args:
        variables: the variables that `fit` returned.
        histories: [B, N], the items of B users.
        items: ids [B, n] of the items to explain, such as those of `evaluate.top_k`, where −1 is
            padding; or [n], the same for all users.

    Returns:
        The contributions [nnz, n] of the pairs of `histories`, in the order of `histories.pairs()`.
        Those of a user add up to the scores of the user's items; for padding they are 0.

    Raises:
        ValueError: if `variables` has no table of weights of as many items as `histories`, or
            `items` have another shape or are not ids.

    >>> train = Interactions.from_pairs([0, 0, 1, 1, 2, 3], [0, 1] * 3)
    >>> explain(fit(train, regularization=1.0)[1], train, [0]).ravel().tolist()
    [0.0, 0.5, 0.0, 0.5, 0.0, 0.5]
    """
    check_interactions(histories=histories)
    weights, n = variables.get("params", {}).get("weights"), histories.n_items
    if np.shape(weights) != (n, n):
        raise ValueError(f"variables has no weights of {n} x {n} items, those of the histories; give those of ease.fit")
    users, known = histories.pairs()
    asked = checked_items(items, histories)[users]
    return jnp.where(asked >= 0, jnp.asarray(weights)[known[:, None], asked], 0)


@jax.jit
def on_accelerator(table: Array) -> jax.Array:
    """Returns B float32 [N, N] for XᵀX + λI, NaN if λ is too small for the dtype."""
    factor = jnp.linalg.cholesky(table)
    inverse = jax.scipy.linalg.cho_solve((factor, True), jnp.eye(len(table), dtype=table.dtype))
    # NaN, if Cholesky's factor does not exist, is not below the limit.
    precise = _error(_largest(table), jnp.diag(inverse).max(), table.dtype) < _MOST_ERROR
    weights = jnp.where(precise, inverse / -jnp.diag(inverse)[None], jnp.nan).astype(jnp.float32)
    return jnp.fill_diagonal(weights, 0, inplace=False)


_MOST_ERROR = 0.01  # of a weight: two digits are right


def _error(largest: Any, inverted: Any, dtype: np.dtype) -> Any:
    """Estimates the error of the weights: rounding times the condition number of XᵀX + λI.

    Args:
        largest: its largest eigenvalue.
        inverted: the largest entry of its inverse's diagonal, about 1/λ if XᵀX is singular.
        dtype: of the computation.
    """
    return float(np.finfo(dtype).eps) * largest * inverted


def _largest(table: Any) -> Any:
    """Estimates the largest eigenvalue of XᵀX + λI by two steps of the power iteration.

    The entries are 0 or more, so that the first eigenvector is near the sums of the rows.
    """
    sums = table.sum(0)
    return (table @ (sums / sums.max())).max()


def _float_of(dtype: Any) -> np.dtype:
    """Returns float64 or float32; raises `ValueError` for anything else."""
    try:
        found = np.dtype(dtype)
    except TypeError:  # not the name of a dtype
        found = None
    if found not in (np.float32, np.float64):
        raise ValueError(f"dtype={dtype if found is None else found}; give float64 or float32")
    return found


def _too_small(regularization: float, dtype: np.dtype) -> ValueError:
    return ValueError(f"regularization={regularization} is too small for {dtype}; give a larger one")


_BLOCK = 4096  # OpenBLAS's parallel Cholesky crashes from about 16,000 rows on


def _invert(table: np.ndarray, regularization: float) -> None:
    """Inverts a positive definite matrix in place, by Cholesky, and blockwise if it is large.

    Let A be the upper left block, B the lower left and C the lower right, and S = C − B A⁻¹ Bᵀ. The
    inverse has A⁻¹ + A⁻¹ Bᵀ S⁻¹ B A⁻¹ at the upper left, −S⁻¹ B A⁻¹ at the lower left, and S⁻¹ at
    the lower right.
    """
    from scipy.linalg import lapack

    n = len(table)
    if n <= _BLOCK:
        factorise, inverted = lapack.get_lapack_funcs(("potrf", "potri"), (table,))
        factor, failed = factorise(table, lower=True)
        if failed:
            raise _too_small(regularization, table.dtype)
        half = np.tril(inverted(factor, lower=True)[0])
        table[...] = half + np.tril(half, -1).T
        return
    k = n // 2
    upper, lower, corner = table[:k, :k], table[k:, :k], table[k:, k:]
    _invert(upper, regularization)
    moved = lower @ upper
    corner -= moved @ lower.T
    _invert(corner, regularization)
    lower[...] = -(corner @ moved)
    upper -= moved.T @ lower
    table[:k, k:] = lower.T
