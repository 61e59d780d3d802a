"""SimpleX: a user's vector mixed with an aggregate of the user's history, scored by cosine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.interactions import Interactions, check_interactions
from jaxrec.models._histories import checked_items
from jaxrec.models.mf import (
    _unit,
    check_attributes,
    check_numbers,
    check_rate,
    check_sizes,
    checked_ids,
    dropped,
    products,
)
from jaxrec.typing import Array, ArrayLike

_XAVIER = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
_CHUNK = 2**16  # pairs aggregated at a time in `vectors`


class Pool(Protocol):
    """How much each item of a history counts, α ∝ exp(query·key): `MeanPool`, `SelfAttention`,
    `UserAttention`.
    """

    def queries(self, users: Array) -> Array | None:
        """Maps users' vectors [..., D] to queries [..., D'], or returns None if all items count
        equally.
        """

    def keys(self, items: Array) -> Array | None:
        """Maps items' vectors [..., D] to keys [..., D'], or returns None if all items count
        equally.
        """


class MeanPool(nn.Module):
    """All items of a history count equally. Padding does not count, for either `padding`."""

    def queries(self, users: Array) -> None:
        """Returns None."""

    def keys(self, items: Array) -> None:
        """Returns None."""


class SelfAttention(nn.Module):
    """α_k ∝ exp(w·tanh(W e_k + b)): the weight of an item depends only on the item."""

    def queries(self, users: Array) -> Array:
        """Returns ones [..., 1]."""
        return jnp.ones((*users.shape[:-1], 1), users.dtype)

    @nn.compact
    def keys(self, items: Array) -> Array:
        """Returns w·tanh(W e + b) [..., 1]."""
        hidden = nn.tanh(nn.Dense(items.shape[-1], kernel_init=_XAVIER, param_dtype=items.dtype, name="hidden")(items))
        return nn.Dense(1, use_bias=False, kernel_init=_XAVIER, param_dtype=items.dtype, name="query")(hidden)


class UserAttention(nn.Module):
    """α_k ∝ exp(e_u·tanh(W e_k + b)): the user's own vector is the query."""

    def queries(self, users: Array) -> Array:
        """Returns the users' vectors [..., D]."""
        return users

    @nn.compact
    def keys(self, items: Array) -> Array:
        """Returns tanh(W e + b) [..., D]."""
        return nn.tanh(nn.Dense(items.shape[-1], kernel_init=_XAVIER, param_dtype=items.dtype, name="hidden")(items))


class SimpleX(nn.Module):
    """SimpleX (Mao et al. 2021, arXiv 2109.12613): a user's own vector mixed with the history's.

    h_u = g e_u + (1 − g) V p_u,   p_u = Σ_k α_k e_k over the history of u,   score = cos(h_u, e_i)

    The score of a pair leaves its own item out of the history. Otherwise the model would learn to
    detect whether the item is there.

    The parameters are `user` [M, D], `item` [N, D], `value` [D, D] (Vᵀ), those of `pool`, and
    `history_item` [N, D] if histories have their own table. With a gate of 1 they are `user` and
    `item` only, and the model is `MF(score=cosine)`. The interactions are the untrained collection
    "history".

    Attributes:
        history: the training interactions; weights are not used. They are read at `init`;
            afterwards only their sizes are used.
        dim: D.
        gate: g in [0, 1].
        pool: the weights α: `MeanPool()`, `SelfAttention()`, `UserAttention()`, or any `Pool`.
        length: L, the length to which histories are padded. Of longer histories the first L items
            by id are used; to use others, select them in `history`. None is the longest history's
            length. A step holds B·L·D floats.
        shared_history: False gives the items of histories their own table, as the released
            configuration for Gowalla does.
        padding: "proper" normalises α over the history. "released" follows the released code: each
            of the L − |history| padding entries adds exp(0) = 1 to the denominator of the two
            attentions, which shrinks p.
        scale: standard deviation of the initial vectors. Matrices are initialised by Xavier's rule,
            normal.
        dropout: rate at which entries of the *normalised* user's vector are dropped in `apply(...,
            rngs={"dropout": key})`; the others are divided by 1 − rate. Without that key, and in
            `rows` and `vectors`, there is no dropout.

    Raises:
        ValueError: if a size is not an integer of 1 or more, `gate` lies outside [0, 1], `dropout`
            lies outside [0, 1), `scale` is negative or not finite, or `padding` has another value.

    Differs: the released code also leaves the positive out of the history when it scores the
    negatives, which here is `left_out=positives[:, None]`. Its 1e-9 in denominators is below the
    resolution of float32.

    >>> train = Interactions.from_pairs([0, 0, 2], [1, 3, 0])
    >>> model = SimpleX(train, dim=2, pool=UserAttention())
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> model.apply(variables, jnp.array([[0], [2]]), jnp.array([[1, 2, 3]])).shape
    (2, 3)
    >>> model.apply(variables, jnp.array([[1, 3]]), jnp.array([[True, True]]), method="fold_in").shape
    (1, 4)
    """

    history: Interactions
    dim: int = 64
    gate: float = 0.8
    pool: Pool = MeanPool()
    length: int | None = None
    shared_history: bool = True
    padding: Literal["proper", "released"] = "proper"
    scale: float = 1e-4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_interactions(history=self.history)
        check_sizes(self, "dim", *(() if self.length is None else ("length",)))
        check_numbers(self, "gate", "scale", least=0)
        if self.gate > 1:
            raise ValueError(f"gate={self.gate}; give 0 (only the history) to 1 (only the user's own vector)")
        check_rate(self, "dropout")
        if self.padding not in ("proper", "released"):
            raise ValueError(f"padding={self.padding!r}; give 'proper' or 'released'")
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

    def setup(self) -> None:  # noqa: D102
        init = nn.initializers.normal(self.scale)
        self.user = jnp.asarray(self.param("user", init, (self.n_users, self.dim)))
        self.item = jnp.asarray(self.param("item", init, (self.n_items, self.dim)))
        if self.gate == 1:
            return
        self.history_item = self.item
        if not self.shared_history:
            self.history_item = jnp.asarray(self.param("history_item", init, (self.n_items, self.dim)))
        self.value = self.param("value", _XAVIER, (self.dim, self.dim))
        bare = dataclasses.replace(self.history, weights=None, timestamps=None)
        known = self.variable("history", "interactions", jax.tree.map, jnp.asarray, bare)
        self.known = jax.tree.map(jnp.asarray, known.value)
        self.longest = self.length or max(int(np.diff(np.asarray(self.history.indptr)).max()), 1)

    def __call__(self, users: Array, items: Array, left_out: Array | None = None) -> Array:
        """Scores pairs of ids that broadcast, such as users [B, 1] and items [B, n] -> [B, n].

        If `left_out` broadcasts to the shape of `users` (one item per user), each user has one
        vector. Otherwise each pair has its own vector, computed from sums that are made once per
        user.

        Args:
            users: integers [...].
            items: integers [...].
            left_out: integers [...], the items left out of the histories; None leaves out `items`.
                -1 leaves out nothing.
        """
        left_out = items if left_out is None else left_out
        users, items, left_out = checked_ids(users, items, left_out)
        u = _unit(self._mixed(users, left_out))
        if self.dropout > 0 and self.has_rng("dropout"):
            u *= dropped(jnp.ones((*users.shape, self.dim), u.dtype), self.dropout, self.make_rng("dropout"))
        return products(u, _looked_up(_unit, self.item, items))

    def rows(self, users: Array) -> Array:
        """Scores all items for users [B] -> [B, N], from their whole histories."""
        (users,) = checked_ids(users)
        return jnp.einsum("bd,nd->bn", _unit(self._mixed(users, None)), _unit(self.item))

    def fold_in(self, items: ArrayLike, where: ArrayLike | None = None) -> Array:
        """Scores all items for unseen users from their histories [B, L], such as
        `Interactions.rows` returns.

        These users have no vector: e_u = 0. `UserAttention` therefore weights all items equally,
        and with a gate of 1 all scores are 0.

        Args:
            items: integers [B, L]. [[]] is one user without items.
            where: bool [B, L], True for real entries; None uses all.

        Raises:
            ValueError: if rows have different lengths, ids are not integers, `where` is not bool
                [B, L], or real ids lie outside 0 .. N - 1. Under `jit` the ids themselves are not
                checked.
        """
        items, where = checked_items(items, where, self.n_items)
        own = jnp.zeros((*items.shape[:-1], self.dim), self.user.dtype)
        if self.gate < 1:
            logits, values = self._block(own, items)
            own = (1 - self.gate) * self._aggregate(_sums(logits, values, where), where.sum(-1, dtype=jnp.int32))
        return jnp.einsum("bd,nd->bn", _unit(own), _unit(self.item))

    def vectors(self) -> tuple[Array, Array]:
        """Returns tables [M, D], [N, D] whose dot product is the score of `rows`; histories are
        summed pair by pair.
        """
        if self.gate == 1:
            return _unit(self.user), _unit(self.item)
        history: Interactions = self.known
        counts = jnp.minimum(history.user_degrees, self.longest)
        users = jnp.arange(self.n_users, dtype=jnp.int32)
        users = jnp.repeat(users, history.user_degrees, total_repeat_length=history.n_pairs)
        where = jnp.arange(history.n_pairs, dtype=jnp.int32) - history.indptr[users] < self.longest
        queries, keys = self.pool.queries(self.user), self.pool.keys(self.history_item)
        logits = jnp.zeros(history.n_pairs, self.user.dtype)
        if keys is not None:
            pairs = users, history.indices
            logits = jax.lax.map(lambda pair: jnp.vdot(queries[pair[0]], keys[pair[1]]), pairs, batch_size=_CHUNK)
        sums = _segment_sums(logits, self.history_item, users, history.indices, where, self.n_users)
        return _unit(self.gate * self.user + (1 - self.gate) * self._aggregate(sums, counts)), _unit(self.item)

    def _mixed(self, users: Array, left_out: Array | None) -> Array:
        """Returns h of users [...] without `left_out`: [..., D], of the users' shape or of their
        pairs' shape.
        """
        own = self.user[users]
        if self.gate == 1:
            return own
        items, where = self.known.rows(users, length=self.longest)
        logits, values = self._block(own, items)
        one_a_user = left_out is None or jnp.broadcast_shapes(users.shape, left_out.shape) == users.shape
        if one_a_user:
            if left_out is not None:
                where &= items != jnp.broadcast_to(left_out, users.shape)[..., None]
            pooled = self._aggregate(_sums(logits, values, where), where.sum(-1, dtype=jnp.int32))
        else:
            pooled = self._one_less(own, users, left_out, items, where, logits, values)
        return self.gate * own + (1 - self.gate) * pooled

    def _block(self, own: Array, items: Array) -> tuple[Array, Array]:
        """Returns logits [..., L] and vectors [..., L, D] of a block of histories."""
        keys = _looked_up(self.pool.keys, self.history_item, items)
        if keys is None:
            logits = jnp.zeros(items.shape, own.dtype)
        else:
            logits = jnp.einsum("...d,...ld->...l", self.pool.queries(own), keys)
        return logits, self.history_item[items]

    def _one_less(self, own, users, left_out, items, where, logits, values) -> Array:
        """Returns V p of pairs [...] -> [..., D], each without its own item, from two sums per
        user.

        The item's term is subtracted from the sum, which is accurate while a larger term stays. For
        the largest term there is a second sum without it. If the history has only that item, this
        sum is empty, and p is exactly 0.
        """
        last = jnp.where(where, items, -1).max(-1)
        member = self.known.contains(users, left_out) & (left_out <= last)
        top = jnp.where(where, logits, -jnp.inf).argmax(-1, keepdims=True).astype(jnp.int32)
        is_top = member & (left_out == jnp.take_along_axis(items, top, axis=-1)[..., 0])
        is_other = member & ~is_top
        rest = where & (jnp.arange(items.shape[-1], dtype=jnp.int32).reshape((1,) * users.ndim + (-1,)) != top)
        sums, without_top = _sums(logits, values, where), _sums(logits, values, rest)

        keys = _looked_up(self.pool.keys, self.history_item, left_out)
        logit = jnp.zeros(member.shape, own.dtype) if keys is None else products(self.pool.queries(own), keys)
        term = jnp.exp(jnp.where(is_other, logit - sums.shift, -jnp.inf))
        count = where.sum(-1, dtype=jnp.int32)
        scale = self._scale(sums._replace(total=sums.total - term), count - is_other.astype(count.dtype))
        top_scale = self._scale(without_top, count - 1)

        pooled = jnp.where(is_top, 0, scale)[..., None] * (sums.numerator @ self.value)
        pooled += jnp.where(is_top, top_scale, 0)[..., None] * (without_top.numerator @ self.value)
        return pooled - (scale * term)[..., None] * _looked_up(lambda e: e @ self.value, self.history_item, left_out)

    def _aggregate(self, sums: _Sums, count: Array) -> Array:
        """Returns V p [..., D] of histories with `count` [...] items."""
        return (self._scale(sums, count)[..., None] * sums.numerator) @ self.value

    def _scale(self, sums: _Sums, count: Array) -> Array:
        """Returns the factor [...] that turns a numerator into p; 0 for an empty history."""
        total, shift = sums.total, sums.shift
        factor = jnp.ones_like(total)
        if self.padding == "released" and self._attends():
            # Each padding entry adds exp(0). Both terms are scaled by exp(-max(shift, 0)), so that
            # none overflows.
            pads = jnp.maximum(self.longest - count, 0).astype(total.dtype)
            factor = jnp.where(pads > 0, jnp.exp(jnp.minimum(shift, 0)), 1)
            total = factor * total + pads * jnp.exp(-jnp.maximum(shift, 0))
        positive = total > 0
        return jnp.where(positive, factor / jnp.where(positive, total, 1), 0)

    def _attends(self) -> bool:
        return self.pool.queries(self.user[:1]) is not None


class _Sums(NamedTuple):
    """Σ_k a_k e_k [..., D] and Σ_k a_k [...] of histories, with a_k = exp(logit_k − shift), of
    which the largest is 1.
    """

    numerator: Array
    total: Array
    shift: Array


def _sums(logits: Array, values: Array, where: Array) -> _Sums:
    """Sums over the entries `where` [..., L] of `logits` [..., L] and `values` [..., L, D]."""
    shift = _finite(jnp.where(where, logits, -jnp.inf).max(-1))
    weights = jnp.exp(jnp.where(where, logits - shift[..., None], -jnp.inf))
    return _Sums(jnp.einsum("...l,...ld->...d", weights, values), weights.sum(-1), shift)


def _segment_sums(logits: Array, table: Array, users: Array, items: Array, where: Array, n_users: int) -> _Sums:
    """Returns the same sums for pairs [nnz] sorted by user -> [M, D], [M], [M].

    Vectors are looked up by chunks, so that [nnz, D] is never formed.
    """
    shift = _finite(jax.ops.segment_max(jnp.where(where, logits, -jnp.inf), users, n_users, indices_are_sorted=True))
    weights = jnp.exp(jnp.where(where, logits - shift[users], -jnp.inf))
    total = jax.ops.segment_sum(weights, users, n_users, indices_are_sorted=True)
    spare = -len(items) % _CHUNK
    users = jnp.pad(users, (0, spare), constant_values=n_users)
    pairs = users, jnp.pad(items, (0, spare)), jnp.pad(weights, (0, spare))

    def add(numerator, chunk):
        users, items, weights = chunk
        terms = weights[:, None] * table[items]
        return numerator.at[users].add(terms, mode="drop", indices_are_sorted=True), None

    chunks = jax.tree.map(lambda column: column.reshape(-1, _CHUNK), pairs)
    numerator, _ = jax.lax.scan(add, jnp.zeros((n_users, table.shape[1]), table.dtype), chunks)
    return _Sums(numerator, total, shift)


def _finite(shift: Array) -> Array:
    """Returns the shift with 0 for an empty history, and without a gradient, as it cancels in the
    results.
    """
    shift = jax.lax.stop_gradient(shift)
    return jnp.where(jnp.isfinite(shift), shift, 0)


def _looked_up(fn: Callable[[Array], Array | None], table: Array, ids: Array) -> Array | None:
    """Returns `fn(table)[ids]`, mapping the table or the rows, whichever are fewer."""
    if ids.size <= table.shape[0]:
        return fn(table[ids])
    mapped = fn(table)
    return None if mapped is None else mapped[ids]
