"""A restart under load, with the socket held as systemd holds it: reconnects and lost frames.

    python benchmarks/drain.py [--pairs 200] [--drain 5] [--json FILE]

Peers are pairs of daemon and client; each client sends ten frames a second and its daemon answers. In the middle the
relay gets SIGTERM, and a new one starts on the same listening socket as soon as the old one has ended. Closed peers
reconnect at once, as real daemons do. Reported: reconnects per tenth of a second from SIGTERM on, the time that a
pair had no relay, and frames that were sent on an open connection and never arrived.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.drill.line import Line
from tests.drill.peer import e2ee, kex_init, kex_response
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay


class Fleet:
    """All pairs and their counts."""

    def __init__(self, port: int, platform: FaultyPlatform) -> None:
        self.port = port
        self.platform = platform
        self.stopped_at = 0.0
        self.closed_at: list[float] = []
        self.came_back: list[float] = []
        self.refused = 0
        self.sent = 0
        self.answered = 0
        self.gaps: list[float] = []
        self.over = False

    async def connect(self, role: str, workspace: str, token: str) -> Line:
        while True:
            try:
                line = await Line.open(self.port, role, workspace, token)
            except (OSError, ConnectionError, asyncio.IncompleteReadError):
                self.refused += 1
                await asyncio.sleep(0.05)
                continue
            if self.stopped_at:
                self.came_back.append(time.monotonic() - self.stopped_at)
            return line

    async def daemon(self, number: int) -> None:
        workspace = f"w{number}"
        token = self.platform.token("workspace-daemon", workspace, "t")
        while not self.over:
            line = await self.connect("workspace-daemon", workspace, token)
            try:
                while True:
                    told = json.loads(await line.receive())
                    if told["type"] == "e2ee":
                        line.send(json.dumps(told))
                    else:
                        line.send(kex_response(told["requestId"], f"s-{told['requestId']}"))
            except (OSError, asyncio.IncompleteReadError):
                if self.stopped_at:
                    self.closed_at.append(time.monotonic() - self.stopped_at)
            line.close()

    async def client(self, number: int) -> None:
        workspace = f"w{number}"
        token = self.platform.token("client", workspace, "t")
        rounds = 0
        last = 0.0
        while not self.over:
            line = await self.connect("client", workspace, token)
            rounds += 1
            try:
                session = ""
                while not session:
                    line.send(kex_init(f"{number}-{rounds}"))
                    told = json.loads(await asyncio.wait_for(line.receive(), 10))
                    session = told.get("sessionId", "")  # empty: the daemon is not back yet
                    await asyncio.sleep(0 if session else 0.1)
                if last:
                    self.gaps.append(time.monotonic() - last)
                seq = 0
                while not self.over:
                    seq += 1
                    line.send(e2ee(session, seq, "x" * 200))
                    self.sent += 1
                    await asyncio.wait_for(line.receive(), 10)
                    self.answered += 1
                    last = time.monotonic()
                    await line.quiet(0.1)  # read a Close before the next frame is sent
            except (TimeoutError, OSError, asyncio.IncompleteReadError):
                if self.stopped_at:
                    self.closed_at.append(time.monotonic() - self.stopped_at)
            line.close()

    async def settle(self, peers: int) -> None:
        """Wait until that many peers have come back, at most a minute, and let frames flow for a while; then end."""
        while len(self.came_back) < peers and time.monotonic() - self.stopped_at < 60:
            await asyncio.sleep(0.2)
        await asyncio.sleep(3)
        self.over = True
        await asyncio.sleep(0.5)

    def figures(self, peers: int) -> dict[str, Any]:
        gaps = sorted(self.gaps)
        return {
            "closes_per_tenth": tenths(self.closed_at[:peers]),
            "returns_per_tenth": tenths(self.came_back),
            "refused_connections": self.refused,
            "pair_without_relay_median": round(gaps[len(gaps) // 2], 2) if gaps else None,
            "pair_without_relay_longest": round(gaps[-1], 2) if gaps else None,
        }


def tenths(times: list[float]) -> list[int]:
    """Counts per tenth of a second."""
    found = [0] * (int(max(times) * 10) + 1) if times else []
    for at in times:
        found[int(at * 10)] += 1
    return found


async def measure(pairs: int, drain: int) -> dict[str, Any]:
    """Restart a relay with so many pairs; the figures."""
    with FaultyPlatform() as platform, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        settings = platform.environment() | {"RELAY_DRAIN_SECONDS": str(drain)}
        old = await started(settings, listener)
        fleet = Fleet(old.port, platform)
        tasks = [asyncio.create_task(peer(n)) for n in range(pairs) for peer in (fleet.daemon, fleet.client)]
        await asyncio.sleep(6 + pairs / 100)
        before = fleet.answered
        fleet.stopped_at = time.monotonic()
        old.signal(signal.SIGTERM)
        status = await asyncio.to_thread(old.process.wait)
        ended = time.monotonic() - fleet.stopped_at
        new = await started(settings, listener)
        ready = time.monotonic() - fleet.stopped_at
        await fleet.settle(2 * pairs)
        lost = fleet.sent - fleet.answered
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        new.stop()
        errors = old.errors() + new.errors()
        old.kill()
        new.kill()
    return {
        "pairs": pairs,
        "drain_seconds": drain,
        "exit_status": status,
        "old_ended_after": round(ended, 2),
        "new_ready_after": round(ready, 2),
        "asked_before": before,
        "frames_lost": lost,
        **fleet.figures(2 * pairs),
        "errors": len(errors),
    }


async def started(settings: dict[str, str], listener: socket.socket) -> Relay:
    relay = Relay(settings, listener=listener)
    await asyncio.to_thread(relay.wait)
    return relay


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--drain", type=int, default=5, help="RELAY_DRAIN_SECONDS")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.pairs, options.drain))
    for name, value in figures.items():
        print(f"{name:28} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    os._exit(0 if figures["exit_status"] == 0 and not figures["errors"] else 1)


if __name__ == "__main__":
    main()
