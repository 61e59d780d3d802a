"""LightGCN against propagation by dense matrices in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TX

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.interactions import Interactions
from jaxrec.models import MF, LightGCN

N_USERS, N_ITEMS, DIM = 6, 5, 3  # user 3 and item 4 have no interactions
PAIRS = np.array([0, 0, 0, 1, 2, 2, 4, 5, 5]), np.array([0, 1, 3, 1, 2, 3, 0, 1, 2])
TRAIN = Interactions.from_pairs(*PAIRS, weights=np.arange(1, 10), n_users=N_USERS, n_items=N_ITEMS)
USERS, ITEMS = np.meshgrid(np.arange(N_USERS), np.arange(N_ITEMS), indexing="ij")
ZERO = jnp.zeros(1, jnp.int32)


def propagator(layers):
    """Mean of the powers 0 .. L of D^{-1/2} A D^{-1/2}, [M + N, M + N], by NumPy."""
    met = np.zeros((N_USERS, N_ITEMS))
    met[PAIRS] = 1
    whole = np.block([[np.zeros((N_USERS, N_USERS)), met], [met.T, np.zeros((N_ITEMS, N_ITEMS))]])
    degrees = whole.sum(1)
    root = np.divide(1, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
    step = root[:, None] * whole * root
    return sum(np.linalg.matrix_power(step, k) for k in range(layers + 1)) / (layers + 1)


def drawn(model):
    """The variables of `init`, with parameters drawn in float64."""
    variables = model.init(jax.random.key(0), ZERO, ZERO)
    rng = np.random.default_rng(0)
    return {**variables, "params": jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), variables["params"])}


@pytest.mark.deep
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_pairs_rows_and_vectors_are_those_of_dense_matrices(layers):
    model = LightGCN(TRAIN, dim=DIM, layers=layers)
    with jax.enable_x64(True):
        variables = drawn(model)
        first = np.concatenate([variables["params"]["user"], variables["params"]["item"]])
        smooth = propagator(layers) @ first
        scores = smooth[:N_USERS] @ smooth[N_USERS:].T

        @jax.jit
        def all_ways(variables):
            tables = model.apply(variables, method="vectors")
            pairs = model.apply(variables, USERS, ITEMS), model.apply(variables, USERS[:, :1], ITEMS)
            return tables, [*pairs, model.apply(variables, USERS[:, 0], method="rows")]

        tables, ways = all_ways(variables)
        np.testing.assert_allclose(np.concatenate(tables), smooth, atol=1e-12)
        for found in ways:
            np.testing.assert_allclose(found, scores, atol=1e-12)
        np.testing.assert_allclose(tables[0][3], first[3] / (layers + 1), rtol=1e-15)
        np.testing.assert_allclose(tables[1][4], first[N_USERS + 4] / (layers + 1), rtol=1e-15)
        if layers == 0:
            plain = MF(N_USERS, N_ITEMS, dim=DIM).apply({"params": variables["params"]}, USERS, ITEMS)
            np.testing.assert_array_equal(ways[0], plain)


@pytest.mark.deep
def test_gradients_are_those_of_dense_matrices():
    model = LightGCN(TRAIN, dim=DIM)
    slopes = np.random.default_rng(1).normal(size=(N_USERS, N_ITEMS))
    dense = propagator(3)
    with jax.enable_x64(True):
        variables = drawn(model)

        def value(params):
            return (slopes * jnp.tanh(model.apply({**variables, "params": params}, USERS, ITEMS))).sum()

        def by_dense(params):
            smooth = dense @ jnp.concatenate([params["user"], params["item"]])
            return (slopes * jnp.tanh(smooth[:N_USERS] @ smooth[N_USERS:].T)).sum()

        found, expected = jax.jit(jax.grad(value))(variables["params"]), jax.grad(by_dense)(variables["params"])
        for name in ("user", "item"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-12)
            assert np.abs(expected[name]).min() > 1e-6


@pytest.mark.deep
@pytest.mark.parametrize(
    ("users", "items"),
    [
        (np.array([4, 1, 0]), np.array([2, 3, 3])),
        (np.array([[4], [1]]), np.array([[0, 2, 4], [3, 3, 1]])),
        (np.array([[4], [1], [0]]), np.array([[0, 2]])),
        (np.array([[4, 1, 0]]), np.array([[0], [2]])),
        (np.array(4), np.array(1)),
    ],
)
def test_pairs_of_any_shape_broadcast(users, items):
    model = LightGCN(TRAIN, dim=DIM)
    variables = model.init(jax.random.key(0), ZERO, ZERO)
    scores = model.apply(variables, users, items)
    assert scores.shape == np.broadcast_shapes(users.shape, items.shape) and scores.dtype == jnp.result_type(float)
    rows = np.asarray(model.apply(variables, np.arange(N_USERS), method="rows"))
    np.testing.assert_allclose(scores, rows[users, items], rtol=1e-5, atol=1e-7)


@pytest.mark.deep
def test_the_graph_is_an_argument_of_compiled_programs():
    model = LightGCN(TRAIN, dim=DIM)
    variables = model.init(jax.random.key(0), ZERO, ZERO)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))
    for call in (
        lambda v: model.apply(v, USERS[:, :1], ITEMS),
        lambda v: model.apply(v, USERS[:, 0], method="rows"),
        lambda v: model.apply(v, method="vectors"),
    ):
        assert TRAIN.n_pairs not in [np.size(c) for c in jax.make_jaxpr(call)(variables).consts]
    other = LightGCN(TRAIN.select(PAIRS[0] > 0), dim=DIM).init(jax.random.key(0), ZERO, ZERO)
    first, swapped = (
        model.apply({**variables, "graph": graph}, ZERO, method="rows")
        for graph in (variables["graph"], other["graph"])
    )
    assert not np.array_equal(first, swapped)


@pytest.mark.deep
def test_parameters_have_the_stated_shapes_and_scale():
    train = Interactions.from_pairs([0, 299], [199, 0], n_users=300, n_items=200)
    params = LightGCN(train).init(jax.random.key(0), ZERO, ZERO)["params"]
    assert {name: table.shape for name, table in params.items()} == {"user": (300, 64), "item": (200, 64)}
    assert all(float(table.std()) == pytest.approx(0.1, rel=0.03) for table in params.values())
    assert LightGCN(train) == LightGCN(train) and hash(LightGCN(train)) == hash(LightGCN(train))
    assert LightGCN(train) != LightGCN(train, layers=2)


@pytest.mark.parametrize(("name", "value"), [("dim", 0), ("layers", -1)])
def test_wrong_values_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}; give"):
        LightGCN(TRAIN, **{name: value})


def test_float_ids_are_refused():
    model = LightGCN(TRAIN, dim=DIM)
    with pytest.raises(AssertionError):
        model.apply(model.init(jax.random.key(0), ZERO, ZERO), np.array([0.0], np.float32), np.array([1]))


# ---------------------------------------------------------------------- training

BOARD, DIAGONAL = synthetic.checkerboard(30)
SAMPLE = partial(jr.sampling.uniform, n_items=30, n=4)
OBJECTIVES = {
    "bpr": partial(jr.train.pairwise_objective, loss=jr.losses.bpr, sample=SAMPLE),
    "softmax": partial(jr.train.pairwise_objective, loss=jr.losses.softmax, sample=SAMPLE),
    "rg2": jr.train.gram_objective,
}


@pytest.mark.deep
@pytest.mark.parametrize("name", ["bpr", *(pytest.param(x, marks=pytest.mark.deep) for x in ("softmax", "rg2"))])
def test_recovers_the_diagonal_withheld_from_the_checkerboard(name):
    model = LightGCN(BOARD, dim=8)
    state = jr.train.init(jax.random.key(0), model, TX)
    before = state.variables["graph"]
    objective = partial(OBJECTIVES[name], model=model)
    state, log = jr.train.fit(state, objective, TX, BOARD, epochs=15, batch_size=128, progress=False)
    report = jr.evaluate.full_ranking(model, state.variables, BOARD, DIAGONAL, ks=(1,))
    assert report.means["hit_rate@1"] == 1
    assert log.records[-1]["loss"] < log.records[0]["loss"]
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.variables["graph"]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.deep
def test_a_sweep_trains_it_under_many_seeds():
    model = LightGCN(BOARD, dim=4)
    found = jr.train.sweep(
        jax.random.split(jax.random.key(0), 2),
        lambda: (model, partial(jr.train.gram_objective, model=model), TX),
        BOARD,
        epochs=2,
        batch_size=128,
        progress=False,
    )
    losses = [run.log.column("loss")[1] for run in found.runs]
    assert losses[0] != losses[1] and all(last < first for first, last in losses)
