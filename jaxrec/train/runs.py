"""What a sweep found: a record for each run, and tables and paired tests over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import scipy.stats

from jaxrec._log import Log, metrics_of
from jaxrec._numerics import as_integer, integer
from jaxrec.evaluate.report import Report
from jaxrec.train.loop import State
from jaxrec.typing import Variables


class Run(NamedTuple):
    """One run of a sweep.

    Attributes:
        setting: name -> value, a number or a NumPy array.
        seed: place of its key among the keys.
        log: of `fit`; "seconds" is its share of the epoch's. It ends before the epoch that diverged.
        epoch: the epoch of its state and metrics.
        metrics: name -> value at that epoch: "loss", those of `validate`, those of `Sweep.evaluate`. Empty if diverged.
        diverged: what happened, or None.
    """

    setting: Mapping[str, Any]
    seed: int
    log: Log
    epoch: int
    metrics: Mapping[str, float]
    diverged: str | None


class Setting(dict):
    """Name -> value of one setting of one sweep; by it `Sweep.compare` knows the settings of another sweep."""


class Row(NamedTuple):
    """A setting's line of the table.

    Attributes:
        setting: name -> value.
        mean: over the seeds that did not diverge; NaN if all did.
        deviation: sample standard deviation over them (ddof 1); NaN for fewer than two.
        n: how many these are.
        diverged: how many others there are.
    """

    setting: Mapping[str, Any]
    mean: float
    deviation: float
    n: int
    diverged: int


class PairedSeeds(NamedTuple):
    """Two settings compared under the same keys.

    Attributes:
        difference: mean over seeds of first − second.
        stderr: its standard error.
        t: of the paired t-test.
        p_value: of that test, two-sided.
        wilcoxon_p_value: of the signed-rank test; NaN for fewer than 6 differences other than 0, with which it cannot
            go below .05.
        n_seeds: seeds under which neither diverged.
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
    """What `train.sweep` found. Runs come setting by setting: run = setting · (number of seeds) + seed.

    Attributes:
        runs: one record a run.
        states: final states (the selected ones with `select`) with a leading axis of runs, in the host's memory.
        settings: the settings, in their order.
        shown: metrics that the printed table shows; the first is the default of `table`, `best` and `compare`.
    """

    runs: tuple[Run, ...]
    states: State
    settings: tuple[Mapping[str, Any], ...]
    shown: tuple[str, ...]

    @property
    def n_seeds(self) -> int:
        """Runs of each setting."""
        return len(self.runs) // len(self.settings)

    def state(self, run: int) -> State:
        """The state of one run, ready to be evaluated or for `fit` to go on with (that run's optimiser bound)."""
        run = integer("run", run, least=0, most=len(self.runs) - 1)
        return jax.device_put(jax.tree.map(lambda leaf: leaf[run], self.states))

    def values(self, metric: str | None = None) -> np.ndarray:
        """One metric of all runs: float64 [settings, seeds], NaN where a run diverged.

        Raises:
            ValueError: for a metric that no run has.
        """
        metric = self.shown[0] if metric is None else metric
        known = list(dict.fromkeys([*self.shown, *(name for run in self.runs for name in run.metrics)]))
        if metric not in known:
            raise ValueError(f"metric={metric!r}; the runs have {known}")
        flat = [run.metrics.get(metric, np.nan) for run in self.runs]
        return np.asarray(flat, np.float64).reshape(len(self.settings), self.n_seeds)

    def table(self, metric: str | None = None) -> list[Row]:
        """One `Row` a setting: mean and standard deviation over seeds.

        Raises:
            ValueError: for a metric that no run has.
        """
        rows = []
        for place, values in enumerate(self.values(metric)):
            runs = self.runs[place * self.n_seeds : (place + 1) * self.n_seeds]
            kept = values[[run.diverged is None for run in runs]]
            mean = float(kept.mean()) if len(kept) else np.nan
            deviation = float(kept.std(ddof=1)) if len(kept) > 1 else np.nan
            rows.append(Row(self.settings[place], mean, deviation, len(kept), self.n_seeds - len(kept)))
        return rows

    def best(self, metric: str | None = None, *, mode: Literal["max", "min"] = "max") -> int:
        """Index of the setting with the best mean; a setting with a seed that diverged is passed over.

        Raises:
            ValueError: for a metric that no run has, or no setting without NaN under any seed.
        """
        if mode not in ("max", "min"):
            raise ValueError(f'mode={mode!r}; give "max" or "min"')
        means = self.values(metric).mean(1) * (1 if mode == "max" else -1)
        if np.isnan(means).all():
            raise ValueError("no setting is without NaN under all seeds; lower the learning rates, and see .table()")
        return int(np.nanargmax(means))

    def compare(
        self,
        metric: str | None,
        first: int | Mapping[str, Any],
        second: int | Mapping[str, Any],
        *,
        other: Sweep | None = None,
    ) -> PairedSeeds:
        """Paired tests over seeds between two settings: a key's initial values and draws serve both.

        Args:
            metric: name, or None for the first shown.
            first: a setting, by index or by as many of its values as single it out.
            second: another setting.
            other: the sweep that `second` is a setting of, if it is not this one. It must have the same keys.

        Raises:
            ValueError: for an unknown metric or setting, twice the same setting, a setting of another sweep without
                `other`, another sweep with other keys, or fewer than 2 seeds under which neither diverged.
        """
        theirs = self if other is None else other
        place, against = self._place(first, "first"), theirs._place(second, "second")
        if theirs is self and place == against:
            raise ValueError(f"first and second are both setting {place}, {dict(self.settings[place])}; give two")
        if not np.array_equal(self._keys(place), theirs._keys(against)):
            raise ValueError("other was trained under other keys; a paired test needs the same keys in both sweeps")
        values = self.values(metric)
        difference = values[place] - theirs.values(self.shown[0] if metric is None else metric)[against]
        difference = difference[~np.isnan(difference)]
        n = len(difference)
        if n < 2:
            raise ValueError(f"{n} seeds under which neither setting has NaN; a paired test needs at least 2")
        mean, stderr = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(n))
        t = mean / stderr if stderr > 0 else float(np.copysign(np.inf, mean)) if mean else 0.0
        p = float(2 * scipy.stats.t.sf(abs(t), n - 1))
        signed = difference[difference != 0]
        wilcoxon = float(scipy.stats.wilcoxon(signed).pvalue) if len(signed) >= 6 else np.nan
        return PairedSeeds(mean, stderr, t, p, wilcoxon, n)

    def _keys(self, place: int) -> np.ndarray:
        """Data of the keys of a setting's runs."""
        return np.asarray(jax.random.key_data(self.states.key))[place * self.n_seeds : (place + 1) * self.n_seeds]

    def _place(self, which: int | Mapping[str, Any], argument: str) -> int:
        if isinstance(which, Setting) and not any(which is own for own in self.settings):
            raise ValueError(f"{argument}={dict(which)} is a setting of another sweep; give that sweep as other=")
        if isinstance(which, Mapping):
            found = [place for place, setting in enumerate(self.settings) if _agrees(setting, which)]
            if len(found) != 1:
                raise ValueError(f"{dict(which)} is {len(found)} of the settings; name one of {list(self.settings)}")
            return found[0]
        place = as_integer(which)
        if place is None or not 0 <= place < len(self.settings):
            raise ValueError(f"{argument}={which!r}; give a setting, or its place from 0 to {len(self.settings) - 1}")
        return place

    def evaluate(self, fn: Callable[[Variables], Mapping[str, float] | Report], *, prefix: str = "test ") -> Sweep:
        """A sweep with the numbers `fn(variables)` of each run added, such as a report on test data.

        Their names get the prefix, so that `best` still chooses by validation. Runs that diverged are left out.

        Args:
            fn: host function, like `validate`: it gives named numbers, or a `Report`, whose means are taken.
            prefix: of the new names; "" replaces numbers of the same name.
        """
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
        """A pandas DataFrame, one row a run: setting, "seed", "epoch", metrics, "diverged"."""
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
    """Whether the setting has these values, up to float32 rounding."""
    return wanted.keys() <= setting.keys() and all(
        np.shape(value) == np.shape(setting[name]) and np.allclose(value, setting[name], rtol=1e-6, atol=0)
        for name, value in wanted.items()
    )


def shown(value: Any) -> str:
    """A setting's value in few letters."""
    if isinstance(value, np.ndarray):
        return "(" + ", ".join(map(shown, value.tolist())) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)
