"""Steps on the sphere and in the ball against hand values, and against a loop over rows in float64."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrec.optim import riemannian, rowwise
from jaxrec.optim.riemannian import exponential, normalisation, riemannian_adam, riemannian_sgd

SPHERE = {
    "sgd": riemannian_sgd(0.1),
    "sgd, eq. 20": riemannian_sgd(0.1, calibrated=False, method=exponential),
    "adam": riemannian_adam(0.1),
    "adam, exponential": riemannian_adam(0.1, calibrated=False, method=exponential),
}
KINDS = {
    "sgd": SPHERE["sgd"],
    "adam": SPHERE["adam, exponential"],
    "ball": optax.chain(optax.sgd(0.1), riemannian.project_to_ball()),
}
on_sphere = pytest.mark.parametrize("tx", [*SPHERE.values()], ids=SPHERE)
of_a_kind = pytest.mark.parametrize("tx", [*KINDS.values()], ids=KINDS)


def unit(*shape, seed=0):
    table = np.random.default_rng(seed).normal(size=shape)
    return np.float32(table / np.linalg.norm(table, axis=-1, keepdims=True))


def some_rows(*shape, seed=1):
    """Gradients [..., rows, D] of which every third row is 0."""
    table = np.random.default_rng(seed).normal(size=shape)
    table[..., ::3, :] = 0
    return np.float32(table)


@partial(jax.jit, static_argnums=0)
def stepped(tx, params, gradient):
    updates, _ = tx.update(gradient, tx.init(params), params)
    return optax.apply_updates(params, updates)


@partial(jax.jit, static_argnums=0)
def walked(tx, params, gradients):
    """The parameters and the state after a scan over gradients."""

    def step(carry, gradient):
        updates, state = tx.update(gradient, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), gradients)[0]


@partial(jax.jit, static_argnums=(0, 1))
def by_rows(tx, loss, params, *data):
    """One step on the rows that the loss looks up."""
    return rowwise.lazy(tx).step(lambda p, *_: loss(p, *data), params, tx.init(params), None, None)[1]


X, Y = np.float32([1, 0, 0]), np.float32([0.6, 0.8, 0])
ROWS, GRADIENT, STILL = unit(6, 5), some_rows(6, 5), np.arange(6) % 3 == 0
GRADIENTS = np.stack([np.roll(gradient, at, 0) for at, gradient in enumerate(some_rows(30, 6, 5))])


# ---------------------------------------------------------------------- eq. 20 and 21 by hand


SIGN_FIRST = optax.chain(
    optax.scale_by_learning_rate(0.1), riemannian.calibrate(), riemannian.tangent(), riemannian.retract_to_sphere()
)


@pytest.mark.deep
@pytest.mark.parametrize(
    ("tx", "norm", "expected"),
    [
        (SPHERE["sgd"], jnp.ones_like, (0.999488, 0.031984, 0)),
        (SPHERE["sgd"], jnp.linalg.norm, (0.996815, 0.079745, 0)),  # the norm in the graph: the factor is 1
        (riemannian_sgd(0.1, calibrated=False), jnp.ones_like, (0.996815, 0.079745, 0)),
        (SIGN_FIRST, jnp.ones_like, (0.991907, 0.126964, 0)),  # the factor of the update, 1.6 for 0.4
    ],
)
def test_calibration_by_hand(tx, norm, expected):
    gradient = jax.jit(jax.grad(lambda x: -(x / norm(x)) @ Y))(X)
    for step in (stepped, stepped.__wrapped__):  # with jit and without
        np.testing.assert_allclose(step(tx, X, gradient), expected, atol=6e-7)


@pytest.mark.parametrize("length", [1e-12, 1.0, 1e4])
def test_the_factor_is_0_at_the_target_and_2_opposite(length):
    angles = np.array([0, 0.01, 0.5, math.pi / 2, 3, math.pi])
    towards = length * np.stack([np.cos(angles), np.sin(angles), 0 * angles], -1)
    tx, points = riemannian.calibrate(), np.tile(X, (6, 1))
    scaled, _ = tx.update(np.float32(-towards), tx.init(points), points)
    np.testing.assert_allclose(scaled, -(1 - np.cos(angles))[:, None] * towards, rtol=1e-5, atol=2e-7 * length)


@pytest.mark.parametrize(("method", "way"), [(normalisation, np.arctan), (exponential, np.float64)])
def test_angles_of_retractions(method, way):
    lengths = np.array([0, 1e-5, 0.3, 1.5, 2.5])
    angles, points, steps = way(lengths), np.tile(X, (5, 1)), np.float32(lengths[:, None] * np.eye(3)[2:])
    expected = np.stack([np.cos(angles), 0 * angles, np.sin(angles)], -1)
    np.testing.assert_allclose(method(points, steps), expected, atol=2e-7)
    np.testing.assert_allclose(np.linalg.norm(method(1.01 * points, steps), axis=-1), 1, atol=2e-7)


def test_the_tangent_gradient_is_that_of_the_projection():
    tx = riemannian.tangent()
    along, _ = tx.update(GRADIENT, tx.init(ROWS), ROWS)
    projection = np.eye(5) - np.einsum("rd,re->rde", ROWS, ROWS)
    np.testing.assert_allclose(along, np.einsum("rde,re->rd", projection, GRADIENT), atol=1e-6)


# ---------------------------------------------------------------------- many steps


def reference(x, gradients, *, adam, calibrated, rate=0.1, b1=0.9, b2=0.999, eps=1e-8):
    """The steps of one row, float64; retracted as in eq. 21 if calibrated, else as in eq. 20."""
    m, v, t = np.zeros_like(x), 0.0, 0
    for g in gradients:
        if not g.any():
            continue
        c = 1 + x @ g / np.linalg.norm(g) if calibrated else 1.0
        z = c * (g - (x @ g) * x)
        if adam:
            t, m, v = t + 1, b1 * (m - (x @ m) * x) + (1 - b1) * z, b2 * v + (1 - b2) * z @ z
            z = m / (1 - b1**t) / (math.sqrt(v / (1 - b2**t)) + eps)
        angle = rate * np.linalg.norm(z)
        if calibrated:
            x = (x - rate * z) / math.hypot(1, angle)
        else:
            x = math.cos(angle) * x - math.sin(angle) * rate * z / angle
    return x


@pytest.mark.parametrize("name", SPHERE)
def test_steps_equal_a_loop_over_rows(name):
    """Under jit and scan. Every row has steps without a gradient."""
    found, _ = walked(SPHERE[name], ROWS, GRADIENTS)
    adam, calibrated = name.startswith("adam"), name in ("sgd", "adam")
    for row in range(6):
        expected = reference(np.float64(ROWS[row]), np.float64(GRADIENTS[:, row]), adam=adam, calibrated=calibrated)
        np.testing.assert_allclose(found[row], expected, atol=5e-6)


@on_sphere
def test_norms_stay_1_over_ten_thousand_steps(tx):
    found, _ = walked(tx, ROWS, 0.01 * some_rows(10_000, 6, 5))
    assert np.abs(np.linalg.norm(np.float64(found), axis=-1) - 1).max() < 1e-6
    assert ((found == ROWS).all(-1) == STILL).all()


@pytest.mark.parametrize("name", ["adam", "adam, exponential"])
def test_a_rotation_of_all_vectors_rotates_the_steps_of_adam(name):
    turn = np.float32(np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0])
    there, _ = walked(SPHERE[name], ROWS, GRADIENTS)
    turned, _ = walked(SPHERE[name], ROWS @ turn, GRADIENTS @ turn)
    np.testing.assert_allclose(np.asarray(there) @ turn, turned, atol=2e-5)
    assert np.abs(there - ROWS).max() > 0.3


def test_the_first_step_of_adam_turns_by_the_learning_rate():
    moved = stepped(SPHERE["adam, exponential"], ROWS, 1e-3 * GRADIENT)
    np.testing.assert_allclose((ROWS * moved).sum(-1), np.where(STILL, 1, math.cos(0.1)), atol=1e-5)


# ---------------------------------------------------------------------- rows without a gradient


@of_a_kind
def test_a_row_without_a_gradient_stays_bit_for_bit(tx):
    """Its derivative has no 0/0, for example that of the result with respect to the start."""
    x = np.float32(0.999) * ROWS
    moved = stepped(tx, x, GRADIENT)
    assert ((moved == x).all(-1) == STILL).all() and np.isfinite(moved).all()
    slopes = jax.jit(jax.grad(lambda x, g: (stepped(tx, x, g) ** 3).sum(), argnums=(0, 1)))(x, GRADIENT)
    assert all(np.isfinite(slope).all() for slope in slopes)
    np.testing.assert_allclose(slopes[0][STILL], 3 * x[STILL] ** 2, rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adam, exponential"])
def test_moments_do_not_move_a_row_without_a_gradient(name):
    params, state = walked(SPHERE[name], ROWS, GRADIENTS)
    updates, later = jax.jit(SPHERE[name].update)(np.zeros_like(ROWS), state, params)
    assert not updates.any() and state[2].mu.any()
    jax.tree.map(np.testing.assert_array_equal, state, later)


# ---------------------------------------------------------------------- the ball


def test_the_ball_is_of_a_row_not_of_the_tree():
    ones = np.ones((2, 2), np.float32)
    np.testing.assert_allclose(optax.projections.projection_l2_ball(ones), 0.5, rtol=1e-6)
    found = stepped(riemannian.project_to_ball(), ones, 0 * ones)
    np.testing.assert_allclose(found, math.sqrt(0.5), rtol=1e-6)


@pytest.mark.parametrize("radius", [1.7, jnp.float32(2.0)])
def test_rows_end_at_the_nearest_point_of_the_ball(radius):
    tx, x, z = riemannian.project_to_ball(radius), some_rows(60, 5), some_rows(60, 5, seed=2) / 2
    radius = float(radius)
    moved = np.float64(x) + np.float64(z)
    norm = np.linalg.norm(moved, axis=-1, keepdims=True)
    assert 5 < (norm > radius).sum() < 35
    found = stepped(tx, x, z)
    np.testing.assert_allclose(found, moved * np.minimum(1, radius / np.maximum(norm, 1e-9)), atol=1e-6)
    np.testing.assert_array_equal(stepped(tx, found, 0 * z), found)


@pytest.mark.parametrize("radius", [0, -1.0, math.nan])
def test_a_ball_has_a_radius(radius):
    with pytest.raises(ValueError, match="radius="):
        riemannian.project_to_ball(radius)


# ---------------------------------------------------------------------- rows that a step looks up


def triples(params, users, items):
    """A sum over triples, some of which have a loss of 0."""
    u, p, q = params["user"][users], params["item"][items[0]], params["item"][items[1]]
    return jax.nn.relu(0.5 - (u * p).sum(-1) + (u * q).sum(-1)).sum()


PARAMS = {"user": unit(40, 4), "item": unit(60, 4, seed=1)}
USERS, ITEMS = np.int32([7, 3, 7, 9, 7, 11]), np.int32([[1, 2, 3, 1, 5, 6], [9, 1, 8, 7, 2, 59]])


@pytest.mark.deep
@of_a_kind
def test_rows_looked_up_move_as_in_the_whole_table(tx):
    """One user occurs three times. Its gradients are added up, and the row moves once."""

    @jax.jit
    def both(rows, whole, users):
        loss = partial(triples, users=users, items=ITEMS)
        updates, state = tx.update(jax.grad(loss)(whole[0]), whole[1], whole[0])
        return rowwise.lazy(tx).step(lambda p, *_: loss(p), *rows, None, None)[1:], (
            optax.apply_updates(whole[0], updates),
            state,
        )

    rows = whole = PARAMS, tx.init(PARAMS)
    for shift in range(3):
        rows, whole = both(rows, whole, USERS + shift)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), rows, whole)
    assert np.abs(whole[0]["user"] - PARAMS["user"]).max() > 0.1


def test_a_row_that_occurs_three_times_retracts_once():
    def thrice(table, gradients):
        return (table[jnp.array([2, 2, 2])] * gradients).sum()

    x, gradients, tx = unit(9, 4), 2 * unit(3, 4, seed=5), riemannian_sgd(0.3)
    found = by_rows(tx, thrice, x, gradients)
    together, one_by_one = stepped(tx, x[2], gradients.sum(0)), x[2]
    for g in gradients:
        one_by_one = stepped(tx, one_by_one, g)
    np.testing.assert_allclose(found[2], together, atol=1e-6)
    assert np.abs(one_by_one - together).max() > 0.05
    assert (found != x).any(-1).tolist() == [row == 2 for row in range(9)]


@pytest.mark.deep
def test_a_batch_twice_over_doubles_the_step_before_retraction():
    """The loss is a sum, not a mean, and the factor does not depend on the gradient's length."""
    tx = optax.chain(riemannian.calibrate(), riemannian.tangent(), optax.scale_by_learning_rate(0.01))
    steps = []
    for times in (1, 2):
        moved = by_rows(tx, triples, PARAMS, np.tile(USERS, times), np.tile(ITEMS, (1, times)))
        steps.append(moved["user"] - PARAMS["user"])
    assert np.abs(steps[0]).max() > 1e-3
    np.testing.assert_allclose(steps[1], 2 * steps[0], atol=3e-7)


# ---------------------------------------------------------------------- transformations of JAX and of optax


@of_a_kind
def test_vmap_and_more_axes_equal_the_rows(tx):
    """These are the runs of a sweep, and facets [M, K, D]."""
    x, g = np.stack([ROWS, unit(6, 5, seed=1)]), some_rows(2, 6, 5)
    expected = np.stack([stepped(tx, *pair) for pair in zip(x, g)])
    np.testing.assert_allclose(stepped(tx, x, g), expected, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(partial(stepped, tx))(x, g), expected, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        partial(riemannian_sgd, 0.1),
        partial(riemannian_adam, 0.1, method=exponential),
        lambda axis: optax.chain(optax.sgd(0.1), riemannian.project_to_ball(0.9, axis=axis)),
    ],
    ids=KINDS,
)
def test_rows_along_another_axis(make):
    expected = stepped(make(axis=-1), ROWS, GRADIENT)
    np.testing.assert_allclose(stepped(make(axis=0), ROWS.T, GRADIENT.T).T, expected, atol=1e-6)


@of_a_kind
def test_tables_sharded_by_rows_keep_their_sharding(tx):
    mesh = Mesh(np.array(jax.devices("cpu")), ("rows",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("rows"))
    x, g = unit(8, 5), some_rows(8, 5)
    sharded = jax.device_put((x, g), split)
    step = jax.jit(partial(stepped.__wrapped__, tx)).lower(*sharded).compile()
    found = step(*sharded)
    np.testing.assert_allclose(found, stepped(tx, x, g), atol=1e-6)
    assert found.sharding.is_equivalent_to(split, 2)
    assert not any(word in step.as_text() for word in ("all-gather", "all-reduce", "all-to-all", "collective"))


@pytest.mark.deep
@pytest.mark.parametrize("rowwise_too", [False, True])
def test_a_part_of_a_tree(rowwise_too):
    """Facets are on the sphere, their weights have another rule, and the rest is frozen."""
    params = {"facet": unit(40, 2, 4), "weight": np.zeros((40, 2), "f4"), "frozen": np.ones(3, "f4")}
    labels = {"facet": "sphere", "weight": "free", "frozen": "none"}
    rules = {"sphere": riemannian_adam(0.1), "free": optax.adam(0.5), "none": optax.set_to_zero()}
    tx, target = optax.partition(rules, labels), unit(3, 2, 4, seed=1)

    def loss(p, target):
        ids = jnp.array([3, 5, 3])
        theta = jax.nn.softmax(p["weight"][ids], -1)
        return -(theta * (p["facet"][ids] * target).sum(-1)).sum() + p["frozen"].sum()

    gradient = jax.jit(jax.grad(loss))(params, target)
    with jax.numpy_dtype_promotion("standard"):  # optax raises an int32 count to a float power
        moved = by_rows(tx, loss, params, target) if rowwise_too else stepped(tx, params, gradient)
    expected = stepped(rules["sphere"], params["facet"], gradient["facet"])
    np.testing.assert_allclose(moved["facet"], expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(moved["facet"], axis=-1), 1, atol=1e-6)
    assert np.flatnonzero((moved["facet"] != params["facet"]).any((1, 2))).tolist() == [3, 5]
    assert np.flatnonzero(moved["weight"].any(1)).tolist() == [3, 5] and (moved["frozen"] == 1).all()


def test_masked_and_a_schedule():
    params = {"unit": X, "free": Y}
    tx = optax.masked(riemannian_sgd(lambda count: 0.1), {"unit": True, "free": False})
    updates, _ = tx.update({"unit": -Y, "free": Y}, tx.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(X, updates["unit"]), (0.999488, 0.031984, 0), atol=6e-7)
    assert (updates["free"] == Y).all()


def test_a_step_starts_from_a_point():
    with pytest.raises(ValueError, match="params=None"):
        riemannian.tangent().update(X, optax.EmptyState())


@on_sphere
def test_rows_that_are_not_unit_vectors_are_refused_when_known(tx):
    """Without the check, a step would normalise them."""
    for rows in (2 * ROWS, ROWS + 0.5, 0 * ROWS, np.full_like(ROWS, np.nan)):
        for rule in (tx, rowwise.lazy(tx), optax.masked(tx, {"facet": True, "weight": False})):
            with pytest.raises(ValueError, match=r"params\['facet'\] has rows of lengths .*; give unit vectors"):
                rule.init({"facet": ROWS, "weight": ROWS[:1]} | {"facet": rows})
    tx.init({"facet": ROWS, "nothing": np.zeros((0, 3), np.float32)})
    tx.init(jnp.asarray(ROWS, jnp.bfloat16))
    jax.jit(tx.init)(2 * ROWS)
    jax.vmap(tx.init)(2 * ROWS[None])


def test_hyperparameters_are_finite_numbers():
    for make in (riemannian_sgd, riemannian_adam):
        with pytest.raises(ValueError, match=r"^learning_rate=nan"):
            make(float("nan"))
    for name in ("b1", "b2", "eps"):
        with pytest.raises(ValueError, match=f"^{name}=-1.0"):
            riemannian_adam(0.1, **{name: np.float32(-1)})
    for radius in (np.float32(-1), float("nan"), 0):
        with pytest.raises(ValueError, match=r"^radius=.*; give a finite number above 0"):
            riemannian.project_to_ball(radius)
