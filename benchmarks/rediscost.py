"""CPU time of Redis for each command of the backplane, measured with a separate redis-server.

    python benchmarks/rediscost.py > benchmarks/results/redis/DATE.json

The commands are the relay's own (viewport_relay/backplane/rediscommands.py). Each figure is Redis's CPU time (user
and system, INFO cpu) divided by the number of calls, in microseconds: `alone`, with one command per read of Redis, as
from many relays with little traffic; and `pipelined`, with a hundred per read, as from few relays with much traffic.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hiredis
from machine import machine
from relays import free_port

from viewport_relay.backplane.interface import SeatClaim
from viewport_relay.backplane.rediscommands import Commands

PIPELINES = {"alone": 1, "pipelined": 100}
#: Commands of one filling of the keys.
AT_ONCE = 100
DAEMONS = 10_000
TTL_MS = 45_000
COMMANDS = Commands("viewport:relay", "relay-a", TTL_MS, 10_000)
ENTRY = json.dumps({
    "relayId": "relay-a", "relayWsBaseUrl": "wss://relay-a.example", "daemonConnected": True, "runtimeTargetId": "target-1",
    "machineId": "machine-1", "updatedAtMs": 1_700_000_000_000,
}).encode()  # fmt: skip
SIGNATURE = "s" * 60
CLAIM = SeatClaim(1, 1_700_000_000_000)


class Redis:
    """A connection that writes pipelines and reads their replies."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), 10)
        self._reader = hiredis.Reader()

    def run(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        self._sock.sendall(b"".join(hiredis.pack_command(tuple(command)) for command in commands))
        answers: list[Any] = []
        while len(answers) < len(commands):
            self._reader.feed(self._sock.recv(1_048_576))
            while (answer := self._reader.gets()) is not False:
                if isinstance(answer, Exception):
                    raise answer
                answers.append(answer)
        return answers

    def cpu(self) -> float:
        [found] = self.run([("INFO", "cpu")])
        fields = dict(line.split(b":") for line in found.split(b"\r\n") if b":" in line)
        return float(fields[b"used_cpu_user"]) + float(fields[b"used_cpu_sys"])

    def memory(self) -> int:
        [found] = self.run([("INFO", "memory")])
        return int(found.partition(b"used_memory:")[2].split()[0])


def target(number: int) -> tuple[str, str]:
    return f"workspace-{number}", "target-1"


def measured(redis: Redis, commands: Sequence[Sequence[Any]], pipeline: int, seconds: float) -> float:
    """Microseconds of Redis's CPU per call of the commands, used in turn."""
    calls = 0
    before = redis.cpu()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        redis.run([commands[(calls + n) % len(commands)] for n in range(pipeline)])
        calls += pipeline
    return (redis.cpu() - before) / calls * 1e6


def kinds() -> dict[str, list[Sequence[Any]]]:
    """Name -> commands that are sent in turn."""
    daemons = [target(n) for n in range(DAEMONS)]
    found: dict[str, list[Sequence[Any]]] = {
        "announce": [COMMANDS.announce(one, ENTRY, SIGNATURE, CLAIM) for one in daemons],
        "renew": [COMMANDS.renew(one, ENTRY, SIGNATURE, CLAIM) for one in daemons],
        "resolve": [COMMANDS.resolve(one) for one in daemons],
        "mark": [COMMANDS.mark(b'{"instance":"0123456789","batches":1}')],
        "relays": [COMMANDS.relays()] * 100,
        "moved": [COMMANDS.moved()],
        "record_of": [COMMANDS.record_of("relay-a")],
        "idle pull": [("LPOP", COMMANDS.queue_key("relay-b"), 200)] * 2,  # a BLPOP that ends empty would wait
    }
    for frames in (1, 10, 50):
        push = COMMANDS.push("relay-a", [b"x" * (frames * (1024 + 200))])  # one element for a batch
        found[f"push and pull, {frames} of 1 KB"] = [*push, *COMMANDS.pull(1.0, 200)]
    return found


@contextmanager
def running() -> Iterator[Redis]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            for _ in range(200):
                try:
                    redis = Redis(port)
                    break
                except OSError:
                    time.sleep(0.05)
            yield redis
        finally:
            process.kill()
            process.wait()


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    costs: dict[str, dict[str, float]] = {how: {} for how in PIPELINES}
    with running() as redis:
        empty = redis.memory()
        wanted = kinds()
        for at in range(0, DAEMONS, AT_ONCE):
            redis.run(wanted["announce"][at : at + AT_ONCE])
        memory = (redis.memory() - empty) / DAEMONS
        for name, commands in wanted.items():
            for how, pipeline in PIPELINES.items():
                calls = len(commands) if "pull" in name else 1
                costs[how][name] = round(calls * measured(redis, commands, pipeline, seconds), 2)
    print(
        json.dumps(
            {
                "when": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()),
                "machine": machine(),
                "presence_bytes": round(memory),
                "us_of_redis": costs,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
