"""Runs every command block of README, tutorial and how-to pages as written, or names another test or a reason.

A block is identified by page, heading and number below the heading. The tests replace only the names that a reader
replaces (`relay.example`, a port, a folder). Blocks that need a container engine, a cluster or root are parsed, and
the project's commands and files in them must exist.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ports
from tests.drill.certificates import Identity
from tests.drill.platform import INTERNAL_KEY, FaultyPlatform
from tests.drill.relay import ADMIN, Relay, until
from tests.pages import ROOT, Block, blocks, pages
from viewport_relay.cli.main import COMMANDS
from viewport_relay.config import VARIABLES

PAGES = [
    p for p in pages() if p in {"README.md", "docs/tutorial/first-relay.md"} or p.startswith("docs/how-to/")
]
BIN = Path(sys.executable).parent

Place = tuple[str, str, int]


def _how(page: str) -> str:
    return f"docs/how-to/{page}.md"


TUTORIAL = "docs/tutorial/first-relay.md"

#: Run with `relay`: a relay with the platform of the drills, an admin token, and a working folder for the shell.
RUN: set[Place] = {
    ("README.md", "## When something is wrong", 0),
    (_how("noise-link"), "## Turn it on", 1),
    (_how("noise-link"), "## Turn it on", 2),
    (_how("noise-link"), "## Pin the key", 0),
    (_how("noise-link"), "## Change the key", 1),
    (_how("observe"), "# See what the relay does", 0),
    (_how("observe"), "## The log", 0),
    (_how("observe"), "## State, and what to do about it", 0),
    (_how("kubernetes"), "## Fill it in", 1),
    (_how("migrate"), "## Settings", 0),
    (_how("troubleshooting"), "# Troubleshooting", 0),
}

#: Lines of the form VARIABLE=value; each is parsed.
SETTINGS: set[Place] = {
    (_how("behind-a-proxy"), "# Put it behind a proxy", 0),
    (_how("behind-a-proxy"), "## HAProxy, with the PROXY protocol", 0),
    (_how("load-balancers"), "# Put a load balancer in front of several relays", 0),
    (_how("noise-link"), "## Turn it on", 0),
    (_how("noise-link"), "## Change the key", 0),
    (_how("tls"), "# Let TLS end in the relay", 0),
}

#: Run by a separate test of this file.
OWN: set[Place] = {
    ("README.md", "## Run it for real", 0),
    (TUTORIAL, "## 3. Be refused", 0),
    (TUTORIAL, "## 3. Be refused", 1),
    (TUTORIAL, "## 4. Look into a token", 0),
    (TUTORIAL, "## 4. Look into a token", 1),
    (TUTORIAL, "## 5. Break something", 0),
    (_how("tls"), "## Check it", 0),
}

#: Run by another test.
ELSEWHERE: dict[Place, str] = {
    ("README.md", "## Try it", 0): "tests/integration/test_compose.py",
    ("README.md", "## Try it", 1): "tests/integration/test_packaging.py",
    ("README.md", "## Try it", 2): "tests/integration/test_demo_command.py",
    (TUTORIAL, "## 1. Start it", 0): "tests/integration/test_demo_command.py",
    (_how("behind-a-proxy"), "## Check it", 0): "tests/integration/test_behind_a_proxy.py",
    **{
        (_how("systemd"), "# Run it under systemd", number): "tests/integration/image/test_systemd_page.py"
        for number in range(3)
    },
    (
        _how("behind-a-proxy"),
        "## Calls to the platform through a company's proxy",
        0,
    ): "tests/field/test_outgoing_proxy.py",
}

#: Parsed only, with the reason.
PARSED: dict[Place, str] = {
    (_how("docker"), "# Run the image", 0): "needs a container engine; the secrets are tested below",
    (_how("docker"), "# Run the image", 1): "needs a container engine",
    (_how("docker"), "## Look into it", 0): "needs a container engine",
    (_how("kubernetes"), "## Fill it in", 0): "needs a cluster",
    (_how("kubernetes"), "## Apply it", 0): "needs a cluster; tests/integration/test_kubernetes.py builds the kustomization",
    (_how("kubernetes"), "## Operate it", 0): "needs a cluster",
    (_how("tls"), "## Renew the certificate", 0): "needs a certificate of an authority; tests/integration/test_tls.py reloads",
}  # fmt: skip


def numbered() -> dict[Place, Block]:
    """Every command block by its place."""
    found: dict[Place, Block] = {}
    for page in PAGES:
        seen: Counter[str] = Counter()
        for block in blocks(page, "sh"):
            found[page, block.heading, seen[block.heading]] = block
            seen[block.heading] += 1
    return found


BLOCKS = numbered()


def test_every_command_block_has_one_treatment() -> None:
    treated = Counter([*RUN, *SETTINGS, *OWN, *ELSEWHERE, *PARSED])
    assert set(BLOCKS) - set(treated) == set(), "blocks without a treatment"
    assert set(treated) - set(BLOCKS) == set(), "these are on no page"
    assert [place for place, number in treated.items() if number > 1] == []


def text_of(place: Place) -> str:
    text = BLOCKS[place].text
    indent = min(len(line) - len(line.lstrip()) for line in text.splitlines() if line.strip())
    return "".join(line[indent:] + "\n" for line in text.splitlines())


def put_in(text: str, **names: str) -> str:
    """Substitute the test's names; each must occur in the text."""
    for old, new in names.items():
        assert old in text
        text = text.replace(old, new)
    return text


def bash(commands: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run commands in a folder, with this environment's programs first in the path and without the caller's settings."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RELAY_")
        and name not in {"SERVER_URL", "HOST", "PORT"}
        and "proxy" not in name.lower()
    }
    plain |= {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder, env=plain | environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


# -- with a relay ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def relay(platform: FaultyPlatform) -> Iterator[Relay]:
    with Relay(platform.environment()) as started:
        yield started.wait()
        assert started.stop() == 0


def prepared(text: str, relay: Relay, folder: Path) -> str:
    """A block for this relay: port, address, folders of the test; lines for an engine or a pager are removed."""
    lines = [line for line in text.splitlines() if not line.startswith(("docker ", "journalctl "))]
    text = "\n".join(lines) + "\n"
    for old, new in {
        "http://127.0.0.1:7781": f"http://127.0.0.1:{relay.port}",
        "https://relay.example": f"http://127.0.0.1:{relay.port}",
        "/etc/viewport-relay": str(folder),
        '"connectionId":"…"': '"connectionId":"4f1d0c6a9be2735d08"',
        "explain CODE": "explain JWT_EXPIRED",
    }.items():
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(
    "place", sorted(RUN), ids=lambda place: f"{Path(place[0]).stem}:{place[1].lstrip('# ')}:{place[2]}"
)
def test_block_runs(place: Place, relay: Relay, platform: FaultyPlatform, tmp_path: Path) -> None:
    text = prepared(text_of(place), relay, tmp_path)
    if place[0] == _how("observe"):
        defined = prepared(text_of((place[0], "# See what the relay does", 0)), relay, tmp_path)
        # HTTP errors are failures; following a log ends after three seconds.
        text = defined.replace("curl -sS", "curl -sS --fail -m 3") + re.sub(
            r"^(relay '/logs\?follow=1[^#\n]*)", r"\1 || [ $? = 28 ] ", text, flags=re.MULTILINE
        )
    (tmp_path / "token.txt").write_text(platform.token("client", "acme", "laptop"))
    done = bash(
        text, tmp_path, RELAY_ADMIN_TOKEN=ADMIN, RELAY_LISTEN_PORT=str(ports.free_port()), **platform.environment(),
        PLATFORM_KEY_FOR_RELAYS=INTERNAL_KEY, REDIS_URL="redis://127.0.0.1:6379",
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    "place", sorted(SETTINGS), ids=lambda place: f"{Path(place[0]).stem}:{place[1].lstrip('# ')}:{place[2]}"
)
def test_the_settings_parse(place: Place) -> None:
    by_name = {variable.name: variable for variable in VARIABLES}
    found = re.findall(r"^(\w+)=(\S+)", text_of(place), re.MULTILINE)
    assert len(found) == len([line for line in text_of(place).splitlines() if line.strip()])
    for name, value in found:
        if name.endswith("_FILE"):
            assert by_name[name.removesuffix("_FILE")].secret
        else:
            by_name[name].parse(value)


@pytest.mark.parametrize(
    "place",
    sorted({*PARSED, *ELSEWHERE}),
    ids=lambda place: f"{Path(place[0]).stem}:{place[1].lstrip('# ')}:{place[2]}",
)
def test_other_blocks_name_existing_commands_and_files(place: Place) -> None:
    text = text_of(place)
    done = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for command in re.findall(r"(?m)(?:^ *|-- |exec viewport-relay )viewport-relay (\w+)", text):
        assert command in COMMANDS, command
    for file in re.findall(r"\b(deploy/[\w./-]+\w|requirements[\w-]*\.lock)", text):
        assert (ROOT / file).exists(), file
    if place in ELSEWHERE:
        assert (ROOT / ELSEWHERE[place]).is_file()


# -- blocks with their own test --------------------------------------------------------------------------------


def test_the_readme_against_a_real_platform(platform: FaultyPlatform, tmp_path: Path, free_port: int) -> None:
    (tmp_path / "internal-key").write_text(INTERNAL_KEY)
    (tmp_path / "internal-key").chmod(0o600)
    text = put_in(
        text_of(("README.md", "## Run it for real", 0)),
        **{
            "https://platform.example": platform.url,
            "/etc/viewport-relay/internal-key": str(tmp_path / "internal-key"),
            "viewport-relay serve": "timeout --preserve-status -s TERM 6 viewport-relay serve",
        },
    )
    done = bash(text, tmp_path, RELAY_LISTEN_PORT=str(free_port))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout
    events = [json.loads(line)["event"] for line in done.stdout.splitlines() if line.startswith("{")]
    assert {"relay_started", "jwks_fetched", "relay_stopped"} <= set(events)


@pytest.fixture
def tried(free_port: int) -> Iterator[tuple[int, str]]:
    """A relay with its dev platform after the tutorial's first step: port, and the platform's address."""
    platform = ports.free_port()
    environ = {n: v for n, v in os.environ.items() if not n.startswith("RELAY_") and n != "SERVER_URL"}
    environ |= {"PYTHONPATH": str(ROOT), "DEV_CREDENTIAL": "credential-of-the-tutorial-0123456789"}
    command = [sys.executable, "-m", "viewport_relay.cli.main", "serve", "--dev", "--dev-port", str(platform)]
    with subprocess.Popen(
        [*command, "--listen-port", str(free_port)], env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            until(lambda: "jwks_fetched" in process.stdout.readline(), 30, "the key set")
            yield free_port, f"http://127.0.0.1:{platform}"
        finally:
            process.terminate()


def test_the_tutorial(tried: tuple[int, str], tmp_path: Path) -> None:
    port, platform = tried
    relay = {"http://127.0.0.1:7781": f"http://127.0.0.1:{port}"}
    here = {".venv/bin/": f"{BIN}/"}

    refused = bash(put_in(text_of((TUTORIAL, "## 3. Be refused", 0)), **relay), tmp_path)
    assert refused.stdout.startswith("HTTP/1.1 401") and "X-Relay-Reason: TOKEN_MISSING" in refused.stdout
    explained = bash(put_in(text_of((TUTORIAL, "## 3. Be refused", 1)), **here), tmp_path)
    assert explained.returncode == 0 and "TOKEN_MISSING" in explained.stdout

    given = {
        "http://127.0.0.1:40961": platform,
        "DEV_CREDENTIAL=…": "DEV_CREDENTIAL=credential-of-the-tutorial-0123456789",
    }
    looked = bash(put_in(text_of((TUTORIAL, "## 4. Look into a token", 0)), **given, **here), tmp_path)
    assert looked.returncode == 0 and "dev-workspace" in looked.stdout, looked.stdout + looked.stderr

    text = put_in(
        text_of((TUTORIAL, "## 4. Look into a token", 1)),
        **relay,
        **{"-m 5": "-m 2", "rm token.txt": "|| [ $? = 28 ]"},
    )
    admitted = bash(text.replace("t'\n||", "t' ||"), tmp_path)
    assert admitted.stdout.startswith("HTTP/1.1 101"), admitted.stdout + admitted.stderr

    broken = bash(put_in(text_of((TUTORIAL, "## 5. Break something", 0)), **here), tmp_path)
    assert broken.returncode == 1 and "✗" in broken.stdout


def test_the_checks_of_the_tls_page(platform: FaultyPlatform, tmp_path: Path) -> None:
    ca = Identity.self_signed("test CA")
    files = ca.issue("relay", "localhost").write(tmp_path, "relay")
    (tmp_path / "ca.pem").write_bytes(ca.cert_pem)
    given = {"RELAY_TLS_CERT_PATH": files.cert, "RELAY_TLS_KEY_PATH": files.key}
    with Relay(platform.environment() | given, tls=ca.context()) as relay:
        relay.wait()
        names = {
            "relay.example:443": f"localhost:{relay.port}",
            "https://relay.example": f"https://localhost:{relay.port}",
        }
        certificate, old, health = put_in(text_of((_how("tls"), "## Check it", 0)), **names).splitlines()
        shown = bash(certificate, tmp_path)
        assert "subject=" in shown.stdout and "notAfter=" in shown.stdout, shown.stderr
        assert bash(old, tmp_path).returncode != 0
        answer = bash(health, tmp_path, CURL_CA_BUNDLE=str(tmp_path / "ca.pem"))
        assert json.loads(answer.stdout)["ok"] is True
        assert relay.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_images_user_can_read_the_secrets_of_the_docker_page(tmp_path: Path) -> None:
    """Mounted as `docker run` does it, in a file system of its own."""
    text = text_of((_how("docker"), "# Run the image", 0))
    before, _, run = text.partition("docker run ")
    made = bash(
        before.replace("docker build", ": docker build"), tmp_path, PLATFORM_KEY_FOR_RELAYS=INTERNAL_KEY
    )
    assert made.returncode == 0, made.stderr
    script = ["mount -t tmpfs -o mode=0755 none /mnt"]
    for source, target in re.findall(r'-v "\$PWD/([^":]+):([^":]+):ro"', run):
        make = "mkdir -p" if (tmp_path / source).is_dir() else "touch"
        script += [
            f"mkdir -p $(dirname /mnt{target})",
            f"{make} /mnt{target}",
            f"mount --bind {source} /mnt{target}",
        ]
    names = re.findall(r"_FILE=(\S+)", run)
    script += [f"setpriv --reuid 10001 --regid 10001 --clear-groups cat /mnt{name}" for name in names]
    read = subprocess.run(
        ["unshare", "--mount", "bash", "-ec", "\n".join(script)],
        cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert read.returncode == 0, read.stderr
    assert len(names) == 2 and INTERNAL_KEY in read.stdout
