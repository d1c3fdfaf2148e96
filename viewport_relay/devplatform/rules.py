"""For tests: overrides of the platform's answers, and a record of its requests.

A `Rule` is laid over an answer that was made normally. A `Record` keeps the newest calls within a
bound of entries and bytes, so that a long development session does not grow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from attrs import evolve, field, frozen

from viewport_relay.devplatform.jsonhttp import Answer, Ask

RECORD_MAX_CALLS = 1024
RECORD_MAX_BYTES = 16 * 1_048_576


@frozen
class Rule:
    """The difference of one answer from the normal one; a member that is None or zero changes nothing.

    `status` alone turns the body into `{"ok": false}`. `raw` is sent as it stands. `delay` seconds pass
    before the first byte; during `drip` seconds a blank is sent ten times a second before the body.
    """

    status: int | None = None
    body: object | None = None
    raw: bytes | None = None
    delay: float = 0.0
    drip: float = 0.0
    headers: Mapping[str, str] = field(factory=dict)

    def over(self, answer: Answer) -> Answer:
        """`answer` changed by this rule."""
        headers = {**answer.headers, **self.headers}
        if self.raw is not None or self.body is not None or self.status is not None:
            # Another body: what the headers said of the old one (ETag, caching) holds no longer.
            headers = dict(self.headers)
            body = {"ok": False} if self.body is None else self.body
            answer = evolve(answer, body=body, raw=self.raw)
        return evolve(
            answer,
            status=answer.status if self.status is None else self.status,
            delay=answer.delay + self.delay,
            drip=answer.drip + self.drip,
            headers=headers,
        )


class Record(deque[Ask]):
    """The newest requests of one kind, oldest first; `total` counts also those that were dropped."""

    total = 0
    _bytes = 0

    def add(self, ask: Ask) -> None:
        """Remember `ask`, dropping the oldest ones over the bounds."""
        self.total += 1
        self.append(ask)
        self._bytes += len(ask.raw)
        while len(self) > RECORD_MAX_CALLS or (self._bytes > RECORD_MAX_BYTES and len(self) > 1):
            self._bytes -= len(self.popleft().raw)

    def clear(self) -> None:
        """Forget all requests; `total` starts at 0 again."""
        super().clear()
        self._bytes = self.total = 0
