"""Files that hold a secret: what is in them, and who else can read them."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path
from typing import Final, Literal

from viewport_relay.config.values import Unsuitable

#: Longest secret file that is read, bytes.
SECRET_BYTES: Final = 65_536

#: Where container engines mount secrets, readable by every user of the container.
_CONTAINER_SECRETS: Final = "/run/secrets/"

_OTHER_ENCODINGS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)

Exposure = Literal["world", "group"]


def read_secret(path: str) -> str:
    """The text of a secret file, without byte order mark, surrounding white space and line end.

    Raises OSError, or Unsuitable with the reason.
    """
    with Path(path).open("rb") as file:
        content = file.read(SECRET_BYTES + 1)
    if len(content) > SECRET_BYTES:
        raise Unsuitable(f"is longer than {SECRET_BYTES} bytes")
    if content.startswith(_OTHER_ENCODINGS):
        raise Unsuitable(
            "is not UTF-8 but UTF-16 (as PowerShell's > writes it): write it again as UTF-8 or ASCII"
        )
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise Unsuitable("is not UTF-8") from None
    if not text:
        raise Unsuitable("is empty")
    return text


def exposure(path: str, credentials: str | None = None) -> Exposure | None:
    """Who else than the owner can reach and read a file: everybody, its group, or no one (None).

    `credentials` is systemd's $CREDENTIALS_DIRECTORY, where access lists show as group bits. A folder above that others
    may not search protects the file. A file that cannot be looked at is exposed to no one.
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


#: What to do about a key that others can read.
KEY_FIX: Final = "chmod 600, or 0440 with a group of its own (Kubernetes: defaultMode: 0440 and fsGroup)"
