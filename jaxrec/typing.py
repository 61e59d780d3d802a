"""Type aliases and protocols for annotations.

Docstrings give shapes by letter: B examples, n negatives, P positives, M users, N items, D dims, K
facets or interests, k the length of a list. `...` means any leading axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

Array = jax.Array | np.ndarray  # arguments may be either; results of JAX are `jax.Array`
ArrayLike = Any
Key = jax.Array
Scalar = Array | float
Variables = Mapping[str, Any]


class Loss(Protocol):
    """A function that compares `pos` [...] with the last axis of `neg` [..., n]; returns [...]."""

    def __call__(self, pos: Array, neg: Array, *, where: Array | None = None) -> jax.Array:
        """Returns losses [...]."""


class Sampler(Protocol):
    """A function that draws items for users [...]; the same key gives the same items."""

    def __call__(self, key: Key, users: Array) -> jax.Array:
        """Returns item ids, int32 [..., n]."""


class Model(Protocol):
    """What training and evaluation need of a model, such as a Linen module of `jaxrec.models`.

    If a model has the attributes `n_users` and `n_items`, evaluation checks ids against them.
    """

    def apply(self, variables: Any, *args: Any, **options: Any) -> Any:
        """Returns scores of pairs (users, items); with `method="rows"`, scores [B, N] of users."""


class Measured(Protocol):
    """What `validate` may return instead of a mapping, such as a `Report`."""

    @property
    def means(self) -> Mapping[str, float]:
        """The metrics by name."""


Validate = Callable[[Variables], Mapping[str, float] | Measured]


class Objective(Protocol):
    """A function that computes the scalar that training minimises."""

    def __call__(self, variables: Variables, key: Key, batch: Any) -> jax.Array:
        """Returns the loss of one batch."""
