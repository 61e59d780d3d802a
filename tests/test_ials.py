"""iALS and WRMF: against dense float64 algebra, solver against solver, buckets, and one device against four."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.solvers import _alternate, _rows, _solve, ials, rg2, wrmf
from jaxrec.solvers._run import first_factors

M, N, K = 37, 23, 5
KEY = jax.random.key(0)
LAMBDA, ALPHA0, NU, ALPHA = 0.03, 0.1, 0.7, 4.0
IALS = {"regularization": LAMBDA, "unobserved_weight": ALPHA0, "nu": NU}
WRMF = {"regularization": LAMBDA, "alpha": ALPHA}
SOLVERS = [ials.cholesky, partial(ials.conjugate_gradient, steps=12), partial(ials.subspace, block=K)]
INEXACT = [partial(ials.conjugate_gradient, steps=1), partial(ials.subspace, block=2)]


def interactions(weighted=False, seed=0):
    """Rows are shorter and longer than K. A user and an item have no pair."""
    rng = np.random.default_rng(seed)
    pairs = rng.random((M, N)) < rng.choice([0.1, 0.5], (M, 1))
    pairs[3], pairs[:, 5] = False, False
    weights = rng.choice([0.0, 0.5, 3.0], pairs.sum()) if weighted else None
    return jr.Interactions.from_pairs(*np.nonzero(pairs), weights=weights, n_users=M, n_items=N)


def dense(train):
    """R, and whether each pair is observed."""
    r = train.to_scipy().toarray().astype(np.float64)
    observed = np.zeros(r.shape, bool)
    observed[train.pairs()] = True
    return r, observed


def terms(train, model):
    """Weights W and targets T [M, N] of Σ W (o − T)² + const, both sides' penalties, and that constant."""
    r, observed = dense(train)
    m, n = r.shape
    if model == "ials":
        w = r + ALPHA0
        penalties = [LAMBDA * (r.sum(1) + ALPHA0 * n) ** NU, LAMBDA * (r.sum(0) + ALPHA0 * m) ** NU]
        return w, r / w, penalties, (r - r**2 / w).sum()
    return 1 + ALPHA * r, observed.astype(float), [np.full(m, LAMBDA), np.full(n, LAMBDA)], 0.0


def dense_objective(user, item, train, model):
    w, t, (of_users, of_items), constant = terms(train, model)
    user, item = np.asarray(user, np.float64), np.asarray(item, np.float64)
    ridge = (of_users[:, None] * user**2).sum() + (of_items[:, None] * item**2).sum()
    return (w * (user @ item.T - t) ** 2).sum() + ridge + constant


def least_squares(w, t, penalties, table):
    """The best vectors of all rows, each by its own K x K system over the whole table."""
    rows = [
        np.linalg.solve(
            (table * w[u][:, None]).T @ table + penalties[u] * np.eye(table.shape[1]), table.T @ (w[u] * t[u])
        )
        for u in range(len(w))
    ]
    return np.array(rows)


def reference(train, model, item, sweeps, balance=False):
    """Alternating least squares in dense float64: factors, and the objective after each half step.

    With `balance`, the sides are rescaled after each half step.
    """
    w, t, (of_users, of_items), _ = terms(train, model)
    objectives = []
    for _ in range(sweeps):
        user = least_squares(w, t, of_users, item)
        user, item = balanced(user, item, of_users, of_items) if balance else (user, item)
        objectives.append(dense_objective(user, item, train, model))
        item = least_squares(w.T, t.T, of_items, user)
        user, item = balanced(user, item, of_users, of_items) if balance else (user, item)
        objectives.append(dense_objective(user, item, train, model))
    return user, item, objectives


def balanced(user, item, of_users, of_items):
    """Rescales both sides to the smallest penalty with the same scores, by a numerical search."""
    squares = (of_users[:, None] * user**2).sum(), (of_items[:, None] * item**2).sum()
    penalty = lambda log: squares[0] * np.exp(2 * log) + squares[1] * np.exp(-2 * log)  # noqa: E731
    factor = np.exp(scipy.optimize.minimize_scalar(penalty, bracket=(-1, 1), options={"xtol": 1e-12}).x)
    return user * factor, item / factor


def fitted(train, model="ials", sweeps=3, dim=K, **more):
    function, numbers = {"ials": (ials.fit, IALS), "wrmf": (wrmf.fit, WRMF)}[model]
    plain = {"progress": False, "key": KEY, "solver": ials.cholesky, "balance": False}
    _, variables, log = function(train, dim=dim, sweeps=sweeps, **(plain | numbers | more))
    halves = [record[name] for record in log.records for name in ("after_users", "objective")]
    return variables["params"]["user"], variables["params"]["item"], halves


def start(train, dim=K):
    """The initial item factors of `fitted`."""
    return np.where((train.item_degrees > 0)[:, None], first_factors(KEY, train, dim, 0.1)["item"], 0)


def grouped(train, chunk, parts=1):
    """The users' buckets of each part, where users are the first rows of the table and items the others."""
    source = _rows.Source(train, 0, train.n_users)
    lengths, n_rows = _rows.bucket_lengths(source.degrees()), train.n_users + train.n_items
    return _rows.grouped([source], lengths, n_rows=n_rows, chunk=chunk, parts=parts)[0]


def half_step(solver, train, user, item, chunk):
    """Solves for the users, from their vectors; returns the solutions [M, ·] and the sum of their values.

    The vectors are in the basis of the items' Gram matrix.
    """
    (buckets,) = grouped(train, chunk)
    spectrum = np.linalg.eigvalsh(item.T @ item)
    weighting, table = _solve.Weighting(ALPHA0, 1.0, 0.0, LAMBDA, NU), jnp.concatenate([user, item])
    half = _solve.Half(buckets, table, ALPHA0 * spectrum, weighting, train.n_items)
    found, values = jax.tree.map(np.asarray, jax.jit(solver)(half))
    found = np.concatenate([*(p.reshape(-1, p.shape[-1]) for p in found), np.zeros((1, item.shape[1]))])
    return found[_rows.places([buckets], len(table))[: train.n_users]], sum(value.sum() for value in values)


# ---------------------------------------------------------------------- against dense algebra


@pytest.mark.parametrize("solver", SOLVERS, ids=["cholesky", "conjugate gradient", "subspace"])
@pytest.mark.parametrize("weighted", [False, True], ids=["binary", "weighted"])
@pytest.mark.parametrize("model", ["ials", "wrmf"])
def test_equals_dense_least_squares(model, weighted, solver):
    """With enough steps or dimensions, each solver is exact."""
    train = interactions(weighted)
    with jax.enable_x64(True):
        user, item, objectives = reference(train, model, start(train), 3)
        found = fitted(train, model, solver=solver)
        own = {"ials": partial(ials.objective, **IALS), "wrmf": partial(wrmf.objective, **WRMF)}[model]
        own = float(own({"params": {"user": found[0], "item": found[1]}}, train))
    close = dict(rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found[0], user, **close)
    np.testing.assert_allclose(found[1], item, **close)
    np.testing.assert_allclose(found[2], objectives, rtol=1e-10)
    np.testing.assert_allclose(own, objectives[-1], rtol=1e-10)
    assert not found[0][3].any() and not found[1][5].any()


@pytest.mark.deep
@pytest.mark.parametrize("solver", INEXACT, ids=["conjugate gradient", "subspace"])
def test_inexact_solvers_never_raise_the_objective_in_the_log(solver):
    """Of 5 dimensions in blocks of 2, the last block has one."""
    train = interactions(weighted=True)
    with jax.enable_x64(True):
        user, item, objectives = fitted(train, solver=solver, sweeps=12)
        settled = fitted(train, sweeps=12)[2]
    assert dense_objective(user, item, train, "ials") == pytest.approx(objectives[-1], rel=1e-10)
    assert (np.diff(objectives) < 0).all()
    assert objectives[1] > settled[1] * 1.001  # they are inexact
    assert objectives[-1] == pytest.approx(settled[-1], rel=0.05)


@pytest.mark.parametrize("model", ["ials", "wrmf"])
def test_balance_is_the_best_multiple(model):
    train = interactions(weighted=True)
    with jax.enable_x64(True):
        first = start(train).astype(np.float64)
        expected = reference(train, model, first, 3, balance=True)
        found = fitted(train, model, balance=True)
    for a, b in zip(expected, found):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_with_balance_a_run_hardly_depends_on_the_initial_scale(scale):
    train = interactions(weighted=True)
    usual, other, plain = (
        fitted(train, sweeps=4, scale=s, balance=b)[2][-1] for s, b in ((0.1, 1), (scale, 1), (scale, 0))
    )
    assert other == pytest.approx(usual, rel=0.02) and plain > 1.02 * usual


def test_balance_does_nothing_without_a_penalty():
    train = interactions()
    for a, b in zip(*(fitted(train, regularization=0.0, dim=2, balance=balance) for balance in (True, False))):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.deep
def test_blocks_are_those_of_the_paper():
    """One half step of iALS++ by its printed formula, from vectors that are not 0."""
    train = interactions()
    with jax.enable_x64(True):
        user, item, _ = (np.asarray(x) for x in fitted(train))
        begin = np.random.default_rng(1).normal(size=user.shape)
        item = item @ np.linalg.eigh(item.T @ item)[1]
        found, _ = half_step(partial(ials.subspace, block=2), train, begin, item, chunk=64)
    r, _ = dense(train)
    penalties, gram = LAMBDA * (r.sum(1) + ALPHA0 * N) ** NU, ALPHA0 * item.T @ item
    for u in range(M):
        p, mine = begin[u].copy(), r[u] > 0
        scores = item[mine] @ p
        for block in ([0, 1], [2, 3], [4]):
            q = item[mine][:, block]
            a = q.T @ q + gram[np.ix_(block, block)] + penalties[u] * np.eye(len(block))
            step = np.linalg.solve(a, q.T @ (scores - 1) + gram[block] @ p + penalties[u] * p[block])
            p[block] -= step
            scores -= q @ step
        np.testing.assert_allclose(found[u], p if mine.any() else 0, rtol=1e-9, atol=1e-12)


@pytest.mark.deep
def test_single_precision_is_near_double():
    train = interactions(weighted=True)
    with jax.enable_x64(False):  # the same draws as the solvers'
        first = start(train).astype(np.float64)
    user, item, objectives = reference(train, "ials", first, 3)
    for solver in SOLVERS:
        with jax.enable_x64(False):
            found = fitted(train, solver=solver)
        assert found[0].dtype == np.float32
        np.testing.assert_allclose(found[0], user, rtol=1e-3, atol=3e-5)
        np.testing.assert_allclose(found[1], item, rtol=1e-3, atol=3e-5)
        np.testing.assert_allclose(found[2], objectives, rtol=1e-5)


@pytest.mark.parametrize("solver", [*SOLVERS, *INEXACT], ids=range(5))
def test_rows_cut_into_pieces_give_the_same(solver):
    """A user of 9,000 items has three pieces; a piece must hold its part of the sums."""
    rng = np.random.default_rng(0)
    n_items = 9500
    assert n_items > 2 * _solve.LONGEST
    items = [rng.choice(n_items, size, replace=False) for size in (9000, 3, 40, 40)]
    users = np.repeat(np.arange(4), [len(x) for x in items])
    train = jr.Interactions.from_pairs(users, np.concatenate(items), n_users=4, n_items=n_items)
    table, begin = rng.normal(size=(n_items, 4)), rng.normal(size=(4, 4))
    with jax.enable_x64(True):
        table = table @ np.linalg.eigh(table.T @ table)[1]
        if "block" in getattr(solver, "keywords", ()):
            solver = partial(ials.subspace, block=min(solver.keywords["block"], 4))
        found, value = half_step(solver, train, begin, table, chunk=512)
    r, _ = dense(train)
    penalties = LAMBDA * (r.sum(1) + ALPHA0 * n_items) ** NU
    systems = [(table * (r[u] + ALPHA0)[:, None]).T @ table + penalties[u] * np.eye(4) for u in range(4)]
    sums = r @ table
    told = sum(p @ a @ p - 2 * p @ b for p, a, b in zip(found, systems, sums))
    assert value == pytest.approx(told, rel=1e-10)
    if solver in SOLVERS[:2] or getattr(solver, "keywords", {}).get("block") == 4:
        np.testing.assert_allclose(found, [np.linalg.solve(a, b) for a, b in zip(systems, sums)], rtol=1e-9)
    else:
        before = sum(p @ a @ p - 2 * p @ b for p, a, b in zip(begin, systems, sums))
        assert told < before


def test_weights_and_targets_of_observed_pairs():
    """w is 1 + α0 and the target 1 / (1 + α0), by one dense regression per user."""
    train = interactions()
    item = np.random.default_rng(3).normal(size=(N, K))
    r, _ = dense(train)
    with jax.enable_x64(True):
        found = ials.fold_in({"params": {"item": item}}, train, **IALS)
    penalties = LAMBDA * (r.sum(1) + ALPHA0 * N) ** NU
    for u in range(M):
        w = np.sqrt(np.where(r[u] > 0, 1 + ALPHA0, ALPHA0))
        t = np.where(r[u] > 0, 1 / (1 + ALPHA0), 0)
        design = np.concatenate([w[:, None] * item, np.sqrt(penalties[u]) * np.eye(K)])
        expected = np.linalg.lstsq(design, np.r_[w * t, np.zeros(K)], rcond=None)[0]
        np.testing.assert_allclose(found[u], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.deep
@pytest.mark.parametrize("model", ["ials", "wrmf"])
def test_folding_in_is_the_users_half_step(model):
    train = interactions(weighted=True)
    item = start(train)
    fold = {"ials": partial(ials.fold_in, **IALS), "wrmf": partial(wrmf.fold_in, **WRMF)}[model]
    found = fold({"params": {"item": item}}, train)
    np.testing.assert_allclose(found, fitted(train, model, sweeps=1)[0], rtol=2e-3, atol=1e-4)
    nobody = train.select(np.zeros(train.n_pairs, bool))
    assert not fold({"params": {"item": item}}, nobody).any()
    with pytest.raises(ValueError, match="one id map"):
        fold({"params": {"item": item[:-1]}}, train)


@pytest.mark.deep
def test_folding_in_can_be_jitted_and_differentiated():
    """Against central differences of the plain function."""
    train, direction = interactions(), np.random.default_rng(1).normal(size=(N, K))
    with jax.enable_x64(True):
        item = start(train).astype(np.float64)
        value = lambda item: (ials.fold_in({"params": {"item": item}}, train, **IALS) ** 2).sum()  # noqa: E731
        assert float(jax.jit(value)(item)) == pytest.approx(float(value(item)), rel=1e-12)
        slope = float((jax.grad(value)(item) * direction).sum())
        steps = [float(value(item + h * direction)) for h in (1e-5, -1e-5)]
    assert slope == pytest.approx((steps[0] - steps[1]) / 2e-5, rel=1e-5)


def test_conjugate_gradients_need_no_penalty():
    """With α0 = λ = 0 the preconditioner has zeros, but rows with enough pairs have a solution."""
    pairs = np.random.default_rng(0).random((20, 15)) < 0.9
    train = jr.Interactions.from_pairs(*np.nonzero(pairs), n_users=20, n_items=15)
    none = {"regularization": 0.0, "unobserved_weight": 0.0, "dim": 3}
    with jax.enable_x64(True):
        exact, found = (fitted(train, **none, solver=solver) for solver in (ials.cholesky, SOLVERS[1]))
    np.testing.assert_allclose(found[2], exact[2], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("solver", [lambda half: 1, lambda half: ([half.table], [half.table[:, 0]])], ids=range(2))
def test_a_solver_of_other_shapes_is_told_what_to_return(solver):
    with pytest.raises(ValueError, match="return the solutions and the values of the buckets"):
        fitted(BOARD, dim=2, solver=solver)


# ---------------------------------------------------------------------- buckets


@settings(max_examples=60, deadline=None)
@given(
    degrees=st.lists(st.one_of(st.integers(0, 12), st.integers(0, 300)), min_size=1, max_size=60),
    chunk=st.sampled_from([1, 64, 1000]),
    parts=st.sampled_from([1, 3]),
)
def test_buckets_have_every_pair_once_and_little_padding(degrees, chunk, parts):
    degrees = np.array(degrees)
    if not degrees.any():
        degrees[0] = 1
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.choice(300, degree, replace=False) for degree in degrees])
    users = np.repeat(np.arange(len(degrees)), degrees)
    weights = rng.integers(1, 9, len(users))
    train = jr.Interactions.from_pairs(users, items, weights=weights, n_users=len(degrees), n_items=300)
    divided, pairs = grouped(train, chunk, parts), []
    assert len(divided) == parts
    assert len({tuple(jax.tree.map(np.shape, buckets)) for buckets in divided}) == 1
    for bucket in (bucket for buckets in divided for bucket in buckets):
        _, size, length = bucket.ids.shape
        assert bucket.ratings.shape == bucket.ids.shape and size * length <= max(chunk, length)
        real = np.arange(length) < bucket.lengths[..., None]
        assert not bucket.ids[~real].any() and not bucket.ratings[~real].any()
        assert (bucket.lengths[: bucket.n_chunks[0]] > 0).any(1).all()
        assert not (bucket.lengths[bucket.n_chunks[0] :] > 0).any()
        np.testing.assert_array_equal(bucket.totals, bucket.ratings.sum(-1))
        owner = np.broadcast_to(bucket.rows[..., None], real.shape)
        pairs.append(np.stack([owner[real], bucket.ids[real] - len(degrees), bucket.ratings[real]]))
    pairs = np.concatenate(pairs, axis=1)
    pairs = pairs[:, np.lexsort(pairs[1::-1])]
    np.testing.assert_array_equal(pairs, [*train.pairs(), train.weights])
    rows = np.concatenate([bucket.rows.ravel() for buckets in divided for bucket in buckets])
    n_rows = len(degrees) + 300
    place = _rows.places(divided, n_rows)
    has_pairs = np.append(degrees > 0, np.zeros(300, bool))
    np.testing.assert_array_equal(np.append(rows, -1)[place], np.where(has_pairs, np.arange(n_rows), -1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 30), st.integers(0, 30_000)), min_size=1, max_size=300))
def test_lengths_are_few_and_padding_is_below_a_half(degrees):
    degrees = np.array(degrees)
    lengths = _rows.bucket_lengths(degrees)
    assert lengths == sorted(set(lengths))
    positive = degrees[degrees > 0]
    if len(positive):
        padded = np.array(lengths)[np.searchsorted(lengths, positive)]
        assert (padded >= positive).all() and padded.sum() <= 1.5 * positive.sum()
    assert len(lengths) <= 26


def test_a_power_law_takes_few_buckets():
    degrees = np.minimum((3 / np.linspace(1e-5, 1, 200_000) ** 0.7).astype(int), 100_000)
    lengths = _rows.bucket_lengths(degrees)
    padded = np.array(lengths)[np.searchsorted(lengths, degrees)].sum()
    assert len(lengths) <= 14 and padded <= 1.4 * degrees.sum()


def test_small_sets_take_fewer_buckets():
    """Compiling a bucket takes as long as solving for some padding."""
    degrees = np.minimum((3 / np.linspace(1e-3, 1, 600) ** 0.9).astype(int), 700)
    counts = [len(_rows.bucket_lengths(degrees, spare)) for spare in (0, 2000, 2**18)]
    assert counts[0] >= 6 and counts[0] > counts[1] > counts[2] and counts[2] <= 2, counts
    large = np.repeat(degrees, 1000)
    assert _rows.bucket_lengths(large, 2**18) == _rows.bucket_lengths(large)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="LAPACK computes on a CPU only")
@pytest.mark.parametrize("n", [2, 9, 40])
def test_factorisations_come_in_batches_that_jaxlib_keeps_on_one_thread(n):
    """jaxlib divides batches of 2e5 operations or more among threads. Two such calls can deadlock."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(700, n, n)).astype(np.float32)
    a, b = (
        half @ half.transpose(0, 2, 1) + n * np.eye(n, dtype=np.float32),
        rng.normal(size=(700, n)).astype(np.float32),
    )
    compiled = jax.jit(_solve._cholesky_solve).lower(a, b).compile()
    expected = np.linalg.solve(a.astype(np.float64), b.astype(np.float64)[..., None])[..., 0]
    np.testing.assert_allclose(compiled(a, b), expected, rtol=1e-3, atol=1e-5)
    factored = re.findall(r"f32\[(\d+),\d+,\d+\]\S*(?: /\*.*?\*/)?,.*custom-call.*lapack_spotrf", compiled.as_text())
    solved = re.findall(r"f32\[(\d+),\d+,1\]\S* custom-call.*lapack_strsm", compiled.as_text())
    assert factored and solved
    assert all(int(size) == 1 or int(size) * n**3 / 3 < 2e5 for size in factored)
    assert all(int(size) == 1 or int(size) * n**2 < 2e5 for size in solved)


@pytest.mark.parametrize("solver", [ials.cholesky, INEXACT[0]], ids=["cholesky", "conjugate gradient"])
def test_parts_on_threads_give_the_same(solver, monkeypatch):
    """Double precision is a setting of the calling thread, and must hold in the others, too."""
    train, x64 = interactions(weighted=True), jax.config.jax_enable_x64
    with jax.enable_x64(True):
        expected = fitted(train, solver=solver)
        monkeypatch.setattr(_alternate, "_LEAST", 10)
        monkeypatch.setattr(_alternate, "cores", lambda: 3)
        found = fitted(train, solver=solver)
    for a, b in zip(expected, found):
        assert np.asarray(b).dtype == np.float64
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)
    assert jax.config.jax_enable_x64 == x64


# ---------------------------------------------------------------------- whole runs

BOARD, DIAGONAL = synthetic.checkerboard(30)


@pytest.mark.deep
@pytest.mark.parametrize("model", ["ials", "wrmf"])
def test_recovers_the_diagonal_withheld_from_the_checkerboard(model):
    user, item, _ = fitted(BOARD, model, dim=2)
    mf = jr.models.MF(30, 30, dim=2)
    report = jr.evaluate.full_ranking(mf, {"params": {"user": user, "item": item}}, BOARD, DIAGONAL, ks=(1,))
    assert report.means["hit_rate@1"] == 1


@pytest.mark.deep
def test_planted_factors_rank_better_than_popularity():
    whole, _ = synthetic.low_rank(KEY, n_users=60, n_items=40, dim=2, pairs_per_user=12, sharpness=4.0)
    held = np.random.default_rng(0).random(whole.n_pairs) < 0.2
    train, test = whole.select(~held), whole.select(held)
    user, item, _ = fitted(train, dim=3, sweeps=5)
    popularity = jr.evaluate.scorer(lambda v, users: jnp.broadcast_to(v[None], (len(users), len(v))))
    rank = partial(jr.evaluate.full_ranking, train=train, test=test, ks=(5,))
    ours = rank(jr.models.MF(60, 40, dim=3), {"params": {"user": user, "item": item}}).means["ndcg@5"]
    theirs = rank(popularity, jnp.asarray(train.item_degrees, jnp.float32)).means["ndcg@5"]
    assert ours > 1.5 * theirs


@pytest.mark.deep
def test_one_key_gives_one_result_and_the_log_has_what_was_asked_for():
    first, again, other = (fitted(BOARD, dim=2, key=jax.random.key(k))[:2] for k in (0, 0, 1))
    for a, b, c in zip(first, again, other):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    stopping = jr.train.EarlyStopping("metric", patience=1)
    values = iter([1.0, 3.0, 2.0, 9.0])
    watched = {"stopping": stopping, "validate": lambda variables: {"metric": next(values)}}
    _, _, log = ials.fit(BOARD, dim=2, key=KEY, sweeps=9, progress=False, **watched, **IALS)
    assert log.column("metric") == ([1, 2, 3], [1.0, 3.0, 2.0])
    _, _, log = ials.fit(BOARD, dim=2, key=KEY, sweeps=50, tolerance=1e-3, progress=False, **IALS)
    assert len(log.records) < 20


@pytest.mark.deep
def test_hyperparameters_of_equal_values_compile_once():
    fitted(BOARD, dim=2, solver=partial(ials.conjugate_gradient, steps=2))
    compiled = _alternate.compiled(traced=False)._cache_size()
    fitted(BOARD, dim=2, solver=partial(ials.conjugate_gradient, steps=2), regularization=0.5, unobserved_weight=0.2)
    assert _alternate.compiled(traced=False)._cache_size() == compiled
    fitted(BOARD, dim=2, solver=partial(ials.conjugate_gradient, steps=3))
    assert _alternate.compiled(traced=False)._cache_size() == compiled + 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"regularization": -1.0}, "regularization=-1.0; give"),
        ({"unobserved_weight": -0.1}, "unobserved_weight=-0.1; give"),
        ({"nu": float("nan")}, "nu=nan; give"),
        ({"dim": 24}, "dim=24 with 37 users and 23 items; give 1 to 23"),
        ({"dim": 0}, "dim=0"),
        ({"sweeps": 0}, "sweeps=0; give an integer of 1 or more"),
        ({"solver": partial(ials.conjugate_gradient, steps=0)}, "steps=0; give an integer of 1 or more"),
        ({"solver": partial(ials.subspace, block=6)}, "block=6 with dim=5; give 1 to 5"),
        ({"solver": partial(ials.subspace, block=0)}, "block=0"),
    ],
)
def test_wrong_values_are_named(more, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fitted(interactions(), **more)


@pytest.mark.deep
def test_wrong_data_are_named():
    train = jr.Interactions.from_pairs([0, 1], [1, 0], weights=[1.0, -2.0])
    with pytest.raises(ValueError, match=r"train.weights\[1\] is -2.0"):
        wrmf.fit(train, dim=1, key=KEY, progress=False, **WRMF)
    with pytest.raises(ValueError, match="alpha=-1"):
        wrmf.fit(BOARD, dim=1, key=KEY, regularization=0.1, alpha=-1)
    few = jr.Interactions.from_pairs([0, 0, 1], [2, 3, 3], n_users=8, n_items=9)
    with pytest.raises(ValueError, match="raise regularization"):
        fitted(few, regularization=0.0)


# ---------------------------------------------------------------------- a mesh


@pytest.mark.deep
@pytest.mark.parametrize("solver", [ials.cholesky, partial(ials.conjugate_gradient, steps=2)], ids=["exact", "inexact"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_four_devices_give_what_one_does(solver, kind):
    """4 devices do not divide 37 users and 23 items evenly, so that each device has all."""
    train = interactions(weighted=True)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    single, sharded = fitted(train, solver=solver), fitted(train, solver=solver, mesh=mesh)
    for one, four in zip(single, sharded):
        np.testing.assert_allclose(four, one, rtol=1e-4, atol=1e-5)
    assert sharded[0].sharding.is_fully_replicated and len(sharded[0].sharding.device_set) == 4


def test_a_mesh_of_two_axes_is_refused():
    mesh = Mesh(np.array(jax.devices("cpu")[:4]).reshape(2, 2), ("data", "model"))
    with pytest.raises(ValueError, match="single axis"):
        fitted(BOARD, dim=2, mesh=mesh)


@pytest.mark.deep
def test_gowalla_reaches_what_the_library_implicit_does(data_root):
    """The library has a Recall@20 of .1496. Settings were chosen on a tenth of the training pairs."""
    from jaxrec.data import datasets

    data = datasets.load("gowalla")
    solver = partial(ials.conjugate_gradient, steps=3)
    numbers = {"regularization": 0.01, "unobserved_weight": 0.005, "nu": 1.0}
    user, item, objectives = fitted(data.train, dim=64, sweeps=4, solver=solver, **numbers)
    variables = {"params": {"user": user, "item": item}}
    model = jr.models.MF(data.train.n_users, data.train.n_items, dim=64)
    report = jr.evaluate.full_ranking(model, variables, data.train, data.test, ks=(20,))
    assert report.means["recall@20"] > 0.15
    assert float(ials.objective(variables, data.train, **numbers)) == pytest.approx(objectives[-1], rel=1e-5)
    for pairs in (data.train, data.train.transpose()):
        assert sum(bucket.ids.size for bucket in grouped(pairs, 8192)[0]) < 1.5 * pairs.n_pairs


# ---------------------------------------------------------------------- variables, metrics and interruptions

FOLDS = {
    "ials": (partial(ials.fold_in, **IALS), partial(ials.objective, **IALS)),
    "wrmf": (partial(wrmf.fold_in, **WRMF), partial(wrmf.objective, **WRMF)),
    "rg2": (partial(rg2.fold_in, regularization=0.1), partial(rg2.objective, regularization=0.1)),
}
TABLES = {"user": jnp.ones((M, 2)), "item": jnp.ones((N, 2))}


@pytest.mark.parametrize("solver", FOLDS)
@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"params": TABLES, "graph": {}}, "graph"),
        ({"params": TABLES | {"bias": jnp.ones(N)}}, "bias"),
        ({"params": {"user": jnp.ones((M, 3, 2)), "item": jnp.ones((N, 3, 2)), "theta": jnp.ones((M, 3))}}, "theta"),
        ({"params": {"user": jnp.ones((M, 3, 2)), "item": jnp.ones((N, 3, 2))}}, r"\[23, 3, 2\]"),
        ({"params": {"user": jnp.ones((M, 3)), "item": jnp.ones((N, 2))}}, r"\[37, 3\]"),
        ({"params": {"item": jnp.ones(N)}}, r"item"),
        (TABLES, "user"),
        (jr.train.State({"params": TABLES}, None, KEY, 0), "State"),
    ],
)
def test_variables_of_other_models_are_refused(solver, variables, found):
    for function in FOLDS[solver]:
        with pytest.raises(ValueError, match=rf'^variables (has|is) .*{found}.*\{{"params": \{{"user": \[M, K\]'):
            function(variables, interactions())


@pytest.mark.parametrize("solver", FOLDS)
def test_given_factors_are_of_the_size_of_the_interactions_and_weights_of_feedback(solver):
    fold_in, objective = FOLDS[solver]
    with pytest.raises(ValueError, match="train has 37 users and variables 36; use one id map"):
        objective({"params": TABLES | {"user": jnp.ones((M - 1, 2))}}, interactions())
    for value in (-1.0, np.float32(-1), float("nan")):
        with pytest.raises(ValueError, match=r"^regularization=.*; give a finite number of 0 or more"):
            fold_in({"params": TABLES}, interactions(), regularization=value)
        with pytest.raises(ValueError, match=r"^regularization=.*; give a finite number of 0 or more"):
            objective({"params": TABLES}, interactions(), regularization=value)
    negative = jr.Interactions.from_pairs([0, 1], [0, 1], weights=[1.0, -2.0], n_users=M, n_items=N)
    with pytest.raises(ValueError, match=r"histories.weights\[1\] is -2.0"):
        fold_in({"params": TABLES}, negative)
    with pytest.raises(ValueError, match=r"train.weights\[1\] is -2.0"):
        objective({"params": TABLES}, negative)
    infinite = dataclasses.replace(negative, weights=np.array([np.inf, 1.0], np.float32))
    with pytest.raises(ValueError, match=r"histories.weights\[0\] is inf"):
        fold_in({"params": TABLES}, infinite)
    if solver == "ials":
        with pytest.raises(ValueError, match=r"the vector of row 0 is not finite.*raise regularization"):
            fold_in({"params": TABLES}, interactions(), regularization=0.0, unobserved_weight=0.0)


FITS = {
    "ials": partial(ials.fit, dim=2, key=KEY, progress=False, **IALS),
    "wrmf": partial(wrmf.fit, dim=2, key=KEY, progress=False, **WRMF),
    "rg2": partial(rg2.fit, dim=2, key=KEY, progress=False, regularization=0.1),
}


@pytest.mark.deep
@pytest.mark.parametrize("solver", FITS)
def test_a_metric_that_is_never_a_number_is_an_error(solver):
    """Otherwise the run would return the initial factors without an error."""
    fit = partial(FITS[solver], interactions(), sweeps=4, tolerance=None, stopping=jr.train.EarlyStopping("x"))
    with pytest.raises(ValueError, match=r"^x was not a number at any of 4 validations"):
        fit(validate=lambda variables: {"x": float("nan")})
    values = iter([float("nan"), 0.3, float("nan"), 0.1])
    seen = []
    _, variables, log = fit(validate=lambda variables: seen.append(variables) or {"x": next(values)})
    assert len(log.records) == 4
    jax.tree.map(np.testing.assert_array_equal, variables, seen[1])


@pytest.mark.parametrize("solver", FITS)
def test_an_interrupted_run_carries_its_last_sweep(solver):
    after = {}

    def validate(variables):
        if len(after) == 2:
            raise KeyboardInterrupt
        after[len(after)] = variables
        return {"x": 0.0}

    with pytest.raises(jr.train.Interrupted) as stopped:
        FITS[solver](interactions(), sweeps=5, tolerance=None, validate=validate)
    assert len(stopped.value.log.records) == 2
    jax.tree.map(np.testing.assert_array_equal, stopped.value.state, after[1])


@pytest.mark.parametrize("solver", FITS)
def test_sizes_are_integers_of_any_library(solver):
    fit = partial(FITS[solver], interactions(), tolerance=None)
    one = fit(dim=np.int64(2), sweeps=np.int32(2), every=np.int64(5))
    jax.tree.map(np.testing.assert_array_equal, one[1], fit(dim=2, sweeps=2)[1])
    for name, value in (("sweeps", 2.0), ("sweeps", "2"), ("every", 0.5), ("dim", 2.0), ("dim", "2")):
        with pytest.raises(ValueError, match=f"^{name}=.*integer"):
            fit(**{name: value})
    for value in (float("nan"), -1e-3):
        with pytest.raises(ValueError, match=r"^tolerance=.*; give a finite number of 0 or more"):
            fit(tolerance=value)
    with pytest.raises(ValueError, match=r"^regularization=nan"):
        fit(regularization=np.float32("nan"))
    nothing = jr.Interactions.from_pairs([0, 1], [0, 1], weights=[0.0, 0.0], n_users=M, n_items=N)
    with pytest.raises(ValueError, match=r"train.weights are all 0"):
        FITS[solver](nothing)
    with pytest.raises(TypeError, match="stopping='ndcg@10'; give"):
        fit(stopping="ndcg@10", validate=lambda variables: {})


def test_a_solver_is_a_function():
    with pytest.raises(TypeError, match=r"solver='cholesky'; give a function, such as .*ials.cholesky"):
        FITS["ials"](interactions(), solver="cholesky")


@pytest.mark.deep
def test_numbers_of_single_precision_work_in_double_precision():
    train, single = interactions(), {name: np.float32(0.25) for name in IALS}
    double = dict.fromkeys(IALS, 0.25)
    with jax.enable_x64(True):
        fits = [ials.fit(train, dim=2, key=KEY, sweeps=1, progress=False, **numbers)[1] for numbers in (single, double)]
        jax.tree.map(np.testing.assert_array_equal, *fits)
        np.testing.assert_array_equal(ials.fold_in(fits[0], train, **single), ials.fold_in(fits[0], train, **double))
        assert ials.objective(fits[0], train, **single) == ials.objective(fits[0], train, **double)


def test_a_misspelt_option_is_named_with_the_right_one():
    train = jr.Interactions.from_pairs([0, 1], [0, 1])
    fit = partial(jr.solvers.ials.fit, train, dim=1, key=jax.random.key(0), regularization=0.1, unobserved_weight=0.1)
    for wrong, hint in (("progess", r"did you mean progress=\?"), ("epochs", r"did you mean sweeps=\?")):
        with pytest.raises(TypeError, match=f"unexpected keyword argument {wrong}=3; {hint}"):
            fit(**{wrong: 3})
    with pytest.raises(TypeError, match="unexpected keyword argument epoch=3"):  # an argument of the loop's function
        fit(epoch=3)
