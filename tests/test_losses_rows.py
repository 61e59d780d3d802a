"""Losses of whole rows of items, against their formulae in plain Python."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.losses import NEG, POS, close, differences, logsumexp, relu

from jaxrec import losses
from jaxrec.losses.softmax import _simplex_projection


@pytest.mark.deep
def test_golden_sparsemax_and_its_threshold():
    with jax.enable_x64(True):
        scores = jnp.array([[p, *n] for p, n in zip(POS, NEG)])
        targets = jnp.zeros(scores.shape, bool).at[:, 0].set(True)
        np.testing.assert_allclose(losses.sparsemax(scores, targets), (0.3703375, 0.9937333333, 0.2749), atol=1e-10)
        p = _simplex_projection(scores, jnp.ones(scores.shape, bool))
        thresholds = jnp.where(p > 0, scores - p, jnp.nan)
        np.testing.assert_allclose(jnp.nanmax(thresholds, axis=1), (0.4925, 0.3966666667, 0.62), atol=1e-10)
        np.testing.assert_allclose(jnp.nanmin(thresholds, axis=1), (0.4925, 0.3966666667, 0.62), atol=1e-10)


def multinomial(scores, targets):
    return sum(t * (logsumexp(scores) - s) for s, t in zip(scores, targets))


def _simplex(scores):
    """Projection onto the simplex: the threshold by bisection."""
    low, high = max(scores) - 1, max(scores)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(relu(s - middle) for s in scores) > 1 else (low, middle)
    return [relu(s - low) for s in scores]


def sparsemax(scores, targets):
    if not sum(targets):
        return 0.0
    y = [t / sum(targets) for t in targets]
    p = _simplex(scores)
    terms = ((p_ - y_) * s - 0.5 * p_**2 + 0.5 * y_**2 for p_, y_, s in zip(p, y, scores))
    return sum(terms)


ROW_LOSSES = {"multinomial": (losses.multinomial, multinomial), "sparsemax": (losses.sparsemax, sparsemax)}
every_row_loss = pytest.mark.parametrize("loss, formula", ROW_LOSSES.values(), ids=ROW_LOSSES)

# Row 3 has nothing valid, row 4 no target.
ROWS = np.array(
    [[0.9, 0.7, -1.3, 0.1], [0.65, 0.2, 0.33, 2.9], [0.1, 0.8, 1.0, 0.7], [0.5, 1, 2, 3], [1, 2, 3, 4]], np.float32
)
TARGETS = np.array([[1, 0, 1, 0], [0, 2, 1, 0], [0, 0, 1, 3], [1, 0, 0, 1], [0, 0, 0, 0]])
ROW_WHERE = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)


def _rows_by_formula(formula, rows, where, targets=TARGETS):
    columns = zip(rows.astype(float), targets, where)
    return np.array([formula(s[w].tolist(), t[w].tolist()) if w.any() else 0.0 for s, t, w in columns])


@pytest.mark.deep
def test_hand_values_of_row_losses():
    scores = jnp.array([1.0, 0.8, -1.0])
    targets = jnp.array([2, 0, 1])
    normaliser = math.log(math.exp(1) + math.exp(0.8) + math.exp(-1))
    assert float(losses.multinomial(scores, targets)) == pytest.approx(3 * normaliser - 2 + 1, rel=1e-6)
    # the support is the first two, threshold .4: p = (.6, .4, 0), y = (2, 0, 1) / 3
    by_hand = (0.6 + 0.32) - 0.5 * (0.36 + 0.16) + 0.5 * (4 + 1) / 9 - (2 - 1) / 3
    assert float(losses.sparsemax(scores, targets)) == pytest.approx(by_hand, rel=1e-6)


@functools.cache
def _jitted_rows(loss):
    @jax.jit
    def values_and_gradient(scores, targets, where):
        values, vjp = jax.vjp(lambda s: loss(s, targets, where=where), scores)
        return values, *vjp(jnp.ones_like(values))

    return values_and_gradient


@every_row_loss
@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_row_losses_mask_by_deletion_for_targets_of_any_dtype(loss, formula, dtype):
    targets = TARGETS.astype(dtype)
    values, _ = _jitted_rows(loss)(ROWS, targets, ROW_WHERE)
    assert values.shape == (5,) and values.dtype == jnp.float32 and values[3] == values[4] == 0
    close(values, _rows_by_formula(formula, ROWS, ROW_WHERE, targets.astype(float)))


@pytest.mark.deep
@every_row_loss
def test_row_losses_are_the_same_eager_and_under_jit_and_vmap(loss, formula):
    expected = _rows_by_formula(formula, ROWS, np.ones_like(ROW_WHERE))
    close(loss(ROWS, TARGETS), expected)
    close(jax.jit(jax.vmap(loss))(ROWS, TARGETS), expected)
    close(jax.jit(loss)(ROWS[None], TARGETS[None]), expected[None])


@every_row_loss
def test_masked_items_reach_neither_value_nor_gradient_of_row_losses(loss, formula):
    clean = _jitted_rows(loss)(ROWS, TARGETS, ROW_WHERE)
    for fill in (np.nan, np.inf, -np.inf):
        masked = _jitted_rows(loss)(np.where(ROW_WHERE, ROWS, np.float32(fill)), TARGETS, ROW_WHERE)
        assert (np.asarray(masked[1])[~ROW_WHERE] == 0).all() and (masked[1][4] == 0).all()
        for actual, expected in zip(masked, clean):
            np.testing.assert_array_equal(actual, expected)


@every_row_loss
def test_extreme_rows_keep_the_right_finite_value_and_gradient(loss, formula):
    rows = np.array([[1e4, 1e4, -1e4, 0], [-1e4, 1e4, 1e4, 1e4], [-1e4] * 4, [1e4] * 4, [1e4] * 4], np.float32)
    values, gradient = _jitted_rows(loss)(rows, TARGETS, np.ones_like(ROW_WHERE))
    close(values, _rows_by_formula(formula, rows, np.ones_like(ROW_WHERE)))
    assert np.isfinite(gradient).all()


@every_row_loss
def test_gradient_of_row_losses_equals_finite_differences(loss, formula):
    rows = ROWS.astype(np.float64)
    with jax.enable_x64(True):
        values, gradient = _jitted_rows(loss)(rows, TARGETS, ROW_WHERE)
    close(values, _rows_by_formula(formula, rows, ROW_WHERE), rtol=1e-12)
    close(gradient, differences(lambda x: _rows_by_formula(formula, x, ROW_WHERE), rows), rtol=1e-7)


def test_gradient_of_sparsemax_is_the_projection_minus_the_targets():
    _, gradient = _jitted_rows(losses.sparsemax)(ROWS, TARGETS, np.ones_like(ROW_WHERE))
    expected = np.array([_simplex(row) for row in ROWS[:3].tolist()]) - TARGETS[:3] / TARGETS[:3].sum(1, keepdims=True)
    np.testing.assert_allclose(gradient[:3], expected, atol=1e-6)


def test_second_derivative_of_sparsemax_is_the_projection_onto_its_support():
    hessian = jax.jacrev(jax.grad(lambda row: losses.sparsemax(row, jnp.array([1, 0, 0, 0]))))
    on_two = np.diag([1.0, 1, 0, 0]) - np.outer([1, 1, 0, 0], [1, 1, 0, 0]) / 2
    np.testing.assert_allclose(jax.jit(hessian)(jnp.array([0.3, 0.2, -4.0, -0.9])), on_two, atol=1e-6)


@every_row_loss
def test_wrong_rows_are_refused(loss, formula):
    with pytest.raises(AssertionError):
        loss(ROWS, TARGETS[:, :3])
    with pytest.raises(AssertionError):
        loss(ROWS, TARGETS, where=ROW_WHERE.astype(np.float32))
    with pytest.raises(AssertionError):
        loss(TARGETS, TARGETS)


@pytest.mark.deep
def test_gradient_of_sparsemax_in_its_targets_in_both_modes_and_twice():
    rng = np.random.default_rng(3)
    scores, targets, where = rng.normal(size=(3, 4)), rng.random((3, 4)), rng.random((3, 4)) < 0.8
    where[0] = True
    moves = rng.normal(size=(2, 3, 4))
    with jax.enable_x64(True):

        def loss(s, t):
            return losses.sparsemax(s, t, where=where)

        def by_hand(t):
            return np.array([sparsemax(s[w], x[w]) if w.any() else 0.0 for s, x, w in zip(scores, t, where)])

        gradient = jax.grad(lambda t: loss(scores, t).sum())(targets)
        np.testing.assert_allclose(gradient, differences(by_hand, targets), atol=1e-8)
        both = jax.grad(lambda s, t: loss(s, t).sum(), (0, 1))
        _, along = jax.jvp(loss, (scores, targets), tuple(moves))
        expected = sum((g * m).sum(-1) for g, m in zip(both(scores, targets), moves))
        np.testing.assert_allclose(along, expected, atol=1e-12)
        _, turn = jax.jvp(both, (scores, targets), tuple(moves))
        step = 1e-6
        ends = [both(scores + sign * step * moves[0], targets + sign * step * moves[1]) for sign in (1, -1)]
        for one, up, down in zip(turn, *ends):
            np.testing.assert_allclose(one, (up - down) / (2 * step), atol=1e-7)
