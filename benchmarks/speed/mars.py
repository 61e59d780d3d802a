"""An epoch of MARS on Ciao with its released rule: row-wise jaxrec against dense PyTorch.

There are 4 facets of 128 dimensions and batches of 1,000 triples; an epoch of the released code has
676 of them. All sides run alternately in one process and make the same steps: the hand-written
gradient, plain SGD, and rows retracted to the sphere. jaxrec only moves the rows that a step looks
up. The peer is part of this benchmark, and is written from the description of the rule. It has
dense gradients, and renormalises all rows of both tables in each forward pass. "two passes" has one
forward pass for positives and one for negatives, each with the user, like the released code; "one
pass" has one for both, which is the same step in less time. The time of jaxrec includes drawing the
triples. PyTorch gets triples that are drawn beforehand, as in the released code. The target was a
ratio of 0.1.

Times are medians over parts of an epoch, scaled to 676 batches. A ratio below 1 means that jaxrec
is faster. Each side uses all cores, and PyTorch's waiting threads are set to sleep. First calls
include compilation. Peak memory is that of a separate process, with imports and data.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxrec as jr
from benchmarks import _record
from benchmarks.speed import _measure
from jaxrec.data import datasets
from jaxrec.train import mars

DIM, BATCH, EPOCH = 128, 1000, 676
CALL = 104  # number of batches in a call
PRESET = jr.papers.mars.RELEASED
PEERS = {"one pass": 1, "two passes": 2}
TITLE = "Speed of MARS"
COLUMNS = {
    "jaxrec: wall (CPU), peak memory": "{jaxrec_wall_s:.1f} s ({jaxrec_cpu_s:.1f} s), {jaxrec_peak_mb:.0f} MB",
    "PyTorch": "{torch_wall_s:.1f} s ({torch_cpu_s:.1f} s), {torch_peak_mb:.0f} MB",
    "ratio": "{ratio:.2f}",
    "ratio of CPU": "{cpu_ratio:.2f}",
    "jaxrec's first call": "{jaxrec_first_call_s:.1f} s",
}


def start(train: jr.Interactions) -> tuple[jr.models.MARS, Any, jr.train.State]:
    """Returns the model, its optimiser and its state."""
    model = jr.models.MARS(train.n_users, train.n_items, dim=DIM, **PRESET["model"])
    tx = jr.optim.rowwise.lazy(mars.optimizer(**PRESET["optimizer"]))
    return model, tx, jr.train.init(jax.random.key(0), model, tx)


def ours(train: jr.Interactions, batches: int) -> Callable[[], float]:
    """Returns a function that trains some batches, and returns their mean loss."""
    model, tx, state = start(train)
    margin = mars.adaptive_margin(train, **PRESET["margin"])
    draws = jr.papers.mars.samplers(train, **PRESET["power"])
    objective = partial(mars.objective, model=model, margin=margin, **draws, **PRESET["objective"])
    # Its size sets the number of batches; the objective draws from all of train.
    counted = train.select(np.arange(train.n_pairs) < batches // 2 * BATCH)

    def run() -> float:
        nonlocal state
        epochs = int(state.epoch) + 2
        state, log = jr.train.fit(state, objective, tx, counted, epochs=epochs, batch_size=BATCH, progress=False)
        return float(np.mean(log.column("loss")[1]))

    return run


def theirs(train: jr.Interactions, batches: int, passes: int) -> Callable[[], float] | None:
    """Returns the same in PyTorch, or None if it is not installed."""
    if (torch := _measure.torch()) is None:
        return None
    from benchmarks.speed._dense_mars import DenseMARS

    rate = PRESET["optimizer"]["learning_rate"]
    peer = DenseMARS(start(train)[2].variables["params"], learning_rate=rate, passes=passes)
    weights = {name: PRESET["objective"][name] for name in ("pull_weight", "facet_weight")}
    triples = [torch.from_numpy(np.array(side)).long() for side in drawn(train)]
    margin = torch.from_numpy(mars.adaptive_margin(train, **PRESET["margin"]))
    done = 0

    def run() -> float:
        nonlocal done
        losses = []
        for number in range(done, done + batches):
            users, positives, negatives = (side[number % EPOCH] for side in triples)
            losses.append(peer.step(users, positives, negatives, margin[users], **weights))
        done += batches
        return float(np.mean(losses))

    return run


def drawn(train: jr.Interactions) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws the triples of an epoch, int32 [EPOCH, BATCH] each, with the same samplers."""
    draws = jr.papers.mars.samplers(train, **PRESET["power"])
    first, second = jax.random.split(jax.random.key(1))
    users, items = draws["positives"](first, (EPOCH, BATCH))
    return users, items, draws["sample"](second, users)[..., 0]


def main() -> None:
    """Measures and writes the record."""
    parser = _record.parser("speed.mars", __doc__, f"runs of {CALL // 4} batches, 3 rounds")
    parser.add_argument("--peak-of", choices=("jaxrec", *PEERS), help="run a side once; print the peak memory")
    options = parser.parse_args()
    train = datasets.load("ciao", minimum=0).train
    batches = CALL // 4 if options.quick else CALL
    sides = {"jaxrec": partial(ours, train, batches)}
    sides |= {name: partial(theirs, train, batches, passes) for name, passes in PEERS.items()}
    if options.peak_of:
        sides[options.peak_of]()()
        _measure.print_peak_memory()
        return
    cases = {}
    for name in PEERS:
        runs = _measure.there(jaxrec=sides["jaxrec"](), torch=sides[name]())
        case, losses = _measure.compared(runs, rounds=3 if options.quick else 5, units=batches / EPOCH)
        case |= {f"{side}_first_loss": loss for side, loss in losses.items()}
        for side, what in zip(runs, ("jaxrec", name)) if not options.quick else ():
            case[f"{side}_peak_mb"] = _measure.peak_memory("benchmarks.speed.mars", what)
        cases[f"against PyTorch, {name}"] = case
    facts = {"data": train.fingerprint(), "dim": DIM, "facets": PRESET["model"]["n_facets"], "batch_size": BATCH}
    _record.write("speed.mars", cases, quick=options.quick, **facts, batches=EPOCH, batches_of_a_run=batches)


if __name__ == "__main__":
    main()
