"""A peer's WebSocket connection in asyncio, for tools that hold hundreds of them."""

from __future__ import annotations

import asyncio
import struct
from urllib.parse import urlencode

from tests.drill.peer import CLOSE, PING, PONG, TEXT, upgrade_request
from tests.wireframes import masked_frame


class Line:
    """One WebSocket connection. Pings and Close frames are answered only while a method is awaited."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, role: str, workspace: str, token: str, host: str = "localhost") -> Line:
        """Connect to `port` of loopback with `host` as Host header. Raises ConnectionError for any response other than 101."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        query = urlencode({"role": role, "workspaceId": workspace, "runtimeTargetId": "t"})
        writer.write(upgrade_request(f"/ws?{query}", {"Authorization": f"Bearer {token}"}, host))
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in head[:20]:
            writer.close()
            raise ConnectionError(head[:100].decode("latin-1"))
        return cls(reader, writer)

    def send(self, text: str) -> None:
        self.writer.write(masked_frame(TEXT, text.encode()))

    async def receive(self) -> str:
        """The next message. Raises ConnectionError at the end of the connection; a Close frame is answered first."""
        while True:
            first, second = await self.reader.readexactly(2)
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            payload = await self.reader.readexactly(size)
            opcode = first & 15
            if opcode == TEXT:
                return payload.decode()
            if opcode == PING:
                self.writer.write(masked_frame(PONG, payload))
            elif opcode == CLOSE:
                self.writer.write(masked_frame(CLOSE, payload[:2]))
                raise ConnectionError(payload[2:].decode())

    async def quiet(self, seconds: float) -> None:
        """Wait `seconds`; raises ConnectionError if the connection ends earlier."""
        try:
            async with asyncio.timeout(seconds):  # wait_for of Python 3.11 can lose a cancellation
                await self.receive()
        except TimeoutError:
            pass

    def close(self) -> None:
        self.writer.close()
