"""What λOpt's steps are made on, in a run of `fit`: batches of training and validation, and the rows they penalise.

    tx    = optim.lambda_opt.alternate(optax.adam(1e-3), lambda_tx, simulated=optim.moments.smooth_adam(1e-3))
    rows  = partial(train.lambda_opt.pairwise_rows, sample=sample)
    draws = partial(train.lambda_opt.draws, train=pairs, valid=valid_pairs, rows=rows)
    state = train.init(key, model, tx)
    state, history = train.fit(state, objective, tx, pairs, touched=draws, epochs=20)

The coefficients are `state.opt_state.lambdas`; the history's loss is with their penalty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxrec.interactions import Interactions, check_interactions
from jaxrec.optim import lambda_opt
from jaxrec.train.loop import Batch
from jaxrec.typing import Array, Key, Objective, Sampler

RowsOf = Callable[[Key, Batch], dict[str, tuple[Array, Array]]]


def draws(
    key: Key,
    batch: Batch,
    *,
    train: Interactions,
    valid: Interactions,
    rows: RowsOf,
    steps: int | None = None,
    valid_objective: Objective | None = None,
) -> lambda_opt.Draw:
    """The batch of a step, another of `train` to look ahead on, and one of `valid`, all of as many examples.

    Args:
        key: of the step; the objective draws from it for the batch, and from others for the other two.
        batch: of the step.
        train: the positives, of which the look-ahead draws pairs with replacement.
        valid: those of validation, drawn likewise.
        rows: function of (key, batch) that gives what is penalised, such as `pairwise_rows` with its sampler bound.
        steps: as `alternate` has it, if that is above 1.
        valid_objective: if another than the training objective, such as one whose negatives are in neither set.

    Differs: the released code goes through both sets in shuffled order, and draws negatives for validation that are in
    neither; the training objective's sampler draws those here, unless `valid_objective` has its own.

    Raises:
        ValueError: for a `valid` without pairs.
    """
    check_interactions(train=train, valid=valid)
    if valid.n_pairs == 0:
        raise ValueError("valid has no pairs; the coefficients are learned from them")
    size = len(batch.users)
    ahead_key, valid_key = jax.random.split(jax.random.fold_in(key, 2))  # 0 and 1 give the keys of a split in two

    def penalised(key: Key) -> tuple[Any, Any]:
        pair_key, own_key = jax.random.split(key)
        now = own_key, _pairs(pair_key, train, size)
        return now, rows(*now)

    if steps is None or steps == 1:
        ahead, ahead_rows = penalised(ahead_key)
    else:
        ahead, ahead_rows = jax.vmap(penalised)(jax.random.split(ahead_key, steps))
    pair_key, own_key = jax.random.split(valid_key)
    validation = own_key, _pairs(pair_key, valid, size)
    return lambda_opt.Draw((key, batch), rows(key, batch), ahead, ahead_rows, validation, valid_objective)


def _pairs(key: Key, pairs: Interactions, size: int) -> Batch:
    """Pairs with replacement, each as likely as another."""
    places = jax.random.randint(key, (size,), 0, len(pairs.indices), dtype=jnp.int32)
    users = jnp.searchsorted(jnp.asarray(pairs.indptr), places, side="right").astype(jnp.int32) - 1
    weights = None if pairs.weights is None else jnp.asarray(pairs.weights)[places]
    return Batch(users, jnp.asarray(pairs.indices)[places], weights, jnp.ones(size, bool))


def pairwise_rows(
    key: Key, batch: Batch, *, sample: Sampler, reduction: Literal["mean", "sum"] = "mean"
) -> dict[str, tuple[Array, Array]]:
    """Rows of "user" and "item" that a `pairwise_objective`, or a `train.mars.objective`, of this sampler penalises.

    A positive counts once for its user and once for its item, and its n negatives 1/n each. Weights of the interactions
    weigh them, as they do the loss.

    Args:
        key: as the objective gets it, so that the negatives are the same.
        batch: as the objective gets it.
        sample: as the objective has it.
        reduction: "mean" over the positives, or "sum" for an objective that is a sum, as that of MARS.

    Returns:
        name -> (ids [R], weights [R]), as `optim.regularization.penalty` takes them.

    Raises:
        ValueError: for another reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r}; give 'mean' or 'sum'")
    negatives = sample(jax.random.split(key)[0], batch.users)
    share = jnp.where(batch.mask, 1.0 if batch.weights is None else batch.weights, 0.0)
    share = share / jnp.where(share.sum() > 0, share.sum(), 1) if reduction == "mean" else share
    of_users = share.reshape(len(batch.users), -1).sum(1)
    of_draws = of_users if len(negatives) == len(of_users) else of_users.sum(keepdims=True)
    of_negatives = jnp.broadcast_to(of_draws[:, None] / negatives.shape[1], negatives.shape)
    items = jnp.concatenate([batch.items.reshape(-1), negatives.reshape(-1)])
    return {
        "user": (batch.users, of_users),
        "item": (items, jnp.concatenate([share.reshape(-1), of_negatives.reshape(-1)])),
    }
