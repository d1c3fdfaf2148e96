"""The image, built and started without a container engine: the Dockerfile is executed step by step.

The base is a stand-in (base.py). Not covered: the real base image, BuildKit's reading of the file, layers in a
registry, cgroups and seccomp. Everything runs in namespaces that end with the test.
"""

from __future__ import annotations

import configparser
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.drill.peer import Peer, Refused, dial, e2ee
from tests.drill.platform import INTERNAL_KEY, FaultyPlatform
from tests.drill.relay import ADMIN, until
from tests.integration.image.namespaces import Network, Place, why_not
from tests.integration.image.replay import Container, Image, build
from viewport_relay.config import VARIABLES

ROOT = Path(__file__).parents[3]
PORT = 7781
SECRETS = {"/run/secrets/internal-key": INTERNAL_KEY, "/run/secrets/admin-token": ADMIN}
STOPS_WITHIN = 5.0  # seconds

pytestmark = pytest.mark.image


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with Place(tmp_path_factory.mktemp("image")) as place:
        made = build(place, ROOT, {"VERSION": "1.2.3", "REVISION": "abcdef"})
        for what, seconds in made.times:
            print(f"{seconds:5.1f} s  {what}")
        yield made


@pytest.fixture(scope="module")
def network(image: Image) -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


@pytest.fixture(scope="module")
def platform(network: Network) -> Iterator[FaultyPlatform]:
    """A platform in the container's network namespace."""
    with network.inside():
        made = FaultyPlatform()
    with made:
        yield made


def settings(platform: FaultyPlatform) -> dict[str, str]:
    """Settings of docs/how-to/docker.md: secrets as files."""
    given = platform.environment()
    return {name: given[name] for name in ("RELAY_JWKS_URL", "RELAY_VALIDATE_URL")} | {
        "RELAY_INTERNAL_KEY_FILE": "/run/secrets/internal-key",
        "RELAY_ADMIN_TOKEN_FILE": "/run/secrets/admin-token",
    }


def entries(container: Container) -> list[dict[str, Any]]:
    """Log entries; standard output contains nothing else."""
    return [json.loads(line) for line in container.stdout().splitlines()]


def healthy(container: Container) -> bool:
    assert container.image.stage.health is not None
    return container.execute(container.image.stage.health).returncode == 0


def ask(network: Network, path: str) -> tuple[int, bytes]:
    with network.inside():
        sock = dial(PORT)
    with sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while piece := sock.recv(65_536):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.fixture(scope="module")
def container(image: Image, network: Network, platform: FaultyPlatform) -> Iterator[Container]:
    with Container(image, network, settings(platform), SECRETS) as started:
        until(lambda: healthy(started) or started.process.poll() is not None, 20, "health")
        assert started.process.poll() is None, started.stderr() + started.stdout()
        yield started
        assert [entry for entry in entries(started) if entry["level"] == "error"] == []
        assert started.stderr() == ""


@pytest.fixture(scope="module")
def writable(image: Image, network: Network) -> Iterator[Container]:
    """A container of the same image with a writable root, which runs only a shell."""
    with Container(image, network, {}, read_only=False, command=("sleep", "600")) as started:
        yield started


# -- metadata --------------------------------------------------------------------------------------------------------


def test_labels_and_ports(image: Image) -> None:
    stage = image.stage
    prefix = "org.opencontainers.image."
    assert stage.labels[prefix + "title"] == "viewport-relay"
    assert stage.labels[prefix + "version"] == "1.2.3"
    assert stage.labels[prefix + "revision"] == "abcdef"
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    assert stage.labels[prefix + "licenses"] == metadata["metadata"]["license"]
    (default,) = (v.default for v in VARIABLES if v.name == "RELAY_LISTEN_PORT")
    assert stage.exposed == [default] == [PORT]


def test_no_setting_but_the_address_and_no_secret(image: Image) -> None:
    ours = {name for name in image.stage.environment if name.startswith("RELAY_")}
    assert ours == {"RELAY_LISTEN_HOST"}
    assert not [name for name in image.stage.environment if re.search("KEY|TOKEN|SECRET|PASSWORD|PIP_", name)]


# -- content -----------------------------------------------------------------------------------------------------------


def files(image: Image) -> Iterator[tuple[str, Path]]:
    """(path in the image, path outside) of each file that the image adds to its base. A deleted file of the base is a
    character device there."""
    for path in image.layer.rglob("*"):
        if not path.is_char_device():
            yield "/" + str(path.relative_to(image.layer)), path


def test_nothing_of_the_build_is_left(image: Image) -> None:
    paths = [name for name, _ in files(image)]
    assert "/opt/viewport-relay/bin/twistd" in paths
    leftovers = ("/src", "/tmp/", "/root/", "/home/", "/run/", "/var/tmp/", "/var/lib/apt/lists/")
    assert [path for path in paths if path.startswith(leftovers)] == []
    ours = "/opt/viewport-relay/lib/"
    unwanted = r"/(\.git|\.env|requirements[\w-]*\.lock|setup\.cfg|Dockerfile|[\w.-]+\.whl|pytest)$"
    documents = "/opt/viewport-relay/share/doc/"  # documents of the wheel, lock files among them
    kept = [path for path in paths if path.startswith("/opt/") and not path.startswith(documents)]
    assert [path for path in kept if re.search(unwanted, path)] == []
    assert len([path for path in paths if path.endswith("/viewport_relay/tap.py")]) == 1
    assert not [
        path for path in paths if path.startswith(ours) and re.search(r"/site-packages/(tests|tools)/", path)
    ]
    assert not [path for path in paths if path.endswith(("/gcc", "/make", "/git"))]


def test_no_key_is_in_it(image: Image) -> None:
    """Twisted's own tests contain a key; the image must not."""
    found = []
    for name, path in files(image):
        if (
            path.is_file()
            and not path.is_symlink()
            and "/test/" not in name
            and path.stat().st_size < 100_000
        ):
            data = path.read_bytes()
            if re.search(rb"^-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]{60}", data, re.MULTILINE):
                found.append(name)
    assert found == []


def test_files_belong_to_root_and_only_root_may_write(image: Image) -> None:
    wrong = []
    for name, path in files(image):
        status = path.lstat()
        loose = status.st_mode & (stat.S_IWOTH | stat.S_ISUID) and not status.st_mode & stat.S_ISVTX
        if not stat.S_ISLNK(status.st_mode) and (loose or status.st_uid == 10001 or status.st_gid == 10001):
            wrong.append(name)
    assert wrong == []


def test_the_user_could_write_nowhere_but_in_tmp(writable: Container) -> None:
    found = writable.execute("find / -path /proc -prune -o -path /dev -prune -o ! -type l -writable -print")
    assert set(found.stdout.split()) <= {"/tmp", "/var/tmp", "/run/lock"}


def test_packages_fit_together(writable: Container) -> None:
    done = writable.execute(("pip", "check"))
    assert (done.returncode, done.stdout) == (0, "No broken requirements found.\n")


def test_the_health_check_fails_without_a_relay(writable: Container, image: Image) -> None:
    assert image.stage.health is not None
    assert writable.execute(image.stage.health, RELAY_LISTEN_PORT="9").returncode != 0


# -- the running container ---------------------------------------------------------------------------------------------


def test_health_and_ready(container: Container, network: Network) -> None:
    status, body = ask(network, "/health")
    assert (status, json.loads(body)["service"]) == (200, "relay")
    until(lambda: ask(network, "/ready")[0] == 200, 10, "/ready")
    assert healthy(container)
    (started,) = (entry for entry in entries(container) if entry["event"] == "relay_started")
    assert (started["details"]["mode"], started["details"]["port"]) == ("prod", PORT)


def test_the_user_and_its_capabilities(container: Container) -> None:
    status = dict(
        line.split(":", 1)
        for line in container.execute("cat /proc/1/status").stdout.splitlines()
        if ":" in line
    )
    assert status["Uid"].split() == ["10001"] * 4
    assert status["Gid"].split() == ["10001"] * 4
    assert status["Groups"].split() == []
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    command = container.execute("tr '\\0' ' ' </proc/1/cmdline").stdout
    assert command.endswith("/twistd -n --pidfile= viewport-relay ")
    assert "relay" in container.execute(("id", "-un")).stdout


def test_the_relay_writes_no_file(container: Container) -> None:
    for folder in ("/", "/tmp", "/var/tmp", "/opt/viewport-relay", "/dev", "/run", "/nonexistent"):
        assert container.execute(("touch", f"{folder}/file")).returncode != 0, folder
    # twistd warns at each start if it cannot write its plugin cache; the image contains the cache.
    assert "plugin cache" not in container.stdout() + container.stderr()


def test_the_operators_commands_work(container: Container) -> None:
    head = container.execute('curl -fsS -I "$RELAY_JWKS_URL"')
    assert head.stdout.startswith("HTTP/1.1 200"), head.stderr
    assert "RELAY_JWKS_URL=http" in container.execute("env | grep JWKS").stdout
    doctor = container.execute(("viewport-relay", "doctor"))
    assert doctor.returncode == 0, doctor.stdout


def test_a_refusal_is_in_the_log(container: Container, network: Network) -> None:
    with network.inside(), pytest.raises(Refused) as caught:
        Peer(PORT, {"role": "client", "workspaceId": "w", "runtimeTargetId": "t"}, {})
    assert caught.value.status == 401
    assert "X-Relay-Reason: TOKEN_MISSING" in caught.value.head
    (refusal,) = until(lambda: [e for e in entries(container) if e["event"] == "refuse"], 5, "the log line")
    assert refusal["reason"] == "TOKEN_MISSING"
    assert (refusal["level"], refusal["details"]["ip"]) == ("warn", "127.0.0.1")


def test_frames_pass(container: Container, network: Network, platform: FaultyPlatform) -> None:
    relay = SimpleNamespace(port=PORT)
    with network.inside():
        daemon = Peer.daemon(relay, platform, "w", "t")
        client = Peer.client(relay, platform, "w", "t")
    client.converse(daemon)
    for sender, receiver in ((client, daemon), (daemon, client)):
        text = e2ee(client.session, 1, "x" * 100_000)
        sender.send(text)
        assert receiver.text() == text
    client.close()
    daemon.close()


def test_the_stop_signal_ends_the_relay_with_status_0(container: Container) -> None:
    """Last test, because the container is stopped. As process 1 it has no default action for signals."""
    assert container.stop(STOPS_WITHIN) == 0
    assert "relay_stopped" in [entry["event"] for entry in entries(container)]
