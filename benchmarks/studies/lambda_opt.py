"""λOpt against one fixed λ and other baselines, for matrix factorisation with BPR.

There are 64 dimensions and one negative for each positive. The latest 20 % of each user's pairs are
test, and of the rest the latest 25 % are validation; both numbers are rounded down. lastfm-2k has
no timestamps, so its order is random. Every pair counts once. λOpt trains its coefficients on
validation, so the same pairs cannot choose settings too. A random half of each user's validation
pairs, called learn, trains the coefficients. The other half, called select, chooses the setting of
each method (with seed 0) and the epoch of each run, by NDCG@50 of the full ranking. λOpt sees the
pairs of learn, and other methods do not; therefore one fixed λ is also trained on train and learn
("on learn too").

The optimiser is Adam. Its learning rate starts at 0.01 and falls to 0 by half a cosine. Tables are
drawn from N(0, 0.1²), unless the row says N(0, 1). Every method has twelve settings: four values,
of one or two hyperparameters, with each of three numbers of epochs; the last epoch is evaluated. So
a star at the number of epochs says that more may be better. λOpt takes as many steps of Λ as of Θ,
with gradients clipped to length 100 for both, as in the script for MovieLens-1M; "clip .001" is
that of the script for Amazon. A row with the mark ° is older: its learning rate was constant,
nothing was clipped, the best of twelve validations was evaluated, it had 60 epochs on ml-100k, 30
on movielens-small and lastfm-2k and 20 on ml-1m, and one to nine settings.

DI shares the coefficients of users, and DU those of items. "users fixed" and "items fixed" keep the
shared ones at one value, so that only the others are learned, and "from one λ" starts all
coefficients at this value ("start"). If DI gains with users fixed, what fails is to learn one
coefficient for all users. The pictures of one fixed λ are of the middle number of epochs, with more
values of λ; a third of the items has a third of the training pairs.

AUC, Recall (hit ratio) and NDCG are computed as in λOpt's code, which ranks each test item separately
among the items that its user is not known to have. "full" is the full ranking. "search" is the number
of settings compared with seed 0, and the CPU seconds of all of them. Paired tests are in NDCG@50 as in
λOpt's code. Differences in the column are paired by seed; there are none between an older and a later
row. Those of LightGCN and facets are from their own fixed λ. Facets are the projected facets of MARS
without the sphere, on which a penalty would have no effect. The poster reports +0.8 % AUC, +21.7 %
HR@50 and +29.6 % NDCG@50 for DUI over one λ on MovieLens-10M.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxrec as jr
from benchmarks import _record
from benchmarks.studies import _lambda_opt as parts
from benchmarks.studies._command import main
from benchmarks.studies._lambda_opt import GROUPS, METRIC, PAPER, PARTS, Halves, Kind, Part, evaluate, prepare
from benchmarks.studies._plots import stderr
from benchmarks.studies._results import EARLIER, less, mean_of, records_of
from benchmarks.studies._study import Study, by_epochs, swept
from jaxrec import study

# Positives per step, and numbers of epochs to choose from.
BATCH = {"ml-100k": 1024, "movielens-small": 1024, "lastfm-2k": 1024, "ml-1m": 4096}
EPOCHS = dict.fromkeys(BATCH, (20, 40, 80)) | {"ml-100k": (40, 80, 160), "ml-1m": (30, 60, 120)}
ONE, RATES = {"regularization": (1e-3, 3e-3, 1e-2, 3e-2)}, {"lambda_rate": (3e-4, 1e-3, 3e-3, 1e-2)}
STARTED = {"lambda_rate": (3e-4, 3e-3), "start": (3e-3, 1e-2)}
DESCENT, ADVERSARY = {"lambda_rate": (1e-2, 1e-1)}, {"epsilon": (0.1, 0.5), "regularization": (0.0, 1e-2)}
NORMAL, DRAWS = partial(parts.factors, scale=1.0), {"draw": tuple(range(4))}
learned = parts.learned
KINDS = {
    "MF, one λ": Kind(parts.fixed, ONE),
    "MF, one λ, on learn too": Kind(parts.fixed, ONE, whole=True),
    "SGDA": Kind(parts.sgda, DESCENT | {"learning_rate": (50.0, 200.0)}),
    "AMF": Kind(parts.amf, ADVERSARY),
    "NeuMF": Kind(parts.neumf, {"learning_rate": (3e-4, 1e-3, 3e-3, 1e-2)}, model=parts.tower),
    "random D": Kind(partial(parts.random, granularity="D"), DRAWS),
    "random DUI": Kind(partial(parts.random, granularity="DUI"), DRAWS),
    **{f"λOpt {name}": Kind(partial(learned, granularity=name), RATES) for name in ("D", "DU", "DI", "DUI")},
}
STUDIES = {  # changes that may explain the results, one at a time, and other models
    "λOpt DUI, exact": Kind(partial(learned, scope="exact"), RATES),
    "λOpt DI, exact": Kind(partial(learned, granularity="DI", scope="exact"), RATES),
    "λOpt DUI, clip .001": Kind(partial(learned, clip=1e-3), RATES),
    "λOpt DI, users fixed": Kind(partial(learned, granularity="DI", still="user"), STARTED),
    "λOpt DU, items fixed": Kind(partial(learned, granularity="DU", still="item"), STARTED),
    "λOpt DI, from one λ": Kind(partial(learned, granularity="DI"), STARTED),
    "λOpt DUI, from one λ": Kind(learned, STARTED),
    "MF, one λ, N(0, 1)": Kind(parts.fixed, ONE, model=NORMAL),
    "λOpt DUI, N(0, 1)": Kind(learned, RATES, model=NORMAL),
    "λOpt DI, N(0, 1)": Kind(partial(learned, granularity="DI"), RATES, model=NORMAL),
    "LightGCN, one λ": Kind(parts.fixed, ONE, model=parts.graph),
    "LightGCN, λOpt DUI": Kind(learned, RATES, model=parts.graph),
    "facets, one λ": Kind(parts.fixed, ONE, model=parts.facets),
    "facets, λOpt DUI": Kind(learned, RATES, model=parts.facets),
}
FIXED_SIDE = ("λOpt DI, users fixed", "λOpt DU, items fixed", "λOpt DI, from one λ")
EXTRA = {"ml-100k": tuple(STUDIES), "ml-1m": ("λOpt DI, exact", *FIXED_SIDE)}  # the data sets on which these run
BEST_FIXED, SENSITIVE = "MF, one λ", "MF, one λ, wide grid"  # the latter is for the figure only
WIDE = {"regularization": (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2, 1e-1, 3e-1)}


def trained(kind: Kind, batch_size: int, train: Any, valid: Halves, key: Any, settings: Sequence[Any]) -> list[Any]:
    """Trains settings; those with the same number of epochs in one sweep."""
    jax.clear_caches()
    whole = train.union(valid.learn) if kind.whole else train
    model = (kind.model or parts.factors)(Part(whole, valid.learn, 1, batch_size))
    known = train.union(valid.learn)
    judge = lambda v: jr.evaluate.full_ranking(model, v, known, valid.select, ks=(50,)).means  # noqa: E731

    def together(epochs: int, settings: Sequence[Any]) -> list[Any]:
        setup = partial(kind.make, Part(whole, valid.learn, epochs, batch_size), model=model)
        options = {"epochs": epochs, "every": epochs, "batch_size": batch_size, "validate": judge}
        return swept(model, setup, whole, key, settings, **options)

    return by_epochs(settings, together)


def methods(data: str, lengths: Sequence[int] | None = None) -> list[study.Method]:
    """Returns the methods of a data set."""

    def popular(train: Any, valid: Halves, key: Any) -> Any:
        return (*jr.models.popularity(train.union(*valid)), None)

    found = [study.Method("popularity", popular)]
    for name, kind in (KINDS | {name: STUDIES[name] for name in EXTRA.get(data, ())}).items():
        grid = {"epochs": lengths or EPOCHS[data], **kind.grid}
        found.append(study.Method(name, grid=grid, fit_all=partial(trained, kind, BATCH[data])))
    grid = {"epochs": EPOCHS[data][1:2], **WIDE}
    found.append(study.Method(SENSITIVE, grid=grid, fit_all=partial(trained, KINDS[BEST_FIXED], BATCH[data])))
    return found


def older(data: str) -> dict[str, Mapping[str, Sequence[float]]]:
    """Returns the grids of the older rows, with constant rates and fewer epochs."""
    small = data == "ml-100k"
    some, few = {"regularization": (1e-3, 3e-3, 1e-2, 3e-2)}, {"regularization": (0.0, 1e-3, 1e-2)}
    one = {"regularization": (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2, 1e-1)} if small else some
    rates = {"lambda_rate": (1e-4, 1e-3, 1e-2, 3e-2) if small else (1e-3, 1e-2)}
    wide = {"learning_rate": (10.0, 50.0, 200.0), "lambda_rate": (1e-3, 1e-2, 1e-1)}
    narrow = {"learning_rate": (50.0, 200.0), "lambda_rate": (1e-2, 1e-1)}
    found = {name: rates for name in (*KINDS, *STUDIES) if "λOpt" in name}
    found |= {name: {"draw": tuple(range(8 if small else 4))} for name in ("random D", "random DUI")}
    found |= {BEST_FIXED: one, "MF, one λ, on learn too": one, "MF, one λ, N(0, 1)": some}
    found |= dict.fromkeys(("LightGCN, one λ", "facets, one λ"), few)
    found |= {name: {"lambda_rate": (1e-3,)} for name in ("LightGCN, λOpt DUI", "facets, λOpt DUI")}
    return found | {
        "SGDA": wide if small else narrow,
        "AMF": {"epsilon": (0.1, 0.5), "regularization": (0.0, 1e-2)},
        "NeuMF": {"learning_rate": (1e-3, 3e-3)},
    }


# ---------------------------------------------------------------------- tables


def twin(name: str) -> str:
    """Returns the name of the fixed λ with which a method is compared."""
    return name.replace("λOpt DUI", "one λ") if name.partition(",")[0] in ("LightGCN", "facets") else BEST_FIXED


def alike(row: study.Row, other: study.Row) -> bool:
    """Says whether both rows have present grids, or both earlier ones."""
    return (EARLIER in row.marks) == (EARLIER in other.marks)


def columns(data: str, rows: Mapping[str, study.Row]) -> dict[str, list[str]]:
    """Returns the columns for the difference from one λ and the cost of the search."""
    title = "NDCG@50 minus one λ"
    cells: dict[str, list[str]] = {title: [], "search": []}
    for name, row in rows.items():
        compared = row.setting and not name.endswith("one λ") and twin(name) in rows and alike(row, rows[twin(name)])
        cells[title].append(mean_of(less(row, rows[twin(name)], METRIC), sign="+") if compared else "")
        spent = row.search_seconds if row.trials > 1 else row.cpu_seconds[0]
        cells["search"].append(f"{row.trials}" + (f", {spent:.0f} s" if spent else "") if row.setting else "")
    return cells


def gains(tables: Any, records: Any) -> str:
    """Returns sentences with the relative gains of DUI over one λ."""
    said = []
    for data, rows in tables.items():
        if {BEST_FIXED, "λOpt DUI"} <= set(rows) and alike(rows[BEST_FIXED], rows["λOpt DUI"]):
            parts = []
            names = ("AUC", "HR@50", "HR@100", "NDCG@50", "NDCG@100")
            both = rows[BEST_FIXED].values.keys() & rows["λOpt DUI"].values.keys()
            for metric, label in ((m, n) for m, n in zip(PAPER, names) if m in both):
                one, difference = rows[BEST_FIXED].values[metric], less(rows["λOpt DUI"], rows[BEST_FIXED], metric)
                error = f" ± {error / one.mean():.1%}" if (error := stderr(difference)) else ""
                parts.append(f"{difference.mean() / one.mean():+.1%}{error} {label}")
            marks = "".join(sorted({*rows[BEST_FIXED].marks, *rows["λOpt DUI"].marks}))
            said.append(f"Relative gain of DUI over one λ on {data}: {', '.join(parts)}{marks and f' ({marks})'}.")
    return "\n\n".join(said)


TRAJECTORIES = _record.RESULTS / "lambda_opt_trajectories.jsonl"


FOLLOWED = ("λOpt DUI", "λOpt DI")


def follow(data: str) -> None:
    """Records how Λ changes during the chosen runs of DUI and DI."""
    records, done = records_of("lambda_opt"), study.read(TRAJECTORIES)
    rows = {row.method: row for row in study.table(methods(data), records, data=[data], metric=METRIC).rows}
    for name in FOLLOWED:
        setting = rows[name].setting if name in rows else {}
        if "epochs" in setting and not any(known(each) == (data, name, setting) for each in done):
            study.append(TRAJECTORIES, followed(data, name, setting))


def known(path: Mapping[str, Any]) -> tuple[str, str, Mapping[str, float]]:
    """Returns the data, the method and the setting of a recorded path; older ones are of DUI."""
    return path["data"], path.get("method", "λOpt DUI"), path.get("setting", {})


def followed(data: str, name: str, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Trains a method with seed 0, and returns the mean Λ of groups after each epoch.

    Users and items are grouped by their number of training pairs. If a side shares its
    coefficients, all its groups have the same mean.
    """
    split = prepare(data, 0)
    rest = dict(setting)
    part = Part(split.train, split.valid.learn, rest.pop("epochs"), BATCH[data])
    recipe = KINDS[name].make(part, model=parts.factors(part), **rest)
    degrees = {"user": np.asarray(part.train.user_degrees), "item": np.asarray(part.train.item_degrees)}
    groups = {side: np.array_split(np.argsort(d, kind="stable"), GROUPS) for side, d in degrees.items()}
    found: dict[str, Any] = {"data": data, "method": name, "setting": setting, "user": [], "item": []}
    found |= {"commit": study.commit(_record.RESULTS), "steps": part.steps // part.epochs}
    found["degrees"] = {side: [float(degrees[side][group].mean()) for group in groups[side]] for side in groups}

    def each(state: jr.train.State, _: Any) -> None:
        for side, table in state.opt_state.lambdas.items():
            own = np.asarray(table)
            means = [own[group if len(own) > 1 else slice(None)].mean() for group in groups[side]]
            found[side].append([float(mean) for mean in means])

    state = jr.train.init(jax.random.split(jax.random.key(0), 1)[0], recipe.model, recipe.tx)
    options = {"epochs": part.epochs, "batch_size": part.batch_size, "progress": False}
    jr.train.fit(state, recipe.objective, recipe.tx, part.train, callbacks=[each], **options)
    return found


def panes(tables: Any, records: Any) -> list[list[dict[str, Any]]]:
    """Returns a row of panes for each data set: paths of Λ, sensitivity to one λ, and gains of DUI."""
    return [[*paths(data), *sensitivity(data, records), *gained(data, rows)] for data, rows in tables.items()]


def paths(data: str) -> list[dict[str, Any]]:
    """Returns panes of the mean Λ during training: that of users and items of DUI, and of users of DI."""
    latest, found = {known(each)[1]: each for each in study.read(TRAJECTORIES) if each["data"] == data}, []
    for name, side in ((FOLLOWED[0], "user"), (FOLLOWED[0], "item"), (FOLLOWED[1], "user")):
        if path := latest.get(name):
            steps, shared = path["steps"] * np.arange(1, len(path[side]) + 1), name == FOLLOWED[1]
            labels = ["all users"] if shared else [f"{d:.0f} pairs" for d in path["degrees"][side]]
            lines = {label: (steps, values) for label, values in zip(labels, np.array(path[side]).T)}
            found.append({"title": f"{data}: mean Λ of {side}s, {name}", "xlabel": "step", "lines": lines})
    return found


def sensitivity(data: str, records: Any) -> list[dict[str, Any]]:
    """Returns panes of NDCG@50 against one fixed λ (figures 2 and 3), for groups if they are recorded.

    Values of groups are shares of the group's best.
    """
    trials = [r for r in records if (r["data"], r["on"]) == (data, "valid") and r["valid"][METRIC] is not None]
    grouped = [r for r in trials if r["method"] == SENSITIVE]
    tried = grouped or [r for r in trials if r["method"] == BEST_FIXED and "epochs" not in r["setting"]]
    best = {run["setting"]["regularization"]: run["valid"] for run in tried}
    places, found = [f"{value:g}" for value in sorted(best)], []
    sides = [(f"{METRIC} of {side} with {name} pairs", side, name) for side in ("users", "items") for name in PARTS]
    for side in ("users", "items") if grouped else ():
        lines = {}
        for metric, name in ((metric, name) for metric, own, name in sides if own == side):
            values = np.array([best[value].get(metric, np.nan) for value in sorted(best)])
            lines[f"{side}, {name} pairs"] = (places, values / np.nanmax(values))
        found.append({"title": f"{data}: one λ", "xlabel": "λ", "ylabel": "share of the best NDCG@50", "lines": lines})
    if not grouped:
        lines = {BEST_FIXED: (places, [best[value][METRIC] for value in sorted(best)])}
        found.append({"title": f"{data}: one fixed λ", "xlabel": "λ", "ylabel": "NDCG@50 on select", "lines": lines})
    return found


def gained(data: str, rows: Mapping[str, study.Row]) -> list[dict[str, Any]]:
    """Returns a pane of the gain of DUI over one λ, for fifths of the users."""
    if not {BEST_FIXED, "λOpt DUI"} <= set(rows) or not alike(rows[BEST_FIXED], rows["λOpt DUI"]):
        return []
    metrics = [f"ndcg@50 of fifth {fifth}" for fifth in range(1, GROUPS + 1)]
    more = [less(rows["λOpt DUI"], rows[BEST_FIXED], metric) for metric in metrics]
    pairs = [f"{rows[BEST_FIXED].values[f'pairs of fifth {n}'][0]:.0f}" for n in range(1, GROUPS + 1)]
    lines = {"DUI": (pairs, [d.mean() for d in more], [stderr(d) or np.nan for d in more])}
    titles = {"title": f"{data}: gain of DUI over one λ", "xlabel": "mean pairs of fifths", "ylabel": "NDCG@50"}
    return [titles | {"lines": lines}]


def headlines(tables: Any, records: Any) -> list[str]:
    """Returns the lines for the highlights."""
    names, said = ("λOpt DUI", BEST_FIXED, "MF, one λ, on learn too"), []
    for data in ("ml-100k", "ml-1m"):
        rows = tables[data]
        learned, fixed, too = (f"{rows[name].values[METRIC].mean():.4f}{rows[name].marks}" for name in names)
        seeds = len(rows["λOpt DUI"].seeds)
        said.append(
            f"Learned regularisation on {data}, NDCG@50 as in λOpt's code, {seeds} seed{'s' * (seeds > 1)}: λOpt "
            f"{learned}, one fixed λ {fixed}, and one fixed λ that also trains on the validation pairs which train "
            f"λOpt's coefficients {too}."
        )
    return said


def quick() -> tuple[list[study.Method], dict[str, Any]]:
    """Returns the shortened run: ml-100k, one λ and DI with fixed users, 4 epochs, one setting."""
    few = [each for each in methods("ml-100k", (4,)) if each.name in (BEST_FIXED, FIXED_SIDE[0])]
    few = [each._replace(grid={name: values[:1] for name, values in each.grid.items()}) for each in few]
    return few, {"ml-100k": partial(prepare, "ml-100k")}


STUDY = Study(
    name="lambda_opt",
    title="Regularisation that is learned",
    about=__doc__,
    methods={data: partial(methods, data) for data in BATCH},
    split=lambda data: partial(prepare, data),
    evaluate=evaluate,
    metric=lambda data: METRIC,
    shown=lambda data: (*PAPER, "full ndcg@50"),
    quick=quick,
    finish=follow,
    older=older,
    listed=lambda name: name != SENSITIVE,
    claims=[
        *((f"λOpt {which}", BEST_FIXED) for which in ("DUI", "DU", "DI", "D")),
        ("λOpt DUI", "MF, one λ, on learn too"),
        *((f"λOpt {which}, exact", f"λOpt {which}") for which in ("DUI", "DI")),
        ("λOpt DUI, clip .001", "λOpt DUI"),
        *((name, name.partition(",")[0]) for name in FIXED_SIDE),
        ("λOpt DUI, from one λ", "λOpt DUI"),
        *((f"λOpt {which}, N(0, 1)", "MF, one λ, N(0, 1)") for which in ("DUI", "DI")),
        *((name, BEST_FIXED) for name in ("random D", "random DUI", "SGDA", "AMF")),
    ],
    columns=columns,
    after=gains,
    headlines=headlines,
    panes=panes,
)

if __name__ == "__main__":
    main(STUDY)
