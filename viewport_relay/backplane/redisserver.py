"""The server of Redis: the address of the settings, TLS, and the primary that Sentinels name.

RELAY_REDIS_URL = redis[s]://[user][:password]@host[:port][/database]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred, race
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from zope.interface import implementer

from viewport_relay.admission.tls import ClientTls
from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.backplane.redisprotocol import Command, RedisProtocol, connecting_failed
from viewport_relay.config import Config, ConfigError
from viewport_relay.config.network import bracketed

_DEFAULT_PORT: Final = 6379
#: Seconds after which a second connection is attempted beside one that is not answered.
SECOND_ATTEMPT: Final = 1.0


@frozen
class RedisAddress:
    """A Redis server as RELAY_REDIS_URL names it. `opening` are the commands of a new connection: AUTH and SELECT."""

    host: str
    port: int
    tls: bool
    opening: tuple[Command, ...] = field(default=(), repr=False)

    @classmethod
    def from_url(cls, url: str) -> RedisAddress:
        """Raises ConfigError for a path that is no database, a query or a fragment."""
        parts = urlsplit(url)
        path = parts.path.strip("/")
        if path and not (path.isascii() and path.isdigit() and len(path) < 6):
            raise ConfigError(["RELAY_REDIS_URL: the path takes the number of a database"])
        if parts.query or parts.fragment:
            raise ConfigError(["RELAY_REDIS_URL takes no query and no fragment"])
        password = None if parts.password is None else unquote(parts.password)
        opening = auth(unquote(parts.username or ""), password)
        if path:
            opening += (("SELECT", int(path)),)
        return cls(
            parts.hostname or "127.0.0.1", parts.port or _DEFAULT_PORT, parts.scheme == "rediss", opening
        )


def auth(username: str | None, password: str | None) -> tuple[Command, ...]:
    """AUTH as an ACL user, or with the password of the default user; nothing without a password."""
    if password is None:
        return ()
    return (("AUTH", username, password),) if username else (("AUTH", password),)


class RedisServer:
    """A server of Redis's protocol at one host and port.

    `kind` names it for operators. `connect_limit` is seconds for TCP, `tls` is None for plain TCP.
    """

    def __init__(
        self,
        reactor: Any,
        kind: str,
        address: tuple[str, int],
        opening: tuple[Command, ...],
        tls: ClientTls | None,
        connect_limit: float,
    ) -> None:
        host, port = address
        self.name = f"{kind} {bracketed(host, port)}"
        self._host = host
        self._opening = opening
        self._tls = tls
        self._tcp = TwiceEndpoint(reactor, HostnameEndpoint(reactor, host, port, timeout=connect_limit))
        self._factory = Factory.forProtocol(partial(RedisProtocol, reactor, self.name))
        self._factory.noisy = False

    async def connect(self, commands: Sequence[Command], limit: float) -> tuple[RedisProtocol, list[Any]]:
        """A connection after AUTH and SELECT, and its answers to `commands`: a CarrierFailed for one that is refused.

        `limit` is seconds for the answers. Raises CarrierFailed.
        """
        try:
            endpoint = self._tcp if self._tls is None else self._tls.over(self._tcp, self._host)
            connecting: Deferred[Any] = endpoint.connect(self._factory)
            redis: RedisProtocol = await connecting
        except CancelledError:
            raise
        except Exception as error:
            raise connecting_failed(self.name, error) from None
        answers = await redis.ask((*self._opening, *commands), limit)
        redis.checked(answers[: len(self._opening)])
        return redis, answers[len(self._opening) :]


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


class SentinelPrimary:
    """The Redis primary that Sentinels name; they are asked at each connection, the one that answered last first.

    `server_at` gives the server of a host and port; `limit` is seconds for one Sentinel's answer. A primary that was demoted
    meanwhile refuses to write, the connection is dropped, and the Sentinels are asked again.
    """

    def __init__(
        self,
        sentinels: Sequence[RedisServer],
        primary: str,
        server_at: Callable[[tuple[str, int]], RedisServer],
        limit: float,
    ) -> None:
        self._sentinels = list(sentinels)
        self._primary = primary
        self._server_at = server_at
        self._limit = limit

    async def connect(self, commands: Sequence[Command], limit: float) -> tuple[RedisProtocol, list[Any]]:
        """As `RedisServer.connect`. Raises CarrierFailed when no Sentinel names the primary."""
        problems = []
        for sentinel in tuple(self._sentinels):
            try:
                address = await self._ask(sentinel)
            except CarrierFailed as error:
                problems.append(error.why)
                continue
            self._sentinels.remove(sentinel)
            self._sentinels.insert(0, sentinel)
            return await self._server_at(address).connect(commands, limit)
        raise CarrierFailed("; ".join(problems))

    async def _ask(self, sentinel: RedisServer) -> tuple[str, int]:
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._primary)
        redis, found = await sentinel.connect((question,), self._limit)
        redis.abort()
        match redis.checked(found):
            case [[bytes(host), bytes(port)]] if port.isdigit():
                return host.decode("utf-8", "replace"), int(port)
            case [[_, _]]:
                raise CarrierFailed(f"{sentinel.name} names no usable address")
        raise CarrierFailed(f"{sentinel.name} knows no {self._primary} (RELAY_REDIS_SENTINEL_MASTER)")


def redis_of(reactor: Any, config: Config, connect_limit: float) -> RedisServer | SentinelPrimary:
    """The Redis of the settings, by way of the Sentinels if there are any.

    `connect_limit` is seconds for each connection. Raises ConfigError for a URL or CA files that cannot be used.
    """
    address = RedisAddress.from_url(config.redis_url)
    variable, ca = "RELAY_REDIS_CA_CERT_PATH", config.redis_ca_cert_path
    tls = ClientTls.trusting(variable, ca) if address.tls else None

    def server_at(where: tuple[str, int]) -> RedisServer:
        return RedisServer(reactor, "Redis", where, address.opening, tls, connect_limit)

    if not config.redis_sentinels:
        return server_at((address.host, address.port))
    if config.redis_sentinel_ca_cert_path is not None:
        variable, ca = "RELAY_REDIS_SENTINEL_CA_CERT_PATH", config.redis_sentinel_ca_cert_path
    encrypted = address.tls if config.redis_sentinel_tls == "auto" else config.redis_sentinel_tls == "1"
    sentinel_tls = ClientTls.trusting(variable, ca) if encrypted else None
    opening = auth(config.redis_sentinel_username, config.redis_sentinel_password)
    sentinels = [
        RedisServer(reactor, "Sentinel", where, opening, sentinel_tls, connect_limit)
        for where in config.redis_sentinels
    ]
    return SentinelPrimary(sentinels, config.redis_sentinel_master, server_at, connect_limit)
