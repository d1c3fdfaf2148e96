"""deploy/haproxy.cfg: a workspace stays at one relay of two, and a relay that drains gets no new peers."""

from __future__ import annotations

import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.drill.peer import TEXT, Peer, Refused
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, until
from tests.integration.proxies import put_in
from tests.ports import free_port

BALANCER = (Path(__file__).parents[2] / "deploy/haproxy.cfg").read_text("utf-8")


class Fleet:
    """The load balancer of compose-fleet.yaml in front of two independent relays."""

    def __init__(self, folder: Path, platform: FaultyPlatform, exits: ExitStack) -> None:
        self.platform, self.port = platform, free_port()
        trust = platform.environment() | {"RELAY_TRUSTED_PROXIES": "127.0.0.1"}
        self.relays = [exits.enter_context(Relay(trust)) for _ in range(2)]
        for relay in self.relays:
            relay.wait()
        # HAProxy's own maximum needs more descriptors than a test may use.
        pieces = {"bind :8080": f"bind 127.0.0.1:{self.port}", "maxconn 20000": "maxconn 200"}
        pieces |= {"check inter 2s": "check inter 500ms"}
        pieces |= {f"127.0.0.1:{7781 + n}": f"127.0.0.1:{relay.port}" for n, relay in enumerate(self.relays)}
        configuration = folder / "haproxy.cfg"
        configuration.write_text(put_in(BALANCER, pieces))
        self.process = subprocess.Popen(
            ["haproxy", "-db", "-f", configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        exits.callback(self._stop)
        until(lambda: self.status("/health") == 200, 20, "the balancer")

    def _stop(self) -> None:
        self.process.terminate()
        self.process.wait(5)

    def status(self, path: str) -> int:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 10) as sock:
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                return int(sock.recv(100).split()[1])
        except OSError:
            return 0

    def join(self, role: str, workspace: str) -> Peer:
        return Peer.join(self, self.platform, role, workspace, "t", source="127.8.0.1")


@pytest.mark.haproxy
def test_the_balancer_of_the_fleet(tmp_path: Path, platform: FaultyPlatform) -> None:
    with ExitStack() as exits:
        fleet = Fleet(tmp_path, platform, exits)
        for path in ("/ready", "/state", "/logs", "/metrics", "/admin/", "/disconnect", "/cache/flush"):
            assert fleet.status(path) == 404, path
        workspaces = [f"workspace-{n}" for n in range(12)]
        for workspace in workspaces:
            daemon, client = fleet.join("workspace-daemon", workspace), fleet.join("client", workspace)
            client.converse(daemon)  # both are at the same relay, because there is no bus
            client.close()
            daemon.close()
        seen = [[e["details"] for e in relay.entries() if e["event"] == "join"] for relay in fleet.relays]
        homes = [{details["workspaceId"] for details in joins} for joins in seen]
        assert homes[0] | homes[1] == set(workspaces) and not homes[0] & homes[1]
        assert homes[0] and homes[1]
        assert {details["ip"] for joins in seen for details in joins} == {"127.8.0.1"}

        # One relay drains: its workspaces move to the other.
        daemon = fleet.join("workspace-daemon", moved := min(homes[0]))
        fleet.relays[0].signal(signal.SIGTERM)
        assert daemon.how_it_ends().code == 1001
        daemon.close()
        assert fleet.relays[0].stop() == 0

        def again() -> bool:
            try:
                fleet.join("workspace-daemon", moved).send(b"{}", TEXT)
            except (Refused, OSError):
                return False
            return True

        until(again, 20, "the way to the other relay")
        assert fleet.relays[1].stop() == 0
