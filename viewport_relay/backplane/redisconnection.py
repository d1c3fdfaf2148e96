"""A connection to Redis that is kept: a Twisted ClientService, whose connections have carried out each command once.

A connection counts as made when Redis has carried out every command that the relay uses, a write among them. So the
back-off grows while a server accepts connections and refuses to write. ClientService's own `prepareConnection` is not
used: in Twisted 26.10 a connection that is lost while it is prepared, or after it was rejected, raises NoTransition.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from twisted.application.internet import ClientService, TimerService, backoffPolicy
from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from viewport_relay.backplane.interface import CarrierFailed
from viewport_relay.backplane.redisprotocol import Command, RedisProtocol, RedisRefuses
from viewport_relay.backplane.redisserver import RedisServer, SentinelPrimary

#: Seconds until a lost connection is made again: about twice the first at first, the longest at last. A server that refuses
#: commands is left alone for longer than one that cannot be reached.
RETRY_FIRST: Final = 0.1
RETRY_MOST: Final = 0.5
RETRY_MOST_REFUSED: Final = 3.0
#: Seconds for AUTH, SELECT and the trials of a new connection together. An attempt that a partition has swallowed
#: ends after that: with the pause behind it, a relay is back within 2 s of the healing.
TRIAL_LIMIT: Final = 1.0
#: Seconds that a connection must last for the back-off to start anew.
LASTING: Final = 10.0
#: Seconds between two PINGs on an idle connection, which find a server that has gone silent.
PING_EVERY: Final = 5.0

STOPPED: Final = "the connection to Redis is stopped"


@implementer(IStreamClientEndpoint)
class RedisConnection(MultiService):
    """Commands over a connection that is made again, for ever, whenever it is lost.

    `works` and `fails` are called each time the connection turns out to work or to fail, not only at a change.
    `limit` is seconds for the answers to each call, `trials` are the commands that a new connection must carry out.
    """

    def __init__(
        self,
        reactor: Any,
        server: RedisServer | SentinelPrimary,
        trials: tuple[Command, ...],
        works: Callable[[], None],
        fails: Callable[[CarrierFailed], None],
        *,
        limit: float,
    ) -> None:
        MultiService.__init__(self)
        self._reactor = reactor
        self._server = server
        self._trials = trials
        self._works = works
        self._fails = fails
        self._limit = limit
        self._redis: RedisProtocol | None = None
        self._failed: CarrierFailed | None = None  # what the latest attempt or connection failed of
        self._failures = 0
        self._delay = backoffPolicy(
            RETRY_FIRST, RETRY_MOST_REFUSED, 2.0, lambda: random.uniform(0.0, RETRY_FIRST)
        )
        # Its protocol only tells it that a tried connection was made or lost.
        self._client = ClientService(self, Factory.forProtocol(Protocol), self._retry_after, reactor)
        self._client.setServiceParent(self)
        pings = TimerService(PING_EVERY, self._ping)
        pings.clock = reactor
        pings.setServiceParent(self)

    # -- IStreamClientEndpoint, for ClientService ------------------------------------------------------------------

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """Make a connection that has carried out AUTH, SELECT and the trials within TRIAL_LIMIT."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> Any:
        try:
            redis, answers = await self._server.connect(self._trials, TRIAL_LIMIT)
            redis.checked(answers)
        except CarrierFailed as failed:
            self._fail(failed)
            raise
        transport: Any = redis.transport
        lease = factory.buildProtocol(transport.getPeer())
        assert lease is not None
        lease.makeConnection(transport)
        redis.lost.addCallback(self._was_lost, redis, lease, self._reactor.seconds())
        self._redis, self._failed = redis, None
        self._works()
        return lease

    def _fail(self, failed: CarrierFailed) -> None:
        self._redis, self._failed = None, failed
        if self.running:
            self._fails(failed)

    def _was_lost(self, _: object, redis: RedisProtocol, lease: Any, made_at: float) -> None:
        if self._reactor.seconds() - made_at >= LASTING:
            self._failures = 0
        if self._redis is redis:
            self._fail(redis.failed)
        lease.connectionLost(Failure(redis.failed))

    def _retry_after(self, attempt: int) -> float:
        self._failures += 1
        delay: float = self._delay(self._failures)
        if isinstance(self._failed, RedisRefuses):
            return delay
        return min(delay, RETRY_MOST + random.uniform(0.0, RETRY_FIRST))

    # -- IService ----------------------------------------------------------------------------------------------------

    def stopService(self) -> Deferred[Any]:
        """Drop the connection and make no other; fires when no attempt is in flight."""
        redis, self._redis = self._redis, None
        # In a turn of its own: the caller may be a waiter to which ClientService just reports a failed attempt, and the
        # machine of ClientService takes no stop meanwhile.
        stopping: Deferred[Any] = deferLater(self._reactor, 0, MultiService.stopService, self)
        if redis is not None:
            redis.abort()
        return stopping

    # -- commands ----------------------------------------------------------------------------------------------------

    @property
    def server(self) -> str:
        """The server that is connected, for operators."""
        return "Redis" if self._redis is None else self._redis.server

    async def run(self, *commands: Command) -> list[Any]:
        """The answers to these commands, which leave together and are carried out in order.

        Waits for the first connection, but for no other after it was lost. Raises CarrierFailed.
        """
        answers = await self.answers(*commands)
        for answer in answers:
            if isinstance(answer, CarrierFailed):
                raise answer
        return answers

    async def answers(self, *commands: Command) -> list[Any]:
        """As `run`, with a CarrierFailed in the place of each answer that did not come."""
        if self._redis is None and self._failed is None and self.running:
            await self._first_connection()
        redis = self._redis
        if redis is None:
            raise self._failed or CarrierFailed(STOPPED)
        answers = await redis.ask(commands, self._limit)
        for answer in answers:
            if isinstance(answer, CarrierFailed) and answer.outage:
                # The next connection is tried before it is used.
                if self._redis is redis:
                    self._fail(answer)
                redis.abort()
                break
        return answers

    async def _first_connection(self) -> None:
        try:
            await self._client.whenConnected(failAfterFailures=1)
        except CancelledError:
            if self.running:  # the caller's own cancellation
                raise
            raise CarrierFailed(STOPPED) from None

    def _ping(self) -> Deferred[Any] | None:
        if self._redis is None or self._redis.busy:
            return None
        return Deferred.fromCoroutine(self.run(("PING",))).addErrback(
            lambda failure: failure.trap(CarrierFailed)
        )
