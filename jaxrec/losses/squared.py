"""The squared losses of RG2."""

from __future__ import annotations

import jax.numpy as jnp

from jaxrec.losses._reduce import Negatives, masked, over_negatives
from jaxrec.typing import Array


def rg2_sampled(pos: Array, neg: Array, *, where: Array | None = None, negatives: Negatives = "mean") -> Array:
    """The ranking-generalisable squared loss (RG2) from sampled items: −pos + ½ meanⱼ (negⱼ + 1)².

    The second-order expansion of the full softmax round 0. Unbiased when the negatives are drawn uniformly from
    *all* items, the user's own among them.

    >>> float(rg2_sampled(jnp.array(1.0), jnp.array([0.0])))
    -0.5
    """
    pos, neg, where, any_valid = masked(pos, neg, where)
    return jnp.where(any_valid, -pos + 0.5 * over_negatives((neg + 1) ** 2, where, negatives), 0)
