"""RG2, the squared loss aligned with DCG (Pu et al. 2024, "Learning-Efficient Yet Generalizable CF"), without SGD.

The loss is the softmax's second-order expansion at 0. For user u with aᵤ items of the |D| pairs, over all N items,

    L = Σᵤ Wᵤ Σⱼ (oᵤⱼ − Sᵤⱼ)² + λ [Σᵤ N Wᵤ ‖pᵤ‖² + ‖Q‖² / 2N],   Wᵤ = aᵤ / (2N|D|),   Sᵤⱼ = rᵤⱼ N / aᵤ − 1.

The weights belong to rows, so they cancel from the normal equations: one K x K system serves all users, another all
items, and a sweep costs two sparse products (`fit`). And the optimum over all rank-K factors is a truncated SVD with
singular values shrunk by λ/√2 (`decompose` once, `shrink` for every λ and every smaller K; `solve` is both). Where
`train` has weights, they stand for rᵤⱼ, aᵤ for their sum over a user, |D| for the sum of all.

Differs: the paper's Algorithm 1 forms a system for each row; its released code subtracts the −1's of the targets with
the wrong sign from the items' side and scales the regulariser by N where the sum of weights is aᵤ. Here every half
step minimises the one objective exactly, so that it never rises. λ ≥ √2 σ₁ gives the zero solution, with σ₁ the largest
of `decompose(...).values`: choose it as a share of √2 σ, not of 1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxrec._log import Log
from jaxrec._numerics import integer, number
from jaxrec._run import Loop
from jaxrec.interactions import Interactions, check_interactions, check_positives, check_weights
from jaxrec.models.mf import MF
from jaxrec.solvers._conjugate import Rows, conjugate, scores
from jaxrec.solvers._mesh import check_mesh, dealt, spread
from jaxrec.solvers._run import check_factors, check_input, check_solved, description_of, first_factors, run
from jaxrec.solvers._spectrum import Decomposition, Problem, decompose, dot, problem_of, shrink
from jaxrec.sparse import spmm
from jaxrec.typing import Array, Key, Scalar, Variables

__all__ = ["Decomposition", "decompose", "fit", "fold_in", "objective", "shrink", "solve"]


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
    """Alternates exact steps: all users, then all items.

    Where λ is small, ranking may be at its best after a few sweeps, before the objective settles; `stopping` finds the
    sweep on a validation set, and `solve` gives the end of the road at once.

    Args:
        train: the positives. A user without any gets the vector 0; all items without any get the same vector.
        dim: K.
        regularization: λ, in units of √2 times a singular value of S̃.
        key: typed key of the first item factors.
        alpha: α, more weight on the positives: L gains α/|D| Σ r (o − 1)² over the pairs and their share of the
            regulariser. With it rows have systems of their own, and the closed form is gone.
        sweeps: at most.
        steps: of conjugate gradients in a half step, where alpha is not 0.
        scale: the first item factors are N(0, scale² / K).
        tolerance: ends the run when a sweep lowers the objective by no more than this share; None never does.
        mesh: if given, users are dealt over its devices, items are the same on all, and a sweep sums [N, K] once over
            the mesh; the devices may belong to several processes, each of which has `train` and gets whole tables.
        loop: `validate`, `every`, `stopping`, `checkpoint`, `callbacks` and `progress`, as `train.fit` takes them;
            a sweep is an epoch.

    Returns:
        The model `MF`, its variables {"params": {"user": [M, K], "item": [N, K]}}, and the `Log`: "after_users" and
        "objective" are L after each half of a sweep.

    Raises:
        ValueError: for no pairs, weights that are negative, not finite or all 0, sizes that are not integers, a dim
            above min(M, N), hyperparameters that are negative or not finite, a regularization too small (0) for
            factors whose Gram matrix is singular, a metric of `stopping` that is never a number, and a mesh of more
            than one axis or of more devices than users.
        Interrupted: at Ctrl-C; it carries the variables after the last sweep, and the log.

    >>> train = Interactions.from_pairs([0, 0, 1, 2, 2], [0, 1, 1, 0, 2])
    >>> model, variables, log = fit(train, dim=2, regularization=0.1, key=jax.random.key(0), progress=False)
    >>> variables["params"]["item"].shape
    (3, 2)
    """
    dim = check_input(train, dim, regularization=regularization, alpha=alpha)
    steps = integer("steps", steps)
    settings, steps = _Settings(regularization, alpha), steps if _given(alpha) else 0
    first = first_factors(key, train, dim, scale)
    solve = None if steps else jnp.eye(dim, dtype=first["item"].dtype)
    first = _State(**first, gram=dot(first["item"].T, first["item"]) / train.n_items, solve=solve)
    sweep, state, factors = _prepared(train, first, steps) if mesh is None else _prepared_on(mesh, train, first, steps)
    settings_of = {"dim": dim, "regularization": regularization, "alpha": alpha, "steps": steps, "scale": scale}
    return run(
        lambda state: sweep(state, settings),
        state,
        model=MF(train.n_users, train.n_items, dim=dim),
        params=factors,
        sweeps=sweeps,
        tolerance=tolerance,
        description=lambda: description_of(train, key, tolerance=tolerance, **settings_of),
        **loop,
    )


def objective(variables: Variables, train: Interactions, *, regularization: Scalar, alpha: Scalar = 0.0) -> Array:
    """L of the given factors [], by Gram matrices: no [M, N] array, one sparse product. Differentiable.

    Args:
        variables: {"params": {"user": [M, K], "item": [N, K]}}, as `fit` and `solve` return them.
        train: the positives, of M users and N items.
        regularization: λ.
        alpha: α.

    Raises:
        ValueError: for variables of another form or of other sizes, no pairs, weights that are negative, not finite or
            all 0, and hyperparameters that are negative or not finite.
    """
    check_positives(train=train)
    user, item = check_factors(variables, "train has", user=train.n_users, item=train.n_items)
    settings = _settings(regularization, alpha)
    return _objective_of({"user": user, "item": item}, problem_of(train, user.dtype), settings, pairwise=_given(alpha))


def fold_in(
    variables: Variables,
    histories: Interactions,
    *,
    regularization: Scalar,
    alpha: Scalar = 0.0,
    steps: int = 30,
) -> Array:
    """Vectors of users whom training never saw: their half step.

    The item vectors must come from `fit` or `solve`, since the half step is that of their objective. Variables of a
    `models.MF` that was trained by gradients, or by another solver, have the same form and cannot be told apart:
    their vectors would be wrong without an error.

    Args:
        variables: what `fit` or `solve` returned.
        histories: [B, N], what is known of B users; a user without items gets 0.
        regularization: as in training.
        alpha: as in training. With 0 a vector is the mean of item vectors times a K x K matrix.
        steps: of conjugate gradients, where alpha is not 0.

    Returns:
        [B, K]; `{"params": {"user": vectors, "item": variables["params"]["item"]}}` are variables of MF for them.

    Raises:
        ValueError: for variables of another form, such as those of a model with facets, biases or a graph, histories
            over another number of items, weights or hyperparameters that are negative or not finite, steps that are
            not an integer of 1 or more, and a regularization too small (0) for the items' Gram matrix.
    """
    check_interactions(histories=histories)
    check_weights(histories=histories)
    (item,) = check_factors(variables, "histories have", item=histories.n_items)
    steps, settings = integer("steps", steps), _settings(regularization, alpha)
    if not np.any(np.ones(histories.n_pairs) if histories.weights is None else np.asarray(histories.weights)):
        return jnp.zeros((histories.n_users, item.shape[1]), item.dtype)
    return check_solved(
        _fold_in(problem_of(histories, item.dtype), item, settings, steps=steps if _given(alpha) else 0)
    )


def _given(alpha: Scalar) -> bool:
    return isinstance(alpha, jax.core.Tracer) or bool(alpha)


def solve(
    train: Interactions, *, dim: int, regularization: Scalar, key: Key, tolerance: float = 1e-4
) -> tuple[MF, Variables, Log]:
    """The global optimum of L over factors of K dimensions, in closed form: `shrink` of `decompose`.

    Returns:
        The model `MF`, its variables, and an empty `Log`.

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


# ---------------------------------------------------------------------- one device, or a mesh of them


class _State(NamedTuple):
    """Between sweeps: the factors and QᵀQ/N, which both the objective and the next sweep need.

    Users are `user` itself, or where `solve` [K, K] is given, `user @ solve`, which a sweep never forms.
    """

    user: Array
    item: Array
    gram: Array
    solve: Array | None = None


class _Settings(NamedTuple):
    regularization: Scalar
    alpha: Scalar

    def of_type(self, dtype: Any) -> _Settings:
        """The same numbers in the type of the tables, whatever type of number they were given as."""
        return _Settings(*(jnp.asarray(x, dtype) for x in self))


def _settings(regularization: Scalar, alpha: Scalar) -> _Settings:
    return _Settings(number("regularization", regularization, least=0), number("alpha", alpha, least=0))


def _factors(state: _State) -> dict[str, Array]:
    return {"user": state.user if state.solve is None else dot(state.user, state.solve), "item": state.item}


def _prepared(train: Interactions, state: _State, steps: int):
    """The sweep, its first state, and how factors are read off one."""
    return functools.partial(_sweep, jax.device_put(problem_of(train)), steps=steps), state, _factors


def _prepared_on(mesh: Mesh, train: Interactions, state: _State, steps: int):
    """The same on a mesh; `factors` gathers the users in their order."""
    axis = check_mesh(mesh, train.n_users)
    deal, whole = dealt(train, mesh.size), problem_of(train)
    shares, inverses = (np.append(x, np.zeros((), x.dtype))[deal.users] for x in (whole.share, whole.inverse))
    same_for_all = (np.broadcast_to(x, (mesh.size, *x.shape)) for x in whole[4:])
    problem = spread(mesh, Problem(deal.matrix, deal.transposed, shares, inverses, *same_for_all), axis)
    users = np.zeros((*deal.users.shape, state.user.shape[1]), state.user.dtype)
    places, item, gram, solve = spread(mesh, (deal.places, state.item, state.gram, state.solve))
    sharded, same = PartitionSpec(axis), PartitionSpec()
    specs = _State(sharded, same, same, same)

    def local(problem, state, settings):
        problem, user = jax.tree.map(lambda x: x[0], (problem, state.user))
        state, figures = _sweep(problem, state._replace(user=user), settings, steps=steps, axis=axis)
        return state._replace(user=state.user[None]), figures

    sweep = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=(sharded, specs, same), out_specs=(specs, same), check_vma=False)
    )
    order = jax.jit(lambda user, places: user.reshape(-1, user.shape[-1])[places], out_shardings=places.sharding)

    def factors(state):
        return _factors(state._replace(user=order(state.user, places)))

    return functools.partial(sweep, problem), _State(spread(mesh, users, axis), item, gram, solve), factors


# ---------------------------------------------------------------------- a sweep


@functools.partial(jax.jit, static_argnames=("steps", "axis"))
def _sweep(problem: Problem, state: _State, settings: _Settings, *, steps: int, axis: str | None = None):
    """Both half steps; over the mesh axis `axis`, if given, users are shards and items the same everywhere.

    A half step minimises Σ (xAx − 2xb) over its rows x, and where it ends that is −Σ x(b + residual), so that the
    objective costs no further product.
    """
    together = (lambda x: jax.lax.psum(x, axis)) if axis else (lambda x: x)
    settings = settings.of_type(state.item.dtype)
    if not steps:
        return _shared_sweep(problem, state, settings, together)
    n_items, (regularization, alpha) = state.item.shape[0], settings
    user, match = _user_step(problem, state.item, state.gram, settings, state.user, steps)
    weighted = problem.share[:, None] * user
    sums = spmm(problem.transposed, problem.matrix, user / problem.total)
    parts = dot(user.T, weighted), weighted.sum(0), sums, (weighted * match).sum()
    gram_users, mean_users, sums, value_users = together(parts)

    gain = 2 * alpha * n_items
    ridge = regularization * (1 + gain * problem.popularity)
    own = Rows(problem.transposed, ridge, jnp.full(n_items, gain / problem.total))
    sides = (1 + 2 * alpha) * n_items * sums - mean_users[None]
    item, match = conjugate(own, user, gram_users, sides, state.item, steps, together)

    constant = problem.constant + alpha
    ridge_items = ridge @ (state.item**2).sum(1) / n_items
    ridge_users = (1 + 2 * alpha) * regularization * jnp.trace(gram_users)
    figures = {
        "after_users": constant + 0.5 * (ridge_items - value_users),
        "objective": constant + 0.5 * (ridge_users - (item * match).sum() / n_items),
    }
    return _State(user, item, dot(item.T, item) / n_items), figures


def _shared_sweep(problem: Problem, state: _State, settings: _Settings, together: Callable):
    """Both half steps where all rows of a side share one matrix.

    Its inverse is multiplied: solving triangles for each row takes ten times as long. Users' vectors enter the items'
    step only by sums over users, so that their right-hand sides are summed, and the inverse S is multiplied to the
    sums: Σ w p pᵀ = S (Σ w b bᵀ) S with p = S b. As w b = (sum of the user's items) / |D| − w (mean of all), no
    table has to be weighted.
    """
    n_items, regularization = state.item.shape[0], settings.regularization
    summed = spmm(problem.matrix, problem.transposed, state.item)
    sides, solve = _sides(problem, state.item, summed), _inverse(state.gram, regularization)
    parts = dot(sides.T, summed), dot(problem.share, sides), spmm(problem.transposed, problem.matrix, sides)
    gram, mean, sums = together(parts)
    gram = gram / problem.total - jnp.outer(mean, state.item.mean(0))
    value_users = (solve * gram).sum()
    gram = dot(dot(solve, gram), solve)
    last = dot(solve, _inverse(gram, regularization))
    item = dot(sums, n_items / problem.total * last) - dot(mean, last)[None]

    gram_items, trace = dot(item.T, item) / n_items, jnp.trace(gram)
    value_items = (gram_items * gram).sum() + regularization * jnp.trace(gram_items)
    figures = {
        "after_users": problem.constant + 0.5 * (regularization * jnp.trace(state.gram) - value_users),
        "objective": problem.constant + 0.5 * (regularization * trace - value_items),
    }
    return _State(sides, item, gram_items, solve), figures


def _inverse(gram: Array, regularization: Scalar) -> Array:
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram + regularization * identity), identity)


def _sides(problem: Problem, item: Array, summed: Array, alpha: Scalar = 0.0) -> Array:
    """The users' right-hand sides: 1 + 2α times the mean of a user's items, whose sum is `summed`, less that of all."""
    inverse = problem.inverse[:, None]
    return jnp.where(inverse > 0, (1 + 2 * alpha) * inverse * summed - item.mean(0)[None], 0)


def _user_step(problem: Problem, item: Array, gram: Array, settings: _Settings, start: Array, steps: int):
    """The users' rows, and their right-hand sides plus residuals."""
    regularization, alpha = settings
    sides = _sides(problem, item, spmm(problem.matrix, problem.transposed, item), alpha)
    if not steps:
        return dot(sides, _inverse(gram, regularization)), sides
    ridge = jnp.full(1, regularization * (1 + 2 * alpha))
    own = Rows(problem.matrix, ridge, 2 * alpha * problem.inverse)
    return conjugate(own, item, gram, sides, start, steps, lambda x: x)


@functools.partial(jax.jit, static_argnames="pairwise")
def _objective_of(factors: Mapping[str, Array], problem: Problem, settings: _Settings, pairwise: bool) -> Array:
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
def _fold_in(problem: Problem, item: Array, settings: _Settings, steps: int) -> Array:
    start, settings = jnp.zeros((problem.matrix.n_users, item.shape[1]), item.dtype), settings.of_type(item.dtype)
    return _user_step(problem, item, dot(item.T, item) / item.shape[0], settings, start, steps)[0]
