"""Losses of vectors, without negatives.

They bring users close to their items, spread vectors over the sphere, decorrelate coordinates, or
pull two views of the same rows towards each other.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._numerics import accumulated
from jaxrec.losses._reduce import logsumexp, over_negatives, setting
from jaxrec.typing import Array, Scalar


def alignment(users: Array, items: Array) -> jax.Array:
    """Squared distance of normalised vectors (Wang and Isola 2020, arXiv 2005.10242).

    ‖u/‖u‖ − i/‖i‖‖². A vector of zeros stays 0 and gets no gradient.

    Args:
        users: vectors u, [..., D].
        items: vectors i, [..., D].

    Returns:
        Losses [...].

    >>> float(alignment(jnp.array([2.0, 0.0]), jnp.array([0.0, 3.0])))
    2.0
    """
    chex.assert_equal_shape([users, items])
    chex.assert_type([users, items], float)
    return ((_normalised(accumulated(users)) - _normalised(accumulated(items))) ** 2).sum(-1)


def uniformity(x: Array, *, where: Array | None = None, scale: Scalar = 2.0) -> jax.Array:
    """Measures how close the rows of a batch are to each other on the sphere (Wang and Isola 2020).

    log mean over pairs i < j of e^(−scale · ‖xᵢ − xⱼ‖²), with normalised rows (arXiv 2005.10242).
    It forms an array [..., B, B].

    Args:
        x: vectors [..., B, D].
        where: bool [..., B], True for the rows to use; None uses all.
        scale: factor of the squared distances; above 0.

    Returns:
        Losses [...], at most 0; 0 if fewer than two rows are valid. A row of zeros stays 0 and gets
        no gradient.

    >>> round(float(uniformity(jnp.array([[1.0, 0.0], [0.0, 5.0]]))), 4)
    -4.0
    """
    chex.assert_type(x, float)
    scale = setting("scale", scale, x, above=0)
    x = accumulated(x)
    where = jnp.ones(x.shape[:-1], bool) if where is None else where
    chex.assert_type(where, bool)
    chex.assert_shape(where, x.shape[:-1])
    x = _normalised(jnp.where(where[..., None], x, 0))
    lengths = (x**2).sum(-1)
    gram = jnp.einsum("...id,...jd->...ij", x, x, precision="highest")
    squared = lengths[..., :, None] + lengths[..., None, :] - 2 * gram
    n_rows = x.shape[-2]
    upper = jnp.triu(jnp.ones((n_rows, n_rows), bool), 1).reshape((1,) * (x.ndim - 2) + (n_rows, n_rows))
    pairs = (where[..., :, None] & where[..., None, :] & upper).reshape(*x.shape[:-2], n_rows**2)
    any_pair = jnp.asarray(pairs.any(-1))
    total = logsumexp(-scale * squared.reshape(pairs.shape), pairs, any_pair)
    return total - jnp.log(jnp.maximum(pairs.sum(-1, dtype=jnp.int32), 1).astype(total.dtype))


def directau(users: Array, items: Array, *, where: Array | None = None, weight: Scalar = 1.0) -> jax.Array:
    """DirectAU: optimises alignment and uniformity (Wang et al. 2022, arXiv 2206.12811).

    mean alignment + weight · ½ (uniformity(users) + uniformity(items)) over a batch of B pairs. The
    paper's weights are 5 on Gowalla, 1 on Yelp2018 and .5 on Beauty. The paper ranks by the dot
    product of the vectors without normalisation.

    Args:
        users: vectors [..., B, D].
        items: vectors [..., B, D], the positive item of each user. A user who occurs several times
            counts each time.
        where: bool [..., B], True for the pairs to use; None uses all.
        weight: γ of the paper.

    Returns:
        Losses [...], one for each batch.

    >>> round(float(directau(jnp.eye(2), jnp.eye(2), weight=0.5)), 4)
    -2.0
    """
    chex.assert_equal_shape([users, items])
    chex.assert_type([users, items], float)
    weight = setting("weight", weight, users, least=0)
    where = jnp.ones(users.shape[:-1], bool) if where is None else where
    chex.assert_type(where, bool)
    chex.assert_shape(where, users.shape[:-1])
    users, items = (jnp.where(where[..., None], accumulated(x), 0) for x in (users, items))
    spread = uniformity(users, where=where) + uniformity(items, where=where)
    return over_negatives(alignment(users, items), where, "mean") + weight * spread / 2


def covariance(x: Array, *, where: Array | None = None) -> jax.Array:
    """Squared covariances of different coordinates (DeCov, Cogswell et al. 2016, arXiv 1511.06068).

    Σ_{d≠e} C_de², where C is the mean of (x − μ)(x − μ)ᵀ over the rows of a batch, and μ their
    mean. In CML (Hsieh et al. 2017, 10.1145/3038912.3052639) the rows are those of users and items;
    see `train.covariance_objective`.

    Args:
        x: vectors [..., B, D].
        where: bool [..., B], True for the rows to use; None uses all.

    Returns:
        Losses [...], 0 if no row is valid.

    Differs: DeCov has a factor ½. The released code of CML adds the signed covariances of the whole
    tables, so that positive and negative ones cancel.

    >>> float(covariance(jnp.array([[1.0, 2.0], [3.0, 6.0]])))
    8.0
    """
    chex.assert_type(x, float)
    where = jnp.ones(x.shape[:-1], bool) if where is None else where
    chex.assert_type(where, bool)
    chex.assert_shape(where, x.shape[:-1])
    x, where = accumulated(x), jnp.asarray(where)[..., None]
    count = jnp.maximum(where.sum(-2, keepdims=True, dtype=jnp.int32), 1).astype(x.dtype)
    x = jnp.where(where, x, 0)
    x = jnp.where(where, x - x.sum(-2, keepdims=True) / count, 0)
    moments = jnp.einsum("...bd,...be->...de", x, x, precision="highest") / count
    same = jnp.eye(x.shape[-1], dtype=bool).reshape((1,) * (x.ndim - 2) + (x.shape[-1],) * 2)
    return (jnp.where(same, 0, moments) ** 2).sum((-2, -1))


def diversity(x: Array, *, least: Scalar = 0.05, most: Scalar = 0.25) -> jax.Array:
    """Keeps the spread of a user's vectors within bounds (DPCML, Bao et al. 2022, arXiv 2209.15292).

    max(0, least − δ) + max(0, δ − most), with δ = Σ_{c,e} ‖x_c − x_e‖² / 2C(C − 1), which is the
    variance Σ_c ‖x_c − μ‖² / (C − 1) of the vectors around their mean μ. See
    `train.diversity_objective`.

    Args:
        x: C vectors of each user [..., C, D].
        least: δ₁; below it, the loss pushes the vectors away from each other.
        most: δ₂, at least `least`; above it, the loss pulls them towards each other.

    Returns:
        Losses [...]; 0 if C is 1.

    Raises:
        ValueError: if a bound is negative or not finite, or `least` is above `most`.

    Differs: the released code bounds the squared distance of each pair, which is 2δ on average,
    instead of their spread; the defaults are its bounds.

    >>> float(diversity(jnp.array([[0.0, 0.0], [1.0, 0.0]])))  # δ = 0.5
    0.25
    """
    chex.assert_type(x, float)
    if not any(isinstance(bound, jax.core.Tracer) for bound in (least, most)) and least > most:
        raise ValueError(f"least={least} is above most={most}; give a lower least")
    least, most = setting("least", least, x, least=0), setting("most", most, x, least=0)
    x = accumulated(x)
    if x.shape[-2] == 1:
        return jnp.zeros(x.shape[:-2], x.dtype)
    spread = ((x - x.mean(-2, keepdims=True)) ** 2).sum((-2, -1)) / (x.shape[-2] - 1)
    return jnp.maximum(least - spread, 0) + jnp.maximum(spread - most, 0)


def infonce(
    queries: Array,
    keys: Array,
    *,
    positives: Array | None = None,
    where: Array | None = None,
    temperature: Scalar = 0.2,
) -> jax.Array:
    """InfoNCE of two views: each query is brought close to its own key and away from the others.

    −q·k₊/temperature + log Σₖ e^(q·k/temperature), with normalised rows (van den Oord et al. 2018,
    arXiv 1807.03748). The sum includes the own key k₊. It forms an array [..., B, N].

    Args:
        queries: vectors [..., B, D].
        keys: vectors [..., N, D].
        positives: integers [..., B], the row of each query's own key, 0 to N − 1; None is row b for
            query b, which needs N = B.
        where: bool [..., N], True for the keys to use; None uses all.
        temperature: divides the cosines; above 0.

    Returns:
        Losses [..., B], 0 for a query whose own key is masked. A row of zeros stays 0 and gets no
        gradient.

    Raises:
        ValueError: if the temperature is not above 0, or `positives` are not rows of the keys.

    >>> [round(float(x), 4) for x in infonce(jnp.eye(2), jnp.eye(2), temperature=0.5)]
    [0.1269, 0.1269]
    """
    chex.assert_type([queries, keys], float)
    if positives is None:
        chex.assert_equal_shape([queries, keys])
        positives = jnp.broadcast_to(jnp.arange(keys.shape[-2], dtype=jnp.int32), queries.shape[:-1])
    where = jnp.ones(keys.shape[:-1], bool) if where is None else jnp.asarray(where)
    chex.assert_type([positives, where], [int, bool])
    chex.assert_shape([positives, where], [queries.shape[:-1], keys.shape[:-1]])
    if not isinstance(positives, jax.core.Tracer) and positives.size:
        low, high = np.min(positives), np.max(positives)
        if low < 0 or high >= keys.shape[-2]:
            raise ValueError(f"positives are from {low} to {high}; give rows of keys, 0 to {keys.shape[-2] - 1}")
    temperature = setting("temperature", temperature, queries, above=0)
    usable = jnp.take_along_axis(where, positives, axis=-1)
    sides = (queries, usable), (keys, where)
    queries, keys = (_normalised(jnp.where(valid[..., None], accumulated(x), 0)) for x, valid in sides)
    scores = jnp.einsum("...bd,...nd->...bn", queries, keys, precision="highest") / temperature
    own = jnp.take_along_axis(scores, positives[..., None], axis=-1)[..., 0]
    total = logsumexp(scores, where[..., None, :], where.any(-1, keepdims=True))
    return jnp.where(usable, total - own, 0)


def _normalised(x: Array) -> jax.Array:
    """Divides vectors by their lengths; a vector of zeros stays 0."""
    # Double where: the gradient of the square root is infinite at 0.
    # The largest entry is divided out first, because squares under- and overflow.
    largest = jax.lax.stop_gradient(jnp.abs(x).max(-1, keepdims=True))
    x = x / jnp.where(largest > 0, largest, 1)
    squared = (x**2).sum(-1, keepdims=True)
    return jnp.where(squared > 0, x / jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
