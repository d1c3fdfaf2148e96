"""The pooled agent over an in-memory transport: back-pressure towards the platform's connection."""

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
    """A transport that records each pause and resume."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def pauseProducing(self) -> None:
        self.asked.append("pause")
        super().pauseProducing()

    def resumeProducing(self) -> None:
        if self.producerState == "paused":  # resuming a transport that is not paused costs no system call
            self.asked.append("resume")
        super().resumeProducing()


@pytest.fixture
def connected() -> tuple[Any, Transport, list[Answer]]:
    """The HTTP client protocol of one pending request, its transport, and the list of answers."""
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
    """A pause and resume without effect would cost two system calls."""
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


def test_a_pause_takes_effect_at_the_end_of_the_read(
    connected: tuple[Any, Transport, list[Answer]],
) -> None:
    protocol, transport, _ = connected
    bounded = protocol if hasattr(protocol, "head_left") else protocol._wrappedProtocol
    inner = bounded.wrappedProtocol
    receive = inner.dataReceived

    def pausing(data: bytes) -> None:
        bounded.pauseProducing()
        assert transport.asked == []  # the pause is deferred until the read returns
        receive(data)

    inner.dataReceived = pausing
    protocol.dataReceived(HEAD[:20])
    assert transport.asked == ["pause"]
    bounded.resumeProducing()
    assert transport.asked == ["pause", "resume"]
