"""The objective of MAR and MARS: a push with a margin per user, a pull, and a facet separation.

The paper is Tan et al. 2021, arXiv 2103.14866; `jaxrec.papers.mars` has its presets. `models.MARS`
and `models.MAR` can also be trained with any other objective.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import losses
from jaxrec._numerics import number
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.optim import riemannian
from jaxrec.train._checks import negatives_of
from jaxrec.train.examples import Batch
from jaxrec.train.objectives import _check_has
from jaxrec.typing import Array, Key, Sampler, Scalar, Variables

Score = Callable[[Array, Array], tuple[Array, Array]]
_CELLS = 1 << 22
_FACETS = frozenset({"user", "item"})
_PROJECTIONS = frozenset({"user_projection", "item_projection"})


class Ranking(Protocol):
    """The loss of positives against negatives in terms of facets, such as `push_and_pull`."""

    def __call__(
        self, theta: Array, u: Array, v: Array, *, score: Score, margin: Array, pull_weight: Scalar
    ) -> jax.Array:
        """Returns losses [B].

        Args:
            theta: θ [B, K].
            u: users' facets [B, K, D].
            v: items' facets [B, 1 + n, K, D], the positive first.
            score: the model's `score`.
            margin: margins [B].
            pull_weight: λ_pull.
        """


def push_and_pull(theta: Array, u: Array, v: Array, *, score: Score, margin: Array, pull_weight: Scalar) -> jax.Array:
    """Computes [margin − pos + neg]₊ + pull_weight · (1 − pos) of each row, eq. 8 and 9.

    It is a `Ranking`.

    Differs: leaves out the squares of eq. 5 and of the first line of eq. 15. They would give a
    cosine of −.9 the same score as .9, and would push the positives of MAR away.
    `papers.mars.equation_15` has them.
    """
    left, right = score(u, v)
    return hinge_and_pull(jnp.einsum("bk,bkd,bnkd->bn", theta, left, right), margin, pull_weight)


def hinge_and_pull(scores: Array, margin: Array, pull_weight: Scalar) -> jax.Array:
    """Computes the loss of `push_and_pull` from scores [B, 1 + n], the positive first."""
    pos, neg = scores[:, 0], scores[:, 1:]
    return losses.hinge(pos, neg, margin=margin[:, None]) + pull_weight * (1 - pos)


def separation(
    users: Array,
    items: Array,
    *,
    score: Score,
    where: Array | None = None,
    alpha: Scalar = 0.1,
    sign: Scalar = 1.0,
    on: Literal["both", "users"] = "both",
    reduction: Literal["mean", "sum", "inside"] = "mean",
) -> jax.Array:
    """Penalises close facets: (1 / α) Σ_{i<j} log(1 + e^(α (s(uⁱ, uʲ) + s(vⁱ, vʲ)))).

    s is the score of two facets of the same user or item: the cosine for MARS, eq. 12, and minus
    the squared distance for MAR, eq. 6.

    Args:
        users: users' facets [B, K, D].
        items: facets [B, K, D] of their positive items.
        score: the model's `score`, which maps facets of two sides to vectors whose dot product is
            the score.
        where: bool [B], True = use; None uses all.
        alpha: α.
        sign: 1 separates facets. −1 is eq. 12 as published, and the released code: it makes them
            equal.
        on: "both", or "users" for the users' facets only, as in eq. 12 and the released code.
        reduction: "mean" over the batch, so that the term's weight does not depend on the batch
            size; "sum" over the batch; or "inside", with the sum inside the exponential, as in the
            released code.

    Raises:
        ValueError: if `on` or `reduction` has another value.

    Only reverse-mode differentiation works (`jax.grad`, also nested), not forward mode.

    Differs: eq. 6 and 12 sum over all i and j, which doubles each pair and adds constants;
    `papers.mars.equation_6` and `equation_12` are as printed.
    """
    if on not in ("both", "users"):
        raise ValueError(f"on={on!r}; give 'both' or 'users'")
    if reduction not in ("mean", "sum", "inside"):
        raise ValueError(f"reduction={reduction!r}; give 'mean', 'sum' or 'inside'")
    chex.assert_equal_shape([users, items])
    where = jnp.ones(len(users), bool) if where is None else where
    sides = [jnp.where(where[:, None, None], side, 0) for side in ((users, items) if on == "both" else (users,))]
    closeness = jnp.asarray(sign * alpha * sum(_products(*score(side, side)) for side in sides))
    if reduction == "inside":
        closeness = closeness.sum(0, keepdims=True)
    pairs = np.triu(np.ones((users.shape[1],) * 2, bool), 1)
    rows = jnp.where(pairs, jax.nn.softplus(closeness), 0).sum((1, 2)) / alpha
    if reduction == "inside":
        return rows.sum()
    return losses.mean(rows, where=where) if reduction == "mean" else jnp.where(where, rows, 0).sum()


@jax.custom_vjp
def _products(left: Array, right: Array) -> jax.Array:
    """Computes the dot products [B, K, K] of facets [B, K, D] of two sides.

    K sums of products are faster on CPU than B products of small matrices.
    """
    return jnp.stack([jnp.einsum("bid,bd->bi", left, right[:, j]) for j in range(right.shape[1])], -1)


def _products_backward(sides: tuple[Array, Array], slopes: Array) -> tuple[jax.Array, jax.Array]:
    left, right = sides
    of_left = [slopes[:, :, j, None] * right[:, j, None] for j in range(right.shape[1])]
    of_right = [slopes[:, i, :, None] * left[:, i, None] for i in range(left.shape[1])]
    return functools.reduce(jnp.add, of_left), functools.reduce(jnp.add, of_right)


_products.defvjp(lambda left, right: (_products(left, right), (left, right)), _products_backward)


def adaptive_margin(train: Interactions, *, count: Literal["union", "sum"] = "union") -> np.ndarray:
    """Computes the margins γ_u [M]: the share of users without an item in common with u (eq. 7).

    γ_u = 1 − |∪_{v of u} U_v| / M, where U_v are the users of item v, u among them. Users of rare
    items get a large margin. It is computed on the host, by blocks of users.

    Args:
        train: the positives; weights are not used.
        count: "union" counts each user once, as the released code and the paper's text do; "sum"
            counts a user once per common item, as eq. 7 is printed. With "sum" γ falls below 0,
            which stops the push, for 2.7 % of the users of Ciao and nearly all of MovieLens-1M;
            `np.maximum(γ, 0)` corrects that.

    Raises:
        ValueError: if `count` has another value.

    >>> adaptive_margin(Interactions.from_pairs([0, 0, 1, 3], [0, 1, 1, 2])).tolist()
    [0.5, 0.5, 1.0, 0.75]
    """
    import scipy.sparse

    if count not in ("union", "sum"):
        raise ValueError(f"count={count!r}; give 'union' or 'sum'")
    check_interactions(train=train)
    matrix = train.to_scipy().astype(np.int64)  # "sum" counts a user once per item: int32 overflows
    matrix.data[:] = 1
    if count == "sum":
        reached = matrix @ train.item_degrees.astype(np.int64)
    else:
        rows, users_of = max(_CELLS // train.n_users, 1), scipy.sparse.csr_array(matrix.T)
        blocks = (matrix[start : start + rows] @ users_of for start in range(0, train.n_users, rows))
        reached = np.concatenate([np.diff(block.indptr) for block in blocks])
    return (1 - reached / train.n_users).astype(np.float32)


def objective(
    variables: Variables,
    key: Key,
    batch: Batch,
    *,
    model: Any,
    sample: Sampler,
    margin: Array | Scalar,
    positives: Callable[[Key, tuple[int, ...]], tuple[Array, Array]] | None = None,
    ranking: Ranking = push_and_pull,
    separate: Callable[..., Array] = separation,
    pull_weight: Scalar = 0.1,
    facet_weight: Scalar = 0.01,
) -> jax.Array:
    """Computes the objective of MAR and MARS (eq. 17).

    Σ_b ([γ_u − g(u, p) + g(u, q)]₊ + pull_weight · (1 − g(u, p))) + facet_weight · separation

    It is a sum over the batch, not a mean, as in the paper and as the learning rates of its code
    assume. The weights of the interactions multiply the terms of the sum. The constant 1 in the
    pull is the released code's; the paper's pull lacks it.

    Args:
        variables: the model's variables, as returned by `model.init`.
        key: typed key from which negatives, and `positives`, are drawn.
        batch: positives [B, P], taken one by one.
        model: `models.MARS` or `models.MAR`.
        sample: a sampler of `jaxrec.sampling` that draws negatives [B, n]; the push is a mean over
            them.
        margin: γ [M], such as `adaptive_margin(train)`, or one number for all users.
        positives: function of (key, shape) that draws users and items of that shape, such as
            `partial(sampling.explorative, ...)`. They replace the positives of the batch, and all
            have weight 1. An epoch draws as many as there are pairs.
        ranking: the loss of positives against negatives: `push_and_pull`, or `papers.mars.released`
            for the gradient of the released code.
        separate: function of users' facets [B, K, D] and their positives' facets [B, K, D], such as
            `separation` with its hyperparameters bound.
        pull_weight: λ_pull.
        facet_weight: λ_facet.

    Raises:
        TypeError: if the model has no `parts`.
    """
    _check_has(model, "parts", "MARS")
    users, items, where, weights = batch.pairs()
    sample_key, positive_key = jax.random.split(key)
    if positives is not None:
        users, items = positives(positive_key, users.shape)
        weights = None
    negatives = negatives_of(sample, sample_key, users, model)
    drawn = jnp.concatenate([items[:, None], negatives], axis=1)
    theta, u, v = model.apply(variables, users, drawn, method="parts")
    margin = jnp.asarray(margin, theta.dtype)
    margins = margin[users] if margin.ndim else jnp.broadcast_to(margin, users.shape)
    values = ranking(theta, u, v, score=model.score, margin=margins, pull_weight=pull_weight)
    values = values if weights is None else jnp.asarray(weights, values.dtype) * values
    return jnp.where(where, values, 0).sum() + facet_weight * separate(u, v[:, 0], score=model.score, where=where)


def optimizer(
    learning_rate: Scalar, *, theta_learning_rate: Scalar, step: Callable[[Scalar], Any] = riemannian.riemannian_sgd
) -> optax.GradientTransformationExtraArgs:
    """Moves the facets by `step(learning_rate)`, and `theta` by gradient descent at its own rate.

    Both learning rates are for a loss that is a sum over the batch. With the facets' rate, θ tends
    to concentrate on one facet per user; a fiftieth of it, or 0, keeps all facets in use.
    `optim.rowwise.lazy` takes this optimiser.

    The facets of `models.free` and `models.hybrid` are parameters, which a step can keep on the
    sphere or in the ball. The facets of `models.projected` are not parameters: the model computes
    xᵀφ^k and places it whenever it is called. Its vectors and projections need an unconstrained
    step, `step=optax.sgd`. If the model has `place=models.mars.calibrated_unit`, this is the
    calibrated step of eq. 21.

    Args:
        learning_rate: learning rate of the facets.
        theta_learning_rate: learning rate of `theta`.
        step: function of a learning rate that returns the facets' transformation. For MARS,
            `optim.riemannian.riemannian_sgd` with or without calibration; for MAR, `ball_sgd`; for
            facets of `models.projected`, `optax.sgd`.

    Raises:
        ValueError: by `init` and `update`, if there are parameters other than those of MARS, or if
            there are projections and `step` bounds the length of rows, as it would silently
            normalise the projections. By `init`, if rows are not unit vectors and `step` is one on
            the sphere.
    """
    number("theta_learning_rate", theta_learning_rate)
    rules = {"theta": optax.sgd(theta_learning_rate), "facets": step(learning_rate)}

    def labels(params: Any) -> Any:
        names: list[Any] = [getattr(path[-1], "key", None) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        unknown = set(names) - {"theta", *_FACETS, *_PROJECTIONS}
        if unknown:
            raise ValueError(
                f"params has {sorted(map(str, unknown))}, which are no parameters of MARS; give each its "
                "own transformation with optax.partition"
            )
        if set(names) & _PROJECTIONS and _bounds_rows(step):
            raise ValueError(
                f"params has {sorted(set(names) & _PROJECTIONS)}, and step keeps rows on the sphere or in "
                "the ball, which would normalise the projections; pass step=optax.sgd, and for the "
                "calibrated step of MARS create the model with place=jaxrec.models.mars.calibrated_unit"
            )
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "theta" if getattr(path[-1], "key", None) == "theta" else "facets", params
        )

    return optax.partition(rules, labels)


def _bounds_rows(step: Callable[[Scalar], Any]) -> bool:
    """Returns whether a step keeps rows on the sphere or in the ball.

    Such a step shortens a row of length 2, or raises an error for it.
    """
    with jax.ensure_compile_time_eval():
        row, slope = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 1.0]])
        tx = optax.with_extra_args_support(step(1e-3))
        try:
            updates, _ = tx.update(slope, tx.init(row), row)
        except ValueError:
            return True
        return float(jnp.linalg.norm(row + updates)) < 1.5


def ball_sgd(learning_rate: Scalar) -> optax.GradientTransformation:
    """Takes a step of gradient descent, then projects the facets into the unit ball."""
    return optax.chain(optax.sgd(learning_rate), riemannian.project_to_ball())
