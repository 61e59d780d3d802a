"""The splits that `benchmarks.studies.mars` compares methods on, and the sampled items that it judges them by."""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import numpy as np

import jaxrec as jr
from jaxrec.data import datasets, splits

DATA = ("ciao", "delicious", "ciao-random", "delicious-random", "lastfm-2k", "ml-1m-loo")
PUBLISHED, BY_ID = ("ciao", "delicious", "ml-1m-loo"), ("ciao", "delicious")  # of which held out by id


class Part(NamedTuple):
    """One seed's data, with the sampled items of each held-out pair, and the protocols that make sense for it."""

    train: jr.Interactions
    valid: jr.Interactions
    test: jr.Interactions
    valid_negatives: np.ndarray
    test_negatives: np.ndarray
    protocols: tuple[str, ...]


def protocols_of(data: str) -> tuple[str, ...]:
    """By which a set is judged."""
    return ("sampled",) if data in BY_ID else ("sampled", "full")


@lru_cache(maxsize=3)
def prepare(data: str, seed: int) -> Part:
    """The split of one seed; on published splits there is one."""
    found = datasets.load(data.removesuffix("-random"))
    order = partial(splits.random_order, key=jax.random.key(seed))
    if data == "ml-1m-loo":
        split = splits.leave_one_out(plain(found.train), order=order)
        users, _ = found.test.pairs()
        rows = np.searchsorted(users, split.test.pairs()[0])
        train, valid = split.train.union(split.valid), split.test
        return Part(train, valid, plain(found.test), found.negatives[rows], found.negatives, ("sampled", "full"))
    if data in PUBLISHED:
        parts = (plain(part) for part in (found.train, found.valid, found.test))
        return Part(*parts, found.negatives, found.negatives, ("sampled",))
    whole = found.interactions or plain(found.train).union(plain(found.valid), plain(found.test))
    split = splits.leave_one_out(plain(whole), order=order)
    users, _ = split.test.pairs()
    negatives = drawn(users, known=plain(whole), items=np.flatnonzero(split.train.item_degrees), seed=seed)
    return Part(*split, negatives, negatives, ("sampled", "full"))


def plain(interactions: jr.Interactions) -> jr.Interactions:
    """The pairs alone: stars and plays count once."""
    return dataclasses.replace(interactions, weights=None, timestamps=None)


def drawn(users: np.ndarray, *, known: jr.Interactions, items: np.ndarray, seed: int, n: int = 100) -> np.ndarray:
    """n different items [T, n] of `items` that each user has nowhere, validation and test included."""
    rng, rows = np.random.default_rng(seed), known.to_scipy().tocsr()
    own = np.split(rows.indices, rows.indptr[1:-1])
    return np.stack([rng.choice(np.setdiff1d(items, own[user]), n, replace=False) for user in users])
