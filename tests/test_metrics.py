"""Metrics against NumPy in float64, against ranx, and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.metrics import ON_HITS, brute_force, pairwise_auc, second_opinion

from jaxrec import metrics


@functools.cache
def _jitted(name, k, **how):
    return jax.jit(functools.partial(getattr(metrics, name), k=k, **how))


def _random_hits(seed=0, n_users=60, n_ranks=12):
    """Hits of dense and sparse lists. Some users have more relevant items than ranks, and two have none."""
    rng = np.random.default_rng(seed)
    hits = rng.random((n_users, n_ranks)) < rng.random((n_users, 1))
    n_relevant = hits.sum(1) + rng.integers(0, 2 * n_ranks, n_users)
    hits[:2], n_relevant[:2] = False, 0
    return hits, n_relevant


@pytest.mark.parametrize("name", ON_HITS)
@pytest.mark.parametrize("k", [1, 5, 12])
def test_metrics_equal_the_brute_force(name, k):
    hits, n_relevant = _random_hits()
    assert (n_relevant > 12).any() and (n_relevant < 5).any()
    values = _jitted(name, k)(hits, n_relevant)
    assert values.dtype == jnp.float32 and values[0] == values[1] == 0
    expected = [brute_force(name, h, int(n), k) for h, n in zip(hits, n_relevant)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["recall", "average_precision"])
def test_the_other_denominator_equals_the_brute_force(name):
    hits, n_relevant = _random_hits(1)
    values = _jitted(name, 5, denominator="min_k")(hits, n_relevant)
    expected = [brute_force(name, h, int(n), 5, "min_k") for h, n in zip(hits, n_relevant)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert not np.allclose(values, _jitted(name, 5)(hits, n_relevant))


@pytest.mark.parametrize("name", ON_HITS)
def test_metrics_are_the_same_eager_and_for_any_leading_axes(name):
    hits, n_relevant = _random_hits()
    metric, expected = functools.partial(getattr(metrics, name), k=5), np.asarray(_jitted(name, 5)(hits, n_relevant))
    np.testing.assert_allclose(metric(hits, n_relevant), expected, rtol=1e-6)
    np.testing.assert_allclose(
        jax.jit(metric)(hits.reshape(3, 20, 12), n_relevant.reshape(3, 20)), expected.reshape(3, 20), rtol=1e-6
    )
    np.testing.assert_allclose(jax.jit(jax.vmap(metric))(hits, n_relevant), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(metric)(hits[7], n_relevant[7]), expected[7], rtol=1e-6)


@pytest.mark.deep
@pytest.mark.parametrize("k", [3, 12])
def test_metrics_equal_those_of_ranx(k):
    hits, n_relevant = (x[2:] for x in _random_hits(2))
    # rank r of a list is item r; relevant items outside the list have larger ids
    relevant = [[*np.flatnonzero(h), *range(100, 100 + n - h.sum())] for h, n in zip(hits, n_relevant)]
    some = [u for u, items in enumerate(relevant) if items]
    theirs = second_opinion([range(12)] * len(some), [relevant[u] for u in some], k)
    for name in ON_HITS:
        np.testing.assert_allclose(_jitted(name, k)(hits, n_relevant)[np.array(some)], theirs[name], atol=1e-6)


def test_hand_case():
    """Three relevant items, two ranks, one hit at the second."""
    case = jnp.array([False, True]), jnp.array(3)
    expected = {
        "recall": 1 / 3,
        "precision": 0.5,
        "hit_rate": 1,
        "mrr": 0.5,
        "ndcg": 0.38685,
        "average_precision": 1 / 6,
    }
    for name, value in expected.items():
        assert float(getattr(metrics, name)(*case, k=2)) == pytest.approx(value, abs=5e-6), name
    assert float(metrics.recall(*case, k=2, denominator="min_k")) == 0.5
    assert float(metrics.average_precision(*case, k=2, denominator="min_k")) == 0.25


@pytest.mark.parametrize("name", ON_HITS)
def test_wrong_input_is_refused(name):
    metric, hits = getattr(metrics, name), jnp.zeros((2, 3), bool)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k={k}, but the lists hold 3"):
            metric(hits, jnp.ones(2), k=k)
    with pytest.raises(AssertionError):
        metric(hits.astype(jnp.float32), jnp.ones(2), k=2)
    with pytest.raises(AssertionError):
        metric(hits, jnp.ones(3), k=2)


@pytest.mark.parametrize("name", ON_HITS)
def test_k_is_any_integer_and_nothing_else(name):
    metric, case = getattr(metrics, name), (jnp.array([False, True, False]), jnp.array(3))
    assert metric(*case, k=np.int64(2)) == metric(*case, k=2) == metric(*case, k=jnp.int32(2))
    for k in (2.0, np.float32(2), "2", None):
        with pytest.raises(ValueError, match=r"^k=.*, but the lists hold 3"):
            metric(*case, k=k)


@pytest.mark.parametrize(
    "name", [*ON_HITS, "auc", "rank_alone", "ndcg_alone", "coverage", "gini", "popularity", "novelty", "diversity"]
)
def test_metrics_are_float32_with_x64_on(name):
    with jax.enable_x64(True):
        metric, lists = getattr(metrics, name), np.array([[0, 2], [1, -1]])
        value = {
            "auc": lambda: metric(np.array([0.5, 0.1]), np.array([True, False])),
            "rank_alone": lambda: metric(np.array(0.5), np.array([0.1, 0.7])),
            "ndcg_alone": lambda: metric(np.array([1, 2]), k=1),
            "coverage": lambda: metric(lists, n_items=3),
            "gini": lambda: metric(lists, n_items=3),
            "popularity": lambda: metric(lists, np.array([3, 2, 1])),
            "novelty": lambda: metric(jnp.asarray(lists), np.array([3, 2, 1]), n_users=4),
            "diversity": lambda: metric(lists, jnp.eye(3)),
        }.get(name, lambda: metric(np.array([False, True]), np.array(3), k=2))()
    assert value.dtype == jnp.float32


@pytest.mark.parametrize("metric", [metrics.recall, metrics.average_precision])
def test_an_unknown_denominator_is_refused(metric):
    with pytest.raises(ValueError, match="denominator='k'"):
        metric(jnp.array([True]), jnp.array(1), k=1, denominator="k")


# ---------------------------------------------------------------------- area under the ROC curve


@pytest.mark.deep
def test_auc_equals_the_comparison_of_all_pairs():
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 4, (40, 23)).astype(np.float32)  # many ties
    scores[rng.random(scores.shape) < 0.1] = np.inf
    relevant, where = rng.random(scores.shape) < 0.3, rng.random(scores.shape) < 0.7
    relevant[0], relevant[1], where[2] = False, True, False
    scores[3] = 2.0
    auc = jax.jit(metrics.auc)
    expected = [pairwise_auc(*row) for row in zip(scores, relevant, where)]
    assert expected[:3] == [0, 0, 0] and expected[3] == 0.5
    np.testing.assert_allclose(auc(scores, relevant, where=where), expected, rtol=1e-6)
    np.testing.assert_allclose(metrics.auc(scores[4], relevant[4], where=where[4]), expected[4], rtol=1e-6)
    everywhere = [pairwise_auc(*row, np.ones(23, bool)) for row in zip(scores, relevant)]
    batched = auc(scores.reshape(4, 10, 23), relevant.reshape(4, 10, 23))
    np.testing.assert_allclose(batched, np.reshape(everywhere, (4, 10)), rtol=1e-6)


@pytest.mark.deep
def test_auc_ignores_the_values_of_masked_entries():
    scores, relevant = jnp.array([3.0, jnp.nan, 1.0, 2.0]), jnp.array([False, True, False, True])
    assert metrics.auc(scores, relevant, where=jnp.array([True, False, True, True])) == 0.5


@pytest.mark.deep
def test_auc_of_rows_with_more_pairs_than_int32_holds():
    n = 140_000
    relevant = np.arange(n) < n // 2
    assert metrics.auc(np.where(relevant, 1, 0).astype(np.float32), relevant) == 1
    scores = np.random.default_rng(0).normal(size=n).astype(np.float32)
    ranks = np.empty(n)
    ranks[scores.argsort()] = np.arange(1, n + 1)
    m = n // 2
    expected = (ranks[relevant].sum() - m * (m + 1) / 2) / (m * m)
    assert float(metrics.auc(scores, relevant)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.deep
def test_a_score_of_nan_gives_nan_and_no_good_rank():
    scores, relevant = jnp.array([[3.0, jnp.nan, 1.0], [3.0, 2.0, 1.0]]), jnp.array([[False, True, False]] * 2)
    assert np.isnan(metrics.auc(scores, relevant)).tolist() == [True, False]
    ranks = metrics.rank_alone(jnp.array([jnp.nan, 1.0, 1.0]), jnp.array([[0.0], [jnp.nan], [0.0]]))
    assert np.isnan(ranks).tolist() == [True, True, False]
    assert metrics.recall_alone(ranks, k=1).tolist() == metrics.ndcg_alone(ranks, k=1).tolist() == [0, 0, 1]
    hidden = metrics.rank_alone(jnp.array([1.0]), jnp.array([[jnp.nan, 2.0]]), where=jnp.array([[False, True]]))
    assert hidden.tolist() == [2]


def test_auc_refuses_scores_and_relevance_that_differ_in_shape_or_are_not_bool():
    with pytest.raises(AssertionError):
        metrics.auc(jnp.ones((2, 3)), jnp.ones(3, bool))
    with pytest.raises(AssertionError):
        metrics.auc(jnp.ones(3), jnp.ones(3))


# ---------------------------------------------------------------------- each relevant item separately


@pytest.mark.deep
def test_separate_ranks_by_hand():
    """Positives score 3 and 1, the others 2, 0 and 4. Separate ranks are 2 and 3, those in one list 2 and 4."""
    scores = jnp.array([3.0, 1.0]), jnp.array([[2.0, 0.0, 4.0]])
    ranks = metrics.rank_alone(*scores)
    assert ranks.tolist() == [2, 3]
    assert float(metrics.recall_alone(ranks, k=2).mean()) == 0.5
    assert float(metrics.ndcg_alone(ranks, k=2).mean()) == pytest.approx(0.315465, abs=1e-6)
    assert float(metrics.auc_alone(*scores).mean()) == pytest.approx(0.5)


def test_ties_count_for_the_positive_in_rank_alone_and_against_it_in_auc_alone():
    equal = jnp.zeros(2), jnp.zeros((2, 3))
    assert metrics.rank_alone(*equal).tolist() == [1, 1] and metrics.auc_alone(*equal).tolist() == [0, 0]


def test_separate_ranks_leave_out_masked_entries():
    pos, others, where = (
        jnp.array([1.0, 1.0]),
        jnp.array([[2.0, 3.0, 0.0]]),
        jnp.array([[True, False, True], [False] * 3]),
    )
    assert metrics.rank_alone(pos, others, where=where).tolist() == [2, 1]
    assert metrics.auc_alone(pos, others, where=where).tolist() == [0.5, 0]


# ---------------------------------------------------------------------- lists as a whole

LISTS = jnp.array([[0, 1, 2], [0, 1, -1], [0, -1, -1], [-1, -1, -1]])


@pytest.mark.deep
def test_coverage_by_hand():
    assert float(metrics.coverage(LISTS, n_items=5)) == pytest.approx(3 / 5)
    assert metrics.coverage(LISTS[3:], n_items=5) == 0
    assert metrics.coverage(jnp.arange(5).reshape(1, 5), n_items=5) == 1


def test_gini_by_hand():
    # counts 0, 0, 1, 2, 3: mean absolute difference over twice the mean
    counts = [0, 0, 1, 2, 3]
    by_pairs = sum(abs(a - b) for a in counts for b in counts) / (2 * 5 * sum(counts))
    assert float(metrics.gini(LISTS, n_items=5)) == pytest.approx(by_pairs) == pytest.approx(8 / 15)
    assert metrics.gini(jnp.arange(5).reshape(5, 1), n_items=5) == 0
    assert float(metrics.gini(jnp.zeros((7, 1), jnp.int32), n_items=5)) == pytest.approx(4 / 5)
    assert metrics.gini(LISTS[3:], n_items=5) == 0


def test_popularity_by_hand():
    values = metrics.popularity(LISTS, np.array([10, 4, 1, 100, 0]))
    np.testing.assert_allclose(values, [5, 7, 10, 0])


def test_novelty_by_hand():
    values = metrics.novelty(LISTS, np.array([8, 4, 1, 16, 0]), n_users=16)
    bits = np.array([1, 2, 4, 0, 4])  # an item without users counts as if it had one
    np.testing.assert_allclose(values, metrics.popularity(LISTS, bits), rtol=1e-6)


def test_diversity_is_the_mean_over_pairs():
    rng = np.random.default_rng(0)
    vectors, lists = rng.normal(size=(9, 4)), np.stack([rng.permutation(9)[:5] for _ in range(6)])
    vectors[3] = 0
    lists[0, 3:], lists[1, 1:], lists[2] = -1, -1, -1
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    expected = []
    for row in lists:
        pairs = [1 - unit[i] @ unit[j] for i in row[row >= 0] for j in row[row >= 0] if i != j]
        expected.append(np.mean(pairs) if pairs else 0)
    np.testing.assert_allclose(metrics.diversity(lists, vectors), expected, rtol=1e-5, atol=1e-6)
    traced = jax.jit(metrics.diversity)(lists, vectors.astype(np.float32))
    np.testing.assert_allclose(traced, expected, rtol=1e-5, atol=1e-6)
    for size in (1e-25, 1e25):  # whose squares are 0 and infinite
        np.testing.assert_allclose(metrics.diversity(lists, vectors * size), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="give one vector for each item"):
        metrics.diversity(lists, vectors[:, None])


@pytest.mark.parametrize("wrong", [5, -2, 2**32 + 1, -(2**32) - 1])
def test_lists_with_items_that_nobody_has_are_refused(wrong):
    lists = np.array([[0, wrong]])
    for call in (
        lambda: metrics.coverage(lists, n_items=5),
        lambda: metrics.gini(lists, n_items=5),
        lambda: metrics.popularity(lists, np.ones(5)),
        lambda: metrics.novelty(jnp.asarray(np.clip(lists, -9, 9)), np.ones(5), n_users=3),
        lambda: metrics.diversity(lists, np.ones((5, 2))),
    ):
        with pytest.raises(ValueError, match=r"items has id -?\d+, but there are 5 items; give ids of 0 .. 4, and -1"):
            call()
    lists = np.clip(lists, -9, 9)
    assert np.isnan(jax.jit(metrics.popularity)(lists, np.ones(5, np.float32))).all()
    assert np.isnan(jax.jit(metrics.diversity)(lists, np.ones((5, 2), np.float32))).all()
    assert float(jax.jit(functools.partial(metrics.coverage, n_items=5))(lists)) == pytest.approx(1 / 5)
    for n_items in (0, 5.0):
        with pytest.raises(ValueError, match=f"n_items={n_items}"):
            metrics.coverage(np.array([[0]]), n_items=n_items)


def test_lists_may_be_numpy_constants_of_a_traced_function():
    items = np.array([[0, 1], [3, -1]])
    degrees = jnp.arange(4)
    found = jax.jit(lambda degrees: metrics.popularity(items, degrees))(degrees)
    np.testing.assert_allclose(found, [0.5, 3.0])
    assert float(jax.jit(lambda x: x + metrics.coverage(items, n_items=4))(1.0)) == 1.75


@pytest.mark.parametrize("metric", [metrics.recall, metrics.ndcg, metrics.average_precision])
def test_numpy_arrays_give_numpy_arrays_of_the_same_values(metric):
    hits, n_relevant = _random_hits()
    found = metric(hits, n_relevant, k=5)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_allclose(found, metric(jnp.asarray(hits), jnp.asarray(n_relevant), k=5), rtol=1e-6)
