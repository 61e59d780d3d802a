"""Checkpoints through orbax: written atomically, verified when read, enough to resume a run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import filelock
import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxrec._checksum import is_shared, of_array
from jaxrec._log import Log
from jaxrec._mesh import placed_like
from jaxrec._numerics import integer
from jaxrec._run import Progress
from jaxrec.interactions import DataWarning


class _Damaged(Exception):
    """A checkpoint cannot be read, or its contents differ from what was written."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where and how often `fit` saves checkpoints.

    Everything is stored with a checksum. If the newest checkpoint is damaged, the one before it is
    used and a `DataWarning` says so. Only one process at a time may use the
    folder.

    Attributes:
        directory: a folder for this run only, created if needed; `~` is your home directory.
        every: number of epochs between checkpoints. The last epoch is always saved.
        keep: how many of the latest checkpoints to keep.

    Raises:
        TypeError: if `directory` is not a path.
        ValueError: if `every` or `keep` is below 1, or `directory` is empty or a URL.
    """

    directory: str | os.PathLike
    every: int = 1
    keep: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.directory, str | os.PathLike):
            raise TypeError(f"directory={self.directory!r}; give the path of a folder")
        if not str(self.directory) or "://" in str(self.directory):
            raise ValueError(f"directory={str(self.directory)!r}; give the path of a local folder")
        for name in ("every", "keep"):
            object.__setattr__(self, name, integer(name, getattr(self, name)))

    @property
    def folder(self) -> pathlib.Path:
        """The absolute path of `directory`."""
        return pathlib.Path(self.directory).expanduser().absolute()

    @contextlib.contextmanager
    def reserved(self) -> Iterator[None]:
        """Locks the folder for this process.

        The operating system releases the lock when the process ends, even after a crash.

        Raises:
            ValueError: if another run uses the folder.
            OSError: if the folder cannot be created.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if jax.process_index() > 0:  # the processes of one run share the folder
            yield
            return
        try:
            held = filelock.FileLock(self.folder / ".lock").acquire(timeout=0)
        except filelock.Timeout:
            raise ValueError(
                f"{self.folder} is in use by another run; wait for it, stop it, or give each run its own folder"
            ) from None
        with held:
            yield

    def save(self, run: Progress, description: Mapping[str, Any]) -> None:
        """Writes the run under the number of its epoch.

        orbax renames the folder once it is complete.

        Args:
            run: what to save.
            description: JSON values that a later `restore` must match, such as the data's
                fingerprint.
        """
        import orbax.checkpoint as ocp

        # Without early stopping, or at a new best, the two states are the same: store them once.
        alike = all(a is b for a, b in zip(jax.tree.leaves(run.state), jax.tree.leaves(run.best), strict=True))
        arrays = _copied(_named((run.state,) if alike else (run.state, run.best)))
        facts = {
            "description": dict(description),
            "start": run.start,
            "stopping": dict(run.stopping),
            "records": run.log.records,
            "arrays": [(name, array.dtype.name, array.shape, of_array(array)) for name, array in arrays.items()],
        }
        text, step = json.dumps(facts), run.epoch
        sealed = {"facts": text, "checksum": _checksum(text.encode())}
        with self._manager() as manager:
            if step in manager.all_steps():  # a damaged checkpoint, which `restore` passed over
                manager.delete(step)
            numbered = dict(zip(map(str, range(len(arrays))), arrays.values()))
            contents = {"arrays": ocp.args.StandardSave(numbered), "facts": ocp.args.JsonSave(sealed)}
            manager.save(step, args=ocp.args.Composite(**contents), force=True)
            manager.wait_until_finished()

    def restore(self, run: Progress, description: Mapping[str, Any]) -> Progress:
        """Returns the latest intact run in this folder, or `run` itself if none was saved.

        The state of `run` must be the one with which the saved run started, or one that the saved
        run has reached since.

        Args:
            run: gives the structure, shapes, dtypes and shardings to expect, and the start to
                compare with.
            description: the values given to `save`.

        Warns:
            DataWarning: if the newest checkpoints are damaged and an older one is used.

        Raises:
            ValueError: if the checkpoint has another description, or belongs to another model or
                optimiser, or if all checkpoints are damaged.
        """
        damage = []
        with self._manager() as manager:
            for step in sorted(manager.all_steps(), reverse=True):
                try:
                    found = self._read(manager, step, run, description)
                except _Damaged as error:
                    damage.append(f"the checkpoint of epoch {step} in {self.folder} is damaged ({error})")
                    continue
                if damage:
                    warnings.warn(f"{'; '.join(damage)}; the run resumes from epoch {step}", DataWarning, stacklevel=4)
                return found
        if damage:
            raise ValueError(f"{'; '.join(damage)}, and none is intact; remove the folder to start the run again")
        return run

    def _read(self, manager: Any, step: int, run: Progress, description: Mapping[str, Any]) -> Progress:
        """Reads the checkpoint of epoch `step` and compares it with `run` and `description`."""
        facts = _facts(manager, step)
        differing = [
            f"{name}={facts['description'].get(name)!r} instead of {value!r}"
            for name, value in description.items()
            if facts["description"].get(name) != value
        ]
        if differing:
            raise ValueError(
                f"{self.folder} holds another run, with {'; '.join(differing)}; give each run its own folder"
            )
        epoch, checksum = run.start or (run.epoch, "")
        first, written = facts["start"]
        if epoch < first or epoch > step or (epoch == first and checksum != written):
            raise ValueError(
                f"{self.folder} holds the epochs {first} to {step} of a run that started with other variables than "
                f"this state of epoch {epoch}; pass the state that the run started with, or give each run "
                "its own folder"
            )
        like = _named((run.state, run.best))
        arrays = _arrays(manager, step, facts["arrays"], like)
        alike = not any(name.startswith("[1]") for name in arrays)
        expected = {name: array for name, array in like.items() if not (alike and name.startswith("[1]"))}
        for name in sorted(set(arrays) ^ set(expected)):
            raise ValueError(self._other(f"{name} is only in the {'checkpoint' if name in arrays else 'given state'}"))
        for name, array in expected.items():
            found = arrays[name]
            if (found.shape, found.dtype) != (array.shape, array.dtype):
                there, here = (f"{x.dtype}{list(x.shape)}" for x in (found, array))
                raise ValueError(self._other(f"{name} is {there} there, but {here} in the given state"))
        state = _from_named(arrays, run.state, "[0]")
        best = state if alike else _from_named(arrays, run.best, "[1]")
        return Progress(state, best, facts["stopping"], Log(tuple(facts["records"])), step, tuple(facts["start"]))

    def _other(self, detail: str) -> str:
        """Returns the error message for a checkpoint whose arrays do not fit the given state."""
        return f"{self.folder} holds a run of another model or optimiser ({detail}); give each run its own folder"

    def _manager(self) -> Any:
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=self.keep, enable_async_checkpointing=False)
        return ocp.CheckpointManager(self.folder, options=options)


def _facts(manager: Any, step: int) -> dict[str, Any]:
    """Reads what `save` stored as JSON, and verifies its checksum."""
    import orbax.checkpoint as ocp

    try:
        sealed = manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))["facts"]
        if _checksum(sealed["facts"].encode()) != sealed["checksum"]:
            raise _Damaged("the facts are not those written")
        return json.loads(sealed["facts"])
    except _Damaged:
        raise
    except Exception as error:  # damaged bytes make orbax, its stores and JSON raise many types
        raise _Damaged(_short(error)) from error


def _arrays(
    manager: Any, step: int, written: Sequence[tuple], like: Mapping[str, Any]
) -> dict[str, np.ndarray | jax.Array]:
    """Reads the arrays by name, and verifies their checksums.

    Args:
        manager: orbax's manager of the folder.
        step: the epoch.
        written: name, dtype, shape and checksum of each array, in the order of their numbers.
        like: the arrays of the given state. If one of them is sharded over several processes, each
            reads its own shards; other arrays are read to the host.
    """
    import orbax.checkpoint as ocp

    def form(name: str, dtype: str, shape: Sequence[int]) -> Any:
        given: Any = like.get(name)
        if is_shared(given) and given.shape == tuple(shape):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=given.sharding)
        return np.zeros(shape, dtype)

    forms = {str(number): form(*kind) for number, (*kind, _) in enumerate(written)}
    try:
        found = manager.restore(step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(forms)))["arrays"]
        arrays = {name: found[str(number)] for number, (name, *_) in enumerate(written)}
        arrays = {name: x if is_shared(x) else np.asarray(x) for name, x in arrays.items()}
        wrong = [name for name, *_, checksum in written if of_array(arrays[name]) != checksum]
    except Exception as error:
        raise _Damaged(_short(error)) from error
    if wrong:
        raise _Damaged(f"{wrong[0]} is not what was written")
    return arrays


def _short(error: Exception) -> str:
    """Returns the type and the first 200 characters of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _named(tree: Any) -> dict[str, Any]:
    """Returns the leaves by their paths; a typed key becomes its data."""

    def plain(leaf: Any) -> Any:
        return jax.random.key_data(leaf) if _is_key(leaf) else leaf if hasattr(leaf, "shape") else np.asarray(leaf)

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): plain(leaf) for path, leaf in leaves}


def _copied(arrays: Mapping[str, Any]) -> dict[str, np.ndarray | jax.Array]:
    """Copies arrays to the host, except those that are sharded over several processes.

    Of these, each process writes its own shards.
    """
    return {name: x if is_shared(x) else np.asarray(x) for name, x in arrays.items()}


def _from_named(arrays: Mapping[str, np.ndarray | jax.Array], like: Any, prefix: str) -> Any:
    """Inverts `_named`, with the structure, keys and shardings of `like`."""

    def leaf(path: Any, template: Any) -> Any:
        value = arrays[prefix + jax.tree_util.keystr(path)]
        if _is_key(template):
            return jax.random.wrap_key_data(jax.numpy.asarray(value), impl=jax.random.key_impl(template))
        # `placed_like` puts it on the mesh; `asarray` would first put all of it on one device.
        on_mesh = isinstance(getattr(template, "sharding", None), NamedSharding)
        return value if on_mesh else jax.numpy.asarray(value)

    return placed_like(jax.tree_util.tree_map_with_path(leaf, like), like)
