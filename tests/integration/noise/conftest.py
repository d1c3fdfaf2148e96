"""Fixtures of the link tests: relays as processes, and the development platform."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from tests.drill.relay import NO_RATES
from tests.integration.noise.linkpeers import LINK, PATIENCE, LinkPeer, RawPeer, raw_connect, reactor
from tests.integration.relayprocess import RelayProcess
from tests.unit.noise.peers import Initiator, b64
from viewport_relay.devplatform import DevPlatform
from viewport_relay.noise.keys import StaticKey, decode_key
from viewport_relay.noise.policy import Pattern
from viewport_relay.peer.upgrade import Destination
from viewport_relay.protocol.grant import Role, UpgradeQuery

TARGET = "dev-machine"
DAEMON, CLIENT = "workspace-daemon", "client"
ADMIN = "noise-tests-admin-" + secrets.token_hex(12)


class Relay:
    """A relay process and what tests read from it. `key` is the public key of its well-known page."""

    def __init__(self, process: RelayProcess, tls: bool = False) -> None:
        self.process = process
        self.private_text = ""  # the private key, where a test sets it
        self.ws = process.ws if not tls else f"wss://localhost:{process.port}"
        self.identity: dict[str, Any] = {}
        if not tls:
            self.identity = process.ask("GET", "/.well-known/viewport-relay.json").json()

    @property
    def public(self) -> bytes:
        key = decode_key(self.identity["noisePublicKey"])
        assert key is not None
        return key

    async def admin(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        reply = await deferToThread(self.process.ask, "GET", path, headers)
        assert reply.status == 200, reply.text
        return reply.json() if reply.headers["content-type"].startswith("application/json") else reply.text

    async def entries(self, workspace: str) -> list[dict[str, Any]]:
        """Entries of `/logs` about a workspace."""
        logs = (await self.admin("/logs?limit=1000"))["logs"]
        return [entry for entry in logs if entry["details"].get("workspaceId") == workspace]

    async def prints(self, workspace: str) -> None:
        """Compare standard output with `/logs`; the output may arrive a little later."""
        logged = await self.entries(workspace)

        async def same() -> bool:
            return self._printed(workspace) == logged

        await eventually(same)

    def _printed(self, workspace: str) -> list[dict[str, Any]]:
        whole, _, _ = self.process.output().rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("details", {}).get("workspaceId") == workspace]

    async def wait_for(self, workspace: str, event: str, reason: str | None = None) -> dict[str, Any]:
        """The only entry of this event about a workspace; no other entry may have a reason."""
        found: list[dict[str, Any]] = []

        async def there() -> bool:
            entries = await self.entries(workspace)
            found[:] = [e for e in entries if e["event"] == event and e.get("reason") == reason]
            return bool(found)

        await eventually(there)
        assert len(found) == 1, found
        return found[0]

    async def count(self, sample: str) -> float:
        """Value of one sample of `/metrics`."""
        for line in (await self.admin("/metrics")).splitlines():
            if line.startswith(sample + " "):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no {sample}")

    async def target(self, workspace: str) -> dict[str, Any] | None:
        """Entry of `/state` about a workspace's target."""
        state = await self.admin("/state")
        found = [entry for entry in state["workspaces"] if entry["workspaceId"] == workspace]
        return found[0] if found else None


async def eventually(condition: Any) -> None:
    """Wait until an async condition holds."""
    deadline = reactor.seconds() + PATIENCE
    while not await condition():
        assert reactor.seconds() < deadline, "the condition did not become true in time"
        await deferLater(reactor, 0.02, lambda: None)


class World:
    """The platform in this process, relays as processes, and all secrets that they were given."""

    def __init__(self) -> None:
        self.internal_key = "noise-tests-internal-" + secrets.token_hex(12)
        self.platform = DevPlatform(reactor, internal_key=self.internal_key)
        self.platform.listen(reactor)
        self.secrets = [self.internal_key, ADMIN, self.platform.credential]
        self.raws: list[RawPeer] = []
        self._processes: list[RelayProcess] = []  # relays of this test
        self._shared: list[RelayProcess] = []
        self._made = 0

    def environment(self, **settings: str) -> dict[str, str]:
        given = {"RELAY_ADMIN_TOKEN": ADMIN, **NO_RATES, **settings}
        return self.platform.relay_environment() | given

    def process(self, **settings: str) -> RelayProcess:
        """Start a relay."""
        process = RelayProcess(self.environment(**settings))
        self._processes.append(process)
        return process

    async def relay(self, **settings: str) -> Relay:
        """Start a relay and wait until it listens."""
        process = self.process(**settings)
        await eventually_said(process, '"relay_started"')
        return await deferToThread(Relay, process, "RELAY_TLS_CERT_PATH" in settings)

    def workspace(self, **policy: Any) -> str:
        """A new workspace, named by number; its pairing secret joins the secrets that no output may contain."""
        self._made += 1
        name = f"ws-{self._made}"
        if (secret := policy.get("pairing_secret")) is not None:
            self.secrets.append(secret)
        self.platform.workspaces.add(name, **policy)
        return name

    def paired(self, secret: bytes) -> str:
        """A workspace that requires IKpsk2."""
        return self.workspace(
            policy_mode="crypto_pairing", e2ee_profile="noise-ikpsk2", pairing_secret=b64(secret)
        )

    def token(self, role: str, workspace: str, **claims: Any) -> str:
        if role == CLIENT:
            claims = {"scope": "runtime", **claims}
        token = self.platform.issue(role, workspace, TARGET, **claims)
        self.secrets.append(token)
        return token

    async def raw(
        self, relay: Relay, role: str, workspace: str, offered: tuple[str, ...] = (LINK,), **claims: Any
    ) -> RawPeer:
        """A WebSocket that has sent nothing yet."""
        token = self.token(role, workspace, **claims)
        raw = await raw_connect(Destination(relay.ws, role, workspace, TARGET), token, offered)
        self.raws.append(raw)
        return raw

    async def link(self, relay: Relay, role: str, workspace: str, pattern: Pattern, **how: Any) -> LinkPeer:
        """A peer before message 1. `how` goes to the initiator (a wrong key and so on), `claims` to the token."""
        raw = await self.raw(relay, role, workspace, **how.pop("claims", {}))
        how.setdefault("query", UpgradeQuery(Role(role), workspace, TARGET))
        key = how.pop("relay_key", None) or PublicKey(relay.public)
        return LinkPeer(raw, Initiator(pattern, relay=key, **how))

    async def join(self, relay: Relay, role: str, workspace: str, pattern: Pattern | None, **how: Any) -> Any:
        """A peer that takes part in routing, with a link or without (None)."""
        peer: Any
        if pattern is None:
            peer = await self.raw(relay, role, workspace, (), **how)
        else:
            peer = await (await self.link(relay, role, workspace, pattern, **how)).up()

        async def joined() -> bool:
            target = await relay.target(workspace)
            return target is not None and (
                target["daemonConnected"] if role == DAEMON else target["clientCount"] > 0
            )

        await eventually(joined)
        return peer

    def keep(self, relay: Relay) -> Relay:
        """Share a relay with other tests."""
        self._processes.remove(relay.process)
        self._shared.append(relay.process)
        return relay

    def end_test(self) -> None:
        """Teardown of a test: end its peers, and its relays except shared ones."""
        processes, self._processes = self._processes, []
        for process in processes:
            process.process.kill()
        pytest_twisted.blockon(gatherResults([deferToThread(process.stop) for process in processes]))
        raws, self.raws = self.raws, []
        for raw in raws:
            raw.vanish()
        leaving = [raw.gone for raw in raws if raw.closed is None]
        pytest_twisted.blockon(gatherResults(leaving).addTimeout(PATIENCE, reactor))

    def close(self) -> None:
        stopping = [deferToThread(process.stop) for process in self._shared]
        pytest_twisted.blockon(gatherResults(stopping))
        pytest_twisted.blockon(ensureDeferred(self.platform.close()))


class PublicKey(StaticKey):
    """The public half of a relay's key, for code that expects a key pair."""

    def __init__(self, public: bytes) -> None:
        self.public = public


async def eventually_said(process: RelayProcess, what: str) -> None:
    """Wait until a relay has written `what`; the process must not end before."""

    async def said() -> bool:
        assert process.process.poll() is None or what in process.output(), process.output()
        return what in process.output()

    await eventually(said)


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _leave(world: World) -> Iterator[None]:
    yield
    world.end_test()


@pytest.fixture(scope="session")
def relay(world: World, tmp_path_factory: pytest.TempPathFactory) -> Relay:
    """The relay that most tests share, with default link settings."""
    state = tmp_path_factory.mktemp("relay") / "state"
    made: Relay = pytest_twisted.blockon(
        ensureDeferred(world.relay(RELAY_STATE_DIR=str(state), RELAY_ID="relay-noise"))
    )
    made.private_text = (state / "noise.key").read_text().strip()
    return world.keep(made)
