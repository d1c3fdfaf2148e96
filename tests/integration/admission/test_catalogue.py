"""All reasons for the refusal of a token or a peer, provoked against a relay process.

Each refusal is checked in four places: the HTTP response, the Close frame that a browser gets, `/logs`, and standard
output. Faults between relay and platform that need their own relay are in the other files of this folder.
"""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from attrs import frozen

from tests.integration.admission.controlplane import ControlPlane, Reply, SigningKey
from tests.integration.admission.peers import answer_on, dial, head, target_of
from tests.integration.admission.relays import Relay
from viewport_relay.reasons import Reason

OTHER = SigningKey.new("first", "ES256")  # the published kid, another key
STRANGER = SigningKey.new("never-published", "EdDSA")
TRY_LATER = (1013, "try again later")
INVALID = (4401, "invalid_token")


def with_header(platform: ControlPlane, workspace: str, header: dict[str, Any]) -> str:
    """A token with these header members, signed with the right key."""
    signer = platform.published[0]
    payload = platform.claims("client", workspace)
    return jwt.encode(payload, signer.private, signer.algorithm, {"kid": signer.kid, **header})


def unsigned(platform: ControlPlane, workspace: str) -> str:
    return jwt.encode(platform.claims("client", workspace), "", "none", {"kid": "first"})


def shared_secret(platform: ControlPlane, workspace: str) -> str:
    """An HS256 token whose key is the public key's text: the algorithm confusion attack."""
    public = json.dumps(platform.published[0].public()).encode()
    header, payload = ({"alg": "HS256", "kid": "first"}, platform.claims("client", workspace))
    text = b".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, payload)
    )
    tag = base64.urlsafe_b64encode(hmac.digest(public, text, "sha256")).rstrip(b"=")
    return (text + b"." + tag).decode()


def tampered(platform: ControlPlane, workspace: str) -> str:
    ours = platform.token("client", workspace).split(".")
    other = platform.token("client", workspace, clientId="somebody-else").split(".")
    return ".".join((ours[0], other[1], ours[2]))


def says(**claims: Any) -> Callable[[ControlPlane, str], str]:
    return lambda platform, workspace: platform.token("client", workspace, **claims)


def asked_as(role: str) -> Callable[[ControlPlane, str], str]:
    return lambda platform, workspace: platform.token(role, workspace)


def later(seconds: int, name: str) -> Callable[[ControlPlane, str], str]:
    return lambda platform, workspace: platform.token(
        "client", workspace, **{name: int(time.time()) + seconds}
    )


@frozen
class Bad:
    """A token that the local check alone must refuse."""

    reason: Reason
    token: Callable[[ControlPlane, str], str]
    detail: str = ""


TOKENS = {
    "garbage": Bad(Reason.JWT_MALFORMED, lambda *_: "no-token-at-all", "three parts"),
    "header no JSON": Bad(Reason.JWT_MALFORMED, lambda *_: "bm90anNvbg.bm90anNvbg.c2ln", "a JSON object"),
    "critical extension": Bad(Reason.JWT_MALFORMED, lambda p, w: with_header(p, w, {"crit": ["x"], "x": 1})),
    "kid no text": Bad(Reason.JWT_MALFORMED, lambda p, w: "eyJhbGciOiJFUzI1NiIsImtpZCI6N30.e30.c2ln", "kid"),
    "none": Bad(Reason.JWT_ALGORITHM_NOT_ALLOWED, unsigned, "alg is none"),
    "HS256": Bad(Reason.JWT_ALGORITHM_NOT_ALLOWED, shared_secret, "alg is HS256"),
    "unknown kid": Bad(Reason.JWT_SIGNATURE_MISMATCH, lambda p, w: p.token("client", w, key=STRANGER), "kid"),
    "another key": Bad(Reason.JWT_SIGNATURE_MISMATCH, lambda p, w: p.token("client", w, key=OTHER)),
    "tampered": Bad(Reason.JWT_SIGNATURE_MISMATCH, tampered),
    "expired": Bad(Reason.JWT_EXPIRED, later(-40, "exp"), "s ago"),
    "nbf": Bad(Reason.JWT_NOT_YET_VALID, later(60, "nbf"), "nbf is"),
    "iat": Bad(Reason.JWT_NOT_YET_VALID, later(60, "iat"), "iat is"),
    "no exp": Bad(Reason.JWT_CLAIM_MISMATCH, says(exp=None), "exp is missing"),
    "exp true": Bad(Reason.JWT_CLAIM_MISMATCH, says(nbf=True), "nbf is no time"),
    "issuer": Bad(Reason.JWT_ISSUER_MISMATCH, says(iss="https://elsewhere"), "https://elsewhere"),
    "no issuer": Bad(Reason.JWT_ISSUER_MISMATCH, says(iss=None), "iss is missing"),
    "audience": Bad(Reason.JWT_AUDIENCE_MISMATCH, says(aud="billing"), "billing"),
    "audiences": Bad(Reason.JWT_AUDIENCE_MISMATCH, says(aud=["billing", "mail"])),
    "role": Bad(Reason.JWT_CLAIM_MISMATCH, asked_as("worker"), "role is worker, the query says client"),
    "workspace": Bad(Reason.JWT_CLAIM_MISMATCH, says(workspaceId="elsewhere"), "workspaceId is elsewhere"),
    "target": Bad(Reason.JWT_CLAIM_MISMATCH, says(runtimeTargetId="T"), "runtimeTargetId is T"),
}


def seen_by_peer_and_operator(
    relay: Relay,
    workspace: str,
    token: str,
    reason: Reason,
    close: tuple[int, str],
    level: str | None = None,
) -> dict[str, Any]:
    """Refused over HTTP and, for browsers, with a Close frame; returns the first refusal's entry in log and output."""
    by_http = relay.upgrade("client", workspace, token)
    assert (by_http.status, by_http.reason) == (reason.entry.status, reason.code)
    assert by_http.headers["content-type"] == "application/json"
    body = by_http.json
    entry = relay.entry(event="refuse", connectionId=body.pop("connectionId"))
    assert body == {"ok": False, "reason": reason.code, "message": reason.text}
    assert (entry["reason"], entry["message"]) == (reason.code, reason.text)
    assert entry["level"] == (level or reason.entry.level)
    about = {name: entry["details"].get(name) for name in ("role", "workspaceId", "runtimeTargetId", "ip")}
    assert about == {"role": "client", "workspaceId": workspace, "runtimeTargetId": "t", "ip": "127.0.0.1"}

    with relay.upgrade("client", workspace, token, via="subprotocol") as browser:
        assert browser.admitted
        assert (
            browser.headers["sec-websocket-protocol"] == f"auth.{token}"
        )  # without it a browser shows no code
        assert browser.closed_with() == close
    entries = [
        e for e in relay.logs() if e["event"] == "refuse" and e["details"].get("workspaceId") == workspace
    ]
    assert [e["reason"] for e in entries] == [reason.code] * 2
    assert entries[0]["connectionId"] != entries[1]["connectionId"]
    relay.entry(event="refuse", connectionId=entries[1]["connectionId"])
    assert token not in "".join(relay.written), "a token was logged"
    return entry


@pytest.mark.parametrize("name", TOKENS)
def test_a_bad_token(relay: Relay, platform: ControlPlane, workspace: str, name: str) -> None:
    bad = TOKENS[name]
    token = bad.token(platform, workspace)
    entry = seen_by_peer_and_operator(relay, workspace, token, bad.reason, INVALID)
    assert bad.detail in entry["details"].get("detail", "")
    assert platform.asked_about(token) == 0, "a token that fails here never reaches the platform"


@frozen
class Verdict:
    """A response of the platform, and the expected result of the upgrade."""

    reply: Reply
    reason: Reason
    details: dict[str, Any]
    level: str | None = None


def denied(status: int, **body: Any) -> Reply:
    return Reply.json({"ok": False, **body}, status)


CLAIMS_OF_A_WRONG_FORM = Reply.json({"ok": True, "claims": {"clientId": ""}})
VERDICTS = {
    "denied": Verdict(denied(403, reason="SEAT_TAKEN"), Reason.VALIDATION_DENIED, {"platformWord": "SEAT_TAKEN"}),
    "denied with 200": Verdict(denied(200, error="revoked"), Reason.VALIDATION_DENIED, {"platformWord": "revoked"}),
    "denied without a word": Verdict(denied(200), Reason.VALIDATION_DENIED, {"httpStatus": 200}),
    "no workspace": Verdict(
        denied(404, error="gone"), Reason.WORKSPACE_NOT_FOUND, {"platformWord": "gone", "httpStatus": 404}
    ),
    "no workspace, said otherwise": Verdict(
        denied(200, reason="Workspace not found."), Reason.WORKSPACE_NOT_FOUND, {"httpStatus": 200}
    ),
    "5xx": Verdict(Reply(503, b"<html>"), Reason.PLATFORM_UNREACHABLE, {"detail": "the answer is HTTP 503"}),
    "hanging": Verdict(Reply(delay=1.2), Reason.PLATFORM_UNREACHABLE, {"why": "time out"}),
    "dripping": Verdict(
        Reply.json({"ok": True, "claims": {}, "pad": "x" * 50}, drip=2.5), Reason.PLATFORM_UNREACHABLE, {"why": "time out"}
    ),
    "no HTTP": Verdict(Reply(wire=b"SSH-2.0-server\r\n\r\n"), Reason.PLATFORM_UNREACHABLE, {}),
    "cut off": Verdict(
        Reply(wire=b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"ok"'), Reason.PLATFORM_UNREACHABLE,
        {"why": "connection closed within the answer"},
    ),
    "redirect": Verdict(
        Reply(302, b"", {"location": "/elsewhere"}), Reason.VALIDATION_RESPONSE_INVALID, {"httpStatus": 302}
    ),
    "too large": Verdict(
        Reply.json({"ok": True, "claims": {}, "pad": "x" * 2048}), Reason.ADMISSION_RESPONSE_TOO_LARGE, {"httpStatus": 200}
    ),
    "too large, of unknown length": Verdict(
        Reply(wire=b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b" " * 2049), Reason.ADMISSION_RESPONSE_TOO_LARGE, {}
    ),
    "no JSON": Verdict(Reply(200, b"<html>hello</html>"), Reason.VALIDATION_RESPONSE_INVALID, {"httpStatus": 200}),
    "ok is no boolean": Verdict(
        Reply.json({"ok": "true", "claims": {}}), Reason.VALIDATION_RESPONSE_INVALID, {"detail": "ok is neither true nor false"}
    ),
    "no claims": Verdict(
        Reply.json({"ok": True}), Reason.VALIDATION_RESPONSE_INVALID, {"detail": "claims is missing"}
    ),
    "claims of a wrong form": Verdict(
        CLAIMS_OF_A_WRONG_FORM, Reason.VALIDATION_RESPONSE_INVALID, {"detail": "claim clientId is empty"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VERDICTS)
def test_each_response_of_the_platform(
    relay: Relay, platform: ControlPlane, workspace: str, name: str
) -> None:
    verdict = VERDICTS[name]
    token = platform.token("client", workspace)
    platform.replies[token] = verdict.reply
    close = (verdict.reason.entry.close, verdict.reason.entry.close_text)
    assert close in (TRY_LATER, INVALID, (4403, "workspace_not_found"))
    began = time.monotonic()
    entry = seen_by_peer_and_operator(relay, workspace, token, verdict.reason, close, verdict.level)
    assert time.monotonic() - began < 4, "two time limits of half a second"
    said = dict(entry["details"])
    if "url" in said:  # a fault between relay and platform: the detail ends with the URL
        assert said["url"] == platform.settings()["RELAY_VALIDATE_URL"]
        said["detail"] = said["detail"].removesuffix(f" ({said['url']})")
    assert {**said, **verdict.details} == said


def test_the_request_to_the_platform(relay: Relay, platform: ControlPlane, workspace: str) -> None:
    for target in (None, "t"):
        token = platform.token("worker", workspace, target)
        with relay.upgrade("worker", workspace, token, target) as peer:
            assert peer.admitted
        question = next(q for q in platform.questions if q.body["relayToken"] == token)
        asked = {"relayToken": token, "role": "worker", "workspaceId": workspace}
        assert question.body == (asked if target is None else {**asked, "runtimeTargetId": target})
        assert question.headers["x-relay-internal-key"] == platform.internal_key
        assert question.headers["content-type"] == "application/json"


# -- refused without a request to the platform -------------------------------------------------------------------------

EARLY: dict[str, tuple[Reason, str, dict[str, str | None], str]] = {
    "path": (Reason.NOT_FOUND, "/ws/x?role=client&workspaceId={w}", {}, "GET"),
    "trailing slash": (Reason.NOT_FOUND, "/ws/?role=client&workspaceId={w}", {}, "GET"),
    "method": (Reason.NOT_FOUND, "/ws?role=client&workspaceId={w}", {}, "PUT"),
    "role": (Reason.QUERY_INVALID, "/ws?role=admin&workspaceId={w}", {}, "GET"),
    "first role counts": (Reason.QUERY_INVALID, "/ws?role=x&role=client&workspaceId={w}", {}, "GET"),
    "workspace": (Reason.QUERY_INVALID, "/ws?role=client", {}, "GET"),
    "newline": (Reason.QUERY_INVALID, "/ws?role=client&workspaceId={w}%0A", {}, "GET"),
    "target": (Reason.QUERY_INVALID, "/ws?role=client&workspaceId={w}&runtimeTargetId=", {}, "GET"),
    "version": (Reason.UPGRADE_REQUIRED, "/ws?role=client&workspaceId={w}", {"Sec-WebSocket-Version": "8"}, "GET"),
    "key": (Reason.UPGRADE_MALFORMED, "/ws?role=client&workspaceId={w}", {"Sec-WebSocket-Key": "short"}, "GET"),
    "connection": (Reason.UPGRADE_MALFORMED, "/ws?role=client&workspaceId={w}", {"Connection": "keep-alive"}, "GET"),
    "origin": (Reason.ORIGIN_NOT_ALLOWED, "/ws?role=client&workspaceId={w}", {"Origin": "https://evil.example"}, "GET"),
    "null origin": (Reason.ORIGIN_NOT_ALLOWED, "/ws?role=client&workspaceId={w}", {"Origin": "null"}, "GET"),
    "no token": (Reason.TOKEN_MISSING, "/ws?role=client&workspaceId={w}", {}, "GET"),
    "short token": (Reason.TOKEN_MISSING, "/ws?role=client&workspaceId={w}", {"Authorization": "Bearer 123456789"}, "GET"),
    "long token": (Reason.TOKEN_MISSING, "/ws?role=client&workspaceId={w}", {"Authorization": f"Bearer {'x' * 4097}"}, "GET"),
    "query token": (Reason.TOKEN_MISSING, "/ws?role=client&workspaceId={w}&token=0123456789", {}, "GET"),
}  # fmt: skip


@pytest.mark.parametrize("name", EARLY)
@pytest.mark.parametrize("browser", [False, True])
def test_refusals_without_a_request_to_the_platform(
    relay: Relay, platform: ControlPlane, name: str, browser: bool, workspace: str, source: str
) -> None:
    """Always over HTTP, even where the sub-protocol may carry a token."""
    reason, target, headers, method = EARLY[name]
    asked = len(platform.questions)
    extra: dict[str, str | None] = {"Sec-WebSocket-Protocol": "auth.short"} if browser else {}
    connection = dial(relay.port, source=source)
    connection.sendall(head(target.format(w=workspace), {**extra, **headers}, method))
    refused = answer_on(connection)
    assert (refused.status, refused.reason) == (reason.entry.status, reason.code)
    if name == "version":
        assert refused.headers["sec-websocket-version"] == "13"
    body = refused.json
    assert (body["ok"], body["reason"]) == (False, reason.code)
    assert body["message"].startswith(reason.text)
    entry = relay.entry(connectionId=body["connectionId"])
    assert (entry["event"], entry["reason"], entry["level"]) == ("refuse", reason.code, reason.entry.level)
    assert entry["message"] == reason.text
    assert len(platform.questions) == asked


def test_ws_without_an_upgrade_is_refused_and_logged(relay: Relay) -> None:
    status, body = relay.get("/ws")
    said = json.loads(body)
    assert (status, said["reason"]) == (426, "UPGRADE_REQUIRED")
    assert relay.entry(connectionId=said["connectionId"])["reason"] == "UPGRADE_REQUIRED"


@pytest.mark.parametrize("origin", ["https://app.example", "HTTPS://other.example:8443", None])
def test_an_allowed_origin_or_none_is_admitted(
    relay: Relay, platform: ControlPlane, workspace: str, origin: str | None
) -> None:
    token = platform.token("client", workspace)
    with relay.upgrade("client", workspace, token, headers={"Origin": origin}) as peer:
        assert peer.admitted


def test_the_order_of_checks(relay: Relay, platform: ControlPlane, workspace: str) -> None:
    """Remove one fault after the other: the reasons come in the order of the wire protocol."""
    wrong: dict[str, str | None] = {"Origin": "https://evil.example"}
    token = "garbage-as-a-token"
    steps: list[tuple[str, dict[str, str | None], str]] = [
        ("/nowhere", wrong, "NOT_FOUND"),
        ("/ws?role=nobody", wrong, "QUERY_INVALID"),
        (target_of("client", workspace), wrong, "ORIGIN_NOT_ALLOWED"),
        (target_of("client", workspace), {}, "TOKEN_MISSING"),
        (target_of("client", workspace), {"Authorization": f"Bearer {token}"}, "JWT_MALFORMED"),
    ]
    for target, headers, code in steps:
        connection = dial(relay.port)
        connection.sendall(head(target, headers))
        assert answer_on(connection).reason == code
    assert platform.asked_about(token) == 0


# -- after the upgrade -----------------------------------------------------------------------------------------------

CLAIMS: dict[str, tuple[Reason, str, dict[str, Any]]] = {
    "no workspace": (Reason.MISSING_WORKSPACE_CLAIM, "client", {"scope": "runtime"}),
    "workspace": (Reason.WORKSPACE_CLAIM_MISMATCH, "client", {"workspaceId": "W1", "scope": "runtime"}),
    "target": (
        Reason.RUNTIME_TARGET_CLAIM_MISMATCH,
        "client",
        {"workspaceId": "{w}", "runtimeTargetId": "other"},
    ),
    "no scope": (Reason.INVALID_SCOPE_CLAIM, "client", {"workspaceId": "{w}", "runtimeTargetId": "t"}),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_against_the_query(relay: Relay, platform: ControlPlane, workspace: str, name: str) -> None:
    reason, role, claims = CLAIMS[name]
    token = platform.token(role, workspace)
    said = {key: value.format(w=workspace) for key, value in claims.items()}
    platform.replies[token] = Reply.json({"ok": True, "claims": said})
    with relay.upgrade(role, workspace, token) as peer:
        assert peer.admitted
        assert peer.closed_with() == (4008, reason.text)
    entry = relay.entry(reason=reason.code, workspaceId=workspace)
    assert (entry["event"], entry["message"], entry["level"]) == ("close", reason.text, reason.entry.level)


def test_one_mebibyte_passes_and_a_byte_more_does_not(
    relay: Relay, platform: ControlPlane, workspace: str
) -> None:
    limit = 1_048_576
    frame = {
        "type": "e2ee", "version": 2, "profile": "noise-ik", "sessionId": "s", "epoch": 1, "seq": 1,
        "iv": "i", "tag": "t", "ciphertext": "",
    }  # fmt: skip
    frame["ciphertext"] = "c" * (limit - len(json.dumps(frame)))
    message = json.dumps(frame).encode()
    assert len(message) == limit
    with (
        relay.upgrade("workspace-daemon", workspace, platform.token("workspace-daemon", workspace)) as daemon,
        relay.upgrade("client", workspace, platform.token("client", workspace)) as client,
    ):
        client.send(message)
        assert daemon.frame() == (1, message, True)
        client.announce(limit + 1)  # refused before the payload is read
        assert client.closed_with() == (1009, "frame too large")
    entry = relay.entry(reason="FRAME_TOO_LARGE", workspaceId=workspace)
    assert (entry["event"], entry["message"], entry["details"]["role"]) == (
        "close",
        "frame too large",
        "client",
    )
    assert entry["details"]["detail"] == f"{limit + 1} bytes announced, RELAY_FRAME_MAX_BYTES={limit}"
