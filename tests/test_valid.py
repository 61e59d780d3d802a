"""VALID and MacridVAE: the released code's values in float64, and what a new implementation may get wrong.

The released classes computed the fixture's values.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.valid import (
    CLOSE,
    DENSE,
    PARAMS,
    PROTOTYPES,
    SIZES,
    TRAIN,
    TWO,
    USERS,
    D,
    H,
    K,
    M,
    N,
    W,
    applied,
    interactions,
)

from jaxrec.losses import kl_normalised
from jaxrec.models import VALID, MacridVAE, _mixture, attention, implicit
from jaxrec.models._histories import Pairs
from jaxrec.papers.valid import RecBoleMacridVAE


def inside(fn):
    """A method that gives `fn(module, pairs, unit vectors)`."""

    def run(module, users, *, histories):
        table = module.item / jnp.linalg.norm(module.item, axis=1, keepdims=True)
        return fn(module, module._pairs(users, histories, module._key()), table)

    return run


# ---------------------------------------------------------------------- the fixture

NORMS = ("item", "prototype", "context", "context_bias", "head", "head_bias")
GOLDEN = {
    "R=1": (
        VALID(N, n_blocks=1, **SIZES),
        (15.45460382, 13.08613354, 3.38352897),
        (-1.665812, -1.376694, -1.463131),
        (1.9351951, 1.26123875, 1.50194229, 2.55311997, 3.18539977, 2.87932502),
    ),
    "R=2": (
        TWO,
        (15.12329788, 12.22952199, 4.13396556),
        (-1.729236, -1.434351, -1.489556),
        (1.64201513, 0, 1.35676313, 2.32123063, 3.7477917, 2.8706063),
    ),
    "R=3": (
        TWO.clone(n_blocks=3),
        (15.04100310, 11.90712916, 4.47696277),
        (-1.749048, -1.466654, -1.523634),
        (1.45461946, 0, 1.3772363, 2.34166305, 4.0846896, 2.98237624),
    ),
    "RecBole's MacridVAE": (
        RecBoleMacridVAE(N, **SIZES),
        (13.65146755, 13.17814395, 0.67617657),
        (-1.647322, -1.370548, -1.468984),
        (1.46468158, 0.26978358, 0.28825911, 1.14939269, 1.07090287, 2.40247313),
    ),
    "R=2, unrolled": (
        TWO.clone(gradient=implicit.unrolled),
        (15.12329788, 12.22952199, 4.13396556),
        (-1.729236, -1.434351, -1.489556),
        (2.78460931, 1.64031984, None, None, None, None),
    ),
    "R=3, unrolled": (
        TWO.clone(n_blocks=3, gradient=implicit.unrolled),
        (15.04100310, 11.90712916, 4.47696277),
        (-1.749048, -1.466654, -1.523634),
        (1.81418860, 0.29135484, None, None, None, None),
    ),
}


UPDATED = [  # prototypes of user 0 after one update
    (0.205938, 0.709698, 0.66521, 0.106842),
    (0.542347, 0.709898, 0.329047, -0.305996),
    (0.279604, -0.358465, -0.719617, -0.524858),
]


RAW = (0.221451, 0.7153, 0.656574, 0.090639)  # the first of them, by equation 4 as printed


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("R=2", "RecBole's MacridVAE") else pytest.mark.deep) for name in GOLDEN],
)
def test_losses_and_gradients_are_those_of_the_released_code(name, float64):
    """Prototypes get no gradient for R ≥ 2, unless updates are unrolled. Shares are masked before they are normalised,
    the likelihood has the whole row, and the loss is a mean over users, of whom user 2 has no item.
    """
    model, losses, first, norms = GOLDEN[name]

    def loss(params, histories):
        run = partial(model.apply, {"params": params}, USERS, histories=histories)
        nll, kl = run(method="bound")
        return nll.mean() + 0.7 * kl.mean(), (nll.mean(), kl.mean(), jax.nn.log_softmax(run(method="rows"))[0])

    (total, (nll, kl, log_p)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS, TRAIN)
    np.testing.assert_allclose((total, nll, kl), losses, rtol=1e-8)
    np.testing.assert_allclose(log_p[:3], first, atol=1e-6)
    assert np.exp(log_p).sum() == pytest.approx(1)
    for parameter, norm in zip(NORMS, norms, strict=True):
        assert np.isfinite(gradient[parameter]).all()
        if norm is not None:
            assert np.linalg.norm(gradient[parameter]) == pytest.approx(norm, rel=3e-8)
            assert (norm == 0) == (not gradient[parameter].any())
    if name == "R=2, unrolled":
        assert gradient["prototype"][0, 0] == pytest.approx(0.7774154, abs=1e-7)


@pytest.mark.deep
def test_shares_and_prototypes_are_those_of_the_released_code(float64):
    """The shares of an item sum to 1 over the interests."""

    def first_block(module, pairs, vectors):
        x = jnp.broadcast_to(PROTOTYPES[None], (M, K, D))
        return module._grouped(x, pairs, vectors, 1), pairs.items

    shares, items = applied(TWO, USERS, method=inside(first_block))
    assert TRAIN.pairs()[1][:2].tolist() == [0, 2]
    at = {item: np.asarray(shares[place]) for place, item in enumerate(items[:5].tolist())}
    np.testing.assert_allclose(at[0], (0.562177, 0.412054, 0.025769), atol=1e-6)
    np.testing.assert_allclose(at[2], (0.225714, 0.651674, 0.122613), atol=1e-6)
    np.testing.assert_allclose(shares.sum(1), 1, **CLOSE)
    after = applied(TWO, USERS, method="prototypes")
    assert after.shape == (2, M, K, D)
    np.testing.assert_allclose(after[1, 0], UPDATED, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(after[0], axis=-1), 1, **CLOSE)
    np.testing.assert_allclose(after[1], applied(TWO, USERS, method="posterior").prototypes, **CLOSE)


@pytest.mark.deep
def test_updates_as_equation_4_prints_them_sum_the_items_as_they_are(float64):
    """Shares are neither normalised nor dropped out, and padding does not count. A user without items gets zeros."""
    model = TWO.clone(raw_updates=True)
    after = applied(model, USERS, method="prototypes")[1]
    np.testing.assert_allclose(after[0, 0], RAW, atol=1e-6)
    logits = np.exp(PROTOTYPES @ H.T / 0.5)
    shares = logits / logits.sum(0)
    own = (shares[None] * DENSE[:, None]) @ PARAMS["item"]
    norms = np.linalg.norm(own, axis=-1, keepdims=True)
    np.testing.assert_allclose(after, own / np.where(norms > 0, norms, 1), **CLOSE)
    noisy = applied(model.clone(attention=attention.cosine), USERS, method="posterior", key=jax.random.key(0))
    assert np.isfinite(noisy.interests).all()


@pytest.mark.deep
@pytest.mark.parametrize("name", ["cosine", "coda, matrix", "coda, row"])
def test_attention_among_prototypes_follows_each_update(name, float64):
    """The values follow from the paper's formulae, which leave open over which axis CoDA takes its means."""
    fn, first, out = {
        "cosine": (attention.cosine, (0.671722, 0.312159, 0.01612), (0.648897, 1.391622, 1.752506, 1.632528)),
        "coda, matrix": (
            partial(attention.coda, center="matrix"),
            (0.898784, 0.330564, -0.013941),
            (0.702296, 1.565172, 1.998587, 1.883618),
        ),
        "coda, row": (attention.coda, (0.895796, 0.292937, -0.011133), (0.66511, 1.528924, 1.973223, 1.876097)),
    }[name]
    fn, p = partial(fn, temperature=0.5), PARAMS["prototype"]
    np.testing.assert_allclose(fn(p)[0], out, atol=1e-6)
    marked = np.concatenate([p, 1e-8 * np.eye(K)], axis=1)  # the added columns show B itself
    np.testing.assert_allclose(fn(marked)[0, D:] / 1e-8 - np.eye(K)[0], first, atol=1e-6)
    stacked = fn(np.stack([p, 2 * p, p]))
    np.testing.assert_allclose(stacked[2], fn(p), **CLOSE)
    if name == "cosine":
        after = np.asarray(applied(TWO.clone(attention=fn), USERS, method="prototypes"))[1]
        moved = np.asarray(fn(np.array(UPDATED)))
        np.testing.assert_allclose(after[0], moved / np.linalg.norm(moved, axis=-1, keepdims=True), atol=2e-6)
        assert not after[2].any()
    else:
        with pytest.raises(ValueError, match="center='all'; give 'row' or 'matrix'"):
            attention.coda(p, center="all")


# ---------------------------------------------------------------------- noise

TWINS = DENSE.copy()
TWINS[3] = TWINS[0]


@pytest.fixture(scope="module")
def noisy():
    """All draws of one step and their results, for one key. Users 0 and 3 have the same items."""

    def drawn(module, pairs, vectors):
        found = module._encoded(pairs, vectors)
        first = jnp.broadcast_to(PROTOTYPES[None], (M, K, D))
        items = jnp.arange(N, dtype=jnp.int32)[None]
        return {
            "found": found,
            "first": module._grouped(first, pairs, vectors, 1),
            "second": module._grouped(first, pairs, vectors, 2),
            "last": module._grouped(found.prototypes, pairs, vectors, 2),
            "odds": jnp.stack(_mixture.odds(module._noise(pairs, 2), USERS[:, None], items, K)),
            "factors": [jnp.stack(_mixture.odds_at(module._noise(pairs, n), pairs, K), -1) for n in (1, 2)],
            "masks": [pairs.dropped(jnp.ones((len(pairs.rows), K)), 0.5, draw=2 * n) for n in (1, 2)],
            "normal": pairs.normal((K, D), draw=0),
            "rows": pairs.rows,
            "items": pairs.items,
        }

    with jax.enable_x64(True):
        same = {"key": jax.random.key(7), "histories": interactions(TWINS).take(USERS, capacity=32)}
        nll, _ = applied(TWO, USERS, method="bound", **same)
        return applied(TWO, USERS, method=inside(drawn), **same), nll


@pytest.mark.deep
def test_decoder_and_encoder_share_one_sample_of_the_groups(noisy, float64):
    """z is a unit vector after the noise, too. The normaliser is over all items, and the likelihood has the whole row,
    including the items that dropout set to 0.
    """
    drawn, nll = noisy
    x, z = (np.asarray(part, float) for part in (drawn["found"].prototypes, drawn["found"].interests))
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, **CLOSE)
    assert np.abs(z - drawn["found"].mean).max() > 0.05
    terms = np.asarray(drawn["odds"]) * np.exp(np.einsum("ukd,nd->kun", x, H) / 0.5)
    shares = terms / terms.sum(0)
    at = (np.asarray(drawn["rows"]), np.asarray(drawn["items"]))
    real = at[0] < M
    np.testing.assert_allclose(np.asarray(drawn["last"])[real], shares[:, at[0][real], at[1][real]].T, **CLOSE)
    p = (shares * np.exp(np.einsum("ukd,nd->kun", z, H) / 0.5)).sum(0)
    expected = -(TWINS * np.log(p / p.sum(1, keepdims=True))).sum(1)
    np.testing.assert_allclose(nll, expected, **CLOSE)


@pytest.mark.deep
def test_a_noisy_pass_is_the_formula_with_each_draw_in_its_place(noisy, float64):
    """Updates and encoder both group by noisy shares, and drop out their weights."""
    drawn, _ = noisy
    drawn = jax.tree.map(lambda leaf: np.asarray(leaf, float), drawn)
    for user in USERS:
        own = drawn["rows"] == user
        h, context = H[drawn["items"][own].astype(int)], PARAMS["context"][drawn["items"][own].astype(int)]
        x = PROTOTYPES
        for factors, mask in zip(drawn["factors"], drawn["masks"]):
            previous = x
            terms = factors[own] * np.exp(h @ x.T / 0.5)
            shares = terms / terms.sum(1, keepdims=True)
            w = shares / np.linalg.norm(shares, axis=0) * mask[own]
            x = w.T @ h / np.maximum(np.linalg.norm(w.T @ h, axis=1, keepdims=True), 1e-12)
        y, t = np.split(np.tanh(w.T @ context + PARAMS["context_bias"]) @ PARAMS["head"] + PARAMS["head_bias"], 2, 1)
        mean = y / np.linalg.norm(y, axis=1, keepdims=True)
        z = mean + 0.1 * np.exp(-t / 2) * drawn["normal"][user]
        parts = (previous, mean, -t, z / np.linalg.norm(z, axis=1, keepdims=True))
        for found, expected in zip(drawn["found"], parts, strict=True):
            np.testing.assert_allclose(found[user], expected, **CLOSE)


@pytest.mark.deep
def test_users_share_the_noise_of_the_first_block_only(noisy):
    """Users with the same items have the same groups in block 1, and different groups in block 2."""
    drawn, _ = noisy
    rows = np.asarray(drawn["rows"])
    for name, same in (("first", True), ("second", False), ("last", False)):
        assert np.allclose(drawn[name][rows == 0], drawn[name][rows == 3], rtol=1e-12) == same
    assert not np.allclose(drawn["first"][rows == 0], drawn["second"][rows == 0], rtol=0.01)


@pytest.mark.deep
def test_nothing_is_random_in_evaluation():
    """Scores do not depend on the key, and users with the same items have the same scores, bit for bit."""
    options = {"method": "rows", "params": jax.tree.map(np.float32, PARAMS), "histories": interactions(TWINS)}
    one, other = (applied(TWO, USERS, key=jax.random.key(seed), **options) for seed in (0, 1))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one[0], one[3])
    assert one.dtype == jnp.float32 and not np.array_equal(one[0], one[1])


@pytest.mark.deep
def test_noise_of_interests_has_the_stated_deviation():
    """It is σ₀ exp(lv / 2) with lv = −output. The slopes of 100 000 samples of z = (1, 0) + noise show it."""
    known = interactions(np.eye(25_000, 2) > -1)
    model = VALID(2, **SIZES | {"dim": 2, "n_interests": 4}, n_blocks=1, deviation=1e-3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), USERS[:1], USERS[:1])["params"]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    params |= {"head": jnp.zeros((W, 4)), "head_bias": jnp.array([1.0, 0.0, 0.0, 1.0])}
    users = np.arange(25_000, dtype=np.int32)
    found = applied(model, users, method="posterior", key=jax.random.key(0), params=params, histories=known)
    slopes = np.asarray(found.interests[..., 1] / found.interests[..., 0], float)
    assert slopes.std() == pytest.approx(1e-3 * np.exp(-0.5), rel=0.01) and abs(slopes.mean()) < 1e-5
    assert abs(np.corrcoef(slopes[:, 0], slopes[:, 1])[0, 1]) < 0.03
    np.testing.assert_allclose(found.log_variance[0, 0], [0, -1])
    assert float(kl_normalised(jnp.zeros(5))) == 0
    assert float(kl_normalised(jnp.ones(1))) == pytest.approx(0.5 * (np.e - 2))


@pytest.mark.deep
@pytest.mark.parametrize("model", [TWO, RecBoleMacridVAE(N, **SIZES)])
def test_dropout_follows_the_normalisation_and_is_each_interests_own(model):
    """For a rate of ½, Σ w² is 2, not 1. Masks differ between interests (except RecBole's), blocks and users."""
    whole = interactions(np.ones((400, N)))
    pairs = Pairs.of(whole, key=jax.random.key(0))
    shares = jax.random.uniform(jax.random.key(1), (len(whole.indices), K), minval=0.3)
    weigh = jax.jit(
        lambda number: model.apply({"params": PARAMS}, shares, pairs, number, method="_weights"), static_argnums=0
    )
    first, second = (np.asarray(weigh(number), float).reshape(400, N, K) for number in (1, 2))
    kept = first > 0
    if isinstance(model, MacridVAE):
        assert (kept == kept[..., :1]).all()
        first = first / np.asarray(shares).reshape(first.shape)
    else:
        assert ((kept[..., 0] != kept[..., 1]).mean(), (kept[..., 0] != kept[..., 2]).mean()) > (0.4, 0.4)
    assert (first**2).sum(1).mean() == pytest.approx(2, abs=0.1)
    assert kept.mean() == pytest.approx(0.5, abs=0.03)
    assert (kept != (second > 0)).mean() > 0.4 and (kept[:1] != kept[1:]).mean() > 0.4


def test_macridvae_has_one_block():
    with pytest.raises(ValueError, match="n_blocks=2; MacridVAE has 1"):
        MacridVAE(N, n_blocks=2)


@pytest.mark.deep
def test_one_interest_is_a_cosine_autoencoder_for_any_blocks(float64):
    """With K = 1 neither the updates nor the noise of the groups change anything."""
    params = PARAMS | {"prototype": PARAMS["prototype"][:1]}
    options = SIZES | {"n_interests": 1, "dropout": 0.0}
    models = [VALID(N, n_blocks=n, **options) for n in (1, 3)]
    one, three = (applied(model, USERS, method="bound", key=jax.random.key(0), params=params) for model in models)
    for a, b in zip(one, three, strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)
    lengths = np.maximum(np.sqrt(DENSE.sum(1, keepdims=True)), 1)
    hidden = np.tanh(DENSE / lengths @ params["context"] + params["context_bias"])
    mean = (hidden @ params["head"] + params["head_bias"])[:, :D]
    logits = mean / np.linalg.norm(mean, axis=1, keepdims=True) @ H.T / 0.5
    rows = applied(models[1], USERS, method="rows", params=params)
    np.testing.assert_allclose(rows, logits, **CLOSE)
