"""RG2 without SGD: against dense float64 algebra, its closed form, and itself on a mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.solvers import rg2

M, N = 57, 41
KEY = jax.random.key(0)


def interactions(weighted=False):
    """A user and an item have no pair."""
    rng = np.random.default_rng(0)
    pairs = rng.random((M, N)) < 0.15
    pairs[3], pairs[:, 5] = False, False
    weights = rng.integers(1, 5, pairs.sum()) if weighted else None
    return jr.Interactions.from_pairs(*np.nonzero(pairs), weights=weights, n_users=M, n_items=N)


def dense(train):
    """R, the row weights W and the targets S of the squared form."""
    r = train.to_scipy().toarray().astype(np.float64)
    a = r.sum(1, keepdims=True)
    targets = np.where(a > 0, r * N / np.where(a > 0, a, 1) - 1, 0)
    return r, a / (2 * N * r.sum()), targets


def dense_objective(variables, train, regularization, alpha=0.0):
    user, item = (np.asarray(variables["params"][name], np.float64) for name in ("user", "item"))
    r, w, s = dense(train)
    ridge = (N * w * user**2).sum() + (item**2).sum() / (2 * N)
    extra = (r.sum(1) @ user**2).sum() + (r.sum(0) @ item**2).sum()
    extra = (r * (user @ item.T - 1) ** 2).sum() + regularization * extra
    return (w * (user @ item.T - s) ** 2).sum() + regularization * ridge + alpha / r.sum() * extra


def singular_values(train):
    _, w, s = dense(train)
    return np.linalg.svd(np.sqrt(w) * s, compute_uv=False)


def fitted(train, regularization, sweeps, dim=6, **more):
    more = {"tolerance": None, "progress": False, "key": KEY} | more
    return rg2.fit(train, dim=dim, regularization=regularization, sweeps=sweeps, **more)[1:]


@pytest.fixture(params=[False, True], ids=["binary", "weighted"])
def train(request):
    return interactions(request.param)


# ---------------------------------------------------------------------- alternating steps


@pytest.mark.deep
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_sweeps_equal_brute_force_weighted_least_squares(train, alpha):
    with jax.enable_x64(True):
        variables, _ = fitted(train, 0.1, 3, alpha=alpha, steps=20)
        item = np.array(jr.solvers._run.first_factors(KEY, train, 6, 0.1)["item"])
    r, w, s = dense(train)
    weight = w + alpha / r.sum() * r  # of each cell, and the weighted target
    target = w * s + alpha / r.sum() * r
    for _ in range(3):
        user = np.zeros((M, 6))
        for u in np.flatnonzero(w[:, 0]):
            system = item.T @ (weight[u][:, None] * item) + 0.1 * weight[u].sum() * np.eye(6)
            user[u] = np.linalg.solve(system, item.T @ target[u])
        for i in range(N):
            system = user.T @ (weight[:, [i]] * user) + 0.1 * weight[:, i].sum() * np.eye(6)
            item[i] = np.linalg.solve(system, user.T @ target[:, i])
    np.testing.assert_allclose(variables["params"]["user"], user, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(variables["params"]["item"], item, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("regularization", "alpha", "steps"), [(0.0, 0.0, 1), (0.1, 0.0, 1), (0.1, 0.1, 2)])
def test_objective_is_the_dense_one_and_never_rises(train, regularization, alpha, steps):
    """It does not rise in any half step, exact or not. A user and an item have no pairs."""
    with jax.enable_x64(True):
        variables, log = fitted(train, regularization, 40, alpha=alpha, steps=steps)
        values = np.array([[r["after_users"], r["objective"]] for r in log.records]).ravel()
        np.testing.assert_allclose(values[-1], dense_objective(variables, train, regularization, alpha), rtol=1e-10)
        zero = jax.tree.map(jnp.zeros_like, variables)
        for some in (variables, zero):
            value = rg2.objective(some, train, regularization=regularization, alpha=alpha)
            np.testing.assert_allclose(value, dense_objective(some, train, regularization, alpha), rtol=1e-10)
        first, log = fitted(train, regularization, 1, alpha=alpha, steps=steps)
        first["params"]["item"] = jr.solvers._run.first_factors(KEY, train, 6, 0.1)["item"]
        expected = dense_objective(first, train, regularization, alpha)
        np.testing.assert_allclose(log.records[0]["after_users"], expected, rtol=1e-10)
    assert np.diff(values).max() < 1e-12
    assert values[-1] < values[0]


def test_targets_and_item_vectors_sum_to_zero(train):
    """With the wrong sign in the items' right-hand side, the sum would not be 0."""
    np.testing.assert_allclose(dense(train)[2].sum(1), 0, atol=1e-12)
    with jax.enable_x64(True):
        item = np.asarray(fitted(train, 0.1, 2)[0]["params"]["item"])
    assert np.abs(item.sum(0)).max() < 1e-12 * np.linalg.norm(item)


@pytest.mark.deep
def test_single_precision_is_enough(train):
    """A Gram matrix of reduced precision would fail here."""
    with jax.enable_x64(True):
        exact = fitted(train, 0.1, 3)[0]["params"]
    single = rg2.fit(train, dim=6, regularization=0.1, sweeps=1, key=KEY, progress=False)[1]["params"]
    assert np.linalg.norm(single["item"].sum(0)) < 1e-4 * np.linalg.norm(single["item"])
    start = jnp.asarray(exact["item"], jnp.float32)
    user = rg2.fold_in({"params": {"item": start}}, train, regularization=0.1)
    with jax.enable_x64(True):
        expected = rg2.fold_in({"params": {"item": exact["item"]}}, train, regularization=0.1)
    np.testing.assert_allclose(user, expected, rtol=1e-4, atol=1e-5)


def test_row_weights_cancel():
    """Weights seven times as large give the same factors."""
    train = interactions(weighted=True)
    heavier = jr.Interactions.from_scipy(7 * train.to_scipy())
    with jax.enable_x64(True):
        one, seven = (fitted(data, 0.1, 3)[0]["params"] for data in (train, heavier))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), one, seven)


@pytest.mark.deep
def test_rows_without_pairs(train):
    params = fitted(train, 0.1, 2)[0]["params"]
    assert (np.asarray(params["user"][3]) == 0).all()
    assert np.isfinite(params["item"][5]).all()


def test_runs_end_by_tolerance_and_by_patience():
    train = interactions()
    _, log = fitted(train, 0.1, 500, tolerance=1e-4)
    assert 1 < len(log.records) < 100
    counts = iter([0.1, 0.3, 0.2, 0.2, 0.9])
    tables = []

    def validate(variables):
        tables.append(variables["params"])
        return {"ndcg@10": next(counts)}

    stopping = jr.train.EarlyStopping("ndcg@10", patience=2)
    variables, log = fitted(train, 0.1, 500, validate=validate, stopping=stopping)
    assert [r["ndcg@10"] for r in log.records] == [0.1, 0.3, 0.2, 0.2]  # a sweep is one record
    jax.tree.map(np.testing.assert_array_equal, variables["params"], tables[1])


@pytest.mark.deep
def test_same_key_same_factors_and_they_rank():
    train, test = synthetic.checkerboard(30)
    first, second = (fitted(train, 0.05, 20, dim=8)[0] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    report = jr.evaluate.full_ranking(jr.models.MF(30, 30, dim=8), first, train, test, ks=(1,))
    assert report.means["hit_rate@1"] > 0.9


# ---------------------------------------------------------------------- the closed form


def test_fixed_point_is_the_closed_form(train):
    regularization = 0.2 * singular_values(train)[0]
    with jax.enable_x64(True):
        variables, log = fitted(train, regularization, 400)
        solved = rg2.solve(train, dim=6, regularization=regularization, key=KEY, tolerance=1e-7)[1]
        optimum = rg2.objective(solved, train, regularization=regularization)
        assert abs(log.records[-1]["objective"] - optimum) < 1e-8
        grams = [np.asarray(p["item"].T @ p["item"]) for p in (variables["params"], solved["params"])]
    np.testing.assert_allclose(*map(np.linalg.eigvalsh, grams), rtol=1e-5)  # balanced alike


@pytest.mark.deep
def test_decomposition_equals_dense_svd(train):
    values = singular_values(train)
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, rg2.decompose(train, dim=9, key=KEY, tolerance=1e-9))
    np.testing.assert_allclose(found.values, values[:9], rtol=1e-10)
    assert found.residual.max() < 1e-9
    for vectors in (found.user, found.item):
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(9), atol=1e-9)


@pytest.mark.deep
def test_decomposition_of_full_rank_and_few_items():
    train = jr.Interactions.from_pairs([0, 0, 1, 2, 2, 3], [0, 1, 1, 0, 2, 1])
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, rg2.decompose(train, dim=3, key=KEY, tolerance=1e-9))
    assert np.isfinite(found.user).all() and found.values[2] < 1e-7  # rows sum to zero: the rank is below N


@pytest.mark.deep
def test_large_regularization_gives_zero(train):
    edge = np.sqrt(2) * singular_values(train)[0]
    decomposition = rg2.decompose(train, dim=6, key=KEY)
    above, below = (rg2.shrink(decomposition, regularization=edge * factor)["params"] for factor in (1.02, 0.98))
    assert (np.asarray(above["user"] @ above["item"].T) == 0).all()
    assert np.abs(below["user"] @ below["item"].T).max() > 0


@pytest.mark.deep
def test_one_decomposition_gives_every_optimum(train):
    """It serves smaller dimensions and other λ, also under vmap. Long alternation reaches the same objective."""
    with jax.enable_x64(True):
        decomposition = rg2.decompose(train, dim=6, key=KEY, tolerance=1e-8)
        path = jax.vmap(lambda x: rg2.shrink(decomposition, regularization=x, dim=4))(jnp.array([0.05, 0.4]))
        for place, regularization in enumerate((0.05, 0.4)):
            found = jax.tree.map(lambda table, place=place: table[place], path)
            optimum = rg2.objective(found, train, regularization=regularization)
            _, log = fitted(train, regularization, 600, dim=4)
            np.testing.assert_allclose(log.records[-1]["objective"], optimum, atol=1e-8)


# ---------------------------------------------------------------------- new users


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_fold_in_is_the_users_half_step(alpha):
    train = interactions()
    with jax.enable_x64(True):
        variables, _ = fitted(train, 0.3, 400, alpha=alpha)
        vectors = rg2.fold_in(variables, train, regularization=0.3, alpha=alpha)
    np.testing.assert_allclose(vectors, variables["params"]["user"], rtol=1e-5, atol=1e-8)
    assert (np.asarray(vectors[3]) == 0).all()


# ---------------------------------------------------------------------- a mesh


@pytest.mark.deep
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_mesh_gives_the_same(train, devices, alpha):
    """4 devices do not divide 57 users evenly."""
    mesh = Mesh(np.array(jax.devices("cpu")[:devices]), ("users",))
    single, sharded = fitted(train, 0.1, 4, alpha=alpha), fitted(train, 0.1, 4, alpha=alpha, mesh=mesh)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), single[0], sharded[0])
    np.testing.assert_allclose(single[1].column("objective")[1], sharded[1].column("objective")[1], rtol=1e-6)


# ---------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 42}, "dim=42 with 57 users and 41 items; give 1 to 41"),
        ({"dim": 0}, "dim=0"),
        ({"regularization": -1.0}, "regularization=-1.0; give a finite number of 0 or more"),
        ({"regularization": float("nan")}, "regularization=nan"),
        ({"sweeps": 0}, "sweeps=0; give an integer of 1 or more"),
        ({"alpha": -0.1}, "alpha=-0.1; give a finite number of 0 or more"),
        ({"steps": 0}, "steps=0; give an integer of 1 or more"),
        ({"stopping": jr.train.EarlyStopping("ndcg@10")}, "validate is None"),
        ({"mesh": Mesh(np.array(jax.devices("cpu")).reshape(2, 2), ("a", "b"))}, "single axis"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        rg2.fit(interactions(), **({"dim": 6, "regularization": 0.1, "key": KEY, "progress": False} | change))


@pytest.mark.deep
def test_wrong_data_are_refused():
    negative = jr.Interactions.from_pairs([0, 1, 2], [0, 1, 2], weights=[1.0, -2.0, 1.0])
    with pytest.raises(ValueError, match=r"train.weights\[1\] is -2.0 .* finite and 0 or more"):
        rg2.fit(negative, dim=1, regularization=0.1, key=KEY)
    with pytest.raises(ValueError, match="train has no pairs"):
        rg2.solve(negative.select(np.zeros(3, bool)), dim=1, regularization=0.1, key=KEY)
    few = jr.Interactions.from_pairs([0, 1, 2, 3], [0, 0, 1, 1], n_items=4)
    with pytest.raises(ValueError, match="raise regularization"):
        rg2.fit(few, dim=4, regularization=0.0, key=KEY, sweeps=9, tolerance=None, progress=False)
    _, variables, _ = rg2.solve(few, dim=1, regularization=0.1, key=KEY)
    with pytest.raises(ValueError, match="histories have 41 items and variables 4"):
        rg2.fold_in(variables, interactions(), regularization=0.1)
    with pytest.raises(ValueError, match="dim=3, and the decomposition has 2"):
        rg2.shrink(rg2.decompose(few, dim=2, key=KEY), regularization=0.1, dim=3)
    mesh = Mesh(np.array(jax.devices("cpu")), ("users",))
    three = jr.Interactions.from_pairs([0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="mesh has 4 devices and train 3 users"):
        rg2.fit(three, dim=1, regularization=0.1, key=KEY, mesh=mesh)


@pytest.mark.deep
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_objective_has_the_gradient_of_finite_differences(alpha):
    train = interactions(weighted=True)
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        point, move = ({"user": rng.normal(size=(M, 2)), "item": rng.normal(size=(N, 2))} for _ in range(2))

        def along(t, regularization, alpha):
            params = jax.tree.map(lambda x, d: x + t * d, point, move)
            return rg2.objective({"params": params}, train, regularization=regularization, alpha=alpha)

        start, step = (0.0, 0.2, alpha), 1e-5
        slopes = jax.grad(along, argnums=(0, 1))(*start)
        for at, slope in enumerate(slopes):
            near = [along(*(x + sign * step * (at == n) for n, x in enumerate(start))) for sign in (1, -1)]
            np.testing.assert_allclose(slope, (near[0] - near[1]) / (2 * step), rtol=1e-6)


@pytest.mark.deep
def test_sizes_of_the_closed_form_and_histories_without_weight():
    train = interactions()
    decomposition = rg2.decompose(train, dim=np.int64(2), key=KEY)
    variables = rg2.shrink(decomposition, regularization=0.1, dim=np.int64(1))
    assert variables["params"]["user"].shape == (M, 1)
    for name, value in (("passes", 0), ("oversample", -1), ("oversample", 1.5), ("dim", 2.0)):
        with pytest.raises(ValueError, match=f"^{name}="):
            rg2.decompose(train, **({"dim": 2, "key": KEY} | {name: value}))
    with pytest.raises(ValueError, match=r"^regularization=nan"):
        rg2.shrink(decomposition, regularization=float("nan"))
    nothing = jr.Interactions.from_pairs([0, 1], [0, 1], weights=[0.0, 0.0], n_users=2, n_items=N)
    for histories in (nothing, nothing.select(np.zeros(2, bool))):
        np.testing.assert_array_equal(rg2.fold_in(variables, histories, regularization=0.1), np.zeros((2, 1)))
