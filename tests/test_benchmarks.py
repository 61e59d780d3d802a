"""Benchmarks: their help, their values against the records, and the claim of the quickstart."""

import json
import pathlib
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import valid

import jaxrec as jr
from jaxrec import study
from jaxrec.data import datasets, splits, synthetic

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "benchmarks").rglob("[!_]*.py"))
SCRIPTS = [".".join(path.relative_to(ROOT / "benchmarks").with_suffix("").parts) for path in FILES]


def run(*arguments):
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


HELP = """
import contextlib, io, json, runpy, sys

said = {}
for script in sys.argv[1:]:
    sys.argv[1:] = ["--help"]
    code = None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_module(f"benchmarks.{script}", run_name="__main__")
        except SystemExit as end:
            code = end.code
    said[script] = code, out.getvalue()
print(json.dumps(said))
"""


@pytest.mark.deep
def test_help_explains_every_option():
    """All scripts run in one process, because importing takes most of the time."""
    command = [sys.executable, "-c", HELP, *SCRIPTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert list(said) == SCRIPTS
    for script, (code, text) in said.items():
        assert code == 0, script
        assert f"python -m benchmarks.{script}" in text and "--" in text.partition("options:")[2], script


def test_results_are_those_of_the_records():
    done = run("benchmarks.report", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "over 1 seeds" not in (ROOT / "README.md").read_text()


def strictly(text):
    """JSON without NaN."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


FIELDS = {"curve", "data", "fingerprint", "grid", "method", "on", "seed", "setting", "valid"}


def test_records_say_what_was_run():
    """Records of benchmarks name the command and the machine. Runs have all fields, in order, and a setting of their
    grid; none occurs twice.
    """
    from benchmarks import report

    results = ROOT / "benchmarks" / "results"
    for path in results.glob("*.json"):
        record = strictly(path.read_text())
        assert record["cases"] and path.stem == record["benchmark"].replace(".", "_"), path
        assert record["command"].startswith(f"python -m benchmarks.{record['benchmark']}"), path
        assert {"commit", "jax", "device", "data", "date"} <= set(record), path
    files = {path.stem for path in results.glob("*.jsonl")}
    assert files - {"lambda_opt_trajectories"} == set(report.studies()) and len(files) > 6
    for name in report.studies():
        runs = [strictly(line) for line in (results / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(runs) > 15, name
        for record in runs:
            assert list(record) == sorted(record) and set(record) >= FIELDS, (name, record)
            assert ("test" in record) == (record["on"] == "test"), (name, record)
            if "device" in record:
                assert (record["cpu_seconds"] is None) == (record["device"] != "cpu"), (name, record)
            assert all(value in record["grid"][key] for key, value in record["setting"].items()), (name, record)
        keys = [json.dumps([record[each] for each in ("data", "method", "setting", "seed", "on")]) for record in runs]
        assert len(set(keys)) == len(keys), name


@pytest.fixture(scope="module")
def studies():
    from benchmarks import report

    return report.studies()


def altered(this, data, name, grid):
    """The study with another grid of a method."""
    methods = [each._replace(grid=grid) if each.name == name else each for each in this.methods[data]()]
    return this._replace(methods={**this.methods, data: lambda: methods})


@pytest.mark.parametrize(
    ("name", "data", "method", "grid", "reason"),
    [
        ("rg2", "gowalla", "RG2", {"regularization": (0.1, 0.3, 0.6, 2.0, 3.0)}, "lacks 2 settings"),
        ("mars", "ciao-random, full", "BPR", {"power": (0.0, 0.75), "l2": (1e-5, 1e-2)}, "lacks 2 settings"),
        ("facets", "spaces", "MF BPR", {"rate": (0.01,), "decay": (0.1, 0.3, 1.0, 3.0)}, "lacks 1 settings"),
        ("rg2", "gowalla", "RG2", {"regularization": (0.1, 0.3)}, "ran with {'regularization': 0.6}"),
        ("valid", "citeulike-a-valid", "VALID, 25 epochs", {"n_interests": (9,)}, "ran with {}"),
        ("mml", "gowalla", "CCL, 2048 shared", {"margin": (0.5,), "weight": (7.0,)}, "ran with"),
    ],
)
def test_a_record_of_another_grid_is_found_and_marked(name, data, method, grid, reason, studies):
    """If its grid has a value more or less, a method's row is stale, and no other row is."""
    from benchmarks.studies import _results

    this, records = studies[name]
    other = altered(this, data, method, grid)
    before, after = (_results.stale(each, records) for each in (this, other))
    assert after.keys() - before == {(data, method)} and reason in after[data, method]
    plain, text = _results.section(this, records), _results.section(other, records)
    assert study.MARKS["!"] not in plain and study.MARKS["!"] in text
    marked = [line for line in text.splitlines() if line.startswith("| ") and re.search(r"!\S* \|$", line)]
    assert [line.split(" | ")[0] for line in marked] == [f"| {method}"]


def test_a_row_keeps_its_earlier_grid_until_the_runs_with_the_present_one_are_recorded(studies):
    from benchmarks.studies import _results

    this, records = studies["rg2"]
    grid_of = lambda records: {m.name: m.grid for m in _results.compared(this, records, "ml-100k")}["BPR"]  # noqa: E731
    new = next(method.grid for method in this.methods["ml-100k"]() if method.name == "BPR")
    own = [r for r in records if (r["data"], r["method"]) == ("ml-100k", "BPR") and "epochs" not in r["setting"]]
    assert grid_of(own) == this.older("ml-100k")["BPR"]
    trial = next(record for record in own if record["on"] == "valid")
    trials = [trial | {"setting": each, "valid": {"ndcg@10": 1 / each["epochs"]}} for each in study.settings(new)]
    tests = [trial | {"on": "test", "setting": trials[0]["setting"], "seed": seed, "test": {}} for seed in range(3)]
    assert grid_of(own + trials[1:] + tests) == grid_of(own + trials + tests[1:]) == grid_of(own)
    old, softmax = own + trials[1:], [r for r in records if (r["data"], r["method"]) == ("ml-100k", "softmax")]
    assert _results.earlier(this, [*old, *softmax], "ml-100k") & {"BPR", "softmax"} == {"BPR"}
    # A row with an earlier grid is compared with one without only where it is above that.
    solved = [r for r in records if (r["data"], r["method"]) == ("ml-100k", "RG2")]
    signs = lambda records, *pair: [test.sign for test in _results.tested(this, records, [pair]).values()]  # noqa: E731
    assert signs([*old, *softmax], "softmax", "BPR") == signs([*old, *solved], "RG2", "BPR") == [None]
    better = [r | {"test": {"ndcg@10": 0.9 + r["seed"] / 1e3}, "users": {}} if r["on"] == "test" else r for r in own]
    (test,) = _results.tested(this, [*better, *trials[1:], *solved], [("RG2", "BPR")]).values()
    assert test.difference < -0.5 and test.p_value < 0.05 and test.sign == -1
    assert grid_of(own + trials + tests) == new


def test_a_removed_method_and_a_changed_grid_are_stale(studies):
    from benchmarks.studies import _results, mml

    this, records = studies["rg2"]
    less = this._replace(methods={**this.methods, "ml-1m": lambda: this.methods["ml-1m"]()[:-1]})
    assert _results.stale(less, records) == {("ml-1m", "Sparsemax"): "is recorded, but is no longer compared"}
    this, records = studies["mml"]
    grid = {"margin": [0.1, 0.6], "weight": [70.0], "learning_rate": [0.03], "epochs": [50]}
    after = _results.stale(altered(this, mml.SELECT["gowalla"], "CCL, 2048 shared", grid), records)
    assert set(after) == {(mml.SELECT["gowalla"], "CCL, 2048 shared")}


def test_the_check_fails_for_unknown_stale_rows_and_for_known_rows_that_are_not_stale(monkeypatch):
    from benchmarks import report

    monkeypatch.setattr(report, "KNOWN", {("rg2", "a", "known"): "why", ("rg2", "a", "mended"): "why"})
    said = report.unexpected({("rg2", "a", "known"): "x", ("rg2", "b", "new"): "lacks"})
    assert len(said) == 2 and said[0].startswith("rg2, b, new") and "lacks" in said[0]
    assert said[1].startswith("rg2, a, mended") and "not stale" in said[1]


def made_up(methods, **more):
    """A study of a checkerboard."""
    from benchmarks.studies._study import Study

    board = splits.ratio(synthetic.checkerboard(24)[0], order=partial(splits.random_order, key=jax.random.key(0)))
    options = {"name": "made_up", "title": "Made up", "about": "What it is.", "methods": {"board": lambda: methods}}
    options |= {"split": lambda data: board, "evaluate": partial(study.full_ranking, ks=(2,)), "seeds": (0, 1)}
    options |= {"metric": lambda data: "recall@2", "shown": lambda data: ["recall@2"]}
    return Study(**options, quick=lambda: (methods, {"board": board}), **more)


@pytest.mark.deep
def test_the_command_of_a_study_trains_and_writes_table_and_plot(tmp_path, monkeypatch, capsys):
    from benchmarks import _record
    from benchmarks.studies import _command

    pytest.importorskip("matplotlib")
    fit = lambda train, valid, key, **setting: jr.solvers.rg2.solve(train, dim=2, key=key, **setting)  # noqa: E731
    closed = study.Method("RG2", fit, {"regularization": (0.1, 0.3)})
    line = lambda tables, records: [[{"title": "a", "lines": {"RG2": (["1", "2"], [0, 1]), "b": (None, 0.5)}}]]  # noqa: E731
    this = made_up([closed], claims=[("RG2", "popularity")], panes=line)
    monkeypatch.setattr(_record, "RESULTS", tmp_path)

    def said(*arguments):
        monkeypatch.setattr(sys, "argv", ["made_up", *arguments])
        _command.main(this)
        *text, last = capsys.readouterr().out.splitlines()
        return "\n".join(text), json.loads(last)

    _, found = said("--quick")
    assert found["cases"]["board: RG2"]["recall@2"] > 0.5 and not list(tmp_path.iterdir())
    text, found = said()
    assert found["benchmark"] == "studies.made_up" and set(found["cases"]) >= {"board: RG2", "board: popularity"}
    assert (tmp_path / "made_up.png").stat().st_size > 0
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert rows["| RG2"].endswith("| regularization 0.3* | 2 | 1 |")
    assert "- RG2: above popularity on board (" in text
    before = (tmp_path / "made_up.jsonl").read_bytes()
    assert said("--table")[1] == said()[1] == found and (tmp_path / "made_up.jsonl").read_bytes() == before
    with pytest.raises(SystemExit, match="no method 'GR2'"):
        said("--method", "GR2")


def runs_of_two(difference, data="board"):
    """Returns records of A, whose values are higher by a difference and some noise, and of B."""
    noise = [0.01, -0.02, 0.01]
    return [
        {"data": data, "method": name, "seed": seed, "setting": {}, "grid": {}, "on": "test", "curve": []}
        | {"valid": {}, "test": {"recall@2": 0.5 + (difference + noise[seed]) * (name == "A")}}
        for name in ("A", "B")
        for seed in range(3)
    ]


@pytest.mark.parametrize(
    ("difference", "place"), [(0.2, "above B"), (-0.2, "below B"), (0.0, "not distinguishable from B")]
)
def test_a_claim_can_come_out_any_way(difference, place):
    from benchmarks.studies import _results

    records, this = runs_of_two(difference), made_up([study.Method("A"), study.Method("B")])
    assert f"A: {place} on board ({difference:+.4f} ± " in _results.claim(this, records, "A", "B")
    assert _results.claim(this, records[:4], "A", "B") == _results.claim(this, records[:3], "A", "B") == ""


def test_the_p_values_of_a_claim_are_corrected_for_their_number():
    from benchmarks.studies import _results

    methods = lambda: [study.Method("A"), study.Method("B")]  # noqa: E731
    this = made_up([])._replace(methods={"board": methods, "other": methods})
    one, both = runs_of_two(0.05), [*runs_of_two(0.05), *runs_of_two(0.05, "other")]
    (alone,) = _results.tested(this, one, [("A", "B")]).values()
    assert alone.sign == 1 and 0.025 < alone.p_value < 0.05
    for test in _results.tested(this, both, [("A", "B")]).values():
        assert test.sign == 0 and test.p_value == pytest.approx(2 * alone.p_value)


def test_a_paired_test_has_the_marks_of_its_rows():
    from benchmarks.studies import _results

    grid = {"dim": (1, 2)}
    this = made_up([study.Method("A", grid=grid), study.Method("B")])
    chosen = [{"setting": {"dim": dim}, "on": "valid", "valid": {"recall@2": dim}} for dim in (1, 2)]
    own = [r | {"setting": {"dim": 2}} if r["method"] == "A" else r for r in runs_of_two(0.2)]
    (test,) = _results.tested(this, [*(own[0] | each for each in chosen), *own], [("A", "B")]).values()
    assert test.marks == "*"
    assert ", *)" in _results.claim(this, [*(own[0] | each for each in chosen), *own], "A", "B")


def test_rg2_refits_on_gowalla_for_the_best_number_of_epochs_on_validation(monkeypatch):
    from benchmarks.studies import _solvers, rg2

    monkeypatch.setattr(_solvers, "DIM", 4)

    train, _ = synthetic.checkerboard(12)
    log = jr.train.Log().append({"epoch": 1, "recall@20": 0.1}).append({"epoch": 2, "recall@20": 0.3})
    log = log.append({"epoch": 3, "recall@20": 0.2})
    method = next(method for method in rg2.methods("gowalla") if method.name == "iALS")
    setting = {"unobserved_weight": 0.1, "regularization": 0.1}
    _, variables, again = method.refit(train, jax.random.key(0), log, **setting)
    assert len(again.records) == 2 and variables["params"]["user"].shape == (12, 4)
    names = {
        data: {method.name for method in rg2.methods(data)} for data in ("gowalla", "ml-100k", "ml-1m", "citeulike-a")
    }
    solvers = set(_solvers.METHODS)
    assert names["ml-1m"] == names["ml-100k"] > solvers | {"softmax", "LightGCN, softmax"}
    assert names["gowalla"] == {"popularity"} | solvers - {"EASE"} and {"iALS", "GF-CF"} < solvers
    assert "softmax" not in names["gowalla"] and names["citeulike-a"] == {"popularity"} | solvers


def test_chosen_values_at_an_end_have_a_star():
    from benchmarks.studies import _study

    grid = {"rate": (0.1, 0.3, 1.0), "draw": (0, 1, 2)}
    row = lambda **setting: SimpleNamespace(setting=setting)  # noqa: E731
    assert _study.chosen(row(rate=1.0), grid) == "rate 1*" and _study.chosen(row(rate=0.3), grid) == "rate 0.3"
    assert _study.chosen(row(learning_rate=1.0), grid) == "learning rate 1"
    assert _study.chosen(row(rate=1.0, draw=2), grid) == "rate 1*, draw 2"


def test_lightgcn_has_a_note_if_its_decay_is_far_above_that_of_the_paper():
    """A weight of 1e-4 for a batch's rows is 1e-4 / 6038 per user and 2e-4 / 3307 per item of whole tables."""
    from benchmarks.studies import rg2

    def note(name, l2, **more):
        return rg2.overdecayed({"ml-1m": {name: SimpleNamespace(setting={"l2": l2} | more)}}, ())

    said = note("LightGCN, softmax", 1e-5, learning_rate=0.01)
    assert "1e-05 on whole tables" in said and "165 (items) to 604 (users) times" in said
    assert note("LightGCN, softmax", 1e-7, learning_rate=0.01) == note("softmax", 1e-5, learning_rate=0.01) == ""
    assert note("LightGCN, softmax", 1e-1, epochs=60) == ""  # on the batch's rows, not on whole tables


@pytest.mark.deep
@pytest.mark.parametrize("name", ["softmax", "RG2 by SGD", "UIB", "SML", "Sparsemax", "LightGCN, softmax"])
def test_losses_of_the_study_of_solvers_train_settings_of_any_lengths(name, monkeypatch):
    """Each setting has a log with its own number of epochs, whose last one is validated."""
    from benchmarks.studies import _sgd

    monkeypatch.setattr(_sgd, "DIM", 4)
    monkeypatch.setattr(_sgd, "LAYERS", 1)
    board = splits.ratio(synthetic.checkerboard(24)[0], order=partial(splits.random_order, key=jax.random.key(0)))
    kind = _sgd.KINDS[name]
    tried = study.settings(_sgd.grid_of(kind, "ml-100k"))
    assert len(tried) == len(_sgd.KINDS["BPR"].grid["l2"]) * 4 == 16
    (other,) = kind.grid
    some = [{"epochs": 1, other: 0.1}, {"epochs": 2, other: 0.1}, {"epochs": 1, other: 0.01}]
    with jax.numpy_dtype_promotion("standard"):  # which optax's Adam needs
        found = _sgd.trained(kind, board.train, board.valid, jax.random.key(0), some, metric="ndcg@2", large=False)
    curves = [study.curve(log, "ndcg@2") for _, _, log in found]
    assert [[epoch for epoch, *_ in curve] for curve in curves] == [[1], [2], [1]]
    tables = [variables["params"]["user"] for _, variables, _ in found]
    assert np.isfinite(tables).all()
    # Adam's first step on a margin has the same length for any γ.
    assert name == "SML" or not np.array_equal(tables[0], tables[2])


@pytest.mark.deep
def test_the_penalty_of_a_loss_over_all_items_takes_their_mean():
    from benchmarks.studies import _sgd

    train = jr.Interactions.from_pairs([0, 1], [0, 1], n_items=3)
    params = {"user": jnp.array([[2.0], [4.0]]), "item": jnp.array([[1.0], [2.0], [3.0]])}
    objective = _sgd.against_all(lambda variables, key, batch: jnp.zeros(()), train)
    penalised = partial(jr.train.penalised_objective, objective=objective, l2=2.0)
    value = penalised({"params": params}, jax.random.key(0), jr.train.Batch.of(jnp.array([0, 1]), jnp.array([0, 1])))
    assert float(value) == pytest.approx((4 + 16) / 2 + (1 + 4) / 2 + (1 + 4 + 9) / 3)


@pytest.mark.deep
def test_gauss_newton_solves_the_problem_of_als():
    """One dimension, because the other singular values of the board are equal."""
    from benchmarks.studies import _solvers

    train, key = synthetic.checkerboard(12)[0], jax.random.key(0)
    options = {"dim": 1, "key": key, "sweeps": 60, "regularization": 0.1, "tolerance": None, "progress": False}
    model, variables, _ = _solvers.newton(train, **options)
    users, items = model.apply(variables, method="vectors")
    solved = jr.solvers.rg2.fit(train, **options)
    scores = solved[0].apply(solved[1], jnp.arange(12, dtype=jnp.int32), method="rows")
    np.testing.assert_allclose(users @ items.T, scores, atol=1e-3)


def test_mml_selected_on_other_data_than_it_was_judged_on(studies):
    from benchmarks.studies import mml

    _, records = studies["mml"]
    trivial = {method.name for method in study.TRIVIAL}
    trained = [record for record in records if record["method"] not in trivial]
    prints = {record["data"]: record["fingerprint"] for record in trained}
    assert len(set(prints.values())) == len(prints) >= 2
    assert all((record["on"] == "valid") == (record["data"] not in mml.DATA) for record in trained)


def test_tuned_losses_are_selected_on_a_part_of_train(monkeypatch):
    from benchmarks.studies import mml

    train = jr.Interactions.from_pairs(*np.divmod(np.arange(5000), 50), n_users=100, n_items=50)
    monkeypatch.setattr(mml.datasets, "load", lambda name: SimpleNamespace(train=train, test=train))
    kept, valid, _ = mml.split.__wrapped__(mml.SELECT["gowalla"])
    assert 400 < valid.n_pairs < 600 and kept.n_pairs + valid.n_pairs == train.n_pairs
    assert kept.to_scipy().multiply(valid.to_scipy()).nnz == 0
    assert mml.split.__wrapped__("gowalla")[:2] == (train, None)


@pytest.mark.deep
def test_losses_of_the_mml_study_have_equal_tuning_budgets():
    from benchmarks.studies import mml

    for data in mml.SELECT.values():
        for kind in mml.KINDS:
            of_kind = [each for each in mml.methods(data) if each.name.endswith(f", {kind}")]
            assert len({len(study.settings(each.grid, mml.TRIALS)) for each in of_kind}) == 1
            assert len(of_kind) == (2 if mml.KINDS[kind].simplex else len(mml.LOSSES))


@pytest.mark.deep
@pytest.mark.optimised
@pytest.mark.parametrize("name", ["MML", "BPR"])
def test_cases_of_the_mml_study_train(name):
    from benchmarks.studies import mml

    board = splits.ratio(synthetic.checkerboard(24)[0], order=partial(splits.random_order, key=jax.random.key(0)))
    case = mml.CASES[f"{name}, 2048 shared"]
    setting = study.settings(case[0].grid, mml.TRIALS)[0] | {"epochs": 5}
    with jax.numpy_dtype_promotion("standard"):  # which optax's Adam needs
        model, variables, log = mml.trained(case, board.train, board.valid, jax.random.key(0), **setting)
    epochs, values = log.column("recall@20")
    found = mml.evaluate(model, variables, board, "valid").means
    assert list(epochs) == [1, 2, 3, 4, 5] and found["recall@20"] == pytest.approx(values[-1])


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        ([], "open"),
        ([1, 1], "reproduced"),
        ([1, 0, -1], "in part"),
        ([0, -1], "refuted"),
        ([0], "not reproduced"),
        ([0, 0, -1], "not reproduced"),
        ([1, 1, None], "open"),
        ([-1, -1, None], "open"),
        ([1, -1, None], "in part"),
        ([None], "open"),
    ],
)
def test_a_verdict_can_come_out_either_way(signs, said):
    from benchmarks import _claims

    assert _claims.verdict(signs) == said


def test_as_good_or_better_is_at_most_in_part_without_a_significant_difference():
    from benchmarks import _claims

    found = {signs: _claims.verdict(signs, or_equal=True) for signs in [(1, 1), (1, 0), (0, 0), (0, -1), (-1,)]}
    assert list(found.values()) == ["reproduced", "in part", "in part", "in part", "refuted"]


def test_a_claim_is_judged_by_the_records(tmp_path):
    """The first method is better on one board and worse on the other."""
    from benchmarks import _claims
    from benchmarks.studies import _study

    def method(name, better):
        def fit(train, valid, key):
            noise = jax.random.normal(key, (train.n_users,)) / 100
            return None, {"values": np.asarray(noise) + 0.5 + 0.1 * (train.n_users == better)}, None

        return study.Method(name, fit)

    def evaluate(model, variables, split, on):
        values = variables["values"] if model is None else np.zeros(split.train.n_users)
        return jr.evaluate.Report(np.arange(len(values)), {"ndcg@10": values}, {}, None, "by hand")

    order = partial(splits.random_order, key=jax.random.key(0))
    boards = {f"board{n}": splits.ratio(synthetic.checkerboard(n)[0], order=order) for n in (24, 30)}
    methods = [method("A", 24), method("B", 30)]
    study.run(methods, boards, folder=tmp_path, name="boards", evaluate=evaluate, progress=False)
    this = _study.Study(
        name="boards",
        title="",
        about="",
        methods=dict.fromkeys(boards, lambda: methods),
        split=boards.get,
        evaluate=evaluate,
        metric=lambda data: "ndcg@10",
        shown=lambda data: ["ndcg@10"],
        quick=None,
    )
    records = study.read(tmp_path / "boards.jsonl")
    claim = _claims.Claim("paper", "A is better than B", "boards", [("A", "B")])
    found = _claims.judged(claim, this, records)
    assert found[0] == "in part" and re.fullmatch(r"board24 \+0\.1\d* \(above\); board30 -0\.1\d* \(below\)", found[2])
    assert _claims.judged(claim._replace(data=["board24"]), this, records)[0] == "reproduced"
    assert _claims.judged(claim._replace(pairs=[("B", "A")], data=["board24"]), this, records)[0] == "refuted"
    assert _claims.judged(claim._replace(pairs=[("A", "C")]), this, records) == ("open", "0", "", "")
    assert _claims.judged(claim._replace(pairs=[("A", "item id")]), this, records)[0] == "reproduced"


def test_methods_of_a_leaderboard_have_the_same_test_pairs(studies):
    from benchmarks import _leaderboard

    this, records = studies["rg2"]
    ordered = [row.values["ndcg@10"].mean() for row, _ in _leaderboard.rows(studies, "ml-1m")]
    assert ordered == sorted(ordered, reverse=True) and len(ordered) > 10
    first = next(r for r in records if (r["data"], r["on"], r["seed"]) == ("ml-1m", "test", 0))
    mixed = [*records, first | {"fingerprint": "a-b-c"}]
    with pytest.raises(ValueError, match="with seed 0, rg2 has other test pairs of ml-1m"):
        _leaderboard.rows({"rg2": (this, mixed)}, "ml-1m")


def test_values_of_mars_agree_with_one_another(studies):
    """One relevant item at places 11 to 20 adds between 1/log2(21) and 1/log2(12) to NDCG."""
    _, records = studies["mars"]
    runs = [record["test"] for record in records if record["data"].endswith("sampled") and record["on"] == "test"]
    assert len(runs) > 400
    for values in runs:
        hits, gain = (values[f"{name}@20"] - values[f"{name}@10"] for name in ("hit_rate", "ndcg"))
        assert hits / np.log2(21) - 1e-9 <= gain <= hits / np.log2(12) + 1e-9, values
        for name, value in values.items():
            if name.startswith("best-on-test "):
                assert value >= values[name.removeprefix("best-on-test ")] - 1e-9, values


@pytest.mark.deep
def test_a_run_of_mars_serves_both_protocols(monkeypatch):
    """Each protocol has its own best epoch. On Ciao, which has one protocol, the best values on test are kept too."""
    from benchmarks.studies import _mars as mars

    pairs, _ = synthetic.checkerboard(12)
    part = mars.Part(pairs, pairs, pairs, np.zeros((pairs.n_pairs, 3)), np.zeros((pairs.n_pairs, 3)))
    monkeypatch.setattr(mars, "prepare", lambda data, seed: part)
    monkeypatch.setattr(mars, "states", lambda *_: ((e, 1.0, {"epoch": e}) for e in (1, 2, 3)))
    curves = {"sampled": {1: 0.1, 2: 0.3, 3: 0.2}, "full": {1: 0.3, 2: 0.1, 3: 0.2}}

    def judged(self, model, variables, on):
        value = curves[self.protocol][variables["epoch"]] + (on == "test")
        values = dict.fromkeys((*mars.SAMPLED, *mars.FULL), np.array([value]))
        return jr.evaluate.Report(np.array([0]), values, {}, None, "")

    monkeypatch.setattr(mars.Part, "judged", judged)
    found = mars.trained.__wrapped__("lastfm-2k", "NMF", '{"dim": 2}', 0)
    assert {p: variables["epoch"] for p, (_, variables, _) in found.items()} == {"sampled": 2, "full": 1}
    assert found["full"][2].column("ndcg@10") == ([1, 2, 3], [0.3, 0.1, 0.2])
    assert found["sampled"][0].best_on_test == {}
    model, variables, _ = mars.trained.__wrapped__("ciao", "NMF", '{"dim": 2}', 0)["sampled"]
    values = mars.evaluate(model, variables, part, "test").means
    assert values["hit_rate@10"] == values["best-on-test hit_rate@10"] == 1.3 and len(values) == 8


def test_mars_trains_sets_of_any_size_as_long():
    from benchmarks.studies import _mars as mars

    train = jr.Interactions.from_pairs(*np.divmod(np.arange(3000), 30), n_users=100, n_items=30)
    short = mars.Recipe(None, None, None, epochs=150, every=5)
    for batch_size, every in ((1000, 5 * 33), (20, 5), (2, 1)):  # epochs of 3, 150 and 1500 steps
        long = mars.stretched(short._replace(batch_size=batch_size), train)
        assert (long.epochs, long.every) == (30 * every, every)
    assert mars.stretched(short._replace(fixed=True), train).epochs == 150


def test_methods_of_mars_have_equal_budgets_and_recipes_that_take_them(monkeypatch):
    from benchmarks.studies import _mars, mars, mars_tuned

    pairs, _ = synthetic.checkerboard(12)
    tuned = mars_tuned.methods("lastfm-2k, full")
    assert {len(study.settings(each.grid)) for each in tuned} == {mars_tuned.TRIALS}
    assert {each.name for each in tuned} == set(mars_tuned.METHODS) and len(tuned) == 16
    monkeypatch.setattr(_mars, "nmf", lambda train, dim: _mars.Recipe(None, None, None))
    for each in (*tuned, *mars.methods("ciao, sampled"), *mars.methods("delicious, sampled")):
        if each.grid and "NMF" not in each.name:
            recipe = _mars.RECIPES[each.fit.args[3]](pairs, **study.settings(each.grid)[-1])
            assert recipe.model.n_users == 12 and recipe.objective is not None


def test_a_setting_of_mars_that_diverges_is_not_chosen(monkeypatch):
    from benchmarks.studies import _mars

    def states(*_):
        raise jr.train.DivergenceError("nan", None, None)

    pairs, _ = synthetic.checkerboard(12)
    part = _mars.Part(pairs, pairs, pairs, np.zeros((pairs.n_pairs, 3)), np.zeros((pairs.n_pairs, 3)))
    monkeypatch.setattr(_mars, "prepare", lambda data, seed: part)
    monkeypatch.setattr(_mars, "states", states)
    diverging = _mars.method("lastfm-2k, full", "MARS, paper", {"learning_rate": (1e9,)})
    assert diverging.fit(pairs, pairs, jax.random.key(7), learning_rate=1e9) is None


def test_another_rate_of_facets_is_another_rate_of_their_weights(monkeypatch):
    from benchmarks.studies import _mars

    pairs, _ = synthetic.checkerboard(12)
    found = []
    monkeypatch.setattr(_mars.mars, "optimizer", lambda **options: found.append(options) or optax.identity())
    for name in ("MARS, default", "MAR", "MAR, paper"):
        _mars.RECIPES[name](pairs, learning_rate=0.4)
    rates = [(each["learning_rate"], each["theta_learning_rate"]) for each in found]
    np.testing.assert_allclose(rates, [(0.4, 0.008), (0.4, 0.008), (0.4, 0.4)])
    assert [each["step"] for each in found[1:]] == [jr.train.mars.ball_sgd, optax.sgd]


def test_times_are_medians_of_the_sampled_protocol():
    from benchmarks.studies import _mars

    def record(data, name, end, on="test"):
        return {"data": data, "method": name, "on": on, "curve": [[1, 0.5, 0.1], [2, end, 0.2]]}

    runs = [record("a, sampled", "BPR", end) for end in (3.0, 123.4, 1000.0)]
    runs += [record("a, sampled", "BPR", 9.0, on="valid"), record("a, full", "BPR", 1.0)]
    runs += [record("a, sampled", "NMF", None), record("b, sampled", "CML", 7.77)]
    table = _mars.times(runs, ["NMF", "CML", "BPR"]).splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in (table[0], *table[2:])] == [
        ["", "a", "b"],
        ["CML", "", "7.8"],
        ["BPR", "120", ""],
    ]


def test_references_are_cml_and_the_best_baseline():
    from benchmarks.studies import mars

    row = lambda *values: SimpleNamespace(values={"ndcg@10": np.array(values)}, seeds=range(len(values)))  # noqa: E731
    rows = {"CML": row(0.1, 0.2), "BPR": row(0.3, 0.5), "NMF": row(0.3), "MARS, released": row(0.9)}
    assert list(mars.references(rows)) == ["CML", "BPR"] and mars.references({}) == {}
    assert list(mars.references({"CML": row(0.1)})) == ["CML"]
    rows |= {"MARS, released, 64 dimensions": row(0.7), "TransCF": row(0.25), "TransCF, 1024 dimensions": row(0.5)}
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in mars.varied_table(rows, "dim").splitlines()
    ]
    assert table[0] == ["", "32", "64", "128", "256", "512", "1024"]
    assert table[2:] == [
        ["TransCF (1)", "", "", "0.2500", "", "", "0.5000"],
        ["MARS, released (1)", "", "0.7000", "0.9000", "", "", ""],
    ]


def test_likes_of_facets_and_lifts_of_categories():
    """Facet 1 has all likes of user 0, and facet 2 those of user 1. The categories are 1 and 2."""
    from benchmarks import categories

    train = jr.Interactions.from_pairs([0, 0, 1, 1, 1], [0, 1, 1, 2, 3])
    users = np.array([[[1.0], [0.1]], [[0.1], [1.0]]])
    found = categories.Spaces(np.array([[0.75, 0.25], [0.5, 0.5]]), users, np.ones((4, 2, 1)))
    likes = categories.likes(train, found)
    np.testing.assert_allclose(likes["θ"], [[0.75, 1.25, 0.5, 0.5], [0.25, 0.75, 0.5, 0.5]])
    np.testing.assert_allclose(likes["largest term"], [[1, 1, 0, 0], [0, 1, 1, 1]])
    category = np.array([1, 1, 2, 2])
    np.testing.assert_allclose(categories.shares(likes["largest term"], category), [[0, 1, 0], [0, 1 / 3, 2 / 3]])
    lifts = categories.lifts(likes["largest term"], category)
    np.testing.assert_allclose(lifts, [[0, 5 / 3, 0], [0, 5 / 9, 5 / 3]])
    text, largest = categories.described(likes["largest term"], category)
    assert text[0].startswith("1: 100.0") and text[1].startswith("2: 66.7")
    np.testing.assert_allclose(largest, [5 / 3, 5 / 3])


def test_neighbours_share_a_category_if_categories_are_clusters():
    from benchmarks import categories

    rng = np.random.default_rng(0)
    category = np.arange(60) % 2
    apart = rng.normal(size=(60, 3)) + 50.0 * category[:, None]
    assert categories.neighbours(apart, category) == 1
    assert categories.neighbours(rng.normal(size=(60, 3)), category) == pytest.approx(0.5, abs=0.12)


def test_categories_have_a_row_for_each_space(monkeypatch):
    from benchmarks import categories, report

    rng = np.random.default_rng(0)
    train = jr.Interactions.from_pairs(*np.divmod(np.arange(180), 60), n_users=3, n_items=60)
    theta = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    found = categories.Spaces(theta, rng.normal(size=(3, 2, 4)), rng.normal(size=(60, 2, 4)))
    category, values = np.arange(60) % 3 + 1, {"hit_rate": 0.5, "neighbours": [0.25, 0.75]}
    for way, weights in categories.likes(train, found).items():
        values[f"top {way}"], values[f"lift {way}"] = categories.described(weights, category)
    values |= {"users": categories.profiles(train, found, category)}
    values |= {"theta_before": 0.5, "theta_mean": 0.7, "theta_same": 1.0}
    assert [(row["user"], row["k"], row["theta"]) for row in values["users"]] == [
        (0, 1, 0.9),
        (0, 2, 0.1),
        (2, 1, 0.2),
        (2, 2, 0.8),
    ]
    cases = categories.cases_of({"CML": {"hit_rate": 0.1, "neighbours": [0.5]}, "MARS": values})
    assert list(cases) == ["CML", "MARS, k = 1", "MARS, k = 2"]
    record = {"cases": json.loads(json.dumps(cases)), "chance": 0.3, "date": "", "commit": "", "jax": ""}
    record |= {"cores": 2, "processor": "", "command": "", "data": ""}
    text = report.speed(categories, record)
    assert "| CML | 0.1000 | 0.500 |  |" in text and "| MARS, k = 2 |  | 0.750 |" in text
    assert "| MARS | 0.500 | 0.700 | 1.000 |" in text and "| MARS | 2 | 2 | 0.80 |" in text


def test_mars_draws_negatives_that_the_user_has_in_no_part():
    from benchmarks.studies import _mars as mars

    known = jr.Interactions.from_pairs(*np.divmod(np.arange(0, 400, 3), 40), n_users=10, n_items=40)
    negatives = mars.drawn(np.arange(10), known=known, items=np.arange(2, 40), seed=0, n=20)
    assert negatives.shape == (10, 20) and negatives.min() >= 2
    assert not known.contains(np.arange(10)[:, None], negatives).any()
    assert all(len(set(row)) == 20 for row in negatives.tolist())


@pytest.mark.deep
@pytest.mark.parametrize(("still", "granularity"), [("user", "DI"), ("item", "DU")])
def test_coefficients_of_a_fixed_side_keep_their_value(still, granularity, monkeypatch):
    from benchmarks.studies import _lambda_opt as parts

    monkeypatch.setattr(parts, "DIM", 2)
    board = splits.ratio(synthetic.checkerboard(24)[0], order=partial(splits.random_order, key=jax.random.key(0)))
    part = parts.Part(board.train, board.valid, 3, 32)
    recipe = parts.learned(
        part, model=parts.factors(part), lambda_rate=0.1, granularity=granularity, start=0.25, still=still
    )
    state = jr.train.init(jax.random.key(0), recipe.model, recipe.tx)
    with jax.numpy_dtype_promotion("standard"):  # which optax's Adam needs
        state, _ = jr.train.fit(state, recipe.objective, recipe.tx, part.train, epochs=3, batch_size=32, progress=False)
    found = state.opt_state.lambdas
    (other,) = {"user", "item"} - {still}
    assert (found[still] == 0.25).all() and found[other].max() > 0 and found[other].min() >= 0


def test_lambda_opt_learns_coefficients_and_selects_on_different_pairs(monkeypatch):
    """All parts are disjoint. Test has the latest fifth of a user's pairs, rounded down."""
    from benchmarks.studies import _lambda_opt as lambda_opt

    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((30, 60)) < rng.uniform(0.1, 0.9, (30, 1)))
    times = rng.permutation(len(users))
    whole = jr.Interactions.from_pairs(users, items, timestamps=times, n_users=30, n_items=60)
    monkeypatch.setattr(lambda_opt.datasets, "load", lambda name: datasets.Dataset(name, whole, *[None] * 7))
    part = lambda_opt.prepare.__wrapped__("ml-100k", 0)
    learn, select = part.valid
    parts = (part.train, learn, select, part.test)
    dense = [each.to_scipy().toarray() > 0 for each in parts]
    assert sum(x.sum() for x in dense) == whole.n_pairs and np.logical_or.reduce(dense).sum() == whole.n_pairs
    degrees = np.bincount(users, minlength=30)
    np.testing.assert_array_equal(part.test.user_degrees, degrees // 5)
    held = (degrees - degrees // 5) // 4
    np.testing.assert_array_equal(select.user_degrees, held // 2)
    np.testing.assert_array_equal(learn.user_degrees, held - held // 2)
    when = np.full((30, 60), -1)
    when[users, items] = times
    for user in np.flatnonzero(degrees >= 5):
        assert when[user][dense[3][user]].min() > when[user][~dense[3][user]].max()


@pytest.mark.deep
def test_adversary_moves_each_row_by_its_length_up_the_loss():
    """The loss is half u·v with u = (3, 4) and v = (1, 0). Its slopes are (½, 0) and (1½, 2), so that Δ is ε(1, 0) and
    ε(.6, .8).
    """
    from benchmarks.studies import _lambda_opt as lambda_opt

    tx = lambda_opt.adversarial(optax.sgd(1.0), epsilon=0.5, weight=2.0, begin=1)
    params = {"user": jax.numpy.array([[3.0, 4.0], [9.0, 9.0]]), "item": jax.numpy.array([[1.0, 0.0]])}
    value = lambda p, key, batch: 0.5 * (p["user"][0] * p["item"][0]).sum()  # noqa: E731
    _, plain, later = tx.step(value, params, tx.init(params), None, None)
    np.testing.assert_allclose(plain["user"][0], [2.5, 4.0])
    _, after, _ = tx.step(value, params, later, None, None)
    np.testing.assert_allclose(after["user"], [[3 - 0.5 - 2 * 0.5 * 1.3, 4 - 2 * 0.5 * 0.4], [9, 9]], rtol=1e-6)
    np.testing.assert_allclose(after["item"][0], [1 - 1.5 - 2 * 0.5 * 3.5, 0 - 2 - 2 * 0.5 * 4], rtol=1e-6)


ON_CIRCLE = {"user": [[0.0, 1.0], [2.0, 3.0]], "item": [[0.3, 1.5], [0.6, 2.5], [0.9, 2.2]]}
TRIPLES = np.array([[0, 0, 1], [1, 2, 0], [0, 2, 1]])


def dense_steps(tables, triples, margin, *, rate, passes, steps=1):
    """Tables after steps of the PyTorch peer, and the last loss."""
    torch = pytest.importorskip("torch")
    from benchmarks.speed._dense_mars import DenseMARS

    peer = DenseMARS(tables, learning_rate=rate, passes=passes)
    columns = [torch.from_numpy(column.copy()).long() for column in triples.T]
    margins = torch.from_numpy(margin)[columns[0]]
    for _ in range(steps):
        loss = peer.step(*columns, margins, pull_weight=0.1, facet_weight=0.01)
    return peer.tables(), loss


@pytest.mark.deep
@pytest.mark.parametrize("passes", [1, 2])
def test_peer_of_mars_makes_the_released_step(passes):
    """Tables, loss and angles after one step are those of the released code."""
    tables = {name: np.stack([np.cos(x), np.sin(x)], -1).astype(np.float32) for name, x in ON_CIRCLE.items()}
    tables["theta"] = np.array([[0.2, -0.1], [0.0, 0.5]], np.float32)
    after, loss = dense_steps(tables, TRIPLES, np.array([0.9, 0.6], np.float32), rate=0.1, passes=passes)
    assert loss == pytest.approx(1.532583, abs=1e-5)
    expected = {
        "user": [-0.004268, 0.940972, 1.911520, 2.928020],
        "item": [0.270457, 1.452094, 0.712452, 2.696914, 0.910788, 2.178535],
    }
    for name, angles in expected.items():
        np.testing.assert_allclose(np.arctan2(*after[name].T[::-1]).T.ravel(), angles, atol=1e-5)
    np.testing.assert_allclose(after["theta"], [[0.172169, -0.072169], [-0.000571, 0.500571]], atol=1e-5)


@pytest.mark.deep
def test_peer_of_mars_and_ours_make_the_same_steps():
    """From the same start, 4 steps on the same triples, which repeat users and items, agree up to rounding."""
    mars, rng = jr.train.mars, np.random.default_rng(0)
    triples = np.stack([rng.integers(0, n, 12) for n in (20, 30, 30)], 1).astype(np.int32)
    margin = rng.uniform(size=20).astype(np.float32)
    model = jr.models.MARS(20, 30, dim=8, **jr.papers.mars.RELEASED["model"])
    tx = jr.optim.rowwise.lazy(mars.optimizer(**jr.papers.mars.RELEASED["optimizer"]))
    state = jr.train.init(jax.random.key(0), model, tx)
    batch = jr.train.Batch.of(triples[:, 0], triples[:, 1])
    options = {
        "model": model,
        "margin": margin,
        "sample": lambda *_: triples[:, 2:],
        **jr.papers.mars.RELEASED["objective"],
    }

    @jax.jit
    def step(params, opt_state, batch):
        value = lambda params, *_: mars.objective({"params": params}, jax.random.key(0), batch, **options)  # noqa: E731
        return tx.step(value, params, opt_state, None, None)

    params, opt_state = state.variables["params"], state.opt_state
    for _ in range(4):
        loss, params, opt_state = step(params, opt_state, batch)
    found, dense_loss = dense_steps(state.variables["params"], triples, margin, rate=0.01, passes=1, steps=4)
    assert float(loss) == pytest.approx(dense_loss, abs=1e-4)
    for name, table in found.items():
        assert np.abs(table - state.variables["params"][name]).max() > 1e-3
        np.testing.assert_allclose(params[name], table, atol=2e-6)


@pytest.mark.deep
def test_peer_of_valid_has_the_released_loss_and_gradients():
    """It uses the fixture of test_valid, with two blocks and β = .7."""
    torch = pytest.importorskip("torch")
    from benchmarks.speed._dense_valid import DenseVALID

    peer = DenseVALID(valid.PARAMS, blocks=2, temperature=0.5, deviation=0.1, dropout=0.5)
    loss = peer.loss(torch.from_numpy(valid.DENSE.astype(float)), 0.7, noise=False)
    loss.backward()
    assert loss.item() == pytest.approx(15.12329788, abs=1e-8)
    assert peer.prototype.grad is None
    assert peer.item.grad.norm().item() == pytest.approx(1.64201513, abs=1e-8)
    assert peer.head.grad.norm().item() == pytest.approx(3.7477917, abs=1e-7)


@pytest.mark.deep
def test_users_held_out_whole_are_judged_by_their_histories():
    """Two of the 24 items of a user's colour are not in train: the held-out item and the one on the diagonal."""
    from benchmarks.studies import valid

    pairs, _ = synthetic.checkerboard(24)
    order = partial(splits.random_order, key=jax.random.key(0))
    held = splits.held_out_users(jax.random.key(0), pairs, n_valid=6, n_test=8, share=0.1, order=order)
    histories = {"valid": held.valid_history, "test": held.test_history}
    part = valid.Part("any", held.train, held.valid, held.test, histories)
    key = jax.random.key(0)
    model, variables, log = valid.parts.ease(part, key, limit=None, regularization=10.0)
    report = part.judged(model, variables, "test", ks=(20,))
    assert len(report.users) == 8 and log.column("recall@20")[1] == [report.means["recall@20"]] == [1]
    assert part.judged(*jr.models.popularity(held.train), "valid", ks=(2,)).means["recall@2"] < 1
    assert part.judged(model, variables, "test", ks=(2,)).means["recall@2"] == 1
    for method in valid.methods("ml-1m-users"):
        assert method.name.startswith(("VALID", "MacridVAE", "MultVAE", "RecVAE", "EASE"))


@pytest.mark.deep
@pytest.mark.optimised
def test_mf_softmax_beats_popularity_on_movielens_by_two_standard_errors():
    """It uses the recipe of the quickstart with a fixed number of epochs. The comparison is paired by user."""
    data = datasets.load("movielens-small", minimum=0.5).interactions
    order = partial(splits.temporal_order, key=jax.random.key(0))
    split = splits.ratio(data, (0.8, 0.1, 0.1), order=order)
    model = jr.models.MF(data.n_users, data.n_items, dim=32, score=jr.models.cosine, scale=0.1)
    sample = partial(jr.sampling.uniform, n_items=data.n_items, n=20)
    loss = partial(jr.losses.softmax, temperature=0.2)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    tx = optax.adam(5e-3)
    popular = jr.evaluate.full_ranking(*jr.models.popularity(split.train), split.train, split.test, ks=(10,))
    with jax.numpy_dtype_promotion("standard"):
        state = jr.train.init(jax.random.key(0), model, tx)
        state, _ = jr.train.fit(state, objective, tx, split.train, epochs=18, progress=False)
    report = jr.evaluate.full_ranking(model, state.variables, split.train, split.test, ks=(10,))
    found = report.compare(popular, "ndcg@10")
    assert found.difference > 2 * found.stderr


def test_lines_over_a_varied_value_include_the_runs_at_its_default():
    """With one block it is the run of MacridVAE, with two that of VALID. The default values of MARS share one run."""
    from benchmarks.studies import _plots, mars, valid

    names = valid.points("n_blocks")["VALID"]
    assert names == {
        "1": "MacridVAE, 25 epochs",
        "2": "VALID, 25 epochs",
        "3": "VALID, n_blocks 3, 25 epochs",
        "4": "VALID, n_blocks 4, 25 epochs",
    }
    methods = [method.name for method in valid.methods("citeulike-a-valid")]
    assert len(set(methods)) == len(methods) and set(names.values()) <= set(methods)
    varied = [name for name in (m.name for m in mars.methods("ciao, sampled")) if "32 dimensions" in name]
    assert len(varied) == 14 + 6 and len(set(varied)) == len(varied)
    row = lambda *values: SimpleNamespace(values={"recall@20": np.array(values)})  # noqa: E731
    rows = {"MacridVAE, 25 epochs": row(0.1), "VALID, 25 epochs": row(0.2, 0.3)}
    lines = _plots.varied(rows, {"VALID": names, "other": {"1": "none"}}, "recall@20")
    assert list(lines) == ["VALID"] and lines["VALID"][0] == ["1", "2"]
    assert lines["VALID"][1] == pytest.approx([0.1, 0.25]) and np.isnan(lines["VALID"][2][0])


@pytest.mark.deep
def test_training_from_disk_fills_its_columns(tmp_path, monkeypatch):
    from benchmarks import report
    from benchmarks.speed import scale

    monkeypatch.setattr(scale, "USERS", 5)
    sizes = scale.Sizes(n_users=40, n_items=30, dim=2, batch_size=16, block=70)
    built = scale.build(str(tmp_path / "pairs"), 150, sizes)
    found = scale.train(str(tmp_path / "pairs"), "streamed", 2, sizes)
    assert len(found["losses"]) == 3 and found["pairs_per_second"] == 150 / found["epoch_wall_s"]
    assert all(report.cell(template, built | found) for template in scale.COLUMNS.values())
    cases = {"1, singles": {}, "1, streamed": {"pairs": 5, "epoch_wall_s": 1.0, "epoch_cpu_s": 2.0}}
    cases["2, streamed"] = {"pairs": 10, "epoch_wall_s": 3.0, "epoch_cpu_s": 4.2}
    assert "takes 1.50 times the time and 1.05 times the CPU time" in scale.more({"cases": cases})


def test_columns_of_speed_take_the_first_template_that_has_its_values():
    from benchmarks import report

    assert report.cell("{a:.1f} s", {"a": 0.25}) == "0.2 s" and report.cell("{a}", {}) == ""
    assert report.cell(("{a}", "{b} first"), {"b": 2}) == "2 first"
    module = SimpleNamespace(TITLE="T", __doc__="D.", COLUMNS={"ms": "{x_s_ms:.0f}", "wall": "{x_wall_ms:.0f}"})
    origin = dict.fromkeys(("command", "date", "commit", "jax", "cores", "processor", "data"), "?")
    text = report.speed(module, {"cases": {"c": {"x_wall_s": 0.5}}, **origin})
    assert "| c |  | 500 |" in text and text.startswith("## T\n\nD.\n\n")


def test_the_contents_lead_to_every_section_and_to_nothing_else():
    from benchmarks import report

    lines = report.contents(["## A step of Λ, on ml-1m (VALID)\n\nText.", "## Speed"]).splitlines()
    assert lines == ["- [A step of Λ, on ml-1m (VALID)](#a-step-of-λ-on-ml-1m-valid)", "- [Speed](#speed)"]
    text = (report.ROOT / "RESULTS.md").read_text()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert report.contents([f"## {title}" for title in headings]) in text
    assert len({report.contents([f"## {title}"]).partition("#")[2] for title in headings}) == len(headings)


@pytest.mark.deep
def test_the_accelerator_script_measures_a_part_and_keeps_the_others(tmp_path, monkeypatch):
    from benchmarks import _record, accelerator

    monkeypatch.setattr(_record, "RESULTS", tmp_path)
    ceilings = dict.fromkeys(("bytes", "float32", "default", "float64", "bfloat16"), 1e9)
    monkeypatch.setattr(accelerator, "ceilings", lambda quick: ceilings)
    device = jax.devices()[0].device_kind
    work = accelerator.Work(10, "pairs", moved=2e9, operations=1e9)
    case = accelerator.measured(("name", work, 9.0, [4.0, 5.0, 6.0]), ceilings)
    assert (case["seconds"], case["rate"], case["least_s"], case["ratio"], case["first_s"]) == (5, 2, 2, 2.5, 9)
    part = {"commit": "0", "skipped": None, "peak_mb": None, "seconds": 1.0}
    found = {"device": device, "cases": {"EASE: x": case, "MARS: y": case}, "parts": {"EASE": part, "MARS": part}}
    (tmp_path / "accelerator.json").write_text(json.dumps(found))
    kept = accelerator.kept_of(accelerator.PARTS.keys() - {"EASE"}, quick=False)
    assert list(kept["cases"]) == ["MARS: y"] and list(kept["parts"]) == ["MARS"]
    (tmp_path / "accelerator.json").write_text(json.dumps(found | {"device": "another"}))
    assert accelerator.kept_of(["MARS"], quick=False) == {"cases": {}, "parts": {}}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["accelerator", "--quick", "--parts", "EASE"])
    accelerator.main()
    written = json.loads((tmp_path / "runs/accelerator.json").read_text())
    assert list(written["cases"]) == ["EASE: 400 items"] and written["parts"]["EASE"]["skipped"] is None
    assert "float64" in accelerator.more(written)
