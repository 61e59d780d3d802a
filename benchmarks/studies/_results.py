"""What the records of a study show: rows, marks, paired tests, its section of RESULTS.md, stale rows."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

import jaxrec as jr
from benchmarks import _record
from benchmarks.studies._plots import stderr
from benchmarks.studies._study import Records, Rows, Study, ends
from jaxrec import study
from jaxrec.evaluate.report import Comparison

LEVEL = 0.05  # significance level of the tests behind a claim
HEADS = {"ndcg": "NDCG", "recall": "Recall", "mrr": "MRR", "hit_rate": "HR", "auc": "AUC"}
EARLIER = "°"
MARKS = {
    **study.MARKS,
    EARLIER: "the grid is an earlier one with fewer settings; against rows without this mark it counts only where it "
    "is significantly above",
}


# ---------------------------------------------------------------------- rows


@lru_cache(maxsize=8)
def _read(path: pathlib.Path, *_: int) -> list[dict[str, Any]]:
    """Reads records; the further arguments are the file's time and size, for the cache."""
    return study.read(path)


def records_of(name: str) -> list[dict[str, Any]]:
    """Returns the recorded runs of a study."""
    path = _record.RESULTS / f"{name}.jsonl"
    return _read(path, path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else []


def earlier(this: Study, records: Records, data: str) -> set[str]:
    """Returns the methods of a data set whose row has its earlier grid.

    The present grid takes over once its trials, and at least three of its runs on test, are
    recorded.
    """
    older, found = this.older(data), set()
    for method in (method for method in this.methods[data]() if method.name in older):
        grid = study.settings(method.grid, this.trials)
        best = study.chosen(records, data, method.name, grid, this.metric(data))
        tests = [r["setting"] for r in records if (r["data"], r["method"], r["on"]) == (data, method.name, "test")]
        if best is None or tests.count(recorded(best)) < min(3, len(this.seeds)):
            found.add(method.name)
    return found


def compared(this: Study, records: Records, data: str) -> list[study.Method]:
    """Returns the methods of a data set, each with the grid that its row has; see `earlier`."""
    old, grids = earlier(this, records, data), this.older(data)
    return [m._replace(grid=grids[m.name]) if m.name in old else m for m in this.methods[data]()]


def grids(this: Study, records: Records, data: str) -> Callable[[str], Mapping[str, Sequence[Any]]]:
    """Returns a function of a method's name that returns the grid from which its row was chosen."""

    @lru_cache
    def of(label: str) -> dict[str, Mapping[str, Sequence[Any]]]:
        return {method.name: method.grid for method in compared(this, records, label)}

    def grid(name: str) -> Mapping[str, Sequence[Any]]:
        label, method = this.tuned_by(data, name)
        return of(label).get(method, {})

    return grid


def tables(this: Study, records: Records) -> dict[str, Rows]:
    """Returns the rows of each data set by method, with all marks."""
    found = {}
    for data in this.methods:
        of_data = [record for record in records if record["data"] == data]
        options = {"data": [data], "metric": this.metric(data), "trials": this.trials}
        table = study.table(compared(this, of_data, data), of_data, **options)
        if table.rows:
            old, grid = earlier(this, of_data, data), grids(this, records, data)

            def marked(row: study.Row, old: set[str] = old, grid: Any = grid) -> study.Row:
                star, rest = "*" * bool(ends(row, grid(row.method))), row.marks.replace("*", "")
                return row._replace(marks=star + rest + EARLIER * (row.method in old))

            found[data] = {row.method: marked(row) for row in table.rows}
    return found


def recorded(value: Any) -> Any:
    """Returns a setting, or several, as a record has it: tuples become lists."""
    return json.loads(json.dumps(value))


def mean_of(values: np.ndarray, digits: int = 4, sign: str = "") -> str:
    """Returns "mean ± standard error over seeds"."""
    error = stderr(values)
    return f"{values.mean():{sign}.{digits}f}" + (f" ± {error:.{digits}f}" if error else "")


def less(row: study.Row, other: study.Row, metric: str) -> np.ndarray:
    """Returns a row's values on test minus another's, for the seeds that both have."""
    by_seed = dict(zip(other.seeds, other.values[metric]))
    pairs = zip(row.seeds, row.values[metric])
    return np.array([value - by_seed[seed] for seed, value in pairs if seed in by_seed])


# ---------------------------------------------------------------------- paired tests


class Test(NamedTuple):
    """A paired test of one method against another on a data set.

    Attributes:
        difference: mean of the differences.
        stderr: standard error of the difference.
        p_value: p-value of the t-test, corrected for the number of tests.
        sign: 1 if the first method is significantly above, -1 if it is below, 0 for neither.
        marks: the marks of both rows.
    """

    difference: float
    stderr: float
    p_value: float
    sign: int
    marks: str


def tested(
    this: Study, records: Records, pairs: Sequence[tuple[str, str]], data: Sequence[str] = ()
) -> dict[tuple[str, str, str], Test]:
    """Tests pairs of methods on data sets, and corrects the p-values for their number by Holm's method.

    The tests are those of `paired`. Where one row alone has an earlier grid, the test only counts if
    that row is significantly above: with more settings it may be.

    Returns:
        The tests by (data set, one method, the other).
    """
    found = {}
    for label in data or this.methods:
        for pair in pairs:
            if (test := paired(this, records, label, *pair)) is not None:
                found[label, *pair] = test
    corrected = jr.evaluate.holm([test.p_value for test in found.values()])
    tests, rows = {}, tables(this, records) if found else {}
    for (key, test), p_value in zip(found.items(), corrected):
        sign = 0 if p_value >= LEVEL else 1 if test.difference > 0 else -1
        old = earlier(this, records, key[0]) & {*key[1:]}
        above = {1: {key[1]}, -1: {key[2]}, 0: set()}[sign]
        if len(old) != 1 or old == above:
            marks = {*rows[key[0]][key[1]].marks, *rows[key[0]][key[2]].marks}
            tests[key] = Test(test.difference, test.stderr, p_value, sign, "".join(sorted(marks)))
    return tests


def paired(this: Study, records: Records, data: str, one: str, other: str) -> Comparison | None:
    """Returns the paired test of one method against another, if both have runs on test.

    The test is over users if their values are recorded, else over seeds. A ranker that draws nothing
    has one run, with which each run of the other method is compared.
    """
    runs = [record for record in records if record["data"] == data and record["method"] in (one, other)]
    every = {method.name: method for method in (*study.TRIVIAL, *compared(this, runs, data))}
    if {record["method"] for record in runs if record["on"] == "test"} & {*every} != {one, other}:
        return None
    metric = this.metric(data)
    table = study.table([every[one], every[other]], runs, metric=metric, trials=this.trials, against=other)
    row = table.row(data, one)
    if (test := row.over_users or row.over_seeds) is None and len(row.seeds) > 1 and other in ("item id", "popularity"):
        values = row.values[metric] - table.row(data, other).values[metric].mean()
        p_value = scipy.stats.ttest_1samp(values, 0).pvalue
        return Comparison(values.mean(), stderr(values), p_value, len(values))
    return test


def claim(this: Study, records: Records, one: str, other: str) -> str:
    """Returns a sentence that says on which data sets a method is above or below another.

    Differences that are not significant are listed too. The sentence is empty without any test.
    """
    places: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for (data, *_), test in tested(this, records, [(one, other)]).items():
        numbers = [f"{test.difference:+.4f} ± {test.stderr:.4f}", f"p {test.p_value:.3g}", test.marks]
        places[test.sign].append(f"{data} ({', '.join(filter(None, numbers))})")
    words = {1: "above", -1: "below", 0: "not distinguishable from"}
    said = [f"{words[sign]} {other} on {'; '.join(sets)}" for sign, sets in places.items() if sets]
    return f"{one}: {'; '.join(said)}." if said else ""


# ---------------------------------------------------------------------- the section


def head(metric: str) -> str:
    """Returns the title of a metric in a table."""
    before, space, name = metric.rpartition(" ")
    name, at, cut = name.partition("@")
    return before + space + HEADS.get(name, name) + at + cut


def section(this: Study, records: Records) -> str:
    """Returns the study's section of RESULTS.md."""
    found = tables(this, records)
    said = [each for pair in this.claims if (each := claim(this, records, *pair))]
    parts = [f"## {this.title}", this.about.strip()]
    if said:
        rule = "Paired differences in the metric by which validation chooses, over users if their values are "
        rule += "recorded, else over seeds. The p-values are those of t-tests, corrected by Holm's method for the "
        rule += f"number of tests of a line; below {LEVEL:g} a difference counts as significant. Marks are those of "
        rule += "the two rows."
        parts.append(f"**What the records show.** {rule}\n\n" + "\n".join(f"- {each}" for each in said))
    used: set[str] = set()
    for data, rows in found.items():
        grid = grids(this, records, data)
        rows = {name: row for name, row in rows.items() if this.listed(name)}
        columns: dict[str, Sequence[str]] = {"method": list(rows)}
        shown = {m: [row.values.get(m, ()) for row in rows.values()] for m in this.shown(data)}
        columns |= {head(m): [mean_of(x) if len(x) else "" for x in found] for m, found in shown.items()}
        columns |= this.columns(data, rows)
        columns["chosen"] = [this.chosen(row, grid(name)) for name, row in rows.items()]
        columns["seeds"] = [str(len(row.seeds)) for row in rows.values()]
        columns["marks"] = [row.marks.replace("*", "") for row in rows.values()]  # the setting has the stars
        used |= set("".join(columns["marks"])) | set("*" if "*" in "".join(columns["chosen"]) else "")
        kept = {title: cells for title, cells in columns.items() if any(cells)}
        parts.append(f"### {data}\n\n{_record.table(list(kept), list(zip(*kept.values())))}")
    legend = [f"{mark}: {what}." for mark, what in MARKS.items() if mark in used]
    parts.append(" ".join(["Means ± standard error over seeds.", *legend]))
    if after := this.after(found, records):
        parts.append(after)
    if this.panes is not None and this.panes(found, records):
        parts.append(f"![{this.title}](benchmarks/results/{this.name}.png)")
    return "\n\n".join([*parts, origin(this, records)])


def origin(this: Study, records: Records) -> str:
    """Returns a line that says where the values come from."""
    data = {record["data"]: record["fingerprint"].partition("-")[0] for record in reversed(records)}
    prints = ", ".join(f"{name} {data[name]}" for name in this.methods if name in data)
    where = f"`python -m benchmarks.studies.{this.name}`, {len(records)} runs in `benchmarks/results/{this.name}.jsonl`"
    return f"{where}; fingerprints of the train parts: {prints}."


def stale(this: Study, records: Records) -> dict[tuple[str, str], str]:
    """Finds records that do not match the current grids.

    Returns:
        For each (data set, method), what is wrong.
    """
    found, trivial = {}, {method.name for method in study.TRIVIAL}
    rows = tables(this, records)
    known = {data: {each.name: each for each in compared(this, records, data)} for data in this.methods}
    for data, name in dict.fromkeys((record["data"], record["method"]) for record in records):
        methods = known.get(data, {})
        if name not in methods:
            if name not in trivial:
                found[data, name] = "is recorded, but is no longer compared"
            continue
        tried = [r["setting"] for r in records if (r["data"], r["method"], r["on"]) == (data, name, "valid")]
        grid = study.settings(methods[name].grid, this.trials)
        missing = [each for each in recorded(grid) if each not in tried] if len(grid) > 1 else []
        row = rows.get(data, {}).get(name)
        if missing:
            found[data, name] = f"lacks {len(missing)} settings of its grid, such as {missing[0]}"
        elif row is not None and "!" in row.marks:
            found[data, name] = f"ran with {dict(row.setting)}, which is not what validation chooses"
    return found
