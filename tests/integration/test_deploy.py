"""Files for operators: systemd units checked by systemd, socket activation, the image's Dockerfile."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from viewport_relay.config import VARIABLES

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy"
MOST_EXPOSURE = 2.0


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with the program of this environment instead of an installation's."""
    for unit in ("viewport-relay.service", "viewport-relay.socket", "viewport-relay-doctor.service"):
        text = (UNITS / unit).read_text("utf-8")
        (tmp_path / unit).write_text(re.sub(r"/opt/viewport-relay/bin/[a-z-]+", sys.executable, text))
    return tmp_path


@pytest.mark.systemd
def test_units_are_well_formed(units: Path) -> None:
    done = run("systemd-analyze", "verify", *sorted(units.iterdir()))
    ours = [line for line in done.stderr.splitlines() if "viewport-relay" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.systemd
def test_the_unit_is_exposed_little(units: Path) -> None:
    done = run("systemd-analyze", "security", "--offline=true", units / "viewport-relay.service")
    match = re.search(r"Overall exposure level .*: ([0-9.]+)", done.stdout)
    assert match, done.stdout + done.stderr
    assert float(match[1]) < MOST_EXPOSURE


def test_the_service_takes_its_secrets_as_credentials() -> None:
    text = (UNITS / "viewport-relay.service").read_text("utf-8")
    for name in re.findall(r"LoadCredential=([a-z-]+):", text):
        assert re.search(rf"^Environment=RELAY_[A-Z_]+_FILE=%d/{name}$", text, re.MULTILINE), name
    assert not re.search(r"^Environment=RELAY_(INTERNAL_KEY|ADMIN_TOKEN)=", text, re.MULTILINE)


def lines_of(unit: str, *names: str) -> list[str]:
    """Lines of a unit that set one of `names`."""
    return [
        line for line in (UNITS / unit).read_text("utf-8").splitlines() if line.partition("=")[0] in names
    ]


def test_the_doctors_unit_has_the_relays_settings_user_and_credentials() -> None:
    names = ("Environment", "LoadCredential", "DynamicUser", "User", "StateDirectory", "LimitNOFILE")
    relay = [line for line in lines_of("viewport-relay.service", *names) if "PYTHON" not in line]
    assert lines_of("viewport-relay-doctor.service", *names) == relay


def test_the_socket_listens_where_the_relay_does_by_default() -> None:
    by_attribute = {variable.attribute: variable.default for variable in VARIABLES}
    (listen,) = lines_of("viewport-relay.socket", "ListenStream")
    assert listen == f"ListenStream={by_attribute['listen_host']}:{by_attribute['listen_port']}"


def test_programs_and_pages_of_the_units_are_those_that_an_installation_has() -> None:
    scripts = {"/opt/viewport-relay/bin/twistd", "/opt/viewport-relay/bin/viewport-relay"}
    for unit in ("viewport-relay.service", "viewport-relay-doctor.service"):
        (start,) = lines_of(unit, "ExecStart")
        assert start.partition("=")[2].split()[0] in scripts
        (page,) = lines_of(unit, "Documentation")
        shipped = page.removeprefix("Documentation=file:///opt/viewport-relay/share/doc/viewport-relay/")
        assert (ROOT / shipped).is_file()


@pytest.fixture
def activated(free_port: int) -> Iterator[int]:
    """A relay with a listening socket passed as systemd passes it; returns its port."""
    text = (UNITS / "viewport-relay.service").read_text("utf-8")
    (endpoint,) = re.findall(r"^Environment=(RELAY_LISTEN_ENDPOINT=.*)$", text, re.MULTILINE)
    command = [
        "systemd-socket-activate",
        "--fdname=viewport-relay.socket",
        f"--listen=127.0.0.1:{free_port}",
        f"--setenv={endpoint}",
        "--setenv=RELAY_MODE=dev",
        "--setenv=RELAY_JWKS_URL=http://127.0.0.1:9/jwks",
        "--setenv=RELAY_VALIDATE_URL=http://127.0.0.1:9/validate",
        f"--setenv=PYTHONPATH={ROOT}",
        sys.executable,
        "-c",
        "from twisted.scripts.twistd import run; run()",
        "-n",
        "--pidfile=",
        "viewport-relay",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield free_port
    process.terminate()
    assert process.wait(15) == 0


@pytest.mark.systemd
def test_socket_activation(activated: int) -> None:
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("needs systemd-socket-activate: apt-get install systemd")
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{activated}/health", timeout=15) as answer:
                assert json.load(answer)["service"] == "relay"
                return
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < deadline
            time.sleep(0.05)


# -- the image ---------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of each instruction of the Dockerfile, continuation lines joined."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\\n\s*", " ", text)
    found = []
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word:
            found.append((word, rest.strip()))
    return found


def test_the_sources_of_copy_exist_and_are_not_ignored() -> None:
    ignore = (ROOT / ".dockerignore").read_text("utf-8").split()
    for word, rest in instructions():
        if word != "COPY" or rest.startswith("--from"):
            continue
        *sources, _ = rest.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            ignored = False
            for pattern in ignore:
                if fnmatch.fnmatch(source, pattern.lstrip("!")):
                    ignored = not pattern.startswith("!")
            assert not ignored, source


def test_the_image_is_what_operators_expect() -> None:
    by_word: dict[str, list[str]] = {}
    for word, rest in instructions():
        by_word.setdefault(word, []).append(rest)
    assert by_word["EXPOSE"] == ["7781"]
    assert by_word["STOPSIGNAL"] == ["SIGTERM"]
    assert by_word["USER"] == ["10001:10001"]
    assert json.loads(by_word["CMD"][-1]) == ["twistd", "-n", "--pidfile=", "viewport-relay"]
    assert "RELAY_LISTEN_HOST=0.0.0.0" in by_word["ENV"][-1]
    assert len(by_word["FROM"]) == 2
    assert any("curl" in rest for rest in by_word["RUN"])
    assert by_word["HEALTHCHECK"][0].endswith('CMD ["viewport-relay", "healthcheck"]')
    assert not [
        rest
        for rest in by_word["RUN"]
        if "pip install" in rest and "--require-hashes" not in rest and ".whl" not in rest
    ]


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock", "requirements-build.lock"])
def test_locks_have_hashes_and_no_addresses(lock: str) -> None:
    text = (ROOT / lock).read_text("utf-8")
    requirements = re.split(r"\n(?=[a-z0-9])", text)[1:]
    assert requirements
    for requirement in requirements:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==[^ ]+", requirement), requirement
        assert "--hash=sha256:" in requirement
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_the_lock_fits_setup_cfg() -> None:
    """Every direct dependency is locked, at a version that setup.cfg allows."""
    locked = dict(
        re.findall(
            r"^([a-z0-9._-]+)==([0-9.]+)", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE
        )
    )
    section = (ROOT / "setup.cfg").read_text("utf-8").partition("install_requires =")[2].partition("\n\n")[0]
    wanted = re.findall(r"^ +([A-Za-z0-9._-]+)(?:\[[a-z]+\])?>=([0-9.]+)$", section, re.MULTILINE)
    assert len(wanted) == len(section.strip().splitlines())
    for name, least in wanted:
        version = locked[re.sub(r"[._-]+", "-", name).lower()]
        assert [int(n) for n in version.split(".")] >= [int(n) for n in least.split(".")], name
