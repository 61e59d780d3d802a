"""λOpt against one fixed λ and other baselines: matrix factorisation under BPR, 64 dimensions, Adam.

Each user's latest ⌊20 %⌋ are test, and ⌊25 %⌋ of the rest before them validation (lastfm-2k has no times: at random).
Every pair counts once, whatever its rating. λOpt trains its coefficients on validation, so that it could not also
choose there: a random half of each user's validation pairs, called learn, moves the coefficients; the other half,
called select, chooses for every method its setting (on seed 0) and the epoch of each run, by NDCG@50 of the full
ranking. As λOpt sees learn and others do not, one fixed λ is also trained on train and learn in one.

A run has as many steps of Θ by any method; steps of Λ come on top, and the record counts the seconds of both. Test is
judged once a run, with train and validation masked: by λOpt's own figures (each test item ranked alone), and by NDCG@50
and Recall@50 of the full ranking.

`--study` runs what may be responsible for the differences (start from N(0, 1), penalty of the look-ahead), and other
models on ml-100k. Each run leaves a record in results/lambda_opt.jsonl; tables and pictures are made of all that stand
there.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxrec as jr
from benchmarks import _record
from benchmarks._stale import Cell, same
from benchmarks.studies._lambda_methods import DIM, METHODS, RATE, STUDIES, Part, factors
from benchmarks.studies._lambda_pictures import picture
from jaxrec.data import datasets, splits
from jaxrec.interactions import DataWarning

BUDGET = {  # epochs of train, and positives a step
    "ml-100k": (60, 1024),
    "movielens-small": (30, 1024),
    "lastfm-2k": (30, 1024),
    "ml-1m": (20, 4096),
}
ALL = METHODS | STUDIES
CHOSEN_BY, LOOKS = "ndcg@50", 12  # validations a run
PAPER, FULL = ("auc", "recall@50", "ndcg@50"), ("recall@50", "ndcg@50")
BEST_FIXED, GROUPS = "MF, one λ", 5


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = _record.parser("studies.lambda_opt", __doc__)
    parser.add_argument("--data", nargs="+", choices=list(BUDGET), default=list(BUDGET), help="data sets")
    parser.add_argument("--method", nargs="+", choices=list(ALL), help="what to train (default: all that are compared)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of halves, ties and start")
    parser.add_argument("--study", action="store_true", help="by default, train what explains instead")
    parser.add_argument("--trajectory", action="store_true", help="follow Λ of DUI through a run of seed 0")
    parser.add_argument("--table", action="store_true", help="train nothing; table the records there are")
    parser.add_argument("--quick", action="store_true", help="the same code: ml-100k, one λ and DUI, 6 epochs")
    return parser.parse_args()


# ---------------------------------------------------------------------- data and figures


def prepare(data: str, seed: int) -> Part:
    """The split of one seed: ties in time, halves of validation and lastfm-2k's order change with it."""
    whole, key = datasets.load(data).interactions, jax.random.key(seed)
    order = splits.random_order if whole.timestamps is None else splits.temporal_order
    train, valid, test = map(plain, splits.in_turn(whole, order=partial(order, key=key)))
    by_chance = partial(splits.random_order, key=jax.random.fold_in(key, 1))
    halves = splits.in_turn(valid, test=0.5, valid=0.0, order=by_chance)
    return Part(train, halves.train, halves.test, test, *BUDGET[data])


def plain(pairs: jr.Interactions) -> jr.Interactions:
    """The pairs alone."""
    return jr.Interactions.from_pairs(*pairs.pairs(), n_users=pairs.n_users, n_items=pairs.n_items)


def quiet(judge: Any, *arguments: Any, **options: Any) -> jr.evaluate.Report:
    """The report, of users without training pairs too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return judge(*arguments, **options)


def validation(model: Any, part: Part) -> Any:
    """What chooses: a function of variables."""
    known = part.train.union(part.learn)
    return lambda variables: {
        CHOSEN_BY: quiet(jr.evaluate.full_ranking, model, variables, known, part.select, ks=(50,)).means[CHOSEN_BY]
    }


def judged(model: Any, variables: jr.typing.Variables, part: Part) -> dict[str, Any]:
    """Figures on test, and λOpt's NDCG@50 by how many training pairs users have."""
    known = part.train.union(part.learn, part.select)
    apart = quiet(jr.papers.lambda_opt.separate_ranking, model, variables, known, part.test, ks=(50,))
    full = quiet(jr.evaluate.full_ranking, model, variables, known, part.test, ks=(50,))
    degrees = part.train.user_degrees[apart.users]
    groups = np.array_split(np.argsort(degrees, kind="stable"), GROUPS)
    return {
        **{name: apart.means[name] for name in PAPER},
        **{f"full {name}": full.means[name] for name in FULL},
        "by_activity": [[float(degrees[g].mean()), float(apart.per_user["ndcg@50"][g].mean())] for g in groups],
    }


# ---------------------------------------------------------------------- one run


def settings_of(data: str, name: str) -> list[dict[str, float]]:
    """Every setting of a method's grid, the smaller one where it has one and the set is not ml-100k."""
    return jr.study.settings(ALL[name].grid if data == "ml-100k" else ALL[name].few or ALL[name].grid)


def cells(records: Sequence[Mapping[str, Any]]) -> Iterator[Cell]:
    """What the records in results/lambda_opt.jsonl compared, on seed 0, and what is compared today."""
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        if "method" in record:  # not a trajectory
            rows.setdefault((record["data"], record["method"]), []).append(record)
    for (data, name), runs in rows.items():
        first = next((run for run in runs if run["seed"] == 0), {"tried": [], "setting": None})
        grid = settings_of(data, name) if name in ALL else ()
        compared = [setting for setting, *_ in first["tried"]]
        yield Cell(data, name, compared, grid, first["setting"], [run["setting"] for run in runs])


def record_of(data: str, name: str | None, seed: int | None) -> dict[str, Any] | None:
    """A run's record, or for neither name nor seed the trajectory, if it is there."""
    return next(iter(_record.runs("lambda_opt", data=data, method=name, seed=seed)), None)


def found_by(part: Part, name: str, seed: int, settings: list[dict[str, float]]) -> dict[str, Any]:
    """Trains all settings, as lanes of one sweep; the best on select is judged on test."""
    method, wall, cpu = ALL[name], time.perf_counter(), time.process_time()
    data = part._replace(train=part.train.union(part.learn)) if method.whole else part
    model = (method.model or factors)(data)
    make = partial(method.make, data, model=model)
    sweep = jr.train.sweep(
        jax.random.split(jax.random.key(seed), 1),
        make,
        data.train,
        settings={key: [setting[key] for setting in settings] for key in settings[0]},
        epochs=part.epochs,
        batch_size=part.batch_size,
        validate=validation(model, part),
        every=max(part.epochs // LOOKS, 1),
        select=CHOSEN_BY,
        progress=False,
    )
    spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    best = sweep.best(CHOSEN_BY)
    lane = sweep.lanes[best]
    tried = [[lane.setting, lane.figures.get(CHOSEN_BY), lane.epoch, lane.diverged] for lane in sweep.lanes]
    return {
        "setting": dict(lane.setting),
        "epoch": lane.epoch,
        "steps": data.steps,
        "lanes": len(settings),
        **spent,
        "tried": tried,
        "curve": [list(map(float, column)) for column in lane.history.column(CHOSEN_BY)],
        "test": judged(model, sweep.state(best).variables, part),
    }


def run(data: str, name: str, seed: int, *, part: Part | None = None) -> dict[str, Any]:
    """One run's record, as it was kept or by training; the whole grid on seed 0, what it chose on others."""
    settings = settings_of(data, name) if seed == 0 else [run(data, name, 0)["setting"]]
    record = record_of(data, name, seed) if part is None else None
    if record is not None and same(settings, [setting for setting, *_ in record["tried"]]):
        return record
    whole = prepare(data, seed) if part is None else part
    record = {"data": data, "fingerprint": whole.train.fingerprint(), "method": name, "seed": seed}
    record |= found_by(whole, name, seed, settings) | {"commit": _record.commit()}
    if part is None:
        _record.keep("lambda_opt", record, "data", "method", "seed")
    seen = ", ".join(f"{figure} {record['test'][figure]:.4f}" for figure in PAPER)
    print(f"{data}, {name}, seed {seed}: {seen} ({record['cpu_s']:.0f} s, {record['setting']})", flush=True)
    jax.clear_caches()
    return record


def trajectory(data: str) -> dict[str, Any]:
    """Mean Λ of users and items by their training pairs, in groups from few to many, through the chosen run of DUI."""
    if (known := record_of(data, None, None)) is not None:
        return known
    part = prepare(data, 0)
    recipe = METHODS["λOpt DUI"].make(part, model=factors(part), **run(data, "λOpt DUI", 0)["setting"])
    degrees = {"user": np.asarray(part.train.user_degrees), "item": np.asarray(part.train.item_degrees)}
    groups = {side: np.array_split(np.argsort(d, kind="stable"), GROUPS) for side, d in degrees.items()}
    found: dict[str, Any] = {
        "data": data,
        "commit": _record.commit(),
        "steps": part.steps // part.epochs,
        "degrees": {side: [float(degrees[side][g].mean()) for g in groups[side]] for side in groups},
        "user": [],
        "item": [],
    }

    def follow(state: jr.train.State, _: Any) -> None:
        for side, table in state.opt_state.lambdas.items():
            found[side].append([float(np.asarray(table)[g].mean()) for g in groups[side]])

    state = jr.train.init(jax.random.split(jax.random.key(0), 1)[0], recipe.model, recipe.tx)
    options = {"touched": recipe.touched, "epochs": part.epochs, "batch_size": part.batch_size, "progress": False}
    jr.train.fit(state, recipe.objective, recipe.tx, part.train, callbacks=[follow], **options)
    _record.keep("lambda_opt", found, "data", "method", "seed")
    return found


# ---------------------------------------------------------------------- all runs, and the table


def train_all(options: argparse.Namespace) -> None:
    """Trains what is asked for and not yet recorded."""
    names = options.method or list(STUDIES if options.study else METHODS)
    for data, seed, name in itertools.product(options.data, options.seeds, names):
        if name in METHODS or data == "ml-100k" or "N(0, 1)" in name or "exact" in name:
            run(data, name, seed)
    if options.trajectory:
        for data in options.data:
            trajectory(data)


def case_of(records: list[dict[str, Any]], against: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Means over seeds, and of differences from the fixed λ under the same seed; "metric" is λOpt's NDCG@50."""
    names = {"metric": "ndcg@50"} | {name: name for name in (*PAPER, *(f"full {name}" for name in FULL))}
    base = {record["seed"]: record["test"] for record in against or []}
    case: dict[str, Any] = {}
    for label, name in names.items():
        values = np.array([record["test"][name] for record in records])
        less = [r["test"][name] - base[r["seed"]][name] for r in records if r.get("seed") in base]
        case |= {
            label: float(values.mean()),
            "stderr" if label == "metric" else f"{label}_stderr": _record.stderr(values),
        }
        if less and label != "metric":
            case |= {f"{label}_gain": float(np.mean(less)), f"{label}_gain_stderr": _record.stderr(less)}
    if "setting" in records[0]:
        case |= {key: records[0][key] for key in ("setting", "steps", "lanes")}
        case |= {"seeds": len(records), "epochs": [record["epoch"] for record in records]}
        case["search_cpu_s"] = records[0]["cpu_s"]
    return case


def trivial(data: str) -> dict[str, dict[str, Any]]:
    """The rankers that learn nothing, seed 0."""
    part = prepare(data, 0)
    known = part.train.union(part.learn, part.select)
    return {name: case_of([{"test": judged(*ranker, part)}]) for name, ranker in _record.rankers(known).items()}


def records_of(data: str, name: str) -> list[dict[str, Any]]:
    """The runs of a method, by seed."""
    return sorted(_record.runs("lambda_opt", data=data, method=name), key=lambda record: record["seed"])


def learnt(data: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Cases of the methods that have records; other models are compared with their own fixed λ."""
    for name in ALL:
        if records := records_of(data, name):
            twin = name.replace("λOpt DUI", "one λ") if name.partition(",")[0] in ("LightGCN", "facets") else BEST_FIXED
            yield name, case_of(records, records_of(data, twin))


def table() -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Cases of all records with the trivial rankers, and the fingerprints of the data."""
    cases, fingerprints = {}, {}
    for data in BUDGET:
        if found := dict(learnt(data)):
            rows = trivial(data) | found
            cases |= {f"{data}: {name}": case for name, case in rows.items()}
            fingerprints[data] = prepare(data, 0).train.fingerprint()
    return cases, fingerprints


def drawn() -> dict[str, dict[str, Any]]:
    """What the pictures are made of, for the sets that have it."""
    rows = {}
    for data in BUDGET:
        row = {"one": records_of(data, BEST_FIXED), "learned": records_of(data, "λOpt DUI")}
        if all(row.values()):
            rows[data] = row | {"trajectory": record_of(data, None, None)}
    return rows


def quick() -> dict[str, dict[str, Any]]:
    """ml-100k, one seed, few epochs."""
    part = prepare("ml-100k", 0)._replace(epochs=6)
    rows = trivial("ml-100k")
    rows |= {name: case_of([run("ml-100k", name, 0, part=part)]) for name in (BEST_FIXED, "λOpt DUI")}
    return {f"ml-100k: {name}": case for name, case in rows.items()}


def main() -> None:
    """Trains, and writes the table."""
    options = arguments()
    facts = {"dim": DIM, "learning_rate": RATE, "budget": BUDGET, "chosen_by": CHOSEN_BY}
    if options.quick:
        _record.write("studies.lambda_opt", quick(), quick=True, data="ml-100k", **facts)
        return
    if not options.table:
        train_all(options)
        return
    cases, fingerprints = table()
    picture(_record.RESULTS / "lambda_opt.png", drawn())
    _record.write("studies.lambda_opt", cases, quick=False, data=fingerprints, **facts)


if __name__ == "__main__":
    main()
