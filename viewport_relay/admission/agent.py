"""Twisted's HTTP agent as the relay uses it below treq: kept connections, bounded heads, nothing decoded.

    treq.client.HTTPClient → PlainAgent → ExactAgent (twisted.web.client.Agent) → pool → endpoint → bounded connection

HTTP/1.1 (RFC 9112) is Twisted's. Time limits, the size of bodies and retries are `http.py`'s.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.web.client import URI, Agent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from viewport_relay.admission.httpproxy import HttpProxy
from viewport_relay.admission.pool import BoundedEndpoint, Pool
from viewport_relay.admission.tls import ClientTls

#: Origins whose endpoint and whose reading by Twisted are remembered.
ORIGINS_MAX: Final = 256

_origin: Final = lru_cache(ORIGINS_MAX)(URI.fromBytes)


@implementer(IAgentEndpointFactory)
class Endpoints:
    """The endpoints of origins: TCP, and for https TLS, through the proxy if that serves it. Each is made once.

    No other scheme comes here: `RequestUrl` takes none.
    """

    def __init__(self, reactor: Any, tls: ClientTls, proxy: HttpProxy | None, pool: Pool) -> None:
        self._reactor = reactor
        self._pool = pool
        self._tls = tls
        self._proxy = proxy
        self._known = lru_cache(ORIGINS_MAX)(self._made)

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Called by the agent for each request."""
        return self._known(uri.scheme, uri.host.decode("ascii"), uri.port)

    def _made(self, scheme: bytes, host: str, port: int) -> IStreamClientEndpoint:
        endpoint: IStreamClientEndpoint = HostnameEndpoint(self._reactor, host, port)
        if scheme == b"https":
            if self._proxy is not None and self._proxy.serves(host, port):
                endpoint = self._proxy.tunnel(self._reactor, host, port)
            endpoint = self._tls.over(endpoint, host)
        return BoundedEndpoint(self._pool, endpoint)


class ExactAgent(Agent):
    """Twisted's agent, but the target of a request is sent as it is given: Twisted drops an empty query or parameter."""

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """The response. `uri` is a `RequestUrl`'s: absolute, with a path, without a fragment."""
        end = uri.index(b"/", uri.index(b"//") + 2)
        origin = _origin(uri[:end])
        response: Deferred[IResponse] = self._requestWithEndpoint(
            (origin.scheme, origin.host, origin.port),
            self._getEndpoint(origin),  # type: ignore[no-untyped-call]
            method,
            origin,
            headers,
            bodyProducer,
            uri[end:],
        )
        return response


@implementer(IAgent)
class PlainAgent:
    """An agent below treq that keeps treq from decoding gzip, which treq does before any limit on the size of a body is looked at."""

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """Send a request; fires with the response."""
        return self._agent.request(method, uri, headers, bodyProducer).addCallback(_undecoded)


def _undecoded(response: IResponse) -> IResponse:
    """Name gzip by its alias (RFC 9110 section 8.4.1.3), which treq does not decode."""
    codings = response.headers.getRawHeaders(b"content-encoding")
    if codings:
        names = [name.strip() for coding in codings for name in coding.lower().split(b",")]
        aliased = [b"x-gzip" if name == b"gzip" else name for name in names]
        response.headers.setRawHeaders(b"content-encoding", aliased)
    return response


def pooled_agent(reactor: Any, tls: ClientTls, proxy: HttpProxy | None = None) -> tuple[IAgent, Pool]:
    """The agent of the relay, and the connections that it keeps."""
    pool = Pool(reactor)
    endpoints = Endpoints(reactor, tls, proxy, pool)
    agent: IAgent = ExactAgent.usingEndpointFactory(reactor, endpoints, pool)  # type: ignore[no-untyped-call]
    return agent, pool
