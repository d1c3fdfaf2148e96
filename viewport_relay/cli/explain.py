"""`viewport-relay explain`: prints rows of the reason table (`viewport_relay.reasons`)."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence

import click

from viewport_relay.admin.words import wrapped
from viewport_relay.reasons import CloseCode, Reason


def find(words: str) -> list[Reason]:
    """The reason with this code or this text, in any case, with spaces, dashes or underscores; or none."""
    wanted = _plain(words)
    for reason in Reason:
        if wanted in {_plain(reason.code), _plain(reason.text), _plain(reason.entry.close_text)} - {""}:
            return [reason]
    return []


def with_number(words: str) -> list[Reason]:
    """The reasons that peers see as this HTTP status or close code (4401, 429)."""
    number = words.strip()
    return [r for r in Reason if number in {str(r.entry.status), str(r.entry.close)} - {"0"}]


def suggestions(words: str) -> list[str]:
    """Up to three codes that look like `words`."""
    codes = {_plain(reason.code): reason.code for reason in Reason}
    near = difflib.get_close_matches(_plain(words), codes, 3, 0.5)
    inside = [plain for plain in codes if _plain(words) and _plain(words) in plain]
    return [codes[plain] for plain in dict.fromkeys(inside + near)][:3]


def _plain(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", words.lower()).strip()


def seen_as(reason: Reason) -> str:
    """How peers see a reason: HTTP status, close frame, or neither."""
    entry = reason.entry
    ways = []
    if entry.status:
        ways.append(f"HTTP {entry.status}, X-Relay-Reason: {reason.code}")
    if entry.close:
        # A refused upgrade has either form; a reason without a status only closes connections.
        when = "a browser sees " if entry.status else ""
        ways.append(f"{when}close {entry.close} {entry.close_text!r}")
    return "; ".join(ways) or "nothing; the frame is dropped or answered, or it is the relay's own matter"


def as_object(reason: Reason) -> dict[str, object]:
    """A reason as the object that --json prints."""
    entry = reason.entry
    return {
        "code": reason.code,
        "text": entry.text,
        "level": entry.level,
        "status": entry.status or None,
        "closeCode": entry.close or None,
        "closeText": entry.close_text or None,
        "cause": entry.cause,
        "fix": entry.fix,
    }


def page(reason: Reason) -> str:
    """All about one reason, wrapped for a terminal."""
    lines = [reason.code, f"  {reason.text}", ""]
    for label, text in (
        ("level", reason.entry.level),
        ("seen as", seen_as(reason)),
        ("cause", reason.entry.cause),
        ("fix", reason.entry.fix),
    ):
        lines += wrapped(f"{label}:", text)
    return "\n".join(lines)


def listing(reasons: Sequence[Reason]) -> str:
    """One line for each reason: code, how peers see it, text."""
    widest = max(len(reason.code) for reason in reasons)
    lines = []
    for reason in reasons:
        entry = reason.entry
        shown = " ".join(str(number) for number in (entry.status, entry.close) if number) or "-"
        lines.append(f"{reason.code:<{widest}}  {shown:<8}  {entry.text}")
    heading = f"{'CODE':<{widest}}  {'SEEN AS':<8}  TEXT"
    note = (
        f"SEEN AS: HTTP status, WebSocket close code (browsers see {CloseCode.INVALID_TOKEN} and the like "
        "instead of a status), - for frames that are dropped or answered."
    )
    return "\n".join([heading, *lines, "", note])


@click.command(short_help="Say what a reason code means, its cause and its fix.")
@click.argument("code", required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
def explain(code: str | None, as_json: bool) -> None:
    """Say what a reason CODE of the log means, its cause and its fix. Without CODE: list all.

    CODE is a reason code (JWT_EXPIRED), the text of a log line or close frame ("frame too large"), or the number that a
    peer sees: a close code (4401) or an HTTP status (429).
    """
    found = list(Reason) if code is None else with_number(code) or find(code)
    if not found:
        near = suggestions(code or "")
        hint = f" Did you mean {' or '.join(near)}?" if near else " `viewport-relay explain` lists all."
        raise click.UsageError(f"no reason has the code or text {(code or '')[:80]!r}.{hint}")
    if as_json:
        shown = [as_object(reason) for reason in found]
        click.echo(json.dumps(shown if len(shown) > 1 else shown[0], indent=2))
    else:
        click.echo(listing(found) if len(found) > 1 else page(found[0]))
