"""Plots of logs, reports, sweeps, coefficients, interests and audits with Matplotlib.

Each function draws on the Axes `ax`, or on new ones, and returns them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrec import models
from jaxrec._log import Log
from jaxrec._numerics import integer, listed
from jaxrec.evaluate.audit import Audit
from jaxrec.evaluate.report import Report
from jaxrec.evaluate.report import differences as paired
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.train.runs import Sweep
from jaxrec.typing import Array, ArrayLike


def learning_curves(logs: Log | Mapping[str, Log], metric: str = "loss", *, ax: Any = None) -> Any:
    """Plots one value of the log against the epoch, with one line for each run.

    Args:
        logs: a `Log`, or a mapping from names to `Log`s.
        metric: the value to plot: "loss", "seconds", or a metric of `validate`.
        ax: the Matplotlib Axes to draw on; None creates them.

    Raises:
        ValueError: if a log does not have the metric.
    """
    logs = {"": logs} if isinstance(logs, Log) else logs
    ax = _axes(ax)
    for name, log in logs.items():
        epochs, values = log.column(metric)
        ax.plot(epochs, values, marker="." if len(epochs) < 30 else None, label=name)
    return _finished(ax, "epoch", metric, legend=any(logs))


def metric_against_k(reports: Mapping[str, Report], metric: str = "ndcg", *, ax: Any = None) -> Any:
    """Plots a metric against its cut-off k, with one line for each report.

    The bars show two standard errors.

    Args:
        reports: a mapping from names to `Report`s.
        metric: the name of the metric without its cut-off, such as "ndcg".
        ax: the Matplotlib Axes to draw on; None creates them.

    Raises:
        ValueError: if a report does not have the metric at any cut-off.
    """
    ax = _axes(ax)
    for name, report in reports.items():
        ks = sorted(int(key.partition("@")[2]) for key in report.per_user if key.startswith(f"{metric}@"))
        if not ks:
            raise ValueError(f"report {name!r} has no {metric!r} at any k; it has {sorted(report.per_user)}")
        means = [report.means[f"{metric}@{k}"] for k in ks]
        ax.errorbar(ks, means, [2 * report.stderr[f"{metric}@{k}"] for k in ks], marker=".", capsize=2, label=name)
    return _finished(ax, "k", f"{metric}@k", legend=True)


def per_user(reports: Mapping[str, Report], metric: str, *, ax: Any = None) -> Any:
    """Plots the cumulative distribution of a metric over users, with one line for each report.

    y is the share of users whose value is at most x.

    Args:
        reports: a mapping from names to `Report`s.
        metric: the name of the metric with its cut-off, such as "ndcg@10".
        ax: the Matplotlib Axes to draw on; None creates them.

    Raises:
        ValueError: if a report does not have the metric.
    """
    ax = _axes(ax)
    for name, report in reports.items():
        if metric not in report.per_user:
            raise ValueError(f"report {name!r} has no {metric!r}; it has {sorted(report.per_user)}")
        values = np.sort(report.per_user[metric])
        ax.step(values, np.arange(1, len(values) + 1) / len(values), where="post", label=name)
    return _finished(ax, metric, "share of users", legend=True)


def differences(first: Report, second: Report, metric: str, *, ax: Any = None) -> Any:
    """Plots first − second in a metric for each user that both reports have, in ascending order.

    The dashed line is the mean. Where the curve is above 0, the first report is better.

    Args:
        first: a `Report`.
        second: a `Report` of the same protocol.
        metric: the name of the metric with its cut-off, such as "ndcg@10".
        ax: the Matplotlib Axes to draw on; None creates them.

    Raises:
        TypeError, ValueError: as `Report.compare`.
    """
    values = np.sort(paired(first, second, metric))
    ax, places = _axes(ax), np.arange(1, len(values) + 1)
    ax.plot(places, values)
    ax.fill_between(places, values, step=None, alpha=0.3)
    ax.axhline(0, color="grey", linewidth=0.8)
    ax.axhline(values.mean(), linestyle="--", label=f"mean {values.mean():+.4f}")
    return _finished(ax, "users, in order of their difference", f"difference in {metric}", legend=True)


def popularity(reports: Mapping[str, Report], train: Interactions, *, k: int | None = None, ax: Any = None) -> Any:
    """Plots how much of the lists the most popular items have, with one line for each report.

    Items are in order of their popularity, the most popular first. The first share x of them holds
    the share y of all places in the lists. The dashed line shows the same for the training pairs: a
    line above it favours popular items more than users do.

    Args:
        reports: a mapping from names to `Report`s with lists, such as those of `full_ranking`.
        train: the training pairs, which tell how popular items are.
        k: length of the lists; None is that of the reports.
        ax: the Matplotlib Axes to draw on; None creates them.

    Raises:
        TypeError: if `train` is not an `Interactions`.
        ValueError: if a report has no lists or other items than `train`, or k is not an integer
            from 1 to the length of the lists.
    """
    check_interactions(train=train)
    ax, degrees = _axes(ax), train.item_degrees
    order = np.argsort(-degrees, kind="stable")
    x = np.arange(1, train.n_items + 1) / train.n_items
    for name, report in reports.items():
        if report.items is None:
            raise ValueError(f"report {name!r} has no lists of items; evaluate with full_ranking")
        n_items = report.items.max(initial=-1) + 1 if report.n_items is None else report.n_items
        if n_items > train.n_items or report.n_items not in (None, train.n_items):
            raise ValueError(f"report {name!r} is of {n_items} items, and train of {train.n_items}; use one id map")
        width = report.items.shape[1]
        shown = listed(report.items[:, : integer("k", width if k is None else k, most=width)], train.n_items)
        counts = np.bincount(shown[shown >= 0], minlength=train.n_items)
        ax.plot(x, np.cumsum(counts[order]) / max(counts.sum(), 1), label=name)
    ax.plot(x, np.cumsum(degrees[order]) / max(degrees.sum(), 1), "--", color="grey", label="training pairs")
    return _finished(ax, "share of the catalogue, most popular items first", "share of the lists", legend=True)


def sweep(found: Sweep, x: str, y: str, metric: str | None = None, *, ax: Any = None) -> Any:
    """Plots a metric of a sweep over two settings as a heat map of the means over seeds.

    A cell is NaN if a run of its setting diverged.

    Args:
        found: the result of `train.sweep`.
        x: name of the setting on the horizontal axis.
        y: name of the setting on the vertical axis.
        metric: the name of the metric; None is the first of `found.shown`.
        ax: the Matplotlib Axes to draw on; None creates them.

    Raises:
        ValueError: if the sweep has no such setting or metric, or several settings have the same x
            and y.
    """
    for name in (x, y):
        if name not in found.settings[0]:
            raise ValueError(f"the sweep has no setting {name!r}; it has {list(found.settings[0])}")
    means = found.values(metric).mean(1)
    axes = [sorted({setting[name] for setting in found.settings}) for name in (x, y)]
    table, filled = np.full((len(axes[1]), len(axes[0])), np.nan), set()
    for setting, value in zip(found.settings, means):
        place = axes[1].index(setting[y]), axes[0].index(setting[x])
        if place in filled:
            raise ValueError(
                f"several settings have {x}={setting[x]} and {y}={setting[y]}; plot a sweep over these two names alone"
            )
        filled.add(place)
        table[place] = value
    return _heat(_axes(ax), table, x, y, axes, found.shown[0] if metric is None else metric)


def regularization(coefficients: Array, degrees: ArrayLike, *, ax: Any = None) -> Any:
    """Plots coefficients Λ of users or items against their numbers of pairs, as λOpt's paper does.

    Each point is a row. The line shows the medians of groups of rows with similar numbers of pairs.

    Args:
        coefficients: Λ of one table, [R] or [R, ...] with a row for each user or item, such as
            `lambdas["item"]` of `papers.lambda_opt`. Each row is averaged to one number.
        degrees: number of training pairs of each row, [R], such as `train.item_degrees`.
        ax: the Matplotlib Axes to draw on; None creates them.

    Raises:
        ValueError: if there are not as many rows as degrees.
    """
    values, degrees = np.asarray(coefficients, np.float64), np.asarray(degrees)
    if values.ndim == 0 or len(values) != len(degrees) or len(degrees) == 0:
        raise ValueError(
            f"coefficients is {list(values.shape)} and degrees {list(degrees.shape)}; give a row for each user or item"
        )
    ax, values = _axes(ax), values.reshape(len(values), -1).mean(1)
    ax.plot(degrees, values, ".", alpha=0.3)
    edges = np.unique(np.quantile(degrees, np.linspace(0, 1, 20)))
    part = np.searchsorted(edges, degrees)
    medians = [[np.median(x[part == number]) for number in np.unique(part)] for x in (degrees, values)]
    ax.plot(*medians, marker=".", label="median")
    ax.set_xscale("symlog")
    return _finished(ax, "number of training pairs", "mean coefficient Λ", legend=True)


def interests(interests: Array, items: Array, *, titles: Sequence[str] | None = None, ax: Any = None) -> Any:
    """Plots the cosines of a user's items with each of the user's interests as a heat map.

    Items are ordered by the interest that they are closest to.

    Args:
        interests: [K, D], such as `posterior.interests[0]` of `models.VALID`.
        items: vectors of the items [n, D], such as `variables["params"]["item"][ids]`.
        titles: a name for each item, or None for their numbers.
        ax: the Matplotlib Axes to draw on; None creates them.

    Raises:
        ValueError: if shapes do not fit, or there are not as many titles as items.
    """
    shapes = np.shape(interests), np.shape(items)
    if any(len(shape) != 2 or not shape[0] for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"interests is {list(shapes[0])} and items {list(shapes[1])}; give [K, D] and [n, D]")
    names = [str(place) for place in range(shapes[1][0])] if titles is None else list(map(str, titles))
    if len(names) != shapes[1][0]:
        raise ValueError(f"titles has {len(names)} entries for {shapes[1][0]} items; give one for each item")
    unit = [np.asarray(models.cosine(x, x)[0]) for x in (np.asarray(items), np.asarray(interests))]
    cosines = unit[0] @ unit[1].T
    order = np.lexsort((-cosines.max(1), cosines.argmax(1)))
    axes = [list(range(1, shapes[0][0] + 1)), [names[place] for place in order]]
    return _heat(_axes(ax), cosines[order], "interest", "item", axes, "cosine")


def audit(found: Audit, *, ax: Any = None) -> Any:
    """Plots the findings of an audit: the share of the things checked that have the flaw.

    Serious findings are red.

    Args:
        found: the result of `evaluate.audit`.
        ax: the Matplotlib Axes to draw on; None creates them.
    """
    ax = _axes(ax)
    names = [f"{finding.name} ({finding.count} of {finding.total})" for finding in found.findings]
    shares = [finding.count / max(finding.total, 1) for finding in found.findings]
    colors = ["tab:red" if finding.serious else "tab:blue" for finding in found.findings]
    ax.barh(names, shares, color=colors)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    return _finished(ax, "share", "", legend=False)


def _heat(ax: Any, table: np.ndarray, x: str, y: str, axes: Sequence[Sequence[Any]], what: str) -> Any:
    """Draws a table [y, x] as a heat map, with the value in each cell."""
    image = ax.imshow(table, aspect="auto", cmap="viridis")
    ax.figure.colorbar(image, ax=ax, label=what)
    for ticks, names in ((ax.set_xticks, axes[0]), (ax.set_yticks, axes[1])):
        ticks(range(len(names)), [f"{name:g}" if isinstance(name, float) else str(name) for name in names])
    if table.size <= 200:  # more cells are too small for numbers
        middle = np.nanmean([np.nanmin(table), np.nanmax(table)]) if np.isfinite(table).any() else 0
        for row, column in zip(*np.nonzero(np.isfinite(table))):
            color = "white" if table[row, column] < middle else "black"
            ax.text(column, row, f"{table[row, column]:.3g}", ha="center", va="center", color=color)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    return ax


def _axes(ax: Any) -> Any:
    """Returns `ax`, or new Axes if it is None."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('plots need matplotlib; pip install "jaxrec[plot]"') from error
    return plt.subplots(layout="constrained")[1]


def _finished(ax: Any, x: str, y: str, *, legend: bool) -> Any:
    """Adds labels, a grid and a legend."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(alpha=0.3)
    if legend:
        ax.legend()
    return ax
