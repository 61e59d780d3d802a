"""How much each of a user's items contributes to a score, which a half step makes a sum over them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._numerics import power_of_two
from jaxrec.interactions import Interactions
from jaxrec.solvers._fold_in import LEAST
from jaxrec.solvers._run import check_solved
from jaxrec.typing import Array, ArrayLike

_einsum = functools.partial(jnp.einsum, precision="highest")


def checked_items(items: ArrayLike, histories: Interactions) -> np.ndarray:
    """Returns the items whose scores are explained as int32 [B, n]; −1 is padding.

    Raises:
        ValueError: unless they are ids 0 .. N-1, or −1, of shape [B, n], or of shape [n] or [1, n]
            for all users.
    """
    found = np.asarray(items)
    shape = (1,) * (2 - found.ndim) + found.shape
    if found.dtype.kind not in "iu" or len(shape) != 2 or shape[0] not in (1, histories.n_users) or not found.size:
        raise ValueError(
            f"items is {found.dtype}{list(found.shape)}, for {histories.n_users} users; give ids "
            f"[{histories.n_users}, n], such as those of evaluate.top_k, or [n] for all users"
        )
    if found.min() < -1 or found.max() >= histories.n_items:
        raise ValueError(f"items run from {found.min()} to {found.max()}; ids are 0 .. {histories.n_items - 1}")
    return np.broadcast_to(found.reshape(shape), (histories.n_users, shape[1])).astype(np.int32)


def weights_of(histories: Interactions) -> np.ndarray:
    """Returns r of the pairs, float64 [nnz]; 1 if there are no weights."""
    n = int(np.asarray(histories.indptr)[-1])
    return np.ones(n) if histories.weights is None else np.asarray(histories.weights, np.float64)[:n]


def explained(
    item: Array, histories: Interactions, items: np.ndarray, gram: Array, ridge: Array, w: Array, c: Array
) -> jax.Array:
    """Returns c_j q_iᵀ A⁻¹ q_j [nnz, n] for A = gram + ridge I + Σ_j w_j q_j q_jᵀ of each user.

    Args:
        item: the items' vectors q [N, K].
        histories: the users' items j, [B, N].
        items: the items i, [B, n]; −1 is padding, whose result is 0.
        gram: the part of A that all users share, [K, K].
        ridge: the multiple of I, [B].
        w: the weight of each pair in A, [nnz].
        c: the weight of each pair in the right-hand side, [nnz].
    """
    # Users are padded too, so that few shapes are compiled. Padding has the ridge 1.
    n_users = power_of_two(histories.n_users)
    more = n_users - histories.n_users
    degrees = np.pad(np.diff(np.asarray(histories.indptr)), (0, more))
    length = power_of_two(max(int(degrees.max(initial=0)), LEAST))
    real = np.arange(length) < degrees[:, None]

    def padded(column: np.ndarray) -> np.ndarray:
        rows = np.zeros(real.shape, column.dtype)
        rows[real] = column
        return rows

    numbers = (np.asarray(column, item.dtype) for column in (w, c))
    ridge = np.pad(np.asarray(ridge, item.dtype), (0, more), constant_values=1)
    inputs = padded(histories.pairs()[1]), *map(padded, numbers), ridge, np.pad(items, ((0, more), (0, 0)))
    return check_solved(_of_users(item, gram, inputs)[real])


@jax.jit
def _of_users(item: Array, gram: Array, inputs: tuple[Array, ...]) -> jax.Array:
    """Returns the contributions [B, L, n] of padded rows; `inputs` are ids, w, c [B, L], ridge [B], items [B, n]."""

    def of_user(given: tuple[Array, ...]) -> jax.Array:
        ids, w, c, ridge, items = given
        q = item[ids]
        matrix = gram + ridge * jnp.eye(len(gram), dtype=gram.dtype) + _einsum("lk,lm->km", w[:, None] * q, q)
        asked = jnp.where((items >= 0)[:, None], item[items], 0)
        solved = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), asked.T)
        return c[:, None] * _einsum("lk,kn->ln", q, solved)

    return jax.lax.map(of_user, inputs)
