"""Optimiser pieces: `optax` gradient transformations."""

from jaxrec.optim import riemannian as riemannian
from jaxrec.optim import rowwise as rowwise
