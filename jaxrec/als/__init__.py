"""Alternating least squares and what can be had in closed form: solvers that give `models.MF`'s parameters."""

from jaxrec.als import ials as ials
from jaxrec.als import rg2 as rg2
