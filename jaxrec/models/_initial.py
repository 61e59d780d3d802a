"""Draws the initial variables of a model, and compares variables with them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._identity import reads
from jaxrec._numerics import as_integer
from jaxrec.interactions import Interactions
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


def check_tables(model: Any, variables: Variables) -> None:
    """Raises `ValueError` if a table has another number of rows than the model has users or items.

    A look-up in JAX clamps an index that lies beyond the table, so that a table of features with
    too few rows would give items the features of another. Checked are arrays for which the model's
    `init` has a row for each of its `n_users` or `n_items`. Flax checks the parameters of Linen
    modules itself.

    Args:
        model: a model.
        variables: its variables, or their shapes.
    """
    sizes = {name: as_integer(getattr(model, name, None)) for name in ("n_users", "n_items")}
    known = {size for size in sizes.values() if size is not None}
    given = {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in _arrays(model, variables)}
    if not known or not given or not hasattr(model, "init"):
        return
    try:
        declared = jax.eval_shape(functools.partial(_drawn, model=model), jax.random.key(0))
    except Exception:  # of a model that cannot be initialised, or whose `init` looks at values
        return
    for path, leaf in _arrays(model, declared):
        name = jax.tree_util.keystr(path)
        shape = given.get(name)
        if shape is None or leaf.ndim == 0 or leaf.shape[0] not in known or (shape and shape[0] in known):
            continue
        axes = [axis for axis, size in sizes.items() if size == leaf.shape[0]]
        raise ValueError(
            f"variables{name} has shape {list(shape)}, but {type(model).__name__} has {' = '.join(axes)} = "
            f"{leaf.shape[0]}; give a table with as many rows, or create the model with another {axes[-1]}"
        )


def _arrays(model: Any, variables: Variables) -> list[tuple[Any, Any]]:
    """Returns the arrays whose shapes `check_tables` checks, with their paths; none of `Interactions`."""
    if not isinstance(variables, Mapping):
        return []
    own = {name: tree for name, tree in variables.items() if name != "params" or not isinstance(model, nn.Module)}
    leaves = jax.tree_util.tree_leaves_with_path(own, is_leaf=lambda leaf: isinstance(leaf, Interactions))
    return [(path, leaf) for path, leaf in leaves if not isinstance(leaf, Interactions)]


@functools.partial(jax.jit, static_argnames=("model", "reads"))
def _compiled(key: Key, *, model: Any, reads: tuple) -> Variables:
    del reads  # jit compiles again if a global or closure that the initialisers read has changed
    return _drawn(key, model=model)
