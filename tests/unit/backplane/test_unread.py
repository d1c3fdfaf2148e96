"""Bus frames that another relay does not read: taken back, told once, and tried again."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.unit.backplane.parts import StubCarrier
from viewport_relay.backplane.interface import CLIENT_TO_DAEMON, CarrierFailed, Parcel, Place
from viewport_relay.backplane.unread import LOOK_EVERY, PROBE_EVERY, SILENT_AFTER, UnreadQueues, mark_of


def element(name: str) -> tuple[bytes, Sequence[Parcel]]:
    payload = name.encode()
    return payload, (Parcel(("w", "t"), CLIENT_TO_DAEMON, "b", None, (payload,), len(payload)),)


class Parts(StubCarrier):
    """A carrier, and the queue of relay b, which the test reads or leaves."""

    def __init__(self, most_bytes: int = 1 << 20) -> None:
        super().__init__()
        self.clock = Clock()
        self.unread = UnreadQueues(self.clock, self, self._lost, most_bytes)
        self.queue: list[bytes] = []
        self.asked = 0
        self.lost: list[str] = []
        self.first: list[bool] = []
        self.failing: CarrierFailed | None = None
        self.fails_at, self.part = 0, 1000
        self.answer: Deferred[None] | None = None

    async def take_back(
        self, relay_id: str, marks: Sequence[bytes], place: Place
    ) -> tuple[Sequence[bytes], Place | None]:
        """Looks at `part` elements."""
        self.asked += 1
        at, _ = place
        if self.failing is not None and at >= self.fails_at:
            raise self.failing
        looked, rest = self.queue[at : at + self.part], self.queue[at + self.part :]
        found, kept = [
            [frame for frame in looked if (mark_of(frame) in marks) == ours] for ours in (True, False)
        ]
        self.queue[at:] = kept + rest
        if self.answer is not None:
            await self.answer
        return [mark_of(frame) for frame in found], (at + len(kept), b"") if rest else None

    def _lost(self, relay_id: str, parcels: Sequence[Parcel], was_read: bool) -> None:
        self.lost += [bytes(payload).decode() for parcel in parcels for payload in parcel.payloads]
        self.first.append(was_read)

    def push(self, *names: str, read: bool = False) -> None:
        """Push one element for each name; `read`: the relay has emptied its queue before."""
        if read:
            self.queue.clear()
        self.queue += [name.encode() for name in names]
        self.unread.pushed("b", [element(name) for name in names], len(self.queue))

    def wait(self, seconds: float) -> None:
        self.clock.pump([LOOK_EVERY] * round(seconds / LOOK_EVERY))


def test_what_is_not_read_is_taken_back_and_told() -> None:
    parts = Parts()
    parts.queue = [b"another relay's"]
    parts.push("1", "2")
    parts.wait(SILENT_AFTER - LOOK_EVERY)
    assert parts.asked == 0
    parts.push("3")
    parts.wait(LOOK_EVERY)
    assert parts.lost == ["1", "2"]
    assert not parts.unread.takes("b") and parts.unread.takes("c")
    parts.wait(PROBE_EVERY)
    assert (parts.lost, parts.first) == (["1", "2", "3"], [True, False])
    assert parts.queue == [b"another relay's"]


def test_what_is_read_is_not_told() -> None:
    parts = Parts()
    for number in range(20):
        parts.push(str(number), read=True)
        parts.wait(LOOK_EVERY)
    assert parts.asked == 0  # each push tells that the one before was read
    parts.queue.clear()
    parts.wait(10.0)
    assert (parts.asked, parts.lost) == (1, [])
    assert parts.unread.takes("b")
    assert parts.clock.getDelayedCalls() == []  # with nothing to look at there is no timer


def test_a_relay_that_reads_again_is_found_by_a_probe() -> None:
    parts = Parts()
    parts.push("1")
    parts.wait(SILENT_AFTER)
    assert parts.unread.takes("b")  # the last push is long enough ago
    parts.push("probe")
    assert not parts.unread.takes("b")
    parts.queue.clear()
    parts.wait(PROBE_EVERY)
    assert parts.lost == ["1"] and parts.unread.takes("b")


def test_a_second_probe_finds_that_the_first_was_read() -> None:
    """The probes of a busy relay follow so closely that none of them is ever late."""
    parts = Parts()
    parts.push("1", "2")
    parts.wait(SILENT_AFTER)
    parts.push("probe")
    assert not parts.unread.takes("b")
    parts.push("next probe", read=True)
    assert parts.unread.takes("b")


def test_an_outage_tells_nothing_and_is_asked_again() -> None:
    parts = Parts()
    parts.push("1")
    parts.failing = CarrierFailed("gone")
    parts.wait(SILENT_AFTER + 1.0)
    assert (parts.asked, parts.lost) == (5, [])
    parts.failing = None
    parts.wait(LOOK_EVERY)
    assert parts.lost == ["1"]


def test_a_queue_is_looked_through_in_parts() -> None:
    parts = Parts()
    parts.part = 2
    parts.queue = [b"another relay's"]
    parts.push("1", "2", "3", "4")
    parts.wait(SILENT_AFTER)
    assert parts.lost == ["1", "2", "3", "4"] and parts.queue == [b"another relay's"]
    assert parts.asked == 3 and len(parts.first) == 1  # told together


def test_what_was_taken_back_before_an_outage_is_told() -> None:
    parts = Parts()
    parts.part = 2
    parts.queue = [b"another relay's"]
    parts.push("1", "2")
    parts.failing, parts.fails_at = CarrierFailed("gone"), 1
    parts.wait(SILENT_AFTER)
    assert (parts.lost, parts.first) == (["1"], [True])
    parts.failing = None
    parts.wait(PROBE_EVERY)
    assert parts.lost == ["1", "2"] and parts.first == [True, False]


def test_a_queue_without_end_is_left_for_a_while() -> None:
    parts = Parts()
    parts.part = 1
    parts.queue = [b"another relay's"] * 300
    parts.push("1")
    parts.wait(SILENT_AFTER)
    assert (parts.asked, parts.lost) == (256, [])
    del parts.queue[:100]
    parts.wait(LOOK_EVERY)
    assert parts.lost == ["1"]


def test_a_late_answer_is_for_what_was_asked() -> None:
    parts = Parts()
    parts.answer = Deferred()
    parts.push("1")
    parts.wait(SILENT_AFTER)
    parts.push("2")
    parts.wait(SILENT_AFTER)
    assert parts.asked == 1
    parts.answer.callback(None)
    assert parts.lost == ["1"]
    parts.wait(PROBE_EVERY)
    assert parts.lost == ["1", "2"]


def test_a_relay_that_is_gone_is_forgotten() -> None:
    parts = Parts()
    parts.push("1")
    parts.wait(SILENT_AFTER)
    assert parts.lost == ["1"] and parts.clock.getDelayedCalls()
    parts.wait(70.0)
    assert parts.clock.getDelayedCalls() == []


def test_what_is_remembered_is_bounded() -> None:
    parts = Parts(most_bytes=30)
    for number in range(100):
        parts.push(f"{number:010}")
    parts.wait(SILENT_AFTER)
    assert parts.lost == ["0000000097", "0000000098", "0000000099"]
    for number in range(5000):
        parts.unread.pushed(f"relay-{number}", [element("x")], 1)
    assert len(parts.unread._queues) == 1024
    parts.unread.stop()
    assert parts.clock.getDelayedCalls() == []
