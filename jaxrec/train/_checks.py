"""Checks made before training starts.

A look-up in JAX clamps an index that lies beyond the table. A wrong size would therefore train
wrong rows without an error.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import sampling
from jaxrec._numerics import as_integer
from jaxrec._partials import bound, check_function
from jaxrec.interactions import Interactions, check_weights
from jaxrec.models._initial import check_tables
from jaxrec.typing import Array, Key, Sampler, Variables


def check_state(state: Any) -> None:
    """Raises `TypeError` if the state is no `State`, and `ValueError` if it has no parameters."""
    if not hasattr(state, "variables"):
        raise TypeError(f"state is a {type(state).__name__}; give the State that train.init or train.fit returned")
    if "params" not in state.variables:
        raise ValueError(f"state.variables has {list(state.variables)}, not 'params'; create the state with train.init")


_FUNCTIONS = {
    "objective": "functools.partial(jaxrec.train.pairwise_objective, model=..., loss=..., sample=...)",
    "examples": "jaxrec.train.singles",
    "setup": "lambda rate: (model, objective, optax.adam(rate))",
}


def check_functions(**given: Any) -> None:
    """Raises `TypeError` if one of the arguments `objective`, `examples` and `setup` is no function."""
    for name, value in given.items():
        check_function(name, value, _FUNCTIONS[name])


def check_covers(parts: Sequence[Any], train: Interactions, variables: Variables) -> None:
    """Raises `ValueError` if one of `parts` is a model with fewer users or items than `train`, or if
    the rows of its `variables` have another number.
    """
    for part in parts:
        for axis, size in _sizes(part, variables).items():
            if size < getattr(train, axis):
                raise ValueError(
                    f"the model's {axis} is {size}, but train's is {getattr(train, axis)}; "
                    "create the model for all ids of train"
                )
        check_tables(part, variables)


def _sizes(model: Any, variables: Variables | None) -> dict[str, int]:
    """Returns the numbers of users and items that a model has, as far as it or its `vectors` tell them."""
    found = {axis: as_integer(getattr(model, axis, None)) for axis in ("n_users", "n_items")}
    if None in found.values() and variables is not None and hasattr(model, "vectors") and hasattr(model, "apply"):
        try:
            tables = jax.eval_shape(functools.partial(model.apply, method="vectors"), jax.tree.map(_form, variables))
        except Exception:  # variables of another model, whose error training raises
            tables = ()
        found = {axis: table.shape[0] if size is None else size for (axis, size), table in zip(found.items(), tables)}
    return {axis: size for axis, size in found.items() if size is not None}


def check_bound(functions: tuple, train: Interactions, variables: Variables | None = None) -> None:
    """Checks what the partials `functions` bind: samplers, sizes, interactions, tables and margins.

    Only arguments of the library's own functions are checked, since other functions may use these
    names differently. A sampler may draw from as many items as the model has, but not from fewer
    than `train` has.
    """
    found = list(bound(functions))
    of_models = [_sizes(value, variables) for _, name, value in found if name == "model"]
    for function, name, value in found:
        module = str(getattr(function, "__module__", ""))
        if not module.startswith("jaxrec."):
            continue
        if name == "sample" and not callable(value):
            raise TypeError(
                f"sample={value!r:.80} of {function.__name__}; give a function, such as functools.partial("
                "jaxrec.sampling.uniform, n_items=..., n=...)"
            )
        if name in ("train", "valid") and isinstance(value, Interactions):
            check_weights(**{name: value})
        for axis, size in _sizes_bound(function, name, value).items():
            least = getattr(train, axis)
            most = max((sizes[axis] for sizes in of_models if axis in sizes), default=least)
            if not least <= size <= most:
                raise ValueError(
                    f"{name} of {function.__name__} is for {axis}={size}, but train has {least}"
                    f"{'' if least == most else f' and the model {most}'}; create it for the ids of train"
                )


def _sizes_bound(function: Any, name: str, value: Any) -> dict[str, int]:
    """Returns for how many users and items an argument of a function of the library is."""
    if name == "n_items" and (n_items := as_integer(value)) is not None:
        return {"n_items": n_items}
    if name in ("seen", "train", "valid") and isinstance(value, Interactions):
        return {"n_users": value.n_users, "n_items": value.n_items}
    if name == "table" and function is sampling.popularity:
        return {"n_items": len(value.keep)}
    if str(function.__module__).startswith("jaxrec.train.") and getattr(value, "ndim", None) == 1:
        if name == "margin":
            return {"n_users": len(value)}
        if name == "log_q" or (name, function.__name__) == ("table", "log_q"):
            return {"n_items": len(value)}
    return {}


def negatives_of(sample: Sampler, key: Key, users: Array, model: Any) -> jax.Array:
    """Draws negatives [B, n] of users [B], after a check, while tracing, that the model has the items.

    `fit` checks what partials bind. This also covers objectives that are no partials, and your own
    loops.

    Args:
        sample: the sampler.
        key: its key.
        users: ids [B].
        model: the model, whose `n_items` is N if it has one.

    Raises:
        ValueError: if the sampler binds a larger number of items.
    """
    most = as_integer(getattr(model, "n_items", None))
    for function, name, value in bound((sample,)):
        if most is not None and str(getattr(function, "__module__", "")).startswith("jaxrec."):
            size = _sizes_bound(function, name, value).get("n_items", most)
            if size > most:
                raise ValueError(
                    f"{name} of {function.__name__} is for n_items={size}, but the model has {most}; create it for the "
                    "items of the model"
                )
    return sample(key, users)


def _form(x: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape of an array, without its sharding."""
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))


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
        expected = jax.eval_shape(tx.init, jax.tree.map(_form, state.variables["params"]))
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
