"""Gauss-Newton with conjugate gradients for two-tower models and the RG2 objective.

It needs no step size and no negatives. Towers are any differentiable function of parameters,
`towers(params) -> (P [M, K], Q [N, K])`, which returns the vectors of users and items. With the
interactions R, a = R1 and |D| = Σ a, the objective is

    L = −⟨P, RQ⟩ / |D| + (⟨PᵀAP, QᵀQ⟩ + 2 Pᵀa·Qᵀ1 + N|D|) / (2N|D|) + λ ‖θ‖²,   A = diag(a).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._keys import check_key
from jaxrec._log import Log
from jaxrec._numerics import integer, number
from jaxrec._partials import Static, check_function, combine, partition
from jaxrec._run import Loop, NotFinite
from jaxrec.interactions import Interactions
from jaxrec.models.functions import from_functions
from jaxrec.solvers._run import check_input, description_of, run
from jaxrec.sparse import spmm
from jaxrec.typing import Array, Key, Scalar, Variables

Params = Any
Towers = Callable[[Params], tuple[Array, Array]]
Features = Array | tuple[Interactions, Interactions]

_SUFFICIENT = 1e-4  # a step must decrease the objective by this fraction of its slope (Armijo)
_HALVINGS = 30  # maximum number of halvings in the line search


def fit(
    towers: Towers,
    params: Params,
    train: Interactions,
    *,
    regularization: float,
    steps: int = 50,
    cg_steps: int = 30,
    cg_tolerance: float = 0.1,
    tolerance: float | None = 1e-5,
    **loop: Unpack[Loop],
) -> tuple[Any, Variables, Log]:
    """Minimises the RG2 objective of two towers by Gauss-Newton steps (RG2, appendix D).

    A step solves (G + 2λI) d = −∇L by conjugate gradients, where G is the Gauss-Newton matrix of
    the scores. A backtracking line search along d (Armijo's rule) ensures that the objective never
    rises. A product with G costs one forward and one backward pass through the towers and four
    products with [K, K] matrices. Only the gradient and each trial of the line search read the
    interactions.

    Arrays that `functools.partial` binds to `towers` are passed to the compiled step as arguments.
    Arrays in the closure of a lambda are compiled in as constants.

    Args:
        towers: function from parameters to the vectors [M, K] and [N, K], such as
            `partial(two_towers, user_features=..., item_features=...)`;
            `partial(vectors, model=..., variables=...)` for a Linen model; or
            `lambda p: (p["user"], p["item"])`, which is matrix factorisation.
        params: initial parameters. Draw them: for tables of zeros the gradient is zero.
        train: the interactions. A weight counts as that many repetitions of the pair.
        regularization: λ, the factor of ‖θ‖².
        steps: maximum number of Gauss-Newton steps.
        cg_steps: maximum number of conjugate gradient steps in each of them.
        cg_tolerance: conjugate gradients end when the residual is below this fraction of the
            gradient's norm.
        tolerance: ends the run if a step lowers the objective by at most this fraction of it. None
            never ends it.
        loop: `validate`, `every`, `stopping`, `checkpoint`, `callbacks` and `progress`, as in
            `train.fit`; a step counts as an epoch.

    Returns:
        A model of the towers, its variables {"params": params}, and the `Log`: the "objective"
        after each step, the norm of the "gradient" before it, and the length of the "step", which
        is 1 for a full step.

    Raises:
        TypeError: if `towers` is not a function.
        ValueError: if `towers` does not return [M, K] and [N, K]; the objective is not finite;
            `train` has no pairs, or weights that are negative, not finite or all 0; `steps`,
            `cg_steps` or `every` is not an integer of 1 or more; `regularization` or `tolerance` is
            negative or not finite; `cg_tolerance` is outside [0, 1); `stopping` is given without
            `validate`; or its metric was NaN at every validation.
        Interrupted: on Ctrl-C. It carries the parameters after the last step, and the log.

    Differs: appendix D has errors of sign, factor and shape, which are corrected here.
    `solvers.rg2` minimises the same squares plus a constant of the data, but with another
    regulariser: λ (Σ aᵤ ‖pᵤ‖² / 2|D| + ‖Q‖² / 2N), which scales with the rows' weights. Here it is
    λ ‖θ‖² over all parameters. A λ that suits one therefore does not suit the other. With the
    towers pᵤ = (2|D| / aᵤ)^½ `user[u]`, qᵢ = (2N)^½ `item[i]` the two objectives are the same.

    >>> train = Interactions.from_pairs([0, 0, 1, 2], [0, 1, 1, 2])
    >>> params = {"user": jnp.full((3, 1), 0.1), "item": jnp.array([[0.2], [0.1], [-0.1]])}
    >>> mf = lambda params: (params["user"], params["item"])
    >>> _, _, log = fit(mf, params, train, regularization=0.01, steps=3, progress=False)
    >>> bool(log.records[-1]["objective"] < log.records[0]["objective"] < 0.5)
    True
    """
    began = time.perf_counter()
    steps, cg_steps = integer("steps", steps), integer("cg_steps", cg_steps)
    regularization, cg_tolerance = _check(towers, params, train, regularization, cg_tolerance)
    arrays, static = partition((towers,))
    data = jax.device_put((arrays, train, train.transpose()))

    def step(params: Params) -> tuple[Params, Mapping[str, jax.Array]]:
        params, values = _step(params, *data, regularization, cg_tolerance, static=static, cg_steps=cg_steps)
        if not np.isfinite(value := float(values["objective"])):
            raise NotFinite(
                f"the objective is {value}; look for NaN in params and in the features of the towers, or start "
                "from smaller params"
            )
        return params, values

    settings = {"towers": towers, "params": params, "regularization": regularization, "cg_steps": cg_steps}
    settings |= {"cg_tolerance": cg_tolerance, "tolerance": tolerance}
    return run(
        step,
        params,
        model=from_functions(lambda key: params, vectors=towers, n_users=train.n_users, n_items=train.n_items),
        sweeps=steps,
        tolerance=tolerance,
        began=began,
        unit="steps",
        description=lambda: description_of(train, jax.random.key(0), **settings),
        **loop,
    )


def objective(
    params: Params, towers: Towers, train: Interactions, transposed: Interactions, *, regularization: Scalar
) -> jax.Array:
    """Computes the objective L; it uses Gram matrices, no [M, N] array.

    With λ = 0 it is the mean of `losses.rg2` over all interactions, like `train.gram_objective`.

    Args:
        params: θ, any pytree.
        towers: the towers, as in `fit`.
        train: the interactions [M, N].
        transposed: `train.transpose()`.
        regularization: λ, the factor of ‖θ‖².

    >>> train = Interactions.from_pairs([0, 1], [0, 1])
    >>> tables = jnp.eye(2), jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    >>> float(objective(tables, lambda tables: tables, train, train.transpose(), regularization=0.0))
    0.0
    """
    users, items = towers(params)
    weights = _user_weights(train, transposed, users.dtype)
    n_pairs, n_items = weights.sum(), len(items)
    attraction = (users * spmm(train, transposed, items)).sum()
    squares = (_dot(users.T, weights[:, None] * users) * _dot(items.T, items)).sum()
    quadratic = squares + 2 * (_dot(users.T, weights) * items.sum(0)).sum()
    loss = 0.5 - attraction / n_pairs + quadratic / n_pairs / (2 * n_items)
    return loss + regularization * sum((leaf**2).sum() for leaf in jax.tree.leaves(params))


def gauss_newton_product(
    params: Params, towers: Towers, train: Interactions, transposed: Interactions, *, regularization: Scalar
) -> Callable[[Params], Params]:
    """Returns the function d -> (JᵀHJ + 2λI) d, linearised at `params`.

    J is the Jacobian of the scores, and H their curvature, aᵤ / N|D| ≥ 0. The matrix is the Hessian
    of `objective` without the second derivatives of the scores. It is symmetric, and its
    eigenvalues are at least 2λ.

    Args:
        params: θ.
        towers: the towers, as in `fit`; only reverse-mode differentiation is needed.
        train: the interactions [M, N]; only the sums of the users' weights are used.
        transposed: `train.transpose()`.
        regularization: λ, the factor of ‖θ‖².
    """
    (users, items), pull = jax.vjp(towers, params)
    # J d as the transpose of the pullback: `spmm` has no forward mode. The cost is the same.
    _, push = jax.vjp(lambda cotangents: pull(cotangents)[0], (jnp.zeros_like(users), jnp.zeros_like(items)))
    weights = _user_weights(train, transposed, users.dtype)
    weights = (weights / weights.sum() / len(items))[:, None]
    users_gram, items_gram = _dot(users.T, weights * users), _dot(items.T, items)

    def product(direction: Params) -> Params:
        ((user_moves, item_moves),) = push(direction)
        for_users = weights * (_dot(user_moves, items_gram) + _dot(users, _dot(item_moves.T, items)))
        for_items = _dot(item_moves, users_gram) + _dot(items, _dot(user_moves.T, weights * users))
        (pulled,) = pull((for_users, for_items))
        return jax.tree.map(lambda x, d: x + 2 * regularization * d, pulled, direction)

    return product


@partial(jax.jit, static_argnames=("static", "cg_steps"))
def _step(params, arrays, train, transposed, regularization, cg_tolerance, *, static: Static, cg_steps):
    """Runs one Gauss-Newton step."""
    (towers,) = combine(arrays, static)
    how: dict[str, Any] = {"towers": towers, "train": train, "transposed": transposed, "regularization": regularization}
    value, gradient = jax.value_and_grad(partial(objective, **how))(params)
    product = gauss_newton_product(params, **how)
    down = jax.tree.map(jnp.negative, gradient)
    move, _ = jax.scipy.sparse.linalg.cg(product, down, tol=cg_tolerance, maxiter=cg_steps)
    params, value, length = _searched(partial(objective, **how), params, value, move, -_inner(down, move))
    return params, {"objective": value, "gradient": jnp.sqrt(_inner(down, down)), "step": length}


def _searched(fn: Callable[[Params], Array], params: Params, value: Array, move: Params, slope: Array) -> tuple:
    """Takes the longest of the steps 1, ½, ¼, … along `move` that decreases the objective enough.

    Returns the parameters, the objective and the length of the step, which is 0 if none suffices.
    """

    def at(length):
        return jax.tree.map(lambda x, d: x + length * d, params, move)

    def too_long(carry):
        halvings, length, reached = carry
        # Negated, so that a value that is NaN counts as too large.
        return (halvings < _HALVINGS) & ~(reached <= value + _SUFFICIENT * length * slope)

    def halve(carry):
        halvings, length, _ = carry
        return halvings + 1, length / 2, fn(at(length / 2))

    one = jnp.ones((), value.dtype)
    halvings, length, reached = jax.lax.while_loop(too_long, halve, (0, one, fn(at(one))))
    found = halvings < _HALVINGS
    length, reached = jnp.where(found, length, 0), jnp.where(found, reached, value)
    return at(length), reached, length


def _inner(x: Params, y: Params) -> jax.Array:
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), x, y)))


def _dot(x: Array, y: Array) -> jax.Array:
    return jnp.matmul(x, y, precision="highest")


def _user_weights(train: Interactions, transposed: Interactions, dtype: Any) -> jax.Array:
    """Returns a [M], the sum of each user's weights."""
    if train.weights is None:
        return jnp.asarray(train.user_degrees, dtype)
    return spmm(train, transposed, jnp.ones((train.n_items, 1), dtype))[:, 0]


def _check(towers, params, train, regularization, cg_tolerance) -> tuple[float, float]:
    """Checks the arguments of `fit`, and returns the numbers as Python floats."""
    # The towers' vectors may have any number of dimensions, so there is none to check.
    check_input(train, 1, regularization=regularization)
    check_function("towers", towers, 'lambda params: (params["user"], params["item"])')
    if float(number("cg_tolerance", cg_tolerance, least=0)) >= 1:
        raise ValueError(f"cg_tolerance={cg_tolerance}; give 0 or more and less than 1")
    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(towers, params))]
    rows = [train.n_users, train.n_items]
    if [shape[:1] for shape in shapes] != [(n,) for n in rows] or shapes[0][1:] != shapes[1][1:] or len(shapes[0]) != 2:
        raise ValueError(
            f"towers gives tables of shapes {shapes}; return one with {rows[0]} users and one with {rows[1]} items, "
            "with the same number of columns (the features need a row for every user and item)"
        )
    return float(regularization), float(cg_tolerance)


# ---------------------------------------------------------------------- towers


def vectors(params: Params, *, model: Any, variables: Variables) -> tuple[jax.Array, jax.Array]:
    """Computes the vectors of a Linen model that has the method `vectors`, for use as towers.

    Args:
        params: the collection "params" of the model's variables.
        model: the model; bind it with `functools.partial`.
        variables: the model's variables, as returned by `model.init`; bind them too. Their "params"
            are replaced by `params`.

    >>> from jaxrec import models
    >>> model = models.MF(2, 3, dim=1)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> towers = partial(vectors, model=model, variables=variables)
    >>> [table.shape for table in towers(variables["params"])]
    [(2, 1), (3, 1)]
    """
    return model.apply({**variables, "params": params}, method="vectors")


def two_towers(params: Params, user_features: Features, item_features: Features) -> tuple[jax.Array, jax.Array]:
    """Computes towers with one hidden layer each: V tanh(W x + b) + c for a row x of features.

    Args:
        params: from `init_two_towers`.
        user_features: a dense array [M, F], or the pair `(matrix, matrix.transpose())` of a sparse
            `Interactions` [M, F], whose row is a bag, such as the items of a user's history.
        item_features: the features of the items, in the same form, with N rows.
    """
    return _tower(params["user"], user_features), _tower(params["item"], item_features)


def init_two_towers(
    key: Key, user_features: Features, item_features: Features, *, dim: int = 64, hidden: int = 64, scale: float = 0.3
) -> Params:
    """Draws parameters for `two_towers`.

    They are scaled to the features, so that entries of W x have a standard deviation of about 1.

    Args:
        key: typed key.
        user_features: the features that `two_towers` will get.
        item_features: the features that `two_towers` will get.
        dim: K, the number of dimensions of the vectors.
        hidden: width of the hidden layers.
        scale: approximate standard deviation of the vectors' entries.

    Raises:
        ValueError: if `key` is not a typed key, such as an integer seed; `dim` or `hidden` is not
            an integer of 1 or more; or `scale` is negative or not finite.

    >>> towers = init_two_towers(jax.random.key(0), jnp.ones((5, 3)), jnp.ones((4, 2)), dim=6, hidden=7)
    >>> {name: leaf.shape for name, leaf in towers["user"].items()}
    {'W': (3, 7), 'b': (7,), 'V': (7, 6), 'c': (6,)}
    """
    check_key(key)
    dim, hidden, scale = integer("dim", dim), integer("hidden", hidden), float(number("scale", scale, least=0))
    keys = jax.random.split(key, 4)

    def one(first: Key, second: Key, features: Features) -> Params:
        matrix = features[0].to_scipy() if isinstance(features, tuple) else np.asarray(features)
        mean_square = float((matrix**2).sum()) / matrix.shape[0]
        wide = (mean_square or 1.0) ** -0.5
        return {
            "W": wide * jax.random.normal(first, (matrix.shape[1], hidden)),
            "b": jnp.zeros(hidden),
            "V": scale / hidden**0.5 * jax.random.normal(second, (hidden, dim)),
            "c": jnp.zeros(dim),
        }

    return {"user": one(keys[0], keys[1], user_features), "item": one(keys[2], keys[3], item_features)}


def _tower(params: Mapping[str, Array], features: Features) -> jax.Array:
    """Computes the vectors of one tower."""
    if isinstance(features, tuple):
        projected = spmm(*features, params["W"])
    else:
        chex.assert_shape(features, (None, params["W"].shape[0]))
        projected = _dot(jnp.asarray(features, params["W"].dtype), params["W"])
    return _dot(jnp.tanh(projected + params["b"][None]), params["V"]) + params["c"][None]
