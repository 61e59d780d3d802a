"""Checks typed JAX keys, draws with them, and seeds NumPy generators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrec.typing import Array, Key


def check_key(key: Any) -> None:
    """Raises `ValueError` unless `key` is one typed key; a seed or an old-style key is not.

    Keys are accepted under `jit` too.

    >>> check_key(0)
    Traceback (most recent call last):
    ValueError: key is int; give one typed key, such as jax.random.key(0)
    """
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or key.shape != ():
        found = type(key).__name__ if dtype is None else f"{dtype}{list(key.shape)}"
        raise ValueError(f"key is {found}; give one typed key, such as jax.random.key(0)")


def drawn(random: Callable[..., Array], key: Key, shape: tuple[int, ...], *args: Any, **options: Any) -> jax.Array:
    """Returns the bits of `random(key, shape, *args, **options)`, for a function of `jax.random`.

    It draws a vector and reshapes it, because XLA takes much longer to compile the draw of a matrix
    with short rows. Other arguments must be scalars, or vectors of as many numbers.
    """
    return random(key, (math.prod(shape),), *args, **options).reshape(shape)


def generator(key: Key) -> np.random.Generator:
    """Returns a NumPy generator seeded by a typed JAX key; the same key gives the same numbers.

    Raises:
        ValueError: unless `key` is one typed key.
    """
    check_key(key)
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))
