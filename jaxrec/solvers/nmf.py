"""Non-negative matrix factorisation with scikit-learn."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp

from jaxrec._keys import check_key
from jaxrec._log import Log
from jaxrec._numerics import integer, number
from jaxrec.interactions import Interactions, check_positives
from jaxrec.models.mf import MF
from jaxrec.typing import Key, Variables


def fit(
    train: Interactions,
    *,
    dim: int,
    key: Key,
    regularization: float = 0.05,
    iterations: int = 200,
    tolerance: float = 1e-4,
) -> tuple[MF, Variables, Log]:
    """Fits a non-negative matrix factorisation (Lee and Seung 1999, 10.1038/44565).

    It minimises ½‖X − WHᵀ‖² + ½ λ (‖W‖² + ‖H‖²) over W [M, D] ≥ 0 and H [N, D] ≥ 0, where X [M, N]
    holds the weights of `train`. scikit-learn (the extra `nmf`) does it on the host, by coordinate
    descent from a random start.

    Args:
        train: the interactions. Pairs have the weight 1 if there are no weights.
        dim: D, the number of dimensions of a factor.
        key: typed key that draws the start.
        regularization: λ, the strength of the L2 regularisation.
        iterations: maximum number of iterations. scikit-learn warns if it does not converge within
            them.
        tolerance: ends the iterations when the projected gradient has fallen to this fraction of
            its first value; its size is the sum of its absolute values.

    Returns:
        The model `MF`, its variables, and an empty `Log`.

    Raises:
        ImportError: if scikit-learn is missing.
        ValueError: if `key` is not a typed key, such as an integer seed; there are no pairs;
            weights are negative, not finite or all 0; `dim` or `iterations` is not an integer of 1
            or more; or `regularization` or `tolerance` is negative or not finite.

    Differs: scikit-learn multiplies its penalties by N and M since version 1.0. Here they are those
    of the formula, as in the versions that earlier papers used.
    """
    check_positives(train=train)
    check_key(key)
    dim, iterations = integer("dim", dim), integer("iterations", iterations)
    for name, value in (("regularization", regularization), ("tolerance", tolerance)):
        number(name, value, least=0)
    import scipy.sparse

    try:
        decomposition = importlib.import_module("sklearn.decomposition")
    except ImportError as error:
        raise ImportError(f'sklearn cannot be imported ({error}); pip install "jaxrec[nmf]"') from error
    solver = decomposition.NMF(
        dim,
        init="random",
        tol=float(tolerance),
        max_iter=iterations,
        random_state=int(jax.random.bits(key, dtype=jnp.uint32)),
        # scikit-learn multiplies alpha_W by N and alpha_H by M.
        alpha_W=float(regularization) / train.n_items,
        alpha_H=float(regularization) / train.n_users,
    )
    users = solver.fit_transform(scipy.sparse.csr_matrix(train.to_scipy()))
    variables = {"params": {"user": jnp.asarray(users), "item": jnp.asarray(solver.components_.T)}}
    return MF(train.n_users, train.n_items, dim=dim), variables, Log()
