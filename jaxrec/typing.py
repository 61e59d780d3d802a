"""Aliases and Protocols for annotations; nothing here runs.

Shape letters in docstrings: B examples, n negatives, P positives, M users, N items, D dims, K facets or interests,
k length of a list; `...` stands for any leading axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

Array = jax.Array | np.ndarray
ArrayLike = Any
Key = jax.Array
Scalar = jax.Array | float
Variables = Mapping[str, Any]


class Loss(Protocol):
    """Compares `pos` [...] with the last axis of `neg` [..., n] and drops that axis."""

    def __call__(self, pos: Array, neg: Array, *, where: Array | None = None) -> Array:
        """Losses [...]."""


class Sampler(Protocol):
    """Draws items for users [...]; the same key gives the same items."""

    def __call__(self, key: Key, users: Array) -> Array:
        """Item ids int32 [..., n]."""


class Model(Protocol):
    """What training and evaluation ask of a model; every `flax.linen.Module` of `jaxrec.models` has it.

    Evaluation checks ids by `n_users` and `n_items`, where a model has these.
    """

    def apply(self, variables: Variables, *args: Any, method: Any = None) -> Array:
        """Scores of the pairs (users, items), or [B, N] for users with `method="rows"`."""


class Objective(Protocol):
    """The scalar that training minimises."""

    def __call__(self, variables: Variables, key: Key, batch: Any) -> jax.Array:
        """Loss of one batch."""
