"""The objective of MAR and MARS: a push with a margin for each user, a pull, and a term that separates facets.

The paper is Tan et al. 2021, arXiv 2103.14866; `jaxrec.papers.mars` has its presets. `models.MARS` and `models.MAR`
also train under any other objective.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse

from jaxrec import losses
from jaxrec._numerics import number
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.optim import riemannian
from jaxrec.train.examples import Batch
from jaxrec.train.objectives import _check_has
from jaxrec.typing import Array, Key, Sampler, Scalar, Variables

Score = Callable[[Array, Array], tuple[Array, Array]]
_CELLS = 1 << 22
_FACETS = frozenset({"user", "item"})
_PROJECTIONS = frozenset({"user_projection", "item_projection"})


class Ranking(Protocol):
    """The loss of positives against negatives, of facets; such as `push_and_pull`."""

    def __call__(self, theta: Array, u: Array, v: Array, *, score: Score, margin: Array, pull_weight: Scalar) -> Array:
        """θ [B, K], users' facets [B, K, D], items' [B, 1 + n, K, D], the positive first, and margins [B] to [B]."""


def push_and_pull(theta: Array, u: Array, v: Array, *, score: Score, margin: Array, pull_weight: Scalar) -> Array:
    """[margin − pos + neg]₊ + pull_weight · (1 − pos), eq. 8 and 9, of each row; it forms `Ranking`.

    Differs: the squares of eq. 5 and of the first line of eq. 15 are left out. They would count a cosine of −.9 as much
    as .9, and would push the positives of MAR away.
    """
    left, right = score(u, v)
    return hinge_and_pull(jnp.einsum("bk,bkd,bnkd->bn", theta, left, right), margin, pull_weight)


def hinge_and_pull(scores: Array, margin: Array, pull_weight: Scalar) -> Array:
    """The loss of `push_and_pull` for scores [B, 1 + n], the positive first."""
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
) -> Array:
    """How close the facets of a user, and of the item met, are: (1 / α) Σ_{i<j} log(1 + e^(α (s(uⁱ, uʲ) + s(vⁱ, vʲ)))).

    s is the score of two facets: the cosine for MARS, eq. 12, and minus the squared distance for MAR, eq. 6.

    Args:
        users: facets [B, K, D].
        items: facets [B, K, D].
        score: of the model.
        where: bool [B], True = use.
        alpha: α.
        sign: 1 sends facets apart. −1 is eq. 12 as published, and the released code: it draws them together.
        on: "both", or "users" as eq. 12 and the released code.
        reduction: over the batch, so that the weight does not depend on its size; or the sum; or "inside", the sum
            inside the exponential, as the released code.

    Raises:
        ValueError: for another `on` or `reduction`.

    It can be differentiated in reverse alone (`jax.grad`, also of itself), not forward.

    Differs: eq. 6 and 12 sum over all i, j, which doubles each pair and adds constants.
    """
    if on not in ("both", "users"):
        raise ValueError(f"on={on!r}; give 'both' or 'users'")
    if reduction not in ("mean", "sum", "inside"):
        raise ValueError(f"reduction={reduction!r}; give 'mean', 'sum' or 'inside'")
    chex.assert_equal_shape([users, items])
    where = jnp.ones(len(users), bool) if where is None else where
    sides = [jnp.where(where[:, None, None], side, 0) for side in ((users, items) if on == "both" else (users,))]
    closeness = sign * alpha * sum(_products(*score(side, side)) for side in sides)
    if reduction == "inside":
        closeness = closeness.sum(0, keepdims=True)
    pairs = np.triu(np.ones((users.shape[1],) * 2, bool), 1)
    rows = jnp.where(pairs, jax.nn.softplus(closeness), 0).sum((1, 2)) / alpha
    if reduction == "inside":
        return rows.sum()
    return losses.mean(rows, where=where) if reduction == "mean" else jnp.where(where, rows, 0).sum()


@jax.custom_vjp
def _products(left: Array, right: Array) -> Array:
    """Of facets [B, K, D] twice to [B, K, K]: K sums of products, on CPU faster than B products of small matrices."""
    return jnp.stack([jnp.einsum("bid,bd->bi", left, right[:, j]) for j in range(right.shape[1])], -1)


def _products_backward(sides: tuple[Array, Array], slopes: Array) -> tuple[Array, Array]:
    left, right = sides
    of_left = sum(slopes[:, :, j, None] * right[:, j, None] for j in range(right.shape[1]))
    return of_left, sum(slopes[:, i, :, None] * left[:, i, None] for i in range(left.shape[1]))


_products.defvjp(lambda left, right: (_products(left, right), (left, right)), _products_backward)


def adaptive_margin(train: Interactions, *, count: Literal["union", "sum"] = "union") -> np.ndarray:
    """γ_u [M]: the share of users that the items of u do not lead to, for u is to want other things the less (eq. 7).

    1 − |∪_{v of u} U_v| / M, where U_v are the users of item v, u itself among them; on the host, by blocks of users.

    Args:
        train: the positives; weights are not used.
        count: "union" counts a user once, as the released code and the paper's text; "sum" once an item, as eq. 7 is
            printed. It then falls below 0, which stops the push: for 2.7 % of the users of Ciao and nearly all of
            MovieLens-1M. `np.maximum(γ, 0)` mends that.

    Raises:
        ValueError: for another `count`.

    >>> adaptive_margin(Interactions.from_pairs([0, 0, 1, 3], [0, 1, 1, 2])).tolist()
    [0.5, 0.5, 1.0, 0.75]
    """
    if count not in ("union", "sum"):
        raise ValueError(f"count={count!r}; give 'union' or 'sum'")
    check_interactions(train=train)
    matrix = train.to_scipy().astype(np.int64)  # int32 would overflow: the sum counts a user once an item
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
) -> Array:
    """Σ_b ([γ_u − g(u, p) + g(u, q)]₊ + pull_weight · (1 − g(u, p))) + facet_weight · separation (eq. 17).

    The sum over the batch, not the mean, as the paper and the learning rates of its code have it. Weights of the
    interactions weigh it. The paper's pull lacks the constant 1, which is the released code's.

    Args:
        variables: the model's variables, as `model.init` returns them.
        key: for the draws.
        batch: positives [B, P], taken one by one.
        model: `models.MARS` or `models.MAR`.
        sample: any of `jaxrec.sampling`, of [B, n] negatives; the push is a mean over them.
        margin: γ [M], such as `adaptive_margin(train)`, or one for all.
        positives: draws users and items of a shape by a key, such as `partial(sampling.explorative, ...)`; they stand
            for those of the batch, whose size alone is used, and weigh alike. An epoch draws one for each pair.
        ranking: the loss of positives against negatives; `push_and_pull`, or `papers.mars.released` for the gradient of
            the released code.
        separate: of users' facets [B, K, D] and those of their positives; `separation` with its hyperparameters bound.
        pull_weight: λ_pull.
        facet_weight: λ_facet.

    Raises:
        TypeError: for a model without `parts`.
    """
    _check_has(model, "parts", "MARS")
    users, items, where, weights = batch.pairs()
    sample_key, positive_key = jax.random.split(key)
    if positives is not None:
        users, items = positives(positive_key, users.shape)
        weights = None
    drawn = jnp.concatenate([items[:, None], sample(sample_key, users)], axis=1)
    theta, u, v = model.apply(variables, users, drawn, method="parts")
    margin = jnp.asarray(margin, theta.dtype)
    margins = margin[users] if margin.ndim else jnp.broadcast_to(margin, users.shape)
    values = ranking(theta, u, v, score=model.score, margin=margins, pull_weight=pull_weight)
    values = values if weights is None else weights.astype(values.dtype) * values
    return jnp.where(where, values, 0).sum() + facet_weight * separate(u, v[:, 0], score=model.score, where=where)


def optimizer(
    learning_rate: Scalar, *, theta_learning_rate: Scalar, step: Callable[[Scalar], Any] = riemannian.riemannian_sgd
) -> optax.GradientTransformationExtraArgs:
    """Moves the facets by `step(learning_rate)`, and `theta` by plain gradient descent at a rate of its own.

    Both rates are those of a sum over the batch. At the facets' rate θ tends to fall on one facet a user; a fiftieth of
    it, or 0, keeps them all. `optim.rowwise.lazy` takes it.

    Facets of `models.free` and `models.hybrid` are parameters, so that a step can keep them on the sphere or in the
    ball. Facets of `models.projected` are no parameters: the model places xᵀφ^k there whenever it is called. Vectors
    and projections are then to move freely, by `step=optax.sgd`. The model's `place=models.mars.calibrated_unit` makes
    that the calibrated step of eq. 21.

    Args:
        learning_rate: of the facets.
        theta_learning_rate: of `theta`.
        step: for MARS `optim.riemannian.riemannian_sgd`, with or without calibration; for MAR
            `ball_sgd`; `optax.sgd` for facets of `models.projected`.

    Raises:
        ValueError: by `init` and `update`, for parameters other than those of MARS, and for projections where `step`
            bounds the length of rows: it would normalise the projections in silence. By `init`, for rows that are not
            unit vectors where `step` is one on the sphere.
    """
    number("theta_learning_rate", theta_learning_rate)
    rules = {"theta": optax.sgd(theta_learning_rate), "facets": step(learning_rate)}

    def labels(params: Any) -> Any:
        names = [getattr(path[-1], "key", None) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        unknown = set(names) - {"theta", *_FACETS, *_PROJECTIONS}
        if unknown:
            raise ValueError(
                f"params has {sorted(map(str, unknown))}, which are no parameters of MARS; give each a rule of its own "
                "by optax.partition"
            )
        if set(names) & _PROJECTIONS and _bounds_rows(step):
            raise ValueError(
                f"params has {sorted(set(names) & _PROJECTIONS)}, and step keeps rows on the sphere or in the ball, "
                "which would normalise the projections; give step=optax.sgd, and for the calibrated step of MARS the "
                "model place=jaxrec.models.mars.calibrated_unit"
            )
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "theta" if getattr(path[-1], "key", None) == "theta" else "facets", params
        )

    return optax.partition(rules, labels)


def _bounds_rows(step: Callable[[Scalar], Any]) -> bool:
    """Whether a step shortens a row of length 2, or refuses it, as those on the sphere and in the ball do."""
    with jax.ensure_compile_time_eval():
        row, slope = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 1.0]])
        tx = optax.with_extra_args_support(step(1e-3))
        try:
            updates, _ = tx.update(slope, tx.init(row), row)
        except ValueError:
            return True
        return float(jnp.linalg.norm(row + updates)) < 1.5


def ball_sgd(learning_rate: Scalar) -> optax.GradientTransformation:
    """Gradient descent, then back into the ball."""
    return optax.chain(optax.sgd(learning_rate), riemannian.project_to_ball())
