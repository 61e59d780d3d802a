"""RG2, WRMF and iALS against losses trained by SGD, by the RG2 paper's protocol: matrix factorisation, 64 dimensions.

Ratings of 3 and more (lastfm-2k: all), every user and item with 5 pairs at least; each user's pairs are dealt at random
to train, validation and test as .8/.1/.1, anew for each seed. A method's hyperparameters are those of its grid with the
best NDCG@10 on seed 0's validation part; every run takes the sweep or epoch that is best there, and is judged once on
test, with train and validation masked. Gowalla has the LightGCN split, Recall@20, and only the solvers: a tenth of its
train part is validation, and the chosen setting is trained again on all of it for as many sweeps.

MovieLens-10M, Electronics and Steam, the paper's sets, are asked for by name (`--data`), where `jaxrec.data.datasets`
finds them. The paper says that ratings below 3 are dropped from Electronics, but its counts are those of all ratings.

Each run leaves its validation curve, with the seconds, in results/rg2.jsonl; the table and the picture are made of all
that stand there.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxrec as jr
from benchmarks import _record
from benchmarks._rg2_methods import DIM, METHODS, PATIENCE, SOLVERS, Part
from benchmarks._stale import Cell, same
from jaxrec.data import datasets, splits

MINIMUM = {"ml-100k": 3.0, "ml-1m": 3.0, "lastfm-2k": None, "gowalla": None}  # ratings that count
MINIMUM |= {"ml-10m": 3.0, "amazon-electronics-5core": None, "steam": None}  # the paper's, where they can be had
DEFAULT = ["ml-100k", "ml-1m", "lastfm-2k", "gowalla"]
SMALL, BATCHES = ("ml-100k", "lastfm-2k"), (256, 1024)  # groups of up to 16 pairs of a user: small sets, large sets


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rg2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=list(MINIMUM), default=DEFAULT, help="data sets")
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS), help="what to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of split and start")
    parser.add_argument("--again", action="store_true", help="repeat what stands in results/rg2.jsonl")
    parser.add_argument("--table", action="store_true", help="train nothing; table the records there are")
    parser.add_argument("--quick", action="store_true", help="the same code: ml-100k, RG2 and softmax, 1 seed")
    return parser.parse_args()


def prepare(data: str, seed: int) -> Part:
    """The split of one seed."""
    if data == "gowalla":
        found = datasets.load(data)
        kept = np.random.default_rng(seed).random(found.train.n_pairs) >= 0.1
        return Part(found.train.select(kept), found.train.select(~kept), found.test)
    found = datasets.load(data, minimum=MINIMUM[data])
    whole, _ = splits.compact(splits.k_core(found.interactions), found.id_map)
    whole = jr.Interactions.from_pairs(*whole.pairs())  # without weights: plays count once
    parts = splits.ratio(whole, order=partial(splits.random_order, key=jax.random.key(seed)))
    return Part(*parts, BATCHES[data not in SMALL])


def settings_of(data: str, name: str) -> list[dict[str, float]]:
    """Every setting of a method's grid, the smaller one where it has one and the set is large."""
    method = METHODS[name]
    return _record.settings((None if data in SMALL else method.few) or method.grid)


def cells(records: Sequence[Mapping[str, Any]]) -> Iterator[Cell]:
    """What the records in results/rg2.jsonl compared, and what is compared today."""
    selections = {(record["data"], record["method"]): record for record in records if "tried" in record}
    runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {where: [] for where in selections}
    for record in records:
        if "seed" in record:
            runs.setdefault((record["data"], record["method"]), []).append(record["setting"])
    for (data, name), ran in runs.items():
        selection = selections.get((data, name), {"tried": [], "setting": None})
        grid = settings_of(data, name) if name in METHODS else ()
        yield Cell(data, name, [setting for setting, _ in selection["tried"]], grid, selection["setting"], ran)


def curve_of(history: jr.train.History, metric: str) -> list[list[float]]:
    """[epoch, seconds of training so far, metric] wherever it was validated."""
    seconds, points = 0.0, []
    for record in history.records:
        seconds += record["seconds"]
        if metric in record:
            points.append([record["epoch"], seconds if math.isfinite(seconds) else None, record[metric]])
    return points


def selected(data: str, name: str, metric: str, again: bool) -> dict[str, Any]:
    """The setting that is best on seed 0's validation part, from its record of the same grid or by comparing now."""
    settings = settings_of(data, name)
    for record in _record.runs("rg2", data=data, method=name, seed=None):
        if not again and same(settings, [setting for setting, _ in record["tried"]]):
            return record["setting"]
    method, part = METHODS[name], prepare(data, 0)
    tried = []
    for setting in settings:
        _, _, history = method.train(part, 0, metric, sweeps=None, **setting)
        tried.append([setting, max(curve_of(history, metric), key=lambda point: point[2])])
    best = max(tried, key=lambda pair: pair[1][2])
    record = {"data": data, "method": name, "setting": best[0], "metric": metric, "tried": tried}
    _record.keep("rg2", record | {"commit": _record.commit()}, "data", "method", "seed")
    print(f"{data}, {name}: {best[0]} ({metric} {best[1][2]:.4f} on validation)", flush=True)
    return best[0]


def run(data: str, name: str, seed: int, setting: dict[str, float], metric: str) -> dict[str, Any]:
    """One run: what validation saw, and its end's figures on test."""
    part, method = prepare(data, seed), METHODS[name]
    model, variables, history = method.train(part, seed, metric, sweeps=None, **setting)
    curve = curve_of(history, metric)
    masked = part.train.union(part.valid)
    if data == "gowalla":
        best = int(max(curve, key=lambda point: point[2])[0])
        part = part._replace(train=masked)
        model, variables, _ = method.train(part, seed, metric, sweeps=best, **setting)
    report = jr.evaluate.full_ranking(model, variables, masked, part.test, ks=(10, 20))
    return {
        "data": data,
        "fingerprint": masked.fingerprint(),
        "method": name,
        "seed": seed,
        "setting": setting,
        "metric": metric,
        "curve": curve,
        "test": {key: report.means[key] for key in ("mrr@10", "ndcg@10", "recall@20", "ndcg@20")},
        "commit": _record.commit(),
    }


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """What there is to train: on Gowalla solvers alone, LightGCN on ml-1m alone."""
    for data, name in itertools.product(options.data, options.method):
        if (data != "gowalla" or name in SOLVERS) and (data == "ml-1m" or not name.startswith("LightGCN")):
            yield data, name


def train_all(options: argparse.Namespace) -> None:
    """Trains what is asked for and not yet recorded."""
    for data, name in wanted(options):
        metric = "recall@20" if data == "gowalla" else "ndcg@10"
        setting = selected(data, name, metric, options.again)
        jax.clear_caches()  # so that the seconds of the first run hold its compilation
        for seed in options.seeds:
            if options.again or not _record.runs("rg2", data=data, method=name, seed=seed, setting=setting):
                record = run(data, name, seed, setting, metric)
                _record.keep("rg2", record, "data", "method", "seed")
                print(
                    f"{data}, {name}, seed {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in record["test"].items()),
                    flush=True,
                )
        jax.clear_caches()


def trivial(data: str, part: Part) -> dict[str, dict[str, float]]:
    """The rankers that learn nothing."""
    masked = part.train.union(part.valid)
    rankers = {
        "random": jr.models.random(jax.random.key(0), masked.n_items),
        "item id": jr.models.item_id(masked.n_items),
        "popularity": jr.models.popularity(masked),
    }
    return {
        name: case_of([{"test": jr.evaluate.full_ranking(*ranker, masked, part.test, ks=(10, 20)).means}], data)
        for name, ranker in rankers.items()
    }


def case_of(records: list[dict[str, Any]], data: str) -> dict[str, Any]:
    """Means over seeds; "metric" is what validation went by."""
    names = {"metric": "recall@20" if data == "gowalla" else "ndcg@10"}
    names |= {name: name for name in ("mrr@10", "ndcg@10", "recall@20", "ndcg@20")}
    case = {}
    for label, name in names.items():
        values = np.array([record["test"][name] for record in records])
        stderr = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        case |= {label: float(values.mean()), "stderr" if label == "metric" else f"{label}_stderr": stderr}
    curves = [record["curve"] for record in records if "curve" in record]
    if curves:
        best = [max(curve, key=lambda point: point[2]) for curve in curves]
        case |= {"setting": records[0]["setting"], "epochs": [point[0] for point in best], "seeds": len(records)}
    return case


def records_of(data: str, name: str) -> list[dict[str, Any]]:
    """The runs of a method, by seed."""
    found = [record for record in _record.runs("rg2", data=data, method=name) if "seed" in record]
    return sorted(found, key=lambda record: record["seed"])


def table() -> tuple[dict[str, dict[str, Any]], dict[str, str], dict[str, tuple[int, int]]]:
    """Cases of all records, with the trivial rankers; fingerprints of the data; and their users and items."""
    cases, fingerprints, sizes = {}, {}, {}
    for data in MINIMUM:
        rows = {name: runs for name in METHODS if (runs := records_of(data, name))}
        if not rows:
            continue
        part = prepare(data, 0)
        cases |= {f"{data}: {name}": case for name, case in trivial(data, part).items()}
        for name, runs in rows.items():
            cases[f"{data}: {name}"] = case_of(runs, data)
        fingerprints[data] = next(iter(rows.values()))[0]["fingerprint"]
        sizes[data] = part.train.n_users, part.train.n_items
    return cases, fingerprints, sizes


def picture() -> None:
    """NDCG@10 on validation against seconds of training, seed 0: results/rg2.png."""
    import matplotlib.pyplot as plt

    sets = [data for data in MINIMUM if data != "gowalla" and any(records_of(data, name) for name in METHODS)]
    figure, panes = plt.subplots(1, len(sets), figsize=(5.5 * len(sets), 4), layout="constrained", squeeze=False)
    for pane, data in zip(panes[0], sets):
        for place, name in enumerate(METHODS):
            runs = records_of(data, name)
            if not runs:
                continue
            _, seconds, values = np.array(runs[0]["curve"], np.float64).T
            look = {"color": plt.cm.tab20(place), "label": name}
            if np.isfinite(seconds).all():
                pane.semilogx(seconds, values, marker=".", **look)
            else:
                pane.axhline(values[0], linestyle=":", **look)
        pane.set(title=data, xlabel="seconds of training, compilation included", ylabel="NDCG@10 on validation")
        pane.legend(fontsize=7)
    figure.savefig(_record.RESULTS / "rg2.png", dpi=110)


def quick() -> dict[str, dict[str, Any]]:
    """One setting, one seed, ml-100k."""
    chosen = {
        "RG2": {"regularization": 0.1},
        "RG2, alpha tuned": {"alpha": 0.1, "regularization": 0.1},
        "iALS": {"unobserved_weight": 0.1, "regularization": 0.03},
        "softmax": {"learning_rate": 0.01, "l2": 1e-5},
    }
    return {
        f"ml-100k: {name}": case_of([run("ml-100k", name, 0, setting, "ndcg@10")], "ml-100k")
        for name, setting in chosen.items()
    }


def main() -> None:
    """Trains, and writes the table."""
    options = arguments()
    if options.quick:
        cases, fingerprints, sizes = quick(), "ml-100k", {}
    else:
        if not options.table:
            train_all(options)
        cases, fingerprints, sizes = table()
        picture()
    _record.write("rg2", cases, quick=options.quick, data=fingerprints, sizes=sizes, dim=DIM, patience=PATIENCE)


if __name__ == "__main__":
    main()
