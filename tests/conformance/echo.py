"""An echo service on the relay's own upgrade, connection and fast path.

    python -m tests.conformance.echo            # prints its port, serves until SIGTERM

Only the router differs from the relay: each message goes back to its sender, with its opcode. RELAY_FAST_PATH selects
the path, RELAY_FRAME_MAX_BYTES the limit.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from viewport_relay.admission.addresses import TrustedProxies
from viewport_relay.admission.limits import ConnectionCounts, UpgradeLimits
from viewport_relay.admission.token import TokenSource
from viewport_relay.config import load
from viewport_relay.observe.counters import Counters
from viewport_relay.protocol.framing import BINARY, frame_header
from viewport_relay.protocol.grant import Claims, UpgradeQuery
from viewport_relay.protocol.json import Message, is_utf8
from viewport_relay.reasons import Reason
from viewport_relay.wire.clientaddress import ClientAddress
from viewport_relay.wire.connection import Connection, ConnectionFactory
from viewport_relay.wire.ending import Ending
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.httpconnections import HttpConnections
from viewport_relay.wire.reactor import install
from viewport_relay.wire.site import RelaySite, Root
from viewport_relay.wire.turn import turn_of
from viewport_relay.wire.upgrade import UpgradeResource

#: Path and query that the conformance client appends to the address.
PATH = "/ws?role=worker&workspaceId=conformance&token=conformance-token"


class Echo:
    """Handler of a connection, and receiver of its own messages; binary messages are echoed as binary."""

    outlet: Echo

    def __init__(self, service: EchoService, connection: Connection) -> None:
        self.outlet = self
        self.outbox = connection.outbox
        self._service = service
        connection.outbox.feed_fairly()
        connection.reader.route(self, self._judge, self._decide, self._count)
        connection.reader.unwrap = self._unwrap

    def _judge(self, peer: Any, message: Message, now: float) -> Echo | None:
        return self if is_utf8(message) else None

    def _decide(self, peer: Any, verdict: Any, message: bytes) -> None:
        raise AssertionError("there is nothing to decide")

    def _count(self, peer: Any, messages: int, size: int, now: float) -> None:
        self._service.echoed += messages

    def _unwrap(self, payload: bytes, is_binary: bool) -> bytes | None:
        if not is_binary:
            return payload
        self.outbox.take(frame_header(BINARY, len(payload)) + payload, self._feeder)
        return None

    #: The connection itself: it is not read while its echoes are queued.
    _feeder: Any = None

    def closed(self, ending: Ending) -> None:
        if ending.reason is not None:
            self._service.reasons.append(ending.reason)


class EchoService:
    """Service that admits every connection."""

    def __init__(self, clock: IReactorTime, **environ: str) -> None:
        settings = {"RELAY_MODE": "dev", "SERVER_URL": "http://127.0.0.1:1"}
        self.config = load(settings | environ)
        self.clock = clock
        self.counters = Counters()
        self.reasons: list[Reason] = []
        self.echoed = 0
        self.turn = turn_of(clock)
        self.factory = ConnectionFactory(
            clock,
            self.turn,
            self.counters,
            frame_max_bytes=self.config.frame_max_bytes,
            max_pending=self.config.max_pending_bytes,
            fast_path=self.config.fast_path,
        )

    def opened(self, connection: Connection, query: UpgradeQuery, claims: Claims) -> None:
        connection.handler = echo = Echo(self, connection)
        echo._feeder = connection.reader

    def event(self, event: str, **rest: Any) -> None:
        """Null object for the log."""


class OpenGate:
    """A gate that admits every token."""

    def recall(self, token: TokenSource, query: UpgradeQuery) -> Claims | None:
        return None

    async def admit(self, token: TokenSource, query: UpgradeQuery) -> Claims:
        return Claims()


def site(clock: IReactorTime, **environ: str) -> RelaySite:
    service = EchoService(clock, **environ)
    gate: Any = OpenGate()
    upgrade = UpgradeResource(
        service.config,
        clock,
        service,
        service.counters,
        address=ClientAddress(TrustedProxies()),
        gate=gate,
        factory=service.factory,
        opened=service.opened,
        counts=ConnectionCounts(UpgradeLimits()),
    )
    nothing: Any = SimpleNamespace(render=_nothing_else)
    return RelaySite(
        Root(upgrade, nothing), clock, FairQueue(clock), HttpConnections(lambda: sys.maxsize, service)
    )


def _nothing_else(request: Request) -> bytes:
    request.setResponseCode(404)
    return b""


def main() -> None:
    running = install()
    environ = {name: value for name, value in os.environ.items() if name.startswith("RELAY_")}
    port = running.listenTCP(0, site(running, **environ), interface="127.0.0.1", backlog=512)
    print(port.getHost().port, flush=True)
    running.run()


if __name__ == "__main__":
    main()
