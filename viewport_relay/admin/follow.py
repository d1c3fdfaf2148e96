"""A follower: one HTTP client that gets the records of the ring and then each new record.

        ring, new records -> bounded queue -> HTTP response (a push producer)

When the queue is full, the oldest record is dropped, and the client is told how many were dropped. A client that reads nothing
for a minute is disconnected. The response ends at the first heartbeat after its session or token has ended. The log and
other followers do not wait for a slow client.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field, frozen
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.web.server import Request
from zope.interface import implementer

from viewport_relay.admin.reply import TEXT_TYPE, quiet
from viewport_relay.admin.words import as_text
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.ring import Record

#: New records that may wait for one follower, beside the records of the ring that it began with.
MAX_WAITING = 1000

#: Seconds between heartbeats, and seconds without progress after which a follower is disconnected.
HEARTBEAT = 15.0
STALLED = 60.0


@frozen
class Format:
    """The form in which records are written: content type, heartbeat, the form of an entry and of the notice of a gap."""

    kind: str
    heartbeat: str
    entry: Callable[[Record], str]
    gap: str


LINES = Format(
    "application/x-ndjson", "\n", lambda record: record.line + "\n",
    '{{"event":"follow_gap","level":"warn","details":{{"count":{}}}}}\n',
)  # fmt: skip
TEXT = Format(
    TEXT_TYPE, "", lambda record: as_text(record.line) + "\n",
    "... {} entries were left out: this reader is too slow ...\n",
)  # fmt: skip
EVENTS = Format(
    "text/event-stream", ": still here\n\n",
    lambda record: f"id: {record.seq}\nevent: entry\ndata: {record.line}\n\n",
    'event: gap\ndata: {{"count":{}}}\n\n',
)  # fmt: skip


@implementer(IPushProducer)
@define(eq=False)
class Follower:
    """Writes the records that `_accepts` takes to `_request` until the client leaves or is disconnected."""

    _request: Request
    _log: EventLog
    _admits: Callable[[Request], bool]  # whether it may still read the log: asked at each heartbeat
    _accepts: Callable[[Record], bool]
    _form: Format
    _reactor: IReactorTime
    _queue: deque[Record] = field(init=False)
    _dropped: int = field(default=0, init=False)
    _paused: bool = field(default=False, init=False)
    _busy: bool = field(default=False, init=False)
    _progress: float = field(init=False)
    _heart: LoopingCall = field(init=False)  # runs from the start to the end

    def start(self, records: Sequence[Record]) -> None:
        """Send `records`, then follow."""
        self._queue = deque(records, len(records) + MAX_WAITING)
        self._progress = self._reactor.seconds()
        self._heart = LoopingCall(self._beat)
        self._heart.clock = self._reactor
        self._heart.start(HEARTBEAT, now=False)
        self._log.followers.append(self._take)
        self._request.setHeader("Content-Type", self._form.kind)
        self._request.setHeader("X-Accel-Buffering", "no")  # proxies must not buffer it
        quiet(self._request)
        # The usual end is a Failure: the connection was lost.
        self._request.notifyFinish().addBoth(lambda _: self._end())
        self._request.registerProducer(self, True)
        self._request.write(b"")  # the headers go out at once
        self._pump()

    def _take(self, record: Record) -> None:
        if self._accepts(record):
            self._dropped += len(self._queue) == self._queue.maxlen
            self._queue.append(record)
            self._pump()

    def _pump(self) -> None:
        if self._busy:  # writing may pause or resume this producer in the middle
            return
        self._busy = True
        while self._queue and not self._paused and self._heart.running:
            text = ""
            if self._dropped:
                text, self._dropped = self._form.gap.format(self._dropped), 0
            for _ in range(min(64, len(self._queue))):
                text += self._form.entry(self._queue.popleft())
            self._request.write(text.encode("utf-8"))
            self._progress = self._reactor.seconds()
        self._busy = False

    def _beat(self) -> None:
        if not self._admits(self._request):  # signed out, or its token was changed
            self._end()
            self._request.unregisterProducer()
            self._request.finish()
        elif not self._paused:
            if self._form.heartbeat:
                self._request.write(self._form.heartbeat.encode("ascii"))
        elif self._reactor.seconds() - self._progress > STALLED:
            self._end()
            # not `loseConnection`: that waits for what is queued to be read
            transport: Any = self._request.channel.transport
            transport.abortConnection()

    def _end(self) -> None:
        if self._heart.running:
            self._heart.stop()
            self._log.followers.remove(self._take)
            self._queue.clear()

    # -- IPushProducer ---------------------------------------------------------------------------------------

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._progress = self._reactor.seconds()
        self._pump()

    def stopProducing(self) -> None:
        self._end()
