"""λOpt in a run of `fit`: the batches and rows of its steps, and its models and optimisers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.optim.lambda_opt import alternate
from jaxrec.optim.moments import amsgrad, smooth_adam
from jaxrec.optim.regularization import coefficients
from jaxrec.train import lambda_opt, mars

PAIRS, VALID = synthetic.checkerboard(40)
N = PAIRS.n_items
SAMPLE = partial(jr.sampling.uniform, n_items=N, n=2)
MF = jr.models.MF(N, N, dim=4, scale=1.0)
BPR = partial(jr.train.pairwise_objective, loss=jr.losses.bpr, sample=SAMPLE)
DRAWS = partial(lambda_opt.draws, objective=partial(BPR, model=MF), train=PAIRS, valid=VALID)
ADAM = partial(alternate, optax.adam(0.02), amsgrad(0.01), simulated=smooth_adam(0.02))
TX = ADAM(draws=DRAWS)
OPTIONS = {"epochs": 2, "batch_size": 8, "progress": False}


@pytest.fixture(autouse=True)
def as_optax_needs():
    with jax.numpy_dtype_promotion("standard"):
        yield


def started(model, tx):
    return jr.train.init(jax.random.key(0), model, tx)


def leaves(tree):
    return [
        np.asarray(jax.random.key_data(x) if x.dtype == jax.random.key(0).dtype else x) for x in jax.tree.leaves(tree)
    ]


@pytest.mark.deep
def test_tables_from_the_normal_distribution_start_at_a_loss_of_about_6():
    """With 128 dimensions of N(0, 1), score differences have a standard deviation of 16, and their mean softplus is
    16 / √(2π).
    """
    model = jr.models.MF(300, 300, dim=128, scale=1.0)
    variables = model.init(jax.random.key(0), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    users, items = jax.random.randint(jax.random.key(1), (2, 2048), 0, 300, jnp.int32)
    batch = jr.train.Batch.of(users, items)
    sample = partial(jr.sampling.uniform, n_items=300)
    loss = jr.train.pairwise_objective(
        variables, jax.random.key(2), batch, model=model, loss=jr.losses.bpr, sample=sample
    )
    assert float(loss) == pytest.approx(16 / np.sqrt(2 * np.pi), abs=0.4)


# ---------------------------------------------------------------------- draws


@pytest.mark.deep
@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_rows_are_those_of_the_objective_and_weigh_one_over_the_positives(shared, weighted, group):
    where = jnp.array([True, True, False])
    users, items = jnp.array([3, 1, 3]), jnp.array([5, 4, 5])
    weights = jnp.array([3.0, 1.0, 7.0]) if weighted else None
    if group:
        where, items = jnp.array([[True, True], [True, False], [False, False]]), jnp.array([[5, 6], [4, 0], [5, 0]])
        weights = jnp.array([[3.0, 2.0], [1.0, 9.0], [7.0, 0.0]]) if weighted else None
    batch = jr.train.Batch.of(users, items, weights=weights, where=where)
    sample = (lambda key, users: SAMPLE(key, users[:1])) if shared else SAMPLE
    key = jax.random.key(1)
    draws = partial(lambda_opt.draws, train=PAIRS, valid=VALID)
    rows = draws(key, batch, objective=partial(BPR, sample=sample)).rows
    negatives = sample(jax.random.split(key)[0], users)
    assert rows["user"][0].tolist() == users.tolist()
    assert rows["item"][0].tolist() == [*items.reshape(-1).tolist(), *negatives.reshape(-1).tolist()]
    assert all(ids.shape == share.shape for ids, share in rows.values())
    share = np.where(where, 1.0 if weights is None else weights, 0.0)
    share = share / share.sum()
    of_users, n = share.reshape(3, -1).sum(1), share.size
    np.testing.assert_allclose(rows["user"][1], of_users, rtol=1e-6)
    np.testing.assert_allclose(rows["item"][1][:n], share.reshape(-1), rtol=1e-6)
    np.testing.assert_allclose(rows["item"][1][n:], np.repeat([1.0] if shared else of_users, 2) / 2, rtol=1e-6)
    summed = draws(key, batch, objective=partial(mars.objective, sample=sample)).rows["user"][1]
    assert float(summed.sum()) == pytest.approx(float(jnp.where(where, 1.0 if weights is None else weights, 0).sum()))


@pytest.mark.deep
def test_rows_of_mars_are_those_of_its_drawn_positives():
    """The rows with a gradient are the rows to penalise."""
    model = jr.models.MARS(8, 60, dim=4, n_facets=2)

    def positives(key, shape):
        return tuple(jax.random.randint(each, shape, 0, 8, dtype=jnp.int32) for each in jax.random.split(key))

    objective = partial(mars.objective, model=model, sample=SAMPLE, margin=3.0, facet_weight=0.0, positives=positives)
    batch, key = jr.train.Batch.of(jnp.zeros(3, jnp.int32), jnp.array([5, 6, 7])), jax.random.key(1)
    variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    gradient = jax.grad(objective)(variables, key, batch)["params"]
    rows = lambda_opt.penalised_rows(key, batch, objective=objective)
    assert set(rows["user"][0].tolist()) != {0} and float(rows["user"][1].sum()) == 3
    for name, (ids, _) in rows.items():
        moved = np.flatnonzero(np.abs(gradient[name]).reshape(len(gradient[name]), -1).sum(1))
        assert set(ids.tolist()) == set(moved.tolist())


@pytest.mark.deep
def test_draws_are_pairs_of_their_sets_and_of_keys_of_their_own():
    batch = jr.train.Batch.of(jnp.zeros(50, jnp.int32), jnp.zeros(50, jnp.int32))
    key = jax.random.key(3)
    draw = jax.jit(partial(DRAWS, steps=2))(key, batch)
    (ahead_key, ahead), (valid_key, valid) = draw.ahead, draw.valid
    assert PAIRS.contains(ahead.users, ahead.items).all() and VALID.contains(valid.users, valid.items).all()
    assert ahead.users.shape == (2, 50, 1) and valid.users.shape == (50, 1)
    assert len(np.unique(np.asarray(ahead.items))) > 20 and len(np.unique(np.asarray(valid.items))) > 20
    children = jax.random.split(key)
    keys = np.concatenate([jax.random.key_data(k).reshape(-1, 2) for k in (key, children, ahead_key, valid_key)])
    assert len(np.unique(keys, axis=0)) == len(keys) == 6
    one, expected = jax.tree.map(lambda x: x[1], (draw.ahead, draw.ahead_rows))
    np.testing.assert_array_equal(DRAWS(*one).rows["item"][0], expected["item"][0])


@pytest.mark.deep
def test_draws_from_examples_carry_histories():
    other = PAIRS.select(np.arange(PAIRS.n_pairs) % 2 == 0)
    train, valid = (jr.train.singles(pairs, histories=other) for pairs in (PAIRS, VALID))
    batch, key = jr.train.Batch.of(jnp.zeros(50, jnp.int32), jnp.zeros(50, jnp.int32)), jax.random.key(3)
    draw = jax.jit(partial(DRAWS, train=train, valid=valid))(key, batch)
    plain = jax.jit(DRAWS)(key, batch)
    for (_, found), (_, expected), pairs in ((draw.ahead, plain.ahead, PAIRS), (draw.valid, plain.valid, VALID)):
        assert pairs.contains(found.users, found.items).all()
        np.testing.assert_array_equal(found.users, expected.users)
        owned = other.take(np.asarray(found.users)[:, 0])
        np.testing.assert_array_equal(found.histories.indptr, owned.indptr)
        np.testing.assert_array_equal(found.histories.indices[: owned.n_pairs], owned.indices)


@pytest.mark.deep
def test_validation_without_pairs_or_of_other_users_is_refused():
    """Without the check, a draw from no pairs would read arbitrary memory, and ids of other users would be clamped."""
    nothing = VALID.select(np.zeros(VALID.n_pairs, bool))
    others = jr.Interactions.from_pairs(*VALID.pairs(), n_users=N + 1, n_items=N)
    for valid, message in (
        (nothing, "valid has no pairs"),
        (others, "valid of draws is for n_users=41, but train has 40"),
    ):
        with pytest.raises(ValueError, match=message):
            tx = ADAM(draws=partial(DRAWS, valid=valid))
            jr.train.fit(started(MF, tx), partial(BPR, model=MF), tx, PAIRS, **OPTIONS)


# ---------------------------------------------------------------------- runs


def lightgcn():
    model = jr.models.LightGCN(PAIRS, dim=4, scale=1.0)
    start, draws = partial(coefficients, granularity="D"), partial(DRAWS, steps=2)
    tx = alternate(optax.adagrad(0.1), optax.sgd(1.0), draws=draws, scope="exact", start=start, steps=2)
    return model, partial(BPR, model=model), tx


def mar_by_rows():
    model = jr.models.MAR(N, N, dim=4, n_facets=2)
    sample = partial(jr.sampling.uniform, n_items=N, n=1)
    step = jr.optim.rowwise.lazy(mars.optimizer(0.05, theta_learning_rate=0.01, step=mars.ball_sgd))
    objective = partial(mars.objective, model=model, sample=sample, margin=0.5)
    valid_objective = partial(BPR, model=model, sample=sample)
    draws = partial(DRAWS, objective=objective, valid_objective=valid_objective)
    return model, objective, alternate(step, amsgrad(0.01), draws=draws, scope="exact")


def simplex():
    model = jr.models.SimpleX(N, N, dim=4, scale=1.0, pool=jr.models.UserAttention())
    train, valid = (jr.train.singles(pairs, histories=PAIRS) for pairs in (PAIRS, VALID))
    draws = partial(DRAWS, objective=partial(BPR, model=model), train=train, valid=valid, steps=2)
    return model, partial(BPR, model=model), ADAM(draws=draws, steps=2)


@pytest.mark.deep
@pytest.mark.parametrize("setup", [lightgcn, mar_by_rows, simplex])
def test_models_train_and_their_coefficients_are_learned(setup):
    model, objective, tx = setup()
    options = OPTIONS | {"examples": partial(jr.train.singles, histories=PAIRS if setup is simplex else None)}
    state, log = jr.train.fit(started(model, tx), objective, tx, PAIRS, **options)
    lambdas = np.concatenate([x.reshape(-1) for x in leaves(state.opt_state.lambdas)])
    assert np.isfinite(lambdas).all() and lambdas.min() >= 0 and lambdas.max() > 0
    assert np.isfinite([record["loss"] for record in log.records]).all()
    assert int(state.opt_state.count) == 2 * -(-PAIRS.n_pairs // 8)


@pytest.mark.deep
def test_coefficients_follow_another_validation_objective():
    def nothing(variables, key, batch):
        return jnp.zeros(())

    tx = ADAM(draws=partial(DRAWS, valid_objective=nothing))
    state, _ = jr.train.fit(started(MF, tx), partial(BPR, model=MF), tx, PAIRS, **OPTIONS)
    assert int(state.opt_state.count) > 0 and not any(x.any() for x in leaves(state.opt_state.lambdas))


@pytest.mark.deep
def test_a_run_resumes_from_its_checkpoint_with_bit_identical_results(tmp_path):
    objective = partial(BPR, model=MF)
    run = partial(jr.train.fit, objective=objective, tx=TX, train=PAIRS, batch_size=8, progress=False)
    whole, _ = run(started(MF, TX), epochs=2)
    assert whole.opt_state.lambdas["user"].any() and whole.opt_state.lambdas["item"].any()
    checkpoint = jr.train.Checkpoint(tmp_path / "run")
    run(started(MF, TX), epochs=1, checkpoint=checkpoint)
    again, _ = run(started(MF, TX), epochs=2, checkpoint=checkpoint)
    assert [x.tobytes() for x in leaves(again)] == [x.tobytes() for x in leaves(whole)]


@pytest.mark.deep
def test_seeds_of_a_sweep_are_the_single_runs():
    def setup(rate):
        tx = alternate(optax.adam(0.02), amsgrad(rate), draws=DRAWS, simulated=smooth_adam(0.02))
        return MF, partial(BPR, model=MF), tx

    keys = jax.random.split(jax.random.key(0), 2)
    sweep = jr.train.sweep(keys, setup, PAIRS, settings={"rate": [0.01]}, **OPTIONS)
    state = jr.train.init(keys[1], MF, TX)
    state, _ = jr.train.fit(state, partial(BPR, model=MF), TX, PAIRS, **OPTIONS)
    for found, expected in zip(leaves(sweep.state(1).opt_state.lambdas), leaves(state.opt_state.lambdas)):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)


@pytest.mark.deep
def test_an_objective_that_does_not_say_its_rows_is_refused():
    """Without a sampler, or with two, the rows to penalise are unknown."""
    both = partial(jr.train.combined_objective, parts=[(1.0, partial(BPR, model=MF)), (1.0, partial(BPR, model=MF))])
    for objective, n in ((partial(jr.train.gram_objective, model=MF), 0), (both, 2)):
        with pytest.raises(ValueError, match=f"the objective binds {n} samplers as sample=.*pass rows="):
            DRAWS(jax.random.key(0), jr.train.Batch.of(jnp.array([0]), jnp.array([1])), objective=objective)
