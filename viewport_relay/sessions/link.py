"""The Noise link of a connection: the handshake before it joins, records from then on (wire protocol, section 11).

`noise/` runs the handshake and holds the keys; `Link` joins it to the connection's reader, outbox and end, and to a time
limit. The document at `/.well-known/viewport-relay.json`, from which peers learn the relay's key, is made here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from attrs import define
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.web.server import Request

from viewport_relay import __version__
from viewport_relay.config import Config
from viewport_relay.noise.keys import RelayKeys
from viewport_relay.noise.link import LinkResponder
from viewport_relay.noise.machine import NoiseLink
from viewport_relay.noise.policy import Pattern
from viewport_relay.noise.records import message_max_bytes
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.entry import dump
from viewport_relay.observe.sink import EventSink
from viewport_relay.protocol.grant import LINK_SUBPROTOCOL, Grant, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal
from viewport_relay.wire.connection import Connection
from viewport_relay.wire.ending import Ending

WELL_KNOWN_PATH: Final = b"/.well-known/viewport-relay.json"

#: Lets a connection into routing: (connection, grant, name of the relay's key that its link used).
Join: TypeAlias = Callable[[Connection, Grant, str | None], None]

#: Counts and logs the relay's close of a connection that has not joined: (connection, ending, what is known of the peer).
NoteClose: TypeAlias = Callable[[Connection, Ending, Mapping[str, Any]], None]


@define(eq=False)
class Links:
    """Starts every connection of a relay: with a handshake, or at once where no link was chosen."""

    clock: IReactorTime
    log: EventSink
    counters: Counters
    _keys: RelayKeys
    _config: Config

    def begin(
        self, connection: Connection, query: UpgradeQuery, grant: Grant, join: Join, note_close: NoteClose
    ) -> None:
        """Let the connection join once its link is up. A connection without a link joins, or is refused, at once."""
        config = self._config
        if not connection.info.link and config.noise_link != "required":
            self.counters.handshakes[connection.info.noise] += 1
            join(connection, grant, None)
            return
        link = Link(self, connection, grant, join, note_close)
        connection.handler = link
        if connection.info.link:
            frame_max = config.frame_max_bytes
            connection.reader.limit(message_max_bytes(frame_max))
            connection.when_lost(link.forget)
            responder = LinkResponder(query, grant, self._keys, config.relay_id, frame_max)
            link.begin(responder, config.noise_timeout_ms / 1000)
        else:
            link.fail(Refusal(Reason.NOISE_LINK_REQUIRED, f"the peer offered no {LINK_SUBPROTOCOL}"))


@define(eq=False)
class Link:
    """The handler of a connection until it joins, and the `noise.machine.LinkPeer` of its handshake."""

    _links: Links
    _connection: Connection
    _grant: Grant
    _join: Join
    _note_close: NoteClose
    _timer: IDelayedCall | None = None
    _noise: NoiseLink | None = None

    def begin(self, responder: LinkResponder, timeout: float) -> None:
        """Wait `timeout` seconds for the peer's handshake."""
        self._noise = NoiseLink(self, responder)
        self._timer = self._links.clock.callLater(timeout, self._noise.inputs.timeout)
        self._connection.reader.unwrap = self._unwrap

    def _unwrap(self, payload: bytes, is_binary: bool) -> bytes | None:
        noise = self._noise
        assert noise is not None
        if not is_binary:
            noise.inputs.text_message()
            return None
        return noise.receive(payload)

    def _disarm(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def closed(self, ending: Ending) -> None:
        """The connection has ended before it joined."""
        self._disarm()
        noise = self._noise
        if noise is not None:
            if ending.reason is None:
                noise.inputs.peer_gone()
            else:
                noise.inputs.relay_closes()
        self._note_close(self._connection, ending, self._about())

    def forget(self) -> None:
        """Break the reference cycle with `NoiseLink`, so that both are freed at once: the connection is lost."""
        self._noise = None

    # -- LinkPeer ----------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        self._connection.outbox.send_binary(data)

    def established(self, pattern: Pattern) -> None:
        self._disarm()
        connection, noise = self._connection, self._noise
        assert noise is not None
        connection.info.noise = pattern.label
        connection.link_up(noise.records, noise.inputs.refused)
        self._links.counters.handshakes[connection.info.noise] += 1
        self._join(connection, self._grant, noise.key_used)

    def fail(self, refusal: Refusal) -> None:
        if refusal.reason is Reason.FRAME_TOO_LARGE:
            self._links.counters.ws_frame_too_large += 1
        details = {**self._key_used(), **refusal.details}
        self._connection.close(refusal.reason, refusal.detail, details=details)

    def note(self, refusal: Refusal) -> None:
        self._links.counters.handshakes_left[refusal.reason] += 1
        about = {**self._about(), **self._key_used(), **refusal.details, "detail": refusal.detail}
        connection_id = self._connection.info.connection_id
        self._links.log.event("handshake", reason=refusal.reason, connection_id=connection_id, **about)

    def _about(self) -> dict[str, Any]:
        return {**self._grant.describe(), "ip": self._connection.info.ip}

    def _key_used(self) -> dict[str, str | None]:
        return {"relayKeyUsed": None if self._noise is None else self._noise.key_used}


def well_known(config: Config, keys: RelayKeys) -> Callable[[Request], bytes]:
    """Make the function that answers `GET /.well-known/viewport-relay.json`."""
    document: dict[str, Any] = {
        "relayId": config.relay_id,
        "version": __version__,
        "subprotocols": [] if config.noise_link == "off" else [LINK_SUBPROTOCOL],
        "noisePublicKey": keys.current.public_text,
    }
    if keys.previous is not None:
        document["noisePreviousPublicKey"] = keys.previous.public_text
    body = dump(document).encode("ascii")

    def answer(request: Request) -> bytes:
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"content-length", b"%d" % len(body))
        request.setHeader(b"cache-control", b"max-age=60")
        request.setHeader(b"access-control-allow-origin", b"*")  # browsers read it from the web app's origin
        return body

    return answer
