"""The gate: checks a token's signature, then asks the platform. The other checks of admission are cheap.

The checks before the gate (rates, counts, path, query, origin, a token at all) are the `/ws` resource's, with `limits.py`,
`addresses.py`, `query.py` and `token.py`; the claims are compared with the query afterwards, by `claims.grant_for`. The gate
neither logs nor counts single refusals: the resource does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from viewport_relay.admission.http import HttpClient
from viewport_relay.admission.jwks import JwksClient
from viewport_relay.admission.jwt import (
    TokenHeader,
    TokenRules,
    check_payload,
    payload_signed_by,
    read_header,
)
from viewport_relay.admission.keys import KeySet
from viewport_relay.admission.pace import Pace
from viewport_relay.admission.platform import PlatformValidator, ValidationSettings
from viewport_relay.admission.platformclock import PlatformClock
from viewport_relay.admission.requesturl import RequestUrl
from viewport_relay.admission.token import TokenSource
from viewport_relay.config import BY_ATTRIBUTE, Config, ConfigError
from viewport_relay.deferredcache import DeferredCache
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.protocol.grant import Claims, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal

#: Characters of a `jti` that is kept; a longer one cannot be selected by `/disconnect`.
_TOKEN_ID_MAX: Final = 255
#: Tokens whose signature is remembered: to check it again costs an upgrade more than anything else.
TOKENS_MAX: Final = 4096


class Gate:
    """Admits tokens. `now` gives seconds since the epoch, for exp, nbf and iat; `clock` measures how long they are known."""

    def __init__(
        self,
        clock: IReactorTime,
        jwks: JwksClient,
        validator: PlatformValidator,
        rules: TokenRules,
        http: HttpClient,
        platform_clock: PlatformClock,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._jwks = jwks
        self._validator = validator
        self._rules = rules
        self._http = http
        #: the platform's clock, by its answers
        self.platform_clock = platform_clock
        self._now = now
        self._pace = Pace(clock)
        # Payloads by the token's digest and the very key set whose key signed it. A remembered payload has a good signature, not
        # more: times, issuer, audience and binding are checked each time, and so is the platform's answer.
        self._signed: DeferredCache[tuple[bytes, KeySet], Mapping[str, Any]] = DeferredCache(
            clock, TOKENS_MAX
        )

    @classmethod
    def from_config(
        cls,
        reactor: Any,
        config: Config,
        log: EventSink,
        counters: Counters,
        now: Callable[[], float] = time.time,
        http: HttpClient | None = None,
    ) -> Gate:
        """The gate that the settings describe; `http` is shared with others if it is given.

        Raises ConfigError for TLS files or URLs that cannot be used.
        """
        for attribute in ("jwks_url", "validate_url"):
            try:
                RequestUrl.of(getattr(config, attribute))
            except ValueError as takes:  # the URL is not shown: it may hold a password
                made = ", made of SERVER_URL" if config.sources.get(attribute) == "default" else ""
                raise ConfigError([f"{BY_ATTRIBUTE[attribute].name}{made}: {takes}"]) from None
        clock: IReactorTime = reactor
        client = http or HttpClient.from_config(reactor, config)
        platform_clock = PlatformClock(clock, now)
        jwks = JwksClient(
            clock,
            client,
            config.jwks_url,
            log,
            counters,
            platform_clock,
            ttl=config.jwks_cache_ttl,
            cooldown=config.jwks_cooldown,
        )
        validation = ValidationSettings(
            url=config.validate_url,
            internal_key=config.internal_key,
            limit=config.admission_timeout_ms / 1000,
            max_bytes=config.admission_max_response_bytes,
            cache_ttl=config.validate_cache_ttl,
        )
        validator = PlatformValidator(clock, client, validation, counters, platform_clock, now)
        rules = TokenRules(config.token_issuer, config.token_audience, config.token_clock_skew_sec)
        return cls(clock, jwks, validator, rules, client, platform_clock, now)

    def recall(self, source: TokenSource, query: UpgradeQuery) -> Claims | None:
        """The result of `admit`, if the token's signature and the platform's answer are remembered; None if they are not.

        Raises Refusal as `admit` does.
        """
        keys = self._jwks.fresh
        payload = None if keys is None else self._signed.peek((source.digest, keys))
        if payload is None:
            return None
        self._check(payload, query)
        return self._validator.recall(source.digest, query)

    async def admit(self, source: TokenSource, query: UpgradeQuery) -> Claims:
        """The platform's claims about a good token.

        Raises Refusal with a reason of the local check (then the platform was not asked) or of the validation.
        Cancelling it, when the peer has left, leaves nothing behind.
        """
        await self._pace.turn()
        payload, expires = await self._check_token(source, query)
        return await self._validator.validate(source, query, expires, _token_id(payload))

    async def _check_token(self, source: TokenSource, query: UpgradeQuery) -> tuple[Mapping[str, Any], float]:
        """The local check alone: the token's payload and exp (seconds since the epoch). Raises Refusal."""
        held = self._jwks.held
        known = None if held is None else self._signed.peek((source.digest, held))
        # Read before keys are waited for: garbage needs none.
        header = read_header(source.token) if known is None else None
        keys = await self._jwks.current()
        if known is not None and keys is held:
            return known, self._check(known, query)
        payload, keys = await self._verify(source.token, header or read_header(source.token), keys)
        expires = self._check(payload, query)
        self._signed.put((source.digest, keys), payload, expires + self._rules.skew - self._now())
        return payload, expires

    async def _verify(
        self, token: str, header: TokenHeader, keys: KeySet
    ) -> tuple[Mapping[str, Any], KeySet]:
        """The payload, and the set whose key signed it: `keys`, or a newer one. Raises Refusal."""
        try:
            return payload_signed_by(token, header, keys), keys
        except Refusal as refusal:
            # Unknown kid, another key of the same kid, or one of another type: the key may have been rotated.
            rotated = refusal.reason in (Reason.JWT_SIGNATURE_MISMATCH, Reason.JWT_ALGORITHM_NOT_ALLOWED)
            newer = await self._jwks.newer_than(keys) if rotated else None
            if newer is None:
                raise evolve(refusal, details={**refusal.details, "url": self._jwks.url}) from None
        try:
            return payload_signed_by(token, header, newer), newer
        except Refusal as refusal:
            raise evolve(refusal, details={**refusal.details, "url": self._jwks.url}) from None

    def _check(self, payload: Mapping[str, Any], query: UpgradeQuery) -> float:
        """Check a token's payload against the settings and the query; gives `exp`. Raises Refusal."""
        return check_payload(payload, query, self._rules, self._now(), self.platform_clock.offset)

    def start(self) -> None:
        """Begin to fetch the keys."""
        self._jwks.start()

    def stop(self) -> Deferred[None]:
        """Cancel the requests in flight; upgrades that wait get CancelledError. Fires when no connection is left."""
        self._pace.stop()
        self._jwks.stop()
        self._validator.stop()
        return self._http.close()

    def clean_up(self) -> None:
        """Drop expired entries."""
        self._signed.expire()
        self._validator.clean_up()

    def flush(self) -> None:
        """Forget the platform's answers, and fetch the keys again at the next upgrade."""
        self._signed.flush()
        self._jwks.flush()
        self._validator.flush()

    def ready(self) -> tuple[bool, str]:
        """Whether tokens can be checked; and why not, or what is wrong with the platform's newest answer."""
        if not self._jwks.ready:
            return False, "the JWKS was not fetched yet"
        fault = self._validator.fault
        return True, "" if fault is None else fault.code

    @property
    def jwks_age_seconds(self) -> float | None:
        """Age of the key set, for metrics; None without one."""
        return self._jwks.age_seconds


def _token_id(payload: Mapping[str, Any]) -> str | None:
    """The token's `jti`; None without one that can be kept."""
    token_id = payload.get("jti")
    return token_id if isinstance(token_id, str) and 0 < len(token_id) <= _TOKEN_ID_MAX else None
