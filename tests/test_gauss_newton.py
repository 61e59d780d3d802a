"""Gauss-Newton against dense matrices in float64, and its descent."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxrec as jr
from jaxrec._partials import partition
from jaxrec.data import synthetic
from jaxrec.interactions import Interactions
from jaxrec.models import MF, LightGCN
from jaxrec.solvers import gauss_newton

N_USERS, N_ITEMS, DIM, LAMBDA = 6, 5, 3, 0.07  # user 3 and item 4 have no interactions
PAIRS = np.array([0, 0, 0, 1, 2, 2, 4, 5, 5]), np.array([0, 1, 3, 1, 2, 3, 0, 1, 2])
SIZES = {"n_users": N_USERS, "n_items": N_ITEMS}
TRAIN = Interactions.from_pairs(*PAIRS, **SIZES)
WEIGHTED = Interactions.from_pairs(*PAIRS, weights=np.arange(1, 10) / 4, **SIZES)
RNG = np.random.default_rng(0)
FEATURES = {"user_features": RNG.normal(size=(N_USERS, 4)), "item_features": RNG.normal(size=(N_ITEMS, 2))}
BAGS = {
    "user_features": (WEIGHTED, WEIGHTED.transpose()),
    "item_features": (TRAIN.transpose(), TRAIN),
}


def mf(params):
    return params["user"], params["item"]


def tables(key=0, n_users=N_USERS, n_items=N_ITEMS, dim=DIM, scale=1.0):
    rng = np.random.default_rng(key)
    return {"user": scale * rng.normal(size=(n_users, dim)), "item": scale * rng.normal(size=(n_items, dim))}


def one_hidden_layer(features):
    params = gauss_newton.init_two_towers(jax.random.key(0), **features, dim=DIM, hidden=3, scale=1.0)
    return partial(gauss_newton.two_towers, **features), jax.tree.map(lambda x: np.asarray(x, np.float64) + 0.1, params)


def graph():
    model = LightGCN(TRAIN, dim=DIM, layers=2)
    variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    return partial(gauss_newton.vectors, model=model, variables=variables), tables()


TOWERS = {
    "mf": lambda: (mf, tables()),
    "dense": lambda: one_hidden_layer(FEATURES),
    "bags": lambda: one_hidden_layer(BAGS),
    "graph": graph,
}


@pytest.mark.deep
@pytest.mark.parametrize("train", [TRAIN, WEIGHTED], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", TOWERS)
def test_objective_and_gradient_are_those_of_dense_scores(name, train):
    """A user and an item have no interactions."""
    met = train.to_scipy().toarray().astype(np.float64)

    def dense(params, towers):
        users, items = towers(params)
        scores = users @ items.T
        each = -scores + ((scores + 1) ** 2).sum(1, keepdims=True) / (2 * N_ITEMS)
        return (met * each).sum() / met.sum() + LAMBDA * (ravel_pytree(params)[0] ** 2).sum()

    with jax.enable_x64(True):
        towers, params = TOWERS[name]()
        value, gradient = jax.value_and_grad(gauss_newton.objective)(
            params, towers, train, train.transpose(), regularization=LAMBDA
        )
        expected, by_dense = jax.value_and_grad(dense)(params, towers)
        assert float(value) == pytest.approx(float(expected), rel=1e-12)
        np.testing.assert_allclose(ravel_pytree(gradient)[0], ravel_pytree(by_dense)[0], atol=1e-12)


@pytest.mark.parametrize("name", TOWERS)
def test_product_is_the_dense_one(name):
    """It is JᵀHJ + 2λI, symmetric, with eigenvalues of at least 2λ. H is a_u / N|D| at each score."""
    train = WEIGHTED
    weights = train.to_scipy().toarray().astype(np.float64).sum(1)
    with jax.enable_x64(True):
        towers, params = TOWERS[name]()
        flat, unravel = ravel_pytree(params)

        def scores(flat):
            users, items = towers(unravel(flat))
            return (users @ items.T).ravel()

        jacobian = np.asarray(jax.jit(jax.jacrev(scores))(flat))
        curvature = np.repeat(weights / (N_ITEMS * weights.sum()), N_ITEMS)
        expected = jacobian.T @ (curvature[:, None] * jacobian) + 2 * LAMBDA * np.eye(len(flat))

        @jax.jit
        def columns(flat):
            data = train, train.transpose()
            product = gauss_newton.gauss_newton_product(unravel(flat), towers, *data, regularization=LAMBDA)
            return jax.vmap(lambda d: ravel_pytree(product(unravel(d)))[0])(jnp.eye(len(flat)))

        found = np.asarray(columns(flat))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found, found.T, atol=1e-14)
    assert np.linalg.eigvalsh(found).min() >= 2 * LAMBDA - 1e-14
    assert np.linalg.eigvalsh(found).max() > 3 * LAMBDA


@pytest.mark.deep
def test_objective_without_a_regulariser_is_the_mean_of_the_loss_over_all_pairs():
    with jax.enable_x64(True):
        users, items, weights = (jnp.asarray(x) for x in (*WEIGHTED.pairs(), WEIGHTED.weights))
        batch = jr.train.Batch.of(users, items, weights=weights)
        model = MF(N_USERS, N_ITEMS, dim=DIM)
        by_batch = jr.train.gram_objective({"params": tables()}, jax.random.key(0), batch, model=model)
        value = gauss_newton.objective(tables(), mf, WEIGHTED, WEIGHTED.transpose(), regularization=0.0)
        assert float(value) == pytest.approx(float(by_batch), rel=1e-12)


# ---------------------------------------------------------------------- whole runs

BOARD, DIAGONAL = synthetic.checkerboard(30)


def fit(towers=mf, params=None, train=BOARD, **options):
    params = tables(n_users=30, n_items=30, dim=4, scale=0.1) if params is None else params
    params = jax.tree.map(jnp.asarray, params)
    options = {"regularization": 1e-4, "steps": 8, "progress": False} | options
    _, variables, log = gauss_newton.fit(towers, params, train, **options)
    return variables["params"], log


def board_towers(hidden=5):
    features = {"user_features": (BOARD, BOARD.transpose()), "item_features": np.eye(30, dtype=np.float32)}
    params = gauss_newton.init_two_towers(jax.random.key(0), **features, dim=4, hidden=hidden)
    return partial(gauss_newton.two_towers, **features), params


@pytest.mark.parametrize(
    "towers_and_params",
    [lambda: (mf, None), pytest.param(board_towers, marks=pytest.mark.deep)],
    ids=["mf", "two towers"],
)
def test_descends_to_the_diagonal_withheld_from_the_checkerboard(towers_and_params):
    towers, params = towers_and_params()
    params, log = fit(towers, params, steps=12, tolerance=None)
    values = [record["objective"] for record in log.records]
    assert len(values) == 12 and values[-1] < values[0] < 0.5
    assert (np.diff(values) <= 0).all()
    assert all(np.log2(record["step"]) % 1 == 0 and record["step"] <= 1 for record in log.records)
    users, items = towers(params)
    report = jr.evaluate.full_ranking(
        MF(30, 30, dim=4), {"params": {"user": users, "item": items}}, BOARD, DIAGONAL, ks=(1,)
    )
    assert report.means["hit_rate@1"] == 1
    final = gauss_newton.objective(params, towers, BOARD, BOARD.transpose(), regularization=1e-4)
    assert float(final) == pytest.approx(values[-1], abs=1e-6)


@pytest.mark.deep
def test_a_step_has_full_length_if_scores_are_linear():
    """With fixed items the problem is least squares, which one step with exact conjugate gradients solves."""
    items = np.random.default_rng(1).normal(size=(N_ITEMS, DIM))
    with jax.enable_x64(True):
        towers = partial(lambda params, items: (params, items), items=items)
        params, log = fit(
            towers,
            tables()["user"],
            TRAIN,
            steps=2,
            cg_steps=200,
            cg_tolerance=1e-12,
            tolerance=None,
            regularization=0.01,
        )
    assert log.records[0]["step"] == 1
    assert log.records[1]["gradient"] < 1e-9 < log.records[0]["gradient"]
    degrees = np.asarray(TRAIN.user_degrees)[:, None]
    met = TRAIN.to_scipy().toarray()
    ridge = 2 * 0.01 * N_ITEMS * TRAIN.n_pairs
    for u in range(N_USERS):
        matrix = degrees[u] * items.T @ items + ridge * np.eye(DIM)
        side = N_ITEMS * met[u] @ items - degrees[u] * items.sum(0)
        np.testing.assert_allclose(params[u], np.linalg.solve(matrix, side), atol=1e-9)


@pytest.mark.deep
def test_matrix_factorisation_reaches_the_closed_form():
    """The towers that the docstring of `fit` names give the scaled regulariser. The optimum has the soft-thresholded
    singular values.
    """
    rng = np.random.default_rng(3)
    met = rng.random((12, 9)) < 0.4
    met[np.arange(12), rng.integers(0, 9, 12)] = True
    train = Interactions.from_pairs(*met.nonzero(), n_users=12, n_items=9)
    degrees, n_pairs, dim, ridge = met.sum(1), met.sum(), 3, 0.4
    targets = 9 * met / degrees[:, None] - 1
    scaled = np.sqrt(degrees / (2 * 9 * n_pairs))[:, None] * targets
    values = np.linalg.svd(scaled, compute_uv=False)
    kept = np.maximum(values[:dim] - ridge / np.sqrt(2), 0)
    assert (kept > 0).all()
    lost = ((values[:dim] - kept) ** 2).sum() + (values[dim:] ** 2).sum()
    optimum = lost + np.sqrt(2) * ridge * kept.sum() - (12 * 9 - n_pairs) / (2 * n_pairs) + 0.5

    def towers(params, user_scale):
        return user_scale * params["user"], np.sqrt(18.0) * params["item"]

    with jax.enable_x64(True):
        bound = partial(towers, user_scale=np.sqrt(2 * n_pairs / degrees)[:, None])
        params = tables(n_users=12, n_items=9, scale=0.1)
        options = {"regularization": ridge, "steps": 300, "cg_tolerance": 1e-3, "cg_steps": 100, "tolerance": 1e-13}
        params, log = fit(bound, params, train, **options)
        found = {"params": dict(zip(("user", "item"), bound(params)))}
        by_als = float(jr.solvers.rg2.objective(found, train, regularization=ridge))
    reached = log.records[-1]["objective"]
    assert optimum - 1e-10 < reached < optimum + 1e-8
    assert by_als - (12 * 9 - n_pairs) / (2 * n_pairs) + 0.5 == pytest.approx(reached, rel=1e-12)


@pytest.mark.deep
def test_arrays_in_partials_are_arguments():
    before = gauss_newton._step._cache_size()
    towers, params = board_towers(hidden=6)
    for scale in (1.0, 2.0):
        features = dict(towers.keywords, item_features=scale * towers.keywords["item_features"])
        fit(partial(gauss_newton.two_towers, **features), params, steps=1, regularization=scale * 1e-3)
    assert gauss_newton._step._cache_size() == before + 1


@pytest.mark.deep
def test_every_dense_product_is_of_the_highest_precision():
    """Otherwise accelerators would compute Gram matrices in bfloat16 or TF32, and Armijo's rule would compare noise."""
    features = {"user_features": (BOARD, BOARD.transpose()), "item_features": np.eye(30, dtype=np.float32)}
    arrays, static = partition((partial(gauss_newton.two_towers, **features),))
    data = arrays, BOARD, BOARD.transpose(), 1e-3, 0.1
    text = str(gauss_newton._step.trace(board_towers()[1], *data, static=static, cg_steps=3).jaxpr)
    products = re.findall(r"= dot_general\[(.*?)preferred", text, re.DOTALL)
    assert len(products) > 20 and all("HIGHEST" in product for product in products)


def test_tolerance_and_early_stopping_end_the_run():
    told = iter([0.1, 0.5, 0.4, 0.3, 0.2])
    seen = []

    def validate(variables):
        seen.append(jax.tree.map(np.asarray, variables["params"]))
        return {"ndcg@10": next(told)}

    stopping = jr.train.EarlyStopping("ndcg@10", patience=2)
    params, log = fit(validate=validate, stopping=stopping, tolerance=None)
    assert len(log.records) == 4
    np.testing.assert_array_equal(params["user"], seen[1]["user"])
    _, log = fit(steps=50, tolerance=0.05)
    values = [record["objective"] for record in log.records]
    assert len(values) < 50 and values[-2] - values[-1] <= 0.05 * abs(values[-2])
    assert "gradient" in log.names and "ndcg@10" not in log.names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regularization": -1.0}, "regularization=-1.0; give"),
        ({"regularization": float("nan")}, "regularization=nan; give"),
        ({"steps": 0}, "steps=0; give an integer of 1 or more"),
        ({"cg_steps": 0}, "cg_steps=0; give an integer of 1 or more"),
        ({"cg_tolerance": 1.0}, "cg_tolerance=1.0; give"),
        ({"every": 0}, "every=0; give an integer of 1 or more"),
        ({"stopping": jr.train.EarlyStopping("ndcg@10")}, "pass validate="),
        ({"params": tables(n_users=29, n_items=30, dim=4)}, r"towers gives tables of shapes \[\(29, 4\), \(30, 4\)\]"),
        ({"towers": lambda params: (params["user"], params["item"][:, :2])}, "with the same number of columns"),
        ({"towers": lambda params: params["user"]}, "towers gives tables of shapes"),
        (
            {"params": tables(n_users=30, n_items=30, dim=4, scale=np.nan)},
            "the objective is nan; look for NaN in params",
        ),
        ({"train": BOARD.select(np.zeros(BOARD.n_pairs, bool))}, "train has no pairs"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fit(**options)


def test_negative_weights_are_refused_and_features_of_another_width():
    train = Interactions.from_pairs([0, 1], [0, 1], weights=[1.0, -2.0])
    with pytest.raises(ValueError, match=r"train.weights\[1\] is -2.0"):
        fit(params=tables(n_users=2, n_items=2, dim=1), train=train)
    towers, params = board_towers()
    narrow = dict(towers.keywords, item_features=np.eye(30, 29, dtype=np.float32))
    with pytest.raises(AssertionError):
        fit(partial(gauss_newton.two_towers, **narrow), params)


@pytest.mark.deep
def test_initial_towers_vary_by_their_scale_for_any_features():
    rng = np.random.default_rng(0)
    users, items = np.divmod(rng.choice(300 * 200, 1500, replace=False), 200)
    train = Interactions.from_pairs(users, items, n_users=300, n_items=200)
    features = {"user_features": (train, train.transpose()), "item_features": 50 * rng.normal(size=(200, 20))}
    params = gauss_newton.init_two_towers(jax.random.key(0), **features, dim=32, hidden=64, scale=0.3)
    for table in gauss_newton.two_towers(params, **features):
        assert 0.1 < float(table.std()) < 0.3


def test_sizes_metrics_and_interruptions():
    for name, value in (("steps", 2.0), ("cg_steps", "3"), ("cg_tolerance", float("nan")), ("tolerance", float("nan"))):
        with pytest.raises(ValueError, match=f"^{name}="):
            fit(**{name: value})
    for name in ("dim", "hidden"):
        with pytest.raises(ValueError, match=f"^{name}=2.0; give an integer"):
            gauss_newton.init_two_towers(jax.random.key(0), np.ones((2, 2)), np.ones((2, 2)), **{name: 2.0})
    options = {"tolerance": None, "steps": np.int64(2)}
    with pytest.raises(ValueError, match=r"^x was not a number at any of 2 validations"):
        fit(validate=lambda v: {"x": float("nan")}, stopping=jr.train.EarlyStopping("x"), **options)
    seen = []

    def validate(variables):
        if seen:
            raise KeyboardInterrupt
        seen.append(variables["params"])
        return {"x": 0.0}

    with pytest.raises(jr.train.Interrupted) as stopped:
        fit(validate=validate, **options)
    jax.tree.map(np.testing.assert_array_equal, stopped.value.state["params"], seen[0])
