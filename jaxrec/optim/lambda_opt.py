"""λOpt: regularisation coefficients learned during training (Chen et al. 2019, arXiv 1905.11596).

The parameters Θ descend on the training loss plus Ω(Λ, Θ) = Σ Λ ⊙ Θ². The coefficients Λ descend on
the validation loss of Θ̄(Λ), the parameters after the next step of Θ's optimiser. `lookahead`
simulates that step, `hypergradient` differentiates through it, and `alternate` makes the two kinds
of steps alternately. `regularization` has Ω and the granularities of Λ, and `moments` has the
optimisers of the released code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec._numerics import integer
from jaxrec._partials import check_function
from jaxrec.optim.regularization import TABLES, Rows, coefficients, penalty
from jaxrec.optim.step import Step, ValueFn, as_step
from jaxrec.typing import Array, Key

Value = Callable[[Any, Any], Array]


def lookahead(
    lambdas: Any,
    params: Any,
    opt_state: Any,
    batch: Any,
    *,
    value: Value,
    tx: optax.GradientTransformation | Step,
    rows: Rows | None = None,
    steps: int = 1,
    first_order: bool = False,
    shared: Sequence[str] = TABLES,
) -> Any:
    """Returns Θ̄(Λ), the parameters after simulated steps of the optimiser on value + `penalty`.

    With one step, no second derivatives of the training loss are needed: its gradient is taken at
    Θ, which does not depend on Λ. With more steps, the later ones have second derivatives.

    Args:
        lambdas: Λ.
        params: Θ.
        opt_state: the state of `tx` in training. It is only read; the simulated state is dropped.
        batch: training batch, any tree of arrays. With S `steps` above 1, every leaf has a leading
            axis of S.
        value: training loss of (params, batch), without the penalty.
        tx: any optax transformation, or a `Step` such as `rowwise.lazy_sgd(η)`. It must have a
            derivative where moments are 0. The root in `optax.adam` has none there: simulate Adam
            by `moments.smooth_adam`, which takes the same state.
        rows: rows to penalise, as in `penalty`, with the same leading axis as the batch. With the
            real step's rows, that step is simulated exactly. None penalises whole tables, as the
            released code and the paper do.
        steps: S, the number of steps; each has its own batch.
        first_order: whether to leave out the second derivatives of the training loss in later
            steps.
        shared: names of the parameters that share Λ if it is one array, as in `penalty`.

    Returns:
        The parameters after S steps, which can be differentiated in Λ in reverse mode.

    Raises:
        ValueError: if `steps` is not an integer of 1 or more, a leaf has no axis of that length, or
            `first_order` is used with several steps and a `Step`, which takes the gradient itself.

    Differs: the released code takes the gradient of the training loss with the batch's penalty
    included, so that this is counted twice, with weight 1/B. It also corrects Adam's bias by the
    number of the previous step.
    """
    _check_steps(steps, first_order, tx, (batch, rows))

    def step(carry: tuple[Any, Any], now: tuple[Any, Any]) -> tuple[tuple[Any, Any], None]:
        (params, opt_state), (batch, rows) = carry, now
        shrink = lambda p: penalty(lambdas, p, rows, shared=shared)  # noqa: E731
        if isinstance(tx, Step):
            both = lambda p, key, batch: value(p, batch) + shrink(p)  # noqa: E731
            return tx.step(both, params, opt_state, None, batch)[1:], None
        # Take the two gradients separately: the loss's does not depend on Λ in the first step.
        stop = jax.lax.stop_gradient if first_order else lambda tree: tree
        slopes = jax.tree.map(jnp.add, stop(jax.grad(value)(stop(params), batch)), jax.grad(shrink)(params))
        updates, opt_state = tx.update(slopes, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    carry = params, opt_state
    if steps == 1:
        return step(carry, (batch, rows))[0][0]
    # Recompute each step in the backward pass, instead of storing what it holds.
    return jax.lax.scan(jax.checkpoint(step), carry, (batch, rows))[0][0]


def hypergradient(
    lambdas: Any,
    params: Any,
    opt_state: Any,
    batch: Any,
    valid_batch: Any,
    *,
    value: Value,
    tx: optax.GradientTransformation | Step,
    valid_value: Value | None = None,
    **options: Any,
) -> tuple[jax.Array, Any]:
    """Computes the validation loss l_V of Θ̄(Λ), without any penalty, and its gradient in Λ.

    For gradient descent with learning rate η, the gradient is −2 η Θ ⊙ ∂l_V/∂Θ̄, summed over the
    parameters that share a coefficient. With `rows` it is also multiplied by the sum of a row's
    weights, so that only rows in both batches have a gradient.

    A step may take Λ below 0. Project it after the step, with
    `optax.projections.projection_non_negative`, or with `optax.keep_params_nonnegative()` at the
    end of the chain. A coefficient leaves 0 again when its gradient is negative.

    Args:
        lambdas: Λ.
        params: Θ.
        opt_state: the state of `tx` in training.
        batch: training batch, as in `lookahead`.
        valid_batch: one validation batch.
        value: training loss of (params, batch), without the penalty.
        tx: the optimiser to simulate, as in `lookahead`.
        valid_value: validation loss of (params, valid_batch); None uses `value`.
        options: `rows`, `steps`, `first_order` and `shared` of `lookahead`.

    >>> value = lambda params, target: (params["user"] - target).sum() ** 2
    >>> tx, params = optax.sgd(0.1), {"user": jnp.array([[2.0]])}
    >>> lambdas = {"user": jnp.zeros((1, 1))}
    >>> loss, grads = hypergradient(lambdas, params, tx.init(params), 2.0, 1.0, value=value, tx=tx)
    >>> round(float(loss), 4), round(float(grads["user"][0, 0]), 4)  # −2 · 0.1 · 2 times 2 · (2 − 1)
    (1.0, -0.8)
    """

    def after(lambdas: Any) -> jax.Array:
        ahead = lookahead(lambdas, params, opt_state, batch, value=value, tx=tx, **options)
        return (valid_value or value)(ahead, valid_batch)

    return jax.value_and_grad(after)(lambdas)


def _check_steps(steps: int, first_order: bool, tx: Any, batches: Any) -> None:
    """Checks `steps` against the leading axes of the batches, and `first_order` against `tx`."""
    steps = integer("steps", steps)
    if steps > 1 and first_order and isinstance(tx, Step):
        raise ValueError("first_order=True needs the gradients, which a Step hides; simulate an optax transformation")
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)} if steps > 1 else set()
    if sizes - {(steps,)}:
        raise ValueError(f"steps={steps}, but the leading axes of batch and rows are {sizes}; stack one batch per step")


# ---------------------------------------------------------------------- alternating steps


class Draw(NamedTuple):
    """What an alternating step needs in addition to its batch.

    Batches are pairs (key, batch), as an objective takes them.

    Attributes:
        rows: the rows of the step's batch that are penalised, as `penalty` takes them.
        ahead: training batch for the simulation, as `lookahead` takes it.
        ahead_rows: the rows of the batch `ahead` that are penalised.
        valid: validation batch.
        valid_objective: objective of (variables, key, batch) on validation; None uses the training
            objective.
    """

    rows: Rows | None
    ahead: Any
    ahead_rows: Rows | None
    valid: Any
    valid_objective: Callable[..., Array] | None = None


class AlternatingState(NamedTuple):
    """State of `alternate`.

    Attributes:
        opt_state: state of the optimiser of Θ.
        lambdas: Λ.
        lambda_state: state of the optimiser of Λ.
        count: int32 [], number of steps done.
    """

    opt_state: Any
    lambdas: Any
    lambda_state: Any
    count: Array  # type: ignore[assignment]  # hides the method `count` of tuples, as in optax's states


def alternate(
    tx: optax.GradientTransformation | Step,
    lambda_tx: optax.GradientTransformation,
    *,
    draws: Callable[[Key, Any], Draw],
    start: Callable[[Any], Any] = coefficients,
    simulated: optax.GradientTransformation | Step | None = None,
    scope: Literal["full", "exact"] = "full",
    every: int = 1,
    steps: int = 1,
    first_order: bool = False,
    shared: Sequence[str] = TABLES,
) -> Step:
    """Returns a `Step` that alternates steps of Θ under Λ with steps of Λ on validation data.

    After each step, negative entries of Λ are set to 0; the moments of its optimiser do not change.
    The first step is one of Θ. The length of Adam's first step does not depend on the gradient, so
    simulating it would say nothing about Λ.

    Args:
        tx: the optimiser of Θ, on the training loss plus the penalty of the batch's rows.
        lambda_tx: the optimiser of Λ. The paper's scripts use
            `optax.chain(optax.clip_by_global_norm(1e-3), moments.amsgrad(1e-2))`.
        draws: function of (key, batch) that returns the step's `Draw`, such as
            `partial(train.lambda_opt.draws, objective=objective, train=..., valid=...)`.
        start: function of the parameters that returns the initial Λ, such as `partial(coefficients,
            granularity="DU")`.
        simulated: the optimiser of the look-ahead, such as `moments.smooth_adam(η)` for
            `optax.adam(η)`; None uses `tx`.
        scope: what the look-ahead penalises. "full" penalises whole tables, as the paper and its
            code do; each row of the validation batch then moves its Λ. "exact" penalises the rows
            of the batch, as the step of Θ does; only rows in both batches then move their Λ.
        every: number of steps of Θ between steps of Λ.
        steps: number of look-ahead steps; see `lookahead`.
        first_order: whether to leave out second derivatives; see `lookahead`.
        shared: names of the parameters that share Λ if it is one array, as in `penalty`.

    Raises:
        TypeError: if `draws` or `start` is not a function.
        ValueError: if `scope` has another value, or `every` or `steps` is not an integer of 1 or
            more. By `init`, if there is no `simulated` and `tx` has no derivative where a gradient
            is 0, as it is in rows outside a batch; `optax.adam` is an example.
    """
    if scope not in ("full", "exact"):
        raise ValueError(f"scope={scope!r}; give 'full' or 'exact'")
    check_function("draws", draws, "functools.partial(jaxrec.train.lambda_opt.draws, ...)")
    check_function("start", start, "jaxrec.optim.lambda_opt.coefficients")
    every, steps = integer("every", every), integer("steps", steps)
    ahead: dict[str, Any] = {"steps": steps, "first_order": first_order, "shared": tuple(shared)}
    how: dict[str, Any] = {
        "tx": tx,
        "lambda_tx": lambda_tx,
        "draws": draws,
        "simulated": simulated or tx,
        "scope": scope,
    }
    init = partial(_init, tx=tx, lambda_tx=lambda_tx, start=start, check=simulated is None)
    return Step(init, partial(_alternated, every=every, ahead=ahead, **how))


def _init(params, *, tx, lambda_tx, start, check):
    """Creates the state of `alternate`."""
    if check and not isinstance(tx, Step):
        _check_smooth(tx, params)
    lambdas = start(params)
    return AlternatingState(tx.init(params), lambdas, lambda_tx.init(lambdas), jnp.zeros((), jnp.int32))


def _alternated(
    value_fn: ValueFn, params, state, key, batch, *, tx, lambda_tx, draws, simulated, scope, every, ahead
) -> tuple[jax.Array, Any, AlternatingState]:
    """Makes one step of Θ and, if it is due, one of Λ."""
    draw, lambdas, lambda_state = draws(key, batch), state.lambdas, state.lambda_state

    def penalised(params: Any, key: Key, batch: Any) -> jax.Array:
        return value_fn(params, key, batch) + penalty(lambdas, params, draw.rows, shared=ahead["shared"])

    loss, params, opt_state = as_step(tx).step(penalised, params, state.opt_state, key, batch)

    def value(params: Any, drawn: Any, objective: Any = None) -> jax.Array:
        key, batch = drawn
        return value_fn(params, key, batch, objective)

    def learned(lambdas: Any, lambda_state: Any) -> tuple[Any, Any]:
        rows = draw.ahead_rows if scope == "exact" else None
        functions: dict[str, Any] = {
            "value": value,
            "valid_value": partial(value, objective=draw.valid_objective),
            "tx": simulated,
        }
        options = functions | ahead | {"rows": rows}
        _, slopes = hypergradient(lambdas, params, opt_state, draw.ahead, draw.valid, **options)
        updates, lambda_state = lambda_tx.update(slopes, lambda_state, lambdas)
        return optax.projections.projection_non_negative(optax.apply_updates(lambdas, updates)), lambda_state

    count = state.count + 1
    if every == 1:  # `lax.cond` would copy the tables that it returns
        lambdas, lambda_state = learned(lambdas, lambda_state)
    else:
        same = lambda *old: old  # noqa: E731
        lambdas, lambda_state = jax.lax.cond(count % every == 0, learned, same, lambdas, lambda_state)
    return loss, params, AlternatingState(opt_state, lambdas, lambda_state, count)


def _check_smooth(tx: optax.GradientTransformation, params: Any) -> None:
    """Raises `ValueError` if the first step of `tx` has no derivative at a gradient of 0."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
        return

    def moved(by: Array) -> jax.Array:
        gradients = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) + by.astype(leaf.dtype), params)
        return sum(leaf.sum() for leaf in jax.tree.leaves(tx.update(gradients, tx.init(params), params)[0]))

    if not jnp.isfinite(jax.jit(jax.grad(moved))(jnp.zeros(()))):
        raise ValueError(
            "tx has no derivative where a gradient is 0, as it is in rows outside a batch, so that "
            "Λ becomes NaN; pass simulated=, such as moments.smooth_adam(learning_rate) for "
            "optax.adam(learning_rate)"
        )
