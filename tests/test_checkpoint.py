import functools
import itertools
import math
import os
import pathlib
import shutil
import subprocess
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from jax.sharding import NamedSharding, PartitionSpec

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.interactions import DataWarning

TRAIN, _ = synthetic.checkerboard(8)
MODEL = jr.models.MF(8, 8, dim=2, scale=0.1)
TX = optax.sgd(0.1, momentum=0.9)


def pull(variables, key, batch, *, by=1.0):
    del key
    return by * -MODEL.apply(variables, batch.users, batch.items).mean()


def fit(epochs=3, objective=pull, tx=TX, state=None, **options):
    state = jr.train.init(jax.random.key(0), MODEL, tx) if state is None else state
    options = {"batch_size": 16, "progress": False} | options
    return jr.train.fit(state, objective, tx, TRAIN, epochs=epochs, **options)


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.variables, state.opt_state))]


def same(a, b):
    return all(map(np.array_equal, leaves(a), leaves(b)))


@functools.cache
def whole(epochs):
    return fit(epochs)


# ---------------------------------------------------------------------- what identifies a run


def other_rule(metric="a", **more):
    return {"validate": lambda _: {"a": 0.5, "b": 0.5}, "stopping": jr.train.EarlyStopping(metric, **more)}


DIFFERENT = {
    "group": ({}, {"examples": partial(jr.train.groups, n=4)}),
    "no group": ({"examples": partial(jr.train.groups, n=4)}, {}),
    "every": ({"validate": lambda _: {"a": 1.0}}, {"validate": lambda _: {"a": 1.0}, "every": 2}),
    "stopping added": ({}, other_rule()),
    "stopping's metric": (other_rule("a"), other_rule("b")),
    "stopping's mode": (other_rule(), other_rule(mode="min")),
    "stopping's patience": (other_rule(), other_rule(patience=9)),
    "lambdas": (
        {"objective": lambda variables, key, batch: pull(variables, key, batch)},
        {"objective": lambda variables, key, batch: 2 * pull(variables, key, batch)},
    ),
    "learning rate": ({}, {"tx": optax.sgd(0.2, momentum=0.9)}),
    "batch size": ({}, {"batch_size": 8}),
}


@pytest.mark.deep
@pytest.mark.parametrize("name", DIFFERENT)
def test_another_run_is_refused(name, tmp_path):
    first, second = DIFFERENT[name]
    checkpoint = jr.train.Checkpoint(tmp_path)
    fit(1, checkpoint=checkpoint, **first)
    with pytest.raises(ValueError, match=r"holds another run, with .* instead of"):
        fit(2, checkpoint=checkpoint, **second)
    assert len(fit(2, checkpoint=checkpoint, **first)[1].records) == 2


def scaled(variables, key, batch, *, table):
    return table.sum().astype(variables["params"]["item"].dtype) * pull(variables, key, batch)


@pytest.mark.deep
def test_a_changed_entry_of_a_large_array_is_another_run(tmp_path):
    checkpoint = jr.train.Checkpoint(tmp_path)
    table = np.full(2000, 1e-3, np.float32)
    fit(1, partial(scaled, table=table), checkpoint=checkpoint)
    table = table.copy()
    table[1000] = 0
    with pytest.raises(ValueError, match=r"objective='scaled\(table=float32\[2000\]\) #"):
        fit(2, partial(scaled, table=table), checkpoint=checkpoint)


@pytest.mark.deep
def test_another_start_is_another_run_and_a_later_state_of_the_run_is_not(tmp_path):
    checkpoint, state = jr.train.Checkpoint(tmp_path), jr.train.init(jax.random.key(0), MODEL, TX)
    larger = state._replace(variables=jax.tree.map(lambda x: 100 * x, state.variables))
    two, _ = fit(2, state=state, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="holds the epochs 0 to 2 of a run that started with other variables"):
        fit(3, state=larger, checkpoint=checkpoint)
    assert same(fit(3, state=two, checkpoint=checkpoint)[0], whole(3)[0])
    five, _ = fit(5, state=state)
    with pytest.raises(ValueError, match="than this state of epoch 5"):
        fit(6, state=five, checkpoint=checkpoint)


@pytest.mark.deep
def test_settings_inside_objects_of_optax_identify_a_run(tmp_path):
    def accumulated(rate, every):
        return optax.MultiSteps(optax.sgd(rate), every).gradient_transformation()

    checkpoint = jr.train.Checkpoint(tmp_path)
    with jax.numpy_dtype_promotion("standard"):
        fit(1, tx=accumulated(0.1, 1), checkpoint=checkpoint)
        with pytest.raises(ValueError, match="holds another run, with optimizer="):
            fit(2, tx=accumulated(0.2, 1), checkpoint=checkpoint)


@pytest.mark.deep
def test_numpy_numbers_of_a_rule_are_the_same_rule(tmp_path):
    checkpoint, validate = jr.train.Checkpoint(tmp_path, keep=np.int64(1)), lambda _: {"a": 1.0}
    rule = jr.train.EarlyStopping("a", patience=np.int64(5), min_delta=np.float32(0))
    fit(1, checkpoint=checkpoint, validate=validate, stopping=rule)
    fit(2, checkpoint=checkpoint, validate=validate, stopping=jr.train.EarlyStopping("a"))


@pytest.mark.parametrize(
    ("directory", "error"), [(None, TypeError), (3, TypeError), ("", ValueError), ("gs://bucket/run", ValueError)]
)
def test_a_directory_that_is_not_a_folder_is_named(directory, error):
    with pytest.raises(error, match=r"directory=.*; give the path of a"):
        jr.train.Checkpoint(directory)


# ---------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of epochs 2 and 3."""
    folder = tmp_path_factory.mktemp("saved")
    fit(3, checkpoint=jr.train.Checkpoint(folder))
    return folder


def files(folder, step="3"):
    return sorted(path.relative_to(folder) for path in (folder / step).rglob("*") if path.is_file())


def resumes_rightly(folder):
    """Resumes to epoch 4 and compares the result with a whole run. Returns the warnings, or the error."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            state, log = fit(4, checkpoint=jr.train.Checkpoint(folder))
        except ValueError as error:
            assert "damaged" in str(error), error
            return str(error)
    assert same(state, whole(4)[0]), "resumed to another result without an error"
    assert log.column("loss") == whole(4)[1].column("loss")
    return "; ".join(str(one.message) for one in said if issubclass(one.category, DataWarning))


def removed(path, rng):
    path.unlink()


def emptied(path, rng):
    path.write_bytes(b"")


def truncated(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flipped(path, rng):
    data = bytearray(path.read_bytes())
    if data:
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(bytes(data))


# Exceptions in orbax's own threads when it cannot read a file.
LEFT = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.deep
@LEFT
@pytest.mark.parametrize("harm", [removed, emptied, truncated, flipped], ids=lambda f: f.__name__)
def test_every_file_of_a_checkpoint_may_be_damaged(harm, saved, tmp_path):
    """The result is that of a whole run, or an error names the damage. Using an older checkpoint causes a warning."""
    said, rng = [], np.random.default_rng(0)
    for number, file in enumerate(files(saved)):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        harm(folder / file, rng)
        said.append(resumes_rightly(folder))
    assert any("the checkpoint of epoch 3" in one and "resumes from epoch 2" in one for one in said), said


@LEFT
@pytest.mark.deep
def test_flipped_bits_never_change_a_result_without_an_error(saved, tmp_path):
    rng, paths = np.random.default_rng(1), files(saved)
    sizes = np.array([(saved / path).stat().st_size for path in paths])
    for number in range(60):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        flipped(folder / paths[rng.choice(len(paths), p=sizes / sizes.sum())], rng)
        resumes_rightly(folder)


@pytest.mark.deep
def test_without_its_arrays_a_checkpoint_is_replaced_by_the_one_before(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "3" / "arrays")
    assert "the checkpoint of epoch 3 in" in resumes_rightly(tmp_path / "run")
    assert resumes_rightly(tmp_path / "run") == ""  # it has been written again


def test_an_error_says_if_all_checkpoints_are_damaged(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    for step in ("2", "3"):
        shutil.rmtree(tmp_path / "run" / step / "arrays")
    with pytest.raises(ValueError, match=r"epoch 3 .* is damaged .*epoch 2 .* is damaged .*none is intact; remove"):
        fit(4, checkpoint=jr.train.Checkpoint(tmp_path / "run"))


# ---------------------------------------------------------------------- the rest


@pytest.mark.deep
def test_the_best_state_is_not_stored_twice_if_it_is_the_last(tmp_path):
    wide = jr.models.MF(8, 8, dim=1000, scale=0.1)  # wide, so that the files hold little but the arrays

    def size(name, metric):
        values = itertools.count()
        jr.train.fit(
            jr.train.init(jax.random.key(0), wide, TX),
            lambda variables, key, batch: -wide.apply(variables, batch.users, batch.items).mean(),
            TX,
            TRAIN,
            epochs=2,
            batch_size=16,
            progress=False,
            checkpoint=jr.train.Checkpoint(tmp_path / name, keep=1),
            validate=lambda _: {"a": metric * next(values)},
            stopping=jr.train.EarlyStopping("a"),
        )
        return sum(path.stat().st_size for path in (tmp_path / name / "2" / "arrays").rglob("*") if path.is_file())

    assert size("last", 1.0) < 0.8 * size("first", -1.0)


def test_a_run_with_a_best_state_resumes(tmp_path):
    def run(epochs, **more):
        values = iter([0.1, 0.9, 0.3, 0.2, 0.1])
        validate = lambda _: {"a": next(values)}  # noqa: E731
        return fit(epochs, validate=validate, stopping=jr.train.EarlyStopping("a", patience=9), **more)

    checkpoint = jr.train.Checkpoint(tmp_path)
    run(3, checkpoint=checkpoint)
    values = iter([0.2, 0.1])
    rule = jr.train.EarlyStopping("a", patience=9)
    resumed, log = fit(5, checkpoint=checkpoint, validate=lambda _: {"a": next(values)}, stopping=rule)
    assert int(resumed.epoch) == 2 and same(resumed, whole(2)[0])
    assert log.column("a")[1] == [0.1, 0.9, 0.3, 0.2, 0.1]


def test_a_second_process_in_a_folder_is_refused(tmp_path):
    code = (
        "import sys, jax; from jaxrec.train import Checkpoint\n"
        "with Checkpoint(sys.argv[1]).reserved():\n    print('held', flush=True); sys.stdin.read()"
    )
    held = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert held.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=f"{tmp_path} is in use by another run"):
            fit(1, checkpoint=jr.train.Checkpoint(tmp_path))
    finally:
        held.kill()
        held.wait()
        held.stdin.close(), held.stdout.close()
    assert int(fit(1, checkpoint=jr.train.Checkpoint(tmp_path))[0].epoch) == 1  # the folder is free again


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert jr.train.Checkpoint("~/run").folder == pathlib.Path(tmp_path) / "run"
    assert jr.train.Checkpoint("run").folder == pathlib.Path(os.getcwd()) / "run"


def test_fewer_epochs_than_saved_cause_a_warning(tmp_path):
    checkpoint = jr.train.Checkpoint(tmp_path)
    fit(2, checkpoint=checkpoint)
    with pytest.warns(UserWarning, match=f"{tmp_path} has done 2 epochs, and epochs=1 counts from the start"):
        state, _ = fit(1, checkpoint=checkpoint)
    assert int(state.epoch) == 2


@pytest.mark.deep
def test_a_resumed_state_has_the_shardings_of_the_given_one(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:2]), ("rows",))
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    state = jr.train.init(jax.random.key(0), MODEL, TX)
    state = jax.tree.map(lambda x: jax.device_put(x, rows) if x.ndim == 2 else x, state)
    checkpoint = jr.train.Checkpoint(tmp_path)
    first, _ = fit(1, state=state, checkpoint=checkpoint)
    resumed, _ = fit(1, state=state, checkpoint=checkpoint)
    assert all(leaf.sharding == rows for leaf in jax.tree.leaves(resumed.variables))
    assert same(resumed, first)
    for a, b in zip(jax.tree.leaves(resumed.variables), jax.tree.leaves(whole(1)[0].variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.deep
def test_frozen_variables_resume(tmp_path):
    checkpoint, state = jr.train.Checkpoint(tmp_path), jr.train.init(jax.random.key(0), MODEL, TX)
    variables = FrozenDict(state.variables)
    frozen = state._replace(variables=variables, opt_state=TX.init(variables["params"]))
    fit(1, state=frozen, checkpoint=checkpoint)
    assert same(fit(2, state=frozen, checkpoint=checkpoint)[0], whole(2)[0])


def test_an_interrupted_run_is_saved_and_resumes(tmp_path):
    def stop(state, record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    checkpoint = jr.train.Checkpoint(tmp_path, every=10)
    with pytest.raises(jr.train.Interrupted) as caught:
        fit(4, checkpoint=checkpoint, callbacks=[stop])
    assert same(caught.value.state, whole(2)[0]) and len(caught.value.log.records) == 2
    state, log = fit(4, checkpoint=checkpoint)
    assert same(state, whole(4)[0]) and math.isclose(len(log.records), 4)


# ---------------------------------------------------------------------- every loop


BOARD = synthetic.checkerboard(12)[0]
TABLES = {"user": jnp.linspace(-1, 1, 36).reshape(12, 3), "item": jnp.linspace(1, -0.5, 36).reshape(12, 3)}
RUNS = {
    "ials": lambda n, **loop: jr.solvers.ials.fit(
        BOARD, dim=2, regularization=0.1, unobserved_weight=0.1, key=jax.random.key(0), sweeps=n, **loop
    )[1:],
    "wrmf": lambda n, **loop: jr.solvers.wrmf.fit(
        BOARD, dim=2, regularization=0.1, alpha=1.0, key=jax.random.key(0), sweeps=n, **loop
    )[1:],
    "rg2": lambda n, **loop: jr.solvers.rg2.fit(
        BOARD, dim=2, regularization=0.1, key=jax.random.key(0), sweeps=n, tolerance=None, **loop
    )[1:],
    "gauss_newton": lambda n, **loop: jr.solvers.gauss_newton.fit(
        lambda params: (params["user"], params["item"]),
        TABLES,
        BOARD,
        regularization=0.01,
        steps=n,
        tolerance=None,
        **loop,
    )[1:],
    "alternating": lambda n, **loop: jr.train.autoencoders.alternating(
        jax.random.key(0),
        jr.models.RecVAE(12, dim=2, width=4),
        optax.sgd(0.1),
        BOARD,
        epochs=n,
        batch_size=6,
        encoder_passes=1,
        **loop,
    ),
}


@pytest.mark.deep
@pytest.mark.every_case
@pytest.mark.parametrize("name", RUNS)
def test_every_loop_resumes_and_calls_back_after_each_epoch(name, tmp_path):
    run, seen = partial(RUNS[name], progress=False), []
    whole, log = run(3)
    checkpoint = jr.train.Checkpoint(tmp_path / "run")
    run(2, checkpoint=checkpoint)
    resumed, again = run(3, checkpoint=checkpoint, callbacks=[lambda state, record: seen.append((state, record))])
    assert [record["epoch"] for record in again.records] == [1, 2, 3] and log.names == again.names
    assert [record["epoch"] for _, record in seen] == [3]
    for found in (resumed, seen[0][0]):
        jax.tree.map(np.testing.assert_array_equal, plain(found), plain(whole))


def plain(tree):
    """The leaves of a tree; typed keys become their data."""
    leaves = jax.tree.leaves(tree)
    return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]


def test_a_run_that_has_settled_is_not_trained_further(tmp_path):
    fit = partial(jr.solvers.wrmf.fit, TRAIN, dim=2, regularization=0.1, alpha=2.0, key=jax.random.key(0))
    more = {"sweeps": 60, "tolerance": 1e-2, "checkpoint": jr.train.Checkpoint(tmp_path), "progress": False}
    (_, first, log), (_, again, same) = fit(**more), fit(**more)
    assert len(same.records) == len(log.records) < 60
    assert all(np.array_equal(*pair) for pair in zip(jax.tree.leaves(first), jax.tree.leaves(again)))
