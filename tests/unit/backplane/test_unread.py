"""Queues that only grow: their relay counts as not reading until it pulls again."""

from __future__ import annotations

from twisted.internet.task import Clock

from viewport_relay.backplane.unread import PROBE_EVERY, SILENT_AFTER, UnreadQueues


class Parts:
    def __init__(self) -> None:
        self.clock = Clock()
        self.unread = UnreadQueues(self.clock)
        self.length = 0

    def push(self, elements: int = 1, *, taken: int = 0, after: float = 1.0) -> bool:
        self.clock.advance(after)
        self.length = max(0, self.length - taken) + elements
        return self.unread.pushed("b", elements, self.length)


def test_a_queue_that_only_grows_is_not_read() -> None:
    parts = Parts()
    assert [parts.push() for _ in range(6)] == [True, True, True, True, False, False]
    assert not parts.unread.takes("b")
    assert parts.unread.takes("c")
    parts.clock.advance(PROBE_EVERY)
    assert parts.unread.takes("b")


def test_a_trimmed_queue_is_not_read() -> None:
    parts = Parts()
    read = []
    for _ in range(6):
        parts.clock.advance(1.0)
        read.append(parts.unread.pushed("b", 1, 10, trimmed=True))
    assert read == [True, True, True, True, False, False]


def test_a_burst_does_not_count_as_unread() -> None:
    parts = Parts()
    assert all(parts.push(after=0.01) for _ in range(int(SILENT_AFTER / 0.01) - 10))


def test_pushes_after_a_long_pause_do_not_count_as_unread() -> None:
    """After an outage of Redis the other relay needs time to reconnect, too."""
    parts = Parts()
    parts.push()
    parts.clock.advance(60.0)
    assert all(parts.push(after=0.1) for _ in range(20))


def test_a_queue_that_is_partly_pulled_is_read() -> None:
    parts = Parts()
    assert all(parts.push(5, taken=1) for _ in range(20))


def test_an_unread_queue_that_is_pulled_is_read_again() -> None:
    parts = Parts()
    while parts.push():
        pass
    assert parts.push(taken=10)
    assert parts.unread.takes("b")


def test_the_table_of_relays_is_bounded() -> None:
    parts = Parts()
    for number in range(5000):
        parts.unread.pushed(f"relay-{number}", 1, 1)
    assert len(parts.unread._queues) == 1024
