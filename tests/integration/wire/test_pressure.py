"""Back-pressure: slow readers, stopped readers and flooding senders; which are paused or closed, and the memory used.

The kernel buffers megabytes per connection before the relay notices a stopped reader, so sizes here are large.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.drill.relay import until
from tests.integration.admission.relays import Relay
from tests.integration.wire.conftest import checked
from tests.integration.wire.site import Gone, Peer, Site, resident_kib, settle
from tests.memorywire import PING, masked_frame
from tests.wireframes import encoded

MIB = 1_048_576
PENDING = 2 * MIB
#: Small socket buffers, so that the relay notices a stopped reader early.
BUFFER = 16_384


@pytest.fixture(scope="module")
def relay(make_relay: Callable[..., Relay]) -> Iterator[Relay]:
    yield from checked(make_relay(RELAY_MAX_PENDING_BYTES=str(PENDING), RELAY_PING_INTERVAL_MS="60000"))


def flood(peer: Peer, message: bytes, most: int) -> int:
    """Send until the relay reads no more (or `most` are sent); returns the number of complete messages.

    `finish` sends the rest of an incomplete frame.
    """
    data = masked_frame(1, message, mask=b"mask") * 16
    peer.socket.setblocking(False)
    sent = 0
    stuck_since = time.monotonic()
    while sent < most * len(data) // 16:
        try:
            sent += peer.socket.send(data[sent % len(data) :])
            stuck_since = time.monotonic()
        except BlockingIOError:
            if time.monotonic() - stuck_since > 0.5:
                break
            time.sleep(0.005)
        except OSError:
            break
    peer.socket.settimeout(15)
    peer.rest = data[sent % len(data) :][: -sent % (len(data) // 16)]  # type: ignore[attr-defined]
    return -(-sent // (len(data) // 16))


def test_a_client_that_stops_reading_gets_what_was_queued_and_then_the_close(site: Site) -> None:
    daemon, slow, other = site.daemon(), site.client(receive_buffer=BUFFER), site.client()
    session, quick = site.session(daemon, slow, "slow"), site.session(daemon, other, "quick")
    before = site.metric("relay_ws_slow_client_terminated_total")
    sent = []
    while site.metric("relay_ws_slow_client_terminated_total") == before:
        for _ in range(20):
            message = encoded("e2ee", sessionId=session, seq=len(sent) + 1, ciphertext="c" * 50_000)
            daemon.say(message, encoded("e2ee", sessionId=quick, seq=len(sent) + 1))
            sent.append(message)
            assert json.loads(other.hear())["seq"] == len(sent)  # other clients never wait
        assert len(sent) < 1000
    assert (site.state() or {})["clientCount"] == 1  # it has left routing; its Close follows the queue
    assert slow.end() == (4008, "buffer overflow")
    got = slow.heard()
    assert got == sent[: len(got)]
    assert sum(map(len, got)) >= PENDING
    site.logged("BUFFER_OVERFLOW")
    settle(daemon, other)
    again = site.client()
    site.session(daemon, again, session)


def test_a_flood_of_one_client_neither_starves_the_others_nor_closes_a_connection(
    site: Site, relay: Relay
) -> None:
    daemon = site.daemon(receive_buffer=BUFFER)
    flooder, quiet = site.client(), [site.client() for _ in range(5)]
    before = resident_kib(relay)
    message = encoded("e2ee", sessionId="flood", ciphertext="f" * 20_000)
    sent = flood(flooder, message, 5000)
    assert sent < 5000  # the relay has stopped reading
    assert site.metric("relay_peers_paused") >= 1
    assert resident_kib(relay) - before < 12 * 1024
    for number, client in enumerate(quiet):
        client.say(encoded("e2ee", sessionId=f"quiet-{number}"))
    heard = 0
    waiting = {f"quiet-{number}" for number in range(5)}
    while waiting:
        waiting.discard(json.loads(daemon.hear())["sessionId"])
        heard += 1
    # Before them came frames in flight, kernel buffers, and one turn of the flood: less than a megabyte.
    assert heard * len(message) < MIB
    rest = threading.Thread(target=flooder.raw, args=(flooder.rest,), daemon=True)  # type: ignore[attr-defined]
    rest.start()
    left = sent + 5 - heard
    assert all(json.loads(daemon.hear())["sessionId"] == "flood" for _ in range(left))
    rest.join(15)
    settle(daemon, flooder, *quiet)  # no connection was closed


def test_a_flood_is_resumed_and_keeps_its_order(site: Site) -> None:
    daemon, client = site.daemon(receive_buffer=BUFFER), site.client()
    frames = [encoded("e2ee", seq=seq, ciphertext="f" * 30_000) for seq in range(1, 1001)]
    sender = threading.Thread(target=client.say, args=frames, daemon=True)
    sender.start()
    for pause in (0.3, 0.1, 0.0):
        time.sleep(pause)
        for _ in range(200):
            assert daemon.hear() == frames.pop(0)
    assert daemon.hear_all(len(frames)) == frames
    sender.join(15)
    settle(daemon, client)


def test_memory_is_bounded_with_many_floods(site: Site, relay: Relay) -> None:
    daemon = site.daemon(receive_buffer=BUFFER)
    flooders = [site.client() for _ in range(10)]
    before = resident_kib(relay)
    message = encoded("e2ee", ciphertext="f" * 100_000)
    threads = [threading.Thread(target=flood, args=(peer, message, 600), daemon=True) for peer in flooders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # One read and one frame for each of them; the flood is 600 MB.
    assert resident_kib(relay) - before < 24 * 1024
    daemon.vanish()
    witness = site.client()
    until(lambda: site.metric("relay_peers_paused") == 0, what="they are read again")
    for peer in flooders:
        peer.vanish()
    settle(witness)


def test_a_ping_flood_with_unread_pongs(site: Site, relay: Relay) -> None:
    client, other = site.client(receive_buffer=BUFFER), site.client()
    before = resident_kib(relay)
    pings = b"".join(masked_frame(PING, b"%0120d" % number, mask=b"mask") for number in range(2000))
    for _ in range(20):
        client.raw(pings)
        settle(other)  # other clients are served meanwhile
    assert resident_kib(relay) - before < 8 * 1024
    assert client.closed is None
    client.read_until(lambda: b"%0120d" % 1999 in client.pongs, "the last pong")
    settle(client)


def test_a_flood_of_refused_frames_by_a_client_that_does_not_read(site: Site, relay: Relay) -> None:
    client, other = site.client(receive_buffer=BUFFER), site.client()
    slow = "relay_ws_slow_client_terminated_total"
    before, closed_before = resident_kib(relay), site.metric(slow)
    client.raw(masked_frame(1, b"?", mask=b"mask") * 60_000)  # each is answered with 150 bytes
    until(lambda: site.metric(slow) > closed_before, what="it is given up", seconds=30)
    settle(other)
    assert resident_kib(relay) - before < 12 * 1024
    answers = 0
    with pytest.raises(Gone):
        while True:
            assert b"INVALID_FRAME" in client.hear()
            answers += 1
    assert client.closed == (4008, "buffer overflow")
    assert PENDING < answers * 150 < 2 * PENDING + 8 * MIB
