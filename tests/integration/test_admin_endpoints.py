"""The admin API of a real relay process: content, delay, and a search for secrets."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.integration.relayprocess import RelayProcess, Reply
from tests.integration.webdriver import Browser
from tests.unit.admin.test_deployed_rules import _NAME, expressions
from viewport_relay.devplatform import DevPlatform, Rule, SigningKey
from viewport_relay.devplatform.endpoints import JWKS_PATH, VALIDATE_PATH
from viewport_relay.peer.connection import connect
from viewport_relay.peer.upgrade import ClosedEarly, Destination, UpgradeRefused

ADMIN = "operator-admin-token-" + secrets.token_hex(12)
INTERNAL = "operator-internal-key-" + secrets.token_hex(12)
TARGET = "dev-machine"


@pytest.fixture(scope="module")
def signing_key() -> SigningKey:
    return SigningKey.generate()


class Scene:
    """The development platform, relays as processes, and peers."""

    def __init__(self, platform: DevPlatform) -> None:
        self.platform = platform
        self.relays: list[RelayProcess] = []

    async def relay(self, settings: dict[str, str] | None = None, wait: str = "/ready") -> RelayProcess:
        environ = self.platform.relay_environment() | {"RELAY_ADMIN_TOKEN": ADMIN} | (settings or {})
        relay = RelayProcess(environ)
        self.relays.append(relay)
        await deferToThread(relay.wait, wait)
        return relay

    async def join(
        self, relay: RelayProcess, role: str, workspace: str = "dev-workspace", **more: Any
    ) -> Any:
        token = more.pop("token", None) or self.platform.issue(
            role, workspace, TARGET, **more.pop("claims", {})
        )
        return await connect(
            reactor, Destination(relay.ws, role, workspace, TARGET, **more), token, lambda text: None
        )

    async def close(self) -> None:
        for relay in self.relays:
            await deferToThread(relay.stop)
        await self.platform.close()


async def _scene(signing_key: SigningKey) -> AsyncIterator[Scene]:
    platform = DevPlatform(reactor, internal_key=INTERNAL, signing_key=signing_key)
    platform.listen(reactor)
    scene = Scene(platform)
    yield scene
    await scene.close()


scene = pytest_twisted.async_yield_fixture(name="scene")(_scene)


async def admin(relay: RelayProcess, path: str, method: str = "GET", body: object = None) -> Reply:
    headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    return await deferToThread(relay.ask, method, path, headers, data)


async def eventually(what: Callable[[], Any], seconds: float = 8.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        got = await what()
        if got:
            return got
        assert time.monotonic() < deadline
        await deferLater(reactor, 0.05, lambda: None)


class Follower:
    """`curl -N /logs?follow=1`: lines and their times of arrival."""

    def __init__(self, relay: RelayProcess, query: str = "follow=1&limit=1") -> None:
        self.socket = socket.create_connection(("127.0.0.1", relay.port), 5)
        request = f"GET /logs?{query} HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {ADMIN}\r\n\r\n"
        self.socket.sendall(request.encode())
        self.data = b""

    def until(self, needle: str) -> float:
        while needle.encode() not in self.data:
            got = self.socket.recv(65_536)
            assert got
            self.data += got
        return time.monotonic()


@pytest_twisted.ensureDeferred
async def test_a_followed_log_shows_a_failure_at_once(scene):
    relay = await scene.relay()
    follower = await deferToThread(Follower, relay)
    await deferToThread(follower.until, "details")
    waits = []
    for n in range(5):
        token = scene.platform.issue("client", f"late-{n}", TARGET, ttl=-600)
        began = time.monotonic()
        waiting = deferToThread(follower.until, f"late-{n}")
        with pytest.raises(UpgradeRefused):
            await scene.join(relay, "client", f"late-{n}", token=token)
        waits.append(await waiting - began)
    follower.socket.close()
    assert min(waits) < 0.25, waits
    logs = (await admin(relay, "/logs?reason=JWT_EXPIRED")).json()["logs"]
    assert len(logs) == 5
    assert logs[0]["message"] == "JWT validation failed: token expired" and logs[0]["level"] == "warn"
    assert logs[0]["details"]["workspaceId"] == "late-0" and logs[0]["details"]["role"] == "client"
    assert logs[0]["details"]["ip"] == "127.0.0.1" and logs[0]["connectionId"]


@pytest_twisted.ensureDeferred
async def test_an_operator_sees_a_daemon_and_closes_it(scene):
    relay = await scene.relay({"RELAY_ID": "relay-1"})
    daemon = await scene.join(relay, "workspace-daemon")
    client = await scene.join(relay, "client", claims={"scope": "runtime"})
    body = (await admin(relay, "/state")).json()
    (row,) = body["workspaces"]
    assert row["daemonConnected"] is True and row["clientCount"] == 1 and body["relayId"] == "relay-1"
    assert row["daemon"]["since"].endswith("Z") and row["lastActivityAt"].endswith("Z")
    metrics = (await admin(relay, "/metrics")).text
    assert 'relay_connections_total{role="workspace-daemon"} 1.0' in metrics
    answer = await admin(relay, "/disconnect", "POST", {"connectionId": row["daemon"]["connectionId"]})
    assert answer.json() == {"ok": True, "disconnected": 1}
    closed = await daemon.closed
    assert (closed.code, closed.reason) == (4008, "disconnected by operator")
    assert (await admin(relay, "/disconnect", "POST", {"workspaceId": "dev-workspace"})).json()[
        "disconnected"
    ] == 1
    assert (await client.closed).code == 4008
    assert (await admin(relay, "/disconnect", "POST", {"workspaceId": "nobody"})).json()["disconnected"] == 0
    logs = (await admin(relay, "/logs?event=operator_disconnect")).json()["logs"]
    assert [entry["details"]["closed"] for entry in logs] == [1, 1, 0]
    assert {entry["details"]["operator"] for entry in logs} == {"127.0.0.1"}


@pytest_twisted.ensureDeferred
async def test_flushing_the_caches_causes_new_requests_to_the_platform(scene):
    relay = await scene.relay({"RELAY_VALIDATE_CACHE_TTL": "600"})
    token = scene.platform.issue("client", "dev-workspace", TARGET, scope="runtime")
    for _ in range(3):
        (await scene.join(relay, "client", token=token)).close()
    validated, fetched = scene.platform.records.validate.total, scene.platform.records.jwks.total
    assert validated == 1
    assert (await admin(relay, "/cache/flush", "POST", {})).json() == {"ok": True}

    (await scene.join(relay, "client", token=token)).close()
    assert scene.platform.records.validate.total == validated + 1

    async def fetched_again() -> bool:
        return scene.platform.records.jwks.total > fetched

    await eventually(fetched_again)


@pytest_twisted.ensureDeferred
async def test_ready_waits_for_the_keys_and_the_dashboard_says_so(scene):
    scene.platform.rules[JWKS_PATH] = Rule(status=503)
    relay = await scene.relay(wait="/health")
    answer = await deferToThread(relay.ask, "GET", "/ready")
    assert answer.status == 503 and answer.json()["ok"] is False and "JWKS" in answer.json()["reason"]
    verdict = (await admin(relay, "/admin/api/overview")).json()["verdict"]
    assert verdict["state"] == "bad" and verdict["headline"].startswith("Daemons cannot connect")
    del scene.platform.rules[JWKS_PATH]
    await deferToThread(relay.wait, "/ready")
    assert (await admin(relay, "/admin/api/overview")).json()["verdict"]["state"] == "good"


@pytest_twisted.ensureDeferred
async def test_a_separate_admin_listener_leaves_no_admin_path_on_the_public_port(scene, free_port):
    relay = await scene.relay({"RELAY_ADMIN_LISTEN": f"127.0.0.1:{free_port}"})
    for path in ("/logs", "/state", "/metrics", "/admin/", "/admin/api/session"):
        answer = await admin(relay, path)
        assert answer.status == 404 and answer.json() == {"ok": False, "reason": "NOT_FOUND"}
    relay.port, public = free_port, relay.port
    assert (await admin(relay, "/state")).status == 200
    assert (await deferToThread(relay.ask, "GET", "/admin/")).status == 200
    assert (await deferToThread(relay.ask, "GET", "/ws")).status in (404, 426)
    relay.port = public


@pytest_twisted.ensureDeferred
async def test_a_flood_of_refusals_neither_pushes_out_the_log_nor_fills_the_disk(scene):
    relay = await scene.relay({"RELAY_RATE_LIMIT_PER_IP": "0", "RELAY_MAX_LOGS": "300"})
    daemon = await scene.join(relay, "workspace-daemon")
    before = len(relay.output())

    def flood() -> None:
        for n in range(2000):
            with socket.create_connection(("127.0.0.1", relay.port), 5) as raw:
                raw.sendall(
                    f"GET /ws?role=client&workspaceId=made-up-{n} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
                    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
                )
                answer = b""
                while b"}" not in answer:
                    got = raw.recv(65_536)
                    assert got, answer
                    answer += got

    await deferToThread(flood)
    body = (await admin(relay, "/logs")).json()["logs"]
    assert "relay_started" in {entry["event"] for entry in body}
    assert [entry["details"]["role"] for entry in body if entry["event"] == "join"] == ["workspace-daemon"]
    assert len(relay.output()) - before < 100_000
    counts = (await admin(relay, "/logs?summary=1")).json()["byReason"]
    assert counts["TOKEN_MISSING"] == 2000
    assert 'relay_refusals_total{reason="TOKEN_MISSING"} 2000.0' in (await admin(relay, "/metrics")).text
    daemon.close()


@pytest_twisted.ensureDeferred
async def test_everything_that_dashboard_and_alerts_name_is_in_a_real_scrape(scene):
    relay = await scene.relay()
    text = (await admin(relay, "/metrics")).text
    samples = set(re.findall(r"^([a-z0-9_]+)[ {]", text, re.M))
    named = {name for query in expressions().values() for name in _NAME.findall(query)}
    assert named <= samples, named - samples


# -- no secret is shown ------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_no_secret_of_a_run_is_in_any_output(scene):
    """Every secret is sent in every field of a request, then all outputs are searched for it."""
    values = {
        "bus": 'bus key+with/odd "quotes" ' + secrets.token_hex(12),
        "redis": secrets.token_urlsafe(18),
        "passphrase": "pass-" + secrets.token_hex(12),
        "noise": secrets.token_urlsafe(32),
        "pairing": secrets.token_urlsafe(32),
        "payload": secrets.token_hex(40),
        "admin": ADMIN,
        "internal": INTERNAL,
    }
    relay = await scene.relay(
        {
            "RELAY_BUS_HMAC_KEY": values["bus"], "RELAY_REDIS_URL": f"redis://relay:{values['redis']}@127.0.0.1:1/0",
            "RELAY_SERVER_CLIENT_KEY_PASSPHRASE": values["passphrase"], "RELAY_NOISE_PRIVATE_KEY": values["noise"],
            "RELAY_MODE": "dev", "RELAY_RATE_LIMIT_PER_IP": "0",
        }
    )  # fmt: skip
    follower = await deferToThread(Follower, relay, "follow=1")
    tokens = issued_with_secrets(scene.platform, values)
    await upgrade_with_all(scene, relay, tokens, values)
    # A workspace name that equals a key is shown: the relay cannot distinguish them.
    hidden = [value for name, value in (values | tokens).items() if name not in ("pairing", "payload")]
    await deferToThread(abuse, relay, hidden)
    await deferLater(reactor, 0.3, lambda: None)
    shown = await all_outputs(relay, follower)
    assert len(shown["follow"]) > 5000 and len(shown["/logs"]) > 5000
    for where, text in shown.items():
        for name, value in (values | tokens).items():
            forms = {value, json.dumps(value)[1:-1], quote(value, safe=""), *value.split(".")[1:3]}
            for form in forms:
                if len(form) >= 12:
                    assert form not in text, f"{name} is in {where}"


def issued_with_secrets(platform: DevPlatform, values: dict[str, str]) -> dict[str, str]:
    """Tokens, good and bad, with secrets in their claims, in the platform's claims, or in what it says of them."""
    platform.workspaces.add("dev-secret", pairing_secret=values["pairing"])
    tokens = {
        "daemon": platform.issue("workspace-daemon", "dev-secret", TARGET, pairingSecret=values["pairing"]),
        "client": platform.issue("client", "dev-secret", TARGET, scope="runtime"),
        "expired": platform.issue("client", "dev-secret", TARGET, ttl=-900),
        "foreign": platform.issue("client", "dev-secret", TARGET, key=SigningKey.generate()),
        "symmetric": platform.issue("client", "dev-secret", TARGET, hmac_secret=values["admin"]),
        "claims": platform.issue(
            "client", "dev-secret", TARGET, answer={"workspaceId": values["pairing"][:20]}
        ),
    }
    answers = {
        "said-401": Rule(401, {"ok": False, "reason": f"the internal key {INTERNAL} is wrong"}),
        "said-denied": Rule(
            200, {"ok": False, "error": f"no {values['pairing']} {json.dumps(values['bus'])}"}
        ),
        "said-claims": Rule(
            200, {"ok": True, "claims": {"pairingSecret": [values["pairing"]], "iss": INTERNAL}}
        ),
        "said-text": Rule(200, raw=f"<pre>{INTERNAL} {values['pairing']}</pre>".encode()),
        "said-500": Rule(500, raw=INTERNAL.encode()),
    }
    for name, rule in answers.items():
        tokens[name] = platform.issue("client", "dev-secret", TARGET, jti=name, rule=rule)
    return tokens


async def upgrade_with_all(
    scene: Scene, relay: RelayProcess, tokens: dict[str, str], values: dict[str, str]
) -> None:
    """Join with each token at each place; an admitted peer sends secrets in frames of every validity."""
    for name, token in tokens.items():
        scene.platform.rules.pop(VALIDATE_PATH, None)
        for where in ("header", "subprotocol"):
            role = "workspace-daemon" if name == "daemon" else "client"
            try:
                peer = await scene.join(relay, role, "dev-secret", token=token, token_in=where)
            except (UpgradeRefused, ClosedEarly):
                continue
            peer.send("not json " + values["payload"])
            peer.send(
                json.dumps({"type": "e2ee", "ciphertext": values["payload"], "sessionId": values["pairing"]})
            )
            peer.send(json.dumps({"type": values["payload"], "token": token}))
            peer.close()
            await peer.closed


def abuse(relay: RelayProcess, hidden: list[str]) -> None:
    """Send each secret in paths, queries, headers, bodies, and as no HTTP at all."""
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    admitted = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
    as_json = {"Content-Type": "application/json"}
    for value in hidden:
        flat = quote(value, safe="")
        everywhere = {"User-Agent": value, "Origin": value, "X-Forwarded-For": value, "Cookie": value,
                      "Sec-WebSocket-Protocol": f"x, auth.{flat}"}  # fmt: skip
        for path in (
            f"/ws?role=client&workspaceId={flat}", f"/ws?role={flat}&workspaceId=w", f"/ws?token={flat}",
            f"/ws?role=client&workspaceId=w&runtimeTargetId={flat}&token={flat}", f"/{flat}", f"/logs?level={flat}",
            f"/logs?workspaceId={flat}", f"/health?{flat}", f"/admin/{flat}",
        ):  # fmt: skip
            relay.ask("GET", path, everywhere)
            relay.ask("GET", path, everywhere | upgrade)
        relay.ask("GET", "/state", {"Authorization": f"Bearer {value}x"})
        relay.ask("GET", "/state", {"X-Relay-Admin-Token": "x" + value})
        relay.ask("POST", "/disconnect", admitted, json.dumps({"workspaceId": value}).encode())
        relay.ask("POST", "/disconnect", admitted, json.dumps({value: value}).encode())
        relay.ask("POST", "/admin/api/session", as_json, json.dumps({"token": value + "x"}).encode())
        with socket.create_connection(("127.0.0.1", relay.port), 5) as raw:
            raw.sendall(f"{value}\r\nHost: {value}\r\n\r\n".encode())
            raw.settimeout(1)
            with contextlib.suppress(OSError):
                raw.recv(4096)


async def all_outputs(relay: RelayProcess, follower: Follower) -> dict[str, str]:
    """All that the relay shows, by its place."""
    shown = {"stdout": relay.output()}
    for path in ("/logs", "/logs?format=text", "/logs?summary=1", "/state", "/metrics", "/admin/api/overview",
                 "/admin/api/workspaces", "/admin/api/reasons", "/admin/api/history", "/health", "/ready",
                 "/.well-known/viewport-relay.json"):  # fmt: skip
        shown[path] = (await admin(relay, path)).text
    follower.socket.settimeout(0.5)
    try:
        while True:
            follower.data += follower.socket.recv(65_536)
    except OSError:
        pass
    shown["follow"] = follower.data.decode()
    follower.socket.close()
    return shown


# -- the dashboard -------------------------------------------------------------------------------------------------


@pytest.mark.chromium
@pytest_twisted.ensureDeferred
async def test_the_dashboard_of_a_real_relay(scene):
    relay = await scene.relay({"RELAY_ID": "relay-real"})
    browser = await deferToThread(Browser)
    try:
        await deferToThread(sign_in, browser, relay)
        daemon = await scene.join(relay, "workspace-daemon", "dev-workspace")

        def comes() -> None:
            browser.wait(lambda: browser.text("#n-daemons") == "1")
            browser.wait(lambda: "dev-workspace" in browser.text("#spaces tbody tr"))
            browser.wait(lambda: "join" in browser.text("#log"))

        await deferToThread(comes)
        daemon.close()
        await daemon.closed

        def goes() -> None:
            browser.wait(lambda: browser.text("#n-daemons") == "0")
            browser.wait(lambda: "leave" in browser.text("#log"))

        await deferToThread(goes)
        scene.platform.internal_key = "another-key-of-the-platform-0123456789"
        with pytest.raises(UpgradeRefused) as refused:
            await scene.join(relay, "workspace-daemon", "dev-workspace")
        assert refused.value.reason == "INTERNAL_KEY_MISMATCH"

        def refusal() -> None:
            row = browser.wait(lambda: browser.text('[data-reason="INTERNAL_KEY_MISMATCH"]'))
            assert "Fix: set RELAY_INTERNAL_KEY to the platform's value and restart the relay" in row
            browser.wait(
                lambda: browser.text("#headline").startswith("Daemons cannot connect: the platform does not")
            )
            browser.wait(lambda: "INTERNAL_KEY_MISMATCH" in browser.text("#log"))
            problems = [
                line for line in browser.console() if "Content Security Policy" in line or "Error:" in line
            ]
            assert problems == []

        await deferToThread(refusal)
    finally:
        await deferToThread(browser.close)


def sign_in(browser: Browser, relay: RelayProcess) -> None:
    browser.open(relay.base + "/admin/")
    browser.wait(lambda: browser.text("#gate h2") == "Sign in")
    browser.type("#token", "wrong-" + ADMIN + "\ue007")
    browser.wait(lambda: "not this relay's admin token" in browser.text("#token-error"))
    browser.run("document.querySelector('#token').value = ''")
    browser.type("#token", ADMIN + "\ue007")
    browser.wait(lambda: "relay-real" in browser.text("#who"))
