"""Peers of `fairness.py`: a daemon of limited speed, 49 quiet clients, and the 50th, which floods or stops reading."""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.drill.peer import CLOSE, PING, PONG, TEXT, dial, kex_init, kex_response, upgrade_request
from tests.wireframes import masked_frame

WORKSPACE, TARGET = "dev-workspace", "dev-machine"
EVERY = 0.1  # seconds between two frames of a client
FLOOD_FRAME = 32_768


def masked(message: bytes) -> bytes:
    """A client's text frame, with a mask of zeros for speed."""
    return masked_frame(TEXT, message, mask=bytes(4))


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
            if opcode == TEXT:
                yield payload
            elif opcode == PING:
                self.connection.sendall(masked_frame(PONG, payload))
            elif opcode == CLOSE:
                raise ConnectionError(f"closed {payload!r}")
        del self._kept[:at]


def join(port: int, role: str, token: str, receive_buffer: int = 0) -> socket.socket:
    """An upgraded connection to the one target. `receive_buffer` is in bytes, 0 for the kernel's default."""
    connection = dial(port, timeout=60.0, receive_buffer=receive_buffer)
    path = f"/ws?role={role}&workspaceId={WORKSPACE}&runtimeTargetId={TARGET}"
    connection.sendall(upgrade_request(path, {"Authorization": f"Bearer {token}"}))
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += connection.recv(1)
    assert b" 101 " in answer, answer
    connection.settimeout(None)
    return connection


def e2ee(session: str, seq: int, size: int) -> bytes:
    """An envelope in the form that browsers and agents send, without spaces."""
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
            if b"relay_key_exchange_init" in message[:64]:
                request = json.loads(message)["requestId"]  # the session is named after it
                replies.append(masked(kex_response(request, request).encode()))
            elif b'"sessionId":"q' in message[:120]:
                replies.append(masked(message))
        if replies:
            connection.sendall(b"".join(replies))


def flooder(port: int, token: str, go: Any) -> None:
    connection = join(port, "client", token)
    data = masked(e2ee("flood", 1, FLOOD_FRAME)) * 32
    go.wait()
    while True:
        connection.sendall(data)


def deaf(port: int, token: str, ready: Any) -> None:
    """A client that owns the session `slow` and stops reading."""
    connection = join(port, "client", token, 16_384)
    connection.sendall(masked(kex_init("slow").encode()))
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
            connection.sendall(masked(kex_init(f"q{number}").encode()))
            stream = Stream(connection)
            while not list(stream.feed(connection.recv(65_536))):
                pass
            self._streams.append(stream)
            self._waiting.append(deque())
            self._ready.register(connection, selectors.EVENT_READ, number)

    def measure(self, seconds: float) -> dict[str, float]:
        """Send and hear for so many seconds, and wait up to two more for what is in flight."""
        took: list[float] = []
        sent = 0
        begin = time.monotonic()
        due = [begin + EVERY * number / len(self._streams) for number in range(len(self._streams))]
        while (now := time.monotonic()) < begin + seconds:
            for number, at in enumerate(due):
                if at <= now:
                    due[number] = at + EVERY
                    sent += 1
                    self._send(number, sent)
            took += self._echoes(max(0.0, min(due) - time.monotonic()))
        while any(self._waiting) and time.monotonic() < begin + seconds + 2:
            took += self._echoes(0.05)
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

    def _send(self, number: int, seq: int) -> None:
        self._waiting[number].append(time.monotonic())
        self._streams[number].connection.sendall(masked(e2ee(f"q{number}", seq, 1024)))

    def _echoes(self, patience: float) -> Iterator[float]:
        """The round trips that end within `patience` seconds, at most one read of each connection."""
        for key, _ in self._ready.select(patience):
            stream = self._streams[key.data]
            for _ in stream.feed(stream.connection.recv(65_536)):
                yield time.monotonic() - self._waiting[key.data].popleft()
