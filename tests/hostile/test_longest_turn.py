"""The longest time for which one input blocks the event loop: CPU time by kind of input, printed as a table.

Each input has the maximal length of its kind and the most expensive known content. The figure is the least of several
tries, because the machine may do other work. The bound is generous for the same reason; on an idle machine each input
takes under 10 ms.

    pytest -m "slow or not slow" tests/hostile/test_longest_turn.py -s
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.http_headers import Headers

from tests.conformance.echo import site
from viewport_relay.admission.httpcall import Answer
from viewport_relay.admission.jwt import read_header
from viewport_relay.admission.keys import KeySet, KeySetError
from viewport_relay.admission.verdict import judge
from viewport_relay.backplane.replay import Freshness
from viewport_relay.backplane.signing import FrameVerifier
from viewport_relay.observe.logs import EventLog
from viewport_relay.protocol.decoding import decode_client, decode_daemon, decode_worker, fast_e2ee
from viewport_relay.protocol.grant import Role, UpgradeQuery
from viewport_relay.protocol.json import is_utf8
from viewport_relay.reasons import Reason, Refusal

FRAME: Final = 1_048_576
ANSWER: Final = 262_144
TOKEN: Final = 4_096
HEAD: Final = 16_384

#: Limit of CPU seconds for each input, for a slow and busy machine; an idle machine needs under 0.010.
BOUND: Final = 0.030


def filled(start: str, unit: str, end: str, size: int) -> bytes:
    """A text of at most `size` bytes: `unit` repeated between `start` and `end`."""
    return (start + unit * ((size - len(start) - len(end)) // len(unit)) + end).encode()


def documents(start: str, size: int) -> Iterator[tuple[str, bytes]]:
    """JSON objects that begin with `start` (a member and a comma) and are expensive to parse."""
    yield "array of numbers", filled("{" + start + '"x":[', "1,", "1]}", size)
    yield "array of objects", filled("{" + start + '"x":[', '{"a":[]},', "1]}", size)
    yield "no object", filled("[", "1,", "1]", size)
    yield "many members", filled("{" + start, '"":1,', '"":1}', size)
    yield "one member again and again", filled("{" + start, '"iv":"",', '"x":1}', size)
    yield "digits", filled("{" + start + '"epoch":', "1", "}", size)
    yield "lone surrogates", filled("{" + start + '"iv":"', "\\udfff", '"}', size)
    yield "a surrogate and backslashes", filled("{" + start + '"iv":"\\ud800', "\\\\", '"}', size)
    yield "a surrogate and numbers", filled("{" + start + '"x":["\\ud800",', "1,", "1]}", size)
    yield "nesting", filled("{" + start + '"x":', "[", "", size)
    yield "nesting, closed", filled("{" + start + '"x":[', "[" * 900 + "]" * 900 + ",", "1]}", size)
    yield "characters beyond ASCII", filled("{" + start + '"iv":"', "\U0001f600", '"}', size)
    yield (
        "a blank and characters beyond ASCII",
        filled("{" + start + '"iv":"\u3000', "\U0001f600", '"}', size),
    )
    yield "blanks beyond ASCII", filled("{" + start + '"iv":"', "\u3000", '"}', size)


def tokens() -> Iterator[tuple[str, bytes]]:
    for name, document in documents('"alg":"RS256",', TOKEN * 3 // 4 - 8):
        yield name, base64.urlsafe_b64encode(document).rstrip(b"=") + b".e30.AAAA"
    yield "dots", b"." * TOKEN
    yield "letters", b"A" * TOKEN


def heads() -> Iterator[tuple[str, bytes]]:
    start = "GET /ws?role=client&workspaceId=w HTTP/1.1\r\nHost: a\r\n"
    yield "many headers", filled(start, "a:\r\n", "\r\n", HEAD)
    yield "one long header", filled(start + "X: ", "a", "\r\n\r\n", HEAD)
    yield "many parts of a list", filled(start + "Sec-WebSocket-Protocol: ", "a,", "a\r\n\r\n", HEAD)
    yield "a long query", filled("GET /ws?", "a=%41&", " HTTP/1.1\r\nHost: a\r\n\r\n", HEAD)


def log_values() -> Iterator[tuple[str, Any]]:
    yield "a long text", "x" * FRAME
    yield "what looks like tokens", "eyJhbGciOi." * (FRAME // 11)
    yield "URLs", "https://u:p@h/?token=x " * (FRAME // 23)
    yield "a long list", [1] * 100_000
    yield "a wide mapping", {str(number): "x" for number in range(100_000)}
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    yield "deep", deep


def read_message(message: bytes) -> None:
    """Process a client's message, in the buffer that received it."""
    received = memoryview(bytearray(message))
    if fast_e2ee(received) is None and is_utf8(received):
        decode_client(received, fast=False)


def read_bus_frame() -> Callable[[bytes], object]:
    verifier = FrameVerifier("k" * 32, "relay-1", Freshness(Clock(), time.time, 15.0), FRAME)
    return verifier.verify


def validated(body: bytes) -> object:
    query = UpgradeQuery(Role.CLIENT, "w", "t")
    return judge(Answer(200, Headers(), body), query, "https://platform.example/validate")


def write_log(value: Any) -> None:
    EventLog(io.StringIO(), max_entries=10).event(
        "drop", reason=Reason.INVALID_FRAME, detail=value, other=value
    )


def read_head(head: bytes) -> None:
    """One read of a new connection, through channel and upgrade, up to the refusal."""
    clock = Clock()
    transport = StringTransport()
    channel = site(clock, RELAY_LISTEN_HOST="127.0.0.1").buildProtocol(None)
    channel.callLater = clock.callLater
    channel.makeConnection(transport)
    channel.dataReceived(head)
    clock.advance(0)


KINDS: Final[dict[str, tuple[Callable[[Any], object], Callable[[], Iterator[tuple[str, Any]]]]]] = {
    "client frame": (read_message, lambda: documents('"type":"e2ee",', FRAME)),
    "daemon frame": (decode_daemon, lambda: documents('"type":"e2ee",', FRAME)),
    "executor frame": (
        decode_worker,
        lambda: documents('"type":"viewport.worker_transport.request/v1",', FRAME),
    ),
    "request head": (read_head, heads),
    "token": (lambda token: read_header(token.decode()), tokens),
    "key set": (KeySet.parse, lambda: documents('"keys":[],', ANSWER)),
    "validate answer": (validated, lambda: documents('"ok":true,"claims":{},', ANSWER)),
    "bus frame": (read_bus_frame(), lambda: documents('"workspaceId":"w",', FRAME)),
    "log value": (write_log, log_values),
}


def longest(read: Callable[[Any], object], value: Any) -> float:
    """CPU seconds for one input: the least of several tries."""
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        with contextlib.suppress(Refusal, KeySetError):
            read(value)
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize("kind", KINDS)
def test_no_input_blocks_the_loop(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    read, inputs = KINDS[kind]
    rows = sorted(((longest(read, value), name) for name, value in inputs()), reverse=True)
    with capsys.disabled():
        print(f"\n{kind}: " + json.dumps({name: f"{seconds * 1000:.1f} ms" for seconds, name in rows}))
    assert rows[0][0] < BOUND, rows[0]
