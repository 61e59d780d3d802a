"""RG2, the squared loss aligned with DCG (section 3 of "Understanding the ranking loss ... RG2"), without SGD.

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

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxrec.als._mesh import check_mesh, dealt, spread
from jaxrec.als._run import check_input, first_factors, run
from jaxrec.history import EarlyStopping, History
from jaxrec.interactions import Interactions, spmm
from jaxrec.typing import Array, Key, Scalar, Variables


class Problem(NamedTuple):
    """What a sweep needs of the data.

    Attributes:
        matrix: R, users by items.
        transposed: Rᵀ.
        share: aᵤ / |D| [M].
        inverse: 1 / aᵤ [M], 0 where a user has no items.
        total: |D| [].
        constant: Σᵤ Wᵤ ‖Sᵤ‖² [], the loss of zero factors.
    """

    matrix: Interactions
    transposed: Interactions
    share: Array
    inverse: Array
    total: Array
    constant: Array


class Decomposition(NamedTuple):
    """The leading part of S̃ = diag(√W) S, from which every optimum of RG2 is read off by `shrink`.

    Attributes:
        user: left singular vectors [M, K].
        values: singular values [K], descending.
        item: right singular vectors [N, K].
        scale: √Wᵤ [M]; 0 for a user without items.
        residual: ‖S̃ᵀS̃v − σ²v‖ / σ₁² [K], how far each vector is from a true one.
    """

    user: Array
    values: Array
    item: Array
    scale: Array
    residual: Array


def fit(
    train: Interactions,
    *,
    dim: int,
    regularization: Scalar,
    key: Key,
    sweeps: int = 30,
    scale: float = 0.1,
    tolerance: float | None = 1e-6,
    validate: Callable[[Variables], Mapping[str, float]] | None = None,
    every: int = 1,
    stopping: EarlyStopping | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> tuple[Variables, History]:
    """Alternates exact steps: all users, then all items.

    Ranking is at its best after a few sweeps where λ is small, long before the objective settles; `stopping` finds the
    sweep on a validation set, and `solve` gives the end of the road at once.

    Args:
        train: the positives. A user without any gets the vector 0; all items without any get the same vector.
        dim: K.
        regularization: λ, in units of √2 times a singular value of S̃.
        key: typed key of the first item factors.
        sweeps: at most.
        scale: the first item factors are N(0, scale² / K).
        tolerance: ends the run when a sweep lowers the objective by no more than this share; None never does.
        validate: host function of the variables that gives named figures for the history.
        every: validate after every so many sweeps, and after the last.
        stopping: ends the run when its metric no longer gets better; the best factors are returned.
        mesh: if given, users are dealt over its devices, items are the same on all, and a sweep sums [N, K] once over
            the mesh; the devices may belong to several processes, each of which has `train` and gets whole tables.
        progress: show a bar.

    Returns:
        `models.MF`'s variables {"params": {"user": [M, K], "item": [N, K]}}, and the `History`: "after_users" and
        "objective" are L after each half of a sweep.

    Raises:
        ValueError: for no pairs, negative weights, dim above min(M, N), a negative regularization, and a
            regularization too small (0) for factors whose Gram matrix is singular; a mesh of more axes than one or
            of more devices than users.

    >>> train = Interactions.from_pairs([0, 0, 1, 2, 2], [0, 1, 1, 0, 2])
    >>> variables, history = fit(train, dim=2, regularization=0.1, key=jax.random.key(0), progress=False)
    >>> variables["params"]["item"].shape
    (3, 2)
    """
    check_input(train, dim, regularization=regularization)
    first = first_factors(key, train, dim, scale)
    first = _State(**first, gram=_dot(first["item"].T, first["item"]) / train.n_items)
    sweep, state, factors = _prepared(train, first) if mesh is None else _prepared_on(mesh, train, first)
    return run(
        lambda state: sweep(state, regularization),
        state,
        factors=factors,
        sweeps=sweeps,
        tolerance=tolerance,
        validate=validate,
        every=every,
        stopping=stopping,
        progress=progress,
    )


def objective(variables: Variables, train: Interactions, *, regularization: Scalar) -> Array:
    """L of the given factors [], by Gram matrices: no [M, N] array, one sparse product. Differentiable."""
    return _objective_of(variables["params"], _problem(train), regularization)


def fold_in(variables: Variables, histories: Interactions, *, regularization: Scalar) -> Array:
    """Vectors of users whom training never saw: their exact half step, a mean of item vectors times a K x K matrix.

    Args:
        variables: from `fit` or `solve`.
        histories: [B, N], what is known of B users; a user without items gets 0.
        regularization: as in training.

    Returns:
        [B, K]; `{"params": {"user": vectors, "item": variables["params"]["item"]}}` are variables of MF for them.

    Raises:
        ValueError: for histories over another number of items.
    """
    item = variables["params"]["item"]
    if histories.n_items != item.shape[0]:
        raise ValueError(f"histories have {histories.n_items} items and variables {item.shape[0]}; use one id map")
    return _fold_in(_problem(histories), item, regularization)


def decompose(
    train: Interactions,
    *,
    dim: int,
    key: Key,
    tolerance: float = 1e-4,
    oversample: int | None = None,
    passes: int = 200,
) -> Decomposition:
    """Leading singular triplets of S̃, by subspace iteration with a Chebyshev filter on random vectors.

    A pass is two sparse products of K + oversample columns. S̃ is never formed: it is
    √(N/2|D|) A^(−1/2) R (I − 11ᵀ/N).

    Args:
        train: the positives.
        dim: K, the largest dimension that `shrink` will be asked for.
        key: typed key of the first vectors.
        tolerance: of the largest `residual`; the objective's relative error is about its square.
        oversample: further vectors that speed convergence; by default K/4, at least 10.
        passes: at most.

    Raises:
        ValueError: as `fit`.
    """
    check_input(train, dim, tolerance=tolerance)
    width = min(dim + (max(10, dim // 4) if oversample is None else oversample), train.n_users, train.n_items)
    start = jax.random.normal(key, (train.n_items, width))
    problem = jax.device_put(_problem(train))
    return _decompose(problem, start, tolerance, dim=dim, passes=passes)


def shrink(decomposition: Decomposition, *, regularization: Scalar, dim: int | None = None) -> Variables:
    """The global optimum of L at one λ: singular values less λ/√2, or 0.

    Args:
        decomposition: from `decompose`.
        regularization: λ. May be traced: `jax.vmap` gives a whole path.
        dim: K, at most the decomposition's; by default the same.

    Returns:
        `models.MF`'s variables, balanced as `fit`'s fixed point is.

    Raises:
        ValueError: for a dim that the decomposition does not reach.
    """
    reached = decomposition.values.shape[0]
    dim = reached if dim is None else dim
    if not 1 <= dim <= reached:
        raise ValueError(f"dim={dim}, and the decomposition has {reached}; give 1 to {reached}, or decompose anew")
    n_items = decomposition.item.shape[0]
    kept = jnp.maximum(decomposition.values[:dim] - regularization / np.sqrt(2), 0)
    balance = np.sqrt(np.sqrt(2) * n_items)
    warm = decomposition.scale > 0
    scale = jnp.where(warm, 1 / jnp.where(warm, decomposition.scale, 1), 0)
    return {
        "params": {
            "user": scale[:, None] * decomposition.user[:, :dim] * (jnp.sqrt(kept) / balance)[None],
            "item": decomposition.item[:, :dim] * (jnp.sqrt(kept) * balance)[None],
        }
    }


def solve(train: Interactions, *, dim: int, regularization: Scalar, key: Key, tolerance: float = 1e-4) -> Variables:
    """The global optimum of L over factors of K dimensions, in closed form: `shrink` of `decompose`.

    >>> train = Interactions.from_pairs([0, 0, 1, 2, 2], [0, 1, 1, 0, 2])
    >>> variables = solve(train, dim=2, regularization=0.1, key=jax.random.key(0))
    >>> float(objective(variables, train, regularization=0.1)) < float(
    ...     objective(jax.tree.map(jnp.zeros_like, variables), train, regularization=0.1)
    ... )
    True
    """
    check_input(train, dim, regularization=regularization)
    return shrink(decompose(train, dim=dim, key=key, tolerance=tolerance), regularization=regularization)


# ---------------------------------------------------------------------- one device, or a mesh of them

_dot = functools.partial(jnp.matmul, precision="highest")


def _problem(train: Interactions) -> Problem:
    users, _ = train.pairs()
    weights = np.ones(train.n_pairs) if train.weights is None else np.asarray(train.weights, np.float64)
    a = np.bincount(users, weights, train.n_users)
    inverse = np.divide(1, a, out=np.zeros_like(a), where=a > 0)
    total = a.sum()
    squares = np.bincount(users, weights**2, train.n_users) @ inverse
    dtype = jnp.zeros(()).dtype  # float32, or float64 in x64
    numbers = (a / total, inverse, total, squares * train.n_items / (2 * total) - 0.5)
    return Problem(train, train.transpose(), *(np.asarray(number, dtype) for number in numbers))


class _State(NamedTuple):
    """Between sweeps: the factors and QᵀQ/N, which both the objective and the next sweep need."""

    user: Array
    item: Array
    gram: Array


def _factors(state: _State) -> dict[str, Array]:
    return {"user": state.user, "item": state.item}


def _prepared(train: Interactions, state: _State):
    return functools.partial(_sweep, jax.device_put(_problem(train))), state, _factors


def _prepared_on(mesh: Mesh, train: Interactions, state: _State):
    """The same on a mesh; `factors` gathers the users in their order."""
    axis = check_mesh(mesh, train.n_users)
    deal, whole = dealt(train, mesh.size), _problem(train)
    shares, inverses = (np.append(x, np.zeros((), x.dtype))[deal.users] for x in (whole.share, whole.inverse))
    numbers = (np.broadcast_to(x, mesh.size) for x in (whole.total, whole.constant))
    problem = spread(mesh, Problem(deal.matrix, deal.transposed, shares, inverses, *numbers), axis)
    users = np.zeros((*deal.users.shape, state.user.shape[1]), state.user.dtype)
    places, item, gram = spread(mesh, (deal.places, state.item, state.gram))
    sharded, same = PartitionSpec(axis), PartitionSpec()
    specs = _State(sharded, same, same)

    def local(problem, state, regularization):
        problem, user = jax.tree.map(lambda x: x[0], (problem, state.user))
        state, figures = _sweep(problem, state._replace(user=user), regularization, axis)
        return state._replace(user=state.user[None]), figures

    sweep = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=(sharded, specs, same), out_specs=(specs, same), check_vma=False)
    )
    order = jax.jit(lambda user, places: user.reshape(-1, user.shape[-1])[places], out_shardings=places.sharding)

    def factors(state):
        return {"user": order(state.user, places), "item": state.item}

    return functools.partial(sweep, problem), _State(spread(mesh, users, axis), item, gram), factors


@functools.partial(jax.jit, static_argnames="axis")
def _sweep(problem: Problem, state: _State, regularization: Scalar, axis: str | None = None):
    """Both half steps; over the mesh axis `axis`, if given, users are shards and items the same everywhere.

    Where P solves P (G + λI) = B, the loss is a matter of Gram matrices alone, for ⟨P, B⟩ weighted by rows is
    ⟨PᵀAP, G + λI⟩: so it costs no pass over the tables.
    """
    n_items = state.item.shape[0]
    user = _user_step(problem, state.item, state.gram, regularization)
    weighted = problem.share[:, None] * user
    sums = spmm(problem.transposed, problem.matrix, user / problem.total)
    parts = _dot(user.T, weighted), weighted.sum(0), sums
    gram_users, mean_users, sums = jax.lax.psum(parts, axis) if axis else parts
    item = _solve(gram_users, regularization, n_items * sums - mean_users[None])
    gram_items = _dot(item.T, item) / n_items

    def loss(solved, other, gram_items):
        ridges = regularization * (jnp.trace(other) - jnp.trace(solved))
        return problem.constant + 0.5 * (ridges - (gram_users * gram_items).sum())

    figures = {
        "after_users": loss(gram_users, state.gram, state.gram),
        "objective": loss(gram_items, gram_users, gram_items),
    }
    return _State(user, item, gram_items), figures


def _user_step(problem: Problem, item: Array, gram: Array, regularization: Scalar) -> Array:
    """The users' exact step P: the mean of a user's items less the mean of all, times a K x K inverse."""
    inverse = problem.inverse[:, None]
    summed = spmm(problem.matrix, problem.transposed, item)
    return _solve(gram, regularization, jnp.where(inverse > 0, inverse * summed - item.mean(0)[None], 0))


def _solve(gram: Array, ridge: Scalar, sides: Array) -> Array:
    """X of X (gram + ridge I) = sides [n, K], by the inverse: n triangular solves take ten times as long."""
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    return _dot(sides, jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram + ridge * identity), identity))


@jax.jit
def _objective_of(factors, problem: Problem, regularization: Scalar) -> Array:
    user, item = factors["user"], factors["item"]
    weighted = problem.share[:, None] * user
    gram_users, gram_items = _dot(user.T, weighted), _dot(item.T, item) / item.shape[0]
    agreement = (user * spmm(problem.matrix, problem.transposed, item)).sum() / problem.total
    squares = 0.5 * (gram_users * gram_items).sum() + weighted.sum(0) @ item.mean(0)
    ridges = 0.5 * regularization * (jnp.trace(gram_users) + jnp.trace(gram_items))
    return squares - agreement + problem.constant + ridges


@jax.jit
def _fold_in(problem: Problem, item: Array, regularization: Scalar) -> Array:
    return _user_step(problem, item, _dot(item.T, item) / item.shape[0], regularization)


# ---------------------------------------------------------------------- the closed form


@functools.partial(jax.jit, static_argnames=("dim", "passes", "degree"))
def _decompose(problem: Problem, start: Array, tolerance: Scalar, *, dim: int, passes: int, degree: int = 4):
    n_items = start.shape[0]
    rows = jnp.sqrt(problem.inverse * (n_items / 2 / problem.total))[:, None]

    def forward(x):  # S̃ x
        return rows * spmm(problem.matrix, problem.transposed, x - x.mean(0, keepdims=True))

    def backward(y):  # S̃ᵀ y
        y = spmm(problem.transposed, problem.matrix, rows * y)
        return y - y.mean(0, keepdims=True)

    def ritz(basis):
        """Best approximations in the span of orthonormal columns, and S̃ᵀS̃ times them."""
        left = forward(basis)
        squares, rotation = jnp.linalg.eigh(_dot(left.T, left))
        squares, rotation = jnp.maximum(squares[::-1], 0), rotation[:, ::-1]
        basis, left = _dot(basis, rotation), _dot(left, rotation)
        image = backward(left)
        distance = jnp.linalg.norm(image - squares[None] * basis, axis=0)
        return basis, left, squares, image, distance / jnp.maximum(squares[0], jnp.finfo(squares.dtype).tiny)

    def filtered(basis, image, cut):
        """T_degree(2 S̃ᵀS̃ / cut − 1): grows outside [0, cut], stays in [−1, 1] inside."""
        previous, present = basis, 2 / cut * image - basis
        for _ in range(degree - 1):
            previous, present = present, 2 * (2 / cut * backward(forward(present)) - present) - previous
            scale = jnp.linalg.norm(present, axis=0, keepdims=True)
            previous, present = previous / scale, present / scale
        return jnp.linalg.qr(present)[0]

    def step(state):
        number, (basis, _, squares, image, _) = state
        cut = jnp.maximum(squares[-1], 1e-3 * squares[0])
        return number + degree, ritz(filtered(basis, image, cut))

    def unfinished(state):
        number, (*_, residual) = state
        return (number < passes) & (residual[:dim].max() > tolerance)

    basis = jnp.linalg.qr(start - start.mean(0, keepdims=True))[0]
    basis = jnp.linalg.qr(backward(forward(basis)))[0]
    _, (basis, left, squares, _, residual) = jax.lax.while_loop(unfinished, step, (2, ritz(basis)))
    values = jnp.sqrt(squares[:dim])
    positive = values > 0
    user = jnp.where(positive[None], left[:, :dim] / jnp.where(positive, values, 1)[None], 0)
    scale = jnp.sqrt(problem.share / (2 * n_items))
    return Decomposition(user, values, basis[:, :dim], scale, residual[:dim])
