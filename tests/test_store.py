"""Sets in folders: saving, opening, building from parts, damage, and sets with more pairs than int32 holds."""

import functools
import pathlib
import pickle
import tracemalloc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec as jr
from jaxrec import _pairs, _store, evaluate, sampling
from jaxrec.data import splits
from jaxrec.interactions import DataWarning, Interactions, check_weights
from jaxrec.sparse import spmm

M, N = 9, 7
FILES = ("indptr", "indices", "weights", "timestamps", "shape")


def drawn(seed, n=24, *, weights=True, timestamps=True):
    """Distinct pairs of M users and N items; the last user has none."""
    rng = np.random.default_rng(seed)
    users, items = np.divmod(rng.choice((M - 1) * N, n, replace=False), N)
    return Interactions.from_pairs(
        users,
        items,
        weights=rng.integers(1, 5, n) / 2 if weights else None,
        timestamps=rng.integers(-50, 50, n) if timestamps else None,
        n_users=M,
        n_items=N,
    )


def same(found, expected):
    assert (found.n_users, found.n_items) == (expected.n_users, expected.n_items)
    for name in FILES[:-1]:
        mine, its = getattr(found, name), getattr(expected, name)
        assert (mine is None) == (its is None), name
        if its is not None:
            assert mine.dtype == its.dtype
            np.testing.assert_array_equal(mine, its)


@pytest.fixture
def folder(tmp_path):
    drawn(0).save(tmp_path / "set")
    return tmp_path / "set"


# ---------------------------------------------------------------------- save and open


@pytest.mark.every_case
@pytest.mark.parametrize("columns", [(), ("weights",), ("timestamps",), ("weights", "timestamps")], ids="-".join)
def test_what_is_saved_comes_back_as_it_was(tmp_path, columns):
    expected = drawn(1, weights="weights" in columns, timestamps="timestamps" in columns)
    expected.save(tmp_path / "deep" / "set")
    found = Interactions.open(tmp_path / "deep" / "set")
    same(found, expected)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["set"]
    assert sorted(path.stem for path in (tmp_path / "deep" / "set").iterdir()) == sorted(FILES)


def test_a_set_without_pairs_and_one_on_the_device_come_back(tmp_path):
    nothing = Interactions.from_pairs([], [], weights=[], n_users=3, n_items=2)
    nothing.save(tmp_path / "nothing")
    same(Interactions.open(tmp_path / "nothing"), nothing)
    jax.device_put(drawn(2)).save(tmp_path / "device")
    same(Interactions.open(tmp_path / "device"), drawn(2))


def test_an_opened_set_is_mapped_into_memory_and_cannot_be_written(folder):
    indices = Interactions.open(folder).indices
    assert isinstance(indices.base, np.memmap) and not indices.flags.writeable
    assert type(indices) is np.ndarray


def test_an_opened_set_does_all_that_one_in_memory_does(folder):
    found, expected = Interactions.open(folder), drawn(0)
    keep = np.arange(expected.n_pairs) % 3 > 0
    users, items = np.repeat(np.arange(-1, M + 1), N), np.tile(np.arange(N), M + 2)
    for act in (
        lambda x: x.select(keep),
        lambda x: x.transpose(),
        lambda x: x.union(drawn(0).select(keep[::-1])),
        lambda x: x.take([3, 1, -1, 20]),
        lambda x: jax.device_put(x),
        lambda x: pickle.loads(pickle.dumps(x)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # of the pairs that `union` merges
            same(act(found), act(expected))
    for act in (
        lambda x: x.item_degrees,
        lambda x: x.user_degrees,
        lambda x: x.contains(users, items),
        lambda x: jax.jit(lambda x: x.contains(users, items))(x),
        lambda x: x.to_scipy().toarray(),
        lambda x: x.pairs(),
    ):
        np.testing.assert_array_equal(act(found), act(expected))
    assert found.fingerprint() == expected.fingerprint() and repr(found) == repr(expected)


@pytest.mark.every_case
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "no npy", "objects", "wide", "two axes"])
def test_a_missing_or_damaged_file_is_named(folder, name, damage):
    path = folder / f"{name}.npy"
    content, array = path.read_bytes(), np.load(path)
    if damage == "absent":
        path.unlink()
    elif damage in ("empty", "cut", "no npy"):
        path.write_bytes({"empty": b"", "cut": content[:-4], "no npy": b"PK" + content}[damage])
    else:
        array = {"objects": array.astype(object), "wide": array.astype(np.complex128), "two axes": array[None]}[damage]
        np.save(path, array)
    with pytest.raises(ValueError, match=rf"{name}\.npy (is missing or damaged \(|holds .* instead of ).*save the set"):
        Interactions.open(folder)


@pytest.mark.every_case
@pytest.mark.parametrize(
    "name, change, message",
    [
        ("shape", lambda x: x + 1, "indptr has 10 entries for 10 users"),
        ("shape", lambda x: -x, r"the shape is \[-9, -7\]"),
        ("shape", lambda x: x[:1], r"the shape is \[9\]"),
        ("indptr", lambda x: x[::-1], "indptr does not ascend from 0 to the number of pairs, 24"),
        ("indptr", lambda x: x + 1, "indptr does not ascend"),
        ("indptr", lambda x: x // 2, "indptr does not ascend"),
        ("indices", lambda x: x[:-1], "indptr does not ascend from 0 to the number of pairs, 23"),
        ("weights", lambda x: x[:-1], "weights has 23 entries for 24 pairs"),
        ("timestamps", lambda x: np.append(x, x), "timestamps has 48 entries for 24 pairs"),
    ],
)
def test_files_that_do_not_fit_each_other_are_named(folder, name, change, message):
    np.save(folder / f"{name}.npy", change(np.load(folder / f"{name}.npy")))
    with pytest.raises(ValueError, match=f"set is damaged: {message}.*; save the set again"):
        Interactions.open(folder)


def test_a_path_that_is_not_a_set_is_named(tmp_path, folder):
    with pytest.raises(ValueError, match=r"absent is not a folder; give a folder that Interactions\.save has written"):
        Interactions.open(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"shape.npy is not a folder"):
        Interactions.open(folder / "shape.npy")
    for act in (Interactions.open, drawn(0).save):
        with pytest.raises(TypeError, match="folder=3; give the path of a folder"):
            act(3)
        with pytest.raises(TypeError, match="folder=''; give the path"):
            act("")


def test_a_folder_in_use_is_never_overwritten(tmp_path, folder):
    with pytest.raises(ValueError, match="set exists already; remove it first, or give the path of a new folder"):
        drawn(3).save(folder)
    with pytest.raises(ValueError, match=r"indices.npy exists already"):
        drawn(3).save(folder / "indices.npy")
    same(Interactions.open(folder), drawn(0))
    (tmp_path / "empty").mkdir()
    drawn(3).save(tmp_path / "empty")
    same(Interactions.open(tmp_path / "empty"), drawn(3))


@pytest.mark.every_case
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("file", [0, 2, 4])
def test_a_save_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch, error, file):
    close, closed = _store.Column.close, []

    def stop(column):
        closed.append(column)
        if len(closed) > file:
            column.file.close()
            raise error
        close(column)

    monkeypatch.setattr(_store.Column, "close", stop)
    with pytest.raises(error):
        drawn(0).save(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_leaves_is_not_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(_store.shutil, "rmtree", lambda *args, **how: None)
    monkeypatch.setattr(_store.pathlib.Path, "rename", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        drawn(0).save(tmp_path / "set")
    monkeypatch.undo()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".set.") and left.name.endswith(".partial")
    drawn(0).save(tmp_path / "set")
    same(Interactions.open(tmp_path / "set"), drawn(0))


# ---------------------------------------------------------------------- blocks of pairs


@pytest.mark.every_case
@pytest.mark.parametrize("block", [1, 5, 24])
def test_blocks_do_not_change_results(monkeypatch, tmp_path, block):
    expected, keep = drawn(4), np.random.default_rng(0).random(24) < 0.5
    results = expected.item_degrees, expected.fingerprint(), expected.select(keep)
    monkeypatch.setattr(_pairs, "BLOCK", block)
    np.testing.assert_array_equal(expected.item_degrees, results[0])
    assert expected.fingerprint() == results[1]
    same(expected.select(keep), results[2])
    same(expected.select(~keep).union(expected.select(keep)), expected)
    expected.save(tmp_path / "set")
    same(Interactions.open(tmp_path / "set"), expected)
    wrong = expected.weights.copy()
    wrong[[7, 19, 20]] = -1, np.nan, np.inf
    with pytest.raises(ValueError, match=r"train.weights\[7\] is -1.0 \(3 such\)"):
        check_weights(train=Interactions(expected.indptr, expected.indices, wrong, None, M, N))


@pytest.mark.deep
def test_evaluation_of_some_users_copies_only_their_rows(tmp_path, monkeypatch):
    """The set has 1.6 MB. Evaluation of a few users must take only a small part of that."""
    monkeypatch.setattr(_pairs, "BLOCK", 1 << 12)
    n_users, n_items, each = 8_000, 64, 50
    items = np.argsort(np.random.default_rng(0).random((n_users, n_items)), axis=1)
    first, second = (items[:, :each], items[:, each:])
    for name, part in (("train", first), ("test", second)):
        users = np.repeat(np.arange(n_users), part.shape[1])
        Interactions.from_pairs(users, part.ravel(), n_users=n_users, n_items=n_items).save(tmp_path / name)
    del users, items, first, second
    train, test = (Interactions.open(tmp_path / name) for name in ("train", "test"))
    model = jr.models.MF(n_users, n_items, dim=2)
    variables = model.init(jax.random.key(0), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    sample = np.flatnonzero(splits.sample_users(jax.random.key(1), test, n=20))
    expected = evaluate.full_ranking(model, variables, train, test, users=sample)
    tracemalloc.start()
    report = evaluate.full_ranking(model, variables, train, test, users=sample)
    lists = evaluate.top_k(model, variables, sample, k=20, seen=train)[1]
    in_train = train.contains(np.repeat(sample, 20), lists.ravel())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.3 * train.indices.nbytes
    assert report.means == expected.means and not in_train[: 14 * 20].reshape(-1, 20)[:, :14].any()


# ---------------------------------------------------------------------- parts


@pytest.mark.every_case
@pytest.mark.parametrize("at_once", [1, 7, 1 << 24])
@pytest.mark.parametrize("columns", [[(1, 1), (1, 1), (1, 1)], [(0, 1), (1, 1), (0, 1)], [(0, 1), (0, 0), (0, 1)]])
def test_parts_become_their_union(tmp_path, monkeypatch, at_once, columns):
    monkeypatch.setattr(_store, "AT_ONCE", at_once)
    parts = [drawn(seed, weights=w, timestamps=t) for seed, (w, t) in enumerate(columns)]
    with pytest.warns(DataWarning, match="merged"):
        expected = parts[0].union(*parts[1:])
    repeats = 3 * 24 - expected.n_pairs
    with pytest.warns(DataWarning, match=f"merged {repeats} duplicate pairs of the parts") as record:
        found = Interactions.from_parts(iter(parts), tmp_path / "set")
    assert len(record) == 1 and record[0].filename == __file__
    same(found, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(list((tmp_path / "set").iterdir())) == 5


def test_parts_without_common_pairs_need_no_warning(tmp_path):
    whole, keep = drawn(5), np.arange(24) < 10
    same(Interactions.from_parts([whole.select(~keep), whole.select(keep)], tmp_path / "two"), whole)
    same(Interactions.from_parts([whole], tmp_path / "one"), whole)


@pytest.mark.every_case
@pytest.mark.parametrize(
    "parts, error, message",
    [
        ([], ValueError, "parts is empty; give at least one Interactions"),
        ([drawn(0), 3], TypeError, r"parts\[1\] is a int; give Interactions"),
        ([drawn(0), Interactions.from_pairs([0], [0])], ValueError, "parts have 1 users x 1 items and 9 x 7"),
    ],
)
def test_wrong_parts_leave_no_folder(tmp_path, parts, error, message):
    with pytest.raises(error, match=message):
        Interactions.from_parts(parts, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_parts_are_read_one_by_one(tmp_path):
    made = []

    def parts():
        for start in range(0, 24, 8):
            saved = [path for path in tmp_path.rglob("indices.npy")]
            made.append(len(saved))
            yield drawn(6).select((np.arange(24) >= start) & (np.arange(24) < start + 8))

    same(Interactions.from_parts(parts(), tmp_path / "set"), drawn(6))
    assert made == [0, 1, 2]


# ---------------------------------------------------------------------- more pairs than int32 counts


@pytest.fixture
def few(monkeypatch):
    """Treats row offsets above 10 as if they did not fit int32."""
    monkeypatch.setattr(_pairs, "MOST", 10)


def test_row_offsets_are_int64_only_if_they_exceed_int32():
    assert _pairs.offsets(np.array([0, 2**31 - 1])).dtype == np.int32
    large = _pairs.offsets(np.array([0, 2**31]))
    assert large.dtype == np.int64 and large.tolist() == [0, 2**31]


def test_a_set_that_int32_cannot_count_has_int64_offsets_on_the_host(few, tmp_path):
    large, keep = drawn(7), np.arange(24) < 10
    assert large.indptr.dtype == np.int64
    assert large.select(keep).indptr.dtype == np.int32 and large.select(np.arange(24) < 11).indptr.dtype == np.int64
    assert large.take(np.arange(M)).indptr.dtype == np.int64 and large.take([0]).indptr.dtype == np.int32
    assert large.transpose().indptr.dtype == np.int64
    large.save(tmp_path / "set")
    same(Interactions.open(tmp_path / "set"), large)
    same(Interactions.from_parts([large.select(keep), large.select(~keep)], tmp_path / "parts"), large)
    np.testing.assert_array_equal(large.transpose().to_scipy().toarray(), large.to_scipy().toarray().T)


def test_a_set_with_int64_offsets_has_the_same_pairs(few, monkeypatch):
    large = drawn(8)
    monkeypatch.undo()
    small = drawn(8)
    assert small.indptr.dtype == np.int32
    np.testing.assert_array_equal(large.pairs(), small.pairs())
    users, items = np.repeat(np.arange(-1, M + 1), N), np.tile(np.arange(N), M + 2)
    np.testing.assert_array_equal(large.contains(users, items), small.contains(users, items))
    np.testing.assert_array_equal(large.user_degrees, small.user_degrees)
    order = functools.partial(splits.random_order, key=jax.random.key(0))
    for mine, its in zip(splits.ratio(large, order=order), splits.ratio(small, order=order)):
        np.testing.assert_array_equal(mine.pairs(), its.pairs())


def test_the_device_refuses_int64_offsets_and_says_what_to_do(few):
    large, users = drawn(9), jnp.arange(3)
    whole = jax.device_put(large)
    for act in (
        lambda: large.rows(users, length=2),
        lambda: large.contains(users, users),
        lambda: jax.jit(lambda x: x.contains(users, users))(whole),
        lambda: sampling.reject_seen(
            jax.random.key(0), users, sample=functools.partial(sampling.uniform, n_items=N), seen=large
        ),
        lambda: sampling.explorative(
            jax.random.key(0), (3,), train=large, table=sampling.popularity_table(large.transpose())
        ),
        lambda: spmm(large, None, jnp.ones((N, 2))),
        lambda: jr.train.singles(large),
        lambda: jr.train.groups(large, n=2),
        lambda: jr.train.by_user(large),
    ):
        with pytest.raises(ValueError, match=r"24 pairs are more than the 10 that int32 can count.*streamed, or take"):
            act()


def test_a_set_with_int64_offsets_can_be_streamed_and_ranked(few):
    large = drawn(10)
    blocks = list(jr.train.streamed(large, block=9, chunk=2).blocks(jax.random.key(0), np.int32(0)))
    pairs = [np.concatenate([getattr(block, name)[: block.real] for block in blocks]) for name in ("users", "items")]
    order = np.lexsort(pairs[::-1])
    np.testing.assert_array_equal([ids[order] for ids in pairs], large.pairs())
    scores = evaluate.scorer(lambda table, users: table[users])
    lists = evaluate.top_k(scores, jnp.ones((M, N)), np.arange(M), k=2, seen=large)
    assert lists[1].shape == (M, 2)


def test_padding_is_not_saved(tmp_path):
    whole = jr.Interactions.from_pairs([0, 0, 2], [1, 3, 0])
    padded = whole.take(np.arange(3), capacity=8)
    padded.save(tmp_path / "a")
    assert jr.Interactions.open(tmp_path / "a").fingerprint() == whole.fingerprint()
    union = jr.Interactions.from_parts([padded, whole.select(np.zeros(3, bool))], tmp_path / "b")
    assert union.fingerprint() == whole.fingerprint()
    np.testing.assert_array_equal(padded.item_degrees, whole.item_degrees)
    np.testing.assert_array_equal(padded.transpose().pairs(), whole.transpose().pairs())


def test_the_current_folder_is_kept_and_a_link_is_followed(tmp_path, monkeypatch):
    whole = jr.Interactions.from_pairs([0, 0, 2], [1, 3, 0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ValueError, match="is the current folder"):
        whole.save(".")
    monkeypatch.chdir(tmp_path)
    whole.save("link")
    assert jr.Interactions.open("link").fingerprint() == whole.fingerprint()


def test_parts_are_read_one_at_a_time(tmp_path):
    """A process may have few files open."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    part = jr.Interactions.from_pairs([0, 0, 2], [1, 3, 0], weights=[1, 2, 3], timestamps=[1, 2, 3])
    many = len(list(pathlib.Path("/proc/self/fd").iterdir())) if pathlib.Path("/proc/self/fd").exists() else 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (many + 40, limits[1]))
    try:
        with pytest.warns(DataWarning, match="merged 87 duplicate"):
            union = jr.Interactions.from_parts((part for _ in range(30)), tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    np.testing.assert_array_equal(union.weights, [30, 60, 90])
