"""Where the arrays of a state lie on a mesh of devices: tables are sharded by rows or by columns."""

from __future__ import annotations

import warnings
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec._mesh import is_narrow, put, spec_of
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.train._checks import check_state
from jaxrec.train.loop import State


def shard(
    state: State, train: Interactions, mesh: Mesh, *, rows: str | None = None, columns: str | None = None
) -> State:
    """Puts a state on a mesh: shards its tables, and replicates everything else.

    A table is a parameter, or an array of the optimiser such as its moments, with as many rows as
    `train` has users or items. `fit` trains the state on the mesh, with the same results up to
    rounding, and returns it in the same places. Evaluation takes its variables as they are.

    Tables are sharded by rows or by columns. By columns, a look-up needs no communication: the
    devices exchange scores, which are dot products, instead of rows. That is less data if vectors
    have more than a few dimensions. Columns are divided if each device gets a multiple of 8. A table
    that cannot be divided in one way is divided in the other. With `columns`, a table of fewer than
    8 columns is replicated.

    Args:
        state: the state from `init`, or one that is already on a mesh. If the mesh spans several
            processes, each needs the same state.
        train: the positives, of M users and N items.
        mesh: any mesh of devices, such as `jax.make_mesh((4,), ("devices",))`. Its axes may be Auto
            or Explicit.
        rows: the mesh axis over which tables are sharded by rows. By default it is the mesh's only
            axis. `fit` divides batches over all axes.
        columns: the mesh axis over which tables are sharded by columns, instead of `rows`.

    Warns:
        UserWarning: if a table of 8 columns or more is replicated because it cannot be divided.

    Raises:
        ValueError: if `rows` or `columns` is not an axis of the mesh, both are given, or neither is
            given and the mesh has several axes.

    >>> import optax
    >>> import jaxrec as jr
    >>> train, tx = jr.Interactions.from_pairs([0, 0, 1], [0, 1, 2]), optax.adam(0.1)
    >>> state = jr.train.init(jax.random.key(0), jr.models.MF(2, 3, dim=2), tx)
    >>> state = shard(state, train, jax.make_mesh((1,), ("devices",)))
    >>> print(state.variables["params"]["user"].sharding.spec, state.opt_state[0].count.sharding.spec)
    P('devices',) P()
    """
    return jax.tree.map(put, state, shardings(state, train, mesh, rows=rows, columns=columns))


def shardings(
    state: State, train: Interactions, mesh: Mesh, *, rows: str | None = None, columns: str | None = None
) -> State:
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
        columns: see `shard`.

    Warns:
        UserWarning: see `shard`.

    Raises:
        ValueError: see `shard`.
    """
    check_state(state)
    check_interactions(train=train)
    axis = _axis(mesh, rows, columns)
    sizes, size = {train.n_users, train.n_items}, mesh.shape[axis]
    replicated = NamedSharding(mesh, PartitionSpec())

    def is_table(x: Any) -> bool:
        return x.ndim > 0 and x.shape[0] in sizes

    def one(x: Any) -> NamedSharding:
        spec = spec_of(x.shape, axis, size, columns=columns is not None) if is_table(x) else PartitionSpec()
        return NamedSharding(mesh, spec)

    params = state.variables["params"]
    whole = {
        jax.tree_util.keystr(path, simple=True, separator="/"): list(x.shape)
        for path, x in jax.tree_util.tree_leaves_with_path(params)
        if is_table(x) and not is_narrow(x.shape) and not any(one(x).spec)
    }
    if whole:
        warnings.warn(
            f"the {size} devices of the mesh axis {axis!r} do not divide {whole} evenly, so each device has these "
            f"tables whole; give the model a dimension that is a multiple of {8 * size}",
            stacklevel=3,
        )
    rest = {name: jax.tree.map(lambda _: replicated, part) for name, part in state.variables.items()}
    opt_state = jax.tree.map(one, state.opt_state)
    parts: Any = ({**rest, "params": jax.tree.map(one, params)}, opt_state, replicated, replicated)
    return State(*parts)


def _axis(mesh: Mesh, rows: str | None, columns: str | None) -> str:
    """Returns the mesh axis over which tables are sharded."""
    if rows is not None and columns is not None:
        raise ValueError(f"rows={rows!r} and columns={columns!r}; give one of them")
    name, axis = ("rows", rows) if columns is None else ("columns", columns)
    if axis is None and len(mesh.axis_names) == 1:
        return mesh.axis_names[0]
    if axis not in mesh.axis_names:
        raise ValueError(f"{name}={axis!r}, but the mesh has the axes {mesh.axis_names}; give the name of one of them")
    return axis
