"""Checksums: the same for all shardings, and different for every flipped bit and moved entry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxrec._checksum import _sum, checksum, of_array

RNG = np.random.default_rng(0)


@pytest.mark.every_case
@pytest.mark.parametrize("spec", [(), ("a",), (None, "a"), ("a", "b"), (("a", "b"),), (None, None, "b")])
def test_shards_add_up_to_the_whole(spec):
    x = RNG.normal(size=(8, 4, 6)).astype(np.float32)
    mesh = jax.make_mesh((2, 2), ("a", "b"))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    parts = [_sum(np.asarray(s.data), x.shape, s.index) for s in sharded.addressable_shards if s.replica_id == 0]
    assert sum(parts) % 2**64 == int(of_array(x), 16) == int(of_array(sharded), 16)


@pytest.mark.every_case
@pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16", "float32", "float64", "complex64", "complex128"])
def test_every_bit_counts(dtype):
    x = np.asarray(RNG.normal(size=(3, 5)) > 0).astype(jnp.dtype(dtype))
    seen = {of_array(x)}
    for byte in range(x.nbytes):
        flipped = bytearray(x.tobytes())
        flipped[byte] ^= 1 if dtype == "bool" else 1 << byte % 8
        seen.add(of_array(np.frombuffer(flipped, x.dtype).reshape(x.shape)))
    assert len(seen) == x.nbytes + 1


def test_places_count_and_long_arrays_are_summed_in_blocks():
    x = RNG.integers(0, 9, 100_000, dtype=np.int32)
    assert of_array(x) == of_array(x.reshape(1000, 100)) == of_array(x.reshape(1, 100_000))
    swapped = x.copy()
    swapped[[0, -1]] = 9, 10
    other = x.copy()
    other[[0, -1]] = 10, 9
    assert of_array(swapped) != of_array(other)


def test_trees():
    tree = {"a": np.ones(3, np.float32), "b": np.float32(2), "none": np.zeros((0, 4)), "key": jax.random.key(1)}
    assert checksum(tree) == checksum(jax.tree.map(jnp.asarray, tree))
    assert checksum(tree) != checksum(tree | {"key": jax.random.key(2)})
