"""The event log: one JSON object per line on a stream, and the latest ones kept in a ring for `/logs`.

    event -> Problems (counts everything) -> flapping, folding -> redaction -> ring, stream, followers

Every entry is redacted and of bounded size; repeated refusals and flapping peers are folded. Logging never raises, and
waits for nothing but the stream.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from viewport_relay.observe.flapping import Flap, Flapping
from viewport_relay.observe.folding import Allowance, Fold, Folding, Source
from viewport_relay.observe.problems import Problems
from viewport_relay.observe.redaction import Json, Redactor
from viewport_relay.observe.ring import Record, Ring
from viewport_relay.reasons import Level, Reason

#: Events that are folded for flapping peers only, and events that are never folded.
LIFE = frozenset({"join", "leave"})
NEVER_FOLDED = frozenset({"join", "leave", "status"})

#: Events that are folded although they have no reason and the level info.
ALWAYS_FOLDED = frozenset({"twisted"})

#: Folded entries that are remembered by connection id: a refused peer knows no more than that id.
FOLDED_REMEMBERED = 4096

#: Of those of a worker process, how many are told to its parent at a time.
FOLDED_TOLD = 64

#: An entry with a longer line has its details shortened to about this many characters.
MAX_LINE = 16_384

_RANK = {"info": 0, "warn": 1, "error": 2}


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False, check_circular=False)
_FAST_ENCODER = msgspec.json.Encoder()


class TextStream(Protocol):
    """What the log needs of standard output."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


class Folded(NamedTuple):
    """An entry that was counted instead of written."""

    at: float
    level: Level
    event: str
    reason: Reason | None
    message: str | None
    connection_id: str
    details: dict[str, Any]


class EventLog:
    """The `EventSink` of the running relay.

    `stream` gets the lines of `level` and above; the ring keeps `max_entries` of every level. `now` gives
    seconds since the epoch. `secrets` are exact values that must appear nowhere. `allowance` says when
    repeated entries are folded. `relay_id` is put into every line where it is given: one of several relays.
    Call `sweep` about once a second (it ends the windows of folding when nothing else is logged) and `close`
    at the end.
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
        self._stream = stream
        self._least = _RANK[level]
        self._now = now
        self.redactor = Redactor(secrets)
        self._ring = Ring(max_entries)
        self._folding = Folding(allowance)
        self._flapping = Flapping()
        self._folded: dict[str, Folded] = {}
        self._untold: deque[str] = deque(maxlen=FOLDED_TOLD)
        self._folded_elsewhere: dict[str, str] = {}
        #: what is wrong at present
        self.problems = Problems(self.redactor)
        self._followers: list[Callable[[Record], None]] = []
        self._seq = 0
        self._lost = 0
        self._write_failures = 0
        #: entries that other processes of this relay could not hand over
        self.lost_elsewhere = 0
        #: when each event was last logged with each reason, folded or not; seconds since the epoch
        self.last_seen: dict[tuple[str, Reason | None], float] = {}
        #: what other processes of this relay have counted and not yet written
        self.folds_elsewhere: Sequence[Fold] = ()

    def apply(self, level: Level, secrets: Iterable[str]) -> None:
        """Take up a reloaded level, and secrets that must appear nowhere from now on."""
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
        level = level or "info"
        self.problems.note(at, level, event, reason, message, connection_id, details)
        if event in LIFE:
            if self._flaps(at, event, connection_id, details):
                return
        elif event not in NEVER_FOLDED and (reason is not None or level != "info" or event in ALWAYS_FOLDED):
            source = _source(event, reason, message if reason is None else None, details)
            detail = details.get("detail")
            if self._folding.counts(source, level, at, detail if isinstance(detail, str) else None):
                if connection_id is not None:
                    self._remember(
                        connection_id, Folded(at, level, event, reason, message, connection_id, details)
                    )
                return
        code = reason.code if reason is not None else None
        self._emit(at, level, event, code, message, connection_id, details)

    def take_over(self, record: Record) -> None:
        """Log what another process of this relay has logged: redacted, folded and written down there."""
        self._seq += 1
        record = msgspec.structs.replace(record, seq=self._seq)
        reason = Reason.__members__.get(record.reason or "")
        self.last_seen[record.of or record.event, reason] = record.at
        self._put(record)

    def sweep(self) -> None:
        """Write the summaries whose window is over."""
        self._end_windows(self._now())

    def close(self) -> None:
        """Write every summary there is."""
        self._end_windows(self._now(), everything=True)

    @property
    def write_failures(self) -> int:
        """Lines that could not be written since the start."""
        return self._write_failures + self.lost_elsewhere

    # -- out -----------------------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """What the ring holds, oldest first."""
        return list(self._ring)

    def entries(self) -> list[dict[str, Any]]:
        """The same as JSON objects."""
        return [json.loads(record.line) for record in self._ring]

    def last_of(self, reason: Reason) -> float | None:
        """When a reason was last logged, whatever the event; seconds since the epoch."""
        return max((at for (_, other), at in self.last_seen.items() if other is reason), default=None)

    def folds(self) -> Iterator[Fold]:
        """What is counted and not yet written."""
        yield from self._folding.open()
        yield from self.folds_elsewhere

    def follow(self, follower: Callable[[Record], None]) -> Callable[[], None]:
        """Call `follower` at once with each new record; it must not raise or wait. Returns a function that ends this."""
        self._followers.append(follower)

        def stop() -> None:
            if follower in self._followers:
                self._followers.remove(follower)

        return stop

    def folded_entry(self, connection_id: str) -> dict[str, Any] | None:
        """The entry of a connection that was folded away, as JSON; None if there is none, or it is forgotten."""
        folded = self._folded.get(connection_id)
        if folded is None:
            line = self._folded_elsewhere.get(connection_id)
            return None if line is None else dict(json.loads(line))
        code = None if folded.reason is None else folded.reason.code
        return self._entry(
            folded.at, folded.level, folded.event, code, folded.message, connection_id, dict(folded.details)
        )

    def untold_folded(self) -> list[tuple[str, str]]:
        """The latest entries that were folded away since the last call: connection id, and the entry's JSON text."""
        told = [(name, self.folded_entry(name)) for name in self._untold]
        self._untold.clear()
        return [(name, _dump(entry)) for name, entry in told if entry is not None]

    def take_over_folded(self, told: Iterable[tuple[str, str]]) -> None:
        """Remember entries that another process of this relay has folded away."""
        for connection_id, line in told:
            known = self._folded_elsewhere
            if connection_id not in known and len(known) >= FOLDED_REMEMBERED:
                del known[next(iter(known))]
            known[connection_id] = line

    # -- inside --------------------------------------------------------------------------------------------

    def _remember(self, connection_id: str, folded: Folded) -> None:
        if len(self._folded) >= FOLDED_REMEMBERED:
            del self._folded[next(iter(self._folded))]
        self._folded[connection_id] = folded
        self._untold.append(connection_id)

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
        entry = self._entry(at, level, event, code, message, connection_id, details)
        shown = entry["details"]
        line = _dump(entry)
        if len(line) > MAX_LINE:
            _shorten(shown)
            line = _dump(entry)
        workspace = shown.get("workspaceId")
        self._seq += 1
        record = Record(
            self._seq, at, level, event, code,
            workspace if isinstance(workspace, str) else None,
            connection_id, line, folded, of,
        )  # fmt: skip
        self._put(record)

    def _entry(
        self,
        at: float,
        level: Level,
        event: str,
        code: str | None,
        message: str | None,
        connection_id: str | None,
        details: dict[str, Any],
    ) -> dict[str, Any]:
        """The entry as JSON, redacted."""
        entry: dict[str, Any] = {"ts": timestamp(at), "level": level, "event": event}
        if code is not None:
            entry["reason"] = code
        if message is not None:
            entry["message"] = self.redactor.message(message)
        if connection_id is not None:
            entry["connectionId"] = self.redactor.identifier(connection_id)
        if self._relay_id is not None:
            entry["relayId"] = self._relay_id
        detail = self.redactor.detail
        entry["details"] = {key: detail(key, value) for key, value in details.items() if value is not None}
        return entry

    def _put(self, record: Record) -> None:
        self._ring.append(record)
        if _RANK[record.level] >= self._least:
            self._write(record.at, record.line)
        for follower in tuple(self._followers):
            follower(record)

    def _write(self, at: float, line: str) -> None:
        if self._lost:
            # tell of the gap first, once the stream takes lines again
            gap: dict[str, Json] = {"ts": timestamp(at), "level": "error", "event": "log_lines_lost"}
            gap["message"] = "the log could not be written for a while"
            if self._relay_id is not None:
                gap["relayId"] = self._relay_id
            gap["details"] = {"count": self._lost}
            text = f"{_dump(gap)}\n{line}\n"
        else:
            text = line + "\n"
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # full disk, broken pipe; ValueError: the stream was closed
            self._lost += 1
            self._write_failures += 1
        else:
            self._lost = 0


def _shorten(details: dict[str, Json]) -> None:
    """Leave out what is too long for one entry, and after that everything but the first members."""
    room = MAX_LINE
    for number, (key, value) in enumerate(list(details.items())):
        if number >= 64:
            del details[key]
            continue
        size = len(_dump(value))
        if size > room:
            details[key] = f"left out: {size} characters"
        else:
            room -= size


def timestamp(at: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC with milliseconds and Z."""
    millis = round(at * 1000)
    return f"{_second(millis // 1000)}.{millis % 1000:03d}Z"


@lru_cache(maxsize=64)
def _second(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))


def _dump(value: Json) -> str:
    # ASCII only: terminal escapes, C1 controls and lone surrogates cannot reach a terminal or break a stream. Nearly all
    # entries are ASCII by themselves.
    try:
        line = _FAST_ENCODER.encode(value)
    except UnicodeEncodeError:  # a lone surrogate
        return _ENCODER.encode(value)
    return line.decode("ascii") if line.isascii() and b"\x7f" not in line else _ENCODER.encode(value)


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
