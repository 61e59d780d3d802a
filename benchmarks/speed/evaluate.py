"""Top-20 lists of every Gowalla user, with seen items masked: jaxrec against implicit.

Both rank the same random factors with 64 dimensions on all cores, alternately in one process. Times
are medians, and a ratio below 1 means that jaxrec is faster. First calls include compilation. Peak
memory is that of a separate process, with imports and data. The lists must agree except for ties.
"""

from __future__ import annotations

import jax
import numpy as np
import scipy.sparse

import jaxrec as jr
from benchmarks import _record
from benchmarks.speed import _measure
from jaxrec.data import datasets

K, DIM = 20, 64
TITLE = "Speed of evaluation"
COLUMNS = {
    "jaxrec: wall (CPU), peak memory": "{jaxrec_wall_s:.2f} s ({jaxrec_cpu_s:.2f} s), {jaxrec_peak_mb:.0f} MB",
    "implicit": "{implicit_wall_s:.2f} s ({implicit_cpu_s:.2f} s), {implicit_peak_mb:.0f} MB",
    "ratio": "{ratio:.2f}",
    "jaxrec's first call": "{jaxrec_first_call_s:.2f} s",
}


def ours(train: jr.Interactions, users: np.ndarray, tables: dict[str, np.ndarray]):
    """Returns a function that computes (scores, items) with jaxrec."""
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM)
    variables = jax.device_put({"params": tables})
    return lambda: jr.evaluate.top_k(model, variables, users, k=K, seen=train)


def theirs(train: jr.Interactions, users: np.ndarray, tables: dict[str, np.ndarray]):
    """Returns the same with implicit, or None if it is not installed."""
    if (made := _measure.implicit(factors=DIM)) is None:
        return None
    model = made()
    model.user_factors, model.item_factors = tables["user"], tables["item"]
    seen = scipy.sparse.csr_matrix(train.to_scipy())[users]
    return lambda: model.recommend(users, seen, N=K, filter_already_liked_items=True)[::-1]


def main() -> None:
    """Measures, compares the lists and writes the record."""
    parser = _record.parser("speed.evaluate", __doc__, "2,000 users, 3 rounds")
    parser.add_argument("--peak-of", choices=("jaxrec", "implicit"), help="run one side once; print its peak memory")
    options = parser.parse_args()
    train = datasets.load("gowalla").train
    users = np.arange(2000 if options.quick else train.n_users, dtype=np.int32)
    draw = np.random.default_rng(0).standard_normal
    tables = {"user": draw((train.n_users, DIM), np.float32), "item": draw((train.n_items, DIM), np.float32)}
    if options.peak_of:
        {"jaxrec": ours, "implicit": theirs}[options.peak_of](train, users, tables)()
        _measure.print_peak_memory()
        return
    runs = _measure.there(jaxrec=ours(train, users, tables), implicit=theirs(train, users, tables))
    case, lists = _measure.compared(runs, rounds=3 if options.quick else 7)
    for name in runs:
        arguments = [name, *["--quick"] * options.quick]
        case[f"{name}_peak_mb"] = _measure.peak_memory("benchmarks.speed.evaluate", *arguments)
    if "implicit" in runs:
        case |= agreement(lists["jaxrec"], lists["implicit"])
    facts = {"data": train.fingerprint(), "users": len(users), "k": K, "dim": DIM}
    _record.write("speed.evaluate", {"gowalla top-20": case}, quick=options.quick, **facts)


def agreement(mine, others) -> dict[str, int]:
    """Counts the lists whose items differ.

    Also counts those of them whose scores differ by more than float32 rounding.
    """
    differ = (mine[1] != others[1]).any(axis=1)
    far = ~np.isclose(mine[0], others[0], rtol=1e-5, atol=1e-5).all(axis=1)
    return {"lists_in_other_order": int(differ.sum()), "lists_differ": int((differ & far).sum())}


if __name__ == "__main__":
    main()
