"""The row-wise linear systems of iALS and WRMF, and three solvers of them.

The linear system A_u p_u = b_u of row u (a user or an item), given the other side's vectors q_i, is

    A_u = α0 G + Σ_i w_ui q_i q_iᵀ + λ_u I,   b_u = Σ_i c_ui q_i,   G = Σ_all q qᵀ,

with sums over the row's pairs, w_ui = gain·r_ui, c_ui = w_ui + shift and
λ_u = λ (Σ_i r_ui + α0·n)^ν, where n is the number of all q. All vectors are in the basis of G's
eigenvectors, where α0 G is diagonal.

A solver is a function of a `Half`. It returns for each bucket the solutions p [C, B, K] and their
values p·A p − 2 p·b, summed over each chunk [C]. It only depends on its argument, so it can run on
a part of the rows.
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
"""Longer rows are gathered in pieces, and the sums of the pieces are added."""

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

    def penalties(self, totals: Array, n_other: Scalar) -> jax.Array:
        """Returns λ_u [...] of rows with Σ r = `totals` [...]."""
        return self.regularization * (totals + self.unobserved * n_other) ** self.nu


class Half(NamedTuple):
    """The input of a half step.

    Attributes:
        buckets: the rows to solve for, or a part of them.
        table: [R, K], the current vectors of all rows, those of the other side included.
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
    """The part of the systems of B rows that comes from their pairs, as gathered vectors.

    A = Σ w q qᵀ and b = Σ c q, with q [B, L, K], w and c [B, L]. α0 G and λ_u I are not part of A.
    """

    q: Array
    w: Array
    c: Array

    def product(self, x: Array, less: Scalar = 0) -> tuple[jax.Array, jax.Array]:
        """Returns A x − less·b [B, K] and b·x [B]."""
        scores = self.scores(x)
        return _einsum("blk,bl->bk", self.q, self.w * scores - less * self.c), _dot(self.c, scores)

    def sums(self) -> jax.Array:
        """Returns b [B, K]."""
        return _einsum("blk,bl->bk", self.q, self.c)

    def matrices(self) -> jax.Array:
        """Returns A [B, K, K]."""
        return _einsum("blk,blm->bkm", self.q * self.w[..., None], self.q)

    def scores(self, p: Array) -> jax.Array:
        """Returns the scores ŷ [B, L] of the pairs, which `block` takes."""
        return _einsum("blk,bk->bl", self.q, p)

    def block(
        self, first: Array, size: int, scores: Array
    ) -> tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]:
        """Returns the parts of the system in the dimensions π from `first` on.

        They are A_ππ [B, size, size], (A p − b)_π [B, size], and a function from a step in π to
        the change of the scores.
        """
        q = lax.dynamic_slice_in_dim(self.q, first, size, 2)
        slope = _einsum("blk,bl->bk", q, self.w * scores - self.c)
        return self._replace(q=q).matrices(), slope, lambda step: _einsum("blk,bk->bl", q, step)


class _Matrices(NamedTuple):
    """The same as `_Pairs`, after summation: a [B, K, K], b [B, K]."""

    a: Array
    b: Array

    def product(self, x: Array, less: Scalar = 0) -> tuple[jax.Array, jax.Array]:
        return self.scores(x) - less * self.b, _dot(self.b, x)

    def sums(self) -> jax.Array:
        return self.b

    def matrices(self) -> jax.Array:
        return self.a

    def scores(self, p: Array) -> jax.Array:
        """Returns A p [B, K], which takes the place of the scores in `block`."""
        return _einsum("bkm,bm->bk", self.a, p)

    def block(
        self, first: Array, size: int, scores: Array
    ) -> tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]:
        columns = lax.dynamic_slice_in_dim(self.a, first, size, 2)
        slope = lax.dynamic_slice_in_dim(scores - self.b, first, size, 1)
        a = lax.dynamic_slice_in_dim(columns, first, size, 1)
        return a, slope, lambda step: _einsum("bkm,bm->bk", columns, step)


def _over_chunks(half: Half, solve) -> tuple[list[jax.Array], list[jax.Array]]:
    """Solves one chunk after another, so that the gathered vectors stay in the cache.

    Args:
        half: the half step.
        solve: function of (system, diagonal [B, K] of α0 G + λ_u I, start [B, K]), with the current
            vectors as start, that returns the solutions [B, K] and their values [B].
    """
    weighting, table = half.weighting, jnp.asarray(half.table)

    def gathered(ids, ratings, where):
        w = jnp.where(where, weighting.gain if ratings is None else weighting.gain * ratings.astype(table.dtype), 0)
        c = jnp.where(where, w + weighting.shift, 0)
        return _Pairs(table.at[ids].get(mode="promise_in_bounds"), w, c)

    def chunk(bucket: Bucket) -> tuple[jax.Array, jax.Array]:
        length = bucket.ids.shape[-1]
        where = jnp.arange(length, dtype=jnp.int32)[None] < bucket.lengths[:, None]
        columns = bucket.ids, bucket.ratings, where
        system = gathered(*columns) if length <= LONGEST else _summed(gathered, columns, table)
        penalties = weighting.penalties(bucket.totals.astype(table.dtype), half.n_other)
        start = table.at[bucket.rows].get(mode="clip")
        p, value = solve(system, half.spectrum[None] + penalties[:, None], start)
        real = bucket.lengths > 0  # padding rows
        return jnp.where(real[:, None], p, 0), jnp.where(real, value, 0).sum()

    def chunks(bucket: Bucket) -> tuple[jax.Array, jax.Array]:
        def solved(n, found):
            # Plain slices, because `x[n]` and `.at[n]` would add code for negative n.
            own = {"axis": 0, "allow_negative_indices": False}
            take = partial(lax.dynamic_index_in_dim, index=n, keepdims=False, **own)
            put = partial(lax.dynamic_update_index_in_dim, index=n, **own)
            return jax.tree.map(put, found, chunk(jax.tree.map(take, bucket._replace(n_chunks=None))))

        n_chunks, size = bucket.rows.shape
        nothing = jnp.zeros((n_chunks, size, table.shape[1]), table.dtype), jnp.zeros(n_chunks, table.dtype)
        used = n_chunks if bucket.n_chunks is None else bucket.n_chunks[0]
        return lax.fori_loop(0, used, solved, nothing)

    solutions, values = zip(*map(chunks, half.buckets))
    return list(solutions), list(values)


def _summed(gathered, columns, table: Array) -> _Matrices:
    """Sums up rows that are too long to be gathered at once, piece by piece."""
    rows, length = columns[0].shape
    n, k = -(-length // LONGEST), table.shape[1]

    def cut(column: Array) -> jax.Array:
        return jnp.moveaxis(jnp.pad(column, ((0, 0), (0, -length % n))).reshape(rows, n, -1), 1, 0)

    pieces = jax.tree.map(cut, columns)

    def add(sums: _Matrices, piece):
        part = gathered(*piece)
        return _Matrices(sums.a + part.matrices(), sums.b + part.sums()), None

    zeros = _Matrices(jnp.zeros((rows, k, k), table.dtype), jnp.zeros((rows, k), table.dtype))
    return lax.scan(add, zeros, pieces)[0]


def _cholesky_solve(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns A⁻¹ b for positive definite matrices [B, n, n] and vectors [B, n], else NaN.

    On CPU it solves a few at a time. jaxlib distributes larger batches over XLA's threads, and the
    calling thread, which is one of them, waits. Two such calls at once (two buckets or two devices)
    can deadlock.
    """
    # jaxlib keeps batches this small on one thread.
    few = max((1 << 19) // (a.shape[1] ** 2 * max(a.shape[1], 4)), 1)

    def solved(a: jax.Array, b: jax.Array) -> jax.Array:
        factor = lax.linalg.cholesky(a, symmetrize_input=False)
        return jax.scipy.linalg.cho_solve((factor, True), b[..., None])[..., 0]

    if few >= len(b):
        return solved(a, b)
    by_few = partial(lax.map, lambda system: solved(*system), batch_size=few)
    return lax.platform_dependent(a, b, cpu=lambda a, b: by_few((a, b)), default=solved)


def _dot(x: Array, y: Array) -> jax.Array:
    return (x * y).sum(-1)


# ---------------------------------------------------------------------- solvers


def cholesky(half: Half) -> tuple[list[jax.Array], list[jax.Array]]:
    """Solves exactly, by a Cholesky factorisation of a K × K matrix.

    For rows with fewer pairs than K, the matrix is L × L: A = D + QᵀWQ with a diagonal D, so
    p = A⁻¹Qᵀc = D⁻¹Qᵀ√W (I + √W Q D⁻¹ Qᵀ√W)⁻¹ c/√W.

    Args:
        half: the half step.
    """

    def solve(system, diagonal, start):
        if isinstance(system, _Pairs) and system.q.shape[1] < system.q.shape[2]:
            return _by_pairs(system, diagonal)
        b = system.sums()
        p = _cholesky_solve(system.matrices() + jax.vmap(jnp.diag)(diagonal), b)
        return p, -_dot(p, b)

    return _over_chunks(half, solve)


def _by_pairs(system: _Pairs, diagonal: Array) -> tuple[jax.Array, jax.Array]:
    """Solves in the L × L form."""
    # A weight of 0 is raised to ε², far below rounding, so that c/√w is defined.
    root = jnp.sqrt(jnp.maximum(system.w, jnp.finfo(system.w.dtype).eps ** 2))
    scale = lax.rsqrt(diagonal)
    q = system.q * root[..., None] * scale[:, None, :]
    identity = jnp.eye(q.shape[1], dtype=q.dtype)
    c = system.c / root
    y = _cholesky_solve(identity[None] + _einsum("blk,bmk->blm", q, q), jnp.asarray(c))
    p = _einsum("blk,bl->bk", q, y)
    return scale * p, -_dot(p, _einsum("blk,bl->bk", q, c))


def conjugate_gradient(half: Half, *, steps: int = 3) -> tuple[list[jax.Array], list[jax.Array]]:
    """Takes `steps` steps of conjugate gradients from the current vectors.

    The preconditioner is the diagonal matrix α0 G + λ_u I. No K × K matrix of a row is formed,
    except for very long rows.

    Args:
        half: the half step.
        steps: number of steps. K steps, or one more than a row has pairs, are exact up to rounding.

    Raises:
        ValueError: if `steps` is not an integer of 1 or more.
    """
    steps = integer("steps", steps)

    def solve(system, diagonal, start):
        def step(n, carry):
            # Step 0 goes from 0 to the start, so that the product with A is compiled once.
            p, residual, direction, square, value = carry
            image, linear = system.product(direction, less=(n == 0).astype(p.dtype))
            image += diagonal * direction
            slope = _dot(direction, image)
            rate = jnp.where(n == 0, 1, _ratio(square, slope))
            value = jnp.where(n == 0, slope - linear, value - rate * square)
            p += rate[:, None] * direction
            residual -= rate[:, None] * image
            preconditioned = residual / scale
            previous, square = square, _dot(residual, preconditioned)
            direction = preconditioned + _ratio(square, previous)[:, None] * direction
            return p, residual, direction, square, value

        # Without a penalty, unused dimensions of the basis have a diagonal of 0.
        scale = jnp.where(diagonal > 0, diagonal, 1)
        nothing, zero = jnp.zeros_like(start), jnp.zeros(len(start), start.dtype)
        p, *_, value = lax.fori_loop(0, steps + 1, step, (nothing, nothing, start, zero, zero))
        return p, value

    return _over_chunks(half, solve)


def _ratio(x: Array, y: Array) -> jax.Array:
    """Returns x / y, and 0 where y is 0, which leaves a solved row unchanged."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


def subspace(half: Half, *, block: int) -> tuple[list[jax.Array], list[jax.Array]]:
    """Solves block after block of dimensions (iALS++, Rendle et al. 2021, arXiv 2110.14044).

    Each block is solved exactly: δ = A_ππ⁻¹ (A p − b)_π,  p_π −= δ,  and ŷ −= Q_π δ updates the
    row's scores.

    Args:
        half: the half step.
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
        image, linear = system.product(p)
        return p, _dot(p, image + diagonal * p) - 2 * linear

    return _over_chunks(half, solve)
