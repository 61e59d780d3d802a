"""Generates RESULTS.md, and the results in README.md, from the records in benchmarks/results/.

`python -m benchmarks.report` writes both files and draws the plots. `--check` writes nothing. It
fails if a file differs from what the records give, or if a row was not chosen from the current grid
of its method.
"""

from __future__ import annotations

import importlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import _claims, _leaderboard, _record
from benchmarks.studies import _plots, _results, _study

ROOT = pathlib.Path(__file__).parents[1]
BEGIN, END = "<!-- results: python -m benchmarks.report -->", "<!-- end of results -->"
STUDIES = ("mml", "published", "rg2", "mars", "mars_tuned", "facets", "lambda_opt", "valid", "fold_in")
SPEED = ("cold", "train", "scale", "rowwise", "sweep", "evaluate", "serving", "als", "mars", "lambda_opt", "valid")
KNOWN: dict[tuple[str, str, str], str] = {}
"""For (study, data set, method), the reason why `--check` accepts this stale record."""
HEAD = """# Results

`python -m benchmarks.report` generates this page from the records in `benchmarks/results/`. The
command below the tables of a study trains what is not recorded yet, and shows the tables; with
`--table` it only shows them. Data sets and rows without records are absent, also if the text of a
study describes them.
"""


def studies() -> dict[str, tuple[_study.Study, list[dict[str, Any]]]]:
    """Returns the studies that have records, with their records."""
    found = {name: importlib.import_module(f"benchmarks.studies.{name}").STUDY for name in STUDIES}
    return {name: (this, records) for name, this in found.items() if (records := _results.records_of(name))}


def measured(name: str) -> dict[str, Any] | None:
    """Returns the record of another benchmark; None if there is none."""
    path = _record.RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


# ---------------------------------------------------------------------- sections


def quickstart(found: Mapping[str, Any]) -> str:
    """Returns the section of the quickstart."""
    stars, rows = found["settings"]["minimum"], []
    for name, case in found["cases"].items():
        difference = f"{case['difference_from_popularity']:+.4f} ± {case['difference_stderr']:.4f}"
        deviation = "" if case["seed_deviation"] is None else f"{case['seed_deviation']:.4f}"
        score = f"{case['ndcg@10']:.4f} ± {case['stderr']:.4f}"
        rows.append([name, score, deviation, f"{case['recall@10']:.4f}", "" if name == "popularity" else difference])
    head = ["method", "NDCG@10", "deviation over seeds", "Recall@10", "NDCG@10 minus popularity, paired"]
    return (
        f"## MovieLens (small), {'every rating a positive' if stars <= 0.5 else f'ratings of {stars:g} stars and more'}"
        "\n\nThe latest 10 % of each user's pairs are test. The 10 % before them are validation, which chooses the "
        f"epoch. The protocol is: {found['protocol']}. Values are means of {found['settings']['seeds']} seeds ± "
        f"standard error over users. This data set is for development; no claim about the losses is based on it.\n\n"
        f"{_record.table(head, rows)}\n\n"
        f"{_record.origin(found)}"
    )


def speed(module: Any, found: Mapping[str, Any]) -> str:
    """Returns the section of a speed benchmark, with the columns that its module declares."""
    rows = []
    for name, case in found["cases"].items():
        values = case | {f"{key[:-2]}_ms": 1000 * value for key, value in case.items() if key.endswith("_s")}
        rows.append([name, *(cell(template, values) for template in module.COLUMNS.values())])
    parts = [f"## {module.TITLE}", module.__doc__.strip(), _record.table(["", *module.COLUMNS], rows)]
    more = [module.more(found)] if hasattr(module, "more") else []
    return "\n\n".join([*parts, *more, _record.origin(found)])


def cell(templates: str | Sequence[str], values: Mapping[str, Any]) -> str:
    """Formats the first template whose values are all known; empty if there is none."""
    for template in [templates] if isinstance(templates, str) else templates:
        try:
            return template.format_map(values)
        except KeyError:
            continue
    return ""


def contents(sections: list[str]) -> str:
    """Returns a list of links to the sections, by their headings."""
    titles = [section.partition("\n")[0].removeprefix("## ") for section in sections]
    return "\n".join(f"- [{title}](#{_anchor(title)})" for title in titles)


def _anchor(title: str) -> str:
    """Returns the anchor that GitHub gives to a heading."""
    kept = "".join(character for character in title.lower() if character.isalnum() or character in " -_")
    return kept.replace(" ", "-")


def summary(judgements: Sequence[Sequence[str]]) -> str:
    """Returns the table of README.md; `judgements` are those of the papers' claims."""
    rows = []
    if found := measured("speed_train"):
        bpr, mml = (1 / found["cases"][name]["ratio"] for name in ("MF-BPR, 1 negative", "MF-MML, 100 negatives"))
        said = f"PyTorch takes {bpr:.1f} times as long for BPR, and {mml:.1f} times for MML with 100 negatives"
        rows.append([f"An epoch of matrix factorisation with Adam, {found['cores']} CPU cores", said])
    if found := measured("speed_als"):
        ratios = [found["cases"][f"{data}, 64: iALS, CG"]["ratio"] for data in ("gowalla", "ml-1m")]
        said = f"{ratios[0]:.2f} (Gowalla) and {ratios[1]:.2f} (ml-1m) of the time of the library implicit"
        rows.append([f"A sweep of iALS by conjugate gradients, {found['cores']} CPU cores", said])
    if found := measured("speed_scale"):
        case = list(found["cases"].values())[-1]
        said = f"{case['epoch_wall_s']:.0f} s an epoch, and at most {case['peak_mb'] / 1024:.1f} GB of memory"
        rows.append([f"MF-BPR on {case['pairs']:,} pairs from disk, {found['cores']} CPU cores", said])
    if found := measured("accelerator"):
        bpr, als = (
            found["cases"][name]
            for name in (
                "MF-BPR: batches of 65,536, rowwise.adam",
                "ALS, 20 million pairs: 64 dimensions: iALS, 3 CG steps",
            )
        )
        said = f"{bpr['rate'] / 1e6:.0f} million pairs a second; iALS on 20 million pairs {als['seconds_text']} a sweep"
        rows.append([f"MF-BPR on one {found['device']}", said])
    if found := studies().get("rg2"):
        of_data = _results.tables(*found)["ml-1m"]
        of_data = {name: row for name, row in of_data.items() if _results.EARLIER not in row.marks}
        names = ("RG2, alpha tuned", "EASE", "ChebyCF", "iALS", "BSPM", "softmax", "BPR", "popularity")
        means = {name: of_data[name] for name in names if name in of_data}
        trials = {row.method: len(runs) for row, runs in _leaderboard.rows({"rg2": found}, "ml-1m")}
        tried = lambda name: f" ({trials[name]})" if trials.get(name) else ""  # noqa: E731
        shown = lambda row: f"{row.values['ndcg@10'].mean():.4f}{row.marks}"  # noqa: E731
        said = ", ".join(f"{name} {shown(row)}{tried(name)}" for name, row in means.items())
        seeds = len(of_data["iALS"].seeds)
        what = f"NDCG@10 of some methods on ml-1m, {seeds} seeds (settings tried; *: chosen at an end of the grid)"
        rows.append([what, said])
    verdicts = [verdict for claim, (_, _, verdict, *_) in zip(_claims.CLAIMS, judgements) if not claim.ours]
    counts = {each: verdicts.count(each) for each in ("reproduced", "in part", "not reproduced", "refuted", "open")}
    said = ", ".join(f"{count} {each}" for each, count in counts.items() if count)
    rows.append([f"{len(verdicts)} claims of five papers, by paired tests", said])
    return _record.table(["what", "result"], rows)


def headlines() -> str:
    """Returns the first section of RESULTS.md."""
    lines = []
    if found := measured("speed_train"):
        ratios = {name: 1 / case["ratio"] for name, case in found["cases"].items()}
        lines.append(
            f"Training on {found['cores']} CPU cores: with dense Adam, an epoch of MF-BPR takes PyTorch "
            f"{ratios['MF-BPR, 1 negative']:.1f} times as long as jaxrec, and MF-MML with 100 negatives "
            f"{ratios['MF-MML, 100 negatives']:.1f} times as long. An epoch of MF-BPR takes PyTorch's "
            f"dense Adam {ratios['MF-BPR, 1 negative, lazy']:.1f} times as long as `rowwise.lazy_adam`, "
            "another algorithm."
        )
    if found := measured("speed_scale"):
        case = list(found["cases"].values())[-1]
        lines.append(
            f"Training from disk on {found['cores']} CPU cores: an epoch of MF-BPR over {case['pairs']:,} pairs takes "
            f"{case['epoch_wall_s']:.0f} s, and the process at most {case['peak_mb'] / 1024:.1f} GB of memory."
        )
    if found := measured("speed_als"):
        rg2, cg, exact = (
            " / ".join(f"{found['cases'][f'{data}, 64: {kind}']['ratio']:.2f}" for data in ("gowalla", "ml-1m"))
            for kind in ("RG2", "iALS, CG", "iALS, exact")
        )
        lines.append(
            f"Time of a sweep of ALS, divided by that of implicit (64 dimensions, Gowalla / ml-1m): iALS with "
            f"conjugate gradients {cg}, exact iALS {exact}; RG2, which is another problem, {rg2} of implicit's "
            f"conjugate gradients."
        )
    if (found := measured("speed_cold")) and "ratio" in found["cases"]["gowalla: iALS, top-20"]:
        case = found["cases"]["gowalla: iALS, top-20"]
        lines.append(
            f"A whole process on Gowalla, from start to end: iALS to implicit's objective and top-20 lists of all "
            f"users take {case['ratio']:.2f} of implicit's time, and {case['cached_ratio']:.2f} if "
            "`jr.compilation_cache` has the programs of an earlier process."
        )
    if (found := measured("speed_serving")) and "ratio" in found["cases"]["64: top-20 of a user"]:
        top, fold = (found["cases"][f"64: {what}"] for what in ("top-20 of a user", "fold-in of a user's 50 items"))
        lines.append(
            f"A request to a warm server on Gowalla (64 dimensions, {found['cores']} CPU cores): the top-20 of a user "
            f"take {1000 * top['jaxrec_wall_s']:.1f} ms, and implicit {1000 * top['implicit_wall_s']:.1f} ms; the "
            f"fold-in of a user with 50 items takes {1000 * fold['jaxrec_wall_s']:.1f} ms, and implicit "
            f"{1000 * fold['implicit_wall_s']:.1f} ms."
        )
    if found := measured("accelerator"):
        bpr, gcn, als, lists = (
            found["cases"][name]
            for name in (
                "MF-BPR: batches of 65,536, rowwise.adam",
                "LightGCN: epoch, batches of 2,048",
                "ALS, 20 million pairs: 64 dimensions: iALS, 3 CG steps",
                "rankings: Gowalla, top-20",
            )
        )
        lines.append(
            f"On one {found['device']}: MF-BPR with batches of 65,536 trains {bpr['rate'] / 1e6:.0f} million pairs a "
            f"second, an epoch of LightGCN on Gowalla takes {gcn['seconds_text']}, a sweep of iALS on 20 million pairs "
            f"{als['seconds_text']}, and top-20 lists of all users of Gowalla {lists['seconds_text']}; see "
            "[Speed on an accelerator](#speed-on-an-accelerator)."
        )
    for this, records in studies().values():
        lines += this.headlines(_results.tables(this, records), records)
    said = "Some of the results; each is part of a section below."
    return "\n".join(["## Highlights", "", said, "", *(f"- {line}" for line in lines)])


# ---------------------------------------------------------------------- files


def written() -> dict[str, str]:
    """Returns the text of README.md and RESULTS.md that the records give."""
    sections = [headlines()] + ([quickstart(found)] if (found := measured("quickstart")) else [])
    judgements = _claims.judgements(studies())
    sections += [_leaderboard.section(studies()), _claims.section(studies(), judgements)]
    sections += [_results.section(this, records) for this, records in studies().values()]
    for name in ("categories", "accelerator"):
        if found := measured(name):
            sections.append(speed(importlib.import_module(f"benchmarks.{name}"), found))
    for name in SPEED:
        if found := measured(f"speed_{name}"):
            sections.append(speed(importlib.import_module(f"benchmarks.speed.{name}"), found))
    before, _, rest = (ROOT / "README.md").read_text().partition(BEGIN)
    return {
        "RESULTS.md": "\n\n".join([HEAD.rstrip(), contents(sections), *sections]) + "\n",
        "README.md": f"{before}{BEGIN}\n{summary(judgements)}\n{END}{rest.partition(END)[2]}",
    }


def stale() -> dict[tuple[str, str, str], str]:
    """Finds records that do not match the current grids.

    Returns:
        For each (study, data set, method), what is wrong.
    """
    found = {name: _results.stale(this, records) for name, (this, records) in studies().items()}
    return {(name, *row): reason for name, rows in found.items() for row, reason in rows.items()}


def unexpected(older: Mapping[tuple[str, str, str], str]) -> list[str]:
    """Returns messages for stale records not in `KNOWN`, and for its entries that are not stale."""
    new = [
        f"{study}, {data}, {method}: it {reason}; run python -m benchmarks.studies.{study} again"
        for (study, data, method), reason in older.items()
        if (study, data, method) not in KNOWN
    ]
    gone = [f"{', '.join(key)}: not stale; remove it from benchmarks/report.py" for key in KNOWN.keys() - older]
    return new + gone


def main() -> None:
    """Writes or checks the files."""
    parser = _record.parser("report", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    check = parser.parse_args().check
    wrong = {path: text for path, text in written().items() if text != (ROOT / path).read_text()}
    said = [f"{path} does not match the records; run python -m benchmarks.report and commit it" for path in wrong]
    if not check:
        for path, text in wrong.items():
            (ROOT / path).write_text(text)
            print(f"wrote {path}")
        for name, (this, records) in studies().items():
            if this.panes is not None:
                rows = _results.tables(this, records)
                _plots.picture(_record.RESULTS / f"{name}.png", this.panes(rows, records))
        said = []
    said += unexpected(stale())
    print("\n".join(said) or "README.md and RESULTS.md match the records, and the records match the current grids")
    sys.exit(1 if said else 0)


if __name__ == "__main__":
    main()
