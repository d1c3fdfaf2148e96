"""RFC 6455 on a real relay, with and without its fast path: fragments, control frames, limits, closes."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from tests.integration.admission.relays import Relay
from tests.integration.wire.conftest import checked
from tests.integration.wire.site import Site, settle
from tests.memorywire import BINARY, CLOSE, PING, TEXT, masked_frame
from tests.wireframes import encoded

FRAME_MAX = 100_000


@pytest.fixture(scope="module", params=["1", "0"], ids=["fast", "plain"])
def relay(request: pytest.FixtureRequest, make_relay: Callable[..., Relay]) -> Iterator[Relay]:
    yield from checked(make_relay(RELAY_FAST_PATH=request.param, RELAY_FRAME_MAX_BYTES=str(FRAME_MAX)))


def sized(size: int) -> bytes:
    """A frame of exactly `size` bytes."""
    empty = len(encoded("e2ee", ciphertext=""))
    return encoded("e2ee", ciphertext="c" * (size - empty))


@pytest.mark.parametrize("size", [200, 300, 65_535, 65_536, 70_000, FRAME_MAX])
@pytest.mark.parametrize("cut", [1, 3, 1000, 1 << 30])
def test_frames_of_every_size_in_pieces_of_every_size(site: Site, size: int, cut: int) -> None:
    cut = max(cut, size // 500)  # some hundred pieces are enough
    daemon, client = site.daemon(), site.client()
    messages = [sized(size), encoded("e2ee", seq=2)]
    wire = b"".join(masked_frame(TEXT, message) for message in messages)
    for at in range(0, len(wire), cut):
        client.raw(wire[at : at + cut])
    assert daemon.hear_all(2) == messages
    daemon.say(encoded("response v3", requestId="?"), sized(size))
    settle(daemon, client)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_the_limit_is_the_sum_of_the_fragments(site: Site, opcode: int) -> None:
    daemon, client = site.daemon(), site.client()
    message = sized(FRAME_MAX)
    for size in (1, 10_000, 65_536):
        head, rest = message[:size], message[size:]
        client.raw(masked_frame(opcode, head, fin=False) + masked_frame(PING, b"p") + masked_frame(0, rest))
        assert daemon.hear() == message
    client.raw(masked_frame(opcode, message, fin=False) + masked_frame(0, b"", fin=False))
    settle(client)  # exactly at the limit
    client.raw(masked_frame(0, b"x"))
    assert client.end() == (1009, "frame too large")
    settle(daemon)
    assert daemon.heard() == []


def test_a_length_over_the_limit_is_refused_before_its_payload(site: Site) -> None:
    before = site.metric("relay_ws_frame_too_large_total")
    for announced in (FRAME_MAX + 1, 1 << 32, (1 << 63) - 1):
        client = site.client()
        client.raw(b"\x81\xff" + struct.pack("!Q", announced) + b"mask")
        assert client.close_frame() == (1009, "frame too large")
    assert site.metric("relay_ws_frame_too_large_total") == before + 3


def test_bytes_after_an_oversized_frame_are_read_so_that_the_close_arrives(site: Site) -> None:
    client = site.client()
    payload = b"x" * 5_000_000
    client.raw(b"\x81\xff" + struct.pack("!Q", len(payload)) + b"mask")
    client.raw(payload)
    assert client.end() == (1009, "frame too large")


def test_an_oversized_frame_of_a_daemon(site: Site) -> None:
    daemon, client = site.daemon(), site.client()
    site.session(daemon, client)
    daemon.say(sized(FRAME_MAX))
    assert client.hear() == sized(FRAME_MAX)
    daemon.say(sized(FRAME_MAX + 1))
    assert daemon.end() == (1009, "frame too large")
    client.say(encoded("e2ee"))
    assert b"DAEMON_UNAVAILABLE" in client.hear()
    site.logged("FRAME_TOO_LARGE")


def test_binary_messages_are_forwarded_as_text(site: Site) -> None:
    daemon, client = site.daemon(), site.client()
    message = encoded("e2ee", note="\u00e9\U0001f600")
    client.raw(masked_frame(BINARY, message))
    assert daemon.hear() == message  # `hear` allows text only


@pytest.mark.parametrize("payload", [b"\xff", b'{"a":"\xc3"}', b"\xed\xa0\x80", b"x" * 70_000 + b"\xc3"])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_text_that_is_not_utf8_closes_1007(site: Site, payload: bytes, opcode: int) -> None:
    for peer in (site.client(), site.daemon()):
        peer.raw(masked_frame(opcode, payload))
        assert peer.end() == (1007, "text is not UTF-8")
    site.logged("FRAME_NOT_UTF8")


def test_utf8_may_be_cut_between_fragments(site: Site) -> None:
    daemon, client = site.daemon(), site.client()
    message = encoded("e2ee", note="\u00e9\U0001f600")
    at = message.index("\U0001f600".encode()) + 2
    client.raw(masked_frame(TEXT, message[:at], fin=False) + masked_frame(0, message[at:]))
    assert daemon.hear() == message


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("not masked", b"\x81\x02{}"),
        ("reserved bit", b"\xc1\x80mask"),
        ("reserved opcode", b"\x84\x80mask"),
        ("fragmented ping", b"\x09\x80mask"),
        ("long ping", b"\x89\xfe\x00\x7emask" + b"x" * 126),
        ("continuation without a start", b"\x80\x80mask"),
        ("message within a message", b"\x01\x80mask\x81\x80mask"),
        ("length not minimal", b"\x81\xfe\x00\x05mask12345"),
        ("close with one byte", masked_frame(CLOSE, b"\x03")),
        ("invalid close code", masked_frame(CLOSE, struct.pack("!H", 1005))),
        ("unassigned close code", masked_frame(CLOSE, struct.pack("!H", 2500))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_protocol_errors_close_1002(site: Site, name: str, wire: bytes) -> None:
    client = site.client()
    client.raw(wire)
    assert client.close_frame() == (1002, "WebSocket protocol error")
    site.logged("PROTOCOL_ERROR")


@pytest.mark.parametrize("code", [1000, 1001, 3999, 4999, None])
def test_a_close_is_answered_and_the_relay_ends_the_connection(site: Site, code: int | None) -> None:
    client = site.client()
    client.answers_close = False
    client.raw(
        masked_frame(CLOSE, b"" if code is None else struct.pack("!H", code) + "d\u00e9j\u00e0".encode())
    )
    assert client.end() == (code, "" if code is None else "d\u00e9j\u00e0")


def test_pings_are_answered_between_everything(site: Site) -> None:
    client = site.client()
    client.pongs.clear()
    client.raw(masked_frame(PING, b"") + masked_frame(PING, b"x" * 125) + masked_frame(TEXT, b"{", fin=False))
    client.raw(masked_frame(PING, b"inside") + masked_frame(0, b"}") + masked_frame(PING, b"after"))
    settle(client)
    assert client.pongs[:2] == [b"", b"x" * 125]
    assert b"inside" in client.pongs
    assert b"after" in client.pongs


def test_after_its_close_the_relay_ignores_the_peer(site: Site) -> None:
    daemon, client = site.daemon(), site.client()
    client.answers_close = False
    client.say(encoded("subscribe"))
    assert client.close_frame() == (4008, "session-events scope required")
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        client.raw(masked_frame(TEXT, encoded("init v3")) + masked_frame(PING, b"?") + b"\xff" * 100)
        client.read_for(0.02)
    assert not client.ended
    settle(daemon)
    assert daemon.heard() == []
    assert client.pongs[2:] == []  # the first two belong to the join
    client.vanish()
    settle(daemon)


def test_half_closed_connections_still_deliver(site: Site) -> None:
    daemon, client = site.daemon(), site.client()
    client.say(*[encoded("e2ee", seq=seq) for seq in range(1, 50)])
    client.socket.shutdown(socket.SHUT_WR)
    assert daemon.hear_all(49) == [encoded("e2ee", seq=seq) for seq in range(1, 50)]
    assert client.end() is None
