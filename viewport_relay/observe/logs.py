"""The event log: one JSON object per line on a stream, and the latest ones kept in a ring for `/logs`.

    event -> Problems (counts everything) -> flapping, folding -> redaction -> ring, stream, followers

Every entry is redacted and of bounded size; repeated refusals and flapping peers are folded. Logging never raises, and
waits for nothing but the stream.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from viewport_relay.observe.entry import bounded_line, entry, timestamp
from viewport_relay.observe.events import EVENTS
from viewport_relay.observe.flapping import Flap, Flapping
from viewport_relay.observe.folded import Folded, FoldedEntries
from viewport_relay.observe.folding import Allowance, Fold, Folding, Source
from viewport_relay.observe.problems import Problems
from viewport_relay.observe.redaction import Redactor
from viewport_relay.observe.ring import Record, Ring
from viewport_relay.observe.stream import LineStream, TextStream
from viewport_relay.reasons import Level, Reason

#: Events that are folded for flapping peers only, and events that are never folded.
LIFE = frozenset({"join", "leave"})
NEVER_FOLDED = frozenset({"join", "leave", "status"})

#: Events that are folded although they have no reason and the level info.
ALWAYS_FOLDED = frozenset({"twisted"})

_RANK = {"info": 0, "warn": 1, "error": 2}


class EventLog:
    """The `EventSink` of the running relay.

    `stream` gets the lines of `level` and above; the ring keeps `max_entries` of every level. `now` returns seconds since
    the epoch. `secrets` are exact values that are redacted everywhere. `allowance`: when repeated entries are folded.
    `relay_id` becomes a member of every line. Call `sweep` about once a second, which ends windows of folding when nothing
    else is logged, and `close` at the end.
    """

    def __init__(
        self,
        stream: TextStream,
        *,
        max_entries: int,
        level: Level = "info",
        now: Callable[[], float] = time.time,
        secrets: Iterable[str] = (),
        allowance: Allowance | None = None,
        relay_id: str | None = None,
    ) -> None:
        self._relay_id = relay_id
        self._stream = LineStream(stream, relay_id)
        self._least = _RANK[level]
        self._now = now
        self.redactor = Redactor(secrets)
        self._ring = Ring(max_entries)
        self._folding = Folding(allowance)
        self._flapping = Flapping()
        #: entries that were counted instead of written, by connection id
        self.folded = FoldedEntries(self._folded_entry)
        #: what is wrong at present
        self.problems = Problems(self.redactor)
        self._followers: list[Callable[[Record], None]] = []
        self._seq = 0
        #: entries that worker processes could not hand over
        self.lost_elsewhere = 0
        #: when each event was last logged with each reason, folded or not; seconds since the epoch
        self.last_seen: dict[tuple[str, Reason | None], float] = {}
        #: open folds of worker processes
        self.folds_elsewhere: Sequence[Fold] = ()

    def apply(self, level: Level, secrets: Iterable[str]) -> None:
        """Apply a reloaded level, and further secrets to redact."""
        self._least = _RANK[level]
        self.redactor.look_for(secrets)

    # -- in ------------------------------------------------------------------------------------------------

    def event(
        self,
        event: str,
        *,
        level: Literal["info", "warn", "error"] | None = None,
        reason: Reason | None = None,
        message: str | None = None,
        connection_id: str | None = None,
        **details: object,
    ) -> None:
        """Log one event; see `EventSink`. Never raises. Details that are None are left out."""
        at = self._now()
        self._end_windows(at)
        self.last_seen[event, reason] = at
        if reason is not None:
            level = level or reason.entry.level
            message = reason.text if message is None else message
        level = level or (EVENTS[event].level if event in EVENTS else "info")
        self.problems.note(at, level, event, reason, message, connection_id, details)
        if event in LIFE:
            if self._flaps(at, event, connection_id, details):
                return
        elif event not in NEVER_FOLDED and (reason is not None or level != "info" or event in ALWAYS_FOLDED):
            source = _source(event, reason, message if reason is None else None, details)
            detail = details.get("detail")
            if self._folding.counts(source, level, at, detail if isinstance(detail, str) else None):
                if connection_id is not None:
                    self.folded.keep(Folded(at, level, event, reason, message, connection_id, details))
                return
        code = reason.code if reason is not None else None
        self._emit(at, level, event, code, message, connection_id, details)

    def take_over(self, record: Record) -> None:
        """Log a record of a worker process, which has redacted and folded it already."""
        self._seq += 1
        record = msgspec.structs.replace(record, seq=self._seq)
        reason = Reason.__members__.get(record.reason or "")
        self.last_seen[record.of or record.event, reason] = record.at
        self._put(record)

    def sweep(self) -> None:
        """Write the summaries of windows that have ended."""
        self._end_windows(self._now())

    def close(self) -> None:
        """Write the summaries of all windows."""
        self._end_windows(self._now(), everything=True)

    @property
    def write_failures(self) -> int:
        """Lines that could not be written since the start."""
        return self._stream.failures + self.lost_elsewhere

    # -- out -----------------------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """The records of the ring, oldest first."""
        return list(self._ring)

    def entries(self) -> list[dict[str, Any]]:
        """The records of the ring as JSON objects."""
        return [json.loads(record.line) for record in self._ring]

    def last_of(self, reason: Reason) -> float | None:
        """When a reason was last logged, whatever the event; seconds since the epoch."""
        return max((at for (_, other), at in self.last_seen.items() if other is reason), default=None)

    def folds(self) -> Iterator[Fold]:
        """Repeated entries that are counted and not yet written."""
        yield from self._folding.open()
        yield from self.folds_elsewhere

    def follow(self, follower: Callable[[Record], None]) -> Callable[[], None]:
        """Call `follower` at once with each new record; it must not raise or wait. Returns a function that ends this."""
        self._followers.append(follower)

        def stop() -> None:
            if follower in self._followers:
                self._followers.remove(follower)

        return stop

    # -- inside --------------------------------------------------------------------------------------------

    def _folded_entry(self, folded: Folded) -> dict[str, Any]:
        at, level, event, reason, message, connection_id, details = folded
        code = None if reason is None else reason.code
        return entry(self.redactor, self._relay_id, at, level, event, code, message, connection_id, details)

    def _flaps(self, at: float, event: str, connection_id: str | None, details: dict[str, Any]) -> bool:
        """Whether the join or leave is a flapping peer's and was counted."""
        if event == "join":
            return self._flapping.joined(at, connection_id, details)
        flap = self._flapping.left(at, connection_id, details)
        if flap is None:
            self._write_stayed()
            return False
        reason = Reason.PEER_FLAPPING
        about = {**details, "detail": flap.text}
        self.problems.note(at, reason.entry.level, "flapping", reason, None, connection_id, about)
        return True

    def _write_stayed(self) -> None:
        for join in self._flapping.stayed():
            self._emit(join.at, "info", "join", None, None, join.connection_id, dict(join.details))

    def _end_windows(self, at: float, *, everything: bool = False) -> None:
        for flap in self._flapping.ended(at, everything=everything):
            self._emit_flapping(at, flap)
        self._write_stayed()
        for fold in self._folding.ended(at, everything=everything):
            source = fold.source
            details = {
                "of": source.event,
                "count": fold.count,
                "first": timestamp(fold.first),
                "last": timestamp(fold.last),
                "ip": source.ip,
                "workspaceId": source.workspace_id,
                "role": source.role,
                "detail": fold.detail,
            }
            what = source.reason.text if source.reason is not None else source.message or source.event
            text = f"{what}: {fold.count} more, not written one by one"
            self._emit(at, fold.level, "folded", source.code, text, None, details, fold.count, source.event)

    def _emit_flapping(self, at: float, flap: Flap) -> None:
        reason, about = Reason.PEER_FLAPPING, flap.details
        details = {
            "count": flap.count,
            "first": timestamp(flap.first),
            "last": timestamp(flap.last),
            **{
                name: about.get(name) for name in ("role", "workspaceId", "runtimeTargetId", "clientId", "ip")
            },
            "detail": about.get("detail"),
        }
        self._emit(
            at, reason.entry.level, "flapping", reason.code, flap.text, None, details, flap.count, "leave"
        )

    def _emit(
        self,
        at: float,
        level: Level,
        event: str,
        code: str | None,
        message: str | None,
        connection_id: str | None,
        details: dict[str, Any],
        folded: int = 0,
        of: str = "",
    ) -> None:
        made = entry(self.redactor, self._relay_id, at, level, event, code, message, connection_id, details)
        line = bounded_line(made)
        workspace = made["details"].get("workspaceId")
        self._seq += 1
        record = Record(
            self._seq, at, level, event, code,
            workspace if isinstance(workspace, str) else None,
            connection_id, line, folded, of,
        )  # fmt: skip
        self._put(record)

    def _put(self, record: Record) -> None:
        self._ring.append(record)
        if _RANK[record.level] >= self._least:
            self._stream.write(record.at, record.line)
        for follower in tuple(self._followers):
            follower(record)


def _source(event: str, reason: Reason | None, message: str | None, details: dict[str, Any]) -> Source:
    ip, workspace, role = details.get("ip"), details.get("workspaceId"), details.get("role")
    return Source(
        event,
        reason,
        ip if isinstance(ip, str) else None,
        workspace if isinstance(workspace, str) else None,
        str(getattr(role, "value", role)) if role is not None else None,
        None if message is None else message[:200],
    )
