"""Identifies functions and the values that they read, in one process and across several.

jit compiles a function once for each static argument. It compares Python functions by identity,
even if the globals and closures that they read have changed. The library therefore also caches
compiled programs by `reads(function)`. A checkpoint stores `digest(function)`, which is the same in
every process of one Python version.

Some inputs are not detected: the contents of objects of installed packages (except those in
`_OPEN`), names that a function looks up at run time (`getattr`, `globals()[name]`), and files and
environment variables.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import pickle
import re
import sys
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrec.interactions import Interactions

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), enum.Enum, np.generic, np.dtype)
_LONG = 10_000  # a container with more entries is hashed as a whole
_DEEP = 200  # a value nested deeper than this counts as a leaf
# Packages whose objects are identified by their attributes.
_OPEN = (
    "argparse",
    "ml_collections",
    "optax",
    "scipy",
    "types",
)
_seen: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # user's function -> the values that it read last


def reads(*values: Any, forget: bool = True) -> tuple:
    """Returns a hashable key of what functions read besides their arguments.

    That is: globals, closures, defaults and attributes. The search covers partials, containers,
    dataclasses, user-defined classes, and functions that the functions call. A function of an
    installed package is identified by its name and its closure, NumPy arrays by content, and JAX
    arrays and `Interactions`, which are immutable, by identity.

    JAX also caches traces of inner functions, such as the body of a scan or a jitted helper. If a
    function that was seen before now reads another value, JAX's caches are cleared.

    Args:
        values: functions, or objects that contain them.
        forget: whether to clear JAX's caches. Pass False if a traced function changes its own
            values while it is traced, such as a list of shapes.

    >>> def scaled(by):
    ...     return lambda x: by[0] * x
    >>> by = [2.0]
    >>> function = scaled(by)
    >>> before = reads(function)
    >>> by[0] = 3.0
    >>> before == reads(function)
    False
    """
    walk = _Walk(_Same)
    tokens = walk.tokens(values)
    found = walk.values or {}
    changed = [function for function, now in found.items() if _seen.get(function, now) != now]
    _seen.update(found)
    if changed and forget:
        jax.clear_caches()
    return tokens


def digest(value: Any) -> str:
    """Returns 12 hexadecimal digits that identify a function with all that it reads.

    They are the same in every process.

    >>> from functools import partial
    >>> digest(partial(max, 1)) == digest(partial(max, 1)), digest(partial(max, 1)) == digest(partial(max, 2))
    (True, False)
    """
    return hashlib.sha256(repr(_Walk(_content).tokens((value,))).encode()).hexdigest()[:12]


class _Same:
    """A token that compares by identity.

    It keeps the object alive, so that its address is not reused.
    """

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _content(value: Any) -> Any:
    """Returns a token of a leaf's content, the same in every process."""
    if isinstance(value, Interactions):
        return "interactions", value.fingerprint()
    if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            return "key", _bytes(np.asarray(jax.random.key_data(value)))
        return _bytes(np.asarray(value))
    return type(value).__qualname__, _text(value)


def _text(value: Any) -> str:
    """Returns the repr without memory addresses, the same in every process."""
    try:
        return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    except Exception:  # the __repr__ of a user's class may raise anything
        return type(value).__qualname__


def _bytes(array: np.ndarray) -> tuple:
    """Returns a token of an array's dtype, shape and content."""
    if array.dtype.hasobject:
        return "objects", array.shape, repr(array.tolist())
    return str(array.dtype), array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


class _Walk:
    """One pass over nested values; it turns each into a hashable token.

    An object that occurs again is represented by its number, so that cycles end.

    Args:
        leaf: returns the token of a value that has no parts to look into.
    """

    def __init__(self, leaf: Callable[[Any], Any]):
        self.leaf, self.depth = leaf, 0
        self.met: dict[int, int] = {}  # id -> number of each object met
        self.kept: list[Any] = []
        self.values: dict[types.FunctionType, Any] | None = {}  # what each user-defined function reads

    def tokens(self, values: Any) -> tuple:
        """Returns the tokens of several values."""
        return tuple(map(self.token, values))

    def token(self, value: Any) -> Any:
        """Returns the token of a value."""
        if isinstance(value, _PLAIN):
            return type(value).__qualname__, repr(value)
        if id(value) in self.met:
            return "again", self.met[id(value)]
        self.met[id(value)] = len(self.met)
        self.kept.append(value)  # keeps it alive, so that its id is not reused
        if self.depth > _DEEP:
            return self.leaf(value)
        self.depth += 1
        try:
            return self.of_any(value)
        finally:
            self.depth -= 1

    def of_any(self, value: Any) -> Any:
        """Returns the token of a value that was not met before, by its type."""
        for kind, tokens in _KINDS:
            if isinstance(value, kind):
                return tokens(self, value)
        kind, package = type(value), type(value).__module__.partition(".")[0]
        if package in ("jax", "jaxlib"):  # such as a jitted function, or one with a custom gradient
            parts = (getattr(value, name, None) for name in ("__wrapped__", "fwd", "bwd", "jvp"))
            inside = [part for part in parts if callable(part)]
            return ("wrapped", *self.tokens(inside)) if inside else self.leaf(value)
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value) if field.name != "parent"]
            return self.of_object(value, {name: inspect.getattr_static(value, name, None) for name in names})
        if callable(getattr(kind, "to_numpy", None)):  # a column or a DataFrame
            return kind.__qualname__, _text(getattr(value, "columns", "")), _bytes(np.asarray(value.to_numpy()))
        if package in _OPEN or not _installed(kind.__module__):
            slots = [name for each in kind.__mro__ for name in vars(each).get("__slots__", ()) if hasattr(value, name)]
            return self.of_object(value, {name: getattr(value, name) for name in slots} | _attributes(value))
        if "__wrapped__" in _attributes(value):
            return "wrapped", self.token(_attributes(value)["__wrapped__"])
        return self.leaf(value)

    def of_object(self, value: Any, attributes: Mapping[str, Any]) -> tuple:
        return self.token(type(value)), self.of_mapping(attributes)

    def of_kind(self, value: Any) -> Any:
        """Returns the class of a container; for a user-defined class this includes its methods."""
        return type(value).__qualname__ if _installed(type(value).__module__) else self.token(type(value))

    def of_mapping(self, value: Mapping) -> tuple:
        if len(value) > _LONG:
            return self.of_long(value)
        items = sorted(value.items(), key=lambda item: _text(item[0]))
        return self.of_kind(value), tuple((_text(key), self.token(item)) for key, item in items)

    def of_sequence(self, value: Any) -> tuple:
        return self.of_long(value) if len(value) > _LONG else (self.of_kind(value), *self.tokens(value))

    def of_set(self, value: Any) -> tuple:
        return "set", tuple(sorted(map(_text, value)))

    def of_buffer(self, value: Any) -> tuple:
        return type(value).__qualname__, bytes(value)

    def of_long(self, value: Any) -> Any:
        """Returns the token of a long container: a hash of its pickle."""
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
        if _installed(value.__name__):
            return "module", value.__name__
        kinds = (*_PLAIN, np.ndarray, jax.Array, list, tuple, dict)
        own = {key: item for key, item in vars(value).items() if isinstance(item, kinds) and not key.startswith("__")}
        return "module", value.__name__, self.of_mapping(own)

    def of_class(self, value: type) -> tuple:
        name = "class", value.__module__, value.__qualname__
        if _installed(value.__module__):
            return name
        own = {key: item for key, item in vars(value).items() if not key.startswith("__") or callable(item)}
        own = {key: _function_of(item) for key, item in own.items()}
        own = {
            key: item
            for key, item in own.items()
            if isinstance(item, types.FunctionType) or not hasattr(type(item), "__get__")
        }
        return *name, self.tokens(value.__bases__), self.of_mapping(own)

    def of_function(self, value: types.FunctionType) -> tuple:
        cells = self.tokens(_contents(cell) for cell in value.__closure__ or ())
        name: tuple[Any, ...] = ("function", value.__module__, value.__qualname__, cells)
        if vars(value):  # attributes, such as the function that a decorator wrapped
            name = *name, self.of_mapping(vars(value))
        if _installed(value.__globals__.get("__name__")):
            return name
        names, attributes, modules = _named(value.__code__)
        found = {key: value.__globals__[key] for key in names if key in value.__globals__}
        found |= {key: sys.modules[key] for key in modules if key in sys.modules}
        found = _through_modules(found, attributes)
        inside_cells = {key: _contents(cell) for key, cell in zip(value.__code__.co_freevars, value.__closure__ or ())}
        # Only values are compared here: functions that this one calls have their own entries.
        kinds = (types.FunctionType, type, types.ModuleType)
        mine = {key: item for key, item in (inside_cells | found).items() if not isinstance(item, kinds)}
        if self.leaf is _Same and self.values is not None:
            inside = _Walk(_Same)
            inside.values = None
            self.values[value] = inside.of_mapping(mine | {"": value.__defaults__})
        defaults = self.tokens((value.__defaults__, value.__kwdefaults__))
        return *name, _code(value.__code__), defaults, self.of_mapping(found)


_KINDS: tuple[tuple[Any, Callable[[_Walk, Any], Any]], ...] = (
    (Interactions, _Walk.of_interactions),
    (np.ndarray, _Walk.of_array),
    (functools.partial, _Walk.of_partial),
    (types.MethodType, _Walk.of_method),
    (types.FunctionType, _Walk.of_function),
    (type, _Walk.of_class),
    (types.ModuleType, _Walk.of_module),
    (Mapping, _Walk.of_mapping),
    ((list, tuple, collections.deque), _Walk.of_sequence),
    ((bytearray, array.array), _Walk.of_buffer),
    ((set, frozenset), _Walk.of_set),
)


def _attributes(value: Any) -> dict[str, Any]:
    """Returns the attributes of the instance itself, without those of its class."""
    try:
        return dict(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        return {}


def _function_of(member: Any) -> Any:
    """Returns the function of a static method, class method or property; else the member itself."""
    if isinstance(member, staticmethod | classmethod):
        return member.__func__
    return member.fget if isinstance(member, property) else member


def _through_modules(found: dict[str, Any], attributes: frozenset) -> dict[str, Any]:
    """Replaces user modules by those of their attributes that the code looks up.

    Modules inside these modules are followed too, up to three levels.
    """
    modules = {key: item for key, item in found.items() if isinstance(item, types.ModuleType)}
    found = {key: item for key, item in found.items() if key not in modules or _installed(item.__name__)}
    for _ in range(3):
        modules = {key: item for key, item in modules.items() if not _installed(item.__name__)}
        inside = {
            f"{key}.{name}": vars(item)[name]
            for key, item in modules.items()
            for name in attributes
            if name in vars(item)
        }
        modules = {key: item for key, item in inside.items() if isinstance(item, types.ModuleType)}
        found |= {key: item for key, item in inside.items() if key not in modules}
    return found


def _contents(cell: Any) -> Any:
    """Returns the contents of a closure's cell."""
    try:
        return cell.cell_contents
    except ValueError:  # the variable is not assigned yet
        return "empty"


@functools.lru_cache(4096)
def _named(code: types.CodeType) -> tuple[frozenset, frozenset, frozenset]:
    """Returns the names of globals, attributes and modules that a function or an inner one uses.

    A global that the function itself assigns, such as a counter, is its state and not an input.
    """
    names, attributes, modules, own = set(), set(), set(), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            attributes.add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            modules.add(instruction.argval)
        elif instruction.opname == "STORE_GLOBAL":
            own.add(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            names, attributes, modules = (mine | its for mine, its in zip((names, attributes, modules), _named(inner)))
    return frozenset(names - own), frozenset(attributes), frozenset(modules)


class _Code(NamedTuple):
    """The code of a function without its position in a file."""

    instructions: str
    constants: tuple
    names: tuple


@functools.lru_cache(4096)
def _code(code: types.CodeType) -> _Code:
    """Returns the `_Code` of a code object and those nested in it."""

    def constant(value: Any) -> Any:
        if isinstance(value, types.CodeType):
            return _code(value)
        return tuple(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)

    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    names = *counts, *code.co_names, *code.co_varnames, *code.co_freevars
    return _Code(hashlib.sha256(code.co_code).hexdigest(), tuple(map(constant, code.co_consts)), names)


@functools.cache
def _installed(module: str | None) -> bool:
    """Returns whether a module is of Python, an installed package or jaxrec: its code is fixed."""
    root = (module or "").partition(".")[0]
    if root in sys.stdlib_module_names or root in ("jaxrec", "builtins"):
        return True
    place = getattr(sys.modules.get(root), "__file__", None) or ""
    return any(part in ("site-packages", "dist-packages") for part in re.split(r"[/\\]", place))


def described(value: Any) -> str:
    """Returns nested partials in words with their names and values, followed by the `digest`.

    The digest distinguishes functions that have the same words.
    """
    return f"{_words(value)} #{digest(value)}"


def _words(value: Any) -> str:
    """Returns the words of `described`."""
    if isinstance(value, functools.partial):
        keywords = [f"{name}={_words(item)}" for name, item in sorted(value.keywords.items())]
        return f"{_words(value.func)}({', '.join([*map(_words, value.args), *keywords])})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_words(item)}' for name, item in value.items())}}}"
    if isinstance(value, jax.Array | np.ndarray) and np.ndim(value):
        return f"{value.dtype}{list(np.shape(value))}"
    plain = re.sub(r" at 0x[0-9a-f]+|# attributes", "", repr(value))
    return getattr(value, "__qualname__", None) or " ".join(plain.split())
