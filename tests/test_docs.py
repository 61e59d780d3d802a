"""The examples of the README and of the documentation run, and their links lead somewhere."""

import functools
import pathlib
import re
import warnings

import jax
import matplotlib
import numpy as np
import pytest

from jaxrec.data import datasets, splits

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "LOSSES.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_generated" not in page.parts and "```python\n" in page.read_text()]
NEEDS = {"optuna": "optuna", "logging": "tensorboardX", "ann": "usearch", "serving": "flatbuffers"}
"""The package without which the blocks of a page do not run."""
QUICK = {"README", "LOSSES", "install"}
"""The pages whose blocks take a few seconds; those of the others run with `-m deep`."""


def program(page):
    """The code blocks of a page, on their lines of the page, with at most eight epochs and sweeps."""
    text, lines = page.read_text(), []
    for found in re.finditer(r"^( *)```python\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        start = text[: found.start()].count("\n") + 1
        lines += [""] * (start - len(lines))
        lines += [line.removeprefix(found[1]) for line in found[2].splitlines()]
    return re.sub(r"\b(epochs|sweeps)=(\d\d|9)\b", r"\1=8", "\n".join(lines))


def small(name, *, minimum=None, load=datasets.load, n_users=110, n_items=300):
    """A part of a data set: the first users, and the most popular of their items."""
    whole = load(name, minimum=minimum)
    users, items = whole.interactions.pairs()
    popular = np.argsort(-whole.interactions.item_degrees, kind="stable")[:n_items]
    keep = (users < n_users) & np.isin(items, popular)
    data, id_map = splits.compact(whole.interactions.select(keep), whole.id_map)
    places = whole.id_map.item_ids(id_map.items)
    features = {name: column[places] for name, column in whole.features.items()}
    return whole._replace(interactions=data, id_map=id_map, features=features)


def run(page, tmp_path, monkeypatch):
    """Runs the blocks of a page in one namespace, as a reader would."""
    if package := NEEDS.get(page.stem):
        pytest.importorskip(package, reason=f"the blocks of {page.name} need {package}")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("default")
        exec(compile(program(page), str(page), "exec"), {"__name__": "__main__"})


def name_of(page):
    return page.relative_to(ROOT).with_suffix("").as_posix()


@pytest.mark.every_case
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=name_of(page), marks=[pytest.mark.deep] * (page.stem not in QUICK)) for page in PAGES],
)
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    """They run on a part of the data."""
    monkeypatch.setattr(datasets, "load", functools.cache(small))
    run(page, tmp_path, monkeypatch)
    assert "nan" not in capsys.readouterr().out.lower().split()


@pytest.mark.deep
@pytest.mark.optimised
@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "tutorial.md"], ids=name_of)
def test_the_first_examples_run_on_all_data(page, tmp_path, monkeypatch, capsys):
    run(page, tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert "full ranking of 9066 items" in said and "nan" not in said.lower().split()


def test_links_of_the_pages_lead_to_files():
    """These are the links in Markdown files, which people also read without the site."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        if "_generated" in page.parts:
            continue
        for link in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"


def test_readme_fits_a_screen_and_a_half():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_tables_of_results_keep_their_metrics_and_fold_the_rest(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import _pages

    table = (
        "| method | NDCG@10 | chosen | seeds |\n| --- | --- | --- | --- |\n| A | 0.1 | rate 3 | 5 |\n| B | 0.2 |  | 5 |"
    )
    section = f"What it is.\n\nHow it was\nmeasured.\n\n### data\n\n{table}\n\nThe end."
    parts = list(_pages._folded(section))
    assert (
        parts[0] == "What it is." and "dropdown} Protocol\nHow it was\nmeasured." in parts[1] and parts[2] == "## data"
    )
    assert parts[3].splitlines()[::3] == ["| method | NDCG@10 | seeds |", "| B | 0.2 | 5 |"]
    assert "| A | rate 3 |" in parts[4] and "| B |" not in parts[4] and parts[5] == "The end."
    tests = "**What the records show.** Paired.\n\n- A: above B."
    shown = _pages._shown(f"What it is.\n\n{tests}\n\n### data\n\n{table}\n\nThe end.").split("\n\n")
    assert shown[:2] == ["- A: above B.", "**data**"] and shown[2] == parts[3] + "\n" and len(shown) == 3


def test_pages_include_files_that_results_give(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import _pages

    files = {f"_generated/{path}" for path in _pages._results((ROOT / "RESULTS.md").read_text(), ROOT)}
    for page in [path for path in (ROOT / "docs").rglob("*.md") if "_generated" not in path.parts]:
        for name in re.findall(r"{include} (?:\.\./)+(_generated/claims/\S+)", page.read_text()):
            assert name in files, f"{page.name} includes {name}"


def test_docstrings_become_markup(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import _docstrings

    text = """Sums |x|, as `losses.bpr` and `f(a,
b)`s do.

    x = y * 2

Args:
    n_items: N.

Returns:
    A dict {"a": 1}.

>>> x * 2
"""
    lines = text.splitlines()
    _docstrings.process(None, "function", "jaxrec.losses.bpr", None, None, lines)
    said = "\n".join(lines)
    assert r"Sums \|x\|, as :py:obj:`losses.bpr <jaxrec.losses.bpr>` and ``f(a, b)``\ s do." in said
    assert ".. code-block:: text\n\n    x = y * 2" in said and r"n_items: N\." in said
    assert ':returns:\n    A dict {"a": 1}.' in said and "\n>>> x * 2" in said
