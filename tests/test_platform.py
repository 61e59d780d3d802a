"""Sizes of other devices give the same results. Threads of a CPU do too; errors reach the thread that calls."""

import threading
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import Interactions, _platform, evaluate, models, solvers
from jaxrec.data import synthetic

TRAIN, TEST = synthetic.checkerboard(40)
MODEL = models.MF(40, 40, dim=3)
WIDE = Interactions.from_pairs(np.repeat(np.arange(5), 4), np.arange(20) * 14, n_users=5, n_items=300)


@pytest.fixture
def three(monkeypatch):
    monkeypatch.setattr(_platform, "cores", lambda: 3)


@pytest.mark.parametrize("x64", [False, True])
def test_rankings_on_threads_are_those_of_one(x64, monkeypatch):
    rng = np.random.default_rng(0)
    variables = {"params": {side: rng.normal(size=(40, 3)) for side in ("user", "item")}}  # float64
    found = []
    with jax.enable_x64(x64):
        for n in (1, 3):
            monkeypatch.setattr(_platform, "cores", lambda n=n: n)
            found.append(evaluate.top_k(MODEL, variables, np.arange(40), k=5, seen=TRAIN, block=3))
    for a, b in zip(*found):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_calls_are_in_order_and_inputs_are_made_in_the_callers_thread(three):
    here, makers = threading.get_ident(), set()

    def inputs():
        for n in range(20):
            makers.add(threading.get_ident())
            yield np.full(4, n, np.float32), np.float32(2)

    function = jax.jit(lambda x, scale, *, shift: scale * x + shift, static_argnames="shift")
    found = _platform.concurrently(function, inputs(), shift=1)
    np.testing.assert_array_equal(np.stack(found)[:, 0], 2 * np.arange(20) + 1)
    assert makers == {here}


def test_inputs_are_made_only_when_a_thread_is_free(three):
    """Otherwise the inputs of all calls would be in memory at once."""
    started, made = [], []

    def function(x):
        jax.debug.callback(lambda n: (time.sleep(0.02), started.append(int(n))), x)
        return x

    def inputs():
        for n in range(12):
            made.append(n - len(started))
            yield (jnp.int32(n),)

    _platform.concurrently(jax.jit(function), inputs())
    assert max(made) <= 6, made  # three run, one waits, and callbacks may come late


def test_an_error_of_a_call_reaches_the_caller(three):
    def refuse(x):
        if x > 3:
            raise ValueError(f"{x} is above 3")

    def function(x):
        jax.debug.callback(refuse, x)
        return x + 1

    with pytest.raises(Exception, match="is above 3"):
        _platform.concurrently(jax.jit(function), [(jnp.int32(n),) for n in range(6)])


def test_arrays_on_several_devices_are_not_divided_among_threads(three, monkeypatch):
    """Programs that communicate must run in the same order on all devices."""
    monkeypatch.setattr(_platform.threading, "Thread", None)
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:2]), ("rows",))
    spread = jax.device_put(np.arange(4.0), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows")))
    found = _platform.concurrently(jax.jit(jnp.sum), [(spread,), (2 * spread,)])
    assert [float(x) for x in found] == [6, 12]
    with jax.disable_jit():
        assert [int(x) for x in _platform.concurrently(jax.jit(jnp.sum), [(jnp.arange(3),)] * 2)] == [3, 3]


# ---------------------------------------------------------------------- sizes


@pytest.fixture
def sizes_of_accelerators(monkeypatch):
    """Returns a function after whose call programs take the sizes of accelerators."""

    def use():
        for name, size in _platform.SIZES.items():
            monkeypatch.setitem(_platform.SIZES, name, _platform.Size(size.accelerator, size.accelerator))
        jax.clear_caches()

    yield use
    jax.clear_caches()


def by_als():
    return solvers.wrmf.fit(
        TRAIN, dim=3, alpha=5.0, regularization=1.0, sweeps=2, key=jax.random.key(0), progress=False
    )[1]


def by_rg2():
    options = {"dim": 3, "alpha": 0.5, "regularization": 0.1, "sweeps": 2, "steps": 3}
    return solvers.rg2.fit(TRAIN, **options, key=jax.random.key(0), progress=False)[1]


def by_valid():
    """The gradient of a bound. On a CPU its decoder has two chunks of items."""
    model = models.VALID(300, dim=4, n_interests=2, width=4)
    ids = np.zeros(1, np.int32)
    variables, known = model.init(jax.random.key(0), ids, ids), WIDE.take(np.arange(5))
    bound = lambda v: model.apply(v, np.arange(5), histories=known, method="bound")[0].sum()  # noqa: E731
    return jax.jit(jax.grad(bound))(variables)


def by_network():
    model = models.NeuMF(40, 40, dim=4, layers=(8, 4))
    variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    return evaluate.full_ranking(model, variables, TRAIN, TEST, ks=(3,)).means


def by_search():
    return jax.jit(TRAIN.contains)(jnp.arange(40), jnp.arange(40)[::-1])


@pytest.mark.parametrize("run", [by_als, by_rg2, by_valid, by_network, by_search])
def test_sizes_of_accelerators_give_the_same(run, sizes_of_accelerators):
    expected = jax.tree.map(np.asarray, run())
    sizes_of_accelerators()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), run(), expected)


def test_an_exported_program_takes_the_size_of_its_own_platform(monkeypatch):
    monkeypatch.setitem(_platform.SIZES, "pairs", _platform.Size(7, 11))
    program = jax.jit(lambda x: _platform.sized("pairs", lambda size, x: x * size, x))
    assert program(jnp.float32(2)) == 14 or jax.default_backend() != "cpu"
    texts = {
        name: jax.export.export(program, platforms=[name])(jnp.float32(2)).mlir_module() for name in ("cpu", "cuda")
    }
    assert "7.0" in texts["cpu"] and "11.0" not in texts["cpu"]
    assert "1.1" in texts["cuda"] and "7.0" not in texts["cuda"]


@pytest.mark.every_case
@pytest.mark.parametrize(
    "version, device, slow",
    [
        ("0.10.1", "gpu", False),
        ("0.10.2", "gpu", True),
        ("0.11.0", "gpu", True),
        ("0.11.0rc1", "gpu", True),
        ("0.11.1", "gpu", False),
        ("0.12.0.1", "gpu", False),
        ("0.11.0", "cpu", False),
    ],
)
def test_versions_with_slow_sums_on_gpus_cause_one_warning(version, device, slow, monkeypatch):
    monkeypatch.setattr(jax.lib, "__version__", version)
    monkeypatch.setattr(_platform, "platform", lambda tree=None: device)
    _platform.warn_of_slow_sums.cache_clear()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        _platform.warn_of_slow_sums()
        _platform.warn_of_slow_sums()
    assert [str(each.message)[: 7 + len(version)] for each in found] == [f"jaxlib {version}"] * slow
    _platform.warn_of_slow_sums.cache_clear()


@pytest.mark.deep
def test_the_platform_is_that_of_the_arrays():
    one = jax.devices("cpu")[0]
    assert _platform.platform({"table": jax.device_put(np.ones(3), one)}) == "cpu"
    with jax.default_device(one):
        assert _platform.platform({"table": np.ones(3)}) == "cpu"
