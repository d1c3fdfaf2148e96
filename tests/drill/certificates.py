"""A private CA for tests, and certificates of it for `localhost`."""

from __future__ import annotations

import datetime
import os
import ssl
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Kind = Literal["rsa", "ecdsa"]

#: What strict verification (the default from Python 3.13 on) wants of a CA, RFC 5280 section 4.2.1.3.
CA_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class PrivateCa:
    """Issues into `folder`; `context` trusts this CA alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "drill CA")])
        self.certificate = self._sign(self._name, self._key.public_key(), ca=True)
        self.path = folder / "ca.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject: x509.Name, public: object, *, ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)  # type: ignore[arg-type]
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if ca:
            builder = builder.add_extension(CA_USAGE, critical=True)
        else:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False
            )
        return builder.sign(self._key, hashes.SHA256())

    def issue(
        self, name: str, kind: Kind = "ecdsa", passphrase: bytes | None = None
    ) -> tuple[Path, Path, int]:
        """Paths of certificate and key, which are replaced in one step each; and the serial number."""
        key = (
            ec.generate_private_key(ec.SECP256R1())
            if kind == "ecdsa"
            else rsa.generate_private_key(public_exponent=65537, key_size=2048)
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        certificate = self._sign(subject, key.public_key(), ca=False)
        protection = (
            serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        )
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
        paths = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        for path, text in zip(
            paths, (certificate.public_bytes(serialization.Encoding.PEM), pem), strict=True
        ):
            fresh = path.with_suffix(path.suffix + ".new")
            fresh.write_bytes(text)
            os.replace(fresh, path)
        return *paths, certificate.serial_number

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.path)


def serial_of(sock: ssl.SSLSocket) -> int:
    """Serial number of the certificate that the other side showed."""
    shown = sock.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number
