"""Partials that hold the settings of a run."""

from functools import partial

import jax

from jaxrec._partials import bound, flattened


def scaled(x, *, by, shift=0.0):
    return by * x + shift


def test_a_partial_that_was_jitted_is_read_like_any_other():
    """`jax.jit` sets attributes on a partial, so that a partial of it keeps it inside instead of merging with it."""
    inner = partial(scaled, by=2.0)
    jax.jit(inner)(1.0)
    outer = partial(inner, shift=1.0)
    assert isinstance(outer.func, partial)
    assert flattened(outer).func is scaled and flattened(outer).keywords == {"by": 2.0, "shift": 1.0}
    assert [(function, name) for function, name, _ in bound((outer,))] == [(scaled, "by"), (scaled, "shift")]
    assert flattened(partial(inner, by=3.0)).keywords == {"by": 3.0}
