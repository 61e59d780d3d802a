"""Pictures of studies: figures on test against what is varied, for several methods."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Pane(NamedTuple):
    """What a pane shows.

    Attributes:
        varied: what is varied, a key of the studies.
        label: how that is called.
        figure: how the figure is called.
        key: the figure's in the cases; with its standard error as "stderr" where it is "metric", None of one seed.
    """

    varied: str
    label: str
    figure: str
    key: str = "metric"


def picture(path: pathlib.Path, studies: Mapping[str, Any], panes: Sequence[Pane]) -> None:
    """A row a data set, with a pane for each study of it; panes of the same figure share its axis.

    Args:
        path: of the file.
        studies: data set -> what is varied -> method -> value -> case.
        panes: of every row.
    """
    import matplotlib.pyplot as plt

    size = {"figsize": (4 * len(panes), 3 * len(studies)), "layout": "constrained", "squeeze": False}
    whole, places = plt.subplots(len(studies), len(panes), **size)
    for row, (data, found) in zip(places, studies.items()):
        scales = {}
        for place, pane in zip(row, panes):
            methods = found.get(pane.varied, {})
            if (first := scales.setdefault(pane.figure, place)) is not place:
                place.sharey(first)
            values = list(dict.fromkeys(value for points in methods.values() for value in points))
            for name, points in methods.items():
                spread = [case["stderr"] or float("nan") for case in points.values()] if pane.key == "metric" else None
                at, means = [values.index(value) for value in points], [case[pane.key] for case in points.values()]
                place.errorbar(at, means, yerr=spread, marker=".", capsize=3, label=name)
            if methods:
                place.set_xticks(range(len(values)), values)
                place.legend(fontsize=7)
                place.set(title=data, xlabel=pane.label, ylabel=pane.figure)
            else:
                place.set_axis_off()
    whole.savefig(path, dpi=110)
