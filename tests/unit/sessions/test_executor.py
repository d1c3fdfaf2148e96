"""The executor's requests: allowed paths and headers, concurrency limit."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote
from weakref import ref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers

from tests.memorywire import Log
from tests.unit.routing.house import NO_LIMIT, House
from viewport_relay.admission.httpcall import Answer, Call, TooLarge, Unreachable
from viewport_relay.observe.counters import Counters
from viewport_relay.protocol.grant import Role
from viewport_relay.routing.router import Router
from viewport_relay.sessions.executor import (
    MOST_RUNNING,
    REQUEST_TIMEOUT,
    ExecutorRole,
    path_allowed,
    request_headers,
    response_headers,
)
from viewport_relay.sessions.outcomes import Outcomes

REQUEST = "viewport.worker_transport.request/v1"
OWN = "/api/runtime/workspaces/w/managed-executors/x"

ALLOWED = [
    OWN,
    OWN + "/",
    OWN + "/claims",
    OWN + "/claims/1/logs",
    OWN + "/claims?after=3&x=%2e%2e/..",
    OWN + "/?a",
    OWN + "/a//b",
    OWN + "/...",
    OWN + "/a..b/.c/d.",
    OWN + "/%252e%252e/x",  # decoded once: %2e%2e, which is no dot segment
    OWN + "/%41",
    OWN + "/a%20b",
    OWN + "/%C3%A9",
    "/api/runtime/workspaces/%77/managed-executors/%78/claims",
    "/api/runtime/workspaces/w/managed%2Dexecutors/x",
    OWN + "/a;b=..",
    OWN + "/(a)'*!,$&+=@~",
]
DENIED = [
    "",
    "/",
    "/api/runtime/workspaces/w",
    "/api/runtime/workspaces/w/managed-executors",
    "/api/runtime/workspaces/w/managed-executors/",
    "/api/runtime/workspaces/w/managed-executors//claims",
    "/api/runtime/workspaces/w/managed-executors/y",
    "/api/runtime/workspaces/w/managed-executors/xy",
    "/api/runtime/workspaces/w/managed-executors/X",
    "/api/runtime/workspaces/v/managed-executors/x",
    "/api/runtime/workspaces/W/managed-executors/x",
    "/api/runtime/workspaces/w/other/x",
    "/api/runtime/workspaces/w//managed-executors/x",
    "//api/runtime/workspaces/w/managed-executors/x",
    "/api/runtime/workspaces/../workspaces/w/managed-executors/x",
    "http://elsewhere.example" + OWN,
    OWN[1:],
    OWN + "?a=1",  # the executor's own path, without a query
    OWN + "?",
    OWN + "#a",
    OWN + "/a#b",
    OWN + "/..",
    OWN + "/.",
    OWN + "/../y",
    OWN + "/a/../../y",
    OWN + "/./a",
    OWN + "/a/..?x",
    OWN + "/%2e%2e/y",
    OWN + "/%2E./y",
    OWN + "/.%2e",
    OWN + "/%2e",
    OWN + "/a%2f..%2fb",
    OWN + "/a%2F..",
    OWN + "/..%5cy",
    OWN + "/..\\y",
    OWN + "/a\\..\\b",
    OWN + "/a%5c.%5cb",
    "/api/runtime/workspaces/w/managed-executors/x%2f..%2fy",
    "/api/runtime/workspaces/w/managed-executors/x%2fclaims",  # the segment decodes to x/claims
    "/api/runtime/workspaces/w%2fmanaged-executors/x",
    "/api/runtime/workspaces/w/managed-executors/%2578",
    OWN + "/%",
    OWN + "/%4",
    OWN + "/%zz",
    OWN + "/%ff",
    OWN + "/%C3",
    OWN + "/a b",
    OWN + "/a\tb",
    OWN + "/a\r\nHost: evil",
    OWN + "/a\n",
    OWN + "/\u00e9",
    OWN + "/\x00",
    OWN + "/\x7f",
    OWN + " ",
]


@pytest.mark.parametrize("path", ALLOWED)
def test_allowed_paths(path: str) -> None:
    assert path_allowed(path, "w", "x")


@pytest.mark.parametrize("path", DENIED, ids=lambda path: repr(path))
def test_denied_paths(path: str) -> None:
    assert not path_allowed(path, "w", "x")


def test_without_an_executor_nothing_is_allowed() -> None:
    assert not path_allowed(OWN, "w", None)
    assert not path_allowed("/api/runtime/workspaces/w/managed-executors/None", "w", None)


def test_ids_are_compared_decoded() -> None:
    assert path_allowed("/api/runtime/workspaces/w:1/managed-executors/a%20b%2Fc/d", "w:1", "a b/c")
    assert not path_allowed("/api/runtime/workspaces/w:1/managed-executors/a b/c", "w:1", "a b/c")


#: Parts of a hostile path.
parts = st.sampled_from(
    [
        "/",
        "//",
        ".",
        "..",
        "%2e",
        "%2E",
        "%2f",
        "%5c",
        "\\",
        "x",
        "y",
        "w",
        "?",
        "#",
        "%",
        "%25",
        "%252e",
        ";",
        "a",
        ":",
    ]
)


@given(st.lists(parts, max_size=12).map("".join), st.sampled_from(["", "/", OWN, OWN + "/", OWN[:-1]]))
def test_allowed_paths_stay_below_the_executor(tail: str, start: str) -> None:
    """A server that decodes an allowed path once and resolves dot segments stays below the executor's path."""
    path = start + tail
    if not path_allowed(path, "w", "x"):
        return
    plain = unquote(path.partition("?")[0]).replace("\\", "/")
    resolved: list[str] = []
    for part in plain.split("/"):
        if part == "..":
            resolved.pop()
        elif part not in ("", "."):
            resolved.append(part)
    assert resolved[:6] == ["api", "runtime", "workspaces", "w", "managed-executors", "x"]


def test_allowed_request_headers() -> None:
    sent = {
        "Authorization": "Bearer a",
        "ACCEPT": "*/*",
        "content-type": "application/json",
        "X-Viewport-Run-Lease": "1",
        "x-viewport-assignment-claim": "2",
        "x-viewport-worker-fingerprint": "3",
        "x-viewport-worker-timestamp": "4",
        "x-viewport-worker-nonce": "5",
        "x-viewport-worker-body-sha256": "6",
        "x-viewport-worker-signature": "7",
        "x-viewport-server-id": "8",
    }
    assert request_headers(sent) == {name.lower(): value for name, value in sent.items()}
    stopped = {
        "host": "a",
        "cookie": "a",
        "x-forwarded-for": "a",
        "x-relay-internal-key": "a",
        "content-length": "3",
        "transfer-encoding": "chunked",
        "connection": "close",
        "x-viewport-other": "a",
        "authorization ": "a",
        "": "a",
    }
    assert request_headers(stopped) == {}
    split = {
        "accept": "a\r\nx: y",
        "authorization": "a\nb",
        "content-type": "a\x00",
        "x-viewport-server-id": "\u20ac",
    }
    assert request_headers(split) == {}


def test_allowed_response_headers() -> None:
    headers = Headers(
        {
            "Content-Type": ["text/plain"],
            "X-Many": ["a", "b"],
            "Set-Cookie": ["secret"],
            "Cookie": ["secret"],
            "Authorization": ["secret"],
        }
    )
    assert response_headers(Answer(200, headers, b"")) == {"content-type": "text/plain", "x-many": "a, b"}


# -- concurrent requests ---------------------------------------------------------------------------------------------


class Client:
    """Test double of HttpClient: each request waits until the test answers it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Call, bytes | None, Deferred[Answer]]] = []

    async def ask(self, call: Call, body: bytes | None = None) -> Answer:
        waiting: Deferred[Answer] = Deferred()
        self.calls.append((call, body, waiting))
        return await waiting

    def answer(self, number: int, body: bytes = b"ok", status: int = 200) -> None:
        self.calls[number][2].callback(Answer(status, Headers({"Content-Type": ["text/plain"]}), body))


class Executor:
    """Test double of an executor's session, its connection and its reader."""

    def __init__(self) -> None:
        self.connection = self.reader = self.outbox = self
        self.last_seen = 0.0
        self.receive: Callable[[bytes], None]
        self.heard: list[dict[str, Any]] = []
        self.paused = False
        self._when_lost: list[Callable[[], None]] = []

    def send(self, message: bytes) -> bool:
        self.heard.append(json.loads(message))
        return True

    def pause_reading(self, cause: object) -> None:
        self.paused = True

    def resume_reading(self, cause: object) -> None:
        self.paused = False

    def when_lost(self, callback: Callable[[], None]) -> None:
        self._when_lost.append(callback)

    def lose(self) -> None:
        for callback in self._when_lost:
            callback()


class Bench:
    def __init__(self) -> None:
        self.client, self.log, self.counters = Client(), Log(), Counters()
        client: Any = self.client
        executor: Any = Executor()
        self.executor = executor
        outcomes = Outcomes(Router(NO_LIMIT), self.log, self.counters)
        role = ExecutorRole(Router(NO_LIMIT), outcomes, client, "https://platform.example", 1000)
        role.begin(executor, House(target=None).peer(Role.WORKER, managed_executor_id="x"))

    def ask(self, request_id: str, path: str = OWN + "/a", method: str = "GET", **rest: Any) -> None:
        frame = {"type": REQUEST, "requestId": request_id, "method": method, "path": path, **rest}
        self.executor.receive(json.dumps(frame).encode())


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_request_and_its_answer(bench: Bench) -> None:
    bench.ask(
        "r", OWN + "/a?b=%2E", "POST", headers={"Accept": "text/plain", "Host": "evil"}, body='{"x":"\u00e9"}'
    )
    [(call, body, _)] = bench.client.calls
    assert (call.method, call.url) == ("POST", f"https://platform.example{OWN}/a?b=%2E")
    assert (call.limit, call.max_bytes, call.retry) == (REQUEST_TIMEOUT, 1000, False)
    assert REQUEST_TIMEOUT == 60.0
    assert call.headers.getRawHeaders("accept") == ["text/plain"]
    assert call.headers.getRawHeaders("host") == ["platform.example"]
    assert body == '{"x":"\u00e9"}'.encode()
    bench.client.answer(0, b"caf\xc3\xa9 \xff", 201)
    assert bench.executor.heard == [
        {
            "type": "viewport.worker_transport.response/v1",
            "requestId": "r",
            "status": 201,
            "headers": {"content-type": "text/plain"},
            "body": "caf\u00e9 \ufffd",
        }
    ]
    assert (bench.counters.worker_requests, bench.counters.worker_requests_failed) == (1, 0)


def test_responses_are_sent_in_order_of_arrival(bench: Bench) -> None:
    for name in "abc":
        bench.ask(name)
    for number in (2, 0, 1):
        bench.client.answer(number)
    assert [answer["requestId"] for answer in bench.executor.heard] == ["c", "a", "b"]


def failed(status: int, reason: str) -> dict[str, Any]:
    """The relay's own response to the request "r"."""
    return {
        "type": "viewport.worker_transport.response/v1",
        "requestId": "r",
        "status": status,
        "headers": {"content-type": "application/json"},
        "body": f'{{"ok":false,"reason":"{reason}"}}',
    }


def test_a_denied_path_is_answered_without_a_request(bench: Bench) -> None:
    bench.ask("r", OWN + "/../y")
    assert bench.client.calls == []
    assert bench.executor.heard == [failed(403, "WORKER_TRANSPORT_PATH_DENIED")]
    assert bench.log.reasons() == ["WORKER_TRANSPORT_PATH_DENIED"]


@pytest.mark.parametrize(
    "failure", [Unreachable("time out"), TooLarge("the answer is longer than 1000 bytes", 200)]
)
def test_a_failure_is_answered_502(bench: Bench, failure: Exception) -> None:
    bench.ask("r")
    bench.client.calls[0][2].errback(failure)
    assert bench.executor.heard == [failed(502, "WORKER_TRANSPORT_FORWARD_FAILED")]
    assert bench.log.reasons() == ["WORKER_TRANSPORT_FORWARD_FAILED"]
    assert bench.counters.worker_requests_failed == 1


def test_over_the_concurrency_limit_the_executors_reading_is_paused(bench: Bench) -> None:
    for number in range(MOST_RUNNING + 5):
        bench.ask(str(number))
    assert len(bench.client.calls) == MOST_RUNNING
    assert bench.executor.paused
    for number in range(5):
        assert bench.executor.paused
        bench.client.answer(number)
        assert len(bench.client.calls) == MOST_RUNNING + number + 1
    assert not bench.executor.paused
    for number in range(5, MOST_RUNNING + 5):
        bench.client.answer(number)
    assert {answer["requestId"] for answer in bench.executor.heard} == set(map(str, range(MOST_RUNNING + 5)))


def test_denied_requests_in_the_queue_take_no_place(bench: Bench) -> None:
    for number in range(MOST_RUNNING):
        bench.ask(f"running-{number}")
    for number in range(MOST_RUNNING):
        bench.ask(f"denied-{number}", OWN + "/..")
    bench.ask("good")
    assert bench.executor.paused
    for number in range(MOST_RUNNING):
        bench.client.answer(number)
    assert len(bench.client.calls) == MOST_RUNNING + 1  # the pending request is sent
    assert not bench.executor.paused
    bench.client.answer(MOST_RUNNING)
    assert bench.executor.heard[-1]["requestId"] == "good"
    assert len(bench.executor.heard) == 2 * MOST_RUNNING + 1


def test_an_executor_that_leaves_cancels_its_requests(bench: Bench) -> None:
    for number in range(MOST_RUNNING + 2):
        bench.ask(str(number))
    bench.executor.lose()
    assert len(bench.client.calls) == MOST_RUNNING
    assert all(waiting.called for _, _, waiting in bench.client.calls)
    assert bench.executor.heard == []
    left, bench.executor = ref(bench.executor), None
    gc.collect()
    assert left() is None, "nothing is kept of an executor that has left"


@given(st.text(st.characters(codec=None, max_codepoint=0x2FF), max_size=30))
def test_any_path_or_header_is_sent_or_refused(text: str) -> None:
    bench = Bench()
    bench.ask("r", f"{OWN}/{text}", headers={"accept": text, "x-viewport-server-id": text})
    assert len(bench.client.calls) + len(bench.executor.heard) == 1
