"""iALS: weighted least squares on all pairs, observed or not, by alternating (Rendle et al. 2022, arXiv 2110.14037).

With r_ui the weights of the pairs D (1 where `train` has none), o = p·q, M users and N items, `fit` minimises

    Σ_D r (o − 1)² + α0 Σ_all o² + Σ_u λ_u ‖p_u‖² + Σ_i λ_i ‖q_i‖²,
    λ_u = λ (Σ_i r_ui + α0 N)^ν,   λ_i = λ (Σ_u r_ui + α0 M)^ν.

Pairs of D are in both sums, so that an observed pair has the weight r + α0 and the target r / (r + α0). Each half step
solves all users or all items, by one of the solvers `cholesky`, `conjugate_gradient` and `subspace`. Rows without pairs
get the zero vector, their exact solution.

Differs: the released code counts pairs, |I_u|, in λ_u. With weights we take their sum, which is what the row weighs.
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
from jaxrec.solvers._solve import Weighting, cholesky, conjugate_gradient, subspace
from jaxrec.typing import Array, Key, Variables

__all__ = ["cholesky", "conjugate_gradient", "fit", "fold_in", "objective", "subspace"]


def fit(
    train: Interactions,
    *,
    dim: int,
    regularization: float,
    unobserved_weight: float,
    key: Key,
    nu: float = 1.0,
    sweeps: int = 16,
    solver: Solver = cholesky,
    scale: float = 0.1,
    tolerance: float | None = None,
    mesh: Mesh | None = None,
    **loop: Unpack[Loop],
) -> tuple[MF, Variables, Log]:
    """iALS: alternates between all users and all items.

    Args:
        train: the positives.
        dim: K.
        regularization: λ.
        unobserved_weight: α0.
        key: typed key of the first item factors.
        nu: ν; 1 regularises a row by what it weighs, 0 all rows alike.
        sweeps: at most.
        solver: `cholesky` (exact), `partial(conjugate_gradient, steps=3)` (the fastest), or `partial(subspace,
            block=...)` (for large K).
        scale: the first item factors are N(0, scale² / K), and 0 for items without pairs.
        tolerance: ends the run when a sweep lowers the objective by no more than this share; None never does.
        mesh: if given, the rows of each side are dealt over its devices; factors are the same on all.
        loop: `validate`, `every`, `stopping`, `checkpoint`, `callbacks` and `progress`, as `train.fit` takes them;
            a sweep is an epoch.

    Returns:
        The model `MF`, its variables {"params": {"user": [M, K], "item": [N, K]}}, and the `Log`: "after_users" and
        "objective" are the objective after each half of a sweep.

    Raises:
        TypeError: for anything but `Interactions`, and for a solver that is no function.
        ValueError: for no pairs, weights that are negative or not finite, sizes that are not integers, a dim above
            min(M, N), hyperparameters that are negative or not finite, a regularization too small (0) for rows with
            fewer pairs than dim, a metric of `stopping` that is never a number, and a mesh of more than one axis or
            of more devices than users.
        Interrupted: at Ctrl-C; it carries the variables after the last sweep, and the log.

    >>> import jax
    >>> train = Interactions.from_pairs([0, 0, 1, 2, 2], [0, 1, 1, 0, 2])
    >>> model, variables, log = fit(
    ...     train, dim=2, regularization=0.01, unobserved_weight=0.1, key=jax.random.key(0), progress=False
    ... )
    >>> variables["params"]["item"].shape, log.names
    ((3, 2), ['after_users', 'objective', 'seconds'])
    """
    numbers = dict(regularization=regularization, unobserved_weight=unobserved_weight, nu=nu, scale=scale)
    dim = check_input(train, dim, **numbers)
    weighting = Weighting(unobserved_weight, 1.0, 0.0, regularization, nu)
    how = {"solver": solver, "scale": scale, "mesh": mesh, "sweeps": sweeps, "tolerance": tolerance}
    return alternate(train, weighting, dim=dim, key=key, loop=loop, **how)


def objective(
    variables: Variables, train: Interactions, *, regularization: float, unobserved_weight: float, nu: float = 1.0
) -> Array:
    """What `fit` minimises, of the given factors []: by Gram matrices, with no [M, N] array.

    Args:
        variables: {"params": {"user": [M, K], "item": [N, K]}}, as `fit` returns them.
        train: the positives, of M users and N items.
        regularization: λ.
        unobserved_weight: α0.
        nu: ν.

    Raises:
        ValueError: for variables of another form or of other sizes, weights that are negative or not finite, and
            hyperparameters that are negative or not finite.
    """
    check_numbers(regularization=regularization, unobserved_weight=unobserved_weight, nu=nu)
    return objective_of(variables, train, Weighting(unobserved_weight, 1.0, 0.0, regularization, nu))


def fold_in(
    variables: Variables, histories: Interactions, *, regularization: float, unobserved_weight: float, nu: float = 1.0
) -> Array:
    """Vectors of users whom training never saw: their exact half step.

    The item vectors must come from `fit`, since the half step is that of its objective. Variables of a
    `models.MF` that was trained by gradients, or by another solver, have the same form and cannot be told apart:
    their vectors would be wrong without an error.

    Args:
        variables: what `fit` returned.
        histories: [B, N], what is known of B users; a user without items gets 0.
        regularization: as in training.
        unobserved_weight: as in training.
        nu: as in training.

    Returns:
        [B, K]; `{"params": {"user": vectors, "item": variables["params"]["item"]}}` are variables of MF for them.

    Raises:
        ValueError: for variables of another form, such as those of a model with facets, biases or a graph, histories
            over another number of items, weights or hyperparameters that are negative or not finite, and a
            regularization too small (0) for rows with fewer pairs than dim.
    """
    check_numbers(regularization=regularization, unobserved_weight=unobserved_weight, nu=nu)
    return fold_in_of(variables, histories, Weighting(unobserved_weight, 1.0, 0.0, regularization, nu))
