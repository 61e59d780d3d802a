"""The result of an evaluation: metrics for each user, their means, and the protocol."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec import metrics
from jaxrec._ids import IdMap, as_objects, factorised, is_missing, unmasked
from jaxrec._numerics import integer, listed
from jaxrec.typing import ArrayLike


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


class Exposure(NamedTuple):
    """How much of the recommended lists a group of items has.

    Attributes:
        n_items: number of items of the group.
        share_of_items: their share of the catalogue.
        share_of_lists: their share of the places of all lists.
        coverage: share of the group that is in at least one list.
    """

    n_items: int
    share_of_items: float
    share_of_lists: float
    coverage: float


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
        n_items: N, the number of items of the catalogue; None if it is not known.
    """

    users: np.ndarray
    per_user: Mapping[str, np.ndarray]
    catalogue: Mapping[str, float]
    items: np.ndarray | None
    protocol: str
    n_items: int | None = None

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
            ValueError: if a report lacks the metric or has a user more than once, the metric is not
                finite, or the reports have fewer than 2 users in common.
        """
        import scipy.stats

        difference = differences(self, other, metric)
        n = len(difference)
        mean, stderr = difference.mean(), difference.std(ddof=1) / np.sqrt(n)
        p_value = 2 * scipy.stats.t.sf(abs(mean / stderr), n - 1) if stderr > 0 else float(mean == 0)
        return Comparison(float(mean), float(stderr), float(p_value), n)

    def by_group(self, groups: ArrayLike) -> dict[Any, Report]:
        """Returns a report for each group of users, such as those with few and with many items.

        The metrics of the catalogue are those of the group's lists.

        Args:
            groups: [M], the group of each user id, such as `train.user_degrees > 20`: strings, or
                another type that can be sorted.

        Returns:
            A dict from group to `Report`, in the order of the groups.

        Raises:
            ValueError: if `groups` is not a column with an entry for each user id, an entry is
                missing (None, NaN, NaT, `pandas.NA`, the empty string), or entries are of several
                kinds, such as 1 and "1". A missing entry is no group: give these users one of their
                own.

        >>> values = {"ndcg@10": np.array([0.1, 0.3, 0.5])}
        >>> found = Report(np.array([0, 2, 3]), values, {}, None, "").by_group(["new", "old", "old", "old"])
        >>> {group: report.means["ndcg@10"] for group, report in found.items()}
        {'new': 0.1, 'old': 0.4}
        """
        names, place = _grouped(groups, "user", int(self.users.max(initial=-1)) + 1)
        place = place[self.users]
        return {names[number]: self._of(place == number) for number in np.unique(place).tolist()}

    def _of(self, kept: np.ndarray) -> Report:
        """Returns the report of the users for whom `kept` [U] is True."""
        items, catalogue = None if self.items is None else self.items[kept], {}
        if items is not None and self.n_items is not None:
            ks = [int(name.partition("@")[2]) for name in self.catalogue if name.startswith("coverage@")]
            catalogue = catalogue_metrics(items, ks, self.n_items)
        per_user = {name: values[kept] for name, values in self.per_user.items()}
        return dataclasses.replace(self, users=self.users[kept], per_user=per_user, catalogue=catalogue, items=items)

    def exposure(self, groups: ArrayLike, *, k: int | None = None) -> dict[Any, Exposure]:
        """Returns how much of the lists each group of items has, such as the rare and the popular.

        Args:
            groups: [N], the group of each item id, as in `by_group`.
            k: length of the lists; None is that of the report.

        Returns:
            A dict from group to `Exposure`, in the order of the groups.

        Raises:
            ValueError: if the report has no lists, `groups` is not a column with an entry for each
                item id, an entry is missing, entries are of several kinds, or k is not an integer
                from 1 to the length of the lists.
        """
        if self.items is None:
            raise ValueError("the report has no lists of items; evaluate with full_ranking")
        k = integer("k", self.items.shape[1] if k is None else k, most=self.items.shape[1])
        least = int(self.items.max(initial=-1)) + 1 if self.n_items is None else self.n_items
        names, place = _grouped(groups, "item", least, n=self.n_items)
        shown: Any = listed(self.items[:, :k], len(place))
        slots = np.bincount(place[shown[shown >= 0]], minlength=len(names))
        covered = np.bincount(place[np.unique(shown[shown >= 0])], minlength=len(names))
        sizes = np.bincount(place)
        return {
            name: Exposure(int(size), size / len(place), float(slot / max(slots.sum(), 1)), covers / size)
            for name, size, slot, covers in zip(names, sizes.tolist(), slots, covered.tolist())
        }

    def to_dataframe(self, id_map: IdMap | None = None) -> Any:
        """Returns a pandas DataFrame of the metrics, with one row per user.

        Args:
            id_map: the labels of the data; with it, the index "user" has labels instead of ids.
        """
        import pandas as pd

        users = self.users if id_map is None else id_map.user_labels(self.users)
        return pd.DataFrame(dict(self.per_user), index=pd.Index(users, name="user"))

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


def differences(first: Report, second: Report, metric: str) -> np.ndarray:
    """Returns first − second in a metric, float64 [U], for the users that both reports contain.

    Raises:
        TypeError, ValueError: see `Report.compare`.
    """
    for report in (first, second):
        if not isinstance(report, Report):
            raise TypeError(f"other is a {type(report).__name__}; pass a Report")
        if metric not in report.per_user:
            raise ValueError(f"no metric {metric!r} for each user; there are {sorted(report.per_user)}")
        if len(np.unique(report.users)) != len(report.users):
            raise ValueError("a report has a user more than once; compare reports with one row per user")
    common, mine, theirs = np.intersect1d(first.users, second.users, return_indices=True)
    if len(common) < 2:
        raise ValueError(f"the reports share {len(common)} users; a paired comparison needs at least 2")
    found = first.per_user[metric][mine] - second.per_user[metric][theirs]
    if not np.isfinite(found).all():
        raise ValueError(f"{metric} is not finite for {(~np.isfinite(found)).sum()} of {len(common)} users")
    return found


def catalogue_metrics(items: np.ndarray, ks: Sequence[int], n_items: int) -> dict[str, float]:
    """Returns "coverage@k" and "gini@k" of lists [U, K] for each k."""
    whole = (metrics.coverage, metrics.gini)
    return {f"{metric.__name__}@{k}": float(metric(items[:, :k], n_items=n_items)) for metric in whole for k in ks}


def _grouped(groups: Any, of: str, least: int, n: int | None = None) -> tuple[list, np.ndarray]:
    """Returns the groups in their order, and the place of each id's group among them.

    `groups` is a column of n entries, or of at least `least` if n is None.
    """
    # np.asarray would turn NaN in a list of strings into the string "nan".
    column = unmasked("groups", groups) if hasattr(groups, "__array__") else np.array(groups, dtype=object)
    if column.ndim != 1 or (len(column) < least if n is None else len(column) != n):
        wanted = f"{least} or more" if n is None else str(n)
        raise ValueError(f"groups has shape {list(column.shape)}; give one entry for each {of} id, {wanted}")
    if hasattr(groups, "iloc") and not np.array_equal(groups.index, np.arange(len(column))):
        raise ValueError(f"groups has an index other than the {of} ids 0 .. {len(column) - 1}; sort it by id")
    if column.dtype.kind not in "biu":
        lacking = [is_missing(group) or group == "" for group in column.astype(object).tolist()]
        if any(lacking):
            own = -1 if column.dtype.kind == "f" else "unknown"
            raise ValueError(
                f"groups has no value for {of} {lacking.index(True)} ({sum(lacking)} such {of}s); give them a group of "
                f"their own, such as {own!r}"
            )
    names, place = factorised("groups", column)
    return as_objects(names).tolist(), place
