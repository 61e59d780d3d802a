"""Top-20 lists of every Gowalla user, seen items masked, 64 dimensions: jaxrec against implicit, in turn in one run.

Both rank the same random factors on all cores. Wall and CPU seconds are medians; first-call time and peak memory (each
in a process of its own, imports and data included) stand beside them. The lists must agree up to ties.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np
import scipy.sparse

import jaxrec as jr
from benchmarks import _record
from jaxrec.data import datasets

K, DIM = 20, 64


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="counted runs of each (default 7)")
    parser.add_argument("--quick", action="store_true", help="the same code on 2,000 users, 3 rounds")
    parser.add_argument("--peak-of", choices=("jaxrec", "implicit"), help="run one side once; print its peak memory")
    return parser.parse_args()


def ours(train: jr.Interactions, users: np.ndarray, tables: dict[str, np.ndarray]):
    """A function that gives (scores, items) by jaxrec."""
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM)
    variables = jax.device_put({"params": tables})
    return lambda: jr.evaluate.top_k(model, variables, users, k=K, seen=train)


def theirs(train: jr.Interactions, users: np.ndarray, tables: dict[str, np.ndarray]):
    """A function that gives (scores, items) by implicit, or None where it is not installed."""
    try:
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits
    except ImportError:
        return None
    threadpool_limits(1, "blas")  # as implicit asks for: its own threads share the work
    model = AlternatingLeastSquares(factors=DIM, num_threads=_record.cores())
    model.user_factors, model.item_factors = tables["user"], tables["item"]
    seen = scipy.sparse.csr_matrix(train.to_scipy())[users]

    def run():
        items, scores = model.recommend(users, seen, N=K, filter_already_liked_items=True)
        return scores, items

    return run


def main() -> None:
    """Measures, compares the lists and writes the record."""
    options = arguments()
    train = datasets.load("gowalla").train
    users = np.arange(2000 if options.quick else train.n_users, dtype=np.int32)
    draw = np.random.default_rng(0).standard_normal
    tables = {
        "user": draw((train.n_users, DIM), np.float32),
        "item": draw((train.n_items, DIM), np.float32),
    }
    sides = {"jaxrec": ours, "implicit": theirs}
    if options.peak_of:
        sides[options.peak_of](train, users, tables)()
        _record.print_peak_memory()
        return
    runs = {name: side(train, users, tables) for name, side in sides.items()}
    if runs["implicit"] is None:
        print('implicit is not installed (pip install "jaxrec[bench]"): skipped, no ratio')
        del runs["implicit"]
    first, lists = {}, {}
    with _record.compilations() as compiled:
        for name, run in runs.items():
            began = time.perf_counter()
            lists[name] = run()
            first[name] = time.perf_counter() - began
    with _record.compilations() as again:
        times = _record.alternate(runs, rounds=3 if options.quick else options.rounds)
    quick = ["--quick"] if options.quick else []
    case = {}
    for name in runs:
        peak = _record.peak_memory("benchmarks.evaluate_speed", "--peak-of", name, *quick)
        case |= {f"{name}_{figure}": value for figure, value in times[name].items()}
        case |= {f"{name}_first_call_s": first[name], f"{name}_peak_mb": peak}
        wall, cpu = times[name]["wall_s"], times[name]["cpu_s"]
        print(f"{name:<10} {wall:6.2f} s wall, {cpu:6.2f} s CPU, first call {first[name]:5.2f} s, peak {peak:.0f} MB")
    case |= {"compilations": len(compiled), "compilations_when_steady": len(again)}
    if "implicit" in runs:
        case["ratio"] = times["jaxrec"]["wall_s"] / times["implicit"]["wall_s"]
        case["cpu_ratio"] = times["jaxrec"]["cpu_s"] / times["implicit"]["cpu_s"]
        case |= agreement(lists["jaxrec"], lists["implicit"])
        print(f"ratio {case['ratio']:.2f} (below 1: jaxrec is faster); {case['lists_differ']} lists differ beyond ties")
    facts = {"data": train.fingerprint(), "users": len(users), "k": K, "dim": DIM}
    _record.write("evaluate_speed", {"gowalla top-20": case}, quick=options.quick, **facts)


def agreement(mine, theirs) -> dict[str, int]:
    """Lists whose items differ, and those of them whose scores differ too by more than float32 rounding."""
    differ = (mine[1] != theirs[1]).any(axis=1)
    apart = ~np.isclose(mine[0], theirs[0], rtol=1e-5, atol=1e-5).all(axis=1)
    return {"lists_in_other_order": int(differ.sum()), "lists_differ": int((differ & apart).sum())}


if __name__ == "__main__":
    main()
