"""UltraGCN: its weights by dense NumPy, its objective by loops, and training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TX

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.interactions import Interactions
from jaxrec.models import MF
from jaxrec.train import ultragcn

N_USERS, N_ITEMS = 6, 5  # user 3 and item 4 have no interactions
PAIRS = np.array([0, 0, 0, 1, 2, 2, 4, 5, 5]), np.array([0, 1, 3, 1, 2, 3, 0, 1, 2])
TRAIN = Interactions.from_pairs(*PAIRS, weights=np.arange(1, 10), n_users=N_USERS, n_items=N_ITEMS)
GRAPH = ultragcn.constraints(TRAIN, n=3)
MODEL = MF(N_USERS, N_ITEMS, dim=3, scale=1.0)
SAMPLE = partial(jr.sampling.uniform, n_items=N_ITEMS, n=4)
KEY = jax.random.key(2)
BATCH = jr.train.Batch.of(
    jnp.array([0, 5, 2]),
    jnp.array([[1, 3], [2, 1], [3, 0]]),
    where=jnp.array([[True, True], [True, True], [True, False]]),
)
SETTING = {"positive": (0.1, 2.0), "negative": (0.3, 0.5), "negative_weight": 7.0, "item_weight": 0.6}


def drawn():
    rng = np.random.default_rng(0)
    tables = {"user": rng.normal(size=(N_USERS, 3)), "item": rng.normal(size=(N_ITEMS, 3))}
    return {"params": jax.tree.map(lambda x: jnp.asarray(x, float), tables)}


def dense(pairs, n_users, n_items, n):
    """β [M, N], and for each item the n items with the largest ω, with their ω."""
    met = np.zeros((n_users, n_items))
    met[pairs] = 1
    of_users, of_items = met.sum(1), met.sum(0)
    first = np.where(of_users > 0, np.sqrt(of_users + 1) / np.maximum(of_users, 1), 0)
    beta = first[:, None] / np.sqrt(of_items + 1)
    shared = met.T @ met
    total = shared.sum(1)
    left = np.where(total > 0, np.sqrt(total + 1) / np.maximum(total, 1), 0)
    omega = left[:, None] * shared / np.sqrt(total + 1)
    near = [sorted(np.flatnonzero(shared[i]), key=lambda j: (-omega[i, j], j))[:n] for i in range(n_items)]
    return beta, omega, near


@pytest.mark.parametrize("rows", [2, 256])
def test_constraints_are_the_formula_in_blocks_of_any_size(rows, monkeypatch):
    monkeypatch.setattr(ultragcn, "_ROWS", rows)
    rng = np.random.default_rng(0)
    large = np.unique(rng.integers(0, [12, 9], (40, 2)), axis=0).T
    for pairs, m, n in ((PAIRS, N_USERS, N_ITEMS), (tuple(large), 12, 9)):
        found = ultragcn.constraints(Interactions.from_pairs(*pairs, n_users=m, n_items=n), n=4)
        beta, omega, near = dense(pairs, m, n, 4)
        np.testing.assert_allclose(found.user[:, None] * found.item, beta, rtol=1e-6)
        for i, known in enumerate(near):
            assert found.neighbours[i, : len(known)].tolist() == known
            np.testing.assert_allclose(found.omega[i, : len(known)], omega[i, known], rtol=1e-6)
            assert (found.neighbours[i, len(known) :] == i).all() and (found.omega[i, len(known) :] == 0).all()
        assert [x.dtype for x in found] == [np.float32, np.float32, np.int32, np.float32]


def test_weights_of_interactions_do_not_enter_the_constraints():
    bare = Interactions.from_pairs(*PAIRS, n_users=N_USERS, n_items=N_ITEMS)
    for one, other in zip(GRAPH, ultragcn.constraints(bare, n=3)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.every_case
@pytest.mark.parametrize("weighted", [False, True])
def test_the_objective_is_the_formula(weighted, float64):
    variables = drawn()
    scores = np.asarray(MODEL.apply(variables, np.arange(N_USERS), method="rows"))
    beta, omega, near = dense(PAIRS, N_USERS, N_ITEMS, 3)
    negatives = np.asarray(SAMPLE(jax.random.split(KEY)[0], BATCH.users[:, 0]))
    weights = jnp.array([[1.0, 2.0], [0.5, 1.0], [3.0, 9.0]]) if weighted else None
    softplus, expected = lambda x: np.log1p(np.exp(x)), 0.0
    for row, (u, places) in enumerate(zip(np.asarray(BATCH.users[:, 0]), np.asarray(BATCH.where))):
        against = np.mean([(0.3 + 0.5 * beta[u, j]) * softplus(scores[u, j]) for j in negatives[row]])
        for place in np.flatnonzero(places):
            i = int(BATCH.items[row, place])
            value = (0.1 + 2.0 * beta[u, i]) * softplus(-scores[u, i]) + 7.0 * against
            value += 0.6 * sum(omega[i, k] * softplus(-scores[u, k]) for k in near[i])
            expected += value * (float(weights[row, place]) if weighted else 1)
    objective = jax.jit(partial(ultragcn.objective, model=MODEL, graph=GRAPH, sample=SAMPLE, **SETTING))
    np.testing.assert_allclose(objective(variables, KEY, BATCH._replace(weights=weights)), expected, rtol=1e-6)


@pytest.mark.deep
def test_one_key_gives_one_result_and_gradients_are_finite():
    variables = drawn()
    objective = jax.jit(jax.value_and_grad(partial(ultragcn.objective, model=MODEL, graph=GRAPH, sample=SAMPLE)))
    keys = jax.random.split(KEY, 3)
    values = [float(objective(variables, key, BATCH)[0]) for key in (keys[0], *keys)]
    assert values[0] == values[1] and len(set(values)) == 3
    large = {"params": jax.tree.map(lambda x: 1e3 * x, variables["params"])}
    value, gradient = objective(large, KEY, BATCH)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    none = BATCH._replace(where=jnp.zeros((3, 2), bool))
    value, gradient = objective(variables, KEY, none)
    assert value == 0 and not any(leaf.any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.deep
def test_shared_negatives_count_for_all_users():
    variables = drawn()
    objective = partial(ultragcn.objective, variables, KEY, BATCH, model=MODEL, graph=GRAPH)
    row = np.array([[4, 1]], np.int32)
    one, each = (objective(sample=lambda key, users, n=n: jnp.asarray(np.tile(row, (n, 1)))) for n in (1, 3))
    np.testing.assert_allclose(one, each, rtol=1e-6)


@pytest.mark.deep
def test_wrong_values_are_named():
    variables = drawn()
    objective = partial(ultragcn.objective, variables, KEY, BATCH, model=MODEL, graph=GRAPH, sample=SAMPLE)
    for setting, name in (
        ({"positive": (1.0, -1.0)}, "positive=-1.0"),
        ({"negative": (float("nan"), 1.0)}, "negative=nan"),
        ({"negative_weight": -2.0}, "negative_weight=-2.0"),
        ({"item_weight": float("inf")}, "item_weight=inf"),
    ):
        with pytest.raises(ValueError, match=f"^{name}; give a finite number of 0 or more"):
            objective(**setting)
    with pytest.raises(ValueError, match=r"^n=0; give an integer of 1 or more"):
        ultragcn.constraints(TRAIN, n=0)
    other = ultragcn.constraints(TRAIN.transpose())
    with pytest.raises(ValueError, match="graph is for n_users=5, but the model has 6; call constraints"):
        objective(graph=other)


BOARD, DIAGONAL = synthetic.checkerboard(30)


@pytest.mark.deep
def test_recovers_the_diagonal_withheld_from_the_checkerboard_and_sweeps():
    model, sample = MF(30, 30, dim=8, scale=0.1), partial(jr.sampling.uniform, n_items=30, n=8)
    graph = ultragcn.constraints(BOARD)
    bound = {"model": model, "graph": graph, "sample": sample, "negative_weight": 2.0}
    state = jr.train.init(jax.random.key(0), model, TX)
    objective = partial(ultragcn.objective, **bound)
    state, log = jr.train.fit(state, objective, TX, BOARD, epochs=15, batch_size=128, progress=False)
    report = jr.evaluate.full_ranking(model, state.variables, BOARD, DIAGONAL, ks=(1,))
    assert report.means["hit_rate@1"] == 1
    assert log.records[-1]["loss"] < log.records[0]["loss"]

    def setup(item_weight, base):
        weights = {"item_weight": item_weight, "positive": (base, 1.0)}
        return model, partial(ultragcn.objective, **bound, **weights), TX

    settings = {"item_weight": [0.0, 1.0], "base": [0.0, 0.1]}
    keys = jax.random.split(jax.random.key(0), 2)
    found = jr.train.sweep(keys, setup, BOARD, settings=settings, epochs=2, batch_size=128, width=2, progress=False)
    losses = [tuple(run.log.column("loss")[1]) for run in found.runs]
    assert len(set(losses)) == 4 and np.isfinite(losses).all()


@pytest.mark.deep
def test_the_penalty_of_rows_takes_the_sum():
    """`penalised_rows` weights rows as the objective does, here as a sum, not a mean."""
    objective = partial(ultragcn.objective, model=MODEL, graph=GRAPH, sample=SAMPLE)
    rows = jr.train.lambda_opt.penalised_rows(KEY, BATCH, objective=objective)
    np.testing.assert_allclose(rows["user"][1], [2, 2, 1])
