"""Round trips of 49 clients of a daemon while a 50th floods it or stops reading, and the relay's memory.

    python benchmarks/fairness.py [--seconds 8] [--daemon-mb-per-s 20]

Starts a relay with its dev platform, a daemon that reads at the given rate, 49 clients that each send a small frame
ten times a second and wait for its echo, and then the 50th. Prints one JSON object: round trips in milliseconds,
memory in MiB. Linux only (/proc). The peers are Python processes; the run without the 50th shows their share of a
round trip.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from fairpeers import WORKSPACE, Quiet, daemon, deaf, flooder

ROOT = Path(__file__).resolve().parents[1]
QUIET = 49
CREDENTIAL = secrets.token_hex(16)


def start_relay() -> tuple[subprocess.Popen[bytes], int, str]:
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    rates = (
        "RATE_LIMIT_PER_IP MAX_CONNECTIONS_PER_IP KEX_INIT_RATE_PER_MINUTE RUNTIME_RATE_PER_MINUTE "
        "RUNTIME_RATE_PER_MINUTE_WORKSPACE DAEMON_RUNTIME_RATE_PER_MINUTE"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    environ |= {f"RELAY_{name}": "0" for name in rates.split()}
    environ |= {"RELAY_LISTEN_PORT": str(ports[0]), "DEV_CREDENTIAL": CREDENTIAL, "PYTHONPATH": str(ROOT)}
    environ |= {"RELAY_DRAIN_SECONDS": "1"}
    run = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile="]
    relay = subprocess.Popen(
        [*run, "viewport-relay", "--dev", "--dev-port", str(ports[1])], env=environ, stdout=subprocess.DEVNULL
    )
    platform_url = f"http://127.0.0.1:{ports[1]}"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/ready", timeout=2) as reply:
                if reply.status == 200:
                    return relay, ports[0], platform_url
        except OSError:
            time.sleep(0.05)
    relay.kill()
    raise SystemExit("the relay does not come up")


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        answered: dict[str, Any] = json.loads(reply.read())
        return answered


def client_token(platform_url: str, name: str) -> str:
    body = {
        "role": "client",
        "workspaceId": WORKSPACE,
        "credential": CREDENTIAL,
        "clientId": name,
        "scope": "runtime",
    }
    token: str = post(f"{platform_url}/api/runtime/relay-token", body)["relayToken"]
    return token


def daemon_token(platform_url: str) -> str:
    key = post(f"{platform_url}/api/runtime/workspaces/{WORKSPACE}/daemon-key", {"credential": CREDENTIAL})
    body = {"role": "workspace-daemon", "workspaceId": WORKSPACE, "credential": key["daemonIssueToken"]}
    token: str = post(f"{platform_url}/api/runtime/relay-token", body)["relayToken"]
    return token


def memory(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of each of the three runs")
    parser.add_argument("--daemon-mb-per-s", type=float, default=20.0)
    options = parser.parse_args()
    relay, port, platform_url = start_relay()
    to_slow, go, ready = (multiprocessing.Event() for _ in range(3))
    peers: list[multiprocessing.Process] = []

    def begin(work: Any, *arguments: Any) -> None:
        peers.append(multiprocessing.Process(target=work, args=(port, *arguments), daemon=True))
        peers[-1].start()

    try:
        begin(daemon, daemon_token(platform_url), options.daemon_mb_per_s * 1e6, to_slow)
        time.sleep(0.5)
        quiet = Quiet(port, [client_token(platform_url, f"quiet-{n}") for n in range(QUIET)])
        quiet.measure(1.0)
        before = memory(relay.pid)
        alone = quiet.measure(options.seconds)

        begin(deaf, client_token(platform_url, "deaf"), ready)
        assert ready.wait(20)
        to_slow.set()
        with_deaf = {**quiet.measure(options.seconds), "relay_rss_mib": memory(relay.pid)}
        to_slow.clear()
        peers[-1].terminate()
        time.sleep(0.5)

        begin(flooder, client_token(platform_url, "flooder"), go)
        time.sleep(0.5)
        go.set()
        time.sleep(1.0)
        with_flood = {**quiet.measure(options.seconds), "relay_rss_mib": memory(relay.pid)}
    finally:
        for peer in peers:
            peer.kill()
        relay.send_signal(signal.SIGTERM)
        relay.wait(15)
    result = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "daemon_mb_per_s": options.daemon_mb_per_s,
        "clients": QUIET,
        "relay_rss_mib_before": before,
        "alone": alone,
        "one_stops_reading": with_deaf,
        "one_floods": with_flood,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
