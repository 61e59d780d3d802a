"""Nearest neighbours against dense matrices."""

import itertools

import jax
import numpy as np
import pytest

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.interactions import Interactions
from jaxrec.solvers import knn

M, N = 15, 9
X = np.random.default_rng(0).random((M, N)) < 0.35
X[4] = X[:, 7] = False  # a user and an item without pairs
TRAIN = Interactions.from_pairs(*X.nonzero(), weights=np.arange(1, X.sum() + 1), n_users=M, n_items=N)
NEW = np.random.default_rng(1).random((6, N)) < 0.4
NEW[2] = False
HISTORIES = Interactions.from_pairs(*NEW.nonzero(), n_users=6, n_items=N)


def cosines(neighbours, shrinkage):
    x = X.astype(float)
    lengths = np.sqrt(x.sum(0))
    return nearest(x.T @ x / (np.maximum(np.outer(lengths, lengths), 1e-9) + shrinkage), neighbours)


def walks(neighbours, alpha, beta):
    """Probabilities of walks from item to user to item, with steps to the power α. Rows belong to the last item."""
    x = X.astype(float)
    of_users, of_items = np.maximum(x.sum(1), 1), np.maximum(x.sum(0), 1)
    to_user, to_item = (x.T / of_items[:, None]) ** alpha * (x.T > 0), (x / of_users[:, None]) ** alpha * (x > 0)
    return nearest(to_user @ to_item / of_items**beta, neighbours).T


def nearest(table, neighbours):
    np.fill_diagonal(table, 0)
    for row in table:
        row[np.argsort(-row)[neighbours:]] = 0
    return table


METHODS = {
    "item_knn": (knn.item_knn, cosines, {"neighbours": N, "shrinkage": 0.0}),
    "item_knn 3": (knn.item_knn, cosines, {"neighbours": 3, "shrinkage": 2.0}),
    "rp3beta": (knn.rp3beta, walks, {"neighbours": N, "alpha": 0.7, "beta": 0.4}),
    "rp3beta 3": (knn.rp3beta, walks, {"neighbours": 3, "alpha": 1.1, "beta": 0.6}),
    "paths": (knn.rp3beta, walks, {"neighbours": 4, "alpha": 0.0, "beta": 0.5}),
}


@pytest.mark.every_case
@pytest.mark.parametrize("blocks", [1, 3], ids=["a block", "blocks"])
@pytest.mark.parametrize("name", METHODS)
def test_neighbours_are_those_of_dense_matrices(name, blocks, monkeypatch):
    """The weights of `train` are not used, and a large product is computed in blocks of rows."""
    fit, formula, settings = METHODS[name]
    if blocks > 1:
        monkeypatch.setattr(knn, "_ENTRIES", 20)
        assert len(list(knn._blocks(TRAIN))) >= blocks
    _, variables, log = fit(TRAIN, **settings)
    table = variables["graph"]["neighbours"]
    assert log.records == () and set(variables) == {"graph"}
    indptr, indices = np.asarray(table.indptr), np.asarray(table.indices)
    assert all((np.diff(indices[start:stop]) > 0).all() for start, stop in itertools.pairwise(indptr))
    # Any of several equal similarities may be kept, so only values are compared.
    found, expected = table.to_scipy().toarray(), formula(**settings)
    if fit is knn.rp3beta:
        found, expected = found.T, expected.T
    assert (found > 0).sum(1).max() <= settings["neighbours"]
    np.testing.assert_allclose(np.sort(found, axis=1), np.sort(expected, axis=1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["item_knn", "rp3beta"])
def test_scores_are_sums_over_the_neighbours_in_a_history(name):
    """For users of the training data and for others, as rows and as pairs."""
    fit, formula, settings = METHODS[name]
    model, variables, _ = fit(TRAIN, **settings)
    close = {"rtol": 1e-5, "atol": 1e-6}
    for x, histories in ((X, TRAIN), (NEW, HISTORIES), (NEW[:0], HISTORIES.take(np.zeros(0, int)))):
        expected = x @ formula(**settings).T
        np.testing.assert_allclose(model.apply(variables, None, histories=histories, method="rows"), expected, **close)
    some = np.array([5, 3, 4, 5], np.int32)
    expected = X[some] @ formula(**settings).T
    for items in (np.array([[5, 0, 2]]), np.array([[1, 7], [0, 8], [2, 2], [3, 4]])):
        known = TRAIN.take(some, capacity=40)
        pairs = jax.jit(model.apply)(variables, some[:, None], items, histories=known)
        np.testing.assert_allclose(pairs, np.take_along_axis(expected, np.broadcast_to(items, (4, items.shape[1])), 1))


BOARD, DIAGONAL = synthetic.checkerboard(30)


@pytest.mark.every_case
@pytest.mark.parametrize("fit", [knn.item_knn, knn.rp3beta])
def test_recovers_the_diagonal_withheld_from_the_checkerboard(fit):
    model, variables, _ = fit(BOARD)
    report = jr.evaluate.full_ranking(model, variables, BOARD, DIAGONAL, ks=(1,), histories=BOARD)
    assert report.means["hit_rate@1"] == 1


def test_wrong_values_are_named():
    for fit in (knn.item_knn, knn.rp3beta):
        with pytest.raises(ValueError, match=r"^neighbours=0; give an integer of 1 or more"):
            fit(TRAIN, neighbours=0)
        with pytest.raises(ValueError, match=r"^train has no pairs"):
            fit(TRAIN.select(np.zeros(TRAIN.n_pairs, bool)))
    with pytest.raises(ValueError, match=r"^shrinkage=-1; give a finite number of 0 or more"):
        knn.item_knn(TRAIN, shrinkage=-1)
    for name in ("alpha", "beta"):
        with pytest.raises(ValueError, match=f"^{name}=nan; give a finite number"):
            knn.rp3beta(TRAIN, **{name: np.nan})


def test_settings_whose_weights_do_not_fit_float32_are_refused():
    for wrong in ({"alpha": 500}, {"alpha": -500}, {"beta": 500}, {"beta": -80.0}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=rf"^{name}={float(value)}, but powers of up to \d+ then do not fit"):
            knn.rp3beta(TRAIN, **wrong)
    with pytest.raises(ValueError, match=r"^with alpha=30.0 and beta=0.2, some weights do not fit float32"):
        knn.rp3beta(TRAIN, alpha=30.0)
    with pytest.raises(ValueError, match=r"^with shrinkage=1e\+39, some weights do not fit float32; give"):
        knn.item_knn(TRAIN, shrinkage=1e39)
