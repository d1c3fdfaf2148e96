"""A TCP forwarder in its own thread: a network between two processes that a test can partition.

    with Forwarder(redis.port) as network:
        relay = Relay({"RELAY_REDIS_URL": f"redis://127.0.0.1:{network.port}", …})
        network.partition()      # bytes are dropped without RST or FIN
        network.heal()

During a partition open connections stay open and new ones are accepted, but no byte passes: a process behind a firewall
that drops packets sees the same until TCP times out. `heal` resets these connections, because their bytes are lost.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Self


class Forwarder:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`to`."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._cut = False
        self._lost: set[asyncio.StreamWriter] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            self._server.close()
            for writer in self._open:
                writer.transport.abort()

        self._call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _call(self, coroutine):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def partition(self) -> None:
        """Drop all bytes from now on."""
        self._cut = True

    def heal(self) -> None:
        """Forward again; reset the connections that lost bytes."""

        async def reset() -> None:
            self._cut = False
            for writer in self._lost:
                writer.transport.abort()
            self._lost.clear()

        self._call(reset())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if self._cut:
                self._lost.add(writer)
                await self._swallow(reader)
                return
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            self._open.add(back)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(reader, back))
                    both.create_task(self._pump(there, writer))
            finally:
                self._open.discard(back)
                back.transport.abort()
        except* OSError:
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Forward until the source ends, then raise ConnectionResetError, which ends the other direction."""
        while data := await source.read(65_536):
            if self._cut:
                self._lost.add(target)
                await self._swallow(source)
                break
            target.write(data)
            await target.drain()
        raise ConnectionResetError

    async def _swallow(self, source: asyncio.StreamReader) -> None:
        while await source.read(65_536):
            pass
