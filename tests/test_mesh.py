"""States on a mesh of devices: training and evaluation equal those on one device, and no table is communicated."""

import re
from contextlib import nullcontext
from functools import partial

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support import adam

import jaxrec as jr
from jaxrec._mesh import on_mesh, using
from jaxrec.evaluate import _kernel
from jaxrec.optim import rowwise
from jaxrec.train import loop, mars

M, N, DIM = 48, 32, 8
RNG = np.random.default_rng(0)
PAIRS = np.argwhere(RNG.random((M, N)) < 0.3).T
TRAIN = jr.Interactions.from_pairs(*PAIRS[:, ::2], n_users=M, n_items=N)
TEST = jr.Interactions.from_pairs(*PAIRS[:, 1::2], n_users=M, n_items=N)
SAMPLE = partial(jr.sampling.uniform, n_items=N, n=3)
KINDS = {"Auto": AxisType.Auto, "Explicit": AxisType.Explicit}


def mesh_of(kind="Explicit", shape=(4,), names=("rows",)):
    return jax.make_mesh(shape, names, axis_types=(KINDS[kind],) * len(shape))


def pairwise(model, loss=jr.losses.bpr):
    return model, partial(jr.train.pairwise_objective, model=model, loss=loss, sample=SAMPLE), jr.train.singles


def of_mf(dim=DIM):
    return pairwise(jr.models.MF(M, N, dim=dim, scale=0.3))


def of_mars(dim=DIM):
    model = jr.models.MARS(M, N, dim=dim, n_facets=2)
    return model, partial(mars.objective, model=model, sample=SAMPLE, margin=0.5), jr.train.singles


def of_simplex(dim=DIM):
    model, objective, _ = pairwise(jr.models.SimpleX(M, N, dim=dim))
    return model, objective, partial(jr.train.singles, histories=TRAIN)


def of_valid(dim=DIM):
    model = jr.models.VALID(N, dim=dim, n_interests=2, n_blocks=2, chunk=8)
    return model, partial(jr.train.autoencoders.objective, model=model, total=100), jr.train.by_user


def of_graph():
    return pairwise(jr.models.LightGCN(TRAIN, dim=DIM))


def of_rows():
    model = jr.models.MF(M, N, dim=DIM, scale=0.3)
    objective = partial(jr.train.rows_objective, model=model, loss=jr.losses.mine)
    return model, objective, partial(jr.train.groups, n=4)


SPHERE = mars.optimizer(0.05, theta_learning_rate=0.01)
FITS = {
    "adam": (of_mf, adam(0.05)),
    "rowwise.adam": (of_mf, rowwise.adam(0.05)),
    "lazy_adam": (of_mf, rowwise.lazy_adam(0.05)),
    "MARS": (of_mars, SPHERE),
    "lazy MARS": (of_mars, rowwise.lazy(SPHERE)),
    "SimpleX": (of_simplex, adam(0.05)),
    "VALID": (of_valid, adam(0.05)),
    "LightGCN": (of_graph, adam(0.05)),
    "all items": (of_rows, adam(0.05)),
}


def fitted(make, tx, place=lambda state: state, epochs=2):
    model, objective, examples = make()
    state = place(jr.train.init(jax.random.key(0), model, tx))
    options = {"epochs": epochs, "batch_size": 16, "examples": examples, "progress": False}
    return state, jr.train.fit(state, objective, tx, TRAIN, **options)


def assert_close(found, expected, atol=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
@pytest.mark.parametrize("name", FITS)
def test_a_mesh_trains_what_one_device_does(name, kind):
    _, (alone, log) = fitted(*FITS[name])
    place = partial(jr.train.shard, train=TRAIN, mesh=mesh_of(kind))
    given, (trained, log_of_mesh) = fitted(*FITS[name], place)
    assert_close((trained.variables, trained.opt_state), (alone.variables, alone.opt_state))
    assert_close([r["loss"] for r in log_of_mesh.records], [r["loss"] for r in log.records])
    tables = 0
    for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(given), strict=True):
        assert a.sharding == b.sharding
        rows = a.ndim and a.shape[0] in (M, N)
        assert a.sharding.spec == (PartitionSpec("rows") if rows else PartitionSpec())
        tables += bool(rows)
    assert tables >= 3


@pytest.mark.deep
@pytest.mark.parametrize("name", ["adam", "rowwise.adam", "lazy_adam", "MARS", "lazy MARS", "SimpleX"])
def test_tables_sharded_by_columns(name):
    make, tx = partial(FITS[name][0], dim=32), FITS[name][1]
    mesh = mesh_of()
    _, (alone, _) = fitted(make, tx)
    given, (trained, _) = fitted(make, tx, partial(jr.train.shard, train=TRAIN, mesh=mesh, columns="rows"))
    assert_close((trained.variables, trained.opt_state), (alone.variables, alone.opt_state))
    assert jax.tree.map(lambda x: x.sharding, trained) == jax.tree.map(lambda x: x.sharding, given)
    item = trained.variables["params"]["item"]
    assert item.sharding.spec == PartitionSpec(*[None] * (item.ndim - 1), "rows")
    model = make()[0]
    known = {"histories": TRAIN} if getattr(model, "needs_histories", False) else {}
    ranks = [jr.evaluate.full_ranking(model, s.variables, TRAIN, TEST, ks=5, **known).means for s in (trained, alone)]
    assert ranks[0] == pytest.approx(ranks[1])


@pytest.mark.deep
@pytest.mark.parametrize("name", ["adam", "lazy_adam"])
def test_two_axes(name):
    """Tables are sharded over one axis, and batches over both."""
    mesh = mesh_of("Explicit", (2, 2), ("data", "rows"))
    _, (alone, _) = fitted(*FITS[name])
    _, (trained, _) = fitted(*FITS[name], partial(jr.train.shard, train=TRAIN, mesh=mesh, rows="rows"))
    assert_close((trained.variables, trained.opt_state), (alone.variables, alone.opt_state))
    assert trained.variables["params"]["user"].sharding == NamedSharding(mesh, PartitionSpec("rows"))


@pytest.mark.deep
def test_a_mesh_set_by_set_mesh():
    """`jax.set_mesh` replicates new arrays on the mesh, so that only batches are divided."""
    _, (alone, _) = fitted(*FITS["adam"])
    with jax.set_mesh(mesh_of()):
        _, (trained, _) = fitted(*FITS["adam"])
        report = jr.evaluate.full_ranking(of_mf()[0], trained.variables, TRAIN, TEST, ks=5)
    assert_close(trained.variables, alone.variables)
    assert report.means == pytest.approx(jr.evaluate.full_ranking(of_mf()[0], alone.variables, TRAIN, TEST, ks=5).means)


@pytest.mark.deep
@pytest.mark.parametrize("dim", [8, 32])
def test_rows_that_the_devices_do_not_divide(dim):
    """Their table is sharded by columns if these can be divided, and is replicated with a warning otherwise."""
    model = jr.models.MF(M, N - 1, dim=dim)
    train = TRAIN.select(np.asarray(TRAIN.indices) < N - 1)
    train = jr.Interactions(train.indptr, train.indices, None, None, M, N - 1)
    sample = partial(jr.sampling.uniform, n_items=N - 1, n=3)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    tx = rowwise.adam(0.05)
    state = jr.train.init(jax.random.key(0), model, tx)
    message = r"the 4 devices of the mesh axis 'rows' do not divide {'item': \[31, 8\]} evenly"
    with pytest.warns(UserWarning, match=message) if dim == 8 else nullcontext():
        sharded = jr.train.shard(state, train, mesh_of())
    specs = {name: table.sharding.spec for name, table in sharded.variables["params"].items()}
    assert specs == {"user": PartitionSpec("rows"), "item": PartitionSpec(*(() if dim == 8 else (None, "rows")))}
    fits = [jr.train.fit(x, objective, tx, train, epochs=1, batch_size=18, progress=False)[0] for x in (state, sharded)]
    assert_close(fits[1].variables, fits[0].variables)


@pytest.mark.deep
def test_a_state_is_created_on_the_mesh():
    model, tx, key = of_mf()[0], adam(0.05), jax.random.key(3)
    new = partial(jr.train.init, model=model, tx=tx)
    places = jr.train.shardings(jax.eval_shape(new, key), TRAIN, mesh_of())
    state = jax.jit(new, out_shardings=places)(key)
    assert_close(state.variables, new(key).variables, atol=0)
    assert jax.tree.map(lambda x: x.sharding, state) == places


def test_axes_are_named():
    state = jr.train.init(jax.random.key(0), of_mf()[0], optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"rows=None, but the mesh has the axes \('a', 'b'\)"):
        jr.train.shard(state, TRAIN, mesh_of(shape=(2, 2), names=("a", "b")))
    with pytest.raises(ValueError, match=r"rows='rows' and columns='rows'; give one of them"):
        jr.train.shard(state, TRAIN, mesh_of(), rows="rows", columns="rows")
    with pytest.raises(ValueError, match=r"columns='c', but the mesh has the axes"):
        jr.train.shard(state, TRAIN, mesh_of(), columns="c")
    with pytest.raises(ValueError, match=r"rows='c', but the mesh has the axes \('rows',\)"):
        jr.train.shard(state, TRAIN, mesh_of(), rows="c")


# ---------------------------------------------------------------------- communication


def travelling(compiled):
    """Returns how many numbers each collective operation returns on a device, by operation and shape."""
    found = {}
    for line in compiled.as_text().splitlines():
        match = re.search(r" = (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\S*\(", line)
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", match[1]) if match else ():
            found[f"{match[2]} {kind}[{shape}]"] = int(np.prod([int(n) for n in shape.split(",") if n]))
    return found


def travels(name, rows=None, columns=None):
    """Returns the communication of an epoch whose steps look up 16 users and 64 items in tables of 8192 rows."""
    n, dim = 8192, 32
    make, tx = FITS[name]
    train = jr.Interactions(np.r_[TRAIN.indptr, np.full(n - M, TRAIN.n_pairs)], TRAIN.indices, None, None, n, n)
    model = jr.models.MF(n, n, dim=dim) if make is not of_mars else jr.models.MARS(n, n, dim=dim, n_facets=2)
    _, objective, examples = make()
    bound = {"sample": partial(jr.sampling.uniform, n_items=n, n=3)} if "sample" in objective.keywords else {}
    objective = partial(objective.func, **objective.keywords | bound | {"model": model})
    mesh = mesh_of("Auto")
    state = jr.train.shard(jr.train.init(jax.random.key(0), model, tx), train, mesh, rows=rows, columns=columns)
    epoch = jax.jit(lambda state, data: loop.epoch(state, objective, tx, data, batch_size=16))
    with using(mesh):
        return travelling(epoch.lower(state, on_mesh(examples(train), mesh)).compile())


@pytest.mark.deep
@pytest.mark.parametrize("name", ["adam", "rowwise.adam", "lazy_adam", "MARS", "lazy MARS"])
def test_rows_are_communicated_and_no_table_is(name):
    found = travels(name, rows="rows")
    of_rows = 16 * 3 * 32 * (2 if "MARS" in name else 1)
    assert of_rows <= max(found.values()) < 8192, found


@pytest.mark.deep
@pytest.mark.parametrize("name", ["adam", "rowwise.adam", "lazy_adam", "lazy MARS"])
def test_scores_are_communicated_and_no_row_is_if_tables_are_sharded_by_columns(name):
    found = travels(name, columns="rows")
    assert 16 * 4 <= max(found.values()) <= 16 * 4 * 4, found


@pytest.mark.deep
def test_users_are_communicated_to_the_devices_of_all_items():
    """Scores of all items are computed where the items lie; their gradients are exchanged."""
    found = travels("all items", rows="rows")
    assert any(kind.startswith("all-to-all") for kind in found)
    assert max(n for kind, n in found.items() if not kind.startswith("all-to-all")) < 8192, found


# ---------------------------------------------------------------------- evaluation


def drawn(make):
    model = make()[0]
    return model, jr.train.init(jax.random.key(1), model, optax.sgd(0.1))


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
@pytest.mark.parametrize("make", [of_mf, of_mars, of_simplex, of_valid, of_graph], ids=lambda make: make.__name__)
def test_a_mesh_ranks_what_one_device_does(make, kind):
    model, state = drawn(make)
    known = {"histories": TRAIN} if getattr(model, "needs_histories", False) else {}
    of_mesh = jr.train.shard(state, TRAIN, mesh_of(kind)).variables
    reports, lists = [], []
    for variables in (state.variables, of_mesh):
        reports.append(jr.evaluate.full_ranking(model, variables, TRAIN, TEST, ks=5, auc=True, **known))
        lists.append([jr.evaluate.top_k(model, variables, users, k=4, **known) for users in (range(M), [3], range(5))])
    assert reports[1].means == pytest.approx(reports[0].means, abs=1e-6)
    for found, expected in zip(*lists[::-1]):
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_a_ranking_communicates_vectors_and_lists_and_no_score(axis, monkeypatch):
    n, programs = 4096, []

    def compiled(function, inputs, **static):
        (given,) = inputs
        programs.append(function.lower(*given, **static).compile())
        return [function(*given, **static)]

    monkeypatch.setattr(_kernel, "concurrently", compiled)
    train, test = (jr.Interactions(part.indptr, part.indices, None, None, M, n) for part in (TRAIN, TEST))
    model = jr.models.MF(M, n, dim=32)
    state = jr.train.init(jax.random.key(0), model, optax.sgd(0.1))
    state = jr.train.shard(state, train, mesh_of(), **{axis: "rows"})
    jr.evaluate.full_ranking(model, state.variables, train, test, ks=10, block=M)
    found = travelling(programs[0])
    assert M * 8 <= max(found.values()) <= M * 32 < n, found


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
@pytest.mark.parametrize("make", [of_mf, of_valid], ids=lambda make: make.__name__)
def test_a_mesh_ranks_samples_as_one_device_does(make, kind):
    model, state = drawn(make)
    known = {"histories": TRAIN} if getattr(model, "needs_histories", False) else {}
    users, items = TEST.pairs()
    negatives = (items[:, None] + np.arange(1, 9)) % N
    rank = partial(jr.evaluate.sampled_ranking, model, test_pairs=(users, items), negatives=negatives, ks=5, **known)
    found = rank(variables=jr.train.shard(state, TRAIN, mesh_of(kind)).variables, block=64)
    assert found.means == pytest.approx(rank(variables=state.variables).means)


# ---------------------------------------------------------------------- solvers

SOLVERS = {
    "iALS": partial(jr.solvers.ials.fit, unobserved_weight=0.2),
    "WRMF": partial(jr.solvers.wrmf.fit, alpha=4.0),
    "RG2": jr.solvers.rg2.fit,
    "RG2 with alpha": partial(jr.solvers.rg2.fit, alpha=0.1),
}


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_return_rows_on_the_mesh(name, kind):
    options = {"dim": 3, "regularization": 0.1, "key": jax.random.key(0), "sweeps": 3, "tolerance": None}
    model, alone, log = SOLVERS[name](TRAIN, progress=False, **options)
    _, variables, log_of_mesh = SOLVERS[name](TRAIN, mesh=mesh_of(kind), progress=False, **options)
    assert_close(variables, alone)
    assert_close(log_of_mesh.column("objective")[1], log.column("objective")[1])
    rows = NamedSharding(mesh_of(kind), PartitionSpec("rows"))
    assert all(table.sharding == rows for table in variables["params"].values())
    reports = [jr.evaluate.full_ranking(model, v, TRAIN, TEST, ks=5) for v in (alone, variables)]
    assert reports[1].means == pytest.approx(reports[0].means)


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
def test_new_users_are_folded_in_with_factors_on_a_mesh(kind):
    options = {"dim": 3, "regularization": 0.1, "key": jax.random.key(0), "sweeps": 2, "progress": False}
    own = {jr.solvers.ials: {"unobserved_weight": 0.2}, jr.solvers.rg2: {}}
    for solver, further in own.items():
        _, alone, _ = solver.fit(TRAIN, **further, **options)
        _, variables, _ = solver.fit(TRAIN, mesh=mesh_of(kind), **further, **options)
        new = partial(solver.fold_in, histories=TEST, regularization=0.1, **further)
        assert_close(new(variables), new(alone))
        value = partial(solver.objective, train=TRAIN, regularization=0.1, **further)
        assert_close(value(variables), value(alone))


@pytest.mark.deep
def test_blocks_of_a_stream_are_divided_too():
    make = lambda: (*of_mf()[:2], partial(jr.train.streamed, block=64))  # noqa: E731
    _, (alone, _) = fitted(make, rowwise.adam(0.05))
    given, (trained, _) = fitted(make, rowwise.adam(0.05), partial(jr.train.shard, train=TRAIN, mesh=mesh_of()))
    assert_close((trained.variables, trained.opt_state), (alone.variables, alone.opt_state))
    assert jax.tree.map(lambda x: x.sharding, trained) == jax.tree.map(lambda x: x.sharding, given)


@pytest.mark.deep
def test_variables_elsewhere_are_not_affected_by_a_mesh_that_is_set():
    """`jax.set_mesh` sets an Explicit mesh. Variables are on one device, or on an Auto mesh of other devices."""
    settings = {"regularization": 0.1, "unobserved_weight": 0.1}
    _, variables, _ = jr.solvers.ials.fit(TRAIN, dim=4, sweeps=1, key=jax.random.key(0), progress=False, **settings)
    _, others, _ = jr.solvers.rg2.fit(TRAIN, dim=4, sweeps=1, key=jax.random.key(0), regularization=0.1, progress=False)
    calls = [
        lambda: jr.solvers.ials.fold_in(variables, TEST, **settings),
        lambda: jr.solvers.ials.objective(variables, TRAIN, **settings),
        lambda: jr.solvers.rg2.fold_in(others, TEST, regularization=0.1),
        lambda: jr.solvers.rg2.objective(others, TRAIN, regularization=0.1),
    ]
    expected = [np.asarray(call()) for call in calls]
    with jax.set_mesh(mesh_of()):
        found = [np.asarray(call()) for call in calls]
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    (model, objective, _), tx = of_mf(), adam(0.1)
    state = jr.train.shard(jr.train.init(jax.random.key(0), model, tx), TRAIN, mesh_of("Auto", (2,)))
    with jax.set_mesh(mesh_of()):
        state, log = jr.train.fit(state, objective, tx, TRAIN, epochs=1, batch_size=16, progress=False)
    assert len(log.records) == 1 and state.variables["params"]["user"].sharding.mesh.size == 2
