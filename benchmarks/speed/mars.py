"""An epoch of MARS on Ciao by its released rule: jaxrec, which moves the rows looked up, against dense PyTorch.

4 facets of 128 dimensions, batches of 1,000 triples, of which the released code's epoch has 676. All alternate in one
run and make the same steps: the gradient written by hand, plain SGD, rows back on the sphere. The peer is written here
from the rule's description, with dense gradients, and renormalises all rows of both tables in each forward pass. "Two
passes" goes forward for positives and for negatives, each with the user, as the description of the released code has
it; "one pass" does both at once, the same step at less cost. jaxrec's time includes drawing the triples; PyTorch gets
its triples drawn beforehand, as the released code does. The aim was a ratio of 0.1.

Medians of shares of an epoch, alternately, given for 676 batches; below 1 jaxrec is faster. All cores for each,
PyTorch's waiting threads set to sleep. First calls include compilation, and peak memory is of a separate process,
imports and data included.
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
CALL = 104  # batches of a call
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
    """The model, its optimiser and its state."""
    model = jr.models.MARS(train.n_users, train.n_items, dim=DIM, **PRESET["model"])
    tx = jr.optim.rowwise.lazy(mars.optimizer(**PRESET["optimizer"]))
    return model, tx, jr.train.init(jax.random.key(0), model, tx)


def ours(train: jr.Interactions, batches: int) -> Callable[[], float]:
    """A function that trains some batches, and gives their mean loss."""
    model, tx, state = start(train)
    margin = mars.adaptive_margin(train, **PRESET["margin"])
    draws = jr.papers.mars.samplers(train, **PRESET["power"])
    objective = partial(mars.objective, model=model, margin=margin, **draws, **PRESET["objective"])
    counted = train.select(np.arange(train.n_pairs) < batches // 2 * BATCH)  # says how many; all of train is drawn

    def run() -> float:
        nonlocal state
        epochs = int(state.epoch) + 2
        state, log = jr.train.fit(state, objective, tx, counted, epochs=epochs, batch_size=BATCH, progress=False)
        return float(np.mean(log.column("loss")[1]))

    return run


def theirs(train: jr.Interactions, batches: int, passes: int) -> Callable[[], float] | None:
    """The same in PyTorch, or None if it is not installed."""
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
    """Triples of an epoch, int32 [EPOCH, BATCH] each, by the same draws."""
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
