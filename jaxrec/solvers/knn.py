"""Item-based nearest neighbours: cosine similarities and random walks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec._log import Log
from jaxrec._numerics import fits, integer, number, powers
from jaxrec._pairs import offsets
from jaxrec.interactions import Interactions, check_positives
from jaxrec.models.knn import ItemKNN
from jaxrec.typing import Variables

_ENTRIES = 1 << 22  # entries of the item-item product that are computed at a time


def item_knn(train: Interactions, *, neighbours: int = 100, shrinkage: float = 0.0) -> tuple[ItemKNN, Variables, Log]:
    """Computes item-based nearest neighbours (Sarwar et al. 2001, 10.1145/371920.372071).

    The similarity of items i and j with n_i and n_j users, of whom n_ij are the same, is the cosine
    with shrinkage, n_ij / (√(n_i n_j) + h). The score of an item is the sum of its similarities to
    those of its nearest neighbours that are in the history.

    Args:
        train: the positives; their weights are ignored.
        neighbours: largest number of neighbours of an item.
        shrinkage: h, which lowers similarities of items with few users.

    Returns:
        The model `ItemKNN`, its variables, and an empty `Log`. The model scores users by their
        `histories`, such as `train`.

    Raises:
        ValueError: if `neighbours` is not an integer of 1 or more; `shrinkage` is negative, not finite,
            or so large that similarities do not fit float32; `train` has no pairs; or weights are
            negative, not finite or all 0.

    >>> model, variables, log = item_knn(Interactions.from_pairs([0, 0, 1, 1, 2], [0, 1, 0, 1, 2]))
    >>> model.apply(variables, None, histories=Interactions.from_pairs([0], [0], n_items=3), method="rows").tolist()
    [[0.0, 1.0, 0.0]]
    """
    check_positives(train=train)
    shrinkage = float(number("shrinkage", shrinkage, least=0))
    x, lengths = _matrix(train), np.sqrt(train.item_degrees)

    def similarities(counts: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return counts / (lengths[rows] * lengths[columns] + shrinkage)

    return _model(_nearest(train, x.T.tocsr(), x, similarities, neighbours), f"shrinkage={shrinkage}")


def rp3beta(
    train: Interactions, *, neighbours: int = 200, alpha: float = 0.8, beta: float = 0.2
) -> tuple[ItemKNN, Variables, Log]:
    """Computes RP³β (Paudel et al. 2017, 10.1145/2955101): random walks of three steps.

    A walk goes from a user to an item i of theirs, to a user of i, and to an item j. Probabilities
    of steps are raised to the power α, and items' scores are divided by a power of their degree:

        w_ij = n_i⁻ᵅ n_j⁻ᵝ Σ_u n_u⁻ᵅ over the users u of both items,   score of j = Σ_i w_ij

    with the degrees n, and a sum over the items i of the history. β = 0 gives P³α (Cooper et al.
    2014).

    Args:
        train: the positives; their weights are ignored.
        neighbours: number of items j of the largest w_ij that are kept for each i.
        alpha: α, the power of the probabilities; 0 counts paths.
        beta: β, the power of the penalty of popular items. The defaults of all three are our choice.

    Returns:
        The model `ItemKNN`, its variables, and an empty `Log`. The model scores users by their
        `histories`, such as `train`.

    Raises:
        ValueError: if `neighbours` is not an integer of 1 or more; `alpha` or `beta` is not finite,
            or so large that weights do not fit float32; `train` has no pairs; or weights are
            negative, not finite or all 0.

    Differs: the paper samples walks, and keeps all items. It leaves out the power of the first step,
    which changes no ranking.
    """
    check_positives(train=train)
    import scipy.sparse

    x = _matrix(train)
    of_users, of_items = (np.maximum(np.asarray(n), 1) for n in (train.user_degrees, train.item_degrees))
    per_user, per_first, per_last = (
        1 / powers(name, power, base)
        for name, power, base in (("alpha", alpha, of_users), ("alpha", alpha, of_items), ("beta", beta, of_items))
    )
    scaled = scipy.sparse.diags_array(per_user) @ x

    def similarities(sums: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return sums * per_first[rows] * per_last[columns]

    # Rows are of items i, but a row of the model is of an item j.
    nearest = _nearest(train, x.T.tocsr(), scaled.tocsr(), similarities, neighbours)
    return _model(nearest.transpose(), f"alpha={alpha} and beta={beta}")


def _matrix(train: Interactions) -> Any:
    """Returns the positives as a SciPy matrix of ones, in float64."""
    x = train.to_scipy()
    x.data = np.ones(len(x.data))
    return x


def _model(table: Interactions, settings: str) -> tuple[ItemKNN, Variables, Log]:
    """Returns the model of a matrix [N, N] whose rows hold the neighbours of an item.

    Raises:
        ValueError: if weights do not fit float32; names the settings.
    """
    if not fits(np.asarray(table.weights)):
        raise ValueError(f"with {settings}, some weights do not fit float32; give numbers nearer to 0")
    return ItemKNN(table.n_items), {"graph": {"neighbours": jax.tree.map(jnp.asarray, table)}}, Log()


def _nearest(train: Interactions, left: Any, right: Any, similarities: Callable, neighbours: int) -> Interactions:
    """Returns the largest entries in each row of a function of `left @ right`, without the diagonal.

    Args:
        train: the positives.
        left: SciPy CSR [N, M].
        right: SciPy CSR [M, N].
        similarities: function of entries of the product, and their rows and columns.
        neighbours: number of entries of a row to keep.
    """
    neighbours = integer("neighbours", neighbours)
    counts, columns, weights = [], [], []
    for rows in _blocks(train):
        block = (left[rows] @ right).tocoo()
        row, column = block.coords
        value = similarities(block.data, row + rows.start, column)
        kept = (row + rows.start != column) & (value > 0)
        row, column, value = (x[kept] for x in (row, column, value))
        kept = _largest(row, value, rows.stop - rows.start, neighbours)
        row, column, value = (x[kept] for x in (row, column, value))
        order = np.lexsort((column, row))
        counts.append(np.bincount(row, minlength=rows.stop - rows.start))
        columns.append(column[order].astype(np.int32))
        weights.append(value[order])
    indptr = offsets(np.r_[0, np.cumsum(np.concatenate(counts))])
    return Interactions(indptr, np.concatenate(columns), np.concatenate(weights), None, train.n_items, train.n_items)


def _blocks(train: Interactions) -> Iterator[slice]:
    """Yields slices of one or more items with at most `_ENTRIES` entries of the product, if possible."""
    users, items = train.pairs()
    entries = np.bincount(items, np.asarray(train.user_degrees)[users], train.n_items)
    ends = np.cumsum(np.minimum(entries, train.n_items))
    start = 0
    while start < train.n_items:
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + _ENTRIES, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


def _largest(rows: np.ndarray, values: np.ndarray, n_rows: int, most: int) -> np.ndarray:
    """Returns the places of the `most` largest values of each row; rows are ascending."""
    ends = np.cumsum(np.bincount(rows, minlength=n_rows))
    kept = []
    for start, stop in zip(np.r_[0, ends[:-1]], ends):
        part = np.arange(start, stop)
        if len(part) > most:
            part = part[np.argpartition(-values[start:stop], most - 1)[:most]]
        kept.append(part)
    return np.concatenate(kept)
