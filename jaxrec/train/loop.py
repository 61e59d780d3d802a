"""Training: an epoch is one jitted `lax.scan` over shuffled positives, with negatives drawn on the device."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from jaxrec import losses
from jaxrec.interactions import Interactions
from jaxrec.train.checkpoint import Checkpoint, Progress
from jaxrec.train.history import History
from jaxrec.train.stopping import EarlyStopping
from jaxrec.typing import Array, Key, Loss, Model, Objective, Sampler, Variables


class State(NamedTuple):
    """All that a run needs to go on.

    Attributes:
        variables: of the model; the collection "params" is trained.
        opt_state: of the optax transformation.
        key: the run's key; epoch e draws from `fold_in(key, e)`.
        epoch: int32 [], epochs done.
    """

    variables: Variables
    opt_state: Any
    key: Key
    epoch: Array


class Batch(NamedTuple):
    """Positives of one step: `users`, `items` int32 [B], `weights` float32 [B] or None, `where` bool [B]."""

    users: Array
    items: Array
    weights: Array | None
    where: Array


class DivergenceError(ValueError):
    """The loss is no longer finite; `state` is the last good one, at the beginning of the epoch."""

    def __init__(self, message: str, state: State):
        super().__init__(message)
        self.state = state


def init(key: Key, model: Any, tx: optax.GradientTransformation) -> State:
    """A fresh state: variables drawn from `key`, which then becomes the run's key.

    Args:
        key: typed key, consumed.
        model: a Linen module called with users and items.
        tx: an optax transformation of the collection "params".
    """
    model_key, run_key = jax.random.split(key)
    zero = jnp.zeros(1, jnp.int32)
    variables = model.init(model_key, zero, zero)
    return State(variables, tx.init(variables["params"]), run_key, jnp.zeros((), jnp.int32))


def pairwise_objective(
    variables: Variables,
    key: Key,
    batch: Batch,
    *,
    model: Model,
    loss: Loss,
    sample: Sampler,
    log_q: Array | None = None,
) -> Array:
    """Mean loss of the batch's positives against sampled negatives.

    Bind `model`, `loss` and `sample` with `functools.partial`. Weights of the interactions weigh the mean.

    Args:
        variables: of the model.
        key: for the negatives.
        batch: positives [B].
        model: scores pairs by `model.apply(variables, users, items)`.
        loss: any of `jaxrec.losses` that compares positives [B] with negatives [B, n].
        sample: any of `jaxrec.sampling`.
        log_q: log-probabilities [N] of the sampler; if given, the loss gets `log_q_pos` [B] and `log_q_neg` [B, n].
    """
    negatives = sample(key, batch.users)
    pos = model.apply(variables, batch.users, batch.items)
    neg = model.apply(variables, batch.users[:, None], negatives)
    correction = {} if log_q is None else {"log_q_pos": log_q[batch.items], "log_q_neg": log_q[negatives]}
    return losses.mean(loss(pos, neg, **correction), where=batch.where, weights=batch.weights)


def pairwise_rows(key: Key, batch: Batch, *, sample: Sampler) -> dict[str, Array]:
    """The rows that `pairwise_objective` touches, by parameter name: "user" [B], "item" [B + B·n].

    The same key gives the same negatives, so that they are drawn once: XLA sees one expression twice.

    Args:
        key: as the objective gets it.
        batch: as the objective gets it.
        sample: as the objective has it.
    """
    negatives = sample(key, batch.users)
    return {"user": batch.users, "item": jnp.concatenate([batch.items, negatives.reshape(-1)])}


def fit(
    state: State,
    objective: Objective,
    tx: optax.GradientTransformation,
    train: Interactions,
    *,
    epochs: int,
    batch_size: int = 1024,
    touched: Callable[[Key, Batch], Mapping[str, Array]] | None = None,
    validate: Callable[[Variables], Mapping[str, float]] | None = None,
    every: int = 1,
    stopping: EarlyStopping | None = None,
    checkpoint: Checkpoint | None = None,
    callbacks: Sequence[Callable[[State, Mapping[str, float]], Any]] = (),
    progress: bool = True,
) -> tuple[State, History]:
    """Trains until `epochs` epochs are done, counted from the run's beginning.

    The last batch of an epoch is padded and masked, so that one compilation serves all. Arrays inside the
    `functools.partial`s of `objective` travel as arguments; whatever a lambda closes over becomes a constant.

    Args:
        state: from `init`, or from an earlier `fit` to go on.
        objective: scalar of (variables, key, batch), such as a `pairwise_objective` with its arguments bound.
        tx: the transformation that `state` was made with.
        train: the positives.
        epochs: total number of epochs.
        batch_size: B.
        touched: function of (key, batch) that names the rows a step touches, for transformations that use it
            (`optim.rowwise`), such as `partial(pairwise_rows, sample=...)` beside a `pairwise_objective`.
        validate: host function of the variables that gives named figures, such as
            `lambda v: full_ranking(model, v, train, valid, ks=(10,)).means`. They are written to the history.
        every: validate after every so many epochs, and after the last.
        stopping: ends the run when its metric no longer gets better; the state returned is then the best one.
        checkpoint: where to save; a run that is killed and called again with the same arguments goes on from there,
            and ends bit-identical to one that was never interrupted.
        callbacks: called after each epoch with the state and the epoch's record.
        progress: show a bar.

    Returns:
        The state (the best one if `stopping` is given, else the last) and the `History`.

    Raises:
        DivergenceError: a `ValueError`, for a loss that is not finite; names epoch and step and carries the last good
            state. The checkpoint keeps the last epoch saved.
        ValueError: for `stopping` without `validate`, a metric that `validate` does not give, or a checkpoint of
            another run: other data, batch size, key, objective, model or kind of optimiser. (The values inside `tx`,
            such as its learning rate, cannot be compared.)
    """
    _check_fit(state, train, epochs, batch_size, every, validate, stopping)
    run = Progress(state, state, {} if stopping is None else stopping.init(), History())
    if checkpoint is not None:
        description = _description(state, objective, train, batch_size)
        run = checkpoint.restore(run, description)
    arrays, static = _partition((objective, touched))
    arrays, data = jax.device_put((arrays, (*train.pairs(), train.weights)))
    first = int(run.state.epoch)
    stopped = stopping is not None and stopping.done(run.stopping)
    bar = tqdm(range(first + 1, epochs + 1), total=epochs, initial=first, disable=not progress, desc="epochs")
    for epoch in bar:
        if stopped:
            break
        began = time.perf_counter()
        new, values = _epoch(run.state, arrays, data, static=static, tx=tx, batch_size=batch_size)
        values = np.asarray(values)
        if not np.isfinite(values).all():
            raise _divergence(epoch, values, run.state, checkpoint)
        record = {"epoch": epoch, "loss": float(values.mean()), "seconds": time.perf_counter() - began}
        run = run._replace(state=new, best=run.best if stopping else new)
        if validate is not None and (epoch % every == 0 or epoch == epochs):
            record |= {name: float(value) for name, value in validate(new.variables).items()}
            if stopping is not None:
                follow, improved = stopping.update(run.stopping, record)
                run = run._replace(stopping=follow, best=new if improved else run.best)
                stopped = stopping.done(follow)
        run = run._replace(history=run.history.append(record))
        for callback in callbacks:
            callback(new, record)
        if checkpoint is not None and (epoch % checkpoint.every == 0 or epoch == epochs or stopped):
            checkpoint.save(run, description)
        bar.set_postfix({name: f"{value:.4g}" for name, value in record.items() if name not in ("epoch", "seconds")})
    return run.best, run.history


def _check_fit(state, train, epochs, batch_size, every, validate, stopping) -> None:
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("every", every)):
        if value < 1:
            raise ValueError(f"{name}={value}; give 1 or more")
    if train.n_pairs == 0:
        raise ValueError("train has no pairs; there is nothing to learn from")
    if stopping is not None and validate is None:
        raise ValueError(f"stopping watches {stopping.metric!r}, but there is no validate to give it; pass validate=")
    if "params" not in state.variables:
        raise ValueError(f"state.variables has {list(state.variables)}, not 'params'; make the state with train.init")


def _divergence(epoch: int, values: np.ndarray, state: State, checkpoint: Checkpoint | None) -> DivergenceError:
    step = int(np.flatnonzero(~np.isfinite(values))[0])
    kept = "" if checkpoint is None else f"; {checkpoint.directory} keeps the last epoch saved, a good one"
    return DivergenceError(
        f"the loss is {values[step]} at epoch {epoch}, step {step + 1} of {len(values)}; lower the learning rate, clip "
        f"gradients (optax.clip_by_global_norm), or look for NaN in weights (jax_debug_nans){kept}. "
        "The error's .state is the last good one",
        state,
    )


def _description(state: State, objective: Objective, train: Interactions, batch_size: int) -> dict[str, Any]:
    """What a checkpoint must match to be this run's."""
    key = np.asarray(jax.random.key_data(state.key)).tolist()
    return {"batch_size": batch_size, "train": train.fingerprint(), "key": key, "objective": _described(objective)}


def _described(value: Any) -> str:
    """Names and values of nested partials, the same in every process."""
    if isinstance(value, functools.partial):
        keywords = [f"{name}={_described(item)}" for name, item in sorted(value.keywords.items())]
        return f"{_described(value.func)}({', '.join([*map(_described, value.args), *keywords])})"
    if isinstance(value, Interactions):
        return f"Interactions({value.fingerprint()})"
    plain = re.sub(r" at 0x[0-9a-f]+|# attributes", "", repr(value))
    return getattr(value, "__qualname__", None) or " ".join(plain.split())


# ---------------------------------------------------------------------- one epoch


class _Static(NamedTuple):
    """An objective without its arrays: hashable, so that jit can key on it."""

    tree: Any
    leaves: tuple


class _Hole:
    """Stands where an array was taken out."""


def _partition(functions: tuple) -> tuple[list, _Static]:
    """Takes the arrays out of nested partials, to be arguments of jit: XLA folds large constants for minutes."""
    leaves, tree = jax.tree.flatten(tuple(map(_as_pytree, functions)))
    dynamic = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    arrays = [leaf for leaf, is_array in zip(leaves, dynamic) if is_array]
    return arrays, _Static(tree, tuple(_Hole if is_array else leaf for leaf, is_array in zip(leaves, dynamic)))


def _as_pytree(value: Any) -> Any:
    if not isinstance(value, functools.partial):
        return value
    keywords = {name: _as_pytree(item) for name, item in value.keywords.items()}
    return jax.tree_util.Partial(value.func, *map(_as_pytree, value.args), **keywords)


def _combine(arrays: Sequence[Array], static: _Static) -> tuple:
    supply = iter(arrays)
    return jax.tree.unflatten(static.tree, [next(supply) if leaf is _Hole else leaf for leaf in static.leaves])


@functools.partial(jax.jit, static_argnames=("static", "tx", "batch_size"))
def _epoch(state, arrays, data, *, static, tx, batch_size):
    """All positives once, in random order; gives the new state and the losses of the steps."""
    objective, touched = _combine(arrays, static)
    tx = optax.with_extra_args_support(tx)
    users, items, weights = data
    n = users.shape[0]
    steps = -(-n // batch_size)
    order_key, step_key = jax.random.split(jax.random.fold_in(state.key, state.epoch))
    # One sort of random bits: `jax.random.permutation` sorts twice to rule out ties, a tenth of a CPU epoch.
    order = jnp.argsort(jax.random.bits(order_key, (n,))).astype(jnp.int32)
    order = jnp.pad(order, (0, steps * batch_size - n), constant_values=n).reshape(steps, batch_size)

    def step(carry, inputs):
        params, opt_state = carry
        number, places = inputs
        chosen = jnp.minimum(places, n - 1)
        batch = Batch(users[chosen], items[chosen], None if weights is None else weights[chosen], places < n)

        key = jax.random.fold_in(step_key, number)

        def value(params):
            return objective({**state.variables, "params": params}, key, batch)

        loss, gradients = jax.value_and_grad(value)(params)
        extra = {} if touched is None else {"touched": touched(key, batch)}
        updates, opt_state = tx.update(gradients, opt_state, params, **extra)
        return (optax.apply_updates(params, updates), opt_state), loss

    carry = state.variables["params"], state.opt_state
    (params, opt_state), values = jax.lax.scan(step, carry, (jnp.arange(steps), order))
    return State({**state.variables, "params": params}, opt_state, state.key, state.epoch + 1), values
