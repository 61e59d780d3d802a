"""Rows of a table by their ids."""

from __future__ import annotations

import jax

from jaxrec._numerics import as_ids
from jaxrec.typing import Array

_LANES = 8


def lookup(table: Array, ids: Array) -> Array:
    """`table[ids]` of a table [n, ...] by integers [...]; on CPUs faster, where the rows looked up are few thousands.

    XLA's loop over a row of 64 numbers waits for memory once a row. Seen as [8, 8] the row is a few whole vectors, and
    the rows after it are fetched meanwhile. Where a row does not divide, and for anything but an array, it is
    `table[ids]`.

    >>> import jax.numpy as jnp
    >>> lookup(jnp.arange(32.0).reshape(2, 16), jnp.array([1, 1, 0])).shape
    (3, 16)
    """
    if not isinstance(table, jax.Array):
        return table[ids]
    ids = as_ids(ids)
    if table.ndim < 2 or table.shape[-1] % _LANES:
        return table[ids]
    # By flat ids, as `lookup_again` has them: XLA then looks the rows up once for both.
    return table.reshape(len(table), -1, _LANES)[ids.reshape(-1)].reshape(*ids.shape, *table.shape[1:])


def lookup_again(table: Array, ids: Array) -> Array:
    """`lookup` by ids [R] that are known to lie within the table, for rows that were looked up before.

    XLA finds that the rows are the same and looks them up once.
    """
    in_lanes = table.ndim > 1 and table.shape[-1] % _LANES == 0
    seen = table.reshape(len(table), -1, _LANES) if in_lanes else table
    rows = seen.at[ids].get(mode="promise_in_bounds", wrap_negative_indices=False)
    return rows.reshape(*ids.shape, *table.shape[1:])
