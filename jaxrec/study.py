"""Studies: several methods compared on the same data with the same effort, every run on record.

`run` tunes each method on validation with the same number of trials, trains the best setting under
every seed, and evaluates it on test. Each run is a line of JSON in one file, which git can compare.
A study that was interrupted continues where it stopped. `table` builds the results from the file.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import itertools
import json
import math
import os
import pathlib
import platform
import subprocess
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxrec import evaluate, models
from jaxrec._log import Log, figures_of
from jaxrec._numerics import integer
from jaxrec.evaluate.report import Comparison, Report
from jaxrec.interactions import DataWarning
from jaxrec.typing import Key, Variables

Setting = Mapping[str, Any]
Split = Any  # with train, valid and test, such as `jaxrec.data.splits.Split`
Record = dict[str, Any]


class Method(NamedTuple):
    """A method and what is tried of it.

    Attributes:
        name: of its row in the table.
        fit: `fit(train, valid, key, **setting) -> (model, variables, log)`. It may use `valid` to
            choose the epoch. `log` is a `jaxrec.train.Log`, or None.
        grid: values to try by hyperparameter. They must be numbers, strings, booleans or lists of
            these, because they are written to a file.
        refit: `refit(train, key, log, **setting) -> (model, variables, log)` trains once more before
            test, on train and validation together. `log` is that of `fit`, which says how long.
            None evaluates what `fit` gave.
    """

    name: str
    fit: Callable[..., tuple[Any, Variables, Log | None]]
    grid: Mapping[str, Sequence[Any]] = {}
    refit: Callable[..., tuple[Any, Variables, Log | None]] | None = None


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


def ends(setting: Setting, grid: Mapping[str, Sequence[Any]], *, least: int = 3) -> list[str]:
    """The hyperparameters at an end of their grid, if it has `least` numbers or more.

    Better values may lie beyond an end. The value 0 is no end, as nothing lies beyond it.

    >>> ends({"rate": 1.0, "l2": 0.0}, {"rate": [0.1, 0.3, 1.0], "l2": [0.0, 0.1, 0.2]})
    ['rate']
    """
    found = []
    for name, value in setting.items():
        values = _written(list(grid.get(name, ())))
        numeric = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
        if numeric and len(set(values)) >= least and value != 0 and value in (min(values), max(values)):
            found.append(name)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method (S. Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    weighted = [min(1.0, (len(order) - place) * float(p_values[at])) for place, at in enumerate(order)]
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(weighted)
    return corrected.tolist()


def full_ranking(model: Any, variables: Variables, split: Split, on: str, *, ks: Sequence[int] = (10, 20)) -> Report:
    """`jaxrec.evaluate.full_ranking` on "valid" or "test"; on test, validation is masked too."""
    known = split.train if on == "valid" else split.train.union(split.valid)
    return evaluate.full_ranking(model, variables, known, getattr(split, on), ks=ks)


# ---------------------------------------------------------------------- records


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

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
        TypeError: for values that JSON does not have.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = line_of(record).encode()
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


def line_of(record: Mapping[str, Any]) -> str:
    """The line of a record. Fields are sorted; what they hold, such as a grid, keeps its order."""
    return json.dumps(dict(sorted(record.items())), ensure_ascii=False, allow_nan=False, default=_plain) + "\n"


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


def _written(value: Any) -> Any:
    """A value as it is read again."""
    return json.loads(json.dumps(value, default=_plain))


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


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.astype("<f4").tobytes())).decode()


def _unpacked(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f4").astype(np.float64)


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
            that gives one.
        folder: where the file is.
        name: of the file.
        seeds: of the runs. Seed s gives `fit` the key `jax.random.key(s)`.
        trials: largest number of settings that a method tries.
        metric: that validation chooses by; larger is better.
        evaluate: `evaluate(model, variables, split, on)` with "valid" or "test" as `on`. It gives a
            `Report`, whose values for each user are kept for paired tests, or name -> value.
        key: typed key of the draws.
        against: the row that the table compares with, see `table`.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for a metric that is not finite or that `evaluate` does not give; for methods of
            the same name; for `against` that is none of them; for a record of other data under the
            same name.

    >>> import tempfile
    >>> from jaxrec.data import splits, synthetic
    >>> order = partial(splits.random_order, key=jax.random.key(0))
    >>> board = splits.ratio(synthetic.checkerboard(24)[0], order=order)
    >>> fit = lambda train, valid, key, **setting: (*models.ease(train, **setting), None)
    >>> ease = Method("EASE", fit, {"regularization": [1.0, 10.0, 100.0]})
    >>> run([ease], {"board": board}, folder=tempfile.mkdtemp(), progress=False).best("board")
    'EASE'
    """
    path, trials = pathlib.Path(folder) / f"{name}.jsonl", integer("trials", trials)
    methods, seeds = _checked(methods), [integer("seed", seed, least=0) for seed in seeds]
    if not seeds:
        raise ValueError("seeds is empty; give at least one seed")
    if against not in (None, *(method.name for method in methods)):
        raise ValueError(f"against={against!r} is none of {[method.name for method in methods]}")
    records = read(path)
    for data, split in splits.items():
        part = cache(partial(_part, split))
        for method in tqdm(methods, disable=not progress, desc=data):
            once = partial(_once, records, path, method, data, part, metric=metric, evaluate=evaluate)
            tried = settings(method.grid, trials, key)
            if len(tried) > 1:
                for setting in tried:
                    once(setting, 0, "valid")
            best = chosen(records, data, method.name, tried, metric)
            for seed in seeds:
                once(best, seed, "test")
    return table(methods, path, data=list(splits), trials=trials, metric=metric, key=key, against=against)


def _checked(methods: Sequence[Method]) -> list[Method]:
    """The trivial rankers and the methods, whose names must differ."""
    names = [method.name for method in methods]
    twice = sorted({each for each in names if names.count(each) > 1})
    if twice:
        raise ValueError(f"several methods are called {twice[0]!r}; give each a name of its own")
    return [*(ranker for ranker in TRIVIAL if ranker.name not in names), *methods]


def chosen(records: Sequence[Record], data: str, method: str, tried: Sequence[Setting], metric: str) -> Setting | None:
    """The setting with the best metric on validation, the first of equals; None if a trial is missing."""
    if len(tried) == 1:
        return tried[0]
    trials = [(run["setting"], run["valid"][metric]) for run in records if _is(run, data, method, "valid")]
    written = _written([dict(setting) for setting in tried])
    values = [next((value for setting, value in trials if setting == each), None) for each in written]
    return None if None in values else max(zip(values, tried), key=lambda pair: pair[0])[1]


def _part(split: Split | Callable[[int], Split], seed: int) -> tuple[Split, str]:
    """The split of a seed, and its fingerprint."""
    split = split(seed) if callable(split) else split
    return split, "-".join(part.fingerprint() for part in (split.train, split.valid, split.test))


def _is(record: Record, data: str, method: str, on: str) -> bool:
    return (record["data"], record["method"], record["on"]) == (data, method, on)


def _once(
    records: list[Record],
    path: pathlib.Path,
    method: Method,
    data: str,
    part: Callable[[int], tuple[Split, str]],
    setting: Setting,
    seed: int,
    on: str,
    *,
    metric: str,
    evaluate: Callable[..., Any],
) -> None:
    """Trains and records one run, unless it is on record."""
    split, fingerprint = part(seed)
    for other in records:
        if (other["data"], other["seed"]) == (data, seed) and other["fingerprint"] != fingerprint:
            raise ValueError(
                f"{path} has runs of other data under the name {data!r}: {other['fingerprint']} under seed {seed}, "
                f"now {fingerprint}; give the data another name, or the study another folder"
            )
    same = {"setting": _written(dict(setting)), "seed": seed}
    if any(_is(other, data, method.name, on) and same.items() <= other.items() for other in records):
        return
    began = time.perf_counter()
    model, variables, log = method.fit(split.train, split.valid, jax.random.key(seed), **setting)
    jax.block_until_ready(variables)
    record = {
        "data": data,
        "fingerprint": fingerprint,
        "method": method.name,
        "grid": {hyperparameter: list(values) for hyperparameter, values in method.grid.items()},
        **same,
        "on": on,
        "seconds": time.perf_counter() - began,
        "curve": curve(log, metric),
        "commit": commit(path.parent),
        "versions": {"jax": jax.__version__, "jaxrec": _version(), "python": platform.python_version()},
    }
    for judged in ("valid", "test") if on == "test" else ("valid",):
        if judged == "test" and method.refit is not None:
            whole = split.train.union(split.valid)
            model, variables, _ = method.refit(whole, jax.random.key(seed), log, **setting)
        found = evaluate(model, variables, split, judged)
        where = f"{method.name} with {dict(setting)} on {judged} of {data!r}"
        record[judged] = _finite(figures_of(found), metric, where)
    if on == "test" and isinstance(found, Report) and metric in found.per_user:
        sums, counts = (np.bincount(found.users, w, split.train.n_users) for w in (found.per_user[metric], None))
        with np.errstate(invalid="ignore"):
            record["users"] = {metric: _packed(sums / counts)}
    append(path, record)
    records.append(_written(record))


def _version() -> str | None:
    try:
        return metadata.version("jaxrec")
    except metadata.PackageNotFoundError:
        return None


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
            points.append([int(record["epoch"]), *(value if math.isfinite(value) else None for value in values)])
    return points


# ---------------------------------------------------------------------- tables

MARKS = {
    "*": "a chosen value at an end of its grid, beyond which better may lie",
    "^": "best epoch at the cap: more epochs may be better",
    "1": "fewer than three seeds",
    "!": "older than its grid: run the study again",
}


class Row(NamedTuple):
    """A method on a data set.

    Attributes:
        data: name of the data set.
        method: name of the method.
        setting: that validation chose.
        values: metric -> float64 [S], its value on test under each seed.
        valid: the same on validation.
        seeds: of these.
        epochs: best epoch of each run by its log, or None.
        trials: settings that were tried.
        marks: the characters of `MARKS` that apply.
        ends: hyperparameters at an end of their grid.
        over_users: paired comparison with the row compared with, over users' means over seeds; None
            for that row itself, and for fewer than two.
        over_seeds: the same over seeds.
        p_users: p-value of `over_users` after Holm's correction.
        p_seeds: p-value of `over_seeds` after Holm's correction.
    """

    data: str
    method: str
    setting: Setting
    values: Mapping[str, np.ndarray]
    valid: Mapping[str, np.ndarray]
    seeds: Sequence[int]
    epochs: Sequence[int | None]
    trials: int
    marks: str
    ends: Sequence[str]
    over_users: Comparison | None = None
    over_seeds: Comparison | None = None
    p_users: float | None = None
    p_seeds: float | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Results of a study. It prints as text, and as HTML in a notebook.

    Attributes:
        rows: one `Row` for each method on each data set.
        metric: that validation chose by, and that is compared.
        shown: metrics that are printed.
        against: the row that others are compared with, or None.
    """

    rows: tuple[Row, ...]
    metric: str
    shown: tuple[str, ...]
    against: str | None = None

    def row(self, data: str, method: str) -> Row:
        """The row of a method on a data set.

        Raises:
            ValueError: if there is none.
        """
        for row in self.rows:
            if (row.data, row.method) == (data, method):
                return row
        raise ValueError(f"no row {method!r} on {data!r}; there are {[(r.data, r.method) for r in self.rows]}")

    def best(self, data: str) -> str:
        """The method with the largest mean of the metric on a data set."""
        return max(
            (row for row in self.rows if row.data == data), key=lambda row: row.values[self.metric].mean()
        ).method

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Head and body as text."""
        head = ["data", "method", *self.shown, "tried", "chosen", "best epochs", "seeds", "marks"]
        head += [f"less {self.against}", "p (users)", "p (seeds)"] if self.against else []
        return head, [self._cells(row) for row in self.rows]

    def _cells(self, row: Row) -> list[str]:
        chosen = ", ".join(f"{name} {_shown(value)}{'*' * (name in row.ends)}" for name, value in row.setting.items())
        epochs = " ".join(map(str, row.epochs)) if None not in row.epochs else ""
        spread = {name: f" ± {v.std(ddof=1):.4f}" if len(v) > 1 else "" for name, v in row.values.items()}
        values = [f"{row.values[name].mean():.4f}{spread[name]}" for name in self.shown]
        cells = [row.data, row.method, *values, str(row.trials), chosen, epochs, str(len(row.seeds)), row.marks]
        if self.against:
            test = row.over_users or row.over_seeds
            cells.append("" if test is None else f"{test.difference:+.4f}")
            cells += ["" if p_value is None else f"{p_value:.2g}" for p_value in (row.p_users, row.p_seeds)]
        return cells

    def legend(self) -> list[str]:
        """What the numbers and the marks in this table mean."""
        said = [f"Mean ± standard deviation over seeds; {self.metric} on validation chose."]
        if self.against:
            said.append(f"p-values are those of paired t-tests against {self.against}, by Holm's correction.")
        return said + [f"{mark} {what}" for mark, what in MARKS.items() if any(mark in row.marks for row in self.rows)]

    def __repr__(self) -> str:
        head, body = self.cells()
        widths = [max(map(len, column)) for column in zip(head, *body)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in (head, *body)]
        return "\n".join([*lines, *self.legend()])

    def _repr_html_(self) -> str:
        head, body = self.cells()
        tag = lambda name, cells: "".join(f"<{name}>{html.escape(cell)}</{name}>" for cell in cells)  # noqa: E731
        lines = "".join(f"<tr>{tag('td', line)}</tr>" for line in body)
        caption = "<br>".join(map(html.escape, self.legend()))
        return f"<table><caption>{caption}</caption><tr>{tag('th', head)}</tr>{lines}</table>"


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
        found = [
            _row(
                by_method.get((name, method.name), ()), name, method, settings(method.grid, trials, key), metric, shown
            )
            for method in _checked(methods)
        ]
        found = [pair for pair in found if pair is not None]
        rows += [row for row, _ in found] if against is None else _compared(found, against, metric, name)
    return Table(tuple(rows), metric, tuple(dict.fromkeys([metric, *shown])), against)


def _row(
    records: Sequence[Record],
    data: str,
    method: Method,
    tried: Sequence[Setting],
    metric: str,
    shown: Sequence[str],
) -> tuple[Row, list[Record]] | None:
    """A row with its runs; None where there is no run on test."""
    tests = [record for record in records if _is(record, data, method.name, "test")]
    if not tests:
        return None
    for name, found in ((metric, records), *((name, tests) for name in shown)):
        lacking = [record for record in found if name not in record[record["on"]]]
        if lacking:
            known = sorted(lacking[0][lacking[0]["on"]])
            raise ValueError(f"{name!r} is not on record for {method.name!r} on {data!r}; there are {known}")
    setting = chosen(records, data, method.name, tried, metric)
    runs = [record for record in tests if setting is not None and record["setting"] == _written(dict(setting))]
    old = not runs
    runs = runs or [record for record in tests if record["setting"] == tests[-1]["setting"]]
    runs = sorted(runs, key=lambda record: record["seed"])
    best = [max((p for p in run["curve"] if p[2] is not None), key=lambda p: p[2], default=None) for run in runs]
    capped = any(at is not None and len(run["curve"]) > 1 and at == run["curve"][-1] for at, run in zip(best, runs))
    setting, at_end = runs[0]["setting"], ends(runs[0]["setting"], runs[0]["grid"])
    applies = {"*": bool(at_end), "^": capped, "1": len(runs) < 3, "!": old}
    row = Row(
        data=data,
        method=method.name,
        setting=setting,
        values=_columns(runs, "test"),
        valid=_columns(runs, "valid"),
        seeds=[run["seed"] for run in runs],
        epochs=[None if at is None else at[0] for at in best],
        trials=sum(_is(record, data, method.name, "valid") for record in records) if old else len(tried),
        marks="".join(mark for mark, holds in applies.items() if holds),
        ends=at_end,
    )
    return row, runs


def _columns(runs: Sequence[Record], part: str) -> dict[str, np.ndarray]:
    """The metrics that all runs have, each as an array over runs."""
    return {
        name: np.array([run[part][name] for run in runs])
        for name in runs[0][part]
        if all(name in run[part] for run in runs)
    }


def _compared(found: Sequence[tuple[Row, list[Record]]], against: str, metric: str, data: str) -> list[Row]:
    """The rows of a data set with the tests of each against one of them."""
    base = next((runs for row, runs in found if row.method == against), None)
    if base is None:
        raise ValueError(f"against={against!r} has no row on {data!r}; there are {[row.method for row, _ in found]}")
    tests = {row.method: _paired(runs, base, metric) for row, runs in found if row.method != against}
    rows = {row.method: row for row, _ in found}
    for kind, (test, p_value) in enumerate((("over_users", "p_users"), ("over_seeds", "p_seeds"))):
        made = {name: of[kind] for name, of in tests.items() if of[kind] is not None}
        for name, corrected in zip(made, holm([each.p_value for each in made.values()])):
            rows[name] = rows[name]._replace(**{test: made[name], p_value: corrected})
    return list(rows.values())


def _paired(runs: Sequence[Record], base: Sequence[Record], metric: str) -> tuple[Comparison | None, Comparison | None]:
    """Tests over users and over seeds, of the seeds that both have; None with fewer than two."""
    theirs = {run["seed"]: run for run in base}
    pairs = [(run, theirs[run["seed"]]) for run in runs if run["seed"] in theirs]
    seeds = np.array([one["test"][metric] - other["test"][metric] for one, other in pairs])
    users = np.zeros(0)
    if pairs and all(metric in run.get("users", {}) for pair in pairs for run in pair):
        values = [[_unpacked(run["users"][metric]) for run in pair] for pair in pairs]
        by_seed = np.array([one - other for one, other in values])
        counts = (~np.isnan(by_seed)).sum(0)
        users = np.nansum(by_seed, 0)[counts > 0] / counts[counts > 0]
    return _test(users), _test(seeds)


def _test(differences: np.ndarray) -> Comparison | None:
    """The paired t-test of differences."""
    if len(differences) < 2:
        return None
    report = lambda values: Report(np.arange(len(values)), {"": values}, {}, None, "")  # noqa: E731
    return report(differences).compare(report(np.zeros(len(differences))), "")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
