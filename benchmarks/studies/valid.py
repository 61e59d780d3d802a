"""VALID, MacridVAE and other models on the data sets of the VALID paper, with its protocol.

Models have 64 dimensions (MultVAE and RecVAE 200, as in their released code) and 4 interests. Train pairs are
masked. On test, items of validation remain candidates, as in the paper. Recall is the number of
hits divided by the number of relevant items. Validation chooses, by Recall@20, the setting with
seed 0 and the epoch of each run. Models are validated every third epoch, RecVAE every epoch (of
four passes), and ALS every sweep. A run ends after five validations without a gain, unless the row
says after how many epochs. VALID has two blocks, unless the row says otherwise, and the released
stop of the gradient. EASE draws nothing, so it runs once.

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
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record
from benchmarks.studies._study import AS_PUBLISHED, Study, afresh, fitted, main, mean_of, quietly, tested, varied
from jaxrec import study
from jaxrec.data import datasets, splits
from jaxrec.interactions import IdMap

# EPOCHS is the maximum, EVERY the number of epochs between validations.
DIM, METRIC, EPOCHS, EVERY = 64, "recall@20", 300, 3
STOPPING = jr.train.EarlyStopping(METRIC, patience=5, ties=True)
SHOWN = ("recall@20", "recall@50", "ndcg@20", "ndcg@50")

Fitted = tuple[Any, jr.typing.Variables, jr.train.Log | None]


class Part(NamedTuple):
    """A split.

    If whole users are held out, `histories` has the pairs that a model sees of them, on "valid" and
    on "test".
    """

    name: str
    train: jr.Interactions
    valid: jr.Interactions
    test: jr.Interactions
    histories: Mapping[str, jr.Interactions] | None = None

    def judged(self, model: Any, variables: jr.typing.Variables, on: str, *, ks: tuple[int, ...]) -> jr.evaluate.Report:
        """Ranks all items except those of train, or of the histories, for "valid" or "test"."""
        known = self.train if self.histories is None else self.histories[on]
        histories = known if getattr(model, "needs_histories", False) else None
        return jr.evaluate.full_ranking(model, variables, known, getattr(self, on), ks=ks, histories=histories)


@lru_cache(maxsize=1)
def prepare(data: str) -> Part:
    """Returns the split, which is the same for all seeds."""
    found = datasets.load(data.removesuffix("-random").removesuffix("-users"))
    if data in ("citeulike-a-valid", "gowalla-valid"):
        return Part(data, *compacted(splits.Split(found.train, found.valid, found.test)))
    whole = jr.Interactions.from_pairs(*found.interactions.pairs())
    order = partial(splits.random_order, key=jax.random.key(0))
    if data != "ml-1m-users":
        return Part(data, *compacted(splits.ratio(whole, order=order)))
    with quietly():
        held = splits.held_out_users(jax.random.key(1), whole, n_valid=1000, n_test=1000, order=order)
    return Part(data, held.train, held.valid, held.test, {"valid": held.valid_history, "test": held.test_history})


def compacted(split: splits.Split) -> splits.Split:
    """Returns the split without items that have no train pair."""
    with quietly():
        kept = splits.drop_cold(split)
    ids = IdMap(np.arange(split.train.n_users), np.arange(split.train.n_items))
    return splits.compact(kept, ids)[0]


def judge(model: Any, part: Part) -> Callable[[jr.typing.Variables], jr.evaluate.Report]:
    """Returns the function that evaluates on validation."""
    return lambda variables: part.judged(model, variables, "valid", ks=(20,))


def trained(part: Part, key: Any, model: Any, objective: Any, tx: Any, *, limit: int | None, **options: Any) -> Fitted:
    """Trains until validation no longer improves, or for at most `limit` epochs."""
    options |= {"epochs": limit or EPOCHS, "every": EVERY, "stopping": STOPPING, "validate": judge(model, part)}
    return fitted(key, model, objective, tx, part.train, **options)


# ---------------------------------------------------------------------- autoencoders

SETTINGS = {  # of the released configurations; other data sets use those of citeulike-a
    "citeulike-a": ({"decoder_temperature": 0.1, "deviation": 0.1}, {"cap": 1.0, "total": 20_000}),
    "gowalla-valid": ({"decoder_temperature": 0.08, "deviation": 0.1}, {"cap": 0.2, "total": 10_000}),
}


def encoded(part: Part, key: Any, model: Any, *, limit: int | None, batch_size: int, **of_objective: float) -> Fitted:
    """Trains an autoencoder, whose examples are users."""
    objective = partial(jr.train.autoencoders.objective, model=model, **of_objective)
    options = {"limit": limit, "batch_size": batch_size, "examples": jr.train.by_user}
    return trained(part, key, model, objective, optax.adam(1e-3), **options)


def interests(part: Part, key: Any, *, kind: Any = jr.models.VALID, limit: int | None, **options: Any) -> Fitted:
    """Trains VALID or MacridVAE with the released setting of the data set, 512 users per step."""
    of_model, of_objective = SETTINGS.get(part.name, SETTINGS["citeulike-a"])
    model = kind(part.train.n_items, **{"dim": DIM, "width": DIM, **of_model, **options})
    return encoded(part, key, model, limit=limit, batch_size=512, **of_objective)


def multvae(part: Part, key: Any, *, cap: float, limit: int | None) -> Fitted:
    """Trains MultVAE with its released sizes, 500 users per step.

    β reaches its cap after 60 epochs, because the data sets are smaller than those of its paper.
    """
    total = 60 * -(-np.count_nonzero(part.train.user_degrees) // 500) / cap
    model = jr.models.MultVAE(part.train.n_items)
    return encoded(part, key, model, limit=limit, batch_size=500, cap=cap, total=total)


def recvae(part: Part, key: Any, *, divergence_weight: float, limit: int | None) -> Fitted:
    """Trains RecVAE with its released sizes; an epoch is four passes."""
    model = jr.models.RecVAE(part.train.n_items, divergence_weight=divergence_weight)
    options = {"validate": judge(model, part), "stopping": STOPPING, "progress": False}
    train, tx, epochs = jr.train.autoencoders.alternating, optax.adam(5e-4), limit or EPOCHS
    state, log = train(key, model, tx, part.train, epochs=epochs, **options)
    return model, state.variables, log


# ---------------------------------------------------------------------- other models


def ccl(part: Part, key: Any, *, simplex: bool, margin: float, weight: float, limit: int | None) -> Fitted:
    """Trains MF or SimpleX with CCL, cosines, and 1,024 negatives that a batch shares.

    The gate and the pool of SimpleX on Gowalla are those of its configuration.
    """
    train = part.train
    if simplex:
        pool = jr.models.MeanPool() if part.name != "gowalla-valid" else jr.models.UserAttention()
        gate = 0.6 if part.name != "gowalla-valid" else 0.8
        model = jr.models.SimpleX(train.n_users, train.n_items, dim=DIM, gate=gate, pool=pool, length=100)
    else:
        model = jr.models.MF(train.n_users, train.n_items, dim=DIM, scale=1e-4, score=jr.models.cosine)
    draw = partial(jr.sampling.uniform, n_items=train.n_items, n=1024)
    loss = partial(jr.losses.ccl, margin=margin, weight=weight)
    sample = partial(jr.sampling.shared, sample=draw)
    # SimpleX leaves the positive out of the history, so its examples must be single pairs.
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample, leave_out=simplex)
    options = {"batch_size": 256, "examples": partial(jr.train.groups, n=16)}
    if simplex:
        options = {"batch_size": 1024, "examples": partial(jr.train.singles, histories=train)}
    return trained(part, key, model, objective, optax.adam(1e-2), limit=limit, **options)


def lightgcn(part: Part, key: Any, *, learning_rate: float, limit: int | None) -> Fitted:
    """Trains LightGCN with three layers, BPR and one uniform negative, as in its paper."""
    model = jr.models.LightGCN(part.train, dim=DIM, layers=3, scale=0.1)
    sample = partial(jr.sampling.uniform, n_items=part.train.n_items, n=1)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    tx = optax.chain(optax.add_decayed_weights(1e-7), optax.adam(learning_rate))
    return trained(part, key, model, objective, tx, limit=limit, batch_size=8192)


def solved(fit: Callable, part: Part, key: Any, *, limit: int | None, **setting: float) -> Fitted:
    """Trains by ALS until validation ends it."""
    model = jr.models.MF(part.train.n_users, part.train.n_items, dim=DIM)
    options = {"stopping": jr.train.EarlyStopping(METRIC, patience=3), "tolerance": None, "progress": False}
    validate, sweeps = judge(model, part), limit or 30
    return fit(part.train, dim=DIM, key=key, sweeps=sweeps, validate=validate, **options, **setting)


def ease(part: Part, key: Any, *, regularization: float, limit: int | None) -> Fitted:
    """Fits EASE in closed form."""
    model, variables, log = jr.solvers.ease.fit(part.train, regularization=regularization)
    return model, variables, log.append({"epoch": 0, METRIC: judge(model, part)(variables).means[METRIC]})


# ---------------------------------------------------------------------- the study

INTERESTS = {"n_interests": 4, "n_blocks": 2, "width": DIM}  # the defaults of VALID
BLOCKS = partial(interests, n_interests=INTERESTS["n_interests"])
CCL = {"margin": (0.4, 0.7), "weight": (5.0, 10.0, 25.0, 50.0, 100.0)}
WEIGHTS = {
    "unobserved_weight": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    "regularization": (0.001, 0.003, 0.01, 0.03),
}
TRAINED: dict[str, tuple[Callable[..., Fitted], Mapping[str, tuple[float, ...]]]] = {
    "VALID": (BLOCKS, {}),
    "MacridVAE": (partial(BLOCKS, kind=jr.models.MacridVAE), {}),
    "VALID, unrolled": (partial(BLOCKS, gradient=jr.models.implicit.unrolled), {}),
    "VALID, one step": (partial(BLOCKS, gradient=jr.models.implicit.one_step), {}),
    "VALID, straight through": (partial(BLOCKS, gradient=jr.models.implicit.straight_through), {}),
    "VALID, cosine attention": (partial(BLOCKS, attention=jr.models.attention.cosine), {}),
    "VALID, CoDA": (partial(BLOCKS, attention=jr.models.attention.coda), {}),
    "MultVAE": (multvae, {"cap": (0.2, 1.0)}),
    "RecVAE": (recvae, {"divergence_weight": (0.005, 0.02)}),
    "MF, CCL": (partial(ccl, simplex=False), CCL),
    "SimpleX": (partial(ccl, simplex=True), CCL),
    "LightGCN": (lightgcn, {"learning_rate": (3e-3, 1e-2)}),
    "RG2": (partial(solved, jr.solvers.rg2.fit), {"alpha": (0.05, 0.2), "regularization": (0.03, 0.1, 0.3)}),
    "iALS": (partial(solved, partial(jr.solvers.ials.fit, **AS_PUBLISHED)), WEIGHTS),
    "EASE": (ease, {"regularization": (10.0, 30.0, 100.0, 300.0, 1000.0)}),
}
SOME = ("VALID", "MacridVAE", "MultVAE", "RecVAE", "MF, CCL", "RG2", "iALS", "EASE")
COMPARED = {  # data set -> methods that train until validation no longer improves
    "citeulike-a-valid": (*SOME[:5], "SimpleX", "LightGCN", *SOME[5:]),
    "citeulike-a-random": SOME,
    "gowalla-valid": ("MF, CCL", "RG2", "iALS"),
    "ml-1m": SOME,
    "ml-1m-users": ("VALID", "MacridVAE", "MultVAE", "RecVAE", "EASE"),  # take histories
}
LIMITED = {"citeulike-a-valid": (25, tuple(TRAINED)[:7]), "gowalla-valid": (12, ("VALID", "MacridVAE"))}
VARIED = {  # what figures 2 to 5 of the paper vary, by method; on citeulike-a-valid
    "n_interests": (("VALID", "MacridVAE"), (1, 2, 3, 4, 5, 6, 7)),
    "n_blocks": (("VALID", "VALID, unrolled"), (1, 2, 3, 4)),
    "width": (("VALID", "MacridVAE"), (64, 128, 256, 512)),
}


def method_of(name: str, limit: int | None, part: Callable[[], Part], what: str = "", value: int = 0) -> study.Method:
    """Returns a method, or a method with one varied value.

    VALID with one block is MacridVAE, and a default value gives the method itself.
    """
    if (what, value) == ("n_blocks", 1):
        return method_of("MacridVAE", limit, part)
    if what and INTERESTS[what] == value:
        return method_of(name, limit, part)
    fit, grid = TRAINED[name]
    fit = partial(afresh, on_whole, fit, part, limit=limit, **({what: value} if what else {}))
    label = name + f", {what} {value}" * bool(what) + f", {limit} epochs" * bool(limit)
    return study.Method(label, fit, {} if what else grid)


def on_whole(fit: Callable[..., Fitted], part: Callable[[], Part], _: Any, __: Any, key: Any, **setting: Any) -> Fitted:
    """Trains on the `Part`, because `jaxrec.study` does not pass histories."""
    return fit(part(), key, **setting)


def methods(data: str) -> list[study.Method]:
    """Returns the methods of a data set."""
    part, (limit, limited) = partial(prepare, data), LIMITED.get(data, (None, ()))
    found = [method_of(name, None, part) for name in COMPARED[data]]
    found += [method_of(name, limit, part) for name in limited]
    if data == "citeulike-a-valid":
        each = [(n, what, value) for what, (names, values) in VARIED.items() for n in names for value in values]
        found += [method_of(name, limit, part, what, value) for name, what, value in each]
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
    names, values = VARIED[what]
    limit = LIMITED["citeulike-a-valid"][0]
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
                    [what.replace("n_", ""), value, name, *(mean_of(row.values[m]) for m in ("recall@20", "ndcg@20"))]
                )
                lines[-1] += ["" if one else apart[0], apart[1], " ".join(map(str, row.epochs)), str(len(row.seeds))]
    head = ["varied", "", "method", "Recall@20", "NDCG@20", "collapse", "uniformity", "best epochs", "seeds"]
    return (
        '### One value varied at a time on citeulike-a-valid, at most 25 epochs\n\n"collapse" is the mean cosine '
        'between different prototypes of a user; it is 1 if all interests are the same. "uniformity" is '
        "log mean exp(−2‖x − y‖²) over the concatenated interests of two users; it is lower if users are spread more "
        "evenly. Both are computed for 1,000 users.\n\n" + _record.table(head, lines)
    )


def panes(tables: Any, records: Any) -> list[list[dict[str, Any]]]:
    """Returns panes of Recall@20 and uniformity on test against the varied values."""
    shown = [*((what, METRIC) for what in VARIED), ("n_blocks", "uniformity")]
    rows = tables["citeulike-a-valid"]
    lines = [(what, metric, varied(rows, points(what), metric)) for what, metric in shown]
    return [[{"xlabel": what, "ylabel": f"{metric} on test", "lines": found} for what, metric, found in lines]]


def headlines(tables: Any, records: Any) -> list[str]:
    """Returns the lines for the highlights; for each data set those of the last limit of epochs."""
    said = []
    for data, rows in tables.items():
        limits = [after for after in ("", ", 12 epochs") if {f"VALID{after}", f"MacridVAE{after}"} <= set(rows)]
        for after in limits[-1:]:
            ours, other = rows[f"VALID{after}"], rows[f"MacridVAE{after}"]
            mean = {name: row.values[METRIC].mean() for name, row in rows.items()}
            others = {
                name: mean[name] for name in COMPARED[data] if name not in ("VALID", "MacridVAE") and name in mean
            }
            best = max(others, key=others.__getitem__)
            test, _ = tested(STUDY, records, data, ours.method, other.method)
            said.append(
                f"{data}{', at most' * bool(after)}{after.removeprefix(',')}, Recall@20 over {len(ours.seeds)} seeds: "
                f"VALID {mean[ours.method]:.4f}, MacridVAE {mean[other.method]:.4f} (paired difference over users "
                f"{test.difference:+.4f} ± {test.stderr:.4f}), the best other method, {best}, {others[best]:.4f}, "
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
    claims=[
        ("VALID", "MacridVAE"),
        ("VALID, 12 epochs", "MacridVAE, 12 epochs"),
        ("VALID, 25 epochs", "MacridVAE, 25 epochs"),
        *(("VALID", other) for other in ("EASE", "RecVAE", "MultVAE", "MF, CCL", "RG2")),
        *((f"{name}, 25 epochs", "VALID, 25 epochs") for name in tuple(TRAINED)[2:7]),
        *((f"{name}, n_blocks 3, 25 epochs", f"{name}, 25 epochs") for name in ("VALID", "VALID, unrolled")),
        ("VALID, n_interests 1, 25 epochs", "VALID, 25 epochs"),
        ("MacridVAE, n_interests 1, 25 epochs", "MacridVAE, 25 epochs"),
    ],
    columns=columns,
    listed=lambda name: not any(f", {what} " in name for what in VARIED),
    after=after,
    headlines=headlines,
    panes=panes,
)

if __name__ == "__main__":
    main(STUDY)
