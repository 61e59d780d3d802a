"""Checkpoints through orbax: written whole or not at all, and enough to go on bit for bit."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrec.history import History


class Progress(NamedTuple):
    """A run between two epochs: its state, the best one, what early stopping has seen, and the history."""

    state: Any
    best: Any
    stopping: Mapping[str, float]
    history: History


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where and how often `fit` saves.

    Attributes:
        directory: a folder of this run alone; made if needed.
        every: save after every so many epochs (and after the last).
        keep: how many of the latest to keep.

    Raises:
        ValueError: for numbers below 1.
    """

    directory: str | os.PathLike
    every: int = 1
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give 1 or more")

    def save(self, run: Progress, description: Mapping[str, Any]) -> None:
        """Writes the run under the number of its epoch; orbax renames a finished folder into place.

        Args:
            run: what to save.
            description: JSON values that a later `restore` must match, such as the data's fingerprint.
        """
        import orbax.checkpoint as ocp

        facts = {"description": dict(description), "stopping": dict(run.stopping), "records": run.history.records}
        with self._manager() as manager:
            arrays = ocp.args.StandardSave(_plain((run.state, run.best)))
            manager.save(int(run.state.epoch), args=ocp.args.Composite(arrays=arrays, facts=ocp.args.JsonSave(facts)))
            manager.wait_until_finished()

    def restore(self, run: Progress, description: Mapping[str, Any]) -> Progress:
        """The latest saved run of this folder, or `run` itself where there is none.

        Args:
            run: gives the structure, shapes and dtypes to expect.
            description: as given to `save`.

        Raises:
            ValueError: for a checkpoint with another description, or of another model or optimiser.
            OSError: where the folder cannot be made, before anything is trained.
        """
        import orbax.checkpoint as ocp

        pathlib.Path(self.directory).mkdir(parents=True, exist_ok=True)
        with self._manager() as manager:
            step = manager.latest_step()
            if step is None:
                return run
            facts = manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))["facts"]
            for name, value in description.items():
                found = facts["description"].get(name)
                if found != value:
                    raise ValueError(
                        f"{self.directory} holds a run with {name}={found!r}, this one has {value!r}; "
                        "give each run a folder of its own"
                    )
            like = _plain((run.state, run.best))
            try:
                args = ocp.args.Composite(arrays=ocp.args.StandardRestore(like))
                arrays = manager.restore(step, args=args)["arrays"]
                _check_same_form(like, arrays)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.directory} holds a run of another model or optimiser; give each run a folder of its own "
                    f"({str(error)[:300]})"
                ) from error
        state, best = _keyed(arrays, (run.state, run.best))
        return Progress(state, best, facts["stopping"], History(tuple(facts["records"])))

    def _manager(self) -> Any:
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=self.keep, enable_async_checkpointing=False)
        return ocp.CheckpointManager(pathlib.Path(self.directory).absolute(), options=options)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(tree: Any) -> Any:
    """The tree with typed keys as their data, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf), tree)


def _keyed(tree: Any, like: Any) -> Any:
    """The inverse of `_plain`."""

    def leaf(value, template):
        if _is_key(template):
            return jax.random.wrap_key_data(value, impl=jax.random.key_impl(template))
        return jax.numpy.asarray(value)

    return jax.tree.map(leaf, tree, like)


def _check_same_form(like: Any, found: Any) -> None:
    """Raises `ValueError` where shapes or dtypes differ."""
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(like)[0], jax.tree.leaves(found), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"{name} is {b.dtype}{list(b.shape)} there and {a.dtype}{list(a.shape)} here")
