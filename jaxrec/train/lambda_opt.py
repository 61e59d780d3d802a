"""Draws what λOpt's steps need in `fit`: training and validation batches, and rows to penalise.

    draws = partial(train.lambda_opt.draws, objective=objective, train=pairs, valid=valid_pairs)
    tx    = optim.lambda_opt.alternate(optax.adam(1e-3), lambda_tx, draws=draws, simulated=smooth_adam(1e-3))
    state = train.init(key, model, tx)
    state, log = train.fit(state, objective, tx, pairs, epochs=20)

The coefficients are `state.opt_state.lambdas`. The loss in the log includes their penalty. For a
model that knows users by their items, give `draws` the examples `singles(pairs, histories=...)` and
`singles(valid_pairs, histories=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec._lookup import search
from jaxrec._partials import flattened
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.optim import lambda_opt
from jaxrec.train import mars, ultragcn
from jaxrec.train.examples import Batch, Groups
from jaxrec.typing import Array, Key, Objective

RowsOf = Callable[[Key, Batch], dict[str, tuple[Array, Array]]]


def draws(
    key: Key,
    batch: Batch,
    *,
    objective: Objective,
    train: Interactions | Groups,
    valid: Interactions | Groups,
    rows: RowsOf | None = None,
    steps: int | None = None,
    valid_objective: Objective | None = None,
) -> lambda_opt.Draw:
    """Draws a look-ahead batch of `train`, a batch of `valid`, and the rows that each penalises.

    Args:
        key: the step's typed key. The objective uses it for the step's batch; the other two batches
            get keys derived from it.
        batch: the step's batch.
        objective: the training objective, with its sampler bound as `sample=`; see
            `penalised_rows`.
        train: the positives, from which the look-ahead draws pairs with replacement; or `singles`
            of them, for batches that carry histories.
        valid: the positives of validation, drawn in the same way; or `singles` of them.
        rows: function of (key, batch) that returns the rows to penalise; None uses `penalised_rows`
            of the objective.
        steps: number of look-ahead steps, the same as in `optim.lambda_opt.alternate`; None is 1.
        valid_objective: the objective on validation, such as one whose negatives are in neither
            set; None uses the training objective.

    Raises:
        ValueError: if `valid` has no pairs, or `rows` is not given and the objective binds no
            sampler or several.

    Differs: the released code goes through both sets in shuffled order, and draws negatives for
    validation that are in neither set. Here the training objective's sampler draws them, unless
    `valid_objective` has its own.
    """
    given = {"train": train, "valid": valid}
    check_interactions(**{name: pairs for name, pairs in given.items() if not isinstance(pairs, Groups)})
    if len(valid.items if isinstance(valid, Groups) else valid.indices) == 0:
        raise ValueError("valid has no pairs; the coefficients are learned from them")
    rows_of: RowsOf = partial(penalised_rows, objective=objective) if rows is None else rows
    size = len(batch.users)
    # fold_in(key, 0) and fold_in(key, 1) may be the keys that the objective gets from split(key).
    ahead_key, valid_key = jax.random.split(jax.random.fold_in(key, 2))

    def penalised(key: Key) -> tuple[Any, Any]:
        pair_key, own_key = jax.random.split(key)
        now = own_key, _pairs(pair_key, train, size)
        return now, rows_of(*now)

    if steps is None or steps == 1:
        ahead, ahead_rows = penalised(ahead_key)
    else:
        ahead, ahead_rows = jax.vmap(penalised)(jax.random.split(ahead_key, steps))
    pair_key, own_key = jax.random.split(valid_key)
    validation = own_key, _pairs(pair_key, valid, size)
    return lambda_opt.Draw(rows_of(key, batch), ahead, ahead_rows, validation, valid_objective)


def penalised_rows(key: Key, batch: Batch, *, objective: Objective) -> dict[str, tuple[Array, Array]]:
    """Returns the rows of "user" and "item" that an objective looks up, with their weights in it.

    A positive counts once for its user and once for its item; each of its n negatives counts 1/n.
    The weights of the interactions apply as in the loss. `train.mars.objective` and
    `train.ultragcn.objective` are sums over the batch; all other objectives are means.

    Args:
        key: the key that the objective gets, so that the negatives are the same.
        batch: the batch that the objective gets.
        objective: the objective, with its sampler bound as `sample=`.

    Returns:
        name -> (ids [R], weights [R]), as `optim.regularization.penalty` takes them.

    Raises:
        ValueError: if the objective binds no sampler, or several.
    """
    found = list(_samplers(objective))
    if len(found) != 1:
        raise ValueError(
            f"the objective binds {len(found)} samplers as sample=, and one is needed to tell which rows "
            "to penalise; pass rows="
        )
    ((function, options),) = found
    weights: Array | None
    users, items, where, weights = batch.users[:, 0], batch.items, batch.where, batch.weights
    sample_key, positive_key = jax.random.split(key)
    if function is mars.objective:  # it takes positives one by one, and may draw others
        users, items, where, weights = batch.pairs()
        if options.get("positives") is not None:
            users, items = options["positives"](positive_key, users.shape)
            weights = None
        items, where = items[:, None], where[:, None]
        weights = None if weights is None else weights[:, None]
    negatives = options["sample"](sample_key, users)
    share = jnp.where(where, 1.0 if weights is None else weights, 0.0)
    if function not in (mars.objective, ultragcn.objective):
        share = share / jnp.where(share.sum() > 0, share.sum(), 1)
    of_users = share.sum(1)
    # Negatives [1, n] are shared: they count for all users of the batch.
    of_draws = of_users if len(negatives) == len(of_users) else of_users.sum(keepdims=True)
    of_negatives = jnp.broadcast_to(of_draws[:, None] / negatives.shape[1], negatives.shape)
    looked_up = jnp.concatenate([items.reshape(-1), negatives.reshape(-1)])
    return {
        "user": (users, of_users),
        "item": (looked_up, jnp.concatenate([share.reshape(-1), of_negatives.reshape(-1)])),
    }


def _samplers(value: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Yields each objective that binds a sampler in nested partials, and what it binds.

    Samplers inside samplers do not count.
    """
    if isinstance(value, partial):
        value = flattened(value)
    if isinstance(value, partial) and "sample" in value.keywords:
        yield value.func, value.keywords
    elif isinstance(value, partial):
        yield from _samplers([value.func, *value.args, *value.keywords.values()])
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _samplers(part)


def _pairs(key: Key, pairs: Interactions | Groups, size: int) -> Batch:
    """Draws pairs, or examples, with replacement, all with equal probability."""
    if isinstance(pairs, Groups):
        places = jax.random.randint(key, (size,), 0, pairs.n, dtype=jnp.int32)
        return jax.tree.map(jnp.asarray, pairs).batch(places)
    places = jax.random.randint(key, (size,), 0, len(pairs.indices), dtype=jnp.int32)
    users = search(jnp.asarray(pairs.indptr), places, side="right") - 1
    weights = None if pairs.weights is None else jnp.asarray(pairs.weights)[places]
    return Batch.of(users, jnp.asarray(pairs.indices)[places], weights=weights)
