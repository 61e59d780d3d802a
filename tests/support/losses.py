"""Losses in plain Python, with scores, masks and comparisons, for the tests of losses."""

import math
from functools import partial

import numpy as np

from jaxrec import losses

POS = (0.8, 0.1, 1.02)

NEG = ((0.95, 0.72, 0.5, -0.2), (0.65, 0.61, 0.3, 0.93), (0.1, 0.2, 0.85, 0.99))

GOWALLA = dict(margins=(0.7, 0.8, 0.9), weights=(0.1, 0.15, 0.75), negative_weight=700.0)


def relu(x):
    return max(x, 0.0)


def softplus(x):
    return relu(x) + math.log1p(math.exp(-abs(x)))


def logsumexp(xs):
    top = max(xs)
    return top + math.log(sum(math.exp(x - top) for x in xs))


def average(xs):
    return sum(xs) / len(xs)


def bpr(p, ns, reduce=average):
    return reduce([softplus(n - p) for n in ns])


def hinge(p, ns, margin=1.0, reduce=average):
    return reduce([relu(margin - p + n) for n in ns])


def mml(p, ns, margins=(0.6, 0.7, 0.8, 0.9), weights=(0.05, 0.15, 0.2, 0.6), wp=1.0, wn=400.0, reduce=average):
    return wp * relu(1 - p) + wn * reduce([sum(w * relu(n - m) for m, w in zip(margins, weights)) for n in ns])


def bce(p, ns, reduce=average):
    return softplus(-p) + reduce([softplus(n) for n in ns])


def mse(p, ns, reduce=average):
    return 0.5 * (p - 1) ** 2 + 0.5 * reduce([n**2 for n in ns])


def rg2_sampled(p, ns, reduce=average):
    return -p + 0.5 * reduce([(n + 1) ** 2 for n in ns])


def softmax(p, ns, temperature=1.0, log_q_pos=0.0, log_q_neg=0.0):
    p = p / temperature - log_q_pos
    return logsumexp([p] + [n / temperature - log_q_neg for n in ns]) - p


def warp(p, ns, margin=1.0, n_items=50):
    violating = sum(margin - p + n > 0 for n in ns) / len(ns)
    return math.log(1 + n_items * violating) * relu(margin - p + max(ns))


def uib(p, ns, boundary=0.0, alpha=0.5, reduce=average):
    return (1 - alpha) * softplus(boundary - p) + alpha * reduce([softplus(n - boundary) for n in ns])


def infonce_plus(p, ns, temperature=1.0, exponent=1.1, share=1.0, mean=False):
    weighted = [(n / temperature, 1 / len(ns) if mean else 1.0) for n in ns] + [(p / temperature, share)] * (share > 0)
    return exponent * logsumexp([x + math.log(w) for x, w in weighted]) - p / temperature


def contrastive(p, ns, margin=1.0, reduce=average):
    return 0.5 * p**2 + reduce([0.5 * relu(margin - n) ** 2 for n in ns])


def triplet(p, ns, margin=1.0, reduce=average):
    return reduce([relu(p**2 - n**2 + margin) for n in ns])


def metricf(p, ns, margin=1.5, weight=1.1, reduce=average):
    return weight * p**4 + reduce([relu(margin - n**2) ** 2 for n in ns])


def half(ns):
    """Distances between items for `sml`: a function of the negatives, with the shape of the mask."""
    return 0.5 * ns + 0.1


def sml(p, ns, user_margin=1.0, item_margin=1.0, weight=0.01, margin_weight=10.0, reduce=average):
    hinges = triplet(p, ns, user_margin, reduce) + weight * triplet(p, [half(n) for n in ns], item_margin, reduce)
    return hinges - margin_weight * (user_margin + item_margin)


def sml_of_half(pos, neg, **how):
    return losses.sml(pos, neg, between=half(neg), **how)


def cosine_triplet(p, ns, margin=0.3):
    return triplet(math.sqrt(relu(2 - 2 * p)), [math.sqrt(relu(2 - 2 * n)) for n in ns], margin)


def bsl(p, ns, temperature=0.11, exponent=1.1, mean=True):
    partition = logsumexp([n / temperature for n in ns]) - (math.log(len(ns)) if mean else 0)
    return -p / temperature + exponent * partition


LOSSES = {
    "bpr": (losses.bpr, bpr),
    "bpr_sum": (partial(losses.bpr, negatives="sum"), partial(bpr, reduce=sum)),
    "hinge": (losses.hinge, hinge),
    "hinge_sum": (partial(losses.hinge, margin=0.3, negatives="sum"), partial(hinge, margin=0.3, reduce=sum)),
    "warp": (partial(losses.warp, n_items=50), warp),
    "warp_tight": (partial(losses.warp, n_items=1000, margin=0.3), partial(warp, n_items=1000, margin=0.3)),
    "ccl": (losses.ccl, partial(mml, margins=(0.9,), weights=(1.0,), wn=150.0)),
    "ccl_sum": (
        partial(losses.ccl, margin=0.2, weight=3.0, negatives="sum"),
        partial(mml, margins=(0.2,), weights=(1.0,), wn=3.0, reduce=sum),
    ),
    "mml": (losses.mml, mml),
    "mml_sum": (
        partial(losses.mml, **GOWALLA, positive_weight=2.0, negatives="sum"),
        partial(mml, margins=(0.7, 0.8, 0.9), weights=(0.1, 0.15, 0.75), wp=2.0, wn=700.0, reduce=sum),
    ),
    "bce": (losses.bce, bce),
    "bce_sum": (partial(losses.bce, negatives="sum"), partial(bce, reduce=sum)),
    "mse": (losses.mse, mse),
    "mse_sum": (partial(losses.mse, negatives="sum"), partial(mse, reduce=sum)),
    "uib": (partial(losses.uib, boundary=0.4, alpha=0.3), partial(uib, boundary=0.4, alpha=0.3)),
    "uib_sum": (partial(losses.uib, negatives="sum"), partial(uib, reduce=sum)),
    "rg2_sampled": (losses.rg2_sampled, rg2_sampled),
    "rg2_sampled_sum": (partial(losses.rg2_sampled, negatives="sum"), partial(rg2_sampled, reduce=sum)),
    "softmax": (losses.softmax, softmax),
    "softmax_cold": (partial(losses.softmax, temperature=0.2), partial(softmax, temperature=0.2)),
    "sampled_softmax": (
        partial(losses.sampled_softmax, temperature=0.5, log_q_pos=-1.0, log_q_neg=-3.0),
        partial(softmax, temperature=0.5, log_q_pos=-1.0, log_q_neg=-3.0),
    ),
    "bsl": (losses.bsl, bsl),
    "bsl_sum": (
        partial(losses.bsl, temperature=0.3, exponent=1.4, negatives="sum"),
        partial(bsl, temperature=0.3, exponent=1.4, mean=False),
    ),
    "infonce_plus": (losses.infonce_plus, infonce_plus),
    "infonce_plus_share": (
        partial(losses.infonce_plus, temperature=0.3, exponent=1.2, positive_share=0.4, negatives="mean"),
        partial(infonce_plus, temperature=0.3, exponent=1.2, share=0.4, mean=True),
    ),
    "mine": (losses.mine, partial(infonce_plus, exponent=1.0, share=0.0, mean=True)),
    "mine_sum": (
        partial(losses.mine, temperature=0.3, exponent=1.1, negatives="sum"),
        partial(infonce_plus, temperature=0.3, exponent=1.1, share=0.0),
    ),
    "contrastive": (losses.contrastive, contrastive),
    "contrastive_sum": (
        partial(losses.contrastive, margin=0.6, negatives="sum"),
        partial(contrastive, margin=0.6, reduce=sum),
    ),
    "triplet": (losses.triplet, triplet),
    "triplet_sum": (partial(losses.triplet, margin=0.3, negatives="sum"), partial(triplet, margin=0.3, reduce=sum)),
    "metricf": (losses.metricf, metricf),
    "metricf_sum": (
        partial(losses.metricf, margin=0.6, positive_weight=2.0, negatives="sum"),
        partial(metricf, margin=0.6, weight=2.0, reduce=sum),
    ),
    "sml": (sml_of_half, sml),
    "sml_sum": (
        partial(sml_of_half, user_margin=0.3, item_margin=0.4, weight=0.7, margin_weight=0.1, negatives="sum"),
        partial(sml, user_margin=0.3, item_margin=0.4, weight=0.7, margin_weight=0.1, reduce=sum),
    ),
    "on_scores": (
        partial(losses.on_scores, loss=partial(losses.triplet, margin=0.3), squared_distance=lambda s: 2 - 2 * s),
        cosine_triplet,
    ),
    "combine": (
        partial(losses.combine, parts=((1.5, losses.bpr), (0.1, partial(losses.ccl, margin=0.4)))),
        lambda p, ns: 1.5 * bpr(p, ns) + 0.1 * mml(p, ns, margins=(0.4,), weights=(1.0,), wn=150.0),
    ),
}

# Row 0 has one valid negative, row 1 two, row 2 all, row 3 none. No score is near a margin.
SCORES = (
    np.array([0.3, 0.97, -0.4, 0.55], np.float32),
    np.array(
        [[0.93, 0.74, -0.3, 0.1], [0.65, 0.86, 0.33, -0.9], [0.12, 0.83, 0.98, 0.71], [0.5, 0.95, 0.2, 0.3]], np.float32
    ),
)

WHERE = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]], bool)


def by_formula(formula, pos, neg, where):
    """Deletes the masked negatives and applies the formula; NumPy float64."""
    shape = np.broadcast_shapes(pos.shape, neg.shape[:-1])
    pos = np.broadcast_to(pos, shape)
    neg, where = (np.broadcast_to(x, (*shape, neg.shape[-1])) for x in (neg, where))
    values = np.zeros(shape)
    for at in np.ndindex(shape):
        if where[at].any():
            values[at] = formula(float(pos[at]), [float(n) for n in neg[at][where[at]]])
    return values


def close(actual, expected, rtol=1e-5, atol=0.0):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=max(atol, rtol * max(1e-3, np.abs(expected).max())))


def differences(f, x, step=1e-6):
    """Central finite differences of the sum of f, float64."""
    steps = step * np.eye(x.size).reshape(-1, *x.shape)
    return np.array([(f(x + d).sum() - f(x - d).sum()) / (2 * step) for d in steps]).reshape(x.shape)
