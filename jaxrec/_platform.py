"""Sizes of blocks, threads of a CPU and compiler options, which depend on the kind of device."""

from __future__ import annotations

import functools
import itertools
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_CONFIG: Any = jax.config  # JAX adds its attributes at run time


class Size(NamedTuple):
    """A number that depends on the kind of device.

    Attributes:
        cpu: the number on a CPU.
        accelerator: the number on other devices.
    """

    cpu: int
    accelerator: int


# Times are milliseconds on one H200, if not said otherwise.
SIZES = {
    # Floats that iALS and WRMF gather at a time. On a CPU they fit into a core's cache. A sweep of Gowalla with 64
    # dimensions takes 57, 23, 18, 16 and 14 for 2²⁰, 2²², 2²⁴, 2²⁶ and 2²⁸, which needs 1 GB.
    "solver_floats": Size(1 << 17, 1 << 26),
    # Floats that a run of iALS gathers in the time in which a bucket is compiled, over 16 sweeps. A sweep takes 18 and
    # its compilation 900 for 2³⁰; 10 and 1,700 for 2²⁶.
    "solver_padding": Size(1 << 24, 1 << 26),
    # Pairs whose two vectors are gathered at a time, for their dot products: 0.5 GB for 64 dimensions. Not measured.
    "pairs": Size(1 << 13, 1 << 20),
    # Scores of a block of users in a ranking: 1 GB. Not measured.
    "ranked_scores": Size(1 << 22, 1 << 28),
    # Steps of a binary search in one kernel. On a CPU a loop takes as long: 0.15 for 1,000 pairs, unrolled 0.17. On a
    # GPU each step of a loop starts four kernels: the kernels of a step of MARS took 0.29 with loops; without, the
    # whole step takes 0.18.
    "search_unroll": Size(1, 32),
    # Intermediate values of models that score pairs by a network: 256 MB. Not measured.
    "intermediates": Size(1 << 22, 1 << 26),
    # Items whose logits VALID and MacridVAE hold at a time in training: 64 MB for 512 users and 4 interests. Not
    # measured.
    "decoder_items": Size(256, 8192),
    # Runs in one program of a sweep; 0 is all. On a CPU, programs run on a core each.
    "sweep_width": Size(1, 0),
}
"""The sizes by name."""


def platform(tree: Any = None) -> str:
    """Returns the platform, such as "cpu" or "gpu", of the first array of a tree that is on a device.

    If there is none, it is the platform on which JAX puts new arrays.
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            return next(iter(leaf.devices())).platform
    device = _CONFIG.jax_default_device
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def size(name: str, tree: Any = None) -> int:
    """Returns a number of `SIZES` for the device of the arrays of a tree; see `platform`."""
    return SIZES[name].cpu if platform(tree) == "cpu" else SIZES[name].accelerator


def sized(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Returns `function(size, *args)` with the number of `SIZES` for the device that runs it.

    Inside a jitted function the program decides, which may be compiled on one machine and run on
    another one.
    """
    cpu, accelerator = SIZES[name]
    if cpu == accelerator:
        return function(cpu, *args)
    on_cpu, other = (functools.partial(function, number) for number in (cpu, accelerator))
    return jax.lax.platform_dependent(*args, cpu=on_cpu, default=other)


@functools.cache
def warn_of_slow_sums() -> None:
    """Warns once if this jaxlib adds rows of tables on a GPU in hundreds of times the usual time.

    Versions 0.10.2 to 0.11.0 compile a scatter-add of float32 into a loop of compare-and-swap.
    """
    version = jax.lib.__version__
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])  # also of a version like 0.11.0rc1
    if (0, 10, 2) <= numbers < (0, 11, 1) and platform() == "gpu":
        warnings.warn(
            f"jaxlib {version} adds up the gradients of rows on GPUs hundreds of times more slowly than other "
            'versions; pip install "jaxrec[cuda]" on Python 3.12 or newer gives jaxlib 0.11.1 or newer',
            stacklevel=4,
        )


def cores() -> int:
    """Returns how many threads compute at the same time; 1 if the device is not a CPU."""
    if platform() != "cpu":
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
    if cores() == 1 or _n_devices(first) > 1 or _CONFIG.jax_disable_jit:
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


def options_for_loops() -> dict[str, bool]:
    """Returns compiler options for programs that consist of many loops over small arrays.

    On a CPU such programs compile in less time and memory with them. jaxlib 0.12 does not have the
    option.
    """
    return {"xla_cpu_use_fusion_emitters": False} if platform() == "cpu" and _has_fusion_emitters() else {}


@functools.cache
def _has_fusion_emitters() -> bool:
    """Returns whether this jaxlib can compile for a CPU without fusion emitters."""
    try:
        jax.jit(lambda: 0, compiler_options={"xla_cpu_use_fusion_emitters": False}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
