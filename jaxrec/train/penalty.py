"""The L2 penalty of graph models: on the rows that a batch looks up, not on whole tables."""

from __future__ import annotations

import jax

from jaxrec._numerics import number
from jaxrec.optim.regularization import penalty
from jaxrec.train.examples import Batch
from jaxrec.train.lambda_opt import penalised_rows
from jaxrec.typing import Key, Objective, Scalar, Variables


def penalised_objective(
    variables: Variables, key: Key, batch: Batch, *, objective: Objective, l2: Scalar = 1e-4
) -> jax.Array:
    """Adds an L2 penalty on the batch's rows of the tables to any objective that samples.

    objective + l2 · ½ mean over positives of (‖u‖² + ‖i‖² + mean over negatives j of ‖j‖²)

    u, i and j are rows of the parameters "user" and "item": E⁽⁰⁾ of a graph model, before it is
    propagated (He et al. 2020, arXiv 2002.02126, use 1e-4). Its strength does not depend on the
    numbers of users and items, unlike that of `optax.add_decayed_weights`, which decays every row
    in every step. The negatives are those that the objective draws from the same key. The weights
    of the interactions weight the mean. For `train.mars.objective` and `train.ultragcn.objective`,
    which are sums over the batch, the penalty is a sum, too.

    Args:
        variables: the model's variables, with "user" [M, ...] and "item" [N, ...] among "params".
        key: typed key, passed to the objective.
        batch: positives [B, P].
        objective: an objective with its sampler bound by `functools.partial` as `sample=`, such as
            `pairwise_objective` or `contrastive_objective`.
        l2: the weight of the penalty, 0 or more.

    Raises:
        ValueError: if `l2` is negative or not finite, the objective binds no sampler or several, or
            the variables have no "user" or "item".

    Differs: papers have one negative; several are averaged, as most losses average them.

    >>> from functools import partial
    >>> import jax, jax.numpy as jnp, jaxrec as jr
    >>> plain = lambda variables, key, batch, *, sample: jnp.zeros(())
    >>> objective = partial(plain, sample=partial(jr.sampling.uniform, n_items=1))
    >>> variables = {"params": {"user": jnp.array([[1.0, 2.0]]), "item": jnp.array([[3.0, 0.0]])}}
    >>> batch = Batch.of(jnp.array([0]), jnp.array([0]))
    >>> float(penalised_objective(variables, jax.random.key(0), batch, objective=objective, l2=2.0))
    23.0
    """
    number("l2", l2, least=0)
    value = objective(variables, key, batch)
    rows = penalised_rows(key, batch, objective=objective)
    return value + penalty(l2 / 2, variables["params"], rows)
