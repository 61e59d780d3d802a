"""Shards interactions over the devices of a mesh, for the solvers' sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec._mesh import automatic, put, spec_of, using
from jaxrec._pairs import offsets
from jaxrec.interactions import Interactions

Factors = Mapping[str, jax.Array]


class Shards(NamedTuple):
    """Users in S shards of R rows each; the last row of a shard holds only padding.

    Attributes:
        matrix: its arrays have a leading axis [S]. Each shard is [R, N] and has weights, 0 for
            padding.
        transposed: the same, [N, R].
        users: int32 [S, R], the user of each row; M for padding.
        places: int32 [M], the place of each user's row in [S * R].
    """

    matrix: Interactions
    transposed: Interactions
    users: np.ndarray
    places: np.ndarray


def check_mesh(mesh: Mesh, n_users: int) -> str:
    """Returns the name of the mesh's only axis.

    Raises:
        ValueError: if the mesh has several axes, or more devices than there are users.
    """
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh has the axes {mesh.axis_names}; give a mesh with a single axis, which shards the users")
    if mesh.size > n_users:
        raise ValueError(f"mesh has {mesh.size} devices and train {n_users} users; use at most {n_users} devices")
    return mesh.axis_names[0]


def sharded(train: Interactions, shards: int) -> Shards:
    """Distributes users over shards that have about equally many users and pairs.

    Users are sorted by their number of pairs and assigned to the shards in rotation.
    """
    degrees = np.diff(np.asarray(train.indptr))
    order = np.argsort(-degrees, kind="stable")
    rows = -(-train.n_users // shards) + 1
    users = np.full((shards, rows), train.n_users, np.int32)
    places = np.empty(train.n_users, np.int32)
    for shard in range(shards):
        mine = order[shard::shards]
        users[shard, : len(mine)] = mine
        places[mine] = shard * rows + np.arange(len(mine))
    lengths = np.append(degrees, 0)[users]  # [S, R]
    # The last row of each shard is padding that makes all shards equally long.
    lengths[:, -1] = lengths.sum(1).max() - lengths.sum(1)
    parts = [_shard(train, mine, length) for mine, length in zip(users, lengths)]
    matrix, transposed = (jax.tree.map(lambda *x: np.stack(x), *side) for side in zip(*parts))
    return Shards(matrix, transposed, users, places)


def _shard(train: Interactions, users: np.ndarray, lengths: np.ndarray) -> tuple[Interactions, Interactions]:
    """Returns the rows of one shard [R, N], with `lengths` pairs each, and their transpose."""
    indptr = offsets(np.r_[0, np.cumsum(lengths)])
    padding = int(lengths[-1])
    firsts = np.append(np.asarray(train.indptr)[:-1], 0)[users]
    pairs = np.repeat(firsts - indptr[:-1], lengths) + np.arange(indptr[-1])
    pairs, kept = np.where(pairs < train.n_pairs, pairs, 0), np.arange(indptr[-1]) < indptr[-1] - padding
    weights = np.ones(len(pairs), np.float32) if train.weights is None else np.asarray(train.weights)[pairs]
    indices = np.where(kept, np.asarray(train.indices)[pairs], 0).astype(np.int32)
    matrix = Interactions(indptr, indices, np.where(kept, weights, 0), None, len(users), train.n_items)
    return matrix, matrix.transpose()


def spread(mesh: Mesh, tree: Any, *spec: str) -> Any:
    """Puts arrays, of which every process has a copy, on the mesh.

    Args:
        mesh: the mesh; it may span several processes.
        tree: the arrays.
        spec: mesh axis of each array axis; without it, the arrays are replicated.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.tree.map(lambda x: put(np.asarray(x), sharding), tree)


def sharded_factors(mesh: Mesh, factors: Callable[..., Factors], **shapes: tuple[int, int]) -> Callable[..., Factors]:
    """Returns a function like `factors` whose results are sharded as `spec_of` says.

    Args:
        mesh: the mesh that the caller of the solver gave. The arrays lie on `automatic(mesh)`.
        factors: a function from arrays to factors.
        shapes: the shape of each factor.
    """
    (axis,) = mesh.axis_names
    specs = {name: spec_of(shape, axis, mesh.size) for name, shape in shapes.items()}
    places, given = ({name: NamedSharding(m, spec) for name, spec in specs.items()} for m in (automatic(mesh), mesh))
    jitted = jax.jit(factors, out_shardings=places)

    def sharded(*arrays: Any) -> Factors:
        with using(automatic(mesh)):
            found = jitted(*arrays)
        return jax.tree.map(put, found, given)

    return sharded
