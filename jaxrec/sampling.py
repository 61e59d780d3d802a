"""Samplers of negative items on the device: `sampler(key, users[...], **hyper) -> int32 [..., n]`.

Bind the hyperparameters with `functools.partial`. The same key gives the same items.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._keys import drawn
from jaxrec._numerics import as_integer, integer, number
from jaxrec._pairs import check_countable
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.typing import Array, Key, Sampler


def uniform(key: Key, users: Array, *, n_items: int, n: int = 1) -> jax.Array:
    """Draws n items for each user, uniformly from all items, with replacement.

    A user's own items may be among them; `reject_seen` redraws those.

    Args:
        key: typed key.
        users: user ids [...].
        n_items: number of items N, at least 1; it may be traced.
        n: static number of items for each user.

    Returns:
        int32 [..., n].

    Raises:
        ValueError: if `n` or `n_items` is not an integer of 1 or more.

    >>> uniform(jax.random.key(0), jnp.zeros(3, jnp.int32), n_items=10, n=4).shape
    (3, 4)
    """
    if not isinstance(n_items, jax.core.Tracer):
        n_items = integer("n_items", n_items, most=np.iinfo(np.int32).max)
    return drawn(jax.random.randint, key, (*jnp.shape(users), integer("n", n)), 0, n_items, dtype=jnp.int32)


class AliasTable(NamedTuple):
    """A distribution over items from which draws take constant time (Walker 1977).

    The method is the alias method, 10.1145/355744.355749.

    Attributes:
        keep: float32 [N], the probability of keeping a uniformly drawn item.
        alias: int32 [N], the item to take otherwise.
        log_q: float32 [N], the log-probability of each item, for `losses.sampled_softmax`; -inf for
            items that are never drawn.
    """

    keep: Array
    alias: Array
    log_q: Array


def popularity_table(train: Interactions, *, power: float = 1.0) -> AliasTable:
    """Builds the distribution of items in proportion to (number of training users) ** power.

    It is built on the host. Items without a training pair are never drawn.

    Args:
        train: the training interactions.
        power: 1 for popularity, 0.75 for the distribution of word2vec (Mikolov et al. 2013, arXiv
            1310.4546), 0 for uniform over the items that have a training pair.

    Raises:
        ValueError: if `train` has no pairs, or if `power` is not finite or its powers do not fit
            float64.
    """
    check_interactions(train=train)
    number("power", power)
    if not train.n_pairs:
        raise ValueError(f"train has no pairs: {train!r}; no item can be drawn from it")
    degrees = train.item_degrees.astype(np.float64)
    with np.errstate(over="ignore"):  # reported below
        mass = np.where(degrees > 0, np.maximum(degrees, 1) ** power, 0)
    if not 0 < mass.sum() < np.inf:
        raise ValueError(
            f"power={power} of up to {int(degrees.max())} users does not fit float64; give a power nearer to 0"
        )
    mass = mass / mass.sum()
    # Each item gets a column of height 1: items with too little mass are filled up from others.
    keep, alias = mass * len(mass), np.arange(len(mass))
    small, large = list(np.flatnonzero(keep < 1)), list(np.flatnonzero(keep >= 1))
    while small and large:
        item = small.pop()
        alias[item] = large[-1]
        keep[large[-1]] -= 1 - keep[item]
        if keep[large[-1]] < 1:
            small.append(large.pop())
    keep[[*small, *large]] = 1  # equal to 1 up to rounding
    with np.errstate(divide="ignore"):
        return AliasTable(keep.astype(np.float32), alias.astype(np.int32), np.log(mass).astype(np.float32))


def popularity(key: Key, users: Array, *, table: AliasTable, n: int = 1) -> jax.Array:
    """Draws n items for each user from a `popularity_table`, with replacement.

    A user's own items may be among them; `reject_seen` redraws those.

    Args:
        key: typed key.
        users: user ids [...].
        table: the distribution of the items.
        n: static number of items for each user.

    Returns:
        int32 [..., n].
    """
    return _from_table(key, (*jnp.shape(users), integer("n", n)), table)


def _from_table(key: Key, shape: tuple[int, ...], table: AliasTable) -> jax.Array:
    """Draws entries of a table by the alias method."""
    item_key, keep_key = jax.random.split(key)
    items = drawn(jax.random.randint, item_key, shape, 0, table.keep.shape[0], dtype=jnp.int32)
    kept = drawn(jax.random.uniform, keep_key, shape, jnp.float32) < jnp.asarray(table.keep)[items]
    return jnp.where(kept, items, jnp.asarray(table.alias)[items])


def explorative(
    key: Key, shape: tuple[int, ...], *, train: Interactions, table: AliasTable
) -> tuple[jax.Array, jax.Array]:
    """Draws positives with replacement: users from a table, and one item of each uniformly.

    With `popularity_table(train.transpose(), power=0.8)` a user is drawn in proportion to (number
    of items) ** 0.8, as in the explorative sampling of MARS (eq. 10). Power 1 would draw pairs
    uniformly, power 0 draws users uniformly.

    Args:
        key: typed key.
        shape: shape of both results.
        train: the positives.
        table: distribution of the users. It must never draw a user without a positive.

    Returns:
        users and items, int32 of this shape.

    Raises:
        ValueError: if the table has another number of users than `train`.

    >>> train = Interactions.from_pairs([0, 0, 2], [1, 3, 0])
    >>> users, items = explorative(jax.random.key(0), (9,), train=train, table=popularity_table(train.transpose()))
    >>> bool(train.contains(users, items).all())
    True
    """
    check_interactions(train=train)
    if len(table.keep) != train.n_users:
        raise ValueError(
            f"table has {len(table.keep)} users, train has {train.n_users}; give popularity_table(train.transpose())"
        )
    check_countable(train.n_pairs)
    user_key, item_key = jax.random.split(key)
    users = _from_table(user_key, shape, table)
    first, end = jnp.asarray(train.indptr)[users], jnp.asarray(train.indptr)[users + 1]
    places = drawn(jax.random.randint, item_key, shape, first.ravel(), end.ravel(), dtype=jnp.int32)
    return users, jnp.asarray(train.indices)[places]


def reject_seen(key: Key, users: Array, *, sample: Sampler, seen: Interactions, rounds: int = 8) -> jax.Array:
    """Draws from `sample`, and redraws up to `rounds` times the items that the user has in `seen`.

    Items that are still seen after the last round are kept, so the function also returns for a user
    who has seen everything. If `sample` is uniform and the user has seen a share s of the
    catalogue, this is a share s ** (rounds + 1) of the draws.

    Args:
        key: typed key.
        users: user ids [...].
        sample: a sampler with its hyperparameters bound.
        seen: the interactions to avoid.
        rounds: static number of redraws, 0 or more.

    Returns:
        int32 [..., n].

    >>> train = Interactions.from_pairs([0, 0, 1], [0, 1, 2])
    >>> def draw(key, users):
    ...     return uniform(key, users, n_items=3, n=5)
    >>> reject_seen(jax.random.key(0), jnp.array([0]), sample=draw, seen=train).tolist()
    [[2, 2, 2, 2, 2]]
    """
    check_interactions(seen=seen)
    rounds = integer("rounds", rounds, least=0)
    keys = jax.random.split(key, rounds + 1)

    def unfinished(state):
        count, _, rejected = state
        return (count <= rounds) & rejected.any()

    def draw(state):
        count, items, rejected = state
        # Draws for all positions, because shapes are static, and keeps the draws that are needed.
        items = jnp.where(rejected, sample(keys[count], users), items)
        return count + 1, items, seen.contains(users[..., None], items)

    items = sample(keys[0], users)
    items = jnp.broadcast_to(items, (*jnp.shape(users), items.shape[-1]))  # one row of `shared` is for all
    first = jnp.int32(1), items, seen.contains(users[..., None], items)
    return jax.lax.while_loop(unfinished, draw, first)[1]


def shared(key: Key, users: Array, *, sample: Sampler) -> jax.Array:
    """Draws once for the whole batch: one list of negatives [1, n] for all users.

    Scores [B, n] are then one matrix product instead of B · n look-ups of rows, so that a step can
    take many more negatives in the same time.

    Args:
        key: typed key.
        users: user ids [B]; `sample` is called with the first.
        sample: a sampler with its hyperparameters bound.

    Returns:
        int32 [1, n].

    >>> from functools import partial
    >>> draw = partial(uniform, n_items=10, n=4)
    >>> shared(jax.random.key(0), jnp.zeros(3, jnp.int32), sample=draw).shape
    (1, 4)
    """
    return sample(key, users[:1])


def in_batch(users: Array, items: Array, *, seen: Interactions | None = None) -> jax.Array:
    """Tells which items of a batch may be negatives of its users.

    The positive itself is excluded wherever it occurs in the batch. With `seen`, so are the items
    that the user has there.

    Args:
        users: user ids [B].
        items: positives [B].
        seen: interactions to exclude, or None.

    Returns:
        bool [B, B], True if the column's item may be a negative of the row's user.

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


def hardest(scores: Array, negatives: Array, *, n: int) -> jax.Array:
    """Returns the n highest-scored negatives of a pool: dynamic hard negatives (Zhang et al. 2013).

    The source is 10.1145/2484028.2484126.

    Args:
        scores: scores of the pool, [B, m].
        negatives: ids [B, m], or [1, m] for a pool that the batch shares.
        n: number of negatives to keep, at most m.

    Returns:
        ids [B, n].

    Raises:
        ValueError: if n is larger than the pool.

    >>> hardest(jnp.array([[0.1, 0.9, 0.5]]), jnp.array([[7, 8, 9]]), n=2).tolist()
    [[8, 9]]
    """
    kept = as_integer(n)
    if kept is None or not 1 <= kept <= scores.shape[-1]:
        raise ValueError(
            f"n={n} of a pool of {scores.shape[-1]} negatives; give 1 to {scores.shape[-1]}, or draw a larger pool"
        )
    places = jax.lax.top_k(scores, kept)[1]
    return jnp.take_along_axis(jnp.broadcast_to(negatives, scores.shape), places, axis=-1)


_SHUFFLED = 128  # largest n for which a shuffle takes no longer than the network on a batch


def permuted(key: Key, places: Array, *, n: int) -> jax.Array:
    """Maps positions by a random permutation of 0 .. n-1; a large n needs no sort.

    Up to n = 128 it is `jax.random.permutation`, so all n! permutations are equally likely. For
    larger n, a Feistel network of ten rounds (Luby and Rackoff 1988, 10.1137/0217022) with
    additions modulo a and b permutes the pairs of Z_a × Z_b, where a ≈ √n and ab is slightly above
    n. A result of n or more goes through the network again (Black and Rogaway 2002,
    10.1007/3-540-45760-7_9). The keys of the ten rounds are drawn from `key`. The network reaches
    only few of the n! permutations, but single images and pairs of images are evenly distributed.

    Args:
        key: typed key; each key gives one permutation.
        places: the positions to map, integers [...] of 0 .. n-1.
        n: static, at least 1.

    Returns:
        The images, int32 [...].

    >>> sorted(permuted(jax.random.key(0), jnp.arange(5), n=5).tolist())
    [0, 1, 2, 3, 4]
    """
    chex.assert_type(places, int)
    n = integer("n", n, most=np.iinfo(np.int32).max)
    if n <= _SHUFFLED:
        return jax.random.permutation(key, jnp.arange(n, dtype=jnp.int32))[jnp.asarray(places, jnp.int32)]
    rows = math.isqrt(n - 1) + 1
    columns, round_keys = -(-n // rows), jax.random.bits(key, (10,), jnp.uint32)

    def moved(x: Array, other: Array, round_key: Array, size: int) -> jax.Array:
        """One round: adds to x a hash of the other half and the round's key, modulo `size`."""
        y = (other ^ round_key) * jnp.uint32(0x85EBCA6B)
        y = (y ^ (y >> 13)) * jnp.uint32(0xC2B2AE35)
        x = x + ((y >> 16) * jnp.uint32(size) >> 16)  # adds 0 .. size-1, uniform up to size / 2¹⁶
        return jnp.where(x < size, x, x - jnp.uint32(size))  # modulo: x is below 2 · size

    def network(x: Array) -> jax.Array:
        left, right = x // jnp.uint32(columns), x % jnp.uint32(columns)
        for round_key in round_keys.reshape(5, 2):
            left = moved(left, right, round_key[0], rows)
            right = moved(right, left, round_key[1], columns)
        return left * jnp.uint32(columns) + right

    def outside(x: Array) -> jax.Array:
        return (x >= n).any()

    def again(x: Array) -> jax.Array:
        return jnp.where(x >= n, network(x), x)

    return jax.lax.while_loop(outside, again, network(jnp.asarray(places).astype(jnp.uint32))).astype(jnp.int32)


def uniform_at(key: Key, rows: Array, columns: Array) -> tuple[jax.Array, jax.Array]:
    """Returns two independent uniform numbers in (0, 1) for each pair of a row and a column.

    The numbers depend only on the key, the row and the column, not on the shape of the arrays. Use
    it for noise that is needed again at single positions, or in parts. It is Threefry-2x32 with 20
    rounds (Salmon et al. 2011, 10.1145/2063384.2063405), unrolled, so that XLA fuses it with the
    code that uses it.

    Args:
        key: typed key of any kind.
        rows: integers [...] below 2³² that broadcast with `columns`.
        columns: integers [...] below 2³².

    Returns:
        Two arrays [...] of the default float dtype, with 23 random bits.

    >>> whole, _ = uniform_at(jax.random.key(0), jnp.arange(3)[:, None], jnp.arange(4)[None])
    >>> one, _ = uniform_at(jax.random.key(0), jnp.array(2), jnp.array(3))
    >>> bool(whole[2, 3] == one)
    True
    """
    chex.assert_type([rows, columns], int)
    words = jnp.broadcast_arrays(jnp.asarray(rows).astype(jnp.uint32), jnp.asarray(columns).astype(jnp.uint32))
    return tuple(_open_unit(word) for word in _threefry(jax.random.bits(key, (2,), jnp.uint32), *words))


def _open_unit(bits: Array) -> jax.Array:
    """Maps random bits to (0, 1): the middles of 2²³ equal intervals."""
    dtype = jnp.result_type(float)
    return ((bits >> 9).astype(dtype) + jnp.asarray(0.5, dtype)) * jnp.asarray(2.0**-23, dtype)


def _threefry(key: Array, left: Array, right: Array) -> tuple[jax.Array, jax.Array]:
    """Encrypts the block (left, right), uint32 each, under `key` uint32 [2]."""
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
