"""Early stopping as a value and pure functions on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Stops when `metric` has not got better for `patience` validations.

    Attributes:
        metric: a name that `validate` gives, such as "ndcg@10".
        patience: validations without a gain before the run ends.
        mode: "max" if larger is better.
        min_delta: a gain must be larger than this.

    >>> rule = EarlyStopping("ndcg@10", patience=1)
    >>> state, improved = rule.update(rule.init(), {"epoch": 1, "ndcg@10": 0.2})
    >>> state, improved = rule.update(state, {"epoch": 2, "ndcg@10": 0.1})
    >>> rule.done(state), state["best_epoch"]
    (True, 1)
    """

    metric: str
    patience: int = 5
    mode: Literal["max", "min"] = "max"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise ValueError(f'mode={self.mode!r}; give "max" or "min"')
        if self.patience < 1:
            raise ValueError(f"patience={self.patience}; give 1 or more")

    def init(self) -> dict[str, float]:
        """Nothing seen yet."""
        return {"best": float("-inf") if self.mode == "max" else float("inf"), "best_epoch": 0, "waited": 0}

    def update(self, state: Mapping[str, float], record: Mapping[str, float]) -> tuple[dict[str, float], bool]:
        """Takes one validated record; returns the new state and whether it is the best so far. NaN is no gain.

        Raises:
            ValueError: if the record lacks the metric.
        """
        if self.metric not in record:
            raise ValueError(f"stopping watches {self.metric!r}, but validate gives {sorted(set(record) - {'epoch'})}")
        sign = 1 if self.mode == "max" else -1
        if sign * (record[self.metric] - state["best"]) > self.min_delta:
            return {"best": record[self.metric], "best_epoch": record["epoch"], "waited": 0}, True
        return {**state, "waited": state["waited"] + 1}, False

    def done(self, state: Mapping[str, float]) -> bool:
        """Whether patience is at its end."""
        return state["waited"] >= self.patience
