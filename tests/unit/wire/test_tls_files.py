"""Which files `ServerContext` takes as a certificate with its key."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet.task import Clock

from tests.drill.certificates import Identity
from tests.memorywire import Log
from viewport_relay.config import ConfigError
from viewport_relay.observe.events import EVENTS
from viewport_relay.wire.tls import WATCH_SECONDS, CertificateWatch, ServerContext

CA = Identity.self_signed("CA")
EC = CA.issue("relay", "localhost")
RSA, OTHER_RSA = (CA.issue("relay", "localhost", kind="rsa") for _ in range(2))

#: What `openssl ecparam -genkey` writes in front of a P-256 key.
PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"


def traditional(identity: Identity) -> bytes:
    """The key as `BEGIN EC PRIVATE KEY` or `BEGIN RSA PRIVATE KEY`."""
    return identity.key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def context(folder: Path, certificate: bytes, key: bytes) -> ServerContext:
    (folder / "crt").write_bytes(certificate)
    (folder / "key").write_bytes(key)
    return ServerContext(str(folder / "crt"), str(folder / "key"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("certificate", "key"),
    [
        pytest.param(EC.cert_pem, EC.key_pem(), id="PKCS 8"),
        pytest.param(EC.cert_pem, PARAMETERS + traditional(EC), id="EC with parameters"),
        pytest.param(RSA.cert_pem, traditional(RSA), id="traditional RSA"),
        pytest.param(RSA.cert_pem + CA.cert_pem, RSA.cert_pem + RSA.key_pem(), id="certificate and key in one file"),
    ],
)  # fmt: skip
def test_a_pair_is_taken(tmp_path: Path, certificate: bytes, key: bytes) -> None:
    assert context(tmp_path, certificate, key).getContext()


X25519_KEY = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


NO_CHAIN = r"RELAY_TLS_CERT_PATH: '.*crt' holds no certificate chain in PEM"
NO_KEY = r"RELAY_TLS_KEY_PATH: '.*key' holds no RSA or ECDSA key in PEM without a passphrase"
NOT_FIRST = r"RELAY_TLS_CERT_PATH: '.*crt' begins with another certificate than that of the key: put the relay's own first"
NO_PAIR = r"RELAY_TLS_KEY_PATH: '.*key' is not the key of the certificate in '.*crt'"


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        pytest.param(EC.cert_pem, RSA.key_pem(), NO_PAIR, id="another's key"),
        pytest.param(RSA.cert_pem, OTHER_RSA.key_pem(), NO_PAIR, id="another's key of the same kind"),
        pytest.param(CA.cert_pem + EC.cert_pem, EC.key_pem(), NOT_FIRST, id="a chain in the wrong order"),
        pytest.param(EC.cert_pem, EC.key_pem(b"a long enough passphrase"), NO_KEY, id="a passphrase"),
        pytest.param(EC.cert_pem, X25519_KEY, NO_KEY, id="a key that signs nothing"),
        pytest.param(EC.cert_pem, EC.cert_pem, NO_KEY, id="no key"),
        pytest.param(EC.cert_pem, b"", NO_KEY, id="an empty key file"),
        pytest.param(b"", EC.key_pem(), NO_CHAIN, id="an empty certificate file"),
        pytest.param(EC.key_pem(), EC.cert_pem, NO_CHAIN, id="exchanged"),
    ],
)
def test_what_is_no_pair_is_refused(tmp_path: Path, certificate: bytes, key: bytes, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        context(tmp_path, certificate, key)
    assert re.fullmatch(words, str(refused.value))


def test_a_missing_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "crt").write_bytes(EC.cert_pem)
    with pytest.raises(
        ConfigError, match=r"RELAY_TLS_KEY_PATH: cannot read '.*key': No such file or directory"
    ):
        ServerContext(str(tmp_path / "crt"), str(tmp_path / "key"))


def test_a_weak_certificate_is_called_so(tmp_path: Path) -> None:
    """A certificate of an old company CA is in order as PEM: OpenSSL refuses its key."""
    key = generate_private_key(65537, 1024)
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "relay")])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    pem = made.sign(key, SHA256()).public_bytes(Encoding.PEM)
    with pytest.raises(
        ConfigError, match=r"RELAY_TLS_CERT_PATH: '.*crt' is too weak for OpenSSL \(ee key too small\)"
    ):
        context(tmp_path, pem, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


DAY = 86_400.0


class Watched:
    """A watched certificate with ten days left of eleven, and the entries about its life."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.log = folder, Clock(), Log()
        self.began = time.time()
        self.context = context(folder, *self.pair(10))
        self.watch = CertificateWatch(
            self.context, self.clock, self.log, lambda: None, lambda: self.began + self.clock.seconds()
        )
        self.watch.start()

    @staticmethod
    def pair(days: float) -> tuple[bytes, bytes]:
        made = CA.issue("relay", "localhost", days=days)
        return made.cert_pem, made.key_pem()

    def events(self) -> list[str]:
        return self.log.names()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    yield made
    made.watch.stop()


def test_a_certificate_that_ends_is_an_entry_before_and_after(watched: Watched) -> None:
    """Peers that refuse an ended certificate leave no other trace: they never send a request."""
    assert watched.events() == []
    watched.clock.advance(8.5 * DAY)
    assert watched.events() == ["tls_certificate_ends"]
    watched.clock.pump([WATCH_SECONDS] * 9)
    assert watched.events() == ["tls_certificate_ends"]
    watched.clock.advance(2 * DAY)
    assert watched.events() == ["tls_certificate_ends", "tls_certificate_invalid"]
    assert "ended on 20" in watched.log.named("tls_certificate_invalid")[0]["message"]
    assert EVENTS["tls_certificate_invalid"].held and EVENTS["tls_certificate_invalid"].level == "error"


def test_a_renewal_ends_the_problem(watched: Watched) -> None:
    watched.clock.advance(11 * DAY)
    context(watched.folder, *watched.pair(30))
    assert watched.watch.reload() and watched.events() == ["tls_certificate_invalid", "tls_reloaded"]
    assert {"tls_certificate_ends", "tls_certificate_invalid"} <= set(EVENTS["tls_reloaded"].ends)


def test_a_renewal_with_the_old_certificate_says_so_again(watched: Watched) -> None:
    watched.clock.advance(11 * DAY)
    assert watched.watch.reload()
    assert watched.events() == ["tls_certificate_invalid", "tls_reloaded", "tls_certificate_invalid"]


def test_a_certificate_before_its_time(watched: Watched) -> None:
    watched.began -= 30 * DAY
    watched.clock.advance(WATCH_SECONDS)
    assert "not valid before" in watched.log.named("tls_certificate_invalid")[0]["message"]
    watched.began += 30 * DAY  # the clock is set
    watched.clock.advance(WATCH_SECONDS)
    assert watched.events() == ["tls_certificate_invalid", "tls_certificate_valid"]
