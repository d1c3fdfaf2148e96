"""The pooled agent over a transport in memory: what it asks of the transport for one request."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock, StringTransport

from viewport_relay.admission.agent import pooled_agent
from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.httpcall import Answer, Call
from viewport_relay.admission.tls import ClientTls

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"


class Transport(StringTransport):
    """A connection to the platform that notes when it is paused and resumed."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def pauseProducing(self) -> None:
        self.asked.append("pause")
        super().pauseProducing()

    def resumeProducing(self) -> None:
        if self.producerState == "paused":  # resuming one that reads already costs a transport nothing
            self.asked.append("resume")
        super().resumeProducing()


@pytest.fixture
def connected() -> tuple[Any, Transport, list[Answer]]:
    """The server's end of a connection with one request on it, its transport, and the answers that have come."""
    reactor = MemoryReactorClock()
    agent, _ = pooled_agent(reactor, ClientTls())
    client = HttpClient(reactor, agent)
    call = Call.make("POST", "http://127.0.0.1:9/v", {}, limit=2.0, max_bytes=100)
    answers: list[Answer] = []
    Deferred.fromCoroutine(client.ask(call, b"{}")).addCallback(answers.append)
    [(_, _, factory, _, _)] = reactor.tcpClients
    protocol = factory.buildProtocol(None)
    transport = Transport()
    protocol.makeConnection(transport)
    assert transport.value().endswith(b"\r\n\r\n{}")
    return protocol, transport, answers


def test_an_answer_in_one_piece_pauses_nothing(connected: tuple[Any, Transport, list[Answer]]) -> None:
    """Each pause and resume that comes to nothing would cost two system calls."""
    protocol, transport, answers = connected
    protocol.dataReceived(HEAD + b"body")
    assert [answer.body for answer in answers] == [b"body"]
    assert transport.asked == []


def test_an_answer_in_pieces(connected: tuple[Any, Transport, list[Answer]]) -> None:
    protocol, transport, answers = connected
    for piece in (HEAD[:20], HEAD[20:], b"bo", b"dy"):
        assert answers == []
        protocol.dataReceived(piece)
    assert [answer.body for answer in answers] == [b"body"]
    assert transport.producerState == "producing"


def test_a_pause_that_stands_holds_from_the_end_of_the_read_on(
    connected: tuple[Any, Transport, list[Answer]],
) -> None:
    protocol, transport, _ = connected
    bounded = protocol if hasattr(protocol, "head_left") else protocol._wrappedProtocol
    inner = bounded.wrappedProtocol
    receive = inner.dataReceived

    def pausing(data: bytes) -> None:
        bounded.pauseProducing()
        assert transport.asked == []  # not within the read
        receive(data)

    inner.dataReceived = pausing
    protocol.dataReceived(HEAD[:20])
    assert transport.asked == ["pause"]
    bounded.resumeProducing()
    assert transport.asked == ["pause", "resume"]
