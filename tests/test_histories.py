"""Histories of a batch as one list of pairs, against loops over users."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxrec import models
from jaxrec.interactions import Interactions
from jaxrec.models._histories import Pairs, all_pairs, on_histories, spread, surpassed

DEGREES = np.r_[600, np.arange(2, 61) % 5]  # one user of 600 items among 60
TRAIN = Interactions.from_pairs(
    np.repeat(np.arange(60), DEGREES), np.concatenate([np.arange(n) for n in DEGREES]), n_users=60
)


def sums(pairs, own):
    """Of items, for each user, and how long the list is."""
    return (
        pairs.sums(pairs.items.astype(jnp.float32)),
        own.astype(jnp.float32),
        jnp.full(1, len(pairs.rows), jnp.float32),
    )


@pytest.mark.parametrize("at_random", [False, True])
def test_lists_have_room_for_the_users(at_random):
    known = jax.tree.map(jnp.asarray, TRAIN)
    run = jax.jit(lambda users: on_histories(sums, known, DEGREES, users, key=None, at_random=at_random))
    users = np.random.default_rng(0).permutation(60).astype(np.int32)
    found, own, (capacity,) = run(users)
    np.testing.assert_array_equal(own, DEGREES[users])
    np.testing.assert_array_equal(found, (DEGREES * (DEGREES - 1) / 2)[users])
    assert 720 <= capacity < 60 * 600 / 2
    same = np.zeros(60, np.int32)  # no random draw: 36 000 pairs
    found, _, (capacity,) = run(same)
    if at_random:
        assert np.isnan(found).all() and np.isnan(capacity)
    else:
        np.testing.assert_array_equal(found, np.full(60, 600 * 599 / 2))
        assert capacity == -(-60 * 600 // 256) * 256


def test_lists_fit_users_that_are_known():
    few = np.array([3, 0, 3], np.int32)
    found, own, (capacity,) = on_histories(sums, TRAIN, DEGREES, jnp.asarray(few), key=None, at_random=True)
    np.testing.assert_array_equal(found, (DEGREES * (DEGREES - 1) / 2)[few])
    np.testing.assert_array_equal(own, DEGREES[few])
    assert capacity == 768


def test_lists_have_room_where_most_users_have_no_items():
    """Training draws from those with items, who have more than a draw from all would have."""
    degrees = np.zeros(4000, int)
    degrees[:1000] = 1 + np.arange(1000) % 40
    degrees[0] = 3000
    items = np.concatenate([np.arange(n) for n in degrees])
    known = Interactions.from_pairs(np.repeat(np.arange(4000), degrees), items, n_users=4000)
    known = jax.tree.map(jnp.asarray, known)
    run = jax.jit(lambda users: on_histories(sums, known, degrees, users, key=None, at_random=True))
    for seed in range(5):
        users = np.random.default_rng(seed).permutation(1000)[:500].astype(np.int32)
        found, _, (capacity,) = run(users)
        np.testing.assert_array_equal(found, (degrees * (degrees - 1) / 2)[users])
    assert capacity < 500 * 3000 / 10


@pytest.mark.parametrize("n", [10, 400])
def test_bound_on_what_random_users_have_holds_and_is_near(n):
    """Half of many users have 3 items, half none: n of them have three times a binomial number."""
    degrees = np.tile([0, 3], 100_000)
    bound = surpassed(degrees, n, odds=1e-6)
    assert scipy.stats.binom.sf(bound // 3, n, 0.5) <= 1e-6
    assert bound == 3 * n or scipy.stats.binom.sf(0.97 * bound / 3, n, 0.5) > 1e-6


def test_normalised_and_spread_and_padding():
    where = np.array([[True, False, True], [False, False, False], [True, True, False]])
    pairs = all_pairs(np.array([[5, 0, 7], [0, 0, 0], [1, 2, 0]], np.int32), where)
    assert pairs.rows.tolist() == [0, 0, 2, 2, 3, 3, 3, 3, 3] and pairs.items[:4].tolist() == [5, 7, 1, 2]
    values = jnp.array([[3.0, 0], [4, 0], [1, 1], [0, 1]] + [[9, 9]] * 5)
    expected = [[0.6, 0], [0.8, 0], [1, 0.5**0.5], [0, 0.5**0.5]] + [[0, 0]] * 5
    np.testing.assert_allclose(pairs.normalised(values), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: pairs.normalised(x).sum())(jnp.zeros_like(values))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(pairs.sums(values)[1], [0, 0])
    np.testing.assert_array_equal(spread(jnp.arange(3), pairs.rows)[:4], [0, 0, 2, 2])
    np.testing.assert_array_equal(spread(jnp.array([7]), pairs.rows), np.full(9, 7))


def test_noise_depends_on_user_and_item_not_on_place():
    key = jax.random.key(3)
    one = Pairs(jnp.array([0, 0, 1]), jnp.array([4, 5, 5]), jnp.array([7, 9]), key)
    other = Pairs(jnp.array([0, 1, 1]), jnp.array([5, 4, 5]), jnp.array([9, 7]), key)
    values = jnp.ones((3, 3))
    kept = [pairs.dropped(values, 0.5, draw=2) for pairs in (one, other)]
    np.testing.assert_array_equal(kept[0][jnp.array([2, 0, 1])], kept[1])
    normal = [pairs.normal((2, 2), draw=0) for pairs in (one, other)]
    np.testing.assert_array_equal(normal[0][::-1], normal[1])
    assert not np.array_equal(normal[0], one.normal((2, 2), draw=1))
    assert one.dropped(values, 0.0, draw=2) is values


@pytest.mark.parametrize("make", [models.VALID, models.MacridVAE, models.MultDAE, models.MultVAE, models.RecVAE])
def test_parameters_are_made_without_a_pass(make, monkeypatch):
    """It would be compiled operation by operation, which took longer than all else of a start."""
    monkeypatch.setattr(make, "_of_pairs", None)
    users = jnp.array([3, 4])
    model = make(TRAIN, dim=2)
    variables = model.init(jax.random.key(0), users, users)
    monkeypatch.undo()
    scores = model.apply(variables, users, jnp.array([[1], [5]]))
    rows = model.apply(variables, users, method="rows")
    assert scores.shape == (2, 2)
    np.testing.assert_allclose(scores, [[rows[0, 1], rows[1, 1]], [rows[0, 5], rows[1, 5]]], atol=1e-5)
