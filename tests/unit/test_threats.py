"""docs/topics/security.md: the table of threats is complete, and each test that it names exists."""

from __future__ import annotations

import ast
import re

from tests.pages import ROOT, section, text_of

PAGE = "docs/topics/security.md"
NAME = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> list[list[str]]:
    """The cells of each row."""
    lines = [line for line in section(PAGE, "## Threats").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]]


def test_each_threat_has_four_cells_and_names_a_test() -> None:
    assert len(rows()) > 5
    for row in rows():
        assert len(row) == 4 and all(row), row
        assert NAME.findall(row[3]), row


def test_each_test_of_the_table_exists() -> None:
    missing = []
    for path, name in NAME.findall(text_of(PAGE)):
        file = ROOT / path
        tree = ast.parse(file.read_text("utf-8")) if file.is_file() else ast.Module([], [])
        found = {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        if name not in found:
            missing.append(f"{path}::{name}")
    assert missing == []
