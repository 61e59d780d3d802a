"""Training of autoencoders, whose examples are users with their whole histories: call `fit` with `examples=by_user`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec._identity import described
from jaxrec._log import DivergenceError, Log
from jaxrec._numerics import integer, number
from jaxrec._run import Loop, run
from jaxrec.interactions import Interactions
from jaxrec.train.examples import Batch, by_user
from jaxrec.train.loop import State, fit, init
from jaxrec.train.objectives import _check_has
from jaxrec.typing import Array, Key, Model, Scalar, Variables


def annealed(step: Array, *, cap: Scalar = 1.0, total: Scalar = 20_000) -> Array:
    """β = min(cap, (step + 1) / total): grows by 1 / total a step, whatever the cap, as VALID's released code has it.

    Args:
        step: integers [...], steps made before, such as `Batch.step`.
        cap: the largest β.
        total: steps until β = 1.

    Returns:
        float32 [...].

    Raises:
        ValueError: for a `total` that is not a finite number above 0, and a `cap` that is negative or not finite.
            Traced numbers pass.

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
) -> Array:
    """Negative evidence lower bound, a mean over users: Σ_l −log p_l + β KL, with β `annealed`.

    Args:
        variables: the model's variables, as returned by `model.init`.
        key: for the model's noise.
        batch: users [B, 1] with their histories, of `fit(..., examples=by_user)`. To take few users at a time, make
            `tx` an `optax.MultiSteps` and the batches smaller.
        model: gives both halves [B] by `model.apply(variables, users, method="bound", histories=batch.histories)`, such
            as `models.VALID`.
        cap: the largest β.
        total: steps until β = 1.

    Raises:
        TypeError: for a model without `bound`.
        ValueError: for batches without histories.
    """
    if batch.histories is None:
        raise ValueError("the batch has no histories; call fit with examples=train.by_user")
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
    """Trains encoder and decoder alternately, as RecVAE is (Shenbin et al. 2020, 10.1145/3336191.3371831).

    An epoch is `encoder_passes` of the encoder over all users, a copy of it as the old one, and a pass of the decoder
    without dropout. β is 1.

    Args:
        key: typed key, consumed.
        model: has "encoder" among its parameters and in the collection "old", and `dropout`; such as `models.RecVAE`.
        tx: for the encoder, and for the rest with a state of its own; the paper's is `optax.adam(5e-4)`.
        train: the positives.
        epochs: their number.
        batch_size: users a step.
        encoder_passes: before each pass of the decoder.
        loop: `validate`, `every`, `stopping`, `checkpoint`, `callbacks` and `progress`, as `fit` takes them.

    Returns:
        The state, whose `epoch` counts passes, and the `Log`, where "loss" is the decoder's.

    Raises:
        TypeError: for a model without an encoder and an old one, and a `stopping` of another type.
        ValueError: for numbers that are not integers of 1 or more, `stopping` without `validate`, and a metric of
            `stopping` that no validation gave as a number.
        Interrupted: at Ctrl-C, once an epoch is finished; it carries the state after the last one, and the log.
    """
    encoder_passes = integer("encoder_passes", encoder_passes)
    state = init(key, model, tx)
    if not all("encoder" in state.variables.get(where, ()) for where in ("params", "old")):
        name = type(model).__name__
        raise TypeError(f"model={name} has no old encoder beside its encoder; train it by fit, or give one like RecVAE")
    parts = {
        "encoder_loss": (functools.partial(objective, model=model, total=1), _part(tx, encoder=True), encoder_passes),
        "loss": (functools.partial(objective, model=model.clone(dropout=0.0), total=1), _part(tx, encoder=False), 1),
    }
    state = state._replace(opt_state={name: part[1].init(state.variables["params"]) for name, part in parts.items()})

    def advance(state: State, number: int) -> tuple[State, Mapping[str, float]]:
        try:
            return _alternated(state, parts, train, batch_size)
        except DivergenceError as error:  # of a pass, whose state is not that of this run
            raise error.__context__ from None

    description = None
    if loop.get("checkpoint") is not None:
        own = {"model": model, "tx": tx, "batch_size": batch_size, "encoder_passes": encoder_passes}
        description = {name: described(value) for name, value in own.items()} | {"train": train.fingerprint()}
        description["key"] = np.asarray(jax.random.key_data(key)).tolist()
    return run(advance, state, epochs=epochs, variables=lambda state: state.variables, description=description, **loop)


def _alternated(state: State, parts: Mapping[str, tuple], train: Interactions, batch_size: int) -> tuple[State, dict]:
    """Each part's passes, after which the old encoder is the present one."""
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
        # of the structure that it had, or the next epoch would be compiled anew
        kept = jax.tree.structure(state.variables["old"])
        old = jax.tree.unflatten(kept, jax.tree.leaves(state.variables["params"]["encoder"]))
        state = state._replace(variables={**state.variables, "old": old})
    return state._replace(opt_state=opt_states), values


def _part(tx: optax.GradientTransformation, *, encoder: bool) -> optax.GradientTransformation:
    """`tx` for the encoder or for all else; the others stand still."""

    def labels(params: Variables) -> dict[str, str]:
        return type(params)({name: "moved" if (name == "encoder") == encoder else "still" for name in params})

    return optax.partition({"moved": tx, "still": optax.set_to_zero()}, labels)
