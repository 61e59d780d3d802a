"""Losses of distances: what `tests/test_losses.py` does not test for all losses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.losses import SCORES, WHERE, by_formula, close, contrastive, differences, relu, triplet

from jaxrec import losses

POS, NEG = np.array([1.0, 0.5, 2.0], np.float32), np.array([[1.0, 2.0], [0.2, 0.9], [2.2, 0.4]], np.float32)
BETWEEN = np.array([[0.4, 1.1], [0.6, 1.5], [2.4, 3.0]], np.float32)
USER, ITEM = np.array([0.3, 1.0, 0.7], np.float32), np.array([0.9, 0.1, 0.5], np.float32)


@pytest.mark.deep
def test_hand_values():
    np.testing.assert_allclose(losses.triplet(POS, NEG), [0.5, (1.21 + 0.44) / 2, (0.16 + 4.84) / 2], rtol=1e-6)
    by_hand = [0.5, 0.125 + (0.64 + 0.01) / 4, 2 + 0.36 / 4]
    np.testing.assert_allclose(losses.contrastive(POS, NEG), by_hand, rtol=1e-6)
    values = losses.sml(POS, NEG, between=BETWEEN, user_margin=USER, item_margin=ITEM, weight=0.5, margin_weight=2.0)
    by_hand = [
        (0.3 + 0) / 2 + 0.5 * (1.74 + 0.69) / 2 - 2 * 1.2,
        (1.21 + 0.44) / 2 + 0.5 * (0 + 0) / 2 - 2 * 1.1,
        (0 + 4.54) / 2 + 0.5 * (0 + 0) / 2 - 2 * 1.2,
    ]
    np.testing.assert_allclose(values, by_hand, rtol=1e-5)


def _released_sml(pos, neg, between, user, item, weight, gamma):
    hinges = sum(
        relu(p**2 - n**2 + m) + weight * relu(p**2 - b**2 + i)
        for p, ns, bs, m, i in zip(pos, neg, between, user, item)
        for n, b in zip(ns, bs)
    )
    return hinges - gamma * (user.mean() + item.mean())


@pytest.mark.deep
def test_sml_is_the_released_sum_over_the_batch_when_gamma_is_divided_by_the_batch():
    size, gamma = 3, 10.0
    data = [x.astype(np.float64) for x in (POS, NEG[:, :1], BETWEEN[:, :1], USER, ITEM)]

    def ours(user, item, margin_weight):
        pos, neg, between = data[:3]
        how = {"between": between, "user_margin": user, "item_margin": item, "margin_weight": margin_weight}
        return size * losses.mean(losses.sml(pos, neg, **how))

    with jax.enable_x64(True):
        assert float(ours(*data[3:], gamma / size)) == pytest.approx(_released_sml(*data, 0.01, gamma), rel=1e-6)
        assert abs(float(ours(*data[3:], gamma)) - _released_sml(*data, 0.01, gamma)) > 1
        gradient = np.asarray(jax.grad(ours)(*data[3:], gamma / size))
    close(gradient, differences(lambda m: np.array(_released_sml(*data[:3], m, data[4], 0.01, gamma)), data[3]))


@pytest.mark.deep
def test_a_masked_comparison_of_sml_gives_no_gradient_to_margins_or_distances():
    where = np.array([[True, False], [False, False], [True, True]])
    between = np.where(where, BETWEEN, np.float32(np.nan))
    user = np.where(where.any(1), USER, np.float32(np.nan))

    def total(pos, neg, between, user, item):
        how = {"between": between, "user_margin": user, "item_margin": item, "margin_weight": 1.0, "weight": 1.0}
        return losses.sml(pos, neg, where=where, **how).sum()

    value, gradients = jax.value_and_grad(total, argnums=range(5))(POS, NEG, between, user, ITEM)
    kept = [0, 2, 2], [0, 0, 1]
    single = [
        relu(float(POS[b] ** 2 - NEG[b, j] ** 2 + USER[b])) + relu(float(POS[b] ** 2 - BETWEEN[b, j] ** 2 + ITEM[b]))
        for b, j in zip(*kept)
    ]
    expected = single[0] + (single[1] + single[2]) / 2 - float(USER[[0, 2]].sum() + ITEM[[0, 2]].sum())
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert all(np.isfinite(g).all() for g in gradients)
    assert all(gradients[k][1] == 0 for k in (0, 3, 4))
    assert (np.asarray(gradients[1])[~where] == 0).all() and (np.asarray(gradients[2])[~where] == 0).all()


def test_sml_refuses_distances_between_items_of_another_rank():
    with pytest.raises(AssertionError):
        losses.sml(POS, NEG, between=BETWEEN[0])


# ---------------------------------------------------------------------- as losses of scores


def test_on_minus_squared_distances_triplet_is_hinge():
    pos, neg = -(POS**2), -(NEG**2)
    loss = partial(losses.on_scores, loss=partial(losses.triplet, margin=0.8))
    value_and_grad = jax.value_and_grad(lambda f, p, n: f(p, n).sum(), argnums=(1, 2))
    ours, hinge = (value_and_grad(f, pos, neg) for f in (loss, partial(losses.hinge, margin=0.8)))
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(hinge)):
        close(actual, expected)


@pytest.mark.parametrize("loss, formula", [(losses.triplet, triplet), (losses.contrastive, contrastive)])
def test_on_scores_by_hand_with_masks(loss, formula):
    pos, neg = -(SCORES[0] ** 2), -(SCORES[1] ** 2)
    values = jax.jit(partial(losses.on_scores, loss=loss))(pos, neg, where=WHERE)
    close(values, by_formula(formula, np.abs(SCORES[0]), np.abs(SCORES[1]), WHERE))


@pytest.mark.deep
@pytest.mark.parametrize("loss", [losses.triplet, losses.contrastive])
@pytest.mark.parametrize("score", [0.0, 0.5, -1e-38])
def test_on_scores_is_finite_at_distance_zero_and_beyond(loss, score):
    pos, neg = jnp.array(score, jnp.float32), jnp.array([score, -0.25], jnp.float32)
    value, gradients = jax.value_and_grad(lambda p, n: losses.on_scores(p, n, loss=loss), argnums=(0, 1))(pos, neg)
    assert float(value) == pytest.approx({losses.triplet: (1 + 0.75) / 2, losses.contrastive: (1 + 0.25) / 4}[loss])
    assert np.isfinite(gradients[0]) and np.isfinite(gradients[1]).all()
    assert gradients[1][1] != 0
    if score >= 0:
        assert gradients[0] == 0 and gradients[1][0] == 0


@pytest.mark.deep
def test_cosines_become_distances_of_unit_vectors():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    cosines, distances = x[1:] @ x[0], np.linalg.norm(x[1:] - x[0], axis=1)
    value = losses.on_scores(
        cosines[0], cosines[1:], loss=losses.contrastive, squared_distance=lambda cosine: 2 - 2 * cosine
    )
    close(value, losses.contrastive(distances[0], distances[1:]))
