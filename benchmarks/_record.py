"""Shared parts of the benchmarks: command line, records, and Markdown tables."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from jaxrec import study

RESULTS = pathlib.Path(__file__).parent / "results"
IGNORED = pathlib.Path("runs")  # git ignores it


def parser(name: str, about: str, quick: str | None = None) -> argparse.ArgumentParser:
    """Returns the parser of the command line `python -m benchmarks.<name>`.

    Args:
        name: name of the benchmark.
        about: docstring of its module.
        quick: what the option `--quick` does; None for no such option.
    """
    how = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=about, formatter_class=how)
    if quick is not None:
        made.add_argument("--quick", action="store_true", help=f"run the same code on less data: {quick}")
    return made


def write(
    name: str,
    cases: Mapping[str, Mapping[str, Any]],
    *,
    quick: bool,
    folder: pathlib.Path = RESULTS,
    done: bool = True,
    **facts: Any,
) -> None:
    """Writes <name>.json to benchmarks/results/, and prints the cases as one line of JSON.

    Args:
        name: name of the benchmark; a dot becomes an underscore in the name of the file.
        cases: the values of each case.
        quick: whether this was a shortened run. Its file is written to runs/, which git ignores.
        folder: folder of the file.
        done: whether to print the cases; False for the record of a run that continues.
        facts: further facts, such as protocol, settings and fingerprints of the data.
    """
    record = {
        "benchmark": name,
        "command": " ".join([f"python -m benchmarks.{name}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "commit": study.commit(RESULTS) or "unknown",
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
    (folder / f"{name.replace('.', '_')}.json").write_text(json.dumps(record, indent=1) + "\n")
    if done:
        print(json.dumps({"benchmark": name, "cases": cases}))


def _processor() -> str:
    """Returns the name of the processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def origin(found: Mapping[str, Any]) -> str:
    """Returns a line that says where the values of a record come from."""
    data = found["data"]
    prints = data if isinstance(data, str) else ", ".join(f"{name} {each}" for name, each in data.items())
    return (
        f"`{found['command']}`, {found['date']}, commit {found['commit']}, jax {found['jax']}, "
        f"{found['cores']} cores of {found['processor']}; fingerprint of the data: {prints}."
    )
