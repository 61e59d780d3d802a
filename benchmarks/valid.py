"""VALID, MacridVAE and other models on the sets of the VALID paper, by its protocol.

citeulike-a and Gowalla have the paper's split (Gowalla's train part rebuilt, 67 pairs short): of each user's n items a
tenth, rounded down, is validation and as many are test. On citeulike-a one draw served all users with n items, whose
places in order of id are the same ("id places" of `jaxrec.data.audit`), so that validation and test are different
problems there. `citeulike-a-random` is the same pairs split by the same rule with draws of their own, and so is ml-1m.
Items without a train pair are dropped with their pairs. All items are ranked but those of train: validation's stay
candidates on test, as the paper has it. `ml-1m-users` is strong generalisation: 1,000 users are validation and 1,000
test, whole; four fifths of the pairs of each, at random, are the history that a model sees and need not find. Recall is
hits over relevant items. The best setting of a grid on seed 0's validation, the best epoch on each run's, Recall@20
both; validation looks every third epoch, and training ends when five looks bring no gain. Each run is judged once on
test.

Each run leaves a record in results/valid.jsonl; tables and pictures are made of all that stand there.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxrec as jr
from benchmarks import _record
from benchmarks._stale import Cell, of_runs
from benchmarks._study_pictures import Pane, picture
from benchmarks._valid_methods import DIM, EVERY, INTERESTS, METHODS, METRIC, PATIENCE, USERS, Part
from jaxrec.data import datasets, splits
from jaxrec.interactions import DataWarning, IdMap

DATA = ("citeulike-a-valid", "citeulike-a-random", "gowalla-valid", "ml-1m", "ml-1m-users")
FIGURES = ("recall@20", "recall@50", "ndcg@20", "ndcg@50")
STUDIES = {  # what the paper's figures 2 to 5 vary, by method
    "n_interests": (("VALID", "MacridVAE"), (1, 2, 3, 4, 5, 6, 7)),
    "n_blocks": (("VALID", "VALID, unrolled"), (1, 2, 3, 4)),
    "width": (("VALID", "MacridVAE"), (64, 128, 256, 512)),
}
PANES = (
    Pane("n_interests", "interests", "Recall@20 on test"),
    Pane("n_blocks", "blocks", "Recall@20 on test"),
    Pane("width", "encoder's width", "Recall@20 on test"),
    Pane("n_blocks", "blocks", "uniformity", key="uniformity"),
)


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.valid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="data sets")
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS), help="what to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the start")
    parser.add_argument("--limit", type=int, help="end every run after so many epochs; the record's name says so")
    parser.add_argument("--study", nargs="*", choices=list(STUDIES), help="vary these of VALID (none named: all)")
    parser.add_argument("--table", action="store_true", help="train nothing; table the records there are")
    parser.add_argument("--quick", action="store_true", help="the same code: citeulike-a's 1,000 users, few epochs")
    return parser.parse_args()


def prepare(data: str) -> Part:
    """The split, the same for all seeds."""
    found = datasets.load(data.removesuffix("-random").removesuffix("-users"))
    if data in ("citeulike-a-valid", "gowalla-valid"):
        return Part(data, *compacted(splits.Split(found.train, found.valid, found.test)))
    whole = jr.Interactions.from_pairs(*found.interactions.pairs())
    order = partial(splits.random_order, key=jax.random.key(0))
    if data != "ml-1m-users":
        return Part(data, *compacted(splits.ratio(whole, order=order)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # as below
        held = splits.held_out_users(jax.random.key(1), whole, n_valid=1000, n_test=1000, order=order)
    return Part(data, held.train, held.valid, held.test, {"valid": held.valid_history, "test": held.test_history})


def compacted(split: splits.Split) -> splits.Split:
    """The split without items that have no train pair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # of how many pairs go: the module's docstring says it
        kept = splits.drop_cold(split)
    ids = IdMap(np.arange(split.train.n_users), np.arange(split.train.n_items))
    return splits.compact(kept, ids)[0]


# ---------------------------------------------------------------------- one run


def run(part: Part, name: str, setting: dict[str, Any], seed: int, *, limit: int | None = None) -> dict[str, Any]:
    """One run's record, as it was kept or by training; `hits` are the users' on test, of the first 20."""
    for record in _record.runs("valid", data=part.name, method=name, setting=setting, limit=limit, seed=seed):
        return record
    model, variables, curve = METHODS[name].train(part, seed, limit=limit, **setting)
    report = part.judged(model, variables, "test", ks=(20, 50))
    users = report.users
    hits = report.per_user["recall@20"] * np.asarray(part.test.user_degrees)[users]
    record = {
        "data": part.name,
        "fingerprint": part.train.fingerprint(),
        "method": name,
        "setting": setting,
        "limit": limit,
        "seed": seed,
        "curve": curve,
        "test": {figure: report.means[figure] for figure in FIGURES},
        "hits": "".join(map(chr, 48 + np.rint(hits).astype(int))),
        "commit": _record.commit(),
    }
    if isinstance(model, jr.models.VALID):
        record |= looked_into(model, variables, part)
    _record.keep("valid", record, "data", "method", "setting", "limit", "seed")
    print(
        f"{part.name}, {name}, {setting}, seed {seed}: "
        + ", ".join(f"{value:.4f}" for value in record["test"].values()),
        flush=True,
    )
    jax.clear_caches()
    return record


def looked_into(model: Any, variables: jr.typing.Variables, part: Part) -> dict[str, float]:
    """Of 1,000 users: how alike their prototypes are, and how evenly the users lie on the sphere (figure 5)."""
    users = np.flatnonzero(part.train.user_degrees).astype(np.int32)
    users = np.random.default_rng(0).permutation(users)[:1000]
    found = model.apply(variables, users, method="posterior")
    x = np.array(found.interests).reshape(len(users), -1)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    near = np.exp(-2 * (2 - 2 * x @ x.T))[np.triu_indices(len(users), 1)]
    return {
        "collapse": float(np.mean(jr.models.macrid.collapse(found.prototypes))),
        "uniformity": float(np.log(near.mean())),
    }


# ---------------------------------------------------------------------- all runs, and the table


def settings_of(name: str) -> list[dict[str, Any]]:
    """Every setting of a method's grid."""
    return jr.study.settings(METHODS[name].grid)


def after(limit: int | None) -> str:
    """What the name of a row says of the limit."""
    return f", {limit} epochs" if limit else ""


def cells(records: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """What the records in results/valid.jsonl compared, and what is compared today."""
    grids, varied = {}, {}
    points = [
        point(name, what, value)
        for what, (names, values) in STUDIES.items()
        for name, value in itertools.product(names, values)
    ]
    for data, limit in {(record["data"], record["limit"]) for record in records}:
        grids |= {(data, f"{name}{after(limit)}"): settings_of(name) for name in METHODS}
        for name, setting in points:
            varied.setdefault((data, f"{name}{after(limit)}"), []).append(setting)
    return of_runs([{**r, "method": f"{r['method']}{after(r['limit'])}"} for r in records], grids, varied)


def chosen(data: str, name: str, limit: int | None) -> dict[str, Any] | None:
    """The setting that seed 0's validation prefers; None where its runs are not all there."""
    of = {"data": data, "method": name, "limit": limit, "seed": 0}
    found = [_record.runs("valid", setting=setting, **of) for setting in settings_of(name)]
    if not all(found):
        return None
    records = [record for (record,) in found]
    return max(records, key=lambda record: best_of(record)[2])["setting"]


def point(name: str, what: str, value: int) -> tuple[str, dict[str, Any]]:
    """The method and the setting of a study's point: with one block all are MacridVAE, and defaults are not said."""
    if (what, value) == ("n_blocks", 1):
        return "MacridVAE", {}
    return name, {} if INTERESTS[what] == value else {what: value}


def best_of(record: dict[str, Any]) -> list[float]:
    """Epoch, seconds and figure of the best look at validation."""
    return max(record["curve"], key=lambda point: point[2])


def train_all(options: argparse.Namespace) -> None:
    """Trains what is asked for and not yet recorded."""
    for data in options.data:
        part = prepare(data)
        if options.study is not None:
            for what in options.study or STUDIES:
                names, values = STUDIES[what]
                for seed, name, value in itertools.product(options.seeds, names, values):
                    run(part, *point(name, what, value), seed, limit=options.limit)
            continue
        for name in options.method:
            if part.histories is not None and not METHODS[name].by_history:
                print(f"{name} on {data}: left out, as it has parameters of users", flush=True)
                continue
            for setting in settings_of(name):
                run(part, name, setting, 0, limit=options.limit)
            for seed in options.seeds if METHODS[name].drawn else ():
                run(part, name, chosen(data, name, options.limit), seed, limit=options.limit)


def case_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds; "metric" is what validation went by."""
    case: dict[str, Any] = {}
    for label, name in {"metric": METRIC, **{name: name for name in FIGURES}}.items():
        values = np.array([record["test"][name] for record in records])
        stderr = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        case |= {label: float(values.mean()), "stderr" if label == "metric" else f"{label}_stderr": stderr}
    if "curve" in records[0]:
        best = [best_of(record) for record in records]
        case |= {
            "setting": records[0]["setting"],
            "limit": records[0]["limit"],
            "seeds": len(records),
            "epochs": [point[0] for point in best],
            "last_epochs": [record["curve"][-1][0] for record in records],
            "validation": float(np.mean([point[2] for point in best])),
        }
        for name in ("collapse", "uniformity"):
            if name in records[0]:
                case[name] = float(np.mean([record[name] for record in records]))
    return case


def records_of(data: str, name: str, setting: dict[str, Any], limit: int | None) -> list[dict[str, Any]]:
    """The runs of a setting, by seed."""
    found = _record.runs("valid", data=data, method=name, setting=setting, limit=limit)
    return sorted(found, key=lambda record: record["seed"])


def paired(part: Part, one: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, float]:
    """Recall@20 of one less the other's, of the seeds of both: over seeds, and over users, each a mean over seeds."""
    degrees = np.asarray(part.test.user_degrees)
    degrees = degrees[degrees > 0]
    sides = [{record["seed"]: record for record in records} for records in (one, other)]
    both = [[side[seed] for seed in sorted(sides[0].keys() & sides[1].keys())] for side in sides]
    hits = [np.mean([np.array(list(map(ord, record["hits"]))) - 48 for record in side], 0) for side in both]
    n = len(both[0])
    by_seed = np.array([a["test"][METRIC] - b["test"][METRIC] for a, b in zip(*both)])
    by_user = (hits[0] - hits[1]) / degrees
    return {
        "difference": float(by_user.mean()),
        "users_stderr": float(by_user.std(ddof=1) / np.sqrt(len(by_user))),
        "seeds_stderr": float(by_seed.std(ddof=1) / np.sqrt(n)) if n > 1 else None,
        "seeds": n,
    }


def trivial(part: Part) -> dict[str, dict[str, Any]]:
    """The rankers that learn nothing."""
    rankers = {
        "random": jr.models.random(jax.random.key(0), part.train.n_items),
        "item id": jr.models.item_id(part.train.n_items),
        "popularity": jr.models.popularity(part.train),
    }
    judged = {name: part.judged(*ranker, "test", ks=(20, 50)).means for name, ranker in rankers.items()}
    return {name: case_of([{"test": means}]) for name, means in judged.items()}


def table() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, str]]:
    """Cases of all records with the trivial rankers, VALID less MacridVAE, studies, and fingerprints of the data."""
    records = _record.runs("valid")
    limits = sorted({record["limit"] for record in records}, key=lambda limit: (limit is not None, limit))
    cases, tests, studies, fingerprints = {}, {}, {}, {}
    for data in DATA:
        if not (of_data := [record for record in records if record["data"] == data]):
            continue
        part = prepare(data)
        fingerprints[data] = of_data[0]["fingerprint"]
        cases |= {f"{data}: {name}": case for name, case in trivial(part).items()}
        for limit in limits:
            rows = {name: records_of(data, name, setting, limit) for name, setting in all_chosen(data, limit)}
            for name, found in rows.items():
                cases[f"{data}: {name}{after(limit)}"] = case_of(found)
            if {"VALID", "MacridVAE"} <= set(rows):
                tests[f"{data}{after(limit)}"] = paired(part, rows["VALID"], rows["MacridVAE"])
            if found := studied(data, limit):
                studies[f"{data}{after(limit)}"] = found
    return cases, tests, studies, fingerprints


def studied(data: str, limit: int | None) -> dict[str, Any]:
    """What is varied -> method -> value -> case, of the studies that were made."""
    found = {}
    for what, (names, values) in STUDIES.items():
        points = {at: point(at[0], what, at[1]) for at in itertools.product(names, values)}
        runs = {at: records_of(data, *which, limit) for at, which in points.items()}
        if any(records and points[at][1] for at, records in runs.items()):
            for (name, value), records in runs.items():
                if records:
                    found.setdefault(what, {}).setdefault(name, {})[str(value)] = case_of(records)
    return found


def all_chosen(data: str, limit: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Methods whose grid is whole, with the chosen settings."""
    for name in METHODS:
        if (setting := chosen(data, name, limit)) is not None:
            yield name, setting


def quick() -> dict[str, dict[str, Any]]:
    """A fifth of citeulike-a's users, two epochs."""
    part = prepare("citeulike-a-valid")
    kept = (splits.keep_users(x, np.arange(x.n_users) < 1000) for x in (part.train, part.valid, part.test))
    part = Part(part.name, *compacted(splits.Split(*kept)))
    cases = trivial(part)
    for name in ("VALID", "MacridVAE"):
        model, variables, _ = METHODS[name].train(part, 0, limit=3)
        means = part.judged(model, variables, "test", ks=(20, 50)).means
        cases[name] = case_of([{"test": means}])
    return {f"citeulike-a-valid: {name}": case for name, case in cases.items()}


def main() -> None:
    """Trains, and writes the table."""
    options = arguments()
    facts = {"dim": DIM, "users_a_step": USERS, "every": EVERY, "patience": PATIENCE}
    if options.quick:
        _record.write("valid", quick(), quick=True, data="citeulike-a-valid", **facts)
        return
    if not options.table:
        train_all(options)
    cases, tests, studies, fingerprints = table()
    if studies:
        picture(_record.RESULTS / "valid.png", studies, PANES)
    _record.write(
        "valid",
        cases,
        quick=False,
        data=fingerprints,
        paired=tests,
        studies=studies,
        records=len(_record.runs("valid")),
        **facts,
    )


if __name__ == "__main__":
    main()
