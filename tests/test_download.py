import gzip
import hashlib
import http.server
import io
import threading
import zipfile

import numpy as np
import pytest

from jaxrec.data import datasets

RATINGS = "2::10::5::978300760\n1::10::4::978302109\n2::1193::3::978301968\n"
ARCHIVES = {
    "ml-1m": {
        "ml-1m/ratings.dat": RATINGS,
        "ml-1m/movies.dat": "10::Été (1995)::Action|Drama\n11::Unseen (1999)::War\n1193::Cuckoo, One (1975)::Drama\n",
    },
    "ml-100k": {
        "ml-100k/u.data": RATINGS.replace("::", "\t"),
        "ml-100k/u.item": "10|Été (1995)|01-Jan-1995||http://x|0|1|0|0|0|0|0|0|1|0|0|0|0|0|0|0|0|0|0\n"
        "1193|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n",
    },
}


def zipped(members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text.encode("latin-1"))
    return content.getvalue()


def sha256(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serves a dict of files, of those in `cut` only half, and returns their root address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("JAXREC_DATA", raising=False)
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    servers = []

    def start(files, cut=()):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path[1:]
                if name not in files:
                    return self.send_error(404)
                content = files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if name in cut else content)

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def sources(monkeypatch, name, address, hashes):
    """Points the record of a set to other files."""
    record = datasets.SETS[name]
    files = {file: (f"{address}/{file}", known) for file, known in hashes.items()}
    monkeypatch.setitem(datasets.SETS, name, record._replace(source=record.source._replace(files=files)))


def left(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["ml-1m", "ml-100k"])
def test_movielens_archives(serve, tmp_path, monkeypatch, name):
    content = zipped(ARCHIVES[name])
    address = serve({f"{name}.zip": content})
    sources(monkeypatch, name, address, {f"{name}.zip": sha256(content)})
    dataset = datasets.load(name)
    assert dataset.interactions.to_scipy().toarray().tolist() == [[4, 0], [5, 3]]
    assert dataset.interactions.timestamps.tolist() == [978302109, 978300760, 978301968]
    assert dataset.id_map.users.tolist() == [1, 2] and dataset.id_map.items.tolist() == [10, 1193]
    features = {key: column.tolist() for key, column in dataset.features.items()}
    if name == "ml-1m":
        assert features["title"] == ["Été (1995)", "Cuckoo, One (1975)"] and features["year"] == [1995, 1975]
        assert features["genres"] == ["Action|Drama", "Drama"]
    else:
        assert features["title"] == ["Été (1995)", "unknown"] and features["year"] == [1995, 0]
        assert features["genres"] == ["Action|Drama", "unknown"]
    assert left(tmp_path / "cache") == [f"{name}/data.npz"]


def test_a_set_is_downloaded_once(serve, tmp_path, monkeypatch):
    content = zipped(ARCHIVES["ml-1m"])
    sources(monkeypatch, "ml-1m", serve({"ml-1m.zip": content}), {"ml-1m.zip": sha256(content)})
    first = datasets.load("ml-1m")
    sources(monkeypatch, "ml-1m", serve({}), {"ml-1m.zip": sha256(content)})
    again = datasets.load("ml-1m", minimum=4)
    assert again.interactions.n_pairs == 2 and first.interactions.n_pairs == 3


def test_graph_files_and_original_ids(serve, monkeypatch):
    files = {
        "train.txt": b"0 2 0\n1 1 \n",
        "test.txt": b"0 1\n1\n",
        "user_list.txt": b"org_id remap_id\n343 0\n12 1\n",
        "item_list.txt": b"org_id remap_id\n9 2\n8975 0\n55 1\n",
    }
    hashes = {name: "md5:" + hashlib.md5(content).hexdigest() for name, content in files.items()}
    sources(monkeypatch, "gowalla", serve(files), hashes)
    dataset = datasets.load("gowalla")
    assert dataset.train.to_scipy().toarray().tolist() == [[1, 0, 1], [0, 1, 0]]
    assert dataset.test.to_scipy().toarray().tolist() == [[0, 1, 0], [0, 0, 0]]
    assert dataset.id_map.users.tolist() == [343, 12] and dataset.id_map.items.tolist() == [8975, 55, 9]


def test_a_wrong_hash_is_refused_and_leaves_nothing(serve, tmp_path, monkeypatch):
    content, other = zipped(ARCHIVES["ml-1m"]), zipped({"x": "y"})
    sources(monkeypatch, "ml-1m", serve({"ml-1m.zip": content}), {"ml-1m.zip": sha256(other)})
    with pytest.raises(
        ValueError, match=r"http://.*/ml-1m\.zip: .* does not match.* Try again, or put the set at"
    ) as e:
        datasets.load("ml-1m")
    assert sha256(content)[7:] in str(e.value) and sha256(other)[7:] in str(e.value)
    assert str(tmp_path / "cache" / "ml-1m" / "data.npz") in str(e.value)
    assert left(tmp_path / "cache") == []


@pytest.mark.parametrize("fault", ["cut off", "not found", "no server"])
def test_a_failed_download_leaves_nothing(serve, tmp_path, monkeypatch, fault):
    content = zipped(ARCHIVES["ml-1m"])
    address = serve({} if fault == "not found" else {"ml-1m.zip": content}, cut=["ml-1m.zip"])
    address = "http://127.0.0.1:1" if fault == "no server" else address
    sources(monkeypatch, "ml-1m", address, {"ml-1m.zip": sha256(content)})
    with pytest.raises(OSError, match=r"/ml-1m\.zip cannot be fetched .*; try again, or put the set at"):
        datasets.load("ml-1m")
    assert left(tmp_path / "cache") == []


def test_a_set_that_cannot_be_parsed_leaves_nothing(serve, tmp_path, monkeypatch):
    content = zipped(ARCHIVES["ml-1m"] | {"ml-1m/ratings.dat": "1::2\n"})
    sources(monkeypatch, "ml-1m", serve({"ml-1m.zip": content}), {"ml-1m.zip": sha256(content)})
    with pytest.raises(ValueError, match="line 1: found '1::2', expected user::item::rating::timestamp"):
        datasets.load("ml-1m")
    assert left(tmp_path / "cache") == []


@pytest.mark.parametrize("place", ["data", "cache"])
def test_a_set_is_built_from_the_file_that_its_user_fetched(tmp_path, monkeypatch, place):
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"put its data\.npz, or steam_reviews\.json\.gz of its source there"):
        datasets.load("steam")
    folder = tmp_path / place / "steam"
    folder.mkdir(parents=True)
    with gzip.open(folder / "steam_reviews.json.gz", "wt") as file:
        file.write("{u'username': u'Zoë', u'product_id': u'20'}\n{'username': 'Al', 'product_id': '10'}\n")
    loaded = datasets.load("steam")
    users, items = loaded.interactions.pairs()
    assert loaded.id_map.user_labels(users).tolist() == ["Al", "Zoë"]
    assert loaded.id_map.item_labels(items).tolist() == [10, 20] and loaded.interactions.weights is None
    assert (tmp_path / "cache" / "steam" / "data.npz").exists()
    (folder / "steam_reviews.json.gz").unlink()
    assert datasets.load("steam").interactions.fingerprint() == loaded.interactions.fingerprint()


def test_labels_of_any_text_are_kept_without_fixed_width(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path))
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    folder, names = tmp_path / "steam", ["a", "a\0", "é" * 100_000, "7"]
    folder.mkdir()
    with gzip.open(folder / "steam_reviews.json.gz", "wt") as file:
        file.writelines(f"{ {'username': name, 'product_id': str(2**63 + n)} }\n" for n, name in enumerate(names))
    for _ in range(2):  # read from the file, then from the cache
        found = datasets.load("steam")
        assert found.id_map.users.tolist() == sorted(names) and found.interactions.n_pairs == 4
        assert found.id_map.items.tolist() == [2**63 + n for n in range(4)]
        users, items = found.interactions.pairs()
        labelled = dict(zip(found.id_map.item_labels(items).tolist(), found.id_map.user_labels(users).tolist()))
        assert labelled == {2**63 + n: name for n, name in enumerate(names)}
        (folder / "steam_reviews.json.gz").unlink(missing_ok=True)
    assert (tmp_path / "cache" / "steam" / "data.npz").stat().st_size < 1e5


def test_electronics_has_stars_and_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path))
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "amazon-electronics-5core"
    folder.mkdir()
    with gzip.open(folder / "reviews_Electronics_5.json.gz", "wt") as file:
        file.write('{"reviewerID": "A", "asin": "B0", "overall": 2.0, "unixReviewTime": 7}\n')
        file.write('{"reviewerID": "A", "asin": "B1", "overall": 5.0, "unixReviewTime": 9}\n')
    found = datasets.load("amazon-electronics-5core").interactions
    assert found.weights.tolist() == [2, 5] and found.timestamps.tolist() == [7, 9]
    assert datasets.load("amazon-electronics-5core", minimum=3).interactions.n_pairs == 1


def test_every_source_is_pinned_by_a_full_hash():
    lengths = {"md5": 32, "sha256": 64}
    sources = {name: record.source for name, record in datasets.SETS.items() if record.source}
    known = {name: source for name, source in sources.items() if None not in source.files.values()}
    assert sorted(known) == ["gowalla", "ml-100k", "ml-10m", "ml-1m", "yelp2018"]
    for source in known.values():
        for url, known_hash in source.files.values():
            algorithm, _, digits = known_hash.partition(":")
            assert url.startswith("https://") and len(digits) == lengths[algorithm] and int(digits, 16)


def test_the_hashes_are_those_of_the_data_at_hand(data_root):
    """Adjacency text in source order and lists of ids, written from the archives, have the pinned hashes."""

    def text_of(pairs):
        rows = np.split(pairs[:, 1], np.flatnonzero(np.diff(pairs[:, 0])) + 1)
        return "".join(f"{user} {' '.join(map(str, row.tolist()))}\n" for user, row in enumerate(rows)).encode()

    def list_of(labels):
        return ("org_id remap_id\n" + "".join(f"{label} {at}\n" for at, label in enumerate(labels.tolist()))).encode()

    texts = {("gowalla", "test.txt"): (data_root / "raw" / "gowalla-test.txt").read_bytes()}
    with np.load(data_root / "yelp2018" / "data.npz") as arrays:
        texts |= {("yelp2018", f"{part}.txt"): text_of(arrays[part]) for part in ("train", "test")}
    with np.load(data_root / "gowalla" / "data.npz") as arrays:
        texts |= {("gowalla", f"{kind}_list.txt"): list_of(arrays[f"{kind}_ids"]) for kind in ("user", "item")}
    for (name, file), content in texts.items():
        assert datasets.SETS[name].source.files[file][1] == "md5:" + hashlib.md5(content).hexdigest()
