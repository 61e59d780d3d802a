"""Strict JAX for every test: no silent rank or dtype promotion, four CPU devices, warnings are errors (pyproject)."""

import os
import pathlib

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session")
def data_root() -> pathlib.Path:
    """The folder of real data sets, `<name>/data.npz` each."""
    root = os.environ.get("JAXREC_DATA")
    if not root or not pathlib.Path(root).is_dir():
        pytest.skip("set JAXREC_DATA to the folder of real data sets to run this test")
    return pathlib.Path(root)


@pytest.fixture
def hurried():
    """For tests that compile much and compute little: XLA is asked to hurry, which halves their time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
