"""Requests of executors through a real relay to a real HTTP server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from attrs import Factory, define

from tests.drill.relay import until
from tests.integration.admission.controlplane import ControlPlane
from tests.integration.admission.relays import Relay
from tests.integration.wire.conftest import checked
from tests.integration.wire.site import Peer, Site, settle
from tests.wireframes import encoded

FRAME_MAX = 20_000


@define(eq=False)
class Api:
    """The platform's API: records requests; the last part of the path selects the response."""

    asked: list[tuple[str, str, dict[str, str], bytes]] = Factory(list)
    held: dict[str, threading.Event] = Factory(dict)
    url: str = ""

    def start(self) -> ThreadingHTTPServer:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                api.asked.append((self.command, self.path, headers, body))
                api.answer(self, self.path.partition("?")[0].rpartition("/")[2])

            do_POST = do_PATCH = do_GET

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """The relay may close the connection."""

        server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def answer(self, handler: BaseHTTPRequestHandler, how: str) -> None:
        if how in self.held:
            self.held[how].wait(20)
        body, status, headers = b"fine", 200, {"Content-Type": "text/plain"}
        if how == "redirect":
            status, headers = 307, {"Location": self.url + "/elsewhere"}
        elif how == "fault":
            status, body = 500, b"it broke"
        elif how == "cookies":
            headers |= {"Set-Cookie": "a=b", "X-Thing": "1", "Authorization": "x", "Cookie": "c"}
        elif how == "latin":
            body = b"caf\xe9 \xc3\xa9"
        elif how == "fits":
            body = b"x" * FRAME_MAX
        elif how == "long":
            body = b"x" * (FRAME_MAX + 1)
        elif how == "hangup":
            handler.close_connection = True
            handler.connection.close()
            return
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    made = Api()
    server = made.start()
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def relay(api: Api, make_relay: Callable[..., Relay]) -> Iterator[Relay]:
    yield from checked(make_relay(SERVER_URL=api.url, RELAY_FRAME_MAX_BYTES=str(FRAME_MAX)))


@pytest.fixture
def site(api: Api, relay: Relay, platform: ControlPlane, sites: Callable[..., Site]) -> Site:
    api.asked.clear()
    api.held.clear()
    return sites(relay, target=None)


def own(site: Site, rest: str = "") -> str:
    return f"/api/runtime/workspaces/{site.workspace}/managed-executors/x{rest}"


def ask(worker: Peer, path: str, request_id: str = "r", **members: Any) -> None:
    worker.say(encoded("worker request", requestId=request_id, path=path, **members))


def answer(worker: Peer) -> dict[str, Any]:
    members: dict[str, Any] = json.loads(worker.hear())
    assert sorted(members) == ["body", "headers", "requestId", "status", "type"]
    assert members.pop("type") == "viewport.worker_transport.response/v1"
    return members


def test_a_request_arrives_as_it_was_sent(site: Site, api: Api) -> None:
    worker = site.worker()
    path = own(site, "/claims/%41?x=%2e%2e/..&y=a+b")
    ask(
        worker,
        path,
        " r\u00e9 ",
        method="POST",
        body='{"text":"\u00e9"}',
        headers={
            "Authorization": "Bearer lease",
            "Content-Type": "application/json",
            "x-viewport-worker-nonce": "n",
            "X-Viewport-Server-Id": "s",
            "x-viewport-run-lease": 5,
            "Cookie": "secret",
            "X-Forwarded-For": "1.2.3.4",
            "x-relay-internal-key": "guess",
            "Host": "elsewhere",
        },
    )
    got = answer(worker)
    assert (got["requestId"], got["status"], got["body"]) == (" r\u00e9 ", 200, "fine")
    assert got["headers"]["content-type"] == "text/plain"
    [(method, asked, headers, body)] = api.asked
    assert (method, asked, body) == ("POST", path, '{"text":"\u00e9"}'.encode())
    assert headers["authorization"] == "Bearer lease"
    assert headers["x-viewport-worker-nonce"] == "n"
    assert headers["x-viewport-server-id"] == "s"
    assert headers["host"] == api.url.removeprefix("http://")
    for name in ("cookie", "x-forwarded-for", "x-relay-internal-key", "x-viewport-run-lease"):
        assert name not in headers


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
def test_each_method(site: Site, api: Api, method: str) -> None:
    worker = site.worker()
    ask(worker, own(site), method=method)
    assert answer(worker)["status"] == 200
    assert [call[0] for call in api.asked] == [method]


@pytest.mark.parametrize(
    "rest",
    ["?a=1", "/../y", "/%2e%2e/y", "/a/..%2f..%2fy", "/..%5cy", "y", "/%zz", "/a b", "/\u00e9", "/\r\nX: y"],
)
def test_a_path_outside_of_the_api_is_denied_without_a_request(site: Site, api: Api, rest: str) -> None:
    worker = site.worker()
    ask(worker, own(site, rest))
    assert answer(worker) == {
        "requestId": "r",
        "status": 403,
        "headers": {"content-type": "application/json"},
        "body": '{"ok":false,"reason":"WORKER_TRANSPORT_PATH_DENIED"}',
    }
    assert api.asked == []
    site.logged("WORKER_TRANSPORT_PATH_DENIED")


def test_other_workspaces_and_executors_are_denied(site: Site, api: Api) -> None:
    worker, none = site.worker(), site.worker(managedExecutorId=None)
    ask(worker, own(site).replace(site.workspace, "w0"))
    assert answer(worker)["status"] == 403
    ask(none, own(site))
    assert answer(none)["status"] == 403
    assert api.asked == []


def test_the_answer_as_text_and_its_headers(site: Site) -> None:
    worker = site.worker()
    ask(worker, own(site, "/cookies"))
    headers = answer(worker)["headers"]
    assert headers["x-thing"] == "1"
    assert not {"set-cookie", "cookie", "authorization"} & set(headers)
    assert all(name == name.lower() for name in headers)
    ask(worker, own(site, "/latin"))
    assert answer(worker)["body"] == "caf\ufffd \u00e9"
    ask(worker, own(site, "/fault"))
    got = answer(worker)
    assert (got["status"], got["body"]) == (500, "it broke")


def test_redirects_are_passed_on(site: Site, api: Api) -> None:
    worker = site.worker()
    ask(worker, own(site, "/redirect"), method="POST", body="x")
    got = answer(worker)
    assert (got["status"], got["headers"]["location"]) == (307, api.url + "/elsewhere")
    assert len(api.asked) == 1


def test_a_response_of_exactly_the_frame_limit(site: Site) -> None:
    worker = site.worker()
    ask(worker, own(site, "/fits"))
    assert answer(worker)["body"] == "x" * FRAME_MAX


@pytest.mark.parametrize("how", ["long", "hangup"])
def test_a_failed_request_is_502_and_logged(site: Site, api: Api, how: str) -> None:
    worker = site.worker()
    ask(worker, own(site, f"/{how}"), method="POST", body="once")
    assert answer(worker) == {
        "requestId": "r",
        "status": 502,
        "headers": {"content-type": "application/json"},
        "body": '{"ok":false,"reason":"WORKER_TRANSPORT_FORWARD_FAILED"}',
    }
    [entry] = site.logged("WORKER_TRANSPORT_FORWARD_FAILED")
    assert entry["level"] == "error"
    assert len(api.asked) == 1  # a request that may have been processed is never sent twice
    ask(worker, own(site))
    assert answer(worker)["status"] == 200


def test_concurrent_requests_are_answered_in_the_order_of_completion(site: Site, api: Api) -> None:
    worker = site.worker()
    api.held = {"slow": threading.Event(), "slower": threading.Event()}
    ask(worker, own(site, "/slow"), "1")
    ask(worker, own(site, "/slower"), "2")
    ask(worker, own(site, "/quick"), "3")
    assert answer(worker)["requestId"] == "3"
    api.held["slower"].set()
    assert answer(worker)["requestId"] == "2"
    api.held["slow"].set()
    assert answer(worker)["requestId"] == "1"


def test_hundreds_at_once_are_all_answered(site: Site, api: Api) -> None:
    worker = site.worker()
    api.held = {"slow": threading.Event()}
    for number in range(16):
        ask(worker, own(site, "/slow"), f"slow-{number}")
    until(lambda: len(api.asked) == 16, what="16 at once")
    for number in range(300):
        ask(worker, own(site, "/../y" if number % 2 else "/quick"), f"{number}")
    api.held["slow"].set()
    answered = [answer(worker) for _ in range(316)]
    assert sorted(got["requestId"] for got in answered) == sorted(
        [f"slow-{n}" for n in range(16)] + [str(n) for n in range(300)]
    )
    assert sum(got["status"] == 403 for got in answered) == 150
    settle(worker)


def test_requests_within_the_rate_are_answered_before_the_close(
    api: Api, make_relay: Callable[..., Relay], sites: Callable[..., Site]
) -> None:
    """More at once than run at once, the last of them over the rate."""
    api.asked.clear()
    api.held = {"slow": threading.Event()}
    for relay in checked(make_relay(SERVER_URL=api.url, RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE="20")):
        site = sites(relay, target=None)
        worker = site.worker()
        path = own(site, "/slow")
        worker.say(*[encoded("worker request", requestId=f"{n}", path=path) for n in range(23)])
        until(lambda: len(api.asked) == 16, what="16 at once")
        worker.read_for(0.3)
        assert worker.closed is None
        api.held["slow"].set()
        assert sorted(int(answer(worker)["requestId"]) for _ in range(20)) == list(range(20))
        assert worker.end() == (4008, "worker rate limit exceeded")
        assert len(api.asked) == 20


def test_the_end_of_an_executor_cancels_its_requests(site: Site, api: Api) -> None:
    worker, other = site.worker(), site.worker()
    api.held = {"slow": threading.Event()}
    ask(worker, own(site, "/slow"))
    until(lambda: len(api.asked) == 1, what="it is asked")
    worker.vanish()
    api.held["slow"].set()
    ask(other, own(site))
    assert answer(other)["status"] == 200
    settle(other)
    assert other.heard() == []


def test_invalid_requests_are_dropped_and_logged(site: Site) -> None:
    worker = site.worker()
    for bad in (b"x", b"[]", encoded("e2ee"), encoded("worker request", method="PUT")):
        worker.say(bad)
    settle(worker)
    assert worker.heard() == []
    site.logged("INVALID_FRAME")
    ask(worker, own(site))
    assert answer(worker)["status"] == 200
