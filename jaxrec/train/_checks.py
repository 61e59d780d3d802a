"""What training refuses before it starts, since it would go wrong in silence: look-ups clamp ids beyond a table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxrec import sampling
from jaxrec._numerics import as_integer
from jaxrec._partials import bound
from jaxrec.interactions import Interactions, check_weights


def check_state(state: Any) -> None:
    """`ValueError` for a state without parameters."""
    if "params" not in state.variables:
        raise ValueError(f"state.variables has {list(state.variables)}, not 'params'; make the state with train.init")


def check_covers(parts: Sequence[Any], train: Interactions) -> None:
    """Refuses a model among them that is too small: looking up clamps, so that it would learn rows of other ids."""
    for part, name in itertools.product(parts, ("n_users", "n_items")):
        size = as_integer(getattr(part, name, None))
        if size is not None and size < getattr(train, name):
            raise ValueError(f"the model's {name} is {size}, train's {getattr(train, name)}; make it for all ids")


def check_bound(functions: tuple, train: Interactions) -> None:
    """What the library's own functions among these partials have bound: `n_items`, interactions, tables, margins.

    Samplers may draw from as many items as the model has, but not from fewer than `train`.
    """
    found = list(bound(functions))
    models = [value for _, name, value in found if name == "model"]
    sizes = {}
    for axis in ("n_users", "n_items"):
        most = [size for model in models if (size := as_integer(getattr(model, axis, None))) is not None]
        sizes[axis] = getattr(train, axis), max(most, default=getattr(train, axis))
    for function, name, value in found:
        module = str(getattr(function, "__module__", ""))
        if not module.startswith("jaxrec."):
            continue
        if name == "n_items" and as_integer(value) is not None:
            has = {"n_items": as_integer(value)}
        elif name in ("seen", "train", "valid") and isinstance(value, Interactions):
            has = {"n_users": value.n_users, "n_items": value.n_items}
            if name != "seen":
                check_weights(**{name: value})
        elif name == "table" and function is sampling.popularity:
            has = {"n_items": len(value.keep)}
        elif name == "margin" and module.startswith("jaxrec.train.") and np.ndim(value) == 1:
            has = {"n_users": len(value)}
        else:
            continue
        for axis, size in has.items():
            least, most = sizes[axis]
            if not least <= size <= most:
                raise ValueError(
                    f"{name} of {function.__name__} is for {axis}={size}, train has {least}"
                    f"{'' if least == most else f' and the model {most}'}; make it for the ids of train"
                )


def check_transformation(tx: Any) -> None:
    """`TypeError` for what is no transformation, such as a learning rate or the function that makes one."""
    if not callable(getattr(tx, "init", None)):
        raise TypeError(f"tx is {tx!r:.80}; give an optax transformation, such as optax.adam(1e-3)")


def check_optimizer(state: Any, tx: Any) -> None:
    """Whether the state is of `tx` and of these parameters, unless `tx.init` looks at values."""
    check_transformation(tx)
    try:
        expected = jax.eval_shape(tx.init, state.variables["params"])
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return
    if jax.tree.structure(expected) != jax.tree.structure(state.opt_state):
        raise ValueError("state.opt_state is of another optimiser than tx; give fit the tx that init had")
    leaves = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(state.opt_state))
    for (path, like), leaf in leaves:
        if like.shape != np.shape(leaf):
            raise ValueError(
                f"state.opt_state{jax.tree_util.keystr(path)} is {list(np.shape(leaf))}, of these parameters it would "
                f"be {list(like.shape)}; give fit the tx that init had"
            )
