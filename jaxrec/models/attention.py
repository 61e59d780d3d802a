"""Attention among a user's prototypes, without parameters.

`attention(x[..., K, D]) -> [..., K, D]` returns x + B x with weights B. Section 3.2 of VALID (Tran
and Lauw 2023, 10.1145/3583780.3614980) describes it; the released code has none.
"""

from __future__ import annotations

from typing import Literal, Protocol

import jax
import jax.numpy as jnp

from jaxrec.models.mf import _unit
from jaxrec.typing import Array, Scalar


class Attention(Protocol):
    """Any function of this module, with its hyperparameters bound."""

    def __call__(self, x: Array) -> jax.Array:
        """Maps prototypes [..., K, D] to [..., K, D]."""


def cosine(x: Array, *, temperature: Scalar = 0.5) -> jax.Array:
    """Attends with B = softmax_j(cos(x_k, x_j) / τ).

    Args:
        x: prototypes [..., K, D].
        temperature: τ.

    >>> cosine(jnp.eye(2), temperature=1.0).shape
    (2, 2)
    """
    return x + jax.nn.softmax(_cosines(x) / temperature, axis=-1) @ x


def coda(x: Array, *, temperature: Scalar = 0.5, center: Literal["row", "matrix"] = "row") -> jax.Array:
    """Attends with B = tanh(T − mean T) · sigmoid(S − mean S) (Tay et al. 2019).

    T = cos(x_k, x_j) / τ, and S = −‖x_k − x_j‖₁ / τ.

    Args:
        x: prototypes [..., K, D].
        temperature: τ.
        center: "row" takes the means over rows, as the released code of the authors' ADDVAE does;
            "matrix" takes them over the matrix. The paper does not say which.

    Raises:
        ValueError: if `center` has another value.
    """
    if center not in ("row", "matrix"):
        raise ValueError(f"center={center!r}; give 'row' or 'matrix'")
    axes = -1 if center == "row" else (-2, -1)
    t = _cosines(x) / temperature
    s = -jnp.abs(x[..., :, None, :] - x[..., None, :, :]).sum(-1) / temperature
    t, s = (part - part.mean(axes, keepdims=True) for part in (t, s))
    return x + (jnp.tanh(t) * jax.nn.sigmoid(s)) @ x


def _cosines(x: Array) -> jax.Array:
    """Returns the cosines of all pairs of prototypes, [..., K, K]."""
    x = _unit(x)
    return jnp.einsum("...kd,...jd->...kj", x, x)
