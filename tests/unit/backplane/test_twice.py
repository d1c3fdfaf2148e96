"""The second attempt to connect, for networks that drop packets; the memory reactor answers none."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectingCancelledError, ConnectionRefusedError, TimeoutError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from viewport_relay.backplane.redisserver import SECOND_ATTEMPT, TwiceEndpoint


class Attempts:
    """A connection that is being made: `number` attempts have begun; `outcome` is what became of it."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.outcome: list[Any] = []
        endpoint = TwiceEndpoint(self.reactor, TCP4ClientEndpoint(self.reactor, "10.0.0.1", 6379, timeout=5))
        self.connecting = endpoint.connect(Factory.forProtocol(Protocol))
        self.connecting.addBoth(self.outcome.append)

    @property
    def number(self) -> int:
        return len(self.reactor.tcpClients)

    def succeeds(self, which: int) -> None:
        protocol = self.reactor.tcpClients[which][2].buildProtocol(None)
        protocol.makeConnection(StringTransport())

    def fails(self, which: int, error: Exception) -> None:
        self.reactor.tcpClients[which][2].clientConnectionFailed(None, Failure(error))

    def cancelled(self, which: int) -> bool:
        return bool(self.reactor.connectors[which].stoppedConnecting)


def test_an_attempt_that_is_answered_is_the_only_one() -> None:
    one = Attempts()
    one.succeeds(0)
    one.reactor.advance(10)
    assert (
        one.number == 1
        and isinstance(one.outcome[0].transport, StringTransport)
        and not one.reactor.getDelayedCalls()
    )


@pytest.mark.parametrize("which", [0, 1])
def test_the_first_answer_wins_and_the_other_attempt_ends(which: int) -> None:
    two = Attempts()
    two.reactor.advance(SECOND_ATTEMPT)
    assert two.number == 2 and two.outcome == []
    two.succeeds(which)
    assert isinstance(two.outcome[0].transport, StringTransport)
    assert two.cancelled(1 - which) and not two.cancelled(which)


@pytest.mark.parametrize(("after", "error"), [(0.0, ConnectionRefusedError()), (2.0, TimeoutError())])
def test_a_failure_is_not_waited_out(after: float, error: Exception) -> None:
    refused = Attempts()
    refused.reactor.advance(after)
    refused.fails(0, error)
    assert refused.outcome[0].value is error
    assert not refused.reactor.getDelayedCalls()


@pytest.mark.parametrize("after", [0.0, 2.0])
def test_a_cancelled_connection_ends_both_attempts(after: float) -> None:
    ended = Attempts()
    ended.reactor.advance(after)
    ended.connecting.cancel()
    assert ended.outcome[0].check(ConnectingCancelledError)
    assert all(map(ended.cancelled, range(ended.number))) and not ended.reactor.getDelayedCalls()
