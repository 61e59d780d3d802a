"""The objective of NCL, and the clusters of users and items that it needs.

The paper is Lin et al. 2022, arXiv 2202.06200. Clusters are computed between epochs:

    model     = jr.models.NCL(train, clusters=2000)
    objective = partial(jr.train.ncl.objective, model=model, sample=sample)
    refresh   = partial(jr.train.ncl.prototypes, model=model)
    state     = jr.train.init(key, model, tx)
    state, log = jr.train.refreshed(state, objective, tx, train, refresh=refresh, epochs=100, batch_size=4096)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxrec import losses
from jaxrec._keys import check_key
from jaxrec._lookup import lookup
from jaxrec._numerics import accumulated, integer, number
from jaxrec._platform import sized
from jaxrec.models.mf import products
from jaxrec.train._checks import negatives_of
from jaxrec.train.examples import Batch
from jaxrec.train.objectives import _check_has, compared
from jaxrec.typing import Array, Key, Loss, Model, Sampler, Scalar, Variables


def objective(
    variables: Variables,
    key: Key,
    batch: Batch,
    *,
    model: Model,
    sample: Sampler,
    loss: Loss = losses.bpr,
    structure_weight: Scalar = 4e-3,
    item_share: Scalar = 1.5,
    prototype_weight: Scalar = 4e-4,
    temperature: Scalar = 0.05,
    warm_up: Scalar = 0,
) -> jax.Array:
    """Computes NCL's loss: the mean loss of the positives, and two contrasts (arXiv 2202.06200).

    mean loss + structure_weight · (S(users) + item_share · S(items))
              + prototype_weight · (P(users) + P(items))

    S is the mean `losses.infonce` of E⁽²ᵏ⁾ of the batch's users, or items, against E⁽⁰⁾ of all
    users, or items. P is that of E⁽⁰⁾ against the centroids of the clusters, which get no gradient.
    Both count a user or item once for each of its positives in the batch; the weights of the
    interactions are not used there. S forms arrays [B, M] and [B, N]. Add the paper's penalty with
    `penalised_objective`.

    Args:
        variables: the model's variables, as returned by `model.init`.
        key: typed key from which negatives are drawn.
        batch: positives [B, P].
        model: `models.NCL`.
        sample: a sampler of `jaxrec.sampling` that draws negatives [B, n], or [1, n] that the batch
            shares.
        loss: a loss of `jaxrec.losses` that compares positives with negatives.
        structure_weight: weight of S, 0 or more.
        item_share: α, the weight of the items in S, 0 or more.
        prototype_weight: weight of P, 0 or more.
        temperature: τ of both contrasts, above 0.
        warm_up: number of steps before P is used; the released code waits 20 epochs.

    Raises:
        TypeError: if the model has no `neighbourhoods`.
        ValueError: if a weight or the temperature is out of bounds, or the loss does not return one
            value per positive.

    Differs: the contrasts are means, while those of the released code are sums over the batch. The
    defaults equal the code's weights of 1e-6 and 1e-7 for batches of 4,096.
    """
    _check_has(model, "neighbourhoods", "NCL")
    weights = {"structure_weight": structure_weight, "item_share": item_share, "prototype_weight": prototype_weight}
    for name, value in (weights | {"warm_up": warm_up}).items():
        number(name, value, least=0)
    negatives = negatives_of(sample, jax.random.split(key)[0], batch.users[:, 0], model)
    (users, items), near, far = model.apply(variables, method="neighbourhoods")
    own = lookup(users, batch.users)
    pos, neg = (products(own, lookup(items, ids)) for ids in (batch.items, negatives))
    value = losses.mean(compared(loss, pos, neg[:, None]), where=batch.where, weights=batch.weights)
    pairs, known = batch.pairs(), variables["prototypes"]
    on_structure: list[jax.Array] = []
    on_prototypes: list[jax.Array] = []
    for name, ids, first, last in zip(("user", "item"), (pairs.users, pairs.items), near, far):
        sides = (
            (on_structure, lookup(last, ids), first, ids),
            (on_prototypes, lookup(first, ids), jax.lax.stop_gradient(known[name]), known[f"of_{name}"][ids]),
        )
        for total, queries, keys, positives in sides:
            values = losses.infonce(queries, keys, positives=positives, temperature=temperature)
            total.append(losses.mean(values, where=pairs.where))
    structure, share, clusters = (jnp.asarray(weight, on_structure[0].dtype) for weight in weights.values())
    clusters = jnp.where(jnp.asarray(batch.step) >= warm_up, clusters, 0)
    return value + structure * (on_structure[0] + share * on_structure[1]) + clusters * sum(on_prototypes)


def prototypes(
    key: Key, variables: Variables, *, model: Any, iterations: int = 20
) -> dict[str, Mapping[str, jax.Array]]:
    """Clusters the users and the items by their vectors E⁽⁰⁾; it is a `refresh` of `refreshed`.

    Args:
        key: typed key from which the first centroids are drawn.
        variables: the model's variables, as returned by `model.init`.
        model: `models.NCL`.
        iterations: number of iterations of `k_means`.

    Returns:
        The collection "prototypes" of the variables.
    """
    found = {}
    keys = jax.random.split(key)
    for key, name in zip(keys, ("user", "item"), strict=True):
        table = jnp.asarray(variables["params"][name])
        found[name], found[f"of_{name}"] = k_means(key, table, n=model.clusters, iterations=iterations)
    return {"prototypes": found}


@functools.partial(jax.jit, static_argnames=("n", "iterations"))
def k_means(key: Key, x: Array, *, n: int, iterations: int = 20) -> tuple[jax.Array, jax.Array]:
    """Clusters the rows of a table by Lloyd's algorithm (Lloyd 1982, 10.1109/TIT.1982.1056489).

    It starts from n different rows, drawn at random. A cluster without rows keeps its centroid.

    Args:
        key: typed key.
        x: floats [R, D].
        n: number of clusters, at most R.
        iterations: number of times the centroids are moved.

    Returns:
        The centroids [n, D], and the nearest centroid of each row, int32 [R].

    Raises:
        ValueError: if a number is not an integer of 1 or more, or there are more clusters than rows.

    >>> centroids, nearest = k_means(jax.random.key(0), jnp.array([[0.0], [1.0], [8.0], [9.0]]), n=2)
    >>> sorted(centroids[:, 0].tolist())
    [0.5, 8.5]
    """
    check_key(key)
    chex.assert_type(x, float)
    n, iterations = integer("n", n, most=len(x)), integer("iterations", iterations)
    dtype, x = x.dtype, accumulated(x)

    def assigned(centroids: Array) -> jax.Array:
        lengths = (centroids**2).sum(-1)

        def nearest(row: Array) -> jax.Array:
            products = jnp.matmul(centroids, row, precision="highest")
            return jnp.argmin(lengths - 2 * products).astype(jnp.int32)

        return sized("intermediates", lambda size, x: jax.lax.map(nearest, x, batch_size=max(size // n, 1)), x)

    def moved(_: Array, centroids: Array) -> jax.Array:
        nearest = assigned(centroids)
        count = jnp.zeros(n, x.dtype).at[nearest].add(1)[:, None]
        total = jnp.zeros_like(centroids).at[nearest].add(x)
        return jnp.where(count > 0, total / jnp.maximum(count, 1), centroids)

    first = x[jax.random.choice(key, len(x), (n,), replace=False)]
    centroids = jax.lax.fori_loop(0, iterations, moved, first)
    return centroids.astype(dtype), assigned(centroids)
