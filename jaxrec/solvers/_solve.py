"""The row-wise linear systems of iALS and WRMF, and three solvers of them.

The linear system A_u p_u = b_u of row u (a user or an item), given the other side's vectors q_i, is

    A_u = α0 G + Σ_i w_ui q_i q_iᵀ + λ_u I,   b_u = Σ_i c_ui q_i,   G = Σ_all q qᵀ,

with sums over the row's pairs, w_ui = gain·r_ui, c_ui = w_ui + shift and
λ_u = λ (Σ_i r_ui + α0·n)^ν, where n is the number of all q. All vectors are in the basis of G's
eigenvectors, where α0 G is diagonal.

A solver is a function of a `Half` and a start [C, B, K] for each bucket. It returns for each bucket
the solutions p [C, B, K] and their values p·A p − 2 p·b, summed over each chunk [C]. It only
depends on its arguments, so it can run on one device's share of the chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrec._numerics import as_integer, integer
from jaxrec.solvers._rows import Bucket
from jaxrec.typing import Array, Scalar

LONGEST = 4096
"""Longer rows are processed in pieces, whose sums are added up."""

_einsum = partial(jnp.einsum, precision="highest")


class Weighting(NamedTuple):
    """The numbers of an objective.

    Attributes:
        unobserved: α0.
        gain: the factor of r in w.
        shift: c − w.
        regularization: λ.
        nu: ν.
    """

    unobserved: Scalar
    gain: Scalar
    shift: Scalar
    regularization: Scalar
    nu: Scalar

    def of_type(self, dtype: Any) -> Weighting:
        """Converts the numbers to the dtype of the tables."""
        return Weighting(*(jnp.asarray(x, dtype) for x in self))

    def penalties(self, totals: Array, n_other: int) -> Array:
        """Returns λ_u [...] of rows with Σ r = `totals` [...]."""
        return self.regularization * (totals + self.unobserved * n_other) ** self.nu

    def ridge(self, buckets: tuple[Bucket, ...], vectors: list[Array], n_other: int) -> Array:
        """Returns Σ λ_u ‖p_u‖² over the rows of buckets, [C, B, K] each."""
        penalties = (self.penalties(bucket.totals.astype(p.dtype), n_other) for bucket, p in zip(buckets, vectors))
        return sum((penalty * _dot(p, p)).sum() for penalty, p in zip(penalties, vectors))


class Half(NamedTuple):
    """The input of a half step.

    Attributes:
        buckets: the rows to solve for, or one device's share of them.
        table: [·, K], the other side's vectors, to which the `ids` of the buckets point.
        spectrum: [K], the diagonal of α0 G.
        weighting: the numbers of the objective.
        n_other: n, the number of the other side's vectors.
    """

    buckets: tuple[Bucket, ...]
    table: Array
    spectrum: Array
    weighting: Weighting
    n_other: Scalar


# ---------------------------------------------------------------------- the systems of a chunk


class _Pairs(NamedTuple):
    """The pairs' part of the systems of B rows, as gathered vectors.

    A = Σ w q qᵀ and b = Σ c q, with q [B, L, K], w and c [B, L]. α0 G and λ_u I are not part of A.
    """

    q: Array
    w: Array
    c: Array

    def product(self, x: Array) -> Array:
        """Returns A x [B, K]."""
        return _einsum("blk,bl->bk", self.q, self.w * _einsum("blk,bk->bl", self.q, x))

    def sums(self) -> Array:
        """Returns b [B, K]."""
        return _einsum("blk,bl->bk", self.q, self.c)

    def rest(self, p: Array) -> tuple[Array, Array]:
        """Returns b − A p [B, K] and b·p [B]."""
        scores = self.scores(p)
        return _einsum("blk,bl->bk", self.q, self.c - self.w * scores), _dot(self.c, scores)

    def matrices(self) -> Array:
        """Returns A [B, K, K]."""
        return _einsum("blk,blm->bkm", self.q * self.w[..., None], self.q)

    def scores(self, p: Array) -> Array:
        """Returns the scores ŷ [B, L] of the pairs, which `block` takes."""
        return _einsum("blk,bk->bl", self.q, p)

    def block(self, first: Array, size: int, scores: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        """Returns the parts of the system in the dimensions π from `first` on.

        They are A_ππ [B, size, size], (A p − b)_π [B, size], and a function from a step in π to
        the change of the scores.
        """
        q = lax.dynamic_slice_in_dim(self.q, first, size, 2)
        slope = _einsum("blk,bl->bk", q, self.w * scores - self.c)
        return self._replace(q=q).matrices(), slope, lambda step: _einsum("blk,bk->bl", q, step)


class _Matrices(NamedTuple):
    """The same as `_Pairs`, with the sums formed: a [B, K, K], b [B, K]."""

    a: Array
    b: Array

    def product(self, x: Array) -> Array:
        return _einsum("bkm,bm->bk", self.a, x)

    def sums(self) -> Array:
        return self.b

    def rest(self, p: Array) -> tuple[Array, Array]:
        return self.b - self.product(p), _dot(self.b, p)

    def matrices(self) -> Array:
        return self.a

    def scores(self, p: Array) -> Array:
        """Returns A p [B, K], which takes the place of the scores in `block`."""
        return self.product(p)

    def block(self, first: Array, size: int, scores: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        columns = lax.dynamic_slice_in_dim(self.a, first, size, 2)
        slope = lax.dynamic_slice_in_dim(scores - self.b, first, size, 1)
        a = lax.dynamic_slice_in_dim(columns, first, size, 1)
        return a, slope, lambda step: _einsum("bkm,bm->bk", columns, step)


def _over_chunks(half: Half, solve, start: list[Array]) -> tuple[list[Array], list[Array]]:
    """Solves one chunk after another, so that the gathered vectors stay in the cache.

    Args:
        half: the half step.
        solve: function of (system, diagonal [B, K] of α0 G + λ_u I, start [B, K]) that returns the
            solutions [B, K] and their values [B].
        start: current vectors [C, B, K] of each bucket.
    """
    weighting, table = half.weighting, half.table

    def gathered(ids, ratings, where):
        w = weighting.gain * ratings.astype(table.dtype)
        c = jnp.where(where, w + weighting.shift, 0)  # w is 0 for padding already, the shift is not
        return _Pairs(table.at[ids].get(mode="promise_in_bounds"), w, c)

    def chunk(given: tuple[Bucket, Array]):
        bucket, start = given
        length = bucket.ids.shape[-1]
        where = jnp.arange(length, dtype=jnp.int32)[None] < bucket.lengths[:, None]
        columns = bucket.ids, bucket.ratings, where
        system = gathered(*columns) if length <= LONGEST else _summed(gathered, columns, table)
        penalties = weighting.penalties(bucket.totals.astype(table.dtype), half.n_other)
        p, value = solve(system, half.spectrum[None] + penalties[:, None], start)
        real = bucket.lengths > 0  # padding rows
        return jnp.where(real[:, None], p, 0), jnp.where(real, value, 0).sum()

    results = [lax.map(chunk, given) for given in zip(half.buckets, start)]
    return [p for p, _ in results], [value for _, value in results]


def _summed(gathered, columns, table: Array) -> _Matrices:
    """Sums up rows that are too long to be gathered at once, piece by piece."""
    rows, length = columns[0].shape
    n, k = -(-length // LONGEST), table.shape[1]
    columns = [jnp.pad(column, ((0, 0), (0, -length % n))) for column in columns]
    pieces = [jnp.moveaxis(column.reshape(rows, n, -1), 1, 0) for column in columns]

    def add(sums: _Matrices, piece):
        part = gathered(*piece)
        return _Matrices(sums.a + part.matrices(), sums.b + part.sums()), None

    zeros = _Matrices(jnp.zeros((rows, k, k), table.dtype), jnp.zeros((rows, k), table.dtype))
    return lax.scan(add, zeros, tuple(pieces))[0]


def _cholesky_solve(a: Array, b: Array) -> Array:
    """Returns A⁻¹ b for positive definite matrices [B, n, n] and vectors [B, n], else NaN.

    On CPU it solves a few at a time. jaxlib distributes larger batches over XLA's threads, and the
    calling thread, which is one of them, waits. Two such calls at once (two buckets or two devices)
    can deadlock.
    """
    # jaxlib keeps batches this small on one thread.
    few = max((1 << 19) // (a.shape[1] ** 2 * max(a.shape[1], 4)), 1)

    def solved(a: Array, b: Array) -> Array:
        factor = lax.linalg.cholesky(a, symmetrize_input=False)
        return jax.scipy.linalg.cho_solve((factor, True), b[..., None])[..., 0]

    if few >= len(b):
        return solved(a, b)
    by_few = partial(lax.map, lambda system: solved(*system), batch_size=few)
    return lax.platform_dependent(a, b, cpu=lambda a, b: by_few((a, b)), default=solved)


def _dot(x: Array, y: Array) -> Array:
    return (x * y).sum(-1)


# ---------------------------------------------------------------------- solvers


def cholesky(half: Half, start: list[Array]) -> tuple[list[Array], list[Array]]:
    """Solves exactly, by a Cholesky factorisation of a K × K matrix.

    For rows with fewer pairs than K, the matrix is L × L: A = D + QᵀWQ with a diagonal D, so
    p = A⁻¹Qᵀc = D⁻¹Qᵀ√W (I + √W Q D⁻¹ Qᵀ√W)⁻¹ c/√W.

    Args:
        half: the half step.
        start: current vectors [C, B, K] of each bucket; not used.
    """

    def solve(system, diagonal, start):
        if isinstance(system, _Pairs) and system.q.shape[1] < system.q.shape[2]:
            return _by_pairs(system, diagonal)
        b = system.sums()
        p = _cholesky_solve(system.matrices() + jax.vmap(jnp.diag)(diagonal), b)
        return p, -_dot(p, b)

    return _over_chunks(half, solve, start)


def _by_pairs(system: _Pairs, diagonal: Array) -> tuple[Array, Array]:
    """Solves in the L × L form."""
    # A weight of 0 is raised to ε², far below rounding, so that c/√w is defined.
    root = jnp.sqrt(jnp.maximum(system.w, jnp.finfo(system.w.dtype).eps ** 2))
    scale = lax.rsqrt(diagonal)
    q = system.q * root[..., None] * scale[:, None, :]
    identity = jnp.eye(q.shape[1], dtype=q.dtype)
    c = system.c / root
    y = _cholesky_solve(identity[None] + _einsum("blk,bmk->blm", q, q), c)
    p = _einsum("blk,bl->bk", q, y)
    return scale * p, -_dot(p, _einsum("blk,bl->bk", q, c))


def conjugate_gradient(half: Half, start: list[Array], *, steps: int = 3) -> tuple[list[Array], list[Array]]:
    """Takes `steps` steps of conjugate gradients from the current vectors.

    The preconditioner is the diagonal matrix α0 G + λ_u I. No K × K matrix of a row is formed,
    except for very long rows.

    Args:
        half: the half step.
        start: current vectors [C, B, K] of each bucket.
        steps: number of steps. K steps, or one more than a row has pairs, are exact up to rounding.

    Raises:
        ValueError: if `steps` is not an integer of 1 or more.
    """
    steps = integer("steps", steps)

    def solve(system, diagonal, p):
        inverse = 1 / diagonal
        rest, linear = system.rest(p)
        residual = rest - diagonal * p
        direction = inverse * residual
        carry = p, residual, direction, _dot(residual, direction), -linear - _dot(p, residual)

        def step(_, carry):
            p, residual, direction, square, value = carry
            image = system.product(direction) + diagonal * direction
            rate = _ratio(square, _dot(direction, image))
            p += rate[:, None] * direction
            residual -= rate[:, None] * image
            preconditioned = inverse * residual
            previous, square, value = square, _dot(residual, preconditioned), value - rate * square
            direction = preconditioned + _ratio(square, previous)[:, None] * direction
            return p, residual, direction, square, value

        p, *_, value = lax.fori_loop(0, steps, step, carry)
        return p, value

    return _over_chunks(half, solve, start)


def _ratio(x: Array, y: Array) -> Array:
    """Returns x / y, and 0 where y is 0, which leaves a solved row unchanged."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


def subspace(half: Half, start: list[Array], *, block: int) -> tuple[list[Array], list[Array]]:
    """Solves block after block of dimensions (iALS++, Rendle et al. 2021, arXiv 2110.14044).

    Each block is solved exactly: δ = A_ππ⁻¹ (A p − b)_π,  p_π −= δ,  and ŷ −= Q_π δ updates the
    row's scores.

    Args:
        half: the half step.
        start: current vectors [C, B, K] of each bucket.
        block: number of dimensions in a block, 1 to K; the last block may have fewer. With K, the
            result is that of `cholesky`.

    Raises:
        ValueError: if `block` is not an integer from 1 to K.

    Differs: the dimensions are those of the basis of G's eigenvectors, in which α0 G does not
    couple the blocks.
    """
    dim = half.table.shape[1]
    if as_integer(block) is None or not 1 <= block <= dim:
        raise ValueError(f"block={block} with dim={dim}; give 1 to {dim} as an integer")
    block = integer("block", block)

    def solve(system, diagonal, start):
        def improved(first, size, p, scores):
            a, slope, change = system.block(first, size, scores)
            own, ridge = (lax.dynamic_slice_in_dim(x, first, size, 1) for x in (p, diagonal))
            delta = _cholesky_solve(a + jax.vmap(jnp.diag)(ridge), slope + ridge * own)
            return lax.dynamic_update_slice_in_dim(p, own - delta, first, 1), scores - change(delta)

        carry = start, system.scores(start)
        carry = lax.fori_loop(0, dim // block, lambda n, carry: improved(n * block, block, *carry), carry)
        if dim % block:
            carry = improved(dim - dim % block, dim % block, *carry)
        p = carry[0]
        return p, _dot(p, system.product(p) + diagonal * p - 2 * system.sums())

    return _over_chunks(half, solve, start)
