"""The records of `benchmarks.studies.valid` and `benchmarks.valid_speed` as Markdown."""

from __future__ import annotations

from benchmarks._tables import ENDS, origin, rows_of, setting_of, table

FIGURES = ("recall@20", "recall@50", "ndcg@20", "ndcg@50")


def interests(found: dict) -> str:
    """VALID, MacridVAE and other models, a table a data set."""
    parts = []
    for data in found["data"]:
        rows = []
        for name, case in found["cases"].items():
            source, _, label = name.partition(": ")
            if source == data:
                spread = (f" ± {case[f'{f}_stderr']:.4f}" if case[f"{f}_stderr"] else "" for f in FIGURES)
                figures = [f"{case[f]:.4f}{s}" for f, s in zip(FIGURES, spread)]
                validation = f"{case['validation']:.4f}" if "validation" in case else ""
                rows.append(
                    [label, validation, *figures, _chosen(found, data, label, case), str(case.get("seeds", ""))]
                )
        titles = (figure.replace("recall", "Recall").replace("ndcg", "NDCG") for figure in FIGURES)
        head = ["ranker", "Recall@20, validation", *titles, "chosen", "seeds"]
        parts.append(f"### {data}\n\n{rows_of(found, data, head, rows)}")
    more = {
        "citeulike-a-random": "citeulike-a-random is the same pairs split at random by the same rule. ",
        "ml-1m-users": "ml-1m-users is strong generalisation: 1,000 users are validation and 1,000 test, held out "
        "whole; a model that knows users by their histories alone sees four fifths of the pairs of each, which are "
        "masked, and is to find the others. ",
    }
    again = "".join(said for name, said in more.items() if name in found["data"])
    lines = [_compared(name, test) for name, test in found["paired"].items()]
    return (
        "## Interests (VALID)\n\n"
        "By the VALID paper's protocol: 64 dimensions (MultVAE and RecVAE have their released 200), 4 interests; train "
        "masked, validation's items stay candidates; recall over all relevant items. The setting with the best "
        "Recall@20 on seed 0's validation, the best epoch on each run's. "
        f"{ENDS} Validation looks every {found['every']} epochs and ends a run "
        f"after {found['patience']} looks without a gain, unless the row says after how many epochs; it looks at "
        "RecVAE every epoch, of four passes, and at ALS every sweep, with a patience of three. VALID has two "
        "blocks where it does not say, and its released gradient stop. Rows that say after how many epochs had mostly "
        "not converged there, being best at their last looks: they tell what learns faster, not what ends higher. The "
        "paper's own figures are not known to us. The published split of citeulike-a holds out the same places, in "
        "order of id, of all users with as many items: its validation part is easier than its test part, by little for "
        f"some models and by a quarter for others. {again}"
        "EASE draws nothing, so that one run is all.\n\n"
        f"**What this shows.** {_verdict(found['paired'])} "
        "On citeulike-a both are above every model with one vector a user, of which MF under CCL comes nearest, on "
        "the random split level with RecVAE and MultVAE. EASE, a closed form of N² weights, is above both there by "
        "Recall@20 and NDCG. On ml-1m EASE and models with one vector a user, RG2, iALS and RecVAE, are above both, "
        "and so are EASE and RecVAE for users held out whole. By 25 epochs on citeulike-a-valid the released stop of "
        "gradients is what makes blocks worth having: stopped, the second gains and further ones cost nothing; "
        "unrolled through them, the second gains nothing and further ones cost. Straight-through gradients and "
        "attention among prototypes make no difference to it. VALID has the most with three to five interests, "
        "MacridVAE as much with one.\n\n"
        + "\n\n".join(parts)
        + "".join(f"\n\n{line}" for line in lines)
        + "".join(f"\n\n{_studied(name, study)}" for name, study in found["studies"].items())
        + ("\n\n![Recall@20 and uniformity on test](benchmarks/results/valid.png)" if found["studies"] else "")
        + f"\n\n{origin(found)}"
    )


def _verdict(tests: dict) -> str:
    """Where VALID is above MacridVAE, level or below, by the differences paired by users."""
    places: dict[str, list[str]] = {"above": [], "within two errors of": [], "below": []}
    for name, test in tests.items():
        errors = test["difference"] / test["users_stderr"]
        place = "above" if errors > 2 else "below" if errors < -2 else "within two errors of"
        places[place].append(f"{name} ({errors:+.1f})")
    said = [f"{place} MacridVAE on {'; '.join(names)}" for place, names in places.items() if names]
    return f"By Recall@20, in standard errors over users, VALID is {', and '.join(said)}."


def _chosen(found: dict, data: str, label: str, case: dict) -> str:
    if "setting" not in case:
        return ""
    setting = [setting_of(found, data, label, case["setting"])] if case["setting"] else []
    return ", ".join([*setting, f"epochs {' '.join(str(int(epoch)) for epoch in case['epochs'])}"])


def _studied(name: str, study: dict) -> str:
    rows = []
    for what, methods in study.items():
        for method, points in methods.items():
            for value, case in points.items():
                spread = "" if case["stderr"] is None else f" ± {case['stderr']:.4f}"
                figures = [f"{case['metric']:.4f}{spread}", f"{case['ndcg@20']:.4f}"]
                single = (what, value) == ("n_interests", "1")  # whose prototypes cannot be alike
                apart = ["" if single else f"{case['collapse']:.2f}", f"{case['uniformity']:.2f}"]
                epochs = " ".join(str(int(epoch)) for epoch in case["epochs"])
                rows.append([what.replace("n_", ""), value, method, *figures, *apart, epochs, str(case["seeds"])])
    head = ["varied", "", "method", "Recall@20", "NDCG@20", "collapse", "uniformity", "epochs", "seeds"]
    return (
        f"### One thing varied at a time on {name}{' at most' * (', ' in name)}\n\nCollapse is the mean cosine between "
        "different prototypes of a user, 1 where all interests are one; uniformity log mean exp(−2‖x − y‖²) over "
        "users' joined interests, the lower the more evenly they lie; both of 1,000 users.\n\n"
        f"{table(head, rows)}"
    )


def _compared(name: str, test: dict) -> str:
    over = "" if test["seeds_stderr"] is None else f", ± {test['seeds_stderr']:.4f} over {test['seeds']} seeds"
    return (
        f"VALID less MacridVAE on {name}, Recall@20: {test['difference']:+.4f}, paired by users "
        f"± {test['users_stderr']:.4f}{over}."
    )


def interests_speed(found: dict) -> str:
    """An epoch against dense PyTorch."""
    (case,) = found["cases"].values()
    rows = [
        [
            side,
            f"{case[f'{label}_wall_s']:.1f}",
            f"{case[f'{label}_cpu_s']:.1f}",
            f"{case[f'{label}_first_call_s']:.1f}",
        ]
        for side, label in (("jaxrec", "jaxrec"), ("dense PyTorch", "torch"))
        if f"{label}_wall_s" in case
    ]
    ratio = f", ratio {case['ratio']:.3f}, {case['times_faster']:.1f} times as fast" if "ratio" in case else ""
    peaks = found.get("peaks_mb", {})
    memory = (
        f" A step of 512 users over Gowalla's 40,981 items peaks at {peaks['gowalla'] / 1024:.1f} GB, one over a "
        f"made-up catalogue of a million at {peaks['million'] / 1024:.1f} GB, imports and data included."
        if peaks
        else ""
    )
    head = ["catalogue", "items", "a step, s", "its large products alone, s", "share"]
    steps = [
        [name, str(at["n_items"]), f"{at['step_s']:.2g}", f"{at['floor_s']:.2g}", f"{at['share']:.0%}"]
        for name, at in found.get("catalogues", {}).items()
    ]
    catalogues = (
        f"A step over three catalogues, beside the time of its seven products of [B·K, D] with [D, N] at the speed of "
        f"a square product on the same device ({found['device']}):\n\n{table(head, steps)}\n\n"
        if steps
        else ""
    )
    return (
        "## Speed of VALID\n\n"
        f"Seconds an epoch on citeulike-a, {found['users_a_step']} users a step{ratio}; medians of runs "
        f"in turn on all cores.{memory}\n\n"
        f"{table(['', 'wall s', 'CPU s', 'first call s'], rows)}\n\n{catalogues}{origin(found)}"
    )
