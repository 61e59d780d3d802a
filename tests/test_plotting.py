import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from jaxrec import plotting
from jaxrec.evaluate.report import Report
from jaxrec.train import Log

HISTORY = Log(({"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0, "ndcg@5": 0.1}, {"epoch": 3, "loss": 1.0}))
VALUES = np.array([0.0, 0.5, 1.0, 1.0])
REPORT = Report(np.arange(4), {"ndcg@5": VALUES, "ndcg@10": VALUES / 2, "auc": VALUES}, {}, None, "by hand")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_learning_curves_draw_a_line_a_run():
    ax = plotting.learning_curves({"a": HISTORY, "b": HISTORY})
    assert [line.get_label() for line in ax.get_lines()] == ["a", "b"]
    assert ax.get_lines()[0].get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    single = plotting.learning_curves(HISTORY, "ndcg@5", ax=plt.subplots()[1])
    assert single.get_lines()[0].get_xydata().tolist() == [[2, 0.1]]
    assert single.get_legend() is None


def test_metric_against_k_draws_means_in_order_of_k():
    ax = plotting.metric_against_k({"a": REPORT}, "ndcg")
    assert ax.get_lines()[0].get_xydata().tolist() == [[5, 0.625], [10, 0.3125]]


def test_per_user_draws_the_distribution():
    line = plotting.per_user({"a": REPORT}, "ndcg@5").get_lines()[0]
    assert line.get_xdata().tolist() == [0, 0.5, 1, 1]
    assert line.get_ydata().tolist() == [0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plotting.learning_curves(HISTORY, "recall@5"), "no 'recall@5'"),
        (lambda: plotting.metric_against_k({"a": REPORT}, "recall"), "'a' has no 'recall' at any k"),
        (lambda: plotting.per_user({"a": REPORT}, "ndcg@7"), "'a' has no 'ndcg@7'"),
    ],
)
def test_unknown_metrics_are_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
