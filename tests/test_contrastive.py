"""SimGCL and XSimGCL, their objective and the penalty of graph models, against NumPy in float64."""

import functools
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
from jaxrec.models import LightGCN, SimGCL, XSimGCL
from jaxrec.train.contrastive import first_of_each

N_USERS, N_ITEMS, DIM = 6, 5, 3  # user 3 and item 4 have no interactions
PAIRS = np.array([0, 0, 0, 1, 2, 2, 4, 5, 5]), np.array([0, 1, 3, 1, 2, 3, 0, 1, 2])
TRAIN = Interactions.from_pairs(*PAIRS, weights=np.arange(1, 10), n_users=N_USERS, n_items=N_ITEMS)
SAMPLE = partial(jr.sampling.uniform, n_items=N_ITEMS, n=2)
KEY = jax.random.key(3)
MODELS = {
    "SimGCL": SimGCL(TRAIN, dim=DIM, layers=2),
    "XSimGCL": XSimGCL(TRAIN, dim=DIM, layers=3, contrast=2),
}
every_model = pytest.mark.parametrize("name", MODELS)
BATCH = jr.train.Batch.of(
    jnp.array([0, 2, 0, 5, 1]),
    jnp.array([1, 3, 0, 1, 1]),
    where=jnp.array([True, True, True, True, False]),
    weights=jnp.array([1.0, 2.0, 0.5, 1.0, 3.0]),
)


def adjacency():
    """D^{-1/2} [[0, R], [Rᵀ, 0]] D^{-1/2} by NumPy."""
    met = np.zeros((N_USERS, N_ITEMS))
    met[PAIRS] = 1
    whole = np.block([[np.zeros((N_USERS, N_USERS)), met], [met.T, np.zeros((N_ITEMS, N_ITEMS))]])
    degrees = whole.sum(1)
    root = np.divide(1, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
    return root[:, None] * whole * root


def drawn(model):
    """The variables of `init`, with parameters drawn by NumPy."""
    return _drawn(model, jax.config.jax_enable_x64)


@functools.cache
def _drawn(model, x64):
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), float), variables["params"])
    return {**variables, "params": params}


def first_layer(variables):
    return np.concatenate([variables["params"]["user"], variables["params"]["item"]])


@partial(jax.jit, static_argnums=0)
def views(model, variables, key=KEY, noise=0.3):
    return model.apply(variables, noise, method="views", rngs={"noise": key})


@partial(jax.jit, static_argnums=0)
def vectors(model, variables):
    return model.apply(variables, method="vectors")


# ---------------------------------------------------------------------- vectors and views


@every_model
def test_scores_are_the_mean_of_the_layers_after_the_first_without_noise(name, float64):
    model, step = MODELS[name], adjacency()
    variables = drawn(model)
    smooth = sum(np.linalg.matrix_power(step, k) for k in range(1, model.layers + 1)) / model.layers
    expected = smooth @ first_layer(variables)
    tables = vectors(model, variables)
    np.testing.assert_allclose(np.concatenate(tables), expected, atol=1e-12)
    assert (np.asarray(tables[0])[3] == 0).all() and (np.asarray(tables[1])[4] == 0).all()
    scores = expected[:N_USERS] @ expected[N_USERS:].T
    users, items = np.arange(N_USERS), np.arange(N_ITEMS)

    @jax.jit
    def all_ways(variables):  # a key does not disturb the score
        pairs = [model.apply(variables, users[:, None], items[None], rngs=rngs) for rngs in ({}, {"noise": KEY})]
        return [*pairs, model.apply(variables, users, method="rows")]

    for found in all_ways(variables):
        np.testing.assert_allclose(found, scores, atol=1e-12)


@every_model
def test_noise_has_the_given_length_and_the_signs_of_the_vectors(name, float64):
    """With one layer, the noise is the difference between the view and the propagated vectors."""
    model = MODELS[name].clone(layers=1, **({"contrast": 1} if name == "XSimGCL" else {}))
    variables = drawn(model)
    calm = adjacency() @ first_layer(variables)
    met = np.abs(calm).sum(1) > 0
    tables, first, second = views(model, variables)
    noisy = np.concatenate(first)
    lengths = np.linalg.norm(noisy - calm, axis=1)
    np.testing.assert_allclose(lengths[met], 0.3, rtol=1e-12)
    assert (noisy[~met] == 0).all() and (np.sign(noisy) == np.sign(calm)).all()
    if name == "SimGCL":
        np.testing.assert_allclose(np.concatenate(tables), calm, atol=1e-12)
        assert not np.allclose(noisy, np.concatenate(second))
    else:
        np.testing.assert_array_equal(np.concatenate(tables), noisy)
        np.testing.assert_array_equal(np.concatenate(second), noisy)


@pytest.mark.deep
def test_noise_of_one_layer_is_propagated_to_the_next(float64):
    """The views of XSimGCL are the mean of its two layers and the first layer, which give the second."""
    model = XSimGCL(TRAIN, dim=DIM, layers=2, contrast=1)
    variables = drawn(model)
    _, final, one = map(np.concatenate, views(model, variables))
    two, calm = 2 * final - one, adjacency() @ one
    np.testing.assert_allclose(np.linalg.norm(two - calm, axis=1)[np.abs(calm).sum(1) > 0], 0.3, rtol=1e-10)
    other = XSimGCL(TRAIN, dim=DIM, layers=2, contrast=2)
    np.testing.assert_allclose(np.concatenate(views(other, variables)[2]), two, atol=1e-12)


@pytest.mark.deep
def test_without_noise_the_views_are_the_tables():
    for model in MODELS.values():
        variables = drawn(model)
        tables, first, _ = views(model, variables, noise=0.0)
        np.testing.assert_array_equal(np.concatenate(first), np.concatenate(vectors(model, variables)))
        np.testing.assert_array_equal(np.concatenate(first), np.concatenate(tables))


@pytest.mark.deep
@every_model
def test_one_key_gives_one_result_and_another_key_another(name):
    model = MODELS[name]
    variables = drawn(model)
    once, again, other = (np.concatenate(views(model, variables, key)[1]) for key in (KEY, KEY, jax.random.key(4)))
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, other)


@pytest.mark.deep
def test_views_need_a_key():
    model = MODELS["SimGCL"]
    with pytest.raises(Exception, match="noise"):
        model.apply(drawn(model), 0.1, method="views")


def test_wrong_values_are_named():
    for make, name, value in (
        (SimGCL, "layers", 0),
        (XSimGCL, "contrast", 0),
        (XSimGCL, "contrast", 4),
        (XSimGCL, "dim", 0),
    ):
        with pytest.raises(ValueError, match=f"^{name}={value}; give"):
            make(TRAIN, **{name: value})
    model = XSimGCL(TRAIN, layers=np.int64(2), contrast=jnp.int32(2))
    assert model == XSimGCL(TRAIN, layers=2, contrast=2) and hash(model) != hash(XSimGCL(TRAIN))
    assert LightGCN(TRAIN) != SimGCL(TRAIN)


# ---------------------------------------------------------------------- the objective


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def infonce(first, second, temperature):
    scores = unit(first) @ unit(second).T / temperature
    return np.mean(np.log(np.exp(scores).sum(1)) - np.diag(scores))


@every_model
@pytest.mark.parametrize("shared", [False, True])
def test_the_objective_is_the_formula(name, shared, float64):
    model = MODELS[name]
    variables, sample = drawn(model), partial(jr.sampling.shared, sample=SAMPLE) if shared else SAMPLE
    objective = partial(
        jr.train.contrastive_objective, model=model, sample=sample, noise=0.3, weight=0.4, temperature=0.5
    )
    sample_key, noise_key = jax.random.split(KEY)
    (users, items), *both = jax.tree.map(np.asarray, views(model, variables, noise_key))
    negatives = np.broadcast_to(sample(sample_key, BATCH.users[:, 0]), (5, 2))
    own, ids = users[BATCH.users[:, 0]], np.asarray(BATCH.items[:, 0])
    gaps = np.einsum("bd,bnd->bn", own, items[negatives]) - (own * items[ids]).sum(1)[:, None]
    values = np.log1p(np.exp(gaps)).mean(1)[:4]
    weights = np.array([1.0, 2.0, 0.5, 1.0])
    expected = (weights * values).sum() / weights.sum()
    # The fifth pair is masked; users 0 and items 1 occur twice.
    for side, known in ((0, [0, 2, 5]), (1, [0, 1, 3])):
        expected += 0.4 * infonce(both[0][side][known], both[1][side][known], 0.5)
    np.testing.assert_allclose(jax.jit(objective)(variables, KEY, BATCH), expected, rtol=1e-12)


@pytest.mark.deep
@pytest.mark.every_case
@every_model
def test_gradients_equal_finite_differences_and_the_noise_is_a_constant(name, float64):
    """The sign and the length of the noise have no gradient."""
    model = MODELS[name]
    variables = drawn(model)
    objective = partial(jr.train.contrastive_objective, model=model, sample=SAMPLE)
    value = jax.jit(lambda params: objective({**variables, "params": params}, KEY, BATCH))
    gradient = jax.jit(jax.grad(value))(variables["params"])
    assert (gradient["user"][3] == 0).all() and (gradient["item"][4] == 0).all()
    rng = np.random.default_rng(1)
    along = jax.tree.map(lambda x: rng.normal(size=x.shape), variables["params"])

    def at(step):
        return value(jax.tree.map(lambda x, d: x + step * d, variables["params"], along))

    slope = sum((gradient[part] * along[part]).sum() for part in along)
    np.testing.assert_allclose(slope, (at(1e-6) - at(-1e-6)) / 2e-6, rtol=1e-6)


@pytest.mark.deep
@every_model
def test_gradients_are_finite_for_equal_rows_and_padding(name):
    model = MODELS[name]
    variables = drawn(model)
    objective = partial(jr.train.contrastive_objective, model=model, sample=SAMPLE)
    flat = {**variables, "params": jax.tree.map(jnp.zeros_like, variables["params"])}
    none = BATCH._replace(where=jnp.zeros((5, 1), bool))
    both = jax.jit(jax.value_and_grad(objective, allow_int=True))
    for given, batch in ((variables, BATCH), (flat, BATCH), (variables, none)):
        value, gradient = both(given, KEY, batch)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient["params"]))
    assert value == 0 and not any(leaf.any() for leaf in jax.tree.leaves(gradient["params"]))


@pytest.mark.deep
@every_model
def test_steps_differ_in_noise_and_negatives_and_vmap_is_a_loop(name):
    model = MODELS[name]
    variables = drawn(model)
    objective = partial(jr.train.contrastive_objective, model=model, sample=SAMPLE)
    of_key = jax.jit(lambda key: objective(variables, key, BATCH))
    keys = jax.random.split(KEY, 3)
    values = [float(of_key(key)) for key in keys]
    assert len(set(values)) == 3 and float(of_key(keys[0])) == values[0]
    np.testing.assert_allclose(jax.jit(jax.vmap(of_key))(keys), values, rtol=1e-5)
    ones = lambda key, users: jnp.ones((len(users), 1), jnp.int32)  # noqa: E731
    calm = jax.jit(partial(jr.train.contrastive_objective, model=model, sample=ones))
    assert len({float(calm(variables, key, BATCH)) for key in keys[:2]}) == 2  # the noise alone differs


@pytest.mark.deep
def test_the_contrast_of_groups_is_that_of_their_pairs():
    model = MODELS["XSimGCL"]
    variables = drawn(model)
    items, where = jnp.array([[1, 3], [0, 1]]), jnp.array([[True, True], [True, False]])
    groups = jr.train.Batch.of(jnp.array([0, 5]), items, where=where)
    none = lambda pos, neg, *, where=None: 0 * pos  # noqa: E731
    objective = jax.jit(partial(jr.train.contrastive_objective, model=model, sample=SAMPLE, loss=none))
    pairs = groups.pairs()
    singles = jr.train.Batch.of(pairs.users, pairs.items, where=pairs.where)
    np.testing.assert_allclose(objective(variables, KEY, groups), objective(variables, KEY, singles), rtol=1e-5)


def test_first_of_each_marks_valid_ids_once():
    rng = np.random.default_rng(0)
    for size in (0, 1, 40):
        ids, where = rng.integers(0, 12, size), rng.random(size) < 0.6
        found = np.asarray(jax.jit(first_of_each)(ids.astype(np.int32), where=where))
        expected = [bool(w) and i not in ids[:r][where[:r]] for r, (i, w) in enumerate(zip(ids, where))]
        np.testing.assert_array_equal(found, expected)


def test_the_objective_says_what_is_wrong():
    objective = partial(jr.train.contrastive_objective, {}, KEY, BATCH, sample=SAMPLE)
    with pytest.raises(TypeError, match="model is LightGCN, which has no 'views'"):
        objective(model=LightGCN(TRAIN))
    for name, value in (("noise", -0.1), ("weight", -1.0), ("temperature", 0.0)):
        with pytest.raises(ValueError, match=f"^{name}={value}; give a finite number"):
            objective = partial(jr.train.contrastive_objective, model=MODELS["XSimGCL"], sample=SAMPLE)
            jax.eval_shape(partial(objective, **{name: value}), drawn(MODELS["XSimGCL"]), KEY, BATCH)


# ---------------------------------------------------------------------- the penalty


@pytest.mark.parametrize("model", [jr.models.MF(N_USERS, N_ITEMS, dim=DIM), MODELS["XSimGCL"]], ids=["MF", "XSimGCL"])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_penalty_is_that_of_the_batchs_rows(model, weighted, float64):
    kind = jr.train.contrastive_objective if isinstance(model, XSimGCL) else jr.train.pairwise_objective
    objective = partial(kind, model=model, sample=SAMPLE, loss=jr.losses.bpr)
    variables = drawn(model)
    user, item = (np.asarray(variables["params"][name]) for name in ("user", "item"))
    batch = BATCH if weighted else BATCH._replace(weights=None)
    negatives = np.asarray(SAMPLE(jax.random.split(KEY)[0], BATCH.users[:, 0]))
    square = lambda rows: (rows**2).sum(-1)  # noqa: E731
    each = square(user[BATCH.users[:, 0]]) + square(item[BATCH.items[:, 0]]) + square(item[negatives]).mean(1)
    weights = np.array([1.0, 2.0, 0.5, 1.0, 0.0] if weighted else [1.0, 1.0, 1.0, 1.0, 0.0])
    added = 0.3 * (weights * each).sum() / weights.sum() / 2
    penalised = jax.jit(partial(jr.train.penalised_objective, objective=objective))
    plain = jax.jit(objective)(variables, KEY, batch)
    np.testing.assert_allclose(penalised(variables, KEY, batch, l2=0.3) - plain, added, rtol=1e-6)
    np.testing.assert_allclose(penalised(variables, KEY, batch, l2=0.0), plain, rtol=1e-12)


def test_the_penalty_moves_only_the_rows_of_the_batch():
    model = jr.models.MF(N_USERS, N_ITEMS, dim=DIM)
    variables = drawn(model)
    nothing = lambda pos, neg, *, where=None: 0 * pos  # noqa: E731
    sample = lambda key, users: jnp.full((len(users), 1), 2, jnp.int32)  # noqa: E731
    objective = partial(jr.train.pairwise_objective, model=model, sample=sample, loss=nothing)
    slope = jax.jit(jax.grad(partial(jr.train.penalised_objective, objective=objective, l2=0.4)))
    gradient = slope(variables, KEY, BATCH)["params"]
    user, item = (np.asarray(variables["params"][name]) for name in ("user", "item"))
    shares = np.zeros(N_USERS), np.zeros(N_ITEMS)
    shares[0][[0, 2, 5]] = np.array([1.5, 2.0, 1.0]) / 4.5
    shares[1][[0, 1, 3, 2]] = np.array([0.5, 2.0, 2.0, 4.5]) / 4.5
    for found, table, share in ((gradient["user"], user, shares[0]), (gradient["item"], item, shares[1])):
        np.testing.assert_allclose(found, 0.4 * share[:, None] * table, rtol=1e-5)


def test_the_penalty_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"^l2=-1.0; give a finite number of 0 or more"):
        jr.train.penalised_objective({}, KEY, BATCH, objective=lambda *_: 0.0, l2=-1.0)
    with pytest.raises(ValueError, match="the objective binds 0 samplers"):
        jr.train.penalised_objective({"params": {}}, KEY, BATCH, objective=lambda *_: 0.0)


# ---------------------------------------------------------------------- training

BOARD, DIAGONAL = synthetic.checkerboard(30)
OF_BOARD = partial(jr.sampling.uniform, n_items=30, n=2)


def recipe(make, **setting):
    model = make(BOARD, dim=8, layers=2, scale=0.1)
    objective = partial(jr.train.contrastive_objective, model=model, sample=OF_BOARD, **setting)
    return model, partial(jr.train.penalised_objective, objective=objective, l2=1e-4), TX


@pytest.mark.deep
@pytest.mark.every_case
@pytest.mark.parametrize("make", [SimGCL, XSimGCL])
def test_recovers_the_diagonal_withheld_from_the_checkerboard(make):
    model, objective, tx = recipe(make, noise=0.1, weight=0.1, temperature=0.5)
    state = jr.train.init(jax.random.key(0), model, tx)
    validate = lambda variables: jr.evaluate.full_ranking(model, variables, BOARD, DIAGONAL, ks=(1,))  # noqa: E731
    how = {"epochs": 6, "batch_size": 128, "validate": validate, "every": 6, "progress": False}
    state, log = jr.train.fit(state, objective, tx, BOARD, **how)
    assert log.column("hit_rate@1")[1][-1] == 1
    assert log.records[-1]["loss"] < log.records[0]["loss"]
    # Evaluation uses the tables without noise.
    users, items = map(np.asarray, model.apply(state.variables, method="vectors"))
    rows = model.apply(state.variables, np.arange(30), method="rows")
    np.testing.assert_allclose(rows, users @ items.T, rtol=1e-4, atol=1e-5)
    assert validate(state.variables).means == validate(state.variables).means


@pytest.mark.deep
def test_one_key_trains_to_one_result():
    model, objective, tx = recipe(XSimGCL)
    states = [jr.train.init(jax.random.key(seed), model, tx) for seed in (0, 0, 1)]
    fit = partial(jr.train.fit, objective=objective, tx=tx, train=BOARD, epochs=1, batch_size=128, progress=False)
    one, again, other = (np.asarray(fit(state)[0].variables["params"]["user"]) for state in states)
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


@pytest.mark.deep
def test_a_sweep_varies_the_settings_and_the_seed():
    model = XSimGCL(BOARD, dim=4, layers=2)

    def setup(**setting):
        return model, partial(jr.train.contrastive_objective, model=model, sample=OF_BOARD, **setting), TX

    settings = {"weight": [0.1, 0.5], "temperature": [0.2, 0.1], "noise": [0.1, 0.3]}
    keys = jax.random.split(jax.random.key(0), 2)
    how = {"settings": settings, "epochs": 2, "batch_size": 128, "progress": False}
    found = jr.train.sweep(keys, setup, BOARD, width=2, **how)
    losses = [tuple(run.log.column("loss")[1]) for run in found.runs]
    assert len(set(losses)) == 4 and np.isfinite(losses).all()


@pytest.mark.deep
def test_vmap_over_keys_trains_each_seed():
    model, objective, tx = recipe(SimGCL)
    keys = jax.random.split(jax.random.key(0), 2)
    examples = jr.train.singles(BOARD)
    graph = jr.train.init(keys[0], model, tx).variables["graph"]

    def trained(key, graph, examples):
        params = {name: 0.1 * jax.random.normal(key, (30, 8)) for name in ("user", "item")}
        state = jr.train.State({"params": params, "graph": graph}, tx.init(params), key, jnp.int32(0))
        return jr.train.epoch(state, objective, tx, examples, batch_size=128)[1]

    together = jax.jit(jax.vmap(trained, (0, None, None)))(keys, graph, examples)
    alone = jax.jit(trained)(keys[1], graph, examples)
    np.testing.assert_allclose(together[1], alone, rtol=1e-4)
    assert not np.allclose(together[0], together[1])


@pytest.mark.deep
def test_it_trains_in_double_precision(float64):
    model, objective, _ = recipe(XSimGCL)
    tx = optax.sgd(0.1)
    state = jr.train.init(jax.random.key(0), model, tx)
    state, log = jr.train.fit(state, objective, tx, BOARD, epochs=1, batch_size=128, progress=False)
    assert state.variables["params"]["user"].dtype == np.float64 and np.isfinite(log.records[-1]["loss"])
