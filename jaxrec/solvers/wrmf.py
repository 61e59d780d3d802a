"""WRMF: alternating least squares with confidences (Hu, Koren and Volinsky 2008, 10.1109/ICDM.2008.22).

With r_ui the weights of the pairs D (1 where `train` has none) and o = p·q, `fit` minimises

    Σ_D (1 + αr) (o − 1)² + Σ_not D o² + λ (Σ_u ‖p_u‖² + Σ_i ‖q_i‖²).

The library `implicit` writes its `alpha`·r where we have 1 + αr on observed pairs: its model is this one with α less by
1 (for r = 1).
"""

from __future__ import annotations

from typing import Unpack

from jax.sharding import Mesh

from jaxrec._log import Log
from jaxrec._run import Loop
from jaxrec.interactions import Interactions
from jaxrec.models.mf import MF
from jaxrec.solvers._alternate import Solver, alternate
from jaxrec.solvers._factors import check_numbers, fold_in_of, objective_of
from jaxrec.solvers._run import check_input
from jaxrec.solvers._solve import Weighting, cholesky
from jaxrec.typing import Array, Key, Variables


def fit(
    train: Interactions,
    *,
    dim: int,
    regularization: float,
    alpha: float,
    key: Key,
    sweeps: int = 16,
    solver: Solver = cholesky,
    scale: float = 0.1,
    tolerance: float | None = None,
    mesh: Mesh | None = None,
    **loop: Unpack[Loop],
) -> tuple[MF, Variables, Log]:
    """WRMF: observed pairs have the target 1 and the confidence 1 + αr, all others 0 and 1.

    Args:
        train: the positives.
        dim: K.
        regularization: λ, the same for all rows.
        alpha: α.
        key: typed key of the first item factors.
        sweeps: at most; the other arguments, and what is returned and raised, are those of `ials.fit`.
        solver: see `ials.fit`.
        scale: see `ials.fit`.
        tolerance: see `ials.fit`.
        mesh: see `ials.fit`.
        loop: see `ials.fit`.
    """
    dim = check_input(train, dim, regularization=regularization, alpha=alpha, scale=scale)
    weighting = Weighting(1.0, alpha, 1.0, regularization, 0.0)
    how = {"solver": solver, "scale": scale, "mesh": mesh, "sweeps": sweeps, "tolerance": tolerance}
    return alternate(train, weighting, dim=dim, key=key, loop=loop, **how)


def objective(variables: Variables, train: Interactions, *, regularization: float, alpha: float) -> Array:
    """What `fit` minimises, of the given factors []; it raises what `ials.objective` raises."""
    check_numbers(regularization=regularization, alpha=alpha)
    return objective_of(variables, train, Weighting(1.0, alpha, 1.0, regularization, 0.0))


def fold_in(variables: Variables, histories: Interactions, *, regularization: float, alpha: float) -> Array:
    """`ials.fold_in` for the objective of WRMF: the variables must come from `fit`."""
    check_numbers(regularization=regularization, alpha=alpha)
    return fold_in_of(variables, histories, Weighting(1.0, alpha, 1.0, regularization, 0.0))
