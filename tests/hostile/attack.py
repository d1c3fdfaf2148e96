"""Attackers, in a process of their own: `python -m tests.hostile.attack KIND PORT SECONDS [TOKEN…]`.

Each kind does one hostile thing as fast as it can over a few connections and says at the end how often it did it.
`attempts PORT NUMBER TOKEN` asks so many times to be let in, and says how often it got which status (JSON).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

from tests.drill.peer import CLOSE, PING, TEXT, Closed, Peer, Refused, frame, upgrade_request

_done = itertools.count()
_stop = threading.Event()


def join(port: int, token: str) -> Peer:
    query = {"role": "client", "workspaceId": "hostile", "runtimeTargetId": "t"}
    return Peer(port, query, {"Authorization": f"Bearer {token}"})


def flood(peer: Peer, data: bytes, events: int) -> None:
    """The same bytes again and again; whatever comes back is read and forgotten."""

    def read() -> None:
        with contextlib.suppress(OSError):
            while peer.sock.recv(1 << 20):
                pass

    threading.Thread(target=read, daemon=True).start()
    while not _stop.is_set():
        peer.raw(data)
        for _ in range(events):
            next(_done)


def ping_flood(port: int, token: str) -> None:
    flood(join(port, token), frame(PING, b"x" * 125) * 200, 200)


def ping_flood_unread(port: int, token: str) -> None:
    """Pings whose pongs are never read."""
    peer = join(port, token)
    peer.sock.settimeout(0.5)
    while not _stop.is_set():
        with contextlib.suppress(TimeoutError):
            peer.raw(frame(PING, b"x" * 125) * 50)
            for _ in range(50):
                next(_done)


def fragment_flood(port: int, token: str) -> None:
    peer = join(port, token)
    peer.raw(frame(TEXT, b"{", fin=False))
    flood(peer, frame(0, b"", fin=False) * 300, 300)


def small_fragments(port: int, token: str) -> None:
    peer = join(port, token)
    peer.raw(frame(TEXT, b"{", fin=False))
    flood(peer, frame(0, b"y", fin=False) * 300, 300)


def garbage_frames(port: int, token: str) -> None:
    flood(join(port, token), frame(TEXT, b'{"type":"e2ee","version":3' + b"[" * 900) * 60, 60)


def deep_frames(port: int, token: str) -> None:
    flood(join(port, token), frame(TEXT, b'{"type":' + b"[" * 50_000 + b"]" * 50_000 + b"}") * 2, 2)


def large_frames(port: int, token: str) -> None:
    flood(join(port, token), frame(TEXT, b'{"type":"none","x":"' + b"x" * 1_000_000 + b'"}'), 1)


def close_storm(port: int, token: str) -> None:
    """In and out again, in order or not."""
    while not _stop.is_set():
        with contextlib.suppress(Refused, Closed, OSError):
            peer = join(port, token)
            if random.random() < 0.5:
                peer.raw(
                    frame(CLOSE, random.choice([b"\x03\xe8", b"\x03\xe7", b"", b"x"]))
                    * random.randrange(1, 4)
                )
            peer.close()
            next(_done)


def bad_upgrades(port: int, token: str) -> None:
    while not _stop.is_set():
        with contextlib.suppress(OSError):
            with socket.create_connection(("127.0.0.1", port), 5) as sock:
                sock.sendall(
                    upgrade_request("/ws?role=client", {"Sec-WebSocket-Extensions": "permessage-deflate"})
                )
                sock.recv(1000)
            next(_done)


def bad_tokens(port: int, token: str) -> None:
    """Well-formed, signed by nobody: each costs a signature check."""
    head, body, signature = token.split(".")
    while not _stop.is_set():
        forged = f"{head}.{body}.{signature[:-8]}{os.urandom(6).hex()[:8]}"
        with contextlib.suppress(Refused, OSError):
            join(port, forged)
        next(_done)


def connects(port: int, token: str) -> None:
    """TCP connections that say nothing and go, some of them with a reset."""
    while not _stop.is_set():
        with contextlib.suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", port), 5)
            if random.random() < 0.3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            sock.close()
            next(_done)


def compression(port: int, token: str) -> None:
    """Offers of every kind, and then frames that say they are compressed: a bomb would be one of them."""
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
    while not _stop.is_set():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as sock:
            headers = {"Authorization": f"Bearer {token}", "Sec-WebSocket-Extensions": random.choice(offers)}
            sock.sendall(upgrade_request(f"/ws?{query}", headers))
            head = sock.recv(4000)
            assert b"xtensions" not in head, head
            sock.sendall(b"\xc1" + frame(TEXT, b"\x00" * 500)[1:])
            data = head
            while piece := sock.recv(4000):
                data += piece
                if b"\x88" in data:
                    break
            next(_done)


KINDS: dict[str, Callable[[int, str], None]] = {
    attack.__name__: attack
    for attack in (
        ping_flood, ping_flood_unread, fragment_flood, small_fragments, garbage_frames, deep_frames, large_frames,
        close_storm, bad_upgrades, bad_tokens, connects, compression,
    )
}  # fmt: skip


def attempt(port: int, token: str) -> int:
    """Its status; whoever is let in leaves at once. 0: no answer."""
    try:
        join(port, token).close()
    except Refused as refused:
        return refused.status
    except OSError:
        return 0
    return 101


def main() -> None:
    kind, port, seconds, *tokens = sys.argv[1:]
    if kind == "attempts":
        with ThreadPoolExecutor(8) as many:
            statuses = Counter(many.map(lambda _: attempt(int(port), tokens[0]), range(int(seconds))))
        print(json.dumps(statuses), flush=True)
        return

    def attack(token: str) -> None:
        while not _stop.is_set():
            with contextlib.suppress(OSError, Refused, Closed):
                KINDS[kind](int(port), token)

    for token in tokens:
        threading.Thread(target=attack, args=(token,), daemon=True).start()
    time.sleep(float(seconds))
    _stop.set()
    print(next(_done), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
