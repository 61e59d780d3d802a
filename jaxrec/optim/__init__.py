"""Optimiser pieces: `optax` gradient transformations."""

from jaxrec.optim import rowwise as rowwise
