"""Multi-Margin Loss (arXiv 2405.04614; called Multi-Margin Cosine Loss, MMCL, since its version 3).

Where each part of the paper is:

| paper | here |
|---|---|
| eq. 1: contrastive loss; eq. 3: triplet loss | `losses.contrastive`, `losses.triplet` |
| eq. 2: CCL (SimpleX) | `losses.ccl` |
| eq. 4, 5: sampled softmax, BSL | `losses.sampled_softmax`, `losses.bsl` |
| eq. 7: MML | `losses.mml` |
| MF and SimpleX with cosines | `models.MF(score=models.cosine)`, `models.SimpleX` |
| tables 2 and 3, figure 3 | `benchmarks/studies/mml.py` |

`GOWALLA` and `YELP2018` are the paper's settings of MML, as keywords of `losses.mml`.
"""

from __future__ import annotations

from types import MappingProxyType

GOWALLA = MappingProxyType(
    {"margins": (0.7, 0.8, 0.9), "weights": (0.1, 0.15, 0.75), "positive_weight": 1.0, "negative_weight": 700.0}
)
"""With 100 negatives a positive."""

YELP2018 = MappingProxyType(
    {
        "margins": (0.6, 0.7, 0.8, 0.9),
        "weights": (0.05, 0.15, 0.2, 0.6),
        "positive_weight": 1.0,
        "negative_weight": 400.0,
    }
)
"""With 100 negatives a positive."""
