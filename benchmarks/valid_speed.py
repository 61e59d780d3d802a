"""An epoch of VALID on citeulike-a: jaxrec's streamed decoder and ragged histories against dense PyTorch.

512 users a step, 4 interests, 2 blocks, 64 dimensions, Adam, noise and dropout as in training. The peer is written here
from the description of the released code: dense rows, groups [B, N, K], every interest's encoder and decoder in turn.
Without noise both give the same loss, which is checked first. Both make the same number of steps in turn, PyTorch some
alone, given for an epoch of 11. All cores for each, first calls apart.

Then jaxrec alone: peak memory of a step over Gowalla's 40,981 items and over a made-up catalogue of a million, of a
process of its own, imports and data included; and seconds of a step over three catalogues, of which `floor_s` are those
of its seven products of [B·K, D] with [D, N] (two forward, two again backward, three for gradients) at the speed that a
square product of 4,096 has on the same device in the same run.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record
from benchmarks.studies.valid import prepare
from jaxrec.data import datasets

USERS, SETTING = 512, {"n_interests": 4, "n_blocks": 2, "dim": 64, "width": 64}
FLOOR = 7  # products of [B K, D] with [D, N] in a step
SMOOTH = {"temperature": 0.1, "deviation": 0.1, "dropout": 0.5}
LARGE = 1_000_000


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = _record.parser("valid_speed", __doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each (default 5)")
    parser.add_argument("--steps", type=int, default=2, help="steps of a run (default 2)")
    parser.add_argument("--quick", action="store_true", help="the same code: 128 users a step, 3 rounds of 1 step")
    parser.add_argument("--peak-of", choices=["gowalla", "million"], help="make a step; print the peak memory")
    return parser.parse_args()


def million() -> jr.Interactions:
    """A made-up set: 2,048 users with 30 of a million items each, by a power law."""
    rng = np.random.default_rng(0)
    items = np.minimum(rng.pareto(0.5, (2048, 40)) * 100, LARGE - 1).astype(np.int64)
    items = (items * 7919 + np.arange(40)) % LARGE
    users = np.repeat(np.arange(2048), 40)
    _, first = np.unique(users * LARGE + items.reshape(-1), return_index=True)
    return jr.Interactions.from_pairs(users[first], items.reshape(-1)[first], n_users=2048, n_items=LARGE)


class Ours:
    """Training by `train.fit`."""

    def __init__(self, train: jr.Interactions, users: int):
        self.model = jr.models.VALID(train, **SETTING, decoder_temperature=SMOOTH["temperature"], **SMOOTH)
        self.tx = optax.adam(1e-3)
        self.state = jr.train.init(jax.random.key(0), self.model, self.tx)
        self.train, self.users = train, users
        self.order = np.random.default_rng(0).permutation(train.n_users)

    def run(self, steps: int) -> float:
        """So many steps, as an epoch over as many users, drawn once; seconds of the epoch."""
        some = self.train.select(self.order[self.train.pairs()[0]] < steps * self.users)
        self.state, history = jr.train.fit(
            self.state,
            partial(jr.train.autoencoders.objective, model=self.model),
            self.tx,
            some,
            epochs=int(self.state.epoch) + 1,
            batch_size=self.users,
            group=0,
            progress=False,
        )
        return history.records[-1]["seconds"]

    def loss(self, users: np.ndarray) -> float:
        """Without noise, β = 1."""
        nll, divergence = self.model.apply(self.state.variables, users, method="bound")
        return float((nll + divergence).mean())


def theirs(ours: Ours) -> Callable[[int], None] | None:
    """The same number of steps in PyTorch; None where it is not installed."""
    try:
        import torch

        from benchmarks._dense_valid import DenseVALID
    except ImportError:
        return None
    torch.set_num_threads(_record.cores())
    torch.manual_seed(0)
    peer = DenseVALID(ours.state.variables["params"], blocks=SETTING["n_blocks"], **SMOOTH)
    optimizer = torch.optim.Adam(peer.parameters(), lr=1e-3)
    matrix, order = ours.train.to_scipy(), np.random.default_rng(0)

    def dense(users: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(matrix[users].toarray())

    users = np.arange(64, dtype=np.int32)
    with torch.no_grad():
        np.testing.assert_allclose(peer.loss(dense(users), 1.0, noise=False).item(), ours.loss(users), rtol=1e-4)

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            peer.loss(dense(order.permutation(ours.train.n_users)[: ours.users]), 0.01).backward()
            optimizer.step()

    return run


def seconds(run: Callable[[], None]) -> float:
    """Wall seconds of a call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def product_speed(size: int = 4096, rounds: int = 5) -> float:
    """Floating-point operations a second of a square float32 product, the best of some."""
    a, product = jax.numpy.ones((size, size)), jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    return 2 * size**3 / min(seconds(lambda: product(a).block_until_ready()) for _ in range(rounds))


def a_step(train: jr.Interactions, steps: int, rounds: int) -> dict[str, float]:
    """Seconds of a step, the median of rounds, and what its large products need at best."""
    ours = Ours(train, USERS)
    ours.run(steps)
    step = float(np.median([ours.run(steps) / steps for _ in range(rounds)]))
    flops = FLOOR * 2 * USERS * SETTING["n_interests"] * SETTING["dim"] * train.n_items
    floor = flops / product_speed()
    return {"n_items": train.n_items, "step_s": step, "gflop": flops / 1e9, "floor_s": floor, "share": floor / step}


def main() -> None:
    """Measures and writes the record."""
    options = arguments()
    if options.peak_of:
        ours = Ours(million() if options.peak_of == "million" else prepare("gowalla-valid").train, USERS)
        first, again = seconds(partial(ours.run, 1)), ours.run(1)
        print(f"first step {first:.2f} s, again {again:.2f} s")
        _record.print_peak_memory()
        return
    part = prepare("citeulike-a-valid")
    users, steps, rounds = (128, 1, 3) if options.quick else (USERS, options.steps, options.rounds)
    ours = Ours(part.train, users)
    runs = {"jaxrec": ours.run, "PyTorch": theirs(ours)}
    if runs["PyTorch"] is None:
        print('torch is not installed (pip install "jaxrec[bench]"): skipped, no ratio')
        del runs["PyTorch"]
    with _record.compilations() as compiled:
        first = {name: seconds(partial(run, steps)) for name, run in runs.items()}
    times = _record.alternate({name: partial(run, steps) for name, run in runs.items()}, rounds=rounds)
    factor = -(-part.train.n_users // users) / steps
    case = {"jaxrec_compile_s": sum(compiled), "compilations": len(compiled)}
    for name, label in (("jaxrec", "jaxrec"), ("PyTorch", "torch"))[: len(runs)]:
        case[f"{label}_first_call_s"] = first[name]
        case |= {f"{label}_{key}": value * factor for key, value in times[name].items()}
    if len(runs) > 1:
        case["ratio"] = case["jaxrec_wall_s"] / case["torch_wall_s"]
        case["cpu_ratio"] = case["jaxrec_cpu_s"] / case["torch_cpu_s"]
        case["times_faster"] = 1 / case["ratio"]
    facts = {}
    if not options.quick:
        others = {"yelp2018": datasets.load("yelp2018").train, "gowalla-valid": prepare("gowalla-valid").train}
        catalogues = {"citeulike-a-valid": part.train} | others
        facts["catalogues"] = {name: a_step(train, steps, rounds) for name, train in catalogues.items()}
        facts["peaks_mb"] = {name: peak(name) for name in ("gowalla", "million")}
    print(", ".join(f"{key} {value:.4g}" for key, value in case.items()))
    cases = {"citeulike-a, an epoch": case}
    _record.write("valid_speed", cases, quick=options.quick, data=part.train.fingerprint(), users_a_step=users, **facts)


def peak(name: str) -> float:
    """Largest resident memory of a process that makes two steps."""
    return _record.peak_memory("benchmarks.valid_speed", "--peak-of", name)


if __name__ == "__main__":
    main()
