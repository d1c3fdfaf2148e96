"""The relay's own TLS: certificate and key from files, TLS 1.2 and later."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLContextFactory
from twisted.internet.ssl import AcceptableCiphers, CertificateOptions, TLSVersion
from zope.interface import implementer

from viewport_relay.config import Config, ConfigError

_CIPHERS = AcceptableCiphers.fromOpenSSLCipherString(
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:"
    "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!aDSS"
)


@implementer(IOpenSSLContextFactory)
class ServerContext:
    """Gives each new connection the context of the files as they were last read."""

    def __init__(self, cert_path: str, key_path: str) -> None:
        """Raises ConfigError when the files hold no certificate with its key."""
        self._cert_path = cert_path
        self._key_path = key_path
        self._context = self._read()

    @classmethod
    def from_config(cls, config: Config) -> ServerContext | None:
        """The context that the settings ask for; None: no TLS here."""
        wanted = config.tls == "1" or (config.tls == "auto" and config.tls_termination == "self")
        if not wanted or not config.tls_cert_path or not config.tls_key_path:
            return None
        return cls(config.tls_cert_path, config.tls_key_path)

    def getContext(self) -> SSL.Context:
        """For Twisted: the context of the next connection."""
        return self._context

    def reload(self) -> None:
        """Read the files again; connections that are open keep what they have. Raises ConfigError."""
        self._context = self._read()

    def _read(self) -> SSL.Context:
        options = CertificateOptions(
            raiseMinimumTo=TLSVersion.TLSv1_2, acceptableCiphers=_CIPHERS, acceptableProtocols=[b"http/1.1"]
        )
        context = options.getContext()
        try:
            context.use_certificate_chain_file(self._cert_path)
            context.use_privatekey_file(self._key_path)
            context.check_privatekey()
        except SSL.Error:
            raise ConfigError(
                [
                    f"RELAY_TLS_CERT_PATH, RELAY_TLS_KEY_PATH: {self._cert_path!r} and its key are not a PEM pair"
                ]
            ) from None
        return context
