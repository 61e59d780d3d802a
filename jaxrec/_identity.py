"""What a function is, with all that it reads: for compiled programs in one process, and for runs over several.

A jitted function is compiled once for each static argument, and a Python function counts as the same argument however
the globals and closures that it reads have changed. So the library compiles for `reads(function)` as well. A checkpoint
keeps `digest(function)`, which is the same in every process of one Python version.

What is not seen: what an object of an installed package holds (other than optax, SciPy and pandas), names that a
function makes up while it runs (`getattr`, `globals()[name]`), and what lies on disk or in the environment.
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
_LONG = 10_000  # entries from which a container is hashed whole, not entry by entry
_DEEP = 200  # levels below which a value counts as a leaf
_OPEN = (
    "argparse",
    "ml_collections",
    "optax",
    "scipy",
    "types",
)  # packages whose objects are what their attributes are
_seen: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # user's function -> the values that it read last


def reads(*values: Any, forget: bool = True) -> tuple:
    """A hashable key of what functions read beside their arguments: globals, closures, defaults, attributes.

    It goes through partials, containers, dataclasses, user-defined classes, and functions that functions call.
    Functions of installed packages count by name, with their closures. NumPy arrays count by content; JAX arrays and
    `Interactions`, which do not change, by identity.

    JAX also keeps what it traced of functions inside, such as the body of a scan or a jitted helper. Where a function
    that was met before reads another value now, JAX is made to forget all that it traced.

    Args:
        values: functions, or what holds them.
        forget: whether to do so. False where a traced function has changed its own values, such as a list of shapes.

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
    changed = [function for function, now in walk.values.items() if _seen.get(function, now) != now]
    _seen.update(walk.values)
    if changed and forget:
        jax.clear_caches()
    return tokens


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
    return type(value).__qualname__, _text(value)


def _text(value: Any) -> str:
    """The repr without addresses, the same in every process."""
    try:
        return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    except Exception:  # of a class of the user's
        return type(value).__qualname__


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
        self.leaf, self.met, self.kept, self.depth = leaf, {}, [], 0
        self.values: dict[types.FunctionType, Any] | None = {}  # what each function of the user's reads

    def tokens(self, values: Any) -> tuple:
        return tuple(map(self.token, values))

    def token(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return type(value).__qualname__, repr(value)
        if id(value) in self.met:
            return "again", self.met[id(value)]
        self.met[id(value)] = len(self.met)
        self.kept.append(value)  # or a later object could have its address
        if self.depth > _DEEP:
            return self.leaf(value)
        self.depth += 1
        try:
            return self.of_any(value)
        finally:
            self.depth -= 1

    def of_any(self, value: Any) -> Any:
        for kind, tokens in _KINDS:
            if isinstance(value, kind):
                return tokens(self, value)
        kind, package = type(value), type(value).__module__.partition(".")[0]
        if package in ("jax", "jaxlib"):  # such as a jitted function, or one with a gradient of its own
            parts = (getattr(value, name, None) for name in ("__wrapped__", "fwd", "bwd", "jvp"))
            inside = [part for part in parts if callable(part)]
            return ("wrapped", *self.tokens(inside)) if inside else self.leaf(value)
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value) if field.name != "parent"]
            return self.of_object(value, {name: inspect.getattr_static(value, name, None) for name in names})
        if callable(getattr(kind, "to_numpy", None)):  # a column or a frame
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
        """The class of a container, whose methods count where they are the user's."""
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
        name = "function", value.__module__, value.__qualname__, cells
        if vars(value):  # what a decorator wrapped, and attributes
            name = *name, self.of_mapping(vars(value))
        if _installed(value.__globals__.get("__name__")):
            return name
        names, attributes, modules = _named(value.__code__)
        found = {key: value.__globals__[key] for key in names if key in value.__globals__}
        found |= {key: sys.modules[key] for key in modules if key in sys.modules}
        found = _through_modules(found, attributes)
        cells = {key: _contents(cell) for key, cell in zip(value.__code__.co_freevars, value.__closure__ or ())}
        kinds = (types.FunctionType, type, types.ModuleType)
        mine = {key: item for key, item in (cells | found).items() if not isinstance(item, kinds)}
        if self.leaf is _Same and self.values is not None:
            inside = _Walk(_Same)
            inside.values = None
            self.values[value] = inside.of_mapping(mine | {"": value.__defaults__})
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
    ((list, tuple, collections.deque), _Walk.of_sequence),
    ((bytearray, array.array), _Walk.of_buffer),
    ((set, frozenset), _Walk.of_set),
)


def _attributes(value: Any) -> dict[str, Any]:
    """What lies in an object itself, without asking its class."""
    try:
        return dict(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        return {}


def _function_of(member: Any) -> Any:
    """The function of a static method, class method or property; all else as it is."""
    if isinstance(member, staticmethod | classmethod):
        return member.__func__
    return member.fget if isinstance(member, property) else member


def _through_modules(found: dict[str, Any], attributes: frozenset) -> dict[str, Any]:
    """With the attributes of the user's modules among them, and of modules inside these, that code looks up."""
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
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return "empty"


@functools.lru_cache(4096)
def _named(code: types.CodeType) -> tuple[frozenset, frozenset, frozenset]:
    """Names of globals, of attributes, and of modules that a function or one inside it looks up.

    A global that the function itself assigns, such as a counter, is its state and no input.
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


def described(value: Any) -> str:
    """Names and values of nested partials in words, and the `digest`, which tells apart what looks the same so."""
    return f"{_words(value)} #{digest(value)}"


def _words(value: Any) -> str:
    if isinstance(value, functools.partial):
        keywords = [f"{name}={_words(item)}" for name, item in sorted(value.keywords.items())]
        return f"{_words(value.func)}({', '.join([*map(_words, value.args), *keywords])})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_words(item)}' for name, item in value.items())}}}"
    if isinstance(value, jax.Array | np.ndarray) and np.ndim(value):
        return f"{value.dtype}{list(np.shape(value))}"
    plain = re.sub(r" at 0x[0-9a-f]+|# attributes", "", repr(value))
    return getattr(value, "__qualname__", None) or " ".join(plain.split())
