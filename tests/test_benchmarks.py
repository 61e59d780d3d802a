"""Every benchmark explains itself; the figures reported are those of the records; the quickstart's claim holds."""

import json
import pathlib
import re
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import optax
import pytest
import test_valid

import jaxrec as jr
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


def test_help_explains_every_option():
    """Of all scripts in one process: to import them costs most."""
    command = [sys.executable, "-c", HELP, *SCRIPTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert list(said) == SCRIPTS
    for script, (code, text) in said.items():
        assert code == 0, script
        assert f"python -m benchmarks.{script}" in text and "--" in text.partition("options:")[2], script


def test_committed_results_are_made_from_the_committed_records():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is nothing committed to compare")
    done = run("benchmarks.report", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "over 1 seeds" not in (ROOT / "README.md").read_text()


def strictly(text):
    """JSON without NaN."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


FIELDS = {  # of every run of a study, and those that tell its runs apart
    "mml": ("case data epochs fingerprint loss negatives steps", "select data case seed learning_rate"),
    "rg2": ("curve data fingerprint grid method setting valid", "data method setting seed on"),
    "mars": ("best_on_test curve fingerprint test validation", "data method setting seed"),
    "facets": ("fingerprint grid setting test valid", "data method seed"),
    "lambda_opt": ("data steps", "data method seed"),
    "valid": ("curve data fingerprint grid method setting valid", "data method setting seed on"),
}


def test_records_say_what_was_run():
    """Tables by their command and machine; runs by their fields, each once, sorted so that a change shows as a line."""
    results = ROOT / "benchmarks" / "results"
    for path in results.glob("*.json"):
        record = strictly(path.read_text())
        assert path.stem in ("rg2", "valid") or record["cases"], path  # of these two the runs are enough
        assert record["command"].startswith(f"python -m benchmarks.{record['benchmark']}"), path
        assert {"commit", "jax", "device", "data", "date"} <= set(record), path
    assert {path.stem for path in results.glob("*.jsonl")} == set(FIELDS)
    for study, (fields, apart) in FIELDS.items():
        runs = [strictly(line) for line in (results / f"{study}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(runs) > 50, study
        for run in runs:
            assert list(run) == sorted(run) and set(fields.split()) <= set(run), (study, run)
        keys = [json.dumps([run.get(name) for name in apart.split()]) for run in runs]
        assert len(set(keys)) == len(keys), study


def test_a_run_is_kept_as_a_line_and_replaces_the_one_it_repeats(tmp_path, monkeypatch):
    from benchmarks import _record

    monkeypatch.setattr(_record, "RESULTS", tmp_path)
    assert _record.runs("any") == []
    for seed, value in ((0, 0.1), (1, 0.2), (0, 0.3)):
        _record.keep(
            "any", {"seed": seed, "method": "iALS", "test": value, "setting": {"b": 1, "a": 2}}, "method", "seed"
        )
    assert [run["test"] for run in _record.runs("any", method="iALS")] == [0.3, 0.2]
    assert _record.runs("any", seed=1) == _record.runs("any", seed=1, other=None) != []
    first = (tmp_path / "any.jsonl").read_text().splitlines()[0]
    assert first == '{"method": "iALS", "seed": 0, "setting": {"b": 1, "a": 2}, "test": 0.3}'
    with pytest.raises(ValueError, match="JSON compliant"):
        _record.keep("any", {"seed": 2, "test": float("nan")}, "seed")
    assert len(_record.runs("any")) == 2


@pytest.fixture(scope="module")
def texts():
    from benchmarks import report

    return report.present()


@pytest.mark.parametrize(
    ("study", "data", "method", "grid"),
    [
        ("rg2", "ml-100k", "BPR", {"learning_rate": (3e-3, 1e-2, 3e-2), "l2": (0.0, 1e-5, 1e-3)}),
        ("mars", "ciao-random", "BPR", {"power": (0.0, 0.75), "l2": (1e-5, 1e-4, 1e-3, 1e-2)}),
        ("facets", "spaces", "MF BPR", {"rate": (0.01,), "decay": (0.1, 0.3, 1.0)}),
        ("lambda_opt", "ml-100k", "AMF", {"epsilon": (0.1, 0.5, 1.0), "regularization": (0.0, 1e-2)}),
        ("valid", "ml-1m", "EASE", {"regularization": (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)}),
        ("valid", "citeulike-a-valid", "VALID, 25 epochs", {"n_interests": (9,)}),
    ],
)
def test_a_record_of_another_grid_is_found(study, data, method, grid, texts, monkeypatch):
    """With a value more or a value less, the method's rows are stale, and no other's."""
    from benchmarks import report

    module, name = report.STUDIES[study], method.removesuffix(", 25 epochs")
    before = report.stale(texts)
    methods = getattr(module, "ALL", module.METHODS)
    monkeypatch.setitem(methods, name, methods[name]._replace(grid=grid))
    more = report.stale(texts).keys() - before
    assert (study, data, method) in more
    assert {(of, row.removesuffix(", 12 epochs").removesuffix(", 25 epochs")) for of, _, row in more} == {(study, name)}


def test_cases_of_mml_are_stale_where_their_rates_or_their_loss_have_changed(texts, monkeypatch):
    from benchmarks import report
    from benchmarks.studies import mml

    before = report.stale(texts)
    monkeypatch.setattr(mml, "RATES", (*mml.RATES, 4.0))
    more = report.stale(texts).keys() - before
    assert ("mml", "gowalla", "CCL, 10 a group") in more and ("mml", "gowalla", "CCL, 100 a group") not in more
    monkeypatch.undo()
    case = mml.CASES["CCL, 100 a group"]
    monkeypatch.setitem(mml.CASES, "CCL, 100 a group", case._replace(loss=partial(mml.ccl, margin=0.5)))
    more = report.stale(texts).keys() - before
    assert more == {("mml", data, "CCL, 100 a group") for data in ("gowalla", "yelp2018")}


@pytest.mark.parametrize(
    ("compared", "grid", "runs", "words"),
    [
        ([1, 2], [2, 1], [2, 2], []),
        ([1], [1, 2], [], ["has no record of {'x': 2}"]),
        ([1, 2, 3], [1], [], ["not in the grid, {'x': 2} and 1 more"]),
        ([], [], [2, 5], ["{'x': 2} was chosen, {'x': 5}"]),
        ([3], [1], [1], ["has no record of", "not in the grid", "was chosen"]),
    ],
)
def test_what_makes_a_row_stale_is_said(compared, grid, runs, words):
    from benchmarks import _stale

    compared, grid, runs = ([{"x": value} for value in values] for values in (compared, grid, runs))
    said = _stale.why(_stale.Cell("set", "method", compared, grid, {"x": 2}, runs))
    assert bool(said) == bool(words) and all(word in said for word in words)


def test_what_varies_one_thing_chooses_nothing():
    from benchmarks import _stale

    runs = [(0, 1), (1, 1), (0, 7), (0, 8), (1, 9)]
    records = [{"data": "set", "method": "M", "seed": seed, "setting": {"x": value}} for seed, value in runs]
    (cell,) = _stale.of_runs(records, {("set", "M"): [{"x": 1}, {"x": 2}]}, {("set", "M"): [{"x": 7}, {"x": 2}]})
    assert cell.compared == [{"x": 1}, {"x": 8}]
    assert _stale.of_runs(records[2:3], {("set", "M"): [{"x": 1}]}, {("set", "M"): [{"x": 7}]}) == []


def test_stale_rows_fail_the_check_unless_they_are_known_and_known_ones_must_be_stale(monkeypatch):
    from benchmarks import _stale, report

    monkeypatch.setattr(_stale, "KNOWN", {("rg2", "a", "known"): "why", ("rg2", "a", "mended"): "why"})
    said = report.unexpected({("rg2", "a", "known"): "x", ("rg2", "b", "new"): "lacks"})
    assert len(said) == 2 and said[0].startswith("rg2, b, new") and "lacks" in said[0]
    assert said[1].startswith("rg2, a, mended") and "not stale" in said[1]


@pytest.mark.parametrize(
    ("study", "data", "method"),
    [
        ("mml", "gowalla", "CCL, 10 a group"),
        ("rg2", "ml-100k", "iALS"),
        ("mars", "ciao", "BPR"),
        ("facets", "spaces", "MF BPR"),
        ("lambda_opt", "ml-1m", "SGDA"),
        ("valid", "ml-1m", "EASE"),
    ],
)
def test_rows_of_an_older_grid_are_marked(study, data, method, texts):
    from benchmarks import _tables, report

    results = report.written(texts, {(study, data, method): "lacks"})
    assert results["RESULTS.md"][1].count(f"| {method} ! | ") == 1
    assert results["RESULTS.md"][1].count(_tables.OLDER) == 1
    assert f"older grid than today's: {data}: {method}." in results["README.md"][1]
    plain = report.written(texts, {})
    assert _tables.OLDER not in plain["RESULTS.md"][1] and "older grid" not in plain["README.md"][1]


def test_rg2_trains_on_gowalla_once_more_for_as_long_as_validation_wanted(monkeypatch):
    from benchmarks.studies import rg2

    monkeypatch.setattr(rg2, "DIM", 4)

    train, _ = synthetic.checkerboard(12)
    log = jr.train.Log().append({"epoch": 1, "recall@20": 0.1}).append({"epoch": 2, "recall@20": 0.3})
    log = log.append({"epoch": 3, "recall@20": 0.2})
    method = next(method for method in rg2.methods("gowalla") if method.name == "iALS")
    setting = {"unobserved_weight": 0.1, "regularization": 0.1}
    _, variables, again = method.refit(train, jax.random.key(0), log, **setting)
    assert len(again.records) == 2 and variables["params"]["user"].shape == (12, 4)
    names = {data: {method.name for method in rg2.methods(data)} for data in ("gowalla", "ml-100k", "ml-1m")}
    assert names["ml-1m"] - names["ml-100k"] == {name for name in rg2.METHODS if name.startswith("LightGCN")}
    assert names["gowalla"] == {"popularity", "RG2", "RG2, closed form", "RG2, alpha tuned", "WRMF", "iALS"}


def test_chosen_values_at_an_end_have_a_star():
    from benchmarks import _tables

    found = {"compared": {"set: M": [{"rate": 0.1, "draw": 0}, {"rate": 0.3, "draw": 1}, {"rate": 1.0, "draw": 2}]}}
    assert _tables.setting_of(found, "set", "M", {"rate": 1.0, "draw": 2}) == "rate 1*, draw 2"
    assert _tables.setting_of(found, "set", "M", {"rate": 0.3, "draw": 0}) == "rate 0.3, draw 0"
    assert _tables.setting_of(found, "set", "other", {"learning_rate": 1.0}) == "learning rate 1"


def test_graph_has_a_note_where_its_decay_is_far_above_the_papers():
    """1e-4 of ½ ‖e‖² on a batch's rows: 1e-4 / 6000 a user and 2e-4 / 3300 an item of whole tables."""
    from benchmarks import _tables

    note = lambda label, l2: _tables._overdecayed(label, {"setting": {"l2": l2}}, 6000, 3300)  # noqa: E731
    (said,) = note("LightGCN, softmax", 1e-5)
    assert "1e-05 on whole tables" in said and "165 (items) to 600 (users) times" in said
    assert note("LightGCN, softmax", 1e-7) == [] and note("softmax", 1e-5) == []
    assert _tables._overdecayed("LightGCN, softmax", {}, 6000, 3300) == []


def test_mml_selects_on_a_part_of_train_that_it_does_not_train_on():
    from benchmarks.studies import mml

    train = jr.Interactions.from_pairs(*np.divmod(np.arange(5000), 50), n_users=100, n_items=50)
    kept, valid = mml.held_out(train)
    assert 400 < valid.n_pairs < 600 and kept.n_pairs + valid.n_pairs == train.n_pairs
    assert kept.to_scipy().multiply(valid.to_scipy()).nnz == 0


def test_what_mml_chose_on_the_test_set_is_called_best_on_test():
    """The figure of a case is the last epoch's, also where an earlier one is better."""
    from benchmarks.studies import mml

    curve = [{"epoch": e, "recall@20": r, "ndcg@20": r / 2} for e, r in ((1, 0.1), (2, 0.3), (3, 0.2))]
    record = {"curve": curve, "seed": 0, "epochs": 3, "steps": 30, "learning_rate": [0.1, 0.001], "cpu_s": 1.0}
    case = mml.case_of([record, record])
    assert (case["metric"], case["ndcg@20"]) == (pytest.approx(0.2), pytest.approx(0.1))
    assert case["best_on_test_recall@20"] == pytest.approx(0.3) and case["best_on_test_epochs"] == [2, 2]


def test_mml_selected_on_other_data_than_it_was_judged_on():
    from benchmarks import _record

    chose, ran = ({run["fingerprint"] for run in _record.runs("mml", select=select)} for select in (True, False))
    assert chose and len(ran) == 2 and not chose & ran


def test_figures_of_mars_agree_with_one_another():
    """One relevant item found at places 11 to 20 adds between 1/log2(21) and 1/log2(12) to NDCG."""
    from benchmarks import _record

    for record in _record.runs("mars"):
        figures = record["test"]["sampled"]
        hits, gain = (figures[f"{name}@20"] - figures[f"{name}@10"] for name in ("hit_rate", "ndcg"))
        assert hits / np.log2(21) - 1e-9 <= gain <= hits / np.log2(12) + 1e-9, record
        if record["best_on_test"]:
            assert all(record["best_on_test"][name] >= value - 1e-9 for name, value in figures.items()), record


def test_mars_chooses_by_validation_alone(tmp_path, monkeypatch):
    from benchmarks import _record
    from benchmarks.studies import mars

    monkeypatch.setattr(_record, "RESULTS", tmp_path)
    assert mars.chosen("ciao", "MARS, default", "sampled") is None
    settings = list(mars.settings_of("ciao", "MARS, default"))
    for place, setting in enumerate(settings):
        found = {"data": "ciao", "method": "MARS, default", "setting": setting, "seed": 0}
        found |= {"validation": {"sampled": {"value": -place}}, "test": {"sampled": place}}
        _record.keep("mars", found, "data", "method", "setting", "seed")
    assert len(settings) > 1 and mars.chosen("ciao", "MARS, default", "sampled") == settings[0]


def test_mars_trains_sets_of_any_size_as_long():
    from benchmarks.studies import _mars_methods, mars

    train = jr.Interactions.from_pairs(*np.divmod(np.arange(3000), 30), n_users=100, n_items=30)
    short = _mars_methods.Recipe(None, None, None, epochs=150, every=5)
    for batch_size, every in ((1000, 5 * 33), (20, 5), (2, 1)):  # epochs of 3, 150 and 1500 steps
        long = mars.stretched(short._replace(batch_size=batch_size), train)
        assert (long.epochs, long.every) == (30 * every, every)
    assert mars.stretched(short._replace(fixed=True), train).epochs == 150


def test_mars_draws_items_that_the_user_has_nowhere():
    from benchmarks.studies import _mars_data

    known = jr.Interactions.from_pairs(*np.divmod(np.arange(0, 400, 3), 40), n_users=10, n_items=40)
    negatives = _mars_data.drawn(np.arange(10), known=known, items=np.arange(2, 40), seed=0, n=20)
    assert negatives.shape == (10, 20) and negatives.min() >= 2
    assert not known.contains(np.arange(10)[:, None], negatives).any()
    assert all(len(set(row)) == 20 for row in negatives.tolist())


def test_what_moves_coefficients_is_not_what_chooses(monkeypatch):
    """Train, both halves of validation and test share no pair, and test has the latest fifth, rounded down."""
    from benchmarks.studies import lambda_opt

    rng = np.random.default_rng(0)
    users, items = np.nonzero(rng.random((30, 60)) < rng.uniform(0.1, 0.9, (30, 1)))
    times = rng.permutation(len(users))
    whole = jr.Interactions.from_pairs(users, items, timestamps=times, n_users=30, n_items=60)
    monkeypatch.setattr(lambda_opt.datasets, "load", lambda name: datasets.Dataset(name, whole, *[None] * 7))
    part = lambda_opt.prepare("ml-100k", 0)
    parts = (part.train, part.learn, part.select, part.test)
    dense = [each.to_scipy().toarray() > 0 for each in parts]
    assert sum(x.sum() for x in dense) == whole.n_pairs and np.logical_or.reduce(dense).sum() == whole.n_pairs
    degrees = np.bincount(users, minlength=30)
    np.testing.assert_array_equal(part.test.user_degrees, degrees // 5)
    held = (degrees - degrees // 5) // 4
    np.testing.assert_array_equal(part.select.user_degrees, held // 2)
    np.testing.assert_array_equal(part.learn.user_degrees, held - held // 2)
    when = np.full((30, 60), -1)
    when[users, items] = times
    for user in np.flatnonzero(degrees >= 5):
        assert when[user][dense[3][user]].min() > when[user][~dense[3][user]].max()


def test_lambda_opt_takes_the_setting_of_seed_0_to_other_seeds(tmp_path, monkeypatch):
    from benchmarks import _record
    from benchmarks.studies import lambda_opt

    monkeypatch.setattr(_record, "RESULTS", tmp_path)
    tried = [[setting, 0.1, 1, False] for setting in lambda_opt.settings_of("ml-1m", "λOpt DUI")]
    first = {"data": "ml-1m", "method": "λOpt DUI", "seed": 0, "setting": {"lambda_rate": 0.5}, "tried": tried}
    _record.keep("lambda_opt", first, "data", "method", "seed")
    asked, train = [], jr.Interactions.from_pairs([0], [0])

    def found_by(part, name, seed, settings):
        asked.append(settings)
        return {"test": dict.fromkeys(lambda_opt.PAPER, 0.0), "cpu_s": 0, "setting": settings[0]}

    monkeypatch.setattr(lambda_opt, "prepare", lambda *_: lambda_opt.Part(train, *[None] * 5))
    monkeypatch.setattr(lambda_opt, "found_by", found_by)
    lambda_opt.run("ml-1m", "λOpt DUI", 1)
    assert asked == [[{"lambda_rate": 0.5}]] and lambda_opt.record_of("ml-1m", "λOpt DUI", 1)["seed"] == 1


def test_adversary_moves_each_row_by_its_length_up_the_loss():
    """Half u·v with u = (3, 4), v = (1, 0): slopes (½, 0) and (1½, 2), so that Δ is ε(1, 0) and ε(.6, .8)."""
    from benchmarks.studies import _lambda_methods

    tx = _lambda_methods.adversarial(optax.sgd(1.0), epsilon=0.5, weight=2.0, begin=1)
    params = {"user": jax.numpy.array([[3.0, 4.0], [9.0, 9.0]]), "item": jax.numpy.array([[1.0, 0.0]])}
    value = lambda p, _: 0.5 * (p["user"][0] * p["item"][0]).sum()  # noqa: E731
    state, draw = tx.init(params), _lambda_methods.as_drawn(None, None)
    _, plain, later = tx.step(value, params, state, draw)
    np.testing.assert_allclose(plain["user"][0], [2.5, 4.0])
    _, after, _ = tx.step(value, params, later, draw)
    np.testing.assert_allclose(after["user"], [[3 - 0.5 - 2 * 0.5 * 1.3, 4 - 2 * 0.5 * 0.4], [9, 9]], rtol=1e-6)
    np.testing.assert_allclose(after["item"][0], [1 - 1.5 - 2 * 0.5 * 3.5, 0 - 2 - 2 * 0.5 * 4], rtol=1e-6)


ON_CIRCLE = {"user": [[0.0, 1.0], [2.0, 3.0]], "item": [[0.3, 1.5], [0.6, 2.5], [0.9, 2.2]]}
TRIPLES = np.array([[0, 0, 1], [1, 2, 0], [0, 2, 1]])


def dense_steps(tables, triples, margin, *, rate, passes, steps=1):
    """Tables after steps of the PyTorch peer, and the last loss."""
    torch = pytest.importorskip("torch")
    from benchmarks._dense_mars import DenseMARS

    peer = DenseMARS(tables, learning_rate=rate, passes=passes)
    columns = [torch.from_numpy(column.copy()).long() for column in triples.T]
    margins = torch.from_numpy(margin)[columns[0]]
    for _ in range(steps):
        loss = peer.step(*columns, margins, pull_weight=0.1, facet_weight=0.01)
    return peer.tables(), loss


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
def test_peer_of_mars_and_ours_go_the_same_way():
    """From one start on the same triples, users and items among them several times, to rounding after 4 steps."""
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
        value = lambda params: mars.objective({"params": params}, jax.random.key(0), batch, **options)  # noqa: E731
        return tx.step(value, params, opt_state)

    params, opt_state = state.variables["params"], state.opt_state
    for _ in range(4):
        loss, params, opt_state = step(params, opt_state, batch)
    found, dense_loss = dense_steps(state.variables["params"], triples, margin, rate=0.01, passes=1, steps=4)
    assert float(loss) == pytest.approx(dense_loss, abs=1e-4)
    for name, table in found.items():
        assert np.abs(table - state.variables["params"][name]).max() > 1e-3
        np.testing.assert_allclose(params[name], table, atol=2e-6)


def test_peer_of_valid_has_the_released_loss_and_gradients():
    """The fixture of test_valid: two blocks, β = .7."""
    torch = pytest.importorskip("torch")
    from benchmarks._dense_valid import DenseVALID

    peer = DenseVALID(test_valid.PARAMS, blocks=2, temperature=0.5, deviation=0.1, dropout=0.5)
    loss = peer.loss(torch.from_numpy(test_valid.DENSE.astype(float)), 0.7, noise=False)
    loss.backward()
    assert loss.item() == pytest.approx(15.12329788, abs=1e-8)
    assert peer.prototype.grad is None
    assert peer.item.grad.norm().item() == pytest.approx(1.64201513, abs=1e-8)
    assert peer.head.grad.norm().item() == pytest.approx(3.7477917, abs=1e-7)


def test_users_held_out_whole_are_judged_by_their_histories():
    """Of a user's colour the pair to be found and the diagonal are left: two items of 24 that histories tell apart."""
    from benchmarks.studies import _valid_methods, valid

    pairs, _ = synthetic.checkerboard(24)
    order = partial(splits.random_order, key=jax.random.key(0))
    held = splits.held_out_users(jax.random.key(0), pairs, n_valid=6, n_test=8, share=0.1, order=order)
    histories = {"valid": held.valid_history, "test": held.test_history}
    part = valid.Part("any", held.train, held.valid, held.test, histories)
    key = jax.random.key(0)
    model, variables, log = _valid_methods.METHODS["EASE"].train(part, key, limit=None, regularization=10.0)
    report = part.judged(model, variables, "test", ks=(20,))
    assert len(report.users) == 8 and log.column("recall@20")[1] == [report.means["recall@20"]] == [1]
    assert part.judged(*jr.models.popularity(held.train), "valid", ks=(2,)).means["recall@2"] < 1
    assert part.judged(model, variables, "test", ks=(2,)).means["recall@2"] == 1
    for name, method in _valid_methods.METHODS.items():
        assert method.by_history == name.startswith(("VALID", "MacridVAE", "MultVAE", "RecVAE", "EASE"))


def test_the_verdict_on_interests_can_come_out_either_way():
    from benchmarks.studies import _valid_tables

    tests = {"a": 0.03, "b": -0.03, "c": 0.015, "d": -0.015}
    said = _valid_tables._verdict({name: {"difference": d, "users_stderr": 0.01} for name, d in tests.items()})
    assert "above MacridVAE on a (+3.0), and within two errors of MacridVAE on c (+1.5); d (-1.5)" in said
    assert said.endswith("and below MacridVAE on b (-3.0).")


@pytest.mark.deep
def test_mf_softmax_beats_popularity_on_movielens_by_two_standard_errors():
    """Two seeds of the quickstart's recipe, its epoch fixed beforehand, on users as pairs."""
    data = datasets.load("movielens-small", minimum=0.5).interactions
    order = partial(splits.temporal_order, key=jax.random.key(0))
    split = splits.ratio(data, (0.8, 0.1, 0.1), order=order)
    model = jr.models.MF(data.n_users, data.n_items, dim=32, score=jr.models.cosine, scale=0.1)
    sample = partial(jr.sampling.uniform, n_items=data.n_items, n=20)
    loss = partial(jr.losses.softmax, temperature=0.2)
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    tx, values = optax.adam(5e-3), []
    popular = jr.evaluate.full_ranking(*jr.models.popularity(split.train), split.train, split.test, ks=(10,))
    with jax.numpy_dtype_promotion("standard"):
        for seed in range(2):
            state = jr.train.init(jax.random.key(seed), model, tx)
            state, _ = jr.train.fit(state, objective, tx, split.train, epochs=18, progress=False)
            report = jr.evaluate.full_ranking(model, state.variables, split.train, split.test, ks=(10,))
            values.append(report.per_user["ndcg@10"])
    difference = np.mean(values, axis=0) - popular.per_user["ndcg@10"]
    assert difference.mean() > 2 * difference.std(ddof=1) / np.sqrt(len(difference))


@pytest.mark.deep
def test_the_examples_of_the_readme_run():
    """All of them, one after another as a reader would, but for the numbers of epochs."""
    blocks = [part.split("```")[0] for part in (ROOT / "README.md").read_text().split("```python\n")[1:]]
    code = re.sub(r"(epochs|sweeps)=\d+", r"\1=2", "\n".join(blocks)) + "print(float(loss), newcomer.shape)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "id order" in done.stdout and "ndcg" in done.stdout
    assert "(1, " in done.stdout.splitlines()[-1] and "nan" not in done.stdout


def test_studies_of_interests_take_the_runs_at_the_defaults_too(tmp_path, monkeypatch):
    """One block is MacridVAE's run, two are VALID's own; a study shows once a point of it was run."""
    from benchmarks.studies import _study_pictures, _valid_tables, valid

    records = []

    def leave(name, what, value, uniformity):
        method = valid.method_of("ml-1m", name, None, what, value)
        record = {"data": "ml-1m", "method": method.name, "grid": {}, "setting": {}, "seed": 0, "on": "test"}
        figures = dict.fromkeys(("recall@20", "recall@50", "ndcg@20", "ndcg@50"), 0.1)
        record |= {"test": figures | {"collapse": 0.5, "uniformity": uniformity}, "valid": {"recall@20": 0.2}}
        records.append(
            record | {"curve": [[3, 1.0, 0.2]], "users": {"recall@20": jr.study._packed(np.array([0.0, -uniformity]))}}
        )
        return valid.derived(records)["studies"].get("ml-1m", {})

    assert leave("VALID", "n_blocks", 1, -1.0) == {} and records[0]["method"] == "MacridVAE"
    assert leave("VALID", "n_blocks", 2, -2.0) == {} and records[1]["method"] == "VALID"
    found = leave("VALID", "n_blocks", 3, -3.0)
    assert set(found) == {"n_blocks"}
    points = found["n_blocks"]["VALID"]
    assert {value: case["uniformity"] for value, case in points.items()} == {"1": -1, "2": -2, "3": -3}
    found = leave("VALID", "n_interests", 1, -4.0)
    assert set(valid.derived(records)["cases"]) == {"ml-1m: VALID", "ml-1m: MacridVAE"}
    less = {"difference": 0.5, "users_stderr": pytest.approx(0.5), "seeds_stderr": None, "seeds": 1}
    assert valid.derived(records)["paired"] == {"ml-1m": less}
    table = _valid_tables._studied("ml-1m", found)
    assert "| blocks | 3 | VALID | 0.1000 | 0.1000 | 0.50 | -3.00 | 3 | 1 |" in table
    assert "| interests | 1 | VALID | 0.1000 | 0.1000 |  | -4.00 | 3 | 1 |" in table
    pytest.importorskip("matplotlib")
    _study_pictures.picture(tmp_path / "valid.png", {"ml-1m": found}, valid.PANES)
    assert (tmp_path / "valid.png").stat().st_size > 0


def test_studies_of_facets_share_the_run_at_the_usual_values():
    from benchmarks import _tables
    from benchmarks.studies import mars

    points = [point for what in mars.STUDIES for point in mars.studied("ciao", what) if point[0] == "MARS, released"]
    different = {json.dumps([name, sorted(setting.items())]) for name, _, setting in points}
    assert len(points) == 16 and len(different) == 14
    case = {"metric": 0.25, "stderr": None, "seeds": 1}
    methods = {"MARS": {"1": case | {"stderr": 0.001, "seeds": 3}, "2": case}, "MAR": {"2": case}}
    text = _tables._varied({"ciao": {"n_facets": methods}})
    assert "#### ciao, facets\n\n|  | 1 | 2 |" in text
    assert "| MARS (3) | 0.2500 ± 0.0010 | 0.2500 |\n| MAR |  | 0.2500 |" in text


def test_the_contents_lead_to_every_section_and_to_nothing_else():
    from benchmarks import report

    lines = report.contents(["## A step of Λ, on ml-1m (VALID)\n\nText.", "## Speed"]).splitlines()
    assert lines == ["- [A step of Λ, on ml-1m (VALID)](#a-step-of-λ-on-ml-1m-valid)", "- [Speed](#speed)"]
    text = (report.ROOT / "RESULTS.md").read_text()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert report.contents([f"## {title}" for title in headings]) in text
    assert len({report.contents([f"## {title}"]).partition("#")[2] for title in headings}) == len(headings)
