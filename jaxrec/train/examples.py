"""Examples of an epoch: single positives, groups of positives, or users with all their items.

`fit(..., examples=...)` takes a function of the positives, such as `singles`, `partial(groups,
n=16)` or `by_user`. The function returns examples: an object with their number `n`, and a method
`batch(places, step)` that returns the `Batch` of the examples at these places. `streamed` is for
positives that do not fit the device; see `train.stream`.

A model that knows users by their items needs these in the batch. `by_user` always gives them. The
other functions give them with `histories=`, such as `fit(..., examples=partial(singles, histories=train))`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._numerics import as_ids, integer
from jaxrec._pairs import check_countable
from jaxrec.interactions import Interactions, check_interactions, check_positives
from jaxrec.typing import Array


class Batch(NamedTuple):
    """The examples of one step: B users, each with up to P of their positives.

    `model.apply(variables, batch.users, batch.items)` scores the positives of `singles` and of
    `groups`.

    Attributes:
        users: int32 [B, 1].
        items: int32 [B, P]; P is 1 for `singles`. Batches of `by_user` have no items.
        where: bool [B, P], True = use.
        weights: float32 [B, P] by which the loss is weighted, or None.
        step: int32 [], number of steps of the run before this one, for values that are annealed.
        histories: the items by which a model knows these users, `Interactions` [B, N]; None unless
            the examples have them.
    """

    users: Array
    items: Array
    where: Array
    weights: Array | None = None
    step: Array | int = 0
    histories: Interactions | None = None

    @classmethod
    def of(
        cls,
        users: Array,
        items: Array,
        *,
        weights: Array | None = None,
        where: Array | None = None,
        step: Array | int = 0,
    ) -> Batch:
        """Returns a batch for your own training loop.

        Args:
            users: integers [B].
            items: integers [B] or [B, P].
            weights: floats of the shape of `items` by which the loss is weighted; None weights all
                equally.
            where: bool of the shape of `items`, True = use; None uses all.
            step: number of steps made before this one.

        Ids are not checked, because they are unknown under `jit`: look-ups in JAX take the last row
        for an id beyond the table.

        Raises:
            ValueError: if there are not as many users as rows of items.

        >>> Batch.of(jnp.array([0, 4]), jnp.array([1, 2])).items.shape
        (2, 1)
        """
        items = jnp.asarray(items)
        if jnp.size(users) != items.shape[0]:
            raise ValueError(
                f"there are {jnp.size(users)} users, but {items.shape[0]} rows of items; give one for each"
            )
        shape = (items.shape[0], items.size // max(items.shape[0], 1))
        where = jnp.ones(shape, bool) if where is None else jnp.asarray(where).reshape(shape)
        weights = None if weights is None else jnp.asarray(weights).reshape(shape)
        return cls(jnp.asarray(users).reshape(-1, 1), items.reshape(shape), where, weights, step)

    def pairs(self) -> Pairs:
        """Returns the positives as a flat list of pairs."""
        users = jnp.broadcast_to(self.users, self.items.shape).reshape(-1)
        weights = None if self.weights is None else self.weights.reshape(-1)
        return Pairs(users, self.items.reshape(-1), self.where.reshape(-1), weights)


class UserBatch(Batch):
    """A batch of users [B, 1] with all their items, which only `histories` [B, N] has.

    Reading `items` is an error, so that no objective trains on a part of the items in silence.
    """

    __slots__ = ()

    @property
    def items(self) -> Array:
        """Raises `ValueError`."""
        raise ValueError(
            "a batch of by_user has no items, only histories; for an objective that compares items, such as "
            "pairwise_objective, call fit with examples=jaxrec.train.singles (or groups), and with "
            "partial(jaxrec.train.singles, histories=...) for a model that takes histories"
        )


class Pairs(NamedTuple):
    """Positives as a flat list of pairs.

    Attributes:
        users: int32 [B · P].
        items: int32 [B · P].
        where: bool [B · P], True = use.
        weights: float32 [B · P], or None.
    """

    users: Array
    items: Array
    where: Array
    weights: Array | None


class Examples(Protocol):
    """What `fit` needs of examples, which are a pytree and an argument of the compiled epoch."""

    @property
    def n(self) -> int:
        """R, the number of examples."""

    def batch(self, places: Array, step: Array | int = 0) -> Batch:
        """Returns the batch of the examples at `places` [B]; the place R marks padding."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["users", "first", "length", "items", "weights", "known", "real"],
    meta_fields=["width"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Users with up to P of their positives; see `singles` and `groups`.

    Attributes:
        users: int32 [R].
        first: int32 [R], index of the example's first positive; None if example r is pair r.
        length: int32 [R], number of the example's positives, at most P; None if `first` is None.
        items: int32 [nnz].
        weights: float32 [nnz], or None.
        known: the histories of all users, if batches carry histories.
        real: int32 [], number of examples before the padding; None if there is no padding.
        width: P, static.
    """

    users: Array
    first: Array | None
    length: Array | None
    items: Array
    weights: Array | None
    known: Histories | None = None
    real: Array | None = None
    width: int = 1

    @property
    def n(self) -> int:
        """R, the number of examples."""
        return self.users.shape[0]

    def batch(self, places: Array, step: Array | int = 0) -> Batch:
        """Returns the batch of the examples at `places` [B]; the place R marks padding."""
        places = as_ids(places)
        where = (places < (self.n if self.real is None else self.real))[:, None]
        chosen = jnp.minimum(places, self.n - 1)
        pairs = chosen[:, None]
        if self.first is not None and self.length is not None:
            within = jnp.arange(self.width, dtype=jnp.int32)[None]
            where = where & (within < self.length[chosen][:, None])
            pairs = jnp.where(where, self.first[chosen][:, None] + within, 0)
        weights = None if self.weights is None else self.weights[pairs]
        users, histories = self.users[chosen], None
        if self.known is not None:
            histories, weight = self.known.batch(jnp.where(places < self.n, users, -1))
            weights = jnp.broadcast_to(weight, where.shape) if weights is None else weights * weight
        return Batch(users[:, None], self.items[pairs], where, weights, step, histories)


def singles(train: Interactions, *, histories: Interactions | None = None) -> Groups:
    """Returns one example per positive.

    Args:
        train: the positives.
        histories: the items by which the model knows the users, `Interactions` [M, N] over the ids
            of `train`, such as `train` itself. Each batch then carries those of its B users.

    Raises:
        ValueError: if there are no pairs; weights are negative, not finite or all 0; or histories
            have another number of users or items.
    """
    check_positives(train=train)
    check_countable(train.n_pairs)
    users, items = train.pairs()
    return Groups(users, None, None, items, train.weights, _known(train, histories, users))


def groups(train: Interactions, *, n: int, histories: Interactions | None = None) -> Groups:
    """Returns users with up to n of their positives; users with more make several examples.

    Negatives are drawn and scored once for each example, and compared with all its positives.

    Args:
        train: the positives.
        n: P, the largest number of positives in an example.
        histories: see `singles`.

    Raises:
        ValueError: if `n` is not an integer of 1 or more, and as `singles`.
    """
    check_positives(train=train)
    check_countable(train.n_pairs)
    n = integer("n", n)
    indptr = np.asarray(train.indptr)
    parts = -(-np.diff(indptr) // n)
    owner = np.repeat(np.arange(train.n_users, dtype=np.int32), parts)
    part = np.arange(len(owner)) - np.repeat(np.cumsum(parts) - parts, parts)
    first = (indptr[owner] + part * n).astype(np.int32)
    length = np.minimum(indptr[owner + 1] - first, n).astype(np.int32)
    return Groups(owner, first, length, train.pairs()[1], train.weights, _known(train, histories, owner), width=n)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["users", "shortest", "known"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class Users:
    """Users with all their items; see `by_user`.

    Attributes:
        users: int32 [R].
        shortest: int32 [], index of the user with the fewest items, who fills up the last batch.
        known: the histories of all users.
    """

    users: Array
    shortest: Array
    known: Histories

    @property
    def n(self) -> int:
        """R, the number of examples."""
        return self.users.shape[0]

    def batch(self, places: Array, step: Array | int = 0) -> Batch:
        """Returns the batch of the examples at distinct `places` [B]; the place R marks padding."""
        places = as_ids(places)
        real = places < self.n
        users = self.users[jnp.where(real, places, self.shortest)]
        histories, weight = self.known.batch(users)
        users = users[:, None]
        return UserBatch(users, jnp.zeros_like(users), real[:, None], jnp.full(users.shape, weight), step, histories)


def by_user(train: Interactions) -> Users:
    """Returns each user that has items once, with all their items, for `autoencoders.objective`.

    Batches have histories and no items, so objectives that compare items refuse them. Weights of
    pairs are not used.

    Raises:
        ValueError: if there are no pairs, or weights are negative, not finite or all 0.
    """
    check_positives(train=train)
    check_countable(train.n_pairs)
    degrees = np.diff(np.asarray(train.indptr))
    users = np.flatnonzero(degrees).astype(np.int32)
    return Users(users, np.asarray(np.argmin(degrees[users]), np.int32), _histories(train, train, users))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["items"], meta_fields=["degrees"])
@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
    """The histories of all users, and their lengths among the examples.

    Attributes:
        items: `Interactions` [M, N], without weights.
        degrees: the lengths of histories that occur among the examples, and for each length how
            many examples have it; static.
    """

    items: Interactions
    degrees: tuple[tuple[int, ...], tuple[int, ...]]

    def batch(self, users: Array) -> tuple[Interactions, jax.Array]:
        """Returns the histories of the users [B] of a batch, and a weight float32 [] for the batch.

        The capacity of the histories is exceeded in at most one of 10¹² random batches. The weight, and
        with it the loss, is then NaN, so that items are never dropped silently; otherwise it is 1.
        User -1 has no items.
        """
        room = -(-_surpassed(*self.degrees, len(users), odds=1e-12) // 256) * 256
        degrees = jnp.where(users >= 0, self.items.indptr[users + 1] - self.items.indptr[users], 0)
        enough = degrees.sum(dtype=jnp.int32) <= room
        return self.items.take(users, capacity=room), jnp.where(enough, jnp.float32(1), jnp.nan)


def _known(train: Interactions, histories: Interactions | None, users: np.ndarray) -> Histories | None:
    """Returns the histories for batches of examples whose users are `users` [R]."""
    return None if histories is None else _histories(train, histories, users)


def _histories(train: Interactions, histories: Interactions, users: np.ndarray) -> Histories:
    """Checks the histories, and counts their lengths for users [R]."""
    check_interactions(histories=histories)
    sizes, others = ((part.n_users, part.n_items) for part in (train, histories))
    if sizes != others:
        raise ValueError(
            f"train is {sizes} users by items, but histories are {others}; give histories over the ids of train, such "
            "as train itself"
        )
    lengths, counts = np.unique(np.diff(np.asarray(histories.indptr))[users], return_counts=True)
    bare = dataclasses.replace(histories, weights=None, timestamps=None)
    return Histories(bare, (tuple(lengths.tolist()), tuple(counts.tolist())))


def _surpassed(lengths: tuple[int, ...], counts: tuple[int, ...], n: int, *, odds: float) -> int:
    """Returns a number of pairs that n random users exceed with probability at most `odds`.

    The users are drawn without replacement. This is Chernoff's bound, min over t of (n log mean
    exp(t d) − log odds) / t, which also holds without replacement (Hoeffding 1963,
    10.1080/01621459.1963.10500830).
    """
    values, shares = np.array(lengths), np.array(counts) / sum(counts)
    longest = int(values[-1])
    if longest == 0:
        return 0
    t = np.geomspace(1e-3, 1e3, 256) / longest
    # exp(t d) may overflow: subtract the longest history from d, and add it back afterwards.
    log_mean = np.log(np.exp(t[:, None] * (values - longest)) @ shares) + t * longest
    return min(math.ceil(((n * log_mean - math.log(odds)) / t).min()), n * longest)
