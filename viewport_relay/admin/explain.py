"""`GET /logs/explain` and `/logs/explain/CODE`: what a reason or event means, and how often this relay has logged the reason or event."""

from __future__ import annotations

import difflib
from typing import Any

from attrs import frozen
from twisted.web.server import Request

from viewport_relay.admin.reply import BadRequest, put_json, put_text
from viewport_relay.admin.state import ReadFacts
from viewport_relay.admin.words import problem_lines, wrapped
from viewport_relay.observe.events import EVENTS
from viewport_relay.observe.logs import EventLog
from viewport_relay.reasons import Reason

PREFIX = b"/logs/explain/"


@frozen(eq=False)
class ExplainPage:
    """The page: text, or JSON where the request accepts `application/json`."""

    _log: EventLog
    _facts: ReadFacts

    def render(self, request: Request) -> bytes:
        as_json = "application/json" in (request.getHeader("accept") or "")
        code = request.path[len(PREFIX) :].decode("latin-1")
        if not code:
            return self._listing(request, as_json)
        reason = Reason.__members__.get(code.upper())
        event = EVENTS.get(code.lower())
        if reason is None and event is None:
            near = difflib.get_close_matches(code.upper(), Reason.__members__, 3, 0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; /logs/explain lists all"
            raise BadRequest("CODE", f"a reason code or the name of an event{hint}", known=tuple(near))
        facts = self._facts()
        name = reason.name if reason is not None else code.lower()
        here = next((row for row in self._log.problems.rows(facts.now) if row.code == name), None)
        if reason is not None:
            said = {"meaning": reason.text, "cause": reason.entry.cause, "fix": reason.entry.fix}
        else:
            assert event is not None
            said = {"meaning": event.says, "cause": "", "fix": event.fix}
        if as_json:
            known: dict[str, Any] = {"total": 0} if here is None else {"total": here.total}
            return put_json(request, {"ok": True, "code": name, **said, **known})
        lines = [name]
        for label, text in said.items():
            lines += wrapped(label, text)
        lines += ["", "here since the start: never" if here is None else "here, the last time:"]
        lines += [] if here is None else problem_lines(facts, here)
        return put_text(request, "\n".join(lines) + "\n")

    def _listing(self, request: Request, as_json: bool) -> bytes:
        if as_json:
            return put_json(request, {"ok": True, "reasons": {r.code: r.text for r in Reason}})
        widest = max(len(reason.code) for reason in Reason)
        lines = [f"{reason.code:<{widest}}  {reason.entry.level:<5}  {reason.text}" for reason in Reason]
        return put_text(request, "\n".join(lines) + "\n")
