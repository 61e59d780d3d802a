"""Spectral filters of collaborative filtering: one function, and the settings of four papers.

Let R [M, N] be the training matrix of 0 and 1, A and D the diagonal matrices of the users' and
items' degrees, R̃ = A⁻ᶜ R Dᶜ⁻¹, P = R̃ᵀR̃, and V [N, K] the leading right singular vectors of R̃. A
user's row x of 0 and 1 gets the scores

    x D⁻ᵇ p(P) Dᵇ + w x D⁻ᵃ V Vᵀ Dᵃ q(P).

Eigenvectors of P with large eigenvalues vary little between items that share users. So a polynomial
p that grows is a low-pass filter, and V Vᵀ is the ideal low-pass filter. For c = ½ the eigenvalues
are from 0 to 1.

| method | p(t) | q(t) | a | b |
|---|---|---|---|---|
| `gf_cf` | t | 1 | ½ | 0 |
| `turbo_cf` | t, or a polynomial of degree 2 or 3 | | | 0 |
| `cheby_cf` | interpolates a curve from 0 to 1 | 1 | b | b |
| `bspm` | t r(t), with r(t) ≈ exp(−τt) | r(t) | ½ | 0 |

Each of these functions returns keyword arguments of `fit`, which the caller may change:
`fit(train, **gf_cf(weight=0.2), key=key)`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from numpy.polynomial.chebyshev import chebval

from jaxrec._keys import check_key
from jaxrec._log import Log
from jaxrec._numerics import integer, number, powers
from jaxrec.interactions import Interactions, check_positives
from jaxrec.models.filters import SpectralFilter, polynomial_of
from jaxrec.solvers._run import check_input
from jaxrec.solvers._subspace import by_gram, leading, width_of
from jaxrec.sparse import spmm
from jaxrec.typing import Array, Key, Scalar, Variables

Settings = dict[str, Any]
_ONE, _T = Polynomial([1.0]), Polynomial([0.0, 1.0])


# ---------------------------------------------------------------------- methods


def gf_cf(*, dim: int = 256, weight: float = 0.3) -> Settings:
    """Returns the settings of GF-CF (Shen et al. 2021, arXiv 2108.07567).

    Args:
        dim: K, the number of singular vectors.
        weight: w. The defaults are those of the released code, which leaves the ideal low-pass
            filter out on Amazon-Book: `weight=0`.
    """
    return {"polynomial": _T, "dim": dim, "weight": weight}


def turbo_cf(*, order: int = 1, normalization: float = 0.6) -> Settings:
    """Returns the settings of Turbo-CF (Park et al. 2024, arXiv 2404.14243), which needs no SVD.

    Args:
        order: degree of p: 1 for t, 2 for 2t − t², 3 for t + 0.01 (−t³ + 10t² − 29t).
        normalization: c, α in the paper, which has 0.6 on Gowalla and Yelp2018 and 0.5 on
            Amazon-Book.

    Raises:
        ValueError: if `order` is not 1, 2 or 3.

    Differs: the paper raises each entry of P to a power, which needs the matrix P. Here the power is
    1, its value on Yelp2018. It is 0.7 on Gowalla and 1.4 on Amazon-Book.
    """
    by_order = (_T, 2 * _T - _T**2, _T + 0.01 * (-(_T**3) + 10 * _T**2 - 29 * _T))
    return {"polynomial": by_order[integer("order", order, most=3) - 1], "normalization": normalization}


def cheby_cf(
    *, degree: int = 8, flatness: float = 1.5, dim: int = 512, weight: float = 0.2, scale: float = 0.4
) -> Settings:
    """Returns the settings of ChebyCF (Kim et al. 2025, arXiv 2505.00552).

    p interpolates ½ + ½ sign(y) |y|ᶠ, with y = 2t − 1, at Chebyshev's nodes. The defaults are those
    of the released code on Gowalla.

    Args:
        degree: degree of p; the time of a ranking is proportional to it.
        flatness: f, above 0: 1 is a line, larger values are flat in the middle.
        dim: K, the number of singular vectors of the ideal low-pass filter.
        weight: w.
        scale: a and b, the power of the degrees.

    Raises:
        ValueError: if `degree` is not an integer of 1 or more, or `flatness` is not above 0.

    Differs: follows the released code instead of the paper where the curve is evaluated. The value
    at the k-th zero of T_{degree+1} is that of the curve at the k-th extremum of T_degree. Values
    are not rounded to three decimals.
    """
    degree, flatness = integer("degree", degree), float(number("flatness", flatness, above=0))

    def curve(y: np.ndarray) -> np.ndarray:
        number_of = (degree + 1) / np.pi * np.arccos(y) - 0.5  # 0 .. degree at the zeros
        y = np.cos(np.pi * number_of / degree)
        return 0.5 + 0.5 * np.sign(y) * np.abs(y) ** flatness

    # The domain of the interpolation is that of t.
    found = Chebyshev.interpolate(lambda t: curve(np.clip(2 * t - 1, -1, 1)), degree, domain=[0, 1])
    return {"polynomial": found, "dim": dim, "weight": weight, "scale": scale, "low_pass_scale": scale}


def bspm(
    *,
    dim: int = 448,
    weight: float = 0.2,
    time: float = 2.5,
    steps: int = 1,
    order: int = 4,
    sharpen_both: bool = True,
    average: bool = False,
) -> Settings:
    """Returns the settings of BSPM (Choi et al. 2023, arXiv 2211.09324): blurring, then sharpening.

    Blurring gives xP and the ideal low-pass filter. Sharpening solves dx/dτ = −xP up to τ = `time`
    by the method of Euler or of Runge and Kutta, which multiplies by r(P) ≈ exp(−time P).

    Args:
        dim: K, the number of singular vectors. All defaults are those of the released code on
            Gowalla. On Yelp2018 it has dim=384, weight=0.3, time=1.2, order=1, average=True.
        weight: w.
        time: the time up to which sharpening is solved.
        steps: number of steps up to that time.
        order: order of the method: 1 is Euler's method, 4 that of Runge and Kutta.
        sharpen_both: whether the ideal low-pass filter is sharpened too, as in BSPM-EM. False is
            BSPM-LM.
        average: whether to return the mean over all steps and the blurred rows.

    Raises:
        ValueError: if `time` is negative or not finite, or `steps` or `order` is not an integer of 1
            or more.
    """
    time, steps, order = float(number("time", time, least=0)), integer("steps", steps), integer("order", order)
    step = sum((-time / steps * _T) ** k / math.factorial(k) for k in range(order + 1))
    sharpened = [step**k for k in range(1, steps + 1)]
    share = 1 / (steps + 1) if average else 1.0
    last = share * sum(sharpened, 0 * _T) if average else sharpened[-1]
    blurred = _T * share if average else 0 * _T
    low_pass = last if sharpen_both else _ONE
    return {"polynomial": blurred + _T * last, "dim": dim, "weight": weight, "low_pass_polynomial": low_pass}


# ---------------------------------------------------------------------- fitting


class Spectrum(NamedTuple):
    """The leading singular vectors of R̃, which serve several filters of one training set.

    Attributes:
        item: right singular vectors V [N, K].
        squares: squares of the singular values [K], descending.
        residual: ‖Pv − σ²v‖ / σ₁² [K], the error of each vector.
        normalization: c [].
    """

    item: Array
    squares: Array
    residual: Array
    normalization: Array


def decompose(
    train: Interactions,
    *,
    dim: int,
    key: Key,
    normalization: float = 0.5,
    tolerance: float = 1e-4,
    passes: int = 200,
) -> Spectrum:
    """Computes the leading singular vectors of R̃, by subspace iteration from random vectors.

    Args:
        train: the positives; their weights are ignored.
        dim: K, the number of vectors.
        key: typed key that draws the initial vectors.
        normalization: c, the power of the users' degrees; see `fit`.
        tolerance: the iteration ends when no `residual` exceeds this.
        passes: maximum number of passes, which take two sparse products with about 1.25 K columns each.

    Raises:
        ValueError: if `dim` is not an integer from 1 to min(M, N), `passes` is not an integer of 1
            or more, or `key` is not a typed key; also for `train`, `normalization` and `tolerance`
            as in `fit`.
    """
    dim, passes = check_input(train, dim, tolerance=tolerance), integer("passes", passes)
    check_key(key)
    graph = _graph(train, normalization)
    start = jax.random.normal(key, (train.n_items, width_of(dim, None, train.n_users, train.n_items)))
    vectors, squares, residual = _leading(*graph, start, tolerance, dim=dim, passes=passes)
    return Spectrum(vectors, squares, residual, jnp.asarray(normalization, vectors.dtype))


def fit(
    train: Interactions,
    *,
    polynomial: Any,
    scale: float = 0.0,
    dim: int = 0,
    weight: float = 0.0,
    low_pass_scale: float = 0.5,
    low_pass_polynomial: Any = _ONE,
    normalization: float = 0.5,
    rank: int | None = None,
    key: Key | None = None,
    tolerance: float = 1e-4,
    spectrum: Spectrum | None = None,
) -> tuple[SpectralFilter, Variables, Log]:
    """Builds a spectral filter; the module's docstring has the formula.

    Only V has to be computed. A ranking takes two sparse products for each degree of p. With `rank`
    it takes two products in all: p(P) is replaced by l(P) + V (p(Σ²) − l(Σ²)) Vᵀ, where V has `rank`
    columns, and the line l equals p at 0 and at the last of their eigenvalues Σ².

    Args:
        train: R, the positives; their weights are ignored.
        polynomial: p, a series of `numpy.polynomial`, such as `Polynomial([0, 1])` for t.
        scale: b, the power of the items' degrees around p.
        dim: K, the number of singular vectors of the ideal low-pass filter; 0 for none.
        weight: w, the weight of the ideal low-pass filter.
        low_pass_scale: a, the power of the items' degrees around it.
        low_pass_polynomial: q, a series; a ranking takes no more time with it.
        normalization: c, the power of the users' degrees, from 0 to 1; 1 − c is that of the items'.
        rank: number of singular vectors for which p is exact; for the others a line replaces it.
            None is exact for all.
        key: typed key that draws the initial vectors of a decomposition; used only if one is
            needed.
        tolerance: see `decompose`.
        spectrum: from `decompose`, of the same `train`; by default `fit` decomposes.

    Returns:
        The model `SpectralFilter`, its variables, and an empty `Log`. The model scores users by
        their `histories`, such as `train`.

    Raises:
        TypeError: if a polynomial is not a series.
        ValueError: if a number is not finite or outside its bounds; powers of the degrees do not fit
            float32; `dim` or `rank` is not an integer up to min(M, N); a decomposition is needed and
            `key` is not a typed key; the `spectrum` has fewer vectors, other items or another
            `normalization`; or `train` has no pairs, or weights that are negative, not finite or
            all 0.

    >>> train = Interactions.from_pairs([0, 0, 1, 1, 2], [0, 1, 1, 2, 2])
    >>> model, variables, log = fit(train, **gf_cf(dim=1), key=jax.random.key(0))
    >>> model.apply(variables, None, histories=train, method="rows").shape
    (3, 3)
    """
    check_positives(train=train)
    number("weight", weight)
    most = min(train.n_users, train.n_items)
    dim = integer("dim", dim, least=0, most=most) if weight else 0
    rank = 0 if rank is None else integer("rank", rank, most=most)
    p, q = _coefficients("polynomial", polynomial), _coefficients("low_pass_polynomial", low_pass_polynomial)
    graph = _graph(train, normalization)
    if (rank or dim) and spectrum is None:
        check_key(key)
        known: Any = key
        spectrum = decompose(train, dim=max(rank, dim), key=known, normalization=normalization, tolerance=tolerance)
    elif spectrum is not None and (rank or dim):
        _check_spectrum(spectrum, train, max(rank, dim), normalization)
    degrees = np.maximum(train.item_degrees, 1.0)  # an item without users keeps its row of P, which is 0
    given = (("scale", scale), ("low_pass_scale", low_pass_scale))
    around, around_low_pass = (jnp.asarray(powers(name, power, degrees), float) for name, power in given)
    tables = []
    if dim and spectrum is not None:
        vectors = spectrum.item[:, :dim]
        decoder = filtered(*graph, jnp.asarray(weight * q, vectors.dtype), around_low_pass[:, None] * vectors)
        tables.append((vectors / around_low_pass[:, None], decoder))
    if rank and spectrum is not None:
        vectors, squares = spectrum.item[:, :rank], np.asarray(spectrum.squares[:rank], np.float64)
        line = _line(p, squares[-1])
        gains = jnp.asarray(chebval(2 * squares - 1, p) - chebval(2 * squares - 1, line), vectors.dtype)
        tables.append((vectors / around[:, None], around[:, None] * vectors * gains[None]))
        p = line
    encoder, decoder = _joined(tables, train.n_items, shared=scale == low_pass_scale)
    params = {"coefficients": jnp.asarray(p, float), "scale": around, "encoder": encoder, "decoder": decoder}
    model = SpectralFilter(train.n_items, degree=len(p) - 1, dim=encoder.shape[1])
    return model, {"params": params, "graph": dict(zip(("by_user", "by_item"), graph))}, Log()


def _coefficients(name: str, series: Any) -> np.ndarray:
    """Returns the coefficients of a series in Chebyshev's polynomials of 2t − 1, for t from 0 to 1."""
    if not hasattr(series, "convert"):
        raise TypeError(
            f"{name} is a {type(series).__name__}; give a series of numpy.polynomial, such as Polynomial([0, 1]) for t"
        )
    found = np.asarray(series.convert(domain=[0, 1], kind=Chebyshev).trim().coef, np.float64)
    number(name, found)
    return found


def _line(p: np.ndarray, end: float) -> np.ndarray:
    """Returns the coefficients of the line that equals the series `p` at t = 0 and at t = `end`."""
    at_zero, at_end = chebval(np.array([-1.0, 2 * end - 1]), p)
    slope = (at_end - at_zero) / end if end > 0 else 0.0
    return np.array([at_zero + slope / 2, slope / 2])


def _graph(train: Interactions, normalization: float) -> tuple[Interactions, Interactions]:
    """Returns R̃ and its transpose, on the device."""
    power = float(number("normalization", normalization, least=0, most=1))
    users, items = train.pairs()
    of_users, of_items = (np.asarray(x, np.float64) for x in (train.user_degrees, train.item_degrees))
    weights = of_users[users] ** -power * of_items[items] ** (power - 1)
    by_user = dataclasses.replace(train, weights=weights, timestamps=None)
    return jax.tree.map(jnp.asarray, (by_user, by_user.transpose()))


@functools.partial(jax.jit, static_argnames=("dim", "passes"))
def _leading(by_user: Interactions, by_item: Interactions, start: Array, tolerance: Scalar, *, dim: int, passes: int):
    """Returns the leading right singular vectors of R̃, the squares of its values, and residuals."""
    found = leading(
        functools.partial(spmm, by_user, by_item),
        functools.partial(spmm, by_item, by_user),
        start,
        tolerance,
        dim=dim,
        passes=passes,
        orthonormal=by_gram,
    )
    return found.right[:, :dim], found.squares[:dim], found.residual[:dim]


filtered = jax.jit(polynomial_of)


def _joined(tables: Sequence[tuple[Array, Array]], n_items: int, shared: bool) -> tuple[jax.Array, jax.Array]:
    """Returns the tables E and F of the sum of terms x E Fᵀ.

    If the terms have the same E, up to its width, F is the sum of their F.
    """
    if not tables:
        return jnp.zeros((n_items, 0)), jnp.zeros((n_items, 0))
    if len(tables) == 2 and shared:
        (_, narrow), (encoder, wide) = sorted(tables, key=lambda table: table[0].shape[1])
        return encoder, jnp.asarray(wide).at[:, : narrow.shape[1]].add(narrow)
    encoders, decoders = zip(*tables)
    return jnp.concatenate(encoders, axis=1), jnp.concatenate(decoders, axis=1)


def _check_spectrum(spectrum: Spectrum, train: Interactions, dim: int, normalization: float) -> None:
    """Raises `ValueError` for a spectrum that does not fit the other arguments of `fit`."""
    n_items, reached = spectrum.item.shape
    if n_items != train.n_items:
        raise ValueError(f"spectrum has {n_items} items and train {train.n_items}; decompose the same train")
    if reached < dim:
        raise ValueError(f"spectrum has {reached} vectors and {dim} are needed; call decompose with dim={dim}")
    if not np.isclose(float(spectrum.normalization), normalization):
        raise ValueError(
            f"spectrum has normalization={float(spectrum.normalization):g}, but normalization={normalization}; "
            "decompose with the same"
        )
