"""Logs: the best epoch, and what the progress bar shows."""

import re

import pytest

from jaxrec import _run
from jaxrec.train import EarlyStopping, Log

RECORDS = tuple({"epoch": e, "loss": 5.0 - e, "ndcg@10": v} for e, v in enumerate([0.1, 0.3, 0.3, 0.2], 1))


def _run_of(values, epochs=6, **how):
    validate = lambda state: {"ndcg@10": values[state - 1], "other": 1.0}  # noqa: E731
    return _run.run(
        lambda state, number: (state + 1, {"loss": 1 / number}),
        0,
        epochs=epochs,
        variables=lambda state: state,
        validate=validate,
        **how,
    )


def test_best_is_the_record_of_the_best_epoch():
    log = Log(RECORDS)
    assert log.best("ndcg@10")["epoch"] == 2 and log.best("loss", mode="min") == RECORDS[3]
    gaps = Log((RECORDS[0], {"epoch": 2, "loss": 1.0}, {"epoch": 3, "loss": 2.0, "ndcg@10": float("nan")}))
    assert gaps.best("ndcg@10")["epoch"] == 1
    for call, message in (
        (lambda: log.best(), r"no early stopping watched a metric; give one of \['loss', 'ndcg@10'\]"),
        (lambda: log.best("recall"), "the log has no 'recall'"),
        (lambda: log.best("loss", mode="least"), "mode='least'; give"),
        (lambda: Log(({"epoch": 1, "loss": float("nan")},)).best("loss"), "loss is NaN in every record"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_log_of_early_stopping_names_the_epoch_that_was_returned():
    stopping = EarlyStopping("ndcg@10", patience=2, min_delta=0.05)
    state, log = _run_of([0.1, 0.2, 0.22, 0.21], stopping=stopping, progress=False)
    assert state == 2 and log.best()["epoch"] == 2 and log.best("ndcg@10")["epoch"] == 3
    assert "best: epoch 2, ndcg@10 0.2" in repr(log)
    assert "best" not in repr(_run_of([0.1] * 6, progress=False)[1])
    falling = EarlyStopping("ndcg@10", patience=9, mode="min")
    assert _run_of([0.3, 0.1, 0.2], epochs=3, stopping=falling, progress=False)[1].best("ndcg@10")["epoch"] == 2
    assert log.best("loss")["loss"] == min(log.column("loss")[1])
    with pytest.raises(ValueError, match="no record of epoch 9"):
        Log(({"epoch": 1},), watched="ndcg@10", best_epoch=9).best()
    nothing = _run_of([float("nan"), 0.5], epochs=2, stopping=stopping, progress=False)[1]
    assert nothing.best()["epoch"] == 2


@pytest.mark.parametrize("columns", ["500", "60"])
def test_the_bar_shows_loss_and_the_watched_metric_in_100_characters(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    _run_of([0.1234567, 0.3, 0.2, 0.1, 0.1, 0.1], stopping=EarlyStopping("ndcg@10", patience=9))
    shown = re.split(r"[\r\n]", capsys.readouterr().err)
    assert "compiling" in "".join(shown) and max(map(len, shown)) <= min(100, int(columns))
    if columns == "500":
        assert "loss 0.1667, ndcg@10 0.1 (best 0.3)" in shown[-2] and "other" not in "".join(shown)
        assert "100%" in shown[-2] and "6/6" in shown[-2]


def test_a_smaller_loss_is_better_unless_it_is_said_otherwise():
    rule = EarlyStopping("valid_loss", patience=1)
    state, _ = rule.update(rule.init(), {"epoch": 1, "valid_loss": 0.5})
    state, improved = rule.update(state, {"epoch": 2, "valid_loss": 0.4})
    assert improved and rule.mode == "min" and EarlyStopping("loss", mode="max").mode == "max"
    assert {EarlyStopping(name).mode for name in ("ndcg@10", "glossary", "recall@20")} == {"max"}
