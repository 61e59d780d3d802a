"""Training of autoencoders: annealing, the mean over users, and parts that are trained alternately."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import TX
from support.valid import PARAMS, TRAIN, TWO

import jaxrec as jr
from jaxrec import train
from jaxrec.data import splits, synthetic
from jaxrec.models import VALID, MultDAE, MultVAE, RecVAE, popularity
from jaxrec.train import Log, loop
from jaxrec.train.autoencoders import _part, alternating, annealed, objective


def batch_of(users, where, step=0, known=TRAIN, weights=None):
    """A batch of users with their histories, as `by_user` makes it."""
    users = np.array(users, np.int32)
    batch = train.Batch.of(users, np.zeros(len(users), np.int32), where=where, weights=weights, step=step)
    return batch._replace(histories=known.take(users))


@dataclasses.dataclass(frozen=True)
class Halves:
    """A model whose two halves are entries of tables."""

    def apply(self, variables, users, *, method, histories, rngs):
        assert method == "bound" and histories.n_users == len(users) and set(rngs) == {"noise"}
        return variables["nll"][users], variables["kl"][users]


def test_annealing_grows_by_the_total_for_any_cap():
    """The slope is 1 / total, not cap / total, and the first step has 1 / total."""
    found = [float(annealed(t - 1, cap=0.2, total=10_000)) for t in (1, 1000, 2000, 5000)]
    assert found == pytest.approx([1e-4, 0.1, 0.2, 0.2])
    assert float(annealed(jnp.array(5, jnp.int32), cap=jnp.array(1.0), total=3)) == 1
    with pytest.raises(ValueError, match="total=-5; give"):
        annealed(0, total=-5)


@pytest.mark.deep
def test_the_loss_is_a_mean_over_the_users_of_the_batch():
    """Padding does not count, even if it is NaN. The weights are factors of a mean, not of its denominator."""
    halves = {"nll": jnp.array([1.0, 2.0, 4.0, jnp.nan]), "kl": jnp.array([10.0, 20.0, 30.0, jnp.inf])}
    there = [True, True, True, False]
    run = partial(objective, halves, jax.random.key(0), model=Halves(), total=10)
    assert float(run(batch_of([2, 0, 1, 3], there, step=4))) == pytest.approx(7 / 3 + 0.5 * 20)
    weighted = batch_of([2, 0, 1, 3], there, step=4, weights=np.float32([1, 2, 0, 5]))
    assert float(run(weighted)) == pytest.approx((4 + 2 * 1) / 3 + 0.5 * (30 + 2 * 10) / 3)
    assert float(run(batch_of([0, 1], [False, False]))) == 0


@pytest.mark.deep
def test_a_batch_with_more_pairs_than_its_room_is_not_a_number():
    """Training draws users without replacement. Here the user with 600 items is drawn 30 times."""
    degrees = np.r_[600, np.arange(2, 61) % 4 + 1]
    known = jr.Interactions.from_pairs(
        np.repeat(np.arange(60), degrees), np.concatenate([np.arange(n) for n in degrees]), n_users=60
    )
    examples, model = train.by_user(known), MultDAE(600, dim=2)
    variables = model.init(jax.random.key(0), np.zeros(1, int), np.zeros(1, int))
    run = jax.jit(lambda places: objective(variables, jax.random.key(0), examples.batch(places), model=model))
    examples = jax.tree.map(jnp.asarray, examples)
    assert np.isfinite(run(jnp.arange(30, dtype=jnp.int32))) and np.isnan(run(jnp.zeros(30, jnp.int32)))


@pytest.mark.deep
def test_gradients_are_finite_for_rows_that_are_empty_or_dropped_out_whole():
    model, key = TWO.clone(dropout=0.9), jax.random.key(0)

    def loss(params, batch):
        return objective({"params": params}, key, batch, model=model, cap=0.7, total=1)

    with jax.enable_x64(True):
        batch = batch_of([4, 1, 2, 0, 3, 3], np.arange(6) < 5)
        assert batch.histories.user_degrees[2] == 0
        value, gradient = jax.jit(jax.value_and_grad(loss))(PARAMS, batch)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in gradient.values())


def test_batches_without_histories_are_refused():
    halves = {"nll": jnp.ones(3), "kl": jnp.ones(3)}
    for items in (np.zeros(3, int), np.zeros((3, 2), int)):
        batch = train.Batch.of(np.arange(3), items)
        with pytest.raises(
            ValueError, match=r"^the batch has no histories; call fit with examples=jaxrec\.train\.by_user"
        ):
            objective(halves, jax.random.key(0), batch, model=Halves())


# ---------------------------------------------------------------------- whole runs

BOARD, DIAGONAL = synthetic.checkerboard(30)
OPTIONS = {"epochs": 40, "batch_size": 10, "progress": False}


def recovered(model, variables):
    report = jr.evaluate.full_ranking(model, variables, BOARD, DIAGONAL, ks=(1,), histories=BOARD)
    return report.means["hit_rate@1"]


@pytest.mark.parametrize(
    "model", [pytest.param(MultVAE(30, dim=4, width=8), marks=pytest.mark.deep), MultDAE(30, dim=8)]
)
def test_recovers_the_diagonal_withheld_from_the_checkerboard(model):
    state = train.init(jax.random.key(0), model, TX)
    by_user = {"examples": train.by_user, **OPTIONS}
    state, log = train.fit(state, partial(objective, model=model, cap=0.2), TX, BOARD, **by_user)
    assert recovered(model, state.variables) == 1
    assert log.records[-1]["loss"] < log.records[0]["loss"]


@pytest.mark.deep
def test_encoder_and_decoder_are_trained_alternately():
    """The prior has the encoder of the same epoch, and all epochs share two compiled programs."""
    model, seen = RecVAE(30, dim=4, width=8), []

    def validate(variables):
        for old, new in zip(*map(jax.tree.leaves, (variables["old"], variables["params"]["encoder"])), strict=True):
            np.testing.assert_array_equal(old, new)
        seen.append(loop._epoch._cache_size())
        return {"recovered": recovered(model, variables)}

    stopping = train.EarlyStopping("recovered", patience=3)
    options = OPTIONS | {"epochs": 30, "validate": validate, "stopping": stopping, "encoder_passes": 2}
    state, log = alternating(jax.random.key(0), model, TX, BOARD, **options)
    best = int(np.argmax(log.column("recovered")[1])) + 1
    assert recovered(model, state.variables) == 1 and int(state.epoch) == 3 * best
    assert len(log.records) == best + 3 and len(set(seen)) == 1
    assert log.names == ["encoder_loss", "loss", "seconds", "recovered"]


@pytest.mark.deep
def test_the_decoder_is_trained_without_dropout(monkeypatch):
    seen = []

    def fit(state, objective, tx, train, *, epochs, **options):
        seen.append((objective.keywords["model"].dropout, epochs - int(state.epoch)))
        return state._replace(epoch=jnp.int32(epochs)), Log().append({"epoch": epochs, "loss": 1.0, "seconds": 0.0})

    monkeypatch.setattr(train.autoencoders, "fit", fit)
    alternating(jax.random.key(0), RecVAE(30, dim=2, width=3), TX, BOARD, epochs=2, progress=False)
    assert seen == [(0.5, 3), (0.0, 1)] * 2


@pytest.mark.parametrize("encoder", [True, False])
def test_each_stage_moves_only_its_part(encoder):
    params = {"encoder": {"head": jnp.ones(2)}, "item": jnp.ones(3), "item_bias": jnp.ones(1)}
    tx = _part(TX, encoder=encoder)
    moved, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert bool(moved["encoder"]["head"].any()) == encoder
    assert bool(moved["item"].any()) == bool(moved["item_bias"].any()) == (not encoder)


@pytest.mark.deep
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0; give"),
        ({"encoder_passes": 0}, "encoder_passes=0; give"),
        ({"stopping": train.EarlyStopping("x")}, "pass validate="),
    ],
)
def test_bad_arguments_of_alternating_are_named(options, message):
    with pytest.raises(TypeError, match="model=MultVAE lacks an encoder or an old encoder"):
        alternating(jax.random.key(0), MultVAE(30, dim=2, width=3), TX, BOARD, **OPTIONS)
    with pytest.raises(ValueError, match=message):
        alternating(jax.random.key(0), RecVAE(30), TX, BOARD, **OPTIONS | options)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["EASE", "MultDAE", pytest.param("VALID", marks=pytest.mark.deep)])
def test_users_held_out_whole_are_found_by_their_histories(name):
    """Of 15 items of a user's colour, 12 are known, 2 held out and 1 on the diagonal. All are equally popular."""
    order = partial(splits.random_order, key=jax.random.key(0))
    parts = splits.held_out_users(jax.random.key(0), BOARD, n_valid=4, n_test=10, order=order)
    if name == "EASE":
        model, variables, _ = jr.solvers.ease.fit(parts.train, regularization=10.0)
    else:
        model = MultDAE(30, dim=8) if name == "MultDAE" else VALID(30, dim=8, n_interests=2, width=8)
        state, by_user = train.init(jax.random.key(0), model, TX), {"examples": train.by_user, **OPTIONS}
        state, _ = train.fit(state, partial(objective, model=model), TX, parts.train, **by_user)
        variables = state.variables
    for known, target in ((parts.valid_history, parts.valid), (parts.test_history, parts.test)):
        report = jr.evaluate.full_ranking(model, variables, known, target, ks=(3,), histories=known)
        rival = jr.evaluate.full_ranking(*popularity(parts.train), known, target, ks=(3,))
        assert len(report.users) == (4 if target is parts.valid else 10)
        assert report.means["recall@3"] == 1 and rival.means["recall@3"] < 0.7


def test_annealing_checks_numbers_of_any_library():
    for total in (0, np.float32(-1), float("nan"), np.int64(0)):
        with pytest.raises(ValueError, match=r"^total=.*; give a finite number above 0"):
            annealed(0, total=total)
    with pytest.raises(ValueError, match=r"^cap=nan"):
        annealed(0, cap=float("nan"))
    with jax.enable_x64(True):
        found = annealed(np.int64(4), cap=np.float64(0.2), total=np.int64(10))
    assert found.dtype == np.float32 and float(found) == pytest.approx(0.2)


@pytest.mark.deep
def test_alternating_carries_its_state_if_a_metric_is_never_a_number_or_it_is_interrupted():
    model = RecVAE(30, dim=2, width=3)
    run = partial(alternating, jax.random.key(0), model, TX, BOARD, **OPTIONS | {"epochs": np.int64(2)})
    rule = train.EarlyStopping("x")
    with pytest.raises(ValueError, match=r"^x was not a number at any of 2 validations"):
        run(validate=lambda variables: {"x": float("nan")}, stopping=rule, encoder_passes=1)
    seen = []

    def validate(variables):
        if seen:
            raise KeyboardInterrupt
        seen.append(variables)
        return {"x": 0.0}

    with pytest.raises(train.Interrupted) as stopped:
        run(validate=validate, encoder_passes=1)
    assert len(stopped.value.log.records) == 1 and int(stopped.value.state.epoch) == 2
    jax.tree.map(np.testing.assert_array_equal, stopped.value.state.variables, seen[0])
    for name, value in (("epochs", 2.0), ("encoder_passes", "1")):
        with pytest.raises(ValueError, match=f"^{name}=.*; give an integer"):
            run(**{name: value})


@pytest.mark.deep
def test_a_pass_that_diverges_ends_the_run_with_the_state_before_it():
    """The error carries the state in the form that the run returns, not in that of a pass."""
    board = synthetic.checkerboard(12)[0]
    exploding = optax.chain(optax.scale_by_schedule(lambda count: jnp.where(count < 4, 0.0, 1e30)), optax.sgd(1.0))
    options = {"epochs": 5, "batch_size": 6, "encoder_passes": 1, "progress": False}
    with pytest.raises(train.DivergenceError, match=r"lower the learning rate.*\.state is the last good one") as error:
        alternating(jax.random.key(0), RecVAE(12, dim=2, width=4), exploding, board, **options)
    assert str(error.value).count("last good one") == 1
    assert set(error.value.state.opt_state) == {"encoder_loss", "loss"} and len(error.value.log.records) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(error.value.state.variables))
