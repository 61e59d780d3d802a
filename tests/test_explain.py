"""Contributions of a user's items add up to the scores of the exact half step."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.interactions import Interactions
from jaxrec.solvers import ease, ials, rg2, wrmf

RNG = np.random.default_rng(0)
USERS, ITEMS = np.nonzero(RNG.random((8, 10)) < 0.35)
TRAIN = Interactions.from_pairs(USERS, ITEMS, n_users=8, n_items=10, weights=RNG.uniform(0.5, 2, len(USERS)))
ITEM = jnp.asarray(RNG.normal(size=(10, 3)), jnp.float32)
VARIABLES = {"params": {"item": ITEM}}
ASKED = np.array([[0, 5, -1]] * 4 + [[9, 1, 2]] * 4)
CASES = {
    "ials": (ials, {"regularization": 0.1, "unobserved_weight": 0.3, "nu": 0.5}),
    "wrmf": (wrmf, {"regularization": 0.2, "alpha": 3.0}),
    "rg2": (rg2, {"regularization": 0.3, "alpha": 0.0}),
    "rg2, α": (rg2, {"regularization": 0.3, "alpha": 0.5}),
}


def _sums(parts):
    found = np.zeros((8, 3))
    np.add.at(found, TRAIN.pairs()[0], np.asarray(parts))
    return found


@pytest.mark.parametrize("name", CASES)
def test_contributions_add_up_to_the_score_of_the_fold_in(name):
    solver, how = CASES[name]
    vectors = np.asarray(solver.fold_in(VARIABLES, TRAIN, **how))
    scores = np.where(ASKED >= 0, np.einsum("bk,bnk->bn", vectors, np.asarray(ITEM)[ASKED]), 0)
    parts = solver.explain(VARIABLES, TRAIN, ASKED, **how)
    assert parts.shape == (TRAIN.n_pairs, 3)
    found = _sums(parts)
    if solver is rg2:  # without the term that belongs to no item of the user
        q, mean = np.asarray(ITEM, np.float64), np.asarray(ITEM, np.float64).mean(0)
        for user in range(8):
            if not (TRAIN.pairs()[0] == user).any():
                continue  # the zero vector
            own, r = TRAIN.pairs()[1][TRAIN.pairs()[0] == user], np.asarray(TRAIN.weights)[TRAIN.pairs()[0] == user]
            matrix = q.T @ q / 10 + 0.3 * (1 + 2 * how["alpha"]) * np.eye(3)
            matrix += 2 * how["alpha"] * np.einsum("j,jk,jm->km", r / r.sum(), q[own], q[own])
            found[user] -= np.where(ASKED[user] >= 0, q[ASKED[user]] @ np.linalg.solve(matrix, mean), 0)
    np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-5)
    assert not parts[:, 2][TRAIN.pairs()[0] < 4].any()  # padding


def test_contributions_of_ease_are_its_weights():
    weights = RNG.normal(size=(10, 10)).astype(np.float32)
    rows = (TRAIN.to_scipy() > 0).astype(np.float32) @ weights
    found = _sums(ease.explain({"params": {"weights": weights}}, TRAIN, ASKED))
    np.testing.assert_allclose(found, np.where(ASKED >= 0, np.take_along_axis(rows, ASKED, 1), 0), atol=1e-5)
    with pytest.raises(ValueError, match="no weights of 10 x 10 items"):
        ease.explain(VARIABLES, TRAIN, [0])


def test_items_may_be_the_same_for_all_and_are_checked():
    how = CASES["ials"][1]
    np.testing.assert_allclose(
        ials.explain(VARIABLES, TRAIN, [3, 4], **how),
        ials.explain(VARIABLES, TRAIN, np.array([[3, 4]] * 8), **how),
        rtol=1e-6,
    )
    for items, message in ((np.zeros((3, 2), int), r"int64\[3, 2\], for 8 users"), ([10], "run from 10 to 10"),
                           ([0.5], "give ids")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ials.explain(VARIABLES, TRAIN, items, **how)


def test_an_item_explains_the_score_of_its_neighbour():
    """Two items have the same vector. A user of one is recommended the other because of it."""
    train = Interactions.from_pairs([0, 0], [0, 2], n_items=3)
    item = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    how = {"regularization": 0.1, "unobserved_weight": 0.1}
    parts = np.asarray(ials.explain({"params": {"item": item}}, train, [1], **how))
    assert parts[0, 0] > 0.5 and abs(parts[1, 0]) < 1e-6
