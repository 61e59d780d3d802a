"""VALID, MacridVAE and other models on the sets of the VALID paper, by its protocol.

citeulike-a and Gowalla have the paper's split (Gowalla's train part rebuilt, 67 pairs short): of each user's n items a
tenth, rounded down, is validation and as many are test. On citeulike-a one draw served all users with n items, whose
places in order of id are the same ("id places" of `jaxrec.evaluate.audit`), so that validation and test are different
problems there. `citeulike-a-random` is the same pairs split by the same rule with draws of their own, and so is ml-1m.
Items without a train pair are dropped with their pairs. All items are ranked but those of train: validation's stay
candidates on test, as the paper has it. `ml-1m-users` is strong generalisation: 1,000 users are validation and 1,000
test, whole; four fifths of the pairs of each, at random, are the history that a model sees and need not find. Recall is
hits over relevant items. The best setting of a grid on seed 0's validation, the best epoch on each run's, Recall@20
both; validation looks every third epoch, and training ends when five looks bring no gain. Each run is judged once on
test.

`jaxrec.study` keeps each run in results/valid.jsonl. To repeat a run, remove its line.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

import jaxrec as jr
from benchmarks import _record, _stale
from benchmarks.studies._study_pictures import Pane, picture
from benchmarks.studies._valid_methods import DIM, EVERY, INTERESTS, METHODS, METRIC, PATIENCE, USERS, Part
from jaxrec import study
from jaxrec.data import datasets, splits
from jaxrec.interactions import DataWarning, IdMap

DATA = ("citeulike-a-valid", "citeulike-a-random", "gowalla-valid", "ml-1m", "ml-1m-users")
LIMITS, TRIALS = (None, 12, 25), 30  # epochs that rows end after; settings compared at most
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
    parser = _record.parser("studies.valid", __doc__)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="data sets")
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS), help="what to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the start")
    parser.add_argument("--limit", type=int, choices=LIMITS[1:], help="end every run after so many epochs")
    parser.add_argument("--study", nargs="*", choices=list(STUDIES), help="vary these of VALID (none named: all)")
    parser.add_argument("--table", action="store_true", help="train nothing; table the records there are")
    parser.add_argument("--quick", action="store_true", help="the same code: citeulike-a's 1,000 users, few epochs")
    return parser.parse_args()


@lru_cache(maxsize=1)
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


# ---------------------------------------------------------------------- the study


def after(limit: int | None) -> str:
    """What the name of a row says of the limit."""
    return f", {limit} epochs" if limit else ""


def method_of(data: str, name: str, limit: int | None, what: str = "", value: int | None = None) -> study.Method:
    """A method on a data set, or a point of what is varied: with one block all are MacridVAE, at its default itself."""
    if (what, value) == ("n_blocks", 1):
        return method_of(data, "MacridVAE", limit)
    if what and INTERESTS[what] == value:
        return method_of(data, name, limit)
    method = METHODS[name]
    fit = partial(trained, data, method.train, limit, **({what: value} if what else {}))
    label = f"{name}{f', {what} {value}' * bool(what)}{after(limit)}"
    return study.Method(label, fit, {} if what else method.grid)


def trained(data: str, train: Any, limit: int | None, _: Any, __: Any, key: Any, **setting: Any) -> Any:
    """A run on the whole split, whose histories `jaxrec.study` does not know."""
    jax.clear_caches()
    return train(prepare(data), key, limit=limit, **setting)


def methods(data: str, limits: Sequence[int | None] = LIMITS) -> list[study.Method]:
    """What is compared on a data set: for users held out whole, what knows users by their histories."""
    names = [name for name, method in METHODS.items() if method.by_history or data != "ml-1m-users"]
    return [method_of(data, name, limit) for limit in limits for name in names]


def points(what: str) -> Iterator[tuple[str, int]]:
    """Methods and values of what is varied."""
    names, values = STUDIES[what]
    return itertools.product(names, values)


def evaluate(model: Any, variables: jr.typing.Variables, part: Part, on: str) -> jr.evaluate.Report:
    """The figures on validation or test, and of VALID on test how its interests differ."""
    report = part.judged(model, variables, on, ks=(20, 50))
    looked = looked_into(model, variables, part) if on == "test" and isinstance(model, jr.models.VALID) else {}
    per_user = {figure: report.per_user[figure] for figure in ("recall@20", "recall@50", "ndcg@20", "ndcg@50")}
    return jr.evaluate.Report(report.users, per_user, looked, None, report.protocol)


def looked_into(model: Any, variables: jr.typing.Variables, part: Part) -> dict[str, float]:
    """Of 1,000 users: how alike their prototypes are, and how evenly the users lie on the sphere (figure 5)."""
    users = np.flatnonzero(part.train.user_degrees).astype(np.int32)
    users = np.random.default_rng(0).permutation(users)[:1000]
    found = model.apply(variables, users, method="posterior")
    x = np.array(found.interests).reshape(len(users), -1)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    near = np.exp(-2 * (2 - 2 * x @ x.T))[np.triu_indices(len(users), 1)]
    return {
        "collapse": float(np.mean(jr.models.valid.collapse(found.prototypes))),
        "uniformity": float(np.log(near.mean())),
    }


VARIED = tuple(f", {what} " for what in STUDIES)  # in the names of rows


def tables(records: Sequence[Mapping[str, Any]]) -> dict[str, study.Table]:
    """The table of each data set that has records."""
    found = {}
    for data in (data for data in DATA if any(record["data"] == data for record in records)):
        at = [(what, *point, limit) for what in STUDIES for point in points(what) for limit in LIMITS]
        varied = [method_of(data, name, limit, what, value) for what, name, value, limit in at]
        every = {method.name: method for method in [*methods(data), *varied]}
        found[data] = study.table(list(every.values()), records, data=[data], metric=METRIC, trials=TRIALS)
    return found


def cells(records: Sequence[Mapping[str, Any]]) -> list[_stale.Cell]:
    """What the records compared, and what is compared today."""
    plain = [record for record in records if not any(each in record["method"] for each in VARIED)]
    found = tables(plain)
    grids = {data: {method.name: method.grid for method in methods(data)} for data in found}
    return _stale.of_study(plain, found, grids)


def derived(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the tables of RESULTS.md need: the figures of every row, VALID less MacridVAE, and what was varied."""
    cases, tests, studies = {}, {}, {}
    for data, found in tables(records).items():
        rows = {row.method: case_of(row) for row in found.rows}
        cases |= {f"{data}: {name}": case for name, case in rows.items() if not any(each in name for each in VARIED)}
        for limit in LIMITS:
            pair = [method_of(data, name, limit) for name in ("VALID", "MacridVAE")]
            if {method.name for method in pair} <= set(rows):
                less = study.table(pair, records, data=[data], metric=METRIC, against=pair[1].name)
                tests[f"{data}{after(limit)}"] = paired(less.row(data, pair[0].name))
            if varied := studied(rows, data, limit):
                studies[f"{data}{after(limit)}"] = varied
    return {"cases": cases, "paired": tests, "studies": studies}


def case_of(row: study.Row) -> dict[str, Any]:
    """The figures of a row; "metric" is what validation went by."""
    case = _record.case(row)
    case |= {"metric": case[METRIC], "stderr": case[f"{METRIC}_stderr"]}
    if "setting" in case:
        case |= {"epochs": list(row.epochs), "validation": float(row.valid[METRIC].mean())}
    return case


def paired(row: study.Row) -> dict[str, Any]:
    """A row's difference from the one it is compared with, with its errors over users and over seeds."""
    users, seeds = row.over_users, row.over_seeds
    return {
        "difference": users.difference,
        "users_stderr": users.stderr,
        "seeds_stderr": seeds and seeds.stderr,
        "seeds": seeds.n_users if seeds else 1,
    }


def studied(rows: Mapping[str, dict[str, Any]], data: str, limit: int | None) -> dict[str, Any]:
    """What is varied -> method -> value -> case, of what was varied at all."""
    found: dict[str, Any] = {}
    for what in STUDIES:
        at = {(name, value): method_of(data, name, limit, what, value).name for name, value in points(what)}
        if any(f", {what} " in label and label in rows for label in at.values()):
            for (name, value), label in at.items():
                if label in rows:
                    found.setdefault(what, {}).setdefault(name, {})[str(value)] = rows[label]
    return found


# ---------------------------------------------------------------------- the command


def train_all(options: argparse.Namespace) -> None:
    """Trains what is asked for and not yet recorded."""
    run = partial(study.run, name="valid", folder=_record.RESULTS, metric=METRIC, trials=TRIALS, evaluate=evaluate)
    for data in options.data:
        part, wanted = {data: prepare(data)}, methods(data, [options.limit])
        if options.study is not None:
            each = [(what, *point) for what in options.study or STUDIES for point in points(what)]
            varied = [method_of(data, name, options.limit, what, value) for what, name, value in each]
            run(list({method.name: method for method in varied}.values()), part, seeds=options.seeds)
            continue
        asked = {f"{name}{after(options.limit)}": METHODS[name] for name in options.method}
        for drawn, seeds in ((True, options.seeds), (False, options.seeds[:1])):
            run([each for each in wanted if each.name in asked and asked[each.name].drawn is drawn], part, seeds=seeds)


def quick() -> dict[str, dict[str, Any]]:
    """A fifth of citeulike-a's users, three epochs."""
    part = prepare("citeulike-a-valid")
    kept = (splits.keep_users(x, np.arange(x.n_users) < 1000) for x in (part.train, part.valid, part.test))
    part = Part(part.name, *compacted(splits.Split(*kept)))
    few = [
        study.Method(name, lambda train, valid, key, name=name: METHODS[name].train(part, key, limit=3))
        for name in ("VALID", "MacridVAE")
    ]
    options = {"metric": METRIC, "evaluate": evaluate, "seeds": [0]}
    with tempfile.TemporaryDirectory() as folder:
        found = study.run(few, {"citeulike-a-valid": part}, folder=folder, **options)
    return {f"citeulike-a-valid: {row.method}": case_of(row) for row in found.rows}


def main() -> None:
    """Trains what has no record, draws the pictures and prints the figures."""
    options = arguments()
    facts = {"dim": DIM, "users_a_step": USERS, "every": EVERY, "patience": PATIENCE}
    if options.quick:
        _record.write("studies.valid", quick(), quick=True, data="citeulike-a-valid", **facts)
        return
    if not options.table:
        train_all(options)
    records = _record.runs("valid")
    found = derived(records)
    if found["studies"]:
        picture(_record.RESULTS / "valid.png", found["studies"], PANES)
    prints = {record["data"]: record["fingerprint"].partition("-")[0] for record in records}
    data = {name: prints[name] for name in DATA if name in prints}
    _record.write("studies.valid", found["cases"], quick=False, derived=True, data=data, **facts)


if __name__ == "__main__":
    main()
