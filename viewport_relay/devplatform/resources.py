"""The platform on twisted.web: one leaf resource that finds the endpoint, applies rules and sends the answer; its listeners.

A leaf, because paths match exactly and raw: a tree of resources would decode and split them first.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.ssl import Certificate, CertificateOptions, PrivateCertificate
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from viewport_relay.devplatform.endpoints import Endpoints
from viewport_relay.devplatform.jsonhttp import Answer, Ask, BoundedRequest, Refused
from viewport_relay.devplatform.rules import Rule

DRIP_STEP_SECONDS = 0.1
IDLE_SECONDS = 60.0
LOOPBACK = "127.0.0.1"

# Twisted has no types for these constructors.
_load_identity: Any = PrivateCertificate.loadPEM
_wrapping_factory: Any = WrappingFactory


class ControlPlane(Resource):
    """All of the platform's paths."""

    isLeaf = True
    _log = Logger()

    def __init__(self, clock: IReactorTime, endpoints: Endpoints) -> None:
        base: Any = super()  # twisted.web has no types for it
        base.__init__()
        self._clock = clock
        self._endpoints = endpoints
        self.rules: dict[str, Rule] = {}
        """Overrides by exact path (without the query), laid over whatever the endpoint answers."""
        self.loopback_names_only = True
        """Refuse a Host header that does not name this machine: a web page may have rebound its name."""

    def render(self, request: BoundedRequest) -> int:
        """Called by twisted.web for every request, of any method."""
        serving = Deferred.fromCoroutine(self._serve(request))
        request.notifyFinish().addErrback(lambda _: serving.cancel())
        serving.addErrback(lambda failure: Deferred.fromCoroutine(self._failed(failure, request)))
        return NOT_DONE_YET

    async def _serve(self, request: BoundedRequest) -> None:
        ask = request.ask()
        try:
            answer = await self._answer(ask, too_large=request.too_large)
        except Refused as refused:
            answer = refused.answer()
        rule = self.rules.get(ask.path)
        if rule is not None:
            answer = rule.over(answer)
        await self._send(request, answer)

    async def _answer(self, ask: Ask, *, too_large: bool) -> Answer:
        if self.loopback_names_only and not _names_loopback(ask.headers.get("host")):
            raise Refused(403, "HOST_NOT_ALLOWED", "the Host header must name the loopback interface")
        if too_large:
            raise Refused(413, "BODY_TOO_LARGE", "a body may have 1048576 bytes", {"connection": "close"})
        methods = self._endpoints.find(ask.path)
        if methods is None:
            raise Refused(404, "NOT_FOUND")
        endpoint = methods.get(ask.method)
        if endpoint is None:
            raise Refused(405, "METHOD_NOT_ALLOWED", headers={"allow": ", ".join(methods)})
        return await endpoint(ask)

    # Any: twisted.web has no types for a response
    async def _send(self, request: Any, answer: Answer) -> None:
        if answer.delay > 0:
            await deferLater(self._clock, answer.delay)
        payload = answer.payload()
        headers = {"content-type": "application/json", "cache-control": "no-store", **answer.headers}
        # Without a length the response is chunked, so that a dripping one can be told from its end.
        if answer.drip <= 0 and answer.status not in (204, 304):
            headers["content-length"] = str(len(payload))
        request.setResponseCode(answer.status)
        for name, value in headers.items():
            request.setHeader(name, value)
        until = self._clock.seconds() + answer.drip
        while self._clock.seconds() < until:
            request.write(b" ")
            await deferLater(self._clock, DRIP_STEP_SECONDS)
        request.write(payload)
        request.finish()

    async def _failed(self, failure: Failure, request: Any) -> None:
        if isinstance(failure.value, CancelledError):
            return  # the peer went away while it waited
        self._log.failure("a request of the development platform failed", failure=failure)
        if request.startedWriting:
            request.loseConnection()
        else:
            await self._send(request, Refused(500, "INTERNAL_ERROR").answer())


class QuietSite(Site):
    """A site without an access log: requests here carry credentials."""

    def log(self, request: object) -> None:
        """Log nothing."""

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 only, whatever else is installed."""
        return [b"http/1.1"]


def make_site(clock: IReactorTime, resource: ControlPlane) -> Site:
    """The site for `resource`; idle connections are kept for 60 s."""
    make: Any = QuietSite  # twisted.web has no types for its constructor
    site: Site = make(
        resource,
        requestFactory=BoundedRequest,
        parsePOSTFormSubmission=False,
        reactor=clock,
        timeout=IDLE_SECONDS,
    )
    return site


def _names_loopback(host: str | None) -> bool:
    if host is None:
        return True  # HTTP/1.0; browsers always send one
    try:
        name = urlsplit(f"//{host}").hostname
        return name == "localhost" or (name is not None and ip_address(name).is_loopback)
    except ValueError:
        return False


# -- listeners -------------------------------------------------------------------------------------------


def tls_options(certificate: bytes, key: bytes, client_ca: bytes | None = None) -> CertificateOptions:
    """Server TLS from PEM texts; with `client_ca` a client certificate that it signed is required."""
    authorities = [] if client_ca is None else [Certificate.loadPEM(client_ca)]
    options: CertificateOptions = _load_identity(key + b"\n" + certificate).options(*authorities)
    return options


class Listener:
    """A site on one port of 127.0.0.1. `port` is the number once it listened, and stays the same.

    It can be stopped, which also cuts open connections, and started again on the same port.
    """

    def __init__(self, reactor: Any, site: Site, port: int, tls: CertificateOptions | None) -> None:
        self.port = port
        self.tls = tls
        self._reactor = reactor
        # The wrapper keeps the list of what is connected.
        self._factory = _wrapping_factory(site)
        self._listening: Any = None

    @property
    def url(self) -> str:
        """Origin of the listener, without a slash at the end."""
        return f"{'https' if self.tls else 'http'}://{LOOPBACK}:{self.port}"

    def up(self) -> None:
        """Listen; CannotListenError if the port is taken. Does nothing if it is up."""
        if self._listening is None:
            tls = () if self.tls is None else (self.tls,)
            listen = self._reactor.listenSSL if tls else self._reactor.listenTCP
            self._listening = listen(self.port, self._factory, *tls, interface=LOOPBACK)
            self.port = self._listening.getHost().port

    async def down(self) -> None:
        """Stop listening and cut what is connected. Does nothing if it is down."""
        listening, self._listening = self._listening, None
        if listening is not None:
            stopped = listening.stopListening()
            for connection in list(self._factory.protocols):
                connection.transport.abortConnection()
            await stopped
