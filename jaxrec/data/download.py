"""Downloads known data sets, checks their hashes, and keeps them as `<cache>/<name>/data.npz`."""

from __future__ import annotations

import json
import os
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrec._ids import factorised
from jaxrec.data import readers

Arrays = dict[str, np.ndarray]

_GENRES = ["unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"]
_GENRES += ["Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"]


class Source(NamedTuple):
    """Where the files of a set come from.

    Attributes:
        files: maps each file name to (address, hash as "algorithm:digits"), or to None for a file
            that the user must fetch.
        parse: turns the folder of the fetched files into the arrays of `data.npz`.
    """

    files: Mapping[str, tuple[str, str] | None]
    parse: Callable[[pathlib.Path], Arrays]


def fetch(source: Source, folder: pathlib.Path) -> pathlib.Path:
    """Downloads the files of a set, converts them to `folder/data.npz` and deletes the files.

    Args:
        source: the files and their parser; every file must have an address.
        folder: the folder of the set.

    Returns:
        The path of `data.npz`.

    Raises:
        ImportError: if pooch is missing.
        OSError: if an address cannot be reached.
        ValueError: if the hash of a file is wrong.
    """
    pooch = readers.optional("pooch")
    target = folder / "data.npz"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="incoming-") as incoming:
        addresses = {name: address for name, address in source.files.items() if address is not None}
        for name, (url, known_hash) in addresses.items():
            try:
                pooch.retrieve(url, known_hash, fname=name, path=incoming)
            except OSError as error:
                raise OSError(f"{url} cannot be fetched ({error}); try again, or put the set at {target}") from error
            except ValueError as error:
                raise ValueError(f"{url}: {error} Try again, or put the set at {target} yourself") from None
        return keep(source, pathlib.Path(incoming), folder)


def keep(source: Source, files: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Converts the files of a set in the folder `files` to `folder/data.npz`; returns its path."""
    arrays = source.parse(files)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="incoming-") as incoming:
        written = pathlib.Path(incoming) / "data.npz"
        kept: Any = packed(arrays)
        np.savez_compressed(written, **kept)
        os.replace(written, folder / "data.npz")  # atomic: the file is complete or absent
    return folder / "data.npz"


def packed(arrays: Arrays) -> Arrays:
    """Returns the arrays with strings as JSON text, for an npz file without pickles.

    JSON text also avoids NumPy's fixed-width strings.

    >>> packed({"user_ids": np.array(["ann", "bob"], object)})["user_ids.json"].tobytes()
    b'["ann", "bob"]'
    """

    def text(array: np.ndarray) -> np.ndarray:
        return np.frombuffer(json.dumps(array.tolist()).encode(), np.uint8)

    pairs = ((f"{name}.json", text(a)) if a.dtype == object else (name, a) for name, a in arrays.items())
    return dict(pairs)


def unpacked(arrays: Arrays) -> Arrays:
    """Returns the arrays that were given to `packed`."""
    found = {}
    for name, array in arrays.items():
        if name.endswith(".json"):
            entries = json.loads(array.tobytes())
            array = np.empty(len(entries), object)
            array[:] = entries
        found[name.removesuffix(".json")] = array
    return found


def movielens(archive: str, *, ratings: str, movies: str, encoding: str) -> Callable[[pathlib.Path], Arrays]:
    """Returns a parser of a GroupLens zip file: ratings, and titles, years and genres of movies."""

    def parse(folder: pathlib.Path) -> Arrays:
        """Parses the archive in a folder."""
        with zipfile.ZipFile(folder / archive) as opened:
            lines = opened.read(movies).decode(encoding).splitlines()
            opened.extract(ratings, folder)
        described = dict(_movie(line) for line in lines if line)
        return movie_arrays(readers.movielens(folder / ratings), described)

    return parse


def _movie(line: str) -> tuple[int, tuple[str, int, str]]:
    """Returns the id and (title, year, genres) of a line of `movies.dat` ("::") or `u.item` ("|")."""
    if "::" in line:
        item, title, genres = line.split("::")
    else:
        item, title, *_ = fields = line.split("|")
        genres = "|".join(genre for genre, flag in zip(_GENRES, fields[5:]) if flag == "1")
    year = re.search(r"\((\d{4})\)\s*$", title)
    return int(item), (title, int(year[1]) if year else 0, genres)


def pair_arrays(columns: readers.Columns) -> Arrays:
    """Returns the arrays of `data.npz` from columns of labels."""
    user_ids, users = factorised("users", columns.users)
    item_ids, items = factorised("items", columns.items)
    arrays: dict[str, Any] = {"interactions": np.stack([users, items], axis=1).astype(np.int32), "user_ids": user_ids}
    arrays |= {"item_ids": item_ids, "timestamps": columns.timestamps}
    arrays |= {"ratings": None if columns.weights is None else columns.weights.astype(np.float32)}
    return {name: array for name, array in arrays.items() if array is not None}


def movie_arrays(columns: readers.Columns, movies: Mapping[int, tuple[str, int, str]]) -> Arrays:
    """Returns the arrays of `data.npz` from ratings, with titles, years and genres of the movies.

    Args:
        columns: the ratings by label.
        movies: maps an item's label to (title, year, genres).
    """
    arrays = pair_arrays(columns)
    described = (movies.get(item, (f"movie {item}", 0, "")) for item in arrays["item_ids"].tolist())
    titles, years, genres = zip(*described)
    features = {"title": np.array(titles), "year": np.array(years, np.int32), "genres": np.array(genres)}
    return arrays | {f"item_{name}": array for name, array in features.items()}


def reviews(file: str, **fields: Any) -> Callable[[pathlib.Path], Arrays]:
    """Returns a parser of McAuley's review files, one object a line.

    Args:
        file: name of the file in the folder.
        **fields: names of the fields, as in `readers.json_lines`.
    """
    return lambda folder: pair_arrays(readers.json_lines(folder / file, **fields))


def lightgcn(folder: pathlib.Path) -> Arrays:
    """Returns the arrays of `data.npz` from `train.txt`, `test.txt` and lists of original ids.

    The lists, `user_list.txt` and `item_list.txt`, are optional.
    """
    arrays = {}
    for part in ("train", "test"):
        users, items, *_ = readers.adjacency(folder / f"{part}.txt")
        arrays[part] = np.stack([users, items], axis=1).astype(np.int32)
    for kind in ("user", "item"):
        path = folder / f"{kind}_list.txt"
        if path.exists():
            labels, ids, *_ = readers.delimited(path, user="org_id", item="remap_id", separator=" ")
            arrays[f"{kind}_ids"] = labels[np.argsort(ids)]
    return arrays
