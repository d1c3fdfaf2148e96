"""All endpoints of the development platform over a real socket, called as relays and peers call them."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.integration.devplatform.calling import Caller, in_reactor
from viewport_relay.devplatform import DevPlatform, Rule, SigningKey
from viewport_relay.devplatform.tokens import Algorithm

JWKS = "/api/.well-known/jwks.json"
TOKEN = "/api/runtime/relay-token"
INTERNAL = "/api/runtime/internal/relay/"
FRAME = {
    "workspaceId": "w",
    "runtimeTargetId": "t",
    "sourceRelayId": "r1",
    "targetRelayId": "r2",
    "direction": "client_to_daemon",
    "payload": "{}",
    "issuedAtMs": 1,
    "signature": "s",
}
UPSERT = {
    "workspaceId": "w",
    "runtimeTargetId": "t",
    "machineId": "m",
    "relayId": "r1",
    "relayWsBaseUrl": "ws://r1",
    "daemonConnected": True,
}


async def pause(seconds: float) -> None:
    clock: Any = reactor
    await deferLater(clock, seconds)


@in_reactor
async def test_the_jwks_verifies_an_issued_token_and_can_be_cached(
    platform: DevPlatform, call: Caller
) -> None:
    reply = await call("GET", JWKS)
    assert reply.status == 200
    assert reply.headers["cache-control"] == "public, max-age=300"
    key = jwt.PyJWK(reply.json["keys"][0])
    issued = await call(
        "POST", TOKEN, {"role": "client", "workspaceId": "dev-workspace", "credential": platform.credential}
    )
    claims = jwt.decode(issued.json["relayToken"], key, algorithms=["RS256"], audience="viewport-relay")
    assert {**claims, "policyMode": "standard", "e2eeProfile": "noise-ik"} == issued.json["claims"]
    assert issued.headers["cache-control"] == "no-store"
    etag = reply.headers["etag"]
    for tags in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        again = await call("GET", JWKS, headers={"if-none-match": tags})
        assert (again.status, again.raw) == (304, b"")
    platform.keys.rotate(keep_old=True)
    fresh = await call("GET", JWKS, headers={"if-none-match": etag})
    assert fresh.status == 200
    assert [one["kid"] for one in fresh.json["keys"]] == [key.kid for key in platform.keys.served]
    head = await call("HEAD", JWKS)
    assert (head.status, head.raw) == (200, b"")
    assert platform.records.jwks.total == 7


@in_reactor
async def test_further_keys_are_served_and_their_tokens_admitted(platform: DevPlatform, call: Caller) -> None:
    algorithms: tuple[Algorithm, ...] = ("ES256", "EdDSA")
    for algorithm in algorithms:
        key = platform.keys.serve(SigningKey.generate(algorithm))
        reply = await call.validate(platform.issue("client", "dev-workspace", "t", key=key))
        assert reply.json["ok"] is True
    kinds = [one["kty"] for one in (await call("GET", JWKS)).json["keys"]]
    assert kinds == ["RSA", "EC", "OKP"]


@in_reactor
async def test_issuing_activating_and_rotating_a_daemon_token(platform: DevPlatform, call: Caller) -> None:
    reply = await call("POST", "/api/runtime/workspaces/dev-workspace/daemon-key")
    assert set(reply.json) == {"ok", "daemonIssueToken", "runtimeTargetId"}
    body = {
        "role": "workspace-daemon",
        "workspaceId": "dev-workspace",
        "runtimeTargetId": reply.json["runtimeTargetId"],
        "credential": reply.json["daemonIssueToken"],
    }
    issued = await call("POST", TOKEN, body)
    assert issued.json["ok"] is True
    admitted = await call.validate(issued.json["relayToken"], "workspace-daemon")
    assert admitted.json["claims"]["daemonIssueGeneration"] == 1
    assert admitted.json["claims"]["machineId"] == "dev-machine"
    rotated = await call(
        "POST", "/api/runtime/workspaces/dev%2Dworkspace/daemon-key", {"rotate": True, "machineId": "m2"}
    )
    stale = await call("POST", TOKEN, body)
    assert (stale.status, stale.json["reason"]) == (401, "DAEMON_ISSUE_TOKEN_STALE")
    body["credential"] = rotated.json["daemonIssueToken"]
    assert (await call("POST", TOKEN, body)).json["claims"]["daemonIssueGeneration"] == 2
    # A relay token from before the rotation is still valid, with its lower generation.
    assert (await call.validate(issued.json["relayToken"], "workspace-daemon")).json["ok"] is True
    missing = await call("POST", "/api/runtime/workspaces/dev-missing/daemon-key")
    assert (missing.status, missing.json["reason"]) == (404, "WORKSPACE_NOT_FOUND")


@in_reactor
async def test_a_peer_learns_its_pairing_secret_and_its_token_does_not_carry_it(
    platform: DevPlatform, call: Caller
) -> None:
    body = {"role": "client", "workspaceId": "dev-paired", "credential": platform.credential}
    issued = (await call("POST", TOKEN, body)).json
    assert issued["claims"]["pairingSecret"] == platform.workspaces["dev-paired"].pairing_secret
    assert issued["claims"]["policyMode"] == "crypto_pairing"
    payload = jwt.decode(issued["relayToken"], options={"verify_signature": False})
    assert not {"policyMode", "pairingSecret", "e2eeProfile"} & set(payload)


@in_reactor
async def test_validate_adds_what_the_token_does_not_carry(platform: DevPlatform, call: Caller) -> None:
    token = platform.issue("client", "dev-paired", "dev-machine", scope="runtime", clientId="c")
    payload = jwt.decode(token, options={"verify_signature": False})
    assert not {"policyMode", "pairingSecret", "e2eeProfile"} & set(payload)
    claims = (await call.validate(token, workspace="dev-paired")).json["claims"]
    secret = platform.workspaces["dev-paired"].pairing_secret
    assert claims == {
        **payload,
        "policyMode": "crypto_pairing",
        "e2eeProfile": "noise-ikpsk2",
        "pairingSecret": secret,
    }
    standard = (await call.validate(platform.issue("client", "dev-workspace", "t"))).json["claims"]
    assert (standard["policyMode"], standard["e2eeProfile"]) == ("standard", "noise-ik")
    assert "pairingSecret" not in standard
    platform.workspaces.add("w2", e2ee_profile=None, daemon_public_key="k", relay_ws_base_url="wss://r")
    added = (await call.validate(platform.issue("client", "w2", "t"), workspace="w2")).json["claims"]
    assert (added["daemonPublicKey"], added["relayWsBaseUrl"]) == ("k", "wss://r")
    assert "e2eeProfile" not in added


@in_reactor
async def test_validate_refuses(platform: DevPlatform, call: Caller) -> None:
    token = platform.issue("client", "dev-workspace", "t")
    stranger = platform.issue(
        "client", "dev-workspace", "t", key=SigningKey.generate(kid=platform.keys.signing.kid)
    )
    cases: list[tuple[str, str, str, int, str]] = [
        (token, "client", "dev-missing", 404, "WORKSPACE_NOT_FOUND"),
        (token, "client", "dev-link", 401, "INVALID_TOKEN"),
        (token, "worker", "dev-workspace", 401, "INVALID_TOKEN"),
        (stranger, "client", "dev-workspace", 401, "INVALID_TOKEN"),
        (token[:-4], "client", "dev-workspace", 401, "INVALID_TOKEN"),
        ("opaque-token", "client", "dev-workspace", 401, "INVALID_TOKEN"),
        (platform.issue("client", "dev-workspace", ttl=-31), "client", "dev-workspace", 401, "INVALID_TOKEN"),
        (
            platform.issue("client", "dev-workspace", hmac_secret="0" * 32),
            "client",
            "dev-workspace",
            401,
            "INVALID_TOKEN",
        ),
        ("x" * 4097, "client", "dev-workspace", 400, "INVALID_BODY"),
        (token, "admin", "dev-workspace", 400, "INVALID_BODY"),
        (token, "client", "no such form", 400, "INVALID_BODY"),
    ]
    for given, role, workspace, status, reason in cases:
        reply = await call.validate(given, role, workspace)
        assert (reply.status, reply.json["ok"], reply.json["reason"]) == (status, False, reason)
        assert token[:24] not in reply.raw.decode()
    assert (await call.validate(token)).json["ok"] is True
    platform.revoke(token)
    reply = await call.validate(token)
    assert (reply.status, reply.json["reason"]) == (401, "TOKEN_REVOKED")
    extra = await call.relay(
        "validate", {"relayToken": token, "role": "client", "workspaceId": "w", "ip": "1"}
    )
    assert (extra.status, extra.json["reason"]) == (400, "INVALID_BODY")
    assert platform.records.validate.total == len(cases) + 3


@in_reactor
async def test_internal_endpoints_need_the_key(platform: DevPlatform, call: Caller) -> None:
    names = ("validate", "presence/upsert", "presence/resolve", "bus/publish", "bus/pull")
    for name in names:
        for headers in ({}, {"x-relay-internal-key": ""}, {"x-relay-internal-key": "wrong"}):
            for body in (FRAME, b"not json"):
                reply = await call("POST", INTERNAL + name, body, headers)
                assert reply.status == 401
                assert reply.json["ok"] is False
                assert reply.json["reason"] == "RELAY_INTERNAL_KEY_INVALID"
                assert "internal key" in reply.json["error"]
    assert len(platform.bus) == 0
    platform.internal_key = "changed"
    assert (await call.relay("bus/pull", {"relayId": "r"})).status == 401


@in_reactor
async def test_rules_change_single_answers(platform: DevPlatform, call: Caller) -> None:
    token = platform.issue("client", "dev-workspace", "t", rule=Rule(status=503))
    assert (await call.validate(token)).status == 503
    platform.validate_rules[token] = Rule(status=401, body={"ok": False, "reason": "BANNED"})
    assert (await call.validate(token)).json == {"ok": False, "reason": "BANNED"}
    platform.validate_rules[token] = Rule(raw=b"<html>", headers={"location": "/x"}, status=302)
    redirect = await call.validate(token)
    assert (redirect.status, redirect.raw, redirect.headers["location"]) == (302, b"<html>", "/x")
    platform.validate_rules[token] = Rule(drip=0.35)
    dripped = await call.validate(token)
    assert dripped.raw.startswith(b"   ")
    assert dripped.json["ok"] is True
    clock: Any = reactor
    began = clock.seconds()
    platform.validate_rules[token] = Rule(delay=0.3)
    assert (await call.validate(token)).json["ok"] is True
    assert clock.seconds() - began >= 0.29
    # A rule applies only to callers with the internal key, and only to its token.
    assert (await call("POST", INTERNAL + "validate", {"relayToken": token})).status == 401
    assert (await call.validate(platform.issue("client", "dev-workspace", "t"))).status == 200
    platform.rules[JWKS] = Rule(status=500)
    down = await call("GET", JWKS)
    assert (down.status, down.json) == (500, {"ok": False})
    assert "etag" not in down.headers
    del platform.rules[JWKS]
    assert (await call("GET", JWKS)).status == 200


@in_reactor
async def test_an_internal_fault_is_a_500(platform: DevPlatform, call: Caller) -> None:
    platform.rules[JWKS] = Rule(body={"not": {"for", "json"}})
    reply = await call("GET", JWKS)
    assert (reply.status, reply.json) == (500, {"ok": False, "reason": "INTERNAL_ERROR"})
    del platform.rules[JWKS]
    assert (await call("GET", JWKS)).status == 200


@in_reactor
async def test_an_answer_can_differ_from_the_token(platform: DevPlatform, call: Caller) -> None:
    token = platform.issue(
        "client",
        "dev-workspace",
        "t",
        scope="runtime",
        policyMode="crypto_pairing",
        answer={"scope": ..., "userId": 7},
    )
    payload = jwt.decode(token, options={"verify_signature": False})
    assert payload["scope"] == "runtime"
    assert "policyMode" not in payload
    claims = (await call.validate(token)).json["claims"]
    assert "scope" not in claims
    assert (claims["userId"], claims["policyMode"]) == (7, "crypto_pairing")


@in_reactor
async def test_a_presence_entry_is_resolved_until_it_is_withdrawn(
    platform: DevPlatform, call: Caller
) -> None:
    where = {"workspaceId": "w", "runtimeTargetId": "t"}
    absent = {"ok": True, "relayId": None, "relayWsBaseUrl": None, "daemonConnected": False}
    assert (await call.relay("presence/resolve", where)).json == absent
    assert (await call.relay("presence/upsert", UPSERT)).json == {"ok": True}
    found = (await call.relay("presence/resolve", where)).json
    assert isinstance(found.pop("updatedAtMs"), int)
    assert found == {
        "ok": True,
        "machineId": "m",
        **{k: UPSERT[k] for k in ("relayId", "relayWsBaseUrl", "daemonConnected", "runtimeTargetId")},
    }
    await call.relay("presence/upsert", {**UPSERT, "relayId": "r2", "daemonConnected": False})
    assert (await call.relay("presence/resolve", where)).json["relayId"] == "r1"
    await call.relay("presence/upsert", {**UPSERT, "daemonConnected": False})
    assert (await call.relay("presence/resolve", where)).json == absent
    for wrong in (
        {"daemonConnected": "yes"},
        {"runtimeTargetId": ""},
        {"relayId": None},
        {"relayWsBaseUrl": 1},
    ):
        reply = await call.relay("presence/upsert", {**UPSERT, **wrong})
        assert (reply.status, reply.json["reason"]) == (400, "INVALID_BODY")
    assert json.loads(platform.records.presence_upserts[0].raw) == UPSERT
    assert platform.records.presence_upserts.total == 7
    assert platform.records.presence_resolves.total == 4


@in_reactor
async def test_the_bus_carries_frames_as_they_came(platform: DevPlatform, call: Caller) -> None:
    assert (await call.relay("bus/publish", {**FRAME, "machineId": "m"})).json == {"ok": True}
    assert (await call.relay("bus/pull", {"relayId": "r1", "sinceId": 0, "limit": 10, "waitMs": 0})).json[
        "frames"
    ] == []
    frames = (await call.relay("bus/pull", {"relayId": "r2", "sinceId": 0, "limit": 10, "waitMs": 0})).json[
        "frames"
    ]
    last = frames[0].pop("id")
    assert frames == [{**FRAME, "machineId": "m"}]
    assert (await call.relay("bus/pull", {"relayId": "r2", "sinceId": last})).json["frames"] == []
    wrong_frames: list[dict[str, object]] = [
        {"direction": "up"},
        {"payload": {}},
        {"issuedAtMs": "1"},
        {"signature": None},
        {"payload": None},
    ]
    for wrong in wrong_frames:
        reply = await call.relay("bus/publish", {**FRAME, **wrong})
        assert (reply.status, reply.json["reason"]) == (400, "INVALID_BODY")
    wrong_pulls: list[dict[str, object]] = [
        {"sinceId": -1},
        {"limit": 0},
        {"limit": "all"},
        {"waitMs": True},
        {"relayId": ""},
    ]
    for wrong in wrong_pulls:
        assert (await call.relay("bus/pull", {"relayId": "r2", **wrong})).status == 400
    assert json.loads(platform.records.published[0].raw) == {**FRAME, "machineId": "m"}


@in_reactor
async def test_a_long_poll_ends_with_the_frame_or_the_caller(platform: DevPlatform, call: Caller) -> None:
    pulled = Deferred.fromCoroutine(call.relay("bus/pull", {"relayId": "r2", "sinceId": 0, "waitMs": 2000}))
    while platform.bus.waiting == 0:
        await pause(0.01)
    clock: Any = reactor
    began = clock.seconds()
    await call.relay("bus/publish", FRAME)
    assert len((await pulled).json["frames"]) == 1
    assert clock.seconds() - began < 1.0
    left = Deferred.fromCoroutine(call.relay("bus/pull", {"relayId": "r9", "sinceId": 0, "waitMs": 2000}))
    while platform.bus.waiting == 0:
        await pause(0.01)
    left.addErrback(lambda _: None)
    left.cancel()
    began = clock.seconds()
    while platform.bus.waiting and clock.seconds() - began < 1.0:
        await pause(0.01)
    assert platform.bus.waiting == 0


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
@in_reactor
async def test_the_worker_api_says_what_arrived(platform: DevPlatform, call: Caller, method: str) -> None:
    path = "/api/runtime/workspaces/dev-workspace/managed-executors/e1/runs/7%2F8?since=1"
    body = None if method == "GET" else b"hello \xff"
    reply = await call(method, path, body, {"authorization": "Bearer hidden", "x-viewport-run-lease": "l"})
    assert reply.status == 200
    assert (reply.json["method"], reply.json["path"]) == (method, path)
    assert {"authorization", "x-viewport-run-lease"} <= set(reply.json["headers"])
    assert reply.json["body"] == ("" if body is None else "hello \ufffd")
    assert "hidden" not in reply.raw.decode()
    assert platform.records.worker[-1].headers["authorization"] == "Bearer hidden"
    assert (await call("GET", path.partition("/runs")[0])).status == 200
    assert (await call("GET", path.replace("dev-workspace", "dev-missing"))).status == 404
    assert (await call("DELETE", path)).status == 405


@in_reactor
async def test_other_paths_and_methods(platform: DevPlatform, call: Caller) -> None:
    for path in (
        "/",
        "/api",
        JWKS + "/",
        "//" + JWKS[1:],
        "/api/.well-known/%6awks.json",
        "/api/runtime/workspaces/w/managed-executors/",
    ):
        reply = await call("GET", path)
        assert (reply.status, reply.json) == (404, {"ok": False, "reason": "NOT_FOUND"})
    for method, path in (
        ("POST", JWKS),
        ("GET", TOKEN),
        ("PUT", INTERNAL + "validate"),
        ("BREW", INTERNAL + "bus/pull"),
    ):
        reply = await call(method, path)
        assert (reply.status, reply.json["reason"]) == (405, "METHOD_NOT_ALLOWED")
        assert method not in reply.headers["allow"]


@in_reactor
async def test_bodies_that_are_wrong_or_too_large(platform: DevPlatform, call: Caller) -> None:
    for body in (b"", b"{", b"[]", b"\xff", b"{" * 100_000):
        reply = await call("POST", TOKEN, body)
        assert (reply.status, reply.json["reason"]) == (400, "INVALID_JSON")
        assert reply.json["error"].startswith("the body ")
    fits = json.dumps({"role": "client"}).encode().ljust(1_048_576)
    assert (await call("POST", TOKEN, fits)).json["reason"] == "INVALID_BODY"
    large = await call("POST", TOKEN, fits + b" ")
    assert (large.status, large.json["reason"]) == (413, "BODY_TOO_LARGE")


@in_reactor
async def test_only_loopback_host_names_are_served(platform: DevPlatform, call: Caller) -> None:
    for host, status in (
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:80", 200),
        ("rebound.example", 403),
        ("localhost.example", 403),
        ("10.0.0.1", 403),
        ("[", 403),
        ("", 403),
    ):
        assert (await call("GET", JWKS, headers={"host": host})).status == status, host
    platform.resource.loopback_names_only = False
    assert (await call("GET", JWKS, headers={"host": "platform.example"})).status == 200
