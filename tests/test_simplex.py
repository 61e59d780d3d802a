"""SimpleX: pairs and rows against the formula in float64, and histories without the scored item."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TX

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.interactions import Interactions
from jaxrec.models import MF, MeanPool, SelfAttention, SimpleX, UserAttention, cosine
from jaxrec.models._histories import first_items
from jaxrec.papers.mml import ReleasedSimpleX

N_USERS, N_ITEMS, DIM, LONGEST = 6, 9, 3, 5
HISTORIES = [[0, 2, 4, 5, 8], [3], [], [1, 2], [0, 1, 7, 8], [6, 7, 8]]
PAIRS = [(user, item) for user, items in enumerate(HISTORIES) for item in items]
TRAIN = Interactions.from_pairs(*zip(*PAIRS), weights=np.arange(1, 16), n_users=N_USERS, n_items=N_ITEMS)
USERS, ITEMS = np.meshgrid(np.arange(N_USERS, dtype=np.int32), np.arange(N_ITEMS, dtype=np.int32), indexing="ij")
PADDINGS = ("proper", "released")
EACH = TRAIN.take(USERS.ravel())  # for each pair, the history of its user
POOLS = [MeanPool(), SelfAttention(), UserAttention()]
ZERO = jnp.zeros(1, jnp.int32)
CLOSE = dict(rtol=2e-5, atol=2e-6)


def made(padding="proper", length=None, **options):
    """A model of the users of TRAIN. With `padding="released"`, histories are padded to `length` or the longest."""
    if padding == "released":
        return ReleasedSimpleX(N_USERS, N_ITEMS, dim=DIM, length=length or LONGEST, **options)
    return SimpleX(N_USERS, N_ITEMS, dim=DIM, length=length, **options)


def initial(model, key=0, sharpness=1.0):
    """Variables with random parameters, biases included, so that attention differs from a mean."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), ZERO, ZERO)["params"]
    rng = np.random.default_rng(key)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * sharpness, float), shapes)
    return {"params": params}


def pooled(model, params, user, history):
    """The pooled vector p of a history, summed item by item in float64."""
    table = params["item" if model.shared_history else "history_item"]
    length = model.length or LONGEST
    history = history[:length]
    if isinstance(model.pool, MeanPool):
        return sum((table[k] for k in history), np.zeros(DIM)) / (len(history) + 1e-9)
    hidden = params["pool"]["hidden"]
    query = user if isinstance(model.pool, UserAttention) else params["pool"]["query"]["kernel"][:, 0]
    logits = [query @ np.tanh(table[k] @ hidden["kernel"] + hidden["bias"]) for k in history]
    released = isinstance(model, ReleasedSimpleX)
    denominator = sum(map(np.exp, logits)) + (length - len(history) + 1e-9 if released else 0)
    return sum((np.exp(x) / denominator * table[k] for x, k in zip(logits, history)), np.zeros(DIM))


def score(model, params, user, item, left_out=None, history=None):
    """One score by the formula. A history is truncated before the item is left out."""
    own = params["user"][user] if history is None else np.zeros(DIM)
    history = HISTORIES[user] if history is None else history
    kept = [k for k in history[: model.length] if k != left_out]
    u = model.gate * own + (1 - model.gate) * pooled(model, params, own, kept) @ params["value"]
    v = params["item"][item]
    lengths = np.linalg.norm(u) * np.linalg.norm(v)
    return u @ v / lengths if lengths else 0.0


def in_float64(variables):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])


def all_ways(model, variables):
    """Scores [M, N] of all pairs, by every way to compute them."""
    users, each = USERS[:, :1], model.apply(variables, USERS.ravel(), ITEMS.ravel(), histories=EACH)
    padded = TRAIN.take(users[::-1, 0], capacity=TRAIN.n_pairs + 3)
    return {
        "one less, a user's vector each": each.reshape(USERS.shape),
        "one less, from two sums a user": model.apply(variables, users, ITEMS, histories=TRAIN),
        "one less, of the same items": model.apply(variables, users, ITEMS[:1], histories=TRAIN),
        "whole": model.apply(variables, users, ITEMS, np.full((N_USERS, 1), -1, np.int32), histories=TRAIN),
        "whole, rows": model.apply(variables, users[::-1, 0], method="rows", histories=padded)[::-1],
    }


FORMS = [(pool, padding, None, True) for pool in POOLS for padding in PADDINGS]
FORMS += [(pool, padding, 8 if padding == "released" else 3, False) for pool in POOLS for padding in PADDINGS]
FORMS += [(UserAttention(), "released", 3, True)]


@pytest.mark.deep
@pytest.mark.parametrize(("pool", "padding", "length", "shared"), FORMS)
def test_pairs_and_rows_give_the_formula(pool, padding, length, shared):
    model = made(padding, gate=0.3, pool=pool, shared_history=shared, length=length)
    variables = initial(model)
    params = in_float64(variables)
    whole = np.array([[score(model, params, u, i) for i in range(N_ITEMS)] for u in range(N_USERS)])
    one_less = np.array([[score(model, params, u, i, i) for i in range(N_ITEMS)] for u in range(N_USERS)])
    for name, scores in jax.jit(partial(all_ways, model))(variables).items():
        np.testing.assert_allclose(scores, one_less if name.startswith("one less") else whole, **CLOSE, err_msg=name)
    met = TRAIN.to_scipy().toarray() > 0
    np.testing.assert_allclose(one_less[~met], whole[~met])
    assert np.abs(one_less - whole)[met].max() > 0.01


@pytest.mark.parametrize(
    ("users", "items", "left_out"),
    [
        (np.array([4, 1, 0]), np.array([2, 3, 3]), np.array([0, 3, 8])),
        (np.array([[4], [1]]), np.array([[0, 2, 6], [3, 5, 1]]), np.array([[7, 8, 8], [3, 3, 0]])),
        (np.array([[4], [1], [0]]), np.array([[0, 2]]), None),
        (np.array([[4], [1], [0]]), np.array([[0, 2]]), np.array([[8], [3], [4]])),
        (np.array([[4], [1], [0]]), np.array([[0, 2]]), np.array([8, 3, 4])),
        (np.array([[4], [1], [0]]), np.array([[0, 2]]), np.array([[2, 8]])),
        (np.array([4, 1, 0]), np.array([[0], [2], [3]]), None),
        (np.array([4]), np.array([7]), None),
        (np.array([4, 4, 4]), np.array([[0, 1]]), None),
        (np.arange(N_USERS)[:, None], np.tile(ITEMS, (1, 5)), np.tile(ITEMS[:, ::-1], (1, 5))),
    ],
)
def test_pairs_of_any_shape_broadcast(users, items, left_out):
    model = made(gate=0.3, pool=UserAttention())
    variables = initial(model)
    params = in_float64(variables)
    columns = [x if x is None or x.ndim == 2 else x[:, None] for x in (users, items, left_out)]
    triples = np.broadcast_arrays(*columns[:2], columns[1] if left_out is None else columns[2])
    expected = np.vectorize(partial(score, model, params))(*triples)
    known = TRAIN.take(users.ravel())
    scores = jax.jit(model.apply)(variables, users, items, left_out, histories=known)
    assert scores.shape == (expected.shape if items.ndim == 2 else items.shape)
    assert scores.dtype == jnp.result_type(float)
    np.testing.assert_allclose(scores.reshape(expected.shape), expected, **CLOSE)


@pytest.mark.deep
@pytest.mark.parametrize("capacity", [None, 20])
def test_first_items_keeps_the_first_items_in_a_capacity_of_their_number(capacity):
    whole = TRAIN.take(np.arange(N_USERS), capacity=capacity)
    for length in (1, 2, 3, 9):
        kept = jax.jit(first_items, static_argnums=1)(whole, length)
        short = [items[:length] for items in HISTORIES]
        n = sum(map(len, short))
        assert kept.indices[:n].tolist() == [item for items in short for item in items] and not kept.indices[n:].any()
        assert np.diff(kept.indptr).tolist() == list(map(len, short)) and kept.indptr[0] == 0
        assert len(kept.indices) == min(len(whole.indices), N_USERS * length)
        assert kept.indptr.dtype == kept.indices.dtype == np.int32


@pytest.mark.deep
def test_compiled_scores_are_those_of_single_operations():
    model = made("released", gate=0.3, pool=UserAttention())
    variables = initial(model)
    compiled = jax.jit(model.apply)(variables, USERS[:, :1], ITEMS, histories=TRAIN)
    np.testing.assert_allclose(model.apply(variables, USERS[:, :1], ITEMS, histories=TRAIN), compiled, **CLOSE)


@pytest.mark.deep
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("pool", POOLS)
def test_a_history_of_only_the_scored_item_counts_as_empty(pool, padding):
    model = made(padding, gate=0.0, pool=pool)

    @jax.jit
    def scores(variables):
        user, items, of = np.array([[1]]), ITEMS[:1], partial(model.apply, variables, histories=TRAIN.take([1]))
        return of(user[0], np.array([3])), of(user, items)[0], of(user, items, np.array([[3]]))[0]

    for sharpness in (1.0, 30.0):
        alone, row, without = scores(initial(model, sharpness=sharpness))
        assert alone[0] == 0 and row[3] == 0 and not without.any()
        assert (np.delete(row, 3) != 0).all()


@pytest.mark.deep
@pytest.mark.parametrize("pool", POOLS[1:])
@pytest.mark.parametrize("padding", PADDINGS)
def test_leaving_out_the_item_that_has_all_the_weight_keeps_the_others(pool, padding):
    """Logits differ by up to 200. Subtracting the item's term from the sum would leave only rounding errors."""
    model = made(padding, gate=0.01, pool=pool)
    variables = initial(model)

    @jax.jit
    def scores_and_gradient(params):
        def scores(params):
            scores = model.apply({"params": params}, USERS[:, :1], ITEMS, histories=TRAIN)
            return scores.sum(), scores

        return jax.grad(scores, has_aux=True)(params)

    for sign in (60, -60):
        params = variables["params"]
        if isinstance(pool, UserAttention):
            params = params | {"user": sign * params["user"]}
        else:
            query = {"kernel": sign * params["pool"]["query"]["kernel"]}
            params = params | {"pool": params["pool"] | {"query": query}}
        wide = in_float64({"params": params})
        expected = [[score(model, wide, u, i, i) for i in range(N_ITEMS)] for u in range(N_USERS)]
        gradient, scores = scores_and_gradient(params)
        np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.deep
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("pool", [MeanPool(), UserAttention()])
def test_padding_counts_in_the_released_attention_and_nowhere_else(pool, padding):
    def scores(length):
        model = made(padding, gate=0.5, pool=pool, length=length)
        return np.asarray(jax.jit(partial(model.apply, method="rows"))(initial(model), USERS[:, 0], histories=TRAIN))

    if padding == "released" and not isinstance(pool, MeanPool):
        assert np.abs(scores(LONGEST + 7) - scores(None)).max() > 0.01
    else:
        np.testing.assert_allclose(scores(LONGEST + 7), scores(None), **CLOSE)


@pytest.mark.deep
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("pool", POOLS)
def test_gradients_are_those_of_finite_differences(pool, padding):
    """In float64, for a random combination of the scores of all ways."""
    model = made(padding, gate=0.3, pool=pool, shared_history=padding == "proper")
    variables = initial(model)
    rng = np.random.default_rng(1)
    params = in_float64(variables)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    weights = rng.normal(size=(5, *USERS.shape))

    def value(params):
        ways = all_ways(model, {"params": params})
        return sum((scores * w).sum() for scores, w in zip(ways.values(), weights))

    with jax.enable_x64(True):
        value_and_grad = jax.jit(jax.value_and_grad(value))
        products = jax.tree.map(lambda g, d: float((g * d).sum()), value_and_grad(params)[1], direction)
        step = 1e-6
        above, below = (
            float(value_and_grad(jax.tree.map(lambda x, d, s=s: x + s * step * d, params, direction))[0])
            for s in (1, -1)
        )
    assert sum(jax.tree.leaves(products)) == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-6)


@pytest.mark.deep
def test_users_without_history_are_finite_and_what_is_padded_or_left_out_gets_no_gradient():
    model = made(gate=0.4, pool=UserAttention(), shared_history=False)
    variables = initial(model)

    def gradient(users, items, left_out=None):
        known = TRAIN.take(users.ravel(), capacity=8)

        def value(params):
            return model.apply({"params": params}, users, items, left_out, histories=known).sum()

        return jax.jit(jax.grad(value))(variables["params"])

    for items in (np.array([4]), np.array([[4, 0]])):  # user 2 has no history, user 1 that of item 3 alone
        for user in (2, 1):
            result = gradient(np.array([user]), items)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
            of_history = np.asarray(result["history_item"])
            assert not of_history[[0, 1, 2, 4, 5, 6, 7, 8]].any()
            assert of_history[3].any() == (user == 1) == np.asarray(result["value"]).any()
    for users, items, left_out in (([3], [2], None), ([[3]], [[2, 5]], [[2]]), ([[3]], [[2, 2]], None)):
        of_history = gradient(np.array(users), np.array(items), None if left_out is None else np.array(left_out))
        of_history = np.asarray(of_history["history_item"])
        np.testing.assert_allclose(of_history[2], 0, atol=1e-6)  # subtraction may leave rounding errors
        assert np.abs(of_history[1]).max() > 1e-3 and not of_history[[0, 3, 4, 5, 6, 7, 8]].any()


@pytest.mark.deep
def test_a_gate_of_one_is_matrix_factorisation_by_cosine():
    model, plain = made(gate=1.0, scale=1.0), MF(N_USERS, N_ITEMS, dim=DIM, score=cosine, scale=1.0)
    variables = model.init(jax.random.key(3), ZERO, ZERO)
    expected = plain.init(jax.random.key(3), ZERO, ZERO)
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    for name, table in expected["params"].items():
        np.testing.assert_array_equal(variables["params"][name], table)
    assert not model.needs_histories and made(gate=0.99).needs_histories
    for method, arguments in (("__call__", (USERS[:, :1], ITEMS)), ("rows", (USERS[:, 0],))):
        ours, theirs = (m.apply(v, *arguments, method=method) for m, v in ((model, variables), (plain, expected)))
        np.testing.assert_array_equal(ours, theirs)
    assert not model.apply(variables, None, histories=TRAIN, method="rows").any()


@pytest.mark.deep
@pytest.mark.parametrize(("pool", "padding"), [(MeanPool(), "proper"), (SelfAttention(), "released")])
def test_users_who_were_not_in_training_are_scored_by_their_history(pool, padding):
    model = made(padding, pool=pool)
    variables = initial(model)
    params = in_float64(variables)
    result = jax.jit(partial(model.apply, method="rows"))(variables, None, histories=TRAIN)
    expected = [[score(model, params, u, i, history=HISTORIES[u]) for i in range(N_ITEMS)] for u in range(N_USERS)]
    np.testing.assert_allclose(result, expected, **CLOSE)
    assert not result[2].any()
    pairs = model.apply(variables, None, ITEMS, -np.ones((1, N_ITEMS), int), histories=TRAIN)
    np.testing.assert_allclose(pairs, expected, **CLOSE)


@pytest.mark.deep
def test_dropout_needs_its_key_and_keeps_the_mean():
    model = made(gate=0.5, dropout=0.25)
    variables = initial(model)
    still = partial(made(gate=0.5).apply, variables, histories=TRAIN)
    users, items = np.arange(N_USERS), np.arange(N_USERS)
    ours = model.apply(variables, users, items, histories=TRAIN)
    np.testing.assert_array_equal(ours, still(users, items))
    again = model.apply(variables, users, method="rows", histories=TRAIN, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(again, still(users, method="rows"))

    @jax.jit
    def noisy(key, users, items, left_out=None):
        return model.apply(variables, users, items, left_out, histories=TRAIN, rngs={"dropout": key})

    keys = jax.random.split(jax.random.key(1), 4000)
    draws = np.asarray(jax.vmap(noisy, (0, None, None))(keys, users, items))
    expected = np.asarray(still(users, items))
    np.testing.assert_allclose(draws.mean(0), expected, atol=5 * draws.std(0).max() / 4000**0.5)
    assert draws.std(0).min() > 0.01
    once = noisy(keys[0], users, items)
    np.testing.assert_allclose(once, draws[0], **CLOSE)
    np.testing.assert_allclose(noisy(keys[0], users[:, None], items[:, None])[:, 0], once, **CLOSE)
    pairs = noisy(keys[0], users[:, None], items[None, :])  # one mask per user, not per pair
    np.testing.assert_allclose(np.diagonal(pairs), once, **CLOSE)
    positives = noisy(keys[0], users[:, None], items[None, :], items[:, None])
    np.testing.assert_allclose(np.diagonal(positives), once, **CLOSE)


def test_wrong_values_are_named():
    for name, value in {"dim": 0, "n_users": 0, "length": 0, "gate": 1.5, "dropout": 1.0}.items():
        with pytest.raises(ValueError, match=f"{name}={value!r}; give"):
            SimpleX(**{"n_users": N_USERS, "n_items": N_ITEMS, name: value})
    with pytest.raises(ValueError, match=r"^length=None; give the number of places"):
        ReleasedSimpleX(N_USERS, N_ITEMS)
    model = made()
    variables = initial(model)
    with pytest.raises(AssertionError):
        model.apply(variables, np.array([0.0], np.float32), np.array([1]), histories=TRAIN.take([0]))
    with pytest.raises(ValueError, match=r"^left_out has 2 items per user, items 3; give 1 or as many"):
        model.apply(variables, USERS[:, 0], ITEMS[:, :3], ITEMS[:, :2], histories=TRAIN)
    with pytest.raises(ValueError, match=r"^left_out are \[2, 3\], for 6 users; give \[6, n\], \[1, n\] or \[6\]"):
        model.apply(variables, USERS[:, 0], ITEMS[:, :3], ITEMS[:2, :3], histories=TRAIN)
    one = made(gate=1.0)
    with pytest.raises(ValueError, match=r"^users are \[6, 9\]; give \[B\] or \[B, 1\]"):
        one.apply(initial(one), USERS, ITEMS)


@pytest.mark.deep
@pytest.mark.parametrize("pool", POOLS[:2])
def test_parameters_have_the_stated_shapes_and_scales(pool):
    make = partial(SimpleX, 300, 200, dim=50, shared_history=False)
    model = make(pool=pool)
    variables = model.init(jax.random.key(0), ZERO, ZERO)
    params = variables["params"]
    shapes = {"user": (300, 50), "item": (200, 50), "history_item": (200, 50)}
    for name, shape in shapes.items():
        assert params[name].shape == shape and float(params[name].std()) == pytest.approx(1e-4, rel=0.03)
    assert float(params["value"].std()) == pytest.approx(50**-0.5, rel=0.05)
    assert set(params) == {*shapes, "value"} | (set() if isinstance(pool, MeanPool) else {"pool"})
    if not isinstance(pool, MeanPool):
        hidden = params["pool"]["hidden"]
        assert float(hidden["kernel"].std()) == pytest.approx(50**-0.5, rel=0.05) and not hidden["bias"].any()
    assert set(variables) == {"params"}
    assert model == make(pool=pool.clone()) and hash(model) == hash(make(pool=pool.clone()))
    assert model != make(pool=pool, gate=0.7)


@pytest.mark.deep
def test_histories_are_arguments_and_other_histories_give_other_scores():
    model = made(pool=UserAttention())
    variables = initial(model)
    rows = jax.jit(partial(model.apply, method="rows"))
    other = TRAIN.select(np.arange(TRAIN.n_pairs) > 0)
    whole, less = (rows(variables, USERS[:, 0], histories=known) for known in (TRAIN, other))
    assert not np.allclose(whole[0], less[0]) and np.allclose(whole[1:], less[1:])
    with pytest.raises(ValueError, match=r"^SimpleX knows users by their items; pass histories="):
        model.apply(variables, USERS[:, 0], method="rows")


# ---------------------------------------------------------------------- training

BOARD, DIAGONAL = synthetic.checkerboard(30)


def fit(model, loss, **options):
    sample = partial(jr.sampling.uniform, n_items=model.n_items, n=4)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    state = jr.train.init(jax.random.key(0), model, TX)
    options = {"epochs": 30, "batch_size": 128, "progress": False} | options
    return jr.train.fit(state, objective, TX, BOARD, **options)


@pytest.mark.deep
@pytest.mark.parametrize(
    ("loss", "make", "options", "examples"),
    [
        (
            partial(jr.losses.ccl, margin=0.3, weight=5.0),
            ReleasedSimpleX,
            {"pool": UserAttention(), "length": 14},
            jr.train.singles,
        ),
        pytest.param(
            partial(jr.losses.softmax, temperature=0.2),
            SimpleX,
            {"pool": SelfAttention(), "shared_history": False},
            partial(jr.train.groups, n=4),
            marks=pytest.mark.deep,
        ),
    ],
)
def test_recovers_the_diagonal_withheld_from_the_checkerboard(loss, make, options, examples):
    model = make(30, 30, dim=8, scale=0.1, **options)
    state, log = fit(model, loss, examples=partial(examples, histories=BOARD))
    report = jr.evaluate.full_ranking(model, state.variables, BOARD, DIAGONAL, ks=(1,), histories=BOARD)
    assert report.means["hit_rate@1"] == 1
    assert log.records[-1]["loss"] < log.records[0]["loss"]
    assert set(state.variables) == {"params"}


@pytest.mark.deep
def test_training_without_histories_says_what_to_give():
    message = (
        r"^SimpleX knows users by their items, and the batch has no histories; .*partial\(train.singles, histories"
    )
    with pytest.raises(ValueError, match=message):
        fit(SimpleX(30, 30, dim=2), jr.losses.bpr)
    batch = jr.train.Batch.of(jnp.array([0, 1]), jnp.array([1, 0]))
    model = SimpleX(30, 30, dim=2)
    variables = jax.eval_shape(model.init, jax.random.key(0), ZERO, ZERO)
    for objective in (jr.train.in_batch_objective, jr.train.rows_objective):
        with pytest.raises(ValueError, match=message):
            objective(variables, jax.random.key(0), batch, model=model, loss=jr.losses.bpr)


@pytest.mark.deep
def test_a_run_that_resumes_equals_one_that_was_not_interrupted(tmp_path):
    model, examples = SimpleX(30, 30, dim=4, scale=0.1), partial(jr.train.singles, histories=BOARD)
    whole, _ = fit(model, jr.losses.bpr, epochs=2, examples=examples)
    checkpoint = jr.train.Checkpoint(tmp_path)
    fit(model, jr.losses.bpr, epochs=1, checkpoint=checkpoint, examples=examples)
    again = partial(jr.train.singles, histories=BOARD)
    resumed, _ = fit(SimpleX(30, 30, dim=4, scale=0.1), jr.losses.bpr, epochs=2, checkpoint=checkpoint, examples=again)
    for a, b in zip(jax.tree.leaves(whole.variables), jax.tree.leaves(resumed.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    less = partial(jr.train.singles, histories=BOARD.select(np.arange(BOARD.n_pairs) > 0))
    with pytest.raises(ValueError, match="examples"):
        fit(model, jr.losses.bpr, epochs=2, checkpoint=checkpoint, examples=less)


@pytest.mark.deep
def test_all_users_of_a_call_may_have_empty_histories():
    model = SimpleX(3, 5, dim=2, gate=0.5, scale=1.0)
    variables = model.init(jax.random.key(0), ZERO, ZERO)
    cold = Interactions.from_pairs([0], [0], n_users=3, n_items=5).take([1])
    scores = model.apply(variables, np.array([1]), np.array([[2, 3]]), histories=cold)
    rows = model.apply(variables, np.array([1]), histories=cold, method="rows")
    np.testing.assert_allclose(scores, rows[:, 2:4], rtol=1e-6)
    train = Interactions.from_pairs([0, 1], [0, 1], n_users=3, n_items=5)
    histories = Interactions.from_pairs([2], [2], n_users=3, n_items=5)
    batch = jr.train.singles(train, histories=histories).batch(jnp.array([0, 1]))
    assert batch.histories.n_pairs == 0 and (batch.weights == 1).all()
