"""MultDAE, MultVAE and RecVAE against loops over users in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxrec.interactions import Interactions
from jaxrec.models import VALID, MultDAE, MultVAE, RecVAE

M, N = 4, 7
DENSE = np.array([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 1, 0, 0]])
TRAIN = Interactions.from_pairs(*DENSE.nonzero(), weights=np.arange(1, 9), n_users=M, n_items=N)
USERS = np.arange(M, dtype=np.int32)
MODELS = {
    "MultDAE": MultDAE(N, dim=3),
    "MultVAE": MultVAE(N, dim=3, width=5),
    "RecVAE": RecVAE(N, dim=3, width=5, divergence_weight=0.3),
}
CLOSE = {"rtol": 1e-11, "atol": 1e-13}


def drawn(model):
    """Random variables in float64, biases included. RecVAE's old encoder differs from its encoder."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), USERS[:1], USERS[:1])
    return {
        name: jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes[name])
        for name in ("params", "old")
        if name in shapes
    }


def applied(model, variables, users, *, method, key=None, histories=TRAIN):
    """`model.apply` of users, jitted. Histories are those of TRAIN unless others are given; a key adds noise."""

    def run(variables, users, histories, key):
        rngs = {} if key is None else {"noise": key}
        return model.apply(variables, users, histories=histories, method=method, rngs=rngs)

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(run)(variables, users, histories, key))


def deep(p, x):
    """RecVAE's encoder, whose layers each add the outputs of all earlier layers."""
    done, h = [], x @ p["context"] + p["bias"][0]
    for number in range(5):
        if number:
            h = done[-1] @ p["kernel"][number - 1] + p["bias"][number] + sum(done)
        h = h * scipy.special.expit(h)
        done.append((h - h.mean()) / np.sqrt(h.var() + 0.1) * p["gain"][number] + p["shift"][number])
    return np.split(done[-1] @ p["head"] + p["head_bias"], 2)


def expected(name, variables, user, mask=1, noise=0):
    """Scores and KL of one user, for z = mean + `noise` deviations and a row multiplied by `mask`."""
    p, row = variables["params"], DENSE[user]
    whole = row / max(np.sqrt(row.sum()), 1)
    x = whole * mask
    if name == "MultDAE":
        z, kl = np.tanh(x @ p["context"] + p["context_bias"]), 0
    elif name == "MultVAE":
        mean, log_variance = np.split(np.tanh(x @ p["context"] + p["context_bias"]) @ p["head"] + p["head_bias"], 2)
        kl = 0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance).sum()
        z = np.tanh((mean + np.exp(log_variance / 2) * noise) @ p["hidden"] + p["hidden_bias"])
    else:
        mean, log_variance = deep(p["encoder"], x)
        z = mean + np.exp(log_variance / 2) * noise
        old_mean, old_log_variance = deep(variables["old"]["encoder"], whole)
        density = scipy.stats.norm.pdf
        prior = (
            0.15 * density(z)
            + 0.75 * density(z, old_mean, np.exp(old_log_variance / 2))
            + 0.1 * density(z, 0, np.exp(5))
        )
        kl = 0.3 * row.sum() * (np.log(density(z, mean, np.exp(log_variance / 2))) - np.log(prior)).sum()
    return p["item"] @ z + p["item_bias"], kl


@pytest.mark.parametrize("name", MODELS)
def test_scores_and_both_halves_are_the_formula(name):
    model, variables = MODELS[name], drawn(MODELS[name])
    by_hand = [expected(name, variables, user) for user in USERS]
    scores = np.array([row for row, _ in by_hand])
    likelihood = (DENSE * (scores - scipy.special.logsumexp(scores, axis=1, keepdims=True))).sum(1)

    items = [np.array(block, np.int32) for block in ([[6, 0]], [[1, 2], [0, 6], [5, 3], [4, 4]])]

    def everything(module, users, **known):
        pairs = [(block, module(users[:, None], block, **known)) for block in items]
        return module.rows(users, **known), pairs, module.bound(users, **known)

    rows, pairs, (nll, kl) = applied(
        model, variables, USERS, method=everything, histories=TRAIN.take(USERS, capacity=11)
    )
    np.testing.assert_allclose(rows, scores, **CLOSE)
    for block, found in pairs:
        np.testing.assert_allclose(found, scores[USERS[:, None], block], **CLOSE)
    np.testing.assert_allclose(nll, -likelihood, **CLOSE)
    np.testing.assert_allclose(kl, [kl for _, kl in by_hand], **CLOSE)


@pytest.mark.deep
@pytest.mark.parametrize("name", MODELS)
def test_a_noisy_pass_is_the_formula_with_each_draw_in_its_place(name):
    """Dropout follows the normalisation, and the old encoder sees the whole row."""
    model, variables = MODELS[name], drawn(MODELS[name])

    def draws(module, users, *, histories):
        pairs = module._pairs(users, histories, module._key())
        mask = (
            jnp.zeros((M, N))
            .at[pairs.rows, pairs.items]
            .set(pairs.dropped(jnp.ones((len(pairs.rows), 1)), 0.5, draw=1)[:, 0], mode="drop")
        )
        return mask, pairs.normal((3,), draw=0)

    key = jax.random.key(3)
    masks, normal = applied(model, variables, USERS, method=draws, key=key)
    assert set(masks[DENSE > 0]) == {0, 2}
    nll, kl = applied(model, variables, USERS, method="bound", key=key)
    for user in USERS:
        scores, divergence = expected(name, variables, user, masks[user], normal[user])
        likelihood = (DENSE[user] * (scores - scipy.special.logsumexp(scores))).sum()
        np.testing.assert_allclose((nll[user], kl[user]), (-likelihood, divergence), **CLOSE)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["MultVAE", "RecVAE"])
def test_z_is_drawn_from_the_posterior(name):
    """The likelihood is that of the drawn z."""
    many = Interactions.from_pairs(np.repeat(np.arange(20_000), 2), np.tile([0, 2], 20_000), n_items=N)
    model, variables = MODELS[name].clone(dropout=0.0), drawn(MODELS[name])

    def samples(module, users, *, histories):
        pairs = module._pairs(users, histories, module.make_rng("noise"))
        mean, log_variance = module._encoded(pairs)
        return mean, log_variance, mean + jnp.exp(log_variance / 2) * pairs.normal(mean.shape[1:], draw=0)

    same = {"key": jax.random.key(0), "histories": many}
    mean, log_variance, z = applied(model, variables, None, method=samples, **same)
    nll, kl = applied(model, variables, None, method="bound", **same)
    noise = (z - mean) / np.exp(log_variance / 2)
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 0.001
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.05
    p = variables["params"]
    q = np.tanh(z @ p["hidden"] + p["hidden_bias"]) if name == "MultVAE" else z
    scores = q @ p["item"].T + p["item_bias"]
    expected = 2 * scipy.special.logsumexp(scores, axis=1) - scores[:, 0] - scores[:, 2]
    np.testing.assert_allclose(nll, expected, rtol=1e-9)
    assert (kl.std() > 1e-9) == (name == "RecVAE")


@pytest.mark.deep
def test_gradients_are_finite_and_leave_the_old_encoder():
    """User 1 has no item."""
    model, variables = MODELS["RecVAE"], drawn(MODELS["RecVAE"])

    def total(variables, key):
        nll, kl = model.apply(variables, USERS, histories=TRAIN, method="bound", rngs={"noise": key})
        return (nll + kl).sum()

    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda v, key: total(variables | v, key)))
        found = gradient({"params": variables["params"]}, jax.random.key(0))["params"]
    for leaf in map(np.asarray, jax.tree.leaves(found)):
        assert np.isfinite(leaf).all() and leaf.any()


@pytest.mark.deep
@pytest.mark.parametrize("name", MODELS)
def test_parameters_have_the_stated_shapes_and_scales(name):
    model = type(MODELS[name])(300)
    made = jax.jit(model.init)(jax.random.key(0), USERS[:1], USERS[:1])
    params = made["params"]
    xavier = {"context": (300, 600), "head": (600, 400), "hidden": (200, 600), "item": (300, 600)}
    if name == "RecVAE":
        assert params["item"].shape == (300, 200)
        assert float(params["item"].std()) == pytest.approx(600**-0.5, rel=0.02)
        assert float(jnp.abs(params["item"]).max()) <= 200**-0.5
        encoder = params["encoder"]
        for leaf, fan_in in ((encoder["context"], 300), (encoder["kernel"], 600), (encoder["head"], 600)):
            assert float(leaf.std()) == pytest.approx((3 * fan_in) ** -0.5, rel=0.02)
        assert encoder["kernel"].shape == (4, 600, 600) and (encoder["gain"] == 1).all() and not encoder["bias"].any()
        for a, b in zip(*map(jax.tree.leaves, (made["old"]["encoder"], encoder)), strict=True):
            np.testing.assert_array_equal(a, b)
    else:
        xavier = {"context": (300, 200), "item": (300, 200)} if name == "MultDAE" else xavier
        assert {k: v.shape for k, v in params.items() if "bias" not in k} == xavier
        for key, shape in xavier.items():
            assert float(params[key].std()) == pytest.approx((2 / sum(shape)) ** 0.5, rel=0.02)
        assert 0 < float(jnp.abs(params["item_bias"]).max()) < 0.0023
    assert set(made) == ({"params", "old"} if name == "RecVAE" else {"params"})


@pytest.mark.parametrize(
    ("made", "name", "value"),
    [(made, "dropout", 1.0) for made in (MultDAE, MultVAE, RecVAE)]
    + [(MultDAE, "dim", 0), (MultVAE, "width", 0), (RecVAE, "dim", -1), (RecVAE, "divergence_weight", -0.1)],
)
def test_wrong_values_are_named(made, name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}; give"):
        made(N, **{name: value})


@pytest.mark.deep
@pytest.mark.parametrize("name", ["VALID", "MultVAE", "RecVAE"])
def test_parameters_keep_their_precision_for_any_default(name):
    """float32 under x64, with noise: the loss and its gradient are float32."""
    model = VALID(N, dim=3, width=5) if name == "VALID" else MODELS[name]
    with jax.enable_x64(False):
        variables = model.init(jax.random.key(0), USERS[:1], USERS[:1])

    def total(params):
        whole, rngs = {**variables, "params": params}, {"noise": jax.random.key(1)}
        nll, kl = model.apply(whole, USERS, histories=TRAIN, method="bound", rngs=rngs)
        return (nll + kl).sum()

    with jax.enable_x64(True):
        found = jax.eval_shape(jax.value_and_grad(total), variables["params"])
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}
