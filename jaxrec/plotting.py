"""Matplotlib figures of logs and reports; each function draws on `ax` (or makes one) and returns the Axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrec._log import Log
from jaxrec.evaluate.report import Report


def learning_curves(logs: Log | Mapping[str, Log], metric: str = "loss", *, ax: Any = None) -> Any:
    """One figure of the history against the epoch, a line a run.

    Args:
        logs: one `Log`, or name -> `Log`.
        metric: "loss", "seconds", or a figure of `validate`.
        ax: matplotlib Axes.

    Raises:
        ValueError: for a metric that a history lacks.
    """
    logs = {"": logs} if isinstance(logs, Log) else logs
    ax = _axes(ax)
    for name, history in logs.items():
        epochs, values = history.column(metric)
        ax.plot(epochs, values, marker="." if len(epochs) < 30 else None, label=name)
    return _finished(ax, "epoch", metric, legend=any(logs))


def metric_against_k(reports: Mapping[str, Report], metric: str = "ndcg", *, ax: Any = None) -> Any:
    """A metric at all its cut-offs, a line a report, with bars of two standard errors.

    Args:
        reports: name -> `Report`.
        metric: a name without its cut-off, such as "ndcg".
        ax: matplotlib Axes.

    Raises:
        ValueError: for a metric that a report has at no cut-off.
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
    """Distribution of a metric over users: the share of users (y) with at most a value (x), a line a report.

    Args:
        reports: name -> `Report`.
        metric: a name with its cut-off, such as "ndcg@10".
        ax: matplotlib Axes.

    Raises:
        ValueError: for a metric that a report lacks.
    """
    ax = _axes(ax)
    for name, report in reports.items():
        if metric not in report.per_user:
            raise ValueError(f"report {name!r} has no {metric!r}; it has {sorted(report.per_user)}")
        values = np.sort(report.per_user[metric])
        ax.step(values, np.arange(1, len(values) + 1) / len(values), where="post", label=name)
    return _finished(ax, metric, "share of users", legend=True)


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "jaxrec[plot]"') from error
    return plt.subplots(layout="constrained")[1]


def _finished(ax: Any, x: str, y: str, *, legend: bool) -> Any:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(alpha=0.3)
    if legend:
        ax.legend()
    return ax
