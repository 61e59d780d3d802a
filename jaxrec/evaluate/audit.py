"""What a reader must know of a split before trusting results measured on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxrec import models
from jaxrec._ids import checked_ids
from jaxrec._keys import generator
from jaxrec._numerics import as_integer, integer
from jaxrec.evaluate.ranking import full_ranking, scorer
from jaxrec.evaluate.sampled import sampled_ranking
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.typing import Array, ArrayLike, Key, Variables

_CUT = 10
_MOST_USERS = 10_000  # their mean of a hit rate has a standard error of .005 at most


class Finding(NamedTuple):
    """One thing that was looked for.

    Attributes:
        name: short, stable.
        count: how many of `total` show it.
        total: of how many.
        serious: whether results on this split need a word about it.
        message: in words.
        rankers: names of the trivial rankers (keys of `Audit.rankers`) that exploit it.
    """

    name: str
    count: int
    total: int
    serious: bool
    message: str
    rankers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, repr=False)
class Audit:
    """Findings on a split, and what rankers score on it that learn nothing.

    Attributes:
        findings: all that was looked at, serious or not.
        rankers: ranker -> metric -> mean: random, popularity, item id both ways, and the next id. The metrics are the
            hit rate and the NDCG of lists of 10 items, or of all items where there are fewer.
        protocol: how the rankers were evaluated, and on how many of the test users.
    """

    findings: tuple[Finding, ...]
    rankers: Mapping[str, Mapping[str, float]]
    protocol: str

    @property
    def serious(self) -> tuple[Finding, ...]:
        """The findings that a report on this split must mention."""
        return tuple(finding for finding in self.findings if finding.serious)

    def __getitem__(self, name: str) -> Finding:
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"no finding {name!r}; there are {[finding.name for finding in self.findings]}")

    def __repr__(self) -> str:
        lines = [f"Audit: {len(self.serious)} of {len(self.findings)} findings are serious (!)"]
        for finding in self.findings:
            lines.append(f"{'!' if finding.serious else ' '} {finding.name}: {finding.message}")
            lines += [f"    ranking by {name} scores {self._values(name)}" for name in finding.rankers]
        lines.append(f"  Trivial rankers ({self.protocol}):")
        lines += [f"    {name:<24}{self._values(name)}" for name in self.rankers]
        return "\n".join(lines)

    def _values(self, name: str) -> str:
        return ", ".join(f"{metric} {value:.4f}" for metric, value in self.rankers[name].items())


def audit(
    train: Interactions,
    test: Interactions,
    negatives: ArrayLike | None = None,
    *,
    users: ArrayLike | int | None = None,
    key: Key | None = None,
) -> Audit:
    """Looks for overlap, cold users and items, ids that decide, popularity, time leaks, and faults of the negatives.

    The findings are counted on all pairs. The trivial rankers are evaluated on the users given; by default on all test
    users up to 10,000, and on a random 10,000 of them if there are more, which `protocol` says.

    Duplicate pairs are none of its findings: `Interactions` has merged them, and said how many, when it was made.

    Args:
        train: pairs [M, N] to learn from.
        test: held-out pairs over the same ids, T of them.
        negatives: item ids [T, n], row t for pair t of `test.pairs()`; if given, the trivial rankers are measured among
            them, else on the full catalogue.
        users: ids of the users on whom the trivial rankers are evaluated, or the number of test users to sample; if
            there are no more than that, all are taken.
        key: typed key of the sample; by default `jax.random.key(0)`.

    Raises:
        ValueError: for train and test of different shapes or without pairs, negatives whose rows do not fit or that are
            no items, and users of whom none has a test pair.
    """
    check_interactions(train=train, test=test)
    if (train.n_users, train.n_items) != (test.n_users, test.n_items):
        raise ValueError(f"train is {train}, test is {test}; split one set of Interactions")
    for name, part in (("train", train), ("test", test)):
        if part.n_pairs == 0:
            raise ValueError(f"{name} has no pairs; there is nothing to audit")
    if negatives is not None:
        negatives = _checked_negatives(negatives, test)
    chosen, tested = _chosen_users(test, users, key)
    findings = [_overlap(train, test), _cold_users(train, test), _cold_items(train, test)]
    findings += [_id_order(train, test), _id_places(train, test), _popularity(train, test)]
    if train.timestamps is not None and test.timestamps is not None:
        findings += [_time_of_user(train, test), _time_overall(train, test)]
    if negatives is not None:
        findings += _negatives(train, test, negatives)
    rankers, protocol = _trivial(train, test, negatives, chosen)
    if len(chosen) < tested:
        protocol += f", on {len(chosen)} of {tested} test users"
    return Audit(tuple(findings), rankers, protocol)


def _checked_negatives(negatives: ArrayLike, test: Interactions) -> np.ndarray:
    negatives = np.asarray(negatives)
    if negatives.ndim != 2 or len(negatives) != test.n_pairs or negatives.dtype.kind not in "iu":
        found = f"{negatives.dtype}{list(negatives.shape)}"
        raise ValueError(f"negatives is {found}; give integers [{test.n_pairs}, n], a row for each test pair")
    if negatives.size and (negatives.min() < 0 or negatives.max() >= test.n_items):
        raise ValueError(
            f"negatives run from {negatives.min()} to {negatives.max()}; items are 0 to {test.n_items - 1}"
        )
    return negatives.astype(np.int32)


def _chosen_users(test: Interactions, users: ArrayLike | int | None, key: Key | None) -> tuple[np.ndarray, int]:
    """The users to evaluate, ascending, and how many have a test pair."""
    tested = np.flatnonzero(np.asarray(test.user_degrees) > 0)
    if users is not None and as_integer(users) is None:
        chosen = np.intersect1d(checked_ids("users", users, test.n_users), tested)
        if len(chosen) == 0:
            raise ValueError("none of the users has a test pair; give ids of users with test pairs")
        return chosen, len(tested)
    most = _MOST_USERS if users is None else integer("users", users)
    if most < len(tested):
        draw = generator(jax.random.key(0) if key is None else key)
        return np.sort(draw.choice(tested, most, replace=False)), len(tested)
    return tested, len(tested)


# ---------------------------------------------------------------------- the split


def _share(count: int, total: int) -> str:
    return f"{count} of {total} ({count / max(total, 1):.1%})"


def _overlap(train: Interactions, test: Interactions) -> Finding:
    count = int(np.asarray(train.contains(*test.pairs())).sum())
    message = f"{_share(count, test.n_pairs)} test pairs are also training pairs"
    return Finding("overlap", count, test.n_pairs, count > 0, message)


def _cold_users(train: Interactions, test: Interactions) -> Finding:
    tested = np.asarray(test.user_degrees) > 0
    count = int((tested & (np.asarray(train.user_degrees) == 0)).sum())
    message = f"{_share(count, tested.sum())} test users have no training pair"
    return Finding("cold users", count, int(tested.sum()), count > 0, message)


def _cold_items(train: Interactions, test: Interactions) -> Finding:
    count = int((train.item_degrees[test.pairs()[1]] == 0).sum())
    message = f"{_share(count, test.n_pairs)} test pairs have an item without a training pair"
    return Finding("cold items", count, test.n_pairs, count > 0.01 * test.n_pairs, message)


def _last_items(train: Interactions) -> np.ndarray:
    """Largest training id of each user, −1 where there is none; rows are sorted."""
    indptr = np.asarray(train.indptr)
    last = np.asarray(train.indices)[np.maximum(indptr[1:] - 1, 0)]
    return np.where(np.diff(indptr) > 0, last, -1)


def _both_parts(train: Interactions, test: Interactions) -> tuple[np.ndarray, np.ndarray]:
    """Users with training and test pairs, and whether all their test ids are above all their training ids."""
    both = np.flatnonzero((np.asarray(train.user_degrees) > 0) & (np.asarray(test.user_degrees) > 0))
    first = np.asarray(test.indices)[np.asarray(test.indptr)[both]]
    return both, first > _last_items(train)[both]


def _surprising(count: int, chance: np.ndarray) -> bool:
    """Whether so many of independent events are far more than their chances [E] give, and not few."""
    spread = np.sqrt((chance * (1 - chance)).sum())
    return bool(count - chance.sum() > max(5 * spread + 5, 0.05 * len(chance)))


def _id_order(train: Interactions, test: Interactions) -> Finding:
    """Users whose test ids are all above their training ids; by chance that is 1 / C(d + t, t)."""
    d, t = np.asarray(train.user_degrees), np.asarray(test.user_degrees)
    both, above = _both_parts(train, test)
    count = int(above.sum())
    chance = 1 / scipy.special.binom(d[both] + t[both], t[both])
    serious = _surprising(count, chance)
    message = (
        f"for {_share(count, len(both))} users every test id is above every training id; chance gives "
        f"{chance.sum():.1f}. "
        + (
            "Held-out items are chosen by id: never let ids reach a model or break ties"
            if serious
            else "Ids do not choose"
        )
    )
    return Finding(
        "id order", count, len(both), serious, message, ("item id, descending", "next id") if serious else ()
    )


def _id_places(train: Interactions, test: Interactions) -> Finding:
    """Users with d and t pairs whose test ids are, in order among their ids, where those of another such user are.

    By chance that is 1 / (C(d + t, t) − 1), as users whose test ids are at the end, of whom `_id_order` speaks, are
    left out.
    """
    d, t = np.asarray(train.user_degrees), np.asarray(test.user_degrees)
    both, above = _both_parts(train, test)
    users, items = test.pairs()
    keys = [np.asarray(x, np.int64) * train.n_items + y for x, y in (train.pairs(), (users, items))]
    places = np.searchsorted(*keys) - np.asarray(train.indptr)[users] + np.arange(len(users))
    places -= np.asarray(test.indptr)[users]
    # sums of random numbers are equal where the places are
    code = np.random.default_rng(0).integers(2**62, size=int(places.max()) + 1)
    sums = np.zeros(train.n_users, np.int64)
    np.add.at(sums, users, code[places])
    kept = both[~above]
    kept = kept[np.lexsort((t[kept], d[kept]))]
    one, other = kept[:-1], kept[1:]
    alike = (d[one] == d[other]) & (t[one] == t[other])
    one, other = one[alike], other[alike]
    count = int((sums[one] == sums[other]).sum())
    chance = 1 / (scipy.special.binom(d[one] + t[one], t[one]) - 1)
    serious = _surprising(count, chance)
    message = (
        f"for {_share(count, len(one))} users the test ids are at the same places among their ids as those of another "
        f"user of their size; chance gives {chance.sum():.1f}. "
        + (
            "One draw served all users of a size: where ids mean something, validation and test are different problems"
            if serious
            else "Places do not repeat"
        )
    )
    return Finding("id places", count, len(one), serious, message)


def _popularity(train: Interactions, test: Interactions) -> Finding:
    """Items of test pairs against items of training pairs, by training users less the pair's own."""
    degrees = train.item_degrees
    held_out, trained = degrees[test.pairs()[1]], degrees[train.pairs()[1]] - 1
    median = np.median(trained)
    count = int((held_out < median).sum())
    share = count / test.n_pairs
    serious = not 0.35 < share < 0.65
    message = (
        f"test items have {np.median(held_out):g} training users in the median, items of training pairs {median:g}; "
        f"{_share(count, test.n_pairs)} test pairs are below that"
    )
    return Finding("popularity", count, test.n_pairs, serious, message, ("popularity",))


def _time_of_user(train: Interactions, test: Interactions) -> Finding:
    users, _ = train.pairs()
    latest = np.full(train.n_users, np.iinfo(np.int32).min)
    np.maximum.at(latest, users, np.asarray(train.timestamps))
    late = np.asarray(test.timestamps) < latest[test.pairs()[0]]
    count = int(late.sum())
    message = f"{_share(count, test.n_pairs)} test pairs are older than a training pair of their user"
    return Finding("time within users", count, test.n_pairs, count > 0, message)


def _time_overall(train: Interactions, test: Interactions) -> Finding:
    count = int((np.asarray(train.timestamps) > np.asarray(test.timestamps).min()).sum())
    message = f"{_share(count, train.n_pairs)} training pairs are younger than the oldest test pair"
    message += ": the future is known" * (count > 0)
    return Finding("time overall", count, train.n_pairs, count > 0, message)


# ---------------------------------------------------------------------- sampled negatives


def _negatives(train: Interactions, test: Interactions, negatives: np.ndarray) -> list[Finding]:
    users, items = test.pairs()
    own = negatives == items[:, None]
    trained = np.asarray(train.contains(users[:, None], negatives))
    tested = np.asarray(test.contains(users[:, None], negatives)) & ~own
    ordered = np.sort(negatives, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    findings = []
    for name, hits, what in (
        ("negatives, own item", own, "negatives are the very test item of their row"),
        ("negatives, other test items", tested, "negatives are other test items of the user"),
        ("negatives, training items", trained, "negatives are training items of the user"),
    ):
        count = int(hits.sum())
        findings.append(Finding(name, count, hits.size, count > 0, f"{_share(count, hits.size)} {what}"))
    count = int(repeated.sum())
    message = f"{_share(count, len(repeated))} rows hold a negative more than once"
    findings.append(Finding("negatives, repeated", count, len(repeated), count > 0, message))
    degrees = train.item_degrees
    drawn, uniform = degrees[negatives].mean(), degrees[degrees > 0].mean()
    above = int((degrees[negatives] > uniform).sum())
    message = f"negatives have {drawn:.1f} training users in the mean, the catalogue {uniform:.1f}: " + (
        "drawn by popularity, which makes rare test items look easy or hard"
        if drawn > 2 * uniform
        else "no popularity draw"
    )
    findings.append(Finding("negatives, popularity", above, negatives.size, drawn > 2 * uniform, message))
    return findings


# ---------------------------------------------------------------------- trivial rankers


def _next_id(last: Variables, users: Array) -> Array:
    """The smallest id above the user's largest training id first, then upwards; ids below come last."""
    gap = last["items"][None, :] - last["last"][users][:, None]
    return -jnp.where(gap > 0, gap, gap + 2 * gap.shape[1]).astype(jnp.float32)


def _trivial(train: Interactions, test: Interactions, negatives: np.ndarray | None, chosen: np.ndarray):
    last = {"last": jnp.asarray(_last_items(train), jnp.int32), "items": jnp.arange(train.n_items, dtype=jnp.int32)}
    rankers = {
        "random": models.random(jax.random.key(0), train.n_items),
        "popularity": models.popularity(train),
        "item id": models.item_id(train.n_items),
        "item id, descending": models.item_id(train.n_items, descending=True),
        "next id": (scorer(_next_id), last),
    }
    cut = min(_CUT, train.n_items)
    names = (f"hit_rate@{cut}", f"ndcg@{cut}")
    users, items = test.pairs()
    kept = np.isin(users, chosen)
    values, report = {}, None
    for name, (model, variables) in rankers.items():
        if negatives is None:
            options = {"ks": (cut,), "users": chosen, "key": jax.random.key(0)}
            report = full_ranking(model, variables, train, test, **options)
        else:
            pairs = users[kept], items[kept]
            report = sampled_ranking(model, variables, pairs, negatives[kept], ks=(cut,))
        values[name] = {metric: report.means[metric] for metric in names}
    return values, report.protocol
