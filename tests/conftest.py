"""How tests run: JAX is strict, warnings are errors (pyproject), and `pytest` runs only the quick tests.

`pytest` runs the first case of each parametrised test, and all cases of those marked `every_case`; `pytest -m deep`
runs the rest, and the tests marked `deep`. XLA compiles with few optimisations, which halves the time: most tests
compile much and compute little. Those marked `optimised` are about what the optimisations do.
"""

import os
import pathlib

# Otherwise GPUs add in any order, and no result is bit-identical to the last.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=4 --xla_gpu_deterministic_ops=true"
)

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_disable_most_optimizations", True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the tests that `pytest` leaves out, and the first case of each test; see above."""
    seen, first = set(), set()
    for item in items:
        test = (item.path, getattr(item, "originalname", item.name))
        if test not in first:
            item.add_marker(pytest.mark.first)
            first.add(test)
        if test in seen and not item.get_closest_marker("every_case"):
            item.add_marker(pytest.mark.deep)
        if not item.get_closest_marker("deep"):
            seen.add(test)


@pytest.fixture(autouse=True)
def optimisations(request):
    """Compiles as a user's program does where the test is marked `optimised`."""
    wanted = request.node.get_closest_marker("optimised") is not None
    if wanted:
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()
    yield
    if wanted:
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def caches():
    """Clears the compiled programs of a file: the next one does not use them, and they take memory."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def data_root() -> pathlib.Path:
    """The folder of real data sets, `<name>/data.npz` each."""
    root = os.environ.get("JAXREC_DATA")
    if not root or not pathlib.Path(root).is_dir():
        pytest.skip("set JAXREC_DATA to the folder of real data sets to run this test")
    return pathlib.Path(root)


@pytest.fixture
def float64():
    """The test runs with 64-bit numbers."""
    with jax.enable_x64(True):
        yield
