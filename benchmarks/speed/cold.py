"""Whole processes, from start to end: the time that a user waits for a first answer.

Every run is a separate process, and its time includes imports and reading the data. All run
alternately. Times are medians over the rounds. "Cached" is jaxrec with `jr.compilation_cache` and a
folder that an earlier process has filled. Without it, every process compiles. Ratios compare with
the peer; below 1 means that jaxrec is faster. The peer of ALS is implicit by conjugate gradients,
with 64 dimensions and 15 iterations; jaxrec takes as many sweeps as it needs to reach implicit's
objective. Then both make top-20 lists of all users. The peer of the import is jax, without which
jaxrec cannot run.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxrec as jr
from benchmarks import _record
from benchmarks.speed import _cold_case, als

ITERATIONS, STEPS = 15, 2  # of implicit; steps of conjugate gradients in a sweep of jaxrec
TITLE = "Speed of a first answer"
COLUMNS = {
    title: f"{{{side}_wall_s:.1f}} s ({{{side}_cpu_s:.1f}} s), {{{side}_peak_mb:.0f}} MB"
    for title, side in (("jaxrec: wall (CPU), peak memory", "jaxrec"), ("cached", "cached"), ("peer", "peer"))
} | {"ratio": "{ratio:.2f}", "ratio cached": "{cached_ratio:.2f}", "compilation": "{jaxrec_compile_s:.1f} s"}


def process(case: str, side: str, folder: pathlib.Path, how: Mapping[str, Any], cache: str = "") -> dict[str, float]:
    """Runs a case in a process; returns its wall and CPU seconds, peak memory and compilation."""
    given = {"case": case, "side": side, "folder": str(folder), "how": dict(how), "cache": cache}
    command = [sys.executable, "-m", "benchmarks.speed._cold_case", json.dumps(given)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu} | json.loads(run.stdout.splitlines()[-1])


def compared(
    case: str, folder: pathlib.Path, how: Mapping[str, Any], rounds: int, *, theirs: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Returns the medians of a case: "jaxrec_...", "cached_...", and "peer_..." if there is one.

    Args:
        case: the name in `_cold_case.CASES`.
        folder: folder of the data.
        how: the settings of jaxrec.
        rounds: number of processes of each side.
        theirs: the settings of the peer; None if it is not run.
    """
    with tempfile.TemporaryDirectory() as cache:
        sides = {"jaxrec": partial(process, case, "jaxrec", folder, how)}
        if not case.startswith("import"):
            sides["cached"] = partial(process, case, "jaxrec", folder, how, cache)
            sides["cached"]()
        if theirs is not None:
            sides["peer"] = partial(process, case, "peer", folder, theirs)
        found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, run in sides.items():
                found[side].append(run())
    values = {
        f"{side}_{name}": float(np.median([run[name] for run in runs]))
        for side, runs in found.items()
        for name in runs[0]
    }
    for side, name in (("jaxrec", "ratio"), ("cached", "cached_ratio")):
        if "peer" in found and side in found:
            values[name] = values[f"{side}_wall_s"] / values["peer_wall_s"]
            values[name.replace("ratio", "cpu_ratio")] = values[f"{side}_cpu_s"] / values["peer_cpu_s"]
    print(f"{case}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()), flush=True)
    return values


def sweeps_needed(train: jr.Interactions, folder: pathlib.Path, how: Mapping[str, Any]) -> int:
    """Returns after how many sweeps jaxrec has implicit's objective.

    It leaves implicit's factors in the folder.
    """
    process("als", "peer", folder, {**how, "save": True})
    with np.load(folder / "factors.npz") as file:
        variables = {"params": {"user": file["user"], "item": file["item"]}}
    settings = {"regularization": how["regularization"], "alpha": how["alpha"] - 1}
    goal = float(jr.solvers.wrmf.objective(variables, train, **settings))
    solver = partial(jr.solvers.ials.conjugate_gradient, steps=STEPS)
    options = {"dim": _cold_case.DIM, "key": jax.random.key(0), "solver": solver, "progress": False}
    *_, log = jr.solvers.wrmf.fit(train, sweeps=3 * how["iterations"], **options, **settings)
    reached = np.array(log.column("objective")[1]) <= goal
    if not reached.any():
        raise RuntimeError(f"{len(reached)} sweeps do not reach implicit's objective {goal:.6g}")
    return int(reached.argmax()) + 1


def main() -> None:
    """Measures and writes the record."""
    options = _record.parser("speed.cold", __doc__, "ml-1m, 3 epochs, without VALID, one round").parse_args()
    quick, cases, facts = options.quick, {}, {"data": {}, "sweeps": {}}
    rounds, has_peer = 1 if quick else 5, importlib.util.find_spec("implicit") is not None
    if not has_peer:
        print('implicit is not installed and is skipped; pip install "jaxrec[bench]"')
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        cases["import"] = compared("import", folder, {}, rounds, theirs={})
        for data in ("ml-1m",) if quick else ("gowalla", "ml-1m"):
            train = dataclasses.replace(als.load(data).train, weights=None)
            shape = train.n_users, train.n_items
            np.savez(folder / "train.npz", indptr=train.indptr, indices=train.indices, shape=shape)
            how = {"regularization": als.REGULARIZATION, "alpha": als.ALPHA[data]}
            theirs = how | {"iterations": ITERATIONS}
            how |= {"steps": STEPS, "sweeps": ITERATIONS}
            if has_peer:
                how["sweeps"] = sweeps_needed(train, folder, theirs)
                facts["sweeps"][data] = how["sweeps"]
            cases[f"{data}: iALS, top-20"] = compared("als", folder, how, rounds, theirs=theirs if has_peer else None)
            facts["data"][data] = train.fingerprint()
            if has_peer:
                named = f"{data}: one user, saved factors"
                cases[named] = compared("one user", folder, {}, rounds, theirs={})
        less = {"epochs": 3} if quick else {}
        cases["movielens-small: MF-softmax, report"] = compared("softmax", folder, less, rounds)
        if not quick:
            cases["citeulike-a: VALID, an epoch, report"] = compared("valid", folder, {}, rounds)
    _record.write("speed.cold", cases, quick=quick, iterations=ITERATIONS, steps=STEPS, **facts)


if __name__ == "__main__":
    main()
