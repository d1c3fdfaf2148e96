"""Peers at byte level: a test writes the upgrade request, and reads the response."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import struct
from typing import Any

from attrs import define

from tests.memorywire import FrameReader, masked_frame

TIMEOUT = 15.0


@define(eq=False)
class Upgrade:
    """Response to an upgrade. After status 101 the connection is open; `close` it, or use this as a context."""

    status: int
    headers: dict[str, str]
    body: bytes
    connection: socket.socket
    _frames: list[tuple[int, bytes, bool]]
    _reader: FrameReader

    def __enter__(self) -> Upgrade:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.connection.close()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str | None:
        return self.headers.get("x-relay-reason")

    @property
    def admitted(self) -> bool:
        return self.status == 101

    def frame(self) -> tuple[int, bytes, bool]:
        """Opcode, payload and FIN bit of the next WebSocket frame."""
        while not self._frames:
            data = self.connection.recv(65536)
            assert data, "the connection ended without a further frame"
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)

    def closed_with(self) -> tuple[int, str]:
        """Code and text of the Close frame; only text frames may come before it."""
        while True:
            opcode, payload, _ = self.frame()
            if opcode == 8:
                return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    def send(self, payload: bytes, opcode: int = 1) -> None:
        self.connection.sendall(masked_frame(opcode, payload))

    def announce(self, length: int) -> None:
        """Send the header of a text message of this length, without payload."""
        size = b"\xfe" + struct.pack("!H", length) if length < 65_536 else b"\xff" + struct.pack("!Q", length)
        self.connection.sendall(b"\x81" + size + b"mask")


def head(target: str, headers: dict[str, str | None] | None = None, method: str = "GET") -> bytes:
    """A valid upgrade request, except where `headers` replaces a header; None removes one."""
    lines: dict[str, str | None] = {
        "Host": "relay.example",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        **(headers or {}),
    }
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"{method} {target} HTTP/1.1\r\n{text}\r\n".encode("latin-1")


def target_of(role: str, workspace: str, target: str | None = "t") -> str:
    named = "" if target is None else f"&runtimeTargetId={target}"
    return f"/ws?role={role}&workspaceId={workspace}{named}"


def dial(
    port: int, *, source: str = "127.0.0.1", host: str = "127.0.0.1", preamble: bytes = b"", tls: bool = False
) -> socket.socket:
    """A connection to a relay from a loopback address; `preamble` is sent before TLS."""
    where = None if ":" in host else (source, 0)
    connection = socket.create_connection((host, port), TIMEOUT, where)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if preamble:
        connection.sendall(preamble)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = context.wrap_socket(connection)
    return connection


def answer_on(connection: socket.socket) -> Upgrade:
    """Read a response. Of a refusal read the whole body, and check that the relay closes as its headers announce."""
    got = b""
    while b"\r\n\r\n" not in got:
        data = connection.recv(65536)
        assert data, f"the connection ended within the head: {got!r}"
        got += data
    first, _, rest = got.partition(b"\r\n\r\n")
    status, *lines = first.decode("latin-1").split("\r\n")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    code = int(status.split(" ")[1])
    reader = FrameReader()
    if code == 101:
        return Upgrade(code, headers, b"", connection, reader.feed(rest), reader)
    while len(rest) < int(headers["content-length"]):
        data = connection.recv(65536)
        assert data, "the connection ended within the body"
        rest += data
    connection.settimeout(8)  # well below Twisted's idle time-out of 15 s
    assert connection.recv(1) == b"", "the relay said that it closes"
    connection.close()
    return Upgrade(code, headers, rest, connection, [], reader)


def upgrade(
    port: int,
    role: str,
    workspace: str,
    token: str | None,
    target: str | None = "t",
    *,
    via: str = "header",
    headers: dict[str, str | None] | None = None,
    **dialling: Any,
) -> Upgrade:
    """One upgrade attempt. `via` is the place of the token: header, subprotocol (as browsers do) or query."""
    asked = target_of(role, workspace, target)
    extra: dict[str, str | None] = {}
    if token is not None:
        if via == "header":
            extra["Authorization"] = f"Bearer {token}"
        elif via == "subprotocol":
            extra["Sec-WebSocket-Protocol"] = f"auth.{token}"
        else:
            asked += f"&token={token}"
    connection = dial(port, **dialling)
    connection.sendall(head(asked, {**extra, **(headers or {})}))
    return answer_on(connection)
