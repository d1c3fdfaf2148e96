"""What a frame costs the relay over links and without: CPU seconds per 100,000 relayed frames, and their ratios, as JSON.

    python benchmarks/link_frames.py [--repetitions 5] [--sizes 1024,65536] [--in-flight 32] [--fast-path 0]

A relay with its dev platform is started; one client feeds one daemon. Everything that the client sends is sealed and
masked before the clock starts, and what the daemon gets is opened and compared after it has stopped, so that the load
does not hold up the relay. CPU is user and system time of the relay's process, from /proc/PID/stat. The kinds take
turns within a repetition and ratios are taken there; shown are medians.

| kind | client | daemon | what the relay does |
| --- | --- | --- | --- |
| none | plain | plain | |
| client | link | plain | opens |
| daemon | plain | link | seals |
| both | link | link | opens and seals |
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from attrs import define, frozen
from machine import machine, versions
from relays import LIMITS

from viewport_relay.peer.link import SUBPROTOCOL, LinkInitiator, LinkSettings, generate_static

HOST = "127.0.0.1"
WORKSPACE = "dev-link"
ROLES = ("workspace-daemon", "client")
KINDS = {"none": (), "client": ("client",), "daemon": ("workspace-daemon",), "both": ROLES}
PATIENCE = 60.0
# The peers here answer no ping: none may come, and nobody is dropped for silence.
QUIET = dict.fromkeys(("RELAY_PING_INTERVAL_MS", "RELAY_IDLE_TIMEOUT_MS"), "86400000")
BYTES = 200_000_000  # relayed in one measurement: enough for clock ticks of 10 ms
FRAMES_MOST = 60_000


@frozen
class Relay:
    """A relay that runs, with the dev platform in the same process."""

    pid: int
    port: int
    platform: str
    credential: str

    def cpu(self) -> float:
        """Seconds of CPU that all its threads have used, by the scheduler's own count of nanoseconds."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

    def token(self, role: str, target: str) -> str:
        credential = self.credential
        if role == "workspace-daemon":
            path = f"{self.platform}/api/runtime/workspaces/{WORKSPACE}/daemon-key"
            credential = ask(path, runtimeTargetId=target, credential=credential)["daemonIssueToken"]
        token: str = ask(
            f"{self.platform}/api/runtime/relay-token",
            role=role,
            workspaceId=WORKSPACE,
            runtimeTargetId=target,
            credential=credential,
        )["relayToken"]
        return token


def ask(url: str, **body: str) -> Any:
    data = json.dumps(body).encode() if body else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with opener.open(request, timeout=PATIENCE) as answer:
        return json.load(answer)


@contextmanager
def running(fast_path: bool) -> Iterator[Relay]:
    credential = base64.b32encode(os.urandom(15)).decode()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RELAY_")},
        **LIMITS,
        **QUIET,
        "RELAY_LISTEN_PORT": "0",
        "RELAY_FAST_PATH": "1" if fast_path else "0",
        "DEV_CREDENTIAL": credential,
    }
    command = [
        "-c",
        "from twisted.scripts.twistd import run; run()",
        "-n",
        "--pidfile=",
        "viewport-relay",
        "--dev",
    ]
    process = subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        found: dict[str, Any] = {}
        for line in process.stdout:
            entry = json.loads(line)
            found[entry["event"]] = entry["details"]
            if {"dev_platform", "relay_started"} <= set(found):
                break
        else:
            raise SystemExit("the relay did not start")
        yield Relay(process.pid, found["relay_started"]["port"], found["dev_platform"]["url"], credential)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


# -- a peer, as small as it gets -------------------------------------------------------------------------------


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's frame (RFC 6455 section 5.2)."""
    length, key = len(payload), os.urandom(4)
    if length < 126:
        head = bytes((0x80 | opcode, 0x80 | length))
    elif length < 65_536:
        head = struct.pack("!BBH", 0x80 | opcode, 0xFE, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0xFF, length)
    mask = int.from_bytes((key * (length // 4 + 1))[:length], "big")
    return head + key + (int.from_bytes(payload, "big") ^ mask).to_bytes(length, "big")


def unframed(data: memoryview) -> Iterator[memoryview]:
    """The payloads of a server's frames."""
    at = 0
    while at < len(data):
        length, head = data[at + 1], 2
        if length >= 126:
            head = 4 if length == 126 else 10
            length = int.from_bytes(data[at + 2 : at + head], "big")
        yield data[at + head : at + head + length]
        at += head + length


@define
class Peer:
    """One connection, with a link or without."""

    sock: socket.socket
    link: LinkInitiator | None

    @classmethod
    def join(cls, relay: Relay, role: str, target: str, public: bytes | None) -> Peer:
        token = relay.token(role, target)
        sock = socket.create_connection((HOST, relay.port), PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        query = urlencode({"role": role, "workspaceId": WORKSPACE, "runtimeTargetId": target})
        lines = [
            f"GET /ws?{query} HTTP/1.1",
            f"Host: {HOST}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            f"Authorization: Bearer {token}",
            *([] if public is None else [f"Sec-WebSocket-Protocol: {SUBPROTOCOL}"]),
        ]
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(1)  # nothing comes behind it before we speak
        if b" 101 " not in head:
            raise SystemExit(f"not admitted: {head.decode()}")
        if public is None:
            return cls(sock, None)
        link = LinkInitiator(LinkSettings(public, generate_static(), role, WORKSPACE, target))
        sock.sendall(masked(2, link.message_1()))
        start = sock.recv(2)
        link.read_message_2(sock.recv(start[1], socket.MSG_WAITALL))
        sock.sendall(masked(2, link.confirm()))
        return cls(sock, link)

    def prepared(self, frame: bytes) -> bytes:
        return masked(1, frame) if self.link is None else masked(2, self.link.seal(frame))

    def opened(self, message: bytes) -> bytes:
        return message if self.link is None else self.link.open(message)


def frame_of(size: int, seq: int) -> bytes:
    """An e2ee frame of exactly `size` bytes."""
    members = {
        "type": "e2ee",
        "version": 2,
        "profile": "noise-ik",
        "sessionId": "s",
        "epoch": 1,
        "seq": seq + 1,
    }
    rest = {"iv": "aXZpdml2aXZpdg", "tag": "dGFndGFndGFndGFndGFndA", "ciphertext": ""}
    bare = json.dumps({**members, **rest}, separators=(",", ":"))
    return bare.replace('"ciphertext":""', f'"ciphertext":"{"x" * (size - len(bare))}"').encode()


def delivered_length(size: int, linked: bool) -> int:
    """Bytes on the wire of one frame to the daemon."""
    if linked:
        size += 18 * -(-size // 65_519)
    return size + (2 if size < 126 else 4 if size < 65_536 else 10)


# -- the measurement -------------------------------------------------------------------------------------------


def measure(relay: Relay, kind: str, size: int, in_flight: int, number: int) -> float:
    """CPU seconds per 100,000 frames of `size` bytes, never more than `in_flight` on their way."""
    count = min(FRAMES_MOST, BYTES // size)
    public = base64.urlsafe_b64decode(
        ask(f"http://{HOST}:{relay.port}/.well-known/viewport-relay.json")["noisePublicKey"] + "="
    )
    target = f"t-{number}"
    linked = KINDS[kind]
    daemon, client = (Peer.join(relay, role, target, public if role in linked else None) for role in ROLES)
    chunks = [
        b"".join(client.prepared(frame_of(size, seq)) for seq in range(at, min(at + in_flight, count)))
        for at in range(0, count, in_flight)
    ]
    length = delivered_length(size, "workspace-daemon" in linked)
    time.sleep(0.2)  # both have joined
    got = bytearray()
    due = 0
    client.sock.setblocking(False)
    daemon.sock.setblocking(False)
    before = relay.cpu()
    for number_of_chunk, chunk in enumerate(chunks):
        due += min(in_flight, count - number_of_chunk * in_flight) * length
        move(client.sock, chunk, daemon.sock, got, due)
    used = relay.cpu() - before
    arrived = sum(
        daemon.opened(bytes(message)) == frame_of(size, seq)
        for seq, message in enumerate(unframed(memoryview(got)))
    )
    if arrived != count:
        raise SystemExit(f"{kind}: what arrived is not what was sent: the figures would mean nothing")
    client.sock.close()
    daemon.sock.close()
    return used / count * 100_000


def move(sender: socket.socket, data: bytes, receiver: socket.socket, got: bytearray, due: int) -> None:
    """Send `data` and receive until `got` has `due` bytes."""
    rest = memoryview(data)
    while rest or len(got) < due:
        readable, writable, _ = select.select([receiver], [sender] if rest else [], [], PATIENCE)
        if not readable and not writable:
            raise SystemExit("nothing moves any more")
        if writable:
            rest = rest[sender.send(rest[:262_144]) :]
        if readable:
            piece = receiver.recv(1_048_576)
            if not piece:
                raise SystemExit("the relay closed the daemon")
            got += piece


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--sizes", default="1024,65536")
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--fast-path", choices=("0", "1"), default="1")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "fast_path": options.fast_path == "1",
        "in_flight": options.in_flight,
        "repetitions": options.repetitions,
        "frames": {},
    }
    with running(options.fast_path == "1") as relay:
        number = 0
        for size in map(int, options.sizes.split(",")):
            runs: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for repetition in range(-1, options.repetitions):  # the first one warms up
                for kind in KINDS:
                    number += 1
                    seconds = measure(relay, kind, size, options.in_flight, number)
                    if repetition >= 0:
                        runs[kind].append(seconds)
            result["frames"][str(size)] = {
                kind: {
                    "cpu_seconds_per_100k": round(statistics.median(seconds), 3),
                    "least": round(min(seconds), 3),
                    "most": round(max(seconds), 3),
                    "ratio_to_none": round(
                        statistics.median(
                            mine / base for mine, base in zip(seconds, runs["none"], strict=True)
                        ),
                        2,
                    ),
                }
                for kind, seconds in runs.items()
            }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
