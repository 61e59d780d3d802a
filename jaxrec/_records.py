"""Records of runs: one line of JSON each in a file, which git can compare."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import platform
import subprocess
import warnings
import zlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np

from jaxrec.interactions import DataWarning

Record = dict[str, Any]


def read(path: str | os.PathLike) -> list[Record]:
    """The records in a file, in order; none if there is no file.

    Warns:
        DataWarning: for a last line that was not written to its end. It is left out.

    Raises:
        ValueError: for any other line that is not JSON.
    """
    path = pathlib.Path(path)
    found = []
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    for place, line in enumerate(lines, 1):
        if line:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                if place < len(lines):
                    raise ValueError(f"line {place} of {path} is not JSON ({error}); mend or remove it") from None
                warnings.warn(DataWarning(f"dropped 1 half-written line at the end of {path}"), stacklevel=2)
    return found


def append(path: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Adds one record to a file as a line. A half-written last line is removed first.

    Fields are sorted, so that a change shows as a line. What they hold, such as a grid, keeps its order.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
        TypeError: for values that JSON does not have.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(sorted(record.items())), ensure_ascii=False, allow_nan=False, default=_plain)
    line = text.encode() + b"\n"
    with path.open("a+b") as file:
        file.seek(0)
        whole, _, last = file.read().rpartition(b"\n")
        if last and not _is_json(last):
            file.truncate(len(whole) + bool(whole))
        elif last:
            line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _plain(value: Any) -> Any:
    """NumPy and JAX values as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r} cannot be written to a file; give numbers, strings, booleans or lists of these")


def written(value: Any) -> Any:
    """A value as it is read again."""
    return json.loads(json.dumps(value, default=_plain))


def packed(values: np.ndarray) -> str:
    """An array of numbers as a short text, to the precision of float32."""
    return base64.b64encode(zlib.compress(values.astype("<f4").tobytes())).decode()


def unpacked(text: str) -> np.ndarray:
    """The array that `packed` was given, as float64."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f4").astype(np.float64)


def commit(folder: str | os.PathLike) -> str | None:
    """The commit of the working directory; None outside a git repository.

    It ends in "-dirty" if a tracked file outside `folder` has changed.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.rstrip("\n")

    try:
        root = pathlib.Path(git("rev-parse", "--show-toplevel"))
        changed = git("diff", "HEAD", "--name-only", "-z").split("\0")
        inside = pathlib.Path(folder).resolve()
        dirty = any(name and not (root / name).is_relative_to(inside) for name in changed)
        return git("rev-parse", "--short", "HEAD") + "-dirty" * dirty
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str | None]:
    """Versions of what a run depends on."""
    try:
        ours = metadata.version("jaxrec")
    except metadata.PackageNotFoundError:
        ours = None
    return {"jax": jax.__version__, "jaxrec": ours, "python": platform.python_version()}
