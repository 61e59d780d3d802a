"""Losses: pure functions that compare scores and return one value a comparison; `mean` is the only reduction.

    loss(pos[...], neg[..., n], *, where=None, <hyperparameters>) -> [...]
    loss(scores[..., N], targets[..., N], *, where=None, ...)     -> [...]

`where` is bool, True = use. Set hyperparameters by `functools.partial(losses.mml, margins=...)`.
"""

from jaxrec.losses._reduce import mean as mean
from jaxrec.losses.pairwise import bpr as bpr
from jaxrec.losses.pairwise import ccl as ccl
from jaxrec.losses.pairwise import hinge as hinge
from jaxrec.losses.pairwise import mml as mml
from jaxrec.losses.pointwise import bce as bce
from jaxrec.losses.pointwise import mse as mse
from jaxrec.losses.softmax import bsl as bsl
from jaxrec.losses.softmax import multinomial as multinomial
from jaxrec.losses.softmax import sampled_softmax as sampled_softmax
from jaxrec.losses.softmax import softmax as softmax
from jaxrec.losses.softmax import sparsemax as sparsemax
from jaxrec.losses.squared import rg2_sampled as rg2_sampled
