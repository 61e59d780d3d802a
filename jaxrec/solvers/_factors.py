"""The objective of given factors and the vectors of new users, for iALS and WRMF."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._mesh import where_they_lie
from jaxrec._numerics import number
from jaxrec._partials import partition
from jaxrec._platform import size, sized
from jaxrec.interactions import Interactions, check_interactions, check_weights
from jaxrec.solvers._alternate import compiled
from jaxrec.solvers._explain import checked_items, explained, weights_of
from jaxrec.solvers._fold_in import LEAST, Summary, compact, summary_of
from jaxrec.solvers._rows import Source, grouped, places
from jaxrec.solvers._run import Factors, check_factors, check_solved
from jaxrec.solvers._solve import Weighting, cholesky
from jaxrec.solvers._spectrum import totals_of
from jaxrec.typing import Array, ArrayLike, Scalar, Variables

_einsum = functools.partial(jnp.einsum, precision="highest")


def check_numbers(**given: Scalar) -> None:
    """Raises `ValueError` for a hyperparameter that is negative or not finite, with its name."""
    for name, value in given.items():
        number(name, value, least=0)


@where_they_lie
def objective_of(variables: Variables, train: Interactions, weighting: Weighting) -> jax.Array:
    """Computes the objective [] of given factors."""
    check_interactions(train=train)
    check_weights(train=train)
    user, item = check_factors(variables, "train has", user=train.n_users, item=train.n_items)
    users, items = train.pairs()
    ratings = np.ones(train.n_pairs, np.float32) if train.weights is None else np.asarray(train.weights)
    totals = np.bincount(users, ratings, train.n_users), np.bincount(items, ratings, train.n_items)
    return _of_pairs({"user": user, "item": item}, (users, items, ratings), totals, weighting)


@jax.jit
def _of_pairs(params: Factors, pairs: tuple[Array, ...], totals: tuple[Array, Array], weighting: Weighting):
    """Computes the objective from the pairs (users, items, r) and each user's and item's Σ r."""
    user, item = params["user"], params["item"]
    weighting = weighting.of_type(item.dtype)

    def loss(pair):
        u, i, rating = pair
        score, w = (user[u] * item[i]).sum(), weighting.gain * rating.astype(user.dtype)
        return (w + weighting.shift) * (1 - 2 * score) + w * score**2

    observed = sized("pairs", lambda n, *pairs: jax.lax.map(loss, pairs, batch_size=n), *pairs).sum()
    # Σ over all pairs of (p·q)² is the inner product of PᵀP and QᵀQ.
    grams = (_einsum("nk,nm->km", table, table) for table in (user, item))
    everything = weighting.unobserved * functools.reduce(jnp.multiply, grams).sum()
    ridges = [
        (weighting.penalties(total.astype(own.dtype), len(other)) * (own**2).sum(-1)).sum()
        for total, own, other in zip(totals, (user, item), (item, user))
    ]
    return observed + everything + sum(ridges)


@where_they_lie
def fold_in_of(variables: Variables, histories: Interactions, weighting: Weighting) -> jax.Array:
    """Computes the exact vectors [B, K] of the users with these histories."""
    check_interactions(histories=histories)
    check_weights(histories=histories)
    (item,) = check_factors(variables, "histories have", item=histories.n_items)
    if histories.n_pairs == 0:
        return jnp.zeros((histories.n_users, item.shape[1]), item.dtype)
    lengths = [LEAST]
    while lengths[-1] < np.diff(np.asarray(histories.indptr)).max():
        lengths.append(2 * lengths[-1])
    known, ids = compact(histories)
    n_rows, chunk = known.n_users + known.n_items, max(size("solver_floats", item) // item.shape[1], 1)
    (parts,) = grouped([Source(known, 0, known.n_users)], lengths, n_rows=n_rows, chunk=chunk, rounded=True)
    summary = summary_of(item)
    table, spectrum = _table(item, ids, summary, weighting, n_users=known.n_users)
    arrays, static = partition((cholesky,))
    solve = compiled(traced=isinstance(table, jax.core.Tracer))
    found, _ = solve(parts[0], table, spectrum, weighting, len(item), arrays, static=static, mesh=None)
    vectors = _vectors(found, places(parts, n_rows)[: known.n_users], summary.basis)
    return check_solved(vectors[: histories.n_users])


@functools.partial(jax.jit, static_argnames="n_users")
def _table(
    item: Array, ids: Array, summary: Summary, weighting: Weighting, *, n_users: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the table of users, who are 0, and items, in the basis of the Gram matrix G, and α0 G's diagonal."""
    known = _einsum("nk,km->nm", item[ids], summary.basis)
    table = jnp.concatenate([jnp.zeros((n_users, item.shape[1]), item.dtype), known])
    return table, weighting.of_type(item.dtype).unobserved * summary.spectrum


@jax.jit
def _vectors(solutions: list[Array], place: Array, basis: Array) -> jax.Array:
    """Returns the rows [B, K] at `place` [B] of all solutions [C, B', K], in the original basis."""
    rows = [chunks.reshape(-1, len(basis)) for chunks in solutions]
    # Users without pairs point to the zeros at the end.
    solved = jnp.concatenate([*rows, jnp.zeros_like(rows[0], shape=(1, len(basis)))])
    return _einsum("rk,mk->rm", solved[place], basis)


@where_they_lie
def explain_of(variables: Variables, histories: Interactions, items: ArrayLike, weighting: Weighting) -> jax.Array:
    """Computes the contributions [nnz, n] of the histories' pairs to the scores of `items`."""
    check_interactions(histories=histories)
    check_weights(histories=histories)
    (item,) = check_factors(variables, "histories have", item=histories.n_items)
    asked, ratings = checked_items(items, histories), weights_of(histories)
    w = weighting.gain * ratings
    gram = weighting.of_type(item.dtype).unobserved * summary_of(item).gram
    ridge = weighting.penalties(totals_of(histories), len(item))
    return explained(item, histories, asked, gram, ridge, w, w + weighting.shift)
