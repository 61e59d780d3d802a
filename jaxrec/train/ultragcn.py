"""The objective of UltraGCN, which replaces the propagation of LightGCN by weights of its loss.

The paper is Mao et al. 2021, arXiv 2110.15114. The model is plain matrix factorisation:

    model     = jr.models.MF(n_users, n_items, dim=64, scale=1e-4)
    objective = partial(jr.train.ultragcn.objective, model=model, graph=jr.train.ultragcn.constraints(train),
                        sample=partial(jr.sampling.uniform, n_items=n_items, n=1500))
    tx        = optax.chain(optax.add_decayed_weights(1e-4), optax.adam(1e-4))

The released settings share w₁ = w₃, w₂ = w₄ = 1, a negative weight of 300, an item weight of 5e-4,
ten neighbours and L2 of 1e-4. They differ in:

    Gowalla   1,500 negatives, w₁ = 1e-6, rate 1e-4, batches of 512
    Yelp2018    800 negatives, w₁ = 1e-8, rate 1e-3, batches of 1,024
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._numerics import accumulated, integer, number
from jaxrec.interactions import Interactions, check_positives
from jaxrec.train._checks import negatives_of
from jaxrec.train.examples import Batch
from jaxrec.typing import Array, Key, Model, Sampler, Scalar, Variables

_ROWS = 256  # items whose neighbours are computed at the same time


class Constraints(NamedTuple):
    """What UltraGCN's loss knows of the graph; see `constraints`.

    Attributes:
        user: float32 [M], √(d + 1) / d for a user with d items, 0 for one without items.
        item: float32 [N], 1 / √(d + 1) for an item with d users.
        neighbours: int32 [N, n], the nearest items of each item, nearest first.
        omega: float32 [N, n], their weights; 0 where an item has fewer neighbours.
    """

    user: Array
    item: Array
    neighbours: Array
    omega: Array


def constraints(train: Interactions, *, n: int = 10) -> Constraints:
    """Computes UltraGCN's weights of pairs, and the nearest items of each item, on the host.

    β_ui = √(dᵤ + 1) / dᵤ · 1 / √(dᵢ + 1),   ω_ij = G_ij · √(gᵢ + 1) / gᵢ · 1 / √(gⱼ + 1)

    G_ij is the number of users that items i and j share, and gᵢ = Σⱼ G_ij. The n items with the
    largest ω are kept; an item is usually its own nearest. Equal ω are ordered by id.

    Args:
        train: the positives; weights are not used.
        n: number of neighbours of each item.

    Raises:
        ValueError: if `train` has no pairs, or `n` is not an integer of 1 or more.

    Differs: follows the released code instead of the paper, which has ω_ij = G_ij / (gᵢ − G_ii) ·
    √(gᵢ / gⱼ), without the item itself.

    >>> found = constraints(Interactions.from_pairs([0, 0, 1], [0, 1, 1]), n=2)
    >>> found.neighbours.tolist()
    [[0, 1], [1, 0]]
    """
    import scipy.sparse  # slow to import

    check_positives(train=train)
    n = integer("n", n)
    pairs, sizes = train.pairs(), (train.n_users, train.n_items)
    met = scipy.sparse.csr_array((np.ones(len(pairs[0])), pairs), shape=sizes)
    by_item = met.T.tocsr()
    of_users, item_degrees = _shares(np.bincount(pairs[0], minlength=sizes[0])), train.item_degrees
    totals = by_item @ (met @ np.ones(sizes[1]))
    left, right = _shares(totals), 1 / np.sqrt(totals + 1)
    neighbours = np.repeat(np.arange(sizes[1], dtype=np.int32)[:, None], n, axis=1)
    omega = np.zeros((sizes[1], n), np.float32)
    for start in range(0, sizes[1], _ROWS):
        shared = (by_item[start : start + _ROWS] @ met).tocoo()
        rows, columns = shared.coords
        values = shared.data * left[rows + start] * right[columns]
        order = np.lexsort((columns, -values, rows))
        rows, columns, values = rows[order], columns[order], values[order]
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        kept = place < n
        where = rows[kept] + start, place[kept]
        neighbours[where], omega[where] = columns[kept], values[kept]
    of_items = 1 / np.sqrt(item_degrees + 1)
    return Constraints(of_users.astype(np.float32), of_items.astype(np.float32), neighbours, omega)


def _shares(degrees: np.ndarray) -> np.ndarray:
    """Computes √(d + 1) / d, and 0 for d = 0."""
    return np.where(degrees > 0, np.sqrt(degrees + 1) / np.maximum(degrees, 1), 0)


def objective(
    variables: Variables,
    key: Key,
    batch: Batch,
    *,
    model: Model,
    graph: Constraints,
    sample: Sampler,
    positive: tuple[Scalar, Scalar] = (1e-6, 1.0),
    negative: tuple[Scalar, Scalar] = (1e-6, 1.0),
    negative_weight: Scalar = 300.0,
    item_weight: Scalar = 5e-4,
) -> jax.Array:
    """Computes UltraGCN's loss (Mao et al. 2021, arXiv 2110.15114), summed over the batch.

    Σ (w₁ + w₂ β_ui) φ(−s_ui) + negative_weight · meanⱼ (w₃ + w₄ β_uj) φ(s_uj)
      + item_weight · Σₖ ω_ik φ(−s_uk)

    φ is softplus, s are scores, j are the negatives, and k the nearest items of the positive i. The
    interactions' weights are factors of their terms.

    Args:
        variables: the model's variables, as returned by `model.init`.
        key: typed key from which negatives are drawn.
        batch: positives [B, P].
        model: a model that scores pairs by `model.apply(variables, users, items)`, such as
            `models.MF`.
        graph: the result of `constraints`.
        sample: a sampler of `jaxrec.sampling` that draws negatives [B, n], or [1, n] that the batch
            shares.
        positive: w₁ and w₂, 0 or more.
        negative: w₃ and w₄, 0 or more.
        negative_weight: weight of the negatives, 0 or more.
        item_weight: λ, the weight of the nearest items, 0 or more.

    Raises:
        ValueError: if a weight is negative or not finite, or `graph` has another number of users
            or items than the model.

    Differs: leaves out the paper's penalty γ/2 ‖Θ‖² of all parameters; start the optimiser's chain
    with `optax.add_decayed_weights(γ)`.
    """
    _check_sizes(graph, model)
    graph = jax.tree.map(jnp.asarray, graph)
    users, items = batch.users, batch.items
    near = graph.neighbours[items]
    negatives = negatives_of(sample, jax.random.split(key)[0], users[:, 0], model)
    negatives = jnp.broadcast_to(negatives, (len(items), negatives.shape[1]))
    ids = jnp.concatenate([x.astype(jnp.int32) for x in (items, negatives, near.reshape(len(items), -1))], axis=1)
    n_positives, n_negatives = items.shape[1], negatives.shape[1]
    scores = accumulated(model.apply(variables, users, ids))
    pos, neg, related = jnp.split(scores, [n_positives, n_positives + n_negatives], axis=1)

    def weighed(name: str, pair: tuple[Scalar, Scalar], ids: Array) -> jax.Array:
        constant, slope = (jnp.asarray(number(name, w, least=0), scores.dtype) for w in pair)
        return constant + slope * (graph.user[users] * graph.item[ids]).astype(scores.dtype)

    weights = {"negative_weight": negative_weight, "item_weight": item_weight}
    of_negatives, of_near = (jnp.asarray(number(n, w, least=0), scores.dtype) for n, w in weights.items())
    omega = graph.omega[items].astype(scores.dtype)
    values = weighed("positive", positive, items) * jax.nn.softplus(-pos)
    against = weighed("negative", negative, negatives) * jax.nn.softplus(neg)
    values += of_negatives * against.mean(1, keepdims=True)
    values += of_near * (omega * jax.nn.softplus(-related.reshape(near.shape))).sum(-1)
    if batch.weights is not None:
        values *= batch.weights.astype(values.dtype)
    return jnp.where(batch.where, values, 0).sum()


def _check_sizes(graph: Constraints, model: Model) -> None:
    """Raises `ValueError` if the constraints are for other numbers of users or items."""
    for name, table in (("n_users", graph.user), ("n_items", graph.item)):
        size = getattr(model, name, None)
        if size is not None and len(table) != size:
            raise ValueError(
                f"graph is for {name}={len(table)}, but the model has {size}; call constraints with the "
                "positives on which the model is trained"
            )
