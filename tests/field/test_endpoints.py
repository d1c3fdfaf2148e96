"""RELAY_LISTEN_ENDPOINT and socket activation as units and operators write them.

The first column of each row is the place where the input occurs.
"""

from __future__ import annotations

import os
import socket

import pytest

from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, running

#: (place, endpoint, words of the log, exit status)
UNUSABLE: list[tuple[str, str, str, int]] = [
    ("the service was started by hand, without its socket unit", "systemd:domain=INET:index=0", "no such socket was passed", 78),
    ("a name without the kind of socket", "systemd:name=viewport-relay.socket", "it lacks 'domain'", 78),
    ("an argument of another endpoint", "tcp:7781:domain=INET", "it takes no 'domain'", 78),
    ("an unknown type of endpoint", "http:7781", "Unknown endpoint type: 'http'", 78),
    ("a port with a digit too many", "tcp:77810", "port must be 0-65535", 1),
    ("a Unix socket in a folder that does not exist", "unix:/nonexistent/relay.sock", "cannot listen on unix:/nonexistent/relay.sock: No such file or directory", 1),
    ("a Unix socket where a file is", "unix:/etc/passwd", "unix:/etc/passwd: there is such a file already", 1),
    ("a TLS endpoint whose key is elsewhere", "ssl:0:privateKey=/nonexistent/key.pem", "cannot read '/nonexistent/key.pem': No such file or directory", 78),
    ("no certificate in the file of a TLS endpoint", "ssl:0:privateKey=/etc/passwd", "its private key or certificate cannot be used: it takes PEM", 78),
    ("a path that is too long for a Unix socket", "unix:/tmp/" + "x" * 150, "x: AF_UNIX path too long", 1),
]  # fmt: skip


@pytest.mark.parametrize(("where", "endpoint", "words", "status"), UNUSABLE, ids=[row[0] for row in UNUSABLE])
def test_unusable_endpoints_are_named(
    platform: FaultyPlatform, where: str, endpoint: str, words: str, status: int
) -> None:
    with Relay(
        platform.environment() | {"RELAY_LISTEN_ENDPOINT": endpoint, "RELAY_LISTEN_HOST": ""}
    ) as relay:
        assert relay.process.wait(20) == status
        entry = relay.logged("listen_failed")
        assert entry["level"] == "error" and entry["message"].startswith("RELAY_LISTEN_ENDPOINT: ")
        assert words in entry["message"] and "_parse" not in entry["message"]
        assert "Traceback" not in relay.output()
    assert not os.path.lexists(f"{endpoint.removeprefix('unix:')}.lock")


@pytest.fixture
def passed() -> socket.socket:
    """A socket passed as systemd passes it, named after its unit."""
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made


@pytest.mark.parametrize("which", ["index=0", "name=viewport-relay.socket"])
def test_a_passed_socket_is_found_by_number_and_by_name(
    platform: FaultyPlatform, passed: socket.socket, which: str
) -> None:
    """Units with one socket use its number, units with several use names (FileDescriptorName=)."""
    endpoint = {"RELAY_LISTEN_ENDPOINT": f"systemd:domain=INET:{which}"}
    with running(platform.environment() | endpoint, listener=passed) as relay:
        assert relay.http("/health")[0] == 200


def test_an_unknown_socket_name_is_an_error(platform: FaultyPlatform, passed: socket.socket) -> None:
    """FileDescriptorName= or the endpoint was changed without the other."""
    endpoint = {"RELAY_LISTEN_ENDPOINT": "systemd:domain=INET:name=relay"}
    with Relay(platform.environment() | endpoint, listener=passed) as relay:
        assert relay.process.wait(20) == 78
        assert "no such socket was passed" in relay.logged("listen_failed")["message"]
