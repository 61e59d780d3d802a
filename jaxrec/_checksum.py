"""Checksums of arrays. They do not depend on how an array is sharded, and no array leaves its host."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np

_AT_ONCE = 1 << 15  # numbers whose hashes fit into a core's cache
_STEP, _FIRST, _SECOND = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def checksum(tree: Any) -> str:
    """Returns one checksum of all arrays of a tree."""
    return hashlib.sha256("".join(map(of_array, jax.tree.leaves(tree))).encode()).hexdigest()


def of_array(x: Any) -> str:
    """Returns the checksum of an array, 64 bits in hexadecimal.

    It is the sum of a hash of each number and its place, SplitMix64 (Steele et al. 2014,
    10.1145/2660193.2660195). If the array is sharded over several processes, each adds up its own
    shards, and all must call this.
    """
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if not is_shared(x):
        x = np.asarray(x)
        return f"{_sum(x, x.shape, (slice(None),) * x.ndim):016x}"
    from jax.experimental import multihost_utils

    own = sum(_sum(np.asarray(part.data), x.shape, part.index) for part in x.addressable_shards if not part.replica_id)
    halves = np.array([own >> 32 & 0xFFFFFFFF, own & 0xFFFFFFFF], np.uint32)  # JAX may lack 64 bits
    found = np.asarray(multihost_utils.process_allgather(halves)).tolist()
    return f"{sum(high << 32 | low for high, low in found) % 2**64:016x}"


def is_shared(x: Any) -> bool:
    """Returns whether each of several processes has a part of the array."""
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def _sum(part: np.ndarray, shape: tuple[int, ...], index: tuple[slice, ...]) -> int:
    """Adds up the hashes of the part `index` of an array of shape `shape`."""
    if not shape:
        part, shape, index = part.reshape(1), (1,), (slice(None),)
    within: np.ndarray = np.zeros((), np.uint64)  # places of a row's numbers
    for size, span in zip(shape[1:], index[1:]):
        within = within[..., None] * np.uint64(size) + np.arange(*span.indices(size), dtype=np.uint64)
    within, width = within.reshape(-1), np.uint64(np.prod(shape[1:], dtype=np.int64))
    rows, first = max(_AT_ONCE // max(within.size, 1), 1), index[0].indices(shape[0])[0]
    numbers, total = _bits(part).reshape(len(part), within.size), 0
    for start in range(0, len(part), rows):
        block = numbers[start : start + rows].astype(np.uint64)
        own = np.arange(first + start, first + start + len(block), dtype=np.uint64)
        total += int(_hashed(block + (own[:, None] * width + within) * _STEP).sum(dtype=np.uint64))
    return total % 2**64


def _bits(x: np.ndarray) -> np.ndarray:
    """Returns the bits of each number as an unsigned integer."""
    x = np.ascontiguousarray(x)
    if x.dtype.itemsize <= 8:
        return x.view(f"u{x.dtype.itemsize}")
    low, high = np.moveaxis(x.view(np.uint64).reshape(*x.shape, 2), -1, 0)  # complex numbers of 128 bits
    return _hashed(low.copy()) + high


def _hashed(z: np.ndarray) -> np.ndarray:
    """Hashes 64-bit integers, in place."""
    z ^= z >> np.uint64(30)
    z *= _FIRST
    z ^= z >> np.uint64(27)
    z *= _SECOND
    z ^= z >> np.uint64(31)
    return z
