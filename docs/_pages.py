"""Writes the pages that are built from other files: the API reference, the results, the notebooks."""

from __future__ import annotations

import functools
import importlib
import pathlib
import re
from collections.abc import Iterator

API = {
    "core": (
        "Interactions",
        "jaxrec",
        "jaxrec.interactions",
        "jaxrec.sparse",
        "jaxrec.typing",
    ),
    "data": (
        "Data",
        "jaxrec.data.readers",
        "jaxrec.data.splits",
        "jaxrec.data.datasets",
        "jaxrec.data.synthetic",
    ),
    "losses": ("Losses", "jaxrec.losses"),
    "metrics": ("Metrics", "jaxrec.metrics"),
    "sampling": ("Sampling", "jaxrec.sampling"),
    "optim": (
        "Optimisers",
        "jaxrec.optim",
        "jaxrec.optim.rowwise",
        "jaxrec.optim.riemannian",
        "jaxrec.optim.regularization",
        "jaxrec.optim.lambda_opt",
        "jaxrec.optim.moments",
    ),
    "models": (
        "Models",
        "jaxrec.models",
        "jaxrec.models.attention",
        "jaxrec.models.implicit",
        "jaxrec.models.mars",
    ),
    "solvers": (
        "Solvers",
        *(
            f"jaxrec.solvers.{name}"
            for name in [
                "ials",
                "wrmf",
                "rg2",
                "ease",
                "nmf",
                "knn",
                "filters",
                "gauss_newton",
            ]
        ),
    ),
    "train": (
        "Training",
        "jaxrec.train",
        *(
            f"jaxrec.train.{name}"
            for name in ["autoencoders", "mars", "lambda_opt", "ncl", "ultragcn"]
        ),
    ),
    "evaluate": ("Evaluation", "jaxrec.evaluate"),
    "papers": (
        "Papers",
        *(
            f"jaxrec.papers.{name}"
            for name in ["mars", "lambda_opt", "mml", "rg2", "valid"]
        ),
    ),
    "study": ("Studies", "jaxrec.study"),
    "plotting": ("Plots", "jaxrec.plotting"),
}
"""For each page, its title and the modules that it describes."""

FOLDED = {
    "best-on-test",
    "budget",
    "CPU minutes per run",
    "chosen",
    "CPU seconds",
    "of all trials",
    "trials",
    "best epochs",
    "search",
    "Recall@20, validation",
    "evidence",
}
"""Columns of results that are in a table of their own, below the metrics."""


INCLUDED = {"New users by fold-in": "fold_in"}
"""For the title of a section of results that a page includes, the name of the included file."""


def write(docs: pathlib.Path) -> None:
    """Writes all pages into `docs/_generated`, which git ignores. Files that stay the same are not touched."""
    files: dict[pathlib.Path, str | bytes] = {}
    for name, (title, *modules) in API.items():
        files[pathlib.Path("api", f"{name}.rst")] = "\n".join(_api(title, modules))
    files |= _results((docs.parent / "RESULTS.md").read_text(), docs.parent)
    files |= _notebooks(docs.parent / "notebooks")
    folder = docs / "_generated"
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder) not in files:
            path.unlink()
    for path, content in files.items():
        target = folder / path
        content = content.encode() if isinstance(content, str) else content
        if not target.exists() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def on_the_site(text: str) -> str:
    """Returns a page whose links to files outside `docs/` lead to the pages that are built from them."""

    def results(found: re.Match) -> str:
        return f"](/_generated/results/{_slug(found[1]) if found[1] else 'index'}.md)"

    text = re.sub(r"\]\((?:\.\./)+RESULTS\.md(?:#([^)]+))?\)", results, text)
    text = re.sub(r"\]\((?:\.\./)+LOSSES\.md\)", "](/losses.md)", text)
    return re.sub(
        r"\]\((?:\.\./)+notebooks/([^)]+)\)", r"](/_generated/notebooks/\1)", text
    )


def _slug(title: str) -> str:
    """Returns the name of a section's page, from its title or its anchor."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower().replace("λ", "lambda")).strip("-")


# ---------------------------------------------------------------------- API reference


def public(module: str) -> list[str]:
    """Returns the public names of a module, in their order: of a package those that it exports."""
    found = importlib.import_module(module)
    package = hasattr(found, "__path__")
    listed = getattr(found, "__all__", None)
    kept = []
    for name, item in (
        vars(found).items()
        if listed is None
        else [(name, getattr(found, name)) for name in listed]
    ):
        home = getattr(item, "__module__", None) or ""
        if name.startswith("_") or type(item).__name__ == "module":
            continue
        ours = (
            home == module
            or (package and home.startswith("jaxrec"))
            or listed is not None
        )
        if ours and callable(item) and hasattr(item, "__name__"):
            kept.append(name)
    return kept


@functools.cache
def documented() -> dict[str, str]:
    """Returns for each name of an object that the site describes the name under which it does."""
    names: dict[str, str] = {}
    for _, *modules in API.values():
        for module in modules:
            names.setdefault(module, module)
            for name in _described(module):
                item = getattr(importlib.import_module(module), name)
                full = f"{module}.{name}"
                names[full] = full
                names.setdefault(f"{getattr(item, '__module__', module)}.{name}", full)
                if isinstance(item, type):
                    names |= {
                        f"{full}.{member}": f"{full}.{member}"
                        for member in _members(item)
                    }
    return names


def _described(module: str) -> list[str]:
    """Returns the public names of a module that no package above it exports."""
    package = module.rpartition(".")[0]
    above = (
        set(public(package))
        if package.count(".") >= 1 and f"{package}" in _all_modules()
        else set()
    )
    return [name for name in public(module) if name not in above]


def _all_modules() -> set[str]:
    return {module for _, *modules in API.values() for module in modules}


def _members(item: type) -> list[str]:
    """Returns the methods and properties of a class that have a docstring."""
    return [
        name
        for name, member in vars(item).items()
        if not name.startswith("_")
        and getattr(member, "__doc__", None)
        and type(member).__name__ != "_tuplegetter"
    ]


def _api(title: str, modules: list[str]) -> Iterator[str]:
    """Yields the lines of a page of the reference: for each module a table, then its functions and classes."""
    yield from (title, "=" * len(title), "")
    for module in modules:
        names = _described(module)
        if len(modules) > 1:
            yield from (module, "-" * len(module), "")
        yield from (f".. automodule:: {module}", "")
        if not names:
            continue
        yield from (
            f".. currentmodule:: {module}",
            "",
            ".. autosummary::",
            "   :nosignatures:",
            "",
        )
        yield from (f"   {name}" for name in names)
        yield ""
        for name in names:
            kind = (
                "class"
                if isinstance(getattr(importlib.import_module(module), name), type)
                else "function"
            )
            yield f".. auto{kind}:: {module}.{name}"
            if kind == "class":
                yield "   :members:"
            yield ""
    yield ""


# ---------------------------------------------------------------------- results


def _results(text: str, root: pathlib.Path) -> dict[pathlib.Path, str | bytes]:
    """Returns a page for each section of RESULTS.md, and the pictures."""
    head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    files: dict[pathlib.Path, str | bytes] = {}
    names = []
    for section in sections:
        title, _, body = section.partition("\n")
        name = _slug(title)
        names.append(name)
        for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", body):
            files[pathlib.Path("results", pathlib.Path(path).name)] = (
                root / path
            ).read_bytes()
        if title in INCLUDED:
            files[pathlib.Path("claims", f"{INCLUDED[title]}.md")] = _shown(body)
        body = re.sub(r"\]\(#([^)]+)\)", lambda found: f"]({_slug(found[1])}.md)", body)
        body = re.sub(r"(!\[[^\]]*\])\(([^)]+/)?([^)/]+)\)", r"\1(\3)", body)
        files[pathlib.Path("results", f"{name}.md")] = (
            f"# {title}\n\n" + "\n\n".join(_folded(body)) + "\n"
        )
    files |= _claims(text)
    said = head.partition("- [")[0].removeprefix("# Results").strip()
    toc = "\n".join(names)
    files[pathlib.Path("results", "index.md")] = (
        f"# Results\n\n{said}\n\n{MARKS}\n```{{toctree}}\n:maxdepth: 1\n\n{toc}\n```\n"
    )
    return files


def _claims(text: str) -> dict[pathlib.Path, str | bytes]:
    """Returns for each paper the rows of the table of claims, which its page includes."""
    section = text.partition("## Claims of the papers")[2]
    head, _, *lines = re.search(r"(?:^\| [^\n]*\n)+", section, re.MULTILINE)[
        0
    ].splitlines()
    names = [cell.strip() for cell in head.strip("|").split(" | ")]
    wanted = [
        names.index(name) for name in ("claim", "verdict", "data sets", "evidence")
    ]
    tables: dict[str, list[list[str]]] = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        tables.setdefault(cells[names.index("paper")], [names]).append(
            [*cells, *[""] * len(names)][: len(names)]
        )
    return {
        pathlib.Path(
            "claims", f"{paper.lower().replace('λopt', 'lambda_opt')}.md"
        ): _table(rows, wanted) + "\n"
        for paper, rows in tables.items()
    }


def _shown(body: str) -> str:
    """Returns the paired tests and the tables of a section without settings, for a page that includes them."""
    kept = []
    for part in re.split(r"\n{2,}", body.strip()):
        if part.startswith("- "):
            kept.append(part)
        elif part.startswith("### "):
            kept.append(f"**{part[4:]}**")
        elif part.startswith("| "):
            kept.append(next(_tables(part)))
    return "\n\n".join(kept) + "\n"


MARKS = """Every table has the trivial rankers: random, item id and popularity. Metrics are those of a full ranking
unless the table says "sampled". Below a table, "settings and cost" has its other columns. The marks are:
`*` a chosen value is at an end of its grid, `^` the best epoch is the last one, `1` fewer than three seeds,
`!` the record is older than its grid, `°` the grid is an earlier one with fewer settings. [Evaluation protocols and
their traps](../../evaluation.md) says how to read the metrics.
"""


def _folded(body: str) -> Iterator[str]:
    """Yields the parts of a section: its protocol and its paired tests are folded, and its tables are narrow."""
    parts = re.split(r"\n{2,}", body.strip())
    lead, rest = parts[0], parts[1:]
    yield lead
    protocol = []
    while rest and not rest[0].startswith(("#", "|", "- ", "**", "!", "`python")):
        protocol.append(rest.pop(0))
    if protocol:
        yield _dropdown("Protocol", "\n\n".join(protocol))
    while rest:
        part = rest.pop(0)
        if (
            part.startswith("**What the records show.**")
            and rest
            and rest[0].startswith("- ")
        ):
            yield _dropdown(
                "Paired tests",
                part.replace("**What the records show.** ", "") + "\n\n" + rest.pop(0),
            )
        elif part.startswith("| "):
            yield from _tables(part)
        elif part.startswith("#"):
            yield part[1:]
        else:
            yield part


def _dropdown(title: str, text: str) -> str:
    return f"::::{{dropdown}} {title}\n{text}\n::::"


def _tables(text: str) -> Iterator[str]:
    """Yields a table of the first column and the metrics, and a folded one of the other columns."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        for line in text.splitlines()
    ]
    head = rows[0]
    width = len(head)
    rows = [rows[0], *([*row, *[""] * width][:width] for row in rows[2:])]
    others = [place for place, name in enumerate(head) if place and name in FOLDED]
    yield _table(rows, [place for place in range(width) if place not in others])
    kept = [row for row in rows[1:] if any(row[place] for place in others)]
    if kept:
        title = "Evidence" if "evidence" in head else "Settings and cost"
        names = [0, head.index("claim")] if "claim" in head else [0]
        yield _dropdown(title, _table([head, *kept], [*names, *others]))


def _table(rows: list[list[str]], places: list[int]) -> str:
    lines = [
        "| " + " | ".join(row[place] or " " for place in places) + " |" for row in rows
    ]
    lines.insert(1, "| " + " | ".join("---" for _ in places) + " |")
    return "\n".join(lines)


# ---------------------------------------------------------------------- notebooks


def _notebooks(folder: pathlib.Path) -> dict[pathlib.Path, str | bytes]:
    """Returns the notebooks and their index."""
    files: dict[pathlib.Path, str | bytes] = {}
    for path in sorted(folder.glob("*.ipynb")):
        files[pathlib.Path("notebooks", path.name)] = path.read_bytes()
    listed = "\n".join(path.stem for path in files)
    said = "The notebooks of the folder `notebooks/`, which the tests execute."
    files[pathlib.Path("notebooks", "index.md")] = (
        f"# Notebooks\n\n{said}\n\n```{{toctree}}\n{listed}\n```\n"
    )
    return files
