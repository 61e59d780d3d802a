"""Losses: pure functions that return one value for each comparison; `mean` is the only reduction.

    loss(pos[...], neg[..., n], *, where=None, <hyperparameters>) -> [...]
    loss(scores[..., N], targets[..., N], *, where=None, ...)     -> [...]

`where` is bool, True for the entries to use. Bind hyperparameters with `functools.partial`, such as
`partial(losses.mml, margins=...)`. `contrastive`, `triplet`, `metricf` and `sml` take distances;
`on_scores` applies them to scores. `alignment`, `uniformity`, `directau`, `covariance`, `diversity` and
`infonce` take vectors. `rg2` takes the users' vectors and sums over the items. LOSSES.md has a table of all
losses.
"""

from jaxrec.losses._reduce import combine as combine
from jaxrec.losses._reduce import mean as mean
from jaxrec.losses.distance import contrastive as contrastive
from jaxrec.losses.distance import metricf as metricf
from jaxrec.losses.distance import on_scores as on_scores
from jaxrec.losses.distance import sml as sml
from jaxrec.losses.distance import triplet as triplet
from jaxrec.losses.divergence import kl_normalised as kl_normalised
from jaxrec.losses.divergence import kl_standard as kl_standard
from jaxrec.losses.pairwise import bpr as bpr
from jaxrec.losses.pairwise import ccl as ccl
from jaxrec.losses.pairwise import hinge as hinge
from jaxrec.losses.pairwise import mml as mml
from jaxrec.losses.pairwise import warp as warp
from jaxrec.losses.pointwise import bce as bce
from jaxrec.losses.pointwise import mse as mse
from jaxrec.losses.pointwise import uib as uib
from jaxrec.losses.softmax import bsl as bsl
from jaxrec.losses.softmax import infonce_plus as infonce_plus
from jaxrec.losses.softmax import mine as mine
from jaxrec.losses.softmax import multinomial as multinomial
from jaxrec.losses.softmax import pooled as pooled
from jaxrec.losses.softmax import sampled_softmax as sampled_softmax
from jaxrec.losses.softmax import softmax as softmax
from jaxrec.losses.softmax import sparsemax as sparsemax
from jaxrec.losses.squared import rg2 as rg2
from jaxrec.losses.squared import rg2_sampled as rg2_sampled
from jaxrec.losses.vectors import alignment as alignment
from jaxrec.losses.vectors import covariance as covariance
from jaxrec.losses.vectors import directau as directau
from jaxrec.losses.vectors import diversity as diversity
from jaxrec.losses.vectors import infonce as infonce
from jaxrec.losses.vectors import uniformity as uniformity
