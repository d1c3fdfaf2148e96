"""`viewport-relay demo`: with its own relay, and with a relay that runs already."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue

import pytest

ROOT = Path(__file__).parents[2]
LAST_LINE = re.compile(r"EXCHANGE OK (\d+) messages, [\d.]+ MB, median round trip [\d.]+ ms")


def environ(**more: str) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        **more,
    }


class Demo:
    """The command as a process; `wait` for lines of its output."""

    def __init__(self, *arguments: str, **more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "viewport_relay.cli.main", "demo", *arguments],
            env=environ(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: Queue[str] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def wait_for(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        seen = []
        while True:
            try:
                seen.append(self._lines.get(timeout=seconds))
            except Empty:
                raise AssertionError(f"no line {pattern!r} in\n" + "\n".join(seen)) from None
            if match := re.search(pattern, seen[-1]):
                return match

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def test_the_fewest_messages_give_the_keys_time_to_be_renewed() -> None:
    command = [sys.executable, "-m", "viewport_relay.cli.main", "demo", "--once", "--turns"]
    fewest = subprocess.run([*command, "5"], env=environ(), capture_output=True, text=True, timeout=60)
    assert fewest.returncode == 0 and LAST_LINE.match(fewest.stdout.splitlines()[-1])
    fewer = subprocess.run([*command, "4"], env=environ(), capture_output=True, text=True, timeout=60)
    assert fewer.returncode == 2 and "5<=x<=230" in fewer.stderr


@pytest.fixture
def serving() -> Iterator[Demo]:
    demo = Demo("--port", "0", "--turns", "20")
    yield demo
    demo.end()


def test_demo_once_ends_after_the_exchange_whatever_the_environment() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "viewport_relay.cli.main", "demo", "--once"],
        env=environ(RELAY_MODE="prod", RELAY_LISTEN_PORT="x"),  # settings of another relay have no effect
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    match = LAST_LINE.fullmatch(last)
    assert match, last
    assert int(match[1]) >= 400
    assert sum(line.startswith("EXCHANGE OK") for line in done.stdout.splitlines()) == 1
    refusal = [line for line in done.stdout.splitlines() if "in the relay's log: " in line]
    assert json.loads(refusal[0].partition("log: ")[2])["reason"] == "NOISE_INVALID_PSK"


def test_a_second_demo_uses_the_relay_of_the_first(serving: Demo) -> None:
    about = serving.wait_for(r"explained: curl -H '([^']+)' '([^']+)'")
    explained = subprocess.run(
        ["curl", "-sf", "-H", about[1], about[2]], capture_output=True, text=True, timeout=20, check=True
    ).stdout
    assert "NOISE_INVALID_PSK" in explained
    serving.wait_for("EXCHANGE OK")
    relay = serving.wait_for(r"peers +(ws://127\.0\.0\.1:\d+)/ws")[1]
    log = serving.wait_for(r"log +curl -H 'Authorization: Bearer ([^']+)' (http://\S+)/logs")
    platform = serving.wait_for(r"platform +(http://\S+) \(development only; credential ([^)]+)\)")
    other = Demo("--relay", relay, "--platform", platform[1], "--turns", "5", DEV_CREDENTIAL=platform[2])
    try:
        other.wait_for("EXCHANGE OK")
        assert other.process.wait(30) == 0
    finally:
        other.end()
    shown = subprocess.run(
        ["curl", "-sf", "-H", f"Authorization: Bearer {log[1]}", f"{log[2]}/logs"],
        capture_output=True, text=True, timeout=20, check=True,
    ).stdout  # fmt: skip
    assert '"event":"join"' in shown.replace(" ", "")
    assert platform[2] not in shown

    serving.process.send_signal(signal.SIGINT)
    serving.wait_for('"relay_stopped"')
    assert serving.process.wait(30) == 0


def _cookie_of(link: str) -> str:
    """The session cookie of a sign-in link, or an empty string; redirects are not followed."""
    head = subprocess.run(
        ["curl", "-si", link], capture_output=True, text=True, timeout=20, check=True
    ).stdout.lower()
    assert head.startswith("http/1.1 302") and "location: /admin/" in head
    found = re.search(r"^set-cookie: (relay_admin_\w+=[^;]+);", head, re.MULTILINE)
    return found[1] if found else ""


def test_its_link_signs_in_once(serving: Demo) -> None:
    link = serving.wait_for(r"page +(http://127\.0\.0\.1:\d+/admin/api/once\?key=\S+)")[1]
    origin = link.partition("/admin/")[0]
    cookie = _cookie_of(link)
    session = subprocess.run(
        ["curl", "-s", "-H", f"Cookie: {cookie}", f"{origin}/admin/api/session"],
        capture_output=True, text=True, timeout=20, check=True,
    ).stdout  # fmt: skip
    assert json.loads(session)["signedIn"] is True
    assert _cookie_of(link) == ""
    assert _cookie_of(f"{origin}/admin/api/once?key=guessed") == ""


def test_a_busy_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        demo = Demo("--port", str(port), "--turns", "5")
        try:
            other = demo.wait_for(rf"Port {port} was in use: this relay has (\d+)")[1]
            assert int(other) != port
        finally:
            demo.process.send_signal(signal.SIGTERM)
            demo.process.wait(30)


def test_an_unreachable_relay(free_port: int) -> None:
    url = f"127.0.0.1:{free_port}"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "viewport_relay.cli.main",
            "demo",
            "--relay",
            f"ws://{url}",
            "--platform",
            f"http://{url}",
        ],
        env=environ(DEV_CREDENTIAL="hunter2-hunter2"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("EXCHANGE FAILED ")
    assert url in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--relay", "ws://127.0.0.1:1"], "go together"),
        (["--relay", "ws://127.0.0.1:1", "--platform", "http://127.0.0.1:1"], "DEV_CREDENTIAL"),
        (
            ["--relay", "banana", "--platform", "http://127.0.0.1:1"],
            "'--relay': got 'banana': a URL that starts with ws:// or wss://",
        ),
        (
            ["--relay", "ws://h", "--platform", "ws://h"],
            "'--platform': got 'ws://h': a URL that starts with http:// or https://",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "viewport_relay.cli.main", "demo", *arguments],
        env={**environ(), "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
