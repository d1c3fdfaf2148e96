"""Certificates for tests: a private CA and its certificates, as objects, PEM and files.

ca = Identity.self_signed("test CA")
server = ca.issue("server", "localhost", "127.0.0.1")
files = server.write(folder, "server")
ssl_context = ca.context()                  # trusts this CA alone
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from pathlib import Path
from typing import Any, Literal

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from twisted.internet import ssl as _twisted_ssl

Kind = Literal["rsa", "ecdsa"]
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_twisted: Any = _twisted_ssl
_DAY = datetime.timedelta(days=1)

#: Key usage that strict verification (default since Python 3.13) requires of a CA (RFC 5280, section 4.2.1.3), and
#: digitalSignature for a CA certificate that a server uses itself.
_CA_USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@frozen
class Files:
    """Paths of a certificate and its key, PEM."""

    cert: str
    key: str


@frozen
class Identity:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: Key

    @classmethod
    def self_signed(cls, label: str, *names: str, days: float = 1) -> Identity:
        """A CA certificate, also valid as server for these host names and addresses. Expires in `days` (negative: has expired)."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(label, names, key, days).issuer_name(_name(label))
        return cls(_signed(builder, key, ca=True), key)

    def issue(self, label: str, *names: str, kind: Kind = "ecdsa", days: float = 1) -> Identity:
        """A certificate issued by this CA for these host names and addresses, for servers and clients."""
        key: Key = (
            ec.generate_private_key(ec.SECP256R1())
            if kind == "ecdsa"
            else rsa.generate_private_key(public_exponent=65537, key_size=2048)
        )
        builder = _builder(label, names, key, days).issuer_name(self.certificate.subject)
        return Identity(_signed(builder, self.key, ca=False), key)

    @property
    def serial(self) -> int:
        return self.certificate.serial_number

    @property
    def cert_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self, passphrase: bytes | None = None) -> bytes:
        hidden: KeySerializationEncryption = (
            BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        )
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden)

    def write(self, folder: Path, name: str, passphrase: bytes | None = None) -> Files:
        """Write `name.crt` and `name.key`; each file is replaced atomically."""
        for part, pem in (("crt", self.cert_pem), ("key", self.key_pem(passphrase))):
            fresh = folder / f"{name}.{part}.new"
            fresh.write_bytes(pem)
            os.replace(fresh, folder / f"{name}.{part}")
        return Files(str(folder / f"{name}.crt"), str(folder / f"{name}.key"))

    def context(self) -> ssl.SSLContext:
        """A client's TLS context that trusts this CA only."""
        return ssl.create_default_context(cadata=self.cert_pem.decode())

    @property
    def trust_root(self) -> Any:
        """This CA as a trust root for Twisted."""
        return _twisted.trustRootFromCertificates([_twisted.Certificate.loadPEM(self.cert_pem)])

    def options(self, client_ca: Identity | None = None) -> Any:
        """TLS options of a Twisted server; with `client_ca` a client certificate is required."""
        return _twisted.CertificateOptions(
            privateKey=self.key,
            certificate=self.certificate,
            trustRoot=None if client_ca is None else client_ca.trust_root,
        )


def _name(label: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, label)])


def _builder(label: str, names: tuple[str, ...], key: Key, days: float) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    end = now + days * _DAY
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(label))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - _DAY)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general(n) for n in names]), critical=False
        )
    return builder


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _signed(builder: x509.CertificateBuilder, key: Key, *, ca: bool) -> x509.Certificate:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if ca:
        builder = builder.add_extension(_CA_USAGE, critical=True)
    return builder.sign(key, hashes.SHA256())


def serial_of(sock: ssl.SSLSocket) -> int:
    """Serial number of the other side's certificate."""
    shown = sock.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number
