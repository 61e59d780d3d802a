"""Training of autoencoders, whose examples are users with all their items (`examples=by_user`)."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec._identity import described
from jaxrec._log import DivergenceError, Log
from jaxrec._numerics import integer, number
from jaxrec._run import Loop, check_loop, run
from jaxrec.interactions import Interactions
from jaxrec.train.examples import Batch, by_user
from jaxrec.train.loop import State, fit, init
from jaxrec.train.objectives import _check_has
from jaxrec.typing import Array, Key, Model, Scalar, Variables


def annealed(step: Array | int, *, cap: Scalar = 1.0, total: Scalar = 20_000) -> jax.Array:
    """Returns the annealed weight β = min(cap, (step + 1) / total) of the KL divergence.

    β grows by 1 / total per step, regardless of `cap`, as in VALID's released code.

    Args:
        step: integers [...], the number of steps made before, such as `Batch.step`.
        cap: the largest β.
        total: the number of steps until β would be 1.

    Returns:
        float32 [...].

    Raises:
        ValueError: if `total` is not a finite number above 0, or `cap` is negative or not finite.
            Traced numbers are not checked.

    >>> float(annealed(1999, cap=0.2, total=10_000))
    0.20000000298023224
    """
    number("total", total, above=0)
    cap, total = (jnp.asarray(x, jnp.float32) for x in (number("cap", cap, least=0), total))
    return jnp.minimum(cap, (jnp.asarray(step, jnp.float32) + 1) / total)


def objective(
    variables: Variables,
    key: Key,
    batch: Batch,
    *,
    model: Model,
    cap: Scalar = 1.0,
    total: Scalar = 20_000,
) -> jax.Array:
    """Computes the negative evidence lower bound, Σ_l −log p_l + β KL, averaged over users.

    β is `annealed`.

    Args:
        variables: the model's variables, as returned by `model.init`.
        key: typed key for the model's noise.
        batch: users [B, 1] with their histories, as `fit(..., examples=by_user)` gives them. To
            hold fewer users in memory, make the batches smaller and pass an `optax.MultiSteps` as
            `tx`.
        model: a model such as `models.VALID`, which computes the two terms [B] of the bound by
            `model.apply(variables, users, method="bound", histories=batch.histories)`.
        cap: the largest β.
        total: the number of steps until β would be 1.

    Raises:
        TypeError: if the model has no `bound`.
        ValueError: if the batch has no histories.
    """
    if batch.histories is None:
        raise ValueError("the batch has no histories; call fit with examples=jaxrec.train.by_user")
    _check_has(model, "bound", "VALID")
    halves = model.apply(variables, batch.users[:, 0], method="bound", histories=batch.histories, rngs={"noise": key})
    where, weights = batch.where[:, 0], batch.weights
    if weights is not None:
        halves = [half * weights[:, 0].astype(half.dtype) for half in halves]
    nll, divergence = (jnp.where(where, half, 0).sum() for half in halves)
    value = nll + annealed(batch.step, cap=cap, total=total).astype(nll.dtype) * divergence
    return value / jnp.maximum(where.sum(dtype=jnp.int32), 1).astype(value.dtype)


def alternating(
    key: Key,
    model: Any,
    tx: optax.GradientTransformation,
    train: Interactions,
    *,
    epochs: int,
    batch_size: int = 500,
    encoder_passes: int = 3,
    **loop: Unpack[Loop],
) -> tuple[State, Log]:
    """Trains encoder and decoder alternately (Shenbin et al. 2020, 10.1145/3336191.3371831).

    An epoch has three stages: `encoder_passes` passes of the encoder over all users; the copying of
    the encoder to the old encoder; and one pass of the decoder, without dropout. β is 1.

    Args:
        key: typed key, consumed.
        model: a model such as `models.RecVAE`, with `dropout`, and with "encoder" both among its
            parameters and in the collection "old".
        tx: the optimiser. The encoder and the other parameters have separate optimiser states. The
            paper uses `optax.adam(5e-4)`.
        train: the positives.
        epochs: number of epochs.
        batch_size: number of users per step.
        encoder_passes: number of passes of the encoder before each pass of the decoder.
        loop: `validate`, `every`, `stopping`, `checkpoint`, `callbacks` and `progress`, as in
            `fit`.

    Returns:
        The state, whose `epoch` counts passes, and the `Log`, whose "loss" is the decoder's and
        whose "encoder_loss" is the encoder's.

    Raises:
        TypeError: if the model has no encoder or no old encoder, or `stopping` has another type.
        ValueError: if a number is not an integer of 1 or more, `stopping` is given without
            `validate`; and as `fit` for `train`, `validate` and the checkpoint.
        DivergenceError: as `fit`.
        Interrupted: on Ctrl-C. It carries the log, and the state after the last finished epoch.
    """
    began, encoder_passes = time.perf_counter(), integer("encoder_passes", encoder_passes)
    check_loop(loop)
    state = init(key, model, tx)
    if not all("encoder" in state.variables.get(where, ()) for where in ("params", "old")):
        name = type(model).__name__
        raise TypeError(
            f"model={name} lacks an encoder or an old encoder; train it with fit, or give a model such as RecVAE"
        )
    parts = {
        "encoder_loss": (functools.partial(objective, model=model, total=1), _part(tx, encoder=True), encoder_passes),
        "loss": (functools.partial(objective, model=model.clone(dropout=0.0), total=1), _part(tx, encoder=False), 1),
    }
    state = state._replace(opt_state={name: part[1].init(state.variables["params"]) for name, part in parts.items()})

    def advance(state: State, number: int) -> tuple[State, Mapping[str, float]]:
        try:
            return _alternated(state, parts, train, batch_size)
        except DivergenceError as error:
            # The error carries the state of one pass; `run` adds this run's state to the cause.
            raise error.__context__ or error from None

    description = None
    if loop.get("checkpoint") is not None:
        own = {"model": model, "tx": tx, "batch_size": batch_size, "encoder_passes": encoder_passes}
        description = {name: described(value) for name, value in own.items()} | {"train": train.fingerprint()}
        description["key"] = np.asarray(jax.random.key_data(key)).tolist()
    how: dict[str, Any] = {"epochs": epochs, "began": began, "description": description}
    return run(advance, state, variables=lambda state: state.variables, **how, **loop)


def _alternated(state: State, parts: Mapping[str, tuple], train: Interactions, batch_size: int) -> tuple[State, dict]:
    """Runs each part's passes, and copies the encoder to the old encoder after each part."""
    opt_states, values = dict(state.opt_state), {}
    for name, (loss, tx, passes) in parts.items():
        state, passed = fit(
            state._replace(opt_state=opt_states[name]),
            loss,
            tx,
            train,
            epochs=int(state.epoch) + passes,
            batch_size=batch_size,
            examples=by_user,
            progress=False,
        )
        opt_states[name] = state.opt_state
        values[name] = passed.column("loss")[1][-1]
        # Keep the containers of "old": another tree structure would compile the next epoch again.
        kept = jax.tree.structure(state.variables["old"])
        old = jax.tree.unflatten(kept, jax.tree.leaves(state.variables["params"]["encoder"]))
        state = state._replace(variables={**state.variables, "old": old})
    return state._replace(opt_state=opt_states), values


def _part(tx: optax.GradientTransformation, *, encoder: bool) -> optax.GradientTransformation:
    """Returns `tx` for the encoder only, or for all but the encoder; the others do not move."""

    def labels(params: Variables) -> dict[str, str]:
        same: Any = type(params)  # optax needs labels in a mapping of the type of the parameters
        return same({name: "moved" if (name == "encoder") == encoder else "still" for name in params})

    return optax.partition({"moved": tx, "still": optax.set_to_zero()}, labels)
