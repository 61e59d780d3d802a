"""An epoch of VALID on citeulike-a: jaxrec's streamed decoder and ragged histories against PyTorch.

There are 512 users per step, 4 interests, 2 blocks, 64 dimensions and Adam, with noise and dropout
as in training. The peer is part of this benchmark, and is written from the description of the
released code: dense rows, groups [B, N, K], and encoders and decoders that process the interests
one by one. Without noise both sides give the same loss, which is checked first. Both make the same
number of steps, alternately. Times are medians, scaled to an epoch of 11 steps, and a ratio below 1
means that jaxrec is faster. Each side uses all cores. First calls include compilation.

Two results are of jaxrec only. The peak memory of a step is measured with Gowalla's 40,981 items
and with a made-up catalogue of a million, in a separate process, with imports and data. The time of
a step is measured with three catalogues. Next to it is the time of its seven products of [B·K, D]
with [D, N] (two forward, two of them recomputed in the backward pass, three for gradients), at the
speed of a square product of size 4,096 on the same device in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record
from benchmarks.speed import _measure
from benchmarks.studies._valid import prepare
from jaxrec.data import datasets

USERS, SETTING = 512, {"n_interests": 4, "n_blocks": 2, "dim": 64, "width": 64}
FLOOR = 7  # number of products of [B K, D] with [D, N] in a step
SMOOTH = {"temperature": 0.1, "deviation": 0.1, "dropout": 0.5}
LARGE = 1_000_000
TITLE = "Speed of VALID"
COLUMNS = {
    "jaxrec: wall, CPU, first call": "{jaxrec_wall_s:.1f} s, {jaxrec_cpu_s:.1f} s, {jaxrec_first_call_s:.1f} s",
    "dense PyTorch": "{torch_wall_s:.1f} s, {torch_cpu_s:.1f} s, {torch_first_call_s:.1f} s",
    "ratio": "{ratio:.3f}",
    "times as fast": "{times_faster:.1f}",
}


def more(found: Mapping[str, Any]) -> str:
    """Returns the text about peak memory and the table of catalogues."""
    rows = [
        [name, str(at["n_items"]), f"{at['step_s']:.2g}", f"{at['floor_s']:.2g}", f"{at['share']:.0%}"]
        for name, at in found["catalogues"].items()
    ]
    head = ["catalogue", "items", "step, s", "only its large products, s", "share"]
    peaks = {name: f"{peak / 1024:.1f} GB" for name, peak in found["peaks_mb"].items()}
    said = f"Peak memory: {peaks['gowalla']} with Gowalla, {peaks['million']} with a million items."
    return f"{said}\n\n{_record.table(head, rows)}"


def million() -> jr.Interactions:
    """Returns a made-up data set: 2,048 users with up to 40 of a million items, by a power law."""
    rng = np.random.default_rng(0)
    items = np.minimum(rng.pareto(0.5, (2048, 40)) * 100, LARGE - 1).astype(np.int64)
    items = (items * 7919 + np.arange(40)) % LARGE
    users = np.repeat(np.arange(2048), 40)
    _, first = np.unique(users * LARGE + items.reshape(-1), return_index=True)
    return jr.Interactions.from_pairs(users[first], items.reshape(-1)[first], n_users=2048, n_items=LARGE)


class Ours:
    """Trains with `train.fit`."""

    def __init__(self, train: jr.Interactions, users: int):
        self.model = jr.models.VALID(train.n_items, **SETTING, decoder_temperature=SMOOTH["temperature"], **SMOOTH)
        self.tx = optax.adam(1e-3)
        self.state = jr.train.init(jax.random.key(0), self.model, self.tx)
        self.train, self.users = train, users
        self.order = np.random.default_rng(0).permutation(train.n_users)

    def run(self, steps: int) -> float:
        """Trains `steps` steps, as an epoch over that many users, and returns its seconds."""
        some = self.train.select(self.order[self.train.pairs()[0]] < steps * self.users)
        objective = partial(jr.train.autoencoders.objective, model=self.model)
        options = {"batch_size": self.users, "examples": jr.train.by_user, "progress": False}
        options["epochs"] = int(self.state.epoch) + 1
        self.state, log = jr.train.fit(self.state, objective, self.tx, some, **options)
        return log.records[-1]["seconds"]

    def loss(self, users: np.ndarray) -> float:
        """Computes the loss without noise, for β = 1."""
        known = self.train.take(users)
        nll, divergence = self.model.apply(self.state.variables, users, histories=known, method="bound")
        return float((nll + divergence).mean())


def theirs(ours: Ours, steps: int) -> Callable[[], None] | None:
    """Returns the same number of steps in PyTorch; None if it is not installed."""
    if (torch := _measure.torch()) is None:
        return None
    from benchmarks.speed._dense_valid import DenseVALID

    torch.manual_seed(0)
    peer = DenseVALID(ours.state.variables["params"], blocks=SETTING["n_blocks"], **SMOOTH)
    optimizer = torch.optim.Adam(peer.parameters(), lr=1e-3)
    matrix, order = ours.train.to_scipy(), np.random.default_rng(0)

    def dense(users: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(matrix[users].toarray())

    users = np.arange(64, dtype=np.int32)
    with torch.no_grad():
        np.testing.assert_allclose(peer.loss(dense(users), 1.0, noise=False).item(), ours.loss(users), rtol=1e-4)

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            peer.loss(dense(order.permutation(ours.train.n_users)[: ours.users]), 0.01).backward()
            optimizer.step()

    return run


def product_speed(size: int = 4096, rounds: int = 5) -> float:
    """Returns the floating-point operations per second of a square float32 product, at best."""
    a, product = jax.numpy.ones((size, size)), jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        product(a).block_until_ready()
        spent.append(time.perf_counter() - began)
    return 2 * size**3 / min(spent)


def a_step(train: jr.Interactions, steps: int, rounds: int) -> dict[str, float]:
    """Returns the seconds of a step (median of rounds), and those of its large products at best."""
    ours = Ours(train, USERS)
    ours.run(steps)
    step = float(np.median([ours.run(steps) / steps for _ in range(rounds)]))
    flops = FLOOR * 2 * USERS * SETTING["n_interests"] * SETTING["dim"] * train.n_items
    floor = flops / product_speed()
    return {"n_items": train.n_items, "step_s": step, "gflop": flops / 1e9, "floor_s": floor, "share": floor / step}


def main() -> None:
    """Measures and writes the record."""
    parser = _record.parser("speed.valid", __doc__, "128 users a step, 3 rounds of 1 step")
    parser.add_argument("--peak-of", choices=["gowalla", "million"], help="make two steps; print the peak memory")
    options = parser.parse_args()
    if options.peak_of:
        ours = Ours(million() if options.peak_of == "million" else prepare("gowalla-valid").train, USERS)
        ours.run(1), ours.run(1)
        _measure.print_peak_memory()
        return
    train = prepare("citeulike-a-valid").train
    users, steps, rounds = (128, 1, 3) if options.quick else (USERS, 2, 5)
    ours = Ours(train, users)
    runs = _measure.there(jaxrec=partial(ours.run, steps), torch=theirs(ours, steps))
    case, _ = _measure.compared(runs, rounds=rounds, units=steps / -(-train.n_users // users))
    facts = {}
    if not options.quick:
        others = {"yelp2018": datasets.load("yelp2018").train, "gowalla-valid": prepare("gowalla-valid").train}
        catalogues = {"citeulike-a-valid": train} | others
        facts["catalogues"] = {name: a_step(each, steps, rounds) for name, each in catalogues.items()}
        peak = partial(_measure.peak_memory, "benchmarks.speed.valid")
        facts["peaks_mb"] = {name: peak(name) for name in ("gowalla", "million")}
    cases = {"citeulike-a, an epoch": case}
    _record.write("speed.valid", cases, quick=options.quick, data=train.fingerprint(), users_a_step=users, **facts)


if __name__ == "__main__":
    main()
