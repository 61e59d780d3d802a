"""Settings of the site: `sphinx-build -W -b html docs build/docs`."""

from __future__ import annotations

import concurrent.futures
import pathlib
import sys
import urllib.request
from importlib.metadata import version as version_of

from sphinx.domains.python import PyObject

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import _docstrings  # noqa: E402
import _pages  # noqa: E402

_pages.write(HERE)

project = "jaxrec"
author = "the authors of jaxrec"
release = version = version_of("jaxrec")
copyright = "the authors of jaxrec, Apache-2.0"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "myst_nb",
    "sphinx_design",
]
exclude_patterns = ["_generated/claims"]
templates_path = []
default_role = "code"
nitpicky = False

# ---------------------------------------------------------------------- pages

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests run the notebooks

# ---------------------------------------------------------------------- docstrings

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "none"  # docstrings say what an argument is
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False
maximum_signature_line_length = 70
add_module_names = False
python_display_short_literal_types = True

# ---------------------------------------------------------------------- other projects

_OTHERS = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "jax": "https://docs.jax.dev/en/latest/",
    "flax": "https://flax.readthedocs.io/en/stable/",
    "optax": "https://optax.readthedocs.io/en/latest/",
}


def _reachable(address: str) -> bool:
    """Returns whether the list of a site's names can be fetched now."""
    try:
        with urllib.request.urlopen(f"{address}objects.inv", timeout=3):
            return True
    except OSError:
        return False


# Sphinx warns of a site that it cannot reach, and warnings are errors. Without a network the names of
# other projects are text instead of links.
with concurrent.futures.ThreadPoolExecutor(len(_OTHERS)) as _threads:
    _found = list(_threads.map(_reachable, _OTHERS.values()))
intersphinx_mapping = {
    name: (address, None) for (name, address), ok in zip(_OTHERS.items(), _found) if ok
}
intersphinx_timeout = 10
print(
    f"other projects that are linked: {', '.join(intersphinx_mapping) or 'none, they cannot be reached'}"
)

# ---------------------------------------------------------------------- looks

html_theme = "furo"
html_title = f"jaxrec {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b5cad",
        "color-brand-content": "#0b5cad",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7ab8f5",
        "color-brand-content": "#7ab8f5",
    },
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def _on_the_site(app, name: str, source: list[str]) -> None:
    source[0] = _pages.on_the_site(source[0])


def setup(app) -> None:
    """Registers what prepares pages and docstrings for Sphinx."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("source-read", _on_the_site)
    app.connect(
        "autodoc-process-docstring", _docstrings.process, priority=100
    )  # before napoleon
    app.connect("autodoc-process-signature", _docstrings.signature)
    app.connect("autodoc-skip-member", _docstrings.skip)
