"""Places arrays on meshes of devices.

Inside, all meshes have Auto axes. With Explicit axes, the default of `jax.make_mesh`, every look-up
in a sharded table must name the sharding of its result. With Auto axes XLA chooses it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding


def automatic(mesh: Any) -> Mesh:
    """Returns the same mesh with Auto axes."""
    return Mesh(mesh.devices, mesh.axis_names)


def mesh_of(tree: Any) -> Mesh | None:
    """Returns the mesh on which the arrays of a tree lie, with Auto axes; None if there is none.

    If no array lies on a mesh, it is the mesh that `jax.set_mesh` has set.

    Raises:
        ValueError: if arrays lie on different meshes.
    """
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree))
    found = {automatic(x.mesh) for x in shardings if isinstance(x, NamedSharding)}
    if len(found) > 1:
        raise ValueError(f"arrays lie on {len(found)} meshes, {found}; put all of them on the same mesh")
    if found:
        return found.pop()
    try:
        around = jax.sharding.get_mesh()
    except ValueError:  # a function is being traced, in whose mesh everything lies
        return None
    return None if around.empty else automatic(around)


def using(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which `divided` and `replicated` place arrays on the mesh."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def where_they_lie(function: Callable) -> Callable:
    """Makes a function of variables run in their mesh, not in that of `jax.set_mesh`."""

    @functools.wraps(function)
    def placed(variables: Any, *args: Any, **options: Any) -> Any:
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((variables, args, options)))
        with using(None if traced else mesh_of(variables)):
            return function(variables, *args, **options)

    return placed


def on_mesh(tree: Any, mesh: Mesh | None) -> Any:
    """Puts arrays on the mesh. Those that are on it keep their sharding; the others are replicated.

    Without a mesh, arrays of the host are put on the default device.
    """

    def one(x: Any) -> Any:
        if mesh is None:
            return jax.device_put(x) if isinstance(x, np.ndarray) else x
        sharding = getattr(x, "sharding", None)
        if isinstance(sharding, NamedSharding) and automatic(sharding.mesh) == mesh:
            return put(x, NamedSharding(mesh, sharding.spec))
        return put(x, NamedSharding(mesh, PartitionSpec()))

    return jax.tree.map(one, tree)


def put(x: Any, sharding: Sharding) -> jax.Array:
    """Puts an array on a mesh. The mesh may span several processes, of which each has the array."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        with using(getattr(x.sharding, "mesh", None)):
            data = np.asarray(jax.random.key_data(x))
        with using(getattr(sharding, "mesh", None)):
            return jax.random.wrap_key_data(put(data, sharding), impl=jax.random.key_impl(x))
    if isinstance(x, jax.Array) and x.sharding.device_set == sharding.device_set:
        return jax.device_put(x, sharding)
    # `device_put` would first compare the arrays of all processes.
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def placed_like(tree: Any, like: Any) -> Any:
    """Gives arrays the shardings of `like`, a tree of the same leaves.

    An array stays where it is if its leaf of `like` has no sharding.
    """

    def one(x: Any, template: Any) -> Any:
        sharding = getattr(template, "sharding", None)
        if sharding is None or getattr(x, "sharding", None) == sharding:
            return x
        return put(x, sharding)

    leaves, structure = jax.tree.flatten(tree)  # a FrozenDict has the leaves of a dict
    return jax.tree.unflatten(structure, map(one, leaves, jax.tree.leaves(like)))


def spec_of(shape: Sequence[int], axis: str, size: int, *, columns: bool = False) -> PartitionSpec:
    """Returns how a table is sharded over a mesh axis with `size` devices.

    It is sharded by rows or by columns: as `columns` says, if the devices divide these evenly, else
    the other way. If they divide neither, it is replicated. So are narrow tables, such as biases,
    if `columns` is true: they would travel to those that are sharded by columns.
    """
    by_rows = shape[0] % size == 0 and not (columns and is_narrow(shape))
    # Look-ups take 8 columns at a time, which must not be divided.
    by_columns = not is_narrow(shape) and shape[-1] % (8 * size) == 0
    if by_columns and (columns or not by_rows):
        return PartitionSpec(*[None] * (len(shape) - 1), axis)
    return PartitionSpec(axis) if by_rows else PartitionSpec()


def is_narrow(shape: Sequence[int]) -> bool:
    """Returns whether a table has fewer than 8 columns."""
    return len(shape) < 2 or shape[-1] < 8


# ---------------------------------------------------------------------- while tracing


def divided(tree: Any) -> Any:
    """Divides the first axis of arrays over all devices of the mesh in `using`.

    Arrays that the devices do not divide evenly stay as they are. Without a mesh, all do.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not _divides(mesh):
        return tree
    spec = PartitionSpec(mesh.axis_names)

    def one(x: jax.Array) -> jax.Array:
        fits = x.ndim and x.shape[0] % mesh.size == 0
        return jax.lax.with_sharding_constraint(x, spec) if fits else x

    return jax.tree.map(one, tree)


def on_own_rows(function: Callable[[jax.Array], Any], x: jax.Array) -> Any:
    """Returns `function(x)` of an array that is `divided`; each device calls it with its own rows.

    XLA would collect the rows for operations that it cannot divide, such as `top_k`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not _divides(mesh) or x.shape[0] % mesh.size:
        return function(x)
    spec = PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(x)


def replicated(tree: Any) -> Any:
    """Replicates arrays on the mesh in `using`."""
    return _constrained(tree, lambda x: PartitionSpec())


def undivided(tree: Any) -> Any:
    """Gives each device all rows of arrays on the mesh in `using`; columns may be sharded."""
    free = PartitionSpec.UNCONSTRAINED
    return _constrained(tree, lambda x: PartitionSpec(None, *[free] * (x.ndim - 1)))


def _constrained(tree: Any, spec: Callable[[jax.Array], PartitionSpec]) -> Any:
    if not _divides(jax.sharding.get_abstract_mesh()):
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec(x)), tree)


def _divides(mesh: Any) -> bool:
    return not mesh.empty and mesh.size > 1 and all(kind == AxisType.Auto for kind in mesh.axis_types)
