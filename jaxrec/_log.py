"""The log of a run, the rule that stops it early, and the exceptions that carry both out of a run that failed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from jaxrec._numerics import integer, number


def metrics_of(found: Any) -> dict[str, float]:
    """What a `validate` gave, as named numbers: those of a mapping, or the `means` of a `Report`.

    Raises:
        TypeError: for anything else.
    """
    numbers = getattr(found, "means", found)
    try:
        return {str(name): float(value) for name, value in numbers.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(f"validate gives {found!r:.200}; give name -> number, or a Report ({error})") from None


def extended(record: Mapping[str, float], found: Any) -> dict[str, float]:
    """A record with what a `validate` gave; see `metrics_of`.

    Raises:
        ValueError: for a name that the record has already.
    """
    metrics = metrics_of(found)
    taken = sorted(set(record) & set(metrics))
    if taken:
        raise ValueError(f"validate gives {taken[0]!r}, which the record has already; give it another name")
    return {**record, **metrics}


@dataclasses.dataclass(frozen=True)
class Log:
    """One record an epoch: "epoch", "seconds", and the metrics of `validate` where it ran.

    Training adds "loss" (mean over steps); a solver, whose epoch is a sweep, "objective".

    The first epoch's seconds include compilation. `jaxrec.plotting.learning_curves` draws it.

    >>> log = Log().append({"epoch": 1, "loss": 0.7}).append({"epoch": 2, "loss": 0.6, "ndcg@10": 0.1})
    >>> log.column("ndcg@10")
    ([2], [0.1])
    """

    records: tuple[Mapping[str, float], ...] = ()

    def append(self, record: Mapping[str, float]) -> Log:
        """The log with one more record."""
        return Log((*self.records, dict(record)))

    @property
    def names(self) -> list[str]:
        """Names of all values but "epoch", in order of appearance."""
        return list(dict.fromkeys(name for record in self.records for name in record if name != "epoch"))

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Epochs and values under one name, where it was recorded.

        Raises:
            ValueError: for a name that no record has.
        """
        if name not in self.names:
            raise ValueError(f"the log has no {name!r}; it has {self.names}")
        kept = [record for record in self.records if name in record]
        return [int(record["epoch"]) for record in kept], [record[name] for record in kept]

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with the epoch as index and a column for each name."""
        import pandas as pd

        return pd.DataFrame(self.records, columns=["epoch", *self.names]).set_index("epoch")

    def __repr__(self) -> str:
        if not self.records:
            return "Log(no epochs yet)"
        last = ", ".join(f"{name} {value:.4g}" for name, value in self.records[-1].items() if name != "epoch")
        return f"Log({len(self.records)} epochs; last: {last})"


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Stops when `metric` has not got better for `patience` validations.

    Attributes:
        metric: a name that `validate` gives, such as "ndcg@10".
        patience: validations without a gain before the run ends.
        mode: "max" if larger is better.
        min_delta: a gain must be larger than this.
        ties: a gain may also be equal to `min_delta`, so that what ties with the best is the best. With it and
            `patience=16` this is RecBole's rule, whose patience of 15 must be surpassed.

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
    ties: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise ValueError(f'mode={self.mode!r}; give "max" or "min"')
        if not isinstance(self.metric, str):
            raise TypeError(f'metric={self.metric!r}; give a name, such as "ndcg@10"')
        number("min_delta", self.min_delta, least=0)
        for name, value in (("patience", integer("patience", self.patience)), ("min_delta", float(self.min_delta))):
            object.__setattr__(self, name, value)

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
        gain = sign * (record[self.metric] - state["best"])
        if gain > self.min_delta or (self.ties and gain == self.min_delta):
            return {"best": record[self.metric], "best_epoch": record["epoch"], "waited": 0}, True
        return {**state, "waited": state["waited"] + 1}, False

    def done(self, state: Mapping[str, float]) -> bool:
        """Whether patience is at its end."""
        return state["waited"] >= self.patience

    def never_a_number(self, state: Mapping[str, float]) -> str | None:
        """What is wrong where all validations gave NaN, so that none is the best; None where one gave a number."""
        if state["best_epoch"] or not state["waited"]:
            return None
        return (
            f"{self.metric} was not a number at any of {state['waited']} validations, so that no epoch is the best; "
            "look for NaN in what validate computes (no users to average over?), or at the loss"
        )


class DivergenceError(ValueError):
    """Training has nothing to return: the loss is not finite, or the metric of early stopping never was a number.

    Attributes:
        state: the last good state, in the form that the failed function returns: that of the start of the epoch whose
            loss is not finite, or the last one.
        log: the `Log` of the epochs before.
    """

    def __init__(self, message: str, state: Any, log: Log | None = None):
        super().__init__(message, state, log)  # all three, so that it can be pickled
        self.state, self.log = state, log

    def __str__(self) -> str:
        return self.args[0]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training. It carries what was trained, so that nothing is lost.

    Attributes:
        state: the last state whose epoch was finished, in the form that the interrupted function returns.
        log: its `Log`; empty for a sweep, whose runs have their own.
        best: the best state so far, where early stopping watched a metric; None where no run has one.
    """

    def __init__(self, state: Any, log: Log, best: Any = None):
        super().__init__(state, log, best)
        self.state, self.log, self.best = state, log, best

    def __str__(self) -> str:
        return "training was interrupted; .state and .log of this jaxrec.train.Interrupted hold what was trained"
