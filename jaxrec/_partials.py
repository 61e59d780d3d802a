"""Takes arrays out of nested `functools.partial`s, to pass them to jitted functions as arguments."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrec._identity import reads
from jaxrec.typing import Array


class Static(NamedTuple):
    """Functions without their arrays: hashable, so that jit can cache by it.

    Attributes:
        tree: the structure of the nested functions.
        leaves: the functions and values; `_Hole` in place of each array.
        reads: what the functions read from globals and closures; see `jaxrec._identity.reads`.
    """

    tree: Any
    leaves: tuple
    reads: tuple

    def again(self, *, forget: bool = True) -> Static:
        """Returns the same functions with what they read now; see `jaxrec._identity.reads`."""
        return self._replace(reads=reads(*self.leaves, forget=forget))


class _Hole:
    """Marks where an array was taken out."""


def partition(functions: tuple) -> tuple[list, Static]:
    """Takes the arrays out of nested partials, so that they can be arguments of a jitted function.

    As constants of the program, large arrays would take XLA minutes to fold.

    Args:
        functions: a tuple of functions, partials and containers of them.

    Returns:
        The arrays, and the rest as a `Static`; `combine` rebuilds the functions from both.

    Raises:
        TypeError: for a value that jit cannot cache by, such as a model with an array as attribute.

    >>> arrays, static = partition((functools.partial(np.add, np.ones(2)),))
    >>> combine(arrays, static)[0](np.ones(2)).tolist()
    [2.0, 2.0]
    """
    leaves, tree = jax.tree.flatten(tuple(map(_as_pytree, functions)))
    dynamic = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    arrays = [leaf for leaf, is_array in zip(leaves, dynamic) if is_array]
    kept = tuple(_Hole if is_array else leaf for leaf, is_array in zip(leaves, dynamic))
    for leaf in kept:
        check_static(leaf)
    return arrays, Static(tree, kept, reads(*kept))


def check_static(value: Any, name: str = "") -> None:
    """Raises `TypeError` for a value that is not hashable; names the attribute that holds an array."""
    try:
        hash(value)
    except TypeError as error:
        fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        for field in fields:
            check_static(getattr(value, field.name, None), f"{type(value).__name__}.{field.name}")
        what = name or repr(value)[:80]
        raise TypeError(
            f"{what} is a {type(value).__name__}, but the attributes of models must be hashable, because compiled "
            "programs are cached by model. Give numbers, strings, tuples or functions; keep arrays in variables, or "
            "bind them with functools.partial"
        ) from error


def check_function(name: str, value: Any, example: str) -> None:
    """Raises `TypeError` for an argument that cannot be called, such as the name of a function.

    Args:
        name: the name of the argument.
        value: the argument.
        example: a function to give instead.
    """
    if not callable(value):
        raise TypeError(f"{name}={value!r:.80}; give a function, such as {example}")


def check_parts(parts: Sequence[Any], what: str) -> None:
    """Raises `ValueError` if there are no parts, and `TypeError` unless they are pairs of a weight and a function."""
    if not parts:
        raise ValueError(f"parts is empty; give at least one pair (weight, {what})")
    for place, part in enumerate(parts):
        if callable(part) or len(part) != 2 or not callable(part[1]):
            raise TypeError(f"parts[{place}]={part!r:.80}; give a pair (weight, {what}), such as (1.0, {what})")


def _as_pytree(value: Any) -> Any:
    """Replaces partials by pytrees of functions and arguments; tuples, lists and dicts are walked."""
    if isinstance(value, functools.partial):
        keywords = {name: _as_pytree(item) for name, item in value.keywords.items()}
        return jax.tree_util.Partial(value.func, *map(_as_pytree, value.args), **keywords)
    if type(value) in (tuple, list):
        return tuple(map(_as_pytree, value))
    if isinstance(value, tuple):  # a NamedTuple takes its entries one by one
        return type(value)(*map(_as_pytree, value))
    return {name: _as_pytree(item) for name, item in value.items()} if type(value) is dict else value


def flattened(value: functools.partial) -> functools.partial:
    """Returns one partial for a partial of partials.

    `functools.partial` does this itself, unless the inner partial has attributes, which `jax.jit`
    sets.
    """
    while isinstance(inner := value.func, functools.partial):
        value = functools.partial(inner.func, *inner.args, *value.args, **{**inner.keywords, **value.keywords})
    return value


def bound(functions: tuple) -> Iterator[tuple[Any, str, Any]]:
    """Yields every keyword that is bound in nested partials, as (function, name, value).

    >>> [(name, value) for _, name, value in bound((functools.partial(np.add, dtype=functools.partial(int, base=2)),))]
    [('dtype', functools.partial(<class 'int'>, base=2)), ('base', 2)]
    """
    for value in functions:
        if isinstance(value, functools.partial):
            value = flattened(value)
            yield from ((value.func, *item) for item in value.keywords.items())
            yield from bound((value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, tuple | list):
            yield from bound(tuple(value))
        elif type(value) is dict:
            yield from bound(tuple(value.values()))


def combine(arrays: Sequence[Array], static: Static) -> tuple:
    """Rebuilds the functions of which `partition` made a `Static`, with these arrays."""
    supply = iter(arrays)
    return jax.tree.unflatten(static.tree, [next(supply) if leaf is _Hole else leaf for leaf in static.leaves])
