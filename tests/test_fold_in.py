"""New users' rows, trained with all other parameters frozen."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrec as jr
from jaxrec.interactions import DataWarning, Interactions
from jaxrec.train import State, fit, fold_in, pairwise_objective

models = jr.models
M, N = 6, 9
KNOWN = Interactions.from_pairs([0, 0, 1, 2, 2, 3, 4, 5], [0, 3, 4, 1, 8, 5, 6, 2], n_users=M, n_items=N)
NEW = Interactions.from_pairs([0, 0, 1, 1, 1], [1, 2, 4, 5, 6], n_users=2, n_items=N)
MODEL = models.MF(M, N, dim=3, score=models.cosine, scale=1.0)
SAMPLE = partial(jr.sampling.uniform, n_items=N, n=2)
HOW = {"batch_size": 3, "progress": False, "key": jax.random.key(7)}
TX = optax.sgd(1.0)


def _objective(model, sample=SAMPLE):
    return partial(pairwise_objective, model=model, loss=partial(jr.losses.softmax, temperature=0.5), sample=sample)


@pytest.fixture(scope="module")
def variables():
    """The vectors of items 0 to 3 point in one direction, and those of the others in another."""
    rng = np.random.default_rng(0)
    ways = np.where(np.arange(N)[:, None] < 4, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    tables = {"user": rng.normal(size=(M, 3)), "item": ways + 0.2 * rng.normal(size=(N, 3))}
    return {"params": {name: jnp.asarray(table, jnp.float32) for name, table in tables.items()}}


@pytest.fixture(scope="module")
def folded(variables):
    return fold_in(MODEL, variables, _objective(MODEL), TX, NEW, epochs=10, **HOW)


def test_items_are_frozen_and_new_users_prefer_items_like_theirs(variables, folded):
    model, found, log = folded
    assert model == MODEL.clone(n_users=2) and found["params"]["user"].shape == (2, 3)
    np.testing.assert_array_equal(found["params"]["item"], variables["params"]["item"])
    assert len(log.records) == 10 and log.records[-1]["loss"] < log.records[0]["loss"]
    rows = np.asarray(model.apply(found, jnp.arange(2), method="rows"))
    assert rows[0, :4].min() > rows[0, 4:].max() and rows[1, 4:].min() > rows[1, :4].max()


def test_it_equals_training_with_frozen_items(variables, folded):
    """It equals training of a model of the new users in which the updates of items are set to zero."""
    start = {"user": jnp.stack([variables["params"]["user"].mean(0)] * 2), "item": variables["params"]["item"]}
    tx = optax.partition({"train": TX, "keep": optax.set_to_zero()}, {"user": "train", "item": "keep"})
    state = State({"params": start}, tx.init(start), HOW["key"], jnp.zeros((), jnp.int32))
    state, log = fit(state, _objective(MODEL.clone(n_users=2)), tx, NEW, epochs=10, batch_size=3, progress=False)
    _, found, own = folded
    np.testing.assert_allclose(found["params"]["user"], state.variables["params"]["user"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(own.column("loss")[1], log.column("loss")[1], rtol=1e-6)


def test_chosen_users_are_trained_and_the_others_kept(variables, folded):
    wider = Interactions.from_pairs([1, 6, 6, 6, 1, 7], [2, 6, 4, 5, 1, 5], n_users=8, n_items=N)
    model, found, _ = fold_in(MODEL, variables, _objective(MODEL), TX, wider, epochs=10, users=[1, 6], **HOW)
    user, now = variables["params"]["user"], found["params"]["user"]
    kept = jnp.array([0, 2, 3, 4, 5])
    assert model.n_users == 8
    np.testing.assert_array_equal(now[kept], user[kept])
    np.testing.assert_allclose(now[7], user.mean(0), rtol=1e-5, atol=1e-7)
    # User 6 has the items and draws of user 1 of NEW. User 1 starts from its own vector instead.
    np.testing.assert_allclose(now[6], folded[1]["params"]["user"][1], rtol=1e-5)
    assert np.abs(now[1] - user[1]).max() > 0.01 and np.abs(now[1] - folded[1]["params"]["user"][0]).max() > 0.01


def test_validation_and_stopping_see_the_variables_that_are_returned(variables):
    shapes = []

    def validate(found):
        shapes.append(jax.tree.map(jnp.shape, found["params"]))
        return {"score": -float(len(shapes))}

    stopping = jr.train.EarlyStopping("score", patience=1)
    how = {"epochs": 5, "validate": validate, "stopping": stopping}
    log = fold_in(MODEL, variables, _objective(MODEL), TX, NEW, **how, **HOW)[2]
    assert shapes == [{"user": (2, 3), "item": (N, 3)}] * 2 and log.best()["epoch"] == 1


OTHERS = {
    "MARS": models.MARS(M, N, dim=3, n_facets=2),
    "SimpleX": models.SimpleX(M, N, dim=3, pool=models.UserAttention()),
    "NeuMF": models.NeuMF(M, N, dim=2, layers=(4, 2)),
    "DPCML": models.DPCML(M, N, dim=2, n_vectors=2),
}
TABLES = {"MARS": {"user", "theta"}, "NeuMF": {"user", "user_mlp"}}
TRANSFORMATIONS = {"MARS": jr.train.mars.optimizer(0.1, theta_learning_rate=0.01)}


@pytest.mark.deep
@pytest.mark.parametrize("name", OTHERS)
def test_other_models_with_tables_of_users(name):
    model, zero = OTHERS[name], jnp.zeros(1, jnp.int32)
    own = jax.jit(model.init)(jax.random.key(1), zero, zero)
    tx = TRANSFORMATIONS.get(name, TX)
    wide, found, log = fold_in(model, own, _objective(model), tx, NEW, epochs=2, **HOW)
    assert wide.n_users == 2 and np.isfinite(log.column("loss")[1]).all()
    after, tables = dict(jax.tree_util.tree_leaves_with_path(found["params"])), TABLES.get(name, {"user"})
    for path, before in jax.tree_util.tree_leaves_with_path(own["params"]):
        if path[-1].key in tables:
            assert after[path].shape == (2, *before.shape[1:])
        else:
            np.testing.assert_array_equal(after[path], before)
    if name == "MARS":  # the initial rows lie on the sphere, too
        np.testing.assert_allclose(jnp.linalg.norm(found["params"]["user"], axis=-1), 1, rtol=1e-5)


def test_users_without_items_keep_the_mean_and_are_counted(variables):
    some = Interactions.from_pairs([1] * 5, [2, 3, 4, 5, 6], n_users=2, n_items=N)
    decaying = optax.chain(optax.add_decayed_weights(0.1), TX)
    with pytest.warns(DataWarning, match="1 of 2 users, user 0 the first, have no items"):
        found = fold_in(MODEL, variables, _objective(MODEL), decaying, some, epochs=1, **HOW)[1]
    np.testing.assert_allclose(found["params"]["user"][0], variables["params"]["user"].mean(0), rtol=1e-5, atol=1e-7)


def _boundary(variables, batch, negatives):
    del negatives
    return {"boundary": variables["params"]["boundary"][batch.users]}


@pytest.mark.deep
def test_parameters_of_the_loss_have_rows_of_new_users_too(variables):
    own = {"params": {**variables["params"], "boundary": jnp.arange(M, dtype=jnp.float32)}}
    objective = partial(pairwise_objective, model=MODEL, loss=jr.losses.uib, sample=SAMPLE, arguments=_boundary)
    found = fold_in(MODEL, own, objective, optax.sgd(1e-3), NEW, epochs=1, **HOW)[1]["params"]
    assert found["boundary"].shape == (2,) and 0 < np.abs(found["boundary"] - 2.5).max() < 0.1
    square = MODEL.clone(n_users=N)
    own = {"params": {"user": own["params"]["item"], "item": own["params"]["item"], "boundary": jnp.zeros(N)}}
    with pytest.raises(ValueError, match=r"\['boundary'\] has 9 rows, which may be of users or of something else"):
        fold_in(square, own, partial(objective, model=square), TX, NEW, epochs=1, **HOW)


def _of_all(model, objective=None, **how):
    own = {"params": {"user": np.ones((M, 3), np.float32), "item": np.ones((N, 3), np.float32)}}
    given = {"histories": NEW, "epochs": 1, **how}
    return fold_in(model, own, objective or _objective(model), TX, given.pop("histories"), **given, **HOW)


REJECTING = partial(jr.sampling.reject_seen, sample=SAMPLE, seen=KNOWN)
WRONG = {
    "graph": (lambda: _of_all(models.LightGCN(KNOWN, dim=2)), "LightGCN has no field n_users.* depend on the graph"),
    "histories": (lambda: _of_all(models.MultDAE(N, dim=2)), "MultDAE has no field n_users.* pass their items"),
    "closure": (
        lambda: _of_all(MODEL, lambda variables, key, batch: _objective(MODEL)(variables, key, batch)),
        "does not bind a MF by functools.partial",
    ),
    "variables": (
        lambda: _of_all(MODEL.clone(dim=4)),
        "do not fit MF: the parameter",
    ),
    "items": (
        lambda: _of_all(MODEL, histories=Interactions.from_pairs([0], [0], n_items=3)),
        "histories have 3 items, but the model 9",
    ),
    "users": (lambda: _of_all(MODEL, users=[0]), "histories have 2 users, fewer than the model's 6"),
    "twice": (lambda: _of_all(MODEL, users=[0, 0], histories=KNOWN), "some twice"),
    "no tables": (
        lambda: _of_all(
            models.from_functions(
                lambda key: {"user": jnp.ones((M, 3)), "item": jnp.ones((N, 3))},
                vectors=lambda params: (params["user"], params["item"]),
                n_users=M,
                n_items=N,
            )
        ),
        "no parameter of Functions has a row for each of its n_users=6",
    ),
}


@pytest.mark.every_case
@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_to_do(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.deep
def test_a_sampler_of_the_known_users_is_an_error(variables):
    with pytest.raises(ValueError, match="seen of reject_seen is for n_users=6, but train has 2") as raised:
        fold_in(MODEL, variables, _objective(MODEL, REJECTING), TX, NEW, epochs=1, **HOW)
    assert "bind their interactions" in raised.value.__notes__[0]
    as_many = Interactions.from_pairs(np.arange(M), (np.arange(M) + 5) % N, n_users=M, n_items=N)
    with pytest.warns(DataWarning, match="lack 6 of the 6 pairs of the users to train"):
        fold_in(MODEL, variables, _objective(MODEL, REJECTING), TX, as_many, epochs=1, **HOW)
    with pytest.raises(ValueError, match="objective binds another MF than model"):
        fold_in(MODEL.clone(score=models.dot), variables, _objective(MODEL), TX, NEW, epochs=1, **HOW)
    with pytest.raises(ValueError, match=r"users=\['ann'\]; give ids, such as id_map.user_ids"):
        fold_in(MODEL, variables, _objective(MODEL), TX, NEW, users=["ann"], epochs=1, **HOW)
    with pytest.raises(TypeError, match="model is the class MF; create it"):
        fold_in(models.MF, variables, _objective(MODEL), TX, NEW, epochs=1, **HOW)
