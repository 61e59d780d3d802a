"""Histories of a batch as one list of pairs, and the models that use them, against loops over users."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec as jr
from jaxrec import models
from jaxrec.interactions import Interactions
from jaxrec.models._histories import Pairs, spread

KNOWN = Interactions.from_pairs([0, 0, 2, 2, 2], [2, 0, 1, 3, 4], weights=np.arange(1, 6), n_users=4, n_items=5)
ORDER = np.array([2, 3, 0, 2], np.int32)  # user 3 has no items


@pytest.mark.deep
def test_pairs_are_listed_user_by_user_and_padding_belongs_to_no_user():
    for capacity in (8, 11):
        pairs = jax.jit(lambda known, users, n=capacity: Pairs.of(known.take(users, capacity=n), users))(KNOWN, ORDER)
        assert pairs.rows.tolist() == [0, 0, 0, 2, 2, 3, 3, 3] + [4] * (capacity - 8)
        assert pairs.items[:8].tolist() == [1, 3, 4, 0, 2, 1, 3, 4]
        assert pairs.degrees.tolist() == [3, 0, 2, 3] and pairs.users.tolist() == ORDER.tolist()
        assert {x.dtype for x in (pairs.rows, pairs.items, pairs.users, pairs.degrees)} == {np.dtype("int32")}
    anybody = Pairs.of(KNOWN)
    assert anybody.users.tolist() == [0, 1, 2, 3] and anybody.rows.tolist() == [0, 0, 2, 2, 2]
    with jax.enable_x64(True):
        assert Pairs.of(KNOWN).rows.dtype == Pairs.of(KNOWN).degrees.dtype == np.dtype("int32")


@pytest.mark.parametrize("capacity", [None, 8, 11])
def test_rows_are_taken_in_the_order_of_the_users(capacity):
    """On the host and under jit. Ids of no user have no items."""
    users = np.array([2, 3, -1, 0, 9, 2])
    for dtype in (np.int8, np.int64):
        found = KNOWN.take(users.astype(dtype), capacity=capacity)
        assert (found.n_users, found.n_items, found.weights) == (6, 5, None)
        assert found.indptr.tolist() == [0, 3, 3, 3, 5, 5, 8] and found.indices[:8].tolist() == [1, 3, 4, 0, 2, 1, 3, 4]
        assert found.indptr.dtype == found.indices.dtype == np.int32 and len(found.indices) == (capacity or 8)
    if capacity is not None:
        again = jax.jit(lambda known, users: known.take(users, capacity=capacity))(KNOWN, users)
        jax.tree.map(np.testing.assert_array_equal, again, found)
    narrow = Interactions.from_pairs([299], [0], n_users=300).take(np.array([255, 44], np.uint8), capacity=capacity)
    assert narrow.indptr.tolist() == [0, 0, 0]
    assert KNOWN.take(np.zeros(0, int)).n_users == 0


def test_a_capacity_that_is_too_small_or_missing_is_named():
    with pytest.raises(ValueError, match=r"^capacity=7, but these users have 8 pairs; give 8 or more"):
        KNOWN.take(ORDER, capacity=7)
    with pytest.raises(ValueError, match=r"^capacity=-1; give an integer of 0 or more"):
        KNOWN.take(ORDER, capacity=-1)
    with pytest.raises(ValueError, match=r"^the users are traced; give capacity"):
        jax.jit(KNOWN.take)(ORDER)
    for wrong in (np.zeros(2), np.zeros((2, 1), int)):
        with pytest.raises(AssertionError):
            KNOWN.take(wrong)


@pytest.mark.deep
def test_normalised_and_spread_and_padding():
    known = Interactions.from_pairs([0, 0, 2, 2], [5, 7, 1, 2], n_users=3, n_items=8)
    pairs = Pairs.of(known.take(np.arange(3), capacity=9))
    values = jnp.array([[3.0, 0], [4, 0], [1, 1], [0, 1]] + [[9, 9]] * 5)
    expected = [[0.6, 0], [0.8, 0], [1, 0.5**0.5], [0, 0.5**0.5]] + [[0, 0]] * 5
    np.testing.assert_allclose(pairs.normalised(values), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: pairs.normalised(x).sum())(jnp.zeros_like(values))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(pairs.sums(values)[1], [0, 0])
    np.testing.assert_array_equal(spread(jnp.arange(3), pairs.rows)[:4], [0, 0, 2, 2])
    np.testing.assert_array_equal(spread(jnp.array([7]), pairs.rows), np.full(9, 7))


@pytest.mark.deep
def test_noise_depends_on_user_and_item_not_on_place():
    key, degrees = jax.random.key(3), jnp.array([2, 1])
    one = Pairs(jnp.array([0, 0, 1]), jnp.array([4, 5, 5]), jnp.array([7, 9]), degrees, key)
    other = Pairs(jnp.array([0, 1, 1]), jnp.array([5, 4, 5]), jnp.array([9, 7]), degrees[::-1], key)
    values = jnp.ones((3, 3))
    kept = [pairs.dropped(values, 0.5, draw=2) for pairs in (one, other)]
    np.testing.assert_array_equal(kept[0][jnp.array([2, 0, 1])], kept[1])
    normal = [pairs.normal((2, 2), draw=0) for pairs in (one, other)]
    np.testing.assert_array_equal(normal[0][::-1], normal[1])
    assert not np.array_equal(normal[0], one.normal((2, 2), draw=1))
    assert one.dropped(values, 0.0, draw=2) is values


# ---------------------------------------------------------------------- models

MODELS = {
    "EASE": models.EASE(5),
    "SpectralFilter": models.SpectralFilter(5, degree=2, dim=2),
    "VALID": models.VALID(5, dim=2, width=2),
    "MacridVAE": models.MacridVAE(5, dim=2, width=2),
    "MultDAE": models.MultDAE(5, dim=2),
    "MultVAE": models.MultVAE(5, dim=2, width=2),
    "RecVAE": models.RecVAE(5, dim=2, width=2),
}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=MODELS)
def made(request):
    """A model, and random variables for which no score is 0."""
    model = MODELS[request.param]
    shapes = jax.eval_shape(model.init, jax.random.key(0), ORDER[:1], ORDER[:1])
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    if "graph" in shapes:
        drawn["graph"] = jr.solvers.filters.fit(KNOWN, **jr.solvers.filters.turbo_cf())[1]["graph"]
    return model, drawn


@pytest.fixture(scope="module")
def of(made):
    """Scores of all items, jitted once for all tests."""
    model, variables = made
    apply = jax.jit(partial(model.apply, method="rows"))
    return lambda users, histories: apply(variables, users, histories=histories)


@pytest.fixture(scope="module")
def rows(of):
    """The scores of users 0 .. 3, each scored separately."""
    return np.concatenate([of(None, KNOWN.take([user], capacity=3)) for user in range(4)])


def test_rows_do_not_depend_on_the_rest_of_the_batch_or_padding(of, rows):
    assert rows.shape == (4, 5) and np.isfinite(rows).all()
    for capacity, users in ((None, ORDER), (13, ORDER[:, None])):
        np.testing.assert_allclose(of(users, KNOWN.take(ORDER, capacity=capacity)), rows[ORDER], **CLOSE)
    np.testing.assert_allclose(of(None, KNOWN), rows, **CLOSE)
    np.testing.assert_array_equal(of(None, jax.device_put(KNOWN)), of(None, KNOWN))


@pytest.mark.parametrize(
    ("users", "items"),
    [
        (ORDER[:, None], [[0, 3], [1, 1], [4, 2], [2, 0]]),
        (ORDER, [[0, 3], [1, 1], [4, 2], [2, 0]]),
        (ORDER[:, None], [[4, 0, 2]]),
        (None, [[4], [0], [2], [2]]),
        (ORDER, [4, 0, 2, 2]),
    ],
)
def test_pairs_are_entries_of_rows(made, rows, users, items):
    model, variables = made
    items = np.array(items, np.int32)
    found = jax.jit(model.apply)(variables, users, items, histories=KNOWN.take(ORDER, capacity=10))
    expected = rows[ORDER, items] if items.ndim == 1 else rows[ORDER[:, None], items]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_users_without_items_have_finite_scores(made, of, rows):
    """Also if no user has any, with a capacity of 0."""
    model, variables = made
    nobody = KNOWN.take([3, 1, 99])
    assert nobody.n_pairs == 0
    np.testing.assert_allclose(of(None, nobody), np.repeat(rows[3:], 3, 0), **CLOSE)
    assert np.isfinite(rows[3]).all()
    pairs = jax.jit(model.apply)(variables, None, np.array([[0, 4]]), histories=nobody)
    np.testing.assert_allclose(pairs, np.repeat(rows[3:, [0, 4]], 3, 0), **CLOSE)


@pytest.mark.deep
def test_ids_of_eight_bits_do_not_wrap():
    """The history of user 255 ends at the place 256."""
    train = Interactions.from_pairs(np.arange(256), np.arange(256) % 5, n_users=256, n_items=5)
    model = models.MultDAE(5, dim=2)
    variables = jax.jit(model.init)(jax.random.key(0), ORDER[:1], ORDER[:1])
    alone = Interactions.from_pairs([0], [255 % 5], n_items=5)
    of = jax.jit(partial(model.apply, method="rows"))
    expected = of(variables, None, histories=alone)
    for dtype in (np.uint8, np.int64):
        users = np.array([255], dtype)
        np.testing.assert_allclose(of(variables, users, histories=train.take(users)), expected, atol=1e-6)


def test_parameters_are_created_without_a_forward_pass_and_without_histories(made, monkeypatch):
    """A forward pass would compile each operation separately, which took longer than the rest of the start."""
    model, _ = made
    monkeypatch.setattr(type(model), "_pairs", None)
    state = jr.train.init(jax.random.key(0), model, jr.optim.rowwise.adam(0.1))
    more = {models.RecVAE: {"old"}, models.SpectralFilter: {"graph"}}
    assert set(state.variables) == {"params"} | more.get(type(model), set())


def test_a_call_without_the_histories_of_its_users_says_what_to_give(made):
    model, variables = made
    name, run = type(model).__name__, partial(model.apply, variables)
    methods = [
        partial(run, ORDER, method="rows"),
        partial(run, ORDER, ORDER[:, None]),
    ]
    methods += [partial(run, ORDER, method="bound")] if name not in ("EASE", "SpectralFilter") else []
    for call in methods:
        with pytest.raises(
            ValueError, match=rf"^{name} knows users by their items; pass histories=.*train\.take\(users"
        ):
            call()
        with pytest.raises(ValueError, match=r"^users are \[4\], but histories are of 3 users; give .* train\.take"):
            call(histories=KNOWN.take(ORDER[:3]))
        with pytest.raises(ValueError, match=f"^histories have 3 items, but {name} has 5; give"):
            call(histories=Interactions.from_pairs([0, 1], [2, 0], n_users=4))
        with pytest.raises(TypeError, match=r"^histories is a ndarray; give Interactions"):
            call(histories=np.eye(5))
    for items in (np.zeros((3, 2), int), np.zeros(3, int), np.zeros((4, 1, 2), int), np.array(0)):
        with pytest.raises(ValueError, match=r"^items are \[.*\], for 4 users; give \[4, n\], \[1, n\] or \[4\]"):
            run(ORDER[:, None], items, histories=KNOWN)
    with pytest.raises(AssertionError):
        run(ORDER, np.zeros((4, 1), np.float32), histories=KNOWN)
    with pytest.raises(ValueError, match=r"^users are \[1, 4\]"):
        run(ORDER[None], ORDER[None], histories=KNOWN)


def test_a_model_is_made_for_a_number_of_items(made):
    kind = type(made[0])
    assert kind(np.int64(5)) == kind(5) and hash(kind(5)) == hash(kind(jnp.int32(5))) and kind(6) != kind(5)
    for wrong in (KNOWN, 0, 2.0, np.eye(2)):
        with pytest.raises(ValueError, match=r"(?s)^n_items=.*; give an integer of 1 or more"):
            kind(wrong)


def test_variables_may_be_frozen(made, rows):
    model, variables = made
    of = jax.jit(partial(model.apply, method="rows"))
    np.testing.assert_allclose(of(flax.core.freeze(variables), None, histories=KNOWN), rows, **CLOSE)


def test_histories_are_arguments_of_a_program_not_constants_in_it(made):
    model, variables = made
    large = Interactions.from_pairs(np.arange(3000), np.arange(3000) % 5)
    of = lambda variables, known: model.apply(variables, None, histories=known, method="rows")  # noqa: E731
    consts = jax.make_jaxpr(of)(variables, large).consts
    assert not [c for c in consts if np.size(c) > 100]
