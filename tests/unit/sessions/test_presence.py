"""Viewer presence with slow consumers: dropped and counted, not queued."""

from __future__ import annotations

from tests.memorywire import MemoryPeer, MemoryRelay
from tests.wireframes import CHANNEL, encoded
from viewport_relay.protocol.grant import Scope


def viewer(relay: MemoryRelay) -> MemoryPeer:
    peer = relay.client(Scope.SESSION_EVENTS, session_channels=(CHANNEL,))
    peer.say(encoded("subscribe"))
    assert len(peer.heard()) == 1
    return peer


def test_a_viewer_that_does_not_read_misses_presence_and_stays() -> None:
    relay = MemoryRelay()
    daemon = relay.daemon()
    slow, lively, sender = viewer(relay), viewer(relay), viewer(relay)
    slow.stop_reading()
    event = encoded("session event", event={"text": "x" * 30_000})
    for _ in range(4):
        daemon.say(event)
    queued = slow.connection.outbox.pending
    for number in range(500):
        sender.say(encoded("presence", displayName=f"n{number}", sentAt="x" * 10_000))
    assert slow.connection.outbox.pending == queued
    assert relay.counters.presence_missed == 500
    assert len(lively.heard()) == 4 + 500
    assert slow.is_open
    slow.read_on()
    assert slow.heard() == [event] * 4
    sender.say(encoded("presence"))
    assert slow.heard() == [encoded("presence")]


def test_what_waits_for_all_viewers_of_a_target_is_bounded() -> None:
    """Over the target's bound, the viewer with the longest queue is closed, although each queue is within its own bound."""
    relay = MemoryRelay(RELAY_MAX_PENDING_BYTES="1048576")
    daemon = relay.daemon()
    slow = [viewer(relay) for _ in range(20)]
    for peer in slow:
        peer.stop_reading()
    event = encoded("session event", event={"text": "x" * 50_000})
    for _ in range(19):
        daemon.say(event)
    still_open = [peer for peer in slow if peer.connection.ending is None]
    assert 0 < len(still_open) < 20
    assert sum(peer.connection.outbox.queued for peer in still_open) < 9 * 1_048_576
