"""Eight seeds of MF-BPR on movielens-small: one `train.sweep` against eight `train.fit`, alternating in one process.

32 dimensions, one uniform negative, batches of 1,024, optax.adam, on the training part of the quickstart's split; no
validation. Both give the same eight runs; the largest deviation of a parameter is recorded. The sweep is timed as it
comes (on CPU: programs of one lane side by side) and, as "vmap", with all lanes vmapped into one program; each of the
eight fits waits for the one before. Side by side needs idle cores to pay: the CPU times tell how busy the machine was.
Counted rounds compile nothing; first calls, with compilation, stand apart. Medians.

A second case is what a sweep is for: the first call of 4 learning rates, where each fit compiles its own optimiser.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record
from jaxrec.data import datasets, splits

DIM, BATCH, RATE, SEEDS = 32, 1024, 5e-3, 8
RATES = [1e-3, 2e-3, 5e-3, 1e-2]


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep_speed", description=__doc__)
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each run (default 10)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each side (default 5)")
    parser.add_argument("--quick", action="store_true", help="the same code on less: 2 epochs, 2 rounds")
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.rounds = 2, 2
    return options


def main() -> None:
    """Measures and writes the record."""
    options = arguments()
    data = datasets.load("movielens-small", minimum=0.5).interactions
    order = partial(splits.temporal_order, key=jax.random.key(0))
    train = splits.ratio(data, (0.8, 0.1, 0.1), order=order).train
    keys = jax.random.split(jax.random.key(0), SEEDS)
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM, scale=0.1)
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=1)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    settings = {"epochs": options.epochs, "batch_size": BATCH, "progress": False}
    fixed = optax.adam(RATE)
    found: dict[str, list] = {}

    def setup(rate=RATE):
        return model, objective, optax.adam(rate)

    def swept(name, keys=keys, **more):
        result = jr.train.sweep(keys, setup, train, **settings, **more)
        found[name] = [result.state(lane).variables["params"] for lane in range(len(result.lanes))]

    def one_by_one(name, keys=keys, transformations=(fixed,)):
        found[name] = []
        for tx, key in itertools.product(transformations, keys):
            state, _ = jr.train.fit(jr.train.init(key, model, tx), objective, tx, train, **settings)
            found[name].append(state.variables["params"])

    runs = {
        "sweep": partial(swept, "sweep"),
        "vmap": partial(swept, "vmap", width=SEEDS),
        "sequential": partial(one_by_one, "sequential"),
    }
    case: dict[str, float] = {}
    for side, run in runs.items():
        case |= first_call(side, run)
    with _record.compilations() as again:
        times = _record.alternate(runs, rounds=options.rounds)
    case |= {f"{side}_{figure}": value for side in runs for figure, value in times[side].items()}
    case["compilations_when_steady"] = len(again)
    for side, name in (("sweep", "ratio"), ("vmap", "vmap_ratio")):
        case[name] = times[side]["wall_s"] / times["sequential"]["wall_s"]
        case[name.replace("ratio", "cpu_ratio")] = times[side]["cpu_s"] / times["sequential"]["cpu_s"]
        case[f"{side}_deviation"] = deviation(found[side], found["sequential"])

    one = keys[:1]
    rates: dict[str, float] = first_call("sweep", partial(swept, "sweep", one, settings={"rate": RATES}))
    rates |= first_call("sequential", partial(one_by_one, "sequential", one, [optax.adam(rate) for rate in RATES]))
    rates["ratio"] = rates["sweep_first_call_s"] / rates["sequential_first_call_s"]
    rates["sweep_deviation"] = deviation(found["sweep"], found["sequential"])

    for side in runs:
        wall, cpu, first = times[side]["wall_s"], times[side]["cpu_s"], case[f"{side}_first_call_s"]
        print(f"{side:<12}{wall:7.2f} s wall, {cpu:7.2f} s CPU for {SEEDS} seeds; first call {first:.2f} s")
    print(f"the sweep takes {case['ratio']:.2f} of the time of {SEEDS} runs in turn; vmapped {case['vmap_ratio']:.2f}")
    print(f"4 learning rates with compilation: {rates['ratio']:.2f} of the time of 4 runs in turn")
    facts = {"data": train.fingerprint(), "pairs": train.n_pairs, "dim": DIM, "batch_size": BATCH}
    cases = {f"{SEEDS} seeds of MF-BPR, movielens-small": case, "4 learning rates of MF-BPR, first call": rates}
    _record.write("sweep_speed", cases, quick=options.quick, **facts, rate=RATE, epochs=options.epochs)


def first_call(side: str, run) -> dict[str, float]:
    """Seconds and compilations of a first call."""
    with _record.compilations() as compiled:
        began = time.perf_counter()
        run()
        seconds = time.perf_counter() - began
    return {
        f"{side}_first_call_s": seconds,
        f"{side}_compilations": len(compiled),
        f"{side}_compile_s": float(sum(compiled)),
    }


def deviation(ours: list, theirs: list) -> float:
    """Largest absolute difference of a parameter."""
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        for mine, other in zip(ours, theirs)
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other))
    )


if __name__ == "__main__":
    main()
