"""The CSR matrix against dense NumPy, its checks of bad data, and its product."""

import dataclasses
import datetime
import os
import pickle
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from hypothesis.extra import numpy as hnp

import jaxrec as jr
from jaxrec._ids import factorised
from jaxrec.interactions import DataWarning, IdMap, Interactions
from jaxrec.sparse import _spmm_segments, spmm

INT32_MAX = 2**31 - 1


@st.composite
def dense_matrices(draw):
    """A float32 matrix of few distinct values with at least one entry; rows and columns may be empty."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 9)))
    dense = draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([0, 0, 1, 2, 0.5])))
    at = draw(st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1)))
    dense[at] = 3
    return dense


def few(n):
    return hypothesis.settings(max_examples=n, deadline=None, derandomize=True, database=None)


def shuffled(dense, rng):
    """The matrix of a dense one, from pairs in random order, with weights and a different timestamp for each pair."""
    users, items = np.nonzero(dense)
    order = rng.permutation(len(users))
    users, items = users[order], items[order]
    return Interactions.from_pairs(
        users,
        items,
        weights=dense[users, items],
        timestamps=users * 100 + items,
        n_users=dense.shape[0],
        n_items=dense.shape[1],
    )


@hypothesis.given(dense_matrices(), st.randoms(use_true_random=False))
@few(60)
def test_the_host_side_equals_dense_numpy(dense, random):
    rng = np.random.default_rng(random.getrandbits(32))
    matrix = shuffled(dense, rng)
    users, items = np.nonzero(dense)
    np.testing.assert_array_equal(matrix.to_scipy().toarray(), dense)
    np.testing.assert_array_equal(matrix.pairs(), (users, items))
    np.testing.assert_array_equal(matrix.weights, dense[users, items])
    np.testing.assert_array_equal(matrix.timestamps, users * 100 + items)
    np.testing.assert_array_equal(matrix.user_degrees, (dense > 0).sum(1))
    np.testing.assert_array_equal(matrix.item_degrees, (dense > 0).sum(0))
    assert matrix.n_pairs == len(users)
    dtypes = [column.dtype for column in (matrix.indptr, matrix.indices, matrix.timestamps, *matrix.pairs())]
    assert dtypes == [np.int32] * 5 and matrix.weights.dtype == np.float32

    transposed = matrix.transpose()
    np.testing.assert_array_equal(transposed.to_scipy().toarray(), dense.T)
    np.testing.assert_array_equal(transposed.timestamps, [u * 100 + i for i, u in zip(*np.nonzero(dense.T))])
    assert transposed.transpose().fingerprint() == matrix.fingerprint()
    assert Interactions.from_scipy(scipy.sparse.coo_array(dense)).fingerprint() == matrix.fingerprint()

    keep = rng.random(matrix.n_pairs) < 0.5
    kept = matrix.select(keep)
    np.testing.assert_array_equal(kept.pairs(), (users[keep], items[keep]))
    np.testing.assert_array_equal(kept.timestamps, matrix.timestamps[keep])
    expected = np.zeros_like(dense)
    expected[users[keep], items[keep]] = dense[users[keep], items[keep]]
    np.testing.assert_array_equal(kept.to_scipy().toarray(), expected)


@pytest.mark.deep
@hypothesis.given(dense_matrices(), st.randoms(use_true_random=False))
@few(6)
def test_the_device_side_equals_dense_numpy(dense, random):
    rng = np.random.default_rng(random.getrandbits(32))
    matrix = jax.device_put(shuffled(dense, rng))
    n_users, n_items = dense.shape
    users, items = np.meshgrid(np.arange(n_users), np.arange(-2, n_items + 2), indexing="ij")
    padded = np.pad(dense > 0, ((0, 0), (2, 2)))  # items beyond the catalogue are never stored
    np.testing.assert_array_equal(jax.jit(Interactions.contains)(matrix, users, items), padded)

    order = rng.permutation(n_users)
    found, where = jax.jit(Interactions.rows, static_argnames="length")(matrix, order, length=4)
    for u, row, mask in zip(order, found, where):
        stored = np.flatnonzero(dense[u])[:4]
        np.testing.assert_array_equal(row, np.pad(stored, (0, 4 - len(stored))))
        np.testing.assert_array_equal(mask, np.arange(4) < len(stored))

    x = rng.normal(size=(n_items, 3)).astype(np.float32)
    y = rng.normal(size=(n_users, 3)).astype(np.float32)
    product, vjp = jax.vjp(lambda x: spmm(matrix, matrix.transpose(), x), x)
    np.testing.assert_allclose(product, dense @ x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(vjp(y)[0], dense.T @ y, rtol=1e-5, atol=1e-5)


DENSE = np.array([[0, 2, 0, 1, 3], [0, 0, 0, 0, 0], [5, 0, 0, 0, 4], [0, 1, 1, 1, 0]], np.float32)
MATRIX = shuffled(DENSE, np.random.default_rng(0))


@pytest.mark.deep
def test_contains_and_rows_take_any_shape_of_ids():
    users, items = np.array([[0], [3]]), np.array([[1, 3, 0]])
    np.testing.assert_array_equal(MATRIX.contains(users, items), DENSE[users, items] > 0)
    assert bool(MATRIX.contains(2, 4))
    found, where = MATRIX.rows(np.array([[3, 0], [1, 2]]), length=2)
    np.testing.assert_array_equal(found, [[[1, 2], [1, 3]], [[0, 0], [0, 4]]])
    np.testing.assert_array_equal(where, [[[1, 1], [1, 1]], [[0, 0], [1, 1]]])
    found, where = MATRIX.rows(jnp.array(0), length=4)
    assert found.tolist() == [1, 3, 4, 0] and where.tolist() == [True] * 3 + [False]
    assert found.dtype == jnp.int32


@pytest.mark.parametrize("capacity", [8, 20])
def test_flat_rows_are_the_pairs_of_a_block_one_user_after_another(capacity):
    """Item 0 is an item, not padding. A user may occur twice, and users may have no pair."""
    dense = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 1]])
    users = np.array([3, 1, 0, 3, 2])
    matrix = Interactions.from_scipy(scipy.sparse.csr_array(dense))
    rows, items, degrees = jax.jit(lambda m, u: m.flat_rows(u, capacity=capacity))(matrix, users)
    expected = np.argwhere(dense[users])
    assert rows.dtype == items.dtype == degrees.dtype == jnp.int32 and rows.shape == items.shape == (capacity,)
    np.testing.assert_array_equal(np.stack([rows, items], 1)[: len(expected)], expected)
    assert (rows[len(expected) :] == len(users)).all() and not items[len(expected) :].any()
    np.testing.assert_array_equal(degrees, dense.sum(1)[users])
    with pytest.raises(AssertionError):
        matrix.flat_rows(users.astype(np.float32), capacity=capacity)


@pytest.mark.parametrize(
    "call", [lambda m: m.contains(jnp.array(0.0), jnp.array(1)), lambda m: m.rows(jnp.array([0.0]), length=2)]
)
def test_float_ids_are_refused(call):
    with pytest.raises(AssertionError):
        call(MATRIX)


@pytest.mark.deep
def test_no_pairs_at_all():
    empty = MATRIX.select(np.zeros(MATRIX.n_pairs, bool))
    assert (
        empty.n_pairs == 0 and empty.to_scipy().nnz == 0 and repr(empty).startswith("Interactions(4 users x 5 items, 0")
    )
    assert not empty.contains(np.array([0, 3]), np.array([1, 1])).any()
    rows, _, degrees = empty.flat_rows(np.array([0, 3]), capacity=2)
    assert rows.tolist() == [2, 2] and degrees.tolist() == [0, 0]
    found, where = empty.rows(np.array([0, 3]), length=2)
    assert not where.any() and not found.any() and found.shape == (2, 2)
    assert not np.asarray(spmm(empty, empty.transpose(), jnp.ones((5, 2)))).any()
    assert empty.transpose().n_users == 5


def test_it_is_a_pytree_that_passes_through_jit():
    leaves, tree = jax.tree.flatten(MATRIX)
    assert len(leaves) == 4 and len(jax.tree.leaves(Interactions.from_pairs([0], [0]))) == 2
    back = jax.tree.unflatten(tree, leaves)
    assert (back.n_users, back.n_items) == (4, 5) and back.fingerprint() == MATRIX.fingerprint()
    out = jax.jit(lambda m: m)(MATRIX)
    assert isinstance(out, Interactions) and out.fingerprint() == MATRIX.fingerprint()
    assert out.user_degrees.tolist() == MATRIX.user_degrees.tolist() == [3, 0, 2, 3]


def test_ids_reach_beyond_two_to_the_31_cells():
    """The keys of pairs, user · N + item, do not fit int32."""
    n = 100_000
    users, items = np.random.default_rng(0).integers(0, n, (2, 300))
    users[:3], items[:3] = [n - 1, 0, n - 1], [n - 1, n - 1, 0]
    matrix = Interactions.from_pairs(users, items, n_users=n, n_items=n)
    order = np.lexsort((items, users))
    np.testing.assert_array_equal(matrix.pairs(), (users[order], items[order]))
    assert matrix.contains(users, items).all()
    assert not matrix.contains(users, (items + 2) % n).any()
    order = np.lexsort((users, items))
    np.testing.assert_array_equal(matrix.transpose().pairs(), (items[order], users[order]))
    assert repr(matrix).startswith("Interactions(100000 users x 100000 items, 300 pairs, density 0.0000%")


def test_contains_finds_every_pair_of_a_long_row():
    stored = np.arange(0, 1000, 3)
    matrix = Interactions.from_pairs(np.full(len(stored), 1), stored, n_users=3, n_items=1000)
    every = np.arange(1000)
    np.testing.assert_array_equal(matrix.contains(np.ones(1000, int), every), every % 3 == 0)
    assert not matrix.contains(np.full(1000, 2), every).any()


# ---------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    "users, items, how, message",
    [
        ([0, -1], [0, 0], {}, r"users\[1\] is -1; ids start at 0"),
        ([0, 1], [0.0, 1.5], {}, r"items\[1\] is 1.5; ids are whole numbers"),
        ([np.nan, 1], [0, 1], {}, r"users\[0\] is nan"),
        ([0, 1], [0, np.inf], {}, r"items\[1\] is inf"),
        ([0, 5], [0, 1], {"n_users": 5}, r"users\[1\] is 5; it must be below n_users=5"),
        ([0, 1], [7, 1], {"n_items": 3}, r"items\[0\] is 7; it must be below n_items=3"),
        ([0, 2**31], [0, 1], {}, r"users\[1\] is 2147483648; ids must fit int32"),
        ([0, 2**31 - 1], [0, 1], {}, r"users\[1\] is 2147483647; ids must"),
        ([0, 1], [1e12, 1], {}, r"items\[0\] is 1000000000000.0; ids must fit int32"),
        ([0, 1, 2], [0, 1], {}, "items has 2 entries and users has 3"),
        ([0, 1], [0, 1], {"weights": [1.0]}, "weights has 1 entries and users has 2"),
        ([0, 1], [0, 1], {"timestamps": [1, 2, 3]}, "timestamps has 3 entries and users has 2"),
        ([], [], {}, "empty; give at least one pair, or both n_users and n_items"),
        ([], [], {"n_users": 3}, "empty; give at least one pair"),
        ([], [], {"n_items": 3}, "empty; give at least one pair"),
        (["a", "b"], [0, 1], {}, r"users holds <U1, not integers; .*from_labels"),
        ([0, 1], [True, False], {}, "items holds bool, not integers"),
        ([[0, 1]], [0, 1], {}, r"users has shape \[1, 2\]"),
        ([0, 1], [0, 1], {"weights": [1.0, np.nan]}, r"weights\[1\] is nan"),
        ([0, 1], [0, 1], {"weights": [np.inf, 1.0]}, r"weights\[0\] is inf"),
        ([0, 1], [0, 1], {"weights": ["2", "many"]}, "weights"),
        ([0, 1], [0, 1], {"timestamps": ["2020-01-01", "2020-01-02"]}, "timestamps"),
        (
            [0, 1],
            [0, 1],
            {"timestamps": [1e9, 1.7e12]},
            r"timestamps\[1\] is 1\.?7\S*; .*divide milliseconds by 1000",
        ),
        ([0, 1], [0, 1], {"timestamps": [np.nan, 1]}, r"timestamps\[0\] is nan"),
        (
            [0, 1],
            [0, 1],
            {"timestamps": np.array(["2020-01-01", "NaT"], "M8[s]")},
            r"timestamps\[1\] is .*drop rows without a time",
        ),
    ],
)
def test_bad_columns_are_refused_by_name_and_value(users, items, how, message):
    with pytest.raises(ValueError, match=message):
        Interactions.from_pairs(users, items, **how)


def test_a_bad_timestamp_in_a_filtered_pandas_column_is_named_by_its_position():
    pd = pytest.importorskip("pandas")
    column = pd.Series([5, 1.7e12], index=[7, 9])
    with pytest.raises(ValueError, match=r"timestamps\[1\] is 1\.?7\S*; "):
        Interactions.from_pairs([0, 1], [0, 1], timestamps=column)


def test_good_columns_of_every_kind_are_taken():
    for dtype in (np.int64, np.uint8, np.float32, np.uint64):
        matrix = Interactions.from_pairs(np.array([1, 0], dtype), np.array([2, 1], dtype), n_users=4, n_items=3)
        assert (matrix.n_users, matrix.n_items) == (4, 3) and matrix.indices.tolist() == [1, 2]
    largest = Interactions.from_pairs([0], [INT32_MAX - 1], n_items=INT32_MAX)
    assert largest.indices.tolist() == [INT32_MAX - 1] and largest.n_items == INT32_MAX
    times = np.array(["2020-01-01", "1970-01-02T00:00:01.9"], "M8[ms]")
    assert Interactions.from_pairs([0, 1], [0, 0], timestamps=times).timestamps.tolist() == [1577836800, 86401]
    assert Interactions.from_pairs([0, 1], [0, 0], timestamps=[1.9, 5]).timestamps.tolist() == [1, 5]


@pytest.mark.parametrize(
    "how, message",
    [
        ({}, r"merged 3 duplicate pairs \(repetition ignored\); the first is user 0, item 2"),
        ({"weights": [1, 2, 4, 8, 16]}, r"merged 3 duplicate pairs \(weights added\)"),
        (
            {"weights": [1, 2, 4, 8, 16], "timestamps": [9, 1, 7, 8, 3]},
            r"merged 3 duplicate pairs \(weights added, latest timestamp kept\)",
        ),
    ],
)
def test_duplicates_are_merged_with_a_warning(how, message):
    with pytest.warns(DataWarning, match=message):
        matrix = Interactions.from_pairs([1, 0, 1, 0, 1], [3, 2, 3, 2, 3], **how)
    assert [column.tolist() for column in matrix.pairs()] == [[0, 1], [2, 3]]
    assert matrix.weights is None if "weights" not in how else matrix.weights.tolist() == [10, 21]
    assert matrix.timestamps is None if "timestamps" not in how else matrix.timestamps.tolist() == [8, 9]


def test_select_refuses_anything_but_one_bool_a_pair():
    for keep in (np.ones(3, bool), np.ones(MATRIX.n_pairs), np.arange(2)):
        with pytest.raises(ValueError, match="give one bool for each of 8 pairs"):
            MATRIX.select(keep)


def test_union_is_the_pairs_of_all_with_what_they_have_in_common():
    sizes = {"n_users": 3, "n_items": 4}
    plain = Interactions.from_pairs([2, 0], [0, 3], timestamps=[7, 5], **sizes)
    weighted = Interactions.from_pairs([0, 1], [1, 2], weights=[2, 4], timestamps=[6, 9], **sizes)
    timeless = Interactions.from_pairs([1], [0], **sizes)
    both = plain.union(weighted)
    assert [column.tolist() for column in both.pairs()] == [[0, 0, 1, 2], [1, 3, 2, 0]]
    assert both.weights.tolist() == [2, 1, 4, 1] and both.timestamps.tolist() == [6, 5, 9, 7]
    three = plain.union(timeless, weighted)
    assert three.n_pairs == 5 and three.timestamps is None and three.weights.tolist() == [2, 1, 1, 4, 1]
    empty = plain.select(np.zeros(2, bool))
    assert plain.union(empty).fingerprint() == plain.union().fingerprint() == plain.fingerprint()
    with pytest.warns(DataWarning, match="merged 2 duplicate pairs"):
        assert plain.union(plain).n_pairs == 2
    with pytest.raises(ValueError, match="3 users x 5 items and 3 x 4; give parts over the same ids"):
        plain.union(Interactions.from_pairs([0], [4], n_users=3))


def test_a_set_without_pairs_has_the_sizes_that_are_given():
    for columns in ({}, {"weights": [], "timestamps": []}):
        empty = Interactions.from_pairs([], [], n_users=2, n_items=3, **columns)
        assert (empty.n_users, empty.n_items, empty.n_pairs) == (2, 3, 0)
        assert empty.indptr.tolist() == [0, 0, 0]
        assert {x.dtype for x in (empty.indptr, empty.indices)} == {np.dtype("int32")}
    assert empty.weights.dtype == np.float32 and empty.timestamps.dtype == np.int32
    other = Interactions.from_scipy(scipy.sparse.csr_array((2, 3)))
    assert other.fingerprint() == Interactions.from_pairs([], [], n_users=2, n_items=3).fingerprint()
    assert other.union(other).n_pairs == 0
    some = Interactions.from_pairs([0, 1], [2, 0], n_users=2, n_items=3)
    assert some.union(other).fingerprint() == some.fingerprint()
    assert some.take(np.array([5])).fingerprint() == Interactions.from_pairs([], [], n_users=1, n_items=3).fingerprint()


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csc_matrix, scipy.sparse.coo_matrix])
def test_from_scipy_drops_stored_zeros_and_does_not_change_its_argument(kind):
    matrix = kind(scipy.sparse.coo_array(([1.0, 0.0, 1.0], ([0, 0, 2], [1, 2, 0])), shape=(4, 3)))
    interactions = Interactions.from_scipy(matrix)
    assert [column.tolist() for column in interactions.pairs()] == [[0, 2], [1, 0]]
    assert interactions.weights is None and (interactions.n_users, interactions.n_items) == (4, 3)
    assert matrix.nnz == 3
    assert Interactions.from_scipy(matrix * 2).weights.tolist() == [2, 2]


def test_fingerprints_name_shape_pairs_and_weights():
    pairs = [0, 0, 2], [1, 3, 0]
    variants = [
        Interactions.from_pairs(*pairs),
        Interactions.from_pairs(*pairs, n_items=5),
        Interactions.from_pairs([0, 1, 2], pairs[1]),
        Interactions.from_pairs(pairs[0], [1, 2, 0], n_items=4),
        Interactions.from_pairs(*pairs, weights=[1, 1, 1]),
    ]
    assert len({matrix.fingerprint() for matrix in variants}) == len(variants)
    assert Interactions.from_pairs([2, 0, 0], [0, 3, 1]).fingerprint() == variants[0].fingerprint()
    assert len(variants[0].fingerprint()) == 12


# ---------------------------------------------------------------------- dtypes and kinds


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "int32", "uint64", "float32", "float64"])
@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_what_a_sparse_matrix_stores_twice_is_added_in_float64(dtype, layout):
    zeros = np.zeros(200, int)
    matrix = scipy.sparse.coo_matrix((np.ones(200, dtype), (zeros, zeros)), shape=(2, 3))
    if layout != "coo":  # compressed, with all 200 entries
        kind = getattr(scipy.sparse, f"{layout}_matrix")
        indptr = [0, 200, 200] if layout == "csr" else [0, 200, 200, 200]
        matrix = kind((np.ones(200, dtype), zeros, indptr), shape=(2, 3))
    found = Interactions.from_scipy(matrix)
    assert found.weights.tolist() == [200.0] and found.pairs()[1].tolist() == [0]
    assert matrix.nnz == 200 and (found.n_users, found.n_items) == (2, 3)


def test_sparse_matrices_that_are_none_of_users_by_items_are_refused():
    for matrix, found in (
        (scipy.sparse.coo_array(np.ones(3)), r"float64\[3\]"),
        (scipy.sparse.csr_array(np.ones((2, 2), complex)), r"complex128\[2, 2\]"),
    ):
        with pytest.raises(ValueError, match=f"matrix is {found}; give a matrix of real numbers, users by items"):
            Interactions.from_scipy(matrix)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float16, np.float32, np.uint64, bool, object])
def test_weights_of_any_dtype_are_added_in_float64(dtype):
    with pytest.warns(DataWarning, match="merged 299 duplicate pairs"):
        matrix = Interactions.from_pairs(np.zeros(300, int), np.zeros(300, int), weights=np.ones(300, dtype))
    assert matrix.weights.tolist() == [300.0] and matrix.weights.dtype == np.float32


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"weights": np.ones(2, complex)}, "weights holds complex128 that are not numbers"),
        ({"weights": np.ones(2, "m8[s]")}, r"weights holds timedelta64\[s\] that are not numbers"),
        ({"weights": np.ma.array([1, 2], mask=[False, True])}, r"weights\[1\] is masked \(1 such rows\)"),
        ({"users": np.ma.array([0, 1], mask=[True, True])}, r"users\[0\] is masked \(2 such rows\)"),
        ({"users": np.array([0, 2048], np.float16)}, r"users\[1\] is 2048.0; float16 cannot represent all ids"),
        ({"items": np.array([2.0**24, 0], np.float32)}, r"items\[0\] is 16777216.0; float32 cannot represent all ids"),
        ({"n_users": np.float64(4)}, "n_users=.*4.0.*; give an integer from 1"),
        ({"n_users": np.int64(1)}, r"users\[1\] is 1; it must be below n_users=1"),
        ({"n_items": 2**31}, "n_items=2147483648; give an integer from 1 to 2147483647"),
        ({"n_users": "4"}, "n_users='4'; give an integer"),
        (
            {"timestamps": np.array(["2040-01-01", "2000-01-01"], "M8[s]")},
            r"is 2040-.*that fit int32.* in minutes or days",
        ),
        (
            {"timestamps": [datetime.datetime(2040, 1, 1), datetime.datetime(2000, 1, 1)]},
            r"is 2040-.* in minutes or days",
        ),
        ({"timestamps": [2**31, 0]}, r"timestamps\[0\] is 2147483648; .*in minutes or days"),
    ],
)
def test_columns_that_would_wrap_or_merge_are_refused(columns, message):
    good = {"users": [0, 1], "items": [0, 1]}
    with pytest.raises(ValueError, match=message) as caught:
        Interactions.from_pairs(**good | columns)
    assert "millisecond" not in str(caught.value)


def test_sums_that_float32_cannot_hold_are_refused():
    message = r"weights of user 0, item 1 add up to 4e\+38, more than float32 holds; divide"
    with pytest.warns(DataWarning, match="merged"), pytest.raises(ValueError, match=message):
        Interactions.from_pairs([0, 0, 1], [1, 1, 0], weights=[2e38, 2e38, 1])
    with pytest.warns(DataWarning, match="merged"):  # in float32 1 would be lost between them
        matrix = Interactions.from_pairs([0, 0, 0], [0, 0, 0], weights=[1e10, 1, -1e10])
    assert matrix.weights.tolist() == [1.0]


@pytest.mark.parametrize("size", [np.int64, np.uint8, jnp.int32])
def test_sizes_are_any_integers(size):
    matrix = Interactions.from_pairs([0, 1], [0, 1], n_users=size(4), n_items=size(3))
    assert (matrix.n_users, matrix.n_items) == (4, 3) and type(matrix.n_users) is type(matrix.n_items) is int


def test_fingerprints_do_not_depend_on_where_the_arrays_are():
    with jax.enable_x64(True):
        assert jax.device_put(MATRIX).fingerprint() == MATRIX.fingerprint()


# ---------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "users, items",
    [
        (["bo", "ann", "bo", "zoë"], ["x9", "x9", "a", "a"]),
        ([30, 10, 30, 2**40], [-5, -5, 0, 0]),
        (np.array(["bo", "ann", "bo", "zoë"], object), [1.5, 1.5, 0.5, 0.5]),
    ],
    ids=["strings", "integers", "objects and floats"],
)
def test_labels_become_sorted_ids_and_come_back(users, items):
    matrix, id_map = Interactions.from_labels(users, items, [1, 2, 3, 4], [5, 6, 7, 8])
    assert id_map.users.tolist() == sorted(set(users)) and id_map.items.tolist() == sorted(set(items))
    assert repr(id_map) == "IdMap(3 users, 2 items)" and (matrix.n_users, matrix.n_items) == (3, 2)
    stored = list(zip(id_map.user_labels(matrix.pairs()[0]), id_map.item_labels(matrix.pairs()[1])))
    columns = zip(stored, matrix.weights, matrix.timestamps)
    assert sorted(columns) == sorted(zip(zip(users, items), [1, 2, 3, 4], [5, 6, 7, 8]))
    np.testing.assert_array_equal(id_map.user_ids(id_map.users), [0, 1, 2])
    np.testing.assert_array_equal(id_map.item_ids(items), [id_map.items.tolist().index(i) for i in items])
    assert id_map.user_ids(users).dtype == np.int32
    assert id_map.item_labels([[1, -1], [0, 0]]).tolist() == [[id_map.items[1], None], [id_map.items[0]] * 2]


def test_unknown_labels_and_ids_are_refused():
    id_map = IdMap(np.array(["ann", "bo"]), np.array([7, 10]))
    with pytest.raises(ValueError, match=r"users has no label .*'zed'.* \(2 such\)"):
        id_map.user_ids(["ann", "zed", "aaa"])
    with pytest.raises(ValueError, match=r"items has no label .*8.* \(1 such\)"):
        id_map.item_ids(8)
    for ids in ([2], [-2]):
        with pytest.raises(ValueError, match="items ids run from 0 to 1"):
            id_map.item_labels(ids)
    assert id_map.user_labels(np.zeros((0, 3), int)).shape == (0, 3)


@pytest.mark.parametrize(
    "users, message",
    [
        (np.array(["a", None], object), r"users\[1\] is missing \(1 such rows\)"),
        (np.array([np.nan, 1.0]), r"users\[0\] is missing"),
        (np.array(["2020", "NaT"], "M8[D]"), r"users\[1\] is missing"),
        (np.array(["a", 1], object), "users mixes types"),
        (["a"], "items has 2 entries and users has 1"),
        (["a", float("nan")], r"users\[1\] is missing"),
        (["a", ""], r"users\[1\] is missing"),
        ([None, None], r"users\[0\] is missing \(2 such rows\)"),
        (np.array(["a", ""]), r"users\[1\] is missing"),
        (np.ma.array([1, 2], mask=[False, True]), r"users\[1\] is masked"),
        ([7, "7"], "users mixes types: integers such as 7, strings such as '7'; turn all"),
        ([True, 1], "users mixes types: booleans such as True, integers such as 1"),
        ([1, 1.0], "users mixes types: floats such as 1.0, integers such as 1"),
        (["a", b"a"], "users mixes types: bytes such as b'a', strings such as 'a'"),
        ([2.0**53, 1.0], r"users\[0\] is 9007199254740992.0; float64 cannot represent all whole numbers"),
        (np.array([2048, 1], np.float16), r"users\[0\] is 2048.0; float16 cannot represent all whole numbers"),
        ([float("inf"), 1.0], r"users\[0\] is inf"),
        (np.ones(2, complex), "users holds complex128; labels are strings or numbers"),
        ([[1], [1, 2]], "users holds lists; labels are strings or numbers"),
        ([[1, 2]], r"users has shape \[1, 2\]; give a column"),
    ],
)
def test_labels_that_are_missing_or_mixed_are_refused(users, message):
    with pytest.raises(ValueError, match=message):
        Interactions.from_labels(users, [1, 2])


@pytest.mark.parametrize(
    "labels",
    [
        ["a", "a\0", "a\0\0"],
        [2**63 + 5, 2**63 + 6, 1],
        [2**53, 2**53 + 1, -(2**62)],
        [2**70, 2**70 + 1, -1],
        [2**63, -1, 0],
        np.array([2**63 + 5, 2**63 + 6, 1], np.uint64),
        [np.uint64(2**63 + 5), np.uint64(2**63 + 6), np.int8(1)],
        ["é", "e\u0301", "e"],
        [b"a", b"a\0", b"b"],
        ["\ud800", "\ud801", "a"],
    ],
)
def test_labels_never_merge_and_come_back(labels):
    matrix, id_map = Interactions.from_labels(labels, [0, 1, 2])
    plain = list(labels) if isinstance(labels, list) else labels.tolist()
    assert matrix.n_users == 3 and id_map.users.tolist() == sorted(plain)
    assert id_map.user_labels(id_map.user_ids(labels)).tolist() == plain
    with pytest.raises(ValueError, match=r"users has no label .* \(1 such\)"):
        id_map.user_ids([max(plain) + max(plain) if isinstance(plain[0], str | bytes) else max(plain) + 1])


@pytest.mark.parametrize(
    ("labels", "other", "message"),
    [
        ([1, 2], ["1"], "the labels of users are integers, such as 1, but strings such as '1' are given"),
        ([1, 2], [1.0], "the labels of users are integers, .* but floats .* are given; convert"),
        ([1, 2], [True], "but booleans such as True are given"),
        (["a", "b"], [1], "the labels of users are strings"),
        (["a", "b"], [None], r"users\[0\] is missing"),
        (["a", "b"], ["c"], r"users has no label 'c' \(1 such\); its first label is 'a'"),
    ],
)
def test_labels_of_another_kind_are_not_looked_up(labels, other, message):
    _, id_map = Interactions.from_labels(labels, [0, 1])
    for look_up in (
        lambda: id_map.user_ids(other),
        lambda: Interactions.from_labels(other, [0], id_map=id_map),
    ):
        with pytest.raises(ValueError, match=message):
            look_up()


def test_floats_of_fewer_bits_are_the_numbers_that_they_print_as():
    """As float64, the nearest float32 of 0.1 would be another label than 0.1."""
    plain = [0.1, 7.0, 1e-5, 0.5]
    for labels in (np.array(plain, np.float32), np.array(plain, np.float16), list(map(np.float32, plain))):
        matrix, id_map = Interactions.from_labels(labels, labels)
        assert id_map.users.dtype == np.float64 and matrix.n_users == 4
        assert id_map.user_ids([0.1, 7.0, 0.5]).tolist() == [1, 3, 2]
        assert IdMap(plain, [1]).user_ids([labels[0], labels[3]]).tolist() == [0, 3]
    assert IdMap(np.float32([[0.1, 3.0]])[0], [1]).users.tolist() == [0.1, 3.0]


def test_look_ups_build_their_index_once_and_find_any_shape():
    id_map = IdMap(["b", "a"], np.array([3, 1, 2], np.uint8))
    assert id_map.user_ids([["a", "b"], ["b", "b"]]).tolist() == [[1, 0], [0, 0]]
    assert id_map._user_places is id_map._user_places
    assert id_map.user_ids("a").shape == () and id_map.user_ids([]).tolist() == []
    assert id_map.item_ids([2, 9, 3], unknown=-1).tolist() == [2, -1, 0]
    back = pickle.loads(pickle.dumps(id_map))
    assert back.user_ids(["a"]).tolist() == [1] and back.users.tolist() == ["b", "a"]
    with pytest.raises(ValueError, match="users of this id_map has the label 'a' twice"):
        IdMap(["a", "b", "a"], [1]).user_ids(["b"])
    with pytest.raises(ValueError, match="users mixes types"):
        IdMap(["a", 1], [1])
    for ids in ([True], [0.0]):
        with pytest.raises(ValueError, match=r"users ids are .*; give integers"):
            id_map.user_labels(ids)


@pytest.mark.parametrize("text", ["nan", "None", "<NA>", "null"])
def test_missing_values_turned_into_text_cause_a_warning(text):
    with pytest.warns(DataWarning, match=f"users has the label '{text}' in 2 rows, which looks like a missing value"):
        assert Interactions.from_labels([text, "a", text], [1, 2, 3])[0].n_users == 2


@pytest.mark.parametrize("hidden", [False, True])
def test_labels_become_the_same_ids_with_and_without_pyarrow(monkeypatch, hidden):
    if hidden:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    numbers = np.random.default_rng(0).integers(0, 3000, 20_000).tolist()
    labels = [f"é{n}\0" if n % 3 else f"\U0001f600{n}" for n in numbers]
    distinct, places = factorised("users", labels)
    assert distinct.tolist() == sorted(set(labels)) and distinct.dtype == object
    assert distinct[places].tolist() == labels and places.dtype == np.int64


KINDS = ["Int64", "UInt8", "string", "category", "int64[pyarrow]", "string[pyarrow]", "object"]


@pytest.mark.parametrize("dtype", KINDS)
def test_columns_of_pandas_own_dtypes(dtype):
    pd = pytest.importorskip("pandas")
    text = dtype in ("string", "category", "string[pyarrow]", "object")
    labels = ["b", "a", "b"] if text else [20, 10, 20]
    frame = pd.DataFrame({"u": pd.Series(labels).astype(dtype), "i": [1, 1, 2], "w": pd.array([1, 2, 3], "Float32")})
    frame["t"] = pd.array([5, 6, 7], "Int32")
    matrix, id_map = Interactions.from_dataframe(frame, user="u", item="i", weight="w", timestamp="t")
    assert id_map.users.tolist() == sorted(set(labels)) and id_map.user_ids(frame["u"]).tolist() == [1, 0, 1]
    assert matrix.weights.tolist() == [2, 1, 3] and matrix.timestamps.tolist() == [6, 5, 7]
    twice = pd.concat([frame, frame[["u"]]], axis=1)
    with pytest.raises(ValueError, match="user='u' is the name of 2 columns of the frame"):
        Interactions.from_dataframe(twice, user="u", item="i")


def test_dataframes_by_column_name():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {"who": ["b", "a", "b"], "what": [5, 5, 3], "n": [1.0, 2.0, 4.0], "when": pd.to_datetime(["2020-01-01"] * 3)}
    )
    matrix, id_map = Interactions.from_dataframe(frame, user="who", item="what", weight="n", timestamp="when")
    np.testing.assert_array_equal(matrix.to_scipy().toarray(), [[0, 2], [4, 1]])
    assert id_map.users.tolist() == ["a", "b"] and id_map.items.tolist() == [3, 5]
    assert matrix.timestamps.tolist() == [1577836800] * 3
    assert Interactions.from_dataframe(frame, user="who", item="what")[0].weights is None
    with pytest.raises(ValueError, match=r"weight='count' is not a column of the frame; it has \['who', 'what'"):
        Interactions.from_dataframe(frame, user="who", item="what", weight="count")


def test_times_with_a_zone_are_seconds_and_those_without_are_utc():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"u": [1, 2], "i": [1, 2], "t": pd.to_datetime(["1970-01-02", "1970-01-03"])})
    utc = Interactions.from_dataframe(frame, user="u", item="i", timestamp="t")[0]
    frame["t"] = frame["t"].dt.tz_localize("Europe/Berlin")
    berlin = Interactions.from_dataframe(frame, user="u", item="i", timestamp="t")[0]
    assert utc.timestamps.tolist() == [86400, 172800] and berlin.timestamps.tolist() == [82800, 169200]
    plain = [datetime.datetime(1970, 1, 2), datetime.datetime(1970, 1, 3, tzinfo=datetime.UTC)]
    assert Interactions.from_pairs([0, 1], [0, 0], timestamps=plain).timestamps.tolist() == [86400, 172800]
    with pytest.raises(ValueError, match=r"timestamps\[1\] is NaT; .*drop rows without a time"):
        Interactions.from_pairs([0, 1], [0, 0], timestamps=np.array([plain[0], pd.NaT], object))


@pytest.mark.parametrize("kind", [str, object, int])
def test_a_second_part_uses_the_map_of_the_first(kind):
    labels = np.array([10, 20, 30, 20]).astype(kind)
    _, id_map = Interactions.from_labels(labels, labels[::-1])
    test, same = Interactions.from_labels(labels[1:2], labels[2:3], [2.0], [7], id_map=id_map)
    assert same is id_map and (test.n_users, test.n_items) == (3, 3)
    assert [ids.tolist() for ids in test.pairs()] == [[1], [2]]
    users, items = np.array([20, 99, 10, 88]).astype(kind), np.array([10, 10, 77, 30]).astype(kind)
    with pytest.raises(ValueError, match=r"users has no label '?(99|88)'? \(2 such\); its first label is '?10"):
        Interactions.from_labels(users, items, id_map=id_map)
    how = {"weights": [1, 2, 3, 4], "timestamps": [5, 6, 7, 8], "id_map": id_map, "unknown": "drop"}
    with pytest.warns(DataWarning, match="dropped 3 of 4 pairs: id_map lacks 2 of their users and 1 of their items"):
        test, _ = Interactions.from_labels(users, items, **how)
    assert [ids.tolist() for ids in test.pairs()] == [[1], [0]]
    assert test.weights.tolist() == [1] and test.timestamps.tolist() == [5]
    with pytest.raises(ValueError, match=r"id_map lacks a label of each of the 1 pairs; .*other data"):
        Interactions.from_labels(users[1:2], items[1:2], id_map=id_map, unknown="drop")
    with pytest.raises(ValueError, match=r"columns have different lengths, .*'items': 4, 'weights': 1"):
        Interactions.from_labels(users, items, **how | {"weights": [1]})


def test_labels_of_a_second_part_in_a_frame_and_wrong_options():
    pd = pytest.importorskip("pandas")
    first, second = pd.DataFrame({"u": ["a", "b"], "i": [1, 2]}), pd.DataFrame({"u": ["b", "c"], "i": [1, 2]})
    _, id_map = Interactions.from_dataframe(first, user="u", item="i")
    with pytest.raises(ValueError, match=r"users has no label 'c' \(1 such\)"):
        Interactions.from_dataframe(second, user="u", item="i", id_map=id_map)
    with pytest.warns(DataWarning, match="dropped 1 of 2 pairs"):
        test, _ = Interactions.from_dataframe(second, user="u", item="i", id_map=id_map, unknown="drop")
    assert [ids.tolist() for ids in test.pairs()] == [[1], [0]]
    for how in ({"unknown": "drop"}, {"unknown": "ignore", "id_map": id_map}):
        with pytest.raises(ValueError, match="give 'raise', or 'drop' together with id_map"):
            Interactions.from_labels(["a"], [1], **how)


def test_new_labels_get_ids_after_the_known_ones():
    known = IdMap(["ann", "bob"], np.array([30, 10, 20]))
    wider = known.extend(users=["zoe", "ann", "cy", "zoe"])
    assert wider.users.tolist() == ["ann", "bob", "zoe", "cy"] and wider.items is known.items
    both = wider.extend(items=np.array([7, 30]), users="eve")
    assert both.items.tolist() == [30, 10, 20, 7] and both.user_ids(["eve", "bob"]).tolist() == [4, 1]
    assert known.users.tolist() == ["ann", "bob"] and known.extend(users=["bob"]).users.tolist() == ["ann", "bob"]
    data, same = Interactions.from_labels(["zoe", "eve"], [7, 10], id_map=both)
    assert same is both and [ids.tolist() for ids in data.pairs()] == [[2, 4], [3, 1]] and data.n_users == 5
    numbers = IdMap([2**63, 2**63 + 2], [1])  # uint64, which NumPy would join with int64 to floats
    assert numbers.extend(users=[5]).users.tolist() == [2**63, 2**63 + 2, 5]
    for wrong, message in (([7], "the labels of users are strings"), ([""], r"users\[0\] is missing")):
        with pytest.raises(ValueError, match=message):
            known.extend(users=wrong)


def test_times_stay_times_in_an_extended_map_and_next_to_padding():
    times = np.array(["2020-01-01", "2020-01-02"], "datetime64[ns]")
    found = IdMap([], [1]).extend(users=times)
    assert found.users.dtype == times.dtype and (found.users == times).all()
    assert found.user_labels([1, -1]).tolist() == [times[1], None]


def test_new_users_extend_the_map_but_not_those_without_a_pair_left():
    known = IdMap(["ann", "bob"], [10, 20])
    pd = pytest.importorskip("pandas")
    columns = pd.DataFrame({"user": ["zoe", "cy", "ann", "zoe"], "item": [10, 99, 20, 20]})
    every = columns[columns["item"] < 99]
    data, wider = Interactions.from_dataframe(every, user="user", item="item", id_map=known, unknown_users="new")
    assert wider.users.tolist() == ["ann", "bob", "zoe"] and data.user_degrees.tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match="99"):
        Interactions.from_labels(columns["user"], columns["item"], id_map=known, unknown_users="new")
    with pytest.warns(DataWarning, match="1 of 4"):
        few, same = Interactions.from_labels(
            columns["user"], columns["item"], id_map=known, unknown="drop", unknown_users="new"
        )
    assert same.users.tolist() == ["ann", "bob", "zoe"] and few.user_degrees.tolist() == [1, 0, 2]
    for wrong in ({"unknown_users": "new"}, {"unknown_users": "old", "id_map": known}):
        with pytest.raises(ValueError, match="unknown_users="):
            Interactions.from_labels(["zoe"], [10], **wrong)


@pytest.mark.parametrize("columns", [{}, {"weights": [2, 3, 4], "timestamps": [7, 8, 9]}])
def test_a_set_over_more_ids_has_the_same_pairs(columns):
    data = Interactions.from_pairs([0, 1, 1], [2, 0, 1], **columns)
    wider = data.extend(n_users=4, n_items=5)
    same = Interactions.from_pairs([0, 1, 1], [2, 0, 1], n_users=4, n_items=5, **columns)
    for name in ("indptr", "indices", "weights", "timestamps"):
        np.testing.assert_array_equal(getattr(wider, name), getattr(same, name))
    assert (wider.n_users, wider.n_items) == (4, 5) and wider.indptr.dtype == np.int32
    assert wider.contains(np.array([1, 3]), np.array([1, 1])).tolist() == [True, False]
    assert data.extend(n_items=3).n_users == 2 and data.extend().n_items == 3
    on_device = jax.device_put(data).extend(n_users=3)
    assert on_device.n_pairs == 3 and np.asarray(on_device.user_degrees).tolist() == [1, 2, 0]
    for wrong in ({"n_users": 1}, {"n_items": 2.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}; give an integer from"):
            data.extend(**wrong)


def test_ids_with_large_gaps_cause_a_warning():
    with pytest.warns(DataWarning, match=r"items run to 193608, but only 2 of these ids occur.*n_items=193609 if"):
        assert Interactions.from_pairs([0, 1], [1, 193608]).n_items == 193609
    with pytest.warns(DataWarning, match="users run to 20, but only 2 of these ids occur"):
        Interactions.from_pairs([1, 20, 20], [0, 1, 2])
    assert Interactions.from_pairs([0, 19], [0, 1]).n_users == 20


@pytest.mark.parametrize("ids", [[1, 2, 3], [3, 1, 1], np.arange(1, 50)])
def test_ids_that_start_at_one_cause_a_warning(ids):
    zero_based = np.zeros(len(ids), int)
    with pytest.warns(DataWarning, match="users seem to start at 1, .*; subtract 1, .* or give n_users"):
        assert Interactions.from_pairs(ids, np.arange(len(ids))).n_users == max(ids) + 1
    with pytest.warns(DataWarning, match="items seem to start at 1"):
        Interactions.from_pairs(np.arange(len(ids)), ids)
    size = max(ids) + 1  # who gives sizes knows the ids
    assert Interactions.from_pairs(ids, np.arange(len(ids)), n_users=size, n_items=50).n_pairs == len(ids)
    assert Interactions.from_pairs(zero_based[:1], [1]).n_items == 2  # one id says nothing


@pytest.mark.parametrize("dtype, values", [("string", ["a", None]), ("Int64", [1, None])])
def test_missing_values_of_pandas_own_types_are_refused(dtype, values):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"u": pd.array(values, dtype=dtype), "i": [1, 2]})
    with pytest.raises(ValueError, match=r"users\[1\] is missing"):
        Interactions.from_dataframe(frame, user="u", item="i")


# ---------------------------------------------------------------------- product


@pytest.mark.parametrize("weighted", [True, False])
def test_spmm_and_its_gradient_inside_jit_with_the_matrix_as_argument(weighted):
    dense = DENSE if weighted else (DENSE > 0).astype(np.float32)
    matrix = Interactions.from_scipy(scipy.sparse.csr_array(dense))
    assert (matrix.weights is not None) == weighted
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)

    @jax.jit
    def loss(x, matrix, transposed):
        return (spmm(matrix, transposed, x) ** 2).sum()

    value, gradient = jax.value_and_grad(loss)(x, matrix, matrix.transpose())
    np.testing.assert_allclose(value, ((dense @ x) ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * dense.T @ (dense @ x), rtol=1e-5, atol=1e-5)


@pytest.mark.deep
def test_spmm_in_float64_and_its_form_for_accelerators():
    rng = np.random.default_rng(0)
    dense = rng.random((7, 6)) * (rng.random((7, 6)) < 0.4)
    dense[3] = 0
    matrix, x = Interactions.from_scipy(scipy.sparse.csr_array(dense)), rng.normal(size=(6, 3))
    with jax.enable_x64(True):
        stored = dense.astype(np.float32).astype(np.float64)  # weights are float32, their product is not
        product = spmm(matrix, matrix.transpose(), x)
        assert product.dtype == jnp.float64
        np.testing.assert_allclose(product, stored @ x, rtol=1e-13, atol=1e-13)
        weights, indices, indptr = (jnp.asarray(c) for c in (matrix.weights, matrix.indices, matrix.indptr))
        gathered = _spmm_segments(weights.astype(jnp.float64), indices, indptr, jnp.asarray(x), n_users=7)
        np.testing.assert_allclose(gathered, stored @ x, rtol=1e-13, atol=1e-13)


def test_spmm_refuses_a_table_of_other_length():
    with pytest.raises(AssertionError):
        spmm(MATRIX, MATRIX.transpose(), jnp.ones((4, 2)))


# ---------------------------------------------------------------------- import


def test_importing_touches_no_device():
    """The platform does not exist, so that any use of a device would fail."""
    modules = ", ".join(
        f"jaxrec.{name}" for name in ("interactions", "losses", "metrics", "sampling", "evaluate", "models")
    )
    code = f"import jax, {modules}\ntry: jax.devices()\nexcept RuntimeError: print('no device')"
    env = os.environ | {"JAX_PLATFORMS": "no_such_platform"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "no device"), run.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_users": 2.5}, "n_users=2.5"),
        ({"n_items": 0}, "n_items=0"),
        ({"weights": [1e39]}, r"weights\[0\] is 1e\+39; weights are finite float32"),
    ],
)
def test_sizes_and_weights_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Interactions.from_pairs([0], [0], **options)


KEY = jax.random.key(0)
TAKERS = {
    "fit": lambda x: jr.train.fit(jr.train.init(KEY, MF, TX), None, TX, x, epochs=1),
    "newton": lambda x: jr.solvers.gauss_newton.fit(None, {}, x, regularization=1.0),
    "ials": lambda x: jr.solvers.ials.fit(x, dim=1, regularization=1.0, unobserved_weight=1.0, key=KEY),
    "ials.objective": lambda x: jr.solvers.ials.objective(TABLES, x, regularization=1.0, unobserved_weight=1.0),
    "wrmf_objective": lambda x: jr.solvers.wrmf.objective(TABLES, x, regularization=1.0, alpha=1.0),
    "ials.fold_in": lambda x: jr.solvers.ials.fold_in(TABLES, x, regularization=1.0, unobserved_weight=1.0),
    "rg2": lambda x: jr.solvers.rg2.fit(x, dim=1, regularization=1.0, key=KEY),
    "rg2.objective": lambda x: jr.solvers.rg2.objective(TABLES, x, regularization=1.0),
    "rg2.fold_in": lambda x: jr.solvers.rg2.fold_in(TABLES, x, regularization=1.0),
    "full_ranking": lambda x: jr.evaluate.full_ranking(MF, TABLES, TRAIN, x),
    "separate_ranking": lambda x: jr.papers.lambda_opt.separate_ranking(MF, TABLES, x, TRAIN),
    "top_k": lambda x: jr.evaluate.top_k(MF, TABLES, [0], k=1, seen=x),
    "sampled_ranking": lambda x: jr.evaluate.sampled_ranking(MF, TABLES, ([0], [0]), [[1]], train=x),
    "audit": lambda x: jr.evaluate.audit(TRAIN, x),
    "k_core": jr.data.splits.k_core,
    "ratio": lambda x: jr.data.splits.ratio(x, order=None),
    "in_turn": lambda x: jr.data.splits.in_turn(x, order=None),
    "leave_one_out": lambda x: jr.data.splits.leave_one_out(x, order=None),
    "global_time": lambda x: jr.data.splits.global_time(x, valid_from=1, test_from=2),
    "given": lambda x: jr.data.splits.given(x, valid=[], test=[]),
    "keep_users": lambda x: jr.data.splits.keep_users(x, []),
    "held_out_users": lambda x: jr.data.splits.held_out_users(KEY, x, n_valid=1, n_test=1, order=None),
    "popularity_table": jr.sampling.popularity_table,
    "explorative": lambda x: jr.sampling.explorative(KEY, (1,), train=x, table=None),
    "reject_seen": lambda x: jr.sampling.reject_seen(KEY, jnp.array([0]), sample=None, seen=x),
    "in_batch": lambda x: jr.sampling.in_batch(jnp.array([0]), jnp.array([0]), seen=x),
    "draws": lambda x: jr.train.lambda_opt.draws(KEY, BATCH, objective=None, train=TRAIN, valid=x),
    "adaptive_margin": jr.train.mars.adaptive_margin,
    "nmf": lambda x: jr.solvers.nmf.fit(x, dim=1, key=KEY),
    "popularity": jr.models.popularity,
    "ease": lambda x: jr.solvers.ease.fit(x, regularization=1.0),
    "LightGCN": jr.models.LightGCN,
    "ultragcn": jr.train.ultragcn.constraints,
    "TransCF": jr.models.TransCF,
    "singles": lambda x: jr.train.singles(TRAIN, histories=x),
    "groups": lambda x: jr.train.groups(x, n=2),
}
TRAIN = Interactions.from_pairs([0, 1], [1, 0])
MF, TX = jr.models.MF(2, 2, dim=1), optax.sgd(0.1)
TABLES = {"params": {"user": jnp.ones((2, 1)), "item": jnp.ones((2, 1))}}
BATCH = jr.train.Batch.of(jnp.array([0]), jnp.array([1]))


LEARNERS = {
    name: TAKERS[name] for name in ("fit", "newton", "ials", "rg2", "rg2.objective", "popularity_table", "nmf", "ease")
}
LEARNERS |= {
    "decompose": lambda x: jr.solvers.rg2.decompose(x, dim=1, key=KEY),
    "wrmf": lambda x: jr.solvers.wrmf.fit(x, dim=1, regularization=1.0, alpha=1.0, key=KEY),
    "singles": jr.train.singles,
    "groups": lambda x: jr.train.groups(x, n=2),
    "by_user": jr.train.by_user,
    "sweep": lambda x: jr.train.sweep(jax.random.split(KEY, 2), lambda: (MF, None, TX), x, epochs=1),
    "alternating": lambda x: jr.train.autoencoders.alternating(KEY, jr.models.RecVAE(2, dim=1), TX, x, epochs=1),
}


@pytest.mark.deep
@pytest.mark.every_case
@pytest.mark.parametrize("name", LEARNERS)
def test_nothing_is_learned_from_no_pairs(name):
    with pytest.raises(ValueError, match=r"^train has no pairs"):
        LEARNERS[name](Interactions.from_pairs([], [], n_users=2, n_items=2))


@pytest.mark.parametrize("name", TAKERS)
def test_a_wrong_type_instead_of_interactions_is_named_with_its_remedy(name):
    with pytest.raises(TypeError, match=r"^\w+ is a csr_array; give Interactions: Interactions.from_scipy\(\w+\)$"):
        TAKERS[name](TRAIN.to_scipy())


def test_each_wrong_type_instead_of_interactions_has_its_own_remedy():
    split = jr.data.splits.given(TRAIN, valid=np.zeros(2, bool), test=np.zeros(2, bool))
    frame = type("DataFrame", (), {"columns": ()})()
    labelled = Interactions.from_labels(["a", "b"], [1, 2])
    remedies = {"train.train": split, r"train\[0\]": labelled, "from_dataframe": frame, "from_pairs": TRAIN.pairs()}
    for remedy, value in remedies.items():
        with pytest.raises(TypeError, match=remedy):
            jr.models.popularity(value)


def test_contains_takes_lists():
    matrix = Interactions.from_pairs([0, 1], [2, 0], n_users=2, n_items=3)
    assert matrix.contains([0, 0, 1], [2, 1, 0]).tolist() == [True, False, True]


def test_functions_of_interactions_can_be_stored_and_loaded():
    pytest.importorskip("flatbuffers")
    train = Interactions.from_pairs([0, 0, 2], [1, 3, 0], weights=[1.0, 2.0, 3.0])
    double = jax.jit(
        lambda given: {"both": (dataclasses.replace(given, weights=2 * given.weights), given.user_degrees)}
    )
    stored = jax.export.export(double)(jax.tree.map(jnp.asarray, train)).serialize()
    matrix, degrees = jax.export.deserialize(stored).call(train)["both"]
    assert (matrix.n_users, matrix.n_items) == (3, 4) and matrix.timestamps is None
    assert matrix.weights.tolist() == [2, 4, 6] and matrix.indices.tolist() == [1, 3, 0]
    assert degrees.tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="tree"):
        jax.export.deserialize(stored).call(dataclasses.replace(train, n_items=5))
