"""A step of MF-BPR on Gowalla with three Adams, for 1 to 64 negatives.

`optax.adam` and `optim.rowwise.adam` are the same algorithm, on every row.
`optim.rowwise.lazy_adam` only moves the rows that a step looks up, which is another algorithm.
There are 64 dimensions and batches of 1,024. All run alternately in one process. Times are medians
without compilation.
"""

from __future__ import annotations

import jax
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record
from benchmarks.speed import _measure, train
from jaxrec.data import datasets

ADAMS = {"optax": optax.adam, "rowwise": jr.optim.rowwise.adam, "lazy": jr.optim.rowwise.lazy_adam}
TITLE = "Speed of row-wise optimisers"
COLUMNS = {
    f"{title}, ms per step": f"{{{side}_wall_ms:.1f}}"
    for title, side in (("`optax.adam`", "optax"), ("`rowwise.adam`", "rowwise"), ("`rowwise.lazy_adam`", "lazy"))
}


def main() -> None:
    """Measures and writes the record."""
    quick = _record.parser("speed.rowwise", __doc__, "20 steps, 3 rounds, 1 and 16 negatives").parse_args().quick
    steps, whole, cases = 20 if quick else 200, datasets.load("gowalla").train, {}
    kept = np.zeros(whole.n_pairs, bool)
    kept[np.random.default_rng(0).choice(whole.n_pairs, steps * train.BATCH, replace=False)] = True
    pairs = whole.select(kept)
    for n in (1, 16) if quick else (1, 4, 16, 64):
        runs = {name: train.ours(pairs, n, jr.models.dot, jr.losses.bpr, adam) for name, adam in ADAMS.items()}
        case, _ = _measure.compared(runs, rounds=3 if quick else 5, units=steps)
        cases[f"MF-BPR, {n} negatives"] = case | {"ratio": case["lazy_wall_s"] / case["rowwise_wall_s"]}
        jax.clear_caches()
    facts = {"data": whole.fingerprint(), "dim": train.DIM, "batch_size": train.BATCH, "steps": steps}
    _record.write("speed.rowwise", cases, quick=quick, **facts)


if __name__ == "__main__":
    main()
