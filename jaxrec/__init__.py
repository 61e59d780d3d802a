"""jaxrec: a functional JAX library for recommendation from implicit feedback.

Models, losses, samplers, metrics and optimiser steps are functions of arrays. Compose them with
`functools.partial`, `jax.jit`, `jax.vmap` and `optax.chain`. Start with `jaxrec.data`,
`jaxrec.train` and `jaxrec.evaluate`.
"""

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
from jaxrec._cache import compilation_cache
from jaxrec._saved import load, save
from jaxrec._version import __version__
from jaxrec.interactions import IdMap, Interactions

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
