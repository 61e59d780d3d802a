"""RG2: a squared loss aligned with DCG, minimised without SGD.

The paper is Pu et al. 2024, "Learning-Efficient Yet Generalizable CF". The loss is the second-order
expansion of the softmax loss at 0, without one term (see `losses.rg2`). User u has aᵤ of the |D|
pairs, and the sums are over all N items:

    L = Σᵤ Wᵤ Σⱼ (oᵤⱼ − Sᵤⱼ)² + λ [Σᵤ N Wᵤ ‖pᵤ‖² + ‖Q‖² / 2N],
    Wᵤ = aᵤ / (2N|D|),   Sᵤⱼ = rᵤⱼ N / aᵤ − 1.

If `train` has weights, they are rᵤⱼ, aᵤ is their sum over a user, and |D| is the sum of all.

- `fit` alternates between users and items. The weights Wᵤ are constant within a row, so they cancel
  from the normal equations: all users share one K x K system, and all items another. A sweep costs
  two sparse products.
- The optimum over all factors of rank K is a truncated SVD with singular values lowered by λ/√2.
  `decompose` computes the SVD once, `shrink` the optimum for every λ and every smaller K. `solve`
  does both.

λ ≥ √2 σ₁ gives the zero solution, where σ₁ is the largest of `decompose(...).values`. Choose λ
relative to √2 σ₁.

Differs: the paper's Algorithm 1 forms a system for each row. In its released code, the −1 of the
targets has the wrong sign in the items' step, and the regulariser is scaled by N, where the sum of
weights is aᵤ. Here every half step minimises the objective, exactly if α is 0, so that it never
rises.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.numpy.linalg import eigh
from jax.sharding import Mesh, PartitionSpec

from jaxrec._log import Log
from jaxrec._mesh import automatic, where_they_lie
from jaxrec._numerics import integer, number
from jaxrec._run import Loop
from jaxrec.interactions import Interactions, check_interactions, check_positives, check_weights
from jaxrec.models.mf import MF
from jaxrec.solvers._conjugate import Rows, conjugate, scores
from jaxrec.solvers._explain import checked_items, explained, weights_of
from jaxrec.solvers._fold_in import Summary, compact, summary_of
from jaxrec.solvers._mesh import check_mesh, sharded, sharded_factors, spread
from jaxrec.solvers._run import check_factors, check_input, check_solved, description_of, first_factors, run
from jaxrec.solvers._spectrum import Decomposition, Problem, decompose, inverse_of, problem_of, shrink, totals_of
from jaxrec.solvers._subspace import dot
from jaxrec.sparse import spmm
from jaxrec.typing import Array, ArrayLike, Key, Scalar, Variables

__all__ = ["Decomposition", "decompose", "explain", "fit", "fold_in", "objective", "shrink", "solve"]


def fit(
    train: Interactions,
    *,
    dim: int,
    regularization: Scalar,
    key: Key,
    alpha: Scalar = 0.0,
    sweeps: int = 30,
    steps: int = 8,
    scale: float = 0.1,
    tolerance: float | None = 1e-6,
    mesh: Mesh | None = None,
    **loop: Unpack[Loop],
) -> tuple[MF, Variables, Log]:
    """Fits RG2: solves alternately for all users and for all items.

    With a small λ, the ranking may be best after a few sweeps, before the objective has settled.
    `stopping` finds this sweep on validation data. `solve` computes the limit of the sweeps
    directly.

    Args:
        train: the positives. A user without pairs gets the zero vector. All items without pairs get
            the same vector.
        dim: K, the number of dimensions of a factor.
        regularization: λ, the strength of the L2 regularisation. Choose it relative to √2 σ₁; see
            the module.
        key: typed key that draws the initial item factors.
        alpha: α, additional weight of the positives: L gains α/|D| Σ r (o − 1)² over the pairs, and
            the corresponding regularisation. If α is not 0, every row has its own system, solved by
            conjugate gradients, and there is no closed form.
        sweeps: maximum number of sweeps; a sweep solves once for the users and once for the items.
        steps: number of conjugate gradient steps in a half step; only used if `alpha` is not 0.
        scale: the initial item factors are drawn from N(0, scale² / K).
        tolerance: ends the run if a sweep lowers the objective by at most this fraction of it. None
            never ends it.
        mesh: if given, the users are sharded over its devices and the items are replicated; a sweep
            sums an [N, K] array over the mesh. The devices may belong to several processes, each of
            which needs all of `train`. The returned factors are sharded by rows, or by columns if
            the devices do not divide the rows evenly; see `train.shard`.
        loop: `validate`, `every`, `stopping`, `checkpoint`, `callbacks` and `progress`, as in
            `train.fit`; a sweep counts as an epoch.

    Returns:
        The model `MF`, its variables {"params": {"user": [M, K], "item": [N, K]}}, and the `Log`:
        "after_users" and "objective" are L after the first and second half of a sweep.

    Raises:
        TypeError: if `train` is not an `Interactions`.
        ValueError: if `train` has no pairs; weights are negative, not finite or all 0; a size is
            not an integer; `dim` is above min(M, N); a hyperparameter is negative or not finite;
            `regularization` is too small (0) for factors with a singular Gram matrix; the metric of
            `stopping` was NaN at every validation; or `mesh` has several axes or more devices than
            there are users.
        Interrupted: on Ctrl-C. It carries the variables after the last sweep, and the log.

    >>> train = Interactions.from_pairs([0, 0, 1, 2, 2], [0, 1, 1, 0, 2])
    >>> model, variables, log = fit(train, dim=2, regularization=0.1, key=jax.random.key(0), progress=False)
    >>> variables["params"]["item"].shape
    (3, 2)
    """
    began = time.perf_counter()
    dim = check_input(train, dim, regularization=regularization, alpha=alpha)
    steps = integer("steps", steps)
    settings, steps = _Settings(regularization, alpha), steps if _given(alpha) else 0
    drawn = first_factors(key, train, dim, scale)
    solve = None if steps else jnp.eye(dim, dtype=drawn["item"].dtype)
    first = _State(**drawn, gram=dot(drawn["item"].T, drawn["item"]) / train.n_items, solve=solve)
    sweep, state, factors = _prepared(train, first, steps) if mesh is None else _prepared_on(mesh, train, first, steps)
    settings_of: dict[str, Any] = {
        "dim": dim,
        "regularization": regularization,
        "alpha": alpha,
        "steps": steps,
        "scale": scale,
    }
    return run(
        lambda state: sweep(state, settings),
        state,
        model=MF(train.n_users, train.n_items, dim=dim),
        params=factors,
        mesh=mesh,
        sweeps=sweeps,
        tolerance=tolerance,
        began=began,
        description=lambda: description_of(train, key, tolerance=tolerance, **settings_of),
        **loop,
    )


@where_they_lie
def objective(variables: Variables, train: Interactions, *, regularization: Scalar, alpha: Scalar = 0.0) -> jax.Array:
    """Computes L [] of given factors; it is differentiable.

    It uses Gram matrices and sparse products, no [M, N] array.

    Args:
        variables: {"params": {"user": [M, K], "item": [N, K]}}, as returned by `fit` or `solve`.
        train: the positives, of M users and N items.
        regularization: λ, the strength of the L2 regularisation.
        alpha: α, the additional weight of the positives.

    Raises:
        ValueError: if `variables` has another form or other sizes; there are no pairs; weights are
            negative, not finite or all 0; or a hyperparameter is negative or not finite.
    """
    check_positives(train=train)
    user, item = check_factors(variables, "train has", user=train.n_users, item=train.n_items)
    settings = _settings(regularization, alpha)
    return _objective_of({"user": user, "item": item}, problem_of(train, user.dtype), settings, pairwise=_given(alpha))


@where_they_lie
def fold_in(
    variables: Variables,
    histories: Interactions,
    *,
    regularization: Scalar,
    alpha: Scalar = 0.0,
    steps: int = 30,
) -> jax.Array:
    """Computes the vectors of users who were not in training, by a half step.

    The item vectors must come from `fit` or `solve`, because the half step minimises their
    objective. Variables of a `models.MF` that was trained by gradients or by another solver have
    the same form. They raise no error, but give wrong vectors.

    Args:
        variables: the variables that `fit` or `solve` returned.
        histories: [B, N], the known items of B users. A user without items gets the zero vector.
        regularization: λ, the value used in training.
        alpha: α, the value used in training.
        steps: number of conjugate gradient steps; only used if `alpha` is not 0.

    Returns:
        The users' vectors [B, K]. To score with an `MF` for these users, pass it
        `{"params": {"user": vectors, "item": variables["params"]["item"]}}`.

    Raises:
        ValueError: if `variables` has another form, such as that of a model with facets, biases or
            a graph; `histories` has another number of items; weights or hyperparameters are
            negative or not finite; `steps` is not an integer of 1 or more; or `regularization` is
            too small (0) for the items' Gram matrix.
    """
    check_interactions(histories=histories)
    check_weights(histories=histories)
    (item,) = check_factors(variables, "histories have", item=histories.n_items)
    steps, settings = integer("steps", steps), _settings(regularization, alpha)
    known, ids = compact(histories)
    inverse = inverse_of(totals_of(known)).astype(item.dtype)
    steps = steps if _given(alpha) else 0
    vectors = _fold_in(known, inverse, item, ids, summary_of(item), settings, steps=steps)
    return check_solved(vectors[: histories.n_users])


@where_they_lie
def explain(
    variables: Variables,
    histories: Interactions,
    items: ArrayLike,
    *,
    regularization: Scalar,
    alpha: Scalar = 0.0,
) -> jax.Array:
    """Computes how much each of a user's items contributes to a score.

    The score of item i for a user whose vector solves the half step, as those of `fold_in` do, is

        q_i·p = Σ_j c_j q_iᵀ A⁻¹ q_j − q_iᵀ A⁻¹ q̄,   c_j = (1 + 2α) r_j / a,
        A = QᵀQ/N + λ (1 + 2α) I + 2α/a Σ_j r_j q_j q_jᵀ,

    where j are the user's items and q̄ is the mean of all items. The contributions are the terms of
    the sum. The last term does not depend on which items the user has, if α is 0.

    Args:
        variables: the variables that `fit` or `solve` returned.
        histories: [B, N], the known items of B users.
        items: ids [B, n] of the items to explain, such as those of `evaluate.top_k`, where −1 is
            padding; or [n], the same for all users.
        regularization: λ, the value used in training.
        alpha: α, the value used in training.

    Returns:
        The contributions [nnz, n] of the pairs of `histories`, in the order of `histories.pairs()`;
        for padding they are 0.

    Raises:
        ValueError: as `fold_in`; also if `items` have another shape or are not ids.
    """
    check_interactions(histories=histories)
    check_weights(histories=histories)
    (item,) = check_factors(variables, "histories have", item=histories.n_items)
    settings, asked, ratings = _settings(regularization, alpha), checked_items(items, histories), weights_of(histories)
    users, _ = histories.pairs()
    shares = ratings * inverse_of(totals_of(histories))[users]
    gain = 1 + 2 * settings.alpha
    ridge = np.full(histories.n_users, settings.regularization * gain)
    gram = summary_of(item).gram / item.shape[0]
    return explained(item, histories, asked, gram, ridge, 2 * settings.alpha * shares, gain * shares)


def _given(alpha: Scalar) -> bool:
    """Returns whether α is not 0; a traced α counts as not 0."""
    return isinstance(alpha, jax.core.Tracer) or bool(alpha)


def solve(
    train: Interactions, *, dim: int, regularization: Scalar, key: Key, tolerance: float = 1e-4
) -> tuple[MF, Variables, Log]:
    """Computes the global optimum of L over factors of K dimensions, by `decompose` and `shrink`.

    Args:
        train: the positives.
        dim: K, the number of dimensions of a factor.
        regularization: λ, the strength of the L2 regularisation.
        key: typed key that draws the initial vectors of `decompose`.
        tolerance: see `decompose`.

    Returns:
        The model `MF`, its variables {"params": {"user": [M, K], "item": [N, K]}}, and an empty
        `Log`.

    Raises:
        ValueError: as `decompose`, and if `regularization` is negative or not finite.

    >>> train = Interactions.from_pairs([0, 0, 1, 2, 2], [0, 1, 1, 0, 2])
    >>> model, variables, log = solve(train, dim=2, regularization=0.1, key=jax.random.key(0))
    >>> float(objective(variables, train, regularization=0.1)) < float(
    ...     objective(jax.tree.map(jnp.zeros_like, variables), train, regularization=0.1)
    ... )
    True
    """
    dim = check_input(train, dim, regularization=regularization)
    variables = shrink(decompose(train, dim=dim, key=key, tolerance=tolerance), regularization=regularization)
    return MF(train.n_users, train.n_items, dim=dim), variables, Log()


# ---------------------------------------------------------------------- one device, or a mesh


class _State(NamedTuple):
    """The state between sweeps: the factors and QᵀQ/N, which the objective and the next sweep need.

    The users' factors are `user`. If `solve` [K, K] is given, they are `user @ solve`, which a
    sweep never forms.
    """

    user: Array
    item: Array
    gram: Array
    solve: Array | None = None


class _Settings(NamedTuple):
    """λ and α."""

    regularization: Scalar
    alpha: Scalar

    def of_type(self, dtype: Any) -> _Settings:
        """Converts the numbers to the dtype of the tables."""
        return _Settings(*(jnp.asarray(x, dtype) for x in self))


def _settings(regularization: Scalar, alpha: Scalar) -> _Settings:
    """Checks λ and α."""
    return _Settings(number("regularization", regularization, least=0), number("alpha", alpha, least=0))


def _factors(state: _State) -> dict[str, Array]:
    """Returns the tables of users and items."""
    return {"user": state.user if state.solve is None else dot(state.user, state.solve), "item": state.item}


def _prepared(train: Interactions, state: _State, steps: int):
    """Returns the sweep, its first state, and the function from a state to the factors."""
    return functools.partial(_sweep, jax.device_put(problem_of(train)), steps=steps), state, _factors


def _prepared_on(mesh: Mesh, train: Interactions, state: _State, steps: int):
    """Does the work of `_prepared` on a mesh; `factors` sorts the users by their ids."""
    axis = check_mesh(mesh, train.n_users)
    given, mesh = mesh, automatic(mesh)
    shards, whole = sharded(train, mesh.size), problem_of(train)
    shares, inverses = (np.append(x, np.zeros((), x.dtype))[shards.users] for x in (whole.share, whole.inverse))
    # Every leaf gets a leading axis of devices, so that one spec shards them all.
    same_for_all = (np.broadcast_to(x, (mesh.size, *x.shape)) for x in whole[4:])
    problem = spread(mesh, Problem(shards.matrix, shards.transposed, shares, inverses, *same_for_all), axis)
    users = np.zeros((*shards.users.shape, state.user.shape[1]), state.user.dtype)
    places, item, gram, solve = spread(mesh, (shards.places, state.item, state.gram, state.solve))
    split: Any = PartitionSpec(axis)
    same: Any = PartitionSpec()
    specs = _State(split, same, same, same)

    def local(problem, state, settings):
        problem, user = jax.tree.map(lambda x: x[0], (problem, state.user))
        state, values = _sweep(problem, state._replace(user=user), settings, steps=steps, axis=axis)
        return state._replace(user=state.user[None]), values

    sweep = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=(split, specs, same), out_specs=(specs, same), check_vma=False)
    )

    def factors(state, places):
        user = state.user.reshape(-1, state.user.shape[-1])[places]
        return _factors(state._replace(user=user))

    shapes = {"user": (train.n_users, item.shape[1]), "item": item.shape}
    in_place = sharded_factors(given, factors, **shapes)
    state = _State(spread(mesh, users, axis), item, gram, solve)
    return functools.partial(sweep, problem), state, lambda state: in_place(state, places)


# ---------------------------------------------------------------------- a sweep


@functools.partial(jax.jit, static_argnames=("steps", "axis"))
def _sweep(problem: Problem, state: _State, settings: _Settings, *, steps: int, axis: str | None = None):
    """Runs both half steps.

    If the mesh axis `axis` is given, users are sharded over it and items are replicated.

    A half step minimises Σ (xAx − 2xb) over its rows x. At its end this is −Σ x(b + residual), so
    the objective costs no further product.
    """
    sum_devices = (lambda x: jax.lax.psum(x, axis)) if axis else (lambda x: x)
    settings = settings.of_type(state.item.dtype)
    if not steps:
        return _shared_sweep(problem, state, settings, sum_devices)
    n_items, (regularization, alpha) = state.item.shape[0], settings
    summed = spmm(problem.matrix, problem.transposed, state.item)
    sides = _sides(problem.inverse, summed, state.item.mean(0), alpha)
    own = _systems(problem.matrix, problem.inverse, settings)
    user, match = conjugate(own, state.item, eigh(state.gram), sides, state.user, steps, lambda x: x)
    weighted = problem.share[:, None] * user
    sums = spmm(problem.transposed, problem.matrix, user / problem.total)
    parts = dot(user.T, weighted), weighted.sum(0), sums, (weighted * match).sum()
    gram_users, mean_users, sums, value_users = sum_devices(parts)

    gain = 2 * alpha * n_items
    ridge = regularization * (1 + gain * problem.popularity)
    own = Rows(problem.transposed, ridge, jnp.full(n_items, gain / problem.total))
    sides = (1 + 2 * alpha) * n_items * sums - mean_users[None]
    item, match = conjugate(own, user, eigh(gram_users), sides, state.item, steps, sum_devices)

    constant = problem.constant + alpha
    ridge_items = ridge @ (state.item**2).sum(1) / n_items
    ridge_users = (1 + 2 * alpha) * regularization * jnp.trace(gram_users)
    values = {
        "after_users": constant + 0.5 * (ridge_items - value_users),
        "objective": constant + 0.5 * (ridge_users - (item * match).sum() / n_items),
    }
    return _State(user, item, dot(item.T, item) / n_items), values


def _shared_sweep(problem: Problem, state: _State, settings: _Settings, sum_devices: Callable):
    """Runs both half steps for α = 0, where all rows of a side share one matrix.

    Rows are multiplied by its inverse S, because solving triangular systems for every row takes
    much longer. The items' step only needs sums over the users' vectors p = S b, so the
    right-hand sides b are summed, and S is applied to the sums: Σ w p pᵀ = S (Σ w b bᵀ) S. No table
    has to be weighted, because w b = (sum of the user's items) / |D| − w (mean of all items).
    """
    n_items, regularization = state.item.shape[0], settings.regularization
    summed = spmm(problem.matrix, problem.transposed, state.item)
    sides, solve = _sides(problem.inverse, summed, state.item.mean(0)), _inverse(state.gram, regularization)
    parts = dot(sides.T, summed), dot(problem.share, sides), spmm(problem.transposed, problem.matrix, sides)
    gram, mean, sums = sum_devices(parts)
    gram = gram / problem.total - jnp.outer(mean, state.item.mean(0))
    value_users = (solve * gram).sum()
    gram = dot(dot(solve, gram), solve)
    last = dot(solve, _inverse(gram, regularization))
    item = dot(sums, n_items / problem.total * last) - dot(mean, last)[None]

    gram_items, trace = dot(item.T, item) / n_items, jnp.trace(gram)
    value_items = (gram_items * gram).sum() + regularization * jnp.trace(gram_items)
    values = {
        "after_users": problem.constant + 0.5 * (regularization * jnp.trace(state.gram) - value_users),
        "objective": problem.constant + 0.5 * (regularization * trace - value_items),
    }
    return _State(sides, item, gram_items, solve), values


def _inverse(gram: Array, regularization: Scalar) -> jax.Array:
    """Returns (gram + λI)⁻¹ [K, K]."""
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram + regularization * identity), identity)


def _sides(inverse: Array, summed: Array, mean: Array, alpha: Scalar = 0.0) -> jax.Array:
    """Returns the users' right-hand sides [M, K].

    They are 1 + 2α times the mean of the user's items, whose sum is `summed`, minus the mean of all
    items.
    """
    inverse = inverse[:, None]
    return jnp.where(inverse > 0, (1 + 2 * alpha) * inverse * summed - mean[None], 0)


def _systems(matrix: Interactions, inverse: Array, settings: _Settings) -> Rows:
    """Returns the users' systems for α that is not 0."""
    regularization, alpha = settings
    return Rows(matrix, jnp.full(1, regularization * (1 + 2 * alpha)), 2 * alpha * inverse)


@functools.partial(jax.jit, static_argnames="pairwise")
def _objective_of(factors: Mapping[str, Array], problem: Problem, settings: _Settings, pairwise: bool) -> jax.Array:
    """Computes L; `pairwise` adds the terms of α that need the score of every pair."""
    user, item = factors["user"], factors["item"]
    regularization, alpha = settings.of_type(item.dtype)
    weighted = problem.share[:, None] * user
    gram_users, gram_items = dot(user.T, weighted), dot(item.T, item) / item.shape[0]
    agreement = (user * spmm(problem.matrix, problem.transposed, item)).sum() / problem.total
    squares = 0.5 * (gram_users * gram_items).sum() + weighted.sum(0) @ item.mean(0)
    ridges = (1 + 2 * alpha) * jnp.trace(gram_users) + jnp.trace(gram_items)
    ridges += 2 * alpha * problem.popularity @ (item**2).sum(1)
    value = squares - agreement + problem.constant + 0.5 * regularization * ridges
    if not pairwise:
        return value
    seen = dataclasses.replace(problem.matrix, weights=scores(problem.matrix, user, item))
    return value + alpha * ((user * spmm(seen, None, item)).sum() / problem.total - 2 * agreement + 1)


@functools.partial(jax.jit, static_argnames="steps")
def _fold_in(
    histories: Interactions,
    inverse: Array,
    item: Array,
    ids: Array,
    summary: Summary,
    settings: _Settings,
    *,
    steps: int,
) -> jax.Array:
    """Computes the vectors of users whose items are `ids`."""
    settings, known = settings.of_type(item.dtype), item[ids]
    sides = _sides(inverse, spmm(histories, None, known), summary.mean, settings.alpha)
    if not steps:
        return dot(sides, _inverse(summary.gram / len(item), settings.regularization))
    own, shared = _systems(histories, inverse, settings), (summary.spectrum / len(item), summary.basis)
    return conjugate(own, known, shared, sides, jnp.zeros_like(sides), steps, lambda x: x)[0]
