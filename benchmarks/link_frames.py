"""Load over Noise links: the relay's CPU per frame from a client to a daemon. `run.py` uses it for the `links` cells.

    python benchmarks/link_frames.py --port N --pid N --tokens FILE --size BYTES [--window N] [--links both] [--count N]

The generator is Python with noiseprotocol, because the one in C has no Noise. All frames are encrypted and masked
before the clock starts, and decrypted and compared after it has stopped. Only the relay's CPU counts, of all its
threads, in nanoseconds of the scheduler (/proc/PID/task/TID/schedstat). With a relay that ends TLS, `--port` is that
of a TLS client in front of it.

| --links | client | daemon | what the relay does |
| --- | --- | --- | --- |
| none | plain | plain | |
| client | link | plain | decrypts |
| daemon | plain | link | encrypts |
| both | link | link | decrypts and encrypts |
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import select
import socket
import struct
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

from attrs import define

from viewport_relay.peer.link import SUBPROTOCOL, LinkInitiator, LinkSettings, generate_static

HOST = "127.0.0.1"
DAEMON, CLIENT = "workspace-daemon", "client"
LINKS = {"none": (), "client": (CLIENT,), "daemon": (DAEMON,), "both": (DAEMON, CLIENT)}
PATIENCE = 60.0
BYTES = 200_000_000  # of one measurement
FRAMES_MOST = 25_000


def cpu(pid: int) -> float:
    """CPU seconds of all threads of a process."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def relay_key(port: int) -> bytes:
    """The relay's published static key."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{HOST}:{port}/.well-known/viewport-relay.json", timeout=PATIENCE) as answer:
        return base64.urlsafe_b64decode(json.load(answer)["noisePublicKey"] + "=")


# -- a minimal peer --------------------------------------------------------------------------------------------


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's WebSocket frame (RFC 6455 section 5.2)."""
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
    """Payloads of a server's WebSocket frames."""
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
    """One connection, with or without a link."""

    sock: socket.socket
    link: LinkInitiator | None

    @classmethod
    def join(cls, port: int, entry: list[str], public: bytes | None) -> Peer:
        """`entry` is role, workspace, target and token; `public` is the relay's key, None for no link."""
        role, workspace, target, token = entry
        sock = socket.create_connection((HOST, port), PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        query = urlencode({"role": role, "workspaceId": workspace, "runtimeTargetId": target})
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
            head += sock.recv(1)  # byte by byte: the frame parser must get the bytes behind the head
        if b" 101 " not in head:
            raise SystemExit(f"not admitted: {head.decode()}")
        if public is None:
            return cls(sock, None)
        link = LinkInitiator(LinkSettings(public, generate_static(), role, workspace, target))
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


def measure(daemon: Peer, client: Peer, pid: int, size: int, window: int, count: int) -> dict[str, float]:
    """The relay's CPU for `count` frames of `size` bytes, with at most `window` in flight."""
    chunks = [
        b"".join(client.prepared(frame_of(size, seq)) for seq in range(at, min(at + window, count)))
        for at in range(0, count, window)
    ]
    length = delivered_length(size, daemon.link is not None)
    time.sleep(0.2)  # both have joined
    got = bytearray()
    due = 0
    client.sock.setblocking(False)
    daemon.sock.setblocking(False)
    before = cpu(pid)
    for number, chunk in enumerate(chunks):
        due += min(window, count - number * window) * length
        move(client.sock, chunk, daemon.sock, got, due)
    used = cpu(pid) - before
    arrived = sum(
        daemon.opened(bytes(message)) == frame_of(size, seq)
        for seq, message in enumerate(unframed(memoryview(got)))
    )
    if arrived != count:
        raise SystemExit("what arrived is not what was sent: the figures would mean nothing")
    return {"delivered": count, "cpu_s": used, "cpu_s_per_100k": used / count * 100_000}


def move(sender: socket.socket, data: bytes, receiver: socket.socket, got: bytearray, due: int) -> None:
    """Send `data`, and receive until `got` has `due` bytes."""
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
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument(
        "--tokens", type=Path, required=True, help="what mint.py wrote; the first pair is used"
    )
    parser.add_argument("--size", type=int, required=True, help="bytes of a whole frame")
    parser.add_argument("--window", type=int, default=1, help="frames in flight")
    parser.add_argument("--links", choices=LINKS, default="both")
    parser.add_argument("--count", type=int, help=f"frames [{BYTES} bytes of them, at most {FRAMES_MOST}]")
    options = parser.parse_args()
    entries = [line.split("\t") for line in options.tokens.read_text().splitlines()[:2]]
    linked = LINKS[options.links]
    public = relay_key(options.port) if linked else None
    peers = {
        entry[0]: Peer.join(options.port, entry, public if entry[0] in linked else None) for entry in entries
    }
    count = options.count or min(FRAMES_MOST, BYTES // options.size)
    print(json.dumps(measure(peers[DAEMON], peers[CLIENT], options.pid, options.size, options.window, count)))


if __name__ == "__main__":
    main()
