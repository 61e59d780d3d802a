"""Places arrays on meshes of devices."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding


def as_auto(tree: Any) -> Any:
    """Returns the arrays with Explicit mesh axes turned into Auto axes; no data move.

    With Explicit axes, the default of `jax.make_mesh`, every look-up in a sharded table must name
    the sharding of its result. With Auto axes XLA chooses it.
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
    """Gives arrays the shardings of `like`, a tree of the same structure.

    An array stays where it is if its leaf of `like` has no sharding.
    """

    def one(x: Any, template: Any) -> Any:
        sharding = getattr(template, "sharding", None)
        return x if sharding is None or x.sharding == sharding else jax.device_put(x, sharding)

    return jax.tree.map(one, tree, like)
