"""The methods that the study of VALID compares: how each is trained, and the grid of its hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import optax

import jaxrec as jr

DIM, USERS = 64, 512
EVERY, PATIENCE, METRIC = 3, 5, "recall@20"  # epochs between looks, and looks without a gain that end a run
EPOCHS = 300

Fitted = tuple[Any, jr.typing.Variables, jr.train.History | None]


class Part(NamedTuple):
    """One split; where users are held out whole, `histories` are what is known of them by split."""

    name: str
    train: jr.Interactions
    valid: jr.Interactions
    test: jr.Interactions
    histories: Mapping[str, jr.Interactions] | None = None

    def judged(
        self, model: Any, variables: jr.typing.Variables, split: str, *, ks: tuple[int, ...]
    ) -> jr.evaluate.Report:
        """All items ranked but those of train, or of the histories, for the users of "valid" or "test"."""
        known = self.train
        if self.histories is not None:
            known = self.histories[split]
            if hasattr(model, "history"):
                model, variables = jr.models.for_users(model, variables, known)
        return jr.evaluate.full_ranking(model, variables, known, getattr(self, split), ks=ks)


class Method(NamedTuple):
    """How a model is trained, and what is compared on validation.

    Attributes:
        train: gives the model.
        grid: values by hyperparameter.
        by_history: users are known by their histories alone.
        drawn: seeds make a difference.
    """

    train: Callable[..., Fitted]
    grid: Mapping[str, tuple[Any, ...]] = {}
    by_history: bool = False
    drawn: bool = True


def judge(model: Any, part: Part) -> Callable[[jr.typing.Variables], jr.evaluate.Report]:
    """What validation sees."""
    return lambda variables: part.judged(model, variables, "valid", ks=(20,))


def fitted(
    part: Part, key: Any, model: Any, objective: Any, tx: Any, *, limit: int | None, every: int = EVERY, **options: Any
) -> Fitted:
    """Trained until validation no longer gets better; or for so many epochs at most."""
    rule = jr.train.EarlyStopping(METRIC, patience=PATIENCE, ties=True)
    state, history = jr.train.fit(
        jr.train.init(key, model, tx),
        objective,
        tx,
        part.train,
        epochs=limit or EPOCHS,
        validate=judge(model, part),
        every=every,
        stopping=rule,
        progress=False,
        **options,
    )
    return model, state.variables, history


# ---------------------------------------------------------------------- autoencoders

SETTINGS = {  # of the released configurations; sets without one take citeulike-a's
    "citeulike-a": ({"decoder_temperature": 0.1, "deviation": 0.1}, {"cap": 1.0, "total": 20_000}),
    "gowalla-valid": ({"decoder_temperature": 0.08, "deviation": 0.1}, {"cap": 0.2, "total": 10_000}),
}


def interests(
    part: Part,
    key: Any,
    *,
    kind: Callable[..., Any] = jr.models.VALID,
    limit: int | None,
    **options: Any,
) -> Fitted:
    """VALID or MacridVAE at the released setting of the set, 512 users a step."""
    of_model, of_objective = SETTINGS.get(part.name, SETTINGS["citeulike-a"])
    model = kind(part.train, **{"dim": DIM, "width": DIM, **of_model, **options})
    objective = partial(jr.train.autoencoders.objective, model=model, **of_objective)
    return fitted(part, key, model, objective, optax.adam(1e-3), limit=limit, batch_size=USERS, group=0)


def multvae(part: Part, key: Any, *, cap: float, limit: int | None) -> Fitted:
    """At its released sizes, 500 users a step; β reaches its cap in 60 epochs, as a smaller set needs."""
    model = jr.models.MultVAE(part.train)
    total = 60 * -(-np.count_nonzero(part.train.user_degrees) // 500) / cap
    objective = partial(jr.train.autoencoders.objective, model=model, cap=cap, total=total)
    return fitted(part, key, model, objective, optax.adam(1e-3), limit=limit, batch_size=500, group=0)


def recvae(part: Part, key: Any, *, divergence_weight: float, limit: int | None) -> Fitted:
    """At its released sizes; an epoch is four passes."""
    model = jr.models.RecVAE(part.train, divergence_weight=divergence_weight)
    state, history = jr.train.autoencoders.alternating(
        key,
        model,
        optax.adam(5e-4),
        part.train,
        epochs=limit or EPOCHS,
        validate=judge(model, part),
        stopping=jr.train.EarlyStopping(METRIC, patience=PATIENCE, ties=True),
        progress=False,
    )
    return model, state.variables, history


# ---------------------------------------------------------------------- one vector a user, or none


def ccl(part: Part, key: Any, *, simplex: bool, margin: float, weight: float, limit: int | None) -> Fitted:
    """Cosines, 1,024 negatives that a batch shares; SimpleX's gate and pool are its configuration's on Gowalla."""
    train = part.train
    if simplex:
        pool = jr.models.MeanPool() if part.name != "gowalla-valid" else jr.models.UserAttention()
        gate = 0.6 if part.name != "gowalla-valid" else 0.8
        model = jr.models.SimpleX(train, dim=DIM, gate=gate, pool=pool, length=100)
    else:
        model = jr.models.MF(train.n_users, train.n_items, dim=DIM, scale=1e-4, score=jr.models.cosine)
    draw = partial(jr.sampling.uniform, n_items=train.n_items, n=1024)
    loss = partial(jr.losses.ccl, margin=margin, weight=weight)
    sample = partial(jr.sampling.shared, sample=draw)
    # SimpleX leaves the positive out of the history, so that its examples are single pairs
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample, leave_out=simplex)
    options = {"batch_size": 1024} if simplex else {"batch_size": 256, "group": 16}
    return fitted(part, key, model, objective, optax.adam(1e-2), limit=limit, **options)


def lightgcn(part: Part, key: Any, *, learning_rate: float, limit: int | None) -> Fitted:
    """Three layers, BPR, one uniform negative, as its paper; L2 on whole tables."""
    model = jr.models.LightGCN(part.train, dim=DIM, layers=3, scale=0.1)
    sample = partial(jr.sampling.uniform, n_items=part.train.n_items, n=1)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    tx = optax.chain(optax.add_decayed_weights(1e-7), optax.adam(learning_rate))
    return fitted(part, key, model, objective, tx, limit=limit, batch_size=8192)


def solved(fit: Callable, part: Part, key: Any, *, limit: int | None, **setting: float) -> Fitted:
    """ALS, ended by validation."""
    model = jr.models.MF(part.train.n_users, part.train.n_items, dim=DIM)
    variables, history = fit(
        part.train,
        dim=DIM,
        key=key,
        tolerance=None,
        sweeps=limit or 30,
        validate=judge(model, part),
        stopping=jr.train.EarlyStopping(METRIC, patience=3),
        progress=False,
        **setting,
    )
    return model, variables, history


def ease(part: Part, key: Any, *, regularization: float, limit: int | None) -> Fitted:
    """The closed form; nothing is drawn."""
    model, variables = jr.solvers.ease.fit(part.train, regularization=regularization)
    return (
        model,
        variables,
        jr.train.History().append({"epoch": 0, METRIC: judge(model, part)(variables).means[METRIC]}),
    )


INTERESTS = {"n_interests": 4, "n_blocks": 2, "width": DIM}  # of VALID, where nothing else is said
BLOCKS = partial(interests, n_interests=INTERESTS["n_interests"])
by_history = partial(Method, by_history=True)
CCL = {"margin": (0.4, 0.7), "weight": (5.0, 10.0, 25.0, 50.0, 100.0)}
METHODS = {
    "VALID": by_history(BLOCKS),
    "MacridVAE": by_history(partial(BLOCKS, kind=jr.models.MacridVAE)),
    "VALID, unrolled": by_history(partial(BLOCKS, gradient=jr.models.implicit.unrolled)),
    "VALID, one step": by_history(partial(BLOCKS, gradient=jr.models.implicit.one_step)),
    "VALID, straight through": by_history(partial(BLOCKS, gradient=jr.models.implicit.straight_through)),
    "VALID, cosine attention": by_history(partial(BLOCKS, attention=jr.models.attention.cosine)),
    "VALID, CoDA": by_history(partial(BLOCKS, attention=jr.models.attention.coda)),
    "MultVAE": by_history(multvae, {"cap": (0.2, 1.0)}),
    "RecVAE": by_history(recvae, {"divergence_weight": (0.005, 0.02)}),
    "MF, CCL": Method(partial(ccl, simplex=False), CCL),
    "SimpleX": Method(partial(ccl, simplex=True), CCL),
    "LightGCN": Method(lightgcn, {"learning_rate": (3e-3, 1e-2)}),
    "RG2": Method(partial(solved, jr.solvers.rg2.fit), {"alpha": (0.05, 0.2), "regularization": (0.03, 0.1, 0.3)}),
    "iALS": Method(
        partial(solved, jr.solvers.ials.fit),
        {
            "unobserved_weight": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
            "regularization": (0.001, 0.003, 0.01, 0.03),
        },
    ),
    "EASE": by_history(ease, {"regularization": (10.0, 30.0, 100.0, 300.0, 1000.0)}, drawn=False),
}
