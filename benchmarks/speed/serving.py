"""What a warm server does for one request on Gowalla: jaxrec against implicit.

Both have the same random factors and run alternately in one process, on all cores, except that implicit
has one thread for requests of one user. A request is the top-20 of all
items for one user (or for 256), with seen items masked, or the fold-in of a user with 5, 50 or 500
items: the vector by an exact solution, for which jaxrec has `solvers.wrmf.fold_in` and implicit
`recalculate_user`. Both solve the same problem; jaxrec pads the items to a power of two, and
compiles once for each power of two. The number at the start of a row is that of dimensions.
Requests are of different users. Times of a request are medians over rounds; a round makes 50
requests of one user, or 5 of 256. A ratio below 1 means that jaxrec is faster. The first request
includes compilation; the other times do not. CPU is the time of all cores. Peak memory is that of a
separate process, with imports and data.

The last rows are whole processes that import jaxrec, and those that import jax, without which
jaxrec cannot run. A module of jaxrec is imported when it is first used; "all modules" uses each.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import scipy.sparse

import jaxrec as jr
from benchmarks import _record
from benchmarks.speed import _measure, cold
from jaxrec.data import datasets

K, DIMS, LENGTHS, MANY = 20, (64, 256), (5, 50, 500), 256
ALPHA, REGULARIZATION = 60.0, 10.0  # implicit's, as in `benchmarks.speed.als`
TITLE = "Speed of serving"
COLUMNS = {
    f"{title}: wall ms (CPU), peak memory": [
        template
        for side in sides
        for template in (
            f"{{{side}_wall_ms:.2f}} ({{{side}_cpu_ms:.2f}}), {{{side}_peak_mb:.0f}} MB",
            f"{{{side}_wall_ms:.2f}} ({{{side}_cpu_ms:.2f}})",
        )
    ]
    for title, sides in (("jaxrec", ("jaxrec",)), ("implicit; for the import jax", ("implicit", "peer")))
} | {"ratio": "{ratio:.2f}", "jaxrec's first request": "{jaxrec_first_call_ms:.0f} ms"}

Request = Callable[[np.ndarray], Any]


def more(found: Mapping[str, Any]) -> str:
    """Returns the text about the goals."""
    cases = found["cases"]
    alone, every = (
        f"{cases[name]['jaxrec_wall_s'] - cases[name]['peer_wall_s']:.2f} s"
        for name in ("import", "import, all modules")
    )
    top, folds = cases["64: top-20 of a user"], [case for name, case in cases.items() if "items" in name]
    slowest = max(case["jaxrec_wall_s"] for case in folds)
    return (
        f"The top-20 of a user at 64 dimensions takes {1000 * top['jaxrec_wall_s']:.1f} ms (the goal is 5 ms), and the "
        f"slowest fold-in of a user, at any number of dimensions, {1000 * slowest:.1f} ms (the goal is 20 ms). "
        f"Importing jaxrec takes {alone} beyond jax (the goal is 0.5 s), and all of its modules {every}."
    )


# ---------------------------------------------------------------------- requests


def histories(n_items: int, length: int, n: int) -> jr.Interactions:
    """Draws histories of n users, each with `length` random items."""
    rng = np.random.default_rng(0)
    items = np.stack([rng.choice(n_items, length, replace=False) for _ in range(n)])
    return jr.Interactions.from_pairs(np.repeat(np.arange(n), length), items.reshape(-1), n_items=n_items)


def ours(train: jr.Interactions, tables: Mapping[str, np.ndarray]) -> tuple[Request, Callable]:
    """Returns functions of users: one that computes lists, and one that computes vectors from histories."""
    model = jr.models.MF(train.n_users, train.n_items, dim=tables["item"].shape[1])
    variables = jax.device_put({"params": dict(tables)})

    def fold(known: jr.Interactions, users: np.ndarray) -> Any:
        settings = {"regularization": REGULARIZATION, "alpha": ALPHA - 1}
        return np.asarray(jr.solvers.wrmf.fold_in(variables, known.take(users), **settings))

    return lambda users: jr.evaluate.top_k(model, variables, users, k=K, seen=train)[1], fold


def theirs(train: jr.Interactions, tables: Mapping[str, np.ndarray], size: int) -> tuple[Request, Callable] | None:
    """Returns the same of implicit for requests of `size` users, or None if it is not installed."""
    made = _measure.implicit(factors=tables["item"].shape[1], alpha=ALPHA, regularization=REGULARIZATION)
    if made is None:
        return None
    model = made(num_threads=1) if size == 1 else made()
    model.user_factors, model.item_factors = tables["user"], tables["item"]
    seen, matrices = matrix(train), {}

    def fold(known: jr.Interactions, users: np.ndarray) -> Any:
        if id(known) not in matrices:  # the server has them
            matrices[id(known)] = matrix(known)
        return model.recalculate_user(users, matrices[id(known)][users])

    return lambda users: model.recommend(users, seen[users], N=K)[0], fold


def matrix(known: jr.Interactions) -> scipy.sparse.csr_matrix:
    """Returns the pairs as implicit takes them."""
    return scipy.sparse.csr_matrix(known.to_scipy(), dtype=np.float32)


def compared(requests: Mapping[str, Request], of: Sequence[np.ndarray], rounds: int) -> tuple[dict[str, float], dict]:
    """Times the first request, and then rounds of requests of the users in `of`, one after another."""
    first, found = {}, {}
    with _measure.compilations() as compiled:
        for side, request in requests.items():
            began = time.perf_counter()
            found[side] = request(of[0])
            first[f"{side}_first_call_s"] = time.perf_counter() - began
    runs = {side: partial(one_by_one, request, of) for side, request in requests.items()}
    case, _ = _measure.compared(runs, rounds=rounds, units=len(of))
    return case | first | {"compile_s": sum(compiled), "compilations": len(compiled)}, found


def one_by_one(request: Request, of: Sequence[np.ndarray]) -> None:
    """Makes requests."""
    for users in of:
        request(users)


def cases_of(dim: int, train: jr.Interactions, tables: Any, rounds: int, calls: int) -> dict[str, dict[str, Any]]:
    """Returns the cases with one number of dimensions."""
    mine = ours(train, tables)
    sides = {size: _measure.there(jaxrec=mine, implicit=theirs(train, tables, size)) for size in (1, MANY)}
    rng = np.random.default_rng(1)
    cases: dict[str, dict[str, Any]] = {}
    for size, title, n in ((1, "a user", calls), (MANY, f"{MANY} users", max(calls // 10, 1))):
        of = [rng.integers(0, train.n_users, size) for _ in range(n)]
        print(f"{dim}: top-{K} of {title}: ", end="")
        case, found = compared({side: lists for side, (lists, _) in sides[size].items()}, of, rounds)
        if "implicit" in found:
            case["lists_differ"] = int((found["jaxrec"] != found["implicit"]).any(axis=1).sum())
        cases[f"{dim}: top-{K} of {title}"] = case
    for size, length in (*((1, n) for n in LENGTHS), (MANY, 50)):
        known = histories(train.n_items, length, max(calls, MANY))
        of = [rng.permutation(known.n_users)[:size] for _ in range(calls if size == 1 else max(calls // 10, 1))]
        title = f"a user's {length} items" if size == 1 else f"{size} users with {length} each"
        print(f"{dim}: fold-in of {title}: ", end="")
        case, found = compared({side: partial(fold, known) for side, (_, fold) in sides[size].items()}, of, rounds)
        if "implicit" in found:
            far = np.abs(found["jaxrec"] - found["implicit"]).max() / np.abs(found["implicit"]).max()
            case["largest_relative_difference"] = float(far)
        cases[f"{dim}: fold-in of {title}"] = case
    return cases


def drawn(train: jr.Interactions, dim: int) -> dict[str, np.ndarray]:
    """Draws factors."""
    draw = np.random.default_rng(0).standard_normal
    return {"user": draw((train.n_users, dim), np.float32), "item": draw((train.n_items, dim), np.float32)}


def main() -> None:
    """Measures and writes the record."""
    parser = _record.parser("speed.serving", __doc__, "64 dimensions, 5 requests, 2 rounds")
    parser.add_argument("--peak-of", nargs=2, metavar=("SIDE", "DIM"), help="serve a user; print the peak memory")
    options = parser.parse_args()
    train = datasets.load("gowalla").train
    if options.peak_of:
        side, dim = options.peak_of
        made = {"jaxrec": ours, "implicit": partial(theirs, size=1)}[side]
        made(train, drawn(train, int(dim)))[0](np.array([7]))
        _measure.print_peak_memory()
        return
    quick, cases = options.quick, {}
    rounds, calls = (2, 5) if quick else (11, 50)
    for dim in DIMS[:1] if quick else DIMS:
        found = cases_of(dim, train, drawn(train, dim), rounds, calls)
        served = found[f"{dim}: top-{K} of a user"]
        for side in ("jaxrec", "implicit"):
            if f"{side}_wall_s" in served:
                served[f"{side}_peak_mb"] = _measure.peak_memory("benchmarks.speed.serving", side, str(dim))
        cases |= found
    for name in ("import", "import, all modules"):
        cases[name] = cold.compared(name, pathlib.Path(), {}, 1 if quick else 9, theirs={})
    facts = {"data": train.fingerprint(), "k": K, "requests": calls, "rounds": rounds}
    facts |= {"alpha": ALPHA, "regularization": REGULARIZATION}
    _record.write("speed.serving", cases, quick=quick, **facts)


if __name__ == "__main__":
    main()
