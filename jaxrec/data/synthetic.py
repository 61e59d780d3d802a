"""Generates small synthetic sets with a known structure, to test models, losses and metrics on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxrec._ids import INT32_MAX
from jaxrec._keys import generator
from jaxrec._numerics import integer, number
from jaxrec.interactions import Interactions
from jaxrec.typing import Key

_CELLS = 1 << 22  # scores [users, items] held at a time
_PART = 1 << 23  # pairs drawn at a time if the set is built in a folder


class LowRank(NamedTuple):
    """The factors from which `low_rank` draws.

    Up to a constant for each user, the log-odds of the items are `user_factors @ item_factors.T`.

    Attributes:
        user_factors: float32 [M, D].
        item_factors: float32 [N, D].
    """

    user_factors: np.ndarray
    item_factors: np.ndarray


class Facets(NamedTuple):
    """The facets from which `facets` draws.

    Attributes:
        item_facets: int32 [N], the facet of each item, 0 .. K-1.
        user_mixtures: float32 [M, K], the share of each facet in a user's preferences; rows sum to
            1.
    """

    item_facets: np.ndarray
    user_mixtures: np.ndarray


class FacetSpaces(NamedTuple):
    """The vectors from which `facet_spaces` draws; all vectors have length 1.

    Attributes:
        user_mixtures: float32 [M, K], the weight of each facet for a user; rows sum to 1.
        users: float32 [M, K, D], the vector of each user in each facet.
        items: float32 [N, K, D], the vector of each item in each facet.
    """

    user_mixtures: np.ndarray
    users: np.ndarray
    items: np.ndarray


def checkerboard(n: int, *, hold_out: bool = True) -> tuple[Interactions, Interactions]:
    """Builds a checkerboard: user u interacts with item i if u + i is even.

    The test suite of the library `implicit` uses it.

    The diagonal is the test set: a good model recommends item u to user u, because it is the only
    item of u's colour that u has not seen. Popularity does not help: all items of a colour have the
    same number of training users.

    Args:
        n: number of users and of items, 4 or more.
        hold_out: whether the diagonal is left out of train. If False, it is in train and test.

    Returns:
        train and test, [n, n] each.

    Raises:
        ValueError: for n below 4, which would leave some user without training pairs.

    >>> train, test = checkerboard(4)
    >>> train.to_scipy().toarray().astype(int).tolist()
    [[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
    """
    n = integer("n", n, least=4)
    users, items = np.nonzero(np.add.outer(np.arange(n), np.arange(n)) % 2 == 0)
    whole = Interactions.from_pairs(users, items, n_users=n, n_items=n)
    diagonal = users == items
    return (whole.select(~diagonal) if hold_out else whole), whole.select(diagonal)


def low_rank(
    key: Key, *, n_users: int, n_items: int, dim: int, pairs_per_user: int, sharpness: float = 3.0
) -> tuple[Interactions, LowRank]:
    """Draws interactions from low-rank preferences.

    Each user draws items without replacement. The log-odds of an item are a dot product of D
    factors. The factors are normal, scaled so that the log-odds have standard deviation
    `sharpness`.

    Args:
        key: typed key; the same key gives the same set.
        n_users: number of users M.
        n_items: number of items N.
        dim: number of factors D.
        pairs_per_user: number of items of each user, 1 .. N.
        sharpness: standard deviation of the log-odds; 0 makes all items equally likely.

    Returns:
        The interactions, and the factors.

    Raises:
        ValueError: for sizes that are not positive, for more pairs than items, and for a negative
            sharpness.
    """
    n_users, n_items, pairs_per_user = _sizes(n_users, n_items, pairs_per_user)
    dim = integer("dim", dim)
    rng = generator(key)
    scale = np.sqrt(float(number("sharpness", sharpness, least=0)) / np.sqrt(dim))
    users = (scale * rng.standard_normal((n_users, dim))).astype(np.float32)
    items = (scale * rng.standard_normal((n_items, dim))).astype(np.float32)
    return _draw(rng, lambda block: users[block] @ items.T, n_users, n_items, pairs_per_user), LowRank(users, items)


def facets(
    key: Key,
    *,
    n_users: int,
    n_items: int,
    n_facets: int,
    pairs_per_user: int,
    concentration: float = 0.3,
    noise: float = 0.05,
) -> tuple[Interactions, Facets]:
    """Draws interactions from user mixtures of facets; each item belongs to one facet.

    The mixtures are Dirichlet(`concentration`). A user draws items without replacement: the
    probability of an item is the user's share of its facet, divided evenly among the items of the
    facet.

    Args:
        key: typed key; the same key gives the same set.
        n_users: number of users M.
        n_items: number of items N, at least K. The sizes of the facets differ by at most one item.
        n_facets: number of facets K.
        pairs_per_user: number of items of each user, 1 .. N.
        concentration: positive parameter of the Dirichlet distribution; small values give each user
            few facets.
        noise: the share of draws that are uniform over all items, from 0 to 1.

    Returns:
        The interactions, and the facets.

    Raises:
        ValueError: for numbers outside these ranges.
    """
    n_users, n_items, pairs_per_user = _sizes(n_users, n_items, pairs_per_user)
    n_facets = integer("n_facets", n_facets, most=n_items)
    concentration = float(number("concentration", concentration, above=0))
    noise = float(number("noise", noise, least=0))
    if noise > 1:
        raise ValueError(f"noise={noise}; it is a share of the draws: give a number from 0 to 1")
    rng = generator(key)
    of_item = rng.permutation(np.arange(n_items, dtype=np.int32) % n_facets)
    mixtures = rng.dirichlet(np.full(n_facets, concentration), n_users).astype(np.float32)
    sizes = np.bincount(of_item, minlength=n_facets)

    def log_odds(block):
        """Log-probabilities of the items for a block of users, up to a constant."""
        by_facet = (1 - noise) * mixtures[block] / sizes + noise / n_items
        # A share may underflow to 0.
        return np.log(np.maximum(by_facet, np.finfo(np.float32).tiny))[:, of_item]

    return _draw(rng, log_odds, n_users, n_items, pairs_per_user), Facets(of_item, mixtures)


def facet_spaces(
    key: Key,
    *,
    n_users: int,
    n_items: int,
    n_facets: int,
    dim: int,
    pairs_per_user: int,
    concentration: float = 0.1,
    sharpness: float = 8.0,
) -> tuple[Interactions, FacetSpaces]:
    """Draws interactions from facets in which users and items are points on spheres.

    Each item is a point on K spheres, for example one for its genre and one for its cast. Each user
    weighs the facets by a mixture, drawn from Dirichlet(`concentration`). Points are uniform on the
    spheres. A user draws items without replacement, with log-odds sharpness · Σ_k mixture_uk
    cos(user_u^k, item_i^k), which is the score of `models.MARS`. This is also a dot product of K·D
    factors, as in `low_rank`, but each user needs only few of them.

    Args:
        key: typed key; the same key gives the same set.
        n_users: number of users M.
        n_items: number of items N.
        n_facets: number of facets K.
        dim: dimension D of each facet.
        pairs_per_user: number of items of each user, 1 .. N.
        concentration: positive parameter of the Dirichlet distribution; small values give each user
            few facets.
        sharpness: scale of the log-odds; 0 makes all items equally likely.

    Returns:
        The interactions, and the vectors.

    Raises:
        ValueError: for numbers outside these ranges.
    """
    n_users, n_items, pairs_per_user = _sizes(n_users, n_items, pairs_per_user)
    n_facets, dim = integer("n_facets", n_facets), integer("dim", dim)
    concentration = float(number("concentration", concentration, above=0))
    sharpness = float(number("sharpness", sharpness, least=0))
    rng = generator(key)
    mixtures = rng.dirichlet(np.full(n_facets, concentration), n_users).astype(np.float32)
    points = [rng.standard_normal((n, n_facets, dim)).astype(np.float32) for n in (n_users, n_items)]
    users, items = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in points)
    tastes = (sharpness * mixtures[..., None] * users).reshape(n_users, -1)
    flat = items.reshape(n_items, -1)
    drawn = _draw(rng, lambda block: tastes[block] @ flat.T, n_users, n_items, pairs_per_user)
    return drawn, FacetSpaces(mixtures, users, items)


def power_law(
    key: Key,
    *,
    n_users: int,
    n_items: int,
    n_pairs: int,
    exponents: tuple[float, float] = (0.5, 0.8),
    folder: str | os.PathLike | None = None,
) -> Interactions:
    """Draws a sparse set with power-law degrees, of any size, to measure time and memory.

    The user of a pair is drawn in proportion to rank^-exponents[0] and its item in proportion to
    rank^-exponents[1], independently. Repeated pairs are drawn again. Ranks are assigned to ids at
    random. It takes some tens of bytes of memory for each pair; with `folder`, for each pair of a
    part.

    Args:
        key: typed key; the same key gives the same set.
        n_users: number of users M.
        n_items: number of items N.
        n_pairs: number of distinct pairs, at most a quarter of M·N.
        exponents: exponents of users and of items, from 0 (uniform) to below 2.
        folder: path of a new folder, in which the set is built in parts of about 2²³ pairs; the
            result is opened from there. This is another set than the one that the same key gives in
            memory, unless one part is enough.

    Raises:
        ValueError: for sizes that are not positive, for too many pairs, for exponents outside the
            range, and if the folder exists and is not empty.
    """
    n_users, n_items = integer("n_users", n_users, most=INT32_MAX), integer("n_items", n_items, most=INT32_MAX)
    n_pairs = integer("n_pairs", n_pairs)
    if n_pairs > n_users * n_items / 4:
        raise ValueError(f"n_pairs={n_pairs} is more than a quarter of {n_users} x {n_items}; give fewer")
    powers = tuple(float(number("exponents", exponent, least=0)) for exponent in exponents)
    if len(powers) != 2 or max(powers) >= 2:
        raise ValueError(f"exponents={powers}; give two numbers of 0 or more, below 2")
    rng = generator(key)
    sides = []
    for size, exponent in zip((n_users, n_items), powers):
        shares = np.arange(1, size + 1) ** -exponent
        sides.append((rng.permutation(size), np.cumsum(shares) / shares.sum()))
    (ids, shares), items = sides

    def part(first: int, end: int, n: int) -> Interactions:
        """Returns n pairs of the users with the ranks first .. end-1."""
        before, last = (shares[first - 1] if first else 0.0), (shares[end - 1] if end < n_users else 1.0)
        users = ids[first:end], shares[first:end] - before, last - before
        pairs = _distinct_pairs(rng, users, (*items, 1.0), n)
        return Interactions.from_pairs(*np.divmod(pairs, n_items), n_users=n_users, n_items=n_items)

    if folder is None:
        return part(0, n_users, n_pairs)
    n_parts = -(-n_pairs // _PART)
    ends = np.unique(np.append(np.searchsorted(shares, np.arange(1, n_parts) / n_parts) + 1, n_users))
    totals = np.append(np.round(n_pairs * shares[ends[:-1] - 1]), n_pairs).astype(np.int64)
    bounds = np.stack([np.append(0, ends[:-1]), ends, np.diff(totals, prepend=0)], axis=1)
    for first, end, n in bounds.tolist():
        if n > (end - first) * n_items / 4:
            raise ValueError(
                f"exponents={exponents} give {n} pairs to the users of the ranks {first} to {end - 1}, more than a "
                f"quarter of {end - first} x {n_items}; give a smaller exponent of users, or fewer pairs"
            )
    return Interactions.from_parts((part(*each) for each in bounds.tolist()), folder)


def _distinct_pairs(rng: np.random.Generator, users: tuple, items: tuple, n: int) -> np.ndarray:
    """Draws n distinct pairs, as numbers user · N + item.

    `users` and `items` are ids, the sums of shares up to each id, and the sum of all.
    """
    pairs = np.zeros(0, np.int64)
    while len(pairs) < n:
        wanted, drawn = int(1.2 * (n - len(pairs))) + 16, []
        for ids, shares, total in (users, items):
            drawn.append(ids[np.searchsorted(shares[:-1], total * rng.random(wanted), side="right")])
        pairs = np.sort(np.append(pairs, drawn[0] * len(items[0]) + drawn[1]))
        pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])]  # much faster than np.unique
    # The pairs are sorted, so the surplus must be dropped at random.
    return rng.choice(pairs, n, replace=False, shuffle=False)


def _sizes(n_users: int, n_items: int, pairs_per_user: int) -> tuple[int, int, int]:
    """Returns the checked sizes as Python ints."""
    n_users, n_items = integer("n_users", n_users, most=INT32_MAX), integer("n_items", n_items, most=INT32_MAX)
    if integer("pairs_per_user", pairs_per_user) > n_items:
        raise ValueError(f"pairs_per_user={pairs_per_user} is more than n_items={n_items}; give fewer")
    return n_users, n_items, integer("pairs_per_user", pairs_per_user)


def _draw(
    rng: np.random.Generator, log_odds: Callable[[slice], np.ndarray], n_users: int, n_items: int, pairs_per_user: int
) -> Interactions:
    """Draws items of each user without replacement by the Gumbel top-k trick, in blocks of users."""
    rows = []
    step = max(_CELLS // n_items, 1)
    for start in range(0, n_users, step):
        scores = log_odds(slice(start, min(start + step, n_users)))
        scores = scores + rng.gumbel(size=scores.shape)
        rows.append(np.argpartition(-scores, pairs_per_user - 1, axis=1)[:, :pairs_per_user])
    users = np.repeat(np.arange(n_users, dtype=np.int64), pairs_per_user)
    return Interactions.from_pairs(users, np.concatenate(rows).ravel(), n_users=n_users, n_items=n_items)
