"""An epoch of matrix factorisation on Gowalla: jaxrec against PyTorch, alternating in one run.

MF-BPR with 1 negative and MF-MML (cosines) with 100, 64 dimensions, batches of 1,024, negatives uniform and drawn on
the way, dense Adam in both: PyTorch's, and `optim.rowwise.dense_adam`, which is the same algorithm; `--optax` takes
`optax.adam` instead. The case "row-wise" is MF-BPR by `optim.rowwise.adam`, which moves only the rows of a step:
another algorithm, against PyTorch's dense Adam all the same. All cores for both, PyTorch's waiting threads set to
sleep. Medians; compile time apart. MF-BPR goes through the whole epoch, 792 steps, MF-MML through 200 of them (random
pairs, whole tables).
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record
from jaxrec.data import datasets

DIM, BATCH, RATE = 64, 1024, 1e-3
MARGINS, WEIGHTS, WEIGHT = (0.7, 0.8, 0.9), (0.1, 0.15, 0.75), 700.0
MML = partial(jr.losses.mml, margins=MARGINS, weights=WEIGHTS, negative_weight=WEIGHT)
CASES = {
    "MF-BPR, 1 negative": (792, 1, jr.models.dot, jr.losses.bpr, jr.optim.rowwise.dense_adam),
    "MF-BPR, 1 negative, row-wise": (792, 1, jr.models.dot, jr.losses.bpr, jr.optim.rowwise.adam),
    "MF-MML, 100 negatives": (200, 100, jr.models.cosine, MML, jr.optim.rowwise.dense_adam),
}


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each (default 5)")
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES), help="what to measure")
    parser.add_argument("--optax", action="store_true", help="optax.adam in place of dense_adam")
    parser.add_argument("--quick", action="store_true", help="the same code on 20 steps, 3 rounds")
    return parser.parse_args()


def ours(train: jr.Interactions, n: int, score, loss, adam):
    """A function that goes through the pairs once more, whole `fit` included."""
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM, score=score)
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=n)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    tx = adam(RATE)
    touched = partial(jr.train.pairwise_rows, sample=sample) if adam is jr.optim.rowwise.dense_adam else None
    options = {"batch_size": BATCH, "touched": touched, "progress": False}
    state = jr.train.init(jax.random.key(0), model, tx)

    def run():
        nonlocal state
        epochs = int(state.epoch) + 1
        state, history = jr.train.fit(state, objective, tx, train, epochs=epochs, **options)
        return history.records[-1]["loss"]

    return run


def theirs(train: jr.Interactions, n: int):
    """The same in PyTorch, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    functional = torch.nn.functional
    torch.manual_seed(0)
    torch.set_num_threads(_record.cores())
    user, item = torch.nn.Embedding(train.n_users, DIM), torch.nn.Embedding(train.n_items, DIM)
    for table in (user, item):
        torch.nn.init.normal_(table.weight, std=0.01)
    optimiser = torch.optim.Adam([user.weight, item.weight], lr=RATE)
    users, items = (torch.from_numpy(ids).long() for ids in train.pairs())

    def loss(u, v, w):
        if n == 1:
            pos, neg = (u * v).sum(-1), torch.bmm(w, u.unsqueeze(-1)).squeeze(-1)
            return functional.softplus(neg - pos[:, None]).mean()
        u, v, w = (functional.normalize(x, dim=-1) for x in (u, v, w))
        pos, neg = (u * v).sum(-1), torch.bmm(w, u.unsqueeze(-1)).squeeze(-1)
        penalty = sum(weight * functional.relu(neg - margin) for margin, weight in zip(MARGINS, WEIGHTS))
        return (functional.relu(1 - pos) + WEIGHT * penalty.mean(-1)).mean()

    def run():
        total = 0.0
        for places in torch.randperm(len(users)).split(BATCH):
            negatives = torch.randint(0, train.n_items, (len(places), n))
            value = loss(user(users[places]), item(items[places]), item(negatives))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            total += value.item()
        return total * BATCH / len(users)

    return run


def main() -> None:
    """Measures the cases and writes the record."""
    options = arguments()
    whole = datasets.load("gowalla").train
    order, cases = np.random.default_rng(0).permutation(whole.n_pairs), {}
    for name in options.case:
        steps, n, score, loss, adam = CASES[name]
        steps = 20 if options.quick else steps
        train = whole.select(order < steps * BATCH)
        adam = optax.adam if options.optax and adam is jr.optim.rowwise.dense_adam else adam
        runs = {"jaxrec": ours(train, n, score, loss, adam), "torch": theirs(train, n)}
        if runs["torch"] is None:
            print('torch is not installed (pip install "jaxrec[bench]"): skipped, no ratio')
            del runs["torch"]
        first, losses = {}, {}
        with _record.compilations() as compiled:
            for side, run in runs.items():
                began = time.perf_counter()
                losses[side] = run()
                first[side] = time.perf_counter() - began
        with _record.compilations() as again:
            times = _record.alternate(runs, rounds=3 if options.quick else options.rounds)
        case = {f"{side}_{figure}": value for side in runs for figure, value in times[side].items()}
        case |= {f"{side}_first_call_s": first[side] for side in runs}
        case |= {f"{side}_first_loss": losses[side] for side in runs}
        case |= {
            "steps": steps,
            "compile_s": sum(compiled),
            "compilations": len(compiled),
            "compilations_when_steady": len(again),
        }
        if "torch" in runs:
            case["ratio"] = times["jaxrec"]["wall_s"] / times["torch"]["wall_s"]
            case["cpu_ratio"] = times["jaxrec"]["cpu_s"] / times["torch"]["cpu_s"]
            case["times_faster"] = 1 / case["ratio"]
        cases[name] = case
        for side in runs:
            wall, cpu = times[side]["wall_s"], times[side]["cpu_s"]
            print(f"{name:<30}{side:<8}{wall:7.2f} s wall, {cpu:7.2f} s CPU; first call {first[side]:.2f} s")
        if "torch" in runs:
            print(
                f"{name:<30}{case['times_faster']:.1f} times as fast as PyTorch; compiling took {sum(compiled):.1f} s"
            )
    facts = {"data": whole.fingerprint(), "dim": DIM, "batch_size": BATCH, "optax": options.optax}
    _record.write("train_speed", cases, quick=options.quick, **facts)


if __name__ == "__main__":
    main()
