"""Draws the initial variables of a model."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec._identity import reads
from jaxrec.typing import Key, Variables


def initial_variables(model: Any, key: Key) -> Variables:
    """Draws the variables of a model.

    A Linen module that has only parameters is initialised by one compiled program. Without it, each
    operation of each initialiser would be compiled separately, which takes longer. Other modules
    hold data, such as a graph, which must not become constants of a program.

    Args:
        model: a Linen module, or another model with `init(key, users, items)`.
        key: typed key.
    """
    draw = functools.partial(_drawn, model=model)
    if isinstance(model, nn.Module) and set(jax.eval_shape(draw, key)) == {"params"}:
        return _compiled(key, model=model, reads=reads(model))
    return draw(key)


def _drawn(key: Key, *, model: Any) -> Variables:
    zero = jnp.zeros(1, jnp.int32)
    return model.init(key, zero, zero)


@functools.partial(jax.jit, static_argnames=("model", "reads"))
def _compiled(key: Key, *, model: Any, reads: tuple) -> Variables:
    del reads  # jit compiles again if a global or closure that the initialisers read has changed
    return _drawn(key, model=model)
