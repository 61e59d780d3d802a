"""Training: an epoch is one jitted `lax.scan` over shuffled examples; draws are on the device."""

from __future__ import annotations

import functools
import time
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
from jaxrec._mesh import divided, mesh_of, on_mesh, placed_like, replicated, using
from jaxrec._numerics import integer
from jaxrec._partials import Static, check_static, combine, partition
from jaxrec._run import NotFinite, Saver, run
from jaxrec.interactions import Interactions, check_positives
from jaxrec.models._initial import initial_variables
from jaxrec.optim.step import Step, as_step
from jaxrec.train._checks import (
    check_bound,
    check_covers,
    check_functions,
    check_optimizer,
    check_state,
    check_transformation,
)
from jaxrec.train.examples import Examples, singles
from jaxrec.train.stream import Stream, as_stream
from jaxrec.typing import Array, Key, Objective, Validate, Variables


class State(NamedTuple):
    """Everything that a run needs to continue.

    Attributes:
        variables: the model's variables; the collection "params" is trained.
        opt_state: the state of the optimiser.
        key: the run's typed key. After e epochs, the next one draws from `fold_in(key, e)`, and
            block b of the n blocks of a stream, from 0, draws from `fold_in(key, n·e + b)`.
        epoch: int32 [], number of epochs done.
    """

    variables: Variables
    opt_state: Any
    key: Key
    epoch: Array


def init(
    key: Key,
    model: Any,
    tx: optax.GradientTransformation | Step,
    *,
    parameters: Mapping[str, Array] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> State:
    """Creates a state: the model's variables, drawn with `key`, and the optimiser's state for them.

    Args:
        key: typed key, consumed: one half draws the variables, the other half becomes the run's
            key.
        model: a Linen module, or another model that is called with users and items.
        tx: an optax transformation of the collection "params", or an `optim.Step`.
        parameters: entries of "params". Those that the model has take the place of what it draws,
            and must have its shapes; floats get their dtype. Others are further parameters that the
            loss learns, such as `{"boundary": jnp.zeros(n_users)}` for `losses.uib`; see `arguments`
            of `pairwise_objective`.
        constants: values of the model's collections that are not trained, such as
            `{"features": {"table": table}}` for a module with `self.variable("features", "table",
            ...)`. They take the place of those that the model draws, and must have their names and
            shapes; floats get their dtype.

    Raises:
        TypeError: if `model` is a class or no model, `tx` is not a transformation, or the model has an array
            among its attributes.
        ValueError: if `key` is not a typed key, such as an integer seed; `constants` have a name
            that the model's do not have; or `constants` or `parameters` have another shape than the
            model's of this name.
    """
    check_key(key)
    if isinstance(model, type):
        raise TypeError(
            f"model is the class {model.__name__}; give an instance, such as {model.__name__}(n_users, n_items)"
        )
    if not callable(getattr(model, "init", None)):
        raise TypeError(f"model={model!r:.80}; give a model, such as jaxrec.models.MF(n_users, n_items)")
    check_transformation(tx)
    check_static(model)
    model_key, run_key = jax.random.split(key)
    variables = initial_variables(model, model_key)
    given = dict(constants or {})
    if "params" in given:
        raise ValueError("constants has 'params', which are trained; give constants of other collections")
    variables = _replaced(variables, given, "constants", type(model).__name__)
    own, given = variables["params"], dict(parameters or {})
    known = _replaced(own, {name: given[name] for name in own if name in given}, "parameters", type(model).__name__)
    variables = {**variables, "params": {**given, **known}}
    return State(variables, tx.init(variables["params"]), run_key, jnp.zeros((), jnp.int32))


def _replaced(known: Any, given: Any, place: str, model: str) -> Any:
    """Returns the variables with those that are given, which must be among them and have their shapes."""
    if isinstance(known, Mapping) and isinstance(given, Mapping):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"{place} has {unknown[0]!r}, but {model} has {sorted(known)}; give one of these names")
        parts = {name: _replaced(known[name], each, f"{place}[{name!r}]", model) for name, each in given.items()}
        return {**known, **parts}
    shapes = [jax.tree.map(np.shape, tree) for tree in (given, known)]
    if shapes[0] != shapes[1] and not isinstance(known, Interactions):
        raise ValueError(
            f"{place} has shape {shapes[0]}, but {model} has {shapes[1]}; give a table of this shape, or create the "
            "model with other sizes"
        )
    if isinstance(known, Interactions):
        return jax.tree.map(jnp.asarray, given)
    return jax.tree.map(_of_dtype, given, known)


def _of_dtype(value: Any, like: Any) -> jax.Array:
    """Returns an array; if both hold floats, it has the dtype of `like`."""
    floats = all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in (value, like))
    return jnp.asarray(value, jnp.result_type(like) if floats else None)


def fit(
    state: State,
    objective: Objective,
    tx: optax.GradientTransformation | Step,
    train: Interactions,
    *,
    epochs: int,
    batch_size: int = 1024,
    examples: Callable[[Interactions], Examples | Stream] = singles,
    validate: Validate | None = None,
    every: int = 1,
    stopping: EarlyStopping | None = None,
    checkpoint: Saver | None = None,
    callbacks: Sequence[Callable[[State, Mapping[str, float]], Any]] = (),
    progress: bool = True,
) -> tuple[State, Log]:
    """Trains until `epochs` epochs are done, counted from the start of the run.

    One compiled program serves all batches of all epochs: the last batch of an epoch is padded and
    masked. Arrays that `functools.partial` binds to `objective` are passed to the program as
    arguments. An array in the closure of a lambda is compiled in as a constant instead, which is
    slow for large arrays. Values that functions read from globals or closures are checked before
    each epoch. If one has changed, the program is compiled again and a warning says so.

    Args:
        state: the state from `init`, or from an earlier `fit` to continue. If `shard` has put it on
            a mesh, batches are divided over the devices, and the result lies where `state` does.
        objective: function of (variables, key, batch) that returns a scalar, such as
            `pairwise_objective` with its arguments bound.
        tx: the optimiser with which `state` was created: any optax transformation, or an
            `optim.Step` such as `rowwise.adam`. An optax transformation gets the step's `value`,
            `grad` and `value_fn` if it accepts them.
        train: the positives. Their weights must be 0 or more, and not all 0.
        epochs: total number of epochs. A state that has done as many is returned unchanged, with a
            warning.
        batch_size: B, the number of examples per step. On a mesh it should be a multiple of the
            number of devices; otherwise every device computes the whole batch.
        examples: function of the positives that returns the examples of an epoch: `singles`,
            `partial(groups, n=16)`, `by_user`, `streamed` or your own; see `train.examples`. With
            `streamed`, only a few blocks of the positives are on the device.
        validate: host function of the variables that returns named numbers, or a `Report`, whose
            means are used, such as `lambda v: full_ranking(model, v, train, valid, ks=(10,))`. They
            are written to the log.
        every: number of epochs between validations. The last epoch is always validated.
        stopping: ends the run when its metric no longer improves. The returned state is then the
            best one.
        checkpoint: where to save. If the run is killed, the same call resumes it, with
            bit-identical results to a run that was never interrupted; on GPUs this needs the XLA
            flag `--xla_gpu_deterministic_ops=true`.
        callbacks: functions called after each epoch with the state and the epoch's record.
        progress: whether to show a progress bar.

    Returns:
        The state (the best one if `stopping` is given, else the last) and the `Log`.

    Raises:
        DivergenceError: a `ValueError`, if the loss is not finite, or if the metric of `stopping`
            was NaN at every validation. It carries the last good state. The checkpoint keeps the
            last epoch saved.
        Interrupted: a `KeyboardInterrupt`, on Ctrl-C. It carries the last state, the best one and
            the log, and the checkpoint has them too.
        TypeError: if `train`, `tx`, `stopping`, `checkpoint` or `callbacks` has another type;
            `objective`, `examples`, `validate` or a callback is not a function; or the model has an
            array among its attributes.
        ValueError: if a number is not an integer or too small; weights are negative or not finite;
            a model in the partials of `objective` has fewer users or items than `train`, or tables
            of other sizes; a sampler, `seen`, `log_q` or margins in them have other sizes; the loss
            does not return one value per positive; `state` belongs to another optimiser or model;
            `stopping` is given without `validate`; `validate` does not return the metric; or the
            checkpoint was made by another run (other data, batch size, key, objective, optimiser or
            stopping rule), is in use by another process, or is damaged.
    """
    began = time.perf_counter()
    check_positives(train=train)
    check_functions(objective=objective, examples=examples)
    check_state(state)
    check_optimizer(state, tx)
    epochs, batch_size, every = integer("epochs", epochs), integer("batch_size", batch_size), integer("every", every)
    tx = as_step(tx)
    arrays, static = partition((objective, tx.step))
    check_covers(static.leaves, train, state.variables)
    check_bound((objective, tx.step), train, state.variables)
    mesh = mesh_of(state)
    description = None
    if checkpoint is not None:
        description = _description(state, objective, tx, train, batch_size, examples, every, stopping)
    with using(mesh):
        start, arrays = state if mesh is None else on_mesh(state, mesh), on_mesh(arrays, mesh)
        places = None if mesh is None else tuple(leaf.sharding for leaf in jax.tree.leaves(start))
        data = as_stream(examples(train), mesh)
        best, log = run(
            functools.partial(_advance, _Compiled(static), arrays, data, batch_size, places),
            start,
            epochs=epochs,
            began=began,
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
    return best if mesh is None else placed_like(best, state), log


class _Compiled:
    """The static part for which the epoch is compiled.

    It is renewed if a value that the functions read has changed.
    """

    def __init__(self, static: Static):
        self.static, self.known, self.changed = static, static.reads, False

    def current(self) -> Static:
        """Returns the static part for the next epoch, and warns at the first change."""
        now = self.static.again()
        if now.reads != self.known:
            if not self.changed:
                warnings.warn(
                    "a value that the objective or the optimiser reads from a global or a closure has changed "
                    "during training; the epoch is compiled again with the new value, and after each change",
                    stacklevel=5,
                )
            self.static, self.changed = now, True
        return self.static

    def done(self) -> None:
        """Records values that the epoch itself has changed, so that they do not recompile it.

        An example is a list to which a traced function appends shapes.
        """
        self.known = self.static.again(forget=False).reads


def _advance(
    compiled: _Compiled,
    arrays: list,
    data: Stream,
    batch_size: int,
    places: tuple | None,
    state: State,
    number: int,
) -> tuple[State, dict[str, float]]:
    """Runs one epoch on the device; raises `NotFinite` if a loss or a parameter is not finite."""
    how: dict[str, Any] = {
        "static": compiled.current(),
        "batch_size": batch_size,
        "n_blocks": data.n_blocks,
        "places": places,
    }
    new, finite = state, []
    parts: list[Any] = []
    for place, block in enumerate(data.blocks(state.key, state.epoch)):
        new, losses, fine = _epoch(new, arrays, block, np.int32(place), **how)
        parts.append(losses)
        finite.append(fine)
        # JAX returns before a block is done. `blocks` reads the next one meanwhile, but none after it.
        if place and not bool(finite[-2]):
            break
    if len(parts) != data.n_blocks and all(map(bool, finite)):
        raise ValueError(f"the stream gave {len(parts)} blocks in epoch {number}, but its n_blocks is {data.n_blocks}")
    values, steps = np.concatenate(parts), data.n_blocks * len(losses)
    compiled.done()
    if not all(map(bool, finite)):
        raise NotFinite(
            f"{diverged(number, values, steps)}; lower the learning rate, clip gradients (optax.clip_by_global_norm), "
            "or look for NaN in weights (jax_debug_nans)"
        )
    return new, {"loss": values.mean()}


def diverged(epoch: int, values: np.ndarray, steps: int) -> str:
    """Says where a loss or a parameter became infinite or NaN.

    Args:
        epoch: the number of the epoch.
        values: the losses of the steps so far.
        steps: the number of steps of the whole epoch.
    """
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong) == 0:  # the update of the last step overflowed after a finite loss
        last = "the last step" if len(values) == steps else f"step {len(values)} of {steps}"
        return f"parameters are not finite after {last} of epoch {epoch}"
    return f"the loss is {values[wrong[0]]} at epoch {epoch}, step {wrong[0] + 1} of {steps}"


def _description(state, objective, tx, train, batch_size, examples, every, stopping) -> dict[str, Any]:
    """Returns what a checkpoint must match to belong to this run."""
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


@functools.partial(jax.jit, static_argnames=("static", "batch_size", "n_blocks", "places"))
def _epoch(state, arrays, data, place, *, static, batch_size, n_blocks, places=None):
    """Runs block `place` of an epoch. `epoch` takes each block for an epoch, with its own key and steps.

    `places` are the shardings of the state's leaves; the new state has the same.
    """
    objective, step = combine(arrays, static)
    part = state._replace(epoch=state.epoch * n_blocks + place)
    part, values = epoch(part, objective, Step(None, step), data, batch_size=batch_size)
    state = part._replace(epoch=part.epoch // n_blocks)
    if places is not None:
        leaves, tree = jax.tree.flatten(state)
        state = jax.tree.unflatten(tree, map(jax.lax.with_sharding_constraint, leaves, places))
    return state, *replicated((values, all_finite(values, state)))


def all_finite(values: Array, state: State) -> jax.Array:
    """Returns whether the losses of an epoch and the parameters after it are finite: bool []."""
    leaves = [values, *jax.tree.leaves(state.variables["params"])]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


def epoch(
    state: State,
    objective: Objective,
    tx: optax.GradientTransformation | Step,
    data: Examples,
    *,
    batch_size: int,
) -> tuple[State, jax.Array]:
    """Runs all examples once, in random order.

    `fit` jits this function; use it in your own loops under `jit`, `vmap` or `scan`.

    Args:
        state: the state from `init`, or from the epoch before.
        objective: function of (variables, key, batch) that returns a scalar, as in `fit`.
        tx: the optimiser with which `state` was created, as in `fit`.
        data: examples, such as `singles(train)`. Pass them as an argument of the jitted function;
            those of its closure are compiled in as constants.
        batch_size: B, static.

    Returns:
        The new state, and the losses [⌈R / B⌉] of the steps, where R is the number of examples.

    Raises:
        TypeError: if `data` is an `Interactions`.

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
    if isinstance(data, Interactions):
        raise TypeError("data is an Interactions; pass examples, such as train.singles(data)")
    data = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, data)
    advance, n = as_step(tx).step, data.n
    steps = -(-n // batch_size)
    order_key, step_key = jax.random.split(jax.random.fold_in(state.key, state.epoch))

    def value(params, key, batch, other=None):
        return (other or objective)({**state.variables, "params": params}, key, batch)

    def step(carry, number):
        # The slice is computed from the key, so the whole order is never stored. Places past the
        # end become n, which marks padding.
        places = number * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        chosen = jnp.where(places < n, sampling.permuted(order_key, jnp.minimum(places, n - 1), n=n), n)
        batch = divided(data.batch(replicated(chosen), state.epoch * steps + number))
        loss, *carry = advance(value, *carry, jax.random.fold_in(step_key, number), batch)
        return tuple(carry), loss

    carry = state.variables["params"], state.opt_state
    (params, opt_state), values = jax.lax.scan(step, carry, jnp.arange(steps, dtype=jnp.int32))
    return State({**state.variables, "params": params}, opt_state, state.key, state.epoch + 1), values
