"""`viewport-relay serve`: `twistd -n viewport-relay` with its own version and error text."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.drill.relay import ROOT, until
from viewport_relay import __version__

SERVE = [sys.executable, "-m", "viewport_relay.cli.main", "serve"]
ENVIRON = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("RELAY_") and name != "SERVER_URL"
} | {"PYTHONPATH": str(ROOT)}


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SERVE, *options], capture_output=True, text=True, timeout=60, env=ENVIRON)


def test_version() -> None:
    assert run("--version").stdout == f"viewport-relay, version {__version__}\n"


def test_help_lists_options_and_settings() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert done.stdout.startswith(
        "Usage: viewport-relay serve [options], or twistd -n viewport-relay [options]\n"
    )
    assert "the relay's version" in done.stdout and "Twisted version" not in done.stdout
    assert "--listen-port=" in done.stdout and "RELAY_JWKS_URL" in done.stdout


def test_a_port_that_is_none_is_named() -> None:
    ended = run("--dev", "--dev-port=99999")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "option --dev-port: got '99999', takes a whole number from 0 to 65535" in ended.stderr


def test_an_unknown_option_is_named() -> None:
    done = run("--lisen-port", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "option --lisen-port not recognized" in done.stderr


def test_invalid_settings_end_the_command() -> None:
    done = run("--listen-port", "0")
    assert done.returncode == 78
    assert "RELAY_JWKS_URL" in done.stderr


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-"])
def test_serves_with_closed_standard_streams(free_port: int, closed: str) -> None:
    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/health", timeout=15) as answer:
                return bool(json.load(answer)["ok"])
        except OSError:
            return False

    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *SERVE, "--dev", "--listen-port", str(free_port)]
    with subprocess.Popen(command, env=ENVIRON) as relay:
        try:
            until(answers, 30, "the start")
            streams = {os.readlink(f"/proc/{relay.pid}/fd/{number}") for number in range(3)}
            assert os.devnull in streams and not any(name.startswith(("socket", "anon")) for name in streams)
        finally:
            relay.terminate()
        assert relay.wait(15) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_a_signal(free_port: int, number: signal.Signals) -> None:
    command = [*SERVE, "--dev", "--listen-port", str(free_port)]
    with subprocess.Popen(
        command, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as relay:
        try:
            assert relay.stdout is not None
            until(lambda: "relay_started" in relay.stdout.readline(), 30, "the start")
            with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/health", timeout=15) as answer:
                assert json.load(answer)["ok"] is True
        finally:
            relay.send_signal(number)
        assert relay.wait(15) == 0
