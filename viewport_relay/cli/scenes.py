"""The scenes of the demonstration: daemon and client stream an agent's session through a relay and check every byte.

Four scenes: a plain workspace, the link, a paired workspace (link and end to end with IKpsk2), and a link
that the relay must refuse. The command line is parsed by `demo`, which also starts the relay.
"""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Callable
from typing import Any

from attrs import evolve, frozen
from twisted.internet.defer import CancelledError, TimeoutError, ensureDeferred
from twisted.internet.error import ConnectError, DNSLookupError

from viewport_relay.admission.tls import ClientTls
from viewport_relay.peer.client import ClientPeer, Pairing
from viewport_relay.peer.connection import Connection, connect
from viewport_relay.peer.daemon import DaemonPeer
from viewport_relay.peer.errors import PeerError
from viewport_relay.peer.link import LinkSettings, generate_static
from viewport_relay.peer.platform_api import JsonHttp, PlatformApi, PlatformError, fetch_link_key
from viewport_relay.peer.symmetric import KeyPair
from viewport_relay.peer.transcript import LARGE_FRAME_BYTES, Transcript, TranscriptRun, make_transcript
from viewport_relay.peer.upgrade import Closed, ClosedEarly, Destination, UpgradeRefused

PAIRING_PEER = "demo-peer"
INVALID_PSK = Closed(4008, "Noise handshake failed: invalid psk")

DAEMON, CLIENT = "workspace-daemon", "client"
TARGET = "dev-machine"

Out = Callable[[str], None]


class DemoFailed(Exception):
    """The demonstration failed; the text says what an operator should check."""


@frozen(repr=False)
class Where:
    """URLs and credentials for a demonstration. No repr: it holds a credential.

    `ws_url` is the relay's base (`ws://host:port`), `platform_url` the control plane's. `turns` >= 5 messages go each way,
    which gives the keys time to be renewed; the relay's default of 240 a minute is the ceiling for one client.
    """

    ws_url: str
    platform_url: str
    credential: str
    turns: int = 200
    large_frame_bytes: int = LARGE_FRAME_BYTES
    timeout: float = 60.0


@frozen
class Scene:
    """One workspace and its transport: with `link` over the Noise link; `paired`: IKpsk2 for link and session keys."""

    name: str
    workspace_id: str
    link: bool = False
    paired: bool = False


PLAIN = Scene("plain workspace", "dev-workspace")
LINKED = Scene("over the link", "dev-link", link=True)
PAIRED = Scene("paired workspace", "dev-paired", link=True, paired=True)
SCENES = (PLAIN, LINKED, PAIRED)


class Stage:
    """Tokens, keys and connections of one scene, released together."""

    def __init__(self, reactor: Any, where: Where, scene: Scene) -> None:
        self._reactor = reactor
        self._where = where
        self._scene = scene
        self._tls = ClientTls()
        self._http = JsonHttp(reactor, self._tls)
        self._platform = PlatformApi(self._http, where.platform_url)
        self._open: list[Connection] = []

    async def join(self, role: str, on_frame: Callable[[str], None]) -> Connection:
        """Get a token for `role` and connect, over the link and with the pre-shared key as the scene says."""
        where, scene = self._where, self._scene
        credential = where.credential
        if role == DAEMON:
            credential = await self._platform.daemon_issue_token(
                scene.workspace_id, runtimeTargetId=TARGET, credential=credential
            )
        token = await self._platform.relay_token(role, scene.workspace_id, TARGET, credential)
        destination = Destination(where.ws_url, role, scene.workspace_id, TARGET, tls=self._tls)
        if scene.link:
            try:
                relay_key = await fetch_link_key(self._http, where.ws_url)
            except PlatformError as error:
                raise DemoFailed(f"the relay ({where.ws_url}) does not tell its link key: {error}") from error
            if relay_key is None:
                raise DemoFailed("the relay offers no link: is RELAY_NOISE_LINK off?")
            secret = token.pairing_secret if scene.paired else None
            if scene.paired and secret is None:
                raise DemoFailed(f"no pairing secret is known for workspace {scene.workspace_id}")
            link = LinkSettings(relay_key, generate_static(), role, scene.workspace_id, TARGET, secret)
            destination = evolve(destination, link=link)
        connection = await connect(self._reactor, destination, token.token, on_frame)
        self._open.append(connection)
        return connection

    async def leave(self) -> None:
        """Close all connections and wait until they are closed."""
        for connection in self._open:
            connection.close(1000, "done")
        for connection in self._open:
            await connection.closed


@frozen
class ExchangeResult:
    """Result of one scene, counted by the peers.

    `median_seconds`: median round trip of messages sent one at a time.
    """

    messages: int
    size: int
    median_seconds: float
    rekeys: int
    epoch: int


def summary(messages: int, size: int, median_seconds: float) -> str:
    """The result in one line."""
    return f"EXCHANGE OK {messages} messages, {size / 1e6:.1f} MB, median round trip {median_seconds * 1e3:.1f} ms"


async def exchange(reactor: Any, where: Where, out: Out, scene: Scene) -> ExchangeResult:
    """Stream one session through the relay and check it at both ends.

    `out` gets progress lines; the last begins with EXCHANGE OK. Raises DemoFailed.
    """
    transcript = make_transcript(where.turns, large_frame_bytes=where.large_frame_bytes)
    run = TranscriptRun(reactor, transcript)
    stage = Stage(reactor, where, scene)
    playing = ensureDeferred(_play(reactor, stage, run, transcript, scene, out))
    run.stop = playing.cancel
    playing.addTimeout(where.timeout, reactor)
    try:
        client = await playing
    except TimeoutError:
        raise DemoFailed(f"{scene.name}: not through after {where.timeout:.0f} s") from None
    except CancelledError:
        if run.failure is None:
            raise
        raise DemoFailed(f"{scene.name}: {run.failure}") from None
    except _EXPECTED as error:
        raise DemoFailed(f"{scene.name}: {_explain(error, where)}") from error
    finally:
        run.stop = lambda: None
        await stage.leave()
    median = statistics.median(run.round_trips)
    out(summary(transcript.messages, transcript.size, median))
    return ExchangeResult(transcript.messages, transcript.size, median, client.rekeys, client.epoch)


async def _play(
    reactor: Any, stage: Stage, run: TranscriptRun, transcript: Transcript, scene: Scene, out: Out
) -> ClientPeer:
    # End to end, the pre-shared key is known to the two peers alone; the link uses the grant's.
    pairing = Pairing(PAIRING_PEER, secrets.token_bytes(32)) if scene.paired else None
    identity = KeyPair.generate()
    daemon = DaemonPeer(
        identity,
        lambda frame: daemon_end.send(frame),
        run.at_daemon,
        pairing_secrets=None if pairing is None else {pairing.peer_id: pairing.secret},
        rekey_after=transcript.messages // 2 + 1,
    )
    client = ClientPeer(
        reactor,
        KeyPair.generate(),
        identity.public,
        lambda frame: client_end.send(frame),
        run.at_client,
        pairing=pairing,
    )
    daemon_end = await stage.join(DAEMON, daemon.frame_received)
    _watch(daemon_end, "daemon", run)
    client_end = await stage.join(CLIENT, client.frame_received)
    _watch(client_end, "client", run)
    pattern = "IKpsk2" if scene.paired else "IK"
    way = f"over the link, {pattern}" if scene.link else "over plain WebSocket"
    out(f"{scene.name}: daemon and client joined {scene.workspace_id} {way}")
    await client.exchange_keys(attempts=8)
    out(f"{scene.name}: keys exchanged end to end, {client.profile.value}")
    await run.run(client)
    if client.rekeys < 1 or daemon.rekeys < 1:
        raise DemoFailed("the keys were not renewed on the way")
    refused = client.refused + daemon.refused
    if refused:
        raise DemoFailed("frames were refused: " + ", ".join(sorted(code.value for code in refused)))
    out(f"{scene.name}: all arrived once, in order and unchanged; keys renewed, epoch {client.epoch}")
    return client


def _watch(connection: Connection, who: str, run: TranscriptRun) -> None:
    def gone(closed: Closed) -> None:
        run.fail(f"the {who}'s connection ended: {closed.code} {closed.reason}".rstrip())

    connection.closed.addCallback(gone)


async def refused_link(reactor: Any, where: Where, out: Out) -> Closed:
    """Offer plain IK where IKpsk2 is required; the relay must refuse. Raises DemoFailed when it does not."""
    stage = Stage(reactor, where, evolve(PAIRED, paired=False))
    name = "link without the pairing"
    try:
        await stage.join(CLIENT, lambda _: None)
        raise DemoFailed(f"{name}: the relay let it in")
    except ClosedEarly as early:
        if early.closed != INVALID_PSK:
            raise DemoFailed(f"{name}: refused otherwise than promised: {early}") from early
        out(f"{name}: refused as it must be, {early.closed.code} {early.closed.reason}")
        return early.closed
    except _EXPECTED as error:
        raise DemoFailed(f"{name}: {_explain(error, where)}") from error
    finally:
        await stage.leave()


_EXPECTED = (PlatformError, UpgradeRefused, ClosedEarly, PeerError, ConnectError, DNSLookupError)


def _explain(error: Exception, where: Where) -> str:
    match error:
        case PlatformError():
            return f"the platform ({where.platform_url}) did not answer as it should: {error}"
        case UpgradeRefused():
            refused = f"the relay refused the connection: HTTP {error.status} {error.reason} {error.message}"
            return refused.rstrip()
        case ClosedEarly(closed=Closed(code, reason)):
            return f"the relay closed the connection at once: {code} {reason}".rstrip()
        case PeerError():
            return f"the peers could not go on: {error}"
    return f"the relay ({where.ws_url}) cannot be reached: {error}"
