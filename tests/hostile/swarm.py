"""Attacks with many connections, in a process of their own: `python -m tests.hostile.swarm KIND PORT SECONDS CA [TOKEN…]`.

CA is the file of a CA's certificate, for a relay that speaks TLS; "-" is plain TCP. The attackers come from 127.0.1.1 on.
At the end the process prints how often it did its hostile thing. It always ends after SECONDS.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from tests.drill.peer import TEXT, Closed, Peer, Refused, dial, frame, upgrade_request

WORKSPACE: Final = "hostile"
TARGET: Final = "t"
CHANNEL: Final = "agent-session:hostile"
MEGABYTE: Final = 1_048_576
VIEWERS: Final = 45

_done = itertools.count()


class Road:
    """The way to the relay, from one of the attackers' addresses."""

    def __init__(self, port: int, tls: ssl.SSLContext | None, source: str) -> None:
        self.port, self.tls, self.source = port, tls, source

    def dial(self) -> socket.socket:
        return dial(self.port, self.tls, source=self.source)

    def join(self, token: str, receive_buffer: int = 0) -> Peer:
        query = {"role": "client", "workspaceId": WORKSPACE, "runtimeTargetId": TARGET}
        headers = {"Authorization": f"Bearer {token}"}
        return Peer(
            self.port, query, headers, tls=self.tls, source=self.source, receive_buffer=receive_buffer
        )


def again(attack: Callable[[], None], pause: float = 0.02) -> None:
    """Attack until the process ends; a refusal or a close is followed by the next try."""
    while True:
        with contextlib.suppress(OSError, Refused, Closed):
            attack()
        time.sleep(pause)


def everywhere(number: int, attack: Callable[[], None], pause: float = 0.02) -> None:
    for _ in range(number):
        threading.Thread(target=again, args=(attack, pause), daemon=True).start()


def json_frames(road: Road, tokens: list[str], connections: int) -> None:
    """Frames of 1 MiB that cost much to parse, by connections with one token."""
    numbers = b"[" + b"1," * (MEGABYTE // 2 - 2) + b"1]"
    nested = b'{"type":"e2ee","x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001
    wires = [frame(TEXT, numbers), frame(TEXT, nested)]

    def attack() -> None:
        peer = road.join(tokens[0])
        with contextlib.closing(peer):
            for wire in itertools.cycle(wires):
                peer.raw(wire)
                next(_done)

    everywhere(connections, attack)


def json_20(road: Road, tokens: list[str]) -> None:
    json_frames(road, tokens, 20)


def json_50(road: Road, tokens: list[str]) -> None:
    json_frames(road, tokens, 50)


def presence(road: Road, tokens: list[str]) -> None:
    """Presence of 1 MiB to viewers that subscribe and do not read."""
    subscribe = f'{{"type":"viewport.session_events.subscribe/v1","channel":"{CHANNEL}"}}'
    kept = []
    for token in tokens[:VIEWERS]:
        viewer = road.join(token, receive_buffer=4096)
        viewer.send(subscribe)
        kept.append(viewer)
    start = f'{{"type":"viewport.session_viewer_presence/v1","channel":"{CHANNEL}","action":"joined","userId":"u","x":"'
    wire = frame(TEXT, (start + "x" * (MEGABYTE - len(start) - 2) + '"}').encode())

    def attack() -> None:
        with contextlib.closing(road.join(tokens[-1])) as peer:
            for _ in range(12):
                peer.raw(wire)
                next(_done)
            time.sleep(60)

    again(attack)


def ring(road: Road, tokens: list[str]) -> None:
    """Two kinds of refused upgrades, half each, from 200 addresses: entries that push others out."""
    forged = tokens[0].rpartition(".")[0] + ".AAAA"

    def attack() -> None:
        number = next(_done)
        one = Road(road.port, road.tls, f"127.0.1.{1 + number // 2 % 200}")
        headers = {"Authorization": f"Bearer {forged}"} if number % 2 else {}
        with contextlib.closing(one.dial()) as sock:
            sock.sendall(upgrade_request(f"/ws?role=client&workspaceId=w{os.urandom(4).hex()}", headers))
            sock.recv(4096)

    everywhere(8, attack, 0.0)


def admin_tokens(road: Road, tokens: list[str]) -> None:
    """Wrong admin tokens, one after the other on kept connections."""

    def attack() -> None:
        with contextlib.closing(road.dial()) as sock:
            while True:
                guess = os.urandom(16).hex()
                sock.sendall(
                    f"GET /logs HTTP/1.1\r\nHost: x\r\nX-Relay-Admin-Token: {guess}\r\n\r\n".encode()
                )
                if not sock.recv(65_536):
                    return
                next(_done)

    everywhere(20, attack)


def slow_peers(road: Road, tokens: list[str]) -> None:
    """Heads that drip, a byte at a time, on as many connections as one address may have."""

    def attack() -> None:
        with contextlib.closing(road.dial()) as sock:
            for byte in itertools.cycle(b"GET /ws HTTP/1.1\r\nHost: x"):
                sock.sendall(bytes([byte]))
                next(_done)
                time.sleep(0.01)

    everywhere(50, attack)


def forged_tokens(road: Road, tokens: list[str]) -> None:
    """Tokens of the right form and a wrong signature, from 14 addresses."""
    head, body, signature = tokens[0].split(".")

    def attack() -> None:
        one = Road(road.port, road.tls, f"127.0.1.{1 + next(_done) % 14}")
        one.join(f"{head}.{body}.{signature[:-8]}{os.urandom(4).hex()}").close()

    everywhere(14, attack, 0.0)


KINDS: Final[dict[str, Callable[[Road, list[str]], None]]] = {
    kind.__name__: kind
    for kind in (json_20, json_50, presence, ring, admin_tokens, slow_peers, forged_tokens)
}


def finish() -> None:
    """Print the count and end, without waiting for threads."""
    print(next(_done), flush=True)
    os._exit(0)


def main() -> None:
    kind, port, seconds, ca, *tokens = sys.argv[1:]
    signal.signal(signal.SIGALRM, lambda *_: finish())
    signal.setitimer(signal.ITIMER_REAL, float(seconds))
    tls = None if ca == "-" else ssl.create_default_context(cafile=ca)
    KINDS[kind](Road(int(port), tls, "127.0.1.1"), tokens)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
