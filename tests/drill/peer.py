"""A WebSocket peer over a blocking socket, controlled step by step by a test.

    daemon = Peer.daemon(relay, platform, "ws-1", "target-1")
    client = Peer.client(relay, platform, "ws-1", "target-1")
    client.converse(daemon)                     # key exchange: the client owns the session
    client.send(e2ee(client.session))
    assert daemon.text() == …

A Close frame is never answered; a ping only within `message`.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import socket
import ssl
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

from tests.drill.platform import FaultyPlatform
from tests.wireframes import masked_frame

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
PATIENCE = 30.0  # seconds
_numbers = itertools.count(1)


class Refused(Exception):
    """The upgrade had a response other than 101; status 0 without a response."""

    def __init__(self, status: int, head: str) -> None:
        super().__init__(f"{status}: {head[:300]}")
        self.status = status
        self.head = head


class Closed(Exception):
    """The connection ended: the Close code, or 1006 without a Close frame."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


def e2ee(session: str, seq: int = 1, ciphertext: str = "Y2lwaGVy") -> str:
    return json.dumps({
        "type": "e2ee", "version": 2, "profile": "noise-ik", "sessionId": session, "epoch": 1, "seq": seq, "iv": "aXY",
        "tag": "dGFn", "ciphertext": ciphertext,
    }, ensure_ascii=False)  # fmt: skip


def kex_init(request: str) -> str:
    return json.dumps({
        "type": "relay_key_exchange_init", "version": 3, "profile": "noise-ik", "requestId": request,
        "clientEphemeralPublicKey": "BEPH", "encryptedClientStatic": "ENC",
    })  # fmt: skip


def kex_response(request: str, session: str) -> str:
    return json.dumps({
        "type": "relay_key_exchange_response", "version": 3, "profile": "noise-ik", "requestId": request,
        "sessionId": session, "epoch": 1, "proof": "p", "daemonPublicKey": "BD", "daemonEphemeralPublicKey": "BE",
        "encryptedMetadata": "em",
    })  # fmt: skip


def dial(
    port: int,
    tls: ssl.SSLContext | None = None,
    timeout: float = 20.0,
    source: str = "127.0.0.1",
    receive_buffer: int = 0,
) -> socket.socket:
    """Connect from `source`, an address of loopback. `receive_buffer` is in bytes, 0 for the kernel's default."""
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(timeout)
    sock.bind((source, 0))
    sock.connect(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock if tls is None else tls.wrap_socket(sock, server_hostname="localhost")


def upgrade_request(path: str, headers: dict[str, str], host: str = "localhost") -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade",
             "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: " + base64.b64encode(os.urandom(16)).decode()]  # fmt: skip
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


class Peer:
    """One upgraded connection."""

    def __init__(
        self,
        port: int | Path,
        query: dict[str, str],
        headers: dict[str, str],
        *,
        tls: ssl.SSLContext | None = None,
        timeout: float = 20.0,
        before: bytes = b"",
        early: bytes = b"",
        source: str = "127.0.0.1",
        receive_buffer: int = 0,
    ) -> None:
        """Upgrade at a loopback `port` or the path of a socket. `before` is sent ahead of TLS (a PROXY header), `early` in one
        piece with the request; for `source` and `receive_buffer` see `dial`. Raises Refused.
        """
        self.session = f"session-{next(_numbers)}"
        self._buffer = b""
        if isinstance(port, Path):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            self.sock.connect(str(port))
        else:
            self.sock = dial(port, timeout=timeout, source=source, receive_buffer=receive_buffer)
        if before:
            self.sock.sendall(before)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
        self.sock.sendall(upgrade_request("/ws?" + urlencode(query), headers) + early)
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                raise Refused(0, self._buffer.decode("latin-1"))
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        self.head = head.decode("latin-1")
        status = int(self.head.split()[1])
        if status != 101:
            self.sock.close()
            raise Refused(status, self.head)

    @classmethod
    def join(
        cls, relay: Any, platform: FaultyPlatform, role: str, workspace: str, target: str | None, **more: Any
    ) -> Self:
        """Connect to `relay`, an object with `port` and, for TLS, `tls`."""
        options = {
            name: more.pop(name)
            for name in ("timeout", "before", "early", "tls", "source", "receive_buffer")
            if name in more
        }
        options.setdefault("tls", getattr(relay, "tls", None))
        headers = more.pop("headers", {})
        token = more.pop("token", None) or platform.token(role, workspace, target, **more)
        query = {"role": role, "workspaceId": workspace} | ({"runtimeTargetId": target} if target else {})
        return cls(relay.port, query, {"Authorization": f"Bearer {token}"} | headers, **options)

    @classmethod
    def daemon(cls, relay: Any, platform: FaultyPlatform, workspace: str, target: str, **more: Any) -> Self:
        return cls.join(relay, platform, "workspace-daemon", workspace, target, **more)

    @classmethod
    def client(cls, relay: Any, platform: FaultyPlatform, workspace: str, target: str, **more: Any) -> Self:
        return cls.join(relay, platform, "client", workspace, target, **more)

    # -- messages --------------------------------------------------------------------------------------------

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send(self, text: str | bytes, opcode: int = TEXT) -> None:
        self.sock.sendall(masked_frame(opcode, text.encode() if isinstance(text, str) else text))

    def converse(self, daemon: Peer) -> None:
        """Run a key exchange; after it this client owns `self.session`."""
        request = f"request-{next(_numbers)}"
        self.send(kex_init(request))
        assert json.loads(daemon.text())["requestId"] == request
        answer = kex_response(request, self.session)
        daemon.send(answer)
        assert self.text() == answer

    def _more(self) -> bool:
        data = self.sock.recv(262_144)
        self._buffer += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            if not self._more():
                raise Closed(1006)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def frame(self) -> tuple[int, bytes]:
        """The next frame of any kind. Raises Closed at the end of the stream, TimeoutError without data."""
        try:
            first, second = self._take(2)
            size = second & 0x7F
            if size == 126:
                size = int.from_bytes(self._take(2), "big")
            elif size == 127:
                size = int.from_bytes(self._take(8), "big")
            return first & 0x0F, self._take(size)
        except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise Closed(1006) from None

    def message(self) -> bytes:
        """The next message; pings are answered. Raises Closed, or TimeoutError, also while only pings arrive."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            opcode, payload = self.frame()
            if opcode in (TEXT, BINARY):
                return payload
            if opcode == PING:
                self.send(payload, PONG)
            elif opcode == CLOSE:
                code = int.from_bytes(payload[:2], "big") if payload else 1005
                raise Closed(code, payload[2:].decode())
        raise TimeoutError("nothing but pings")

    def text(self) -> str:
        return self.message().decode()

    def how_it_ends(self) -> Closed:
        """Read until the connection ends; returns how."""
        while True:
            try:
                self.message()
            except Closed as closed:
                return closed

    def close(self) -> None:
        self.sock.close()
