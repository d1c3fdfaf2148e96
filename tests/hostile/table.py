"""The table of attacks: effects of each on a bystander, on the relay's memory and on its log.

    python -m tests.hostile.table [--seconds 3] [--road plain] [--attack json_20] [--code DIRECTORY] [--realtime]

Roads: plain TCP, TLS, two workers, no fast path, and the listener for operators.

A bystander is measured three times in the same run: without the attack; while the same attack hits another relay of the same code on
this machine, which is what the machine's load alone does; and while it hits the bystander's own relay. `--code`, which may be given
more than once, is a tree of the relay to measure beside this one, in the same run. Limits are those of production. Attackers come from
127.0.1.1 on, with a lower priority, for they stand for other machines; the bystander comes from 127.0.0.1. With `--realtime` (as
root) relays and bystander run before everything else on this machine (SCHED_FIFO), so that a time has no wait for a processor in it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
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
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from tests.drill.certificates import Identity
from tests.drill.peer import Closed, Peer, e2ee
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay
from tests.hostile import swarm
from tests.hostile.attack import ON_TLS, TARGET, WORKSPACE
from tests.ports import free_port

ROOT: Final = Path(__file__).parents[2]

#: Road -> settings; "codec" turns the fast path off, "admin" attacks the listener for operators.
ROADS: Final[dict[str, dict[str, str]]] = {
    "plain": {}, "tls": {}, "workers": {"RELAY_WORKERS": "2"}, "codec": {"RELAY_FAST_PATH": "0"}, "admin": {},
}  # fmt: skip

#: Attack -> its module and its arguments after PORT and SECONDS; other attacks are kinds of swarm.py.
PIPELINED: Final = {"pipelined_100": ("100", "1"), "pipelined_500": ("500", "6")}

#: Round trips of the bystander in a second.
PER_SECOND: Final = 200

#: Round trips of one pair within a minute: fewer than RELAY_RUNTIME_RATE_PER_MINUTE.
PER_PAIR: Final = 200

ATTACKS: Final = (*PIPELINED, *swarm.KINDS)

#: Attacks of each road that has not all of them: those that need no peer; those that send frames, which the codec reads.
ONLY: Final = {
    "admin": {*PIPELINED, "admin_tokens", "connects"},
    "codec": {"json_50", "fragments", "half_frames", "presence", "ping_flood", "fragment_flood", "small_fragments", "garbage_frames"},
}  # fmt: skip

#: Every attack on each of its roads.
ROWS: Final = [
    (attack, road)
    for road in ROADS
    for attack in ATTACKS
    if attack in ONLY.get(road, ATTACKS) and (road == "tls" or attack not in ON_TLS)
]

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


@frozen
class Row:
    """One attack on one road. Times in milliseconds, memory in bytes."""

    attack: str
    road: str
    events: str
    quiet: list[float]
    beside: list[float]  # while the attack hits another relay
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
            f"{self.attack:14} {self.road:8} {self.events:>9} | p50 {_three(self, 0.5)} ms, "
            f"p99 {_three(self, 0.99)} ms | turn {self.longest:6.1f} ms, "
            f"CPU {self.cpu * 100:3.0f} % | +{self.memory / 1e6:6.1f} MB | "
            f"/logs {self.logs_ms:6.0f} ms | {self.lines:,} lines: {told}"
            f"{'' if self.kept else ' | EARLIER ENTRIES GONE'}{'' if self.alive else ' | BYSTANDER CLOSED'}"
        )


def _three(row: Row, part: float) -> str:
    return " -> ".join(f"{at(taken, part):5.1f}" for taken in (row.quiet, row.beside, row.taken))


def at(taken: list[float], part: float) -> float:
    """The quantile of sorted times; infinite for an empty list."""
    return taken[min(len(taken) - 1, int(len(taken) * part))] if taken else float("inf")


@contextmanager
def first() -> Iterator[None]:
    """With `--realtime`, let this thread run before the relay too: the bystander stands for another machine."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    if before[0] == os.SCHED_FIFO:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(before[1].sched_priority + 1))
    yield
    os.sched_setscheduler(0, *before)


class Bystander:
    """Pairs of a daemon and a client, which ask one after the other: so many that each stays within its client's rate."""

    def __init__(self, relay: Relay, platform: FaultyPlatform, number: int) -> None:
        self._pairs = []
        self._asked = itertools.count(1)
        for n in range(number):
            workspace = f"steady{n}" if n else "steady"
            pair = Peer.daemon(relay, platform, workspace, "t"), Peer.client(relay, platform, workspace, "t")
            pair[1].converse(pair[0])
            self._pairs.append(pair)

    def round_trips(self, seconds: float) -> tuple[list[float], bool]:
        """Milliseconds of each question and its answer, sorted; `PER_SECOND` of them at most. False: a connection has ended."""
        with first():
            return self._round_trips(seconds)

    def _round_trips(self, seconds: float) -> tuple[list[float], bool]:
        taken: list[float] = []
        began = time.monotonic()
        for number, (daemon, client) in enumerate(itertools.cycle(self._pairs)):
            time.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
            if time.monotonic() >= began + seconds:
                return sorted(taken), True
            text = e2ee(client.session, next(self._asked), "x" * 500)
            sent = time.perf_counter()
            try:
                client.send(text)
                daemon.text()
                daemon.send(text)
                client.text()
            except (OSError, Closed):
                return sorted([*taken, (time.perf_counter() - sent) * 1000]), False
            taken.append((time.perf_counter() - sent) * 1000)
        raise AssertionError("no pairs")


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


def forget_peak(pid: int) -> None:
    """Let the kernel note the highest resident size anew: a thread here that asked again and again would delay the bystander."""
    for each in tree(pid):
        Path(f"/proc/{each}/clear_refs").write_text("5")


def peak(pid: int) -> int:
    """The highest resident bytes of a process and its descendants since `forget_peak`, each at its own time."""
    size = 0
    for each in tree(pid):
        status = Path(f"/proc/{each}/status").read_text()
        size += int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return size


def time_of_logs(relay: Relay, port: int | None, found: list[float]) -> None:
    began = time.perf_counter()
    with contextlib.suppress(OSError):
        if relay.http("/logs", port=port)[0] == 200:
            found.append((time.perf_counter() - began) * 1000)


def measure(
    platform: FaultyPlatform,
    attack: str,
    road: str,
    seconds: float,
    code: Path = ROOT,
    *,
    beside: bool = True,
) -> Row:
    """Start a relay, attack it for `seconds`, and measure a pair of another workspace and address.

    `beside` False: without the same attack on another relay, in half the time.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = PRODUCTION | ROADS[road] | platform.environment()
        ca, context = "-", None
        if road == "tls":
            authority = Identity.self_signed("test CA")
            server = authority.issue("server", "localhost").write(Path(folder), "server")
            settings |= {"RELAY_TLS_CERT_PATH": server.cert, "RELAY_TLS_KEY_PATH": server.key}
            ca, context = authority.write(Path(folder), "ca").cert, authority.context()
        ports = [free_port(), free_port()] if road == "admin" else []
        listens = [{"RELAY_ADMIN_LISTEN": f"127.0.0.1:{port}"} for port in ports] or [{}, {}]
        longest = Path(folder) / "longest"
        longest.write_bytes(bytes(8))
        probe = PROBE.format(path=str(longest)) + _whose(code)
        with contextlib.ExitStack() as relays:
            relay = relays.enter_context(Relay(settings | listens[0], tls=context, code=code, before=probe))
            if beside:
                other = relays.enter_context(
                    Relay(settings | listens[1], tls=context, code=code, before=_whose(code))
                )
                other.wait()
            relay.wait()
            bystander = Bystander(relay, platform, 1 + int(3 * PER_SECOND * seconds / PER_PAIR))
            quiet, _ = bystander.round_trips(seconds)
            loaded = quiet
            if beside:
                port = ports[1] if ports else other.port
                with attackers(port, platform, attack, seconds, ca) as running:
                    loaded, _ = bystander.round_trips(seconds)
                    running.communicate(timeout=seconds + 20)
            port = ports[0] if ports else relay.port
            return _attacked(
                relay, port, platform, bystander, (quiet, loaded), attack, road, seconds, ca, longest
            )


def line(
    platform: FaultyPlatform, attack: str, road: str, seconds: float, code: Path, *, beside: bool = True
) -> str:
    """The row as text, also of a tree that does not survive the attack."""
    try:
        row = str(measure(platform, attack, road, seconds, code, beside=beside))
    except Exception as error:
        row = f"{attack:14} {road:8} failed: {type(error).__name__}: {str(error)[:200]}"
    return ("this   " if code == ROOT else f"{code.name[:6]:6} ") + row


def _whose(code: Path) -> str:
    """Python code that ends the relay at once if it would run another tree's code."""
    return f"import viewport_relay\nassert viewport_relay.__file__.startswith({str(code.resolve()) + '/'!r}), viewport_relay.__file__"


@contextmanager
def attackers(
    port: int, platform: FaultyPlatform, attack: str, seconds: float, ca: str
) -> Iterator[subprocess.Popen[str]]:
    """The process of an attack that goes on for `seconds` and a little more. It has been at work for a while when the block begins."""
    command = ["chrt", "--other", "0", "nice", "-n", "10", sys.executable, "-B", "-m"]
    if attack in PIPELINED:
        files = [] if ca == "-" else [ca]
        command += [
            "tests.hostile.pipelining",
            str(port),
            str(round(seconds + 1)),
            *PIPELINED[attack],
            *files,
        ]
    else:
        command += ["tests.hostile.swarm", attack, str(port), str(seconds + 1), ca]
        command += [_token(platform, attack) for _ in range(46)]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(0.7)
        yield running
    finally:
        running.kill()
        running.wait()


def _attacked(
    relay: Relay,
    port: int,
    platform: FaultyPlatform,
    bystander: Bystander,
    before: tuple[list[float], list[float]],
    attack: str,
    road: str,
    seconds: float,
    ca: str,
    longest: Path,
) -> Row:
    """`before`: the bystander's round trips without the attack, and while it hit another relay."""
    size, known = resident(relay.pid), len(relay.entries())
    logs: list[float] = []
    operators = port if road == "admin" else None
    with longest.open("r+b") as file:
        file.write(bytes(8))
    used, began = cpu(relay.pid), time.monotonic()
    forget_peak(relay.pid)
    with attackers(port, platform, attack, seconds, ca) as running:
        taken, alive = bystander.round_trips(seconds)
        used, began = cpu(relay.pid) - used, time.monotonic() - began
        turn = struct.unpack("d", longest.read_bytes())[0] * 1000
        asking = threading.Thread(target=time_of_logs, args=(relay, operators, logs))
        asking.start()
        said, _ = running.communicate(timeout=seconds + 20)
        asking.join(30)
        most = peak(relay.pid)
    entries = [entry for entry in relay.entries()[known:] if entry["event"] not in ("join", "leave")]
    logged: Counter[str] = Counter()
    for entry in entries:
        details = entry.get("details", {})
        folded = entry["event"] == "folded"
        logged[str(entry.get("reason") or entry["event"])] += details.get("count", 1) if folded else 1
    kept = b"join" in relay.http("/logs?workspaceId=steady", port=operators)[1]
    alive = alive and relay.process.poll() is None
    return Row(
        attack, road, said.strip() if attack not in PIPELINED else _answers(said), *before, taken, max(0, most - size),
        turn, used / began, logs[0] if logs else float("inf"), len(entries), logged, kept, alive, relay.errors(),
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
    parser.add_argument("--realtime", action="store_true")
    options = parser.parse_args()
    if options.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with FaultyPlatform() as platform:
        for attack, road in ROWS:
            if road in (options.road or ROADS) and attack in (options.attack or ATTACKS):
                for code in (*options.code, ROOT):
                    print(line(platform, attack, road, options.seconds, code), flush=True)


if __name__ == "__main__":
    main()
