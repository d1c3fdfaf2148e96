"""`viewport-relay token inspect`: what a relay token says, and what this relay would say to it.

The token is read from a file or standard input, never from the command line, where every user of the machine could
read it; and it is never printed. The checks are the relay's own (`admission.keys`, `admission.jwt`).
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import click
from attrs import asdict, frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from viewport_relay.admission.grant import Role, UpgradeQuery
from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.jwt import TokenRules, check_payload, payload_signed_by, read_header
from viewport_relay.admission.keys import KeySet
from viewport_relay.cli.platformchecks import NoKeys, fetch_keys
from viewport_relay.cli.settings import read_or_exit
from viewport_relay.config import Config
from viewport_relay.observe.redaction import Redactor
from viewport_relay.reasons import Reason, Refusal

#: Bounds of a token (wire contract, section 1), and of what is read of a file to find one.
TOKEN_CHARS = (10, 4096)
FILE_BYTES = 65_536


@frozen
class Report:
    """What was found. `reason` is None when the token would go on to the platform."""

    header: Mapping[str, object]
    claims: Mapping[str, object]
    signed_by: str
    signature_good: bool
    valid_until: str
    keys: tuple[str, ...]
    reason: str | None
    said: str
    fix: str


def inspect_token(
    token: str, key_set: KeySet | str, query: UpgradeQuery | None, rules: TokenRules, now: float
) -> Report:
    """Read and check one token at `now` (seconds since the epoch).

    `key_set` is the JWKS, or in words why there is none. `query` is what the peer would ask; None: what the token is
    for. The relay's platform is not asked.
    """
    parts = token.split(".")
    shown_header, payload = _read(parts, 0), _read(parts, 1)
    keys = tuple(f"{key.kid} ({key.algorithm})" for key in key_set) if isinstance(key_set, KeySet) else ()
    good, signed_by, refusal = False, "not looked at", None
    try:
        if not TOKEN_CHARS[0] <= len(token) <= TOKEN_CHARS[1]:
            raise Refusal(Reason.TOKEN_MISSING, f"it has {len(token)} characters")
        header = read_header(token)
        if isinstance(key_set, str):
            raise Refusal(Reason.JWKS_UNREACHABLE, key_set)
        signed_by = "no key of the JWKS"
        payload = dict(payload_signed_by(token, header, key_set.for_kid(header.kid)))
        good, signed_by = True, f"{header.kid} ({header.algorithm})"
        check_payload(payload, query or _query_of(payload), rules, now)
    except Refusal as error:
        refusal = error
    redactor = Redactor()
    said = "the local check passes; the platform has the last word (POST RELAY_VALIDATE_URL)"
    if refusal is not None:
        said = refusal.reason.text + (f": {refusal.detail}" if refusal.detail else "")
    return Report(
        header={name: redactor.detail(name, value) for name, value in shown_header.items()},
        claims={name: redactor.detail(name, value) for name, value in payload.items()},
        signed_by=signed_by,
        signature_good=good,
        valid_until=_until(payload.get("exp"), now),
        keys=keys,
        reason=refusal.reason.code if refusal else None,
        said=said,
        fix=refusal.reason.entry.fix if refusal else "",
    )


def _read(parts: list[str], index: int) -> dict[str, Any]:
    """A part of the token for showing, before anything is verified; nothing if it cannot be read."""
    try:
        raw = base64.urlsafe_b64decode(parts[index] + "=" * (-len(parts[index]) % 4))
        value = json.loads(raw)
    except (ValueError, IndexError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _query_of(payload: Mapping[str, Any]) -> UpgradeQuery:
    """The upgrade that the token is made for."""
    role, workspace, target = (payload.get(name) for name in ("role", "workspaceId", "runtimeTargetId"))
    known = {member.value: member for member in Role}
    return UpgradeQuery(
        known.get(role, Role.CLIENT) if isinstance(role, str) else Role.CLIENT,
        workspace if isinstance(workspace, str) else "",
        target if isinstance(target, str) else None,
    )


def _until(exp: object, now: float) -> str:
    if isinstance(exp, bool) or not isinstance(exp, int | float):
        return "no exp"
    try:
        moment = datetime.fromtimestamp(exp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "exp is no time"
    left = exp - now
    return f"{moment}, {'in ' + _span(left) if left >= 0 else _span(-left) + ' ago'}"


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def page(report: Report) -> str:
    """The report as text."""
    lines = [f"header      {_members(report.header)}", f"signed by   {report.signed_by}"]
    if not report.signature_good and report.keys:
        lines.append(f"            the JWKS has: {', '.join(report.keys)}")
    lines.append(f"valid until {report.valid_until}")
    lines.append("claims" if report.signature_good else "claims      (not verified)")
    lines += [f"  {name[:40]:<18} {json.dumps(value)}" for name, value in report.claims.items()]
    verdict = f"✗ {report.reason}: {report.said}" if report.reason else f"✓ {report.said}"
    lines.append(verdict)
    if report.fix:
        lines.append(f"  Fix: {report.fix}")
    return "\n".join(lines)


def _members(header: Mapping[str, object]) -> str:
    return ", ".join(f"{name[:40]} {json.dumps(value)}" for name, value in header.items()) or "cannot be read"


# -- the command -------------------------------------------------------------------------------------------


def read_token(file: str) -> str:
    """The token in a file, `-` for standard input; a leading `Bearer` is taken off. Raises UsageError."""
    if file == "-":
        if sys.stdin.isatty():
            return str(click.prompt("Token (is not shown)", hide_input=True, err=True)).strip()
        raw = sys.stdin.buffer.read(FILE_BYTES)
    else:
        try:
            with Path(file).open("rb") as stream:
                raw = stream.read(FILE_BYTES)
        except (OSError, ValueError) as error:
            if file.count(".") == 2 or len(file) > 200:
                # Whatever was typed is likely the token itself: it must not be printed again.
                raise click.UsageError(
                    "this takes a file or standard input, never the token itself: it is now in the shell's history "
                    "and was in the process list, so let the peer fetch a new one"
                ) from None
            why = error.strerror if isinstance(error, OSError) else "not a file name"
            raise click.UsageError(f"cannot read {file!r}: {why}") from None
    words = raw.decode("utf-8", "replace").split()
    if words and words[0].lower() == "bearer":
        words = words[1:]
    if len(words) != 1:
        raise click.UsageError("expected one token and nothing else")
    return words[0]


def settings_for(environ: Mapping[str, str], jwks: str | None) -> Config:
    """The settings, with another key set if one is named; then the other URLs need not be set."""
    if jwks is None:
        return read_or_exit(environ)
    parts = urlsplit(jwks)
    given = {"SERVER_URL": f"{parts.scheme}://{parts.netloc}", **environ, "RELAY_JWKS_URL": jwks}
    return read_or_exit(given)


async def keys_or_why(reactor: Any, config: Config) -> KeySet | str:
    """The key set of RELAY_JWKS_URL, or why there is none."""
    client = HttpClient.from_config(reactor, config)
    try:
        keys, _ = await fetch_keys(client, config)
    except NoKeys as error:
        return str(error)
    finally:
        client.close()
    return keys


@click.group(short_help="Look into a relay token.")
def token() -> None:
    """Look into a relay token. Tokens are read from a file or standard input, never from the command line."""


@token.command(short_help="What a token says, and what this relay would say to it.")
@click.argument("file", default="-", metavar="[FILE]")
@click.option("--jwks", metavar="URL", help="Another key set than that of RELAY_JWKS_URL.")
@click.option(
    "--role", type=click.Choice([role.value for role in Role]), help="The role that the peer asks for."
)
@click.option("--workspace", metavar="ID", help="The workspace that the peer asks for.")
@click.option("--target", metavar="ID", help="The runtime target that the peer asks for.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def inspect(
    file: str, jwks: str | None, role: str | None, workspace: str | None, target: str | None, as_json: bool
) -> None:
    """Show header and claims of a token, the key that signed it, until when it is valid, and the local verdict.

    FILE holds the token; without FILE or with - it is read from standard input. The token itself is never printed.
    Without --role, --workspace and --target it is judged for what its own claims name. Exit status 1 if this relay
    would refuse it.

    \b
      viewport-relay token inspect < token.txt
      viewport-relay token inspect --workspace ws-1 token.txt
    """
    text = read_token(file)
    config = settings_for(os.environ, jwks)

    def query(payload: Mapping[str, Any]) -> UpgradeQuery:
        own = _query_of(payload)
        return UpgradeQuery(
            Role(role) if role else own.role, workspace or own.workspace_id, target or own.runtime_target_id
        )

    async def run(reactor: Any) -> NoReturn:
        key_set = await keys_or_why(reactor, config)
        rules = TokenRules(config.token_issuer, config.token_audience, config.token_clock_skew_sec)
        asked = query(_read(text.split("."), 1)) if role or workspace or target else None
        report = inspect_token(text, key_set, asked, rules, time.time())
        click.echo(json.dumps(asdict(report), indent=2) if as_json else page(report))
        raise SystemExit(1 if report.reason else 0)

    react(lambda reactor: Deferred.fromCoroutine(run(reactor)))
