"""What every benchmark shares: the record that backs a figure, as a file and as the last line printed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results"


def slug(*parts: Any) -> str:
    """The name of a run's file: the parts in lower case, joined by hyphens, without commas and apostrophes."""
    words = "-".join(str(part) for part in parts).lower().replace(" ", "-")
    return words.replace(",", "").replace("'", "") + ".json"


def settings(grid: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
    """Every combination of a grid's values."""
    return [dict(zip(grid, values)) for values in itertools.product(*grid.values())]


def ends(setting: Mapping[str, Any], compared: Iterable[Mapping[str, Any]]) -> list[str]:
    """The hyperparameters whose chosen value is the least or the greatest of several that were compared.

    No decay at all is no end, since nothing lies beyond 0.
    """
    compared = list(compared)
    found = []
    for name, value in setting.items():
        values = {other[name] for other in compared if name in other}
        if len(values) > 1 and value != 0 and value in (min(values), max(values)):
            found.append(name)
    return found


def write(name: str, cases: Mapping[str, Mapping[str, Any]], *, quick: bool, **facts: Any) -> None:
    """Writes benchmarks/results/<name>.json (or <name>-quick.json) and prints the cases as one line of JSON.

    Args:
        name: of the benchmark.
        cases: case -> figures.
        quick: whether this was a shortened run.
        facts: whatever else a reader needs: protocol, settings, fingerprints of the data.
    """
    record = {
        "benchmark": name,
        "command": " ".join([f"python -m benchmarks.{name}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": cores(),
        **facts,
        "cases": cases,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}{'-quick' if quick else ''}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({"benchmark": name, "cases": cases}))


def commit() -> str:
    """The checkout's commit, with "-dirty" where anything but the records has changed since."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", *arguments], cwd=RESULTS.parents[1], capture_output=True, text=True)
        return run.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def alternate(runs: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, dict[str, float]]:
    """Times functions in turn, so that a drift of the machine's speed meets all alike.

    Args:
        runs: name -> function that does its work before it returns. Call each once before: nothing should compile here.
        rounds: counted calls of each.

    Returns:
        For each name the medians "wall_s" and "cpu_s" (all threads of the process), and "spread_s", largest less
        smallest wall time.
    """
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {
            "wall_s": float(np.median([wall for wall, _ in pairs])),
            "cpu_s": float(np.median([cpu for _, cpu in pairs])),
            "spread_s": float(np.ptp([wall for wall, _ in pairs])),
        }
        for name, pairs in times.items()
    }


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """Gives a list that gets the seconds of each XLA compilation inside the block."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def peak_memory(module: str, *arguments: str) -> float:
    """Largest resident memory, in MB, of a process of its own that runs `python -m module arguments`."""
    run = subprocess.run([sys.executable, "-m", module, *arguments], check=True, capture_output=True, text=True)
    return float(run.stdout.split()[-1])


def print_peak_memory() -> None:
    """Prints this process's largest resident memory in MB, for `peak_memory` to read.

    Linux's `ru_maxrss` also counts the parent at the fork, so /proc is asked first.
    """
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        kilobytes = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kilobytes = peak / 1024 if sys.platform == "darwin" else peak
    print(kilobytes / 1024)
