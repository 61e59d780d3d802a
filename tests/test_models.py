"""Models: pairs, rows and vectors agree with one another and with the formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxrec as jr
from jaxrec import models
from jaxrec.interactions import Interactions

N_USERS, N_ITEMS, DIM = 5, 7, 3
HISTORY = Interactions.from_pairs([0, 0, 1], [0, 2, 1])
USERS, ITEMS = np.meshgrid(np.arange(N_USERS), np.arange(N_ITEMS), indexing="ij")


def _cosine(u, v):
    lengths = np.linalg.norm(u, axis=-1)[:, None] * np.linalg.norm(v, axis=-1)
    return np.divide(u @ v.T, lengths, out=np.zeros(lengths.shape), where=lengths > 0)


SCORES = {
    "dot": lambda u, v: u @ v.T,
    "cosine": _cosine,
    "negative_squared_distance": lambda u, v: -((u[:, None] - v[None]) ** 2).sum(-1),
}


@pytest.fixture(params=SCORES)
def factorised(request):
    """A model, its variables (user 1 and item 2 are zero vectors), and all its scores by NumPy in float64."""
    model = models.MF(N_USERS, N_ITEMS, dim=DIM, score=getattr(models, request.param), scale=1.0)
    variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    tables = {name: np.array(table) for name, table in variables["params"].items()}
    tables["user"][1] = tables["item"][2] = 0
    expected = SCORES[request.param](tables["user"].astype(float), tables["item"].astype(float))
    return model, {"params": tables}, expected


@pytest.mark.deep
def test_pairs_rows_and_vectors_give_the_formula(factorised):
    model, variables, expected = factorised
    close = dict(rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.apply(variables, np.arange(N_USERS), method="rows"), expected, **close)
    np.testing.assert_allclose(model.apply(variables, np.array([3, 1]), method="rows"), expected[[3, 1]], **close)
    user_table, item_table = model.apply(variables, method="vectors")
    assert len(user_table) == N_USERS and len(item_table) == N_ITEMS
    np.testing.assert_allclose(user_table @ item_table.T, expected, **close)


@pytest.mark.parametrize(
    "users, items",
    [
        (np.array([4, 1, 0]), np.array([2, 6, 3])),
        (np.array([[4], [1]]), np.array([[0, 2, 6], [6, 5, 1]])),
        (np.array([[4], [1], [0]]), np.array([[0, 2]])),
        (np.array([[4, 1, 0]]), np.array([[0], [2]])),
        (np.array(4), np.array(3)),
        (np.array([[[4]], [[0]]]), np.array([[[1, 2]], [[0, 5]]])),
        (USERS, ITEMS),  # more pairs than items: the mapped table
        (np.arange(5)[:, None], ITEMS),
        (np.array([[2]]), np.arange(N_ITEMS)[None].repeat(2, 0)),
        (np.tile(USERS, (2, 1, 1)), np.tile(ITEMS, (2, 1, 1))),
    ],
    ids=lambda ids: "x".join(map(str, ids.shape)) or "scalar",
)
def test_pairs_of_any_shape_broadcast(factorised, users, items):
    model, variables, expected = factorised
    scores = jax.jit(model.apply)(variables, users, items)
    assert scores.shape == np.broadcast_shapes(users.shape, items.shape) and scores.dtype == jnp.result_type(float)
    np.testing.assert_allclose(scores, expected[users, items], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("copies", [1, N_ITEMS], ids=["mapped rows", "mapped table"])
def test_gradients_are_finite_at_zero_vectors_and_those_of_rows(factorised, copies):
    model, variables, _ = factorised
    users, items = np.array([[1], [0]]), np.array([[2, 3, 4], [2, 2, 5]])
    of_rows = jax.grad(lambda v: model.apply(v, users[:, 0], method="rows")[np.arange(2)[:, None], items].sum())
    of_pairs = jax.grad(lambda v: model.apply(v, users, np.tile(items, copies)).sum() / copies)
    gradient = jax.jit(of_pairs)(variables)["params"]
    for name, expected in jax.jit(of_rows)(variables)["params"].items():
        assert np.isfinite(gradient[name]).all()
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-5, atol=1e-5)
    if model.score is models.cosine:
        assert (gradient["user"][1] == 0).all() and (gradient["item"][2] == 0).all()
    assert (gradient["user"][0] != 0).any()


def test_float_ids_are_refused(factorised):
    model, variables, _ = factorised
    with pytest.raises(AssertionError):
        model.apply(variables, np.array([0.0], np.float32), np.array([1]))


@pytest.mark.deep
def test_parameters_have_the_stated_shapes_and_scale():
    for scale in (0.01, 1e-4):
        model = models.MF(300, 200, dim=50, scale=scale)
        parameters = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))["params"]
        assert {name: table.shape for name, table in parameters.items()} == {"user": (300, 50), "item": (200, 50)}
        for table in parameters.values():
            assert table.dtype == jnp.result_type(float)
            assert float(table.std()) == pytest.approx(scale, rel=0.03) and abs(table.mean()) < 0.05 * scale
    again = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))["params"]
    np.testing.assert_array_equal(again["user"], parameters["user"])
    assert not np.array_equal(parameters["user"][:200], parameters["item"])


def test_equal_models_are_one_static_argument():
    traced = []

    def rows(model, variables, users):
        traced.append(model)
        return model.apply(variables, users, method="rows")

    jitted = jax.jit(rows, static_argnums=0)
    variables = {"params": {"user": jnp.ones((3, 2)), "item": jnp.ones((4, 2))}}
    for _ in range(2):
        jitted(models.MF(3, 4, dim=2, score=models.cosine), variables, np.array([0]))
    assert len(traced) == 1
    assert models.MF(3, 4, dim=2) == models.MF(3, 4, dim=2) and hash(models.MF(3, 4)) == hash(models.MF(3, 4))
    assert models.MF(3, 4, dim=2) != models.MF(3, 4, dim=2, score=models.cosine)
    assert models.MF(3, 4, dim=2) != models.MF(3, 5, dim=2)


# ---------------------------------------------------------------------- rankers that learn nothing

DENSE = np.array([[1, 0, 1, 1], [1, 0, 0, 1], [1, 0, 0, 0]])
RANKERS = {
    "popularity": lambda: models.popularity(Interactions.from_pairs(*DENSE.nonzero(), n_items=4)),
    "item_id": lambda: models.item_id(4),
    "random": lambda: models.random(jax.random.key(0), 4),
}


@pytest.mark.parametrize("ranker", RANKERS.values(), ids=RANKERS)
def test_pairs_are_rows_for_trivial_rankers(ranker):
    model, variables = ranker()
    rows = np.asarray(model.apply(variables, np.array([2, 0, 1]), method="rows"))
    assert rows.shape == (3, 4) and rows.dtype == jnp.result_type(float)
    items = np.array([[3, 1], [0, 0], [2, 1]])
    pairs = model.apply(variables, np.array([[2], [0], [1]]), items)
    np.testing.assert_array_equal(pairs, np.take_along_axis(rows, items, axis=1))
    np.testing.assert_array_equal(model.apply(variables, np.array([2, 0, 1]), items[:, 0]), rows[range(3), items[:, 0]])
    initial = model.init(jax.random.key(1), jnp.array([0]), jnp.array([0]))
    assert jax.tree.map(jnp.shape, initial) == jax.tree.map(jnp.shape, variables)
    assert jax.tree.map(lambda x: x.dtype, initial) == jax.tree.map(lambda x: x.dtype, variables)


def test_popularity_counts_users_and_item_id_counts_ids():
    model, variables = RANKERS["popularity"]()
    np.testing.assert_array_equal(model.apply(variables, np.array([0, 9]), method="rows"), [[3, 0, 1, 2]] * 2)
    for descending, best_first in ((False, [0, 1, 2, 3]), (True, [3, 2, 1, 0])):
        model, variables = models.item_id(4, descending=descending)
        row = model.apply(variables, np.array([1]), method="rows")[0]
        assert np.argsort(-np.asarray(row)).tolist() == best_first


def test_random_scores_are_uniform_and_depend_on_seed_user_and_item():
    model, variables = models.random(jax.random.key(0), 400)
    users = np.arange(50)
    rows = np.asarray(model.apply(variables, users, method="rows"), float)
    np.testing.assert_array_equal(model.apply(models.random(jax.random.key(0), 400)[1], users, method="rows"), rows)
    other = np.asarray(model.apply(models.random(jax.random.key(1), 400)[1], users, method="rows"), float)
    assert rows.min() >= 0 and rows.max() < 1
    assert scipy.stats.kstest(rows.ravel(), "uniform").pvalue > 0.001
    for table in (rows, rows.T):  # neighbouring ids are uncorrelated: 20 000 pairs have a standard error of .007
        assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(rows.ravel(), other.ravel())[0, 1]) < 0.03
    best = rows.argmax(1)
    assert len(set(best)) > 40 and abs(best.mean() - 199.5) < 4 * 115.5 / np.sqrt(50)


@pytest.mark.deep
def test_dropout_follows_the_normalisation_keeps_the_mean_and_needs_a_key():
    model = models.MF(N_USERS, N_ITEMS, dim=64, score=models.cosine, scale=1.0, dropout=0.25)
    variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    plain = models.MF(N_USERS, N_ITEMS, dim=64, score=models.cosine, scale=1.0).apply(variables, USERS, ITEMS)
    np.testing.assert_array_equal(model.apply(variables, USERS, ITEMS), plain)

    def drawn(key):
        return model.apply(variables, USERS, ITEMS, rngs={"dropout": key})

    many = np.asarray(jax.vmap(drawn)(jax.random.split(jax.random.key(1), 4000)))
    assert many.std(0).min() > 0.01
    np.testing.assert_allclose(many.mean(0), plain, atol=0.02)
    same = {"params": {"user": variables["params"]["item"][:N_USERS], "item": variables["params"]["item"]}}
    own = model.apply(same, np.arange(N_USERS), np.arange(N_USERS), rngs={"dropout": jax.random.key(2)})
    assert float(own.max()) > 1  # a cosine of 1, scaled up: the clip of the positive term is reached


# ---------------------------------------------------------------------- wrong input


@pytest.mark.parametrize("name", ["n_users", "n_items", "dim"])
def test_mf_refuses_sizes_below_one(name):
    with pytest.raises(ValueError, match=f"^{name}=0; give an integer of 1 or more"):
        models.MF(**{"n_users": 2, "n_items": 2, "dim": 2, name: 0})


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (partial(models.MF, 2, 2), "score"),
        (partial(models.MARS, 2, 2), "facets"),
        (partial(models.MAR, 2, 2), "place"),
        (partial(models.MAR, 2, 2), "score"),
        (partial(models.VALID, 3), "gradient"),
        (partial(models.MacridVAE, 3), "attention"),
    ],
)
def test_the_name_of_a_function_is_refused(make, name):
    with pytest.raises(TypeError, match=f"^{name}='some'; give a function, such as .*jaxrec.models"):
        make(**{name: "some"})


MAKE = {
    "MF": partial(models.MF, n_users=3, n_items=4),
    "MARS": partial(models.MARS, n_users=3, n_items=4),
    "LRML": partial(models.LRML, n_users=3, n_items=4),
    "DPCML": partial(models.DPCML, n_users=3, n_items=4),
    "NeuMF": partial(models.NeuMF, n_users=3, n_items=4),
    "TransCF": partial(models.TransCF, HISTORY),
    "LightGCN": partial(models.LightGCN, HISTORY),
    "SimGCL": partial(models.SimGCL, HISTORY),
    "XSimGCL": partial(models.XSimGCL, HISTORY),
    "NCL": partial(models.NCL, HISTORY, clusters=1),
    "SimpleX": partial(models.SimpleX, n_users=3, n_items=4),
    "MultVAE": partial(models.MultVAE, n_items=3),
    "RecVAE": partial(models.RecVAE, n_items=3),
    "VALID": partial(models.VALID, n_items=3),
    "MacridVAE": partial(models.MacridVAE, n_items=3),
}
SIZES = [
    *((name, "dim") for name in MAKE),
    *((name, size) for name in ("MF", "MARS", "LRML", "DPCML", "NeuMF", "SimpleX") for size in ("n_users", "n_items")),
    *((name, "n_items") for name in ("MultVAE", "RecVAE", "VALID", "MacridVAE")),
    ("MARS", "n_facets"),
    ("LRML", "slots"),
    ("DPCML", "n_vectors"),
    *((name, "layers") for name in ("LightGCN", "SimGCL", "XSimGCL")),
    ("SimpleX", "length"),
    ("MultVAE", "width"),
    *(("VALID", size) for size in ("n_interests", "n_blocks", "width", "chunk")),
]


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_sizes_are_integers_of_any_library(name, size):  # None is a value of `length` and `chunk`
    for value in (np.int64(2), np.uint8(2), jnp.int32(2), np.array(2)):
        model = MAKE[name](**{size: value})
        assert type(getattr(model, size)) is int and model == MAKE[name](**{size: 2})
    for value in (2.0, np.float32(2), "2", -1, np.int64(-1), -2 if size in ("length", "chunk") else None):
        with pytest.raises(ValueError, match=f"^{size}=.*; give an integer of [01] or more"):
            MAKE[name](**{size: value})


@pytest.mark.parametrize(
    ("name", "number", "wrong"),
    [
        *((name, "scale", -1.0) for name in ("MF", "MARS", "LRML", "DPCML", "NeuMF", "TransCF", "LightGCN", "SimpleX")),
        *((name, "dropout", 1.0) for name in ("MF", "SimpleX", "MultVAE", "RecVAE", "VALID")),
        ("MARS", "theta_scale", -1.0),
        ("SimpleX", "gate", 1.5),
        ("RecVAE", "divergence_weight", -1.0),
        *(("VALID", name, 0.0) for name in ("temperature", "decoder_temperature", "deviation")),
    ],
)
def test_numbers_are_finite_and_within_their_bounds(name, number, wrong):
    for value in (np.float32(0.5), np.float64(0.5), jnp.float32(0.5)):
        model = MAKE[name](**{number: value})
        assert type(getattr(model, number)) is float and model == MAKE[name](**{number: 0.5})
    for value in (float("nan"), float("inf"), wrong, np.float32(wrong), "much", np.ones(2)):
        with pytest.raises(ValueError, match=rf"(?s)^{number}=.*; give "):
            MAKE[name](**{number: value})


@pytest.mark.deep
def test_attributes_that_cannot_be_hashed_are_named():
    with pytest.raises(TypeError, match=r"SimpleX.pool is a ndarray.*keep arrays in variables"):
        models.SimpleX(3, 4, pool=np.ones(3))
    with pytest.raises(ValueError, match=r"layers=\(64, 3.5\); give two or more integers"):
        models.NeuMF(3, 4, layers=(64, 3.5))
    model = models.NeuMF(3, 4, layers=[np.int64(4), jnp.int32(2)])
    assert hash(model) == hash(models.NeuMF(3, 4, layers=(4, 2)))
    traced = jax.vmap(lambda scale: models.MF(3, 4, scale=scale).init(jax.random.key(0), 0, 0)["params"]["user"])
    first, second = traced(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(2 * first, second, rtol=1e-6)


@pytest.mark.deep
def test_integer_draws_are_the_same_in_double_precision():
    users, items = np.arange(3)[:, None], np.arange(5)[None]
    found = {}
    for x64 in (False, True):
        with jax.enable_x64(x64):
            model, variables = models.random(jax.random.key(3), 5)
            assert variables["params"]["seed"].dtype == np.uint32
            assert jax.eval_shape(model.init, jax.random.key(0), 0, 0)["params"]["seed"].dtype == np.uint32
            found[x64] = np.asarray(model.apply(variables, users, items))
    np.testing.assert_array_equal(found[False], found[True])
    np.testing.assert_allclose(found[False][0, :2], [0.5409576, 0.3136879], atol=1e-7)


def test_nmf_is_the_same_in_double_precision_and_names_wrong_values():
    train = Interactions.from_pairs([0, 0, 1, 2, 2], [0, 1, 1, 0, 2])
    found = {}
    for x64 in (False, True):
        with jax.enable_x64(x64):
            found[x64] = jr.solvers.nmf.fit(
                train, dim=np.int64(2), key=jax.random.key(0), iterations=30, tolerance=1e-2
            )
    jax.tree.map(np.testing.assert_array_equal, found[False], found[True])
    make = partial(jr.solvers.nmf.fit, train, dim=2, key=jax.random.key(0))
    for name, value in (
        ("dim", 2.0),
        ("iterations", 0),
        ("regularization", float("nan")),
        ("regularization", np.float32(-1)),
        ("tolerance", float("nan")),
    ):
        with pytest.raises(ValueError, match=f"^{name}=.*; give"):
            make(**{name: value})
    with pytest.raises(ValueError, match="key is int"):
        make(key=0)
    negative = Interactions.from_pairs([0, 1], [0, 1], weights=[1.0, -2.0])
    with pytest.raises(ValueError, match=r"train.weights\[1\] is -2.0"):
        jr.solvers.nmf.fit(negative, dim=1, key=jax.random.key(0))
