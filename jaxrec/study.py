"""Studies: several methods compared on the same data with the same effort, every run on record.

`run` tunes each method on validation with the same number of trials, trains the best setting under
every seed, and evaluates it on test. Each run is a line of JSON in one file, which git can compare.
A study that was interrupted continues where it stopped. `table` builds the results from the file.
"""

from __future__ import annotations

import itertools
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxrec import evaluate, models
from jaxrec._log import Log, metrics_of
from jaxrec._numerics import integer
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

Split = Any  # with train, valid and test, such as `jaxrec.data.splits.Split`
Fitted = tuple[Any, Variables, Log | None]


class Method(NamedTuple):
    """A method and what is tried of it.

    Attributes:
        name: of its row in the table.
        fit: `fit(train, valid, key, **setting) -> (model, variables, log)`. It may use `valid` to
            choose the epoch. `log` is a `jaxrec.train.Log`, or None. `fit` returns None in
            place of the three if training diverged; the setting is then not chosen.
        grid: values to try by hyperparameter. They must be numbers, strings, booleans or lists of
            these, because they are written to a file.
        refit: `refit(train, key, log, **setting) -> (model, variables, log)` trains once more before
            test, on train and validation together. `log` is that of `fit`, which says how long.
            None evaluates what `fit` gave.
        fit_all: `fit_all(train, valid, key, settings)` trains many settings at once, for example by
            `jaxrec.train.sweep`, and gives what `fit` gives for each. It is used instead of `fit`.
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
"""Rankers that learn nothing about a user. They are in every study."""


def settings(grid: Mapping[str, Sequence[Any]], trials: int | None = None, key: Key | None = None) -> list[Setting]:
    """All settings of a grid, or a random draw of `trials` of them where there are more.

    The draw depends on the key alone (None is a fixed key) and keeps the order of the grid.

    >>> settings({"rate": [0.1, 0.3], "dim": [8]})
    [{'rate': 0.1, 'dim': 8}, {'rate': 0.3, 'dim': 8}]
    """
    every = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    if trials is None or len(every) <= trials:
        return every
    key = jax.random.key(0) if key is None else key
    drawn = jax.random.permutation(key, np.arange(len(every), dtype=np.int32))[:trials]
    return [every[place] for place in sorted(np.asarray(drawn).tolist())]


def full_ranking(model: Any, variables: Variables, split: Split, on: str, *, ks: Sequence[int] = (10, 20)) -> Report:
    """`jaxrec.evaluate.full_ranking` on "valid" or "test"; on test, validation is masked too.

    Models of histories see those of `split.train`.
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
    """Tunes every method, runs it under every seed, and keeps each run in `folder/<name>.jsonl`.

    Seed 0 tunes: all settings of a grid are tried, or a random draw of `trials` if it has more. The
    setting with the best `metric` on validation then runs under every seed, and test is evaluated.
    What is on record does not run again; remove its lines from the file if `fit` has changed. The
    trivial rankers always take part.

    Args:
        methods: to compare, each with a name of its own.
        splits: data set's name -> its split (`train`, `valid`, `test`), or a function of the seed
            that gives one. `valid` may be None if every method has one setting.
        folder: where the file is.
        name: of the file.
        seeds: of the runs on test. Seed s gives `fit` the key `jax.random.key(s)`. Without seeds
            the methods are tuned, and test is not evaluated.
        trials: largest number of settings that a method tries.
        metric: that validation chooses by; larger is better.
        evaluate: `evaluate(model, variables, split, on)` with "valid" or "test" as `on`. It gives a
            `Report`, whose values for each user are kept for paired tests, or name -> value.
        key: typed key of the draws.
        against: the row that the table compares with, see `table`.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for a metric that is not finite or that `evaluate` does not give; for a method
            that diverged under all its settings, or on test; for methods of the same name; for
            `against` that is none of them; for several settings without validation; for a record
            of other data under the same name.

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
    methods, seeds = _checked(methods), [integer("seed", seed, least=0) for seed in seeds]
    if against not in (None, *(method.name for method in methods)):
        raise ValueError(f"against={against!r} is none of {[method.name for method in methods]}")
    study = _Study(path, read(path), metric, evaluate)
    for data, split in splits.items():
        part = cache(partial(_part, split))
        for method in tqdm(methods, disable=not progress, desc=data):
            tried = settings(method.grid, trials, key)
            if len(tried) > 1:
                study.train(method, data, part, tried, 0, "valid")
            best = chosen(study.records, data, method.name, tried, metric)
            if best is None:
                raise ValueError(f"{method.name} diverged under all its settings on {data!r}; give others")
            for seed in seeds:
                study.train(method, data, part, [best], seed, "test")
    return table(methods, path, data=list(splits), trials=trials, metric=metric, key=key, against=against)


def _checked(methods: Sequence[Method]) -> list[Method]:
    """The trivial rankers and the methods, whose names must differ."""
    names = [method.name for method in methods]
    twice = sorted({each for each in names if names.count(each) > 1})
    if twice:
        raise ValueError(f"several methods are called {twice[0]!r}; give each a name of its own")
    return [*(ranker for ranker in TRIVIAL if ranker.name not in names), *methods]


def _part(split: Split | Callable[[int], Split], seed: int) -> tuple[Split, str]:
    """The split of a seed, and its fingerprint."""
    split = split(seed) if callable(split) else split
    parts = (split.train, split.valid, split.test)
    return split, "-".join(part.fingerprint() for part in parts if part is not None)


class _Study(NamedTuple):
    """A file with its records, and how runs are evaluated."""

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
        """Trains and records the settings that are not on record."""
        split, fingerprint = part(seed)
        self._check(data, seed, fingerprint)
        if on == "valid" and split.valid is None:
            raise ValueError(f"{method.name} has {len(tried)} settings, but {data!r} has no validation; give it one")
        known = [r["setting"] for r in self.records if is_run(r, data, method.name, on) and r["seed"] == seed]
        new = [setting for setting in tried if written(dict(setting)) not in known]
        groups = [[setting] for setting in new] if method.fit_all is None else [new] * bool(new)
        grid = {hyperparameter: list(values) for hyperparameter, values in method.grid.items()}
        for group in groups:
            wall, cpu, key = time.perf_counter(), time.process_time(), jax.random.key(seed)
            if method.fit_all is None:
                fitted = [method.fit(split.train, split.valid, key, **group[0])]
            else:
                fitted = list(method.fit_all(split.train, split.valid, key, group))
                if len(fitted) != len(group):
                    raise ValueError(f"fit_all of {method.name} gives {len(fitted)} results for {len(group)} settings")
            jax.block_until_ready([each and each[1] for each in fitted])
            shares = {
                "seconds": (time.perf_counter() - wall) / len(group),
                "cpu_seconds": (time.process_time() - cpu) / len(group),
            }
            for setting, found in zip(group, fitted):
                about = {
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
        for other in self.records:
            if (other["data"], other["seed"]) == (data, seed) and other["fingerprint"] != fingerprint:
                raise ValueError(
                    f"{self.path} has runs of other data under the name {data!r}: {other['fingerprint']} under seed "
                    f"{seed}, now {fingerprint}; give the data another name, or the study another folder"
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
        """What a run is found to be worth; a trial that diverged is worth nothing."""
        where = f"{method.name} with {dict(setting)}"
        if fitted is None and on == "test":
            raise ValueError(f"{where} diverged under seed {seed} on {data!r}; take the setting out of the grid")
        if fitted is None:
            return {"valid": {self.metric: None}, "curve": []}
        model, variables, log = fitted
        record: Record = {"valid": {}, "curve": curve(log, self.metric)}
        for judged in ("valid", "test") if on == "test" else ("valid",):
            if judged == "valid" and split.valid is None:
                continue
            if judged == "test" and method.refit is not None:
                whole = split.train if split.valid is None else split.train.union(split.valid)
                model, variables, _ = method.refit(whole, jax.random.key(seed), log, **setting)
            found = self.evaluate(model, variables, split, judged)
            record[judged] = _finite(metrics_of(found), self.metric, f"{where} on {judged} of {data!r}")
        if on == "test" and isinstance(found, Report) and self.metric in found.per_user:
            sums, counts = (
                np.bincount(found.users, w, split.train.n_users) for w in (found.per_user[self.metric], None)
            )
            with np.errstate(invalid="ignore"):
                record["users"] = {self.metric: packed(sums / counts)}
        return record


def _finite(values: Mapping[str, float], metric: str, where: str) -> Mapping[str, float]:
    if metric not in values:
        raise ValueError(f"evaluate gives no {metric!r} for {where}; it gives {sorted(values)}")
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if bad:
        raise ValueError(f"{where} has {bad}; if training diverged, take the setting out of the grid")
    return values


def curve(log: Log | None, metric: str) -> list[list[float | None]]:
    """[epoch, seconds of training so far, metric] of each validation; None for what is not finite."""
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
    """The results of a study from its records. Nothing is trained.

    Args:
        methods: as `run` takes them. A method without runs on test has no row.
        records: path of the file, or what `read` gives.
        data: data sets; None is all that are on record.
        trials: as in `run`.
        metric: as in `run`.
        shown: further metrics to print.
        key: as in `run`.
        against: the row to compare with by paired t-tests: over users, each with its mean over the
            seeds of both rows, and over these seeds. Holm's correction is by data set.

    Raises:
        ValueError: for `against` without a row on a data set, or a metric that is not on record.
    """
    records, rows = read(records) if isinstance(records, str | os.PathLike) else records, []
    by_method: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        by_method.setdefault((record["data"], record["method"]), []).append(record)
    for name in dict.fromkeys(record["data"] for record in records) if data is None else data:
        found = []
        for method in _checked(methods):
            of_method = by_method.get((name, method.name), ())
            found.append(row_of(of_method, name, method, settings(method.grid, trials, key), metric, shown))
        found = [pair for pair in found if pair is not None]
        rows += [row for row, _ in found] if against is None else compared(found, against, metric, name)
    return Table(tuple(rows), metric, tuple(dict.fromkeys([metric, *shown])), against)
