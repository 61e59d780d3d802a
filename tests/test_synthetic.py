import jax
import numpy as np
import pytest

from jaxrec.data import synthetic

KEY = jax.random.key(0)
LOW_RANK = dict(n_users=300, n_items=60, dim=4, pairs_per_user=12)
FACETS = dict(n_users=300, n_items=61, n_facets=3, pairs_per_user=8)
SPACES = dict(n_users=300, n_items=60, n_facets=3, dim=2, pairs_per_user=8)


@pytest.mark.parametrize("n", [4, 7, 10])
def test_checkerboard_hides_the_diagonal(n):
    train, test = synthetic.checkerboard(n)
    board = np.add.outer(np.arange(n), np.arange(n)) % 2 == 0
    np.testing.assert_array_equal(train.to_scipy().toarray(), board & ~np.eye(n, dtype=bool))
    np.testing.assert_array_equal(test.to_scipy().toarray(), np.eye(n))
    whole, diagonal = synthetic.checkerboard(n, hold_out=False)
    np.testing.assert_array_equal(whole.to_scipy().toarray(), board)
    assert diagonal.fingerprint() == test.fingerprint()


def test_checkerboard_is_learned_by_neighbours_and_not_by_popularity():
    train, _ = synthetic.checkerboard(20)
    seen = train.to_scipy().toarray()
    scores = np.where(seen > 0, -np.inf, seen @ seen.T @ seen)
    np.testing.assert_array_equal(scores.argmax(axis=1), np.arange(20))
    assert len(set(train.item_degrees.tolist())) == 1


def test_low_rank_pairs_follow_the_planted_scores():
    interactions, truth = synthetic.low_rank(KEY, **LOW_RANK)
    assert truth.user_factors.shape == (300, 4) and truth.item_factors.shape == (60, 4)
    np.testing.assert_array_equal(interactions.user_degrees, 12)
    scores = truth.user_factors @ truth.item_factors.T
    assert scores.std() == pytest.approx(3.0, rel=0.25)
    met = interactions.to_scipy().toarray() > 0
    auc = np.mean([(scores[u][met[u]][:, None] > scores[u][~met[u]]).mean() for u in range(300)])
    assert auc > 0.9
    flat, truth = synthetic.low_rank(KEY, **LOW_RANK, sharpness=0.0)
    assert not truth.user_factors.any()
    assert flat.item_degrees.min() > 30, "without preference every item is met about 60 times"


def test_low_rank_draws_by_the_softmax():
    """With one pair per user, the share of users of an item is the mean of its softmax probabilities."""
    sizes = dict(n_users=20_000, n_items=5, dim=2, pairs_per_user=1)
    interactions, truth = synthetic.low_rank(KEY, **sizes, sharpness=1.5)
    odds = np.exp(truth.user_factors @ truth.item_factors.T)
    expected = (odds / odds.sum(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(interactions.item_degrees / 20_000, expected, atol=0.015)


def test_facets_pairs_follow_the_planted_mixtures():
    interactions, truth = synthetic.facets(KEY, **FACETS)
    assert truth.item_facets.shape == (61,) and truth.user_mixtures.shape == (300, 3)
    assert sorted(np.bincount(truth.item_facets).tolist()) == [20, 20, 21]
    np.testing.assert_allclose(truth.user_mixtures.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(interactions.user_degrees, 8)
    share = interactions.to_scipy().toarray() @ np.eye(3)[truth.item_facets] / 8
    assert np.corrcoef(share.ravel(), truth.user_mixtures.ravel())[0, 1] > 0.9
    pure = truth.user_mixtures.max(axis=1) > 0.97
    assert pure.sum() > 20 and share[pure].max(axis=1).mean() > 0.85


def test_facets_noise_runs_from_none_to_all():
    clean, truth = synthetic.facets(KEY, **FACETS, noise=0.0, concentration=0.01)
    share = clean.to_scipy().toarray() @ np.eye(3)[truth.item_facets] / 8
    assert share.max(axis=1).mean() > 0.98
    even, truth = synthetic.facets(KEY, **FACETS, noise=1.0, concentration=0.01)
    share = even.to_scipy().toarray() @ np.eye(3)[truth.item_facets] / 8
    assert abs(np.corrcoef(share.ravel(), truth.user_mixtures.ravel())[0, 1]) < 0.1


def test_facets_noise_is_a_share_of_the_draws():
    """With one pair and one facet per user, only noise draws items of other facets."""
    sizes = dict(n_users=5000, n_items=6, n_facets=3, pairs_per_user=1)
    interactions, truth = synthetic.facets(KEY, **sizes, noise=0.3, concentration=0.01)
    pure = truth.user_mixtures.max(axis=1) > 0.999
    off = truth.item_facets[interactions.indices] != truth.user_mixtures.argmax(axis=1)
    assert pure.sum() > 4000 and off[pure].mean() == pytest.approx(0.3 * 4 / 6, abs=0.02)


def test_facet_spaces_pairs_follow_the_facet_that_counts():
    """A user of one facet has items that are close in it, and random in the other facets."""
    interactions, truth = synthetic.facet_spaces(KEY, **SPACES)
    assert [x.shape for x in truth] == [(300, 3), (300, 3, 2), (60, 3, 2)]
    np.testing.assert_allclose(truth.user_mixtures.sum(axis=1), 1, rtol=1e-5)
    for points in truth[1:]:
        np.testing.assert_allclose(np.linalg.norm(points, axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(interactions.user_degrees, 8)
    users, items = interactions.pairs()
    cosines = (truth.users[users] * truth.items[items]).sum(axis=-1)
    main = truth.user_mixtures.argmax(axis=1)[users, None] == np.arange(3)
    assert cosines[main].mean() > 0.75 and abs(cosines[~main].mean()) < 0.2


def test_facet_spaces_draw_by_the_softmax_of_mixed_cosines():
    sizes = dict(n_users=20_000, n_items=5, n_facets=2, dim=2, pairs_per_user=1)
    interactions, truth = synthetic.facet_spaces(KEY, **sizes, sharpness=3.0, concentration=1.0)
    odds = np.exp(3 * np.einsum("uk,ukd,ikd->ui", *truth))
    expected = odds / odds.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(interactions.item_degrees / 20_000, expected.mean(axis=0), atol=0.015)
    met = interactions.to_scipy().toarray() > 0
    assert expected[met].mean() == pytest.approx((expected**2).sum(axis=1).mean(), abs=0.01)
    flat, _ = synthetic.facet_spaces(KEY, **sizes, sharpness=0.0)
    np.testing.assert_allclose(flat.item_degrees / 20_000, 0.2, atol=0.015)


MAKERS = [(synthetic.low_rank, LOW_RANK), (synthetic.facets, FACETS), (synthetic.facet_spaces, SPACES)]


@pytest.mark.parametrize(("make", "sizes"), MAKERS)
def test_one_key_gives_one_set_for_any_block(make, sizes, monkeypatch):
    interactions, truth = make(KEY, **sizes)
    again, same = make(jax.random.key(0), **sizes)
    assert interactions.fingerprint() == again.fingerprint()
    jax.tree.map(np.testing.assert_array_equal, truth, same)
    assert make(jax.random.key(1), **sizes)[0].fingerprint() != interactions.fingerprint()
    monkeypatch.setattr(synthetic, "_CELLS", 7 * sizes["n_items"])
    assert make(KEY, **sizes)[0].fingerprint() == interactions.fingerprint()


@pytest.mark.parametrize("make", [np.int32, np.uint16, jax.numpy.int32])
def test_sizes_of_narrow_dtypes_do_not_overflow(make):
    """The keys of pairs, user · N + item, exceed int32: 60,000² is larger."""
    found = synthetic.power_law(KEY, n_users=make(60_000), n_items=make(60_000), n_pairs=make(50))
    expected = synthetic.power_law(KEY, n_users=60_000, n_items=60_000, n_pairs=50)
    assert found.n_pairs == 50 and found.fingerprint() == expected.fingerprint()


def test_power_law_has_the_pairs_asked_for_and_degrees_that_fall():
    sizes = dict(n_users=400, n_items=300, n_pairs=6000)
    interactions = synthetic.power_law(KEY, **sizes)
    assert interactions.n_pairs == 6000 and (interactions.n_users, interactions.n_items) == (400, 300)
    assert synthetic.power_law(KEY, **sizes).fingerprint() == interactions.fingerprint()
    even = synthetic.power_law(KEY, **sizes, exponents=(0, 0))
    tops = [np.sort(some.item_degrees)[-30:].sum() for some in (interactions, even)]
    assert tops[0] > 2 * tops[1]
    order = np.argsort(-interactions.item_degrees)
    assert abs(np.corrcoef(order, np.arange(300))[0, 1]) < 0.2  # degrees do not depend on ids


def test_a_power_law_in_a_folder_is_drawn_in_parts(tmp_path, monkeypatch):
    sizes = dict(n_users=400, n_items=300, n_pairs=6000, exponents=(0.3, 0.5))
    expected = synthetic.power_law(KEY, **sizes)
    one = synthetic.power_law(KEY, **sizes, folder=tmp_path / "one")
    assert one.fingerprint() == expected.fingerprint()
    monkeypatch.setattr(synthetic, "_PART", 1500)
    parts = synthetic.power_law(KEY, **sizes, folder=tmp_path / "parts")
    assert parts.n_pairs == 6000 and (parts.n_users, parts.n_items) == (400, 300)
    assert isinstance(parts.indices.base, np.memmap)
    assert synthetic.power_law(KEY, **sizes, folder=tmp_path / "again").fingerprint() == parts.fingerprint()
    for mine, its in ((parts.user_degrees, expected.user_degrees), (parts.item_degrees, expected.item_degrees)):
        assert np.corrcoef(mine, its)[0, 1] > 0.5  # the same ids have the high ranks
        np.testing.assert_allclose(np.sort(mine)[-40:].sum(), np.sort(its)[-40:].sum(), rtol=0.1)


def test_a_power_law_in_a_folder_refuses_users_with_too_many_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "_PART", 100)
    sizes = dict(n_users=50, n_items=20, n_pairs=250, exponents=(1.9, 0.0))
    with pytest.raises(ValueError, match="give 146 pairs to the users of the ranks 0 to 0, more than"):
        synthetic.power_law(KEY, **sizes, folder=tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "sizes", "message"),
    [
        (synthetic.power_law, dict(n_users=4, n_items=4, n_pairs=0), "n_pairs=0; give an integer"),
        (synthetic.power_law, dict(n_users=4, n_items=4, n_pairs=5), "n_pairs=5 is more than a quarter of 4 x 4"),
        (synthetic.power_law, dict(n_users=4, n_items=4, n_pairs=2, exponents=(0, 2)), "two numbers of 0 or more"),
        (synthetic.low_rank, LOW_RANK | dict(dim=0), "dim=0; give an integer"),
        (synthetic.low_rank, LOW_RANK | dict(pairs_per_user=61), "pairs_per_user=61 is more than n_items=60"),
        (synthetic.low_rank, LOW_RANK | dict(sharpness=-1.0), "sharpness=-1.0; give a finite number of 0 or more"),
        (synthetic.facets, FACETS | dict(n_users=0), "n_users=0; give an integer"),
        (synthetic.facets, FACETS | dict(n_facets=62), "n_facets=62; give an integer from 1 to 61"),
        (synthetic.facets, FACETS | dict(noise=1.5), "noise=1.5; it is a share"),
        (synthetic.facets, FACETS | dict(concentration=0.0), "concentration=0.0; give a finite number above 0"),
        (synthetic.low_rank, LOW_RANK | dict(n_users=4.0), "n_users=4.0; give an integer"),
        (synthetic.low_rank, LOW_RANK | dict(sharpness=np.nan), "sharpness=nan; give a finite number"),
        (synthetic.power_law, dict(n_users=4, n_items=2**31, n_pairs=2), "n_items=2147483648; give an integer from 1"),
        (synthetic.power_law, dict(n_users=4, n_items=4, n_pairs=2, exponents=(0, np.nan)), "exponents=nan"),
        (synthetic.facets, FACETS | dict(noise=np.nan), "noise=nan; give a finite number"),
        (synthetic.facet_spaces, SPACES | dict(dim=0), "dim=0; give an integer"),
        (synthetic.facet_spaces, SPACES | dict(concentration=0.0), "concentration=0.0; give a finite number above 0"),
        (synthetic.facet_spaces, SPACES | dict(sharpness=-1.0), "sharpness=-1.0; give a finite number of 0 or more"),
    ],
)
def test_bad_sizes_are_named(make, sizes, message):
    with pytest.raises(ValueError, match=message):
        make(KEY, **sizes)


def test_small_checkerboards_and_raw_keys_are_refused():
    with pytest.raises(ValueError, match="n=3; give an integer of 4 or more"):
        synthetic.checkerboard(3)
    with pytest.raises(ValueError, match="give one typed key"):
        synthetic.low_rank(0, **LOW_RANK)
