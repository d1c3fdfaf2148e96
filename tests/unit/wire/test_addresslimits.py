"""Which addresses may open a connection: budgets, exemptions, one log entry, and what a refused connection costs."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from tests.unit.admission.conftest import Log
from viewport_relay.config import load
from viewport_relay.observe.counters import Counters
from viewport_relay.wire.addresslimits import TOLERATED, AddressLimits, LimitedFactory


class Door:
    """A limit of 3 upgrade attempts and 5 requests of plain HTTP."""

    def __init__(self, **settings: str) -> None:
        self.clock, self.log, self.counters = Clock(), Log(), Counters()
        self.limit = AddressLimits(
            self.clock,
            configured(**settings),
            self.log,
            self.counters,
            exempt=lambda address: address == "10.0.0.1",
        )

    def opened(self, number: int, address: str = "192.0.2.1") -> int:
        """How many of so many new connections of an address are kept."""
        return sum(not self.limit.refuses(address) for _ in range(number))


def configured(**settings: str) -> Any:
    defaults = {"RELAY_MODE": "dev", "SERVER_URL": "http://127.0.0.1:1"}
    return load(defaults | {"RELAY_RATE_LIMIT_PER_IP": "3", "RELAY_HTTP_RATE_PER_IP": "5"} | settings, {})


def test_connections_of_an_address_are_bounded_for_a_minute_and_the_log_says_so_once() -> None:
    door = Door()
    assert door.opened(20) == 8
    assert door.counters.connections_refused == 12
    [entry] = door.log.named("connection_refused")
    assert entry["ip"] == "192.0.2.1" and entry["detail"] == (
        "over 8 connections within a minute, allowed by RELAY_RATE_LIMIT_PER_IP=3 (default 120) and RELAY_HTTP_RATE_PER_IP=5 "
        "(default 1200) together"
    )
    assert door.opened(1, "192.0.2.2") == 1
    door.clock.advance(60)
    assert door.opened(20) == 8 and len(door.log.named("connection_refused")) == 2


def test_plain_http_that_goes_on_after_many_answers_429_is_refused_at_accept() -> None:
    door = Door()
    for _ in range(5 + TOLERATED - 1):
        door.limit.charge_request("192.0.2.1", {})
    assert door.opened(1) == 1
    assert door.limit.charge_request("192.0.2.1", {}) == 60
    assert door.opened(1) == 0
    [entry] = door.log.named("connection_refused")
    assert f"{TOLERATED} answers 429" in entry["detail"]


def test_an_ipv6_subscriber_has_one_budget() -> None:
    door = Door()
    kept = sum(door.opened(1, f"2001:db8::{n:x}") for n in range(1, 20))
    assert kept == 8 and door.opened(1, "2001:db8:0:1::1") == 1


def test_a_trusted_proxy_has_no_limit() -> None:
    assert Door().opened(100, "10.0.0.1") == 100


@pytest.mark.parametrize("off", ["RELAY_RATE_LIMIT_PER_IP", "RELAY_HTTP_RATE_PER_IP"])
def test_without_one_of_the_two_limits_there_is_none(off: str) -> None:
    assert Door(**{off: "0"}).opened(2000) == 2000


def test_a_reload_sets_the_limit() -> None:
    door = Door()
    assert door.opened(8) == 8
    door.limit.apply(configured(RELAY_RATE_LIMIT_PER_IP="10"))
    assert door.opened(20) == 7


def test_no_protocol_is_made_for_a_refused_connection_and_a_unix_socket_is_never_refused() -> None:
    door, made = Door(), []  # type: ignore[var-annotated]

    class Behind(Factory):
        def buildProtocol(self, addr: Any) -> Protocol:
            made.append(addr)
            return Protocol()

    factory = LimitedFactory(Behind(), door.limit)
    peer = IPv4Address("TCP", "192.0.2.1", 4711)
    assert sum(factory.buildProtocol(peer) is not None for _ in range(20)) == 8 == len(made)
    assert all(factory.buildProtocol(UNIXAddress("/run/relay.sock")) is not None for _ in range(20))
