"""The examples of the README and of the documentation run, and their links lead somewhere."""

import pathlib
import re
import warnings

import jax
import matplotlib
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "LOSSES.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_generated" not in page.parts and "```python\n" in page.read_text()]
NEEDS = {"optuna": "optuna", "logging": "tensorboardX", "ann": "usearch", "serving": "flatbuffers"}
"""The package without which the blocks of a page do not run."""


def program(page):
    """The blocks of a page, on the lines where they stand, with at most two epochs and sweeps."""
    text, lines = page.read_text(), []
    for found in re.finditer(r"^( *)```python\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        start = text[: found.start()].count("\n") + 1
        lines += [""] * (start - len(lines))
        lines += [line.removeprefix(found[1]) for line in found[2].splitlines()]
    return re.sub(r"\b(epochs|sweeps)=\d+", r"\1=2", "\n".join(lines))


@pytest.mark.every_case
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).with_suffix("").as_posix())
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    """One after another in one namespace, as a reader would run them."""
    if package := NEEDS.get(page.stem):
        pytest.importorskip(package, reason=f"the blocks of {page.name} need {package}")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("default")
        exec(compile(program(page), str(page), "exec"), namespace)
    assert "nan" not in capsys.readouterr().out.lower().split()


def test_links_of_the_pages_lead_to_files():
    """Those in Markdown, which are read without the site."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        if "_generated" in page.parts:
            continue
        for link in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"


def test_readme_fits_a_screen_and_a_half():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110
