"""Fixtures: an HTTP client made as the relay makes it, and listeners that end with the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory

from tests.integration.http.servers import Listen, reactor
from viewport_relay.admission.agent import pooled_agent
from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.tls import ClientTls


@pytest.fixture
def listen(ports: list[IListeningPort]) -> Listen:
    def start(factory: Factory) -> int:
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        ports.append(port)
        return int(port.getHost().port)

    return start


@pytest.fixture
def client() -> Iterator[HttpClient]:
    agent, pool = pooled_agent(reactor, ClientTls())
    made = HttpClient(reactor, agent, pool)
    yield made
    made.close()
