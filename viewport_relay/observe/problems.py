"""The problems at present: one row for each reason, counted for every event, folded or not.

    event log -> Problems.note -> rows -> status line, verdict of `/logs`, dashboard

A row belongs to a reason, or to an event of level warn or error that has no reason. A row is *open* while the last
event is younger than QUIET seconds, unless an event says that it ended; after that the episode is over, and the next
event begins a new one. Everything is bounded: rows by the tables of reasons and events, workspaces and addresses by
MOST_DISTINCT for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final

import msgspec
from attrs import Factory, define

from viewport_relay.observe.entry import RANK, LogEntry
from viewport_relay.observe.events import EVENTS, UNKNOWN, Event
from viewport_relay.observe.recent import Recent
from viewport_relay.observe.redaction import Redactor
from viewport_relay.reasons import Level, Reason

#: Seconds without an event after which a problem counts as over.
QUIET: Final = 120.0

#: Most workspaces and addresses that one row tells apart, and most rows.
MOST_DISTINCT: Final = 256
MOST_ROWS: Final = 256

#: Peers whose tokens must be off alike before a clock is suspected, and within how many seconds.
_SAME_OFFSET: Final = (3, 60.0)

#: The details of its peer in an example: name -> detail of the entry.
_PEER: Final = {"role": "role", "workspace": "workspaceId", "target": "runtimeTargetId", "ip": "ip"}

#: Characters of a sample's texts.
_SAMPLE_CHARS: Final = 400

#: Events that report the cause of refusals. They count for a reason only while no peer was refused for the reason.
BACKGROUND: Final = frozenset({"jwks_fetch_failed"})

#: Events that are no problem by themselves: life, summaries, and what repeats another event.
_IGNORED: Final = frozenset({"join", "leave", "folded", "status", "config_warning"})


class Problem(msgspec.Struct, frozen=True):
    """One problem as the pages and the status line show it, redacted. Times are seconds since the epoch.

    `count` is of the present episode, `lately` of the last SPAN seconds, `total` since the start. `workspaces` and
    `addresses` hold at most MOST_DISTINCT each. The last event is the example: `detail` says what exactly was wrong, `hint`
    what this case calls for, `peer` which peer it was.
    """

    code: str
    level: Level
    text: str
    count: int
    lately: int
    total: int
    first: float
    last: float
    workspaces: list[str]
    addresses: list[str]
    event: str
    detail: str
    hint: str
    peer: str
    open: bool = True
    #: by how many seconds the tokens of different peers were late, or early (negative)
    offsets: list[float] = []

    @property
    def reason(self) -> Reason | None:
        return Reason.__members__.get(self.code)

    @property
    def background(self) -> bool:
        """Whether only events of BACKGROUND were counted."""
        return self.event in BACKGROUND

    @property
    def cause(self) -> str:
        """The cause in the words of the reason, else the meaning of the event."""
        return self._event.says if self.reason is None else self.reason.entry.cause

    @property
    def fix(self) -> str:
        """The fix for this case, else the general one of the reason or event; "" where none is known."""
        general = self._event.fix if self.reason is None else self.reason.entry.fix
        return self.hint or _clock_hint(self.offsets) or general

    @property
    def _event(self) -> Event:
        return EVENTS.get(self.code, UNKNOWN)

    @property
    def example(self) -> str:
        """One event of the problem in words."""
        usual = self.reason is not None and self.text == self.reason.text
        what = self.detail or ("" if usual else self.text)
        return ": ".join(part for part in (self.peer, what) if part) or self.text


class ProblemsReport(msgspec.Struct, frozen=True):
    """The problems of another process of this relay: its rows, and the numbers of peers admitted and refused lately."""

    rows: list[Problem]
    recent: tuple[int, int]


@define(eq=False)
class _Row:
    sample: LogEntry  # the last event that was counted
    first: float
    total: int = 0
    lately: Recent = Factory(Recent)
    count: int = 0
    last: float = 0.0
    held: bool = False
    over: bool = False
    offsets: dict[tuple[object, object], float] = Factory(dict)
    workspaces: dict[str, None] = Factory(dict)
    addresses: dict[str, None] = Factory(dict)

    def shift(self, seconds: float) -> None:
        self.first += seconds
        self.last += seconds
        self.lately.shift(seconds)

    def open(self, at: float) -> bool:
        return not self.over and (self.held or at - self.last < QUIET)

    def add(self, entry: LogEntry) -> None:
        """Count an event, which is the example from now on.

        Causes of refusals count only until the first refused peer: with it the counts begin anew.
        """
        if entry.event in BACKGROUND and self.sample.event not in BACKGROUND:
            return
        if self.sample.event in BACKGROUND and entry.event not in BACKGROUND:
            self.count, self.total, self.lately = 0, 0, Recent()
        details = entry.details
        self.sample = entry
        self.count += 1
        self.total += 1
        self.lately.add(entry.at)
        _distinct(self.workspaces, details.get("workspaceId"))
        _distinct(self.addresses, details.get("ip"))
        late = details.get("secondsAgo") or -(details.get("secondsAhead") or 0)
        if late and len(self.offsets) < MOST_DISTINCT:
            self.offsets[details.get("ip"), details.get("workspaceId")] = float(late)


class Problems:
    """Counts events by reason. `redactor` takes secrets out when rows are read.

    `elsewhere` holds the reports of other processes of this relay; `rows` and `recent` add them.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._rows: dict[str, _Row] = {}
        #: peers admitted, and upgrades refused, by their event
        self._recent = {"join": Recent(), "refuse": Recent()}
        self.elsewhere: Sequence[ProblemsReport] = ()

    def note(self, entry: LogEntry) -> None:
        """Count one event."""
        if entry.event in self._recent:
            self._recent[entry.event].add(entry.at)
        event = EVENTS.get(entry.event, UNKNOWN)
        for ended in filter(None, map(self._rows.get, event.ends)):
            ended.over, ended.held = True, False
        if entry.event in _IGNORED or (entry.reason is None and entry.level == "info"):
            return
        row = self._row_of(entry)
        if row is not None:
            row.last, row.held = entry.at, event.held
            row.add(entry)

    def _row_of(self, entry: LogEntry) -> _Row | None:
        """The row of an event, with a new episode where the last one is over; None if there are too many."""
        code = entry.event if entry.reason is None else entry.reason.name
        row = self._rows.get(code)
        if row is None:
            if len(self._rows) >= MOST_ROWS:
                return None
            row = self._rows[code] = _Row(entry, entry.at)
        elif not row.open(entry.at):
            row = self._rows[code] = _Row(row.sample, entry.at, row.total, row.lately)
        return row

    def shift(self, seconds: float) -> None:
        """Move all times: the wall clock was set."""
        for row in self._rows.values():
            row.shift(seconds)
        for recent in self._recent.values():
            recent.shift(seconds)

    def rows(self, at: float) -> list[Problem]:
        """One row for each code, the latest first."""
        found = {code: self._shown(code, row, at) for code, row in self._rows.items()}
        for row in chain.from_iterable(report.rows for report in self.elsewhere):
            found[row.code] = _sum(found[row.code], row) if row.code in found else row
        return sorted(found.values(), key=lambda row: row.last, reverse=True)

    def open(self, at: float) -> list[Problem]:
        """The open rows of level warn and error, the worst first: by level, then how often lately, then how late."""
        found = [row for row in self.rows(at) if row.level != "info" and row.open]
        return sorted(found, key=lambda row: (RANK[row.level], row.lately, row.last), reverse=True)

    def recent(self, at: float) -> tuple[int, int]:
        """The numbers of peers admitted and of upgrades refused in the last SPAN seconds."""
        own = self._recent["join"].total(at), self._recent["refuse"].total(at)
        admitted, refused = zip(own, *(report.recent for report in self.elsewhere), strict=True)
        return sum(admitted), sum(refused)

    def report(self, at: float) -> ProblemsReport:
        """The report of this process to its parent."""
        return ProblemsReport(self.rows(at), self.recent(at))

    def _shown(self, code: str, row: _Row, at: float) -> Problem:
        identifier, seen = self._redactor.identifier, row.sample

        def text(name: str) -> str:
            shown = self._redactor.detail(name, seen.details.get(name))
            return shown[:_SAMPLE_CHARS] if isinstance(shown, str) else ""

        named = {name: text(detail) for name, detail in _PEER.items()}
        named["connection"] = identifier(seen.connection_id or "")
        peer = " ".join(f"{name}={value}" for name, value in named.items() if value)
        said = seen.message or (seen.event if seen.reason is None else seen.reason.text)
        return Problem(
            code, seen.level, self._redactor.text(said, _SAMPLE_CHARS), row.count, row.lately.total(at), row.total,
            row.first, row.last, [identifier(name) for name in row.workspaces], list(row.addresses), seen.event,
            text("detail") or text("why"), text("hint"), peer, row.open(at), list(row.offsets.values()),
        )  # fmt: skip


def _clock_hint(offsets: list[float]) -> str:
    """Tokens of several peers that are off by the same time show a wrong clock."""
    if len(offsets) < _SAME_OFFSET[0] or max(offsets) - min(offsets) > _SAME_OFFSET[1]:
        return ""
    middle = sorted(offsets)[len(offsets) // 2]
    way = "past their end" if middle > 0 else "in the future"
    return (
        f"the tokens of {len(offsets)} peers are all about {abs(middle):.0f} s {way}: that is a clock, not the tokens. "
        "Synchronise the clocks of relay and platform (chrony, NTP)"
    )


def _distinct(into: dict[str, None], value: object) -> None:
    if isinstance(value, str) and len(into) < MOST_DISTINCT:
        into[value[:128]] = None


def _sum(one: Problem, other: Problem) -> Problem:
    if one.background is not other.background:
        return other if one.background else one
    late, early = (one, other) if one.last >= other.last else (other, one)
    # The earlier one's episode is over if that was quiet for long before the later one's last event.
    same = late.last - early.last < QUIET
    return msgspec.structs.replace(
        late,
        count=late.count + early.count if same else late.count,
        lately=late.lately + early.lately,
        total=late.total + early.total,
        first=min(late.first, early.first) if same else late.first,
        workspaces=list(dict.fromkeys([*late.workspaces, *early.workspaces]))[:MOST_DISTINCT],
        addresses=list(dict.fromkeys([*late.addresses, *early.addresses]))[:MOST_DISTINCT],
        open=late.open or early.open,
        offsets=[*late.offsets, *early.offsets],
    )
