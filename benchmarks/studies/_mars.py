"""Data, recipes and training of the studies of MAR, MARS and metric learning."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record
from benchmarks.studies._study import pairs_alone, quietly
from jaxrec import study
from jaxrec.data import datasets, splits
from jaxrec.optim import riemannian, rowwise
from jaxrec.train import mars

DIM, BATCH = 128, 1000
PASSES = 100  # epochs of the released code, each with 100 triples per user
SAMPLED, FULL = ("hit_rate@10", "hit_rate@20", "ndcg@10", "ndcg@20"), ("ndcg@10", "recall@10")
METRIC = {"sampled": "hit_rate@10", "full": "ndcg@10"}
PATIENCE, LOOK = 6, 1000  # validations without a gain; users in the full ranking of validation

# ---------------------------------------------------------------------- data

DATA = ("ciao", "delicious", "ciao-random", "delicious-random", "lastfm-2k", "ml-1m-loo")
PUBLISHED = ("ciao", "delicious", "ml-1m-loo")
BY_ID = ("ciao", "delicious")  # held out by id


class Part(NamedTuple):
    """The split of a seed, with the sampled items of each held-out pair, and the protocol."""

    train: jr.Interactions
    valid: jr.Interactions
    test: jr.Interactions
    valid_negatives: np.ndarray
    test_negatives: np.ndarray
    protocol: str = "sampled"

    def judged(self, model: Any, variables: jr.typing.Variables, on: str) -> jr.evaluate.Report:
        """Evaluates on "valid" or "test"; a full ranking of validation only uses some users."""
        held_out = getattr(self, on)
        if self.protocol == "full":
            users = np.unique(held_out.pairs()[0])
            users = np.random.default_rng(0).permutation(users)[:LOOK] if on == "valid" else users
            known = self.train if on == "valid" else self.train.union(self.valid)
            return jr.evaluate.full_ranking(model, variables, known, held_out, ks=(10,), users=users)
        pairs, negatives = held_out.pairs(), getattr(self, f"{on}_negatives")
        with quietly():  # the protocol has repeated negatives, which raise a warning
            return jr.evaluate.sampled_ranking(model, variables, pairs, negatives, ks=(10, 20), train=self.train)


def protocols_of(data: str) -> tuple[str, ...]:
    """Returns the protocols of a data set."""
    return ("sampled",) if data in BY_ID else ("sampled", "full")


@lru_cache(maxsize=3)
def prepare(data: str, seed: int) -> Part:
    """Returns the split of a seed; a published split is the same for all seeds."""
    found = datasets.load(data.removesuffix("-random"))
    order = partial(splits.random_order, key=jax.random.key(seed))
    if data == "ml-1m-loo":
        split = splits.leave_one_out(pairs_alone(found.train), order=order)
        users, _ = found.test.pairs()
        rows = np.searchsorted(users, split.test.pairs()[0])
        train, valid = split.train.union(split.valid), split.test
        return Part(train, valid, pairs_alone(found.test), found.negatives[rows], found.negatives)
    if data in PUBLISHED:
        parts = (pairs_alone(part) for part in (found.train, found.valid, found.test))
        return Part(*parts, found.negatives, found.negatives)
    whole = found.interactions or pairs_alone(found.train).union(pairs_alone(found.valid), pairs_alone(found.test))
    split = splits.leave_one_out(pairs_alone(whole), order=order)
    users, _ = split.test.pairs()
    negatives = drawn(users, known=pairs_alone(whole), items=np.flatnonzero(split.train.item_degrees), seed=seed)
    return Part(*split, negatives, negatives)


def drawn(users: np.ndarray, *, known: jr.Interactions, items: np.ndarray, seed: int, n: int = 100) -> np.ndarray:
    """Draws for each user n different items [T, n] of `items` that are in no part of its data."""
    rng, rows = np.random.default_rng(seed), known.to_scipy().tocsr()
    own = np.split(rows.indices, rows.indptr[1:-1])
    return np.stack([rng.choice(np.setdiff1d(items, own[user]), n, replace=False) for user in users])


def split(label: str) -> Callable[[int], Part]:
    """Returns the split of a data set and protocol, as a function of the seed."""
    data, _, protocol = label.partition(", ")
    return lambda seed: prepare(data, seed)._replace(protocol=protocol)


# ---------------------------------------------------------------------- methods


class Recipe(NamedTuple):
    """The arguments of `train.init` and `train.fit`.

    `epochs` is the maximum number of epochs, and `every` the number between validations. Unless
    `fixed`, they are those for Ciao, and other data sets get about the same number of steps.
    """

    model: Any
    objective: jr.typing.Objective | None  # None if `parameters` are the fitted variables
    tx: Any
    parameters: Mapping[str, Any] = {}
    batch_size: int = BATCH
    examples: Callable[..., jr.train.Examples] = jr.train.singles
    epochs: int = 150
    every: int = 5
    fixed: bool = False


def negatives(train: jr.Interactions, power: float, n: int = 1) -> jr.typing.Sampler:
    """Draws items that the user does not have, in proportion to their popularity to a power."""
    draw = partial(jr.sampling.popularity, table=jr.sampling.popularity_table(train, power=power), n=n)
    return partial(jr.sampling.reject_seen, sample=draw, seen=train)


def distances(train: jr.Interactions, dim: int = DIM) -> jr.models.MF:
    """Returns a model whose score is the negative squared distance."""
    scale, score = dim**-0.5, jr.models.negative_squared_distance
    return jr.models.MF(train.n_users, train.n_items, dim=dim, scale=scale, score=score)


def adagrad(rate: float) -> optax.GradientTransformation:
    """Returns Adagrad with an accumulator that starts at .1 for objectives that are sums.

    Objectives here are means over a batch, so its scale is divided by the batch size.
    """
    return optax.adagrad(rate, initial_accumulator_value=0.1 / BATCH**2, eps=1e-10)


def in_ball(rate: float) -> jr.optim.Step:
    """Returns Adagrad on the rows that a step looks up, which keeps them in the unit ball."""
    return rowwise.lazy(optax.chain(adagrad(rate), riemannian.project_to_ball()))


# ---------------------------------------------------------------------- baselines


def bpr(train: jr.Interactions, *, power: float, l2: float) -> Recipe:
    """Trains matrix factorisation with BPR."""
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM, scale=0.1)
    sample = negatives(train, power)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    return Recipe(model, objective, rowwise.lazy(optax.chain(optax.add_decayed_weights(l2), optax.adam(1e-3))))


def nmf(train: jr.Interactions, *, dim: int) -> Recipe:
    """Solves NMF; there is nothing to train."""
    model, variables, _ = jr.solvers.nmf.fit(train, dim=dim, key=jax.random.key(0))
    return Recipe(model, None, None, variables)


def neumf(train: jr.Interactions, *, power: float, learning_rate: float = 1e-3) -> Recipe:
    """Trains NeuMF with four negatives for each positive, as in its paper."""
    model = jr.models.NeuMF(train.n_users, train.n_items)
    loss, sample = partial(jr.losses.bce, negatives="sum"), negatives(train, power, n=4)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    return Recipe(model, objective, rowwise.lazy(optax.adam(learning_rate)))


def cml(train: jr.Interactions, *, power: float, learning_rate: float, margin: float = 0.5) -> Recipe:
    """Trains CML, with weights by the rank estimated from five negatives."""
    model = distances(train)
    loss = partial(jr.losses.warp, margin=margin, n_items=train.n_items)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=negatives(train, power, n=5))
    return Recipe(model, objective, in_ball(learning_rate))


def metricf(train: jr.Interactions, *, power: float, margin: float) -> Recipe:
    """Trains MetricF with four negatives for each positive, summed."""
    model = distances(train)
    loss = partial(jr.losses.on_scores, loss=partial(jr.losses.metricf, margin=margin, negatives="sum"))
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=negatives(train, power, n=4))
    return Recipe(model, objective, in_ball(0.1))


def transcf(train: jr.Interactions, *, power: float, learning_rate: float = 3e-3, dim: int = DIM) -> Recipe:
    """Trains TransCF, with large batches, because a step averages over the whole graph."""
    model = jr.models.TransCF(train, dim=dim, scale=0.1)
    options = {"loss": jr.losses.hinge, "distance_weight": 0.1, "neighbourhood_weight": 0.1}
    objective = partial(jr.train.translation_objective, model=model, sample=negatives(train, power), **options)
    return Recipe(model, objective, in_ball_adam(learning_rate), batch_size=5 * BATCH)


def lrml(train: jr.Interactions, *, power: float, learning_rate: float = 1e-3) -> Recipe:
    """Trains LRML; a negative gets the relation of its positive."""
    model = jr.models.LRML(train.n_users, train.n_items, dim=DIM)
    loss = partial(jr.losses.hinge, margin=1.0)
    objective = partial(jr.train.relation_objective, model=model, loss=loss, sample=negatives(train, power))
    rules = {"vectors": in_ball_adam(learning_rate), "memory": optax.adam(learning_rate)}
    labels = {"user": "vectors", "item": "vectors", "keys": "memory", "memory": "memory"}
    return Recipe(model, objective, rowwise.lazy(optax.partition(rules, labels)))


def in_ball_adam(rate: float) -> optax.GradientTransformation:
    """Returns Adam, with rows kept in the unit ball."""
    return optax.chain(optax.adam(rate), riemannian.project_to_ball())


def sml(train: jr.Interactions, *, power: float, learning_rate: float, dim: int = DIM) -> Recipe:
    """Trains SML, with margins learned in [0, 1]; γ is 10 / batch size, as in the released code."""
    loss = partial(jr.losses.sml, margin_weight=10 / BATCH)
    objective = partial(jr.train.sml_objective, sample=negatives(train, power), loss=loss)
    clip = optax.stateless_with_tree_map(lambda update, x: jnp.clip(x + update, 0, 1) - x)
    rules = {
        "vectors": optax.chain(adagrad(learning_rate), riemannian.project_to_ball()),
        "margins": optax.chain(adagrad(learning_rate), clip),
    }
    margins = {"user_margin": jnp.ones(train.n_users), "item_margin": jnp.ones(train.n_items)}
    labels = {"user": "vectors", "item": "vectors"} | dict.fromkeys(margins, "margins")
    return Recipe(distances(train, dim), objective, rowwise.lazy(optax.partition(rules, labels)), margins)


# ---------------------------------------------------------------------- facets


def facets(
    train: jr.Interactions,
    *,
    kind: type[jr.models.MARS] = jr.models.MARS,
    preset: Mapping[str, Mapping[str, Any]] = jr.papers.mars.RELEASED,
    step: Callable[[float], Any] | None = None,
    power: float | None = None,
    dim: int = DIM,
    learning_rate: float | None = None,
    **given: float,
) -> Recipe:
    """Trains MARS or MAR with the values of a preset, except those that are given.

    Another learning rate multiplies that of θ by the same factor.
    """
    of_model, of_objective = ({**preset[of], **{k: given[k] for k in given if k in preset[of]}} for of in OF_FACETS)
    model = kind(train.n_users, train.n_items, dim=dim, **of_model)
    powers = preset["power"] if power is None else {**preset["power"], "items": power}
    draws = jr.papers.mars.samplers(train, **powers)
    margin = mars.adaptive_margin(train, **preset["margin"])
    objective = partial(mars.objective, model=model, margin=margin, **draws, **of_objective)
    tuned = dict(preset["optimizer"]) | ({} if step is None else {"step": step})
    if learning_rate is not None:
        ratio = tuned["theta_learning_rate"] / tuned["learning_rate"]
        tuned |= {"learning_rate": learning_rate, "theta_learning_rate": ratio * learning_rate}
    epochs = -(-100 * PASSES * train.n_users // train.n_pairs)
    tx = rowwise.lazy(mars.optimizer(**tuned))
    return Recipe(model, objective, tx, epochs=epochs, every=max(epochs // 20, 1), fixed=True)


def composed(
    train: jr.Interactions, *, n_facets: int, dim: int, temperature: float, learning_rate: float = 0.03
) -> Recipe:
    """Trains facets on spheres by BSL over shared negatives, with row-wise Riemannian Adam."""
    model = jr.models.MARS(train.n_users, train.n_items, dim=dim, n_facets=n_facets, theta_scale=0.0)
    draw = partial(jr.sampling.uniform, n_items=train.n_items, n=1024)
    loss, sample = partial(jr.losses.bsl, temperature=temperature), partial(jr.sampling.shared, sample=draw)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    step = partial(riemannian.riemannian_adam, calibrated=False)
    tx = rowwise.lazy(mars.optimizer(learning_rate, theta_learning_rate=0.0, step=step))
    return Recipe(model, objective, tx, batch_size=256, examples=partial(jr.train.groups, n=16), every=10)


OF_FACETS = ("model", "objective")  # parts of a preset with the values that are varied
_MAR, _DEFAULT = partial(facets, kind=jr.models.MAR), jr.papers.mars.DEFAULT
RECIPES = {
    "BPR": bpr,
    "NMF": nmf,
    "NeuMF": neumf,
    "CML": cml,
    "MetricF": metricf,
    "TransCF": transcf,
    "LRML": lrml,
    "SML": sml,
    "MAR": partial(_MAR, preset=_DEFAULT, step=mars.ball_sgd),
    "MAR, paper": partial(_MAR, preset=jr.papers.mars.PAPER_MAR),
    "MARS, released": facets,
    "MARS, released, 2 facets": partial(facets, n_facets=2),
    "MARS, released, uniform negatives": partial(facets, power=0.0),
    "MARS, default": partial(facets, preset=_DEFAULT),
    "MARS, paper": partial(facets, preset=jr.papers.mars.PAPER),
    "MARS, paper's rule, free facets": partial(facets, preset=jr.papers.mars.FREE_FACETS),
    "composed, 4 facets": partial(composed, n_facets=4, dim=64),
    "composed, 1 facet": partial(composed, n_facets=1, dim=256),
}


class Trained(NamedTuple):
    """A model, with the best value on test of each metric on the published splits by id."""

    model: Any
    best_on_test: Mapping[str, float]


@lru_cache(maxsize=12)
def trained(data: str, name: str, setting: str, seed: int, looks: int | None = None, longer: int = 1) -> dict[str, Any]:
    """Trains until the metric of no protocol improves on validation.

    Returns for each protocol the model and the log of its best epoch. The cache lets the second
    protocol use the runs of the first: those of eight settings, and of two more seeds.

    Args:
        data: the data set.
        name: a name in `RECIPES`.
        setting: arguments of the recipe, as JSON.
        seed: the seed.
        looks: number of validations; None for the number of the recipe.
        longer: factor of the recipe's maximum number of epochs.
    """
    jax.clear_caches()
    parts = {protocol: split(f"{data}, {protocol}")(seed) for protocol in protocols_of(data)}
    train = parts["sampled"].train
    recipe = stretched(RECIPES[name](train, **json.loads(setting)), train)
    recipe = recipe._replace(epochs=longer * recipe.epochs)
    best, logs, on_test = {}, dict.fromkeys(parts, jr.train.Log()), []
    for epoch, seconds, variables in states(train, recipe, seed, looks):
        for protocol, part in parts.items():
            value = part.judged(recipe.model, variables, "valid").means[METRIC[protocol]]
            logs[protocol] = logs[protocol].append({"epoch": epoch, "seconds": seconds, METRIC[protocol]: value})
            if protocol not in best or value > best[protocol][0]:
                best[protocol] = value, epoch, variables
        if "full" not in parts:
            on_test.append(parts["sampled"].judged(recipe.model, variables, "test").means)
        if epoch - max(at for _, at, _ in best.values()) >= PATIENCE * recipe.every:
            break
    most = {f"best-on-test {metric}": max(row[metric] for row in on_test) for metric in SAMPLED if on_test}
    return {p: (Trained(recipe.model, most), variables, logs[p]) for p, (_, _, variables) in best.items()}


def states(train: jr.Interactions, recipe: Recipe, seed: int, looks: int | None) -> Any:
    """Yields the epoch, the seconds of training since the last, and the variables to validate."""
    if recipe.objective is None:
        yield 0, float("nan"), recipe.parameters
        return
    state = jr.train.init(jax.random.key(seed), recipe.model, recipe.tx, parameters=recipe.parameters)
    options = {"batch_size": recipe.batch_size, "examples": recipe.examples, "progress": False}
    for epoch in range(recipe.every, (recipe.epochs if looks is None else looks * recipe.every) + 1, recipe.every):
        began = time.perf_counter()
        state, _ = jr.train.fit(state, recipe.objective, recipe.tx, train, epochs=epoch, **options)
        yield epoch, time.perf_counter() - began, state.variables


def stretched(recipe: Recipe, train: jr.Interactions) -> Recipe:
    """Returns the recipe with the number of epochs that gives about the same number of steps.

    Validations are at least 500 steps apart on small data sets, and 1,000 steps or one epoch on
    large ones.
    """
    if recipe.fixed:
        return recipe
    looks, steps = recipe.epochs // recipe.every, -(-recipe.examples(train).n // recipe.batch_size)
    between = recipe.every * steps
    every = max(1000 // steps, 1) if between > 1000 else recipe.every * max(500 // between, 1)
    return recipe._replace(epochs=looks * every, every=every)


def fit(options: Any, data: str, protocol: str, name: str, _: Any, __: Any, key: Any, **setting: Any) -> Any:
    """Returns a run's best epoch for a protocol, or None if the run diverged.

    The study's key of a seed is `jax.random.key(seed)`, from which the seed is read.
    """
    try:
        return trained(data, name, json.dumps(setting), int(jax.random.key_data(key)[-1]), **options)[protocol]
    except jr.train.DivergenceError:
        return None


def method(label: str, name: str, grid: Mapping[str, Any], of: str = "", **options: int) -> study.Method:
    """Returns a method for a data set and protocol.

    `of` names the method that it varies, and `options` are those of `trained`.
    """
    data, _, protocol = label.partition(", ")
    return study.Method(name, partial(fit, options, data, protocol, of or name), grid)


def rankers() -> list[study.Method]:
    """Returns the trivial rankers: by item id, largest first, and by rarity."""
    by_id = lambda train, *_: (*jr.models.item_id(train.n_items, descending=True), None)  # noqa: E731

    def opposite(train: jr.Interactions, *_: Any) -> Any:
        model, variables = jr.models.popularity(train)
        return model, jax.tree.map(lambda scores: -scores, variables), None

    return [study.Method("item id", by_id), study.Method("minus popularity", opposite)]


def evaluate(trained: Any, variables: jr.typing.Variables, part: Part, on: str) -> jr.evaluate.Report:
    """Returns the metrics of the protocol, on test with the best values of a run, if they are known."""
    model, most = trained if isinstance(trained, Trained) else (trained, {})
    report = part.judged(model, variables, on)
    per_user = {name: report.per_user[name] for name in (SAMPLED if part.protocol == "sampled" else FULL)}
    return jr.evaluate.Report(report.users, per_user, most if on == "test" else {}, None, report.protocol)


def times(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Returns a table of the seconds of training of a run on test, for methods and data sets.

    Only the protocol "sampled" has times. A cell is the median over seeds, without runs on an
    accelerator; NMF has none.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for record in (record for record in records if record.get("device", "cpu") == "cpu"):
        data, _, protocol = record["data"].partition(", ")
        if record["on"] == "test" and protocol == "sampled" and record["curve"] and record["curve"][-1][1]:
            found.setdefault(data, {}).setdefault(record["method"], []).append(record["curve"][-1][1])
    lines = [[name, *(seconds(of_data.get(name, ())) for of_data in found.values())] for name in names]
    return _record.table(["", *found], [line for line in lines if any(line[1:])])


def seconds(values: Sequence[float]) -> str:
    """Returns the median with two digits; empty without values."""
    return f"{float(f'{np.median(values):.2g}'):g}" if len(values) else ""
