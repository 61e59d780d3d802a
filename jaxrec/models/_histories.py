"""Models that know users by their histories; those of a batch are one list of pairs, none padded to the longest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import sampling
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.models.mf import check_attributes, checked_ids
from jaxrec.typing import Array, ArrayLike, Key, Variables


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The items of B users.

    Attributes:
        rows: int32 [C], places in the batch, ascending; B where padded.
        items: int32 [C].
        users: int32 [B], on which noise depends.
        key: of the noise; None for none.
    """

    rows: Array
    items: Array
    users: Array
    key: Key | None = None

    @property
    def real(self) -> Array:
        """bool [C, 1], False for padding."""
        return (self.rows < len(self.users))[:, None]

    def sums(self, values: Array) -> Array:
        """Sums [B, ...] over users of values [C, ...]."""
        return jax.ops.segment_sum(values, self.rows, len(self.users), indices_are_sorted=True)

    def weighted(self, weights: Array, vectors: Array) -> Array:
        """Σ w_k v [B, K, D] over users of weights [C, K] and vectors [C, D]; never [C, K, D]."""
        return jnp.stack([self.sums(w[:, None] * vectors) for w in weights.T], axis=1)

    def normalised(self, values: Array) -> Array:
        """Values [C, K] over the root of the sum of their squares over the user's pairs; 0 for padding."""
        values = jnp.where(self.real, values, 0)
        squares = self.sums(values**2)
        there = squares > 0
        return values * spread(jnp.where(there, jax.lax.rsqrt(jnp.where(there, squares, 1)), 0), self.rows)

    def dropped(self, values: Array, rate: float, *, draw: int) -> Array:
        """Values [C, K] with a share set to 0 and the others divided by 1 − rate; `draw` tells draws apart."""
        if self.key is None or rate == 0:
            return values
        k = values.shape[-1]
        halves = -(-k // 2)
        users = spread(self.users, self.rows).astype(jnp.int32)
        lanes = users[:, None] * halves + jnp.arange(halves, dtype=jnp.int32)[None]
        drawn = sampling.uniform_at(jax.random.fold_in(self.key, draw), lanes, self.items[:, None])
        kept = jnp.concatenate(drawn, axis=-1)[:, :k] >= rate
        return jnp.where(kept, values / (1 - rate), 0)

    def normal(self, shape: tuple[int, ...], *, draw: int) -> Array:
        """Standard normal numbers [B, *shape], each user's its own."""
        key = jax.random.fold_in(self.key, draw)
        return jax.vmap(lambda user: jax.random.normal(jax.random.fold_in(key, user), shape))(self.users)


def spread(x: Array, rows: Array) -> Array:
    """The rows [C, ...] of x [B, ...]; of x [1, ...] the same for all."""
    return x.at[jnp.zeros_like(rows) if len(x) == 1 else rows].get(mode="clip")


def on_histories(
    fn: Callable[[Pairs, Array], Any],
    known: Interactions,
    degrees: np.ndarray,
    users: Array,
    *,
    key: Key | None,
    at_random: bool = False,
) -> Any:
    """`fn(pairs, degrees [B])` of the users' histories.

    The list has room for what these users have. Under `jit`, where that is not known, two lengths are compiled: what B
    users with items surpass once in 10¹² random draws, and B of the longest histories. Where users do come at random
    the first is enough, and all is NaN if it is not.

    Args:
        fn: gives arrays of floats.
        known: the histories.
        degrees: int [M], those of `known`, on the host.
        users: int32 [B].
        key: of the noise.
        at_random: whether the users are drawn without replacement, from all or from those with items.
    """

    def found(capacity: int) -> Any:
        rows, items, own = known.flat_rows(users, capacity=-(-capacity // 256) * 256)
        return fn(Pairs(rows, items, users, key), own)

    n, longest = len(users), max(int(degrees.max(initial=0)), 1)
    if not isinstance(users, jax.core.Tracer):
        return found(max(int(degrees[np.asarray(users)].sum(dtype=np.int64)), 1))
    drawn = degrees[degrees > 0] if degrees.any() else degrees  # training draws from those who have items
    usual, most = surpassed(drawn, n, odds=1e-12), n * longest
    if most <= 2 * usual:
        return found(most)
    enough = (known.indptr[users + 1] - known.indptr[users]).sum() <= usual
    if at_random:
        return jax.tree.map(lambda x: jnp.where(enough, x, jnp.nan), found(usual))
    return jax.lax.cond(enough, lambda: found(usual), lambda: found(most))


def surpassed(degrees: np.ndarray, n: int, *, odds: float) -> int:
    """What n of these degrees, drawn at random without replacement, sum to more than with at most these odds.

    Chernoff's bound, min over t of (n log mean exp(t d) − log odds) / t, which holds without replacement too (Hoeffding
    1963, 10.1080/01621459.1963.10500830).
    """
    values, counts = np.unique(degrees, return_counts=True)
    longest = max(int(values[-1]), 1)
    t = np.geomspace(1e-3, 1e3, 256) / longest
    log_mean = np.log(np.exp(t[:, None] * (values - longest)) @ (counts / counts.sum())) + t * longest
    return min(math.ceil(((n * log_mean - math.log(odds)) / t).min()), n * longest)


def checked_items(items: ArrayLike, where: ArrayLike | None, n_items: int) -> tuple[jax.Array, jax.Array]:
    """Padded histories [B, L] of users never seen, as int32 and bool, with L of at least 1.

    Raises:
        ValueError: for ids that are not integers [B, L], rows of different lengths, a `where` that is not bool [B, L],
            and, where they are known, real ids outside 0 .. N - 1.
    """
    items = _block("items", items)
    where = jnp.ones(items.shape, bool) if where is None else _block("where", where)
    if items.size == 0:  # such as [[]], a list without a type
        items, where = items.astype(np.int32), where.astype(bool)
    if not jnp.issubdtype(items.dtype, jnp.integer):
        raise ValueError(f"items are {items.dtype}; give ids, integers [B, L]")
    if where.dtype != bool or where.shape != items.shape:
        raise ValueError(
            f"where is {where.dtype}{list(where.shape)} and items are {list(items.shape)}; give a bool for each of "
            "them, True for real ids"
        )
    if not any(isinstance(x, jax.core.Tracer) for x in (items, where)):
        ids = np.asarray(items)[np.asarray(where)]
        if ids.size and not 0 <= ids.min() <= ids.max() < n_items:
            raise ValueError(f"items run from {ids.min()} to {ids.max()}; ids are 0 .. {n_items - 1}")
    if items.shape[1] == 0:
        items, where = np.zeros((len(items), 1), np.int32), np.zeros((len(items), 1), bool)
    return jnp.asarray(items).astype(jnp.int32), jnp.asarray(where)


def _block(name: str, x: ArrayLike) -> Array:
    """An array [B, L], on the host if it is not JAX's: so that large ids are seen before they are made int32."""
    try:
        x = x if isinstance(x, jax.Array) else np.asarray(x)
    except jax.errors.TracerArrayConversionError:  # a list of traced numbers
        x = jnp.asarray(x)
    except ValueError as error:
        raise ValueError(
            f"{name} has rows of different lengths; pad them to one length [B, L] with any id, and give where, False "
            "for padding, such as Interactions.rows gives both"
        ) from error
    if x.ndim != 2:
        raise ValueError(f"{name} has shape {list(x.shape)}; give [B, L], a row for each user")
    return x


def all_pairs(items: Array, where: Array) -> Pairs:
    """Padded histories [B, L] as such a list."""
    n = len(items)
    rows = jnp.where(where, jnp.arange(n, dtype=jnp.int32)[:, None], n)
    # places ascend only where no padding stands between, so that padding moves to the end
    order = jnp.argsort(rows.reshape(-1), stable=True)
    return Pairs(rows.reshape(-1)[order], items.reshape(-1)[order], jnp.arange(n, dtype=jnp.int32))


# ---------------------------------------------------------------------- models


class HistoryModel(nn.Module):
    """A model whose users are their histories, which travel as the untrained collection "history".

    A subclass makes its parameters in a `setup` that calls this one's, and scores pairs in `_of_pairs`, padded
    histories in `_of_histories`. Variables with histories of another size raise `ValueError`.
    """

    history: Interactions

    def __post_init__(self) -> None:
        check_interactions(history=self.history)
        check_attributes(self)
        super().__post_init__()

    @property
    def n_users(self) -> int:
        """M."""
        return self.history.n_users

    @property
    def n_items(self) -> int:
        """N."""
        return self.history.n_items

    def setup(self) -> None:
        known = self.variable("history", "interactions", on_device, self.history).value
        if known.indptr.shape != self.history.indptr.shape or known.indices.shape != self.history.indices.shape:
            sizes = [f"{len(x.indptr) - 1} users with {len(x.indices)} pairs" for x in (known, self.history)]
            raise ValueError(
                f"variables have histories of {sizes[0]}, the model of {sizes[1]}; give both "
                "from for_users(model, variables, history)"
            )
        self.known = jax.tree.map(jnp.asarray, known)

    def __call__(self, users: Array, items: Array) -> Array:
        """Scores of the pairs, ids that broadcast; without noise."""
        users, items = checked_ids(users, items)
        if self.is_initializing():  # `setup` has made all parameters, and a pass would take seconds to compile
            return jnp.zeros(jnp.broadcast_shapes(users.shape, items.shape))
        return self._of_pairs(users, items)

    def fold_in(self, items: ArrayLike, where: ArrayLike | None = None) -> Array:
        """Scores of all items for users never seen, from their histories [B, L], such as `Interactions.rows` gives.

        Args:
            items: integers [B, L], each item once: an item that is repeated may count again. [[]] is one user without
                items.
            where: bool [B, L], True for real entries; None is all.

        Raises:
            ValueError: for rows of different lengths, ids that are not integers, a `where` that is not bool [B, L], and
                real ids outside 0 .. N - 1, except under `jit`, where they are not known.
        """
        return self._of_histories(*checked_items(items, where, self.n_items))

    def _key(self) -> Key | None:
        """That of the noise, if there is one."""
        return self.make_rng("noise") if self.has_rng("noise") else None

    def _on(self, users: Array, fn: Callable[..., Any], key: Key | None = None, at_random: bool = False) -> Any:
        """`fn(pairs, degrees [B])` of users [B]."""
        (users,) = checked_ids(users)
        degrees = np.asarray(self.history.user_degrees)
        return on_histories(fn, self.known, degrees, users, key=key, at_random=at_random)


def on_device(history: Interactions) -> Interactions:
    """The bare pairs."""
    return jax.tree.map(jnp.asarray, dataclasses.replace(history, weights=None, timestamps=None))


def for_users(model: HistoryModel, variables: Variables, history: Interactions) -> tuple[HistoryModel, Variables]:
    """The same trained model over other users: those of `history`, held out from training, or new.

    For models that know a user by the history alone: `MultDAE`, `MultVAE`, `RecVAE`, `VALID`, `MacridVAE`, `EASE`. With
    `splits.held_out_users`, `evaluate.full_ranking(*for_users(model, variables, history), history, test)`.

    Raises:
        ValueError: for a model with parameters of users, and histories over another number of items.

    >>> from jaxrec.models import MultDAE
    >>> train, other = Interactions.from_pairs([0, 1], [0, 3]), Interactions.from_pairs([0, 0, 4], [3, 0, 2])
    >>> model = MultDAE(train, dim=2)
    >>> model, variables = for_users(model, model.init(jax.random.key(0), jnp.array([0]), jnp.array([0])), other)
    >>> model.apply(variables, jnp.array([4]), method="rows").shape
    (1, 4)
    """
    if set(variables.get("history", ())) != {"interactions"} or "user" in variables["params"]:
        name = type(model).__name__
        raise ValueError(f"model={name} has parameters of users; give one that knows them by their histories alone")
    if history.n_items != model.history.n_items:
        raise ValueError(
            f"history has {history.n_items} items, the model {model.history.n_items}; give Interactions over its ids"
        )
    return model.clone(history=history), {**variables, "history": {"interactions": on_device(history)}}
