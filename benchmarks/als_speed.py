"""Seconds a sweep of RG2, of iALS and of implicit's ALS, on Gowalla and ml-1m with 64 and 256 dimensions.

All fit in turn in one run, on all cores; iALS takes them as a mesh of one device a core. A sweep is both sides once,
and its time the median over the sweeps of all fits but each fit's first. iALS is `als.ials.wrmf` at implicit's own
settings, so that the two solve one problem, and Recall@20 after the same sweeps stands beside the time; RG2 solves
another. The first sweep includes compilation. Peak memory is of a process of its own, imports and data included.
Besides: a made-up set of 10 million pairs, and what a sweep of RG2 costs against pairs, dimensions and users.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import scipy.sparse

import jaxrec as jr
from benchmarks import _record
from jaxrec.data import datasets, synthetic

DATA, DIMS, SWEEPS = ("gowalla", "ml-1m"), (64, 256), 4
ALPHA = {"gowalla": 60.0, "ml-1m": 10.0}  # implicit's confidence of a positive, 1 for all others
REGULARIZATION = 10.0
LARGE = {"n_users": 1_000_000, "n_items": 100_000, "n_pairs": 10_000_000}
RG2, CG, EXACT = "RG2", "iALS, CG", "iALS, exact"
PEERS = {RG2: "implicit, CG", CG: "implicit, CG", EXACT: "implicit, exact"}

Timed = Callable[[], tuple[list[tuple[float, float]], np.ndarray, np.ndarray]]


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = _record.parser("als_speed", __doc__)
    parser.add_argument("--rounds", type=int, default=2, help="fits of each, of 4 sweeps, 3 of which count (default 2)")
    parser.add_argument("--quick", action="store_true", help="the same code: ml-1m, 32 dimensions, less data")
    parser.add_argument("--peak-of", nargs=3, metavar=("WHAT", "DATA", "DIM"), help="fit once; print the peak memory")
    return parser.parse_args()


def load(data: str) -> datasets.Dataset:
    """The set's own split; ml-1m's train part is four fifths of the pairs."""
    found = datasets.load(data)
    if found.train is not None:
        return found
    from jaxrec.data import splits

    return splits.ratio(found.interactions, (0.8, 0.0, 0.2), order=partial(splits.random_order, key=jax.random.key(0)))


def ours(what: str, train: jr.Interactions, data: str, dim: int, sweeps: int = SWEEPS) -> Timed:
    """A function that fits and gives (wall, CPU) seconds of each sweep, and the factors."""
    options = {"dim": dim, "sweeps": sweeps, "key": jax.random.key(0), "tolerance": None, "progress": False}
    solvers = {CG: partial(jr.solvers.ials.conjugate_gradient, steps=3), EXACT: jr.solvers.ials.cholesky}
    if what == RG2:
        fit = partial(jr.solvers.rg2.fit, train, regularization=0.5, **options)
    else:
        settings = {"regularization": REGULARIZATION, "alpha": ALPHA[data] - 1, "solver": solvers[what]}
        settings["mesh"] = jax.sharding.Mesh(np.array(jax.devices()), ("cores",))
        fit = partial(jr.solvers.wrmf.fit, train, **settings, **options)

    def run():
        spent, began = [], time.process_time()

        def between(variables):  # the tables are read off before the next sweep, as if to be validated
            nonlocal began
            spent.append(time.process_time() - began)
            jax.block_until_ready(variables)
            began = time.process_time()
            return {}

        variables, history = fit(validate=between)
        tables = (np.asarray(variables["params"][side]) for side in ("user", "item"))
        return list(zip(history.column("seconds")[1], spent)), *tables

    return run


def theirs(what: str, train: jr.Interactions, data: str, dim: int, sweeps: int = SWEEPS) -> Timed | None:
    """The same by implicit, or None where it is not installed."""
    try:
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits
    except ImportError:
        return None
    threadpool_limits(1, "blas")  # as implicit asks for: its own threads share the work
    matrix = scipy.sparse.csr_matrix(train.to_scipy())
    options = {"factors": dim, "regularization": REGULARIZATION, "alpha": ALPHA[data], "iterations": sweeps}

    def run():
        model = AlternatingLeastSquares(
            **options, use_cg=what.endswith("CG"), num_threads=_record.cores(), random_state=0
        )
        ticks = [(time.perf_counter(), time.process_time())]
        callback = lambda *_: ticks.append((time.perf_counter(), time.process_time()))  # noqa: E731
        model.fit(matrix, show_progress=False, callback=callback)
        return [tuple(pair) for pair in np.diff(ticks, axis=0)], model.user_factors, model.item_factors

    return run


def compared(data: str, dim: int, rounds: int, quick: bool) -> dict[str, dict[str, float]]:
    """One case for each solver of ours against its peer."""
    split = load(data)
    sides = {name: ours(name, split.train, data, dim) for name in PEERS}
    sides |= {name: theirs(name, split.train, data, dim) for name in dict.fromkeys(PEERS.values())}
    if sides["implicit, CG"] is None:
        print('implicit is not installed (pip install "jaxrec[bench]"): skipped, no ratio')
        sides = {name: side for name, side in sides.items() if side is not None}
    times, first, recall = {name: [] for name in sides}, {}, {}
    for _ in range(rounds):
        for name, fit in sides.items():
            sweeps, user, item = fit()
            first.setdefault(name, sweeps[0][0])
            times[name] += sweeps[1:]
            if name not in recall:
                recall[name] = judged(split, user, item)
    figures = {}
    for name, pairs in times.items():
        wall, cpu = (float(np.median(side)) for side in zip(*pairs))
        peak = float("nan") if quick else _record.peak_memory("benchmarks.als_speed", "--peak-of", name, data, str(dim))
        figures[name] = {"wall_s": wall, "cpu_s": cpu, "first_s": first[name], "recall@20": recall[name]}
        figures[name] |= {} if quick else {"peak_mb": peak}
        print(f"{data}, {dim}: {name:<16}" + ", ".join(f"{key} {value:.4g}" for key, value in figures[name].items()))
    cases = {}
    for name, peer in PEERS.items():
        case = {f"jaxrec_{key}": value for key, value in figures[name].items()}
        if peer in figures:
            case |= {f"implicit_{key}": value for key, value in figures[peer].items()}
            case["ratio"] = figures[name]["wall_s"] / figures[peer]["wall_s"]
            case["cpu_ratio"] = figures[name]["cpu_s"] / figures[peer]["cpu_s"]
        cases[f"{data}, {dim}: {name}"] = case
    return cases


def judged(split: datasets.Dataset, user: np.ndarray, item: np.ndarray) -> float:
    """Recall@20 on the test part."""
    model = jr.models.MF(*(len(table) for table in (user, item)), dim=user.shape[1])
    variables = {"params": {"user": user, "item": item}}
    return jr.evaluate.full_ranking(model, variables, split.train, split.test, ks=(20,)).means["recall@20"]


def large(quick: bool) -> dict[str, float]:
    """A sweep of RG2 on the made-up set, in this process."""
    sizes = {name: size // 100 for name, size in LARGE.items()} if quick else LARGE
    train = synthetic.power_law(jax.random.key(0), **sizes)
    seconds = sweep_seconds(train, 64, sweeps=4)
    return {"sweep_s": float(np.median(seconds[1:])), "first_sweep_s": seconds[0], **sizes}


def sweep_seconds(train: jr.Interactions, dim: int, sweeps: int) -> list[float]:
    """Wall seconds of each sweep of RG2."""
    options = {"key": jax.random.key(0), "tolerance": None, "progress": False}
    _, history = jr.solvers.rg2.fit(train, dim=dim, regularization=0.5, sweeps=sweeps, **options)
    return history.column("seconds")[1]


def scaling(quick: bool) -> dict[str, list[list[float]]]:
    """Seconds a sweep of RG2 against one size while the others stay."""
    base = (
        {"n_users": 20_000, "n_items": 10_000, "n_pairs": 1_000_000}
        if not quick
        else {"n_users": 2_000, "n_items": 1_000, "n_pairs": 50_000}
    )
    steps = (1, 4) if quick else (1, 2, 4, 8)
    made = lambda **sizes: synthetic.power_law(jax.random.key(0), **(base | sizes))  # noqa: E731
    train = made()
    points = {"pairs": [], "dimensions": [], "users and items": []}
    for factor in steps:
        data = made(n_pairs=base["n_pairs"] * factor)
        points["pairs"].append([data.n_pairs, data, 64])
        points["dimensions"].append([16 * factor * 2, train, 16 * factor * 2])
        data = made(n_users=base["n_users"] * factor, n_items=base["n_items"] * factor)
        points["users and items"].append([data.n_users + data.n_items, data, 64])
    return {
        name: [[float(size), float(np.median(sweep_seconds(data, dim, 6)[1:]))] for size, data, dim in rows]
        for name, rows in points.items()
    }


def picture(measured: dict[str, list[list[float]]]) -> None:
    """Seconds a sweep against size, both logarithmic: results/als_speed.png."""
    import matplotlib.pyplot as plt

    figure, panes = plt.subplots(1, len(measured), figsize=(11, 3.6), layout="constrained", sharey=True)
    for pane, (name, points) in zip(panes, measured.items()):
        size, seconds = np.array(points).T
        pane.loglog(size, seconds, marker="o", label="measured")
        pane.loglog(size, seconds[0] * size / size[0], linestyle=":", color="grey", label="linear")
        pane.set(xlabel=name)
    panes[0].set(ylabel="seconds a sweep of RG2")
    panes[0].legend()
    figure.savefig(_record.RESULTS / "als_speed.png", dpi=110)


def main() -> None:
    """Measures, draws and writes the record."""
    options = arguments()
    jax.config.update("jax_num_cpu_devices", _record.cores())
    if options.peak_of:
        what, data, dim = options.peak_of
        if what == "large":
            print(large(quick=False))
        else:
            side = theirs if what.startswith("implicit") else ours
            side(what, load(data).train, data, int(dim), sweeps=1)()
        _record.print_peak_memory()
        return
    cases, rounds = {}, options.rounds
    for data in ("ml-1m",) if options.quick else DATA:
        for dim in (32,) if options.quick else DIMS:
            cases |= compared(data, dim, rounds, options.quick)
    facts = {"data": {data: load(data).train.fingerprint() for data in DATA}, "sweeps": SWEEPS}
    facts |= {"alpha": ALPHA, "regularization": REGULARIZATION, "large": large(options.quick)}
    facts["scaling"] = scaling(options.quick)
    if not options.quick:
        facts["large"]["peak_mb"] = _record.peak_memory("benchmarks.als_speed", "--peak-of", "large", "-", "64")
        picture(facts["scaling"])
    _record.write("als_speed", cases, quick=options.quick, **facts)


if __name__ == "__main__":
    main()
