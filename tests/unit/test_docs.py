"""Generated pages equal their tables: run `make docs` after a change of a table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.pages import pages, text_of
from tools import make_docs, reference
from viewport_relay.config import VARIABLES
from viewport_relay.reasons import Reason

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted(make_docs.pages()), ids=lambda path: path.name)
def test_page_is_up_to_date(path: Path) -> None:
    assert path.read_text("utf-8") == make_docs.pages()[path], "run `make docs`"


def test_every_variable_is_on_the_environment_page() -> None:
    page = reference.environment_page()
    for variable in VARIABLES:
        assert (f"| `{variable.name}`" in page) is variable.listed, variable.name
        for older in variable.older:
            assert (f"`{older}`" in page) is variable.listed


def test_every_reason_has_a_section_with_a_line_that_is_json() -> None:
    page = reference.troubleshooting_page()
    sections = dict(re.findall(r"### ([A-Z0-9_]+)\n(.*?)(?=\n##|\Z)", page, re.DOTALL))
    assert set(sections) == {reason.code for reason in Reason}
    for code, section in sections.items():
        (line,) = re.findall(r"```json\n(.*)\n```", section)
        entry = json.loads(line)
        assert entry["reason"] == code
        assert entry["message"] == Reason[code].text
        assert "**Cause:** " in section
        assert "**Fix:** " in section


def test_groups_of_reasons_are_in_the_order_of_the_catalogue() -> None:
    seen = [reason for _, reasons in reference.grouped_reasons() for reason in reasons]
    assert seen == list(Reason)
    assert len(list(reference.grouped_reasons())) == len(reference.GROUPS)


def test_links_between_pages_have_a_target() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert broken == []


def test_every_file_that_a_page_names_exists() -> None:
    named = re.compile(r"`((?:viewport_relay|tests|tools|deploy|benchmarks|docs)/[\w./-]+)")
    missing = {
        f"{page}: {name}"
        for page in pages()
        if page != "CHANGELOG.md"  # it names files of earlier versions
        for name in named.findall(text_of(page))
        if not (ROOT / name).exists()
    }
    assert sorted(missing) == []


def test_every_setting_that_a_page_names_exists() -> None:
    known = {variable.name for variable in VARIABLES} | {older for v in VARIABLES for older in v.older}
    known |= {f"{variable.name}_FILE" for variable in VARIABLES if variable.secret}
    known |= {"RELAY_REDIRECT", "RELAY_SHUTTING_DOWN"}  # a status frame and a reason
    unknown = {
        f"{page}: {name}"
        for page in pages()
        if not page.startswith(("docs/topics/performance", "benchmarks/"))
        for name in re.findall(r"(?<![A-Z_])RELAY_[A-Z_]+[A-Z](?!…)", text_of(page))
        if name not in known
    }
    assert sorted(unknown) == []


def test_the_migration_page_names_every_older_and_retired_setting() -> None:
    page = text_of("docs/how-to/migrate.md")
    for variable in VARIABLES:
        for older in variable.older:
            assert f"| `{older}` | `{variable.name}` |" in page
        # The reference lists neither the settings of the previous relay nor these, which are new.
        if not variable.listed and variable.name not in {
            "RELAY_WORKER_TIMEOUT_MS", "RELAY_NOISE_TIMEOUT_MS", "RELAY_FAST_PATH"
        }:  # fmt: skip
            assert f"`{variable.name}`" in page, variable.name
