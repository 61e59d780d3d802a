"""Autoencoders of users' rows with a multinomial likelihood: MultDAE, MultVAE and RecVAE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.interactions import Interactions
from jaxrec.losses import kl_standard
from jaxrec.models._histories import HistoryModel, Pairs
from jaxrec.models.mf import check_numbers, check_rate, check_sizes
from jaxrec.typing import Array, Key

_XAVIER = nn.initializers.xavier_uniform()
_SMALL = nn.initializers.truncated_normal(1e-3)
_LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_LOG_WEIGHTS = np.log([0.15, 0.75, 0.1])  # RecVAE's prior: N(0, 1), the old posterior, N(0, e¹⁰)


class _Autoencoder(HistoryModel):
    """Encodes a user's row to z and scores all items with it: score = q(z)·h + b.

    The row is x = r / ‖r‖ with r of 0 and 1, with dropout. NLL is Σ −log softmax(scores)_l over the
    items of the row. Noise is drawn in `apply(..., rngs={"noise": key})`; without that key nothing
    is random.

    A subclass creates its parameters in `setup`, among them `item` [N, W] and `item_bias` [N]. Its
    `_encoded(pairs)` returns the mean [B, D] of z and the logarithm of its variance, or None if z
    is the mean. Its `_divergence(pairs, z, mean, log_variance)` returns KL [B].
    """

    def __post_init__(self) -> None:
        check_sizes(self, *(name for name in ("dim", "width") if hasattr(self, name)))
        check_rate(self, "dropout")
        super().__post_init__()

    def rows(self, users: Array | None, *, histories: Interactions | None = None) -> jax.Array:
        """Scores all items for users [B] -> [B, N], without noise."""
        return self._scores(self._encoded(self._pairs(users, histories))[0])

    def bound(self, users: Array | None, *, histories: Interactions | None = None) -> tuple[jax.Array, jax.Array]:
        """Returns NLL [B] and KL [B], the two terms of the negative evidence lower bound.

        There is noise if `apply` gets a key for it.
        """
        pairs = self._pairs(users, histories, self._key())
        mean, log_variance = self._encoded(pairs)
        z = mean
        if log_variance is not None and pairs.key is not None:
            z += jnp.exp(log_variance / 2) * pairs.normal(z.shape[1:], draw=0).astype(z.dtype)
        scores = self._scores(z)
        # Padding has row B, outside the scores, and adds 0.
        own = pairs.sums(scores.at[pairs.rows, pairs.items].get(mode="fill", fill_value=0))
        nll = pairs.degrees.astype(own.dtype) * jax.nn.logsumexp(scores, axis=-1) - own
        return nll, self._divergence(pairs, z, mean, log_variance)

    # ------------------------------------------------------------------ parts

    def _of_pairs(self, pairs: Pairs, items: Array) -> jax.Array:
        q = self._query(self._encoded(pairs)[0])
        item, bias = jnp.asarray(self.item), jnp.asarray(self.item_bias)
        return jnp.einsum("...w,...nw->...n", q, item[items]) + bias[items]

    def _query(self, z: Array) -> jax.Array:
        """Returns q [B, W]; by default z itself."""
        return z

    def _scores(self, z: Array) -> jax.Array:
        return self._query(z) @ self.item.T + self.item_bias[None]


class MultDAE(_Autoencoder):
    """The denoising autoencoder of Liang et al. (2018, arXiv 1802.05814).

    z = tanh(x E + b),   score = z·h + c

    The parameters are `context` [N, D] (E), `context_bias` [D], `item` [N, D], `item_bias` [N]. KL
    is 0. The paper decays the parameters: `optax.chain(optax.add_decayed_weights(...),
    optax.adam(1e-3))`.

    Attributes:
        n_items: N.
        dim: D.
        dropout: dropout rate of the normalised row.

    Raises:
        ValueError: if `dim` is not an integer of 1 or more, or `dropout` lies outside [0, 1).

    >>> import jaxrec as jr
    >>> train = jr.Interactions.from_pairs([0, 0, 2], [1, 3, 0])
    >>> model = MultDAE(train.n_items, dim=2)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> model.apply(variables, None, histories=train, method="rows").shape
    (3, 4)
    """

    dim: int = 200
    dropout: float = 0.5

    def setup(self) -> None:  # noqa: D102
        self.context = self.param("context", _XAVIER, (self.n_items, self.dim))
        self.context_bias = self.param("context_bias", _SMALL, (self.dim,))
        self.item = self.param("item", _XAVIER, (self.n_items, self.dim))
        self.item_bias = self.param("item_bias", _SMALL, (self.n_items,))

    def _encoded(self, pairs: Pairs) -> tuple[jax.Array, None]:
        return nn.tanh(_first_layer(self.context, self.context_bias, pairs, self.dropout)), None

    def _divergence(self, pairs, z, mean, log_variance) -> jax.Array:
        return jnp.zeros(len(pairs.users), z.dtype)


class MultVAE(_Autoencoder):
    """The variational autoencoder of Liang et al. (2018, arXiv 1802.05814).

    Encoder and decoder have one hidden layer each.

    (μ, lv) = tanh(x E + b) W + c,   z = μ + exp(lv / 2) ε,   score = tanh(z V + d)·h + e,   KL to
    N(0, 1)

    The parameters are `context` [N, W] (E), `context_bias`, `head` [W, 2D], `head_bias`, `hidden`
    [D, W] (V), `hidden_bias`, `item` [N, W], `item_bias` [N]. The released code anneals KL as
    `train.autoencoders.objective(cap=0.2, total=200_000)` does, in batches of 500 users, with Adam
    at 1e-3.

    Attributes:
        n_items: N.
        dim: D.
        width: W, size of the hidden layers.
        dropout: dropout rate of the normalised row.

    Raises:
        ValueError: if a size is not an integer of 1 or more, or `dropout` lies outside [0, 1).

    >>> import jaxrec as jr
    >>> train = jr.Interactions.from_pairs([0, 0, 2], [1, 3, 0])
    >>> model = MultVAE(train.n_items, dim=2, width=3)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> model.apply(variables, None, jnp.array([[1, 3]]), histories=train).shape
    (3, 2)
    """

    dim: int = 200
    width: int = 600
    dropout: float = 0.5

    def setup(self) -> None:  # noqa: D102
        n_items, dim, width = self.n_items, self.dim, self.width
        self.context = self.param("context", _XAVIER, (n_items, width))
        self.context_bias = self.param("context_bias", _SMALL, (width,))
        self.head = self.param("head", _XAVIER, (width, 2 * dim))
        self.head_bias = self.param("head_bias", _SMALL, (2 * dim,))
        self.hidden = self.param("hidden", _XAVIER, (dim, width))
        self.hidden_bias = self.param("hidden_bias", _SMALL, (width,))
        self.item = self.param("item", _XAVIER, (n_items, width))
        self.item_bias = self.param("item_bias", _SMALL, (n_items,))

    def _encoded(self, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
        hidden = nn.tanh(_first_layer(self.context, self.context_bias, pairs, self.dropout))
        mean, log_variance = jnp.split(hidden @ self.head + self.head_bias[None], 2, axis=-1)
        return mean, log_variance

    def _query(self, z: Array) -> jax.Array:
        return nn.tanh(z @ self.hidden + self.hidden_bias[None])

    def _divergence(self, pairs, z, mean, log_variance) -> jax.Array:
        return kl_standard(mean, log_variance)


class RecVAE(_Autoencoder):
    """RecVAE (Shenbin et al. 2020, 10.1145/3336191.3371831).

    It has a deep encoder, a linear decoder, and a prior of three parts. The encoder has five
    layers, h_i = LN(swish(W_i h_{i−1} + b_i + Σ_{j<i} h_j)) with h_0 = x, and (μ, lv) = W h_5 + c.
    Then z = μ + exp(lv / 2) ε and score = z·h + e. The prior of each coordinate is .15 N(0, 1) +
    .75 q_old(z | r) + .1 N(0, e¹⁰), where q_old is the posterior of an earlier encoder, without
    dropout. KL is estimated from the one sample z and includes its weight: γ |I_u| Σ (log q − log
    prior). `train.autoencoders.alternating` trains encoder and decoder alternately.

    The parameters are `encoder` (a tree), `item` [N, D], `item_bias` [N]. The old encoder is the
    untrained collection "old".

    Attributes:
        n_items: N.
        dim: D.
        width: size of the encoder's layers.
        dropout: dropout rate of the normalised row; 0 when the decoder is trained.
        divergence_weight: γ.

    Raises:
        ValueError: if a size is not an integer of 1 or more, `dropout` lies outside [0, 1), or
            `divergence_weight` is negative or not finite.

    Differs: the first old encoder is a copy of the encoder, not another draw, and biases start at
    0.

    >>> import jaxrec as jr
    >>> train = jr.Interactions.from_pairs([0, 0, 2], [1, 3, 0])
    >>> model = RecVAE(train.n_items, dim=2, width=3)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> sorted(variables), model.apply(variables, None, histories=train, method="rows").shape
    (['old', 'params'], (3, 4))
    """

    dim: int = 200
    width: int = 600
    dropout: float = 0.5
    divergence_weight: float = 0.005

    def __post_init__(self) -> None:
        check_numbers(self, "divergence_weight", least=0)
        super().__post_init__()

    def setup(self) -> None:  # noqa: D102
        n_items = self.n_items
        self.encoder = self.param("encoder", _deep_encoder, n_items, self.width, self.dim)
        by_row = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2)
        self.item = self.param("item", by_row, (n_items, self.dim))
        self.item_bias = self.param("item_bias", nn.initializers.zeros, (n_items,))
        self.old = self.variable("old", "encoder", jax.tree.map, jnp.asarray, self.encoder).value

    def _encoded(self, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
        return _deep(self.encoder, pairs, self.dropout)

    def _divergence(self, pairs, z, mean, log_variance) -> jax.Array:
        """Returns KL [B], estimated from the sample z, with its weight."""
        old_mean, old_log_variance = _deep(self.old, pairs, 0.0)
        parts: list[tuple[Any, Any]] = [(0.0, 0.0), (old_mean, old_log_variance), (0.0, 10.0)]
        prior = jnp.stack([_log_normal(z, *part) + weight for part, weight in zip(parts, _LOG_WEIGHTS.tolist())])
        kl = (_log_normal(z, mean, log_variance) - jax.nn.logsumexp(prior, axis=0)).sum(-1)
        return self.divergence_weight * pairs.degrees.astype(kl.dtype) * kl


def _first_layer(context: Array, bias: Array, pairs: Pairs, dropout: float) -> jax.Array:
    """Returns x E + b [B, W]."""
    x = pairs.dropped(pairs.normalised(jnp.ones((len(pairs.rows), 1), context.dtype)), dropout, draw=1)
    return pairs.sums(x * jnp.asarray(context)[pairs.items]) + bias[None]


def _log_normal(x: Array, mean: Array | float, log_variance: Array | float) -> jax.Array:
    """Returns the log-density of a normal distribution."""
    return -0.5 * (log_variance + math.log(2 * math.pi) + (x - mean) ** 2 / jnp.exp(log_variance))


def _deep_encoder(key: Key, n_items: int, width: int, dim: int) -> dict[str, jax.Array]:
    """Draws the parameters of RecVAE's encoder."""
    first, *others, last = jax.random.split(key, 6)
    return {
        "context": _LINEAR(first, (n_items, width)),
        "kernel": jnp.stack([_LINEAR(one, (width, width)) for one in others]),
        "bias": jnp.zeros((5, width)),
        "gain": jnp.ones((5, width)),
        "shift": jnp.zeros((5, width)),
        "head": _LINEAR(last, (width, 2 * dim)),
        "head_bias": jnp.zeros(2 * dim),
    }


def _deep(encoder: Mapping[str, Array], pairs: Pairs, dropout: float) -> tuple[jax.Array, jax.Array]:
    """Returns μ and lv [B, D] of RecVAE's encoder."""
    h = _first_layer(encoder["context"], encoder["bias"][0], pairs, dropout)
    skipped = jnp.zeros_like(h)
    for number in range(5):
        if number > 0:
            h = h @ encoder["kernel"][number - 1] + encoder["bias"][number][None] + skipped
        h = nn.swish(h)
        # Layer normalisation with the released code's ε = 0.1.
        centred = h - h.mean(-1, keepdims=True)
        h = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 0.1)
        h = h * encoder["gain"][number][None] + encoder["shift"][number][None]
        skipped = skipped + h
    mean, log_variance = jnp.split(h @ encoder["head"] + encoder["head_bias"][None], 2, axis=-1)
    return mean, log_variance
