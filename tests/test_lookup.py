import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec._lookup import lookup


@pytest.mark.deep
@pytest.mark.parametrize("shape", [(5, 16), (5, 12), (5, 2, 8), (5,), (5, 0)])
@pytest.mark.parametrize("ids", [np.array([3, 0, 3]), np.array([[1], [4]]), np.array(2), np.zeros((0, 2), int)])
def test_equals_indexing_and_so_does_its_gradient(shape, ids):
    table = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    found = lookup(table, jnp.asarray(ids))
    np.testing.assert_array_equal(found, np.asarray(table)[ids])
    weights = jnp.cos(jnp.arange(found.size, dtype=jnp.float32)).reshape(found.shape)
    slopes = [
        jax.grad(lambda t, get=get: (weights * get(t)).sum())(table)
        for get in (lambda t: lookup(t, ids), lambda t: t[ids])
    ]
    np.testing.assert_allclose(*slopes, rtol=1e-6)


def test_ids_out_of_range_are_treated_as_by_indexing():
    table = jnp.arange(32.0).reshape(2, 16)
    ids = jnp.array([-1, 7])
    np.testing.assert_array_equal(lookup(table, ids), table[ids])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32])
def test_ids_of_any_integer_type(dtype):
    table = jnp.arange(300 * 16.0).reshape(300, 16)
    ids = np.array([0, 127, 5], dtype)
    np.testing.assert_array_equal(lookup(table, ids), np.asarray(table)[ids])
    np.testing.assert_array_equal(lookup(table, 7), table[7])
