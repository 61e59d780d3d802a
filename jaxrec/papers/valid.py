"""VALID: multi-interest recommendation by iterative latent attention.

The paper is Tran and Lauw 2023, 10.1145/3583780.3614980. Where each part of it is:

| paper | here |
|---|---|
| eq. 3, 4: grouping of items, update of prototypes | `models.VALID.prototypes` |
| eq. 4 as printed | `models.VALID(raw_updates=True)` |
| eq. 5, 6: self-attention between prototypes | `models.attention.cosine`, `models.attention.coda` |
| eq. 7, algorithm 1: differentiation of the iteration | `models.implicit` |
| eq. 8, 9: encoder | `models.VALID.posterior` |
| eq. 10: decoder | `models.VALID.rows` |
| learning objective, with annealed KL | `train.autoencoders.objective`, `train.autoencoders.annealed` |
| baselines: MacridVAE, MultVAE, RecVAE | `models.MacridVAE`, `models.MultVAE`, `models.RecVAE` |
| MacridVAE as RecBole has it | `RecBoleMacridVAE` |
| tables and figures 2 to 5 | `benchmarks/studies/valid.py` |

Differs: follows the released code where the paper's equations leave a step open: updates take unit
vectors and normalise their result, the encoder has biases, and KL leaves out the constant ‖μ‖² /
2σ₀².
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrec.models import MacridVAE
from jaxrec.models._histories import Pairs
from jaxrec.typing import Array


class RecBoleMacridVAE(MacridVAE):
    """RecBole's variant of `MacridVAE` (recbole/model/general_recommender/macridvae.py).

    The user's row is normalised and dropped out once, before the groups weight it, and the
    encoder's output is lv, not −lv.

    >>> RecBoleMacridVAE(n_items=4).n_blocks
    1
    """

    def _log_variance(self, output: Array) -> jax.Array:
        return output

    def _weights(self, shares: Array, pairs: Pairs, number: int) -> jax.Array:
        row = pairs.normalised(jnp.ones_like(shares[:, :1]))
        return pairs.dropped(row, self.dropout, draw=2 * number) * shares
