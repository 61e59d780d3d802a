"""VALID and MacridVAE as models: pairs and rows, evaluation and training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import TX
from support.valid import CLOSE, DENSE, PARAMS, TRAIN, TWO, USERS, M, N, applied, interactions

import jaxrec as jr
from jaxrec import metrics
from jaxrec.data import synthetic
from jaxrec.evaluate import _kernel
from jaxrec.models import VALID, MacridVAE, attention
from jaxrec.models.valid import collapse


@pytest.mark.deep
@pytest.mark.parametrize("blocks", [1, 2])
def test_pairs_of_any_shape_are_entries_of_rows(blocks, float64):
    model = TWO.clone(n_blocks=blocks)
    items = [[[0, 3], [1, 1], [11, 2], [2, 0], [5, 4]], [[4, 0, 2]], [4, 0, 2, 2, 11]]
    items = [np.array(block, np.int32) for block in items]

    def all_of_them(module, users, *, histories):
        return module.rows(users, histories=histories), [module(users, x, histories=histories) for x in items]

    rows, found = applied(model, USERS, method=all_of_them)
    assert rows.shape == (M, N)
    for block, scores in zip(items, found, strict=True):
        users = USERS if block.ndim == 1 else USERS[:, None]
        np.testing.assert_allclose(scores, np.asarray(rows)[users, block], **CLOSE)


@pytest.mark.deep
def test_users_are_scored_by_their_history(float64):
    """The user's id, their place in the batch and the padding do not matter."""
    model, order = TWO.clone(attention=attention.cosine), np.array([3, 0, 2, 2, 4, 1], np.int32)
    folded = applied(model, None, method="rows", histories=TRAIN.take(order, capacity=40))
    np.testing.assert_allclose(folded, np.asarray(applied(model, USERS, method="rows"))[order], **CLOSE)
    assert np.isfinite(folded).all()


@pytest.mark.deep
def test_lists_in_float32_are_those_in_float64():
    """At least 99.5 % of the top-20 sets of 200 users are the same, and evaluation uses the highest precision."""
    rng = np.random.default_rng(0)
    train = interactions(rng.random((200, 400)) < 0.05)
    model = VALID(400, dim=16, n_interests=3, width=8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), USERS[:1], USERS[:1])["params"]
    params = {name: rng.normal(size=leaf.shape) for name, leaf in shapes.items()}
    users, sets = np.arange(200, dtype=np.int32), []
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            drawn = jax.tree.map(dtype, params)
            rows = np.asarray(applied(model, users, method="rows", params=drawn, histories=train))
        assert rows.dtype == dtype
        sets.append(np.sort(np.argpartition(-rows, 20, axis=1)[:, :20]))
    assert (sets[0] == sets[1]).all(1).mean() >= 0.995
    assert len(np.unique(sets[0], axis=0)) > 190
    jaxpr = jax.make_jaxpr(partial(_kernel._rows, model))({"params": params}, users, train)
    text = str(jaxpr)
    assert text.count("dot_general") > 2 and text.count("dot_general") == text.count("precision=(Precision.HIGHEST")


@pytest.mark.deep
def test_recall_divides_by_all_relevant_items():
    """20 hits of 30 relevant items are a recall of 2/3 at 20. One relevant item at rank 2 has an NDCG of 0.63093."""
    assert float(metrics.recall(jnp.ones(20, bool), jnp.array(30), k=20)) == pytest.approx(2 / 3)
    assert float(metrics.ndcg(jnp.arange(20) == 1, jnp.array(1), k=20)) == pytest.approx(0.63093, abs=1e-5)


def test_full_ranking_masks_only_the_given_pairs():
    """A validation item is ranked first, a test item 21st. The paper masks only training items, RecBole both."""
    scores = -jnp.arange(30.0)[None]
    model = jr.evaluate.scorer(lambda table, users: table[users])
    train, valid, test = (jr.Interactions.from_pairs([0], [item], n_items=30) for item in (29, 0, 20))
    both = jr.Interactions.from_pairs([0, 0], [29, 0], n_items=30)
    recalls = [
        jr.evaluate.full_ranking(model, scores, mask, test, ks=(20,)).means["recall@20"] for mask in (train, both)
    ]
    assert valid.n_pairs == 1 and recalls == [0, 1]


@pytest.mark.deep
def test_small_temperatures_do_not_overflow():
    """At a temperature of .005, exponentials reach e⁴⁰⁰, which float32 cannot hold."""
    model = TWO.clone(temperature=0.005, decoder_temperature=0.005)
    params = jax.tree.map(np.float32, PARAMS)

    def both(module, users, **known):
        return module.rows(users, **known), module.bound(users, **known)

    rows, (nll, kl) = applied(model, USERS, method=both, params=params)
    assert rows.dtype == jnp.float32 and np.isfinite(rows).all() and float(rows.max() - rows.min()) > 100
    log_p = jax.nn.log_softmax(rows, axis=-1)
    np.testing.assert_allclose(nll, -np.where(DENSE, log_p, 0).sum(1), rtol=1e-4, atol=1e-3)
    assert np.isfinite(kl).all()


@pytest.mark.deep
def test_collapse_is_the_mean_cosine_between_interests():
    same, apart = jnp.ones((3, 2)), jnp.eye(3)
    mixed = jnp.array([[1.0, 0], [0, 2.0], [3.0, 0]])
    assert [float(collapse(x)) for x in (same, apart)] == pytest.approx([1, 0])
    assert float(collapse(mixed)) == pytest.approx(1 / 3)
    assert collapse(jnp.ones((2, 5, 1, 3))).shape == (2, 5) and float(collapse(jnp.ones((1, 2)))) == 0
    after = applied(TWO, USERS, method="prototypes", params=jax.tree.map(np.float32, PARAMS))
    assert collapse(after).shape == (2, M)


@pytest.mark.deep
def test_adam_equals_that_of_pytorch(float64):
    """ε is outside the root, and biases are corrected. Decoupled weight decay moves parameters without gradient."""
    tx, x, state = optax.adam(1e-3), jnp.array([1.0, -2.0, 3.0]), None
    state = tx.init(x)
    expected, m, v = np.array([1.0, -2.0, 3.0]), 0.0, 0.0
    with jax.numpy_dtype_promotion("standard"):
        for t in range(1, 5):
            gradient = np.array([1e-7, np.sin(t), 0.0])
            updates, state = tx.update(jnp.asarray(gradient), state, x)
            x = optax.apply_updates(x, updates)
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            expected = expected - 1e-3 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        decayed = optax.adamw(1e-3).update(jnp.zeros(3), optax.adamw(1e-3).init(x), x)[0]
    np.testing.assert_allclose(x, expected, rtol=1e-12)
    assert x[2] == 3 and decayed.all()


# ---------------------------------------------------------------------- construction and training


@pytest.mark.deep
def test_parameters_have_the_stated_shapes_and_scales():
    model = VALID(200)
    made = jax.jit(model.init)(jax.random.key(0), USERS[:1], USERS[:1])
    shapes = {"item": (200, 64), "prototype": (4, 64), "context": (200, 64), "head": (64, 128)}
    for name, shape in shapes.items():
        deviation = (2 / sum(shape)) ** 0.5
        assert made["params"][name].shape == shape
        assert float(made["params"][name].std()) == pytest.approx(deviation, rel=0.1)
    for name, size in (("context_bias", 64), ("head_bias", 128)):
        assert made["params"][name].shape == (size,) and not made["params"][name].any()
    assert set(made) == {"params"} and set(made["params"]) == {*shapes, "context_bias", "head_bias"}
    assert VALID(200) == model and hash(VALID(200)) == hash(model) and VALID(200, dim=8) != model


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, 0) for name in ("dim", "n_interests", "n_blocks", "width", "chunk", "temperature", "decoder_temperature")]
    + [("deviation", -1.0), ("dropout", 1.0), ("dropout", -0.1)],
)
def test_wrong_values_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}; give"):
        VALID(N, **{name: value})


BOARD, DIAGONAL = synthetic.checkerboard(30)


@pytest.mark.deep
@pytest.mark.parametrize("model", [MacridVAE, VALID])
def test_recovers_the_diagonal_withheld_from_the_checkerboard(model):
    """The prototypes of VALID, with two blocks, keep their initial values. Those of MacridVAE, with one block, move."""
    model = model(BOARD.n_items, dim=8, n_interests=2, width=8, chunk=16)
    objective = partial(jr.train.autoencoders.objective, model=model, cap=0.2, total=100)
    state = jr.train.init(jax.random.key(0), model, TX)
    start = state.variables["params"]["prototype"]
    options = {"epochs": 40, "batch_size": 10, "examples": jr.train.by_user, "progress": False}
    state, log = jr.train.fit(state, objective, TX, BOARD, **options)
    report = jr.evaluate.full_ranking(model, state.variables, BOARD, DIAGONAL, ks=(1,), histories=BOARD)
    assert report.means["hit_rate@1"] == 1
    assert log.records[-1]["loss"] < log.records[0]["loss"]
    assert np.array_equal(start, state.variables["params"]["prototype"]) == (type(model) is VALID)
