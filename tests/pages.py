"""The project's Markdown pages for tests: fenced blocks with their place.

for block in blocks("docs/reference/protocol.md", "exchange"):
    block.text
"""

from __future__ import annotations

import re
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).parents[1]


@frozen
class Block:
    """One fenced block: `language` of its fence, `line` of its first line, the nearest `heading` above it."""

    page: str
    language: str
    heading: str
    line: int
    text: str

    @property
    def id(self) -> str:
        """Id of the block as a test's parameter."""
        return f"{Path(self.page).name}:{self.line}"


def pages() -> list[str]:
    """All documentation pages, as paths relative to the root."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: str, *languages: str) -> list[Block]:
    """The fenced blocks of a page in these languages; without languages, all blocks."""
    found: list[Block] = []
    heading, fence, language, start, lines = "", "", "", 0, list[str]()
    for number, line in enumerate(text_of(page).splitlines(), 1):
        opening = re.match(r"\s*(`{3,})(\S*)", line)
        if fence and opening and opening[1] == fence and not opening[2]:
            found.append(Block(page, language, heading, start, "\n".join(lines) + "\n"))
            fence = ""
        elif fence:
            lines.append(line)
        elif opening:
            fence, language, start, lines = opening[1], opening[2], number + 1, []
        elif line.startswith("#"):
            heading = line
    assert not fence, f"{page}: a block is not closed"
    return [block for block in found if not languages or block.language in languages]


def section(page: str, heading: str) -> str:
    """The text under a heading, up to the next heading of the same or a higher level."""
    _, found, rest = text_of(page).partition(f"\n{heading}\n")
    assert found, f"{page}: no {heading}"
    level = len(heading) - len(heading.lstrip("#"))
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def version() -> str:
    """The version of this source tree; the installed one may differ."""
    match = re.search(r"^version = (\S+)$", text_of("setup.cfg"), re.MULTILINE)
    assert match
    return match[1]
