"""Routing, methods and authentication of the admin resource, over a real port."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.web.server import NOT_DONE_YET

from tests.logentries import entries_of
from viewport_relay.routing.views import Selection

ADMIN_PATHS = ["/state", "/logs", "/logs?summary=1", "/metrics"]


@pytest_twisted.ensureDeferred
async def test_health_without_verbose_names_no_relay(open_admin):
    admin = open_admin({"RELAY_HEALTH_VERBOSE": "0"})
    answer = await admin.get("/health", token=None)
    assert answer.status == 200 and answer.headers["content-type"].startswith("application/json")
    body = answer.json()
    assert set(body) == {"ok", "service", "uptimeMs"} and body["service"] == "relay" and body["ok"] is True
    assert isinstance(body["uptimeMs"], int) and 900 <= body["uptimeMs"] < 600_000


@pytest_twisted.ensureDeferred
async def test_health_verbose_names_the_relay(open_admin):
    admin = open_admin({"RELAY_HEALTH_VERBOSE": "1", "RELAY_ID": "relay-7"})
    body = (await admin.get("/health?x=1", token=None)).json()
    assert set(body) == {"ok", "service", "uptimeMs", "tlsEnabled", "relayMode", "relayId", "version"}
    assert body["relayId"] == "relay-7" and body["tlsEnabled"] is False and body["relayMode"] == "dev"


@pytest.mark.parametrize(
    "method,path",
    [
        ("POST", "/"), ("GET", "/nope"), ("POST", "/health"), ("POST", "/state"), ("DELETE", "/logs"),
        ("GET", "/health/"), ("GET", "//health"), ("GET", "/%68ealth"), ("HEAD", "/disconnect"), ("GET", "/disconnect"),
        ("POST", "/admin"), ("PUT", "/admin/"), ("GET", "/admin/../state"), ("GET", "/admin/dashboard.css/"),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_any_other_path_or_method_is_not_found(admin, method, path):
    answer = await admin.ask(method, path)
    assert answer.status == 404
    if method != "HEAD":
        assert answer.json() == {"ok": False, "reason": "NOT_FOUND"}


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/nope", "/state", "/logs", "/metrics", "/admin/", "/", "/admin"]
)
@pytest.mark.parametrize("given", [True, False], ids=["with token", "without token"])
@pytest_twisted.ensureDeferred
async def test_head_equals_get_without_the_body(admin, token, path, given):
    sent = token if given else None
    got, head = await admin.get(path, token=sent), await admin.ask("HEAD", path, token=sent)
    assert head.status == got.status and head.body == b""
    volatile = {"date", "content-length"}  # the client overwrites content-length with the size of the body
    assert {k: v for k, v in head.headers.items() if k not in volatile} == {
        k: v for k, v in got.headers.items() if k not in volatile
    }


@pytest.mark.parametrize(
    "method,path,given,refreshed",
    [
        ("GET", "/state", True, 1), ("HEAD", "/logs", True, 1), ("GET", "/metrics", True, 1),
        ("GET", "/state", False, 0), ("GET", "/metrics", False, 0), ("POST", "/cache/flush", True, 0), ("GET", "/nope", True, 0),
        ("GET", "/health", True, 0), ("GET", "/admin/", True, 0),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_an_operators_page_is_checked_once_and_refreshes_the_state_after_that(
    admin, token, monkeypatch, method, path, given, refreshed
):
    checks = []
    check = admin.auth.check
    monkeypatch.setattr(
        admin.auth,
        "check",
        lambda request, *rest: (checks.append(admin.state.refreshed), check(request, *rest))[1],
    )
    monkeypatch.setattr(admin.auth, "admits", lambda *_: pytest.fail("a second check"))
    await admin.ask(method, path, token=token if given else "wrong")
    assert checks == ([] if path == "/nope" else [0])
    assert admin.state.refreshed == refreshed


@pytest_twisted.ensureDeferred
async def test_head_of_a_stream_completes_at_once(admin):
    answer = await admin.ask("HEAD", "/logs?follow=1")
    assert answer.status == 200 and answer.body == b""


@pytest.mark.parametrize("path", ["/", "/admin"])
@pytest_twisted.ensureDeferred
async def test_short_paths_redirect_to_the_dashboard_if_it_is_enabled(open_admin, token, path):
    answer = await open_admin().get(path, token=None)
    assert answer.status == 302 and answer.headers["location"] == "/admin/"
    for environ, options in (({}, {}), ({"RELAY_ADMIN_TOKEN": token}, {"admin": False})):
        answer = await open_admin(environ, **options).get(path)
        assert answer.status == 404 and answer.json() == {"ok": False, "reason": "NOT_FOUND"}
    later = open_admin({})
    later.auth.set_tokens([token], ())  # a reload brings the first token
    assert (await later.get(path, token=None)).status == 302


@pytest.mark.parametrize("path", ADMIN_PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic {token}"},
        {"Authorization": "{token}"},
        {"Authorization": "Bearer {token}x"},
        {"Authorization": "Bearer {token} x"},
        {"X-Relay-Admin-Token": "nope"},
        {"X-Relay-Admin-Token": ""},
        {"Authorization": "Bearer wrong", "X-Relay-Admin-Token": "{token}"},
        {"Authorization": "Bearer", "X-Relay-Admin-Token": "{token}"},
        {"Authorization": ["Bearer {token}", "Bearer wrong"]},
        {"Authorization": "Bearer \u00e9\u00e9"},
        {"Cookie": "relay_admin={token}"},
        {"Cookie": "relay_admin=9999999999.aa.bb"},
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_wrong_or_missing_token_is_refused(admin, token, path, headers):
    def fill(text):
        return text.replace("{token}", token).encode("utf-8")

    sent = {k: [fill(x) for x in v] if isinstance(v, list) else fill(v) for k, v in headers.items()}
    answer = await admin.get(path, sent, token=None)
    assert answer.status == 401 and answer.json() == {"ok": False, "reason": "ADMIN_UNAUTHORIZED"}


@pytest.mark.parametrize("path", ADMIN_PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer {}"},
        {"Authorization": "bearer {}"},
        {"authorization": "BEARER     {}"},
        {"Authorization": "Bearer \t {}  "},
        {"X-Relay-Admin-Token": "{}"},
        {"Authorization": "Basic abc", "x-relay-admin-token": "{}"},
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_right_token_is_accepted(admin, token, path, headers):
    sent = {name: value.format(token) for name, value in headers.items()}
    answer = await admin.get(path, sent, token=None)
    assert answer.status == 200 and answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "environ",
    [{}, {"RELAY_ADMIN_TOKEN": "unit-admin-token-0123456789abcdef", "RELAY_ENABLE_ADMIN_HTTP": "0"}],
)
@pytest.mark.parametrize("path", [*ADMIN_PATHS, "/admin/", "/admin/api/overview"])
@pytest_twisted.ensureDeferred
async def test_without_a_token_configured_every_admin_path_is_refused(open_admin, environ, path):
    admin = open_admin(environ)
    for given in (None, "", "undefined", "unit-admin-token-0123456789abcdef"):
        answer = await admin.get(path, token=given)
        assert answer.status == 404 and answer.json() == {"ok": False, "reason": "ADMIN_ENDPOINTS_DISABLED"}
    assert (await admin.get("/health")).status == 200


@pytest_twisted.ensureDeferred
async def test_with_an_admin_listener_the_public_one_has_no_admin_path(open_admin, token):
    admin = open_admin({"RELAY_ADMIN_TOKEN": token}, admin=False)
    for path in (*ADMIN_PATHS, "/admin/", "/admin/api/session"):
        answer = await admin.get(path)
        assert answer.status == 404 and answer.json() == {"ok": False, "reason": "NOT_FOUND"}
    assert (await admin.get("/health")).status == 200 and (await admin.get("/ready")).status == 200


@pytest.mark.parametrize("with_admin", [True, False])
@pytest_twisted.ensureDeferred
async def test_pages_of_the_wire_protocol_are_open_and_for_get_and_head_alone(open_admin, with_admin):
    def document(request):
        request.setHeader(b"content-length", b"8")
        return b"document"

    def upgrade(request):  # answers by itself, as the resource of upgrades does
        request.setResponseCode(426)
        request.write(b"upgrade")
        request.finish()
        return NOT_DONE_YET

    admin = open_admin({}, admin=with_admin, others={b"/document": document, b"/ws": upgrade})
    for path, status, body in (("/document", 200, b"document"), ("/ws", 426, b"upgrade")):
        got, head = await admin.get(path, token=None), await admin.ask("HEAD", path, token=None)
        assert (got.status, got.body, head.status, head.body) == (status, body, status, b"")
        assert (await admin.post(path, {}, token=None)).json()["reason"] == "NOT_FOUND"
    assert (await admin.get("/document/", token=None)).status == 404


@pytest_twisted.ensureDeferred
async def test_ready_names_the_cause(admin):
    assert (await admin.get("/ready", token=None)).json() == {
        "ok": True, "message": "Peers with a valid token can be admitted.",
    }  # fmt: skip
    admin.state.ready = (False, "JWKS_UNREACHABLE")
    answer = await admin.get("/ready", token=None)
    body = answer.json()
    assert answer.status == 503 and (body["ok"], body["reason"]) == (False, "JWKS_UNREACHABLE")
    assert body["message"].startswith(
        "No peer can be admitted: JWT validation failed: JWKS unreachable. To do: run "
    )


@pytest_twisted.ensureDeferred
async def test_a_wrong_token_is_logged_with_the_address_and_without_the_token(admin):
    await admin.get("/state", {"Authorization": "Bearer a-wrong-guess-of-somebody"}, token=None)
    entry = entries_of(admin.log)[-1]
    assert entry["reason"] == "ADMIN_UNAUTHORIZED" and entry["level"] == "warn"
    assert entry["details"] == {"ip": "127.0.0.1", "path": "/state"}
    assert "a-wrong-guess" not in admin.stream.getvalue()


# -- POST -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body,selection",
    [
        ({"workspaceId": "w-1"}, Selection(workspace_id="w-1")),
        ({"workspaceId": "w-1", "runtimeTargetId": "t-1"}, Selection("w-1", "t-1")),
        ({"connectionId": "c-9"}, Selection(connection_id="c-9")),
        ({"tokenId": "token 7"}, Selection(token_id="token 7")),
        ({"connectionId": "c-9", "workspaceId": None}, Selection(connection_id="c-9")),
    ],
)
@pytest_twisted.ensureDeferred
async def test_disconnect(admin, body, selection):
    admin.state.closed = 3
    answer = await admin.post("/disconnect", body)
    assert answer.status == 200 and answer.json() == {"ok": True, "disconnected": 3}
    assert admin.state.calls == [selection]
    entry = entries_of(admin.log)[-1]
    assert entry["event"] == "operator_disconnect" and entry["details"]["operator"] == "127.0.0.1"
    assert entry["details"]["closed"] == 3


@pytest_twisted.ensureDeferred
async def test_disconnect_is_logged_when_the_client_leaves_before_the_answer(admin):
    admin.state.closed = closed = Deferred()
    asked = ensureDeferred(admin.post("/disconnect", {"workspaceId": "w-1"}))
    while not admin.state.calls:
        await deferLater(reactor, 0.01)
    asked.addErrback(lambda _: None).cancel()
    await deferLater(reactor, 0.05)  # the relay sees that the client has left
    closed.callback(3)
    entry = entries_of(admin.log)[-1]
    assert (entry["event"], entry["details"]["closed"]) == ("operator_disconnect", 3)


@pytest.mark.parametrize(
    "body",
    [
        {}, [], "x", None, 7, {"workspaceId": ""}, {"workspaceId": 7}, {"workspaceId": "a b"}, {"workspaceId": "x" * 129},
        {"runtimeTargetId": "t"}, {"connectionId": "c", "workspaceId": "w"}, {"connectionId": "c", "runtimeTargetId": "t"},
        {"workspaceId": "w", "workspace": "w"}, {"workspaceId": "w\n"}, {"workspaceId": ["w"]},
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_disconnect_refuses_invalid_bodies(admin, body):
    answer = await admin.post("/disconnect", body)
    assert answer.status == 400 and answer.json()["reason"] == "ADMIN_REQUEST_INVALID"
    assert "takes" in answer.json()["message"] and admin.state.calls == []


@pytest.mark.parametrize(
    "kind,body,status",
    [
        ("text/plain", b'{"workspaceId":"w"}', 415),
        ("application/x-www-form-urlencoded", b"workspaceId=w", 415),
        ("application/json", b"{", 400),
        ("application/json", b"[" * 20_000, 413),
        ("application/json", b"[" * 16_000, 400),
        ("application/json", b"\xff\xfe", 400),
        ("application/json", b'{"workspaceId":"' + b"w" * 20_000 + b'"}', 413),
    ],
)
@pytest_twisted.ensureDeferred
async def test_bodies_of_a_wrong_content_type(admin, kind, body, status):
    answer = await admin.ask("POST", "/disconnect", {"Content-Type": kind}, body)
    assert answer.status == status and answer.json()["ok"] is False and admin.state.calls == []


@pytest_twisted.ensureDeferred
async def test_cache_flush(admin):
    answer = await admin.post("/cache/flush", {}, {"Content-Type": "application/json; charset=utf-8"})
    assert answer.status == 200 and admin.state.calls == ["flush"]
    assert entries_of(admin.log)[-1]["details"] == {"operator": "127.0.0.1"}


METRICS = "unit-metrics-token-0123456789abcd"
ROTATED = "unit-rotated-token-0123456789abcd"


@pytest_twisted.ensureDeferred
async def test_a_metrics_token_reads_metrics_and_nothing_else(open_admin, token):
    admin = open_admin({"RELAY_ADMIN_TOKEN": token, "RELAY_METRICS_TOKEN": METRICS})
    assert (await admin.get("/metrics", token=METRICS)).status == 200
    for method, path in (
        ("GET", "/state"),
        ("GET", "/logs"),
        ("GET", "/admin/api/overview"),
        ("POST", "/disconnect"),
    ):
        assert (await admin.ask(method, path, token=METRICS)).status == 401
    answer = await admin.post("/admin/api/session", {"token": METRICS}, token=None)
    assert answer.status == 401 and "set-cookie" not in answer.headers


@pytest_twisted.ensureDeferred
async def test_a_metrics_token_alone_enables_metrics_only(open_admin):
    admin = open_admin({"RELAY_METRICS_TOKEN": METRICS})
    assert (await admin.get("/metrics", token=METRICS)).status == 200
    assert (await admin.get("/metrics", token="")).status == 401
    assert (await admin.get("/state", token=METRICS)).json()["reason"] == "ADMIN_ENDPOINTS_DISABLED"


@pytest_twisted.ensureDeferred
async def test_each_of_several_tokens_is_accepted(open_admin, token):
    admin = open_admin({"RELAY_ADMIN_TOKEN": f"{ROTATED}, {token}"})
    for given in (token, ROTATED):
        assert (await admin.get("/state", token=given)).status == 200
    assert (await admin.get("/state", token=f"{ROTATED}, {token}")).status == 401


@pytest_twisted.ensureDeferred
async def test_wrong_tokens_are_limited_and_the_right_one_is_not(admin, token):
    for _ in range(20):
        assert (await admin.get("/state", token="wrong")).status == 401
    answer = await admin.get("/state", token="wrong")
    assert answer.status == 429 and answer.json()["reason"] == "ADMIN_RATE_LIMIT_EXCEEDED"
    assert 0 < int(answer.headers["retry-after"]) <= 60
    assert (await admin.post("/admin/api/session", {"token": "wrong"}, token=None)).status == 429
    assert (await admin.get("/state", token=token)).status == 200
    assert (await admin.post("/admin/api/session", {"token": token}, token=None)).status == 200
    assert (await admin.get("/state", token=None)).status == 401, "a missing token is no wrong one"
    limited = [e for e in entries_of(admin.log) if e.get("reason") == "ADMIN_RATE_LIMIT_EXCEEDED"]
    assert [entry["details"]["path"] for entry in limited] == ["/state", "/admin/api/session"]
    for entry in limited:
        assert entry["details"]["detail"] == "more than 20 wrong tokens within a minute, a fixed limit"
    admin.clock.advance(60)
    assert (await admin.get("/state", token="wrong")).status == 401
