"""MAR, MARS and metric-learning baselines on the data sets of the MARS paper.

Models have 128 dimensions. A facet of MAR and MARS has 128 on the published splits of Ciao and
Delicious, and 64 elsewhere. The published leave-one-out splits of Ciao and Delicious hold out the
items with the largest ids of each user, so the table includes a ranker that sorts by id.
`ciao-random` and `delicious-random` are the same pairs, with two pairs of each user held out at
random, others for each seed; lastfm-2k is split in the same way. ml-1m-loo is NCF's split, with one
train pair of each user for validation.

There are two protocols. "sampled" is that of the released code: each held-out item is ranked among
100 sampled items (99 on ml-1m-loo). Repeated negatives count once, items that are not in train are
left out, and tied scores rank the held-out item last. "full" ranks all items, with train masked,
and on test also validation. Trust "full"; it is omitted on the published splits of Ciao and
Delicious. A run is trained once for both protocols, and only "sampled" records its time. Validation
chooses separately for each protocol, by HR@10 for "sampled" and NDCG@10 for "full": the setting
with seed 0, and the epoch of each run. "best-on-test" is what the released code prints: for each
metric, the best epoch on test.

Negatives are drawn in proportion to popularity to some "power". "composed" has facets on spheres,
trained with `losses.bsl`, row-wise Riemannian Adam and 1,024 shared negatives. "MARS, paper's rule,
free facets" has the preset `FREE_FACETS`: the calibrated step of the paper. The paper's facets are
projections of one vector (equations 1 and 2), which no row here has. MAR and MARS had one or two
settings to choose from, their rivals up to six, so that the tables cannot say which method is best.
`benchmarks.studies.mars_tuned` gives all methods eight settings, and has the paper's facets.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from benchmarks import _record
from benchmarks.studies._command import main
from benchmarks.studies._mars import (
    BY_ID,
    DATA,
    DIM,
    FULL,
    METRIC,
    SAMPLED,
    evaluate,
    method,
    protocols_of,
    rankers,
    split,
    times,
)
from benchmarks.studies._plots import varied
from benchmarks.studies._results import mean_of
from benchmarks.studies._study import Study
from jaxrec import study

SHOWN = "ndcg@10"  # of the sampled protocol, for varied values
BASELINES = ("BPR", "NMF", "NeuMF", "CML", "MetricF", "TransCF", "LRML", "SML")
ANY, HALF, WARM = {"power": (0.0, 0.75)}, {"dim": (DIM // 2,)}, {"temperature": (0.1, 0.2)}
UNIFORM = {"power": (0.0,)}  # on random splits, where they were better for BPR on validation
# A grid, and what changes in it unless the published split is by id.
GRIDS = {
    "BPR": (ANY | {"l2": (1e-5, 1e-4, 1e-3)}, {}),
    "NMF": ({"dim": (4, 16, 64)}, {}),
    "NeuMF": (ANY, UNIFORM),
    "CML": (ANY | {"margin": (0.5,), "learning_rate": (0.1, 0.3, 1.0)}, UNIFORM),
    "MetricF": (ANY | {"margin": (0.6, 1.5)}, UNIFORM),
    "TransCF": (ANY, UNIFORM),
    "LRML": (ANY, UNIFORM),
    "SML": (ANY | {"learning_rate": (0.1, 0.3, 1.0)}, UNIFORM),
    "MAR": (ANY, HALF | UNIFORM),
    "MARS, released": ({}, HALF),
    "MARS, released, 2 facets": ({}, HALF),
    "MARS, released, uniform negatives": ({}, HALF),
    "MARS, default": (ANY, HALF | UNIFORM),
    "MARS, paper's rule, free facets": (ANY, HALF | UNIFORM),
    "composed, 4 facets": (WARM, {}),
    "composed, 1 facet": (WARM, {}),
}
# What table IV and figures 5 and 6 of the paper vary; here with 32 dimensions per facet.
VARIED = {
    "n_facets": (1, 2, 3, 4, 5, 6),
    "pull_weight": (0.0, 0.001, 0.01, 0.1, 1.0),
    "facet_weight": (0.0, 0.001, 0.01, 0.1, 1.0),
}
# The values of all presets, which share a run.
USUAL = {"n_facets": 4, "pull_weight": 0.1, "facet_weight": 0.01}
# What table III varies on Ciao, with the other values that validation chose. MARS has it per facet.
SIZES = {"TransCF": (128, 256, 512, 1024), "SML": (128, 256, 512, 1024), "MARS, released": (32, 64, 128, 256)}
OTHERS = {"TransCF": {"power": (0.75,)}, "SML": {"power": (0.75,), "learning_rate": (0.3,)}}


def point(name: str, what: str, value: float) -> tuple[str, dict[str, Any]]:
    """Returns the name and the grid of a method with one varied value."""
    if value == USUAL[what]:
        return f"{name}, 32 dimensions", {"dim": (32,)}
    return f"{name}, 32 dimensions, {what} {value:g}", {"dim": (32,), what: (value,)}


def sized(name: str, dim: int) -> tuple[str, dict[str, Any]]:
    """Returns the name and the grid of a method with another number of dimensions."""
    return (name if dim == DIM else f"{name}, {dim} dimensions"), OTHERS.get(name, {}) | {"dim": (dim,)}


def methods(label: str) -> list[study.Method]:
    """Returns the trivial rankers, the methods, and on published splits the varied ones."""
    data, found = label.partition(", ")[0], rankers()
    for name, (grid, resplit) in GRIDS.items():
        if data == "delicious" or name != "MARS, released, 2 facets":
            found.append(method(label, name, grid if data in BY_ID else grid | resplit))
    for what, values in VARIED.items() if data in BY_ID else ():
        for name in ("MARS, released", *["MAR"] * (what == "n_facets")):
            found += [method(label, *point(name, what, value), of=name) for value in values]
    for name, dims in SIZES.items() if data == "ciao" else ():
        found += [method(label, *sized(name, dim), of=name) for dim in dims if dim != DIM]
    return list({each.name: each for each in found}.values())


# ---------------------------------------------------------------------- tables


def columns(data: str, rows: Mapping[str, study.Row]) -> dict[str, list[str]]:
    """Returns the column for best-on-test."""
    names = [f"best-on-test {metric}" for metric in SAMPLED]
    best = [[f"{row.values[name].mean():.4f}" for name in names if name in row.values] for row in rows.values()]
    return {"best-on-test": [" / ".join(each) for each in best]}


def points(what: str) -> dict[str, dict[str, str]]:
    """Returns for each method and varied value the name of the row."""
    if what == "dim":
        return {name: {f"{dim}": sized(name, dim)[0] for dim in dims} for name, dims in SIZES.items()}
    names = ("MARS, released", *["MAR"] * (what == "n_facets"))
    return {name: {f"{value:g}": point(name, what, value)[0] for value in VARIED[what]} for name in names}


def after(tables: Any, records: Any) -> str:
    """Returns the tables of NDCG@10 for varied values, and of times."""
    parts = [
        "### Facets, weights and dimensions\n\nNDCG@10 of the sampled protocol, with one value varied at a time, as "
        "in tables III and IV and figures 5 and 6 of the paper; validation chooses the epoch by HR@10. MARS has the "
        "released rule, MAR the default one, both with 32 dimensions per facet unless dimensions vary. The "
        "number of seeds is in brackets, and what has not been run is empty. CML and the best baseline have 128 "
        "dimensions. With the released gradient, the pull has full weight for every value above 0."
    ]
    for data in BY_ID:
        rows = tables.get(f"{data}, sampled", {})
        for what in (*VARIED, *["dim"] * (data == "ciao")):
            title = {"n_facets": "facets", "dim": "dimensions"}.get(what, what.replace("_", " "))
            parts.append(f"#### {data}, {title}\n\n" + varied_table(rows, what))
        said = [f"{name} {mean_of(row.values[SHOWN])}" for name, row in references(rows).items()]
        parts.append(f"For comparison, on {data}: {', '.join(said)}.")
    parts.append(
        "### Time\n\nSeconds of training on two cores, until validation stops a run or its epochs end, median over "
        "seeds. Compilation is included, validation is not. Other processes may have run next to it, so that only "
        "large ratios count.\n\n" + times(records, list(GRIDS))
    )
    return "\n\n".join(parts)


def varied_table(rows: Mapping[str, study.Row], what: str) -> str:
    """Returns the table of a varied value."""
    every = points(what)
    values = sorted({value for at in every.values() for value in at}, key=float)
    lines = []
    for name, at in every.items():
        if found := [rows[label] for label in at.values() if label in rows]:
            cells = [mean_of(rows[at[v]].values[SHOWN]) if at.get(v) in rows else "" for v in values]
            lines.append([f"{name} ({max(len(row.seeds) for row in found)})", *cells])
    return _record.table(["", *values], lines)


def references(rows: Mapping[str, study.Row]) -> dict[str, study.Row]:
    """Returns CML and the baseline with the best mean on test, as far as there are rows."""
    found = {name: rows[name] for name in BASELINES if name in rows}
    best = max(found, key=lambda name: found[name].values[SHOWN].mean(), default=None)
    return {name: found[name] for name in dict.fromkeys(["CML", best]) if name in found}


def panes(tables: Any, records: Any) -> list[list[dict[str, Any]]]:
    """Returns panes of NDCG@10 against facets and weights, with lines for baselines."""
    label, found = {"ylabel": "NDCG@10 (sampled) on test"}, []
    for data in BY_ID:
        rows = tables[f"{data}, sampled"]
        level = {name: (None, row.values[SHOWN].mean()) for name, row in references(rows).items()}
        lines = {what: varied(rows, points(what), SHOWN) | level for what in VARIED}
        found.append([{"title": data, "xlabel": what, "lines": lines[what]} | label for what in VARIED])
    return found


def headlines(tables: Any, records: Any) -> list[str]:
    """Returns the lines for the highlights."""
    mean = {
        label: {name: row.values[METRIC[label.partition(", ")[2]]].mean() for name, row in rows.items()}
        for label, rows in tables.items()
    }

    def most(values: Mapping[str, float]) -> str:
        baselines = {name: value for name, value in values.items() if not name.startswith(("MAR", "composed"))}
        best = max(baselines, key=baselines.__getitem__)
        ours = max(value for name, value in values.items() if name.startswith("MARS"))
        return f"the best MARS {ours:.4f}, and the best baseline, {best}, {baselines[best]:.4f}"

    ciao, sampled, full = mean["ciao, sampled"], mean["ciao-random, sampled"], mean["ciao-random, full"]
    four, one = (sampled[f"composed, {facets}"] for facets in ("4 facets", "1 facet"))
    return [
        f"The published split of Ciao holds out items by their id, and sorting items by id reaches HR@10 "
        f"{ciao['item id']:.4f} without learning. There, MARS with its released rule reaches "
        f"{ciao['MARS, released']:.4f} (.3393 in its paper), and {ciao['MARS, released, uniform negatives']:.4f} with "
        f"uniform negatives. On a random split of the same pairs, sorting by id has {sampled['item id']:.4f}, "
        f"popularity {sampled['popularity']:.4f}, {most(sampled)}; unit vectors trained with `losses.bsl` have "
        f"{four:.4f} as four facets and {one:.4f} as one. Ranking all items instead of 100 sampled ones, popularity "
        f"has NDCG@10 {full['popularity']:.4f}, {most(full)}; the four facets have "
        f"{full['composed, 4 facets']:.4f}."
    ]


def quick() -> tuple[list[study.Method], dict[str, Any]]:
    """Returns the shortened run: published Delicious, BPR and MARS, two validations."""
    label = "delicious, sampled"
    few = {"BPR": {"power": (0.75,), "l2": (1e-5,)}, "MARS, released": {"n_facets": (2,)}}
    return [method(label, name, grid, looks=2) for name, grid in few.items()], {label: split(label)}


LABELS = [[f"{data}, {protocol}" for protocol in protocols_of(data)] for data in DATA]
RULE = "MARS, released"
STUDY = Study(
    name="mars",
    title="MAR, MARS and metric learning",
    about=__doc__,
    methods={label: partial(methods, label) for group in LABELS for label in group},
    split=split,
    evaluate=evaluate,
    metric=lambda label: METRIC[label.partition(", ")[2]],
    shown=lambda label: SAMPLED if label.endswith("sampled") else FULL,
    quick=quick,
    deterministic=("item id", "popularity", "minus popularity"),
    groups=LABELS,
    claims=[
        (f"{RULE}, uniform negatives", RULE),
        *((rule, other) for rule in (RULE, "MARS, default") for other in ("BPR", "MetricF")),
        ("MARS, default", "MAR"),
        *(("composed, 4 facets", other) for other in ("BPR", "CML", "MetricF", "MARS, default", "composed, 1 facet")),
        *((f"{RULE}, 32 dimensions, {what}", f"{RULE}, 32 dimensions") for what in ("n_facets 1", "pull_weight 0")),
        (f"{RULE}, 32 dimensions, facet_weight 0", f"{RULE}, 32 dimensions"),
    ],
    columns=columns,
    listed=lambda name: " dimensions" not in name,
    after=after,
    headlines=headlines,
    panes=panes,
)

if __name__ == "__main__":
    main(STUDY)
