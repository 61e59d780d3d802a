"""Which vector should a new user get: an exact one, a trained one, or the mean of the items'?

150 users of ml-100k (ratings of 3 stars and more) are validation and 150 are test; no model is
trained on them. Users and pairs are drawn for each seed. Of a new user's pairs, a random .8 are the
history and .2 are to be found among all items, with the whole history masked. In "5 items", the
vector is computed from 5 random items of the history, for the same lists to find.

Each method trains on the other users, then computes the vectors of the new ones; its items stay as
they are. `train.fold_in` continues the training's objective on the new rows. "Mean" is the mean of
the history's item vectors, weighted by the number of users of an item to the power of −`power`, and
of unit vectors if `unit` is true. "Trained again" is what a fold-in avoids: the model is trained on
the other users and on the histories jointly. "Softmax" is a matrix factorisation by cosines,
trained with the sampled softmax loss and 50 negatives; "BPR" is one by dot products. All models
have 64 dimensions. Every method has 36 settings, of training and fold-in together, from which
NDCG@10 of the validation users chooses with seed 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxrec as jr
from benchmarks.studies._command import main
from benchmarks.studies._sgd import DIM, GROUPS, RATE
from benchmarks.studies._study import Study, by_epochs, pairs_alone, quietly, swept
from jaxrec import study
from jaxrec.data import datasets, splits

METRIC, SHOWN, NEW, BATCH = "ndcg@10", ("ndcg@10", "recall@20"), 150, 256
FEW = {"ml-100k": None, "ml-100k, 5 items": 5}  # number of items of a new user's history; None is all
Setting = Mapping[str, Any]


class Part(NamedTuple):
    """The split of a seed.

    Attributes:
        train: the pairs of the users to train on.
        valid: for each validation user the pairs to find.
        test: the same for the test users.
        known: for "valid" and "test", the histories of these users, which are masked.
        shown: the same, but only the items from which their vectors are computed.
    """

    train: jr.Interactions
    valid: jr.Interactions
    test: jr.Interactions
    known: Mapping[str, jr.Interactions]
    shown: Mapping[str, jr.Interactions]


@lru_cache(maxsize=8)
def split(data: str, seed: int) -> Part:
    """Draws the users and the pairs of a seed."""
    users, pairs, few = jax.random.split(jax.random.key(seed), 3)
    found = datasets.load("ml-100k", minimum=3.0)
    whole, _ = splits.compact(splits.k_core(pairs_alone(found.interactions)), found.id_map)
    order = partial(splits.random_order, key=pairs)
    with quietly():  # items that only new users have are dropped
        held = splits.held_out_users(users, whole, n_valid=NEW, n_test=NEW, order=order)
    own = lambda part: part.take(np.flatnonzero(np.asarray(part.user_degrees)))  # noqa: E731
    histories = {"valid": own(held.valid_history), "test": own(held.test_history)}
    shown = {on: first(few, history, FEW[data]) for on, history in histories.items()}
    return Part(*map(own, (held.train, held.valid, held.test)), histories, shown)


def first(key: Any, histories: jr.Interactions, n: int | None) -> jr.Interactions:
    """Returns n random items of each history; None is all."""
    if n is None:
        return histories
    users, _ = histories.pairs()
    by_rank = np.lexsort((splits.random_order(histories, key=key), users))
    keep = np.zeros(len(users), bool)
    keep[by_rank] = np.arange(len(users)) - np.asarray(histories.indptr)[users] < n
    return histories.select(keep)


class Folding(NamedTuple):
    """A way to new users.

    Attributes:
        fold: function of variables and histories that returns a model and variables of the
            histories' users.
    """

    fold: Callable[[Any, jr.Interactions], tuple[Any, Any]]


def evaluate(model: Any, variables: Any, part: Part, on: str) -> dict[str, float]:
    """Computes the vectors of the new users, and evaluates their lists."""
    if isinstance(model, Folding):
        model, variables = model.fold(variables, part.shown[on])
    means = jr.evaluate.full_ranking(model, variables, part.known[on], getattr(part, on), ks=(10, 20)).means
    return {name: means[name] for name in SHOWN}


# ---------------------------------------------------------------------- new users


def of_vectors(vectors: Any, item: Any, score: Any = jr.models.dot) -> tuple[jr.models.MF, Any]:
    """Returns a model with the vectors of new users."""
    model = jr.models.MF(len(vectors), len(item), dim=item.shape[1], score=score)
    return model, {"params": {"user": vectors, "item": item}}


def mean(variables: Any, histories: jr.Interactions, *, degrees: Any, power: float, unit: bool, score: Any) -> Any:
    """Takes means of item vectors."""
    item = np.asarray(variables["params"]["item"])
    vectors = item / np.maximum(np.linalg.norm(item, axis=1, keepdims=True), 1e-9) if unit else item
    weighted = vectors * np.maximum(degrees, 1.0)[:, None] ** -power
    sums = histories.to_scipy() @ weighted
    return of_vectors(sums.astype(np.float32), item, score)


def exact(variables: Any, histories: jr.Interactions, **setting: float) -> Any:
    """Solves for the vectors, as iALS does."""
    return of_vectors(jr.solvers.ials.fold_in(variables, histories, **setting), variables["params"]["item"])


def trained(
    variables: Any, histories: jr.Interactions, *, recipe: jr.train.Recipe, key: Any, fold_rate: float, fold_epochs: int
) -> Any:
    """Trains the vectors."""
    options = {"epochs": fold_epochs, "key": key, "examples": GROUPS, "batch_size": 64, "progress": False}
    tx = optax.adam(fold_rate)
    return jr.train.fold_in(recipe.model, variables, recipe.objective, tx, histories, **options)[:2]


# ---------------------------------------------------------------------- training


def softmax(temperature: Any, *, train: jr.Interactions, steps: int) -> jr.train.Recipe:
    """Returns the recipe of the sampled softmax of cosines."""
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM, score=jr.models.cosine)
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=50)
    loss = partial(jr.losses.softmax, temperature=temperature)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    return jr.train.Recipe(model, objective, optax.adam(optax.cosine_decay_schedule(RATE, steps)))


def bpr(l2: Any, *, train: jr.Interactions, steps: int) -> jr.train.Recipe:
    """Returns the recipe of BPR."""
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM, scale=0.1)
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=50)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    objective = partial(jr.train.penalised_objective, objective=objective, l2=l2)
    return jr.train.Recipe(model, objective, optax.adam(optax.cosine_decay_schedule(RATE, steps)))


def setup_of(make: Callable, train: jr.Interactions, epochs: int) -> Callable[..., jr.train.Recipe]:
    """Returns the function from a setting to its recipe."""
    return partial(make, train=train, steps=-(-GROUPS(train).n // BATCH) * epochs)


def by_gradients(make: Callable, train: jr.Interactions, key: Any, settings: Sequence[Setting]) -> list[Any]:
    """Trains settings, and returns the variables of each."""

    def together(epochs: int, settings: Sequence[Setting]) -> list[Any]:
        setup = setup_of(make, train, epochs)
        options = {"epochs": epochs, "batch_size": BATCH, "examples": GROUPS}
        return swept(setup(**settings[0]).model, setup, train, key, settings, **options)

    return [found[1] for found in by_epochs(settings, together)]


def by_solver(train: jr.Interactions, key: Any, settings: Sequence[Setting]) -> list[Any]:
    """Fits iALS with each setting, and returns the variables of each."""
    options = {"dim": DIM, "key": key, "progress": False}
    return [jr.solvers.ials.fit(train, **options, **setting)[1] for setting in settings]


class Kind(NamedTuple):
    """A model and a way to new users.

    Attributes:
        fit: function of pairs, a key and settings of training that returns the variables of each.
        make: the recipe of training by gradients; None for iALS.
        training: the settings of training.
        folding: the settings of the fold-in.
        how: "exact", "trained", "mean" or "again".
    """

    fit: Callable[..., list[Any]]
    make: Callable[..., jr.train.Recipe] | None
    training: Mapping[str, Sequence[Any]]
    folding: Mapping[str, Sequence[Any]]
    how: str


def fit_all(kind: Kind, train: jr.Interactions, valid: Any, key: Any, settings: Sequence[Setting]) -> list[Any]:
    """Trains each setting of training once, and combines it with those of the fold-in."""
    parts = [[{name: s[name] for name in names} for s in settings] for names in (kind.training, kind.folding)]
    each = [dict(zip(kind.training, values)) for values in dict.fromkeys(tuple(own.values()) for own in parts[0])]
    if kind.how == "again":
        return [(Folding(partial(again, kind, train=train, key=key, setting=own)), {}, None) for own in each]
    found = kind.fit(train, key, each)
    return [(Folding(folding(kind, train, key, own, more)), found[each.index(own)], None) for own, more in zip(*parts)]


def folding(kind: Kind, train: jr.Interactions, key: Any, own: Setting, more: Setting) -> Callable[..., Any]:
    """Returns the fold-in of a setting."""
    if kind.how == "exact":
        return partial(exact, **own)
    if kind.how == "mean":
        score = jr.models.cosine if kind.make is softmax else jr.models.dot
        return partial(mean, degrees=train.item_degrees, score=score, **more)
    own = {name: value for name, value in own.items() if name != "epochs"}
    recipe = kind.make(**own, train=train, steps=1)  # the schedule of training is not used
    return partial(trained, recipe=recipe, key=key, **more)


def again(kind: Kind, variables: Any, histories: jr.Interactions, *, train: Any, key: Any, setting: Setting) -> Any:
    """Trains on the pairs of all users, and returns the part of the new ones."""
    both = [part.pairs() for part in (train, histories)]
    users = np.concatenate([both[0][0], both[1][0] + train.n_users])
    whole = jr.Interactions.from_pairs(users, np.concatenate([both[0][1], both[1][1]]), n_items=train.n_items)
    (variables,) = kind.fit(whole, key, [setting])
    user, item = (variables["params"][side] for side in ("user", "item"))
    return of_vectors(user[train.n_users :], item, jr.models.cosine if kind.make is softmax else jr.models.dot)


# ---------------------------------------------------------------------- methods

UNIT = {"unit": (False, True)}
ALS = {
    "regularization": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    "unobserved_weight": (0.12, 0.25, 0.5, 1.0, 2.0, 4.0),
}
FEW_ALS = {"regularization": (0.003, 0.01, 0.03), "unobserved_weight": (0.03, 0.1)}
SOFT = {"temperature": (0.2, 0.3, 0.4), "epochs": (40, 80)}
BPR = {"l2": (0.003, 0.01, 0.03), "epochs": (40, 80)}
LONG = {"fold_rate": (0.03, 0.1, 0.3), "fold_epochs": (40, 120)}
_softmax, _bpr = partial(by_gradients, softmax), partial(by_gradients, bpr)
KINDS = {
    "iALS, fold_in": Kind(by_solver, None, ALS, {}, "exact"),
    "iALS, mean": Kind(by_solver, None, FEW_ALS, {"power": (0.25, 0.5, 0.75), **UNIT}, "mean"),
    "iALS, trained again": Kind(by_solver, None, ALS, {}, "again"),
    "softmax, fold_in": Kind(_softmax, softmax, SOFT, LONG, "trained"),
    "softmax, mean": Kind(
        _softmax,
        softmax,
        {"temperature": (0.1, 0.15, 0.2), "epochs": (10, 15)},
        {"power": (-0.25, 0.0, 0.25), **UNIT},
        "mean",
    ),
    "softmax, trained again": Kind(
        _softmax,
        softmax,
        {"temperature": (0.07, 0.1, 0.15, 0.2, 0.3, 0.4), "epochs": (5, 10, 15, 20, 30, 45)},
        {},
        "again",
    ),
    "BPR, fold_in": Kind(_bpr, bpr, BPR, {"fold_rate": (0.003, 0.01, 0.03), "fold_epochs": (10, 40)}, "trained"),
    "BPR, mean": Kind(_bpr, bpr, BPR, {"power": (-0.25, 0.0, 0.25), **UNIT}, "mean"),
}


def methods() -> list[study.Method]:
    """Returns the methods."""
    return [
        study.Method(name, grid={**kind.training, **kind.folding}, fit_all=partial(fit_all, kind))
        for name, kind in KINDS.items()
    ]


def quick() -> tuple[list[study.Method], dict[str, Any]]:
    """Returns the shortened run: fold-ins with one setting."""
    few = [each for each in methods() if each.name in ("iALS, fold_in", "softmax, fold_in", "softmax, mean")]
    grids = [{name: values[:1] for name, values in each.grid.items()} for each in few]
    last = [each._replace(grid=grid) for each, grid in zip(few, grids)]
    return last, {"ml-100k": partial(split, "ml-100k")}


STUDY = Study(
    name="fold_in",
    title="New users by fold-in",
    about=__doc__,
    methods=dict.fromkeys(FEW, methods),
    split=lambda data: partial(split, data),
    evaluate=evaluate,
    metric=lambda data: METRIC,
    shown=lambda data: SHOWN,
    quick=quick,
    seeds=(0, 1, 2, 3, 4),
    claims=[
        ("iALS, fold_in", "iALS, mean"),
        ("iALS, fold_in", "iALS, trained again"),
        ("softmax, fold_in", "softmax, mean"),
        ("softmax, fold_in", "softmax, trained again"),
        ("softmax, fold_in", "iALS, fold_in"),
        ("BPR, fold_in", "BPR, mean"),
    ],
)

if __name__ == "__main__":
    main(STUDY)
