"""Metrics in NumPy and by ranx, for the tests of metrics and of evaluation."""

import math
import warnings

import numpy as np
import pytest

ON_HITS = ("recall", "precision", "hit_rate", "mrr", "ndcg", "average_precision")


def brute_force(name, hits, n_relevant, k, denominator="n_relevant"):
    """One metric of one list, float64."""
    hits = [float(h) for h in hits[:k]]
    if n_relevant == 0:
        return 0.0
    size = n_relevant if denominator == "n_relevant" else min(n_relevant, k)
    if name == "recall":
        return sum(hits) / size
    if name == "precision":
        return sum(hits) / k
    if name == "hit_rate":
        return float(any(hits))
    if name == "mrr":
        return next((1 / rank for rank, hit in enumerate(hits, 1) if hit), 0.0)
    if name == "ndcg":
        gain = sum(hit / math.log2(rank + 1) for rank, hit in enumerate(hits, 1))
        return gain / sum(1 / math.log2(rank + 1) for rank in range(1, min(k, n_relevant) + 1))
    assert name == "average_precision"
    return sum(sum(hits[:rank]) / rank for rank, hit in enumerate(hits, 1) if hit) / size


def second_opinion(lists, relevant, k):
    """Returns ranx's metrics of each user, {metric: [U]}: `lists` are item ids, best first, `relevant` sets of ids."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes far longer than these few users
        warnings.simplefilter("ignore")
        ranx = pytest.importorskip("ranx")
        run = {
            f"u{u:04}": {f"i{i}": float(len(items) - rank) for rank, i in enumerate(items)}
            for u, items in enumerate(lists)
        }
        qrels = {f"u{u:04}": {f"i{i}": 1 for i in items} for u, items in enumerate(relevant)}
        names = {name: f"{'map' if name == 'average_precision' else name}@{k}" for name in ON_HITS}
        scores = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), list(names.values()), return_mean=False)
    return {name: scores[theirs] for name, theirs in names.items()}


def pairwise_auc(scores, relevant, where):
    """Share of the pairs (relevant, other) in the right order, ties counting half."""
    wins = [(p > n) + 0.5 * (p == n) for p in scores[relevant & where] for n in scores[~relevant & where]]
    return float(np.mean(wins)) if wins else 0.0
