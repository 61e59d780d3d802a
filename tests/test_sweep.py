import collections
import contextlib
import dataclasses
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import linen as nn

import jaxrec as jr
from jaxrec import _platform
from jaxrec._log import Log
from jaxrec.data import synthetic
from jaxrec.train.loop import State
from jaxrec.train.runs import Run, Setting, Sweep
from jaxrec.train.sweep import _parts

TRAIN, _ = synthetic.checkerboard(12)
KEYS = jax.random.split(jax.random.key(3), 2)
SAMPLE = partial(jr.sampling.uniform, n_items=TRAIN.n_items, n=2)
MODEL = jr.models.MF(TRAIN.n_users, TRAIN.n_items, dim=4, scale=0.1)
COSINE = jr.models.MF(TRAIN.n_users, TRAIN.n_items, dim=4, scale=0.1, score=jr.models.cosine)
WIDTHS = pytest.mark.parametrize("width", [1, 4], ids=["side by side", "vmapped"])


def objective(model=MODEL, loss=jr.losses.bpr):
    return partial(jr.train.pairwise_objective, model=model, loss=loss, sample=SAMPLE)


def growing(rate, growth):
    """Gradient descent with a weight decay of −growth. Most tests share this setup, because compiling is slow."""
    return MODEL, objective(), optax.chain(optax.add_decayed_weights(-growth), optax.sgd(rate))


def sweep(rates=(0.3,), setup=growing, keys=KEYS, train=TRAIN, **options):
    settings = {"rate": list(rates), "growth": [0.0] * len(rates)}
    options = {"settings": settings, "epochs": 2, "batch_size": 16, "progress": False} | options
    return jr.train.sweep(keys, setup, train, **options)


def single(setup, key, setting, **options):
    recipe = jr.train.Recipe(*setup(**setting))
    state = jr.train.init(key, recipe.model, recipe.tx, parameters=recipe.parameters, constants=recipe.constants)
    options = {"epochs": 2, "batch_size": 16, "progress": False} | options
    return jr.train.fit(state, recipe.objective, recipe.tx, TRAIN, **options)


@contextlib.contextmanager
def compilations():
    """Counts XLA compilations by function."""
    counts = collections.Counter()

    def listen(event, duration, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counts[fun_name] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def close(a, b):
    a, b = ((s.variables, s.opt_state, jax.random.key_data(s.key), s.epoch) for s in (a, b))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


def equal(a, b):
    a, b = (jax.tree.leaves((s.variables, s.opt_state, s.epoch)) for s in (a, b))
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b))


# ---------------------------------------------------------------------- a run is the single run


def margins_and_decay(rate, l2, margins):
    loss = partial(jr.losses.mml, margins=margins, weights=(0.3, 0.7), negative_weight=2.0)
    return COSINE, objective(COSINE, loss), optax.chain(optax.add_decayed_weights(l2), optax.adam(rate))


def dense_adam(rate):
    return MODEL, objective(), jr.optim.rowwise.adam(rate)


def lazy_adam(rate, margin):
    loss = partial(jr.losses.hinge, margin=margin)
    return jr.train.Recipe(MODEL, objective(MODEL, loss), jr.optim.rowwise.lazy_adam(rate))


def learned_boundary(alpha):
    def boundaries(variables, batch, negatives):
        return {"boundary": variables["params"]["boundary"][batch.users]}

    loss = partial(jr.losses.uib, alpha=alpha)
    whole = partial(objective(MODEL, loss), arguments=boundaries)
    return jr.train.Recipe(MODEL, whole, optax.sgd(0.3), parameters={"boundary": jnp.zeros(TRAIN.n_users)})


class OfFeatures(nn.Module):
    def setup(self):
        self.user, self.layer = nn.Embed(TRAIN.n_users, 2), nn.Dense(2)
        self.features = self.variable("features", "table", jnp.zeros, (TRAIN.n_items, 3))

    def __call__(self, users, items):
        return (self.user(users) * self.layer(self.features.value[items])).sum(-1)


FEATURES = np.random.default_rng(0).normal(size=(TRAIN.n_items, 3)).astype(np.float32)


def of_features(rate, table):
    model = OfFeatures()
    return jr.train.Recipe(model, objective(model), optax.sgd(rate), constants={"features": {"table": table}})


@pytest.mark.parametrize(
    ("setup", "settings", "options"),
    [
        (
            margins_and_decay,
            {"rate": [0.03, 0.1], "l2": [0.0, 0.5], "margins": np.array([[0.2, 0.6], [0.5, 0.9]])},
            {"width": 4},
        ),
        pytest.param(dense_adam, {"rate": [0.03, 0.1]}, {"width": 4, "batch_size": 2}, marks=pytest.mark.deep),
        (lazy_adam, {"rate": [0.03, 0.1], "margin": [0.5, 1.0]}, {"width": 4, "batch_size": 2}),
        pytest.param(
            learned_boundary,
            {"alpha": [0.5, 0.8]},
            {"width": 1, "batch_size": 4, "examples": partial(jr.train.groups, n=3)},
            marks=pytest.mark.deep,
        ),
        pytest.param(partial(of_features, table=FEATURES), {"rate": [0.03, 0.1]}, {"width": 4}, marks=pytest.mark.deep),
    ],
)
def test_a_run_is_the_single_run_of_its_setting_and_key(setup, settings, options):
    setting = {name: np.asarray(values)[1] for name, values in settings.items()}
    setting = {name: value if np.ndim(value) else float(value) for name, value in setting.items()}
    with jax.numpy_dtype_promotion("standard"):  # optax raises an int32 count to a float power
        found = sweep(setup=setup, settings=settings, **options)
        state, log = single(setup, KEYS[1], setting, **{k: v for k, v in options.items() if k != "width"})
    assert not equal(found.state(1), found.state(3)) and not equal(found.state(2), found.state(3))
    close(found.state(3), state)
    losses = [record["loss"] for record in log.records]
    np.testing.assert_allclose(found.runs[3].log.column("loss")[1], losses, rtol=1e-5)


@pytest.mark.deep
@pytest.mark.every_case
@WIDTHS
def test_runs_of_a_model_of_histories_are_the_single_runs(width):
    model = jr.models.SimpleX(TRAIN.n_users, TRAIN.n_items, dim=4, scale=0.1, pool=jr.models.UserAttention())
    examples = partial(jr.train.singles, histories=TRAIN)

    def setup(rate):
        return model, objective(model), optax.sgd(rate)

    rates = [0.3, 0.1]
    found = sweep(setup=setup, settings={"rate": rates}, width=width, examples=examples)
    expected = single(setup, KEYS[1], {"rate": 0.1}, examples=examples)[0]
    close(found.state(3), expected)


@pytest.mark.deep
def test_a_run_continues_in_fit():
    found = sweep(epochs=1)
    _, goal, tx = growing(**found.runs[1].setting)
    state, _ = jr.train.fit(found.state(1), goal, tx, TRAIN, epochs=2, batch_size=16, progress=False)
    close(state, sweep().state(1))


@pytest.mark.deep
def test_settings_come_in_order_each_under_all_keys():
    found = sweep([0.1, 0.2, 0.3], epochs=1)
    assert [(run.setting["rate"], run.seed) for run in found.runs] == [
        (rate, seed) for rate in (0.1, 0.2, 0.3) for seed in (0, 1)
    ]
    assert (found.n_seeds, len(found.states.epoch)) == (2, 6)
    runs = jax.random.key_data(found.states.key).reshape(3, 2, 2)
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0, 0], runs[0, 1])
    for run in range(6):
        alone = sweep([found.runs[run].setting["rate"]], keys=KEYS[run % 2][None], epochs=1)
        assert equal(found.state(run), alone.state(0))


def test_grid_makes_all_combinations():
    made = jr.train.grid(rate=[1.0, 2.0], margins=[[0.1, 0.2], [0.3, 0.4]])
    assert made["rate"].tolist() == [1, 1, 2, 2]
    assert made["margins"].tolist() == [[0.1, 0.2], [0.3, 0.4]] * 2


def test_a_grid_without_names_is_one_setting_without_values():
    assert jr.train.grid() == {}
    found = sweep(setup=lambda: growing(0.1, 0.0), settings=jr.train.grid(), epochs=1)
    assert (found.settings, len(found.runs)) == (({},), 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"rate=\[\]; give a sequence of at least one value"),
        (0.1, "rate=0.1; give a sequence of at least one value"),
        ([[1], [1, 2]], r"rate = \[\[1\], \[1, 2\]\] is ragged; give each setting the same number"),
    ],
)
def test_a_grid_names_values_that_are_no_sequence(value, message):
    with pytest.raises(ValueError, match=message):
        jr.train.grid(rate=value)


# ---------------------------------------------------------------------- parts, compilations


@pytest.mark.parametrize(
    ("n", "at_once", "width", "expected"),
    [
        (8, None, None, (1, [range(8)])),
        (8, 3, None, (1, [range(3), range(3, 6), range(6, 8)])),
        (10, None, 4, (4, [range(0, 10, 4)])),
        (10, 10, 4, (4, [range(0, 8, 4), range(8, 10, 4)])),
        (10, 8, 8, (5, [range(0, 5, 5), range(5, 10, 5)])),
        (10, 8, 4, (4, [range(0, 8, 4), range(8, 10, 4)])),
        (2, 100, 100, (2, [range(0, 2, 2)])),
    ],
)
def test_parts_are_as_equal_as_can_be(n, at_once, width, expected, monkeypatch):
    monkeypatch.setitem(_platform.SIZES, "sweep_width", _platform.Size(1, 1))
    found = _parts(n, at_once, width)
    assert (found[0], [list(part) for part in found[1]]) == (expected[0], [list(part) for part in expected[1]])


@pytest.mark.deep
def test_parts_give_what_the_whole_gives_and_compile_once():
    def setup(rate, growth):
        return growing(rate, growth)

    keys = jax.random.split(jax.random.key(1), 5)
    whole = sweep(keys=keys)
    with compilations() as counts:
        for at_once in (1, 2, 5):
            part = sweep(keys=keys, at_once=at_once)
            assert all(equal(part.state(run), whole.state(run)) for run in range(5))
    assert not any("of_runs" in name for name in counts)

    assert _parts(5, 4, 2) == (2, [range(0, 4, 2), range(4, 5, 2)])
    with compilations() as counts:
        part = sweep(setup=setup, keys=keys, at_once=4, width=2)
    assert (counts["jit(_epoch_of_runs)"], counts["jit(_init_of_runs)"]) == (1, 1)
    assert len(part.runs) == len(part.states.epoch) == 5
    for run in range(5):
        close(part.state(run), whole.state(run))


@pytest.mark.deep
def test_arrays_bound_to_setup_are_arguments_and_there_may_be_no_settings():
    def setup(*, table):
        sample = partial(jr.sampling.popularity, table=table, n=2)
        whole = partial(jr.train.pairwise_objective, model=MODEL, loss=jr.losses.bpr, sample=sample)
        return MODEL, whole, optax.sgd(0.5)

    def run(train):
        bound = partial(setup, table=jr.sampling.popularity_table(train))
        return sweep(setup=bound, settings=None, epochs=1)

    first = run(TRAIN)
    with compilations() as counts:
        second = run(TRAIN.select(np.asarray(TRAIN.pairs()[1]) < 6))
    assert not any("of_runs" in name for name in counts)
    assert not equal(first.state(0), second.state(0))
    assert (first.settings, len(first.runs)) == (({},), 2)
    assert "1 setting x 2 seeds" in repr(first)


# ---------------------------------------------------------------------- divergence


@pytest.mark.deep
@WIDTHS
def test_a_run_that_diverges_causes_a_warning_and_affects_no_other(width):
    def size(variables):
        return {"size": jnp.abs(variables["params"]["user"]).max()}

    options = {"epochs": 4, "width": width, "validate": size}
    growth = 1e18 if jax.config.jax_enable_x64 else 1e4  # floats overflow in the third epoch
    with pytest.warns(jr.train.DivergenceWarning) as caught:
        found = sweep(settings={"rate": [0.3, 0.01], "growth": [0.0, growth]}, **options)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "2 of 4 runs" in message and f"run 2 (rate=0.01, growth={growth:g}, seed 0): the loss is" in message
    assert "clip" in message
    assert caught[0].filename == __file__

    bad = found.runs[2]
    epoch, step, steps = map(int, re.search(r"at epoch (\d+), step (\d+) of (\d+)", bad.diverged).groups())
    assert 1 < epoch < 4
    if width == 1:
        with pytest.raises(jr.train.DivergenceError, match=f"at epoch {epoch}, step {step} of {steps}") as error:
            single(growing, KEYS[0], bad.setting, epochs=4)
        close(found.state(2), error.value.state)
    assert int(found.state(2).epoch) == bad.epoch == epoch - 1
    assert (len(bad.log.records), bad.metrics) == (epoch - 1, {})

    good = sweep([0.3, 0.2] if width > 1 else [0.3], **options)
    for run in (0, 1):
        assert found.runs[run].diverged is None
        assert equal(found.state(run), good.state(run))
        assert found.runs[run].metrics == good.runs[run].metrics
    assert int(found.state(0).epoch) == 4
    assert np.isnan(found.values()).tolist() == [[False, False], [True, True]]


@pytest.mark.deep
def test_all_runs_may_diverge():
    with pytest.warns(jr.train.DivergenceWarning, match="2 of 2"):
        found = sweep([1e30], select="size", validate=lambda v: {"size": 1.0})
    assert (found.table()[0].n, found.table()[0].diverged) == (0, 2)
    assert np.isfinite(found.state(0).variables["params"]["user"]).all()
    assert "nan" in repr(found)
    with pytest.raises(ValueError, match="every setting has NaN"):
        found.best()


# ---------------------------------------------------------------------- validation, selection


@WIDTHS
def test_select_keeps_each_runs_best_epoch(width):
    """Runs are validated in order, so that the test can choose the metrics. Run 2 is best first, run 0 last."""
    values = np.array([[0.1, 0.5, 0.3, 0.7], [0.1, 0.5, 0.5, 0.2], [0.9, 0.5, 0.3, 0.2], [np.nan, 0.0, 0.1, 0.0]])
    dictated = iter(values.T.ravel())
    seen = []

    def validate(variables):
        seen.append(variables["params"]["user"])
        return {"score": next(dictated)}

    found = sweep([0.1, 0.3], epochs=4, validate=validate, select="score", width=width)
    assert [run.epoch for run in found.runs] == [4, 2, 1, 3]
    assert [run.metrics["score"] for run in found.runs] == [0.7, 0.5, 0.9, 0.1]
    for run, epoch in enumerate([4, 2, 1, 3]):
        assert int(found.state(run).epoch) == epoch
        np.testing.assert_array_equal(found.state(run).variables["params"]["user"], seen[4 * (epoch - 1) + run])
        assert found.runs[run].log.column("score")[0] == [1, 2, 3, 4]
        assert found.runs[run].metrics["loss"] == found.runs[run].log.records[epoch - 1]["loss"]


@pytest.mark.every_case
@pytest.mark.parametrize(("select", "copies"), [(None, 2), ("score", 3)])
def test_the_best_states_are_only_kept_to_select(select, copies):
    """A run has its states before and after an epoch, and with `select` the best; one that has ended has one."""
    model = jr.models.MF(TRAIN.n_users, TRAIN.n_items, dim=7)
    shape, counts = (1, TRAIN.n_users, 7), []

    def validate(_):
        counts.append(sum(array.shape == shape for array in jax.live_arrays()))
        return {"score": -len(counts)}  # the first epoch is best

    setup = lambda: (model, objective(model), optax.sgd(0.1))  # noqa: E731
    sweep(setup=setup, settings=None, epochs=3, validate=validate, select=select, at_once=1, width=1)
    assert TRAIN.n_users == TRAIN.n_items  # so that two tables have this shape
    assert (len(counts), counts[2], counts[5]) == (6, 2 * copies, 2 * (copies + 1))


def test_validates_as_often_as_given_and_after_the_last_epoch():
    scores = iter([5.0, 1.0, 2.0, 4.0, 0.0, 3.0])
    found = sweep(epochs=5, every=2, validate=lambda _: {"score": next(scores)})
    assert found.runs[0].log.column("score") == ([2, 4, 5], [5.0, 2.0, 0.0])
    assert [(run.epoch, run.metrics["score"]) for run in found.runs] == [(5, 0.0), (5, 3.0)]
    assert int(found.state(0).epoch) == 5


# ---------------------------------------------------------------------- tables and tests on hand-made metrics


def made(values, shown=("ndcg",)):
    """A sweep with the given metrics [settings, seeds]; runs with NaN diverged."""
    settings = tuple(Setting(rate=0.1 * (place + 1)) for place in range(len(values)))
    runs = tuple(
        Run(setting, seed, Log(), 1, {} if np.isnan(value) else {"ndcg": value}, "so" if np.isnan(value) else None)
        for setting, row in zip(settings, values)
        for seed, value in enumerate(row)
    )
    n = len(runs)
    keys = jnp.tile(jax.random.split(jax.random.key(0), len(values[0])), len(values))
    states = State({"params": {"x": np.arange(n)}}, (), keys, np.ones(n, np.int32))
    return Sweep(runs, states, settings, shown)


def test_table_has_means_and_sample_deviations_over_seeds_that_did_not_diverge():
    rows = made([[0.1, 0.2, 0.6], [0.5, np.nan, 0.9], [np.nan, 0.4, np.nan]]).table("ndcg")
    assert [(row.n, row.diverged) for row in rows] == [(3, 0), (2, 1), (1, 2)]
    np.testing.assert_allclose([row.mean for row in rows], [0.3, 0.7, 0.4])
    np.testing.assert_allclose([row.deviation for row in rows], [math.sqrt(0.14 / 2), math.sqrt(0.08), np.nan])
    assert rows[1].setting == {"rate": 0.2}


def test_best_passes_over_a_setting_with_a_diverged_seed():
    found = made([[0.1, 0.2], [0.5, np.nan], [0.2, 0.3]])
    assert (found.best(), found.best("ndcg", mode="min")) == (2, 0)
    with pytest.raises(ValueError, match="mode='largest'; give"):
        found.best(mode="largest")


def test_paired_test_agrees_with_scipy():
    first, second = (
        np.array([0.31, 0.35, 0.30, 0.41, 0.38, 0.36, 0.33]),
        np.array([0.30, 0.31, 0.32, 0.35, 0.31, 0.33, 0.28]),
    )
    paired = made([first, second]).compare("ndcg", 0, 1)
    t, p = scipy.stats.ttest_rel(first, second)
    np.testing.assert_allclose(paired[:2], [np.mean(first - second), scipy.stats.sem(first - second)])
    np.testing.assert_allclose(paired[2:4], [t, p])
    np.testing.assert_allclose(paired.wilcoxon_p_value, 2 * 3 / 2**7)  # only rank 2 is negative: {}, {1}, {2} of 2**7
    assert "over 7 paired seeds: t = " in repr(paired) and "Wilcoxon p = 0.0" in repr(paired)
    assert (
        made([first, second]).compare(None, {"rate": 0.2}, {"rate": np.float32(0.1)}).difference == -paired.difference
    )


def test_paired_test_by_hand_and_at_its_edges():
    paired = made([[2.0, np.nan, 5.0, 6.0], [1.0, 4.0, 2.0, np.nan]]).compare(None, 0, 1)
    assert (paired.n_seeds, paired.difference, paired.stderr, paired.t) == (2, 2.0, 1.0, 2.0)
    np.testing.assert_allclose(paired.p_value, 1 - 2 / math.pi * math.atan(2))  # one degree of freedom is Cauchy
    assert math.isnan(paired.wilcoxon_p_value) and "Wilcoxon" not in repr(paired)
    same = made([[1.0, 2.0], [1.0, 2.0], [2.0, 3.0]])
    assert same.compare(None, 0, 1)[2:4] == (0.0, 1.0)
    assert same.compare(None, 2, 0)[2:4] == (math.inf, 0.0)
    with pytest.raises(ValueError, match="only 1 seeds have values"):
        made([[1.0, np.nan], [1.0, 2.0]]).compare(None, 0, 1)
    for which in (2, -1, {"rate": 0.7}, {"margin": 0.1}, {}):
        with pytest.raises(ValueError, match="setting"):
            made([[1.0, 2.0], [1.0, 2.0]]).compare(None, 0, which)


def test_another_sweep_is_compared_or_refused():
    mine, other = made([[1.0, 2.0, 4.0], [2.0, 2.0, 2.0]]), made([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0]])
    assert mine.compare(None, 0, 1, other=other).difference == pytest.approx(7 / 3 - 5)
    assert mine.compare(None, 0, other.settings[0], other=other).difference == pytest.approx(7 / 3)
    assert mine.compare(None, mine.settings[0], np.int64(1)).difference == pytest.approx(7 / 3 - 2)
    with pytest.raises(ValueError, match="is a setting of another sweep; pass that sweep as other="):
        mine.compare(None, 0, other.settings[1])
    with pytest.raises(ValueError, match="first and second are both setting 0"):
        mine.compare(None, 0, {"rate": 0.1})
    strange = dataclasses.replace(other, states=other.states._replace(key=jax.random.split(jax.random.key(1), 6)))
    with pytest.raises(ValueError, match="other was trained with other keys"):
        mine.compare(None, 0, 1, other=strange)


def test_evaluate_takes_a_report():
    report = jr.evaluate.Report(np.arange(2), {"ndcg": np.array([0.25, 0.75])}, {"coverage": 0.5}, None, "made")
    tested = made([[0.1, 0.2]]).evaluate(lambda _: report)
    assert tested.runs[0].metrics == {"ndcg": 0.1, "test ndcg": 0.5, "test coverage": 0.5}
    with pytest.raises(TypeError, match="validate gives None; return a mapping from names to numbers, or a Report"):
        made([[0.1, 0.2]]).evaluate(lambda _: None)


@pytest.mark.parametrize("at_once", [None, 2])
def test_an_interrupted_sweep_carries_what_was_trained(at_once):
    calls = iter(range(100))

    def validate(_):
        if next(calls) == 5:  # in the second epoch of the first part
            raise KeyboardInterrupt
        return {"score": 1.0}

    with pytest.raises(jr.train.Interrupted) as stop:
        sweep([0.3, 0.2], validate=validate, epochs=3, at_once=at_once)
    found = stop.value.state
    lengths = [len(run.log.records) for run in found.runs]
    whole = sweep([0.3, 0.2], epochs=max(lengths))
    assert len(found.runs) == 4 and max(lengths) > 0
    assert [run.diverged is None for run in found.runs] == [n > 0 for n in lengths]
    assert [int(found.state(run).epoch) for run in range(4)] == lengths
    assert found.runs[0].log.column("loss")[1] == whole.runs[0].log.column("loss")[1][: lengths[0]]


def test_a_selected_metric_that_is_never_a_number_causes_a_warning():
    with pytest.warns(jr.train.DivergenceWarning, match="score was NaN at every validation of 2 of 2 runs"):
        found = sweep(validate=lambda _: {"score": math.nan}, select="score")
    assert np.isnan(found.values()).all()


def test_evaluate_adds_test_metrics_and_selection_stays_with_validation():
    found = made([[0.1, 0.2], [0.5, 0.6], [0.7, np.nan]])
    tested = found.evaluate(lambda variables: {"ndcg": -int(variables["params"]["x"]), "other": 1.0})
    assert tested.values("test ndcg")[:2].tolist() == [[0, -1], [-2, -3]]
    assert math.isnan(tested.values("test ndcg")[2, 1])
    assert tested.best() == 1 and tested.best("test ndcg") == 0
    assert tested.shown == ("ndcg", "test ndcg")
    assert "test ndcg" not in found.runs[0].metrics
    assert found.evaluate(lambda _: {"ndcg": 9.0}, prefix="").values()[0].tolist() == [9.0, 9.0]


def test_prints_a_table():
    tested = made([[0.1, 0.3], [0.5, np.nan]]).evaluate(lambda _: {"ndcg": 0.25})
    title, head, first, second = repr(tested).splitlines()
    assert title.startswith("Sweep of 2 settings x 2 seeds")
    assert head.split() == ["rate", "ndcg", "test", "ndcg", "seeds", "diverged"]
    assert first.split() == ["0.1", "0.2000", "±", "0.1414", "0.2500", "±", "0.0000", "2", "0"]
    assert second.split() == ["0.2", "0.5000", "±", "nan", "0.2500", "±", "nan", "1", "1"]


def test_to_dataframe_has_a_row_per_run():
    pytest.importorskip("pandas")
    frame = made([[0.1, 0.3], [0.5, np.nan]]).to_dataframe()
    assert frame.columns.tolist() == ["rate", "seed", "epoch", "ndcg", "diverged"]
    assert frame["seed"].tolist() == [0, 1, 0, 1] and frame["ndcg"].isna().tolist() == [False] * 3 + [True]


def test_prints_settings_that_are_vectors():
    settings = ({"margins": np.array([0.25, 0.5]), "n": 2, "on": True},)
    assert "(0.25, 0.5)  2  True" in repr(dataclasses.replace(made([[0.1, 0.3]]), settings=settings))


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": jnp.zeros((2, 2), jnp.uint32)}, "not typed keys; give typed keys"),
        ({"keys": [0, 1]}, "keys are list"),
        ({"keys": jax.random.key(0)}, r"keys have shape \(\); give typed keys \[S\]"),
        ({"keys": KEYS[:0]}, r"keys have shape \(0,\)"),
        ({"keys": KEYS[jnp.array([0, 1, 0])]}, "a key more than once"),
        ({"settings": {"rate": [0.1, 0.2], "l2": [0.1]}}, "lengths {'rate': 2, 'l2': 1}; give one value per setting"),
        ({"settings": {"rate": []}}, "lengths {'rate': 0}"),
        ({"settings": {"rate": 0.1}}, r"settings\['rate'\] = 0.1; give a sequence"),
        ({"settings": {"rate": ["low", "high"]}}, r"settings\['rate'\] = .*no numbers, run a sweep for each"),
        ({"settings": {"rate": [[0.1], [0.1, 0.2]]}}, "is ragged"),
        ({"select": "score"}, "no validate to give it; pass validate="),
        ({"select": "scare", "validate": lambda _: {"score": 1.0}}, "select='scare', but validate gives .'score'"),
        ({"select": "loss", "validate": lambda _: {"score": 1.0}}, "select='loss', but validate gives .'score'"),
        ({"at_once": 0}, "at_once=0; give an integer of 1 or more"),
        ({"width": 0}, "width=0; give an integer of 1 or more"),
        ({"epochs": 0}, "epochs=0; give an integer of 1 or more"),
        ({"train": TRAIN.select(np.zeros(TRAIN.n_pairs, bool))}, "train has no pairs"),
        (
            {"setup": lambda **_: (jr.models.MF(12, 11, dim=4), objective(), optax.sgd(0.1))},
            "n_items is 11, but train's is 12",
        ),
        ({"setup": lambda **_: MODEL}, r"setup returns MF; return \(model, objective, tx\)"),
        ({"setup": lambda **_: (MODEL, objective())}, r"setup returns a tuple of 2"),
    ],
)
def test_bad_input_says_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        sweep(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"setup": 3}, "setup=3; give a function, such as lambda rate"),
        ({"examples": 3}, "examples=3; give a function, such as jaxrec.train.singles"),
        ({"validate": 3}, "validate=3; give a function, such as lambda variables"),
        ({"setup": lambda **_: (MODEL, 3, optax.sgd(0.1))}, "objective=3; give a function, such as functools.partial"),
    ],
)
def test_what_is_no_function_is_named(options, message):
    with pytest.raises(TypeError, match=message) as error:
        sweep(**options)
    assert "cannot be a setting" not in "".join(getattr(error.value, "__notes__", []))


def test_an_error_explains_settings_that_set_a_shape():
    def setup(dim):
        return jr.models.MF(TRAIN.n_users, TRAIN.n_items, dim=dim), objective(), optax.sgd(0.1)

    with pytest.raises(TypeError) as error:
        sweep(setup=setup, settings={"dim": [2, 4]})
    assert "cannot be a setting" in error.value.__notes__[0]


def test_errors_for_unknown_names_list_the_known_ones():
    found = made([[1.0, 2.0]])
    for ask in (found.values, found.table, found.best):
        with pytest.raises(ValueError, match=r"metric='mrr' is unknown; the runs have \['ndcg'\]"):
            ask("mrr")
    for run in (2, -1):
        with pytest.raises(ValueError, match=f"run={run}; give an integer from 0 to 1"):
            found.state(run)


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="with 64-bit numbers they fit")
def test_integers_that_jax_would_wrap_are_refused():
    with pytest.raises(ValueError, match=r"settings\['n'\] = .*; give integers that fit int32"):
        jr.train.sweep(jax.random.split(jax.random.key(0), 2), lambda n: None, TRAIN, settings={"n": [2**40]}, epochs=1)
