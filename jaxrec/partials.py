"""Nested `functools.partial`s taken apart, so that the arrays in them travel into jitted functions as arguments."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrec.typing import Array


class Static(NamedTuple):
    """Functions without their arrays: hashable, so that jit can key on it."""

    tree: Any
    leaves: tuple


class _Hole:
    """Stands where an array was taken out."""


def partition(functions: tuple) -> tuple[list, Static]:
    """Takes the arrays out of nested partials, to be arguments of jit: XLA folds large constants for minutes.

    >>> arrays, static = partition((functools.partial(np.add, np.ones(2)),))
    >>> combine(arrays, static)[0](np.ones(2)).tolist()
    [2.0, 2.0]
    """
    leaves, tree = jax.tree.flatten(tuple(map(_as_pytree, functions)))
    dynamic = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    arrays = [leaf for leaf, is_array in zip(leaves, dynamic) if is_array]
    return arrays, Static(tree, tuple(_Hole if is_array else leaf for leaf, is_array in zip(leaves, dynamic)))


def _as_pytree(value: Any) -> Any:
    if type(value) in (tuple, list):
        return tuple(map(_as_pytree, value))
    if not isinstance(value, functools.partial):
        return value
    keywords = {name: _as_pytree(item) for name, item in value.keywords.items()}
    return jax.tree_util.Partial(value.func, *map(_as_pytree, value.args), **keywords)


def bound(functions: tuple) -> Iterator[tuple[Any, str, Any]]:
    """Every keyword bound in nested partials: (function, name, value).

    >>> [(name, value) for _, name, value in bound((functools.partial(np.add, dtype=functools.partial(int, base=2)),))]
    [('dtype', functools.partial(<class 'int'>, base=2)), ('base', 2)]
    """
    for value in functions:
        if isinstance(value, functools.partial):
            yield from ((value.func, *item) for item in value.keywords.items())
            yield from bound((value.func, *value.args, *value.keywords.values()))
        elif type(value) in (tuple, list):
            yield from bound(tuple(value))


def combine(arrays: Sequence[Array], static: Static) -> tuple:
    """The functions that `partition` took apart, with these arrays."""
    supply = iter(arrays)
    return jax.tree.unflatten(static.tree, [next(supply) if leaf is _Hole else leaf for leaf in static.leaves])
