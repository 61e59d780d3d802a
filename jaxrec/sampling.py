"""Samplers of negative items, on the device: `sampler(key, users[...], **hyper) -> int32 [..., n]`.

Bind the hyperparameters with `functools.partial`. The same key gives the same items.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._numerics import as_integer, integer, number
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.typing import Array, Key, Sampler


def uniform(key: Key, users: Array, *, n_items: int, n: int = 1) -> Array:
    """Draws n items for each user, uniformly from all, with replacement; the user's own items may be among them.

    Args:
        key: consumed.
        users: [...].
        n_items: N, at least 1; it may be traced.
        n: static.

    >>> uniform(jax.random.key(0), jnp.zeros(3, jnp.int32), n_items=10, n=4).shape
    (3, 4)
    """
    if not isinstance(n_items, jax.core.Tracer):
        n_items = integer("n_items", n_items, most=np.iinfo(np.int32).max)
    return jax.random.randint(key, (*jnp.shape(users), integer("n", n)), 0, n_items, dtype=jnp.int32)


class AliasTable(NamedTuple):
    """A distribution over items that is drawn from in constant time (Walker 1977, 10.1145/355744.355749).

    Attributes:
        keep: float32 [N], the chance to keep a uniformly drawn item.
        alias: int32 [N], the item to take otherwise.
        log_q: float32 [N], the log-probability of each item, for `losses.sampled_softmax`; -inf where never drawn.
    """

    keep: Array
    alias: Array
    log_q: Array


def popularity_table(train: Interactions, *, power: float = 1.0) -> AliasTable:
    """The distribution of items in proportion to (number of training users) ** power, made on the host.

    `power` 1 is popularity, 0.75 is word2vec's (Mikolov et al. 2013, arXiv 1310.4546), 0 is uniform over the items
    that have a training pair. Items without one are never drawn.

    Raises:
        ValueError: for a set without pairs, and a power that is not finite or too far from 0 for float64.
    """
    check_interactions(train=train)
    number("power", power)
    if not train.n_pairs:
        raise ValueError(f"train has no pairs: {train!r}; no item can be drawn from it")
    degrees = train.item_degrees.astype(np.float64)
    with np.errstate(over="ignore"):
        mass = np.where(degrees > 0, np.maximum(degrees, 1) ** power, 0)
    if not 0 < mass.sum() < np.inf:
        raise ValueError(f"power={power} of up to {int(degrees.max())} users is no float64; give a power nearer to 0")
    mass = mass / mass.sum()
    keep, alias = mass * len(mass), np.arange(len(mass))
    small, large = list(np.flatnonzero(keep < 1)), list(np.flatnonzero(keep >= 1))
    while small and large:
        item = small.pop()
        alias[item] = large[-1]
        keep[large[-1]] -= 1 - keep[item]
        if keep[large[-1]] < 1:
            small.append(large.pop())
    keep[[*small, *large]] = 1
    with np.errstate(divide="ignore"):
        return AliasTable(keep.astype(np.float32), alias.astype(np.int32), np.log(mass).astype(np.float32))


def popularity(key: Key, users: Array, *, table: AliasTable, n: int = 1) -> Array:
    """Draws n items for each user from `popularity_table`, with replacement; the user's own items may be among them."""
    return _from_table(key, (*jnp.shape(users), integer("n", n)), table)


def _from_table(key: Key, shape: tuple[int, ...], table: AliasTable) -> Array:
    item_key, keep_key = jax.random.split(key)
    items = jax.random.randint(item_key, shape, 0, table.keep.shape[0], dtype=jnp.int32)
    kept = jax.random.uniform(keep_key, shape, jnp.float32) < jnp.asarray(table.keep)[items]
    return jnp.where(kept, items, jnp.asarray(table.alias)[items])


def explorative(key: Key, shape: tuple[int, ...], *, train: Interactions, table: AliasTable) -> tuple[Array, Array]:
    """Draws positives, with replacement: users by a table, and one of the items of each, uniformly.

    With `popularity_table(train.transpose(), power=0.8)` a user comes in proportion to (number of items) ** 0.8, as the
    explorative sampling of MARS has it (eq. 10): less often than if pairs were drawn, and 0 is all users alike.

    Args:
        key: consumed.
        shape: of both results.
        train: the positives.
        table: of users; those without a positive must never be drawn.

    Returns:
        users and items, int32.

    Raises:
        ValueError: for a table of another number of users than `train` has.

    >>> train = Interactions.from_pairs([0, 0, 2], [1, 3, 0])
    >>> users, items = explorative(jax.random.key(0), (9,), train=train, table=popularity_table(train.transpose()))
    >>> bool(train.contains(users, items).all())
    True
    """
    check_interactions(train=train)
    if len(table.keep) != train.n_users:
        raise ValueError(
            f"table is of {len(table.keep)} users, train has {train.n_users}; give popularity_table(train.transpose())"
        )
    user_key, item_key = jax.random.split(key)
    users = _from_table(user_key, shape, table)
    first, end = jnp.asarray(train.indptr)[users], jnp.asarray(train.indptr)[users + 1]
    return users, jnp.asarray(train.indices)[jax.random.randint(item_key, shape, first, end, dtype=jnp.int32)]


def reject_seen(key: Key, users: Array, *, sample: Sampler, seen: Interactions, rounds: int = 8) -> Array:
    """Draws from `sample`, and draws anew whatever the user has in `seen`, at most `rounds` times.

    So it ends also for a user who has seen everything. What is still seen after the last round is kept: with a share
    s of the catalogue seen that is s ** (rounds + 1) of the draws.

    Args:
        key: consumed.
        users: [...].
        sample: a sampler, its hyperparameters bound.
        seen: the interactions to avoid.
        rounds: static, at least 0.

    >>> train = Interactions.from_pairs([0, 0, 1], [0, 1, 2])
    >>> def draw(key, users):
    ...     return uniform(key, users, n_items=3, n=5)
    >>> reject_seen(jax.random.key(0), jnp.array([0]), sample=draw, seen=train).tolist()
    [[2, 2, 2, 2, 2]]
    """
    check_interactions(seen=seen)
    rounds = integer("rounds", rounds, least=0)
    keys = jax.random.split(key, rounds + 1)

    def again(key, items):
        return jnp.where(seen.contains(users[..., None], items), sample(key, users), items)

    def unfinished(state):
        count, items = state
        return (count <= rounds) & seen.contains(users[..., None], items).any()

    def draw(state):
        count, items = state
        return count + 1, again(keys[count], items)

    return jax.lax.while_loop(unfinished, draw, (jnp.int32(1), sample(keys[0], users)))[1]


def shared(key: Key, users: Array, *, sample: Sampler) -> Array:
    """Draws once for the whole batch: [1, n] from a sampler of [B, n], for users [B].

    Scores [B, n] are then one matrix product instead of B gathers, so that thousands of negatives cost what a hundred
    of one's own do.

    >>> from functools import partial
    >>> draw = partial(uniform, n_items=10, n=4)
    >>> shared(jax.random.key(0), jnp.zeros(3, jnp.int32), sample=draw).shape
    (1, 4)
    """
    return sample(key, users[:1])


def in_batch(users: Array, items: Array, *, seen: Interactions | None = None) -> Array:
    """Which items of a batch may serve its users as negatives: bool [B, B], True = use.

    Not the positive itself, wherever it comes again, and, with `seen`, no item that the user has there.

    Args:
        users: [B].
        items: positives [B].
        seen: interactions to leave out.

    >>> in_batch(jnp.array([0, 1, 2]), jnp.array([5, 5, 7])).tolist()
    [[False, False, True], [False, False, True], [True, True, False]]
    """
    chex.assert_rank([users, items], 1)
    chex.assert_equal_shape([users, items])
    where = items[:, None] != items[None, :]
    if seen is None:
        return where
    check_interactions(seen=seen)
    return where & ~seen.contains(users[:, None], items[None, :])


def hardest(scores: Array, negatives: Array, *, n: int) -> Array:
    """The n highest-scored of a pool: dynamic hard negatives (Zhang et al. 2013, 10.1145/2484028.2484126).

    Args:
        scores: of the pool, [B, m].
        negatives: ids [B, m], or [1, m] of a pool that the batch shares.
        n: at most m.

    Raises:
        ValueError: for n above the size of the pool.

    >>> hardest(jnp.array([[0.1, 0.9, 0.5]]), jnp.array([[7, 8, 9]]), n=2).tolist()
    [[8, 9]]
    """
    kept = as_integer(n)
    if kept is None or not 1 <= kept <= scores.shape[-1]:
        raise ValueError(f"n={n} of a pool of {scores.shape[-1]}; give 1 to {scores.shape[-1]}, or draw a larger pool")
    places = jax.lax.top_k(scores, kept)[1]
    return jnp.take_along_axis(jnp.broadcast_to(negatives, scores.shape), places, axis=-1)


_SHUFFLED = 128  # up to here a shuffle takes no longer than the network of a batch


def permuted(key: Key, places: Array, *, n: int) -> Array:
    """Images of places under a random permutation of 0 .. n-1, each found by itself: to shuffle, nothing is sorted.

    Up to n = 128 the permutation is `jax.random.permutation`, so that each of the n! comes with the same chance. Above,
    a Feistel network of ten rounds (Luby and Rackoff 1988, 10.1137/0217022) with additions modulo a and b permutes
    the pairs of Z_a × Z_b, where a ≈ √n and ab is hardly above n; what falls on n or above goes through it again
    (Black and Rogaway 2002, 10.1007/3-540-45760-7_9). The ten round keys are drawn from `key`. It reaches few of the n!
    permutations, but neither single images nor pairs of them come unevenly.

    Args:
        key: typed key; one key is one permutation.
        places: integers [...] of 0 .. n-1.
        n: static, at least 1.

    Returns:
        int32 [...].

    >>> sorted(permuted(jax.random.key(0), jnp.arange(5), n=5).tolist())
    [0, 1, 2, 3, 4]
    """
    chex.assert_type(places, int)
    n = integer("n", n, most=np.iinfo(np.int32).max)
    if n <= _SHUFFLED:
        return jax.random.permutation(key, jnp.arange(n, dtype=jnp.int32))[jnp.asarray(places, jnp.int32)]
    rows = math.isqrt(n - 1) + 1
    columns, round_keys = -(-n // rows), jax.random.bits(key, (10,), jnp.uint32)

    def moved(x: Array, other: Array, round_key: Array, size: int) -> Array:
        y = (other ^ round_key) * jnp.uint32(0x85EBCA6B)
        y = (y ^ (y >> 13)) * jnp.uint32(0xC2B2AE35)
        x = x + ((y >> 16) * jnp.uint32(size) >> 16)  # uniform on 0 .. size-1, up to size / 2¹⁶
        return jnp.where(x < size, x, x - jnp.uint32(size))

    def network(x: Array) -> Array:
        left, right = x // jnp.uint32(columns), x % jnp.uint32(columns)
        for round_key in round_keys.reshape(5, 2):
            left = moved(left, right, round_key[0], rows)
            right = moved(right, left, round_key[1], columns)
        return left * jnp.uint32(columns) + right

    def outside(x: Array) -> Array:
        return (x >= n).any()

    def again(x: Array) -> Array:
        return jnp.where(x >= n, network(x), x)

    return jax.lax.while_loop(outside, again, network(jnp.asarray(places).astype(jnp.uint32))).astype(jnp.int32)


def uniform_at(key: Key, rows: Array, columns: Array) -> tuple[Array, Array]:
    """Two independent uniforms in (0, 1) for each pair: a function of key, row and column alone, whatever is around it.

    Threefry-2x32 of 20 rounds (Salmon et al. 2011, 10.1145/2063384.2063405) of the pair, unrolled, so that XLA fuses it
    into what uses it. For noise that is needed again at single places, or by parts.

    Args:
        key: typed key of any kind.
        rows: integers [...] below 2³², that broadcast with `columns`.
        columns: integers [...].

    Returns:
        Two arrays of default floats, of 23 random bits.

    >>> whole, _ = uniform_at(jax.random.key(0), jnp.arange(3)[:, None], jnp.arange(4)[None])
    >>> one, _ = uniform_at(jax.random.key(0), jnp.array(2), jnp.array(3))
    >>> bool(whole[2, 3] == one)
    True
    """
    chex.assert_type([rows, columns], int)
    words = jnp.broadcast_arrays(jnp.asarray(rows).astype(jnp.uint32), jnp.asarray(columns).astype(jnp.uint32))
    return tuple(_open_unit(word) for word in _threefry(jax.random.bits(key, (2,), jnp.uint32), *words))


def _open_unit(bits: Array) -> Array:
    dtype = jnp.result_type(float)
    return ((bits >> 9).astype(dtype) + jnp.asarray(0.5, dtype)) * jnp.asarray(2.0**-23, dtype)


def _threefry(key: Array, left: Array, right: Array) -> tuple[Array, Array]:
    """The block cipher of (left, right), uint32 each, under `key` uint32 [2]."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    left, right = left + schedule[0], right + schedule[1]
    for turn in range(5):
        for by in rotations[turn % 2]:
            left = left + right
            right = left ^ ((right << by) | (right >> (32 - by)))
        left = left + schedule[(turn + 1) % 3]
        right = right + schedule[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return left, right
