"""One row of negatives for many positives: the values of the broadcast comparison, without its [B, P, N] array."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.losses import LOSSES, close

from jaxrec import losses

B, P, N = 3, 5, 7
EACH = [
    name for name in LOSSES if "_sum" not in name and name not in ("warp_tight", "infonce_plus_share", "softmax_cold")
]
every_fn = pytest.mark.parametrize("loss", [LOSSES[name][0] for name in EACH], ids=EACH)
MASKS = {"no mask": None, "of the row": (B, 1, N), "of each positive": (B, P, N)}


def _scores(mask):
    rng = np.random.default_rng(0)
    pos, neg = (rng.uniform(-1, 0.9, shape).astype(np.float32) for shape in ((B, P), (B, 1, N)))
    where = None if MASKS[mask] is None else rng.random(MASKS[mask]) < 0.5
    if where is not None:
        where[0, 0] = False  # a row with nothing valid
    return pos, neg, where


def _weighted(loss, where):
    """Value and gradients of a sum in which each comparison has another weight."""
    weights = np.linspace(1, 2, B * P).reshape(B, P).astype(np.float32)
    return jax.value_and_grad(lambda p, n: (loss(p, n, where=where) * weights).sum(), argnums=(0, 1))


def _sizes(jaxpr):
    """Sizes of all arrays in a jaxpr and in those within it."""
    yield from (math.prod(v.aval.shape) for v in (*jaxpr.constvars, *jaxpr.invars))
    for eqn in jaxpr.eqns:
        yield from (math.prod(v.aval.shape) for v in (*eqn.invars, *eqn.outvars))
        for x in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(x, "eqns") or hasattr(x, "jaxpr"):
                yield from _sizes(getattr(x, "jaxpr", x))


def _largest(f, *args):
    return max(_sizes(jax.make_jaxpr(f)(*args).jaxpr))


@every_fn
@pytest.mark.parametrize("mask", ["of the row", "of each positive"])
def test_values_and_gradients_are_those_of_the_broadcast_comparison(loss, mask):
    pos, neg, where = _scores(mask)
    value, (d_pos, d_neg) = jax.jit(_weighted(loss, where))(pos, neg)
    whole = None if where is None else np.broadcast_to(where, (B, P, N))
    direct, (direct_pos, direct_neg) = jax.jit(_weighted(loss, whole))(pos, np.broadcast_to(neg, (B, P, N)))
    close(value, direct)
    close(d_pos, direct_pos)
    close(d_neg, np.asarray(direct_neg).sum(1, keepdims=True), rtol=2e-5)


@every_fn
@pytest.mark.parametrize("mask", ["no mask", "of the row"])
def test_no_array_of_all_pairs_appears(loss, mask):
    pos, neg, where = _scores(mask)
    assert B * N <= _largest(_weighted(loss, where), pos, neg) < B * P * N
    assert B * N <= _largest(lambda p, n: loss(p, n, where=where), pos, neg) < B * P * N


def test_the_search_for_arrays_of_all_pairs_finds_one():
    pos, neg, _ = _scores("no mask")
    assert _largest(_weighted(losses.bpr, None), pos, np.broadcast_to(neg, (B, P, N))) == B * P * N
    assert _largest(lambda p, n: jnp.minimum(p[..., None], n).sum(), pos, neg) == B * P * N
    inside = jax.checkpoint(lambda p, n: jax.lax.map(lambda row: jnp.outer(row[0], row[1]).sum(), (p, n)))
    assert _largest(lambda p, n: inside(p, n).sum(), pos, neg) == P * N > max(pos.size, neg.size)


def test_negatives_of_each_positive_need_no_loop():
    pos, neg, _ = _scores("no mask")
    for name in ("bpr", "hinge", "warp", "triplet", "sml"):
        loss = LOSSES[name][0]
        assert "scan" in str(jax.make_jaxpr(loss)(pos, neg))
        assert "scan" not in str(jax.make_jaxpr(loss)(pos, np.broadcast_to(neg, (B, P, N))))
        assert "scan" not in str(jax.make_jaxpr(loss)(pos[0], np.broadcast_to(neg[0], (P, N))))
        assert "scan" not in str(jax.make_jaxpr(loss)(pos[:, :1], neg))


@pytest.mark.parametrize("name", ["bpr", "warp", "softmax", "sml"])
def test_full_rows_without_leading_axes_and_under_vmap(name):
    loss = LOSSES[name][0]
    pos, neg, _ = _scores("no mask")
    values = jax.jit(loss)(pos, neg)
    close(jax.jit(jax.vmap(loss))(pos, neg), values)
    close(jax.jit(loss)(pos[0], neg[0]), values[0])


def test_traced_hyperparameters_get_their_gradient_through_the_loop():
    pos, neg, where = _scores("of the row")
    gradient = jax.jit(jax.grad(lambda m, p, n, w: losses.hinge(p, n, where=w, margin=m).sum()))
    close(gradient(0.3, pos, neg, where), gradient(0.3, pos, np.repeat(neg, P, 1), np.repeat(where, P, 1)))


@pytest.mark.deep
def test_boundaries_of_users_need_no_loop_and_boundaries_of_positives_do():
    pos, neg, where = _scores("of the row")
    for columns in (1, P):
        boundary = np.linspace(-1, 1, B * columns).reshape(B, columns).astype(np.float32)

        def total(p, n, b, w=where):
            return losses.uib(p, n, where=w, boundary=b).sum()

        assert _largest(jax.grad(total, argnums=(0, 1, 2)), pos, neg, boundary) < B * P * N
        repeated = np.repeat(neg, P, 1), np.broadcast_to(boundary, (B, P)), np.repeat(where, P, 1)
        close(total(pos, neg, boundary), total(pos, *repeated))


@pytest.mark.deep
def test_sml_takes_margins_and_distances_of_each_positive_through_the_loop():
    pos, neg, where = _scores("of the row")
    rng = np.random.default_rng(1)
    between, user, item = (rng.random(shape).astype(np.float32) for shape in ((B, P, N), (B, 1), (B, P)))

    def total(p, n, w, d, mu, ni):
        return losses.sml(p, n, where=w, between=d, user_margin=mu, item_margin=ni, weight=0.5).sum()

    rows = pos, neg, where, between, user, item
    repeated = pos, np.repeat(neg, P, 1), np.repeat(where, P, 1), between, np.repeat(user, P, 1), item
    close(total(*rows), total(*repeated))
    d_user, d_item = jax.grad(total, argnums=(4, 5))(*rows)
    direct_user, direct_item = jax.grad(total, argnums=(4, 5))(*repeated)
    close(d_user, direct_user.sum(1, keepdims=True))
    close(d_item, direct_item)


def test_the_gradient_of_sparsemax_forms_no_square():
    rows, targets = np.random.default_rng(0).normal(size=(B, N)).astype(np.float32), np.ones((B, N), bool)
    gradient = jax.grad(lambda s: losses.sparsemax(s, targets).sum())
    assert B * N <= _largest(gradient, rows) <= 2 * B * N
    jacobian = jax.grad(lambda s: (s[..., None] * s[..., None, :]).sum())
    assert _largest(jacobian, rows) >= B * N * N


def test_pooling_forms_no_square():
    pos, users = jnp.arange(11.0), jnp.arange(11) % 3
    assert _largest(jax.grad(lambda p: losses.pooled(p, users, temperature=1.0).sum()), pos) <= 2 * 11
