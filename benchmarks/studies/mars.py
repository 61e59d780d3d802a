"""MAR, MARS and metric-learning baselines on the sets of the MARS paper, on their published splits and on random ones.

The published leave-one-out of Ciao and Delicious holds out each user's items of the largest ids, so that the rankers
which learn nothing stand in every table. `ciao-random` and `delicious-random` are the same pairs with two of each user
held out at random, anew for each seed, as are those of lastfm-2k; ml-1m-loo is NCF's split, of which one train pair of
each user is validation.

Two protocols. "sampled": each held-out item among 100 sampled ones (99 of ml-1m-loo), as the released code has it:
repeated negatives count once, items that train lacks take no part, ties go against the item. "full": all items, train
(for test: and validation) masked; it is the one to trust, and is left out on published splits of Ciao and Delicious.
Validation chooses, for each protocol by its own figure (HR@10 sampled, NDCG@10 full), the setting on seed 0 and the
epoch of each run. What the released code prints, the best epoch on test for each figure, is called best-on-test.

Each run leaves a record in results/mars.jsonl; tables and pictures are made of all that stand there.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxrec as jr
from benchmarks import _record
from benchmarks._stale import Cell, of_runs
from benchmarks.studies._mars_data import BY_ID, DATA, PUBLISHED, Part, prepare, protocols_of
from benchmarks.studies._mars_methods import DIM, METHODS, PASSES, Recipe
from benchmarks.studies._study_pictures import Pane, picture
from jaxrec.interactions import DataWarning
from jaxrec.train import examples

SAMPLED, FULL = ("hit_rate@10", "hit_rate@20", "ndcg@10", "ndcg@20"), ("recall@10", "ndcg@10")
PATIENCE, LOOK = 6, 1000  # validations without a gain; users whose full rankings validation looks at
PANES = [
    Pane(varied, label, "HR@10 (sampled) on test")
    for varied, label in (
        ("n_facets", "facets"),
        ("pull_weight", "weight of the pull"),
        ("facet_weight", "weight of the facet term"),
    )
]
STUDIES = {  # what the paper's table IV, figures 5 and 6 vary; with 32 numbers a facet, to be affordable
    "n_facets": (1, 2, 3, 4, 5, 6),
    "pull_weight": (0.0, 0.001, 0.01, 0.1, 1.0),
    "facet_weight": (0.0, 0.001, 0.01, 0.1, 1.0),
}
USUAL = {"n_facets": 4, "pull_weight": 0.1, "facet_weight": 0.01}  # of all presets, so that the studies share a run
STUDIED = {"ciao": {"dim": 32}, "delicious": {"dim": 32}, "ciao-random": {"dim": 32}}


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = _record.parser("studies.mars", __doc__)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="data sets")
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS), help="what to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of random split and start")
    parser.add_argument("--study", nargs="*", choices=list(STUDIES), help="vary these of MARS (none named: all)")
    parser.add_argument("--table", action="store_true", help="train nothing; table the records there are")
    parser.add_argument("--quick", action="store_true", help="the same code: Delicious, BPR and MARS, few epochs")
    return parser.parse_args()


# ---------------------------------------------------------------------- one run


def judged(model: Any, variables: jr.typing.Variables, part: Part, *, on: str, looks: int | None = None) -> dict:
    """The figures of each protocol, on "valid" or "test"; `looks` users' full rankings alone."""
    held_out, negatives = getattr(part, on), getattr(part, f"{on}_negatives")
    masked = part.train if on == "valid" else part.train.union(part.valid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # of repeated negatives, which the protocol has
        report = jr.evaluate.sampled_ranking(
            model, variables, held_out.pairs(), negatives, ks=(10, 20), train=part.train
        )
    found = {"sampled": {name: report.means[name] for name in SAMPLED}}
    if "full" in part.protocols:
        users, _ = held_out.pairs()
        users = np.unique(users) if looks is None else np.random.default_rng(0).permutation(np.unique(users))[:looks]
        report = jr.evaluate.full_ranking(model, variables, masked, held_out, ks=(10,), users=users)
        found["full"] = {name: report.means[name] for name in FULL}
    return found


CHOSEN_BY = {"sampled": "hit_rate@10", "full": "ndcg@10"}


def trained(part: Part, recipe: Recipe, seed: int, *, epochs: int | None = None) -> dict[str, Any]:
    """Trains until no protocol's figure gets better on validation; judges the best epoch of each on test."""
    best, curve, on_test = {}, [], []
    for epoch, seconds, variables in states(part, recipe, seed, epochs or recipe.epochs):
        seen = judged(recipe.model, variables, part, on="valid", looks=LOOK)
        values = {protocol: seen[protocol][CHOSEN_BY[protocol]] for protocol in part.protocols}
        curve.append([epoch, seconds, *values.values()])
        for protocol, value in values.items():
            if protocol not in best or value > best[protocol][0]:
                best[protocol] = value, epoch, variables
        if part.protocols == ("sampled",):
            on_test.append(judged(recipe.model, variables, part, on="test")["sampled"])
        if epoch - max(at for _, at, _ in best.values()) >= PATIENCE * recipe.every:
            break
    test = {p: judged(recipe.model, variables, part, on="test")[p] for p, (_, _, variables) in best.items()}
    return {
        "validation": {protocol: {"value": value, "epoch": epoch} for protocol, (value, epoch, _) in best.items()},
        "test": test,
        "best_on_test": {name: max(row[name] for row in on_test) for name in SAMPLED} if on_test else None,
        "curve": curve,
    }


def states(
    part: Part, recipe: Recipe, seed: int, epochs: int
) -> Iterator[tuple[int, float | None, jr.typing.Variables]]:
    """Epoch, seconds of training so far, and variables, whenever validation is to look."""
    if recipe.objective is None:
        yield 0, None, recipe.parameters
        return
    state = jr.train.init(jax.random.key(seed), recipe.model, recipe.tx, parameters=recipe.parameters)
    options = {"batch_size": recipe.batch_size, "group": recipe.group, "progress": False}
    seconds = 0.0
    for epoch in range(recipe.every, epochs + 1, recipe.every):
        began = time.perf_counter()
        state, _ = jr.train.fit(state, recipe.objective, recipe.tx, part.train, epochs=epoch, **options)
        seconds += time.perf_counter() - began
        yield epoch, seconds, state.variables


def stretched(recipe: Recipe, train: jr.Interactions) -> Recipe:
    """Looks of small sets are 500 steps apart or more, those of large ones 1,000 or an epoch: all train as long."""
    if recipe.fixed:
        return recipe
    looks, steps = recipe.epochs // recipe.every, -(-len(examples(train, recipe.group).users) // recipe.batch_size)
    between = recipe.every * steps
    every = max(1000 // steps, 1) if between > 1000 else recipe.every * max(500 // between, 1)
    return recipe._replace(epochs=looks * every, every=every)


def run(data: str, name: str, setting: dict[str, Any], seed: int, *, epochs: int | None = None) -> dict[str, Any]:
    """One run's record, as it was kept or by training."""
    found = _record.runs("mars", data=data, method=name, setting=setting, seed=seed)
    if found and epochs is None:
        return found[0]
    part = prepare(data, seed)
    recipe = stretched(METHODS[name].make(part.train, **setting), part.train)
    record = {
        "data": data,
        "fingerprint": part.train.fingerprint(),
        "method": name,
        "setting": setting,
        "seed": seed,
        **trained(part, recipe, seed, epochs=epochs),
        "commit": _record.commit(),
    }
    if epochs is None:
        _record.keep("mars", record, "data", "method", "setting", "seed")
    seen = [f"{figures[CHOSEN_BY[protocol]]:.4f}" for protocol, figures in record["test"].items()]
    print(f"{data}, {name}, {setting}, seed {seed}: {', '.join(seen)}", flush=True)
    jax.clear_caches()
    return record


# ---------------------------------------------------------------------- all runs, and the table


def settings_of(data: str, name: str) -> list[dict[str, Any]]:
    """Every setting of a method's grid."""
    more = {} if data in BY_ID else METHODS[name].resplit
    return [{**setting, **more} for setting in jr.study.settings(METHODS[name].grid)]


def cells(records: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """What the records in results/mars.jsonl compared, and what is compared today."""
    varied: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for data, what in itertools.product(STUDIED, STUDIES):
        for name, _, setting in studied(data, what):
            varied.setdefault((data, name), []).append(setting)
    grids = {(data, name): settings_of(data, name) for data, name in itertools.product(DATA, METHODS)}
    return of_runs(records, grids, varied)


def chosen(data: str, name: str, protocol: str) -> dict[str, Any] | None:
    """The setting that seed 0's validation prefers; None where its runs are not all there."""
    settings = settings_of(data, name)
    found = [_record.runs("mars", data=data, method=name, setting=setting, seed=0) for setting in settings]
    if not all(found):
        return None
    records = [record for (record,) in found]
    return max(records, key=lambda record: record["validation"][protocol]["value"])["setting"]


def train_all(options: argparse.Namespace) -> None:
    """Trains what is asked for and not yet recorded."""
    for data, name in itertools.product(options.data, options.method):
        for setting in settings_of(data, name):
            run(data, name, setting, 0)
        for seed, protocol in itertools.product(options.seeds, protocols_of(data)):
            run(data, name, chosen(data, name, protocol), seed)


def studied(data: str, what: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Method, value and setting of each point of a study."""
    names = ["MARS, released" if data in PUBLISHED else "MARS, released, uniform negatives"]
    names += ["MAR"] * (what == "n_facets")
    for name, value in itertools.product(names, STUDIES[what]):
        yield name, value, STUDIED[data] | ({} if value == USUAL[what] else {what: value})


def vary(options: argparse.Namespace) -> None:
    """Varies one thing at a time."""
    for data, what in itertools.product(options.data, options.study or STUDIES):
        if data in STUDIED:
            for name, _, setting in studied(data, what):
                for seed in options.seeds:
                    run(data, name, setting, seed)


def case_of(records: list[dict[str, Any]], protocol: str) -> dict[str, Any]:
    """Means over seeds; "metric" is what validation went by."""
    names = {"metric": CHOSEN_BY[protocol]} | {name: name for name in (SAMPLED if protocol == "sampled" else FULL)}
    case: dict[str, Any] = {}
    for label, name in names.items():
        values = np.array([record["test"][protocol][name] for record in records])
        error = _record.stderr(values)
        case |= {label: float(values.mean()), "stderr" if label == "metric" else f"{label}_stderr": error}
    if "setting" in records[0]:
        case |= {
            "setting": records[0]["setting"],
            "seeds": len(records),
            "epochs": [record["validation"][protocol]["epoch"] for record in records],
        }
        if records[0]["best_on_test"]:
            case["best_on_test"] = {
                name: float(np.mean([record["best_on_test"][name] for record in records])) for name in SAMPLED
            }
    return case


def trivial(data: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The rankers that learn nothing, seed 0: name -> protocol -> case."""
    part = prepare(data, 0)
    rankers = _record.rankers(part.train) | {"item id": jr.models.item_id(part.train.n_items, descending=True)}
    model, variables = rankers["popularity"]
    rankers["minus popularity"] = model, jax.tree.map(lambda scores: -scores, variables)
    figures = {name: judged(*ranker, part, on="test") for name, ranker in rankers.items()}
    return {name: {p: case_of([{"test": found}], p) for p in found} for name, found in figures.items()}


def records_of(data: str, name: str, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a setting, by seed."""
    return sorted(_record.runs("mars", data=data, method=name, setting=setting), key=lambda record: record["seed"])


def table() -> tuple[dict[str, dict[str, Any]], dict[str, Any], dict[str, str]]:
    """Cases of all records with the trivial rankers, the studies, and the fingerprints of the data."""
    cases, studies, fingerprints = {}, {}, {}
    for data in DATA:
        learnt = {}
        for name, protocol in itertools.product(METHODS, protocols_of(data)):
            if (setting := chosen(data, name, protocol)) is not None:
                records = records_of(data, name, setting)
                learnt[f"{data}, {protocol}: {name}"] = case_of(records, protocol)
                fingerprints[data] = records[0]["fingerprint"]
        if learnt:
            rows = trivial(data)
            for protocol in protocols_of(data):
                cases |= {f"{data}, {protocol}: {name}": found[protocol] for name, found in rows.items()}
            cases |= learnt
        for what in STUDIES if data in STUDIED else ():
            for name, value, setting in studied(data, what):
                if records := records_of(data, name, setting):
                    studies.setdefault(data, {}).setdefault(what, {}).setdefault(name, {})[f"{value:g}"] = case_of(
                        records, "sampled"
                    )
    return cases, studies, fingerprints


def quick() -> dict[str, dict[str, Any]]:
    """Published Delicious, one seed, a few epochs."""
    settings = {"BPR": {"power": 0.75, "l2": 1e-5}, "MARS, released": {"n_facets": 2}}
    runs = {name: [run("delicious", name, setting, 0, epochs=300)] for name, setting in settings.items()}
    rows = {name: found["sampled"] for name, found in trivial("delicious").items()}
    rows |= {name: case_of(records, "sampled") for name, records in runs.items()}
    return {f"delicious, sampled: {name}": case for name, case in rows.items()}


def main() -> None:
    """Trains, and writes the table."""
    options = arguments()
    if options.quick:
        _record.write("studies.mars", quick(), quick=True, data="delicious", dim=DIM)
        return
    if not options.table:
        (train_all if options.study is None else vary)(options)
    cases, studies, fingerprints = table()
    if studies:
        picture(_record.RESULTS / "mars.png", studies, PANES)
    facts = {"dim": DIM, "passes": PASSES, "patience": PATIENCE, "studies": studies, "studied": STUDIED}
    _record.write("studies.mars", cases, quick=False, data=fingerprints, **facts)


if __name__ == "__main__":
    main()
