"""Plots of the studies: one colour for each method, and names next to the lines."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrec import study

Records = Sequence[Mapping[str, Any]]
Rows = Mapping[str, study.Row]

FEW = 8  # a pane with no more lines has their names next to them, in their colours


def picture(path: pathlib.Path, panes: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Draws rows of panes. Each label has one colour.

    Names are next to the lines; if a pane has many lines, there is one legend for all panes. Nothing
    is drawn if there are no panes.

    Args:
        path: path of the file.
        panes: rows of panes. A pane has "lines": for each label (x, y) or (x, y, error), where None
            as x draws a horizontal line and an error a band. Its other entries, such as "title" or
            "xscale", are set on the Axes.
    """
    if not panes:
        return
    import matplotlib.pyplot as plt

    labels = dict.fromkeys(label for row in panes for pane in row for label in pane["lines"])
    few = all(len(pane["lines"]) <= FEW for row in panes for pane in row)
    colors = {label: plt.cm.tab20(2 * number % 20 + number // 10 % 2) for number, label in enumerate(labels)}
    width = max(map(len, panes))
    size = {"figsize": ((5.4 if few else 4.4) * width + 2 * (not few), 3.4 * len(panes))}
    whole, places = plt.subplots(len(panes), width, **size, layout="constrained", squeeze=False)
    drawn = {}
    for line, row in zip(places, panes):
        for place in line[len(row) :]:
            place.set_axis_off()
        for place, pane in zip(line, row):
            for label, (x, y, *error) in pane["lines"].items():
                if x is None:
                    drawn[label] = place.axhline(y, linestyle=":", color=colors[label])
                    continue
                (drawn[label],) = place.plot(x, y, marker=".", color=colors[label])
                if error:
                    low, high = np.subtract(y, error[0]), np.add(y, error[0])
                    place.fill_between(x, low, high, color=colors[label], alpha=0.2, linewidth=0)
            place.set(**{name: value for name, value in pane.items() if name != "lines"})
            place.tick_params(which="both", labelsize=7)
            if few and len(pane["lines"]) > 1:
                name_lines(place, {label: np.ravel(y)[-1] for label, (_, y, *_) in pane["lines"].items()}, colors)
    if not few:
        whole.legend(drawn.values(), drawn.keys(), loc="outside right upper", fontsize=7)
    whole.savefig(path, dpi=100)
    plt.close(whole)


def name_lines(place: Any, ends: Mapping[str, float], colors: Mapping[str, Any]) -> None:
    """Writes names to the right of an Axes, each at the height where its line ends, but apart."""
    low, high = place.get_ylim()
    heights = {label: float(np.clip((end - low) / (high - low), 0, 1)) for label, end in ends.items()}
    order, apart, top = sorted(heights, key=heights.__getitem__), 0.07, 1.0 - 0.07 * len(heights)
    at = 0.0
    for number, label in enumerate(order):
        at = min(max(heights[label], at), top + apart * (number + 1))
        place.text(1.02, at, label, color=colors[label], fontsize=7, va="center", transform=place.transAxes)
        at += apart


def timed(runs: Records) -> tuple | None:
    """Returns the mean curve of runs: seconds, values on validation and their standard errors.

    Seconds are CPU time if it is recorded. The curve ends where the first of the runs does. It is
    None if there are not two points with a time, or if a run was on an accelerator.
    """
    if any(run.get("device", "cpu") != "cpu" for run in runs):
        return None
    shares = [run["cpu_seconds"] / run["seconds"] if run.get("cpu_seconds") else 1.0 for run in runs]
    length = min((len(run["curve"]) for run in runs), default=0)
    points = np.array([run["curve"][:length] for run in runs], np.float64).reshape(len(runs), length, 3)
    if length < 2 or not np.isfinite(points).all():
        return None
    errors = [stderr(column) or np.nan for column in points[:, :, 2].T]
    return (points[:, :, 1] * np.array(shares)[:, None]).mean(0), points[:, :, 2].mean(0), errors


def varied(rows: Rows, points: Mapping[str, Mapping[str, str]], metric: str) -> dict[str, tuple]:
    """Returns the lines of a pane that varies one value.

    Args:
        rows: the rows of a data set by method.
        points: for each label and value, the name of the method; those without a row are left out.
        metric: the metric to plot.
    """
    lines = {}
    for label, names in points.items():
        found = {value: rows[name].values[metric] for value, name in names.items() if name in rows}
        if found:
            errors = [stderr(values) or np.nan for values in found.values()]
            lines[label] = (list(found), [values.mean() for values in found.values()], errors)
    return lines


def stderr(values: Any) -> float | None:
    """Returns the standard error of the mean; exactly 0 for equal values, None for a single one."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if np.ptp(values) else 0.0
