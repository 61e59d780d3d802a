"""Training: an epoch is one jitted `lax.scan` over shuffled examples, with negatives drawn on the device."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec import sampling
from jaxrec._identity import described, digest
from jaxrec._keys import check_key
from jaxrec._log import EarlyStopping, Log
from jaxrec._mesh import as_auto, placed_like
from jaxrec._numerics import integer
from jaxrec._partials import Static, check_static, combine, partition
from jaxrec._run import NotFinite, Saver, run
from jaxrec.interactions import Interactions, check_positives
from jaxrec.optim.step import Step, as_step
from jaxrec.train._checks import check_bound, check_covers, check_optimizer, check_state, check_transformation
from jaxrec.train.examples import Examples, singles
from jaxrec.typing import Array, Key, Objective, Variables


class State(NamedTuple):
    """All that a run needs to continue.

    Attributes:
        variables: the model's variables; the collection "params" is trained.
        opt_state: of the optax transformation.
        key: the run's key; epoch e draws from `fold_in(key, e)`.
        epoch: int32 [], epochs done.
    """

    variables: Variables
    opt_state: Any
    key: Key
    epoch: Array


def init(
    key: Key, model: Any, tx: optax.GradientTransformation | Step, *, parameters: Mapping[str, Array] | None = None
) -> State:
    """A fresh state: variables drawn from `key`, which then becomes the run's key.

    Args:
        key: typed key, consumed.
        model: a Linen module called with users and items.
        tx: an optax transformation of the collection "params", or a `Step`.
        parameters: more entries of "params", which the model does not know but the loss learns, such as
            `{"boundary": jnp.zeros(n_users)}` for `losses.uib`; see `arguments` of `pairwise_objective`.

    Raises:
        TypeError: for a class in place of a model, a `tx` that is no transformation, and a model with an array among
            its attributes.
        ValueError: for a seed in place of a key.
    """
    check_key(key)
    if isinstance(model, type):
        raise TypeError(
            f"model is the class {model.__name__}; give a model, such as {model.__name__}(n_users, n_items)"
        )
    check_transformation(tx)
    check_static(model)
    model_key, run_key = jax.random.split(key)
    zero = jnp.zeros(1, jnp.int32)
    variables = model.init(model_key, zero, zero)
    variables = {**variables, "params": {**variables["params"], **(parameters or {})}}
    return State(variables, tx.init(variables["params"]), run_key, jnp.zeros((), jnp.int32))


def fit(
    state: State,
    objective: Objective,
    tx: optax.GradientTransformation | Step,
    train: Interactions,
    *,
    epochs: int,
    batch_size: int = 1024,
    examples: Callable[[Interactions], Examples] = singles,
    validate: Callable[[Variables], Mapping[str, float]] | None = None,
    every: int = 1,
    stopping: EarlyStopping | None = None,
    checkpoint: Saver | None = None,
    callbacks: Sequence[Callable[[State, Mapping[str, float]], Any]] = (),
    progress: bool = True,
) -> tuple[State, Log]:
    """Trains until `epochs` epochs are done, counted from the start of the run.

    One program serves all batches of all epochs: the last batch of an epoch is padded and masked. Arrays inside the
    `functools.partial`s of `objective` are arguments of it. An array that a lambda reads from its closure is compiled
    in as a constant, which is slow for large arrays. Values that functions read from globals or closures are checked
    before each epoch. If one has changed, the program is compiled again, and a warning says so.

    Args:
        state: from `init`, or from an earlier `fit` to continue.
        objective: scalar of (variables, key, batch), such as a `pairwise_objective` with its arguments bound.
        tx: the transformation that `state` was made with: any of optax, or an `optim.Step` such as `rowwise.adam`. An
            optax transformation gets `value`, `grad` and `value_fn` of the step where it takes them.
        train: the positives. Their weights must be 0 or more, and not all 0.
        epochs: total number of epochs. A state that has done as many is returned as it is, with a warning.
        batch_size: B, examples a step.
        examples: what an epoch goes through: `singles`, `partial(groups, n=16)`, `by_user`, or your own function of the
            positives; see `train.examples`.
        validate: host function of the variables that gives named numbers, or a `Report`, whose means are taken, such as
            `lambda v: full_ranking(model, v, train, valid, ks=(10,))`. They are written to the log.
        every: validate after every so many epochs, and after the last.
        stopping: ends the run when its metric no longer improves; the state returned is then the best one.
        checkpoint: where to save. If the run is killed, the same call resumes it, and on CPU the result is
            bit-identical to that of a run that was never interrupted.
        callbacks: called after each epoch with the state and the epoch's record.
        progress: whether to show a progress bar.

    Returns:
        The state (the best one if `stopping` is given, else the last) and the `Log`.

    Raises:
        DivergenceError: a `ValueError`, for a loss that is not finite, and for a metric of `stopping` that was NaN at
            every validation. It carries the last good state. The checkpoint keeps the last epoch saved.
        Interrupted: a `KeyboardInterrupt`, for Ctrl-C. It carries the last state, the best one and the log, and the
            checkpoint has them too.
        TypeError: for a `train`, `stopping` or `checkpoint` of another type, and a model with an array among its
            attributes.
        ValueError: for numbers that are no integers or too small, negative or non-finite weights; a model in the
            partials of `objective` that has fewer users or items than `train`; a sampler, `seen` or margins there that
            are for other sizes; a loss that does not give one value a comparison; a `state` of another optimiser or
            model; `stopping` without `validate`; a metric that `validate` does not give; a checkpoint that another run
            made (other data, batch size, key, objective, optimiser or stopping rule), that another process uses, or
            that is damaged.
    """
    check_positives(train=train)
    check_state(state)
    check_optimizer(state, tx)
    epochs, batch_size, every = integer("epochs", epochs), integer("batch_size", batch_size), integer("every", every)
    tx = as_step(tx)
    arrays, static = partition((objective, tx.step))
    check_covers(static.leaves, train)
    check_bound((objective, tx.step), train)
    data = examples(train)
    state, placed = as_auto(state), state
    description = None
    if checkpoint is not None:
        description = _description(state, objective, tx, train, batch_size, examples, every, stopping)
    best, log = run(
        functools.partial(_advance, _Compiled(static), jax.device_put(arrays), jax.device_put(data), batch_size),
        state,
        epochs=epochs,
        epoch=int(state.epoch),
        variables=lambda state: state.variables,
        description=description,
        validate=validate,
        every=every,
        stopping=stopping,
        checkpoint=checkpoint,
        callbacks=callbacks,
        progress=progress,
    )
    return best if state is placed else placed_like(best, placed), log


class _Compiled:
    """What an epoch is compiled for. Before each epoch it is made anew if a value that functions read has changed."""

    def __init__(self, static: Static):
        self.static, self.known, self.changed = static, static.reads, False

    def current(self) -> Static:
        now = self.static.again()
        if now.reads != self.known:
            if not self.changed:
                warnings.warn(
                    "a value that the objective or the optimiser reads from a global or a closure has changed during "
                    "training; the epoch is compiled again with the new value, and so it is whenever one changes",
                    stacklevel=5,
                )
            self.static, self.changed = now, True
        return self.static

    def done(self) -> None:
        """Takes note of what the epoch itself has changed, such as a list of shapes."""
        self.known = self.static.again(forget=False).reads


def _advance(compiled: _Compiled, arrays: list, data: Examples, batch_size: int, state: State, number: int) -> tuple:
    new, values, finite = _epoch(state, arrays, data, static=compiled.current(), batch_size=batch_size)
    values = np.asarray(values)
    compiled.done()
    if not bool(finite):
        raise NotFinite(
            f"{diverged(number, values)}; lower the learning rate, clip gradients (optax.clip_by_global_norm), or look "
            "for NaN in weights (jax_debug_nans)"
        )
    return new, {"loss": values.mean()}


def diverged(epoch: int, values: np.ndarray) -> str:
    """What happened in an epoch after which a loss or a parameter is not finite."""
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong) == 0:  # the last step had a finite loss and went too far
        return f"parameters are not finite after the last step of epoch {epoch}"
    return f"the loss is {values[wrong[0]]} at epoch {epoch}, step {wrong[0] + 1} of {len(values)}"


def _description(state, objective, tx, train, batch_size, examples, every, stopping) -> dict[str, Any]:
    """What a checkpoint must match to be this run's."""
    return {
        "batch_size": batch_size,
        "examples": described(examples),
        "every": every,
        "train": train.fingerprint(),
        "key": np.asarray(jax.random.key_data(state.key)).tolist(),
        "objective": described(objective),
        "optimizer": f"#{digest(tx.step)}",
        "stopping": None if stopping is None else repr(stopping),
    }


# ---------------------------------------------------------------------- one epoch


@functools.partial(jax.jit, static_argnames=("static", "batch_size"))
def _epoch(state, arrays, data, *, static, batch_size):
    objective, step = combine(arrays, static)
    state, values = epoch(state, objective, Step(None, step), data, batch_size=batch_size)
    return state, values, all_finite(values, state)


def all_finite(values: Array, state: State) -> Array:
    """Whether the losses of an epoch and the parameters after it are finite: bool []."""
    leaves = [values, *jax.tree.leaves(state.variables["params"])]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def epoch(
    state: State,
    objective: Objective,
    tx: optax.GradientTransformation | Step,
    data: Examples,
    *,
    batch_size: int,
) -> tuple[State, Array]:
    """All examples once, in random order: what `fit` jits, for your own loops under `jit`, `vmap` or `scan`.

    Args:
        state: from `init`, or from the epoch before.
        objective: as `fit` has it.
        tx: as `fit` has it.
        data: such as `singles(train)`; an argument of the jitted function, not a constant in it.
        batch_size: B, static.

    Returns:
        The new state, and the losses of the ⌈R / B⌉ steps.

    >>> import jaxrec as jr
    >>> train, model, tx = jr.Interactions.from_pairs([0, 0, 1], [0, 1, 2]), jr.models.MF(2, 3, dim=2), optax.sgd(0.1)
    >>> sample = functools.partial(jr.sampling.uniform, n_items=3)
    >>> bound = functools.partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    >>> step = lambda state, data: epoch(state, bound, tx, data, batch_size=2)
    >>> states = jax.vmap(lambda key: init(key, model, tx))(jax.random.split(jax.random.key(0), 5))
    >>> states, losses = jax.jit(jax.vmap(step, in_axes=(0, None)))(states, singles(train))
    >>> losses.shape
    (5, 2)
    """
    advance, n = as_step(tx).step, data.n
    steps = -(-n // batch_size)
    order_key, step_key = jax.random.split(jax.random.fold_in(state.key, state.epoch))

    def value(params, key, batch, other=None):
        return (other or objective)({**state.variables, "params": params}, key, batch)

    def step(carry, number):
        places = number * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        chosen = jnp.where(places < n, sampling.permuted(order_key, jnp.minimum(places, n - 1), n=n), n)
        batch = data.batch(chosen, state.epoch * steps + number)
        loss, *carry = advance(value, *carry, jax.random.fold_in(step_key, number), batch)
        return tuple(carry), loss

    carry = state.variables["params"], state.opt_state
    (params, opt_state), values = jax.lax.scan(step, carry, jnp.arange(steps, dtype=jnp.int32))
    return State({**state.variables, "params": params}, opt_state, state.key, state.epoch + 1), values
