"""The relay's static X25519 keys for the link: where they come from and how they are kept.

The current key is the setting's, or the one in the state folder (made there at the first start), or one that
lives as long as the process. A previous key is accepted beside it while peers learn the new one. What this module
does not do: handshakes (`link`), publishing the public half, logging. Private halves never show in a repr or in
an error.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import stat
from pathlib import Path
from typing import Any, Literal

from attrs import frozen
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from noise.backends.default.keypairs import KeyPair25519

from viewport_relay.config import KEY_FIX, exposure, octal_mode
from viewport_relay.protocol.base64url import base64url

KEY_BYTES = 32
KEY_FILE = "noise.key"
_KEY_FILE_MAX = 256  # bytes; a key and white space need 44
_TEXT = re.compile(r"[A-Za-z0-9_-]{43}=?")

Source = Literal["setting", "state", "created", "ephemeral"]


class NoiseKeyError(ValueError):
    """A key, or the file that holds it, cannot be used. The text says why and never holds the key."""


def decode_key(text: str) -> bytes | None:
    """The 32 bytes behind base64url `text` (padding may be there), or None when it is anything else."""
    if not _TEXT.fullmatch(text):
        return None
    return base64.urlsafe_b64decode(text[:43] + "=")


class StaticKey:
    """One X25519 key pair (RFC 7748). No repr of its content: it holds the private half."""

    __slots__ = ("pair", "public")

    def __init__(self, private: bytes) -> None:
        if len(private) != KEY_BYTES:
            raise NoiseKeyError(f"an X25519 private key has {KEY_BYTES} bytes")
        # noiseprotocol's own pair, made once: made anew, each handshake would pay for one more multiplication.
        self.pair: Any = KeyPair25519.from_private_bytes(private)
        self.public: bytes = bytes(self.pair.public_bytes)

    @classmethod
    def generate(cls) -> StaticKey:
        """A fresh pair from the system's random source."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def parse(cls, text: str, name: str) -> StaticKey:
        """The pair of a private key in base64url; NoiseKeyError says what the setting `name` takes."""
        private = decode_key(text.strip())
        if private is None:
            raise NoiseKeyError(
                f"{name} takes an X25519 private key, base64url of {KEY_BYTES} bytes (43 characters); "
                "`viewport-relay keygen` makes one"
            )
        return cls(private)

    @property
    def public_text(self) -> str:
        """The public half in base64url, as `/.well-known/viewport-relay.json` shows it."""
        return base64url(self.public)

    def private_text(self) -> str:
        """The private half in base64url. For a key file or `keygen` only."""
        raw: bytes = self.pair.private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        return base64url(raw)

    def __repr__(self) -> str:
        return f"StaticKey(public={self.public_text!r})"


@frozen
class RelayKeys:
    """The keys that a relay answers to.

    `source` says where the current one is from: "ephemeral" means that it is lost with the process, so that peers which
    pin it fail after a restart. `warnings` are sentences for the start-up log.
    """

    current: StaticKey
    previous: StaticKey | None = None
    source: Source = "setting"
    warnings: tuple[str, ...] = ()

    @classmethod
    def load(cls, private: str | None, previous: str | None, state_dir: str | None) -> RelayKeys:
        """The keys for these settings (RELAY_NOISE_PRIVATE_KEY, RELAY_NOISE_PREVIOUS_KEY, RELAY_STATE_DIR).

        A setting wins over the state folder. Raises NoiseKeyError.
        """
        source: Source
        warnings: tuple[str, ...] = ()
        if private is not None:
            current, source = StaticKey.parse(private, "RELAY_NOISE_PRIVATE_KEY"), "setting"
        elif state_dir is not None:
            current, source = load_or_create(Path(state_dir))
            if exposure(str(path := Path(state_dir) / KEY_FILE)) == "group":
                warnings = (exposed_to("its group", path),)
        else:
            current, source = StaticKey.generate(), "ephemeral"
        older = None if previous is None else StaticKey.parse(previous, "RELAY_NOISE_PREVIOUS_KEY")
        if older is not None and older.public == current.public:
            older = None  # tried twice it would only make every wrong handshake dearer
        return cls(current, older, source, warnings)


# -- the key file ----------------------------------------------------------------------------------------------


def load_or_create(state_dir: Path) -> tuple[StaticKey, Source]:
    """The key in `state_dir`/noise.key, made there if there is none; "state" or "created".

    Raises NoiseKeyError when the file is no key, is not a plain file, is owned by another user or can be read by
    every user, or when the folder cannot be used.
    """
    path = state_dir / KEY_FILE
    try:
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise NoiseKeyError(
                f"RELAY_STATE_DIR: cannot use {path}: {state_dir} is no folder: name a folder"
            ) from None
        try:
            return _read(path), "state"
        except FileNotFoundError:
            pass
        key = StaticKey.generate()
        try:
            write_private(path, key.private_text() + "\n")
        except FileExistsError:  # another relay on the same folder was faster: both must use one key
            return _read(path), "state"
    except OSError as error:
        raise NoiseKeyError(
            f"RELAY_STATE_DIR: cannot use {path}: {error.strerror or 'input/output error'}"
        ) from None
    return key, "created"


def _read(path: Path) -> StaticKey:
    # O_NONBLOCK: a FIFO put here must not hold up the start.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NoiseKeyError(f"{path} is a symbolic link: put the key file itself there") from None
        raise
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NoiseKeyError(
                f"RELAY_STATE_DIR: {path} is not a regular file: move it away, or put the key file there"
            )
        if status.st_uid not in (os.geteuid(), 0):
            raise NoiseKeyError(
                f"{path} belongs to another user, who can read it: chown it to the relay's user"
            )
        if exposure(str(path)) == "world":
            raise NoiseKeyError(exposed_to("every user", path))
        content = file.read(_KEY_FILE_MAX)
    try:
        return StaticKey.parse(content.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise NoiseKeyError(f"{path} is no key file: it takes base64url of {KEY_BYTES} bytes") from None


def exposed_to(readers: str, path: Path) -> str:
    """The sentence about a key file that others than its owner can read."""
    return f"{path} has mode {octal_mode(str(path))}, so that {readers} can read it: {KEY_FIX}"


def write_private(path: Path, text: str) -> None:
    """Put `text` at `path`, mode 0600, whole or not at all; FileExistsError if something is there, OSError.

    It is written and synced under another name and then linked: a crash leaves no half key, and a name that is
    taken is never written over.
    """
    draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            os.fchmod(descriptor, 0o600)  # an odd umask may have taken bits away
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.link(draft, path, follow_symlinks=False)
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
