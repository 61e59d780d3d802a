"""Eight seeds of MF-BPR on movielens-small: one `train.sweep` against eight calls of `train.fit`.

They run alternately in one process, with 32 dimensions, one uniform negative, batches of 1,024,
optax.adam and 10 epochs on the training part of the quickstart's split, without validation. Both
give the same eight runs; the largest deviation of a parameter is recorded. The sweep is timed with
its defaults (on CPU, programs of one run each that run in parallel) and, as "vmap", with all runs
vmapped into one program. The eight fits run one after another. Parallel programs only pay with idle
cores. Times are medians; the timed rounds compile nothing. The second case is what a sweep is meant
for: the first call with 4 learning rates, where each fit compiles its own optimiser.
"""

from __future__ import annotations

import itertools
from functools import partial

import jax
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record
from benchmarks.speed import _measure
from jaxrec.data import datasets, splits

DIM, BATCH, RATE, SEEDS = 32, 1024, 5e-3, 8
RATES = [1e-3, 2e-3, 5e-3, 1e-2]
TITLE = "Speed of sweeps"
COLUMNS = {
    "sweep: wall (CPU)": ("{sweep_wall_s:.2f} s ({sweep_cpu_s:.2f} s)", "{sweep_first_call_s:.2f} s"),
    "one by one": ("{sequential_wall_s:.2f} s ({sequential_cpu_s:.2f} s)", "{sequential_first_call_s:.2f} s"),
    "ratio": "{ratio:.2f}",
    "sweep's first call": "{sweep_first_call_s:.2f} s",
}


def main() -> None:
    """Measures and writes the record."""
    quick = _record.parser("speed.sweep", __doc__, "2 epochs, 2 rounds").parse_args().quick
    epochs, rounds = (2, 2) if quick else (10, 5)
    data = datasets.load("movielens-small", minimum=0.5).interactions
    order = partial(splits.temporal_order, key=jax.random.key(0))
    train = splits.ratio(data, (0.8, 0.1, 0.1), order=order).train
    keys = jax.random.split(jax.random.key(0), SEEDS)
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM, scale=0.1)
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=1)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    settings = {"epochs": epochs, "batch_size": BATCH, "progress": False}
    fixed = optax.adam(RATE)

    def setup(rate=RATE):
        return model, objective, optax.adam(rate)

    def swept(keys=keys, **more):
        result = jr.train.sweep(keys, setup, train, **settings, **more)
        return [result.state(run).variables["params"] for run in range(len(result.runs))]

    def one_by_one(keys=keys, transformations=(fixed,)):
        runs = itertools.product(transformations, keys)
        fitted = (jr.train.fit(jr.train.init(key, model, tx), objective, tx, train, **settings) for tx, key in runs)
        return [state.variables["params"] for state, _ in fitted]

    runs = {"sweep": swept, "vmap": partial(swept, width=SEEDS), "sequential": one_by_one}
    seeds, found = _measure.compared(runs, rounds=rounds)
    for side, name in (("sweep", ""), ("vmap", "vmap_")):
        seeds[f"{name}ratio"] = seeds[f"{side}_wall_s"] / seeds["sequential_wall_s"]
        seeds[f"{name}cpu_ratio"] = seeds[f"{side}_cpu_s"] / seeds["sequential_cpu_s"]
        seeds[f"{side}_deviation"] = deviation(found[side], found["sequential"])
    one, many = keys[:1], [optax.adam(rate) for rate in RATES]
    runs = {"sweep": partial(swept, one, settings={"rate": RATES}), "sequential": partial(one_by_one, one, many)}
    first, found = _measure.compared(runs, rounds=1)
    rates = {name: value for name, value in first.items() if name.endswith("first_call_s")}
    rates["ratio"] = rates["sweep_first_call_s"] / rates["sequential_first_call_s"]
    rates["sweep_deviation"] = deviation(found["sweep"], found["sequential"])
    cases = {f"{SEEDS} seeds of MF-BPR, movielens-small": seeds, "4 learning rates of MF-BPR, first call": rates}
    facts = {"data": train.fingerprint(), "pairs": train.n_pairs, "dim": DIM, "batch_size": BATCH}
    _record.write("speed.sweep", cases, quick=quick, **facts, rate=RATE, epochs=epochs)


def deviation(ours: list, others: list) -> float:
    """Returns the largest absolute difference of a parameter."""
    leaves = zip(jax.tree.leaves(ours), jax.tree.leaves(others), strict=True)
    return max(float(np.abs(np.asarray(mine) - np.asarray(other)).max()) for mine, other in leaves)


if __name__ == "__main__":
    main()
