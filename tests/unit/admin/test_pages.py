"""`/state`, `/metrics`, the dashboard's session, files and JSON, the verdict."""

from __future__ import annotations

import json
import re
import time
from importlib import resources

import attrs
import pytest
import pytest_twisted
from msgspec.structs import replace
from twisted.application.service import MultiService
from twisted.internet.task import Clock

from tests.logentries import entries_of
from viewport_relay.admin.auth import ONE_TIME_MAX, ONE_TIME_SECONDS, SESSION_SECONDS, AdminAuth
from viewport_relay.admin.overview import MAX_TARGETS
from viewport_relay.admin.trends import KEPT, STEP, Trends
from viewport_relay.observe.checks import FRESH, Condition, Facts, ago
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.verdict import verdict_of
from viewport_relay.reasons import Reason
from viewport_relay.service.timers import every


@pytest_twisted.ensureDeferred
async def test_state_has_the_documented_form(admin, make_peer, make_target):
    daemon = make_peer(
        "workspace-daemon", "d", queued_bytes=5, noise="IKpsk2", subprotocol="viewport.noise-link.v1"
    )
    clients = (make_peer(name="c-2", queued_bytes=7, subprotocol="auth.abc-secret"), make_peer(name="c-1"))
    admin.state.views = [
        make_target("w-2", None, clients=(make_peer(name="p"),)),
        make_target(
            "w-1", daemon=daemon, clients=clients, sessions=3, pending_requests=1, frames=10, bytes=99
        ),
    ]
    answer = await admin.get("/state")
    body = answer.json()
    assert {name: body[name] for name in body if name not in ("workspaces", "connections", "relayId")} == {
        "ok": True, "service": "relay", "relayMode": "dev", "backplaneMode": "single", "busEnabled": False,
        "clientRedirectEnabled": False,
    }  # fmt: skip
    assert body["connections"] == {"workspace-daemon": 1, "client": 3, "worker": 0}
    first, second = body["workspaces"]
    assert (
        first["workspaceId"] == "w-1"
        and first["runtimeTargetId"] == "t-1"
        and first["daemonConnected"] is True
    )
    assert first["clientCount"] == 2 and first["clientIds"] == ["c-2", "c-1"]
    assert first["lastActivityAt"] == "2023-11-14T22:13:21.500Z" and first["queuedBytes"] == 12
    assert (
        first["sessions"] == 3
        and first["pendingRequests"] == 1
        and first["frames"] == 10
        and first["bytes"] == 99
    )
    assert first["daemon"] == {
        "connectionId": "conn-d", "since": "2023-11-14T22:13:20.000Z", "version": "unit/1", "noise": "IKpsk2",
        "subprotocol": "viewport.noise-link.v1", "queuedBytes": 5, "paused": False, "endToEnd": None, "clientId": "d", "ip": "192.0.2.7",
    }  # fmt: skip
    assert second["runtimeTargetId"] is None and second["daemonConnected"] is False and "daemon" not in second
    assert "abc-secret" not in answer.text


@pytest_twisted.ensureDeferred
async def test_state_leaves_client_ids_out_unless_they_are_included(
    open_admin, token, make_peer, make_target
):
    admin = open_admin({"RELAY_ADMIN_TOKEN": token, "RELAY_STATE_INCLUDE_CLIENT_IDS": "0"})
    admin.state.views = [make_target(clients=(make_peer(name="person-1"),))]
    answer = await admin.get("/state")
    assert "clientIds" not in answer.json()["workspaces"][0]
    assert answer.text.replace("conn-person-1", "").find("person-1") < 0
    assert answer.json()["workspaces"][0]["clients"][0]["connectionId"] == "conn-person-1"


@pytest.mark.parametrize(
    "accept,kind",
    [
        (None, "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/html,garbage;;;=", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=0.0.4;q=0.5", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;q=0.3",
            "application/openmetrics-text; version=1.0.0",
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_metrics_in_the_requested_format(admin, make_peer, make_target, accept, kind):
    admin.state.views = [
        make_target(daemon=make_peer("workspace-daemon"), clients=(make_peer(), make_peer(paused=True)))
    ]
    answer = await admin.get("/metrics", {"Accept": accept} if accept else {})
    assert answer.status == 200 and answer.headers["content-type"].startswith(kind)
    total = sum(
        float(line.rsplit(" ", 1)[1])
        for line in answer.text.splitlines()
        if line.startswith("relay_connections_total{")
    )
    assert (
        total == 3
        and "\nrelay_workspaces_total 1.0\n" in answer.text
        and "\nrelay_peers_paused 1.0\n" in answer.text
    )


# -- the session ----------------------------------------------------------------------------------------------


async def sign_in(admin, token):
    answer = await admin.post("/admin/api/session", {"token": token}, token=None)
    assert answer.status == 200
    return answer.headers["set-cookie"].partition(";")[0], answer.json()["csrf"], answer.headers["set-cookie"]


@pytest_twisted.ensureDeferred
async def test_sign_in_sets_an_http_only_same_site_cookie(admin, token):
    cookie, csrf, whole = await sign_in(admin, token)
    assert "HttpOnly" in whole and "SameSite=strict" in whole and "Path=/" in whole and "Secure" not in whole
    assert token not in whole
    for path in (
        "/state",
        "/logs",
        "/metrics",
        "/admin/api/overview",
        "/admin/api/reasons",
        "/admin/api/workspaces",
    ):
        assert (await admin.get(path, {"Cookie": f"other=1; {cookie}"}, token=None)).status == 200
    answer = await admin.get("/admin/api/session", {"Cookie": cookie}, token=None)
    assert answer.json() == {"ok": True, "signedIn": True, "csrf": csrf}
    assert (await admin.get("/admin/api/session", token=None)).json() == {"ok": True, "signedIn": False}
    entry = entries_of(admin.log)[0]
    assert entry["event"] == "operator_signed_in" and entry["details"]["operator"] == "127.0.0.1"


@pytest_twisted.ensureDeferred
async def test_behind_a_tls_proxy_the_cookie_is_secure(open_admin, token):
    admin = open_admin({"RELAY_ADMIN_TOKEN": token, "RELAY_TLS_TERMINATION": "platform"})
    assert "; Secure" in (await sign_in(admin, token))[2]


@pytest.mark.parametrize(
    "body,status",
    [
        ({"token": "wrong"}, 401),
        ({"token": ""}, 401),
        ({}, 400),
        ({"token": 7}, 400),
        ({"token": "\ud800é"}, 401),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_wrong_token_sets_no_cookie(admin, body, status):
    answer = await admin.post("/admin/api/session", body, token=None)
    assert answer.status == status and "set-cookie" not in answer.headers


@pytest_twisted.ensureDeferred
async def test_a_form_of_another_site_cannot_sign_in(admin, token):
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data"):
        answer = await admin.ask(
            "POST", "/admin/api/session", {"Content-Type": kind}, json.dumps({"token": token}).encode(), None
        )
        assert answer.status in (400, 415) and "set-cookie" not in answer.headers


@pytest.mark.parametrize("proof", [None, "", "wrong", "0" * 64, "é"])
@pytest_twisted.ensureDeferred
async def test_a_cookie_without_csrf_token_is_refused(admin, token, proof):
    cookie, csrf, _ = await sign_in(admin, token)
    headers = {"Cookie": cookie} | ({} if proof is None else {"X-Relay-CSRF": proof.encode()})
    for path in ("/disconnect", "/cache/flush"):
        answer = await admin.post(path, {"workspaceId": "w"}, headers, token=None)
        assert answer.status == 403 and answer.json()["reason"] == "ADMIN_CSRF_MISMATCH"
    assert (await admin.ask("DELETE", "/admin/api/session", headers, token=None)).status == 403
    assert admin.state.calls == []
    good = {"Cookie": cookie, "X-Relay-CSRF": csrf}
    assert (await admin.post("/disconnect", {"workspaceId": "w"}, good, token=None)).status == 200
    gone = await admin.ask("DELETE", "/admin/api/session", good, token=None)
    assert gone.status == 200 and "Max-Age=0" in gone.headers["set-cookie"]
    # The session has ended on the server: a kept cookie is invalid.
    for path in ("/state", "/admin/api/overview"):
        assert (await admin.get(path, {"Cookie": cookie}, token=None)).status == 401
    assert (await admin.post("/cache/flush", {}, good, token=None)).status == 401
    other, _, _ = await sign_in(admin, token)
    assert (await admin.get("/state", {"Cookie": other}, token=None)).status == 200


@pytest_twisted.ensureDeferred
async def test_a_csrf_token_is_valid_for_its_session_only(admin, token):
    cookie, _, _ = await sign_in(admin, token)
    _, other, _ = await sign_in(admin, token)
    answer = await admin.post("/cache/flush", {}, {"Cookie": cookie, "X-Relay-CSRF": other}, token=None)
    assert answer.status == 403


@pytest_twisted.ensureDeferred
async def test_altered_old_and_foreign_sessions_are_none(open_admin, token):
    admin = open_admin({"RELAY_ADMIN_TOKEN": token})
    cookie, _, _ = await sign_in(admin, token)
    name, _, value = cookie.partition("=")
    ends, nonce, mac = value.split(".")
    stranger = AdminAuth(["another-token-0123456789abcdef"], now=time.time).open_session()[0]
    past = AdminAuth([token], now=lambda: time.time() - SESSION_SECONDS - 5).open_session()[0]
    for altered in (
        f"{int(ends) + 9}.{nonce}.{mac}", f"{ends}.{nonce}0.{mac}", f"{ends}.{nonce}.{mac[:-1]}", f".{mac}", "", "..", mac,
        stranger, past, f"{ends}.{nonce}.é",
    ):  # fmt: skip
        answer = await admin.get("/state", {"Cookie": f"{name}={altered}".encode()}, token=None)
        assert answer.status == 401, altered


# -- files -----------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_page_is_served_under_a_strict_policy_and_names_no_other_host(admin):
    page = await admin.get("/admin/", token=None)
    assert page.status == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert "script-src 'self'" in policy and "form-action 'none'" in policy and "*" not in policy
    names = set(re.findall(r'(?:src|href)="([^"#]+)"', page.text))
    assert names >= {"app.js", "dashboard.css", "icon.svg"}
    for name in names:
        assert "/" not in name
        assert (await admin.get(f"/admin/{name}", token=None)).status == 200
    shipped = resources.files("viewport_relay.admin").joinpath("dashboard").iterdir()
    files = [f"/admin/{file.name}" for file in shipped if file.name.endswith((".js", ".css", ".svg"))]
    assert len(files) >= 12
    for path in ("/admin/", *files):
        file = await admin.get(path, token=None)
        assert file.headers["content-security-policy"] == policy
        text = file.text
        assert "http://www.w3.org" in text or "http" not in text.replace("https://", "http://").replace(
            "HTTP", ""
        )
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|style=|onclick=|\.on[a-z]+ =", text
        )
        again = await admin.get(path, {"If-None-Match": file.headers["etag"]}, token=None)
        assert again.status == 304 and again.body == b""


# -- the dashboard's JSON ------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_overview_counts_refusals_latest_first(admin):
    admin.counters.refusals[Reason.JWT_EXPIRED] += 2
    admin.counters.closes[Reason.NOISE_INVALID_PSK] += 1
    admin.counters.drops[Reason.NOISE_INVALID_PSK] += 4
    admin.log.event("refused", reason=Reason.JWT_EXPIRED)
    body = (await admin.get("/admin/api/overview")).json()
    first, second = body["reasons"]
    assert first["reason"] == "JWT_EXPIRED" and first["refused"] == 2 and first["lastAt"].endswith("Z")
    assert second == {
        "reason": "NOISE_INVALID_PSK", "refused": 0, "closed": 1, "dropped": 4, "count": 5, "lastAt": None, "level": "warn",
    }  # fmt: skip
    assert body["verdict"]["state"] == "good" and body["verdict"]["headline"] == "Daemons can connect."


@pytest_twisted.ensureDeferred
async def test_the_workers_of_this_relay_are_not_other_relays(admin):
    own = admin.config.relay_id
    admin.state.back = {
        "mode": "redis",
        "relays": [{"relayId": name} for name in (f"{own}-w1", "b-w1", f"{own}-west")],
    }
    body = (await admin.get("/admin/api/overview")).json()
    assert [row["relayId"] for row in body["relays"]] == ["b-w1", f"{own}-west"]


@pytest_twisted.ensureDeferred
async def test_every_reason_has_cause_and_fix(admin):
    reasons = (await admin.get("/admin/api/reasons")).json()["reasons"]
    assert set(reasons) == {reason.code for reason in Reason}
    assert all(row["text"] and row["cause"] and row["fix"] for row in reasons.values())


@pytest_twisted.ensureDeferred
async def test_workspaces_are_searched_bounded_and_latest_first(admin, make_target):
    admin.state.views = [make_target(f"w-{n}", "t", last_activity_at=float(n)) for n in range(300)]
    body = (await admin.get("/admin/api/workspaces")).json()
    assert body["total"] == 300 and len(body["workspaces"]) == MAX_TARGETS
    assert body["workspaces"][0]["workspaceId"] == "w-299"
    found = (await admin.get("/admin/api/workspaces?search=w-29")).json()
    assert found["total"] == 11
    assert (await admin.get("/admin/api/workspaces?search=" + "x" * 200)).status == 400


def test_history_spans_an_hour(admin, make_target, make_peer):
    clock = Clock()
    counters = Counters()
    trends, service = Trends(lambda: admin.config, counters, admin.state, clock.seconds), MultiService()
    every(service, clock, STEP, trends.sample)
    service.startService()
    admin.state.views = [make_target(daemon=make_peer("workspace-daemon"))]
    clock.pump([STEP] * (KEPT + 10))
    columns = trends.history()
    assert (
        len(columns["at"]) == KEPT and columns["daemons"][-1] == 1 and columns["at"][-1] == (KEPT + 10) * STEP
    )
    service.stopService()
    assert clock.getDelayedCalls() == []


# -- the verdict ---------------------------------------------------------------------------------------------------

NOW = 1_700_000_000.0
WELL = Facts(
    now=NOW, condition=Condition(True, "", 60.0, {"mode": "single"}), jwks_ttl=3600, last_seen={("join", None): NOW - 5},
    has_internal_key=True,
)  # fmt: skip


def judged(**changes):
    """The verdict on WELL with changed members of the facts or of their condition."""
    members = Condition.__struct_fields__
    condition = replace(WELL.condition, **{name: changes[name] for name in changes if name in members})
    others = {name: value for name, value in changes.items() if name not in members}
    return verdict_of(attrs.evolve(WELL, condition=condition, **others))


@pytest.mark.parametrize(
    "changes,state,words",
    [
        ({}, "good", "Daemons can connect."),
        ({"last_seen": {}}, "good", "Daemons can connect."),
        ({"has_internal_key": False}, "good", "Daemons can connect."),
        ({"jwks_age": None}, "bad", "Daemons cannot connect: no key set was fetched yet."),
        ({"ready": False, "why": "JWKS_UNREACHABLE"}, "bad", "cannot connect: JWT validation failed: JWKS unreachable."),
        ({"ready": False, "why": "draining"}, "bad", "Daemons cannot connect: draining."),
        ({"ready": False, "why": "no worker has started yet", "jwks_age": None}, "bad", "connect: no worker has started yet."),
        ({"ready": False, "why": "the JWKS was not fetched yet", "jwks_age": None}, "bad", "connect: no key set was fetched yet."),
        ({"last_seen": {("jwks_fetch_failed", Reason.JWKS_UNREACHABLE): NOW - 9}}, "warn", "the key set cannot be fetched again"),
        ({"last_seen": {("jwks_refetch_failed", None): NOW - 9}}, "warn", "the key set cannot be fetched again"),
        ({"last_seen": {("jwks_refetch_failed", None): NOW - 90}}, "good", "Daemons can connect."),
        ({"jwks_age": 9000.0}, "warn", "was not fetched again in time"),
        ({"last_seen": {("join", None): NOW - 5, ("refuse", Reason.INTERNAL_KEY_MISMATCH): NOW - 1}}, "bad", "does not accept this relay's internal key"),
        ({"last_seen": {("join", None): NOW - 5, ("refuse", Reason.INTERNAL_KEY_MISMATCH): NOW - 60}}, "warn", "Daemons can connect, but the platform does"),
        ({"last_seen": {("join", None): NOW - 5, ("refuse", Reason.INTERNAL_KEY_MISMATCH): NOW - FRESH - 1}}, "good", "Daemons can connect."),
        ({"last_seen": {("join", None): NOW - 5, ("refuse", Reason.PLATFORM_UNREACHABLE): NOW - 1}}, "bad", "Daemons cannot connect: platform unreachable."),
        ({"last_seen": {("join", None): NOW - 5, ("refuse", Reason.PLATFORM_UNREACHABLE): NOW - 30}}, "warn", "some admissions failed: platform unreachable."),
        ({"last_seen": {("join", None): NOW - 5, ("refuse", Reason.VALIDATION_RESPONSE_INVALID): NOW - 1}}, "bad", "platform answer invalid"),
        ({"backplane": {"mode": "redis", "up": True}}, "good", "Daemons can connect."),
        ({"backplane": {"mode": "redis", "up": False}}, "warn", "the backplane (redis) does not answer"),
    ],
)  # fmt: skip
def test_the_banner(changes, state, words):
    verdict = judged(**changes)
    assert verdict.state == state and words in verdict.headline
    assert all(check.fix for check in verdict.checks if check.state in ("bad", "warn"))


@pytest.mark.parametrize(
    "joined,answered,state,words",
    [
        (None, None, "off", "untested"),
        (5.0, None, "good", "last success 5 s ago"),
        (None, 29.0, "good", "last success 29 s ago"),
        (3600.0, 20.0, "good", "last success 20 s ago"),
        (3600.0, 120.0, "off", "last success 2 min ago, untested since"),
    ],
)
def test_a_platform_without_recent_requests_is_untested(joined, answered, state, words):
    seen = {} if joined is None else {("join", None): NOW - joined}
    verdict = judged(last_seen=seen, platform_age=answered)
    (check,) = [check for check in verdict.checks if check.name == "Platform"]
    assert check.state == state and words in f"{check.text} {check.when}"


@pytest.mark.parametrize(
    "joined,given,state,words",
    [
        (None, True, "off", "No peer was admitted yet: untested."),
        (3600.0, True, "off", "No peer was admitted lately: untested."),
        (5.0, True, "good", "The platform accepts it."),
        (5.0, False, "off", "None is set."),
    ],
)
def test_an_internal_key_that_no_admission_has_used_is_untested(joined, given, state, words):
    seen = {} if joined is None else {("join", None): NOW - joined}
    verdict = judged(last_seen=seen, has_internal_key=given)
    (check,) = [check for check in verdict.checks if check.name == "Internal key"]
    assert (check.state, check.text) == (state, words)


@pytest.mark.parametrize("offset,state", [(None, "off"), (0.4, "good"), (-3600.0, "warn"), (120.0, "warn")])
def test_clocks_are_compared(offset, state):
    verdict = judged(clock_offset=offset)
    (check,) = [check for check in verdict.checks if check.name == "Clock"]
    assert check.state == state and (state != "warn" or "chrony" in check.fix)


@pytest.mark.parametrize("seconds,words", [(-3, "0 s"), (89, "89 s"), (120, "2 min"), (7200, "2 h")])
def test_durations_in_words(seconds, words):
    assert ago(seconds) == words


def test_a_one_time_key_opens_one_session_before_it_expires() -> None:
    now = [1_000.0]
    auth = AdminAuth(["an-admin-token-0123456789abcdef"], now=lambda: now[0])
    key, late = auth.one_time_key(), auth.one_time_key()
    assert not auth.redeem("another")
    assert auth.redeem(key) and not auth.redeem(key)
    now[0] += ONE_TIME_SECONDS + 1
    assert not auth.redeem(late)
    keys = [auth.one_time_key() for _ in range(ONE_TIME_MAX + 1)]
    assert not auth.redeem(keys[0]) and auth.redeem(keys[-1])
