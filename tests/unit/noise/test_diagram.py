"""The pages drawn from the machine are up to date, and whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from viewport_relay.noise.diagram import INPUTS, STATES, dot, markdown, pages, transitions

TOPICS = Path(__file__).parents[3] / "docs" / "topics"


@pytest.mark.parametrize("page", sorted(pages()))
def test_the_page_is_up_to_date(page: str) -> None:
    assert (TOPICS / page).read_text("utf-8") == pages()[page], (
        "python -m viewport_relay.noise.diagram docs/topics"
    )


def test_everything_is_drawn() -> None:
    found = transitions()
    assert {t.state for t in found} == set(STATES) and {t.input for t in found} == set(INPUTS)
    for t in found:
        assert f"| {t.state} | {t.input} | {t.to} |" in markdown()
        if t.state != "closed":
            assert f"{t.state} -> {t.to} " in dot() and f"{t.state} --> {t.to}: " in markdown()


def test_every_input_is_explained() -> None:
    for name in INPUTS:
        line = next(line for line in markdown().splitlines() if line.startswith(f"| `{name}` |"))
        assert len(line) > len(f"| `{name}` |  |") + 10


def test_the_pages_can_be_written_again(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "viewport_relay.noise.diagram", str(tmp_path)]
    subprocess.run(command, check=True, timeout=60, cwd=TOPICS.parents[1])
    assert {page.name: page.read_text("utf-8") for page in tmp_path.iterdir()} == pages()
