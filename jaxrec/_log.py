"""The log of a run, early stopping, and the exceptions that carry the results of a failed run."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from jaxrec._numerics import integer, number
from jaxrec._partials import check_function


def check_validate(validate: Any) -> None:
    """Raises `TypeError` if `validate` is neither None nor a function."""
    if validate is not None:
        check_function("validate", validate, "lambda variables: full_ranking(model, variables, train, valid)")


def metrics_of(found: Any) -> dict[str, float]:
    """Returns the metrics that a `validate` function returned, as a dict of floats.

    Args:
        found: a mapping from names to numbers, or a `Report`, whose `means` are taken.

    Raises:
        TypeError: for anything else.
    """
    numbers = getattr(found, "means", found)
    try:
        return {str(name): float(value) for name, value in numbers.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(
            f"validate gives {found!r:.200}; return a mapping from names to numbers, or a Report ({error})"
        ) from None


def extended(record: Mapping[str, float], found: Any) -> dict[str, float]:
    """Adds the metrics of `validate` to a record; see `metrics_of`.

    Raises:
        ValueError: for a name that the record already has.
    """
    metrics = metrics_of(found)
    taken = sorted(set(record) & set(metrics))
    if taken:
        raise ValueError(f"validate gives {taken[0]!r}, which the record already has; use another name")
    return {**record, **metrics}


@dataclasses.dataclass(frozen=True)
class Log:
    """The log of a run: one record for each epoch.

    A record holds "epoch", "seconds" and, if `validate` ran, its metrics. Training adds "loss", the
    mean over the steps. A solver, whose epochs are sweeps, adds "objective". "seconds" is the
    wall time of the epoch without compilation. `jaxrec.plotting.learning_curves` plots a log.

    Attributes:
        records: the records, in order of the epochs.
        setup_seconds: the time before the first epoch, to prepare the data and put them on the
            device.
        compile_seconds: the time that tracing and compilation took, from the first epoch to the
            last validation. After a resume it does not include that of earlier calls.
        watched: the metric that early stopping watched, or None.
        watched_mode: "max" if a larger value of it is better, or "min".
        best_epoch: the best epoch by that metric, whose state is returned; None without early
            stopping, and before the first validation.

    >>> log = Log().append({"epoch": 1, "loss": 0.7}).append({"epoch": 2, "loss": 0.6, "ndcg@10": 0.1})
    >>> log.column("ndcg@10")
    ([2], [0.1])
    """

    records: tuple[Mapping[str, float], ...] = ()
    setup_seconds: float = dataclasses.field(default=0.0, compare=False)
    compile_seconds: float = dataclasses.field(default=0.0, compare=False)
    watched: str | None = dataclasses.field(default=None, compare=False)
    watched_mode: Literal["max", "min"] = dataclasses.field(default="max", compare=False)
    best_epoch: int | None = dataclasses.field(default=None, compare=False)

    def append(self, record: Mapping[str, float]) -> Log:
        """Returns the log with one more record."""
        return dataclasses.replace(self, records=(*self.records, dict(record)))

    @property
    def names(self) -> list[str]:
        """Names of all values except "epoch", in order of appearance."""
        return list(dict.fromkeys(name for record in self.records for name in record if name != "epoch"))

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Returns the epochs and values of one name, for the records that have it.

        Raises:
            ValueError: for a name that no record has.
        """
        if name not in self.names:
            raise ValueError(f"the log has no {name!r}; it has {self.names}")
        kept = [record for record in self.records if name in record]
        return [int(record["epoch"]) for record in kept], [record[name] for record in kept]

    def best(self, metric: str | None = None, *, mode: Literal["max", "min"] | None = None) -> dict[str, float]:
        """Returns the record of the best epoch.

        Args:
            metric: the name of a value, such as "ndcg@10"; the earliest epoch with its best value
                is the best. None is the metric that early stopping watched, and gives the epoch
                whose state was returned.
            mode: "max" if larger is better, "min" if smaller is better. None is that of early
                stopping for the metric that it watched. For others it is "min" if the last word is
                loss, objective, error, rmse, mse or mae, else "max".

        Raises:
            ValueError: if no metric is given and none was watched or validated, no record has the
                metric or the watched epoch, the metric is NaN in all of them, or `mode` is another
                word.

        >>> log = Log(({"epoch": 1, "ndcg@10": 0.1}, {"epoch": 2, "ndcg@10": 0.3}, {"epoch": 3, "ndcg@10": 0.2}))
        >>> log.best("ndcg@10")
        {'epoch': 2, 'ndcg@10': 0.3}
        """
        direction("loss", mode)  # raises for other words
        if metric is None:
            if self.best_epoch is None:
                raise ValueError(f"no early stopping watched a metric; give one of {self.names}")
            for record in self.records:
                if record["epoch"] == self.best_epoch:
                    return dict(record)
            raise ValueError(f"the log has no record of epoch {self.best_epoch}, the best; give a metric")
        self.column(metric)  # raises if there is none
        known = [record for record in self.records if not math.isnan(record.get(metric, math.nan))]
        if not known:
            raise ValueError(f"{metric} is NaN in every record, so that no epoch is the best")
        mode = self.watched_mode if mode is None and metric == self.watched else direction(metric, mode)
        choose = max if mode == "max" else min
        return dict(choose(known, key=lambda record: record[metric]))

    def to_dataframe(self) -> Any:
        """Returns a pandas DataFrame with the epoch as index and one column for each name."""
        import pandas as pd

        return pd.DataFrame(self.records, columns=["epoch", *self.names]).set_index("epoch")

    def __repr__(self) -> str:
        if not self.records:
            return "Log(no epochs yet)"
        last = ", ".join(f"{name} {value:.4g}" for name, value in self.records[-1].items() if name != "epoch")
        spent = f"; compilation {self.compile_seconds:.2g} s" if self.compile_seconds else ""
        best = ""
        if any(record["epoch"] == self.best_epoch for record in self.records) and self.watched is not None:
            best = f"; best: epoch {self.best_epoch}, {self.watched} {self.best()[self.watched]:.4g}"
        return f"Log({len(self.records)} epochs; last: {last}{best}{spent})"


def direction(metric: str, mode: Literal["max", "min"] | None = None) -> Literal["max", "min"]:
    """Returns `mode`, or if it is None, whether a larger or a smaller value of a metric is better.

    Smaller is better if the last word of the name is loss, objective, error, rmse, mse or mae.

    Raises:
        ValueError: if `mode` is another word.

    >>> direction("ndcg@10"), direction("loss"), direction("valid_rmse"), direction("loss", "max")
    ('max', 'min', 'min', 'max')
    """
    if mode not in ("max", "min", None):
        raise ValueError(f'mode={mode!r}; give "max" or "min"')
    falls = re.search(r"(^|[^a-z])(loss|objective|error|rmse|mse|mae)$", str(metric).lower()) is not None
    return mode or ("min" if falls else "max")


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Stops a run when `metric` has not improved for `patience` validations.

    Attributes:
        metric: name of a metric that `validate` returns, such as "ndcg@10".
        patience: number of validations without an improvement after which the run ends.
        mode: "max" if larger is better, "min" if smaller is better. None becomes "min" for a metric
            whose last word is loss, objective, error, rmse, mse or mae, and "max" for others.
        min_delta: an improvement must be larger than this.
        ties: whether a gain equal to `min_delta` is an improvement too, so that a later epoch that
            ties with the best becomes the best. With `ties=True, patience=s + 1` this is RecBole's
            rule for `stopping_step: s`, which stops after more than s failures.

    Raises:
        TypeError: if `metric` is not a string.
        ValueError: if `mode` is another word, `patience` is not an integer of 1 or more, or
            `min_delta` is negative or not finite.

    >>> rule = EarlyStopping("ndcg@10", patience=1)
    >>> state, improved = rule.update(rule.init(), {"epoch": 1, "ndcg@10": 0.2})
    >>> state, improved = rule.update(state, {"epoch": 2, "ndcg@10": 0.1})
    >>> rule.done(state), state["best_epoch"]
    (True, 1)
    """

    metric: str
    patience: int = 5
    mode: Literal["max", "min"] | None = None
    min_delta: float = 0.0
    ties: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str):
            raise TypeError(f'metric={self.metric!r}; give a name, such as "ndcg@10"')
        object.__setattr__(self, "mode", direction(self.metric, self.mode))
        number("min_delta", self.min_delta, least=0)
        for name, value in (("patience", integer("patience", self.patience)), ("min_delta", float(self.min_delta))):
            object.__setattr__(self, name, value)

    def init(self) -> dict[str, float]:
        """Returns the state before the first validation."""
        return {"best": float("-inf") if self.mode == "max" else float("inf"), "best_epoch": 0, "waited": 0}

    def update(self, state: Mapping[str, float], record: Mapping[str, float]) -> tuple[dict[str, float], bool]:
        """Returns the state after a validated record, and whether the record is the best so far.

        NaN is never an improvement.

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
        """Whether the run should stop."""
        return state["waited"] >= self.patience

    def never_a_number(self, state: Mapping[str, float]) -> str | None:
        """Returns an error message if every validation gave NaN, else None."""
        if state["best_epoch"] or not state["waited"]:
            return None
        return (
            f"{self.metric} was not a number at any of {state['waited']} validations, so no epoch is the best; "
            "look for NaN in what validate computes (no users to average over?), or in the loss"
        )


class DivergenceError(ValueError):
    """Training diverged: the loss is not finite, or the metric of early stopping was always NaN.

    Attributes:
        state: the last good state, in the form that the failed function returns. If a loss is not
            finite, this is the state before its epoch; otherwise it is the last state.
        log: the `Log` of the epochs before.
    """

    def __init__(self, message: str, state: Any, log: Log | None = None):
        super().__init__(message, state, log)  # pickle calls the class with these arguments
        self.state, self.log = state, log

    def __str__(self) -> str:
        return self.args[0]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C interrupted training; carries the results so far.

    Attributes:
        state: the state after the last complete epoch, in the form that the interrupted function
            returns.
        log: its `Log`. It is empty for a sweep, whose runs have their own logs.
        best: the best state so far if early stopping watches a metric; None if no run has one.
    """

    def __init__(self, state: Any, log: Log, best: Any = None):
        super().__init__(state, log, best)
        self.state, self.log, self.best = state, log, best

    def __str__(self) -> str:
        return "training was interrupted; .state and .log of this jaxrec.train.Interrupted hold what was trained"
