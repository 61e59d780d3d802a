"""Random valid calls of the data side against plain Python: dictionaries, float64 sums and exact fractions."""

import contextlib
import csv
import functools
import io
import json
import math
import warnings
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from jaxrec.data import _text, readers, splits
from jaxrec.interactions import DataWarning, IdMap, Interactions

FEW = hypothesis.settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
AS_TEXT = {"nan", "NaN", "NaT", "None", "null", "<NA>"}  # labels that cause a warning
anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
awkward = st.sampled_from(
    ['"', '""', "a,b", "a\tb", "a;b", "a\0", "\0", "a\x1fb", "007", "-0", "1.0", "é", "'", "\\n", "{", "::"]
)
integers = st.integers(-(2**70), 2**70) | st.integers(-(2**63), 2**64 - 1) | st.integers(0, 9)
text = (anything | awkward | integers.map(str)).filter(lambda label: label not in AS_TEXT)
line = text.filter(lambda label: not set(label) & set("\r\n") and label == label.strip(" \t"))


def rows(*columns, least=1, most=12):
    return st.lists(st.tuples(*columns), min_size=least, max_size=most)


@contextlib.contextmanager
def quiet():
    """Ignores the warnings about merged duplicates, ids from 1 and gaps, which these tests do not concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        yield


# ---------------------------------------------------------------------- the matrix

pairs = rows(st.integers(0, 4), st.integers(0, 6), st.floats(-100, 100, width=32), st.integers(-(2**31) + 1, 2**31 - 1))


def merged(given):
    """{(user, item): (sum of weights in float64, latest time)}, in order."""
    found = {}
    for user, item, weight, time in given:
        total, latest = found.get((user, item), (0.0, time))
        found[user, item] = total + float(weight), max(latest, time)
    return dict(sorted(found.items()))


def held(matrix):
    weights = [1.0] * matrix.n_pairs if matrix.weights is None else matrix.weights.tolist()
    return dict(zip(zip(*(ids.tolist() for ids in matrix.pairs())), weights))


@hypothesis.given(pairs, st.sampled_from([np.int8, np.uint16, np.int64, np.float32, np.uint64, list]))
@FEW
def test_from_pairs_is_a_dictionary_of_float64_sums(given, kind):
    users, items, weights, times = zip(*given)
    ids = (users, items) if kind is list else (np.array(users, kind), np.array(items, kind))
    with quiet():
        matrix = Interactions.from_pairs(*ids, weights=weights, timestamps=times)
    expected = merged(given)
    assert list(zip(*(ids.tolist() for ids in matrix.pairs()))) == list(expected)
    np.testing.assert_array_equal(matrix.weights, np.float32([weight for weight, _ in expected.values()]))
    assert matrix.timestamps.tolist() == [time for _, time in expected.values()]
    assert (matrix.n_users, matrix.n_items) == (max(users) + 1, max(items) + 1)
    assert matrix.indptr.dtype == matrix.indices.dtype == matrix.timestamps.dtype == np.int32
    degrees = [sum(user == pair[0] for pair in expected) for user in range(matrix.n_users)]
    assert np.diff(matrix.indptr).tolist() == degrees


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 127)), min_size=1, max_size=20),
    st.sampled_from(["int8", "uint8", "bool", "float32", "int64"]),
    st.sampled_from(["coo", "csr", "csc"]),
)
@FEW
def test_from_scipy_is_a_dictionary_of_float64_sums(given, dtype, layout):
    rows_, columns, values = (np.array(column) for column in zip(*given))
    values = values.astype(dtype)
    matrix = scipy.sparse.coo_matrix((values, (rows_, columns)), shape=(4, 4))
    if layout != "coo":  # compressed by hand, for SciPy would add in the dtype of the matrix
        by, other = (rows_, columns) if layout == "csr" else (columns, rows_)
        order = np.argsort(by, kind="stable")
        indptr = np.searchsorted(by[order], np.arange(5))
        kind = getattr(scipy.sparse, f"{layout}_matrix")
        matrix = kind((values[order], other[order], indptr), shape=(4, 4))
    sums = {}
    for user, item, value in zip(rows_.tolist(), columns.tolist(), values.tolist()):
        sums[user, item] = sums.get((user, item), 0.0) + float(value)
    expected = {pair: total for pair, total in sorted(sums.items()) if total}
    assert held(Interactions.from_scipy(matrix)) == expected


@hypothesis.given(pairs, pairs, st.tuples(st.booleans(), st.booleans()))
@FEW
def test_union_is_the_sum_of_dictionaries(one, other, weighted):
    parts, sizes = [], {"n_users": 5, "n_items": 7}
    with quiet():
        for given, has in zip((one, other), weighted):
            users, items, weights, _ = zip(*given)
            parts.append(Interactions.from_pairs(users, items, weights=weights if has else None, **sizes))
        found = parts[0].union(parts[1])
    expected = {}
    for part in parts:
        for pair, weight in held(part).items():
            expected[pair] = expected.get(pair, 0.0) + weight
    if not any(weighted):
        expected = dict.fromkeys(expected, 1.0)
    assert held(found) == {pair: np.float32(weight) for pair, weight in sorted(expected.items())}


# ---------------------------------------------------------------------- labels

kinds = st.sampled_from([text, integers, st.floats(-(2.0**52), 2.0**52), st.binary(min_size=1, max_size=4)])


@hypothesis.given(
    kinds.flatmap(lambda kind: st.tuples(st.lists(kind, min_size=1, max_size=30), st.lists(kind, max_size=5)))
)
@FEW
def test_labels_come_back_from_their_ids(drawn):
    labels, others = drawn
    with quiet():
        matrix, id_map = Interactions.from_labels(labels, np.arange(len(labels)))
    assert id_map.users.tolist() == sorted(set(labels))
    assert matrix.n_users == len(set(labels)) and matrix.n_pairs == len(labels)
    ids = id_map.user_ids(labels)
    assert ids.dtype == np.int32 and id_map.user_labels(ids).tolist() == labels
    stored = zip(id_map.user_labels(matrix.pairs()[0]).tolist(), id_map.item_labels(matrix.pairs()[1]).tolist())
    assert {item: label for label, item in stored} == dict(enumerate(labels))
    places = {label: place for place, label in enumerate(sorted(set(labels)))}
    assert id_map.user_ids(others, unknown=-1).tolist() == [places.get(label, -1) for label in others]
    again = IdMap(id_map.users, id_map.items)
    assert again.user_ids(labels).tolist() == ids.tolist()
    if set(others) - set(labels):
        with pytest.raises(ValueError, match=r"users has no label .* \(\d+ such\)"):
            id_map.user_ids(others)


@hypothesis.given(
    st.lists(st.sampled_from([1, 2, "1", "2", 1.0, 2.0, True, b"1"]), min_size=2, max_size=5),
)
@FEW
def test_labels_of_different_kinds_are_never_equal(labels):
    kinds = {type(label) for label in labels}
    if len(kinds) > 1:
        with pytest.raises(ValueError, match="users mixes types"):
            Interactions.from_labels(labels, np.arange(len(labels)))
    else:
        assert Interactions.from_labels(labels, np.arange(len(labels)))[0].n_users == len(set(labels))


# ---------------------------------------------------------------------- readers

records = rows(line, line, st.floats(-1e6, 1e6), st.integers(-(2**62), 2**62))


def kept(labels):
    """Labels as readers give them: integers if all are and fit 64 bits, else strings."""
    try:
        numbers = [int(label) for label in labels]
    except ValueError:
        return labels
    if [str(number) for number in numbers] != labels:
        return labels
    signed, unsigned = (-(2**63), 2**63 - 1), (0, 2**64 - 1)
    fits = any(low <= min(numbers) and max(numbers) <= high for low, high in (signed, unsigned))
    return numbers if fits else labels


def check(columns, given):
    users, items, weights, times = (list(column) for column in zip(*given))
    assert columns.users.tolist() == kept(users) and columns.items.tolist() == kept(items)
    assert columns.weights.tolist() == weights and columns.timestamps.tolist() == times
    assert columns.weights.dtype == np.float64 and columns.timestamps.dtype == np.int64
    for labels in columns[:2]:
        assert labels.dtype in (np.int64, np.uint64, object)


@contextlib.contextmanager
def blocks_of(size):
    before, _text.BLOCK = _text.BLOCK, size
    try:
        yield
    finally:
        _text.BLOCK = before


NAMED = dict(user="u", item="i", weight="w", timestamp="t")
block = st.sampled_from([1, 13, 50, 1 << 24])


@hypothesis.given(
    records,
    st.sampled_from([",", ";", "\t", "|", " ", "¦"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n"]),
    block,
)
@FEW
def test_delimited_gives_back_what_csv_wrote(tmp_path, given, separator, quoting, ending, size):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator=ending)
    writer.writerows([("w", "u", "t", "i"), *((repr(w), u, t, i) for u, i, w, t in given)])
    (tmp_path / "x").write_bytes(file.getvalue().encode())
    with blocks_of(size):
        check(readers.delimited(tmp_path / "x", separator=separator, **NAMED), given)


@hypothesis.given(records, block)
@FEW
def test_fields_between_longer_separators_come_back(tmp_path, given, size):
    given = [(u.replace(":", "_"), i.replace(":", "_"), w, t) for u, i, w, t in given]
    (tmp_path / "x").write_text(
        "".join(f"{u}::{i}::{w!r}::{t}\n" for u, i, w, t in given), newline="", encoding="utf-8"
    )
    hypothesis.assume(not given[0][0].startswith("\ufeff"))  # at the start of a file that is a byte order mark
    with blocks_of(size):
        check(readers.movielens(tmp_path / "x"), given)


@hypothesis.given(
    rows(text, text, st.floats(-1e6, 1e6), st.integers(-(2**62), 2**62)),
    st.sampled_from([json.dumps, functools.partial(json.dumps, ensure_ascii=False), repr]),
    block,
)
@FEW
def test_json_and_python_lines_come_back(tmp_path, given, dump, size):
    lines = [dump({"x": '"u": 1', "u": u, "t": t, "i": i, "w": w}) for u, i, w, t in given]
    (tmp_path / "x").write_text("\n".join(lines), encoding="utf-8")
    with blocks_of(size):
        check(readers.json_lines(tmp_path / "x", **NAMED), given)


@hypothesis.given(rows(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), st.integers(0, 2**64 - 1)), block)
@FEW
def test_json_numbers_come_back(tmp_path, given, size):
    (tmp_path / "x").write_text("".join(json.dumps({"u": u, "i": i}) + "\n" for u, i in given))
    with blocks_of(size):
        columns = readers.json_lines(tmp_path / "x", user="u", item="i")
    assert [column.tolist() for column in columns[:2]] == [list(column) for column in zip(*given)]


@hypothesis.given(rows(text, text, st.floats(-1e6, 1e6), st.integers(-(2**62), 2**62)))
@FEW
def test_frames_and_parquet_come_back(tmp_path, given):
    frame = pd.DataFrame(given, columns=list("uiwt"))
    check(readers.dataframe(frame, **NAMED), given)
    frame.to_parquet(tmp_path / "x.parquet")
    check(readers.parquet(tmp_path / "x.parquet", **NAMED), given)


@hypothesis.given(records, st.randoms(use_true_random=False))
@FEW
def test_a_changed_byte_gives_an_error_of_the_file_or_other_columns(tmp_path, given, random):
    """A damaged file raises only `ValueError`, which names the file."""
    content = bytearray("".join(f"{u}\t{i}\t{w!r}\t{t}\n" for u, i, w, t in given).encode())
    content[random.randrange(len(content))] = random.randrange(256)
    path = tmp_path / "x.tsv"
    path.write_bytes(bytes(content))
    try:
        columns = readers.delimited(path, user=0, item=1, weight=2, timestamp=3, header=False)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert len({len(column) for column in columns}) == 1 and np.isfinite(columns.weights).all()


# ---------------------------------------------------------------------- splits

KEY = jax.random.key(3)
at_random = functools.partial(splits.random_order, key=KEY)
by_time = functools.partial(splits.temporal_order, key=KEY)
sets = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 29)), min_size=1, max_size=90, unique=True).flatmap(
    lambda given: st.lists(st.integers(0, 9), min_size=len(given), max_size=len(given)).map(
        lambda times: Interactions.from_pairs(*zip(*given), timestamps=times, n_users=5, n_items=30)
    )
)
hundredths = st.integers(0, 99).map(lambda n: Fraction(n, 100))


def codes(part):
    users, items = part.pairs()
    return users.astype(np.int64) * part.n_items + items


def check_parts(whole, parts):
    """Every pair is in exactly one part, with its timestamp."""
    found = np.concatenate([codes(part) for part in parts])
    order = np.argsort(found)
    np.testing.assert_array_equal(found[order], codes(whole))
    times = np.concatenate([np.asarray(part.timestamps) for part in parts])
    np.testing.assert_array_equal(times[order], whole.timestamps)
    assert {(part.n_users, part.n_items) for part in parts} == {(whole.n_users, whole.n_items)}


@hypothesis.given(sets, hundredths, hundredths, st.sampled_from([float, np.float32, np.float64]))
@FEW
def test_shares_are_floors_of_exact_fractions(whole, valid, test, dtype):
    degrees = whole.user_degrees.tolist()
    split = splits.in_turn(whole, test=dtype(float(test)), valid=dtype(float(valid)), order=by_time)
    check_parts(whole, split)
    n_test = [math.floor(n * test) for n in degrees]
    assert split.test.user_degrees.tolist() == n_test
    assert split.valid.user_degrees.tolist() == [math.floor((n - t) * valid) for n, t in zip(degrees, n_test)]
    if valid + test < 1:
        shares = [dtype(float(share)) for share in (1 - valid - test, valid, test)]
        split = splits.ratio(whole, shares, order=at_random)
        check_parts(whole, split)
        n_test = [min(max(1, math.floor(n * test)), max(n - 1, 0)) if test else 0 for n in degrees]
        left = [max(n - 1, 0) - t for n, t in zip(degrees, n_test)]
        assert split.test.user_degrees.tolist() == n_test
        assert split.valid.user_degrees.tolist() == [
            min(max(1, math.floor(n * valid)), spare) if valid else 0 for n, spare in zip(degrees, left)
        ]


@hypothesis.given(
    sets, st.lists(st.booleans(), min_size=5, max_size=5).map(np.array), st.integers(1, 9), st.integers(1, 9)
)
@FEW
def test_every_pair_is_in_exactly_one_part(whole, who, one, other):
    split = splits.leave_one_out(whole, order=at_random, who=who)
    check_parts(whole, split)
    held_out = ((whole.user_degrees >= 3) & who).astype(int)
    assert split.test.user_degrees.tolist() == split.valid.user_degrees.tolist() == held_out.tolist()
    times = {"valid_from": min(one, other), "test_from": np.int64(max(one, other))}
    if times["valid_from"] > whole.timestamps.min() and times["test_from"] <= whole.timestamps.max():
        split = splits.global_time(whole, **times)
        check_parts(whole, split)
        assert (split.test.timestamps >= times["test_from"]).all()
        assert (split.train.timestamps < times["valid_from"]).all()
    masks = np.arange(whole.n_pairs) % 3
    check_parts(whole, splits.given(whole, valid=masks == 1, test=masks == 2))


@pytest.mark.deep
@hypothesis.given(sets, st.integers(0, 2), st.integers(0, 2), hundredths.filter(bool), st.integers(0, 99))
@FEW
def test_users_held_out_are_whole_in_two_parts(whole, n_valid, n_test, share, seed):
    able = int((whole.user_degrees >= 2).sum())
    hypothesis.assume(n_valid + n_test < able)
    with quiet():
        found = splits.held_out_users(
            jax.random.key(seed),
            whole,
            n_valid=np.int64(n_valid),
            n_test=n_test,
            share=float(share),
            order=at_random,
            min_pairs=np.int32(2),
        )
    users = [set(part.pairs()[0].tolist()) for part in found]
    assert not users[0] & (users[1] | users[2] | users[3] | users[4]) and not (users[1] | users[2]) & (
        users[3] | users[4]
    )
    held_out = splits.sample_users(jax.random.split(jax.random.key(seed))[1], whole, n=n_test, min_pairs=2)
    assert users[3] | users[4] <= set(np.flatnonzero(held_out)) and held_out.sum() == n_test
    items = set(found.train.indices.tolist())
    parts = np.concatenate([codes(part) for part in found])
    trained = set(found.train.pairs()[0].tolist())
    expected = [c for c in codes(whole).tolist() if c // 30 in trained or c % 30 in items]
    assert sorted(parts.tolist()) == expected
    for history, target in ((1, 2), (3, 4)):
        n = found[history].user_degrees + found[target].user_degrees
        wanted = [min(max(1, math.floor(d * share)), max(d - 1, 0)) for d in n.tolist()]
        assert found[target].user_degrees.tolist() == wanted


@hypothesis.given(sets, st.integers(0, 4), st.integers(0, 99))
@FEW
def test_samples_of_users_have_the_size_asked_for(whole, n, seed):
    able = np.asarray(whole.user_degrees) >= 2
    if n > able.sum():
        with pytest.raises(ValueError, match=f"n={n}, but only {able.sum()} users have 2 or more pairs"):
            splits.sample_users(jax.random.key(seed), whole, n=n, min_pairs=2)
    else:
        chosen = splits.sample_users(jax.random.key(seed), whole, n=np.uint8(n), min_pairs=2)
        assert chosen.sum() == n and not (chosen & ~able).any()
        np.testing.assert_array_equal(codes(splits.keep_users(whole, chosen)), codes(whole)[chosen[whole.pairs()[0]]])
