"""Multi-interest variational autoencoders: VALID and MacridVAE, with K vectors per user."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec._numerics import as_integer
from jaxrec._partials import check_function
from jaxrec.interactions import Interactions
from jaxrec.losses import kl_normalised
from jaxrec.models import _mixture
from jaxrec.models._histories import HistoryModel, Pairs
from jaxrec.models._mixture import Noise
from jaxrec.models.attention import Attention
from jaxrec.models.implicit import Gradient, detach
from jaxrec.models.mf import _unit, check_numbers, check_rate, check_sizes
from jaxrec.typing import Array

_XAVIER = nn.initializers.glorot_normal()


class Posterior(NamedTuple):
    """What the encoder returns for B users.

    Attributes:
        prototypes: [B, K, D] (or [1, K, D] if all users share them), unit vectors, those of the
            last block.
        mean: μ [B, K, D], unit vectors.
        log_variance: lv [B, K, D]; the standard deviation is σ₀ exp(lv / 2).
        interests: [B, K, D], unit vectors: the means, or with noise the normalised samples.
    """

    prototypes: Array
    mean: Array
    log_variance: Array
    interests: Array


class VALID(HistoryModel):
    """VALID (Tran and Lauw 2023, 10.1145/3583780.3614980): interests by iterative latent attention.

    Each of R blocks groups the user's items by their closeness to K prototypes, A =
    softmax_k(x_k·h_l / τ + g). All blocks but the last move the prototypes to their groups, x_k ←
    unit(Σ_l w_lk h_l), where w is A normalised over the user's items for each k, with dropout. The
    last block encodes the groups, e_k = Σ_l w_lk E_l + b, (μ, −lv) = W tanh(e) + c, z_k = unit(μ_k)
    + σ₀ exp(lv_k / 2) ε, and p_l ∝ Σ_k A_lk exp(unit(z_k)·h_l / τ_dec) over all items.

    The model knows users by their items: all methods take `histories`, the `Interactions` [B, N] of
    their B users. `users` decide whose noise is drawn; None is for unseen users.

    The parameters are `item` [N, D] (H), `prototype` [K, D], `context` [N, W] (E), `context_bias`
    [W], `head` [W, 2D], `head_bias` [2D]. The noise of groups, dropout and z is drawn in
    `apply(..., rngs={"noise": key})`; without that key nothing is random.

    Attributes:
        n_items: N.
        dim: D.
        n_interests: K.
        n_blocks: R; 1 is MacridVAE.
        width: W, width of the encoder.
        temperature: τ of the groups.
        decoder_temperature: τ_dec.
        deviation: σ₀.
        dropout: dropout rate of the weights w.
        gradient: how gradients pass through the blocks before the last: a function of
            `jaxrec.models.implicit`. `detach`, as in the released code, stops them, so that for R ≥
            2 `prototype` keeps its initial values. `neumann` and `gmres` need ten blocks or more.
        attention: attention among a user's prototypes after each update: a function of
            `jaxrec.models.attention`, or None.
        raw_updates: whether an update is equation 4 as printed, x_k ← Σ_l A_lk H_l: of the items'
            vectors as they are, with weights that are neither normalised nor dropped. Groups only
            see the direction of x_k. False follows the released code.
        chunk: number of items that the decoder processes at a time in training. Its memory grows
            with B·K·chunk, not with B·K·N. None is 256 on a CPU and 8,192 on other devices.

    Raises:
        TypeError: if `gradient` or `attention` is not a function.
        ValueError: if a size is not an integer of 1 or more, a temperature or `deviation` is not a
            finite number above 0, or `dropout` lies outside [0, 1); in a call, if `histories` is
            missing or has another number of users or items.

    Differs: follows the released code instead of the paper: updates use unit vectors and normalise
    their result (see `raw_updates`), there are biases, and KL leaves out the constant ‖μ‖² / 2σ₀². RecBole's padding
    item and user do not exist.

    >>> import jaxrec as jr
    >>> train = jr.Interactions.from_pairs([0, 0, 2], [1, 3, 0])
    >>> model = VALID(train.n_items, dim=2, n_interests=3, width=2)
    >>> variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    >>> model.apply(variables, None, histories=train, method="rows").shape
    (3, 4)
    """

    dim: int = 64
    n_interests: int = 4
    n_blocks: int = 2
    width: int = 64
    temperature: float = 0.1
    decoder_temperature: float = 0.1
    deviation: float = 0.1
    dropout: float = 0.5
    gradient: Gradient = detach
    attention: Attention | None = None
    raw_updates: bool = False
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "dim", "n_interests", "n_blocks", "width", *(() if self.chunk is None else ("chunk",)))
        check_function("gradient", self.gradient, "those of jaxrec.models.implicit")
        if self.attention is not None:
            check_function("attention", self.attention, "those of jaxrec.models.attention, or None")
        check_numbers(self, "temperature", "decoder_temperature", "deviation", above=0)
        check_rate(self, "dropout")
        super().__post_init__()

    def setup(self) -> None:  # noqa: D102
        self.item = self.param("item", _XAVIER, (self.n_items, self.dim))
        self.prototype = self.param("prototype", _XAVIER, (self.n_interests, self.dim))
        self.context = self.param("context", _XAVIER, (self.n_items, self.width))
        self.context_bias = self.param("context_bias", nn.initializers.zeros, (self.width,))
        self.head = self.param("head", _XAVIER, (self.width, 2 * self.dim))
        self.head_bias = self.param("head_bias", nn.initializers.zeros, (2 * self.dim,))

    def rows(self, users: Array | None, *, histories: Interactions | None = None) -> jax.Array:
        """Scores all items for users [B] -> [B, N], without noise."""
        table = _unit(self.item)
        return _mixture.scores(*self._both(self._encoded(self._pairs(users, histories), table)), table)

    def bound(self, users: Array | None, *, histories: Interactions | None = None) -> tuple[jax.Array, jax.Array]:
        """Returns the two terms of the negative evidence lower bound of users [B].

        There is noise if `apply` gets a key for it.

        Returns:
            Σ_{l of the user} −log p_l [B], and KL [B], summed over interests. For a user without
            items the first is 0; KL need not be.
        """
        pairs, table = self._pairs(users, histories, self._key()), _unit(self.item)
        found = self._encoded(pairs, table)
        queries, noise = self._both(found), self._noise(pairs, self.n_blocks)
        s = pairs.sums(_mixture.at_pairs(*queries, pairs, table[pairs.items], noise))
        log_sum = _mixture.log_normaliser(*queries, table, noise, self.chunk)
        return pairs.degrees.astype(s.dtype) * log_sum - s, kl_normalised(found.log_variance).sum(-1)

    def posterior(self, users: Array | None, *, histories: Interactions | None = None) -> Posterior:
        """Returns the encoder's result for users [B]: arrays [B, K, D].

        There is noise if `apply` gets a key for it.
        """
        return self._encoded(self._pairs(users, histories, self._key()), _unit(self.item))

    def prototypes(self, users: Array | None, *, histories: Interactions | None = None) -> jax.Array:
        """Returns the prototypes [R, B, K, D] by which each block groups the items of users [B].

        They are unit vectors, computed without noise.
        """
        pairs, table = self._pairs(users, histories), _unit(self.item)
        start = _unit(self.prototype)[None]
        x = [jnp.broadcast_to(start, (len(pairs.users), *start.shape[1:]))]
        for number in range(1, self.n_blocks):
            x.append(_unit(self._updated(x[-1], pairs, table, number)))
        return jnp.stack(x)

    # ------------------------------------------------------------------ the parts of a pass

    def _of_pairs(self, pairs: Pairs, items: Array) -> jax.Array:
        """Returns log-probabilities up to a constant of the user."""
        table, none = _unit(self.item), [None] * self.n_interests
        h, queries = table[items], self._both(self._encoded(pairs, table))
        before, after = (_mixture.log_sum(list(jnp.einsum("...kd,...nd->k...n", q, h)), none)[0] for q in queries)
        return after - before

    def _both(self, found: Posterior) -> tuple[jax.Array, jax.Array]:
        """Returns q1 [B or 1, K, D] and q2 [B, K, D] of `_mixture`."""
        q1 = found.prototypes / self.temperature
        return q1, q1 + found.interests / self.decoder_temperature

    def _encoded(self, pairs: Pairs, table: Array) -> Posterior:
        """Runs all blocks, and encodes the groups of the last one."""
        x = _unit(self.prototype)[None]
        if self.n_blocks > 1:
            start = jnp.broadcast_to(x, (len(pairs.users), *x.shape[1:]))
            update = functools.partial(self._updated, pairs=pairs, table=table)
            x = _unit(self.gradient(update, start, self.n_blocks - 1))
        w = self._weights(self._grouped(x, pairs, table, self.n_blocks), pairs, self.n_blocks)
        e = pairs.weighted(w, jnp.asarray(self.context)[pairs.items]) + self.context_bias.reshape(1, 1, -1)
        y, t = jnp.split(nn.tanh(e) @ self.head + self.head_bias.reshape(1, 1, -1), 2, axis=-1)
        mean, log_variance = _unit(y), self._log_variance(t)
        z = mean
        if pairs.key is not None:
            z += self.deviation * jnp.exp(log_variance / 2) * pairs.normal(z.shape[1:], draw=0).astype(z.dtype)
        return Posterior(x, mean, log_variance, _unit(z))

    def _log_variance(self, output: Array) -> jax.Array:
        """Returns lv from the second half of the head's output."""
        return -output

    def _noise(self, pairs: Pairs, number: int) -> Noise:
        """Returns the noise of the groups of block `number` = 1 .. R.

        All users share the noise of the first block, because they share its prototypes.
        """
        key = None if pairs.key is None else jax.random.fold_in(pairs.key, 2 * number - 1)
        return Noise(key, jnp.zeros(1, jnp.int32) if number == 1 else pairs.users)

    def _grouped(self, x: Array, pairs: Pairs, table: Array, number: int) -> jax.Array:
        """Returns A [C, K] of block `number`."""
        factors = _mixture.odds_at(self._noise(pairs, number), pairs, self.n_interests)
        logits = _mixture.logits_at(x / self.temperature, pairs, table[pairs.items])
        return jnp.stack(_mixture.log_sum(logits, factors)[1], axis=-1)

    def _weights(self, shares: Array, pairs: Pairs, number: int) -> jax.Array:
        """Returns w [C, K] from A [C, K]."""
        return pairs.dropped(pairs.normalised(shares), self.dropout, draw=2 * number)

    def _updated(self, x: Array, pairs: Pairs, table: Array, number: int) -> jax.Array:
        """Returns the prototypes after block `number`."""
        shares, attend = self._grouped(x, pairs, table, number), self.attention
        if self.raw_updates:
            x = pairs.weighted(jnp.where(pairs.real, shares, 0), jnp.asarray(self.item)[pairs.items])
            return _unit(x if attend is None else attend(x))
        x = _unit(pairs.weighted(self._weights(shares, pairs, number), table[pairs.items]))
        return x if attend is None else _unit(attend(x))


class MacridVAE(VALID):
    """MacridVAE (Ma et al. 2019, arXiv 1910.14238): VALID with one block and learned prototypes.

    Attributes:
        n_blocks: 1.

    Raises:
        ValueError: if `n_blocks` is not 1, or an attribute is wrong for `VALID`.

    >>> MacridVAE(n_items=4).n_blocks
    1
    """

    n_blocks: int = 1

    def __post_init__(self) -> None:
        if as_integer(self.n_blocks) != 1:
            raise ValueError(f"n_blocks={self.n_blocks}; MacridVAE has 1, VALID has any number")
        super().__post_init__()


def collapse(prototypes: Array) -> jax.Array:
    """Returns the mean cosine between different prototypes, [..., K, D] -> [...].

    It is 1 if all interests of a user are the same.

    >>> float(collapse(jnp.eye(3)))
    0.0
    """
    x = _unit(prototypes)
    k = x.shape[-2]
    return (jnp.einsum("...kd,...jd->...", x, x) - (x**2).sum((-2, -1))) / max(k * (k - 1), 1)
