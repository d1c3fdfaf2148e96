"""The table of attacks: effects of each on a bystander, on the relay's memory and on its log.

    python -m tests.hostile.table [--seconds 3] [--road plain] [--attack json_20] [--code DIRECTORY]

`--code` (repeatable) is another source tree of the relay to measure in the same run. Limits are those of production.
Attackers' addresses start at 127.0.1.1; the bystander's is 127.0.0.1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.drill.certificates import Identity
from tests.drill.peer import Closed, Peer, e2ee
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay
from tests.hostile import swarm
from tests.hostile.attack import TARGET, WORKSPACE

ROOT: Final = Path(__file__).parents[2]

#: Road -> settings; "codec" turns the fast path off.
ROADS: Final[dict[str, dict[str, str]]] = {
    "plain": {}, "tls": {}, "workers": {"RELAY_WORKERS": "2"}, "codec": {"RELAY_FAST_PATH": "0"},
}  # fmt: skip

#: Attack -> its module and its arguments after PORT and SECONDS; other attacks are kinds of swarm.py.
PIPELINED: Final = {"pipelined_100": ("100", "1"), "pipelined_500": ("500", "6")}
ATTACKS: Final = (*PIPELINED, *swarm.KINDS)

#: The relay's default limits, which drills turn off.
PRODUCTION: Final = {
    "RELAY_RATE_LIMIT_PER_IP": "120",
    "RELAY_MAX_CONNECTIONS_PER_IP": "50",
    "RELAY_MAX_TOTAL_CONNECTIONS": "2000",
    "RELAY_RUNTIME_RATE_PER_MINUTE": "240",
    "RELAY_RUNTIME_RATE_PER_MINUTE_WORKSPACE": "1200",
    "RELAY_DAEMON_RUNTIME_RATE_PER_MINUTE": "2400",
    "RELAY_KEX_INIT_RATE_PER_MINUTE": "60",
    "RELAY_PAIRING_RATE_PER_MINUTE": "30",
}


#: Loaded by the relay's Python at start: writes the longest CPU time between two polls of the sockets to a file, in
#: seconds.
PROBE: Final = """
import mmap, struct, time
import twisted.internet.epollreactor as reactor
with open({path!r}, "r+b") as file:
    longest = mmap.mmap(file.fileno(), 8)
class Probe:
    def __init__(self, *arguments):
        self.epoll, self.began = made(*arguments), None
        self.register, self.modify, self.unregister = self.epoll.register, self.epoll.modify, self.epoll.unregister
        self.fileno, self.close = self.epoll.fileno, self.epoll.close
    def poll(self, *arguments):
        if self.began is not None:
            taken = time.thread_time() - self.began
            if taken > struct.unpack("d", longest[:8])[0]:
                longest[:8] = struct.pack("d", taken)
        found = self.epoll.poll(*arguments)
        self.began = time.thread_time()
        return found
made, reactor.epoll = reactor.epoll, Probe
"""


@dataclass(frozen=True)
class Row:
    """One attack on one road. Times in milliseconds, memory in bytes."""

    attack: str
    road: str
    events: str
    quiet: list[float]
    taken: list[float]
    memory: int
    longest: float  # longest CPU time between two polls of the (parent) process
    cpu: float  # CPU seconds of all its processes, per second of the attack
    logs_ms: float  # time of GET /logs during the attack; infinite without a response
    lines: int  # lines of the log
    logged: Counter[str]  # reason or event -> entries, folded ones counted
    kept: bool  # /logs still has the bystander's entries from before the attack
    alive: bool  # the bystander's connections and the process still exist
    errors: list[dict[str, Any]]

    def __str__(self) -> str:
        told = ", ".join(f"{name} {number:,}" for name, number in self.logged.most_common(4)) or "nothing"
        return (
            f"{self.attack:14} {self.road:8} {self.events:>9} | p50 {at(self.quiet, 0.5):6.1f} -> {at(self.taken, 0.5):7.1f} ms, "
            f"p99 {at(self.quiet, 0.99):6.1f} -> {at(self.taken, 0.99):7.1f} ms | turn {self.longest:6.1f} ms, "
            f"CPU {self.cpu * 100:3.0f} % | +{self.memory / 1e6:6.1f} MB | "
            f"/logs {self.logs_ms:6.0f} ms | {self.lines:,} lines: {told}"
            f"{'' if self.kept else ' | EARLIER ENTRIES GONE'}{'' if self.alive else ' | BYSTANDER CLOSED'}"
        )


def at(taken: list[float], part: float) -> float:
    """The quantile of sorted times; infinite for an empty list."""
    return taken[min(len(taken) - 1, int(len(taken) * part))] if taken else float("inf")


def round_trips(daemon: Peer, client: Peer, seconds: float, first: int) -> tuple[list[float], bool]:
    """Round trips, at most 30 a second: within the client's rate. False: a connection has ended."""
    taken: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        text = e2ee(client.session, first + len(taken), "x" * 500)
        began = time.perf_counter()
        try:
            client.send(text)
            daemon.text()
            daemon.send(text)
            client.text()
        except (OSError, Closed):
            return sorted([*taken, (time.perf_counter() - began) * 1000]), False
        taken.append((time.perf_counter() - began) * 1000)
        time.sleep(0.033)
    return sorted(taken), True


def tree(pid: int) -> Iterator[int]:
    """PIDs of a process and its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from tree(int(child))


def resident(pid: int) -> int:
    """Resident bytes of a process and its descendants; a process that ended counts as 0."""
    size = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for each in tree(pid):
            size += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return size


def cpu(pid: int) -> float:
    """CPU seconds of a process and its descendants."""
    ticks = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for each in tree(pid):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def peak_of(pid: int) -> Iterator[list[int]]:
    """The highest resident size while the block runs, as the only item of a list."""
    most, over = [resident(pid)], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], resident(pid))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield most
    finally:
        over.set()
        watching.join()


def time_of_logs(relay: Relay, found: list[float]) -> None:
    began = time.perf_counter()
    with contextlib.suppress(OSError):
        if relay.http("/logs")[0] == 200:
            found.append((time.perf_counter() - began) * 1000)


def measure(platform: FaultyPlatform, attack: str, road: str, seconds: float, code: Path = ROOT) -> Row:
    """Start a relay, attack it for `seconds`, and measure a pair of another workspace and address."""
    with tempfile.TemporaryDirectory() as folder:
        settings = PRODUCTION | ROADS[road] | platform.environment()
        ca, context = "-", None
        if road == "tls":
            authority = Identity.self_signed("test CA")
            server = authority.issue("server", "localhost").write(Path(folder), "server")
            settings |= {"RELAY_TLS_CERT_PATH": server.cert, "RELAY_TLS_KEY_PATH": server.key}
            ca, context = authority.write(Path(folder), "ca").cert, authority.context()
        longest = Path(folder) / "longest"
        longest.write_bytes(bytes(8))
        probe = PROBE.format(path=str(longest))
        with Relay(settings, tls=context, code=code, before=probe + _whose(code)) as relay:
            relay.wait()
            return _attacked(relay, platform, attack, road, seconds, ca, longest)


def _whose(code: Path) -> str:
    """Python code that ends the relay at once if it would run another tree's code."""
    return f"import viewport_relay\nassert viewport_relay.__file__.startswith({str(code.resolve()) + '/'!r}), viewport_relay.__file__"


def _attacked(
    relay: Relay, platform: FaultyPlatform, attack: str, road: str, seconds: float, ca: str, longest: Path
) -> Row:
    daemon = Peer.daemon(relay, platform, "steady", "t")
    client = Peer.client(relay, platform, "steady", "t")
    client.converse(daemon)
    quiet, _ = round_trips(daemon, client, 1.0, 1)
    before, known = resident(relay.pid), len(relay.entries())
    command = [sys.executable, "-B", "-m"]
    if attack in PIPELINED:
        files = [] if ca == "-" else [ca]
        command += [
            "tests.hostile.pipelining",
            str(relay.port),
            str(round(seconds + 1)),
            *PIPELINED[attack],
            *files,
        ]
    else:
        command += ["tests.hostile.swarm", attack, str(relay.port), str(seconds + 1), ca]
        command += [_token(platform, attack) for _ in range(46)]
    logs: list[float] = []
    with longest.open("r+b") as file:
        file.write(bytes(8))
    used, began = cpu(relay.pid), time.monotonic()
    with peak_of(relay.pid) as most:
        attackers = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            time.sleep(0.7)
            asking = threading.Thread(target=time_of_logs, args=(relay, logs))
            asking.start()
            taken, alive = round_trips(daemon, client, seconds, 1000)
            used, began = cpu(relay.pid) - used, time.monotonic() - began
            said, _ = attackers.communicate(timeout=seconds + 20)
            asking.join(30)
        finally:
            attackers.kill()
            attackers.wait()
    entries = [entry for entry in relay.entries()[known:] if entry["event"] not in ("join", "leave")]
    logged: Counter[str] = Counter()
    for entry in entries:
        details = entry.get("details", {})
        folded = entry["event"] == "folded"
        logged[str(entry.get("reason") or entry["event"])] += details.get("count", 1) if folded else 1
    kept = b"join" in relay.http("/logs?workspaceId=steady")[1]
    alive = alive and relay.process.poll() is None
    return Row(
        attack, road, said.strip() if attack not in PIPELINED else _answers(said), quiet, taken, max(0, most[0] - before),
        struct.unpack("d", longest.read_bytes())[0] * 1000, used / began, logs[0] if logs else float("inf"), len(entries), logged, kept, alive, relay.errors(),
    )  # fmt: skip


def _answers(said: str) -> str:
    return said.strip().replace('"', "").strip("{}") or "none"


def _token(platform: FaultyPlatform, attack: str) -> str:
    if attack == "presence":
        return platform.token(
            "client", WORKSPACE, TARGET, scope="session-events", sessionChannels=[swarm.CHANNEL]
        )
    if attack == "other_target":
        return platform.token("client", "steady", "other")
    return platform.token("client", WORKSPACE, TARGET)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.table")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--road", action="append", choices=ROADS)
    parser.add_argument("--attack", action="append", choices=ATTACKS)
    parser.add_argument("--code", action="append", type=Path, default=[])
    options = parser.parse_args()
    with FaultyPlatform() as platform:
        for road in options.road or ROADS:
            for attack in options.attack or ATTACKS:
                for code in (*options.code, ROOT):
                    name = (
                        "" if len(options.code) == 0 else ("this  " if code == ROOT else f"{code.name[-5:]} ")
                    )
                    try:
                        print(name + str(measure(platform, attack, road, options.seconds, code)), flush=True)
                    except Exception as error:  # a tree that does not survive an attack also gets a row
                        print(
                            f"{name}{attack:14} {road:8} failed: {type(error).__name__}: {str(error)[:200]}",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
