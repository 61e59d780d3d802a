"""Saves a model with its variables and labels as one file, without pickle, and loads it again.

The file is a zip archive of npy files and `description.json`, which names the model's class, its
fields and the functions among them. Only names of `jaxrec.models` and `jaxrec.papers` are looked
up, and only classes of models are called, so that a file from elsewhere runs no code of its own.
The comment of the archive is the SHA-256 of all bytes before it.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import operator
import os
import pathlib
import shutil
import sys
import types
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import models, papers
from jaxrec._version import __version__
from jaxrec.data import readers
from jaxrec.interactions import IdMap, Interactions
from jaxrec.typing import Model, Variables

FORMAT = 1
"""The version of the format. A change that older versions of jaxrec cannot read must raise it."""

_ROOTS = {"models": models, "papers": papers}
_DESCRIPTION = "description.json"
_SIDES = ("users", "items")
_MARK = b"sha256:"
_COMMENT = len(_MARK) + 64


class Saved(NamedTuple):
    """What `load` returns.

    Attributes:
        model: the model.
        variables: its variables.
        id_map: the labels of users and items, or None.
    """

    model: Model
    variables: Variables
    id_map: IdMap | None

    def __repr__(self) -> str:
        """Shows shapes in place of the arrays."""
        shapes = jax.tree.map(lambda x: f"{np.asarray(x).dtype}{list(np.shape(x))}", self.variables)
        labels = self.id_map and f"{len(self.id_map.users)} users x {len(self.id_map.items)} items"
        return f"Saved({self.model!r}, {shapes}, id_map={labels})"


def save(path: str | os.PathLike, model: Model | None, variables: Variables, id_map: IdMap | None = None) -> None:
    """Saves a model, its variables and its labels as one file, which `load` reads.

    The file is written under another name and then renamed, so that an error or a crash leaves an
    earlier file as it was. The same model, variables and labels give the same bytes.

    Args:
        path: the file to write; an existing one is replaced.
        model: a model of `jaxrec.models`. Functions among its fields must be jaxrec's too, or
            `functools.partial`s of them. None saves the variables alone, of a model of your own,
            and `load` then needs `model`.
        variables: the model's variables, as returned by `model.init` or by training.
        id_map: the labels of users and items, or None. A label that is a time with a time zone
            comes back with its offset from UTC, as an equal label.

    Raises:
        TypeError: if `model` is not a model; `variables` is a `State` or holds something other than
            arrays; a field of the model has a value that cannot be saved, such as a function of
            your own; or labels are neither strings, bytes, numbers, times nor UUIDs.
        ValueError: if the variables or the `id_map` do not fit the model.
        OSError: if the file cannot be written.

    >>> import tempfile
    >>> model = models.MF(2, 3, dim=2, score=models.cosine)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/mf.jaxrec", model, variables)
    ...     load(f"{folder}/mf.jaxrec").model == model
    True
    """
    _check(model, variables, id_map)
    arrays: list[np.ndarray] = []
    about = {
        "format": FORMAT,
        "jaxrec": __version__,
        "jax": jax.__version__,
        "model": _packed(model, arrays, type(model).__name__),
        "variables": _packed(variables, arrays, "variables"),
        "id_map": None if id_map is None else {side: _labels(getattr(id_map, side), arrays) for side in _SIDES},
    }
    path = _path(path).resolve()  # the file that a link points to is replaced, and the link stays
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}; create it")
    temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("w+b") as file:
            _write(file, about, arrays)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike, *, model: Model | None = None) -> Saved:
    """Loads what `save` has written. Nothing in the file is executed.

    Args:
        path: the file.
        model: the model of the variables, for a file that was saved without one; for another file,
            the model that you expect. It must have the settings that were saved.

    Returns:
        The model, its variables on JAX's default device, and the `IdMap` or None.

    Raises:
        TypeError: if `model` is a class or is not a model.
        ValueError: if the file is damaged, incomplete or not one of `save`; it was written in a
            later format, or names a class or a setting that this version of jaxrec lacks; `model`
            is missing, has other settings, or does not fit the variables; or there are 64-bit
            arrays and JAX has 32 bits.
        OSError: if the file cannot be read.
    """
    path = _path(path)
    with path.open("rb") as file:
        _check_intact(file, path)
        with zipfile.ZipFile(file) as archive:
            about = json.loads(archive.read(_DESCRIPTION))
            if about["format"] > FORMAT:
                raise ValueError(
                    f"{path} has format {about['format']}, written by jaxrec {about['jaxrec']}; this version reads up "
                    f"to {FORMAT}: update jaxrec"
                )
            arrays = _Arrays(archive, path)
            saved = _built(about["model"], arrays, about["jaxrec"])
            variables = _built(about["variables"], arrays, about["jaxrec"])
            sides = about["id_map"]
            id_map = None if sides is None else IdMap(*(_labels_of(sides[side], arrays) for side in _SIDES))
    if model is None and saved is None:
        raise ValueError(f"{path} was saved without a model; pass load(path, model=...)")
    if model is not None:
        _check_same(model, saved, path)
        _check(model, variables, id_map)
    return Saved(saved if model is None else model, variables, id_map)


def _path(path: str | os.PathLike) -> pathlib.Path:
    """Returns the absolute path of a file; `~` is the home directory."""
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise TypeError(f"path={path!r}; give the path of a file")
    return pathlib.Path(path).expanduser().absolute()


# ---------------------------------------------------------------------- checks


def _check(model: Model | None, variables: Variables, id_map: IdMap | None) -> None:
    """Raises an error if the model is not one, or the variables or the labels do not fit it."""
    if hasattr(variables, "variables"):
        raise TypeError(f"variables is a {type(variables).__name__}; pass its .variables")
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables is a {type(variables).__name__}; pass a model's variables, a mapping")
    if id_map is not None and not isinstance(id_map, IdMap):
        raise TypeError(f"id_map is a {type(id_map).__name__}; pass the IdMap of Interactions.from_labels, or None")
    if model is None:
        return
    if isinstance(model, type) or not hasattr(model, "apply"):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(f"model is {what}; give a model, such as the one that was trained")
    for side in _SIDES:
        n = getattr(model, f"n_{side}", None)
        if id_map is not None and n is not None and len(getattr(id_map, side)) != n:
            raise ValueError(
                f"id_map has {len(getattr(id_map, side))} {side}, but {type(model).__name__} has {n}; give the id_map "
                "of the data of this model"
            )
    _check_fits(model, variables)


def _check_fits(model: Any, variables: Variables) -> None:
    """Raises `ValueError` unless the variables have all parameters of the model, in their shapes.

    Other collections hold data, such as a graph, whose size the model does not know. Variables may
    have further parameters, which belong to the loss.
    """
    zero = jnp.zeros(1, jnp.int32)
    wanted = jax.eval_shape(lambda key: model.init(key, zero, zero), jax.random.key(0)).get("params", {})
    found = {jax.tree_util.keystr(path): x for path, x in _leaves(variables.get("params", {}))}
    for path, like in _leaves(wanted):
        name = jax.tree_util.keystr(path)
        shape = None if name not in found else list(np.shape(found[name]))
        if shape != list(like.shape):
            there = "is missing" if shape is None else f"has shape {shape}"
            raise ValueError(
                f"the variables do not fit {type(model).__name__}: the parameter {name} {there}, and the model's has "
                f"shape {list(like.shape)}; give the variables of this model"
            )


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _check_same(model: Model, saved: Model | None, path: pathlib.Path) -> None:
    """Raises `ValueError` if a model has other settings than the one that was saved."""
    if saved is None:
        return
    if type(model) is not type(saved):
        raise ValueError(f"{path} holds a {type(saved).__name__}, but model is a {type(model).__name__}; omit model")
    for field in _fields(saved):
        mine, theirs = getattr(model, field, None), getattr(saved, field)
        if not _alike(mine, theirs):
            raise ValueError(
                f"{path} holds a {type(saved).__name__} with {field}={theirs!r:.80} instead of {mine!r:.80}; give a "
                "model with the settings that were saved, or omit model"
            )


def _alike(mine: Any, theirs: Any) -> bool:
    """Returns whether two settings are saved alike."""
    kept: tuple[list, list] = ([], [])
    try:
        packed = [_packed(value, arrays, "") for value, arrays in zip((mine, theirs), kept)]
    except TypeError:  # a function of the caller's own, which no file holds
        return False
    return packed[0] == packed[1] and all(map(np.array_equal, *kept))


# ---------------------------------------------------------------------- the archive


def _write(file: IO[bytes], about: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> None:
    """Writes the archive, and its checksum at the end."""
    with zipfile.ZipFile(file, "w") as archive:
        for number, array in enumerate(arrays):
            # An entry without a date, so that the same contents give the same bytes.
            with archive.open(zipfile.ZipInfo(f"{number}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
        archive.writestr(zipfile.ZipInfo(_DESCRIPTION), json.dumps(about))
        archive.comment = _MARK + bytes(64)
    size = file.seek(0, os.SEEK_END)
    digest = _digest(file, size)
    file.seek(size - 64)
    file.write(digest)


def _digest(file: IO[bytes], size: int) -> bytes:
    """Returns the SHA-256 of an archive of `size` bytes without the digest at its end."""
    file.seek(0)
    found, left = hashlib.sha256(), size - 64
    while left > 0 and (part := file.read(min(left, 1 << 20))):
        found.update(part)
        left -= len(part)
    return found.hexdigest().encode()


def _check_intact(file: IO[bytes], path: pathlib.Path) -> None:
    """Raises `ValueError` unless the file has the bytes that `save` wrote."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _COMMENT, 0))
    comment = file.read()
    file.seek(0)
    if not comment.startswith(_MARK) or file.read(2) != b"PK":
        raise ValueError(f"{path} is incomplete, damaged, or not a file of jaxrec.save; save the model again")
    if _digest(file, size) != comment[len(_MARK) :]:
        raise ValueError(f"{path} is damaged: its checksum is not that of its contents; save the model again")
    file.seek(0)


class _Arrays:
    """The arrays of an archive by their numbers."""

    def __init__(self, archive: zipfile.ZipFile, path: pathlib.Path):
        self.archive, self.path = archive, path

    def __getitem__(self, number: int) -> np.ndarray:
        with self.archive.open(f"{number}.npy") as entry:
            return np.lib.format.read_array(entry, allow_pickle=False)


# ---------------------------------------------------------------------- values as JSON and arrays


def _packed(value: Any, arrays: list[np.ndarray], place: str) -> Any:
    """Returns a value as JSON, and appends its arrays; `place` names it in errors.

    Raises:
        TypeError: for a value that cannot be saved.
    """
    pack = functools.partial(_packed, arrays=arrays)
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, jax.Array | np.ndarray):
        return _packed_array(value, arrays, place)
    if isinstance(value, Interactions):
        columns = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"interactions": {name: pack(column, place=f"{place}.{name}") for name, column in columns.items()}}
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {"dict": {name: pack(each, place=f"{place}[{name!r}]") for name, each in value.items()}}
    if type(value) in (tuple, list):
        return {type(value).__name__: [pack(each, place=f"{place}[{i}]") for i, each in enumerate(value)]}
    if isinstance(value, functools.partial):
        parts = {"args": value.args, "keywords": value.keywords}
        parts = {name: pack(part, place=f"{place}.{name}") for name, part in parts.items()}
        return {"partial": pack(value.func, place=place), **parts}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {name: pack(getattr(value, name), place=f"{place}.{name}") for name in _fields(value)}
        return {"model": _name(type(value), place), "fields": named}
    if callable(value):
        return {"name": _name(value, place)}
    raise TypeError(f"{place} is a {type(value).__name__}, which cannot be saved; give numbers, strings or functions")


def _packed_array(value: Any, arrays: list[np.ndarray], place: str) -> dict[str, Any]:
    """Returns the number of an array and its dtype, and appends the array."""
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise TypeError(f"{place} is a typed key, which cannot be saved; remove it from the variables")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{place} is a masked array, whose mask cannot be saved; fill it")
    array = np.asarray(value)
    if array.dtype.hasobject or array.dtype.names:
        raise TypeError(f"{place} is an array of {array.dtype}, which cannot be saved; give an array of numbers")
    about: dict[str, Any] = {"array": len(arrays), "device": isinstance(value, jax.Array)}
    if array.dtype.kind == "V":  # npy files do not know bfloat16 and other small floats: store their bits
        about["dtype"] = array.dtype.name
        array = array.view(f"u{array.dtype.itemsize}")
    arrays.append(array)
    return about


def _fields(model: Any) -> list[str]:
    """Returns the names of the settings of a model."""
    return [field.name for field in dataclasses.fields(model) if field.init and field.name not in ("parent", "name")]


def _name(value: Any, place: str) -> str:
    """Returns the name by which `_named` finds a class or function of jaxrec, such as "models.cosine"."""
    module, name = str(getattr(value, "__module__", "")), str(getattr(value, "__qualname__", ""))
    for full in (f"models.{name}", f"{module.removeprefix('jaxrec.')}.{name}"):
        if module.startswith("jaxrec.") and _named(full) is value:
            return full
    raise TypeError(
        f"{place} is {name or repr(value)[:80]}, which is not a public class or function of jaxrec.models, so that a "
        "file cannot name it; save the variables alone, save(path, None, variables), and pass load(path, model=...)"
    )


def _named(name: str) -> Any:
    """Returns a public class or function of `jaxrec.models` or `jaxrec.papers`; None if there is none."""
    root, *parts = name.split(".")
    found = _ROOTS.get(root)
    for part in parts:
        if part.startswith("_") or not isinstance(found, types.ModuleType) or not found.__name__.startswith("jaxrec."):
            return None
        found = vars(found).get(part)
    return found if callable(found) and str(getattr(found, "__module__", "")).startswith("jaxrec.") else None


def _built(value: Any, arrays: _Arrays, version: str) -> Any:
    """Inverts `_packed`."""
    build = functools.partial(_built, arrays=arrays, version=version)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return _built_array(value, arrays)
    if "interactions" in value:
        return Interactions(**{name: build(each) for name, each in value["interactions"].items()})
    if "dict" in value:
        return {name: build(each) for name, each in value["dict"].items()}
    if "tuple" in value or "list" in value:
        each = [build(entry) for entry in next(iter(value.values()))]
        return tuple(each) if "tuple" in value else each
    if "partial" in value:
        return functools.partial(build(value["partial"]), *build(value["args"]), **build(value["keywords"]))
    name = value["name"] if "name" in value else value["model"]
    found = _named(name)
    if found is None or ("model" in value and not (isinstance(found, type) and dataclasses.is_dataclass(found))):
        raise ValueError(
            f"{arrays.path} names {name}, which this version of jaxrec does not have; it was written by {version}"
        )
    if "name" in value:
        return found
    try:
        return found(**{field: build(each) for field, each in value["fields"].items()})
    except TypeError as error:
        raise ValueError(
            f"{arrays.path} has settings that {name} does not take ({error}); it was written by jaxrec {version}"
        ) from error


def _built_array(value: Mapping[str, Any], arrays: _Arrays) -> Any:
    """Inverts `_packed_array`."""
    array = arrays[value["array"]]
    if "dtype" in value:
        array = array.view(jnp.dtype(value["dtype"]))
    if not value["device"]:
        return array
    found = jnp.asarray(array)
    if found.dtype != array.dtype:
        raise ValueError(
            f"{arrays.path} holds arrays of {array.dtype}, which JAX would round to {found.dtype}; call "
            "jax.config.update('jax_enable_x64', True) first"
        )
    return found


# ---------------------------------------------------------------------- labels


class _Kind(NamedTuple):
    """Labels that NumPy holds as objects, and how their text is written and read."""

    of: type
    write: Callable[[Any], str]
    read: Callable[[str], Any]


def _kinds() -> dict[str, _Kind]:
    """Returns the kinds of labels that have a text, by the names that files give them."""
    iso = operator.methodcaller("isoformat")
    kinds = {
        "strings": _Kind(str, str, str),
        "integers": _Kind(int, str, int),
        "uuids": _Kind(uuid.UUID, str, uuid.UUID),
        "dates": _Kind(datetime.date, iso, datetime.date.fromisoformat),
        "times": _Kind(datetime.datetime, iso, datetime.datetime.fromisoformat),
    }
    if "pandas" in sys.modules:  # without it, no label is a pandas.Timestamp
        timestamp = sys.modules["pandas"].Timestamp
        kinds["pandas times"] = _Kind(timestamp, iso, timestamp)
    return kinds


def _labels(labels: np.ndarray, arrays: list[np.ndarray]) -> dict[str, Any]:
    """Packs labels: numbers as they are, bytes joined, and others as their text."""
    if labels.dtype.kind != "O":
        arrays.append(labels)
        return {"kind": "array", "data": len(arrays) - 1}
    entries = labels.tolist()
    kind, write = "bytes", None
    if not all(type(label) is bytes for label in entries):
        found = ((name, kind.write) for name, kind in _kinds().items() if all(type(x) is kind.of for x in entries))
        kind, write = next(found, ("", None))
    if not kind:
        label = entries[0]
        raise TypeError(
            f"id_map has labels of the type {type(label).__name__}, such as {label!r:.80}, which cannot be saved; turn "
            f"labels into strings, such as str({label!r:.80}), before the IdMap is built"
        )
    encoded = [label if write is None else write(label).encode("utf-8", "surrogatepass") for label in entries]
    arrays.append(np.frombuffer(b"".join(encoded), np.uint8))
    arrays.append(np.cumsum([len(each) for each in encoded], dtype=np.int64))
    return {"kind": kind, "data": len(arrays) - 2, "ends": len(arrays) - 1}


def _labels_of(value: Mapping[str, Any], arrays: _Arrays) -> np.ndarray:
    """Inverts `_labels`."""
    data = arrays[value["data"]]
    if value["kind"] == "array":
        return data
    if value["kind"] == "pandas times":
        readers.optional("pandas")
    read = None if value["kind"] == "bytes" else _kinds()[value["kind"]].read
    joined, ends = data.tobytes(), arrays[value["ends"]].tolist()
    labels = np.empty(len(ends), object)
    for place, (start, end) in enumerate(zip([0, *ends], ends)):
        part = joined[start:end]
        labels[place] = part if read is None else read(part.decode("utf-8", "surrogatepass"))
    return labels
