"""Results of a sweep: one record per run, and tables and paired tests over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxrec._log import Log, direction, metrics_of
from jaxrec._numerics import as_integer, integer
from jaxrec._partials import check_function
from jaxrec.evaluate.report import Report
from jaxrec.train.loop import State
from jaxrec.typing import Variables


class Run(NamedTuple):
    """One run of a sweep.

    Attributes:
        setting: name -> value, a number or a NumPy array.
        seed: index of its key among the sweep's keys.
        log: the run's `Log`. "seconds" is the run's share of the epoch's time. If the run diverged,
            the log ends before the epoch in which it did.
        epoch: the epoch of its state and metrics.
        metrics: name -> value at that epoch: "loss", the metrics of `validate`, and those of
            `Sweep.evaluate`. Empty if the run diverged.
        diverged: what happened if the run diverged, else None.
    """

    setting: Mapping[str, Any]
    seed: int
    log: Log
    epoch: int
    metrics: Mapping[str, float]
    diverged: str | None


class Setting(dict):
    """Name -> value of one setting of a sweep, a type that `Sweep.compare` can recognise."""


class Row(NamedTuple):
    """A row of the table: one setting.

    Attributes:
        setting: name -> value.
        mean: mean over the seeds that did not diverge; NaN if all did.
        deviation: sample standard deviation over these seeds (ddof 1); NaN for fewer than two.
        n: the number of these seeds.
        diverged: the number of seeds that diverged.
    """

    setting: Mapping[str, Any]
    mean: float
    deviation: float
    n: int
    diverged: int


class PairedSeeds(NamedTuple):
    """A paired comparison of two settings under the same keys.

    Attributes:
        difference: mean over seeds of first − second.
        stderr: standard error of the difference.
        t: statistic of the paired t-test.
        p_value: two-sided p-value of the t-test.
        wilcoxon_p_value: p-value of the signed-rank test; NaN for fewer than 6 non-zero
            differences, with which it cannot fall below .05.
        n_seeds: number of seeds for which both settings have a value.
    """

    difference: float
    stderr: float
    t: float
    p_value: float
    wilcoxon_p_value: float
    n_seeds: int

    def __repr__(self) -> str:
        wilcoxon = "" if np.isnan(self.wilcoxon_p_value) else f", Wilcoxon p = {self.wilcoxon_p_value:.3g}"
        return (
            f"{self.difference:+.4g} ± {self.stderr:.2g} over {self.n_seeds} paired seeds: "
            f"t = {self.t:.3g}, p = {self.p_value:.3g}{wilcoxon}"
        )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """The result of `train.sweep`. Runs are ordered by setting: run = setting · n_seeds + seed.

    Attributes:
        runs: one record per run.
        states: final states (the selected ones with `select`) with a leading axis of runs, in host
            memory.
        settings: the settings, in their order.
        shown: metrics that the printed table shows; the first is the default of `table`, `best` and
            `compare`.
    """

    runs: tuple[Run, ...]
    states: State
    settings: tuple[Mapping[str, Any], ...]
    shown: tuple[str, ...]

    @property
    def n_seeds(self) -> int:
        """Number of runs of each setting."""
        return len(self.runs) // len(self.settings)

    def state(self, run: int) -> State:
        """Returns the state of one run, on the device.

        To continue it, call `fit` with that run's optimiser.
        """
        run = integer("run", run, least=0, most=len(self.runs) - 1)
        return jax.device_put(jax.tree.map(lambda leaf: leaf[run], self.states))

    def values(self, metric: str | None = None) -> np.ndarray:
        """Returns one metric of all runs: float64 [settings, seeds], NaN where a run diverged.

        Args:
            metric: a name, or None for the first of `shown`.

        Raises:
            ValueError: if no run has the metric.
        """
        metric = self.shown[0] if metric is None else metric
        known = list(dict.fromkeys([*self.shown, *(name for run in self.runs for name in run.metrics)]))
        if metric not in known:
            raise ValueError(f"metric={metric!r} is unknown; the runs have {known}")
        flat = [run.metrics.get(metric, np.nan) for run in self.runs]
        return np.asarray(flat, np.float64).reshape(len(self.settings), self.n_seeds)

    def table(self, metric: str | None = None) -> list[Row]:
        """Returns one `Row` per setting: mean and standard deviation over seeds.

        Args:
            metric: a name, or None for the first of `shown`.

        Raises:
            ValueError: if no run has the metric.
        """
        rows = []
        for place, values in enumerate(self.values(metric)):
            runs = self.runs[place * self.n_seeds : (place + 1) * self.n_seeds]
            kept = values[[run.diverged is None for run in runs]]
            mean = float(kept.mean()) if len(kept) else np.nan
            deviation = float(kept.std(ddof=1)) if len(kept) > 1 else np.nan
            rows.append(Row(self.settings[place], mean, deviation, len(kept), self.n_seeds - len(kept)))
        return rows

    def best(self, metric: str | None = None, *, mode: Literal["max", "min"] | None = None) -> int:
        """Returns the index of the setting with the best mean.

        A setting with a NaN under any seed is skipped.

        Args:
            metric: a name, or None for the first of `shown`.
            mode: "max" if larger is better, else "min". None is "min" for a metric whose last word is
                loss, objective, error, rmse, mse or mae, and "max" for others.

        Raises:
            ValueError: if no run has the metric, every setting has a NaN under some seed, or `mode`
                has another value.
        """
        metric = self.shown[0] if metric is None else metric
        means = self.values(metric).mean(1) * (1 if direction(metric, mode) == "max" else -1)
        if np.isnan(means).all():
            raise ValueError("every setting has NaN under some seed; lower the learning rates, and see .table()")
        return int(np.nanargmax(means))

    def compare(
        self,
        metric: str | None,
        first: int | Mapping[str, Any],
        second: int | Mapping[str, Any],
        *,
        other: Sweep | None = None,
    ) -> PairedSeeds:
        """Tests two settings against each other, paired by seed: a key gives both the same draws.

        Args:
            metric: a name, or None for the first of `shown`.
            first: a setting, given by its index or by values that single it out.
            second: another setting.
            other: the sweep to which `second` belongs; None is this sweep. It must have the same
                keys.

        Raises:
            ValueError: if a metric or setting is unknown, both settings are the same, a setting
                belongs to another sweep and `other` is not given, the other sweep has other keys,
                or fewer than 2 seeds have values for both.
        """
        import scipy.stats

        theirs = self if other is None else other
        place, against = self._place(first, "first"), theirs._place(second, "second")
        if theirs is self and place == against:
            raise ValueError(
                f"first and second are both setting {place}, {dict(self.settings[place])}; give two different settings"
            )
        if not np.array_equal(self._keys(place), theirs._keys(against)):
            raise ValueError("other was trained with other keys; a paired test needs the same keys in both sweeps")
        values = self.values(metric)
        difference = values[place] - theirs.values(self.shown[0] if metric is None else metric)[against]
        difference = difference[~np.isnan(difference)]
        n = len(difference)
        if n < 2:
            raise ValueError(f"only {n} seeds have values of both settings; a paired test needs at least 2")
        mean, stderr = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(n))
        t = mean / stderr if stderr > 0 else float(np.copysign(np.inf, mean)) if mean else 0.0
        p = float(2 * scipy.stats.t.sf(abs(t), n - 1))
        signed = difference[difference != 0]
        wilcoxon = float(scipy.stats.wilcoxon(signed).pvalue) if len(signed) >= 6 else np.nan
        return PairedSeeds(mean, stderr, t, p, wilcoxon, n)

    def _keys(self, place: int) -> np.ndarray:
        """Returns the data of the keys of a setting's runs."""
        return np.asarray(jax.random.key_data(self.states.key))[place * self.n_seeds : (place + 1) * self.n_seeds]

    def _place(self, which: int | Mapping[str, Any], argument: str) -> int:
        """Returns the index of a setting, given by its index, itself, or some of its values."""
        if isinstance(which, Setting) and not any(which is own for own in self.settings):
            raise ValueError(f"{argument}={dict(which)} is a setting of another sweep; pass that sweep as other=")
        if isinstance(which, Mapping):
            found = [place for place, setting in enumerate(self.settings) if _agrees(setting, which)]
            if len(found) != 1:
                raise ValueError(
                    f"{argument}={dict(which)} matches {len(found)} settings; give values of one of "
                    f"{list(self.settings)}"
                )
            return found[0]
        place = as_integer(which)
        if place is None or not 0 <= place < len(self.settings):
            raise ValueError(f"{argument}={which!r}; give a setting, or its index from 0 to {len(self.settings) - 1}")
        return place

    def evaluate(self, fn: Callable[[Variables], Mapping[str, float] | Report], *, prefix: str = "test ") -> Sweep:
        """Returns a sweep with metrics `fn(variables)` added to each run, such as a test report.

        The names of the metrics get the prefix, so that `best` still selects by validation. Runs
        that diverged are skipped.

        Args:
            fn: host function of the variables that returns named numbers, or a `Report`, whose
                means are used.
            prefix: prefix of the new names. With "", metrics of the same name are replaced.

        Raises:
            TypeError: if `fn` is not a function, or returns something else.
        """
        check_function("fn", fn, "lambda variables: full_ranking(model, variables, train, test)")
        runs, added = [], {}
        for number, run in enumerate(self.runs):
            if run.diverged is None:
                found = metrics_of(fn(self.state(number).variables))
                added = {prefix + name: value for name, value in found.items()}
                run = run._replace(metrics={**run.metrics, **added})
            runs.append(run)
        matching = prefix + self.shown[0]
        more = [matching] if matching in added else list(added)[-1:]
        return dataclasses.replace(self, runs=tuple(runs), shown=tuple(dict.fromkeys([*self.shown, *more])))

    def to_dataframe(self) -> Any:
        """Returns a pandas DataFrame with one row per run.

        The columns are those of the setting, "seed", "epoch", the metrics, and "diverged".
        """
        import pandas as pd

        records = [
            {**run.setting, "seed": run.seed, "epoch": run.epoch, **run.metrics, "diverged": run.diverged}
            for run in self.runs
        ]
        frame = pd.DataFrame(records, index=pd.RangeIndex(len(records), name="run"))
        return frame[[*(name for name in frame.columns if name != "diverged"), "diverged"]]

    def __repr__(self) -> str:
        tables = [self.table(metric) for metric in self.shown]
        head = [*self.settings[0], *self.shown, "seeds", "diverged"]
        body = [
            [
                *map(shown, rows[0].setting.values()),
                *(f"{row.mean:.4f} ± {row.deviation:.4f}" for row in rows),
                str(rows[0].n),
                str(rows[0].diverged),
            ]
            for rows in zip(*tables)
        ]
        widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths)) for line in (head, *body)]
        settings = f"{len(self.settings)} setting{'s' if len(self.settings) > 1 else ''}"
        seeds = f"{self.n_seeds} seed{'s' if self.n_seeds > 1 else ''}"
        return "\n".join([f"Sweep of {settings} x {seeds}; mean ± standard deviation over seeds", *lines])


def _agrees(setting: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Returns whether the setting has these values, up to float32 rounding."""
    return wanted.keys() <= setting.keys() and all(
        np.shape(value) == np.shape(setting[name]) and np.allclose(value, setting[name], rtol=1e-6, atol=0)
        for name, value in wanted.items()
    )


def shown(value: Any) -> str:
    """Formats a setting's value briefly."""
    if isinstance(value, np.ndarray):
        return "(" + ", ".join(map(shown, value.tolist())) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)
