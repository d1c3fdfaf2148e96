"""The key set of a relay process: unreachable, malformed, rotated, stale, requested with unknown kids; clock skew."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.drill.relay import until
from tests.integration.admission.controlplane import ControlPlane, Reply, SigningKey
from tests.integration.admission.relays import Relay

Start = Callable[..., Relay]
Make = Callable[..., ControlPlane]

QUICK = {"RELAY_RATE_LIMIT_PER_IP": "0", "RELAY_MODE": "staging"}
UNREACHABLE = "JWT validation failed: JWKS unreachable"


def refused_for_keys(relay: Relay, platform: ControlPlane, workspace: str) -> dict[str, object]:
    """Details of the log entry of an upgrade that fails with JWKS_UNREACHABLE, over HTTP and as a Close frame."""
    token = platform.token("client", workspace)
    refused = relay.upgrade("client", workspace, token)
    assert (refused.status, refused.reason) == (503, "JWKS_UNREACHABLE")
    assert refused.json["message"] == UNREACHABLE
    with relay.upgrade("client", workspace, token, via="subprotocol") as browser:
        assert browser.closed_with() == (1013, "try again later")
    entry = relay.entry(event="refuse", connectionId=refused.json["connectionId"])
    assert (entry["reason"], entry["message"], entry["level"]) == ("JWKS_UNREACHABLE", UNREACHABLE, "error")
    assert platform.asked_about(token) == 0
    details: dict[str, object] = entry["details"]
    return details


WRONG_SETS: dict[str, tuple[Reply, str]] = {
    "no JSON": (Reply(200, b"<html>sign in</html>"), "the answer is not JSON"),
    "no set": (Reply.json(["keys"]), "the answer is not a JWK set"),
    "no key": (Reply.json({"keys": []}), "the set has no key"),
    "no usable key": (
        Reply.json({"keys": [{"kty": "oct", "kid": "first", "k": "c2VjcmV0"}, {"kty": "RSA", "use": "enc"}]}),
        "the set has no usable key: first (of another type: oct), without kid (for another use: enc)",
    ),
    "404": (Reply.json({"keys": []}, 404), "the answer is HTTP 404, not 200"),
    "redirect": (
        Reply(302, b"", {"location": "/keys2?state=secret"}),
        "the answer is a redirect (HTTP 302) to /keys2, which is not followed",
    ),
    "too large": (Reply(200, b" " * 262_145), "the answer is longer than 262144 bytes"),
    "too many": (Reply.json({"keys": [{}] * 65}), "the set has 65 keys, at most 64 are taken"),
    "hanging": (Reply(delay=2.5), "time out"),
    "no gzip": (
        Reply(200, b"not gzip", {"content-encoding": "gzip"}),
        "the answer says that it is gzip, and is not",
    ),
    "compressed": (
        Reply(200, b"x", {"content-encoding": "br"}),
        "the answer has the content coding br, though none was asked for",
    ),
}


def test_an_unreachable_or_malformed_key_set(own_platform: Make, start: Start, workspace: str) -> None:
    """The key server is down at start, then has one fault after the other, then works."""
    platform = own_platform()
    platform.jwks = Reply(500)
    with platform.down():
        relay = start({**platform.settings(), **QUICK}).listening()
        assert relay.get("/ready")[0] == 503
        assert refused_for_keys(relay, platform, workspace)["why"] == "connection refused"
        failed = next(entry for entry in relay.logs() if entry["event"] == "jwks_fetch_failed")
        assert (failed["reason"], failed["level"], failed["details"]["why"]) == (
            "JWKS_UNREACHABLE", "error", "connection refused",
        )  # fmt: skip
        assert relay.metrics()["relay_ready"] == 0
    for number, (reply, why) in enumerate(WRONG_SETS.values()):
        platform.jwks = reply

        def refused(name: str = f"wrong-{number}") -> str:
            answer = relay.upgrade("client", name, platform.token("client", name))
            assert (answer.status, answer.reason) == (503, "JWKS_UNREACHABLE")
            found: str = relay.entry(connectionId=answer.json["connectionId"])["details"]["why"]
            return found

        first = refused()
        # A fetch of the back-off may have been in flight already, with the fault before.
        assert why in (first, refused()), (why, first)
    platform.jwks = None
    # The next upgrade succeeds (or the one after a fetch that is still in flight).
    until(lambda: admitted(relay, platform, workspace), what="an upgrade that is admitted", seconds=2.0)
    assert relay.get("/ready")[0] == 200
    assert relay.entry(event="jwks_fetched")["details"]["kids"] == ["first"]


def admitted(relay: Relay, platform: ControlPlane, workspace: str) -> bool:
    with relay.upgrade("client", workspace, platform.token("client", workspace)) as peer:
        return peer.admitted


def test_a_rotated_key_is_used_at_once(own_platform: Make, start: Start, workspace: str) -> None:
    """The next upgrade with the new key is admitted, tokens of the old key are refused; then a flood of unknown kids."""
    platform = own_platform()
    relay = start(
        {**platform.settings(), **QUICK, "RELAY_MAX_CONNECTIONS_PER_IP": "0", "RELAY_JWKS_COOLDOWN": "2"}
    ).ready()
    old = platform.token("client", workspace)
    assert admitted(relay, platform, workspace)
    asked = platform.jwks_asked
    for fresh in (
        SigningKey.new("second", "RS256"),
        SigningKey.new("second", "EdDSA"),
    ):  # another kid; the same kid
        platform.published[:] = [fresh]
        time.sleep(max(0.0, platform.jwks_asked - asked) * 2.2)  # the first refetch needs no cool-down
        assert admitted(relay, platform, workspace)
    assert platform.jwks_asked == asked + 2
    assert relay.upgrade("client", workspace, old).reason == "JWT_SIGNATURE_MISMATCH"
    assert platform.jwks_asked == asked + 2, "once per cool-down"
    time.sleep(2.2)
    seconds = flood(relay, platform, workspace)
    assert asked + 3 <= platform.jwks_asked <= asked + 3 + int(seconds / 2), "one for each cool-down"
    # The cool-down's one refetch is spent; valid tokens are still admitted.
    assert admitted(relay, platform, workspace)


def flood(relay: Relay, platform: ControlPlane, workspace: str) -> float:
    """Send 60 tokens, each with its own unknown kid; returns the elapsed seconds."""
    strangers = [SigningKey.new(f"made-up-{number}") for number in range(60)]
    tokens = [platform.token("client", workspace, key=key) for key in strangers]
    codes: list[str | None] = []

    def attack(share: list[str]) -> None:
        for token in share:
            codes.append(relay.upgrade("client", workspace, token).reason)

    began = time.monotonic()
    attackers = [threading.Thread(target=attack, args=(tokens[first::6],)) for first in range(6)]
    for attacker in attackers:
        attacker.start()
    for attacker in attackers:
        attacker.join(30)
    assert codes == ["JWT_SIGNATURE_MISMATCH"] * 60
    return time.monotonic() - began


def test_fetched_keys_are_used_during_an_outage(own_platform: Make, start: Start, workspace: str) -> None:
    """The key server is down at start, starts, and goes down again when the key set has expired."""
    keys, platform = own_platform(), own_platform()
    platform.published = keys.published
    settings = {**platform.settings(), "RELAY_JWKS_URL": keys.settings()["RELAY_JWKS_URL"]}
    with keys.down():
        relay = start({**settings, **QUICK, "RELAY_JWKS_CACHE_TTL": "1"}).listening()
        until(lambda: any(e["event"] == "jwks_fetch_failed" for e in relay.logs()), what="a failed fetch")
    relay.ready()
    with keys.down():

        def warned() -> bool:
            assert admitted(relay, platform, workspace), "the stale set serves"
            return any(entry["event"] == "jwks_refetch_failed" for entry in relay.logs())

        until(warned, what="a warning about keys that could not be fetched again")
        warning = next(entry for entry in relay.logs() if entry["event"] == "jwks_refetch_failed")
        assert (warning["level"], warning["details"]["why"]) == ("warn", "connection refused")
        assert warning["message"] == "JWKS could not be fetched again; the keys fetched before serve on"
        assert relay.get("/ready")[0] == 200


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_every_algorithm_of_the_wire_protocol(
    relay: Relay, platform: ControlPlane, workspace: str, algorithm: str
) -> None:
    key = next(key for key in platform.published if key.algorithm == algorithm)
    with relay.upgrade("client", workspace, platform.token("client", workspace, key=key)) as peer:
        assert peer.admitted


@pytest.mark.parametrize(
    ("offset", "code", "detail"),
    [
        (-400, "JWT_EXPIRED", "exp passed"),
        (+90, "JWT_NOT_YET_VALID", "iat is"),
        (+20, None, ""),
        (-20, None, ""),
    ],
)
def test_clock_skew(
    relay: Relay, platform: ControlPlane, workspace: str, offset: float, code: str | None, detail: str
) -> None:
    """The clocks of platform and relay differ by more, or less, than the tolerated skew."""
    platform.clock_offset = offset
    token = platform.token("client", workspace)
    platform.clock_offset = 0.0
    with relay.upgrade("client", workspace, token) as peer:
        assert (peer.status, peer.reason) == ((101, None) if code is None else (401, code))
    if code is not None:
        entry = relay.entry(reason=code, workspaceId=workspace)
        assert entry["details"]["detail"].startswith(detail)
