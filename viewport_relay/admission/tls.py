"""How the relay speaks TLS to the platform: whom it trusts, and whom it says it is.

Host names and IP addresses are verified (RFC 9525, through service-identity) unless
`RELAY_SERVER_TLS_VERIFY` is off. The TLS of the relay's own listeners is not here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from OpenSSL import SSL
from service_identity import CertificateError, VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.python.failure import Failure
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from viewport_relay.admission.addresses import parse_address
from viewport_relay.config import Config, ConfigError


@implementer(IPolicyForHTTPS)
class PlatformTls:
    """Makes the TLS side of connections to the platform.

    `trust_root` is one of Twisted's, the system's if None; `identity` holds `privateKey`, `certificate` and
    `extraCertChain` for CertificateOptions, or nothing. Without `verify` any certificate of anybody is accepted.
    """

    def __init__(
        self, trust_root: Any = None, identity: dict[str, Any] | None = None, verify: bool = True
    ) -> None:
        self._verify = verify
        trust: dict[str, Any] = {"trustRoot": trust_root or platformTrust()} if verify else {"verify": False}
        self._context = CertificateOptions(**trust, **(identity or {})).getContext()

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        """Called once for each origin."""
        return _Creator(self._context, hostname.decode("ascii"), self._verify)


@implementer(IOpenSSLClientConnectionCreator)
class _Creator:
    """Connections to one host.

    Twisted's own creator is not used: it takes a certificate that names nobody at all for one of any host.
    """

    def __init__(self, context: SSL.Context, hostname: str, verify: bool) -> None:
        self._context = context
        self._verify = verify
        self._is_name = parse_address(hostname) is None
        self._hostname = hostname
        self._identity = DNS_ID(hostname) if self._is_name else IPAddress_ID(hostname)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """Called once for each connection."""
        connection = SSL.Connection(self._context, None)
        if self._is_name:  # never an IP address, RFC 6066 section 3
            connection.set_tlsext_host_name(self._hostname.encode("ascii"))
        if self._verify:
            mode = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
            connection.set_verify(mode, self._verifier(weakref.ref(tlsProtocol)))
        return connection

    def _verifier(self, protocol: weakref.ref[Any]) -> Callable[..., bool]:
        def verified(connection: SSL.Connection, certificate: Any, error: int, depth: int, ok: int) -> bool:
            if not ok or depth > 0:
                return bool(ok)
            try:
                verify_service_identity(extract_patterns(certificate), [self._identity], [])
            except (VerificationError, CertificateError):
                tls = protocol()
                if tls is not None:
                    tls.failVerification(Failure())
                return False
            return True

        return verified


def policy_from(config: Config) -> PlatformTls:
    """The policy that the RELAY_SERVER_… settings ask for. Raises ConfigError for files that cannot be used."""
    trust_root = identity = None
    if config.server_ca_cert_path:
        trust_root = trust_in("RELAY_SERVER_CA_CERT_PATH", config.server_ca_cert_path)
    if config.server_mtls and config.server_client_cert_path and config.server_client_key_path:
        identity = _identity(
            config.server_client_cert_path, config.server_client_key_path, config.server_client_key_passphrase
        )
    return PlatformTls(trust_root, identity, config.server_tls_verify)


def trust_in(variable: str, path: str) -> Any:
    """Trust in the CAs of a PEM file, for `optionsForClientTLS`. Raises ConfigError that names `variable`."""
    return trustRootFromCertificates([_certificate(c) for c in _certificates(variable, path)])


def _identity(cert_path: str, key_path: str, passphrase: str | None) -> dict[str, Any]:
    first, *chain = _certificates("RELAY_SERVER_CLIENT_CERT_PATH", cert_path)
    variable = "RELAY_SERVER_CLIENT_KEY_PATH"
    pem = _read(variable, key_path)
    try:
        key = load_pem_private_key(pem, passphrase.encode("utf-8") if passphrase else None)
    except TypeError:  # what cryptography says about a passphrase too many or too few
        says = "is not encrypted: unset it" if passphrase else "is not set, and the key is encrypted"
        raise ConfigError([f"RELAY_SERVER_CLIENT_KEY_PASSPHRASE {says}"]) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(
            [f"{variable}: {key_path!r} is no PEM private key (or the passphrase is wrong)"]
        ) from None
    if key.public_key() != first.public_key():
        raise ConfigError([f"{variable}: {key_path!r} is not the key of the certificate in {cert_path!r}"])
    return {
        "privateKey": key,
        "certificate": first,
        "extraCertChain": chain,
    }


def _certificate(certificate: x509.Certificate) -> Certificate:
    loaded: Certificate = Certificate.loadPEM(certificate.public_bytes(Encoding.PEM))
    return loaded


def _certificates(variable: str, path: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(variable, path))
    except ValueError:
        raise ConfigError([f"{variable}: {path!r} holds no PEM certificate"]) from None


def _read(variable: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1_048_576)
    except OSError as error:
        raise ConfigError([f"{variable}: cannot read {path!r}: {error.strerror}"]) from None
