"""Models from plain functions and from NNX modules, for training, sweeps and evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec._numerics import integer
from jaxrec._partials import check_function
from jaxrec.typing import Array, Key, Variables


@dataclasses.dataclass(frozen=True)
class Functions:
    """A model from plain functions; see `from_functions`.

    Attributes:
        functions: pairs of a name and a function of the parameters and the method's arguments.
        n_users: M, or None.
        n_items: N, or None.
        needs_histories: whether `score` and `rows` take `histories`.
    """

    functions: tuple[tuple[str, Callable[..., Any]], ...]
    n_users: int | None = None
    n_items: int | None = None
    needs_histories: bool = False

    def __getattr__(self, name: str) -> Any:
        known: dict[str, Any] = dict(object.__getattribute__(self, "functions"))
        if name not in known:
            raise AttributeError(f"the model has no {name!r}; it has {sorted(known)}")
        return known[name]

    def init(self, key: Key, users: Array, items: Array, **options: Any) -> Variables:
        """Returns the variables {"params": init(key)}."""
        del users, items, options
        return {"params": dict(self.functions)["init"](key)}

    def apply(self, variables: Variables, *args: Any, method: str = "score", **options: Any) -> Any:
        """Calls the function named by `method` with the parameters and these arguments."""
        return getattr(self, method)(variables["params"], *args, **options)


def from_functions(
    init: Callable[[Key], Any],
    *,
    score: Callable[[Any, Array, Array], Array] | None = None,
    rows: Callable[[Any, Array], Array] | None = None,
    vectors: Callable[[Any], tuple[Array, Array]] | None = None,
    n_users: int | None = None,
    n_items: int | None = None,
    needs_histories: bool = False,
    **methods: Callable[..., Any],
) -> Functions:
    """Returns a model from plain functions of its parameters.

    If `vectors` is given, `score` and `rows` default to dot products. If `score` and `n_items` are
    given, `rows` scores all items with it. Define the functions once: each new function is compiled
    again.

    Args:
        init: function of a typed key that returns the parameters, a tree of floats.
        score: (parameters, users, items) -> scores of the pairs, for ids that broadcast.
        rows: (parameters, users [B]) -> scores of all items [B, N].
        vectors: parameters -> users' vectors [M, D] and items' vectors [N, D], whose dot product is
            the score.
        n_users: M, by which training and evaluation check ids.
        n_items: N, by which training and evaluation check ids.
        needs_histories: True for a model that knows users by their items. `score` and `rows` then
            also take the keyword `histories`, `Interactions` [B, N] of their B users, whose
            `indices` may be padded at the end; `score` gets users [B, 1] and items [B, n] or
            [1, n]. Train it with `examples=partial(train.singles, histories=...)` and evaluate it
            with `histories=`.
        methods: further functions of the parameters, by name, for objectives that call `apply(...,
            method=name)`, or `item_vectors` [N, ...], which `evaluate.similar` compares.

    Raises:
        TypeError: if one of them is not a function.
        ValueError: if neither `score` nor `vectors` is given, `score` is given without `rows`
            and `n_items`, or `vectors` is given with `needs_histories`.

    >>> model = from_functions(
    ...     lambda key: {"user": jnp.ones((3, 2)), "item": jax.random.normal(key, (5, 2))},
    ...     vectors=lambda params: (params["user"], params["item"]),
    ... )
    >>> variables = model.init(jax.random.key(0), None, None)
    >>> model.apply(variables, jnp.array([[0], [2]]), jnp.array([[1, 4], [0, 2]])).shape
    (2, 2)
    """
    n_users = None if n_users is None else integer("n_users", n_users)
    n_items = None if n_items is None else integer("n_items", n_items)
    if vectors is not None:
        if needs_histories:
            raise ValueError("vectors are tables of all users, which need no histories; give score or rows instead")
        score = score or functools.partial(_score_of_vectors, vectors=vectors)
        rows = rows or functools.partial(_rows_of_vectors, vectors=vectors)
    if score is None:
        raise ValueError("neither score nor vectors is given; give one of them")
    check_function("init", init, "lambda key: parameters")
    for name, given in {"score": score, "rows": rows, "vectors": vectors, **methods}.items():
        if given is not None or name in methods:
            check_function(name, given, "lambda parameters, ...: values")
    if rows is None:
        if n_items is None:
            raise ValueError("without rows, all items are scored, whose number is unknown; give n_items, or rows")
        from_scores = _rows_by_histories if needs_histories else _rows_of_scores
        rows = functools.partial(from_scores, score=score, n_items=n_items)
    found = {"init": init, "score": score, "rows": rows} | ({} if vectors is None else {"vectors": vectors}) | methods
    return Functions(tuple(found.items()), n_users, n_items, bool(needs_histories))


def _score_of_vectors(params: Any, users: Array, items: Array, *, vectors: Callable) -> jax.Array:
    user_table, item_table = vectors(params)
    return (user_table[users] * item_table[items]).sum(-1)


def _rows_of_vectors(params: Any, users: Array, *, vectors: Callable) -> jax.Array:
    user_table, item_table = vectors(params)
    return user_table[users] @ item_table.T


def _rows_of_scores(params: Any, users: Array, *, score: Callable, n_items: int) -> jax.Array:
    every = jnp.arange(n_items, dtype=jnp.int32)
    return jax.lax.map(lambda user: score(params, user[None, None], every[None])[0], users)


def _rows_by_histories(params: Any, users: Array, *, histories: Any, score: Callable, n_items: int) -> jax.Array:
    every = jnp.arange(n_items, dtype=jnp.int32)
    return score(params, None if users is None else users[:, None], every[None], histories=histories)


# ---------------------------------------------------------------------- NNX


@dataclasses.dataclass(frozen=True)
class FromNNX:
    """A model from an NNX module; see `from_nnx`.

    Attributes:
        make: function that takes `rngs` and returns the module.
    """

    make: Callable[..., Any]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "setup":
            raise AttributeError(name)
        return getattr(self._abstract(), name)  # such as `n_items` and `vectors`

    def _abstract(self) -> Any:
        """Returns the module with shapes instead of arrays."""
        from flax import nnx

        return nnx.eval_shape(lambda: self.make(rngs=nnx.Rngs(0)))

    def init(self, key: Key, users: Array, items: Array, **options: Any) -> Variables:
        """Returns the variables: "params" has the `nnx.Param`s, and "state" all others, if any."""
        from flax import nnx

        del users, items, options
        parts: Any = nnx.split(self.make(rngs=nnx.Rngs(key)), nnx.Param, ...)
        _, params, rest = parts
        variables = {"params": nnx.to_pure_dict(params), "state": nnx.to_pure_dict(rest)}
        return {name: tree for name, tree in variables.items() if tree}

    def apply(self, variables: Variables, *args: Any, method: str = "__call__", **options: Any) -> Any:
        """Calls the module, or its method; drops changes that the call makes to its state."""
        from flax import nnx

        options.pop("rngs", None)
        parts: Any = nnx.split(self._abstract(), nnx.Param, ...)
        graph, params, rest = parts
        nnx.replace_by_pure_dict(params, variables["params"])
        if "state" in variables:
            nnx.replace_by_pure_dict(rest, variables["state"])
        return getattr(nnx.merge(graph, params, rest), method)(*args, **options)


def from_nnx(make: Callable[..., Any]) -> FromNNX:
    """Returns a model from an NNX module with `__call__(users, items)` and, for evaluation,
    `rows(users)`, the scores of all items [B, N].

    Args:
        make: function that returns the module when called with `rngs=flax.nnx.Rngs(...)`, such as
            its class with the sizes bound by `functools.partial`. Each key draws other parameters.

    Raises:
        TypeError: if `make` is not a function, or is a module, whose parameters are drawn already.

    >>> from flax import nnx
    >>> class Popularity(nnx.Module):
    ...     def __init__(self, n_items, rngs):
    ...         self.bias = nnx.Param(jax.random.normal(rngs.params(), (n_items,)))
    ...     def __call__(self, users, items):
    ...         return jnp.zeros(users.shape) + self.bias[...][items]
    >>> model = from_nnx(functools.partial(Popularity, 4))
    >>> variables = model.init(jax.random.key(0), None, None)
    >>> model.apply(variables, jnp.array([[0], [1]]), jnp.array([[1, 2], [3, 0]])).shape
    (2, 2)
    """
    from flax import nnx

    if isinstance(make, nnx.Module):
        raise TypeError(
            f"make is a {type(make).__name__}; give a function that takes rngs and returns the module, "
            f"such as functools.partial({type(make).__name__}, n_users, n_items)"
        )
    check_function("make", make, "functools.partial(Module, n_users, n_items)")
    return FromNNX(make)
