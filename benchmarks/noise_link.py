"""Cost of the link's cryptography: handshakes per CPU-second and CPU per record, as JSON on standard output.

    python benchmarks/noise_link.py [--handshakes 1000] [--records 20000]

Only the responder is timed, in CPU time of this process (`time.process_time`), on one core, without sockets. Run it
on an otherwise idle machine; figures of two machines are not comparable.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from viewport_relay.noise.keys import RelayKeys, StaticKey
from viewport_relay.noise.link import LinkResponder
from viewport_relay.noise.machine import NoiseLink
from viewport_relay.noise.policy import Pattern
from viewport_relay.peer.link import LinkInitiator, LinkSettings
from viewport_relay.protocol.base64url import base64url
from viewport_relay.protocol.grant import Claims, Grant, Role, UpgradeQuery
from viewport_relay.reasons import Refusal

FRAME_MAX = 1_048_576
SECRET = os.urandom(32)
QUERY = UpgradeQuery(Role.CLIENT, "workspace-1", "target-1")
GRANT = Grant(
    Role.CLIENT, "workspace-1", "target-1", None, "client-1", Claims(pairing_secret=base64url(SECRET)), None
)


class Silent:
    """A connection that stores the last message sent."""

    sent = b""

    def send(self, data: bytes) -> None:
        self.sent = data

    def established(self, pattern: Pattern | None) -> None:
        pass

    def fail(self, refusal: Refusal) -> None:
        self.failed = refusal

    def note(self, refusal: Refusal) -> None:
        pass


def timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def initiator(pattern: Pattern, keys: RelayKeys) -> LinkInitiator:
    secret = SECRET if pattern is Pattern.IKPSK2 else None
    static = os.urandom(32)
    settings = LinkSettings(
        keys.current.public, static, "client", "workspace-1", "target-1", pairing_secret=secret
    )
    return LinkInitiator(settings)


def handshake(pattern: Pattern, keys: RelayKeys) -> tuple[float, NoiseLink, LinkInitiator]:
    """One complete handshake; the seconds are the relay's alone."""
    peer, other = Silent(), initiator(pattern, keys)
    message_1 = other.message_1()
    connections: list[NoiseLink] = []

    def open_and_answer() -> None:
        noise = NoiseLink(peer, LinkResponder(QUERY, GRANT, keys, "relay-1", FRAME_MAX))
        noise.receive(message_1)
        connections.append(noise)

    seconds = timed(open_and_answer)
    other.read_message_2(peer.sent)
    confirm = other.confirm()
    noise = connections[0]
    seconds += timed(lambda: noise.receive(confirm))
    if noise.core.link.records is None:
        raise SystemExit("the handshake failed: the figures would mean nothing")
    return seconds, noise, other


def garbage(keys: RelayKeys, count: int) -> float:
    """CPU seconds for one message 1 that does not decrypt with any key."""
    messages = [b"\x01\x01" + os.urandom(96) for _ in range(count)]

    def work() -> None:
        for message in messages:
            refused(keys, message)

    return timed(work) / count


def refused(keys: RelayKeys, message: bytes) -> None:
    noise = NoiseLink(Silent(), LinkResponder(QUERY, GRANT, keys, "relay-1", FRAME_MAX))
    noise.receive(message)


def records(noise: NoiseLink, other: LinkInitiator, size: int, count: int) -> dict[str, float]:
    """Microseconds to decrypt and to encrypt one frame of `size` bytes."""
    frame = os.urandom(size)
    sealed = [other.seal(frame) for _ in range(count)]

    def take() -> None:
        for message in sealed:
            noise.receive(message)

    relay = noise.records
    out = memoryview(bytearray(relay.message_size(size)))

    def seal() -> None:
        for _ in range(count):
            relay.encrypt_into(frame, out)

    return {
        "receive_us": round(timed(take) / count * 1e6, 2),
        "seal_us": round(timed(seal) / count * 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="measure the link's cost to the relay")
    parser.add_argument("--handshakes", type=int, default=1000)
    parser.add_argument("--records", type=int, default=20_000)
    options = parser.parse_args()
    keys = RelayKeys(StaticKey.generate(), StaticKey.generate())
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cryptography": version("cryptography"),
        "noiseprotocol": version("noiseprotocol"),
        "handshakes": {},
        "frames": {},
    }
    for pattern in Pattern:
        seconds = sorted(handshake(pattern, keys)[0] for _ in range(options.handshakes))
        mean = sum(seconds) / len(seconds)
        result["handshakes"][pattern.label] = {
            "us_mean": round(mean * 1e6, 1),
            "us_median": round(seconds[len(seconds) // 2] * 1e6, 1),
            "per_cpu_second": round(1 / mean),
        }
    result["handshakes"]["refused, two keys tried"] = {
        "us_mean": round(garbage(keys, options.handshakes) * 1e6, 1)
    }
    _, noise, other = handshake(Pattern.IK, keys)
    for label, size, count in (
        ("1 KiB", 1024, options.records),
        ("64 KiB", 65_536, options.records // 20),
        ("1 MiB", 1_048_576, options.records // 400),
    ):
        result["frames"][label] = records(noise, other, size, max(1, count))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
