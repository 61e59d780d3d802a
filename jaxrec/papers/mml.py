"""Multi-Margin Loss (arXiv 2405.04614; called Multi-Margin Cosine Loss, MMCL, since its version 3).

Where each part of the paper is:

| paper | here |
|---|---|
| eq. 1: contrastive loss; eq. 3: triplet loss | `losses.contrastive`, `losses.triplet` |
| eq. 2: CCL (SimpleX) | `losses.ccl` |
| eq. 4, 5: sampled softmax, BSL | `losses.sampled_softmax`, `losses.bsl` |
| eq. 7: MML | `losses.mml` |
| MF and SimpleX with cosines | `models.MF(score=models.cosine)`, `models.SimpleX` |
| SimpleX with the attention of its released code | `ReleasedSimpleX` |
| tables 2 and 3, figure 3 | `benchmarks/studies/mml.py` |

`GOWALLA` and `YELP2018` are the paper's settings of MML, as keywords of `losses.mml`.
"""

from __future__ import annotations

from types import MappingProxyType

import jax
import jax.numpy as jnp

from jaxrec.models import SimpleX
from jaxrec.models.simplex import _Sums
from jaxrec.typing import Array

GOWALLA = MappingProxyType(
    {"margins": (0.7, 0.8, 0.9), "weights": (0.1, 0.15, 0.75), "positive_weight": 1.0, "negative_weight": 700.0}
)
"""The settings for Gowalla, with 100 negatives for each positive."""

YELP2018 = MappingProxyType(
    {
        "margins": (0.6, 0.7, 0.8, 0.9),
        "weights": (0.05, 0.15, 0.2, 0.6),
        "positive_weight": 1.0,
        "negative_weight": 400.0,
    }
)
"""The settings for Yelp2018, with 100 negatives for each positive."""


class ReleasedSimpleX(SimpleX):
    """`SimpleX` as in its released code: padding counts in the denominator of the two attentions.

    The released code pads histories to L places. Each of the L − |history| padded places adds
    exp(0) = 1 to the denominator, which makes p smaller. `MeanPool` does not count them.

    Attributes:
        length: L; it must be given.

    Raises:
        ValueError: if there is no length, and for the errors of `SimpleX`.

    Differs: leaves out the 1e-9 that the released code adds to denominators, which is below the
    resolution of float32.

    >>> ReleasedSimpleX(3, 4, length=50).length
    50
    """

    def __post_init__(self) -> None:
        if self.length is None:
            raise ValueError("length=None; give the number of places to which the released code pads histories")
        super().__post_init__()

    def _scale(self, sums: _Sums, count: Array) -> jax.Array:
        if self.pool.queries(self.user[:1]) is None:
            return super()._scale(sums, count)
        pads = jnp.maximum((self.length or 0) - count, 0).astype(sums.total.dtype)
        # Adds the padded terms exp(0 − shift), without overflow for a large negative shift.
        factor = jnp.where(pads > 0, jnp.exp(jnp.minimum(sums.shift, 0)), 1)
        total = factor * sums.total + pads * jnp.exp(-jnp.maximum(sums.shift, 0))
        positive = total > 0
        return jnp.where(positive, factor / jnp.where(positive, total, 1), 0)
