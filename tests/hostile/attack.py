"""Floods over one connection: functions of (road, token) that run until the connection or the process ends.

`swarm.py` runs them. `python -m tests.hostile.attack PORT NUMBER TOKEN` makes NUMBER upgrade attempts, and prints the
number of responses by status (JSON).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import select
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import urlencode

from tests.drill.peer import CLOSE, PING, TEXT, Closed, Peer, Refused, dial, upgrade_request
from tests.tlsrecords import Records
from tests.wireframes import masked_frame

WORKSPACE: Final = "hostile"
TARGET: Final = "t"

#: Count of the attack's actions.
done = itertools.count()


class Road:
    """The way to the relay, from one of the attackers' addresses."""

    def __init__(self, port: int, tls: ssl.SSLContext | None, source: str) -> None:
        self.port, self.tls, self.source = port, tls, source

    def dial(self) -> socket.socket:
        return dial(self.port, self.tls, source=self.source)

    def join(
        self, token: str, receive_buffer: int = 0, workspace: str = WORKSPACE, target: str = TARGET
    ) -> Peer:
        query = {"role": "client", "workspaceId": workspace, "runtimeTargetId": target}
        headers = {"Authorization": f"Bearer {token}"}
        return Peer(
            self.port, query, headers, tls=self.tls, source=self.source, receive_buffer=receive_buffer
        )


def flood(peer: Peer, data: bytes, events: int) -> None:
    """Send the same bytes repeatedly; received bytes are read and dropped."""
    peer.sock.settimeout(1.0)
    while True:
        peer.raw(data)
        for _ in range(events):
            next(done)
        while select.select([peer.sock], [], [], 0)[0]:
            if not peer.sock.recv(1 << 20):
                return


def ping_flood(road: Road, token: str) -> None:
    flood(road.join(token), masked_frame(PING, b"x" * 125) * 200, 200)


def ping_flood_unread(road: Road, token: str) -> None:
    """Pings with unread pongs."""
    peer = road.join(token)
    peer.sock.settimeout(0.5)
    while True:
        with contextlib.suppress(TimeoutError):
            peer.raw(masked_frame(PING, b"x" * 125) * 50)
            for _ in range(50):
                next(done)


def fragment_flood(road: Road, token: str) -> None:
    peer = road.join(token)
    peer.raw(masked_frame(TEXT, b"{", fin=False))
    flood(peer, masked_frame(0, b"", fin=False) * 300, 300)


def small_fragments(road: Road, token: str) -> None:
    peer = road.join(token)
    peer.raw(masked_frame(TEXT, b"{", fin=False))
    flood(peer, masked_frame(0, b"y", fin=False) * 300, 300)


def garbage_frames(road: Road, token: str) -> None:
    flood(road.join(token), masked_frame(TEXT, b'{"type":"e2ee","version":3' + b"[" * 900) * 60, 60)


def deep_frames(road: Road, token: str) -> None:
    flood(road.join(token), masked_frame(TEXT, b'{"type":' + b"[" * 50_000 + b"]" * 50_000 + b"}") * 2, 2)


def large_frames(road: Road, token: str) -> None:
    flood(road.join(token), masked_frame(TEXT, b'{"type":"none","x":"' + b"x" * 1_000_000 + b'"}'), 1)


def close_storm(road: Road, token: str) -> None:
    """Connect and leave at once, with or without a Close."""
    while True:
        with contextlib.suppress(Refused, Closed, OSError):
            peer = road.join(token)
            if random.random() < 0.5:
                peer.raw(
                    masked_frame(CLOSE, random.choice([b"\x03\xe8", b"\x03\xe7", b"", b"x"]))
                    * random.randrange(1, 4)
                )
            peer.close()
            next(done)


def bad_upgrades(road: Road, token: str) -> None:
    while True:
        with contextlib.suppress(OSError):
            with road.dial() as sock:
                sock.sendall(
                    upgrade_request("/ws?role=client", {"Sec-WebSocket-Extensions": "permessage-deflate"})
                )
                sock.recv(1000)
            next(done)


def bad_tokens(road: Road, token: str) -> None:
    """Well-formed tokens with a wrong signature: each costs a signature check."""
    head, body, signature = token.split(".")
    while True:
        forged = f"{head}.{body}.{os.urandom(4).hex()}{signature[8:]}"
        with contextlib.suppress(Refused, OSError):
            road.join(forged)
        next(done)


def connects(road: Road, token: str) -> None:
    """TCP connections without a byte, some of them ended by a reset."""
    while True:
        with contextlib.suppress(OSError):
            sock = dial(road.port, source=road.source)
            if random.random() < 0.3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            sock.close()
            next(done)


def compression(road: Road, token: str) -> None:
    """Compression offers of every kind, then frames with the compression bit: one could be a decompression bomb."""
    offers = [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits, permessage-deflate; server_no_context_takeover",
        "permessage-deflate; server_max_window_bits=99",
        "x-webkit-deflate-frame",
        "permessage-bzip2",
        ";" * 100,
        "permessage-deflate, " * 200,
    ]
    query = urlencode({"role": "client", "workspaceId": "hostile", "runtimeTargetId": "t"})
    while True:
        with contextlib.suppress(OSError), road.dial() as sock:
            headers = {"Authorization": f"Bearer {token}", "Sec-WebSocket-Extensions": random.choice(offers)}
            sock.sendall(upgrade_request(f"/ws?{query}", headers))
            head = sock.recv(4000)
            assert b"xtensions" not in head, head
            sock.sendall(b"\xc1" + masked_frame(TEXT, b"\x00" * 500)[1:])
            data = head
            while piece := sock.recv(4000):
                data += piece
                if b"\x88" in data:
                    break
            next(done)


def encrypts(road: Road, token: str | None) -> tuple[socket.socket, Records]:
    """A connection over TLS, and what encrypts records for it: of an admitted peer, or without a token of a stranger."""
    assert road.tls is not None
    context = ssl.create_default_context(cadata=b"".join(road.tls.get_ca_certs(binary_form=True)))
    with open(os.memfd_create("keys")) as keys:  # a file in a folder would stay when this process is killed
        context.keylog_filename = f"/proc/self/fd/{keys.fileno()}"
        own = Road(road.port, context, road.source)
        sock = own.dial() if token is None else own.join(token).sock
        made = Records(keys.read().splitlines(), sent=0 if token is None else 1)
    sock.setblocking(True)
    return sock, made


def send_records(sock: socket.socket, records: list[bytes]) -> None:
    with contextlib.closing(sock):
        for at in range(0, len(records), 500):
            data = b"".join(records[at : at + 500])
            while data:
                data = data[os.write(sock.fileno(), data) :]
            for _ in records[at : at + 500]:
                next(done)


def key_updates(road: Road, token: str) -> None:
    """New keys, each of which asks for one in return, and no data."""
    sock, made = encrypts(road, token)
    send_records(sock, [made.key_update() for _ in range(5000)])


def key_updates_first(road: Road, token: str) -> None:
    """The same of a stranger, behind the handshake."""
    sock, made = encrypts(road, None)
    send_records(sock, [made.key_update() for _ in range(5000)])


def empty_records(road: Road, token: str) -> None:
    """Records of application data without any."""
    sock, made = encrypts(road, token)
    send_records(sock, [made.data(b"") for _ in range(20_000)])


def tiny_records(road: Road, token: str) -> None:
    """A message of 1 MiB, one byte in each record, again and again from its beginning."""
    sock, made = encrypts(road, token)
    frame = masked_frame(TEXT, b"[" * 1_048_576)
    send_records(sock, [made.data(frame[at : at + 1]) for at in range(40_000)])


def tiny_records_first(road: Road, token: str) -> None:
    """A request of a stranger, one byte in each record."""
    sock, made = encrypts(road, None)
    request = upgrade_request("/ws?role=client", {f"X-{n}": "x" * 900 for n in range(12)})
    send_records(sock, [made.data(bytes([byte])) for byte in request])


KINDS: Final[dict[str, Callable[[Road, str], None]]] = {
    attack.__name__: attack
    for attack in (
        ping_flood, ping_flood_unread, fragment_flood, small_fragments, garbage_frames, deep_frames, large_frames,
        close_storm, bad_upgrades, bad_tokens, connects, compression,
        key_updates, key_updates_first, empty_records, tiny_records, tiny_records_first,
    )
}  # fmt: skip

#: Floods of TLS records.
ON_TLS: Final = {"key_updates", "key_updates_first", "empty_records", "tiny_records", "tiny_records_first"}


def attempt(port: int, token: str) -> int:
    """Status of one upgrade attempt; an admitted peer leaves at once. 0: no response."""
    try:
        Road(port, None, "127.0.0.1").join(token).close()
    except Refused as refused:
        return refused.status
    except OSError:
        return 0
    return 101


def main() -> None:
    port, number, token = sys.argv[1:]
    with ThreadPoolExecutor(8) as many:
        statuses = Counter(many.map(lambda _: attempt(int(port), token), range(int(number))))
    print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
    main()
