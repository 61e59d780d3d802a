"""Looks up rows and pairs of a CSR matrix. `matrix` is always an `Interactions`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._pairs import MOST, check_countable
from jaxrec._platform import sized
from jaxrec.typing import Array


def owners(ends: Array, n_pairs: int) -> jax.Array:
    """Returns the row of each pair, int32 [n_pairs]: rows end at `ends` [B], and padding has row B."""
    ended = jnp.zeros(n_pairs, jnp.int32).at[ends].add(1, mode="drop")
    return ended.cumsum(dtype=jnp.int32)  # rows that end before; on CPU a search would take twice the time


def row_bounds(matrix: Any, users: Array) -> tuple[jax.Array, jax.Array]:
    """Returns the start in `indices` and the length of each user's row; 0 for unknown users."""
    check_countable(matrix.n_pairs)
    if matrix.n_users == 0:
        return jnp.zeros_like(users), jnp.zeros_like(users)
    indptr = jnp.asarray(matrix.indptr)
    known = (users >= 0) & (users < matrix.n_users)
    users = jnp.where(known, users, 0)
    first = indptr[users]
    return first, jnp.where(known, indptr[users + 1] - first, 0)


@jax.jit
def contains(matrix: Any, users: Array, items: Array) -> jax.Array:
    """Does the work of `Interactions.contains`, by a binary search."""
    users, items = jnp.broadcast_arrays(users, items)
    if matrix.n_pairs == 0:
        return jnp.zeros(users.shape, bool)
    first, degrees = row_bounds(matrix, users)
    indices, end = jnp.asarray(matrix.indices), first + degrees

    def halve(_, bounds):
        low, high = bounds
        middle = low + ((high - low) >> 1)  # low + high could overflow int32
        right = (low < high) & (indices.at[middle].get(mode="clip") < items)
        return jnp.where(right, middle + 1, low), jnp.where(right | (low >= high), high, middle)

    # Enough steps for the longest possible row; searches that are done keep their bounds.
    steps = max(matrix.n_items, 1).bit_length() + 1
    search = lambda unroll, *bounds: jax.lax.fori_loop(0, steps, halve, bounds, unroll=min(unroll, steps))  # noqa: E731
    low, _ = sized("search_unroll", search, first, end)
    return (low < end) & (indices.at[low].get(mode="clip") == items)


def contains_on_host(matrix: Any, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Does the work of `contains` with NumPy, which compiles nothing; no row is copied."""
    if matrix.n_pairs == 0:
        return np.zeros(users.shape, bool)
    inside = (users >= 0) & (users < matrix.n_users)
    users = np.where(inside, users, 0).astype(np.int64)
    indptr, indices = np.asarray(matrix.indptr), np.asarray(matrix.indices)
    kind: Any = np.int32 if matrix.n_pairs <= MOST // 2 else np.int64  # holds the sum of two places
    place, end = indptr.take(users).astype(kind), indptr.take(users + 1).astype(kind)
    # Each place moves on by falling powers of two, as long as the items before it are smaller.
    for power in reversed(range(int((end - place).max(initial=0)).bit_length())):
        after = place + kind(1 << power)
        smaller = (after <= end) & (indices.take(after - kind(1), mode="clip") < items)
        place += smaller * kind(1 << power)
    return inside & (place < end) & (indices.take(place, mode="clip") == items)
