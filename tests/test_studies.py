"""Each method that a study declares, and that no record shows to work, can be trained for an epoch."""

import re
from functools import partial

import jax
import numpy as np
import pytest

import jaxrec as jr
from benchmarks.studies import _lambda_opt, _mars, _results, _valid, lambda_opt, mars_tuned, mml, published, valid
from jaxrec import study
from jaxrec.data import splits, synthetic


@pytest.fixture(autouse=True)
def promotion():
    """Benchmarks run with the usual promotion of dtypes, on which Optax's schedules rely."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def parts():
    """The pairs of 80 users and 70 items, in a random split."""
    whole, _ = synthetic.low_rank(jax.random.key(0), n_users=80, n_items=70, dim=4, pairs_per_user=20)
    return splits.ratio(whole, order=partial(splits.random_order, key=jax.random.key(1)))


def unrecorded(name, grids):
    """The methods of a study without a record that has the hyperparameters of the grid; `grids` has them by method."""
    named = lambda record: re.sub(r", \d+ epochs$", "", record["method"])  # noqa: E731
    ran = {(named(record), *sorted(record["setting"])) for record in _results.records_of(name)}
    return [method for method, grid in grids.items() if (method, *sorted(grid)) not in ran]


def one(grid, **other):
    """The first setting of a grid, with one epoch."""
    return {**study.settings(grid, 1)[0], **({"epochs": 1} if "epochs" in grid else {}), **other}


def ranks(model, variables, parts, **known):
    """Whether a trained model can be evaluated, and finds any item: one epoch is too short to ask for more."""
    return jr.evaluate.full_ranking(model, variables, parts.train, parts.valid, ks=(10,), **known).means["ndcg@10"] > 0


@pytest.mark.parametrize("case", unrecorded("mml", {case: mml.tuned(case, "gowalla").grid for case in mml.CASES}))
def test_losses(case, parts):
    method = mml.tuned(case, "gowalla")
    model, variables, _ = method.fit(parts.train, None, jax.random.key(0), **one(method.grid))
    assert ranks(model, variables, parts, histories=parts.train if "SimpleX" in case else None)


TRAINED = {name: known for of in published.METHODS.values() for name, known in of.items() if "epochs" in known.setting}


@pytest.mark.parametrize("name", unrecorded("published", {name: known.setting for name, known in TRAINED.items()}))
def test_published(name, parts):
    known = TRAINED[name]
    less = {"epochs": 1, "clusters": 5, "warm_up": 0, "negatives": 5}
    setting = known.setting | {name: value for name, value in less.items() if name in known.setting}
    model, variables, log = known.fit(parts.train, None, jax.random.key(0), **setting)
    assert np.isfinite(log.column("loss")[1]).all()
    assert ranks(model, variables, parts, histories=parts.train if name == "SimpleX" else None)


def test_positives_of_lightgcn_are_drawn_from_users_with_the_same_probability():
    """The first user has one pair of five, and is drawn in every second example; padding is left out."""
    train = jr.Interactions.from_pairs([0, 1, 1, 1, 1], [4, 0, 1, 2, 3])
    examples = published.by_users(train)
    batches = [examples.batch(np.array([0, 1, 2, 3, 4, 5]), step) for step in range(300)]
    users, items = (
        np.concatenate([np.asarray(x)[:5, 0] for x in each]) for each in zip(*((b.users, b.items) for b in batches))
    )
    assert examples.n == 5 and not any(bool(batch.where[5, 0]) for batch in batches)
    assert abs(users.mean() - 0.5) < 0.05 and bool(train.contains(users, items).all())
    assert np.bincount(items).min() > 100


@pytest.mark.parametrize("name", unrecorded("valid", {name: grid for name, (_, grid) in valid.TRAINED.items()}))
def test_valid(name, parts):
    fit, grid = valid.TRAINED[name]
    part = _valid.Part("citeulike-a-valid", parts.train, parts.valid, parts.test)
    model, variables, _ = fit(part, jax.random.key(0), limit=1, **one(grid))
    assert part.judged(model, variables, "valid", ks=(20,)).means["recall@20"] > 0


@pytest.mark.parametrize(
    "name", unrecorded("mars_tuned", {name: grid for name, (_, grid) in mars_tuned.METHODS.items()})
)
@pytest.mark.filterwarnings("ignore:Maximum number of iterations")  # of NMF
def test_mars_tuned(name, parts):
    of, grid = mars_tuned.METHODS[name]
    recipe = _mars.RECIPES[of](parts.train, **one(grid))
    _, _, variables = next(iter(_mars.states(parts.train, recipe._replace(every=1), 0, 1)))
    assert ranks(recipe.model, variables, parts)


OF_LAMBDA_OPT = {**lambda_opt.KINDS, **lambda_opt.STUDIES}
OF_EPOCHS = {name: {"epochs": (), **kind.grid} for name, kind in OF_LAMBDA_OPT.items()}


@pytest.mark.parametrize("name", unrecorded("lambda_opt", OF_EPOCHS))
def test_lambda_opt(name, parts):
    kind = OF_LAMBDA_OPT[name]
    halves, setting = _lambda_opt.Halves(parts.valid, parts.test), one(kind.grid, epochs=1)
    [(model, variables, _)] = lambda_opt.trained(kind, 256, parts.train, halves, jax.random.key(0), [setting])
    assert ranks(model, variables, parts)
