"""The chunked decoder equals the whole catalogue at once, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxrec.models import _mixture
from jaxrec.models._histories import Pairs
from jaxrec.models._mixture import Noise

B, N, D, K = 4, 11, 3, 3
RNG = np.random.default_rng(0)
Q1, Q2, ITEMS, WEIGHTS = (RNG.normal(size=size) for size in ((B, K, D), (B, K, D), (N, D), B))
USERS = np.array([5, 0, 7, 5], np.int32)


def noise_of(shared):
    return Noise(jax.random.key(1), jnp.zeros(1, jnp.int32) if shared else jnp.asarray(USERS))


def dense(q1, q2, items, noise):
    """s [B, N] by exponentials."""
    ids = np.arange(N, dtype=np.int32)[None]
    odds = jnp.stack(_mixture.odds(noise, noise.users[:, None], ids, K))
    after, before = ((odds * jnp.exp(jnp.einsum("bkd,nd->kbn", q, items))).sum(0) for q in (q2, q1))
    return jnp.log(after) - jnp.log(before)


@pytest.mark.deep
@pytest.mark.parametrize("shared", [True, False])
def test_any_chunks_give_the_value_and_gradient_of_the_whole(shared):
    """With noise, in float64. One chunk size does not divide N, and one is larger than N."""
    q1 = Q1[:1] if shared else Q1

    def whole(q1, q2, items):
        return jax.nn.logsumexp(dense(q1, q2, items, noise_of(shared)), axis=1) @ WEIGHTS

    def streamed(q1, q2, items, chunk):
        return _mixture.log_normaliser(q1, q2, items, noise_of(shared), chunk) @ WEIGHTS

    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(whole, argnums=(0, 1, 2)))(q1, Q2, ITEMS)
        for chunk in (1, 4, 16) if shared else (4,):
            of = jax.jit(jax.value_and_grad(streamed, argnums=(0, 1, 2)), static_argnums=3)
            found, slopes = of(q1, Q2, ITEMS, chunk)
            assert float(found) == pytest.approx(float(value), rel=1e-12)
            for a, b in zip(slopes, gradient, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.deep
def test_single_pairs_have_the_noise_of_the_whole():
    rows, items = np.array([0, 0, 2, 3, 4], np.int32), np.array([3, 10, 0, 3, 0], np.int32)
    pairs = Pairs(*map(jnp.asarray, (rows, items, USERS, np.bincount(rows[:4], minlength=B))))
    with jax.enable_x64(True):
        for shared in (True, False):
            found = _mixture.at_pairs(jnp.asarray(Q1), jnp.asarray(Q2), pairs, ITEMS[items], noise_of(shared))
            expected = dense(Q1, Q2, ITEMS, noise_of(shared))
            np.testing.assert_allclose(found[:4], np.asarray(expected)[rows[:4], items[:4]], rtol=1e-12)


def test_odds_are_of_gumbel_noise_and_each_interests_own():
    users, items = jnp.arange(200)[:, None], jnp.arange(100)[None]
    drawn = np.log(np.stack(jax.jit(lambda: _mixture.odds(Noise(jax.random.key(0), None), users, items, K))()))
    assert drawn.shape == (K, 200, 100)
    np.testing.assert_allclose(drawn.mean((1, 2)), np.euler_gamma, atol=0.05)
    np.testing.assert_allclose(drawn.var((1, 2)), np.pi**2 / 6, rtol=0.05)
    assert np.abs(np.corrcoef(drawn.reshape(K, -1)) - np.eye(K)).max() < 0.03
    assert _mixture.odds(Noise(None, None), users, items, K) == [None] * K


@pytest.mark.deep
def test_extremes_are_finite():
    """Logits are ±400, and float32 cannot hold e⁴⁰⁰. Without noise, against NumPy in float64."""
    q1, q2 = (np.float32(400 * q / np.abs(q).max()) for q in (Q1, Q2))
    items = np.float32(ITEMS / np.linalg.norm(ITEMS, axis=1, keepdims=True))
    none = Noise(None, USERS)

    def total(q1, q2, items):
        return _mixture.log_normaliser(q1, q2, items, none, 4).sum()

    value, slopes = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(q1, q2, items)
    with np.errstate(over="ignore"):
        before, after = (np.einsum("bkd,nd->kbn", np.float64(q), items) for q in (q1, q2))
        s = np.logaddexp.reduce(after) - np.logaddexp.reduce(before)
        expected = np.logaddexp.reduce(s, axis=1).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(_mixture.scores(q1, q2, items), s, rtol=1e-4, atol=1e-3)
    assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.deep
@pytest.mark.parametrize("noisy", [False, True])
def test_the_normaliser_has_all_its_derivatives(noisy):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        q1, q2, items = (jnp.asarray(rng.normal(size=shape)) for shape in ((1, 2, 3), (2, 2, 3), (5, 3)))
        noise = _mixture.Noise(jax.random.key(0) if noisy else None, jnp.zeros(1, jnp.int32))
        function = jax.jit(lambda *x: _mixture.log_normaliser(*x, noise, 2))
        check_grads(function, (q1, q2, items), 2, ["rev"])
