"""Kullback-Leibler divergences of Gaussian posteriors over the last axis: [..., D] -> [...]."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxrec._numerics import accumulated
from jaxrec.typing import Array


def kl_standard(mean: Array, log_variance: Array) -> jax.Array:
    """KL divergence from a standard normal (Kingma and Welling 2014, arXiv 1312.6114).

    KL(N(μ, e^lv) ‖ N(0, 1)) = ½ Σ (e^lv + μ² − 1 − lv).

    Args:
        mean: means μ, [..., D].
        log_variance: logarithms lv of the variances, [..., D].

    Returns:
        Divergences [...].

    >>> float(kl_standard(jnp.ones(2), jnp.zeros(2)))
    1.0
    """
    chex.assert_equal_shape([mean, log_variance])
    mean, log_variance = accumulated(mean), accumulated(log_variance)
    return 0.5 * (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(-1)


def kl_normalised(log_variance: Array) -> jax.Array:
    """KL divergence of MacridVAE for unit vectors (Ma et al. 2019, arXiv 1910.14238).

    KL(N(μ, σ₀² e^lv) ‖ N(0, σ₀²)) for unit vectors μ, without its constant 1 / (2σ₀²), is ½ Σ (e^lv
    − lv − 1).

    Args:
        log_variance: logarithms lv of the variances relative to σ₀², [..., D].

    Returns:
        Divergences [...].

    >>> float(kl_normalised(jnp.zeros(3)))
    0.0
    """
    log_variance = accumulated(log_variance)
    return 0.5 * (jnp.exp(log_variance) - log_variance - 1).sum(-1)
