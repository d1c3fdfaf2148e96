"""`viewport-relay doctor`: tries what the relay would do with its settings, and says how to fix what fails.

This module orders and prints the checks of `checks` and `platformchecks`. It starts no relay.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Final, NoReturn

import attrs
import click
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from viewport_relay.admission.http import HttpClient
from viewport_relay.cli import checks, platformchecks, probes
from viewport_relay.cli.output import say
from viewport_relay.cli.probes import Finding, fail
from viewport_relay.config import EX_CONFIG, Config, ConfigError, load

#: The fix for a setting that cannot work.
_CORRECT: Final = "correct it; the rest is tried once the settings can be read"


async def examine(reactor: Any, environ: Mapping[str, str], timeout: float) -> AsyncIterator[Finding]:
    """All findings for an environment; `timeout` is in seconds, for each step of a probe."""
    try:
        config = load(environ)
        client = HttpClient.from_config(reactor, config)
    except ConfigError as error:
        for sentence in error.errors:
            yield _wrong_setting(sentence)
        for sentence in error.warnings:
            yield checks.setting_warning(sentence)
        return
    for finding in (*checks.settings(config), *checks.origins(config), *checks.state_folder(config)):
        yield finding
    try:
        async for finding in _platform(reactor, client, config, timeout):
            yield finding
    finally:
        await client.close()
    for finding in await checks.redis(reactor, config, timeout):
        yield finding
    for finding in await deferToThread(lambda: list(checks.port(config, timeout))):
        yield finding
    for finding in (*checks.open_files(config), *checks.own_certificate(config)):
        yield finding


def unusable(findings: Iterable[Finding]) -> bool:
    """Whether the relay would not even start with these settings (it ends with status 78)."""
    return any(finding.fix == _CORRECT for finding in findings)


def _wrong_setting(sentence: str) -> Finding:
    name, colon, said = sentence.partition(": ")
    if not colon or " " in name:
        name, said = "settings", sentence
    return fail(name, said, _CORRECT)


async def _platform(
    reactor: Any, client: HttpClient, config: Config, timeout: float
) -> AsyncIterator[Finding]:
    origins: dict[probes.Origin, list[str]] = {}
    for name, url in (("RELAY_JWKS_URL", config.jwks_url), ("RELAY_VALIDATE_URL", config.validate_url)):
        origins.setdefault(probes.origin_of(url), []).append(name)
    reached = set()
    for origin, names in origins.items():
        reached.add(origin)
        async for finding in platformchecks.reachability(
            reactor, config, origin, " and ".join(names), timeout
        ):
            yield finding
            if finding.outcome == "fail":
                reached.discard(origin)
    # An origin that cannot be reached has a finding already: a request would repeat it.
    if probes.origin_of(config.jwks_url) in reached:
        for finding in await platformchecks.jwks(client, config):
            yield finding
    if probes.origin_of(config.validate_url) in reached:
        for finding in await platformchecks.validation(client, config):
            yield finding


@click.command(
    short_help="Try what the settings would make the relay do; exit status 1 or 78 if anything cannot work."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 60),
    default=5.0,
    show_default=True,
    help="Seconds for each question.",
)
def doctor(as_json: bool, timeout: float) -> None:
    """Try what the relay would do with its settings: one line for each check, with a fix for what fails.

    \b
    ✓ works, ! works with a warning, ✗ cannot work; exit status 1 if there is any ✗, 78 if the relay would
    not start with these settings.
    Checked are: every setting, DNS, TCP, TLS chain and host name of the platform, the keys at RELAY_JWKS_URL, the two
    clocks, RELAY_INTERNAL_KEY (one request to validate a made-up token for the workspace "viewport-relay-doctor", which the
    platform's log shows), Redis if it is the backplane, the listen port, the limit on open files, the relay's own
    certificate.

    Nothing is changed. Run it where the relay runs, with the same environment:

    \b
      docker exec viewport-relay viewport-relay doctor
      systemd-run --pipe -p EnvironmentFile=/etc/viewport-relay/env viewport-relay doctor
    """

    async def run(reactor: Any) -> NoReturn:
        findings = []
        async for finding in examine(reactor, os.environ, timeout):
            findings.append(finding)
            if not as_json:
                say(str(finding))
        good = all(finding.outcome != "fail" for finding in findings)
        if as_json:
            report = {"ok": good, "checks": [attrs.asdict(finding) for finding in findings]}
            say(json.dumps(report, indent=2, ensure_ascii=False))
        raise SystemExit(0 if good else EX_CONFIG if unusable(findings) else 1)

    react(run)
