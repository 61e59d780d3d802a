"""A user's code with types, which mypy checks; it does not run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

import jaxrec as jr


def trained(train: jr.Interactions, valid: jr.Interactions) -> tuple[jr.train.State, jr.train.Log]:
    """Trains matrix factorisation with validation."""
    model = jr.models.MF(train.n_users, train.n_items, dim=16, score=jr.models.cosine)
    tx = optax.adam(1e-2)
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=10)
    loss = partial(jr.losses.mml, margins=(0.5, 0.7), weights=(0.5, 0.5))
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)

    def validate(variables: Mapping[str, Any]) -> jr.evaluate.Report:
        return jr.evaluate.full_ranking(model, variables, train, valid, ks=(10,))

    state = jr.train.init(jax.random.key(0), model, tx)
    stopping = jr.train.EarlyStopping("ndcg@10", patience=3)
    return jr.train.fit(state, objective, tx, train, epochs=3, validate=validate, stopping=stopping)


def solved(train: jr.Interactions) -> jr.models.MF:
    """Fits RG2 and ranks."""
    model, variables, _ = jr.solvers.rg2.fit(train, dim=8, regularization=0.1, key=jax.random.key(0))
    scores, items = jr.evaluate.top_k(model, variables, np.arange(3), k=5, seen=train)
    print(scores.shape, items.tolist())
    similar = jr.evaluate.scorer(lambda table, items: table[items] @ table.T)
    jr.evaluate.top_k(similar, variables["params"]["item"], np.arange(3), k=5)
    return model


def my_loss(pos: jr.typing.Array, neg: jr.typing.Array, *, where: jr.typing.Array | None = None) -> jax.Array:
    """A loss of the user's own."""
    return jr.losses.bpr(pos, neg, where=where) ** 2


def values(loss: jr.typing.Loss, key: jr.typing.Key) -> float:
    """Calls losses, metrics and samplers."""
    pos, neg = jax.random.normal(key, (3,)), jax.random.normal(key, (3, 4))
    total = jr.losses.mean(loss(pos, neg)) + jr.losses.mean(my_loss(pos, neg))
    changed = jr.losses.softmax(pos, neg).at[0].set(0.0)
    items = jr.sampling.uniform(key, np.arange(3), n_items=9, n=4)
    ndcg = jr.metrics.ndcg(np.zeros((3, 4), bool), np.ones(3), k=2)
    return float(total) + float(changed.sum()) + float(items.max()) + float(ndcg.mean())
