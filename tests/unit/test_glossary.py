"""docs/topics/glossary.md: forbidden words are not used, and each class name has one meaning."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

import pytest

from tests.pages import ROOT, pages, section, text_of
from tools import arrows

PAGE = "docs/topics/glossary.md"

#: Packages that share no code with the relay; equal class names there are no conflict.
BESIDE = {"peer", "devplatform", "cli"}


def forbidden() -> list[str]:
    rows = re.findall(r"^\| (`[^|]*) \|", section(PAGE, "## Words that are not used"), re.MULTILINE)
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row)]


def sources() -> dict[str, str]:
    """All sources and pages of the project, except the glossary and the tests."""
    found = [str(path.relative_to(ROOT)) for path in arrows.modules().values()]
    found += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tools").glob("*.py"))]
    found += [page for page in pages() if page != PAGE]
    return {name: text_of(name) for name in found}


@pytest.mark.parametrize("word", forbidden())
def test_the_word_is_not_used(word: str) -> None:
    pattern = re.compile(rf"\b{re.escape(word)}s?\b", re.IGNORECASE)
    found = [
        f"{name}:{number}"
        for name, text in sources().items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_each_class_name_is_defined_once() -> None:
    places = defaultdict(set)
    for module, path in arrows.modules().items():
        if arrows.room(module) not in BESIDE:
            for node in ast.parse(path.read_text("utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].add(module)
    assert {name: sorted(modules) for name, modules in places.items() if len(modules) > 1} == {}


def test_every_term_is_explained_once() -> None:
    terms = [
        term.strip()
        for row in re.findall(r"^\| ([^|`-][^|]*) \|", text_of(PAGE), re.MULTILINE)
        for term in row.split(",")
        if row not in {"term", "not"}
    ]
    assert len(terms) > 50
    assert sorted(terms) == sorted(set(terms))


def test_sections_of_the_wire_protocol_exist() -> None:
    """Docstrings refer to sections by number."""
    page = text_of("docs/reference/protocol.md")
    for name, text in sources().items():
        for number in re.findall(r"wire protocol(?:'s)?,? \(?sections? (\d+)", text):
            assert f"\n## {number}. " in page, f"{name}: section {number}"
