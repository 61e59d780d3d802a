"""Interactions dealt over the devices of a mesh, for the solvers' sharded sweeps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.interactions import Interactions
from jaxrec.typing import Array


class Deal(NamedTuple):
    """Users in shards of one size: S devices, R rows each, of which the last holds nothing but padding.

    Attributes:
        matrix: arrays with a leading axis [S]; each shard is [R, N], with weights, 0 where padded.
        transposed: likewise, [N, R].
        users: int32 [S, R], the user of each row, M where it is padding.
        places: int32 [M], where each user's row is in [S * R].
    """

    matrix: Interactions
    transposed: Interactions
    users: np.ndarray
    places: np.ndarray


def check_mesh(mesh: Mesh, n_users: int) -> str:
    """The name of the mesh's only axis.

    Raises:
        ValueError: for a mesh of more axes than one, or of more devices than users.
    """
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh has the axes {mesh.axis_names}; give one of a single axis, over which users are dealt")
    if mesh.size > n_users:
        raise ValueError(f"mesh has {mesh.size} devices and train {n_users} users; give at most a device a user")
    return mesh.axis_names[0]


def dealt(train: Interactions, shards: int) -> Deal:
    """Deals users out by degree, the busiest first, so that every shard gets about as many users and pairs."""
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
    lengths[:, -1] = lengths.sum(1).max() - lengths.sum(1)
    parts = [_shard(train, mine, length) for mine, length in zip(users, lengths)]
    matrix, transposed = (jax.tree.map(lambda *x: np.stack(x), *side) for side in zip(*parts))
    return Deal(matrix, transposed, users, places)


def _shard(train: Interactions, users: np.ndarray, lengths: np.ndarray) -> tuple[Interactions, Interactions]:
    indptr = np.r_[0, np.cumsum(lengths)].astype(np.int32)
    padding = int(lengths[-1])
    firsts = np.append(np.asarray(train.indptr)[:-1], 0)[users]
    pairs = np.repeat(firsts - indptr[:-1], lengths) + np.arange(indptr[-1])
    pairs, kept = np.where(pairs < train.n_pairs, pairs, 0), np.arange(indptr[-1]) < indptr[-1] - padding
    weights = np.ones(len(pairs), np.float32) if train.weights is None else np.asarray(train.weights)[pairs]
    indices = np.where(kept, np.asarray(train.indices)[pairs], 0).astype(np.int32)
    matrix = Interactions(indptr, indices, np.where(kept, weights, 0), None, len(users), train.n_items)
    return matrix, matrix.transpose()


def spread(mesh: Mesh, tree: Any, *spec: str) -> Any:
    """Puts arrays that every process has on the mesh, split as `spec` says (nothing: whole on every device)."""
    sharding = NamedSharding(mesh, PartitionSpec(*spec))

    def put(x: Array) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)
