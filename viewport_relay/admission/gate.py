"""The part of admission that costs something: the token's signature, then the platform's word.

The cheap checks before it (rates, counts, path, query, origin, a token at all) are the `/ws` resource's, with
`limits.py`, `addresses.py`, `query.py` and `token.py`; the claims against the query come after it, with
`claims.grant_for`. The gate does not log single refusals and does not count them: who raised the upgrade does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime

from viewport_relay.admission.http import HttpClient, Target
from viewport_relay.admission.jwks import JwksClient, JwksSettings
from viewport_relay.admission.jwt import TokenRules, check_payload, payload_signed_by, read_header
from viewport_relay.admission.platform import PlatformValidator, ValidationSettings
from viewport_relay.admission.signed import SignedTokens, digest_of
from viewport_relay.admission.token import TOKEN_CHARS, TokenSource
from viewport_relay.config import Config, ConfigError
from viewport_relay.observe.counters import Counters
from viewport_relay.observe.sink import EventSink
from viewport_relay.protocol.grant import Claims, UpgradeQuery
from viewport_relay.reasons import Reason, Refusal


class Gate:
    """Admits tokens. `now` gives seconds since the epoch, for exp, nbf and iat."""

    def __init__(
        self,
        jwks: JwksClient,
        validator: PlatformValidator,
        rules: TokenRules,
        http: HttpClient,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._jwks = jwks
        self._validator = validator
        self._rules = rules
        self._http = http
        self._now = now
        self._signed = SignedTokens()

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
        for variable, url in (
            ("RELAY_JWKS_URL", config.jwks_url),
            ("RELAY_VALIDATE_URL", config.validate_url),
        ):
            try:
                Target.of(url)
            except ValueError as takes:  # its value is not shown: it may hold a password
                raise ConfigError([f"{variable}: {takes}"]) from None
        clock: IReactorTime = reactor
        client = http or HttpClient.from_config(reactor, config)
        jwks = JwksClient(
            clock,
            client,
            JwksSettings(config.jwks_url, config.jwks_cache_ttl, config.jwks_cooldown),
            log,
            counters,
        )
        validation = ValidationSettings(
            url=config.validate_url,
            internal_key=config.internal_key,
            limit=config.admission_timeout_ms / 1000,
            max_bytes=config.admission_max_response_bytes,
            cache_ttl=config.validate_cache_ttl,
        )
        validator = PlatformValidator(clock, client, validation, log, counters, now)
        rules = TokenRules(config.token_issuer, config.token_audience, config.token_clock_skew_sec)
        return cls(jwks, validator, rules, client, now)

    def recall(self, source: TokenSource, query: UpgradeQuery) -> Claims | None:
        """What `admit` would give, if nobody has to be asked for it: the token's signature and the platform's answer are
        remembered. None: they are not. Raises Refusal as `admit` does.
        """
        digest = digest_of(source.token)
        payload = self._signed.payload(digest, self._jwks.fresh)
        if payload is None:
            return None
        check_payload(payload, query, self._rules, self._now())
        return self._validator.recall(digest, query)

    async def admit(self, source: TokenSource, query: UpgradeQuery) -> Claims:
        """The platform's claims about a good token.

        Raises Refusal with a reason of the local check (then the platform was not asked) or of the validation.
        Cancelling it, when the peer has left, leaves nothing behind.
        """
        expires = await self.check_token(source.token, query)
        return await self._validator.validate(source.token, query, expires)

    async def check_token(self, token: str, query: UpgradeQuery) -> float:
        """The local check alone: the token's exp, seconds since the epoch. Raises Refusal."""
        digest, held = digest_of(token), self._jwks.held
        known = self._signed.payload(digest, held)
        # Read before keys are waited for: garbage needs none.
        header = read_header(token) if known is None else None
        keys = await self._jwks.current()
        if known is not None and keys is held:
            return check_payload(known, query, self._rules, self._now())
        header = header or read_header(token)
        try:
            payload = payload_signed_by(token, header, keys.for_kid(header.kid))
        except Refusal as refusal:
            # Unknown kid, another key of the same kid, or one of another type: the key may have been rotated.
            rotated = refusal.reason in (Reason.JWT_SIGNATURE_MISMATCH, Reason.JWT_ALGORITHM_NOT_ALLOWED)
            newer = await self._jwks.newer_than(keys) if rotated else None
            if newer is None:
                raise
            keys = newer
            payload = payload_signed_by(token, header, keys.for_kid(header.kid))
        expires = check_payload(payload, query, self._rules, self._now())
        if len(token) <= TOKEN_CHARS[1]:
            self._signed.remember(digest, keys, payload, expires + self._rules.skew)
        return expires

    def start(self) -> None:
        """Begin to fetch the keys."""
        self._jwks.start()

    def stop(self) -> None:
        """End everything on its way; upgrades that wait get CancelledError."""
        self._jwks.stop()
        self._validator.stop()
        self._http.close()

    def clean_up(self) -> None:
        """Forget what has run out."""
        self._signed.expire(self._now())
        self._validator.clean_up()

    def flush(self) -> None:
        """Forget the platform's answers, and fetch the keys again at the next upgrade."""
        self._signed.clear()
        self._jwks.flush()
        self._validator.flush()

    def ready(self) -> tuple[bool, str]:
        """Whether tokens can be checked, and if not, why."""
        return (True, "") if self._jwks.ready else (False, "the JWKS was not fetched yet")

    @property
    def jwks_age_seconds(self) -> float | None:
        """Age of the key set, for metrics; None without one."""
        return self._jwks.age_seconds
