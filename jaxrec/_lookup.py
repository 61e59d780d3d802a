"""Looks up rows of a table by their ids, and places in an ordered array."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrec._numerics import as_ids
from jaxrec._platform import sized
from jaxrec.typing import Array

_WIDTH = 8  # float32 numbers in a vector register


def lookup(table: Array, ids: Array) -> jax.Array:
    """Returns `table[ids]`; on CPUs faster than indexing if a few thousand rows are looked up.

    XLA's loop over the 64 numbers of a row waits for memory once for each row. Reshaped to [8, 8],
    a row is a few whole vectors, and the next rows are fetched at the same time. If the length of a
    row is not a multiple of 8, or if the table is not a JAX array, this is plain `table[ids]`.

    Args:
        table: [n, ...].
        ids: integers [...].

    Returns:
        [..., *table.shape[1:]].

    >>> import jax.numpy as jnp
    >>> lookup(jnp.arange(32.0).reshape(2, 16), jnp.array([1, 1, 0])).shape
    (3, 16)
    """
    if not isinstance(table, jax.Array):
        return table[ids]
    ids = as_ids(ids)
    if table.ndim < 2 or table.shape[-1] % _WIDTH:
        return table[ids]
    # `lookup_again` indexes by the same flat ids, so that XLA looks the rows up once for both.
    return table.reshape(*table.shape[:-1], -1, _WIDTH)[ids.reshape(-1)].reshape(*ids.shape, *table.shape[1:])


def lookup_again(table: Array, ids: Array) -> jax.Array:
    """Looks up rows again that `lookup` has returned before, by ids [R] that lie within the table.

    XLA recognises that the rows are the same and looks them up once.
    """
    divides = table.ndim > 1 and table.shape[-1] % _WIDTH == 0
    seen = jnp.asarray(table.reshape(*table.shape[:-1], -1, _WIDTH) if divides else table)
    rows = seen.at[ids].get(mode="promise_in_bounds", wrap_negative_indices=False)
    return rows.reshape(*ids.shape, *table.shape[1:])


def search(ordered: Array, values: Array, *, side: str = "left") -> jax.Array:
    """Returns `jnp.searchsorted(ordered, values, side=side)`, int32."""

    def found(unroll: int, ordered: Array, values: Array) -> jax.Array:
        method = "scan" if unroll == 1 else "scan_unrolled"
        return jnp.searchsorted(ordered, values, side=side, method=method).astype(jnp.int32)

    return sized("search_unroll", found, ordered, values)
