"""Models of distances and the objectives that train them, against loops in NumPy."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TX

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.interactions import Interactions
from jaxrec.models import DPCML, LRML, MF, TransCF, negative_squared_distance
from jaxrec.models.mf import against_all

N_USERS, N_ITEMS, DIM = 6, 5, 3  # user 3 and item 4 have no interactions
PAIRS = np.array([0, 0, 0, 1, 2, 2, 4, 5, 5]), np.array([0, 1, 3, 1, 2, 3, 0, 1, 2])
TRAIN = Interactions.from_pairs(*PAIRS, weights=np.arange(1, 10), n_users=N_USERS, n_items=N_ITEMS)
USERS, ITEMS = np.meshgrid(np.arange(N_USERS), np.arange(N_ITEMS), indexing="ij")
ZERO = jnp.zeros(1, jnp.int32)
MODELS = {
    "transcf": TransCF(TRAIN, dim=DIM),
    "lrml": LRML(N_USERS, N_ITEMS, dim=DIM, slots=4),
    "dpcml": DPCML(N_USERS, N_ITEMS, dim=DIM, n_vectors=3),
}
every_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def drawn(model):
    """The variables of `init`, with normal parameters of float64."""
    variables = jax.jit(model.init)(jax.random.key(0), ZERO, ZERO)
    rng = np.random.default_rng(0)
    return {**variables, "params": jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), variables["params"])}


def neighbours(params, user, item):
    """The means over the items of each user, and over the users of each item."""
    own, theirs = PAIRS[1][PAIRS[0] == user], PAIRS[0][PAIRS[1] == item]
    near_user = params["item"][own].mean(0) if len(own) else np.zeros(DIM)
    return near_user, params["user"][theirs].mean(0) if len(theirs) else np.zeros(DIM)


def transcf(params, user, item):
    near_user, near_item = neighbours(params, user, item)
    return -sum((params["user"][user] + near_user * near_item - params["item"][item]) ** 2)


def neighbourhood(params, user, item):
    near_user, near_item = neighbours(params, user, item)
    return sum((params["user"][user] - near_user) ** 2) + sum((params["item"][item] - near_item) ** 2)


def lrml(params, user, item, related=None):
    u, v, w = params["user"][user], params["item"][item], params["item"][item if related is None else related]
    weights = np.exp([k @ (u * w) for k in params["keys"]])
    relation = sum(a * m for a, m in zip(weights / weights.sum(), params["memory"]))
    return -np.sqrt(sum((u + relation - v) ** 2) + 1e-3)


def dpcml(params, user, item):
    return -min(sum((vector - params["item"][item]) ** 2) for vector in params["user"][user])


SCORES = {"transcf": transcf, "lrml": lrml, "dpcml": dpcml}


# ---------------------------------------------------------------------- scores


@pytest.mark.deep
@every_model
def test_pairs_rows_and_vectors_give_the_formula(name):
    model, score = MODELS[name], SCORES[name]
    with jax.enable_x64(True):
        variables = drawn(model)
        expected = np.vectorize(partial(score, variables["params"]))(USERS, ITEMS)
        users = np.array([3, 1, 5])

        @jax.jit
        def all_ways(variables):
            tables = model.apply(variables, method="vectors") if hasattr(model, "vectors") else None
            pairs = model.apply(variables, USERS, ITEMS), model.apply(variables, USERS[:, :1], ITEMS)
            return tables, pairs, model.apply(variables, users, method="rows")

        tables, pairs, rows = all_ways(variables)
    np.testing.assert_allclose(rows, expected[users], rtol=1e-12)
    for found in (*pairs, expected if tables is None else np.asarray(tables[0]) @ np.asarray(tables[1]).T):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert (tables is None) == (name in ("lrml", "dpcml"))


def test_translations_and_the_regulariser_of_neighbourhoods_by_hand():
    """User 0 has items 0 and 1. Item 1 has users 0 and 1."""
    train = Interactions.from_pairs([0, 0, 1], [0, 1, 1])
    params = {"user": np.array([[1.0, 0.0], [3.0, 2.0]]), "item": np.array([[2.0, 1.0], [0.0, 1.0]])}
    model = TransCF(train, dim=2)
    with jax.enable_x64(True):
        variables = {**drawn(model), "params": params}
        score, apart = jax.jit(partial(model.apply, method="regularised"))(variables, 0, 1)
    assert float(score) == pytest.approx(-9)  # ū = (1, 1), v̄ = (2, 1): (1, 0) + (2, 1) − (0, 1) = (3, 0)
    assert float(apart) == pytest.approx(1 + 4)  # (1, 0) − ū = (0, −1) and (0, 1) − v̄ = (−2, 0)


def test_gradients_of_transcf_go_through_the_neighbourhoods():
    model = MODELS["transcf"]
    slopes = np.random.default_rng(1).normal(size=USERS.shape)
    met = np.zeros(USERS.shape)
    met[PAIRS] = 1
    by_user, by_item = (m / np.maximum(m.sum(1, keepdims=True), 1) for m in (met, met.T))

    def by_dense(params):
        relation = (by_user @ params["item"])[:, None] * (by_item @ params["user"])[None]
        return -(slopes * ((params["user"][:, None] + relation - params["item"][None]) ** 2).sum(-1)).sum()

    with jax.enable_x64(True):
        variables = drawn(model)

        def value(params):
            return (slopes * model.apply({**variables, "params": params}, USERS, ITEMS)).sum()

        found, expected = (jax.jit(jax.grad(f))(variables["params"]) for f in (value, by_dense))
    for name in ("user", "item"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-12)


@pytest.mark.deep
def test_a_relation_may_be_that_of_another_item():
    model = MODELS["lrml"]
    with jax.enable_x64(True):
        variables = drawn(model)
        users, items, related = np.array([[[4]], [[0]]]), np.array([[[1, 2, 0]], [[0, 4, 3]]]), np.array([[[3], [2]]])
        found = jax.jit(model.apply)(variables, users, items, related)
    expected = np.vectorize(partial(lrml, variables["params"]))(users, items, related)
    assert found.shape == (2, 2, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("width", [1, 2**19, 2**30], ids=["all at once", "two at a time", "one at a time"])
def test_rows_do_not_depend_on_how_many_users_are_scored_at_a_time(width):
    users, items = jnp.arange(15.0).reshape(5, 3), jnp.cos(jnp.arange(12.0)).reshape(4, 3)
    found = against_all(lambda u, v: (u[0] * v[1]).sum(-1), (users,), (0 * items, items), width=width)
    np.testing.assert_allclose(found, np.asarray(users) @ np.asarray(items).T, rtol=1e-5)


@every_model
@pytest.mark.parametrize(
    ("users", "items"),
    [
        (np.array([4, 1, 0]), np.array([2, 3, 3])),
        (np.array([[4], [1], [0]]), np.array([[0, 2]])),
        (np.array([[4, 1, 0]]), np.array([[0], [2]])),
        (np.array(4), np.array(1)),
    ],
)
def test_pairs_of_any_shape_broadcast(name, users, items):
    variables = drawn(MODELS[name])
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), variables["params"])
    scores = jax.jit(MODELS[name].apply)({**variables, "params": params}, users, items)
    assert scores.shape == np.broadcast_shapes(users.shape, items.shape) and scores.dtype == jnp.float32
    expected = np.vectorize(partial(SCORES[name], variables["params"]))(users, items)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.deep
def test_parameters_have_the_stated_shapes_and_scale():
    train = Interactions.from_pairs([0, 299], [199, 0], n_users=300, n_items=200)
    shapes = {"user": (300, 64), "item": (200, 64)}
    for model, scale, more in (
        (TransCF(train), 0.01, {}),
        (LRML(300, 200), 0.1, {"keys": (20, 64), "memory": (20, 64)}),
        (DPCML(300, 200), 0.1, {"user": (300, 5, 64)}),
    ):
        params = jax.jit(model.init)(jax.random.key(0), ZERO, ZERO)["params"]
        assert {name: table.shape for name, table in params.items()} == shapes | more
        assert all(float(table.std()) == pytest.approx(scale, rel=0.06) for table in params.values())
        assert model == model.clone() and hash(model) == hash(model.clone()) and model != model.clone(dim=32)


def test_the_graph_is_an_argument_of_compiled_programs():
    model = MODELS["transcf"]
    variables = drawn(model)
    assert variables["graph"]["by_item"].indices.shape == (TRAIN.n_pairs,)
    consts = jax.make_jaxpr(lambda v: model.apply(v, USERS[:, :1], ITEMS))(variables).consts
    assert TRAIN.n_pairs not in [np.size(c) for c in consts]


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (partial(TransCF, TRAIN), "dim", 0),
        *((partial(LRML, **{"n_users": 2, "n_items": 2} | {name: 0}), name, 0) for name in ("n_users", "n_items")),
        (partial(LRML, 2, 2), "dim", -1),
        (partial(LRML, 2, 2), "slots", 0),
    ],
)
def test_wrong_values_are_named(make, name, value):
    with pytest.raises(ValueError, match=f"{name}={value}; give"):
        make(**{name: value})


@every_model
def test_float_ids_are_refused(name):
    with pytest.raises(AssertionError):
        MODELS[name].apply(drawn(MODELS[name]), np.array([0.0], np.float32), np.array([1]))


# ---------------------------------------------------------------------- objectives

KEY = jax.random.key(1)
BATCH = jr.train.Batch.of(jnp.array([0, 4, 2]), jnp.array([1, 0, 3]), where=jnp.array([True, True, False]))
GROUPS = jr.train.Batch.of(
    jnp.array([0, 5]),
    jnp.array([[1, 3, 0], [2, 1, 0]]),
    weights=jnp.array([[1.0, 2.0, 3.0], [1.0, 4.0, 9.0]]),
    where=jnp.array([[True, True, True], [True, True, False]]),
)
batches = pytest.mark.parametrize("batch", [BATCH, GROUPS], ids=["single", "groups"])


def pairs_of(batch):
    """(row, user, item, weight) of the positives that count."""
    items, where = np.asarray(batch.items), np.asarray(batch.where)
    weights = np.ones(items.shape) if batch.weights is None else np.asarray(batch.weights)
    return [(b, int(batch.users[b, 0]), items[b, p], weights[b, p]) for b, p in zip(*where.nonzero())]


def sample(shared):
    draw = partial(jr.sampling.uniform, n_items=N_ITEMS, n=4)
    return partial(jr.sampling.shared, sample=draw) if shared else draw


def negatives_of(batch, shared):
    found = np.asarray(sample(shared)(jax.random.split(KEY)[0], batch.users[:, 0]))
    return np.broadcast_to(found, (len(batch.users), 4))


def weighted_mean(values, batch):
    return np.average(values, weights=[weight for *_, weight in pairs_of(batch)])


@pytest.mark.deep
@pytest.mark.parametrize(("batch", "shared"), [(BATCH, False), (GROUPS, True)], ids=["single", "groups, shared"])
def test_negatives_use_the_relation_of_the_positive(batch, shared):
    model, loss = MODELS["lrml"], partial(jr.losses.hinge, margin=0.7)
    variables = drawn(model)
    negatives = negatives_of(batch, shared)
    values = []
    for b, user, item, _ in pairs_of(batch):
        scores = [lrml(variables["params"], user, j, related=item) for j in negatives[b]]
        values.append(np.mean([max(0, 0.7 - lrml(variables["params"], user, item) + s) for s in scores]))
    objective = partial(jr.train.relation_objective, model=model, loss=loss, sample=sample(shared))
    with jax.enable_x64(True):
        found = jax.jit(objective)(variables, KEY, batch)
    assert float(found) == pytest.approx(weighted_mean(values, batch), rel=1e-12) and np.count_nonzero(values) > 1


@pytest.mark.deep
@pytest.mark.parametrize(("batch", "shared"), [(BATCH, False), (GROUPS, True)], ids=["single", "groups, shared"])
def test_sml_compares_users_positives_and_negatives(batch, shared):
    rng = np.random.default_rng(2)
    params = drawn(MODELS["transcf"])["params"] | {
        "user_margin": rng.uniform(size=N_USERS),
        "item_margin": rng.uniform(size=N_ITEMS),
    }
    loss = partial(jr.losses.sml, weight=0.3, margin_weight=0.2)
    negatives = negatives_of(batch, shared)
    values = []
    for b, user, item, _ in pairs_of(batch):
        u, v = params["user"][user], params["item"][item]
        own, of_item = params["user_margin"][user], params["item_margin"][item]
        pull, rows = sum((u - v) ** 2), params["item"][negatives[b]]
        to_user = np.maximum(pull - ((u - rows) ** 2).sum(1) + own, 0).mean()
        to_item = np.maximum(pull - ((v - rows) ** 2).sum(1) + of_item, 0).mean()
        values.append(to_user + 0.3 * to_item - 0.2 * (own + of_item))
    objective = partial(jr.train.sml_objective, key=KEY, batch=batch, sample=sample(shared), loss=loss)
    with jax.enable_x64(True):
        found, gradient = jax.jit(jax.value_and_grad(objective))({"params": params})
    assert float(found) == pytest.approx(weighted_mean(values, batch), rel=1e-12)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradient))


@batches
def test_covariance_is_that_of_users_and_positives_jointly(batch):
    params = drawn(MODELS["transcf"])["params"]
    pairs = pairs_of(batch)
    users, items = sorted({(b, user) for b, user, *_ in pairs}), [item for _, _, item, _ in pairs]
    rows = np.concatenate([params["user"][[user for _, user in users]], params["item"][items]])
    moments = np.cov(rows.T, bias=True)
    with jax.enable_x64(True):
        found = jax.jit(jr.train.covariance_objective)({"params": params}, KEY, batch)
    assert float(found) == pytest.approx((moments**2).sum() - (np.diag(moments) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize(("least", "most", "expected"), [(2.0, 3.0, 0.5), (0.05, 0.25, 1.25), (1.0, 2.0, 0.0)])
def test_vectors_of_a_user_are_kept_within_bounds_of_their_spread(least, most, expected):
    """A user has three vectors with the squared distances 1, 4 and 4. Over ordered pairs, δ is 18 / 12."""
    vectors = np.array([[[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3.75)]], [[9.0, 9.0], [0.0, 0.0], [7.0, 7.0]]])
    batch = jr.train.Batch.of(jnp.array([0, 1]), jnp.array([1, 0]), where=jnp.array([True, False]))
    objective = partial(jr.train.diversity_objective, least=least, most=most)
    found = jax.jit(objective)({"params": {"user": vectors.astype(np.float32)}}, KEY, batch)
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_only_the_nearest_vector_moves():
    model = DPCML(1, 2, dim=2, n_vectors=2)
    params = {"user": jnp.array([[[1.0, 0.0], [0.0, 1.0]]]), "item": jnp.array([[0.5, 0.25], [0.0, 0.5]])}
    gradient = jax.jit(jax.grad(lambda p: model.apply({"params": p}, np.array([0]), np.array([0]))[0]))(params)
    np.testing.assert_allclose(gradient["user"], [[[-1.0, 0.5], [0.0, 0.0]]])
    np.testing.assert_allclose(gradient["item"], [[1.0, -0.5], [0.0, 0.0]])


@pytest.mark.parametrize(("batch", "shared"), [(BATCH, False), (GROUPS, True)], ids=["single", "groups, shared"])
def test_translations_are_ranked_pulled_and_drawn_to_their_neighbourhoods(batch, shared):
    model = MODELS["transcf"]
    variables = drawn(model)
    params, negatives, values = variables["params"], negatives_of(batch, shared), []
    for b, user, item, _ in pairs_of(batch):
        pos, neg = transcf(params, user, item), np.array([transcf(params, user, j) for j in negatives[b]])
        values.append(np.maximum(1 - pos + neg, 0).mean() - 0.5 * pos + 2 * neighbourhood(params, user, item))
    options = {"model": model, "loss": jr.losses.hinge, "sample": sample(shared)}
    weights = {"distance_weight": 0.5, "neighbourhood_weight": 2.0}
    with jax.enable_x64(True):
        found = jax.jit(partial(jr.train.translation_objective, **options, **weights))(variables, KEY, batch)
    assert float(found) == pytest.approx(weighted_mean(values, batch), rel=1e-12)


@pytest.mark.deep
@batches
def test_objectives_add_up(batch):
    model = MODELS["transcf"]
    variables = drawn(model)
    rank = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.hinge, sample=sample(False))
    parts = ((0.5, rank), (0.1, jr.train.covariance_objective))
    with jax.enable_x64(True):
        found = jax.jit(partial(jr.train.combined_objective, parts=parts))(variables, KEY, batch)
        one, other = (float(jax.jit(objective)(variables, KEY, batch)) for _, objective in parts)
    assert float(found) == pytest.approx(0.5 * one + 0.1 * other, rel=1e-12) and one * other != 0


def test_combined_objective_refuses_no_parts():
    with pytest.raises(ValueError, match="parts is empty"):
        jr.train.combined_objective({}, KEY, BATCH, parts=())


# ---------------------------------------------------------------------- training

BOARD, DIAGONAL = synthetic.checkerboard(30)
DRAW = partial(jr.sampling.uniform, n_items=30, n=4)
DISTANCE = MF(30, 30, dim=8, score=negative_squared_distance, scale=8**-0.5)
TRANSCF, RELATIONAL = TransCF(BOARD, dim=8, scale=0.1), LRML(30, 30, dim=8, slots=5)
SEVERAL = DPCML(30, 30, dim=8, n_vectors=3)


def pairwise(model, loss):
    return partial(jr.train.pairwise_objective, model=model, loss=loss, sample=DRAW)


WITH_COVARIANCE = ((1.0, pairwise(DISTANCE, partial(jr.losses.warp, n_items=30))), (0.1, jr.train.covariance_objective))
TRANSLATED = {"distance_weight": 0.01, "neighbourhood_weight": 0.01, "loss": jr.losses.hinge, "sample": DRAW}
WITH_DIVERSITY = ((1.0, pairwise(SEVERAL, jr.losses.hinge)), (10.0, jr.train.diversity_objective))
METHODS = {
    "dpcml": (SEVERAL, partial(jr.train.combined_objective, parts=WITH_DIVERSITY)),
    "cml": (DISTANCE, partial(jr.train.combined_objective, parts=WITH_COVARIANCE)),
    "transcf": (TRANSCF, partial(jr.train.translation_objective, model=TRANSCF, **TRANSLATED)),
    "lrml": (RELATIONAL, partial(jr.train.relation_objective, model=RELATIONAL, loss=jr.losses.hinge, sample=DRAW)),
    "sml": (DISTANCE, partial(jr.train.sml_objective, sample=DRAW, loss=partial(jr.losses.sml, margin_weight=0.01))),
}


@pytest.mark.deep
@pytest.mark.parametrize("name", METHODS)
def test_recovers_the_diagonal_withheld_from_the_checkerboard(name):
    model, objective = METHODS[name]
    margins = {"user_margin": jnp.ones(30), "item_margin": jnp.ones(30)} if name == "sml" else {}
    state = jr.train.init(jax.random.key(0), model, TX, parameters=margins)
    state, log = jr.train.fit(state, objective, TX, BOARD, epochs=40, batch_size=128, progress=False)
    report = jr.evaluate.full_ranking(model, state.variables, BOARD, DIAGONAL, ks=(1,))
    assert report.means["hit_rate@1"] == 1
    assert log.records[-1]["loss"] < log.records[0]["loss"]
    assert all((np.asarray(state.variables["params"][margin]) != 1).any() for margin in margins)
