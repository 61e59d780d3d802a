"""Do facets separate the categories of Ciao's items (tables V and VI and figure 7 of MARS)?

A random split of Ciao (`ciao-random` of `benchmarks.studies.mars`, seed 0). CML and the single space
of MARS have 128 dimensions, the facets of MAR and MARS 32 each. Validation chooses the epoch by
HR@10 among 100 sampled items, from eight at most, which are fewer than in that study. The data have
numbers from 1 to 28 as categories, and no names.

"neighbours" is the share of an item's ten nearest neighbours in a space that have its category, for
items with at least five pairs in train. The likes of a facet are counted in two ways: each pair
counts θ in each facet, as table V of the paper seems to do, or it counts only in the facet with the
largest term θ_uk u^k·v^k of its score. A lift is the share of a category among a facet's likes,
divided by its share in all facets. A star marks a lift above 99 % of those from permutations of the
items' categories, so that one lift in a hundred has a star by chance. The table shows the five
categories with the largest share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxrec as jr
from benchmarks import _record
from benchmarks.studies import _mars
from jaxrec.data import datasets

DATA, LOOKS, LEAST, PERMUTATIONS, WAYS = "ciao-random", 8, 5, 200, ("θ", "largest term")
# Each has a recipe of `_mars.RECIPES` and its arguments.
MODELS = {
    "CML": ("CML", {"power": 0.0, "learning_rate": 0.3}),
    "MARS, one space": ("MARS, default", {"power": 0.0, "n_facets": 1, "dim": 128}),
    "MAR": ("MAR", {"power": 0.0, "dim": 32}),
    "MARS, released": ("MARS, released", {"dim": 32}),
    "MARS, default": ("MARS, default", {"power": 0.0, "dim": 32}),
    "MARS, paper": ("MARS, paper", {"power": 0.0, "dim": 32, "learning_rate": 0.1}),
}
TITLE = "Facets and categories"
COLUMNS = {
    "HR@10": "{hit_rate:.4f}",
    "neighbours": "{neighbours:.3f}",
    "largest lift by θ": "{lift_theta:.2f}",
    "categories by θ, % of likes": "{top_theta}",
    "largest lift by largest term": "{lift_term:.2f}",
    "categories by largest term": "{top_term}",
}


class Spaces(NamedTuple):
    """θ [M, K], and the facets of users [M, K, D] and items [N, K, D]."""

    theta: np.ndarray
    users: np.ndarray
    items: np.ndarray


def spaces(model: Any, variables: Any) -> Spaces:
    """Returns the spaces of a model; a model without facets has one."""
    if hasattr(model, "n_facets"):
        return Spaces(*(np.asarray(part) for part in model.apply(variables, None, None, method="parts")))
    users, items = (np.asarray(variables["params"][side])[:, None] for side in ("user", "item"))
    return Spaces(np.ones((len(users), 1)), users, items)


def likes(train: jr.Interactions, found: Spaces) -> dict[str, np.ndarray]:
    """Returns for each way the likes of each facet and item [K, N]."""
    users, items = train.pairs()
    terms = found.theta[users] * (found.users[users] * found.items[items]).sum(-1)
    weights = {"θ": found.theta[users], "largest term": terms == terms.max(1, keepdims=True)}
    count = lambda weight: np.bincount(items, weight, train.n_items)  # noqa: E731
    return {way: np.stack([count(weight) for weight in weights[way].T]) for way in WAYS}


def shares(weights: np.ndarray, category: np.ndarray) -> np.ndarray:
    """Returns the share of each category [K, C] among the likes [K, N] of a facet."""
    table = np.stack([np.bincount(category, weight) for weight in weights])
    return table / np.maximum(table.sum(1, keepdims=True), 1e-9)


def lifts(weights: np.ndarray, category: np.ndarray) -> np.ndarray:
    """Returns the shares [K, C] divided by the share of the category in all facets."""
    whole = shares(weights.sum(0, keepdims=True), category)
    return shares(weights, category) / np.where(whole > 0, whole, 1)


def described(weights: np.ndarray, category: np.ndarray) -> tuple[list[str], list[float]]:
    """Returns for each facet its five largest categories as text, and the largest lift of these."""
    rng, above = np.random.default_rng(0), lifts(weights, category)
    chance = [lifts(weights, rng.permutation(category)) for _ in range(PERMUTATIONS)]
    bound, share = np.quantile(chance, 0.99, axis=0), shares(weights, category)
    top = np.argsort(-share, axis=1)[:, :5]
    text = [
        ", ".join(f"{c}: {100 * share[k, c]:.1f}{'*' * bool(above[k, c] > bound[k, c])}" for c in top[k])
        for k in range(len(top))
    ]
    return text, np.take_along_axis(above, top, 1).max(1).tolist()


def neighbours(vectors: np.ndarray, category: np.ndarray, n: int = 10) -> float:
    """Returns the share of the n nearest neighbours of vectors [N, D] with the same category."""
    square = (vectors**2).sum(1)
    distance = square[:, None] + square - 2 * vectors @ vectors.T
    np.fill_diagonal(distance, np.inf)
    near = np.argpartition(distance, n, axis=1)[:, :n]
    return float((category[near] == category[:, None]).mean())


def profiles(train: jr.Interactions, found: Spaces, category: np.ndarray) -> list[dict[str, Any]]:
    """Describes the two users with 50 or more pairs whose θ is the least equal, as in table VI."""
    enough = np.where(train.user_degrees >= 50, found.theta.max(1), 0)
    users, items = train.pairs()
    rows = []
    for user in np.argsort(-enough)[:2]:
        own = items[users == user]
        facet = (found.theta[user] * (found.users[user] * found.items[own]).sum(-1)).argmax(1)
        for k, weight in enumerate(found.theta[user]):
            counts = np.bincount(category[own[facet == k]])
            top = [f"{c}: {counts[c]}" for c in np.argsort(-counts)[:4] if counts[c]]
            rows.append({"user": int(user), "k": k + 1, "theta": float(weight), "top": ", ".join(top)})
    return rows


def start(recipe: _mars.Recipe) -> np.ndarray:
    """Returns θ before training."""
    state = jr.train.init(jax.random.key(0), recipe.model, recipe.tx)
    return spaces(recipe.model, state.variables).theta


def measured(name: str, looks: int, category: np.ndarray) -> tuple[dict[str, Any], Spaces]:
    """Trains a model; returns its values and its spaces."""
    recipe, setting = MODELS[name]
    part = _mars.prepare(DATA, 0)
    model, variables, _ = _mars.trained(DATA, recipe, json.dumps(setting), 0, looks)["sampled"]
    found = spaces(model.model, variables)
    often = part.train.item_degrees >= LEAST
    values = {"hit_rate": part.judged(model.model, variables, "test").means["hit_rate@10"]}
    values["neighbours"] = [neighbours(found.items[often, k], category[often]) for k in range(found.items.shape[1])]
    if found.theta.shape[1] > 1:
        for way, weights in likes(part.train, found).items():
            values[f"top {way}"], values[f"lift {way}"] = described(weights, category)
        before = start(_mars.RECIPES[recipe](part.train, **setting))
        values |= {"users": profiles(part.train, found, category), "theta_mean": float(found.theta.max(1).mean())}
        values["theta_before"] = float(before.max(1).mean())
        values["theta_same"] = float((before.argmax(1) == found.theta.argmax(1)).mean())
    return values, found


# ---------------------------------------------------------------------- tables and maps


def cases_of(values: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns a case for each space of each model."""
    cases = {}
    for name, of_model in values.items():
        shared = {key: value for key, value in of_model.items() if not isinstance(value, list)}
        for k, near in enumerate(of_model["neighbours"]):
            case = {"model": name, "neighbours": near} | (shared if k == 0 else {})
            for way, short in zip(WAYS, ("theta", "term")):
                if f"top {way}" in of_model:
                    case |= {f"top_{short}": of_model[f"top {way}"][k], f"lift_{short}": of_model[f"lift {way}"][k]}
            if k == 0 and "users" in of_model:
                case["users"] = of_model["users"]
            cases[name if len(of_model["neighbours"]) == 1 else f"{name}, k = {k + 1}"] = case
    return cases


def more(found: Mapping[str, Any]) -> str:
    """Returns the table of θ, the profiles of users, and the map."""
    shares, users = [], []
    for case in found["cases"].values():
        if "users" in case:
            values = [f"{case[name]:.3f}" for name in ("theta_before", "theta_mean", "theta_same")]
            shares.append([case["model"], *values])
            for row in case["users"]:
                users.append([case["model"], str(row["user"]), str(row["k"]), f"{row['theta']:.2f}", row["top"]])
    return "\n\n".join(
        [
            f"By chance, {found['chance']:.3f} of the neighbours have the same category. The mean of the largest θ of "
            "a user before and after training, and the share of users whose largest θ stays in the same facet:",
            _record.table(["", "before", "after", "same facet"], shares),
            "The two users of at least 50 pairs whose θ is the least equal, with the categories of the pairs whose "
            "largest term is in a facet (table VI of the paper):",
            _record.table(["", "user", "k", "θ", "category: pairs"], users),
            "Items by the first two principal components of each space, coloured by the five largest categories "
            "(figure 7 of the paper):",
            f"![{TITLE}](benchmarks/results/categories.png)",
        ]
    )


def picture(found: Mapping[str, Spaces], often: np.ndarray, category: np.ndarray) -> None:
    """Draws a row of maps for each model."""
    import matplotlib.pyplot as plt

    largest = np.argsort(-np.bincount(category[often]))[:5]
    width = max(of_model.items.shape[1] for of_model in found.values())
    options = {"figsize": (2.6 * width, 2.6 * len(found)), "layout": "constrained", "squeeze": False}
    whole, panes = plt.subplots(len(found), width, **options)
    for line, (name, of_model) in zip(panes, found.items()):
        for k, pane in enumerate(line):
            if k >= of_model.items.shape[1]:
                pane.set_axis_off()
                continue
            centred = of_model.items[often, k] - of_model.items[often, k].mean(0)
            flat = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
            for place, each in enumerate(largest):
                own = flat[category[often] == each].T
                pane.scatter(*own, s=2, color=plt.cm.tab10(place), label=f"category {each}", linewidths=0)
            pane.set(xticks=[], yticks=[])
            pane.set_title(f"{name}, k = {k + 1}" if of_model.items.shape[1] > 1 else name, fontsize=8)
    panes[0, 0].legend(fontsize=6, markerscale=3)
    whole.savefig(_record.RESULTS / "categories.png", dpi=100)
    plt.close(whole)


def main() -> None:
    """Trains, and writes the record and the maps."""
    quick = _record.parser("categories", __doc__, "one validation of CML and MARS").parse_args().quick
    category = np.asarray(datasets.load("ciao").features["category"])
    train = _mars.prepare(DATA, 0).train
    often = train.item_degrees >= LEAST
    values, found = {}, {}
    for name in ("CML", "MARS, paper") if quick else MODELS:
        values[name], found[name] = measured(name, 1 if quick else LOOKS, category)
    share = np.bincount(category[often]) / often.sum()
    if not quick:
        picture(found, often, category)
    facts = {"data": train.fingerprint(), "chance": float((share**2).sum()), "items": int(often.sum())}
    _record.write("categories", cases_of(values), quick=quick, **facts)


if __name__ == "__main__":
    main()
