"""The epoch loop, with log, validation, early stopping, checkpoints and progress bar."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import pathlib
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import jax
from tqdm import tqdm

from jaxrec._checksum import checksum
from jaxrec._log import DivergenceError, EarlyStopping, Interrupted, Log, check_validate, extended
from jaxrec._numerics import integer
from jaxrec._partials import check_function
from jaxrec._platform import warn_of_slow_sums
from jaxrec.typing import Validate, Variables


class Progress(NamedTuple):
    """The state of a run between two epochs.

    Attributes:
        state: the state after the last epoch.
        best: the best state if early stopping watches a metric; else `state`.
        stopping: the state of early stopping.
        log: the log of the completed epochs.
        epoch: number of completed epochs.
        start: epoch and checksum of the variables with which the run started; None without a
            checkpoint.
    """

    state: Any
    best: Any
    stopping: Mapping[str, float]
    log: Log
    epoch: int
    start: tuple[int, str] | None = None


class Saver(Protocol):
    """The interface that the loop needs of a checkpoint, such as `jaxrec.train.Checkpoint`."""

    every: int
    folder: pathlib.Path

    def reserved(self) -> contextlib.AbstractContextManager[None]:
        """Reserves the folder for this process while the context is open."""

    def restore(self, run: Progress, description: Mapping[str, Any]) -> Progress:
        """Returns the latest saved run, or `run` if none is saved."""

    def save(self, run: Progress, description: Mapping[str, Any]) -> None:
        """Saves a run."""


class Loop(TypedDict, total=False):
    """Keyword arguments that `train.fit`, every solver and every alternation take.

    Attributes:
        validate: a function of the variables, called on the host, that returns metrics: a mapping
            from names to numbers, or a `Report`, whose means are taken. They are written to the
            log.
        every: validate after every `every` epochs, and after the last.
        stopping: ends the run when its metric no longer improves; the best state is then returned.
        checkpoint: where to save the run. If the run is killed, the same call resumes it.
        callbacks: functions that are called after every epoch with the state and the epoch's
            record.
        progress: whether to show a progress bar.
    """

    validate: Validate | None
    every: int
    stopping: EarlyStopping | None
    checkpoint: Saver | None
    callbacks: Sequence[Callable[[Any, Mapping[str, float]], Any]]
    progress: bool


def check_loop(given: Mapping[str, Any], unit: str = "epochs") -> None:
    """Raises `TypeError` for a keyword argument that is not among those of `Loop`.

    `unit` is the name of the function's own number of epochs.
    """
    for name in given:
        if name not in Loop.__annotations__:
            like = difflib.get_close_matches(name, [unit, *Loop.__annotations__], 1)
            like = [unit] if name in ("epochs", "sweeps", "steps") else like
            hint = f"; did you mean {like[0]}=?" if like else f"; give {unit}= or one of {sorted(Loop.__annotations__)}"
            raise TypeError(f"unexpected keyword argument {name}={given[name]!r:.40}{hint}")


class NotFinite(Exception):
    """An epoch whose result is not finite; `run` raises `DivergenceError` with the state before it."""


def run(
    advance: Callable[[Any, int], tuple[Any, Mapping[str, float]]],
    state: Any,
    *,
    epochs: int,
    variables: Callable[[Any], Variables],
    began: float | None = None,
    epoch: int = 0,
    settled: Callable[[Mapping[str, float], Mapping[str, float]], bool] | None = None,
    description: Mapping[str, Any] | None = None,
    returned: Callable[[Any], Any] = lambda state: state,
    unit: str = "epochs",
    validate: Validate | None = None,
    every: int = 1,
    stopping: EarlyStopping | None = None,
    checkpoint: Saver | None = None,
    callbacks: Sequence[Callable[[Any, Mapping[str, float]], Any]] = (),
    progress: bool = True,
) -> tuple[Any, Log]:
    """Runs epochs until `epochs` are done, the records have settled, or early stopping ends them.

    Args:
        advance: runs one epoch. It takes the state and the number of the epoch, from 1, and returns
            the next state and named numbers for the log. It raises `NotFinite` if they cannot be
            used.
        state: the initial state.
        epochs: total number of epochs, counted from the start of the run.
        variables: returns the variables of a state, for `validate`.
        began: the time at which the caller started, by `time.perf_counter`; the log has the seconds
            from then to the first epoch.
        epoch: number of epochs that the initial state has already done.
        settled: takes the previous record and this one and returns whether to end the run; None
            never ends it.
        description: JSON values that a checkpoint must match to be resumed.
        returned: turns a state into what the caller returns, for `callbacks` and exceptions.
        unit: what the progress bar counts, such as "epochs"; it is also the name of `epochs` in
            errors.
        validate: see `Loop`.
        every: see `Loop`.
        stopping: see `Loop`.
        checkpoint: see `Loop`.
        callbacks: see `Loop`.
        progress: see `Loop`.

    Returns:
        The last state, or the best one with `stopping`; and the log.

    Raises:
        DivergenceError: a `ValueError`, if an epoch is `NotFinite`, or if the metric of `stopping`
            was NaN at every validation.
        Interrupted: on Ctrl-C. The state is saved to the checkpoint first.
        TypeError: for a `stopping` or `checkpoint` of another type, if `validate` or a callback is
            not a function, and if `callbacks` is not a sequence.
        ValueError: if `epochs` or `every` is not an integer of 1 or more, if `stopping` is given
            without `validate`, if `validate` does not return the metric of `stopping`, or if the
            checkpoint is of another run.
    """
    warn_of_slow_sums()
    epochs, every = integer(unit, epochs), integer("every", every)
    _check(validate, stopping, checkpoint, callbacks)
    now = Progress(state, state, {} if stopping is None else stopping.init(), Log(), epoch)
    with contextlib.nullcontext() if checkpoint is None else checkpoint.reserved(), _Compilation() as compilation:
        if checkpoint is not None:
            start = epoch, checksum(variables(state))
            now = checkpoint.restore(now._replace(start=start), description or {})
        if now.epoch > epochs or (now.epoch == epochs and checkpoint is None):
            where = "the state" if checkpoint is None else checkpoint.folder
            warnings.warn(
                f"{where} has done {now.epoch} {unit}, and {unit}={epochs} counts from the start of the run: nothing "
                "is left to train; give a larger number to continue",
                stacklevel=3,
            )
        saved, before_epochs = now.epoch, compilation.seconds()
        done = now.epoch >= epochs or (stopping is not None and stopping.done(now.stopping))
        if settled is not None and len(now.log.records) > 1:  # a run that had ended when it was saved
            done = done or settled(*now.log.records[-2:])
        about: dict[str, Any] = {} if stopping is None else {"watched": stopping.metric, "watched_mode": stopping.mode}
        about["setup_seconds"] = 0.0 if began is None else time.perf_counter() - began
        now = now._replace(log=dataclasses.replace(now.log, **about, **_best(now.stopping)))
        try:
            with _Bar(now, epochs, unit, stopping, compiling=not done, shown=progress) as bar:
                while not done:
                    number, clock, compiled = now.epoch + 1, time.perf_counter(), compilation.seconds()
                    state, values = advance(now.state, number)
                    record = {"epoch": number, **{name: float(value) for name, value in values.items()}}
                    record["seconds"] = time.perf_counter() - clock - (compilation.seconds() - compiled)
                    before = now.log.records[-1] if now.log.records else None
                    done = number == epochs or (settled is not None and before is not None and settled(before, record))
                    follow, improved = now.stopping, stopping is None
                    if validate is not None and (number % every == 0 or done):
                        record = extended(record, validate(variables(state)))
                        if stopping is not None:
                            follow, improved = stopping.update(follow, record)
                            done = done or stopping.done(follow)
                    compiled = compilation.seconds() - before_epochs
                    log = dataclasses.replace(now.log.append(record), compile_seconds=compiled, **_best(follow))
                    # A single assignment, so that Ctrl-C cannot leave a half-recorded epoch.
                    now = Progress(state, state if improved else now.best, follow, log, number, now.start)
                    for callback in callbacks:
                        callback(returned(state), record)
                    if checkpoint is not None and (number % checkpoint.every == 0 or done):
                        checkpoint.save(now, description or {})
                        saved = number
                    bar.update(record, follow)
        except KeyboardInterrupt as stop:
            if checkpoint is not None and now.epoch > saved:
                checkpoint.save(now, description or {})
            raise Interrupted(returned(now.state), now.log, returned(now.best)) from stop
        except NotFinite as error:
            kept = f"; the checkpoint keeps epoch {saved}, a good one" if checkpoint is not None and saved else ""
            message = f"{error}{kept}. The error's .state is the last good one"
            raise DivergenceError(message, returned(now.state), now.log) from None
    if stopping is not None and (wrong := stopping.never_a_number(now.stopping)):
        raise DivergenceError(f"{wrong}. The error's .state is the last one", returned(now.state), now.log)
    return now.best, now.log


def _check(
    validate: Validate | None,
    stopping: EarlyStopping | None,
    checkpoint: Saver | None,
    callbacks: Sequence[Callable[..., Any]],
) -> None:
    """Raises an error for arguments of `run` of another type, or that do not fit together."""
    check_validate(validate)
    if not isinstance(callbacks, Sequence):  # an iterator would be empty after the first epoch
        raise TypeError(f"callbacks={callbacks!r:.80}; give a list of functions")
    for place, callback in enumerate(callbacks):
        check_function(f"callbacks[{place}]", callback, "lambda state, record: print(record)")
    if stopping is not None and not isinstance(stopping, EarlyStopping):
        raise TypeError(f"stopping={stopping!r}; give jaxrec.train.EarlyStopping(metric)")
    if stopping is not None and validate is None:
        raise ValueError(f"stopping watches {stopping.metric!r}, but validate is None; pass validate=")
    if checkpoint is not None and not hasattr(checkpoint, "reserved"):
        raise TypeError(f"checkpoint={checkpoint!r}; give jaxrec.train.Checkpoint(directory)")


_WIDEST = 100  # characters of the progress bar


class _Bar:
    """The progress bar: epochs, the loss or the objective, and the watched metric.

    If no metric is watched, the first one of `validate` is shown.
    """

    def __init__(
        self,
        run: Progress,
        epochs: int,
        unit: str,
        stopping: EarlyStopping | None,
        *,
        compiling: bool,
        shown: bool,
    ) -> None:
        width = min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns)
        shown = shown and jax.process_index() == 0
        self._bar = tqdm(total=epochs, initial=run.epoch, disable=not shown, desc=unit, ncols=width)
        self._stopping = stopping
        self._latest: dict[str, float] = {}
        if compiling:
            self._bar.set_postfix_str("compiling")

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def update(self, record: Mapping[str, float], state: Mapping[str, float]) -> None:
        """Shows an epoch's record; `state` is that of early stopping."""
        self._latest.update(record)
        losses = [name for name in ("loss", "objective") if name in self._latest]
        others = ("epoch", "seconds", "loss", "objective", "after_users")
        metrics = [name for name in self._latest if name not in others]
        watched = self._stopping and self._stopping.metric
        metrics = metrics[:1] if watched is None else [name for name in metrics if name == watched]
        best = f" (best {state['best']:.4g})" if metrics and state.get("best_epoch") else ""
        text = ", ".join(f"{name} {self._latest[name]:.4g}" for name in losses + metrics)
        self._bar.set_postfix_str(text + best, refresh=False)
        self._bar.update()


def _best(stopping: Mapping[str, float]) -> dict[str, Any]:
    """Returns the log's `best_epoch` from the state of early stopping, if there is one."""
    return {"best_epoch": int(stopping["best_epoch"])} if stopping.get("best_epoch") else {}


class _Compilation:
    """Measures how long this thread traces and compiles while the context is open."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> _Compilation:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(AssertionError, ValueError):  # someone has cleared all listeners
            jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/") and threading.get_ident() == self._thread:
            end = time.perf_counter()
            begin = end - duration_secs
            # A function that is traced inside another one has ended before, and is part of its time.
            while self._spans and self._spans[-1][0] >= begin:
                self._spans.pop()
            if self._spans:
                begin = max(begin, self._spans[-1][1])
            self._spans.append((begin, end))

    def seconds(self) -> float:
        """Returns the seconds so far."""
        return sum((end - begin for begin, end in self._spans), 0.0)
