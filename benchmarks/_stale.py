"""Which rows of the tables are older than the grid of their method.

The setting of a row is the best of a grid on validation. Once the grid has changed, the row is no longer what its
command gives. Each study says by `cells(records)` what its records compared, and what its grids hold today.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrec import study

Setting = Mapping[str, Any]

KNOWN = {
    ("valid", "gowalla-valid", "MF, CCL"): "three of ten settings were run, so that it has no row",
}
"""(study, data set, method) -> why `python -m benchmarks.report --check` lets this one pass."""


class Cell(NamedTuple):
    """A method on a data set.

    Attributes:
        data: the data set, or what else heads a table.
        method: the row's name.
        compared: the settings that have a record of selection.
        grid: the settings that would be compared today; none for a method that is no more.
        chosen: the setting that the comparison gives; None where it is looked up when the table is made.
        runs: the settings of the runs that the row is the mean of.
    """

    data: str
    method: str
    compared: Sequence[Setting]
    grid: Sequence[Setting]
    chosen: Setting | None = None
    runs: Sequence[Setting] = ()


def why(cell: Cell) -> str:
    """What makes the records of a cell stale; empty where they are those of today's grid."""
    compared, grid = ({_key(setting): setting for setting in settings} for settings in (cell.compared, cell.grid))
    missing = [setting for key, setting in grid.items() if key not in compared]
    extra = [setting for key, setting in compared.items() if key not in grid]
    other = [setting for setting in cell.runs if _key(setting) != _key(cell.chosen)]
    reasons = {"has no record of": missing, "compared, though it is not in the grid,": extra}
    reasons[f"ran, though {cell.chosen} was chosen,"] = other
    return "; ".join(f"{reason} {_first(settings)}" for reason, settings in reasons.items() if settings)


def same(settings: Iterable[Setting], others: Iterable[Setting]) -> bool:
    """Whether both hold the same settings, in any order."""
    return {_key(setting) for setting in settings} == {_key(setting) for setting in others}


def stale(study: str, cells: Iterable[Cell]) -> dict[tuple[str, str, str], str]:
    """(study, data set, method) -> what is wrong, of the cells whose records are not those of today's grid."""
    return {(study, cell.data, cell.method): reason for cell in cells if (reason := why(cell))}


def of_runs(
    records: Iterable[Mapping[str, Any]],
    grid: Mapping[tuple[str, str], Sequence[Setting]],
    besides: Mapping[tuple[str, str], Sequence[Setting]],
) -> list[Cell]:
    """Cells of a study where each setting's run on seed 0 is the record of selection.

    Args:
        records: with "data", "method", "setting" and "seed".
        grid: (data set, method) -> settings to compare; none for what is not among the keys.
        besides: (data set, method) -> settings that are run to vary one thing, and choose nothing.
    """
    compared: dict[tuple[str, str], list[Setting]] = {}
    for record in records:
        where = record["data"], record["method"]
        chooses = {_key(setting) for setting in grid.get(where, ())}
        varies = {_key(setting) for setting in besides.get(where, ())} - chooses
        if record["seed"] == 0 and _key(record["setting"]) not in varies:
            compared.setdefault(where, []).append(record["setting"])
    return [Cell(*where, settings, grid.get(where, ())) for where, settings in compared.items()]


def of_study(
    records: Sequence[Mapping[str, Any]],
    tables: Mapping[str, study.Table],
    grids: Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]],
) -> list[Cell]:
    """Cells of the records that `jaxrec.study` keeps. What is left of another grid counts for nothing.

    Args:
        records: of a study.
        tables: data set -> its table.
        grids: data set -> method -> grid.
    """
    cells, trivial = [], {method.name for method in study.TRIVIAL}
    for data, name in dict.fromkeys((record["data"], record["method"]) for record in records):
        tried = [r["setting"] for r in records if (r["data"], r["method"], r["on"]) == (data, name, "valid")]
        if name in grids[data]:
            grid = study.settings(grids[data][name])
            tried = grid if len(grid) == 1 else [setting for setting in tried if setting in grid]
            chosen = study.chosen(records, data, name, grid, tables[data].metric)
            runs = [row.setting for row in tables[data].rows if row.method == name]
            cells.append(Cell(data, name, tried, grid, chosen, runs))
        elif name not in trivial:
            cells.append(Cell(data, name, tried, ()))
    return [cell for cell in cells if cell.method not in trivial]


def _key(value: Any) -> Any:
    """The same for equal settings, whatever holds them."""
    if isinstance(value, Mapping):
        return frozenset((name, _key(each)) for name, each in value.items())
    return tuple(map(_key, value)) if isinstance(value, list | tuple) else value


def _first(settings: Sequence[Setting]) -> str:
    return f"{dict(settings[0])}" + (f" and {len(settings) - 1} more" if len(settings) > 1 else "")
