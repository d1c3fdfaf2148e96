"""Where Redis is: the address of the settings, TLS, and the primary that Sentinels name.

RELAY_REDIS_URL = redis[s]://[user][:password]@host[:port][/database]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, race
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import deferLater
from zope.interface import implementer

from viewport_relay.admission.tls import ClientTls
from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.backplane.redisprotocol import Command, Credentials, RedisFactory, connecting_failed
from viewport_relay.config import Config, ConfigError

MakeEndpoint = Callable[[str, int], IStreamClientEndpoint]
_DEFAULT_PORT: Final = 6379
#: Seconds after which a second connection is attempted beside one that is not answered.
SECOND_ATTEMPT: Final = 1.0


@frozen
class RedisAddress:
    """A Redis server as RELAY_REDIS_URL names it."""

    host: str
    port: int
    tls: bool
    credentials: Credentials

    @classmethod
    def from_url(cls, url: str) -> RedisAddress:
        """Raises ConfigError for a path that is no database, a query or a fragment."""
        parts = urlsplit(url)
        path = parts.path.strip("/")
        if path and not (path.isascii() and path.isdigit() and len(path) < 6):
            raise ConfigError(["RELAY_REDIS_URL: the path takes the number of a database"])
        if parts.query or parts.fragment:
            raise ConfigError(["RELAY_REDIS_URL takes no query and no fragment"])
        credentials = Credentials(
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password is not None else None,
            int(path) if path else None,
        )
        return cls(
            parts.hostname or "127.0.0.1", parts.port or _DEFAULT_PORT, parts.scheme == "rediss", credentials
        )

    @classmethod
    def from_config(cls, config: Config) -> RedisAddress:
        return cls.from_url(config.redis_url)


def redis_endpoint(
    reactor: Any, config: Config, address: RedisAddress, connect_limit: float
) -> IStreamClientEndpoint:
    """The endpoint of the Redis of the settings, by way of the Sentinels if there are any.

    `connect_limit` is seconds for each connection. Raises ConfigError for CA files that cannot be used.
    """
    make = _endpoints(
        reactor, address.tls, "RELAY_REDIS_CA_CERT_PATH", config.redis_ca_cert_path, connect_limit
    )
    if not config.redis_sentinels:
        return make(address.host, address.port)
    tls = address.tls if config.redis_sentinel_tls == "auto" else config.redis_sentinel_tls == "1"
    variable, ca = "RELAY_REDIS_SENTINEL_CA_CERT_PATH", config.redis_sentinel_ca_cert_path
    if ca is None:
        variable, ca = "RELAY_REDIS_CA_CERT_PATH", config.redis_ca_cert_path
    return SentinelEndpoint(
        reactor,
        config.redis_sentinels,
        config.redis_sentinel_master,
        Credentials(config.redis_sentinel_username, config.redis_sentinel_password),
        _endpoints(reactor, tls, variable, ca, connect_limit),
        make,
        connect_limit,
    )


def _endpoints(reactor: Any, tls: bool, variable: str, ca_path: str | None, limit: float) -> MakeEndpoint:
    policy = ClientTls.trusting(variable, ca_path) if tls else None

    def make(host: str, port: int) -> IStreamClientEndpoint:
        endpoint: IStreamClientEndpoint = TwiceEndpoint(
            reactor, HostnameEndpoint(reactor, host, port, timeout=limit)
        )
        return endpoint if policy is None else policy.over(endpoint, host)

    return make


@implementer(IStreamClientEndpoint)
class TwiceEndpoint:
    """An endpoint that begins a second attempt SECOND_ATTEMPT after the first; the one that ends first decides.

    Where a partition drops packets, Linux before 6.5 sends a SYN again after 1 and 3 s: two attempts together try every second, so
    that the end of the partition is noticed within one.
    """

    def __init__(self, clock: Any, endpoint: IStreamClientEndpoint) -> None:
        self._clock = clock
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        first: Deferred[Any] = self._endpoint.connect(protocolFactory)
        second: Deferred[Any] = deferLater(
            self._clock, SECOND_ATTEMPT, self._endpoint.connect, protocolFactory
        )
        # `race` waits for a success: a failure, in a list, is one too.
        ended = race([attempt.addErrback(lambda failure: [failure]) for attempt in (first, second)])
        return ended.addCallback(lambda won: won[1][0] if isinstance(won[1], list) else won[1])


@implementer(IStreamClientEndpoint)
class SentinelEndpoint:
    """The Redis primary that Sentinels name; they are asked at each connection.

    The Sentinel that answered last is asked first. `to_sentinel` and `to_redis` give the endpoint of a host and port;
    `limit` is seconds for one Sentinel's answer. A primary that was demoted meanwhile refuses to write, the connection
    is dropped, and the Sentinels are asked again.
    """

    def __init__(
        self,
        reactor: Any,
        sentinels: Sequence[tuple[str, int]],
        primary: str,
        credentials: Credentials,
        to_sentinel: MakeEndpoint,
        to_redis: MakeEndpoint,
        limit: float,
    ) -> None:
        self._reactor = reactor
        self._sentinels = list(sentinels)
        self._primary = primary
        self._credentials = credentials
        self._to_sentinel = to_sentinel
        self._to_redis = to_redis
        self._limit = limit

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """Connect to the primary. Fails with CarrierFailed when no Sentinel names it."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> Any:
        problems = []
        for sentinel in tuple(self._sentinels):
            where = "Sentinel {}:{}".format(*sentinel)
            try:
                host, port = await self._ask(sentinel)
            except CarrierFailed as error:
                problems.append(f"{where}: {error.why.replace('Redis', 'it')}")
                continue
            self._sentinels.remove(sentinel)
            self._sentinels.insert(0, sentinel)
            return await self._to_redis(host, port).connect(factory)
        raise CarrierFailed("; ".join(problems))

    async def _ask(self, sentinel: tuple[str, int]) -> tuple[str, int]:
        endpoint = self._to_sentinel(*sentinel)
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._primary)
        [found] = await ask_once(self._reactor, endpoint, self._credentials, (question,), self._limit)
        if isinstance(found, CarrierFailed):
            raise found
        if isinstance(found, list) and len(found) == 2 and all(isinstance(part, bytes) for part in found):
            try:
                return found[0].decode(), int(found[1])
            except ValueError:
                raise CarrierFailed("it names no usable address") from None
        raise CarrierFailed(f"it knows no {self._primary} (RELAY_REDIS_SENTINEL_MASTER)")


async def ask_once(
    reactor: Any,
    endpoint: IStreamClientEndpoint,
    credentials: Credentials,
    commands: tuple[Command, ...],
    limit: float,
) -> list[Any]:
    """The answers to commands over a connection of their own, a CarrierFailed for one that is refused.

    `limit` is seconds for signing in, and again for the answers. Raises CarrierFailed if no connection can be made.
    """
    connecting: Deferred[Any] = endpoint.connect(RedisFactory(credentials))
    try:
        protocol = await connecting
    except CancelledError:
        raise
    except Exception as error:
        raise connecting_failed(error) from None
    try:
        await protocol.sign_in(reactor, limit)
        answers: list[Any] = await protocol.ask(commands, limit)
        return answers
    finally:
        protocol.transport.abortConnection()
