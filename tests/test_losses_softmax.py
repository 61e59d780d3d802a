"""The softmax family: its identities, its edges, and the positives of one user pooled."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.losses import NEG, POS, SCORES, WHERE, average, bsl, close, differences, logsumexp

from jaxrec import losses


@pytest.mark.deep
@pytest.mark.parametrize("exponent", [1.0, 1.22])
def test_bsl_does_not_overflow_at_a_low_temperature(exponent):
    pos, neg = np.array([50.0, -50.0], np.float32), np.array([[50.0, 49.9, 30.0], [50.0, 50.0, -50.0]], np.float32)
    for mean in (True, False):
        loss = partial(losses.bsl, temperature=0.08, exponent=exponent, negatives="mean" if mean else "sum")
        expected = [bsl(p, list(n), 0.08, exponent, mean) for p, n in zip(pos.astype(float), neg.astype(float))]
        np.testing.assert_allclose(loss(pos, neg), expected, rtol=1e-6, atol=1e-4)
        assert np.isfinite(jax.grad(lambda n, loss=loss: loss(pos, n).sum())(neg)).all()


@pytest.mark.deep
def test_bsl_with_exponent_one_is_the_softmax_without_its_positive():
    pos, neg = SCORES
    gap = losses.bsl(pos, neg, temperature=0.2, exponent=1.0, negatives="sum")
    close(losses.softmax(pos, neg, temperature=0.2), jax.nn.softplus(gap))


def test_infonce_plus_is_softmax_mine_and_bsl():
    pos, neg = SCORES
    how = {"where": WHERE, "temperature": 0.2}
    close(losses.infonce_plus(pos, neg, exponent=1.0, positive_share=1.0, **how), losses.softmax(pos, neg, **how))
    without = losses.infonce_plus(pos, neg, exponent=1.3, positive_share=0.0, **how)
    close(without, losses.mine(pos, neg, exponent=1.3, negatives="sum", **how))
    close(without, losses.bsl(pos, neg, exponent=1.3, negatives="sum", **how))
    close(losses.mine(pos, neg, exponent=1.3, **how), losses.bsl(pos, neg, exponent=1.3, **how))
    close(losses.infonce_plus(pos, neg, exponent=1.3, positive_share=1e-30, **how), without)


@pytest.mark.parametrize("share", [0.0, 1e-30, 0.3, 1.0])
@pytest.mark.parametrize("size", [1e4, -1e4, 3.0])
def test_a_traced_share_of_the_positive_is_stable(share, size):
    pos, neg = np.float32(size), np.array([-1e4, 3.0], np.float32)
    loss = jax.jit(jax.value_and_grad(lambda p, n, e: losses.infonce_plus(p, n, positive_share=e), argnums=(0, 1, 2)))
    value, gradients = loss(pos, neg, np.float32(share))
    terms = [3.0] + ([size + math.log(share)] if share else [])
    assert float(value) == pytest.approx(1.1 * logsumexp(terms) - size, rel=1e-6)
    in_denominator = math.exp(terms[-1] - logsumexp(terms)) if share else 0.0
    assert float(gradients[0]) == pytest.approx(1.1 * in_denominator - 1, rel=1e-5)
    assert np.isfinite(gradients[1]).all() and np.isfinite(gradients[2])


@pytest.mark.deep
def test_softmax_keeps_small_losses_of_large_scores():
    value = losses.softmax(jnp.array(1000.0), jnp.array([990.0]))
    assert float(value) == pytest.approx(math.log1p(math.exp(-10)), rel=1e-5)


def test_softmax_of_one_negative_is_bpr():
    pos, neg = SCORES[0], SCORES[1][:, :1]
    np.testing.assert_allclose(losses.softmax(pos, neg), losses.bpr(pos, neg), rtol=1e-6)


@pytest.mark.deep
def test_sampled_softmax_of_the_whole_catalogue_is_the_full_softmax():
    n = 7
    scores = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32)
    others = scores[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    sampled = losses.sampled_softmax(
        np.diag(scores), others, log_q_pos=-math.log(n), log_q_neg=np.full(others.shape, -math.log(n), np.float32)
    )
    full = jax.nn.logsumexp(scores, axis=1) - np.diag(scores)
    close(sampled, full)
    close(losses.multinomial(scores, np.eye(n, dtype=bool)), full)
    doubled = losses.sampled_softmax(np.diag(scores), scores, log_q_pos=-math.log(n), log_q_neg=-math.log(n))
    assert (doubled > full + 1e-3).all()
    for loss in (partial(losses.bsl, temperature=1.0, exponent=1.0), losses.mine):
        close(loss(np.diag(scores), scores, negatives="sum"), full)


@pytest.mark.deep
def test_a_user_with_two_positives_counts_twice_in_the_softmax():
    scores = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    positives, where = np.array([[0, 3], [2, 2]]), np.array([[True, True], [True, False]])
    of_rows = [[logsumexp(row.tolist()) - float(row[i]) for i in ids] for row, ids in zip(scores, positives)]
    by_interaction = (of_rows[0][0] + of_rows[0][1] + of_rows[1][0]) / 3
    by_user = ((of_rows[0][0] + of_rows[0][1]) / 2 + of_rows[1][0]) / 2
    pos = np.take_along_axis(scores, positives, 1)
    values = losses.mine(pos, scores[:, None], negatives="sum")
    assert float(losses.mean(values, where=where)) == pytest.approx(by_interaction, rel=1e-5)
    assert abs(by_user - by_interaction) > 0.01
    targets = np.array([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]])
    assert float(losses.multinomial(scores, targets).sum()) / 3 == pytest.approx(by_interaction, rel=1e-5)
    per_user = losses.multinomial(scores, targets) / targets.sum(1).astype(np.float32)
    assert float(losses.mean(per_user)) == pytest.approx(by_user, rel=1e-5)


def test_sampled_softmax_corrects_each_negative_by_its_own_probability():
    q = np.array([0.25, 0.05], np.float32)
    value = losses.sampled_softmax(
        jnp.array(1.0), jnp.array([0.0, 2.0]), log_q_pos=jnp.log(0.5), log_q_neg=np.log(q), temperature=2.0
    )
    terms = math.exp(0.5) / 0.5, 1 / 0.25, math.exp(1) / 0.05
    assert float(value) == pytest.approx(-math.log(terms[0] / sum(terms)), rel=1e-6)


# ---------------------------------------------------------------------- positives of one user, pooled

POOL = np.array([1.0, -0.5, 2.0, 0.3, 0.9, np.nan, 0.4], np.float32)
POOL_USERS = np.array([7, 2, 7, 0, 2, 7, 7])
POOL_WHERE = np.array([1, 1, 1, 1, 1, 0, 1], bool)


def pooled(pos, users, where, temperature):
    values = np.zeros(len(pos))
    for b in np.flatnonzero(where):
        same = [float(pos[r]) / temperature for r in np.flatnonzero(where) if users[r] == users[b]]
        values[b] = temperature * (logsumexp(same) - math.log(len(same)))
    return values


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_pooled_positives_and_their_gradient(temperature):
    def weighted_sum(pos):
        values = losses.pooled(pos, POOL_USERS, where=POOL_WHERE, temperature=temperature)
        return (values * np.arange(1.0, 8)).sum(), values

    with jax.enable_x64(True):
        gradient, values = jax.jit(jax.grad(weighted_sum, has_aux=True))(POOL.astype(np.float64))
        gradient, values = np.asarray(gradient), np.asarray(values)
    close(values, pooled(POOL, POOL_USERS, POOL_WHERE, temperature), rtol=1e-7)
    clean = np.where(POOL_WHERE, POOL, 0).astype(np.float64)
    expected = differences(lambda p: pooled(p, POOL_USERS, POOL_WHERE, temperature) * np.arange(1.0, 8), clean)
    close(gradient, expected, rtol=1e-7)
    assert values[5] == 0 and gradient[5] == 0


@pytest.mark.deep
def test_pooling_distinct_users_changes_nothing():
    pos = np.array([1.0, -1e4, 1e4, 0.3], np.float32)
    values, vjp = jax.vjp(lambda p: losses.pooled(p, np.array([3, 1, 2, 0]), temperature=0.11), pos)
    np.testing.assert_allclose(values, pos, rtol=1e-6)
    np.testing.assert_allclose(*vjp(jnp.arange(4, dtype=jnp.float32)), np.arange(4.0), rtol=1e-6)


@pytest.mark.deep
def test_pooling_is_stable_and_the_released_bsl():
    pos, users = np.array([1e4, -1e4, 50.0, 49.0], np.float32), np.array([1, 1, 5, 5])
    values, gradient = jax.value_and_grad(lambda p: losses.pooled(p, users, temperature=0.08).sum())(pos)
    assert np.isfinite(gradient).all()
    assert float(values) == pytest.approx(pooled(pos, users, np.ones(4, bool), 0.08).sum(), rel=1e-6)
    with jax.enable_x64(True):
        scores, same = jnp.array(POS), jnp.array([4, 9, 4])
        loss = losses.bsl(losses.pooled(scores, same, temperature=0.11), jnp.array(NEG))
        both = math.log((math.exp(POS[0] / 0.11) + math.exp(POS[2] / 0.11)) / 2)
        denominators = [1.1 * math.log(average([math.exp(n / 0.11) for n in ns])) for ns in NEG]
        expected = [denominators[0] - both, denominators[1] - POS[1] / 0.11, denominators[2] - both]
        np.testing.assert_allclose(loss, expected, rtol=1e-10)


def test_pooled_refuses_wrong_shapes_and_types():
    for pos, users, where in [
        (POOL, POOL_USERS[:3], None),
        (POOL[None], POOL_USERS[None], None),
        (POOL, POOL, None),
        (POOL_USERS, POOL_USERS, None),
        (POOL, POOL_USERS, POOL),
    ]:
        with pytest.raises(AssertionError):
            losses.pooled(pos, users, where=where, temperature=1.0)


@pytest.mark.deep
def test_pooled_users_of_64_bits_stay_distinct_and_a_temperature_of_0_is_refused():
    pos = np.array([1.0, 3.0, 5.0], np.float32)
    values = losses.pooled(pos, np.array([1, 2**32 + 1, 1]), temperature=1.0)
    np.testing.assert_allclose(values, pooled(pos, np.array([1, 2, 1]), np.ones(3, bool), 1.0), rtol=1e-6)
    with pytest.raises(ValueError, match=r"^temperature=0.0; give a finite number above 0"):
        losses.pooled(pos, np.array([1, 2, 1]), temperature=0.0)
