"""A test service that echoes through the relay's own upgrade, connection and fast path.

    python -m tests.conformance.echo            # prints the port it listens on, serves until SIGTERM

Only who judges a message differs from the relay: each goes back to its sender, as what it came, text or binary. The
setting RELAY_FAST_PATH chooses the path, RELAY_FRAME_MAX_BYTES the limit.
"""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from viewport_relay.admission.limits import ConnectionCounts, WindowCounter
from viewport_relay.admission.token import TokenSource
from viewport_relay.config import load
from viewport_relay.observe.counters import Counters
from viewport_relay.protocol.grant import Claims, Grant, Role, UpgradeQuery
from viewport_relay.protocol.json import Message, is_utf8
from viewport_relay.reasons import Reason
from viewport_relay.routing.decisions import Decision
from viewport_relay.routing.model import Peer
from viewport_relay.wire.site import RelaySite, Root
from viewport_relay.wire.upgrade import UpgradeResource
from viewport_relay.wire.websocket import Connection, ConnectionFactory, frame_header

#: Conformance clients put it behind their address.
PATH = "/ws?role=worker&workspaceId=conformance&token=conformance-token"

_BINARY = 2


class EchoConnection(Connection):
    """Sends binary messages back as binary, which the relay's own has no use for."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if isBinary and self.ending is None:
            self.take(self, frame_header(_BINARY, len(payload)) + payload)
        else:
            super().onMessage(payload, isBinary)


class EchoHub:
    """Stands in for the hub: every connection is let in, and is its own receiver."""

    def __init__(self, clock: IReactorTime, **environ: str) -> None:
        settings = {"RELAY_MODE": "dev", "SERVER_URL": "http://127.0.0.1:1"}
        self.config = load(settings | environ)
        self.clock = clock
        self.counters = Counters()
        self.log: Any = self
        self.reasons: list[Reason] = []
        self.echoed = 0
        hub: Any = self  # what the factory needs of one is here
        self.factory = ConnectionFactory(clock, hub, EchoConnection)

    def opened(self, connection: Connection, query: UpgradeQuery, claims: Claims) -> None:
        grant = Grant(Role.WORKER, "conformance", None, None, connection.connection_id, claims, None)
        nobody: Any = None
        itself = Peer(connection.connection_id, grant, connection.ip, 0.0, connection, nobody, nobody)

        def judge(peer: Peer, message: Message, now: float) -> Peer | None:
            return itself if is_utf8(message) else None

        def decide(connection: Connection, peer: Peer, verdict: Peer | Decision, message: bytes) -> None:
            raise AssertionError("there is nothing to decide")

        def count(connection: Connection, peer: Peer, messages: int, size: int) -> None:
            self.echoed += messages

        connection.routed = itself
        connection.route(judge, decide, count, is_daemon=True)

    def ended(self, connection: Connection, reason: Reason, detail: str, details: dict[str, Any]) -> None:
        self.reasons.append(reason)

    def left(self, connection: Connection, how: str, code: int | None) -> None:
        """Nothing is kept of it."""

    def event(self, event: str, **rest: Any) -> None:
        """Nobody reads this log."""


class OpenGate:
    """Admits everybody."""

    def recall(self, token: TokenSource, query: UpgradeQuery) -> Claims | None:
        return None

    async def admit(self, token: TokenSource, query: UpgradeQuery) -> Claims:
        return Claims()


def site(clock: IReactorTime, **environ: str) -> RelaySite:
    hub: Any = EchoHub(clock, **environ)
    gate: Any = OpenGate()
    upgrade = UpgradeResource(
        hub.config,
        hub,
        gate,
        hub.factory,
        WindowCounter(0),
        ConnectionCounts(max_total=0, max_per_ip=0, max_clients=0),
    )
    nothing: Any = SimpleNamespace(render=_nothing_else)
    return RelaySite(Root(upgrade, nothing))


def _nothing_else(request: Request) -> bytes:
    request.setResponseCode(404)
    return b""


def main() -> None:
    from twisted.internet import reactor

    running: Any = reactor
    running.seconds = time.monotonic
    environ = {name: value for name, value in os.environ.items() if name.startswith("RELAY_")}
    port = running.listenTCP(0, site(running, **environ), interface="127.0.0.1", backlog=512)
    print(port.getHost().port, flush=True)
    running.run()


if __name__ == "__main__":
    main()
