"""What the fold-ins share: sums over all items, computed once for each table, and padded histories."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._numerics import power_of_two
from jaxrec.interactions import Interactions
from jaxrec.solvers._alternate import eigenbasis
from jaxrec.typing import Array

LEAST = 16  # all smaller numbers of users, items, pairs and items of a user share one shape
_kept: dict[int, tuple[weakref.ref, Summary]] = {}  # id of a table -> the table and its summary


class Summary(NamedTuple):
    """Sums over the vectors q of all N items.

    Attributes:
        gram: Σ q qᵀ [K, K].
        spectrum: the eigenvalues of the Gram matrix [K].
        basis: its eigenvectors, the columns of [K, K].
        mean: the mean vector [K].
    """

    gram: Array
    spectrum: Array
    basis: Array
    mean: Array


def summary_of(item: jax.Array) -> Summary:
    """Returns the sums over the item vectors [N, K].

    They are kept as long as the table exists, because for a few new users they would take most of
    the time. They stay right, because JAX arrays are immutable.
    """
    own = id(item)
    if own in _kept:
        return _kept[own][1]
    found = _summary(item)
    if not any(isinstance(x, jax.core.Tracer) for x in (item, *found)):
        _kept[own] = weakref.ref(item, lambda _: _kept.pop(own, None)), found
    return found


@jax.jit
def _summary(item: Array) -> Summary:
    gram = jnp.einsum("nk,nm->km", item, item, precision="highest")
    return Summary(gram, *eigenbasis(gram), item.mean(0))


def compact(histories: Interactions) -> tuple[Interactions, np.ndarray]:
    """Returns the histories [B', n] over the items that occur in them, and the ids int32 [n] of these.

    The numbers of users, items and pairs are powers of two, so that few shapes are compiled. Added
    users have no items, added ids are 0, and added pairs lie behind those of the last user.
    """
    items = histories.pairs()[1]
    occurs = np.zeros(histories.n_items, bool)
    occurs[items] = True
    ids = np.flatnonzero(occurs).astype(np.int32)
    places = (np.cumsum(occurs, dtype=np.int32) - 1)[items]
    n_users, n_items, n_pairs = (power_of_two(max(n, LEAST)) for n in (histories.n_users, len(ids), len(items)))
    indptr = np.pad(np.asarray(histories.indptr), (0, n_users - histories.n_users), mode="edge")
    places, ids = np.pad(places, (0, n_pairs - len(items))), np.pad(ids, (0, n_items - len(ids)))
    weights = None
    if histories.weights is not None:
        weights = np.pad(np.asarray(histories.weights)[: len(items)], (0, n_pairs - len(items)))
    return Interactions(indptr, places, weights, None, n_users, n_items), ids
