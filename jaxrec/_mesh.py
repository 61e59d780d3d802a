"""Arrays on meshes of devices."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding


def as_auto(tree: Any) -> Any:
    """The same arrays, those on an Explicit mesh on that mesh as Auto. Nothing is moved.

    Under Explicit axes, the default of `jax.make_mesh`, every look-up in a sharded table must say where its result
    goes; under Auto axes XLA decides.
    """

    def is_explicit(x: Any) -> bool:
        sharding = getattr(x, "sharding", None)
        return isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types

    def one(x: Any) -> Any:
        if not is_explicit(x):
            return x
        mesh = Mesh(x.sharding.mesh.devices, x.sharding.mesh.axis_names)
        return jax.device_put(x, NamedSharding(mesh, x.sharding.spec))

    return jax.tree.map(one, tree) if any(map(is_explicit, jax.tree.leaves(tree))) else tree


def placed_like(tree: Any, like: Any) -> Any:
    """Arrays with the shardings of `like`, a tree of the same structure; other leaves of `like` place nothing."""

    def one(x: Any, template: Any) -> Any:
        sharding = getattr(template, "sharding", None)
        return x if sharding is None or x.sharding == sharding else jax.device_put(x, sharding)

    return jax.tree.map(one, tree, like)
