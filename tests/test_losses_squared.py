"""RG2 by Gram terms against the sum over all items."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.losses import differences

import jaxrec as jr
from jaxrec import losses

N_ITEMS, DIM = 7, 3
RNG = np.random.default_rng(0)
ITEMS = RNG.normal(size=(N_ITEMS, DIM))
USERS = RNG.normal(size=(4, DIM))
POS = np.array([0.3, -2.0, 0.8, 1.4])
WHERE = np.array([True, False, True, True])


def by_hand(pos, users, items=ITEMS):
    return -pos + ((users @ items.T + 1) ** 2).sum(-1) / (2 * len(items))


@jax.jit
def rg2(pos, users, items, where=None):
    gram = jnp.matmul(items.T, items, precision="highest")
    return losses.rg2(pos, users, gram, items.sum(0), n_items=len(items), where=where)


@jax.jit
def slopes(pos, users, items, where):
    return jax.grad(lambda *args: rg2(*args, where).sum(), argnums=(0, 1, 2))(pos, users, items)


@pytest.mark.deep
def test_the_sum_over_all_items_eager_jit_and_vmap():
    with jax.enable_x64(True):
        gram, total = ITEMS.T @ ITEMS, ITEMS.sum(0)
        for form in (losses.rg2, jax.jit(losses.rg2, static_argnames="n_items")):
            np.testing.assert_allclose(form(POS, USERS, gram, total, n_items=N_ITEMS), by_hand(POS, USERS), rtol=1e-12)
        each = jax.vmap(lambda p, u: losses.rg2(p, u, gram, total, n_items=N_ITEMS))(POS, USERS)
        np.testing.assert_allclose(each, by_hand(POS, USERS), rtol=1e-12)
        masked = rg2(POS, USERS, ITEMS, WHERE)
        np.testing.assert_allclose(masked, np.where(WHERE, by_hand(POS, USERS), 0), rtol=1e-12)


def test_one_user_serves_many_positives():
    pos, where = np.stack([POS, POS - 1]).T, np.stack([WHERE, [False, False, True, True]]).T
    with jax.enable_x64(True):
        found = rg2(pos, USERS[:, None], ITEMS, where)
        np.testing.assert_allclose(found, np.where(where, by_hand(pos.T, USERS).T, 0), rtol=1e-12)
        nothing_valid = np.where(where.any(1)[:, None], USERS, np.nan)
        gradients = slopes(pos, nothing_valid[:, None], ITEMS, where)
        assert all(np.isfinite(g).all() for g in gradients) and not gradients[1][1].any()


def test_the_sampled_loss_with_every_item_once_equals_rg2():
    with jax.enable_x64(True):
        np.testing.assert_allclose(losses.rg2_sampled(POS, USERS @ ITEMS.T), rg2(POS, USERS, ITEMS), rtol=1e-12)


@pytest.mark.deep
def test_uniform_negatives_are_unbiased_only_if_positives_are_among_them():
    """It compares the expectations for one negative drawn from all items, and from all but the positive."""
    scores = jnp.asarray(USERS @ ITEMS.T, jnp.float32)
    pos = scores[:, 2]
    one_each = losses.rg2_sampled(jnp.tile(pos[:, None], N_ITEMS), scores[..., None])  # [B, N], one draw each
    exact = rg2(pos, jnp.asarray(USERS, jnp.float32), jnp.asarray(ITEMS, jnp.float32))
    np.testing.assert_allclose(one_each.mean(1), exact, rtol=1e-5)
    without = np.delete(one_each, 2, axis=1).mean(1)
    assert (np.abs(without - exact) > 0.01).all()


def test_gradients_are_those_of_finite_differences():
    with jax.enable_x64(True):
        gradients = slopes(POS, USERS, ITEMS, WHERE)
    for place, (found, x) in enumerate(zip(gradients, (POS, USERS, ITEMS), strict=True)):

        def value(x, place=place):
            args = [POS, USERS, ITEMS]
            args[place] = x
            return by_hand(*args)[WHERE]

        np.testing.assert_allclose(found, differences(value, x), atol=1e-8)


@pytest.mark.deep
def test_masked_entries_reach_neither_value_nor_gradient():
    pos, users = (x.astype(np.float32) for x in (POS, USERS))
    items = ITEMS.astype(np.float32)
    clean = rg2(pos, users, items, WHERE), *slopes(pos, users, items, WHERE)
    for fill in (np.nan, np.inf):
        dirty = np.where(WHERE, pos, fill).astype(np.float32), np.where(WHERE[:, None], users, fill).astype(np.float32)
        found = rg2(*dirty, items, WHERE), *slopes(*dirty, items, WHERE)
        for a, b in zip(found, clean):
            np.testing.assert_array_equal(a, b)
    nothing = np.zeros(4, bool)
    assert not rg2(pos, users, items, nothing).any()
    assert not any(g.any() for g in slopes(pos, users, items, nothing))


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_scores_keep_the_right_finite_value_and_gradient(size):
    """Also at scores of -1, where all terms cancel."""
    users, items = np.array([[1.0, 0.0]], np.float32), np.array([[size, 3.0], [-size, 2.0]], np.float32)
    pos = np.array([size], np.float32)
    np.testing.assert_allclose(rg2(pos, users, items), by_hand(pos, users, items.astype(float)), rtol=1e-5)
    gradients = slopes(pos, users, items, np.ones(1, bool))
    assert gradients[0] == -1 and all(np.isfinite(g).all() for g in gradients)
    flat = rg2(np.zeros(1, np.float32), users, np.full((500, 2), -1, np.float32))
    assert abs(float(flat[0])) < 1e-6


@pytest.mark.deep
def test_near_zero_it_is_the_softmax_less_a_constant():
    """They agree to third order in the scores. The paper's bound is wrong away from 0, so that none is asserted."""
    with jax.enable_x64(True):
        for size, allowed in ((1e-2, 3e-4), (1e-3, 3e-6)):
            scores = size * USERS @ ITEMS.T
            softmax = losses.mine(scores[:, 2], scores, negatives="sum")
            expansion = rg2(scores[:, 2], size * USERS, ITEMS) + np.log(N_ITEMS) - 0.5
            assert 1e-9 < np.abs(softmax - expansion).max() < allowed


def test_sums_over_all_items_are_of_the_highest_precision():
    """Otherwise accelerators would multiply in bfloat16 or TF32."""
    batch = jr.train.Batch.of(jnp.array([0, 1]), jnp.array([1, 0]))
    variables = {"params": {"user": jnp.ones((4, DIM)), "item": jnp.ones((N_ITEMS, DIM))}}
    objective = partial(jr.train.gram_objective, model=jr.models.MF(4, N_ITEMS, dim=DIM))
    text = str(jax.make_jaxpr(jax.grad(objective))(variables, jax.random.key(0), batch))
    products = re.findall(r"= dot_general\[(.*?)preferred", text, re.DOTALL)
    assert len(products) > 5 and all("HIGHEST" in product for product in products)


def test_wrong_shapes_are_refused():
    gram, total = (ITEMS.T @ ITEMS).astype(np.float32), ITEMS.sum(0).astype(np.float32)
    pos, users = POS.astype(np.float32), USERS.astype(np.float32)
    for args, where in (
        ((pos, users, gram[:2], total), None),
        ((pos, users, gram, total[:2]), None),
        ((pos, users[:, None], gram, total), None),
        ((pos.astype(np.int32), users, gram, total), None),
        ((pos, users, gram, total), WHERE.astype(np.float32)),
        ((pos, users, gram, total), WHERE[:2]),
    ):
        with pytest.raises(AssertionError):
            losses.rg2(*args, n_items=N_ITEMS, where=where)


def test_a_catalogue_without_items_is_refused():
    with pytest.raises(ValueError, match=r"^n_items=0; give a finite number of 1 or more"):
        losses.rg2(jnp.array(1.0), jnp.ones(2), jnp.eye(2), jnp.ones(2), n_items=0)
