"""jaxrec: a functional JAX library for recommendation from implicit feedback.

Models, losses, samplers, metrics and optimiser steps are functions of arrays. Compose them with
`functools.partial`, `jax.jit`, `jax.vmap` and `optax.chain`. Start with `jaxrec.data`,
`jaxrec.train` and `jaxrec.evaluate`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxrec._cache import compilation_cache
from jaxrec._version import __version__
from jaxrec.interactions import IdMap, Interactions

if TYPE_CHECKING:
    from jaxrec import (
        data,
        evaluate,
        interactions,
        losses,
        metrics,
        models,
        optim,
        papers,
        plotting,
        sampling,
        solvers,
        sparse,
        study,
        train,
        typing,
    )
    from jaxrec._saved import load, save

__all__ = [
    "IdMap",
    "Interactions",
    "__version__",
    "compilation_cache",
    "data",
    "evaluate",
    "interactions",
    "load",
    "losses",
    "metrics",
    "models",
    "optim",
    "papers",
    "plotting",
    "sampling",
    "save",
    "solvers",
    "sparse",
    "study",
    "train",
    "typing",
]


def __getattr__(name: str) -> Any:
    """Imports a module when it is first used."""
    if name in ("load", "save"):
        return getattr(import_module("jaxrec._saved"), name)
    if name in __all__:
        return import_module(f"jaxrec.{name}")
    raise AttributeError(f"module 'jaxrec' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns the public names."""
    return __all__
