"""Round trips of 49 clients of a daemon while a 50th floods it or stops reading, and the relay's memory.

    python benchmarks/fairness.py [--seconds 8] [--daemon-mb-per-s 20]

Starts a relay with its dev platform, a daemon that reads at the given rate, 49 clients that each send a small frame
ten times a second and wait for its echo, and then the 50th. Prints one JSON object: round trips in milliseconds,
memory in MiB. Linux only (/proc). The peers are Python processes; the run without the 50th shows their share of a
round trip.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import platform
import secrets
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORKSPACE, TARGET = "dev-workspace", "dev-machine"
QUIET = 49
EVERY = 0.1  # seconds between two frames of a client
FLOOD_FRAME = 32_768
CREDENTIAL = secrets.token_hex(16)


# -- a minimal WebSocket ----------------------------------------------------------------------------------------


def masked(message: bytes) -> bytes:
    """A client's text frame, with a mask of zeros for speed."""
    length = len(message)
    if length < 126:
        head = struct.pack("!BB", 0x81, 0x80 | length)
    elif length < 65_536:
        head = struct.pack("!BBH", 0x81, 0xFE, length)
    else:
        head = struct.pack("!BBQ", 0x81, 0xFF, length)
    return head + bytes(4) + message


class Stream:
    """Parser of a server's frames: returns messages, answers pings."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._kept = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._kept += data
        at = 0
        while len(self._kept) - at >= 2:
            length, head = self._kept[at + 1], 2
            if length >= 126:
                head = 4 if length == 126 else 10
                if len(self._kept) - at < head:
                    break
                length = int.from_bytes(self._kept[at + 2 : at + head], "big")
            if len(self._kept) - at < head + length:
                break
            opcode = self._kept[at] & 0x0F
            payload = bytes(self._kept[at + head : at + head + length])
            at += head + length
            if opcode == 1:
                yield payload
            elif opcode == 9:
                self.connection.sendall(struct.pack("!BB", 0x8A, 0x80 | length) + bytes(4) + payload)
            elif opcode == 8:
                raise ConnectionError(f"closed {payload!r}")
        del self._kept[:at]


def join(port: int, role: str, token: str, buffer: int = 0) -> socket.socket:
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET /ws?role={role}&workspaceId={WORKSPACE}&runtimeTargetId={TARGET} HTTP/1.1\r\nHost: relay\r\n"
        f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        f"Authorization: Bearer {token}\r\n\r\n".encode()
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += connection.recv(1)
    assert b" 101 " in answer, answer
    return connection


def e2ee(session: str, seq: int, size: int) -> bytes:
    return json.dumps(
        {
            "type": "e2ee",
            "version": 2,
            "profile": "noise-ik",
            "sessionId": session,
            "epoch": 1,
            "seq": seq,
            "iv": "aXY",
            "tag": "dGFn",
            "ciphertext": "c" * size,
        },
        separators=(",", ":"),
    ).encode()


# -- peers ------------------------------------------------------------------------------------------------------


def daemon(port: int, token: str, bytes_per_second: float, to_slow: Any) -> None:
    """Answers key exchanges and echoes frames of sessions `q…`; `to_slow` makes it flood the slow session too."""
    connection = join(port, "workspace-daemon", token, 65_536)
    stream = Stream(connection)
    allowance, last = 0.0, time.monotonic()
    filler = masked(e2ee("slow", 1, FLOOD_FRAME))
    while True:
        now = time.monotonic()
        allowance = min(allowance + (now - last) * bytes_per_second, 262_144)
        last = now
        if allowance < 4096:
            time.sleep(0.001)
            continue
        connection.settimeout(0.005 if to_slow.is_set() else None)
        try:
            data = connection.recv(min(int(allowance), 65_536))
        except TimeoutError:
            data = b""
        if to_slow.is_set():
            connection.settimeout(None)
            connection.sendall(filler)
        allowance -= len(data)
        replies = []
        for message in stream.feed(data):
            if message.startswith(b'{"type":"relay_key_exchange_init"'):
                request = json.loads(message)["requestId"]
                replies.append(masked(answer(request)))
            elif b'"sessionId":"q' in message[:120]:
                replies.append(masked(message))
        if replies:
            connection.sendall(b"".join(replies))


def init(request: str) -> bytes:
    return json.dumps(
        {
            "type": "relay_key_exchange_init",
            "version": 3,
            "profile": "noise-ik",
            "requestId": request,
            "clientEphemeralPublicKey": "e",
            "encryptedClientStatic": "s",
        },
        separators=(",", ":"),
    ).encode()


def answer(request: str) -> bytes:
    """Response to a key exchange; the session is named after the request."""
    return json.dumps(
        {
            "type": "relay_key_exchange_response",
            "version": 3,
            "profile": "noise-ik",
            "requestId": request,
            "daemonPublicKey": "d",
            "daemonEphemeralPublicKey": "e",
            "encryptedMetadata": "m",
            "sessionId": request,
            "epoch": 1,
            "proof": "p",
        }
    ).encode()


def flooder(port: int, token: str, go: Any) -> None:
    connection = join(port, "client", token)
    data = masked(e2ee("flood", 1, FLOOD_FRAME)) * 32
    go.wait()
    while True:
        connection.sendall(data)


def deaf(port: int, token: str, ready: Any) -> None:
    """A client that owns the session `slow` and stops reading."""
    connection = join(port, "client", token, 16_384)
    connection.sendall(masked(init("slow")))
    connection.recv(10_000)
    ready.set()
    time.sleep(3600)


class Quiet:
    """The 49 clients: each sends a frame every tenth of a second, at its own phase, and waits for the echo."""

    def __init__(self, port: int, tokens: list[str]) -> None:
        self._ready = selectors.DefaultSelector()
        self._streams = []
        self._waiting: list[deque[float]] = []
        for number, token in enumerate(tokens):
            connection = join(port, "client", token)
            connection.sendall(masked(init(f"q{number}")))
            stream = Stream(connection)
            while not list(stream.feed(connection.recv(65_536))):
                pass
            self._streams.append(stream)
            self._waiting.append(deque())
            self._ready.register(connection, selectors.EVENT_READ, number)

    def measure(self, seconds: float) -> dict[str, float]:
        took: list[float] = []
        begin = time.monotonic()
        due = [begin + EVERY * number / len(self._streams) for number in range(len(self._streams))]
        sent = 0
        while (now := time.monotonic()) < begin + seconds + 2:
            if now < begin + seconds:
                for number, at in enumerate(due):
                    if at <= now:
                        due[number] = at + EVERY
                        self._waiting[number].append(time.monotonic())
                        sent += 1
                        self._streams[number].connection.sendall(masked(e2ee(f"q{number}", sent, 1024)))
            elif not any(self._waiting):
                break
            for key, _ in self._ready.select(
                max(0.0, min(due) - time.monotonic()) if now < begin + seconds else 0.05
            ):
                number = key.data
                for _ in self._streams[number].feed(self._streams[number].connection.recv(65_536)):
                    took.append(time.monotonic() - self._waiting[number].popleft())
        lost = sum(map(len, self._waiting))
        for waiting in self._waiting:
            waiting.clear()
        took.sort()
        return {
            "frames": sent,
            "unanswered": lost,
            "p50_ms": round(took[len(took) // 2] * 1000, 2),
            "p99_ms": round(took[int(len(took) * 0.99)] * 1000, 2),
            "max_ms": round(took[-1] * 1000, 2),
        }


# -- the run ----------------------------------------------------------------------------------------------------


def start_relay() -> tuple[subprocess.Popen[bytes], int, str]:
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    rates = (
        "RATE_LIMIT_PER_IP MAX_CONNECTIONS_PER_IP KEX_INIT_RATE_PER_MINUTE RUNTIME_RATE_PER_MINUTE "
        "RUNTIME_RATE_PER_MINUTE_WORKSPACE DAEMON_RUNTIME_RATE_PER_MINUTE"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    environ |= {f"RELAY_{name}": "0" for name in rates.split()}
    environ |= {"RELAY_LISTEN_PORT": str(ports[0]), "DEV_CREDENTIAL": CREDENTIAL, "PYTHONPATH": str(ROOT)}
    environ |= {"RELAY_DRAIN_SECONDS": "1"}
    run = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile="]
    relay = subprocess.Popen(
        [*run, "viewport-relay", "--dev", "--dev-port", str(ports[1])], env=environ, stdout=subprocess.DEVNULL
    )
    platform_url = f"http://127.0.0.1:{ports[1]}"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/ready", timeout=2) as reply:
                if reply.status == 200:
                    return relay, ports[0], platform_url
        except OSError:
            time.sleep(0.05)
    relay.kill()
    raise SystemExit("the relay does not come up")


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        answered: dict[str, Any] = json.loads(reply.read())
        return answered


def client_token(platform_url: str, name: str) -> str:
    body = {
        "role": "client",
        "workspaceId": WORKSPACE,
        "credential": CREDENTIAL,
        "clientId": name,
        "scope": "runtime",
    }
    token: str = post(f"{platform_url}/api/runtime/relay-token", body)["relayToken"]
    return token


def daemon_token(platform_url: str) -> str:
    key = post(f"{platform_url}/api/runtime/workspaces/{WORKSPACE}/daemon-key", {"credential": CREDENTIAL})
    body = {"role": "workspace-daemon", "workspaceId": WORKSPACE, "credential": key["daemonIssueToken"]}
    token: str = post(f"{platform_url}/api/runtime/relay-token", body)["relayToken"]
    return token


def memory(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of each of the three runs")
    parser.add_argument("--daemon-mb-per-s", type=float, default=20.0)
    options = parser.parse_args()
    relay, port, platform_url = start_relay()
    to_slow, go, ready = (multiprocessing.Event() for _ in range(3))
    peers: list[multiprocessing.Process] = []

    def begin(work: Any, *arguments: Any) -> None:
        peers.append(multiprocessing.Process(target=work, args=(port, *arguments), daemon=True))
        peers[-1].start()

    try:
        begin(daemon, daemon_token(platform_url), options.daemon_mb_per_s * 1e6, to_slow)
        time.sleep(0.5)
        quiet = Quiet(port, [client_token(platform_url, f"quiet-{n}") for n in range(QUIET)])
        quiet.measure(1.0)
        before = memory(relay.pid)
        alone = quiet.measure(options.seconds)

        begin(deaf, client_token(platform_url, "deaf"), ready)
        assert ready.wait(20)
        to_slow.set()
        with_deaf = {**quiet.measure(options.seconds), "relay_rss_mib": memory(relay.pid)}
        to_slow.clear()
        peers[-1].terminate()
        time.sleep(0.5)

        begin(flooder, client_token(platform_url, "flooder"), go)
        time.sleep(0.5)
        go.set()
        time.sleep(1.0)
        with_flood = {**quiet.measure(options.seconds), "relay_rss_mib": memory(relay.pid)}
    finally:
        for peer in peers:
            peer.kill()
        relay.send_signal(signal.SIGTERM)
        relay.wait(15)
    result = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "daemon_mb_per_s": options.daemon_mb_per_s,
        "clients": QUIET,
        "relay_rss_mib_before": before,
        "alone": alone,
        "one_stops_reading": with_deaf,
        "one_floods": with_flood,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
