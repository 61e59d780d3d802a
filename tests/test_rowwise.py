from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrec as jr
from jaxrec.data import synthetic

SHAPES = {"user": (20, 3), "item": (12, 2, 2), "bias": (12,)}


def gradients(key, n_touched):
    """Gradients with some rows not 0, and the ids of those rows, repeated and in any order."""
    grads, touched = {}, {}
    for name, (rows, *rest) in SHAPES.items():
        row_key, value_key, key = jax.random.split(key, 3)
        touched[name] = jax.random.randint(row_key, (n_touched,), 0, rows)
        mask = jnp.zeros(rows).at[touched[name]].set(1.0).reshape((-1,) + (1,) * len(rest))
        grads[name] = mask * jax.random.normal(value_key, (rows, *rest))
    return grads, touched


def run(tx, steps, n_touched, named):
    tx = optax.with_extra_args_support(tx)
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}

    def step(carry, key):
        params, state = carry
        grads, touched = gradients(key, n_touched)
        updates, state = tx.update(grads, state, params, touched={name: touched[name] for name in named})
        return (optax.apply_updates(params, updates), state), None

    with jax.numpy_dtype_promotion("standard"):  # optax raises an int32 count to a float power
        carry, _ = jax.jit(lambda c: jax.lax.scan(step, c, jax.random.split(jax.random.key(3), steps)))(
            (params, tx.init(params))
        )
    return carry


@pytest.mark.parametrize("named", [("user", "item", "bias"), ("user",), ()], ids=len)
@pytest.mark.parametrize("n_touched", [1, 5, 40])
def test_dense_adam_equals_the_adam_of_optax(n_touched, named):
    """Also with few rows touched, so that moments decay for long, and with more ids than rows."""
    options = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}
    expected, _ = run(optax.adam(0.05, **options), 150, n_touched, named)
    found, state = run(jr.optim.rowwise.dense_adam(0.05, **options), 150, n_touched, named)
    for name in SHAPES:
        assert np.abs(expected[name] - 1).max() > 0.1
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-4, atol=2e-5)
    assert int(state.count) == 150


def test_moments_of_rows_never_touched_are_never_written():
    tx = jr.optim.rowwise.dense_adam(0.1)
    params = {"item": jnp.ones((4, 2))}
    grads = {"item": jnp.ones((4, 2)).at[2:].set(0.0)}
    _, state = tx.update(grads, tx.init(params), params, touched={"item": jnp.array([0, 1, 1])})
    assert state.last["item"].tolist() == [1, 1, 0, 0]
    assert (np.asarray(state.mu["item"]) > 0).tolist() == [[True, True]] * 2 + [[False, False]] * 2


def test_strict_promotion_holds():
    tx = jr.optim.rowwise.dense_adam(0.1)
    params = {"item": jnp.ones((4, 2))}
    updates, _ = tx.update(params, tx.init(params))
    np.testing.assert_allclose(updates["item"], -0.1, rtol=1e-5)


def test_training_with_touched_rows_equals_training_with_optax():
    train, _ = synthetic.checkerboard(30)
    model = jr.models.MF(30, 30, dim=4, score=jr.models.cosine, scale=0.1)
    sample = partial(jr.sampling.uniform, n_items=30, n=2)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    trained = []
    for tx, touched in (
        (optax.adam(0.01), None),
        (jr.optim.rowwise.dense_adam(0.01), partial(jr.train.pairwise_rows, sample=sample)),
    ):
        with jax.numpy_dtype_promotion("standard"):
            state = jr.train.init(jax.random.key(0), model, tx)
            state, _ = jr.train.fit(
                state, objective, tx, train, epochs=2, batch_size=8, touched=touched, progress=False
            )
        trained.append(state.variables["params"])
    for name in ("user", "item"):
        np.testing.assert_allclose(trained[1][name], trained[0][name], rtol=1e-3, atol=1e-5)


def test_rows_of_a_pairwise_step_hold_every_row_with_a_gradient():
    model = jr.models.MF(30, 40, dim=4)
    sample = partial(jr.sampling.uniform, n_items=40, n=3)
    variables = model.init(jax.random.key(0), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    batch = jr.train.Batch(jnp.array([1, 2, 1]), jnp.array([3, 4, 5]), None, jnp.ones(3, bool))
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    grads = jax.grad(objective)(variables, jax.random.key(7), batch)["params"]
    rows = jr.train.pairwise_rows(jax.random.key(7), batch, sample=sample)
    for name in ("user", "item"):
        assert set(np.flatnonzero(np.abs(grads[name]).sum(-1))) == set(rows[name].tolist())
