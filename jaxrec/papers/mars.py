"""MAR and MARS: multi-facet metric learning (Tan et al. 2021, arXiv 2103.14866).

Where each part of the paper is:

| paper | here |
|---|---|
| eq. 1, 2: facets as projections of one vector | `models.MARS(facets=models.projected)` |
| the released code: facets are parameters | `models.MARS(facets=models.free)` |
| eq. 3, 4, 13, 14: score of MAR (distance) and of MARS (cosine) | `models.MAR`, `models.MARS` |
| eq. 8, 9, 16, second line of eq. 15: push and pull | `train.mars.push_and_pull` |
| eq. 5 and first line of eq. 15, with squares | `equation_15` |
| eq. 6 and 12 without their flaws: separation of facets | `train.mars.separation` |
| eq. 6 and 12 as printed | `equation_6`, `equation_12` |
| eq. 7: margin of a user | `train.mars.adaptive_margin` |
| eq. 10: explorative sampling | `samplers`, `sampling.explorative` |
| eq. 11, 17: the whole objective | `train.mars.objective` |
| eq. 11: facets of MAR in the unit ball | `models.mars.into_ball`, `optim.riemannian.project_to_ball` |
| eq. 19 to 21: Riemannian steps on the sphere | `optim.riemannian` |
| eq. 21 for facets that are projections | `models.mars.calibrated_unit` |
| tables II to IV, figures 5 and 6, times | `benchmarks/studies/mars.py` |
| table II with the same number of settings for all | `benchmarks/studies/mars_tuned.py` |
| tables V and VI, figure 7 | `benchmarks/categories.py`, `notebooks/04_facets.ipynb` |
| facets that were planted | `benchmarks/studies/facets.py` |

`PAPER` and `PAPER_MAR` are presets of the paper's MARS and MAR, `RELEASED` is that of the released
code, and `FREE_FACETS` and `DEFAULT` are between them. The released code has a hand-written
gradient, which is not that of its loss; `released` reproduces it.

>>> sorted(DEFAULT)
['margin', 'model', 'objective', 'optimizer', 'power']
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec import sampling
from jaxrec._numerics import accumulated
from jaxrec.interactions import Interactions
from jaxrec.models.mars import calibrated_unit, free, projected
from jaxrec.optim import riemannian
from jaxrec.train.mars import Score, hinge_and_pull, push_and_pull, separation
from jaxrec.typing import Array, Scalar


def released(theta: Array, u: Array, v: Array, *, score: Score, margin: Array, pull_weight: Scalar) -> jax.Array:
    """Computes `push_and_pull` with the hand-written gradient of the released code.

    It is not the gradient of the loss. For the facets it is that of
    Σ_k (a · cos(u^k, q^k) − m · cos(u^k, p^k)), where a is 1 if the hinge is active, else 0, and m
    is 1 where a is 1, and everywhere if `pull_weight` is not 0. So θ does not weight the facets,
    and the pull has full weight for every `pull_weight`. For θ the gradient is the true one, as is
    that of `separation`.

    Args:
        theta: facet weights [B, K] of the users.
        u: the users' facets [B, K, D].
        v: the items' facets [B, 1 + n, K, D], the positive first.
        score: unused; the score is the cosine.
        margin: the users' margins [B].
        pull_weight: weight of the pull.
    """
    cosines = _cosines(u, v)
    scores = jnp.einsum("bk,bnk->bn", theta, jax.lax.stop_gradient(cosines))
    values = hinge_and_pull(scores, margin, pull_weight)
    known = jax.lax.stop_gradient(scores)
    active = margin[:, None] - known[:, :1] + known[:, 1:] > 0
    pulled = active.any(1) | ((known[:, 0] < 1) & (pull_weight != 0))
    cosines = cosines.sum(-1)
    moved = jnp.where(active, cosines[:, 1:], 0).mean(1) - jnp.where(pulled, cosines[:, 0], 0)
    return values + (moved - jax.lax.stop_gradient(moved))


def equation_15(theta: Array, u: Array, v: Array, *, score: Score, margin: Array, pull_weight: Scalar) -> jax.Array:
    """Computes eq. 5, and the first line of eq. 15, as printed; it is a `train.mars.Ranking`.

    [margin − pos² + neg²]₊ + pull_weight · (1 − pos)

    With the squares, a cosine of −.9 counts as much as .9, and MAR, whose scores are negative,
    moves positives away. The second line of eq. 15 has no squares, and neither has
    `push_and_pull`.

    Args:
        theta: facet weights [B, K] of the users.
        u: the users' facets [B, K, D].
        v: the items' facets [B, 1 + n, K, D], the positive first.
        score: the model's `score`.
        margin: the users' margins [B].
        pull_weight: weight of the pull.

    Returns:
        Losses [B].
    """
    left, right = score(u, v)
    scores = jnp.einsum("bk,bkd,bnkd->bn", theta, left, right)
    return hinge_and_pull(scores**2, margin, 0.0) + pull_weight * (1 - scores[:, 0])


def equation_6(
    users: Array, items: Array, *, score: Score, where: Array | None = None, alpha: Scalar = 0.1
) -> jax.Array:
    """Computes eq. 6 as printed: Σ_b (1/α) Σ_{i,j} log(1 + e^(−α (‖uⁱ − uʲ‖² + ‖vⁱ − vʲ‖²))).

    i and j run over all facets. So each pair counts twice, and i = j adds the constant K log(2) / α
    for each row. `separation` counts each pair once.

    Args:
        users: users' facets [B, K, D].
        items: facets [B, K, D] of their positive items.
        score: `score` of `models.MAR`; of another model, its score replaces minus the squared
            distance.
        where: bool [B], True = use; None uses all.
        alpha: α, above 0.

    Returns:
        A scalar.
    """
    pairs = separation(users, items, score=score, where=where, alpha=alpha, reduction="sum")
    return 2 * pairs + _alone(users, where, alpha, 0.0)


def equation_12(
    users: Array,
    items: Array,
    *,
    score: Score,
    where: Array | None = None,
    alpha: Scalar = 0.1,
    sign: Scalar = -1.0,
) -> jax.Array:
    """Computes eq. 12 as printed: Σ_b (1/α) Σ_{i,j} log(1 + e^(−α cos(uⁱ, uʲ))).

    Its minimum has equal facets, although the text calls it a facet-separating loss: `sign=1`
    corrects that, as `PAPER` does. It leaves out items. i and j run over all facets, as in
    `equation_6`.

    Args:
        users: users' facets [B, K, D], unit vectors.
        items: facets [B, K, D] of their positive items; not used.
        score: `score` of `models.MARS`.
        where: bool [B], True = use; None uses all.
        alpha: α, above 0.
        sign: −1 as printed; 1 separates facets.

    Returns:
        A scalar.
    """
    options: dict[str, Any] = {"score": score, "where": where, "alpha": alpha, "sign": sign}
    pairs = separation(users, items, on="users", reduction="sum", **options)
    return 2 * pairs + _alone(users, where, alpha, sign * alpha)


def _alone(users: Array, where: Array | None, alpha: Scalar, exponent: Scalar) -> jax.Array:
    """Returns the terms i = j of eq. 6 or 12, which are constants, for all rows in `where`."""
    dtype = accumulated(users).dtype
    n_rows = jnp.asarray(len(users) if where is None else where.sum(), dtype)
    return n_rows * users.shape[1] * jax.nn.softplus(jnp.asarray(exponent, dtype)) / jnp.asarray(alpha, dtype)


def _cosines(u: Array, v: Array) -> jax.Array:
    """Returns the cosines [B, n, K] of facets [B, K, D] and [B, n, K, D].

    It divides products by lengths, so that no arrays of unit vectors are stored for the gradient.
    """
    tiny = jnp.finfo(u.dtype).tiny
    lengths = [jnp.maximum(jnp.einsum("...d,...d->...", x, x), tiny) for x in (u[:, None], v)]
    return jnp.einsum("bkd,bnkd->bnk", u, v) * jax.lax.rsqrt(lengths[0]) * jax.lax.rsqrt(lengths[1])


def samplers(train: Interactions, *, users: float, items: float, n: int = 1) -> dict[str, Any]:
    """Returns the arguments `sample` and `positives` of `train.mars.objective`.

    They draw negatives that the user does not have in `train`, and explorative positives.

    Args:
        train: the positives.
        users: users are drawn in proportion to their number of items to this power (β of eq. 10).
        items: negatives are drawn in proportion to their number of users to this power; 0 is
            uniform.
        n: number of negatives for each positive.

    >>> sorted(samplers(Interactions.from_pairs([0, 1], [1, 0]), users=0.75, items=0.75))
    ['positives', 'sample']
    """
    draw = partial(sampling.popularity, table=sampling.popularity_table(train, power=items), n=n)
    table = sampling.popularity_table(train.transpose(), power=users)
    return {
        "sample": partial(sampling.reject_seen, sample=draw, seen=train),
        "positives": partial(sampling.explorative, train=train, table=table),
    }


def sphere_sgd(learning_rate: Scalar) -> optax.GradientTransformation:
    """Returns gradient descent followed by a retraction to the sphere, as in the released code.

    The radial part of the gradient is not removed.
    """
    return optax.chain(optax.sgd(learning_rate), riemannian.retract_to_sphere())


_AS_RELEASED = partial(separation, sign=-1.0, on="users", reduction="inside")
_OF_ALL_ROWS = partial(separation, reduction="sum")
_UNCALIBRATED = partial(riemannian.riemannian_sgd, calibrated=False)


def _preset(**parts: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Groups keyword arguments by the function that takes them.

    The groups are for `models.MARS`, `objective`, `adaptive_margin`, `samplers` ("power") and
    `optimizer`.
    """
    return MappingProxyType({name: MappingProxyType(dict(part)) for name, part in parts.items()})


RELEASED = _preset(
    model={"n_facets": 4, "theta_scale": 1.0},
    objective={"ranking": released, "separate": _AS_RELEASED, "pull_weight": 0.1, "facet_weight": 0.01},
    margin={"count": "union"},
    power={"users": 0.75, "items": 0.75},
    optimizer={"learning_rate": 0.01, "theta_learning_rate": 0.01, "step": sphere_sgd},
)
"""The settings of the released code."""

DEFAULT = _preset(
    model={"n_facets": 4, "theta_scale": 0.0},
    objective={"ranking": push_and_pull, "separate": separation, "pull_weight": 0.1, "facet_weight": 0.01},
    margin={"count": "union"},
    power={"users": 0.75, "items": 0.0},
    # The rates are for K = 4: 0.01 K, and a fiftieth of that.
    optimizer={"learning_rate": 0.04, "theta_learning_rate": 0.0008, "step": _UNCALIBRATED},
)
"""Settings with the gradient of the loss, and a learning rate of θ that keeps all facets in use."""

PAPER = _preset(
    model={"n_facets": 4, "theta_scale": 0.0, "facets": projected, "place": calibrated_unit},
    objective={
        "ranking": push_and_pull,
        "separate": partial(equation_12, sign=1.0),
        "pull_weight": 0.1,
        "facet_weight": 0.01,
    },
    margin={"count": "union"},
    power={"users": 0.8, "items": 0.0},
    optimizer={"learning_rate": 0.01, "theta_learning_rate": 0.01, "step": optax.sgd},
)
"""MARS as in the paper.

Facets are projections (eq. 1 and 2), and all parameters move by SGD with one learning rate. The
paper keeps facets on spheres by eq. 21. Its x is a facet xᵀφ^k, which is not a parameter, so that
no step can retract it. There are two readings. One moves parameters by the gradient of the loss of
normalised facets: at the sphere, that is eq. 21 without the factor 1 + x·g/‖g‖. The other, which is
chosen here, multiplies the gradient at the sphere by the factor: `place=calibrated_unit`. It has
every part of eq. 21 but the length of the step, which is divided by the length of xᵀφ^k. For the
first reading, give the model `place=models.mars.unit`.

Where the equations contradict the text, the text decides: there are no squares in eq. 15, eq. 12
separates facets, and eq. 7 counts each user once. `equation_15`, `equation_12` and
`adaptive_margin(count="sum")` are the printed ones. The paper tunes K, D, the learning rate and
both weights, with batches of 1,000. It starts from a non-negative factorisation, but gives no
formula: here vectors and projections start at random, and θ with equal shares.
"""

PAPER_MAR = _preset(
    model={"n_facets": 4, "theta_scale": 0.0, "facets": projected},
    objective={"ranking": push_and_pull, "separate": equation_6, "pull_weight": 0.1, "facet_weight": 0.01},
    margin={"count": "union"},
    power={"users": 0.8, "items": 0.0},
    optimizer={"learning_rate": 0.01, "theta_learning_rate": 0.01, "step": optax.sgd},
)
"""MAR as in the paper, for `models.MAR`: projected facets, and SGD.

The constraint of eq. 11 holds because the model projects facets into the unit ball
(`models.mars.into_ball`) whenever it uses them; see `PAPER`. Outside the ball the gradient has no
radial part, so that a facet that has left the ball stays on its surface.
"""

FREE_FACETS = _preset(
    model={"n_facets": 4, "theta_scale": 0.0, "facets": free},
    objective={"ranking": push_and_pull, "separate": _OF_ALL_ROWS, "pull_weight": 0.1, "facet_weight": 0.01},
    margin={"count": "union"},
    power={"users": 0.8, "items": 0.0},
    optimizer={"learning_rate": 0.01, "theta_learning_rate": 0.01, "step": riemannian.riemannian_sgd},
)
"""The calibrated step of eq. 21 on facets that are parameters, as in the released code.

The push, the pull and the draws are those of `PAPER`; `separation` is summed over the batch, for
users and items.
"""
