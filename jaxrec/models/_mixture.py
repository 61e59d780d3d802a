"""The decoder of interests over the whole catalogue, by chunks of items.

It takes memory [B, K, chunk] instead of [B, K, N].

    s_l = LSE_k(q2_k·h_l + g_kl) − LSE_k(q1_k·h_l + g_kl),    log p_l = s_l − LSE_l s_l

This is log Σ_k A_kl exp(ẑ_k·h_l / τ_dec) with A = softmax_k(q1·h + g), where q1 = prototypes / τ
and q2 = q1 + ẑ / τ_dec. The Gumbel noise g is a function of (key, user, interest, item). It is
therefore the same for single pairs and for chunks, forward and backward. It is drawn as odds exp(g)
= 1 / E with exponentials E.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec import sampling
from jaxrec._platform import sized
from jaxrec.models._histories import Pairs, spread
from jaxrec.typing import Array, Key


class Noise(NamedTuple):
    """Where odds come from.

    Attributes:
        key: typed key; None for no noise.
        users: int32 [B], or [1] if the batch shares the noise.
    """

    key: Key | None
    users: Array


def odds(noise: Noise, users: Array, items: Array, n_interests: int) -> list[jax.Array | None]:
    """Returns exp(g) of each interest, or None without noise.

    An array has the shape to which `users` and `items` broadcast.
    """
    if noise.key is None:
        return [None] * n_interests
    pairs = -(-n_interests // 2)
    drawn = [u for j in range(pairs) for u in sampling.uniform_at(noise.key, users * pairs + j, items)]
    return [-1 / jnp.log(u) for u in drawn[:n_interests]]


def log_sum(logits: Sequence[Array], factors: Sequence[Array | None]) -> tuple[jax.Array, list[jax.Array]]:
    """Returns log Σ_k factor_k exp(logit_k), and each term's share of the sum."""
    # The shift cancels in the result, so it needs no gradient.
    shift = jax.lax.stop_gradient(functools.reduce(jnp.maximum, logits))
    terms = [jnp.exp(logit - shift) for logit in logits]
    terms = [term if factor is None else term * factor.astype(term.dtype) for term, factor in zip(terms, factors)]
    total = functools.reduce(jnp.add, terms)
    return shift + jnp.log(total), [term / total for term in terms]


def logits_at(q: Array, pairs: Pairs, vectors: Array) -> list[jax.Array]:
    """Returns q_k·h for each interest, K arrays [C], for the pairs' items with vectors [C, D]."""
    return list(jnp.einsum("ckd,cd->kc", spread(q, pairs.rows), vectors))


def odds_at(noise: Noise, pairs: Pairs, n_interests: int) -> list[jax.Array | None]:
    """Returns the odds of single pairs, K arrays [C]."""
    return odds(noise, spread(noise.users, pairs.rows), pairs.items, n_interests)


def at_pairs(q1: Array, q2: Array, pairs: Pairs, vectors: Array, noise: Noise) -> jax.Array:
    """Returns s [C] of single pairs, whose items have vectors [C, D].

    q1 is [B, K, D], or [1, K, D] if the batch shares it.
    """
    factors = odds_at(noise, pairs, q2.shape[1])
    before, after = (log_sum(logits_at(q, pairs, vectors), factors)[0] for q in (q1, q2))
    return after - before


def scores(q1: Array, q2: Array, items: Array) -> jax.Array:
    """Returns s [B, N] of all items [N, D], without noise."""
    none = [None] * q2.shape[1]
    before, after = ([q[:, k] @ items.T for k in range(q.shape[1])] for q in (q1, q2))
    return log_sum(after, none)[0] - log_sum(before, none)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def log_normaliser(q1: Array, q2: Array, items: Array, noise: Noise, chunk: int | None) -> jax.Array:
    """Returns LSE_l s_l [B] over all items [N, D], computed from `chunk` items at a time.

    With None, their number depends on the device.

    The backward pass goes through the chunks again. With p = exp(s − LSE) and the shares w1, w2 of
    the two sums, ∂q2_k = Σ_l p w2 h_l, ∂q1_k = −Σ_l p w1 h_l, ∂h_l = Σ_uk p (w2 q2 − w1 q1).
    """
    return _forward(q1, q2, items, noise, chunk)[0]


def _by_chunk(function: Callable, chunk: int | None, items: Array, *rest: Any) -> Any:
    """Calls `function(chunks, items, *rest)` with the chunks of the items."""

    def called(chunk: int, items: Array, *rest: Any) -> Any:
        return function(_chunks(items, min(chunk, len(items))), items, *rest)

    return sized("decoder_items", called, items, *rest) if chunk is None else called(chunk, items, *rest)


def _chunks(items: Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """Returns vectors [n, chunk, D] and ids int32 [n, chunk] of chunks of the items.

    Ids of N and above are padding.
    """
    n = -(-len(items) // chunk)
    padded = jnp.pad(items, ((0, n * chunk - len(items)), (0, 0)))
    return padded.reshape(n, chunk, -1), jnp.arange(n * chunk, dtype=jnp.int32).reshape(n, chunk)


def _of_chunk(q1, q2, vectors, ids, n_items, noise):
    """Returns s [B, c], and the shares of each interest in both sums [B or 1, c]."""
    factors = odds(noise, noise.users[:, None], ids[None], q2.shape[1])
    before, w1 = log_sum([q1[:, k] @ vectors.T for k in range(q1.shape[1])], factors)
    after, w2 = log_sum([q2[:, k] @ vectors.T for k in range(q2.shape[1])], factors)
    return jnp.where(ids[None] < n_items, after - before, -jnp.inf), w1, w2


def _forward(q1, q2, items, noise, chunk):
    """Computes the log-sum, and what the backward pass needs."""
    found = _by_chunk(_log_sum, chunk, items, q1, q2, noise)
    return found, (q1, q2, items, noise, found)


def _log_sum(chunks, items, q1, q2, noise):
    """Computes the running maximum and sum of exponentials over the chunks."""

    def add(carry, part):
        largest, total = carry
        s, _, _ = _of_chunk(q1, q2, *part, len(items), noise)
        new = jnp.maximum(largest, s.max(-1))
        return (new, total * jnp.exp(largest - new) + jnp.exp(s - new[:, None]).sum(-1)), None

    start = jnp.full(len(q2), jnp.finfo(q2.dtype).min, q2.dtype), jnp.zeros(len(q2), q2.dtype)
    (largest, total), _ = jax.lax.scan(add, start, chunks)
    return largest + jnp.log(total)


def _backward(chunk, residuals, cotangent):
    """Computes the gradients of q1, q2 and the items."""
    q1, q2, items, noise, found = residuals
    return *_by_chunk(_gradients, chunk, items, q1, q2, noise, found, cotangent), None


def _gradients(chunks, items, q1, q2, noise, found, cotangent):
    """Recomputes each chunk and adds up the gradients."""
    shared = len(q1) == 1

    def add(carry, part):
        vectors, ids = part
        s, w1, w2 = _of_chunk(q1, q2, vectors, ids, len(items), noise)
        p = cotangent[:, None] * jnp.exp(s - found[:, None])
        p1 = p.sum(0, keepdims=True) if shared else p
        up, down = [p * w for w in w2], [-p1 * w for w in w1]
        d1, d2 = carry
        d2 = [d + u @ vectors for d, u in zip(d2, up)]
        d1 = [d + u @ vectors for d, u in zip(d1, down)]
        dvectors = [u.T @ q[:, k] for q, us in ((q2, up), (q1, down)) for k, u in enumerate(us)]
        return (d1, d2), functools.reduce(jnp.add, dvectors)

    start = [jnp.zeros_like(q1[:, 0])] * q1.shape[1], [jnp.zeros_like(q2[:, 0])] * q2.shape[1]
    (d1, d2), ditems = jax.lax.scan(add, start, chunks)
    return jnp.stack(d1, 1), jnp.stack(d2, 1), ditems.reshape(-1, items.shape[1])[: len(items)]


log_normaliser.defvjp(_forward, _backward)
