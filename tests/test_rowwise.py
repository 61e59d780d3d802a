from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import adam as adam_of_optax

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.optim import as_step, rowwise

SHAPES = {"user": (20, 3), "item": (12, 2, 2), "bias": (12,)}


def looked_up(params, key, n):
    """Products of n random rows of each table, repeated and in any order, with random numbers."""
    total = 0.0
    for table in params.values():
        row_key, value_key, key = jax.random.split(key, 3)
        ids = jax.random.randint(row_key, (n,), 0, len(table), jnp.int32)
        total += (table[ids] * jax.random.normal(value_key, (n, *table.shape[1:]), table.dtype)).sum()
    return total


def run(tx, steps, n):
    tx = as_step(tx)
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}

    def step(carry, key):
        _, *carry = tx.step(lambda params, key, n: looked_up(params, key, n), *carry, key, n)
        return tuple(carry), None

    with jax.numpy_dtype_promotion("standard"):  # optax raises an int32 count to a float power
        carry, _ = jax.jit(lambda c: jax.lax.scan(step, c, jax.random.split(jax.random.key(3), steps)))(
            (params, tx.init(params))
        )
    return carry


@pytest.mark.parametrize("n", [1, pytest.param(5, marks=pytest.mark.deep), 40])
def test_adam_equals_the_adam_of_optax(n):
    """Few rows are looked up, so that moments decay for many steps; or there are more ids than rows."""
    options = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}
    expected, _ = run(optax.adam(0.05, **options), 150, n)
    found, state = run(rowwise.adam(0.05, **options), 150, n)
    for name in SHAPES:
        assert np.abs(expected[name] - 1).max() > 0.1
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-4, atol=2e-5)
    assert int(state.count) == 150


@pytest.mark.deep
def test_moments_of_rows_that_are_never_looked_up_are_never_written():
    params, tx = {"item": jnp.ones((4, 2))}, rowwise.adam(0.1)
    value = lambda params, key, ids: params["item"][ids].sum()  # noqa: E731
    _, _, state = tx.step(value, params, tx.init(params), None, jnp.array([0, 1, 1]))
    assert state.last["item"].tolist() == [1, 1, 0, 0]
    assert (np.asarray(state.mu["item"]) > 0).tolist() == [[True, True]] * 2 + [[False, False]] * 2


@pytest.mark.deep
def test_training_equals_training_with_optax():
    train, _ = synthetic.checkerboard(30)
    model = jr.models.MF(30, 30, dim=4, score=jr.models.cosine, scale=0.1)
    sample = partial(jr.sampling.uniform, n_items=30, n=2)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    trained = []
    for tx in (optax.adam(0.01), rowwise.adam(0.01)):
        with jax.numpy_dtype_promotion("standard"):
            state = jr.train.init(jax.random.key(0), model, tx)
            state, _ = jr.train.fit(state, objective, tx, train, epochs=2, batch_size=8, progress=False)
        trained.append(state.variables["params"])
    for name in ("user", "item"):
        np.testing.assert_allclose(trained[1][name], trained[0][name], rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------- which rows are found


class Embedded(nn.Module):
    """A user table by `nn.Embed`."""

    @nn.compact
    def __call__(self, users, items):
        item = self.param("item", nn.initializers.normal(), (40, 4))
        return (nn.Embed(30, 4, name="user")(users) * item[items]).sum(-1)


def nnx_towers(rngs):
    class Towers(nnx.Module):
        def __init__(self, rngs):
            self.user, self.item = nnx.Embed(30, 4, rngs=rngs), nnx.Embed(40, 4, rngs=rngs)

        def __call__(self, users, items):
            return (self.user(users) * self.item(items)).sum(-1)

    return Towers(rngs)


FUNCTIONS = jr.models.from_functions(
    lambda key: {"user": jax.random.normal(key, (30, 4)), "item": jnp.ones((40, 4))},
    vectors=lambda params: (params["user"], params["item"]),
)
MODELS = {
    "MF": jr.models.MF(30, 40, dim=4),
    "take": jr.models.from_functions(
        lambda key: {"user": jax.random.normal(key, (30, 4)), "item": jnp.ones((40, 4))},
        score=lambda params, users, items: (
            jnp.take(params["user"], users, axis=0) * jnp.take(params["item"], items, axis=0, mode="clip")
        ).sum(-1),
        n_items=40,
    ),
    "nested jit": jr.models.from_functions(
        lambda key: {"user": jax.random.normal(key, (30, 4)), "item": jnp.ones((40, 4))},
        score=jax.jit(lambda params, users, items: (params["user"][users] * params["item"][items]).sum(-1)),
        n_items=40,
    ),
    "functions": FUNCTIONS,
    "nn.Embed": Embedded(),
    "NNX": jr.models.from_nnx(nnx_towers),
}


@pytest.mark.deep
@pytest.mark.parametrize("name", MODELS)
def test_rows_of_every_kind_of_model_are_found(name):
    """Their gradient is that of `jax.grad`."""
    model, ids = MODELS[name], jnp.array([[1], [2], [1]])
    variables = model.init(jax.random.key(0), ids[:1], ids[:1])
    sample = partial(jr.sampling.uniform, n_items=40, n=3)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)

    def value(params, key, batch):
        return objective({**variables, "params": params}, key, batch)

    drawn = jax.random.key(7), jr.train.Batch.of(jnp.array([1, 2, 1]), jnp.array([3, 4, 5]))
    assert sorted(rowwise.found(value, variables["params"], *drawn).values()) == [3, 12]
    tx = rowwise.lazy_sgd(0.5)
    _, moved, _ = jax.jit(lambda p: tx.step(value, p, tx.init(p), *drawn))(variables["params"])
    gradient = jax.grad(value)(variables["params"], *drawn)
    jax.tree.map(
        lambda new, old, slope: np.testing.assert_allclose(new, old - 0.5 * slope, rtol=1e-5, atol=1e-7),
        moved,
        variables["params"],
        gradient,
    )


def test_found_reports_tables_that_are_treated_whole():
    def value(params, key, ids):
        several = jax.lax.map(lambda i: params["looped"][i].sum(), ids)
        return params["item"][ids].sum() + (params["whole"] ** 2).sum() + several.sum()

    params = {name: jnp.ones((9, 2)) for name in ("item", "whole", "looped")}
    assert rowwise.found(value, params, None, jnp.array([1, 3, 1])) == {"item": 3, "looped": None, "whole": None}


@pytest.mark.deep
@pytest.mark.parametrize("mode", ["fill", "clip", "drop", "promise_in_bounds"])
def test_ids_outside_a_table_are_treated_as_the_look_up_treats_them(mode):
    params, tx = {"item": jnp.arange(12.0).reshape(6, 2)}, rowwise.lazy_sgd(0.1)
    ids = jnp.array([4, 1, 4] if mode == "promise_in_bounds" else [4, -2, 9])
    factors = jnp.array([[1.0], [2.0], [5.0]])
    value = lambda p, key, ids: (p["item"].at[ids].get(mode=mode, fill_value=0) * factors).sum()  # noqa: E731
    _, moved, _ = tx.step(value, params, tx.init(params), None, ids)
    expected = params["item"] - 0.1 * jax.grad(value)(params, None, ids)["item"]
    np.testing.assert_allclose(moved["item"], expected, rtol=1e-6)


# ---------------------------------------------------------------------- lazy optimisers


def _reference_adam(tables, steps, rate, b1, b2, eps):
    """Row-wise Adam in NumPy and float64. `steps` has {name: {id: summed gradient}} for each step."""
    tables = {name: np.array(table, np.float64) for name, table in tables.items()}
    mu, nu = ({name: np.zeros_like(table) for name, table in tables.items()} for _ in range(2))
    for t, gradients in enumerate(steps, 1):
        for name, rows in gradients.items():
            for i, g in rows.items():
                mu[name][i] = b1 * mu[name][i] + (1 - b1) * g
                nu[name][i] = b2 * nu[name][i] + (1 - b2) * g**2
                m, v = mu[name][i] / (1 - b1**t), nu[name][i] / (1 - b2**t)
                tables[name][i] -= rate * m / (np.sqrt(v) + eps)
    return tables


@pytest.mark.parametrize("n_ids", [3, 7, 30])
def test_lazy_adam_equals_a_loop_over_rows(n_ids):
    """Ids repeat, so that gradients add up. 30 ids are more than there are rows, so that the whole table is updated."""
    rng = np.random.default_rng(0)
    params = {"user": rng.normal(size=(20, 3)).astype(np.float32), "item": rng.normal(size=(12, 3)).astype(np.float32)}
    draws = [{n: rng.integers(0, len(params[n]), n_ids).astype(np.int32) for n in params} for _ in range(25)]
    slopes = [{n: rng.normal(size=(n_ids, 3)).astype(np.float32) for n in params} for _ in range(25)]
    options = {"b1": 0.8, "b2": 0.95, "eps": 1e-3}
    tx = rowwise.lazy_adam(0.05, **options)
    found, state, expected = params, tx.init(params), []

    @jax.jit
    def step(found, state, ids, slope):
        def value(p, key, batch):
            return sum((p[name][ids[name]] * slope[name]).sum() for name in p)

        return tx.step(value, found, state, None, None)[1:]

    with jax.numpy_dtype_promotion("standard"):
        for ids, slope in zip(draws, slopes):
            found, state = step(found, state, ids, slope)
            summed = {name: {} for name in ids}
            for name in ids:
                rows = range(len(params[name])) if n_ids >= len(params[name]) else set(ids[name].tolist())
                for i in rows:
                    summed[name][i] = slope[name][ids[name] == i].sum(0, dtype=np.float64)
            expected.append(summed)
    reference = _reference_adam(params, expected, 0.05, **options)
    for name in params:
        np.testing.assert_allclose(found[name], reference[name], rtol=2e-5, atol=2e-6)


@pytest.mark.deep
def test_rows_that_no_step_looks_up_keep_value_and_moments_bit_for_bit():
    tx = rowwise.lazy_adam(0.1)
    params = {"item": jnp.arange(12.0).reshape(6, 2)}
    ids = jnp.array([4, 1, 4])
    with jax.numpy_dtype_promotion("standard"):
        _, moved, state = tx.step(lambda p, *_: (p["item"][ids] ** 2).sum(), params, tx.init(params), None, None)
    changed = (np.asarray(moved["item"]) != np.asarray(params["item"])).any(1)
    assert changed.tolist() == [False, True, False, False, True, False]
    assert (np.asarray(state[0].moments["item"]) != 0).any((1, 2)).tolist() == changed.tolist()


@pytest.mark.deep
def test_moments_in_one_table_equal_those_of_optax():
    """Parameters have rank 0, 1 and 2, and some are treated whole."""
    params = {"item": jnp.arange(12.0).reshape(6, 2), "bias": jnp.arange(6.0), "shift": jnp.float32(0.5)}

    def value(p, key, ids):
        return ((p["item"][ids].sum(-1) + p["bias"][ids] - p["shift"]) ** 2).sum()

    found = []
    for tx in (rowwise.lazy_adam(0.1), rowwise.lazy(optax.adam(0.1))):
        moved, state = params, tx.init(params)
        for step in range(3):
            with jax.numpy_dtype_promotion("standard"):
                _, moved, state = tx.step(value, moved, state, None, jnp.array([step, 4]))
        found.append(moved)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), *found)


@pytest.mark.deep
def test_lazy_sgd_equals_sgd():
    train, _ = synthetic.checkerboard(30)
    model = jr.models.MF(30, 30, dim=4, score=jr.models.cosine, scale=0.1)
    sample = partial(jr.sampling.uniform, n_items=30, n=1)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    options = {"epochs": 2, "batch_size": 8, "progress": False}
    trained = []
    for tx in (optax.sgd(0.5), rowwise.lazy_sgd(0.5)):
        state = jr.train.init(jax.random.key(0), model, tx)
        state, log = jr.train.fit(state, objective, tx, train, **options)
        trained.append(state.variables["params"])
    for name in ("user", "item"):
        np.testing.assert_allclose(trained[1][name], trained[0][name], rtol=1e-4, atol=1e-6)
    assert log.records[1]["loss"] < log.records[0]["loss"]


@pytest.mark.deep
@pytest.mark.parametrize(
    "use",
    [
        lambda table, ids: (table[ids] ** 2).sum() + (table**2).sum(),
        lambda table, ids: (table[ids] @ table.T).sum(),
        lambda table, ids: jnp.einsum("bd,nd->bn", table[ids], table).sum(),
        lambda table, ids: table[:, 0].sum() + table[ids].sum(),
        lambda table, ids: (2 * table).sum() + jnp.tanh(table).sum(),
        lambda table, ids: table[jnp.tile(ids, 5)].sum(),  # as many ids as rows
    ],
)
def test_a_table_used_otherwise_than_by_ids_is_treated_whole(use):
    params = {"item": jnp.arange(24.0).reshape(12, 2) / 24, "bias": jnp.ones(3)}
    ids = jnp.array([4, 1, 4])

    def value(p, key=None, batch=None):
        return use(p["item"], ids) + (p["bias"] ** 2).sum()

    tx = rowwise.lazy_sgd(0.1)
    loss, moved, _ = jax.jit(lambda p: tx.step(value, p, tx.init(p), None, None))(params)
    expected_loss, gradient = jax.value_and_grad(value)(params)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for name in params:
        np.testing.assert_allclose(moved[name], params[name] - 0.1 * gradient[name], rtol=1e-5)


@pytest.mark.deep
def test_ids_of_several_shapes_add_up():
    params = {"item": jnp.arange(100.0).reshape(50, 2)}
    ids = jnp.array([4, 1, 4]), jnp.array([[1, 7], [9, 1]])

    def value(p, key=None, batch=None):
        return (p["item"][ids[0]] ** 2).sum() + p["item"][ids[1]].sum() * 3

    tx = rowwise.lazy_sgd(0.1)
    _, moved, _ = tx.step(value, params, tx.init(params), None, None)
    np.testing.assert_allclose(moved["item"], params["item"] - 0.1 * jax.grad(value)(params)["item"], rtol=1e-6)


@pytest.mark.deep
@pytest.mark.parametrize(
    "score",
    [jr.models.dot, jr.models.cosine, pytest.param(jr.models.negative_squared_distance, marks=pytest.mark.deep)],
)
def test_lazy_adam_trains(score):
    train, test = synthetic.checkerboard(30)
    model = jr.models.MF(30, 30, dim=8, score=score, scale=0.1)
    sample = partial(jr.sampling.uniform, n_items=30, n=2)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    tx = rowwise.lazy_adam(0.1)
    state = jr.train.init(jax.random.key(0), model, tx)
    with jax.numpy_dtype_promotion("standard"):
        options = {"epochs": 60, "batch_size": 8, "progress": False}
        state, _ = jr.train.fit(state, objective, tx, train, **options)
    assert jr.evaluate.full_ranking(model, state.variables, train, test, ks=(1,)).means["hit_rate@1"] > 0.9


@pytest.mark.deep
@pytest.mark.parametrize("pool", [jr.models.MeanPool(), jr.models.UserAttention()])
def test_lazy_sgd_equals_sgd_for_simplex_too(pool):
    """Its histories look up the item table, too. Matrices are treated whole."""
    train, _ = synthetic.checkerboard(30)
    model = jr.models.SimpleX(30, 30, dim=4, scale=0.5, pool=pool)
    sample = partial(jr.sampling.uniform, n_items=30, n=1)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    trained = []
    for tx in (optax.sgd(0.5), rowwise.lazy_sgd(0.5)):
        state = jr.train.init(jax.random.key(0), model, tx)
        options = {"epochs": 1, "batch_size": 2, "examples": partial(jr.train.singles, histories=train)}
        state, _ = jr.train.fit(state, objective, tx, train, progress=False, **options)
        trained.append(state.variables["params"])
    assert len(trained[0]) > 2
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), trained[1], trained[0])


def test_a_lazy_step_makes_no_array_of_the_size_of_a_table():
    """It makes neither the gradient nor the update of a whole table, only the new table and its moments."""
    tx, ids = rowwise.lazy_adam(0.1), jnp.array([4, 1, 4])
    params = {"item": jnp.ones((50, 2))}

    def step(params, state):
        return tx.step(lambda p, *_: (p["item"][ids] ** 2).sum(), params, state, None, None)[1:]

    with jax.numpy_dtype_promotion("standard"):
        jaxpr = jax.make_jaxpr(step)(params, tx.init(params))
    shapes = [(e.primitive.name, getattr(v.aval, "shape", ())) for e in jaxpr.eqns for v in e.outvars]
    whole = [name for name, shape in shapes if shape in ((50, 2), (50, 2, 2))]  # a table, and its moments
    assert len(whole) == 2 and set(whole) <= {"scatter", "scatter-add", "pjit", "jit"}


@pytest.mark.deep
@pytest.mark.parametrize("tx", [rowwise.lazy_adam(0.1), rowwise.lazy_sgd(0.1)], ids=["adam", "sgd"])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
def test_ids_and_tables_of_any_type(tx, dtype):
    """Tables of float32 keep their dtype with x64 on, and give the same results."""
    table, ids = np.linspace(-1, 1, 12, dtype=np.float32).reshape(6, 2), np.array([5, 0, 5])
    ends = {}
    for x64 in (False, True):
        with jax.enable_x64(x64):
            value = lambda params, key, ids: (params["item"][ids] ** 2).sum()  # noqa: E731
            params = {"item": jnp.asarray(table)}
            state = tx.init(params)
            for _ in range(2):
                _, params, state = tx.step(value, params, state, None, jnp.asarray(ids.astype(dtype)))
            ends[x64] = params["item"]
            assert params["item"].dtype == np.float32
    np.testing.assert_allclose(ends[True], ends[False], atol=1e-6)
    assert (np.asarray(ends[False]) != table).any(1).tolist() == [True, *[False] * 4, True]


@pytest.mark.deep
def test_adam_keeps_the_type_of_tables_and_checks_its_numbers():
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            params = {"item": jnp.linspace(-1, 1, 12, dtype=dtype).reshape(6, 2)}
            ends = []
            value = lambda params, *_: (params["item"] ** 3).sum() / 3  # noqa: E731
            for tx in map(as_step, (rowwise.adam(0.1), optax.adam(0.1))):
                end, state = params, tx.init(params)
                for _ in range(3):
                    with jax.numpy_dtype_promotion("standard"):  # optax raises an int32 count to a float power
                        _, end, state = tx.step(value, end, state, None, None)
                ends.append(end["item"])
            assert ends[0].dtype == dtype
            np.testing.assert_allclose(*ends, atol=1e-5 if dtype == np.float32 else 1e-12)
    for make in (rowwise.adam, rowwise.lazy_adam, rowwise.lazy_sgd):
        with pytest.raises(ValueError, match=r"^learning_rate=nan"):
            make(float("nan"))


@pytest.mark.deep
@pytest.mark.parametrize("rates", [{"b1": 0.0}, {"b2": 0.0}])
def test_adam_takes_decays_of_zero(rates):
    tx, params = rowwise.adam(0.1, **rates), {"item": jnp.ones((6, 2))}
    expected, plain = params, adam_of_optax(0.1, **rates)
    state, other = tx.init(params), plain.init(params)
    for ids in (jnp.array([1, 3]), jnp.array([3, 4])):
        value = lambda params, key, ids: (params["item"][ids] ** 2).sum()  # noqa: E731
        _, params, state = tx.step(value, params, state, None, ids)
        updates, other = plain.update(jax.grad(value)(expected, None, ids), other, expected)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(params["item"], expected["item"], rtol=1e-5)


@pytest.mark.deep
@pytest.mark.parametrize("adam", [rowwise.adam, rowwise.lazy_adam])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_tables_of_half_precision_have_moments_of_single_precision(adam, dtype):
    """In bfloat16, b2 = .999 rounds to 1. The second moment would stay 0, and steps would be 0 / 0."""
    exact, rounded = ({"item": jnp.ones((9, 4), kind)} for kind in (jnp.float32, dtype))
    states = [adam(0.1).init(params) for params in (exact, rounded)]
    value = lambda params, key, ids: (params["item"][ids].astype(jnp.float32) ** 2).sum()  # noqa: E731
    for ids in ([0, 3, 3], [1, 3, 0], [3, 3, 8]):
        (_, exact, states[0]), (_, rounded, states[1]) = (
            adam(0.1).step(value, params, state, None, jnp.array(ids))
            for params, state in zip((exact, rounded), states)
        )
    assert rounded["item"].dtype == dtype
    assert [x.dtype for x in jax.tree.leaves(states[1])] == [x.dtype for x in jax.tree.leaves(states[0])]
    np.testing.assert_allclose(rounded["item"].astype(np.float32), exact["item"], rtol=0.02)
