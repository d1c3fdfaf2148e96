"""Refused upgrades per CPU-second of a relay process, and the cost of one refusal, by reason.

    python benchmarks/refusals.py [--upgrades 2000] [--rounds 3] [--checkout FOLDER]

A refusal by rate, count, path, query or missing token must cost no signature check and no request, that of a
malformed token no request to the platform: both are counted during the measurement. The client opens a connection for
each attempt and reads the whole response, as a flood does; only the relay's CPU time counts (user and system). Prints
JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen
from machine import machine, versions
from mint import mint
from relays import KINDS, Kind, Platform, build, checkout, running, running_platform

_FEW = "1000000"


@frozen
class Case:
    """One kind of refusal: the request, the expected response, and the settings of the relay."""

    request: bytes
    status: int
    code: str
    settings: Mapping[str, str]
    holds: int = 0  # connections that are open in the meantime


def upgrade(target: str, *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers)
    return (
        f"GET {target} HTTP/1.1\r\nHost: relay.example\r\nUser-Agent: viewport-daemon/1.4\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    ).encode()


def cases(tokens: Path) -> dict[str, Case]:
    """All cases; their tokens are altered tokens of the platform."""
    role, workspace, target, good = tokens.read_text().splitlines()[0].split("\t")[:4]
    ws = f"/ws?role={role}&workspaceId={workspace}&runtimeTargetId={target}"
    last = good[-6:-1]  # within the signature
    spoilt = good[:-6] + ("A" if last[0] != "A" else "B") + good[-5:]
    bearer = "Authorization: Bearer "
    return {
        "rate": Case(
            upgrade(ws, bearer + good), 429, "RATE_LIMIT_EXCEEDED", {"RELAY_RATE_LIMIT_PER_IP": "1"}
        ),
        "connections in all": Case(
            upgrade(ws, bearer + good), 503, "TOO_MANY_CONNECTIONS", {"RELAY_MAX_TOTAL_CONNECTIONS": "1"}, 1
        ),
        "connections of one address": Case(
            upgrade(ws, bearer + good),
            429,
            "TOO_MANY_CONNECTIONS_PER_IP",
            {"RELAY_MAX_CONNECTIONS_PER_IP": "1"},
            1,
        ),
        "path": Case(upgrade("/nowhere", bearer + good), 404, "NOT_FOUND", {}),
        "query": Case(upgrade("/ws?role=nobody", bearer + good), 400, "QUERY_INVALID", {}),
        "no token": Case(upgrade(ws), 401, "TOKEN_MISSING", {}),
        "garbage token": Case(upgrade(ws, bearer + "x" * len(good)), 401, "JWT_MALFORMED", {}),
        "unknown key": Case(upgrade(ws, bearer + _with_kid(good)), 401, "JWT_SIGNATURE_MISMATCH", {}),
        "bad signature": Case(upgrade(ws, bearer + spoilt), 401, "JWT_SIGNATURE_MISMATCH", {}),
    }


def _with_kid(token: str) -> str:
    """The same token, signed with a key that is not in the key set."""
    import base64

    header, rest = token.split(".", 1)
    said = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    text = json.dumps({**said, "kid": "nobody's"}).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode() + "." + rest


def on_cpu(pid: int) -> float:
    """CPU seconds of a process, with all its threads."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def ask(port: int, request: bytes) -> bytes:
    """One attempt, from the connect to the relay's close."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def counted(port: int, key: str) -> dict[str, float]:
    """The relay's own count of its outbound requests."""
    text = ask(
        port,
        f"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Relay-Admin-Token: {key}\r\n\r\n".encode(),
    )
    found = re.findall(r"(?m)^(relay_(?:validations|jwks_fetches)_total\{[^}]*\}) (\S+)", text.decode())
    return {name: float(value) for name, value in found}


def measure(kind: Kind, platform: Platform, case: Case, upgrades: int, rounds: int) -> dict[str, object]:
    with running(kind, platform, case.settings) as relay:
        good = upgrade_of(platform)
        held = []
        for _ in range(max(case.holds, "RELAY_RATE_LIMIT_PER_IP" in case.settings)):
            held.append(socket.create_connection(("127.0.0.1", relay.port), 10))
            held[-1].sendall(good)
            assert held[-1].recv(4096).startswith(b"HTTP/1.1 101 ")
        for _ in range(200):  # warm-up: imports, caches and folding on first use are not the cost of a flood
            answer = ask(relay.port, case.request)
        head = answer.partition(b"\r\n\r\n")[0]
        assert head.startswith(b"HTTP/1.1 %d " % case.status) and case.code.encode() in head, answer
        before = counted(relay.port, platform.internal_key)
        costs = []
        for _ in range(rounds):
            began = on_cpu(relay.pid)
            for _ in range(upgrades):
                ask(relay.port, case.request)
            costs.append((on_cpu(relay.pid) - began) / upgrades)
        after = counted(relay.port, platform.internal_key)
        for connection in held:
            connection.close()
    asked = sum(after.values()) - sum(before.values())
    cost = statistics.median(costs)
    return {
        "code": case.code,
        "refused_per_cpu_second": round(1 / cost),
        "microseconds": round(cost * 1e6, 1),
        "least_microseconds": round(min(costs) * 1e6, 1),
        "requests_to_others": int(asked),
    }


def upgrade_of(platform: Platform) -> bytes:
    """A valid upgrade with the platform's second token."""
    role, workspace, target, good = platform.tokens.read_text().splitlines()[1].split("\t")[:4]
    return upgrade(
        f"/ws?role={role}&workspaceId={workspace}&runtimeTargetId={target}", f"Authorization: Bearer {good}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--upgrades", type=int, default=2000, help="attempts a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds a case, of which the median counts")
    parser.add_argument("--checkout", help="measure the code in this folder instead")
    parser.add_argument("--only", help="one case")
    given = parser.parse_args()
    build()
    kind = checkout("other", given.checkout) if given.checkout else KINDS["relay"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mint(folder, 1, 0)
        with running_platform(folder) as platform:
            chosen = {n: c for n, c in cases(platform.tokens).items() if given.only in (None, n)}
            found = {n: measure(kind, platform, c, given.upgrades, given.rounds) for n, c in chosen.items()}
    about = {"upgrades": given.upgrades, "rounds": given.rounds, "machine": machine(), "versions": versions()}
    print(json.dumps({"refusals": found, **about}, indent=2))


if __name__ == "__main__":
    main()
