import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from jaxrec import plotting
from jaxrec.evaluate.audit import Audit, Finding
from jaxrec.evaluate.report import Report
from jaxrec.interactions import Interactions
from jaxrec.train import Log
from jaxrec.train.runs import Run, Sweep

LOG = Log(({"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0, "ndcg@5": 0.1}, {"epoch": 3, "loss": 1.0}))
VALUES = np.array([0.0, 0.5, 1.0, 1.0])
REPORT = Report(np.arange(4), {"ndcg@5": VALUES, "ndcg@10": VALUES / 2, "auc": VALUES}, {}, None, "by hand")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_learning_curves_draw_a_line_for_each_run():
    ax = plotting.learning_curves({"a": LOG, "b": LOG})
    assert [line.get_label() for line in ax.get_lines()] == ["a", "b"]
    assert ax.get_lines()[0].get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    single = plotting.learning_curves(LOG, "ndcg@5", ax=plt.subplots()[1])
    assert single.get_lines()[0].get_xydata().tolist() == [[2, 0.1]]
    assert single.get_legend() is None


def test_metric_against_k_draws_means_in_order_of_k():
    ax = plotting.metric_against_k({"a": REPORT}, "ndcg")
    assert ax.get_lines()[0].get_xydata().tolist() == [[5, 0.625], [10, 0.3125]]


def test_per_user_draws_the_distribution():
    line = plotting.per_user({"a": REPORT}, "ndcg@5").get_lines()[0]
    assert line.get_xdata().tolist() == [0, 0.5, 1, 1]
    assert line.get_ydata().tolist() == [0.25, 0.5, 0.75, 1]


LISTED = Report(np.arange(2), {"ndcg@2": np.array([0.2, 0.4])}, {}, np.array([[0, 1], [0, -1]]), "by hand", 4)
TRAIN = Interactions.from_pairs([0, 0, 1, 1, 2], [0, 1, 0, 2, 0], n_items=4)
FEWER = Interactions.from_pairs([0, 0], [0, 1], n_users=2, n_items=2)


def test_differences_are_sorted_and_have_their_mean():
    other = Report(np.arange(1, 5), {"ndcg@5": np.array([0.0, 0.0, 0.5, 1.0])}, {}, None, "by hand")
    curve, zero, mean = plotting.differences(REPORT, other, "ndcg@5").get_lines()
    assert curve.get_xydata().tolist() == [[1, 0.5], [2, 0.5], [3, 1.0]]
    assert set(zero.get_ydata()) == {0} and mean.get_ydata()[0] == pytest.approx(2 / 3)


def test_popularity_is_the_share_of_lists_of_the_most_popular_items():
    lists, training = plotting.popularity({"a": LISTED}, TRAIN).get_lines()
    np.testing.assert_allclose(lists.get_ydata(), [2 / 3, 1, 1, 1])
    np.testing.assert_allclose(training.get_xydata(), [[0.25, 0.6], [0.5, 0.8], [0.75, 1], [1, 1]])
    assert plotting.popularity({"a": LISTED}, TRAIN, k=1).get_lines()[0].get_ydata()[0] == 1


def _sweep(settings, values):
    runs = tuple(Run(s, 0, Log(), 1, {"ndcg": v}, None) for s, v in zip(settings, values))
    return Sweep(runs, None, tuple(settings), ("ndcg",))


def test_a_sweep_is_a_heat_map_of_two_settings():
    grid = [{"rate": rate, "dim": dim} for rate in (0.1, 0.01) for dim in (4, 8)]
    ax = plotting.sweep(_sweep(grid, [0.1, 0.2, 0.3, 0.4]), "rate", "dim")
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.3, 0.1], [0.4, 0.2]])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.01", "0.1"]
    assert sorted(text.get_text() for text in ax.texts) == ["0.1", "0.2", "0.3", "0.4"]
    with pytest.raises(ValueError, match=r"several settings have rate=0\.1 and rate=0\.1"):
        plotting.sweep(_sweep(grid, [0.1] * 4), "rate", "rate")
    with pytest.raises(ValueError, match=r"no setting 'l2'; it has \['rate', 'dim'\]"):
        plotting.sweep(_sweep(grid, [0.1] * 4), "rate", "l2")


def test_coefficients_are_averaged_over_dimensions():
    ax = plotting.regularization(np.array([[1.0, 3.0], [0.5, 0.5], [0.0, 0.0]]), [1, 5, 9])
    points, median = (line.get_xydata().tolist() for line in ax.get_lines())
    assert points == median == [[1, 2], [5, 0.5], [9, 0]]
    with pytest.raises(ValueError, match="give a row for each"):
        plotting.regularization(np.ones(3), [1])


def test_interests_are_cosines_with_items_in_order():
    ax = plotting.interests(np.eye(2), np.array([[0.0, 2.0], [3.0, 0.0]]), titles=["second", "first"])
    np.testing.assert_allclose(ax.images[0].get_array(), np.eye(2), atol=1e-6)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["first", "second"]
    with pytest.raises(ValueError, match="titles has 1 entries for 2 items"):
        plotting.interests(np.eye(2), np.eye(2), titles=["a"])


def test_an_audit_shows_shares_and_what_is_serious():
    findings = (Finding("overlap", 1, 4, True, ""), Finding("cold users", 0, 2, False, ""))
    bars = plotting.audit(Audit(findings, {}, "")).patches
    assert [bar.get_width() for bar in bars] == [0.25, 0] and bars[0].get_facecolor() != bars[1].get_facecolor()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plotting.learning_curves(LOG, "recall@5"), "no 'recall@5'"),
        (lambda: plotting.metric_against_k({"a": REPORT}, "recall"), "'a' has no 'recall' at any k"),
        (lambda: plotting.per_user({"a": REPORT}, "ndcg@7"), "'a' has no 'ndcg@7'"),
        (lambda: plotting.popularity({"a": REPORT}, TRAIN), "'a' has no lists"),
        (lambda: plotting.popularity({"a": LISTED}, FEWER), "use one id map"),
    ],
)
def test_unknown_metrics_are_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
