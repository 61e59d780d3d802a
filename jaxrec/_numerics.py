"""Shared rules for integers, numbers and ids, and for the precision of sums."""

from __future__ import annotations

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.typing import Array, ArrayLike


def as_integer(value: Any) -> int | None:
    """Returns the Python int of anything that `operator.index` accepts, else None.

    These are int, NumPy integers and JAX integers. A traced integer gives None, because its value
    is not known.

    >>> as_integer(np.int64(3)), as_integer(3.0), as_integer("3")
    (3, None, None)
    """
    try:
        return operator.index(value)
    except TypeError:
        return None


def integer(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """Returns an argument as a Python int within bounds.

    Args:
        name: name of the argument, for errors.
        value: anything that `as_integer` accepts.
        least: smallest allowed value.
        most: largest allowed value, or None.

    Raises:
        TypeError: for a traced integer, whose value is not known.
        ValueError: for anything but an integer from `least` to `most`.

    >>> integer("dim", jnp.int32(8))
    8
    >>> integer("dim", 8.0)
    Traceback (most recent call last):
    ValueError: dim=8.0; give an integer of 1 or more
    """
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} is traced, but must be known while tracing; bind it with functools.partial instead")
    found = as_integer(value)
    if found is None or found < least or (most is not None and found > most):
        bounds = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}={value!r}; give an integer {bounds}")
    return found


def number(name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf) -> Any:
    """Returns an argument unchanged after checking that it is finite and within bounds.

    A traced number is not checked.

    Args:
        name: name of the argument, for errors.
        value: a Python, NumPy or JAX number, or an array of numbers, all of which must be within
            the bounds.
        least: smallest allowed value.
        above: bound that the value must exceed.
        most: largest allowed value.

    Raises:
        ValueError: for anything but finite numbers within the bounds.

    >>> number("temperature", jnp.float32(-1), above=0)
    Traceback (most recent call last):
    ValueError: temperature=-1.0; give a finite number above 0
    """
    if isinstance(value, jax.core.Tracer):
        return value
    try:
        known = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        known = np.array(math.nan)
    if not (np.isfinite(known) & (known >= least) & (known <= most) & (known > above)).all():
        bound = f" above {above:g}" if above > -math.inf else f" of {least:g} or more" if least > -math.inf else ""
        bound = f" from {least:g} to {most:g}" if most < math.inf else bound
        raise ValueError(f"{name}={value}; give a finite number{bound}")
    return value


def powers(name: str, power: Any, base: np.ndarray) -> np.ndarray:
    """Returns base ** power in float64, for a base of 1 or more.

    Args:
        name: name of the power, for errors.
        power: a number.
        base: numbers [n], such as degrees.

    Raises:
        ValueError: if the power is not finite, or one of its powers does not fit float32.

    >>> powers("scale", -0.5, np.array([1.0, 4.0])).tolist()
    [1.0, 0.5]
    """
    power, base = float(number(name, power)), np.asarray(base, np.float64)
    with np.errstate(over="ignore", under="ignore"):  # reported below
        found = base**power
    if not fits(found):
        raise ValueError(
            f"{name}={power}, but powers of up to {base.max():g} then do not fit float32; give a number nearer to 0"
        )
    return found


def fits(values: np.ndarray) -> bool:
    """Returns whether float32 holds positive numbers, other than as 0, infinity or a denormal number."""
    info = np.finfo(np.float32)
    return bool(((values >= info.tiny) & (values <= info.max)).all())


def accumulated(x: Array) -> jax.Array:
    """Converts floats of fewer than 32 bits to float32, for sums and exponentials.

    Other arrays are returned as they are.

    >>> accumulated(jnp.ones(2, jnp.bfloat16)).dtype.name, accumulated(jnp.ones(2, jnp.int32)).dtype.name
    ('float32', 'int32')
    """
    x = jnp.asarray(x)
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32
    return x.astype(jnp.float32) if narrow else x


def namespace(*arrays: Any) -> Any:
    """Returns `jax.numpy` if one of the arrays is JAX's or traced, else `numpy`.

    What NumPy computes needs no compilation, which takes longer than most metrics.
    """
    return jnp if any(isinstance(x, jax.Array) for x in arrays) else np


def as_ids(ids: ArrayLike) -> jax.Array:
    """Returns ids as int32; ids that do not fit become the nearest int32, which is not a valid id.

    So they never wrap around to a valid id.

    >>> import numpy as np
    >>> as_ids(np.array([3, 2**32 + 1, -(2**40)])).tolist()
    [3, 2147483647, -2147483648]
    """
    return jnp.asarray(_held(ids if isinstance(ids, jax.Array) else np.asarray(ids)), jnp.int32)


def as_host_ids(ids: ArrayLike) -> np.ndarray:
    """Does the work of `as_ids` with NumPy, also while JAX traces."""
    return _held(np.asarray(ids)).astype(np.int32)


def listed(items: ArrayLike, n_items: int) -> Array:
    """Returns ids of recommended items as int32; -1 is padding.

    Raises:
        ValueError: for an id below -1, or of `n_items` or more. Under `jit`, an id below -1 becomes
            one that is too large, which does not wrap around.
    """
    items = as_host_ids(items) if namespace(items) is np else as_ids(items)
    if isinstance(items, jax.core.Tracer):
        return jnp.where(items < -1, np.iinfo(np.int32).max, items)
    for worst in (items.max(), items.min()) if items.size else ():
        if not -1 <= worst < n_items:
            raise ValueError(
                f"items has id {worst}, but there are {n_items} items; give ids of 0 .. {n_items - 1}, and -1 as "
                "padding"
            )
    return items


def _held(ids: Array) -> jax.Array:
    """Clips ids to those that int32 holds."""
    given, held = np.iinfo(ids.dtype), np.iinfo(np.int32)
    if given.max > held.max:  # a cast, or JAX without x64, would drop the upper bits
        ids = ids.clip(max(given.min, held.min), held.max)
    return ids


def power_of_two(n: int) -> int:
    """Rounds a positive size up to a power of two, so that few programs are compiled.

    >>> power_of_two(1), power_of_two(20)
    (1, 32)
    """
    return 1 << (int(n) - 1).bit_length()
