"""The listeners of a process: one for peers, and with RELAY_ADMIN_LISTEN one for operators."""

from __future__ import annotations

import errno
import os
import re
import select
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol

from OpenSSL import SSL, crypto
from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.web.resource import Resource
from zope.interface import implementer

from viewport_relay import descriptors
from viewport_relay.admin.auth import AdminAuth
from viewport_relay.admin.site import Page
from viewport_relay.config import EX_CONFIG, Config, bracketed, is_loopback
from viewport_relay.observe.logs import EventLog
from viewport_relay.service.engine import Engine, Parts
from viewport_relay.service.timers import WaitingService, with_deadline
from viewport_relay.sessions.link import WELL_KNOWN_PATH, well_known
from viewport_relay.wire.addresslimits import AddressLimits, LimitedFactory
from viewport_relay.wire.attempts import UpgradeAttempts
from viewport_relay.wire.fairqueue import FairQueue
from viewport_relay.wire.httpconnections import HttpConnections
from viewport_relay.wire.plainhttp import PlainHttp
from viewport_relay.wire.proxyprotocol import ProxyFactory
from viewport_relay.wire.site import RelaySite, Root
from viewport_relay.wire.tls import ServerContext
from viewport_relay.wire.tlstransport import TLSFactory

_BACKLOG: Final = 1024

#: Exceptions of Twisted's parsers and plugins for a wrong description of an endpoint.
_BAD_ENDPOINT: Final = (ValueError, LookupError, TypeError, AttributeError, OSError, SSL.Error, crypto.Error)

#: Seconds that accepted connections have for their request and its answer when the relay stops.
GRACE: Final = 0.5


def cannot_listen(error: BaseException) -> str:
    """The error text for an endpoint that cannot listen, with its address."""
    if isinstance(error, OSError):  # of the lock beside a Unix socket
        lock = os.fsdecode(error.filename2 or error.filename or "")
        return f"cannot listen on unix:{lock.removesuffix('.lock')}: {error.strerror}"
    if not isinstance(error, CannotListenError):
        return f"cannot listen: {error}"
    why = getattr(error.socketError, "strerror", None) or error.socketError
    if isinstance(error.port, int):
        return f"cannot listen on {bracketed(error.interface or '0.0.0.0', error.port)}: {why}"
    if not isinstance(error.socketError, OSError):  # Twisted's lock is taken
        why = "another process listens there"
    elif error.socketError.errno == errno.EADDRINUSE:
        why = "there is such a file already; remove it if no process listens there"
    return f"cannot listen on unix:{os.fsdecode(error.port)}: {why}"


def _words(error: Exception) -> str:
    """The error in an endpoint's description, in words, by the exception of Twisted's parser."""
    if isinstance(error, LookupError):
        return "no such socket was passed"
    if isinstance(error, SSL.Error | crypto.Error):
        return "its private key or certificate cannot be used: it takes PEM, and a key without passphrase"
    if isinstance(error, OSError):
        return f"cannot read {error.filename!r}: {error.strerror}"
    text = str(error)
    if isinstance(error, TypeError):
        if lacks := re.search(r"missing .* arguments?: (.*)", text):
            return f"it lacks {lacks[1]}"
        if unknown := re.search(r"unexpected keyword argument (.*)", text):
            return f"it takes no {unknown[1]}"
    return text


@implementer(IStreamServerEndpoint)
class _ImmediateEndpoint:
    """An endpoint that listens at once, or exits the process: status 78 for a wrong description, 1 for a port in use.

    `port` is the IListeningPort. Twisted's service would log the failure and keep a process that listens nowhere.
    """

    port: Any = None  # an IListeningPort, which is a FileDescriptor too

    def __init__(self, name: str, make: Callable[[], IStreamServerEndpoint], log: EventLog) -> None:
        """`name` is the setting that the endpoint comes from; `make` makes the endpoint."""
        self._name = name
        self._make = make
        self._log = log

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        try:
            endpoint = self._make()
        except _BAD_ENDPOINT as error:
            self._fail(f"cannot use this endpoint: {_words(error)}", EX_CONFIG)
        failures: list[BaseException] = []
        listening = endpoint.listen(protocolFactory)
        listening.addCallbacks(self._listens, lambda failure: failures.append(failure.value))
        for failure in failures:
            wrong = getattr(getattr(failure, "socketError", None), "errno", None)
            if self._name == "RELAY_LISTEN_PORT" and wrong not in (None, errno.EADDRINUSE, errno.EACCES):
                self._name = "RELAY_LISTEN_HOST"  # no such name, or no address of this machine
            self._fail(cannot_listen(failure), 1)
        return listening

    def _listens(self, port: IListeningPort) -> IListeningPort:
        self.port = port
        return port

    def _fail(self, message: str, status: int) -> None:
        self._log.event("listen_failed", message=f"{self._name}: {message}")
        raise SystemExit(status)


class MakePages(Protocol):
    """Makes the resource of all requests but upgrades, with or without the admin pages (`admin.site.build`)."""

    def __call__(self, *, admin: bool, others: Mapping[bytes, Page]) -> Resource: ...


class Listeners(WaitingService):
    """The listeners for peers and operators, with their sites."""

    def __init__(
        self,
        parts: Parts,
        engine: Engine,
        *,
        auth: AdminAuth,
        tls: ServerContext | None,
        pages: MakePages,
    ) -> None:
        MultiService.__init__(self)
        config = parts.config
        self._parts = parts
        self._engine = engine
        self._auth = auth
        self._http: list[HttpConnections] = []
        self._limits = AddressLimits(
            parts.reactor, config, parts.log, parts.counters, exempt=parts.address.trusts
        )
        self._queue = FairQueue(parts.reactor)
        name = "RELAY_LISTEN_ENDPOINT" if config.listen_endpoint else "RELAY_LISTEN_PORT"
        self._endpoint = _ImmediateEndpoint(name, self._for_peers, parts.log)
        self._public = StreamServerEndpointService(self._endpoint, self._peers(tls, pages))
        self._public.setServiceParent(self)
        if config.admin_listen is not None:
            host, port = config.admin_listen
            endpoint = _ImmediateEndpoint("RELAY_ADMIN_LISTEN", lambda: self._tcp(host, port), parts.log)
            operators = self._operators(None if is_loopback(host) else tls, pages)
            StreamServerEndpointService(endpoint, operators).setServiceParent(self)

    def _peers(self, tls: ServerContext | None, pages: MakePages) -> IProtocolFactory:
        """The factory of the listener for peers: upgrades, and the admin pages unless they have a listener of their own."""
        config, upgrade = self._parts.config, self._engine.upgrade
        of_wire: dict[bytes, Page] = {
            b"/ws": upgrade.render,
            WELL_KNOWN_PATH: well_known(config, self._parts.keys),
        }
        plain = self._site(
            upgrade, pages(admin=config.admin_listen is None, others=of_wire), self._per_address
        )
        site = plain if tls is None else self._engine.over_tls(plain, tls)
        if config.proxy_protocol:
            return ProxyFactory(site, self._is_balancer, self._limits.refuses, self._parts.log)
        return LimitedFactory(site, self._limits)

    def _operators(self, tls: ServerContext | None, pages: MakePages) -> IProtocolFactory:
        """The factory of the listener for operators: the admin pages alone."""
        site: Any = self._site(None, pages(admin=True, others={}), lambda: 0)
        if tls is not None:
            site = TLSFactory(tls, site, self._parts.reactor, self._queue)
        return LimitedFactory(site, self._limits)

    def _site(
        self, upgrade: UpgradeAttempts | None, pages: Resource, per_address: Callable[[], int]
    ) -> RelaySite:
        """The site of one listener. The limit on plain HTTP holds for all requests but upgrades."""
        parts, queue = self._parts, self._queue
        admits = partial(self._auth.admits, access="scraper")
        plain = PlainHttp(pages, parts.reactor, self._limits, queue, parts.address, admits)
        connections = HttpConnections(self._http_room, parts.log, per_address, parts.address.trusts)
        self._http.append(connections)
        keep_alive = parts.config.http_keep_alive
        return RelaySite(Root(upgrade, plain), parts.reactor, queue, connections, keep_alive)

    def _http_room(self) -> int:
        """Most HTTP connections allowed now, beside the upgraded connections."""
        parts = self._parts
        most = parts.config.max_total_connections or sys.maxsize
        if parts.open_files:
            most = min(most, descriptors.for_http(parts.open_files, self._engine.connected()))
        return most

    def _per_address(self) -> int:
        """Most HTTP connections of one peer's address; 0: no limit, for behind a balancer all have its address."""
        config = self._parts.config
        return 0 if config.proxy_protocol else 2 * config.max_connections_per_ip

    def _is_balancer(self, peer: str) -> bool:
        """Whether a PROXY header from this address is accepted: from every address when RELAY_TRUSTED_PROXIES is empty."""
        address = self._parts.address
        return not address.trusted or address.trusts(peer)

    def _for_peers(self) -> IStreamServerEndpoint:
        config = self._parts.config
        if config.listen_endpoint:
            endpoint: IStreamServerEndpoint = serverFromString(self._parts.reactor, config.listen_endpoint)
            return endpoint
        return self._tcp(config.listen_host, config.listen_port)

    def _tcp(self, host: str, port: int) -> IStreamServerEndpoint:
        kind = TCP6ServerEndpoint if ":" in host else TCP4ServerEndpoint
        name = "127.0.0.1" if host == "localhost" else host
        return kind(self._parts.reactor, port, backlog=_BACKLOG, interface=name)

    @property
    def port(self) -> int | None:
        """The TCP port for peers; None before the start, and for a Unix socket."""
        port = self._endpoint.port
        return None if port is None else getattr(port.getHost(), "port", None)

    def apply(self, config: Config) -> None:
        """Apply reloaded limits of addresses."""
        self._limits.apply(config)

    def pause(self) -> None:
        """Stop accepting peers for now. New connections wait in the kernel's backlog."""
        self._endpoint.port.stopReading()

    def resume(self) -> None:
        """Accept peers again."""
        self._endpoint.port.startReading()

    async def close_public(self) -> None:
        """Stop listening for peers. The admin listener stays open, so that /ready says why.

        Connections in the kernel's backlog are accepted first: closing the socket would reset them.
        """
        port, waiting = self._endpoint.port, select.poll()
        waiting.register(port, select.POLLIN)
        for _ in range(_BACKLOG):
            if not waiting.poll(0):
                break
            port.doRead()
        await self._public.disownServiceParent()

    async def end(self) -> None:
        """Stop listening. HTTP connections end with the answer to their request, at most `GRACE` seconds from now."""
        await MultiService.stopService(self)
        closed = DeferredList([connections.close() for connections in self._http])
        await with_deadline(self._parts.reactor, GRACE, closed, self._drop)
        self._queue.stop()

    def _drop(self) -> None:
        for connections in self._http:
            connections.drop()
