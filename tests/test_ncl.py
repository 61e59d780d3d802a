"""NCL: clusters, the objective by NumPy, and training with clusters computed between epochs."""

import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import TX

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.interactions import Interactions
from jaxrec.models import NCL, LightGCN
from jaxrec.train import ncl

N_USERS, N_ITEMS, DIM, K = 6, 5, 3, 2  # user 3 and item 4 have no interactions
PAIRS = np.array([0, 0, 0, 1, 2, 2, 4, 5, 5]), np.array([0, 1, 3, 1, 2, 3, 0, 1, 2])
TRAIN = Interactions.from_pairs(*PAIRS, n_users=N_USERS, n_items=N_ITEMS)
MODEL = NCL(TRAIN, dim=DIM, layers=3, clusters=K)
SAMPLE = partial(jr.sampling.uniform, n_items=N_ITEMS, n=2)
KEY = jax.random.key(3)
BATCH = jr.train.Batch.of(
    jnp.array([0, 2, 5]),
    jnp.array([[1, 3], [2, 1], [2, 0]]),
    where=jnp.array([[True, True], [True, True], [True, False]]),
)
ZERO = jnp.zeros(1, jnp.int32)


def drawn():
    """The variables of `init`, with parameters drawn by NumPy, and their clusters."""
    return _drawn(jax.config.jax_enable_x64)


@functools.cache
def _drawn(x64):
    variables = jax.jit(MODEL.init)(jax.random.key(0), ZERO, ZERO)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), float), variables["params"])
    variables = {**variables, "params": params}
    return {**variables, **ncl.prototypes(KEY, variables, model=MODEL)}


def layers(variables):
    met = np.zeros((N_USERS, N_ITEMS))
    met[PAIRS] = 1
    whole = np.block([[np.zeros((N_USERS, N_USERS)), met], [met.T, np.zeros((N_ITEMS, N_ITEMS))]])
    degrees = whole.sum(1)
    root = np.divide(1, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
    first = np.concatenate([variables["params"]["user"], variables["params"]["item"]])
    return [np.linalg.matrix_power(root[:, None] * whole * root, k) @ first for k in range(4)]


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30)


def infonce(queries, keys, positives, temperature):
    scores = unit(queries) @ unit(keys).T / temperature
    return (np.log(np.exp(scores).sum(1)) - scores[np.arange(len(scores)), positives]).mean()


@pytest.mark.deep
def test_scores_are_those_of_lightgcn(float64):
    variables = drawn()
    plain = {name: part for name, part in variables.items() if name != "prototypes"}
    users = np.arange(N_USERS)
    expected = LightGCN(TRAIN, dim=DIM, layers=3).apply(plain, users, method="rows")
    np.testing.assert_array_equal(MODEL.apply(variables, users, method="rows"), expected)


@pytest.mark.deep
@pytest.mark.every_case
@pytest.mark.parametrize("step", [4, 5])
def test_the_objective_is_the_formula(step, float64):
    variables = drawn()
    powers = layers(variables)
    smooth = sum(powers) / 4
    near, far = (np.split(x, [N_USERS]) for x in (powers[0], powers[2]))
    users, items = np.split(smooth, [N_USERS])
    negatives = np.asarray(SAMPLE(jax.random.split(KEY)[0], BATCH.users[:, 0]))
    known = [(0, 1), (0, 3), (2, 2), (2, 1), (5, 2)]
    values = []
    for (u, i), row in zip(known, (0, 0, 1, 1, 2)):
        values += [np.mean([np.log1p(np.exp(users[u] @ (items[j] - items[i]))) for j in negatives[row]])]
    expected = np.mean(values)
    prototypes = jax.tree.map(np.asarray, variables["prototypes"])
    for side, name, ids in ((0, "user", [u for u, _ in known]), (1, "item", [i for _, i in known])):
        expected += (0.7, 0.7 * 0.4)[side] * infonce(far[side][ids], near[side], ids, 0.5)
        if step == 5:
            expected += 0.3 * infonce(near[side][ids], prototypes[name], prototypes[f"of_{name}"][ids], 0.5)
    weights = {"structure_weight": 0.7, "item_share": 0.4, "prototype_weight": 0.3, "temperature": 0.5, "warm_up": 5}
    objective = jax.jit(partial(ncl.objective, model=MODEL, sample=SAMPLE, **weights))
    found = objective(variables, KEY, BATCH._replace(step=jnp.int32(step)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.deep
def test_centroids_get_no_gradient_and_gradients_are_finite():
    variables = drawn()
    slope = jax.jit(jax.grad(partial(ncl.objective, model=MODEL, sample=SAMPLE), allow_int=True))
    zero = {**variables, "params": jax.tree.map(jnp.zeros_like, variables["params"])}
    fresh = {**variables, "prototypes": jax.tree.map(jnp.zeros_like, variables["prototypes"])}
    for given in (variables, zero, fresh):
        gradient = slope(given, KEY, BATCH)
        assert not any(np.asarray(gradient["prototypes"][name]).any() for name in ("user", "item"))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient["params"]))


# ---------------------------------------------------------------------- clusters


@pytest.mark.every_case
@pytest.mark.parametrize("x64", [False, True])
def test_k_means_is_lloyds_algorithm(x64):
    with jax.enable_x64(x64):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 3)), float)
        centroids, nearest = ncl.k_means(KEY, x, n=5, iterations=3)
        chosen = jax.random.choice(KEY, 40, (5,), replace=False)
        expected, rows = np.asarray(x)[chosen], np.asarray(x)
        for _ in range(3):
            owner = ((rows[:, None] - expected) ** 2).sum(-1).argmin(1)
            expected = np.stack([rows[owner == c].mean(0) for c in range(5)])
        np.testing.assert_allclose(centroids, expected, rtol=1e-4)
        np.testing.assert_array_equal(nearest, ((rows[:, None] - expected) ** 2).sum(-1).argmin(1))
        assert nearest.dtype == jnp.int32 and centroids.dtype == x.dtype


def test_a_cluster_without_rows_keeps_its_centroid():
    x = jnp.array([[1.0], [1.0], [1.0], [5.0]])
    centroids, nearest = ncl.k_means(KEY, x, n=4)
    assert sorted(centroids[:, 0].tolist()) == [1.0, 1.0, 1.0, 5.0] and np.isfinite(centroids).all()
    np.testing.assert_array_equal(centroids[nearest], x)


def test_wrong_values_are_named():
    for name, value in (("clusters", 6), ("clusters", 0), ("hops", 2), ("layers", 0)):
        with pytest.raises(ValueError, match=f"^{name}={value}; give an integer"):
            NCL(TRAIN, **{"clusters": 2, name: value})
    with pytest.raises(ValueError, match=r"^n=4; give an integer from 1 to 3"):
        ncl.k_means(KEY, jnp.ones((3, 1)), n=4)
    with pytest.raises(TypeError, match="model is LightGCN, which has no 'neighbourhoods'"):
        ncl.objective({}, KEY, BATCH, model=LightGCN(TRAIN), sample=SAMPLE)
    for name in ("structure_weight", "item_share", "prototype_weight", "warm_up"):
        with pytest.raises(ValueError, match=f"^{name}=-1.0; give a finite number of 0 or more"):
            ncl.objective({}, KEY, BATCH, model=MODEL, sample=SAMPLE, **{name: -1.0})


# ---------------------------------------------------------------------- training

BOARD, DIAGONAL = synthetic.checkerboard(30)
ON_BOARD = NCL(BOARD, dim=8, layers=2, scale=0.1, clusters=4)
OBJECTIVE = partial(ncl.objective, model=ON_BOARD, sample=partial(jr.sampling.uniform, n_items=30, n=2))
REFRESH = partial(ncl.prototypes, model=ON_BOARD, iterations=3)
HOW = {"batch_size": 128, "progress": False}


def start(tx=TX, seed=0):
    return jr.train.init(jax.random.key(seed), ON_BOARD, tx)


@pytest.mark.deep
def test_recovers_the_diagonal_withheld_from_the_checkerboard():
    validate = lambda variables: jr.evaluate.full_ranking(ON_BOARD, variables, BOARD, DIAGONAL, ks=(1,))  # noqa: E731
    objective = partial(jr.train.penalised_objective, objective=OBJECTIVE)
    seen = []
    state, log = jr.train.refreshed(
        start(),
        objective,
        TX,
        BOARD,
        refresh=REFRESH,
        epochs=15,
        validate=validate,
        every=15,
        callbacks=[lambda state, record: seen.append(np.asarray(state.variables["prototypes"]["user"]))],
        **HOW,
    )
    assert log.column("hit_rate@1")[1][-1] == 1 and int(state.epoch) == 15
    assert log.records[-1]["loss"] < log.records[0]["loss"]
    assert all(not np.array_equal(one, other) for one, other in itertools.pairwise(seen))


@pytest.mark.deep
def test_refreshed_is_fit_with_refreshes_between_its_epochs():
    state = start()
    for epoch in range(3):
        if epoch % 2 == 0:
            key = jax.random.fold_in(jax.random.fold_in(state.key, 2**32 - 1), epoch)
            state = state._replace(variables={**state.variables, **REFRESH(key, state.variables)})
        state, _ = jr.train.fit(state, OBJECTIVE, TX, BOARD, epochs=epoch + 1, **HOW)
    found, log = jr.train.refreshed(start(), OBJECTIVE, TX, BOARD, refresh=REFRESH, period=2, epochs=3, **HOW)
    jax.tree.map(np.testing.assert_array_equal, found.variables, state.variables)
    assert len(log.records) == 3


@pytest.mark.deep
def test_a_resumed_run_is_bit_identical(tmp_path):
    run = partial(jr.train.refreshed, objective=OBJECTIVE, tx=TX, train=BOARD, refresh=REFRESH, **HOW)
    whole, _ = run(start(), epochs=3)
    folder = jr.train.Checkpoint(tmp_path / "run")
    run(start(), epochs=2, checkpoint=folder)
    resumed, log = run(start(), epochs=3, checkpoint=folder)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole.variables)
    assert len(log.records) == 3
    with pytest.raises(ValueError, match="period"):
        run(start(), epochs=4, checkpoint=folder, period=2)
    continued, _ = run(run(start(), epochs=1)[0], epochs=3)
    jax.tree.map(np.testing.assert_array_equal, continued.variables, whole.variables)


@pytest.mark.deep
def test_what_refresh_returns_is_checked():
    run = partial(jr.train.refreshed, start(), OBJECTIVE, TX, BOARD, epochs=1, **HOW)
    for returned, message in (
        ({"params": {}}, r"refresh returns 'params'; it may replace only \['graph', 'prototypes'\]"),
        ({"clusters": {}}, "refresh returns 'clusters'; it may"),
        ({"prototypes": {"user": jnp.zeros(3)}}, r"refresh returns prototypes of the form .*'user'.*\(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            run(refresh=lambda key, variables, returned=returned: returned)
    with pytest.raises(ValueError, match=r"^period=0; give"):
        run(refresh=REFRESH, period=0)


@pytest.mark.deep
def test_divergence_is_that_of_fit():
    tx = optax.sgd(float("nan"))
    with pytest.raises(jr.train.DivergenceError, match="epoch 1") as caught:
        jr.train.refreshed(start(tx), OBJECTIVE, tx, BOARD, refresh=REFRESH, epochs=2, **HOW)
    assert np.isfinite(caught.value.state.variables["params"]["user"]).all()


@pytest.mark.parametrize(
    ("refresh", "message"),
    [
        (lambda key, variables: None, "refresh returns NoneType"),
        (lambda key, variables: {"prototypes": {"user": [1]}}, "refresh returns prototypes of the form"),
    ],
)
def test_wrong_results_of_refresh_are_named(refresh, message):
    tx = optax.sgd(0.1)
    state = jr.train.init(jax.random.key(0), ON_BOARD, tx)
    with pytest.raises(ValueError, match=message):
        jr.train.refreshed(state, OBJECTIVE, tx, BOARD, refresh=refresh, epochs=1, **HOW)


def test_clusters_of_integers_and_with_old_keys_are_refused():
    with pytest.raises(AssertionError):
        jr.train.ncl.k_means(jax.random.key(0), jnp.array([[0], [1]]), n=1)
    with pytest.raises(ValueError, match="one typed key"):
        jr.train.ncl.k_means(jax.random.PRNGKey(0), jnp.array([[0.0], [1.0]]), n=1)
