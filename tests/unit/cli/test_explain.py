"""`viewport-relay explain`: reasons are found by code, text and status, and printed in full."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from viewport_relay.cli.explain import find, suggestions
from viewport_relay.cli.main import main
from viewport_relay.reasons import Reason


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_explained(reason: Reason) -> None:
    done = CliRunner().invoke(main, ["explain", reason.code])
    assert done.exit_code == 0
    assert done.output.startswith(reason.code + "\n")
    told = " ".join(done.output.split())
    for words in (reason.text, reason.entry.cause, reason.entry.fix, reason.entry.level):
        assert " ".join(words.split()) in told
    if reason.entry.status:
        assert f"HTTP {reason.entry.status}" in told
    if reason.entry.close:
        assert f"close {reason.entry.close}" in told


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_found_by_its_text(reason: Reason) -> None:
    assert find(reason.text) == [reason]
    assert find(reason.code.lower().replace("_", "-")) == [reason]


def test_listing_has_every_code_once() -> None:
    done = CliRunner().invoke(main, ["explain"])
    assert done.exit_code == 0
    codes = [
        line.split()[0] for line in done.output.splitlines()[1:] if line and not line.startswith("SEEN AS:")
    ]
    assert codes == [reason.code for reason in Reason]


def test_json() -> None:
    done = CliRunner().invoke(main, ["explain", "--json"])
    entries = json.loads(done.output)
    assert [entry["code"] for entry in entries] == [reason.code for reason in Reason]
    one = json.loads(CliRunner().invoke(main, ["explain", "frame too large", "--json"]).output)
    assert one == {
        "code": "FRAME_TOO_LARGE",
        "text": "frame too large",
        "level": "warn",
        "status": None,
        "closeCode": 1009,
        "closeText": "frame too large",
        "cause": Reason.FRAME_TOO_LARGE.entry.cause,
        "fix": Reason.FRAME_TOO_LARGE.entry.fix,
    }


def test_an_unknown_code_is_an_error_with_suggestions() -> None:
    done = CliRunner().invoke(main, ["explain", "JWT_EXPIERD"])
    assert done.exit_code == 2
    assert "JWT_EXPIRED" in done.output
    done = CliRunner().invoke(main, ["explain", "zzzzzzzz"])
    assert done.exit_code == 2
    assert "lists all" in done.output


@pytest.mark.parametrize("words", ["", "   ", "___", "\x1b[2J"])
def test_the_empty_code_has_no_suggestions(words: str) -> None:
    assert find(words) == []
    assert suggestions(words) == []


def test_a_close_code_or_status_lists_its_reasons() -> None:
    """The number is a close code from a browser's console or an HTTP status from a proxy's log."""
    for number in ("4401", "429"):
        done = CliRunner().invoke(main, ["explain", number])
        assert done.exit_code == 0
        shown = {
            line.split()[0] for line in done.output.splitlines()[1:] if line[:1].isupper() and "  " in line
        }
        wanted = {r.code for r in Reason if number in (str(r.entry.status), str(r.entry.close))}
        assert wanted <= shown
        assert not ({r.code for r in Reason} - wanted) & shown


def test_a_number_of_one_reason_is_explained_in_full() -> None:
    numbers = [number for r in Reason for number in (r.entry.status, r.entry.close) if number]
    (alone, *_) = [number for number in numbers if numbers.count(number) == 1]
    done = CliRunner().invoke(main, ["explain", str(alone)])
    assert done.exit_code == 0
    assert "  cause:" in done.output


def test_an_unused_number_is_refused() -> None:
    assert CliRunner().invoke(main, ["explain", "4999"]).exit_code == 2
