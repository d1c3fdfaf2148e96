"""Log lines of the troubleshooting page, compared with lines of a relay process for the same refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.admission.controlplane import ControlPlane, Reply, SigningKey
from tests.integration.admission.peers import answer_on, dial, head, target_of
from tests.integration.admission.relays import ROOT, Relay
from viewport_relay.reasons import Reason

Start = Callable[..., Relay]
Make = Callable[..., ControlPlane]

PAGE = (ROOT / "docs/how-to/troubleshooting.md").read_text("utf-8")
SHOWN: dict[str, dict[str, Any]] = {
    entry["reason"]: entry for entry in map(json.loads, re.findall(r"(?m)^\{\"ts\".*\}$", PAGE))
}
DENIED = Reply.json({"ok": False, "reason": "SEAT_TAKEN"}, 403)

#: Per reason: the request's target and headers, the token's claims, the platform's response.
REAL: dict[Reason, tuple[str, dict[str, str | None], dict[str, Any] | None, Reply | None]] = {
    Reason.NOT_FOUND: ("/nowhere", {}, None, None),
    Reason.UPGRADE_REQUIRED: ("", {"Sec-WebSocket-Version": "8"}, None, None),
    Reason.UPGRADE_MALFORMED: ("", {"Sec-WebSocket-Key": "x"}, None, None),
    Reason.QUERY_INVALID: ("/ws?role=client", {}, None, None),
    Reason.ORIGIN_NOT_ALLOWED: ("", {"Origin": "https://evil.example"}, None, None),
    Reason.TOKEN_MISSING: ("", {}, None, None),
    Reason.JWT_MALFORMED: ("", {"Authorization": "Bearer not-a-token-at-all"}, None, None),
    Reason.JWT_ALGORITHM_NOT_ALLOWED: (
        "",
        {"Authorization": "Bearer eyJhbGciOiJub25lIn0.e30.c2ln"},
        None,
        None,
    ),
    Reason.JWT_SIGNATURE_MISMATCH: ("", {}, {"key": SigningKey.new("unheard-of")}, None),
    Reason.JWT_EXPIRED: ("", {}, {"exp": 1_700_000_000}, None),
    Reason.JWT_NOT_YET_VALID: ("", {}, {"nbf": 4_000_000_000}, None),
    Reason.JWT_ISSUER_MISMATCH: ("", {}, {"iss": "https://other.example"}, None),
    Reason.JWT_AUDIENCE_MISMATCH: ("", {}, {"aud": "billing"}, None),
    Reason.JWT_CLAIM_MISMATCH: ("", {}, {"workspaceId": "another"}, None),
    Reason.PLATFORM_UNREACHABLE: ("", {}, {}, Reply(delay=1.0)),
    Reason.WORKSPACE_NOT_FOUND: ("", {}, {}, Reply.json({"ok": False, "reason": "WORKSPACE_NOT_FOUND"}, 404)),
    Reason.VALIDATION_DENIED: ("", {}, {}, DENIED),
    Reason.ADMISSION_RESPONSE_TOO_LARGE: ("", {}, {}, Reply(200, b" " * 5000)),
    Reason.VALIDATION_RESPONSE_INVALID: ("", {}, {}, Reply(200, b"<html>")),
}


def same_form(real: dict[str, Any], reason: Reason) -> None:
    """Compare event, level, text and names of the details; values depend on the deployment."""
    shown = SHOWN[reason.code]
    for name in ("event", "level", "message", "reason"):
        assert shown[name] == real[name], (name, real)
    assert sorted(shown) == sorted(real)
    assert sorted(shown["details"]) == sorted(real["details"]), (shown["details"], real["details"])


@pytest.mark.parametrize("reason", REAL, ids=lambda reason: reason.code)
def test_a_refusal_has_the_form_of_the_page(
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


def test_limits_and_keys_have_the_form_of_the_page(own_platform: Make, start: Start, workspace: str) -> None:
    """Counts, a rate, keys and the internal key, on a relay with small limits."""
    platform = own_platform()
    few = {
        "RELAY_MODE": "staging", "RELAY_RATE_LIMIT_PER_IP": "3", "RELAY_MAX_TOTAL_CONNECTIONS": "2",
        "RELAY_MAX_CONNECTIONS_PER_IP": "1", "RELAY_MAX_CLIENTS_PER_WORKSPACE": "1", "RELAY_VALIDATE_CACHE_TTL": "0",
    }  # fmt: skip
    token = platform.token("client", workspace)
    with platform.down():
        relay = start({**platform.settings(), **few}).listening()
        refused = relay.upgrade("client", workspace, token, source="127.3.0.9")
        same_form(relay.entry(connectionId=refused.json["connectionId"]), Reason.JWKS_UNREACHABLE)
    relay.ready()
    platform.internal_key = "another-one-than-the-relays"
    refused = relay.upgrade("client", workspace, token, source="127.3.0.8")
    same_form(relay.entry(connectionId=refused.json["connectionId"]), Reason.INTERNAL_KEY_MISMATCH)
    platform.internal_key = platform.settings()["RELAY_INTERNAL_KEY"]

    def refusal(reason: Reason, source: str) -> None:
        answer = relay.upgrade("client", workspace, token, source=source)
        assert answer.reason == reason.code
        same_form(relay.entry(connectionId=answer.json["connectionId"]), reason)

    with relay.upgrade("client", workspace, token, source="127.3.0.1") as first:
        assert first.admitted
        refusal(Reason.TOO_MANY_CONNECTIONS_PER_IP, "127.3.0.1")
        refusal(Reason.TOO_MANY_CLIENTS, "127.3.0.2")
        daemon = platform.token("workspace-daemon", workspace)
        with relay.upgrade("workspace-daemon", workspace, daemon, source="127.3.0.3") as second:
            assert second.admitted
            refusal(Reason.TOO_MANY_CONNECTIONS, "127.3.0.4")
    for _ in range(3):
        relay.upgrade("client", workspace, None, source="127.3.0.5")
    refusal(Reason.RATE_LIMIT_EXCEEDED, "127.3.0.5")


def test_closes_have_the_form_of_the_page(relay: Relay, platform: ControlPlane, workspace: str) -> None:
    token = platform.token("client", workspace)
    claims = {"workspaceId": "another", "clientId": "c", "scope": "runtime"}
    platform.replies[token] = Reply.json({"ok": True, "claims": claims})
    with relay.upgrade("client", workspace, token) as peer:
        assert peer.closed_with()[0] == 4008
    same_form(relay.entry(reason="WORKSPACE_CLAIM_MISMATCH", clientId="c"), Reason.WORKSPACE_CLAIM_MISMATCH)
    with relay.upgrade("client", workspace, platform.token("client", workspace, clientId="d")) as peer:
        peer.announce(1_048_577)
        assert peer.closed_with()[0] == 1009
    same_form(relay.entry(reason="FRAME_TOO_LARGE", clientId="d"), Reason.FRAME_TOO_LARGE)
