"""An epoch of matrix factorisation on Gowalla: jaxrec against PyTorch.

Both run alternately in one process. The cases are MF-BPR with 1 negative and MF-MML (cosines) with
100, with 64 dimensions, batches of 1,024, and uniform negatives drawn during the epoch. Both sides
use dense Adam: PyTorch's, and `optim.rowwise.adam`, which is the same algorithm. The case "lazy" is
MF-BPR with `optim.rowwise.lazy_adam`, which only moves the rows that a step looks up. This is
another algorithm, but the peer is the same dense Adam of PyTorch. Both sides use all cores, and
PyTorch's waiting threads are set to sleep. Times are medians, and a ratio below 1 means that jaxrec
is faster. First calls include compilation. MF-BPR runs the whole epoch, 792 steps; MF-MML runs 200
of them (random pairs, whole tables).
"""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

import jaxrec as jr
from benchmarks import _record
from benchmarks.speed import _measure
from jaxrec.data import datasets

DIM, BATCH, RATE = 64, 1024, 1e-3
OPTIONS = {"batch_size": BATCH, "progress": False}
MML = jr.papers.mml.GOWALLA
CASES = {
    "MF-BPR, 1 negative": (792, 1, jr.models.dot, jr.losses.bpr, jr.optim.rowwise.adam),
    "MF-BPR, 1 negative, lazy": (792, 1, jr.models.dot, jr.losses.bpr, jr.optim.rowwise.lazy_adam),
    "MF-MML, 100 negatives": (200, 100, jr.models.cosine, partial(jr.losses.mml, **MML), jr.optim.rowwise.adam),
}
TITLE = "Speed of training"
COLUMNS = {
    "steps": "{steps}",
    "jaxrec: wall (CPU)": "{jaxrec_wall_s:.2f} s ({jaxrec_cpu_s:.2f} s)",
    "PyTorch: wall (CPU)": "{torch_wall_s:.2f} s ({torch_cpu_s:.2f} s)",
    "ratio": "{ratio:.2f}",
    "jaxrec's first call": "{jaxrec_first_call_s:.2f} s",
}


def ours(train: jr.Interactions, n: int, score, loss, adam):
    """Returns a function that trains one more epoch, including all overhead of `fit`."""
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM, score=score)
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=n)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    tx = adam(RATE)
    state = jr.train.init(jax.random.key(0), model, tx)

    def run():
        nonlocal state
        state, log = jr.train.fit(state, objective, tx, train, epochs=int(state.epoch) + 1, **OPTIONS)
        return log.records[-1]["loss"]

    return run


def theirs(train: jr.Interactions, n: int):
    """Returns the same in PyTorch, or None if it is not installed."""
    if (torch := _measure.torch()) is None:
        return None
    functional = torch.nn.functional
    torch.manual_seed(0)
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
        penalty = sum(weight * functional.relu(neg - margin) for margin, weight in zip(MML["margins"], MML["weights"]))
        return (functional.relu(1 - pos) + MML["negative_weight"] * penalty.mean(-1)).mean()

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
    quick = _record.parser("speed.train", __doc__, "20 steps, 3 rounds").parse_args().quick
    whole = datasets.load("gowalla").train
    order, cases = np.random.default_rng(0).permutation(whole.n_pairs), {}
    for name, (steps, n, score, loss, adam) in CASES.items():
        steps = 20 if quick else steps
        train = whole.select(order < steps * BATCH)
        runs = _measure.there(jaxrec=ours(train, n, score, loss, adam), torch=theirs(train, n))
        case, losses = _measure.compared(runs, rounds=3 if quick else 5)
        cases[name] = case | {"steps": steps} | {f"{side}_first_loss": value for side, value in losses.items()}
    _record.write("speed.train", cases, quick=quick, data=whole.fingerprint(), dim=DIM, batch_size=BATCH)


if __name__ == "__main__":
    main()
