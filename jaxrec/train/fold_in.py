"""Vectors of users who were not in training, by gradients, with all other parameters frozen."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec._ids import checked_ids
from jaxrec._keys import check_key
from jaxrec._log import Log, check_validate
from jaxrec._numerics import accumulated
from jaxrec._run import Loop
from jaxrec.interactions import DataWarning, Interactions, check_positives
from jaxrec.optim.step import Step
from jaxrec.train._checks import check_bound, check_transformation
from jaxrec.train.examples import Batch, Examples, singles
from jaxrec.train.loop import State, fit
from jaxrec.train.stream import Stream
from jaxrec.typing import Array, ArrayLike, Key, Model, Objective, Variables


def fold_in(
    model: Model,
    variables: Variables,
    objective: Objective,
    tx: optax.GradientTransformation | Step,
    histories: Interactions,
    *,
    epochs: int,
    key: Key,
    users: ArrayLike | None = None,
    batch_size: int = 1024,
    examples: Callable[[Interactions], Examples | Stream] | None = None,
    **loop: Unpack[Loop],
) -> tuple[Model, Variables, Log]:
    """Trains the rows of new users in the users' tables, with all other parameters frozen.

    It is for models that were trained by gradients. The functions `fold_in` of `solvers.ials`,
    `wrmf` and `rg2` solve for the vectors of their models exactly. A model that knows users by their
    items needs no new rows: pass `histories` where users are scored.

    The rows start from the mean of the known users' rows. A user without items keeps it.

    Args:
        model: a model with the field `n_users` and tables of users among its parameters, such as
            `models.MF`, `SimpleX` and `MARS`. Not a graph model, whose vectors depend on all users.
        variables: the variables of the trained model.
        objective: the objective of the training. It must bind the model by `functools.partial`, so
            that a model of the new number of users can take its place. Interactions and margins
            that it binds, such as `seen` of a sampler, must be those of the trained users.
        tx: an optax transformation, or an `optim.Step`, of the users' tables.
        histories: the items of the new users, `Interactions` [B, N]; with `users`, the items of
            known and new users, [M', N].
        epochs: number of epochs.
        key: typed key from which batches and negatives are drawn.
        users: the ids [B] of the users to train, in `histories` of known and new users, such as
            those of `Interactions.from_labels(..., unknown_users="new")`. Ids of M and more are new
            users. Known users may be among `users`: they start from their own rows. All other rows
            keep their initial values. None means that all rows of `histories` are new users.
        batch_size: number of examples per step.
        examples: function of the positives that returns the examples of an epoch, as in `fit`; None
            is `singles`, with the histories if the model needs them.
        loop: `validate`, `every`, `stopping`, `checkpoint`, `callbacks` and `progress`, as in
            `fit`. `validate` gets the variables that are returned; callbacks and exceptions have
            the state of the rows that are trained.

    Returns:
        The model and the variables of the rows of `histories`, and the `Log`. All parameters but
        the users' tables are the given arrays.

    Warns:
        DataWarning: if users to train have no items, or `objective` binds interactions that lack
            some of the items of these users.

    Raises:
        TypeError: as `fit`; also if `model` is a class, or `variables` is a `State`.
        ValueError: as `fit`; also if the model has no tables of users that it can grow, `objective`
            does not bind the model, or sizes do not fit.

    >>> import jaxrec as jr
    >>> from functools import partial
    >>> model, new = jr.models.MF(2, 4, dim=2), Interactions.from_pairs([0, 0], [1, 2], n_items=4)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> sample = partial(jr.sampling.uniform, n_items=4)
    >>> objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    >>> how = {"epochs": 2, "key": jax.random.key(1), "progress": False}
    >>> fold_in(model, variables, objective, optax.sgd(0.1), new, **how)[1]["params"]["user"].shape
    (1, 2)
    """
    check_key(key)
    check_transformation(tx)
    check_positives(histories=histories)
    tables = _user_tables(model, variables)
    chosen, known = _chosen(users, histories, model)
    n = histories.n_users
    grown = jax.tree_util.tree_map_with_path(
        lambda path, table: _grown(table, n, known, model) if path in tables else table, dict(variables["params"])
    )
    rest = {name: collection for name, collection in variables.items() if name != "params"}
    start = _rows(_part(grown, tables), chosen)
    own = _rows_of(histories, chosen)
    bare = np.flatnonzero(np.asarray(own.user_degrees) == 0)
    if len(bare):
        warnings.warn(
            f"{len(bare)} of {len(chosen)} users, user {chosen[bare[0]]} the first, have no items, and keep the "
            "vectors they start from",
            DataWarning,
            stacklevel=2,
        )
    bound = _bound(objective, model, len(chosen), own)
    moved = np.delete(np.arange(len(chosen)), bare)  # weight decay would move rows without items too
    fixed = _part(grown, tables, other=True)
    frozen = functools.partial(_frozen, objective=bound, fixed=fixed)

    def whole(trained: Variables) -> Variables:
        put = lambda table, rows: table.at[chosen[moved]].set(rows[moved])  # noqa: E731
        rows = jax.tree.map(put, _part(grown, tables), trained["params"])
        return {**rest, "params": _joined(rows, fixed)}

    check_validate(loop.get("validate"))
    if (validate := loop.get("validate")) is not None:
        loop["validate"] = lambda trained: validate(whole(trained))
    if examples is None:
        known_items = own if getattr(model, "needs_histories", False) else None
        examples = functools.partial(singles, histories=known_items)
    state = State({**rest, "params": start}, tx.init(start), key, jnp.zeros((), jnp.int32))
    state, log = fit(state, frozen, tx, own, epochs=epochs, batch_size=batch_size, examples=examples, **loop)
    return _resized(model, n), whole(state.variables), log


def _frozen(variables: Variables, key: Key, batch: Batch, *, objective: Objective, fixed: Any) -> jax.Array:
    """Computes an objective of the trained rows; the other parameters `fixed` get no gradient."""
    return objective({**variables, "params": _joined(variables["params"], fixed)}, key, batch)


# ---------------------------------------------------------------------- the model


def _resized(model: Any, n: int) -> Any:
    """Returns the model for n users."""
    return model.clone(n_users=n) if hasattr(model, "clone") else dataclasses.replace(model, n_users=n)


def _user_tables(model: Any, variables: Variables) -> set:
    """Returns the paths of the parameters that have a row for each user."""
    if isinstance(model, type):
        raise TypeError(f"model is the class {model.__name__}; create it, such as {model.__name__}(n_users, n_items)")
    name = type(model).__name__
    if hasattr(variables, "variables"):
        raise TypeError(f"variables is a {type(variables).__name__}; pass its .variables")
    fields = dataclasses.fields(model) if dataclasses.is_dataclass(model) else ()
    if "n_users" not in {field.name for field in fields}:
        why = "its users' vectors depend on the graph: train again with the new users"
        if getattr(model, "needs_histories", False):
            why = "it knows users by their items: pass their items as histories= where users are scored"
        raise ValueError(f"{name} has no field n_users, so that its users cannot be folded in; {why}")
    n, n_items = model.n_users, getattr(model, "n_items", None)
    shapes, larger = (_shapes(each) for each in (model, _resized(model, n + 1)))
    params = {path: np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables["params"]))}
    for path in shapes:
        if params.get(path) != shapes[path]:
            found = "is missing" if path not in params else f"has shape {list(params[path])}"
            raise ValueError(
                f"the variables do not fit {name}: the parameter {jax.tree_util.keystr(path)} {found}, and the model's "
                f"has shape {list(shapes[path])}; give the variables of this model"
            )
    tables = {path for path, shape in shapes.items() if shape != larger[path]}
    if not tables:
        raise ValueError(f"no parameter of {name} has a row for each of its n_users={n}; it cannot be folded in")
    further = {path for path in set(params) - set(shapes) if params[path][:1] == (n,)}  # those of a loss
    others = {n_items, *(size for path, shape in shapes.items() for size in shape[path in tables :])}
    if further and n in others:
        raise ValueError(
            f"the parameter {jax.tree_util.keystr(min(further, key=str))} has {n} rows, which may be of users or of "
            "something else of the model that there are as many of; add a user to the training data"
        )
    return tables | further


def _shapes(model: Any) -> dict:
    """Returns the shapes of a model's parameters by their paths."""
    zero = jnp.zeros(1, jnp.int32)
    params = jax.eval_shape(lambda key: model.init(key, zero, zero)["params"], jax.random.key(0))
    return {path: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(dict(params))}


def _bound(objective: Objective, model: Any, n: int, histories: Interactions) -> Objective:
    """Returns the objective with a model of n users in the place of the trained one."""
    found: list = []
    pairs = histories.pairs()

    def with_model(value: Any) -> Any:
        if isinstance(value, Interactions) and value.n_users == n and value.n_items == histories.n_items:
            lacking = int((~np.asarray(value.contains(*pairs))).sum())
            if lacking:
                warnings.warn(
                    f"objective binds Interactions that lack {lacking} of the {len(pairs[0])} pairs of the users to "
                    "train; if they are those of the trained users, bind those of the users to train instead",
                    DataWarning,
                    stacklevel=4,
                )
        if type(value) is type(model):
            if value != model:
                raise ValueError(
                    f"objective binds another {type(model).__name__} than model: {value!r:.300}; give the objective "
                    "of this model's training"
                )
            found.append(value)
            return _resized(value, n)
        if isinstance(value, functools.partial):
            keywords = {name: with_model(each) for name, each in value.keywords.items()}
            return functools.partial(with_model(value.func), *map(with_model, value.args), **keywords)
        if type(value) in (tuple, list):
            return type(value)(map(with_model, value))
        return {name: with_model(each) for name, each in value.items()} if type(value) is dict else value

    rebound = with_model(objective)
    if not found:
        raise ValueError(
            f"objective does not bind a {type(model).__name__} by functools.partial, so that no model of the new users "
            "can take its place; give functools.partial(objective, model=model, ...)"
        )
    try:
        check_bound((rebound,), histories)
    except ValueError as error:
        error.add_note("in fold_in, train is the rows of the users to train: bind their interactions and margins")
        raise
    return rebound


# ---------------------------------------------------------------------- rows and trees


def _chosen(users: ArrayLike | None, histories: Interactions, model: Any) -> tuple[np.ndarray, int]:
    """Returns the users to train, and how many rows of the trained model are kept."""
    if histories.n_items != getattr(model, "n_items", histories.n_items):
        raise ValueError(f"histories have {histories.n_items} items, but the model {model.n_items}; use one id map")
    if users is None:
        return np.arange(histories.n_users, dtype=np.int32), 0
    if np.asarray(users).dtype.kind not in "iu":
        raise ValueError(f"users={users!r:.80}; give ids, such as id_map.user_ids(labels)")
    chosen = checked_ids("users", users, histories.n_users)
    if histories.n_users < model.n_users:
        raise ValueError(
            f"histories have {histories.n_users} users, fewer than the model's {model.n_users}; with users=, give "
            "histories of known and new users, such as those of from_labels(..., unknown_users='new')"
        )
    if len(chosen) == 0 or len(np.unique(chosen)) < len(chosen):
        raise ValueError(f"users has {len(chosen)} ids, some twice or none at all; give each user to train once")
    return chosen, model.n_users


def _grown(table: Array, n: int, known: int, model: Any) -> jax.Array:
    """Returns n rows of users: the first `known` of the table, and the mean of all for the others."""
    table = jnp.asarray(table)
    mean = accumulated(table).mean(0)
    if table.ndim == 3 and hasattr(model, "place"):  # facets of MARS, which must lie on the sphere or in the ball
        mean = model.place(mean)
    new = jnp.broadcast_to(mean.astype(table.dtype), (n - known, *table.shape[1:]))
    return jnp.concatenate([table[:known], new])


def _rows(tables: Any, users: np.ndarray) -> Any:
    return jax.tree.map(lambda table: table[users], tables)


def _rows_of(histories: Interactions, users: np.ndarray) -> Interactions:
    """Returns the rows of users, with their weights, as `Interactions` [B, N]."""
    place = np.full(histories.n_users, -1)
    place[users] = np.arange(len(users))
    of, items = histories.pairs()
    keep = place[of] >= 0
    weights = None if histories.weights is None else np.asarray(histories.weights)[: len(items)][keep]
    times = None if histories.timestamps is None else np.asarray(histories.timestamps)[: len(items)][keep]
    sizes = {"n_users": len(users), "n_items": histories.n_items}
    return Interactions.from_pairs(place[of][keep], items[keep], weights=weights, timestamps=times, **sizes)


def _part(tree: Any, paths: set, *, other: bool = False, path: tuple = ()) -> Any:
    """Returns the tree of nested dicts with the leaves at `paths` only, or with the `other` ones."""
    found = {}
    for name, value in tree.items():
        place = (*path, jax.tree_util.DictKey(name))
        if isinstance(value, Mapping):
            if inner := _part(value, paths, other=other, path=place):
                found[name] = inner
        elif (place in paths) != other:
            found[name] = value
    return found


def _joined(first: Any, second: Any) -> Any:
    """Returns the union of two trees of nested dicts."""
    both = {name: _joined(first[name], second[name]) for name in first.keys() & second.keys()}
    return {**first, **second, **both}
