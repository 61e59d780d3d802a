"""EASE in closed form: the linear autoencoder of items by items."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from scipy.linalg import lapack

from jaxrec._log import Log
from jaxrec._numerics import integer, number
from jaxrec.interactions import Interactions, check_positives
from jaxrec.models.ease import EASE
from jaxrec.typing import Variables


def fit(train: Interactions, *, regularization: float, max_items: int = 20_000) -> tuple[EASE, Variables, Log]:
    """EASE (Steck 2019, 10.1145/3308558.3313710): the best linear map of rows to themselves without its diagonal.

    B = I − P diag(1 / diag P), P = (XᵀX + λI)⁻¹, which minimises ‖X − XB‖² + λ‖B‖² under diag B = 0.

    On the host, in float64, by Cholesky's factor: two tables [N, N] and a time of N³.

    Args:
        train: X; weights are not used.
        regularization: λ, in the hundreds for common sets.
        max_items: larger catalogues are refused; at 20 000 the tables take 6.4 GB.

    Returns:
        The model, its variables, with `weights` in float32, and an empty `Log`. The model scores users by their
        `histories`, such as `train`.

    Raises:
        ValueError: for a regularization not above 0 or lost in rounding, more than `max_items` items, no pairs, and
            weights that are negative, not finite or all 0.

    >>> model, variables, log = fit(Interactions.from_pairs([0, 0, 1, 1, 2, 3], [0, 1] * 3), regularization=1.0)
    >>> variables["params"]["weights"].tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    """
    check_positives(train=train)
    regularization = float(number("regularization", regularization, above=0))
    max_items = integer("max_items", max_items)
    if train.n_items > max_items:
        raise ValueError(
            f"train has {train.n_items} items, and two tables of {train.n_items} x {train.n_items} are needed; "
            f"compact the catalogue, or raise max_items={max_items} if {16e-9 * train.n_items**2:.1f} GB are there"
        )
    x = train.to_scipy()
    x.data = np.ones(len(x.data))
    gram = (x.T @ x).toarray()
    gram[np.diag_indices_from(gram)] += regularization
    _invert(gram, regularization)
    weights = np.float32(gram)
    del gram
    weights /= -np.diag(weights)
    np.fill_diagonal(weights, 0)
    return EASE(train.n_items), {"params": {"weights": jnp.asarray(weights)}}, Log()


_BLOCK = 4096  # OpenBLAS crashes in its parallel Cholesky of tables of about 16,000 rows and more


def _invert(table: np.ndarray, regularization: float) -> None:
    """Inverts a positive definite table in place: by Cholesky's factor, and by halves if it is large.

    With A the upper left half, B the lower left and C the lower right, the inverse has S⁻¹ at the lower right, where
    S = C − B A⁻¹ Bᵀ, then −S⁻¹ B A⁻¹ at the lower left, and A⁻¹ + A⁻¹ Bᵀ S⁻¹ B A⁻¹ at the upper left.
    """
    n = len(table)
    if n <= _BLOCK:
        factor, failed = lapack.dpotrf(table, lower=True)
        if failed:
            raise ValueError(f"regularization={regularization} is too small for float64; give a larger one")
        half = np.tril(lapack.dpotri(factor, lower=True)[0])
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
