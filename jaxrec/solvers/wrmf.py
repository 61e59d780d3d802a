"""WRMF: alternating least squares with confidences.

The paper is Hu, Koren and Volinsky 2008, 10.1109/ICDM.2008.22. Let r_ui be the weights of the
observed pairs D (1 if `train` has no weights) and o = p·q. `fit` minimises

    Σ_D (1 + αr) (o − 1)² + Σ_not D o² + λ (Σ_u ‖p_u‖² + Σ_i ‖q_i‖²).

The library `implicit` uses the confidence `alpha`·r for observed pairs, where this module uses
1 + αr. For r = 1, its `alpha` is α + 1.
"""

from __future__ import annotations

from typing import Any, Unpack

import jax
from jax.sharding import Mesh

from jaxrec._log import Log
from jaxrec._run import Loop
from jaxrec.interactions import Interactions
from jaxrec.models.mf import MF
from jaxrec.solvers._alternate import Solver, alternate
from jaxrec.solvers._factors import check_numbers, explain_of, fold_in_of, objective_of
from jaxrec.solvers._run import check_input
from jaxrec.solvers._solve import Weighting, conjugate_gradient
from jaxrec.typing import ArrayLike, Key, Variables


def fit(
    train: Interactions,
    *,
    dim: int,
    regularization: float,
    alpha: float,
    key: Key,
    sweeps: int = 16,
    solver: Solver = conjugate_gradient,
    scale: float = 0.1,
    balance: bool = True,
    tolerance: float | None = None,
    mesh: Mesh | None = None,
    **loop: Unpack[Loop],
) -> tuple[MF, Variables, Log]:
    """Fits WRMF: solves alternately for all users and for all items.

    Observed pairs have the target 1 and the confidence 1 + αr; all other pairs have the target 0
    and the confidence 1. It returns and raises what `ials.fit` returns and raises.

    Args:
        train: the positives.
        dim: K, the number of dimensions of a factor.
        regularization: λ, the strength of the L2 regularisation, the same for all rows.
        alpha: α, the additional confidence of an observed pair per unit of its weight.
        key: typed key that draws the initial item factors.
        sweeps: maximum number of sweeps, as in `ials.fit`.
        solver: see `ials.fit`.
        scale: see `ials.fit`.
        balance: see `ials.fit`.
        tolerance: see `ials.fit`.
        mesh: see `ials.fit`.
        loop: see `ials.fit`.
    """
    dim = check_input(train, dim, regularization=regularization, alpha=alpha, scale=scale)
    weighting = Weighting(1.0, alpha, 1.0, regularization, 0.0)
    how: dict[str, Any] = {
        "solver": solver,
        "scale": scale,
        "balance": balance,
        "mesh": mesh,
        "sweeps": sweeps,
        "tolerance": tolerance,
    }
    return alternate(train, weighting, dim=dim, key=key, loop=loop, **how)


def objective(variables: Variables, train: Interactions, *, regularization: float, alpha: float) -> jax.Array:
    """Computes the objective of `fit` for given factors []; see `ials.objective`."""
    check_numbers(regularization=regularization, alpha=alpha)
    return objective_of(variables, train, Weighting(1.0, alpha, 1.0, regularization, 0.0))


def fold_in(variables: Variables, histories: Interactions, *, regularization: float, alpha: float) -> jax.Array:
    """Computes the vectors [B, K] of new users; `variables` must come from `fit`.

    See `ials.fold_in`.
    """
    check_numbers(regularization=regularization, alpha=alpha)
    return fold_in_of(variables, histories, Weighting(1.0, alpha, 1.0, regularization, 0.0))


def explain(
    variables: Variables, histories: Interactions, items: ArrayLike, *, regularization: float, alpha: float
) -> jax.Array:
    """Computes how much each of a user's items contributes to a score, [nnz, n]; see `ials.explain`."""
    check_numbers(regularization=regularization, alpha=alpha)
    return explain_of(variables, histories, items, Weighting(1.0, alpha, 1.0, regularization, 0.0))
