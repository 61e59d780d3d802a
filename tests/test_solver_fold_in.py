"""What the fold-ins share: few programs, and sums over the items that are kept as long as their table."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec as jr
from jaxrec.solvers import _alternate, _factors, _fold_in, ials, rg2

N, K = 23, 5
FOLDS = {
    "ials": partial(ials.fold_in, regularization=0.1, unobserved_weight=0.1),
    "rg2": partial(rg2.fold_in, regularization=0.1),
    "rg2, alpha": partial(rg2.fold_in, regularization=0.1, alpha=0.3, steps=3),
}
PROGRAMS = (_factors._table, _factors._vectors, _alternate.compiled(traced=False), rg2._fold_in)


def histories(*lengths):
    """Histories of the given lengths, with weights."""
    users = np.repeat(np.arange(len(lengths)), lengths)
    items = np.concatenate([np.random.default_rng(n).permutation(N)[:n] for n in lengths])
    return jr.Interactions.from_pairs(users, items, weights=1 + items / 10, n_items=N)


def table():
    return jnp.asarray(np.random.default_rng(0).normal(size=(N, K)), jnp.float32)


@pytest.mark.every_case
@pytest.mark.parametrize("solver", FOLDS)
def test_histories_of_similar_lengths_share_programs_and_sums(solver):
    fold, variables = FOLDS[solver], {"params": {"item": table()}}
    fold(variables, histories(3))
    sizes, kept = [program._cache_size() for program in PROGRAMS], len(_fold_in._kept)
    alone = [fold(variables, histories(n)) for n in (4, 9, 16)]
    assert [program._cache_size() for program in PROGRAMS] == sizes and len(_fold_in._kept) == kept
    np.testing.assert_allclose(jnp.concatenate(alone), fold(variables, histories(4, 9, 16)), rtol=1e-4, atol=1e-6)
    del variables
    assert len(_fold_in._kept) == kept - 1


@pytest.mark.parametrize("solver", FOLDS)
def test_another_table_has_its_own_sums(solver):
    tables = [table(), 2 * table()]
    first, second = (FOLDS[solver]({"params": {"item": x}}, histories(4)) for x in tables)
    again = [FOLDS[solver]({"params": {"item": np.asarray(x)}}, histories(4)) for x in tables]
    np.testing.assert_array_equal([first, second], again)
    assert not np.allclose(first, second)


def test_traced_sums_are_not_kept():
    item = table()
    before = len(_fold_in._kept)
    fold = lambda: FOLDS["ials"]({"params": {"item": item}}, histories(4))  # noqa: E731
    np.testing.assert_allclose(jax.jit(fold)(), fold(), rtol=1e-4)
    assert len(_fold_in._kept) == before + 1


def test_padding_changes_nothing():
    plain, padded = (histories(4, 9).take([0, 1], capacity=n) for n in (None, 40))
    for fold in FOLDS.values():
        variables = {"params": {"item": table()}}
        np.testing.assert_array_equal(fold(variables, padded), fold(variables, plain))
