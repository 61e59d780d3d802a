"""Records as Markdown: what `benchmarks.report` puts together. Each section is a function of its records."""

from __future__ import annotations

import re

from jaxrec.study import ends


def origin(found: dict) -> str:
    """One line: where a record's figures come from."""
    return (
        f"`{found['command']}`, {found['date']}, commit {found['commit']}, jax {found['jax']}, "
        f"{found['cores']} cores of {found['processor']}, data {_data(found['data'])}."
    )


def _data(fingerprints: str | dict) -> str:
    if isinstance(fingerprints, str):
        return fingerprints
    return ", ".join(f"{name} {fingerprint}" for name, fingerprint in fingerprints.items())


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


OLDER = "! marks a row whose setting was chosen from another grid than its method has today."


def rows_of(found: dict, data: str, head: list[str], rows: list[list[str]]) -> str:
    """The table of a data set, with a mark and a legend where a row is older than its method's grid."""
    old = [f"{data}: {row[0]}" in found.get("stale", {}) for row in rows]
    marked = [[row[0] + " !" * each, *row[1:]] for row, each in zip(rows, old)]
    return table(head, marked) + f"\n\n{OLDER}" * any(old)


ENDS = "* marks an end of the values that were compared, beyond which better may lie."


def setting_of(found: dict, data: str, row: str, setting: dict) -> str:
    """A chosen setting; a star marks values at an end of those compared."""
    compared = found.get("compared", {}).get(f"{data}: {row}", [])
    grid = {name: [other[name] for other in compared if name in other] for name in setting}
    ended = ends(setting, grid, least=2)
    stars = {name: "*" * (name in ended and name != "draw") for name in setting}  # draws have no order
    return ", ".join(f"{name.replace('_', ' ')} {value:g}{stars[name]}" for name, value in setting.items())


def older(found: dict) -> list[str]:
    """The rows of a record that are older than their method's grid."""
    rows = {": ".join(row) for row in _rows(found.get("cases", {}))}
    return sorted(rows & set(found.get("stale", {})))


def chosen_rows(found: dict) -> set[tuple[str, str]]:
    """(data set, row) of a record, where a setting was chosen."""
    return _rows({name: case for name, case in found["cases"].items() if "setting" in case})


def _rows(cases: dict) -> set[tuple[str, str]]:
    """(data set, row), whatever the protocol."""
    return {tuple(re.sub(", (sampled|full): ", ": ", name).split(": ", 1)) for name in cases}


def quality(found: dict) -> str:
    """The quickstart's table."""
    stars = found["settings"]["minimum"]
    positives = "every rating a positive" if stars <= 0.5 else f"ratings of {stars:g} stars and more"
    rows = []
    for name, case in found["cases"].items():
        difference = f"{case['difference_from_popularity']:+.4f} ± {case['difference_stderr']:.4f}"
        deviation = "" if case["seed_deviation"] is None else f"{case['seed_deviation']:.4f}"
        score = f"{case['ndcg@10']:.4f} ± {case['stderr']:.4f}"
        rows.append([name, score, deviation, f"{case['recall@10']:.4f}", "" if name == "popularity" else difference])
    head = ["ranker", "NDCG@10", "deviation over seeds", "Recall@10", "NDCG@10 less popularity's, paired"]
    seeds = found["settings"]["seeds"]
    return (
        f"## MovieLens (small), {positives}\n\n"
        "Each user's latest 10 % are test, the 10 % before them "
        f"validation, which chose the epoch; {found['protocol']}. Means of {seeds} seeds, ± standard error over users. "
        "This set is for development: no claim about the losses rests on it.\n\n"
        f"{table(head, rows)}\n\n{origin(found)}"
    )


# Published figures, Recall@20 / NDCG@20, from the logs and leaderboards of the methods' own code.
PUBLISHED = {
    "gowalla": "MF-CCL .1837/.1493 (800 negatives), MF-BSL .1882/.1584, MF-BPR .1627/.1378, LightGCN .1830/.1554",
    "yelp2018": "MF-CCL .0698/.0572 (800 negatives), MF-BSL .0725/.0599, MF-BPR .0576/.0468, LightGCN .0649/.0530",
}


def losses(found: dict) -> str:
    """The losses on Gowalla and Yelp2018."""
    parts = []
    for data, published in PUBLISHED.items():
        rows = []
        for name, case in found["cases"].items():
            source, _, label = name.partition(": ")
            if source != data:
                continue
            if "epochs" not in case:
                rows.append([label, f"{case['metric']:.4f}", f"{case['ndcg@20']:.4f}", *[""] * 5])
                continue
            spread = (f" ± {case[key]:.4f}" if case[key] else "" for key in ("stderr", "ndcg_stderr"))
            recall, ndcg = (f"{case[key]:.4f}{s}" for key, s in zip(("metric", "ndcg@20"), spread))
            best = f"{case['best_on_test_recall@20']:.4f} / {case['best_on_test_ndcg@20']:.4f}"
            budget = f"{case['epochs']} epochs, {case['steps']:,} steps"
            rate = setting_of(found, data, label, {"learning_rate": case["learning_rate"]})
            minutes = f"{case['cpu_s'] / 60:.1f}"
            rows.append([label, recall, ndcg, best, budget, rate.split()[-1], minutes, str(len(case["seeds"]))])
        head = ["ranker", "Recall@20", "NDCG@20", "best-on-test", "budget", "rate", "CPU minutes a run", "seeds"]
        parts.append(
            f"### {data}\n\nPublished, each chosen on the test set: {published}.\n\n{rows_of(found, data, head, rows)}"
        )
    ratios = [
        f"{data}, {n}: {pair['recall@20']:.3f} ± {pair['recall_stderr']:.3f} in Recall@20, "
        f"{pair['ndcg@20']:.3f} ± {pair['ndcg_stderr']:.3f} in NDCG@20"
        for data in PUBLISHED
        for n, pair in found["mml_over_ccl"].get(data, {}).items()
    ]
    return (
        "## Losses on Gowalla and Yelp2018\n\n"
        "LightGCN splits, full ranking, train masked; MF unless SimpleX is said, "
        "on cosines but for BPR and BCE (dot products), 64 dimensions. Negatives are drawn for each positive as in the "
        "papers, or for each group of up to 16 positives of a user, or once for the batch (shared), which then holds "
        "groups too unless they come singly. Learning rates were compared on a tenth of Gowalla's train part: for "
        "every loss but MML with 2,048 shared or with 10 a positive, for CCL singly, and for CCL and MML with 10 a "
        "group; other cases take CCL's of their kind of negatives, and the long runs half of that. The last epoch of a "
        "fixed number is reported, and but for one thing nothing was chosen on test: CCL's runs were lengthened after "
        "the shorter ones, which are all shown, had missed their targets there, so how long the longest are is no "
        f"blind choice. {ENDS} Means ± standard error over seeds; one seed is no claim. The papers' budget is "
        "100 epochs of 3,165 (Gowalla) and 2,417 (Yelp2018) steps.\n\n"
        + "\n\n".join(parts)
        + f"\n\n{_untuned(found['cases'])}\n\nMML over CCL at these settings, seed by seed: "
        + "; ".join(ratios)
        + f".\n\n![Recall@20 against epochs](benchmarks/results/mml.png)\n\n{origin(found)}"
    )


def _untuned(cases: dict) -> str:
    """What the ratios of MML to CCL do not say."""
    names = {"MML": "MML, 10 a group", "CCL": "CCL, 10 a group"}
    names["CCL with margin .7 and weight 70"] = "CCL, 10 a group, margin 0.7, weight 70"
    shown = [f"{label} has {cases[f'gowalla: {name}']['metric']:.4f}" for label, name in names.items()]
    return (
        "Both losses ran at settings of the papers: CCL at margin .9 and weight 150, MML at its paper's margins and "
        "weights of each set. Neither was tuned for the cases here, and the settings suit neither. On gowalla with 10 "
        f"a group, {', '.join(shown)} in Recall@20. So the ratios below do not compare the losses. A fair comparison, "
        "with both losses tuned alike at each number of negatives, is still to be made."
    )


def solvers(found: dict) -> str:
    """RG2 and iALS beside losses trained by SGD, a table a data set."""
    parts = []
    for data in found["data"]:
        metrics = ("recall@20", "ndcg@20") if data == "gowalla" else ("mrr@10", "ndcg@10")
        rows = []
        notes = []
        for name, case in found["cases"].items():
            source, _, label = name.partition(": ")
            if source == data:
                spread = [f" ± {case[f'{m}_stderr']:.4f}" if case[f"{m}_stderr"] else "" for m in metrics]
                figures = [f"{case[m]:.4f}{s}" for m, s in zip(metrics, spread)]
                setting = setting_of(found, data, label, case.get("setting", {}))
                rows.append([label, *figures, setting, str(case.get("seeds", ""))])
                notes += _overdecayed(label, case, *found["sizes"][data])
        head = [
            "ranker",
            *(m.replace("recall", "Recall").replace("ndcg", "NDCG").replace("mrr", "MRR") for m in metrics),
        ]
        rows = rows_of(found, data, [*head, "chosen on validation", "seeds"], rows)
        parts.append("\n\n".join([f"### {data}", rows, *notes]))
    return (
        "## Solvers against SGD\n\n"
        "By the RG2 paper's protocol: 64 dimensions; ratings of 3 and more, plays once; "
        "every user and item with 5 pairs at least; .8/.1/.1 of each user's pairs at random, split anew for each seed; "
        "train and validation masked. Hyperparameters are the best of a grid on seed 0's validation part, the sweep or "
        "epoch is the best of each run's; the test part is judged once. Gowalla is the LightGCN split: a tenth of its "
        "train part chose, then all of it was trained on. λ of the closed form is a share of √2 σ₁. The paper's own "
        "figures come from its released code, which is RG2 with α. On ml-1m the grid of what is trained by SGD is "
        f"two by two, or smaller. {ENDS}\n\n"
        + "\n\n".join(parts)
        + f"\n\n![NDCG@10 against seconds](benchmarks/results/rg2.png)\n\n{origin(found)}"
    )


LIGHTGCN_DECAY = 1e-4  # the paper's, of ½ ‖e‖² of the batch's users, positives and negatives, divided by its size


def _overdecayed(label: str, case: dict, n_users: int, n_items: int) -> list[str]:
    """A note where LightGCN's decay of whole tables is far above what the paper's comes to.

    The paper's is on the rows of a batch. A user's row is among them with probability B / M and an item's with 2 B / N,
    so that in the mean over the batch's B triples it weighs rows by 1e-4 / M and 2e-4 / N on average.
    """
    times = [case.get("setting", {}).get("l2", 0) * n / LIGHTGCN_DECAY for n in (n_items / 2, n_users)]
    if not label.startswith("LightGCN") or max(times) < 10:
        return []
    return [
        f"{label}: its weight decay, {case['setting']['l2']:g} on whole tables, is {min(times):.0f} (items) to "
        f"{max(times):.0f} (users) times what LightGCN's paper has, so that the row understates LightGCN."
    ]


def sweeps(found: dict) -> str:
    """Seconds a sweep against implicit."""
    rows = []
    for name, case in found["cases"].items():
        mine, theirs = (
            f"{case[f'{side}_wall_s'] * 1000:.0f} ({case[f'{side}_cpu_s'] * 1000:.0f}), "
            f"{case[f'{side}_peak_mb']:.0f} MB, {case[f'{side}_recall@20']:.3f}"
            for side in ("jaxrec", "implicit")
        )
        rows.append([name, mine, theirs, f"{case['ratio']:.2f}", f"{case['jaxrec_first_s']:.1f} s"])
    large, head = found["large"], "wall ms a sweep (CPU), peak memory, Recall@20"
    return (
        "## Speed of ALS\n\n"
        "Seconds a sweep, both sides once, medians of fits in turn on all cores, below 1 jaxrec is faster. "
        "iALS solves implicit's own problem at its settings; RG2 solves another, for which implicit has nothing. "
        f"Recall is after {found['sweeps']} sweeps, untuned and from each library's own start.\n\n"
        f"{table(['', f'jaxrec: {head}', f'implicit: {head}', 'ratio', 'first sweep'], rows)}\n\n"
        f"A made-up set of {large['n_pairs']:,} pairs ({large['n_users']:,} users, {large['n_items']:,} items), 64 "
        f"dimensions: {large['sweep_s']:.2f} s a sweep of RG2, {large['peak_mb'] / 1024:.1f} GB at the peak, data and "
        f"imports included.\n\n![Seconds a sweep against size](benchmarks/results/als_speed.png)\n\n{origin(found)}"
    )


def speed(evaluation: dict, training: dict, sweep: dict, rowwise: dict) -> str:
    """Evaluation and training against peers, and a sweep against its runs one by one."""
    rows = []
    for found, peer in ((evaluation, "implicit"), (training, "torch")):
        for case, figures in found["cases"].items():
            mine, theirs = (f"{figures[f'{s}_wall_s']:.2f} s ({figures[f'{s}_cpu_s']:.2f} s)" for s in ("jaxrec", peer))
            first = figures["jaxrec_first_call_s"]
            label = case if found is evaluation else f"{figures['steps']} steps of {case}"
            rows.append([label, mine, f"{peer} {theirs}", f"{figures['ratio']:.2f}", f"{first:.2f} s"])
    for case, figures in sweep["cases"].items():
        sides = ("sweep", "sequential")
        first = figures["sweep_first_call_s"]
        if "sweep_wall_s" in figures:
            mine, theirs = (f"{figures[f'{s}_wall_s']:.2f} s ({figures[f'{s}_cpu_s']:.2f} s)" for s in sides)
        else:  # a case of first calls alone, compilation included
            mine, theirs = (f"{figures[f'{s}_first_call_s']:.2f} s" for s in sides)
        rows.append([case, mine, f"one by one {theirs}", f"{figures['ratio']:.2f}", f"{first:.2f} s"])
    peaks = evaluation["cases"]["gowalla top-20"]
    head = ["Gowalla, 64 dimensions", "jaxrec: wall (CPU)", "peer: wall (CPU)", "ratio", "jaxrec's first call"]
    steps = "; ".join(
        f"{case.removeprefix('MF-BPR, ')} "
        + ", ".join(f"{figures[f'{name}_wall_s'] * 1000:.1f}" for name in ("optax", "dense", "rowwise"))
        for case, figures in rowwise["cases"].items()
    )
    return (
        "## Speed of training and evaluation\n\n"
        "On CPU, medians of runs in turn, both on all cores; below 1 jaxrec is faster. Training is with "
        "dense Adam in both, which here is `optim.rowwise.dense_adam`; only the row called row-wise is "
        "`optim.rowwise.adam`, another algorithm. The first call includes compilation. Peak "
        f"memory of the top-20 process: jaxrec {peaks['jaxrec_peak_mb']:.0f} MB, "
        f"implicit {peaks['implicit_peak_mb']:.0f} MB.\n\n"
        f"{table(head, rows)}\n\n"
        "Milliseconds a step of MF-BPR (Gowalla, batches of 1,024) by `optax.adam`, `dense_adam` and row-wise `adam`: "
        f"{steps}.\n\n"
        f"{origin(evaluation)} {origin(training)} {origin(sweep)} {origin(rowwise)} "
        "On GPUs nothing has been measured yet."
    )


def facets_speed(found: dict) -> str:
    """An epoch of MARS by the released rule against dense PyTorch."""
    rows = []
    for name, case in found["cases"].items():
        mine, theirs = (
            f"{case[f'{side}_wall_s']:.1f} s ({case[f'{side}_cpu_s']:.1f} s), {case[f'{side}_peak_mb']:.0f} MB"
            for side in ("jaxrec", "torch")
        )
        first = f"{case['jaxrec_first_call_s']:.1f} s"
        rows.append([name, mine, theirs, f"{case['ratio']:.2f}", f"{case['cpu_ratio']:.2f}", first])
    head = ["", "jaxrec: wall (CPU), peak memory", "PyTorch", "ratio", "ratio of CPU", "jaxrec's first call"]
    return (
        "## Speed of MARS\n\n"
        f"An epoch by its released rule on Ciao, {found['batches']} batches of {found['batch_size']:,} "
        f"triples, {found['facets']} facets of {found['dim']} dimensions: touched rows against a dense PyTorch "
        "written for this from the rule's description. Medians of shares of the epoch in turn, scaled to it; below 1 "
        "jaxrec is faster. jaxrec draws its triples on the way, PyTorch has them drawn beforehand. One pass is the "
        "leaner way to make the step, two passes (positives and negatives apart) the released code's. The aim "
        "is a ratio of 0.1, which is not reached."
        f"\n\n{table(head, rows)}\n\n{origin(found)}"
    )


def planted_facets(found: dict) -> str:
    """Facets that were planted: who finds them, and what that is worth."""
    parts = []
    for data, best in found["single_best"].items():
        cases = {name.partition(": ")[2]: case for name, case in found["cases"].items() if name.startswith(data)}
        rows = [
            [label, *(_with_error(case, name) for name in ("metric", "difference", "narrow_difference"))]
            + [_agreement(case, side) for side in ("users", "items")]
            + [setting_of(found, data, label, case.get("setting", {}))]
            for label, case in cases.items()
        ]
        head = ["ranker", "NDCG@10", f"less {best}'s", "less 9 dimensions'", "users' facet", "items' facet", "chosen"]
        kept = [place for place in range(len(head)) if any(row[place] for row in rows)]
        rows = [[row[place] for place in kept] for row in rows]
        parts.append(f"### {data}\n\n{rows_of(found, data, [head[place] for place in kept], rows)}")
    total, size = found["facets"] * found["dim"], found["size"]
    mars = found["cases"]["spaces: MARS"]
    return (
        "## Planted facets\n\n"
        f"{found['facets']} planted, {size['n_users']} users, {size['n_items']} items; a model has "
        f"{total} dimensions, in {found['facets']} facets or in one space, unless the table says 9, as many as were "
        "planted. In spaces every item has a place on each of the spheres and users mix spheres; in clusters every "
        f"item belongs to one facet. Full ranking, {mars['seeds']} sets of each kind, differences paired by set; the "
        "single space compared with is the best on test of those with as many dimensions. Agreement is the share whose "
        "facet is the planted one under the best matching of names, in brackets for shuffled labels. Settings are "
        "those best on set 0's validation part, epochs each run's. MARS and K = 1 are under the full softmax with "
        f"Riemannian Adam, facets apart with `separation` too. {ENDS}\n\n"
        "**What this shows.** In spaces, MARS finds the users' "
        "facets if it learns θ, and not if θ is fixed, nor by its own loss, whose rate is at the edge of its grid; "
        "one run ended in a poor optimum, and with facets apart runs differ less. It is then better than one space of "
        "as many dimensions, and not better than one of the 9 planted. In clusters, where a product of as many "
        "dimensions as facets says all, MARS from a random start does not find the users' facets and gains "
        "nothing; from a non-negative factorisation it keeps what the factorisation alone has found.\n\n"
        + "\n\n".join(parts)
        + f"\n\n{origin(found)}"
    )


def _with_error(case: dict, name: str) -> str:
    error = case.get("stderr" if name == "metric" else f"{name}_stderr")
    sign = "" if name == "metric" else "+"
    return f"{case[name]:{sign}.4f} ± {error:.4f}" if error else ""


def _agreement(case: dict, side: str) -> str:
    if f"{side}_matched" not in case:
        return ""
    return f"{case[f'{side}_matched']:.2f} ± {case[f'{side}_matched_stderr']:.2f} ({case[f'{side}_chance']:.2f})"


def metric_learning(found: dict) -> str:
    """MAR, MARS and the baselines, a table a data set."""
    parts = []
    for data in found["data"]:
        protocols = [
            p for p in ("sampled", "full") if any(name.startswith(f"{data}, {p}: ") for name in found["cases"])
        ]
        cases = [
            {
                name.partition(": ")[2]: case
                for name, case in found["cases"].items()
                if name.startswith(f"{data}, {p}: ")
            }
            for p in protocols
        ]
        head = ["ranker", "HR@10", "HR@20", "NDCG@10", "NDCG@20"]
        head += ["best-on-test"] if protocols == ["sampled"] else ["NDCG@10, all items", "Recall@10, all items"]
        rows = [[label, *_sampled_and_full(label, cases), _setting(found, data, label, cases)] for label in cases[0]]
        parts.append(f"### {data}\n\n{rows_of(found, data, [*head, 'chosen (seeds)'], rows)}")
    return (
        "## MAR, MARS and metric learning\n\n"
        f"{found['dim']} dimensions, as many a facet on the published splits of "
        f"Ciao and Delicious and {found['dim'] // 2} elsewhere. HR and NDCG are by the released code's protocol, each "
        "held-out item among 100 sampled ones; the columns that say so rank all items, train and validation masked. "
        "Validation chose setting (on seed 0) and epoch, by its own HR@10 for the sampled figures and NDCG@10 for the "
        "others; best-on-test is what the released code prints, the best epoch on test for each figure. The sets "
        "called random are the same pairs with two of each user held out at random, anew for each seed. A power is "
        "that of popularity by which negatives are drawn; composed is facets on spheres under `losses.bsl`, with "
        "row-wise Riemannian Adam and 1,024 shared negatives. The paper's rule on free facets is its objective and "
        "step; its own facets are projections of one vector (equations 1 and 2), which no row here has. MAR and MARS "
        f"had one setting or two to choose from, and their rivals up to six. {ENDS}"
        "\n\n"
        "**What this shows.** The published splits hold out each user's items of the largest ids, which are rare, so "
        "that sorting by id beats MARS on Ciao, and negatives drawn by popularity, which teach a model to prefer rare "
        "items, are rewarded: with uniform ones the released rule loses nearly half of its HR@10 there, and BPR as "
        "well. On Delicious the id is above most baselines, and MARS above the id, but for the paper's rule on free "
        "facets. On random splits popularity counts again, and sampled figures mislead. On Ciao MARS with uniform "
        "negatives is far above popularity among 100 sampled items, and among all it is below, but for the paper's "
        "rule on free facets; on "
        "Delicious it has the highest HR@10 among sampled ones, and is behind BPR, MetricF and MAR among all; on "
        "Last.fm and ml-1m it is behind BPR among all, and by its released rule on ml-1m, half of whose margins are "
        "below .021, behind popularity. Facets on spheres under `losses.bsl` are above every baseline among all "
        "items on Ciao, level with the best on Delicious and Last.fm, and on ml-1m with BPR and NMF behind CML. One "
        "facet of as many numbers does as well as four on every set, so that the facets add nothing to the loss."
        "\n\n" + "\n\n".join(parts) + _varied(found["studies"]) + f"\n\n{origin(found)}"
    )


def _varied(studies: dict) -> str:
    """The studies of facets and weights, HR@10: a table for each thing varied on a data set."""
    if not studies:
        return ""
    parts = [
        "### Facets and weights",
        "![HR@10 against facets and weights](benchmarks/results/mars.png)",
        "Varied one at a time, HR@10 sampled: MARS by the released rule, MAR by the default one, with 32 dimensions a "
        "facet; in brackets the seeds of a row where there are several. Over users the standard error of a figure is "
        "about .006 on Ciao and .017 on Delicious. How many facets there are and how they are weighed shows no effect "
        "on either set. No pull at all costs .013 on Ciao, and about .01 on Delicious, which is within its errors; "
        "above 0 its weight shows none, as by the released gradient the pull has its full weight whatever is given.",
    ]
    for data, study in studies.items():
        for what, methods in study.items():
            values = list(dict.fromkeys(value for points in methods.values() for value in points))
            rows = []
            for name, points in methods.items():
                seeds = max(case["seeds"] for case in points.values())
                figures = [_with_spread(points[value], "metric") if value in points else "" for value in values]
                rows.append([name + (f" ({seeds})" if seeds > 1 else ""), *figures])
            parts.append(f"#### {data}, {what.replace('n_', '').replace('_', ' ')}\n\n{table(['', *values], rows)}")
    return "\n\n" + "\n\n".join(parts)


def _sampled_and_full(label: str, cases: list[dict]) -> list[str]:
    first = cases[0][label]
    row = [_with_spread(first, name) for name in ("hit_rate@10", "hit_rate@20", "ndcg@10", "ndcg@20")]
    if len(cases) > 1:
        return [*row, *(_with_spread(cases[1][label], name) for name in ("ndcg@10", "recall@10"))]
    return [*row, " / ".join(f"{value:.4f}" for value in first.get("best_on_test", {}).values())]


def _with_spread(case: dict, name: str) -> str:
    spread = case["stderr" if name == "metric" else f"{name}_stderr"]
    return f"{case[name]:.4f}" + (f" ± {spread:.4f}" if spread else "")


def _setting(found: dict, data: str, label: str, cases: list[dict]) -> str:
    texts = []
    for case in [rows[label] for rows in cases if "setting" in rows[label]]:
        setting = setting_of(found, data, label, case["setting"])
        texts.append(f"{setting} ({case['seeds']})".strip())
    return "; ".join(dict.fromkeys(texts))
