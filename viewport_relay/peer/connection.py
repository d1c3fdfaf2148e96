"""One WebSocket connection from a peer to a relay, with or without the link.

`connect` upgrades, proves the link if one is asked for, and returns a `Connection` that carries text frames.
A connection ends with `UpgradeRefused` (an HTTP answer with the relay's reason), `ClosedEarly` (closed before it was
usable), or later `Connection.closed` with the close code. `reconnect` connects again after a loss; `daemon` and `client`
interpret the frames.

Autobahn's log is off: its messages would carry the request headers, and so the token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectingCancelledError, ConnectionClosed
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import BrowserLikePolicyForHTTPS

from viewport_relay.peer.errors import Code, PeerError, require
from viewport_relay.peer.link import SUBPROTOCOL, LinkInitiator
from viewport_relay.peer.upgrade import Closed, ClosedEarly, Destination, UpgradeRefused

OPEN_SECONDS = 10.0
CLOSE_SECONDS = 10.0
REFUSAL_BODY_MAX = 65_536
# The relay's frame limit plus what records add; anything larger is not worth the memory.
MESSAGE_MAX_BYTES = 2_097_152
NO_CLOSE_FRAME = 1006
LINK_FAILED = 4008
LINK_TIMEOUT = "the relay did not answer the link's handshake in time"


class _Silent:
    """Null object for Autobahn's logger (see the module's docstring)."""

    def debug(self, *_: object, **__: object) -> None:
        """Log nothing."""

    trace = info = warn = error = debug


class _Protocol(WebSocketClientProtocol):  # type: ignore[misc, unused-ignore]  # not typed
    """Autobahn's client with the refusal read to its end, and the link's handshake before `opened`."""

    log = _Silent()

    def __init__(self, reactor: Any, link: LinkInitiator | None, on_frame: Callable[[str], None]) -> None:
        super().__init__()
        self.opened: Deferred[Connection] = Deferred(lambda _: self.dropConnection(abort=True))
        self.closed: Deferred[Closed] = Deferred()
        self._reactor = reactor
        self._link = link
        self._link_timer: Any = None
        self._on_frame = on_frame
        self._refusal: tuple[int, str, int | None] | None = None
        self._body = b""
        self._fault = ""

    # -- the upgrade -----------------------------------------------------------------------------------

    def failHandshake(self, reason: str) -> None:
        """Read the body of a refused upgrade, which has the reason. Autobahn would drop the connection at once."""
        status = str(getattr(self, "http_status_line", "")).split()
        if len(status) > 1 and status[1].isdigit() and status[1] != "101":
            headers: dict[str, str] = self.http_headers
            length = headers.get("content-length", "").strip()
            self._refusal = (
                int(status[1]),
                headers.get("x-relay-reason", "").strip(),
                int(length) if length.isdigit() else None,
            )
            self._collect(self.data[self.data.find(b"\r\n\r\n") + 4 :])
        else:
            # Autobahn's text may quote what the server sent back, a sub-protocol with the token included.
            self._fault = "the answer to the upgrade is not a WebSocket handshake"
            self.dropConnection(abort=True)

    def dataReceived(self, data: bytes) -> None:
        if self._refusal is not None:
            self._collect(data)
        else:
            super().dataReceived(data)

    def _collect(self, data: bytes) -> None:
        assert self._refusal is not None
        length = self._refusal[2]
        self._body = (self._body + data)[:REFUSAL_BODY_MAX]
        if len(self._body) >= min(REFUSAL_BODY_MAX if length is None else length, REFUSAL_BODY_MAX):
            self.dropConnection(abort=True)

    # -- open ------------------------------------------------------------------------------------------

    def onOpen(self) -> None:
        if self._link is None:
            self._ready()
        elif self.websocket_protocol_in_use != SUBPROTOCOL:
            self.fail("the relay does not speak the link")
        else:
            self._link_timer = self._reactor.callLater(OPEN_SECONDS, self.fail, LINK_TIMEOUT)
            self.sendMessage(self._link.message_1(), isBinary=True)

    def _stop_link_timer(self) -> None:
        if self._link_timer is not None and self._link_timer.active():
            self._link_timer.cancel()

    def _ready(self) -> None:
        self._stop_link_timer()
        self.opened.callback(Connection(self))

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._fault:
            return
        if self._link is None:
            self._deliver(payload)
            return
        if not isBinary:
            self.fail("a text message on a link")
            return
        try:
            if self._link.established:
                self._deliver(self._link.open(payload))
                return
            self._link.read_message_2(payload)
            self.sendMessage(self._link.confirm(), isBinary=True)
        except PeerError as error:
            self.fail(error.detail)
            return
        self._ready()

    def _deliver(self, payload: bytes) -> None:
        try:
            text = payload.decode("utf-8")
        except UnicodeDecodeError:
            self.fail("a message that is not text")
            return
        self._on_frame(text)

    def send_text(self, text: str) -> None:
        payload = text.encode("utf-8")
        linked = self._link is not None
        self.sendMessage(payload if self._link is None else self._link.seal(payload), isBinary=linked)

    @property
    def usable(self) -> bool:
        return bool(self.state == WebSocketClientProtocol.STATE_OPEN)

    # -- the end ---------------------------------------------------------------------------------------

    def fail(self, why: str) -> None:
        """Close because of an error of the relay."""
        self._fault = why
        self.sendClose(LINK_FAILED, why)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        connecting = self.state == WebSocketClientProtocol.STATE_CONNECTING and self._refusal is None
        if connecting and not self._fault and not isinstance(reason.value, ConnectionClosed):
            self._fault = f"TLS failed: {type(reason.value).__name__}"
        super().connectionLost(reason)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self._stop_link_timer()
        if self._refusal is not None:
            status, why, _ = self._refusal
            self.opened.errback(UpgradeRefused(status, why, self._body.decode("utf-8", "replace")))
            return
        closed = self._how_it_ended(wasClean)
        if not self.opened.called:
            self.opened.errback(ClosedEarly(closed))
        else:
            self.closed.callback(closed)

    def _how_it_ended(self, clean: bool) -> Closed:
        # The relay's Close frame counts, also when the TCP connection was not closed as RFC 6455 (section 7.1.1) asks.
        # A fault that this peer found comes first: the relay's frame is then an echo.
        if self.remoteCloseCode is not None and not self._fault:
            return Closed(self.remoteCloseCode, self.remoteCloseReason or "")
        code = NO_CLOSE_FRAME if self.localCloseCode is None else self.localCloseCode
        if self._fault or clean:
            return Closed(code, self._fault)
        if self.wasOpenHandshakeTimeout:
            return Closed(code, "the relay did not answer the upgrade in time")
        return Closed(code, "the connection was lost without a close frame")


class Connection:
    """An open connection: frames out by `send`, frames in through the callback given to `connect`."""

    def __init__(self, protocol: _Protocol) -> None:
        self._protocol = protocol
        self.closed: Deferred[Closed] = protocol.closed
        """Fires once, when the TCP connection is gone."""

    @property
    def subprotocol(self) -> str | None:
        """The sub-protocol that the relay selected."""
        chosen: str | None = self._protocol.websocket_protocol_in_use
        return chosen

    def send(self, text: str) -> None:
        """Queue one frame. Raises PeerError NOT_CONNECTED, or TOO_LARGE on a link."""
        require(self._protocol.usable, Code.NOT_CONNECTED, "the connection is closed or closing")
        self._protocol.send_text(text)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Start the closing handshake; `code` is 1000 or 3000-4999. No-op when already closing."""
        if self._protocol.usable:
            self._protocol.sendClose(code, reason or None)

    def abort(self) -> None:
        """Drop the TCP connection at once, as a crash would."""
        self._protocol.dropConnection(abort=True)


class _Factory(WebSocketClientFactory):  # type: ignore[misc, unused-ignore]  # not typed
    log = _Silent()
    noisy = False


async def connect(
    reactor: Any, destination: Destination, token: str | None, on_frame: Callable[[str], None]
) -> Connection:
    """Open one connection; `token` None sends none at all (to see the refusal).

    Raises UpgradeRefused, ClosedEarly, or the endpoint's own errors (DNS, refused TCP connection, TLS).
    Gives up on an answer to the upgrade after 10 s. Cancelling the wait drops the connection.
    """
    headers = dict(destination.headers)
    offered = list(destination.subprotocols)
    if destination.link is not None:
        offered.insert(0, SUBPROTOCOL)
    if token is not None and destination.token_in == "subprotocol":
        offered.append(f"auth.{token}")
    elif token is not None:
        headers["Authorization"] = f"Bearer {token}"
    link = None if destination.link is None else LinkInitiator(destination.link)

    factory = _Factory(destination.url, protocols=offered, headers=headers, useragent=None, reactor=reactor)
    factory.setProtocolOptions(
        openHandshakeTimeout=OPEN_SECONDS,
        closeHandshakeTimeout=CLOSE_SECONDS,
        serverConnectionDropTimeout=CLOSE_SECONDS,
        maxMessagePayloadSize=MESSAGE_MAX_BYTES,
        maxFramePayloadSize=MESSAGE_MAX_BYTES,
        failByDrop=False,
    )
    factory.protocol = partial(_Protocol, reactor, link, on_frame)
    parts = urlsplit(destination.url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "wss" else 80)
    endpoint: Any = HostnameEndpoint(reactor, host, port, timeout=OPEN_SECONDS)
    if parts.scheme == "wss":
        policy = destination.tls or BrowserLikePolicyForHTTPS()
        endpoint = wrapClientTLS(policy.creatorForNetloc(host.encode(), port), endpoint)
    try:
        protocol: _Protocol = await endpoint.connect(factory)
    except ConnectingCancelledError:
        # A cancelled connect raises no CancelledError in Twisted.
        raise CancelledError from None
    return await protocol.opened
