"""Prepares docstrings for Sphinx: they are plain text with Markdown's backticks and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

import _pages

SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Warns|Yields):$")
CODE = re.compile(r"(`[^`]+`)")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")


def process(app, what, name, obj, options, lines: list[str]) -> None:
    """Rewrites the lines of a docstring in place, in reStructuredText."""
    module = name if what == "module" else getattr(obj, "__module__", None) or "jaxrec"
    lines[:] = list(_rewritten(_joined(lines), module))


def _joined(lines: list[str]) -> list[str]:
    """Joins lines between which code continues, such as `partial(f,` and `n=1)`."""
    found: list[str] = []
    for line in lines:
        inside = (
            found
            and found[-1].count("`") % 2
            and not found[-1].lstrip().startswith(">>>")
        )
        if inside and line.strip():
            found[-1] += " " + line.strip()
        else:
            found.append(line)
    return found


def _rewritten(lines: list[str], module: str) -> Iterator[str]:
    """Yields lines in which code and symbols are marked up, and blocks are literal.

    "Returns:" becomes a field here: napoleon would take the text before a colon for a type.
    """
    section, before, block = False, "", None
    for line in lines:
        bare, indent = line.strip(), len(line) - len(line.lstrip())
        if block == "table" and not bare.startswith("|"):
            block = None
        if block == "doctest" and not bare:
            block = None
        if block == "literal" and bare and indent < 4:
            block = None
        if line == "Returns:":
            section = True
            yield from ("", ":returns:")
            continue
        if SECTION.match(line):
            section = True
        elif bare and indent == 0:
            section = False
        if block is None and bare:
            if bare.startswith(">>>"):
                block = "doctest"
            elif bare.startswith("|") and bare.endswith("|") and bare.count("|") > 2:
                block = "table"
                yield from _table_head(bare)
                before = bare
                continue
            elif (
                indent >= 4
                and not before
                and not section
                and not bare.startswith(("- ", "* "))
            ):
                block = "literal"
                yield from (".. code-block:: text", "")
        if block == "table":
            yield from _table_row(bare, module)
        elif block in ("doctest", "literal"):
            yield line
        else:
            yield _marked(line, module)
        before = bare


def _table_head(line: str) -> Iterator[str]:
    """Starts a table from the first row of a Markdown table."""
    yield from (".. list-table::", "   :header-rows: 1", "")
    yield from _table_row(line, "jaxrec")


def _table_row(line: str, module: str) -> Iterator[str]:
    """Yields a row of a Markdown table."""
    if set(line) <= set("|-: "):
        return
    for number, cell in enumerate(line.strip("|").split("|")):
        yield f"   {'* -' if number == 0 else '  -'} {_marked(cell.strip(), module)}"


def _marked(line: str, module: str) -> str:
    """Returns a line with its code marked, and the symbols of reStructuredText escaped elsewhere.

    "N." alone would start a numbered list.
    """
    line = re.sub(r"(^|: )( *[A-Za-z])\.( |$)", r"\1\2\\.\3", line)
    parts = CODE.split(line)
    for place, part in enumerate(parts):
        if place % 2 == 0:
            parts[place] = re.sub(
                r"(?<!\\)([*|@])|_(?=\W|$)", lambda found: "\\" + found.group(), part
            )
            continue
        before, after = parts[place - 1][-1:], parts[place + 1][:1]
        code = _linked(part[1:-1], module)
        glue = "\\ " if before and (before.isalnum() or before in "’") else ""
        parts[place] = glue + code + ("\\ " if after.isalnum() else "")
    return "".join(parts)


def _linked(code: str, module: str) -> str:
    """Returns code as a link if it is the name of something public, else as it is."""
    if NAME.match(code):
        for start in ("jaxrec", *_parents(module)):
            full = f"{start}.{code}".removeprefix("jaxrec.jaxrec.")
            if (found := _documented(full)) is not None:
                return f":py:obj:`{code} <{found}>`"
    return f"``{code}``"


def _parents(module: str) -> Iterator[str]:
    """Yields a module, and the public packages that contain it."""
    parts = module.split(".")
    for length in range(len(parts), 1, -1):
        yield ".".join(parts[:length])


def _documented(full: str) -> str | None:
    """Returns the name under which the site documents an object; None if it does not."""
    return _pages.documented().get(full)


def signature(app, what, name, obj, options, text: str | None, returns: str | None):
    """Removes what Linen adds to the arguments of a module, and addresses in memory."""
    if text:
        text = re.sub(r",? ?\*?,? ?parent=<[^>]*>, ?name=None", "", text)
        text = re.sub(r"<function (?:\w+\.)*(\w+) at 0x[0-9a-f]+>", r"\1", text)
        text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    return text, returns


def skip(app, what, name, obj, skipped: bool, options) -> bool | None:
    """Leaves out the fields of a NamedTuple, which its docstring describes."""
    if type(obj).__name__ == "_tuplegetter":
        return True
    return None
