"""Training of autoencoders, whose examples are users with their whole histories: call `fit` with `group=0`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrec.train.loop import Batch
from jaxrec.typing import Array, Key, Model, Scalar, Variables


def annealed(step: Array, *, cap: Scalar = 1.0, total: Scalar = 20_000) -> Array:
    """β = min(cap, (step + 1) / total): grows by 1 / total a step, whatever the cap, as VALID's released code has it.

    Args:
        step: steps made before.
        cap: the largest β.
        total: steps until β = 1.

    >>> float(annealed(1999, cap=0.2, total=10_000))
    0.20000000298023224
    """
    return jnp.minimum(cap, (jnp.asarray(step, jnp.float32) + 1) / total)


def objective(
    variables: Variables,
    key: Key,
    batch: Batch,
    *,
    model: Model,
    cap: Scalar = 1.0,
    total: Scalar = 20_000,
    micro_batch: int | None = None,
) -> Array:
    """Negative evidence lower bound, a mean over users: Σ_l −log p_l + β KL, with β `annealed`.

    Args:
        variables: of the model.
        key: for the model's noise.
        batch: users [B], of `fit(..., group=0)`.
        model: gives both halves [B] by `model.apply(variables, users, method="bound", at_random=True)`, such as
            `models.VALID`. Batches are to be random draws from the users of its histories: where `fit` gets the most
            active users alone, the model has to be made of theirs, or the loss may be NaN.
        cap: of β.
        total: steps until β = 1.
        micro_batch: if given, so many users are taken at a time: the same loss and gradient in less memory.

    Raises:
        ValueError: for batches of positives, and for a `micro_batch` that does not divide the batch.
    """
    if batch.where.ndim != 1 or batch.items.ndim != 2 or batch.items.shape[1] != 0:
        raise ValueError(f"batch.items has shape {batch.items.shape}; users alone are needed: call fit with group=0")
    size = len(batch.users) if micro_batch is None else min(micro_batch, len(batch.users))
    if size < 1 or len(batch.users) % size:
        raise ValueError(
            f"micro_batch={micro_batch} does not divide the batch of {len(batch.users)} users; give one that does"
        )

    def part(users: Array, where: Array) -> Array:
        halves = model.apply(variables, users, method="bound", at_random=True, rngs={"noise": key})
        nll, divergence = (jnp.where(where, half, 0).sum() for half in halves)
        return nll + annealed(batch.step, cap=cap, total=total).astype(nll.dtype) * divergence

    count = jnp.maximum(batch.where.sum(), 1).astype(jnp.result_type(float))
    if size == len(batch.users):
        return part(batch.users, batch.where) / count
    parts = jax.tree.map(lambda x: x.reshape(-1, size), (batch.users, batch.where))
    return jax.lax.map(jax.checkpoint(lambda one: part(*one)), parts).sum() / count
