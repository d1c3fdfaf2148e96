"""TLS for every outgoing connection: which certificates are accepted, and which one is presented.

`ClientTls` is the one policy of the relay: platform, Redis and Sentinel use it. The chain must lead to a trusted CA and
the certificate must name the host in its subjectAltName (RFC 9525, through service-identity). A certificate that does
not is refused with a `CertificateRefused` that says why in words. TLS of the relay's own listeners is not here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.internet.ssl import Certificate, CertificateOptions, platformTrust, trustRootFromCertificates
from twisted.python.failure import Failure
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from viewport_relay.admission.addresses import parse_address
from viewport_relay.admission.keys import printable
from viewport_relay.config import Config, ConfigError, read_file

#: What OpenSSL's verification errors (x509_vfy.h) mean to an operator; others are shown by their number.
_NOT_YET_VALID, _EXPIRED = 9, 10
_NOT_TRUSTED: Final = (18, 19, 20, 21)
_CHAIN_PROBLEMS: Final = {
    9: "the certificate is not valid yet (compare the clocks)",
    10: "the certificate has expired",
    18: "the certificate is self-signed, and not trusted here",
    19: "the certificate is signed by a CA that is not trusted here",
    20: "the certificate is signed by a CA that is not trusted here, or the server does not send its whole chain",
    21: "the certificate is signed by a CA that is not trusted here, or the server does not send its whole chain",
    23: "the certificate has been revoked",
    24: "a certificate of the chain is not a CA's",
    26: "the certificate is not one for servers",
    66: "the key of the certificate is too weak",
    67: "the key of the CA is too weak",
    68: "the certificate is signed with a digest that is too weak",
}


class CertificateRefused(Exception):
    """A server's certificate that is not accepted. `why` says the reason in words, `hint` what to do."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.why = why
        self.hint = hint


@implementer(IPolicyForHTTPS)
class ClientTls:
    """The client's side of TLS, for any number of hosts.

    `trust_root` is one of Twisted's, the system's if None. `identity` holds `privateKey`, `certificate` and
    `extraCertChain` for CertificateOptions. With `verify` off every certificate is accepted. `ca_variable` is the setting
    that names another CA.
    """

    def __init__(
        self,
        trust_root: Any = None,
        identity: dict[str, Any] | None = None,
        *,
        verify: bool = True,
        ca_variable: str = "RELAY_SERVER_CA_CERT_PATH",
    ) -> None:
        self._verify = verify
        self._ca_variable = ca_variable
        trust: dict[str, Any] = {"trustRoot": trust_root or platformTrust()} if verify else {"verify": False}
        self._context = CertificateOptions(**trust, **(identity or {})).getContext()

    @classmethod
    def for_platform(cls, config: Config) -> ClientTls:
        """The policy of the RELAY_SERVER_… settings. Raises ConfigError for files that cannot be used."""
        trust_root = identity = None
        if config.server_ca_cert_path:
            trust_root = _trust_in("RELAY_SERVER_CA_CERT_PATH", config.server_ca_cert_path)
        if config.server_mtls and config.server_client_cert_path and config.server_client_key_path:
            identity = _identity(
                config.server_client_cert_path,
                config.server_client_key_path,
                config.server_client_key_passphrase,
            )
        return cls(trust_root, identity, verify=config.server_tls_verify)

    @classmethod
    def trusting(cls, variable: str, ca_path: str | None) -> ClientTls:
        """The policy that trusts the CAs of a PEM file, the system's if None. Raises ConfigError that names `variable`."""
        return cls(_trust_in(variable, ca_path) if ca_path else None, ca_variable=variable)

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        """Called by Twisted's Agent for each origin."""
        return self._creator(hostname.decode("ascii"))

    def over(self, endpoint: IStreamClientEndpoint, host: str) -> IStreamClientEndpoint:
        """TLS on top of an endpoint that leads to `host`, a name or an address without brackets."""
        wrapped: IStreamClientEndpoint = wrapClientTLS(self._creator(host), endpoint)
        return wrapped

    def _creator(self, host: str) -> _Creator:
        return _Creator(self._context, host, self._ca_variable if self._verify else None)


@implementer(IOpenSSLClientConnectionCreator)
class _Creator:
    """Connections to one host; with `ca_variable` None its certificate is not verified.

    Twisted's own creator is not used: it accepts a certificate of a trusted CA that has no subjectAltName.
    """

    def __init__(self, context: SSL.Context, hostname: str, ca_variable: str | None) -> None:
        self._context = context
        self._ca_variable = ca_variable
        self._is_name = parse_address(hostname) is None
        self._hostname = hostname
        self._identity = DNS_ID(hostname) if self._is_name else IPAddress_ID(hostname)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """Called by Twisted for each connection."""
        connection = SSL.Connection(self._context, None)
        if self._is_name:  # never an IP address, RFC 6066 section 3
            connection.set_tlsext_host_name(self._hostname.encode("ascii"))
        if self._ca_variable is not None:
            mode = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
            connection.set_verify(mode, self._verifier(weakref.ref(tlsProtocol)))
        return connection

    def _verifier(self, protocol: weakref.ref[Any]) -> Callable[..., bool]:
        def verified(
            connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int
        ) -> bool:
            refused = (
                self._misnamed(certificate, depth) if ok else self._distrusted(certificate, error, depth)
            )
            tls = protocol()
            if refused is not None and tls is not None:
                tls.failVerification(Failure(refused))
            return refused is None

        return verified

    def _misnamed(self, certificate: crypto.X509, depth: int) -> CertificateRefused | None:
        """Why a certificate of a good chain is not this host's."""
        if depth > 0:
            return None
        try:
            verify_service_identity(extract_patterns(certificate), [self._identity], [])
        except VerificationError:
            names = ", ".join(_names(certificate.to_cryptography())[:4])
            hint = f"the certificate is for {names}: put such a name into the URL, or let {self._hostname} serve its own"
            return CertificateRefused(f"the certificate is for another name than {self._hostname}", hint)
        except CertificateError:
            hint = f"let {self._hostname} serve a certificate with its name in subjectAltName"
            return CertificateRefused("the certificate names no host (it has no subjectAltName)", hint)
        return None

    def _distrusted(self, certificate: crypto.X509, error: int, depth: int) -> CertificateRefused:
        """Why a chain is not accepted."""
        words = _CHAIN_PROBLEMS.get(error, f"the certificate cannot be verified (OpenSSL error {error})")
        if error == _EXPIRED:
            words += f" on {certificate.to_cryptography().not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            hint = f"renew the certificate of {self._hostname}"
        elif error == _NOT_YET_VALID:
            hint = f"compare the clocks of this machine and of {self._hostname}"
        elif error in _NOT_TRUSTED:
            hint = f"let {self._hostname} send its whole chain, or set {self._ca_variable} to its CA"
        else:
            hint = f"let {self._hostname} serve another certificate"
        if depth > 0:
            words = words.replace("the certificate", "a certificate of the chain", 1)
        return CertificateRefused(words, hint)


def _names(certificate: x509.Certificate) -> list[str]:
    """The host names and addresses that a certificate is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ["nothing"]
    hosts = [*found.get_values_for_type(x509.DNSName), *found.get_values_for_type(x509.IPAddress)]
    return [printable(str(host)) for host in hosts] or ["no host"]


def _trust_in(variable: str, path: str) -> Any:
    certificates = [Certificate.loadPEM(c.public_bytes(Encoding.PEM)) for c in _certificates(variable, path)]
    return trustRootFromCertificates(certificates)


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


def _certificates(variable: str, path: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(variable, path))
    except ValueError:
        raise ConfigError([f"{variable}: {path!r} holds no PEM certificate"]) from None


def _read(variable: str, path: str) -> bytes:
    try:
        return read_file(path)
    except ValueError as wrong:
        raise ConfigError([f"{variable}: {wrong}"]) from None
