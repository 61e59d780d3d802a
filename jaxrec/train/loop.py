"""Training: an epoch is one jitted `lax.scan` over shuffled positives, with negatives drawn on the device."""

from __future__ import annotations

import contextlib
import functools
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from jaxrec import sampling
from jaxrec._identity import digest
from jaxrec._keys import check_key
from jaxrec._log import EarlyStopping, History, Interrupted, extended
from jaxrec._mesh import as_auto, placed_like
from jaxrec._numerics import integer
from jaxrec._partials import Static, check_static, combine, partition
from jaxrec.interactions import Interactions
from jaxrec.optim import lambda_opt, rowwise
from jaxrec.optim.step import gradient_step
from jaxrec.train._checks import (
    check_bound,
    check_covers,
    check_fit,
    check_optimizer,
    check_touched,
    check_transformation,
    check_weights,
)
from jaxrec.train.checkpoint import Checkpoint, Progress, start_of
from jaxrec.typing import Array, Key, Objective, Variables


class State(NamedTuple):
    """All that a run needs to continue.

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
    """Positives of one step.

    Attributes:
        users: int32 [B].
        items: int32 [B], or [B, P] where `fit` groups up to P positives of a user; [B, 0] with `group=0`.
        weights: float32, of the shape of `items`, or None.
        where: bool, of the shape of `items`, True = use; [B] with `group=0`. None means all, in a loop of your own.
        step: int32 [], steps that the run has made before this one, for what is annealed.
    """

    users: Array
    items: Array
    weights: Array | None = None
    where: Array | None = None
    step: Array | int = 0

    @property
    def mask(self) -> Array:
        """`where`, or True for all where it is None."""
        if self.where is not None:
            return self.where
        return jnp.ones(self.users.shape if self.items.size == 0 else self.items.shape, bool)


class DivergenceError(ValueError):
    """Training has nothing to return: the loss is not finite, or the metric of early stopping never was a number.

    Attributes:
        state: the last good state: that of the beginning of the epoch whose loss is not finite, or the last one.
        history: the `History` of the epochs before.
    """

    def __init__(self, message: str, state: State, history: History | None = None):
        super().__init__(message, state, history)  # all three, so that it can be pickled
        self.state, self.history = state, history

    def __str__(self) -> str:
        return self.args[0]


def init(
    key: Key, model: Any, tx: optax.GradientTransformation, *, parameters: Mapping[str, Array] | None = None
) -> State:
    """A fresh state: variables drawn from `key`, which then becomes the run's key.

    Args:
        key: typed key, consumed.
        model: a Linen module called with users and items.
        tx: an optax transformation of the collection "params".
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
    tx: optax.GradientTransformation,
    train: Interactions,
    *,
    epochs: int,
    batch_size: int = 1024,
    group: int | None = None,
    touched: Callable[[Key, Batch], Mapping[str, Array]] | None = None,
    validate: Callable[[Variables], Mapping[str, float]] | None = None,
    every: int = 1,
    stopping: EarlyStopping | None = None,
    checkpoint: Checkpoint | None = None,
    callbacks: Sequence[Callable[[State, Mapping[str, float]], Any]] = (),
    progress: bool = True,
) -> tuple[State, History]:
    """Trains until `epochs` epochs are done, counted from the start of the run.

    One program serves all batches of all epochs: the last batch of an epoch is padded and masked. Arrays inside the
    `functools.partial`s of `objective` are arguments of it. An array that a lambda reads from its closure is compiled
    in as a constant, which is slow for large arrays. Values that functions read from globals or closures are checked
    before each epoch. If one has changed, the program is compiled again, and a warning says so.

    Args:
        state: from `init`, or from an earlier `fit` to continue.
        objective: scalar of (variables, key, batch), such as a `pairwise_objective` with its arguments bound.
        tx: the transformation that `state` was made with: any of optax, or of `jaxrec.optim`. It gets `value`, `grad`
            and `value_fn` of the step where it takes them.
        train: the positives. Their weights must be 0 or more, and not all 0.
        epochs: total number of epochs. A state that has done as many is returned as it is, with a warning.
        batch_size: B, positives a step, or users a step with `group`.
        group: if given, an example is a user with up to so many of its positives (a user with more makes several
            examples), so that its negatives are drawn and scored once for all of them: for the same work an epoch sees
            several times as many. 0: an example is a user alone, for models that hold the histories themselves.
        touched: function of (key, batch) that names the rows a step looks up, for `optim.rowwise.dense_adam`, such as
            `partial(pairwise_rows, sample=...)` for a `pairwise_objective` with the same sampler. All other rows must
            have a gradient of 0. For `optim.lambda_opt.alternate` it gives what a step needs:
            `partial(train.lambda_opt.draws, ...)`.
        validate: host function of the variables that gives named numbers, or a `Report`, whose means are taken, such as
            `lambda v: full_ranking(model, v, train, valid, ks=(10,))`. They are written to the history.
        every: validate after every so many epochs, and after the last.
        stopping: ends the run when its metric no longer improves; the state returned is then the best one.
        checkpoint: where to save. If the run is killed, the same call resumes it, and on CPU the result is
            bit-identical to that of a run that was never interrupted.
        callbacks: called after each epoch with the state and the epoch's record.
        progress: show a bar.

    Returns:
        The state (the best one if `stopping` is given, else the last) and the `History`.

    Raises:
        DivergenceError: a `ValueError`, for a loss that is not finite, and for a metric of `stopping` that was NaN at
            every validation. It carries the last good state. The checkpoint keeps the last epoch saved.
        Interrupted: a `KeyboardInterrupt`, for Ctrl-C. It carries the last state, the best one and the history, and
            the checkpoint has them too.
        TypeError: for a `train`, `stopping` or `checkpoint` of another type, and a model with an array among its
            attributes.
        ValueError: for numbers that are no integers or too small, negative or non-finite weights; a model in the
            partials of `objective` that has fewer users or items than `train`; a sampler, `seen` or margins there that
            are for other sizes; a loss that does not give one value a comparison; a `touched` with another sampler than
            the objective's; a `state` of another optimiser or model; `stopping` without `validate`; a metric that
            `validate` does not give; a checkpoint that another run made (other data, batch size, key, objective,
            optimiser or stopping rule), that another process uses, or that is damaged.
    """
    check_fit(state, train, epochs, batch_size, group, every, validate, stopping)
    check_optimizer(state, tx, touched)
    check_touched(objective, touched)
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        raise TypeError(f"checkpoint={checkpoint!r}; give jaxrec.train.Checkpoint(directory)")
    epochs, batch_size, every = int(epochs), int(batch_size), int(every)
    data = examples(train, group)
    arrays, static = partition((objective, touched, tx))
    check_covers(static.leaves, train)
    check_bound((objective, touched), train)
    state, placed = as_auto(state), state
    run = Progress(state, state, {} if stopping is None else stopping.init(), History())
    with contextlib.ExitStack() as stack:
        save = None
        if checkpoint is not None:
            stack.enter_context(checkpoint.reserved())
            description = _description(state, objective, tx, train, batch_size, group, touched, every, stopping)
            run = checkpoint.restore(run._replace(start=start_of(state)), description)
            save = functools.partial(checkpoint.save, description=description)
        if int(run.state.epoch) > epochs or (int(run.state.epoch) == epochs and checkpoint is None):
            where = "the state" if checkpoint is None else str(checkpoint.folder)
            warnings.warn(
                f"{where} has done {int(run.state.epoch)} epochs and epochs={epochs} is their total number: nothing is "
                "trained; give a larger number to continue",
                stacklevel=2,
            )
        advance = functools.partial(_advance, jax.device_put(arrays), jax.device_put(data), batch_size)
        loop = {"epochs": epochs, "validate": validate, "every": every, "stopping": stopping, "callbacks": callbacks}
        saving = {"save": save, "save_every": 0 if checkpoint is None else checkpoint.every}
        run = _epochs(run, advance, static, **loop, **saving, progress=progress)
    wrong = None if stopping is None else stopping.never_a_number(run.stopping)
    if wrong is not None:
        raise DivergenceError(f"{wrong}. The error's .state is the last one", run.state, run.history)
    return run.best if state is placed else placed_like(run.best, placed), run.history


def _epochs(
    run: Progress,
    advance: Callable[[State, Static], tuple[State, np.ndarray, bool]],
    static: Static,
    *,
    epochs: int,
    validate: Callable | None,
    every: int,
    stopping: EarlyStopping | None,
    callbacks: Sequence[Callable],
    save: Callable[[Progress], None] | None,
    save_every: int,
    progress: bool,
) -> Progress:
    """Epochs until they are all done or `stopping` says so. `run` is replaced only by a whole epoch."""
    first = saved = int(run.state.epoch)
    known, changed = static.reads, False
    done = stopping is not None and stopping.done(run.stopping)
    bar = tqdm(range(first + 1, epochs + 1), total=epochs, initial=first, disable=not progress, desc="epochs")
    try:
        for epoch in bar:
            if done:
                break
            began, now = time.perf_counter(), static.again()
            if now.reads != known:
                if not changed:
                    warnings.warn(
                        "a value that the objective or the optimiser reads from a global or a closure has changed "
                        "during training; the epoch is compiled again with the new value, and so it is whenever one "
                        "changes",
                        stacklevel=3,
                    )
                changed, static = True, now
            state, values, finite = advance(run.state, static)
            known = static.again(forget=False).reads  # what the epoch itself has changed, such as a list of shapes
            if not finite:
                raise _divergence(epoch, values, run, saved if save else None)
            record = {"epoch": epoch, "loss": float(values.mean()), "seconds": time.perf_counter() - began}
            best, follow = (run.best, run.stopping) if stopping else (state, run.stopping)
            if validate is not None and (epoch % every == 0 or epoch == epochs):
                record = extended(record, validate(state.variables))
                if stopping is not None:
                    follow, improved = stopping.update(run.stopping, record)
                    best, done = state if improved else run.best, stopping.done(follow)
            run = Progress(state, best, follow, run.history.append(record), run.start)
            for callback in callbacks:
                callback(state, record)
            if save is not None and (epoch % save_every == 0 or epoch == epochs or done):
                save(run)
                saved = epoch
            bar.set_postfix(
                {name: f"{value:.4g}" for name, value in record.items() if name not in ("epoch", "seconds")}
            )
    except KeyboardInterrupt as stop:
        if save is not None and int(run.state.epoch) > saved:
            save(run)
        raise Interrupted(run.state, run.history, run.best) from stop
    return run


def _advance(arrays: list, data: Examples, batch_size: int, state: State, static: Static) -> tuple:
    state, values, finite = _epoch(state, arrays, data, static=static, batch_size=batch_size)
    return state, np.asarray(values), bool(finite)


def diverged(epoch: int, values: np.ndarray) -> str:
    """What happened in an epoch after which a loss or a parameter is not finite."""
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong) == 0:  # the last step had a finite loss and went too far
        return f"parameters are not finite after the last step of epoch {epoch}"
    return f"the loss is {values[wrong[0]]} at epoch {epoch}, step {wrong[0] + 1} of {len(values)}"


def _divergence(epoch: int, values: np.ndarray, run: Progress, saved: int | None) -> DivergenceError:
    kept = f"; the checkpoint keeps epoch {saved}, a good one" if saved else ""
    return DivergenceError(
        f"{diverged(epoch, values)}; lower the learning rate, clip gradients (optax.clip_by_global_norm), or look for "
        f"NaN in weights (jax_debug_nans){kept}. The error's .state is the last good one",
        run.state,
        run.history,
    )


def _description(state, objective, tx, train, batch_size, group, touched, every, stopping) -> dict[str, Any]:
    """What a checkpoint must match to be this run's."""
    return {
        "batch_size": int(batch_size),
        "group": None if group is None else int(group),
        "every": int(every),
        "train": train.fingerprint(),
        "key": np.asarray(jax.random.key_data(state.key)).tolist(),
        "objective": f"{_described(objective)} #{digest(objective)}",
        "optimizer": f"#{digest(tx)}",
        "touched": None if touched is None else f"{_described(touched)} #{digest(touched)}",
        "stopping": None if stopping is None else repr(stopping),
    }


def _described(value: Any) -> str:
    """Names and values of nested partials in words; `digest` tells apart what looks the same here."""
    if isinstance(value, functools.partial):
        keywords = [f"{name}={_described(item)}" for name, item in sorted(value.keywords.items())]
        return f"{_described(value.func)}({', '.join([*map(_described, value.args), *keywords])})"
    if isinstance(value, jax.Array | np.ndarray) and np.ndim(value):
        return f"{value.dtype}{list(np.shape(value))}"
    plain = re.sub(r" at 0x[0-9a-f]+|# attributes", "", repr(value))
    return getattr(value, "__qualname__", None) or " ".join(plain.split())


# ---------------------------------------------------------------------- one epoch


class Examples(NamedTuple):
    """What an epoch goes through: for each of R examples its user and where its positives lie among the pairs.

    Attributes:
        users: int32 [R].
        first: int32 [R], place of the example's first positive; None for single positives, example r being pair r.
        length: int32 [R], its number of positives; None likewise.
        items: int32 [nnz].
        weights: float32 [nnz] or None.
        group: int32 [1, P], 0 .. P-1, or None for single positives; [1, 0] for users alone.
    """

    users: Array
    first: Array | None
    length: Array | None
    items: Array
    weights: Array | None
    group: Array | None

    def batch(self, chosen: Array, step: Array | int = 0) -> Batch:
        """The batch of examples `chosen` [B]; the place R stands for padding."""
        real = chosen < self.users.shape[0]
        chosen = jnp.minimum(chosen, self.users.shape[0] - 1)
        if self.group is not None and self.group.size == 0:
            shortest = jnp.argmin(self.length).astype(chosen.dtype)  # whose history costs least
            users = self.users[jnp.where(real, chosen, shortest)]
            return Batch(users, jnp.zeros((len(chosen), 0), jnp.int32), None, real, step)
        places = chosen
        if self.group is not None:
            real = real[:, None] & (self.group < self.length[chosen][:, None])
            places = jnp.where(real, self.first[chosen][:, None] + self.group, 0)
        weights = None if self.weights is None else self.weights[places]
        return Batch(self.users[chosen], self.items[places], weights, real, step)


def examples(train: Interactions, group: int | None = None) -> Examples:
    """The positives one by one, in groups of up to `group` of one user, or (0) the users that have any.

    Args:
        train: the positives.
        group: as `fit` has it.

    Raises:
        ValueError: for negative or non-finite weights, weights that are all 0, and a `group` that is no integer of 0 or
            more.
    """
    check_weights(train=train)
    group = None if group is None else integer("group", group, least=0)
    users, items = train.pairs()
    if group is None:
        return Examples(users, None, None, items, train.weights, None)
    indptr = np.asarray(train.indptr)
    parts = -(-np.diff(indptr) // group) if group else np.diff(indptr) > 0
    owner = np.repeat(np.arange(train.n_users, dtype=np.int32), parts)
    part = np.arange(len(owner)) - np.repeat(np.cumsum(parts) - parts, parts)
    first = (indptr[owner] + part * group).astype(np.int32)
    length = np.minimum(indptr[owner + 1] - first, group or train.n_pairs).astype(np.int32)
    return Examples(owner, first, length, items, train.weights, np.arange(group, dtype=np.int32)[None])


@functools.partial(jax.jit, static_argnames=("static", "batch_size"))
def _epoch(state, arrays, data, *, static, batch_size):
    objective, touched, tx = combine(arrays, static)
    state, values = epoch(state, objective, tx, data, touched=touched, batch_size=batch_size)
    return state, values, all_finite(values, state)


def all_finite(values: Array, state: State) -> Array:
    """Whether the losses of an epoch and the parameters after it are finite: bool []."""
    leaves = [values, *jax.tree.leaves(state.variables["params"])]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def epoch(
    state: State,
    objective: Objective,
    tx: optax.GradientTransformation,
    data: Examples,
    *,
    batch_size: int,
    touched: Callable[[Key, Batch], Mapping[str, Array]] | None = None,
) -> tuple[State, Array]:
    """All examples once, in random order: what `fit` jits, for your own loops under `jit`, `vmap` or `scan`.

    Args:
        state: from `init`, or from the epoch before.
        objective: as `fit` has it.
        tx: as `fit` has it.
        data: of `examples`; an argument of the jitted function, not a constant in it.
        batch_size: B, static.
        touched: as `fit` has it.

    Returns:
        The new state, and the losses of the ⌈R / B⌉ steps.

    >>> import jaxrec as jr
    >>> train, model, tx = jr.Interactions.from_pairs([0, 0, 1], [0, 1, 2]), jr.models.MF(2, 3, dim=2), optax.sgd(0.1)
    >>> sample = functools.partial(jr.sampling.uniform, n_items=3)
    >>> bound = functools.partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    >>> step = lambda state, data: epoch(state, bound, tx, data, batch_size=2)
    >>> states = jax.vmap(lambda key: init(key, model, tx))(jax.random.split(jax.random.key(0), 5))
    >>> states, losses = jax.jit(jax.vmap(step, in_axes=(0, None)))(states, examples(train))
    >>> losses.shape
    (5, 2)
    """
    n = data.users.shape[0]
    steps = -(-n // batch_size)
    order_key, step_key = jax.random.split(jax.random.fold_in(state.key, state.epoch))

    def step(carry, number):
        params, opt_state = carry
        places = number * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        chosen = jnp.where(places < n, sampling.permuted(order_key, jnp.minimum(places, n - 1), n=n), n)
        batch = data.batch(chosen, state.epoch * steps + number)
        key = jax.random.fold_in(step_key, number)

        def value(params, drawn=(key, batch), objective=objective):
            return objective({**state.variables, "params": params}, *drawn)

        if isinstance(tx, lambda_opt.Alternating):
            draw = touched(key, batch)
            if draw.valid_value is not None:
                draw = draw._replace(valid_value=functools.partial(value, objective=draw.valid_value))
            loss, params, opt_state = tx.step(value, params, opt_state, draw)
        elif isinstance(tx, rowwise.TouchedOnly):
            loss, params, opt_state = tx.step(value, params, opt_state)
        else:
            further = {} if touched is None else {"touched": touched(key, batch)}
            loss, params, opt_state = gradient_step(tx, value, params, opt_state, **further)
        return (params, opt_state), loss

    carry = state.variables["params"], state.opt_state
    (params, opt_state), values = jax.lax.scan(step, carry, jnp.arange(steps, dtype=jnp.int32))
    return State({**state.variables, "params": params}, opt_state, state.key, state.epoch + 1), values
