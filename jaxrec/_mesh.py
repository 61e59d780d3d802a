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

    def one(x: Any) -> Any:
        sharding = getattr(x, "sharding", None)
        if not isinstance(sharding, NamedSharding) or AxisType.Explicit not in sharding.mesh.axis_types:
            return x
        mesh = Mesh(sharding.mesh.devices, sharding.mesh.axis_names)
        return jax.device_put(x, NamedSharding(mesh, sharding.spec))

    return jax.tree.map(one, tree)


def placed_like(tree: Any, like: Any) -> Any:
    """Arrays with the shardings of `like`, a tree of the same structure; other leaves of `like` place nothing."""

    def one(x: Any, template: Any) -> Any:
        sharding = getattr(template, "sharding", None)
        return x if sharding is None or x.sharding == sharding else jax.device_put(x, sharding)

    return jax.tree.map(one, tree, like)
