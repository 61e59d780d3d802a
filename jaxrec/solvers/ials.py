"""iALS: alternating least squares on all pairs (Rendle et al. 2022, arXiv 2110.14037).

Let r_ui be the weights of the observed pairs D (1 if `train` has no weights), o = p·q, M the number
of users and N the number of items. `fit` minimises

    Σ_D r (o − 1)² + α0 Σ_all o² + Σ_u λ_u ‖p_u‖² + Σ_i λ_i ‖q_i‖²,
    λ_u = λ (Σ_i r_ui + α0 N)^ν,   λ_i = λ (Σ_u r_ui + α0 M)^ν.

The pairs of D are in both sums: an observed pair has the weight r + α0 and the target r / (r + α0).
A half step solves for all users or for all items, with one of the solvers `cholesky`,
`conjugate_gradient` and `subspace`. Rows without pairs get the zero vector, their exact solution.

Differs: λ_u has the sum of the row's weights where the released code has the number of its pairs
|I_u|. Without weights the two are equal.
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
from jaxrec.solvers._solve import Weighting, cholesky, conjugate_gradient, subspace
from jaxrec.typing import ArrayLike, Key, Variables

__all__ = ["cholesky", "conjugate_gradient", "explain", "fit", "fold_in", "objective", "subspace"]


def fit(
    train: Interactions,
    *,
    dim: int,
    regularization: float,
    unobserved_weight: float,
    key: Key,
    nu: float = 1.0,
    sweeps: int = 16,
    solver: Solver = conjugate_gradient,
    scale: float = 0.1,
    balance: bool = True,
    tolerance: float | None = None,
    mesh: Mesh | None = None,
    **loop: Unpack[Loop],
) -> tuple[MF, Variables, Log]:
    """Fits iALS: solves alternately for all users and for all items.

    Args:
        train: the positives.
        dim: K, the number of dimensions of a factor.
        regularization: λ, the strength of the L2 regularisation.
        unobserved_weight: α0, the weight of an unobserved pair; an observed one has r + α0.
        key: typed key that draws the initial item factors.
        nu: ν. With 1, a row is regularised in proportion to its total weight; with 0, all rows
            equally.
        sweeps: maximum number of sweeps; a sweep solves once for the users and once for the items.
        solver: a function of a half step. `conjugate_gradient` takes the least time for a sweep; a
            partial of it sets `steps`. `cholesky` is exact. `partial(subspace, block=...)` suits a
            large K.
        scale: the initial item factors are drawn from N(0, scale² / K), but are 0 for items without
            pairs.
        balance: whether each half step rescales the sides: it multiplies the vectors of one side by
            a number and divides those of the other by it. The number minimises the objective, and
            no score changes. The result then depends less on `scale`. False gives the algorithm of
            the paper.
        tolerance: ends the run if a sweep lowers the objective by at most this fraction of it. None
            never ends it.
        mesh: if given, the rows of both sides are solved in equal parts on its devices, which may
            belong to several processes. During the run each device has all factors. The returned
            ones are sharded by rows, or by columns if the devices do not divide the rows evenly;
            see `train.shard`.
        loop: `validate`, `every`, `stopping`, `checkpoint`, `callbacks` and `progress`, as in
            `train.fit`; a sweep counts as an epoch.

    Returns:
        The model `MF`, its variables {"params": {"user": [M, K], "item": [N, K]}}, and the `Log`:
        "after_users" and "objective" are the objective after the first and second half of a sweep.

    Raises:
        TypeError: if `train` is not an `Interactions`, or `solver` is not a function.
        ValueError: if `train` has no pairs; weights are negative, not finite or all 0; a size is
            not an integer; `dim` is above min(M, N); a hyperparameter is negative or not finite;
            `regularization` is too small (0) for an exact solver and rows with fewer pairs than
            `dim`; the metric of `stopping` was NaN at every validation; or `mesh` has several axes
            or more devices than there are users.
        Interrupted: on Ctrl-C. It carries the variables after the last sweep, and the log.

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
    how: dict[str, Any] = {
        "solver": solver,
        "scale": scale,
        "balance": balance,
        "mesh": mesh,
        "sweeps": sweeps,
        "tolerance": tolerance,
    }
    return alternate(train, weighting, dim=dim, key=key, loop=loop, **how)


def objective(
    variables: Variables, train: Interactions, *, regularization: float, unobserved_weight: float, nu: float = 1.0
) -> jax.Array:
    """Computes the objective of `fit` for given factors []; it uses Gram matrices, no [M, N] array.

    Args:
        variables: {"params": {"user": [M, K], "item": [N, K]}}, as returned by `fit`.
        train: the positives, of M users and N items.
        regularization: λ, the strength of the L2 regularisation.
        unobserved_weight: α0, the weight of an unobserved pair; an observed one has r + α0.
        nu: ν, the exponent of a row's total weight in its regularisation.

    Raises:
        ValueError: if `variables` has another form or other sizes, or weights or hyperparameters
            are negative or not finite.
    """
    check_numbers(regularization=regularization, unobserved_weight=unobserved_weight, nu=nu)
    return objective_of(variables, train, Weighting(unobserved_weight, 1.0, 0.0, regularization, nu))


def fold_in(
    variables: Variables, histories: Interactions, *, regularization: float, unobserved_weight: float, nu: float = 1.0
) -> jax.Array:
    """Computes the vectors of users who were not in training, by an exact half step.

    The item vectors must come from `fit`, because the half step minimises its objective. Variables
    of a `models.MF` that was trained by gradients or by another solver have the same form. They
    raise no error, but give wrong vectors.

    Args:
        variables: the variables that `fit` returned.
        histories: [B, N], the known items of B users. A user without items gets the zero vector.
        regularization: λ, the value used in training.
        unobserved_weight: α0, the value used in training.
        nu: ν, the value used in training.

    Returns:
        The users' vectors [B, K]. To score with an `MF` for these users, pass it
        `{"params": {"user": vectors, "item": variables["params"]["item"]}}`.

    Raises:
        ValueError: if `variables` has another form, such as that of a model with facets, biases or
            a graph; `histories` has another number of items; weights or hyperparameters are
            negative or not finite; or `regularization` is too small (0) for rows with fewer pairs
            than dimensions.
    """
    check_numbers(regularization=regularization, unobserved_weight=unobserved_weight, nu=nu)
    return fold_in_of(variables, histories, Weighting(unobserved_weight, 1.0, 0.0, regularization, nu))


def explain(
    variables: Variables,
    histories: Interactions,
    items: ArrayLike,
    *,
    regularization: float,
    unobserved_weight: float,
    nu: float = 1.0,
) -> jax.Array:
    """Computes how much each of a user's items contributes to a score, as Hu et al. (2008) explain.

    The score of item i for a user whose vector solves the half step, as those of `fold_in` do, is
    q_i·p = Σ_j c_j q_iᵀ A⁻¹ q_j, a sum over the user's items j; A and c are those of the half step.
    Every user has a linear system of their own: ask for a few users at a time.

    Args:
        variables: the variables that `fit` returned.
        histories: [B, N], the known items of B users.
        items: ids [B, n] of the items to explain, such as those of `evaluate.top_k`, where −1 is
            padding; or [n], the same for all users.
        regularization: λ, the value used in training.
        unobserved_weight: α0, the value used in training.
        nu: ν, the value used in training.

    Returns:
        The contributions [nnz, n] of the pairs of `histories`, in the order of `histories.pairs()`.
        Those of a user add up to the scores of the user's items; for padding they are 0.

    Raises:
        ValueError: as `fold_in`; also if `items` have another shape or are not ids.

    >>> import jax
    >>> train = Interactions.from_pairs([0, 0, 1, 2, 2], [0, 1, 1, 0, 2])
    >>> how = {"regularization": 0.01, "unobserved_weight": 0.1}
    >>> model, variables, _ = fit(train, dim=2, key=jax.random.key(0), progress=False, **how)
    >>> explain(variables, train, [2], **how).shape  # of each pair to the score of item 2
    (5, 1)
    """
    check_numbers(regularization=regularization, unobserved_weight=unobserved_weight, nu=nu)
    return explain_of(variables, histories, items, Weighting(unobserved_weight, 1.0, 0.0, regularization, nu))
