import datetime
import gzip
import re
import sys
import time
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxrec import interactions
from jaxrec.data import _text, readers

few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
whole = st.integers(-(2**62), 2**62)
word = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
number = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))
rows_of = st.lists(st.tuples(st.one_of(whole, word), word, number, st.integers(0, 2**31 - 1)), min_size=1, max_size=20)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def columns_of(rows):
    users, items, weights, timestamps = zip(*rows)
    return [*map(str, users)], [*map(str, items)], [*weights], [*timestamps]


def same(columns, rows):
    users, items, weights, timestamps = columns_of(rows)
    assert [*map(str, columns.users.tolist())] == users
    assert [*map(str, columns.items.tolist())] == items
    np.testing.assert_allclose(columns.weights, weights)
    assert columns.timestamps.dtype == np.int64 and columns.timestamps.tolist() == timestamps


# ---------------------------------------------------------------------- round trips


@pytest.mark.parametrize("separator", ["::", "\t"])
@few
@given(rows=rows_of)
def test_movielens_gives_back_what_was_written(tmp_path, separator, rows):
    path = write(tmp_path / "ratings", "".join(separator.join(map(str, row)) + "\n" for row in rows))
    same(readers.movielens(path), rows)


@few
@given(rows=rows_of)
def test_movielens_csv_gives_back_what_was_written(tmp_path, rows):
    text = "userId,movieId,rating,timestamp\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    same(readers.movielens(write(tmp_path / "ratings.csv", text)), rows)


@few
@given(rows=rows_of)
def test_recbole_gives_back_what_was_written(tmp_path, rows):
    header = "item_id:token\tuser_id:token\tlabel:float\ttimestamp:float\trating:float\n"
    text = header + "".join(f"{i}\t{u}\t0\t{t}\t{w}\n" for u, i, w, t in rows)
    same(readers.recbole(write(tmp_path / "x.inter", text)), rows)


@few
@given(rows=rows_of, separator=st.sampled_from([",", "\t", ";", "::", " "]), quoted=st.booleans())
def test_delimited_gives_back_what_was_written(tmp_path, rows, separator, quoted):
    mark = '"' if quoted and separator == "," else ""
    text = separator.join(["when", "who", "stars", "what"]) + "\n"
    text += "".join(separator.join(f"{mark}{field}{mark}" for field in (t, u, w, i)) + "\n" for u, i, w, t in rows)
    path = write(tmp_path / "x", text)
    same(readers.delimited(path, user="who", item="what", weight="stars", timestamp="when", separator=separator), rows)
    bare = write(tmp_path / "y", text.partition("\n")[2])
    same(readers.delimited(bare, user=1, item=3, weight=2, timestamp=0, separator=separator, header=False), rows)


@few
@given(rows=rows_of)
def test_parquet_gives_back_what_was_written(tmp_path, rows):
    frame = pd.DataFrame(dict(zip(("u", "i", "w", "t"), columns_of(rows))))
    frame.to_parquet(tmp_path / "x.parquet")
    named = dict(user="u", item="i", weight="w", timestamp="t")
    same(readers.parquet(tmp_path / "x.parquet", **named), rows)
    same(readers.dataframe(frame, **named), rows)


@few
@given(rows=st.dictionaries(whole, st.lists(whole, max_size=5), min_size=1).filter(lambda rows: any(rows.values())))
def test_adjacency_gives_back_what_was_written(tmp_path, rows):
    path = write(tmp_path / "train.txt", "".join(" ".join(map(str, [u, *items])) + " \n" for u, items in rows.items()))
    columns = readers.adjacency(path)
    pairs = [(user, item) for user, items in rows.items() for item in items]
    assert list(zip(columns.users.tolist(), columns.items.tolist())) == pairs
    assert columns.users.dtype == columns.items.dtype == np.int64
    assert columns.weights is None and columns.timestamps is None


# ---------------------------------------------------------------------- labels, forms of files


def test_labels_are_integers_only_if_all_are_written_as_python_writes_integers(tmp_path):
    path = write(tmp_path / "r.dat", "1::007::5::1\n2::7::4::2\n")
    columns = readers.movielens(path)
    assert columns.users.dtype == np.int64 and columns.users.tolist() == [1, 2]
    assert columns.items.tolist() == ["007", "7"]
    huge = readers.movielens(write(tmp_path / "h.dat", f"{2**70}::1::5::1\n1::1::4::2\n"))
    assert huge.users.tolist() == [str(2**70), "1"]


def test_blank_lines_spaces_byte_order_mark_carriage_returns_and_gzip(tmp_path):
    text = "\ufeffuserId,movieId,rating,timestamp\r\n\r\n 1 , 5,3,100.75\r\n2,6,4.5,200\r\n\r\n"
    with gzip.open(tmp_path / "ratings.csv.gz", "wt", encoding="utf-8", newline="") as file:
        file.write(text)
    columns = readers.movielens(tmp_path / "ratings.csv.gz")
    assert [column.tolist() for column in columns] == [[1, 2], [5, 6], [3.0, 4.5], [100, 200]]
    by_suffix = readers.delimited(tmp_path / "ratings.csv.gz", user="userId", item="movieId")
    assert by_suffix.users.tolist() == [1, 2] and by_suffix.weights is None


def test_chunks_join_and_count_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(_text, "BLOCK", 9)
    text = "".join(f"{n}::{n}::1::{n}\n" for n in range(7))
    assert readers.movielens(write(tmp_path / "r.dat", text)).users.tolist() == list(range(7))
    with pytest.raises(ValueError, match=r"r2\.dat, line 9: found '8::9'"):
        readers.movielens(write(tmp_path / "r2.dat", text + "\n8::9\n"))


def test_json_lines_take_json_and_python(tmp_path):
    lines = [
        '{"reviewerID": "A1", "asin": "0528881469", "overall": 5.0, "unixReviewTime": 1370131200, "reviewText": "x"}',
        "",
        "{u'reviewerID': u'B', u'asin': 'B2', u'overall': 3, u'unixReviewTime': 10, u'text': 'a \"quote\", true'}",
    ]
    path = write(tmp_path / "r.json", "\n".join(lines))
    fields = {"user": "reviewerID", "item": "asin", "weight": "overall", "timestamp": "unixReviewTime"}
    columns = readers.json_lines(path, **fields)
    assert [column.tolist() for column in columns] == [["A1", "B"], ["0528881469", "B2"], [5, 3], [1370131200, 10]]
    assert readers.json_lines(path, **fields, minimum=4).users.tolist() == ["A1"]
    assert readers.json_lines(path, user="reviewerID", item="asin").weights is None


@pytest.mark.parametrize("line", ["{'u': 1", "[1, 2]", '{"u": 1}', "__import__('os')", "{'u': 1, 'i': f()}"])
def test_json_lines_name_the_malformed_line(tmp_path, line):
    path = write(tmp_path / "r.json", '{"u": 1, "i": 2}\n' + line + "\n")
    message = rf"r\.json, line 2: found .*{re.escape(line[:8])}.*, expected an object with the fields u, i"
    with pytest.raises(ValueError, match=message):
        readers.json_lines(path, user="u", item="i")


def test_readers_feed_from_labels(tmp_path):
    path = write(tmp_path / "r.dat", "5::a::3::10\n5::b::4::20\n9::a::5::30\n")
    matrix, id_map = interactions.Interactions.from_labels(*readers.movielens(path))
    assert matrix.to_scipy().toarray().tolist() == [[3, 4], [5, 0]]
    assert id_map.users.tolist() == [5, 9] and id_map.items.tolist() == ["a", "b"]
    matrix, _ = interactions.Interactions.from_labels(*readers.movielens(path, minimum=4))
    assert matrix.weights is None and matrix.timestamps.tolist() == [20, 30]


def test_dataframe_takes_datetimes_categories_and_whole_floats():
    days = pd.to_datetime(["1970-01-01 00:00:05", "1970-01-02 00:00:00"])
    frame = pd.DataFrame({"u": [1.0, 2.0], "i": pd.Categorical(["x", "y"]), "t": days, "z": days.tz_localize("UTC")})
    columns = readers.dataframe(frame, user="u", item="i", timestamp="t")
    assert columns.users.dtype == np.int64 and columns.users.tolist() == [1, 2]
    assert columns.items.tolist() == ["x", "y"] and columns.timestamps.tolist() == [5, 86400]
    assert readers.dataframe(frame, user="u", item="i", timestamp="z").timestamps.tolist() == [5, 86400]


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x is empty; there must be one interaction"),
        ("\n \n", "x is empty"),
        ("userId,movieId,rating,timestamp\n", "x holds no rows"),
        ("user,item\n1,2\n", "x, line 1: found 'user,item', expected user::item::rating::timestamp"),
        ("1::2::3\n", "x, line 1: found '1::2::3', expected user::item::rating::timestamp"),
        ("1::2::3::4\n1::2::3::4::5\n", "x, line 2: found '1::2::3::4::5', expected user::item"),
        ("1\t2\t3\t4\n\t2\t3\t4\n", r"x, line 2: found '\\t2\\t3\\t4', expected a label of the user"),
        ("1::2::3::4\n1::::3::4\n", "x, line 2: found '1::::3::4', expected a label of the item"),
        ("1::2::3::4\n1::2::good::4\n", "x, line 2: found '1::2::good::4', expected a finite number, not 'good'"),
        ("1::2::nan::4\n", "x, line 1: .* expected a finite number, not 'nan'"),
        ("1::2::3::2020-01-01\n", "x, line 1: .* not '2020-01-01'"),
        ('userId,movieId,rating,timestamp\n"1,2,3,4\n', "x, line 2: found '\"1,2,3,4"),
    ],
)
def test_movielens_names_the_malformed_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        readers.movielens(write(tmp_path / "x", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id\titem_id\n1\t2\n", r"line 1: found 'user_id\\titem_id', expected a typed header"),
        ("uid:token\titem_id:token\n1\t2\n", "line 1: .* expected a typed header .*other names, use readers.delimited"),
        ("user_id:token\titem_id:token\n1\t2\n1 2\n", "line 3: found '1 2', expected 2 fields between tabs"),
    ],
)
def test_recbole_names_the_malformed_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        readers.recbole(write(tmp_path / "x.inter", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1 2\n1 x\n", "line 2: found '1 x', expected integers: user item item"),
        ("0 1.5\n", "line 1: found '0 1.5'"),
        (f"0 {2**70}\n", "line 1: found"),
        ("0\n1\n\n", "holds no pairs"),
    ],
)
def test_adjacency_names_the_malformed_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        readers.adjacency(write(tmp_path / "x.txt", text))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(user="who", item="i"), r"user='who' is not a column of .*x\.csv; it has \['u', 'i', 'w'\]"),
        (dict(user="u", item="i", weight="stars"), "weight='stars' is not a column"),
        (dict(user=0, item="i"), "user=0 is not a column"),
        (dict(user=0, item=3, header=False), r"item=3 is not a column .* \[0, 1, 2\]; without a header"),
        (dict(user="u", item="i", minimum=2), "minimum=2 needs weights, and .*x.csv has none"),
        (dict(user="u", item="i", weight="w", minimum=9), "minimum=9 keeps none of 2 rows; .*x.csv has weights 3 to 5"),
    ],
)
def test_delimited_refuses(tmp_path, options, message):
    path = write(tmp_path / "x.csv", "u,i,w\n1,2,3\n4,5,5\n")
    with pytest.raises(ValueError, match=message):
        readers.delimited(path, **options)


def test_a_separator_is_needed_if_the_suffix_does_not_tell_it(tmp_path):
    path = write(tmp_path / "x.dat", "u;i\n1;2\n")
    with pytest.raises(ValueError, match=r"the suffix '\.dat' of .* implies no separator"):
        readers.delimited(path, user="u", item="i")
    assert readers.delimited(path, user="u", item="i", separator=";").items.tolist() == [2]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, dict(user="nobody"), "user='nobody' is not a column of"),
        ({"u": [1, None]}, {}, r"u\[1\] is missing \(1 such rows\)"),
        ({"i": ["a", None]}, {}, r"i\[1\] is missing"),
        ({"w": ["good", "bad"]}, {}, "w does not hold numbers"),
        ({"t": pd.to_datetime(["2020-01-01", None])}, {}, r"t\[1\] is missing"),
        ({}, dict(minimum=6), "minimum=6 keeps none of 2 rows; .* has weights 3 to 5"),
    ],
)
def test_dataframe_refuses(tmp_path, change, options, message):
    frame = pd.DataFrame({"u": [1, 2], "i": ["a", "b"], "w": [3.0, 5.0], "t": [1, 2]} | change)
    named = dict(user="u", item="i", weight="w", timestamp="t") | options
    with pytest.raises(ValueError, match=message):
        readers.dataframe(frame, **named)
    frame.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=message):
        readers.parquet(tmp_path / "x.parquet", **named)


def test_files_that_are_not_text_are_refused(tmp_path):
    (tmp_path / "x.dat").write_bytes(b"1::2::3::4\n\xff\xfe::2::3::4\n")
    with pytest.raises(ValueError, match=r"x\.dat is cut off or not UTF-8"):
        readers.movielens(tmp_path / "x.dat")
    packed = gzip.compress(b"1::2::3::4\n" * 1000)
    (tmp_path / "x.dat.gz").write_bytes(packed[:-20])
    with pytest.raises(ValueError, match=r"x\.dat\.gz is cut off"):
        readers.movielens(tmp_path / "x.dat.gz")
    with pytest.raises(FileNotFoundError):
        readers.movielens(tmp_path / "nowhere.dat")


def test_a_missing_extra_says_what_to_install(monkeypatch, tmp_path):
    text, lines = write(tmp_path / "x.dat", "1::2::3::4\n"), write(tmp_path / "x.json", '{"u": 1, "i": 2}\n')
    for module in ("pyarrow", "pyarrow.csv", "pyarrow.json", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    for read in (
        lambda: readers.movielens(text),
        lambda: readers.json_lines(lines, user="u", item="i"),
        lambda: readers.parquet(text, user="u", item="i"),
    ):
        with pytest.raises(ImportError, match=r'pip install "jaxrec\[data\]"'):
            read()


def test_minimum_keeps_the_boundary_and_drops_the_weights():
    columns = readers.Columns(np.array([1, 2, 3]), np.array([4, 5, 6]), np.array([3.0, 4.0, 5.0]), np.array([7, 8, 9]))
    kept = readers.at_least(columns, 4)
    assert kept.users.tolist() == [2, 3] and kept.items.tolist() == [5, 6]
    assert kept.weights is None and kept.timestamps.tolist() == [8, 9]
    assert readers.at_least(columns, None) is columns


# ---------------------------------------------------------------------- real files


def test_movielens_100k_in_the_form_of_recbole(data_root):
    columns = readers.recbole(data_root / "raw" / "ml-100k.inter")
    assert len(columns.users) == 100_000
    assert (columns.users[0], columns.items[0], columns.weights[0], columns.timestamps[0]) == (196, 242, 3, 881250949)
    assert len(np.unique(columns.users)) == 943 and len(np.unique(columns.items)) == 1682
    assert len(readers.recbole(data_root / "raw" / "ml-100k.inter", minimum=4).users) == 55_375


def test_gowalla_in_the_form_of_lightgcn(data_root):
    columns = readers.adjacency(data_root / "raw" / "gowalla-test.txt")
    assert len(columns.users) == 217_242 and len(np.unique(columns.users)) == 29_858
    assert (columns.users[0], columns.items[0], columns.items[-1]) == (0, 7580, 5317)


def test_ciao_as_delimited_text(data_root):
    columns = readers.delimited(data_root / "raw" / "ciao-LOOTrain.dat", user="uid", item="iid", separator="\t")
    assert len(columns.users) == 133_476 and columns.users.max() == 6759
    negatives = readers.adjacency(data_root / "raw" / "delicious-LOONegatives.dat")
    assert len(negatives.users) == 105_000 and np.bincount(negatives.users).tolist() == [100] * 1050


# ---------------------------------------------------------------------- labels of every kind


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " ", "¦"])
def test_quotes_are_taken_off_between_any_separators_of_one_character(tmp_path, separator):
    text = separator.join(['"u"', '"i"', "w"]) + "\n" + separator.join(['"7"', f'"a{separator}""b"""', "1"]) + "\n"
    columns = readers.delimited(write(tmp_path / "x", text), user="u", item="i", weight="w", separator=separator)
    assert [column.tolist() for column in columns[:3]] == [[7], [f'a{separator}"b"'], [1]]
    text = text.replace('""b""', "b")
    columns = readers.delimited(write(tmp_path / "x", text), user="u", item="i", separator=separator)
    assert columns.items.tolist() == [f"a{separator}b"]


def test_quotes_inside_a_field_and_between_longer_separators_are_text(tmp_path):
    path = write(tmp_path / "x", '5" pipe\tx\na\t"y\n')
    with pytest.raises(ValueError, match=r"line 2: found 'a\\t\"y', .*readers.delimited with quoted=False"):
        readers.delimited(path, user=0, item=1, separator="\t", header=False)
    columns = readers.delimited(path, user=0, item=1, separator="\t", header=False, quoted=False)
    assert columns.users.tolist() == ['5" pipe', "a"] and columns.items.tolist() == ["x", '"y']
    assert readers.movielens(write(tmp_path / "y", '"a"::b"::3::4\n')).users.tolist() == ['"a"']


@pytest.mark.parametrize("line", ['"a"b,x', '"a,x\n"b,y', 'a,"x" y', 'a,"x\ny"'])
def test_quotes_that_do_not_fit_are_refused_by_line(tmp_path, line):
    path = write(tmp_path / "x.csv", 'u,i\n"ok","fine"\n' + line + "\nc,z\n")
    with pytest.raises(ValueError, match=r"x\.csv, line 3: found .*, expected 2 fields between ','.*line breaks"):
        readers.delimited(path, user="u", item="i")


def test_spaces_before_quotes_are_dropped(tmp_path):
    path = write(tmp_path / "x.csv", '"u", "i"\n"a", "b, c"\n b , "d"\n')
    columns = readers.delimited(path, user="u", item="i")
    assert columns.users.tolist() == ["a", "b"] and columns.items.tolist() == ["b, c", "d"]


def test_large_integers_stay_distinct_in_every_reader(tmp_path):
    large = [2**63 + 5, 2**63 + 6, 2**53 + 1]
    frame = pd.DataFrame({"u": np.array(large, np.uint64), "i": [1, 2, 3]})
    frame.to_parquet(tmp_path / "x.parquet")
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_json(tmp_path / "x.json", orient="records", lines=True)
    found = [
        readers.dataframe(frame, user="u", item="i"),
        readers.parquet(tmp_path / "x.parquet", user="u", item="i"),
        readers.delimited(tmp_path / "x.csv", user="u", item="i"),
        readers.json_lines(tmp_path / "x.json", user="u", item="i"),
    ]
    for columns in found:
        assert columns.users.dtype == np.uint64 and columns.users.tolist() == large
        assert interactions.Interactions.from_labels(*columns[:2])[1].users.tolist() == sorted(large)
    with pytest.raises(ValueError, match=r"u\[1\] is 9007199254740992.0; float64 cannot represent all whole numbers"):
        readers.dataframe(pd.DataFrame({"u": [1.0, 2.0**53], "i": [1, 2]}), user="u", item="i")


MISSING = {
    "json null": ("x.json", '{"u": "a", "i": 1}\n{"u": null, "i": 2}\n'),
    "json empty": ("x.json", '{"u": "a", "i": 1}\n{"u": "", "i": 2}\n'),
    "json number": ("x.json", '{"u": 1, "i": 1}\n{"u": NaN, "i": 2}\n'),
    "python None": ("x.json", "{'u': 'a', 'i': 1}\n{'u': None, 'i': 2}\n"),
    "csv": ("x.csv", "a,1\n ,2\n"),
    "quoted csv": ("x.csv", 'a,1\n"",2\n'),
    "tsv": ("x.tsv", "a\t1\n\t2\n"),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_labels_of_text_are_refused_with_their_line(tmp_path, name):
    file, text = MISSING[name]
    path = write(tmp_path / file, text)
    with pytest.raises(ValueError, match=r"x\.\w+, line 2: found .*, expected a (label of the )?user"):
        if file.endswith("json"):
            readers.json_lines(path, user="u", item="i")
        else:
            readers.delimited(path, user=0, item=1, header=False)


@pytest.mark.parametrize("value", [None, np.nan, pd.NA, pd.NaT, ""])
def test_missing_labels_of_frames_are_refused_by_row(tmp_path, value):
    frame = pd.DataFrame({"u": pd.Series(["a", value, value], dtype=object), "i": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"u\[1\] is missing \(2 such rows\)"):
        readers.dataframe(frame, user="u", item="i")


@pytest.mark.parametrize(
    ("dtype", "labels"),
    [
        ("Int64", [3, 2**62 + 1]),
        ("string", ["a", "7"]),
        ("category", ["a", "7"]),
        ("string[pyarrow]", ["a", "7"]),
        (pd.ArrowDtype(pa.int64()), [3, 2**62 + 1]),
        (pd.ArrowDtype(pa.string()), ["a", "7"]),
        ("uint8", [3, 255]),
        ("float32", [3, 5]),
    ],
    ids=str,
)
def test_frames_of_pandas_own_dtypes(tmp_path, dtype, labels):
    frame = pd.DataFrame({"u": pd.Series(labels).astype(dtype), "i": [1, 2], "w": pd.array([1.5, 2], "Float64")})
    frame.to_parquet(tmp_path / "x.parquet")
    for columns in (
        readers.dataframe(frame, user="u", item="i", weight="w"),
        readers.parquet(tmp_path / "x.parquet", user="u", item="i", weight="w"),
    ):
        assert columns.users.tolist() == labels and columns.weights.tolist() == [1.5, 2]
        assert columns.users.dtype == (object if isinstance(labels[0], str) else np.int64)
    frame["w"] = pd.array([1.5, None], "Float64")
    with pytest.raises(ValueError, match=r"w\[1\] is missing"):
        readers.dataframe(frame, user="u", item="i", weight="w")


def test_parquet_of_bytes_dictionaries_and_dates(tmp_path):
    table = pa.table(
        {
            "u": pa.array([b"a", "ü".encode()]),
            "i": pa.array(["x", "x"]).dictionary_encode(),
            "t": pa.array([0, 86_400_000_000], pa.timestamp("us", tz="UTC")),
        }
    )
    pa.parquet.write_table(table, tmp_path / "x.parquet")
    columns = readers.parquet(tmp_path / "x.parquet", user="u", item="i", timestamp="t")
    assert [column.tolist() for column in (*columns[:2], columns.timestamps)] == [["a", "ü"], ["x", "x"], [0, 86400]]


def test_mixed_kinds_of_labels_are_refused(tmp_path):
    with pytest.raises(ValueError, match="u mixes types: integers such as 7, strings such as '7'"):
        readers.dataframe(pd.DataFrame({"u": pd.Series([7, "7"], dtype=object), "i": [1, 2]}), user="u", item="i")
    for other in ('"7"', "7.5", "true", "[7]"):
        path = write(tmp_path / "x.json", '{"u": 7, "i": 1}\n{"u": ' + other + ', "i": 2}\n')
        with pytest.raises(ValueError, match=r"x\.json, line 2: .*expected a label of the user: a string or a whole"):
            readers.json_lines(path, user="u", item="i")
    path = write(tmp_path / "y.json", '{"u": 7, "i": 1}\n{"u": 8.0, "i": 2}\n')  # JSON has one kind of numbers
    assert readers.json_lines(path, user="u", item="i").users.tolist() == [7, 8]


def test_one_label_of_much_text_takes_little_memory(tmp_path):
    long = "é" * 300_000
    text = "".join(f"{n}\t{n}\n" for n in range(3000)) + f"{long}\tx\n"
    tracemalloc.start()
    columns = readers.delimited(write(tmp_path / "x.tsv", text), user=0, item=1, header=False)
    matrix, id_map = interactions.Interactions.from_labels(*columns[:2])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert matrix.n_users == 3001 and id_map.users[-1] == long and peak < 3e7
    quoted = write(tmp_path / "y.csv", f'"{long}",x\n')
    assert readers.delimited(quoted, user=0, item=1, header=False).users.tolist() == [long]


@pytest.mark.parametrize("line", ['"a"b,1', "a,b,c"])
def test_errors_count_lines_over_blocks_blank_lines_and_the_header(tmp_path, monkeypatch, line):
    text = "\n u,i\n\n" + "a,1\n\n" * 6 + line + "\n"
    for block in (1, 7, 1 << 20):
        monkeypatch.setattr(_text, "BLOCK", block)
        with pytest.raises(ValueError, match=f"x.csv, line 16: found '{line}'"):
            readers.delimited(write(tmp_path / "x.csv", text), user="u", item="i")
        good = write(tmp_path / "y.csv", text.removesuffix(line + "\n") + '"b",2')
        columns = readers.delimited(good, user="u", item="i")
        assert columns.users.tolist() == ["a"] * 6 + ["b"] and columns.items.tolist() == [1] * 6 + [2]


def test_blocks_of_integers_and_of_text_are_one_column(tmp_path, monkeypatch):
    monkeypatch.setattr(_text, "BLOCK", 8)
    lines = [f"{label},{n}\n" for n, label in enumerate([1, 22, "x", 2**64 - 1, "007"])]
    columns = readers.delimited(write(tmp_path / "x.csv", "".join(lines)), user=0, item=1, header=False)
    assert columns.users.tolist() == ["1", "22", "x", str(2**64 - 1), "007"] and columns.items.dtype == np.int64
    columns = readers.delimited(
        write(tmp_path / "x.csv", "".join(lines[:2] + lines[3:4])), user=0, item=1, header=False
    )
    assert columns.users.dtype == np.uint64 and columns.users.tolist() == [1, 22, 2**64 - 1]


@pytest.mark.parametrize(
    ("weight", "expected"), [("+1", 1), ("1e3", 1000), (".5", 0.5), ("1_0", None), ("inf", None), ("", None)]
)
def test_numbers_are_those_of_python_without_underscores(tmp_path, weight, expected):
    path = write(tmp_path / "x.csv", f"a,1,1\nb,2,{weight}\n")
    read = lambda: readers.delimited(path, user=0, item=1, weight=2, header=False).weights.tolist()  # noqa: E731
    if expected is None:
        with pytest.raises(ValueError, match=r"x\.csv, line 2: .* expected a finite number, not"):
            read()
    else:
        assert read() == [1, expected]


def test_timestamps_are_exact_to_int64_and_refused_beyond(tmp_path):
    path = write(tmp_path / "x.csv", f"a,1,{2**62 + 1}\nb,2,{-(2**62) - 1}\n")
    columns = readers.delimited(path, user=0, item=1, timestamp=2, header=False)
    assert columns.timestamps.tolist() == [2**62 + 1, -(2**62) - 1]
    path = write(tmp_path / "x.csv", "a,1,5\nb,2,1e19\n")
    with pytest.raises(ValueError, match=r"x\.csv, line 2: .* expected a finite number"):
        readers.delimited(path, user=0, item=1, timestamp=2, header=False)
    with pytest.raises(ValueError, match=r"t\[0\] is 1e\+19; timestamps must fit int64"):
        readers.dataframe(pd.DataFrame({"u": [1], "i": [1], "t": [1e19]}), user="u", item="i", timestamp="t")


def test_datetimes_without_a_zone_are_utc_in_objects_too(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        days = pd.Series([datetime.datetime(1970, 1, 2), datetime.datetime(1970, 1, 3)], dtype=object)
        frame = pd.DataFrame({"u": [1, 2], "i": [1, 2], "t": days})
        assert readers.dataframe(frame, user="u", item="i", timestamp="t").timestamps.tolist() == [86400, 172800]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_column_that_occurs_twice_is_refused(tmp_path):
    path = write(tmp_path / "x.csv", "u,i,u\n1,2,3\n")
    with pytest.raises(ValueError, match="user='u' is the name of several columns"):
        readers.delimited(path, user="u", item="i")
    frame = pd.DataFrame([[1, 2, 3]], columns=["u", "i", "u"])
    with pytest.raises(ValueError, match="user='u' is the name of 2 columns of the frame"):
        readers.dataframe(frame, user="u", item="i")


def test_broken_files_are_named(tmp_path):
    packed = gzip.compress(b"1::2::3::4\n" * 1000)
    broken = {
        "cut.gz": packed[:-20],
        "flipped.gz": packed[:40] + bytes([packed[40] ^ 255]) + packed[41:],
        "plain.gz": b"1::2::3::4\n",
        "magic.gz": b"\x1f\x8b" + b"\x00" * 30,
        "binary.dat": bytes(range(256)) * 9,
        "utf16.dat": "1::2::3::4\n".encode("utf-16"),
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))):
            readers.movielens(tmp_path / name)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))):
            readers.parquet(tmp_path / name, user="u", item="i")
    (tmp_path / "named otherwise").write_bytes(packed)
    assert len(readers.movielens(tmp_path / "named otherwise").users) == 1000


@pytest.mark.parametrize(
    "line",
    [
        "{'x': 'it\\'s', 'u': 'a', 'i': 'b'}",
        "{u'u': u'a', u'i': u'b', 'x': [1, 2, 'i'], 'y': True}",
        "{'x': \"'u': 'z'\", 'u': \"a\", 'i': 'b'}",
        "{'i': 'b', 'deep': {'u': 'z'}, 'u': 'a'}",
        "{'u': '\\x61', 'i': 'b', 'n': -1.5e3}",
        "{'u': 'z', 'i': 'b', 'u': 'a'}",
        "  {'u':'a','i':'b'} ",
    ],
)
def test_python_dictionaries_are_read_as_python_reads_them(tmp_path, line):
    columns = readers.json_lines(write(tmp_path / "x", line + "\n"), user="u", item="i")
    assert [column.tolist() for column in columns[:2]] == [["a"], ["b"]]


def test_json_that_pyarrow_reads_differently(tmp_path):
    """Lines have two objects, lone surrogates, spaces in labels, numbers as text and integers beyond 64 bits."""
    path = write(tmp_path / "x", '{"u": "a", "i": 1}{"u": "b", "i": 2}\n')
    with pytest.raises(ValueError, match="x, line 1: found"):
        readers.json_lines(path, user="u", item="i")
    lines = [
        '{"u": "\\ud800", "i": " a", "w": "1.5"}',
        '{"u": "b", "i": "a", "w": 2}',
        '{"u": "a\\u0000", "i": "a ", "w": 3}',
    ]
    columns = readers.json_lines(write(tmp_path / "x", "\n".join(lines)), user="u", item="i", weight="w")
    assert columns.users.tolist() == ["\ud800", "b", "a\0"] and columns.items.tolist() == [" a", "a", "a "]
    assert columns.weights.tolist() == [1.5, 2, 3]
    path = write(tmp_path / "x", '{"u": 1, "i": 1}\n{"u": ' + str(2**70) + ', "i": 2}\n')
    assert readers.json_lines(path, user="u", item="i").users.tolist() == ["1", str(2**70)]


@pytest.mark.parametrize(
    "value", ["1e400", "1" + "0" * 400, "NaN", "null", '""', "true", '"x"', '"1e400"', "[1]", "{}"]
)
@pytest.mark.parametrize("field", ["w", "t"])
def test_numbers_that_are_none_are_refused_in_json(tmp_path, field, value):
    good = '{"u": 1, "i": 1, "w": 1, "t": 1}\n'
    path = write(tmp_path / "x", good + good.replace(f'"{field}": 1', f'"{field}": {value}'))
    with pytest.raises(ValueError, match=r"x, line 2: found .*, expected a (finite number|\w+, which is missing)"):
        readers.json_lines(path, user="u", item="i", weight="w", timestamp="t")


@pytest.mark.parametrize("separator", ["", '"', "\n", "a\r"])
def test_separators_that_cannot_be_are_refused(tmp_path, separator):
    with pytest.raises(ValueError, match=r"separator=.*; give one or more characters"):
        readers.delimited(write(tmp_path / "x", "1,2\n"), user=0, item=1, header=False, separator=separator)


def test_minimum_must_be_a_number_and_needs_weights():
    columns = readers.Columns(np.array([1, 2]), np.array([4, 5]), np.array([3.0, np.nan]))
    with pytest.raises(ValueError, match=r"weights\[1\] of these columns is missing"):
        readers.at_least(columns, 3)
    with pytest.raises(ValueError, match="minimum=nan; give a finite number"):
        readers.at_least(columns, np.nan)
