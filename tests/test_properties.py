"""Random valid calls of losses, metrics and samplers against NumPy in float64, written from the docstrings' formulae.

Shapes come from small sets, so that JAX compiles each operation once; what varies is scores, ties, masks and dtypes.
"""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxrec import losses, metrics, sampling
from jaxrec.interactions import Interactions

FEW = settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=300)
SEEDS = st.integers(0, 2**31 - 1)
HALF = [jnp.float16, jnp.bfloat16]


def both(**strategies):
    """Makes a quick test of a property and a `deep` one with more examples, both parametrised with `cases`."""

    def made(names, cases, check):
        mark = pytest.mark.parametrize(names, cases)
        return mark(FEW(given(**strategies)(check))), pytest.mark.deep(mark(MANY(given(**strategies)(check))))

    return made


def drawn(rng, shape, distances=False):
    """Scores of 8 significant bits, which every float holds: small, large or ±1e4, often tied."""
    scale = rng.choice([0.0, 0.5, 2.0, 100.0, 1e4])
    x = scale * rng.choice([rng.uniform(-1, 1, shape), rng.integers(-1, 2, shape)])
    x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    return np.abs(x) if distances else np.where(np.abs(x) < 1e-3, 0, x)


def close(found, expected, size, dtype):
    """Equal within some roundings of the largest term."""
    eps = 1e-13 if dtype == jnp.float64 else 5e-6
    assert np.asarray(found).dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=eps * (1 + size))


# ---------------------------------------------------------------------- losses of one positive and n negatives


def relu(x):
    return np.maximum(x, 0)


def softplus(x):
    return np.logaddexp(0, x)


def hinges(p, n, margin):
    return relu(margin - p + n)


# name: loss, formula of p and the valid n (an array), degree of the largest term and its factor, whether of distances
COMPARISONS = {
    "bpr": (losses.bpr, lambda p, n: softplus(n - p).mean(), 1, 1),
    "bpr_sum": (partial(losses.bpr, negatives="sum"), lambda p, n: softplus(n - p).sum(), 1, 4),
    "hinge": (partial(losses.hinge, margin=0.5), lambda p, n: hinges(p, n, 0.5).mean(), 1, 1),
    "warp": (
        partial(losses.warp, margin=0.25, n_items=40),
        lambda p, n: np.log1p(40 * (hinges(p, n, 0.25) > 0).mean()) * hinges(p, n, 0.25).max(),
        1,
        4,
    ),
    "ccl": (losses.ccl, lambda p, n: relu(1 - p) + 150 * relu(n - 0.9).mean(), 1, 150),
    "mml": (
        partial(losses.mml, margins=(0.25, 0.5), weights=(0.5, 2), positive_weight=3, negative_weight=7),
        lambda p, n: 3 * relu(1 - p) + 7 * (0.5 * relu(n - 0.25) + 2 * relu(n - 0.5)).mean(),
        1,
        20,
    ),
    "bce": (losses.bce, lambda p, n: softplus(-p) + softplus(n).mean(), 1, 1),
    "mse": (losses.mse, lambda p, n: 0.5 * (p - 1) ** 2 + 0.5 * (n**2).mean(), 2, 1),
    "mse_sum": (partial(losses.mse, negatives="sum"), lambda p, n: 0.5 * (p - 1) ** 2 + 0.5 * (n**2).sum(), 2, 4),
    "uib": (
        partial(losses.uib, boundary=0.5, alpha=0.25),
        lambda p, n: 0.75 * softplus(0.5 - p) + 0.25 * softplus(n - 0.5).mean(),
        1,
        1,
    ),
    "rg2_sampled": (losses.rg2_sampled, lambda p, n: -p + 0.5 * ((n + 1) ** 2).mean(), 2, 1),
    "softmax": (
        partial(losses.softmax, temperature=0.125),
        lambda p, n: np.logaddexp.reduce([p / 0.125, *(n / 0.125)]) - p / 0.125,
        1,
        8,
    ),
    "sampled_softmax": (
        partial(losses.sampled_softmax, temperature=0.5, log_q_pos=-1.0, log_q_neg=-3.0),
        lambda p, n: np.logaddexp.reduce([2 * p + 1, *(2 * n + 3)]) - (2 * p + 1),
        1,
        2,
    ),
    "infonce_plus": (
        partial(losses.infonce_plus, temperature=0.5, exponent=1.25, positive_share=0.25),
        lambda p, n: 1.25 * np.logaddexp.reduce([2 * p + np.log(0.25), *(2 * n)]) - 2 * p,
        1,
        4,
    ),
    "mine": (
        partial(losses.mine, temperature=0.5),
        lambda p, n: np.logaddexp.reduce(2 * n) - np.log(len(n)) - 2 * p,
        1,
        2,
    ),
    "bsl": (
        partial(losses.bsl, temperature=0.25, exponent=1.5),
        lambda p, n: 1.5 * (np.logaddexp.reduce(4 * n) - np.log(len(n))) - 4 * p,
        1,
        6,
    ),
    "contrastive": (losses.contrastive, lambda p, n: 0.5 * p**2 + 0.5 * (relu(1 - n) ** 2).mean(), 2, 1),
    "triplet": (losses.triplet, lambda p, n: relu(p**2 - n**2 + 1).mean(), 2, 1),
    "metricf": (losses.metricf, lambda p, n: 1.1 * p**4 + (relu(1.5 - n**2) ** 2).mean(), 4, 1),
    "sml": (
        lambda pos, neg, where: losses.sml(
            pos, neg, where=where, between=jax.lax.stop_gradient(neg / 2), weight=0.5, user_margin=0.25
        ),
        lambda p, n: relu(p**2 - n**2 + 0.25).mean() + 0.5 * relu(p**2 - n**2 / 4 + 1).mean() - 10 * 1.25,
        2,
        2,
    ),
    "on_scores": (
        partial(losses.on_scores, loss=losses.contrastive),
        lambda p, n: 0.5 * relu(-p) + 0.5 * (relu(1 - np.sqrt(relu(-n))) ** 2).mean(),
        1,
        1,
    ),
    "combine": (
        partial(losses.combine, parts=((0.5, losses.mse), (2, losses.bpr))),
        lambda p, n: 0.25 * (p - 1) ** 2 + 0.25 * (n**2).mean() + 2 * softplus(n - p).mean(),
        2,
        1,
    ),
}
OF_DISTANCES = ("contrastive", "triplet", "metricf", "sml")


def comparison(name, seed, shape):
    rng = np.random.default_rng(seed)
    pos, neg = (drawn(rng, s, name in OF_DISTANCES) for s in (shape, (*shape, 3)))
    return pos, neg, rng.random((*shape, 3)) < rng.choice([0.0, 0.5, 1.0])


@functools.cache
def _compiled(loss):
    @jax.jit
    def values_and_gradients(args, how):
        values, pull = jax.vjp(lambda *args: loss(*args, **how), *args)
        return values, *pull(jnp.ones_like(values))

    return values_and_gradients


def check_half(loss, dtype, args, how):
    """Scores of half precision give the value of the same numbers in float32, and gradients in their own dtype."""
    whole, half = (_compiled(loss)([jnp.asarray(x, d) for x in args], how) for d in (jnp.float32, dtype))
    np.testing.assert_allclose(half[0], whole[0], rtol=1e-6)
    assert half[0].dtype == jnp.float32
    for one, other in zip(half[1:], whole[1:], strict=True):
        assert one.dtype == dtype
        one, other = (
            np.asarray(x.astype(dtype), np.float64) for x in (one, other)
        )  # both are infinite beyond the range of the dtype
        np.testing.assert_allclose(one, other, rtol=float(jnp.finfo(dtype).eps), atol=1e-6)


def check_comparison(name, seed, shape, dtype):
    loss, formula, degree, factor = COMPARISONS[name]
    pos, neg, where = comparison(name, seed, shape)
    expected = np.zeros(shape)
    for at in np.ndindex(shape):
        if where[at].any():
            expected[at] = formula(pos[at], neg[at][where[at]])
    size = factor * (1 + max(np.abs(pos).max(), np.abs(neg).max())) ** degree
    with jax.enable_x64(True if dtype == jnp.float64 else jax.config.jax_enable_x64):
        close(loss(jnp.asarray(pos, dtype), jnp.asarray(neg, dtype), where=where), expected, size, dtype)


test_comparisons, test_many_comparisons = both(
    seed=SEEDS, shape=st.sampled_from([(), (4,)]), dtype=st.sampled_from([jnp.float32, jnp.float64, *HALF])
)("name", COMPARISONS, check_comparison)


def check_half_comparison(name, seed, dtype):
    pos, neg, where = comparison(name, seed, (4,))
    check_half(COMPARISONS[name][0], dtype, (pos, neg), {"where": where})


test_half_precision, test_much_half_precision = both(seed=SEEDS, dtype=st.sampled_from(HALF))(
    "name", COMPARISONS, check_half_comparison
)


# ---------------------------------------------------------------------- losses of rows, vectors and posteriors


def simplex(s):
    """Euclidean projection onto the simplex, by sorting. Adding a number to all scores does not change it."""
    s = s - s.max()
    ordered = np.sort(s)[::-1]
    thresholds = (np.cumsum(ordered) - 1) / np.arange(1, len(s) + 1)
    return relu(s - thresholds[np.flatnonzero(ordered > thresholds)[-1]])


def sparsemax(s, t):
    if not t.sum():
        return 0.0
    p, y = simplex(s), t / t.sum()
    return (p - y) @ s - 0.5 * (p**2).sum() + 0.5 * (y**2).sum()


def unit(x):
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.where(norm > 0, x / np.where(norm > 0, norm, 1), 0)


def uniformity(x, where):
    x = unit(x[where])
    pairs = [np.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(x) for b in x[:i]]
    return np.log(np.mean(pairs)) if pairs else 0.0


def covariance(x, where):
    x = x[where]
    if not len(x):
        return 0.0
    moments = np.cov(x.T, bias=True)
    return (moments**2).sum() - (np.diag(moments) ** 2).sum()


RG2 = partial(losses.rg2, n_items=3)


def rows_of(rng, name, where):
    """The arrays that a loss is differentiated in, the loss, its further arguments, and the value."""
    if name in ("multinomial", "sparsemax"):
        scores, targets = drawn(rng, 4), rng.integers(0, 3, 4) * rng.integers(0, 2)
        kept, given = scores[where], np.where(where, targets, 0)[where]
        how = {"targets": targets, "where": where}
        if name == "sparsemax":
            return (scores,), losses.sparsemax, how, sparsemax(kept, given)
        value = (given * (np.logaddexp.reduce(kept) - kept)).sum() if where.any() else 0.0
        return (scores,), losses.multinomial, how, value
    if name == "rg2":
        users, items, pos = drawn(rng, 2), drawn(rng, (3, 2)), drawn(rng, ())
        value = -pos + ((items @ users + 1) ** 2).sum() / 6
        sums = items.T @ items, items.sum(0)
        return (pos, users, *sums), RG2, {}, value
    if name == "alignment":
        u, v = drawn(rng, (4, 3)), drawn(rng, (4, 3))
        return (u, v), losses.alignment, {}, ((unit(u) - unit(v)) ** 2).sum(-1)
    if name == "directau":
        u, v = drawn(rng, (4, 3)), drawn(rng, (4, 3))
        near = ((unit(u) - unit(v)) ** 2).sum(-1)[where].mean() if where.any() else 0
        value = near + 0.25 * (uniformity(u, where) + uniformity(v, where))
        return (u, v), losses.directau, {"where": where, "weight": 0.5}, value
    if name in ("uniformity", "covariance"):
        x, formula = drawn(rng, (4, 3)), {"uniformity": uniformity, "covariance": covariance}[name]
        return (x,), getattr(losses, name), {"where": where}, formula(x, where)
    mean, log_variance = drawn(rng, 3), np.clip(drawn(rng, 3), -8, 8)
    if name == "kl_standard":
        return (
            (mean, log_variance),
            losses.kl_standard,
            {},
            0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance).sum(),
        )
    return (log_variance,), losses.kl_normalised, {}, 0.5 * (np.exp(log_variance) - log_variance - 1).sum()


OTHERS = [
    "multinomial",
    "sparsemax",
    "rg2",
    "alignment",
    "uniformity",
    "directau",
    "covariance",
    "kl_standard",
    "kl_normalised",
]


def check_others(name, seed, dtype):
    rng = np.random.default_rng(seed)
    where = rng.random(4) < rng.choice([0.0, 0.5, 1.0])
    args, loss, how, expected = rows_of(rng, name, where)
    largest = 1 + max(np.abs(x).max() for x in args)
    size = 10 * largest ** {"covariance": 4, "kl_standard": 2}.get(name, 1)
    if name in ("alignment", "uniformity", "directau"):
        size = 0
    elif name == "rg2":
        size += 10 * np.abs(args[1]).max() ** 2 * np.abs(args[2]).max()
    size += 3000 * name.startswith("kl")
    value = _compiled(loss)([jnp.asarray(x, jnp.float32) for x in args], how)[0]
    close(value, expected, 10 + size, jnp.float32)
    with jax.enable_x64(True):
        close(loss(*(jnp.asarray(x, jnp.float64) for x in args), **how), expected, 10 + size, jnp.float64)
    if max(np.abs(x).max() for x in args) < 6e4:  # all but the sums of rg2, which float16 may not hold
        check_half(loss, dtype, [np.asarray(jnp.asarray(x, dtype), np.float64) for x in args], how)


test_rows_vectors_and_posteriors, test_many_rows_vectors_and_posteriors = both(seed=SEEDS, dtype=st.sampled_from(HALF))(
    "name", OTHERS, check_others
)


def check_mean(dtype, seed):
    """The weights may have half precision, and the positives may be pooled."""
    rng = np.random.default_rng(seed)
    values, weights, where = drawn(rng, 6), np.abs(drawn(rng, 6)), rng.random(6) < 0.7
    total = weights[where].sum()
    expected = (weights * values)[where].sum() / total if total else 0.0
    found = losses.mean(jnp.asarray(values, dtype), where=where, weights=jnp.asarray(weights, dtype))
    close(found, expected, np.abs(values).max(), jnp.float32)
    close(losses.mean(jnp.asarray(values, dtype)), values.mean(), np.abs(values).max(), jnp.float32)
    users = rng.integers(0, 3, 6)
    pooled = np.zeros(6)
    for at in np.flatnonzero(where):
        same = 4 * values[where & (users == users[at])]
        pooled[at] = (np.logaddexp.reduce(same) - np.log(len(same))) / 4
    found = losses.pooled(jnp.asarray(values, dtype), users, where=where, temperature=0.25)
    close(found, pooled, np.abs(values).max(), jnp.float32)


test_mean_and_pooled, test_many_means = both(seed=SEEDS)("dtype", [jnp.float32, *HALF], check_mean)


# ---------------------------------------------------------------------- metrics


def on_hits(name, hits, n_relevant, k, denominator):
    """The six metrics of one list, by their definitions."""
    hits, ranks = hits[:k].astype(float), np.arange(1, k + 1)
    size = n_relevant if denominator == "n_relevant" else min(n_relevant, k)
    if n_relevant == 0:
        return 0.0
    return {
        "recall": lambda: hits.sum() / size,
        "precision": lambda: hits.sum() / k,
        "hit_rate": lambda: hits.max(),
        "mrr": lambda: (hits / ranks).max(),
        "ndcg": lambda: (hits / np.log2(ranks + 1)).sum() / (1 / np.log2(ranks[: min(k, n_relevant)] + 1)).sum(),
        "average_precision": lambda: (hits * np.cumsum(hits) / ranks).sum() / size,
    }[name]()


def check_on_hits(name, seed, k, relevant_dtype, denominator):
    rng = np.random.default_rng(seed)
    hits = rng.random((5, 6)) < rng.choice([0.0, 0.3, 1.0])
    n_relevant = hits.sum(1) + rng.integers(0, 4, 5)
    n_relevant[0], hits[0] = 0, False
    how = {"denominator": denominator} if name in ("recall", "average_precision") else {}
    found = getattr(metrics, name)(hits, n_relevant.astype(relevant_dtype), k=k, **how)
    close(found, [on_hits(name, *row, k, denominator) for row in zip(hits, n_relevant)], 0, jnp.float32)


test_metrics_of_hits, test_many_metrics_of_hits = both(
    seed=SEEDS,
    k=st.sampled_from([1, np.int64(3), np.int8(6)]),
    relevant_dtype=st.sampled_from([np.int8, np.uint8, np.int32, np.int64, np.float32]),
    denominator=st.sampled_from(["n_relevant", "min_k"]),
)("name", ["recall", "precision", "hit_rate", "mrr", "ndcg", "average_precision"], check_on_hits)


def check_of_scores(dtype, seed):
    rng = np.random.default_rng(seed)
    scores, relevant = drawn(rng, (3, 6)), rng.random((3, 6)) < 0.4
    scores[rng.random((3, 6)) < 0.1] = rng.choice([np.inf, -np.inf])
    where = rng.random((3, 6)) < rng.choice([0.5, 1.0])
    given_scores = jnp.asarray(scores, dtype)
    wins = [[(p > n) + 0.5 * (p == n) for p in s[r & w] for n in s[~r & w]] for s, r, w in zip(scores, relevant, where)]
    area = [np.mean(row) if row else 0 for row in wins]
    close(metrics.auc(given_scores, relevant, where=where), area, 0, jnp.float32)
    pos, others, w = scores[:, 0], scores[:, 1:], where[:, 1:]
    ranks = metrics.rank_alone(given_scores[:, 0], given_scores[:, 1:], where=w)
    expected = 1 + ((others > pos[:, None]) & w).sum(1)
    close(ranks, expected, 0, jnp.float32)
    lost = ((others < pos[:, None]) & w).sum(1) / np.maximum(w.sum(1), 1)
    close(metrics.auc_alone(given_scores[:, 0], given_scores[:, 1:], where=w), lost, 0, jnp.float32)
    close(metrics.recall_alone(ranks, k=np.int64(2)), expected <= 2, 0, jnp.float32)
    close(metrics.ndcg_alone(ranks, k=2), np.where(expected <= 2, 1 / np.log2(1 + expected), 0), 0, jnp.float32)


test_metrics_of_scores, test_many_metrics_of_scores = both(seed=SEEDS)("dtype", [jnp.float32, *HALF], check_of_scores)


def check_of_lists(dtype, seed):
    rng = np.random.default_rng(seed)
    lists, degrees = rng.integers(-1 if np.iinfo(dtype).min else 0, 7, (4, 3)), rng.integers(0, 100, 7)
    counts = np.bincount(lists[lists >= 0], minlength=7)
    given_lists = lists.astype(dtype)
    close(metrics.coverage(given_lists, n_items=np.int64(7)), (counts > 0).mean(), 0, jnp.float32)
    apart = np.abs(counts[:, None] - counts).sum() / (2 * 7 * max(counts.sum(), 1))
    close(metrics.gini(given_lists, n_items=7), apart, 0, jnp.float32)
    means = [degrees[row[row >= 0]].mean() if (row >= 0).any() else 0 for row in lists]
    close(metrics.popularity(given_lists, degrees), means, 100, jnp.float32)


test_metrics_of_lists, test_many_metrics_of_lists = both(seed=SEEDS)(
    "dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64], check_of_lists
)


# ---------------------------------------------------------------------- samplers


@functools.cache
def matrix(seed):
    """14 pairs of 6 users and 7 items, and the dense matrix. Users 4 and 5 and item 6 have no pair."""
    rng = np.random.default_rng(seed)
    dense = np.zeros((6, 7), bool)
    dense.ravel()[rng.choice([7 * u + i for u in range(4) for i in range(6)], 14, replace=False)] = True
    return Interactions.from_pairs(*dense.nonzero(), n_users=6, n_items=7), dense


def in_both_modes(call, *args):
    """Returns the result of a sampler, after checking that values and dtypes are the same with x64 off and on."""
    off, on = [], []
    for x64, results in ((False, off), (True, on)):
        with jax.enable_x64(x64):
            results.extend((np.asarray(x), x.dtype) for x in jax.tree.leaves(call(*args)))
    for one, other in zip(off, on, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1] == other[1]
    return [one for one, _ in off]


@functools.cache
def sampler(name, n):
    """Each sampler, jitted, as a function of key, users and the training pairs with their table."""
    uniform = partial(sampling.uniform, n_items=np.int64(7), n=n)
    return jax.jit(
        {
            "uniform": lambda key, users, train, table: uniform(key, users),
            "popularity": lambda key, users, train, table: sampling.popularity(key, users, table=table, n=n),
            "reject_seen": lambda key, users, train, table: sampling.reject_seen(
                key, users, sample=uniform, seen=train, rounds=2
            ),
            "shared": lambda key, users, train, table: sampling.shared(key, users, sample=uniform),
            "explorative": lambda key, users, train, table: sampling.explorative(key, (4, n), train=train, table=table),
        }[name]
    )


def check_sampler(name, seed, n):
    key, (train, dense), users = jax.random.key(seed), matrix(seed % 5), np.array([0, 3, 5, 3], np.int32)
    table = sampling.popularity_table(train.transpose() if name == "explorative" else train)
    *given_users, items = in_both_modes(sampler(name, n), key, users, train, table)
    assert items.dtype == np.int32 and items.shape == ((1 if name == "shared" else 4), n)
    assert items.min() >= 0 and items.max() < 7
    if name == "popularity":
        assert dense.sum(0)[items].min() > 0
        np.testing.assert_allclose(table.log_q[:6], np.log(np.maximum(dense.sum(0), 1e-30) / 14)[:6], rtol=1e-6)
    elif name == "reject_seen":
        keys = jax.random.split(key, 3)
        expected, *others = (np.asarray(sampler("uniform", n)(k, users, train, table)) for k in keys)
        for again in others:
            expected = np.where(dense[users[:, None], expected], again, expected)
        np.testing.assert_array_equal(items, expected)
    elif name == "shared":
        np.testing.assert_array_equal(items, sampling.uniform(key, users[:1], n_items=7, n=n))
    elif name == "explorative":
        assert given_users[0].dtype == np.int32 and dense[given_users[0], items].all()


test_samplers, test_many_samplers = both(seed=SEEDS, n=st.sampled_from([1, np.int64(3)]))(
    "name", ["uniform", "popularity", "reject_seen", "shared", "explorative"], check_sampler
)


def check_choices(dtype, seed):
    rng = np.random.default_rng(seed)
    train, dense = matrix(seed % 5)
    users, items = rng.integers(0, 6, 5).astype(np.int32), rng.integers(0, 7, 5).astype(np.int32)
    (where,) = in_both_modes(partial(sampling.in_batch, seen=train), users, items)
    np.testing.assert_array_equal(where, (items[:, None] != items) & ~dense[users[:, None], items])
    scores, pool = drawn(rng, (5, 6)), rng.permutation(50)[:6].astype(np.int32)
    kept = np.asarray(sampling.hardest(jnp.asarray(scores, dtype), jnp.asarray(pool[None]), n=np.int64(2)))
    best = np.sort(scores, axis=1)[:, ::-1][:, :2]
    np.testing.assert_array_equal([[s[list(pool).index(i)] for i in row] for s, row in zip(scores, kept)], best)
    assert all(len(set(row)) == 2 for row in kept.tolist())


test_choices_among_negatives, test_many_choices_among_negatives = both(seed=SEEDS)(
    "dtype", [jnp.float32, *HALF], check_choices
)


PERMUTED = jax.jit(sampling.permuted, static_argnames="n")


def check_permuted(n, seed):
    (images,) = in_both_modes(partial(PERMUTED, n=n), jax.random.key(seed), np.arange(n, dtype=np.int32))
    assert images.dtype == np.int32
    np.testing.assert_array_equal(np.sort(images), np.arange(n))


test_permuted, test_permuted_often = both(seed=SEEDS)("n", [1, 2, 9, 128, 129, np.int64(1000)], check_permuted)
