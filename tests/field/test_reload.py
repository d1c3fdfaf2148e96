"""SIGHUP and `systemctl reload`: the settings file is read again, and all connections stay open."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.drill.peer import PING, Peer, Refused, dial, e2ee, kex_init, kex_response
from tests.drill.platform import FaultyPlatform
from tests.drill.relay import Relay, running, until

#: Variables of the drill's environment, which would take precedence over the file.
FROM_FILE = {
    "RELAY_RATE_LIMIT_PER_IP": "",
    "RELAY_MAX_CONNECTIONS_PER_IP": "",
    "RELAY_MAX_TOTAL_CONNECTIONS": "",
    "RELAY_KEX_INIT_RATE_PER_MINUTE": "",
    "RELAY_RUNTIME_RATE_PER_MINUTE": "",
}

FIRST = """\
# as an operator writes it
RELAY_RATE_LIMIT_PER_IP=1000
export RELAY_MAX_CONNECTIONS_PER_IP="100"
RELAY_RUNTIME_RATE_PER_MINUTE=1000
RELAY_ALLOWED_ORIGINS='https://app.example'
"""


class Reloadable:
    """A relay and its settings file."""

    def __init__(self, relay: Relay, file: Path) -> None:
        self.relay = relay
        self._file = file

    def reload(self, text: str, event: str = "reload") -> dict[str, Any]:
        """Write the file, send SIGHUP, and return the log entry of the reload."""
        before = sum(entry["event"] == event for entry in self.relay.entries())
        self._file.write_text(text)
        self.relay.signal(signal.SIGHUP)

        def answer() -> dict[str, Any] | None:
            found = [entry for entry in self.relay.entries() if entry["event"] == event]
            return found[-1] if len(found) > before else None

        entry: dict[str, Any] = until(answer, 20, event)
        return entry


@pytest.fixture(params=["1", "2"], ids=["one process", "two workers"])
def reloadable(
    request: pytest.FixtureRequest, platform: FaultyPlatform, tmp_path: Path
) -> Iterator[Reloadable]:
    file = tmp_path / "env"
    file.write_text(FIRST)
    settings = platform.environment() | FROM_FILE | {
        "RELAY_SETTINGS_FILE": str(file), "RELAY_WORKERS": request.param,
    }  # fmt: skip
    with running(settings) as relay:
        yield Reloadable(relay, file)


def refused(make: Any) -> int:
    """HTTP status of a refused upgrade; 0 if it was not refused."""
    try:
        make().close()
    except Refused as error:
        return error.status
    return 0


def test_origins_and_connections(reloadable: Reloadable, platform: FaultyPlatform) -> None:
    """A web app moves to another origin; an issuer behind one address grows."""
    relay = reloadable.relay

    def client(origin: str) -> Peer:
        return Peer.client(relay, platform, "ws-1", "t-1", headers={"Origin": origin})

    held = client("https://app.example")
    assert refused(lambda: client("https://new.example")) == 403
    entry = reloadable.reload(
        FIRST + "RELAY_ALLOWED_ORIGINS=https://new.example/\nRELAY_MAX_CONNECTIONS_PER_IP=2\n"
    )
    assert sorted(entry["details"]["taken"]) == ["RELAY_ALLOWED_ORIGINS", "RELAY_MAX_CONNECTIONS_PER_IP"]
    assert refused(lambda: client("https://app.example")) == 403
    second = client("https://new.example")
    assert refused(lambda: client("https://new.example")) == 429
    held.send("{}")  # the old connection is still open
    assert "INVALID_FRAME" in held.text()
    second.close()
    held.close()


def test_connections_before_their_upgrade_and_the_page_of_settings(reloadable: Reloadable) -> None:
    """An operator lowers the cap of an address, and looks at the dashboard to see that it is in force."""
    relay = reloadable.relay
    reloadable.reload(FIRST.replace('"100"', '"1"') + "RELAY_MAX_TOTAL_CONNECTIONS=77\n")
    rows = json.loads(relay.http("/admin/api/settings")[1])["settings"]
    shown = {row["name"]: row["value"] for row in rows}
    assert shown["RELAY_MAX_CONNECTIONS_PER_IP"] == "1" and shown["RELAY_MAX_TOTAL_CONNECTIONS"] == "77"
    capacity = json.loads(relay.http("/admin/api/overview")[1])["capacity"]
    assert capacity["connections"]["limit"] == 77
    with ExitStack() as idle:
        first, *_ = [idle.enter_context(dial(relay.port)) for _ in range(3)]  # twice the cap, and one more
        first.settimeout(10)
        with suppress(ConnectionResetError):
            assert first.recv(1) == b""
    assert relay.logged("http_dropped")["reason"] == "TOO_MANY_CONNECTIONS_PER_IP"


def test_trusted_proxies(reloadable: Reloadable, platform: FaultyPlatform) -> None:
    """A load balancer is added, or its address changes."""
    relay = reloadable.relay

    def joined_as(workspace: str) -> str:
        Peer.client(
            relay, platform, workspace, "t-1",
            headers={"Origin": "https://app.example", "X-Forwarded-For": "198.51.100.7"},
        ).close()  # fmt: skip
        entry: dict[str, Any] = until(
            lambda: next(
                (
                    e for e in relay.entries()
                    if e["event"] == "join" and e["details"]["workspaceId"] == workspace
                ),
                None,
            ),
            20, "the join",
        )  # fmt: skip
        ip: str = entry["details"]["ip"]
        return ip

    assert joined_as("ws-before") == "127.0.0.1"
    entry = reloadable.reload(FIRST + "RELAY_TRUSTED_PROXIES=127.0.0.0/8\n")
    assert entry["details"]["taken"] == ["RELAY_TRUSTED_PROXIES"]
    assert joined_as("ws-after") == "198.51.100.7"


def test_a_rate_applies_to_connected_peers(reloadable: Reloadable, platform: FaultyPlatform) -> None:
    """A client floods the relay while an operator changes the limit."""
    daemon = Peer.daemon(reloadable.relay, platform, "ws-2", "t-2")
    client = Peer.client(reloadable.relay, platform, "ws-2", "t-2", headers={"Origin": "https://app.example"})
    client.send(kex_init("r-1"))
    daemon.message()
    daemon.send(kex_response("r-1", "s-1"))
    client.message()
    for number in range(1, 5):
        client.send(e2ee("s-1", number))
        daemon.message()
    entry = reloadable.reload(FIRST + "RELAY_RUNTIME_RATE_PER_MINUTE=4\n")
    assert entry["details"]["taken"] == ["RELAY_RUNTIME_RATE_PER_MINUTE"]

    for number in range(5, 10):  # a worker process applies the setting a moment later
        with suppress(OSError):
            client.send(e2ee("s-1", number))
        time.sleep(0.1)
    end = client.how_it_ends()
    assert (end.code, end.reason) == (4008, "runtime rate limit exceeded")
    daemon.close()


def pinged(peer: Peer, within: float) -> bool:
    """Whether a ping arrives within `within` seconds."""
    peer.sock.settimeout(within)
    try:
        return peer.frame()[0] == PING
    except TimeoutError:
        return False


def test_times_between_pings(reloadable: Reloadable, platform: FaultyPlatform) -> None:
    """A mobile network drops idle connections sooner than the relay pings."""
    client = Peer.client(reloadable.relay, platform, "ws-3", "t-3", headers={"Origin": "https://app.example"})
    assert not pinged(client, 1.5), "the default is 30 s"
    entry = reloadable.reload(FIRST + "RELAY_PING_INTERVAL_MS=300ms\n")
    assert entry["details"]["taken"] == ["RELAY_PING_INTERVAL_MS"]
    assert pinged(client, 10)
    client.close()


def test_the_expiry_of_tokens(reloadable: Reloadable, platform: FaultyPlatform) -> None:
    """RELAY_TOKEN_EXPIRY=close is set while peers are connected."""
    relay = reloadable.relay
    client = Peer.client(
        relay, platform, "ws-4", "t-4", headers={"Origin": "https://app.example"}, exp=time.time() - 28
    )
    assert not pinged(client, 4), "still connected 30 s after exp"
    entry = reloadable.reload(FIRST + "RELAY_TOKEN_EXPIRY=close\n")
    assert entry["details"]["taken"] == ["RELAY_TOKEN_EXPIRY"]
    end = client.how_it_ends()
    assert (end.code, end.reason) == (4401, "invalid_token")


def test_a_shorter_drain_is_applied_at_a_reload(platform: FaultyPlatform, tmp_path: Path) -> None:
    """The orchestrator's grace period is shorter than the relay's drain."""
    file = tmp_path / "env"
    file.write_text("RELAY_DRAIN_SECONDS=600\n")
    own = {"RELAY_SETTINGS_FILE": str(file), "RELAY_DRAIN_SECONDS": ""}
    with running(platform.environment() | own) as relay:
        clients = [Peer.client(relay, platform, f"ws-{n}", "t") for n in range(3)]
        entry = Reloadable(relay, file).reload("RELAY_DRAIN_SECONDS=1\n")
        assert entry["details"]["taken"] == ["RELAY_DRAIN_SECONDS"]
        began = time.monotonic()
        assert relay.stop() == 0, "no client reads, so the drain ends by its limit"
        assert time.monotonic() - began < 15
        for client in clients:
            client.close()


def test_a_scrapers_token_and_the_budget_of_plain_http(platform: FaultyPlatform, tmp_path: Path) -> None:
    """Prometheus gets another token; an internal prober sends more requests than expected."""
    file = tmp_path / "env"
    before, after = "scraper-token-before-0123456789", "scraper-token-after-0123456789"
    file.write_text(f"RELAY_METRICS_TOKEN={before}\nRELAY_HTTP_RATE_PER_IP=60\n")

    def status(token: str) -> int:
        with dial(relay.port) as sock:
            sock.sendall(
                f"GET /metrics HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n".encode()
            )
            return int(sock.recv(65_536).split()[1])

    with running(platform.environment() | {"RELAY_SETTINGS_FILE": str(file)}) as relay:
        assert (status(before), status(after)) == (200, 401)
        entry = Reloadable(relay, file).reload(f"RELAY_METRICS_TOKEN={after}\nRELAY_HTTP_RATE_PER_IP=3\n")
        assert sorted(entry["details"]["taken"]) == ["RELAY_HTTP_RATE_PER_IP", "RELAY_METRICS_TOKEN"]
        assert status(after) == 200
        assert [status("x") for _ in range(5)][-1] == 429


def test_settings_that_need_a_restart_are_named_and_unchanged(reloadable: Reloadable) -> None:
    entry = reloadable.reload(FIRST + "RELAY_FRAME_MAX_BYTES=2MiB\nRELAY_LOG_LEVEL=warn\n")
    assert entry["level"] == "warn"
    assert entry["details"]["left"] == ["RELAY_FRAME_MAX_BYTES"]
    assert entry["details"]["taken"] == ["RELAY_LOG_LEVEL"]
    assert "needs a restart: RELAY_FRAME_MAX_BYTES" in entry["message"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RELAY_RATE_LIMIT_PER_IP=lots\n", "RELAY_RATE_LIMIT_PER_IP: got 'lots'"),
        ("this is no line\n", "line 1 of"),
    ],
)
def test_invalid_settings_change_nothing(
    text: str, words: str, platform: FaultyPlatform, tmp_path: Path
) -> None:
    """A typing error in production."""
    file = tmp_path / "env"
    file.write_text(FIRST)
    with running(platform.environment() | FROM_FILE | {"RELAY_SETTINGS_FILE": str(file)}) as relay:
        entry = Reloadable(relay, file).reload(text, "reload_failed")
        assert entry["level"] == "error"
        assert words in entry["message"]
        with pytest.raises(Refused):
            Peer.client(relay, platform, "ws-1", "t-1", headers={"Origin": "https://other.example"})
        Peer.client(relay, platform, "ws-1", "t-1", headers={"Origin": "https://app.example"}).close()


def test_a_reload_without_a_change(reloadable: Reloadable) -> None:
    assert "no setting has changed" in reloadable.reload(FIRST)["message"]
