"""λOpt: gradients in the coefficients through simulated optimiser steps, and alternating steps."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxrec.optim import as_step, rowwise
from jaxrec.optim.lambda_opt import Draw, alternate, hypergradient, lookahead
from jaxrec.optim.moments import amsgrad, smooth_adam
from jaxrec.optim.regularization import coefficients, penalty

M, N, D, B, RATE = 9, 17, 2, 4, 0.3


@pytest.fixture
def precise():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def drawn(seed=0, users=(1, 2, 1, 3), steps=None):
    """A batch of triples (u, i, j), and its rows with the weights 1/B."""
    rng = np.random.default_rng(seed)
    lead = () if steps is None else (steps,)
    users = np.broadcast_to(np.array(users), (*lead, B)).astype(np.int32)
    positives = rng.integers(0, N, (*lead, B))
    items = np.concatenate([positives, (positives + rng.integers(1, N, positives.shape)) % N], -1).astype(np.int32)
    share = np.full((*lead, 2 * B), 1 / B)
    rows = {"user": (users, share[..., :B]), "item": (items, share)}
    return jax.tree.map(jnp.asarray, ((users, items[..., :B], items[..., B:]), rows))


def tables(seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=(n, D))) for name, n in (("user", M), ("item", N))}


def bpr(params, batch):
    u, i, j = batch
    return jax.nn.softplus(-(params["user"][u] * (params["item"][i] - params["item"][j])).sum(-1)).mean()


def bpr_stopped(params, batch, at):
    """A linear function with the gradient `at`."""
    return sum((at[name] * params[name]).sum() for name in params)


gradient = jax.jit(jax.grad(bpr))


def spread(lambdas, seed=3):
    """Coefficients between 0 and 1/2."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(0, 0.5, x.shape)).astype(x.dtype), lambdas)


def trained(tx, steps=2):
    """Parameters and the optimiser's state after some steps."""
    params = tables()
    carry = params, tx.init(params)
    move = jax.jit(lambda carry, batch: as_step(tx).step(lambda p, *_: bpr(p, batch), *carry, None, None)[1:])
    for step in range(steps):
        carry = move(carry, drawn(10 + step)[0])
    return carry


def learned(lambdas, params, state, batch, valid, *, rows=None, **options):
    """`hypergradient`, jitted."""
    fn = jax.jit(lambda *known, rows: hypergradient(*known, rows=rows, value=bpr, **options))
    return fn(lambdas, params, state, batch, valid, rows=rows)


def with_differences(lambdas, params, state, batch, valid, h=1e-5, rows=None, **options):
    """Loss, gradient and central differences in every coefficient, as vectors."""
    vector, whole = ravel_pytree(lambdas)

    @jax.jit
    def found(vector, params, state, batch, valid, rows):
        def after(vector):
            return bpr(lookahead(whole(vector), params, state, batch, value=bpr, rows=rows, **options), valid)

        loss, slopes = hypergradient(whole(vector), params, state, batch, valid, value=bpr, rows=rows, **options)
        ways = h * jnp.eye(len(vector))
        up, down = jax.lax.map(after, vector[None] + ways), jax.lax.map(after, vector[None] - ways)
        return loss, ravel_pytree(slopes)[0], (up - down) / (2 * h)

    return found(vector, params, state, batch, valid, rows)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


# ---------------------------------------------------------------------- gradients


@pytest.mark.deep
@pytest.mark.parametrize(("scope", "granularity"), [("full", "D"), ("exact", "DUI")])
def test_hypergradient_of_gradient_descent_is_the_closed_form_and_finite_differences(scope, granularity, precise):
    params, tx = tables(), optax.sgd(RATE)
    (batch, rows), (valid, _) = drawn(0), drawn(1, users=(1, 3, 4, 4))
    lambdas = spread(coefficients(params, granularity))
    rows = rows if scope == "exact" else None
    found = with_differences(lambdas, params, tx.init(params), batch, valid, tx=tx, rows=rows)
    weights = {
        name: 1.0 if rows is None else np.bincount(rows[name][0], minlength=len(table))[:, None] / B
        for name, table in params.items()
    }
    own = lambdas if isinstance(lambdas, dict) else dict.fromkeys(params, lambdas)
    slopes = gradient(params, batch)
    ahead = {n: params[n] - RATE * (slopes[n] + 2 * weights[n] * own[n] * params[n]) for n in params}
    of_valid = gradient(ahead, valid)
    expected = {n: np.asarray(-2 * RATE * weights[n] * params[n] * of_valid[n]) for n in params}
    expected = sum(x.sum(0) for x in expected.values()) if granularity == "D" else expected
    np.testing.assert_allclose(found[0], bpr(ahead, valid), rtol=1e-12)
    np.testing.assert_allclose(found[1], flat(expected), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(found[1], found[2], rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "steps", "scope"),
    [
        (lambda: smooth_adam(0.05), 2, "exact"),
        (lambda: optax.adagrad(0.3), None, "full"),
        (lambda: rowwise.lazy(smooth_adam(0.05)), 2, "exact"),
    ],
    ids=["adam twice", "adagrad", "lazy twice"],
)
def test_hypergradient_is_that_of_finite_differences(make, steps, scope, precise):
    tx = make()
    params, state = trained(tx)
    (batch, rows), (valid, _) = drawn(0, steps=steps), drawn(1)
    lambdas = spread(coefficients(params, "DI"))
    options = {"tx": tx, "rows": rows if scope == "exact" else None, "steps": steps or 1}
    _, found, expected = with_differences(lambdas, params, state, batch, valid, h=1e-6, **options)
    assert np.abs(expected).max() > 1e-5
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.deep
def test_hypergradient_of_adam_in_one_number(precise):
    """λ = .3, θ = .7, g̃ = .02, m = .01, v = .001 after 4 steps: −α 2θ ((1−β₁)/√(v'+ε) − m'(1−β₂)g/(v'+ε)^(3/2))."""
    params, tx = {"user": jnp.array([[0.7]])}, smooth_adam(0.01)
    adam, rate = tx.init(params)
    adam = adam._replace(count=adam.count + 4, mu={"user": jnp.array([[0.01]])}, nu={"user": jnp.array([[0.001]])})
    _, slope = hypergradient(
        {"user": jnp.array([[0.3]])},
        params,
        (adam, rate),
        None,
        None,
        value=lambda p, _: 0.02 * p["user"].sum(),
        valid_value=lambda p, _: p["user"].sum(),
        tx=tx,
    )
    np.testing.assert_allclose(slope["user"], [[-0.0056256253]], rtol=1e-8)


@pytest.mark.deep
def test_two_steps_equal_the_formula_of_first_and_second_order(precise):
    tx = smooth_adam(0.05)
    params, state = trained(tx)
    (batches, _), (valid, _) = drawn(0, steps=2), drawn(1)
    lambdas = spread(coefficients(params, "DUI"))

    def after(lambdas, first_order, moved, live, batches, valid):
        for step in range(2):
            at = jax.lax.stop_gradient(moved) if first_order else moved
            fit = jax.grad(bpr)(at, [x[step] for x in batches])
            slopes = jax.tree.map(lambda g, own, x: g + 2 * own * x, fit, lambdas, moved)
            updates, live = tx.update(slopes, live, moved)
            moved = optax.apply_updates(moved, updates)
        return bpr(moved, valid)

    @jax.jit
    def found(lambdas, *known):
        options = {"value": bpr, "tx": tx, "steps": 2}
        ours = [hypergradient(lambdas, *known, first_order=first, **options) for first in (False, True)]
        return ours, [jax.value_and_grad(after)(lambdas, first, *known) for first in (False, True)]

    ours, expected = found(lambdas, params, state, batches, valid)
    np.testing.assert_allclose(flat(ours), flat(expected), rtol=1e-9, atol=1e-13)
    second, first = flat(ours[0][1]), flat(ours[1][1])
    assert np.abs(second - first).max() > 1e-3 * np.abs(second).max()


def test_one_step_has_no_second_order(precise):
    params, (batch, _), (valid, _) = tables(), drawn(0), drawn(1)
    state, lambdas = smooth_adam(0.05).init(params), spread(coefficients(params, "D"))

    @jax.jit
    def found(*known):
        options = {"value": bpr, "tx": smooth_adam(0.05)}
        stopped = partial(bpr_stopped, at=jax.lax.stop_gradient(jax.grad(bpr)(params, batch)))
        return (
            hypergradient(*known, **options)[1],
            hypergradient(*known, first_order=True, **options)[1],
            hypergradient(*known, **options | {"value": stopped, "valid_value": bpr})[1],
        )

    whole, first, stopped = found(lambdas, params, state, batch, valid)
    np.testing.assert_array_equal(whole, first)
    np.testing.assert_allclose(whole, stopped, rtol=1e-12)


@pytest.mark.deep
@pytest.mark.parametrize(
    ("tx", "steps", "finite"),
    [
        (smooth_adam(0.05), None, True),
        (rowwise.lazy(smooth_adam(0.05)), 2, True),
        (optax.adam(0.05), None, False),
    ],
    ids=["one step", "two, lazy", "Adam as trained"],
)
def test_gradients_are_finite_from_a_cold_start(tx, steps, finite):
    """With ε outside the root they are not finite for rows that no step has looked up."""
    params, (batch, _), (valid, _) = tables(), drawn(0, steps=steps), drawn(1, users=(0, 4, 5, 5))
    with jax.numpy_dtype_promotion("standard"):
        lambdas, state = coefficients(params, "DUI"), tx.init(params)
        _, found = learned(lambdas, params, state, batch, valid, tx=tx, steps=steps or 1)
    assert np.isfinite(flat(found)).all() == finite


@pytest.mark.deep
def test_validation_loss_has_no_penalty():
    params, tx, (batch, _), (valid, _) = tables(), smooth_adam(0.0), drawn(0), drawn(1)
    lambdas = spread(coefficients(params, "DUI"))
    loss, found = learned(lambdas, params, tx.init(params), batch, valid, tx=tx)
    assert not flat(found).any()
    np.testing.assert_allclose(loss, bpr(params, valid), rtol=1e-6)


@pytest.mark.parametrize(
    ("scope", "tx"),
    [("full", smooth_adam(0.05)), ("exact", smooth_adam(0.05)), ("exact", rowwise.lazy_sgd(RATE))],
    ids=["full", "exact", "exact, lazy"],
)
def test_coefficients_move_only_in_the_rows_of_the_batches(scope, tx):
    """The training batch has users 0 and 1, the validation batch users 1 and 2."""
    params, (batch, rows), (valid, _) = tables(), drawn(0, users=(0, 1, 1, 0)), drawn(1, users=(1, 2, 2, 1))
    lambdas = spread(coefficients(params, "DUI"))
    rows = rows if scope == "exact" else None
    _, found = learned(lambdas, params, tx.init(params), batch, valid, tx=tx, rows=rows)
    users, items = (set(np.flatnonzero(np.asarray(found[name]).any(1)).tolist()) for name in ("user", "item"))
    assert users == ({1} if scope == "exact" else {1, 2})
    trained_on, valid_on = (set(flat(part[1:]).tolist()) for part in (batch, valid))
    assert trained_on & valid_on and items == (trained_on & valid_on if scope == "exact" else valid_on)


@pytest.mark.parametrize("by_row", [False, True])
def test_momentum_of_a_row_continues_only_if_a_dense_optimiser_is_simulated(by_row):
    tx = rowwise.lazy(smooth_adam(0.05)) if by_row else smooth_adam(0.05)
    params, (first, _), (second, rows) = tables(), drawn(0, users=(4, 4, 4, 4)), drawn(1, users=(1, 2, 1, 3))

    @jax.jit
    def run(params, first, second, rows):
        _, params, state = as_step(tx).step(lambda p, *_: bpr(p, first), params, tx.init(params), None, None)
        lambdas = coefficients(params, "DUI")
        return params, lookahead(lambdas, params, state, second, value=bpr, tx=tx, rows=rows)

    params, ahead = run(params, first, second, rows)
    changed = np.flatnonzero((np.asarray(ahead["user"]) != np.asarray(params["user"])).any(1))
    assert changed.tolist() == ([1, 2, 3] if by_row else [1, 2, 3, 4])


# ---------------------------------------------------------------------- alternating steps


class Now(NamedTuple):
    """The batch of a step, with the results of `draws` for it."""

    batch: Any
    rows: Any
    ahead: Any
    ahead_rows: Any
    valid: Any


def draws(key, now):
    return Draw(now.rows, (key, now.ahead), now.ahead_rows, (key, now.valid))


def in_step(value):
    """A loss of (params, batch), in the form that a step takes."""
    return lambda params, key, x, other=None: value(params, x.batch if isinstance(x, Now) else x)


def draw(seed):
    (batch, rows), (ahead, ahead_rows), (valid, _) = (drawn(3 * seed + k) for k in range(3))
    return Now(batch, rows, ahead, ahead_rows, valid)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.deep
@pytest.mark.parametrize("tx", [smooth_adam(0.05), rowwise.lazy(smooth_adam(0.05))], ids=["dense", "lazy"])
def test_simulation_does_not_change_parameters_and_state(tx):
    """With fixed Λ, alternating steps give bit-identical results to penalised training."""
    start = lambda params: spread(coefficients(params))  # noqa: E731
    both = alternate(tx, optax.set_to_zero(), draws=draws, start=start, scope="exact")
    params = expected = tables()
    state, live = both.init(params), tx.init(params)
    lambdas = state.lambdas
    step = jax.jit(partial(both.step, in_step(bpr)))

    @jax.jit
    def alone(params, live, lambdas, now):
        value = lambda p: bpr(p, now.batch) + penalty(lambdas, p, now.rows)  # noqa: E731
        return as_step(tx).step(lambda p, *_: value(p), params, live, None, None)[1:]

    for seed in range(3):
        before, old = bits((params, state)), (params, state)
        _, params, state = step(params, state, None, draw(seed))
        assert bits(old) == before
        expected, live = alone(expected, live, lambdas, draw(seed))
    assert int(state.count) == 3
    assert bits((params, state.opt_state)) == bits((expected, live))
    assert bits(state.lambdas) == bits(lambdas)


@pytest.mark.deep
@pytest.mark.parametrize("every", [1, 2])
def test_alternating_steps_move_the_parameters_first_and_then_lambda(every):
    tx = optax.sgd(RATE)
    both = alternate(tx, optax.sgd(5.0), draws=draws, scope="exact", every=every)
    params = tables()
    state = both.init(params)
    step = jax.jit(partial(both.step, in_step(bpr)))
    moved = jax.jit(jax.grad(lambda p, lambdas, now: bpr(p, now.batch) + penalty(lambdas, p, now.rows)))
    for seed in range(4):
        now, lambdas = draw(seed), state.lambdas
        expected = jax.tree.map(lambda x, g: x - RATE * g, params, moved(params, lambdas, now))
        if (seed + 1) % every == 0:
            _, slopes = learned(lambdas, expected, state.opt_state, now.ahead, now.valid, tx=tx, rows=now.ahead_rows)
            lambdas = jax.tree.map(lambda own, slope: jnp.maximum(own - 5 * slope, 0), lambdas, slopes)
        _, params, state = step(params, state, None, now)
        np.testing.assert_allclose(flat(params), flat(expected), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(flat(state.lambdas), flat(lambdas), rtol=1e-4, atol=1e-6)
        assert (flat(state.lambdas) > 0).any() == (seed >= every - 1)


@pytest.mark.parametrize("lambda_tx", [optax.sgd(1.0), amsgrad(0.3)], ids=["sgd", "amsgrad"])
def test_coefficients_stay_at_0_or_above_and_leave_0_again(lambda_tx):
    """Validation first prefers a larger parameter, so that Λ would fall below 0, and then a smaller one."""

    def value(params, target):
        return ((params["user"] - target) ** 2).sum()

    start = lambda p: {"user": jnp.full((1, 1), 0.1)}  # noqa: E731
    both = alternate(optax.sgd(0.1), lambda_tx, draws=draws, start=start)
    params, found = {"user": jnp.array([[2.0]])}, []
    state = both.init(params)
    step = jax.jit(partial(both.step, in_step(value)))
    for valid in [5.0] * 6 + [0.0] * 12:
        _, params, state = step(params, state, None, Now(2.0, None, 2.0, None, valid))
        found.append(float(state.lambdas["user"][0, 0]))
    assert min(found) == 0 and found[5] == 0
    assert found[-1] > 0.1


@pytest.mark.deep
def test_seeds_by_vmap_and_a_scanned_epoch_equal_steps_one_by_one():
    start = partial(coefficients, granularity="DU")
    both = alternate(smooth_adam(0.05), amsgrad(0.05), draws=draws, start=start)
    step_alone = jax.jit(partial(both.step, in_step(bpr)))
    drawn = [draw(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *drawn)

    @jax.jit
    @jax.vmap
    def epoch(params):
        def step(carry, now):
            loss, *carry = both.step(in_step(bpr), *carry, None, now)
            return carry, loss

        return jax.lax.scan(step, [params, both.init(params)], stacked)

    starts = [tables(seed) for seed in range(2)]
    (params, state), losses = epoch(jax.tree.map(lambda *x: jnp.stack(x), *starts))
    for seed, own in enumerate(starts):
        own_state = both.init(own)
        for number, now in enumerate(drawn):
            loss, own, own_state = step_alone(own, own_state, None, now)
            np.testing.assert_allclose(losses[seed, number], loss, rtol=1e-5)
        one = [flat([leaf[seed] for leaf in jax.tree.leaves(tree)]) for tree in (params, state.lambdas)]
        np.testing.assert_allclose(one[0], flat(own), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one[1], flat(own_state.lambdas), rtol=1e-3, atol=1e-5)
        assert flat(own_state.lambdas).any()


ROOT = optax.stateless_with_tree_map(lambda slope, _: jnp.sqrt(slope**2))  # as in Adam, no derivative at 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alternate(optax.sgd(0.1), optax.sgd(0.1), draws=draws, scope="whole"), "scope='whole'"),
        (lambda: alternate(optax.sgd(0.1), optax.sgd(0.1), draws=draws, every=0), "every=0"),
        (lambda: alternate(ROOT, optax.sgd(0.1), draws=draws).init({"user": jnp.ones((2, 2))}), "pass simulated="),
        (lambda: lookahead({}, {}, (), (), value=bpr, tx=optax.sgd(0.1), steps=0), "steps=0"),
        (lambda: lookahead({}, {}, (), drawn(), value=bpr, tx=optax.sgd(0.1), steps=3), "leading axes"),
        (
            lambda: lookahead({}, {}, (), drawn(), value=bpr, tx=rowwise.lazy_sgd(0.1), steps=2, first_order=True),
            "first_order=True",
        ),
    ],
)
def test_wrong_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
