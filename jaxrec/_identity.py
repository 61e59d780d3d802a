"""What a function is, with all that it reads: for compiled programs in one process, and for runs over several.

A jitted function is compiled once for each static argument, and a Python function counts as the same argument however
the globals and closures that it reads have changed. So the library compiles for `reads(function)` as well. A checkpoint
keeps `digest(function)`, which is the same in every process of one Python version.
"""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import hashlib
import pickle
import re
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrec.interactions import Interactions

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), enum.Enum, np.generic, np.dtype)
_LONG = 10_000  # entries from which a container is hashed whole, not entry by entry


def reads(*values: Any) -> tuple:
    """A hashable key of what functions read beside their arguments: globals, closures, defaults, attributes.

    It goes through partials, containers, dataclasses, user-defined classes, and functions that functions call.
    Functions of installed packages count by name, with their closures. NumPy arrays count by content; JAX arrays and
    `Interactions`, which do not change, by identity.

    >>> def scaled(by):
    ...     return lambda x: by[0] * x
    >>> by = [2.0]
    >>> function = scaled(by)
    >>> before = reads(function)
    >>> by[0] = 3.0
    >>> before == reads(function)
    False
    """
    return _Walk(_Same).tokens(values)


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that name a function with all that it reads, the same in every process.

    >>> from functools import partial
    >>> digest(partial(max, 1)) == digest(partial(max, 1)), digest(partial(max, 1)) == digest(partial(max, 2))
    (True, False)
    """
    return hashlib.sha256(repr(_Walk(_content).tokens((value,))).encode()).hexdigest()[:12]


class _Same:
    """Equal to itself alone. It keeps the object, so that its address is not used again."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _content(value: Any) -> Any:
    if isinstance(value, Interactions):
        return "interactions", value.fingerprint()
    if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            return "key", _bytes(np.asarray(jax.random.key_data(value)))
        return _bytes(np.asarray(value))
    return type(value).__qualname__, re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _bytes(array: np.ndarray) -> tuple:
    if array.dtype.hasobject:
        return "objects", array.shape, repr(array.tolist())
    return str(array.dtype), array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


class _Walk:
    """One pass over a value. Objects met before count by their number, so that cycles end.

    Args:
        leaf: the token of what has no parts to look at.
    """

    def __init__(self, leaf: Callable[[Any], Any]):
        self.leaf, self.met, self.kept = leaf, {}, []

    def tokens(self, values: Any) -> tuple:
        return tuple(map(self.token, values))

    def token(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return type(value).__qualname__, repr(value)
        if id(value) in self.met:
            return "again", self.met[id(value)]
        self.met[id(value)] = len(self.met)
        self.kept.append(value)  # or a later object could have its address
        for kind, tokens in _KINDS:
            if isinstance(value, kind):
                return tokens(self, value)
        if hasattr(value, "__wrapped__"):  # such as a jitted function
            return "wrapped", self.token(value.__wrapped__)
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value) if field.name != "parent"]
            return self.of_object(value, {name: getattr(value, name, None) for name in names})
        if isinstance(value, types.SimpleNamespace) or not _installed(type(value).__module__):
            return self.of_object(value, getattr(value, "__dict__", {}) or {"self": self.leaf(value)})
        return self.leaf(value)

    def of_object(self, value: Any, attributes: Mapping[str, Any]) -> tuple:
        return self.token(type(value)), self.of_mapping(attributes)

    def of_mapping(self, value: Mapping) -> tuple:
        if len(value) > _LONG:
            return self.of_long(value)
        return "mapping", tuple((repr(key), self.token(item)) for key, item in sorted(value.items(), key=_by_name))

    def of_sequence(self, value: Any) -> tuple:
        return self.of_long(value) if len(value) > _LONG else (type(value).__qualname__, *self.tokens(value))

    def of_set(self, value: Any) -> tuple:
        return "set", tuple(sorted(map(repr, value)))

    def of_long(self, value: Any) -> Any:
        try:
            return "long", len(value), hashlib.sha256(pickle.dumps(value)).hexdigest()
        except Exception:
            return self.leaf(value)

    def of_interactions(self, value: Interactions) -> Any:
        return self.leaf(value)

    def of_array(self, value: np.ndarray) -> tuple:
        return _bytes(value)

    def of_partial(self, value: functools.partial) -> tuple:
        return "partial", self.token(value.func), self.tokens(value.args), self.of_mapping(value.keywords)

    def of_method(self, value: types.MethodType) -> tuple:
        return "method", self.token(value.__func__), self.token(value.__self__)

    def of_module(self, value: types.ModuleType) -> tuple:
        return "module", value.__name__

    def of_class(self, value: type) -> tuple:
        name = "class", value.__module__, value.__qualname__
        if _installed(value.__module__):
            return name
        own = {key: item for key, item in vars(value).items() if not key.startswith("__") or callable(item)}
        own = {key: getattr(item, "__func__", getattr(item, "fget", item)) for key, item in own.items()}
        own = {key: item for key, item in own.items() if isinstance(item, (types.FunctionType, *_PLAIN, np.ndarray))}
        return *name, self.tokens(value.__bases__), self.of_mapping(own)

    def of_function(self, value: types.FunctionType) -> tuple:
        cells = self.tokens(_contents(cell) for cell in value.__closure__ or ())
        name = "function", value.__module__, value.__qualname__, cells
        wrapped = vars(value).get("__wrapped__")
        if wrapped is not None:
            name = *name, self.token(wrapped)
        if _installed(value.__globals__.get("__name__")):
            return name
        names, attributes = _named(value.__code__)
        found = {key: value.__globals__[key] for key in names if key in value.__globals__}
        for key, item in list(found.items()):
            if isinstance(item, types.ModuleType) and not _installed(item.__name__):
                found |= {f"{key}.{name}": vars(item)[name] for name in attributes if name in vars(item)}
        defaults = self.tokens((value.__defaults__, value.__kwdefaults__))
        return *name, _code(value.__code__), defaults, self.of_mapping(found)


_KINDS = (
    (Interactions, _Walk.of_interactions),
    (np.ndarray, _Walk.of_array),
    (functools.partial, _Walk.of_partial),
    (types.MethodType, _Walk.of_method),
    (types.FunctionType, _Walk.of_function),
    (type, _Walk.of_class),
    (types.ModuleType, _Walk.of_module),
    (Mapping, _Walk.of_mapping),
    ((list, tuple), _Walk.of_sequence),
    ((set, frozenset), _Walk.of_set),
)


def _by_name(item: tuple[Any, Any]) -> str:
    return repr(item[0])


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return "empty"


@functools.lru_cache(4096)
def _named(code: types.CodeType) -> tuple[frozenset, frozenset]:
    """Names of globals, and of attributes, that a function or one inside it looks up.

    A global that the function itself assigns, such as a counter, is its state and no input.
    """
    names, attributes, own = set(), set(), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes.add(instruction.argval)
        elif instruction.opname == "STORE_GLOBAL":
            own.add(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            names, attributes = (mine | its for mine, its in zip((names, attributes), _named(inner)))
    return frozenset(names - own), frozenset(attributes)


class _Code(NamedTuple):
    """A function's code without its place in a file."""

    instructions: str
    constants: tuple
    names: tuple


@functools.lru_cache(4096)
def _code(code: types.CodeType) -> _Code:
    def constant(value: Any) -> Any:
        if isinstance(value, types.CodeType):
            return _code(value)
        return tuple(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)

    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    names = *counts, *code.co_names, *code.co_varnames, *code.co_freevars
    return _Code(hashlib.sha256(code.co_code).hexdigest(), tuple(map(constant, code.co_consts)), names)


@functools.cache
def _installed(module: str | None) -> bool:
    """Whether a module comes with Python, with an installed package or with this one: its code does not change."""
    root = (module or "").partition(".")[0]
    if root in sys.stdlib_module_names or root in ("jaxrec", "builtins"):
        return True
    place = getattr(sys.modules.get(root), "__file__", None) or ""
    return any(part in ("site-packages", "dist-packages") for part in re.split(r"[/\\]", place))
