"""The command in pipes and scripts: `… | head`, exit statuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.drill.platform import FaultyPlatform
from tests.drill.relay import ROOT
from viewport_relay.cli.platformchecks import PROBE_QUERY

COMMAND = [sys.executable, "-m", "viewport_relay.cli.main"]
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]

#: (command line, arguments)
PIPED = [
    ("doctor | head -1", [*COMMAND, "doctor", "--timeout", "1"]),
    ("doctor --json | head -1", [*COMMAND, "doctor", "--json", "--timeout", "1"]),
    ("explain | head -1", [*COMMAND, "explain"]),
    ("config --all | head -1", [*COMMAND, "config", "--all"]),
    ("demo --once | head -1", [*COMMAND, "demo", "--once", "--turns", "5"]),
    ("twistd viewport-relay --help | head -1", [*TWISTD, "-n", "viewport-relay", "--help"]),
]


@pytest.mark.parametrize(("where", "command"), PIPED, ids=[case[0] for case in PIPED])
def test_a_closed_pipe_ends_the_output_without_a_traceback(where: str, command: list[str]) -> None:
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


FULL = {
    **{where.removesuffix(" | head -1"): command for where, command in PIPED},
    "--help": [*COMMAND, "--help"],
    "--version": [*COMMAND, "--version"],
    "serve --help": [*COMMAND, "serve", "--help"],
    "explain --help": [*COMMAND, "explain", "--help"],
    "keygen": [*COMMAND, "keygen"],
    "token --help": [*COMMAND, "token", "--help"],
    "twistd viewport-relay --version": [*TWISTD, "-n", "viewport-relay", "--version"],
    "devplatform": [sys.executable, "-m", "viewport_relay.devplatform"],
    "devplatform --help": [sys.executable, "-m", "viewport_relay.devplatform", "--help"],
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("where", FULL)
def test_output_on_a_full_disk_is_one_line_and_a_status(where: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            FULL[where],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "SERVER_URL": "http://127.0.0.1:9"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "viewport-relay: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize(
    "command", ["doctor --timeout 1", "explain JWT_EXPIRED", "config", "token inspect x.y.z"]
)
@pytest.mark.parametrize("stdout", ["latin-1", "closed"])
def test_output_that_cannot_take_every_character(tmp_path: Path, command: str, stdout: str) -> None:
    """Servers with LC_ALL=de_DE.ISO-8859-1, and cron jobs with `>&-`."""
    (tmp_path / "x.y.z").write_text("x.y.z")
    line = f"exec {' '.join(COMMAND)} {command}" + (" >&-" if stdout == "closed" else "")
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "SERVER_URL": "http://127.0.0.1:9",
             "PYTHONIOENCODING": "latin-1"},
        cwd=tmp_path, capture_output=True, encoding="latin-1", timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "Error" not in done.stderr
    if command.startswith("doctor") and stdout == "latin-1":
        assert done.stdout.startswith("\\u2713 settings: ")


def doctor(environ: dict[str, str]) -> int:
    return subprocess.run(
        [*COMMAND, "doctor", "--timeout", "2"],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        timeout=60,
        check=False,
    ).returncode


def test_doctors_status_distinguishes_bad_settings_from_unreachable_services(
    platform: FaultyPlatform,
) -> None:
    """For deployment scripts: retry a temporary failure, stop at a permanent one."""
    good = platform.environment() | {"RELAY_LISTEN_PORT": "0"}
    assert doctor({**good, "RELAY_MODE": "nonsense"}) == 78
    assert doctor({"SERVER_URL": "http://127.0.0.1:9", "RELAY_LISTEN_PORT": "0"}) == 1


def test_the_workspace_of_the_doctors_request_is_documented() -> None:
    """For the platform's operator, whose log has a request for an unknown workspace."""
    said = subprocess.run(
        [*COMMAND, "doctor", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    ).stdout
    assert PROBE_QUERY.workspace_id in said
