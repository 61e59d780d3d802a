"""What a release promises: one version everywhere, and types for all public functions."""

import ast
import pathlib
import re

import pytest

import jaxrec as jr

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "jaxrec").rglob("*.py"))


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("file", "pattern"),
    [("CITATION.cff", r"^version: (\S+)$"), ("CHANGELOG.md", r"^## (\d\S*) \("), ("jaxrec/_version.py", r'= "(\S+)"$')],
)
def test_the_version_is_the_same_everywhere(file, pattern):
    assert re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)[1] == jr.__version__


def public_functions(body, inside=""):
    """Yields the public functions and methods in the body of a module or class."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield inside + node.name, node


@pytest.mark.every_case
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_have_types(path):
    for name, node in public_functions(ast.parse(path.read_text()).body):
        given = node.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        if "." in name and "staticmethod" not in map(ast.unparse, node.decorator_list):
            arguments.remove(given.args[0])  # self or cls
        lacking = [each.arg for each in arguments if each is not None and each.annotation is None]
        assert not lacking and node.returns is not None, f"{name} lacks types of {lacking or 'its result'}"
