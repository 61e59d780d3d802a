"""One page a paper: where each equation, table and figure is, and the settings of the paper and its code."""

from jaxrec.papers import lambda_opt as lambda_opt
from jaxrec.papers import mars as mars
from jaxrec.papers import mml as mml
from jaxrec.papers import rg2 as rg2
from jaxrec.papers import valid as valid
