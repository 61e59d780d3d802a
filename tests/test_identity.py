import argparse
import collections
import functools
import subprocess
import sys
import types
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrec as jr
from jaxrec._identity import digest, reads
from jaxrec._partials import partition

SCALE = 1.0
BOX = {"scale": [1.0, 2.0]}
SPACE = types.SimpleNamespace(scale=1.0)
TABLE = np.ones(2000)
COUNT = 0


def helper(x):
    return SCALE * x


def calls_helper(x):
    return helper(x)


def inner(x):
    return [SCALE * y for y in x]


def in_box(x):
    return BOX["scale"][0] * x


def in_space(x):
    return SPACE.scale * x


def in_table(x):
    return TABLE * x


def counts(x):
    global COUNT
    COUNT += 1
    return x


def closure():
    value = [1.0]
    return lambda x: value[0] * x, lambda new: value.__setitem__(0, new)


class Scaled(nn.Module):
    dim: int = 2

    def __call__(self, users, items):
        return SCALE * jnp.ones(users.shape)


SETTINGS = argparse.Namespace(scale=1.0)
QUEUE = collections.deque([1.0])


def in_settings(x):
    return SETTINGS.scale * x


def in_queue(x):
    return QUEUE[0] * x


@jax.jit
def jitted(x):
    return SCALE * x


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, slope: (SCALE * slope,))


def with_attribute(x):
    return with_attribute.scale * x


with_attribute.scale = 1.0


class WithSlots:
    __slots__ = ("scale",)

    def __init__(self):
        self.scale = 1.0

    def __call__(self, x):
        return self.scale * x


class WithTable:
    table: typing.ClassVar = [1.0]

    def __call__(self, x):
        return self.table[0] * x


CLOSED, SET_CLOSED = closure()
SLOTS = WithSlots()
READERS = {
    "global": (helper, lambda new: globals().update(SCALE=new)),
    "global of a called function": (calls_helper, lambda new: globals().update(SCALE=new)),
    "global of an inner function": (inner, lambda new: globals().update(SCALE=new)),
    "entry of a container": (in_box, lambda new: BOX["scale"].__setitem__(0, new)),
    "attribute": (in_space, lambda new: setattr(SPACE, "scale", new)),
    "entry of an array": (in_table, lambda new: TABLE.__setitem__(1500, new)),
    "closure": (CLOSED, SET_CLOSED),
    "namespace of arguments": (in_settings, lambda new: setattr(SETTINGS, "scale", new)),
    "queue": (in_queue, lambda new: QUEUE.__setitem__(0, new)),
    "jitted function": (jitted, lambda new: globals().update(SCALE=new)),
    "gradient of its own": (reversed_gradient, lambda new: globals().update(SCALE=new)),
    "attribute of the function": (with_attribute, lambda new: setattr(with_attribute, "scale", new)),
    "slot": (SLOTS, lambda new: setattr(SLOTS, "scale", new)),
    "attribute of the class": (WithTable(), lambda new: WithTable.table.__setitem__(0, new)),
    "partial": (functools.partial(max, helper), lambda new: globals().update(SCALE=new)),
    "method of a model": (Scaled(), lambda new: globals().update(SCALE=new)),
    "schedule of an optimiser": (optax.sgd(helper), lambda new: globals().update(SCALE=new)),
    "function of a scorer": (jr.evaluate.scorer(helper), lambda new: globals().update(SCALE=new)),
}


@pytest.mark.parametrize("name", READERS)
def test_what_a_function_reads_is_part_of_it(name):
    reader, put = READERS[name]
    before = reads(reader), digest(reader)
    hash(before)
    assert (reads(reader), digest(reader)) == before
    put(7.0)
    after = reads(reader), digest(reader)
    put(1.0)
    assert after[0] != before[0] and after[1] != before[1]
    assert (reads(reader), digest(reader)) == before


def test_a_redefined_function_is_another(monkeypatch):
    before = reads(calls_helper)
    monkeypatch.setitem(globals(), "helper", lambda x: 2 * x)
    assert reads(calls_helper) != before


def test_two_lambdas_differ_by_their_code_and_the_same_code_is_the_same():
    first, second = (lambda x: x + 1), (lambda x: x + 2)
    again = lambda x: x + 1  # noqa: E731
    assert digest(first) != digest(second) and digest(first) == digest(again)


def test_a_counter_that_the_function_changes_is_no_input():
    before = reads(counts)
    counts(0)
    assert reads(counts) == before


def test_interactions_and_cycles():
    data = jr.Interactions.from_pairs([0, 1], [0, 1])
    same = jr.Interactions.from_pairs([0, 1], [0, 1])
    assert reads(data) == reads(data) != reads(same) and digest(data) == digest(same)
    loop = []
    loop.append(loop)
    assert reads(loop) == reads(loop)


@pytest.mark.deep
def test_a_digest_is_the_same_in_every_process():
    code = (
        "import optax, jaxrec as jr\nfrom functools import partial\nfrom jaxrec._identity import digest\n"
        "loss = lambda pos, neg, *, where=None: {'a', 'b', 'c'} and jr.losses.bpr(pos, neg, where=where)\n"
        "objective = partial(jr.train.pairwise_objective, loss=loss, model=jr.models.MF(3, 4))\n"
        "print(digest(objective), digest(optax.adam(.1)))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_arrays_are_taken_out_of_partials_named_tuples_and_dicts():
    parts = {"a": functools.partial(max, np.ones(2))}
    arrays, _ = partition((optax.GradientTransformation(functools.partial(max, np.zeros(3)), min), parts))
    assert sorted(len(array) for array in arrays) == [2, 3]


def test_an_array_among_a_models_attributes_is_named():
    class Weighted(nn.Module):
        weights: object = None

    with pytest.raises(TypeError, match=r"Weighted.weights is a ndarray, .*keep arrays in variables"):
        partition((functools.partial(max, model=Weighted(np.ones(2))),))


class Stateless:
    def __call__(self, x):
        return x


class Odd:
    def __init__(self):
        self.known = {}

    def __getattr__(self, name):
        return self.known[name]

    def __repr__(self):
        raise ValueError("no text")


@pytest.mark.parametrize("value", [Stateless(), Odd(), np.random.default_rng(0)], ids=lambda x: type(x).__name__)
def test_objects_of_every_kind_are_taken(value):
    assert reads(value) == reads(value) and digest(value) == digest(value)


def test_deep_values_end():
    deep = []
    for _ in range(3000):
        deep = [deep]
    assert reads(deep) == reads(deep)


def test_a_changed_jitted_function_inside_another_is_traced_again():
    outer = jax.jit(lambda x, static: jitted(x), static_argnums=1)
    assert float(outer(1.0, reads(jitted))) == 1
    globals().update(SCALE=5.0)
    found = float(outer(1.0, reads(jitted)))
    globals().update(SCALE=1.0)
    assert found == 5
