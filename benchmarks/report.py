"""Makes RESULTS.md, and the list of results in README.md, from the records in benchmarks/results/.

`python -m benchmarks.report` writes them. `--check` writes nothing. It says whether the committed files are those of
the committed records, whatever has been measured since, and whether each row was chosen from today's grid.
"""

from __future__ import annotations

import io
import json
import pathlib
import subprocess
import sys
import tarfile
from collections.abc import Mapping

from benchmarks import _record, _stale, _tables
from benchmarks.studies import _lambda_tables, _valid_tables, facets, lambda_opt, mars, mml, rg2, valid

ROOT = pathlib.Path(__file__).parents[1]
BEGIN, END = "<!-- results: python -m benchmarks.report -->", "<!-- end of results -->"
SECTIONS = {
    _tables.quality: ("quickstart",),
    _tables.losses: ("mml",),
    _tables.solvers: ("rg2",),
    _tables.metric_learning: ("mars",),
    _tables.planted_facets: ("facets",),
    _lambda_tables.learned_regularisation: ("lambda_opt",),
    _valid_tables.interests: ("valid",),
    _tables.speed: ("evaluate_speed", "train_speed", "sweep_speed", "rowwise_speed"),
    _tables.sweeps: ("als_speed",),
    _tables.facets_speed: ("mars_speed",),
    _lambda_tables.learned_regularisation_speed: ("lambda_opt_speed",),
    _valid_tables.interests_speed: ("valid_speed",),
}
STUDIES = {"mml": mml, "rg2": rg2, "mars": mars, "facets": facets, "lambda_opt": lambda_opt, "valid": valid}
HEAD = """# Results

Every value is read from a record in `benchmarks/results/` by `python -m benchmarks.report`. Under each table stands the
command that made it from the records of single runs. Without `--table` that command first trains what has no record.
"""


def present() -> dict[str, str]:
    """Path -> text of the files that are read, as they are."""
    paths = [ROOT / "README.md", ROOT / "RESULTS.md", *sorted((ROOT / "benchmarks" / "results").glob("*.json*"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths if path.exists()}


def committed() -> dict[str, str]:
    """Path -> text of the files that are read, as they were last committed."""
    archive = ["git", "archive", "HEAD", "README.md", "RESULTS.md", "benchmarks/results"]
    packed = subprocess.run(archive, cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        names = [name for name in files.getnames() if name.endswith((".md", ".json", ".jsonl"))]
        return {name: files.extractfile(name).read().decode() for name in names}


def cells_of(texts: Mapping[str, str]) -> dict[str, list[_stale.Cell]]:
    """What each study's records compared, and what its grids hold today; a study without records is left out."""
    found = {}
    for study, module in STUDIES.items():
        if runs := _runs(texts, study):
            found[study] = list(module.cells(runs))
    return found


def _runs(texts: Mapping[str, str], study: str) -> list[dict]:
    return [json.loads(line) for line in texts.get(f"benchmarks/results/{study}.jsonl", "").splitlines()]


def records_of(texts: Mapping[str, str]) -> dict[str, dict]:
    """What backs each table; what a study derives comes from its runs."""
    names = [name for of_section in SECTIONS.values() for name in of_section]
    paths = {name: f"benchmarks/results/{name}.json" for name in names}
    records = {name: json.loads(texts[path]) for name, path in paths.items() if path in texts}
    for name in records.keys() & STUDIES.keys():
        if hasattr(STUDIES[name], "derived"):
            records[name] |= STUDIES[name].derived(_runs(texts, name))
    return records


def stale(texts: Mapping[str, str]) -> dict[tuple[str, str, str], str]:
    """(study, data set, method) -> what is wrong, where records are not those of the method's grid of today."""
    found: dict[tuple[str, str, str], str] = {}
    records = records_of(texts)
    for study, cells in cells_of(texts).items():
        found |= _stale.stale(study, cells)
        known = {(cell.data, cell.method) for cell in cells}
        rows = _tables.chosen_rows(records.get(study, {"cases": {}}))
        found |= {(study, *row): "has a row, but no record of what was compared for it" for row in rows - known}
    return found


def written(texts: Mapping[str, str], older: Mapping[tuple[str, str, str], str]) -> dict[str, tuple[str, str]]:
    """The files as they are, and as they should be; a section whose records are not there is left out.

    Args:
        texts: path -> text of README.md, RESULTS.md and the records.
        older: as `stale` gives it; these rows are marked.
    """
    records = records_of(texts)
    for (study, data, method), reason in older.items():
        records.get(study, {}).setdefault("stale", {})[f"{data}: {method}"] = reason
    for study, cells in cells_of(texts).items():
        compared = {f"{cell.data}: {cell.method}": cell.compared for cell in cells}
        records.get(study, {})["compared"] = compared  # which says what lies at an end
    tables = [
        section(*(records[name] for name in of_section))
        for section, of_section in SECTIONS.items()
        if set(of_section) <= set(records)
    ]
    readme = texts["README.md"]
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    return {
        "RESULTS.md": (texts.get("RESULTS.md", ""), "\n\n".join([HEAD.rstrip(), contents(tables), *tables]) + "\n"),
        "README.md": (readme, f"{before}{BEGIN}\n{headlines(records)}\n{END}{after}"),
    }


def contents(sections: list[str]) -> str:
    """A list of links to the sections by their headings."""
    titles = [section.partition("\n")[0].removeprefix("## ") for section in sections]
    return "\n".join(f"- [{title}](#{_anchor(title)})" for title in titles)


def _anchor(title: str) -> str:
    """What GitHub calls a heading."""
    kept = "".join(character for character in title.lower() if character.isalnum() or character in " -_")
    return kept.replace(" ", "-")


def headlines(records: dict[str, dict]) -> str:
    """A list of what the records show, for README.md."""
    lines = []
    if found := records.get("train_speed"):
        ratios = {name: 1 / case["ratio"] for name, case in found["cases"].items()}
        lines.append(
            f"Training on 2 CPU cores: an epoch of MF-BPR takes PyTorch's dense Adam "
            f"{ratios['MF-BPR, 1 negative, row-wise']:.1f} times as long as row-wise Adam here, which is another "
            f"algorithm, and {ratios['MF-BPR, 1 negative']:.1f} times as long as the same dense Adam; "
            f"MF-MML with 100 negatives {ratios['MF-MML, 100 negatives']:.1f} times."
        )
    if found := records.get("als_speed"):
        rg2, cg, exact = (
            " / ".join(f"{found['cases'][f'{data}, 64: {kind}']['ratio']:.2f}" for data in ("gowalla", "ml-1m"))
            for kind in ("RG2", "iALS, CG", "iALS, exact")
        )
        lines.append(
            f"A sweep of ALS as a share of implicit's (64 dimensions, Gowalla / ml-1m): iALS by conjugate gradients "
            f"{cg}, exact {exact}; RG2, which is another problem, {rg2} of its conjugate gradients."
        )
    if found := records.get("rg2"):
        names = ("RG2, alpha tuned", "iALS", "softmax", "BPR", "popularity")
        figures = ", ".join(f"{name} {found['cases'][f'ml-100k: {name}']['ndcg@10']:.4f}" for name in names)
        lines.append(f"ml-100k, NDCG@10 over 5 seeds: {figures}.")
    if found := records.get("mars"):
        lines.append(_audit(found["cases"]))
    if found := records.get("lambda_opt"):
        whole = [
            data for data in ("ml-100k", "ml-1m") if {f"{data}: {name}" for name in _LEARNED} <= set(found["cases"])
        ]
        lines += [_learned(data, found["cases"]) for data in whole]
    if found := records.get("valid"):
        tests = found["paired"]
        ended = [name for name in tests if name.partition(", ")[0] not in set(tests) - {name}]
        lines += [_interests(name, tests[name], found["cases"]) for name in ended if tests[name]["seeds"] >= 3]
    lines += [
        f"Chosen from an older grid than today's: {', '.join(rows)}."
        for name in STUDIES
        if (rows := _tables.older(records.get(name, {})))
    ]
    return "\n".join(f"- {line}" for line in lines)


def _interests(name: str, test: dict, cases: dict) -> str:
    data, _, limit = name.partition(", ")
    after = f", {limit}" if limit else ""
    of = {model: cases[f"{data}: {model}{after}"]["recall@20"] for model in ("VALID", "MacridVAE")}
    rows = {row.partition(": ")[2]: case["recall@20"] for row, case in cases.items() if row.startswith(f"{data}: ")}
    others = {
        row: value
        for row, value in rows.items()
        if not row.startswith(("VALID", "MacridVAE", "random", "item id", "popularity"))
    }
    best = max(others, key=others.__getitem__)
    which = "best of the others" if len(others) > 1 else "the only other"
    return (
        f"{data}{', at most' * bool(limit)}{after.removeprefix(',')}, Recall@20 over {test['seeds']} seeds: VALID "
        f"{of['VALID']:.4f}, MacridVAE {of['MacridVAE']:.4f} (difference, paired by users, {test['difference']:+.4f} ± "
        f"{test['users_stderr']:.4f}), {which} {best} {others[best]:.4f}, "
        f"popularity {rows['popularity']:.4f}."
    )


_LEARNED = ("λOpt DUI", "MF, one λ", "MF, one λ, on learn too")


def _learned(data: str, cases: dict) -> str:
    names = {name: f"{cases[f'{data}: {name}']['ndcg@50']:.4f}" for name in _LEARNED}
    seeds = cases[f"{data}: λOpt DUI"]["seeds"]
    return (
        f"Learned regularisation on {data}, NDCG@50 as λOpt's code counts it, {seeds} seed{'s' if seeds > 1 else ''}: "
        f"{names['λOpt DUI']}, one fixed λ {names['MF, one λ']}, and {names['MF, one λ, on learn too']} where its "
        "model trains on the validation pairs that moved the coefficients."
    )


def _most(figures: dict[str, float], table: str) -> str:
    """The best of a table's rows of MARS, and its best baseline."""
    rows = {name.partition(": ")[2]: value for name, value in figures.items() if name.startswith(table)}
    baselines = {name: value for name, value in rows.items() if not name.startswith(("MAR", "composed"))}
    baseline = max(baselines, key=baselines.__getitem__)
    most = max(value for name, value in rows.items() if name.startswith("MARS"))
    return f"MARS at most {most:.4f}, {baseline} {baselines[baseline]:.4f}"


def _audit(cases: dict) -> str:
    hits = {name: case["hit_rate@10"] for name, case in cases.items() if "hit_rate@10" in case}
    text = (
        f"On the published split of Ciao, made by item id, sorting items by their id has HR@10 "
        f"{hits['ciao, sampled: item id']:.4f} and learns nothing; MARS by its released rule has "
        f"{hits['ciao, sampled: MARS, released']:.4f} here (its paper: .3393)"
    )
    if "ciao, sampled: MARS, released, uniform negatives" in hits:
        text += f", and {hits['ciao, sampled: MARS, released, uniform negatives']:.4f} with uniform negatives"
    best = [f"ciao-random, sampled: composed, {facets}" for facets in ("4 facets", "1 facet")]
    if set(best) <= set(hits):
        text += (
            f". On a random split of the same pairs the id has {hits['ciao-random, sampled: item id']:.4f}, popularity "
            f"{hits['ciao-random, sampled: popularity']:.4f}, {_most(hits, 'ciao-random, sampled')}, and unit vectors "
            f"under `losses.bsl` {hits[best[0]]:.4f} as four facets, {hits[best[1]]:.4f} as one"
        )
        full = {name: case["ndcg@10"] for name, case in cases.items() if name.startswith("ciao-random, full")}
        text += (
            "; among all items, not 100 sampled, popularity has NDCG@10 "
            f"{full['ciao-random, full: popularity']:.4f}, {_most(full, 'ciao-random, full')}, and the four facets "
            f"{full['ciao-random, full: composed, 4 facets']:.4f}"
        )
    return text + "."


def main() -> None:
    """Writes or checks the tables."""
    parser = _record.parser("report", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    options = parser.parse_args()
    texts = committed() if options.check else present()
    older = stale(texts)
    files = written(texts, older)
    wrong = {path: new for path, (text, new) in files.items() if text != new}
    said = [f"{path} is not that of the records: run python -m benchmarks.report and commit" for path in wrong]
    if not options.check:
        for path, new in wrong.items():
            (ROOT / path).write_text(new)
            print(f"wrote {path}")
        said = []
    said += unexpected(older)
    print("\n".join(said) or f"{' and '.join(files)} are those of the records, and these of today's grids")
    sys.exit(1 if said else 0)


def unexpected(older: Mapping[tuple[str, str, str], str]) -> list[str]:
    """What is wrong with stale records that `_stale.KNOWN` does not name, and with names there that are not stale."""
    new = [
        f"{study}, {data}, {method}: not today's grid, as it {reason}; run python -m benchmarks.studies.{study} again"
        for (study, data, method), reason in older.items()
        if (study, data, method) not in _stale.KNOWN
    ]
    gone = [f"{', '.join(key)}: not stale; take it out of benchmarks/_stale.py" for key in _stale.KNOWN.keys() - older]
    return new + gone


if __name__ == "__main__":
    main()
