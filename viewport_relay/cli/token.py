"""`viewport-relay token inspect`: prints a relay token's claims and this relay's verdict on it.

The token is read from a file or standard input: every user of the machine could read a command line. The token is never
printed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import click
from attrs import asdict
from twisted.internet.task import react

from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.jwt import TokenRules
from viewport_relay.admission.keys import KeySet, printable
from viewport_relay.cli.config import read_or_exit
from viewport_relay.cli.inspection import Asked, Report, inspect_token
from viewport_relay.cli.platformchecks import NoKeys, fetch_keys
from viewport_relay.config import Config
from viewport_relay.protocol.grant import Role

#: Most bytes that are read of a token file.
FILE_BYTES = 65_536


def page(report: Report) -> str:
    """The report as text."""
    lines = [f"header      {_members(report.header)}", f"signed by   {report.signed_by}"]
    if not report.verified and report.keys:
        lines.append(f"            the JWKS has: {', '.join(report.keys)}")
    lines.append(f"valid until {report.valid_until}")
    lines.append("claims" if report.verified else "claims      (not verified)")
    lines += [f"  {printable(name, 40):<18} {json.dumps(value)}" for name, value in report.claims.items()]
    verdict = f"✗ {report.reason}: {report.said}" if report.reason else f"✓ {report.said}"
    lines.append(verdict)
    if report.fix:
        lines.append(f"  Fix: {report.fix}")
    return "\n".join(lines)


def _members(header: Mapping[str, object]) -> str:
    members = [f"{printable(name, 40)} {json.dumps(value)}" for name, value in header.items()]
    return ", ".join(members) or "cannot be read"


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
                # The argument is probably the token itself: it must not be printed.
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
    """Load the settings. With `jwks` that key set is used, and no other URL is required."""
    if jwks is None:
        return read_or_exit(environ)
    parts = urlsplit(jwks)
    given = {"SERVER_URL": f"{parts.scheme}://{parts.netloc}", **environ, "RELAY_JWKS_URL": jwks}
    return read_or_exit(given)


async def keys_or_why(reactor: Any, config: Config) -> KeySet | str:
    """The key set of RELAY_JWKS_URL, or the text why there is none."""
    client = HttpClient.from_config(reactor, config)
    try:
        keys, _ = await fetch_keys(client, config)
    except NoKeys as error:
        return str(error)
    finally:
        await client.close()
    return keys


@click.group(short_help="Look into a relay token.")
def token() -> None:
    """Inspect a relay token. Tokens are read from a file or standard input, never from the command line."""


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
    asked = Asked(Role(role) if role else None, workspace, target)

    async def run(reactor: Any) -> NoReturn:
        keys = await keys_or_why(reactor, config)
        rules = TokenRules(config.token_issuer, config.token_audience, config.token_clock_skew_sec)
        report = inspect_token(text, keys, asked, rules, time.time())
        click.echo(json.dumps(asdict(report), indent=2) if as_json else page(report))
        raise SystemExit(1 if report.reason else 0)

    react(run)
