"""The result of an evaluation: metrics for each user, their means, and the protocol."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Comparison(NamedTuple):
    """The paired difference of two reports in one metric.

    Attributes:
        difference: mean over users of first − second.
        stderr: standard error of the difference.
        p_value: two-sided p-value of the paired t-test.
        n_users: number of users in both reports.
    """

    difference: float
    stderr: float
    p_value: float
    n_users: int


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Report:
    """Ranking metrics for each user, with the protocol in words.

    Attributes:
        users: ids [U] of the evaluated users (or of the user of each evaluated pair).
        per_user: metric name such as "ndcg@10" -> float64 [U].
        catalogue: metrics of all lists jointly, such as "coverage@10".
        items: recommended ids [U, k], best first, -1 where a list is short; None for sampled
            ranking.
        protocol: how the metrics were measured.
    """

    users: np.ndarray
    per_user: Mapping[str, np.ndarray]
    catalogue: Mapping[str, float]
    items: np.ndarray | None
    protocol: str

    @property
    def means(self) -> dict[str, float]:
        """Mean over users of every metric, and the metrics of the catalogue."""
        return {name: float(np.mean(values)) for name, values in self.per_user.items()} | dict(self.catalogue)

    @property
    def stderr(self) -> dict[str, float]:
        """Standard error of each mean over users (sample deviation / √U); NaN for one user."""
        n = len(self.users)
        deviation = {name: np.std(v, ddof=1) if n > 1 else np.nan for name, v in self.per_user.items()}
        return {name: float(value / np.sqrt(n)) for name, value in deviation.items()}

    def compare(self, other: Report, metric: str) -> Comparison:
        """Compares two reports, paired by user, on the users that both contain.

        Args:
            other: the second report.
            metric: name of a metric for each user, such as "ndcg@10".

        Raises:
            TypeError: if `other` is not a `Report`.
            ValueError: if one report lacks the metric, it is not finite, a report has a user more
                than once, or the reports have fewer than 2 users in common.
        """
        import scipy.stats

        for report in (self, other):
            if not isinstance(report, Report):
                raise TypeError(f"other is a {type(report).__name__}; pass a Report")
            if metric not in report.per_user:
                raise ValueError(f"no metric {metric!r} for each user; there are {sorted(report.per_user)}")
            if len(np.unique(report.users)) != len(report.users):
                raise ValueError("a report has a user more than once; compare reports with one row per user")
        common, mine, theirs = np.intersect1d(self.users, other.users, return_indices=True)
        if len(common) < 2:
            raise ValueError(f"the reports share {len(common)} users; a paired comparison needs at least 2")
        difference = self.per_user[metric][mine] - other.per_user[metric][theirs]
        if not np.isfinite(difference).all():
            raise ValueError(f"{metric} is not finite for {(~np.isfinite(difference)).sum()} of {len(common)} users")
        mean, stderr = difference.mean(), difference.std(ddof=1) / np.sqrt(len(common))
        p_value = 2 * scipy.stats.t.sf(abs(mean / stderr), len(common) - 1) if stderr > 0 else float(mean == 0)
        return Comparison(float(mean), float(stderr), float(p_value), len(common))

    def to_dataframe(self) -> Any:
        """Returns a pandas DataFrame of the metrics, with one row per user id."""
        import pandas as pd

        return pd.DataFrame(dict(self.per_user), index=pd.Index(self.users, name="user"))

    def _rows(self) -> tuple[list[str], list[tuple[str, list[str]]]]:
        """Returns the cut-offs and, for each metric, its cells: "0.1234 ± 0.0012"."""
        means, stderr = self.means, self.stderr
        cuts = sorted({name.partition("@")[2] for name in means}, key=lambda cut: (cut == "", int(cut or 0)))
        table = []
        for metric in dict.fromkeys(name.partition("@")[0] for name in means):
            names = [f"{metric}@{cut}" if cut else metric for cut in cuts]
            cells = [
                f"{means[n]:.4f}" + (f" ± {stderr[n]:.4f}" if n in stderr else "") if n in means else "" for n in names
            ]
            table.append((metric, cells))
        return cuts, table

    def __repr__(self) -> str:
        cuts, table = self._rows()
        lines = [f"Report on {len(self.users)} users: {self.protocol}"]
        lines += [f"{'':<20}" + "".join(f"{'@' + cut if cut else '':>20}" for cut in cuts)]
        lines += [f"{metric:<20}" + "".join(f"{cell:>20}" for cell in cells) for metric, cells in table]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        cuts, table = self._rows()
        head = "".join(f"<th>{'@' + cut if cut else ''}</th>" for cut in cuts)
        body = "".join(
            f"<tr><th>{html.escape(metric)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
            for metric, cells in table
        )
        caption = f"{len(self.users)} users: {html.escape(self.protocol)}"
        return f"<table><caption>{caption}</caption><tr><th></th>{head}</tr>{body}</table>"
