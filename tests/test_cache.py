"""The cache of compiled programs: a second process compiles nothing."""

import pathlib
import subprocess
import sys

import pytest

from jaxrec import _cache

CODE = """
import jax, sys, jaxrec as jr
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
folder = jr.compilation_cache(sys.argv[1])
jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
print(folder, sum("cache_misses" in e for e in events), sum("cache_hits" in e for e in events))
"""


@pytest.mark.deep
def test_a_second_process_finds_the_programs_of_the_first(tmp_path):
    folder = tmp_path / "a" / "b"
    runs = []
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", CODE, folder], capture_output=True, text=True, check=True)
        path, misses, hits = run.stdout.split()
        assert path == str(folder)
        runs.append((int(misses), int(hits)))
    (first_misses, first_hits), (misses, hits) = runs
    assert first_misses > 0 and first_hits == 0
    assert misses == 0 and hits == first_misses
    assert list(folder.iterdir())


def test_the_folder_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path))
    assert _cache.cache_folder() == tmp_path
    monkeypatch.setenv("JAXREC_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    folder = _cache.cache_folder()
    assert "jaxrec" in folder.parts and isinstance(folder, pathlib.Path)
