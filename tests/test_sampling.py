"""Samplers: what they draw, how often, and that the same key gives the same draws."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.extend.random import threefry2x32_p

from jaxrec import sampling
from jaxrec._keys import drawn
from jaxrec.data import datasets
from jaxrec.interactions import Interactions

# User 0 has seen all 12 items, user 1 all but item 7, user 2 three, user 3 none.
SEEN = np.zeros((4, 12), bool)
SEEN[0], SEEN[1], SEEN[2, [0, 3, 4]] = True, np.arange(12) != 7, True
TRAIN = Interactions.from_pairs(*SEEN.nonzero(), n_users=4, n_items=12)


@pytest.fixture(scope="module")
def draw():
    """Each sampler with its hyperparameters bound, n = 5 of 12 items."""
    uniform = partial(sampling.uniform, n_items=12, n=5)
    return {
        "uniform": uniform,
        "popularity": partial(sampling.popularity, table=sampling.popularity_table(TRAIN), n=5),
        "reject_seen": partial(sampling.reject_seen, sample=uniform, seen=TRAIN),
    }


@pytest.mark.parametrize("name", ["uniform", "popularity", "reject_seen"])
def test_samplers_share_a_contract(draw, name):
    sample, users = jax.jit(draw[name]), np.array([[0, 1, 2], [3, 3, 0]])
    items = np.asarray(sample(jax.random.key(0), users))
    assert items.shape == (2, 3, 5) and items.dtype == np.int32
    assert items.min() >= 0 and items.max() < 12
    np.testing.assert_array_equal(sample(jax.random.key(0), users), items)
    assert (np.asarray(sample(jax.random.key(1), users)) != items).any()
    assert jax.eval_shape(sample, jax.random.key(0), jnp.array(3)).shape == (5,)


@pytest.mark.deep
def test_uniform_draws_every_item_equally_often():
    items = sampling.uniform(jax.random.key(0), jnp.zeros(1000, jnp.int32), n_items=7, n=20)
    assert scipy.stats.chisquare(np.bincount(np.asarray(items).ravel(), minlength=7)).pvalue > 0.001
    assert sampling.uniform(jax.random.key(0), jnp.zeros(3, jnp.int32), n_items=7).shape == (3, 1)


DEGREES = np.array([0, 1, 50, 3, 0, 7, 20, 0])


@pytest.fixture(scope="module")
def skewed():
    """Items met by `DEGREES` users."""
    items = np.repeat(np.arange(len(DEGREES)), DEGREES)
    users = np.concatenate([np.arange(d) for d in DEGREES])
    return Interactions.from_pairs(users, items, n_items=len(DEGREES))


@pytest.mark.parametrize("power", [1.0, 0.75, 0.0])
def test_popularity_draws_in_proportion_to_a_power_of_degrees(skewed, power):
    table = sampling.popularity_table(skewed, power=power)
    mass = np.where(DEGREES > 0, np.maximum(DEGREES, 1.0) ** power, 0)
    mass /= mass.sum()
    np.testing.assert_allclose(np.exp(table.log_q), mass, rtol=1e-6)
    assert np.exp(table.log_q.astype(float)).sum() == pytest.approx(1, abs=1e-6)
    assert (table.log_q[DEGREES == 0] == -np.inf).all()

    draws = jax.jit(partial(sampling.popularity, n=50))(jax.random.key(0), jnp.zeros(2000, jnp.int32), table=table)
    counts = np.bincount(np.asarray(draws).ravel(), minlength=len(DEGREES))
    assert (counts[DEGREES == 0] == 0).all()
    met = DEGREES > 0
    assert scipy.stats.chisquare(counts[met], mass[met] * counts.sum()).pvalue > 0.001


def test_the_alias_table_has_the_exact_distribution(skewed):
    keep, alias, log_q = sampling.popularity_table(skewed)
    mass = np.bincount(alias, weights=1 - keep.astype(float), minlength=len(keep)) + keep
    np.testing.assert_allclose(mass / len(keep), np.exp(log_q), atol=1e-6)
    assert keep.min() >= 0 and keep.max() <= 1


@pytest.mark.deep
def test_rejection_leaves_no_seen_item_after_enough_rounds():
    users = np.repeat([1, 2, 3], 40)
    sample = partial(sampling.uniform, n_items=12, n=5)
    # user 1 has 11 of 12 seen: 400 rounds leave one draw in 10^15
    draw = jax.jit(partial(sampling.reject_seen, sample=sample, seen=TRAIN, rounds=400))
    items = np.asarray(draw(jax.random.key(0), users))
    assert not SEEN[users[:, None], items].any()
    assert (items[:40] == 7).all()
    assert set(items[40:80].ravel()) == set(np.flatnonzero(~SEEN[2]))
    assert scipy.stats.chisquare(np.bincount(items[40:80].ravel(), minlength=12)[~SEEN[2]]).pvalue > 0.001
    assert set(items[80:].ravel()) == set(range(12))


@pytest.mark.deep
def test_rejection_redraws_only_what_is_seen_and_ends_after_its_rounds():
    users, sample = np.arange(4), partial(sampling.uniform, n_items=12, n=500)
    shares = []
    for rounds in (0, 3):
        draw = jax.jit(partial(sampling.reject_seen, sample=sample, seen=TRAIN, rounds=rounds))
        items = np.asarray(draw(jax.random.key(0), users))
        assert items.shape == (4, 500)
        shares.append(SEEN[users[:, None], items].mean(1))
    np.testing.assert_array_equal([share[0] for share in shares], 1)  # user 0 has seen all, and it ends
    np.testing.assert_array_equal([share[3] for share in shares], 0)
    for share, rounds in zip(shares, (0, 3)):  # of a user who has seen the share s, s ** (rounds + 1) are left
        for user, seen in ((1, 11 / 12), (2, 3 / 12)):
            left = seen ** (rounds + 1)
            assert abs(share[user] - left) < 4 * np.sqrt(left * (1 - left) / 500) + 1e-12


@pytest.mark.deep
def test_rejection_takes_the_seen_pairs_as_an_argument_of_jit_and_inside_vmap():
    sample = partial(sampling.uniform, n_items=12, n=5)

    @jax.jit
    def step(key, users, seen):
        return sampling.reject_seen(key, users, sample=sample, seen=seen, rounds=100)

    users, key = np.array([2, 2, 3]), jax.random.key(3)
    items = np.asarray(step(key, users, TRAIN))
    assert not SEEN[users[:, None], items].any()
    reverse = Interactions.from_pairs(*SEEN[::-1].nonzero(), n_users=4, n_items=12)
    users_of_reverse = np.array([1, 1, 0])
    items = np.asarray(step(key, users_of_reverse, reverse))
    assert not SEEN[::-1][users_of_reverse[:, None], items].any() and SEEN[users_of_reverse[:, None], items].any()
    keys = jax.random.split(key, 3)
    batched = jax.jit(jax.vmap(step, in_axes=(0, None, None)))(keys, users, TRAIN)
    np.testing.assert_array_equal(batched, [step(k, users, TRAIN) for k in keys])


def test_shared_draws_once_for_the_batch():
    draw = partial(sampling.shared, sample=partial(sampling.uniform, n_items=12, n=500))
    items = jax.jit(draw)(jax.random.key(0), jnp.arange(4))
    assert items.shape == (1, 500)
    assert scipy.stats.chisquare(np.bincount(np.asarray(items)[0], minlength=12)).pvalue > 0.001


def test_in_batch_excludes_every_copy_of_the_positive_and_seen_items():
    users, items = np.array([2, 3, 1, 2]), np.array([3, 5, 3, 4])
    where = np.asarray(jax.jit(sampling.in_batch)(users, items))
    np.testing.assert_array_equal(where, items[:, None] != items[None])
    where = np.asarray(sampling.in_batch(users, items, seen=TRAIN))
    np.testing.assert_array_equal(where, (items[:, None] != items[None]) & ~SEEN[users[:, None], items[None]])
    assert where.any() and not where[2].any()


@pytest.mark.parametrize("shared", [False, True])
def test_hardest_are_those_with_the_highest_scores(shared):
    rng = np.random.default_rng(0)
    scores, negatives = rng.normal(size=(5, 9)).astype(np.float32), rng.integers(0, 100, (1 if shared else 5, 9))
    kept = np.asarray(jax.jit(partial(sampling.hardest, n=3))(scores, negatives))
    expected = np.take_along_axis(np.broadcast_to(negatives, (5, 9)), np.argsort(-scores, axis=1)[:, :3], 1)
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("n", [0, 10])
def test_hardest_of_a_pool_too_small_says_so(n):
    with pytest.raises(ValueError, match=f"n={n} of a pool of 9"):
        sampling.hardest(jnp.zeros((2, 9)), jnp.zeros((2, 9), jnp.int32), n=n)


@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (2, 3, 5)])
@pytest.mark.parametrize(
    "random", [jax.random.uniform, jax.random.normal, partial(jax.random.randint, minval=3, maxval=90)]
)
def test_matrices_are_drawn_as_vectors_with_the_same_bits(random, shape):
    key = jax.random.key(7)
    np.testing.assert_array_equal(drawn(random, key, shape), random(key, shape))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 1000, 1024, 1025])
def test_permuted_is_a_permutation_and_each_place_finds_its_image_by_itself(n):
    images = np.asarray(sampling.permuted(jax.random.key(7), jnp.arange(n), n=n))
    assert images.dtype == np.int32 and sorted(images) == list(range(n))
    some = jnp.array([[0], [n - 1]])
    np.testing.assert_array_equal(sampling.permuted(jax.random.key(7), some, n=n), images[np.asarray(some)])


PERMUTATIONS = jax.jit(
    lambda keys, n: jax.vmap(lambda key: sampling.permuted(key, jnp.arange(n, dtype=jnp.int32), n=n))(keys),
    static_argnums=1,
)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_a_few_places_are_equally_frequent(n, x64):
    with jax.enable_x64(x64):
        images = np.asarray(PERMUTATIONS(jax.random.split(jax.random.key(n), 100 * math.factorial(n)), n))
    counts = np.unique(images @ (10 ** np.arange(n)), return_counts=True)[1]
    assert len(counts) == math.factorial(n)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("n", [9, 25])
def test_half_of_the_permutations_are_odd(n):
    """A network on n = odd² could give only even permutations."""
    images = np.asarray(PERMUTATIONS(jax.random.split(jax.random.key(0), 400), n))
    inversions = (images[:, :, None] > images[:, None, :])[:, *np.triu_indices(n, 1)].sum(1)
    assert abs((inversions % 2).mean() - 0.5) < 0.1  # 4 standard deviations


@pytest.mark.deep
def test_large_permutations_are_those_of_earlier_releases():
    """Training shuffles with them, so that they must not change."""
    images = sampling.permuted(jax.random.key(7), jnp.arange(6, dtype=jnp.int32), n=1_000_000)
    assert images.tolist() == [563472, 270473, 133500, 391539, 927479, 644242]


@pytest.mark.deep
def test_permuted_is_as_random_as_a_shuffle():
    """Each place is mapped to all places equally often. Neighbours are separated, and all orders of three occur."""
    keys = jax.random.split(jax.random.key(0), 3000)
    images = np.asarray(jax.vmap(lambda key: sampling.permuted(key, jnp.arange(20), n=20))(keys))
    counts = np.stack([np.bincount(column, minlength=20) for column in images.T])
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 1e-3  # 20 x 20 cells of 150
    gaps = np.bincount((images[:, 1] - images[:, 0]) % 20, minlength=20)[1:]
    assert scipy.stats.chisquare(gaps).pvalue > 1e-3
    orders = np.asarray(jax.vmap(lambda key: sampling.permuted(key, jnp.arange(3), n=3))(keys)) @ [9, 3, 1]
    assert scipy.stats.chisquare(np.unique(orders, return_counts=True)[1]).pvalue > 1e-3


def test_explorative_draws_users_by_a_power_of_their_items_and_one_item_uniformly():
    degrees = np.array([0, 1, 2, 8, 0, 5])
    items = np.concatenate([np.arange(d) for d in degrees])
    train = Interactions.from_pairs(np.repeat(np.arange(6), degrees), items, n_users=6)
    table = sampling.popularity_table(train.transpose(), power=0.8)
    draw = jax.jit(partial(sampling.explorative, shape=(500, 40)), static_argnames="shape")
    users, items = draw(jax.random.key(0), train=train, table=table)
    assert users.shape == items.shape == (500, 40) and users.dtype == items.dtype == jnp.int32
    counts = np.zeros((6, 8))
    np.add.at(counts, (np.asarray(users), np.asarray(items)), 1)
    expected = np.where(np.arange(8) < degrees[:, None], np.maximum(degrees, 1)[:, None] ** -0.2, 0)
    expected *= counts.sum() / expected.sum()
    assert (counts[expected == 0] == 0).all()
    assert scipy.stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 0.001


@pytest.mark.deep
@pytest.mark.parametrize(("power", "slope"), [(0.75, 0.75), (0.0, 0.0)])
def test_negatives_of_ciao_are_drawn_by_a_power_of_popularity(data_root, power, slope):
    """The code of MARS draws negatives in proportion to popularity ** .75, which its paper does not mention."""
    train = datasets.load("ciao").train
    table = sampling.popularity_table(train, power=power)

    @jax.jit
    def draw(key, seen, table):
        sample = partial(sampling.popularity, table=table, n=100)
        return sampling.reject_seen(key, jnp.arange(seen.n_users), sample=sample, seen=seen)

    items = np.asarray(draw(jax.random.key(0), train, table))
    assert items.size == 676_000
    counts, degrees = np.bincount(items.ravel(), minlength=train.n_items), train.item_degrees
    drawn = counts > 0
    assert degrees[drawn].min() > 0
    weights = np.sqrt(counts[drawn])
    assert np.polyfit(np.log(degrees[drawn]), np.log(counts[drawn]), 1, w=weights)[0] == pytest.approx(slope, abs=0.05)
    assert bool(degrees[items].mean() > 30) is (power > 0)  # the mean over all items is 12
    assert train.contains(np.arange(train.n_users)[:, None], items).mean() < 1e-4


UNIFORM_AT = jax.jit(sampling.uniform_at)


@pytest.mark.deep
def test_uniforms_at_places_are_threefry_of_the_pair():
    """They equal those of JAX's own cipher, and do not depend on the other pairs of the call."""
    key = jax.random.key(5)
    rows, columns = np.arange(-3, 40)[:, None], np.r_[np.arange(30), 2**31 - 1].astype(np.int32)[None]
    found = UNIFORM_AT(key, rows, columns)
    words = np.broadcast_arrays(rows.astype(np.uint32), columns.astype(np.uint32))
    left, right = jax.random.bits(key, (2,), jnp.uint32)
    expected = threefry2x32_p.bind(*(jnp.broadcast_to(part, words[0].shape) for part in (left, right)), *words)
    for one, word in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, ((np.asarray(word) >> 9) + 0.5) * 2.0**-23)
    alone = UNIFORM_AT(key, jnp.array(4), jnp.array([7, 2]))
    for one, whole in zip(alone, found, strict=True):
        np.testing.assert_array_equal(one, whole[7, jnp.array([7, 2])])
    assert not np.array_equal(UNIFORM_AT(jax.random.key(6), rows, columns)[0], found[0])
    other = UNIFORM_AT(jax.random.key(5, impl="rbg"), rows, columns)[0]
    assert other.shape == found[0].shape and other.dtype == jnp.result_type(float)


def test_uniforms_at_places_are_uniform_and_independent():
    first, second = (
        np.asarray(u, float) for u in UNIFORM_AT(jax.random.key(0), jnp.arange(300)[:, None], jnp.arange(100)[None])
    )
    for u in (first, second):
        assert u.min() > 0 and u.max() < 1
        assert scipy.stats.kstest(u.ravel(), "uniform").pvalue > 0.001
    for a, b in ((first, second), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1]), (first[1:], second[:-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.025  # 30 000 pairs, sd .006
    with pytest.raises(AssertionError):
        sampling.uniform_at(jax.random.key(0), jnp.array(0.0), jnp.array(1))


# ---------------------------------------------------------------------- wrong input

USERS, BY_ITEM = np.zeros(2, np.int32), sampling.popularity_table(TRAIN)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda k: sampling.uniform(k, USERS, n_items=0), "n_items=0; give an integer from 1 to 2147483647"),
        (lambda k: sampling.uniform(k, USERS, n_items=5.0), "n_items=5.0"),
        (lambda k: sampling.uniform(k, USERS, n_items=2**31), "n_items=2147483648"),
        (lambda k: sampling.uniform(k, USERS, n_items=5, n=0), "n=0; give an integer of 1 or more"),
        (lambda k: sampling.popularity(k, USERS, table=BY_ITEM, n=-1), "n=-1"),
        (lambda k: sampling.popularity_table(TRAIN, power=np.nan), "power=nan"),
        (lambda k: sampling.popularity_table(TRAIN, power=np.inf), "power=inf"),
        (lambda k: sampling.popularity_table(TRAIN, power=1e4), "power=10000.0 of up to"),
        (lambda k: sampling.popularity_table(TRAIN.select(np.zeros(TRAIN.n_pairs, bool))), "train has no pairs"),
        (lambda k: sampling.reject_seen(k, USERS, sample=None, seen=TRAIN, rounds=-1), "rounds=-1"),
        (lambda k: sampling.reject_seen(k, USERS, sample=None, seen=TRAIN, rounds=1.5), "rounds=1.5"),
        (
            lambda k: sampling.explorative(k, (2,), train=TRAIN, table=sampling.popularity_table(TRAIN)),
            "table has 12",
        ),
        (lambda k: sampling.permuted(k, USERS, n=0), "n=0; give an integer from 1"),
        (lambda k: sampling.permuted(k, USERS, n=2**31), "n=2147483648"),
        (lambda k: sampling.hardest(jnp.ones((2, 3)), jnp.ones((2, 3), jnp.int32), n=1.0), "n=1.0 of a pool of 3"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))


def test_in_batch_refuses_users_and_items_of_different_lengths():
    with pytest.raises(AssertionError):
        sampling.in_batch(np.zeros(1, np.int32), np.zeros(3, np.int32))


@pytest.mark.deep
def test_a_traced_number_of_items_is_drawn_from():
    draw = jax.jit(lambda key, n_items: sampling.uniform(key, jnp.zeros(9, jnp.int32), n_items=n_items, n=5))
    np.testing.assert_array_equal(
        draw(jax.random.key(0), 4), sampling.uniform(jax.random.key(0), np.zeros(9), n_items=np.int64(4), n=np.int8(5))
    )


@pytest.mark.deep
def test_shared_draws_are_rejected_for_each_user():
    train = Interactions.from_pairs([0, 0, 1], [0, 1, 2], n_users=2, n_items=4)
    draw = partial(sampling.shared, sample=partial(sampling.uniform, n_items=4, n=6))
    found = sampling.reject_seen(jax.random.key(0), jnp.arange(2), sample=draw, seen=train, rounds=30)
    assert found.shape == (2, 6) and not train.contains(jnp.arange(2)[:, None], found).any()
