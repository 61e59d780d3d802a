"""What depends on the kind of device: threads of a CPU, and compiler options."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp


def cores() -> int:
    """Returns how many threads compute at the same time; 1 if the device is not a CPU."""
    if jax.default_backend() != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def concurrently(function: Any, inputs: Iterable[tuple], **static: Any) -> list:
    """Runs a jitted function on several inputs of the same shapes.

    On a CPU as many threads as there are cores call it, so that each core has its own part of the
    data in its cache. One program shares the cores less well. Arrays on several devices are not
    divided among threads, because programs that communicate must run in the same order everywhere.

    Args:
        function: the jitted function.
        inputs: the arguments of each call. This thread makes them, one call ahead.
        static: the static keyword arguments of all calls.
    """
    inputs = iter(inputs)
    first, second = next(inputs), next(inputs, None)
    if second is None:
        return [function(*first, **static)]
    calls = itertools.chain((first, second), inputs)
    if cores() == 1 or _n_devices(first) > 1 or jax.config.jax_disable_jit:
        return [function(*given, **static) for given in calls]
    # A thread lacks the context of this one, such as 64-bit types: compile and convert here.
    compiled = function.lower(*first, **static).compile()
    found, errors, threads, free = {}, [], [], threading.Semaphore(cores())

    def call(n: int, given: tuple) -> None:
        try:
            found[n] = jax.block_until_ready(compiled(*given))
        except BaseException as error:
            errors.append(error)
        finally:
            free.release()

    # Not a `ThreadPoolExecutor`: it makes all inputs at once, and refuses calls while Python ends.
    for n, given in enumerate(calls):
        given = jax.tree.map(jnp.asarray, given)
        free.acquire()
        if errors:
            break
        threads.append(threading.Thread(target=call, args=(n, given), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [found[n] for n in range(len(threads))]


def _n_devices(tree: Any) -> int:
    leaves = (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    return len({device for leaf in leaves for device in leaf.devices()})


@functools.cache
def options_for_loops() -> dict[str, bool]:
    """Returns compiler options for programs that consist of many loops over small arrays.

    On a CPU such programs compile in less time and memory with them. jaxlib 0.12 does not have the
    option.
    """
    options = {"xla_cpu_use_fusion_emitters": False}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options
