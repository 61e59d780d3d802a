"""Saves the arrays of `Interactions` as npy files, and maps them into memory."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pathlib
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrec._pairs import DataWarning, offsets, slices

AT_ONCE = 1 << 24  # pairs that `write_union` merges at a time
COLUMNS = {
    "indptr": (np.int32, np.int64),
    "indices": (np.int32,),
    "weights": (np.float32,),
    "timestamps": (np.int32,),
    "shape": (np.int64,),
}
_ABSENT = np.zeros(0, bool)  # saved for a column that is None, so that a lost file is never taken for None


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder, which is renamed to `folder` when the block ends without an error.

    The temporary folder is hidden, next to `folder`. An error or Ctrl-C removes it. If the process
    is killed, it remains, but is never mistaken for the folder.

    Raises:
        TypeError: if `folder` is not a path.
        ValueError: if `folder` exists and is not an empty folder.
    """
    target = path_of(folder).resolve()  # a link to an empty folder is that folder
    if target == pathlib.Path.cwd():
        raise ValueError(f"{target} is the current folder, which cannot be replaced; give the path of a new folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists already; remove it first, or give the path of a new folder")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def path_of(folder: str | os.PathLike) -> pathlib.Path:
    """Returns the absolute path of a folder; `~` is the home directory."""
    if not isinstance(folder, str | os.PathLike) or not str(folder):
        raise TypeError(f"folder={folder!r}; give the path of a folder")
    return pathlib.Path(folder).expanduser().absolute()


class Column:
    """An npy file of one axis to which entries are appended. `close` writes their number.

    Args:
        path: the file to create.
        dtype: dtype of the entries.
    """

    def __init__(self, path: pathlib.Path, dtype: Any):
        self.file, self.dtype, self.n = path.open("wb"), np.dtype(dtype), 0
        self._write_header()

    def append(self, entries: np.ndarray) -> None:
        """Appends entries, without a copy if they have the dtype."""
        for part in slices(len(entries)):
            np.ascontiguousarray(entries[part], self.dtype).tofile(self.file)
        self.n += len(entries)

    def close(self) -> None:
        """Writes the header again, and the file to the disk."""
        self.file.seek(0)
        self._write_header()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def _write_header(self) -> None:
        # NumPy pads headers so that they have the same length for any number of entries.
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.n,)}
        np.lib.format.write_array_header_1_0(self.file, header)


def write(folder: pathlib.Path, columns: Mapping[str, np.ndarray | None]) -> None:
    """Writes the columns as `<name>.npy`."""
    for name, entries in columns.items():
        entries = _ABSENT if entries is None else np.asarray(entries)
        column = Column(folder / f"{name}.npy", entries.dtype)
        with contextlib.closing(column):
            column.append(entries)


def read(folder: str | os.PathLike) -> dict[str, Any]:
    """Maps the files of `write` into memory, read-only, by the names of `COLUMNS`.

    Raises:
        TypeError: if `folder` is not a path.
        ValueError: if the folder or a file is missing, or the files do not fit each other.
    """
    folder = path_of(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give a folder that Interactions.save has written")
    found: dict[str, Any] = {}
    for name, dtypes in COLUMNS.items():
        path = folder / f"{name}.npy"
        try:
            column = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise ValueError(f"{path} is missing or damaged ({error}); save the set again") from error
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is missing or damaged ({error}); save the set again") from error
        absent = name in ("weights", "timestamps") and column.dtype == bool and column.shape == (0,)
        if not absent and (column.dtype not in dtypes or column.ndim != 1):
            wanted = " or ".join(np.dtype(dtype).name for dtype in dtypes)
            raise ValueError(f"{path} holds {column.dtype}{list(column.shape)} instead of {wanted}; save the set again")
        found[name] = None if absent else column
    if said := _mismatch(found):
        raise ValueError(f"{folder} is damaged: {said}; save the set again")
    return found


def _mismatch(found: Mapping[str, Any]) -> str | None:
    """Says which files do not fit each other; the ids themselves are not read."""
    shape, indptr, n_pairs = found["shape"], found["indptr"], len(found["indices"])
    if len(shape) != 2 or (shape < 0).any():
        return f"the shape is {shape.tolist()}"
    if len(indptr) != shape[0] + 1:
        return f"indptr has {len(indptr)} entries for {shape[0]} users"
    if indptr[0] != 0 or (indptr[1:] < indptr[:-1]).any() or indptr[-1] != n_pairs:
        return f"indptr does not ascend from 0 to the number of pairs, {n_pairs}"
    for name in ("weights", "timestamps"):
        if found[name] is not None and len(found[name]) != n_pairs:
            return f"{name} has {len(found[name])} entries for {n_pairs} pairs"
    return None


def write_union(parts: Sequence[pathlib.Path], opened: Callable[[pathlib.Path], Any], folder: pathlib.Path) -> int:
    """Writes the union of saved parts to a folder, some users at a time; returns its number of pairs.

    Only one part is open at a time, since processes may open few files. `opened` is
    `Interactions.open`.
    """
    shape = opened(parts[0])
    ends = np.zeros(shape.n_users + 1, np.int64)
    for part in parts:
        ends += np.asarray(opened(part).indptr)
    degrees, start, n_users, n_items = [], 0, shape.n_users, shape.n_items
    del shape
    with contextlib.ExitStack() as files:
        columns: dict[str, Column] = {}
        while start < n_users:
            # At least one user, who may have more pairs.
            stop = max(int(np.searchsorted(ends, ends[start] + AT_ONCE, side="right")) - 1, start + 1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)  # `from_parts` warns of all duplicates
                first, *others = (_span(opened(part), start, stop) for part in parts)
                found = first.union(*others)
            degrees.append(np.diff(found.indptr))
            for name in ("indices", "weights", "timestamps"):
                if (entries := getattr(found, name)) is not None:
                    if name not in columns:
                        columns[name] = Column(folder / f"{name}.npy", entries.dtype)
                        files.enter_context(contextlib.closing(columns[name]))
                    columns[name].append(entries)
            start = stop
    indptr = offsets(np.r_[0, np.cumsum(np.concatenate(degrees), dtype=np.int64)])
    absent = dict.fromkeys({"weights", "timestamps"} - columns.keys())
    write(folder, {"indptr": indptr, "shape": np.array([n_users, n_items], np.int64), **absent})
    return int(indptr[-1])


def _span(matrix: Any, start: int, stop: int) -> Any:
    """Returns a copy of the rows of the users start .. stop-1 of `Interactions`."""
    indptr = np.asarray(matrix.indptr)[start : stop + 1]
    kept = slice(int(indptr[0]), int(indptr[-1]))
    columns = {name: getattr(matrix, name) for name in ("indices", "weights", "timestamps")}
    columns = {name: None if column is None else np.array(column[kept]) for name, column in columns.items()}
    return dataclasses.replace(matrix, indptr=offsets(indptr - indptr[0]), n_users=stop - start, **columns)
