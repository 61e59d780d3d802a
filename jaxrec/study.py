"""Studies: compare several methods on the same data with the same tuning budget.

`run` tunes each method on validation data with the same maximum number of trials, trains its best
setting with every seed, and evaluates it on test data. Each run is recorded as a line of JSON in one
file, so that git can compare versions. An interrupted study resumes where it stopped. `table` builds
the results from the file.
"""

from __future__ import annotations

import itertools
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxrec import evaluate, models
from jaxrec._log import Log, metrics_of
from jaxrec._numerics import integer
from jaxrec._partials import check_function
from jaxrec._records import Record, append, commit, packed, read, versions, written
from jaxrec._results import MARKS, Row, Setting, Table, chosen, compared, ends, holm, is_run, row_of
from jaxrec.evaluate.report import Report
from jaxrec.typing import Key, Variables

__all__ = [
    "MARKS",
    "TRIVIAL",
    "Method",
    "Row",
    "Setting",
    "Table",
    "append",
    "chosen",
    "commit",
    "curve",
    "ends",
    "full_ranking",
    "holm",
    "read",
    "run",
    "settings",
    "table",
]

Split = Any  # an object with train, valid and test, such as `jaxrec.data.splits.Split`
Fitted = tuple[Any, Variables, Log | None]


class Method(NamedTuple):
    """A method to compare, and the settings to try for it.

    Attributes:
        name: the name of the method's row in the table.
        fit: `fit(train, valid, key, **setting) -> (model, variables, log)` trains the method. It
            may use `valid` to choose the epoch. `log` is a `jaxrec.train.Log`, or None. If training
            diverged, `fit` returns None instead of the triple, and the setting is not chosen.
        grid: for each hyperparameter, the values to try. They must be numbers, strings, booleans or
            lists of these, because they are written to a file.
        refit: `refit(train, key, log, **setting) -> (model, variables, log)` trains again before
            the evaluation on test, on the union of train and validation, which `evaluate` then gets
            as `split.train`. `log` is that of `fit`, from which it can read the number of epochs.
            With None, test evaluates the model that `fit` returned.
        fit_all: `fit_all(train, valid, key, settings)` trains several settings jointly, for example
            with `jaxrec.train.sweep`, and returns a list with what `fit` would return for each. If
            given, it is used instead of `fit`.
    """

    name: str
    fit: Callable[..., Fitted | None] | None = None
    grid: Mapping[str, Sequence[Any]] = {}
    refit: Callable[..., Fitted] | None = None
    fit_all: Callable[..., Sequence[Fitted | None]] | None = None


TRIVIAL = (
    Method("random", lambda train, valid, key: (*models.random(key, train.n_items), None)),
    Method("item id", lambda train, valid, key: (*models.item_id(train.n_items), None)),
    Method("popularity", lambda train, valid, key: (*models.popularity(train), None)),
)
"""Rankers that do not personalise. They are part of every study."""


def settings(grid: Mapping[str, Sequence[Any]], trials: int | None = None, key: Key | None = None) -> list[Setting]:
    """Returns all settings of a grid, or a random sample of `trials` of them if there are more.

    Args:
        grid: for each hyperparameter, the values to try.
        trials: maximum number of settings; None returns all.
        key: typed key of the sample, which is returned in the order of the grid. None is a fixed
            key.

    Raises:
        ValueError: if the values of a hyperparameter are not a sequence of one or more.

    >>> settings({"rate": [0.1, 0.3], "dim": [8]})
    [{'rate': 0.1, 'dim': 8}, {'rate': 0.3, 'dim': 8}]
    """
    for name, values in grid.items():
        if isinstance(values, str) or not hasattr(values, "__getitem__") or len(values) == 0:
            raise ValueError(f"grid[{name!r}] = {values!r:.80}; give a sequence of at least one value")
    every: list[Setting] = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    if trials is None or len(every) <= trials:
        return every
    key = jax.random.key(0) if key is None else key
    drawn = jax.random.permutation(key, np.arange(len(every), dtype=np.int32))[:trials]
    return [every[place] for place in sorted(np.asarray(drawn).tolist())]


def full_ranking(model: Any, variables: Variables, split: Split, on: str, *, ks: Sequence[int] = (10, 20)) -> Report:
    """Evaluates with `jaxrec.evaluate.full_ranking`; on test, validation pairs are masked too.

    A model that scores users by their histories gets those of `split.train`.

    Args:
        model: a model, as for `jaxrec.evaluate.full_ranking`.
        variables: the model's variables, as returned by `model.init`.
        split: an object with `train`, `valid` and `test`.
        on: the part to evaluate on, "valid" or "test".
        ks: cut-offs of the metrics.
    """
    known = split.train if on == "valid" or split.valid is None else split.train.union(split.valid)
    histories = split.train if getattr(model, "needs_histories", False) else None
    return evaluate.full_ranking(model, variables, known, getattr(split, on), ks=ks, histories=histories)


# ---------------------------------------------------------------------- runs


def run(
    methods: Sequence[Method],
    splits: Mapping[str, Split | Callable[[int], Split]],
    *,
    folder: str | os.PathLike,
    name: str = "study",
    seeds: Sequence[int] = (0, 1, 2),
    trials: int = 20,
    metric: str = "ndcg@10",
    evaluate: Callable[..., Report | Mapping[str, float]] = full_ranking,
    key: Key | None = None,
    against: str | None = None,
    progress: bool = True,
) -> Table:
    """Tunes every method, runs it with every seed, and records each run in `folder/<name>.jsonl`.

    Methods are tuned with seed 0: all settings of a grid are tried, or a random sample of `trials`
    of them if there are more. The setting with the best `metric` on validation then runs with every
    seed and is evaluated on test. Runs that are already recorded do not run again. If you have
    changed `fit`, remove its lines from the file. The trivial rankers are always included.

    Args:
        methods: the methods to compare; their names must differ.
        splits: for each data set's name, its split (an object with `train`, `valid` and `test`), or
            a function from a seed to a split. `valid` may be None if every method has only one
            setting.
        folder: the folder that the file is in.
        name: the name of the file, without ".jsonl".
        seeds: the seeds of the runs on test. `fit` gets the key `jax.random.key(seed)`. If empty,
            the methods are only tuned, and not evaluated on test.
        trials: maximum number of settings that are tried for a method.
        metric: the metric by which validation chooses; larger must be better.
        evaluate: `evaluate(model, variables, split, on)`, where `on` is "valid" or "test". It
            returns a mapping from names to values, or a `Report`, whose values per user are
            recorded for paired tests.
        key: typed key that samples the settings; None is a fixed key.
        against: the method that the table compares the others with; see `table`.
        progress: whether to show a progress bar.

    Returns:
        The `Table` of the results.

    Raises:
        TypeError: if `evaluate`, or a function of a method, is not a function.
        ValueError: if a grid has no values; `evaluate` does not return the metric, or a metric is not finite; a method
            diverged with all its settings, or on test; methods have the same name; `against` is not
            one of them; there are several settings but no validation data; or the file has runs on
            other data under the same name.

    >>> import tempfile
    >>> from jaxrec import solvers
    >>> from jaxrec.data import splits, synthetic
    >>> order = partial(splits.random_order, key=jax.random.key(0))
    >>> board = splits.ratio(synthetic.checkerboard(24)[0], order=order)
    >>> fit = lambda train, valid, key, **setting: solvers.ease.fit(train, **setting)
    >>> ease = Method("EASE", fit, {"regularization": [1.0, 10.0, 100.0]})
    >>> run([ease], {"board": board}, folder=tempfile.mkdtemp(), progress=False).best("board")
    'EASE'
    """
    path, trials = pathlib.Path(folder) / f"{name}.jsonl", integer("trials", trials)
    check_function("evaluate", evaluate, "jaxrec.study.full_ranking")
    methods, seeds = _checked(methods), [integer("seed", seed, least=0) for seed in seeds]
    if against not in (None, *(method.name for method in methods)):
        raise ValueError(f"against={against!r} is none of {[method.name for method in methods]}; give one of these")
    study = _Study(path, read(path), metric, evaluate)
    for data, split in splits.items():
        part = cache(partial(_part, split))
        for method in tqdm(methods, disable=not progress, desc=data):
            tried = settings(method.grid, trials, key)
            if len(tried) > 1:
                study.train(method, data, part, tried, 0, "valid")
            best = chosen(study.records, data, method.name, tried, metric)
            if best is None:
                raise ValueError(f"{method.name} diverged with all its settings on {data!r}; give a grid with others")
            for seed in seeds:
                study.train(method, data, part, [best], seed, "test")
    return table(methods, path, data=list(splits), trials=trials, metric=metric, key=key, against=against)


def _checked(methods: Sequence[Method]) -> list[Method]:
    """Returns the trivial rankers and the methods, after checking their functions and names."""
    for method in methods:
        for name in ("fit", "refit", "fit_all"):
            if getattr(method, name) is not None:
                check_function(f"{name} of {method.name}", getattr(method, name), "those that study.Method describes")
    names = [method.name for method in methods]
    twice = sorted({each for each in names if names.count(each) > 1})
    if twice:
        raise ValueError(f"several methods are called {twice[0]!r}; give each a different name")
    return [*(ranker for ranker in TRIVIAL if ranker.name not in names), *methods]


def _part(split: Split | Callable[[int], Split], seed: int) -> tuple[Split, str]:
    """Returns the split of a seed, and its fingerprint."""
    split = split(seed) if callable(split) else split
    parts = (split.train, split.valid, split.test)
    return split, "-".join(part.fingerprint() for part in parts if part is not None)


class _Study(NamedTuple):
    """The file of a study, its records, and how its runs are evaluated."""

    path: pathlib.Path
    records: list[Record]
    metric: str
    evaluate: Callable[..., Any]

    def train(
        self,
        method: Method,
        data: str,
        part: Callable[[int], tuple[Split, str]],
        tried: Sequence[Setting],
        seed: int,
        on: str,
    ) -> None:
        """Trains and records the settings that are not recorded yet."""
        split, fingerprint = part(seed)
        self._check(data, seed, fingerprint)
        if on == "valid" and split.valid is None:
            raise ValueError(
                f"{method.name} has {len(tried)} settings, but {data!r} has no validation data to choose from them; "
                "give a split with valid, or one setting"
            )
        known = [r["setting"] for r in self.records if is_run(r, data, method.name, on) and r["seed"] == seed]
        new = [setting for setting in tried if written(dict(setting)) not in known]
        groups = [[setting] for setting in new] if method.fit_all is None else [new] * bool(new)
        grid = {hyperparameter: list(values) for hyperparameter, values in method.grid.items()}
        for group in groups:
            wall, cpu, key = time.perf_counter(), time.process_time(), jax.random.key(seed)
            if method.fit_all is None:
                if method.fit is None:
                    raise ValueError(f"{method.name} has neither fit nor fit_all; give one of them")
                fitted = [method.fit(split.train, split.valid, key, **group[0])]
            else:
                fitted = list(method.fit_all(split.train, split.valid, key, group))
                if len(fitted) != len(group):
                    raise ValueError(
                        f"fit_all of {method.name} gives {len(fitted)} results for {len(group)} settings; "
                        "return one for each"
                    )
            # Dispatch is asynchronous: wait, so that the clock measures the training.
            jax.block_until_ready([each and each[1] for each in fitted])
            seconds = (time.perf_counter() - wall) / len(group)
            on_cpu = jax.default_backend() == "cpu"  # the CPU time of a run on an accelerator says little about it
            cpu_seconds = (time.process_time() - cpu) / len(group) if on_cpu else None
            shares = {"seconds": seconds, "cpu_seconds": cpu_seconds, "device": jax.devices()[0].device_kind}
            for setting, found in zip(group, fitted):
                about: Record = {
                    "data": data,
                    "fingerprint": fingerprint,
                    "method": method.name,
                    "grid": grid,
                    "on": on,
                }
                about |= {"setting": written(dict(setting)), "seed": seed, **shares}
                about |= {"commit": commit(self.path.parent), "versions": versions()}
                record = about | self._judged(method, data, split, setting, seed, on, found)
                append(self.path, record)
                self.records.append(written(record))

    def _check(self, data: str, seed: int, fingerprint: str) -> None:
        """Raises `ValueError` if the file has runs on other data under this name and seed."""
        for other in self.records:
            if (other["data"], other["seed"]) == (data, seed) and other["fingerprint"] != fingerprint:
                raise ValueError(
                    f"{self.path} has runs of other data under the name {data!r}: with seed {seed} their fingerprint "
                    f"was {other['fingerprint']} and is now {fingerprint}; give the data another name, or the study "
                    "another folder"
                )

    def _judged(
        self,
        method: Method,
        data: str,
        split: Split,
        setting: Setting,
        seed: int,
        on: str,
        fitted: Fitted | None,
    ) -> Record:
        """Evaluates a run, and returns its part of the record; a trial that diverged has None."""
        where = f"{method.name} with {dict(setting)}"
        if fitted is None and on == "test":
            raise ValueError(f"{where} diverged with seed {seed} on {data!r}; remove the setting from the grid")
        if fitted is None:
            return {"valid": {self.metric: None}, "curve": []}
        model, variables, log = fitted
        record: Record = {"valid": {}, "curve": curve(log, self.metric)}
        for judged in ("valid", "test") if on == "test" else ("valid",):
            if judged == "valid" and split.valid is None:
                continue
            if judged == "test" and method.refit is not None:
                whole = split.train if split.valid is None else split.train.union(split.valid)
                refitted = method.refit(whole, jax.random.key(seed), log, **setting)
                if refitted is None:
                    raise ValueError(f"refit of {where} diverged with seed {seed} on {data!r}; remove the setting")
                model, variables, _ = refitted
                # The pairs that the model was trained on are masked, and are the histories that it gets.
                split = SimpleNamespace(train=whole, valid=None, test=split.test)
            found = self.evaluate(model, variables, split, judged)
            record[judged] = _finite(metrics_of(found), self.metric, f"{where} on {judged} of {data!r}")
        if on == "test" and isinstance(found, Report) and self.metric in found.per_user:
            sums, counts = (
                np.bincount(found.users, w, split.train.n_users) for w in (found.per_user[self.metric], None)
            )
            with np.errstate(invalid="ignore"):  # 0 / 0 for users without test pairs
                record["users"] = {self.metric: packed(sums / counts)}
        return record


def _finite(values: Mapping[str, float], metric: str, where: str) -> Mapping[str, float]:
    """Checks that the metrics include `metric` and are finite, and returns them."""
    if metric not in values:
        raise ValueError(f"evaluate gives no {metric!r} for {where}; it gives {sorted(values)}, pass one as metric")
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if bad:
        raise ValueError(f"{where} has {bad}; if training diverged, remove the setting from the grid")
    return values


def curve(log: Log | None, metric: str) -> list[list[float | None]]:
    """Returns [epoch, seconds of training so far, metric] for each validation.

    Values that are not finite become None.
    """
    seconds, points = 0.0, []
    for record in () if log is None else log.records:
        seconds += record.get("seconds", math.nan)
        if metric in record:
            values = (seconds, float(record[metric]))
            points.append(
                [
                    int(record["epoch"]),
                    *(value if math.isfinite(value) else None for value in values),
                ]
            )
    return points


def table(
    methods: Sequence[Method],
    records: str | os.PathLike | Sequence[Record],
    *,
    data: Sequence[str] | None = None,
    trials: int = 20,
    metric: str = "ndcg@10",
    shown: Sequence[str] = (),
    key: Key | None = None,
    against: str | None = None,
) -> Table:
    """Builds the results of a study from its records; trains nothing.

    Args:
        methods: the methods, as given to `run`. A method without runs on test has no row.
        records: the path of the file, or the records that `read` returned.
        data: the names of the data sets to show; None shows all that are recorded.
        trials: maximum number of settings tried for a method, as given to `run`.
        metric: the metric by which validation chose, as given to `run`.
        shown: further metrics to print.
        key: typed key that sampled the settings, as given to `run`.
        against: the method to compare the others with. There are two paired t-tests: over users,
            with each user's mean over the seeds that both methods have, and over these seeds. The
            p-values have Holm's correction for the number of rows of a data set.

    Raises:
        ValueError: if `against` has no row on a data set, or a metric is not recorded.
    """
    records = read(records) if isinstance(records, str | os.PathLike) else records
    rows: list[Row] = []
    by_method: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        by_method.setdefault((record["data"], record["method"]), []).append(record)
    for name in dict.fromkeys(record["data"] for record in records) if data is None else data:
        found = []
        for method in _checked(methods):
            of_method = by_method.get((name, method.name), ())
            pair = row_of(of_method, name, method, settings(method.grid, trials, key), metric, shown)
            found += [] if pair is None else [pair]
        rows += [row for row, _ in found] if against is None else compared(found, against, metric, name)
    return Table(tuple(rows), metric, tuple(dict.fromkeys([metric, *shown])), against)
