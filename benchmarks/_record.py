"""What every benchmark shares: the runs of a study, a line of JSON each, and the record that backs a table."""

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
from functools import lru_cache
from typing import Any

import jax
import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results"
IGNORED = pathlib.Path("runs")  # what git does not see


def runs(study: str, **fields: Any) -> list[dict[str, Any]]:
    """The runs in results/<study>.jsonl that have these fields, in order; a field that a run lacks is None."""
    path = RESULTS / f"{study}.jsonl"
    if not path.exists():
        return []
    about = path.stat()
    every = _read(path, about.st_mtime_ns, about.st_size)
    return [run for run in every if all(run.get(name) == value for name, value in fields.items())]


@lru_cache(maxsize=8)
def _read(path: pathlib.Path, *_: int) -> list[dict[str, Any]]:
    """The lines of a file, as long as it does not change."""
    return lines(path.read_text(encoding="utf-8"))


def lines(text: str) -> list[dict[str, Any]]:
    """The runs in the text of a file."""
    return [json.loads(line) for line in text.splitlines()]


def keep(study: str, record: Mapping[str, Any], *names: str) -> None:
    """Adds a run to results/<study>.jsonl, in place of one that has the same values of the fields named."""
    path, line = RESULTS / f"{study}.jsonl", _line(record)
    older = runs(study, **{name: record.get(name) for name in names})
    if older:
        text = "".join(line if run in older else _line(run) for run in runs(study))
        part = path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    else:
        RESULTS.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line)


def _line(record: Mapping[str, Any]) -> str:
    """A run as it is written. The fields are sorted; what they hold keeps its order, such as that of a grid."""
    return json.dumps(dict(sorted(record.items())), ensure_ascii=False, allow_nan=False) + "\n"


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


def write(
    name: str,
    cases: Mapping[str, Mapping[str, Any]],
    *,
    quick: bool,
    folder: pathlib.Path = RESULTS,
    **facts: Any,
) -> None:
    """Writes <name>.json to benchmarks/results/ and prints the cases as one line of JSON.

    Args:
        name: of the benchmark.
        cases: case -> figures.
        quick: whether this was a shortened run, whose file goes to runs/ instead, which git ignores.
        folder: where the file goes.
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
    folder = IGNORED if quick else folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
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
