"""`GET /logs`: filters, counts, plain text, following over a real socket."""

from __future__ import annotations

import json
import socket
import time

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.logentries import entries_of
from viewport_relay.admin import follow, logs
from viewport_relay.admin.filters import PARAMETERS, parse_filter
from viewport_relay.admin.logs import TEXT_ENTRIES
from viewport_relay.admin.reply import BadRequest, prefers_text
from viewport_relay.admin.words import as_text, inert
from viewport_relay.observe.events import EVENTS
from viewport_relay.reasons import Reason


@pytest.fixture
def filled(admin):
    log = admin.log
    log.event("relay_started")
    log.event("join", connection_id="c-1", workspaceId="w-1", role="client", ip="192.0.2.1")
    log.event("refuse", reason=Reason.JWT_EXPIRED, connection_id="c-2", workspaceId="w-2", ip="192.0.2.2")
    log.event("refuse", reason=Reason.INTERNAL_KEY_MISMATCH, connection_id="c-3", workspaceId="w-1")
    log.event("leave", connection_id="c-1", workspaceId="w-1", role="client", ip="192.0.2.1")
    return admin


@pytest.mark.parametrize(
    "query,events",
    [
        ("", ["relay_started", "join", "refuse", "refuse", "leave"]),
        ("level=error", ["refuse"]),
        ("level=warn,ERROR", ["refuse", "refuse"]),
        ("reason=JWT_EXPIRED", ["refuse"]),
        ("reason=jwt_expired,INTERNAL_KEY_MISMATCH", ["refuse", "refuse"]),
        ("reason=NOT_FOUND", []),
        ("reason=&event=&level=", ["relay_started", "join", "refuse", "refuse", "leave"]),
        ("event=join,leave", ["join", "leave"]),
        ("workspaceId=w-1", ["join", "refuse", "leave"]),
        ("workspaceId=w-1&level=info&limit=1", ["leave"]),
        ("connectionId=c-1", ["join", "leave"]),
        ("limit=2", ["refuse", "leave"]),
        ("limit=2&limit=1", ["refuse", "leave"]),
        ("since=1h", ["relay_started", "join", "refuse", "refuse", "leave"]),
        ("since=2001-01-01T00:00:00Z&limit=1", ["leave"]),
        ("since=2001-01-01T00:00:00+02:00&limit=1", ["leave"]),
        ("since=4000000000", []),
        ("since=2099-01-01", []),
    ],
)
@pytest_twisted.ensureDeferred
async def test_each_filter_leaves_the_entries_that_fit(filled, query, events):
    answer = await filled.get(f"/logs?{query}")
    assert answer.status == 200 and answer.headers["content-type"].startswith("application/json")
    body = answer.json()
    assert body["ok"] is True and [entry["event"] for entry in body["logs"]] == events


@pytest.mark.parametrize(
    "query,parameter",
    [
        ("level=loud", "level"), ("level=warn,", "level"), ("reason=a%20b", "reason"), ("event=%3Cscript%3E", "event"),
        ("limit=0", "limit"), ("limit=-1", "limit"), ("limit=x", "limit"), ("limit=99999999", "limit"), ("limit=%D9%A3", "limit"),
        ("since=yesterday", "since"), ("since=10w", "since"), ("since=99999999999999999", "since"), ("format=xml", "format"),
        ("reason=NO_SUCH_CODE", "reason"), ("event=no_such_event", "event"), ("colour=red", "colour"), ("follow=maybe", "follow"), ("summary=2", "summary"),
        ("about=" + 300 * "x", "about"), ("&".join(f"a{n}=1" for n in range(40)), "query"),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_bad_filters_name_the_parameter_and_what_it_takes(filled, query, parameter):
    answer = await filled.get(f"/logs?{query}")
    assert answer.status == 400
    body = answer.json()
    assert body["ok"] is False and body["parameter"] == parameter
    assert body["message"].startswith(f"{parameter} takes ")
    known = {"level": ["info", "warn", "error"], "event": list(EVENTS), "reason": list(Reason.__members__), "colour": list(PARAMETERS)}  # fmt: skip
    if parameter in known and "," not in query:
        assert body["known"] == known[parameter]


def test_since_takes_durations():
    assert parse_filter({"since": "2m"}, 1000.0).since == 880.0
    with pytest.raises(BadRequest):
        parse_filter({"since": "٣m"}, 1000.0)


@pytest_twisted.ensureDeferred
async def test_the_summary_counts_folded_entries(filled):
    for _ in range(50):
        filled.log.event(
            "refuse", reason=Reason.TOKEN_MISSING, ip="192.0.2.9", workspaceId="w-9", detail="why"
        )
    want = {
        "ok": True, "total": 55,
        "byLevel": {"info": 3, "warn": 51, "error": 1},
        "byEvent": {"refuse": 52, "relay_started": 1, "join": 1, "leave": 1},
        "byReason": {"TOKEN_MISSING": 50, "JWT_EXPIRED": 1, "INTERNAL_KEY_MISMATCH": 1},
    }  # fmt: skip
    for _ in range(2):
        numbers = (await filled.get("/logs?summary=1")).json()
        about = numbers.pop("reasons")
        assert numbers == want
        filled.log.close()  # the summary is now an entry of its own
    assert list(about) == ["TOKEN_MISSING", "JWT_EXPIRED", "INTERNAL_KEY_MISMATCH"]
    row = about["TOKEN_MISSING"]
    assert (
        row["meaning"] == Reason.TOKEN_MISSING.text and row["cause"] and row["fix"] and row["detail"] == "why"
    )
    assert (row["workspaces"], row["addresses"], row["perMinute"]) == (1, 1, 50)
    assert row["firstSeen"] <= row["lastSeen"] and row["example"] == "workspace=w-9 ip=192.0.2.9: why"
    assert (await filled.get("/logs?summary=1&workspaceId=w-9")).json()["total"] == 50
    assert "logs" not in (await filled.get("/logs?summary=true")).json()
    text = (await filled.get("/logs?summary=1&format=text")).text
    assert "TOKEN_MISSING: 50" in text and Reason.TOKEN_MISSING.entry.cause[:40] in text


@pytest_twisted.ensureDeferred
async def test_the_summary_counts_each_failure_once(admin):
    for _ in range(3):
        admin.log.event("jwks_fetch_failed", reason=Reason.JWKS_UNREACHABLE, why="x")
    assert (await admin.get("/logs?summary=1")).json()["byReason"] == {"JWKS_UNREACHABLE": 3}
    admin.log.event("refuse", reason=Reason.JWKS_UNREACHABLE, ip="192.0.2.1")
    numbers = (await admin.get("/logs?summary=1")).json()
    assert numbers["byReason"] == {"JWKS_UNREACHABLE": 1} and numbers["byEvent"]["jwks_fetch_failed"] == 3


# -- verdict ----------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_json_has_the_verdict_and_the_problems_beside_the_entries(filled):
    answer = await filled.get("/logs")
    body = answer.json()
    assert list(body) == ["ok", "verdict", "logs", "problems"]
    assert body["verdict"]["headline"] and body["verdict"]["counts"].startswith(
        "1 admitted, 2 refused in 5 min"
    )
    assert [row["code"] for row in body["problems"]] == [
        "INTERNAL_KEY_MISMATCH",
        "JWT_EXPIRED",
    ]  # the newest first
    assert all(row["cause"] and row["fix"] and row["example"] for row in body["problems"])
    lines = answer.text.splitlines()
    assert sum(line.startswith('{"ts":') for line in lines) == 5, "an entry on each line"


@pytest_twisted.ensureDeferred
async def test_text_begins_with_verdict_cause_fix_and_example(admin):
    for n in range(302):
        admin.log.event(
            "refuse", reason=Reason.JWT_EXPIRED, connection_id=f"c-{n}", workspaceId="acme", role="client", ip="192.0.2.1",
            detail="exp passed 400 s ago",
        )  # fmt: skip
    for n in range(100):
        admin.log.event("join", connection_id=f"j-{n}", workspaceId="w")
    screen = (await admin.get("/logs?format=text")).text.splitlines()
    assert (
        screen[0].startswith("WARN: Daemons can connect, but most attempts are refused: JWT_EXPIRED")
        and "302 refused in 5 min (JWT_EXPIRED 302)" in screen[1]
    )
    text = "\n".join(screen[:16])
    for words in (
        "JWT_EXPIRED: 302 since", "1 workspace, 1 address", Reason.JWT_EXPIRED.entry.cause[:50],
        "let the peer fetch a new token", "exp passed 400 s ago", "workspace=acme",
    ):  # fmt: skip
        assert words in text, text
    entries = [line for line in screen if line[:2] == "20"]
    assert len(entries) == TEXT_ENTRIES and any("the last 20 of 105 entries" in line for line in screen)
    assert all(len(line) <= 110 for line in screen if line[:2] != "20")
    everything = (await admin.get("/logs?format=text&limit=1000")).text.splitlines()
    assert sum(line[:2] == "20" for line in everything) == 105


@pytest_twisted.ensureDeferred
async def test_the_first_line_reports_that_no_peer_is_admitted(admin):
    for _ in range(5):
        admin.log.event("refuse", reason=Reason.JWT_EXPIRED, ip="192.0.2.1")
    first = (await admin.get("/logs/text")).text.splitlines()[0]
    assert first.startswith("BAD: No peer gets in: 5 were refused, mostly JWT_EXPIRED")


@pytest.mark.parametrize(
    "accept,text",
    [
        ("", False), ("*/*", False), ("application/json", False), ("application/json, text/plain, */*", False),
        ("text/plain", True), ("text/plain, */*", True), ("text/*", True), ("text/plain;q=0.5, application/json;q=0.9", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True), ("text/plain;q=0, */*", False),
        ("*/*;q=0.8, text/plain;q=0.1", False), ("text/event-stream", False), ("TEXT/PLAIN; Q=1.0", True),
    ],
)  # fmt: skip
def test_text_is_sent_where_accept_prefers_it(accept, text):
    assert prefers_text(accept) is text


@pytest_twisted.ensureDeferred
async def test_content_negotiation(filled):
    for path, headers, kind in (
        ("/logs", {}, "application/json"),
        ("/logs", {"Accept": "*/*"}, "application/json"),
        ("/logs", {"Accept": "text/plain"}, "text/plain"),
        ("/logs?format=json", {"Accept": "text/plain"}, "application/json"),
        ("/logs?format=text", {"Accept": "application/json"}, "text/plain"),
        ("/logs/text", {}, "text/plain"),
    ):
        answer = await filled.get(path, headers)
        assert answer.headers["content-type"].startswith(kind), (path, headers)


# -- explain and about ------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_explain_has_cause_fix_and_the_last_occurrence(filled):
    text = (await filled.get("/logs/explain/jwt_expired")).text
    entry = Reason.JWT_EXPIRED.entry
    assert text.startswith("JWT_EXPIRED\n") and entry.cause[:50] in text and "here, the last time:" in text
    text = (await filled.get("/logs/explain/NO_OWNER")).text
    assert "here since the start: never" in text
    assert "dmesg" in (await filled.get("/logs/explain/worker_lost")).text
    answer = await filled.get("/logs/explain/JWT_EXPIRED", {"Accept": "application/json"})
    assert answer.json()["fix"] == entry.fix and answer.json()["total"] == 1
    assert "BUFFER_OVERFLOW" in (await filled.get("/logs/explain")).text
    wrong = await filled.get("/logs/explain/JWT_EXPIERD")
    assert wrong.status == 400 and "JWT_EXPIRED" in wrong.json()["message"]
    assert (await filled.get("/logs/explain/JWT_EXPIRED", token=None)).status == 401


@pytest_twisted.ensureDeferred
async def test_about_a_connection_id_of_a_folded_refusal(admin):
    for n in range(20):
        admin.log.event(
            "refuse", reason=Reason.JWT_EXPIRED, connection_id=f"c-{n}", workspaceId="acme", role="client", ip="192.0.2.1",
            detail=f"exp passed {n} s ago",
        )  # fmt: skip
    assert all(entry.get("connectionId") != "c-17" for entry in entries_of(admin.log)), "it was folded"
    text = " ".join((await admin.get("/logs?about=c-17&format=text")).text.split())
    assert (
        "client of workspace acme from 192.0.2.1 was refused: JWT validation failed: token expired: exp passed 17 s ago"
        in text
    )
    assert "[JWT_EXPIRED], connection c-17" in text and "fix let the peer fetch a new token" in text
    body = (await admin.get("/logs?about=acme")).json()
    assert (
        len(body["logs"]) == 5
        and body["counted"] == [body["counted"][0]]
        and body["counted"][0].startswith("15 more of JWT_EXPIRED")
    )
    assert "JWT_EXPIRED" in body["reasons"]


@pytest_twisted.ensureDeferred
async def test_about_a_connected_peer_and_an_unknown_one(admin, make_target, make_peer):
    admin.state.views = [make_target("w-1", "t-1", daemon=make_peer("workspace-daemon", "machine-1"))]
    text = " ".join((await admin.get("/logs?about=t-1", {"Accept": "text/plain"})).text.split())
    assert (
        "now the workspace-daemon machine-1 of workspace w-1, target t-1, from 192.0.2.7, connection conn-machine-1"
        in text
    )
    text = " ".join((await admin.get("/logs?about=nobody-knows&format=text")).text.split())
    assert "no such peer is connected" in text and "its attempts do not reach this relay" in text
    hostile = (await admin.get("/logs?about=%1b%5b2J&format=text")).text
    assert all(c.isprintable() or c == "\n" for c in hostile)


@pytest_twisted.ensureDeferred
async def test_text_has_no_control_characters(admin):
    admin.log.event(
        "drop", reason=Reason.INVALID_FRAME, connection_id="c-1", workspaceId="\x1b]0;pwned\x07\x1b[2J", clientId="a\nb",
        note="\u202egnp.exe \x9b31m \u200b \ud800", number=7,
    )  # fmt: skip
    answer = await admin.get("/logs?format=text")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    (line,) = [line for line in answer.text.splitlines() if line[:2] == "20"]
    assert all(c.isprintable() for c in answer.text.replace("\n", ""))
    assert " WARN  drop INVALID_FRAME invalid frame connection=c-1 workspaceId=\\x1b]0;pwned\\x07" in line
    assert (
        "clientId=a\\x0ab" in line and "\\u202e" in line and "\\x9b31m" in line and line.endswith("number=7")
    )


@pytest_twisted.ensureDeferred
async def test_json_is_not_sniffed_as_html(admin):
    admin.log.event("drop", workspaceId="</script><img src=x onerror=alert(1)>")
    answer = await admin.get("/logs")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<img" in answer.json()["logs"][-1]["details"]["workspaceId"]


def test_inert_keeps_printable_unicode():
    assert inert("Grüße, 日本 🙂 - ok") == "Grüße, 日本 🙂 - ok"


# -- following ------------------------------------------------------------------------------------------------


class Reader:
    """A raw HTTP client that reads only when a test calls `until`."""

    def __init__(self, admin, token, path="/logs?follow=1", headers="", receive_buffer=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(5)
        self.request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{headers}\r\n"
        self.address = ("127.0.0.1", admin.port.getHost().port)
        self.data = b""

    async def start(self):
        def go():
            self.socket.connect(self.address)
            self.socket.sendall(self.request.encode())

        await deferToThread(go)
        return self

    async def until(self, needle: bytes) -> bytes:
        def go():
            while needle not in self.data:
                got = self.socket.recv(65536)
                assert got, self.data
                self.data += got
            return self.data

        return await deferToThread(go)

    def close(self):
        self.socket.close()


def pause(seconds: float) -> Deferred[None]:
    return deferLater(reactor, seconds, lambda: None)


async def eventually(what, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        await pause(0.01)


def followers(admin) -> int:
    """How many readers follow the log."""
    return len(admin.log.followers)


@pytest_twisted.ensureDeferred
async def test_follow_sends_the_ring_first_and_then_each_new_entry_as_lines(filled, token):
    reader = await Reader(filled, token).start()
    data = await reader.until(b'"leave"')
    head = data.split(b"\r\n\r\n")[0].lower()
    assert b"200" in head and b"application/x-ndjson" in head
    began = time.perf_counter()
    filled.log.event("refuse", reason=Reason.ORIGIN_NOT_ALLOWED, workspaceId="w-new")
    data = await reader.until(b"ORIGIN_NOT_ALLOWED")
    assert time.perf_counter() - began < 0.5
    body = data.split(b"\r\n\r\n", 1)[1]
    entries = [json.loads(line) for line in body.splitlines() if line.startswith(b"{")]
    assert [entry["event"] for entry in entries] == [
        "relay_started",
        "join",
        "refuse",
        "refuse",
        "leave",
        "refuse",
    ]
    assert followers(filled) == 1
    reader.close()
    await eventually(lambda: not followers(filled))


@pytest_twisted.ensureDeferred
async def test_follow_as_server_sent_events_with_filter_and_resumption(filled, token):
    headers = "Accept: text/event-stream\r\nLast-Event-ID: 2\r\n"
    reader = await Reader(filled, token, "/logs?follow=1&workspaceId=w-1", headers).start()
    data = await reader.until(b'"leave"')
    assert b"text/event-stream" in data and b"x-accel-buffering: no" in data.lower()
    filled.log.event("join", workspaceId="other")
    filled.log.event("join", workspaceId="w-1", mark="wanted")
    text = (await reader.until(b"wanted")).decode()
    reader.close()
    assert "other" not in text and "id: 2\n" not in text
    blocks = [line for line in text.splitlines() if line.startswith(("id: ", "event: "))]
    assert blocks == ["id: 4", "event: entry", "id: 5", "event: entry", "id: 7", "event: entry"]


@pytest_twisted.ensureDeferred
async def test_follow_as_text(filled, token):
    reader = await Reader(filled, token, "/logs?follow=1&format=text&limit=1").start()
    text = (await reader.until(b"leave")).decode()
    assert "text/plain" in text and "INFO  leave" in text and "join" not in text
    reader.close()


@pytest_twisted.ensureDeferred
async def test_a_follower_without_reads_does_not_delay_the_log(admin, token):
    reader = await Reader(admin, token, receive_buffer=4096).start()
    await eventually(lambda: followers(admin))
    slowest = 0.0
    for n in range(20_000):
        began = time.thread_time()
        admin.log.event("join", n=n, filler="x y " * 100)
        slowest = max(slowest, time.thread_time() - began)
        if n % 1000 == 0:
            await pause(0)
    assert slowest < 0.25
    admin.log.event("leave", mark="the-end")
    data = await reader.until(b'the-end"}}')
    entries = [json.loads(line) for line in data.split(b"\r\n\r\n", 1)[1].splitlines() if line.endswith(b"}")]
    gaps = [entry["details"]["count"] for entry in entries if entry["event"] == "follow_gap"]
    numbers = [entry["details"]["n"] for entry in entries if entry["event"] == "join"]
    assert numbers == sorted(numbers) and gaps and len(numbers) + sum(gaps) == 20_000
    waited = [entry["event"] for entry in reversed(entries)].index("follow_gap")
    assert waited <= follow.MAX_WAITING + admin.config.max_logs
    reader.close()


@pytest_twisted.ensureDeferred
async def test_a_stalled_follower_is_disconnected_and_heartbeats_keep_the_others(admin, token, monkeypatch):
    monkeypatch.setattr(follow, "HEARTBEAT", 0.05)
    monkeypatch.setattr(follow, "STALLED", 0.2)
    still = await Reader(admin, token, receive_buffer=4096).start()
    await eventually(lambda: followers(admin))
    for n in range(5000):
        admin.log.event("join", n=n, filler="x y " * 500)
    lively = await Reader(admin, token, "/logs?follow=1&limit=1", "Accept: text/event-stream\r\n").start()
    await lively.until(b": still here")
    await eventually(lambda: followers(admin) == 1)

    def reset() -> bool:
        try:
            while still.socket.recv(65536):
                pass
        except ConnectionResetError:
            return True
        return True

    assert await deferToThread(reset)
    lively.close()


@pytest_twisted.ensureDeferred
async def test_a_follower_ends_with_its_session(filled, token, monkeypatch):
    """A stolen cookie would show the log for ever, although the operator has signed out."""
    monkeypatch.setattr(follow, "HEARTBEAT", 0.05)
    signed_in = await filled.post("/admin/api/session", {"token": token}, token=None)
    cookie = signed_in.headers["set-cookie"].partition(";")[0]
    reader = Reader(filled, token)
    reader.request = f"GET /logs?follow=1 HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n"
    await reader.start()
    await reader.until(b'"leave"')
    out = {"Cookie": cookie, "X-Relay-CSRF": signed_in.json()["csrf"]}
    assert (await filled.ask("DELETE", "/admin/api/session", out, token=None)).status == 200
    await eventually(lambda: not followers(filled))
    filled.log.event("refuse", reason=Reason.ORIGIN_NOT_ALLOWED)
    assert b"ORIGIN_NOT_ALLOWED" not in await reader.until(b"\r\n0\r\n\r\n")
    reader.close()


@pytest_twisted.ensureDeferred
async def test_a_follower_ends_when_its_token_is_changed(filled, token, monkeypatch):
    monkeypatch.setattr(follow, "HEARTBEAT", 0.05)
    reader = await Reader(filled, token).start()
    await reader.until(b'"leave"')
    filled.auth.set_tokens(["another-token-0123456789abcdefABCDEF"], ())
    await eventually(lambda: not followers(filled))
    await reader.until(b"\r\n0\r\n\r\n")
    reader.close()


@pytest_twisted.ensureDeferred
async def test_the_number_of_followers_is_bounded(admin, token, monkeypatch):
    monkeypatch.setattr(logs, "MAX_FOLLOWERS", 2)
    readers = [await Reader(admin, token).start() for _ in range(2)]
    await eventually(lambda: followers(admin) == 2)
    answer = await admin.get("/logs?follow=1")
    assert answer.status == 503 and answer.json()["reason"] == "ADMIN_TOO_MANY_FOLLOWERS"
    assert entries_of(admin.log)[-1]["details"]["detail"] == "2 readers follow the log, a fixed limit"
    readers[0].close()
    await eventually(lambda: followers(admin) == 1)
    third = await Reader(admin, token).start()
    await eventually(lambda: followers(admin) == 2)
    for reader in (*readers, third):
        reader.close()


def test_a_line_of_text_shows_nested_details(admin):
    admin.log.event("x", message="m", a={"b": [1]})
    assert as_text(admin.log.records()[-1].line).endswith('INFO  x m a={"b": [1]}')
