"""An epoch of MARS on Ciao by its released rule: jaxrec's touched rows against dense PyTorch, in turn in one run.

4 facets of 128 dimensions, batches of 1,000 triples, of which the released code's epoch has 676. All make the same
steps: the gradient written by hand, plain SGD, rows back on the sphere. The peer is written here from the rule's
description, with dense gradients, and renormalises all rows of both tables in each forward pass. "PyTorch, two passes"
goes forward for positives and for negatives, each with the user, as the description of the released code has it;
"PyTorch, one pass" does both at once, the same step at less cost. jaxrec moves the touched rows alone, by `train.fit`.
Its time includes drawing the triples; PyTorch gets its triples drawn beforehand, as the released code does.

Medians of equal shares of an epoch in turn, given for 676 batches; one whole epoch of each beside them. All cores for
each, PyTorch's waiting threads set to sleep; first calls apart, peak memory of a process of its own, imports and data
included.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import numpy as np

import jaxrec as jr
from benchmarks import _record
from jaxrec.data import datasets
from jaxrec.train import mars

DIM, BATCH, EPOCH = 128, 1000, 676
CALL = 52  # batches of an epoch of `fit`, which goes through one triple a pair; 13 make the released epoch
PRESET = jr.papers.mars.RELEASED
PEERS = {"PyTorch, one pass": 1, "PyTorch, two passes": 2}

Run = Callable[[int], float]


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = _record.parser("mars_speed", __doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each (default 5)")
    parser.add_argument("--share", type=int, default=2, help=f"calls of {CALL} batches in a run (default 2)")
    parser.add_argument(
        "--quick", action="store_true", help=f"the same code: runs of {CALL} batches, 3 rounds, no more"
    )
    parser.add_argument("--peak-of", metavar="SIDE", help="run a side once; print the peak memory")
    return parser.parse_args()


def start(train: jr.Interactions) -> tuple[jr.models.MARS, Any, jr.train.State]:
    """The model, its optimiser and its state."""
    model = jr.models.MARS(train.n_users, train.n_items, dim=DIM, **PRESET["model"])
    tx = jr.optim.rowwise.touched_only(mars.optimizer(**PRESET["optimizer"]))
    return model, tx, jr.train.init(jax.random.key(0), model, tx)


def ours(train: jr.Interactions) -> Run:
    """A function that trains some calls of `CALL` batches, and gives the mean loss of a batch."""
    model, tx, state = start(train)
    margin = mars.adaptive_margin(train, **PRESET["margin"])
    draws = jr.papers.mars.samplers(train, **PRESET["power"])
    objective = partial(mars.objective, model=model, margin=margin, **draws, **PRESET["objective"])
    counted = train.select(
        np.arange(train.n_pairs) < CALL * BATCH
    )  # says how many triples alone; all of train is drawn

    def run(calls: int) -> float:
        nonlocal state
        epochs = int(state.epoch) + calls
        options = {"epochs": epochs, "batch_size": BATCH, "progress": False}
        state, history = jr.train.fit(state, objective, tx, counted, **options)
        return float(np.mean(history.column("loss")[1]))

    return run


def theirs(train: jr.Interactions, passes: int) -> Run | None:
    """The same in PyTorch, or None where it is not installed."""
    try:
        import torch

        from benchmarks._dense_mars import DenseMARS
    except ImportError:
        return None
    torch.set_num_threads(_record.cores())
    rate = PRESET["optimizer"]["learning_rate"]
    peer = DenseMARS(start(train)[2].variables["params"], learning_rate=rate, passes=passes)
    weights = {name: PRESET["objective"][name] for name in ("pull_weight", "facet_weight")}
    triples = [torch.from_numpy(np.array(side)).long() for side in drawn(train)]
    margin = torch.from_numpy(mars.adaptive_margin(train, **PRESET["margin"]))
    done = 0

    def run(calls: int) -> float:
        nonlocal done
        losses = []
        for number in range(done, done + calls * CALL):
            users, positives, negatives = (side[number % EPOCH] for side in triples)
            losses.append(peer.step(users, positives, negatives, margin[users], **weights))
        done += calls * CALL
        return float(np.mean(losses))

    return run


def drawn(train: jr.Interactions) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Triples of an epoch, int32 [EPOCH, BATCH] each, by the same draws."""
    draws = jr.papers.mars.samplers(train, **PRESET["power"])
    first, second = jax.random.split(jax.random.key(1))
    users, items = draws["positives"](first, (EPOCH, BATCH))
    return users, items, draws["sample"](second, users)[..., 0]


def side(name: str, train: jr.Interactions) -> Run | None:
    """The function of a side by its name."""
    return ours(train) if name == "jaxrec" else theirs(train, PEERS[name])


def seconds(run: Callable[[], float]) -> tuple[float, float, float]:
    """Wall and CPU seconds of a call, and what it gives."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = run()
    return time.perf_counter() - wall, time.process_time() - cpu, found


def measured(runs: dict[str, Run], share: int, rounds: int, whole: bool) -> dict[str, dict[str, float]]:
    """Each side's figures: first call, whole epoch, and shares in turn, the latter given for an epoch."""
    figures = {name: {} for name in runs}
    with _record.compilations() as compiled:
        for name, run in runs.items():
            figures[name]["first_call_s"], _, figures[name]["first_loss"] = seconds(partial(run, 1))
    with _record.compilations() as again:
        for name, run in runs.items() if whole else ():
            figures[name]["whole_epoch_s"], figures[name]["whole_epoch_cpu_s"], _ = seconds(partial(run, EPOCH // CALL))
        times = _record.alternate({name: partial(run, share) for name, run in runs.items()}, rounds=rounds)
    factor = EPOCH / (CALL * share)
    for name in runs:
        figures[name] |= {figure: value * factor for figure, value in times[name].items()}
    figures["jaxrec"] |= {"compile_s": sum(compiled), "compilations": len(compiled)}
    figures["jaxrec"]["compilations_when_steady"] = len(again)
    return figures


def main() -> None:
    """Measures and writes the record."""
    options = arguments()
    train = datasets.load("ciao", minimum=0).train
    if options.peak_of:
        side(options.peak_of, train)(1)
        _record.print_peak_memory()
        return
    runs = {name: side(name, train) for name in ("jaxrec", *PEERS)}
    if None in runs.values():
        print('torch is not installed (pip install "jaxrec[bench]"): skipped, no ratio')
        runs = {name: run for name, run in runs.items() if run is not None}
    share, rounds = (1, 3) if options.quick else (options.share, options.rounds)
    figures = measured(runs, share, rounds, whole=not options.quick)
    for name in () if options.quick else runs:
        figures[name]["peak_mb"] = _record.peak_memory("benchmarks.mars_speed", "--peak-of", name)
    mine, cases = figures["jaxrec"], {}
    for name in PEERS if len(runs) > 1 else ():
        case = {
            f"{label}_{key}": value
            for label, name in (("jaxrec", "jaxrec"), ("torch", name))
            for key, value in figures[name].items()
        }
        case |= {
            key: mine[figure] / figures[name][figure] for key, figure in (("ratio", "wall_s"), ("cpu_ratio", "cpu_s"))
        }
        case["times_faster"] = 1 / case["ratio"]
        cases[f"against {name}"] = case
    cases = cases or {"jaxrec alone": {f"jaxrec_{key}": value for key, value in mine.items()}}
    for name in runs:
        print(f"{name:<22}" + ", ".join(f"{key} {value:.4g}" for key, value in figures[name].items()))
    for name, case in cases.items():
        print(f"{name}: {case.get('times_faster', float('nan')):.1f} times as fast")
    facts = {"data": train.fingerprint(), "dim": DIM, "facets": PRESET["model"]["n_facets"], "batch_size": BATCH}
    facts |= {"batches": EPOCH, "batches_of_a_run": CALL * share}
    _record.write("mars_speed", cases, quick=options.quick, **facts)


if __name__ == "__main__":
    main()
