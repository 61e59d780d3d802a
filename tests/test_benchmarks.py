"""Every benchmark explains itself; README's figures are those of the records."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))


def run(*arguments):
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_option(script):
    done = run(f"benchmarks.{script}", "--help")
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout and script in done.stdout


def test_tables_in_the_readme_are_made_from_the_records():
    done = run("benchmarks.report", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_records_say_what_was_run(path):
    record = json.loads(path.read_text())
    assert record["cases"] and record["command"].startswith("python -m benchmarks.")
    assert {"commit", "jax", "device", "data", "date"} <= set(record)
