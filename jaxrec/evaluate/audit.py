"""What to know about a split before trusting results measured on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import models
from jaxrec._ids import checked_ids
from jaxrec._keys import generator
from jaxrec._numerics import as_integer, integer
from jaxrec.evaluate.ranking import full_ranking, scorer
from jaxrec.evaluate.sampled import sampled_ranking
from jaxrec.interactions import Interactions, check_interactions
from jaxrec.typing import Array, ArrayLike, Key, Variables

_CUT = 10
_MOST_USERS = 10_000  # the standard error of a mean hit rate is then at most .005


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        name: short and stable.
        count: how many of `total` show the flaw.
        total: number of things checked.
        serious: whether a report on this split must mention it.
        message: the finding in words.
        rankers: names of the trivial rankers (keys of `Audit.rankers`) that exploit the flaw.
    """

    name: str
    count: int  # type: ignore[assignment]  # hides the method `count` of tuples
    total: int
    serious: bool
    message: str
    rankers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, repr=False)
class Audit:
    """Findings on a split, and the metrics of rankers that learn nothing.

    Attributes:
        findings: results of all checks, serious or not.
        rankers: ranker -> metric -> mean. The rankers are random, popularity, item id in both
            directions, and the next id. The metrics are the hit rate and the NDCG of lists of 10
            items, or of all items if there are fewer.
        protocol: how the rankers were evaluated, and on how many of the test users if not on all.
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
        raise KeyError(f"there is no finding {name!r}; there are {[finding.name for finding in self.findings]}")

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
    """Checks a split for overlap, cold ids, selection by id, popularity, time leaks, bad negatives.

    Findings are counted on all pairs. The trivial rankers are evaluated on `users`: by default on
    all test users, or on a random 10,000 of them if there are more.

    Duplicate pairs are not among the findings: `Interactions` merges them when it is created, and
    warns how many there were.

    Args:
        train: pairs [M, N] to learn from.
        test: held-out pairs [M, N] over the same ids, T of them.
        negatives: item ids [T, n], row t for pair t of `test.pairs()`. If given, the trivial
            rankers are evaluated among them, else on the full catalogue.
        users: ids of the users on whom the trivial rankers are evaluated, or the number of test
            users to sample; if there are fewer, all are used.
        key: typed key of the sample; by default `jax.random.key(0)`.

    Returns:
        An `Audit`, with a finding for each check and the metrics of the trivial rankers.

    Raises:
        ValueError: if train and test have different shapes or no pairs, negatives have the wrong
            shape or are not item ids, `users` are neither ids of users nor a number of 1 or more,
            or none of the users has a test pair.
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
    """Returns the negatives as int32 [T, n]."""
    negatives = np.asarray(negatives)
    fits = negatives.ndim == 2 and len(negatives) == test.n_pairs and negatives.size > 0
    if not fits or negatives.dtype.kind not in "iu":
        found = f"{negatives.dtype}{list(negatives.shape)}"
        raise ValueError(
            f"negatives is {found}; give integers [{test.n_pairs}, n], one row per test pair, with n of 1 or more"
        )
    if negatives.min() < 0 or negatives.max() >= test.n_items:
        raise ValueError(
            f"negatives run from {negatives.min()} to {negatives.max()}; items are 0 to {test.n_items - 1}"
        )
    return negatives.astype(np.int32)


def _chosen_users(test: Interactions, users: ArrayLike | int | None, key: Key | None) -> tuple[np.ndarray, int]:
    """Returns the users to evaluate, ascending, and how many users have a test pair."""
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
    """Formats a count as "3 of 10 (30.0%)"."""
    return f"{count} of {total} ({count / max(total, 1):.1%})"


def _overlap(train: Interactions, test: Interactions) -> Finding:
    """Counts test pairs that are also training pairs."""
    count = int(np.asarray(train.contains(*test.pairs())).sum())
    message = f"{_share(count, test.n_pairs)} test pairs are also training pairs"
    return Finding("overlap", count, test.n_pairs, count > 0, message)


def _cold_users(train: Interactions, test: Interactions) -> Finding:
    """Counts test users without a training pair."""
    tested = np.asarray(test.user_degrees) > 0
    count = int((tested & (np.asarray(train.user_degrees) == 0)).sum())
    message = f"{_share(count, tested.sum())} test users have no training pair"
    return Finding("cold users", count, int(tested.sum()), count > 0, message)


def _cold_items(train: Interactions, test: Interactions) -> Finding:
    """Counts test pairs whose item has no training pair; more than 1 % are serious."""
    count = int((train.item_degrees[test.pairs()[1]] == 0).sum())
    message = f"{_share(count, test.n_pairs)} test pairs have an item without a training pair"
    return Finding("cold items", count, test.n_pairs, count > 0.01 * test.n_pairs, message)


def _last_items(train: Interactions) -> np.ndarray:
    """Returns the largest training id of each user, or −1 if there is none; rows are sorted."""
    indptr = np.asarray(train.indptr)
    last = np.asarray(train.indices)[np.maximum(indptr[1:] - 1, 0)]
    return np.where(np.diff(indptr) > 0, last, -1)


def _both_parts(train: Interactions, test: Interactions) -> tuple[np.ndarray, np.ndarray]:
    """Returns users with training and test pairs, and whether all their test ids are above all
    their training ids.
    """
    both = np.flatnonzero((np.asarray(train.user_degrees) > 0) & (np.asarray(test.user_degrees) > 0))
    first = np.asarray(test.indices)[np.asarray(test.indptr)[both]]
    return both, first > _last_items(train)[both]


def _surprising(count: int, chance: np.ndarray) -> bool:
    """Returns whether a count of independent events is far above what their chances [E] give, and
    not small.
    """
    spread = np.sqrt((chance * (1 - chance)).sum())
    return bool(count - chance.sum() > max(5 * spread + 5, 0.05 * len(chance)))


def _id_order(train: Interactions, test: Interactions) -> Finding:
    """Counts users whose test ids are all above their training ids.

    The probability by chance is 1 / C(d + t, t), with d training and t test pairs of the user.
    """
    import scipy.special

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
            else "Held-out items are not chosen by id"
        )
    )
    return Finding(
        "id order", count, len(both), serious, message, ("item id, descending", "next id") if serious else ()
    )


def _id_places(train: Interactions, test: Interactions) -> Finding:
    """Counts users whose test ids have the same ranks among their ids as those of another user with
    as many pairs.

    Users whose test ids come last are left out, since `_id_order` counts them. The probability by
    chance is therefore 1 / (C(d + t, t) − 1), with d training and t test pairs of the user.
    """
    import scipy.special

    d, t = np.asarray(train.user_degrees), np.asarray(test.user_degrees)
    both, above = _both_parts(train, test)
    users, items = test.pairs()
    keys = [np.asarray(x, np.int64) * train.n_items + y for x, y in (train.pairs(), (users, items))]
    places = np.searchsorted(*keys) - np.asarray(train.indptr)[users] + np.arange(len(users))
    places -= np.asarray(test.indptr)[users]
    # Compare sets of ranks by a hash: the sum of one random number per rank.
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
        f"for {_share(count, len(one))} users the test ids have the same ranks among their ids as "
        "those of another "
        f"user with as many pairs; chance gives {chance.sum():.1f}. "
        + (
            "Users with as many pairs share one draw: if ids carry meaning, validation and test differ"
            if serious
            else "Ranks do not repeat"
        )
    )
    return Finding("id places", count, len(one), serious, message)


def _popularity(train: Interactions, test: Interactions) -> Finding:
    """Compares the popularity of the items of test pairs with that of the items of training pairs.

    Popularity is the number of an item's training users. The user of the pair itself does not count.
    """
    degrees = train.item_degrees
    held_out, trained = degrees[test.pairs()[1]], degrees[train.pairs()[1]] - 1
    median = np.median(trained)
    count = int((held_out < median).sum())
    share = count / test.n_pairs
    serious = not 0.35 < share < 0.65
    message = (
        f"the median number of training users is {np.median(held_out):g} for items of test pairs "
        f"and {median:g} for "
        f"items of training pairs; {_share(count, test.n_pairs)} test pairs are below the latter"
    )
    return Finding("popularity", count, test.n_pairs, serious, message, ("popularity",))


def _time_of_user(train: Interactions, test: Interactions) -> Finding:
    """Counts test pairs that are older than a training pair of their user."""
    users, _ = train.pairs()
    latest = np.full(train.n_users, np.iinfo(np.int32).min)
    np.maximum.at(latest, users, np.asarray(train.timestamps))
    late = np.asarray(test.timestamps) < latest[test.pairs()[0]]
    count = int(late.sum())
    message = f"{_share(count, test.n_pairs)} test pairs are older than a training pair of their user"
    return Finding("time within users", count, test.n_pairs, count > 0, message)


def _time_overall(train: Interactions, test: Interactions) -> Finding:
    """Counts training pairs that are newer than the oldest test pair."""
    count = int((np.asarray(train.timestamps) > np.asarray(test.timestamps).min()).sum())
    message = f"{_share(count, train.n_pairs)} training pairs are newer than the oldest test pair"
    message += ": training sees the future" * (count > 0)
    return Finding("time overall", count, train.n_pairs, count > 0, message)


# ---------------------------------------------------------------------- sampled negatives


def _negatives(train: Interactions, test: Interactions, negatives: np.ndarray) -> list[Finding]:
    """Counts negatives that are relevant, known or repeated, and checks whether they are drawn by
    popularity.
    """
    users, items = test.pairs()
    own = negatives == items[:, None]
    trained = np.asarray(train.contains(users[:, None], negatives))
    tested = np.asarray(test.contains(users[:, None], negatives)) & ~own
    ordered = np.sort(negatives, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    findings = []
    for name, hits, what in (
        ("negatives, own item", own, "negatives are the test item of their row"),
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
    message = f"the mean number of training users is {drawn:.1f} for negatives, {uniform:.1f} for trained items: " + (
        "negatives are drawn by popularity, which makes rare test items look easy or hard"
        if drawn > 2 * uniform
        else "negatives are not drawn by popularity"
    )
    findings.append(Finding("negatives, popularity", above, negatives.size, drawn > 2 * uniform, message))
    return findings


# ---------------------------------------------------------------------- trivial rankers


def _next_id(last: Variables, users: Array) -> Array:
    """Scores the smallest id above the user's largest training id highest, then upwards; ids below
    come last.
    """
    gap = last["items"][None, :] - last["last"][users][:, None]
    return -jnp.where(gap > 0, gap, gap + 2 * gap.shape[1]).astype(jnp.float32)


def _trivial(train: Interactions, test: Interactions, negatives: np.ndarray | None, chosen: np.ndarray):
    """Evaluates the trivial rankers; returns their metrics and the protocol."""
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
    values: dict[str, Any] = {}
    for name, (model, variables) in rankers.items():
        if negatives is None:
            options: dict[str, Any] = {"ks": (cut,), "users": chosen, "key": jax.random.key(0)}
            report = full_ranking(model, variables, train, test, **options)
        else:
            pairs = users[kept], items[kept]
            report = sampled_ranking(model, variables, pairs, negatives[kept], ks=(cut,))
        values[name] = {metric: report.means[metric] for metric in names}
    return values, report.protocol
