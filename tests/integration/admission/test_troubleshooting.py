"""The lines that the troubleshooting page shows, held against lines of a relay process that was really refused them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.admission.controlplane import ControlPlane, Reply, SigningKey
from tests.integration.admission.peers import answer_on, dial, head, target_of
from tests.integration.admission.relays import ROOT, Relay, eventually
from viewport_relay.reasons import Reason

Start = Callable[..., Relay]
Make = Callable[..., ControlPlane]

PAGE = (ROOT / "docs/how-to/troubleshooting.md").read_text("utf-8")
SHOWN: dict[str, dict[str, Any]] = {
    entry["reason"]: entry for entry in map(json.loads, re.findall(r"(?m)^\{\"ts\".*\}$", PAGE))
}
DENIED = Reply.json({"ok": False, "reason": "SEAT_TAKEN"}, 403)

#: What is provoked: the request's target and headers, the token's claims, the platform's answer.
REAL: dict[Reason, tuple[str, dict[str, str | None], dict[str, Any] | None, Reply | None]] = {
    Reason.NOT_FOUND: ("/nowhere", {}, None, None),
    Reason.UPGRADE_REQUIRED: ("", {"Sec-WebSocket-Version": "8"}, None, None),
    Reason.UPGRADE_MALFORMED: ("", {"Sec-WebSocket-Key": "x"}, None, None),
    Reason.QUERY_INVALID: ("/ws?role=client", {}, None, None),
    Reason.ORIGIN_NOT_ALLOWED: ("", {"Origin": "https://evil.example"}, None, None),
    Reason.TOKEN_MISSING: ("", {}, None, None),
    Reason.JWT_MALFORMED: ("", {"Authorization": "Bearer not-a-token-at-all"}, None, None),
    Reason.JWT_SIGNATURE_MISMATCH: ("", {}, {"key": SigningKey.new("unheard-of")}, None),
    Reason.JWT_EXPIRED: ("", {}, {"exp": 1_700_000_000}, None),
    Reason.JWT_NOT_YET_VALID: ("", {}, {"nbf": 4_000_000_000}, None),
    Reason.JWT_ISSUER_MISMATCH: ("", {}, {"iss": "https://other.example"}, None),
    Reason.JWT_AUDIENCE_MISMATCH: ("", {}, {"aud": "billing"}, None),
    Reason.JWT_CLAIM_MISMATCH: ("", {}, {"exp": None}, None),
    Reason.PLATFORM_UNREACHABLE: ("", {}, {}, Reply(503)),
    Reason.WORKSPACE_NOT_FOUND: ("", {}, {}, Reply.json({"ok": False, "reason": "WORKSPACE_NOT_FOUND"}, 404)),
    Reason.VALIDATION_DENIED: ("", {}, {}, DENIED),
    Reason.ADMISSION_RESPONSE_TOO_LARGE: ("", {}, {}, Reply(200, b" " * 5000)),
    Reason.VALIDATION_RESPONSE_INVALID: ("", {}, {}, Reply(200, b"<html>")),
}


def same_form(real: dict[str, Any], reason: Reason) -> None:
    """Event, level, text and the names in it; the values are the deployment's."""
    shown = SHOWN[reason.code]
    for name in ("event", "level", "message", "reason"):
        assert shown[name] == real[name], (name, real)
    assert sorted(shown) == sorted(real)
    assert sorted(shown["details"]) == sorted(real["details"]), (shown["details"], real["details"])


@pytest.mark.parametrize("reason", REAL, ids=lambda reason: reason.code)
def test_a_refusal_looks_as_the_page_says(
    relay: Relay, platform: ControlPlane, workspace: str, source: str, reason: Reason
) -> None:
    target, headers, claims, reply = REAL[reason]
    if claims is not None:
        token = platform.token("client", workspace, **claims)
        headers = {**headers, "Authorization": f"Bearer {token}"}
        if reply is not None:
            platform.replies[token] = reply
    connection = dial(relay.port, source=source)
    connection.sendall(head(target or target_of("client", workspace), headers))
    same_form(relay.entry(connectionId=answer_on(connection).json["connectionId"]), reason)


def test_the_others_look_as_the_page_says(own_platform: Make, start: Start, workspace: str) -> None:
    """Counts, a rate, keys and the internal key: of relays that have little of them."""
    platform = own_platform(internal_key="another-one-than-the-relays")
    few = {"RELAY_MODE": "staging", "RELAY_RATE_LIMIT_PER_IP": "4"}
    one = start({**platform.settings(), **few, "RELAY_MAX_TOTAL_CONNECTIONS": "1"})
    two = start({**platform.settings(), **few, "RELAY_MAX_CONNECTIONS_PER_IP": "1"})
    three = start({**platform.settings(), **few, "RELAY_MAX_CLIENTS_PER_WORKSPACE": "1"})
    limited = {
        Reason.TOO_MANY_CONNECTIONS: one.ready(),
        Reason.TOO_MANY_CONNECTIONS_PER_IP: two.ready(),
        Reason.TOO_MANY_CLIENTS: three.ready(),
    }
    token = platform.token("client", workspace)
    assert one.upgrade("client", workspace, token).reason == "INTERNAL_KEY_MISMATCH"
    same_form(one.entry(event="internal_key_mismatch"), Reason.INTERNAL_KEY_MISMATCH)
    platform.internal_key = platform.settings()["RELAY_INTERNAL_KEY"]
    for reason, relay in limited.items():
        with eventually(lambda relay=relay: _admitted(relay, workspace, token), "somebody is admitted"):
            refused = relay.upgrade("client", workspace, token)
            assert refused.reason == reason.code
            same_form(relay.entry(connectionId=refused.json["connectionId"]), reason)
    while (refused := two.upgrade("client", workspace, None)).reason != "RATE_LIMIT_EXCEEDED":
        pass
    same_form(two.entry(connectionId=refused.json["connectionId"]), Reason.RATE_LIMIT_EXCEEDED)


def _admitted(relay: Relay, workspace: str, token: str) -> Any:
    peer = relay.upgrade("client", workspace, token)
    return peer if peer.admitted else None
