"""`GET /logs`: filters, counts, text for people, and following on a real socket."""

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

from viewport_relay.admin import follow
from viewport_relay.admin.logs import LogsPage, as_text, inert, parse_filter
from viewport_relay.admin.reply import BadRequest
from viewport_relay.reasons import Reason


@pytest.fixture
def filled(door):
    log = door.log
    log.event("start")
    log.event("join", connection_id="c-1", workspaceId="w-1", role="client", ip="192.0.2.1")
    log.event("refused", reason=Reason.JWT_EXPIRED, connection_id="c-2", workspaceId="w-2", ip="192.0.2.2")
    log.event("refused", reason=Reason.INTERNAL_KEY_MISMATCH, connection_id="c-3", workspaceId="w-1")
    log.event("leave", connection_id="c-1", workspaceId="w-1", role="client", ip="192.0.2.1")
    return door


@pytest.mark.parametrize(
    "query,events",
    [
        ("", ["start", "join", "refused", "refused", "leave"]),
        ("level=error", ["refused"]),
        ("level=warn,ERROR", ["refused", "refused"]),
        ("reason=JWT_EXPIRED", ["refused"]),
        ("reason=jwt_expired,INTERNAL_KEY_MISMATCH", ["refused", "refused"]),
        ("reason=NO_SUCH_CODE", []),
        ("event=join,leave", ["join", "leave"]),
        ("workspaceId=w-1", ["join", "refused", "leave"]),
        ("workspaceId=w-1&level=info&limit=1", ["leave"]),
        ("connectionId=c-1", ["join", "leave"]),
        ("limit=2", ["refused", "leave"]),
        ("limit=2&limit=1", ["refused", "leave"]),
        ("since=1h", ["start", "join", "refused", "refused", "leave"]),
        ("since=2001-01-01T00:00:00Z&limit=1", ["leave"]),
        ("since=2001-01-01T00:00:00+02:00&limit=1", ["leave"]),
        ("since=4000000000", []),
        ("since=2099-01-01", []),
        ("unknown=x&level=", ["start", "join", "refused", "refused", "leave"]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_filters(filled, query, events):
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
        ("follow=maybe", "follow"), ("summary=2", "summary"), ("&".join(f"a{n}=1" for n in range(40)), "query"),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_bad_filters_name_the_parameter_and_what_it_takes(filled, query, parameter):
    answer = await filled.get(f"/logs?{query}")
    assert answer.status == 400
    body = answer.json()
    assert body["ok"] is False and body["parameter"] == parameter
    assert body["message"].startswith(f"{parameter} takes ")


def test_since_takes_times_back():
    assert parse_filter({"since": "2m"}, 1000.0)[0].since == 880.0
    with pytest.raises(BadRequest):
        parse_filter({"since": "٣m"}, 1000.0)


@pytest_twisted.ensureDeferred
async def test_summary_counts_folded_entries_as_often_as_they_came(filled):
    for _ in range(50):
        filled.log.event("refused", reason=Reason.TOKEN_MISSING, ip="192.0.2.9", workspaceId="w-9")
    want = {
        "ok": True, "total": 55,
        "byLevel": {"info": 3, "warn": 51, "error": 1},
        "byEvent": {"refused": 52, "start": 1, "join": 1, "leave": 1},
        "byReason": {"TOKEN_MISSING": 50, "JWT_EXPIRED": 1, "INTERNAL_KEY_MISMATCH": 1},
    }  # fmt: skip
    assert (await filled.get("/logs?summary=1")).json() == want
    filled.log.close()  # now the summary is an entry of its own
    assert (await filled.get("/logs?summary=1")).json() == want
    assert (await filled.get("/logs?summary=1&workspaceId=w-9")).json()["total"] == 50
    assert "logs" not in (await filled.get("/logs?summary=true")).json()


@pytest_twisted.ensureDeferred
async def test_text_for_people_is_inert(door):
    door.log.event(
        "drop", reason=Reason.INVALID_FRAME, connection_id="c-1", workspaceId="\x1b]0;pwned\x07\x1b[2J", clientId="a\nb",
        note="\u202egnp.exe \x9b31m \u200b \ud800", number=7,
    )  # fmt: skip
    answer = await door.get("/logs?format=text")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    (line,) = answer.text.splitlines()
    assert all(c.isprintable() for c in line)
    assert " WARN  drop INVALID_FRAME invalid frame connection=c-1 workspaceId=\\x1b]0;pwned\\x07" in line
    assert (
        "clientId=a\\x0ab" in line and "\\u202e" in line and "\\x9b31m" in line and line.endswith("number=7")
    )


@pytest_twisted.ensureDeferred
async def test_json_is_inert_in_html(door):
    door.log.event("drop", workspaceId="</script><img src=x onerror=alert(1)>")
    answer = await door.get("/logs")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<img" in answer.json()["logs"][-1]["details"]["workspaceId"]


def test_inert_keeps_ordinary_letters():
    assert inert("Grüße, 日本 🙂 - ok") == "Grüße, 日本 🙂 - ok"


# -- following ------------------------------------------------------------------------------------------------


class Reader:
    """A raw HTTP reader, so that a test decides when it reads."""

    def __init__(self, door, token, path="/logs?follow=1", headers="", receive_buffer=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(5)
        self.request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{headers}\r\n"
        self.address = ("127.0.0.1", door.port.getHost().port)
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


def page_of(door) -> LogsPage:
    return door.door._routes[b"GET", b"/logs"].page.__self__


@pytest_twisted.ensureDeferred
async def test_follow_sends_the_ring_first_and_then_each_new_entry_as_lines(filled, token):
    reader = await Reader(filled, token).start()
    data = await reader.until(b'"leave"')
    head = data.split(b"\r\n\r\n")[0].lower()
    assert b"200" in head and b"application/x-ndjson" in head
    began = time.perf_counter()
    filled.log.event("refused", reason=Reason.ORIGIN_NOT_ALLOWED, workspaceId="w-new")
    data = await reader.until(b"ORIGIN_NOT_ALLOWED")
    assert time.perf_counter() - began < 0.5
    body = data.split(b"\r\n\r\n", 1)[1]
    entries = [json.loads(line) for line in body.splitlines() if line.startswith(b"{")]
    assert [entry["event"] for entry in entries] == [
        "start",
        "join",
        "refused",
        "refused",
        "leave",
        "refused",
    ]
    assert len(page_of(filled).followers) == 1
    reader.close()
    await eventually(lambda: not page_of(filled).followers)
    assert filled.log._followers == []


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
async def test_a_reader_that_does_not_read_costs_nobody_anything(door, token):
    reader = await Reader(door, token, receive_buffer=4096).start()
    page = page_of(door)
    await eventually(lambda: page.followers)
    slowest = 0.0
    for n in range(20_000):
        began = time.thread_time()
        door.log.event("join", n=n, filler="x y " * 100)
        slowest = max(slowest, time.thread_time() - began)
        if n % 1000 == 0:
            await pause(0)
    assert slowest < 0.25
    (follower,) = page.followers
    assert follower._paused and len(follower._queue) <= follow.MAX_WAITING + door.config.max_logs
    door.log.event("leave", mark="the-end")
    data = await reader.until(b'the-end"}}')
    entries = [json.loads(line) for line in data.split(b"\r\n\r\n", 1)[1].splitlines() if line.endswith(b"}")]
    gaps = [entry["details"]["count"] for entry in entries if entry["event"] == "follow_gap"]
    numbers = [entry["details"]["n"] for entry in entries if entry["event"] == "join"]
    assert numbers == sorted(numbers) and gaps and len(numbers) + sum(gaps) == 20_000
    reader.close()


@pytest_twisted.ensureDeferred
async def test_a_reader_that_stands_still_is_let_go_and_beats_keep_the_others(door, token, monkeypatch):
    monkeypatch.setattr(follow, "HEARTBEAT", 0.05)
    monkeypatch.setattr(follow, "STALLED", 0.2)
    still = await Reader(door, token, receive_buffer=4096).start()
    page = page_of(door)
    await eventually(lambda: page.followers)
    for n in range(5000):
        door.log.event("join", n=n, filler="x y " * 500)
    lively = await Reader(door, token, "/logs?follow=1&limit=1", "Accept: text/event-stream\r\n").start()
    await lively.until(b": still here")
    await eventually(lambda: len(page.followers) == 1)

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
async def test_the_number_of_followers_is_bounded(door, token):
    page = page_of(door)
    page._max_followers = 2
    readers = [await Reader(door, token).start() for _ in range(2)]
    await eventually(lambda: len(page.followers) == 2)
    answer = await door.get("/logs?follow=1")
    assert answer.status == 503 and answer.json()["reason"] == "ADMIN_TOO_MANY_FOLLOWERS"
    readers[0].close()
    await eventually(lambda: len(page.followers) == 1)
    third = await Reader(door, token).start()
    await eventually(lambda: len(page.followers) == 2)
    for reader in (*readers, third):
        reader.close()


def test_a_line_of_text_shows_nested_details(door):
    door.log.event("x", message="m", a={"b": [1]})
    assert as_text(door.log.records()[-1]).endswith('INFO  x m a={"b": [1]}')
