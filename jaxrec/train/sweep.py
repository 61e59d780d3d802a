"""Sweeps: every setting under every seed, compiled once, trained in parts that fit into memory."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from jaxrec._log import Interrupted, Log, check_validate, extended, metrics_of
from jaxrec._numerics import integer
from jaxrec._partials import combine, partition
from jaxrec._platform import cores, size
from jaxrec.interactions import Interactions, check_positives
from jaxrec.optim.step import Step
from jaxrec.train import loop
from jaxrec.train._checks import check_bound, check_covers, check_functions, check_state
from jaxrec.train.examples import Examples, singles
from jaxrec.train.runs import Run, Setting, Sweep, shown
from jaxrec.train.stream import Resident, as_stream
from jaxrec.typing import Array, Key, Objective, Validate, Variables


class Recipe(NamedTuple):
    """What a run needs. `setup` may also return a plain tuple in this order.

    Attributes:
        model: the model, as for `init`.
        objective: function of (variables, key, batch) that returns a scalar, as for `fit`.
        tx: the optimiser, as for `fit`.
        parameters: further entries of "params" that the loss learns, as for `init`.
        constants: values of collections that are not trained, as for `init`.
    """

    model: Any
    objective: Objective
    tx: optax.GradientTransformation | Step
    parameters: Mapping[str, Array] | None = None
    constants: Mapping[str, Any] | None = None


class DivergenceWarning(UserWarning):
    """The loss of some runs of a sweep is not finite."""


def grid(**values: Sequence[Any]) -> dict[str, np.ndarray]:
    """Returns all combinations of values, as `settings` of a sweep; the last name varies fastest.

    Without names the result is empty, which a sweep takes as one setting without values.

    Raises:
        ValueError: if a value is not a sequence of one or more values, or is ragged.

    >>> {name: column.tolist() for name, column in grid(rate=[1, 2], margin=[0.5, 0.7]).items()}
    {'rate': [1, 1, 2, 2], 'margin': [0.5, 0.7, 0.5, 0.7]}
    """
    columns = {name: _column(name, column) for name, column in values.items()}
    for name, column in columns.items():
        if column.ndim == 0 or len(column) == 0:
            raise ValueError(f"{name}={values[name]!r}; give a sequence of at least one value")
    places = np.meshgrid(*(np.arange(len(column)) for column in columns.values()), indexing="ij")
    return {name: column[place.ravel()] for (name, column), place in zip(columns.items(), places)}


def _column(name: str, values: Any) -> np.ndarray:
    """Returns values as an array, one per setting; raises `ValueError` if they differ in length."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} = {values!r} is ragged; give each setting the same number of values") from error


def sweep(
    keys: Key,
    setup: Callable[..., Recipe | tuple],
    train: Interactions,
    *,
    settings: Mapping[str, Sequence[Any] | Array] | None = None,
    epochs: int,
    batch_size: int = 1024,
    examples: Callable[[Interactions], Examples] = singles,
    validate: Validate | None = None,
    every: int = 1,
    select: str | None = None,
    at_once: int | None = None,
    width: int | None = None,
    progress: bool = True,
) -> Sweep:
    """Trains every setting under every key, as `init` and `fit` would, with one compilation.

    A run takes twice the memory of its parameters and optimiser state, because it keeps the values
    from the start of the epoch, in case it diverges; with `select` three times, because it also
    keeps those of its best epoch. The temporaries of a batch are added to this. `at_once` limits
    how many runs are on the device; runs that have ended are in host memory.

    A run whose loss is no longer finite keeps its state from the start of that epoch, and is NaN in
    the tables. The other runs are not affected.

    Args:
        keys: typed keys [S], one per seed, such as `jax.random.split(jax.random.key(0), 8)`.
        setup: function that gets the values of one setting as traced keyword arguments, and returns
            a `Recipe`, or a tuple of its members in order: model, objective, tx and, if needed,
            parameters. Learning rates, margins, temperatures and weights of regularisers can vary;
            what changes a shape (dimensions, numbers of negatives) cannot. Arrays that a
            `functools.partial` binds to `setup` are passed as arguments; arrays in its closure
            become constants.
        train: the positives.
        settings: name -> values with a leading axis of settings, all of the same length; see
            `grid`. None is one setting without values.
        epochs: number of epochs of each run.
        batch_size: B, the number of examples per step.
        examples: function of the positives that returns the examples of an epoch, as in `fit`, but
            not a stream.
        validate: host function of the variables that returns named numbers, or a `Report`, whose
            means are used. It is called for one run after the other.
        every: number of epochs between validations. The last epoch is always validated.
        select: the name of a metric of `validate`; larger must be better. Each run then returns the
            state and the metrics of its best validated epoch. None returns the last epoch.
        at_once: largest number of runs that train at the same time; None trains all.
        width: number of runs that one program vmaps. None is `at_once` on an accelerator, and 1 on
            CPU: there the programs run in parallel on the cores, which takes less time than vmap
            (benchmarks/speed/sweep.py measures both).
        progress: whether to show a progress bar.

    Warns:
        DivergenceWarning: once, at the end, with the names of the runs that diverged; and if the
            metric `select` was NaN at every validation of a run.

    Raises:
        Interrupted: a `KeyboardInterrupt`, on Ctrl-C. Its `.state` is the `Sweep` of what was
            trained.
        TypeError: if `setup`, its objective, `examples` or `validate` is not a function.
        ValueError: if `keys` are not one or more different typed keys [S]; settings have different
            lengths or are not numbers; a model has fewer users or items than `train`; a sampler has
            other sizes; `examples` gives a stream; or `select` is given without `validate`, or
            names a metric that `validate` does not return.

    >>> import jaxrec as jr
    >>> train, model = jr.Interactions.from_pairs([0, 0, 1, 1], [0, 1, 2, 3]), jr.models.MF(2, 4, dim=2)
    >>> objective = lambda variables, key, batch: -model.apply(variables, batch.users, batch.items).mean()
    >>> setup = lambda rate: (model, objective, optax.sgd(rate))
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> found = sweep(keys, setup, train, settings={"rate": [0.1, 0.5]}, epochs=2, batch_size=2, progress=False)
    >>> found.best("loss")
    1
    """
    _check_keys(keys)
    check_functions(setup=setup, examples=examples)
    check_validate(validate)
    points, columns = _points(settings)
    at_once, width = (
        None if value is None else integer(name, value) for name, value in (("at_once", at_once), ("width", width))
    )
    if select is not None and validate is None:
        raise ValueError(f"select={select!r}, but there is no validate to give it; pass validate=")
    arrays, static = partition((setup,))
    shape = jax.eval_shape(functools.partial(_init_of_runs, static=static), keys[:1], _take(columns, [0]), arrays)
    check_positives(train=train)
    check_state(shape)
    epochs, batch_size, every = integer("epochs", epochs), integer("batch_size", batch_size), integer("every", every)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shape.variables)
    jax.eval_shape(lambda setting: _check_sizes(_recipe(arrays, static, setting), train, one), _take(columns, 0))
    stream, arrays = as_stream(examples(train)), jax.device_put(arrays)
    if not isinstance(stream, Resident):
        raise ValueError(f"examples={examples!r:.80} gives a stream, which sweeps do not take; call fit for each run")
    data = stream.data

    runs = [_Training(point, seed) for point in points for seed in range(len(keys))]
    n = len(runs)
    width, parts = _parts(n, at_once, width)
    bar = tqdm(total=len(parts) * epochs, disable=not progress, desc="epochs")
    ended: list[loop.State] = []  # on the host
    programs: list[_Program] = []
    try:
        with bar, concurrent.futures.ThreadPoolExecutor(cores()) as threads:
            for part in parts:
                programs = [_started(first, width, runs, keys, columns, arrays, static) for first in part]
                one = None
                for epoch in range(1, epochs + 1):
                    if one is None or static != static.again():
                        static = static.again()
                        one = _compiled(programs[0], arrays, data, static=static, batch_size=batch_size)
                    advance = functools.partial(_side_by_side, threads, one, arrays, data)
                    validated = validate if epoch % every == 0 or epoch == epochs else None
                    _advance(programs, advance, epoch, validated, select)
                    losses = [run.records[-1]["loss"] for program in programs for run in program.runs if run.records]
                    bar.set_postfix(loss=f"{np.mean(losses):.4g}" if losses else "diverged")
                    bar.update()
                ended, programs = ended + [program.final() for program in programs], []
    except KeyboardInterrupt as stop:
        ended += [program.final() for program in programs]
        for first in range(len(ended) * width, n, width):
            ended.append(_started(first, width, runs, keys, columns, arrays, static).final())
        for run in runs:
            if run.chosen is None and run.diverged is None:
                run.diverged = "interrupted before its first epoch"
        raise Interrupted(_result(runs, ended, points, select), Log()) from stop
    _warn(runs, select)
    return _result(runs, ended, points, select)


def _started(
    first: int,
    width: int,
    runs: list[_Training],
    keys: Key,
    columns: Mapping[str, np.ndarray],
    arrays: list,
    static: Any,
) -> _Program:
    """Returns the program of `width` runs from the run `first`, with their initial states."""
    # Copies of the last run fill up the last program, so that all programs have one width.
    places = np.minimum(np.arange(first, first + width), len(runs) - 1)
    values = _take(columns, places // len(keys))
    state = _init_of_runs(keys[places % len(keys)], values, arrays, static=static)
    return _Program(runs[first : first + width], state, values)


def _result(
    runs: list[_Training], states: Sequence[loop.State], points: Sequence[Setting], select: str | None
) -> Sweep:
    """Returns the result of runs whose programs ended with these states."""
    done = tuple(run.finished() for run in runs)
    last = next((list(run.metrics)[-1] for run in done if run.metrics), "loss")
    joined = jax.tree.map(lambda *parts: _joined(parts)[: len(runs)], *states)
    return Sweep(done, joined, tuple(points), (last if select is None else select,))


def _compiled(program: _Program, arrays: list, data: Any, **options: Any) -> Callable:
    """Compiles an epoch in this thread.

    JAX's context managers do not apply in the threads that run it.
    """
    given = program.states, program.settings, arrays, data
    config: Any = jax.config  # JAX adds its attributes at run time
    if config.jax_disable_jit:
        return functools.partial(_epoch_of_runs, **options)
    return _epoch_of_runs.lower(*given, **options).compile()


def _check_sizes(recipe: tuple, train: Interactions, variables: Variables) -> None:
    """Checks the objective, and the model's and the samplers' sizes against `train`, for variables of these shapes."""
    check_functions(objective=recipe[1])
    check_covers(recipe[:1], train, variables)
    check_bound(recipe[1:2], train, variables)


def _check_keys(keys: Any) -> None:
    """Raises `ValueError` for anything but different typed keys [S]."""
    remedy = "give typed keys [S], such as jax.random.split(jax.random.key(0), 8)"
    if not (isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"keys are {type(keys).__name__} {getattr(keys, 'dtype', '')}, not typed keys; {remedy}")
    if keys.ndim != 1 or len(keys) == 0:
        raise ValueError(f"keys have shape {keys.shape}; {remedy}")
    if len(np.unique(jax.random.key_data(keys), axis=0)) < len(keys):
        raise ValueError(f"keys contains a key more than once, whose runs would be the same; {remedy}")


def _points(settings: Mapping[str, Any] | None) -> tuple[list[Setting], dict[str, np.ndarray]]:
    """Returns the settings one by one, as NumPy or Python values, and by name, as arrays."""
    columns = {}
    for name, values in (settings or {}).items():
        columns[name] = _column(f"settings[{name!r}]", values)
        if columns[name].ndim == 0 or columns[name].dtype.kind not in "fiub":
            raise ValueError(
                f"settings[{name!r}] = {values!r}; give a sequence of numbers, one per setting; for values "
                "that are no numbers, run a sweep for each"
            )
        if columns[name].dtype.kind in "iu" and not np.array_equal(
            columns[name], np.asarray(jnp.asarray(columns[name]))
        ):
            raise ValueError(f"settings[{name!r}] = {values!r}; give integers that fit int32, or enable x64")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"settings have lengths {lengths}; give one value per setting (train.grid makes combinations)")
    n = next(iter(lengths.values()), 1)
    points = [Setting((name, c[i].item() if c.ndim == 1 else c[i]) for name, c in columns.items()) for i in range(n)]
    return points, columns


def _parts(n: int, at_once: int | None, width: int | None) -> tuple[int, list[range]]:
    """Returns the number of runs per program and, for each part, the first runs of its programs.

    Parts are as equal as possible.
    """
    most = min(at_once or n, n)
    if width is None:
        width = size("sweep_width") or most
    programs = -(-n // min(width, most))
    width = -(-n // programs)
    parts = 1 if at_once is None else -(-programs // (most // width))
    step = -(-programs // parts) * width
    return width, [range(first, min(first + step, n), width) for first in range(0, n, step)]


@dataclasses.dataclass
class _Training:
    """A run in training."""

    setting: Mapping[str, Any]
    seed: int
    records: list[dict[str, float]] = dataclasses.field(default_factory=list)
    chosen: Mapping[str, float] | None = None
    diverged: str | None = None

    def choose(self, record: Mapping[str, float], select: str | None) -> bool:
        """Keeps the record if it is the best so far, and returns whether it is; NaN is never better."""
        if select is not None and self.chosen is not None:
            best = self.chosen[select]
            if not (np.isnan(best) or record[select] > best):
                return False
        self.chosen = record
        return True

    def finished(self) -> Run:
        """Returns the run's record once training has ended."""
        log = Log(tuple(self.records))
        if self.diverged is not None:
            return Run(self.setting, self.seed, log, len(self.records), {}, self.diverged)
        record = self.chosen or {}
        metrics = {name: value for name, value in record.items() if name not in ("epoch", "seconds")}
        return Run(self.setting, self.seed, log, int(record["epoch"]), metrics, None)


@dataclasses.dataclass
class _Program:
    """Runs that are vmapped jointly; copies of the last one fill up the width.

    `best` are the states of the best epochs, of which none is kept unless a metric selects them.
    """

    runs: list[_Training]
    states: loop.State
    settings: Mapping[str, Array]
    best: loop.State | None = None

    def final(self) -> loop.State:
        """Returns the last states, or the best ones that are kept unless a run diverged, on the host."""
        states = self.states
        if self.best is not None:
            states = _choose(self.mask(lambda run: run.diverged is not None), states, self.best)
        return jax.tree.map(_on_host, states)

    def mask(self, of: Callable[[_Training], bool]) -> np.ndarray:
        """Returns a bool [width] over the runs; a copy has the value of its original."""
        return np.pad(np.array([of(run) for run in self.runs]), (0, len(self.states.epoch) - len(self.runs)), "edge")


def _advance(programs: list[_Program], advance: Callable, epoch: int, validate: Callable | None, select) -> None:
    """Runs one epoch of all runs, and writes the results into programs and runs."""
    began = time.perf_counter()
    alive = [program for program in programs if any(run.diverged is None for run in program.runs)]
    results = advance(alive)
    running = [run for program in alive for run in program.runs if run.diverged is None]
    seconds = (time.perf_counter() - began) / max(len(running), 1)
    records = {}
    for program, (states, losses, finite) in zip(alive, results):
        for place, (run, value) in enumerate(zip(program.runs, losses)):
            if run.diverged is not None or not finite[place]:
                continue
            record = {"epoch": epoch, "loss": float(value.mean()), "seconds": seconds}
            if validate is not None:
                found = metrics_of(validate(_one_of(states.variables, np.int32(place))))
                if select is not None and select not in found:
                    raise ValueError(f"select={select!r}, but validate gives {sorted(found)}")
                record = extended(record, found)
            records[id(run)] = record
    # Write results only after all validations, so that after Ctrl-C states and records agree.
    for program, (states, losses, finite) in zip(alive, results):
        improved = set()
        for place, (run, value) in enumerate(zip(program.runs, losses)):
            if run.diverged is None and not finite[place]:
                run.diverged = loop.diverged(epoch, value, len(value))
            if run.diverged is None:
                run.records.append(records[id(run)])
                if (validate is not None or select is None) and run.choose(records[id(run)], select):
                    improved.add(id(run))
        program.states = states
        if improved and select is not None:
            best = states if program.best is None else program.best
            program.best = _choose(program.mask(functools.partial(_is_in, improved)), states, best)


def _is_in(found: set[int], run: _Training) -> bool:
    return id(run) in found


def _side_by_side(threads, one: Callable, arrays: Any, data: Any, programs: list[_Program]) -> list[tuple]:
    """Runs an epoch of each program, one per thread.

    On CPU, programs that one thread starts run one after another.
    """

    def wait(program: _Program) -> tuple[loop.State, np.ndarray, np.ndarray]:
        states, losses, finite = one(program.states, program.settings, arrays, data)
        return states, np.asarray(losses), np.asarray(finite)

    return list(threads.map(wait, programs))


def _warn(runs: list[_Training], select: str | None) -> None:
    """Warns of runs that diverged, and of runs whose metric `select` was always NaN."""
    alive = [run for run in runs if run.diverged is None and run.chosen is not None]
    blank = [run for run in alive if select is not None and np.isnan((run.chosen or {})[select])]
    if blank:
        warnings.warn(
            f"{select} was NaN at every validation of {len(blank)} of {len(runs)} runs, which are NaN in "
            "the tables; look for NaN in what validate computes",
            DivergenceWarning,
            stacklevel=3,
        )
    lost = [(number, run) for number, run in enumerate(runs) if run.diverged is not None]
    if not lost:
        return

    def described(number: int, run: _Training) -> str:
        values = "".join(f"{name}={shown(value)}, " for name, value in run.setting.items())
        return f"run {number} ({values}seed {run.seed}): {run.diverged}"

    more = f"; and {len(lost) - 5} more" if len(lost) > 5 else ""
    warnings.warn(
        f"{len(lost)} of {len(runs)} runs diverged and are NaN in the tables: "
        f"{'; '.join(described(*item) for item in lost[:5])}{more}. Lower the learning rate of these "
        "settings or clip gradients (optax.clip_by_global_norm); .state(run) is the last good state",
        DivergenceWarning,
        stacklevel=3,
    )


# ---------------------------------------------------------------------- on the device


def _recipe(arrays: list, static: Any, setting: Mapping[str, Array]) -> Recipe:
    """Calls `setup` with one setting."""
    (setup,) = combine(arrays, static)
    made = setup(**setting)
    if not isinstance(made, tuple) or not 3 <= len(made) <= len(Recipe._fields):
        what = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise ValueError(f"setup returns {what}; return (model, objective, tx) or a train.Recipe")
    return Recipe(*made)


def _each_run(one: Callable, *stacked: Any) -> Any:
    """Calls `one` for each run.

    A single run is not vmapped: on CPU even a batch of one makes scatters slower.
    """
    try:
        if len(jax.tree.leaves(stacked)[0]) > 1:
            return jax.vmap(one)(*stacked)
        return jax.tree.map(lambda leaf: leaf[None], one(*jax.tree.map(lambda leaf: leaf[0], stacked)))
    except TypeError as error:
        error.add_note("setup gets traced values; a value that sets a shape or decides a branch cannot be a setting")
        raise


@functools.partial(jax.jit, static_argnames="static")
def _init_of_runs(keys, settings, arrays, *, static):
    """Creates the initial states of the runs."""

    def one(key, setting):
        recipe = _recipe(arrays, static, setting)
        more = {"parameters": recipe.parameters, "constants": recipe.constants}
        return loop.init(key, recipe.model, recipe.tx, **more)

    return _each_run(one, keys, settings)


@functools.partial(jax.jit, static_argnames=("static", "batch_size"))
def _epoch_of_runs(states, settings, arrays, data, *, static, batch_size):
    """Runs one epoch of the runs; a run that diverged keeps its state."""

    def one(state, setting):
        recipe = _recipe(arrays, static, setting)
        new, values = loop.epoch(state, recipe.objective, recipe.tx, data, batch_size=batch_size)
        finite = loop.all_finite(values, new)
        return jax.tree.map(functools.partial(jnp.where, finite), new, state), values, finite

    return _each_run(one, states, settings)


@jax.jit
def _one_of(stacked, place):
    """Takes one run out of stacked states."""
    return jax.tree.map(lambda leaf: leaf[place], stacked)


@jax.jit
def _where(mask, first, second):
    """Selects between two stacked states per run."""

    def choose(a, b):
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, first, second)


def _choose(mask: np.ndarray, first: loop.State, second: loop.State) -> loop.State:
    """Returns the runs of `first` where the mask is True, else those of `second`."""
    if mask.all():
        return first
    return _where(mask, first, second) if mask.any() else second


def _take(columns: Mapping[str, np.ndarray], places: Any) -> dict[str, jax.Array]:
    """Returns the settings at these indices, in the dtypes that JAX computes with."""
    return {name: jnp.asarray(column[places]) for name, column in columns.items()}


def _on_host(leaf: Array) -> jax.Array:
    """Copies an array to the host. Typed keys stay JAX arrays, as NumPy has no such dtype."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


def _joined(parts: Sequence[Array]) -> jax.Array:
    """Concatenates arrays of NumPy, or of typed keys."""
    typed = jnp.issubdtype(parts[0].dtype, jax.dtypes.prng_key)
    return jnp.concatenate(parts) if typed else np.concatenate(parts)
