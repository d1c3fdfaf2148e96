"""The platform's keys, fetched from `RELAY_JWKS_URL` and cached.

At most one fetch runs at a time. A set serves for its time to live; an expired set serves while it is fetched again, and for
a day at most if that fails. A token that does not fit the set may start one fetch per cool-down, so that a rotated key is
found by the next upgrade. `keys.py` reads a set, `jwt.py` checks a token.
"""

from __future__ import annotations

import re
from typing import Any, Final

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.httpcall import Answer, Call, HttpFailure
from viewport_relay.admission.httpwords import redirect
from viewport_relay.admission.keys import JWKS_MAX_BYTES, KeySet, KeySetError
from viewport_relay.admission.platformclock import PlatformClock
from viewport_relay.deferredcache import DeferredCache, Fetched
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.reasons import Reason, Refusal

#: Seconds for a whole fetch.
FETCH_LIMIT: Final = 2.0
#: Seconds since its fetch for which a set may serve when it cannot be fetched again.
STALE_MAX: Final = 86_400.0
#: Cache-Control may shorten the time to live to this many seconds, and not further.
TTL_MIN: Final = 60.0
#: Seconds between attempts while there is no set, or an expired one cannot be renewed: doubled up to the last.
BACK_OFF: Final = (0.5, 30.0)
_ETAG_MAX_CHARS: Final = 256
_IGNORED_LOGGED: Final = 8
#: Strict servers answer 406 to anything but the media type of RFC 7517 section 8.5.
_ACCEPT: Final = "application/jwk-set+json, application/json;q=0.9"

_KEYS = "keys"  # the only key of the cache: there is one document


def jwks_call(url: str, etag: str | None = None, *, past_caches: bool = False) -> Call:
    """The request for a key set. Sets are small static documents: caches on the way may gzip them in spite of identity."""
    headers = {"accept": _ACCEPT}
    if past_caches:
        headers["cache-control"] = "no-cache"
    if etag is not None:
        headers["if-none-match"] = etag
    return Call.make("GET", url, headers, limit=FETCH_LIMIT, max_bytes=JWKS_MAX_BYTES, gzip=True)


@frozen
class _Held:
    """A cached set, when it was fetched, and how long it is fresh (seconds of the reactor's clock)."""

    keys: KeySet
    fetched: float
    ttl: float
    etag: str | None


class JwksClient:
    """Fetches and caches the key set. `clock` measures ages and back-offs."""

    def __init__(
        self,
        clock: IReactorTime,
        http: HttpClient,
        url: str,
        log: EventSink,
        counters: Counters,
        platform_clock: PlatformClock,
        *,
        ttl: float = 3600.0,
        cooldown: float = 30.0,
    ) -> None:
        """`ttl` and `cooldown` in seconds, as RELAY_JWKS_CACHE_TTL and RELAY_JWKS_COOLDOWN say."""
        self._clock = clock
        self._http = http
        self._ttl = ttl
        self._cooldown = cooldown
        self._log = log
        self._counters = counters
        self._platform_clock = platform_clock
        self._call = jwks_call(url)
        # Without entries: it only joins the upgrades that wait for one fetch. The fetch goes on when they are cancelled, or
        # peers that leave at once could use up the cool-down.
        self._fetches: DeferredCache[str, KeySet] = DeferredCache(clock, 0, abandon=False)
        self._held: _Held | None = None
        self._cool_until = 0.0
        self._retry_at = 0.0
        self._failures = 0
        self._starting: Deferred[None] | None = None

    @property
    def url(self) -> str:
        """The URL of the keys, for logs."""
        return self._call.shown

    @property
    def ready(self) -> bool:
        """Whether a set was ever fetched."""
        return self._held is not None

    @property
    def age_seconds(self) -> float | None:
        """Seconds since the set was fetched or confirmed; None without one."""
        return None if self._held is None else max(0.0, self._clock.seconds() - self._held.fetched)

    @property
    def held(self) -> KeySet | None:
        """The cached set, however old, for inspection."""
        return None if self._held is None else self._held.keys

    @property
    def fresh(self) -> KeySet | None:
        """The cached set, if `current` would give it without a fetch."""
        held = self._held
        return None if held is None or self._clock.seconds() - held.fetched >= held.ttl else held.keys

    def start(self) -> None:
        """Fetch now, and again with back-off until there is a set."""
        if self._starting is None:
            self._starting = Deferred.fromCoroutine(self._until_ready())
            self._starting.addErrback(lambda failure: failure.trap(CancelledError) and None)

    def stop(self) -> None:
        """Cancel fetch and back-off; upgrades that wait get CancelledError."""
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()
        self._fetches.cancel()

    def flush(self) -> None:
        """Treat the set as expired, so that the next upgrade starts a fetch; it serves until that is done."""
        if self._held is not None:
            self._held = _Held(self._held.keys, self._held.fetched, 0.0, None)
        self._retry_at = 0.0

    async def current(self) -> KeySet:
        """The set to check tokens with. Raises Refusal JWKS_UNREACHABLE when there is none and none comes."""
        held, now = self._held, self._clock.seconds()
        if held is not None:
            age = now - held.fetched
            if age < held.ttl:
                return held.keys
            if age < max(STALE_MAX, held.ttl):
                if now >= self._retry_at:
                    self._fetch().addErrback(_is_logged)
                return held.keys
        return await self._fetch()

    async def newer_than(self, seen: KeySet) -> KeySet | None:
        """Another set than `seen`, for a token that does not fit it; None if there is none for now.

        Waits for a fetch that runs, else starts one, at most once per cool-down.
        """
        if self._fetches.in_flight:
            await self._outcome(self._fetch())
        if self._held is not None and self._held.keys is not seen:
            return self._held.keys
        now = self._clock.seconds()
        if not self._fetches.in_flight:
            if now < self._cool_until:
                return None
            self._cool_until = now + self._cooldown
        keys = await self._outcome(self._fetch(past_caches=True))
        return None if keys is seen else keys

    @staticmethod
    async def _outcome(fetch: Deferred[KeySet]) -> KeySet | None:
        try:
            return await fetch
        except Refusal:
            return None

    def _fetch(self, *, past_caches: bool = False) -> Deferred[KeySet]:
        """Join the fetch that runs, or start one; `past_caches` asks proxies in between to look again."""

        async def fetch() -> Fetched[KeySet]:
            return Fetched(await self._fetch_once(past_caches=past_caches), 0.0)

        return self._fetches.get(_KEYS, fetch)

    async def _fetch_once(self, *, past_caches: bool) -> KeySet:
        held = self._held
        call = jwks_call(self._call.url, None if held is None else held.etag, past_caches=past_caches)
        try:
            answer = await self._http.ask(call)
            keys = _keys_from(answer, held)
        except HttpFailure as failure:
            raise self._failed(failure.why, failure.hint) from None
        except KeySetError as error:
            raise self._failed(error.why) from None
        self._platform_clock.observe(answer)
        self._failures = 0
        self._retry_at = 0.0
        self._counters.jwks_fetches["ok"] += 1
        confirmed = held if held is not None and keys is held.keys else None
        ttl = min(self._ttl, max(TTL_MIN, _max_age(answer)))
        self._held = _Held(keys, self._clock.seconds(), ttl, _etag(answer, confirmed))
        if confirmed is None:
            self._log.event(
                "jwks_fetched",
                message="JWKS fetched",
                keyCount=len(keys),
                kids=keys.kids,
                ignored=[str(key) for key in keys.ignored[:_IGNORED_LOGGED]],
            )
        return keys

    def _failed(self, why: str, hint: str = "") -> Refusal:
        self._counters.jwks_fetches["failed"] += 1
        self._retry_at = self._clock.seconds() + min(BACK_OFF[1], BACK_OFF[0] * 2 ** min(self._failures, 10))
        self._failures += 1
        age, detail = self.age_seconds, f"{why} ({self.url})"
        details: dict[str, Any] = {"why": why, "url": self.url, **({"hint": hint} if hint else {})}
        if age is None or age >= STALE_MAX:
            reason = Reason.JWKS_UNREACHABLE
            self._log.event("jwks_fetch_failed", reason=reason, detail=detail, **details)
        else:
            self._log.event(
                "jwks_refetch_failed",
                message="JWKS could not be fetched again; the keys fetched before serve on",
                ageSeconds=round(age),
                **details,
            )
        return Refusal(Reason.JWKS_UNREACHABLE, detail, details=details)

    async def _until_ready(self) -> None:
        while not self.ready:
            try:
                await self._fetch()
            except Refusal:
                pause = max(BACK_OFF[0], self._retry_at - self._clock.seconds())
                await deferLater(self._clock, pause)


def _is_logged(failure: Failure) -> None:
    # The fetch itself has logged why it failed; the old set serves on.
    failure.trap(Refusal, CancelledError)


def _keys_from(answer: Answer, held: _Held | None) -> KeySet:
    if answer.status == 304 and held is not None and held.etag is not None:
        return held.keys
    if answer.status != 200:
        raise KeySetError(f"the answer is {redirect(answer) or f'HTTP {answer.status}, not 200'}")
    return KeySet.parse(answer.body)


def _etag(answer: Answer, confirmed: _Held | None) -> str | None:
    """The ETag for the next fetch: the answer's, or that of the set that a 304 has confirmed."""
    etag = answer.header("etag") or (None if confirmed is None else confirmed.etag)
    if etag is None or len(etag) > _ETAG_MAX_CHARS or not etag.isascii():
        return None
    return etag


def _max_age(answer: Answer) -> float:
    """Seconds for which Cache-Control (RFC 9111 section 5.2.2) lets the answer serve; endless if it says nothing."""
    said = (answer.header("cache-control") or "")[:1024].lower()
    if re.search(r"(?:^|[,\s])no-(?:store|cache)\b", said):
        return 0.0
    found = re.search(r"(?:^|[,\s])max-age\s*=\s*\"?([0-9]{1,10})\b", said)
    return float(found[1]) if found else float("inf")
