"""Format of standard output: text on a terminal, JSON otherwise, unless a setting selects the format."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.drill.platform import FaultyPlatform
from tests.drill.relay import ROOT, Relay

RELAY = [
    sys.executable,
    "-c",
    "from twisted.scripts.twistd import run; run()",
    "-n",
    "--pidfile=",
    "viewport-relay",
]
WORDS = re.compile(r"\d{4}-\d\d-\d\dT\S+Z INFO +relay_started listening on 127\.0\.0\.1:\d+ ")


def started_on_a_terminal(environ: dict[str, str]) -> str:
    """The line of a relay's start, read from a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        RELAY,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "RELAY_LISTEN_PORT": "0", **environ},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        seen = b""
        while b"relay_started" not in seen or not seen.endswith(b"\n"):
            seen += os.read(ours, 65_536)
        return next(line for line in seen.decode().splitlines() if "relay_started" in line)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_text_on_a_terminal(platform: FaultyPlatform) -> None:
    """A first try of the relay."""
    assert WORDS.match(started_on_a_terminal(platform.environment()))


def test_json_on_a_terminal_by_setting(platform: FaultyPlatform) -> None:
    """docker run -t, with the output collected by a log shipper."""
    line = started_on_a_terminal(platform.environment() | {"RELAY_LOG_FORMAT": "json"})
    assert json.loads(line)["event"] == "relay_started"


@pytest.mark.parametrize(("log_format", "words"), [("auto", False), ("json", False), ("text", True)])
def test_json_in_a_file_and_text_by_setting(
    log_format: str, words: bool, platform: FaultyPlatform, tmp_path: Path
) -> None:
    """A log shipper that reads standard output."""
    file = tmp_path / "log"
    with Relay(platform.environment() | {"RELAY_LOG_FORMAT": log_format}, stdout=str(file)) as relay:
        relay.wait()
        assert relay.stop() == 0
    (line,) = (line for line in file.read_text().splitlines() if "relay_started" in line)
    if words:
        assert WORDS.match(line)
    else:
        assert json.loads(line)["level"] == "info"
