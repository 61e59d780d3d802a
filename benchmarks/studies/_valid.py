"""The data and the methods of the study of VALID."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxrec as jr
from benchmarks.studies._study import fitted, quietly
from jaxrec.data import datasets, splits
from jaxrec.interactions import IdMap

# EPOCHS is the maximum, EVERY the number of epochs between validations.
DIM, METRIC, EPOCHS, EVERY = 64, "recall@20", 300, 3
STOPPING = jr.train.EarlyStopping(METRIC, patience=5, ties=True)
SHOWN = ("recall@20", "recall@50", "ndcg@20", "ndcg@50")

Fitted = tuple[Any, jr.typing.Variables, jr.train.Log | None]


class Part(NamedTuple):
    """A split.

    If whole users are held out, `histories` has the pairs that a model sees of them, on "valid" and
    on "test".
    """

    name: str
    train: jr.Interactions
    valid: jr.Interactions
    test: jr.Interactions
    histories: Mapping[str, jr.Interactions] | None = None

    def judged(self, model: Any, variables: jr.typing.Variables, on: str, *, ks: tuple[int, ...]) -> jr.evaluate.Report:
        """Ranks all items except those of train, or of the histories, for "valid" or "test"."""
        known = self.train if self.histories is None else self.histories[on]
        histories = known if getattr(model, "needs_histories", False) else None
        return jr.evaluate.full_ranking(model, variables, known, getattr(self, on), ks=ks, histories=histories)


@lru_cache(maxsize=1)
def prepare(data: str) -> Part:
    """Returns the split, which is the same for all seeds."""
    found = datasets.load(data.removesuffix("-random").removesuffix("-users"))
    if data in ("citeulike-a-valid", "gowalla-valid"):
        return Part(data, *compacted(splits.Split(found.train, found.valid, found.test)))
    whole = jr.Interactions.from_pairs(*found.interactions.pairs())
    order = partial(splits.random_order, key=jax.random.key(0))
    if data != "ml-1m-users":
        return Part(data, *compacted(splits.ratio(whole, order=order)))
    with quietly():
        held = splits.held_out_users(jax.random.key(1), whole, n_valid=1000, n_test=1000, order=order)
    return Part(data, held.train, held.valid, held.test, {"valid": held.valid_history, "test": held.test_history})


def compacted(split: splits.Split) -> splits.Split:
    """Returns the split without items that have no train pair."""
    with quietly():
        kept = splits.drop_cold(split)
    ids = IdMap(np.arange(split.train.n_users), np.arange(split.train.n_items))
    return splits.compact(kept, ids)[0]


def judge(model: Any, part: Part) -> Callable[[jr.typing.Variables], jr.evaluate.Report]:
    """Returns the function that evaluates on validation."""
    return lambda variables: part.judged(model, variables, "valid", ks=(20,))


def trained(part: Part, key: Any, model: Any, objective: Any, tx: Any, *, limit: int | None, **options: Any) -> Fitted:
    """Trains until validation no longer improves, or for at most `limit` epochs."""
    options |= {"epochs": limit or EPOCHS, "every": EVERY, "stopping": STOPPING, "validate": judge(model, part)}
    return fitted(key, model, objective, tx, part.train, **options)


# ---------------------------------------------------------------------- autoencoders

INTERESTS = {"n_interests": 4, "n_blocks": 2, "width": DIM}  # the defaults of VALID
SETTINGS = {  # of the released configurations; other data sets use those of citeulike-a
    "citeulike-a": ({"decoder_temperature": 0.1, "deviation": 0.1}, {"cap": 1.0, "total": 20_000}),
    "gowalla-valid": ({"decoder_temperature": 0.08, "deviation": 0.1}, {"cap": 0.2, "total": 10_000}),
}


def encoded(part: Part, key: Any, model: Any, *, limit: int | None, batch_size: int, **of_objective: float) -> Fitted:
    """Trains an autoencoder, whose examples are users."""
    objective = partial(jr.train.autoencoders.objective, model=model, **of_objective)
    options = {"limit": limit, "batch_size": batch_size, "examples": jr.train.by_user}
    return trained(part, key, model, objective, optax.adam(1e-3), **options)


def interests(part: Part, key: Any, *, kind: Any = jr.models.VALID, limit: int | None, **options: Any) -> Fitted:
    """Trains VALID or MacridVAE with the released setting of the data set, 512 users per step."""
    of_model, of_objective = SETTINGS.get(part.name, SETTINGS["citeulike-a"])
    model = kind(part.train.n_items, **{"dim": DIM, "width": DIM, **of_model, **options})
    return encoded(part, key, model, limit=limit, batch_size=512, **of_objective)


BLOCKS = partial(interests, n_interests=INTERESTS["n_interests"])


def attended(attention: Callable, part: Part, key: Any, *, temperature: float = 0.5, **options: Any) -> Fitted:
    """Trains VALID with attention among its prototypes, of temperature τ_sa."""
    return BLOCKS(part, key, attention=partial(attention, temperature=temperature), **options)


def multvae(part: Part, key: Any, *, cap: float, limit: int | None) -> Fitted:
    """Trains MultVAE with its released sizes, 500 users per step.

    β reaches its cap after 60 epochs, because the data sets are smaller than those of its paper.
    """
    total = 60 * -(-np.count_nonzero(part.train.user_degrees) // 500) / cap
    model = jr.models.MultVAE(part.train.n_items)
    return encoded(part, key, model, limit=limit, batch_size=500, cap=cap, total=total)


def recvae(part: Part, key: Any, *, divergence_weight: float, limit: int | None) -> Fitted:
    """Trains RecVAE with its released sizes; an epoch is four passes."""
    model = jr.models.RecVAE(part.train.n_items, divergence_weight=divergence_weight)
    options = {"validate": judge(model, part), "stopping": STOPPING, "progress": False}
    train, tx, epochs = jr.train.autoencoders.alternating, optax.adam(5e-4), limit or EPOCHS
    state, log = train(key, model, tx, part.train, epochs=epochs, **options)
    return model, state.variables, log


# ---------------------------------------------------------------------- other models


def cosines(
    part: Part, key: Any, *, loss: Callable, simplex: bool = False, limit: int | None, **options: Any
) -> Fitted:
    """Trains MF or SimpleX with a loss of cosines, and 1,024 negatives that a batch shares.

    The gate and the pool of SimpleX on Gowalla are those of its configuration.
    """
    train = part.train
    if simplex:
        pool = jr.models.MeanPool() if part.name != "gowalla-valid" else jr.models.UserAttention()
        gate = 0.6 if part.name != "gowalla-valid" else 0.8
        model = jr.models.SimpleX(train.n_users, train.n_items, dim=DIM, gate=gate, pool=pool, length=100)
    else:
        model = jr.models.MF(train.n_users, train.n_items, dim=DIM, scale=1e-4, score=jr.models.cosine)
    draw = partial(jr.sampling.uniform, n_items=train.n_items, n=1024)
    loss, sample = partial(loss, **options), partial(jr.sampling.shared, sample=draw)
    # SimpleX leaves the positive out of the history, so its examples must be single pairs.
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample, leave_out=simplex)
    options = {"batch_size": 256, "examples": partial(jr.train.groups, n=16)}
    if simplex:
        options = {"batch_size": 1024, "examples": partial(jr.train.singles, histories=train)}
    return trained(part, key, model, objective, optax.adam(1e-2), limit=limit, **options)


def directau(part: Part, key: Any, *, learning_rate: float, weight: float, limit: int | None) -> Fitted:
    """Trains DirectAU on matrix factorisation: alignment and uniformity, without negatives."""
    model = jr.models.MF(part.train.n_users, part.train.n_items, dim=DIM, scale=0.1)
    loss = partial(jr.losses.directau, weight=weight)
    objective = partial(jr.train.vectors_objective, model=model, loss=loss)
    tx = optax.chain(optax.add_decayed_weights(1e-6), optax.adam(learning_rate))
    return trained(part, key, model, objective, tx, limit=limit, batch_size=1024)


def lightgcn(part: Part, key: Any, *, learning_rate: float, limit: int | None, epochs: int | None = None) -> Fitted:
    """Trains LightGCN with three layers, BPR and one uniform negative, as in its paper.

    With a number of epochs it has a schedule, and the last epoch is evaluated.
    """
    model = jr.models.LightGCN(part.train, dim=DIM, layers=3, scale=0.1)
    sample = partial(jr.sampling.uniform, n_items=part.train.n_items, n=1)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    rate, size = learning_rate, 8192
    if epochs is not None:
        rate = optax.cosine_decay_schedule(learning_rate, epochs * -(-part.train.n_pairs // size))
    tx = optax.chain(optax.add_decayed_weights(1e-7), optax.adam(rate))
    if epochs is None:
        return trained(part, key, model, objective, tx, limit=limit, batch_size=size)
    options = {"epochs": epochs, "every": epochs, "validate": judge(model, part), "batch_size": size}
    return fitted(key, model, objective, tx, part.train, **options)


def solved(fit: Callable, part: Part, key: Any, *, limit: int | None, **setting: float) -> Fitted:
    """Trains by ALS until validation ends it."""
    model = jr.models.MF(part.train.n_users, part.train.n_items, dim=DIM)
    options = {"stopping": jr.train.EarlyStopping(METRIC, patience=3), "tolerance": None, "progress": False}
    validate, sweeps = judge(model, part), limit or 30
    return fit(part.train, dim=DIM, key=key, sweeps=sweeps, validate=validate, **options, **setting)


def ease(part: Part, key: Any, *, regularization: float, limit: int | None) -> Fitted:
    """Fits EASE in closed form."""
    model, variables, log = jr.solvers.ease.fit(part.train, regularization=regularization)
    return model, variables, log.append({"epoch": 0, METRIC: judge(model, part)(variables).means[METRIC]})
