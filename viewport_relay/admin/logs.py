"""`GET /logs`: the ring of the event log, filtered, counted, as JSON or as text for people, or followed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import NOT_DONE_YET, Request

from viewport_relay.admin.follow import Follower, Format
from viewport_relay.admin.reply import JSON_TYPE, BadRequest, boolean, put, put_json, query, refuse
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.ring import Record
from viewport_relay.reasons import Reason

#: Readers that may follow the log at once.
MAX_FOLLOWERS = 32

_MAX_LIMIT = 1_000_000
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_AGO = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_INERT = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


@frozen
class Filter:
    """What of the log is wanted. Sets hold what is accepted; None: anything."""

    levels: frozenset[str] | None = None
    reasons: frozenset[str] | None = None
    events: frozenset[str] | None = None
    workspace_id: str | None = None
    connection_id: str | None = None
    since: float | None = None

    def accepts(self, record: Record) -> bool:
        return (
            (self.levels is None or record.level in self.levels)
            and (self.reasons is None or record.reason in self.reasons)
            and (self.events is None or record.event in self.events)
            and (self.workspace_id is None or record.workspace_id == self.workspace_id)
            and (self.connection_id is None or record.connection_id == self.connection_id)
            and (self.since is None or record.at >= self.since)
        )


def parse_filter(given: dict[str, str], now: float) -> tuple[Filter, int | None]:
    """The filter and the limit that a query names. An empty value counts as absent. Raises BadRequest."""
    levels = _set(given, "level", re.compile("info|warn|error", re.IGNORECASE), "info, warn or error")
    reasons = _set(given, "reason", _CODE, "reason codes such as JWT_EXPIRED")
    events = _set(given, "event", _CODE, "names of events such as join")
    found = Filter(
        frozenset(word.lower() for word in levels) if levels else None,
        frozenset(word.upper() for word in reasons) if reasons else None,
        events,
        given.get("workspaceId") or None,
        given.get("connectionId") or None,
        _since(given.get("since") or None, now),
    )
    limit = given.get("limit") or None
    if limit is None:
        return found, None
    if not re.fullmatch(r"[0-9]{1,7}", limit) or not 1 <= int(limit) <= _MAX_LIMIT:
        raise BadRequest("limit", f"a whole number from 1 to {_MAX_LIMIT}")
    return found, int(limit)


def _set(given: dict[str, str], name: str, form: re.Pattern[str], takes: str) -> frozenset[str] | None:
    text = given.get(name)
    if not text:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(form.fullmatch(word) for word in words):
        raise BadRequest(name, f"{takes}, several with commas in between")
    return frozenset(words)


def _since(text: str | None, now: float) -> float | None:
    if text is None:
        return None
    ago = _AGO.fullmatch(text)
    if ago:
        return now - int(ago[1]) * _SECONDS[ago[2]]
    try:
        if re.fullmatch(r"[0-9]{1,11}(\.[0-9]{1,6})?", text):
            return float(text)
        at = datetime.fromisoformat(text.replace(" ", "+"))  # a "+" in a query is often sent as it is
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        takes = "an ISO 8601 time, seconds since 1970, or a time back such as 10m (s, m, h, d)"
        raise BadRequest("since", takes) from None


def inert(text: str) -> str:
    """Text for a terminal: control characters, escapes and marks that turn the direction are shown as codes."""
    return _INERT.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", text)


def as_text(record: Record) -> str:
    """One line for people."""
    entry = json.loads(record.line)
    parts = [entry["ts"], entry["level"].upper().ljust(5), entry["event"]]
    parts += [entry[name] for name in ("reason", "message") if name in entry]
    if "connectionId" in entry:
        parts.append(f"connection={entry['connectionId']}")
    for name, value in entry["details"].items():
        parts.append(f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    return inert(" ".join(str(part) for part in parts))


def summary(log: EventLog, wanted: Filter) -> dict[str, Any]:
    """Counts by level, event and reason; entries that were folded count as often as they came."""
    levels: Counter[str] = Counter()
    events: Counter[str] = Counter()
    reasons: Counter[str] = Counter()

    def add(level: str, event: str, reason: str | None, count: int) -> None:
        levels[level] += count
        events[event] += count
        if reason is not None:
            reasons[reason] += count

    for record in log.records():
        if wanted.accepts(record):
            add(record.level, record.of or record.event, record.reason, record.folded or 1)
    for fold in log.folds():
        source = fold.source
        running = Record(0, fold.last, fold.level, source.event, source.code, source.workspace_id, None, "")
        if wanted.accepts(running):
            add(fold.level, source.event, source.code, fold.count)
    return {
        "ok": True,
        "total": levels.total(),
        "byLevel": dict(levels),
        "byEvent": dict(events.most_common()),
        "byReason": dict(reasons.most_common()),
    }


class LogsPage:
    """The page. `reactor` times the heartbeats of followers; `now` gives seconds since the epoch."""

    def __init__(
        self,
        log: EventLog,
        reactor: IReactorTime,
        *,
        now: Callable[[], float],
        client_ip: Callable[[Request], str],
        max_followers: int = MAX_FOLLOWERS,
    ) -> None:
        self._log = log
        self._reactor = reactor
        self._now = now
        self._client_ip = client_ip
        self._max_followers = max_followers
        self.followers: set[Follower] = set()

    def render(self, request: Request) -> bytes | int:
        given = query(request)
        wanted, limit = parse_filter(given, self._now())
        form = (given.get("format") or "json").lower()
        if form not in {"json", "text"}:
            raise BadRequest("format", "json or text")
        self._log.sweep()
        if boolean("summary", given.get("summary")):
            return put_json(request, summary(self._log, wanted))
        records = [record for record in self._log.records() if wanted.accepts(record)]
        if limit is not None:
            records = records[-limit:]
        if boolean("follow", given.get("follow")):
            return self._follow(request, wanted, records, form)
        if form == "text":
            text = "".join(as_text(record) + "\n" for record in records)
            return put(request, 200, "text/plain; charset=utf-8", text.encode("utf-8"))
        return put(request, 200, JSON_TYPE, _array(records))

    def _follow(self, request: Request, wanted: Filter, records: list[Record], form: str) -> bytes | int:
        if len(self.followers) >= self._max_followers:
            ip = self._client_ip(request)
            self._log.event("admin_refused", reason=Reason.ADMIN_TOO_MANY_FOLLOWERS, ip=ip, path="/logs")
            return refuse(request, Reason.ADMIN_TOO_MANY_FOLLOWERS)
        if "text/event-stream" in (request.getHeader("accept") or "").lower():
            kind = Format.EVENTS
            seen = request.getHeader("last-event-id") or ""
            if re.fullmatch(r"[0-9]{1,15}", seen) and records and int(seen) <= records[-1].seq:
                records = [record for record in records if record.seq > int(seen)]
        else:
            kind = Format.TEXT if form == "text" else Format.LINES
        follower = Follower(request, self._log, wanted.accepts, kind, as_text, self._reactor)
        self.followers.add(follower)
        follower.start(records, lambda: self.followers.discard(follower))
        return NOT_DONE_YET


def _array(records: Iterable[Record]) -> bytes:
    text = '{"ok":true,"logs":[' + ",".join(record.line for record in records) + "]}"
    return text.encode("ascii")
