"""What the records of a study show: rows, marks, paired tests, its section of RESULTS.md, stale rows."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

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
    EARLIER: "the grid is an earlier one; a test against a row without this mark counts only if this row is "
    "significantly above",
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
    recorded; one run of a method that draws nothing is enough.
    """
    older, found = this.older(data), set()
    for method in (method for method in this.methods[data]() if method.name in older):
        grid = study.settings(method.grid, this.trials)
        best = study.chosen(records, data, method.name, grid, this.metric(data))
        tests = [r["setting"] for r in records if (r["data"], r["method"], r["on"]) == (data, method.name, "test")]
        enough = 1 if method.name in this.deterministic else min(3, len(this.seeds))
        ran = any(setting in tests for setting in recorded(study.settings(older[method.name])))
        if ran and (best is None or tests.count(recorded(best)) < enough):
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
        over: what it is over, such as "943 users" or "3 seeds".
        sign: 1 if the first method is significantly above, -1 if it is below, 0 for neither, and
            None if the test does not count.
        marks: the marks of both rows.
    """

    difference: float
    stderr: float
    p_value: float
    over: str
    sign: int | None
    marks: str


def tested(
    this: Study, records: Records, pairs: Sequence[tuple[str, str]], data: Sequence[str] = ()
) -> dict[tuple[str, str, str], Test]:
    """Tests pairs of methods on data sets, and corrects the p-values for their number by Holm's method.

    The tests are those of `paired`. If one row alone has an earlier grid, the test only counts where
    that row is significantly above: with the present grid it may be.

    Returns:
        The tests by (data set, one method, the other).
    """
    found = {}
    for label in data or this.methods:
        for pair in pairs:
            if (test := paired(this, records, label, *pair)) is not None:
                found[label, *pair] = test
    corrected = jr.evaluate.holm([test.p_value for test, _ in found.values()])
    tests, rows = {}, tables(this, records) if found else {}
    for (key, (test, over)), p_value in zip(found.items(), corrected):
        sign = 0 if p_value >= LEVEL else 1 if test.difference > 0 else -1
        old = earlier(this, records, key[0]) & {*key[1:]}
        counts = len(old) != 1 or old == {1: {key[1]}, -1: {key[2]}, 0: set()}[sign]
        marks = "".join(sorted({*rows[key[0]][key[1]].marks, *rows[key[0]][key[2]].marks}))
        tests[key] = Test(test.difference, test.stderr, p_value, over, sign if counts else None, marks)
    return tests


def paired(this: Study, records: Records, data: str, one: str, other: str) -> tuple[Comparison, str] | None:
    """Returns the paired test of one method against another, if both have runs on test, and what it is over.

    The test is over users if their values are recorded, each with its mean over the seeds that both
    methods have, else over these seeds.
    """
    runs = [record for record in records if record["data"] == data and record["method"] in (one, other)]
    every = {method.name: method for method in (*study.TRIVIAL, *compared(this, runs, data))}
    if {record["method"] for record in runs if record["on"] == "test"} & {*every} != {one, other}:
        return None
    runs, options = repeated(this, runs), {"metric": this.metric(data), "trials": this.trials, "against": other}
    row = study.table([every[one], every[other]], runs, **options).row(data, one)
    if row.over_users is not None:
        return row.over_users, f"{row.over_users.n_users:,} users"
    return None if row.over_seeds is None else (row.over_seeds, f"{row.over_seeds.n_users} seeds")


def repeated(this: Study, runs: Records) -> list[Mapping[str, Any]]:
    """Returns runs of a data set; a run of a method that draws nothing is repeated for the seeds of other methods.

    These are the seeds with the same split.
    """
    tests = [run for run in runs if run["on"] == "test"]
    seeds, found = {run["seed"]: run.get("fingerprint") for run in tests}, list(runs)
    for run in (run for run in tests if run["method"] in this.deterministic):
        have = {each["seed"] for each in found if (each["method"], each["on"]) == (run["method"], "test")}
        same = [seed for seed, split in seeds.items() if seed not in have and split == run.get("fingerprint")]
        found += [{**run, "seed": seed} for seed in same]
    return found


def claim(this: Study, records: Records, one: str, other: str) -> str:
    """Returns a sentence that says on which data sets a method is above or below another.

    Differences that are not significant, and tests that do not count, are listed too. The sentence
    is empty without any test.
    """
    places: dict[int | None, list[str]] = {1: [], -1: [], 0: [], None: []}
    for (data, *_), test in tested(this, records, [(one, other)]).items():
        numbers = [f"{test.difference:+.4f} ± {test.stderr:.4f}", f"p {test.p_value:.3g} over {test.over}", test.marks]
        places[test.sign].append(f"{data} ({', '.join(filter(None, numbers))})")
    words = {1: "above", -1: "below", 0: "not distinguishable from", None: "not comparable with"}
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
        rule = "Paired differences in the metric that chooses, or that the text names, over users if their values "
        rule += "are recorded, else over seeds. The p-values are those of t-tests, corrected by Holm's method for the "
        rule += f"number of tests of a line, but not for other lines; below {LEVEL:g} a difference counts as "
        rule += "significant. Marks are those of the two rows."
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
            label, tuned = this.tuned_by(data, name)
            if label != data and tuned in known.get(label, {}):
                found[data, name] = f"is not compared, because {label} lacks settings of its grid"
            elif name not in trivial:
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
