"""The alternation of iALS and WRMF: what lies on the devices, and a sweep over it, on one device or a mesh."""

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
"""Numbers gathered at a time: about what a core's cache holds."""

_einsum = functools.partial(jnp.einsum, precision="highest")


class Solver(Protocol):
    """`cholesky`, `conjugate_gradient`, `subspace`, or a `functools.partial` of one."""

    def __call__(self, half: Half, start: list[Array]) -> tuple[list[Array], list[Array]]:
        """Solutions and values of each bucket's rows; see `_solve`."""


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
    """Solves users and items alternately, by `solver`; the other arguments are those of `_run.run`."""
    parts = 1 if mesh is None else mesh.size
    if not callable(solver):
        raise TypeError(f"solver={solver!r}; give ials.cholesky, conjugate_gradient or subspace, arguments bound")
    users, items = sides(train, chunk=max(CHUNK // dim, 1), parts=parts, spare=spare_pairs(dim))
    buckets, places = (users.buckets, items.buckets), {"user": users.place, "item": items.place}
    state = _first_state(first_factors(key, train, dim, scale), users, items)
    if mesh is None:
        buckets, places, state = jax.device_put((buckets, places, state))
    else:
        axis = check_mesh(mesh, train.n_users)
        mesh = Mesh(mesh.devices, mesh.axis_names)  # as Auto, under which tables can be indexed
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
    """Between sweeps: vectors [C, B, K] for each bucket of a side, and the basis [K, K] that they are in.

    Every half step turns users and items alike into the basis of Gram's eigenvectors, which changes no score.
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
    def dealt(table: Array, own: Side) -> list[np.ndarray]:
        padded = np.pad(np.asarray(table), ((0, 1), (0, 0)))
        return [padded[bucket.rows] for bucket in own.buckets]

    user, item = dealt(factors["user"], users), dealt(factors["item"], items)
    return _State(user, item, np.eye(item[0].shape[-1], dtype=item[0].dtype))


@functools.partial(jax.jit, static_argnames="mesh")
def _factors(state: _State, places: Mapping[str, Array], mesh: Mesh | None) -> Factors:
    """Tables in the order of ids, turned back; the same on all devices."""
    of_all = joined
    if mesh is not None:
        dealt = PartitionSpec(*mesh.axis_names)
        of_all = jax.shard_map(joined, mesh=mesh, in_specs=dealt, out_specs=dealt, check_vma=False)

    def table(parts: list[Array], place: Array) -> Array:
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
    """Users, then items; on a mesh each device its share of the chunks."""
    mesh = shape.mesh
    local = functools.partial(_local_sweep, shape=shape)
    if mesh is not None:
        dealt, same = PartitionSpec(*mesh.axis_names), PartitionSpec()
        specs = _State(dealt, dealt, same)
        local = jax.shard_map(
            local, mesh=mesh, in_specs=(specs, dealt, same, same), out_specs=(specs, same), check_vma=False
        )
    return local(state, buckets, weighting, arrays)


def _local_sweep(state: _State, buckets, weighting: Weighting, arrays: list[Array], *, shape: _Shape):
    """A solver's values are pᵀAp − 2pᵀb, so that the objective costs nothing more."""
    (solver,) = combine(arrays, shape.solver)
    (users, items), (n_users, n_items) = buckets, shape.sizes
    together, gathered = _over(shape.mesh)
    user, item, basis = state
    weighting = weighting.of_type(basis.dtype)

    def half_step(own, start, other, n_other):
        spectrum, basis = eigenbasis(together(sum(_einsum("cbk,cbm->km", part, part) for part in other)))
        other, start = ([_einsum("cbk,km->cbm", part, basis) for part in parts] for parts in (other, start))
        table = gathered(joined(other))
        half = Half(own, table, weighting.unobserved * spectrum, weighting, n_other)
        solutions, values = solver(half, start)
        return solutions, other, basis, sum(value.sum() for value in values)

    def figure(value, vectors, own, n_other):
        pairs = sum(bucket.lengths.sum() for bucket in users).astype(value.dtype)
        totals = sum(bucket.totals.astype(value.dtype).sum() for bucket in users)
        constant = weighting.gain * totals + weighting.shift * pairs
        return together(constant + value + weighting.ridge(own, vectors, n_other))

    user, item, turn, value = half_step(users, user, item, n_items)
    after_users = figure(value, item, items, n_users)
    item, user, again, value = half_step(items, item, user, n_users)
    objective = figure(value, user, users, n_items)
    basis = _einsum("km,mn->kn", _einsum("km,mn->kn", basis, turn), again)
    return _State(user, item, basis), {"after_users": after_users, "objective": objective}


def _over(mesh: Mesh | None) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """How devices add up a number of theirs, and how all get the rows of all."""
    if mesh is None:
        return (lambda x: x), (lambda x: x)
    (axis,) = mesh.axis_names
    return functools.partial(jax.lax.psum, axis_name=axis), lambda x: jax.lax.all_gather(x, axis, tiled=True)


def eigenbasis(gram: Array) -> tuple[Array, Array]:
    """Gram's eigenvalues, 0 where they are rounding, and its eigenvectors."""
    spectrum, basis = jnp.linalg.eigh(gram)
    rounding = len(gram) * jnp.finfo(gram.dtype).eps * spectrum[-1]
    return jnp.where(spectrum > rounding, spectrum, 0), basis


def joined(parts: list[Array]) -> Array:
    """The rows [·, K] of all buckets [C, B, K]."""
    return jnp.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
