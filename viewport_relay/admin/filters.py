"""The query of `GET /logs`: which entries are wanted, and in which form."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Final

from attrs import Factory, frozen

from viewport_relay.admin.reply import BadRequest
from viewport_relay.observe.entry import RANK
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

_MAX_LIMIT: Final = 1_000_000
_AGO: Final = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@frozen
class Filter:
    """The selection of records, and the limit on their number. `members` maps an attribute of `Record` to the accepted values."""

    members: Mapping[str, Collection[str]] = Factory(dict)
    since: float = -math.inf
    limit: int = sys.maxsize

    def accepts(self, record: Record) -> bool:
        return record.at >= self.since and all(
            getattr(record, name) in values for name, values in self.members.items()
        )


#: The filter that accepts every record.
EVERYTHING: Final = Filter()


def parse_filter(given: Mapping[str, str], now: float) -> Filter:
    """The filter of a query. An empty value counts as absent. Raises BadRequest, for an unknown parameter too."""
    for name in given.keys() - PARAMETERS.keys():
        takes = "nothing: there is no such parameter; known are " + ", ".join(PARAMETERS)
        raise BadRequest(name[:64], takes, known=tuple(PARAMETERS))
    members = {
        "level": _set(given, "level", RANK, str.lower),
        "reason": _set(given, "reason", Reason.__members__, str.upper),
        "event": _set(given, "event", EVENTS, str.lower),
        "workspace_id": [given["workspaceId"]] if given.get("workspaceId") else [],
        "connection_id": [given["connectionId"]] if given.get("connectionId") else [],
    }
    since = _since(given["since"], now) if given.get("since") else -math.inf
    limit = given.get("limit", "")
    if limit and not (re.fullmatch(r"[0-9]{1,7}", limit) and 1 <= int(limit) <= _MAX_LIMIT):
        raise BadRequest("limit", PARAMETERS["limit"])
    wanted = {name: values for name, values in members.items() if values}
    return Filter(wanted, since, int(limit or sys.maxsize))


def _set(
    given: Mapping[str, str], name: str, known: Collection[str], spelt: Callable[[str], str]
) -> Collection[str]:
    """The words of a comma-separated list; none where the parameter is absent or empty. Raises BadRequest."""
    text = given.get(name)
    if not text:
        return ()
    words = [spelt(word.strip()) for word in text.split(",")]
    for word in words:
        if word not in known:
            takes = f"{PARAMETERS[name]}; {word[:64]!r} is not one of {', '.join(known)}"
            raise BadRequest(name, takes, known=tuple(known))
    return frozenset(words)


def _since(text: str, now: float) -> float:
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
