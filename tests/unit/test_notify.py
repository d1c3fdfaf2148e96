"""sd_notify(3) messages to the service manager, read from a socket."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from viewport_relay.notify import Notifier


class Manager:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address)
        self.sock.setblocking(False)

    def heard(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.sock.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[tuple[Manager, str]]:
    with tempfile.TemporaryDirectory() as folder:
        name = str(Path(folder) / "notify")
        told = name if request.param == "path" else "@" + name
        listening = Manager(name if request.param == "path" else "\0" + name)
        yield listening, told
        listening.sock.close()


def test_messages_from_start_to_stop(manager: tuple[Manager, str]) -> None:
    heard, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    assert notifier.ready("2 clients\nREADY=0")
    assert notifier.reloading()
    assert notifier.stopping("draining", 12.5)
    ready, reloading, stopping = heard.heard()
    assert ready == "READY=1\nSTATUS=2 clients READY=0"  # a status cannot add an assignment
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert stopping == "STOPPING=1\nEXTEND_TIMEOUT_USEC=12500000\nSTATUS=draining"


def test_watchdog_messages_at_half_the_interval(manager: tuple[Manager, str]) -> None:
    heard, address = manager
    clock = Clock()
    notifier = Notifier(
        {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}
    )
    notifier.start_watchdog(clock, lambda: "fine")
    assert heard.heard() == ["WATCHDOG=1\nSTATUS=fine"]
    clock.pump([1.0] * 15)
    assert len(heard.heard()) == 3
    notifier.stop_watchdog()
    clock.pump([1.0] * 20)
    assert heard.heard() == [] and clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "²"},
        {"WATCHDOG_USEC": "9" * 40},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},  # for another process
    ],
)
def test_environments_without_a_watchdog(environ: dict[str, str], manager: tuple[Manager, str]) -> None:
    heard, address = manager
    clock = Clock()
    notifier = Notifier(environ | {"NOTIFY_SOCKET": address}, pid=4711)
    notifier.start_watchdog(clock, lambda: "fine")
    clock.advance(100)
    assert notifier.watchdog_seconds is None and heard.heard() == []


@pytest.mark.parametrize(
    "address", ["", "relative", "/does/not/exist", "@nobody-listens-here", "/" + "x" * 300]
)
def test_addresses_without_a_receiver(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    assert not notifier.ready() and not notifier.stopping() and not notifier.reloading()
    clock = Clock()
    notifier.start_watchdog(clock, lambda: "fine")
    clock.pump([0.5] * 5)
    notifier.stop_watchdog()


def test_a_full_socket_does_not_block(manager: tuple[Manager, str]) -> None:
    _, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    sent = sum(notifier.ready() for _ in range(5000))
    assert 0 < sent < 5000
