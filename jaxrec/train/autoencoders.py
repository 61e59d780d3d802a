"""Training of autoencoders, whose examples are users with their whole histories: call `fit` with `group=0`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from jaxrec._log import EarlyStopping, History, Interrupted, extended
from jaxrec._numerics import as_integer, integer, number
from jaxrec.interactions import Interactions
from jaxrec.train.loop import Batch, State, fit, init
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
    micro_batch: int | None = None,
) -> Array:
    """Negative evidence lower bound, a mean over users: Σ_l −log p_l + β KL, with β `annealed`.

    Args:
        variables: of the model.
        key: for the model's noise.
        batch: users [B], of `fit(..., group=0)`.
        model: gives both halves [B] by `model.apply(variables, users, method="bound", at_random=True)`, such as
            `models.VALID`. Batches are to be random draws from the users of its histories: where `fit` gets the most
            active users alone, the model has to be made of theirs, or the loss may be NaN.
        cap: of β.
        total: steps until β = 1.
        micro_batch: if given, so many users are taken at a time: the same loss and gradient in less memory.

    Raises:
        TypeError: for a model without `bound`.
        ValueError: for batches of positives, and for a `micro_batch` that is not an integer of 1 or more or does not
            divide the batch.
    """
    where = batch.mask
    if where.ndim != 1 or batch.items.ndim != 2 or batch.items.shape[1] != 0:
        raise ValueError(f"batch.items has shape {batch.items.shape}; users alone are needed: call fit with group=0")
    size = len(batch.users) if micro_batch is None else min(as_integer(micro_batch) or 0, len(batch.users))
    if size < 1 or len(batch.users) % size:
        raise ValueError(
            f"micro_batch={micro_batch} does not divide the batch of {len(batch.users)} users; give one that does"
        )

    _check_has(model, "bound", "VALID")

    def part(users: Array, where: Array) -> Array:
        halves = model.apply(variables, users, method="bound", at_random=True, rngs={"noise": key})
        nll, divergence = (jnp.where(where, half, 0).sum() for half in halves)
        return nll + annealed(batch.step, cap=cap, total=total).astype(nll.dtype) * divergence

    count = jnp.maximum(where.sum(dtype=jnp.int32), 1)
    if size == len(batch.users):
        value = part(batch.users, where)
        return value / count.astype(value.dtype)
    parts = jax.tree.map(lambda x: x.reshape(-1, size), (batch.users, where))
    value = jax.lax.map(jax.checkpoint(lambda one: part(*one)), parts).sum()
    return value / count.astype(value.dtype)


def alternating(
    key: Key,
    model: Any,
    tx: optax.GradientTransformation,
    train: Interactions,
    *,
    epochs: int,
    batch_size: int = 500,
    encoder_passes: int = 3,
    validate: Callable[[Variables], Mapping[str, float]] | None = None,
    stopping: EarlyStopping | None = None,
    progress: bool = True,
) -> tuple[State, History]:
    """Trains encoder and decoder in turn, as RecVAE is (Shenbin et al. 2020, 10.1145/3336191.3371831).

    An epoch is `encoder_passes` of the encoder over all users, a copy of it as the old one, and a pass of the decoder
    without dropout. β is 1. No checkpoints are kept.

    Args:
        key: typed key, consumed.
        model: has "encoder" among its parameters and in the collection "old", and `dropout`; such as `models.RecVAE`.
        tx: for the encoder, and for the rest with a state of its own; the paper's is `optax.adam(5e-4)`.
        train: the positives.
        epochs: their number.
        batch_size: users a step.
        encoder_passes: before each pass of the decoder.
        validate: as of `fit`, after every epoch.
        stopping: ends the run when its metric no longer gets better; the state returned is then the best one.
        progress: show a bar.

    Returns:
        The state, whose `epoch` counts passes, and the `History`, where "loss" is the decoder's.

    Raises:
        TypeError: for a model without an encoder and an old one, and a `stopping` of another type.
        ValueError: for numbers that are not integers of 1 or more, `stopping` without `validate`, and a metric of
            `stopping` that no validation gave as a number.
        Interrupted: at Ctrl-C, once an epoch is finished; it carries the state after the last one, and the history.
    """
    epochs, encoder_passes = integer("epochs", epochs), integer("encoder_passes", encoder_passes)
    if stopping is not None and not isinstance(stopping, EarlyStopping):
        raise TypeError(f"stopping={stopping!r}; give jaxrec.train.EarlyStopping(metric)")
    if stopping is not None and validate is None:
        raise ValueError(f"stopping watches {stopping.metric!r}, but there is no validate to give it; pass validate=")
    state = init(key, model, tx)
    if not all("encoder" in state.variables.get(where, ()) for where in ("params", "old")):
        name = type(model).__name__
        raise TypeError(f"model={name} has no old encoder beside its encoder; train it by fit, or give one like RecVAE")
    parts = {
        "encoder_loss": (functools.partial(objective, model=model, total=1), _part(tx, encoder=True), encoder_passes),
        "loss": (functools.partial(objective, model=model.clone(dropout=0.0), total=1), _part(tx, encoder=False), 1),
    }
    state = state._replace(opt_state={name: part[1].init(state.variables["params"]) for name, part in parts.items()})
    best, history, followed = state, History(), {} if stopping is None else stopping.init()
    try:
        for epoch in tqdm(range(1, epochs + 1), disable=not progress, desc="epochs"):
            new, record = _in_turn(state, parts, train, batch_size)
            record = {"epoch": epoch, **record}
            if validate is not None:
                record = extended(record, validate(new.variables))
            improved = True
            if stopping is not None:
                followed, improved = stopping.update(followed, record)
            state, history, best = new, history.append(record), new if improved else best
            if stopping is not None and stopping.done(followed):
                break
    except KeyboardInterrupt:
        if not history.records:
            raise
        raise Interrupted(state, history) from None
    if stopping is not None and (wrong := stopping.never_a_number(followed)):
        raise ValueError(wrong)
    return best, history


def _in_turn(state: State, parts: Mapping[str, tuple], train: Interactions, batch_size: int) -> tuple[State, dict]:
    """Each part's passes, after which the old encoder is the present one."""
    opt_states, record = dict(state.opt_state), {"seconds": 0.0}
    for name, (value, tx, passes) in parts.items():
        state, passed = fit(
            state._replace(opt_state=opt_states[name]),
            value,
            tx,
            train,
            epochs=int(state.epoch) + passes,
            batch_size=batch_size,
            group=0,
            progress=False,
        )
        opt_states[name] = state.opt_state
        record |= {name: passed.column("loss")[1][-1], "seconds": record["seconds"] + sum(passed.column("seconds")[1])}
        # of the structure that it had, or the next epoch would be compiled anew
        kept = jax.tree.structure(state.variables["old"])
        old = jax.tree.unflatten(kept, jax.tree.leaves(state.variables["params"]["encoder"]))
        state = state._replace(variables={**state.variables, "old": old})
    return state._replace(opt_state=opt_states), record


def _part(tx: optax.GradientTransformation, *, encoder: bool) -> optax.GradientTransformation:
    """`tx` for the encoder or for all else; the others stand still."""

    def labels(params: Variables) -> dict[str, str]:
        return type(params)({name: "moved" if (name == "encoder") == encoder else "still" for name in params})

    return optax.partition({"moved": tx, "still": optax.set_to_zero()}, labels)
