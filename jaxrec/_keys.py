"""Typed JAX keys at the door, and NumPy generators made of them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxrec.typing import Key


def check_key(key: Any) -> None:
    """`ValueError` for anything but one typed key, such as a seed or a key of the old kind; keys under `jit` pass.

    >>> check_key(0)
    Traceback (most recent call last):
    ValueError: key is int; give one typed key, such as jax.random.key(0)
    """
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or key.shape != ():
        found = type(key).__name__ if dtype is None else f"{dtype}{list(key.shape)}"
        raise ValueError(f"key is {found}; give one typed key, such as jax.random.key(0)")


def generator(key: Key) -> np.random.Generator:
    """A NumPy generator seeded by a typed JAX key; one key gives one stream. `ValueError` as `check_key`."""
    check_key(key)
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))
