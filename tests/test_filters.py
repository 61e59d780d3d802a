"""Spectral filters against dense matrices in float64."""

import functools

import jax
import numpy as np
import pytest
from numpy.polynomial import Chebyshev, Polynomial

import jaxrec as jr
from jaxrec.data import synthetic
from jaxrec.interactions import Interactions
from jaxrec.models import SpectralFilter
from jaxrec.solvers import filters

M, N = 15, 9
X = np.random.default_rng(0).random((M, N)) < 0.35
X[4] = X[:, 7] = False  # a user and an item without pairs
TRAIN = Interactions.from_pairs(*X.nonzero(), weights=np.arange(1, X.sum() + 1), n_users=M, n_items=N)
NEW = np.random.default_rng(1).random((6, N)) < 0.4
NEW[2] = False
HISTORIES = Interactions.from_pairs(*NEW.nonzero(), n_users=6, n_items=N)
KEY = jax.random.key(0)
METHODS = {
    "gf_cf": filters.gf_cf(dim=3),
    "turbo_cf 3": filters.turbo_cf(order=3),
    "turbo_cf 2": filters.turbo_cf(order=2, normalization=0.5),
    "cheby_cf": filters.cheby_cf(dim=3),
    "bspm": filters.bspm(dim=3),
    "bspm on Yelp2018": filters.bspm(dim=4, weight=0.3, time=1.2, order=1, average=True),
    "bspm-lm": filters.bspm(dim=4, time=2.2, steps=2, sharpen_both=False),
}


def dense(
    x, polynomial, scale=0, dim=0, weight=0, low_pass_scale=0.5, low_pass_polynomial=None, normalization=0.5, rank=None
):
    """The formula of the module by an eigendecomposition."""
    of_users, of_items = (np.maximum(X.sum(axis), 1.0) for axis in (1, 0))
    graph = of_users[:, None] ** -normalization * X * of_items ** (normalization - 1)
    values, vectors = np.linalg.eigh(graph.T @ graph)
    values, vectors = values[::-1], vectors[:, ::-1]
    of = lambda f: vectors * f(values) @ vectors.T  # noqa: E731
    filtered = of(polynomial)
    if rank is not None:
        line = lambda t: polynomial(0) + (polynomial(values[rank - 1]) - polynomial(0)) * t / values[rank - 1]  # noqa: E731
        filtered = of(lambda t: np.where(np.arange(N) < rank, polynomial(t), line(t)))
    low_pass = vectors[:, :dim] @ vectors[:, :dim].T * of_items**low_pass_scale
    after = np.eye(N) if low_pass_polynomial is None else of(low_pass_polynomial)
    return x / of_items**scale @ filtered * of_items**scale + weight * (x / of_items**low_pass_scale) @ low_pass @ after


@functools.cache
def spectrum(normalization):
    return filters.decompose(TRAIN, dim=6, key=KEY, normalization=normalization, tolerance=1e-6)


@pytest.mark.parametrize("rank", [None, 5], ids=["exact", "rank"])
@pytest.mark.parametrize("name", METHODS)
def test_scores_are_those_of_dense_matrices(name, rank):
    """They hold for users of the training data, whose weights are not used, and for others."""
    settings = METHODS[name]
    known = spectrum(settings.get("normalization", 0.5))
    model, variables, log = filters.fit(TRAIN, **settings, rank=rank, spectrum=known)
    assert log.records == () and model.n_items == N and model.degree == (1 if rank else settings["polynomial"].degree())
    for x, histories in ((X, TRAIN), (NEW, HISTORIES)):
        found = model.apply(variables, None, histories=histories, method="rows")
        np.testing.assert_allclose(found, dense(x, **settings, rank=rank), rtol=1e-4, atol=2e-5)


def test_pairs_are_entries_of_rows_in_any_batch():
    model, variables, _ = filters.fit(TRAIN, **METHODS["cheby_cf"], spectrum=spectrum(0.5))
    expected = dense(X, **METHODS["cheby_cf"])
    some = np.array([5, 3, 4, 5], np.int32)
    apply = jax.jit(model.apply)
    for items in (np.array([[5, 0, 2]]), np.array([[1, 7], [0, 8], [2, 2], [3, 4]])):
        pairs = apply(variables, some[:, None], items, histories=TRAIN.take(some, capacity=40))
        np.testing.assert_allclose(pairs, expected[some[:, None], items], rtol=1e-4, atol=2e-5)
    one = apply(variables, some, some, histories=TRAIN.take(some))
    np.testing.assert_allclose(one, expected[some, some], rtol=1e-4, atol=2e-5)


@pytest.mark.deep
def test_everything_is_in_double_precision(float64):
    settings = METHODS["cheby_cf"]
    model, variables, _ = filters.fit(TRAIN, **settings, key=KEY, tolerance=1e-13)
    found = model.apply(variables, None, histories=TRAIN, method="rows")
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, dense(X, **settings), rtol=1e-9, atol=1e-10)


def test_the_decomposition_is_of_the_normalised_matrix():
    found = jax.tree.map(np.asarray, spectrum(0.5))
    graph = X / np.sqrt(np.maximum(X.sum(1), 1)[:, None] * np.maximum(X.sum(0), 1))
    expected = np.linalg.svd(graph)[1]
    np.testing.assert_allclose(found.squares, expected[:6] ** 2, rtol=1e-5)
    assert expected[0] == pytest.approx(1) and found.residual.max() <= 1e-6
    np.testing.assert_allclose(graph.T @ (graph @ found.item), found.item * found.squares, atol=1e-5)


def test_chebyshev_interpolation_is_that_of_the_released_code():
    """Its nodes are the zeros of T₉. Its values are those of the curve at the extrema of T₈."""
    series = filters.cheby_cf(degree=8, flatness=1.5)["polynomial"]
    zeros, extrema = np.cos(np.pi * (np.arange(9) + 0.5) / 9), np.cos(np.pi * np.arange(9) / 8)
    expected = 0.5 + 0.5 * np.sign(extrema) * np.abs(extrema) ** 1.5
    np.testing.assert_allclose(series((zeros + 1) / 2), expected, atol=1e-12)
    assert series.degree() == 8
    line = filters.cheby_cf(degree=1, flatness=3.0)["polynomial"]
    np.testing.assert_allclose(line(0.5 + np.sqrt(2) / 4 * np.array([-1, 1])), [0, 1], atol=1e-12)


def test_sharpening_is_the_method_of_runge_and_kutta():
    """The stages of the method integrate dx/dτ = −tx for one eigenvalue t."""

    def integrated(x, t, time, steps):
        h = time / steps
        for _ in range(steps):
            first = -t * x
            second = -t * (x + h / 2 * first)
            third = -t * (x + h / 2 * second)
            x = x + h / 6 * (first + 2 * second + 2 * third - t * (x + h * third))
        return x

    t = np.linspace(0, 1, 7)
    found = filters.bspm(time=2.5, steps=2)
    np.testing.assert_allclose(found["polynomial"](t), integrated(t, t, 2.5, 2), atol=1e-12)
    np.testing.assert_allclose(found["low_pass_polynomial"](t), integrated(1, t, 2.5, 2), atol=1e-12)
    mean = filters.bspm(time=1.2, order=1, average=True)
    np.testing.assert_allclose(mean["polynomial"](t), (t + t * (1 - 1.2 * t)) / 2, atol=1e-12)
    np.testing.assert_allclose(mean["low_pass_polynomial"](t), (1 - 1.2 * t) / 2, atol=1e-12)


BOARD, DIAGONAL = synthetic.checkerboard(30)


@pytest.mark.parametrize("rank", [None, 2], ids=["exact", "rank"])
@pytest.mark.parametrize(
    "settings",
    [filters.gf_cf(dim=2), filters.turbo_cf(), filters.cheby_cf(dim=2), filters.bspm(dim=2)],
    ids=["gf_cf", "turbo_cf", "cheby_cf", "bspm"],
)
def test_recovers_the_diagonal_withheld_from_the_checkerboard(settings, rank):
    model, variables, _ = filters.fit(BOARD, **settings, rank=rank, key=KEY)
    report = jr.evaluate.full_ranking(model, variables, BOARD, DIAGONAL, ks=(1,), histories=BOARD)
    assert report.means["hit_rate@1"] == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"polynomial": [0, 1]}, TypeError, r"polynomial is a list; give a series of numpy.polynomial"),
        ({"polynomial": Polynomial([0, np.nan])}, ValueError, r"polynomial=\[.*nan.*\]; give a finite"),
        ({"scale": np.inf}, ValueError, r"scale=inf; give a finite"),
        ({"scale": 500}, ValueError, r"scale=500.0, but powers of up to \d+ then do not fit float32; give a number"),
        ({"low_pass_scale": -500}, ValueError, r"low_pass_scale=-500.0, but powers"),
        ({"normalization": 1.5}, ValueError, r"normalization=1.5; give a finite number from 0 to 1"),
        ({"dim": 10, "weight": 1.0}, ValueError, r"dim=10; give an integer from 0 to 9"),
        ({"rank": 0}, ValueError, r"rank=0; give an integer from 1 to 9"),
        ({"rank": 2}, ValueError, r"key is NoneType; give one typed key"),
        ({"rank": 7, "spectrum": 0.5}, ValueError, r"spectrum has 6 vectors and 7 are needed; call decompose"),
        ({"rank": 2, "spectrum": 0.6}, ValueError, r"spectrum has normalization=0.6, but normalization=0.5"),
    ],
)
def test_wrong_values_are_named(options, error, message):
    if "spectrum" in options:
        options = options | {"spectrum": spectrum(options["spectrum"])}
    with pytest.raises(error, match=f"^{message}"):
        filters.fit(TRAIN, **{"polynomial": Chebyshev([0, 1]), **options})


def test_wrong_data_and_settings_are_named():
    with pytest.raises(ValueError, match=r"^spectrum has 9 items and train 30; decompose the same train"):
        filters.fit(BOARD, **filters.gf_cf(dim=2), spectrum=spectrum(0.5))
    with pytest.raises(ValueError, match=r"^train has no pairs"):
        filters.fit(TRAIN.select(np.zeros(TRAIN.n_pairs, bool)), **filters.turbo_cf())
    with pytest.raises(ValueError, match=r"^order=4; give an integer from 1 to 3"):
        filters.turbo_cf(order=4)
    with pytest.raises(ValueError, match=r"^flatness=0; give a finite number above 0"):
        filters.cheby_cf(flatness=0)
    with pytest.raises(ValueError, match=r"^steps=0; give an integer of 1 or more"):
        filters.bspm(steps=0)
    with pytest.raises(ValueError, match=r"^degree=-1; give an integer of 0 or more"):
        SpectralFilter(N, degree=-1)
