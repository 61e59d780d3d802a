"""Saved models: the same model, variables and labels in a new process, and errors for damaged files."""

import datetime
import decimal
import functools
import json
import subprocess
import sys
import uuid
import zipfile
import zoneinfo

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxrec as jr
from jaxrec import _saved
from jaxrec.interactions import IdMap, Interactions

models = jr.models
TRAIN = Interactions.from_pairs([0, 0, 0, 1, 3, 3, 4], [0, 2, 4, 3, 1, 2, 0], n_users=5, n_items=6)
M, N = TRAIN.n_users, TRAIN.n_items
ZERO = jnp.zeros(1, jnp.int32)
ATTENTION = functools.partial(models.attention.coda, temperature=0.3, center="matrix")
DRAWN = {
    "MF": models.MF(M, N, dim=3, score=models.cosine, scale=np.float32(0.1)),
    "VALID": models.VALID(
        N, dim=3, n_interests=2, width=2, gradient=models.implicit.one_step, attention=ATTENTION, n_blocks=2
    ),
    "MARS": models.MARS(M, N, dim=3, n_facets=2, facets=models.projected, place=models.mars.calibrated_unit),
    "MAR": models.MAR(M, N, dim=3, n_facets=2),
    "SimpleX": models.SimpleX(M, N, dim=3, pool=models.UserAttention(), shared_history=False, length=2),
    "ReleasedSimpleX": jr.papers.mml.ReleasedSimpleX(M, N, dim=3, length=3),
    "RecBoleMacridVAE": jr.papers.valid.RecBoleMacridVAE(N, dim=3, n_interests=2, width=2),
    "MacridVAE": models.MacridVAE(N, dim=3, n_interests=2, width=2),
    "MultDAE": models.MultDAE(N, dim=3),
    "MultVAE": models.MultVAE(N, dim=3, width=2),
    "RecVAE": models.RecVAE(N, dim=3, width=2),
    "LightGCN": models.LightGCN(TRAIN, dim=3),
    "SimGCL": models.SimGCL(TRAIN, dim=3),
    "XSimGCL": models.XSimGCL(TRAIN, dim=3, contrast=2),
    "NCL": models.NCL(TRAIN, dim=3, clusters=2),
    "TransCF": models.TransCF(TRAIN, dim=3),
    "LRML": models.LRML(M, N, dim=3, slots=2),
    "DPCML": models.DPCML(M, N, dim=3, n_vectors=2),
    "NeuMF": models.NeuMF(M, N, dim=3, layers=(4, 2)),
}
FITTED = {
    "EASE": lambda: jr.solvers.ease.fit(TRAIN, regularization=1.0)[:2],
    "ItemKNN": lambda: jr.solvers.knn.item_knn(TRAIN, neighbours=2)[:2],
    "SpectralFilter": lambda: jr.solvers.filters.fit(
        TRAIN, **jr.solvers.filters.gf_cf(dim=2, weight=0.3), key=jax.random.key(0)
    )[:2],
    "popularity": lambda: models.popularity(TRAIN),
    "random": lambda: models.random(jax.random.key(3), N),
}
ALL = [*DRAWN, *FITTED]
GRAPHS = ("LightGCN", "SimGCL", "XSimGCL", "NCL", "TransCF")  # whose graph is among the variables


def _made(name):
    if name in FITTED:
        return FITTED[name]()
    model = DRAWN[name]
    if name in GRAPHS:
        return model, model.init(jax.random.key(0), ZERO, ZERO)
    shapes, rng = jax.eval_shape(model.init, jax.random.key(0), ZERO, ZERO), np.random.default_rng(0)
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


def _same(first, second):
    """Whether two trees have the same names, types and bits."""
    leaves = [jax.tree_util.tree_leaves_with_path(tree) for tree in (first, second)]
    for (place, one), (path, other) in zip(*leaves, strict=True):
        assert jax.tree_util.keystr(place) == jax.tree_util.keystr(path)
        assert isinstance(one, jax.Array) == isinstance(other, jax.Array) and one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.every_case
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.deep] * (name not in ("MF", "VALID"))) for name in ALL]
)
def test_every_model_comes_back_with_its_settings_and_bits(name, tmp_path):
    model, variables = _made(name)
    jr.save(tmp_path / "model", model, variables)
    saved = jr.load(tmp_path / "model")
    assert type(saved.model) is type(model) and saved.id_map is None
    assert _saved._packed(saved.model, [], "") == _saved._packed(model, [], "")
    _same(saved.variables, dict(variables))
    jr.load(tmp_path / "model", model=model)  # which has the same settings


def test_models_of_the_public_list_are_all_tested():
    classes = {value for value in vars(models).values() if isinstance(value, type) and hasattr(value, "init")}
    pools = {models.MeanPool, models.SelfAttention, models.UserAttention}
    tested = {type(model) for model in DRAWN.values()} | {models.EASE, models.ItemKNN, models.SpectralFilter}
    assert classes - pools <= tested


LABELS = {
    "strings": ["a", "b\0", "é\n,\"'", "\ud800", " "],
    "integers": np.array([-3, 7, 0, 2**62, 5]),
    "large integers": [2**70, -(2**70), 1, 2, 3],
    "floats": [0.5, -1.5, 2.0, 3.0, 1e-300],
    "bytes": [b"a", b"\0", b"\xff", b"b", b"c"],
    "booleans": [True, False],
    "uuids": [uuid.UUID(int=n) for n in (3, 2**127, 0)],
    "dates": [datetime.date(2024, 2, 29), datetime.date(1, 1, 1)],
    "times": [datetime.datetime(2024, 2, 29, 1, 2, 3, 4), datetime.datetime(1, 1, 1)],
    "times of a zone": [datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))],
    "pandas times": [pd.Timestamp(2**60 + 1), pd.Timestamp("2024-01-01")],
    "pandas times of a zone": list(pd.to_datetime(["2024-01-01", "2024-07-01"]).tz_localize("Europe/Berlin")),
    "times of NumPy": np.array(["2024-01-01", "1066-10-14"], "M8[s]"),
}


@pytest.mark.every_case
@pytest.mark.parametrize("kind", LABELS)
def test_labels_come_back(kind, tmp_path):
    id_map = IdMap(LABELS[kind], ["x", "ÿ"])
    jr.save(tmp_path / "m", None, {"params": {"a": np.ones(2)}}, id_map)
    found = jr.load(tmp_path / "m", model=models.from_functions(lambda key: {"a": jnp.ones(2)}, score=max, rows=max))
    assert found.id_map.users.tolist() == id_map.users.tolist() and found.id_map.users.dtype == id_map.users.dtype
    assert found.id_map.user_ids(id_map.users).tolist() == list(range(len(id_map.users)))
    assert found.id_map.items.tolist() == ["x", "ÿ"]


def test_labels_that_no_file_holds_are_refused(tmp_path):
    id_map = IdMap([decimal.Decimal(1)], ["x"])
    with pytest.raises(TypeError, match=r"labels of the type Decimal, such as Decimal\('1'\), .*such as str\("):
        jr.save(tmp_path / "m", None, {"params": {}}, id_map)


@pytest.fixture(scope="module")
def mf():
    return _made("MF")


def test_a_changed_or_lost_byte_is_detected(mf, tmp_path):
    path = tmp_path / "m"
    jr.save(path, *mf, IdMap(list("abcde"), range(6)))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in {0, len(whole) - 1, len(whole) - 64, len(whole) - 65, *rng.integers(0, len(whole), 60).tolist()}:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << int(rng.integers(8)))]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            jr.load(path)
    for part in (whole[:-1], whole[:200], b"", whole[1:], whole + b"x"):
        path.write_bytes(part)
        with pytest.raises(ValueError, match="damaged"):
            jr.load(path)
    path.write_bytes(whole)
    assert jr.load(path).model == mf[0]


def test_saving_again_replaces_the_file_or_leaves_it(mf, tmp_path, monkeypatch):
    path = tmp_path / "m"
    jr.save(path, *mf)
    first = path.read_bytes()
    jr.save(str(path), *mf)
    assert path.read_bytes() == first  # the file has no date and nothing else that varies
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere for m; create it"):
        jr.save(tmp_path / "nowhere" / "m", *mf)
    path.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(path)
    other = {"params": {name: table + 1 for name, table in mf[1]["params"].items()}}
    jr.save(link, mf[0], other)
    assert link.is_symlink() and path.read_bytes() != first and path.stat().st_mode & 0o777 == 0o600
    link.unlink()
    first = path.read_bytes()
    with pytest.raises(TypeError, match="is a masked array, whose mask cannot be saved"):
        jr.save(path, None, {"params": {"x": np.ma.array([1.0, 2.0], mask=[True, False])}})
    monkeypatch.setattr(np.lib.format, "write_array", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        jr.save(path, *mf)
    assert path.read_bytes() == first and [p.name for p in tmp_path.iterdir()] == ["m"]


def _rewritten(path, change):
    """Writes a file with another description and a valid checksum."""
    with zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read("description.json"))
        arrays = [np.load(archive.open(f"{i}.npy")) for i in range(len(archive.namelist()) - 1)]
    change(about)
    with path.open("w+b") as file:
        _saved._write(file, about, arrays)


CHANGED = {
    "a later format": (lambda about: about.update(format=2), "has format 2, written by jaxrec .*: update jaxrec"),
    "another class": (lambda about: about["model"].update(model="models.Foo"), "names models.Foo, which this version"),
    "code of others": (lambda about: about["model"].update(model="models.mf.jax.jit"), "names models.mf.jax.jit"),
    "a private name": (lambda about: about["model"].update(model="models.mf._unit"), "names models.mf._unit"),
    "another package": (lambda about: about["model"].update(model="os.system"), "names os.system"),
    "no class": (lambda about: about["model"].update(model="models.export"), "names models.export"),
    "another setting": (lambda about: about["model"]["fields"].update(width=3), "has settings that models.MF"),
}


@pytest.mark.every_case
@pytest.mark.parametrize("name", CHANGED)
def test_other_versions_and_names_are_refused(name, mf, tmp_path):
    change, message = CHANGED[name]
    jr.save(tmp_path / "m", *mf)
    _rewritten(tmp_path / "m", change)
    with pytest.raises(ValueError, match=message):
        jr.load(tmp_path / "m")


def test_other_settings_and_sizes_are_errors(mf, tmp_path):
    path, (model, variables) = tmp_path / "m", mf
    jr.save(path, model, variables)
    for other, message in (
        (model.clone(score=models.dot), "with score=<function cosine.*instead of <function dot"),
        (model.clone(dim=4), "with dim=3 instead of 4"),
        (model.clone(score=lambda u, v: (u, v)), "with score="),
        (models.NeuMF(M, N), "holds a MF, but model is a NeuMF"),
    ):
        with pytest.raises(ValueError, match=message):
            jr.load(path, model=other)
    with pytest.raises(ValueError, match=r"\['item'\] has shape \[6, 3\], and the model's has shape \[6, 4\]"):
        jr.save(path, model.clone(dim=4), variables)
    with pytest.raises(ValueError, match="id_map has 2 users, but MF has 5"):
        jr.save(path, model, variables, IdMap(["a", "b"], range(6)))
    with pytest.raises(TypeError, match=r"pass its \.variables"):
        jr.save(path, model, jr.train.State(variables, 0, 0, 0))


def test_a_function_of_your_own_is_an_error_and_its_variables_can_be_saved(mf, tmp_path):
    path, (_, variables) = tmp_path / "m", mf
    own = models.MF(M, N, dim=3, score=lambda u, v: (u, v))
    with pytest.raises(TypeError, match=r"MF.score is .*lambda.*save\(path, None, variables\)"):
        jr.save(path, own, variables)
    jr.save(path, None, variables)
    assert jr.load(path, model=own).model is own
    with pytest.raises(ValueError, match="was saved without a model"):
        jr.load(path)
    with pytest.raises(ValueError, match=r"do not fit NeuMF: the parameter .*is missing"):
        jr.load(path, model=models.NeuMF(M, N, dim=3))


def test_small_and_large_floats_keep_their_bits(mf, tmp_path):
    model, variables = mf
    small = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    jr.save(tmp_path / "m", model, small)
    _same(jr.load(tmp_path / "m").variables, small)
    with jax.enable_x64(True):
        large = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64) + 1e-12, variables)
        jr.save(tmp_path / "m", model, large)
        _same(jr.load(tmp_path / "m").variables, large)
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"arrays of float64.*jax_enable_x64"):
        jr.load(tmp_path / "m")


@pytest.mark.deep
def test_a_new_process_loads_it(mf, tmp_path):
    jr.save(tmp_path / "m", *mf, IdMap(list("abcde"), list("uvwxyz")))
    code = """
import jaxrec as jr
saved = jr.load("m")
frame = jr.evaluate.recommend(*saved[:2], ["b"], k=3, id_map=saved.id_map)
print(*frame["item"])
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    best = np.argsort(-np.asarray(mf[0].apply(mf[1], jnp.arange(M), method="rows"))[1])[:3]
    assert run.stdout.split() == ["uvwxyz"[i] for i in best]


def test_what_is_loaded_shows_shapes_and_not_numbers(tmp_path):
    model = jr.models.MF(3, 2, dim=4)
    variables = model.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    jr.save(tmp_path / "model", model, variables, IdMap(["a", "b", "c"], [7, 9]))
    shown = repr(jr.load(tmp_path / "model"))
    assert "'user': 'float32[3, 4]'" in shown and "id_map=3 users x 2 items" in shown and len(shown) < 500
