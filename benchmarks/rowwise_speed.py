"""A step of MF-BPR on Gowalla by three Adams, for 1 to 64 negatives: where each wins.

`optax.adam` and `optim.rowwise.dense_adam` are one algorithm, on every row; `optim.rowwise.adam` moves only the rows
that a step touches, another algorithm. 64 dimensions, batches of 1,024, in turn in one run, medians; compile time
apart. The ratio is row-wise over dense_adam.
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record
from jaxrec.data import datasets

DIM, BATCH, RATE = 64, 1024, 1e-3
ADAMS = {"optax": optax.adam, "dense": jr.optim.rowwise.dense_adam, "rowwise": jr.optim.rowwise.adam}


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rowwise_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each (default 5)")
    parser.add_argument("--steps", type=int, default=200, help="steps of a run (default 200)")
    parser.add_argument("--quick", action="store_true", help="the same code on 20 steps, 3 rounds, 1 and 16 negatives")
    return parser.parse_args()


def runner(train: jr.Interactions, n: int, adam):
    """A function that trains all pairs once more."""
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM)
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=n)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    touched = partial(jr.train.pairwise_rows, sample=sample) if adam is jr.optim.rowwise.dense_adam else None
    tx = adam(RATE)
    state = jr.train.init(jax.random.key(0), model, tx)

    def run():
        nonlocal state
        options = {"epochs": int(state.epoch) + 1, "batch_size": BATCH, "touched": touched, "progress": False}
        state, _ = jr.train.fit(state, objective, tx, train, **options)

    return run


def main() -> None:
    """Measures and writes the record."""
    options = arguments()
    steps, rounds = (20, 3) if options.quick else (options.steps, options.rounds)
    whole = datasets.load("gowalla").train
    kept = np.zeros(whole.n_pairs, bool)
    kept[np.random.default_rng(0).choice(whole.n_pairs, steps * BATCH, replace=False)] = True
    train = whole.select(kept)
    cases = {}
    for n in (1, 16) if options.quick else (1, 4, 16, 64):
        runs = {name: runner(train, n, adam) for name, adam in ADAMS.items()}
        with _record.compilations() as compiled:
            for run in runs.values():
                run()
        times = _record.alternate(runs, rounds=rounds)
        case = {f"{name}_{figure}": value / steps for name in runs for figure, value in times[name].items()}
        case |= {"ratio": times["rowwise"]["wall_s"] / times["dense"]["wall_s"], "compile_s": sum(compiled)}
        cases[f"MF-BPR, {n} negatives"] = case
        print(n, "negatives:", ", ".join(f"{name} {1000 * case[f'{name}_wall_s']:.2f} ms a step" for name in runs))
    facts = {"data": whole.fingerprint(), "dim": DIM, "batch_size": BATCH, "steps": steps}
    _record.write("rowwise_speed", cases, quick=options.quick, **facts)


if __name__ == "__main__":
    main()
