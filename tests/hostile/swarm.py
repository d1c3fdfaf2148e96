"""Attacks with many connections, in a separate process: `python -m tests.hostile.swarm KIND PORT SECONDS CA [TOKEN…]`.

CA is the file of a CA's certificate, for a relay with TLS; "-" is plain TCP. The attackers' addresses start at
127.0.1.1. The process always ends after SECONDS, and prints the number of its attacking actions.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from tests.drill.peer import TEXT, Closed, Refused, e2ee, upgrade_request
from tests.hostile.attack import KINDS as FLOODS
from tests.hostile.attack import Road, done
from tests.wireframes import masked_frame

CHANNEL: Final = "agent-session:hostile"
MEGABYTE: Final = 1_048_576
VIEWERS: Final = 45

#: Number of attackers of a flood.
FLOODING: Final = 4


def again(attack: Callable[[], None], pause: float = 0.02) -> None:
    """Repeat an attack until the process ends, also after a refusal or a close."""
    while True:
        with contextlib.suppress(OSError, Refused, Closed):
            attack()
        time.sleep(pause)


def everywhere(number: int, attack: Callable[[], None], pause: float = 0.02) -> None:
    for _ in range(number):
        threading.Thread(target=again, args=(attack, pause), daemon=True).start()


def hard_frames() -> list[bytes]:
    """Frames of 1 MiB that are expensive to parse: numbers, nested objects, characters of four bytes."""
    numbers = b"[" + b"1," * (MEGABYTE // 2 - 2) + b"1]"
    nested = b'{"type":"e2ee","x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001
    start = b'{"type":"e2ee","iv":"'
    wide = start + "\U0001f600".encode() * ((MEGABYTE - len(start) - 2) // 4) + b'"}'
    return [masked_frame(TEXT, message) for message in (numbers, nested, wide)]


def json_frames(road: Road, tokens: list[str], connections: int) -> None:
    """Such frames on `connections` connections that share the tokens. They do not read, so that they get no Close."""
    wires, number = hard_frames(), itertools.count()

    def attack() -> None:
        mine = next(number)
        peer = road.join(tokens[mine % len(tokens)])
        with contextlib.closing(peer):
            for wire in itertools.cycle(wires):
                peer.raw(wire)
                next(done)

    everywhere(connections, attack)


def json_20(road: Road, tokens: list[str]) -> None:
    json_frames(road, tokens[:1], 20)


def json_50(road: Road, tokens: list[str]) -> None:
    json_frames(road, tokens[:1], 50)


def json_tokens(road: Road, tokens: list[str]) -> None:
    """The same from forty clients with a token each."""
    json_frames(road, tokens[:40], 40)


def fragments(road: Road, tokens: list[str]) -> None:
    """Messages of 1 MiB in fragments, which the fast path does not handle, on 50 connections with one token."""
    piece = b"[" * 65_000
    wire = (
        masked_frame(TEXT, piece, fin=False)
        + masked_frame(0, piece, fin=False) * 14
        + masked_frame(0, b"", fin=True)
    )

    def attack() -> None:
        with contextlib.closing(road.join(tokens[0])) as peer:
            while True:
                peer.raw(wire)
                next(done)

    everywhere(50, attack)


def half_frames(road: Road, tokens: list[str]) -> None:
    """Incomplete frames of 1 MiB, on 50 connections with one token."""
    wire = hard_frames()[0][:-1]

    def attack() -> None:
        with contextlib.closing(road.join(tokens[0])) as peer:
            peer.raw(wire)
            next(done)
            time.sleep(60)

    everywhere(50, attack)


def other_target(road: Road, tokens: list[str]) -> None:
    """Frames for a target without a daemon, in the bystander's workspace: they must not use up its rate."""

    def attack() -> None:
        with contextlib.closing(
            road.join(tokens[next(done) % 8], workspace="steady", target="other")
        ) as peer:
            for seq in range(1, 300):
                peer.send(e2ee("s", seq))
                next(done)
            peer.how_it_ends()

    everywhere(8, attack)


def presence(road: Road, tokens: list[str]) -> None:
    """Presence frames of 1 MiB to viewers that subscribe and do not read."""
    subscribe = f'{{"type":"viewport.session_events.subscribe/v1","channel":"{CHANNEL}"}}'
    kept = []
    for token in tokens[:VIEWERS]:
        viewer = road.join(token, receive_buffer=4096)
        viewer.send(subscribe)
        kept.append(viewer)
    start = f'{{"type":"viewport.session_viewer_presence/v1","channel":"{CHANNEL}","action":"joined","userId":"u","x":"'
    wire = masked_frame(TEXT, (start + "x" * (MEGABYTE - len(start) - 2) + '"}').encode())

    def attack() -> None:
        with contextlib.closing(road.join(tokens[-1])) as peer:
            for _ in range(12):
                peer.raw(wire)
                next(done)
            time.sleep(60)

    again(attack)


def ring(road: Road, tokens: list[str]) -> None:
    """Two kinds of refused upgrades, half each, from 200 addresses: their entries evict others from the log."""
    forged = tokens[0].rpartition(".")[0] + ".AAAA"

    def attack() -> None:
        number = next(done)
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
                next(done)

    everywhere(20, attack)


def slow_peers(road: Road, tokens: list[str]) -> None:
    """Request heads sent one byte at a time, on as many connections as one address may have."""

    def attack() -> None:
        with contextlib.closing(road.dial()) as sock:
            for byte in itertools.cycle(b"GET /ws HTTP/1.1\r\nHost: x"):
                sock.sendall(bytes([byte]))
                next(done)
                time.sleep(0.01)

    everywhere(50, attack)


def forged_tokens(road: Road, tokens: list[str]) -> None:
    """Well-formed tokens with a wrong signature, from 14 addresses."""
    head, body, signature = tokens[0].split(".")

    def attack() -> None:
        one = Road(road.port, road.tls, f"127.0.1.{1 + next(done) % 14}")
        one.join(f"{head}.{body}.{os.urandom(4).hex()}{signature[8:]}").close()

    everywhere(14, attack, 0.0)


def flood(kind: Callable[[Road, str], None]) -> Callable[[Road, list[str]], None]:
    """A flood by `FLOODING` connections, with a token each."""

    def attack(road: Road, tokens: list[str]) -> None:
        for token in tokens[:FLOODING]:
            everywhere(1, lambda token=token: kind(road, token))  # type: ignore[misc]

    return attack


KINDS: Final[dict[str, Callable[[Road, list[str]], None]]] = {
    kind.__name__: kind
    for kind in (
        json_20, json_50, json_tokens, fragments, half_frames, other_target, presence, ring, admin_tokens, slow_peers,
        forged_tokens,
    )
} | {name: flood(kind) for name, kind in FLOODS.items()}  # fmt: skip


def finish() -> None:
    """Print the count and exit without waiting for threads."""
    print(next(done), flush=True)
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
