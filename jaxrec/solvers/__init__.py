"""Solvers: alternating least squares, closed forms, spectral filters, neighbours and Gauss-Newton."""

from jaxrec.solvers import ease as ease
from jaxrec.solvers import filters as filters
from jaxrec.solvers import gauss_newton as gauss_newton
from jaxrec.solvers import ials as ials
from jaxrec.solvers import knn as knn
from jaxrec.solvers import nmf as nmf
from jaxrec.solvers import rg2 as rg2
from jaxrec.solvers import wrmf as wrmf
