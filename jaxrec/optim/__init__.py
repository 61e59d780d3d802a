"""Optimiser pieces: `optax` gradient transformations."""

from jaxrec.optim import lambda_opt as lambda_opt
from jaxrec.optim import moments as moments
from jaxrec.optim import regularization as regularization
from jaxrec.optim import riemannian as riemannian
from jaxrec.optim import rowwise as rowwise
