"""VALID in dense PyTorch, the peer of `benchmarks.speed.valid`.

It is written from the description of the released code. Rows of users are dense, groups are arrays
[B, N, K], and the encoder and the decoder process the interests one by one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import functional


class DenseVALID(torch.nn.Module):
    """VALID with R blocks, the gradient stopped before the last, and jaxrec's parameter names."""

    def __init__(
        self, parameters: Mapping[str, np.ndarray], *, blocks: int, temperature: float, deviation: float, dropout: float
    ):
        super().__init__()
        for name, value in parameters.items():
            self.register_parameter(name, torch.nn.Parameter(torch.from_numpy(np.array(value))))
        self.blocks, self.temperature, self.deviation, self.dropout = blocks, temperature, deviation, dropout

    def loss(self, rows: torch.Tensor, beta: float, *, noise: bool = True) -> torch.Tensor:
        """Computes the negative evidence lower bound of dense rows [B, N], as a mean over users."""
        items = functional.normalize(self.item, dim=1)
        x = functional.normalize(self.prototype, dim=1)[None]
        for block in range(1, self.blocks + 1):
            if self.blocks > 1 and block == self.blocks:
                x = x.detach()
            logits = items @ x.transpose(1, 2) / self.temperature
            groups = functional.gumbel_softmax(logits, dim=-1) if noise else logits.softmax(-1)
            if block < self.blocks:
                w = functional.normalize(rows[:, :, None] * groups, dim=1)
                w = functional.dropout(w, self.dropout, training=noise)
                x = functional.normalize(w.transpose(1, 2) @ items, dim=2)
        total, divergence = 0.0, 0.0
        for k in range(groups.shape[2]):
            w = functional.normalize(rows * groups[:, :, k], dim=1)
            hidden = torch.tanh(functional.dropout(w, self.dropout, training=noise) @ self.context + self.context_bias)
            y, t = (hidden @ self.head + self.head_bias).chunk(2, dim=1)
            z, log_variance = functional.normalize(y, dim=1), -t
            if noise:
                z = z + self.deviation * torch.exp(log_variance / 2) * torch.randn_like(z)
            logits = functional.normalize(z, dim=1) @ items.T / self.temperature
            total = total + torch.exp(logits) * groups[:, :, k]
            divergence = divergence + 0.5 * (log_variance.exp() - log_variance - 1).sum(1)
        log_p = functional.log_softmax(torch.log(total), dim=1)
        return (beta * divergence - (rows * log_p).sum(1)).mean()
