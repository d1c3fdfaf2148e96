"""Several relays as processes, their Redis, the dev platform in this process, and bare peers.

async with fleet_on(reactor, signing_key, redis) as fleet:
    a, b = await fleet.relays("a", "b")
    daemon = await fleet.join(a, "workspace-daemon")
    client = await fleet.join(b, "client")
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import Deferred, DeferredQueue, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.drill.forwarder import Forwarder
from tests.drill.redisserver import RedisServer
from tests.integration.relayprocess import RelayProcess
from tests.wireframes import example
from viewport_relay.devplatform import DevPlatform, SigningKey
from viewport_relay.peer.connection import Connection, connect
from viewport_relay.peer.upgrade import Closed, Destination

ADMIN_TOKEN = "backplane-test-admin-token"
BUS_KEY = "backplane-test-bus-key-0123456789"
WAIT = 10.0
#: Seconds without a frame after which a peer counts as silent.
QUIET = 0.4


class BarePeer:
    """A connection, and its received frames in order."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._frames: DeferredQueue[str] = DeferredQueue()
        self.connection: Connection
        self.closed: Closed | None = None

    def take(self, text: str) -> None:
        self._frames.put(text)

    def say(self, frame: dict[str, Any] | str) -> str:
        text = frame if isinstance(frame, str) else json.dumps(frame)
        self.connection.send(text)
        return text

    async def hear(self, seconds: float = WAIT) -> str:
        return await self._frames.get().addTimeout(seconds, self._reactor)

    async def hear_json(self, seconds: float = WAIT) -> Any:
        return json.loads(await self.hear(seconds))

    async def quiet(self, seconds: float = QUIET) -> None:
        await deferLater(self._reactor, seconds)
        assert self._frames.pending == [], self._frames.pending

    def heard_so_far(self) -> list[str]:
        found, self._frames.pending = list(self._frames.pending), []
        return found

    async def ended(self, seconds: float = WAIT) -> Closed:
        await until(self._reactor, lambda: self.closed is not None, seconds)
        assert self.closed is not None
        return self.closed


async def until(reactor: Any, true: Callable[[], bool], seconds: float = WAIT) -> None:
    deadline = reactor.seconds() + seconds
    while not true():
        assert reactor.seconds() < deadline, "the condition did not become true in time"
        await deferLater(reactor, 0.02)


class Fleet:
    """Relays of one platform, on a Redis or on the platform's backplane. `settings` apply to every relay."""

    def __init__(
        self,
        reactor: Any,
        signing_key: SigningKey,
        settings: dict[str, str],
        redis: RedisServer | None = None,
    ) -> None:
        """`redis` is the server that carries presence; without one the platform does."""
        self.reactor = reactor
        self.redis = redis
        self.platform = DevPlatform(
            reactor, internal_key="backplane-test-internal-key", signing_key=signing_key
        )
        self.workspace = f"ws-{secrets.token_hex(4)}"
        self.target = f"rt-{secrets.token_hex(4)}"
        self.platform.workspaces.add(self.workspace)
        self.settings = settings
        self.running: list[RelayProcess] = []
        self.peers: list[BarePeer] = []

    async def start(self) -> Fleet:
        self.platform.listen(self.reactor)
        return self

    async def stop(self) -> None:
        for peer in self.peers:
            if peer.closed is None:
                peer.connection.abort()
        await deferLater(self.reactor, 0.05)
        await gatherResults([deferToThread(relay.stop) for relay in self.running])
        await self.platform.close()

    async def relay(self, name: str, **settings: str) -> RelayProcess:
        """Start one relay and wait until it is ready."""
        environ = {
            **self.platform.relay_environment(),
            "RELAY_ID": name,
            "RELAY_ADMIN_TOKEN": ADMIN_TOKEN,
            "RELAY_BUS_HMAC_KEY": BUS_KEY,
            "RELAY_RATE_LIMIT_PER_IP": "0",
            **{
                f"RELAY_{kind}_RATE_PER_MINUTE": "0"
                for kind in ("KEX_INIT", "PAIRING", "RUNTIME", "DAEMON_RUNTIME")
            },
            "RELAY_RUNTIME_RATE_PER_MINUTE_WORKSPACE": "0",
            **self.settings,
            **settings,
        }
        relay = RelayProcess(environ)
        self.running.append(relay)
        await deferToThread(relay.wait)
        return relay

    async def relays(self, *names: str, **settings: str) -> list[RelayProcess]:
        starting = [Deferred.fromCoroutine(self.relay(name, **settings)) for name in names]
        return list(await gatherResults(starting))

    async def split(self, **settings: str) -> tuple[RelayProcess, RelayProcess, BarePeer]:
        """The relays a and b, and the daemon, which is at a and announced there."""
        a, b = await self.relays("a", "b", **settings)
        daemon = await self.join(a, "workspace-daemon")
        await self.announced("a")
        return a, b, daemon

    async def join(
        self,
        relay: RelayProcess,
        role: str,
        *,
        target: str | None = None,
        network: Forwarder | None = None,
        **claims: object,
    ) -> BarePeer:
        """A peer of this role at this relay, which `network` leads to."""
        target = target or self.target
        if role == "client":
            claims = {"scope": "runtime", "clientId": f"cl-{secrets.token_hex(4)}", **claims}
        token = self.platform.issue(role, self.workspace, target, **claims)
        peer = BarePeer(self.reactor)
        url = relay.ws if network is None else f"ws://127.0.0.1:{network.port}"
        destination = Destination(url, role, self.workspace, target)
        peer.connection = await connect(self.reactor, destination, token, peer.take)
        peer.connection.closed.addCallback(lambda closed: setattr(peer, "closed", closed))
        self.peers.append(peer)
        return peer

    def presence_key(self, target: str | None = None) -> str:
        return f"viewport:relay:presence:{self.workspace}:{target or self.target}"

    def presence(self, target: str | None = None) -> Any:
        """The presence entry of a target, or None."""
        if self.redis is None:
            return self.platform.presence.resolve(self.workspace, target or self.target)
        text = self.redis.ask("GET", self.presence_key(target))
        return None if text is None else json.loads(text)

    async def announced(self, relay: str | None, target: str | None = None) -> None:
        """Wait until presence names this relay; None: until there is no entry."""
        await until(self.reactor, lambda: (self.presence(target) or {}).get("relayId") == relay)

    async def reaches(self, client: BarePeer, daemon: BarePeer, seconds: float = WAIT) -> None:
        """Repeat key exchanges until one succeeds, within `seconds`."""
        deadline, name = self.reactor.seconds() + seconds, secrets.token_hex(4)
        for attempt in itertools.count():
            request = f"{name}-{attempt}"
            client.say(init(request))
            await deferLater(self.reactor, 0.1)
            heard = [json.loads(text).get("requestId") for text in daemon.heard_so_far()]
            if request in heard:
                client.heard_so_far()
                daemon.say(response(request, name))
                assert (await client.hear_json())["sessionId"] == name
                return
            assert self.reactor.seconds() < deadline, (request, heard, client.heard_so_far())

    # -- admin API of a relay --------------------------------------------------------------------------------------

    async def admin(self, relay: RelayProcess, path: str) -> Any:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        return await deferToThread(relay.ask, "GET", path, headers)

    async def logs(self, relay: RelayProcess) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.admin(relay, "/logs")).json()["logs"]
        return found

    async def metric(self, relay: RelayProcess, name: str) -> float:
        """One metric, or one series of it: `relay_frames_dropped_total{reason="NO_OWNER"}`."""
        for line in (await self.admin(relay, "/metrics")).text.splitlines():
            if line.startswith((name + " ", name + "{")):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    async def ready(self, relay: RelayProcess) -> Any:
        body = (await deferToThread(relay.ask, "GET", "/ready")).json()
        assert body.pop("message"), "the same in words"
        return body

    async def until_ready(self, relay: RelayProcess, body: dict[str, Any], seconds: float = WAIT) -> None:
        deadline = self.reactor.seconds() + seconds
        while (found := await self.ready(relay)) != body:
            assert self.reactor.seconds() < deadline, found
            await deferLater(self.reactor, 0.05)


@asynccontextmanager
async def fleet_on(
    reactor: Any, signing_key: SigningKey, redis: RedisServer | None, **settings: str
) -> AsyncIterator[Fleet]:
    """A fleet on this Redis, or on the platform's backplane if that is None; all relays stop at the end."""
    mode = {"RELAY_BACKPLANE_MODE": "server"}
    if redis is not None:
        mode = {"RELAY_BACKPLANE_MODE": "redis", "RELAY_REDIS_URL": redis.url}
    fleet = await Fleet(reactor, signing_key, mode | settings, redis).start()
    try:
        yield fleet
    finally:
        await fleet.stop()


def init(request_id: str = "request-1", **members: Any) -> dict[str, Any]:
    return example("init v3", requestId=request_id, **members)


def response(request_id: str = "request-1", session_id: str = "session-1", **members: Any) -> dict[str, Any]:
    return example("response v3", requestId=request_id, sessionId=session_id, **members)


def e2ee(session_id: str = "session-1", seq: int = 1, **members: Any) -> dict[str, Any]:
    return example("e2ee", sessionId=session_id, seq=seq, **members)


async def session(
    client: BarePeer, daemon: BarePeer, session_id: str = "session-1", *, redirects: int = 0
) -> None:
    """A key exchange between the two, on any relays; the client gets `redirects` redirects before the response."""
    request_id = f"request-{secrets.token_hex(4)}"
    asked = client.say(init(request_id))
    assert await daemon.hear() == asked
    answer = daemon.say(response(request_id, session_id))
    for _ in range(redirects):
        assert (await client.hear_json())["code"] == "RELAY_REDIRECT"
    assert await client.hear() == answer
