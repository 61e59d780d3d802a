"""The words of the documentation: no file uses a phrase that the project has replaced by a plainer one."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = [
    *(ROOT / name for name in ("README.md", "LOSSES.md", "CONTRIBUTING.md")),
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if "_generated" not in path.parts),
    *sorted((ROOT / "jaxrec").rglob("*.py")),
]
# A phrase is here only if it has no other use in these files.
INSTEAD = {
    r"\blanes?\b": "run",
    r"\b(deals?|dealt)\b": "shard, or divide",
    r"\btouched( |_)(rows|only)\b": "rows that a step looks up, or lazy",
    r"\b(goes|go|going) on\b": "continues, or resumes",
    r"\b(begins|ends) bit-identical\b": "starts, or gives bit-identical results",
    r"\bties? (goes|go) against\b": "tied scores rank the test item last",
    r"\bwhatever (draws|passes)\b": "every random function",
    r"\bone's own\b": "your own, or its own",
    r"\bbeside\b": "next to",
    r"\bin turn\b": "alternately",
    r"\bapart\b(?! from)": "separately",
    r"\bat the door\b": "when it is created",
    r"\bmade (out of|of|on)\b": "built from, or generated from",
    r"\bcloses over\b": "the name of the thing",
    r": of the model\.": "the model's variables, as returned by `model.init`.",
    r"\bDiffers: as released\b": "Differs: follows the released code instead of the paper",
    r"\btrain\.History\b": "train.Log",
}


@pytest.mark.every_case
@pytest.mark.parametrize("phrase", INSTEAD)
def test_retired_words_stay_away(phrase):
    pattern = re.compile(phrase.replace(" ", r"[\s#>]+"))  # a phrase may continue on the next line
    hits = []
    for path in FILES:
        text = path.read_text()
        places = (text.count("\n", 0, hit.start()) + 1 for hit in pattern.finditer(text))
        hits += [f"{path.relative_to(ROOT)}:{place}" for place in places]
    assert not hits, f"write {INSTEAD[phrase]!r} instead of {phrase} in {hits}"
