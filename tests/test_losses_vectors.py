"""Losses of vectors against loops in plain Python."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.losses import close, differences

from jaxrec import losses

USERS = np.random.default_rng(0).normal(size=(5, 3))
ITEMS = np.random.default_rng(1).normal(size=(5, 3))
WHERE = np.array([1, 0, 1, 1, 0], bool)


def unit(x):
    return x / np.linalg.norm(x) if x.any() else x


def alignment(users, items):
    return np.array([sum((unit(u) - unit(i)) ** 2) for u, i in zip(users, items)])


def uniformity(x, scale=2.0):
    pairs = [(i, j) for j in range(len(x)) for i in range(j)]
    terms = [math.exp(-scale * sum((unit(x[i]) - unit(x[j])) ** 2)) for i, j in pairs]
    return math.log(sum(terms) / len(terms)) if pairs else 0.0


def directau(users, items, weight=1.0):
    return alignment(users, items).mean() + weight * (uniformity(users) + uniformity(items)) / 2


def covariance(x):
    moments = np.cov(x.T, bias=True)
    return (moments**2).sum() - (np.diag(moments) ** 2).sum()


def diversity(x, least=0.05, most=0.25):
    """The formula of the paper, pair by pair."""
    pairs = [((a - b) ** 2).sum() for a in x for b in x]
    spread = np.sum(pairs) / (2 * len(x) * (len(x) - 1))
    return max(least - spread, 0) + max(spread - most, 0)


def infonce(queries, keys, positives, temperature):
    values = []
    for query, own in zip(queries, positives):
        scores = [sum(unit(query) * unit(key)) / temperature for key in keys]
        values.append(math.log(sum(map(math.exp, scores))) - scores[own])
    return np.array(values)


infonce_jitted = jax.jit(losses.infonce)
spread_and_gradient = jax.jit(jax.value_and_grad(losses.uniformity))
directau_and_gradients = jax.jit(jax.value_and_grad(losses.directau, argnums=(0, 1)))
covariance_and_gradient = jax.jit(jax.value_and_grad(losses.covariance))


def test_alignment_by_hand():
    users, items = np.array([[3.0, 0], [1, 1], [-2, 0]]), np.array([[5.0, 0], [4, 0], [0.5, 0]])
    with jax.enable_x64(True):
        np.testing.assert_allclose(losses.alignment(users, items), [0, 2 - math.sqrt(2), 4], atol=1e-14)


@pytest.mark.deep
def test_uniformity_of_two_rows_has_a_closed_form():
    x = USERS[:2].astype(np.float32)
    squared = float(sum((unit(USERS[0]) - unit(USERS[1])) ** 2))
    assert float(losses.uniformity(x)) == pytest.approx(-2 * squared, rel=1e-5)
    assert float(losses.uniformity(x, scale=0.5)) == pytest.approx(-0.5 * squared, rel=1e-5)


@pytest.mark.deep
def test_formulae_eager_jit_and_vmap():
    with jax.enable_x64(True):
        two = np.stack([USERS, ITEMS]), np.stack([ITEMS, USERS[::-1]])
        for f in (losses.alignment, jax.jit(losses.alignment), jax.jit(jax.vmap(losses.alignment))):
            np.testing.assert_allclose(f(*two), [alignment(u, i) for u, i in zip(*two)], rtol=1e-12)
        for f in (jax.jit(losses.uniformity), jax.jit(jax.vmap(losses.uniformity))):
            np.testing.assert_allclose(f(two[0]), [uniformity(u) for u in two[0]], rtol=1e-12)
        for f in (losses.directau, jax.jit(losses.directau), jax.jit(jax.vmap(losses.directau))):
            np.testing.assert_allclose(f(*two), [directau(u, i) for u, i in zip(*two)], rtol=1e-12)
        for f in (losses.covariance, jax.jit(jax.vmap(losses.covariance))):
            np.testing.assert_allclose(f(two[0]), [covariance(u) for u in two[0]], rtol=1e-12)


@pytest.mark.parametrize("scale", [0.01, 0.2, 1.0], ids=["close", "between", "far"])
def test_diversity_is_a_bound_on_the_spread_of_pairs(scale):
    x = np.stack([USERS, ITEMS]) * scale
    bounds = {"least": 0.02, "most": 0.9}
    with jax.enable_x64(True):
        for f in (partial(losses.diversity, **bounds), jax.jit(jax.vmap(partial(losses.diversity, **bounds)))):
            np.testing.assert_allclose(f(x), [diversity(each, **bounds) for each in x], rtol=1e-12)
        gradient = jax.jit(jax.grad(partial(losses.diversity, **bounds)))(x[0])
        np.testing.assert_allclose(gradient, differences(lambda y: np.array(diversity(y, **bounds)), x[0]), atol=1e-7)
    half = losses.diversity(jnp.asarray(100 * x[0], jnp.float16))  # the square would overflow
    assert half.dtype == jnp.float32 and float(half) == pytest.approx(diversity(100 * x[0]), rel=1e-2)


def test_diversity_of_one_vector_is_0_and_bounds_may_be_traced():
    x = USERS.astype(np.float32)
    value, gradient = jax.jit(jax.value_and_grad(losses.diversity))(x[:1])
    assert value == 0 and (gradient == 0).all()
    swept = jax.jit(jax.vmap(lambda most: losses.diversity(x, most=most)))(jnp.array([0.1, 0.5]))
    np.testing.assert_allclose(swept, [diversity(USERS, most=most) for most in (0.1, 0.5)], rtol=1e-5)
    for wrong in ({"least": -1.0}, {"most": np.nan}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            losses.diversity(x, **wrong)


def test_weight_and_scale_may_be_traced():
    swept = jax.jit(jax.vmap(lambda w: losses.directau(USERS.astype(np.float32), ITEMS.astype(np.float32), weight=w)))
    close(swept(jnp.array([0.5, 5.0])), np.array([directau(USERS, ITEMS, w) for w in (0.5, 5.0)]))
    swept = jax.jit(jax.vmap(lambda s: losses.uniformity(USERS.astype(np.float32), scale=s)))
    close(swept(jnp.array([0.5, 5.0])), np.array([uniformity(USERS, s) for s in (0.5, 5.0)]))


@pytest.mark.deep
@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf])
def test_masking_is_deletion_and_gradients_equal_finite_differences(fill):
    users, items = (np.where(WHERE[:, None], x, fill) for x in (USERS, ITEMS))
    with jax.enable_x64(True):
        value, (d_users, d_items) = directau_and_gradients(users, items, where=WHERE, weight=0.7)
        crowd, d_crowd = spread_and_gradient(users, where=WHERE)
        shared, d_shared = covariance_and_gradient(users, where=WHERE)
    assert float(value) == pytest.approx(directau(USERS[WHERE], ITEMS[WHERE], 0.7), rel=1e-12)
    assert float(crowd) == pytest.approx(uniformity(USERS[WHERE]), rel=1e-12)
    assert float(shared) == pytest.approx(covariance(USERS[WHERE]), rel=1e-12)
    for actual, f, x in [
        (d_users, lambda x: np.array(directau(x, ITEMS[WHERE], 0.7)), USERS),
        (d_items, lambda x: np.array(directau(USERS[WHERE], x, 0.7)), ITEMS),
        (d_crowd, lambda x: np.array(uniformity(x)), USERS),
        (d_shared, lambda x: np.array(covariance(x)), USERS),
    ]:
        np.testing.assert_allclose(np.asarray(actual)[WHERE], differences(f, x[WHERE]), atol=1e-8)
        assert (np.asarray(actual)[~WHERE] == 0).all()


@pytest.mark.deep
@pytest.mark.parametrize("valid", [0, 1])
def test_uniformity_of_fewer_than_two_rows(valid):
    where = np.arange(5) < valid
    x = USERS.astype(np.float32)
    value, gradient = spread_and_gradient(x, where=where)
    assert value == 0 and (gradient == 0).all()
    shared, gradient = covariance_and_gradient(x, where=where)
    assert shared == 0 and (gradient == 0).all()
    value, (gradient, _) = directau_and_gradients(x, ITEMS.astype(np.float32), where=where)
    assert float(value) == pytest.approx(alignment(USERS, ITEMS)[:valid].sum(), rel=1e-5)
    assert (np.asarray(gradient)[valid:] == 0).all() and (np.asarray(gradient)[:valid] != 0).all()
    assert jax.jit(losses.uniformity)(x[:valid]) == 0


@pytest.mark.deep
def test_rows_of_zeros_and_equal_rows_have_finite_gradients():
    x = np.array([[0, 0, 0], [1, 2, 3], [1, 2, 3], [0, 0, 0]], np.float32)
    value, gradient = spread_and_gradient(x)
    assert float(value) == pytest.approx(uniformity(x), abs=1e-6)
    assert np.isfinite(gradient).all() and (gradient[0] == 0).all()
    for users, items in ((x, x), (x, x[::-1])):
        values, vjp = jax.vjp(jax.jit(losses.alignment), users, items)
        close(values, alignment(users, items), atol=1e-6)
        assert all(np.isfinite(g).all() and (g[0] == 0).all() for g in vjp(jnp.ones(4, jnp.float32)))


@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_losses_depend_only_on_directions(size):
    users, items = (USERS * size).astype(np.float32), (ITEMS / size).astype(np.float32)
    value, gradients = directau_and_gradients(users, items)
    assert float(value) == pytest.approx(directau(USERS, ITEMS), rel=1e-5)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.deep
def test_signs_of_covariances_do_not_cancel():
    """C = [[1, 1, 0], [1, 3, −1], [0, −1, 1]] / 3: the sum of its entries off the diagonal is 0."""
    x = np.array([[1, 1, 0], [-1, -1, 0], [0, 1, -1], [0, -1, 1], [0, 1, 0], [0, -1, 0]], np.float32)
    assert abs(np.cov(x.T, bias=True)[~np.eye(3, dtype=bool)].sum()) < 1e-12
    assert float(losses.covariance(x)) == pytest.approx(4 / 9)


def test_far_rows_do_not_underflow():
    x = np.array([[1, 0], [-1, 0]], np.float32)
    value, gradient = spread_and_gradient(x, scale=1e3)
    assert float(value) == -4e3 and np.isfinite(gradient).all()


@pytest.mark.deep
def test_infonce_of_pairs_and_of_chosen_keys(float64):
    close(infonce_jitted(USERS, ITEMS, temperature=0.5), infonce(USERS, ITEMS, range(5), 0.5))
    positives = np.array([3, 3, 0])
    close(infonce_jitted(USERS[:3], ITEMS, positives=positives, temperature=0.2), infonce(USERS, ITEMS, positives, 0.2))
    two = np.stack([USERS, ITEMS]), np.stack([ITEMS, USERS[::-1]])
    expected = [infonce(u, i, range(5), 0.2) for u, i in zip(*two)]
    np.testing.assert_allclose(losses.infonce(*two), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(losses.infonce)(*two), expected, rtol=1e-12)
    swept = jax.jit(jax.vmap(lambda t: losses.infonce(USERS, ITEMS, temperature=t)))(jnp.array([0.1, 1.0]))
    np.testing.assert_allclose(swept, [infonce(USERS, ITEMS, range(5), t) for t in (0.1, 1.0)], rtol=1e-12)


@pytest.mark.deep
@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf])
def test_infonce_masks_by_deletion_and_has_gradients_of_finite_differences(fill, float64):
    users, items = (np.where(WHERE[:, None], x, fill) for x in (USERS, ITEMS))
    short = infonce(USERS[WHERE], ITEMS[WHERE], range(3), 0.3)

    @jax.jit
    def total(users, items):
        return losses.infonce(users, items, where=WHERE, temperature=0.3)

    np.testing.assert_allclose(total(users, items)[WHERE], short, rtol=1e-12)
    assert (np.asarray(total(users, items))[~WHERE] == 0).all()
    gradients = jax.grad(lambda *x: total(*x).sum(), argnums=(0, 1))(users, items)
    expected = (
        differences(lambda x: infonce(x, ITEMS[WHERE], range(3), 0.3), USERS[WHERE]),
        differences(lambda x: infonce(USERS[WHERE], x, range(3), 0.3), ITEMS[WHERE]),
    )
    for actual, slopes in zip(gradients, expected):
        np.testing.assert_allclose(np.asarray(actual)[WHERE], slopes, atol=1e-7)
        assert (np.asarray(actual)[~WHERE] == 0).all()


@pytest.mark.deep
def test_infonce_is_finite_at_zeros_at_low_temperatures_and_with_nothing_valid():
    x = np.array([[0, 0, 0], [1, 2, 3], [-1, -2, -3]], np.float32)
    for where in (np.ones(3, bool), np.zeros(3, bool)):
        both = lambda x: losses.infonce(x, x[::-1], where=where, temperature=1e-4).sum()  # noqa: E731, B023
        value, gradient = jax.jit(jax.value_and_grad(both))(x)
        assert np.isfinite(value) and np.isfinite(gradient).all() and (gradient[0] == 0).all()
    assert value == 0 and (gradient == 0).all()
    assert losses.infonce(x.astype(np.float16), x.astype(np.float16)).dtype == np.float32
    assert losses.infonce(x[:0], x[:0]).shape == (0,)


def test_wrong_vectors_are_refused():
    x = USERS.astype(np.float32)
    for wrong in (
        lambda: losses.alignment(x, x[:3]),
        lambda: losses.alignment(x.astype(np.int32), x.astype(np.int32)),
        lambda: losses.uniformity(x.astype(np.int32)),
        lambda: losses.uniformity(x, where=WHERE.astype(np.float32)),
        lambda: losses.uniformity(x, where=WHERE[:3]),
        lambda: losses.covariance(x.astype(np.int32)),
        lambda: losses.covariance(x, where=WHERE.astype(np.float32)),
        lambda: losses.covariance(x, where=WHERE[:3]),
        lambda: losses.infonce(x, x[:3]),
        lambda: losses.infonce(x, x, where=WHERE[:3]),
        lambda: losses.infonce(x, x, positives=np.arange(3)),
        lambda: losses.infonce(x, x, positives=x[:, 0]),
        lambda: losses.infonce(x, x, where=WHERE.astype(np.float32)),
        lambda: losses.directau(x, x[:3]),
        lambda: losses.directau(x, x, where=WHERE[:3]),
        lambda: losses.directau(x, x, where=WHERE.astype(np.float32)),
    ):
        with pytest.raises(AssertionError):
            wrong()


def test_scales_and_weights_without_a_meaning_are_refused():
    with pytest.raises(ValueError, match=r"^temperature=0.0; give a finite number above 0"):
        losses.infonce(jnp.eye(2), jnp.eye(2), temperature=0.0)
    with pytest.raises(ValueError, match=r"^scale=0.0; give a finite number above 0"):
        losses.uniformity(jnp.eye(2), scale=0.0)
    with pytest.raises(ValueError, match=r"^weight=-1.0; give a finite number of 0 or more"):
        losses.directau(jnp.eye(2), jnp.eye(2), weight=-1.0)


@pytest.mark.deep
@pytest.mark.parametrize("scale", [1e-23, 1e20])
def test_lengths_are_divided_out_however_small_or_large(scale):
    x = jnp.eye(2)
    one = jax.value_and_grad(lambda x: losses.infonce(x, jnp.eye(2)).sum())
    value, slope = one(scale * x)
    expected, other = one(x)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(scale * slope, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("positives", [[0, 6], [-1, 0]])
def test_positives_outside_the_rows_of_the_keys_are_refused(positives):
    with pytest.raises(ValueError, match="give rows of keys, 0 to 5"):
        losses.infonce(jnp.ones((2, 3)), jnp.ones((6, 3)), positives=jnp.array(positives))


def test_bounds_of_diversity_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"least=3\.0 is above most=0\.2"):
        losses.diversity(jnp.eye(2), least=3.0, most=0.2)
