import datetime
import functools
import warnings

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrec as jr
from jaxrec.data import datasets, splits
from jaxrec.interactions import DataWarning, IdMap, Interactions

few = settings(max_examples=30, deadline=None)
KEY = jax.random.key(0)
at_random = functools.partial(splits.random_order, key=KEY)
by_time = functools.partial(splits.temporal_order, key=KEY)
SIZES = dict(n_users=6, n_items=30)
matrices = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 29)), min_size=1, max_size=120, unique=True).flatmap(
    lambda pairs: st.lists(st.integers(0, 9), min_size=len(pairs), max_size=len(pairs)).map(
        lambda times: Interactions.from_pairs(*zip(*pairs), weights=np.arange(len(pairs)), timestamps=times, **SIZES)
    )
)
whos = st.lists(st.booleans(), min_size=6, max_size=6).map(np.array)
fractions = st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20)).map(
    lambda parts: tuple(np.array(parts) / sum(parts))
)


def rows(interactions):
    """The contents of a part, as a set of tuples."""
    return set(zip(*(c.tolist() for c in (*interactions.pairs(), interactions.weights, interactions.timestamps))))


def check_parts(interactions, split, who=None):
    whole, parts = rows(interactions), [rows(part) for part in split]
    assert set.union(*parts) == whole and sum(map(len, parts)) == len(whole)
    assert all((part.n_users, part.n_items) == (interactions.n_users, interactions.n_items) for part in split)
    if who is not None:
        assert not np.asarray(split.valid.user_degrees)[~who].any()
        assert not np.asarray(split.test.user_degrees)[~who].any()


def user_of(n):
    return Interactions.from_pairs([0] * n, range(n), timestamps=range(n))


def sizes(split):
    return tuple(part.n_pairs for part in split)


# ---------------------------------------------------------------------- properties


@few
@given(interactions=matrices, who=whos, fractions=fractions)
def test_ratio_parts_and_shares(interactions, who, fractions):
    split = splits.ratio(interactions, fractions, order=at_random, who=who)
    check_parts(interactions, split, who)
    degrees, held = interactions.user_degrees, [part.user_degrees for part in split]
    assert (held[0][degrees > 0] > 0).all()
    for n, n_valid, n_test in zip(degrees[who], held[1][who], held[2][who]):
        n_expected = min(max(1, int(n * fractions[2] + 1e-9)), max(n - 1, 0)) if fractions[2] else 0
        assert n_test == n_expected
        if fractions[1] and n:
            assert n_valid == min(max(1, int(n * fractions[1] + 1e-9)), n - 1 - n_test)


@few
@given(interactions=matrices, who=whos)
def test_leave_one_out_parts_and_sizes(interactions, who):
    split = splits.leave_one_out(interactions, order=at_random, who=who)
    check_parts(interactions, split, who)
    expected = (np.asarray(interactions.user_degrees) >= 3) & who
    np.testing.assert_array_equal(split.valid.user_degrees, expected)
    np.testing.assert_array_equal(split.test.user_degrees, expected)


@few
@given(interactions=matrices, cut=st.sampled_from([splits.ratio, splits.leave_one_out]))
def test_time_order_is_kept_inside_each_user(interactions, cut):
    split = cut(interactions, order=by_time)
    for user in range(interactions.n_users):
        train, valid, test = ([t for u, _, _, t in rows(part) if u == user] for part in split)
        assert max(train, default=-1) <= min(valid + test, default=99)
        assert max(valid, default=-1) <= min(test, default=99)


@few
@given(interactions=matrices, who=whos, times=st.tuples(st.integers(1, 9), st.integers(1, 9)).map(sorted))
def test_global_time_cuts_all_users_at_once(interactions, who, times):
    stamps = interactions.timestamps
    valid_from, test_from = times
    if valid_from <= stamps.min() or test_from > stamps.max():
        with pytest.raises(ValueError, match=f"leave train or test empty; timestamps run from {stamps.min()} to"):
            splits.global_time(interactions, valid_from=valid_from, test_from=test_from, who=who)
        return
    split = splits.global_time(interactions, valid_from=valid_from, test_from=test_from, who=who)
    check_parts(interactions, split, who)
    assert all(t < valid_from for u, _, _, t in rows(split.train) if who[u])
    assert all(valid_from <= t < test_from for *_, t in rows(split.valid))
    assert all(t >= test_from for *_, t in rows(split.test))


@few
@given(interactions=matrices, least=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_k_core_is_the_largest_such_subset(interactions, least):
    left = rows(interactions)
    while True:
        by_user = [sum(u == user for u, *_ in left) for user in range(6)]
        by_item = [sum(i == item for _, i, *_ in left) for item in range(30)]
        kept = {row for row in left if by_user[row[0]] >= least[0] and by_item[row[1]] >= least[1]}
        if kept == left:
            break
        left = kept
    if not left:
        with pytest.raises(ValueError, match=f"users={least[0]}, items={least[1]} leave nothing"):
            splits.k_core(interactions, users=least[0], items=least[1])
    else:
        core = splits.k_core(interactions, users=least[0], items=least[1])
        assert rows(core) == left and (core.n_users, core.n_items) == (6, 30)


@few
@given(interactions=matrices, as_split=st.booleans())
def test_compact_keeps_pairs_under_their_labels(interactions, as_split):
    id_map = IdMap(np.array(list("abcdef")), 100 + np.arange(30))
    data = splits.ratio(interactions, order=at_random) if as_split else interactions
    dense, kept = splits.compact(data, id_map)
    assert isinstance(dense, splits.Split) == as_split
    for before, after in zip(data, dense) if as_split else [(data, dense)]:
        pairs = [
            list(zip(m.user_labels(p.pairs()[0]), m.item_labels(p.pairs()[1])))
            for p, m in ((before, id_map), (after, kept))
        ]
        assert pairs[0] == pairs[1]
        np.testing.assert_array_equal(before.weights, after.weights)
        assert after.indptr.dtype == after.indices.dtype == np.int32
        assert (after.n_users, after.n_items) == (len(kept.users), len(kept.items))
    whole = np.concatenate([part.pairs() for part in dense], axis=1) if as_split else np.stack(dense.pairs())
    assert np.unique(whole[0]).tolist() == list(range(len(kept.users)))
    assert np.unique(whole[1]).tolist() == list(range(len(kept.items)))


# ---------------------------------------------------------------------- rounding, orders


@pytest.mark.parametrize(
    ("n", "expected"), [(10, (6, 2, 2)), (7, (5, 1, 1)), (4, (3, 1, 0)), (3, (3, 0, 0)), (100, (60, 20, 20))]
)
def test_shares_of_in_turn_are_floors_of_the_remaining_pairs(n, expected):
    split = splits.in_turn(user_of(n), order=by_time)
    assert sizes(split) == expected
    assert [part.timestamps.tolist() for part in split] == [
        list(range(expected[0])),
        list(range(expected[0], sum(expected[:2]))),
        list(range(sum(expected[:2]), n)),
    ]


def test_in_turn_takes_other_shares_and_some_users():
    two = Interactions.from_pairs([0] * 8 + [1] * 8, [*range(8)] * 2, timestamps=range(16))
    split = splits.in_turn(two, test=0.5, valid=0.0, order=at_random, who=np.array([True, False]))
    assert [part.user_degrees.tolist() for part in split] == [[4, 8], [0, 0], [4, 0]]
    with pytest.raises(ValueError, match="test=1"):
        splits.in_turn(two, test=1, order=by_time)


@pytest.mark.parametrize(
    ("n", "fractions", "expected"),
    [
        (1, (0.8, 0.1, 0.1), (1, 0, 0)),
        (2, (0.8, 0.1, 0.1), (1, 0, 1)),
        (3, (0.8, 0.1, 0.1), (1, 1, 1)),
        (5, (0.8, 0.1, 0.1), (3, 1, 1)),
        (10, (0.8, 0.1, 0.1), (8, 1, 1)),
        (19, (0.8, 0.1, 0.1), (17, 1, 1)),
        (20, (0.8, 0.1, 0.1), (16, 2, 2)),
        (10, (0.6, 0.2, 0.2), (6, 2, 2)),
        (7, (0.6, 0.2, 0.2), (5, 1, 1)),
        (100, (0.42, 0.29, 0.29), (42, 29, 29)),
        (2, (0.8, 0.2, 0.0), (1, 1, 0)),
        (5, (0.8, 0.0, 0.2), (4, 0, 1)),
        (3, (0.01, 0.01, 0.98), (1, 0, 2)),
        (4, (1.0, 0.0, 0.0), (4, 0, 0)),
    ],
)
def test_ratio_rounding(n, fractions, expected):
    assert sizes(splits.ratio(user_of(n), fractions, order=at_random)) == expected
    split = splits.ratio(user_of(n), fractions, order=by_time)
    assert [part.timestamps.tolist() for part in split] == [
        list(range(expected[0])),
        list(range(expected[0], expected[0] + expected[1])),
        list(range(expected[0] + expected[1], n)),
    ]


def test_leave_one_out_takes_the_last_two():
    train, valid, test = splits.leave_one_out(user_of(4), order=by_time)
    assert (train.indices.tolist(), valid.indices.tolist(), test.indices.tolist()) == ([0, 1], [2], [3])
    assert sizes(splits.leave_one_out(user_of(2), order=by_time)) == (2, 0, 0)


@pytest.mark.parametrize("order", [splits.random_order, splits.temporal_order])
def test_one_key_gives_one_order_and_ties_fall_at_random(order):
    tied = Interactions.from_pairs(np.repeat(np.arange(400), 5), np.tile(np.arange(5), 400), timestamps=[7] * 2000)
    ranks = order(tied, key=KEY)
    np.testing.assert_array_equal(np.sort(ranks), np.arange(2000))
    np.testing.assert_array_equal(ranks, order(tied, key=jax.random.key(0)))
    assert (ranks != order(tied, key=jax.random.key(1))).any()
    last = splits.leave_one_out(tied, order=functools.partial(order, key=KEY)).test.indices
    counts = np.bincount(last, minlength=5)
    assert (np.abs(counts - 80) < 40).all(), "held-out items depend on their ids"


@pytest.mark.parametrize("key", [jax.random.PRNGKey(0), 0, np.zeros(2, np.uint32), jax.random.split(KEY, 2)])
def test_what_draws_wants_one_typed_key(key):
    train = Interactions.from_pairs([0, 1, 2], [2, 1, 0])
    model, table = jr.models.MF(3, 3, dim=2), jr.evaluate.scorer(lambda table, users: table[users])
    for draw in (
        lambda: splits.ratio(train, order=functools.partial(splits.random_order, key=key)),
        lambda: splits.sample_users(key, train, n=1),
        lambda: splits.held_out_users(key, train, n_valid=1, n_test=1, order=at_random),
        lambda: jr.train.init(key, model, optax.sgd(0.1)),
        lambda: jr.solvers.rg2.fit(train, dim=2, regularization=0.1, alpha=0.1, key=key),
        lambda: jr.solvers.ials.fit(train, dim=2, regularization=0.1, unobserved_weight=0.1, key=key),
        lambda: jr.solvers.rg2.decompose(train, dim=2, key=key),
        lambda: jr.solvers.gauss_newton.init_two_towers(key, np.ones((3, 2)), np.ones((3, 2))),
        lambda: jr.evaluate.top_k(table, np.ones((3, 3)), [0], k=1, key=key),
    ):
        with pytest.raises(ValueError, match=r"key is .*; give one typed key, such as jax\.random\.key\(0\)"):
            draw()


def test_time_quantiles():
    interactions = Interactions.from_pairs([0] * 8, range(8), timestamps=[5, 5, 1, 2, 9, 9, 9, 3])
    assert splits.time_quantiles(interactions, (0.0, 0.5, 0.75, 1.0)) == (1, 5, 9, 9)
    valid_from, test_from = splits.time_quantiles(user_of(100), (0.8, 0.9))
    assert sizes(splits.global_time(user_of(100), valid_from=valid_from, test_from=test_from)) == (80, 10, 10)
    with pytest.raises(ValueError, match=r"fractions=\(0.5, 80.0\); give fractions between 0 and 1"):
        splits.time_quantiles(interactions, (0.5, 80))


# ---------------------------------------------------------------------- masks, users, cold pairs


def test_given_takes_masks():
    interactions = user_of(4)
    split = splits.given(interactions, valid=[False, True, False, False], test=[False, False, False, True])
    assert [part.indices.tolist() for part in split] == [[0, 2], [1], [3]]
    with pytest.raises(ValueError, match="valid and test share 1 pairs"):
        splits.given(interactions, valid=[False, True, False, False], test=[False, True, False, True])
    with pytest.raises(ValueError, match=r"test is int64\[4\]; give one bool for each of 4 pairs"):
        splits.given(interactions, valid=np.zeros(4, bool), test=np.zeros(4, np.int64))


def test_sample_users_and_strong_generalisation():
    degrees = [0, 1, 2, 5, 8, 9]
    interactions = Interactions.from_pairs(
        np.repeat(np.arange(6), degrees), np.concatenate([np.arange(n) for n in degrees]), n_users=6
    )
    held = splits.sample_users(KEY, interactions, n=3, min_pairs=2)
    assert held.dtype == bool and held.shape == (6,) and held.sum() == 3 and not held[:2].any()
    np.testing.assert_array_equal(held, splits.sample_users(KEY, interactions, n=3, min_pairs=2))
    assert splits.sample_users(KEY, interactions, n=5).tolist() == [False] + [True] * 5

    train = splits.keep_users(interactions, ~held)
    history, valid, test = splits.ratio(splits.keep_users(interactions, held), (0.8, 0.0, 0.2), order=at_random)
    assert not train.user_degrees[held].any() and valid.n_pairs == 0
    assert (history.user_degrees[held] > 0).all() and (test.user_degrees[held] > 0).all()
    assert train.n_pairs + history.n_pairs + test.n_pairs == interactions.n_pairs
    with pytest.raises(ValueError, match="n=5, but only 4 users have 2 or more pairs"):
        splits.sample_users(KEY, interactions, n=5, min_pairs=2)


def test_held_out_users_are_known_by_a_history_of_warm_items():
    rng = np.random.default_rng(0)
    dense = rng.random((40, 20)) < 0.5
    dense[:3], dense[:, 19] = np.arange(20) < 3, np.arange(40) == 7  # three users of 3 items; item 19 has one user
    x = Interactions.from_pairs(*dense.nonzero(), n_users=40, n_items=20)
    for seed in range(4):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            parts, again = (
                splits.held_out_users(jax.random.key(seed), x, n_valid=6, n_test=10, order=at_random) for _ in range(2)
            )
        assert [part.fingerprint() for part in again] == [part.fingerprint() for part in parts]
        degrees = [np.asarray(part.user_degrees) for part in parts]
        users = [set(np.flatnonzero(d)) for d in degrees]
        assert [len(part) for part in users] == [24, 6, 6, 10, 10]
        assert users[1] == users[2] and users[3] == users[4] and len(users[0] | users[1] | users[3]) == 40
        assert {0, 1, 2} <= users[0]
        np.testing.assert_array_equal(degrees[0][list(users[0])], dense.sum(1)[list(users[0])])
        cold = 7 not in users[0]
        whole = dense & ~(cold & (np.arange(20) == 19))
        found = sum(part.to_scipy().toarray() for part in parts)
        np.testing.assert_array_equal(found, whole)
        for history, target in ((1, 2), (3, 4)):
            n = (degrees[history] + degrees[target])[list(users[history])]
            np.testing.assert_array_equal(degrees[target][list(users[history])], np.maximum(n // 5, 1))
        dropped = f"dropped 1 of {sum(d.sum() for d in degrees[1:]) + 1} pairs of held-out users"
        assert [str(w.message) for w in caught] == [f"{dropped}: their items have no training pair"] * (2 * cold)
    with pytest.raises(ValueError, match=r"share=1.0; give"):
        splits.held_out_users(KEY, x, n_valid=1, n_test=1, share=1.0, order=at_random)
    with pytest.raises(ValueError, match="n=38, but only 37 users have 5 or more pairs"):
        splits.held_out_users(KEY, x, n_valid=0, n_test=38, order=at_random)
    with pytest.raises(ValueError, match="n_valid=20, n_test=20 leave no user to train"):
        splits.held_out_users(KEY, x, n_valid=20, n_test=20, order=at_random, min_pairs=1)


def test_drop_cold_says_how_many():
    interactions = Interactions.from_pairs([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 0, 1])
    masks = dict(valid=np.array([0, 0, 0, 1, 0, 0], bool), test=np.array([0, 0, 0, 0, 1, 1], bool))
    with pytest.warns(DataWarning, match="dropped 1 of 1 valid pairs and 2 of 2 test pairs"):
        assert sizes(splits.drop_cold(splits.given(interactions, **masks))) == (3, 0, 0)
    masks = dict(valid=np.array([0, 0, 0, 0, 1, 0], bool), test=np.zeros(6, bool))
    warm = splits.given(interactions, **masks)
    assert sizes(splits.drop_cold(warm)) == (5, 1, 0)


# ---------------------------------------------------------------------- bad input


UNTIMED = Interactions.from_pairs([0, 0, 0], [0, 1, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: splits.ratio(UNTIMED, (0.8, 0.1), order=at_random), r"fractions=\(0.8, 0.1\); give three"),
        (lambda: splits.ratio(UNTIMED, (0.8, 0.1, 0.2), order=at_random), "fractions=.* with sum 1"),
        (
            lambda: splits.ratio(UNTIMED, (1.2, -0.1, -0.1), order=at_random),
            r"fractions\[1\]=-0.1; give",
        ),
        (lambda: splits.ratio(UNTIMED, (0.0, 0.5, 0.5), order=at_random), "fractions="),
        (
            lambda: splits.ratio(UNTIMED, order=by_time),
            "has no timestamps; give them to from_pairs, or split by random",
        ),
        (lambda: splits.ratio(UNTIMED, order=lambda x: x.indices[:2]), r"order gives shape \[2\].* each of 3 pairs"),
        (
            lambda: splits.leave_one_out(UNTIMED, order=lambda x: x.indices // 2),
            "order gives equal ranks within a user",
        ),
        (lambda: splits.leave_one_out(UNTIMED, order=at_random, who=[True, False]), r"who is bool\[2\]; .* of 1 users"),
        (lambda: splits.leave_one_out(UNTIMED, order=at_random, who=[0]), r"who is int64\[1\]; give one bool"),
        (lambda: splits.global_time(UNTIMED, valid_from=1, test_from=2), "has no timestamps"),
        (lambda: splits.global_time(user_of(9), valid_from=5, test_from=3), "valid_from=5 comes after test_from=3"),
        (lambda: splits.time_quantiles(UNTIMED, (0.5,)), "has no timestamps"),
        (lambda: splits.k_core(UNTIMED), "users=5, items=5 leave nothing of Interactions"),
        (
            lambda: splits.ratio(UNTIMED, (0.8, np.nan, 0.2), order=at_random),
            r"fractions\[1\]=nan; give",
        ),
        (lambda: splits.ratio(UNTIMED, (0.8, 0.1, 0.1), order=lambda x: x.indices * np.nan), "order gives NaN for 3"),
        (lambda: splits.in_turn(UNTIMED, valid=np.nan, order=at_random), "valid=nan; give a finite number"),
        (lambda: splits.in_turn(UNTIMED, test=-0.1, order=at_random), "test=-0.1; give a finite number of 0 or more"),
        (
            lambda: splits.global_time(user_of(9), valid_from=np.nan, test_from=5),
            "valid_from=nan; give",
        ),
        (lambda: splits.global_time(user_of(9), valid_from="NaT", test_from=5), "valid_from=NaT; give a time"),
        (lambda: splits.time_quantiles(user_of(9), (np.nan,)), r"fractions\[0\]=nan"),
        (lambda: splits.time_quantiles(user_of(2).select(np.zeros(2, bool)), (0.5,)), "has no pairs"),
        (lambda: splits.global_time(user_of(2).select(np.zeros(2, bool)), valid_from=1, test_from=2), "has no pairs"),
        (lambda: splits.sample_users(KEY, UNTIMED, n=1.0), "n=1.0; give an integer of 0 or more"),
        (lambda: splits.sample_users(KEY, UNTIMED, n=1, min_pairs=1.5), "min_pairs=1.5; give an integer"),
        (lambda: splits.k_core(UNTIMED, users=2.5), "users=2.5; give an integer"),
        (lambda: splits.compact(UNTIMED, IdMap(np.arange(2), np.arange(3))), "does not belong to"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, jax.numpy.float32])
def test_fractions_of_any_dtype_are_the_numbers_they_show(dtype):
    """The float32 nearest to 0.29 is a little smaller, and 100 times it is below 29."""
    fractions = [dtype(fraction) for fraction in (0.42, 0.29, 0.29)]
    assert sizes(splits.ratio(user_of(100), fractions, order=by_time)) == (42, 29, 29)
    assert sizes(splits.in_turn(user_of(100), test=dtype(0.29), valid=dtype(0), order=by_time)) == (71, 0, 29)


def test_sizes_are_numpy_integers_too():
    x, n = Interactions.from_pairs([0, 0, 1, 2, 2], [0, 1, 0, 0, 1]), np.arange(4)
    assert splits.sample_users(KEY, x, n=n[2], min_pairs=n[2]).tolist() == [True, False, True]
    assert splits.k_core(x, users=n[2], items=n[2]).n_pairs == 4


def test_dates_are_seconds_since_1970():
    x = Interactions.from_pairs([0] * 3, range(3), timestamps=[0, 86_400, 2 * 86_400])
    east = datetime.timezone(datetime.timedelta(hours=2))
    second, third = datetime.datetime(1970, 1, 2), datetime.datetime(1970, 1, 3, 2, tzinfo=east)
    for times in (("1970-01-02", np.datetime64("1970-01-03")), (second, third), (second.date(), third.date())):
        split = splits.global_time(x, valid_from=times[0], test_from=times[1])
        assert [part.indices.tolist() for part in split] == [[0], [1], [2]]


# ---------------------------------------------------------------------- a large set


@pytest.mark.deep
def test_gowalla_splits(data_root):
    with np.load(data_root / "gowalla" / "data.npz") as arrays:
        interactions = Interactions.from_pairs(*arrays["train"].T)
    split = splits.ratio(interactions, (0.8, 0.1, 0.1), order=at_random)
    degrees = interactions.user_degrees
    held = np.maximum(degrees // 10, 1)
    np.testing.assert_array_equal(split.valid.user_degrees, held)
    np.testing.assert_array_equal(split.test.user_degrees, held)
    np.testing.assert_array_equal(split.train.user_degrees, degrees - 2 * held)
    core = splits.k_core(interactions, users=20, items=20)
    assert min(d[d > 0].min() for d in (core.user_degrees, core.item_degrees)) == 20


@pytest.mark.parametrize(
    ("name", "loaded", "items", "pairs"),
    [
        ("citeulike-a-valid", 16_980, 16_945, (168_332, 18_300, 18_297)),
        ("gowalla-valid", 40_988, 40_981, (845_303, 91_032, 91_035)),
    ],
)
def test_items_without_a_training_pair_leave_the_catalogue(data_root, name, loaded, items, pairs):
    """A softmax over all ids of the file would include items that no user has in training."""
    found = datasets.load(name)
    assert found.train.n_items == loaded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        split = splits.drop_cold(splits.Split(found.train, found.valid, found.test))
    split, id_map = splits.compact(split, found.id_map)
    assert tuple(part.n_pairs for part in split) == pairs
    assert {part.n_items for part in split} == {items} == {len(id_map.items)}
    assert (split.train.item_degrees > 0).all() and split.train.n_users == found.train.n_users
    users, ids = split.test.pairs()
    assert found.test.contains(users, found.id_map.item_ids(id_map.items)[ids]).all()


def test_an_order_that_is_not_a_function_is_named():
    data = Interactions.from_pairs([0, 0, 1, 1], [0, 1, 0, 1])
    with pytest.raises(TypeError, match=r"order='temporal'; give a function, such as functools.partial\(splits"):
        splits.ratio(data, (0.5, 0.25, 0.25), order="temporal")
