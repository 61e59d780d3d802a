"""Solvers, filters and neighbours, for the study that compares them with losses trained by SGD."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrec as jr
from benchmarks.studies._sgd import DIM, SCALE, factors
from benchmarks.studies._study import AS_PUBLISHED
from jaxrec import study

PATIENCE, SWEEPS = 6, 40

Fitted = tuple[Any, jr.typing.Variables, jr.train.Log]
Grid = Mapping[str, tuple[float, ...]]


def validation(model: Any, train: jr.Interactions, valid: jr.Interactions, metric: str) -> dict[str, Any]:
    """Returns the options that make validation end the training."""
    k = int(metric.partition("@")[2])
    judge = lambda v: jr.evaluate.full_ranking(model, v, train, valid, ks=(k,)).means  # noqa: E731
    return {"validate": judge, "stopping": jr.train.EarlyStopping(metric, patience=PATIENCE)}


def solved(fit: Callable, train: Any, valid: Any, key: Any, *, metric: str, **setting: float) -> Fitted:
    """Trains by ALS until validation ends it; on wide data sets after every fourth sweep."""
    ended = validation(factors(train), train, valid, metric) | {"every": 4 if wide(train) else 1}
    return fit(train, dim=DIM, key=key, tolerance=None, sweeps=SWEEPS, progress=False, **ended, **setting)


def solved_again(fit: Callable, train: Any, key: Any, log: Any, *, metric: str, **setting: float) -> Any:
    """Trains by ALS for the number of sweeps that was best on validation."""
    epochs, values = log.column(metric)
    sweeps = epochs[int(np.argmax(values))]
    return fit(train, dim=DIM, key=key, tolerance=None, sweeps=sweeps, progress=False, **setting)


def newton(train: Any, *, dim: int, key: Any, sweeps: int, **options: Any) -> Fitted:
    """Solves RG2 by Gauss-Newton. Vectors are scaled so that the penalty is that of ALS."""
    of_users = np.sqrt(2 * train.n_pairs / np.maximum(train.user_degrees, 1)).astype(np.float32)[:, None]
    of_items, (user_key, item_key) = float(np.sqrt(2 * train.n_items)), jax.random.split(key)
    user = SCALE * jax.random.normal(user_key, (train.n_users, dim)) / of_users
    item = SCALE * jax.random.normal(item_key, (train.n_items, dim)) / of_items
    towers = partial(scaled, of_users=jnp.asarray(of_users), of_items=of_items)
    return jr.solvers.gauss_newton.fit(towers, {"user": user, "item": item}, train, steps=sweeps, **options)


def scaled(params: Any, of_users: jax.Array, of_items: float) -> tuple[jax.Array, jax.Array]:
    """Returns the vectors of users and items."""
    return of_users * params["user"], of_items * params["item"]


def closed_form(train: Any, valid: Any, key: Any, *, metric: str, regularization: float) -> Fitted:
    """Computes the optimum; λ is a share of √2 σ₁, from which on all factors are zero."""
    found = jr.solvers.rg2.decompose(train, dim=DIM, key=key, tolerance=1e-3)
    variables = jr.solvers.rg2.shrink(found, regularization=float(np.sqrt(2) * found.values[0]) * regularization)
    seen = {} if valid is None else validation(factors(train), train, valid, metric)["validate"](variables)
    return factors(train), variables, jr.train.Log().append({"epoch": 1, "seconds": float("nan"), **seen})


def closed_form_again(train: Any, key: Any, log: Any, **setting: Any) -> Fitted:
    """Computes the optimum on other data."""
    return closed_form(train, None, key, **setting)


def direct(fit: Callable, train: Any, valid: Any, key: Any, *, metric: str, **setting: Any) -> Any:
    """Fits a method that makes no sweeps and draws nothing."""
    return fit(train, **setting)


def direct_again(fit: Callable, train: Any, key: Any, log: Any, **setting: Any) -> Any:
    """Fits it on other data."""
    return direct(fit, train, None, key, **setting)


def filtered(options: Callable, train: Any, valid: Any, key: Any, settings: Any, *, metric: str) -> list:
    """Makes spectral filters of one training set, which share a decomposition.

    On wide data sets a polynomial of high degree is approximated.
    """
    fit, rank, spectrum = jr.solvers.filters.fit, {}, None
    if options is not jr.solvers.filters.turbo_cf:  # which needs no singular vectors
        dim = max([512 if wide(train) else 256, *(setting["dim"] for setting in settings if "dim" in setting)])
        spectrum = jr.solvers.filters.decompose(train, dim=dim, key=key)
        rank = {"rank": dim} if wide(train) and options is not jr.solvers.filters.gf_cf else {}
        options = options if wide(train) else partial(options, dim=dim)
    return [fit(train, **options(**setting), **rank, spectrum=spectrum) for setting in settings]


def filtered_again(options: Callable, train: Any, key: Any, log: Any, *, metric: str, **setting: Any) -> Any:
    """Makes the filter of other data."""
    return filtered(options, train, None, key, [setting], metric=metric)[0]


def wide(train: jr.Interactions) -> bool:
    """Whether a data set has many users; on these, filters have their papers' number of vectors."""
    return train.n_users > 10_000


class Kind(NamedTuple):
    """A method: how to train it, the settings to choose from, and how to train it again on other data.

    `jointly` says that `fit` trains all settings of a call.
    """

    fit: Callable[..., Any]
    grid: Grid
    again: Callable[..., Any]
    jointly: bool = False


def filters(options: Callable, grid: Grid) -> Kind:
    """Returns a spectral filter."""
    return Kind(partial(filtered, options), grid, partial(filtered_again, options), jointly=True)


def closed(fit: Callable, grid: Grid) -> Kind:
    """Returns a method that makes no sweeps and draws nothing."""
    return Kind(partial(direct, fit), grid, partial(direct_again, fit))


def solver(fit: Callable, grid: Grid) -> Kind:
    """Returns a method that trains by sweeps, or by steps of Gauss-Newton."""
    return Kind(partial(solved, fit), grid, partial(solved_again, fit))


STRENGTHS = tuple(float(f"{x:.2g}") for x in np.geomspace(0.02, 1, 16))
SHARES = {"regularization": (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)}
TWO = {"alpha": (0.02, 0.05, 0.1, 0.2), "regularization": (0.03, 0.1, 0.3)}
WEIGHTS = {"unobserved_weight": (0.01, 0.03, 0.1, 0.3, 1.0), "regularization": (0.003, 0.01, 0.03, 0.1)}
METHODS = {
    "RG2": solver(jr.solvers.rg2.fit, {"regularization": (0.03, 0.1, 0.3, 0.6, 1.0)}),
    "RG2, closed form": Kind(closed_form, SHARES, closed_form_again),
    "RG2, Gauss-Newton": solver(newton, {"regularization": STRENGTHS}),
    "RG2, alpha tuned": solver(jr.solvers.rg2.fit, TWO),
    "WRMF": solver(
        partial(jr.solvers.wrmf.fit, **AS_PUBLISHED),
        {"alpha": (1.0, 4.0, 10.0), "regularization": (3.0, 10.0, 50.0, 200.0)},
    ),
    "iALS": solver(partial(jr.solvers.ials.fit, **AS_PUBLISHED), WEIGHTS),
    "GF-CF": filters(jr.solvers.filters.gf_cf, {"dim": (32, 64, 128, 256), "weight": (0.0, 0.2, 0.5, 1.0)}),
    "ChebyCF": filters(
        jr.solvers.filters.cheby_cf,
        {"scale": (0.0, 0.1, 0.2, 0.4), "flatness": (3.0, 6.0, 12.0, 24.0)},
    ),
    "BSPM": filters(jr.solvers.filters.bspm, {"time": (0.3, 0.6, 1.2, 2.5), "weight": (0.0, 0.05, 0.1, 0.3)}),
    "Turbo-CF": filters(
        jr.solvers.filters.turbo_cf,
        {"normalization": (0.3, 0.4, 0.6, 0.8, 1.0), "order": (1, 2, 3)},
    ),
    "ItemKNN": closed(
        jr.solvers.knn.item_knn,
        {"neighbours": (100, 200, 400, 800), "shrinkage": (1.0, 5.0, 25.0, 125.0)},
    ),
    "RP3beta": closed(jr.solvers.knn.rp3beta, {"alpha": (0.6, 0.8, 1.0, 1.2), "beta": (0.2, 0.4, 0.6, 0.8)}),
    "EASE": closed(
        jr.solvers.ease.fit,
        {"regularization": tuple(float(f"{x:.2g}") for x in np.geomspace(10, 10_000, 16))},
    ),
}

# Values for single data sets. Where validation chose an end of a range, the range was moved beyond it. Values that
# it left are not compared any more.
ALPHAS = {"alpha": (4.0, 10.0, 30.0)}
MOVED: dict[str, dict[str, Grid]] = {
    "ml-100k": {
        "WRMF": ALPHAS,
        "iALS": {"unobserved_weight": (0.1, 0.3, 1.0, 3.0, 10.0), "regularization": (0.001, 0.003, 0.01, 0.03)},
        "GF-CF": {"weight": (0.2, 0.3, 0.5, 1.0)},
        "ItemKNN": {"shrinkage": (1.0, 5.0, 10.0, 25.0)},
    },
    "ml-1m": {
        "ChebyCF": {"flatness": (12.0, 24.0, 48.0, 96.0)},
        "Turbo-CF": {"normalization": (0.5, 0.6, 0.7, 0.8, 0.9)},
    },
    "lastfm-2k": {
        "WRMF": ALPHAS,
        "GF-CF": {"weight": (0.2, 0.5, 1.0, 2.0)},
        "ItemKNN": {"neighbours": (200, 400, 800, 1600), "shrinkage": (0.0, 1.0, 5.0, 25.0)},
    },
    "citeulike-a": {
        "RG2": {"regularization": (0.003, 0.01, 0.03, 0.1, 0.3)},
        "WRMF": {"alpha": (30.0, 100.0, 300.0), "regularization": (1.0, 3.0, 10.0, 30.0)},
        "iALS": {"unobserved_weight": (0.001, 0.003, 0.01, 0.03, 0.1)},
        "GF-CF": {"dim": (16, 32, 64, 128), "weight": (0.0, 0.05, 0.1, 0.2)},
        "ChebyCF": {"scale": (0.2, 0.4, 0.6, 0.8)},
        "BSPM": {"time": (1.2, 2.5, 5.0, 10.0)},
        "ItemKNN": {"neighbours": (400, 800, 1600, 3200)},
        "RP3beta": {"alpha": (0.2, 0.4, 0.6, 0.8)},
    },
    "gowalla": {
        "iALS": {"unobserved_weight": (0.0003, 0.001, 0.003, 0.01, 0.03)},
        "GF-CF": {"dim": (128, 256, 512, 1024), "weight": (0.1, 0.2, 0.3, 0.5)},
        "ChebyCF": {"scale": (0.2, 0.3, 0.4, 0.5), "flatness": (1.5, 3.0, 6.0, 12.0)},
        "BSPM": {"weight": (0.05, 0.1, 0.2, 0.3)},
    },
    "yelp2018": {
        "GF-CF": {"dim": (128, 256, 512, 1024), "weight": (0.0, 0.05, 0.1, 0.2)},
        "ChebyCF": {"scale": (0.05, 0.1, 0.2, 0.3), "flatness": (1.5, 3.0, 6.0, 12.0)},
        "BSPM": {"time": (0.1, 0.2, 0.3, 0.6), "weight": (0.05, 0.1, 0.2, 0.3)},
    },
}


def methods(data: str, *, metric: str, again: bool) -> list[study.Method]:
    """Returns the methods of a data set; `again` if they are trained again on train and validation."""
    found = []
    for name, kind in METHODS.items():
        grid = {**kind.grid, **MOVED.get(data, {}).get(name, {})}
        options: dict[str, Any] = {"fit_all" if kind.jointly else "fit": partial(kind.fit, metric=metric)}
        options |= {"refit": partial(kind.again, metric=metric)} if again else {}
        found.append(study.Method(name, grid=grid, **options))
    return found
