"""The sparse product's derivatives of every order, against those of the dense product."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import sparse
from jaxrec.interactions import Interactions
from jaxrec.sparse import spmm

DENSE = np.random.default_rng(0).random((7, 5)) < 0.4
DENSE[3] = DENSE[:, 2] = False
MATRIX = Interactions.from_pairs(*DENSE.nonzero(), n_users=7, n_items=5)
USERS, ITEMS = MATRIX.pairs()
RNG = np.random.default_rng(1)
WEIGHTS, TABLE = RNG.normal(size=MATRIX.n_pairs), RNG.normal(size=(5, 3))
MOVES, FACTORS = (
    (RNG.normal(size=WEIGHTS.shape), RNG.normal(size=TABLE.shape)),
    RNG.normal(size=(7, 3)),
)


def weighted(weights):
    return dataclasses.replace(MATRIX, weights=weights)


def by_spmm(transposed):
    return lambda weights, x: (jnp.sin(spmm(weighted(weights), transposed, x)) * FACTORS).sum()


def by_dense(weights, x):
    return (jnp.sin(jnp.zeros((7, 5)).at[USERS, ITEMS].set(weights) @ x) * FACTORS).sum()


def derivatives(f):
    """Gradients in weights and table, second derivatives along MOVES in both and in each, and a third one."""

    def gradients(weights, x):
        return jax.grad(f, (0, 1))(weights, x)

    def curvature(weights, x):
        return jax.grad(lambda *at: sum(map(jnp.vdot, gradients(*at), MOVES)), (0, 1))(weights, x)

    def of_weights(weights, x):
        return jax.grad(lambda w: jnp.vdot(jax.grad(f, 1)(w, x), MOVES[1]))(weights)

    def of_table(weights, x):
        return jax.grad(lambda x: jnp.vdot(jax.grad(f, 0)(weights, x), MOVES[0]))(x)

    def third(weights, x):
        return jax.grad(lambda w: jnp.vdot(curvature(w, x)[0], MOVES[0]))(weights)

    return jax.jit(lambda *at: (gradients(*at), curvature(*at), of_weights(*at), of_table(*at), third(*at)))


@pytest.mark.deep
@pytest.mark.parametrize("transposed", ["given", "none", "stale"])
def test_derivatives_of_every_order_are_those_of_the_dense_product(transposed):
    """Derivatives in the weights do not depend on the weights of `transposed`."""
    transposed = {
        "given": weighted(WEIGHTS).transpose(),
        "none": None,
        "stale": weighted(0 * WEIGHTS).transpose(),
    }[transposed]
    with jax.enable_x64(True):
        found, expected = (jax.tree.leaves(derivatives(f)(WEIGHTS, TABLE)) for f in (by_spmm(transposed), by_dense))
        # One derivative is only of the table's gradient, which uses the weights of `transposed`.
        if transposed is not None and not transposed.weights.any():
            found, expected = found[:4] + found[5:], expected[:4] + expected[5:]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.deep
def test_gradients_under_vmap_are_those_one_by_one():
    tables = RNG.normal(size=(4, *TABLE.shape))
    several = RNG.normal(size=(4, len(WEIGHTS)))
    with jax.enable_x64(True):
        found = jax.vmap(jax.grad(by_spmm(None), (0, 1)))(several, tables)
        expected = jax.vmap(jax.grad(by_dense, (0, 1)))(several, tables)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.deep
def test_the_gradient_of_a_matrix_has_zeros_for_its_integers_and_none_for_the_transposed():
    x = TABLE.astype(np.float32)
    matrix = weighted(WEIGHTS.astype(np.float32))
    for_matrix, for_transposed = jax.grad(lambda a, b: spmm(a, b, x).sum(), (0, 1), allow_int=True)(
        matrix, matrix.transpose()
    )
    np.testing.assert_allclose(for_matrix.weights, x.sum(1)[ITEMS], rtol=1e-5)
    assert for_matrix.indices.dtype == for_matrix.indptr.dtype == jax.dtypes.float0
    assert for_transposed.weights.shape == WEIGHTS.shape and not np.any(for_transposed.weights)


def test_a_transpose_of_the_transpose_of_the_product_is_the_product():
    transposed = MATRIX.transpose()
    _, pull = jax.vjp(lambda x: spmm(MATRIX, transposed, x), TABLE.astype(np.float32))
    _, push = jax.vjp(lambda cotangent: pull(cotangent)[0], jnp.zeros((7, 3), jnp.float32))
    np.testing.assert_allclose(push(TABLE.astype(np.float32))[0], DENSE @ TABLE, rtol=1e-5, atol=1e-6)


def test_training_of_a_table_does_not_pay_for_the_gradient_of_weights():
    """The jaxpr of the table's gradient gathers no pairs and sorts nothing. That of the weights' gradient does."""
    f = by_spmm(weighted(WEIGHTS).transpose())
    with jax.enable_x64(True):
        texts = [str(jax.make_jaxpr(jax.grad(f, at))(WEIGHTS, TABLE)) for at in (1, 0)]
    assert ["scan" in text or "sort[" in text for text in texts] == [False, True]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    """4000 ones: bfloat16 would stop at 256, float16 at 2048."""
    row = Interactions.from_pairs(np.zeros(4000, int), np.arange(4000))
    x = jnp.ones((4000, 1), dtype)
    product, pull = jax.vjp(lambda x: spmm(row, row.transpose(), x), x)
    assert product.dtype == dtype and product.tolist() == [[4000.0]]
    assert pull(product)[0].dtype == dtype


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a program for CPUs runs on CPUs")
def test_the_product_is_the_same_in_a_program_that_is_exported():
    """There it must call no function of jaxlib, which `jax.export` refuses."""
    transposed, x = MATRIX.transpose(), TABLE.astype(np.float32)
    product = jax.jit(lambda x: jax.value_and_grad(lambda x: (spmm(MATRIX, transposed, x) ** 2).sum())(x))
    found = jax.export.export(product, platforms=["cpu"])(x).call(x)
    called = product.lower(x).as_text()
    assert "cpu_csr_sparse_dense" in called
    for one, other in zip(found, product(x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_tables_that_are_vmapped_are_multiplied_as_one():
    tables = RNG.normal(size=(4, 5, 3)).astype(np.float32)
    product = jax.vmap(lambda x: spmm(MATRIX, None, x), in_axes=1, out_axes=2)
    found = jax.jit(product).trace(np.moveaxis(tables, 0, 1))
    assert str(found.jaxpr).count("jaxrec_spmm") == 1 and "f32[7,12]" in str(found.jaxpr)
    np.testing.assert_allclose(
        np.moveaxis(product(np.moveaxis(tables, 0, 1)), 2, 0), DENSE @ tables, rtol=1e-5, atol=1e-6
    )
    with jax.disable_jit():
        np.testing.assert_allclose(spmm(MATRIX, None, jnp.asarray(tables[0])), DENSE @ tables[0], rtol=1e-5, atol=1e-6)


def test_a_transposed_that_is_not_the_transpose_is_refused():
    for wrong in (
        MATRIX,
        weighted(WEIGHTS).transpose(),
        MATRIX.transpose().select(np.arange(MATRIX.n_pairs) > 0),
    ):
        with pytest.raises(ValueError, match=r"transposed is Interactions.*give matrix.transpose\(\), or None"):
            spmm(MATRIX, wrong, TABLE)


# ---------------------------------------------------------------------- rows by users' ids


@pytest.mark.deep
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_ids_of_any_integer_type_find_their_rows_and_ids_of_nobody_find_none(dtype):
    held = np.iinfo(dtype)
    outside = [x for x in (-1, -2, 7, 127, 255, 2**32 + 1, -(2**32)) if held.min <= x <= held.max]
    users = np.array([0, 6, *outside], dtype)
    expected = np.concatenate([DENSE[[0, 6]], np.zeros((len(outside), 5), bool)])
    items = np.arange(5, dtype=dtype)
    np.testing.assert_array_equal(MATRIX.contains(users[:, None], items[None]), expected)
    assert not np.asarray(MATRIX.contains(items[:1], np.array(outside, dtype))).any()
    found, where = MATRIX.rows(users, length=5)
    np.testing.assert_array_equal(where, np.arange(5) < expected.sum(1, keepdims=True))
    np.testing.assert_array_equal(np.asarray(found)[np.asarray(where)], expected.nonzero()[1])
    rows, items, degrees = MATRIX.flat_rows(users, capacity=12)
    assert rows.dtype == items.dtype == degrees.dtype == found.dtype == jnp.int32
    n = expected.sum()
    np.testing.assert_array_equal(degrees, expected.sum(1))
    np.testing.assert_array_equal(np.stack([rows, items])[:, :n], expected.nonzero())
    assert (np.asarray(rows)[n:] == len(users)).all() and not np.asarray(items)[n:].any()


@pytest.mark.deep
def test_rows_near_the_largest_place_that_int32_holds():
    """The sum of two places, or of a place and a length, exceeds 2³¹. Places beyond `indices` read its last entry."""
    last = 2**31 - 1
    far = dataclasses.replace(MATRIX, indptr=np.array([0, last - 5, last], np.int32), n_users=2)
    assert far.contains(jnp.array([1]), jnp.arange(5)).tolist() == (np.arange(5) == ITEMS[-1]).tolist()
    rows, _, degrees = far.flat_rows(np.array([1], np.int32), capacity=5)
    assert rows.tolist() == [0] * 5 and degrees.tolist() == [5]
    assert far.rows(np.array([1]), length=9)[1].tolist() == [[True] * 5 + [False] * 4]


@pytest.mark.parametrize("floats", [1 << 29, 13, 1])
def test_the_product_of_accelerators_takes_parts_of_the_pairs(floats, monkeypatch):
    """Exported programs use it on a CPU, too."""
    monkeypatch.setattr(sparse, "_FLOATS", floats)
    matrix, x = weighted(np.float32(WEIGHTS)), np.float32(TABLE)
    args = matrix.weights, jnp.asarray(matrix.indices), jnp.asarray(matrix.indptr), jnp.asarray(x)
    found = jax.jit(lambda *args: sparse._spmm_segments(*args, n_users=7))(*args)
    np.testing.assert_allclose(found, matrix.to_scipy() @ x, rtol=1e-5, atol=1e-6)


def test_padding_belongs_to_no_user():
    """Histories may be padded. The product, the gradients and the exported program ignore the padding."""
    padded = jax.device_put(MATRIX.take(np.arange(7), capacity=MATRIX.n_pairs + 5))
    x = jnp.asarray(TABLE, jnp.float32)
    args = jnp.ones(padded.n_pairs), padded.indices, padded.indptr, x
    for found in (spmm(padded, None, x), sparse._spmm_segments(*args, n_users=7)):
        np.testing.assert_allclose(found, DENSE @ TABLE, rtol=1e-5, atol=1e-6)
    slope = jax.jit(jax.grad(lambda x: (spmm(padded, None, x) * FACTORS.astype(np.float32)).sum()))(x)
    np.testing.assert_allclose(slope, DENSE.T @ FACTORS, rtol=1e-5, atol=1e-6)
