"""Measures the speed of several sides: first calls, medians of alternating calls, peak memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks import _record
from benchmarks.speed._peak import peak_mb


def there(**runs: Callable[[], Any] | None) -> dict[str, Callable[[], Any]]:
    """Returns the sides that are installed."""
    for name in (name for name, run in runs.items() if run is None):
        print(f'{name} is not installed and is skipped; pip install "jaxrec[bench]"')
    return {name: run for name, run in runs.items() if run is not None}


def torch() -> Any:
    """Returns PyTorch on all cores, with sleeping instead of spinning threads; None if missing."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(_record.cores())
    return torch


def implicit(**options: Any) -> Any:
    """Returns implicit's ALS on all cores, with options bound; None if it is not installed."""
    try:
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits
    except ImportError:
        return None
    threadpool_limits(1, "blas")  # implicit recommends it, because it has its own threads
    return partial(AlternatingLeastSquares, num_threads=_record.cores(), **options)


def compared(
    runs: Mapping[str, Callable[[], Any]], *, rounds: int, units: float = 1.0
) -> tuple[dict[str, float], dict[str, Any]]:
    """Times functions alternately, so that drifts of the machine's speed affect all of them.

    Args:
        runs: for each side, a function that finishes its work before it returns.
        rounds: number of timed calls of each function, after the first call.
        units: units of work in a call; all times except those of first calls are per unit.

    Returns:
        The values, named "<side>_<name>", and for each side the result of its first call. The names
        are "first_call_s", the medians "wall_s" and "cpu_s" (over all threads of the process), and
        "spread_s", the largest minus the smallest wall time. With two sides, "ratio", "cpu_ratio"
        and "times_faster" compare the first one with the second.
    """
    case: dict[str, float] = {}
    found, times = {}, {name: [] for name in runs}
    with compilations() as compiled:
        for name, run in runs.items():
            began = time.perf_counter()
            found[name] = run()
            case[f"{name}_first_call_s"] = time.perf_counter() - began
    with compilations() as again:
        for _ in range(rounds):
            for name, run in runs.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    for name, pairs in times.items():
        wall, cpu = np.array(pairs).T / units
        case |= {f"{name}_wall_s": float(np.median(wall)), f"{name}_cpu_s": float(np.median(cpu))}
        case[f"{name}_spread_s"] = float(np.ptp(wall))
    case |= {"compile_s": sum(compiled), "compilations": len(compiled), "compilations_when_steady": len(again)}
    if len(runs) == 2:
        one, other = runs
        case["ratio"] = case[f"{one}_wall_s"] / case[f"{other}_wall_s"]
        case |= {"cpu_ratio": case[f"{one}_cpu_s"] / case[f"{other}_cpu_s"], "times_faster": 1 / case["ratio"]}
    print(", ".join(f"{name} {value:.4g}" for name, value in case.items()), flush=True)
    return case, found


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """Yields a list, to which the seconds of each XLA compilation inside the block are added."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def peak_memory(module: str, *arguments: str) -> float:
    """Returns the peak resident memory, in MB, of `python -m module --peak-of arguments`."""
    command = [sys.executable, "-m", module, "--peak-of", *arguments]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(run.stdout.split()[-1])


def print_peak_memory() -> None:
    """Prints the peak resident memory of this process in MB, for `peak_memory` to read."""
    print(peak_mb())
