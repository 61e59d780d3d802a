"""The alternation of iALS and WRMF: data on the devices, and the sweep, on one device or a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec._log import Log
from jaxrec._partials import Static, combine, partition
from jaxrec._run import Loop
from jaxrec.interactions import Interactions
from jaxrec.models.mf import MF
from jaxrec.solvers._mesh import check_mesh, spread
from jaxrec.solvers._rows import Bucket, Side, sides, spare_pairs
from jaxrec.solvers._run import Factors, description_of, first_factors, run
from jaxrec.solvers._solve import Half, Weighting
from jaxrec.typing import Array, Key, Variables

CHUNK = 1 << 19
"""Number of floats gathered at a time: about what fits into a core's cache."""

_einsum = functools.partial(jnp.einsum, precision="highest")


class Solver(Protocol):
    """`cholesky`, `conjugate_gradient`, `subspace`, or a `functools.partial` of one."""

    def __call__(self, half: Half, start: list[Array]) -> tuple[list[Array], list[Array]]:
        """Returns the solutions and the values of each bucket's rows; see `_solve`."""


def alternate(
    train: Interactions,
    weighting: Weighting,
    *,
    dim: int,
    key: Key,
    solver: Callable,
    scale: float,
    mesh: Mesh | None,
    sweeps: int,
    tolerance: float | None,
    loop: Loop,
) -> tuple[MF, Variables, Log]:
    """Solves for users and items alternately with `solver`.

    Args:
        train: the positives.
        weighting: the numbers of the objective.
        dim: K, the number of dimensions of a factor.
        key: typed key that draws the initial item factors.
        solver: see `Solver`.
        scale: standard deviation of the initial item factors, times √K.
        mesh: the mesh over which both sides are sharded, or None.
        sweeps: see `_run.run`.
        tolerance: see `_run.run`.
        loop: see `jaxrec._run.Loop`.
    """
    parts = 1 if mesh is None else mesh.size
    if not callable(solver):
        raise TypeError(
            f"solver={solver!r}; give ials.cholesky, conjugate_gradient or subspace, or a functools.partial of one"
        )
    users, items = sides(train, chunk=max(CHUNK // dim, 1), parts=parts, spare=spare_pairs(dim))
    buckets, places = (users.buckets, items.buckets), {"user": users.place, "item": items.place}
    state = _first_state(first_factors(key, train, dim, scale), users, items)
    if mesh is None:
        buckets, places, state = jax.device_put((buckets, places, state))
    else:
        axis = check_mesh(mesh, train.n_users)
        # Axes of type Auto: under explicit axes every look-up needs an output sharding.
        mesh = Mesh(mesh.devices, mesh.axis_names)
        buckets, places = spread(mesh, buckets, axis), spread(mesh, places)
        state = _State(*spread(mesh, state[:2], axis), spread(mesh, state.basis))
    arrays, static = partition((solver,))
    shape = _Shape((train.n_users, train.n_items), static, mesh)
    step = functools.partial(_sweep, buckets=buckets, weighting=weighting, arrays=arrays, shape=shape)
    settings = {"weighting": weighting, "dim": dim, "solver": solver, "scale": scale, "tolerance": tolerance}
    return run(
        step,
        state,
        model=MF(train.n_users, train.n_items, dim=dim),
        params=functools.partial(_factors, places=places, mesh=mesh),
        sweeps=sweeps,
        tolerance=tolerance,
        description=lambda: description_of(train, key, **settings),
        **loop,
    )


# ---------------------------------------------------------------------- sweeps


class _State(NamedTuple):
    """The state between sweeps: vectors [C, B, K] of each side's buckets, and their basis [K, K].

    Every half step rotates users and items into the basis of the eigenvectors of a Gram matrix,
    that of the side which is not solved. This changes no score.
    """

    user: list[Array]
    item: list[Array]
    basis: Array


class _Shape(NamedTuple):
    """What a sweep is compiled for: (M, N), the solver's static parts, and the mesh or None."""

    sizes: tuple[int, int]
    solver: Static
    mesh: Mesh | None


def _first_state(factors: Factors, users: Side, items: Side) -> _State:
    """Returns the initial state, with the rows of the tables arranged in buckets."""

    def by_bucket(table: Array, own: Side) -> list[np.ndarray]:
        # Padding rows have the number of all rows as their id.
        padded = np.pad(np.asarray(table), ((0, 1), (0, 0)))
        return [padded[bucket.rows] for bucket in own.buckets]

    user, item = by_bucket(factors["user"], users), by_bucket(factors["item"], items)
    return _State(user, item, np.eye(item[0].shape[-1], dtype=item[0].dtype))


@functools.partial(jax.jit, static_argnames="mesh")
def _factors(state: _State, places: Mapping[str, Array], mesh: Mesh | None) -> Factors:
    """Returns the tables in the order of ids and the original basis, replicated on all devices."""
    of_all = joined
    if mesh is not None:
        sharded = PartitionSpec(*mesh.axis_names)
        of_all = jax.shard_map(joined, mesh=mesh, in_specs=sharded, out_specs=sharded, check_vma=False)

    def table(parts: list[Array], place: Array) -> Array:
        # Rows without pairs point to the zeros at the end.
        rows = jnp.pad(of_all(parts), ((0, 1), (0, 0)))
        if mesh is not None:
            rows = jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, PartitionSpec()))
        return _einsum("rk,mk->rm", rows[place], state.basis)

    return {"user": table(state.user, places["user"]), "item": table(state.item, places["item"])}


@functools.partial(jax.jit, static_argnames="shape")
def _sweep(
    state: _State,
    buckets: tuple[tuple[Bucket, ...], tuple[Bucket, ...]],
    weighting: Weighting,
    arrays: list[Array],
    *,
    shape: _Shape,
) -> tuple[_State, dict[str, Array]]:
    """Solves for users, then for items; on a mesh, each device solves its share of the chunks."""
    mesh = shape.mesh
    local = functools.partial(_local_sweep, shape=shape)
    if mesh is not None:
        sharded, same = PartitionSpec(*mesh.axis_names), PartitionSpec()
        specs = _State(sharded, sharded, same)
        local = jax.shard_map(
            local, mesh=mesh, in_specs=(specs, sharded, same, same), out_specs=(specs, same), check_vma=False
        )
    return local(state, buckets, weighting, arrays)


def _local_sweep(state: _State, buckets, weighting: Weighting, arrays: list[Array], *, shape: _Shape):
    """Runs a sweep on one device's share.

    The objective costs no further product: it follows from the solver's values pᵀAp − 2pᵀb.
    """
    (solver,) = combine(arrays, shape.solver)
    (users, items), (n_users, n_items) = buckets, shape.sizes
    sum_devices, gathered = _over(shape.mesh)
    user, item, basis = state
    weighting = weighting.of_type(basis.dtype)

    def half_step(own, start, other, n_other):
        spectrum, basis = eigenbasis(sum_devices(sum(_einsum("cbk,cbm->km", part, part) for part in other)))
        other, start = ([_einsum("cbk,km->cbm", part, basis) for part in parts] for parts in (other, start))
        table = gathered(joined(other))
        half = Half(own, table, weighting.unobserved * spectrum, weighting, n_other)
        solutions, values = solver(half, start)
        return solutions, other, basis, sum(value.sum() for value in values)

    def objective_of(value, vectors, own, n_other):
        # The value has the penalty of the solved side only; `own` is the other one.
        pairs = sum(bucket.lengths.sum() for bucket in users).astype(value.dtype)
        totals = sum(bucket.totals.astype(value.dtype).sum() for bucket in users)
        constant = weighting.gain * totals + weighting.shift * pairs
        return sum_devices(constant + value + weighting.ridge(own, vectors, n_other))

    user, item, turn, value = half_step(users, user, item, n_items)
    after_users = objective_of(value, item, items, n_users)
    item, user, again, value = half_step(items, item, user, n_users)
    objective = objective_of(value, user, users, n_items)
    basis = _einsum("km,mn->kn", _einsum("km,mn->kn", basis, turn), again)
    return _State(user, item, basis), {"after_users": after_users, "objective": objective}


def _over(mesh: Mesh | None) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Returns two functions: one sums arrays over the devices, the other gathers their rows."""
    if mesh is None:
        return (lambda x: x), (lambda x: x)
    (axis,) = mesh.axis_names
    return functools.partial(jax.lax.psum, axis_name=axis), lambda x: jax.lax.all_gather(x, axis, tiled=True)


def eigenbasis(gram: Array) -> tuple[Array, Array]:
    """Returns the eigenvalues of a Gram matrix and its eigenvectors.

    Eigenvalues that are rounding errors are set to 0, also because they may be negative.
    """
    spectrum, basis = jnp.linalg.eigh(gram)
    rounding = len(gram) * jnp.finfo(gram.dtype).eps * spectrum[-1]
    return jnp.where(spectrum > rounding, spectrum, 0), basis


def joined(parts: list[Array]) -> Array:
    """Joins the rows of all buckets [C, B, K] to one array [·, K]."""
    return jnp.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
