import dataclasses
import itertools
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.core import FrozenDict
from support import TX

import jaxrec as jr
from jaxrec._checksum import checksum
from jaxrec._run import Progress
from jaxrec.data import synthetic
from jaxrec.train import loop

TRAIN, TEST = synthetic.checkerboard(30)


def objective(model, loss=jr.losses.bpr, **extra):
    sample = partial(jr.sampling.uniform, n_items=model.n_items, n=4)
    return partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample, **extra)


def fit(model, loss=jr.losses.bpr, seed=0, tx=TX, train=TRAIN, **options):
    state = jr.train.init(jax.random.key(seed), model, tx)
    options = {"epochs": 3, "batch_size": 128, "progress": False} | options
    return jr.train.fit(state, objective(model, loss), tx, train, **options)


def model_of(score=jr.models.dot, dim=8, scale=0.1):
    return jr.models.MF(TRAIN.n_users, TRAIN.n_items, dim=dim, score=score, scale=scale)


def same(a, b):
    a, b = jax.tree.leaves((a.variables, a.opt_state)), jax.tree.leaves((b.variables, b.opt_state))
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize(
    ("score", "loss"),
    [
        (jr.models.dot, jr.losses.bpr),
        pytest.param(jr.models.dot, jr.losses.hinge, marks=pytest.mark.deep),
        pytest.param(jr.models.dot, jr.losses.bce, marks=pytest.mark.deep),
        pytest.param(jr.models.dot, jr.losses.mse, marks=pytest.mark.deep),
        (jr.models.dot, jr.losses.softmax),
        pytest.param(jr.models.dot, jr.losses.rg2_sampled, marks=pytest.mark.deep),
        pytest.param(jr.models.cosine, partial(jr.losses.bsl, temperature=0.2), marks=pytest.mark.deep),
        pytest.param(jr.models.cosine, partial(jr.losses.ccl, margin=0.3, weight=5.0), marks=pytest.mark.deep),
        (jr.models.cosine, partial(jr.losses.mml, margins=(0.2, 0.6), weights=(0.3, 0.7), negative_weight=5.0)),
        (jr.models.negative_squared_distance, jr.losses.hinge),
        pytest.param(
            jr.models.negative_squared_distance,
            partial(jr.losses.on_scores, loss=jr.losses.metricf),
            marks=pytest.mark.deep,
        ),
    ],
)
def test_recovers_the_diagonal_withheld_from_the_checkerboard(score, loss):
    model = model_of(score)
    state, log = fit(model, loss, epochs=40)
    report = jr.evaluate.full_ranking(model, state.variables, TRAIN, TEST, ks=(1,))
    assert report.means["hit_rate@1"] >= (0.95 if jax.config.jax_enable_x64 else 1)  # x64 changes the initial values
    assert log.records[-1]["loss"] < log.records[0]["loss"]


def test_repeats_itself_under_one_key_and_not_under_another():
    model = model_of()
    first, again, other = (fit(model, seed=seed)[0] for seed in (5, 5, 6))
    assert same(first, again)
    assert not same(first, other)


def test_epochs_continue_from_the_state():
    model = model_of()
    whole, _ = fit(model, epochs=4)
    half, _ = fit(model, epochs=2)
    rest, log = jr.train.fit(half, objective(model), TX, TRAIN, epochs=4, batch_size=128, progress=False)
    assert same(whole, rest)
    assert [record["epoch"] for record in log.records] == [3, 4]


def test_every_positive_occurs_once_per_epoch_and_padding_never():
    counts = jnp.zeros((TRAIN.n_users, TRAIN.n_items), jnp.float32)

    def count(variables, key, batch):
        return (variables["params"]["table"][batch.users, batch.items] * batch.where.astype(jnp.float32)).sum()

    state = loop.State(
        {"params": {"table": counts}}, optax.sgd(1.0).init(counts), jax.random.key(0), jnp.zeros((), jnp.int32)
    )
    tx = optax.sgd(-1.0)
    state, _ = jr.train.fit(state, count, tx, TRAIN, epochs=1, batch_size=64, progress=False)
    assert TRAIN.n_pairs % 64 != 0
    assert np.array_equal(state.variables["params"]["table"], TRAIN.to_scipy().toarray())


@pytest.mark.parametrize("group", [1, 3, 50])
def test_groups_have_every_positive_once_per_epoch_and_one_user_each(group):
    counts, owners = jnp.zeros((TRAIN.n_users, TRAIN.n_items), jnp.float32), []

    def count(variables, key, batch):
        assert batch.items.shape == batch.where.shape == (16, group)
        jax.debug.callback(lambda where: owners.append(np.asarray(where).sum(1)), batch.where)
        return (variables["params"]["table"][batch.users, batch.items] * batch.where.astype(jnp.float32)).sum()

    state = loop.State(
        {"params": {"table": counts}}, optax.sgd(1.0).init(counts), jax.random.key(0), jnp.zeros((), jnp.int32)
    )
    options = {"epochs": 1, "batch_size": 16, "examples": partial(jr.train.groups, n=group), "progress": False}
    state, _ = jr.train.fit(state, count, optax.sgd(-1.0), TRAIN, **options)
    assert np.array_equal(state.variables["params"]["table"], TRAIN.to_scipy().toarray())
    jax.effects_barrier()
    lengths = np.concatenate(owners)
    degrees = np.asarray(TRAIN.user_degrees)
    assert (lengths > 0).sum() == (-(-degrees // group)).sum()
    assert sorted(lengths[lengths == group]) == [group] * (degrees // group).sum()


def test_by_user_gives_each_user_with_a_pair_once_per_epoch():
    met = []
    keep = met.append  # a list that the objective reads would be part of what it is compiled for
    train = TRAIN.select(TRAIN.pairs()[0] % 4 != 1)

    def count(variables, key, batch):
        assert batch.users.shape == batch.where.shape == (7, 1) and batch.histories.n_users == 7
        jax.debug.callback(lambda *part: keep(part), batch.users, batch.where, batch.step)
        return variables["params"]["x"].sum()

    x, tx = jnp.zeros(1), optax.sgd(1.0)
    state = loop.State({"params": {"x": x}}, tx.init({"x": x}), jax.random.key(0), jnp.zeros((), jnp.int32))
    jr.train.fit(state, count, tx, train, epochs=2, batch_size=7, examples=jr.train.by_user, progress=False)
    jax.effects_barrier()
    users = [np.asarray(users)[np.asarray(where)] for users, where, _ in sorted(met, key=lambda part: int(part[2]))]
    known = np.flatnonzero(train.user_degrees)
    steps = -(-len(known) // 7)
    assert len(known) % 7 != 0 and len(users) == 2 * steps
    for epoch in (users[:steps], users[steps:]):
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), known)
    assert sorted(int(step) for _, _, step in met) == list(range(2 * steps))


def test_padding_of_a_batch_of_users_repeats_the_user_with_the_shortest_history():
    """Otherwise a batch padded with the longest history would exceed the capacity."""
    train = jr.Interactions.from_pairs([0, 0, 2, 3, 3, 3, 3], [0, 1, 1, 0, 1, 2, 3])
    batch = jr.train.by_user(train).batch(jnp.array([2, 0, 3, 3]))
    assert batch.users.tolist() == [[3], [0], [2], [2]] and batch.where.tolist() == [[True], [True], [False], [False]]


@pytest.mark.every_case
@pytest.mark.parametrize("name", ["singles", "groups"])
@pytest.mark.parametrize("weighted", [False, True])
def test_examples_carry_the_histories_that_they_are_given(name, weighted):
    """Each user has the items of `histories`, which may differ from those of `train`. Padding has none, and weights do
    not change.
    """
    weights = np.arange(1.0, 6) if weighted else None
    train = jr.Interactions.from_pairs([0, 0, 2, 2, 2], [3, 1, 0, 1, 2], weights=weights, n_users=4)
    other = jr.Interactions.from_pairs([0, 1, 1, 2, 2], [2, 0, 1, 3, 0], weights=np.ones(5), n_users=4)
    make = {"singles": jr.train.singles, "groups": partial(jr.train.groups, n=2)}[name]
    plain, examples = make(train), make(train, histories=other)
    places = np.array([examples.n, 2, 0, 1, 2], np.int32)
    for call in (lambda examples: examples.batch(places, 7), jax.jit(lambda examples: examples.batch(places, 7))):
        batch = call(examples)
        expected = plain.batch(places, 7)
        for field in ("users", "items", "where", "step"):
            np.testing.assert_array_equal(getattr(batch, field), getattr(expected, field))
        np.testing.assert_array_equal(batch.weights, expected.weights if weighted else np.ones(batch.items.shape))
        assert batch.weights.dtype == np.float32 and batch.histories.weights is None
        users = np.asarray(batch.users)[:, 0]
        assert batch.histories.n_users == 5 and batch.histories.n_items == 4
        owned = [
            [] if place == examples.n else other.take([user]).indices.tolist() for place, user in zip(places, users)
        ]
        bounds = np.asarray(batch.histories.indptr)
        found = [batch.histories.indices[a:b].tolist() for a, b in itertools.pairwise(bounds)]
        assert found == owned and len(set(map(tuple, owned))) > 2
    with pytest.raises(ValueError, match=r"^train is \(4, 4\) users by items, but histories are \(5, 4\)"):
        make(train, histories=larger(other, users=1))


@pytest.mark.parametrize("name", ["singles", "groups"])
def test_histories_that_do_not_fit_make_the_loss_nan(name):
    """One of 10¹² random batches exceeds the capacity. This one does on purpose: one user is drawn many times."""
    train = jr.Interactions.from_pairs([*range(3000), *[3000] * 300], [0] * 3000 + list(range(300)))
    make = {"singles": jr.train.singles, "groups": partial(jr.train.groups, n=300)}[name]
    batch = partial(jax.jit(lambda examples, places: examples.batch(places)), make(train, histories=train))
    few, many = np.arange(64, dtype=np.int32), np.full(64, 3000, np.int32)
    assert (batch(few).weights == 1).all() and len(batch(few).histories.indices) < 64 * 300
    assert np.isnan(batch(many).weights).all()
    found = batch(many)
    assert np.isnan(jr.losses.mean(jnp.ones(found.items.shape), where=found.where, weights=found.weights))


@pytest.mark.parametrize("objective", [objective, partial(jr.train.rows_objective, loss=jr.losses.softmax)])
def test_objectives_that_compare_items_refuse_users(objective):
    """They would train on one item of each user."""
    bound = partial(objective, model=model_of()) if isinstance(objective, partial) else objective(model_of())
    state = jr.train.init(jax.random.key(0), model_of(), TX)
    with pytest.raises(ValueError, match=r"by_user has no items, only histories; .* examples=jaxrec\.train\.singles"):
        jr.train.fit(state, bound, TX, TRAIN, epochs=1, examples=jr.train.by_user, progress=False)


def test_batch_step_continues_from_the_state():
    """So annealed values continue after a resume."""

    def spied(variables, key, batch):
        return batch.step.astype(jnp.float32) + 0 * variables["params"]["x"].sum()

    x, tx = jnp.zeros(1, jnp.float32), optax.sgd(1.0)
    state = loop.State({"params": {"x": x}}, tx.init({"x": x}), jax.random.key(0), jnp.zeros((), jnp.int32))
    options = {"batch_size": 128, "progress": False}
    steps = -(-TRAIN.n_pairs // 128)
    state, _ = jr.train.fit(state, spied, tx, TRAIN, epochs=1, **options)
    _, log = jr.train.fit(state, spied, tx, TRAIN, epochs=2, **options)
    assert log.column("loss")[1] == [steps + (steps - 1) / 2]


def test_weights_follow_their_pairs_into_groups():
    users, items = TRAIN.pairs()
    weights = np.arange(1.0, TRAIN.n_pairs + 1)
    train = jr.Interactions.from_pairs(users, items, weights=weights, n_users=30, n_items=30)
    data = jr.train.groups(train, n=4)
    batch = data.batch(jnp.arange(len(data.users) + 3))
    real = np.asarray(batch.where)
    owners = np.broadcast_to(np.asarray(batch.users), real.shape)[real]
    expected = train.to_scipy().toarray()[owners, np.asarray(batch.items)[real]]
    np.testing.assert_array_equal(np.asarray(batch.weights)[real], expected)
    assert real.sum() == train.n_pairs and not real[-3:].any()


def test_one_epoch_equals_the_same_steps_by_hand():
    """An independent loop uses the documented keys to shuffle, draw, differentiate and step."""
    model, tx = model_of(), optax.sgd(0.5)
    start = jr.train.init(jax.random.key(0), model, tx)
    done, log = jr.train.fit(start, objective(model), tx, TRAIN, epochs=1, batch_size=TRAIN.n_pairs, progress=False)
    order_key, step_key = jax.random.split(jax.random.fold_in(start.key, 0))
    order = jr.sampling.permuted(order_key, jnp.arange(TRAIN.n_pairs), n=TRAIN.n_pairs)
    users, items = (ids[order] for ids in TRAIN.pairs())
    user, item = (np.asarray(start.variables["params"][name], np.float64) for name in ("user", "item"))
    sample_key, _ = jax.random.split(jax.random.fold_in(step_key, 0))
    negatives = jr.sampling.uniform(sample_key, users, n_items=TRAIN.n_items, n=4)
    pos = (user[users] * item[items]).sum(-1)
    neg = np.einsum("bd,bnd->bn", user[users], item[negatives])
    slope = 1 / (1 + np.exp(pos[:, None] - neg)) / (4 * len(users))
    gradient = np.zeros_like(user)
    np.add.at(gradient, users, np.einsum("bn,bnd->bd", slope, item[negatives] - item[items][:, None]))
    np.testing.assert_allclose(done.variables["params"]["user"], user - 0.5 * gradient, atol=1e-6)
    np.testing.assert_allclose(log.records[0]["loss"], np.log1p(np.exp(neg - pos[:, None])).mean(), rtol=1e-5)


@pytest.mark.deep
def test_weights_of_interactions_weigh_the_mean():
    doubled = jr.Interactions.from_pairs(*TRAIN.pairs(), weights=np.full(TRAIN.n_pairs, 2.0), n_users=30, n_items=30)
    first = jr.Interactions.from_pairs(
        *TRAIN.pairs(), weights=np.r_[1, np.zeros(TRAIN.n_pairs - 1)], n_users=30, n_items=30
    )
    model = model_of()
    np.testing.assert_array_equal(
        fit(model, train=doubled)[0].variables["params"]["item"], fit(model)[0].variables["params"]["item"]
    )
    moved = fit(model, tx=optax.sgd(1.0), train=first, epochs=1)[0].variables["params"]["user"]
    still = jr.train.init(jax.random.key(0), model, TX).variables["params"]["user"]
    assert np.array_equal(moved[1:], still[1:])
    assert not np.array_equal(moved[0], still[0])


@pytest.mark.deep
def test_arrays_in_partials_are_arguments_and_new_values_compile_nothing():
    model = model_of()
    state = jr.train.init(jax.random.key(0), model, TX)

    def run(power):
        table = jr.sampling.popularity_table(TRAIN, power=power)
        sample = partial(jr.sampling.popularity, table=table, n=2)
        rejecting = partial(jr.sampling.reject_seen, sample=sample, seen=TRAIN)
        loss = partial(jr.losses.softmax, temperature=jnp.asarray(power))
        whole = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=rejecting)
        return jr.train.fit(state, whole, TX, TRAIN, epochs=1, batch_size=128, progress=False)[0]

    first = run(1.0)
    compiled = loop._epoch._cache_size()
    second = run(0.5)
    assert loop._epoch._cache_size() == compiled
    assert not same(first, second)


@pytest.mark.deep
def test_sampler_that_rejects_seen_items_never_meets_them():
    model = model_of()
    hits = []

    def spying(key, users):
        items = jr.sampling.reject_seen(
            key, users, sample=partial(jr.sampling.uniform, n_items=30, n=8), seen=TRAIN, rounds=40
        )
        jax.debug.callback(
            lambda u, i: hits.append(np.asarray(TRAIN.to_scipy().toarray()[u[:, None], i])), users, items
        )
        return items

    state = jr.train.init(jax.random.key(0), model, TX)
    whole = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=spying)
    jr.train.fit(state, whole, TX, TRAIN, epochs=1, batch_size=128, progress=False)
    jax.effects_barrier()
    assert len(hits) > 0
    assert np.sum(hits) == 0


# ---------------------------------------------------------------------- stopping, log, callbacks


def test_early_stopping_restores_the_best_epoch():
    scores = iter([0.1, 0.5, 0.3, 0.5, 0.2, 0.9])
    states = []
    best, log = fit(
        model_of(),
        epochs=20,
        validate=lambda _: {"score": next(scores)},
        stopping=jr.train.EarlyStopping("score", patience=2),
        callbacks=[lambda state, record: states.append(state)],
    )
    assert log.column("score") == ([1, 2, 3, 4], [0.1, 0.5, 0.3, 0.5])
    assert int(best.epoch) == 2
    assert same(best, states[1])
    assert not same(best, states[3])


def test_validates_as_often_as_given_and_after_the_last_epoch():
    _, log = fit(model_of(), epochs=5, every=2, validate=lambda _: {"score": 1.0})
    assert log.column("score")[0] == [2, 4, 5]
    assert log.to_dataframe().loc[[1, 2], "score"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("mode", "min_delta", "values", "waits"),
    [
        ("max", 0.0, [1.0, 1.0, 2.0], [0, 1, 0]),
        ("min", 0.0, [1.0, 2.0, 0.5], [0, 1, 0]),
        ("max", 0.5, [1.0, 1.4, 1.6], [0, 1, 0]),
        ("max", 0.0, [1.0, float("nan"), 1.5], [0, 1, 0]),
    ],
)
def test_stopping_counts_validations_without_a_gain(mode, min_delta, values, waits):
    rule = jr.train.EarlyStopping("m", mode=mode, min_delta=min_delta)
    state, waited = rule.init(), []
    for epoch, value in enumerate(values, 1):
        state, _ = rule.update(state, {"epoch": epoch, "m": value})
        waited.append(state["waited"])
    assert waited == waits


def test_ties_count_as_gains_and_the_sixteenth_failure_ends_a_run():
    """This is RecBole's rule with a `stopping_step` of 15."""
    rule = jr.train.EarlyStopping("m", patience=16, ties=True)

    def after(values):
        state = rule.init()
        for epoch, value in enumerate(values, 1):
            state, improved = rule.update(state, {"epoch": epoch, "m": value})
        return rule.done(state), state["best_epoch"], improved

    assert after([0.1] * 40) == (False, 40, True)
    assert after([0.1] + [0.05] * 15) == (False, 1, False)
    assert after([0.1] + [0.05] * 15 + [0.1]) == (False, 17, True)
    assert after([0.1] + [0.05] * 16) == (True, 1, False)
    assert after([0.1, float("nan")]) == (False, 1, False)


def test_the_log_says_what_it_has():
    _, log = fit(model_of())
    assert log.names == ["loss", "seconds"]
    assert "3 epochs" in repr(log)
    with pytest.raises(ValueError, match="no 'ndcg@10'; it has"):
        log.column("ndcg@10")


@pytest.mark.deep
def test_the_log_separates_compilation_from_epochs(capsys):
    model, afresh = model_of(), lambda pos, neg, where=None: jax.nn.softplus(neg - pos[:, None]).sum(-1)
    _, first = fit(model, afresh, progress=True)
    assert "compiling" in capsys.readouterr().err
    _, again = fit(model, afresh)
    assert first.compile_seconds > again.compile_seconds == 0 < again.setup_seconds
    assert f"compilation {first.compile_seconds:.2g} s" in repr(first) and "compilation" not in repr(again)


def test_a_finished_run_compiles_nothing(tmp_path, capsys):
    checkpoint = jr.train.Checkpoint(tmp_path)
    fit(model_of(), checkpoint=checkpoint)
    _, log = fit(model_of(), checkpoint=checkpoint, progress=True)
    assert "compiling" not in capsys.readouterr().err and log.compile_seconds == 0


def test_listeners_may_be_cleared_during_a_run():
    clear = lambda _: (jax.monitoring.clear_event_listeners(), {"a": 1.0})[1]  # noqa: E731
    assert len(fit(model_of(), validate=clear)[1].records) == 3


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"every": 0}, "every=0"),
        ({"examples": partial(jr.train.groups, n=-1)}, "n=-1; give an integer"),
        ({"stopping": jr.train.EarlyStopping("ndcg@10")}, "pass validate="),
        (
            {"stopping": jr.train.EarlyStopping("x"), "validate": lambda _: {"y": 1.0}},
            "watches 'x', but validate gives",
        ),
        ({"train": TRAIN.select(np.zeros(TRAIN.n_pairs, bool))}, "train has no pairs"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fit(model_of(), **options)


@pytest.mark.deep
def test_a_pickled_state_continues_as_the_state_itself():
    model = model_of()
    state, _ = fit(model, epochs=1)
    ends = [
        jr.train.fit(one, objective(model), TX, TRAIN, epochs=2, progress=False)[0].variables
        for one in (state, pickle.loads(pickle.dumps(state)))
    ]
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validate": {"ndcg": 1.0}}, "validate={'ndcg': 1.0}; give a function, such as lambda variables"),
        ({"callbacks": [print, 3]}, r"callbacks\[1\]=3; give a function, such as lambda state, record"),
        ({"examples": 3}, "examples=3; give a function, such as jaxrec.train.singles"),
    ],
)
def test_what_is_no_function_is_named(options, message):
    with pytest.raises(TypeError, match=message):
        fit(model_of(), **options)
    if "examples" not in options:
        with pytest.raises(TypeError, match=message):
            how = {"regularization": 0.1, "unobserved_weight": 0.1, "key": jax.random.key(0), "sweeps": 1}
            jr.solvers.ials.fit(TRAIN, dim=2, progress=False, **how, **options)


def test_an_objective_or_model_that_is_none_is_named():
    state = jr.train.init(jax.random.key(0), model_of(), TX)
    with pytest.raises(TypeError, match=r"objective=3; give a function, such as functools.partial"):
        jr.train.fit(state, 3, TX, TRAIN, epochs=1)
    with pytest.raises(TypeError, match=r"model='MF'; give a model, such as jaxrec.models.MF"):
        jr.train.init(jax.random.key(0), "MF", TX)


def test_wrong_types_of_stopping_and_checkpoint_are_named():
    for options, message in (
        ({"stopping": "ndcg@10"}, "stopping='ndcg@10'; give jaxrec.train.EarlyStopping"),
        ({"checkpoint": "folder"}, "checkpoint='folder'; give jaxrec.train.Checkpoint"),
    ):
        with pytest.raises(TypeError, match=message):
            fit(model_of(), **options)
    for callbacks in (print, iter([print])):  # an iterator would be empty after the first epoch
        with pytest.raises(TypeError, match=r"callbacks=<.*; give a list of functions"):
            fit(model_of(), callbacks=callbacks)
    with pytest.raises(ValueError, match="every=0; give an integer of 1 or more"):
        jr.train.Checkpoint("folder", every=0)


@pytest.mark.deep
def test_a_finished_state_gives_a_warning_and_validate_may_return_a_report():
    model = model_of()

    def validate(variables):
        return jr.evaluate.full_ranking(model, variables, TRAIN, TEST, ks=10)

    state, log = fit(model, epochs=1, validate=validate)
    assert log.records[-1]["ndcg@10"] == validate(state.variables).means["ndcg@10"]
    negatives = (np.asarray(TEST.pairs()[1])[:, None] + 1) % 30
    sampled = jr.evaluate.sampled_ranking(model, state.variables, TEST.pairs(), negatives, ks=1)
    assert "ndcg@1" in sampled.means
    small = jr.models.MF(TRAIN.n_users, TRAIN.n_items, dim=2)
    _, _, log = jr.solvers.ials.fit(
        TRAIN,
        dim=2,
        regularization=0.1,
        unobserved_weight=0.1,
        key=jax.random.key(0),
        sweeps=1,
        validate=lambda variables: jr.evaluate.full_ranking(small, variables, TRAIN, TEST, ks=10),
        progress=False,
    )
    assert "ndcg@10" in log.names
    with pytest.warns(UserWarning, match="has done 1 epochs, and epochs=1 counts from the start"):
        again, log = jr.train.fit(state, objective(model), TX, TRAIN, epochs=1, progress=False)
    assert again is state and not log.records
    with pytest.raises(TypeError, match=r"variables is a State; pass its \.variables"):
        jr.evaluate.top_k(model, state, [0], k=1)


def larger(train, users=0, items=0):
    """The same pairs among more users and items."""
    sizes = {"n_users": train.n_users + users, "n_items": train.n_items + items}
    return jr.Interactions.from_pairs(*map(np.asarray, train.pairs()), **sizes)


@pytest.mark.deep
def test_a_model_with_fewer_users_or_items_than_train_is_refused():
    """A look-up clamps ids. Without the check, the last row would be trained instead of the missing ones."""
    for more, message in (
        ({"users": 1}, "model's n_users is 30, but train's is 31"),
        ({"items": 2}, "n_items is 30, .* 32"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model_of(), train=larger(TRAIN, **more))
    for model in (jr.models.SimpleX(30, 30, dim=2), jr.models.LightGCN(TRAIN, dim=2)):
        with pytest.raises(ValueError, match="model's n_users is 30, but train's is 31"):
            fit(model, train=larger(TRAIN, users=1))


def test_tables_of_vectors_tell_the_sizes_of_a_model_without_any():
    def draw(key):
        return {"user": jnp.ones((30, 2)), "item": jax.random.normal(key, (30, 2))}

    model = jr.models.from_functions(draw, vectors=lambda params: (params["user"], params["item"]))
    sample = partial(jr.sampling.uniform, n_items=30)
    right = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    for more, message in (({"users": 1}, "n_users is 30, but train's is 31"), ({"items": 2}, "n_items is 30, .* 32")):
        with pytest.raises(ValueError, match=f"the model's {message}"):
            jr.train.fit(
                jr.train.init(jax.random.key(0), model, TX), right, TX, larger(TRAIN, **more), epochs=1, progress=False
            )
    with pytest.raises(ValueError, match="n_items of uniform is for n_items=31, but train has 30; create it"):
        too_many = partial(jr.sampling.uniform, n_items=31)
        wrong = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=too_many)
        jr.train.fit(jr.train.init(jax.random.key(0), model, TX), wrong, TX, TRAIN, epochs=1)


class OfFeatures(nn.Module):
    """Items are known by their features, a table that is not trained."""

    n_users: int = 30
    n_items: int = 33

    def setup(self):
        self.user, self.layer = nn.Embed(self.n_users, 2), nn.Dense(2)
        self.features = self.variable("features", "table", jnp.ones, (self.n_items, 3), np.float32)

    def __call__(self, users, items):
        return (self.user(users) * self.layer(self.features.value[items])).sum(-1)

    def rows(self, users):
        return self(users[:, None], jnp.arange(self.n_items)[None])


def test_constants_take_the_place_of_what_the_model_draws_and_are_not_trained():
    model, table = OfFeatures(), np.random.default_rng(0).normal(size=(33, 3))
    state = jr.train.init(jax.random.key(0), model, TX, constants={"features": {"table": table}})
    plain = jr.train.init(jax.random.key(0), model, TX)
    assert same(state._replace(variables=plain.variables), plain)
    np.testing.assert_allclose(state.variables["features"]["table"], table, rtol=1e-6)
    after, _ = jr.train.fit(state, objective(model), TX, TRAIN, epochs=1, progress=False)
    np.testing.assert_array_equal(after.variables["features"]["table"], state.variables["features"]["table"])
    assert not same(after, state)


WRONG_CONSTANTS = {
    "collection": (
        {"feature": {"table": 1}},
        r"constants has 'feature', but OfFeatures has \['features', 'params'\]; give",
    ),
    "name": ({"features": {"tables": 1}}, r"constants\['features'\] has 'tables', but OfFeatures has \['table'\]"),
    "rows": (
        {"features": {"table": np.ones((32, 3))}},
        r"\['table'\] has shape \(32, 3\), but OfFeatures has \(33, 3\)",
    ),
    "no name": (
        {"features": np.ones((33, 3))},
        r"constants\['features'\] has shape \(33, 3\), but OfFeatures has {'tab",
    ),
    "parameters": ({"params": {}}, "constants has 'params', which are trained"),
}


@pytest.mark.every_case
@pytest.mark.parametrize("name", WRONG_CONSTANTS)
def test_wrong_constants_are_named(name):
    constants, message = WRONG_CONSTANTS[name]
    with pytest.raises(ValueError, match=message):
        jr.train.init(jax.random.key(0), OfFeatures(), TX, constants=constants)


def test_a_batch_has_as_many_users_as_rows_of_items():
    with pytest.raises(ValueError, match="there are 2 users, but 1 rows of items"):
        jr.train.Batch.of(jnp.array([0, 1]), jnp.array([2]))


class Dropping(nn.Module):
    """Your own module, whose dropout is not called `dropout`."""

    rate: float = 0.5
    n_items: int = 30

    def setup(self):
        self.user, self.item = nn.Embed(30, 4), nn.Embed(30, 4)
        self.drop = nn.Dropout(self.rate)

    def __call__(self, users, items):
        user = self.drop(self.user(users), deterministic=not self.has_rng("dropout"))
        return (user * self.item(items)).sum(-1)


def test_your_own_module_trains_with_dropout():
    def values(rate):
        model, batch = Dropping(rate), jr.train.Batch.of(*(part[:20] for part in TRAIN.pairs()))
        variables = model.init(jax.random.key(0), batch.users, batch.items)
        first = lambda key, users: jnp.zeros((len(users), 1), jnp.int32)  # noqa: E731
        bound = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=first)
        return [float(bound(variables, jax.random.key(seed), batch)) for seed in range(2)]

    assert len(set(values(0.5))) == 2 and len(set(values(0.0))) == 1


def test_variables_in_place_of_a_state_are_an_error():
    state = jr.train.init(jax.random.key(0), model_of(), TX)
    with pytest.raises(TypeError, match=r"state is a dict; give the State that train\.init or train\.fit returned"):
        jr.train.fit(state.variables, objective(model_of()), TX, TRAIN, epochs=1, progress=False)


def test_parameters_take_the_place_of_those_that_the_model_draws_or_are_further_ones():
    model, user = model_of(), np.ones((TRAIN.n_users, 8))
    plain = jr.train.init(jax.random.key(0), model, TX)
    state = jr.train.init(jax.random.key(0), model, TX, parameters={"user": user, "margin": jnp.ones(3)})
    params, drawn = state.variables["params"], plain.variables["params"]
    assert params.keys() == {"user", "item", "margin"} and params["user"].dtype == drawn["user"].dtype
    np.testing.assert_array_equal(params["user"], user)
    np.testing.assert_array_equal(params["item"], drawn["item"])
    with pytest.raises(ValueError, match=r"parameters\['user'\] has shape \(3, 8\), but MF has \(\d+, 8\)"):
        jr.train.init(jax.random.key(0), model, TX, parameters={"user": user[:3]})


@pytest.mark.parametrize("n", [29, 34])
def test_a_table_with_another_number_of_rows_than_items_is_refused(n):
    """Its last row would be the features of all items beyond."""
    model = OfFeatures()
    state = jr.train.init(jax.random.key(0), model, TX)
    wrong = state._replace(variables={**state.variables, "features": {"table": jnp.ones((n, 3), np.float32)}})
    message = rf"variables\['features'\]\['table'\] has shape \[{n}, 3\], but OfFeatures has n_items = 33; give a"
    with pytest.raises(ValueError, match=message):
        jr.train.fit(wrong, objective(model), TX, TRAIN, epochs=1, progress=False)
    with pytest.raises(ValueError, match=message):
        jr.evaluate.top_k(model, wrong.variables, [0], k=3)
    assert jr.evaluate.top_k(model, state.variables, [0], k=3)[1].shape == (1, 3)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "every"])
@pytest.mark.parametrize("value", [0, 1.5, 1e3, "3"])
def test_numbers_that_are_not_integers_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}; give an integer of 1 or more"):
        fit(model_of(), **{name: value})


@pytest.mark.deep
def test_epochs_of_many_states_at_once_are_those_of_fit():
    model, data = model_of(), jr.train.singles(TRAIN)
    step = partial(jr.train.epoch, objective=objective(model), tx=TX, batch_size=128)
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(lambda key: jr.train.init(key, model, TX))(keys)
    together = jax.jit(jax.vmap(lambda state, data: step(state, data=data), in_axes=(0, None)))
    states, losses = together(states, data)
    states, _ = together(states, data)
    assert losses.shape == (3, -(-TRAIN.n_pairs // 128)) and states.epoch.tolist() == [2, 2, 2]
    alone, log = jr.train.fit(
        jr.train.init(keys[1], model, TX), objective(model), TX, TRAIN, epochs=2, batch_size=128, progress=False
    )
    assert log.records[0]["loss"] == pytest.approx(float(losses[1].mean()), rel=1e-5)
    for a, b in zip(jax.tree.leaves(states.variables), jax.tree.leaves(alone.variables)):
        np.testing.assert_allclose(a[1], b, atol=1e-5)
    first = jr.train.init(keys[1], model, TX)
    scanned, _ = jax.lax.scan(lambda state, _: step(state, data=data), first, None, length=2)
    for a, b in zip(jax.tree.leaves(scanned.variables), jax.tree.leaves(alone.variables)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.raises(TypeError, match="data is an Interactions; pass examples"):
        step(first, data=TRAIN)


TALLER, WIDER = larger(TRAIN, users=1), larger(TRAIN, items=1)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            partial(jr.sampling.uniform, n_items=31),
            "n_items of uniform is for n_items=31, but train has 30; create it for",
        ),
        (partial(jr.sampling.uniform, n_items=29), "n_items=29, but train has 30"),
        (
            partial(jr.sampling.reject_seen, sample=partial(jr.sampling.uniform, n_items=30), seen=TRAIN.transpose()),
            None,
        ),
        (
            partial(jr.sampling.reject_seen, sample=partial(jr.sampling.uniform, n_items=30), seen=TALLER),
            "seen of reject_seen is for n_users=31, but train has 30",
        ),
        (
            partial(
                jr.sampling.reject_seen,
                sample=partial(jr.sampling.popularity, table=jr.sampling.popularity_table(WIDER)),
                seen=TRAIN,
            ),
            "table of popularity is for n_items=31",
        ),
        (lambda key, users, n_items=7: jr.sampling.uniform(key, users, n_items=30), None),
    ],
    ids=["more items", "fewer", "square", "more users", "a table's", "your own"],
)
def test_samplers_for_other_sizes_are_refused(sample, message):
    """A look-up clamps ids. It would take the last item or the last user's items instead."""
    bound = partial(jr.train.pairwise_objective, model=model_of(), loss=jr.losses.bpr, sample=sample)
    state = jr.train.init(jax.random.key(0), model_of(), TX)
    if message is None:
        jr.train.fit(state, bound, TX, TRAIN, epochs=1, progress=False)
        return
    with pytest.raises(ValueError, match=message):
        jr.train.fit(state, bound, TX, TRAIN, epochs=1, progress=False)


@pytest.mark.deep
def test_a_sampler_may_draw_from_all_items_of_a_larger_model():
    model = jr.models.MF(30, 32, dim=2)
    for n_items, error in ((31, False), (33, True)):
        sample = partial(jr.sampling.uniform, n_items=n_items)
        bound = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
        state = jr.train.init(jax.random.key(0), model, TX)
        with pytest.raises(ValueError, match="33, but train has 30 and the model 32") if error else nullcontext():
            jr.train.fit(state, bound, TX, TRAIN, epochs=1, progress=False)


@pytest.mark.deep
def test_margins_for_other_users_are_refused():
    model = jr.models.MARS(30, 30, dim=2, n_facets=2)
    state = jr.train.init(jax.random.key(0), model, TX)
    for data, margin, message in (
        (TRAIN, np.ones(29, np.float32), "margin of objective is for n_users=29, but train has 30"),
        (TALLER, 0.5, "seen of reject_seen is for n_users=31|train of explorative is for n_users=31"),
    ):
        draw = jr.papers.mars.samplers(data, users=0.8, items=0.0)
        bound = partial(jr.train.mars.objective, model=model, margin=margin, **draw)
        with pytest.raises(ValueError, match=message):
            jr.train.fit(state, bound, TX, TRAIN, epochs=1, progress=False)


@pytest.mark.parametrize(
    ("tx", "dim", "message"),
    [
        (optax.sgd(0.1), 8, "state.opt_state belongs to another optimiser than tx; pass fit the same tx as init"),
        (TX, 4, r"mu.* has shape \[30, 8\], but for these parameters it is \[30, 4\]"),
    ],
)
def test_another_optimisers_state_is_refused(tx, dim, message):
    state = jr.train.init(jax.random.key(0), model_of(), TX)
    other = jr.train.init(jax.random.key(0), model_of(dim=dim), TX)
    with pytest.raises(ValueError, match=message):
        jr.train.fit(other._replace(opt_state=state.opt_state), objective(model_of(dim=dim)), tx, TRAIN, epochs=1)


@pytest.mark.deep
@pytest.mark.parametrize(
    "tx",
    [
        optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
        optax.multi_transform({"a": optax.sgd(0.1), "b": optax.set_to_zero()}, {"user": "a", "item": "b"}),
        optax.GradientTransformation(lambda params: jnp.asarray(np.mean(params["user"])), lambda g, s, p: (g, s)),
    ],
    ids=["accumulated", "injected", "by name", "of values"],
)
def test_states_of_optimisers_of_every_kind_are_taken(tx):
    with jax.numpy_dtype_promotion("standard"):  # optax's affair
        fit(model_of(), tx=tx, epochs=1)


@pytest.mark.parametrize(("options", "message"), [({"mode": "up"}, "mode='up'"), ({"patience": 0}, "patience=0")])
def test_bad_stopping_rules_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        jr.train.EarlyStopping("m", **options)


def test_divergence_names_epoch_and_step_and_keeps_the_last_good_state(tmp_path):
    def explode(variables, key, batch):
        return (variables["params"]["x"] ** 2).sum()

    tx = optax.sgd(-10.0)
    start = loop.State(
        {"params": {"x": jnp.ones(2, jnp.float32)}}, tx.init(jnp.ones(2)), jax.random.key(0), jnp.zeros((), jnp.int32)
    )
    checkpoint = jr.train.Checkpoint(tmp_path / "run")
    with pytest.raises(jr.train.DivergenceError, match=r"loss is inf at epoch 3, step 4 of 6.*learning rate") as error:
        jr.train.fit(start, explode, tx, TRAIN, epochs=9, batch_size=75, checkpoint=checkpoint, progress=False)
    assert isinstance(error.value, ValueError)
    assert int(error.value.state.epoch) == 2
    assert np.isfinite(error.value.state.variables["params"]["x"]).all()
    kept = checkpoint.restore(Progress(start, start, {}, jr.train.Log(), 0, (0, checksum(start.variables))), {})
    assert int(kept.state.epoch) == 2


# ---------------------------------------------------------------------- checkpoints


def test_a_resumed_run_gives_bit_identical_results_log_and_best_state(tmp_path):
    model = model_of()

    def options(epochs, checkpoint=None):
        def validate(variables):
            return {"norm": float(jnp.abs(variables["params"]["item"]).sum())}

        stopping = jr.train.EarlyStopping("norm", mode="min", patience=4)
        return {"epochs": epochs, "validate": validate, "stopping": stopping, "checkpoint": checkpoint}

    whole, log = fit(model, **options(6))
    fit(model, **options(3, jr.train.Checkpoint(tmp_path / "run")))
    resumed, rest = fit(model, **options(6, jr.train.Checkpoint(tmp_path / "run")))
    assert same(whole, resumed)
    assert jax.random.key_data(whole.key).tolist() == jax.random.key_data(resumed.key).tolist()
    for name in ("loss", "norm"):
        assert log.column(name) == rest.column(name)


def test_finished_run_comes_back_without_training(tmp_path):
    checkpoint = jr.train.Checkpoint(tmp_path / "run")
    done, log = fit(model_of(), checkpoint=checkpoint)
    again, same_history = fit(model_of(), checkpoint=checkpoint, callbacks=[lambda *_: pytest.fail("trained")])
    assert same(done, again)
    assert log.records == same_history.records


def test_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint = jr.train.Checkpoint(tmp_path / "run")
    fit(model_of(), checkpoint=checkpoint)
    for options, message in (
        ({"batch_size": 64}, "batch_size=128 instead of 64"),
        ({"examples": partial(jr.train.groups, n=4)}, "examples=.singles #.* instead of .groups\\(n=4\\)"),
        ({"every": 2}, "every=1 instead of 2"),
        ({"train": TEST}, "with train="),
        ({"tx": optax.sgd(0.1)}, "with optimizer="),
        ({"tx": optax.adam(0.02)}, "with optimizer="),
        (
            {"validate": lambda _: {"a": 1.0}, "stopping": jr.train.EarlyStopping("a")},
            "stopping=None instead of .*patience=5",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model_of(), checkpoint=checkpoint, **options)
    with pytest.raises(ValueError, match="with key="):
        fit(model_of(), seed=1, checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"objective='pairwise_objective\(loss=bpr.*instead of .*\(loss=hinge"):
        fit(model_of(), jr.losses.hinge, checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"dim = 8 .*instead of .* dim = 4 "):
        fit(model_of(dim=4), checkpoint=checkpoint)


def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "file").touch()
    seen = []
    for place in ("file", "file/run"):
        with pytest.raises(OSError, match="file"):
            fit(model_of(), checkpoint=jr.train.Checkpoint(tmp_path / place), callbacks=[lambda *_: seen.append(1)])
    assert not seen


def test_half_written_checkpoint_is_passed_over(tmp_path):
    checkpoint = jr.train.Checkpoint(tmp_path / "run")
    fit(model_of(), epochs=2, checkpoint=checkpoint)
    latest = tmp_path / "run" / "2"
    broken = tmp_path / "run" / "3.orbax-checkpoint-tmp-1"
    shutil.copytree(latest, broken)
    shutil.rmtree(broken / "arrays")
    resumed, _ = fit(model_of(), epochs=3, checkpoint=checkpoint)
    assert same(resumed, fit(model_of(), epochs=3)[0])


KILLED = """
import os, signal, sys
from functools import partial
import jax, numpy as np, optax
import jaxrec as jr
from jaxrec.data import synthetic

folder, os.environ["DIE_AT"], out = sys.argv[1:]
train, _ = synthetic.checkerboard(30)
model = jr.models.MF(30, 30, dim=8, scale=0.1)
calls = 0

def count(_):
    global calls
    calls += 1
    if calls == int(os.environ["DIE_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)

def objective(variables, key, batch):
    jax.debug.callback(count, key[None].shape[0], ordered=True)
    sample = partial(jr.sampling.uniform, n_items=30, n=4)
    return jr.train.pairwise_objective(variables, key, batch, model=model, loss=jr.losses.bpr, sample=sample)

tx = optax.adam(0.03)
state = jr.train.init(jax.random.key(0), model, tx)
checkpoint = jr.train.Checkpoint(folder)
state, log = jr.train.fit(
    state, objective, tx, train, epochs=4, batch_size=32, checkpoint=checkpoint, progress=False
)
leaves = jax.tree.leaves((state.variables, state.opt_state))
np.savez(out, *leaves, loss=np.array(log.column("loss")[1]))
"""


@pytest.mark.deep
def test_run_killed_in_the_middle_of_an_epoch_resumes_bit_for_bit(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(jr.__file__).parents[1])}
    steps = -(-TRAIN.n_pairs // 32)

    def run(folder, die_at, out):
        command = [sys.executable, "-c", KILLED, str(tmp_path / folder), str(die_at), str(tmp_path / out)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    whole = run("whole", 0, "whole.npz")
    assert whole.returncode == 0, whole.stderr
    killed = run("killed", 2 * steps + steps // 2, "killed.npz")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.npz").exists()
    assert (tmp_path / "killed" / "2").exists()
    assert not (tmp_path / "killed" / "3").exists()
    resumed = run("killed", 0, "killed.npz")
    assert resumed.returncode == 0, resumed.stderr
    expected, found = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "killed.npz")
    assert expected.files == found.files
    for name in expected.files:
        np.testing.assert_array_equal(expected[name], found[name])


# ---------------------------------------------------------------------- no silent errors


SCALE = 1.0


def scaled_bpr(pos, neg, *, where=None):
    return SCALE * jr.losses.bpr(pos, neg, where=where)


@pytest.mark.deep
def test_a_changed_global_is_compiled_again(monkeypatch):
    first = fit(model_of(), scaled_bpr, epochs=1)[1].records[0]["loss"]
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert fit(model_of(), scaled_bpr, epochs=1)[1].records[0]["loss"] == pytest.approx(3 * first, rel=0.1)


@pytest.mark.deep
def test_values_that_the_objective_itself_changes_cause_no_warning_and_no_compilation():
    shapes = []

    def noted(pos, neg, *, where=None):
        shapes.append(pos.shape)
        return jr.losses.bpr(pos, neg, where=where)

    fit(model_of(), noted, epochs=3)
    assert len(shapes) <= 3  # one tracing


@pytest.mark.deep
def test_names_that_a_record_has_are_refused():
    with pytest.raises(ValueError, match="validate gives 'loss', which the record already has"):
        fit(model_of(), validate=lambda _: {"loss": 1.0})


@pytest.mark.deep
def test_a_global_that_changes_during_training_causes_a_warning(monkeypatch):
    def change(state, record):
        monkeypatch.setitem(globals(), "SCALE", SCALE * 3)

    with pytest.warns(UserWarning, match="reads from a global or a closure has changed during training") as said:
        _, log = fit(model_of(), scaled_bpr, epochs=3, callbacks=[change])
    losses = log.column("loss")[1]
    assert len(said) == 1 and losses[1] > 2 * losses[0] and losses[2] > 2 * losses[1]


@pytest.mark.deep
@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_sizes_of_numpy_integers_are_checked(kind):
    small = jr.models.MF(kind(20), kind(30), dim=kind(4))
    with pytest.raises(ValueError, match="the model's n_users is 20, but train's is 30"):
        fit(small)
    sample = partial(jr.sampling.uniform, n_items=kind(10), n=2)
    with pytest.raises(ValueError, match="n_items of uniform is for n_items=10, but train has 30"):
        jr.train.fit(
            jr.train.init(jax.random.key(0), model_of(), TX),
            partial(jr.train.pairwise_objective, model=model_of(), loss=jr.losses.bpr, sample=sample),
            TX,
            TRAIN,
            epochs=1,
        )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -2.0], r"train.weights\[1\] is -2.0 \(1 such\); .* finite and 0 or more"),
        ([np.nan, np.nan], r"train.weights\[0\] is nan \(2 such\)"),
        ([np.inf, 1.0], r"train.weights\[0\] is inf"),
        ([0.0, 0.0], "train.weights are all 0"),
    ],
)
def test_weights_that_would_spoil_the_loss_are_refused(weights, message):
    train = dataclasses.replace(
        jr.Interactions.from_pairs([0, 1], [0, 1], n_users=30, n_items=30), weights=np.float32(weights)
    )
    for call in (lambda: fit(model_of(), train=train), lambda: jr.train.singles(train)):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_metric_that_is_never_a_number_is_an_error_that_carries_the_state():
    rule = jr.train.EarlyStopping("a", patience=2)
    with pytest.raises(jr.train.DivergenceError, match="a was not a number at any of 2 validations") as error:
        fit(model_of(), epochs=5, validate=lambda _: {"a": np.nan}, stopping=rule)
    assert same(error.value.state, fit(model_of(), epochs=2)[0]) and len(error.value.log.records) == 2
    values = iter([np.nan, 0.5, np.nan])
    state, _ = fit(model_of(), validate=lambda _: {"a": next(values)}, stopping=rule)
    assert int(state.epoch) == 2


def test_ctrl_c_carries_state_and_log():
    def validate(_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"a": 1.0}

    calls = []
    with pytest.raises(jr.train.Interrupted, match=r"training was interrupted; \.state and .log") as error:
        fit(model_of(), epochs=5, validate=validate)
    assert same(error.value.state, fit(model_of(), epochs=2)[0])
    assert [record["epoch"] for record in error.value.log.records] == [1, 2]
    again = pickle.loads(pickle.dumps(error.value))
    assert same(again.state, error.value.state) and same(again.best, error.value.best)


@pytest.mark.deep
def test_a_last_step_that_overflows_is_not_a_good_state():
    """The loss is computed before the step, so that all losses of the epoch are finite."""
    blown = optax.GradientTransformation(
        lambda params: jnp.zeros((), jnp.int32),
        lambda grads, count, params: (jax.tree.map(lambda g: jnp.where(count == 7, jnp.inf, 0 * g), grads), count + 1),
    )
    with pytest.raises(jr.train.DivergenceError, match="parameters are not finite after the last step of epoch 2") as e:
        fit(model_of(), tx=blown)  # four steps an epoch
    assert len(e.value.log.records) == 1 and all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(e.value.state.variables)
    )


@pytest.mark.deep
def test_a_divergence_error_crosses_processes():
    with pytest.raises(jr.train.DivergenceError) as error:
        fit(model_of(), lambda pos, neg, *, where=None: pos * jnp.nan)
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == str(error.value) and same(again.state, error.value.state)


@pytest.mark.deep
@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optax.sgd(0.5), optax.contrib.reduce_on_plateau(patience=0, cooldown=1, factor=0.5)),
        optax.polyak_sgd(max_learning_rate=0.1),
        optax.lbfgs(memory_size=2),
    ],
    ids=["reduce_on_plateau", "polyak_sgd", "lbfgs"],
)
def test_transformations_get_the_value_the_gradient_and_the_function(tx):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        _, log = fit(model_of(), tx=tx, epochs=4)
    losses = log.column("loss")[1]
    assert losses[-1] < losses[0]


@pytest.mark.deep
def test_a_batch_without_a_mask_is_all_of_it():
    model, users, items = model_of(), *map(jnp.asarray, TRAIN.pairs())
    variables = model.init(jax.random.key(0), users[:1], items[:1])
    batch = jr.train.Batch.of(users[:8], items[:8])
    masked = jr.train.Batch.of(users[:8], items[:8], where=jnp.ones(8, bool))
    assert jax.tree.structure(batch) == jax.tree.structure(masked)
    jax.tree.map(np.testing.assert_array_equal, batch, masked)
    grouped = jr.train.Batch.of(users[:4], items[:8].reshape(4, 2), weights=jnp.arange(8.0).reshape(4, 2))
    assert [x.shape for x in (grouped.users, grouped.items, grouped.where, grouped.weights)] == [(4, 1)] + [(4, 2)] * 3
    pairs = grouped.pairs()
    assert pairs.users.tolist() == np.repeat(users[:4], 2).tolist() and pairs.items.tolist() == items[:8].tolist()
    how = partial(jr.train.gram_objective, model=model)
    assert how(variables, jax.random.key(1), batch) == how(variables, jax.random.key(1), masked)


WRONG = {
    "every positive against every user": lambda pos, neg, *, where=None: jax.nn.softplus(neg - pos).mean(-1),
    "a mean of its own": lambda pos, neg, *, where=None: jr.losses.bpr(pos, neg).mean(),
    "no reduction": lambda pos, neg, *, where=None: jax.nn.softplus(neg - pos[..., None]),
}


@pytest.mark.deep
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("n", [1, 128])
def test_a_loss_of_the_wrong_shape_is_refused(name, n):
    """With one negative, or as many as positives, the shape is right by chance."""
    sample = partial(jr.sampling.uniform, n_items=30, n=n)
    how = partial(jr.train.pairwise_objective, model=model_of(), loss=WRONG[name], sample=sample)
    with (
        jax.numpy_rank_promotion("allow"),
        pytest.raises(ValueError, match=r"the loss has the wrong shape: with pos \[128, 1\] and neg"),
    ):
        jr.train.fit(jr.train.init(jax.random.key(0), model_of(), TX), how, TX, TRAIN, epochs=1, batch_size=128)


@pytest.mark.deep
def test_frozen_variables_train():
    model = model_of()
    state = jr.train.init(jax.random.key(0), model, TX)
    variables = FrozenDict(state.variables)
    frozen = state._replace(variables=variables, opt_state=TX.init(variables["params"]))
    trained, _ = jr.train.fit(frozen, objective(model), TX, TRAIN, epochs=3, batch_size=128, progress=False)
    assert same(trained, fit(model)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "bpr"}, "loss='bpr'; give a function, such as jaxrec.losses.bpr"),
        (
            {"loss": lambda pos, neg, *, where=None: None},
            "the loss returns NoneType; it must return an array of floats",
        ),
        (
            {"loss": lambda pos, neg, *, where=None: (neg > pos[..., None]).sum(-1, dtype=jnp.int32)},
            "the loss returns int32; it must return an array of floats",
        ),
        ({"tx": 1e-3}, "tx is 0.001; give an optax transformation"),
        ({"model": jr.models.MF}, "model is the class MF; give an instance"),
    ],
)
def test_arguments_of_another_type_are_named(options, message):
    how = {"model": model_of()} | options
    with pytest.raises(TypeError, match=message):
        if how["model"] is jr.models.MF:
            jr.train.init(jax.random.key(0), how["model"], TX)
        fit(**how)


def test_a_sampler_that_is_not_a_function_is_named():
    model = jr.models.MF(TRAIN.n_users, TRAIN.n_items, dim=2)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample="uniform")
    state = jr.train.init(jax.random.key(0), model, TX)
    with pytest.raises(TypeError, match="sample='uniform' of pairwise_objective; give a function, such as"):
        jr.train.fit(state, objective, TX, TRAIN, epochs=1, progress=False)
