"""docs/how-to/systemd.md on a fresh Debian whose systemd is started in namespaces: every command of the page, as it is written.

The machine has a network of its own after the installation. SYSTEMD_ROOT names the root folder of another release with PACKAGES in it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.image.base import carried, make_debian
from tests.integration.image.namespaces import Place, why_not
from tests.pages import ROOT, blocks

PAGE = "docs/how-to/systemd.md"
KEY = "internal-key-of-the-systemd-page-0123456789"
PLATFORM = "http://127.0.0.1:7790"
PACKAGES = ["systemd", "systemd-sysv", "dbus", "ca-certificates", "python3-venv", "openssl", "curl"]

pytestmark = [pytest.mark.image, pytest.mark.nspawn]

#: What the machine does once it has started. Each step's output goes to a file of its own.
STEPS = """
set -x
cd /root/release
/opt/viewport-relay/bin/python -m viewport_relay.devplatform --port 7790 & until curl -sf {platform}/api/.well-known/jwks.json >/dev/null; do sleep 0.1; done
{{ {start}
}} >/root/started 2>&1; echo $? >/root/status
curl -s http://127.0.0.1:7781/ready >/root/ready
viewport-relay demo --relay ws://127.0.0.1:7781 --platform {platform} >/root/demo 2>&1
systemctl show -p MainPID viewport-relay >/root/before; echo RELAY_RATE_LIMIT_PER_IP=121 >>/etc/viewport-relay/env; systemctl reload viewport-relay; sleep 1
systemctl show -p MainPID viewport-relay >/root/after
systemctl restart viewport-relay & sleep 0.05; curl -s http://127.0.0.1:7781/health >/root/during; wait %2
journalctl -u viewport-relay -o cat >/root/log
systemd-analyze verify viewport-relay.service viewport-relay.socket viewport-relay-doctor.service >/root/verified 2>&1
systemctl stop viewport-relay.socket viewport-relay; systemctl is-failed viewport-relay >/root/stopped
touch /root/done
"""


class Machine:
    """A root folder, and what ran in it."""

    def __init__(self, place: Place, release: Path) -> None:
        """`release` is the folder of a release, which the machine sees as /root/release."""
        self._place = place
        self._release = release
        self._root = place.folder / "root"
        self.root = place.outside(self._root)
        given = os.environ.get("SYSTEMD_ROOT")
        if given:
            place.run("cp", "-a", given, self._root)
        else:
            make_debian(place, self._root, PACKAGES)

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        return self.path(f"/root/{name}").read_text("utf-8")

    def nspawn(self, *words: str | Path, seconds: float) -> str:
        """Run a command, or with --boot the machine, which ends when its own script has ended."""
        return self._place.run(
            "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "--machine=systemd-page",
            f"--bind={self._release}:/root/release", "-D", self._root, *words, seconds=seconds,
        ).stdout  # fmt: skip

    def install(self, commands: str) -> None:
        """Carry out the page's first block in the folder of a release."""
        brought = carried()
        options = [f"--setenv={name}={value}" for name, value in brought.environment.items()]
        options += [
            f"--bind-ro={file}:{inside}"
            for inside, file in brought.files.items()
            if inside.startswith("/run/")
        ]
        options += [f"--bind-ro={folder}" for folder in brought.folders]
        self.nspawn(
            *options, "--chdir=/root/release", "bash", "-euo", "pipefail", "-c", commands, seconds=240,
        )  # fmt: skip

    def boot(self, commands: str) -> None:
        """Start systemd and carry out STEPS."""
        script = self.path("/root/steps.sh")
        script.write_text(STEPS.format(platform=PLATFORM, start=commands))
        unit = self.path("/etc/systemd/system/steps.service")
        unit.write_text(
            "[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nTimeoutStartSec=90\n"
            f"Environment=RELAY_INTERNAL_KEY={KEY}\nEnvironment=DEV_CREDENTIAL=credential-0123456789abcdef\n"
            "ExecStart=/bin/bash /root/steps.sh\nExecStopPost=/bin/systemctl poweroff --no-block\n"
            "StandardError=file:/root/trace\n"
        )
        wants = self.path("/etc/systemd/system/default.target.wants")
        wants.mkdir(exist_ok=True)
        (wants / "steps.service").symlink_to("../steps.service")
        self.nspawn("--private-network", "--boot", seconds=150)
        assert self.path("/root/done").exists(), self.text("trace")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source, and its wheel in dist/."""
    folder = tmp_path_factory.mktemp("release") / "source"
    ignore = shutil.ignore_patterns(
        ".*", "__pycache__", "build", "dist", "node_modules", "tests", "benchmarks"
    )
    shutil.copytree(ROOT, folder, ignore=ignore)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*wheel, "-w", folder / "dist", folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def machine(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if reason := why_not():
        pytest.skip(reason)
    install, settings, start = (block.text for block in blocks(PAGE, "sh"))
    with Place(tmp_path_factory.mktemp("systemd-page")) as place:
        made = Machine(place, release)
        made.install(install)
        made.path("/etc/viewport-relay/internal-key").write_text(KEY)
        env = settings.replace("https://platform.example", PLATFORM)
        assert env != settings
        made.path("/etc/viewport-relay/env").write_text(env)
        made.boot(start)
        yield made


def test_the_page_works_as_it_is_written(machine: Machine) -> None:
    started = machine.text("started")
    assert machine.text("status") == "0\n", started
    assert "✗" not in started and "✓" in started, "the doctor's findings"
    assert started.endswith("healthy: 127.0.0.1:7781 answers\n")
    assert json.loads(machine.text("ready"))["ok"] is True
    assert "EXCHANGE OK" in machine.text("demo")


def test_a_reload_keeps_the_process_and_a_restart_the_connections(machine: Machine) -> None:
    assert machine.text("before") == machine.text("after") != "MainPID=0\n"
    assert json.loads(machine.text("during"))["ok"] is True


def test_the_log_is_what_the_relay_wrote(machine: Machine) -> None:
    entries = [json.loads(line) for line in machine.text("log").splitlines() if line.startswith("{")]
    events = [entry["event"] for entry in entries]
    assert {"relay_started", "jwks_fetched", "join", "reload", "relay_stopped"} <= set(events)
    [reload] = [entry for entry in entries if entry["event"] == "reload"]
    assert "RELAY_RATE_LIMIT_PER_IP" in json.dumps(reload)
    assert not [entry for entry in entries if entry["level"] == "error"]
    secrets = KEY, machine.path("/etc/viewport-relay/admin-token").read_text().strip()
    assert not [secret for secret in secrets if secret in machine.text("log") + machine.text("started")]


def test_systemd_has_no_doubts_about_the_units(machine: Machine) -> None:
    about = [line for line in machine.text("verified").splitlines() if "viewport-relay" in line]
    assert about == []
    assert machine.text("stopped") == "inactive\n"
