"""Pictures of studies: a figure on test against what is varied, for several methods."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any


def picture(path: pathlib.Path, studies: Mapping[str, Any], varied: Mapping[str, str], *, figure: str) -> None:
    """A row a data set, a pane for each thing that is varied.

    Args:
        path: of the file.
        studies: data set -> what is varied -> method -> value -> case, whose "metric" and "stderr" are drawn.
        varied: what is varied -> how it is called.
        figure: name of the metric.
    """
    import matplotlib.pyplot as plt

    size = {"figsize": (4 * len(varied), 3 * len(studies)), "layout": "constrained", "squeeze": False}
    whole, panes = plt.subplots(len(studies), len(varied), **size)
    for row, (data, found) in zip(panes, studies.items()):
        for pane, (what, label) in zip(row, varied.items()):
            for name, points in found.get(what, {}).items():
                means, spread = ([case[key] or 0 for case in points.values()] for key in ("metric", "stderr"))
                pane.errorbar(range(len(points)), means, yerr=spread, marker=".", capsize=3, label=name)
                pane.set_xticks(range(len(points)), list(points))
                pane.legend(fontsize=7)
            pane.set(title=data, xlabel=label, ylabel=figure)
    whole.savefig(path, dpi=110)
