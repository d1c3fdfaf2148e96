"""The command in pipes and scripts: `… | head`, exit statuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.drill.platform import FaultyPlatform
from tests.drill.relay import ROOT
from viewport_relay.cli.platformchecks import PROBE_QUERY

COMMAND = [sys.executable, "-m", "viewport_relay.cli.main"]
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]

#: (where it is met, command)
PIPED = [
    ("doctor | head -1", [*COMMAND, "doctor", "--timeout", "1"]),
    ("doctor --json | head -1", [*COMMAND, "doctor", "--json", "--timeout", "1"]),
    ("explain | head -1", [*COMMAND, "explain"]),
    ("config --all | head -1", [*COMMAND, "config", "--all"]),
    ("demo --once | head -1", [*COMMAND, "demo", "--once", "--turns", "5"]),
    ("twistd viewport-relay --help | head -1", [*TWISTD, "-n", "viewport-relay", "--help"]),
]


@pytest.mark.parametrize(("where", "command"), PIPED, ids=[case[0] for case in PIPED])
def test_a_reader_that_goes_ends_the_output_without_a_traceback(where: str, command: list[str]) -> None:
    process = subprocess.Popen(
        command,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "SERVER_URL": "http://127.0.0.1:9"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait(60)
    assert "Traceback" not in errors and "Broken pipe" not in errors


def doctor(environ: dict[str, str]) -> int:
    return subprocess.run(
        [*COMMAND, "doctor", "--timeout", "2"],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        timeout=60,
        check=False,
    ).returncode


def test_doctor_tells_settings_that_cannot_work_from_what_cannot_be_reached(platform: FaultyPlatform) -> None:
    """A deployment script that retries what may pass and stops at what will not."""
    good = platform.environment() | {"RELAY_LISTEN_PORT": "0"}
    assert doctor({**good, "RELAY_MODE": "nonsense"}) == 78
    assert doctor({"SERVER_URL": "http://127.0.0.1:9", "RELAY_LISTEN_PORT": "0"}) == 1


def test_the_workspace_of_the_doctors_request_is_documented() -> None:
    """Met by the platform's operator, in whose log the request for a workspace that does not exist appears."""
    said = subprocess.run(
        [*COMMAND, "doctor", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    ).stdout
    assert PROBE_QUERY.workspace_id in said
