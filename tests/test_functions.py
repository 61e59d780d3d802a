"""Models from plain functions and from NNX modules: they can be trained, swept and ranked like Linen modules."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import TX

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.models import from_functions, from_nnx

TRAIN, TEST = synthetic.checkerboard(30)
N = 30


def tables(key):
    user, item = jax.random.split(key)
    return {"user": 0.1 * jax.random.normal(user, (N, 8)), "item": 0.1 * jax.random.normal(item, (N, 8))}


def vectors(params):
    return params["user"], params["item"]


def score(params, users, items):
    return (params["user"][users] * params["item"][items]).sum(-1)


class Towers(nnx.Module):
    def __init__(self, n, *, rngs):
        self.user, self.item = nnx.Embed(n, 8, rngs=rngs), nnx.Embed(n, 8, rngs=rngs)
        self.scale = nnx.Variable(jnp.ones(()))

    def __call__(self, users, items):
        return self.scale * (self.user(users) * self.item(items)).sum(-1)

    def vectors(self):
        return self.user.embedding[...], self.item.embedding[...]

    def rows(self, users):
        return self.user(users) @ self.item.embedding[...].T


MODELS = {
    "vectors": from_functions(tables, vectors=vectors),
    "score": from_functions(tables, score=score, n_users=N, n_items=N),
    "NNX": from_nnx(partial(Towers, N)),
}


SAMPLE = partial(jr.sampling.uniform, n_items=N, n=4)


def objective(model, sample=SAMPLE):
    return partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)


@pytest.mark.every_case
@pytest.mark.parametrize("name", MODELS)
def test_recovers_the_diagonal_withheld_from_the_checkerboard(name):
    model = MODELS[name]
    state = jr.train.init(jax.random.key(0), model, TX)
    state, log = jr.train.fit(state, objective(model), TX, TRAIN, epochs=40, batch_size=128, progress=False)
    report = jr.evaluate.full_ranking(model, state.variables, TRAIN, TEST, ks=(1,))
    assert report.means["hit_rate@1"] >= 0.95
    assert log.records[-1]["loss"] < log.records[0]["loss"]
    negatives = (np.asarray(TEST.pairs()[1])[:, None] + 1) % N
    assert jr.evaluate.sampled_ranking(model, state.variables, TEST.pairs(), negatives, ks=1).means["hit_rate@1"] > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_functions(3, vectors=vectors), "init=3; give a function, such as lambda key"),
        (lambda: from_functions(tables, vectors=3), "vectors=3; give a function, such as lambda parameters"),
        (lambda: from_functions(tables, vectors=vectors, item_vectors=None), "item_vectors=None; give a function"),
        (lambda: from_nnx(3), "make=3; give a function, such as functools.partial"),
        (lambda: jr.evaluate.scorer(jnp.ones((2, 2))), r"(?s)fn=.*; give a function, such as lambda table, users"),
    ],
)
def test_what_is_no_function_is_named(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.deep
def test_functions_give_what_a_linen_module_gives():
    linen = jr.models.MF(N, N, dim=8)
    variables = {"params": tables(jax.random.key(3))}
    users, items = jnp.array([[0], [7]]), jnp.array([[1, 2], [3, 4]])
    for name in ("vectors", "score"):
        model = MODELS[name]
        for call in (
            lambda m: m.apply(variables, users, items),
            lambda m: m.apply(variables, users[:, 0], method="rows"),
        ):
            np.testing.assert_allclose(call(model), call(linen), rtol=1e-5, atol=1e-6)


@pytest.mark.deep
@pytest.mark.every_case
@pytest.mark.parametrize("name", ["vectors", "NNX"])
def test_every_seed_of_a_sweep_draws_its_own_parameters(name):
    model = MODELS[name]
    keys = jax.random.split(jax.random.key(0), 2)
    setup = lambda rate: (model, objective(model), optax.sgd(rate))  # noqa: E731
    found = jr.train.sweep(keys, setup, TRAIN, settings={"rate": [0.0]}, epochs=1, batch_size=128, progress=False)
    first, second = (jax.tree.leaves(found.state(run).variables["params"]) for run in range(2))
    assert not np.array_equal(first[0], second[0])
    alone = jr.train.init(keys[1], model, optax.sgd(0.0)).variables["params"]
    np.testing.assert_allclose(second[0], jax.tree.leaves(alone)[0], rtol=1e-6)


def test_nnx_variables_that_are_not_parameters_are_not_trained():
    model = MODELS["NNX"]
    state = jr.train.init(jax.random.key(0), model, TX)
    assert set(state.variables) == {"params", "state"} and "scale" in state.variables["state"]
    after, _ = jr.train.fit(state, objective(model), TX, TRAIN, epochs=1, batch_size=128, progress=False)
    assert after.variables["state"]["scale"] == 1
    doubled = {**state.variables, "state": {"scale": jnp.float32(2.0)}}
    pairs = jnp.array([[0]]), jnp.array([[1]])
    np.testing.assert_allclose(model.apply(doubled, *pairs), 2 * model.apply(state.variables, *pairs))


def mean_of_items(params, users, histories):
    """The mean of the items' vectors of each user's history, [B, D]."""
    del users
    rows = jnp.searchsorted(histories.indptr[1:], jnp.arange(len(histories.indices)), side="right")
    total = jax.ops.segment_sum(params["context"][histories.indices], rows, histories.n_users)
    return total / jnp.maximum(histories.user_degrees, 1)[:, None]


def score_by_history(params, users, items, *, histories):
    vectors = mean_of_items(params, users, histories)
    items = params["item"][items]
    return jnp.einsum("bd,bnd->bn", vectors, jnp.broadcast_to(items, (len(vectors), *items.shape[1:])))


def rows_by_history(params, users, *, histories):
    return mean_of_items(params, users, histories) @ params["item"].T


def item_tables(key):
    return {name: 0.5 * jax.random.normal(k, (N, 8)) for name, k in zip(("context", "item"), jax.random.split(key))}


@pytest.mark.deep
@pytest.mark.every_case
@pytest.mark.parametrize("rows", [None, rows_by_history])
def test_a_model_that_knows_users_by_their_items(rows):
    """It learns the user's colour, which the withheld diagonal has. It also knows users that were not in training."""
    model = from_functions(item_tables, score=score_by_history, rows=rows, n_items=N, needs_histories=True)
    state = jr.train.init(jax.random.key(0), model, TX)
    options = {"epochs": 15, "batch_size": 128, "progress": False}
    with jax.numpy_dtype_promotion("standard"):
        with pytest.raises(ValueError, match=r"^Functions knows users by their items, and the batch has no histories"):
            jr.train.fit(state, objective(model), TX, TRAIN, **options)
        examples = partial(jr.train.singles, histories=TRAIN)
        state, log = jr.train.fit(state, objective(model), TX, TRAIN, examples=examples, **options)
        assert log.records[-1]["loss"] < log.records[0]["loss"]
        with pytest.raises(ValueError, match=r"^Functions knows users by their items; pass histories="):
            jr.evaluate.full_ranking(model, state.variables, TRAIN, TEST)
        report = jr.evaluate.full_ranking(model, state.variables, TRAIN, TEST, ks=(1,), histories=TRAIN)
        assert report.means["hit_rate@1"] == 1
        found = model.apply(state.variables, None, method="rows", histories=TRAIN)
    expected = state.variables["params"]
    dense = TRAIN.to_scipy().toarray()
    expected = dense / dense.sum(1, keepdims=True) @ expected["context"] @ expected["item"].T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_lacks_something_is_named():
    with pytest.raises(ValueError, match=r"^vectors are tables of all users, which need no histories; give score"):
        from_functions(tables, vectors=vectors, needs_histories=True)
    with pytest.raises(ValueError, match="neither score nor vectors is given"):
        from_functions(tables)
    with pytest.raises(ValueError, match="give n_items, or rows"):
        from_functions(tables, score=score)
    with pytest.raises(TypeError, match=r"make is a Towers; .*functools.partial\(Towers"):
        from_nnx(Towers(N, rngs=nnx.Rngs(0)))
    with pytest.raises(AttributeError, match="the model has no 'parts'; it has"):
        MODELS["score"].apply({"params": tables(jax.random.key(0))}, method="parts")
    small = from_functions(tables, score=score, n_users=N, n_items=N - 1)
    with pytest.raises(ValueError, match="the model's n_items is 29, but train's is 30"):
        jr.train.fit(jr.train.init(jax.random.key(0), small, TX), objective(small), TX, TRAIN, epochs=1)
