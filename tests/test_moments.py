"""Adam that can be differentiated through, and AMSGrad as PyTorch has it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.optim import moments


def steps_of(tx, gradients):
    def step(state, gradient):
        updates, state = tx.update(gradient, state, gradient)
        return state, updates

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        return jax.lax.scan(step, tx.init(jnp.zeros(())), jnp.array(gradients, float))[1]


def test_amsgrad_is_that_of_pytorch_and_not_that_of_optax():
    gradients = [1, 0.1, 0.1, 0.1]
    expected = [-1, -0.740811, -0.633144, -0.573446]
    np.testing.assert_allclose(steps_of(moments.amsgrad(1.0), gradients), expected, rtol=2e-6)
    theirs = [-1, -0.526316, -0.369004, -0.290782]
    np.testing.assert_allclose(steps_of(optax.amsgrad(1.0), gradients), theirs, rtol=2e-6)


def test_smooth_adam_equals_adam_for_large_gradients_and_takes_its_state():
    gradients = np.random.default_rng(0).normal(size=20)
    np.testing.assert_allclose(
        steps_of(moments.smooth_adam(0.1, b1=0.8, b2=0.9), gradients),
        steps_of(optax.adam(0.1, b1=0.8, b2=0.9), gradients),
        rtol=1e-4,
    )
    params = {"user": jnp.ones((2, 3))}
    ours, theirs = (tx.init(params) for tx in (moments.smooth_adam(0.1), optax.adam(0.1)))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)


@pytest.mark.parametrize("make", [moments.amsgrad, moments.smooth_adam])
def test_strict_promotion_and_schedules(make):
    tx, params = make(optax.constant_schedule(0.5)), {"x": jnp.ones((2, 1))}
    updates, _ = jax.jit(tx.update)(params, tx.init(params))
    np.testing.assert_allclose(updates["x"], -0.5, rtol=2e-5)
