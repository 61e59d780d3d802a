"""Does MARS find facets that were planted, and is it better for it than a model of one space of as many dimensions?

Two kinds of planted sets, drawn anew for each seed (`jaxrec.data.synthetic`): `facet_spaces`, where every item has a
place on K spheres and users mix spheres, and `facets`, where every item belongs to one of K clusters. Each user's pairs
are dealt at random to train, validation and test as .8/.1/.1. A model's setting is the one of its grid with the best
NDCG@10 on seed 0's validation part, every run takes its best epoch there, and test is judged once, with train and
validation masked and ties broken at random. All models go through the same number of epochs under the same decay of
their rates, but for MARS's own loss, which takes single positives, and fewer epochs of more steps.

Agreement is the share of users (items) whose facet is the planted one under the best one-to-one matching of facets;
chance is the same for labels that are shuffled. A user's planted facet is the largest of its mixture, the model's the
largest of θ. An item's is the facet that gives its own users most above what it gives all users.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from scipy.optimize import linear_sum_assignment

import jaxrec as jr
from benchmarks import _record
from benchmarks._stale import Cell
from benchmarks.studies._facets_methods import METHODS, SETS, D, K, Planted, Setup, factors, n_steps, planted
from jaxrec.models import MF

SIZE, QUICK = {"n_users": 500, "n_items": 100}, {"n_users": 200, "n_items": 60}
EPOCHS = {"spaces": 150, "clusters": 100}
NARROW = "MF softmax, 9 dimensions"  # as many as were planted
SINGLE = [name for name in METHODS if (name.startswith("MF") or name.endswith("K = 1")) and name != NARROW]
FEW = {"spaces": ["MF softmax", "MARS"], "clusters": ["MF softmax", "MARS from NMF"]}  # of the quick run
WANTED = {
    "spaces": [name for name in METHODS if name != "MARS from NMF"],
    "clusters": ["MF softmax", "MARS, K = 1", "MARS", "MARS from NMF"],
}


# ---------------------------------------------------------------------- agreement


def matched(truth: np.ndarray, found: np.ndarray) -> float:
    """Share of equal labels under the best one-to-one matching of labels."""
    table = np.zeros((K, K))
    np.add.at(table, (truth, found), 1)
    return float(table[linear_sum_assignment(-table)].sum() / len(truth))


def agreement(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """`matched`, and the mean of the same for shuffled labels."""
    rng = np.random.default_rng(0)
    shuffled = [matched(truth, rng.permutation(found)) for _ in range(100)]
    return {"matched": matched(truth, found), "chance": float(np.mean(shuffled))}


def facets_of_items(theta: np.ndarray, u: np.ndarray, v: np.ndarray, train: jr.Interactions) -> np.ndarray:
    """For each item the facet k where the mean of θ_uk u^k·v^k over its users is most above that over all users."""
    weighted, met = theta[..., None] * u, train.to_scipy().T
    count = np.maximum(train.item_degrees, 1)[:, None]
    above = np.stack([met @ weighted[:, k] / count - weighted[:, k].mean(0) for k in range(theta.shape[1])], 1)
    return (above * v).sum(-1).argmax(1)


def facets_found(part: Planted, model: Any, variables: Any) -> dict[str, dict[str, float]]:
    """Agreement of users, and of items where they have a facet."""
    theta, u, v = (np.asarray(x) for x in model.apply(variables, None, None, method="parts"))
    found = {"users": agreement(part.truth.user_mixtures.argmax(1), theta.argmax(1))}
    if hasattr(part.truth, "item_facets"):
        found["items"] = agreement(part.truth.item_facets, facets_of_items(theta, u, v, part.train))
    return found


# ---------------------------------------------------------------------- runs


def judged(part: Planted, model: Any, variables: Any, on: str = "test") -> float:
    """NDCG@10 on test, or on validation."""
    seen, tie = part.train, jax.random.key(0)
    if on == "test":
        seen = part.train.union(part.valid)
    return jr.evaluate.full_ranking(model, variables, seen, getattr(part, on), ks=(10,), key=tie).means["ndcg@10"]


def runs_of(data: str, name: str, parts: list[Planted], epochs: int, short: bool) -> list[dict[str, Any]]:
    """The grid on seed 0, the chosen setting on the others."""
    method = METHODS[name]
    epochs = max(int(epochs * method.share), 1)
    feed = {"epochs": epochs, "every": max(epochs // 20, 1), "progress": False, **method.feed}
    setups = [
        partial(method.setup, part=part, steps=n_steps(part, feed), **method.needs(part, seed))
        for seed, part in enumerate(parts)
    ]
    values = {key: column[-1:] if short else column for key, column in method.grid.items()}
    first, setting = chosen(parts[0], setups[0], jr.train.grid(**values), feed)
    model, _, tx, *_ = setups[0](**setting)  # one for all seeds, so that one compilation serves them
    runs = [first, *(again(part, setups[seed](**setting), tx, seed, feed) for seed, part in enumerate(parts[1:], 1))]
    for seed, (run, part) in enumerate(zip(runs, parts)):
        variables = run.pop("variables")
        run |= {"data": data, "method": name, "seed": seed, "grid": method.grid, "setting": setting}
        run |= {"fingerprint": part.train.fingerprint(), "commit": _record.commit()}
        run |= {"test": judged(part, model, variables)}
        run |= facets_found(part, model, variables) if getattr(model, "n_facets", 1) > 1 else {}
        if not short:
            _record.keep("facets", run, "data", "method", "seed")
        print(f"{data}, {name}: {run}", flush=True)
    return runs


def chosen(part: Planted, setup: Setup, settings: Mapping[str, Any], feed: Mapping[str, Any]) -> tuple[dict, dict]:
    """The run that is best on validation, and its setting."""
    model = setup(**{key: column[0] for key, column in settings.items()}).model
    rest = {"validate": partial(validation, part, model), "select": "ndcg@10", "at_once": 1, **feed}
    found = jr.train.sweep(jax.random.split(jax.random.key(0), 1), setup, part.train, settings=settings, **rest)
    place = found.best("ndcg@10")
    lane = found.lanes[place]
    run = {"epoch": lane.epoch, "valid": lane.figures["ndcg@10"], "variables": found.state(place).variables}
    return run, {key: float(value) for key, value in lane.setting.items()}


def again(part: Planted, recipe: jr.train.Recipe, tx: Any, seed: int, feed: Mapping[str, Any]) -> dict[str, Any]:
    """A run of one setting, up to its best epoch."""
    state = jr.train.init(jax.random.key(seed), recipe.model, tx, parameters=recipe.parameters)
    rest = {"validate": partial(validation, part, recipe.model), **feed}
    rest["stopping"] = jr.train.EarlyStopping("ndcg@10", patience=feed["epochs"])
    state, history = jr.train.fit(state, recipe.objective, tx, part.train, **rest)
    best = max(zip(*reversed(history.column("ndcg@10"))))
    return {"epoch": best[1], "valid": best[0], "variables": state.variables}


def validation(part: Planted, model: Any, variables: Any) -> dict[str, float]:
    """What validation sees."""
    return {"ndcg@10": judged(part, model, variables, "valid")}


def untrained(parts: list[Planted], data: str) -> dict[str, list[dict[str, Any]]]:
    """The rankers that learn nothing, the one that knows the truth, and for clusters the factorisation alone."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed, part in enumerate(parts):
        rankers = {**_record.rankers(part.train, seed), "the planted truth": part.oracle}
        for name, ranker in rankers.items():
            rows.setdefault(name, []).append({"test": judged(part, *ranker)})
        if data == "clusters":
            tables = factors(part, seed)
            model, variables = MF(part.train.n_users, part.train.n_items, dim=K), {"params": tables}
            labels = [np.asarray(tables[name]).argmax(1) for name in ("user", "item")]
            truth = part.truth.user_mixtures.argmax(1), part.truth.item_facets
            found = {"users": agreement(truth[0], labels[0]), "items": agreement(truth[1], labels[1])}
            found["test"] = judged(part, model, variables)
            rows.setdefault("NMF, K dimensions", []).append(found)
    return rows


def spread(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard error over seeds."""
    return float(np.mean(values)), _record.stderr(values)


def case_of(runs: list[dict[str, Any]], others: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means over seeds, and the differences from other models, paired by seed."""
    case: dict[str, Any] = dict(zip(("metric", "stderr"), spread([run["test"] for run in runs])))
    for name, other in others.items():
        differences = spread([run["test"] - reference["test"] for run, reference in zip(runs, other)])
        case |= dict(zip((name, f"{name}_stderr"), differences))
    for side in ("users", "items"):
        if side in runs[0]:
            for name in ("matched", "chance"):
                case[f"{side}_{name}"], case[f"{side}_{name}_stderr"] = spread([run[side][name] for run in runs])
    if "setting" in runs[0]:
        case |= {"setting": runs[0]["setting"], "epochs": [run["epoch"] for run in runs]}
        case["valid"] = spread([run["valid"] for run in runs])[0]
    return case | {"seeds": len(runs)}


def cases_of(data: str, rows: Mapping[str, list[dict[str, Any]]], parts: list[Planted]) -> tuple[str, dict[str, Any]]:
    """The single space of equal dimensions that is best on test, and the table of a set."""
    best = max((name for name in rows if name in SINGLE), key=lambda name: np.mean([r["test"] for r in rows[name]]))
    others = {"difference": rows[best]} | ({"narrow_difference": rows[NARROW]} if NARROW in rows else {})
    rows = untrained(parts, data) | rows
    return best, {f"{data}: {name}": case_of(runs, others) for name, runs in rows.items()}


def cells(records: Sequence[Mapping[str, Any]]) -> Iterator[Cell]:
    """What the records in results/facets.jsonl compared, and what is compared today."""
    for data, name in dict.fromkeys((record["data"], record["method"]) for record in records):
        runs = [record for record in records if (record["data"], record["method"]) == (data, name)]
        grid = jr.study.settings(METHODS[name].grid) if name in WANTED[data] else ()
        settings = [run["setting"] for run in runs]
        yield Cell(data, name, jr.study.settings(runs[0]["grid"]), grid, settings[0], settings)


def main() -> None:
    """Trains all, and writes the table."""
    parser = _record.parser("studies.facets", __doc__)
    parser.add_argument("--seeds", type=int, default=5, help="sets of each kind")
    parser.add_argument("--table", action="store_true", help="train nothing; table the runs of the record there is")
    parser.add_argument("--quick", action="store_true", help="the same code: one small set, few epochs, no grids")
    options = parser.parse_args()
    cases, fingerprints, best = {}, {}, {}
    for data in SETS:
        seeds = len(_record.runs("facets", data=data, method="MARS")) if options.table else options.seeds
        parts = [planted(data, seed, QUICK if options.quick else SIZE) for seed in range(1 if options.quick else seeds)]
        names = (FEW if options.quick else WANTED)[data]
        epochs = 5 if options.quick else EPOCHS[data]
        train = partial(runs_of, data, parts=parts, epochs=epochs, short=options.quick)
        found = {n: _record.runs("facets", data=data, method=n) if options.table else train(n) for n in names}
        best[data], table = cases_of(data, found, parts)
        cases |= table
        fingerprints |= {f"{data} {seed}": part.train.fingerprint() for seed, part in enumerate(parts)}
    facts = {"epochs": EPOCHS, "size": SIZE, "facets": K, "dim": D, "single_best": best}
    _record.write("studies.facets", cases, quick=options.quick, data=fingerprints, **facts)


if __name__ == "__main__":
    main()
