import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec._numerics import accumulated, as_integer, integer, number

INTEGERS = [3, np.int64(3), np.uint8(3), np.array(3), jnp.int32(3)]


@pytest.mark.parametrize("value", INTEGERS, ids=lambda x: type(x).__name__)
def test_integers_of_every_kind_are_one(value):
    assert integer("n", value) == 3 and type(integer("n", value)) is int


@pytest.mark.parametrize("value", [3.0, np.float64(3), "3", None, np.array([3, 4]), jnp.float32(3)])
def test_values_that_are_not_integers_are_named(value):
    assert as_integer(value) is None
    with pytest.raises(ValueError, match=r"^n=.*; give an integer of 1 or more$"):
        integer("n", value)


def test_a_traced_integer_is_not_known():
    assert jax.jit(lambda n: jnp.int32(as_integer(n) is None))(3) == 1


def test_a_traced_integer_is_named():
    with pytest.raises(TypeError, match="n is traced, but must be known while tracing"):
        jax.jit(lambda n: jnp.zeros(integer("n", n)))(3)


def test_bounds_are_named():
    with pytest.raises(ValueError, match="k=9; give an integer from 2 to 8"):
        integer("k", 9, least=2, most=8)
    with pytest.raises(ValueError, match=r"k=np.int8\(-1\); give an integer of 0 or more"):
        integer("k", np.int8(-1), least=0)


@pytest.mark.parametrize("value", [0.0, -1, np.float32(-1), jnp.float32(-2), float("nan"), float("inf"), "a", None])
def test_numbers_out_of_bounds_are_named(value):
    with pytest.raises(ValueError, match=r"^t=.*; give a finite number above 0$"):
        number("t", value, above=0)


def test_numbers_within_bounds_and_traced_ones_pass():
    assert number("t", np.array([0.5, 1.0]), above=0).tolist() == [0.5, 1.0]
    with pytest.raises(ValueError, match=r"t=\[0.5 0. \]; give a finite number above 0"):
        number("t", np.array([0.5, 0.0]), above=0)
    assert number("t", np.float32(0.5), above=0) == np.float32(0.5) and number("t", 0, least=0) == 0
    assert jax.jit(lambda t: number("t", t, above=0))(-1.0) == -1


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_floats_are_widened(dtype):
    assert accumulated(jnp.ones(2, dtype)).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8, bool])
def test_all_else_stays(dtype):
    assert accumulated(jnp.ones(2, dtype)).dtype == dtype
