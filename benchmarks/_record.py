"""What every benchmark shares: the runs of a study, a line of JSON each, and the record that backs a table."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np

import jaxrec as jr
from jaxrec import study

RESULTS = pathlib.Path(__file__).parent / "results"
IGNORED = pathlib.Path("runs")  # what git does not see


def parser(name: str, about: str, *, defaults: bool = False) -> argparse.ArgumentParser:
    """A reader of the command line `python -m benchmarks.<name>`; `about` is the module's docstring."""
    how = argparse.ArgumentDefaultsHelpFormatter if defaults else argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python -m benchmarks.{name}", description=about, formatter_class=how)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def runs(name: str, **fields: Any) -> list[dict[str, Any]]:
    """The runs in results/<name>.jsonl that have these fields, in order; a field that a run lacks is None."""
    path = RESULTS / f"{name}.jsonl"
    if not path.exists():
        return []
    about = path.stat()
    every = _read(path, about.st_mtime_ns, about.st_size)
    return [run for run in every if all(run.get(field) == value for field, value in fields.items())]


@lru_cache(maxsize=8)
def _read(path: pathlib.Path, *_: int) -> list[dict[str, Any]]:
    """The lines of a file, as long as it does not change."""
    return study.read(path)


def keep(name: str, record: Mapping[str, Any], *fields: str) -> None:
    """Adds a run to results/<name>.jsonl, in place of one that has the same values of these fields."""
    path, older = RESULTS / f"{name}.jsonl", runs(name, **{field: record.get(field) for field in fields})
    if older:
        text = "".join(study.line_of(record if run in older else run) for run in runs(name))
        part = path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    else:
        study.append(path, record)


def case(row: study.Row) -> dict[str, Any]:
    """The figures of a row: means and standard errors over seeds, and what was chosen."""
    found: dict[str, Any] = {"seeds": len(row.seeds)}
    for name, values in row.values.items():
        found |= {name: float(values.mean()), f"{name}_stderr": stderr(values)}
    return found if row.method in {each.name for each in study.TRIVIAL} else found | {"setting": row.setting}


def rankers(train: jr.Interactions, seed: int = 0) -> dict[str, tuple[Any, jr.typing.Variables]]:
    """The rankers that learn nothing."""
    return {each.name: each.fit(train, None, jax.random.key(seed))[:2] for each in study.TRIVIAL}


def stderr(values: Any) -> float | None:
    """Standard error of the mean, exactly 0 for equal values; None of one value."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if np.ptp(values) else 0.0


def write(
    name: str,
    cases: Mapping[str, Mapping[str, Any]],
    *,
    quick: bool,
    folder: pathlib.Path = RESULTS,
    derived: bool = False,
    **facts: Any,
) -> None:
    """Writes <name>.json to benchmarks/results/ and prints the cases as one line of JSON.

    Args:
        name: of the benchmark.
        cases: case -> figures.
        quick: whether this was a shortened run, whose file goes to runs/ instead, which git ignores.
        folder: where the file goes.
        derived: whether `benchmarks.report` derives the cases from runs, so that the file leaves them out.
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
    } | ({} if derived else {"cases": cases})
    folder = IGNORED if quick else folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name.rpartition('.')[2]}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({"benchmark": name, "cases": cases}))


def commit() -> str:
    """The checkout's commit, with "-dirty" where anything but the records has changed since."""
    return study.commit(RESULTS) or "unknown"


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
