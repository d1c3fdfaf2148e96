"""`GET /logs`: verdict, open problems and the entries of the ring, as JSON or as text, or followed; and what codes mean.

JSON is the answer unless the request asks for text: by `format=text`, by an Accept header that prefers `text/plain` or
`text/html` to JSON (`*/*` does not), or by the path `/logs/text`. The JSON has one entry on each line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Final

from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import NOT_DONE_YET, Request

from viewport_relay.admin import follow, reply
from viewport_relay.admin.about import MAX_ID, About
from viewport_relay.admin.filters import EVERYTHING, PARAMETERS, Filter, parse_filter
from viewport_relay.admin.state import ReadFacts
from viewport_relay.admin.summary import problem_json, summary, summary_text
from viewport_relay.admin.words import as_text, paragraphs, problem_lines, report
from viewport_relay.observe.events import EVENTS, UNKNOWN
from viewport_relay.observe.logs import EventLog
from viewport_relay.observe.ring import Record
from viewport_relay.observe.verdict import verdict_of
from viewport_relay.reasons import Reason, Refusal

#: Readers that may follow the log at once.
MAX_FOLLOWERS: Final = 32

#: Entries in the text where neither a filter nor a limit is given.
TEXT_ENTRIES: Final = 20

#: The path that always answers text.
TEXT_PATH: Final = b"/logs/text"

#: The path in front of a reason code or the name of an event.
EXPLAIN: Final = b"/logs/explain/"


@frozen(eq=False)
class LogsPage:
    """The pages `/logs`, `/logs/text` and `/logs/explain`. `reactor` times the heartbeats of followers.

    `admits` tells whether a follower's request is still an operator's.
    """

    _log: EventLog
    _about: About
    _facts: ReadFacts
    _reactor: IReactorTime
    _admits: Callable[[Request], bool]

    def render(self, request: Request) -> bytes | int:
        given = reply.query(request)
        wanted = parse_filter(given, self._log.now())
        as_plain_text = self._wants_text(request, given)
        about = given.get("about") or ""
        if len(about) > MAX_ID:
            raise reply.BadRequest("about", f"at most {MAX_ID} characters")
        self._log.sweep()
        if about:
            body = self._about.text(about) if as_plain_text else self._about.as_json(about)
            return reply.put_body(request, body)
        if reply.boolean("summary", given.get("summary")):
            numbers = summary(self._log, wanted, self._log.now())
            return reply.put_body(request, summary_text(numbers) if as_plain_text else numbers)
        records = [record for record in self._log.records() if wanted.accepts(record)]
        total, records = len(records), records[-wanted.limit :]
        if reply.boolean("follow", given.get("follow")):
            return self._follow(request, wanted, records, as_plain_text=as_plain_text)
        if as_plain_text:
            if wanted == EVERYTHING:
                records = records[-TEXT_ENTRIES:]
            lines = [as_text(record.line) for record in records]
            return reply.put_body(request, report(self._facts(), lines, total))
        return reply.put(request, 200, reply.JSON_TYPE, self._document(records))

    def _wants_text(self, request: Request, given: dict[str, str]) -> bool:
        form = (given.get("format") or "").lower()
        if form not in {"", "json", "text"}:
            raise reply.BadRequest("format", PARAMETERS["format"], known=("json", "text"))
        if form:
            return form == "text"
        return request.path == TEXT_PATH or reply.prefers_text(request.getHeader("accept") or "")

    def _document(self, records: Iterable[Record]) -> bytes:
        facts = self._facts()
        problems = sorted(facts.problems, key=lambda row: row.last, reverse=True)
        text = (
            f'{{"ok":true,\n"verdict":{reply.json_text(verdict_of(facts).as_json())},\n"logs":['
            + ",".join(f"\n{record.line}" for record in records)
            + '],\n"problems":['
            + ",".join(f"\n{reply.json_text(problem_json(row))}" for row in problems)
            + "]}\n"
        )
        return text.encode("ascii")

    def _follow(
        self, request: Request, wanted: Filter, records: list[Record], *, as_plain_text: bool
    ) -> bytes | int:
        if len(self._log.followers) >= MAX_FOLLOWERS:
            detail = f"{MAX_FOLLOWERS} readers follow the log, a fixed limit"
            raise Refusal(Reason.ADMIN_TOO_MANY_FOLLOWERS, detail)
        if "text/event-stream" in (request.getHeader("accept") or "").lower():
            kind = follow.EVENTS
            seen = request.getHeader("last-event-id") or ""
            if re.fullmatch(r"[0-9]{1,15}", seen) and records and int(seen) <= records[-1].seq:
                records = [record for record in records if record.seq > int(seen)]
        else:
            kind = follow.TEXT if as_plain_text else follow.LINES
        follow.Follower(request, self._log, self._admits, wanted.accepts, kind, self._reactor).start(records)
        return NOT_DONE_YET

    def explain(self, request: Request) -> bytes:
        """`GET /logs/explain` and `/logs/explain/CODE`: what a reason or event means, and how often it was logged here.

        Text, or JSON where the request accepts `application/json`.
        """
        as_json = "application/json" in (request.getHeader("accept") or "")
        code = request.path[len(EXPLAIN) :].decode("latin-1")
        if not code:
            return self._listing(request, as_json=as_json)
        reason, event = Reason.__members__.get(code.upper()), EVENTS.get(code.lower(), UNKNOWN)
        if reason is None and event is UNKNOWN:
            near = difflib.get_close_matches(code.upper(), Reason.__members__, 3, 0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; /logs/explain lists all"
            raise reply.BadRequest("CODE", f"a reason code or the name of an event{hint}", known=tuple(near))
        facts = self._facts()
        name = reason.name if reason is not None else code.lower()
        here = next((row for row in self._log.problems.rows(facts.now) if row.code == name), None)
        if reason is not None:
            said = {"meaning": reason.text, "cause": reason.entry.cause, "fix": reason.entry.fix}
        else:
            said = {"meaning": event.says, "cause": "", "fix": event.fix}
        if as_json:
            total = 0 if here is None else here.total
            return reply.put_body(request, {"ok": True, "code": name, **said, "total": total})
        lines = [name, *paragraphs(said), ""]
        lines += ["here since the start: never" if here is None else "here, the last time:"]
        lines += [] if here is None else problem_lines(facts, here)
        return reply.put_body(request, "\n".join(lines) + "\n")

    def _listing(self, request: Request, *, as_json: bool) -> bytes:
        if as_json:
            return reply.put_body(request, {"ok": True, "reasons": {r.code: r.text for r in Reason}})
        widest = max(len(reason.code) for reason in Reason)
        lines = [f"{reason.code:<{widest}}  {reason.entry.level:<5}  {reason.text}" for reason in Reason]
        return reply.put_body(request, "\n".join(lines) + "\n")
