"""Client libraries of real peers against a relay process: Node's ws, Python's websockets, Chromium."""

from __future__ import annotations

import asyncio
import json
import queue
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.drill.certificates import Identity
from tests.drill.peer import Peer, e2ee, kex_init, kex_response
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, running
from tests.integration.webdriver import Browser

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def relay(platform: FaultyPlatform) -> Iterator[Relay]:
    settings = {"RELAY_PING_INTERVAL_MS": "300", "RELAY_VALIDATE_CACHE_TTL": "0"}
    with running(platform.environment() | settings) as made:
        yield made


def address(relay: Relay, role: str, workspace: str, scheme: str = "ws") -> str:
    query = {"role": role, "workspaceId": workspace, "runtimeTargetId": "t"}
    return f"{scheme}://localhost:{relay.port}/ws?{urlencode(query)}"


# -- Node's ws -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def node_modules() -> None:
    """Install `ws` from the lock file beside the script, once."""
    if not (HERE / "node_modules" / "ws" / "package.json").exists():
        if shutil.which("npm") is None:
            pytest.skip("needs npm: apt-get install npm")
        npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(npm, cwd=HERE, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class Node:
    """A peer in a Node process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["node", str(HERE / "talk.mjs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
        )
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(json.loads(line))

    def tell(self, **what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def said(self, *kinds: str) -> dict[str, Any]:
        """The next event of one of these kinds; other events are skipped."""
        while True:
            found = self._said.get(timeout=30)
            if kinds[0] in found or any(kind in found for kind in kinds):
                return found

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture
def node(node_modules: None) -> Iterator[Node]:
    made = Node()
    yield made
    made.close()


@pytest.mark.node
def test_node_ws_messages_pings_and_close(node: Node, relay: Relay, platform: FaultyPlatform) -> None:
    daemon = Peer.daemon(relay, platform, "node", "t")
    token = platform.token("client", "node", "t")
    # ws offers permessage-deflate by default; the relay does not accept it.
    node.tell(
        open=address(relay, "client", "node"), options={"headers": {"Authorization": f"Bearer {token}"}}
    )
    assert node.said("opened", "failed") == {"opened": "", "extensions": ""}
    node.tell(send=kex_init("node-1"))
    assert json.loads(daemon.text())["requestId"] == "node-1"
    daemon.send(kex_response("node-1", "node-session"))
    assert node.said("got") == {"got": kex_response("node-1", "node-session"), "binary": False}
    for size in (10, 70_000, 1_000_000):
        text = e2ee("node-session", size, "ü" * (size // 2))
        node.tell(send=text)
        assert daemon.text() == text
        daemon.send(text)
        assert node.said("got")["got"] == text
    assert node.said("pinged")  # the relay's ping, which ws answers
    node.tell(ping="are you there")
    assert node.said("pong")["pong"] == "are you there"
    node.tell(close=1000, reason="done")
    assert node.said("closed") == {"closed": 1000, "reason": "done"}
    daemon.close()


@pytest.mark.node
@pytest.mark.parametrize(
    ("mode", "status", "code", "close"),
    [
        ("deny", 401, "VALIDATION_DENIED", (4401, "invalid_token")),
        ("missing", 403, "WORKSPACE_NOT_FOUND", (4403, "workspace_not_found")),
        ("error", 503, "PLATFORM_UNREACHABLE", (1013, "try again later")),
        ("nonsense", 502, "VALIDATION_RESPONSE_INVALID", (1013, "try again later")),
    ],
)
def test_node_ws_sees_refusals(
    node: Node,
    relay: Relay,
    platform: FaultyPlatform,
    mode: Any,
    status: int,
    code: str,
    close: tuple[int, str],
) -> None:
    platform.mode = mode
    try:
        token = platform.token("client", "node-refused", "t")
        to = address(relay, "client", "node-refused")
        node.tell(open=to, options={"headers": {"Authorization": f"Bearer {token}"}})
        refused = node.said("refused")
        assert (refused["refused"], refused["reason"], json.loads(refused["body"])["ok"]) == (
            status,
            code,
            False,
        )
        node.tell(open=to, protocols=[f"auth.{token}"])
        assert node.said("opened")["opened"] == f"auth.{token}"
        closed = node.said("closed")
        assert (closed["closed"], closed["reason"]) == close
    finally:
        platform.mode = "ok"


@pytest.mark.node
def test_node_ws_over_tls(node: Node, platform: FaultyPlatform, tmp_path: Path) -> None:
    ca = Identity.self_signed("test CA")
    files = ca.issue("relay", "localhost").write(tmp_path, "relay")
    settings = {"RELAY_TLS_CERT_PATH": files.cert, "RELAY_TLS_KEY_PATH": files.key}
    with running(platform.environment() | settings, tls=ca.context()) as relay:
        daemon = Peer.daemon(relay, platform, "w", "t")
        token = platform.token("client", "w", "t")
        to = address(relay, "client", "w", "wss")
        node.tell(open=to, options={"headers": {"Authorization": f"Bearer {token}"}})
        assert "certificate" in node.said("failed")["failed"]
        options = {"headers": {"Authorization": f"Bearer {token}"}, "ca": ca.cert_pem.decode()}
        node.tell(open=to, options=options)
        assert node.said("opened", "failed") == {"opened": "", "extensions": ""}
        node.tell(send=kex_init("tls-1"))
        assert json.loads(daemon.text())["requestId"] == "tls-1"
        daemon.close()


# -- Python's websockets -----------------------------------------------------------------------------------------------


def test_python_websockets(relay: Relay, platform: FaultyPlatform) -> None:
    def bearer(role: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {platform.token(role, 'py', 't')}"}

    # websockets offers permessage-deflate too, and fragments messages that are sent in pieces.
    with (
        connect(
            address(relay, "workspace-daemon", "py"), additional_headers=bearer("workspace-daemon")
        ) as daemon,
        connect(address(relay, "client", "py"), additional_headers=bearer("client")) as client,
    ):
        assert client.protocol.extensions == []
        client.send(kex_init("py-1"))
        assert json.loads(daemon.recv(20))["requestId"] == "py-1"
        daemon.send(kex_response("py-1", "py-session"))
        client.recv(20)
        text = e2ee("py-session", 1, "z" * 900_000)
        client.send(text[at : at + 10_000] for at in range(0, len(text), 10_000))
        assert daemon.recv(20) == text
        assert client.ping("x").wait(20)
        client.send("x" * 1_048_577)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(20)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1009, "frame too large")


def test_python_websockets_sees_refusals(relay: Relay, platform: FaultyPlatform) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(address(relay, "client", "py"), additional_headers={"Authorization": "Bearer " + "x" * 40})
    assert refused.value.response.status_code == 401
    assert refused.value.response.headers["X-Relay-Reason"] == "JWT_MALFORMED"
    with connect(address(relay, "client", "py"), subprotocols=[Subprotocol("auth." + "x" * 40)]) as client:
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(20)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4401


def test_python_websockets_over_tls(platform: FaultyPlatform, tmp_path: Path) -> None:
    ca = Identity.self_signed("test CA")
    files = ca.issue("relay", "localhost", kind="rsa").write(tmp_path, "relay")
    settings = {"RELAY_TLS_CERT_PATH": files.cert, "RELAY_TLS_KEY_PATH": files.key}
    with running(platform.environment() | settings, tls=ca.context()) as relay:
        headers = {"Authorization": f"Bearer {platform.token('workspace-daemon', 'w', 't')}"}
        to = address(relay, "workspace-daemon", "w", "wss")

        # The synchronous client uses one TLS object in two threads, which OpenSSL does not always support.
        async def talk() -> None:
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect_async(to, additional_headers=headers)
            async with connect_async(to, additional_headers=headers, ssl=ca.context()) as daemon:
                await asyncio.wait_for(await daemon.ping(), 20)

        asyncio.run(talk())


# -- Chromium ------------------------------------------------------------------------------------------------------------

#: Opens a WebSocket in the page and collects its events in `window.seen`.
OPEN = """
window.seen = [];
const [url, protocols] = arguments;
window.socket = new WebSocket(url, protocols);
socket.onopen = () => seen.push(['open', socket.protocol, socket.extensions]);
socket.onmessage = (event) => seen.push(['message', event.data]);
socket.onclose = (event) => seen.push(['close', event.code, event.reason, event.wasClean]);
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    made = Browser()
    yield made
    made.close()


def in_page(browser: Browser, relay: Relay, token: str, workspace: str) -> None:
    browser.open(f"http://localhost:{relay.port}/health")
    to = json.dumps(address(relay, "client", workspace))
    browser.run(OPEN.replace("arguments", f"[{to}, {json.dumps(['auth.' + token])}]"))


def seen(browser: Browser, number: int) -> list[list[Any]]:
    browser.wait(lambda: browser.run("return seen.length") >= number)
    found: list[list[Any]] = browser.run("return seen")
    return found


@pytest.mark.chromium
def test_a_browser_sends_and_receives(browser: Browser, relay: Relay, platform: FaultyPlatform) -> None:
    daemon = Peer.daemon(relay, platform, "page", "t")
    token = platform.token("client", "page", "t")
    in_page(browser, relay, token, "page")
    assert seen(browser, 1) == [["open", f"auth.{token}", ""]]
    browser.run(f"socket.send({json.dumps(kex_init('page-1'))})")
    assert json.loads(daemon.text())["requestId"] == "page-1"
    daemon.send(kex_response("page-1", "page-session"))
    assert seen(browser, 2)[1] == ["message", kex_response("page-1", "page-session")]
    browser.run(f"socket.send({json.dumps(e2ee('page-session'))}.replace('Y2lwaGVy', 'ü'.repeat(300000)))")
    assert json.loads(daemon.text())["ciphertext"] == "ü" * 300_000
    browser.run("socket.close(1000, 'bye')")
    assert seen(browser, 3)[2] == ["close", 1000, "bye", True]
    daemon.close()


@pytest.mark.chromium
@pytest.mark.parametrize(
    ("mode", "close"),
    [
        ("deny", ["close", 4401, "invalid_token", True]),
        ("missing", ["close", 4403, "workspace_not_found", True]),
        ("hang", ["close", 1013, "try again later", True]),
    ],
)
def test_a_browser_sees_why_it_is_refused(
    browser: Browser, relay: Relay, platform: FaultyPlatform, mode: Any, close: list[Any]
) -> None:
    platform.mode = mode
    try:
        token = platform.token("client", "page-refused", "t")
        in_page(browser, relay, token, "page-refused")
        assert seen(browser, 2) == [["open", f"auth.{token}", ""], close]
    finally:
        platform.mode = "ok"


@pytest.mark.chromium
def test_a_browser_with_a_malformed_token(browser: Browser, relay: Relay) -> None:
    in_page(browser, relay, "not-a-token-at-all", "page")
    assert seen(browser, 2)[1] == ["close", 4401, "invalid_token", True]


@pytest.mark.chromium
def test_a_browser_sees_the_relay_shut_down(browser: Browser, platform: FaultyPlatform) -> None:
    with running(platform.environment()) as relay:
        in_page(browser, relay, platform.token("client", "w", "t"), "w")
        seen(browser, 1)
        assert relay.stop() == 0
        assert seen(browser, 2)[1] == ["close", 1001, "relay shutting down", True]
