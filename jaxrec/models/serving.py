"""Stores trained models in a form that JAX runs without jaxrec."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from jaxrec._numerics import accumulated, integer
from jaxrec.interactions import Interactions
from jaxrec.typing import Array, Model, Variables

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    model: Model, variables: Variables, *, length: int | None = None, platforms: Sequence[str] | None = None
) -> bytes:
    """Returns a trained model as bytes that `jax.export.deserialize` loads, without jaxrec.

    The loaded function scores one or more users, at full precision. It is compiled at the first
    call with each number of users, so serve batches of a few sizes. The variables are stored as
    constants, so each compilation has to read them. For tables of several hundred megabytes, use
    `jax.export` on a function that takes the variables as an argument.

    Needs the package flatbuffers, `pip install "jaxrec[export]"`, also where the bytes are loaded.
    JAX loads them for at least six months after the release that wrote them.

    Args:
        model: a model with the method `rows`, and perhaps `vectors`. If it has `vectors`, only the
            two tables are stored, so that a graph is propagated once.
        variables: the model's variables, as returned by `model.init`.
        length: L, the number of items in a row of histories; only for models that know users by
            their items.
        platforms: the platforms that the function can run on, of "cpu", "cuda", "rocm" and "tpu".
            None is the platform of this process.

    Returns:
        The bytes. `call = jax.export.deserialize(them).call` gives scores [B, N]:

        - `call(users)` for most models, with ids int32 [B].
        - `call(items)` for a model that knows users by their items, such as `VALID`. A row of items
          int32 [B, L] is the history of a user, in any order. Ids outside 0 .. N-1 are padding.
        - `call(users, items)` for a model that needs both, such as `SimpleX`.

        Users outside 0 .. M-1 get NaN, if the model has `vectors` or `n_users`.

    Raises:
        ModuleNotFoundError: if flatbuffers is missing.
        TypeError: if `model` is a class, or `variables` is a `State`.
        ValueError: if `length` is missing or not an integer of 1 or more for a model of histories,
            or given for another model; such a model has no `n_items`; or a platform is unknown.

    >>> from jaxrec.models import MF
    >>> model = MF(3, 5, dim=2)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> loaded = jax_export.deserialize(export(model, variables))
    >>> jax.jit(loaded.call)(jnp.array([0, 2], jnp.int32)).shape
    (2, 5)
    """
    _check(model, variables, platforms)
    by_items, n_users = getattr(model, "needs_histories", False), getattr(model, "n_users", None)
    stored: Any = jax.device_get(variables)
    score: Callable[..., jax.Array]
    (n,) = jax_export.symbolic_shape("b")
    users, items = jax.ShapeDtypeStruct((n,), jnp.int32), None
    if by_items:
        items = jax.ShapeDtypeStruct((n, _checked_length(model, length)), jnp.int32)
        score = functools.partial(_of_histories, model)
    elif length is not None:
        raise ValueError(f"length={length!r}, but {type(model).__name__} does not know users by their items; omit it")
    elif hasattr(model, "vectors"):
        stored, score = jax.device_get(jax.jit(functools.partial(_vectors, model))(stored)), _of_vectors
        n_users = len(stored[0])
    else:
        score = functools.partial(_of_users, model)

    def scores(users: Array | None, items: Array | None) -> jax.Array:
        known = None if n_users is None or users is None else (users >= 0) & (users < n_users)
        if users is not None and known is not None:
            users = jnp.where(known, users, 0)
        with jax.default_matmul_precision("highest"):
            found = accumulated(score(jax.tree.map(jnp.asarray, stored), users, items))
        return found if known is None else jnp.where(known[:, None], found, jnp.nan)

    called: Callable[..., jax.Array]
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    if items is None:
        called, inputs = (lambda users: scores(users, None)), (users,)
    elif n_users is None:
        called, inputs = (lambda items: scores(None, items)), (items,)
    else:
        called, inputs = scores, (users, items)
    try:
        exported = jax_export.export(jax.jit(called), platforms=platforms)(*inputs)
    except (TypeError, jax.errors.InconclusiveDimensionOperation) as error:
        error.add_note("models.export traces `rows` with a symbolic number of users; write x.shape[0] for len(x)")
        raise
    return bytes(exported.serialize())


def _of_vectors(tables: tuple[Array, Array], users: Any, items: Any) -> jax.Array:
    """Scores users by the two tables of `_vectors`."""
    user, item = tables
    return jnp.einsum("bd,nd->bn", user[users], item)


def _vectors(model: Model, variables: Variables) -> tuple[jax.Array, jax.Array]:
    """Returns the tables of a model."""
    with jax.default_matmul_precision("highest"):
        user, item = model.apply(variables, method="vectors")
    return accumulated(user), accumulated(item)


def _of_users(model: Model, variables: Variables, users: Array, items: Any) -> jax.Array:
    """Scores users by the model's `rows`."""
    return model.apply(variables, users, method="rows")


def _of_histories(model: Any, variables: Variables, users: Array | None, items: Any) -> jax.Array:
    """Scores users by their items [B, L], one user at a time, vmapped: a model sees no symbolic size."""

    def one(user: Array | None, items: Array) -> jax.Array:
        user = None if user is None else user[None]
        return model.apply(variables, user, histories=_history(items, model.n_items), method="rows")[0]

    return jax.vmap(one, in_axes=(None if users is None else 0, 0))(users, items)


def _history(items: Array, n_items: int) -> Interactions:
    """Returns the histories of one user from padded items [L]: ascending, each once."""
    items = jnp.sort(jnp.where((items >= 0) & (items < n_items), items, n_items))
    again = jnp.concatenate([jnp.zeros(1, bool), items[1:] == items[:-1]])
    items = jnp.sort(jnp.where(again, n_items, items))
    real = items < n_items
    indptr = jnp.stack([jnp.zeros((), jnp.int32), real.sum(dtype=jnp.int32)])
    return Interactions(indptr, jnp.where(real, items, 0), None, None, 1, n_items)


def _check(model: Model, variables: Variables, platforms: Sequence[str] | None) -> None:
    """Checks the arguments of `export`."""
    if isinstance(model, type) or not hasattr(model, "apply"):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(f"model is {what}; give a model, such as the one that was trained")
    if hasattr(variables, "variables"):
        raise TypeError(f"variables is a {type(variables).__name__}; pass its .variables")
    if platforms is not None and (isinstance(platforms, str) or not platforms or {*platforms} - {*_PLATFORMS}):
        raise ValueError(f"platforms={platforms!r}; give some of {_PLATFORMS} in a tuple")
    try:
        import flatbuffers  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('models.export needs flatbuffers; run pip install "jaxrec[export]"') from error


def _checked_length(model: Model, length: int | None) -> int:
    """Returns L as a Python int."""
    name = type(model).__name__
    if length is None:
        raise ValueError(f"{name} knows users by their items; give length, how many items a row of histories holds")
    if getattr(model, "n_items", None) is None:
        raise ValueError(f"{name} has no n_items; give it one, such as from_functions(..., n_items=...)")
    return integer("length", length)
