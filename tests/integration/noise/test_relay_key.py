"""The relay's static key: generation, storage, rotation, publication."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.threads import deferToThread

from tests.integration.noise.conftest import CLIENT, DAEMON, PublicKey, Relay, World
from tests.integration.noise.linkpeers import LINK
from tests.unit.noise.peers import SECRET, b64
from tests.wireframes import encoded
from viewport_relay import __version__
from viewport_relay.noise.keys import StaticKey, write_private
from viewport_relay.noise.policy import Pattern
from viewport_relay.peer.upgrade import Closed

MALFORMED = Closed(4008, "Noise handshake failed: malformed message")


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_well_known_page(relay: Relay) -> None:
    reply = await deferToThread(relay.process.ask, "GET", "/.well-known/viewport-relay.json")
    assert reply.status == 200 and reply.headers["content-type"] == "application/json"
    assert reply.headers["access-control-allow-origin"] == "*"  # web apps of any origin read the page
    head = await deferToThread(relay.process.ask, "HEAD", "/.well-known/viewport-relay.json")
    assert (head.status, head.text) == (200, "")
    document = reply.json()
    assert reply.text.startswith('{"relayId":"relay-noise","version":"')
    assert len(document.pop("noisePublicKey")) == 43
    assert document == {"relayId": "relay-noise", "version": __version__, "subprotocols": [LINK]}
    for method, path in (
        ("POST", "/.well-known/viewport-relay.json"),
        ("GET", "/.well-known/viewport-relay.json/"),
        ("GET", "/.well-known"),
    ):
        reply = await deferToThread(relay.process.ask, method, path)
        assert (reply.status, reply.json()["reason"]) == (404, "NOT_FOUND")


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_the_key_is_generated_once_and_stored(world: World, tmp_path: Path) -> None:
    state = tmp_path / "not" / "there"
    first = await world.relay(RELAY_STATE_DIR=str(state))
    key = state / "noise.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and stat.S_ISREG(key.lstat().st_mode)
    made = key.stat().st_ino, key.stat().st_mtime_ns, key.read_bytes()
    assert [path.name for path in state.iterdir()] == ["noise.key"]
    world.secrets.append(key.read_text().strip())
    assert StaticKey.parse(key.read_text(), "key").public == first.public
    assert await deferToThread(first.process.stop) == 0
    again = await world.relay(RELAY_STATE_DIR=str(state))
    assert again.public == first.public
    assert made == (key.stat().st_ino, key.stat().st_mtime_ns, key.read_bytes())
    pinned = await world.join(again, CLIENT, world.workspace(), Pattern.IK, relay_key=PublicKey(first.public))
    assert pinned.raw.closed is None


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_two_keys_during_a_rotation(world: World, tmp_path: Path) -> None:
    """An operator's rotation of a key that the relay generated: the file becomes the previous key."""
    new, old, older = StaticKey.generate(), StaticKey.generate(), StaticKey.generate()
    world.secrets += [new.private_text(), old.private_text()]
    files = []
    for name, pair in (("new.key", new), ("noise.key", old)):
        files.append(tmp_path / name)
        write_private(files[-1], pair.private_text() + "\n")
    relay = await world.relay(
        RELAY_STATE_DIR=str(tmp_path),  # the setting takes precedence over the file in this folder
        RELAY_NOISE_PRIVATE_KEY_FILE=str(files[0]),
        RELAY_NOISE_PREVIOUS_KEY_FILE=str(files[1]),
    )
    assert relay.identity["noisePublicKey"] == new.public_text
    assert relay.identity["noisePreviousPublicKey"] == old.public_text
    for pattern in Pattern:
        for key, used in ((new, "current"), (old, "previous")):
            workspace = world.workspace(pairing_secret=b64(SECRET))
            daemon = await world.join(relay, DAEMON, workspace, pattern, relay_key=PublicKey(key.public))
            client = await world.join(relay, CLIENT, workspace, pattern, relay_key=PublicKey(key.public))
            client.send(encoded("e2ee"))
            assert await daemon.hears(1) == [encoded("e2ee")]
            joins = [e["details"]["relayKeyUsed"] for e in await relay.entries(workspace)]
            assert joins == [used, used]
        workspace = world.workspace(pairing_secret=b64(SECRET))
        peer = await world.link(relay, CLIENT, workspace, pattern, relay_key=PublicKey(older.public))
        peer.raw.say(peer.initiator.message_1())
        assert await peer.raw.ended() == MALFORMED
        entry = await relay.wait_for(workspace, "close", "NOISE_HANDSHAKE_MALFORMED")
        assert "relayKeyUsed" not in entry["details"]
    # The entry of a record that fails later names the key of the link.
    workspace = world.workspace()
    peer = await world.join(relay, CLIENT, workspace, Pattern.IK, relay_key=PublicKey(old.public))
    peer.raw.say(b"\0\x10" + bytes(16))
    await peer.raw.ended()
    entry = await relay.wait_for(workspace, "close", "NOISE_DECRYPT_FAILED")
    assert entry["details"]["relayKeyUsed"] == "previous"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own folders would protect the key file."""
    with TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_an_untrusted_key_file_stops_the_start(world: World, open_folder: Path) -> None:
    """Exit status 78 (EX_CONFIG) and one line with the cause, without the key."""
    key = open_folder / "noise.key"
    private = StaticKey.generate().private_text()
    key.write_text(private + "\n")
    key.chmod(0o644)
    wrong = "not-a-key-but-long-enough-to-be-a-secret"
    refused = [
        (
            world.process(RELAY_STATE_DIR=str(open_folder)),
            f"{key} has mode 0644, so that every user can read it: chmod 600, or 0440 with a group of its own "
            "(Kubernetes: defaultMode: 0440 and fsGroup)",
        ),
        (
            world.process(RELAY_NOISE_PRIVATE_KEY=wrong),
            "RELAY_NOISE_PRIVATE_KEY takes an X25519 private key, base64url of 32 bytes (43 characters); "
            "`viewport-relay keygen` makes one",
        ),
    ]
    for process, line in refused:
        assert await deferToThread(process.process.wait, 30) == 78, process.output()
        await deferToThread(process.stop)  # reads the rest of the output
        assert process.output() == f"viewport-relay: {line}\n"
        assert private not in process.output() and wrong not in process.output()
    assert key.read_text() == private + "\n"
