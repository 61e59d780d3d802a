"""Weighted least squares on all pairs, observed or not: iALS, and WRMF, which it grew out of.

With r_ui the weights of the pairs D (1 where `train` has none), o = p·q, M users, N items:

    `fit`   Σ_D r (o − 1)² + α0 Σ_all o² + Σ_u λ_u ‖p_u‖² + Σ_i λ_i ‖q_i‖²,
            λ_u = λ (Σ_i r_ui + α0 N)^ν,   λ_i = λ (Σ_u r_ui + α0 M)^ν
    `wrmf`  Σ_D (1 + αr) (o − 1)² + Σ_not D o² + λ (Σ_u ‖p_u‖² + Σ_i ‖q_i‖²)

`fit` is iALS (Rendle et al. 2022, arXiv 2110.14037) with its regularisation scaled by what a row weighs. Pairs of D are
in both sums, so an observed pair has the weight r + α0 and the target r / (r + α0). `wrmf` is Hu, Koren and Volinsky
(2008, 10.1109/ICDM.2008.22). Both are rows of systems of one form; see `_solve`. Each half step solves all users or all
items, by one of the solvers `cholesky`, `conjugate_gradient` and `subspace`. Rows without pairs get the zero vector,
their exact solution.

Differs: the released iALS counts pairs, |I_u|, in λ_u; with weights we take their sum, which is what the row weighs.
The library `implicit` writes its `alpha`·r where we have 1 + αr on observed pairs: its model is `wrmf` with α less by 1
(for r = 1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrec._numerics import number
from jaxrec.als._alternate import CHUNK, alternate, eigenbasis, joined
from jaxrec.als._rows import Side, side, spare_pairs
from jaxrec.als._run import Factors, check_factors, check_input, check_solved, check_weights
from jaxrec.als._solve import Half, Weighting, cholesky, conjugate_gradient, subspace
from jaxrec.history import EarlyStopping, History
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.typing import Array, Key, Scalar, Variables

__all__ = [
    "cholesky",
    "conjugate_gradient",
    "fit",
    "fold_in",
    "objective",
    "subspace",
    "wrmf",
    "wrmf_fold_in",
    "wrmf_objective",
]

_einsum = functools.partial(jnp.einsum, precision="highest")


class Solver(Protocol):
    """`cholesky`, `conjugate_gradient`, `subspace`, or a `functools.partial` of one."""

    def __call__(self, half: Half, start: list[Array]) -> tuple[list[Array], list[Array]]:
        """Solutions and values of each bucket's rows; see `_solve`."""


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
    validate: Callable[[Variables], Mapping[str, float]] | None = None,
    every: int = 1,
    stopping: EarlyStopping | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> tuple[Variables, History]:
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
        validate: host function of the variables that gives named figures for the history.
        every: validate after every so many sweeps, and after the last.
        stopping: ends the run when its metric no longer gets better; the best factors are returned.
        mesh: if given, the rows of each side are dealt over its devices; factors are the same on all.
        progress: show a bar.

    Returns:
        `models.MF`'s variables {"params": {"user": [M, K], "item": [N, K]}}, and the `History`: "after_users" and
        "objective" are the objective after each half of a sweep.

    Raises:
        TypeError: for anything but `Interactions`, and for a solver that is no function.
        ValueError: for no pairs, weights that are negative or not finite, sizes that are not integers, a dim above
            min(M, N), hyperparameters that are negative or not finite, a regularization too small (0) for rows with
            fewer pairs than dim, a metric of `stopping` that is never a number, and a mesh of more than one axis or
            of more devices than users.
        Interrupted: at Ctrl-C; it carries the variables after the last sweep, and the history.

    >>> train = Interactions.from_pairs([0, 0, 1, 2, 2], [0, 1, 1, 0, 2])
    >>> variables, history = fit(
    ...     train, dim=2, regularization=0.01, unobserved_weight=0.1, key=jax.random.key(0), progress=False
    ... )
    >>> variables["params"]["item"].shape, history.names
    ((3, 2), ['after_users', 'objective', 'seconds'])
    """
    numbers = dict(regularization=regularization, unobserved_weight=unobserved_weight, nu=nu, scale=scale)
    dim = check_input(train, dim, **numbers)
    weighting = Weighting(unobserved_weight, 1.0, 0.0, regularization, nu)
    loop = dict(sweeps=sweeps, tolerance=tolerance, validate=validate, every=every, stopping=stopping)
    return alternate(
        train, weighting, dim=dim, key=key, solver=solver, scale=scale, mesh=mesh, progress=progress, **loop
    )


def wrmf(
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
    validate: Callable[[Variables], Mapping[str, float]] | None = None,
    every: int = 1,
    stopping: EarlyStopping | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> tuple[Variables, History]:
    """WRMF: observed pairs have the target 1 and the confidence 1 + αr, all others 0 and 1.

    Args:
        train: the positives.
        dim: K.
        regularization: λ, the same for all rows.
        alpha: α.
        key: typed key of the first item factors.
        sweeps: at most; the other arguments, and what is returned and raised, are those of `fit`.
        solver: see `fit`.
        scale: see `fit`.
        tolerance: see `fit`.
        validate: see `fit`.
        every: see `fit`.
        stopping: see `fit`.
        mesh: see `fit`.
        progress: see `fit`.
    """
    dim = check_input(train, dim, regularization=regularization, alpha=alpha, scale=scale)
    weighting = Weighting(1.0, alpha, 1.0, regularization, 0.0)
    loop = dict(sweeps=sweeps, tolerance=tolerance, validate=validate, every=every, stopping=stopping)
    return alternate(
        train, weighting, dim=dim, key=key, solver=solver, scale=scale, mesh=mesh, progress=progress, **loop
    )


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
    _check_numbers(regularization=regularization, unobserved_weight=unobserved_weight, nu=nu)
    return _objective(variables, train, Weighting(unobserved_weight, 1.0, 0.0, regularization, nu))


def wrmf_objective(variables: Variables, train: Interactions, *, regularization: float, alpha: float) -> Array:
    """What `wrmf` minimises, of the given factors []; it raises what `objective` raises."""
    _check_numbers(regularization=regularization, alpha=alpha)
    return _objective(variables, train, Weighting(1.0, alpha, 1.0, regularization, 0.0))


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
    _check_numbers(regularization=regularization, unobserved_weight=unobserved_weight, nu=nu)
    return _fold_in(variables, histories, Weighting(unobserved_weight, 1.0, 0.0, regularization, nu))


def wrmf_fold_in(variables: Variables, histories: Interactions, *, regularization: float, alpha: float) -> Array:
    """`fold_in` of `wrmf`: the variables must come from `wrmf`."""
    _check_numbers(regularization=regularization, alpha=alpha)
    return _fold_in(variables, histories, Weighting(1.0, alpha, 1.0, regularization, 0.0))


# ---------------------------------------------------------------------- given factors


def _check_numbers(**given: Scalar) -> None:
    for name, value in given.items():
        number(name, value, least=0)


def _objective(variables: Variables, train: Interactions, weighting: Weighting) -> Array:
    check_interactions(train=train)
    check_weights(train=train)
    user, item = check_factors(variables, "train has", user=train.n_users, item=train.n_items)
    users, items = train.pairs()
    ratings = np.ones(train.n_pairs, np.float32) if train.weights is None else np.asarray(train.weights)
    totals = np.bincount(users, ratings, train.n_users), np.bincount(items, ratings, train.n_items)
    return _objective_of({"user": user, "item": item}, (users, items, ratings), totals, weighting)


@jax.jit
def _objective_of(params: Factors, pairs: tuple[Array, ...], totals: tuple[Array, Array], weighting: Weighting):
    user, item = params["user"], params["item"]
    weighting = weighting.of_type(item.dtype)

    def loss(pair):
        u, i, rating = pair
        score, w = (user[u] * item[i]).sum(), weighting.gain * rating.astype(user.dtype)
        return (w + weighting.shift) * (1 - 2 * score) + w * score**2

    batch_size = max(min(CHUNK // user.shape[1] + 1, len(pairs[0])), 1)
    observed = jax.lax.map(loss, pairs, batch_size=batch_size).sum()
    grams = (_einsum("nk,nm->km", table, table) for table in (user, item))
    everything = weighting.unobserved * functools.reduce(jnp.multiply, grams).sum()
    ridges = [
        (weighting.penalties(total.astype(own.dtype), len(other)) * (own**2).sum(-1)).sum()
        for total, own, other in zip(totals, (user, item), (item, user))
    ]
    return observed + everything + sum(ridges)


def _fold_in(variables: Variables, histories: Interactions, weighting: Weighting) -> Array:
    check_interactions(histories=histories)
    check_weights(histories=histories)
    (item,) = check_factors(variables, "histories have", item=histories.n_items)
    if histories.n_pairs == 0:
        return jnp.zeros((histories.n_users, item.shape[1]), item.dtype)
    own = side(histories, chunk=max(CHUNK // item.shape[1], 1), spare=spare_pairs(item.shape[1]))
    return check_solved(_solved_alone(own, item, weighting))


@jax.jit
def _solved_alone(own: Side, table: Array, weighting: Weighting) -> Array:
    """The exact rows [R, K] of one side over the other's table [n, K]."""
    weighting = weighting.of_type(table.dtype)
    spectrum, basis = eigenbasis(_einsum("nk,nm->km", table, table))
    half = Half(own.buckets, _einsum("nk,km->nm", table, basis), weighting.unobserved * spectrum, weighting, len(table))
    start = [jnp.zeros((*bucket.rows.shape, table.shape[1]), table.dtype) for bucket in own.buckets]
    rows = jnp.pad(joined(cholesky(half, start)[0]), ((0, 1), (0, 0)))
    return _einsum("rk,mk->rm", rows[own.place], basis)
