"""Checks made before training starts.

A look-up in JAX clamps an index that lies beyond the table. A wrong size would therefore train
wrong rows without an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import sampling
from jaxrec._numerics import as_integer
from jaxrec._partials import bound
from jaxrec.interactions import Interactions, check_weights


def check_state(state: Any) -> None:
    """Raises `ValueError` if the state has no parameters."""
    if "params" not in state.variables:
        raise ValueError(f"state.variables has {list(state.variables)}, not 'params'; create the state with train.init")


def check_covers(parts: Sequence[Any], train: Interactions) -> None:
    """Raises `ValueError` if one of `parts` is a model with fewer users or items than `train`."""
    for part, name in itertools.product(parts, ("n_users", "n_items")):
        size = as_integer(getattr(part, name, None))
        if size is not None and size < getattr(train, name):
            raise ValueError(
                f"the model's {name} is {size}, but train's is {getattr(train, name)}; "
                "create the model for all ids of train"
            )


def check_bound(functions: tuple, train: Interactions) -> None:
    """Checks what the partials `functions` bind: samplers, sizes, interactions, tables and margins.

    Only arguments of the library's own functions are checked, since other functions may use these
    names differently. A sampler may draw from as many items as the model has, but not from fewer
    than `train` has.
    """
    found = list(bound(functions))
    models = [value for _, name, value in found if name == "model"]
    sizes = {}
    for axis in ("n_users", "n_items"):
        own = [size for model in models if (size := as_integer(getattr(model, axis, None))) is not None]
        sizes[axis] = getattr(train, axis), max(own, default=getattr(train, axis))
    for function, name, value in found:
        module = str(getattr(function, "__module__", ""))
        if not module.startswith("jaxrec."):
            continue
        if name == "sample" and not callable(value):
            raise TypeError(
                f"sample={value!r:.80} of {function.__name__}; give a function, such as functools.partial("
                "jaxrec.sampling.uniform, n_items=..., n=...)"
            )
        has: dict[str, int]
        if name == "n_items" and (n_items := as_integer(value)) is not None:
            has = {"n_items": n_items}
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
                    f"{name} of {function.__name__} is for {axis}={size}, but train has {least}"
                    f"{'' if least == most else f' and the model {most}'}; create it for the ids of train"
                )


def check_transformation(tx: Any) -> None:
    """Raises `TypeError` for anything but a transformation, such as a learning rate."""
    if not callable(getattr(tx, "init", None)):
        raise TypeError(f"tx is {tx!r:.80}; give an optax transformation, such as optax.adam(1e-3)")


def check_optimizer(state: Any, tx: Any) -> None:
    """Raises `ValueError` if the optimiser's state does not belong to `tx` and to these parameters.

    Only shapes are traced. The check is therefore skipped for a `tx.init` that looks at values.
    """
    check_transformation(tx)
    try:
        # Without shardings: the state may lie on another mesh than `jax.set_mesh` has set.
        form = lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))  # noqa: E731
        expected = jax.eval_shape(tx.init, jax.tree.map(form, state.variables["params"]))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return
    forms: list[Any] = [jax.tree.structure(tree) for tree in (expected, state.opt_state)]
    if forms[0] != forms[1]:
        raise ValueError("state.opt_state belongs to another optimiser than tx; pass fit the same tx as init")
    leaves = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(state.opt_state))
    for (path, like), leaf in leaves:
        if like.shape != np.shape(leaf):
            raise ValueError(
                f"state.opt_state{jax.tree_util.keystr(path)} has shape {list(np.shape(leaf))}, but for "
                f"these parameters it is {list(like.shape)}; pass fit the same tx as init"
            )
