"""The event log: one JSON object per line on a stream, and the latest ones kept in a ring for `/logs`.

    event -> Problems (counts everything) -> flapping, folding -> redaction -> ring, stream, followers

Every entry is redacted and of bounded size; repeated refusals and flapping peers are folded. Logging never raises, and
never waits for who reads the stream (`lines`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec

from viewport_relay.observe.entry import RANK, LogEntry, bounded_line
from viewport_relay.observe.events import EVENTS, UNKNOWN
from viewport_relay.observe.flapping import Flap, Flapping
from viewport_relay.observe.folding import Fold, FoldedEntries, Folding
from viewport_relay.observe.lines import LineStream, TextStream
from viewport_relay.observe.problems import Problems, ProblemsReport
from viewport_relay.observe.redaction import Redactor
from viewport_relay.observe.ring import Record, Ring
from viewport_relay.reasons import Level, Reason

#: Events of peers' lives: folded for flapping peers only.
LIFE = frozenset({"join", "leave"})

#: Events that are folded although they have no reason and the level info.
ALWAYS_FOLDED = frozenset({"twisted"})

#: Seconds between two looks for windows of folding that have ended.
_SWEEP = 1.0

#: Seconds at exit for lines that wait for the stream.
_FINISH_LIMIT = 1.0

#: Least difference of two clocks, seconds, by which the wall clock was set and not adjusted step by step.
STEP = 1.0


class LogReport(msgspec.Struct, frozen=True):
    """The report of a worker process's log to its parent, beside the entries, which the parent writes."""

    #: repeated entries that are counted and not yet written
    folds: list[Fold]
    #: event, reason, and when it was last logged
    last_seen: list[tuple[str, str | None, float]]
    problems: ProblemsReport
    #: entries that were counted since the last report: connection id and JSON text
    folded: list[tuple[str, str]]
    #: entries that could not be handed over
    lost: int


class EventLog:
    """The `EventSink` of the running relay.

    `stream` gets the lines of `level` and above; the ring keeps `max_entries` of every level. `now` returns seconds
    since the epoch, `clock` seconds of a clock that is never set (None: `now` is one). `secrets` are exact values
    that are redacted everywhere. `relay_id` becomes a member of every line. Call `sweep` about once a second, which
    ends windows of folding when nothing else is logged, and `close` at the end. `form` makes the line that is written
    of an entry's line of JSON.
    """

    def __init__(
        self,
        stream: TextStream,
        *,
        max_entries: int,
        level: Level = "info",
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] | None = None,
        secrets: Iterable[str] = (),
        relay_id: str | None = None,
        form: Callable[[str], str] = str,
    ) -> None:
        self._relay_id = relay_id
        self.redactor = Redactor(secrets)
        self._stream = LineStream(stream, self._as_json, form)
        self._least = RANK[level]
        self._wall, self._clock = now, clock or now
        self._apart = now() - self._clock()  # the wall clock's lead on the other one
        self._ring = Ring(max_entries)
        self._folding = Folding()
        self._flapping = Flapping(self._emit)
        #: entries that were counted instead of written, by connection id
        self.folded = FoldedEntries(self._as_json)
        #: what is wrong at present
        self.problems = Problems(self.redactor)
        #: functions that are called at once with each new record; they must not raise or wait
        self.followers: list[Callable[[Record], None]] = []
        self._seq = 0
        self._swept = 0.0  # when windows were last ended
        #: when each event was last logged with each reason, folded or not; seconds since the epoch
        self.last_seen: dict[tuple[str, Reason | None], float] = {}
        self._elsewhere: Sequence[LogReport] = ()

    def apply(self, level: Level, secrets: Iterable[str]) -> None:
        """Apply a reloaded level, and further secrets to redact."""
        self._least = RANK[level]
        self.redactor.look_for(secrets)

    def now(self) -> float:
        """Seconds since the epoch. When the wall clock was set, all remembered times move with it, so that ages stay right."""
        at = self._wall()
        apart = at - self._clock()
        step, self._apart = apart - self._apart, apart
        if abs(step) >= STEP:
            self._swept += step
            self.last_seen = {key: seen + step for key, seen in self.last_seen.items()}
            for part in (self._folding, self._flapping, self.problems):
                part.shift(step)
        return at

    # -- in ------------------------------------------------------------------------------------------------

    def event(
        self,
        event: str,
        *,
        level: Level | None = None,
        reason: Reason | None = None,
        message: str | None = None,
        connection_id: str | None = None,
        **details: object,
    ) -> None:
        """Log one event; see `EventSink`. Never raises. Details that are None are left out."""
        at = self.now()
        if not 0 <= at - self._swept < _SWEEP:
            self._end_windows(at)
        self.last_seen[event, reason] = at
        if reason is not None:
            level = level or reason.entry.level
            message = reason.text if message is None else message
        level = level or EVENTS.get(event, UNKNOWN).level
        entry = LogEntry(at, level, event, reason, message, connection_id, details)
        self.problems.note(entry)
        if event in LIFE:
            counted = self._flaps(entry)
        elif event == "status" or (reason is None and level == "info" and event not in ALWAYS_FOLDED):
            counted = False
        else:
            counted = self._folding.counts(entry)
            if counted:
                self.folded.keep(entry)
        if not counted:
            self._emit(entry)

    def take_over(self, record: Record) -> None:
        """Log a record of a worker process, which has redacted and folded it already."""
        self._seq += 1
        record = msgspec.structs.replace(record, seq=self._seq)
        reason = Reason.__members__.get(record.reason or "")
        self.last_seen[record.of or record.event, reason] = record.at
        self._put(record)

    def sweep(self) -> None:
        """Write the summaries of windows that have ended, and the lines that wait."""
        self._end_windows(self.now())
        self._stream.go_on()

    def close(self) -> None:
        """Write the summaries of all windows, and the lines that wait. Blocks for a second where the stream is not read."""
        self._end_windows(self.now(), everything=True)
        self._stream.finish(_FINISH_LIMIT)

    @property
    def write_failures(self) -> int:
        """Lines that could not be written since the start."""
        return self._stream.failures + sum(report.lost for report in self._elsewhere)

    # -- out -----------------------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """The records of the ring, oldest first."""
        return list(self._ring)

    def folds(self) -> Iterator[Fold]:
        """Repeated entries that are counted and not yet written."""
        yield from self._folding.open()
        for report in self._elsewhere:
            yield from report.folds

    # -- several processes ---------------------------------------------------------------------------------

    def report(self, lost: int) -> LogReport:
        """The report of this worker process to its parent. `lost`: entries that were not handed over."""
        seen = [(event, reason and reason.code, at) for (event, reason), at in self.last_seen.items()]
        return LogReport(
            list(self._folding.open()), seen, self.problems.report(self.now()), self.folded.report(), lost
        )

    def take_reports(self, reports: Sequence[LogReport]) -> None:
        """Take the last reports of all worker processes, in place of earlier ones."""
        self._elsewhere = reports
        self.problems.elsewhere = [report.problems for report in reports]
        now = self.now()
        for report in reports:
            self.folded.take_over(report.folded)
            for event, code, at in report.last_seen:
                key = event, Reason.__members__.get(code or "")
                # A report from before the wall clock was set back holds times of the future.
                self.last_seen[key] = max(min(at, now), self.last_seen.get(key, at))

    # -- inside --------------------------------------------------------------------------------------------

    def _as_json(self, entry: LogEntry) -> dict[str, Any]:
        return entry.as_json(self.redactor, self._relay_id)

    def _flaps(self, entry: LogEntry) -> bool:
        """Whether the join or leave is a flapping peer's and was counted."""
        if entry.event == "join":
            return self._flapping.joined(entry)
        flap = self._flapping.left(entry)
        if flap is None:
            return False
        reason, about = Reason.PEER_FLAPPING, {**entry.details, "detail": flap.text}
        self.problems.note(
            LogEntry(entry.at, reason.entry.level, "flapping", reason, None, entry.connection_id, about)
        )
        return True

    def _end_windows(self, at: float, *, everything: bool = False) -> None:
        """Write the summaries of windows that are over, or of all."""
        self._swept = at
        windows: Iterator[Flap | Fold] = chain(
            self._flapping.ended(at, everything=everything),
            self._folding.ended(at, everything=everything),
        )
        for window in windows:
            self._emit(window.summary(at), window.count, window.of)

    def _emit(self, entry: LogEntry, folded: int = 0, of: str = "") -> None:
        """Write an entry. A summary stands for `folded` entries `of` an event."""
        made = self._as_json(entry)
        line = bounded_line(made)
        workspace = made["details"].get("workspaceId")
        self._seq += 1
        self._put(
            Record(
                self._seq, entry.at, entry.level, entry.event, made.get("reason"),
                workspace if isinstance(workspace, str) else None, entry.connection_id, line, folded, of,
            )
        )  # fmt: skip

    def _put(self, record: Record) -> None:
        self._ring.append(record)
        if RANK[record.level] >= self._least:
            self._stream.write(record.at, record.line)
        for follower in tuple(self.followers):
            follower(record)
