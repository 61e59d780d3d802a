"""Exported models: the same scores where jaxrec is not installed."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxrec as jr
from jaxrec.interactions import Interactions

pytest.importorskip("flatbuffers")

HISTORIES = [[0, 2, 4, 5, 8], [3], [], [1, 2], [0, 1, 7, 8], [6, 7, 8]]
USERS, ITEMS = zip(*((user, item) for user, items in enumerate(HISTORIES) for item in items))
TRAIN = Interactions.from_pairs(USERS, ITEMS, n_users=6, n_items=9)
M, N, L = 6, 9, 7
# Rows of histories in any order, with repetitions, and ids outside the items as padding.
ROWS = np.array([[8, 5, 4, 2, 0, -1, 0], [-1, -1, 3, 3, 3, 9, 99], [-1] * 7, [2, 1, *[-1] * 5],
                 [7, 0, -1, 8, 1, 1, 8], [8, 7, 6, -1, -1, -1, -1]], np.int32)  # fmt: skip
SIZES = {"n_users": M, "n_items": N}
ZERO = jnp.zeros(1, jnp.int32)
models = jr.models


def by_score(params, users, items):
    return (params["user"][users] * params["item"][items]).sum(-1)


def drawn_tables(key):
    return {"user": jax.random.normal(key, (M, 3)), "item": jax.random.normal(key, (N, 3))}


OF_USERS = {
    "MF": models.MF(M, N, dim=4, score=models.cosine),
    "LightGCN": models.LightGCN(TRAIN, dim=4),
    "XSimGCL": models.XSimGCL(TRAIN, dim=4),
    "LRML": models.LRML(M, N, dim=4),
    "DPCML": models.DPCML(M, N, dim=4, n_vectors=2),
    "NeuMF": models.NeuMF(M, N),
    "TransCF": models.TransCF(TRAIN, dim=4),
    "MARS": models.MARS(M, N, dim=4),
    "functions": models.from_functions(drawn_tables, score=by_score, **SIZES),
}
OF_HISTORIES = {
    "EASE": models.EASE(N),
    "SpectralFilter": models.SpectralFilter(N, degree=2, dim=3),
    "VALID": models.VALID(N, n_interests=2, n_blocks=1, dim=4),
    "MacridVAE": models.MacridVAE(N, n_interests=2, dim=4),
    "MultVAE": models.MultVAE(N),
}


def drawn(model):
    """Variables with random parameters, so that scores differ."""
    variables = jax.jit(model.init)(jax.random.key(0), ZERO, ZERO)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), variables["params"])
    return {**variables, "params": params}


def loaded(model, variables, **options):
    return export.deserialize(models.export(model, variables, **options))


@pytest.mark.parametrize("name", OF_USERS)
def test_users_have_the_scores_of_the_model(name):
    model, variables = OF_USERS[name], drawn(OF_USERS[name])
    call = loaded(model, variables).call
    expected = model.apply(variables, np.arange(M), method="rows")
    for users in ([4, 0, 0], [3]):
        np.testing.assert_allclose(call(np.array(users, np.int32)), expected[np.array(users)], rtol=1e-5, atol=1e-6)
    unknown = np.isnan(call(np.array([-1, 2, M], np.int32)))
    assert unknown.all(1).tolist() == [True, False, True] and unknown.any(1).tolist() == [True, False, True]


@pytest.mark.parametrize("name", OF_HISTORIES)
def test_histories_in_any_order_have_the_scores_of_the_model(name):
    model, variables = OF_HISTORIES[name], drawn(OF_HISTORIES[name])
    expected = model.apply(variables, None, histories=TRAIN, method="rows")
    found = loaded(model, variables, length=L).call(ROWS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.deep
def test_users_and_their_histories_have_the_scores_of_the_model():
    model = models.SimpleX(M, N, dim=4, pool=models.UserAttention(), length=4)
    variables, users = drawn(model), np.array([5, 0, M], np.int32)
    expected = model.apply(variables, users[:2], histories=TRAIN.take(users[:2]), method="rows")
    found = loaded(model, variables, length=L).call(users, ROWS[[5, 0, 1]])
    np.testing.assert_allclose(found[:2], expected, rtol=2e-5, atol=2e-6)
    assert np.isnan(found[2]).all()


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["users", "histories"])
def test_numbers_of_64_bits_are_kept(kind, float64):
    model = {"users": OF_USERS["NeuMF"], "histories": OF_HISTORIES["EASE"]}[kind]
    variables = drawn(model)
    if kind == "users":
        found = loaded(model, variables).call(np.arange(M, dtype=np.int32))
        expected = model.apply(variables, np.arange(M), method="rows")
    else:
        found = loaded(model, variables, length=L).call(ROWS)
        expected = model.apply(variables, None, histories=TRAIN, method="rows")
    assert found.dtype == expected.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.deep
def test_the_file_needs_only_jax(tmp_path):
    model, variables = OF_USERS["MF"], drawn(OF_USERS["MF"])
    (tmp_path / "model.bin").write_bytes(models.export(model, variables, platforms=("cpu", "cuda")))
    code = """
import sys, numpy, jax
from jax import export
found = export.deserialize(open("model.bin", "rb").read())
print(*found.platforms, "jaxrec" in sys.modules, "flax" in sys.modules)
numpy.save("scores.npy", jax.jit(found.call)(numpy.array([5, 1], numpy.int32)))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["cpu", "cuda", "False", "False"]
    expected = model.apply(variables, np.array([5, 1]), method="rows")
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected, rtol=1e-5, atol=1e-6)


def test_a_graph_is_propagated_once_and_not_stored():
    """The program has only the two tables and a product, like that of matrix factorisation."""
    model = OF_USERS["LightGCN"]
    tables = model.apply(variables := drawn(model), method="vectors")
    found = [
        loaded(*given).mlir_module()
        for given in ((model, variables), (models.MF(M, N, dim=4), {"params": dict(zip(("user", "item"), tables))}))
    ]
    assert found[0] == found[1]


WRONG = {
    "a class": (lambda: models.export(models.MF, {}), TypeError, "model is the class MF"),
    "no model": (lambda: models.export(max, {}), TypeError, "model is a builtin_function"),
    "a state": (lambda: models.export(OF_USERS["MF"], jr.train.State({}, 0, 0, 0)), TypeError, "pass its .variables"),
    "gpu": (lambda: models.export(OF_USERS["MF"], {}, platforms=("gpu",)), ValueError, "platforms=.'gpu',.; give"),
    "a string": (lambda: models.export(OF_USERS["MF"], {}, platforms="cpu"), ValueError, "platforms='cpu'; give"),
    "no length": (lambda: models.export(OF_HISTORIES["EASE"], {}), ValueError, "EASE knows users by .* give length"),
    "length": (lambda: models.export(OF_USERS["MF"], {}, length=3), ValueError, "length=3, but MF does not"),
    "fractions": (lambda: models.export(OF_HISTORIES["EASE"], {}, length=2.5), ValueError, "length=2.5; give"),
    "no n_items": (
        lambda: models.export(
            models.from_functions(drawn_tables, score=by_score, rows=by_score, needs_histories=True), {}, length=3
        ),
        ValueError,
        "Functions has no n_items; give",
    ),
}


@pytest.mark.every_case
@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_to_do(name):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_a_model_that_needs_the_number_of_users_says_so():
    model = models.from_functions(drawn_tables, score=by_score, rows=lambda params, users: params["user"][: len(users)])
    with pytest.raises(TypeError) as raised:
        models.export(model, drawn(model))
    assert "symbolic number of users" in "".join(raised.value.__notes__)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ModuleNotFoundError, match=r"jaxrec\[export\]"):
        models.export(OF_USERS["MF"], {})
