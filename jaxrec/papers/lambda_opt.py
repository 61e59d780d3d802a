"""λOpt: fine-grained regularisation learned while training (Chen et al. 2019, KDD, 10.1145/3292500.3330880).

Where each part of the paper is:

| paper | here |
|---|---|
| regularised loss, with coefficients Λ | `optim.regularization.penalty`, `optim.regularization.coefficients` |
| alternating optimisation of Θ and Λ (algorithm 1) | `optim.lambda_opt.alternate` |
| the simulated step, and its derivative in Λ | `optim.lambda_opt.lookahead`, `optim.lambda_opt.hypergradient` |
| optimisers of the released code | `optim.moments.smooth_adam`, `optim.moments.amsgrad` |
| batches of training and validation for a step | `train.lambda_opt.draws` |
| its evaluation, each test item alone | `separate_ranking` |
| tables and figures | `benchmarks/studies/lambda_opt.py` |
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

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
    """Ranks each test item separately, among the items that its user has in neither part, as λOpt's code does.

    Each user's figures are means over its test items, and all users weigh alike. Ties favour the test item in its rank,
    not in the area under the curve. Use it to compare with a paper that did the same: such figures are larger than
    those of `full_ranking`, the more test items a user has.

    Args:
        model: see `jaxrec.evaluate.ranking`.
        variables: the model's variables.
        train: pairs [M, N] that are masked; give train and validation in one to mask both.
        test: pairs [M, N] to find.
        ks: numbers of ranks that count, or one.
        users: ids [U] to evaluate; by default all that have a test pair.
        histories: pairs that the model may see, for a model that knows users by their items; see `full_ranking`.
        block: users scored at a time; results do not depend on it.

    Returns:
        A `Report` with "auc", "recall@k" (called HR@K there) and "ndcg@k" for each user.

    Raises:
        ValueError: as `full_ranking`, and for k outside 1 .. N.
    """
    users = evaluated_users(train, test, users)
    ks = lengths(ks)
    if not ks or not 1 <= ks[0] <= ks[-1] <= train.n_items:
        raise ValueError(f"ks={ks}, but the catalogue has {train.n_items} items; give some of 1 .. {train.n_items}")
    options = {"seen": train, "demoted": test, "key": None, "block": block, "judge": _judge(ks)}
    options["histories"] = histories
    found = ranked(model, variables, users, k=1, **options)[2]
    per_user = {name: np.asarray(values, np.float64) for name, values in found.items()}
    protocol = f"each test item among the user's unknown of {train.n_items}, {train.n_pairs} training pairs masked"
    return Report(users, per_user, {}, None, protocol)


@functools.cache  # one object for each ks, so that what is jitted with it stays compiled
def _judge(ks: tuple[int, ...]) -> Callable[..., dict[str, Array]]:
    """Gives a `judge` of each relevant item alone: "auc", "recall@k", "ndcg@k"."""
    return functools.partial(_each, ks=ks)


def _each(scores: Array, places: tuple[Array, Array], where: Array, *, ks: tuple[int, ...]) -> dict[str, Array]:
    """Figures by rank alone, means of each row's relevant items. Comparing is faster than sorting whole rows."""
    others = where.at[places].set(False, mode="drop")

    def figures(place: tuple[Array, Array]) -> dict[str, Array]:
        row, column = place
        row = jnp.minimum(row, len(scores) - 1)
        beside = scores[row, column], scores[row]
        rank = metrics.rank_alone(*beside, where=others[row])
        found = {"auc": metrics.auc_alone(*beside, where=others[row])}
        found |= {f"recall@{k}": metrics.recall_alone(rank, k=k) for k in ks}
        return found | {f"ndcg@{k}": metrics.ndcg_alone(rank, k=k) for k in ks}

    def of_rows(values: Array) -> Array:
        return jnp.zeros(len(scores), jnp.float32).at[places[0]].add(values, mode="drop")

    found = jax.lax.map(figures, places, batch_size=64)
    n = jnp.maximum(of_rows(jnp.ones(len(places[0]), jnp.float32)), 1)
    return {name: of_rows(values) / n for name, values in found.items()}
