"""Makes a static key for the relay's link: the work behind `viewport-relay keygen`.

The private half goes to a file that only its owner can read, or to standard output when no file is named. What it
does not do: touch a running relay, or replace a key that is there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from viewport_relay.noise.keys import NoiseKeyError, StaticKey, write_private


def generate() -> tuple[str, str]:
    """A fresh X25519 pair: private half, public half, both base64url of 32 bytes (43 characters)."""
    key = StaticKey.generate()
    return key.private_text(), key.public_text


def keygen(out: str | Path | None = None, stdout: TextIO | None = None) -> str:
    """Make a key and print its public half; returns the public half.

    With `out` the private half is written there (mode 0600, for RELAY_NOISE_PRIVATE_KEY_FILE) and never shown.
    Without, it is printed as a line for an environment file. Raises NoiseKeyError when the file is there already or
    cannot be written.
    """
    stdout = sys.stdout if stdout is None else stdout
    private, public = generate()
    if out is None:
        print(f"RELAY_NOISE_PRIVATE_KEY={private}", file=stdout)
        print(f"# public half (noisePublicKey): {public}", file=stdout)
        return public
    path = Path(out)
    try:
        write_private(path, private + "\n")
    except FileExistsError:
        raise NoiseKeyError(f"{path} is there already: a key is never written over") from None
    except OSError as error:
        raise NoiseKeyError(f"{path}: {error.strerror or 'cannot be written'}") from None
    print(public, file=stdout)
    return public
