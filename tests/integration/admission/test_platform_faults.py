"""Between relay and platform: a wrong internal key, an outage, shared requests, cached responses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

from tests.drill.relay import until
from tests.integration.admission.controlplane import ControlPlane, Reply
from tests.integration.admission.peers import answer_on, dial, head, target_of
from tests.integration.admission.relays import Relay

Start = Callable[..., Relay]
Make = Callable[..., ControlPlane]

QUICK = {"RELAY_RATE_LIMIT_PER_IP": "0", "RELAY_MAX_CONNECTIONS_PER_IP": "0", "RELAY_MODE": "staging"}
KEY_TEXT = "RELAY_INTERNAL_KEY mismatch"


def test_a_wrong_internal_key_is_an_error_that_names_the_url(
    own_platform: Make, start: Start, workspace: str
) -> None:
    """Each refused upgrade has one log entry and counts once."""
    platform = own_platform(internal_key="what-the-platform-really-expects")
    relay = start({**platform.settings(), **QUICK}).ready()
    for number in range(4):
        name = f"{workspace}-{number}"
        refused = relay.upgrade("client", name, platform.token("client", name))
        assert (refused.status, refused.reason) == (502, "INTERNAL_KEY_MISMATCH")
        assert refused.json["message"] == KEY_TEXT
        entry = relay.entry(connectionId=refused.json["connectionId"])
        assert (entry["event"], entry["level"], entry["message"]) == ("refuse", "error", KEY_TEXT)
        assert entry["details"]["platformWord"] == "invalid relay internal key"
        assert entry["details"]["url"] == platform.settings()["RELAY_VALIDATE_URL"]
    with relay.upgrade(
        "client", workspace, platform.token("client", workspace), via="subprotocol"
    ) as browser:
        assert browser.closed_with() == (1013, "try again later")
    mentioned = {entry["event"] for entry in relay.logs() if entry.get("reason") == "INTERNAL_KEY_MISMATCH"}
    assert mentioned == {"refuse"}
    status, ready = relay.get("/ready")
    assert status == 200, "a relay that gets no peers would not notice that the platform has another key now"
    assert json.loads(ready) == {
        "ok": True,
        "reason": "INTERNAL_KEY_MISMATCH",
        "message": "Tokens can be checked, but the newest one was not admitted: RELAY_INTERNAL_KEY mismatch. "
        "To do: set RELAY_INTERNAL_KEY to the platform's value and restart the relay.",
    }
    assert relay.stop() == 0
    assert platform.internal_key not in "".join(relay.written)
    assert platform.settings()["RELAY_INTERNAL_KEY"] not in "".join(relay.written)


def test_an_outage_of_the_platform(own_platform: Make, start: Start, workspace: str) -> None:
    """The reason is never a bad credential, is not cached, and peers with a cached grant are admitted."""
    platform = own_platform()
    relay = start({**platform.settings(), **QUICK}).ready()
    known, new = platform.token("client", workspace), platform.token("client", workspace)
    relay.upgrade("client", workspace, known).close()
    with platform.down():
        refused = relay.upgrade("client", workspace, new)
        assert (refused.status, refused.reason) == (503, "PLATFORM_UNREACHABLE")
        assert refused.json["message"] == "platform unreachable"
        entry = relay.entry(connectionId=refused.json["connectionId"])
        assert (entry["level"], entry["details"]["why"]) == ("error", "connection refused")
        with relay.upgrade("client", workspace, new, via="subprotocol") as browser:
            assert browser.closed_with() == (1013, "try again later")
        with relay.upgrade("client", workspace, known) as peer:
            assert peer.admitted
    with relay.upgrade("client", workspace, new) as peer:
        assert peer.admitted, "the very next upgrade"


def test_equal_validations_share_one_request(relay: Relay, platform: ControlPlane, workspace: str) -> None:
    """A waiter that leaves does not cancel the others; another query is another request."""
    token = platform.token("client", workspace, None)
    with platform.holding():
        waiting = [dial(relay.port) for _ in range(12)]
        for connection in waiting:
            connection.sendall(
                head(target_of("client", workspace, None), {"Authorization": f"Bearer {token}"})
            )
        until(lambda: platform.asked_about(token), what="the platform is asked")
        waiting.pop(0).close()  # the one that started the request
        elsewhere = dial(relay.port)
        elsewhere.sendall(head(target_of("client", workspace, "t"), {"Authorization": f"Bearer {token}"}))
        until(lambda: platform.asked_about(token) == 2, what="the platform is asked about another target")
    peers = [answer_on(connection) for connection in [*waiting, elsewhere]]
    assert all(peer.admitted for peer in peers)
    assert peers[-1].closed_with() == (4008, "runtime target claim mismatch")
    assert platform.asked_about(token) == 2
    for peer in peers:
        peer.close()


def test_a_grant_is_cached_and_a_denial_shortly(relay: Relay, platform: ControlPlane, workspace: str) -> None:
    good, bad = platform.token("client", workspace), platform.token("client", workspace)
    platform.replies[bad] = Reply.json({"ok": False, "reason": "NOT_YET"}, 403)
    for _ in range(3):
        relay.upgrade("client", workspace, good).close()
        assert relay.upgrade("client", workspace, bad).reason == "VALIDATION_DENIED"
    assert (platform.asked_about(good), platform.asked_about(bad)) == (1, 1)
    del platform.replies[bad]

    def admitted() -> bool:
        with relay.upgrade("client", workspace, bad) as peer:
            return peer.admitted

    began = time.monotonic()
    until(admitted, what="a denial is forgotten")
    assert time.monotonic() - began < 4, "2 s at most"
    assert platform.asked_about(bad) == 2


def test_a_grant_is_never_cached_past_the_tokens_expiry(
    relay: Relay, platform: ControlPlane, workspace: str
) -> None:
    """The token is admitted within the skew; the platform gets a request each time."""
    token = platform.token("client", workspace, exp=int(time.time()) - 2)
    for number in range(3):
        with relay.upgrade("client", workspace, token) as peer:
            assert peer.admitted
        assert platform.asked_about(token) == number + 1


def test_cache_off(own_platform: Make, start: Start, workspace: str) -> None:
    """RELAY_VALIDATE_CACHE_TTL=0: a request for each upgrade, on one kept connection; without a key no key is sent."""
    platform = own_platform()
    settings = {**platform.settings(), **QUICK, "RELAY_VALIDATE_CACHE_TTL": "0"}
    del settings["RELAY_INTERNAL_KEY"]
    relay = start(settings).ready()
    token = platform.token("client", workspace)
    platform.internal_key = None  # type: ignore[assignment]
    for _ in range(3):
        relay.upgrade("client", workspace, token).close()
    assert platform.asked_about(token) == 3
    assert not any("x-relay-internal-key" in question.headers for question in platform.questions)
    assert platform.connections == 1
    with platform.holding():
        waiting = [dial(relay.port) for _ in range(4)]
        for connection in waiting:
            connection.sendall(head(target_of("client", workspace), {"Authorization": f"Bearer {token}"}))
        until(lambda: platform.asked_about(token) == 7, what="each asks for itself")
    for connection in waiting:
        answer_on(connection).close()


def test_frames_before_the_101_are_handled_after_it(
    relay: Relay, platform: ControlPlane, workspace: str
) -> None:
    """Also when the platform is slow, and when the peer is refused."""
    token = platform.token("client", workspace)
    text = b"\x81\x82mask" + bytes(a ^ b for a, b in zip(b"no", b"mask", strict=False))
    connection = dial(relay.port)
    connection.sendall(head(target_of("client", workspace), {"Authorization": f"Bearer {token}"}) + text)
    with answer_on(connection) as peer:
        assert b"INVALID_FRAME" in peer.frame()[1]
    connection, token = dial(relay.port), platform.token("client", workspace)
    with platform.holding():
        connection.sendall(
            head(target_of("client", workspace), {"Authorization": f"Bearer {token}"}) + text[:3]
        )
        until(lambda: platform.asked_about(token), what="the platform is asked")
        connection.sendall(text[3:])
        time.sleep(0.05)
    with answer_on(connection) as peer:
        assert b"INVALID_FRAME" in peer.frame()[1]
    connection = dial(relay.port)
    connection.sendall(
        head(target_of("client", workspace), {"Authorization": "Bearer not-a-token-at-all"}) + text * 50
    )
    assert answer_on(connection).reason == "JWT_MALFORMED"
    connection = dial(relay.port)
    lines: dict[str, str | None] = {"Sec-WebSocket-Protocol": "auth.not-a-token-at-all"}
    connection.sendall(head(target_of("client", workspace), lines) + text * 50)
    assert answer_on(connection).closed_with() == (4401, "invalid_token")


def test_a_reject_mode_forces_one_form(own_platform: Make, start: Start, workspace: str) -> None:
    platform = own_platform()
    relays = {
        mode: start({**platform.settings(), **QUICK, "RELAY_REJECT_MODE": mode}) for mode in ("http", "close")
    }
    for mode, relay in relays.items():
        relay.ready()
        for via in ("header", "subprotocol"):
            with relay.upgrade("client", workspace, "garbage-as-a-token", via=via) as peer:
                if mode == "http":
                    assert (peer.status, peer.reason) == (401, "JWT_MALFORMED")
                else:
                    assert peer.closed_with() == (4401, "invalid_token")
        assert (
            relay.upgrade("client", workspace, None).status == 401
        )  # refusals before the token are always HTTP


def test_refusals_are_counted_once_in_either_form(own_platform: Make, start: Start, workspace: str) -> None:
    platform = own_platform()
    relay = start({**platform.settings(), **QUICK}).ready()
    relay.upgrade("client", workspace, "garbage-as-a-token")
    with relay.upgrade("client", workspace, "garbage-as-a-token", via="subprotocol") as browser:
        browser.closed_with()
    relay.upgrade("client", workspace, None)
    relay.upgrade("client", workspace, platform.token("client", workspace)).close()
    name = "relay_ws_connections_{}_total"
    until(lambda: relay.metrics()[name.format("closed")] >= 1, what="the one that was open is closed")
    seen = relay.metrics()
    counted = {what: seen[name.format(what)] for what in ("opened", "closed", "rejected")}
    assert counted == {"opened": 1, "closed": 1, "rejected": 3}
    assert (seen["relay_admission_ok_total"], seen["relay_admission_denied_total"]) == (1, 2)
    assert seen['relay_refusals_total{reason="JWT_MALFORMED"}'] == 2
    assert seen['relay_refusals_total{reason="TOKEN_MISSING"}'] == 1
    assert seen["relay_admission_latency_seconds_count"] == 3, "those that were checked beyond their form"
    assert 0 < seen["relay_admission_latency_seconds_sum"] < 5


def test_a_burst_of_upgrades(relay: Relay, platform: ControlPlane, workspace: str) -> None:
    """A burst of upgrades: all are admitted, over several connections, and all counts return to zero."""
    tokens = [platform.token("client", workspace) for _ in range(80)]
    peers: list[bool] = []

    def come(share: list[str]) -> None:
        for token in share:
            with relay.upgrade("client", workspace, token) as peer:
                peers.append(peer.admitted)

    threads = [threading.Thread(target=come, args=(tokens[first::8],)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert peers == [True] * 80
    until(lambda: relay.metrics()['relay_connections_total{role="client"}'] == 0, what="all have left")
