"""Penalties with fine-grained coefficients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.optim.regularization import coefficients, penalty

M, N, D = 5, 7, 3


def tables(*row, dtype=np.float32):
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=(n, *row)).astype(dtype)) for name, n in (("user", M), ("item", N))}


@pytest.mark.parametrize(
    ("granularity", "users", "items", "count"),
    [
        ("global", (), (), 1),
        ("D", (1, D), (1, D), D),
        ("DD", (1, D), (1, D), 2 * D),
        ("U", (M, 1), None, M),
        ("I", None, (N, 1), N),
        ("UI", (M, 1), (N, 1), M + N),
        ("DU", (M, D), (1, D), (M + 1) * D),
        ("DI", (1, D), (N, D), (N + 1) * D),
        ("DUI", (M, D), (N, D), (M + N) * D),
    ],
)
def test_granularities_have_different_coefficients_and_the_same_penalty_if_all_are_equal(
    granularity, users, items, count
):
    """The gradient of a coefficient is the sum of squares of all entries that share it."""
    params = tables(D)
    lambdas = coefficients(params, granularity, value=0.5)
    assert sum(leaf.size for leaf in jax.tree.leaves(lambdas)) == count
    squares = {name: np.square(params[name], dtype=np.float64) for name in params}
    shapes = {"user": users, "item": items}
    expected = sum(0.5 * squares[name].sum() for name in params if shapes[name] is not None)
    value, slopes = jax.value_and_grad(penalty)(lambdas, params)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    sums = {
        name: squares[name].sum(tuple(a for a in range(2) if shape[a : a + 1] in ((), (1,))), keepdims=shape != ())
        for name, shape in shapes.items()
        if shape is not None
    }
    sums = sums if isinstance(lambdas, dict) else sums["user"] + sums["item"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), slopes, sums)


def test_a_table_of_facets_has_dimensions_behind_its_rows():
    lambdas = coefficients(tables(2, D), "DU")
    assert {name: leaf.shape for name, leaf in lambdas.items()} == {"user": (M, 2, D), "item": (1, 2, D)}
    assert coefficients(tables(2, D), "U")["user"].shape == (M, 1, 1)


@pytest.mark.parametrize("granularity", ["global", "D", "UI", "DUI"])
def test_rows_are_penalised_as_often_as_they_occur(granularity):
    params, ids = tables(D), {"user": np.array([3, 1, 3, 3]), "item": np.array([6, 6, 0, 2])}
    weights = np.array([0.5, 0.25, 0.125, 0.0], np.float32)
    lambdas = jax.tree.map(
        lambda x: x + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), coefficients(params, granularity)
    )
    found = jax.grad(penalty, argnums=1)(lambdas, params, {name: (ids[name], weights) for name in ids})
    for name, table in params.items():
        share = np.bincount(ids[name], weights, len(table))[:, None]
        own = np.asarray(lambdas[name] if isinstance(lambdas, dict) else lambdas)
        np.testing.assert_allclose(found[name], 2 * own * np.asarray(table) * share, rtol=1e-5)


@pytest.mark.deep
def test_names_choose_and_nest():
    params = {"user": jnp.ones((2, 3)), "tower": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
    assert float(penalty({"tower": jnp.float32(0.5)}, params)) == 8
    assert float(penalty({"tower": {"bias": jnp.full(4, 0.5)}}, params)) == 2
    assert float(penalty(jnp.ones((1, 3)), params, shared=["user"])) == 6
    ids, weights = jnp.array([1]), jnp.array([2.0])
    assert float(penalty({"user": jnp.ones((2, 1)), "tower": jnp.ones(())}, params, {"user": (ids, weights)})) == 22


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: coefficients(tables(D), "DIU"), "granularity='DIU'"),
        (lambda: coefficients(tables(D), value=-1.0), "value=-1.0"),
        (lambda: coefficients(tables(D), tables=("user", "items")), "no parameter is named 'items'"),
        (lambda: coefficients({"user": jnp.ones((2, 3)), "item": jnp.ones((2, 4))}, "D"), "give 'DD'"),
        (lambda: penalty({"users": jnp.ones(())}, tables(D)), "no parameter is named 'users'"),
        (
            lambda: penalty({"user": jnp.ones(D)}, tables(D)),
            r"'user' have shape \(3,\), but the parameter has \(5, 3\)",
        ),
        (
            lambda: penalty({"user": jnp.ones((M + 1, 1))}, tables(D)),
            r"have shape \(6, 1\), but the parameter has \(5, 3\)",
        ),
    ],
)
def test_wrong_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.deep
def test_values_are_finite_numbers_of_any_library_and_tables_keep_their_type():
    for value in (np.float32(-1), float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"^value=.*; give a finite number of 0 or more"):
            coefficients(tables(D), value=value)
    params, rows = tables(D), {"user": (jnp.array([1, 1]), jnp.array([0.5, 0.25]))}
    expected = penalty(coefficients(params, value=0.5), params, rows)
    with jax.enable_x64(True):
        for lambdas in (coefficients(params, value=np.float32(0.5)), dict.fromkeys(params, 0.5)):
            found = penalty(lambdas, params, jax.tree.map(np.asarray, rows))
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-6)
