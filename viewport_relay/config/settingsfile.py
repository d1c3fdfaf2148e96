"""RELAY_SETTINGS_FILE: settings in a file of NAME=VALUE lines, read at start and again on SIGHUP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from viewport_relay.config.values import Unsuitable

NAME: Final = "RELAY_SETTINGS_FILE"

#: Longest settings file that is read, bytes.
_FILE_BYTES: Final = 262_144


def merged(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment and the lines of its settings file; what the environment sets wins.

    Raises Unsuitable, whose words follow the variable's name, when the file cannot be read.
    """
    path = environ.get(NAME, "").strip()
    if not path:
        return dict(environ)
    return {**_read(path), **{name: value for name, value in environ.items() if value.strip()}}


def _read(path: str) -> dict[str, str]:
    try:
        with Path(path).open("rb") as file:
            text = file.read(_FILE_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise Unsuitable(f"cannot read {path!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Unsuitable(f"{path!r} is not UTF-8") from None
    return parse(text, path)


def parse(text: str, path: str) -> dict[str, str]:
    """The lines NAME=VALUE, as systemd's EnvironmentFile= and dotenv files have them; `#` and `;` begin comments.

    `export` before a name and one pair of quotes around a value are dropped. Nothing is expanded.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        match = re.fullmatch(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", line)
        if match is None:
            raise Unsuitable(f"line {number} of {path!r} is not NAME=VALUE")
        value = match[2]
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        found[match[1]] = value
    return found
