"""The alternation of iALS and WRMF: half steps on one device or a mesh, and the loop over sweeps.

Users and items are rows of one table [R, K], users first. A half step solves for the rows of one
side. It has three programs, which both sides share: one turns the table into the basis of the other
side's Gram matrix, one solves for a part of the rows, and one puts the solutions into the table.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec._log import Log
from jaxrec._mesh import automatic
from jaxrec._partials import Static, check_function, combine, partition
from jaxrec._platform import concurrently, cores, options_for_loops, size
from jaxrec._run import Loop
from jaxrec.interactions import Interactions
from jaxrec.models.mf import MF
from jaxrec.solvers._mesh import check_mesh, sharded_factors, spread
from jaxrec.solvers._rows import Bucket, Source, bucket_lengths, grouped, places
from jaxrec.solvers._run import Factors, description_of, first_factors, run
from jaxrec.solvers._solve import Half, Weighting
from jaxrec.typing import Array, Key, Scalar, Variables

_LEAST = 1 << 14  # a part has at least this many pairs, so that starting its thread pays off
_einsum = functools.partial(jnp.einsum, precision="highest")


class Solver(Protocol):
    """A function that solves for the rows of a half step.

    It is `cholesky`, `conjugate_gradient`, `subspace`, a partial of one, or your own function.
    """

    def __call__(self, half: Half) -> tuple[list[jax.Array], list[jax.Array]]:
        """Returns the solutions [C, B, K] and the values [C] of each bucket; see `_solve`."""


def alternate(
    train: Interactions,
    weighting: Weighting,
    *,
    dim: int,
    key: Key,
    solver: Callable,
    scale: float,
    balance: bool,
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
        solver: the function that solves for the rows of a half step; see `Solver`.
        scale: standard deviation of the initial item factors, times √K.
        balance: see `ials.fit`.
        mesh: the mesh over which both sides are sharded, or None.
        sweeps: see `_run.run`.
        tolerance: see `_run.run`.
        loop: see `jaxrec._run.Loop`.
    """
    began = time.perf_counter()
    check_function("solver", solver, "jaxrec.solvers.ials.cholesky, conjugate_gradient or subspace")
    parts = max(min(cores(), train.n_pairs // _LEAST), 1)
    params: Callable[..., Factors] = functools.partial(factors, n_users=train.n_users)
    if mesh is not None:
        check_mesh(mesh, train.n_users)
        params = sharded_factors(mesh, params, user=(train.n_users, dim), item=(train.n_items, dim))
        mesh, parts = automatic(mesh), mesh.size
    sources = [Source(train, 0, train.n_users), Source(train.transpose(), train.n_users, 0)]
    table = np.concatenate([np.asarray(table) for table in first_factors(key, train, dim, scale).values()])
    table[np.concatenate([source.degrees() for source in sources]) == 0] = 0
    state = State(table, np.eye(dim, dtype=table.dtype))
    state = jax.device_put(state) if mesh is None else spread(mesh, state)
    users, items = _divided(sources, state.table, parts=parts, mesh=mesh)
    total = train.n_pairs if train.weights is None else np.sum(train.weights, dtype=float)
    constant = float(weighting.gain * total + weighting.shift * train.n_pairs)
    how: dict[str, Any] = {"solver": partition((solver,)), "balance": balance, "mesh": mesh}
    settings = {"weighting": weighting, "dim": dim, "solver": solver, "scale": scale, "balance": balance}

    def sweep(state: State) -> tuple[State, dict[str, float]]:
        state, after_users = half_step(state, *users, items[1], weighting, **how)
        state, objective = half_step(state, *items, users[1], weighting, **how)
        return state, {"after_users": constant + float(after_users), "objective": constant + float(objective)}

    return run(
        sweep,
        state,
        model=MF(train.n_users, train.n_items, dim=dim),
        params=params,
        mesh=mesh,
        sweeps=sweeps,
        tolerance=tolerance,
        began=began,
        description=lambda: description_of(train, key, tolerance=tolerance, **settings),
        **loop,
    )


class State(NamedTuple):
    """The vectors of users and items [R, K], and the basis [K, K] that they are in.

    Every half step rotates the table into the basis of the eigenvectors of the Gram matrix of the
    side that is not solved. The scores do not change.
    """

    table: Array
    basis: Array


class Side(NamedTuple):
    """The rows of the table that belong to one side, and what `half_step` needs to know of them.

    Attributes:
        place: int32 [R], the place of each row among the solutions of all parts.
        mine: bool [R], whether a row is of this side.
        totals: float64 [R], Σ r of each row of this side.
        count: number of rows of this side.
    """

    place: Array
    mine: Array
    totals: Array
    count: Scalar  # type: ignore[assignment]  # hides the method `count` of tuples


def _divided(sources: list[Source], table: Array, *, parts: int, mesh: Mesh | None) -> list[tuple[list, Side]]:
    """Divides the rows of each side into parts, and returns the parts of each side with its `Side`.

    The sizes of buckets depend on the device of the table [R, K].
    """
    n_rows, dim = table.shape
    chunk, spare = (size(name, table) // dim for name in ("solver_floats", "solver_padding"))
    lengths = bucket_lengths(np.concatenate([source.degrees() for source in sources]), spare)
    of_sides = grouped(sources, lengths, n_rows=n_rows, chunk=max(chunk, 1), parts=parts)
    return [side(source, buckets, n_rows, mesh) for source, buckets in zip(sources, of_sides)]


def side(
    source: Source, parts: list[tuple[Bucket, ...]], n_rows: int, mesh: Mesh | None = None
) -> tuple[list[tuple[Bucket, ...]], Side]:
    """Puts the rows of one side on the device or the mesh.

    Returns:
        The parts, which on a mesh are a single one with sharded chunks; and the `Side`.
    """
    mine, totals = np.zeros(n_rows, bool), np.zeros(n_rows)
    mine[source.first : source.first + source.matrix.n_users] = True
    for bucket in (bucket for buckets in parts for bucket in buckets):
        totals[bucket.rows[bucket.lengths > 0]] = bucket.totals[bucket.lengths > 0]
    if mesh is not None:
        parts = [jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)]
    rest: Any = (places(parts, n_rows), mine, totals)
    if mesh is None:
        parts, rest = jax.device_put((parts, rest))
    else:
        parts, rest = spread(mesh, parts, *mesh.axis_names), spread(mesh, rest)
    place, mine, totals = rest
    return parts, Side(place, mine, totals, source.matrix.n_users)


# ---------------------------------------------------------------------- a half step


def half_step(
    state: State,
    parts: list[tuple[Bucket, ...]],
    own: Side,
    other: Side,
    weighting: Weighting,
    *,
    solver: tuple[list, Static],
    balance: bool = False,
    mesh: Mesh | None = None,
) -> tuple[State, jax.Array]:
    """Solves for the rows of one side.

    Args:
        state: the current vectors.
        parts: the buckets of each part of the rows to solve for.
        own: the side to solve for.
        other: the other side.
        weighting: the numbers of the objective.
        solver: the result of `partition` for a tuple of one `Solver`.
        balance: see `ials.fit`.
        mesh: the mesh over which the chunks are sharded, or None.

    Returns:
        The new vectors, and the objective [] without the constants of the pairs.
    """
    arrays, static = solver
    table, spectrum, basis = _turned(state, other.mine, weighting)
    inputs = ((part, table, spectrum, weighting, other.count, arrays) for part in parts)
    # JAX only takes compiler options at the top level.
    solve = compiled(traced=isinstance(table, jax.core.Tracer))
    found = concurrently(solve, inputs, static=static, mesh=mesh)
    table, objective = _put(table, found, own, other, weighting, balance=balance, mesh=mesh)
    return State(table, basis), objective


@jax.jit
def _turned(state: State, others: Array, weighting: Weighting) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the table in the basis of the other side's Gram matrix G, α0 G's diagonal, and the basis."""
    others = jnp.where(others[:, None], state.table, 0)
    spectrum, turn = eigenbasis(_einsum("rk,rm->km", others, others))
    spectrum *= weighting.of_type(spectrum.dtype).unobserved
    return _einsum("rk,km->rm", state.table, turn), spectrum, _einsum("km,mn->kn", state.basis, turn)


@functools.cache
def compiled(*, traced: bool) -> Any:
    """Returns `_solved`, jitted; `traced` says whether another function is being traced."""
    options = None if traced else options_for_loops()
    return jax.jit(_solved, static_argnames=("static", "mesh"), compiler_options=options)


def _solved(buckets, table, spectrum, weighting, n_other, arrays, *, static: Static, mesh: Mesh | None):
    """Solves for a part of the rows; see `Solver`."""

    def local(buckets, table, spectrum, weighting, n_other, arrays):
        (solver,) = combine(arrays, static)
        found = solver(Half(buckets, table, spectrum, weighting.of_type(table.dtype), n_other))
        shapes = (
            [(*bucket.rows.shape, table.shape[1]) for bucket in buckets],
            [bucket.rows.shape[:1] for bucket in buckets],
        )
        if jax.tree.map(jnp.shape, found) != shapes:
            raise ValueError(
                f"the solver gives {jax.tree.map(jnp.shape, found)}; return the solutions and the values of the "
                f"buckets, two lists of arrays of the shapes {shapes}"
            )
        return found

    if mesh is not None:
        sharded, same = PartitionSpec(*mesh.axis_names), PartitionSpec()
        specs = (sharded, *[same] * 5)
        local = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=sharded, check_vma=False)
    return local(buckets, table, spectrum, weighting, n_other, arrays)


@functools.partial(jax.jit, static_argnames=("balance", "mesh"))
def _put(
    table: Array, found: list, own: Side, other: Side, weighting: Weighting, *, balance: bool, mesh: Mesh | None
) -> tuple[jax.Array, jax.Array]:
    """Returns the table with the solutions, and the objective without the constants of the pairs.

    The objective costs no further product: it follows from the solver's values pᵀAp − 2pᵀb. They
    have the penalties of the solved side only.
    """
    # Rows without pairs point to the zeros at the end.
    chunks_of_rows = [chunks.reshape(-1, table.shape[1]) for solutions, _ in found for chunks in solutions]
    solved = jnp.concatenate([*chunks_of_rows, jnp.zeros_like(table[:1])])
    if mesh is not None:
        solved = jax.lax.with_sharding_constraint(solved, NamedSharding(mesh, PartitionSpec()))
    table = jnp.where(own.mine[:, None], solved[own.place], table)
    weighting, squares = weighting.of_type(table.dtype), (table**2).sum(1)

    def ridge(side: Side, n_other: Scalar) -> jax.Array:
        penalties = weighting.penalties(side.totals.astype(table.dtype), n_other)
        return jnp.where(side.mine, penalties * squares, 0).sum()

    of_own, of_other = ridge(own, other.count), ridge(other, own.count)
    value = sum(chunks.sum() for _, values in found for chunks in values) + of_other
    if balance:
        # c² Σ λ ‖p‖² + c⁻² Σ λ ‖q‖² is least, and both terms are equal, for c⁴ = Σ λ ‖q‖² / Σ λ ‖p‖².
        factor = jnp.where((of_own > 0) & (of_other > 0), (of_other / of_own) ** 0.25, 1)
        table *= jnp.where(own.mine, factor, 1 / factor)[:, None]
        value -= (1 - factor**2) * of_own + (1 - factor**-2) * of_other
    return table, value


@functools.partial(jax.jit, static_argnames="n_users")
def factors(state: State, *, n_users: int) -> Factors:
    """Returns the tables of users and items in the original basis."""
    table = _einsum("rk,mk->rm", state.table, state.basis)
    return {"user": table[:n_users], "item": table[n_users:]}


def eigenbasis(gram: Array) -> tuple[jax.Array, jax.Array]:
    """Returns the eigenvalues of a Gram matrix and its eigenvectors.

    Eigenvalues that are rounding errors are set to 0, also because they may be negative.
    """
    spectrum, basis = jnp.linalg.eigh(gram)
    rounding = len(gram) * jnp.finfo(gram.dtype).eps * spectrum[-1]
    return jnp.where(spectrum > rounding, spectrum, 0), basis
