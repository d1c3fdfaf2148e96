"""The platform's validation of a token: `POST RELAY_VALIDATE_URL`, with a cache of its answers.

    relay → platform   {"relayToken","role","workspaceId","runtimeTargetId"?}, header x-relay-internal-key
    relay ← platform   {"ok":true,"claims":{…}} | {"ok":false,"reason":"…"}

Concurrent equal questions share one request; `platformqueue.py` bounds how many are in flight. `verdict.py` decides what an
answer means.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeAlias, TypeVar

import msgspec
from attrs import evolve, field, frozen
from twisted.internet.interfaces import IReactorTime

from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.httpcall import Answer, Call, HttpFailure, TimedOut
from viewport_relay.admission.platformclock import PlatformClock
from viewport_relay.admission.platformqueue import PlatformQueue
from viewport_relay.admission.token import TokenSource
from viewport_relay.admission.verdict import DENIALS, judge_answer, judge_failure
from viewport_relay.deferredcache import DeferredCache, Fetched
from viewport_relay.observe.counters import Counters
from viewport_relay.protocol.grant import Claims, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal

#: Answers remembered at most.
CACHE_MAX: Final = 4096
#: Seconds for which a denial is remembered at most.
DENIAL_TTL: Final = 2.0

_Key: TypeAlias = tuple[bytes, UpgradeQuery]
Verdict = TypeVar("Verdict", Refusal, Claims | Refusal)


@frozen
class ValidationSettings:
    """Settings of the validation; times in seconds. `internal_key` None: the header is not sent. `cache_ttl` 0: every upgrade is asked."""

    url: str
    internal_key: str | None = field(repr=False)
    limit: float = 2.0
    max_bytes: int = 262_144
    cache_ttl: float = 10.0

    @property
    def call(self) -> Call:
        """The request, without its body."""
        headers = {"content-type": "application/json"}
        if self.internal_key is not None:
            headers["x-relay-internal-key"] = self.internal_key
        return Call.make("POST", self.url, headers, limit=self.limit, max_bytes=self.max_bytes)


def question(token: str, query: UpgradeQuery) -> bytes:
    """The body of the validation request for a token and the query of its upgrade."""
    asked = {"relayToken": token, "role": query.role.value, "workspaceId": query.workspace_id}
    if query.runtime_target_id is not None:
        asked["runtimeTargetId"] = query.runtime_target_id
    return msgspec.json.encode(asked)


class PlatformValidator:
    """Validates tokens. `clock` measures the lives of answers, `now` gives seconds since the epoch for exp."""

    def __init__(
        self,
        clock: IReactorTime,
        http: HttpClient,
        settings: ValidationSettings,
        counters: Counters,
        platform_clock: PlatformClock,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._http = http
        self._settings = settings
        self._counters = counters
        self._platform_clock = platform_clock
        self._now = now
        self._call = settings.call
        self._queue = PlatformQueue(clock, settings.limit)
        self._answers: DeferredCache[_Key, Claims | Refusal] = DeferredCache(clock, CACHE_MAX)
        #: what is wrong between relay and platform, by the newest answer; None: nothing, the answer was about the token
        self.fault: Reason | None = None

    def recall(self, digest: bytes, query: UpgradeQuery) -> Claims | None:
        """The cached answer for the token of this digest, None if the platform must be asked. Raises Refusal."""
        verdict = self._answers.peek((digest, query))
        if verdict is None:
            return None
        self._counters.validations["cached"] += 1
        return _claims_in(verdict)

    async def validate(
        self, source: TokenSource, query: UpgradeQuery, expires: float, token_id: str | None = None
    ) -> Claims:
        """The platform's claims; where they lack `exp` or `jti`, those of the token: `expires` (seconds since the epoch), `token_id`.

        Raises Refusal with a reason of the wire protocol's table (section 2). Cancelling it gives up the wait, and the request too
        when no other upgrade waits for the same answer.
        """
        asked = False

        async def fetch() -> Fetched[Claims | Refusal]:
            nonlocal asked
            asked = True
            verdict = await self._ask(source.token, query)
            if isinstance(verdict, Refusal):
                return Fetched(verdict, min(DENIAL_TTL, self._settings.cache_ttl))
            until = expires if verdict.expires_at is None else min(expires, verdict.expires_at)
            if until != verdict.expires_at or verdict.token_id is None:
                verdict = evolve(verdict, expires_at=until, token_id=verdict.token_id or token_id)
            return Fetched(verdict, min(self._settings.cache_ttl, until - self._now()))

        if self._settings.cache_ttl <= 0:
            verdict = (await fetch()).value
        else:
            verdict = await self._answers.get((source.digest, query), fetch)
        if not asked:
            self._counters.validations["cached"] += 1
        return _claims_in(verdict)

    def clean_up(self) -> None:
        """Forget expired answers: they hold pairing secrets."""
        self._answers.expire()

    def flush(self) -> None:
        """Forget every answer."""
        self._answers.flush()

    def stop(self) -> None:
        """Cancel the requests in flight."""
        self._answers.cancel()

    async def _ask(self, token: str, query: UpgradeQuery) -> Claims | Refusal:
        """The verdict that may be cached. Raises the refusals that may not."""
        body = question(token, query)
        began = self._clock.seconds()

        async def request() -> Answer:
            nonlocal began
            began = self._clock.seconds()  # the queue's time is not the platform's
            return await self._http.ask(self._call, body)

        try:
            answer = await self._queue.run(request)
        except HttpFailure as failure:
            self._count("failed", began, "timeout" if isinstance(failure, TimedOut) else "failed")
            raise self._told(judge_failure(failure, self._call.shown)) from None
        secrets = (token, self._settings.internal_key or "")
        verdict = self._told(judge_answer(answer, query, self._call.shown, secrets))
        if isinstance(verdict, Refusal) and verdict.reason not in DENIALS:
            self._count("failed", began)
            raise verdict
        self._platform_clock.observe(answer)
        self._count("denied" if isinstance(verdict, Refusal) else "ok", began)
        return verdict

    def _told(self, verdict: Verdict) -> Verdict:
        """Remember whether the verdict is a fault between relay and platform."""
        reason = verdict.reason if isinstance(verdict, Refusal) else None
        self.fault = None if reason in DENIALS else reason
        return verdict

    def _count(self, outcome: str, began: float, timed_as: str | None = None) -> None:
        self._counters.validations[outcome] += 1
        self._counters.platform_answered(timed_as or outcome, self._clock.seconds() - began)


def _claims_in(verdict: Claims | Refusal) -> Claims:
    if isinstance(verdict, Refusal):
        raise evolve(verdict)  # a fresh one: a raised exception collects tracebacks
    return verdict
