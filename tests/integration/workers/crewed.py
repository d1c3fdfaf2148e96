"""Relays with several workers as processes, observed over the network and through the log."""

from __future__ import annotations

import os
import secrets
import signal
from typing import Any

from twisted.internet.task import deferLater

from tests.integration.backplane.fleet import WAIT, BarePeer, Fleet
from tests.integration.relayprocess import RelayProcess
from viewport_relay.peer.connection import connect
from viewport_relay.peer.upgrade import Destination
from viewport_relay.workers.passing import slot


class Crewed(Fleet):
    """A fleet of relays with workers; peers join a workspace of the test's choice."""

    def workspace_of(self, worker: int, workers: int = 2) -> str:
        """A new workspace that this worker serves."""
        while True:
            name = f"ws-{secrets.token_hex(4)}"
            if slot(name, workers) == worker:
                self.platform.workspaces.add(name)
                return name

    async def enter(
        self,
        relay: RelayProcess,
        role: str,
        workspace: str,
        *,
        in_query: bool = True,
        headers: dict[str, str] | None = None,
        **claims: object,
    ) -> BarePeer:
        """A peer in this workspace; with `in_query=False` only the claims name the target."""
        if role == "client":
            claims = {"scope": "runtime", "clientId": f"cl-{secrets.token_hex(4)}", **claims}
        token = self.platform.issue(role, workspace, self.target, **claims)
        peer = BarePeer(self.reactor)
        destination = Destination(relay.ws, role, workspace, self.target if in_query else "")
        peer.connection = await connect(self.reactor, destination, token, peer.take)
        peer.connection.closed.addCallback(lambda closed: setattr(peer, "closed", closed))
        self.peers.append(peer)
        return peer

    async def pids(self, relay: RelayProcess, more_than: int = 1) -> dict[int, int]:
        """Worker's number -> PID of its latest process."""
        deadline = self.reactor.seconds() + 3 * WAIT
        while True:
            told = [
                entry["details"] for entry in await self.logs(relay) if entry["event"] == "worker_started"
            ]
            if len(told) > more_than:
                return {details["worker"]: details["pid"] for details in told}
            assert self.reactor.seconds() < deadline, told
            await deferLater(self.reactor, 0.1)

    async def state(self, relay: RelayProcess) -> Any:
        return (await self.admin(relay, "/state")).json()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
