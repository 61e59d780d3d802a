"""The product of `Interactions`, as a sparse matrix, with dense tables."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jaxrec._csr import owners
from jaxrec._lookup import search
from jaxrec._numerics import accumulated
from jaxrec._pairs import check_countable
from jaxrec._platform import sized
from jaxrec.interactions import Interactions
from jaxrec.typing import Array

_FLOATS = 1 << 29  # 2 GB in float32


def spmm(matrix: Interactions, transposed: Interactions | None, x: Array) -> jax.Array:
    """Multiplies the sparse matrix by a dense table: [M, N] @ [N, D] -> [M, D].

    It is differentiable in `x` and in `matrix.weights`, any number of times, in reverse mode. On
    CPU it uses `jax.experimental.sparse.BCSR`, elsewhere and in programs for `jax.export` a gather
    and a `segment_sum`. Tables of half precision are summed in float32.

    Args:
        matrix: [M, N]; pairs without weights count 1.
        transposed: `matrix.transpose()`, which the caller computes once; the gradient in `x` is a
            product with it. If it is None, or if the weights are differentiated too, the gradient
            sorts the pairs by item instead, which is slower. `transposed.weights` gets no gradient.
        x: floats [N, D].

    Raises:
        ValueError: if `transposed` has another shape or number of pairs, or if only one of the two
            has weights.

    >>> a = Interactions.from_pairs([0, 0, 1], [0, 2, 1])
    >>> spmm(a, a.transpose(), jnp.eye(3)).tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    chex.assert_shape(x, (matrix.n_items, None))
    chex.assert_type(x, float)
    check_countable(matrix.n_pairs)
    if transposed is not None and _form(matrix) != _form(transposed, turned=True):
        raise ValueError(
            f"transposed is {transposed!r}, matrix {matrix!r}; give matrix.transpose(), or None if the weights have "
            "changed since"
        )
    return _product(False, matrix, transposed, jnp.asarray(x))


def _form(matrix: Interactions, turned: bool = False) -> tuple[Any, ...]:
    """Returns shape, number of pairs and whether weights are None, of the transpose if `turned`."""
    sizes = matrix.n_users, matrix.n_items
    return *(sizes[::-1] if turned else sizes), matrix.n_pairs, matrix.weights is None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(turned, matrix, transposed, x):
    """Computes A x, or Aᵀ x if `turned`.

    All derivatives in the weights go to `matrix`, none to `transposed`.
    """
    if turned:
        matrix = _turned(matrix) if transposed is None else transposed
    table = accumulated(x)
    weights = jnp.ones(matrix.n_pairs, table.dtype) if matrix.weights is None else matrix.weights
    args = jnp.asarray(weights, table.dtype), jnp.asarray(matrix.indices), jnp.asarray(matrix.indptr), table
    return _spmm_p.bind(*args, n_users=matrix.n_users).astype(x.dtype)


def _spmm_bcsr(weights, indices, indptr, x, *, n_users):
    """The product on CPU."""
    from jax.experimental import sparse  # slow to import

    return sparse.BCSR((weights, indices, indptr), shape=(n_users, x.shape[0])) @ x


def _spmm_segments(weights, indices, indptr, x, *, n_users):
    """The product on accelerators and in exported programs.

    It looks up rows of at most `_FLOATS` numbers at a time.
    """
    (n_pairs,), dim = indices.shape, x.shape[1]
    rows = owners(indptr[1:], n_pairs)

    def add(total, pairs):
        weights, indices, rows = pairs
        return total.at[rows].add(weights[:, None] * x[indices], indices_are_sorted=True, mode="drop"), None

    zeros, pairs = jnp.zeros((n_users, dim), x.dtype), (weights, indices, rows)
    n = -(-n_pairs * dim // _FLOATS) if isinstance(dim, int) else 1  # the width of an exported table may be symbolic
    if n <= 1:
        return add(zeros, pairs)[0]
    # Padding has row M, which is dropped.
    room, ends = (0, -n_pairs % n), (0, 0, n_users)
    parts = [jnp.pad(column, room, constant_values=end).reshape(n, -1) for column, end in zip(pairs, ends)]
    return jax.lax.scan(add, zeros, parts)[0]


# A primitive, because `jax.lax.platform_dependent` cannot tell whether a program is exported.
_spmm_p = Primitive("jaxrec_spmm")


def _lowered_on_cpu(context, *args, n_users):
    """Lowers the product on CPU.

    `jax.export` refuses the function that BCSR calls, whose interface may change.
    """
    exported = context.module_context.lowering_parameters.for_export
    rule = mlir.lower_fun(_spmm_segments if exported else _spmm_bcsr, multiple_results=False)
    return rule(context, *args, n_users=n_users)


def _batched(args, axes, *, n_users):
    """Computes several products. Those of one matrix become one product with a wider table."""
    *matrix, x = args
    if all(axis is None for axis in axes[:3]):
        x = jnp.moveaxis(x, axes[3], 1)
        found = _spmm_p.bind(*matrix, x.reshape(len(x), -1), n_users=n_users)
        return found.reshape(n_users, *x.shape[1:]), 1
    product = functools.partial(_spmm_segments, n_users=n_users)

    def one_by_one(*args):
        size = next(x.shape[axis] for x, axis in zip(args, axes) if axis is not None)
        moved = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(args, axes)]

        def one(n):
            return _spmm_p.bind(*(x if axis is None else x[n] for x, axis in zip(moved, axes)), n_users=n_users)

        return jax.lax.map(one, jnp.arange(size, dtype=jnp.int32))

    return jax.lax.platform_dependent(*args, cpu=one_by_one, default=jax.vmap(product, axes)), 0


@functools.partial(jax.jit, static_argnames="n_users")
def _compiled(*args, n_users):
    return _spmm_p.bind(*args, n_users=n_users)


@_spmm_p.def_impl
def _eager(*args, n_users):
    with jax.disable_jit(False):  # without jit this function would call itself
        return _compiled(*args, n_users=n_users)


@_spmm_p.def_abstract_eval
def _shape(weights, indices, indptr, x, *, n_users):
    return jax.core.ShapedArray((n_users, x.shape[1]), x.dtype)


mlir.register_lowering(_spmm_p, mlir.lower_fun(_spmm_segments, multiple_results=False))
mlir.register_lowering(_spmm_p, _lowered_on_cpu, platform="cpu")
batching.primitive_batchers[_spmm_p] = _batched


def _product_forward(turned, matrix, transposed, x):
    """The forward pass of `_product`; keeps x only if the weights are differentiated.

    In that case `transposed` is not used: its weights are a copy, which JAX does not differentiate.
    """
    # With `symbolic_zeros`, each leaf tells by `perturbed` whether it is differentiated.
    moved = matrix.weights is not None and matrix.weights.perturbed
    matrix, transposed, x = jax.tree.map(lambda leaf: leaf.value, (matrix, transposed, x))
    transposed = None if moved else transposed
    return _product(turned, matrix, transposed, x), (matrix, transposed, x if moved else None)


def _product_backward(turned, residuals, cotangent):
    """The backward pass of `_product`."""
    matrix, transposed, x = residuals
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        cotangent = jnp.zeros(cotangent.shape, cotangent.dtype)
    for_matrix = None
    if x is not None:
        along = along_pairs(dataclasses.replace(matrix, weights=None), *((x, cotangent) if turned else (cotangent, x)))
        along = along.astype(matrix.weights.dtype)
        # None is the cotangent of integer leaves.
        for_matrix = dataclasses.replace(matrix, indptr=None, indices=None, timestamps=None, weights=along)
    return for_matrix, None, _product(not turned, matrix, transposed, cotangent)


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


def _owners(matrix: Interactions) -> jax.Array:
    """Returns the user of each pair, int32 [nnz], and M for padding; works under jit."""
    return owners(jnp.asarray(matrix.indptr)[1:], matrix.n_pairs)


def _turned(matrix: Interactions) -> Interactions:
    """Transposes a matrix; works under jit."""
    users, items = _owners(matrix), jnp.asarray(matrix.indices)
    items = jnp.where(users < matrix.n_users, items, matrix.n_items)  # padding comes last
    order = jnp.argsort(items, stable=True)
    indices, bounds = items[order], jnp.arange(matrix.n_items + 1, dtype=jnp.int32)
    return Interactions(
        indptr=search(indices, bounds),
        indices=users[order],
        weights=None if matrix.weights is None else jnp.asarray(matrix.weights)[order],
        timestamps=None,
        n_users=matrix.n_items,
        n_items=matrix.n_users,
    )


@jax.custom_vjp
def along_pairs(matrix: Interactions, rows: Array, columns: Array) -> jax.Array:
    """Returns the dot product of the two vectors of each pair, [nnz], without an array [nnz, D]."""

    def product(pair):
        return (accumulated(rows[pair[0]]) * accumulated(columns[pair[1]])).sum()

    def by_block(size, *pairs):
        return jax.lax.map(product, pairs, batch_size=size)

    return sized("pairs", by_block, _owners(matrix), jnp.asarray(matrix.indices))


def _along_pairs_forward(matrix, rows, columns):
    """The forward pass of `along_pairs`."""
    return along_pairs(matrix, rows, columns), (matrix, rows, columns)


def _along_pairs_backward(residuals, cotangent):
    """The backward pass of `along_pairs`: two products with a matrix weighted by the cotangent."""
    matrix, rows, columns = residuals
    matrix = dataclasses.replace(matrix, weights=cotangent)
    return None, _product(False, matrix, None, columns), _product(True, matrix, None, rows)


along_pairs.defvjp(_along_pairs_forward, _along_pairs_backward)
