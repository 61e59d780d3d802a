"""Where the arrays of a state lie on a mesh of devices: tables are sharded by rows."""

from __future__ import annotations

import warnings
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec._mesh import put
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.train._checks import check_state
from jaxrec.train.loop import State


def shard(state: State, train: Interactions, mesh: Mesh, *, rows: str | None = None) -> State:
    """Puts a state on a mesh: shards its tables by rows, and replicates everything else.

    A table is a parameter, or an array of the optimiser such as its moments, with as many rows as
    `train` has users or items. `fit` trains the state on the mesh, with the same results up to
    rounding, and returns it in the same places. Evaluation takes its variables as they are.

    Args:
        state: the state from `init`, or one that is already on a mesh. If the mesh spans several
            processes, each needs the same state.
        train: the positives, of M users and N items.
        mesh: any mesh of devices, such as `jax.make_mesh((4,), ("rows",))`. Its axes may be Auto or
            Explicit.
        rows: the mesh axis over which rows are sharded; None is the mesh's only axis. `fit` divides
            batches over all axes.

    Warns:
        UserWarning: if a table is replicated because the devices do not divide its rows evenly.

    Raises:
        ValueError: if `rows` is not an axis of the mesh, or the mesh has several axes and `rows` is
            None.

    >>> import optax
    >>> import jaxrec as jr
    >>> train, tx = jr.Interactions.from_pairs([0, 0, 1], [0, 1, 2]), optax.adam(0.1)
    >>> state = jr.train.init(jax.random.key(0), jr.models.MF(2, 3, dim=2), tx)
    >>> state = shard(state, train, jax.make_mesh((1,), ("rows",)))
    >>> print(state.variables["params"]["user"].sharding.spec, state.opt_state[0].count.sharding.spec)
    P('rows',) P()
    """
    return jax.tree.map(put, state, shardings(state, train, mesh, rows=rows))


def shardings(state: State, train: Interactions, mesh: Mesh, *, rows: str | None = None) -> State:
    """Returns the sharding of each array of a state, as `shard` gives it.

    The state may consist of shapes. A state that no single device could hold is created in place
    by `jax.jit`:

        new = functools.partial(init, model=model, tx=tx)
        places = shardings(jax.eval_shape(new, key), train, mesh)
        state = jax.jit(new, out_shardings=places)(key)

    Args:
        state: a state, or its shapes.
        train: see `shard`.
        mesh: see `shard`.
        rows: see `shard`.

    Warns:
        UserWarning: see `shard`.

    Raises:
        ValueError: see `shard`.
    """
    check_state(state)
    check_interactions(train=train)
    axis = _axis(mesh, rows)
    sizes, size = {train.n_users, train.n_items}, mesh.shape[axis]
    replicated = NamedSharding(mesh, PartitionSpec())

    def is_table(x: Any) -> bool:
        return x.ndim > 0 and x.shape[0] in sizes

    def one(x: Any) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(axis)) if is_table(x) and x.shape[0] % size == 0 else replicated

    params = state.variables["params"]
    left = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.shape[0]
        for path, x in jax.tree_util.tree_leaves_with_path(params)
        if is_table(x) and x.shape[0] % size
    }
    if left:
        warnings.warn(
            f"the {size} devices of the mesh axis {axis!r} do not divide the rows of {left} evenly, so that each "
            "device has these tables whole; to shard them, create train and the model with n_users and n_items that "
            f"are multiples of {size}",
            stacklevel=3,
        )
    rest = {name: jax.tree.map(lambda _: replicated, part) for name, part in state.variables.items()}
    opt_state = jax.tree.map(one, state.opt_state)
    return State({**rest, "params": jax.tree.map(one, params)}, opt_state, replicated, replicated)


def _axis(mesh: Mesh, rows: str | None) -> str:
    """Returns the mesh axis over which rows are sharded."""
    if rows is None and len(mesh.axis_names) == 1:
        return mesh.axis_names[0]
    if rows not in mesh.axis_names:
        raise ValueError(f"rows={rows!r}, but the mesh has the axes {mesh.axis_names}; give the name of one of them")
    return rows
