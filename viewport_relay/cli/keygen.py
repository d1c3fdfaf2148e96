"""Makes a static X25519 key for the Noise link, for `viewport-relay keygen`.

The private key goes to a file of mode 0600, or to standard output when no file is named. An existing file is never
replaced.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from viewport_relay.noise.keys import NoiseKeyError, StaticKey, write_private


def generate() -> tuple[str, str]:
    """A new X25519 pair: private key, public key, both base64url of 32 bytes (43 characters)."""
    key = StaticKey.generate()
    return key.private_text(), key.public_text


def keygen(out: str | Path | None = None, stdout: TextIO | None = None) -> str:
    """Make a key and print its public key; returns the public key.

    With `out` the private key is written there (mode 0600, for RELAY_NOISE_PRIVATE_KEY_FILE) and not printed. Without
    `out` it is printed as a line for an environment file. Raises NoiseKeyError when the file exists or cannot be written.
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
