"""Losses that judge each score by itself: positives against 1, negatives against 0.

The signature is that of `jaxrec.losses.pairwise`: `pos` [...], `neg` [..., n] -> [...].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrec.losses._reduce import Negatives, masked, over_negatives
from jaxrec.typing import Array


def bce(pos: Array, neg: Array, *, where: Array | None = None, negatives: Negatives = "mean") -> Array:
    """Binary cross-entropy on logits: −log σ(pos) − meanⱼ log(1 − σ(negⱼ)).

    >>> round(float(bce(jnp.array(0.0), jnp.array([0.0]))), 4)
    1.3863
    """
    pos, neg, where, any_valid = masked(pos, neg, where)
    values = jax.nn.softplus(-pos) + over_negatives(jax.nn.softplus(neg), where, negatives)
    return jnp.where(any_valid, values, 0)


def mse(pos: Array, neg: Array, *, where: Array | None = None, negatives: Negatives = "mean") -> Array:
    """Squared error: ½ (pos − 1)² + ½ meanⱼ negⱼ².

    With `negatives="sum"` it is the "MSE" of the SimpleX and multi-margin papers, which stands on cosines.

    >>> float(mse(jnp.array(0.0), jnp.array([1.0])))
    1.0
    """
    pos, neg, where, any_valid = masked(pos, neg, where)
    values = 0.5 * (pos - 1) ** 2 + 0.5 * over_negatives(neg**2, where, negatives)
    return jnp.where(any_valid, values, 0)
