"""YAML blocks of the pages and YAML files of deploy/: each parses, without duplicate keys."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]
FILES = sorted((ROOT / "deploy").rglob("*.y*ml"))

BLOCKS = {
    f"{page.relative_to(ROOT)}:{number}": block
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```ya?ml\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE), 1
    )
}


class Strict(yaml.SafeLoader):
    """PyYAML accepts duplicate keys; Traefik, Kubernetes and Compose refuse them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def read(text: str) -> list[Any]:
    return list(yaml.load_all(text, Strict))


def test_a_duplicate_key_is_found() -> None:
    with pytest.raises(yaml.constructor.ConstructorError, match="twice"):
        read("a: 1\nb:\n  c: 1\n  c: 2\n")


@pytest.mark.parametrize("where", BLOCKS)
def test_blocks_of_the_pages_parse(where: str) -> None:
    assert all(document for document in read(BLOCKS[where]))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_of_deploy_parse(path: Path) -> None:
    assert all(document for document in read(path.read_text("utf-8")))
