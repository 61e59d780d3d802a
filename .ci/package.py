"""Checks a built package: what wheel and sdist contain, and that the wheel works where it is installed.

`contents <folder>` needs only the standard library. `use` needs the installed wheel, without extras.
"""

from __future__ import annotations

import pathlib
import sys
import tarfile
import zipfile

MOST = 1 << 20  # bytes
TOP = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "LOSSES.md", "MANIFEST.in", "PKG-INFO", "README.md"}
TOP |= {"pyproject.toml", "setup.cfg"}


def contents(folder: pathlib.Path) -> None:
    """Checks that wheel and sdist have the modules, and no tests, records or pictures."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as opened:
        in_wheel = {name for name in opened.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as opened:
        in_sdist = {member.name.partition("/")[2] for member in opened.getmembers() if member.isfile()}
    modules = {str(path) for path in pathlib.Path("jaxrec").rglob("*.py")} | {"jaxrec/py.typed"}
    assert in_wheel == modules, f"the wheel and jaxrec/ differ in {sorted(in_wheel ^ modules)}"
    rest = {name for name in in_sdist - modules - TOP if not name.startswith("jaxrec.egg-info/")}
    assert modules <= in_sdist and not rest, f"the sdist has {sorted(rest)}, lacks {sorted(modules - in_sdist)}"
    sizes = {path.name: path.stat().st_size for path in (wheel, sdist)}
    assert max(sizes.values()) < MOST, sizes
    print(", ".join(f"{name} has {size / 1024:.0f} kB" for name, size in sizes.items()))


def use() -> None:
    """Trains matrix factorisation for an epoch, and ranks."""
    from functools import partial
    from importlib import metadata

    import jax
    import optax

    import jaxrec as jr

    assert "site-packages" in jr.__file__, f"{jr.__file__} is not the installed package"
    assert jr.__version__ == metadata.version("jaxrec"), f"{jr.__version__}, {metadata.version('jaxrec')}"
    train, test = jr.data.synthetic.checkerboard(32)
    model, tx = jr.models.MF(train.n_users, train.n_items, dim=8), optax.adam(0.1)
    sample = partial(jr.sampling.uniform, n_items=train.n_items, n=4)
    objective = partial(jr.train.pairwise_objective, model=model, loss=jr.losses.bpr, sample=sample)
    state = jr.train.init(jax.random.key(0), model, tx)
    state, log = jr.train.fit(state, objective, tx, train, epochs=1, batch_size=64, progress=False)
    print(log, jr.evaluate.full_ranking(model, state.variables, train, test), sep="\n")


if __name__ == "__main__":
    use() if sys.argv[1] == "use" else contents(pathlib.Path(sys.argv[2]))
