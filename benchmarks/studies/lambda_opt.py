"""λOpt against one fixed λ and other baselines, for matrix factorisation with BPR.

There are 64 dimensions and one negative for each positive. The latest 20 % of each user's pairs are
test, and of the rest the latest 25 % are validation; both numbers are rounded down. lastfm-2k has
no timestamps, so its order is random. Every pair counts once. λOpt trains its coefficients on
validation, so the same pairs cannot choose settings too. A random half of each user's validation
pairs, called learn, trains the coefficients. The other half, called select, chooses the setting of
each method (with seed 0) and the epoch of each run, by NDCG@50 of the full ranking. λOpt sees the
pairs of learn, and other methods do not; therefore one fixed λ is also trained on train and learn
("on learn too").

The optimiser is Adam with learning rate 0.01. Tables are drawn from N(0, 0.1²), unless the row says
N(0, 1). All methods take the same number of steps of Θ, and λOpt takes as many steps of Λ in
addition: 60 epochs on ml-100k and 30 on movielens-small and lastfm-2k with batches of 1,024, 20 on
ml-1m with batches of 4,096. AUC, Recall@50 (hit ratio) and NDCG@50 are computed as in λOpt's code,
which ranks each test item separately among the items that its user is not known to have. "full" is
the full ranking. "search" is the number of settings compared with seed 0, and the CPU seconds of
all of them. Differences are paired by seed. Those of LightGCN and facets are from their own fixed
λ. Facets are the projected facets of MARS without the sphere, on which a penalty would have no
effect. The poster reports +0.8 % AUC, +21.7 % HR@50 and +29.6 % NDCG@50 for DUI over one λ on
MovieLens-10M.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record
from benchmarks.studies._study import Study, less, main, mean_of, pairs_alone, quietly, records_of, stderr, swept
from jaxrec import study
from jaxrec.data import datasets, splits
from jaxrec.optim import lambda_opt
from jaxrec.optim.moments import amsgrad, smooth_adam
from jaxrec.optim.regularization import coefficients, penalty
from jaxrec.train import Recipe
from jaxrec.train.lambda_opt import draws, penalised_rows

DIM, RATE, SCALE = 64, 1e-2, 0.1
BUDGET = {  # number of epochs, and positives per step
    "ml-100k": (60, 1024),
    "movielens-small": (30, 1024),
    "lastfm-2k": (30, 1024),
    "ml-1m": (20, 4096),
}
# The metric that chooses, validations per run, and groups of users or items by number of pairs.
METRIC, LOOKS, GROUPS = "ndcg@50", 12, 5
PAPER, FULL = ("auc", "recall@50", "ndcg@50"), ("recall@50", "ndcg@50")

# ---------------------------------------------------------------------- data


class Halves(NamedTuple):
    """The two halves of the validation pairs."""

    learn: jr.Interactions
    select: jr.Interactions

    def fingerprint(self) -> str:
        """Returns the fingerprints of both halves."""
        return f"{self.learn.fingerprint()}-{self.select.fingerprint()}"


class Part(NamedTuple):
    """The data on which a method is trained, and the length of the training."""

    train: jr.Interactions
    learn: jr.Interactions
    epochs: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Number of steps of the parameters in a run."""
        return self.epochs * -(-self.train.n_pairs // self.batch_size)


@lru_cache(maxsize=4)
def prepare(data: str, seed: int) -> splits.Split:
    """Returns the split of a seed.

    The seed breaks ties in time, halves validation, and orders the pairs of lastfm-2k.
    """
    whole, key = datasets.load(data).interactions, jax.random.key(seed)
    order = splits.random_order if whole.timestamps is None else splits.temporal_order
    train, valid, test = map(pairs_alone, splits.in_turn(whole, order=partial(order, key=key)))
    by_chance = partial(splits.random_order, key=jax.random.fold_in(key, 1))
    halves = splits.in_turn(valid, test=0.5, valid=0.0, order=by_chance)
    return splits.Split(train, Halves(halves.train, halves.test), test)


@quietly()  # users without training pairs raise a warning
def evaluate(model: Any, variables: jr.typing.Variables, part: splits.Split, on: str) -> dict[str, float]:
    """Returns the metric that chooses, or on test all metrics.

    They include λOpt's NDCG@50 for each fifth of the users, by their number of training pairs.
    """
    known = part.train.union(part.valid.learn)
    if on == "valid":
        means = jr.evaluate.full_ranking(model, variables, known, part.valid.select, ks=(50,)).means
        return {METRIC: means[METRIC]}
    known = known.union(part.valid.select)
    apart = jr.papers.lambda_opt.separate_ranking(model, variables, known, part.test, ks=(50,))
    full = jr.evaluate.full_ranking(model, variables, known, part.test, ks=(50,))
    degrees = part.train.user_degrees[apart.users]
    found = {name: apart.means[name] for name in PAPER} | {f"full {name}": full.means[name] for name in FULL}
    for fifth, users in enumerate(np.array_split(np.argsort(degrees, kind="stable"), GROUPS), 1):
        found[f"pairs of fifth {fifth}"] = float(degrees[users].mean())
        found[f"ndcg@50 of fifth {fifth}"] = float(apart.per_user["ndcg@50"][users].mean())
    return found


# ---------------------------------------------------------------------- methods


class Kind(NamedTuple):
    """A method.

    Attributes:
        make: function of the data, the model and a setting that returns a `Recipe`.
        grid: the settings to choose from.
        few: the grid on data sets other than ml-100k; None is the same.
        whole: whether to train on `learn` too.
        model: function of the data that returns the model; None is `factors`.
    """

    make: Callable[..., Recipe]
    grid: Mapping[str, tuple[float, ...]]
    few: Mapping[str, tuple[float, ...]] | None = None
    whole: bool = False
    model: Callable[..., Any] | None = None


def factors(part: Part, *, scale: float = SCALE) -> jr.models.MF:
    """Returns a matrix factorisation; the released code draws its tables with scale 1."""
    return jr.models.MF(part.train.n_users, part.train.n_items, dim=DIM, scale=scale)


def tower(part: Part) -> jr.models.NeuMF:
    """Returns NeuMF with the sizes of its paper."""
    return jr.models.NeuMF(part.train.n_users, part.train.n_items)


def graph(part: Part) -> jr.models.LightGCN:
    """Returns LightGCN with two layers."""
    return jr.models.LightGCN(part.train, dim=DIM, layers=2, scale=SCALE)


def identity(x: jax.Array) -> jax.Array:
    """Leaves facets as they are, of any length."""
    return x


def facets(part: Part) -> jr.models.MARS:
    """Returns MARS with projected facets that are not on a sphere.

    On a sphere the penalty would be radial and have no effect.
    """
    size = {"dim": DIM, "n_facets": 2, "scale": SCALE * DIM**0.5, "theta_scale": 0.0}
    return jr.models.MARS(
        part.train.n_users, part.train.n_items, facets=jr.models.mars.projected, place=identity, **size
    )


def negatives(train: jr.Interactions, n: int = 1) -> jr.typing.Sampler:
    """Draws uniformly items that the user does not have in train.

    Items that the user has are redrawn up to twice, after which few remain.
    """
    draw = partial(jr.sampling.uniform, n_items=train.n_items, n=n)
    return partial(jr.sampling.reject_seen, sample=draw, seen=train, rounds=2)


def bpr(part: Part, model: Any) -> jr.typing.Objective:
    """Returns the BPR objective with one negative for each positive."""
    return partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=negatives(part.train))


def penalised(variables: Any, key: jax.Array, batch: jr.train.Batch, *, objective: Any, lambdas: Any) -> jax.Array:
    """Adds the penalty Ω of the batch's rows with fixed coefficients, as in λOpt's steps of Θ."""
    rows = penalised_rows(key, batch, objective=objective)
    return objective(variables, key, batch) + penalty(lambdas, variables["params"], rows)


# ---------------------------------------------------------------------- fixed coefficients


def fixed(part: Part, *, model: Any, regularization: Any) -> Recipe:
    """Trains with one fixed λ, or with fixed coefficients of any granularity."""
    objective = partial(penalised, objective=bpr(part, model), lambdas=regularization)
    return Recipe(model, objective, optax.adam(RATE))


def random(part: Part, *, model: Any, draw: Any, granularity: str) -> Recipe:
    """Trains with coefficients drawn between 1e-4 and 1e-1, uniformly in the logarithm."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes["params"])
    leaves, tree = jax.tree.flatten(coefficients(zeros, granularity))
    keys = jax.random.split(jax.random.key(draw), len(leaves))
    drawn = [10 ** jax.random.uniform(key, x.shape, minval=-4.0, maxval=-1.0) for key, x in zip(keys, leaves)]
    return fixed(part, model=model, regularization=jax.tree.unflatten(tree, drawn))


# ---------------------------------------------------------------------- learned coefficients


def learned(part: Part, *, model: Any, lambda_rate: Any, granularity: str = "DUI", **options: Any) -> Recipe:
    """Trains λOpt on `learn` with Adam and AMSGrad, as in the released scripts.

    Each step of the parameters is followed by one of the coefficients.
    """
    options = {"granularity": granularity, "simulated": smooth_adam(RATE)} | options
    return alternating(part, model, optax.adam(RATE), amsgrad(lambda_rate), **options)


def alternating(part: Part, model: Any, tx: Any, lambda_tx: Any, *, granularity: str, **options: Any) -> Recipe:
    """Alternates steps of the parameters and of the coefficients."""
    objective = bpr(part, model)
    options["draws"] = partial(draws, objective=objective, train=part.train, valid=part.learn)
    options["start"] = partial(coefficients, granularity=granularity)
    return Recipe(model, objective, lambda_opt.alternate(tx, lambda_tx, **options))


def sgda(part: Part, *, model: Any, learning_rate: Any, lambda_rate: Any) -> Recipe:
    """Trains SGDA: one λ for each dimension, and plain gradient descent for parameters and λ."""
    return alternating(part, model, optax.sgd(learning_rate), optax.sgd(lambda_rate), granularity="D", scope="exact")


# ---------------------------------------------------------------------- other baselines


def adversarial(tx: optax.GradientTransformation, *, epsilon: Any, weight: float, begin: int) -> jr.optim.Step:
    """Returns a step that descends on the loss at Θ and on the loss at an adversarial Θ + Δ.

    Args:
        tx: the optimiser of the sum.
        epsilon: ε, the length of each row of Δ.
        weight: weight of the adversarial loss.
        begin: the step from which on the adversarial loss is added.
    """
    init = lambda params: (tx.init(params), jnp.zeros((), jnp.int32))  # noqa: E731
    return jr.optim.Step(init, partial(_adversarial, tx=tx, epsilon=epsilon, weight=weight, begin=begin))


def _adversarial(value_fn, params, state, key, batch, *, tx, epsilon, weight, begin):
    opt_state, count = state

    def longer(gradient: jax.Array) -> jax.Array:
        square = (gradient**2).sum(-1, keepdims=True)
        return jnp.where(square > 0, epsilon * gradient * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)

    loss, slopes = jax.value_and_grad(value_fn)(params, key, batch)
    worse = jax.tree.map(lambda x, g: x + longer(g), params, slopes)
    share = jnp.where(count >= begin, weight, 0.0)
    slopes = jax.tree.map(lambda g, a: g + share * a, slopes, jax.grad(value_fn)(worse, key, batch))
    updates, opt_state = tx.update(slopes, opt_state, params)
    return loss, optax.apply_updates(params, updates), (opt_state, count + 1)


def amf(part: Part, *, model: Any, epsilon: Any, regularization: Any) -> Recipe:
    """Trains AMF with one fixed λ: BPR for half of the steps, then BPR with the adversary.

    The paper starts the adversary from a converged BPR.
    """
    tx = adversarial(optax.adam(RATE), epsilon=epsilon, weight=1.0, begin=part.steps // 2)
    return fixed(part, model=model, regularization=regularization)._replace(tx=tx)


def neumf(part: Part, *, model: Any, learning_rate: Any) -> Recipe:
    """Trains NeuMF by cross-entropy, with four negatives for each positive."""
    loss, sample = partial(jr.losses.bce, negatives="sum"), negatives(part.train, n=4)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    return Recipe(model, objective, optax.adam(learning_rate))


ONE = {"regularization": (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2, 1e-1)}
SOME, FEW = {"regularization": (1e-3, 3e-3, 1e-2, 3e-2)}, {"regularization": (0.0, 1e-3, 1e-2)}
RATES, TWO = {"lambda_rate": (1e-4, 1e-3, 1e-2, 3e-2)}, {"lambda_rate": (1e-3, 1e-2)}
DESCENT = {"learning_rate": (10.0, 50.0, 200.0), "lambda_rate": (1e-3, 1e-2, 1e-1)}
DRAWS, FOUR = {"draw": tuple(range(8))}, {"draw": tuple(range(4))}
NORMAL = partial(factors, scale=1.0)
KINDS = {
    "MF, one λ": Kind(fixed, ONE, SOME),
    "MF, one λ, on learn too": Kind(fixed, ONE, SOME, whole=True),
    "SGDA": Kind(sgda, DESCENT, {"learning_rate": (50.0, 200.0), "lambda_rate": (1e-2, 1e-1)}),
    "AMF": Kind(amf, {"epsilon": (0.1, 0.5), "regularization": (0.0, 1e-2)}),
    "NeuMF": Kind(neumf, {"learning_rate": (1e-3, 3e-3)}, model=tower),
    "random D": Kind(partial(random, granularity="D"), DRAWS, FOUR),
    "random DUI": Kind(partial(random, granularity="DUI"), DRAWS, FOUR),
    **{f"λOpt {name}": Kind(partial(learned, granularity=name), RATES, TWO) for name in ("D", "DU", "DI", "DUI")},
}
STUDIES = {  # changes that may explain the results, one at a time, and other models
    "λOpt DUI, exact": Kind(partial(learned, scope="exact"), RATES, TWO),
    "λOpt DI, exact": Kind(partial(learned, granularity="DI", scope="exact"), RATES, TWO),
    "MF, one λ, N(0, 1)": Kind(fixed, SOME, model=NORMAL),
    "λOpt DUI, N(0, 1)": Kind(learned, RATES, TWO, model=NORMAL),
    "λOpt DI, N(0, 1)": Kind(partial(learned, granularity="DI"), RATES, TWO, model=NORMAL),
    "LightGCN, one λ": Kind(fixed, FEW, model=graph),
    "LightGCN, λOpt DUI": Kind(learned, {"lambda_rate": (1e-3,)}, model=graph),
    "facets, one λ": Kind(fixed, FEW, model=facets),
    "facets, λOpt DUI": Kind(learned, {"lambda_rate": (1e-3,)}, model=facets),
}
EXTRA = {"ml-100k": tuple(STUDIES), "ml-1m": ("λOpt DI, exact",)}  # the data sets on which these run
BEST_FIXED = "MF, one λ"


def trained(
    kind: Kind, budget: tuple[int, int], train: Any, valid: Halves, key: jax.Array, settings: Sequence[Any]
) -> list[Any]:
    """Trains all settings in one sweep."""
    jax.clear_caches()
    part = Part(train.union(valid.learn) if kind.whole else train, valid.learn, *budget)
    model = (kind.model or factors)(part)
    split = splits.Split(train, valid, None)
    options = {"epochs": part.epochs, "batch_size": part.batch_size, "every": max(part.epochs // LOOKS, 1)}
    options |= {"validate": lambda variables: evaluate(model, variables, split, "valid"), "select": METRIC}
    return swept(model, partial(kind.make, part, model=model), part.train, key, settings, **options)


def methods(data: str, budget: tuple[int, int] | None = None) -> list[study.Method]:
    """Returns the methods of a data set."""

    def popular(train: Any, valid: Halves, key: Any) -> Any:
        return (*jr.models.popularity(train.union(*valid)), None)

    found = [study.Method("popularity", popular)]
    for name, kind in (KINDS | {name: STUDIES[name] for name in EXTRA.get(data, ())}).items():
        grid = kind.grid if data == "ml-100k" else kind.few or kind.grid
        fit_all = partial(trained, kind, budget or BUDGET[data])
        found.append(study.Method(name, grid=grid, fit_all=fit_all))
    return found


# ---------------------------------------------------------------------- tables


def twin(name: str) -> str:
    """Returns the name of the fixed λ with which a method is compared."""
    return name.replace("λOpt DUI", "one λ") if name.partition(",")[0] in ("LightGCN", "facets") else BEST_FIXED


def columns(data: str, rows: Mapping[str, study.Row]) -> dict[str, list[str]]:
    """Returns the columns for the difference from one λ and the cost of the search."""
    title = "NDCG@50 minus one λ"
    cells: dict[str, list[str]] = {title: [], "search": []}
    for name, row in rows.items():
        compared = row.setting and not name.endswith("one λ") and twin(name) in rows
        cells[title].append(mean_of(less(row, rows[twin(name)], METRIC), sign="+") if compared else "")
        spent = row.search_seconds or row.cpu_seconds[0]
        cells["search"].append(f"{row.trials}, {spent:.0f} s" if row.setting else "")
    return cells


def gains(tables: Any, records: Any) -> str:
    """Returns sentences with the relative gains of DUI over one λ."""
    said = []
    for data, rows in tables.items():
        if {BEST_FIXED, "λOpt DUI"} <= set(rows):
            parts = []
            for metric, label in zip(PAPER, ("AUC", "HR@50", "NDCG@50")):
                one, difference = rows[BEST_FIXED].values[metric], less(rows["λOpt DUI"], rows[BEST_FIXED], metric)
                errors = f" ({difference.mean() / error:.0f} standard errors)" if (error := stderr(difference)) else ""
                parts.append(f"{difference.mean() / one.mean():+.1%} {label}{errors}")
            said.append(f"Relative gain of DUI over one λ on {data}: {', '.join(parts)}.")
    return "\n\n".join(said)


TRAJECTORIES = _record.RESULTS / "lambda_opt_trajectories.jsonl"


def follow(data: str) -> None:
    """Records how Λ changes during the chosen run of DUI.

    Users and items are grouped by their number of training pairs, and each group's mean is kept.
    """
    records = records_of("lambda_opt")
    rows = {row.method: row for row in study.table(methods(data), records, data=[data], metric=METRIC).rows}
    if "λOpt DUI" not in rows or any(found["data"] == data for found in study.read(TRAJECTORIES)):
        return
    split = prepare(data, 0)
    part = Part(split.train, split.valid.learn, *BUDGET[data])
    recipe = KINDS["λOpt DUI"].make(part, model=factors(part), **rows["λOpt DUI"].setting)
    degrees = {"user": np.asarray(part.train.user_degrees), "item": np.asarray(part.train.item_degrees)}
    groups = {side: np.array_split(np.argsort(d, kind="stable"), GROUPS) for side, d in degrees.items()}
    found: dict[str, Any] = {"data": data, "commit": study.commit(_record.RESULTS), "user": [], "item": []}
    found["steps"] = part.steps // part.epochs
    found["degrees"] = {side: [float(degrees[side][group].mean()) for group in groups[side]] for side in groups}

    def each(state: jr.train.State, _: Any) -> None:
        for side, table in state.opt_state.lambdas.items():
            found[side].append([float(np.asarray(table)[group].mean()) for group in groups[side]])

    state = jr.train.init(jax.random.split(jax.random.key(0), 1)[0], recipe.model, recipe.tx)
    options = {"epochs": part.epochs, "batch_size": part.batch_size, "progress": False}
    jr.train.fit(state, recipe.objective, recipe.tx, part.train, callbacks=[each], **options)
    study.append(TRAJECTORIES, found)


def panes(tables: Any, records: Any) -> list[list[dict[str, Any]]]:
    """Returns panes of Λ during training, of the grid of one λ, and of the gain of DUI by pairs."""
    followed, found = {each["data"]: each for each in study.read(TRAJECTORIES)}, []
    for data, rows in tables.items():
        line, path = [], followed.get(data)
        for side in ("user", "item") if path else ():
            steps = path["steps"] * np.arange(1, len(path[side]) + 1)
            lines = {f"{d:.0f} pairs": (steps, v) for d, v in zip(path["degrees"][side], np.array(path[side]).T)}
            line.append({"title": f"{data}: mean Λ of {side}s by pairs", "xlabel": "step", "lines": lines})
        tried = [r for r in records if (r["data"], r["method"], r["on"]) == (data, BEST_FIXED, "valid")]
        values = {f"{r['setting']['regularization']:g}": r["valid"][METRIC] for r in tried}
        lines = {"NDCG@50 on select": (list(values), list(values.values()))}
        line.append({"title": f"{data}: one fixed λ", "xlabel": "λ", "lines": lines})
        if {BEST_FIXED, "λOpt DUI"} <= set(rows):
            metrics = [f"ndcg@50 of fifth {fifth}" for fifth in range(1, GROUPS + 1)]
            more = [less(rows["λOpt DUI"], rows[BEST_FIXED], metric) for metric in metrics]
            pairs = [f"{rows[BEST_FIXED].values[f'pairs of fifth {n}'][0]:.0f}" for n in range(1, GROUPS + 1)]
            lines = {"NDCG@50": (pairs, [d.mean() for d in more], [stderr(d) or np.nan for d in more])}
            line.append({"title": f"{data}: gain of DUI over one λ", "xlabel": "mean pairs of fifths", "lines": lines})
        found.append(line)
    return found


def headlines(tables: Any, records: Any) -> list[str]:
    """Returns the lines for the highlights."""
    names, said = ("λOpt DUI", BEST_FIXED, "MF, one λ, on learn too"), []
    for data in ("ml-100k", "ml-1m"):
        rows = tables[data]
        learned, fixed, too = (f"{rows[name].values[METRIC].mean():.4f}" for name in names)
        seeds = len(rows["λOpt DUI"].seeds)
        said.append(
            f"Learned regularisation on {data}, NDCG@50 as in λOpt's code, {seeds} seed{'s' * (seeds > 1)}: λOpt "
            f"{learned}, one fixed λ {fixed}, and one fixed λ that also trains on the validation pairs which train "
            f"λOpt's coefficients {too}."
        )
    return said


def quick() -> tuple[list[study.Method], dict[str, Any]]:
    """Returns the shortened run: ml-100k, one λ and DUI, 6 epochs."""
    few = [each for each in methods("ml-100k", (6, 1024)) if each.name in (BEST_FIXED, "λOpt DUI")]
    return few, {"ml-100k": partial(prepare, "ml-100k")}


STUDY = Study(
    name="lambda_opt",
    title="Regularisation that is learned",
    about=__doc__,
    methods={data: partial(methods, data) for data in BUDGET},
    split=lambda data: partial(prepare, data),
    evaluate=evaluate,
    metric=lambda data: METRIC,
    shown=lambda data: (*PAPER, "full ndcg@50"),
    quick=quick,
    finish=follow,
    claims=[
        *((f"λOpt {which}", BEST_FIXED) for which in ("DUI", "DU", "DI", "D")),
        ("λOpt DUI", "MF, one λ, on learn too"),
        *((f"λOpt {which}, exact", f"λOpt {which}") for which in ("DUI", "DI")),
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
