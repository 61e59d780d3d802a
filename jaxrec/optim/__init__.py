"""Optimisers: `optim.Step`s and optax transformations."""

from jaxrec.optim import lambda_opt as lambda_opt
from jaxrec.optim import moments as moments
from jaxrec.optim import regularization as regularization
from jaxrec.optim import riemannian as riemannian
from jaxrec.optim import rowwise as rowwise
from jaxrec.optim.step import Step as Step
from jaxrec.optim.step import as_step as as_step
