"""Attention among a user's prototypes, without parameters: `attention(x[..., K, D]) -> [..., K, D]`, x + B x.

Of VALID (Tran and Lauw 2023, 10.1145/3583780.3614980), section 3.2; its released code has none.
"""

from __future__ import annotations

from typing import Literal, Protocol

import jax
import jax.numpy as jnp

from jaxrec.models.mf import _unit
from jaxrec.typing import Array, Scalar


class Attention(Protocol):
    """Any of this module, its hyperparameters bound."""

    def __call__(self, x: Array) -> Array:
        """Prototypes [..., K, D] -> [..., K, D]."""


def cosine(x: Array, *, temperature: Scalar = 0.5) -> Array:
    """B = softmax_j(cos(x_k, x_j) / τ).

    >>> cosine(jnp.eye(2), temperature=1.0).shape
    (2, 2)
    """
    return x + jax.nn.softmax(_cosines(x) / temperature, axis=-1) @ x


def coda(x: Array, *, temperature: Scalar = 0.5, center: Literal["row", "matrix"] = "row") -> Array:
    """B = tanh(T − mean T) · sigmoid(S − mean S) of T = cos(x_k, x_j) / τ, S = −‖x_k − x_j‖₁ / τ (Tay et al. 2019).

    Args:
        x: [..., K, D].
        temperature: τ.
        center: whether a mean is that of a row, as in the released code of the authors' ADDVAE, or of the matrix: the
            paper does not say.

    Raises:
        ValueError: for another `center`.
    """
    if center not in ("row", "matrix"):
        raise ValueError(f"center={center!r}; give 'row' or 'matrix'")
    axes = -1 if center == "row" else (-2, -1)
    t = _cosines(x) / temperature
    s = -jnp.abs(x[..., :, None, :] - x[..., None, :, :]).sum(-1) / temperature
    t, s = (part - part.mean(axes, keepdims=True) for part in (t, s))
    return x + (jnp.tanh(t) * jax.nn.sigmoid(s)) @ x


def _cosines(x: Array) -> Array:
    x = _unit(x)
    return jnp.einsum("...kd,...jd->...kj", x, x)
