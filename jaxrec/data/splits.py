"""Splits interactions into train, valid and test.

Most splits hold out pairs. `who`, bool [M], selects the users whose pairs may be held out; the
pairs of the other users all stay in train. An order ranks the pairs of each user, and the last ones
are held out; `global_time` uses one time for all users instead. Every part keeps the ids of the
whole set.

    order = functools.partial(splits.random_order, key=jax.random.key(0))
    train, valid, test = splits.ratio(interactions, (0.8, 0.1, 0.1), order=order)

`held_out_users` holds out users instead of pairs (strong generalisation).
"""

from __future__ import annotations

import dataclasses
import datetime
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from jaxrec._keys import check_key, generator
from jaxrec._numerics import as_integer, integer, number
from jaxrec._pairs import offsets
from jaxrec._partials import check_function
from jaxrec.interactions import DataWarning, IdMap, Interactions, check_interactions
from jaxrec.typing import ArrayLike, Key


class Split(NamedTuple):
    """Three parts of one set, over the same ids; valid and test may be empty."""

    train: Interactions
    valid: Interactions
    test: Interactions


class HeldOut(NamedTuple):
    """A split that holds out users; all parts keep the ids of the whole set.

    Attributes:
        train: all pairs of the training users.
        valid_history: the pairs of the validation users that a model may see.
        valid: the pairs of the validation users that a model should find.
        test_history: the pairs of the test users that a model may see.
        test: the pairs of the test users that a model should find.
    """

    train: Interactions
    valid_history: Interactions
    valid: Interactions
    test_history: Interactions
    test: Interactions


Order = Callable[[Interactions], np.ndarray]
Pairs = TypeVar("Pairs", Interactions, Split)


# ---------------------------------------------------------------------- orders


def random_order(interactions: Interactions, *, key: Key) -> np.ndarray:
    """Returns ranks int64 [nnz] of the pairs in a random order."""
    return generator(key).permutation(interactions.n_pairs)


def temporal_order(interactions: Interactions, *, key: Key) -> np.ndarray:
    """Returns ranks int64 [nnz] of the pairs in order of time.

    Pairs with the same time are ordered at random, never by item id.

    Raises:
        ValueError: if there are no timestamps.
    """
    by_time = np.lexsort((generator(key).permutation(interactions.n_pairs), _timestamps(interactions)))
    ranks = np.empty(interactions.n_pairs, np.int64)
    ranks[by_time] = np.arange(interactions.n_pairs)
    return ranks


# ---------------------------------------------------------------------- splits


def given(interactions: Interactions, *, valid: ArrayLike, test: ArrayLike) -> Split:
    """Splits pairs by two masks; use it for your own splits.

    Args:
        interactions: the whole set.
        valid: bool [nnz], in the order of `interactions.pairs()`; True for the pairs of valid.
        test: bool [nnz]; True for the pairs of test. Pairs in neither mask are train.

    Raises:
        ValueError: if a mask has another shape or dtype, or if a pair is in both masks.
    """
    check_interactions(interactions=interactions)
    valid = _mask("valid", valid, interactions.n_pairs, "pairs")
    test = _mask("test", test, interactions.n_pairs, "pairs")
    if (valid & test).any():
        raise ValueError(f"valid and test share {(valid & test).sum()} pairs; give each pair to one of them")
    return Split(interactions.select(~(valid | test)), interactions.select(valid), interactions.select(test))


def ratio(
    interactions: Interactions,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    *,
    order: Order,
    who: ArrayLike | None = None,
) -> Split:
    """Holds out a share of each user's pairs: the last are test, those before them valid.

    A fraction f > 0 holds out max(1, ⌊n·f⌋) of n pairs; f = 0 holds out none. Train always keeps at
    least one pair, and test gets its pairs before valid. With the default fractions, 1 pair is
    split into 1/0/0 (train/valid/test), 2 into 1/0/1, 5 into 3/1/1, 19 into 17/1/1 and 20 into
    16/2/2. `in_turn` holds out ⌊n·f⌋ pairs without a minimum.

    Args:
        interactions: the whole set.
        fractions: fractions of train, valid and test, which sum to 1.
        order: a function that ranks the pairs, such as `random_order` or `temporal_order` with
            their key bound.
        who: bool [M], users whose pairs may be held out; None means all.

    Raises:
        ValueError: if a fraction is negative, the train fraction is 0, or the sum is not 1; if the
            order has ties within a user; or if `who` has another shape or dtype.

    >>> import functools
    >>> x = Interactions.from_pairs([0] * 10, range(10))
    >>> parts = ratio(x, order=functools.partial(random_order, key=jax.random.key(0)))
    >>> [part.n_pairs for part in parts]
    [8, 1, 1]
    """
    check_interactions(interactions=interactions)
    fractions = _fractions(fractions)
    if len(fractions) != 3 or fractions[0] <= 0 or not np.isclose(sum(fractions), 1):
        raise ValueError(f"fractions={fractions}; give three (train, valid, test), none negative, with sum 1")
    degrees = np.asarray(interactions.user_degrees)
    spare = np.maximum(degrees - 1, 0)
    n_test = np.minimum(_share(degrees, fractions[2]), spare)
    n_valid = np.minimum(_share(degrees, fractions[1]), spare - n_test)
    return _last(interactions, order, who, n_valid, n_test)


def in_turn(
    interactions: Interactions,
    *,
    test: float = 0.2,
    valid: float = 0.25,
    order: Order,
    who: ArrayLike | None = None,
) -> Split:
    """Holds out a share of each user's pairs for test, then a share of the rest for valid.

    This is the split of λOpt's code. Of n pairs, the last t = ⌊n·test⌋ are test and the ⌊(n −
    t)·valid⌋ before them are valid. With the default shares, 10 pairs are split into 6/2/2
    (train/valid/test), 7 into 5/1/1 and 4 into 3/1/0. Unlike with `ratio`, users with few pairs may
    have none in test.

    Args:
        interactions: the whole set.
        test: share of a user's pairs for test.
        valid: share for valid of the pairs that test leaves.
        order: a function that ranks the pairs, such as `temporal_order` with its key bound.
        who: bool [M], users whose pairs may be held out; None means all.

    Raises:
        ValueError: if a share is not in [0, 1), if the order has ties within a user, or if `who`
            has another shape or dtype.
    """
    check_interactions(interactions=interactions)
    test, valid = _fraction("test", test), _fraction("valid", valid)
    if max(test, valid) >= 1:
        raise ValueError(f"test={test}, valid={valid}; give shares of 0 or more, below 1")
    degrees = np.asarray(interactions.user_degrees)
    n_test = _floor(degrees * test)
    return _last(interactions, order, who, _floor((degrees - n_test) * valid), n_test)


def held_out_users(
    key: Key,
    interactions: Interactions,
    *,
    n_valid: int,
    n_test: int,
    share: float = 0.2,
    order: Order,
    min_pairs: int = 5,
) -> HeldOut:
    """Splits by users, for strong generalisation (Liang et al. 2018, arXiv 1802.05814).

    All pairs of a training user are train. The last `share` of a held-out user's pairs are those to
    be found; the others are the history that a model sees: `evaluate.full_ranking(model, variables,
    history, test, histories=history)`. Pairs of held-out users whose item has no training user are
    dropped; a `DataWarning` says how many.

    Args:
        key: a typed key, which selects the users.
        interactions: the whole set.
        n_valid: number of validation users.
        n_test: number of test users.
        share: the share of a held-out user's pairs to be found, rounded as in `ratio`.
        order: a function that ranks the pairs, such as `random_order` with its key bound.
        min_pairs: users with fewer pairs are always training users.

    Raises:
        ValueError: if `share` is not in (0, 1), if fewer than `n_valid` + `n_test` users have
            `min_pairs` pairs, if no training user is left, or if the order has ties within a user.

    >>> import functools
    >>> x = Interactions.from_pairs(np.repeat(range(9), 5), [*range(5)] * 9)
    >>> order = functools.partial(random_order, key=jax.random.key(0))
    >>> [part.n_pairs for part in held_out_users(jax.random.key(0), x, n_valid=1, n_test=2, order=order)]
    [30, 4, 1, 8, 2]
    """
    check_key(key)
    share = _fraction("share", share)
    if not 0 < share < 1:
        raise ValueError(f"share={share}; give a share between 0 and 1")
    valid_key, test_key = jax.random.split(key)
    in_test = sample_users(test_key, interactions, n=n_test, min_pairs=min_pairs)
    in_valid = sample_users(valid_key, keep_users(interactions, ~in_test), n=n_valid, min_pairs=min_pairs)
    train = keep_users(interactions, ~(in_test | in_valid))
    if train.n_pairs == 0:
        raise ValueError(f"n_valid={n_valid}, n_test={n_test} leave no user to train; hold out fewer")
    others = keep_users(interactions, in_test | in_valid)
    known = others.select(train.item_degrees[others.indices] > 0)
    if known.n_pairs < others.n_pairs:
        dropped = f"dropped {others.n_pairs - known.n_pairs} of {others.n_pairs} pairs of held-out users"
        warnings.warn(f"{dropped}: their items have no training pair", DataWarning, stacklevel=2)
    history, _, found = ratio(known, (1 - share, 0.0, share), order=order)
    parts = [keep_users(part, who) for who in (in_valid, in_test) for part in (history, found)]
    return HeldOut(train, *parts)


def leave_one_out(interactions: Interactions, *, order: Order, who: ArrayLike | None = None) -> Split:
    """Holds out two pairs of each user: the last is test, the one before it valid (He et al. 2017).

    Users with fewer than 3 pairs keep all of them in train.

    Args:
        interactions: the whole set.
        order: a function that ranks the pairs, such as `random_order` or `temporal_order` with
            their key bound.
        who: bool [M], users whose pairs may be held out; None means all.

    Raises:
        ValueError: if the order has ties within a user, or if `who` has another shape or dtype.
    """
    check_interactions(interactions=interactions)
    one = (np.asarray(interactions.user_degrees) >= 3).astype(np.int64)
    return _last(interactions, order, who, one, one)


def global_time(
    interactions: Interactions,
    *,
    valid_from: float | str | datetime.date | np.datetime64,
    test_from: float | str | datetime.date | np.datetime64,
    who: ArrayLike | None = None,
) -> Split:
    """Splits all users at the same two times.

    No training pair is later than a held-out pair, except the pairs of users that `who` excludes.
    All pairs of a user or item may be held out; see `drop_cold`.

    Args:
        interactions: the whole set, with timestamps.
        valid_from: pairs at this time or later, and before `test_from`, are valid. Give a number,
            or a date in UTC such as "2020-01-31" if the timestamps are seconds since 1970.
        test_from: pairs at this time or later are test. `time_quantiles` computes both times.
        who: bool [M], users whose pairs may be held out; None means all.

    Raises:
        ValueError: if there are no timestamps, if the times leave train or test empty or are in the
            wrong order, or if `who` has another shape or dtype.
    """
    times = _timestamps(interactions)
    if len(times) == 0:
        raise ValueError(f"{interactions} has no pairs to split")
    valid_from, test_from = _seconds("valid_from", valid_from), _seconds("test_from", test_from)
    if valid_from > test_from:
        raise ValueError(f"valid_from={valid_from} comes after test_from={test_from}; swap them")
    if valid_from <= times.min() or test_from > times.max():
        raise ValueError(
            f"valid_from={valid_from}, test_from={test_from} leave train or test empty; timestamps run from "
            f"{times.min()} to {times.max()}: see time_quantiles"
        )
    may = _may_lose(interactions, who)
    return given(interactions, valid=may & (times >= valid_from) & (times < test_from), test=may & (times >= test_from))


def time_quantiles(interactions: Interactions, fractions: Sequence[float]) -> tuple[int, ...]:
    """Returns for each fraction the time before which that share of all pairs lies.

    If pairs share that time, slightly fewer pairs lie before it.

    Raises:
        ValueError: if there are no timestamps, or if a fraction is outside 0 .. 1.

    >>> x = Interactions.from_pairs([0] * 10, range(10), timestamps=range(100, 110))
    >>> time_quantiles(x, (0.8, 0.9))
    (108, 109)
    """
    times, fractions = np.sort(_timestamps(interactions)), _fractions(fractions)
    if max(fractions, default=0) > 1:
        raise ValueError(f"fractions={fractions}; give fractions between 0 and 1")
    if len(times) == 0:
        raise ValueError(f"{interactions} has no pairs, so it has no times; give at least one pair")
    places = np.minimum(_floor(len(times) * np.asarray(fractions)), len(times) - 1)
    return tuple(times[places].tolist())


# ---------------------------------------------------------------------- choices of users and items


def sample_users(key: Key, interactions: Interactions, *, n: int, min_pairs: int = 1) -> np.ndarray:
    """Draws n users with at least `min_pairs` pairs.

    Args:
        key: a typed key.
        interactions: the whole set.
        n: number of users to draw.
        min_pairs: number of pairs that a user must have.

    Returns:
        bool [M], True for the drawn users, such as for `who`.

    Raises:
        ValueError: if there are fewer than n such users.
    """
    check_interactions(interactions=interactions)
    check_key(key)
    n, min_pairs = integer("n", n, least=0), integer("min_pairs", min_pairs, least=0)
    known = np.flatnonzero(np.asarray(interactions.user_degrees) >= min_pairs)
    if n > len(known):
        raise ValueError(f"n={n}, but only {len(known)} users have {min_pairs} or more pairs; draw fewer")
    chosen = np.zeros(interactions.n_users, bool)
    chosen[generator(key).choice(known, n, replace=False)] = True
    return chosen


def keep_users(interactions: Interactions, who: ArrayLike) -> Interactions:
    """Returns the pairs of the users where `who` (bool [M]) is True, over the same ids."""
    check_interactions(interactions=interactions)
    return interactions.select(_may_lose(interactions, who))


def k_core(interactions: Interactions, *, users: int = 5, items: int = 5) -> Interactions:
    """Returns the largest subset in which every user and every item has enough pairs.

    Pairs of users with fewer than `users` pairs and of items with fewer than `items` pairs are
    removed repeatedly until there are none. The ids stay the same, so users and items may be left
    without pairs; see `compact`.

    Args:
        interactions: the whole set.
        users: number of pairs that every remaining user has at least.
        items: number of pairs that every remaining item has at least.

    Raises:
        ValueError: if no pair is left.
    """
    check_interactions(interactions=interactions)
    users, items = integer("users", users, least=0), integer("items", items, least=0)
    rows, columns = interactions.pairs()
    keep, before = np.ones(len(rows), bool), -1
    while keep.sum() != before:
        before = keep.sum()
        keep &= np.bincount(rows[keep], minlength=interactions.n_users)[rows] >= users
        keep &= np.bincount(columns[keep], minlength=interactions.n_items)[columns] >= items
    if not keep.any():
        raise ValueError(f"users={users}, items={items} leave nothing of {interactions}; lower them")
    return interactions.select(keep)


def drop_cold(split: Split) -> Split:
    """Drops the pairs of valid and test whose user or item has no training pair.

    A `DataWarning` says how many pairs were dropped.
    """
    known_users, known_items = np.asarray(split.train.user_degrees) > 0, split.train.item_degrees > 0
    kept = []
    for part in (split.valid, split.test):
        users, items = part.pairs()
        kept.append(part.select(known_users[users] & known_items[items]))
    if kept[0].n_pairs < split.valid.n_pairs or kept[1].n_pairs < split.test.n_pairs:
        counts = " and ".join(
            f"{before.n_pairs - after.n_pairs} of {before.n_pairs} {name} pairs"
            for name, before, after in zip(("valid", "test"), split[1:], kept)
        )
        warnings.warn(f"dropped {counts}: their user or item has no training pair", DataWarning, stacklevel=2)
    return Split(split.train, *kept)


def compact(data: Pairs, id_map: IdMap) -> tuple[Pairs, IdMap]:
    """Removes ids without pairs and renumbers the others in the same order.

    In a `Split`, an id is kept if it has a pair in any part. Reorder an array of one entry for each
    item by `array[id_map.item_ids(new_map.items)]`.

    Args:
        data: `Interactions` or a `Split`.
        id_map: the map of its labels.

    Returns:
        The renumbered data, and its map.

    Raises:
        ValueError: if `id_map` has other numbers of users or items.

    >>> x, id_map = Interactions.from_labels(["ann", "bob"], [10, 7])
    >>> compact(x.select([False, True]), id_map)
    (Interactions(1 users x 1 items, 1 pairs, density 100.0000%), IdMap(1 users, 1 items))
    """
    parts = (data,) if isinstance(data, Interactions) else data
    for part in parts:
        if (len(id_map.users), len(id_map.items)) != (part.n_users, part.n_items):
            raise ValueError(f"{id_map} does not belong to {part}; give the map that came with it")
    users = np.flatnonzero(sum(np.asarray(part.user_degrees) for part in parts))
    items = np.flatnonzero(sum(part.item_degrees for part in parts))
    dense = [_renumbered(part, users, items) for part in parts]
    kept = IdMap(id_map.users[users], id_map.items[items])
    return (dense[0] if isinstance(data, Interactions) else Split(*dense)), kept


# ---------------------------------------------------------------------- private helpers


def _fraction(name: str, value: float) -> float:
    """Returns a number of 0 or more as a Python float.

    A float32 becomes the float that prints the same, so that 0.29 of 100 pairs is 29 in float32
    too.
    """
    number(name, value, least=0)
    return float(str(value)) if hasattr(value, "dtype") else float(value)


def _fractions(values: Sequence[float]) -> tuple[float, ...]:
    """Checks every fraction."""
    return tuple(_fraction(f"fractions[{at}]", value) for at, value in enumerate(values))


def _seconds(name: str, time: float | str | datetime.date | np.datetime64) -> float:
    """Returns a point in time in the unit of the timestamps; dates are UTC."""
    if isinstance(time, datetime.datetime) and time.tzinfo:
        return time.timestamp()
    if isinstance(time, str | datetime.date | np.datetime64):
        moment: Any = time  # NumPy's types have no union of these
        seconds = np.datetime64(moment, "s")
        if np.isnat(seconds):
            raise ValueError(f"{name}={time}; give a time, not a missing value")
        return int(seconds.astype(np.int64))
    whole = as_integer(time)
    return float(number(name, time)) if whole is None else whole


def _floor(values: np.ndarray) -> np.ndarray:
    """Rounds down, forgiving rounding errors: 100 · 0.29 is 28.999999999999996 but gives 29."""
    return np.floor(values + 1e-9).astype(np.int64)


def _share(degrees: np.ndarray, fraction: float) -> np.ndarray:
    """Returns how many of each user's pairs a fraction takes, at least 1 if it is positive."""
    return np.maximum(_floor(degrees * fraction), 1) if fraction > 0 else np.zeros_like(degrees)


def _timestamps(interactions: Interactions) -> np.ndarray:
    """Returns the timestamps; raises `ValueError` if there are none."""
    check_interactions(interactions=interactions)
    if interactions.timestamps is None:
        raise ValueError(f"{interactions} has no timestamps; give them to from_pairs, or split by random_order")
    return np.asarray(interactions.timestamps)


def _may_lose(interactions: Interactions, who: ArrayLike | None) -> np.ndarray:
    """Returns bool [nnz], True for the pairs of users in `who`."""
    if who is None:
        return np.ones(interactions.n_pairs, bool)
    return _mask("who", who, interactions.n_users, "users")[interactions.pairs()[0]]


def _mask(name: str, values: ArrayLike, size: int, what: str) -> np.ndarray:
    """Returns `values` as a checked bool array [size]."""
    mask = np.asarray(values)
    if mask.shape != (size,) or mask.dtype != bool:
        raise ValueError(f"{name} is {mask.dtype}{list(mask.shape)}; give one bool for each of {size} {what}")
    return mask


def _last(interactions: Interactions, order: Order, who: ArrayLike | None, n_valid, n_test) -> Split:
    """Holds out the last `n_test` [M] pairs of each user and the `n_valid` [M] before them."""
    users, _ = interactions.pairs()
    check_function("order", order, "functools.partial(splits.temporal_order, key=...)")
    ranks = np.asarray(order(interactions))
    if ranks.dtype.kind == "f" and np.isnan(ranks).any():
        raise ValueError(f"order gives NaN for {np.isnan(ranks).sum()} pairs; it must give each pair a rank")
    if ranks.shape != users.shape:
        raise ValueError(f"order gives shape {list(ranks.shape)}; it must give one rank for each of {len(users)} pairs")
    by_rank = np.lexsort((ranks, users))
    if ((ranks[by_rank][1:] == ranks[by_rank][:-1]) & (users[1:] == users[:-1])).any():
        raise ValueError("order gives equal ranks within a user; break ties at random, as temporal_order does")
    to_end = np.empty(len(users), np.int64)  # 1 for the last pair of a user, 2 for the one before it
    to_end[by_rank] = np.asarray(interactions.indptr)[1:][users] - np.arange(len(users))
    may = _may_lose(interactions, who)
    test = may & (to_end <= n_test[users])
    return given(interactions, valid=may & ~test & (to_end <= (n_valid + n_test)[users]), test=test)


def _renumbered(part: Interactions, users: np.ndarray, items: np.ndarray) -> Interactions:
    """Returns the same pairs over the sorted ids `users` and `items`, which include all with pairs."""
    return dataclasses.replace(
        part,
        indptr=offsets(np.append(np.asarray(part.indptr)[users], part.n_pairs)),
        indices=np.searchsorted(items, np.asarray(part.indices)).astype(np.int32),
        n_users=len(users),
        n_items=len(items),
    )
