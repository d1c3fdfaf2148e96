"""Files that settings name: RELAY_SETTINGS_FILE, files with one secret, PEM files; who can read a secret's file."""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

from viewport_relay.config.values import Unsuitable

SETTINGS_FILE: Final = "RELAY_SETTINGS_FILE"

#: Longest settings file that is read, bytes.
_SETTINGS_BYTES: Final = 262_144

#: Longest secret file that is read, bytes.
SECRET_BYTES: Final = 65_536

#: Longest file of certificates or of a key that is read, bytes.
PEM_BYTES: Final = 1_048_576

#: Most characters of a path that an error text shows; the operating system takes longer ones.
_SHOWN: Final = 200

#: Kinds of file that are not read, in words.
_OTHER_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}

#: The folder in which container engines mount secrets, readable by every user of the container.
_CONTAINER_SECRETS: Final = "/run/secrets/"

_OTHER_ENCODINGS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)

Exposure = Literal["world", "group"]


def merged(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment and the lines of its settings file; what the environment sets wins.

    Raises Unsuitable when the file cannot be used.
    """
    path = unquoted(environ.get(SETTINGS_FILE, "").strip())
    if not path:
        return dict(environ)
    set_here = {name: value for name, value in environ.items() if value.strip()}
    return {**_settings(_text(path, _SETTINGS_BYTES).splitlines(), path), **set_here}


def _settings(lines: Iterable[str], path: str) -> dict[str, str]:
    """The lines NAME=VALUE, as systemd's EnvironmentFile= and dotenv files have them; `#` and `;` begin comments.

    `export` before a name and one pair of quotes around a value are dropped. Nothing is expanded.
    """
    found = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        match = re.fullmatch(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", line)
        if match is None:
            raise Unsuitable(f"line {number} of {path!r} is not NAME=VALUE")
        name, value = match.groups()
        found[name] = unquoted(value)
    return found


def unquoted(text: str) -> str:
    """The text without a pair of quotes around it, which some env files keep (`docker run --env-file`)."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def read_secret(path: str) -> str:
    """The text of a secret file, without byte order mark, surrounding white space and line end.

    Raises Unsuitable.
    """
    text = _text(path, SECRET_BYTES).strip()
    if not text:
        raise Unsuitable(f"{path!r} is empty")
    return text


def _text(path: str, most: int) -> str:
    """The text of a UTF-8 file of at most `most` bytes. Raises Unsuitable."""
    content = read_file(path, most)
    if content.startswith(_OTHER_ENCODINGS):
        raise Unsuitable(
            f"{path!r} is not UTF-8 but UTF-16 (as PowerShell's > writes it): write it again as UTF-8 or ASCII"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unsuitable(f"{path!r} is not UTF-8") from None


def read_file(path: str, most: int = PEM_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises Unsuitable, whose words name the file.

    Other kinds of file are refused: a FIFO, a terminal or a device would hold up the start, and later each reload.
    """
    if "\0" in path:
        raise Unsuitable(f"{path[:_SHOWN]!r} is no file name: it has a NUL character")
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = _OTHER_KINDS.get(stat.S_IFMT(mode), "another kind of file")
            raise Unsuitable(
                f"{path!r} is {kind}, not a regular file: put the content into a file, and name that"
            )
        # O_NONBLOCK: reading some files of /proc waits for content, and the file may be replaced at this moment.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            content = file.read(most + 1) or b""
    except OSError as error:
        raise Unsuitable(f"cannot read {path[:_SHOWN]!r}: {error.strerror}") from None
    if len(content) > most:
        raise Unsuitable(f"{path!r} is longer than {most} bytes")
    return content


def exposure(path: str, credentials: str | None = None) -> Exposure | None:
    """The users besides the owner who can reach and read a file: all ("world"), its group, or none (None).

    `credentials` is systemd's $CREDENTIALS_DIRECTORY, where access lists show as group bits. A folder above that others
    may not search protects the file. For a file that cannot be examined the result is None.
    """
    try:
        status = os.stat(path)
        real = Path(path).resolve(strict=True)
        folders = [os.stat(folder).st_mode for folder in real.parents]
    except OSError:
        return None
    mode = status.st_mode
    if mode & (stat.S_IROTH | stat.S_IWOTH) and all(folder & stat.S_IXOTH for folder in folders):
        return None if path.startswith(_CONTAINER_SECRETS) else "world"
    if credentials and real.is_relative_to(Path(credentials).resolve()):
        return None
    if mode & (stat.S_IRGRP | stat.S_IWGRP) and all(
        folder & (stat.S_IXGRP | stat.S_IXOTH) for folder in folders
    ):
        return "group"
    return None


def octal_mode(path: str) -> str:
    """The permission bits of a file, as chmod takes them."""
    return f"{stat.S_IMODE(os.stat(path).st_mode):04o}"


#: The fix for a key that others can read.
KEY_FIX: Final = "chmod 600, or 0440 with a group of its own (Kubernetes: defaultMode: 0440 and fsGroup)"
