"""Secret files as editors, shells, orchestrators and network mounts write them."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from viewport_relay.config import ConfigError, load

BASE = {"SERVER_URL": "https://platform.example"}
KEY = "correct-horse-battery-staple-17"

#: (origin, bytes of the file)
READ_ALIKE = [
    ("echo", KEY.encode() + b"\n"),
    ("an editor on Windows", KEY.encode() + b"\r\n"),
    ("Notepad, UTF-8 with a byte order mark", codecs.BOM_UTF8 + KEY.encode()),
    ("Notepad, with a line end too", codecs.BOM_UTF8 + KEY.encode() + b"\r\n"),
    ("a here-document with an empty line", b"\n" + KEY.encode() + b"\n\n"),
    ("kubectl create secret --from-literal", KEY.encode()),
]

#: (origin, bytes of the file, words of the refusal)
REFUSED = [
    ("PowerShell's >", KEY.encode("utf-16"), "UTF-16"),
    ("a key in two lines", KEY[:16].encode() + b"\n" + KEY[16:].encode(), "no line end"),
    ("a dash that a word processor made long", KEY.replace("-", "–").encode(), "printable ASCII"),
    ("a random binary key", bytes(range(128, 160)), "not UTF-8"),
    ("NUL at the end, from a C program", KEY.encode() + b"\0", "without NUL"),
    ("an empty file, before the operator has filled it", b"", "is empty"),
    ("a core dump mounted by mistake", b"x" * 70_000, "longer than"),
]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own folders are not."""
    with TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.parametrize(("where", "content"), READ_ALIKE, ids=[case[0] for case in READ_ALIKE])
@pytest.mark.parametrize("name", ["RELAY_INTERNAL_KEY", "RELAY_ADMIN_TOKEN"])
def test_byte_order_marks_and_line_ends_are_removed(
    name: str, where: str, content: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    config = load({**BASE, f"{name}_FILE": str(file)})
    assert KEY in {config.internal_key, *config.admin_tokens}


@pytest.mark.parametrize(("where", "content", "words"), REFUSED, ids=[case[0] for case in REFUSED])
@pytest.mark.parametrize("name", ["RELAY_INTERNAL_KEY", "RELAY_ADMIN_TOKEN"])
def test_an_invalid_header_value_is_refused_at_start(
    name: str, where: str, content: bytes, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load({**BASE, f"{name}_FILE": str(file)})
    (problem,) = caught.value.errors
    assert problem.startswith(f"{name}_FILE: ")
    assert words in problem
    assert KEY[:8] not in problem


def test_quotes_around_a_secret_are_kept_with_a_warning() -> None:
    """`docker run --env-file` keeps quotes; a secret may also contain them."""
    config = load({**BASE, "RELAY_INTERNAL_KEY": f'"{KEY}"'})
    assert config.internal_key == f'"{KEY}"'
    (warning,) = config.warnings
    assert warning.startswith("RELAY_INTERNAL_KEY begins and ends with a quotation mark")


# -- modes -------------------------------------------------------------------------------------------------

#: (origin, mode, result: None, warning or problem)
MODES = [
    ("made by the relay or keygen", 0o600, None),
    ("read-only for its owner", 0o400, None),
    ("fsGroup of Kubernetes, or defaultMode 0440", 0o640, "warning"),
    ("fsGroup on a volume that can be written", 0o660, "warning"),
    ("the default of a Kubernetes Secret, and of most umasks", 0o644, "problem"),
    ("a network mount without modes", 0o777, "problem"),
]


def _settings(name: str, folder: Path, mode: int) -> dict[str, str]:
    key, cert = folder / "key", folder / "cert"
    key.write_text("A" * 43)
    cert.write_text("certificate")
    key.chmod(mode)
    beside = {
        "RELAY_TLS_KEY_PATH": "RELAY_TLS_CERT_PATH",
        "RELAY_SERVER_CLIENT_KEY_PATH": "RELAY_SERVER_CLIENT_CERT_PATH",
    }
    more = {beside[name]: str(cert)} if name in beside else {}
    return {**BASE, "RELAY_MODE": "staging", name: str(key), **more}


@pytest.mark.parametrize(("where", "mode", "outcome"), MODES, ids=[case[0] for case in MODES])
@pytest.mark.parametrize(
    "name",
    [
        "RELAY_TLS_KEY_PATH",
        "RELAY_SERVER_CLIENT_KEY_PATH",
        "RELAY_NOISE_PRIVATE_KEY_FILE",
        "RELAY_NOISE_PREVIOUS_KEY_FILE",
    ],
)
def test_one_rule_for_the_modes_of_all_private_keys(
    name: str, where: str, mode: int, outcome: str | None, open_folder: Path
) -> None:
    environ = _settings(name, open_folder, mode)
    found: list[str] = []
    try:
        found += load(environ).warnings
        refused = False
    except ConfigError as error:
        found += error.errors
        refused = True
    assert refused is (outcome == "problem")
    about = [sentence for sentence in found if f"has mode {mode:04o}" in sentence]
    assert len(about) == (0 if outcome is None else 1)
    assert all(sentence.startswith(f"{name}: ") and "chmod 600" in sentence for sentence in about)


def test_a_world_readable_secret_is_a_warning(open_folder: Path) -> None:
    """A file-based secret of Compose has the mode of the host's file."""
    file = open_folder / "key"
    file.write_text(KEY)
    file.chmod(0o644)
    (warning,) = load({**BASE, "RELAY_INTERNAL_KEY_FILE": str(file)}).warnings
    assert "every user can read it" in warning


def test_a_closed_folder_protects_its_files(tmp_path: Path, open_folder: Path) -> None:
    """/etc/viewport-relay with mode 0750; systemd's /var/lib/private."""
    folder = open_folder / "closed"
    folder.mkdir(mode=0o700)
    assert load(_settings("RELAY_TLS_KEY_PATH", folder, 0o644)).warnings == ()


def test_access_lists_of_systemd_credentials_are_accepted(open_folder: Path) -> None:
    """systemd gives a dynamic user its credentials by an access list, which `stat` shows as group bits."""
    environ = _settings("RELAY_TLS_KEY_PATH", open_folder, 0o440)
    assert load({**environ, "CREDENTIALS_DIRECTORY": str(open_folder)}).warnings == ()
    assert len(load(environ).warnings) == 1
