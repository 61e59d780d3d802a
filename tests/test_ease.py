"""EASE against the conditions of its optimum, and as a model."""

import jax
import numpy as np
import pytest

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.models import EASE
from jaxrec.solvers import ease

DENSE = np.random.default_rng(0).random((12, 6)) < 0.4
DENSE[3] = False
TRAIN = jr.Interactions.from_pairs(*DENSE.nonzero(), weights=np.arange(1, DENSE.sum() + 1), n_users=12, n_items=6)
USERS = np.arange(12, dtype=np.int32)


def test_the_table_is_the_optimum_of_zero_diagonal():
    """The gradient XᵀX B − XᵀX + λB is 0 off the diagonal, where B is free. Weights are not used."""
    model, variables, log = ease.fit(TRAIN, regularization=0.7)
    b, gram = np.asarray(variables["params"]["weights"], float), DENSE.T.astype(float) @ DENSE
    assert model == EASE(6) and set(variables) == {"params"} and log.records == ()
    assert variables["params"]["weights"].dtype == np.float32 and not np.diag(b).any()
    slope = gram @ b - gram + 0.7 * b
    np.testing.assert_allclose(slope[~np.eye(6, dtype=bool)], 0, atol=1e-5)
    assert np.abs(np.diag(slope)).min() > 0.1


def test_the_form_of_accelerators_gives_the_same(float64):
    _, variables, _ = ease.fit(TRAIN, regularization=0.7)
    gram = DENSE.T.astype(float) @ DENSE + 0.7 * np.eye(6)
    found = ease.on_accelerator(gram)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, variables["params"]["weights"], rtol=1e-5, atol=1e-7)
    assert np.isnan(ease.on_accelerator(-gram)[0]).any()


def test_single_precision_gives_nearly_the_same(monkeypatch):
    _, expected, _ = ease.fit(TRAIN, regularization=0.7)
    monkeypatch.setattr(ease, "_BLOCK", 2)
    _, found, _ = ease.fit(TRAIN, regularization=0.7, dtype=np.float32)
    assert found["params"]["weights"].dtype == np.float32
    np.testing.assert_allclose(found["params"]["weights"], expected["params"]["weights"], rtol=1e-4, atol=1e-6)
    assert not np.array_equal(found["params"]["weights"], expected["params"]["weights"])


@pytest.mark.deep
def test_pairs_and_rows_are_products_of_rows_and_table():
    model, variables, _ = ease.fit(TRAIN, regularization=0.7)
    expected = DENSE @ np.asarray(variables["params"]["weights"], float)
    close = {"rtol": 1e-5, "atol": 1e-6}
    some = np.array([5, 3, 0, 5], np.int32)  # user 3 has no items
    for users, histories in ((USERS, TRAIN), (some, TRAIN.take(some)), (some, TRAIN.take(some, capacity=30))):
        known = {"histories": histories}
        rows = jax.jit(lambda v, u, known: model.apply(v, u, method="rows", **known))(variables, users, known)
        np.testing.assert_allclose(rows, expected[users], **close)
        for items in (np.array([[5, 0, 2]]), np.random.default_rng(0).integers(0, 6, (len(users), 2))):
            pairs = jax.jit(model.apply)(variables, users[:, None], items, **known)
            np.testing.assert_allclose(pairs, expected[users[:, None], items], **close)


def test_recovers_the_diagonal_withheld_from_the_checkerboard():
    board, diagonal = synthetic.checkerboard(30)
    model, variables, _ = ease.fit(board, regularization=10.0)
    report = jr.evaluate.full_ranking(model, variables, board, diagonal, ks=(1,), histories=board)
    assert report.means["hit_rate@1"] == 1


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match="regularization=0; give"):
        ease.fit(TRAIN, regularization=0)
    with pytest.raises(ValueError, match="regularization=1e-300 is too small for float64"):
        ease.fit(jr.Interactions.from_pairs([0, 0], [0, 1]), regularization=1e-300)
    with pytest.raises(ValueError, match=r"train has 6 items.* raise max_items=5 if 0.0 GB"):
        ease.fit(TRAIN, regularization=1.0, max_items=5)
    with pytest.raises(ValueError, match="dtype=float16; give float64 or float32"):
        ease.fit(TRAIN, regularization=1.0, dtype=np.float16)
    for wrong in ("foo", "float16", int):
        with pytest.raises(ValueError, match=r"^dtype=(foo|float16|int64); give float64 or float32"):
            ease.fit(TRAIN, regularization=1.0, dtype=wrong)
    with pytest.raises(ValueError, match="regularization=1e-09 is too small for float32"):
        ease.fit(jr.Interactions.from_pairs([0, 0], [0, 1]), regularization=1e-9, dtype=np.float32)


def test_a_regularization_whose_weights_would_be_noise_is_refused(float64):
    """Cholesky's factor exists, but its inverse has an error of a tenth."""
    rng = np.random.default_rng(0)
    x = rng.random((20, 30)) < 0.3
    train = jr.Interactions.from_pairs(*x.nonzero(), n_users=20, n_items=30)
    with pytest.raises(ValueError, match="regularization=1e-14 is too small for float64; give a larger one"):
        ease.fit(train, regularization=1e-14)
    with pytest.raises(ValueError, match="regularization=1e-06 is too small for float32"):
        ease.fit(train, regularization=1e-6, dtype=np.float32)
    gram = x.T.astype(float) @ x
    assert np.isnan(ease.on_accelerator(gram + 1e-14 * np.eye(30))[0]).any()
    _, variables, _ = ease.fit(train, regularization=1e-8)
    np.testing.assert_allclose(ease.on_accelerator(gram + 1e-8 * np.eye(30)), variables["params"]["weights"], atol=1e-5)


def test_the_error_is_estimated_for_items_that_the_same_users_have(float64):
    """The largest singular value is then far above the largest number of users of an item."""
    train = jr.Interactions.from_pairs(*np.ones((400, 300)).nonzero())
    with pytest.raises(ValueError, match=r"regularization=0.01 is too small for float32"):
        ease.fit(train, regularization=0.01, dtype=np.float32)
    _, variables, _ = ease.fit(train, regularization=10.0, dtype=np.float32)
    found = np.asarray(variables["params"]["weights"])[~np.eye(300, dtype=bool)]
    np.testing.assert_allclose(found, 400 / (299 * 400 + 10), rtol=1e-2)


def test_a_large_regularization_gives_small_weights_or_is_refused():
    train = jr.Interactions.from_pairs([0, 0], [0, 1])
    for most, dtype in ((1e37, np.float64), (1e18, np.float32)):
        _, variables, _ = ease.fit(train, regularization=most, dtype=dtype)
        np.testing.assert_allclose(variables["params"]["weights"], [[0, 1 / most], [1 / most, 0]], rtol=1e-5)
        with pytest.raises(ValueError, match=f"is too large for {np.dtype(dtype)}; give .* or less"):
            ease.fit(train, regularization=2 * most, dtype=dtype)


def test_a_large_table_is_inverted_by_halves(monkeypatch):
    """OpenBLAS crashes in the Cholesky factorisation of a table of 16,000 rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 29))
    gram = x.T @ x + 0.3 * np.eye(29)
    found = gram.copy()
    monkeypatch.setattr(ease, "_BLOCK", 5)
    ease._invert(found, 0.3)
    np.testing.assert_allclose(found, np.linalg.inv(gram), rtol=1e-8, atol=1e-10)
    with pytest.raises(ValueError, match=r"regularization=0.0 is too small"):
        ease._invert(np.ones((29, 29)), 0.0)
