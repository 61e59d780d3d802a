"""Records of runs in a file: one line of JSON for each run, so that git can compare versions."""

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
from typing import Any

import jax
import numpy as np

from jaxrec._version import __version__
from jaxrec.interactions import DataWarning

Record = dict[str, Any]


def read(path: str | os.PathLike) -> list[Record]:
    """Returns the records in a file, in order; an empty list if the file does not exist.

    Warns:
        DataWarning: if the last line is incomplete; it is dropped.

    Raises:
        ValueError: if any other line is not JSON.
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
                    raise ValueError(f"line {place} of {path} is not JSON ({error}); repair or remove it") from None
                warnings.warn(DataWarning(f"dropped 1 half-written line at the end of {path}"), stacklevel=2)
    return found


def append(path: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Appends a record to a file, as one line; an incomplete last line is removed first.

    The fields of the record are sorted. Mappings inside it, such as a grid, keep their order.

    Raises:
        ValueError: if the record contains NaN or infinity, which JSON does not have.
        TypeError: if the record contains another value that JSON cannot represent.
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
        elif last:  # a complete record without its newline
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
    """Converts NumPy and JAX values to Python values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r} cannot be written to a file; give numbers, strings, booleans or lists of these")


def written(value: Any) -> Any:
    """Returns a value as it will be read from the file: tuples become lists, arrays too."""
    return json.loads(json.dumps(value, default=_plain))


def packed(values: np.ndarray) -> str:
    """Encodes an array of numbers as a short text, with the precision of float32."""
    return base64.b64encode(zlib.compress(values.astype("<f4").tobytes())).decode()


def unpacked(text: str) -> np.ndarray:
    """Decodes the text of `packed` to an array, in float64."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f4").astype(np.float64)


def commit(folder: str | os.PathLike) -> str | None:
    """Returns the commit of the working directory; None outside a git repository.

    It ends in "-dirty" if a tracked file outside `folder` has uncommitted changes.
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


def versions() -> dict[str, str]:
    """Returns the versions of jax, jaxrec and Python."""
    return {"jax": jax.__version__, "jaxrec": __version__, "python": platform.python_version()}
