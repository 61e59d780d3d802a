"""The pages of the papers: every function, study and preset that they name exists."""

import functools
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec as jr
from jaxrec import papers

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [papers.lambda_opt, papers.mars, papers.mml, papers.rg2, papers.valid]


def resolved(page, name):
    """The object of a dotted name, in jaxrec or in the page's module."""
    first, *rest = name.split(".")
    start = getattr(page, first) if hasattr(page, first) else getattr(jr, first)
    return functools.reduce(getattr, rest, start)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.__name__)
def test_what_a_page_names_exists(page):
    rows = [line for line in page.__doc__.splitlines() if line.startswith("| ")]
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[2])]
    assert len(names) > 5
    for name in names:
        if name.endswith((".py", ".ipynb")):
            assert (ROOT / name).exists(), name
            continue
        outer, inner = re.match(r"([\w.]+)(?:\(\w+=([\w.]+)\))?$", name).groups()
        assert callable(resolved(page, outer)) or outer.count(".") < 2, name
        assert inner in (None, "True") or callable(resolved(page, inner)), name


def test_presets_cannot_be_changed_in_place():
    for name in ("PAPER", "PAPER_MAR", "FREE_FACETS", "RELEASED", "DEFAULT"):
        preset = getattr(papers.mars, name)
        with pytest.raises(TypeError):
            preset["model"]["n_facets"] = 2
        with pytest.raises(TypeError):
            preset["model"] = {}


@pytest.mark.deep
def test_settings_of_mml_are_those_of_the_paper():
    pos, neg = jnp.array(0.5), jnp.array([0.95])
    # 0.5 + 700 (0.1 · 0.25 + 0.15 · 0.15 + 0.75 · 0.05)
    np.testing.assert_allclose(jr.losses.mml(pos, neg, **papers.mml.GOWALLA), 60.0, rtol=1e-5)
    # 0.5 + 400 (0.05 · 0.35 + 0.15 · 0.25 + 0.2 · 0.15 + 0.6 · 0.05)
    np.testing.assert_allclose(jr.losses.mml(pos, neg, **papers.mml.YELP2018), 46.5, rtol=1e-5)
