"""Twenty-one faults of a deployment: settings, platform, certificates, peers.

Each fault is a function that gets a `Bench` and returns the relay in trouble. `golden/NAME.txt` has the expected
first screen; `test_first_look.py` compares.
"""

from __future__ import annotations

import os
import signal
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define, frozen

from tests.drill.certificates import Identity
from tests.drill.relay import until
from tests.integration.admission.controlplane import ControlPlane, Reply, SigningKey
from tests.integration.admission.relays import Relay


@define(eq=False)
class Bench:
    """Platforms, relays and folders to build a fault from; all end with the test."""

    platform: Callable[..., ControlPlane]
    start: Callable[..., Relay]
    redis: Callable[..., Any]
    folder: Path

    def relay(self, platform: ControlPlane, **settings: str) -> Relay:
        """A listening relay in front of `platform`."""
        known = {"RELAY_MODE": "staging", "RELAY_ID": "relay-1"}
        relay = self.start({**platform.settings(), **known, **settings})
        return relay.listening()

    def ready(self, **settings: str) -> tuple[Relay, ControlPlane]:
        """A platform, and a relay that has fetched its keys."""
        platform = self.platform()
        return self.relay(platform, **settings).ready(), platform


def attempts(relay: Relay, platform: ControlPlane, number: int = 6, **claims: Any) -> None:
    """Connection attempts of `number` clients, each with its own workspace and address."""
    for n in range(number):
        token = platform.token("client", f"acme-{n}", **claims)
        relay.upgrade("client", f"acme-{n}", token, source=f"127.8.0.{n + 1}").close()


# -- tokens ----------------------------------------------------------------------------------------------------------


def expired(bench: Bench) -> Relay:
    relay, platform = bench.ready()
    for n, late in enumerate((100, 4000, 90_000)):
        exp = int(time.time()) - late
        attempts(relay, platform, n + 1, exp=exp, iat=exp - 300)
    return relay


def relay_clock_wrong(bench: Bench) -> Relay:
    platform = bench.platform(clock_offset=-3600.0)
    relay = bench.relay(platform).ready()
    attempts(relay, platform)
    return relay


def wrong_issuer(bench: Bench) -> Relay:
    relay, platform = bench.ready()
    attempts(relay, platform, iss="https://platform.example")
    return relay


def wrong_audience(bench: Bench) -> Relay:
    relay, platform = bench.ready(RELAY_TOKEN_AUDIENCE="relay.example")
    attempts(relay, platform)
    return relay


def keys_of_another_platform(bench: Bench) -> Relay:
    relay, _ = bench.ready()
    other = bench.platform()
    other.published[:] = [SigningKey.new("other-platform")]
    attempts(relay, other)
    return relay


# -- the platform ----------------------------------------------------------------------------------------------------


def internal_key(bench: Bench) -> Relay:
    relay, platform = bench.ready()
    platform.internal_key = "another-one-than-the-relays"
    attempts(relay, platform)
    return relay


def platform_down(bench: Bench) -> Relay:
    platform = bench.platform()
    platform.stop()
    relay = bench.relay(platform)
    attempts(relay, platform, 3)
    platform.start()  # the fixture that made the platform stops it
    return relay


def platform_slow(bench: Bench) -> Relay:
    relay, platform = bench.ready(RELAY_ADMISSION_TIMEOUT_MS="200")
    with platform.holding():
        attempts(relay, platform, 3)
    return relay


def workspace_unknown(bench: Bench) -> Relay:
    relay, platform = bench.ready()
    for n in range(3):
        token = platform.token("client", f"deleted-{n}")
        platform.replies[token] = Reply.json({"ok": False, "reason": "WORKSPACE_NOT_FOUND"}, 404)
        relay.upgrade("client", f"deleted-{n}", token).close()
    return relay


def dns(bench: Bench) -> Relay:
    platform = bench.platform()
    url = "http://platform.invalid/keys"
    relay = bench.relay(platform, RELAY_JWKS_URL=url, RELAY_VALIDATE_URL="http://platform.invalid/validate")
    attempts(relay, platform, 3)
    return relay


def _tls(bench: Bench, certificate: Identity, ca: Identity) -> Relay:
    files = certificate.write(bench.folder, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    platform = bench.platform(tls=context)
    relay = bench.relay(platform, RELAY_SERVER_CA_CERT_PATH=ca.write(bench.folder, "ca").cert)
    attempts(relay, platform, 3)
    return relay


def certificate_expired(bench: Bench) -> Relay:
    ca = Identity.self_signed("our CA")
    return _tls(bench, ca.issue("localhost", "localhost", days=-2), ca)


def certificate_for_another_name(bench: Bench) -> Relay:
    ca = Identity.self_signed("our CA")
    return _tls(bench, ca.issue("elsewhere.example", "elsewhere.example"), ca)


def chain_incomplete(bench: Bench) -> Relay:
    """The server sends only its own certificate; the issuer of that certificate is not the CA that the relay trusts."""
    between = Identity.self_signed("intermediate")
    return _tls(bench, between.issue("localhost", "localhost"), Identity.self_signed("our CA"))


# -- the environment -------------------------------------------------------------------------------------------------


def untrusted_proxy(bench: Bench) -> Relay:
    relay, platform = bench.ready(RELAY_RATE_LIMIT_PER_IP="3")
    for n in range(9):
        token = platform.token("client", f"acme-{n}")
        forwarded: dict[str, str | None] = {"X-Forwarded-For": f"203.0.113.{n}"}
        relay.upgrade("client", f"acme-{n}", token, headers=forwarded).close()
    return relay


def origin(bench: Bench) -> Relay:
    relay, platform = bench.ready(RELAY_ALLOWED_ORIGINS="https://app.example")
    for n in range(3):
        token = platform.token("client", f"acme-{n}")
        headers: dict[str, str | None] = {"Origin": "https://new-app.example"}
        relay.upgrade("client", f"acme-{n}", token, headers=headers).close()
    return relay


def redis_refuses(bench: Bench) -> Relay:
    """The Redis user may connect and ping, but not use the commands of the bus."""
    redis = bench.redis()
    redis.ask(
        "ACL", "SETUSER", "relay", "on", ">redis-password-of-the-relay", "~*", "+ping", "+select", "+client"
    )
    platform = bench.platform()
    url = redis.url.replace("redis://", "redis://relay:redis-password-of-the-relay@")
    relay = bench.relay(
        platform, RELAY_BACKPLANE_MODE="redis", RELAY_REDIS_URL=url, RELAY_BUS_HMAC_KEY="a-bus-key-of-the-fleet-0123",
        RELAY_PUBLIC_WS_BASE_URL="wss://relay.example/ws",
    ).ready()  # fmt: skip
    daemon = relay.upgrade("workspace-daemon", "acme", platform.token("workspace-daemon", "acme"))
    relay.kept.append(daemon)  # the relay cannot announce its presence
    return relay


def descriptors(bench: Bench) -> Relay:
    """Idle connections take nearly all descriptors."""
    platform = bench.platform()
    relay = bench.start(
        {**platform.settings(), "RELAY_MODE": "staging", "RELAY_MAX_CONNECTIONS_PER_IP": "0"}, nofile=80
    )
    relay.ready()
    peers = []
    for n in range(60):
        token = platform.token("client", f"acme-{n}")
        try:
            peers.append(relay.upgrade("client", f"acme-{n}", token, source=f"127.8.1.{n + 1}"))
        except (OSError, AssertionError):
            break
    for peer in peers:
        if not peer.admitted:
            peer.close()
    relay.kept += peers
    return relay


# -- peers -----------------------------------------------------------------------------------------------------------


def frame_too_large(bench: Bench) -> Relay:
    relay, platform = bench.ready(RELAY_FRAME_MAX_BYTES="4096")
    for n in range(3):
        with relay.upgrade("client", "acme", platform.token("client", "acme", clientId=f"c-{n}")) as peer:
            peer.announce(5000)
            peer.closed_with()
    return relay


def twin_daemons(bench: Bench) -> Relay:
    """Two machines claim one target; the second reconnects each time the relay closes it."""
    relay, platform = bench.ready()
    first = relay.upgrade(
        "workspace-daemon", "acme", platform.token("workspace-daemon", "acme"), source="127.8.2.1"
    )
    relay.kept.append(first)
    for _ in range(2):
        with relay.upgrade(
            "workspace-daemon", "acme", platform.token("workspace-daemon", "acme"), source="127.8.2.2"
        ) as twin:
            while first.frame()[0] != 9:  # the relay pings the first daemon before it decides
                pass
            first.send(b"", 10)
            assert twin.closed_with() == (4008, "daemon already connected")
    return relay


def flapping(bench: Bench) -> Relay:
    relay, platform = bench.ready()
    for _ in range(12):
        relay.upgrade("workspace-daemon", "acme", platform.token("workspace-daemon", "acme")).close()
        time.sleep(0.05)
    return relay


# -- the process -----------------------------------------------------------------------------------------------------


def worker_restarts(bench: Bench) -> Relay:
    relay, _ = bench.ready(RELAY_WORKERS="2")

    def workers() -> list[int]:
        started = [e for e in relay.lines() if e["event"] == "worker_started"]
        return [entry["details"]["pid"] for entry in started]

    for n in range(2, 4):
        until(lambda n=n: len(workers()) >= n, what="the workers", seconds=40)  # type: ignore[misc]
        os.kill(workers()[-1], signal.SIGKILL)
    return relay


@frozen
class Fault:
    """A fault. The first problem on the screen must have `code`; the screen must contain `words`."""

    plant: Callable[[Bench], Relay]
    code: str
    words: tuple[str, ...] = ()


FAULTS: dict[str, Fault] = {
    "internal key wrong": Fault(internal_key, "INTERNAL_KEY_MISMATCH", ("RELAY_INTERNAL_KEY",)),
    "platform down": Fault(platform_down, "JWKS_UNREACHABLE", ("refused", "/keys")),
    "platform slow": Fault(platform_slow, "PLATFORM_UNREACHABLE", ("time out", "/validate", "no whole answer within")),
    "tokens expired": Fault(expired, "JWT_EXPIRED", ("s ago",)),
    "relay clock wrong": Fault(relay_clock_wrong, "JWT_EXPIRED", ("clock",)),
    "wrong issuer": Fault(wrong_issuer, "JWT_ISSUER_MISMATCH", ("https://platform.example", "RELAY_TOKEN_ISSUER")),
    "wrong audience": Fault(wrong_audience, "JWT_AUDIENCE_MISMATCH", ("viewport-relay", "RELAY_TOKEN_AUDIENCE")),
    "keys of another platform": Fault(
        keys_of_another_platform, "JWT_SIGNATURE_MISMATCH", ("other-platform", "RELAY_JWKS_URL")
    ),
    "workspace unknown": Fault(workspace_unknown, "WORKSPACE_NOT_FOUND", ("deleted-2",)),
    "dns fails": Fault(dns, "JWKS_UNREACHABLE", ("platform.invalid",)),
    "certificate expired": Fault(certificate_expired, "JWKS_UNREACHABLE", ("TLS", "expired")),
    "certificate for another name": Fault(certificate_for_another_name, "JWKS_UNREACHABLE", ("TLS", "another name")),
    "chain incomplete": Fault(chain_incomplete, "JWKS_UNREACHABLE", ("TLS", "chain")),
    "untrusted proxy": Fault(
        untrusted_proxy, "RATE_LIMIT_EXCEEDED",
        ("RELAY_TRUSTED_PROXIES", "9 attempts within 1 s, RELAY_RATE_LIMIT_PER_IP=3 (default 120) a minute"),
    ),
    "origin not allowed": Fault(origin, "ORIGIN_NOT_ALLOWED", ("https://new-app.example", "RELAY_ALLOWED_ORIGINS")),
    "redis refuses commands": Fault(redis_refuses, "BACKPLANE_REFUSED", ("ACL of the relay",)),
    "descriptors used up": Fault(descriptors, "TOO_MANY_CONNECTIONS", ("open files",)),
    "frames too large": Fault(frame_too_large, "FRAME_TOO_LARGE", ("RELAY_FRAME_MAX_BYTES",)),
    "twin daemons": Fault(twin_daemons, "DAEMON_ALREADY_CONNECTED", ("two machines", "held by the daemon", "127.8.2.1")),
    "daemon flaps": Fault(flapping, "PEER_FLAPPING", ("joined and left within",)),
    "worker restarts": Fault(worker_restarts, "worker_lost", ("signal 9",)),
}  # fmt: skip
