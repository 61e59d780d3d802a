"""SimpleX: mixes a user's vector with an aggregate of their history, and scores by the cosine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec._lookup import lookup
from jaxrec.interactions import Interactions
from jaxrec.models._histories import Pairs, checked_block, checked_users, first_items, spread
from jaxrec.models.mf import _unit, check_attributes, check_numbers, check_rate, check_sizes, dropped, products
from jaxrec.typing import Array

_XAVIER = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


class Pool(Protocol):
    """The weights of the items of a history, α ∝ exp(query·key), such as `UserAttention`."""

    def queries(self, users: Array) -> jax.Array | None:
        """Maps users' vectors [..., D] to queries [..., D'], or to None for equal weights."""

    def keys(self, items: Array) -> jax.Array | None:
        """Maps items' vectors [..., D] to keys [..., D'], or to None for equal weights."""


class MeanPool(nn.Module):
    """All items of a history have the same weight."""

    def queries(self, users: Array) -> None:
        """Returns None: there are no weights to compute."""

    def keys(self, items: Array) -> None:
        """Returns None: there are no weights to compute."""


class SelfAttention(nn.Module):
    """α_k ∝ exp(w·tanh(W e_k + b)): the weight of an item depends only on the item."""

    def queries(self, users: Array) -> jax.Array:
        """Returns ones [..., 1]."""
        return jnp.ones((*users.shape[:-1], 1), users.dtype)

    @nn.compact
    def keys(self, items: Array) -> jax.Array:
        """Returns w·tanh(W e + b) [..., 1]."""
        hidden = nn.tanh(nn.Dense(items.shape[-1], kernel_init=_XAVIER, param_dtype=items.dtype, name="hidden")(items))
        return nn.Dense(1, use_bias=False, kernel_init=_XAVIER, param_dtype=items.dtype, name="query")(hidden)


class UserAttention(nn.Module):
    """α_k ∝ exp(e_u·tanh(W e_k + b)): the user's own vector is the query."""

    def queries(self, users: Array) -> jax.Array:
        """Returns the users' vectors [..., D]."""
        return users

    @nn.compact
    def keys(self, items: Array) -> jax.Array:
        """Returns tanh(W e + b) [..., D]."""
        return nn.tanh(nn.Dense(items.shape[-1], kernel_init=_XAVIER, param_dtype=items.dtype, name="hidden")(items))


class SimpleX(nn.Module):
    """SimpleX (Mao et al. 2021, arXiv 2109.12613): a gate between a user's vector and history.

    h_u = g e_u + (1 − g) V p_u,   p_u = Σ_k α_k e_k over the history of u,   score = cos(h_u, e_i)

    The score of a pair leaves the scored item out of the history. Otherwise the model would learn
    whether the history contains the item.

    Histories are data: each method takes `histories`, the items of its B users as `Interactions`
    [B, N], such as `train.take(users)`. Train with `examples=partial(train.singles,
    histories=...)` or `partial(train.groups, ...)`, and evaluate with `histories=`. With a gate of
    1 the model is `MF(score=cosine)` and needs no histories.

    Parameters are `user` [M, D], `item` [N, D], `value` [D, D] (Vᵀ), those of `pool`, and
    `history_item` [N, D] if histories have a separate table. With a gate of 1 they are `user` and
    `item`.

    Attributes:
        n_users: M.
        n_items: N.
        dim: D.
        gate: g in [0, 1].
        pool: the weights α: `MeanPool()`, `SelfAttention()`, `UserAttention()`, or any `Pool`.
        length: L; only the first L items by id of a longer history are used, and None uses all. To
            choose other items, or to train faster, leave the rest out of `histories` instead.
        shared_history: whether histories use the table `item`. False gives them a separate table,
            as in the released configuration for Gowalla.
        scale: standard deviation of the initial vectors. Matrices are drawn from Xavier's normal
            distribution.
        dropout: rate at which coordinates of the *normalised* user's vector are dropped; the others
            are divided by 1 − rate. It applies if `apply` gets `rngs={"dropout": key}`, as in
            training, and never in `rows`.

    Raises:
        ValueError: if a size is not an integer of 1 or more, `gate` lies outside [0, 1], `dropout`
            lies outside [0, 1), or `scale` is negative or not finite; in a call, if `histories` is
            missing or has another number of users or items.

    Differs: the released code also leaves the positive out of the history when it scores the
    negatives; pass `left_out=positives` for that. Its attentions also count padding: see
    `papers.mml.ReleasedSimpleX`.

    >>> train = Interactions.from_pairs([0, 0, 2], [1, 3, 0])
    >>> model = SimpleX(train.n_users, train.n_items, dim=2, pool=UserAttention())
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> users = jnp.array([[0], [2]])
    >>> model.apply(variables, users, jnp.array([[1, 2, 3]]), histories=train.take([0, 2])).shape
    (2, 3)
    >>> model.apply(variables, None, histories=train, method="rows").shape  # users never seen
    (3, 4)
    """

    n_users: int
    n_items: int
    dim: int = 64
    gate: float = 0.8
    pool: Pool = MeanPool()
    length: int | None = None
    shared_history: bool = True
    scale: float = 1e-4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self, "n_users", "n_items", "dim", *(() if self.length is None else ("length",)))
        check_numbers(self, "gate", "scale", least=0)
        if self.gate > 1:
            raise ValueError(f"gate={self.gate}; give 0 (history alone) .. 1 (the user's own vector alone)")
        check_rate(self, "dropout")
        check_attributes(self)
        super().__post_init__()

    @property
    def needs_histories(self) -> bool:
        """Whether calls need `histories`: unless the gate is 1."""
        return self.gate != 1

    def setup(self) -> None:  # noqa: D102
        init = nn.initializers.normal(self.scale)
        self.user = jnp.asarray(self.param("user", init, (self.n_users, self.dim)))
        self.item = jnp.asarray(self.param("item", init, (self.n_items, self.dim)))
        if not self.needs_histories:
            return
        self.history_item = self.item
        if not self.shared_history:
            self.history_item = jnp.asarray(self.param("history_item", init, (self.n_items, self.dim)))
        self.value = self.param("value", _XAVIER, (self.dim, self.dim))

    def __call__(
        self,
        users: Array | None,
        items: Array,
        left_out: Array | None = None,
        *,
        histories: Interactions | None = None,
    ) -> jax.Array:
        """Returns the scores of pairs.

        Args:
            users: integers [B] or [B, 1], or None for unseen users. An unseen user has a vector of
                zeros: `UserAttention` then weights all items equally, and with a gate of 1 all
                scores are 0.
            items: integers [B, n], or [1, n] for the same items for all users. [B] is one item per
                user.
            left_out: the items to leave out of the histories; None is `items`. Give one per user,
                integers [B] or [B, 1], which is faster, or one per pair, [B, n] or [1, n]. -1
                leaves out nothing.
            histories: the users' items, `Interactions` [B, N].

        Returns:
            [B, n], or [B] for items [B].

        Raises:
            ValueError: if `histories` is missing or has another number of users or items, or users
                or items have another shape.
        """
        if self.is_initializing():  # a pass would take seconds to compile
            if self.needs_histories:  # the pool creates its parameters when it is called
                self.pool.queries(self.user[:1])
                self.pool.keys(self.history_item[:1])
            return jnp.zeros(jnp.broadcast_shapes(() if users is None else jnp.shape(users), jnp.shape(items)))
        own, histories = self._of_users(users, histories)
        block = checked_block(items, len(own))
        left_out = block if left_out is None else checked_block(left_out, len(own), "left_out")
        if left_out.shape[1] not in (1, block.shape[1]):
            raise ValueError(
                f"left_out has {left_out.shape[1]} items per user, items {block.shape[1]}; give 1 or as many"
            )
        u = _unit(self._mixed(own, histories, left_out))
        # One mask per user, also if each pair has its own vector.
        if self.dropout > 0 and self.has_rng("dropout"):
            u *= dropped(jnp.ones((len(own), 1, self.dim), u.dtype), self.dropout, self.make_rng("dropout"))
        scores = products(u, _looked_up(_unit, self.item, block))
        return scores.reshape(-1) if jnp.ndim(items) == 1 else scores

    def rows(self, users: Array | None, *, histories: Interactions | None = None) -> jax.Array:
        """Scores all items for users [B] -> [B, N]; nothing is left out of histories."""
        u = _unit(self._mixed(*self._of_users(users, histories), None))
        return jnp.einsum("bd,nd->bn", u[:, 0], _unit(self.item))

    def _of_users(self, users: Array | None, histories: Interactions | None) -> tuple[jax.Array, Interactions | None]:
        """Returns the users' own vectors [B, D], and their histories, cut to `length`."""
        users, histories = checked_users(self, users, histories)
        if users is not None:
            own = lookup(self.user, users)
        else:
            assert histories is not None  # `checked_users` demands them for unseen users
            own = jnp.zeros((histories.n_users, self.dim), self.user.dtype)
        if not self.needs_histories or histories is None:
            return own, None
        return own, histories if self.length is None else first_items(histories, self.length)

    def _mixed(self, own: Array, histories: Interactions | None, left_out: Array | None) -> jax.Array:
        """Returns h [B, 1, D], or [B, n, D] if `left_out` [B or 1, n] has an item for each pair."""
        if histories is None:
            return own[:, None]
        if len(histories.indices) == 0:  # nobody has a history
            return self.gate * own[:, None]
        pairs = Pairs.of(histories)
        logits, where = self._logits(own, pairs), pairs.real[:, 0]
        if left_out is not None and left_out.shape[1] > 1:
            pooled = self._one_less(own, histories, pairs, logits, left_out)
        else:
            if left_out is not None:
                where &= pairs.items != spread(left_out[:, 0], pairs.rows)
            sums = _sums(pairs, logits, self.history_item, where)
            scale = self._scale(sums, pairs.sums(where.astype(jnp.int32)))
            pooled = ((scale[:, None] * sums.numerator) @ self.value)[:, None]
        return self.gate * own[:, None] + (1 - self.gate) * pooled

    def _logits(self, own: Array, pairs: Pairs) -> jax.Array:
        """Returns the logits [C] of the pairs."""
        keys = _looked_up(self.pool.keys, self.history_item, pairs.items)
        if keys is None:
            return jnp.zeros(len(pairs.items), own.dtype)
        queries: Any = self.pool.queries(own)  # None only if the keys are
        return (spread(queries, pairs.rows) * keys).sum(-1)

    def _one_less(self, own, histories, pairs, logits, left_out) -> jax.Array:
        """Returns V p [B, n, D] of pairs, each without its own item, from two sums per user.

        The term of an item is subtracted from the sum. This is accurate only if a term of about the
        same size remains, so the largest term needs a second sum, without it. For a history of one
        item that sum is empty, and p is exactly 0.
        """
        n, n_pairs = len(own), len(pairs.items)
        known, where = jax.lax.stop_gradient(logits), pairs.real[:, 0]
        # A term near the largest is large enough. A comparison by == could find none, because XLA
        # may compute the logits twice and round them differently.
        largest = _segment_max(pairs, known, where)
        near = where & (known > spread(largest, pairs.rows) - 0.5)
        number = jnp.arange(n_pairs, dtype=jnp.int32)
        top = jax.ops.segment_min(jnp.where(near, number, n_pairs), pairs.rows, n, indices_are_sorted=True)
        rest = _sums(pairs, logits, self.history_item, where & (number != spread(top, pairs.rows)))
        top_item = jnp.where(pairs.degrees > 0, pairs.items.at[top].get(mode="clip"), -1)
        sums = _with_term(rest, logits.at[top].get(mode="clip"), self.history_item[top_item], pairs.degrees > 0)

        users = jnp.arange(n, dtype=jnp.int32)[:, None]
        member = histories.contains(users, left_out)
        is_top = member & (left_out == top_item[:, None])
        is_other = member & ~is_top
        keys = _looked_up(self.pool.keys, self.history_item, left_out)
        logit = jnp.zeros(member.shape, own.dtype)
        if keys is not None:
            queries: Any = self.pool.queries(own)  # None only if the keys are
            logit = products(queries[:, None], keys)
        shift, count = sums.shift[:, None], pairs.degrees[:, None]
        term = jnp.exp(jnp.where(is_other, logit - shift, -jnp.inf))
        less = _Sums(sums.numerator, sums.total[:, None] - term, shift)
        scale = self._scale(less, count - is_other.astype(count.dtype))
        top_scale = self._scale(rest, pairs.degrees - 1)[:, None]

        pooled = jnp.where(is_top, 0, scale)[..., None] * (sums.numerator @ self.value)[:, None]
        pooled += jnp.where(is_top, top_scale, 0)[..., None] * (rest.numerator @ self.value)[:, None]
        return pooled - (scale * term)[..., None] * _looked_up(lambda e: e @ self.value, self.history_item, left_out)

    def _scale(self, sums: _Sums, count: Array) -> jax.Array:
        """Returns the factor [...] from the numerator to p, 0 for an empty history.

        `count` [...] is the number of items, which `papers.mml.ReleasedSimpleX` needs.
        """
        del count
        positive = sums.total > 0
        return jnp.where(positive, 1 / jnp.where(positive, sums.total, 1), 0)


class _Sums(NamedTuple):
    """Σ_k a_k e_k [B, D] and Σ_k a_k [B] of histories, with a_k = exp(logit_k − shift) ≤ 1."""

    numerator: Array
    total: Array
    shift: Array


def _sums(pairs: Pairs, logits: Array, table: Array, where: Array) -> _Sums:
    """Returns the sums over the pairs `where` [C], with logits [C] and items' vectors [N, D]."""
    shift = _finite(_segment_max(pairs, jax.lax.stop_gradient(logits), where))
    weights = jnp.exp(jnp.where(where, logits - spread(shift, pairs.rows), -jnp.inf))
    return _Sums(pairs.sums(weights[:, None] * table[pairs.items]), pairs.sums(weights), shift)


def _with_term(sums: _Sums, logit: Array, vectors: Array, where: Array) -> _Sums:
    """Adds one term for each user `where` [B], with its logit [B] and its vector [B, D]."""
    known = jnp.where(where, jax.lax.stop_gradient(logit), -jnp.inf)
    before = jnp.where(sums.total > 0, sums.shift, -jnp.inf)
    shift = _finite(jnp.maximum(before, known))
    kept, weight = jnp.exp(before - shift), jnp.exp(jnp.where(where, logit - shift, -jnp.inf))
    numerator = kept[:, None] * sums.numerator + weight[:, None] * vectors
    return _Sums(numerator, kept * sums.total + weight, shift)


def _segment_max(pairs: Pairs, values: Array, where: Array) -> jax.Array:
    """Returns the largest of the values [C] of each user [B]; −inf if there is none."""
    values = jnp.where(where, values, -jnp.inf)
    return jax.ops.segment_max(values, pairs.rows, len(pairs.users), indices_are_sorted=True)


def _finite(shift: Array) -> jax.Array:
    """Returns the shift of exponents, 0 for an empty history."""
    return jnp.where(jnp.isfinite(shift), shift, 0)


def _looked_up(fn: Callable[[Array], Any], table: Array, ids: Array) -> Any:
    """Returns `fn(table)[ids]`, computed from the table or from the rows, whichever are fewer."""
    if ids.size <= table.shape[0]:
        return fn(lookup(table, ids))
    mapped = fn(table)
    return None if mapped is None else mapped[ids]
