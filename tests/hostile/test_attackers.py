"""Tests of the attackers: an attack that stalls would show nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from pathlib import Path

from tests.drill.certificates import Identity
from tests.hostile import pipelining


def test_a_half_closed_tls_connection_does_not_stop_the_other_attackers(tmp_path: Path) -> None:
    """asyncio drops data written to a closed TLS socket, and drain() then returns at once."""
    authority = Identity.self_signed("test CA")
    files = authority.issue("server", "localhost").write(tmp_path, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = listener.accept()
                threading.Thread(target=answer, args=(accepted,), daemon=True).start()

    def answer(accepted: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(accepted, server_side=True) as sock:
            sock.recv(1000)
            sock.unwrap()

    async def attack(port: int) -> int:
        """Number of turns of the loop within a second."""
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.01)
                turns += 1

        tasks = [
            asyncio.ensure_future(count()),
            asyncio.ensure_future(pipelining.attack(port, "127.0.1.1", authority.context())),
        ]
        await asyncio.wait(tasks, timeout=1)
        for task in tasks:
            task.cancel()
        return turns

    found: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        # In a thread, because a stalled loop would not end.
        attacking = threading.Thread(target=lambda: found.append(asyncio.run(attack(port))), daemon=True)
        attacking.start()
        attacking.join(10)
    assert found and found[0] > 5


def test_an_attacker_ends_wherever_it_is_cancelled() -> None:
    """It lost a cancellation that came while it waited for its sender to end; then its event loop never ended."""

    async def half_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        with contextlib.suppress(OSError):
            while await reader.read(65_536):
                pass
        writer.close()

    async def cancelled_after(port: int, turns: int) -> bool:
        """Whether an attack ends that is cancelled after so many turns of the loop."""
        attacking = asyncio.ensure_future(pipelining.attack(port, "127.0.1.1", None))
        for _ in range(turns):
            await asyncio.sleep(0)
        attacking.cancel()
        await asyncio.wait([attacking], timeout=0.5)
        ended = attacking.done()
        attacking.cancel()
        return ended

    async def attacks() -> list[int]:
        server = await asyncio.start_server(half_close, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        went_on = [turns for turns in range(60) if not await cancelled_after(port, turns)]
        server.close()
        return went_on

    assert asyncio.run(attacks()) == []
