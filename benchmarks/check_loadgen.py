"""Test of the load generator with relays that damage every thousandth frame.

    python benchmarks/check_loadgen.py

The correct relay must pass (status 0), each damaging one must fail (status 1). Nothing is measured.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import ClassVar

from mint import mint
from relays import BUILD, HERE, Kind, build, running, running_platform

sys.path.insert(0, str(HERE / "peers"))

from autobahn_relay import PlainFactory, PlainRelay, serve

EVERY = 1000

Change = Callable[["Damaging", bytes], list[bytes]]


def _flip(at: int) -> Change:
    def change(relay: Damaging, frame: bytes) -> list[bytes]:
        return [frame[:at] + (b"A" if frame[at : at + 1] != b"A" else b"B") + frame[at + 1 :]]

    return change


def _swap(relay: Damaging, frame: bytes) -> list[bytes]:
    relay.held = frame
    return []


CHANGES: dict[str, Change] = {
    "good": lambda relay, frame: [frame],
    "first byte of the ciphertext": lambda relay, frame: _flip(frame.index(b'"ciphertext":"') + 14)(
        relay, frame
    ),
    "last byte of the ciphertext": _flip(-3),
    "a byte of the session": lambda relay, frame: [frame.replace(b'"s0', b'"sX')],
    "shortened": lambda relay, frame: [frame[:-10] + b'"}'],
    "lengthened": lambda relay, frame: [frame[:-2] + b'A"}'],
    "lost": lambda relay, frame: [],
    "twice": lambda relay, frame: [frame, frame],
    "out of order": _swap,
}


class Damaging(PlainRelay):
    """Applies `change` to every thousandth frame."""

    change: ClassVar[Change] = CHANGES["good"]
    seen = 0
    held: bytes | None = None

    def sendMessage(self, payload: bytes, isBinary: bool = False) -> None:
        if not payload.startswith(b'{"type":"e2ee"'):
            super().sendMessage(payload, False)
            return
        Damaging.seen += 1
        held, self.held = self.held, None
        for frame in Damaging.change(self, payload) if Damaging.seen % EVERY == 0 else [payload]:
            super().sendMessage(frame, False)
        if held is not None:
            super().sendMessage(held, False)


def main() -> int:
    build()
    folder = BUILD / "check"
    mint(folder, 2, 1)
    wrong = 0
    with running_platform(folder) as platform:
        for name in CHANGES:
            kind = Kind(name, "", (sys.executable, __file__, "PORT", name), {}, admits=False)
            with running(kind, platform) as relay:
                command = [
                    str(BUILD / "loadgen"),
                    "throughput",
                    "--port",
                    str(relay.port),
                    "--pid",
                    str(relay.pid),
                ]
                command += [
                    "--tokens",
                    str(platform.tokens),
                    "--daemons",
                    "2",
                    "--window",
                    "4",
                    "--warm-up",
                    "0",
                ]
                status = subprocess.run(
                    [*command, "--seconds", "1"], capture_output=True, check=False
                ).returncode
            as_expected = status == (0 if name == "good" else 1)
            wrong += not as_expected
            print(f"{'ok    ' if as_expected else 'WRONG '} {name}: status {status}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) == 3:
        Damaging.change = CHANGES[sys.argv[2]]
        factory = PlainFactory()
        factory.protocol = Damaging
        serve(int(sys.argv[1]), factory)
    else:
        raise SystemExit(main())
