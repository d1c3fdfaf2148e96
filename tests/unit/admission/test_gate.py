"""Gate: local checks before the platform's, recovery from key rotation and outages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from viewport_relay.admission import gate as gate_module
from viewport_relay.admission.gate import Gate
from viewport_relay.admission.httpcall import Answer, Call, Unreachable
from viewport_relay.admission.token import TokenSource
from viewport_relay.config import Config, ConfigError, load
from viewport_relay.devplatform.tokens import SigningKey
from viewport_relay.observe.counters import Counters
from viewport_relay.protocol.grant import UpgradeQuery
from viewport_relay.reasons import Reason, Refusal

Settle = Callable[[Any], Any]
ENVIRON = {
    "RELAY_JWKS_URL": "http://platform.example/jwks",
    "RELAY_VALIDATE_URL": "http://platform.example/validate",
    "RELAY_INTERNAL_KEY": "an-internal-key-of-the-test",
    "RELAY_LISTEN_HOST": "127.0.0.1",
}


class Platform:
    """Test double for both endpoints; `jwks` and `validate` are an Answer, an exception or a Deferred."""

    def __init__(self) -> None:
        self.jwks: Any = None
        self.validate: Any = None
        self.calls: list[str] = []

    async def ask(self, call: Call, body: bytes | None = None) -> Answer:
        name = "jwks" if call.url.endswith("/jwks") else "validate"
        self.calls.append(name)
        reply = getattr(self, name)
        if isinstance(reply, Deferred):
            reply = await reply
        if isinstance(reply, Exception):
            raise reply
        return reply  # type: ignore[no-any-return]

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def config() -> Config:
    return load(ENVIRON)


@pytest.fixture
def platform(answer: Callable[..., Answer], keys: dict[str, SigningKey]) -> Platform:
    platform = Platform()
    platform.jwks = answer(200, json.dumps({"keys": [key.jwk() for key in keys.values()]}))
    platform.validate = answer(200, '{"ok":true,"claims":{"workspaceId":"ws-1"}}')
    return platform


@pytest.fixture
def gate(platform: Platform, config: Config, clock: Clock, log: Any, counters: Counters, now: float) -> Gate:
    return Gate.from_config(clock, config, log, counters, lambda: now + clock.seconds(), platform)  # type: ignore[arg-type]


def bearer(token: str) -> TokenSource:
    return TokenSource(token, "header")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_good_token_is_admitted(
    gate: Gate, platform: Platform, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery,
    settle: Settle, algorithm: str,
) -> None:  # fmt: skip
    assert gate.ready() == (False, "the JWKS was not fetched yet") and gate.jwks_age_seconds is None
    gate.start()
    assert gate.ready() == (True, "") and gate.jwks_age_seconds == 0.0
    assert settle(gate.admit(bearer(keys[algorithm].sign(payload)), query)).workspace_id == "ws-1"
    assert platform.calls == ["jwks", "validate"]


@pytest.mark.parametrize(
    ("said", "token_id", "ends_early"),
    [
        ({}, "of the token", False),
        ({"exp": 1_000_000_000, "jti": "of the platform"}, "of the platform", True),
    ],
)
def test_claims_include_exp_and_token_id(
    gate: Gate, platform: Platform, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery,
    settle: Settle, answer: Callable[..., Answer], said: dict[str, Any], token_id: str, ends_early: bool,
) -> None:  # fmt: skip
    platform.validate = answer(200, json.dumps({"ok": True, "claims": {"workspaceId": "ws-1", **said}}))
    gate.start()
    token = keys["RS256"].sign({**payload, "jti": "of the token"})
    expected = (1_000_000_000.0 if ends_early else float(payload["exp"]), token_id)
    claims = settle(gate.admit(bearer(token), query))
    assert (claims.expires_at, claims.token_id) == expected
    recalled = gate.recall(bearer(token), query)
    assert recalled is None or (recalled.expires_at, recalled.token_id) == expected
    for odd in (7, "", "x" * 256):
        token = keys["RS256"].sign({**payload, "jti": odd})
        assert settle(gate.admit(bearer(token), query)).token_id == said.get("jti")


BAD = {
    "garbage": (lambda keys, other, payload: "x" * 50, Reason.JWT_MALFORMED),
    "expired": (lambda keys, other, p: keys["RS256"].sign({**p, "exp": 1}), Reason.JWT_EXPIRED),
    "early": (lambda keys, other, p: keys["RS256"].sign({**p, "nbf": 2**33}), Reason.JWT_NOT_YET_VALID),
    "issuer": (lambda keys, other, p: keys["RS256"].sign({**p, "iss": "x"}), Reason.JWT_ISSUER_MISMATCH),
    "audience": (lambda keys, other, p: keys["RS256"].sign({**p, "aud": "x"}), Reason.JWT_AUDIENCE_MISMATCH),
    "binding": (
        lambda keys, other, p: keys["RS256"].sign({**p, "role": "worker"}),
        Reason.JWT_CLAIM_MISMATCH,
    ),
    "signature": (lambda keys, other, p: other.sign(p), Reason.JWT_SIGNATURE_MISMATCH),
    "kid": (lambda keys, other, p: other.sign(p, {"kid": "new"}), Reason.JWT_SIGNATURE_MISMATCH),
    "algorithm": (
        lambda keys, other, p: keys["ES256"].sign(p, {"kid": "RS256"}),
        Reason.JWT_ALGORITHM_NOT_ALLOWED,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_token_that_fails_here_never_reaches_the_platform(
    gate: Gate, platform: Platform, keys: dict[str, SigningKey], other_key: SigningKey, payload: dict[str, Any],
    query: UpgradeQuery, settle: Settle, name: str,
) -> None:  # fmt: skip
    make, reason = BAD[name]
    token = make(keys, other_key, payload)
    gate.start()
    with pytest.raises(Refusal) as refused:
        settle(gate.admit(bearer(token), query))
    assert refused.value.reason is reason
    assert "validate" not in platform.calls
    shown = f"{refused.value} {refused.value.details}"
    assert token not in shown and not any(part in shown for part in token.split("."))


@pytest.mark.parametrize("name", ["garbage", "expired", "issuer", "binding"])
def test_only_key_mismatches_cause_a_refetch(
    gate: Gate, platform: Platform, keys: dict[str, SigningKey], other_key: SigningKey, payload: dict[str, Any],
    query: UpgradeQuery, settle: Settle, name: str,
) -> None:  # fmt: skip
    gate.start()
    for _ in range(3):
        with pytest.raises(Refusal):
            settle(gate.admit(bearer(BAD[name][0](keys, other_key, payload)), query))
    assert platform.calls == ["jwks"]


@pytest.mark.parametrize("kid", ["RS256", "rotated"], ids=["same kid", "new kid"])
def test_a_rotated_key_is_accepted_on_the_next_upgrade(
    gate: Gate, platform: Platform, other_key: SigningKey, payload: dict[str, Any], query: UpgradeQuery,
    settle: Settle, answer: Callable[..., Answer], kid: str,
) -> None:  # fmt: skip
    gate.start()
    rotated = SigningKey(kid, "RS256", other_key.private)
    platform.jwks = answer(200, json.dumps({"keys": [rotated.jwk()]}))
    assert settle(gate.admit(bearer(rotated.sign(payload)), query))
    assert platform.calls == ["jwks", "jwks", "validate"]


def test_a_key_rotated_to_another_type_under_the_same_kid(
    gate: Gate, platform: Platform, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery,
    settle: Settle, answer: Callable[..., Answer],
) -> None:  # fmt: skip
    gate.start()
    rotated = SigningKey("RS256", "ES256", keys["ES256"].private)
    platform.jwks = answer(200, json.dumps({"keys": [rotated.jwk()]}))
    assert settle(gate.admit(bearer(rotated.sign(payload)), query))


def test_made_up_kids_cost_one_fetch_per_cool_down(
    gate: Gate, platform: Platform, other_key: SigningKey, payload: dict[str, Any], query: UpgradeQuery,
    settle: Settle, clock: Clock,
) -> None:  # fmt: skip
    gate.start()
    for round_ in range(3):
        for number in range(5):
            token = other_key.sign(payload, {"kid": f"made-up-{round_}-{number}"})
            with pytest.raises(Refusal) as refused:
                settle(gate.admit(bearer(token), query))
            assert refused.value.detail == (
                f"kid made-up-{round_}-{number} is not in the JWKS, which has RS256, ES256, EdDSA"
            )
        assert platform.calls == ["jwks"] * (2 + round_)
        clock.advance(30)


def test_without_keys_the_upgrade_fails_and_the_next_one_fetches(
    gate: Gate, platform: Platform, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery,
    settle: Settle,
) -> None:  # fmt: skip
    good, platform.jwks = platform.jwks, Unreachable("connection refused")
    token = bearer(keys["RS256"].sign(payload))
    with pytest.raises(Refusal) as refused:
        settle(gate.admit(token, query))
    assert refused.value.reason is Reason.JWKS_UNREACHABLE
    assert refused.value.detail == "connection refused (http://platform.example/jwks)"
    platform.jwks = good
    assert settle(gate.admit(token, query))


def test_a_malformed_token_is_refused_without_keys(
    gate: Gate, platform: Platform, query: UpgradeQuery, settle: Settle
) -> None:
    with pytest.raises(Refusal) as refused:
        settle(gate.admit(bearer("not a token"), query))
    assert refused.value.reason is Reason.JWT_MALFORMED and platform.calls == []


@pytest.mark.parametrize("waits_for", ["jwks", "validate"])
def test_a_cancelled_upgrade_leaves_no_timer_behind(
    gate: Gate, platform: Platform, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery,
    settle: Settle, clock: Clock, waits_for: str,
) -> None:  # fmt: skip
    setattr(platform, waits_for, Deferred())
    waiting = Deferred.fromCoroutine(gate.admit(bearer(keys["RS256"].sign(payload)), query))
    waiting.cancel()
    with pytest.raises(CancelledError):
        settle(waiting)
    gate.stop()
    assert not clock.getDelayedCalls() and platform.calls[-1] == "close"


def test_stop_cancels_pending_upgrades(
    gate: Gate, platform: Platform, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery,
    settle: Settle,
) -> None:  # fmt: skip
    platform.validate = Deferred()
    waiting = Deferred.fromCoroutine(gate.admit(bearer(keys["RS256"].sign(payload)), query))
    gate.stop()
    with pytest.raises(CancelledError):
        settle(waiting)


def test_flush_empties_both_caches(
    gate: Gate, platform: Platform, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery,
    settle: Settle,
) -> None:  # fmt: skip
    gate.start()
    token = bearer(keys["RS256"].sign(payload))
    settle(gate.admit(token, query))
    settle(gate.admit(token, query))
    assert platform.calls == ["jwks", "validate"]
    gate.flush()
    settle(gate.admit(token, query))
    assert platform.calls[2:] == ["jwks", "validate"]


def test_an_answer_is_cached_for_its_query_only(
    gate: Gate, platform: Platform, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery,
    settle: Settle,
) -> None:  # fmt: skip
    del payload["runtimeTargetId"]
    token = bearer(keys["RS256"].sign(payload))
    settle(gate.admit(token, query))
    settle(gate.admit(token, evolve(query, runtime_target_id="rt-2")))
    assert platform.calls == ["jwks", "validate", "validate"]


def count_checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the token of each signature check from now on."""
    checked: list[str] = []

    def payload_signed_by(token: str, header: Any, keys: Any) -> Any:
        checked.append(token)
        return real(token, header, keys)

    real = gate_module.payload_signed_by
    monkeypatch.setattr(gate_module, "payload_signed_by", payload_signed_by)
    return checked


def test_a_signature_is_checked_once(
    gate: Gate, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery, settle: Settle,
    clock: Clock, now: float, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    checked = count_checks(monkeypatch)
    gate.start()
    token = keys["RS256"].sign({**payload, "exp": now + 60})
    for _ in range(3):
        settle(gate.admit(bearer(token), query))
    assert checked == [token]
    with pytest.raises(Refusal) as refused:  # the claims are checked each time
        settle(gate.admit(bearer(token), evolve(query, workspace_id="another")))
    assert refused.value.reason is Reason.JWT_CLAIM_MISMATCH
    clock.advance(90)
    with pytest.raises(Refusal) as refused:
        settle(gate.admit(bearer(token), query))
    assert refused.value.reason is Reason.JWT_EXPIRED and checked == [token, token]


def test_recall_answers_from_the_caches(
    gate: Gate, platform: Platform, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery,
    settle: Settle, clock: Clock, now: float, counters: Counters,
) -> None:  # fmt: skip
    """`recall` returns the result of `admit` without waiting, as long as no fetch is needed."""
    source = bearer(keys["RS256"].sign({**payload, "exp": now + 600}))
    assert gate.recall(source, query) is None  # before the first key set
    gate.start()
    assert gate.recall(source, query) is None  # unknown token
    claims = settle(gate.admit(source, query))
    asked = list(platform.calls)
    assert gate.recall(source, query) == claims and counters.validations["cached"] == 1
    assert gate.recall(bearer(source.token + "x"), query) is None
    clock.advance(11)
    assert gate.recall(source, query) is None  # the validation has expired
    settle(gate.admit(source, query))
    assert gate.recall(source, query) == claims
    gate.flush()
    assert gate.recall(source, query) is None
    assert platform.calls == [*asked, "validate"]


def test_recall_checks_the_claims(
    gate: Gate, platform: Platform, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery,
    settle: Settle, clock: Clock, now: float, answer: Callable[..., Answer],
) -> None:  # fmt: skip
    gate.start()
    source = bearer(keys["RS256"].sign({**payload, "exp": now + 60}))
    settle(gate.admit(source, query))
    with pytest.raises(Refusal) as refused:
        gate.recall(source, evolve(query, workspace_id="another"))
    assert refused.value.reason is Reason.JWT_CLAIM_MISMATCH
    clock.advance(90)
    assert gate.recall(source, query) is None  # no cache entry outlives exp
    with pytest.raises(Refusal) as refused:
        settle(gate.admit(source, query))
    assert refused.value.reason is Reason.JWT_EXPIRED
    denied = bearer(keys["ES256"].sign({**payload, "exp": now + 600}))
    platform.validate = answer(200, '{"ok":false,"reason":"WORKSPACE_NOT_FOUND"}')
    with pytest.raises(Refusal):
        settle(gate.admit(denied, query))
    with pytest.raises(Refusal) as refused:
        gate.recall(denied, query)
    assert refused.value.reason is Reason.WORKSPACE_NOT_FOUND


def test_an_expired_key_set_is_fetched_before_recall(
    gate: Gate, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery, settle: Settle,
    clock: Clock, now: float, config: Config, platform: Platform,
) -> None:  # fmt: skip
    gate.start()
    source = bearer(keys["RS256"].sign({**payload, "exp": now + 10_000}))
    clock.advance(config.jwks_cache_ttl - 1)
    settle(gate.admit(source, query))
    assert gate.recall(source, query) is not None
    clock.advance(1)
    assert gate.recall(source, query) is None
    settle(gate.admit(source, query))
    assert platform.calls.count("jwks") == 2


def test_a_signature_check_is_cached_for_one_key_set(
    gate: Gate, platform: Platform, keys: dict[str, SigningKey], other_key: SigningKey, payload: dict[str, Any],
    query: UpgradeQuery, settle: Settle, answer: Callable[..., Answer],
) -> None:  # fmt: skip
    """A key that the platform has withdrawn admits no token, cached or not."""
    gate.start()
    token = keys["RS256"].sign(payload)
    settle(gate.admit(bearer(token), query))
    platform.jwks = answer(200, json.dumps({"keys": [other_key.jwk()]}))
    rotated = other_key.sign(payload)
    settle(gate.admit(bearer(rotated), query))  # unknown kid: the key set is fetched again
    with pytest.raises(Refusal) as refused:
        settle(gate.admit(bearer(token), query))
    assert refused.value.reason is Reason.JWT_SIGNATURE_MISMATCH


def test_the_cache_of_signature_checks_is_bounded(
    platform: Platform, config: Config, clock: Clock, log: Any, counters: Counters, now: float, keys: dict[str, SigningKey],
    payload: dict[str, Any], query: UpgradeQuery, settle: Settle, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(gate_module, "TOKENS_MAX", 2)
    gate = Gate.from_config(clock, config, log, counters, lambda: now + clock.seconds(), platform)  # type: ignore[arg-type]
    checked = count_checks(monkeypatch)
    gate.start()
    tokens = [keys["RS256"].sign({**payload, "exp": now + 60, "jti": name}) for name in "abc"]
    for token in (*tokens, *reversed(tokens)):
        settle(gate.admit(bearer(token), query))
    assert checked == [*tokens, tokens[0]]  # the third token has evicted the first


def test_a_token_is_hashed_once(
    gate: Gate, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery, settle: Settle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    hashed: list[bytes] = []
    real = hashlib.sha256

    def sha256(data: bytes) -> Any:
        hashed.append(data)
        return real(data)

    monkeypatch.setattr(hashlib, "sha256", sha256)
    gate.start()
    token = keys["EdDSA"].sign(payload)
    source = bearer(token)
    assert gate.recall(source, query) is None
    settle(gate.admit(source, query))
    assert hashed.count(token.encode()) == 1


def test_clock_offset_and_time_of_the_last_answer(
    gate: Gate, platform: Platform, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery,
    settle: Settle, answer: Callable[..., Answer], clock: Clock, now: float,
) -> None:  # fmt: skip
    """`offset` follows the last Date, `answered_at` the last answer; invalid answers change neither."""
    assert gate.platform_clock.offset() is None and gate.platform_clock.answered_at is None
    gate.start()
    assert gate.platform_clock.offset() is None and gate.platform_clock.answered_at == 0.0
    clock.advance(10)
    late = formatdate(now + 10 - 120, usegmt=True)
    platform.validate = answer(200, '{"ok":true,"claims":{}}', date=late)
    settle(gate.admit(bearer(keys["RS256"].sign(payload)), query))
    assert (
        gate.platform_clock.offset() == pytest.approx(120, abs=1) and gate.platform_clock.answered_at == 10.0
    )
    clock.advance(10)
    for reply in (
        answer(502, "", date=formatdate(now, usegmt=True)),
        answer(200, "<html>", date=formatdate(now, usegmt=True)),
        Unreachable("time out"),
    ):
        platform.validate = reply
        with pytest.raises(Refusal):
            settle(gate.admit(bearer(keys["EdDSA"].sign(payload)), query))
    assert (
        gate.platform_clock.offset() == pytest.approx(120, abs=1) and gate.platform_clock.answered_at == 10.0
    )
    with pytest.raises(Refusal) as refused:
        settle(gate.admit(bearer(keys["RS256"].sign({**payload, "exp": now - 60})), query))
    assert (
        "the platform's 120 s behind it" in refused.value.detail
        and "120 s ahead" in refused.value.details["hint"]
    )


@pytest.mark.parametrize("headers", [{"date": "yesterday"}, {"date": "x" * 5000}, {"age": "30"}])
def test_unusable_dates_are_ignored(
    gate: Gate, platform: Platform, headers: dict[str, str], now: float
) -> None:
    lines = {"date": formatdate(now, usegmt=True), **headers}
    platform.jwks = evolve(platform.jwks, headers=Headers({name: [value] for name, value in lines.items()}))
    gate.start()
    assert gate.ready() == (True, "") and gate.platform_clock.offset() is None


def test_a_signature_mismatch_names_the_url_of_the_keys(
    gate: Gate, keys: dict[str, SigningKey], payload: dict[str, Any], query: UpgradeQuery, settle: Settle
) -> None:
    gate.start()
    with pytest.raises(Refusal) as refused:
        settle(gate.admit(bearer(keys["RS256"].sign(payload, {"kid": "gone"})), query))
    assert refused.value.details == {
        "kid": "gone", "kids": ["RS256", "ES256", "EdDSA"], "iss": "viewport-server",
        "url": "http://platform.example/jwks",
    }  # fmt: skip


@pytest.mark.parametrize("variable", ["RELAY_JWKS_URL", "RELAY_VALIDATE_URL"])
def test_an_unusable_url_is_a_configuration_error_without_its_password(
    variable: str, clock: Clock, log: Any, counters: Counters
) -> None:
    config = load(
        {**ENVIRON, variable: "http://user:hush@platform.example/x", "SERVER_URL": "http://x.example"}
    )
    with pytest.raises(ConfigError) as wrong:
        Gate.from_config(clock, config, log, counters)
    assert variable in str(wrong.value) and "hush" not in str(wrong.value)


def test_an_unusable_server_url_is_named(clock: Clock, log: Any, counters: Counters) -> None:
    config = load({"SERVER_URL": "http://user:hush@platform.example"})
    with pytest.raises(ConfigError) as wrong:
        Gate.from_config(clock, config, log, counters)
    assert str(wrong.value) == "RELAY_JWKS_URL, made of SERVER_URL: takes a URL without user and password"
