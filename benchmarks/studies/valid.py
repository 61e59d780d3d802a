"""VALID, MacridVAE and other models on the data sets of the VALID paper, with its protocol.

Models have 64 dimensions (MultVAE and RecVAE 200, as in their released code) and 4 interests. Train
pairs are masked. On test, items of validation remain candidates, as in the paper. Recall is the
number of hits divided by the number of relevant items. Validation chooses, by Recall@20, the setting
with seed 0 and the epoch of each run. Models are validated every third epoch, RecVAE every epoch (of
four passes), and ALS every sweep. A run ends after five validations without a gain, unless the row
says after how many epochs. If a setting has a number of epochs, the learning rate falls to 0 over
them by half a cosine, and the last one is evaluated. VALID and MacridVAE have the released settings,
which are not tuned here; VALID has two blocks, unless the row says otherwise, and the released stop
of the gradient. "VALID, equation 4" updates prototypes as the paper prints it. Other methods have
four to 32 settings; rows with the mark ° have an earlier grid of two to 28. EASE draws nothing, so it
needs one run. Rows that a table lacks are not recorded, or not with all their settings.

citeulike-a and Gowalla have the split of the paper (the train part of Gowalla was rebuilt, and
lacks 67 pairs). Of the n items of a user, a tenth, rounded down, is validation, and as many are
test. On citeulike-a, all users with n items share one draw of places in the order of ids ("id
places" of `jaxrec.evaluate.audit`). Validation and test are therefore different problems.
`citeulike-a-random` has the same pairs, split by the same rule with a draw for each user, and so
has ml-1m. Items without a train pair are dropped. `ml-1m-users` is strong generalisation: 1,000
users are held out for validation and 1,000 for test. A model sees four fifths of their pairs as a
history, and has to find the others. We do not know the values of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

import jaxrec as jr
from benchmarks import _record
from benchmarks.studies import _valid as parts
from benchmarks.studies._command import main
from benchmarks.studies._plots import varied
from benchmarks.studies._results import mean_of, paired
from benchmarks.studies._study import AS_PUBLISHED, Study, afresh
from benchmarks.studies._valid import BLOCKS, INTERESTS, METRIC, SHOWN, Fitted, Part, compacted, prepare
from jaxrec import study
from jaxrec.data import splits

# ---------------------------------------------------------------------- the study

CCL = {"margin": (0.1, 0.4, 0.7), "weight": (5.0, 10.0, 25.0, 50.0, 100.0)}
BSL = {"temperature": (0.05, 0.07, 0.1, 0.14, 0.2), "exponent": (1.0, 1.2)}
WEIGHTS = {
    "unobserved_weight": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    "regularization": (0.001, 0.003, 0.01, 0.03),
}
SELF_ATTENTION = {"cosine attention": jr.models.attention.cosine, "CoDA": jr.models.attention.coda}
TRAINED: dict[str, tuple[Callable[..., Fitted], Mapping[str, tuple[float, ...]]]] = {
    "VALID": (BLOCKS, {}),
    "MacridVAE": (partial(BLOCKS, kind=jr.models.MacridVAE), {}),
    "VALID, unrolled": (partial(BLOCKS, gradient=jr.models.implicit.unrolled), {}),
    "VALID, one step": (partial(BLOCKS, gradient=jr.models.implicit.one_step), {}),
    "VALID, straight through": (partial(BLOCKS, gradient=jr.models.implicit.straight_through), {}),
    **{f"VALID, {name}": (partial(parts.attended, fn), {}) for name, fn in SELF_ATTENTION.items()},
    "VALID, equation 4": (partial(BLOCKS, raw_updates=True), {}),
    "MultVAE": (parts.multvae, {"cap": (0.05, 0.2, 1.0, 4.0)}),
    "RecVAE": (parts.recvae, {"divergence_weight": (0.00125, 0.005, 0.02, 0.08)}),
    "MF, CCL": (partial(parts.cosines, loss=jr.losses.ccl), CCL),
    "MF, BSL": (partial(parts.cosines, loss=jr.losses.bsl), BSL),
    "SimpleX": (partial(parts.cosines, loss=jr.losses.ccl, simplex=True), CCL),
    "DirectAU": (parts.directau, {"learning_rate": (1e-3, 3e-3), "weight": (0.2, 0.5, 1.0, 2.0, 5.0)}),
    "LightGCN": (parts.lightgcn, {"learning_rate": (1e-3, 3e-3, 1e-2), "epochs": (100, 200, 400)}),
    "RG2": (
        partial(parts.solved, jr.solvers.rg2.fit),
        {"alpha": (0.0125, 0.05, 0.2, 0.8), "regularization": (0.03, 0.1, 0.3)},
    ),
    "iALS": (partial(parts.solved, partial(jr.solvers.ials.fit, **AS_PUBLISHED)), WEIGHTS),
    "EASE": (parts.ease, {"regularization": (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)}),
}
VARIANTS = tuple(name for name in TRAINED if name.startswith("VALID, "))
# Grids on gowalla-valid, where a run takes long. The margin was the best on citeulike-a, and the
# exponent is about that of BSL's paper for Gowalla.
FEW = {
    "MultVAE": {"cap": (0.1, 0.2, 0.5, 1.0)},
    "RecVAE": {"divergence_weight": (0.0025, 0.005, 0.01, 0.02)},
    "MF, CCL": {"margin": (0.4,), "weight": (10.0, 25.0, 50.0, 100.0)},
    "MF, BSL": {"temperature": (0.05, 0.07, 0.1, 0.14), "exponent": (1.2,)},
    "SimpleX": {"margin": (0.4,), "weight": (10.0, 25.0, 50.0, 100.0)},
    "DirectAU": {"learning_rate": (1e-3,), "weight": (0.5, 1.0, 2.0, 5.0)},
    "LightGCN": {"learning_rate": (3e-3, 1e-2), "epochs": (100, 200)},
}
OTHERS = ("MultVAE", "RecVAE", "MF, CCL", "MF, BSL", "SimpleX", "LightGCN", "DirectAU", "RG2", "iALS", "EASE")
ALL = ("VALID", "MacridVAE", *OTHERS)
COMPARED = {  # data set -> methods that train until validation no longer improves
    "citeulike-a-valid": ALL,
    "citeulike-a-random": ALL,
    "gowalla-valid": ALL[:-1],
    "ml-1m": ALL,
    "ml-1m-users": ("VALID", "MacridVAE", "MultVAE", "RecVAE", "EASE"),  # take histories
}
SHORT = ("VALID", "MacridVAE", *VARIANTS)  # trained for at most 25 epochs, too
LIMITED = {"citeulike-a-valid": (25, SHORT), "gowalla-valid": (12, ("VALID", "MacridVAE"))}
BOTH = ("VALID", "MacridVAE")
VARIED = {  # what figures 2 to 5 of the paper vary: methods, values, and whether for at most 25 epochs
    "n_interests": (BOTH, (1, 2, 3, 4, 5, 6, 7), True),
    "n_blocks": (("VALID", "VALID, unrolled"), (1, 2, 3, 4), True),
    "width": (BOTH, (64, 128, 256, 512), True),
    "width, any epochs": (BOTH, (64, 128, 256, 512), False),
    "temperature": (tuple(f"VALID, {name}" for name in SELF_ATTENTION), (0.1, 0.2, 0.5, 0.8, 1.0), True),  # τ_sa
}
TITLES = {"n_interests": "interests", "n_blocks": "blocks", "temperature": "τ_sa"}
USUAL = INTERESTS | {"temperature": 0.5}  # the defaults of what is varied


def older(data: str) -> dict[str, Mapping[str, tuple[float, ...]]]:
    """Returns the grids of rows that are recorded with fewer values."""
    ccl = {"margin": (0.4, 0.7), "weight": CCL["weight"]}
    found = {"MultVAE": {"cap": (0.2, 1.0)}, "RecVAE": {"divergence_weight": (0.005, 0.02)}, "MF, CCL": ccl}
    found |= {"SimpleX": ccl, "LightGCN": {"learning_rate": (3e-3, 1e-2)}}
    found |= {"RG2": {"alpha": (0.05, 0.2), "regularization": (0.03, 0.1, 0.3)}}
    found |= {"iALS": WEIGHTS | {"unobserved_weight": WEIGHTS["unobserved_weight"][:-1]}}
    found |= {"EASE": {"regularization": (10.0, 30.0, 100.0, 300.0, 1000.0)}}
    return {name: grid for name, grid in found.items() if data != "gowalla-valid" or name in ("RG2", "iALS")}


def method_of(
    name: str, limit: int | None, part: Callable[[], Part], what: str = "", value: float = 0, data: str = ""
) -> study.Method:
    """Returns a method, or a method with one varied value.

    VALID with one block is MacridVAE, and a default value gives the method itself.
    """
    what = what.partition(",")[0]
    if (what, value) == ("n_blocks", 1):
        return method_of("MacridVAE", limit, part)
    if what and USUAL[what] == value:
        return method_of(name, limit, part)
    fit, grid = TRAINED[name]
    grid = FEW.get(name, grid) if data == "gowalla-valid" else grid
    fit = partial(afresh, on_whole, fit, part, limit=limit, **({what: value} if what else {}))
    label = name + f", {what} {value}" * bool(what) + f", {limit} epochs" * bool(limit)
    return study.Method(label, fit, {} if what else grid)


def on_whole(fit: Callable[..., Fitted], part: Callable[[], Part], _: Any, __: Any, key: Any, **setting: Any) -> Fitted:
    """Trains on the `Part`, because `jaxrec.study` does not pass histories."""
    return fit(part(), key, **setting)


def methods(data: str) -> list[study.Method]:
    """Returns the methods of a data set."""
    part, (limit, limited) = partial(prepare, data), LIMITED.get(data, (None, ()))
    found = [method_of(name, None, part, data=data) for name in COMPARED[data]]
    found += [method_of(name, limit, part) for name in limited]
    if data == "citeulike-a-valid":
        for what, (names, values, short) in VARIED.items():
            found += [method_of(n, limit if short else None, part, what, value) for n in names for value in values]
    return list({method.name: method for method in found}.values())


def evaluate(model: Any, variables: jr.typing.Variables, part: Part, on: str) -> jr.evaluate.Report:
    """Returns the metrics, and for VALID on test how much its interests differ."""
    report = part.judged(model, variables, on, ks=(20, 50))
    looked = looked_into(model, variables, part) if on == "test" and isinstance(model, jr.models.VALID) else {}
    per_user = {name: report.per_user[name] for name in SHOWN}
    return jr.evaluate.Report(report.users, per_user, looked, None, report.protocol)


def looked_into(model: Any, variables: jr.typing.Variables, part: Part) -> dict[str, float]:
    """Computes how similar the prototypes of 1,000 users are, and their uniformity (figure 5)."""
    users = np.flatnonzero(part.train.user_degrees).astype(np.int32)
    users = np.random.default_rng(0).permutation(users)[:1000]
    found = model.apply(variables, users, histories=part.train.take(users), method="posterior")
    x = np.array(found.interests).reshape(len(users), -1)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    near = np.exp(-2 * (2 - 2 * x @ x.T))[np.triu_indices(len(users), 1)]
    return {
        "collapse": float(np.mean(jr.models.valid.collapse(found.prototypes))),
        "uniformity": float(np.log(near.mean())),
    }


def columns(data: str, rows: Mapping[str, study.Row]) -> dict[str, list[str]]:
    """Returns the columns for Recall@20 on validation and the best epochs."""
    tuned = {name: row for name, row in rows.items() if METRIC in row.valid and None not in row.epochs}
    return {
        "Recall@20, validation": [f"{row.valid[METRIC].mean():.4f}" if n in tuned else "" for n, row in rows.items()],
        "best epochs": [" ".join(map(str, row.epochs)) if n in tuned else "" for n, row in rows.items()],
    }


def points(what: str) -> dict[str, dict[str, str]]:
    """Returns for each method and varied value the name of the row."""
    names, values, short = VARIED[what]
    limit = LIMITED["citeulike-a-valid"][0] if short else None
    return {name: {str(v): method_of(name, limit, prepare, what, v).name for v in values} for name in names}


def after(tables: Any, records: Any) -> str:
    """Returns the table of varied values."""
    lines, rows = [], tables.get("citeulike-a-valid", {})
    for what in VARIED:
        for name, at in points(what).items():
            for value, row in ((value, rows[label]) for value, label in at.items() if label in rows):
                # A single prototype has no other to be similar to.
                one = (what, value) == ("n_interests", "1")
                apart = [f"{row.values[each].mean():.2f}" for each in ("collapse", "uniformity")]
                lines.append(
                    [TITLES.get(what, what), value, name, *(mean_of(row.values[m]) for m in ("recall@20", "ndcg@20"))]
                )
                lines[-1] += ["" if one else apart[0], apart[1], " ".join(map(str, row.epochs)), str(len(row.seeds))]
    head = ["varied", "", "method", "Recall@20", "NDCG@20", "collapse", "uniformity", "best epochs", "seeds"]
    return (
        "### One value varied at a time on citeulike-a-valid, at most 25 epochs if not said otherwise\n\n"
        '"collapse" is the mean cosine '
        'between different prototypes of a user; it is 1 if all interests are the same. "uniformity" is '
        "log mean exp(−2‖x − y‖²) over the concatenated interests of two users; it is lower if users are spread more "
        "evenly. Both are computed for 1,000 users.\n\n" + _record.table(head, lines)
    )


def panes(tables: Any, records: Any) -> list[list[dict[str, Any]]]:
    """Returns panes of Recall@20 and uniformity on test against the varied values."""
    shown = [*((what, METRIC) for what in VARIED), ("n_blocks", "uniformity")]
    rows = tables["citeulike-a-valid"]
    lines = [(what, metric, varied(rows, points(what), metric)) for what, metric in shown]
    lines = [each for each in lines if any(len(x) > 1 for x, *_ in each[2].values())]
    return [[{"xlabel": what, "ylabel": f"{metric} on test", "lines": found} for what, metric, found in lines]]


def headlines(tables: Any, records: Any) -> list[str]:
    """Returns the lines for the highlights; those without a limit of epochs, if there are any."""
    said = []
    for data, rows in tables.items():
        limits = [after for after in ("", ", 12 epochs") if {f"VALID{after}", f"MacridVAE{after}"} <= set(rows)]
        for after in limits[:1]:
            ours, other = rows[f"VALID{after}"], rows[f"MacridVAE{after}"]
            mean = {name: row.values[METRIC].mean() for name, row in rows.items()}
            others = {
                name: mean[name] for name in COMPARED[data] if name not in ("VALID", "MacridVAE") and name in mean
            }
            best = max(others, key=others.__getitem__)
            if (found := paired(STUDY, records, data, ours.method, other.method)) is None:
                continue
            test, over = found
            said.append(
                f"{data}{', at most' * bool(after)}{after.removeprefix(',')}, Recall@20 over {len(ours.seeds)} seeds: "
                f"VALID {mean[ours.method]:.4f}, MacridVAE {mean[other.method]:.4f} (paired difference over {over} "
                f"{test.difference:+.4f} ± {test.stderr:.4f}), the best other method of the table, {best}, "
                f"{others[best]:.4f} ({len(rows[best].seeds)} seed{'s' * (len(rows[best].seeds) > 1)}), "
                f"popularity {mean['popularity']:.4f}."
            )
    return said


def quick() -> tuple[list[study.Method], dict[str, Any]]:
    """Returns the shortened run: 500 users of citeulike-a, two epochs."""
    part = prepare("citeulike-a-valid")
    kept = (splits.keep_users(x, np.arange(x.n_users) < 500) for x in (part.train, part.valid, part.test))
    part = Part(part.name, *compacted(splits.Split(*kept)))
    return [method_of(name, 2, lambda: part) for name in ("VALID", "MacridVAE")], {"citeulike-a-valid": part}


STUDY = Study(
    name="valid",
    title="Interests (VALID)",
    about=__doc__,
    methods={data: partial(methods, data) for data in COMPARED},
    split=prepare,
    evaluate=evaluate,
    metric=lambda data: METRIC,
    shown=lambda data: SHOWN,
    quick=quick,
    deterministic=("item id", "popularity", "EASE"),
    claims=[
        ("VALID", "MacridVAE"),
        ("VALID, 12 epochs", "MacridVAE, 12 epochs"),
        ("VALID, 25 epochs", "MacridVAE, 25 epochs"),
        *(("VALID", other) for other in ("EASE", "RecVAE", "MultVAE", "MF, CCL", "MF, BSL", "DirectAU", "RG2")),
        *((f"{name}, 25 epochs", "VALID, 25 epochs") for name in VARIANTS),
        *((f"{name}, n_blocks 3, 25 epochs", f"{name}, 25 epochs") for name in ("VALID", "VALID, unrolled")),
        ("VALID, n_interests 1, 25 epochs", "VALID, 25 epochs"),
        ("MacridVAE, n_interests 1, 25 epochs", "MacridVAE, 25 epochs"),
    ],
    columns=columns,
    listed=lambda name: not any(f", {what} " in name for what in VARIED),
    older=older,
    after=after,
    headlines=headlines,
    panes=panes,
)

if __name__ == "__main__":
    main(STUDY)
