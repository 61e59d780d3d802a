"""NeuMF against loops in NumPy, and non-negative factors against the conditions of their optimum."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TX

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.models import MF, NeuMF
from jaxrec.solvers import nmf

N_USERS, N_ITEMS = 5, 7
USERS, ITEMS = np.meshgrid(np.arange(N_USERS), np.arange(N_ITEMS), indexing="ij")
ZERO = jnp.zeros(1, jnp.int32)
MODEL = NeuMF(N_USERS, N_ITEMS, dim=3, layers=(6, 4, 2))


def drawn(model):
    """Normal parameters of float64, biases included."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ZERO, ZERO)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)


def score(params, user, item):
    hidden = np.concatenate([params["user_mlp"][user], params["item_mlp"][item]])
    for level in (1, 2):
        hidden = np.maximum(hidden @ params[f"kernel_{level}"] + params[f"bias_{level}"], 0)
    both = np.concatenate([params["user"][user] * params["item"][item], hidden])
    return (both @ params["output"] + params["output_bias"])[0]


@pytest.mark.deep
def test_pairs_and_rows_give_the_formula():
    with jax.enable_x64(True):
        variables = drawn(MODEL)
        expected = np.vectorize(partial(score, variables["params"]))(USERS, ITEMS)
        for found in (
            MODEL.apply(variables, USERS, ITEMS),
            jax.jit(MODEL.apply)(variables, USERS[:, :1], ITEMS),
            jax.jit(partial(MODEL.apply, method="rows"))(variables, USERS[:, 0]),
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-11)
        few = MODEL.apply(variables, np.array([3, 1]), method="rows")
        np.testing.assert_allclose(few, expected[[3, 1]], rtol=1e-11)


@pytest.mark.parametrize(
    ("users", "items"),
    [
        (np.array([4, 1, 0]), np.array([2, 6, 3])),
        (np.array([[4], [1], [0]]), np.array([[0, 2]])),
        (np.array([[4, 1, 0]]), np.array([[0], [2]])),
        (np.array([[[4]], [[0]]]), np.array([[[1, 2]], [[0, 5]]])),
        (np.array(4), np.array(3)),
    ],
)
def test_pairs_of_any_shape_broadcast(users, items):
    variables = jax.tree.map(lambda leaf: leaf.astype(np.float32), drawn(MODEL))
    scores = MODEL.apply(variables, users, items)
    assert scores.shape == np.broadcast_shapes(users.shape, items.shape) and scores.dtype == jnp.float32
    expected = np.vectorize(partial(score, variables["params"]))(users, items)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.deep
def test_parameters_have_the_stated_shapes_and_scales():
    params = jax.jit(NeuMF(300, 200).init)(jax.random.key(0), ZERO, ZERO)["params"]
    tables = {"user": (300, 8), "item": (200, 8), "user_mlp": (300, 32), "item_mlp": (200, 32)}
    bounds = {"kernel_1": (64, 32), "kernel_2": (32, 16), "kernel_3": (16, 8)}
    assert {name: leaf.shape for name, leaf in params.items() if "bias" not in name} == tables | bounds | {
        "output": (16, 1)
    }
    assert all(float(params[name].std()) == pytest.approx(0.01, rel=0.05) for name in tables)
    limits = {name: (6 / sum(sizes)) ** 0.5 for name, sizes in bounds.items()} | {"output": (3 / 16) ** 0.5}
    for name, limit in limits.items():
        assert 0.8 * limit < float(jnp.abs(params[name]).max()) <= limit
    assert not any(params[name].any() for name in ("bias_1", "bias_2", "bias_3", "output_bias"))
    assert NeuMF(3, 2) == NeuMF(3, 2) and hash(NeuMF(3, 2)) == hash(NeuMF(3, 2)) and NeuMF(3, 2) != NeuMF(3, 2, dim=4)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_users", 0), ("n_items", 0), ("dim", 0), ("layers", (8,)), ("layers", (7, 4)), ("layers", (8, 0))],
)
def test_wrong_values_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}=.*; give"):
        NeuMF(**{"n_users": 2, "n_items": 2, name: value})


def test_float_ids_are_refused():
    with pytest.raises(AssertionError):
        MODEL.apply(drawn(MODEL), np.array([0.0], np.float32), np.array([1]))


BOARD, DIAGONAL = synthetic.checkerboard(30)


def recovered(model, variables):
    return jr.evaluate.full_ranking(model, variables, BOARD, DIAGONAL, ks=(1,)).means["hit_rate@1"]


@pytest.mark.deep
def test_recovers_the_diagonal_withheld_from_the_checkerboard():
    model = NeuMF(30, 30, layers=(16, 8), scale=0.1)
    sample, loss = partial(jr.sampling.uniform, n_items=30, n=4), partial(jr.losses.bce, negatives="sum")
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    state = jr.train.init(jax.random.key(0), model, TX)
    state, log = jr.train.fit(state, objective, TX, BOARD, epochs=40, batch_size=128, progress=False)
    assert recovered(model, state.variables) == 1
    assert log.records[-1]["loss"] < log.records[0]["loss"]


# ---------------------------------------------------------------------- non-negative matrix factorisation

RATED = jr.Interactions.from_pairs(
    [0, 0, 1, 2, 3, 3, 4], [1, 3, 0, 2, 1, 3, 6], weights=[1, 2, 1, 3, 1, 1, 2], n_users=N_USERS, n_items=N_ITEMS
)


def test_nmf_ends_at_an_optimum():
    """At the optimum the gradient is 0 for positive entries, and 0 or more for entries of 0."""
    pytest.importorskip("sklearn")
    options = {"dim": 2, "regularization": 0.3, "iterations": 5000, "tolerance": 1e-7}
    params = nmf.fit(RATED, key=jax.random.key(0), **options)[1]["params"]
    w, h = (np.asarray(params[name], np.float64) for name in ("user", "item"))
    assert w.shape == (N_USERS, 2) and h.shape == (N_ITEMS, 2) and params["user"].dtype == jnp.float32
    residual = w @ h.T - RATED.to_scipy().toarray()
    for table, slope in ((w, residual @ h + 0.3 * w), (h, residual.T @ w + 0.3 * h)):
        assert (table >= 0).all() and (table > 0.1).any()
        np.testing.assert_allclose(np.where(table > 0, slope, np.minimum(slope, 0)), 0, atol=1e-3)
    for key, same in ((0, True), (1, False)):
        again = nmf.fit(RATED, key=jax.random.key(key), **options)[1]["params"]["user"]
        assert np.array_equal(again, params["user"]) == same


def test_nmf_recovers_the_diagonal_withheld_from_the_checkerboard():
    pytest.importorskip("sklearn")
    _, variables, _ = nmf.fit(BOARD, dim=2, key=jax.random.key(0), iterations=1000)
    assert recovered(MF(30, 30, dim=2), variables) == 1


@pytest.mark.parametrize(("name", "value"), [("dim", 0), ("iterations", 0), ("regularization", -1.0)])
def test_nmf_names_wrong_values(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}; give"):
        nmf.fit(RATED, **{"key": jax.random.key(0), "dim": 2, name: value})
