"""λOpt: fine-grained regularisation that is learned during training.

The paper is Chen et al. 2019, KDD, 10.1145/3292500.3330880. Where each part of it is:

| paper | here |
|---|---|
| regularised loss, with coefficients Λ | `optim.regularization.penalty`, `optim.regularization.coefficients` |
| alternating optimisation of Θ and Λ (algorithm 1) | `optim.lambda_opt.alternate` |
| the simulated step, and its derivative in Λ | `optim.lambda_opt.lookahead`, `optim.lambda_opt.hypergradient` |
| optimisers of the released code | `optim.moments.smooth_adam`, `optim.moments.amsgrad` |
| training and validation batches of a step | `train.lambda_opt.draws` |
| the paper's evaluation, which ranks each test item separately | `separate_ranking` |
| tables and figures | `benchmarks/studies/lambda_opt.py` |
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import metrics
from jaxrec.evaluate._kernel import evaluated_users, lengths, ranked
from jaxrec.evaluate.report import Report
from jaxrec.interactions import Interactions
from jaxrec.typing import Array, ArrayLike, Model, Variables


def separate_ranking(
    model: Model,
    variables: Variables,
    train: Interactions,
    test: Interactions,
    *,
    ks: Sequence[int] | int = (50, 100),
    users: ArrayLike | None = None,
    histories: Interactions | None = None,
    block: int | None = None,
) -> Report:
    """Ranks each test item separately, as λOpt's released code does.

    A test item competes with the items that its user has neither in `train` nor in `test`. A user's
    value is the mean over its test items, and all users have the same weight. Tied scores rank the
    test item first, but count as lost in the AUC. Use this function only to compare with a
    paper that used this protocol: its values are larger than those of `full_ranking`, and more so
    for users with many test items.

    Args:
        model: the model; see `jaxrec.evaluate.ranking`.
        variables: the model's variables, as returned by `model.init`.
        train: pairs [M, N] to mask. Pass the union of train and validation to mask both.
        test: pairs [M, N] to find.
        ks: cut-offs, or a single one.
        users: ids [U] of the users to evaluate; by default all that have a test pair.
        histories: pairs that the model may see, if it scores users by their histories; see
            `full_ranking`.
        block: number of users scored at a time. Results do not depend on it.

    Returns:
        A `Report` with "auc", "recall@k" (HR@K in the paper) and "ndcg@k" for each user.

    Raises:
        ValueError: as `full_ranking`, and if a k is outside 1 to N.
    """
    users = evaluated_users(train, test, users)
    ks = lengths(ks)
    if not ks or not 1 <= ks[0] <= ks[-1] <= train.n_items:
        raise ValueError(f"ks={ks}, but the catalogue has {train.n_items} items; give values from 1 to {train.n_items}")
    options: dict[str, Any] = {"seen": train, "demoted": test, "key": None, "block": block, "judge": _judge(ks)}
    options["histories"] = histories
    found = ranked(model, variables, users, k=1, **options)[2]
    per_user = {name: np.asarray(values, np.float64) for name, values in found.items()}
    protocol = f"each test item among the unknown ones of {train.n_items} items, {train.n_pairs} training pairs masked"
    return Report(users, per_user, {}, None, protocol)


@functools.cache  # one object for each ks, so that what is jitted with it stays compiled
def _judge(ks: tuple[int, ...]) -> Callable[..., dict[str, jax.Array]]:
    """Returns a `judge` that ranks each relevant item separately: "auc", "recall@k", "ndcg@k"."""
    return functools.partial(_each, ks=ks)


def _each(scores: Array, places: tuple[Array, Array], where: Array, *, ks: tuple[int, ...]) -> dict[str, jax.Array]:
    """Computes the metrics of each relevant item, and returns their means for each row.

    Comparing an item with its row is faster than sorting the row.
    """
    others = jnp.asarray(where).at[places].set(False, mode="drop")

    def of_place(place: tuple[Array, Array]) -> dict[str, jax.Array]:
        row, column = place
        row = jnp.minimum(row, len(scores) - 1)  # padding points past the end; `of_rows` drops it
        compared = scores[row, column], scores[row]
        rank = metrics.rank_alone(*compared, where=others[row])
        found = {"auc": metrics.auc_alone(*compared, where=others[row])}
        found |= {f"recall@{k}": metrics.recall_alone(rank, k=k) for k in ks}
        return found | {f"ndcg@{k}": metrics.ndcg_alone(rank, k=k) for k in ks}

    def of_rows(values: Array) -> jax.Array:
        return jnp.zeros(len(scores), jnp.float32).at[places[0]].add(values, mode="drop")

    found = jax.lax.map(of_place, places, batch_size=64)
    n = jnp.maximum(of_rows(jnp.ones(len(places[0]), jnp.float32)), 1)
    return {name: of_rows(values) / n for name, values in found.items()}
