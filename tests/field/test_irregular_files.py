"""FIFOs, devices, sockets and folders where a setting names a file: the start refuses each by name and never waits for it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.drill.platform import FaultyPlatform
from tests.drill.relay import running
from viewport_relay.admin.trends import certificate_end
from viewport_relay.admission.tls import ClientTls
from viewport_relay.config import VARIABLES, ConfigError, load
from viewport_relay.noise.keys import NoiseKeyError, RelayKeys
from viewport_relay.wire.tls import ServerContext

BASE = {"SERVER_URL": "https://platform.example"}

#: Every setting that names a file.
NAMES = [
    "RELAY_SETTINGS_FILE",
    *(f"{variable.name}_FILE" for variable in VARIABLES if variable.secret),
    *(variable.name for variable in VARIABLES if variable.name.endswith(("_CERT_PATH", "_KEY_PATH"))),
]


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


#: word of the refusal -> makes such a file
KINDS: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": _socket,
    "a folder": Path.mkdir,
}


@pytest.fixture(autouse=True)
def _not_for_ever() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError("the file was waited for")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 5)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=KINDS)
def irregular(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The word for a kind of file, and the path of one."""
    path = tmp_path / "it"
    KINDS[request.param](path)
    return request.param, str(path)


@pytest.mark.parametrize("name", NAMES)
def test_the_start_refuses_it_by_name(name: str, irregular: tuple[str, str]) -> None:
    kind, path = irregular
    with pytest.raises(ConfigError) as caught:
        load({**BASE, name: path})
    wanted = f"{name}: {path!r} is {kind}, not a regular file: put the content into a file, and name that"
    assert wanted in caught.value.errors


@pytest.mark.parametrize("argument", ["privateKey", "certKey", "extraCertChain", "dhParameters"])
def test_the_files_of_a_tls_endpoint(argument: str, irregular: tuple[str, str]) -> None:
    kind, path = irregular
    with pytest.raises(ConfigError) as caught:
        load({**BASE, "RELAY_LISTEN_ENDPOINT": f"haproxy:ssl:7781:{argument}={path}:interface=127.0.0.1"})
    (problem,) = caught.value.errors
    assert problem.startswith(f"RELAY_LISTEN_ENDPOINT: {path!r} is {kind}, not a regular file: ")


def test_a_file_of_proc_without_content_is_not_waited_for(tmp_path: Path) -> None:
    """A regular file by its mode; reading it waits for the kernel's next message."""
    if not os.access("/proc/kmsg", os.R_OK):
        pytest.skip("needs a readable /proc/kmsg")
    try:
        load({**BASE, "RELAY_INTERNAL_KEY_FILE": "/proc/kmsg"})
    except ConfigError as error:
        assert error.errors[0].startswith("RELAY_INTERNAL_KEY_FILE: ")


@pytest.mark.parametrize(
    "read",
    [
        lambda path: ServerContext(path, path),
        lambda path: ClientTls.trusting("RELAY_REDIS_CA_CERT_PATH", path),
    ],
    ids=["certificate of the relay", "CA"],
)
def test_a_file_that_was_replaced_after_the_start_is_not_waited_for(
    read: Callable[[str], Any], irregular: tuple[str, str]
) -> None:
    with pytest.raises(ConfigError, match="_CERT_PATH: "):
        read(irregular[1])


def test_the_dashboard_does_not_wait_for_a_replaced_certificate(irregular: tuple[str, str]) -> None:
    assert certificate_end(irregular[1]) is None


def test_the_state_folder(irregular: tuple[str, str]) -> None:
    kind, path = irregular
    if kind == "a folder":
        return
    with pytest.raises(NoiseKeyError, match=r"RELAY_STATE_DIR: cannot use .* is no folder: name a folder"):
        RelayKeys.load(None, None, path)


def test_the_key_in_the_state_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "noise.key", 0o600)
    with pytest.raises(
        NoiseKeyError, match=r"RELAY_STATE_DIR: .*noise\.key is not a regular file: move it away"
    ):
        RelayKeys.load(None, None, str(tmp_path))


def test_a_reload_refuses_a_fifo_and_the_relay_runs_on(platform: FaultyPlatform, tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_text("RELAY_LOG_LEVEL=info\n")
    with running(platform.environment() | {"RELAY_SETTINGS_FILE": str(file)}) as relay:
        file.unlink()
        os.mkfifo(file)
        os.kill(relay.pid, signal.SIGHUP)
        assert f"RELAY_SETTINGS_FILE: {str(file)!r} is a FIFO" in relay.logged("reload_failed")["message"]
        assert relay.http("/health")[0] == 200
