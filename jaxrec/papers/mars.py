"""MAR and MARS: multi-facet metric learning (Tan et al. 2021, arXiv 2103.14866).

Where each part of the paper is:

| paper | here |
|---|---|
| eq. 1, 2: facets as projections of one vector | `models.MARS(facets=models.projected)` |
| the released code: facets are parameters | `models.MARS(facets=models.free)` |
| eq. 3, 4, 13, 14: score of MAR (distance) and of MARS (cosine) | `models.MAR`, `models.MARS` |
| eq. 5, 8, 9, 15, 16: push and pull | `train.mars.push_and_pull` |
| eq. 6, 12: separation of facets | `train.mars.separation` |
| eq. 7: margin of a user | `train.mars.adaptive_margin` |
| eq. 10: explorative sampling | `samplers`, `sampling.explorative` |
| eq. 11, 17: the whole objective | `train.mars.objective` |
| eq. 19 to 21: Riemannian steps on the sphere | `optim.riemannian` |
| tables II to VI, figures 5 and 6 | `benchmarks/studies/mars.py`, `benchmarks/studies/facets.py` |

`PAPER`, `RELEASED` and `DEFAULT` are presets. The released code has a hand-written gradient, which
is not that of its loss; `released` reproduces it.

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
from jaxrec.interactions import Interactions
from jaxrec.optim import riemannian
from jaxrec.train.mars import Score, hinge_and_pull, push_and_pull, separation
from jaxrec.typing import Array, Scalar


def released(theta: Array, u: Array, v: Array, *, score: Score, margin: Array, pull_weight: Scalar) -> Array:
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
        score: not used; the score is the cosine.
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


def _cosines(u: Array, v: Array) -> Array:
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
    model={"n_facets": 4, "theta_scale": 0.0},
    objective={"ranking": push_and_pull, "separate": _OF_ALL_ROWS, "pull_weight": 0.1, "facet_weight": 0.01},
    margin={"count": "union"},
    power={"users": 0.8, "items": 0.0},
    optimizer={"learning_rate": 0.01, "theta_learning_rate": 0.01, "step": riemannian.riemannian_sgd},
)
"""The paper's objective and calibrated step, with free facets."""
