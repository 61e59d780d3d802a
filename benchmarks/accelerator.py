"""Speed of every system on one accelerator, next to what the device allows.

A case's ratio is its time divided by the least time that the device could need: the bytes that must
move divided by the speed of a copy, or the operations divided by the speed of a large product,
whichever takes longer. Both speeds are measured first, on the same device. Bytes count each row
that is looked up, each gradient of such a row, and the tables that the optimiser reads and writes,
once each; what stays in a cache may therefore be faster than this bound. Operations are those of
the formula: in float32 at full precision, of VALID at JAX's default precision for float32, and of
EASE in float64.

Times are medians of epochs, sweeps or calls after the first; the time of the first one, which
compiles, has its own column. Each part has a time limit. The record is written after each case, so
that an interrupted run keeps what it has measured. The report names data sets that are missing, and
skips them. The large set is made up: 20 million pairs of 138,493 users and 26,744 items, by a power
law.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record
from benchmarks.speed import lambda_opt as speed_lambda_opt
from benchmarks.speed import mars as speed_mars
from benchmarks.speed import valid as speed_valid
from benchmarks.studies._lambda_opt import Part
from benchmarks.studies._lambda_opt import prepare as prepare_lambda_opt
from benchmarks.studies._valid import prepare as prepare_valid
from jaxrec import study
from jaxrec.data import datasets, splits, synthetic
from jaxrec.optim import rowwise

LARGE = {"n_users": 138_493, "n_items": 26_744, "n_pairs": 20_000_000}
DIM, RATE = 64, 1e-3
STEPS = {1_048_576: 19, 65_536: 100, 8192: 300, 1024: 400}
OPTIMIZERS = {"optax.adam": optax.adam, "rowwise.adam": rowwise.adam, "rowwise.lazy_adam": rowwise.lazy_adam}
TITLE = "Speed on an accelerator"
COLUMNS = {
    "time": "{seconds_text}",
    "per second": "{rate_text}",
    "bytes": "{gbytes:.3g} GB",
    "operations": "{gflop:.3g} G",
    "ratio to the device's least time": "{ratio:.1f}",
    "first, with compilation": "{first_s:.1f} s",
}


def more(found: Mapping[str, Any]) -> str:
    """Returns the text about the device, its memory, and what was skipped."""
    speeds = found["ceilings"]
    parts = found["parts"]
    peak = max((part["peak_mb"] for part in parts.values() if part["peak_mb"] is not None), default=None)
    said = [
        f"Device: {found['device']}. A copy moves {speeds['bytes'] / 1e12:.2f} TB/s. Large products run at "
        f"{speeds['float32'] / 1e12:.0f} TFLOP/s in float32, {speeds['default'] / 1e12:.0f} at JAX's default "
        f"precision for float32, {speeds['float64'] / 1e12:.0f} in float64 and {speeds['bfloat16'] / 1e12:.0f} in "
        f"bfloat16."
    ]
    if peak is not None:
        said.append(f"The peak memory of the device was {peak / 1024:.1f} GB.")
    said += [f"Skipped of {name}: {part['skipped']}." for name, part in parts.items() if part["skipped"]]
    return " ".join(said)


class Setting(NamedTuple):
    """How much to run.

    Attributes:
        quick: whether to run less.
        rounds: number of timed epochs, sweeps or calls after the first.
    """

    quick: bool
    rounds: int


class Work(NamedTuple):
    """What must be done in a unit of time that a case reports.

    Attributes:
        units: number of units, such as pairs.
        unit: their name.
        moved: bytes.
        operations: floating-point operations.
        arithmetic: name of the ceiling of these operations; see `ceilings`.
    """

    units: float
    unit: str
    moved: float = 0.0
    operations: float = 0.0
    arithmetic: str = "float32"


Case = tuple[str, Work, float, Sequence[float]]
"""Name, work, seconds of the first round, and seconds of the others."""


# ---------------------------------------------------------------------- the device


def ceilings(quick: bool) -> dict[str, float]:
    """Measures the device: bytes per second of a copy, and operations per second of products."""
    floats, size = (1 << 22, 512) if quick else (1 << 28, 8192)
    x = jnp.arange(floats, dtype=jnp.float32)
    found = {"bytes": 2 * x.nbytes / best(jax.jit(lambda x: x + 1), x)}
    drawn = jax.random.normal(jax.random.key(0), (size, size))
    kinds = {"float32": ("float32", "highest"), "default": ("float32", "default"), "bfloat16": ("bfloat16", "default")}
    for name, (dtype, precision) in kinds.items():
        product = jax.jit(partial(jnp.matmul, precision=precision))
        found[name] = 2 * size**3 / best(product, drawn.astype(dtype), drawn.astype(dtype).T)
    with jax.enable_x64(True):
        drawn = drawn.astype(jnp.float64)
        found["float64"] = 2 * size**3 / best(jax.jit(jnp.matmul), drawn, drawn.T)
    return found


def best(function: Callable, *args: Any, rounds: int = 5) -> float:
    """Returns the least seconds of a call after the first."""
    return min(called(partial(function, *args), rounds)[1])


def called(function: Callable, rounds: int) -> tuple[float, list[float]]:
    """Returns the seconds of the first call and of the others."""
    spent = []
    for _ in range(1 + rounds):
        began = time.perf_counter()
        jax.block_until_ready(function())
        spent.append(time.perf_counter() - began)
    return spent[0], spent[1:]


def measured(case: Case, speeds: Mapping[str, float]) -> dict[str, Any]:
    """Returns the values of a case."""
    _, work, first, spent = case
    seconds = float(np.median(spent))
    least = max(work.moved / speeds["bytes"], work.operations / speeds[work.arithmetic])
    return {
        "seconds": seconds,
        "seconds_text": f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms",
        "spread_s": float(np.ptp(spent)),
        "first_s": first,
        "rate": work.units / seconds,
        "rate_text": f"{work.units / seconds:.3g} {work.unit}",
        "gbytes": work.moved / 1e9,
        "gflop": work.operations / 1e9,
        "arithmetic": work.arithmetic,
        "least_s": least,
        "ratio": seconds / least,
    }


# ---------------------------------------------------------------------- data


@functools.cache
def large(quick: bool) -> jr.Interactions:
    """Returns the made-up set."""
    sizes = {"n_users": 600, "n_items": 400, "n_pairs": 12_000} if quick else LARGE
    return synthetic.power_law(jax.random.key(0), **sizes)


def gowalla(quick: bool) -> Any:
    """Returns Gowalla, or a small set in its place."""
    return small() if quick else datasets.load("gowalla")


@functools.cache
def small() -> Any:
    """Returns a small split."""
    order = partial(splits.random_order, key=jax.random.key(0))
    return splits.ratio(large(quick=True), (0.8, 0.0, 0.2), order=order)


def some(train: jr.Interactions, n: int) -> jr.Interactions:
    """Returns n random pairs, or all if there are fewer."""
    return train.select(np.random.default_rng(0).permutation(train.n_pairs) < n)


# ---------------------------------------------------------------------- training


def fitted(state: Any, objective: Any, tx: Any, train: jr.Interactions, rounds: int, **options: Any) -> tuple:
    """Trains, and returns the seconds of the first epoch and of the others."""
    epochs = int(state.epoch) + 1 + rounds
    _, log = jr.train.fit(state, objective, tx, train, epochs=epochs, progress=False, **options)
    first, *others = log.column("seconds")[1]
    return first + log.compile_seconds, others


def factorisation(
    train: jr.Interactions, optimizer: str, batch: int, steps: int, rounds: int, n: int = 1, dtype: Any = jnp.float32,
    loss: Any = jr.losses.bpr, score: Any = jr.models.dot,
) -> Case:  # fmt: skip
    """Trains matrix factorisation with n negatives per pair; the work is that of an epoch."""
    chosen = some(train, batch * steps)
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM, score=score)
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=n)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    tx = OPTIMIZERS[optimizer](RATE)
    state = jr.train.init(jax.random.key(0), model, tx)
    variables = jax.tree.map(lambda x: x.astype(dtype), state.variables)
    state = state._replace(variables=variables, opt_state=tx.init(variables["params"]))
    first, others = fitted(state, objective, tx, chosen, rounds, batch_size=batch)
    steps = -(-chosen.n_pairs // batch)
    floats = 2 * (2 + n) * DIM * chosen.n_pairs + steps * optimised(optimizer, train, batch * (2 + n))
    name = f"batches of {batch:,}, {optimizer}" + ("" if dtype == jnp.float32 else f", {jnp.dtype(dtype).name}")
    return name, Work(chosen.n_pairs, "pairs", floats * jnp.dtype(dtype).itemsize), first, others


def optimised(optimizer: str, train: jr.Interactions, looked_up: int) -> float:
    """Returns the floats that a step of the optimiser must read and write.

    `optax.adam` reads and writes the table and both moments. `rowwise.adam` reads all of them and
    writes the table, and the moments of the rows that were looked up. `rowwise.lazy_adam` reads and
    writes these rows only.
    """
    table = (train.n_users + train.n_items) * DIM
    rows = min(looked_up * DIM, table)
    return {"optax.adam": 6 * table, "rowwise.adam": 4 * table + 2 * rows, "rowwise.lazy_adam": 6 * rows}[optimizer]


def bpr(how: Setting, steps: Mapping[int, int], optimizers: Sequence[str], dtype: Any) -> Iterator[Case]:
    """MF-BPR on the large set, with tables of this type.

    Args:
        how: how much to run.
        steps: for each batch size the number of steps of an epoch.
        optimizers: names of the optimisers.
        dtype: type of the tables.
    """
    train = large(how.quick)
    for batch, n_steps in ({256: 20} if how.quick else steps).items():
        for optimizer in optimizers[-1:] if how.quick else optimizers:
            yield factorisation(train, optimizer, batch, n_steps, how.rounds, dtype=dtype)


def negatives(how: Setting) -> Iterator[Case]:
    """MF-CCL and MF-MML with many negatives, on Gowalla."""
    train = gowalla(how.quick).train
    batch, steps, numbers = (128, 10, (10,)) if how.quick else (4096, 50, (100, 800))
    losses = {"CCL": jr.losses.ccl, "MML": partial(jr.losses.mml, **jr.papers.mml.GOWALLA)}
    for name, loss in list(losses.items())[-1 if how.quick else 0 :]:
        for n in numbers:
            options = {"n": n, "loss": loss, "score": jr.models.cosine}
            what, *rest = factorisation(train, "rowwise.adam", batch, steps, how.rounds, **options)
            yield f"{name}, {n} negatives, {what}", *rest


def lightgcn(how: Setting) -> Iterator[Case]:
    """LightGCN on Gowalla: an epoch, with 3 layers."""
    train = gowalla(how.quick).train
    batch, layers = (2048, 3)
    model = jr.models.LightGCN(train, dim=DIM, layers=layers)
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=1)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    tx = optax.adam(RATE)
    chosen = some(train, batch * (2 if how.quick else 50))
    state = jr.train.init(jax.random.key(0), model, tx)
    first, others = fitted(state, objective, tx, chosen, how.rounds, batch_size=batch)
    steps, rows = -(-chosen.n_pairs // batch), train.n_users + train.n_items
    # A layer has a product for either side, and as many in the backward pass.
    products = 2 * layers * (2 * train.n_pairs * (4 + 4 * DIM) + 4 * rows * DIM)
    scale = train.n_pairs / chosen.n_pairs
    moved = scale * steps * (products + 4 * optimised("optax.adam", train, 0))
    yield f"epoch, batches of {batch:,}", Work(train.n_pairs, "pairs", moved), first, [scale * s for s in others]


def valid(how: Setting) -> Iterator[Case]:
    """VALID: an epoch of citeulike-a, and a step with a million items."""
    sets = {"citeulike-a": lambda: prepare_valid("citeulike-a-valid").train, "a million items": speed_valid.million}
    users = speed_valid.USERS
    if how.quick:
        sets, users = {"small set": lambda: small().train}, 64
    for name, load in sets.items():
        train = load()
        ours = speed_valid.Ours(train, users)
        steps = -(-train.n_users // users) if train.n_items < 100_000 else 1
        began = time.perf_counter()
        ours.run(steps)
        first = time.perf_counter() - began
        spent = [ours.run(steps) for _ in range(how.rounds)]
        rows = steps * users * speed_valid.SETTING["n_interests"]
        flop = speed_valid.FLOOR * 2 * rows * speed_valid.SETTING["dim"] * train.n_items
        label = f"{name}: {'an epoch' if steps > 1 else 'a step'} of {users} users a step"
        yield label, Work(steps * users, "users", 0, flop, "default"), first, spent


def mars(how: Setting) -> Iterator[Case]:
    """MARS on Ciao: an epoch of the released rule, 4 facets of 128 dimensions."""
    train = small().train if how.quick else datasets.load("ciao", minimum=0).train
    batch, steps = speed_mars.BATCH, 10 if how.quick else speed_mars.EPOCH
    model, tx, state = speed_mars.start(train)
    preset = speed_mars.PRESET
    margin = jr.train.mars.adaptive_margin(train, **preset["margin"])
    draws = jr.papers.mars.samplers(train, **preset["power"])
    objective = partial(jr.train.mars.objective, model=model, margin=margin, **draws, **preset["objective"])
    counted = some(train, batch * steps)  # its size sets the number of steps; the objective draws from all
    first, others = fitted(state, objective, tx, counted, how.rounds, batch_size=batch)
    n = -(-counted.n_pairs // batch)
    floats = 3 * batch * preset["model"]["n_facets"] * speed_mars.DIM
    yield f"{n} steps of {batch:,} triples", Work(n * batch, "triples", 4 * 2 * floats * n), first, others


def lambda_opt(how: Setting) -> Iterator[Case]:
    """λOpt on ml-1m: steps of Θ and Λ alternately, MF-BPR, 128 dimensions."""
    batch, steps = speed_lambda_opt.BATCH, 5 if how.quick else 100
    if how.quick:
        train, valid = small().train, small().test
    else:
        split = prepare_lambda_opt("ml-1m", 0)
        train, valid = split.train, split.valid.learn
    part = Part(some(train, steps * batch), valid, epochs=1, batch_size=batch)
    ways = speed_lambda_opt.recipes(part)
    table = (train.n_users + train.n_items) * speed_lambda_opt.DIM
    for name, passes in (("fixed", 1), ("in_turn", 3)):
        recipe = ways[name]
        state = jr.train.init(jax.random.key(0), recipe.model, recipe.tx)
        first, others = fitted(state, recipe.objective, recipe.tx, part.train, how.rounds, batch_size=batch)
        n = -(-part.train.n_pairs // batch)
        label = "a step of Θ, fixed λ" if name == "fixed" else "a step of Θ and a step of Λ"
        yield label, Work(1, "steps", 4 * 6 * table * passes), first / n, [s / n for s in others]


# ---------------------------------------------------------------------- solvers


def als(how: Setting, load: Callable[[bool], jr.Interactions], dims: Sequence[int]) -> Iterator[Case]:
    """iALS and RG2: a sweep."""
    solvers = {"3 CG steps": jr.solvers.ials.conjugate_gradient, "exact": jr.solvers.ials.cholesky}
    train = load(how.quick)
    rows = train.n_users + train.n_items
    for dim in (16,) if how.quick else dims:
        options = {"key": jax.random.key(0), "dim": dim, "sweeps": 1 + how.rounds, "tolerance": None}
        for what, solver in solvers.items():
            settings = {"alpha": 10.0, "regularization": 10.0, "solver": solver}
            *_, log = jr.solvers.wrmf.fit(train, progress=False, **settings, **options)
            # A step multiplies by the pairs' vectors twice; there is a product before the first one.
            flop = 2 * train.n_pairs * dim * 4 * (3 + 1)
            if what == "exact":
                flop = 2 * train.n_pairs * dim * (dim + 1) + rows * dim**3 / 3
            moved = 2 * train.n_pairs * (4 + 4 * dim) + 4 * 2 * rows * dim
            yield f"{dim} dimensions: iALS, {what}", Work(train.n_pairs, "pairs", moved, flop), *seconds_of(log)
        *_, log = jr.solvers.rg2.fit(train, regularization=0.5, progress=False, **options)
        moved = 3 * train.n_pairs * (4 + 4 * dim) + 4 * 4 * rows * dim
        work = Work(train.n_pairs, "pairs", moved, 2 * 2 * rows * dim**2)
        yield f"{dim} dimensions: RG2", work, *seconds_of(log)


def seconds_of(log: Any) -> tuple[float, list[float]]:
    """Returns the seconds of the first sweep and of the others."""
    first, *others = log.column("seconds")[1]
    return first + log.compile_seconds, others


def ease(how: Setting) -> Iterator[Case]:
    """EASE: the inverse of a random matrix of Gowalla's size, in float64."""
    n_items = 400 if how.quick else 40_981
    with jax.enable_x64(True):
        rows = jax.random.normal(jax.random.key(0), (256, n_items))
        table = jax.jit(lambda rows: rows.T @ rows + 500 * jnp.eye(n_items))(rows)
        first, others = called(partial(jr.solvers.ease.on_accelerator, table), 2)
    yield f"{n_items:,} items", Work(n_items, "items", 0, float(n_items) ** 3, "float64"), first, others


# ---------------------------------------------------------------------- rankings


def rankings(how: Setting) -> Iterator[Case]:
    """Rankings: Gowalla's whole report and top-20, and 100,000 users by a million items."""
    split = gowalla(how.quick)
    train, test = split.train, split.test
    model, variables = factors(train.n_users, train.n_items)
    report = partial(jr.evaluate.full_ranking, model, variables, train, test, ks=(20,))
    flop = 2 * DIM * train.n_items * int((np.diff(np.asarray(test.indptr)) > 0).sum())
    first, others = called(lambda: report().means, how.rounds)
    yield "Gowalla, full ranking", Work(train.n_users, "users", 0, flop), first, others
    lists = partial(jr.evaluate.top_k, model, variables, np.arange(train.n_users), k=20, seen=train)
    work = Work(train.n_users, "users", 0, 2 * DIM * train.n_items * train.n_users)
    yield "Gowalla, top-20", work, *called(lists, how.rounds)
    users, items = (1000, 5000) if how.quick else (100_000, 1_000_000)
    model, variables = factors(users, items)
    lists = partial(jr.evaluate.top_k, model, variables, np.arange(users), k=20)
    work = Work(users, "users", 0, 2.0 * DIM * users * items)
    yield f"{users:,} users by {items:,} items, top-20", work, *called(lists, 2)


def factors(n_users: int, n_items: int) -> tuple[Any, Any]:
    """Returns a model and random vectors."""
    model = jr.models.MF(n_users, n_items, dim=DIM)
    return model, model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))


# ---------------------------------------------------------------------- the run

PARTS: dict[str, tuple[Callable[[Setting], Iterator[Case]], float]] = {
    "MF-BPR": (partial(bpr, steps=STEPS, optimizers=list(OPTIMIZERS), dtype=jnp.float32), 100),
    "MF-BPR, half precision": (partial(bpr, steps=STEPS, optimizers=["rowwise.lazy_adam"], dtype=jnp.bfloat16), 25),
    "many negatives": (negatives, 30),
    "rankings": (rankings, 30),
    "ALS, Gowalla": (partial(als, load=lambda quick: gowalla(quick).train, dims=(64, 256)), 70),
    "ALS, 20 million pairs": (partial(als, load=large, dims=(256, 64)), 100),
    "LightGCN": (lightgcn, 15),
    "VALID": (valid, 30),
    "MARS": (mars, 15),
    "λOpt": (lambda_opt, 15),
    "EASE": (ease, 30),
}
"""For each part its function, and its time limit in seconds, which is checked between cases."""


def main() -> None:
    """Measures the parts and writes the record after each case."""
    parser = _record.parser("accelerator", __doc__, "small made-up sets")
    about = "measure these parts only; the record keeps the others if they are of the same device"
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help=about)
    options = parser.parse_args()
    how = Setting(options.quick, 2 if options.quick else 5)
    kept = kept_of(PARTS.keys() - {*options.parts}, options.quick)
    cases, parts, speeds = kept["cases"], kept["parts"], ceilings(how.quick)
    facts = {"data": "made up", "ceilings": speeds, "parts": parts}
    record = partial(_record.write, "accelerator", cases, quick=how.quick, **facts)
    for name in options.parts:
        (part, limit), began = PARTS[name], time.perf_counter()
        parts[name] = about = {"commit": study.commit(_record.RESULTS), "skipped": None, "peak_mb": None}
        try:
            for case in part(how):
                cases[f"{name}: {case[0]}"] = found = measured(case, speeds)
                shown = {key: f"{value:.4g}" for key, value in found.items() if isinstance(value, float)}
                print(f"{name}: {case[0]}: {shown}", flush=True)
                about |= {"seconds": time.perf_counter() - began, "peak_mb": peak_mb()}
                if about["seconds"] > limit:
                    about["skipped"] = f"what comes after {case[0]}, because {limit:g} s were over"
                    break
                record(done=False)
        except FileNotFoundError as error:
            about["skipped"] = str(error)
    record()


def kept_of(names: Iterable[str], quick: bool) -> dict[str, dict[str, Any]]:
    """Returns the cases and facts of these parts from the record, if it is of this device."""
    path = _record.RESULTS / "accelerator.json"
    found = {} if quick or not path.exists() else json.loads(path.read_text())
    if found.get("device") != jax.devices()[0].device_kind:
        return {"cases": {}, "parts": {}}
    parts = {name: found["parts"][name] for name in names if name in found["parts"]}
    cases = {name: case for name, case in found["cases"].items() if name.partition(":")[0] in parts}
    return {"cases": cases, "parts": parts}


def peak_mb() -> float | None:
    """Returns the peak memory of the device in this process so far, in MB, if it tells."""
    found = jax.devices()[0].memory_stats()
    return None if not found else found["peak_bytes_in_use"] / 2**20


if __name__ == "__main__":
    main()
