"""Comparisons of many reports: paired differences, with corrections for their number."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrec._keys import generator
from jaxrec._numerics import integer, number
from jaxrec._partials import check_function
from jaxrec.data import readers
from jaxrec.evaluate.report import Report, differences
from jaxrec.typing import Key

_AT_ONCE = 1 << 22  # draws of the bootstrap in memory


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number with Holm's step-down method (S. Holm, 1979).

    It bounds the probability of at least one false rejection.

    Raises:
        ValueError: unless p-values are numbers from 0 to 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = _checked(p_values)
    order = np.argsort(values, kind="stable")
    weighted = np.minimum((len(order) - np.arange(len(order))) * values[order], 1.0)
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(weighted)
    return corrected.tolist()


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number with the method of Benjamini and Hochberg (1995).

    It bounds the expected share of false rejections among all rejections. It rejects at least as
    many hypotheses as `holm`.

    Raises:
        ValueError: unless p-values are numbers from 0 to 1.

    >>> [round(p, 3) for p in benjamini_hochberg([0.01, 0.04, 0.03])]
    [0.03, 0.04, 0.04]
    """
    import scipy.stats

    return scipy.stats.false_discovery_control(_checked(p_values)).tolist()


def _checked(p_values: Sequence[float]) -> np.ndarray:
    """Returns p-values as float64 [n], in the given order; the index of a pandas Series is ignored."""
    values = np.asarray(p_values, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p_values={p_values!r:.200}; give a column of numbers from 0 to 1")
    return values


def compare_all(
    reports: Mapping[str, Report],
    metric: str,
    *,
    against: str | None = None,
    correction: Callable[[Sequence[float]], Sequence[float]] = holm,
    level: float = 0.95,
    resamples: int = 2000,
    key: Key | None = None,
) -> Any:
    """Compares many reports in one metric, paired by user, and returns a pandas DataFrame.

    Args:
        reports: a mapping from names to reports, two or more.
        metric: name of a metric for each user, such as "ndcg@10".
        against: the name of the report with which the others are compared; None compares all pairs.
        correction: function that corrects p-values for their number: `holm`, `benjamini_hochberg`
            or your own.
        level: the probability of the bootstrap interval.
        resamples: number of bootstrap samples of the users.
        key: typed key of these samples; None is a fixed key.

    Returns:
        A DataFrame with a row for each pair and the columns "first", "second", "difference" (mean
        over common users of first − second), "low" and "high" (the ends of its percentile
        bootstrap interval), "p_value" (of the paired t-test), "p_corrected" and "n_users".

    Raises:
        TypeError, ValueError: as `Report.compare`; also for fewer than two reports, an unknown
            `against`, a `level` outside (0, 1), or `resamples` that is not an integer of 1 or more.

    >>> users = np.arange(4)
    >>> of = lambda *values: Report(users, {"ndcg@10": np.array(values)}, {}, None, "by hand")
    >>> table = compare_all({"a": of(0.5, 0.7, 0.9, 0.4), "b": of(0.1, 0.2, 0.6, 0.3)}, "ndcg@10")
    >>> table[["first", "second", "n_users"]].values.tolist(), table["difference"].round(3).tolist()
    ([['a', 'b', 4]], [0.325])
    """
    pd = readers.optional("pandas", extra="data")
    if not isinstance(reports, Mapping) or len(reports) < 2:
        raise ValueError(f"reports is {reports!r:.80}; give a mapping from names to two reports or more")
    if against is not None and against not in reports:
        raise ValueError(f"against={against!r} is none of {list(reports)}; give one of these")
    check_function("correction", correction, "jaxrec.evaluate.holm")
    if not 0 < number("level", level, above=0) < 1:
        raise ValueError(f"level={level}; give a number between 0 and 1, such as 0.95")
    resamples, draw = integer("resamples", resamples), generator(jax.random.key(0) if key is None else key)
    pairs = list(itertools.combinations(reports, 2))
    if against is not None:
        pairs = [(name, against) for name in reports if name != against]
    rows = []
    for first, second in pairs:
        found = reports[first].compare(reports[second], metric)
        values = differences(reports[first], reports[second], metric)
        low, high = _interval(values, level, resamples, draw)
        rows.append((first, second, found.difference, low, high, found.p_value, found.n_users))
    names = ["first", "second", "difference", "low", "high", "p_value", "n_users"]
    table = pd.DataFrame(rows, columns=names)
    table.insert(6, "p_corrected", list(correction(table["p_value"].tolist())))
    return table


def _interval(values: np.ndarray, level: float, resamples: int, draw: np.random.Generator) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of the mean of values [U]."""
    at_once = max(_AT_ONCE // len(values), 1)
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    means = [values[draw.integers(0, len(values), (size, len(values)))].mean(1) for size in sizes]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
