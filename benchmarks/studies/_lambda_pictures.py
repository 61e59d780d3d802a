"""Pictures of `benchmarks.studies.lambda_opt`: how Λ move, how much one λ matters, and who gains."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Records = Sequence[Mapping[str, Any]]


def picture(path: pathlib.Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """A row a data set: Λ of users and of items by their training pairs, sensitivity to one λ, gains by activity.

    Args:
        path: of the file.
        rows: data set -> "trajectory", a record or None, and "one" and "learned", records of runs.
    """
    import matplotlib.pyplot as plt

    size = {"figsize": (15, 3.3 * len(rows)), "layout": "constrained", "squeeze": False}
    figure, panes = plt.subplots(len(rows), 4, **size)
    for line, (data, row) in zip(panes, rows.items()):
        for pane, side in zip(line, ("user", "item")):
            _trajectories(pane, row["trajectory"], side)
        _sensitivity(line[2], row["one"])
        _gains(line[3], row["one"], row["learned"])
        line[0].set_ylabel("mean Λ")
        for pane in filter(lambda pane: pane.axison, line):
            pane.set_title(f"{data}: {pane.get_title()}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _trajectories(pane: Any, found: Mapping[str, Any] | None, side: str) -> None:
    if found is None:
        pane.axis("off")
        return
    steps = found["steps"] * np.arange(1, len(found[side]) + 1)
    for values, degree in zip(np.array(found[side]).T, found["degrees"][side]):
        pane.plot(steps, values, label=f"{degree:.0f} pairs")
    pane.set(title=f"Λ of {side}s by training pairs", xlabel="step")
    pane.legend(fontsize=7)


def _sensitivity(pane: Any, records: Records) -> None:
    """NDCG@50 on select of each λ of seed 0's grid; 0 stands at the left end."""
    tried = [(setting["regularization"], value) for setting, value, *_ in records[0]["tried"] if value is not None]
    places = range(len(tried))
    pane.plot(places, [value for _, value in tried], marker="o")
    pane.set_xticks(list(places), [f"{value:g}" for value, _ in tried], fontsize=7)
    pane.set(title="one fixed λ", xlabel="λ", ylabel="NDCG@50 on select")


def _gains(pane: Any, one: Records, learned: Records) -> None:
    """NDCG@50 of DUI less that of one λ, by how many training pairs users have; bars are standard errors over seeds."""
    base = {record["seed"]: np.array(record["test"]["by_activity"]) for record in one}
    pairs = [(base[r["seed"]], np.array(r["test"]["by_activity"])) for r in learned if r["seed"] in base]
    gains = np.array([after[:, 1] - before[:, 1] for before, after in pairs])
    spread = gains.std(0, ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else None
    pane.bar(range(gains.shape[1]), gains.mean(0), yerr=spread, capsize=3)
    pane.set_xticks(range(gains.shape[1]), [f"{degree:.0f}" for degree in pairs[0][0][:, 0]])
    pane.axhline(0, color="black", linewidth=0.8)
    pane.set(title="gain of DUI over one λ", xlabel="mean training pairs of a fifth of the users", ylabel="NDCG@50")
