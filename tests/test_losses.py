"""Every loss against its formula in plain Python, and the contract that all of them share."""

import functools
import math
import pathlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.losses import (
    GOWALLA,
    LOSSES,
    NEG,
    POS,
    SCORES,
    WHERE,
    by_formula,
    close,
    differences,
    relu,
    sml_of_half,
    uib,
)

from jaxrec import losses

# ---------------------------------------------------------------------- golden values (float64)

GOLDEN = {
    "mml_yelp": (losses.mml, (12.6, 10.7, 20.0)),
    "mml_gowalla": (partial(losses.mml, **GOWALLA), (15.425, 12.275, 25.8125)),
    "ccl": (losses.ccl, (2.075, 2.025, 3.375)),
    "bpr": (losses.bpr, (0.5731302368, 0.9939601152, 0.4975929232)),
    "softmax": (losses.softmax, (1.4335710594, 2.0685405551, 1.2955654588)),
    "softmax_cold": (partial(losses.softmax, temperature=0.11), (1.6972880147, 7.6736253241, 0.6807341160)),
    "bsl_reweight": (partial(losses.bsl, negatives="sum"), (2.3717198604, 8.5313854063, 0.8997923601)),
    "bsl_multi": (losses.bsl, (0.8467960631, 7.0064616091, -0.6251314372)),
    "bce": (losses.bce, (1.3625422428, 1.7021319013, 1.3215124464)),
    "mse_sum": (partial(losses.mse, negatives="sum"), (0.87545, 1.27975, 0.8765)),
    "rg2_sampled": (losses.rg2_sampled, (0.4063625, 1.2411875, 0.2340750)),
}


@pytest.mark.parametrize("loss, expected", GOLDEN.values(), ids=GOLDEN)
def test_golden(loss, expected):
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(loss)(jnp.array(POS), jnp.array(NEG)), expected, rtol=1e-9, atol=1e-10)


# ---------------------------------------------------------------------- the contract

AVERAGING = [name for name in LOSSES if not name.endswith("_sum") and "softmax" not in name and name != "infonce_plus"]
ONE_EACH = {name: pair for name, pair in LOSSES.items() if not name.endswith("_sum") or name == "bsl_sum"}
every_loss = pytest.mark.parametrize("loss, formula", ONE_EACH.values(), ids=ONE_EACH)
every_fn = pytest.mark.parametrize("loss", [loss for loss, _ in ONE_EACH.values()], ids=ONE_EACH)


@pytest.mark.parametrize(
    "loss, by_hand",
    [
        (losses.bpr, (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(0.4))) / 2),
        (losses.hinge, ((1 - 0.5) + (1 + 0.4)) / 2),
        (losses.ccl, 0.5 + 150 * 0),
        (partial(losses.ccl, margin=0.4, weight=10.0), 0.5 + 10 * 0.5 / 2),
        (losses.mml, 0.5 + 400 * (0.05 * 0.3 + 0.15 * 0.2 + 0.2 * 0.1) / 2),
        (losses.bce, math.log(1 + math.exp(-0.5)) + (math.log(2) + math.log(1 + math.exp(0.9))) / 2),
        (losses.mse, 0.125 + 0.5 * 0.81 / 2),
        (losses.rg2_sampled, -0.5 + 0.5 * (1 + 1.9**2) / 2),
        (losses.softmax, -math.log(math.exp(0.5) / (math.exp(0.5) + 1 + math.exp(0.9)))),
        (
            partial(losses.sampled_softmax, log_q_pos=math.log(0.5), log_q_neg=math.log(0.1)),
            -math.log(2 * math.exp(0.5) / (2 * math.exp(0.5) + 10 + 10 * math.exp(0.9))),
        ),
        (losses.bsl, -0.5 / 0.11 + 1.1 * math.log((1 + math.exp(0.9 / 0.11)) / 2)),
        (partial(losses.warp, margin=0.5, n_items=100), math.log(51) * 0.9),  # the first equals the margin
        (
            partial(losses.uib, boundary=0.2),
            (math.log(1 + math.exp(-0.3)) + math.log(1 + math.exp(-0.2)) / 2 + math.log(1 + math.exp(0.7)) / 2) / 2,
        ),
        (losses.infonce_plus, -0.5 + 1.1 * math.log(1 + math.exp(0.9) + math.exp(0.5))),
        (losses.mine, -0.5 + math.log((1 + math.exp(0.9)) / 2)),
        (losses.contrastive, 0.125 + 0.5 * (1 + 0.01) / 2),
        (losses.triplet, (1.25 + 0.44) / 2),
        (losses.metricf, 1.1 * 0.0625 + (2.25 + 0.69**2) / 2),
        (partial(losses.sml, between=np.array([2.0, 1.0])), (1.25 + 0.44) / 2 + 0.01 * 0.25 / 2 - 20),
        (partial(losses.on_scores, loss=losses.triplet), 1.0),
    ],
)
def test_hand_values(loss, by_hand):
    with jax.enable_x64(True):
        assert float(jax.jit(loss)(jnp.array(0.5), jnp.array([0.0, 0.9]))) == pytest.approx(by_hand, rel=1e-12)


@functools.cache
def _jitted(loss):
    """Values and gradients of a loss in one program, which all its tests share."""

    @jax.jit
    def values_and_gradients(pos, neg, where):
        values, vjp = jax.vjp(lambda p, n: loss(p, n, where=where), pos, neg)
        return values, *vjp(jnp.ones_like(values))

    return values_and_gradients


@pytest.mark.deep
@pytest.mark.parametrize("loss, formula", LOSSES.values(), ids=LOSSES)
def test_masking_is_deletion_and_eager_is_jit_is_vmap(loss, formula):
    pos, neg = SCORES
    close(loss(pos, neg), by_formula(formula, pos, neg, np.ones_like(WHERE)))
    expected = by_formula(formula, pos, neg, WHERE)
    eager = loss(pos, neg, where=WHERE)
    assert eager.shape == (4,) and eager.dtype == jnp.float32 and eager[3] == 0
    close(eager, expected)
    close(_jitted(loss)(pos, neg, WHERE)[0], expected)
    close(jax.jit(jax.vmap(lambda p, n, w: loss(p, n, where=w)))(pos, neg, WHERE), expected)


@every_fn
def test_masked_entries_reach_neither_value_nor_gradient(loss):
    pos, neg = SCORES
    clean = _jitted(loss)(pos, np.where(WHERE, neg, 0), WHERE)
    for fill in (np.nan, np.inf, -np.inf):
        masked = _jitted(loss)(pos, np.where(WHERE, neg, np.float32(fill)), WHERE)
        assert (np.asarray(masked[2])[~WHERE] == 0).all()
        assert masked[0][3] == 0 and masked[1][3] == 0
        for actual, expected in zip(masked, clean):
            np.testing.assert_array_equal(actual, expected)


@every_fn
def test_a_row_without_valid_negatives_has_gradient_0_even_for_a_nan_positive(loss):
    pos, neg = SCORES
    values, d_pos, d_neg = _jitted(loss)(np.where(WHERE.any(1), pos, np.float32(np.nan)), neg, WHERE)
    assert values[3] == 0 and d_pos[3] == 0 and (d_neg[3] == 0).all()
    assert np.isfinite(values).all() and np.isfinite(d_pos).all() and np.isfinite(d_neg).all()


@every_loss
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_scores_keep_the_right_finite_value_and_gradient(loss, formula, size):
    pos, where = np.full(4, size, np.float32), np.ones((4, 4), bool)
    neg = np.array([[1e4] * 4, [-1e4] * 4, [1e4, -1e4] * 2, [0, 1e4, -1e4, 1]], np.float32)
    values, d_pos, d_neg = _jitted(loss)(pos, neg, where)
    close(values, by_formula(formula, pos, neg, where), atol=0.02)  # some float32 steps of 1e4 / temperature
    assert np.isfinite(d_pos).all() and np.isfinite(d_neg).all()


@every_loss
def test_gradient_equals_finite_differences(loss, formula):
    pos, neg = (x.astype(np.float64) for x in SCORES)
    with jax.enable_x64(True):
        values, d_pos, d_neg = _jitted(loss)(pos, neg, WHERE)
    close(values, by_formula(formula, pos, neg, WHERE), rtol=1e-12)
    close(d_pos, differences(lambda p: by_formula(formula, p, neg, WHERE), pos), rtol=1e-7)
    close(d_neg, differences(lambda n: by_formula(formula, pos, n, WHERE), neg), rtol=1e-7)


@pytest.mark.parametrize("name", AVERAGING)
def test_duplicating_all_negatives_changes_no_loss_that_averages_them(name):
    pos, neg = SCORES
    twice = np.tile(neg[:, :2], 2)
    first = np.broadcast_to([True, True, False, False], neg.shape)
    values = _jitted(LOSSES[name][0])
    close(values(pos, twice, np.ones_like(WHERE))[0], values(pos, neg, first)[0])


@pytest.mark.deep
@pytest.mark.parametrize(
    "loss, sweep",
    [
        (losses.hinge, {"margin": (0.1, 0.6)}),
        (losses.ccl, {"margin": (0.2, 0.4), "weight": (3.0, 7.0)}),
        (losses.softmax, {"temperature": (0.1, 2.0)}),
        (losses.bsl, {"temperature": (0.1, 2.0), "exponent": (1.0, 1.3)}),
        (losses.warp, {"margin": (0.1, 0.6), "n_items": (20, 3000)}),
        (losses.uib, {"boundary": (0.1, 0.6), "alpha": (0.2, 0.9)}),
        (losses.infonce_plus, {"temperature": (0.1, 2.0), "exponent": (1.0, 1.3), "positive_share": (0.0, 0.4)}),
        (losses.mine, {"temperature": (0.1, 2.0), "exponent": (1.0, 1.3)}),
        (losses.contrastive, {"margin": (0.1, 0.6)}),
        (losses.triplet, {"margin": (0.1, 0.6)}),
        (losses.metricf, {"margin": (0.6, 1.5), "positive_weight": (1.0, 2.0)}),
        (sml_of_half, {name: (0.1, 0.6) for name in ("user_margin", "item_margin", "weight", "margin_weight")}),
        (
            lambda pos, neg, weight: losses.combine(pos, neg, parts=((weight, losses.bpr), (1 - weight, losses.bce))),
            {"weight": (0.1, 0.6)},
        ),
        (losses.mml, {"margins": ((0.1, 0.2), (0.2, 0.5)), "weights": ((0.3, 0.7), (0.5, 0.5))}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_hyperparameters_may_be_traced(loss, sweep):
    swept = jax.vmap(lambda hyper: loss(*SCORES, **hyper))({name: jnp.array(values) for name, values in sweep.items()})
    for i in range(2):
        close(swept[i], loss(*SCORES, **{name: values[i] for name, values in sweep.items()}))


@every_fn
def test_hyperparameters_of_float64_do_not_widen_a_loss(loss):
    """Such are those of a sweep with x64 on, and NumPy's."""
    how = {name: np.float64(value) for name, value in getattr(loss, "keywords", {}).items() if isinstance(value, float)}
    with jax.enable_x64(True):
        assert loss(*SCORES, where=WHERE, **how).dtype == jnp.float32


# ---------------------------------------------------------------------- identities between losses


def test_mml_with_one_margin_is_ccl_and_the_order_of_margins_does_not_matter():
    with jax.enable_x64(True):
        scores = jnp.array(POS), jnp.array(NEG)
        one = losses.mml(*scores, margins=(0.7,), weights=(1.0,), negative_weight=33.0)
        np.testing.assert_array_equal(one, losses.ccl(*scores, margin=0.7, weight=33.0))
        permuted = losses.mml(*scores, margins=(0.9, 0.6, 0.8, 0.7), weights=(0.6, 0.05, 0.2, 0.15))
        np.testing.assert_allclose(permuted, losses.mml(*scores), rtol=1e-14)


@pytest.mark.deep
@pytest.mark.parametrize("loss", [losses.ccl, losses.mml])
def test_a_cosine_above_one_has_no_positive_loss_and_no_gradient(loss):
    value, gradient = jax.value_and_grad(loss)(jnp.array(1.02), jnp.array([0.1, -0.5]))
    assert value == 0 and gradient == 0


@pytest.mark.deep
def test_uib_has_a_boundary_for_each_comparison_and_at_zero_is_half_of_bce():
    pos, neg = SCORES
    boundary = np.array([0.1, -0.4, 0.8, np.nan], np.float32)
    values, gradient = jax.value_and_grad(lambda b: losses.uib(pos, neg, where=WHERE, boundary=b).sum())(boundary)
    rows = zip(pos[:3], neg, WHERE, boundary)
    expected = [uib(float(p), n[w].astype(float).tolist(), float(b)) for p, n, w, b in rows]
    assert float(values) == pytest.approx(sum(expected), rel=1e-6)
    assert np.isfinite(gradient).all() and gradient[3] == 0 and (gradient[:3] != 0).all()
    close(losses.uib(pos, neg), losses.bce(pos, neg) / 2)


@pytest.mark.deep
def test_warp_weighs_by_rank_without_a_gradient_through_the_rank():
    margin = jnp.array(0.5)
    loss = partial(losses.warp, jnp.array(0.5), jnp.array([0.2, 0.9]), n_items=100)
    assert float(jax.grad(lambda m: loss(margin=m))(margin)) == pytest.approx(math.log(101), rel=1e-6)
    masked = losses.warp(jnp.array(0.5), jnp.array([-0.3, 9.0]), n_items=7, where=jnp.array([True, False]))
    assert float(masked) == pytest.approx(math.log(8) * 0.2, rel=1e-5)
    assert jax.grad(lambda n: losses.warp(jnp.array(0.5), jnp.array([0.2, 0.9]), n_items=n))(100.0) == 0
    assert float(loss(margin=-0.2)) == pytest.approx(math.log(51) * 0.2, rel=1e-5)
    assert float(loss(margin=-1.0)) == 0


# ---------------------------------------------------------------------- the reduction


def test_mean_by_hand():
    values, where = jnp.array([[1.0, 5.0], [3.0, 7.0]]), jnp.array([[True, False], [True, True]])
    weights = jnp.array([[1.0, 9.0], [2.0, 3.0]])
    assert losses.mean(values) == 4
    assert float(losses.mean(values, where=where)) == pytest.approx(11 / 3)
    assert float(losses.mean(values, where=where, weights=weights)) == pytest.approx((1 + 6 + 21) / 6)
    assert float(losses.mean(values, weights=np.array([[1, 9], [2, 3]]))) == pytest.approx((1 + 45 + 6 + 21) / 15)


@pytest.mark.parametrize(
    "how", [{"where": np.zeros(2, bool)}, {"weights": np.zeros(2, np.float32)}], ids=["where", "weights"]
)
def test_mean_of_nothing_is_zero_with_no_gradient(how):
    value, gradient = jax.value_and_grad(lambda v: losses.mean(v, **how))(jnp.array([1.0, 5.0]))
    assert value == 0 and (gradient == 0).all()


def test_mean_hides_masked_nan_from_value_and_gradient():
    where = jnp.array([True, False, True])
    values, weights = jnp.array([1.0, jnp.nan, 5.0]), jnp.array([1.0, jnp.nan, 3.0])
    value, gradient = jax.value_and_grad(lambda v: losses.mean(v, where=where, weights=weights))(values)
    assert value == 4
    np.testing.assert_array_equal(gradient, [0.25, 0, 0.75])


# ---------------------------------------------------------------------- wrong input


@every_fn
def test_wrong_comparisons_are_refused(loss):
    pos, neg = SCORES
    with pytest.raises(AssertionError):
        loss(pos, neg, where=WHERE.astype(np.float32))
    with pytest.raises(AssertionError):
        loss(pos, neg, where=WHERE[0])
    with pytest.raises(AssertionError):
        loss(pos, pos)
    with pytest.raises(
        ValueError, match=r"^pos \[.*\], neg \[.*\], where \[.*\]; give shapes \[\.\.\.\], \[\.\.\., n\]"
    ):
        loss(jnp.ones(3), jnp.ones((4, 2)))


@pytest.mark.parametrize("name", [name for name in ONE_EACH if name != "sampled_softmax"])
def test_integer_scores_are_refused(name):
    with pytest.raises(AssertionError):
        LOSSES[name][0](SCORES[0], SCORES[1].astype(np.int32))


@pytest.mark.parametrize(
    "name",
    [
        "bpr",
        "hinge",
        "ccl",
        "mml",
        "bce",
        "mse",
        "uib",
        "rg2_sampled",
        "bsl",
        "mine",
        "infonce_plus",
        "triplet",
        "contrastive",
        "metricf",
    ],
)
def test_an_unknown_reduction_is_refused(name):
    with pytest.raises(ValueError, match="negatives='median'"):
        getattr(losses, name)(*SCORES, negatives="median")


def test_combine_refuses_what_are_not_pairs():
    with pytest.raises(ValueError, match="parts is empty"):
        losses.combine(*SCORES, parts=())
    with pytest.raises(TypeError, match=r"parts\[0\]=<function bpr .*give a pair \(weight, loss\)"):
        losses.combine(*SCORES, parts=(losses.bpr, losses.ccl))


@pytest.mark.parametrize("weights", [[1.0, np.nan], [np.nan, np.nan]])
def test_a_weight_that_is_no_number_is_not_lost(weights):
    assert np.isnan(losses.mean(jnp.ones(2), weights=jnp.array(weights)))


def test_mml_refuses_margins_without_weights():
    with pytest.raises(ValueError, match="3 margins and 2 weights"):
        losses.mml(*SCORES, margins=(0.1, 0.2, 0.3), weights=(0.5, 0.5))


def test_mean_refuses_a_float_mask_and_shapes_that_differ():
    values = jnp.ones((2, 3))
    with pytest.raises(AssertionError):
        losses.mean(values, where=jnp.ones((2, 3)))
    for wrong, how, message in (
        (values, {"where": jnp.ones(3, bool)}, r"the loss has shape \[2, 3\], where \[3\]; a loss must return one"),
        (values, {"weights": jnp.ones(2)}, r"\[2, 3\], weights \[2\]"),
        (values.mean(), {"where": jnp.ones((2, 3), bool)}, r"the loss has shape \[\], where \[2, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            losses.mean(wrong, **how)


@pytest.mark.parametrize(
    "name, how, message",
    [
        *((name, {"margin": math.nan}, "margin=nan") for name in ("hinge", "ccl", "contrastive", "triplet", "metricf")),
        ("warp", {"margin": math.inf, "n_items": 9}, "margin=inf"),
        ("warp", {"n_items": 0}, "n_items=0; give a finite number of 1 or more"),
        ("ccl", {"weight": -1.0}, "weight=-1.0; give a finite number of 0 or more"),
        ("mml", {"margins": (0.5, math.nan), "weights": (0.5, 0.5)}, "margin=nan"),
        ("mml", {"margins": (0.5,), "weights": (np.float32(-1),)}, "weight=-1.0"),
        ("mml", {"negative_weight": math.inf}, "negative_weight=inf"),
        ("mml", {"positive_weight": -2}, "positive_weight=-2"),
        ("mml", {"margins": (), "weights": ()}, "0 margins and 0 weights"),
        ("metricf", {"positive_weight": -1.0}, "positive_weight=-1.0"),
        *((name, {"temperature": 0.0}, "temperature=0.0; give a finite number above 0") for name in ("softmax", "bsl")),
        ("sampled_softmax", {"temperature": -0.1}, "temperature=-0.1"),
        ("infonce_plus", {"temperature": jnp.float32(0)}, "temperature=0.0"),
        ("infonce_plus", {"positive_share": -0.1}, "positive_share=-0.1"),
        ("infonce_plus", {"exponent": math.nan}, "exponent=nan"),
        ("mine", {"exponent": -1.0}, "exponent=-1.0"),
        ("uib", {"alpha": 1.5}, "alpha=1.5; give a finite number from 0 to 1"),
        ("uib", {"alpha": -0.5}, "alpha=-0.5"),
        ("uib", {"boundary": math.nan}, "boundary=nan"),
        ("combine", {"parts": ((math.nan, losses.bpr),)}, "weight=nan"),
    ],
)
def test_hyperparameters_without_a_meaning_are_refused(name, how, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        getattr(losses, name)(*SCORES, **how)


@pytest.mark.parametrize(
    "how, message",
    [
        ({"weight": -0.1}, "weight=-0.1"),
        ({"margin_weight": math.inf}, "margin_weight=inf"),
        ({"user_margin": math.nan}, "user_margin=nan"),
        ({"item_margin": math.nan}, "item_margin=nan"),
    ],
)
def test_sml_refuses_hyperparameters_without_a_meaning(how, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        sml_of_half(*SCORES, **how)


def test_mml_refuses_margins_that_are_not_numbers():
    with pytest.raises(AssertionError):
        losses.mml(*SCORES, margins=np.ones((2, 3), np.float32), weights=(0.5, 0.5))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_means_of_half_precision_are_taken_in_float32(dtype):
    """The largest float16 is 65504, and bfloat16 counts to 256."""
    values, weights = jnp.full(70_000, 3, dtype), jnp.full(70_000, 2, dtype)
    for how in ({}, {"weights": weights}, {"where": np.ones(70_000, bool), "weights": np.ones(70_000, np.int8)}):
        mean, gradient = jax.value_and_grad(lambda v, how=how: losses.mean(v, **how))(values)
        assert mean == 3 and mean.dtype == jnp.float32
        assert gradient.dtype == dtype and float(gradient[0]) == float(jnp.asarray(1 / 70_000, dtype))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_margins_and_boundaries_of_half_precision_are_their_numbers(dtype):
    pos, neg = SCORES
    for loss, names in (
        (sml_of_half, ("user_margin", "item_margin")),
        (losses.uib, ("boundary",)),
        (losses.mml, ("margins", "weights")),
    ):
        how = {name: np.array([0.5, 0.25, 0.75, 1.0], np.float32) for name in names}
        half = {name: jnp.asarray(value, dtype) for name, value in how.items()}
        found = loss(pos, neg, where=WHERE, **half)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, loss(pos, neg, where=WHERE, **how))


# ---------------------------------------------------------------------- LOSSES.md

TABLE = (pathlib.Path(__file__).parents[1] / "LOSSES.md").read_text()


def test_every_public_function_has_one_row_in_the_table():
    public = sorted(name for name, value in vars(losses).items() if callable(value) and name[0] != "_")
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", TABLE, re.MULTILINE)
    assert sorted(name for name, _ in rows) == public
    assert all(len(cell.strip()) > 0 for _, row in rows for cell in re.split(r"(?<!\\)\|", row))


def test_the_code_of_the_table_runs():
    blocks = re.findall(r"```python\n(.*?)```", TABLE, re.DOTALL)
    assert len(blocks) == 2
    names = {"users": np.arange(2)}
    for block in blocks:
        exec(block, names)
    own = names["squared_hinge"]
    close(
        _jitted(own)(*SCORES, WHERE)[0],
        by_formula(lambda p, ns: sum(relu(1 - p + n) ** 2 for n in ns), *SCORES, WHERE),
    )
    assert names["values"].shape == names["pos"].shape and np.isfinite(names["values"]).all()
