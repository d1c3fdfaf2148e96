"""A server that resembles Redis: an answer of a wrong type fails one call, and no other exception leaves the carrier."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import hiredis
import pytest
import pytest_twisted
from twisted.internet import reactor as real_reactor
from twisted.internet.protocol import Factory, Protocol

from tests.memorywire import Log
from viewport_relay.backplane.interface import BEGINNING, CarrierFailed, SeatClaim
from viewport_relay.backplane.outage import Outage
from viewport_relay.backplane.redis import RedisCarrier
from viewport_relay.config import load
from viewport_relay.observe.counters import Counters
from viewport_relay.reasons import Reason

reactor: Any = real_reactor
TARGET = "workspace", "target"

Call = Callable[[RedisCarrier], Coroutine[Any, Any, Any]]
CALLS: dict[str, Call] = {
    "publish": lambda carrier: carrier.publish("b", [b"{}"]),
    "publish and trim": lambda carrier: carrier.publish("b", [b"{}"] * 6000),
    "take back": lambda carrier: carrier.take_back("b", [b"mark"], BEGINNING),
    "pull": lambda carrier: carrier.pull(),
    "take": lambda carrier: carrier.take(TARGET, {}, SeatClaim(None, 0), new=True),
    "moved": lambda carrier: carrier.moved(),
    "withdraw": lambda carrier: carrier.withdraw(TARGET, {}),
    "resolve": lambda carrier: carrier.resolve(TARGET),
    "mark": lambda carrier: carrier.mark(b"{}"),
    "retire": lambda carrier: carrier.retire(b"{}", b"{}"),
    "relays": lambda carrier: carrier.relays(),
    "record of": lambda carrier: carrier.record_of("b"),
}
ODD = (
    b"+OK\r\n", b":7\r\n", b"$-1\r\n", b"$3\r\nabc\r\n", b"*0\r\n", b"*-1\r\n", b"*1\r\n:1\r\n", b"*2\r\n+a\r\n$1\r\nb\r\n",
    b"*3\r\n:1\r\n:2\r\n:3\r\n", b"*2\r\n:1\r\n-ERR inside\r\n", b"%1\r\n+a\r\n+b\r\n", b",1.5\r\n", b"#t\r\n", b"_\r\n",
    b"$4\r\n\xff\xfe\x00\x01\r\n", b"(12345678901234567890\r\n",
)  # fmt: skip


class Resembling(Protocol):
    """Answers each command with `answer`."""

    answer = b""

    def __init__(self) -> None:
        self._commands = hiredis.Reader()

    def dataReceived(self, data: bytes) -> None:
        self._commands.feed(data)
        while self._commands.gets() is not False:
            self.transport.write(self.answer)


@pytest.mark.parametrize("name", CALLS)
@pytest_twisted.ensureDeferred
async def test_an_answer_of_a_wrong_type(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Resembling, "answer", b"+OK\r\n")
    port = reactor.listenTCP(0, Factory.forProtocol(Resembling), interface="127.0.0.1")
    at = f"127.0.0.1:{port.getHost().port}"
    config = load(
        {
            "SERVER_URL": "http://127.0.0.1:1",
            "RELAY_BACKPLANE_MODE": "redis",
            "RELAY_INTERNAL_KEY": "an-internal-key-of-the-test",
            "RELAY_BUS_HMAC_KEY": "a-bus-key-of-the-test-0123456789",
            "RELAY_REDIS_URL": f"redis://{at}",
        }
    )
    outage = Outage(reactor, Log(), Counters(), lambda: None)
    carrier = RedisCarrier(reactor, config, outage, Counters(), lambda: 1_800_000_000.0)
    carrier.start()
    try:
        await carrier.withdraw(TARGET, {})  # by now the connection is made
        await carrier.record_of("b")
        for Resembling.answer in ODD:
            try:
                await CALLS[name](carrier)
            except CarrierFailed as failed:
                assert (failed.reason, failed.outage) == (Reason.BACKPLANE_REFUSED, False), Resembling.answer
                assert failed.why.startswith(f"Redis {at} gives an answer of a wrong type: "), failed.why
        assert not outage.is_down
    finally:
        await carrier.stop()
        await port.stopListening()
