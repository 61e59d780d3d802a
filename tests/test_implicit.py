"""Gradients through repeated updates: at a fixed point they are those of all updates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.valid import PARAMS, TRAIN, TWO, USERS

from jaxrec.models import implicit

H = np.random.default_rng(0).normal(size=(9, 4))
START = PARAMS["prototype"]
N_UPDATES = 60  # each halves the distance to the fixed point


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def loss(start, h, gradient, n=N_UPDATES):
    """A function of prototypes after n updates, which are those of VALID for one user."""

    def update(x, number):
        shares = jax.nn.softmax(x @ unit(h).T / 0.2, axis=0)
        return unit(unit(shares) @ unit(h))

    x = gradient(update, unit(start), n)
    return (x * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)).sum()


def gradients(gradient, **options):
    with jax.enable_x64(True):
        of = jax.value_and_grad(loss, argnums=(0, 1))
        return jax.tree.map(np.asarray, jax.jit(partial(of, gradient=gradient, **options))(START, H))


def scanned(update, start, n):
    """`unrolled` of updates that do not depend on their number, compiled once."""
    return jax.lax.scan(lambda x, _: (update(x, number=1), None), start, None, length=n)[0]


@pytest.fixture(scope="module")
def exact():
    return gradients(scanned)


@pytest.mark.deep
@pytest.mark.parametrize("gradient", [partial(implicit.neumann, terms=60), partial(implicit.gmres, tolerance=1e-9)])
def test_implicit_gradients_are_those_of_all_updates_at_a_fixed_point(gradient, exact):
    """The gradient of the start is 0, because the fixed point does not depend on it."""
    value, (of_start, of_items) = gradients(gradient)
    assert value == pytest.approx(exact[0], rel=1e-12)
    np.testing.assert_allclose(of_items, exact[1][1], rtol=1e-6, atol=1e-9)
    assert not of_start.any() and np.abs(exact[1][0]).max() < 1e-6 < np.abs(of_items).max()


@pytest.mark.deep
def test_one_step_points_the_same_way(exact):
    """The cosine with the exact gradient is above .9, and not 1. It is the first term of Neumann's series."""
    _, (of_start, of_items) = gradients(implicit.one_step)
    lengths = np.linalg.norm(of_items) * np.linalg.norm(exact[1][1])
    assert 0.9 < (of_items * exact[1][1]).sum() / lengths < 0.999
    assert not of_start.any()
    np.testing.assert_allclose(gradients(partial(implicit.neumann, terms=0))[1][1], of_items, rtol=1e-6)


def test_detached_and_straight_through():
    value, (of_start, of_items) = gradients(implicit.detach, n=2)
    assert not of_start.any() and not of_items.any()
    through, (of_start, of_items) = gradients(implicit.straight_through, n=2)
    assert through == pytest.approx(value, rel=1e-12) and not of_items.any()
    v, x = np.cos(np.arange(12)).reshape(3, 4), START / np.linalg.norm(START, axis=1, keepdims=True)
    projected = (v - (v * x).sum(1, keepdims=True) * x) / np.linalg.norm(START, axis=1, keepdims=True)
    np.testing.assert_allclose(of_start, projected, rtol=1e-10)


@pytest.mark.deep
def test_unrolled_updates_are_all_differentiated():
    for a, b in zip(*(jax.tree.leaves(gradients(way, n=3)) for way in (implicit.unrolled, scanned)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
    with jax.enable_x64(True):
        step, (_, of_items) = 1e-6, gradients(implicit.unrolled, n=3)[1]
        moved = [loss(START, H + np.eye(9, 4) * by, implicit.unrolled, n=3) for by in (step, -step)]
        assert float(moved[0] - moved[1]) / (2 * step) == pytest.approx(np.trace(of_items), rel=1e-7)


def test_updates_are_numbered():
    def update(x, number):
        return 10 * x + number

    for way, expected in [
        (implicit.unrolled, 123.0),
        (implicit.detach, 123.0),
        (implicit.one_step, 123.0),
        (implicit.straight_through, 123.0),
    ]:
        assert float(way(update, jnp.zeros(1), 3)[0]) == expected


@pytest.mark.parametrize("way", [implicit.neumann, implicit.gmres])
def test_few_updates_are_warned_of_and_all_have_the_number_of_the_first(way):
    with pytest.warns(UserWarning, match="3 updates rarely reach; make 9 or more"):
        assert float(way(lambda x, number: 10 * x + number, jnp.zeros(1), 3)[0]) == 111


@pytest.mark.deep
@pytest.mark.parametrize("way", [implicit.unrolled, implicit.one_step, implicit.neumann, implicit.gmres])
def test_an_update_may_hold_traced_keys_and_integers(way):
    """Parts of a batch that are mapped one by one have the values and gradients of separate parts."""

    def part(h, seed):
        key, places = jax.random.key(seed), jnp.arange(3) + seed

        def update(x, number):
            return 0.3 * jnp.cos(x) * h[places] + jax.random.normal(key, (3,), h.dtype)

        n = 5 if way is implicit.unrolled else 30  # unrolled updates need not reach the fixed point
        return way(update, jnp.zeros(3, h.dtype), n).sum()

    def mapped(h):
        return jax.lax.map(jax.checkpoint(lambda seed: part(h, seed)), jnp.arange(2)).sum()

    with jax.enable_x64(True):
        h = jnp.linspace(0.5, 1, 4)
        found, expected = (jax.jit(jax.value_and_grad(f))(h) for f in (mapped, lambda h: part(h, 0) + part(h, 1)))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
        if way is not implicit.one_step:
            step = 1e-6 * np.eye(4)[2]
            slope = float(mapped(h + step) - mapped(h - step)) / 2e-6
            assert float(found[1][2]) == pytest.approx(slope, rel=1e-5)


@pytest.mark.deep
@pytest.mark.parametrize("gradient", [partial(implicit.neumann, terms=60), implicit.gmres])
def test_gradients_of_valid_at_a_fixed_point(gradient):
    """The model has 200 blocks and the parameters of the released fixture."""

    def graded(way):
        def total(params, histories):
            model = TWO.clone(n_blocks=200, gradient=way)
            nll, kl = model.apply({"params": params}, USERS, histories=histories, method="bound")
            return nll.mean() + 0.7 * kl.mean()

        return jax.jit(jax.value_and_grad(total))(PARAMS, TRAIN)

    with jax.enable_x64(True):
        (value, exact), (found, other) = graded(scanned), graded(gradient)
    assert float(found) == pytest.approx(float(value), rel=1e-12)
    np.testing.assert_allclose(other["item"], exact["item"], rtol=1e-6, atol=1e-8)
    assert not other["prototype"].any()
