"""Studies on a tiny set with methods in closed form: budgets, records, marks and tests."""

import json
from functools import partial

import jax
import numpy as np
import pytest
import scipy.stats

import jaxrec as jr
from jaxrec import _records, study
from jaxrec.data import splits, synthetic
from jaxrec.interactions import DataWarning
from jaxrec.study import Method

METRIC = "recall@2"
LOG = jr.train.Log(({"epoch": 3, "seconds": 1.0},))


@pytest.fixture(scope="module")
def board():
    pairs, _ = synthetic.checkerboard(24)
    return splits.ratio(pairs, order=partial(splits.random_order, key=jax.random.key(0)))


def solved(train, valid, key, *, regularization):
    return jr.solvers.rg2.solve(train, dim=2, regularization=regularization, key=key)


RG2 = Method("RG2", solved, {"regularization": [0.01, 0.1, 50.0]})


def fixed(name, grid=None, log=None, score=lambda seed, **setting: (0.5, 0.5)):
    """A method whose users have the metric values that `score` returns."""

    def fit(train, valid, key, **setting):
        seed = int(jax.random.key_data(key)[-1])
        return None, {"values": np.array(score(seed, **setting), float)}, log

    return Method(name, fit, grid or {})


def by_hand(model, variables, split, on):
    """The values of a `fixed` method; zeros for other models."""
    values = variables["values"] if model is None else np.zeros(2)
    return jr.evaluate.Report(np.arange(len(values)), {METRIC: values}, {}, None, "by hand")


@pytest.fixture
def go(board, tmp_path):
    options = {"folder": tmp_path, "metric": METRIC, "evaluate": by_hand, "progress": False}
    return lambda *methods, **more: study.run(methods, {"board": board}, **{**options, **more})


def marks(table, name):
    return table.row("board", name).marks


def test_a_run_on_an_accelerator_has_no_cpu_time(board, tmp_path, monkeypatch):
    """Most of its work is not on the CPU, so that the time would not compare with that of other runs."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    options = {"metric": METRIC, "seeds": [0], "progress": False, "evaluate": partial(study.full_ranking, ks=(2,))}
    row = study.run([RG2], {"board": board}, folder=tmp_path, **options).row("board", "RG2")
    assert row.cpu_seconds == [None] and row.search_seconds is None
    assert all(record["seconds"] > 0 for record in study.read(tmp_path / "study.jsonl"))


def test_a_study_finds_the_better_method_and_keeps_every_run(board, tmp_path):
    evaluate = partial(study.full_ranking, ks=(2,))
    found = study.run([RG2], {"board": board}, folder=tmp_path, metric=METRIC, evaluate=evaluate, progress=False)
    row = found.row("board", "RG2")
    assert found.best("board") == "RG2" and row.values[METRIC].mean() > 0.9
    assert [r.method for r in found.rows] == ["random", "item id", "popularity", "RG2"]
    known = board.train.union(board.valid)
    popular = jr.evaluate.full_ranking(*jr.models.popularity(board.train), known, board.test, ks=(2,))
    assert found.row("board", "popularity").values[METRIC].tolist() == [popular.means[METRIC]] * 3
    records = study.read(tmp_path / "study.jsonl")
    assert len(records) == 3 + 4 * 3
    for record in records:
        assert {"commit", "grid", "seconds", "setting", "versions"} <= set(record) and record["device"] == "cpu"
        assert record["fingerprint"].split("-") == [part.fingerprint() for part in board]
        assert ("test" in record) == (record["on"] == "test") == ("users" in record)
    users = _records.unpacked(records[-1]["users"][METRIC])
    assert np.nanmean(users) == pytest.approx(records[-1]["test"][METRIC])
    np.testing.assert_array_equal(np.isnan(users), np.asarray(board.test.user_degrees) == 0)
    html = found._repr_html_()
    assert "<td>RG2</td>" in html and html.count("<tr>") == 5
    assert "RG2" in repr(found) and "± 0.0000" in repr(found)


def test_every_method_has_the_same_number_of_trials(go, tmp_path):
    score = lambda seed, a, b=0: (a / 100, b / 100)  # noqa: E731
    large = fixed("large", {"a": range(10), "b": range(10)}, score=score)
    other = fixed("other", {"a": [3.0, 1.0, 2.0]}, score=score)
    found = go(large, other, trials=4)
    records = study.read(tmp_path / "study.jsonl")
    tried = [record["setting"] for record in records if (record["method"], record["on"]) == ("large", "valid")]
    assert len(tried) == 4 == found.row("board", "large").trials
    assert tried == study.settings(large.grid, 4) and tried != study.settings(large.grid, 4, jax.random.key(1))
    assert len({json.dumps(setting) for setting in tried}) == 4
    best = max(tried, key=lambda setting: setting["a"] + setting["b"])
    assert found.row("board", "large").setting == best
    assert found.row("board", "other").setting == {"a": 3.0} and found.row("board", "other").trials == 3


def test_a_study_continues_where_it_stopped_and_trains_nothing_twice(go, tmp_path):
    asked = []

    def score(seed, x):
        asked.append((seed, x))
        if len(asked) == 5:
            raise KeyboardInterrupt
        return (x / 10, 0)

    method = fixed("M", {"x": [1, 3, 2]}, score=score)
    with pytest.raises(KeyboardInterrupt):
        go(method)
    found = go(method)
    assert asked == [(0, 1), (0, 3), (0, 2), (0, 3), (1, 3), (1, 3), (2, 3)]
    before = (tmp_path / "study.jsonl").read_bytes()
    assert repr(go(method)) == repr(found) == repr(study.table([method], tmp_path / "study.jsonl", metric=METRIC))
    assert (tmp_path / "study.jsonl").read_bytes() == before
    assert go(method, seeds=[0, 1, 2, 3]).row("board", "M").seeds == [0, 1, 2, 3] and asked[7:] == [(3, 3)]


def test_without_seeds_methods_are_only_tuned(go, tmp_path):
    assert go(fixed("M", {"x": [1, 2]}, score=lambda seed, x: (x, 0)), seeds=[]).rows == ()
    assert [(r["on"], r["setting"]) for r in study.read(tmp_path / "study.jsonl")] == [
        ("valid", {"x": 1}),
        ("valid", {"x": 2}),
    ]


def all_at_once(score, asked=None):
    """A method that trains its whole grid in one call. If `score` returns None, training diverged."""

    def fit_all(train, valid, key, settings):
        seed = int(jax.random.key_data(key)[-1])
        if asked is not None:
            asked.append((seed, [setting["x"] for setting in settings]))
        values = [score(seed, **setting) for setting in settings]
        return [None if value is None else (None, {"values": np.array([value, 0.0])}, LOG) for value in values]

    return Method("M", grid={"x": [1, 3, 2]}, fit_all=fit_all)


def test_a_whole_grid_may_train_at_once(go, tmp_path):
    """Recorded settings do not train again, and each setting has its share of the time."""
    asked = []
    method = all_at_once(lambda seed, x: x / 10, asked)
    row = go(method, seeds=[0, 1]).row("board", "M")
    assert asked == [(0, [1, 3, 2]), (0, [3]), (1, [3])]
    assert (row.setting, row.trials, row.values[METRIC].tolist()) == ({"x": 3}, 3, [0.15, 0.15])
    tried = [r for r in study.read(tmp_path / "study.jsonl") if (r["method"], r["on"]) == ("M", "valid")]
    assert [r["valid"][METRIC] for r in tried] == [0.05, 0.15, 0.1]
    assert len({r["cpu_seconds"] for r in tried}) == 1
    assert row.search_seconds == pytest.approx(3 * tried[0]["cpu_seconds"]) and len(row.cpu_seconds) == 2
    go(method._replace(grid={"x": [1, 4, 2]}), seeds=[0])
    assert asked[3:] == [(0, [4]), (0, [4])]
    short = method._replace(fit_all=lambda *_: [])
    with pytest.raises(ValueError, match="fit_all of M gives 0 results for 3 settings"):
        go(short, name="other")


def test_a_setting_that_diverged_is_not_chosen(go, tmp_path):
    found = go(all_at_once(lambda seed, x: None if x == 3 else x / 10)).row("board", "M")
    assert found.setting == {"x": 2} and found.trials == 3
    tried = [r["valid"] for r in study.read(tmp_path / "study.jsonl") if r["on"] == "valid"]
    assert tried == [{METRIC: 0.05}, {METRIC: None}, {METRIC: 0.1}]
    with pytest.raises(ValueError, match="M diverged with all its settings on 'board'"):
        go(all_at_once(lambda seed, x: None), name="other")
    with pytest.raises(ValueError, match=r"M with {'x': 3} diverged with seed 1"):
        go(all_at_once(lambda seed, x: None if seed else x), name="third")


def test_a_split_may_have_no_validation_if_nothing_is_chosen(board, tmp_path):
    options = {"folder": tmp_path, "metric": METRIC, "evaluate": by_hand, "progress": False}
    test_alone = {"board": board._replace(valid=None)}
    row = study.run([fixed("M", {"x": [1]}, score=lambda seed, x: (x, 0))], test_alone, **options).row("board", "M")
    assert row.values[METRIC].tolist() == [0.5] * 3 and row.valid == {}
    fingerprints = {record["fingerprint"] for record in study.read(tmp_path / "study.jsonl")}
    assert fingerprints == {f"{board.train.fingerprint()}-{board.test.fingerprint()}"}
    with pytest.raises(ValueError, match="M has 2 settings, but 'board' has no validation"):
        study.run([fixed("M", {"x": [1, 2]})], test_alone, **options)
    model, variables = jr.models.popularity(board.train)
    report = study.full_ranking(model, variables, test_alone["board"], "test", ks=(2,))
    assert report.means == jr.evaluate.full_ranking(model, variables, board.train, board.test, ks=(2,)).means


def test_refit_trains_on_train_and_validation_only_before_test(board, tmp_path):
    def refit(train, key, log, *, x):
        assert log is LOG and train.n_pairs == board.train.n_pairs + board.valid.n_pairs
        return None, {"values": np.array([x, 0.75])}, None

    method = fixed("M", {"x": [1, 2]}, score=lambda seed, x: (x, 0))._replace(refit=refit)
    method = method._replace(fit=lambda *data, fit=method.fit, **setting: (*fit(*data, **setting)[:2], LOG))
    seen = []

    def evaluate(model, variables, split, on):
        seen.append((on, split.train.n_pairs, split.valid is None))
        return by_hand(model, variables, split, on)

    options = {"folder": tmp_path, "metric": METRIC, "evaluate": evaluate, "progress": False}
    row = study.run([method], {"board": board}, seeds=[0], **options).row("board", "M")
    assert row.values[METRIC].tolist() == [1.375]
    # The trivial rankers do not train again.
    assert seen[-2:] == [
        ("valid", board.train.n_pairs, False),
        ("test", board.train.n_pairs + board.valid.n_pairs, True),
    ]
    assert study.read(tmp_path / "study.jsonl")[-1]["valid"] == {METRIC: 1.0}


def test_a_refit_that_diverges_is_named(go):
    method = fixed("M")._replace(refit=lambda train, key, log: None)
    with pytest.raises(ValueError, match=r"refit of M with \{\} diverged with seed 0 on 'board'"):
        go(method, seeds=[0])


def test_records_of_other_data_are_refused(go, board, tmp_path):
    go(fixed("M"), seeds=[0, 1])
    other = {"board": board._replace(test=board.valid, valid=board.test)}
    with pytest.raises(ValueError, match="other data under the name 'board'"):
        study.run([fixed("M")], other, folder=tmp_path, metric=METRIC, evaluate=by_hand, progress=False)


def test_seed_0_tunes_for_any_seeds(go):
    asked = []
    method = fixed("M", {"x": [1, 2]}, score=lambda seed, x: asked.append((seed, x)) or (x, 0))
    go(method, seeds=[7])
    go(method, seeds=[8, 0])
    assert asked == [(0, 1), (0, 2), (7, 2), (8, 2), (0, 2)]


def test_a_split_may_depend_on_the_seed(board, tmp_path):
    asked = []

    def split(seed):
        asked.append(seed)
        return board if seed else board._replace(valid=board.test, test=board.valid)

    options = {"folder": tmp_path, "metric": METRIC, "evaluate": by_hand, "progress": False}
    study.run([fixed("M", {"x": [1, 2]}, score=lambda seed, x: (x, seed))], {"b": split}, seeds=[0, 1], **options)
    assert asked == [0, 1]
    records = study.read(tmp_path / "study.jsonl")
    assert len({(record["seed"], record["fingerprint"]) for record in records}) == 2


@pytest.mark.parametrize(
    ("grid", "setting", "found"),
    [
        ({"x": [1, 2, 3]}, {"x": 3}, ["x"]),
        ({"x": [1, 2, 3]}, {"x": 1}, ["x"]),
        ({"x": [3, 1, 2]}, {"x": 2}, []),
        ({"x": [1, 2]}, {"x": 2}, []),
        ({"x": [0.0, 0.1, 0.2]}, {"x": 0.0}, []),
        ({"x": ["a", "b", "c"]}, {"x": "c"}, []),
        ({"x": [True, False]}, {"x": True}, []),
        ({"x": np.logspace(-3, -1, 3), "y": [1, 2, 3]}, {"x": 0.1, "y": 2}, ["x"]),
        ({"x": [(3, 4), (1, 2), (2, 2)]}, {"x": (3, 4)}, ["x"]),
        ({"x": [(3, 4), (1, 2), (2, 2)]}, {"x": [2, 2]}, []),
        ({"x": [(3, 1), (1, 2), (2, 2)]}, {"x": (3, 1)}, []),
        ({"x": [(1,), (2, 2), 3]}, {"x": (1,)}, []),
    ],
)
def test_ends_of_a_grid_are_of_three_ordered_values_or_more(grid, setting, found):
    assert study.ends(setting, grid) == found


def test_a_value_at_an_end_of_its_grid_has_a_star(go):
    score = lambda seed, x: (x / 10, 0)  # noqa: E731
    found = go(fixed("end", {"x": [1, 2, 3]}, score=score), fixed("two", {"x": [1, 2]}, score=score))
    assert (marks(found, "end"), marks(found, "two")) == ("*", "")
    assert "x 3*" in repr(found) and "x 2 " in repr(found)
    assert found.legend()[1:] == ["* " + study.MARKS["*"]]


@pytest.mark.parametrize(
    ("values", "mark", "epoch"), [((0.1, 0.2, 0.3), "^", 3), ((0.1, 0.3, 0.2), "", 2), ((0.3,), "", 1)]
)
def test_a_best_epoch_at_the_cap_is_marked(values, mark, epoch, go):
    log = jr.train.Log(tuple({"epoch": e, "seconds": 1.0, METRIC: v} for e, v in enumerate(values, 1)))
    found = go(fixed("M", log=log))
    assert marks(found, "M") == mark and found.row("board", "M").epochs == [epoch] * 3


@pytest.mark.parametrize(("seeds", "mark"), [([0], "1"), ([4, 5], "1"), ([0, 1, 2], "")])
def test_fewer_than_three_seeds_are_marked(seeds, mark, go):
    assert marks(go(fixed("M"), seeds=seeds), "M") == mark


def test_a_record_older_than_its_grid_is_marked_until_the_study_runs_again(go, tmp_path):
    make = lambda *values: fixed("M", {"x": list(values)}, score=lambda seed, x: (x / 10, 0))  # noqa: E731
    view = lambda method: study.table([method], tmp_path / "study.jsonl", metric=METRIC)  # noqa: E731
    go(make(1, 3, 2))
    for values, mark in (((1, 3, 2), "*"), ((1, 3, 2, 4), "*!"), ((1, 2), "*!"), ((2, 3), "*")):
        assert marks(view(make(*values)), "M") == mark, values
    assert marks(go(make(1, 2)), "M") == "" and view(make(1, 2)).row("board", "M").setting == {"x": 2}
    assert marks(go(make(1, 3, 2, 4, 5)), "M") == "*"
    assert view(make(1, 3, 2, 4, 5)).row("board", "M").setting == {"x": 5}
    assert marks(view(make(1, 3, 2)), "M") == "*" and view(make(1, 3, 2)).row("board", "M").setting == {"x": 3}


def test_holm_is_that_of_a_worked_example():
    """The smallest of four p-values is multiplied by 4, the next by 3 and so on. Corrected values do not decrease."""
    found = study.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])
    assert study.holm([0.5, 0.9]) == [1.0, 1.0] and study.holm([]) == []


def test_paired_tests_are_by_users_and_by_seeds(go, tmp_path):
    """They equal SciPy's, each corrected for the two rows that are compared with random."""
    values = {
        "A": {0: (0.5, 0.7), 1: (0.6, 0.9), 2: (0.55, 0.95)},
        "B": {0: (0.1, 0.0), 1: (0.0, 0.3), 2: (0.2, 0.1)},
        "C": {0: (0.1, 0.1), 1: (0.2, 0.1), 2: (0.0, 0.1)},
    }
    table = go(*(fixed(name, score=lambda seed, of=of: of[seed]) for name, of in values.items()), against="B")
    assert (table.row("board", "B").over_users, table.row("board", "B").p_users) == (None, None)
    whole = {name: np.array([of[seed] for seed in range(3)]) for name, of in values.items()}
    whole |= dict.fromkeys(("random", "item id", "popularity"), np.zeros((3, 2)))
    others = ["random", "item id", "popularity", "A", "C"]
    for axis, field in ((0, "p_users"), (1, "p_seeds")):
        raw = [scipy.stats.ttest_1samp((whole[name] - whole["B"]).mean(axis), 0).pvalue for name in others]
        for name, p in zip(others, study.holm(raw)):
            assert getattr(table.row("board", name), field) == pytest.approx(p, rel=1e-4)
    assert table.row("board", "A").over_users.difference == pytest.approx(0.7 - 0.7 / 6, rel=1e-5)
    path = tmp_path / "study.jsonl"
    assert "minus B" in repr(table) and "Holm" in repr(table)
    view = partial(study.table, records=study.read(path), metric=METRIC)
    with pytest.raises(ValueError, match="against='D' has no row"):
        view([fixed("A"), fixed("B")], against="D")
    with pytest.raises(ValueError, match="'ndcg@7' is not recorded"):
        view([fixed("A")], shown=["ndcg@7"])
    with pytest.raises(ValueError, match="'ndcg@7' is not recorded"):
        view([fixed("A")], metric="ndcg@7")


def test_one_seed_has_no_test_over_seeds(go):
    found = go(fixed("A", score=lambda seed: (0.5, 0.9)), against="popularity", seeds=[0]).row("board", "A")
    assert found.p_seeds is None and found.p_users < 1 and found.over_users.difference == pytest.approx(0.7)


def test_a_metric_that_is_not_a_number_is_refused_and_leaves_no_record(go, tmp_path):
    bad = fixed("bad", {"x": [1, 2]}, score=lambda seed, x: (np.nan if x == 2 else 0, 0))
    with pytest.raises(ValueError, match=r"bad with {'x': 2} on valid of 'board' has {'recall@2': nan}"):
        go(bad)
    text = (tmp_path / "study.jsonl").read_text()
    assert "NaN" not in text and '"x": 1' in text and '"setting": {"x": 2}' not in text
    with pytest.raises(ValueError, match=r"gives no 'ndcg@5' .* it gives \['recall@2'\]"):
        go(fixed("M"), metric="ndcg@5", name="other")


def test_a_half_written_last_line_is_dropped_with_a_warning_and_written_again(go, tmp_path):
    path = tmp_path / "study.jsonl"
    whole = go(fixed("M"))
    text = path.read_text()
    path.write_text(text[:-30])
    with pytest.warns(DataWarning, match="1 half-written line"):
        again = go(fixed("M"))
    assert repr(again) == repr(whole) and path.read_text().count("\n") == text.count("\n")
    path.write_text(text[:-1])  # only the end of the line is missing
    study.append(path, {"data": "else"})
    assert path.read_text() == text + '{"data": "else"}\n'
    path.write_text("{half\n" + text)
    with pytest.raises(ValueError, match=r"line 1 of .* is not JSON"):
        study.read(path)


def test_settings_are_compared_as_they_are_written(go, tmp_path):
    """NumPy's numbers and tuples have other types after they are read again."""
    grid = {"rate": np.array([0.1, 0.3], np.float32), "widths": [(64, 32)], "n": [np.int64(3)]}
    asked = []
    method = fixed("M", grid, score=lambda seed, **setting: asked.append(setting) or (0.5, float(setting["rate"])))
    go(method)
    n = len(asked)
    assert go(method).row("board", "M").setting["widths"] == [64, 32] and len(asked) == n == 5
    with pytest.raises(TypeError, match="cannot be written"):
        go(fixed("N", {"loss": [print, repr]}, score=lambda seed, loss: (0, 0)))


@pytest.mark.parametrize("values", [[], "ab", 3, {1, 2}, iter([1])])
def test_a_grid_of_something_else_than_sequences_is_refused(values):
    with pytest.raises(ValueError, match=r"grid\['rate'\] = .*; give a sequence of at least one value"):
        study.settings({"dim": [8], "rate": values})


def test_what_is_no_function_is_named(go):
    with pytest.raises(TypeError, match="fit of M=3; give a function, such as"):
        go(study.Method("M", 3))
    with pytest.raises(TypeError, match=r"evaluate='ndcg@10'; give a function, such as jaxrec.study.full_ranking"):
        go(fixed("M"), evaluate="ndcg@10")


def test_wrong_arguments_are_named(go):
    with pytest.raises(ValueError, match="several methods are called 'M'"):
        go(fixed("M"), fixed("M"))
    with pytest.raises(ValueError, match="against='D' is none of"):
        go(fixed("M"), against="D")
    with pytest.raises(ValueError, match="trials=0"):
        go(fixed("M"), trials=0)
    with pytest.raises(ValueError, match=r"no row 'N' on 'board'"):
        go(fixed("M")).row("board", "N")


def test_the_commit_does_not_count_changes_of_records(tmp_path, monkeypatch):
    import subprocess

    git = lambda *words: subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)  # noqa: E731
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    code, record = tmp_path / "code.py", tmp_path / "runs" / "study.jsonl"
    assert study.commit("runs") is None
    for path in (code, record):
        path.write_text("1")
    git("init", "-q")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "a")
    record.write_text("2")
    assert len(study.commit("runs")) >= 7 and "dirty" not in study.commit("runs")
    code.write_text("2")
    assert study.commit("runs").endswith("-dirty")
