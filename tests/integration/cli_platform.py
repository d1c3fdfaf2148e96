"""Shared by the tests of the command: the doctor's findings by name."""

from __future__ import annotations

from typing import Any

from viewport_relay.cli.doctor import examine
from viewport_relay.cli.probes import Finding

INTERNAL_KEY = "an-internal-key-for-these-tests-only"


async def findings_of(reactor: Any, environ: dict[str, str], timeout: float = 5.0) -> dict[str, Finding]:
    """The doctor's findings by the name of the check; the worst finding of each name."""
    order = ["ok", "warn", "fail"]
    found: dict[str, Finding] = {}
    async for finding in examine(reactor, environ, timeout):
        known = found.get(finding.name)
        if known is None or order.index(finding.outcome) > order.index(known.outcome):
            found[finding.name] = finding
    return found
