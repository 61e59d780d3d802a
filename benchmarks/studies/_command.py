"""The command of a study."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import _record
from benchmarks.studies._plots import picture
from benchmarks.studies._results import records_of, section, tables
from benchmarks.studies._study import Study
from jaxrec import study


def main(this: Study) -> None:
    """Trains what is not recorded yet, draws the plot and prints the section."""
    parser = _record.parser(f"studies.{this.name}", this.about, "records nothing")
    usual = [data for data in this.methods if data not in this.optional]
    parser.add_argument("--data", nargs="+", choices=list(this.methods), help=f"default: {', '.join(usual)}")
    parser.add_argument("--method", nargs="+", help="names of methods to train (default: all)")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(this.seeds), help="seeds of the runs on test")
    parser.add_argument("--table", action="store_true", help="train nothing; show the recorded results")
    options = parser.parse_args()
    if options.quick:
        print(json.dumps({"benchmark": f"studies.{this.name}", "cases": quick(this)}))
        return
    if not options.table:
        train(this, options.data or usual, options.method, options.seeds)
    records = records_of(this.name)
    found = tables(this, records)
    if this.panes is not None and not options.table:
        picture(_record.RESULTS / f"{this.name}.png", this.panes(found, records))
    print(section(this, records))
    every = cases(row for rows in found.values() for row in rows.values())
    print(json.dumps({"benchmark": f"studies.{this.name}", "cases": every}))


def train(this: Study, data: Sequence[str], names: Sequence[str] | None, seeds: Sequence[int]) -> None:
    """Trains the requested methods that are not recorded yet, one after another."""
    every = {method.name for label in data for method in this.methods[label]()}
    if unknown := set(names or ()) - every:
        raise SystemExit(f"no method {sorted(unknown)[0]!r}; give some of {sorted(every)}")
    for group in this.groups or [[label] for label in this.methods]:
        group = [label for label in group if label in data]
        for name in dict.fromkeys(method.name for label in group for method in this.methods[label]()):
            for label in group if names is None or name in names else ():
                wanted = [method for method in this.methods[label]() if method.name == name]
                options = {"metric": this.metric(label), "evaluate": this.evaluate, "trials": this.trials}
                options |= {"folder": _record.RESULTS, "name": this.name, "progress": False}
                options |= {"seeds": () if label in this.tuned else seeds}
                study.run(wanted, {label: this.split(label)}, **options)
                print(f"{label}: {name} is recorded", flush=True)
                jax.clear_caches()
        for label in group:
            this.finish(label)


def quick(this: Study) -> dict[str, dict[str, float]]:
    """Returns the values of the shortened run."""
    methods, splits = this.quick()
    options = {"metric": this.metric(next(iter(splits))), "evaluate": this.evaluate, "seeds": [0], "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        return cases(study.run(methods, splits, folder=folder, **options).rows)


def cases(rows: Any) -> dict[str, dict[str, float]]:
    """Returns for each data set and method the mean of each metric over seeds."""
    means = lambda row: {name: float(values.mean()) for name, values in row.values.items()}  # noqa: E731
    return {f"{row.data}: {row.method}": means(row) for row in rows}
