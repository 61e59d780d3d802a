"""The methods that `benchmarks.rg2` compares: how each is trained, and the grid of its hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrec as jr

DIM, SCALE, GROUP = 64, 0.1, 16
EPOCHS, PATIENCE, SWEEPS = 60, 6, 40

Trained = tuple[Any, jr.typing.Variables, jr.train.History]


class Part(NamedTuple):
    """One seed's data: `train` to learn from, `valid` to choose by, `test` to judge by; groups a step of SGD."""

    train: jr.Interactions
    valid: jr.Interactions
    test: jr.Interactions
    batch: int = 0


class Method(NamedTuple):
    """How a model is trained, and what is compared on validation; `few` is the grid for large sets."""

    train: Callable[..., Trained]
    grid: Mapping[str, tuple[float, ...]]
    few: Mapping[str, tuple[float, ...]] | None = None


# ---------------------------------------------------------------------- solvers


def judge(model: Any, part: Part, metric: str) -> Callable[[jr.typing.Variables], dict[str, float]]:
    """What validation sees."""
    k = int(metric.partition("@")[2])
    return lambda v: jr.evaluate.full_ranking(model, v, part.train, part.valid, ks=(k,)).means


def solver(fit: Callable, part: Part, seed: int, metric: str, *, sweeps: int | None, **setting: float) -> Trained:
    """ALS, ended by validation; or a number of sweeps without looking."""
    model = jr.models.MF(part.train.n_users, part.train.n_items, dim=DIM)
    options = {"dim": DIM, "key": jax.random.key(seed), "tolerance": None, "progress": False, **setting}
    if sweeps is None:
        stopping = jr.train.EarlyStopping(metric, patience=PATIENCE)
        options |= {"sweeps": SWEEPS, "validate": judge(model, part, metric), "stopping": stopping}
    else:
        options["sweeps"] = sweeps
    return model, *fit(part.train, **options)


def closed_form(part: Part, seed: int, metric: str, *, sweeps: int | None, regularization: float) -> Trained:
    """The optimum; λ is a share of √2 σ₁, at which nothing is left. There are no sweeps to choose."""
    model = jr.models.MF(part.train.n_users, part.train.n_items, dim=DIM)
    found = jr.als.rg2.decompose(part.train, dim=DIM, key=jax.random.key(seed), tolerance=1e-3)
    variables = jr.als.rg2.shrink(found, regularization=float(np.sqrt(2) * found.values[0]) * regularization)
    seen = judge(model, part, metric)(variables) if sweeps is None else {}
    record = {"epoch": 1, "seconds": float("nan"), **seen}
    return model, variables, jr.train.History().append(record)


# ---------------------------------------------------------------------- SGD


def sgd(
    make: Callable,
    part: Part,
    seed: int,
    metric: str,
    *,
    sweeps: None,
    learning_rate: float,
    l2: float,
    epochs: int = EPOCHS,
    batches: int = 1,
) -> Trained:
    """Adam with L2 on whole tables, ended by validation; a step takes so many `batches` of the part's size."""
    del sweeps
    model, objective, parameters, after = make(part.train)
    tx = optax.chain(optax.add_decayed_weights(l2), optax.adam(learning_rate), *after)
    state, history = jr.train.fit(
        jr.train.init(jax.random.key(seed), model, tx, parameters=parameters),
        objective,
        tx,
        part.train,
        epochs=epochs,
        batch_size=part.batch * batches,
        group=GROUP,
        validate=judge(model, part, metric),
        every=2,
        stopping=jr.train.EarlyStopping(metric, patience=PATIENCE),
        progress=False,
    )
    return model, state.variables, history


def pairwise(loss: jr.typing.Loss, n: int, train: jr.Interactions, **more: Any):
    """Negatives drawn for each group."""
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM, scale=SCALE)
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=n)
    return model, partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample, **more), {}, ()


def full(loss: jr.typing.Loss, train: jr.Interactions, model: Any = None):
    """All items are negatives."""
    model = model or jr.models.MF(train.n_users, train.n_items, dim=DIM, scale=SCALE)
    return model, partial(jr.train.rows_objective, model=model, loss=loss), {}, ()


def gram(train: jr.Interactions, model: Any = None):
    """RG2 by SGD, against all items by their Gram matrix."""
    model = model or jr.models.MF(train.n_users, train.n_items, dim=DIM, scale=SCALE)
    return model, partial(jr.train.gram_objective, model=model), {}, ()


def uib(train: jr.Interactions):
    """A boundary for each user."""
    boundary = {"boundary": jnp.zeros(train.n_users)}

    def arguments(variables, batch, negatives):
        return {"boundary": variables["params"]["boundary"][batch.users][:, None]}

    model, objective, *_ = pairwise(jr.losses.uib, 100, train, arguments=arguments)
    return model, objective, boundary, ()


def sparsemax(train: jr.Interactions):
    """Rows of scores against the group's positives."""
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM, scale=SCALE)

    def objective(variables, key, batch):
        scores = model.apply(variables, batch.users, method="rows")
        rows = jnp.arange(len(batch.users))[:, None]
        targets = jnp.zeros(scores.shape).at[rows, batch.items].add(batch.where.astype(scores.dtype))
        return jr.losses.mean(jr.losses.sparsemax(scores, targets), weights=batch.where.sum(1).astype(scores.dtype))

    return model, objective, {}, ()


def sml(train: jr.Interactions):
    """Distances in the unit ball, margins that are learnt in [0, 1]; the mean over a batch, so γ is scaled likewise."""
    model = jr.models.MF(train.n_users, train.n_items, dim=DIM, scale=SCALE, score=jr.models.negative_squared_distance)
    margins = {"user_margin": jnp.ones(train.n_users), "item_margin": jnp.ones(train.n_items)}

    objective = partial(
        jr.train.sml_objective,
        sample=partial(jr.sampling.uniform, n_items=train.n_items, n=50),
        loss=partial(jr.losses.sml, margin_weight=0.01),
    )
    inside = optax.partition(
        {
            "ball": jr.optim.riemannian.project_to_ball(),
            "margin": optax.stateless_with_tree_map(lambda update, x: jnp.clip(x + update, 0, 1) - x),
        },
        {"user": "ball", "item": "ball"} | dict.fromkeys(margins, "margin"),
    )
    return model, objective, margins, (inside,)


def lightgcn(make: Callable, train: jr.Interactions):
    """The same losses on propagated vectors."""
    return make(train, model=jr.models.LightGCN(train, dim=DIM, layers=3, scale=SCALE))


RATES = {"learning_rate": (3e-3, 1e-2, 3e-2), "l2": (0.0, 1e-5, 1e-4)}
FEW = {"learning_rate": (3e-3, 1e-2), "l2": (1e-5, 1e-4)}
GRAPH = {"learning_rate": (1e-2, 3e-2, 1e-1), "l2": (1e-5,)}
LIGHT = {"learning_rate": (1e-2,), "l2": (1e-7,)}  # near what its paper's decay comes to; one setting, not tuned
softmax = jr.losses.mine  # against all items, the positive among them
METHODS = {
    "RG2": Method(partial(solver, jr.als.rg2.fit), {"regularization": (0.03, 0.1, 0.3, 0.6, 1.0)}),
    "RG2, closed form": Method(closed_form, {"regularization": (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)}),
    "RG2, alpha tuned": Method(
        partial(solver, jr.als.rg2.fit), {"alpha": (0.02, 0.05, 0.1, 0.2), "regularization": (0.03, 0.1, 0.3)}
    ),
    "WRMF": Method(
        partial(solver, jr.als.ials.wrmf), {"alpha": (1.0, 4.0, 10.0), "regularization": (3.0, 10.0, 50.0, 200.0)}
    ),
    "iALS": Method(
        partial(solver, jr.als.ials.fit),
        {"unobserved_weight": (0.01, 0.03, 0.1, 0.3, 1.0), "regularization": (0.003, 0.01, 0.03, 0.1)},
    ),
    "softmax": Method(partial(sgd, partial(full, softmax)), RATES, FEW),
    "sampled softmax": Method(partial(sgd, partial(pairwise, jr.losses.sampled_softmax, 100)), RATES, FEW),
    "RG2 by SGD": Method(partial(sgd, gram), RATES, FEW),
    "BPR": Method(partial(sgd, partial(pairwise, jr.losses.bpr, 100)), RATES, FEW),
    "BCE": Method(partial(sgd, partial(pairwise, jr.losses.bce, 100)), RATES, FEW),
    "UIB": Method(partial(sgd, uib), RATES, FEW),
    "SML": Method(partial(sgd, sml), RATES | {"l2": (0.0,)}, FEW | {"l2": (0.0,)}),
    "Sparsemax": Method(partial(sgd, sparsemax), RATES, FEW),
    # A step propagates through the whole graph, so that it had better be worth it.
    "LightGCN, softmax": Method(partial(sgd, partial(lightgcn, partial(full, softmax)), epochs=60, batches=4), GRAPH),
    "LightGCN, softmax, l2 1e-7": Method(
        partial(sgd, partial(lightgcn, partial(full, softmax)), epochs=60, batches=4), LIGHT
    ),
    "LightGCN, RG2": Method(partial(sgd, partial(lightgcn, gram), epochs=60, batches=4), GRAPH),
}
SOLVERS = [name for name, method in METHODS.items() if getattr(method.train, "func", None) is solver] + [
    "RG2, closed form"
]
