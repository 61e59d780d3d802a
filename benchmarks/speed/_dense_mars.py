"""MARS with its released rule in dense PyTorch, the peer of `benchmarks.speed.mars`.

It is written from the description of the rule.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import functional


class _PushAndPull(torch.autograd.Function):
    """Computes Σ_b ([γ − g(u, p) + g(u, q)]₊ + pull_weight (1 − g(u, p))).

    The gradient is the hand-written one of the released code. It takes facets [B, K, D] on the
    sphere, shares θ [B, K] and margins [B].
    """

    @staticmethod
    def forward(ctx, theta, u, p, q, margin, pull_weight):
        to_p, to_q = (u * p).sum(-1), (u * q).sum(-1)
        pos, neg = (theta * to_p).sum(1), (theta * to_q).sum(1)
        pushed = torch.relu(margin - pos + neg)
        active = pushed > 0
        pulled = active | (pos < 1) if pull_weight else active
        ctx.save_for_backward(u, p, q, to_p, to_q, active.to(u.dtype), pulled.to(u.dtype))
        ctx.pull_weight = pull_weight
        return (pushed + pull_weight * (1 - pos)).sum()

    @staticmethod
    def backward(ctx, slope):
        u, p, q, to_p, to_q, active, pulled = ctx.saved_tensors
        of_theta = (to_q - to_p) * active[:, None] - ctx.pull_weight * to_p
        to_p, to_q, active, pulled = to_p[..., None], to_q[..., None], active[:, None, None], pulled[:, None, None]
        of_u = (q - to_q * u) * active - (p - to_p * u) * pulled
        of_p, of_q = (to_p * p - u) * pulled, (u - to_q * q) * active
        return *(slope * gradient for gradient in (of_theta, of_u, of_p, of_q)), None, None


class DenseMARS(torch.nn.Module):
    """Free facets as embeddings with dense gradients.

    Each forward pass first renormalises all rows to the sphere.

    Args:
        tables: initial tables: "user" [M, K, D], "item" [N, K, D] and the logits "theta" [M, K].
        learning_rate: learning rate of plain SGD, for all three.
        passes: number of forward passes per step: 2 as in the released code, one for the positives
            and one for the negatives; or 1 for both.
    """

    def __init__(self, tables: Mapping[str, np.ndarray], *, learning_rate: float, passes: int):
        super().__init__()
        self.facets, self.passes = tables["user"].shape[1:], passes
        for name, table in tables.items():
            start = torch.tensor(np.asarray(table)).reshape(len(table), -1)
            setattr(self, name, torch.nn.Embedding.from_pretrained(start, freeze=False))
        self.optimiser = torch.optim.SGD(self.parameters(), lr=learning_rate)

    @torch.no_grad()
    def renormalise(self) -> None:
        """Renormalises all rows of both tables, in place."""
        for side in (self.user, self.item):
            table = side.weight.view(-1, *self.facets)
            table.div_(torch.linalg.vector_norm(table, dim=-1, keepdim=True))

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns facets of users [B, K, D] and items [n, K, D], after renormalising all rows."""
        self.renormalise()
        return self.user(users).view(-1, *self.facets), self.item(items).view(-1, *self.facets)

    def step(
        self,
        users: torch.Tensor,
        positives: torch.Tensor,
        negatives: torch.Tensor,
        margin: torch.Tensor,
        *,
        pull_weight: float,
        facet_weight: float,
        alpha: float = 0.1,
    ) -> float:
        """Takes one step on triples [B] with margins [B], and returns the loss before it."""
        if self.passes == 2:
            u, p = self(users, positives)
            _, q = self(users, negatives)
        else:
            u, v = self(users, torch.cat([positives, negatives]))
            p, q = v.split(len(users))
        theta = torch.softmax(self.theta(users), 1)
        loss = _PushAndPull.apply(theta, u, p, q, margin, pull_weight)
        first, second = torch.triu_indices(self.facets[0], self.facets[0], 1)
        closeness = (u[:, first] * u[:, second]).sum((0, 2))
        loss = loss + facet_weight * functional.softplus(-alpha * closeness).sum() / alpha
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item()

    def tables(self) -> dict[str, np.ndarray]:
        """Returns copies of the parameters, with rows on the sphere."""
        self.renormalise()
        sizes = {"user": self.facets, "item": self.facets, "theta": self.facets[:1]}
        return {
            name: getattr(self, name).weight.detach().numpy().reshape(-1, *size).copy() for name, size in sizes.items()
        }
