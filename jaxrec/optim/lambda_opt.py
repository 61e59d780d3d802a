"""λOpt: coefficients of regularisation learned while the model trains (Chen et al. 2019, arXiv 1905.11596).

The parameters Θ step down on the training loss plus Ω(Λ, Θ) = Σ Λ ⊙ Θ². The coefficients Λ step down on the validation
loss of Θ̄(Λ), where the optimiser of Θ would go next: `lookahead` simulates its step, `hypergradient` differentiates
through it, `alternate` makes the two kinds of steps in turn. `regularization` has Ω and the granularities of Λ,
`moments` the optimisers of the released code.
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
    """Θ̄(Λ): where the optimiser would take the parameters, by gradients of value + `penalty`; nothing is written back.

    Of one step the training loss has no second derivatives in it: its gradient is taken at Θ, which Λ does not move.
    Of more steps it has, through the later ones.

    Args:
        lambdas: Λ.
        params: Θ.
        opt_state: of `tx` as it trains; it is read, and the one that comes out of the simulation is dropped.
        batch: of training, any tree of arrays. With `steps` S above 1 every leaf has a leading axis of S.
        value: training loss of (params, batch), without the penalty.
        tx: any optax transformation, or a `Step` such as `rowwise.lazy_sgd(η)`. It must have a derivative where moments
            are 0, which the root in `optax.adam` does not have: simulate Adam by `moments.smooth_adam`, which takes the
            same state.
        rows: of `penalty`, with a leading axis as the batch's: the real step's, to simulate exactly that; or None, for
            the penalty of whole tables, which is what the released code simulates and the paper draws.
        steps: S, each with its own batch.
        first_order: leave out the second derivatives of later steps, which the gradient of the training loss has.
        shared: of `penalty`.

    Returns:
        The parameters after S steps, to be differentiated in Λ in reverse mode.

    Raises:
        ValueError: for steps that are not an integer of 1 or more, leaves without an axis of that length, or
            `first_order` of several steps with a `Step`, which takes the gradient itself.

    Differs: the released code takes the gradient of the training loss with the penalty of the batch in it, so that this
    counts twice, by 1/B; and it corrects Adam's bias by the number of the step before.
    """
    _check_steps(steps, first_order, tx, (batch, rows))

    def step(carry: tuple[Any, Any], now: tuple[Any, Any]) -> tuple[tuple[Any, Any], None]:
        (params, opt_state), (batch, rows) = carry, now
        shrink = lambda p: penalty(lambdas, p, rows, shared=shared)  # noqa: E731
        if isinstance(tx, Step):
            both = lambda p, key, batch: value(p, batch) + shrink(p)  # noqa: E731
            return tx.step(both, params, opt_state, None, batch)[1:], None
        # Apart from the penalty's, as the gradient of the loss alone needs no derivative in Λ at the first step.
        stop = jax.lax.stop_gradient if first_order else lambda tree: tree
        slopes = jax.tree.map(jnp.add, stop(jax.grad(value)(stop(params), batch)), jax.grad(shrink)(params))
        updates, opt_state = tx.update(slopes, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    carry = params, opt_state
    if steps == 1:
        return step(carry, (batch, rows))[0][0]
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
) -> tuple[Array, Any]:
    """The validation loss l_V of Θ̄(Λ), without any penalty, and its gradient in Λ.

    For gradient descent at rate η it is −2 η Θ ⊙ ∂l_V/∂Θ̄, summed over what a coefficient is for, and with `rows` times
    the sum of a row's weights: then only rows that both batches meet have a gradient.

    A step down on it may end below 0. Project after the step, by `optax.projections.projection_non_negative` or with
    `optax.keep_params_nonnegative()` last in the chain; the coefficient then leaves 0 again where its gradient is
    negative.

    Args:
        lambdas: Λ.
        params: Θ.
        opt_state: of `tx` as it trains.
        batch: of training, as `lookahead` takes it.
        valid_batch: of validation, one.
        value: training loss of (params, batch), without the penalty.
        tx: as `lookahead` takes it.
        valid_value: validation loss of (params, valid_batch), if it is another than `value`.
        options: `rows`, `steps`, `first_order`, `shared` of `lookahead`.

    >>> value = lambda params, target: (params["user"] - target).sum() ** 2
    >>> tx, params = optax.sgd(0.1), {"user": jnp.array([[2.0]])}
    >>> lambdas = {"user": jnp.zeros((1, 1))}
    >>> loss, grads = hypergradient(lambdas, params, tx.init(params), 2.0, 1.0, value=value, tx=tx)
    >>> round(float(loss), 4), round(float(grads["user"][0, 0]), 4)  # −2 · 0.1 · 2 times 2 · (2 − 1)
    (1.0, -0.8)
    """

    def after(lambdas: Any) -> Array:
        ahead = lookahead(lambdas, params, opt_state, batch, value=value, tx=tx, **options)
        return (valid_value or value)(ahead, valid_batch)

    return jax.value_and_grad(after)(lambdas)


def _check_steps(steps: int, first_order: bool, tx: Any, batches: Any) -> None:
    steps = integer("steps", steps)
    if steps > 1 and first_order and isinstance(tx, Step):
        raise ValueError("first_order=True needs the gradients; simulate with an optax transformation")
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)} if steps > 1 else set()
    if sizes - {(steps,)}:
        raise ValueError(
            f"steps={steps}, but leading axes of batch and rows are {sizes}; stack one batch for each step"
        )


# ---------------------------------------------------------------------- alternating steps


class Draw(NamedTuple):
    """What an alternating step needs besides its own batch. Batches are pairs (key, batch), as an objective takes them.

    Attributes:
        rows: the rows of the step's batch that are penalised, as `penalty` takes them.
        ahead: of training, for the simulation, as `lookahead` takes it.
        ahead_rows: the rows of that batch that are penalised.
        valid: of validation.
        valid_objective: objective of (variables, key, batch) on validation, if it is not the training objective.
    """

    rows: Rows | None
    ahead: Any
    ahead_rows: Rows | None
    valid: Any
    valid_objective: Callable[..., Array] | None = None


class AlternatingState(NamedTuple):
    """State of `alternate`.

    Attributes:
        opt_state: of the optimiser of Θ.
        lambdas: Λ.
        lambda_state: of the optimiser of Λ.
        count: int32 [], steps done.
    """

    opt_state: Any
    lambdas: Any
    lambda_state: Any
    count: Array


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
    """A step of Θ under Λ, then one of Λ on validation data, and so on: the paper's alternating optimisation.

    Λ are brought back to 0 or above after each step; moments of their optimiser are not. Θ goes first, as Adam's first
    step is as long whatever the gradient, so that Λ cannot be told from it.

    Args:
        tx: moves Θ, by gradients of the training loss plus the penalty of the batch's rows.
        lambda_tx: moves Λ. The paper's scripts have
            `optax.chain(optax.clip_by_global_norm(1e-3), moments.amsgrad(1e-2))`.
        draws: function of (key, batch) that gives what a step needs, such as
            `partial(train.lambda_opt.draws, objective=objective, train=..., valid=...)`.
        start: gives Λ for parameters, such as `partial(coefficients, granularity="DU")`.
        simulated: `tx` in the look-ahead, if it must be another, such as `moments.smooth_adam(η)` for `optax.adam(η)`.
        scope: what the look-ahead penalises: "full" is whole tables, as the paper and its code, so that each row of the
            validation batch moves its Λ; "exact" is the rows, as the step of Θ does, so that only those do that are in
            both batches.
        every: a step of Λ after every so many of Θ.
        steps: of `lookahead`.
        first_order: of `lookahead`.
        shared: of `penalty`.

    Raises:
        ValueError: for another scope, and for `every` or `steps` that is not an integer of 1 or more. `init` refuses a
            `tx` without `simulated` that has no derivative where a gradient is 0, as it is in rows outside a batch:
            `optax.adam` and its like.
    """
    if scope not in ("full", "exact"):
        raise ValueError(f"scope={scope!r}; give 'full' or 'exact'")
    every, steps = integer("every", every), integer("steps", steps)
    ahead = {"steps": steps, "first_order": first_order, "shared": tuple(shared)}
    how = {"tx": tx, "lambda_tx": lambda_tx, "draws": draws, "simulated": simulated or tx, "scope": scope}
    init = partial(_init, tx=tx, lambda_tx=lambda_tx, start=start, check=simulated is None)
    return Step(init, partial(_alternated, every=every, ahead=ahead, **how))


def _init(params, *, tx, lambda_tx, start, check):
    if check and not isinstance(tx, Step):
        _check_smooth(tx, params)
    lambdas = start(params)
    return AlternatingState(tx.init(params), lambdas, lambda_tx.init(lambdas), jnp.zeros((), jnp.int32))


def _alternated(
    value_fn: ValueFn, params, state, key, batch, *, tx, lambda_tx, draws, simulated, scope, every, ahead
) -> tuple[Array, Any, AlternatingState]:
    draw, lambdas, lambda_state = draws(key, batch), state.lambdas, state.lambda_state

    def penalised(params: Any, key: Key, batch: Any) -> Array:
        return value_fn(params, key, batch) + penalty(lambdas, params, draw.rows, shared=ahead["shared"])

    loss, params, opt_state = as_step(tx).step(penalised, params, state.opt_state, key, batch)

    def value(params: Any, drawn: Any, objective: Any = None) -> Array:
        return value_fn(params, *drawn, objective)

    def learned(lambdas: Any, lambda_state: Any) -> tuple[Any, Any]:
        rows = draw.ahead_rows if scope == "exact" else None
        functions = {"value": value, "valid_value": partial(value, objective=draw.valid_objective), "tx": simulated}
        known = lambdas, params, opt_state, draw.ahead, draw.valid
        _, slopes = hypergradient(*known, rows=rows, **functions, **ahead)
        updates, lambda_state = lambda_tx.update(slopes, lambda_state, lambdas)
        return optax.projections.projection_non_negative(optax.apply_updates(lambdas, updates)), lambda_state

    count = state.count + 1
    if every == 1:  # a branch would copy the tables that come out of it
        lambdas, lambda_state = learned(lambdas, lambda_state)
    else:
        same = lambda *old: old  # noqa: E731
        lambdas, lambda_state = jax.lax.cond(count % every == 0, learned, same, lambdas, lambda_state)
    return loss, params, AlternatingState(opt_state, lambdas, lambda_state, count)


def _check_smooth(tx: optax.GradientTransformation, params: Any) -> None:
    """Refuses an optimiser whose first step cannot be differentiated at a gradient of 0."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
        return

    def moved(by: Array) -> Array:
        gradients = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) + by.astype(leaf.dtype), params)
        return sum(leaf.sum() for leaf in jax.tree.leaves(tx.update(gradients, tx.init(params), params)[0]))

    if not jnp.isfinite(jax.jit(jax.grad(moved))(jnp.zeros(()))):
        raise ValueError(
            "tx has no derivative where a gradient is 0, as it is in rows outside a batch, so that Λ turns NaN; give "
            "simulated=, such as moments.smooth_adam(learning_rate) for optax.adam(learning_rate)"
        )
