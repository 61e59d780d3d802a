"""Non-negative matrix factorisation, by scikit-learn."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import scipy.sparse

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
    """Non-negative matrix factorisation (Lee and Seung 1999, 10.1038/44565).

    min ½‖X − WHᵀ‖² + ½ regularization (‖W‖² + ‖H‖²) over W [M, D] ≥ 0 and H [N, D] ≥ 0, X [M, N] the weights of
    `train`, by scikit-learn (the extra `nmf`): coordinate descent on the host from a random start.

    Args:
        train: the interactions; pairs without weights weigh 1.
        dim: D.
        key: typed key of the start.
        regularization: λ.
        iterations: at most so many; scikit-learn warns where they do not suffice.
        tolerance: ends it where the gradient has fallen to that share of its first norm.

    Returns:
        The model `MF`, its variables, and an empty `Log`.

    Raises:
        ImportError: where scikit-learn is missing.
        ValueError: for a seed in place of a key, no pairs, weights that are negative, not finite or all 0, a dim or a
            number of iterations that is not an integer of 1 or more, and a regularization or tolerance below 0 or not
            finite.

    Differs: scikit-learn scales its penalties by N and M since version 1.0; here they are those of the formula, as they
    were when the papers that compare with it were written.
    """
    check_positives(train=train)
    check_key(key)
    dim, iterations = integer("dim", dim), integer("iterations", iterations)
    for name, value in (("regularization", regularization), ("tolerance", tolerance)):
        number(name, value, least=0)
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
        alpha_W=float(regularization) / train.n_items,
        alpha_H=float(regularization) / train.n_users,
    )
    users = solver.fit_transform(scipy.sparse.csr_matrix(train.to_scipy()))
    variables = {"params": {"user": jnp.asarray(users), "item": jnp.asarray(solver.components_.T)}}
    return MF(train.n_users, train.n_items, dim=dim), variables, Log()
