"""Recommendations and similar items with labels and titles."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxrec as jr
from jaxrec.evaluate import recommend, scorer, similar
from jaxrec.interactions import DataWarning, IdMap, Interactions

USERS, ITEMS = ["ann", "bob\0", "Ünï\n, x"], np.array([30, 10, 20, 7])
MAP = IdMap(USERS, ITEMS)
TABLE = jnp.array([[0.1, 0.4, 0.2, 0.3], [4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.5, 0.6]])
SEEN = Interactions.from_pairs([0, 1, 1, 1], [1, 0, 1, 2], n_users=3, n_items=4)


def _rows(table, users):
    return table[users]


MODEL = scorer(_rows)


def test_lists_have_labels_scores_and_titles():
    titles = {10: "ten", 7: "seven", 99: "of no item"}
    frame = recommend(MODEL, TABLE, [USERS[2], "ann"], k=2, id_map=MAP, seen=SEEN, titles=titles)
    assert frame.columns.tolist() == ["user", "rank", "item", "score", "title"]
    assert frame["user"].tolist() == [USERS[2], USERS[2], "ann", "ann"] and frame["rank"].tolist() == [1, 2, 1, 2]
    assert frame["item"].tolist() == [7, 20, 7, 20] and frame["item"].dtype == np.int64
    assert frame["title"].tolist()[::2] == ["seven"] * 2 and frame["title"].isna().tolist() == [False, True] * 2
    np.testing.assert_allclose(frame["score"], [0.6, 0.5, 0.3, 0.2], rtol=1e-6)
    # A user with fewer items left has fewer rows.
    assert recommend(MODEL, TABLE, "bob\0", k=3, id_map=MAP, seen=SEEN)["item"].tolist() == [7]
    some = recommend(MODEL, TABLE, ["ann"], k=4, id_map=MAP, items=[30, 20])
    assert some["item"].tolist() == [20, 30]


def test_without_a_map_users_and_items_are_ids():
    frame = recommend(MODEL, TABLE, np.array([1, 0]), k=1, titles=["a", "b", "c", "d"])
    assert frame.values.tolist() == [[1, 1, 0, 4.0, "a"], [0, 1, 1, pytest.approx(0.4), "b"]]
    series = pd.Series(["by label"], index=[7])
    assert recommend(MODEL, TABLE, 2, k=1, titles=pd.Series(["x"], index=[3]))["title"].tolist() == ["x"]
    assert recommend(MODEL, TABLE, USERS[2], k=1, titles=series, id_map=MAP)["title"].tolist() == ["by label"]


def test_a_model_of_histories_gets_them():
    train = Interactions.from_pairs([0, 0, 1, 1, 2], [0, 1, 0, 1, 2], n_users=3, n_items=4)
    model, variables, _ = jr.solvers.ease.fit(train, regularization=1.0)
    wider = MAP.extend(users=["zoe"])
    new, _ = Interactions.from_labels(["zoe"], [30], id_map=wider)
    frame = recommend(model, variables, ["zoe"], k=1, id_map=wider, histories=new, seen=new)
    assert frame[["user", "item"]].values.tolist() == [["zoe", 10]]


def test_unknown_users_raise_or_are_dropped_and_counted():
    given = ["a", "b", "ann", "c", "d", "e", "f"]
    with pytest.raises(ValueError, match=r"lacks 6 of 7 users: 'a', 'b', 'c', 'd', 'e', ...; give users"):
        recommend(MODEL, TABLE, given, k=1, id_map=MAP)
    with pytest.warns(DataWarning, match="dropped 6 of 7 users"):
        frame = recommend(MODEL, TABLE, given, k=1, id_map=MAP, unknown_users="drop")
    assert frame["user"].tolist() == ["ann"]
    with pytest.raises(ValueError, match="lacks 1 of 1 users"):
        recommend(MODEL, TABLE, ["a"], k=1, id_map=MAP, unknown_users="drop")


WRONG = {
    "labels without a map": ({"users": ["ann"]}, ValueError, r"users holds \['ann'\]; give ids"),
    "word": ({"unknown_users": "skip"}, ValueError, "unknown_users='skip'; give 'raise' or 'drop'"),
    "titles of other items": ({"titles": {"x": "y"}}, ValueError, "titles has none of the items, such as 0"),
    "few titles": ({"titles": ["a"], "users": [2]}, ValueError, "titles has 1 entries for 4 items"),
    "a title": ({"titles": "a"}, TypeError, "titles is a str; give a mapping"),
    "another map": ({"id_map": IdMap(["u"], [1]), "users": ["u"], "seen": SEEN}, ValueError, "id_map has 1 items"),
}


@pytest.mark.every_case
@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_to_do(name):
    given, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        recommend(MODEL, TABLE, **{"users": [1], "k": 1, **given})


def test_similar_is_the_cosine_of_item_vectors():
    table = jnp.array([[1.0, 0.0], [0.0, 3.0], [2.0, 2.0], [0.9, 0.1]])
    variables, titles = {"params": {"user": jnp.ones((3, 2)), "item": table}}, np.array(["p", "q", "r", "s"])
    frame = similar(jr.models.MF(3, 4, dim=2), variables, [30, 10], k=3, id_map=MAP, titles=titles)
    assert frame.columns.tolist() == ["item", "rank", "similar", "score", "title"]
    assert frame["item"].tolist() == [30] * 3 + [10] * 3 and frame["similar"].tolist() == [7, 20, 10, 20, 7, 30]
    assert frame["title"].tolist() == ["s", "r", "q", "r", "s", "p"]
    np.testing.assert_allclose(frame["score"][:3], [0.9 / 0.82**0.5, 0.5**0.5, 0], atol=1e-6)
    # The vectors of a distance have coordinates for squared lengths, which must not enter the cosine.
    metric = jr.models.MF(3, 4, dim=2, score=jr.models.negative_squared_distance)
    for model in (metric, metric.clone(score=functools.partial(metric.score))):
        pd.testing.assert_frame_equal(similar(model, variables, [30, 10], k=3, id_map=MAP, titles=titles), frame)


HELD = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 1, 1, 0], [0, 0, 0, 1, 0]])
HOLD = Interactions.from_pairs(*HELD.nonzero(), n_users=6, n_items=5)


def _of_ease():
    model, variables, _ = jr.solvers.ease.fit(HOLD, regularization=1.0)
    return model, variables, np.asarray(variables["params"]["weights"])


def _of_walks():
    """The weight of a walk from each row's item to each column's, which is not symmetric."""
    model, variables, _ = jr.solvers.knn.rp3beta(HOLD, neighbours=5, alpha=0.9, beta=0.3)
    of_users, of_items = HELD.sum(1), np.maximum(HELD.sum(0), 1.0)
    return model, variables, HELD.T / of_users**0.9 @ HELD * np.outer(of_items**-0.9, of_items**-0.3)


def _of_neighbours():
    """The cosine of each row's item in the score of each column's, which has two neighbours."""
    model, variables, _ = jr.solvers.knn.item_knn(HOLD, neighbours=2)
    return model, variables, variables["graph"]["neighbours"].to_scipy().toarray().T


def _of_filter():
    model, variables, _ = jr.solvers.filters.fit(HOLD, **jr.solvers.filters.turbo_cf(order=2))
    every = Interactions.from_pairs(range(5), range(5))
    return model, variables, np.asarray(model.apply(variables, None, histories=every, method="rows"))


@pytest.mark.every_case
@pytest.mark.parametrize("fitted", [_of_ease, _of_walks, _of_neighbours, _of_filter])
def test_similar_items_of_weights_between_items_are_the_scores_of_a_history_of_one(fitted):
    model, variables, table = fitted()
    assert not np.allclose(table, table.T) or fitted is _of_filter
    frame = similar(model, variables, [2, 0, 4], k=4)
    for item in (2, 0, 4):
        found = frame[frame["item"] == item]
        expected = sorted((j for j in range(5) if j != item and table[item, j] != 0), key=lambda j: -table[item, j])
        assert found["rank"].tolist() == list(range(1, len(expected) + 1))
        np.testing.assert_allclose(found["score"], table[item, expected], rtol=1e-5, atol=1e-7)
        assert set(found["similar"]) == set(expected)
    assert 4 not in frame["item"].tolist()  # an item that nobody has is similar to none
    named = similar(model, variables, "e", k=1, id_map=IdMap(range(6), [*"abcd", "e"]))
    assert len(named) == 0 and named.columns.tolist() == ["item", "rank", "similar", "score"]


def test_similar_of_functions_of_histories_needs_no_users():
    def rows(params, users, *, histories):
        return params[histories.indices]

    model = jr.models.from_functions(lambda key: TABLE, score=max, rows=rows, needs_histories=True)
    with pytest.raises(TypeError, match="Functions has no n_items; give it one, such as from_functions"):
        similar(model, {"params": TABLE}, 0, k=1)
    table = jnp.concatenate([TABLE, TABLE[:1]])
    model = dataclasses.replace(model, n_items=4)
    assert similar(model, {"params": table}, [1, 2], k=2)["similar"].tolist() == [0, 2, 3]
    with pytest.raises(TypeError, match="has no vectors of items"):
        similar(dataclasses.replace(model, n_users=3), {"params": table}, 0, k=1)


def _cosines(vectors):
    flat = np.asarray(vectors, np.float64).reshape(len(vectors), -1)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.every_case
@pytest.mark.parametrize("kind", ["MAR", "MARS", "TransCF"])
def test_similar_compares_items_not_the_terms_of_a_distance(kind):
    graph = Interactions.from_pairs([0, 1, 1, 2], [1, 0, 2, 4], n_users=3, n_items=5)
    model = {
        "MAR": jr.models.MAR(3, 5, dim=2, n_facets=2),
        "MARS": jr.models.MARS(3, 5, dim=2, n_facets=2),
        "TransCF": jr.models.TransCF(graph, dim=4),
    }[kind]
    variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    own = variables["params"]["item"] if kind == "TransCF" else model.apply(variables, None, None, method="parts")[2]
    frame = similar(model, variables, 2, k=4)
    np.testing.assert_allclose(frame["score"], _cosines(own)[2, frame["similar"].to_numpy()], atol=1e-5)
    assert sorted(frame["similar"]) == [0, 1, 3, 4]


def _tables(key):
    user, item = (jax.random.normal(each, (n, 2)) for each, n in zip(jax.random.split(key), (3, 4)))
    return {"user": user, "item": item}


def _distances(params):
    return jr.models.negative_squared_distance(params["user"], params["item"])


def _short_distances(params):
    user, item = params["user"], params["item"]
    return jnp.pad(user, ((0, 0), (0, 1)), constant_values=-0.5), jnp.c_[item, (item**2).sum(-1)]


@pytest.mark.every_case
@pytest.mark.parametrize(("vectors", "message"), [
    (_distances, "coordinate 3 of the vectors of Functions is the same for all users.* or a bias of the item"),
    (_short_distances, "coordinate 2 of the vectors of Functions is the same for all users"),
    (lambda p: (p["user"], p["item"].at[:, 1].set(2.0)), "coordinate 1 .* is the same for all items.* of the user"),
])  # fmt: skip
def test_similar_refuses_vectors_that_hold_squared_lengths_or_biases(vectors, message):
    model = jr.models.from_functions(_tables, vectors=vectors)
    variables = model.init(jax.random.key(0), None, None)
    with pytest.raises(ValueError, match=message + ".*; give the model the method `item_vectors`"):
        similar(model, variables, 0, k=2)
    own = jr.models.from_functions(_tables, vectors=vectors, item_vectors=lambda params: params["item"])
    frame = similar(own, variables, 0, k=3)
    cosines = _cosines(variables["params"]["item"])[0]
    np.testing.assert_allclose(frame["score"], cosines[frame["similar"].to_numpy()], atol=1e-6)


def test_similar_takes_a_coordinate_that_nobody_uses():
    model = jr.models.from_functions(_tables, vectors=lambda p: (p["user"].at[:, 0].set(0.0), p["item"]))
    variables = model.init(jax.random.key(0), None, None)
    assert len(similar(model, variables, 0, k=3)) == 3


def test_similar_refuses_vectors_of_something_else_than_the_items():
    model = jr.models.from_functions(_tables, score=lambda p, users, items: p["user"][users, 0] * items, n_items=6)
    with pytest.raises(ValueError, match="Functions has 4 vectors for 6 items; give it the method `item_vectors`"):
        similar(model, model.init(jax.random.key(0), None, None), 0, k=2)


def test_a_map_of_other_users_is_refused():
    model = jr.models.MF(3, 4, dim=2)
    variables = {"params": {"user": jnp.ones((3, 2)), "item": jnp.ones((4, 2))}}
    wider = IdMap([*USERS, "new"], ITEMS)
    with pytest.raises(ValueError, match="id_map has 4 users, but the model, seen or histories 3"):
        recommend(model, variables, ["ann"], k=1, id_map=wider)
    with pytest.raises(ValueError, match="id_map has 4 users, but the model, seen or histories 3"):
        recommend(MODEL, TABLE, ["ann"], k=1, id_map=wider, seen=SEEN)
    with pytest.raises(ValueError, match="id_map has 5 items, but the model 4"):
        recommend(MODEL, TABLE, ["ann"], k=1, id_map=IdMap(USERS, range(5)))
    with pytest.raises(ValueError, match="an item twice in its index"):
        recommend(MODEL, TABLE, 0, k=1, titles=pd.Series(["x", "y"], index=[3, 3]))


def test_params_instead_of_variables_are_named():
    with pytest.raises(
        TypeError, match=r'variables are not those of MF; pass them whole, such as \{"params": params\}'
    ):
        recommend(jr.models.MF(3, 4, dim=2), {"user": jnp.ones((3, 2)), "item": jnp.ones((4, 2))}, 0)


def test_similar_says_what_is_missing():
    model, variables = jr.models.popularity(SEEN)
    with pytest.raises(TypeError, match="ItemRanker has no vectors of items"):
        similar(model, variables, 0, k=1)
    variables = {"params": {"user": jnp.ones((3, 2)), "item": jnp.ones((4, 2))}}
    with pytest.raises(ValueError, match="k=4; give an integer from 1 to 3"):
        similar(jr.models.MF(3, 4, dim=2), variables, 0, k=4)
    with pytest.raises(ValueError, match="is NaN or infinite"):
        similar(jr.models.MF(3, 4, dim=2), {"params": variables["params"] | {"item": jnp.full((4, 2), jnp.nan)}}, 0)


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_very_short_and_very_long_vectors_have_cosines(length):
    table = jnp.array([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 0.0]]) * length
    params = {"user": jax.random.normal(jax.random.key(0), (2, 2)), "item": table}
    frame = similar(jr.models.MF(2, 4, dim=2), {"params": params}, 0, k=2)
    assert frame["similar"].tolist()[0] == 2
    np.testing.assert_allclose(frame["score"], [2 / 5**0.5, 0], atol=1e-6)
