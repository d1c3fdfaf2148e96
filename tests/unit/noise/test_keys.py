"""The relay's static keys: accepted forms, and creation and permissions of the key file."""

from __future__ import annotations

import base64
import codecs
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.unit.noise.peers import SECRET, b64
from viewport_relay.noise import keys
from viewport_relay.noise.keys import NoiseKeyError, RelayKeys, StaticKey, load_or_create

PRIVATE = b64(SECRET)
PUBLIC = b64(X25519PrivateKey.from_private_bytes(SECRET).public_key().public_bytes_raw())


def test_the_public_half_is_derived() -> None:
    key = StaticKey.parse(PRIVATE, "X")
    assert (key.public_text, key.private_text()) == (PUBLIC, PRIVATE)
    assert b64(key.public) == PUBLIC


def test_the_vector_of_rfc_7748() -> None:
    """RFC 7748, section 6.1, Bob's key pair."""
    bob = StaticKey(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"


@pytest.mark.parametrize("text", [PRIVATE, PRIVATE + "=", f" {PRIVATE}\n"])
def test_accepted_forms(text: str) -> None:
    assert StaticKey.parse(text, "X").public_text == PUBLIC


@pytest.mark.parametrize("text", [
    "",
    PRIVATE[:-1],
    PRIVATE + "A",
    PRIVATE + "==",
    PRIVATE[:-1] + "+",
    PRIVATE[:-1] + "é",
    PRIVATE[:20] + "\n" + PRIVATE[20:],
    SECRET.hex(),
    base64.b64encode(b"\xff" * 32).decode(),
    "a" * 10_000,
])  # fmt: skip
def test_other_forms_are_refused_and_not_printed(text: str) -> None:
    with pytest.raises(NoiseKeyError) as refused:
        StaticKey.parse(text, "RELAY_NOISE_PRIVATE_KEY")
    told = str(refused.value)
    assert told.startswith("RELAY_NOISE_PRIVATE_KEY takes") and "base64url of 32 bytes" in told
    assert not text or text not in told
    assert isinstance(refused.value, ValueError) and refused.value.__cause__ is None


def test_load_from_settings() -> None:
    loaded = RelayKeys.load(PRIVATE, None, None)
    assert (loaded.current.public_text, loaded.previous, loaded.source) == (PUBLIC, None, "setting")
    other = StaticKey.generate()
    loaded = RelayKeys.load(PRIVATE, other.private_text(), "/nowhere")
    assert loaded.previous is not None
    assert (loaded.previous.public_text, loaded.source) == (other.public_text, "setting")
    assert RelayKeys.load(PRIVATE, PRIVATE, None).previous is None
    with pytest.raises(NoiseKeyError, match="RELAY_NOISE_PREVIOUS_KEY takes"):
        RelayKeys.load(PRIVATE, "x", None)
    for text in (repr(loaded), repr(loaded.current), str(loaded)):
        assert PRIVATE not in text and other.private_text() not in text


def test_without_a_state_folder_the_key_is_ephemeral() -> None:
    one, two = RelayKeys.load(None, None, None), RelayKeys.load(None, None, None)
    assert one.source == "ephemeral" and one.current.public_text != two.current.public_text


def test_the_key_is_created_at_the_first_start_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "relay"
    old = os.umask(0)
    try:
        first = RelayKeys.load(None, None, str(folder))
    finally:
        os.umask(old)
    path = folder / "noise.key"
    assert first.source == "created"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert path.read_text() == first.current.private_text() + "\n"
    assert os.listdir(folder) == ["noise.key"]  # no temporary file is left
    again = RelayKeys.load(None, PRIVATE, str(folder))
    assert again.previous is not None and again.previous.public_text == PUBLIC
    assert (again.source, again.current.public_text) == ("state", first.current.public_text)


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o777)
    try:
        keys.write_private(tmp_path / "noise.key", "x\n")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "noise.key").stat().st_mode) == 0o600


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's temporary folders are private."""
    with TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o666, 0o777, 0o602])
def test_a_file_that_other_users_can_read_or_write_is_refused(open_folder: Path, mode: int) -> None:
    path = open_folder / "noise.key"
    path.write_text(PRIVATE)
    path.chmod(mode)
    with pytest.raises(NoiseKeyError, match=f"mode 0{mode:o}") as refused:
        load_or_create(open_folder)
    assert PRIVATE not in str(refused.value)


@pytest.mark.parametrize("mode", [0o640, 0o660, 0o620])
def test_a_file_that_its_group_can_read_causes_a_warning(open_folder: Path, mode: int) -> None:
    """Kubernetes' fsGroup makes this change between two starts."""
    path = open_folder / "noise.key"
    path.write_text(PRIVATE)
    path.chmod(mode)
    loaded = RelayKeys.load(None, None, str(open_folder))
    assert loaded.current.private_text() == PRIVATE
    (warning,) = loaded.warnings
    assert f"mode 0{mode:o}" in warning and "its group can read it" in warning
    path.chmod(0o600)
    assert RelayKeys.load(None, None, str(open_folder)).warnings == ()


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    """Windows Notepad writes a byte order mark."""
    path = tmp_path / "noise.key"
    path.write_bytes(codecs.BOM_UTF8 + PRIVATE.encode() + b"\r\n")
    path.chmod(0o600)
    assert load_or_create(tmp_path)[0].private_text() == PRIVATE


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "noise.key"
    path.write_text(PRIVATE)
    path.chmod(0o600)
    fstat = os.fstat

    def given_away(descriptor: int) -> os.stat_result:  # changing the owner itself needs root
        fields = list(fstat(descriptor)[:10])
        fields[4] = os.geteuid() + 12345
        return os.stat_result(fields)

    assert load_or_create(tmp_path)[1] == "state"
    monkeypatch.setattr(os, "fstat", given_away)
    with pytest.raises(NoiseKeyError, match="another user"):
        load_or_create(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"x", PRIVATE.encode()[:-1], b"\xff" * 43, b"A" * 100_000, b"\0" * 43]
)
def test_an_invalid_key_file_is_refused_and_not_changed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "noise.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(NoiseKeyError, match=r"noise\.key"):
        load_or_create(tmp_path)
    assert path.read_bytes() == content


def test_symbolic_links_folders_and_fifos_are_refused(tmp_path: Path) -> None:
    (tmp_path / "good").write_text(PRIVATE)
    (tmp_path / "good").chmod(0o600)
    for name, make in {
        "link to a key": lambda path: path.symlink_to(tmp_path / "good"),
        "link": lambda path: path.symlink_to(tmp_path / "elsewhere"),
        "folder": lambda path: path.mkdir(mode=0o700),
        "fifo": lambda path: os.mkfifo(path, 0o600),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        make(folder / "noise.key")
        with pytest.raises(NoiseKeyError):
            load_or_create(folder)
    assert not (tmp_path / "elsewhere").exists()


def test_a_state_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NoiseKeyError, match=r"RELAY_STATE_DIR: cannot use .*file.noise\.key: "):
        load_or_create(tmp_path / "file")


def test_concurrent_starts_agree_on_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: load_or_create(tmp_path), range(32)))
    assert len({key.public for key, _ in found}) == 1
    assert [source for _, source in found].count("created") == 1
    assert os.listdir(tmp_path) == ["noise.key"]


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "noise.key"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        keys.write_private(path, "yours")
    assert path.read_text() == "mine" and os.listdir(tmp_path) == ["noise.key"]


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoiseKeyError, match="No space left"):
        load_or_create(tmp_path)
    assert os.listdir(tmp_path) == []
