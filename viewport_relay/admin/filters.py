"""The query of `GET /logs`: which entries are wanted, and in which form."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Final

from attrs import frozen

from viewport_relay.admin.reply import BadRequest
from viewport_relay.observe.events import EVENTS
from viewport_relay.observe.ring import Record
from viewport_relay.reasons import Reason

#: Every parameter of `/logs`, with what it takes.
PARAMETERS: Final[Mapping[str, str]] = {
    "level": "info, warn or error; several with commas in between",
    "reason": "reason codes such as JWT_EXPIRED; several with commas in between",
    "event": "names of events such as join; several with commas in between",
    "workspaceId": "one id",
    "connectionId": "one id",
    "since": "an ISO 8601 time, seconds since 1970, or a time back such as 10m (s, m, h, d)",
    "limit": "a whole number from 1 to 1000000: the newest so many",
    "about": "one id of any kind, or an address: everything known of it, in words",
    "summary": "0 or 1: numbers by level, event and reason instead of entries",
    "follow": "0 or 1: what is there, and then each new entry",
    "format": "json or text",
}

LEVELS: Final = ("info", "warn", "error")
_MAX_LIMIT: Final = 1_000_000
_AGO: Final = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@frozen
class Filter:
    """Which records are wanted. Sets hold what is accepted; None: anything."""

    levels: frozenset[str] | None = None
    reasons: frozenset[str] | None = None
    events: frozenset[str] | None = None
    workspace_id: str | None = None
    connection_id: str | None = None
    since: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether every record is wanted."""
        return self == Filter()

    def accepts(self, record: Record) -> bool:
        return (
            (self.levels is None or record.level in self.levels)
            and (self.reasons is None or record.reason in self.reasons)
            and (self.events is None or record.event in self.events)
            and (self.workspace_id is None or record.workspace_id == self.workspace_id)
            and (self.connection_id is None or record.connection_id == self.connection_id)
            and (self.since is None or record.at >= self.since)
        )


def check_names(given: Mapping[str, str]) -> None:
    """Raise BadRequest for a parameter that there is not."""
    for name in given:
        if name not in PARAMETERS:
            takes = "nothing: there is no such parameter; known are " + ", ".join(PARAMETERS)
            raise BadRequest(name[:64], takes, known=tuple(PARAMETERS))


def parse_filter(given: Mapping[str, str], now: float) -> tuple[Filter, int | None]:
    """The filter and the limit of a query. An empty value counts as absent. Raises BadRequest."""
    found = Filter(
        _set(given, "level", LEVELS, str.lower),
        _set(given, "reason", Reason.__members__, str.upper),
        _set(given, "event", EVENTS, str.lower),
        given.get("workspaceId") or None,
        given.get("connectionId") or None,
        _since(given.get("since") or None, now),
    )
    limit = given.get("limit") or None
    if limit is None:
        return found, None
    if not re.fullmatch(r"[0-9]{1,7}", limit) or not 1 <= int(limit) <= _MAX_LIMIT:
        raise BadRequest("limit", PARAMETERS["limit"])
    return found, int(limit)


def _set(
    given: Mapping[str, str], name: str, known: Collection[str], spelt: Callable[[str], str]
) -> frozenset[str] | None:
    text = given.get(name)
    if not text:
        return None
    words = [spelt(word.strip()) for word in text.split(",")]
    for word in words:
        if word not in known:
            takes = f"{PARAMETERS[name]}; {word[:64]!r} is not one of {', '.join(known)}"
            raise BadRequest(name, takes, known=tuple(known))
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
        raise BadRequest("since", PARAMETERS["since"]) from None
