"""MAR and MARS: models, margins, objective with its released gradient, and presets."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from jax.test_util import check_grads

import jaxrec as jr
from jaxrec.data import datasets, synthetic
from jaxrec.models import MAR, MARS, free, hybrid, projected
from jaxrec.papers import mars as paper
from jaxrec.train import mars

M, N, K, D = 5, 7, 3, 8
ZERO = jnp.zeros(1, jnp.int32)
ALL = np.arange(M)
CLOSE = dict(rtol=1e-5, atol=2e-6)


def initial(model, key=0):
    return jax.jit(model.init)(jax.random.key(key), ZERO, ZERO)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def norm(x):
    return np.linalg.norm(x, axis=-1, keepdims=True)


def by_numpy(model, params):
    """θ, facets of both sides and all scores, from the parameters."""
    params = {name: np.asarray(x, float) for name, x in params.items()}
    sides = []
    for name in ("user", "item"):
        x = params[name]
        if model.facets is projected:
            x = np.einsum("nd,kde->nke", x, params[f"{name}_projection"])
            x = x / (norm(x) if type(model) is MARS else np.maximum(norm(x), 1))
        sides.append(x)
    u, v = sides
    theta = softmax(params["theta"])
    similar = np.einsum("mkd,nkd->mnk", u, v) if type(model) is MARS else -((u[:, None] - v[None]) ** 2).sum(-1)
    return theta, u, v, np.einsum("mk,mnk->mn", theta, similar)


# ---------------------------------------------------------------------- models


@pytest.mark.deep
@pytest.mark.parametrize("facets", [free, projected, hybrid])
@pytest.mark.parametrize("kind", [MARS, MAR])
def test_pairs_rows_and_vectors_give_the_formula(kind, facets):
    model = kind(M, N, dim=D, n_facets=K, facets=facets)
    users, many = np.array([[4], [1]]), np.arange(2 * (N + 1)).reshape(2, -1) % N

    @jax.jit
    def everything(key):
        variables = model.init(key, ZERO, ZERO)
        apply = partial(model.apply, variables)
        pairs = [apply(users, items) for items in (many[:, :3], many)]  # few pairs, and more than there are items
        scalar, parts = apply(np.array(4), np.array(3)), apply(users[:, 0], many[:, :3], method="parts")
        return variables, apply(ALL, method="rows"), apply(method="vectors"), pairs, scalar, parts

    variables, rows, (left, right), pairs, scalar, parts = everything(jax.random.key(0))
    theta, u, v, expected = by_numpy(model, variables["params"])
    np.testing.assert_allclose(rows, expected, **CLOSE)
    assert left.shape == (M, K * (D + 2 * (kind is MAR))) and len(right) == N
    np.testing.assert_allclose(left @ right.T, expected, **CLOSE)
    for found, items in zip(pairs, (many[:, :3], many)):
        np.testing.assert_allclose(found, expected[users, items], **CLOSE)
    assert scalar.shape == ()
    for found, whole in zip(parts, (theta[users[:, 0]], u[users[:, 0]], v[many[:, :3]])):
        np.testing.assert_allclose(found, whole, **CLOSE)
    with pytest.raises(AssertionError):
        model.apply(variables, np.array([0.0], np.float32), np.array([1]))


@pytest.mark.deep
@pytest.mark.parametrize(
    ("facets", "kind", "scale"),
    [(free, MARS, 0.01), (free, MAR, 1.0), (projected, MARS, 0.01), (projected, MAR, 0.1), (hybrid, MAR, 1.0)],
)
def test_facets_start_on_the_sphere_or_in_the_ball(facets, kind, scale):
    model = kind(40, 60, dim=D, n_facets=K, facets=facets, scale=scale)
    draw = jax.jit(lambda key: model.init(key, ZERO, ZERO)["params"])
    params = draw(jax.random.key(0))
    shapes = {"user": (40, K, D), "item": (60, K, D)}
    if facets is projected:
        shapes = {"user": (40, D), "item": (60, D), "user_projection": (K, D, D), "item_projection": (K, D, D)}
    assert {name: x.shape for name, x in params.items()} == {**shapes, "theta": (40, K)}
    for x in by_numpy(model, params)[1:3]:
        if kind is MARS:
            np.testing.assert_allclose(norm(x), 1, atol=1e-6)
        elif scale == 1:
            assert norm(x).max() < 1 + 1e-6 and 0.2 < (norm(x) < 1 - 1e-6).mean() < 0.8
        else:
            assert (norm(x) ** 2).mean() == pytest.approx(scale**2, rel=0.2)
    other, again = draw(jax.random.key(1)), draw(jax.random.key(0))
    for name, x in params.items():
        np.testing.assert_array_equal(x, again[name])
        assert not np.array_equal(x, other[name])


@pytest.mark.deep
@pytest.mark.parametrize("facets", [free, projected, hybrid])
def test_facets_start_as_different_vectors(facets):
    """With the same projection for every k, all facets would stay equal for ever."""
    model = MARS(400, 300, dim=32, n_facets=4, facets=facets)
    params = initial(model)["params"]
    for x in by_numpy(model, params)[1:3]:
        cosines = np.einsum("nid,njd->nij", x, x)[:, *np.triu_indices(4, 1)]
        assert np.abs(cosines.mean(0)).max() < 4 / 32  # for projections: trace of a rotation, about 1, over D
        assert cosines.std() == pytest.approx(32**-0.5, rel=0.25)
    if facets is projected:
        for name in ("user", "item"):
            turns = np.asarray(params[f"{name}_projection"])
            np.testing.assert_allclose(np.einsum("kde,kfe->kdf", turns, turns), [np.eye(32)] * 4, atol=1e-5)
        assert not np.allclose(params["user_projection"], params["item_projection"])


@pytest.mark.deep
@pytest.mark.parametrize(("scale", "largest"), [(1.0, 0.517), (0.0, 0.25)])
def test_shares_are_a_softmax_over_facets(scale, largest):
    """The largest shares show the axis of the softmax and the initial scale, that of the released code or 0."""
    model = MARS(6000, 3, dim=2, n_facets=4, theta_scale=scale)
    theta = by_numpy(model, initial(model)["params"])[0]
    np.testing.assert_allclose(theta.sum(1), 1, atol=1e-5)
    assert float(theta.max(1).mean()) == pytest.approx(largest, abs=0.01)


@pytest.mark.parametrize("name", ["n_users", "n_items", "dim", "n_facets"])
def test_sizes_below_one_are_named(name):
    with pytest.raises(ValueError, match=f"{name}=0; give an integer of 1 or more"):
        MARS(**({"n_users": 3, "n_items": 3} | {name: 0}))


def test_into_ball_has_a_finite_gradient_everywhere():
    points = jnp.array([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0], [0.1, 0.2]])
    value, gradient = jax.jit(jax.value_and_grad(lambda x: jr.models.mars.into_ball(x)[..., 1].sum()))(points)
    assert float(value) == pytest.approx(0.8 + 0.2)
    np.testing.assert_allclose(gradient, [[0, 1], [0, 1], [-0.6 * 0.8 / 5, 0.36 / 5], [0, 1]], atol=1e-6)


@pytest.mark.deep
def test_calibrated_unit_is_the_factor_of_free_facets():
    """For x = (1, 0, 0) pulled to (.6, .8, 0) the factor is .4. A vector of length 2 has half the gradient."""
    points = jnp.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-1.2, -1.6, 0.0]])
    towards = jnp.array([0.6, 0.8, 0.0])
    place = jr.models.mars.calibrated_unit
    value, gradient = jax.jit(jax.value_and_grad(lambda x: -(place(x) @ towards).sum()))(points)
    assert float(value) == pytest.approx(-0.6 - 0.6 - 1 + 1)
    np.testing.assert_allclose(gradient, [[0, -0.32, 0], [0, -0.16, 0], [0] * 3, [0] * 3, [0] * 3], atol=1e-6)
    still = jax.jit(jax.grad(lambda x: 0 * place(x).sum()))(points)
    assert (still == 0).all()
    around = jnp.array([-0.6, 0.8, 0.0])
    found = jax.jit(jax.grad(lambda x: -(place(x) * towards).sum()))(around)
    cosine = float(around @ towards)
    np.testing.assert_allclose(found, -(1 - cosine) * (towards - cosine * around), atol=1e-6)


@pytest.mark.deep
def test_from_shares_puts_facets_at_their_anchors():
    rng = np.random.default_rng(0)
    users, items = rng.gamma(0.3, size=(50, K)), rng.gamma(0.3, size=(60, K))
    users[7] = 0
    draw = partial(jr.models.mars.from_shares, users=users, items=items, dim=D)
    tables = jax.jit(partial(draw, noise=0.01))(jax.random.key(0))
    shares = users[:7] / users[:7].sum(1, keepdims=True)
    np.testing.assert_allclose(softmax(np.asarray(tables["theta"]))[:7], (shares + 1e-3) / (1 + 3e-3), rtol=1e-4)
    np.testing.assert_allclose(softmax(np.asarray(tables["theta"]))[7], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(norm(tables["user"]), 1, atol=1e-6)
    big_users, big_items = (users / users.sum(1, keepdims=True).clip(1e-9) > 0.3), (items / items.sum(1)[:, None] > 0.3)
    cosines = np.einsum("mid,njd->mnij", tables["user"], tables["item"])
    both = big_users[:, None, :, None] & big_items[None, :, None, :]
    np.testing.assert_allclose(cosines[both], np.broadcast_to(np.eye(K), both.shape)[both], atol=0.2)
    drawn = jax.eval_shape(MARS(50, 60, dim=D, n_facets=K).init, jax.random.key(0), ZERO, ZERO)["params"]
    assert {name: (x.shape, x.dtype) for name, x in tables.items()} == {n: (x.shape, x.dtype) for n, x in drawn.items()}
    with pytest.raises(ValueError, match="users has entries that are negative or not finite; give"):
        draw(jax.random.key(0), users=-users)


# ---------------------------------------------------------------------- margins


@pytest.mark.parametrize("cells", [1 << 22, 1, 25])
def test_margin_is_the_share_of_users_without_a_common_item(cells, monkeypatch):
    monkeypatch.setattr(mars, "_CELLS", cells)
    rng = np.random.default_rng(0)
    met = rng.random((12, 9)) < 0.15
    met[3] = False
    met[5], met[:, 8] = False, False
    met[5, 8] = True
    train = jr.Interactions.from_pairs(*met.nonzero(), weights=rng.normal(size=met.sum()), n_users=12, n_items=9)
    union = 1 - ((met.astype(int) @ met.T) > 0).sum(1) / 12
    np.testing.assert_allclose(mars.adaptive_margin(train), union, atol=1e-7)
    counted = 1 - (met.astype(int) @ met.sum(0)) / 12
    np.testing.assert_allclose(mars.adaptive_margin(train, count="sum"), counted, atol=1e-7)
    assert (counted < union).any()
    assert mars.adaptive_margin(train)[5] == pytest.approx(1 - 1 / 12)  # nobody else has its item
    assert mars.adaptive_margin(train)[3] == 1
    with pytest.raises(ValueError, match="count='literal'; give"):
        mars.adaptive_margin(train, count="literal")


def test_margins_of_ciao(data_root):
    """The sum, as eq. 7 is printed, gives some negative margins. The union gives margins in [0, 1)."""
    train = datasets.load("ciao").train
    union, counted = mars.adaptive_margin(train), mars.adaptive_margin(train, count="sum")
    found = union.min(), union.mean(), np.quantile(union, 0.05)
    np.testing.assert_allclose(found, (0.338, 0.898, 0.686), atol=6e-4)
    assert union.max() < 1
    np.testing.assert_allclose((counted.min(), (counted < 0).mean()), (-2.480, 0.027), atol=6e-4)


# ---------------------------------------------------------------------- separation

TWO = jnp.array([[[1.0, 0.0], [0.6, 0.8]]])
DOT, DISTANCE = jr.models.dot, jr.models.negative_squared_distance


@pytest.mark.parametrize("score", [DOT, DISTANCE])
@pytest.mark.parametrize(("sign", "draws"), [(1.0, False), (-1.0, True)])
def test_separation_separates_facets_and_as_published_makes_them_equal(score, sign, draws):
    gradient = jax.jit(jax.grad(partial(mars.separation, score=score, sign=sign)))(TWO, TWO)
    after = TWO - 0.1 * gradient
    cosine = float((after[0, 0] * after[0, 1]).sum() / (norm(after[0, 0]) * norm(after[0, 1]))[0])
    assert (cosine > 0.6 + 1e-4) if draws else (cosine < 0.6 - 1e-4)


def test_separation_inside_and_outside_of_the_batch():
    """The batch has a thousand users whose facets have the cosine .05."""
    second = np.array([0.05, np.sqrt(1 - 0.05**2)])
    users = jnp.asarray(np.broadcast_to(np.stack([[1.0, 0.0], second]), (1000, 2, 2)), jnp.float32)
    published = partial(mars.separation, score=DOT, sign=-1.0, on="users")
    found = jax.jit(lambda x: [published(x, x, reduction=name) for name in ("inside", "mean", "sum")])(users)
    row = 10 * np.log1p(np.exp(-0.005))
    np.testing.assert_allclose(found, [10 * np.log1p(np.exp(-5)), row, 1000 * row], rtol=1e-4)


@pytest.mark.deep
@pytest.mark.parametrize("score", [DOT, DISTANCE])
def test_separation_is_its_formula_and_a_mask_is_a_deletion(score):
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(2, 4, K, D)).astype(np.float32)
    where = np.array([True, True, False, True])
    users[2] = np.nan
    forms = [(on, reduction) for on in ("both", "users") for reduction in ("mean", "sum", "inside")]

    @jax.jit
    def found(users):
        value = partial(mars.separation, score=score, alpha=0.3, where=where)
        return {form: value(users, items, on=form[0], reduction=form[1]) for form in forms}

    values, gradients = found(users), jax.jit(jax.jacrev(found))(users)
    for on, reduction in forms:
        assert (gradients[on, reduction][2] == 0).all() and np.isfinite(gradients[on, reduction]).all()
        terms = np.zeros((3, 3))
        for x in (users, items)[: 1 + (on == "both")]:
            x = x[where].astype(float)
            for pair, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
                terms[:, pair] += (x[:, i] * x[:, j]).sum(1) if score is DOT else -((x[:, i] - x[:, j]) ** 2).sum(1)
        rows = np.log1p(np.exp(0.3 * terms)).sum(1) / 0.3
        inside = np.log1p(np.exp(0.3 * terms.sum(0))).sum() / 0.3
        expected = {"mean": rows.mean(), "sum": rows.sum(), "inside": inside}[reduction]
        np.testing.assert_allclose(values[on, reduction], expected, rtol=1e-4)


def test_separation_of_one_facet_is_zero_and_wrong_options_are_named():
    one, reductions = jnp.ones((4, 1, 2)), ("mean", "sum", "inside")
    found = jax.jit(lambda x: [mars.separation(x, x, score=DOT, reduction=name) for name in reductions])(one)
    assert found == [0, 0, 0]
    for name in ("on", "reduction"):
        with pytest.raises(ValueError, match=f"{name}='items'; give"):
            mars.separation(TWO, TWO, score=DOT, **{name: "items"})


# ---------------------------------------------------------------------- equations as printed


def facets_of(rng, *shape):
    x = rng.normal(size=shape)
    return x / norm(x)


@pytest.mark.parametrize("name", ["equation_6", "equation_12"])
def test_printed_separation_sums_all_pairs(name):
    rng = np.random.default_rng(0)
    users, items = facets_of(rng, 2, 4, K, D)
    where, alpha = np.array([True, True, False, True]), 0.3
    expected = 0.0
    for u, v in zip(users[where], items[where]):
        for i in range(K):
            for j in range(K):
                apart = ((u[i] - u[j]) ** 2).sum() + ((v[i] - v[j]) ** 2).sum()
                printed = {"equation_6": apart, "equation_12": u[i] @ u[j]}[name]
                expected += np.log1p(np.exp(-alpha * printed)) / alpha
    value = partial(getattr(paper, name), score={"equation_6": DISTANCE, "equation_12": DOT}[name], alpha=alpha)
    users, items = users.astype(np.float32), items.astype(np.float32)
    found, deleted = jax.jit(lambda: (value(users, items, where=where), value(users[where], items[where])))()
    np.testing.assert_allclose([found, deleted], expected, rtol=1e-5)


@pytest.mark.parametrize(("options", "draws"), [({}, True), ({"sign": 1.0}, False)], ids=["printed", "corrected"])
def test_equation_12_as_printed_makes_facets_equal(options, draws):
    gradient = jax.jit(jax.grad(partial(paper.equation_12, score=DOT, **options)))(TWO, TWO)
    after = TWO - 0.1 * gradient
    cosine = float((after[0, 0] * after[0, 1]).sum() / (norm(after[0, 0]) * norm(after[0, 1]))[0])
    assert (cosine > 0.6 + 1e-4) if draws else (cosine < 0.6 - 1e-4)


@pytest.mark.parametrize("score", [DOT, DISTANCE])
def test_equation_15_squares_the_scores(score):
    rng = np.random.default_rng(0)
    u, v = facets_of(rng, 4, K, D), facets_of(rng, 4, 3, K, D)
    theta, margin = softmax(rng.normal(size=(4, K))), np.array([0.2, 0.5, 0.9, 0.0])
    similar = np.einsum("bkd,bnkd->bnk", u, v) if score is DOT else -((u[:, None] - v) ** 2).sum(-1)
    scores = (theta[:, None] * similar).sum(-1)
    push = np.maximum(margin[:, None] - scores[:, :1] ** 2 + scores[:, 1:] ** 2, 0).mean(1)
    given = [x.astype(np.float32) for x in (theta, u, v, margin)]
    squared, plain = jax.jit(
        lambda theta, u, v, margin: [
            ranking(theta, u, v, score=score, margin=margin, pull_weight=0.3)
            for ranking in (paper.equation_15, mars.push_and_pull)
        ]
    )(*given)
    np.testing.assert_allclose(squared, push + 0.3 * (1 - scores[:, 0]), rtol=1e-4, atol=1e-6)
    assert not np.allclose(squared, plain, atol=1e-2)


# ---------------------------------------------------------------------- the fixture of the released code


def on_circle(angles):
    return jnp.stack([jnp.cos(jnp.asarray(angles)), jnp.sin(jnp.asarray(angles))], -1)


def angles(x):
    return np.arctan2(x[..., 1], x[..., 0])


SMALL = MARS(2, 3, dim=2, n_facets=2)
PARAMS = {
    "user": on_circle([[0.0, 1.0], [2.0, 3.0]]),
    "item": on_circle([[0.3, 1.5], [0.6, 2.5], [0.9, 2.2]]),
    "theta": jnp.array([[0.2, -0.1], [0.0, 0.5]]),
}
TRIPLES = np.array([[0, 0, 1], [1, 2, 0], [0, 2, 1]])
MARGIN = np.array([0.9, 0.6], np.float32)


def batch_of(triples, where=None, weights=None):
    users, items = jnp.asarray(triples[:, 0]), jnp.asarray(triples[:, 1])
    return jr.train.Batch.of(users, items, weights=weights, where=where)


def value_of(params, model=SMALL, triples=TRIPLES, batch=None, **options):
    """The objective of fixed triples."""

    def sample(key, users):
        return jnp.asarray(triples[:, 2:])

    options = paper.RELEASED["objective"] | {"margin": MARGIN} | options
    batch = batch_of(triples) if batch is None else batch
    return mars.objective({"params": params}, jax.random.key(0), batch, model=model, sample=sample, **options)


@pytest.mark.deep
def test_released_values():
    scores = np.asarray(SMALL.apply({"params": PARAMS}, np.arange(2), method="rows"))
    pos, neg = scores[TRIPLES[:, 0], TRIPLES[:, 1]], scores[TRIPLES[:, 0], TRIPLES[:, 2]]
    np.testing.assert_allclose(pos, [0.922248, 0.604923, 0.511283], atol=1e-5)
    np.testing.assert_allclose(neg, [0.504211, -0.004613, 0.504211], atol=1e-5)
    assert (MARGIN[TRIPLES[:, 0]] - pos + neg > 0).tolist() == [True, False, True]
    for ranking in (paper.released, mars.push_and_pull):
        value = jax.jit(partial(value_of, PARAMS, ranking=ranking))
        push = value(pull_weight=0.0, facet_weight=0.0)
        pull = value(pull_weight=1.0, facet_weight=0.0) - push
        facet = value(pull_weight=0.0, facet_weight=1.0) - push
        np.testing.assert_allclose([push, pull, facet], [1.374890, 0.961546, 6.153824], atol=1e-5)
        assert float(value(pull_weight=0.1, facet_weight=0.01)) == pytest.approx(1.532583, abs=1e-5)


def test_released_step():
    tx = mars.optimizer(0.1, theta_learning_rate=0.1, step=paper.sphere_sgd)
    rowwise = jr.optim.rowwise.lazy(tx)

    def whole(params):
        updates, _ = tx.update(jax.grad(value_of)(params), tx.init(params), params)
        return optax.apply_updates(params, updates)

    def by_rows(params):
        return rowwise.step(lambda p, *_: value_of(p), params, rowwise.init(params), None, None)[1]

    for step in (whole, by_rows):
        after = jax.jit(step)(PARAMS)
        users, items = angles(after["user"]).ravel(), angles(after["item"]).ravel()
        np.testing.assert_allclose(users, [-0.004268, 0.940972, 1.911520, 2.928020], atol=1e-5)
        expected = [0.270457, 1.452094, 0.712452, 2.696914, 0.910788, 2.178535]
        np.testing.assert_allclose(items, expected, atol=1e-5)
        np.testing.assert_allclose(after["theta"], [[0.172169, -0.072169], [-0.000571, 0.500571]], atol=1e-5)


def along_sphere(params, gradient):
    return gradient - (gradient * params).sum(-1, keepdims=True) * params


@pytest.mark.deep
def test_true_gradients():
    gradient, as_released = jax.jit(
        lambda params: [
            jax.grad(partial(value_of, ranking=name))(params) for name in (mars.push_and_pull, paper.released)
        ]
    )(PARAMS)
    found = along_sphere(PARAMS["user"], gradient["user"]).reshape(4, 2)
    expected = [(0, -0.040734), (-0.164922, 0.105895), (-0.027079, -0.012393), (-0.006847, -0.048034)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    found = norm(along_sphere(PARAMS["user"], as_released["user"])).ravel()
    np.testing.assert_allclose(found, [0.0427, 0.592, 0.887, 0.721], rtol=2e-3)
    np.testing.assert_allclose(as_released["theta"], gradient["theta"], atol=1e-6)


@pytest.mark.deep
def test_released_pull_is_on_or_off():
    """Its weight changes the value and θ, but not the facets, unless it is 0."""
    gradient = jax.jit(jax.grad(lambda params, weight: value_of(params, pull_weight=weight, facet_weight=0.0)))
    expected = gradient(PARAMS, 0.1)
    for weight in (0.0, 1e-6, 5.0):
        found = gradient(PARAMS, weight)
        np.testing.assert_allclose(found["user"][0], expected["user"][0], atol=1e-6)  # its triples are both active
        assert np.allclose(found["user"][1], expected["user"][1], atol=1e-6) is (weight > 0)
        assert not np.allclose(found["theta"], expected["theta"], atol=1e-6)


# ---------------------------------------------------------------------- the objective


@pytest.mark.deep
@pytest.mark.parametrize(
    ("kind", "ranking"), [(MARS, mars.push_and_pull), (MARS, paper.released), (MAR, mars.push_and_pull)]
)
def test_objective_is_a_sum_over_the_batch(kind, ranking):
    """Twice the triples give twice the gradient, and a weight of 2 counts as a repetition."""
    model = kind(M, N, dim=D, n_facets=K)
    params = initial(model)["params"]
    triples = np.tile([[0, 1, 2], [3, 4, 5], [0, 6, 1], [4, 2, 3]], (2, 1))
    users, items = jnp.asarray(triples[:, 0]), jnp.asarray(triples[:, 1])

    @jax.jit
    def gradient(where, weights):
        batch = jr.train.Batch.of(users, items, weights=weights, where=where)
        value = partial(value_of, model=model, triples=triples, batch=batch, margin=0.5)
        return jax.grad(partial(value, facet_weight=0.0, ranking=ranking))(params)

    ones, half = np.ones(8, np.float32), np.arange(8) < 4
    one, two = gradient(half, ones), gradient(half | True, ones)
    weighted = gradient(half, np.array([1, 0, 2, 1] * 2, np.float32))
    repeated = gradient(np.array([True, False, True, True, False, False, True, False]), ones)
    for name in params:
        assert np.abs(one[name]).max() > 1e-3
        np.testing.assert_allclose(two[name], 2 * one[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(weighted[name], repeated[name], rtol=1e-5, atol=1e-6)
    assert (np.asarray(repeated["user"][3]) == 0).all()  # its triples are masked


@pytest.mark.deep
@pytest.mark.parametrize("kind", [MARS, MAR])
def test_objective_equals_the_formula_of_the_paper(kind):
    model = kind(M, N, dim=D, n_facets=K)
    params = initial(model)["params"]
    triples = np.array([[0, 1, 2], [3, 4, 5], [0, 6, 1], [4, 2, 3]])
    triples = np.c_[triples, triples[::-1, 2]]
    margin = np.linspace(0.1, 0.9, M).astype(np.float32)
    users, items = triples[:, 0], triples[:, 1]
    *_, u, v, scores = by_numpy(model, params)
    pos, neg = scores[users, items], scores[users[:, None], triples[:, 2:]]
    push = np.maximum(margin[users][:, None] - pos[:, None] + neg, 0).mean(1).sum()
    options = {"ranking": mars.push_and_pull, "separate": mars.separation, "pull_weight": 0.3, "facet_weight": 2.0}

    @jax.jit
    def both(params):
        apart = mars.separation(jnp.asarray(u[users]), jnp.asarray(v[items]), score=model.score)
        return apart, value_of(params, model, triples, margin=margin, **options)

    apart, found = both(params)
    assert push > 0.1
    np.testing.assert_allclose(found, push + 0.3 * (1 - pos).sum() + 2 * float(apart), rtol=1e-5)


@pytest.mark.parametrize(("kind", "preset"), [(MARS, paper.PAPER), (MAR, paper.PAPER_MAR)], ids=["MARS", "MAR"])
def test_presets_of_the_paper_are_its_objective(kind, preset):
    """These are equations 1, 2, 8, 9, 11 and 17. The facet term has all pairs, and the sign that eq. 12 has wrong."""
    model = kind(M, N, dim=D, **preset["model"])
    params = initial(model)["params"]
    assert set(params) == {"user", "item", "user_projection", "item_projection", "theta"}
    triples = np.array([[0, 1, 2], [3, 4, 5], [0, 6, 1], [4, 2, 3]])
    users, items, negatives = triples.T
    margin = np.linspace(0.1, 0.9, M).astype(np.float32)
    _, u, v, scores = by_numpy(model, params)
    pos = scores[users, items]
    push = np.maximum(margin[users] - pos + scores[users, negatives], 0).sum()
    apart = [((x[:, :, None] - x[:, None]) ** 2).sum(-1) for x in (u[users], v[items])]
    exponent = 0.1 * (u[users] @ u[users].swapaxes(1, 2)) if kind is MARS else -0.1 * (apart[0] + apart[1])
    expected = push + 0.1 * (1 - pos).sum() + 0.01 * np.log1p(np.exp(exponent)).sum() / 0.1
    found = jax.jit(partial(value_of, model=model, triples=triples, margin=margin, **preset["objective"]))(params)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    tx = mars.optimizer(**preset["optimizer"])
    gradient = jax.tree.map(jnp.ones_like, params)
    for name, update in tx.update(gradient, tx.init(params), params)[0].items():
        np.testing.assert_allclose(update, -0.01, rtol=1e-6, err_msg=name)


@pytest.mark.deep
def test_calibration_of_the_paper_is_in_the_model():
    """The gradient at a facet is that of unit facets times the factor of eq. 21."""
    triples = np.array([[1, 2, 0]])
    users, items = triples[0, 0], triples[0, 1:]
    model = MARS(M, N, dim=D, **paper.PAPER["model"])
    params = initial(model)["params"]
    options = {"triples": triples, "margin": 3.0, "ranking": mars.push_and_pull, "facet_weight": 0.0}
    found = jax.jit(jax.grad(partial(value_of, model=model, **options)))(params)
    theta, u, v, _ = by_numpy(model, params)
    slope = theta[users][:, None] * (v[items[1]] - 1.1 * v[items[0]])  # of the loss, at the user's facets
    factor = 1 + (u[users] * slope).sum(-1, keepdims=True) / norm(slope)
    raw = np.einsum("d,kde->ke", np.asarray(params["user"][users], float), np.asarray(params["user_projection"], float))
    back = along_sphere(u[users], factor * slope) / norm(raw)
    expected = np.einsum("ke,kde->d", back, np.asarray(params["user_projection"], float))
    np.testing.assert_allclose(found["user"][users], expected, rtol=1e-4, atol=1e-6)
    expected = np.einsum("d,ke->kde", np.asarray(params["user"][users], float), back)
    np.testing.assert_allclose(found["user_projection"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.deep
@pytest.mark.parametrize("kind", [MARS, MAR])
def test_scores_are_not_squared(kind):
    """With squares, a positive on the opposite side would have the same loss, and MAR would push its positives away."""
    model = kind(1, 2, dim=2, n_facets=2)
    params = {"user": jnp.array([[[0.6, 0.0], [0.0, 0.6]]]), "theta": jnp.zeros((1, 2))}
    params["item"] = jnp.array([[[0.3, 0.4], [0.5, 0.2]], [[-0.9, -0.1], [0.0, -0.9]]])
    triple = np.array([[0, 0, 1]])
    options = {"ranking": mars.push_and_pull, "facet_weight": 0.0, "margin": 3.0}
    value = partial(value_of, model=model, triples=triple, pull_weight=0.0, **options)
    flipped = params | {"item": params["item"].at[0].multiply(-1)}
    step = jax.jit(jax.value_and_grad(value))
    before, gradient = step(params)
    assert float(step(flipped)[0]) > float(before) + 0.1
    after = {name: params[name] - 0.05 * gradient[name] for name in params}

    def distance(params):
        return norm(params["user"][0] - params["item"][0]).ravel()

    if kind is MAR:
        after["item"] = after["item"].at[1].set(params["item"][1])
        assert (distance(after) < distance(params)).all()
    assert float(step(after)[0]) < float(before)


@pytest.mark.deep
def test_drawn_positives_replace_those_of_the_batch():
    train = jr.Interactions.from_pairs([0, 1, 1, 4], [2, 3, 6, 0], n_users=M, n_items=N)
    table = jr.sampling.popularity_table(train.transpose(), power=0.8)
    draw = partial(jr.sampling.explorative, train=train, table=table)
    model = MARS(M, N, dim=D, n_facets=K)
    variables, key = initial(model), jax.random.key(3)
    where = jnp.array([True, True, False, True])
    batch = jr.train.Batch.of(jnp.full(4, 2), jnp.full(4, 5), weights=jnp.full(4, 9.0), where=where)
    sample = partial(jr.sampling.uniform, n_items=N, n=2)
    value = partial(mars.objective, variables, key, model=model, sample=sample, margin=0.5)

    @jax.jit
    def both():
        users, items = draw(jax.random.split(key)[1], (4,))
        given = value(jr.train.Batch.of(users, items, where=where))
        return users, items, given, value(batch, positives=draw)

    users, items, expected, found = both()
    assert set(users.tolist()) <= {0, 1, 4} and len(set(items.tolist())) > 1
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    grouped = jr.train.Batch.of(jnp.array([0, 1]), jnp.array([[2, 3], [6, 0]]))
    given = value(jr.train.Batch.of(*grouped.pairs()[:2]))
    np.testing.assert_allclose(value(grouped), given, rtol=1e-6)


@pytest.mark.deep
@pytest.mark.parametrize(("power", "of_user", "of_item"), [(0.0, 1 / 4, 1 / 3), (1.0, 3 / 8, 3 / 7)])
def test_samplers_draw_users_and_items_by_their_powers(power, of_user, of_item):
    """User 0 has 3 of 8 pairs. User 1 lacks 7 of these, of which item 0 has 3. Item 4 has no pair."""
    train = jr.Interactions.from_pairs([0, 0, 0, 2, 2, 3, 3, 1], [0, 1, 2, 0, 1, 0, 2, 3], n_users=4, n_items=5)
    draw = paper.samplers(train, users=power, items=power, n=3)
    users, items = draw["positives"](jax.random.key(0), (4000,))
    assert train.contains(users, items).all() and abs(float((users == 0).mean()) - of_user) < 0.03
    found = draw["sample"](jax.random.key(1), jnp.ones(2000, jnp.int32))
    assert found.shape == (2000, 3) and (found < 3).all() and abs(float((found == 0).mean()) - of_item) < 0.03


# ---------------------------------------------------------------------- training

BOARD, DIAGONAL = synthetic.checkerboard(30)


def trained(model, preset, *, tx, epochs, **options):
    objective = partial(
        mars.objective,
        model=model,
        margin=mars.adaptive_margin(BOARD, **preset["margin"]),
        **paper.samplers(BOARD, **preset["power"]),
        **preset["objective"],
    )
    state = jr.train.init(jax.random.key(0), model, tx)
    return jr.train.fit(state, objective, tx, BOARD, epochs=epochs, batch_size=64, progress=False)


@pytest.mark.deep
@pytest.mark.parametrize(
    ("kind", "preset", "options"),
    [
        (MARS, paper.RELEASED, {}),
        (MARS, paper.PAPER, {"learning_rate": 0.04}),
        (MARS, paper.FREE_FACETS, {"learning_rate": 0.04}),
        (MAR, paper.PAPER_MAR, {"learning_rate": 0.04}),
        (MAR, paper.DEFAULT, {"step": mars.ball_sgd}),
    ],
    ids=["released", "paper", "free facets", "MAR", "MAR, free facets"],
)
def test_recovers_the_diagonal_withheld_from_the_checkerboard(kind, preset, options):
    model = kind(30, 30, dim=8, **preset["model"])
    tx = jr.optim.rowwise.lazy(mars.optimizer(**preset["optimizer"] | options))
    state, log = trained(model, preset, tx=tx, epochs=60)
    report = jr.evaluate.full_ranking(model, state.variables, BOARD, DIAGONAL, ks=(1,))
    assert report.means["hit_rate@1"] == 1
    assert log.records[-1]["loss"] < log.records[0]["loss"]
    for x in by_numpy(model, state.variables["params"])[1:3]:
        assert norm(x).max() < 1 + 1e-5 and (kind is MAR or norm(x).min() > 1 - 1e-5)


@pytest.mark.deep
def test_finds_the_facets_that_were_planted():
    """The facets with the largest shares are the planted ones up to a permutation, under the conditions of
    benchmarks/studies/facets.py.
    """
    sizes = dict(n_users=400, n_items=100, n_facets=3)
    train, truth = synthetic.facet_spaces(
        jax.random.key(0), **sizes, dim=3, pairs_per_user=30, concentration=0.05, sharpness=8.0
    )
    model = MARS(**sizes, dim=6, theta_scale=0.0)
    loss = partial(jr.losses.mine, temperature=0.4)
    objective = partial(jr.train.rows_objective, model=model, loss=loss)
    step = jr.optim.riemannian.riemannian_adam(optax.exponential_decay(0.3, 120, 0.5), calibrated=False)
    rules = {"theta": optax.adam(0.03), "facets": step}
    tx = optax.partition(rules, {"theta": "theta", "user": "facets", "item": "facets"})
    state = jr.train.init(jax.random.key(0), model, tx)
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules need it
        state, _ = jr.train.fit(
            state,
            objective,
            tx,
            train,
            epochs=120,
            batch_size=100,
            examples=partial(jr.train.groups, n=30),
            progress=False,
        )
    table = np.zeros((3, 3))
    found = np.asarray(state.variables["params"]["theta"]).argmax(1)
    np.add.at(table, (truth.user_mixtures.argmax(1), found), 1 / 400)
    assert table[scipy.optimize.linear_sum_assignment(-table)].sum() > 0.85, "chance is about .37"


PRESETS = {name: getattr(paper, name) for name in ("PAPER", "PAPER_MAR", "FREE_FACETS", "RELEASED", "DEFAULT")}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_keywords_of_their_functions(name):
    preset, kind = PRESETS[name], MAR if name == "PAPER_MAR" else MARS
    assert set(preset) == {"model", "objective", "margin", "power", "optimizer"}
    assert preset["model"]["n_facets"] == 4 and set(preset["power"]) == {"users", "items"}
    model, tx = kind(M, N, dim=D, **preset["model"]), mars.optimizer(**preset["optimizer"])

    def step(key, params):
        gradient = jax.grad(partial(value_of, model=model, margin=0.5, **preset["objective"]))(params)
        return optax.apply_updates(params, tx.update(gradient, tx.init(params), params)[0])

    params = jax.eval_shape(model.init, jax.random.key(0), ZERO, ZERO)["params"]
    assert jax.eval_shape(step, jax.random.key(0), params) == params
    mars.adaptive_margin(BOARD, **preset["margin"])


# ---------------------------------------------------------------------- which parameters lie on spheres


@pytest.mark.deep
@pytest.mark.parametrize("step", [paper.sphere_sgd, mars.ball_sgd, jr.optim.riemannian.riemannian_adam])
def test_projections_are_not_put_on_the_sphere(step):
    """Also where values are not known, as under jit and vmap."""
    model = MARS(3, 5, dim=2, n_facets=4, facets=projected)
    tx = mars.optimizer(0.1, theta_learning_rate=0.1, step=step)
    params = initial(model)["params"]
    for init in (tx.init, jax.jit(tx.init), jax.vmap(tx.init), jr.optim.rowwise.lazy(tx).init):
        given = jax.tree.map(lambda x: x[None], params)
        with pytest.raises(ValueError, match=r"user_projection.*step=optax.sgd.*place=jaxrec.models.mars.calibrated"):
            init(given)


@pytest.mark.deep
def test_plain_steps_move_vectors_and_projections_by_the_calibrated_gradient():
    model = MARS(3, 5, dim=2, n_facets=4, facets=projected, place=jr.models.mars.calibrated_unit)
    tx = mars.optimizer(0.1, theta_learning_rate=0.0, step=optax.sgd)
    params = initial(model)["params"]
    users, items = jnp.array([0, 2]), jnp.array([1, 4])
    gradient = jax.grad(lambda p: -model.apply({"params": p}, users, items).sum())(params)
    updates, _ = tx.update(gradient, tx.init(params), params)
    np.testing.assert_allclose(updates["user_projection"], -0.1 * gradient["user_projection"], rtol=1e-6)
    np.testing.assert_allclose(updates["user"], -0.1 * gradient["user"], rtol=1e-6)
    lengths = norm(np.asarray(params["user_projection"] + updates["user_projection"]))
    assert np.abs(lengths - 1).max() > 1e-3  # no step put them back on the sphere


@pytest.mark.deep
def test_parameters_that_are_not_of_mars_are_named():
    tx = mars.optimizer(0.1, theta_learning_rate=0.1)
    params = initial(MARS(3, 5, dim=2))["params"]
    with pytest.raises(ValueError, match=r"params has \['boundary'\].*optax.partition"):
        tx.init(params | {"boundary": jnp.zeros(3)})
    with pytest.raises(ValueError, match="unit vectors"):
        tx.init(params | {"user": 2 * params["user"]})


@pytest.mark.deep
def test_products_of_facets_have_all_their_derivatives():
    with jax.enable_x64(True):
        sides = tuple(jnp.asarray(x) for x in np.random.default_rng(0).normal(size=(2, 3, 2, 4)))
        check_grads(jax.jit(jax.vmap(mars._products)), tuple(x[None] for x in sides), 2, ["rev"])


@pytest.mark.deep
def test_margins_of_single_precision_work_in_double_precision():
    model = MARS(M, N, dim=D, n_facets=2)
    margin = np.linspace(0.1, 0.9, M).astype(np.float32)
    with jax.enable_x64(True):
        params = initial(model)["params"]
        found = [value_of(params, model=model, margin=given) for given in (margin, margin.astype(float))]
        assert found[0].dtype == np.float64 and float(found[0]) == float(found[1])
