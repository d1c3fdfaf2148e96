"""What the tests of the command share: certificates made on the spot, and the doctor's findings by name."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from viewport_relay.cli.doctor import examine
from viewport_relay.cli.findings import Finding

INTERNAL_KEY = "an-internal-key-for-these-tests-only"


@frozen
class Certificate:
    """A self-signed certificate and its key, as PEM files."""

    cert: Path
    key: Path


def make_certificate(folder: Path, names: list[str], days: float = 365, label: str = "server") -> Certificate:
    """For these host names and addresses, valid from yesterday for `days` days from now (negative: ended)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, label)])
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    alternatives: list[x509.GeneralName] = []
    for text in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(text)))
        except ValueError:
            alternatives.append(x509.DNSName(text))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - datetime.timedelta(days=1))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    made = Certificate(folder / f"{label}.pem", folder / f"{label}.key")
    made.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
    made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made


async def findings_of(reactor: Any, environ: dict[str, str], timeout: float = 5.0) -> dict[str, Finding]:
    """What the doctor says, by the name of the check; the worst one of each name counts."""
    order = ["ok", "warn", "fail"]
    found: dict[str, Finding] = {}
    async for finding in examine(reactor, environ, timeout):
        known = found.get(finding.name)
        if known is None or order.index(finding.outcome) > order.index(known.outcome):
            found[finding.name] = finding
    return found
