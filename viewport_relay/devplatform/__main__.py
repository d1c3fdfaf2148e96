"""Run the development platform alone: `python -m viewport_relay.devplatform --port N`.

Loopback only. JSON lines on stdout name the address. Secrets come from the environment
(`RELAY_INTERNAL_KEY`, `DEV_CREDENTIAL`, `DEV_PAIRING_SECRET`) and are never printed; one that is not
given is made at random and printed once, because a caller needs it.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping
from typing import Any

import click
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import react

from viewport_relay.descriptors import open_standard_streams, standard_output
from viewport_relay.devplatform.endpoints import JWKS_PATH, VALIDATE_PATH
from viewport_relay.devplatform.platform import DevPlatform
from viewport_relay.devplatform.workspaces import new_pairing_secret


def _say(event: str, **members: object) -> None:
    with standard_output():
        print(json.dumps({"event": event, **members}), flush=True)


def _secrets(environment: Mapping[str, str]) -> tuple[str, str | None, str]:
    """Internal key, credential (None: made by the platform), pairing secret."""
    internal_key = environment.get("RELAY_INTERNAL_KEY")
    pairing_secret = environment.get("DEV_PAIRING_SECRET")
    if not internal_key:
        internal_key = secrets.token_urlsafe(32)
        _say("generated", variable="RELAY_INTERNAL_KEY", value=internal_key, use="set it for the relay too")
    if not pairing_secret:
        pairing_secret = new_pairing_secret()
        _say("generated", variable="DEV_PAIRING_SECRET", value=pairing_secret, use="peers of dev-paired")
    return internal_key, environment.get("DEV_CREDENTIAL") or None, pairing_secret


async def run(reactor: Any, port: int, environment: Mapping[str, str]) -> None:
    """Listen until the process is told to stop."""
    internal_key, credential, pairing_secret = _secrets(environment)
    platform = DevPlatform(
        reactor, internal_key=internal_key, credential=credential, pairing_secret=pairing_secret
    )
    if credential is None:
        _say("generated", variable="DEV_CREDENTIAL", value=platform.credential, use="clients and workers")
    try:
        platform.listen(reactor, port)
    except CannotListenError as taken:
        print(json.dumps({"event": "error", "message": str(taken)}), file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    _say(
        "listening",
        url=platform.url,
        jwksUrl=platform.url + JWKS_PATH,
        validateUrl=platform.url + VALIDATE_PATH,
        workspaces=list(platform.workspaces),
    )
    await Deferred[None]()


@click.command()
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="0 (default) takes a free one.")
def main(port: int) -> None:
    """Run the development platform alone, on 127.0.0.1, until SIGTERM or Ctrl-C.

    Exit status 2: a bad command line; 1: the port is taken, or standard output cannot be written.
    """
    react(lambda reactor: Deferred.fromCoroutine(run(reactor, port, os.environ)))


if __name__ == "__main__":
    open_standard_streams()
    with standard_output():  # for the text of --help
        main(prog_name="python -m viewport_relay.devplatform")
