"""TLS records without data (new keys): a few are taken in any place, and a peer that floods with them is cut off."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.drill.certificates import Identity
from tests.tlsbench import Secured
from tests.tlsrecords import Records
from viewport_relay.reasons import Reason
from viewport_relay.wire.tls import ServerContext
from viewport_relay.wire.tlstransport import WITHOUT_DATA_MAX


class Server:
    """A server's transport behind a handshake, and the attacker's `records`. `got` is all data, in order."""

    def __init__(self, context: ServerContext, *, direct: bool) -> None:
        self.secured = secured = Secured(context, direct=direct)
        self.records = Records(secured.keys)
        self.deliver: Callable[[bytes], None] = secured.read if direct else secured.transport.dataReceived
        secured.collector.got = secured.behind.got  # data may come to either

    @property
    def got(self) -> bytes:
        return b"".join(self.secured.behind.got)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ServerContext:
    files = Identity.self_signed("localhost").write(tmp_path_factory.mktemp("tls"), "relay")
    return ServerContext(files.cert, files.key)


@pytest.fixture(params=[True, False], ids=["direct", "through Twisted"])
def server(request: pytest.FixtureRequest, context: ServerContext) -> Server:
    return Server(context, direct=request.param)


#: d: a record of data, k: a new key.
@pytest.mark.parametrize(
    "order", ["k", "kd", "dk", "kkd", "dkd", "dkdkd", "ddkkdd", "kdddddddd", "dddddddkk"]
)
@pytest.mark.parametrize("together", [True, False], ids=["in one read", "one by one"])
def test_data_around_new_keys_is_read_at_once(server: Server, order: str, together: bool) -> None:
    made = [
        server.records.data(b"<%d>" % at) if kind == "d" else server.records.key_update()
        for at, kind in enumerate(order)
    ]
    for read in [b"".join(made)] if together else made:
        server.deliver(read)
    assert server.got == b"".join(b"<%d>" % at for at, kind in enumerate(order) if kind == "d")
    assert not server.secured.wire.aborted and server.secured.behind.failures == []


def test_a_record_in_pieces_behind_a_new_key(server: Server) -> None:
    read = server.records.key_update() + server.records.data(b"data")
    for piece in (read[:30], read[30:40]):
        server.deliver(piece)
    assert server.got == b""
    server.deliver(read[40:])
    assert server.got == b"data"


@pytest.mark.parametrize("data", [b"", b"x"], ids=["new keys alone", "with data in between"])
def test_a_flood_of_new_keys_ends_the_connection(server: Server, data: bytes) -> None:
    flood = b"".join(
        server.records.key_update() + (server.records.data(data) if data else b"") for _ in range(3000)
    )
    server.secured.wire.sent = b""
    server.deliver(flood)
    assert server.secured.wire.aborted
    [(reason, detail)] = server.secured.behind.failures
    assert reason is Reason.PROTOCOL_ERROR and str(WITHOUT_DATA_MAX) in detail
    assert len(server.got) <= WITHOUT_DATA_MAX + 1, "the flood was not stopped where it was noticed"
    assert len(server.secured.wire.sent) < 100 * WITHOUT_DATA_MAX, "its answers pile up"


def test_many_new_keys_over_a_long_time_are_no_flood(server: Server) -> None:
    for _ in range(10):
        for _ in range(WITHOUT_DATA_MAX // 3):
            server.deliver(server.records.key_update() + server.records.data(b"."))
        server.secured.clock.advance(61)
    assert len(server.got) == 10 * (WITHOUT_DATA_MAX // 3)
    assert not server.secured.wire.aborted
