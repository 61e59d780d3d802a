"""Comparisons of many reports, with corrections and bootstrap intervals."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from jaxrec.evaluate import benjamini_hochberg, compare_all, holm
from jaxrec.evaluate.report import Report

RNG = np.random.default_rng(0)
BASE = RNG.random(60)
REPORTS = {
    "a": Report(np.arange(60), {"ndcg@10": BASE + 0.1 + 0.1 * RNG.normal(size=60)}, {}, None, ""),
    "b": Report(np.arange(60), {"ndcg@10": BASE}, {}, None, ""),
    "c": Report(np.arange(10, 60), {"ndcg@10": BASE[10:] + 0.1 * RNG.normal(size=50)}, {}, None, ""),
}


def test_all_pairs_have_the_paired_test_with_a_correction():
    table = compare_all(REPORTS, "ndcg@10")
    assert table[["first", "second"]].values.tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    for row in table.itertuples():
        found = REPORTS[row.first].compare(REPORTS[row.second], "ndcg@10")
        assert (row.difference, row.p_value, row.n_users) == (found.difference, found.p_value, found.n_users)
        assert row.low < row.difference < row.high
    assert table["p_corrected"].tolist() == holm(table["p_value"].tolist())
    against = compare_all(REPORTS, "ndcg@10", against="b", correction=benjamini_hochberg)
    assert against[["first", "second"]].values.tolist() == [["a", "b"], ["c", "b"]]
    p = against["p_value"].tolist()
    assert against["p_corrected"].tolist() == scipy.stats.false_discovery_control(p).tolist()


def test_the_interval_is_that_of_the_bootstrap_and_its_draws_are_fixed(monkeypatch):
    two = {name: REPORTS[name] for name in "ab"}
    table = compare_all(two, "ndcg@10", resamples=4000, level=0.9)
    values = REPORTS["a"].per_user["ndcg@10"] - BASE
    expected = scipy.stats.bootstrap((values,), np.mean, confidence_level=0.9, method="percentile").confidence_interval
    np.testing.assert_allclose(table[["low", "high"]].values[0], expected, atol=0.1 * (expected.high - expected.low))
    monkeypatch.setattr("jaxrec.evaluate.compare._AT_ONCE", 1000)  # in blocks
    again = compare_all(two, "ndcg@10", resamples=4000, level=0.9)
    assert again.equals(table)


@pytest.mark.every_case
@pytest.mark.parametrize("correction", [holm, benjamini_hochberg])
def test_corrections_ignore_the_index_of_a_series(correction):
    series = pd.Series([0.04, 0.01, 0.03]).sort_values()
    assert correction(series) == correction(series.tolist())
    for wrong in ([0.1, np.nan], [2, 0.1], 0.02):
        with pytest.raises(ValueError, match="give a column of numbers from 0 to 1"):
            correction(wrong)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="give a mapping from names to two reports"):
        compare_all({"a": REPORTS["a"]}, "ndcg@10")
    with pytest.raises(ValueError, match="against='d' is none of"):
        compare_all(REPORTS, "ndcg@10", against="d")
    for level in (1, 95):
        with pytest.raises(ValueError, match=f"level={level}; give a number between 0 and 1"):
            compare_all(REPORTS, "ndcg@10", level=level)
    with pytest.raises(ValueError, match="no metric 'recall@5'"):
        compare_all(REPORTS, "recall@5")
