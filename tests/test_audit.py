import sys
import warnings

import jax
import numpy as np
import pytest

import jaxrec as jr
from jaxrec.data import datasets


def pairs(users, items, **options):
    return jr.Interactions.from_pairs(users, items, n_users=40, n_items=60, **options)


@pytest.fixture(scope="module")
def clean():
    """A random split of random pairs, in which there is nothing serious to find."""
    draw = np.random.default_rng(0)
    whole = jr.Interactions.from_scipy(draw.random((40, 60)) < 0.4)
    held_out = draw.random(whole.n_pairs) < 0.2
    return whole.select(~held_out), whole.select(held_out)


def quiet(*parts, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jr.interactions.DataWarning)  # negatives that do not count
        return jr.evaluate.audit(*parts, **how)


@pytest.mark.deep
def test_random_split_is_clean(clean):
    report = jr.evaluate.audit(*clean)
    assert report.serious == ()
    assert "0 of 6 findings are serious" in repr(report)
    assert set(report.rankers) == {"random", "popularity", "item id", "item id, descending", "next id"}


def test_overlap_and_cold_are_counted():
    with pytest.warns(jr.interactions.DataWarning):
        report = jr.evaluate.audit(pairs([0, 0, 1], [1, 2, 3]), pairs([0, 0, 2], [2, 4, 3]))
    assert (report["overlap"].count, report["overlap"].serious) == (1, True)
    assert (report["cold users"].count, report["cold users"].total) == (1, 2)
    assert (report["cold items"].count, report["cold items"].total) == (1, 3)


def test_order_of_ids_is_found_and_its_ranker_measured():
    draw = np.random.default_rng(1)
    rows = [np.sort(draw.choice(60, 8, replace=False)) for _ in range(40)]
    users = np.repeat(np.arange(40), 7)
    report = jr.evaluate.audit(
        pairs(users, np.concatenate([row[:7] for row in rows])), pairs(range(40), [row[7] for row in rows])
    )
    finding = report["id order"]
    assert (finding.count, finding.total, finding.serious) == (40, 40, True)
    assert report.rankers["next id"]["hit_rate@10"] > 2 * report.rankers["random"]["hit_rate@10"]
    assert "ranking by next id scores hit_rate@10" in repr(report)


def test_ranks_that_repeat_between_users_are_found():
    """Users have seven or eight items. The third and the sixth of each user are held out."""
    draw = np.random.default_rng(2)
    rows = [np.sort(draw.choice(60, 7 + user % 2, replace=False)) for user in range(40)]
    users, items = np.repeat(np.arange(40), [len(row) for row in rows]), np.concatenate(rows)
    places = np.concatenate([np.arange(len(row)) for row in rows])
    chosen = np.isin(places, (2, 5))
    report = jr.evaluate.audit(pairs(users[~chosen], items[~chosen]), pairs(users[chosen], items[chosen]))
    finding = report["id places"]
    assert (finding.count, finding.total, finding.serious) == (38, 38, True)
    assert not report["id order"].serious


@pytest.mark.deep
def test_ranks_repeat_in_the_published_split_of_citeulike(data_root):
    found = datasets.load("citeulike-a-valid")
    finding = jr.evaluate.audit(found.train, found.test)["id places"]
    assert finding.serious and finding.count > 0.99 * finding.total


def test_time_leaks_within_users_and_overall():
    train = pairs([0, 0, 1], [0, 1, 2], timestamps=[10, 30, 5])
    late = jr.evaluate.audit(train, pairs([0, 1], [2, 3], timestamps=[40, 50]))
    assert (late["time within users"].count, late["time overall"].count) == (0, 0)
    early = jr.evaluate.audit(train, pairs([0, 1], [2, 3], timestamps=[20, 6]))
    assert (early["time within users"].count, early["time overall"].count) == (1, 2)


def test_negatives_that_are_positives_repeated_or_popular():
    train = pairs([*range(30), 0], [0] * 30 + [1])
    test = pairs([0, 0], [2, 3])
    with pytest.warns(jr.interactions.DataWarning, match="2 of 6 negatives do not count"):
        report = jr.evaluate.audit(train, test, negatives=[[2, 3, 0], [0, 0, 9]])
    counts = {finding.name: finding.count for finding in report.findings if finding.name.startswith("negatives")}
    assert counts == {
        "negatives, own item": 1,
        "negatives, other test items": 1,
        "negatives, training items": 3,
        "negatives, repeated": 1,
        "negatives, popularity": 3,
    }


@pytest.mark.deep
def test_on_ciao_it_finds_the_split_ordered_by_id(data_root):
    ciao = datasets.load("ciao")
    with pytest.warns(jr.interactions.DataWarning, match="negatives do not count"):
        report = jr.evaluate.audit(ciao.train, ciao.test, ciao.negatives)
    assert (report["id order"].count, report["id order"].serious) == (6760, True)
    assert report["cold items"].count == 635
    assert report["negatives, own item"].count == 37
    assert report["negatives, repeated"].count == 2509
    assert report["negatives, training items"].count == 0
    assert report.rankers["next id"]["hit_rate@10"] == pytest.approx(0.41, abs=0.005)
    assert report.rankers["next id"]["ndcg@10"] == pytest.approx(0.25, abs=0.005)
    assert report.rankers["popularity"]["hit_rate@10"] < 0.07
    assert report.rankers["random"]["hit_rate@10"] == pytest.approx(0.1, abs=0.02)


@pytest.mark.deep
def test_random_split_of_ciao_shows_no_order(data_root):
    ciao = datasets.load("ciao")
    users, items = (np.concatenate(column) for column in zip(ciao.train.pairs(), ciao.valid.pairs(), ciao.test.pairs()))
    whole = jr.Interactions.from_pairs(users, items, n_users=ciao.train.n_users, n_items=ciao.train.n_items)
    order = lambda x: jr.data.splits.random_order(x, key=jax.random.key(0))  # noqa: E731
    split = jr.data.splits.leave_one_out(whole, order=order)
    assert not jr.evaluate.audit(split.train, split.test)["id order"].serious


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((pairs([0], [1]), jr.Interactions.from_pairs([0], [1], n_items=2)), "split one set"),
        ((pairs([0], [1]).select(np.array([False])), pairs([0], [1])), "train has no pairs"),
        ((pairs([0], [1]), pairs([0], [1]).select(np.array([False]))), "test has no pairs"),
        ((pairs([0], [1]), pairs([0], [2]), [[1], [2]]), r"give integers \[1, n\]"),
        ((pairs([0], [1]), pairs([0], [2]), [[1.0]]), r"negatives is float64\[1, 1\]; give integers"),
        ((pairs([0], [1]), pairs([0], [2]), np.zeros((1, 0), int)), r"int64\[1, 0\]; .* per test pair, with n of 1 or"),
        ((pairs([0], [1]), pairs([0], [2]), [[2**32 + 1]]), "negatives run from 4294967297 to .*; items are 0 to 59"),
        ((pairs([0], [1]), pairs([0], [2]), [[-1]]), "negatives run from -1 to -1"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        jr.evaluate.audit(*arguments)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ([1, 2], "none of the users has a test pair"),
        ([40], r"users\[0\] is 40; it must be below n_users=40"),
        (0, "users=0; give an integer of 1 or more"),
        (2.0, r"users has shape \[\]"),
    ],
)
def test_users_that_cannot_be_audited_are_named(users, message):
    with pytest.raises(ValueError, match=message):
        jr.evaluate.audit(pairs([0], [1]), pairs([0], [2]), users=users)


@pytest.mark.deep
def test_a_catalogue_of_few_items_is_audited_with_shorter_lists():
    train = jr.Interactions.from_pairs([0, 1, 2], [0, 1, 2], n_users=3, n_items=4)
    test = jr.Interactions.from_pairs([0, 1], [3, 3], n_users=3, n_items=4)
    report = jr.evaluate.audit(train, test)
    assert set(report.rankers["random"]) == {"hit_rate@4", "ndcg@4"}
    assert report.rankers["item id, descending"] == {"hit_rate@4": 1.0, "ndcg@4": 1.0}  # item 3 comes first
    assert "hit_rate@4 1.0000, ndcg@4 1.0000" in repr(report)
    among = jr.evaluate.audit(train, test, [[0, 2], [0, 2]])
    assert among.rankers["item id"]["hit_rate@4"] == 1.0


@pytest.mark.deep
@pytest.mark.parametrize("among", [False, True])
def test_the_rankers_are_evaluated_on_the_users_asked_for(clean, among):
    train, test = clean
    negatives = np.random.default_rng(3).integers(0, 60, (test.n_pairs, 5)) if among else None
    audit = lambda **how: quiet(train, test, negatives, **how)  # noqa: E731
    whole, some = audit(), audit(users=[7, 3, 3, 5])
    assert [f.count for f in some.findings] == [f.count for f in whole.findings]  # still of all pairs
    assert "test users" not in whole.protocol and some.protocol.endswith("on 3 of 40 test users")
    rows = np.isin(test.pairs()[0], [3, 5, 7])
    alone = quiet(train, test.select(rows), negatives if negatives is None else negatives[rows])
    assert some.rankers == alone.rankers != whole.rankers
    five, again = audit(users=np.int64(5)), audit(users=5, key=jax.random.key(0))
    assert five.rankers == again.rankers and five.protocol.endswith("on 5 of 40 test users")
    assert audit(users=5, key=jax.random.key(1)).rankers != five.rankers
    assert audit(users=40).rankers == audit(users=100).rankers == whole.rankers


def test_many_test_users_are_sampled_by_default(clean, monkeypatch):
    monkeypatch.setattr(sys.modules["jaxrec.evaluate.audit"], "_MOST_USERS", 6)
    report = jr.evaluate.audit(*clean)
    assert report.protocol.endswith("on 6 of 40 test users") and report["overlap"].total == clean[1].n_pairs
    assert report.rankers == jr.evaluate.audit(*clean, users=6).rankers


def test_an_unknown_finding_lists_the_known_ones(clean):
    with pytest.raises(KeyError, match="there are"):
        jr.evaluate.audit(*clean)["leak"]
