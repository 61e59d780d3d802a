"""MF-BPR on 10⁷ and 10⁸ pairs of a million users and 100,000 items, mapped from disk.

`synthetic.power_law` builds the sets in a folder. Training has 32 dimensions, batches of 65,536, one
uniform negative and `optim.rowwise.lazy_adam`. With `train.singles` all pairs are on the device.
With `train.streamed` the host reads blocks of 2²² pairs from the files, each while the block before
trains. Times of an epoch are medians of three epochs of 10⁷ pairs, and the time of one of 10⁸ pairs,
after a first epoch, which compiles. Then `top_k` ranks all items for 1,000 users without their
training items. A set is built in one process, and another trains on it and ranks. Peak memory is
that of the process, with imports and the pages of the files that are in memory. Wall times contain
waiting for other work on the machine, CPU times do not. `--pairs` measures one set again.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxrec as jr
from benchmarks import _record
from benchmarks.speed._peak import peak_mb
from jaxrec.data import synthetic

RATE, USERS, K = 0.01, 1000, 20
TITLE = "Training from disk"
COLUMNS = {
    "an epoch: wall (CPU)": "{epoch_wall_s:.0f} s ({epoch_cpu_s:.0f} s)",
    "pairs per second": "{pairs_per_second:,.0f}",
    "peak memory": "{peak_mb:,.0f} MB",
    "top-20 of 1,000 users": "{ranking_wall_s:.1f} s",
    "building the set: wall (CPU), peak memory": "{build_wall_s:.0f} s ({build_cpu_s:.0f} s), {build_peak_mb:,.0f} MB",
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the run: pairs of the two sets, users and items, and the settings of training."""

    pairs: tuple[int, int] = (10**7, 10**8)
    n_users: int = 10**6
    n_items: int = 10**5
    dim: int = 32
    batch_size: int = 1 << 16
    block: int = 1 << 22


QUICK = Sizes((10**5, 10**6), n_users=20_000, n_items=5_000, batch_size=1 << 13, block=1 << 16)


def build(folder: str, n_pairs: int, sizes: Sizes) -> dict[str, Any]:
    """Builds a set in a folder; returns seconds, peak memory and fingerprint."""
    began = np.array([time.perf_counter(), time.process_time()])
    how = {"n_users": sizes.n_users, "n_items": sizes.n_items, "n_pairs": n_pairs}
    built = synthetic.power_law(jax.random.key(0), **how, folder=folder)
    wall, cpu = (time.perf_counter(), time.process_time()) - began
    return {"build_wall_s": wall, "build_cpu_s": cpu, "build_peak_mb": peak_mb(), "data": built.fingerprint()}


def train(folder: str, examples: str, epochs: int, sizes: Sizes) -> dict[str, Any]:
    """Trains `epochs` epochs after a first one, and ranks for some users; returns times, losses and peak memory."""
    pairs = jr.Interactions.open(folder)
    model = jr.models.MF(pairs.n_users, pairs.n_items, dim=sizes.dim)
    sample = partial(jr.sampling.uniform, n_items=pairs.n_items)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    tx = jr.optim.rowwise.lazy_adam(RATE)
    state = jr.train.init(jax.random.key(0), model, tx)
    how = {"singles": jr.train.singles, "streamed": partial(jr.train.streamed, block=sizes.block)}[examples]
    clocks = []
    tell = lambda state, record: clocks.append((time.perf_counter(), time.process_time()))  # noqa: E731
    options = {"batch_size": sizes.batch_size, "examples": how, "callbacks": [tell], "progress": False}
    state, log = jr.train.fit(state, objective, tx, pairs, epochs=epochs + 1, **options)
    wall, cpu = np.median(np.diff(clocks, axis=0), axis=0).tolist()
    users = np.random.default_rng(0).choice(pairs.n_users, USERS, replace=False)
    rank = partial(jr.evaluate.top_k, model, state.variables, users, k=K, seen=pairs)
    rank()  # compiles
    began = time.perf_counter()
    rank()
    return {
        "epoch_wall_s": wall,
        "epoch_cpu_s": cpu,
        "pairs_per_second": pairs.n_pairs / wall,
        "losses": log.column("loss")[1],
        "compile_s": log.compile_seconds,
        "setup_s": log.setup_seconds,
        "ranking_wall_s": time.perf_counter() - began,
        "peak_mb": peak_mb(),
    }


STAGES = {"build": build, "train": train}


def process(stage: str, *arguments: Any, sizes: Sizes) -> dict[str, Any]:
    """Runs a stage in a process of its own."""
    given = json.dumps([stage, *arguments, dataclasses.asdict(sizes)])
    command = [sys.executable, "-m", "benchmarks.speed.scale", "--stage", given]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(run.stdout.splitlines()[-1])
    print(f"{stage} {', '.join(map(str, arguments))}: {found}", flush=True)
    return found


def more(found: dict[str, Any]) -> str:
    """Returns the sentence that compares the two sizes."""
    small, large = (case for name, case in found["cases"].items() if name.endswith("streamed"))
    wall, cpu = (
        large[f"epoch_{clock}_s"] / small[f"epoch_{clock}_s"] * small["pairs"] / large["pairs"]
        for clock in ("wall", "cpu")
    )
    return (
        f"With `streamed`, a pair of the larger set takes {wall:.2f} times the time and {cpu:.2f} times the CPU time "
        "of a pair of the smaller set."
    )


def main() -> None:
    """Measures and writes the record."""
    parser = _record.parser("speed.scale", __doc__, "10⁵ and 10⁶ pairs of fewer users and items")
    parser.add_argument("--folder", help="where to build the sets, 1 GB for the time of the run; a temporary folder")
    parser.add_argument("--stage", help="run one stage and print its result, as the other processes do")
    parser.add_argument("--pairs", type=int, help="measure only the set of this size; keep the rest of the record")
    options = parser.parse_args()
    if options.stage:
        stage, *arguments, sizes = json.loads(options.stage)
        print(json.dumps(STAGES[stage](*arguments, Sizes(**sizes))))
        return
    sizes, cases, data = QUICK if options.quick else Sizes(), {}, {}
    if options.pairs is not None:
        kept = json.loads((_record.RESULTS / "speed_scale.json").read_text())
        cases, data = kept["cases"], kept["data"]
    for n_pairs, epochs in zip(sizes.pairs, (3, 1)):
        if options.pairs not in (None, n_pairs):
            continue
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = str(pathlib.Path(folder) / "pairs")
            built = process("build", path, n_pairs, sizes=sizes)
            data[f"{n_pairs:,} pairs"] = built.pop("data")
            for examples in ("singles", "streamed") if n_pairs == min(sizes.pairs) else ("streamed",):
                trained = process("train", path, examples, epochs, sizes=sizes)
                cases[f"{n_pairs:,} pairs, {examples}"] = {"pairs": n_pairs, **built, **trained}
    facts = dataclasses.asdict(sizes) | {"learning_rate": RATE, "users": USERS, "k": K}
    _record.write("speed.scale", cases, quick=options.quick, data=data, settings=facts)


if __name__ == "__main__":
    main()
