"""One module for each paper: where its equations, tables and figures are, and its settings."""

from jaxrec.papers import lambda_opt as lambda_opt
from jaxrec.papers import mars as mars
from jaxrec.papers import mml as mml
from jaxrec.papers import rg2 as rg2
from jaxrec.papers import valid as valid
