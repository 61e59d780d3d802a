"""Results of studies: builds the rows of a table from records, with marks and paired tests."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec._records import Record, unpacked, written
from jaxrec.evaluate.compare import holm as holm
from jaxrec.evaluate.report import Comparison, Report

Setting = Mapping[str, Any]

MARKS = {
    "*": "a chosen value is at an end of its grid; values beyond it may be better",
    "^": "the best epoch is the last one; more epochs may be better",
    "1": "fewer than three seeds",
    "!": "the record is older than its grid; run the study again",
}


class Row(NamedTuple):
    """The results of a method on a data set.

    Attributes:
        data: name of the data set.
        method: name of the method.
        setting: the setting that validation chose.
        values: for each metric float64 [S], its value on test for each seed.
        valid: the same on validation.
        seeds: the S seeds.
        epochs: the best epoch of each run according to its log, or None.
        trials: number of settings that were tried.
        cpu_seconds: CPU time of each run's training, over all threads; None if not recorded, as on an accelerator.
        search_seconds: CPU time of all trials in total; None if not recorded.
        marks: the characters of `MARKS` that apply.
        ends: hyperparameters whose value is at an end of their grid.
        over_users: paired comparison with the reference row over users, each with its mean over
            seeds. None for the reference row itself, and with fewer than two users.
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
    cpu_seconds: Sequence[float | None] = ()
    search_seconds: float | None = None
    over_users: Comparison | None = None
    over_seeds: Comparison | None = None
    p_users: float | None = None
    p_seeds: float | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Table:
    """The results of a study. It prints as text, and as HTML in a notebook.

    Attributes:
        rows: one `Row` for each method on each data set.
        metric: the metric by which validation chose, and which the tests compare.
        shown: the metrics that are printed.
        against: the method with which the others are compared, or None.
    """

    rows: tuple[Row, ...]
    metric: str
    shown: tuple[str, ...]
    against: str | None = None

    def row(self, data: str, method: str) -> Row:
        """Returns the row of a method on a data set.

        Raises:
            ValueError: if there is none.
        """
        for row in self.rows:
            if (row.data, row.method) == (data, method):
                return row
        raise ValueError(f"no row {method!r} on {data!r}; there are {[(r.data, r.method) for r in self.rows]}")

    def best(self, data: str) -> str:
        """Returns the name of the method with the largest mean of the metric on a data set."""
        return max(
            (row for row in self.rows if row.data == data),
            key=lambda row: row.values[self.metric].mean(),
        ).method

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Returns the header and the rows as text."""
        head = ["data", "method", *self.shown, "tried", "chosen", "best epochs", "seeds", "marks"]
        head += [f"minus {self.against}", "p (users)", "p (seeds)"] if self.against else []
        return head, [self._cells(row) for row in self.rows]

    def _cells(self, row: Row) -> list[str]:
        chosen = ", ".join(f"{name} {_shown(value)}{'*' * (name in row.ends)}" for name, value in row.setting.items())
        epochs = " ".join(map(str, row.epochs)) if None not in row.epochs else ""
        spread = {name: f" ± {v.std(ddof=1):.4f}" if len(v) > 1 else "" for name, v in row.values.items()}
        values = [f"{row.values[name].mean():.4f}{spread[name]}" for name in self.shown]
        cells = [
            row.data,
            row.method,
            *values,
            str(row.trials),
            chosen,
            epochs,
            str(len(row.seeds)),
            row.marks,
        ]
        if self.against:
            test = row.over_users or row.over_seeds
            cells.append("" if test is None else f"{test.difference:+.4f}")
            cells += ["" if p_value is None else f"{p_value:.2g}" for p_value in (row.p_users, row.p_seeds)]
        return cells

    def legend(self) -> list[str]:
        """Returns sentences that explain the numbers and marks in this table."""
        said = [f"Mean ± standard deviation over seeds; settings chosen by {self.metric} on validation."]
        if self.against:
            said.append(f"p-values are from paired t-tests against {self.against}, with Holm's correction.")
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


def ends(setting: Setting, grid: Mapping[str, Sequence[Any]], *, least: int = 3) -> list[str]:
    """Returns the hyperparameters whose value is at an end of their grid.

    Values beyond an end may be better. The value 0 does not count as an end. Lists of numbers have an
    order if one can sort them so that no entry falls from a list to the next.

    Args:
        setting: the values of the hyperparameters.
        grid: for each hyperparameter, the values that were tried.
        least: grids with fewer different values are not considered, and neither are grids without
            an order.

    >>> ends({"rate": 1.0, "l2": 0.0}, {"rate": [0.1, 0.3, 1.0], "l2": [0.0, 0.1, 0.2]})
    ['rate']
    """
    found = []
    for name, value in setting.items():
        order = _ordered([_row(each) for each in written(list(grid.get(name, ())))])
        if len(order) >= least and value != 0 and _row(written(value)) in (order[0], order[-1]):
            found.append(name)
    return found


def _row(value: Any) -> list[Any]:
    """Returns a list as it is, and any other value as a list of one."""
    return value if isinstance(value, list) else [value]


def _ordered(rows: Sequence[list[Any]]) -> list[list[Any]]:
    """Returns the different rows in order; none if they have no order."""
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for row in rows for x in row)
    if not numeric or len({len(row) for row in rows}) != 1:
        return []
    order = sorted(row for place, row in enumerate(rows) if row not in rows[:place])
    return order if all([*column] == sorted(column) for column in zip(*order)) else []


def is_run(record: Record, data: str, method: str, on: str) -> bool:
    """Returns whether a record is a trial ("valid") or a "test" run of this method and data set."""
    return (record["data"], record["method"], record["on"]) == (data, method, on)


def chosen(records: Sequence[Record], data: str, method: str, tried: Sequence[Setting], metric: str) -> Setting | None:
    """Returns the setting with the best metric on validation, the first one if several are equal.

    Returns None if a trial is missing, or if all of them diverged.
    """
    if len(tried) == 1:
        return tried[0]
    trials = [(run["setting"], run["valid"][metric]) for run in records if is_run(run, data, method, "valid")]
    found = [[value for setting, value in trials if setting == each] for each in written([dict(x) for x in tried])]
    if not all(found):
        return None
    values = [-np.inf if value is None else value for value, *_ in found]
    best = int(np.argmax(values))
    return tried[best] if values[best] > -np.inf else None


def row_of(
    records: Sequence[Record],
    data: str,
    method: Any,
    tried: Sequence[Setting],
    metric: str,
    shown: Sequence[str],
) -> tuple[Row, list[Record]] | None:
    """Builds a method's row; returns it with its runs, or None if there is no run on test."""
    tests = [record for record in records if is_run(record, data, method.name, "test")]
    if not tests:
        return None
    for name, found in ((metric, records), *((name, tests) for name in shown)):
        lacking = [record for record in found if name not in record[record["on"]]]
        if lacking:
            known = sorted(lacking[0][lacking[0]["on"]])
            raise ValueError(f"{name!r} is not recorded for {method.name!r} on {data!r}; give one of {known}")
    setting = chosen(records, data, method.name, tried, metric)
    runs = [record for record in tests if setting is not None and record["setting"] == written(dict(setting))]
    # No run of today's choice: show the latest setting that was run, marked as old.
    old = not runs
    runs = runs or [record for record in tests if record["setting"] == tests[-1]["setting"]]
    runs = sorted(runs, key=lambda record: record["seed"])
    best = [max((p for p in run["curve"] if p[2] is not None), key=lambda p: p[2], default=None) for run in runs]
    capped = any(at is not None and len(run["curve"]) > 1 and at == run["curve"][-1] for at, run in zip(best, runs))
    setting = runs[0]["setting"]
    # If today's grid chooses a setting of an earlier one, the values of both have been compared.
    more = {} if old else {name: written(list(values)) for name, values in method.grid.items()}
    grids = {name: [*values, *more.get(name, ())] for name, values in runs[0]["grid"].items()}
    at_end = ends(setting, grids)
    applies = {"*": bool(at_end), "^": capped, "1": len(runs) < 3, "!": old}
    trials = [record for record in records if is_run(record, data, method.name, "valid")]
    if not old:
        trials = [record for record in trials if record["setting"] in written([dict(each) for each in tried])]
    spent: list[Any] = [record.get("cpu_seconds") for record in trials]
    row = Row(
        data=data,
        method=method.name,
        setting=setting,
        values=_columns(runs, "test"),
        valid=_columns(runs, "valid"),
        seeds=[run["seed"] for run in runs],
        epochs=[None if at is None else at[0] for at in best],
        trials=len(trials) if old else len(tried),
        marks="".join(mark for mark, holds in applies.items() if holds),
        ends=at_end,
        cpu_seconds=[run.get("cpu_seconds") for run in runs],
        search_seconds=sum(spent) if spent and None not in spent else None,
    )
    return row, runs


def _columns(runs: Sequence[Record], part: str) -> dict[str, np.ndarray]:
    """Returns the metrics that all runs have, each as an array over runs."""
    return {
        name: np.array([run[part][name] for run in runs])
        for name in runs[0][part]
        if all(name in run[part] for run in runs)
    }


def compared(found: Sequence[tuple[Row, list[Record]]], against: str, metric: str, data: str) -> list[Row]:
    """Returns the rows of a data set, with paired tests of each against the row `against`."""
    base = next((runs for row, runs in found if row.method == against), None)
    if base is None:
        raise ValueError(f"against={against!r} has no row on {data!r}; give one of {[row.method for row, _ in found]}")
    tests = {row.method: _paired(runs, base, metric) for row, runs in found if row.method != against}
    rows = {row.method: row for row, _ in found}
    for kind, (test, p_value) in enumerate((("over_users", "p_users"), ("over_seeds", "p_seeds"))):
        made: dict[str, Any] = {name: of[kind] for name, of in tests.items() if of[kind] is not None}
        for name, corrected in zip(made, holm([each.p_value for each in made.values()])):
            found_in: dict[str, Any] = {test: made[name], p_value: corrected}
            rows[name] = rows[name]._replace(**found_in)
    return list(rows.values())


def _paired(runs: Sequence[Record], base: Sequence[Record], metric: str) -> tuple[Comparison | None, Comparison | None]:
    """Returns the tests over users and over seeds, for the seeds that both rows have.

    A test with fewer than two values is None.
    """
    by_number = {run["seed"]: run for run in base}
    pairs = [(run, by_number[run["seed"]]) for run in runs if run["seed"] in by_number]
    seeds = np.array([one["test"][metric] - other["test"][metric] for one, other in pairs])
    users = np.zeros(0)
    if pairs and all(metric in run.get("users", {}) for pair in pairs for run in pair):
        values = [[unpacked(run["users"][metric]) for run in pair] for pair in pairs]
        # Users without test pairs are NaN.
        by_seed = np.array([one - other for one, other in values])
        counts = (~np.isnan(by_seed)).sum(0)
        users = np.nansum(by_seed, 0)[counts > 0] / counts[counts > 0]
    return _test(users), _test(seeds)


def _test(differences: np.ndarray) -> Comparison | None:
    """Returns the paired t-test of differences; None for fewer than two."""
    if len(differences) < 2:
        return None
    report = lambda values: Report(np.arange(len(values)), {"": values}, {}, None, "")  # noqa: E731
    return report(differences).compare(report(np.zeros(len(differences))), "")


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
