"""Reports: means, standard errors, paired comparison, and their display."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from jaxrec.evaluate.report import Report
from jaxrec.interactions import IdMap


def _report(users, protocol="full ranking", **per_user):
    per_user = {name.replace("_at_", "@"): np.asarray(values, np.float64) for name, values in per_user.items()}
    return Report(np.asarray(users), per_user, {"coverage@5": 0.25}, None, protocol)


def test_means_and_standard_errors_by_hand():
    report = _report([3, 1, 2], recall_at_5=[0.0, 0.5, 1.0], auc=[0.9, 0.9, 0.9])
    assert report.means == {"recall@5": 0.5, "auc": pytest.approx(0.9), "coverage@5": 0.25}
    # variance with ddof 1: (.25 + 0 + .25) / 2
    assert report.stderr == {"recall@5": pytest.approx((0.25 / 3) ** 0.5), "auc": pytest.approx(0)}


def test_one_user_has_no_standard_error():
    report = _report([3], recall_at_5=[0.5])
    assert np.isnan(report.stderr["recall@5"]) and report.means["recall@5"] == 0.5
    assert "0.5000 ± nan" in repr(report)


def test_compare_is_the_paired_t_test_on_the_common_users():
    rng = np.random.default_rng(0)
    a, b = rng.random(30), rng.random(25)
    first, second = rng.permutation(40)[:30], rng.permutation(40)[:25]
    common = np.intersect1d(first, second)
    mine, theirs = (np.array([x[np.flatnonzero(ids == u)[0]] for u in common]) for x, ids in ((a, first), (b, second)))
    result = _report(first, ndcg_at_5=a).compare(_report(second, ndcg_at_5=b), "ndcg@5")
    assert 2 < len(common) < 25 and result.n_users == len(common)
    assert result.difference == pytest.approx((mine - theirs).mean())
    assert result.stderr == pytest.approx(scipy.stats.sem(mine - theirs))
    assert result.p_value == pytest.approx(scipy.stats.ttest_rel(mine, theirs).pvalue)
    back = _report(second, ndcg_at_5=b).compare(_report(first, ndcg_at_5=a), "ndcg@5")
    assert back.difference == pytest.approx(-result.difference) and back.p_value == pytest.approx(result.p_value)


@pytest.mark.parametrize("shift, p_value", [(0.0, 1.0), (0.5, 0.0)])
def test_compare_of_a_constant_difference(shift, p_value):
    a = np.array([0.0, 0.25, 0.5])
    result = _report([0, 1, 2], auc=a + shift).compare(_report([0, 1, 2], auc=a), "auc")
    assert result == (shift, 0, p_value, 3)


def test_compare_refuses_what_it_cannot_pair():
    report = _report([0, 1, 2], auc=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"no metric 'ndcg@5' for each user; there are \['auc'\]"):
        report.compare(report, "ndcg@5")
    with pytest.raises(ValueError, match="no metric 'coverage@5'"):
        report.compare(report, "coverage@5")
    with pytest.raises(ValueError, match="share 1 users"):
        report.compare(_report([2, 3], auc=[0.1, 0.2]), "auc")
    with pytest.raises(ValueError, match="more than once"):
        report.compare(_report([2, 2], auc=[0.1, 0.2]), "auc")


def test_repr_has_the_protocol_and_every_cell():
    report = _report([0, 1], "FULL of 7 items", recall_at_5=[0.0, 1.0], recall_at_10=[0.5, 0.5], auc=[0.75, 0.75])
    lines = repr(report).splitlines()
    assert lines[0] == "Report on 2 users: FULL of 7 items"
    assert lines[1].split() == ["@5", "@10"]
    assert [line.split() for line in lines[2:]] == [
        ["recall", "0.5000", "±", "0.5000", "0.5000", "±", "0.0000"],
        ["auc", "0.7500", "±", "0.0000"],
        ["coverage", "0.2500"],
    ]
    # a cell is below its cut-off; the area has none, and is in the third column
    assert lines[2].index("± 0.0000") > lines[1].index("@5") and len(lines[3]) > len(lines[1])


def test_html_has_the_same_cells_and_is_escaped():
    page = _report([0, 1], "ties <at> random & more", recall_at_5=[0.0, 1.0])._repr_html_()
    assert "<caption>2 users: ties &lt;at&gt; random &amp; more</caption>" in page
    assert "<tr><th>recall</th><td>0.5000 ± 0.5000</td></tr>" in page
    assert "<tr><th>coverage</th><td>0.2500</td></tr>" in page
    assert "<tr><th></th><th>@5</th></tr>" in page
    assert "&lt;b&gt;" in _report([0, 1], **{"<b>": [0.0, 1.0]})._repr_html_()


def test_dataframe_has_one_row_per_user():
    pytest.importorskip("pandas")
    frame = _report([7, 3], recall_at_5=[0.0, 1.0], auc=[0.5, 0.25]).to_dataframe()
    assert frame.index.tolist() == [7, 3] and frame.index.name == "user"
    assert frame.columns.tolist() == ["recall@5", "auc"]
    assert frame.loc[3].tolist() == [1.0, 0.25]
    labelled = _report([1, 0], auc=[0.5, 0.25]).to_dataframe(IdMap(["ann", "bob"], [1]))
    assert labelled.loc["ann", "auc"] == 0.25 and labelled.index.tolist() == ["bob", "ann"]


LISTS = Report(np.array([0, 2, 3]), {"ndcg@2": np.array([0.1, 0.3, 0.5])}, {"coverage@1": 0.5, "coverage@2": 0.75},
               np.array([[0, 1], [0, 2], [1, -1]]), "full", 4)  # fmt: skip


def test_groups_of_users_have_their_own_means_and_lists():
    found = LISTS.by_group(np.array([True, True, False, True]))
    assert list(found) == [False, True] and found[True].users.tolist() == [0, 3]
    assert found[True].means == {
        "ndcg@2": pytest.approx(0.3), "coverage@1": 0.5, "coverage@2": 0.5, "gini@1": pytest.approx(0.5),
        "gini@2": pytest.approx(7 / 12),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"groups has shape \[3\]; give one entry for each user id, 4 or more"):
        LISTS.by_group(np.zeros(3))
    with pytest.raises(ValueError, match="groups has an index other than the user ids"):
        LISTS.by_group(pd.Series([0, 1, 0, 1], index=[3, 2, 1, 0]))


@pytest.mark.parametrize("lacking", [None, pd.NA, np.nan, pd.NaT, ""])
@pytest.mark.parametrize("column", [lambda x: np.array(x, object), pd.Series, list])
def test_a_missing_group_is_refused(lacking, column):
    for ask, of in ((LISTS.by_group, "user"), (LISTS.exposure, "item")):
        with pytest.raises(ValueError, match=rf"no value for {of} 2 \(1 such {of}s\); .* own, such as 'unknown'"):
            ask(column(["a", "b", lacking, "a"]))


def test_missing_numbers_and_times_are_no_groups():
    with pytest.raises(ValueError, match=r"no value for user 1 \(2 such users\); .* own, such as -1"):
        LISTS.by_group(np.array([1.0, np.nan, 2.0, np.nan]))
    for unit in ("D", "ns"):
        with pytest.raises(ValueError, match="no value for user 3"):
            LISTS.by_group(np.array(["2020-01-01"] * 3 + ["NaT"], f"datetime64[{unit}]"))


@pytest.mark.parametrize(
    "column", [pd.Categorical, pd.Index, pd.array, lambda x: pytest.importorskip("pyarrow").array(x)]
)
def test_groups_may_be_a_column_without_an_index(column):
    assert list(LISTS.by_group(column(["a", "b", "b", "a"]))) == ["a", "b"]
    assert list(LISTS.exposure(column(["a", "b", "b", "a"]))) == ["a", "b"]


def test_masked_groups_are_refused():
    with pytest.raises(ValueError, match=r"groups\[2\] is masked"):
        LISTS.by_group(np.ma.array([1, 2, 3, 3], mask=[0, 0, 1, 0]))


def test_groups_of_nanoseconds_stay_times():
    times = np.array(["2020-01-01"] * 3 + ["2020-01-02"], "datetime64[ns]")
    assert list(LISTS.by_group(times)) == [times[0], times[3]]


def test_groups_of_several_kinds_are_refused():
    with pytest.raises(ValueError, match=r"groups mixes types: integers such as 1, strings such as 'a'; turn all"):
        LISTS.by_group(np.array([1, "a", 1, 2], object))


def test_groups_may_be_intervals_and_users_without_a_row_have_none():
    bins = pd.Series(pd.cut([1, 9, 2, 3], [0, 2.5, 5, 10]))
    found = LISTS.by_group(bins)
    assert [(name.left, part.users.tolist()) for name, part in found.items()] == [(0, [0, 2]), (2.5, [3])]


def test_exposure_of_groups_of_items():
    popular, rare = LISTS.exposure(["popular", "rare", "rare", "rare"]).values()
    assert (popular, rare) == ((1, 0.25, 0.4, 1.0), (3, 0.75, pytest.approx(0.6), pytest.approx(2 / 3)))
    assert LISTS.exposure(np.array([0, 1, 1, 1]), k=1)[0].share_of_lists == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"groups has shape \[5\]; give one entry for each item id, 4"):
        LISTS.exposure(np.zeros(5))
    with pytest.raises(ValueError, match="has no lists of items"):
        _report([0], auc=[0.5]).exposure([0])
    with pytest.raises(ValueError, match="items has id -2, but there are 4 items"):
        dataclasses.replace(LISTS, items=LISTS.items - 1).exposure(np.zeros(4))


@pytest.mark.every_case
@pytest.mark.parametrize("times", [["2020-01-01", "2020-01-02"], ["2020-01-01", "20000-01-01"]])
@pytest.mark.parametrize("unit", ["s", "ms"])
def test_times_that_python_cannot_hold_are_no_integers_as_groups(times, unit):
    groups = np.array(times, f"datetime64[{unit}]")
    found = list(Report(np.arange(2), {"x": np.array([0.1, 0.2])}, {}, None, "p").by_group(groups))
    assert not any(type(name) is int for name in found)
    assert all(np.datetime64(name) == time for name, time in zip(found, groups))
