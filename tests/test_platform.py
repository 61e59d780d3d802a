"""Threads of a CPU: the same results, in the context of the thread that calls, and errors that reach it."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import _platform, evaluate, models
from jaxrec.data import synthetic

TRAIN, TEST = synthetic.checkerboard(40)
MODEL = models.MF(40, 40, dim=3)


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
    """Else the inputs of all calls would be in memory at once."""
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
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("rows",))
    spread = jax.device_put(np.arange(4.0), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows")))
    found = _platform.concurrently(jax.jit(jnp.sum), [(spread,), (2 * spread,)])
    assert [float(x) for x in found] == [6, 12]
    with jax.disable_jit():
        assert [int(x) for x in _platform.concurrently(jax.jit(jnp.sum), [(jnp.arange(3),)] * 2)] == [3, 3]
