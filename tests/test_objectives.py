"""Objectives: what they compare, and that every loss trains every model that scores pairs."""

import operator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import TX

import jaxrec as jr
from jaxrec.data import synthetic

TRAIN, TEST = synthetic.checkerboard(30)
WHERE = jnp.ones(3, bool)
BATCH = jr.train.Batch.of(jnp.array([0, 4, 2]), jnp.array([2, 6, 4]), where=WHERE)
GROUPS = jr.train.Batch.of(
    jnp.array([0, 4]), jnp.array([[2, 4, 0], [6, 8, 10]]), where=jnp.array([[True, True, False], [True, True, True]])
)
KEY = jax.random.key(1)
L = jr.losses


def model_of(score=jr.models.dot, **extra):
    return jr.models.MF(30, 30, dim=8, score=score, scale=0.5, **extra)


def drawn(n=4, shared=False):
    sample = partial(jr.sampling.uniform, n_items=30, n=n)
    return partial(jr.sampling.shared, sample=sample) if shared else sample


def start(model):
    return jr.train.init(jax.random.key(0), model, optax.sgd(0.1)).variables


@pytest.fixture(scope="module")
def scored():
    """A model, its variables, and all its scores."""
    model = model_of(jr.models.cosine)
    variables = start(model)
    return model, variables, np.asarray(model.apply(variables, np.arange(30), method="rows"))


@pytest.mark.parametrize("shared", [False, True])
def test_pairwise_objective_compares_each_positive_with_its_negatives(scored, shared):
    model, variables, scores = scored
    sample = drawn(shared=shared)
    value = jr.train.pairwise_objective(variables, KEY, BATCH, model=model, loss=jr.losses.softmax, sample=sample)
    negatives = np.asarray(sample(jax.random.split(KEY)[0], BATCH.users[:, 0]))
    assert negatives.shape == ((1, 4) if shared else (3, 4))
    users = np.asarray(BATCH.users)
    expected = jr.losses.softmax(scores[users, BATCH.items][:, 0], scores[users, negatives]).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_a_sampler_of_more_items_than_the_model_has_is_refused_in_your_own_loops(scored, shared):
    """A lambda hides its sampler from `fit`, and your own loops call no `fit`."""
    model, variables, _ = scored
    sample = partial(jr.sampling.uniform, n_items=31, n=2)
    sample = partial(jr.sampling.shared, sample=sample) if shared else sample
    hidden = lambda v, key, batch: jr.train.pairwise_objective(  # noqa: E731
        v, key, batch, model=model, loss=jr.losses.bpr, sample=sample
    )
    message = "n_items of uniform is for n_items=31, but the model has 30; create it for the items of the model"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(hidden, variables, KEY, BATCH)
    state = jr.train.init(KEY, model, TX)
    with pytest.raises(ValueError, match=message):
        jr.train.fit(state, hidden, TX, TRAIN, epochs=1, progress=False)


@pytest.mark.parametrize("n", [29, 31])
def test_a_table_of_probabilities_of_other_items_is_refused(n):
    table, model = jnp.zeros(n), model_of()
    state, loss = jr.train.init(KEY, model, TX), jr.losses.sampled_softmax
    arguments = partial(jr.train.log_q, table=table)
    pairwise = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=drawn(), arguments=arguments)
    in_batch = partial(jr.train.in_batch_objective, model=model, loss=loss, log_q=table)
    for objective, name in ((pairwise, "table of log_q"), (in_batch, "log_q of in_batch_objective")):
        with pytest.raises(ValueError, match=f"{name} is for n_items={n}, but train has 30; create it"):
            jr.train.fit(state, objective, TX, TRAIN, epochs=1, progress=False)


@pytest.mark.parametrize("batch", [BATCH, GROUPS], ids=["single", "groups"])
def test_a_graph_is_propagated_once_for_positives_and_negatives(batch):
    calls = []

    class Counted:
        def apply(self, variables, users, items):
            calls.append(items.shape)
            return users.astype(jnp.float32) + items.astype(jnp.float32)

    jr.train.pairwise_objective({}, KEY, batch, model=Counted(), loss=jr.losses.bpr, sample=drawn())
    assert calls == [(3, 1 + 4) if batch is BATCH else (2, 3 + 4)]


@pytest.mark.deep
@pytest.mark.parametrize("loss", [jr.losses.bpr, jr.losses.softmax, partial(jr.losses.ccl, margin=0.1, weight=2.0)])
@pytest.mark.parametrize("shared", [False, True])
def test_a_group_is_its_positives_one_by_one_with_the_negatives_of_the_user(scored, loss, shared):
    model, variables, scores = scored
    sample = drawn(shared=shared)
    value = jr.train.pairwise_objective(variables, KEY, GROUPS, model=model, loss=loss, sample=sample)
    negatives = np.broadcast_to(sample(jax.random.split(KEY)[0], GROUPS.users[:, 0]), (2, 4))
    pairs = [(b, p) for b in range(2) for p in range(3) if GROUPS.where[b, p]]
    single = [
        loss(scores[GROUPS.users[b, 0], GROUPS.items[b, p]], scores[GROUPS.users[b, 0], negatives[b]]) for b, p in pairs
    ]
    assert len(single) == 5
    np.testing.assert_allclose(value, np.mean(single), rtol=1e-5)


@pytest.mark.parametrize("batch", [BATCH, GROUPS], ids=["single", "groups"])
def test_log_q_reaches_the_loss_for_positives_and_negatives(scored, batch):
    model, variables, scores = scored
    table = jnp.log(jnp.arange(1, 31) / 465)
    value = jr.train.pairwise_objective(
        variables,
        KEY,
        batch,
        model=model,
        loss=jr.losses.sampled_softmax,
        sample=drawn(),
        arguments=partial(jr.train.log_q, table=table),
    )
    negatives = np.asarray(drawn()(jax.random.split(KEY)[0], batch.users[:, 0]))
    corrected = scores - np.asarray(table)
    values = []
    for b, user in enumerate(np.asarray(batch.users)[:, 0]):
        for item, real in zip(batch.items[b], batch.where[b]):
            pos, neg = corrected[user, item], corrected[user, negatives[b]]
            values += [np.log(np.exp(pos) + np.exp(neg).sum()) - pos] * int(real)
    np.testing.assert_allclose(value, np.mean(values), rtol=1e-5)


@pytest.mark.deep
@pytest.mark.parametrize("shared", [pytest.param(False, marks=pytest.mark.deep), True])
def test_hardest_keeps_the_best_of_the_pool_and_only_these_get_gradients(scored, shared):
    model, variables, scores = scored
    objective = partial(
        jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=drawn(6, shared), hardest=2
    )
    value, gradient = jax.value_and_grad(objective)(variables, KEY, BATCH)
    users = np.asarray(BATCH.users)
    negatives = np.broadcast_to(drawn(6, shared)(jax.random.split(KEY)[0], BATCH.users[:, 0]), (3, 6))
    pool = scores[users, negatives]
    kept = np.argsort(-pool, axis=1)[:, :2]
    expected = jr.losses.bpr(scores[users, BATCH.items][:, 0], np.take_along_axis(pool, kept, 1)).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    moved = np.flatnonzero(np.abs(gradient["params"]["item"]).sum(1))
    assert set(moved) == set(np.asarray(BATCH.items).ravel().tolist()) | set(
        np.take_along_axis(negatives, kept, 1).ravel()
    )


@pytest.mark.deep
def test_ccl_of_the_hardest_is_ccl_of_the_pool_while_no_other_passes_the_margin(scored):
    model, variables, _ = scored
    pool = partial(jr.losses.ccl, margin=0.6, weight=3.0)
    few = partial(jr.losses.ccl, margin=0.6, weight=3.0 / 20, negatives="sum")
    common = {"model": model, "sample": drawn(20)}
    expected = jax.value_and_grad(partial(jr.train.pairwise_objective, loss=pool, **common))(variables, KEY, BATCH)
    found = jax.value_and_grad(partial(jr.train.pairwise_objective, loss=few, hardest=8, **common))(
        variables, KEY, BATCH
    )
    assert float(expected[0]) > 0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.deep
def test_in_batch_compares_with_the_other_items_but_not_with_those_the_user_has(scored):
    model, variables, scores = scored
    batch = jr.train.Batch.of(
        jnp.array([0, 5, 2, 0]), jnp.array([2, 7, 2, 4]), where=jnp.array([True, True, True, False])
    )
    table = jnp.log(jnp.arange(1, 31) / 465)
    for seen in (None, TRAIN):
        value = jr.train.in_batch_objective(
            variables, KEY, batch, model=model, loss=jr.losses.sampled_softmax, seen=seen, log_q=table
        )
        owned, values = TRAIN.to_scipy().toarray() > 0, []
        users, items = np.asarray(batch.users[:3, 0]), np.asarray(batch.items[:3, 0])
        for user, item in zip(users, items):
            row = scores[user] - np.asarray(table)
            others = [j for j in items if j != item and not (seen is not None and owned[user, j])]
            values.append(np.log(np.exp(row[item]) + np.exp(row[others]).sum()) - row[item] if others else 0)
        assert np.count_nonzero(values) > 0
        np.testing.assert_allclose(value, np.mean(values), rtol=1e-5)


@pytest.mark.deep
def test_the_softmax_counts_pairs_not_users(scored):
    """A user with two positives counts twice. `multinomial` of rows is the mean over users instead."""
    model, variables, scores = scored
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    batch = GROUPS._replace(where=jnp.array([[True, True, False], [True, False, False]]))
    softmax = partial(jr.losses.mine, negatives="sum")
    value = jr.train.rows_objective(variables, KEY, batch, model=model, loss=softmax)
    np.testing.assert_allclose(value, -(log_p[0, 2] + log_p[0, 4] + log_p[4, 6]) / 3, rtol=1e-5)
    targets = jnp.zeros((2, 30)).at[jnp.array([0, 0, 1]), jnp.array([2, 4, 6])].set(1)
    by_users = jr.losses.mean(jr.losses.multinomial(scores[np.array([0, 4])], targets / targets.sum(1, keepdims=True)))
    np.testing.assert_allclose(by_users, -((log_p[0, 2] + log_p[0, 4]) / 2 + log_p[4, 6]) / 2, rtol=1e-5)
    assert abs(float(value - by_users)) > 1e-3


@pytest.mark.deep
@pytest.mark.parametrize("loss", [jr.losses.bpr, jr.losses.bce, partial(jr.losses.bsl, temperature=0.5, exponent=1.0)])
@pytest.mark.parametrize("batch", [BATCH, GROUPS], ids=["single", "groups"])
def test_rows_objective_is_the_pairwise_one_with_every_item_drawn_once(scored, loss, batch):
    model, variables, _ = scored

    def everything(key, users):
        return jnp.broadcast_to(jnp.arange(30), (*users.shape, 30))

    expected = jr.train.pairwise_objective(variables, KEY, batch, model=model, loss=loss, sample=everything)
    value = jr.train.rows_objective(variables, KEY, batch, model=model, loss=loss)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.deep
@pytest.mark.parametrize("batch", [pytest.param(BATCH, marks=pytest.mark.deep), GROUPS], ids=["single", "groups"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gram_objective_is_the_rows_one_of_the_sampled_loss(scored, batch, weighted):
    model, variables, _ = scored
    batch = batch._replace(weights=1.0 + batch.items.astype(jnp.float32)) if weighted else batch

    def both(variables):
        by_rows = jr.train.rows_objective(variables, KEY, batch, model=model, loss=jr.losses.rg2_sampled)
        return jnp.stack([by_rows, jr.train.gram_objective(variables, KEY, batch, model=model)])

    (expected, found), gradients = both(variables), jax.jacrev(both)(variables)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_allclose(gradient[1], gradient[0], rtol=1e-4, atol=1e-6)
        assert np.abs(gradient[0]).max() > 1e-3


@pytest.mark.deep
def test_gram_objective_of_all_pairs_is_the_squared_form_less_a_constant():
    """Σ W_u (o_ui − S_ui)², W_u = a_u / 2N|D|, S_ui = N r_ui / a_u − 1: larger by (MN − |D|) / 2|D| − ½."""
    pairs = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 2, 3, 1, 2, 2])
    n_users, n_items, n = 3, 5, len(pairs[0])  # item 4 has nobody
    rng = np.random.default_rng(0)
    params = {"user": rng.normal(size=(n_users, 2)), "item": rng.normal(size=(n_items, 2))}
    met = np.zeros((n_users, n_items))
    met[pairs] = 1
    degrees = met.sum(1, keepdims=True)
    targets = n_items * met / degrees - 1
    squared = (degrees / (2 * n_items * n) * (params["user"] @ params["item"].T - targets) ** 2).sum()
    with jax.enable_x64(True):
        batch = jr.train.Batch.of(*map(jnp.asarray, pairs))
        model = jr.models.MF(n_users, n_items, dim=2)
        found = jr.train.gram_objective({"params": params}, KEY, batch, model=model)
    assert float(found) == pytest.approx(squared - (n_users * n_items - n) / (2 * n) + 0.5, rel=1e-12)


@pytest.mark.deep
def test_gram_objective_recovers_the_diagonal_withheld_from_the_checkerboard():
    model = model_of()
    state = jr.train.init(jax.random.key(0), model, TX)
    objective = partial(jr.train.gram_objective, model=model)
    state, log = jr.train.fit(state, objective, TX, TRAIN, epochs=20, batch_size=128, progress=False)
    assert jr.evaluate.full_ranking(model, state.variables, TRAIN, TEST, ks=(1,)).means["hit_rate@1"] == 1
    assert log.records[-1]["loss"] < log.records[0]["loss"]


@pytest.mark.deep
def test_dropout_depends_on_the_key_and_is_the_same_for_positives_and_negatives(scored):
    model, variables = model_of(jr.models.cosine, dropout=0.5), scored[1]

    def same_item(key, users):
        return BATCH.items

    def difference(pos, neg, **_):
        return pos - neg[..., 0]

    values = [
        float(jr.train.pairwise_objective(variables, key, BATCH, model=model, loss=jr.losses.hinge, sample=drawn()))
        for key in jax.random.split(KEY, 3)
    ]
    assert len(set(values)) == 3
    alike = jr.train.pairwise_objective(variables, KEY, BATCH, model=model, loss=difference, sample=same_item)
    np.testing.assert_allclose(alike, 0, atol=1e-6)
    same = jr.train.pairwise_objective(variables, KEY, BATCH, model=scored[0], loss=jr.losses.bpr, sample=drawn())
    off = model_of(jr.models.cosine, dropout=0.0)
    again = jr.train.pairwise_objective(variables, KEY, BATCH, model=off, loss=jr.losses.bpr, sample=drawn())
    assert same == again


@pytest.mark.deep
def test_decayed_weights_before_adam_are_an_l2_penalty_on_the_whole_tables(scored):
    """A row that the batch does not look up has the gradient l2 * theta. A penalty on the batch's rows lacks it."""
    model, variables, _ = scored
    tx = optax.add_decayed_weights(0.3)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=drawn(1))
    gradient = jax.grad(objective)(variables, KEY, BATCH)["params"]
    updates, _ = tx.update(gradient, tx.init(variables["params"]), variables["params"])
    untouched = np.flatnonzero(np.abs(gradient["user"]).sum(1) == 0)
    assert len(untouched) == 27
    np.testing.assert_allclose(updates["user"][untouched], 0.3 * variables["params"]["user"][untouched], rtol=1e-6)


@pytest.mark.deep
def test_under_cosine_short_initial_vectors_turn_quickly_and_long_ones_slowly():
    """With a learning rate of 1e-4, vectors of length 1e-4 turn at once. Vectors of length .1 do not."""
    turned = {}
    for scale in (1e-4, 0.1):
        model = jr.models.MF(30, 30, dim=64, score=jr.models.cosine, scale=scale)
        tx = jr.optim.rowwise.adam(1e-4)
        state = jr.train.init(jax.random.key(0), model, tx)
        before = state.variables["params"]["user"]
        objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.ccl, sample=drawn())
        after, _ = jr.train.fit(state, objective, tx, TRAIN, epochs=1, batch_size=45, progress=False)
        assert TRAIN.n_pairs // 45 >= 9
        u, v = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (before, after.variables["params"]["user"]))
        turned[scale] = float((u * v).sum(1).mean())
    assert turned[1e-4] < 0.5 and turned[0.1] > 0.99


@pytest.mark.deep
def test_a_loss_may_learn_its_own_parameters():
    """UIB learns a boundary for each user, which is no parameter of the model."""
    model, tx = model_of(), optax.sgd(0.5)
    state = jr.train.init(jax.random.key(0), model, tx, parameters={"boundary": jnp.zeros(30)})

    def boundary(variables, batch, negatives):
        return {"boundary": variables["params"]["boundary"][batch.users]}

    objective = partial(
        jr.train.pairwise_objective, model=model, loss=jr.losses.uib, sample=drawn(), arguments=boundary
    )
    state, _ = jr.train.fit(state, objective, tx, TRAIN, epochs=1, batch_size=64, progress=False)
    assert (np.asarray(state.variables["params"]["boundary"]) != 0).all()


@pytest.mark.deep
@pytest.mark.parametrize(
    "objective",
    [
        partial(jr.train.in_batch_objective, loss=jr.losses.softmax),
        partial(jr.train.vectors_objective, loss=jr.losses.directau),
    ],
)
def test_objectives_of_pairs_take_groups_one_by_one(scored, objective):
    model, variables, _ = scored
    users, items, where, _ = GROUPS.pairs()
    expected = objective(variables, KEY, jr.train.Batch.of(users, items, where=where), model=model)
    np.testing.assert_allclose(objective(variables, KEY, GROUPS, model=model), expected, rtol=1e-6)


OF_HISTORIES = {
    "pairwise": partial(jr.train.pairwise_objective, sample=drawn(3), loss=L.bpr),
    "shared": partial(jr.train.pairwise_objective, sample=drawn(3, shared=True), loss=L.bpr),
    "hardest": partial(jr.train.pairwise_objective, sample=drawn(6), hardest=3, loss=L.bpr),
    "in batch": partial(jr.train.in_batch_objective, loss=L.softmax),
    "rows": partial(jr.train.rows_objective, loss=L.bpr),
    "relation": partial(jr.train.relation_objective, loss=L.bpr, sample=drawn(3)),
}


@pytest.mark.deep
@pytest.mark.every_case
@pytest.mark.parametrize("name", OF_HISTORIES)
def test_objectives_hand_the_histories_of_the_batch_to_models_that_need_them(name):
    """The model gives the scores of a table if its histories are those of its users."""
    table = jax.random.normal(jax.random.key(2), (30, 30))

    def score(params, users, items, related=None, *, histories):
        owned = np.asarray(histories.to_scipy().toarray()) > 0
        np.testing.assert_array_equal(owned, (TRAIN.to_scipy().toarray() > 0)[np.asarray(users).reshape(len(owned))])
        return params["table"][users, items]

    def rows(params, users, *, histories):
        return score(params, users, None, histories=histories).reshape(len(users), 30)

    parts = {"score": score, "rows": rows, "n_users": 30, "n_items": 30}
    needing = jr.models.from_functions(lambda key: {"table": table}, **parts, needs_histories=True)
    plain = jr.models.from_functions(
        lambda key: {"table": table},
        score=lambda params, users, items, related=None: params["table"][users, items],
        rows=lambda params, users: params["table"][users],
    )
    for batch in (BATCH, GROUPS):
        known = batch._replace(histories=TRAIN.take(np.asarray(batch.users)[:, 0]))
        value, expected = (
            OF_HISTORIES[name]({"params": {"table": table}}, KEY, given, model=model)
            for model, given in ((needing, known), (plain, batch))
        )
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        with pytest.raises(ValueError, match=r"^Functions knows users by their items, and the batch has no histories"):
            OF_HISTORIES[name]({"params": {"table": table}}, KEY, batch, model=needing)


@pytest.mark.deep
def test_what_leaves_a_positive_out_refuses_groups(scored):
    model, variables, _ = scored
    objective = partial(jr.train.pairwise_objective, loss=jr.losses.bpr, sample=drawn(), leave_out=True)
    with pytest.raises(ValueError, match="call fit with examples=singles"):
        objective(variables, KEY, GROUPS, model=model)


# ---------------------------------------------------------------------- every loss trains every model

LOSSES = {
    "bpr": L.bpr,
    "hinge": L.hinge,
    "warp": partial(L.warp, n_items=30),
    "ccl": partial(L.ccl, margin=0.3, weight=5.0),
    "mml": partial(L.mml, margins=(0.2, 0.6), weights=(0.3, 0.7), negative_weight=5.0),
    "bce": L.bce,
    "mse": L.mse,
    "uib": L.uib,
    "softmax": partial(L.softmax, temperature=0.5),
    "sampled_softmax": partial(L.sampled_softmax, temperature=0.5),
    "bsl": partial(L.bsl, temperature=0.5),
    "mine": partial(L.mine, temperature=0.5),
    "infonce_plus": partial(L.infonce_plus, temperature=0.5),
    "rg2_sampled": L.rg2_sampled,
    "combine": partial(L.combine, parts=((1.0, L.bpr), (0.5, L.bce))),
}
DISTANCES = {
    "contrastive": partial(L.contrastive, margin=2.0),
    "triplet": L.triplet,
    "metricf": L.metricf,
}
SQUARED = {"dot": lambda s: jax.nn.softplus(-s), "cosine": lambda s: 2 - 2 * s, "distance": operator.neg}
MODELS = {
    "dot": lambda: model_of(jr.models.dot),
    "cosine": lambda: model_of(jr.models.cosine),
    "distance": lambda: model_of(jr.models.negative_squared_distance),
    "simplex": lambda: jr.models.SimpleX(30, 30, dim=8, scale=0.5, pool=jr.models.MeanPool()),
}


EVERYTHING = jr.train.Batch.of(*map(jnp.asarray, TRAIN.pairs()))
OF_TABLES = ("directau", "rg2")  # of users' and items' tables, which a model of histories does not have


def descend(model, objective, steps=60, rate=0.05):
    """Adam on whole batches; returns the variables and the losses."""

    def of_params(params, others, key, batch):
        return objective({**others, "params": params}, key, batch)

    step = jax.jit(jax.value_and_grad(of_params))
    variables, batch = start(model), EVERYTHING
    if isinstance(model, jr.models.SimpleX):
        batch = batch._replace(histories=TRAIN.take(TRAIN.pairs()[0]))
    values, m, v = [], 0.0, 0.0
    for t in range(1, steps + 1):
        value, gradient = step(variables["params"], variables, jax.random.key(t), batch)
        values.append(float(value))
        names = sorted(variables["params"])
        slopes = np.concatenate([np.ravel(gradient[name]) for name in names])
        m, v = 0.9 * m + 0.1 * slopes, 0.99 * v + 0.01 * slopes**2
        moves = rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        parts = np.split(moves, np.cumsum([variables["params"][name].size for name in names])[:-1])
        moved = {n: variables["params"][n] - x.reshape(variables["params"][n].shape) for n, x in zip(names, parts)}
        variables = {**variables, "params": moved}
    return variables, values


@pytest.mark.deep
@pytest.mark.parametrize(
    "model_name", [pytest.param(name, marks=pytest.mark.deep if name == "simplex" else []) for name in MODELS]
)
@pytest.mark.parametrize("loss_name", [*LOSSES, *DISTANCES, *OF_TABLES])
def test_every_loss_trains_every_model(loss_name, model_name):
    """The loss falls, and the withheld diagonal ranks far above chance (a mean reciprocal rank of about .13)."""
    model = MODELS[model_name]()
    if model_name == "simplex" and loss_name in OF_TABLES:
        of_vectors = partial(jr.train.vectors_objective, loss=L.directau)
        objective = jr.train.gram_objective if loss_name == "rg2" else of_vectors
        with pytest.raises(TypeError, match="model is SimpleX, which has no 'vectors'"):
            descend(model, partial(objective, model=model))
        return
    if loss_name == "directau":
        objective = partial(jr.train.vectors_objective, model=model, loss=L.directau)
    elif loss_name == "rg2":
        objective = partial(jr.train.gram_objective, model=model)
    else:
        loss = LOSSES.get(loss_name)
        if loss is None:
            squared = SQUARED["cosine" if model_name == "simplex" else model_name]
            loss = partial(L.on_scores, loss=DISTANCES[loss_name], squared_distance=squared)
        objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=drawn(8))
    variables, values = descend(model, objective)
    assert np.mean(values[-5:]) < np.mean(values[:5])
    known = {"histories": TRAIN} if model_name == "simplex" else {}
    report = jr.evaluate.full_ranking(model, variables, TRAIN, TEST, ks=(10,), **known)
    assert report.means["mrr@10"] > 0.3


@pytest.mark.deep
def test_every_loss_of_pairs_is_trained_above():
    """The test above has every loss that compares scores or distances of pairs, but not `sml`, of three distances."""
    rows = {"multinomial", "sparsemax"}
    other = {"mean", "on_scores", "pooled", "alignment", "uniformity", "covariance", "diversity", "infonce", "sml"}
    other |= {"kl_standard", "kl_normalised"}
    names = {name for name in vars(L) if callable(getattr(L, name)) and not name.startswith("_")}
    assert names - rows - other == {*LOSSES, *DISTANCES, *OF_TABLES}


@pytest.mark.deep
def test_an_objective_says_what_the_model_lacks():
    train = jr.Interactions.from_pairs([0, 1], [1, 0])
    model, draw = jr.models.NeuMF(2, 2, dim=2, layers=(2, 1)), partial(jr.sampling.uniform, n_items=2)
    lacking = {
        "vectors": [partial(jr.train.gram_objective, model=model)],
        "parts": [partial(jr.train.mars.objective, model=model, sample=draw, margin=0.5)],
        "views": [partial(jr.train.contrastive_objective, model=model, sample=draw)],
        "neighbourhoods": [partial(jr.train.ncl.objective, model=model, sample=draw)],
        "bound": [partial(jr.train.autoencoders.objective, model=model)],
        "regularised": [
            partial(
                jr.train.translation_objective,
                model=model,
                loss=jr.losses.hinge,
                sample=draw,
                distance_weight=0.0,
                neighbourhood_weight=0.0,
            )
        ],
    }
    lacking["vectors"].append(partial(jr.train.vectors_objective, model=model, loss=jr.losses.directau))
    state = jr.train.init(jax.random.key(0), model, TX)
    for method, objectives in lacking.items():
        for objective in objectives:
            examples = jr.train.by_user if method == "bound" else jr.train.singles
            with pytest.raises(TypeError, match=f"model is NeuMF, which has no '{method}'"):
                jr.train.fit(state, objective, TX, train, epochs=1, batch_size=2, examples=examples, progress=False)
