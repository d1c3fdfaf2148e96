"""One kept connection to Redis: commands with a time limit, reconnecting with back-off for ever.

The protocol (RESP) is txredisapi's. Its pool is not used: it gives up after a wrong password, and lets commands wait
without end while there is no connection. Nothing here knows what the commands are for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final, NoReturn
from urllib.parse import unquote, urlsplit

import txredisapi
from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall, deferLater
from twisted.python.failure import Failure

from viewport_relay.admission.http import why
from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.config import Config, ConfigError

#: Seconds until a lost connection is made again: the first and the longest time, about.
RETRY_FIRST: Final = 0.1
RETRY_MOST: Final = 3.0
#: Seconds between two signs of life that an idle connection is asked for.
PING_EVERY: Final = 5.0

NOT_CONNECTED: Final = "not connected to Redis"

#: Answers that say that this server cannot do what we need now, but perhaps another one behind the same name can.
_ELSEWHERE: Final = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN")


@frozen
class RedisAddress:
    """A Redis server as RELAY_REDIS_URL names it."""

    host: str
    port: int
    tls: bool
    username: str | None
    password: str | None = field(repr=False)
    database: int | None

    @classmethod
    def from_url(cls, url: str) -> RedisAddress:
        """`redis[s]://[user][:password]@host[:port][/database]`. Raises ConfigError."""
        parts = urlsplit(url)
        path = parts.path.strip("/")
        if path and not (path.isascii() and path.isdigit() and len(path) < 6):
            raise ConfigError(["RELAY_REDIS_URL: the path takes the number of a database"])
        if parts.query or parts.fragment:
            raise ConfigError(["RELAY_REDIS_URL takes no query and no fragment"])
        return cls(
            parts.hostname or "127.0.0.1",
            parts.port or 6379,
            parts.scheme == "rediss",
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password is not None else None,
            int(path) if path else None,
        )

    @classmethod
    def from_config(cls, config: Config) -> RedisAddress:
        return cls.from_url(config.redis_url)


class _Protocol(txredisapi.RedisProtocol):  # type: ignore[misc]  # it is not typed
    """txredisapi's, which keeps to itself why a connection was lost."""

    def connectionLost(self, why: Failure) -> None:
        self.factory.lost_by = why.value
        super().connectionLost(why)


class _Factory(Factory):
    """Makes txredisapi's protocols; the rest is what they call on their factory."""

    noisy = False
    isLazy = False

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self.refused = ""
        self.lost_by: BaseException | None = None

    def buildProtocol(self, addr: object) -> Any:
        address = self._address
        protocol = _Protocol(
            charset=None,
            password=address.password,
            username=address.username,
            dbid=address.database,
            convertNumbers=False,
        )
        protocol.factory = self
        return protocol

    def stopTrying(self) -> None:
        """The password or database was refused; trying goes on, it may be corrected at the server."""

    def connectionError(self, message: str) -> None:
        self.refused = message.removeprefix("Redis error: ")


class RedisLine:
    """A connection for commands. `connect_limit` and `limit` are seconds: for connecting, and for one command.

    `works` and `fails` are called whenever it is found to (again and again, not only at a change).
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        address: RedisAddress,
        works: Callable[[], None],
        fails: Callable[[str], None],
        *,
        connect_limit: float,
        limit: float,
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._works = works
        self._fails = fails
        self._connect_limit = connect_limit
        self._limit = limit
        self._factory = _Factory(address)
        self._protocol: Any = None
        self._tried = False
        self._waiting: list[Deferred[None]] = []
        self._keeping: Deferred[None] | None = None
        self._pings = LoopingCall(self._ping)
        self._pings.clock = reactor

    def start(self) -> None:
        self._keeping = Deferred.fromCoroutine(self._keep()).addErrback(_cancelled)
        self._pings.start(PING_EVERY, now=False)

    def stop(self) -> None:
        """Drop the connection and make no other."""
        keeping, self._keeping = self._keeping, None
        if keeping is None:
            return
        self._pings.stop()
        keeping.cancel()
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.transport.abortConnection()
        self._was_tried("stopped")

    async def run(self, *commands: tuple[object, ...], limit: float | None = None) -> list[Any]:
        """The answers to these commands, which leave together and are carried out in order.

        Waits for the first connection, but for no other after it was lost. Raises CarrierFailed.
        """
        if self._protocol is None:
            await self._first_connection()
        protocol = self._protocol
        if protocol is None or not protocol.connected:
            raise CarrierFailed(NOT_CONNECTED)
        answers = [protocol.execute_command(*command).addErrback(_as_value) for command in commands]
        answers[-1].addTimeout(self._limit if limit is None else limit, self._reactor, _expired)
        try:
            await answers[-1]
        except (CarrierFailed, CancelledError):
            # Too late, or nobody waits any longer: what comes now would be taken for the next command's answer.
            protocol.transport.abortConnection()
            raise
        found = [answer.result for answer in answers[:-1]]  # they came before the last one
        found.append(answers[-1].result)
        for value in found:
            if isinstance(value, Exception):
                raise self._failure(protocol, value)
        return found

    def _failure(self, protocol: Any, error: Exception) -> CarrierFailed:
        if not isinstance(error, txredisapi.ResponseError):
            return CarrierFailed("the connection to Redis was lost")
        said = str(error).strip()[:200]
        if said.startswith(_ELSEWHERE):
            protocol.transport.abortConnection()
            self._fails(f"Redis says: {said}")
            return CarrierFailed(f"Redis says: {said}")
        return CarrierFailed(f"Redis says: {said}", outage=False)

    async def _first_connection(self) -> None:
        if self._tried or self._keeping is None:
            raise CarrierFailed(NOT_CONNECTED)
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        await waiting

    def _was_tried(self, failed: str | None) -> None:
        self._tried = True
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if waiter.called:
                continue  # who waited has gone
            if failed is None:
                waiter.callback(None)
            else:
                waiter.errback(CarrierFailed(failed))

    # -- connecting ------------------------------------------------------------------------------------------

    async def _keep(self) -> NoReturn:
        """Connect, wait until the connection is lost, connect again."""
        attempt = 0
        while True:
            protocol = None
            try:
                protocol = await self._endpoint.connect(self._factory)
                lost = await self._greet(protocol)
            except CancelledError:
                if protocol is not None:
                    protocol.transport.abortConnection()  # type: ignore[attr-defined]
                raise
            except Exception as error:
                # Names, TCP, TLS and the server's own words raise many unrelated kinds; all mean: try again.
                if protocol is not None:
                    protocol.transport.abortConnection()  # type: ignore[attr-defined]
                if isinstance(error, txredisapi.ConnectionError) and self._factory.lost_by is not None:
                    error = self._factory.lost_by  # type: ignore[assignment]
                reason = _reason(error)
                self._fails(reason)
                self._was_tried(reason)
            else:
                attempt = 0
                self._protocol = protocol
                self._works()
                self._was_tried(None)
                await lost
                self._protocol = None
                self._fails("the connection to Redis was lost")
            await deferLater(self._reactor, _delay(attempt))
            attempt += 1

    async def _greet(self, protocol: Any) -> Deferred[Any]:
        """Wait until password and database are accepted and the server answers; gives what fires when it is lost."""
        protocol.transport.setTcpKeepAlive(True)
        self._factory.refused, self._factory.lost_by = "", None
        ready: Deferred[Any] = protocol.whenConnected()
        lost: Deferred[Any] = protocol.whenDisconnected()

        def too_early(_: object) -> None:
            refused = self._factory.refused
            if not ready.called and refused and "Lost connection" not in refused:
                ready.errback(CarrierFailed(refused))
            elif not ready.called:
                ready.errback(txredisapi.ConnectionError("lost"))

        lost.addCallback(too_early)
        ready.addTimeout(self._connect_limit, self._reactor, _expired)
        await ready
        answer: Deferred[Any] = protocol.execute_command("PING")
        answer.addTimeout(self._limit, self._reactor, _expired)
        await answer
        return lost

    def _ping(self) -> None:
        if self._protocol is not None:
            Deferred.fromCoroutine(self.run(("PING",))).addErrback(
                lambda failure: failure.trap(CarrierFailed)
            )


async def ask_once(
    reactor: Any,
    endpoint: IStreamClientEndpoint,
    address: RedisAddress,
    command: tuple[object, ...],
    limit: float,
) -> Any:
    """The answer to one command over a connection of its own. Raises CarrierFailed."""
    protocol: Any = None
    factory = _Factory(address)

    async def ask() -> Any:
        nonlocal protocol
        protocol = await endpoint.connect(factory)
        return await protocol.execute_command(*command)

    asking = Deferred.fromCoroutine(ask())
    asking.addTimeout(limit, reactor, _expired)
    try:
        return await asking
    except CancelledError:
        raise
    except Exception as error:
        # As when a line is made: many unrelated kinds, all of which mean that there is no answer.
        if isinstance(error, txredisapi.ConnectionError) and factory.lost_by is not None:
            error = factory.lost_by  # type: ignore[assignment]
        raise CarrierFailed(factory.refused or _reason(error)) from None
    finally:
        if protocol is not None:
            protocol.transport.abortConnection()


def _delay(attempt: int) -> float:
    return float(min(RETRY_MOST, RETRY_FIRST * 2.0 ** min(attempt, 30)) * random.uniform(0.75, 1.25))


def _expired(result: object, limit: float) -> NoReturn:
    raise CarrierFailed("Redis does not answer in time")


def _cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)


def _as_value(failure: Failure) -> object:
    """A command's error as its answer; a wait that was given up stays one."""
    return failure.value if failure.check(txredisapi.RedisError) else failure


def _reason(error: BaseException) -> str:
    if isinstance(error, CarrierFailed):
        return error.why
    if isinstance(error, txredisapi.ResponseError):
        return f"Redis says: {str(error).strip()[:200]}"
    return f"cannot connect to Redis: {why(error)}"
