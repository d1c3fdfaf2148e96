"""Attackers that pipeline plain HTTP: `python -m tests.hostile.pipelining PORT SECONDS CONNECTIONS ADDRESSES [CA]`.

Each connection sends requests back to back, reads the responses, and reconnects when it is closed. Connections are
spread over ADDRESSES loopback addresses, from 127.0.1.1 on. With a CA's certificate (a file) they use TLS. At the end
the process prints the bytes received, and the number of responses by status (JSON).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
from collections import Counter

REQUESTS = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 400
_statuses: Counter[str] = Counter()


async def attack(port: int, source: str, tls: ssl.SSLContext | None) -> None:
    while True:
        with contextlib.suppress(OSError):
            await one(port, source, tls)
        await asyncio.sleep(0.01)


async def one(port: int, source: str, tls: ssl.SSLContext | None) -> None:
    """One connection, until the relay closes it."""
    name = "localhost" if tls is not None else None
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, local_addr=(source, 0), ssl=tls, server_hostname=name
    )

    async def send() -> None:
        while True:
            writer.write(REQUESTS)
            await writer.drain()
            # asyncio drops data written to a closed TLS socket, and drain() then returns at once.
            await asyncio.sleep(0)

    sending = asyncio.ensure_future(send())
    try:
        while data := await reader.read(65_536):
            for part in data.split(b"HTTP/1.1 ")[1:]:
                _statuses[part[:3].decode("latin-1")] += 1
    finally:
        sending.cancel()
        writer.close()
        # Not `await sending` with CancelledError suppressed: a cancellation of this task itself would be lost, and it went on for ever.
        await asyncio.gather(sending, return_exceptions=True)


async def main() -> None:
    port, seconds, connections, addresses, *files = sys.argv[1:]
    tls = ssl.create_default_context(cafile=files[0]) if files else None
    # A signal, because the loop may be too busy to run a timer.
    signal.signal(signal.SIGALRM, lambda *_: finish())
    signal.alarm(round(float(seconds)))
    await asyncio.gather(
        *(attack(int(port), f"127.0.1.{1 + n % int(addresses)}", tls) for n in range(int(connections)))
    )


def finish() -> None:
    """Print the responses, and exit without waiting for closes."""
    print(json.dumps(_statuses), flush=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
