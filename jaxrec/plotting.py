"""Plots of logs and reports with Matplotlib.

Each function draws on the Axes `ax`, or on new ones, and returns them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrec._log import Log
from jaxrec.evaluate.report import Report


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
