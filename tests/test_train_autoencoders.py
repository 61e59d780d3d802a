"""Training of autoencoders: annealing, the mean over users, micro-batches, and parts in turn."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TX
from test_valid import PARAMS, TWO, variables

import jaxrec as jr
from jaxrec import train
from jaxrec._log import History
from jaxrec.data import splits, synthetic
from jaxrec.models import VALID, MultDAE, MultVAE, RecVAE, for_users, popularity
from jaxrec.train import loop
from jaxrec.train.autoencoders import _part, alternating, annealed, objective


def batch_of(users, where, step=0):
    users = jnp.asarray(users, jnp.int32)
    return train.Batch(users, jnp.zeros((len(users), 0), jnp.int32), None, jnp.asarray(where), step)


@dataclasses.dataclass(frozen=True)
class Halves:
    """A model whose two halves are entries of tables."""

    def apply(self, variables, users, *, method, at_random, rngs):
        assert method == "bound" and at_random and set(rngs) == {"noise"}
        return variables["nll"][users], variables["kl"][users]


def test_annealing_grows_by_the_total_whatever_the_cap():
    """Trap 16: a slope of 1 / total, not cap / total; the first step has 1 / total."""
    found = [float(annealed(t - 1, cap=0.2, total=10_000)) for t in (1, 1000, 2000, 5000)]
    assert found == pytest.approx([1e-4, 0.1, 0.2, 0.2])
    assert float(annealed(jnp.array(5, jnp.int32), cap=jnp.array(1.0), total=3)) == 1
    with pytest.raises(ValueError, match="total=-5; give"):
        annealed(0, total=-5)


@pytest.mark.parametrize("micro_batch", [None, 2, 4, 100])
def test_the_loss_is_a_mean_over_the_users_there(micro_batch):
    """Trap 17: padding weighs nothing, whatever stands there; trap 19: a mean."""
    halves = {"nll": jnp.array([1.0, 2.0, 4.0, jnp.nan]), "kl": jnp.array([10.0, 20.0, 30.0, jnp.inf])}
    batch = batch_of([2, 0, 1, 3], [True, True, True, False], step=4)
    found = objective(halves, jax.random.key(0), batch, model=Halves(), total=10, micro_batch=micro_batch)
    assert float(found) == pytest.approx(7 / 3 + 0.5 * 20)
    empty = batch_of([0, 1], [False, False])
    assert float(objective(halves, jax.random.key(0), empty, model=Halves())) == 0


@pytest.mark.deep
def test_micro_batches_have_the_loss_and_gradient_of_the_whole():
    """Trap 17, with noise; trap 18: gradients are finite where a row is empty, and where dropout takes all of one."""
    model, key = TWO.clone(dropout=0.9), jax.random.key(0)

    def loss(params, history, batch, micro_batch):
        whole = {"params": params, "history": history}
        return objective(whole, key, batch, model=model, cap=0.7, total=1, micro_batch=micro_batch)

    with jax.enable_x64(True):
        history = variables(model)["history"]
        batch = batch_of([4, 1, 2, 0, 3, 3], np.arange(6) < 5)
        graded = jax.jit(jax.value_and_grad(loss), static_argnums=3)
        whole, parts = (graded(PARAMS, history, batch, micro_batch) for micro_batch in (None, 3))
        for name, a in whole[1].items():
            assert np.isfinite(a).all()
            np.testing.assert_allclose(parts[1][name], a, rtol=1e-11, atol=1e-13, err_msg=name)
        assert float(parts[0]) == pytest.approx(float(whole[0]), rel=1e-13)


def test_batches_of_positives_and_unequal_micro_batches_are_refused():
    halves = {"nll": jnp.ones(3), "kl": jnp.ones(3)}
    for size in (2, 0):
        with pytest.raises(ValueError, match=f"micro_batch={size} does not divide the batch of 3 users; give"):
            objective(halves, jax.random.key(0), batch_of([0, 1, 2], [True] * 3), model=Halves(), micro_batch=size)
    users = jnp.zeros(4, jnp.int32)
    for items in (users, jnp.zeros((4, 2), jnp.int32)):
        positives = train.Batch(users, items, None, items == 0)
        with pytest.raises(ValueError, match="users alone are needed: call fit with group=0"):
            objective(halves, jax.random.key(0), positives, model=Halves())


# ---------------------------------------------------------------------- whole runs

BOARD, DIAGONAL = synthetic.checkerboard(30)
OPTIONS = {"epochs": 40, "batch_size": 10, "progress": False}


def recovered(model, variables):
    return jr.evaluate.full_ranking(model, variables, BOARD, DIAGONAL, ks=(1,)).means["hit_rate@1"]


@pytest.mark.parametrize(
    "model", [pytest.param(MultVAE(BOARD, dim=4, width=8), marks=pytest.mark.deep), MultDAE(BOARD, dim=8)]
)
def test_recovers_the_diagonal_withheld_from_the_checkerboard(model):
    state = train.init(jax.random.key(0), model, TX)
    state, history = train.fit(state, partial(objective, model=model, cap=0.2), TX, BOARD, group=0, **OPTIONS)
    assert recovered(model, state.variables) == 1
    assert history.records[-1]["loss"] < history.records[0]["loss"]


@pytest.mark.deep
def test_encoder_and_decoder_are_trained_in_turn():
    """The prior is the encoder of the epoch, and two programs serve all epochs."""
    model, seen = RecVAE(BOARD, dim=4, width=8), []

    def validate(variables):
        for old, new in zip(*map(jax.tree.leaves, (variables["old"], variables["params"]["encoder"])), strict=True):
            np.testing.assert_array_equal(old, new)
        seen.append(loop._epoch._cache_size())
        return {"recovered": recovered(model, variables)}

    stopping = train.EarlyStopping("recovered", patience=3)
    options = OPTIONS | {"epochs": 30, "validate": validate, "stopping": stopping, "encoder_passes": 2}
    state, history = alternating(jax.random.key(0), model, TX, BOARD, **options)
    best = int(np.argmax(history.column("recovered")[1])) + 1
    assert recovered(model, state.variables) == 1 and int(state.epoch) == 3 * best
    assert len(history.records) == best + 3 and len(set(seen)) == 1
    assert history.names == ["seconds", "encoder_loss", "loss", "recovered"]


def test_the_decoder_is_trained_without_dropout(monkeypatch):
    seen = []

    def fit(state, objective, tx, train, *, epochs, **options):
        seen.append((objective.keywords["model"].dropout, epochs - int(state.epoch)))
        return state._replace(epoch=jnp.int32(epochs)), History().append({"epoch": epochs, "loss": 1.0, "seconds": 0.0})

    monkeypatch.setattr(train.autoencoders, "fit", fit)
    alternating(jax.random.key(0), RecVAE(BOARD, dim=2, width=3), TX, BOARD, epochs=2, progress=False)
    assert seen == [(0.5, 3), (0.0, 1)] * 2


@pytest.mark.parametrize("encoder", [True, False])
def test_each_turn_moves_its_part_alone(encoder):
    params = {"encoder": {"head": jnp.ones(2)}, "item": jnp.ones(3), "item_bias": jnp.ones(1)}
    tx = _part(TX, encoder=encoder)
    moved, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert bool(moved["encoder"]["head"].any()) == encoder
    assert bool(moved["item"].any()) == bool(moved["item_bias"].any()) == (not encoder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0; give"),
        ({"encoder_passes": 0}, "encoder_passes=0; give"),
        ({"stopping": train.EarlyStopping("x")}, "pass validate="),
    ],
)
def test_bad_arguments_of_alternating_are_named(options, message):
    with pytest.raises(TypeError, match="model=MultVAE has no old encoder"):
        alternating(jax.random.key(0), MultVAE(BOARD, dim=2, width=3), TX, BOARD, **OPTIONS)
    with pytest.raises(ValueError, match=message):
        alternating(jax.random.key(0), RecVAE(BOARD), TX, BOARD, **OPTIONS | options)


@pytest.mark.parametrize("name", ["EASE", "MultDAE", pytest.param("VALID", marks=pytest.mark.deep)])
def test_users_held_out_whole_are_found_by_their_histories(name):
    """Of the 15 items of a user's colour 12 are known, 2 to be found, 1 on the diagonal; all are equally popular."""
    order = partial(splits.random_order, key=jax.random.key(0))
    parts = splits.held_out_users(jax.random.key(0), BOARD, n_valid=4, n_test=10, order=order)
    if name == "EASE":
        model, variables = jr.solvers.ease.fit(parts.train, regularization=10.0)
    else:
        model = MultDAE(parts.train, dim=8) if name == "MultDAE" else VALID(parts.train, dim=8, n_interests=2, width=8)
        state = train.init(jax.random.key(0), model, TX)
        state, _ = train.fit(state, partial(objective, model=model), TX, parts.train, group=0, **OPTIONS)
        variables = state.variables
    for history, target in ((parts.valid_history, parts.valid), (parts.test_history, parts.test)):
        report = jr.evaluate.full_ranking(*for_users(model, variables, history), history, target, ks=(3,))
        rival = jr.evaluate.full_ranking(*popularity(parts.train), history, target, ks=(3,))
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


def test_alternating_says_a_metric_that_is_never_a_number_and_carries_what_was_trained():
    model = RecVAE(BOARD, dim=2, width=3)
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
    assert len(stopped.value.history.records) == 1 and int(stopped.value.state.epoch) == 2
    jax.tree.map(np.testing.assert_array_equal, stopped.value.state.variables, seen[0])
    for name, value in (("epochs", 2.0), ("encoder_passes", "1")):
        with pytest.raises(ValueError, match=f"^{name}=.*; give an integer"):
            run(**{name: value})
