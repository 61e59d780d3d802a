"""Time of a sweep of RG2, iALS and implicit's ALS, on Gowalla and ml-1m with 64 and 256 dimensions.

All run alternately in one process, on all cores. A sweep solves both sides once. Its time is the
median over the sweeps of all fits, without the first one of each fit, which includes compilation. A
ratio below 1 means that jaxrec is faster. iALS is `solvers.wrmf` with implicit's settings, so that
both solve the same problem. RG2 solves another problem, for which implicit has no solver. Recall@20
is measured after the same 4 sweeps, without tuning, and each library starts from its own initial
factors. Peak memory is that of a separate process, with imports and data. Further results are for a
made-up data set of 10 million pairs, and the time of a sweep of RG2 against the numbers of pairs,
dimensions and users.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import scipy.sparse

import jaxrec as jr
from benchmarks import _record
from benchmarks.speed import _measure
from benchmarks.studies._plots import picture
from jaxrec.data import datasets, splits, synthetic

DATA, DIMS, SWEEPS = ("gowalla", "ml-1m"), (64, 256), 4
ALPHA = {"gowalla": 60.0, "ml-1m": 10.0}  # implicit's confidence of a positive; other pairs have 1
REGULARIZATION = 10.0
LARGE = {"n_users": 1_000_000, "n_items": 100_000, "n_pairs": 10_000_000}
RG2, CG, EXACT = "RG2", "iALS, CG", "iALS, exact"
PEERS = {RG2: "implicit, CG", CG: "implicit, CG", EXACT: "implicit, exact"}
TITLE = "Speed of ALS"
COLUMNS = {
    f"{title}: wall ms per sweep (CPU), peak memory, Recall@20": f"{{{side}_wall_ms:.0f}} ({{{side}_cpu_ms:.0f}}), "
    f"{{{side}_peak_mb:.0f}} MB, {{{side}_recall@20:.3f}}"
    for title, side in (("jaxrec", "jaxrec"), ("implicit", "implicit"))
} | {"ratio": "{ratio:.2f}", "first sweep": "{jaxrec_first_s:.1f} s"}


def more(found: Mapping[str, Any]) -> str:
    """Returns the text about the made-up data set."""
    large = found["large"]
    return (
        f"On a made-up data set of {large['n_pairs']:,} pairs ({large['n_users']:,} users, {large['n_items']:,} "
        f"items) with 64 dimensions, a sweep of RG2 takes {large['sweep_s']:.2f} s, and the peak memory is "
        f"{large['peak_mb'] / 1024:.1f} GB.\n\n"
        "![Seconds per sweep against size](benchmarks/results/speed_als.png)"
    )


Timed = Callable[[], tuple[list[tuple[float, float]], np.ndarray, np.ndarray]]


def load(data: str) -> datasets.Dataset | splits.Split:
    """Returns the split of a data set; the train part of ml-1m is four fifths of the pairs."""
    found = datasets.load(data)
    order = partial(splits.random_order, key=jax.random.key(0))
    return found if found.train is not None else splits.ratio(found.interactions, (0.8, 0.0, 0.2), order=order)


def ours(what: str, train: jr.Interactions, data: str, dim: int, sweeps: int = SWEEPS) -> Timed:
    """Returns a function that fits; it returns (wall, CPU) seconds per sweep, and the factors."""
    options = {"dim": dim, "sweeps": sweeps, "key": jax.random.key(0), "tolerance": None, "progress": False}
    solvers = {CG: partial(jr.solvers.ials.conjugate_gradient, steps=3), EXACT: jr.solvers.ials.cholesky}
    if what == RG2:
        fit = partial(jr.solvers.rg2.fit, train, regularization=0.5, **options)
    else:
        settings = {"regularization": REGULARIZATION, "alpha": ALPHA[data] - 1, "solver": solvers[what]}
        fit = partial(jr.solvers.wrmf.fit, train, **settings, **options)

    def run():
        spent, began = [], time.process_time()

        def between(variables):  # computes the tables before the next sweep, as for a validation
            nonlocal began
            spent.append(time.process_time() - began)
            jax.block_until_ready(variables)
            began = time.process_time()
            return {}

        _, variables, log = fit(validate=between)
        tables = (np.asarray(variables["params"][side]) for side in ("user", "item"))
        seconds = log.column("seconds")[1]
        seconds[0] += log.compile_seconds
        return list(zip(seconds, spent)), *tables

    return run


def theirs(what: str, train: jr.Interactions, data: str, dim: int, sweeps: int = SWEEPS) -> Timed | None:
    """Returns the same with implicit, or None if it is not installed."""
    options = {"factors": dim, "regularization": REGULARIZATION, "alpha": ALPHA[data], "iterations": sweeps}
    made = _measure.implicit(**options, use_cg=what.endswith("CG"), random_state=0)
    if made is None:
        return None
    matrix = scipy.sparse.csr_matrix(train.to_scipy())

    def run():
        model = made()
        ticks = [(time.perf_counter(), time.process_time())]
        callback = lambda *_: ticks.append((time.perf_counter(), time.process_time()))  # noqa: E731
        model.fit(matrix, show_progress=False, callback=callback)
        return [tuple(pair) for pair in np.diff(ticks, axis=0)], model.user_factors, model.item_factors

    return run


def compared(data: str, dim: int, rounds: int, quick: bool) -> dict[str, dict[str, float]]:
    """Returns one case for each solver of jaxrec and its peer."""
    split = load(data)
    sides = {name: ours(name, split.train, data, dim) for name in PEERS}
    sides = _measure.there(**sides, **{name: theirs(name, split.train, data, dim) for name in set(PEERS.values())})
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    values: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name, fit in sides.items():
            sweeps, user, item = fit()
            values.setdefault(name, {"first_s": sweeps[0][0], "recall@20": judged(split, user, item)})
            times[name] += sweeps[1:]
    for name, pairs in times.items():
        values[name] |= dict(zip(("wall_s", "cpu_s"), np.median(pairs, axis=0).tolist()))
        if not quick:
            values[name]["peak_mb"] = _measure.peak_memory("benchmarks.speed.als", name, data, str(dim))
        print(f"{data}, {dim}: {name:<16}" + ", ".join(f"{key} {value:.4g}" for key, value in values[name].items()))
    cases = {}
    for name, peer in PEERS.items():
        case = {f"jaxrec_{key}": value for key, value in values[name].items()}
        if peer in values:
            case |= {f"implicit_{key}": value for key, value in values[peer].items()}
            case["ratio"] = values[name]["wall_s"] / values[peer]["wall_s"]
            case["cpu_ratio"] = values[name]["cpu_s"] / values[peer]["cpu_s"]
        cases[f"{data}, {dim}: {name}"] = case
    return cases


def judged(split: Any, user: np.ndarray, item: np.ndarray) -> float:
    """Returns Recall@20 on the test part."""
    model = jr.models.MF(*(len(table) for table in (user, item)), dim=user.shape[1])
    variables = {"params": {"user": user, "item": item}}
    return jr.evaluate.full_ranking(model, variables, split.train, split.test, ks=(20,)).means["recall@20"]


def made(**sizes: int) -> jr.Interactions:
    """Returns a made-up data set."""
    return synthetic.power_law(jax.random.key(0), **sizes)


def large(quick: bool) -> dict[str, float]:
    """Times sweeps of RG2 on the made-up data set, in this process."""
    sizes = {name: size // 100 for name, size in LARGE.items()} if quick else LARGE
    seconds = sweep_seconds(made(**sizes), 64, sweeps=4)
    return {"sweep_s": float(np.median(seconds[1:])), "first_sweep_s": seconds[0], **sizes}


def sweep_seconds(train: jr.Interactions, dim: int, sweeps: int) -> list[float]:
    """Returns the wall seconds of each sweep of RG2."""
    options = {"key": jax.random.key(0), "tolerance": None, "progress": False}
    *_, log = jr.solvers.rg2.fit(train, dim=dim, regularization=0.5, sweeps=sweeps, **options)
    return log.column("seconds")[1]


def scaling(quick: bool) -> dict[str, list[list[float]]]:
    """Times a sweep of RG2 against each size, with the other sizes fixed."""
    sizes = (2_000, 1_000, 50_000) if quick else (20_000, 10_000, 1_000_000)
    base = dict(zip(("n_users", "n_items", "n_pairs"), sizes))
    points: dict[str, list] = {"pairs": [], "dimensions": [], "users and items": []}
    for factor in (1, 4) if quick else (1, 2, 4, 8):
        more_pairs = made(**base | {"n_pairs": base["n_pairs"] * factor})
        points["pairs"].append([more_pairs.n_pairs, more_pairs, 64])
        points["dimensions"].append([32 * factor, made(**base), 32 * factor])
        wide = made(**{name: size * (factor if name != "n_pairs" else 1) for name, size in base.items()})
        points["users and items"].append([wide.n_users + wide.n_items, wide, 64])
    return {
        name: [[float(size), float(np.median(sweep_seconds(data, dim, 6)[1:]))] for size, data, dim in rows]
        for name, rows in points.items()
    }


def panes(measured: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Returns panes of the seconds per sweep against size."""
    log, found = {"xscale": "log", "yscale": "log", "ylabel": "seconds per sweep of RG2"}, []
    for name, points in measured.items():
        size, seconds = np.array(points).T
        lines = {"measured": (size, seconds), "linear": (size, seconds[0] * size / size[0])}
        found.append({"xlabel": name, "lines": lines} | log)
    return [found]


def main() -> None:
    """Measures, draws and writes the record."""
    parser = _record.parser("speed.als", __doc__, "ml-1m, 32 dimensions, less data")
    parser.add_argument("--peak-of", nargs=3, metavar=("WHAT", "DATA", "DIM"), help="fit once; print the peak memory")
    options = parser.parse_args()
    if options.peak_of:
        what, data, dim = options.peak_of
        if what == "large":
            large(quick=False)
        else:
            side = theirs if what.startswith("implicit") else ours
            side(what, load(data).train, data, int(dim), sweeps=1)()
        _measure.print_peak_memory()
        return
    quick, cases = options.quick, {}
    for data in ("ml-1m",) if quick else DATA:
        for dim in (32,) if quick else DIMS:
            cases |= compared(data, dim, 2, quick)
    facts = {"data": {data: load(data).train.fingerprint() for data in DATA}, "sweeps": SWEEPS}
    facts |= {"alpha": ALPHA, "regularization": REGULARIZATION, "large": large(quick), "scaling": scaling(quick)}
    if not quick:
        facts["large"]["peak_mb"] = _measure.peak_memory("benchmarks.speed.als", "large", "-", "64")
        picture(_record.RESULTS / "speed_als.png", panes(facts["scaling"]))
    _record.write("speed.als", cases, quick=quick, **facts)


if __name__ == "__main__":
    main()
