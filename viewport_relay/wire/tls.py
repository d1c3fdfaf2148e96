"""The relay's own TLS: certificate and key from files, TLS 1.2 and later, read again when the files change.

A connection keeps the context it began with, so a new certificate drops no connection. Files that cannot be used leave the
old ones in service, and say so in the log: a half-written renewal must not end the relay.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLContextFactory, IReactorTime
from twisted.internet.ssl import AcceptableCiphers, CertificateOptions, TLSVersion
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from viewport_relay.config import Config, ConfigError, read_file
from viewport_relay.observe.sink import EventSink

#: Seconds between two looks at the files. A change is applied when it was the same at two looks.
WATCH_SECONDS: Final = 10.0

#: The end of a certificate is near when less than this, and less than this part of its life, is left.
_NEAR: Final = timedelta(days=14)
_NEAR_PART: Final = 5

#: Ciphers of TLS 1.2 and of TLS 1.3, the relay's choice first.
_CIPHERS: Final = AcceptableCiphers.fromOpenSSLCipherString("ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!aDSS")
_SUITES: Final = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"

#: SSL_MODE_ENABLE_PARTIAL_WRITE of OpenSSL's ssl.h, which pyOpenSSL sets and does not name.
_MODE_ENABLE_PARTIAL_WRITE: Final = 1

#: The identity of one version of a file: renewals replace files, links or what links point to.
_Version = tuple[int, int, int, int] | None


def _version(path: str) -> _Version:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


#: The life of a certificate: in it, its end is near, or ended or not begun.
_Judged = Literal["valid", "ends", "invalid"]

_PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey


def _private_key(pem: bytes) -> _PrivateKey:
    """Raises ValueError, UnsupportedAlgorithm, and TypeError for a key of another kind or with a passphrase.

    OpenSSL's own reader would ask for the passphrase at the terminal.
    """
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, _PrivateKey):
        raise TypeError(f"not a key for TLS: {type(key).__name__}")
    return key


def _content(variable: str, path: str) -> bytes:
    """A file that `variable` names. Raises ConfigError that says why it cannot be read."""
    try:
        return read_file(path)
    except ValueError as wrong:
        raise ConfigError([f"{variable}: {wrong}"]) from None


def _leaf(pem: bytes) -> x509.Certificate | None:
    """The first certificate of a chain; None for one that OpenSSL reads and cryptography does not."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        return None


def _is_of_another(key: _PrivateKey, chain: bytes) -> bool:
    """Whether the key is that of a certificate behind the first one."""
    try:
        others = x509.load_pem_x509_certificates(chain)[1:]
    except ValueError:
        return False
    return any(other.public_key() == key.public_key() for other in others)


def _unsuitable(error: SSL.Error, cert: str) -> str | None:
    """The objection of OpenSSL to a certificate that it could read, such as a short key; None for other errors."""
    reasons = [reason for _, _, reason in error.args[0]]
    weak = next((reason for reason in reasons if reason.startswith(("ee ", "ca "))), None)
    return (
        weak
        and f"{cert} is too weak for OpenSSL ({weak}): get one with an RSA key of 2048 bits, or an ECDSA key"
    )


@implementer(IOpenSSLContextFactory)
class ServerContext:
    """Gives each new connection the context of the files as they were last read."""

    def __init__(self, cert_path: str, key_path: str) -> None:
        """Raises ConfigError when the files hold no certificate with its key."""
        self._cert_path = cert_path
        self._key_path = key_path
        self.reload()

    @classmethod
    def from_config(cls, config: Config) -> ServerContext | None:
        """The context that the settings ask for; None: no TLS here."""
        if not config.serves_tls:
            return None
        assert config.tls_cert_path and config.tls_key_path  # else the settings were refused
        return cls(config.tls_cert_path, config.tls_key_path)

    def getContext(self) -> SSL.Context:
        """For Twisted: the context of the next connection."""
        return self._context

    def versions(self) -> tuple[_Version, _Version]:
        """The files as they are on the disk."""
        return _version(self._cert_path), _version(self._key_path)

    def reload(self) -> None:
        """Read the files again; connections that are open keep what they have. Raises ConfigError."""
        #: The files that were read last, usable or not.
        self.read_versions = self.versions()
        self._context, self._certificate = self._read()

    def judge(self, now: datetime) -> tuple[_Judged, str]:
        """What the life of the certificate in use is like, and in words what is wrong with it."""
        if self._certificate is None:
            return "valid", ""
        begins, ends = self._certificate.not_valid_before_utc, self._certificate.not_valid_after_utc
        refused = "peers that check certificates do not connect"
        if now >= ends:
            return "invalid", f"the relay's certificate ended on {_at(ends)}: {refused}"
        if now < begins:
            return "invalid", f"the relay's certificate is not valid before {_at(begins)}: {refused}"
        if ends - now < min(_NEAR, (ends - begins) / _NEAR_PART):
            return "ends", f"the relay's certificate ends on {_at(ends)}"
        return "valid", ""

    def _read(self) -> tuple[SSL.Context, x509.Certificate | None]:
        options = CertificateOptions(
            raiseMinimumTo=TLSVersion.TLSv1_2, acceptableCiphers=_CIPHERS, acceptableProtocols=[b"http/1.1"]
        )
        context = options.getContext()
        context.set_tls13_ciphersuites(_SUITES)
        context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
        # One call encrypts all that it is given; memory takes it all, so no write is ever partial.
        context.clear_mode(_MODE_ENABLE_PARTIAL_WRITE)
        cert, key_file = (
            f"RELAY_TLS_CERT_PATH: {self._cert_path!r}",
            f"RELAY_TLS_KEY_PATH: {self._key_path!r}",
        )
        # Read here too: OpenSSL would wait for the writer of a FIFO.
        chain = _content("RELAY_TLS_CERT_PATH", self._cert_path)
        pem = _content("RELAY_TLS_KEY_PATH", self._key_path)
        wrong, key = f"{cert} holds no certificate chain in PEM", None
        try:
            context.use_certificate_chain_file(self._cert_path)
            wrong = f"{key_file} holds no RSA or ECDSA key in PEM without a passphrase"
            key = _private_key(pem)
            wrong = f"{key_file} is not the key of the certificate in {self._cert_path!r}"
            context.use_privatekey(key)
            context.check_privatekey()
        except SSL.Error as error:
            if key is not None and _is_of_another(key, chain):
                wrong = (
                    f"{cert} begins with another certificate than that of the key: put the relay's own first"
                )
            raise ConfigError([_unsuitable(error, cert) or wrong]) from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ConfigError([wrong]) from None
        return context, _leaf(chain)


def _at(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


class CertificateWatch:
    """Reads the certificate again when its files have changed, or when told to, and logs when its end is near or past."""

    def __init__(
        self,
        context: ServerContext,
        clock: IReactorTime,
        log: EventSink,
        reloaded: Callable[[], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`reloaded` is called when new files were read and can be used. `now` gives seconds since the epoch."""
        self._context = context
        self._log = log
        self._reloaded = reloaded
        self._now = now
        self._judged: _Judged = "valid"  # as the log has it
        self._seen = context.versions()
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock

    def start(self) -> None:
        self._judge()
        self._loop.start(WATCH_SECONDS, now=False)

    def stop(self) -> None:
        if self._loop.running:
            self._loop.stop()

    def reload(self) -> bool:
        """Read the files now. False: they cannot be used, and the old ones stay."""
        try:
            self._context.reload()
        except ConfigError as error:
            message = f"{error.errors[0]}: the certificate that was read before stays in use"
            self._log.event("tls_reload_failed", message=message)
            return False
        self._log.event("tls_reloaded", message="certificate and key were read again")
        self._judged = "valid"
        self._judge()
        self._reloaded()
        return True

    def _judge(self) -> None:
        judged, message = self._context.judge(datetime.fromtimestamp(self._now(), UTC))
        if judged == self._judged:
            return
        self._judged = judged
        if judged == "invalid":
            self._log.event("tls_certificate_invalid", message=message)
        elif judged == "ends":
            self._log.event("tls_certificate_ends", message=message)
        else:
            self._log.event("tls_certificate_valid", message="the relay's certificate is valid again")

    def _look(self) -> None:
        seen, self._seen = self._seen, self._context.versions()
        if self._context.read_versions != self._seen == seen:
            self.reload()
        self._judge()
