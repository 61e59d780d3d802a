import functools
import subprocess
import sys
import types

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrec as jr
from jaxrec._identity import digest, reads
from jaxrec.partials import partition

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


CLOSED, SET_CLOSED = closure()
READERS = {
    "global": (helper, lambda new: globals().update(SCALE=new)),
    "global of a called function": (calls_helper, lambda new: globals().update(SCALE=new)),
    "global of an inner function": (inner, lambda new: globals().update(SCALE=new)),
    "entry of a container": (in_box, lambda new: BOX["scale"].__setitem__(0, new)),
    "attribute": (in_space, lambda new: setattr(SPACE, "scale", new)),
    "entry of an array": (in_table, lambda new: TABLE.__setitem__(1500, new)),
    "closure": (CLOSED, SET_CLOSED),
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


def test_a_counter_of_its_own_is_no_input():
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


def test_arrays_in_partials_leave_and_named_tuples_and_dicts_are_entered():
    parts = {"a": functools.partial(max, np.ones(2))}
    arrays, _ = partition((optax.GradientTransformation(functools.partial(max, np.zeros(3)), min), parts))
    assert sorted(len(array) for array in arrays) == [2, 3]


def test_an_array_among_a_models_attributes_is_named():
    class Weighted(nn.Module):
        weights: object = None

    with pytest.raises(TypeError, match=r"Weighted.weights is a ndarray, .*keep arrays in variables"):
        partition((functools.partial(max, model=Weighted(np.ones(2))),))
