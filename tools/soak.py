#!/usr/bin/env python
"""Soak test: hundreds of daemons and clients connect and leave, with faults; then state and memory are compared.

    tools/soak.py [--minutes 20] [--daemons 120] [--clients 240] [--json FILE]

Peers join, exchange keys, send frames, large frames and garbage, stop reading, close or vanish. The platform hangs,
fails, sends malformed responses and flaps in turn; its keys rotate; the relay gets reload requests. Memory and
descriptors are sampled throughout, and after the last peer has left. Exit status 1 if memory or descriptors grow,
state is left behind, or the log has an unhandled error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.drill.line import Line
from tests.drill.peer import BINARY, CLOSE, PING, TEXT, e2ee, kex_init, kex_response
from tests.drill.platform import FaultyPlatform, Mode
from tests.drill.relay import Relay
from tests.wireframes import masked_frame
from viewport_relay.devplatform.tokens import SigningKey

SETTINGS = {
    "RELAY_PING_INTERVAL_MS": "2000",
    "RELAY_PONG_TIMEOUT_MS": "3000",
    "RELAY_IDLE_TIMEOUT_MS": "20000",
    "RELAY_EMPTY_WORKSPACE_TTL_MS": "2000",
    "RELAY_CLEANUP_INTERVAL_MS": "500",
    "RELAY_ADMISSION_TIMEOUT_MS": "1000",
    "RELAY_VALIDATE_CACHE_TTL": "2",
    "RELAY_JWKS_COOLDOWN": "1",
    "RELAY_JWKS_CACHE_TTL": "10",
    "RELAY_MAX_PENDING_BYTES": "1000000",
    "RELAY_RUNTIME_RATE_PER_MINUTE": "6000",
}

#: Reasons at level error that the faults of this test cause.
EXPECTED = (
    "PLATFORM_UNREACHABLE", "VALIDATION_RESPONSE_INVALID", "ADMISSION_RESPONSE_TOO_LARGE", "JWKS_UNREACHABLE",
    "TOO_MANY_CONNECTIONS", "jwks_fetch_failed",
)  # fmt: skip

FAULTS: tuple[Mode, ...] = ("hang", "error", "nonsense", "cut", "flap", "deny", "slow", "huge")

#: Growth of resident memory that counts as flat after warm-up, bytes per minute.
FLAT = 1_000_000


class Soak:
    """The peers and their counts."""

    def __init__(self, relay: Relay, platform: FaultyPlatform, workspaces: int) -> None:
        self.relay = relay
        self.platform = platform
        self.workspaces = workspaces
        self.over = False
        self.seen: Counter[str] = Counter()
        self._requests = 0

    async def join(self, role: str, workspace: str, **claims: Any) -> Line | None:
        try:
            line = await Line.open(
                self.relay.port, role, workspace, self.platform.token(role, workspace, "t", **claims)
            )
        except (OSError, ConnectionError, asyncio.IncompleteReadError):
            self.seen[f"{role} refused"] += 1
            await asyncio.sleep(random.random())
            return None
        self.seen[f"{role} joined"] += 1
        return line

    async def daemon(self, number: int) -> None:
        """A daemon that responds to each client, and leaves after a while in one of several ways."""
        generation = 0
        while not self.over:
            generation += 1
            line = await self.join(
                "workspace-daemon", f"w{number % self.workspaces}", daemonIssueGeneration=generation
            )
            if line is None:
                continue
            leave = time.monotonic() + random.expovariate(1 / 15)
            try:
                while not self.over and (left := leave - time.monotonic()) > 0:
                    try:
                        async with asyncio.timeout(left):
                            told = json.loads(await line.receive())
                    except TimeoutError:
                        break
                    if told["type"] == "relay_key_exchange_init":
                        line.send(kex_response(told["requestId"], f"s-{told['requestId']}"))
                    elif told["type"] == "e2ee":
                        line.send(json.dumps(told))
                        if random.random() < 0.02:
                            line.send("this is no frame")
                        if random.random() < 0.02:
                            line.send(e2ee("unknown-session"))
            except (OSError, asyncio.IncompleteReadError):
                self.seen["daemon closed by the relay"] += 1
            await self.leave(line)

    async def client(self, number: int) -> None:
        while not self.over:
            workspace = f"w{random.randrange(self.workspaces)}"
            line = await self.join("client", workspace, clientId=f"c{number}")
            if line is None:
                continue
            try:
                async with asyncio.timeout(random.expovariate(1 / 8) + 0.5):
                    await self._converse(line)
            except TimeoutError:
                pass
            except (OSError, asyncio.IncompleteReadError):
                self.seen["client closed by the relay"] += 1
            await self.leave(line)

    async def _converse(self, line: Line) -> None:
        self._requests += 1
        session = ""
        while not session:
            line.send(kex_init(f"r{self._requests}"))
            session = json.loads(await line.receive()).get("sessionId", "")
            if not session:
                await line.quiet(0.5)
        for seq in range(1, 1_000_000):
            size = random.choice((20, 200, 200, 2000, 20_000, 200_000))
            line.send(e2ee(session, seq, "x" * size))
            fate = random.random()
            if fate < 0.01:
                line.send("garbage")
            elif fate < 0.02:
                line.writer.write(masked_frame(TEXT, b'{"type":', fin=False))  # no answer: the client waits
                return
            elif fate < 0.03:
                line.writer.write(masked_frame(PING, b"p") * 50)
            elif fate < 0.035:
                line.writer.write(masked_frame(BINARY, os.urandom(100)))
            elif fate < 0.04:
                for more in range(40):  # sends requests and reads nothing
                    line.send(e2ee(session, seq + more, "y" * 60_000))
                await asyncio.sleep(4)
                return
            await line.receive()
            self.seen["round trips"] += 1
            await line.quiet(random.random() * 0.4)

    async def leave(self, line: Line) -> None:
        fate = random.random()
        try:
            if fate < 0.5:
                line.writer.write(masked_frame(CLOSE, b"\x03\xe8"))
            elif fate < 0.7:
                line.writer.transport.abort()
            elif fate < 0.75:
                await asyncio.sleep(random.random() * 8)  # no Close: the relay has to detect the loss
        except OSError:
            pass
        line.close()

    async def faults(self) -> None:
        """One fault after the other, each for a few seconds, with pauses of the same length."""
        while not self.over:
            await asyncio.sleep(6)
            self.platform.mode = random.choice(FAULTS)
            self.platform.keys_follow = random.random() < 0.3
            self.seen[f"platform: {self.platform.mode}"] += 1
            await asyncio.sleep(4)
            self.platform.mode = "ok"
            if random.random() < 0.3:
                self.platform.key = SigningKey.generate("ES256")
                self.seen["keys rotated"] += 1
            if random.random() < 0.3:
                self.relay.signal(signal.SIGHUP)
        self.platform.mode, self.platform.keys_follow = "ok", False


def held(relay: Relay, platform: FaultyPlatform) -> int:
    """The relay's descriptors, without kept-alive connections to the platform: their number varies."""
    to_platform = set()
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = row.split()
        if int(fields[2].rpartition(":")[2], 16) == platform.port:
            to_platform.add(f"socket:[{fields[9]}]")
    number = 0
    for path in Path(f"/proc/{relay.pid}/fd").iterdir():
        try:
            number += os.readlink(path) not in to_platform
        except OSError:
            pass  # closed in the meantime
    return number


def slope(samples: list[tuple[float, float]]) -> float:
    """Slope of the least squares line, per minute."""
    if len(samples) < 3:
        return 0.0
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return 60 * sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


async def soak(minutes: float, daemons: int, clients: int) -> dict[str, Any]:
    with FaultyPlatform() as platform, Relay(platform.environment() | SETTINGS) as relay:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, relay.wait)
        at_rest = held(relay, platform)
        run = Soak(relay, platform, daemons)
        tasks = [asyncio.create_task(run.daemon(n)) for n in range(daemons)]
        tasks += [asyncio.create_task(run.client(n)) for n in range(clients)]
        tasks.append(asyncio.create_task(run.faults()))
        began = time.monotonic()
        memory: list[tuple[float, float]] = []
        descriptors: list[tuple[float, float]] = []
        while (now := time.monotonic() - began) < minutes * 60:
            await asyncio.sleep(2)
            assert relay.process.poll() is None, relay.output()[-3000:]
            memory.append((now, relay.rss()))
            descriptors.append((now, held(relay, platform)))
            if int(now) % 60 < 2:
                print(f"{now:6.0f} s  {memory[-1][1] / 1e6:6.1f} MB  {descriptors[-1][1]:4.0f} descriptors  "
                      f"{run.seen['round trips']:,} round trips", flush=True)  # fmt: skip
        run.over = True
        platform.mode, platform.keys_follow = "ok", False
        await asyncio.sleep(1)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        broken = [repr(outcome) for outcome in outcomes if isinstance(outcome, Exception)]

        left: Any = "?"
        for _ in range(60):  # the slowest case is a peer that vanished behind a paused peer
            await asyncio.sleep(0.5)
            left = await loop.run_in_executor(None, relay.state)
            if not left and held(relay, platform) <= at_rest:
                break
        await asyncio.sleep(2)
        warm = [sample for sample in memory if sample[0] > minutes * 60 * 0.4]
        busy = [sample for sample in descriptors if sample[0] > minutes * 60 * 0.4]
        figures: dict[str, Any] = {
            "minutes": minutes,
            "peers": daemons + clients,
            "seen": dict(run.seen.most_common()),
            "memory_mb": [round(size / 1e6, 1) for _, size in memory[:: max(1, len(memory) // 20)]],
            "memory_slope_kb_per_minute": round(slope(warm) / 1e3, 1),
            "memory_at_the_end_mb": round(relay.rss() / 1e6, 1),
            "descriptors_slope_per_minute": round(slope(busy), 2),
            "descriptors_at_rest": at_rest,
            "descriptors_at_the_end": held(relay, platform),
            "targets_left": left,
            "log_lines": len(relay.entries()),
            "unhandled": [entry.get("message", "")[:400] for entry in relay.errors(*EXPECTED)],
            "broken_peers": broken[:5],
        }
        figures["exit_status"] = relay.stop()
        figures["flat"] = (
            figures["memory_slope_kb_per_minute"] * 1e3 < FLAT
            and figures["descriptors_at_the_end"] <= at_rest + 1
            and not left
            and not figures["unhandled"]
            and not broken
            and figures["exit_status"] == 0
        )
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--daemons", type=int, default=120)
    parser.add_argument("--clients", type=int, default=240)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    figures = asyncio.run(soak(options.minutes, options.daemons, options.clients))
    for name, value in figures.items():
        print(f"{name:28} {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(0 if figures["flat"] else 1)


if __name__ == "__main__":
    main()
