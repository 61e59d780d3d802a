"""Ranking against brute force in NumPy: ties, masks, short lists, blocks, errors and warnings."""

import functools
import math
import re
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.metrics import ON_HITS, brute_force, pairwise_auc, second_opinion

from jaxrec import evaluate, models, papers
from jaxrec._log import Log
from jaxrec.data import datasets
from jaxrec.data.synthetic import checkerboard
from jaxrec.evaluate import _kernel
from jaxrec.interactions import DataWarning, Interactions

M, N = 30, 40
KS = (1, 5, 33)  # some users have fewer than 33 unseen items

TABLE = evaluate.scorer(lambda table, users: table[users])


def _interactions(dense):
    return Interactions.from_pairs(*dense.nonzero(), n_users=dense.shape[0], n_items=dense.shape[1])


def _random_world(seed=0):
    """Integer scores with many ties, train and test. The last three users have no test pair; user 0 has seen most."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, (M, N)).astype(np.float32)
    train = rng.random((M, N)) < rng.uniform(0.05, 0.5, (M, 1))
    train[:, 3] = True
    train[0] = np.arange(N) >= 6
    test = (rng.random((M, N)) < 0.15) & ~train
    test[0, 2], test[-3:] = True, False
    test[1:-3, 5], train[1:-3, 5] = True, False
    return scores, train, test


SCORES, TRAIN, TEST = _random_world()
WORLD = _interactions(TRAIN), _interactions(TEST)
USERS = np.flatnonzero(TEST.any(1))


def _full(model=TABLE, variables=SCORES, train=WORLD[0], test=WORLD[1], **how):
    return evaluate.full_ranking(model, variables, train, test, **{"ks": (5,)} | how)


def _hits(scores, train, test):
    """Hits of one user's whole list; tied scores rank the test items last."""
    unseen = np.flatnonzero(~train)
    return test[unseen[np.lexsort((test[unseen], -scores[unseen].astype(float)))]]


@pytest.fixture(scope="module")
def report():
    return evaluate.full_ranking(TABLE, SCORES, *WORLD, ks=(*KS[::-1], 5), auc=True)  # in any order


@pytest.mark.deep
def test_full_ranking_equals_the_brute_force(report):
    np.testing.assert_array_equal(report.users, USERS)
    assert len(USERS) == M - 3
    for name in ON_HITS:
        for k in KS:
            expected = [brute_force(name, _hits(SCORES[u], TRAIN[u], TEST[u]), int(TEST[u].sum()), k) for u in USERS]
            assert report.per_user[f"{name}@{k}"].dtype == np.float64
            np.testing.assert_allclose(report.per_user[f"{name}@{k}"], expected, rtol=1e-6, err_msg=f"{name}@{k}")
            assert report.means[f"{name}@{k}"] == pytest.approx(np.mean(expected), rel=1e-6)
    areas = [pairwise_auc(SCORES[u], TEST[u], ~TRAIN[u]) for u in USERS]
    np.testing.assert_allclose(report.per_user["auc"], areas, rtol=1e-6)


@pytest.mark.deep
def test_separate_ranking_equals_the_brute_force():
    report = papers.lambda_opt.separate_ranking(TABLE, SCORES, *WORLD, ks=(5, 1), block=8)
    np.testing.assert_array_equal(report.users, USERS)
    for place, u in enumerate(USERS):
        others = SCORES[u, ~TRAIN[u] & ~TEST[u]]
        ranks = np.array([1 + (others > s).sum() for s in SCORES[u, TEST[u]]])
        lower = np.mean([(others < s).mean() for s in SCORES[u, TEST[u]]]) if len(others) else 0
        assert report.per_user["auc"][place] == pytest.approx(lower, rel=1e-5)
        for k in (1, 5):
            gains = np.where(ranks <= k, 1 / np.log2(1 + ranks), 0)
            assert report.per_user[f"recall@{k}"][place] == pytest.approx((ranks <= k).mean(), rel=1e-6)
            assert report.per_user[f"ndcg@{k}"][place] == pytest.approx(gains.mean(), rel=1e-5)
    with pytest.raises(ValueError, match="ks=0; give an integer of 1 or more"):
        papers.lambda_opt.separate_ranking(TABLE, SCORES, *WORLD, ks=(5, 0))


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore:the evaluated users have 11 test pairs but only 2 training pairs")
def test_users_have_equal_weight_for_any_number_of_test_items():
    """User 0 finds one of two items, user 1 none of nine. The mean is 1/4, not 1/11."""
    held = [[0, 1], range(2, 11)]
    test = Interactions.from_pairs([0] * 2 + [1] * 9, [i for items in held for i in items], n_users=2, n_items=30)
    train = Interactions.from_pairs([0, 1], [29, 29], n_users=2, n_items=30)
    scores = np.tile(np.linspace(1, 2, 30, dtype=np.float32), (2, 1))
    scores[:, :11], scores[0, 0] = 0, 3
    report = papers.lambda_opt.separate_ranking(TABLE, scores, train, test, ks=(10,))
    assert report.per_user["recall@10"].tolist() == [0.5, 0] and report.means["recall@10"] == 0.25


def test_lists_have_the_best_unseen_items_and_end_with_padding(report):
    unseen = (~TRAIN[USERS]).sum(1)
    assert unseen.min() < KS[-1] < unseen.max()
    for u, items, n in zip(USERS, report.items, unseen):
        length = min(n, KS[-1])
        assert (items[length:] == -1).all() and len(set(items[:length])) == length
        assert not TRAIN[u, items[:length]].any()
        np.testing.assert_array_equal(SCORES[u, items[:length]], np.sort(SCORES[u, ~TRAIN[u]])[::-1][:length])


def test_metrics_of_all_lists_equal_numpy(report):
    degrees = TRAIN.sum(0)
    for k in KS:
        lists = [items[items >= 0] for items in report.items[:, :k]]
        np.testing.assert_allclose(report.per_user[f"popularity@{k}"], [degrees[x].mean() for x in lists], rtol=1e-6)
        counts = np.bincount(np.concatenate(lists), minlength=N)
        gini = np.abs(np.subtract.outer(counts, counts)).sum() / (2 * N * counts.sum())
        assert report.catalogue == {
            **report.catalogue,
            f"coverage@{k}": pytest.approx((counts > 0).mean()),
            f"gini@{k}": pytest.approx(gini, rel=1e-5),
        }
    assert set(report.catalogue) == {f"{name}@{k}" for name in ("coverage", "gini") for k in KS}


def test_the_protocol_is_told_in_words(report):
    assert (
        report.protocol
        == f"full ranking of 40 items, {TRAIN.sum()} training pairs masked, tied scores rank the test item last"
    )
    assert _full(key=jax.random.key(0)).protocol.endswith("tied scores rank at random")


def test_full_ranking_equals_ranx(report):
    lists = [items[items >= 0].tolist() for items in report.items]
    relevant = [np.flatnonzero(TEST[u]).tolist() for u in USERS]
    theirs = second_opinion(lists, relevant, 5)
    for name in ON_HITS:
        np.testing.assert_allclose(report.per_user[f"{name}@5"], theirs[name], atol=1e-6, err_msg=name)


def test_a_subset_of_users_has_the_metrics_of_the_full_run(report):
    chosen = np.array([29, 7, 0, 12, 28])  # 28 and 29 have no test pair
    part = evaluate.full_ranking(TABLE, SCORES, *WORLD, ks=KS, users=chosen, auc=True)
    assert part.users.tolist() == [7, 0, 12]
    at = [USERS.tolist().index(u) for u in part.users]
    assert set(part.per_user) == set(report.per_user)
    for name, values in part.per_user.items():
        np.testing.assert_array_equal(values, report.per_user[name][at])
    np.testing.assert_array_equal(part.items, report.items[at])


def test_top_k_gives_scores_with_the_items_and_masks_only_what_it_is_given():
    users = np.array([5, 0, 5])
    scores, items = evaluate.top_k(TABLE, SCORES, users, k=N, seen=WORLD[0])
    n_left = (~TRAIN[users]).sum(1)
    for u, s, i, n in zip(users, scores, items, n_left):
        np.testing.assert_array_equal(s[:n], SCORES[u, i[:n]])
        assert (s[n:] == -np.inf).all() and (i[n:] == -1).all() and (i[:n] >= 0).all()
    np.testing.assert_array_equal(items[0], items[2])
    scores, items = evaluate.top_k(TABLE, SCORES, users, k=N)
    np.testing.assert_array_equal(np.sort(items, axis=1), [np.arange(N)] * 3)
    assert scores.dtype == np.float32 and items.dtype == np.int32


@pytest.mark.parametrize("table", [False, True])
def test_lists_of_candidates_have_only_these_in_the_order_of_whole_lists(table):
    rng = np.random.default_rng(1)
    chosen, users = rng.permutation(N)[:17], np.arange(M)
    left, right = rng.normal(size=(M, 4)).astype(np.float32), rng.normal(size=(N, 4)).astype(np.float32)
    model = models.MF(M, N, dim=4) if table else TABLE
    variables = {"params": {"user": left, "item": right}} if table else left @ right.T
    whole = evaluate.top_k(model, variables, users, k=N, seen=WORLD[0])
    scores, items = evaluate.top_k(model, variables, users, k=20, seen=WORLD[0], items=chosen)
    for row in range(M):
        kept = np.isin(whole[1][row], chosen)
        n = kept.sum()
        np.testing.assert_array_equal(items[row, :n], whole[1][row][kept])
        np.testing.assert_array_equal(scores[row, :n], whole[0][row][kept])
        assert n <= 17 and (items[row, n:] == -1).all() and (scores[row, n:] == -np.inf).all()
    assert items.max() >= 0


# ---------------------------------------------------------------------- ties


def test_a_constant_scorer_finds_nothing_without_a_key():
    constant = evaluate.full_ranking(TABLE, np.zeros((M, N), np.float32), *WORLD, ks=(5,))
    others = (~TRAIN & ~TEST)[USERS].sum(1)
    assert (others[1:] >= 5).all()
    assert (constant.per_user["recall@5"][1:] == 0).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 3e-38, -1e30, 1234567.0])
def test_tied_scores_rank_the_test_item_last_and_close_scores_do_not(value):
    value = np.float32(value)
    train, test = np.zeros((1, 4), bool), np.zeros((1, 4), bool)
    train[0, 0] = test[0, 1] = True
    world = _interactions(train), _interactions(test)
    tied = np.full((1, 4), value)
    assert evaluate.full_ranking(TABLE, tied, *world, ks=(3,)).means["mrr@3"] == pytest.approx(1 / 3)
    ahead = tied.copy()
    ahead[0, 1] += max(abs(value) * np.float32(1e-6), np.float32(1e-37))
    assert ahead[0, 1] > value
    assert evaluate.full_ranking(TABLE, ahead, *world, ks=(3,)).means["mrr@3"] == 1


@pytest.mark.deep
def test_with_a_key_ties_are_broken_as_chance_would():
    """The expected recall has a closed form: t tied items share the places that better items leave free."""
    k, expected = 5, []
    for u in USERS:
        unseen = SCORES[u, ~TRAIN[u]]
        ahead, tied = (np.array([op(unseen, s).sum() for s in SCORES[u, TEST[u]]]) for op in (np.greater, np.equal))
        expected.append(np.clip((k - ahead) / tied, 0, 1).mean())
    draws = np.stack([_full(key=key).per_user["recall@5"] for key in jax.random.split(jax.random.key(0), 40)])
    of_all = draws.mean(1)
    assert abs(of_all.mean() - np.mean(expected)) < 4 * of_all.std() / math.sqrt(len(draws))
    assert of_all.std() > 0 and 4 * of_all.std() / math.sqrt(len(draws)) < 0.05
    deviation = np.abs(draws.mean(0) - expected)
    assert (deviation < 4 * draws.std(0) / math.sqrt(len(draws)) + 1e-6).mean() > 0.9
    np.testing.assert_array_equal(_full(key=jax.random.key(7)).items, _full(key=jax.random.key(7)).items)


@pytest.mark.deep
@pytest.mark.parametrize("n_levels", [1, 2])
@pytest.mark.parametrize("k", [1, 25])
def test_ties_favour_neither_low_nor_high_ids(n_levels, k):
    """Scores have one or two levels, like popularity: the upper half of the ids has the higher level."""
    row = np.arange(N) * n_levels // N
    table = np.tile(row.astype(np.float32), (M, 1))
    keys = jax.random.split(jax.random.key(1), 200)
    lists = np.concatenate([evaluate.top_k(TABLE, table, np.arange(2), k=k, key=key)[1][:1] for key in keys])
    best = N - N // n_levels  # the first id of the top level
    for ids, low, high in ((lists[lists >= best], best, N), (lists[lists < best], 0, best)):
        if ids.size:
            assert set(ids) == set(range(low, high)) or k == 1
            error = np.sqrt((high - low) ** 2 / 12 / ids.size)
            assert abs(ids.mean() - (low + high - 1) / 2) < 4 * error
    assert (row[lists[:, 0]] == n_levels - 1).all()


def test_without_a_key_ties_do_not_follow_ids_either():
    items = evaluate.top_k(TABLE, np.zeros((M, N), np.float32), [0], k=N)[1][0]
    assert abs(np.corrcoef(items, np.arange(N))[0, 1]) < 0.5
    np.testing.assert_array_equal(items, evaluate.top_k(TABLE, np.zeros((M, N), np.float32), [9], k=N)[1][0])


# ---------------------------------------------------------------------- blocks

MODELS = {
    score: models.MF(M, N, dim=16, score=getattr(models, score), scale=1.0)
    for score in ("dot", "cosine", "negative_squared_distance")
}


def _variables(model, seed=0):
    return model.init(jax.random.key(seed), jnp.array([0]), jnp.array([0]))


def _assert_same(a, b):
    np.testing.assert_array_equal(a.items, b.items)
    assert a.means == b.means and a.stderr == b.stderr
    for metric, values in a.per_user.items():
        np.testing.assert_array_equal(values, b.per_user[metric], err_msg=metric)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["table", *MODELS])
def test_results_do_not_depend_on_the_block_nor_on_rows_or_vectors(name):
    """They are equal bit for bit. A model that has `vectors` gets the same ranking from its rows."""
    model = MODELS.get(name, TABLE)
    variables = SCORES if name == "table" else _variables(model)
    whole = _full(model, variables)
    for block in (1, 8, 24):
        _assert_same(_full(model, variables, block=block), whole)
    if name != "table":
        rows = model.apply(variables, np.arange(M), method="rows")
        _assert_same(_full(TABLE, rows), whole)


@pytest.mark.deep
def test_scores_of_top_k_do_not_depend_on_the_block_and_are_those_of_the_model():
    model = MODELS["dot"]
    variables = _variables(model)
    scores, items = evaluate.top_k(model, variables, np.arange(M), k=10)
    pairs = model.apply(variables, np.arange(M)[:, None], items)
    np.testing.assert_allclose(scores, pairs, rtol=1e-5, atol=1e-6)
    for block in (8, 24):
        again = evaluate.top_k(model, variables, np.arange(M), k=10, block=block)
        np.testing.assert_array_equal(again[0], scores)
        np.testing.assert_array_equal(again[1], items)


@pytest.mark.deep
def test_a_second_call_with_other_variables_compiles_nothing():
    model, events = MODELS["dot"], []
    first, second = _variables(model, 1), _variables(model, 2)

    def count(event, duration, **_):
        if "backend_compile" in event:
            events.append(event)

    _full(model, first)
    size = _kernel._ranked._cache_size()
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        _full(model, second)
        n_second = len(events)
        assert _kernel._ranked._cache_size() == size
        _full(model, second, ks=(9,))
        assert _kernel._ranked._cache_size() == size + 1 and len(events) > n_second  # the counters count
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert n_second == 0


# ---------------------------------------------------------------------- wide catalogues


@pytest.mark.parametrize("k", [1, 5, 124, 125, 300])
def test_two_stage_top_k_equals_one_stage(k):
    """There are 125 groups. Only for k below 125 does the first stage choose groups."""
    rng = np.random.default_rng(0)
    scores = rng.integers(-50, 50, (6, 8000)).astype(np.float32)  # ties within and across groups
    scores[1] = rng.normal(size=8000)
    scores[2] = np.where(np.arange(8000) % 125 == 3, scores[2], -np.inf)  # only one group has anything
    scores[3, 7:] = -np.inf
    scores[4] = -np.arange(8000)
    scores[5] = 1.0
    values, at = jax.jit(_kernel._grouped_top_k, static_argnums=1)(scores, k)
    np.testing.assert_array_equal(values, jax.lax.top_k(scores, k)[0])
    np.testing.assert_array_equal(np.take_along_axis(scores, np.asarray(at), axis=1), values)
    assert all(len(set(row)) == k for row in np.asarray(at).tolist())


@pytest.mark.parametrize("k", [5, 300])
def test_a_wide_catalogue_equals_sorting(k):
    """4001 is no multiple of the group size. User 2 has three items left."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 4001)).astype(np.float32) - 10  # all below the 0 that pads the rows
    train = rng.random((3, 4001)) < 0.4
    train[2, 3:], train[2, :3] = True, False
    values, items = evaluate.top_k(TABLE, scores, [0, 1, 2], k=k, seen=_interactions(train))
    masked = np.where(train, -np.inf, scores)
    order = np.argsort(-masked, axis=1)[:, :k]
    np.testing.assert_array_equal(values, np.take_along_axis(masked, order, axis=1))
    np.testing.assert_array_equal(items, np.where(np.isfinite(values), order, -1))


def test_the_checkerboard_is_solved_by_colour():
    train, test = checkerboard(12)
    colour = np.arange(12) % 2
    scores = (colour[:, None] == colour).astype(np.float32)
    solved = _full(TABLE, scores, train, test, ks=(1,), auc=True)
    assert all(solved.means[name] == 1 for name in ("recall@1", "ndcg@1", "mrr@1", "precision@1", "auc"))
    np.testing.assert_array_equal(solved.items[:, 0], np.arange(12))
    wrong = _full(TABLE, 1 - scores, train, test, ks=(1,), auc=True)
    assert wrong.means["recall@1"] == 0 and wrong.means["auc"] == 0


# ---------------------------------------------------------------------- scores that are not finite


@pytest.mark.parametrize("sign", [1, -1], ids=["positive NaN", "negative NaN"])
@pytest.mark.parametrize("n_items", [N, 4000], ids=["narrow", "wide"])
def test_a_single_nan_score_is_refused(sign, n_items):
    """NaN has both signs: x86 produces NaN with the sign bit set, which a total order puts last."""
    scores = np.tile(np.arange(n_items, dtype=np.float32), (10, 1))
    scores[4, 11] = np.copysign(np.nan, sign)
    with pytest.raises(ValueError, match=r"NaN, user 4 .*training did not diverge"):
        evaluate.top_k(TABLE, scores, np.arange(10), k=3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "table, message", [("user", "1 users .* user 4 the first"), ("item", "30 users .* user 0 the")]
)
def test_vectors_that_are_not_finite_are_refused(table, message, value):
    variables = jax.tree.map(np.array, _variables(MODELS["dot"]))
    variables["params"][table][4, 1] = value
    with pytest.raises(ValueError, match=message):
        evaluate.top_k(MODELS["dot"], variables, np.arange(M), k=10)


def test_an_infinite_score_of_a_test_item_is_the_best():
    scores = SCORES[:1].repeat(M, 0)
    scores[:, 5] = np.inf
    report = _full(TABLE, scores)
    assert (report.per_user["mrr@5"][1:] == 1).all()


def test_items_scored_minus_infinity_are_not_recommended():
    scores = SCORES.copy()
    scores[:, 4:] = -np.inf
    _, items = evaluate.top_k(TABLE, scores, [1], k=10)
    assert sorted(items[0][:4]) == [0, 1, 2, 3] and (items[0][4:] == -1).all()


# ---------------------------------------------------------------------- wrong input

NOTHING = WORLD[1].select(np.zeros(WORLD[1].n_pairs, bool))


@pytest.mark.parametrize(
    "how, message",
    [
        ({"ks": (5, 41)}, "k=41, but the catalogue has 40 items"),
        ({"ks": (0,)}, "ks=0; give an integer of 1 or more"),
        ({"ks": ()}, "k=0"),
        ({"users": [0, 30]}, r"users run from 0 to 30; ids are 0 \.\. 29"),
        ({"users": [-1, 2]}, "users run from -1 to 2"),
        ({"users": []}, "one or more"),
        ({"users": [0.0, 1.0]}, "users is float64"),
        ({"users": 3}, "users is int"),
        ({"users": np.ones(M, bool)}, "users is bool"),
        ({"users": [28, 29]}, "none of the users has a test pair"),
        ({"test": NOTHING}, "none of the users has a test pair"),
        ({"test": _interactions(TEST[:, :30])}, r"train is \(30, 40\) users by items, but test is \(30, 30\)"),
        ({"train": _interactions(TRAIN[:20])}, r"train is \(20, 40\) users by items, but test is \(30, 40\)"),
        ({"variables": SCORES[:, :39]}, "the model scores 39 items, but the interactions hold 40"),
        ({"variables": np.full_like(SCORES, np.nan)}, "27 users have scores of NaN, user 0 the first"),
    ],
)
def test_full_ranking_refuses(how, message):
    with pytest.raises(ValueError, match=message):
        _full(**how)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"k": 41}, "k=41, but the catalogue has 40 items"),
        ({"k": 0}, "k=0"),
        ({"seen": _interactions(TRAIN[:, :30])}, "the model scores 40 items, but the interactions hold 30"),
        ({"users": [30], "seen": WORLD[0]}, "users run from 30 to 30"),
        ({"users": [-1]}, "users run from -1"),
        ({"items": [0, 40]}, r"items run from 0 to 40; ids are 0 \.\. 39"),
        ({"items": np.ones(40, bool)}, r"items is bool\[40\]; give a column of one or more integer ids"),
        ({"items": np.zeros(0, int)}, "one or more"),
    ],
)
def test_top_k_refuses(how, message):
    how = {"users": [0], "k": 5} | how
    with pytest.raises(ValueError, match=message):
        evaluate.top_k(TABLE, SCORES, how.pop("users"), **how)


def test_test_pairs_in_train_are_counted_in_a_warning():
    both = TRAIN.copy()
    both[4, 5] = both[6, 5] = True
    with pytest.warns(DataWarning, match=f"2 of {TEST.sum()} test pairs are also training pairs") as record:
        report = _full(train=_interactions(both))
    assert len(record) == 1 and record[0].filename == __file__
    at = report.users.tolist().index(4)
    assert 5 not in report.items[at]
    expected = brute_force("recall", _hits(SCORES[4], both[4], TEST[4]), int(TEST[4].sum()), 5)
    assert report.per_user["recall@5"][at] == pytest.approx(expected)


def test_evaluated_users_without_training_pairs_are_counted_in_a_warning():
    cold = TRAIN.copy()
    cold[[3, 9, 29]] = False  # 29 is not evaluated
    with pytest.warns(DataWarning, match="2 of 27 evaluated users have no training pair") as record:
        _full(train=_interactions(cold))
    assert len(record) == 1


# ---------------------------------------------------------------------- models that know users by their items


class Shares:
    """A model that scores an item by the mean of a table [N, N] over the items of the history."""

    needs_histories = True

    def apply(self, variables, users, items=None, *, histories, method=None):
        indptr, n = jnp.asarray(histories.indptr), histories.n_users
        rows = jnp.searchsorted(indptr[1:], jnp.arange(len(histories.indices), dtype=jnp.int32), side="right")
        x = jnp.zeros((n, len(variables)), variables.dtype).at[rows, histories.indices].set(1, mode="drop")
        scores = x @ variables / jnp.maximum(x.sum(1, keepdims=True), 1)
        return scores if method == "rows" else jnp.take_along_axis(scores, items, axis=1)


_shown = np.random.default_rng(1).random((M, N)) < 0.5
_shown[:, 3], _shown[2] = True, False  # user 2 has no items
SEEN = _interactions(TRAIN & _shown)
SHARES = np.random.default_rng(2).normal(size=(N, N)).astype(np.float32)
EMPTY = "1 of (27|30) users, user 2 the first, have no items in the histories, so that all of them get the same"


@pytest.fixture(scope="module")
def by_hand():
    dense = SEEN.to_scipy().toarray().astype(float)
    return (dense @ SHARES / np.maximum(dense.sum(1, keepdims=True), 1)).astype(np.float32)


@pytest.mark.parametrize("block", [None, 8])
def test_each_user_is_ranked_by_the_histories_that_are_given(by_hand, block):
    """They are not ranked by the masked pairs."""
    full, separate = evaluate.full_ranking, papers.lambda_opt.separate_ranking
    for rank in (full, separate):
        with pytest.warns(DataWarning, match=EMPTY) as record:
            report = rank(Shares(), SHARES, *WORLD, ks=(5, 20), block=block, histories=SEEN)
        assert len(record) == 1 and (record[0].filename == __file__ or rank is separate)
        expected = rank(TABLE, by_hand, *WORLD, ks=(5, 20))
        for name, values in expected.per_user.items():
            np.testing.assert_allclose(report.per_user[name], values, rtol=1e-6)
    order = np.random.default_rng(3).permutation(M)
    with pytest.warns(DataWarning, match=EMPTY) as record:
        scores, items = evaluate.top_k(Shares(), SHARES, order, k=9, seen=WORLD[0], block=block, histories=SEEN)
    assert record[0].filename == __file__
    expected = evaluate.top_k(TABLE, by_hand, order, k=9, seen=WORLD[0])
    np.testing.assert_allclose(scores, expected[0], rtol=1e-5, atol=1e-6)
    with_items = order != 2  # for user 2 all items are tied
    np.testing.assert_array_equal(items[with_items], expected[1][with_items])


@pytest.mark.deep
def test_sampled_ranking_by_histories(by_hand):
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, M, 50), rng.integers(0, N, 50)
    negatives = np.stack([rng.permutation(np.delete(np.arange(N), i))[:9] for i in items])
    expected = evaluate.sampled_ranking(TABLE, by_hand, (users, items), negatives, ks=(1, 5))
    for block in (7, 1024):
        with pytest.warns(DataWarning, match=r"1 of \d+ users, user 2 the first, have no items") as record:
            report = evaluate.sampled_ranking(
                Shares(), SHARES, (users, items), negatives, ks=(1, 5), block=block, histories=SEEN
            )
        assert record[0].filename == __file__
        assert report.means == pytest.approx(expected.means)


def test_other_users_and_histories_take_the_same_program():
    rank = functools.partial(evaluate.top_k, Shares(), SHARES, k=3, block=8)
    rank(np.arange(3, 11), histories=SEEN)
    compiled = _kernel._ranked._cache_size()
    rank(np.arange(11, 19), histories=SEEN)
    rank([5, 4, 4, 4, 4, 4, 4, 4], histories=WORLD[0])
    assert _kernel._ranked._cache_size() == compiled


@pytest.mark.deep
@pytest.mark.parametrize(
    "model", [models.MultDAE(N, dim=3), models.EASE(N), models.VALID(N, dim=3, width=2)], ids=lambda m: type(m).__name__
)
def test_the_models_that_know_users_by_their_items_are_ranked_by_them(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), *TWO)
    variables = jax.tree.map(lambda x: np.random.default_rng(0).normal(size=x.shape).astype(np.float32), shapes)
    known = WORLD[0]
    rows = np.asarray(model.apply(variables, None, histories=known, method="rows"))
    report = _full(model, variables, histories=known, block=8)
    assert report.means == pytest.approx(_full(variables=rows).means)
    pairs, negatives = (np.arange(20), np.arange(20)), np.arange(20)[:, None] + np.arange(1, 9)
    sampled = evaluate.sampled_ranking(model, variables, pairs, negatives, histories=known, block=20)
    assert sampled.means == evaluate.sampled_ranking(TABLE, rows, pairs, negatives).means


def _ways(model, variables):
    """Every function of evaluation, with or without histories."""
    pairs = ([0], [0]), [[1]]
    return [
        lambda **how: evaluate.full_ranking(model, variables, *WORLD, ks=2, **how),
        lambda **how: papers.lambda_opt.separate_ranking(model, variables, *WORLD, ks=2, **how),
        lambda **how: evaluate.top_k(model, variables, [0, 1], k=2, **how),
        lambda **how: evaluate.sampled_ranking(model, variables, *pairs, **how),
    ]


def test_histories_are_demanded_by_name_of_models_that_know_users_by_them_and_refused_of_others():
    for way in _ways(Shares(), SHARES):
        with pytest.raises(
            ValueError, match=r"^Shares knows users by their items; pass histories=.*histories=train.*mask"
        ):
            way()
        with pytest.raises(TypeError, match=r"^histories is a ndarray; give Interactions"):
            way(histories=TRAIN)
    for way in _ways(TABLE, SCORES):
        with pytest.raises(ValueError, match=r"^_Scorer does not know users by their items; do not pass histories"):
            way(histories=WORLD[0])


def test_histories_of_other_users_or_items_are_refused():
    model = models.EASE(N)
    variables = {"params": {"weights": SHARES}}
    fewer = Interactions.from_pairs([0, 1], [0, 1], n_users=M - 1, n_items=N)
    narrow = Interactions.from_pairs([0, 1], [0, 1], n_users=M, n_items=N - 1)
    for number, way in enumerate(_ways(model, variables)):
        with pytest.raises(ValueError, match=r"^the model scores 40 items, but histories hold 39"):
            way(histories=narrow)
        if number < 2:
            with pytest.raises(ValueError, match=r"^histories are of 29 users, but the interactions of 30"):
                way(histories=fewer)
    for call in (
        lambda: evaluate.top_k(model, variables, [0, M - 1], k=2, histories=fewer),
        lambda: evaluate.sampled_ranking(model, variables, ([M - 1], [0]), [[1]], histories=fewer),
    ):
        with pytest.raises(ValueError, match=rf"users run from \d+ to {M - 1}; ids are 0 \.\. {M - 2}"):
            call()


# ---------------------------------------------------------------------- sampled ranking

TWO = jnp.zeros((2, 1), jnp.int32)

ROW = np.array([[0.5, 0.5, 0.9, 0.1, 0.5, 0.2]], np.float32)


def test_sampled_ranking_by_hand():
    """One negative is better and one is tied, so that the rank is 3. A repeated item and the test item do not count."""
    with pytest.warns(DataWarning, match="2 of 5 negatives do not count"):
        report = evaluate.sampled_ranking(TABLE, ROW, ([0], [0]), [[1, 2, 3, 2, 0]], ks=(2, 3))
    assert report.means == {
        **{"hit_rate@2": 0, "ndcg@2": 0, "mrr@2": 0},
        **{"hit_rate@3": 1, "ndcg@3": pytest.approx(0.5), "mrr@3": pytest.approx(1 / 3)},
    }
    assert report.users.tolist() == [0] and report.items is None
    assert (
        report.protocol
        == "SAMPLED ranking of each test item among 5 given negatives, tied scores rank the test item last"
    )


def test_sampled_ranking_equals_the_brute_force_in_blocks_of_any_size():
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, M, 50), rng.integers(0, N, 50)
    negatives = np.stack([rng.permutation(np.delete(np.arange(N), i))[:9] for i in items])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reports = [
            evaluate.sampled_ranking(TABLE, SCORES, (users, items), negatives, ks=(1, 5), block=block)
            for block in (1, 7, 50, 1024)
        ]
    ahead = (SCORES[users[:, None], negatives] >= SCORES[users, items][:, None]).sum(1)
    assert len(set(ahead)) > 5
    for report in reports:
        np.testing.assert_array_equal(report.users, users)
        for k in (1, 5):
            np.testing.assert_array_equal(report.per_user[f"hit_rate@{k}"], ahead < k)
            np.testing.assert_allclose(report.per_user[f"mrr@{k}"], (ahead < k) / (1 + ahead))
            np.testing.assert_allclose(report.per_user[f"ndcg@{k}"], (ahead < k) / np.log2(2 + ahead))


def test_items_without_training_pairs_take_no_part():
    """For user 0, item 2 beats the test item but is cold. For user 1, the test item is cold."""
    train = Interactions.from_pairs([0, 1, 1], [0, 1, 3], n_users=2, n_items=5)
    scores = jnp.array([[2.0, 1.0, 9.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    given = ([0, 1], [0, 4]), [[1, 2], [1, 3]]
    report = evaluate.sampled_ranking(TABLE, scores, *given, ks=(1,), train=train)
    assert report.users.tolist() == [0] and report.means["hit_rate@1"] == 1
    assert "left out with their 1 test pairs" in report.protocol
    assert evaluate.sampled_ranking(TABLE, scores, *given, ks=(1,)).means["hit_rate@1"] == 0
    constant = jnp.zeros((2, 5))
    assert evaluate.sampled_ranking(TABLE, constant, *given, ks=(1,), train=train).means["hit_rate@1"] == 0
    with pytest.raises(ValueError, match="no test item has a training pair"):
        evaluate.sampled_ranking(TABLE, scores, ([1], [4]), [[1, 3]], train=train)
    with pytest.raises(ValueError, match="item 7 is not in train"):
        evaluate.sampled_ranking(TABLE, scores, ([1], [4]), [[1, 7]], train=train)


CIAO = {
    "item id": (0.3576, 0.5793, 0.1799, 0.2356),
    "unpopularity": (0.2940, 0.4518, 0.1272, 0.1668),
    "popularity": (0.0689, 0.1256, 0.0335, 0.0476),
}


@pytest.mark.parametrize("ranker", CIAO)
def test_on_the_published_split_of_ciao_the_largest_item_id_wins(data_root, ranker):
    """These are HR@10, HR@20, NDCG@10 and NDCG@20 over 6,125 users. MARS, the best method of its paper, has .3393,
    .5097, .1776 and .2202.
    """
    ciao = datasets.load("ciao")
    degrees = jnp.asarray(ciao.train.item_degrees, jnp.float32)
    scores = {"item id": jnp.arange(degrees.size, dtype=jnp.float32), "popularity": degrees, "unpopularity": -degrees}
    model = models.popularity(ciao.train)[0]
    with pytest.warns(DataWarning, match="negatives do not count"):
        report = evaluate.sampled_ranking(
            model,
            {"params": {"item": scores[ranker]}},
            ciao.test.pairs(),
            ciao.negatives,
            ks=(10, 20),
            train=ciao.train,
        )
    assert len(report.users) == 6125
    names = ("hit_rate@10", "hit_rate@20", "ndcg@10", "ndcg@20")
    np.testing.assert_allclose([report.means[name] for name in names], CIAO[ranker], atol=5e-5)


@pytest.mark.deep
def test_sampled_ranking_of_a_module_equals_that_of_its_rows():
    model = models.MF(M, N, dim=3, scale=1.0)
    variables = _variables(model)
    rows = np.asarray(model.apply(variables, np.arange(M), method="rows"))
    pairs, negatives = (np.arange(20), np.arange(20)), np.arange(20)[:, None] + np.arange(1, 9)
    by_model = evaluate.sampled_ranking(model, variables, pairs, negatives)
    by_table = evaluate.sampled_ranking(TABLE, rows, pairs, negatives)
    assert by_model.means == by_table.means and 0 < by_model.means["mrr@10"] < 1


@pytest.mark.parametrize(
    "users, items, negatives, message",
    [
        ([0, 1], [0], [[1], [2]], r"users [2], items [1], negatives [2, 1]; give [T], [T] and [T, n]"),
        ([0, 1], [0, 1], [[1]], r"negatives [1, 1]"),
        ([0, 1], [0, 1], [1, 2], r"negatives [2]"),
    ],
)
def test_sampled_ranking_refuses_shapes_that_differ(users, items, negatives, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate.sampled_ranking(TABLE, SCORES, (users, items), negatives)


def test_sampled_ranking_refuses_nan():
    scores = SCORES.copy()
    scores[7, 3] = np.nan
    with pytest.raises(ValueError, match="a score of user 7 is NaN"):
        evaluate.sampled_ranking(TABLE, scores, ([1, 7], [0, 0]), [[3, 4], [3, 4]])


@pytest.mark.parametrize(
    ("users", "items", "negatives", "message"),
    [
        ([], [], np.zeros((0, 3), int), "of 1 or more"),
        ([0], [-1], [[1]], "items run from -1 to -1; ids are 0"),
        ([0], [1], [[0.5]], "negatives is float64"),
    ],
)
def test_sampled_ranking_names_the_column_that_is_wrong(users, items, negatives, message):
    scores = jnp.ones((2, 4))
    with pytest.raises(ValueError, match=message):
        evaluate.sampled_ranking(evaluate.scorer(lambda table, u: table[u]), scores, (users, items), negatives)


KNOWN = Interactions.from_pairs([0, 0, 1, 2], [0, 1, 4, 2])  # 3 users, 5 items
SIZED = [
    make(3, 5, dim=2) for make in (models.MF, models.MARS, models.LRML, models.DPCML, models.NeuMF, models.SimpleX)
]
SIZED += [make(KNOWN, dim=2) for make in (models.LightGCN, models.XSimGCL, models.TransCF)]
SIZED += [make(5, dim=2) for make in (models.VALID, models.MacridVAE, models.MultVAE, models.RecVAE)]


@pytest.mark.parametrize("model", SIZED, ids=lambda model: type(model).__name__)
def test_ids_beyond_a_model_are_refused(model):
    """A look-up clamps ids. Without the check, they would get the scores of other ids."""
    known = {"histories": KNOWN} if getattr(model, "needs_histories", False) else {}
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    with pytest.raises(ValueError, match=r"users run from 0 to 3; ids are 0 \.\. 2"):
        evaluate.top_k(model, variables, [0, 3], k=2, **known)
    for pairs, negatives, message in (
        (([3], [0]), [[1]], r"users run from 3 to 3; ids are 0 \.\. 2"),
        (([0], [5]), [[1]], r"items run from 5 to 5; ids are 0 \.\. 4"),
        (([0], [0]), [[6]], r"negatives run from 6 to 6; ids are 0 \.\. 4"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.sampled_ranking(model, variables, pairs, negatives, **known)


def test_users_beyond_the_vectors_of_a_model_without_sizes_are_refused():
    class Tables:
        vectors = None  # that it is there says enough

        def apply(self, variables, users=None, *, method):
            return variables if method == "vectors" else variables[0][users] @ variables[1].T

    with pytest.raises(ValueError, match=r"users run from 0 to 3; ids are 0 \.\. 2"):
        evaluate.top_k(Tables(), (jnp.ones((3, 2)), jnp.ones((5, 2))), [0, 3], k=2)


# ---------------------------------------------------------------------- no silent errors


FACTOR = 1.0


def flipped_by_a_global(table, users):
    return FACTOR * table[users]


def test_a_scorer_that_reads_a_global_is_compiled_for_its_value(monkeypatch):
    table, model = jnp.array([[0.1, 0.9, 0.5]]), evaluate.scorer(flipped_by_a_global)
    assert evaluate.top_k(model, table, [0], k=1)[1].item() == 1
    negatives = np.array([[1, 2]])
    assert evaluate.sampled_ranking(model, table, ([0], [0]), negatives, ks=1).means["hit_rate@1"] == 0
    monkeypatch.setitem(globals(), "FACTOR", -1.0)
    assert evaluate.top_k(model, table, [0], k=1)[1].item() == 0
    assert evaluate.sampled_ranking(model, table, ([0], [0]), negatives, ks=1).means["hit_rate@1"] == 1


@pytest.mark.parametrize("ks", [np.int64(5), np.array([5]), [np.int32(5), 5], jnp.int32(5)], ids=repr)
def test_lengths_are_integers_of_any_kind(ks):
    report = evaluate.full_ranking(TABLE, SCORES, *WORLD, ks=ks)
    assert report.means["recall@5"] == evaluate.full_ranking(TABLE, SCORES, *WORLD, ks=5).means["recall@5"]


@pytest.mark.parametrize("ks", [2.0, "5", [2.5], np.float32(3)], ids=repr)
def test_lengths_that_are_not_integers_are_named(ks):
    with pytest.raises(ValueError, match=r"ks=.*; give an integer of 1 or more"):
        evaluate.full_ranking(TABLE, SCORES, *WORLD, ks=ks)


@pytest.mark.parametrize("user", [2**31, 2**32 + 1, np.uint64(2**63)])
def test_ids_beyond_int32_do_not_wrap(user):
    table = evaluate.scorer(lambda scores, users: scores[users])
    with pytest.raises(ValueError, match=rf"users run from {user} to {user}; ids are 0 \.\. "):
        evaluate.top_k(table, jnp.ones((3, 4)), np.array([user]), k=1)
    with pytest.raises(ValueError, match=rf"users run from {user} to {user}"):
        evaluate.sampled_ranking(table, jnp.ones((3, 4)), (np.array([user]), [1]), [[0]])


def test_ties_at_infinity_rank_the_test_item_last():
    scores = jnp.full((1, 6), jnp.inf).at[0, 5].set(-1.0)
    none = Interactions.from_pairs([0], [5], n_users=1, n_items=6)
    model = evaluate.scorer(lambda table, users: table[users])
    for item in range(5):
        test = Interactions.from_pairs([0], [item], n_users=1, n_items=6)
        means = evaluate.full_ranking(model, scores, none, test, ks=(4, 5)).means
        assert (means["hit_rate@4"], means["hit_rate@5"]) == (0, 1)


def test_scores_that_are_not_floats_are_refused():
    with pytest.raises(TypeError, match=r"the model's scores are int32; return floats, such as scores.astype"):
        evaluate.top_k(evaluate.scorer(lambda table, users: table[users]), jnp.ones((2, 3), jnp.int32), [0], k=1)


@pytest.mark.parametrize("swapped", [False, True])
def test_more_test_than_training_pairs_raise_a_warning(swapped):
    whole, _ = checkerboard(30)
    held_out = np.arange(whole.n_pairs) % 7 == 0
    parts = whole.select(held_out), whole.select(~held_out)
    parts = parts if swapped else parts[::-1]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        evaluate.full_ranking(*models.popularity(parts[0]), *parts, ks=(2,))
    assert any("are train and test swapped?" in str(each.message) for each in found) == swapped


def test_wrong_models_and_variables_are_named():
    model, table = evaluate.scorer(lambda scores, users: scores[users]), jnp.ones((3, 4))
    for call, error, message in (
        (
            lambda: evaluate.top_k(lambda x, users: x, table, [0], k=1),
            TypeError,
            "model is a function; give a model, or",
        ),
        (lambda: evaluate.top_k(model, (table, Log()), [0], k=1), TypeError, "variables ends with a Log"),
        (lambda: evaluate.top_k({"params": table}, models.MF(3, 4), [0], k=1), TypeError, "The model comes first"),
        (lambda: evaluate.top_k(models.MF, {"params": table}, [0], k=1), TypeError, "model is the class MF"),
        (lambda: evaluate.top_k(model, table[0], [0], k=1), ValueError, r"the model gives \[1\] for users \[1\]"),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.deep
def test_seen_items_of_other_users_are_refused():
    model = models.MF(3, 4, dim=2)
    variables = model.init(jax.random.key(0), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    seen = Interactions.from_pairs([0, 4], [0, 1], n_users=5, n_items=4)
    with pytest.raises(ValueError, match="the model knows 3 users, but the interactions hold 5"):
        evaluate.top_k(model, variables, [0], k=1, seen=seen)


def test_variables_of_other_sizes_and_models_without_rows_are_named():
    vectors = {"params": {"user": np.ones((1, 3), np.float32), "item": np.ones((N, 3), np.float32)}}
    with pytest.raises(ValueError, match=r"the variables do not fit MF: .*\(30, 3\).*such as MF\(1, n_items\)"):
        evaluate.top_k(models.MF(M, N, dim=3), vectors, [0], k=5)
    assert evaluate.top_k(models.MF(1, N, dim=3), vectors, [0], k=5)[1].shape == (1, 5)

    class Pairs(nn.Module):
        @nn.compact
        def __call__(self, users, items):
            return self.param("item", nn.initializers.ones, (N,))[items] + 0.0 * users

    variables = {"params": {"item": np.ones(N, np.float32)}}
    with pytest.raises(TypeError, match="Pairs has no method rows; evaluation needs rows"):
        evaluate.top_k(Pairs(), variables, [0], k=5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_few_users_get_the_scores_of_many(dtype):
    """Vectors of half precision are multiplied in float32, so that their products do not overflow."""
    rng = np.random.default_rng(0)
    tables = {"user": rng.normal(size=(40, 16)), "item": rng.normal(size=(300, 16))}
    variables = {"params": {name: jnp.asarray(100 * table, dtype) for name, table in tables.items()}}
    model = models.MF(40, 300, dim=16)
    scores, items = evaluate.top_k(model, variables, np.arange(40), k=9)
    few, same = evaluate.top_k(model, variables, np.arange(5), k=9)
    np.testing.assert_allclose(few, scores[:5], rtol=1e-5)
    np.testing.assert_array_equal(same, items[:5])


def test_one_user_with_many_pairs_does_not_fill_memory_for_every_block():
    """A call has the lists of its own blocks, not of all blocks."""
    users = np.r_[np.zeros(500, int), np.arange(1, 300)]
    seen = Interactions.from_pairs(users, np.r_[np.arange(500), np.arange(1, 300)], n_users=300, n_items=600)
    blocks = _kernel._blocks(np.arange(300), 1)
    taken = _kernel._of_blocks(seen, blocks[:2], _kernel._room(seen, blocks))
    assert taken.indices.shape == (2, 512) and taken.indptr[:, -1].tolist() == [500, 1]
