"""Unix sockets of RelayReactor: the lock beside the socket of a process that was killed, and of one that cannot listen."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory

from viewport_relay.wire.reactor import RelayReactor


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: that of a Unix socket is limited to 107 bytes."""
    with TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def listen(path: Path) -> None:
    reactor = RelayReactor()
    port = reactor.listenUNIX(str(path), Factory(), wantPID=True)
    assert path.is_socket() and os.readlink(f"{path}.lock") == str(os.getpid())
    port.connectionLost(None)
    assert not os.path.lexists(path) and not os.path.lexists(f"{path}.lock")


def bound(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


@pytest.mark.parametrize("whose", [os.getpid, os.getppid], ids=["this process", "another process"])
def test_a_killed_process_whose_number_is_used_again_is_no_obstacle(
    folder: Path, whose: Callable[[], int]
) -> None:
    """In a container each relay has the same number."""
    path = folder / "relay.sock"
    bound(path).close()
    os.symlink(str(whose()), f"{path}.lock")
    listen(path)


def socket_in_use(path: Path) -> socket.socket:
    os.symlink(str(os.getpid()), f"{path}.lock")
    return bound(path)


def full_backlog(path: Path) -> list[socket.socket]:
    listener = socket_in_use(path)
    listener.listen(0)
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(str(path))
    return [listener, waiting]


def a_file(path: Path) -> None:
    path.write_text("kept")
    os.symlink(str(os.getpid()), f"{path}.lock")


def not_yet_bound(path: Path) -> None:
    os.symlink(str(os.getpid()), f"{path}.lock")


@pytest.mark.parametrize("make", [socket_in_use, full_backlog, a_file, not_yet_bound])
def test_nothing_else_is_removed(folder: Path, make: Callable[[Path], object]) -> None:
    path = folder / "relay.sock"
    kept = make(path)
    before = sorted(folder.iterdir())
    with pytest.raises(CannotListenError, match="Cannot acquire lock"):
        RelayReactor().listenUNIX(str(path), Factory(), wantPID=True)
    assert sorted(folder.iterdir()) == before
    del kept


def test_a_socket_without_a_lock_stays(folder: Path) -> None:
    path = folder / "relay.sock"
    bound(path).close()
    with pytest.raises(CannotListenError, match="Address already in use"):
        RelayReactor().listenUNIX(str(path), Factory(), wantPID=True)
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize("name", ["file", "x" * 150])
def test_a_process_that_cannot_listen_leaves_no_lock(folder: Path, name: str) -> None:
    (folder / "file").write_text("kept")
    with pytest.raises(CannotListenError):
        RelayReactor().listenUNIX(str(folder / name), Factory(), wantPID=True)
    assert list(folder.iterdir()) == [folder / "file"]
